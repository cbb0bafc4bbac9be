package ssmmptest

import (
	"context"
	"net"
	"net/netip"
	"time"

	"github.com/ssmmp/ssmmp"
)

// A faultHost is the Transport of one host of a Faults.
type faultHost struct {
	f     *Faults
	addr  netip.Addr
	inner ssmmp.Transport
}

// Listen announces on the inner Transport: that takes no network.
func (h *faultHost) Listen(ctx context.Context, addr string) (net.Listener, error) {
	inner, err := h.inner.Listen(ctx, addr)
	if err != nil {
		return nil, err
	}
	return &faultListener{Listener: inner, host: h}, nil
}

// Dial waits until the way there and back is open, and as long as that takes,
// before it dials.
func (h *faultHost) Dial(ctx context.Context, addr string) (net.Conn, error) {
	if target, ok := h.target(addr); ok {
		if err := h.f.handshake(ctx, h.addr, target); err != nil {
			return nil, &net.OpError{Op: "dial", Net: "fault", Err: err}
		}
	}
	inner, err := h.inner.Dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	c := h.f.conn(h, inner, true)
	if c == nil {
		inner.Close()
		return nil, &net.OpError{Op: "dial", Net: "fault", Addr: inner.RemoteAddr(), Err: net.ErrClosed}
	}
	return c, nil
}

// target returns the host that an address leads to; not ok is one that the
// inner Transport has to resolve, or refuse.
func (h *faultHost) target(addr string) (netip.Addr, bool) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return netip.Addr{}, false
	}
	if host == "" || host == "localhost" {
		return h.addr, true
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return netip.Addr{}, false
	}
	h.f.mu.Lock()
	defer h.f.mu.Unlock()
	return h.peer(ip), true
}

// peer returns the host that an address means to this one:
// what is no other host's and on the loopback is this one. f.mu is held.
func (h *faultHost) peer(ip netip.Addr) netip.Addr {
	ip = plainAddr(ip)
	if ip.IsUnspecified() || ip.IsLoopback() && h.f.hosts[ip] == nil {
		return h.addr
	}
	return ip
}

// handshake waits as a dial from one host to another would.
func (f *Faults) handshake(ctx context.Context, from, to netip.Addr) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	out, in := f.path(from, to), f.path(to, from)
	chance := f.chance(out, "dial")
	stop := context.AfterFunc(ctx, f.wakeDials)
	defer stop()
	for held := false; ; {
		switch {
		case f.closed:
			return net.ErrClosed
		case ctx.Err() != nil:
			return ctx.Err()
		case !f.open(out) || !f.open(in):
			if !held {
				held = true
				f.stats.Held++
			}
			f.change.Wait()
			continue
		}
		until := time.Now().Add(f.latency(out, chance) + f.latency(in, chance))
		for ctx.Err() == nil && !f.closed {
			left := time.Until(until)
			if left <= 0 {
				break
			}
			timer := time.AfterFunc(left, f.wakeDials)
			f.change.Wait()
			timer.Stop()
		}
		if f.open(out) && f.open(in) && ctx.Err() == nil && !f.closed {
			return nil
		}
	}
}

func (f *Faults) wakeDials() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.change.Broadcast()
}

// A faultListener accepts the connections of one host.
type faultListener struct {
	net.Listener
	host *faultHost
	shut bool // guarded by f.mu
}

func (l *faultListener) Accept() (net.Conn, error) {
	inner, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	f := l.host.f
	f.mu.Lock()
	state := f.host(l.host.addr)
	for held := false; state.frozen && !l.shut && !f.closed; f.change.Wait() {
		if !held {
			held = true
			f.stats.Held++
		}
	}
	shut := l.shut
	f.mu.Unlock()
	if !shut {
		if c := f.conn(l.host, inner, false); c != nil {
			return c, nil
		}
	}
	inner.Close()
	return nil, &net.OpError{Op: "accept", Net: l.Addr().Network(), Addr: l.Addr(), Err: net.ErrClosed}
}

func (l *faultListener) Close() error {
	err := l.Listener.Close()
	f := l.host.f
	f.mu.Lock()
	defer f.mu.Unlock()
	l.shut = true
	f.change.Broadcast()
	return err
}
