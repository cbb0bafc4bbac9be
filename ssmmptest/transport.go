package ssmmptest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ssmmp/ssmmp"
	"golang.org/x/net/nettest"
)

const (
	// largeTransfer is sent in each direction at once: many times what any
	// transport buffers.
	largeTransfer = 4 << 20
	// stuckWrite is more than any transport buffers on the way to a peer that
	// does not read.
	stuckWrite = 64 << 20
	// manyConns are open at once, more than a listener's backlog holds.
	manyConns = 200
	// soon is when the deadlines that the suite waits for pass.
	soon = 20 * time.Millisecond
)

// stuckBytes are shared by all tests, because they are many.
var stuckBytes = sync.OnceValue(func() []byte { return make([]byte, stuckWrite) })

// TestTransport is the conformance suite: what the rest of ssmmp expects of
// every ssmmp.Transport. newPair returns the transports of two hosts, which
// may be one, and the address that the first listens on and the second can
// dial, with port 0. It is called once for each subtest, in parallel.
func TestTransport(t *testing.T, newPair func(t *testing.T) (server, client ssmmp.Transport, listenAddr string)) {
	tests := []struct {
		name string
		run  func(t *testing.T, p *pair)
	}{
		{"Echo", testEcho},
		{"LargeTransfer", testLargeTransfer},
		{"ManyConns", testManyConns},
		{"WholeWrites", testWholeWrites},
		{"PastDeadline", testPastDeadline},
		{"FutureDeadline", testFutureDeadline},
		{"ClearedDeadline", testClearedDeadline},
		{"HalfClose", testHalfClose},
		{"PeerClose", testPeerClose},
		{"CloseWakesRead", testCloseWakesRead},
		{"CloseWakesWrite", testCloseWakesWrite},
		{"UseAfterClose", testUseAfterClose},
		{"ListenerClose", testListenerClose},
		{"Refused", testRefused},
		{"DialContext", testDialContext},
		{"DialContextEndsLater", testDialContextEndsLater},
		{"ListenContext", testListenContext},
		{"PortZero", testPortZero},
		{"AddressInUse", testAddressInUse},
		{"Addresses", testAddresses},
		{"BadAddress", testBadAddress},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.run(t, newTestPair(t, newPair))
		})
	}
	t.Run("Conn", func(t *testing.T) {
		t.Parallel()
		nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
			p := newTestPair(t, newPair)
			c1, c2 = p.connect(t)
			return c1, c2, func() {
				c1.Close()
				c2.Close()
				p.ln.Close()
			}, nil
		})
	})
}

// pair is two transports and a listener of the first.
type pair struct {
	server, client ssmmp.Transport
	addr           string // to listen on, with port 0
	ln             net.Listener
}

func newTestPair(t *testing.T, newPair func(t *testing.T) (server, client ssmmp.Transport, listenAddr string)) *pair {
	t.Helper()
	p := new(pair)
	p.server, p.client, p.addr = newPair(t)
	p.ln = p.listen(t)
	return p
}

