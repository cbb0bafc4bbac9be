package ssmmp

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// memHosts returns hosts of a new network.
func memHosts(t testing.TB, addrs ...string) []*MemHost {
	t.Helper()
	n := NewMemNetwork()
	var hosts []*MemHost
	for _, addr := range addrs {
		h, err := n.Host(addr)
		if err != nil {
			t.Fatal(err)
		}
		hosts = append(hosts, h)
	}
	return hosts
}

func memListen(t testing.TB, h *MemHost, addr string) net.Listener {
	t.Helper()
	ln, err := h.Listen(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// memConnect returns both ends of a new connection to ln.
func memConnect(t testing.TB, from *MemHost, ln net.Listener) (client, server net.Conn) {
	t.Helper()
	client, err := from.Dial(t.Context(), ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err = ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return client, server
}

func wantErr(t *testing.T, what string, err, want error) {
	t.Helper()
	var oe *net.OpError
	if !errors.Is(err, want) || !errors.As(err, &oe) {
		t.Errorf("%s: %v, want a *net.OpError with %v", what, err, want)
	}
}

// result runs f in a goroutine of its own and delivers what it returns.
func result(f func() error) <-chan error {
	c := make(chan error, 1)
	go func() { c <- f() }()
	return c
}

func TestMemHostAddress(t *testing.T) {
	t.Parallel()
	n := NewMemNetwork()
	a, err := n.Host("10.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	if b, err := n.Host("::ffff:10.0.0.1"); err != nil || b != a {
		t.Errorf("the same address is another host: %v", err)
	}
	if got := a.Addr().String(); got != "10.0.0.1" {
		t.Errorf("Addr = %s", got)
	}
	for _, addr := range []string{"", "host", "10.0.0.1:80", "10.0.0.256", "0.0.0.0", "::", "127.0.0.1", "::1", "224.0.0.1"} {
		h, err := n.Host(addr)
		var ae *net.AddrError
		if h != nil || !errors.As(err, &ae) || ae.Addr != addr {
			t.Errorf("Host(%q) = %v, %v, want a *net.AddrError that names it", addr, h, err)
		}
	}
}

func TestMemReach(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		listen string
		self   []string // hosts by which the listening host reaches it
		other  bool     // whether another host reaches it by its address
	}{
		{":70", []string{"", "localhost", "127.0.0.1", "[::1]", "10.0.0.1"}, true},
		{"0.0.0.0:70", []string{"", "localhost", "127.0.0.1", "[::1]", "10.0.0.1"}, true},
		{"10.0.0.1:70", []string{"10.0.0.1"}, true},
		{"localhost:70", []string{"", "localhost", "127.0.0.1", "[::1]"}, false},
		{"[::1]:70", []string{"", "localhost", "127.0.0.1", "[::1]"}, false},
	} {
		hosts := memHosts(t, "10.0.0.1", "10.0.0.2")
		memListen(t, hosts[0], tt.listen)
		reached := make(map[string]bool)
		for _, host := range tt.self {
			reached[host] = true
		}
		for _, host := range []string{"", "localhost", "127.0.0.1", "[::1]", "10.0.0.1", "0.0.0.0", "[::]"} {
			if host == "0.0.0.0" || host == "[::]" {
				reached[host] = reached[""] // all three are no host part
			}
			_, err := hosts[0].Dial(t.Context(), host+":70")
			if reached[host] && err != nil {
				t.Errorf("listening on %s: %v", tt.listen, err)
			} else if !reached[host] {
				wantErr(t, "listening on "+tt.listen+", dial "+host, err, syscall.ECONNREFUSED)
			}
			if host != "10.0.0.1" {
				_, err = hosts[1].Dial(t.Context(), host+":70")
				wantErr(t, "another host's own "+host, err, syscall.ECONNREFUSED)
			}
		}
		_, err := hosts[1].Dial(t.Context(), "10.0.0.1:70")
		if tt.other && err != nil {
			t.Errorf("listening on %s: from another host: %v", tt.listen, err)
		} else if !tt.other {
			wantErr(t, "listening on "+tt.listen+", from another host", err, syscall.ECONNREFUSED)
		}
	}
}

func TestMemDialErrors(t *testing.T) {
	t.Parallel()
	h := memHosts(t, "10.0.0.1", "10.0.0.2")[0]
	_, err := h.Dial(t.Context(), "10.0.0.2:70")
	wantErr(t, "nobody listens", err, syscall.ECONNREFUSED)
	_, err = h.Dial(t.Context(), "10.0.0.3:70")
	wantErr(t, "no such host", err, syscall.EHOSTUNREACH)
	_, err = h.Dial(t.Context(), "db.example:70")
	var de *net.DNSError
	if !errors.As(err, &de) || !de.IsNotFound || de.Name != "db.example" {
		t.Errorf("a name: %v, want a *net.DNSError that names it", err)
	}
}

func TestMemNetworksAreApart(t *testing.T) {
	t.Parallel()
	memListen(t, memHosts(t, "10.0.0.1")[0], ":70")
	_, err := memHosts(t, "10.0.0.2")[0].Dial(t.Context(), "10.0.0.1:70")
	wantErr(t, "a host of another network", err, syscall.EHOSTUNREACH)
}

func TestMemAddrInUse(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		first, second string
		want          error
	}{
		{":70", ":70", syscall.EADDRINUSE},
		{":70", "localhost:70", syscall.EADDRINUSE},
		{":70", "10.0.0.1:70", syscall.EADDRINUSE},
		{"localhost:70", ":70", syscall.EADDRINUSE},
		{"10.0.0.1:70", ":70", syscall.EADDRINUSE},
		{"10.0.0.1:70", "localhost:70", nil},
		{":70", ":71", nil},
		{":70", "10.0.0.2:71", syscall.EADDRNOTAVAIL},
	} {
		h := memHosts(t, "10.0.0.1", "10.0.0.2")[0]
		first := memListen(t, h, tt.first)
		_, err := h.Listen(t.Context(), tt.second)
		if tt.want == nil && err != nil {
			t.Errorf("%s, then %s: %v", tt.first, tt.second, err)
		} else if tt.want != nil {
			wantErr(t, tt.first+", then "+tt.second, err, tt.want)
		}
		if tt.want == syscall.EADDRINUSE {
			first.Close()
			memListen(t, h, tt.second)
		}
	}
}

func TestMemPortsRunOut(t *testing.T) {
	t.Parallel()
	hosts := memHosts(t, "10.0.0.1", "10.0.0.2")
	ln := memListen(t, hosts[1], ":70")
	for port := memFirstPort; port <= memLastPort; port++ {
		hosts[0].ports[uint16(port)] = new(memConn)
	}
	_, err := hosts[0].Dial(t.Context(), ln.Addr().String())
	wantErr(t, "Dial from a host without a free port", err, syscall.ECONNREFUSED) // [::]:70 is this host's own
	_, err = hosts[0].Dial(t.Context(), "10.0.0.2:70")
	wantErr(t, "Dial from a host without a free port", err, syscall.EADDRNOTAVAIL)
	_, err = hosts[0].Listen(t.Context(), ":0")
	wantErr(t, "Listen on a host without a free port", err, syscall.EADDRNOTAVAIL)

	delete(hosts[0].ports, memLastPort)
	c, err := hosts[0].Dial(t.Context(), "10.0.0.2:70")
	if err != nil {
		t.Fatal(err)
	}
	if got := c.LocalAddr().String(); got != "10.0.0.1:"+strconv.Itoa(memLastPort) {
		t.Errorf("dialled from %s, and not from the one free port", got)
	}
}

// TestMemForgets shows that a host keeps nothing of what has ended.
func TestMemForgets(t *testing.T) {
	t.Parallel()
	hosts := memHosts(t, "10.0.0.1", "10.0.0.2")
	for range 3 {
		ln := memListen(t, hosts[0], "10.0.0.1:70")
		a, b := memConnect(t, hosts[1], ln)
		c, d := memConnect(t, hosts[0], ln)
		if _, err := hosts[1].Dial(t.Context(), "10.0.0.1:70"); err != nil { // never accepted
			t.Fatal(err)
		}
		for _, end := range []net.Conn{a, b, d, c} {
			end.Close()
		}
		ln.Close()
	}
	for _, h := range hosts {
		if len(h.conns)+len(h.ports)+len(h.local)+len(h.outside) != 0 {
			t.Errorf("%s keeps %d connections, %d ports, %d and %d listeners",
				h.addr, len(h.conns), len(h.ports), len(h.local), len(h.outside))
		}
	}
}

func TestMemBacklog(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		hosts := memHosts(t, "10.0.0.1", "10.0.0.2")
		ln := memListen(t, hosts[0], "10.0.0.1:70")
		dial := func(ctx context.Context) func() error {
			return func() error {
				_, err := hosts[1].Dial(ctx, "10.0.0.1:70")
				return err
			}
		}
		for i := range memBacklog {
			if err := dial(t.Context())(); err != nil {
				t.Fatalf("dial %d: %v", i, err)
			}
		}
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err := dial(ctx)()
		wantErr(t, "Dial to a full backlog", err, context.DeadlineExceeded)
		if ne := net.Error(nil); !errors.As(err, &ne) || !ne.Timeout() {
			t.Errorf("%v is no timeout", err)
		}
		if waited := time.Since(start); waited != time.Minute {
			t.Errorf("Dial with a context of a minute took %v", waited)
		}

		first, second := result(dial(t.Context())), result(dial(t.Context()))
		synctest.Wait()
		if len(first)+len(second) != 0 {
			t.Fatal("Dial did not wait for room")
		}
		if _, err := ln.Accept(); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if len(first)+len(second) != 1 {
			t.Fatalf("one Accept let %d dials in", len(first)+len(second))
		}
		ln.Close()
		errs := []error{<-first, <-second}
		if errs[0] == nil {
			errs[0], errs[1] = errs[1], errs[0]
		}
		wantErr(t, "Dial that waits while the listener closes", errs[0], syscall.ECONNREFUSED)
		if errs[1] != nil {
			t.Errorf("Dial for which there was room: %v", errs[1])
		}
	})
}

