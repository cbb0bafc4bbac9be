package ssmmp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// wsaConnRefused is what Windows says for ECONNREFUSED; package syscall has no
// name for it there.
const wsaConnRefused = syscall.Errno(10061)

// Listen announces on the port that the Manager chose for a socket. What it
// accepts are sessions: they report their own end.
func (i *Instance) Listen(socket string) (net.Listener, error) {
	for _, s := range i.cfg.Launch.Sockets {
		if s.Socket != socket {
			continue
		}
		i.mu.Lock()
		draining := i.draining
		i.mu.Unlock()
		if draining {
			return nil, fmt.Errorf("listen %s: %w", socket, ErrDraining)
		}
		inner, err := i.cfg.Transport.Listen(i.drainCtx, netip.AddrPortFrom(i.cfg.Launch.Address, s.Port).String())
		if err != nil {
			return nil, fmt.Errorf("ssmmp: listen %s: %w", socket, err)
		}
		ln := &sessionListener{Listener: inner, inst: i, socket: s}
		i.mu.Lock()
		i.listeners[ln] = struct{}{}
		draining = i.draining
		i.mu.Unlock()
		if draining {
			ln.Close()
			return nil, fmt.Errorf("listen %s: %w", socket, ErrDraining)
		}
		return ln, nil
	}
	return nil, fmt.Errorf("ssmmp: listen: %s has no socket %q: %w", i.cfg.Launch.Service, socket, ErrNotFound)
}

// Dial opens a session over a plug (PROTOCOL section 3, Session): it asks the
// Manager for a destination, which may have to be started first, dials it and
// acknowledges. A destination that cannot be dialled is reported and another
// asked for, a few times. Without a deadline in ctx the DialTimeout holds.
// Over TCP the connection is a syscall.Conn as well.
//
// The error is, by errors.Is: ErrNoEdge, ErrUnavailable, ErrStartTimeout,
// ErrManagerAway, ErrRefused, ErrDraining, or the context's.
func (i *Instance) Dial(ctx context.Context, plug string) (net.Conn, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, i.cfg.DialTimeout)
		defer cancel()
	}
	for attempt := 1; ; attempt++ {
		// Each attempt asks the Manager anew: it may know by now that the
		// destination is gone, and name another.
		conn, err := i.dialOnce(ctx, plug)
		var unreachable *unreachableError
		if err == nil || attempt == dialAttempts || !errors.As(err, &unreachable) {
			return conn, err
		}
	}
}

// DialContext is Dial in the form that net/http's Transport and others take:
// the host of addr is the plug, its port and the network do not count, so that
// "http://P6/…" goes over plug P6. Host names are case insensitive: so is the
// plug here, where no two differ in case alone.
func (i *Instance) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		host = addr
	}
	plug, matches := host, 0
	for _, t := range i.cfg.Launch.Plugs {
		if t.Plug == host {
			plug, matches = host, 1
			break
		}
		if strings.EqualFold(t.Plug, host) {
			plug = t.Plug
			matches++
		}
	}
	if matches > 1 {
		plug = host
	}
	return i.Dial(ctx, plug)
}

// An unreachableError says that a granted destination could not be dialled.
type unreachableError struct{ error }

func (e *unreachableError) Unwrap() []error { return []error{e.error, ErrUnavailable} }