func (p *pair) listen(t *testing.T) net.Listener {
	t.Helper()
	ln, err := p.server.Listen(t.Context(), p.addr)
	if err != nil {
		t.Fatalf("Listen(%q): %v", p.addr, err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

// connect returns the two ends of a new connection.
func (p *pair) connect(t *testing.T) (client, server net.Conn) {
	t.Helper()
	client, err := p.client.Dial(t.Context(), p.ln.Addr().String())
	if err != nil {
		t.Fatalf("Dial(%q): %v", p.ln.Addr(), err)
	}
	t.Cleanup(func() { client.Close() })
	server, err = p.ln.Accept()
	if err != nil {
		t.Fatalf("Accept: %v", err)
	}
	t.Cleanup(func() { server.Close() })
	return client, server
}

func testEcho(t *testing.T, p *pair) {
	client, server := p.connect(t)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer client.Close()
	wg.Go(func() { io.Copy(server, server) })
	for _, text := range []string{"x", "type: session_ack ~ status: 200\n", strings.Repeat("0123456789", 500)} {
		if _, err := io.WriteString(client, text); err != nil {
			t.Fatalf("Write: %v", err)
		}
		got := make([]byte, len(text))
		if _, err := io.ReadFull(client, got); err != nil {
			t.Fatalf("Read: %v", err)
		}
		if string(got) != text {
			t.Fatalf("%d bytes came back changed", len(text))
		}
	}
}

func testLargeTransfer(t *testing.T, p *pair) {
	client, server := p.connect(t)
	data := make([]byte, largeTransfer)
	for i := 0; i < len(data); i += 8 {
		binary.LittleEndian.PutUint64(data[i:], uint64(i)*0x9e3779b97f4a7c15)
	}
	want := sha256.Sum256(data)
	var wg sync.WaitGroup
	for _, c := range []net.Conn{client, server} {
		wg.Go(func() {
			// A length that divides nothing, so that every boundary is met.
			for rest := data; len(rest) > 0; {
				n := min(len(rest), 9973)
				if _, err := c.Write(rest[:n]); err != nil {
					t.Errorf("Write: %v", err)
					return
				}
				rest = rest[n:]
			}
			closeWrite(t, c)
		})
		wg.Go(func() {
			sum := sha256.New()
			n, err := io.CopyBuffer(struct{ io.Writer }{sum}, struct{ io.Reader }{c}, make([]byte, 7001))
			if err != nil || n != largeTransfer {
				t.Errorf("read %d bytes of %d, error %v", n, largeTransfer, err)
			} else if [sha256.Size]byte(sum.Sum(nil)) != want {
				t.Error("the bytes arrived changed")
			}
		})
	}
	wg.Wait()
}

func testManyConns(t *testing.T, p *pair) {
	var echoes sync.WaitGroup
	echoes.Go(func() {
		for {
			c, err := p.ln.Accept()
			if err != nil {
				return
			}
			echoes.Go(func() {
				defer c.Close()
				io.Copy(c, c)
			})
		}
	})

	var clients sync.WaitGroup
	conns := make([]net.Conn, manyConns)
	for i := range conns {
		clients.Go(func() {
			c, err := p.client.Dial(t.Context(), p.ln.Addr().String())
			if err != nil {
				t.Errorf("Dial: %v", err)
				return
			}
			conns[i] = c
			text := "connection " + strconv.Itoa(i)
			got := make([]byte, len(text))
			if _, err := io.WriteString(c, text); err != nil {
				t.Errorf("Write: %v", err)
			} else if _, err := io.ReadFull(c, got); err != nil {
				t.Errorf("Read: %v", err)
			} else if string(got) != text {
				t.Errorf("got %q, want %q", got, text)
			}
		})
	}
	clients.Wait()
	ports := make(map[string]bool)
	for _, c := range conns {
		if c == nil {
			continue
		}
		if at := c.LocalAddr().String(); ports[at] {
			t.Errorf("two open connections from %s", at)
		} else {
			ports[at] = true
		}
	}
	for _, c := range conns {
		if c != nil {
			c.Close()
		}
	}
	p.ln.Close()
	echoes.Wait()
}

// testWholeWrites shows that writes of several goroutines do not interleave,
// even when each is larger than what the transport buffers in memory.
func testWholeWrites(t *testing.T, p *pair) {
	const writers, size = 4, 200 << 10
	client, server := p.connect(t)
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			if n, err := client.Write(bytes.Repeat([]byte{byte('a' + i)}, size)); n != size || err != nil {
				t.Errorf("Write = %d, %v", n, err)
			}
		})
	}
	block := make([]byte, size)
	for range writers {
		if _, err := io.ReadFull(server, block); err != nil {
			t.Errorf("Read: %v", err)
			break
		}
		if bytes.Count(block, block[:1]) != size {
			t.Error("two writes are interleaved")
			break
		}
	}
	server.Close()
	wg.Wait()
}