func TestMemListenerCloseResets(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		hosts := memHosts(t, "10.0.0.1", "10.0.0.2")
		ln := memListen(t, hosts[0], "10.0.0.1:70")
		accepted, _ := memConnect(t, hosts[1], ln)
		waiting, err := hosts[1].Dial(t.Context(), "10.0.0.1:70")
		if err != nil {
			t.Fatal(err)
		}
		read := result(func() error { _, err := waiting.Read(make([]byte, 1)); return err })
		synctest.Wait()
		ln.Close()
		wantErr(t, "Read of a connection that was never accepted", <-read, syscall.ECONNRESET)
		if _, err := accepted.Write([]byte("x")); err != nil {
			t.Errorf("an accepted connection: %v", err)
		}
		_, err = hosts[1].Dial(t.Context(), "10.0.0.1:70")
		wantErr(t, "Dial after Close", err, syscall.ECONNREFUSED)
	})
}

func TestMemCrash(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		hosts := memHosts(t, "10.0.0.1", "10.0.0.2", "10.0.0.3")
		crashing, peer, third := hosts[0], hosts[1], hosts[2]
		ln := memListen(t, crashing, "10.0.0.1:70")
		peerLn := memListen(t, peer, "10.0.0.2:70")
		in, inServer := memConnect(t, peer, ln)
		out, outServer := memConnect(t, crashing, peerLn)
		_, full := memConnect(t, peer, ln)
		apart, apartServer := memConnect(t, third, peerLn)
		if _, err := out.Write([]byte("on its way")); err != nil {
			t.Fatal(err)
		}
		for range memBacklog { // the next dial to the peer waits
			if _, err := third.Dial(t.Context(), "10.0.0.2:70"); err != nil {
				t.Fatal(err)
			}
		}
		pending := map[string]<-chan error{
			"Read at the peer":             result(func() error { _, err := in.Read(make([]byte, 1)); return err }),
			"Read at the crashing host":    result(func() error { _, err := inServer.Read(make([]byte, 1)); return err }),
			"Write at the peer":            result(func() error { _, err := outServer.Write(make([]byte, 1<<20)); return err }),
			"Dial from the crashing host":  result(func() error { _, err := crashing.Dial(t.Context(), "10.0.0.2:70"); return err }),
			"Write at the crashing host":   result(func() error { _, err := full.Write(make([]byte, 1<<20)); return err }),
			"2nd Write at the peer":        result(func() error { _, err := outServer.Write(make([]byte, 1<<20)); return err }),
			"Write after the peer's Crash": nil,
			"Read after the peer's Crash":  nil,
		}
		accept := result(func() error { _, err := ln.Accept(); return err })
		synctest.Wait()
		crashing.Crash()
		synctest.Wait()
		pending["Write after the peer's Crash"] = result(func() error { _, err := outServer.Write([]byte("x")); return err })
		pending["Read after the peer's Crash"] = result(func() error { _, err := outServer.Read(make([]byte, 1)); return err })
		for what, errs := range pending {
			wantErr(t, what, <-errs, syscall.ECONNRESET)
		}
		wantErr(t, "Accept at the crashing host", <-accept, net.ErrClosed)
		_, err := peer.Dial(t.Context(), "10.0.0.1:70")
		wantErr(t, "Dial after the Crash", err, syscall.ECONNREFUSED)

		if len(peer.ports) != 0 {
			t.Errorf("the peer keeps %d ports of connections that are reset", len(peer.ports))
		}
		if err := in.Close(); err != nil {
			t.Errorf("Close of a reset connection: %v", err)
		}
		_, err = in.Read(make([]byte, 1))
		wantErr(t, "Read after Close", err, net.ErrClosed)
		if len(crashing.conns)+len(crashing.ports) != 0 {
			t.Errorf("the crashed host keeps %d connections and %d ports", len(crashing.conns), len(crashing.ports))
		}

		if _, err := apart.Write([]byte("x")); err != nil {
			t.Errorf("a connection of other hosts: %v", err)
		}
		if _, err := apartServer.Read(make([]byte, 1)); err != nil {
			t.Errorf("a connection of other hosts: %v", err)
		}
		again := memListen(t, crashing, "10.0.0.1:70")
		memConnect(t, peer, again)
	})
}

