package ssmmptest

import (
	"net"
	"net/netip"
	"testing"

	"github.com/ssmmp/ssmmp"
)

func TestTCPv4(t *testing.T) {
	t.Parallel()
	TestTransport(t, func(*testing.T) (server, client ssmmp.Transport, listenAddr string) {
		return ssmmp.TCP{}, ssmmp.TCP{}, "127.0.0.1:0"
	})
}

func TestTCPv6(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		t.Skipf("NOT TESTED: TCP over IPv6, because this machine has no ::1: %v", err)
	}
	ln.Close()
	TestTransport(t, func(*testing.T) (server, client ssmmp.Transport, listenAddr string) {
		return ssmmp.TCP{}, ssmmp.TCP{}, "[::1]:0"
	})
}

func TestTCPLocalAddr(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp4", "127.0.0.2:0")
	if err != nil {
		t.Skipf("NOT TESTED: TCP with a local address, because this machine has no 127.0.0.2: %v", err)
	}
	ln.Close()
	TestTransport(t, func(*testing.T) (server, client ssmmp.Transport, listenAddr string) {
		server = ssmmp.TCP{LocalAddr: netip.MustParseAddr("127.0.0.2")}
		client = ssmmp.TCP{LocalAddr: netip.MustParseAddr("127.0.0.3")}
		return server, client, ":0"
	})
}

func memPair(listenAddr string, hosts ...string) func(*testing.T) (server, client ssmmp.Transport, listenAddr string) {
	return func(t *testing.T) (server, client ssmmp.Transport, _ string) {
		network := ssmmp.NewMemNetwork()
		ends := make([]*ssmmp.MemHost, len(hosts))
		for i, addr := range hosts {
			var err error
			if ends[i], err = network.Host(addr); err != nil {
				t.Fatal(err)
			}
		}
		return ends[0], ends[1], listenAddr
	}
}

func TestMem(t *testing.T) {
	t.Parallel()
	TestTransport(t, memPair("10.0.0.1:0", "10.0.0.1", "10.0.0.2"))
}

func TestMemIPv6(t *testing.T) {
	t.Parallel()
	TestTransport(t, memPair("[fd00::1]:0", "fd00::1", "fd00::2"))
}

func TestMemOneHost(t *testing.T) {
	t.Parallel()
	TestTransport(t, memPair("localhost:0", "10.0.0.1", "10.0.0.1"))
}
