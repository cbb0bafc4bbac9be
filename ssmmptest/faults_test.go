package ssmmptest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"runtime/pprof"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ssmmp/ssmmp"
)

// overFaults decorates both hosts of a pair; prepare may give the network a
// fault that a connection survives.
func overFaults(server, client string, tcp bool, prepare func(*Faults)) func(*testing.T) (ssmmp.Transport, ssmmp.Transport, string) {
	return func(t *testing.T) (ssmmp.Transport, ssmmp.Transport, string) {
		f := NewFaults(1)
		t.Cleanup(func() { f.Close() })
		prepare(f)
		a, b := transports(t, server, client, tcp)
		return f.Host(netip.MustParseAddr(server), a), f.Host(netip.MustParseAddr(client), b), net.JoinHostPort(server, "0")
	}
}

// transports returns two hosts in memory, or with loopback addresses of their
// own.
func transports(t *testing.T, server, client string, tcp bool) (a, b ssmmp.Transport) {
	if tcp {
		for _, addr := range []string{server, client} {
			ln, err := net.Listen("tcp4", net.JoinHostPort(addr, "0"))
			if err != nil {
				t.Skipf("NOT TESTED: faults over TCP, because this machine has no %s: %v", addr, err)
			}
			ln.Close()
		}
		return ssmmp.TCP{LocalAddr: netip.MustParseAddr(server)}, ssmmp.TCP{LocalAddr: netip.MustParseAddr(client)}
	}
	network := ssmmp.NewMemNetwork()
	a, err := network.Host(server)
	if err != nil {
		t.Fatal(err)
	}
	b, err = network.Host(client)
	if err != nil {
		t.Fatal(err)
	}
	return a, b
}

func TestFaultsNone(t *testing.T) {
	t.Parallel()
	none := func(*Faults) {}
	t.Run("Mem", func(t *testing.T) {
		t.Parallel()
		TestTransport(t, overFaults("10.0.0.1", "10.0.0.2", false, none))
	})
	t.Run("TCP", func(t *testing.T) {
		t.Parallel()
		TestTransport(t, overFaults("127.0.0.2", "127.0.0.3", true, none))
	})
	t.Run("OneHost", func(t *testing.T) {
		t.Parallel()
		TestTransport(t, func(t *testing.T) (server, client ssmmp.Transport, listenAddr string) {
			server, client, _ = overFaults("10.0.0.1", "10.0.0.1", false, none)(t)
			return server, client, "localhost:0"
		})
	})
}

// A slow network is a network: all of the conformance suite holds, with every
// byte in the queues.
func TestFaultsSlow(t *testing.T) {
	t.Parallel()
	slow := func(f *Faults) { f.Delay(nil, nil, 200*time.Microsecond, 200*time.Microsecond) }
	t.Run("Mem", func(t *testing.T) {
		t.Parallel()
		TestTransport(t, overFaults("10.0.0.1", "10.0.0.2", false, slow))
	})
	t.Run("TCP", func(t *testing.T) {
		t.Parallel()
		TestTransport(t, overFaults("127.0.0.2", "127.0.0.3", true, slow))
	})
}

// A faultLink is two hosts, a that dialled and b that accepted, with a
// connection between them.
type faultLink struct {
	f    *Faults
	a, b net.Conn
	ln   net.Listener
	dial func(context.Context) (net.Conn, error) // another one
}

const linkA, linkB = "10.0.0.1", "10.0.0.2"

var onlyA, onlyB = Hosts{netip.MustParseAddr(linkA)}, Hosts{netip.MustParseAddr(linkB)}

func newFaultLink(t *testing.T, seed uint64, a, b string, tcp bool) *faultLink {
	t.Helper()
	l := &faultLink{f: NewFaults(seed)}
	t.Cleanup(func() { l.f.Close() })
	ta, tb := transports(t, a, b, tcp)
	client, server := l.f.Host(netip.MustParseAddr(a), ta), l.f.Host(netip.MustParseAddr(b), tb)
	var err error
	if l.ln, err = server.Listen(t.Context(), net.JoinHostPort(b, "0")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.ln.Close() })
	l.dial = func(ctx context.Context) (net.Conn, error) { return client.Dial(ctx, l.ln.Addr().String()) }
	if l.a, err = l.dial(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.a.Close() })
	if l.b, err = l.ln.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.b.Close() })
	return l
}

// inBubble runs a test in virtual time.
func inBubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, f)
}

