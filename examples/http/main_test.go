package main

import (
	"context"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ssmmp/ssmmp"
)

// The example as it is printed, in memory and over TCP.
func TestRun(t *testing.T) {
	t.Parallel()
	const want = "7 requests went over 2 sessions"
	t.Run("memory", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			host := newHost(t)
			var out strings.Builder
			if err := run(t.Context(), host, host.Addr(), 8080, &out); err != nil || !strings.Contains(out.String(), want) {
				t.Errorf("%v\n%s", err, out.String())
			}
		})
	})
	t.Run("TCP", func(t *testing.T) {
		t.Parallel()
		node, port := freeNode(t)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var out strings.Builder
		if err := run(ctx, ssmmp.TCP{LocalAddr: node}, node, port, &out); err != nil || !strings.Contains(out.String(), want) {
			t.Errorf("%v\n%s", err, out.String())
		}
	})
}

// One session carries many requests, over many health periods; it ends when it
// was idle, and so does the greeter; the next request brings both back.
func TestKeepAlive(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		host := newHost(t)
		c, err := startMesh(t.Context(), host, host.Addr(), 8080)
		if err != nil {
			t.Fatal(err)
		}
		defer c.close()
		pool := &http.Transport{DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) { return host.Dial(ctx, addr) }}
		defer pool.CloseIdleConnections()
		client := &http.Client{Transport: pool}
		ask := func() {
			t.Helper()
			if text, err := get(client, "http://"+c.users+"/Ann"); err != nil || !strings.HasPrefix(text, "hello Ann from greeter, ") {
				t.Fatal(text, err)
			}
			synctest.Wait()
		}
		session := func() ssmmp.SessionStatus {
			t.Helper()
			all := c.manager.Snapshot().Sessions
			if len(all) != 1 || all[0].State != ssmmp.SessionOpen || all[0].Plug != "P1" {
				t.Fatalf("the Manager knows %+v, want one open session", all)
			}
			return all[0]
		}

		ask()
		first := session()
		for range 20 {
			ask()
			if now := session(); now != first {
				t.Fatalf("the session is %+v, and was %+v", now, first)
			}
			time.Sleep(7 * time.Second) // and a health request to each
		}

		time.Sleep(20 * time.Minute)
		if s := c.manager.Snapshot(); len(s.Sessions) != 0 || len(s.Instances) != 1 {
			t.Fatalf("after an idle time: %+v", s)
		}
		ask()
		second := session()
		if second.ID == first.ID || second.Destination == first.Destination {
			t.Errorf("the session is %+v, and was %+v", second, first)
		}

		if err := c.manager.CloseSession(t.Context(), second.ID); err != nil {
			t.Fatal(err)
		}
		ask()
		if third := session(); third.ID == second.ID || third.Destination != second.Destination {
			t.Errorf("the session is %+v, and was %+v", third, second)
		}
	})
}

func newHost(t *testing.T) *ssmmp.MemHost {
	t.Helper()
	host, err := ssmmp.NewMemNetwork().Host("10.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	return host
}

// freeNode returns a loopback address, on Linux one that nobody else uses, and
// a port that is free there.
func freeNode(t *testing.T) (netip.Addr, uint16) {
	t.Helper()
	node := netip.MustParseAddr("127.0.0.1")
	if runtime.GOOS == "linux" {
		node = netip.AddrFrom4([4]byte{127, byte(1 + rand.N(250)), byte(rand.N(250)), 1})
	}
	ln, err := net.Listen("tcp", netip.AddrPortFrom(node, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return node, ln.Addr().(*net.TCPAddr).AddrPort().Port()
}