func testPastDeadline(t *testing.T, p *pair) {
	client, server := p.connect(t)
	if _, err := server.Write([]byte("there")); err != nil {
		t.Fatal(err)
	}
	past := time.Unix(1, 0)
	set(t, client.SetReadDeadline, past)
	n, err := client.Read(make([]byte, 8))
	wantTimeout(t, "Read with a deadline that has passed", n, err)
	if _, err := client.Write([]byte("x")); err != nil {
		t.Errorf("a read deadline stops Write: %v", err)
	}

	set(t, client.SetReadDeadline, time.Time{})
	set(t, client.SetWriteDeadline, past)
	n, err = client.Write([]byte("y"))
	wantTimeout(t, "Write with a deadline that has passed", n, err)
	got := make([]byte, 5)
	if _, err := io.ReadFull(client, got); err != nil || string(got) != "there" {
		t.Errorf("a write deadline stops Read: %q, %v", got, err)
	}
}

func testFutureDeadline(t *testing.T, p *pair) {
	client, _ := p.connect(t)
	set(t, client.SetDeadline, time.Now().Add(soon))
	n, err := client.Read(make([]byte, 8))
	wantTimeout(t, "Read", n, err)
	set(t, client.SetDeadline, time.Now().Add(soon))
	n, err = client.Write(stuckBytes())
	if n == stuckWrite {
		t.Error("a Write that its peer does not read wrote everything")
	}
	wantTimeout(t, "Write", 0, err)
}

func testClearedDeadline(t *testing.T, p *pair) {
	client, server := p.connect(t)
	set(t, client.SetDeadline, time.Now().Add(soon))
	read := make(chan error, 1)
	got := make([]byte, 4)
	go func() {
		_, err := io.ReadFull(client, got)
		read <- err
	}()
	set(t, client.SetDeadline, time.Time{})
	// Let the old deadline pass: a read of the other end measures the time.
	set(t, server.SetReadDeadline, time.Now().Add(2*soon))
	n, err := server.Read(make([]byte, 8))
	wantTimeout(t, "Read", n, err)
	if _, err := server.Write([]byte("late")); err != nil {
		t.Fatal(err)
	}
	if err := <-read; err != nil || string(got) != "late" {
		t.Errorf("Read after its deadline was cleared: %q, %v", got, err)
	}
}

func testHalfClose(t *testing.T, p *pair) {
	client, server := p.connect(t)
	if _, err := io.WriteString(client, "question"); err != nil {
		t.Fatal(err)
	}
	closeWrite(t, client)
	if got, err := io.ReadAll(server); err != nil || string(got) != "question" {
		t.Fatalf("the other end read %q, %v", got, err)
	}
	if n, err := client.Write([]byte("more")); n != 0 || err == nil {
		t.Errorf("Write after CloseWrite = %d, %v", n, err)
	}
	if _, err := io.WriteString(server, "answer"); err != nil {
		t.Fatalf("Write to the end that closed its own writing: %v", err)
	}
	server.Close()
	if got, err := io.ReadAll(client); err != nil || string(got) != "answer" {
		t.Fatalf("after CloseWrite read %q, %v", got, err)
	}
}

func testPeerClose(t *testing.T, p *pair) {
	client, server := p.connect(t)
	if _, err := io.WriteString(client, "last words"); err != nil {
		t.Fatal(err)
	}
	client.Close()
	if got, err := io.ReadAll(server); err != nil || string(got) != "last words" {
		t.Fatalf("read %q, %v", got, err)
	}
	if n, err := server.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Fatalf("Read at the end = %d, %v, want exactly io.EOF", n, err)
	}
	// TCP takes the first write and learns from its answer.
	var err error
	set(t, server.SetWriteDeadline, time.Now().Add(10*time.Second))
	for err == nil {
		_, err = server.Write(make([]byte, 1024))
	}
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed) {
		t.Errorf("Write to a closed peer: %v", err)
	}
	wantErrno(t, "Write to a closed peer", err, syscall.EPIPE, syscall.ECONNRESET)
}