// arrivals returns after how long each of n bytes written at once, one by one, arrived.
func arrivals(t *testing.T, seed uint64, n int, set func(*Faults)) (at []time.Duration, stats FaultStats) {
	t.Helper()
	l := newFaultLink(t, seed, linkA, linkB, false)
	set(l.f)
	begin := time.Now()
	for i := range n {
		if _, err := l.a.Write([]byte{byte(i)}); err != nil {
			t.Fatal(err)
		}
	}
	l.a.Close()
	for i := range n {
		var b [1]byte
		if _, err := io.ReadFull(l.b, b[:]); err != nil || b[0] != byte(i) {
			t.Fatalf("byte %d is %d, %v", i, b[0], err)
		}
		at = append(at, time.Since(begin))
	}
	if _, err := l.b.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after the last byte: %v, want the end", err)
	}
	return at, l.f.Stats()
}

func TestFaultsDelay(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		at, stats := arrivals(t, 1, 3, func(f *Faults) { f.Delay(nil, onlyB, time.Second, 0) })
		if fmt.Sprint(at) != "[1s 1s 1s]" || stats.Delayed != 3 {
			t.Errorf("bytes arrive after %v, %d delayed, want 1 s each", at, stats.Delayed)
		}
		at, _ = arrivals(t, 1, 3, func(f *Faults) { f.Delay(onlyB, nil, time.Second, 0) })
		if fmt.Sprint(at) != "[0s 0s 0s]" {
			t.Errorf("a delay the other way: bytes arrive after %v", at)
		}
		at, _ = arrivals(t, 1, 3, func(f *Faults) { f.Bandwidth(nil, nil, 2) })
		if fmt.Sprint(at) != "[500ms 1s 1.5s]" {
			t.Errorf("with 2 bytes a second they arrive after %v", at)
		}
	})
}

func TestFaultsSeed(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		jitter := func(f *Faults) { f.Delay(nil, nil, time.Second, time.Second); f.Loss(nil, nil, 0.3) }
		one, stats := arrivals(t, 7, 50, jitter)
		again, _ := arrivals(t, 7, 50, jitter)
		other, _ := arrivals(t, 8, 50, jitter)
		if fmt.Sprint(one) != fmt.Sprint(again) {
			t.Errorf("the same seed gives %v and %v", one, again)
		}
		if fmt.Sprint(one) == fmt.Sprint(other) {
			t.Errorf("two seeds give %v", one)
		}
		if one[0] < time.Second || stats.Resent == 0 {
			t.Errorf("first byte after %v, %d sent again", one[0], stats.Resent)
		}
	})
}

// Values that make no sense are taken for the nearest that do.
func TestFaultsSenseless(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		for name, set := range map[string]func(*Faults){
			"negative": func(f *Faults) {
				f.Delay(nil, nil, -1, -1)
				f.Loss(nil, nil, -1)
				f.Bandwidth(nil, nil, -1)
				f.SlowReader(nil, -1)
				f.GiveUpAfter(-1)
			},
			"no number": func(f *Faults) { f.Loss(nil, nil, math.NaN()) },
			"strangers": func(f *Faults) {
				f.Freeze(Hosts{{}})
				f.CutOff(Hosts{netip.IPv6Unspecified()})
				f.Partition(Hosts{{}}, nil)
			},
			"nobody": func(f *Faults) { f.Partition(Hosts{}, nil); f.Freeze(Hosts{}); f.CutOff(Hosts{}) },
		} {
			at, _ := arrivals(t, 1, 1, set)
			if at[0] != 0 {
				t.Errorf("%s: arrived after %v", name, at[0])
			}
		}
		l := newFaultLink(t, 1, linkA, linkB, false)
		l.f.Delay(nil, nil, math.MaxInt64, math.MaxInt64)
		say(t, l.a, "in the end")
		begin := time.Now()
		if _, err := io.ReadFull(l.b, make([]byte, 10)); err != nil || time.Since(begin) > 2*faultMost {
			t.Errorf("arrived after %v, %v", time.Since(begin), err)
		}
	})
}

func TestFaultsDialTakesTime(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		l := newFaultLink(t, 1, linkA, linkB, false)
		l.f.Delay(nil, nil, time.Second, 0)
		begin := time.Now()
		c, err := l.dial(t.Context())
		if err != nil || time.Since(begin) != 2*time.Second {
			t.Errorf("dial took %v, %v; want there and back, 2 s", time.Since(begin), err)
		}
		c.Close()
	})
}