// dialOnce asks for one session and dials it.
func (i *Instance) dialOnce(ctx context.Context, plug string) (net.Conn, error) {
	op := "dial " + plug
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("ssmmp: %s: %w", op, err)
	}
	reply := make(chan dialAnswer, 1)
	i.mu.Lock()
	if i.draining {
		i.mu.Unlock()
		return nil, fmt.Errorf("%s: %w", op, ErrDraining)
	}
	i.lastCall++
	call := i.lastCall
	i.calls[call] = reply
	i.mu.Unlock()
	i.step(InstanceInput{Kind: InstanceInputDial, Call: call, Plug: plug})

	var a dialAnswer
	select {
	case a = <-reply:
	case <-ctx.Done():
		i.mu.Lock()
		delete(i.calls, call)
		i.mu.Unlock()
		// Whatever was or will be granted is given back.
		i.step(InstanceInput{Kind: InstanceInputDialFailed, Call: call, Status: StatusCanceled})
		return nil, fmt.Errorf("ssmmp: %s: %w", op, ctx.Err())
	}
	if a.reason == reasonManagerAway {
		if i.drainCtx.Err() != nil {
			return nil, fmt.Errorf("%s: %w", op, ErrDraining) // this end hung up
		}
		return nil, fmt.Errorf("ssmmp: %s: %w", op, ErrManagerAway)
	}
	if !a.status.Success() {
		return nil, &StatusError{Op: op, Status: a.status, Reason: a.reason}
	}

	inner, err := i.connect(ctx, a.target)
	if err != nil {
		cause := ctx.Err()
		if cause == nil && errors.Is(err, os.ErrDeadlineExceeded) {
			cause = context.DeadlineExceeded // the system's timer was earlier than ours
		}
		status := StatusUnreachable // also at the deadline: it had its time
		if errors.Is(cause, context.Canceled) {
			status = StatusCanceled
		}
		i.step(InstanceInput{Kind: InstanceInputDialFailed, Call: call, Status: status})
		if cause != nil {
			return nil, fmt.Errorf("ssmmp: %s: %w: %w", op, cause, err)
		}
		return nil, &unreachableError{fmt.Errorf("ssmmp: %s: %w", op, err)}
	}
	local, remote := addrPort(inner.LocalAddr()), addrPort(inner.RemoteAddr())
	c := i.newConn(inner, plug, true)
	if c == nil {
		inner.Close()
		i.step(InstanceInput{Kind: InstanceInputDialFailed, Call: call, Status: StatusCanceled})
		return nil, fmt.Errorf("%s: %w", op, ErrDraining)
	}
	i.step(InstanceInput{Kind: InstanceInputDialed, Call: call, Conn: c.number, Peer: netip.AddrPortFrom(a.target.Addr(), remote.Port()), Port: local.Port()})
	return c.given, nil
}

// connect dials a granted destination. One that refuses may have been started
// just now: it is tried again for a while.
func (i *Instance) connect(ctx context.Context, target netip.AddrPort) (net.Conn, error) {
	until := time.Now().Add(refusedWindow)
	for wait := 2 * time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		conn, err := i.cfg.Transport.Dial(ctx, target.String())
		if err == nil || !refused(err) || time.Now().After(until) {
			return conn, err
		}
		if !sleep(ctx, wait/2+rand.N(wait/2+1)) {
			return nil, err
		}
	}
}

func refused(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, wsaConnRefused)
}

func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		p := t.AddrPort()
		return netip.AddrPortFrom(p.Addr().Unmap().WithZone(""), p.Port())
	}
	p, _ := netip.ParseAddrPort(a.String())
	return p
}

// A sessionListener accepts the sessions of one socket.
type sessionListener struct {
	net.Listener
	inst   *Instance
	socket SocketPort
	once   sync.Once
}

func (l *sessionListener) Accept() (net.Conn, error) {
	inner, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := l.inst.newConn(inner, l.socket.Socket, false)
	if c == nil {
		inner.Close()
		return nil, &net.OpError{Op: "accept", Net: l.Addr().Network(), Addr: l.Addr(), Err: net.ErrClosed}
	}
	l.inst.step(InstanceInput{Kind: InstanceInputAccepted, Conn: c.number, Socket: l.socket.Socket, Peer: addrPort(inner.RemoteAddr()), Port: l.socket.Port})
	return c.given, nil
}

func (l *sessionListener) Close() error {
	l.once.Do(func() {
		l.inst.mu.Lock()
		delete(l.inst.listeners, l)
		l.inst.mu.Unlock()
	})
	return l.Listener.Close()
}

// A sessionConn is one end of a session: a connection that reports its end.
type sessionConn struct {
	net.Conn
	inst   *Instance
	number uint64
	name   string   // plug or socket
	given  net.Conn // as its user has it: this, or a rawSessionConn

	once     sync.Once    // its end is reported once
	dropped  atomic.Bool  // the Manager closed it
	touched  atomic.Int64 // time of the last byte, since born, if idle is watched
	writing  atomic.Int32 // Writes under way
	born     time.Time
	idle     *time.Timer
	idleTime time.Duration
}

// A rawSessionConn is a sessionConn over the operating system's: pools of
// connections look at it, to find those that were closed while nobody read.
type rawSessionConn struct {
	*sessionConn
	syscall.Conn
}

