package ssmmp

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"syscall"
)

const (
	// memBacklog is how many connections wait at a listener to be accepted.
	memBacklog = 128

	// Ports that a MemHost chooses by itself lie between these two: below the
	// ports that the Manager gives to sockets (PROTOCOL section 1).
	memFirstPort = 10000
	memLastPort  = FirstSocketPort - 1
)

// A MemNetwork is a network inside this process: hosts with addresses and
// ports of their own, and connections that behave as TCP's do. Many networks
// live side by side and know nothing of each other.
//
// It starts no goroutines, and everything that waits in it waits on a
// condition or a timer: a network made in a testing/synctest bubble keeps the
// bubble's time. As with anything in a bubble, it may not be used outside.
type MemNetwork struct {
	mu    sync.Mutex // guards the hosts, their maps and the listeners' queues
	hosts map[netip.Addr]*MemHost
}

// A MemHost is one host of a MemNetwork, and the Transport of all that runs on
// it. It may be used by many goroutines at once.
//
// "localhost", "127.0.0.1", "[::1]" and an empty host part are the host itself
// and are seen by that host only. A listener on ":54000" takes connections to
// localhost and to the host's address. An outgoing connection never stands in
// the way of a listener.
type MemHost struct {
	net  *MemNetwork
	addr netip.Addr

	// Guarded by net.mu.
	local   map[uint16]*memListener // listeners that localhost reaches
	outside map[uint16]*memListener // listeners that the address reaches
	ports   map[uint16]*memConn     // dialled from here, by source port
	conns   map[*memConn]struct{}   // all open ends on this host
	next    uint16                  // where the search for a free port goes on
}

var _ Transport = (*MemHost)(nil)

// memListener is a listener of a MemHost. Its fields below addr are guarded by
// the network's mutex, as are the waits for both conditions.
type memListener struct {
	host    *MemHost
	addr    net.TCPAddr
	local   bool       // entered in host.local
	outside bool       // entered in host.outside
	pending sync.Cond  // for Accept: queue has one, or closed
	room    sync.Cond  // for Dial: queue has room, closed, or something ended
	queue   []*memConn // server ends not yet accepted, at most memBacklog
	closed  bool
}

// NewMemNetwork returns a network without hosts.
func NewMemNetwork() *MemNetwork {
	return &MemNetwork{hosts: make(map[netip.Addr]*MemHost)}
}