// overLinks runs a test in memory in virtual time, and over TCP.
func overLinks(t *testing.T, f func(t *testing.T, l *faultLink)) {
	t.Parallel()
	t.Run("Mem", func(t *testing.T) {
		inBubble(t, func(t *testing.T) { f(t, newFaultLink(t, 1, linkA, linkB, false)) })
	})
	t.Run("TCP", func(t *testing.T) {
		t.Parallel()
		l := newFaultLink(t, 1, "127.0.0.2", "127.0.0.3", true)
		l.f.GiveUpAfter(0) // a busy machine may take that long
		f(t, l)
	})
}

func (l *faultLink) hosts() (a, b Hosts) {
	host := func(c net.Conn) Hosts { return Hosts{addrPortOf(c.LocalAddr()).Addr()} }
	return host(l.a), host(l.b)
}

func say(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Errorf("write %q: %v", text, err)
	}
}

func hear(t *testing.T, c net.Conn, text string) {
	t.Helper()
	got := make([]byte, len(text))
	set(t, c.SetReadDeadline, time.Now().Add(30*time.Second))
	if n, err := io.ReadFull(c, got); err != nil || string(got) != text {
		t.Errorf("read %q, %v, want %q", got[:n], err, text)
	}
}

// hearNothing checks that a read is held for a moment.
func hearNothing(t *testing.T, c net.Conn) {
	t.Helper()
	set(t, c.SetReadDeadline, time.Now().Add(soon))
	n, err := c.Read(make([]byte, 8))
	wantTimeout(t, "Read", n, err)
	set(t, c.SetReadDeadline, time.Time{})
}

func TestFaultsPartition(t *testing.T) {
	overLinks(t, func(t *testing.T, l *faultLink) {
		a, b := l.hosts()
		say(t, l.a, "before, ")
		l.f.Block(a, b)
		say(t, l.a, "while, ") // into the buffer of the sender
		hearNothing(t, l.b)    // not even what had arrived
		say(t, l.b, "the other way")
		hear(t, l.a, "the other way")
		for name, block := range map[string]func(){"one way": func() {}, "the other way": func() { l.f.Unblock(a, b); l.f.Block(b, a) }} {
			block()
			ctx, cancel := context.WithTimeout(t.Context(), soon)
			if _, err := l.dial(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("dial with %s blocked: %v, want to hang", name, err)
			}
			cancel()
		}
		l.f.Partition(a, nil)
		say(t, l.a, "after")
		l.a.Close()
		hearNothing(t, l.b)
		l.f.Heal()
		hear(t, l.b, "before, while, after")
		if _, err := l.b.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("at the end: %v", err)
		}
		if s := l.f.Stats(); s.Held < 4 || s.InFlight != 0 {
			t.Errorf("stats %+v: want held calls, and nothing in flight", s)
		}
		c, err := l.dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	})
}

func TestFaultsFreeze(t *testing.T) {
	overLinks(t, func(t *testing.T, l *faultLink) {
		_, b := l.hosts()
		say(t, l.a, "arrived")
		c, err := l.dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		l.f.Freeze(b)
		accepted := make(chan error, 1)
		go func() {
			c, err := l.ln.Accept()
			if err == nil {
				c.Close()
			}
			accepted <- err
		}()
		hearNothing(t, l.b)
		set(t, l.b.SetWriteDeadline, time.Now().Add(soon))
		n, err := l.b.Write([]byte("x"))
		wantTimeout(t, "Write of a frozen host", n, err)
		set(t, l.b.SetWriteDeadline, time.Time{})
		select {
		case err := <-accepted:
			t.Errorf("Accept of a frozen host returned: %v", err)
		default:
		}
		l.f.Thaw(b)
		if err := <-accepted; err != nil {
			t.Error(err)
		}
		hear(t, l.b, "arrived")
	})
}

func TestFaultsCutOff(t *testing.T) {
	overLinks(t, func(t *testing.T, l *faultLink) {
		_, b := l.hosts()
		l.f.CutOff(b)
		say(t, l.a, "into the void")
		l.b.Close()
		hearNothing(t, l.a) // no word of the end
		l.f.Restore(b)
		hearNothing(t, l.a)
		_, err := l.a.Write([]byte("x"))
		wantErrno(t, "Write into a half-open connection", err, syscall.ECONNRESET)
		_, err = l.a.Read(make([]byte, 1))
		wantErrno(t, "Read after that", err, syscall.ECONNRESET)
		if s := l.f.Stats(); s.Lost != 13 || s.Resets != 1 {
			t.Errorf("stats %+v: want 13 bytes lost, one reset", s)
		}
		c, err := l.dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	})
}