func testCloseWakesRead(t *testing.T, p *pair) {
	client, server := p.connect(t)
	errs := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, struct{ io.Reader }{client})
		errs <- err
	}()
	if _, err := io.WriteString(server, "x"); err != nil {
		t.Fatal(err)
	}
	if err := client.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if err := <-errs; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Read during Close: %v, want net.ErrClosed", err)
	}
}

func testCloseWakesWrite(t *testing.T, p *pair) {
	client, server := p.connect(t)
	errs := make(chan error, 1)
	go func() {
		_, err := client.Write(stuckBytes())
		errs <- err
	}()
	if _, err := io.ReadFull(server, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if err := client.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if err := <-errs; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Write during Close: %v, want net.ErrClosed", err)
	}
}

func testUseAfterClose(t *testing.T, p *pair) {
	client, _ := p.connect(t)
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	_, readErr := client.Read(make([]byte, 1))
	_, writeErr := client.Write([]byte("x"))
	for op, err := range map[string]error{
		"Read":             readErr,
		"Write":            writeErr,
		"Close":            client.Close(),
		"CloseWrite":       client.(interface{ CloseWrite() error }).CloseWrite(),
		"SetDeadline":      client.SetDeadline(time.Time{}),
		"SetReadDeadline":  client.SetReadDeadline(time.Time{}),
		"SetWriteDeadline": client.SetWriteDeadline(time.Time{}),
	} {
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s after Close: %v, want net.ErrClosed", op, err)
		}
		if ne := net.Error(nil); !errors.As(err, &ne) || ne.Timeout() {
			t.Errorf("%s after Close: %#v, want a net.Error that is no timeout", op, err)
		}
	}
}

func testListenerClose(t *testing.T, p *pair) {
	client, server := p.connect(t)
	errs := make(chan error, 1)
	go func() {
		_, err := p.ln.Accept()
		errs <- err
	}()
	if err := p.ln.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if err := <-errs; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept during Close: %v, want net.ErrClosed", err)
	}
	if _, err := p.ln.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close: %v, want net.ErrClosed", err)
	}
	if err := p.ln.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("second Close: %v, want net.ErrClosed", err)
	}
	// What was accepted lives on.
	if _, err := io.WriteString(client, "x"); err != nil {
		t.Errorf("Write: %v", err)
	}
	if _, err := io.ReadFull(server, make([]byte, 1)); err != nil {
		t.Errorf("Read: %v", err)
	}
}

func testRefused(t *testing.T, p *pair) {
	// An outgoing connection holds its port, so no listener can be there.
	client, _ := p.connect(t)
	c, err := p.server.Dial(t.Context(), client.LocalAddr().String())
	if err == nil {
		c.Close()
		t.Fatal("Dial to a port where nobody listens succeeded")
	}
	var oe *net.OpError
	if !errors.As(err, &oe) || oe.Op != "dial" || oe.Timeout() {
		t.Errorf("Dial: %#v, want a *net.OpError of a dial that is no timeout", err)
	}
	wantErrno(t, "Dial where nobody listens", err, syscall.ECONNREFUSED)
}

func testDialContext(t *testing.T, p *pair) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.client.Dial(ctx, p.ln.Addr().String()); !errors.Is(err, context.Canceled) {
		t.Errorf("Dial with a canceled context: %v", err)
	}
	ctx, cancel = context.WithDeadline(t.Context(), time.Unix(1, 0))
	defer cancel()
	_, err := p.client.Dial(ctx, p.ln.Addr().String())
	if ne := net.Error(nil); !errors.As(err, &ne) || !ne.Timeout() {
		t.Errorf("Dial after the context's deadline: %v, want a timeout", err)
	}
}