// TestMemTime shows that deadlines pass at their moment of a bubble's virtual
// time, that later ones replace them, and that an hour takes no time.
func TestMemTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		hosts := memHosts(t, "10.0.0.1", "10.0.0.2")
		c, peer := memConnect(t, hosts[1], memListen(t, hosts[0], "10.0.0.1:70"))
		start := time.Now()
		took := func(what string, err error, want time.Duration) {
			t.Helper()
			wantErr(t, what, err, os.ErrDeadlineExceeded)
			if got := time.Since(start); got != want {
				t.Errorf("%s after %v, want %v", what, got, want)
			}
		}
		read := func() error { _, err := c.Read(make([]byte, 1)); return err }
		write := func() error { _, err := c.Write(make([]byte, 1<<20)); return err }

		c.SetReadDeadline(start.Add(time.Hour))
		took("Read", read(), time.Hour)
		took("Read again", read(), time.Hour)

		// A deadline replaced while Read waits, by an earlier and a later one.
		c.SetReadDeadline(start.Add(5 * time.Hour))
		errs := result(read)
		synctest.Wait()
		c.SetReadDeadline(start.Add(2 * time.Hour))
		took("Read with an earlier deadline", <-errs, 2*time.Hour)
		c.SetReadDeadline(start.Add(3 * time.Hour))
		errs = result(read)
		synctest.Wait()
		c.SetReadDeadline(start.Add(4 * time.Hour))
		took("Read with a later deadline", <-errs, 4*time.Hour)

		// Two writes wait, one for room and one for the other.
		c.SetWriteDeadline(start.Add(5 * time.Hour))
		first, second := result(write), result(write)
		took("a Write", <-first, 5*time.Hour)
		took("another Write", <-second, 5*time.Hour)

		// A deadline that is cleared while Read waits.
		c.SetReadDeadline(start.Add(6 * time.Hour))
		errs = result(read)
		synctest.Wait()
		c.SetReadDeadline(time.Time{})
		time.Sleep(10 * time.Hour)
		if len(errs) != 0 {
			t.Fatalf("Read without a deadline: %v", <-errs)
		}
		peer.Close()
		if err := <-errs; err != io.EOF {
			t.Errorf("Read after the peer's Close: %v, want io.EOF", err)
		}
	})
}