// Host returns the host with the IP address addr, and adds it when the network
// has none yet. A text that is no address, or an address that cannot be one
// host's own (unspecified, multicast, 127.0.0.1, ::1), is a *net.AddrError.
func (n *MemNetwork) Host(addr string) (*MemHost, error) {
	ip, err := netip.ParseAddr(addr)
	if err != nil {
		return nil, &net.AddrError{Err: "not an IP address", Addr: addr}
	}
	ip = ip.Unmap()
	if ip.IsUnspecified() || ip.IsMulticast() || isSelf(ip) {
		return nil, &net.AddrError{Err: "not the address of one host", Addr: addr}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	h := n.hosts[ip]
	if h == nil {
		h = &MemHost{
			net:     n,
			addr:    ip,
			local:   make(map[uint16]*memListener),
			outside: make(map[uint16]*memListener),
			ports:   make(map[uint16]*memConn),
			conns:   make(map[*memConn]struct{}),
			next:    memFirstPort,
		}
		n.hosts[ip] = h
	}
	return h, nil
}

// Addr returns the host's address.
func (h *MemHost) Addr() netip.Addr { return h.addr }

// Listen announces on addr, "host:port", where the host part is the host's
// address or one that means the host itself. Port 0 chooses a free one. A
// *net.OpError wraps EADDRINUSE when the port is taken and EADDRNOTAVAIL when
// the address is another host's or no port is free.
func (h *MemHost) Listen(ctx context.Context, addr string) (net.Listener, error) {
	fail := func(at net.Addr, err error) (net.Listener, error) {
		return nil, &net.OpError{Op: "listen", Net: "mem", Addr: at, Err: err}
	}
	ap, err := memAddrPort(addr)
	if err != nil {
		return fail(nil, err)
	}
	if err := ctx.Err(); err != nil {
		return fail(net.TCPAddrFromAddrPort(ap), err)
	}
	l := &memListener{
		host:    h,
		local:   ap.Addr().IsUnspecified() || isSelf(ap.Addr()),
		outside: ap.Addr().IsUnspecified() || ap.Addr() == h.addr,
	}
	l.pending.L, l.room.L = &h.net.mu, &h.net.mu
	if !l.local && !l.outside {
		return fail(net.TCPAddrFromAddrPort(ap), os.NewSyscallError("bind", syscall.EADDRNOTAVAIL))
	}

	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	port := ap.Port()
	if port == 0 {
		var ok bool
		if port, ok = h.freePort(); !ok {
			return fail(net.TCPAddrFromAddrPort(ap), os.NewSyscallError("bind", syscall.EADDRNOTAVAIL))
		}
	}
	l.addr = *net.TCPAddrFromAddrPort(netip.AddrPortFrom(ap.Addr(), port))
	if l.local && h.local[port] != nil || l.outside && h.outside[port] != nil {
		return fail(&l.addr, os.NewSyscallError("bind", syscall.EADDRINUSE))
	}
	if l.local {
		h.local[port] = l
	}
	if l.outside {
		h.outside[port] = l
	}
	return l, nil
}

// Dial connects to addr, "host:port", and returns as soon as the connection is
// in the listener's queue, which holds 128: when it is full, Dial waits until
// there is room or ctx ends. A *net.OpError wraps ECONNREFUSED when nobody
// listens, EHOSTUNREACH when the network has no such host, EADDRNOTAVAIL when
// this host has no source port left, and the context's error.
func (h *MemHost) Dial(ctx context.Context, addr string) (net.Conn, error) {
	fail := func(to net.Addr, err error) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: "mem", Addr: to, Err: err}
	}
	target, err := memAddrPort(addr)
	if err != nil {
		return fail(nil, err)
	}
	from, self := h.addr, isSelf(target.Addr())
	switch {
	case target.Addr().IsUnspecified():
		self = true
		from = netip.AddrFrom4([4]byte{127, 0, 0, 1})
		target = netip.AddrPortFrom(from, target.Port())
	case self:
		from = target.Addr()
	}
	to := net.TCPAddrFromAddrPort(target)
	if err := ctx.Err(); err != nil {
		return fail(to, err)
	}

	n := h.net
	n.mu.Lock()
	defer n.mu.Unlock()
	var l *memListener
	dest := h
	if self {
		l = h.local[target.Port()]
	} else if dest = n.hosts[target.Addr()]; dest == nil {
		return fail(to, os.NewSyscallError("connect", syscall.EHOSTUNREACH))
	} else {
		l = dest.outside[target.Port()]
	}
	if l == nil {
		return fail(to, os.NewSyscallError("connect", syscall.ECONNREFUSED))
	}
	port, ok := h.freePort()
	if !ok {
		return fail(to, os.NewSyscallError("connect", syscall.EADDRNOTAVAIL))
	}

	client, server := newMemConns(netip.AddrPortFrom(from, port), target)
	client.host, server.host = h, dest
	h.ports[port] = client
	h.conns[client] = struct{}{}
	if err := l.awaitRoom(ctx, client); err != nil {
		client.forget()
		return fail(to, err)
	}
	dest.conns[server] = struct{}{}
	l.queue = append(l.queue, server)
	l.pending.Signal()
	return client, nil
}

// Crash ends everything on the host at once, as if it had lost its power and
// its peers were told: listeners close, and at both ends of each connection
// what waits and what follows fails with ECONNRESET; bytes on their way are
// lost. The host itself can be used again at once.
func (h *MemHost) Crash() {
	h.net.mu.Lock()
	var ended []*memConn
	for _, listeners := range []map[uint16]*memListener{h.local, h.outside} {
		for _, l := range listeners {
			ended = append(ended, l.shut()...)
		}
	}
	for c := range h.conns {
		c.forget()
		c.peer.forget()
		ended = append(ended, c)
	}
	// A Dial of this host may wait at any listener.
	for _, other := range h.net.hosts {
		for _, l := range other.local {
			l.room.Broadcast()
		}
		for _, l := range other.outside {
			l.room.Broadcast()
		}
	}
	h.net.mu.Unlock()
	for _, c := range ended {
		c.reset()
	}
}