// Like an ssmmp.TCP that probes, an idle end finds out.
func TestFaultsGiveUp(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		for name, fault := range map[string]func(*Faults){
			"cut off":   func(f *Faults) { f.CutOff(onlyB) },
			"partition": func(f *Faults) { f.Partition(onlyA, onlyB) },
			"one way":   func(f *Faults) { f.Block(onlyA, nil) },
			"frozen":    func(f *Faults) { f.Freeze(onlyB) },
		} {
			l := newFaultLink(t, 1, linkA, linkB, false)
			begin := time.Now()
			fault(l.f)
			_, err := l.a.Read(make([]byte, 1))
			// One way, the other end may have found out first, and say so.
			wantErrno(t, name, err, syscall.ETIMEDOUT, syscall.ECONNRESET)
			if d := time.Since(begin); d != faultGiveUp {
				t.Errorf("%s: found out after %v", name, d)
			}
			l.f.Heal()
			_, err = l.b.Read(make([]byte, 1))
			wantErrno(t, name+": other end", err, syscall.ETIMEDOUT, syscall.ECONNRESET)
			if s := l.f.Stats(); s.TimedOut == 0 {
				t.Errorf("%s: stats %+v", name, s)
			}
		}
		// A partition that heals before does no harm.
		l := newFaultLink(t, 1, linkA, linkB, false)
		l.f.Partition(nil, nil)
		time.Sleep(faultGiveUp - time.Millisecond)
		l.f.Heal()
		time.Sleep(time.Hour)
		say(t, l.a, "still here")
		hear(t, l.b, "still here")
		if s := l.f.Stats(); s.TimedOut != 0 {
			t.Errorf("stats %+v", s)
		}
	})
}

func TestFaultsResetAt(t *testing.T) {
	for _, n := range []int64{0, 1, 5000, 100_000} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			overLinks(t, func(t *testing.T, l *faultLink) {
				a, b := l.hosts()
				l.f.ResetAt(a, b, n)
				say(t, l.b, "the other way") // is not counted
				hear(t, l.a, "the other way")
				wrote := make(chan error, 1)
				go func() {
					_, err := l.a.Write(make([]byte, 200_000))
					wrote <- err
				}()
				got, err := io.Copy(io.Discard, struct{ io.Reader }{l.b})
				if got != n {
					t.Errorf("%d bytes arrived, want %d", got, n)
				}
				wantErrno(t, "Read at the one end", err, syscall.ECONNRESET)
				wantErrno(t, "Write at the other", <-wrote, syscall.ECONNRESET)
				_, err = l.b.Write([]byte("x"))
				wantErrno(t, "Write at the one end", err, syscall.ECONNRESET)
				if s := l.f.Stats(); s.Resets != 2 {
					t.Errorf("%d resets, want both ends", s.Resets)
				}
			})
		})
	}
}

func TestFaultsReset(t *testing.T) {
	overLinks(t, func(t *testing.T, l *faultLink) {
		a, _ := l.hosts()
		l.f.Reset(a, nil)
		for _, c := range []net.Conn{l.a, l.b} {
			_, err := c.Read(make([]byte, 1))
			wantErrno(t, "Read", err, syscall.ECONNRESET)
		}
	})
}

func TestFaultsSlowReader(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		l := newFaultLink(t, 1, linkA, linkB, false)
		l.f.SlowReader(onlyB, 1<<10)
		begin := time.Now()
		go io.Copy(io.Discard, struct{ io.Reader }{l.b})
		if _, err := l.a.Write(make([]byte, 164<<10)); err != nil {
			t.Error(err)
		}
		// All but what the connection buffers.
		if d := time.Since(begin); d < 95*time.Second || d > 105*time.Second {
			t.Errorf("164 KiB to a reader of 1 KiB a second: written after %v", d)
		}
	})
}

// Whatever an end waits for, its Close ends the wait at once.
func TestFaultsCloseIsPrompt(t *testing.T) {
	faults := map[string]func(*Faults){
		"blocked": func(f *Faults) { f.Partition(nil, nil) },
		"frozen":  func(f *Faults) { f.Freeze(nil) },
		"cut off": func(f *Faults) { f.CutOff(nil) },
		"slow": func(f *Faults) {
			f.Delay(nil, nil, time.Hour, 0)
			f.Bandwidth(nil, nil, 1)
			f.SlowReader(nil, 1)
		},
	}
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			overLinks(t, func(t *testing.T, l *faultLink) {
				l.f.GiveUpAfter(0)
				fault(l.f)
				errs := make(chan error, 3)
				go func() {
					_, err := io.Copy(io.Discard, struct{ io.Reader }{l.a})
					errs <- err
				}()
				go func() {
					_, err := l.a.Write(stuckBytes())
					errs <- err
				}()
				go func() {
					_, err := l.ln.Accept()
					errs <- err
				}()
				ctx, cancel := context.WithCancel(t.Context())
				dialled := make(chan error, 1)
				go func() {
					_, err := l.dial(ctx)
					dialled <- err
				}()
				set(t, l.b.SetReadDeadline, time.Now().Add(soon)) // let them all wait
				l.b.Read(make([]byte, 1))
				begin := time.Now()
				l.a.Close()
				l.ln.Close()
				cancel()
				for range cap(errs) {
					if err := <-errs; !errors.Is(err, net.ErrClosed) {
						t.Errorf("a call during Close: %v", err)
					}
				}
				if err := <-dialled; !errors.Is(err, context.Canceled) {
					t.Errorf("a dial during its context's end: %v", err)
				}
				if d := time.Since(begin); strings.HasSuffix(t.Name(), "/Mem") && d != 0 {
					t.Errorf("took %v", d)
				}
			})
		})
	}
}