func TestMemCloseWakes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		hosts := memHosts(t, "10.0.0.1", "10.0.0.2")
		ln := memListen(t, hosts[0], "10.0.0.1:70")
		for _, end := range []struct {
			close               func(c, peer net.Conn) error
			wantRead, wantWrite error
		}{
			{func(c, _ net.Conn) error { return c.Close() }, net.ErrClosed, net.ErrClosed},
			{func(_, peer net.Conn) error { return peer.Close() }, io.EOF, syscall.EPIPE},
		} {
			c, peer := memConnect(t, hosts[1], ln)
			read := result(func() error { _, err := c.Read(make([]byte, 1)); return err })
			first := result(func() error { _, err := c.Write(make([]byte, 1<<20)); return err })
			second := result(func() error { _, err := c.Write(make([]byte, 1<<20)); return err })
			synctest.Wait()
			if len(read)+len(first)+len(second) != 0 {
				t.Fatal("nothing waits")
			}
			if err := end.close(c, peer); err != nil {
				t.Fatal(err)
			}
			if err := <-read; !errors.Is(err, end.wantRead) {
				t.Errorf("Read: %v, want %v", err, end.wantRead)
			}
			wantErr(t, "Write", <-first, end.wantWrite)
			wantErr(t, "Write that waits for another", <-second, end.wantWrite)
		}
	})
}