// freePort returns a port that no listener and no outgoing connection of the
// host has. The caller holds net.mu.
func (h *MemHost) freePort() (port uint16, ok bool) {
	for range memLastPort - memFirstPort + 1 {
		port = h.next
		if h.next++; h.next > memLastPort {
			h.next = memFirstPort
		}
		if h.local[port] == nil && h.outside[port] == nil && h.ports[port] == nil {
			return port, true
		}
	}
	return 0, false
}

// awaitRoom waits until c may enter the queue. The caller holds net.mu.
func (l *memListener) awaitRoom(ctx context.Context, c *memConn) error {
	if !l.closed && len(l.queue) < memBacklog {
		return nil
	}
	stop := context.AfterFunc(ctx, func() {
		l.room.L.Lock()
		defer l.room.L.Unlock()
		l.room.Broadcast()
	})
	defer stop()
	for {
		var err error
		if _, alive := c.host.conns[c]; !alive {
			err = os.NewSyscallError("connect", syscall.ECONNRESET) // Crash took it
		} else if l.closed {
			err = os.NewSyscallError("connect", syscall.ECONNREFUSED)
		} else if err = ctx.Err(); err == nil && len(l.queue) < memBacklog {
			return nil
		}
		if err != nil {
			l.room.Signal() // the place this Dial was woken for is another's
			return err
		}
		l.room.Wait()
	}
}

// Accept waits for the next connection.
func (l *memListener) Accept() (net.Conn, error) {
	l.host.net.mu.Lock()
	defer l.host.net.mu.Unlock()
	for len(l.queue) == 0 && !l.closed {
		l.pending.Wait()
	}
	if l.closed {
		return nil, l.closedError("accept")
	}
	c := l.queue[0]
	l.queue[0] = nil
	l.queue = l.queue[1:]
	l.room.Signal()
	return c, nil
}

// Close frees the port, wakes Accept and the dials that wait, and resets the
// connections that were not accepted.
func (l *memListener) Close() error {
	l.host.net.mu.Lock()
	if l.closed {
		l.host.net.mu.Unlock()
		return l.closedError("close")
	}
	ended := l.shut()
	l.host.net.mu.Unlock()
	for _, c := range ended {
		c.reset()
	}
	return nil
}

// Addr returns the address that the listener was given, with its port.
func (l *memListener) Addr() net.Addr { return &l.addr }

// shut closes the listener and returns the connections that its closing ends.
// The caller holds net.mu, and resets them after releasing it.
func (l *memListener) shut() (ended []*memConn) {
	if l.closed {
		return nil
	}
	l.closed = true
	port := uint16(l.addr.Port)
	if l.local {
		delete(l.host.local, port)
	}
	if l.outside {
		delete(l.host.outside, port)
	}
	ended, l.queue = l.queue, nil
	for _, c := range ended {
		c.forget()
		c.peer.forget()
	}
	l.pending.Broadcast()
	l.room.Broadcast()
	return ended
}

func (l *memListener) closedError(op string) error {
	return &net.OpError{Op: op, Net: "mem", Addr: &l.addr, Err: net.ErrClosed}
}

// isSelf reports whether ip is what every host calls itself.
func isSelf(ip netip.Addr) bool {
	return ip == netip.AddrFrom4([4]byte{127, 0, 0, 1}) || ip == netip.IPv6Loopback()
}

// memAddrPort parses "host:port". No host part is the unspecified address.
func memAddrPort(addr string) (netip.AddrPort, error) {
	host, text, err := net.SplitHostPort(addr)
	if err != nil {
		return netip.AddrPort{}, err
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return netip.AddrPort{}, &net.AddrError{Err: fmt.Sprintf("invalid port %q", text), Addr: addr}
	}
	var ip netip.Addr
	switch host {
	case "":
		ip = netip.IPv6Unspecified()
	case "localhost":
		ip = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	default:
		if ip, err = netip.ParseAddr(host); err != nil {
			return netip.AddrPort{}, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
		}
	}
	return netip.AddrPortFrom(ip.Unmap(), uint16(port)), nil
}