func testDialContextEndsLater(t *testing.T, p *pair) {
	ctx, cancel := context.WithCancel(t.Context())
	client, err := p.client.Dial(ctx, p.ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := p.ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	cancel()
	if _, err := io.WriteString(client, "x"); err != nil {
		t.Errorf("the end of the dial's context ends the connection: %v", err)
	}
	if _, err := io.ReadFull(server, make([]byte, 1)); err != nil {
		t.Errorf("the end of the dial's context ends the connection: %v", err)
	}
}

func testListenContext(t *testing.T, p *pair) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.server.Listen(ctx, p.addr); !errors.Is(err, context.Canceled) {
		t.Errorf("Listen with a canceled context: %v", err)
	}
}

func testPortZero(t *testing.T, p *pair) {
	second := p.listen(t)
	a, b := port(t, p.ln.Addr()), port(t, second.Addr())
	if a == 0 || b == 0 || a == b {
		t.Errorf("two listeners on port 0 have the ports %d and %d", a, b)
	}
}

func testAddressInUse(t *testing.T, p *pair) {
	ln, err := p.server.Listen(t.Context(), p.ln.Addr().String())
	if err == nil {
		ln.Close()
		t.Fatal("Listen on a port that is taken succeeded")
	}
	wantErrno(t, "Listen on a port that is taken", err, syscall.EADDRINUSE)
}

func testAddresses(t *testing.T, p *pair) {
	client, server := p.connect(t)
	for _, end := range []struct {
		what      string
		got, want net.Addr
	}{
		{"the server end's remote address is the client end's local", server.RemoteAddr(), client.LocalAddr()},
		{"the client end's remote address is the server end's local", client.RemoteAddr(), server.LocalAddr()},
		{"the server end's local address is the listener's", server.LocalAddr(), p.ln.Addr()},
	} {
		if end.got.String() != end.want.String() {
			t.Errorf("%s: %v, want %v", end.what, end.got, end.want)
		}
		if port(t, end.got) == 0 {
			t.Errorf("%s: %v has no port", end.what, end.got)
		}
	}
}

func testBadAddress(t *testing.T, p *pair) {
	for _, addr := range []string{"", "127.0.0.1", "127.0.0.1:65536", "127.0.0.1:-1", "127.0.0.1:x y", "::1:80", "[::1:80"} {
		if ln, err := p.server.Listen(t.Context(), addr); err == nil {
			ln.Close()
			t.Errorf("Listen(%q) succeeded", addr)
		}
		if c, err := p.client.Dial(t.Context(), addr); err == nil {
			c.Close()
			t.Errorf("Dial(%q) succeeded", addr)
		}
	}
}

func closeWrite(t *testing.T, c net.Conn) {
	t.Helper()
	hc, ok := c.(interface{ CloseWrite() error })
	if !ok {
		t.Errorf("%T has no CloseWrite", c)
		return
	}
	if err := hc.CloseWrite(); err != nil {
		t.Errorf("CloseWrite: %v", err)
	}
}

func set(t *testing.T, f func(time.Time) error, at time.Time) {
	t.Helper()
	if err := f(at); err != nil {
		t.Fatalf("setting a deadline: %v", err)
	}
}

func wantTimeout(t *testing.T, what string, n int, err error) {
	t.Helper()
	ne := net.Error(nil)
	if n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &ne) || !ne.Timeout() {
		t.Errorf("%s = %d, %v, want 0 and a timeout", what, n, err)
	}
}

// wantErrno checks that err is one of wants. Windows has numbers of its own
// for the errors of sockets, so there any error will do.
func wantErrno(t *testing.T, what string, err error, wants ...syscall.Errno) {
	t.Helper()
	for _, want := range wants {
		if errors.Is(err, want) {
			return
		}
	}
	if err == nil || runtime.GOOS != "windows" {
		t.Errorf("%s: %v, want one of %v", what, err, wants)
	}
}

func port(t *testing.T, a net.Addr) int {
	t.Helper()
	ta, ok := a.(*net.TCPAddr)
	if !ok {
		t.Fatalf("the address %v is a %T, want a *net.TCPAddr", a, a)
	}
	return ta.Port
}
