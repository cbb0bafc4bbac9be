package ssmmp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"
)

const (
	// listenAttempts and listenWait bound how long a Listen tries for a port
	// that is taken: the wait doubles after each attempt, so 1.55 s in all.
	listenAttempts = 6
	listenWait     = 50 * time.Millisecond

	// wsaAddrInUse is what Windows says for EADDRINUSE; package syscall has
	// no name for it there.
	wsaAddrInUse = syscall.Errno(10048)
)

// TCP is the Transport of the operating system's TCP, over IPv4 and IPv6. Its
// zero value is ready to use, and it may be used by many goroutines at once.
//
// Connections send without delay (TCP_NODELAY) and probe an idle peer.
type TCP struct {
	// LocalAddr is the address of this host among several of one machine: an
	// address without a host part is on it, and dials leave from it to every
	// target that it can reach. The zero Addr leaves both to the system.
	LocalAddr netip.Addr
	// KeepAlive says how an idle connection is probed. Its zero value means
	// after 15 s, every 5 s, and broken after 3 probes without an answer. Any
	// other value is used as it is, so one without Enable turns probes off.
	KeepAlive net.KeepAliveConfig
}

var _ Transport = TCP{}

// Listen announces on addr, "host:port". A port that is taken is tried again
// for about 1.5 s while ctx lasts, because an outgoing connection may hold it
// (PROTOCOL section 1); after that the error wraps EADDRINUSE and, where ctx
// cut the attempts short, the context's error.
func (t TCP) Listen(ctx context.Context, addr string) (net.Listener, error) {
	target, err := t.own(addr)
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: "tcp", Err: err}
	}
	lc := net.ListenConfig{KeepAlive: -1, KeepAliveConfig: t.keepAlive()}
	// Multipath TCP would hide a connection from the tables in which an agent
	// looks up who owns its far end.
	lc.SetMultipathTCP(false)
	return retryListen(ctx, func() (net.Listener, error) {
		return lc.Listen(ctx, "tcp", target)
	})
}

// Dial connects to addr, "host:port".
func (t TCP) Dial(ctx context.Context, addr string) (net.Conn, error) {
	target, err := t.own(addr)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: err}
	}
	d := net.Dialer{KeepAlive: -1, KeepAliveConfig: t.keepAlive()}
	if t.leavesFrom(ctx, target) {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(t.LocalAddr.Unmap(), 0))
	}
	return d.DialContext(ctx, "tcp", target)
}

func (t TCP) keepAlive() net.KeepAliveConfig {
	if t.KeepAlive != (net.KeepAliveConfig{}) {
		return t.KeepAlive
	}
	return net.KeepAliveConfig{
		Enable:   true,
		Idle:     15 * time.Second,
		Interval: 5 * time.Second,
		Count:    3,
	}
}

// own returns addr with LocalAddr for a missing host part.
func (t TCP) own(addr string) (string, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", err
	}
	if host == "" && t.LocalAddr.IsValid() {
		return net.JoinHostPort(t.LocalAddr.Unmap().String(), port), nil
	}
	return addr, nil
}

// leavesFrom reports whether a dial to target can be bound to LocalAddr.
func (t TCP) leavesFrom(ctx context.Context, target string) bool {
	if !t.LocalAddr.IsValid() || t.LocalAddr.IsUnspecified() {
		return false
	}
	host, _, _ := net.SplitHostPort(target) // own has split it before
	if ip, err := netip.ParseAddr(host); err == nil {
		return reaches(t.LocalAddr, ip)
	}
	// The dial resolves the name again and reports what is wrong with it.
	ips, _ := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	for _, ip := range ips {
		if reaches(t.LocalAddr, ip) {
			return true
		}
	}
	return false
}

// reaches reports whether a connection can lead from one address to the other:
// both are of one family, and both or neither are of the loopback.
func reaches(from, to netip.Addr) bool {
	from, to = from.Unmap(), to.Unmap()
	return from.Is4() == to.Is4() && from.IsLoopback() == to.IsLoopback()
}

// retryListen calls listen until it succeeds, fails with anything but an
// address in use, or the attempts or ctx are at their end.
func retryListen(ctx context.Context, listen func() (net.Listener, error)) (net.Listener, error) {
	if err := ctx.Err(); err != nil {
		return nil, &net.OpError{Op: "listen", Net: "tcp", Err: err}
	}
	wait := listenWait
	for attempt := 1; ; attempt++ {
		ln, err := listen()
		if err == nil || !addrInUse(err) {
			return ln, err
		}
		if attempt == listenAttempts {
			return nil, fmt.Errorf("ssmmp: %w, after %d attempts: a listener or an outgoing connection holds the port", err, attempt)
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
			wait *= 2
		case <-ctx.Done():
			timer.Stop()
			return nil, fmt.Errorf("ssmmp: %w, after %d attempts: a listener or an outgoing connection holds the port: %w", err, attempt, ctx.Err())
		}
	}
}

func addrInUse(err error) bool {
	return errors.Is(err, syscall.EADDRINUSE) || errors.Is(err, wsaAddrInUse)
}