// What was closed and never arrives does not linger for ever; in a bubble a
// goroutine that did would fail the test.
func TestFaultsLinger(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		l := newFaultLink(t, 1, linkA, linkB, false)
		l.f.GiveUpAfter(0)
		l.f.Block(nil, nil)
		say(t, l.a, "held")
		l.a.Close()
		time.Sleep(faultLinger + time.Second)
		l.f.Heal()
		_, err := l.b.Read(make([]byte, 8))
		wantErrno(t, "Read of what was given up", err, syscall.ECONNRESET)
		if s := l.f.Stats(); s.Lost != 4 || s.InFlight != 0 {
			t.Errorf("stats %+v", s)
		}
	})
}

// Faults that come and go at random corrupt nothing: what arrives is what was
// sent, up to where a connection broke.
func TestFaultsStorm(t *testing.T) {
	overLinks(t, func(t *testing.T, l *faultLink) {
		a, b := l.hosts()
		data := make([]byte, 1<<20)
		for i := range data {
			data[i] = byte(i * i >> 3)
		}
		var wg sync.WaitGroup
		for _, way := range [][2]net.Conn{{l.a, l.b}, {l.b, l.a}} {
			wg.Go(func() {
				way[0].Write(data)
				way[0].(interface{ CloseWrite() error }).CloseWrite()
			})
			wg.Go(func() {
				got, err := io.ReadAll(way[1])
				if err != nil || !bytes.Equal(got, data) {
					t.Errorf("%d bytes arrived, %v; want the %d that were sent", len(got), err, len(data))
				}
			})
		}
		stop, stopped := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(stopped)
			steps := []func(){
				func() { l.f.Block(a, b) }, func() { l.f.Delay(b, a, time.Millisecond, time.Millisecond) },
				func() { l.f.Freeze(a) }, func() { l.f.Bandwidth(a, b, 4<<20) }, func() { l.f.Thaw(a) },
				func() { l.f.Partition(a, b) }, func() { l.f.SlowReader(b, 8<<20) }, l.f.Heal,
			}
			tick := time.NewTicker(time.Millisecond)
			defer tick.Stop()
			for i := 0; ; i++ {
				select {
				case <-stop:
					l.f.Heal()
					return
				case <-tick.C:
					if i == 400 {
						l.f.Heal()
						return
					}
					steps[i%len(steps)]()
				}
			}
		}()
		wg.Wait()
		close(stop)
		<-stopped
	})
}

// Over real connections nothing is left either.
func TestFaultsLeaveNothing(t *testing.T) {
	t.Parallel()
	wantNoLeak(t, func() {
		t.Run("TCP", func(t *testing.T) {
			l := newFaultLink(t, 1, "127.0.0.2", "127.0.0.3", true)
			l.f.Delay(nil, nil, time.Hour, 0)
			say(t, l.a, "on its way")
			l.f.Block(nil, nil)
			say(t, l.b, "held")
			l.b.Close()
			go io.Copy(io.Discard, struct{ io.Reader }{l.a})
		})
	})
}

// wantNoLeak checks that the goroutines that f starts end soon after it.
func wantNoLeak(t *testing.T, f func()) {
	t.Helper()
	name := fmt.Sprintf("%q:%q", "leak-test", t.Name())
	pprof.Do(t.Context(), pprof.Labels("leak-test", t.Name()), func(context.Context) { f() })
	deadline := time.Now().Add(30 * time.Second)
	for {
		var all bytes.Buffer
		pprof.Lookup("goroutine").WriteTo(&all, 1)
		if !strings.Contains(all.String(), name) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("goroutines are left:\n%s", all.String())
		}
		<-time.After(10 * time.Millisecond)
	}
}