// newConn registers a connection, nil when the instance has left the mesh.
func (i *Instance) newConn(inner net.Conn, name string, source bool) *sessionConn {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.ended {
		return nil
	}
	i.lastConn++
	c := &sessionConn{Conn: inner, inst: i, number: i.lastConn, name: name}
	c.given = c
	if raw, ok := inner.(syscall.Conn); ok {
		c.given = rawSessionConn{c, raw}
	}
	i.conns[c.number] = c
	if source && i.cfg.IdleTimeout > 0 {
		c.born, c.idleTime = time.Now(), i.cfg.IdleTimeout
		// Set once c.idle is assigned, since checkIdle reads it.
		c.idle = time.AfterFunc(time.Hour, c.checkIdle)
		c.idle.Reset(c.idleTime)
	}
	return c
}

func (c *sessionConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	return n, c.after(n, err)
}

func (c *sessionConn) Write(b []byte) (int, error) {
	c.writing.Add(1)
	n, err := c.Conn.Write(b)
	c.writing.Add(-1)
	return n, c.after(n, err)
}

// after notes activity, reports a broken connection, and tells a session that
// the Manager closed from one that was closed here.
func (c *sessionConn) after(n int, err error) error {
	if n > 0 && c.idleTime > 0 {
		c.touched.Store(int64(time.Since(c.born)))
	}
	switch {
	case err == nil || err == io.EOF:
	case c.dropped.Load():
		return &net.OpError{Op: "session", Net: c.LocalAddr().Network(), Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: errSessionDropped{}}
	case errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, io.ErrClosedPipe):
	default:
		c.ended(StatusSessionBroken)
	}
	return err
}

// errSessionDropped is both ErrSessionClosed and net.ErrClosed.
type errSessionDropped struct{}

func (errSessionDropped) Error() string { return ErrSessionClosed.Error() }
func (errSessionDropped) Is(target error) bool {
	return target == ErrSessionClosed || target == net.ErrClosed
}

// CloseWrite ends the sending half, where the transport has halves.
func (c *sessionConn) CloseWrite() error {
	if h, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return fmt.Errorf("ssmmp: close write: %w", errors.ErrUnsupported)
}

// Close closes the connection and reports the session's end.
func (c *sessionConn) Close() error {
	err := c.Conn.Close()
	c.ended(StatusSessionClosed)
	return err
}

// ended reports the session's end, the first time it is called.
func (c *sessionConn) ended(status Status) {
	c.once.Do(func() {
		c.forget()
		c.inst.step(InstanceInput{Kind: InstanceInputConnClosed, Conn: c.number, Status: status})
	})
}

func (c *sessionConn) forget() {
	if c.idle != nil {
		c.idle.Stop()
	}
	c.inst.mu.Lock()
	delete(c.inst.conns, c.number)
	c.inst.mu.Unlock()
}

// checkIdle closes an idle session. One with a Write under way is in use: its
// bytes are not seen to go until all have gone.
func (c *sessionConn) checkIdle() {
	if c.writing.Load() > 0 {
		c.idle.Reset(c.idleTime)
		return
	}
	idle := time.Since(c.born) - time.Duration(c.touched.Load())
	if idle < c.idleTime {
		c.idle.Reset(c.idleTime - idle)
		return
	}
	c.Close()
}

// dropSession closes a session because the Manager wants it.
func (i *Instance) dropSession(c *sessionConn, reason string) {
	i.mu.Lock()
	fs := append([]func(SessionClose){}, i.onClose...)
	i.mu.Unlock()
	if len(fs) > 0 {
		finished := make(chan struct{})
		go func() {
			defer close(finished)
			for _, f := range fs {
				f(SessionClose{Conn: c.given, Name: c.name, Reason: reason})
			}
		}()
		late := time.NewTimer(i.cfg.DrainTimeout / 2)
		select {
		case <-finished:
		case <-i.stopped.Done(): // the session is closed by now
		case <-late.C:
			i.log.Warn("functions given to OnSessionClose did not return in time", "session", c.name)
		}
		late.Stop()
	}
	c.once.Do(func() {
		c.dropped.Store(true)
		c.forget()
		c.Conn.Close()
		i.step(InstanceInput{Kind: InstanceInputConnDropped, Conn: c.number})
	})
}
