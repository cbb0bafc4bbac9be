package ssmmp

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// Section 1 of PROTOCOL: a bind can fail because an outgoing connection holds
// the port: retry, then say so.

func TestListenRetry(t *testing.T) {
	t.Parallel()
	inUse := &net.OpError{Op: "listen", Net: "tcp", Err: syscall.EADDRINUSE}
	denied := &net.OpError{Op: "listen", Net: "tcp", Err: syscall.EACCES}
	for _, tt := range []struct {
		name     string
		fails    int // attempts that find the port taken
		then     error
		timeout  time.Duration // of the context
		want     []error
		attempts int
		took     time.Duration
	}{
		{"free", 0, nil, time.Hour, nil, 1, 0},
		{"freed at once", 1, nil, time.Hour, nil, 2, 50 * time.Millisecond},
		{"freed late", 5, nil, time.Hour, nil, 6, 1550 * time.Millisecond},
		{"never freed", 99, nil, time.Hour, []error{syscall.EADDRINUSE}, 6, 1550 * time.Millisecond},
		{"context ends", 99, nil, 100 * time.Millisecond, []error{syscall.EADDRINUSE, context.DeadlineExceeded}, 2, 100 * time.Millisecond},
		{"context has ended", 99, nil, 0, []error{context.DeadlineExceeded}, 0, 0},
		{"another error", 1, denied, time.Hour, []error{syscall.EACCES}, 2, 50 * time.Millisecond},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), tt.timeout)
				defer cancel()
				start, attempts := time.Now(), 0
				ln, err := retryListen(ctx, func() (net.Listener, error) {
					if attempts++; attempts <= tt.fails {
						return nil, inUse
					}
					if tt.then != nil {
						return nil, tt.then
					}
					return new(net.TCPListener), nil
				})
				if (ln != nil) != (tt.want == nil) || (err != nil) != (tt.want != nil) {
					t.Errorf("listener %v, error %v", ln, err)
				}
				for _, want := range tt.want {
					if !errors.Is(err, want) {
						t.Errorf("%v is not %v", err, want)
					}
				}
				if tt.fails == 99 && attempts > 0 && !strings.Contains(err.Error(), "an outgoing connection holds the port") {
					t.Errorf("%v does not say who may hold the port", err)
				}
				if took := time.Since(start); attempts != tt.attempts || took != tt.took {
					t.Errorf("%d attempts in %v, want %d in %v", attempts, took, tt.attempts, tt.took)
				}
			})
		})
	}
}

func TestListenWhereOutgoingConnectionWas(t *testing.T) {
	t.Parallel()
	// An address of its own, lest other connections take the port meanwhile.
	host := TCP{LocalAddr: netip.MustParseAddr("127.55.55.55")}
	ln, err := TCP{}.Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	client, err := host.Dial(t.Context(), ln.Addr().String())
	if errors.Is(err, syscall.EADDRNOTAVAIL) {
		t.Skipf("NOT TESTED: this machine has no 127.55.55.55: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	addr := client.LocalAddr().String()
	if held, err := net.Listen("tcp", addr); err == nil {
		held.Close()
		t.Skip("NOT TESTED: this system lets a listener share the port of an outgoing connection")
	}

	listened := result(func() error {
		ln, err := host.Listen(t.Context(), addr)
		if err == nil {
			err = ln.Close()
		}
		return err
	})
	// The server closes first, so that the client's port does not linger.
	server.Close()
	if _, err := client.Read(make([]byte, 1)); err != io.EOF {
		t.Error(err)
	}
	client.Close()
	if err := <-listened; err != nil {
		t.Error(err)
	}
}

func TestTCPLocalAddr(t *testing.T) {
	t.Parallel()
	host := TCP{LocalAddr: netip.MustParseAddr("127.0.0.2")}
	ln, err := host.Listen(t.Context(), ":0")
	if errors.Is(err, syscall.EADDRNOTAVAIL) {
		t.Skipf("NOT TESTED: this machine has no 127.0.0.2: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, port, err := net.SplitHostPort(ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	wantIP(t, "listening without a host part", ln.Addr(), "127.0.0.2")

	local, err := host.Listen(t.Context(), "localhost:0")
	if err != nil {
		t.Fatal(err)
	}
	defer local.Close()
	if local.Addr().(*net.TCPAddr).IP.String() == "127.0.0.2" {
		t.Errorf("localhost became %v", local.Addr())
	}

	for _, tt := range []struct {
		from TCP
		to   string
		want string // local address of the connection
	}{
		{host, ":" + port, "127.0.0.2"},
		{host, local.Addr().String(), "127.0.0.2"},
		{TCP{LocalAddr: netip.MustParseAddr("::ffff:127.0.0.3")}, local.Addr().String(), "127.0.0.3"},
		{TCP{}, local.Addr().String(), "127.0.0.1"},
		// Addresses from which the target cannot be reached do not stop a dial.
		{TCP{LocalAddr: netip.MustParseAddr("::1")}, local.Addr().String(), "127.0.0.1"},
		{TCP{LocalAddr: netip.MustParseAddr("192.0.2.1")}, local.Addr().String(), "127.0.0.1"},
		{TCP{LocalAddr: netip.IPv4Unspecified()}, local.Addr().String(), "127.0.0.1"},
	} {
		c, err := tt.from.Dial(t.Context(), tt.to)
		if err != nil {
			t.Errorf("Dial(%q) from %v: %v", tt.to, tt.from.LocalAddr, err)
			continue
		}
		wantIP(t, "dialling "+tt.to, c.LocalAddr(), tt.want)
		c.Close()
	}
}

func TestTCPLeavesFrom(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		local, target string
		want          bool
	}{
		{"127.0.0.2", "127.0.0.1:1", true},
		{"127.0.0.2", "localhost:1", true},
		{"127.0.0.2", "10.0.0.1:1", false},
		{"127.0.0.2", "[::1]:1", false},
		{"10.0.0.2", "10.0.0.1:1", true},
		{"10.0.0.2", "[::ffff:10.0.0.1]:1", true},
		{"10.0.0.2", "127.0.0.1:1", false},
		{"10.0.0.2", "[fd00::1]:1", false},
		{"fd00::2", "[fd00::1]:1", true},
		{"fe80::2%eth0", "[fe80::1%eth0]:1", true},
		{"fd00::2", "10.0.0.1:1", false},
		{"::", "[fd00::1]:1", false},
	} {
		got := TCP{LocalAddr: netip.MustParseAddr(tt.local)}.leavesFrom(t.Context(), tt.target)
		if got != tt.want {
			t.Errorf("a dial from %s to %s is bound: %v, want %v", tt.local, tt.target, got, tt.want)
		}
	}
}

func wantIP(t *testing.T, what string, a net.Addr, want string) {
	t.Helper()
	if got := a.(*net.TCPAddr).IP.String(); got != want {
		t.Errorf("%s: %s, want %s", what, got, want)
	}
}
