package ssmmp

import (
	"net"
	"syscall"
	"testing"
	"time"
)

func TestTCPSocketOptions(t *testing.T) {
	t.Parallel()
	type options struct{ keepAlive, idle, interval, count, noDelay int }
	for _, tt := range []struct {
		name string
		tcp  TCP
		want options
	}{
		{"zero value", TCP{}, options{1, 15, 5, 3, 1}},
		{"configured", TCP{KeepAlive: net.KeepAliveConfig{Enable: true, Idle: 7 * time.Second, Interval: 2 * time.Second, Count: 4}}, options{1, 7, 2, 4, 1}},
		{"off", TCP{KeepAlive: net.KeepAliveConfig{Idle: -1}}, options{keepAlive: 0, noDelay: 1}},
	} {
		ln, err := tt.tcp.Listen(t.Context(), "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		client, err := tt.tcp.Dial(t.Context(), ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		server, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		for end, c := range map[string]net.Conn{"dialled": client, "accepted": server} {
			raw, err := c.(*net.TCPConn).SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			var got options
			err = raw.Control(func(fd uintptr) {
				get := func(level, opt int) int {
					v, err := syscall.GetsockoptInt(int(fd), level, opt)
					if err != nil {
						t.Errorf("option %d of level %d: %v", opt, level, err)
					}
					return v
				}
				got.keepAlive = get(syscall.SOL_SOCKET, syscall.SO_KEEPALIVE)
				got.noDelay = get(syscall.IPPROTO_TCP, syscall.TCP_NODELAY)
				if got.keepAlive != 0 {
					got.idle = get(syscall.IPPROTO_TCP, syscall.TCP_KEEPIDLE)
					got.interval = get(syscall.IPPROTO_TCP, syscall.TCP_KEEPINTVL)
					got.count = get(syscall.IPPROTO_TCP, syscall.TCP_KEEPCNT)
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			if got != tt.want {
				t.Errorf("%s, %s end: %+v, want %+v", tt.name, end, got, tt.want)
			}
		}
	}
}