// TestMemWholeWrites shows that a Write that waits for room lets no other in.
func TestMemWholeWrites(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const size = 1 << 20
		hosts := memHosts(t, "10.0.0.1", "10.0.0.2")
		c, peer := memConnect(t, hosts[1], memListen(t, hosts[0], "10.0.0.1:70"))
		for _, letter := range []string{"a", "b", "c"} {
			go c.Write(bytes.Repeat([]byte(letter), size))
			synctest.Wait() // all it can do is done
		}
		var got []byte
		for buf := make([]byte, 5000); len(got) < 3*size; {
			n, err := peer.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, buf[:n]...)
			synctest.Wait()
		}
		for len(got) > 0 {
			if n := bytes.Count(got[:size], got[:1]); n != size {
				t.Fatalf("other bytes stand among the %d of one Write: %d are its own", size, n)
			}
			got = got[size:]
		}
	})
}

// TestMemBuffer shows how much one direction holds: nothing while idle, little
// for a message, and never more than its bound.
func TestMemBuffer(t *testing.T) {
	t.Parallel()
	hosts := memHosts(t, "10.0.0.1", "10.0.0.2")
	client, server := memConnect(t, hosts[1], memListen(t, hosts[0], "10.0.0.1:70"))
	out := client.(*memConn).out
	if len(out.ring) != 0 {
		t.Errorf("an idle connection holds %d bytes", len(out.ring))
	}
	if _, err := client.Write(make([]byte, 300)); err != nil {
		t.Fatal(err)
	}
	if len(out.ring) != memMinBuffer {
		t.Errorf("after 300 bytes it holds %d", len(out.ring))
	}
	if _, err := client.Write(make([]byte, memMaxBuffer-300)); err != nil {
		t.Fatal(err)
	}
	client.SetWriteDeadline(time.Now().Add(time.Millisecond))
	n, err := client.Write([]byte("one more"))
	if n != 0 {
		t.Errorf("a full connection took %d bytes", n)
	}
	wantErr(t, "Write to a full connection", err, os.ErrDeadlineExceeded)
	if len(out.ring) != memMaxBuffer {
		t.Errorf("a full connection holds %d bytes", len(out.ring))
	}
	server.Close()
	if len(out.ring) != 0 {
		t.Errorf("a connection that nobody reads holds %d bytes", len(out.ring))
	}
}

// TestMemRing holds the ring to a plain buffer.
func TestMemRing(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var s memStream
		var model bytes.Buffer
		next := byte(0)
		size := rapid.OneOf(rapid.IntRange(0, 40), rapid.IntRange(0, 3000), rapid.IntRange(0, 2*memMaxBuffer))
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				p := make([]byte, size.Draw(t, "size"))
				for i := range p {
					next = next*5 + 1
					p[i] = next
				}
				n := s.put(p)
				if want := min(len(p), memMaxBuffer-model.Len()); n != want {
					t.Fatalf("put %d bytes of %d, want %d", n, len(p), want)
				}
				model.Write(p[:n])
			},
			"take": func(t *rapid.T) {
				got := make([]byte, size.Draw(t, "size"))
				want := make([]byte, len(got))
				n := s.take(got)
				m, _ := model.Read(want)
				if n != m || !bytes.Equal(got, want) {
					t.Fatalf("took %d bytes, want %d, or others", n, m)
				}
			},
			"": func(t *rapid.T) {
				if s.size != model.Len() || len(s.ring) > memMaxBuffer {
					t.Fatalf("holds %d bytes of %d in a ring of %d", s.size, model.Len(), len(s.ring))
				}
			},
		})
	})
}
