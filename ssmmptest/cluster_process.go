package ssmmptest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"

	"github.com/ssmmp/ssmmp"
)

// A process is the part of a system's process that a cluster needs: the sockets
// that close when it is killed. It is the Transport of what runs in it.
type process struct {
	inner ssmmp.Transport
	alive context.Context // done when the process has ended
	end   context.CancelFunc
	onEnd func() // called then; may be nil

	mu      sync.Mutex
	sockets map[io.Closer]struct{}
	killed  bool // rather than at its own end
}

func newProcess(inner ssmmp.Transport) *process {
	p := &process{inner: inner, sockets: map[io.Closer]struct{}{}}
	p.alive, p.end = context.WithCancel(context.Background())
	return p
}

// kill ends the process: what it says from now on nobody hears.
func (p *process) kill() { p.exit(true) }

// exit closes all sockets, and the process can open no more.
func (p *process) exit(killed bool) {
	p.mu.Lock()
	if p.alive.Err() != nil {
		p.mu.Unlock()
		return
	}
	p.killed = killed
	p.end()
	sockets := p.sockets
	p.sockets = nil
	p.mu.Unlock()
	for s := range sockets {
		s.Close()
	}
	if p.onEnd != nil {
		p.onEnd()
	}
}

// own adds a socket, or closes it when the process is dead.
func (p *process) own(s io.Closer) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sockets == nil {
		s.Close()
		return false
	}
	p.sockets[s] = struct{}{}
	return true
}

func (p *process) disown(s io.Closer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.sockets, s)
}

// conns returns the remote addresses of the connections that are open here, by
// their local ones.
func (p *process) conns() map[netip.AddrPort]netip.AddrPort {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := map[netip.AddrPort]netip.AddrPort{}
	for s := range p.sockets {
		if c, ok := s.(net.Conn); ok {
			all[addrPortOf(c.LocalAddr())] = addrPortOf(c.RemoteAddr())
		}
	}
	return all
}

func (p *process) Listen(ctx context.Context, addr string) (net.Listener, error) {
	ln, err := p.inner.Listen(ctx, addr)
	if err != nil {
		return nil, err
	}
	if !p.own(ln) {
		return nil, &net.OpError{Op: "listen", Net: "process", Err: net.ErrClosed}
	}
	return &processListener{ln, p}, nil
}

func (p *process) Dial(ctx context.Context, addr string) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(p.alive, cancel)()
	c, err := p.inner.Dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	if !p.own(c) {
		return nil, &net.OpError{Op: "dial", Net: "process", Err: net.ErrClosed}
	}
	return &processConn{c, p}, nil
}

type processListener struct {
	net.Listener
	p *process
}

func (l *processListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if !l.p.own(c) {
		return nil, &net.OpError{Op: "accept", Net: "process", Err: net.ErrClosed}
	}
	return &processConn{c, l.p}, nil
}

func (l *processListener) Close() error {
	l.p.disown(l.Listener)
	return l.Listener.Close()
}

type processConn struct {
	net.Conn
	p *process
}

func (c *processConn) Close() error {
	c.p.disown(c.Conn)
	return c.Conn.Close()
}

func (c *processConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return fmt.Errorf("ssmmptest: close write: %w", errors.ErrUnsupported)
}

var errKilled = fmt.Errorf("ssmmptest: its process was killed: %w", ssmmp.ErrClosed)

// A processStore is a Store that a process holds: killed, it writes no more.
type processStore struct {
	ssmmp.Store
	p *process
}

func (s *processStore) Append(ctx context.Context, events []ssmmp.Event) error {
	if s.p.alive.Err() != nil {
		return errKilled
	}
	return s.Store.Append(ctx, events)
}

func (s *processStore) Checkpoint(ctx context.Context, seq uint64, events []ssmmp.Event) error {
	if s.p.alive.Err() != nil {
		return errKilled
	}
	return s.Store.Checkpoint(ctx, seq, events)
}

// A clusterLauncher executes instances of one service on one node for one agent.
type clusterLauncher struct {
	node  *Node
	agent *agentRun
	f     ServiceFunc
}

func (l *clusterLauncher) Launch(ctx context.Context, launch ssmmp.Launch) (ssmmp.Process, error) {
	c := l.node.c
	i := &clusterInstance{process: newProcess(l.node.net), returned: make(chan struct{})}
	i.onEnd = func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(l.agent.instances, launch.ID)
	}
	c.mu.Lock()
	if l.agent.dead {
		c.mu.Unlock()
		return nil, &ssmmp.LaunchError{Service: launch.Service, ID: launch.ID, Err: errNoPower}
	}
	l.agent.instances[launch.ID] = i.process
	c.functions[i.process] = fmt.Sprintf("%s %d", launch.Service, launch.ID)
	c.mu.Unlock()
	inner, err := ssmmp.FuncLauncher(func(_ context.Context, launch ssmmp.Launch) error {
		defer l.returned(i)
		return l.run(i.process, launch)
	}).Launch(ctx, launch)
	if err != nil {
		l.returned(i)
		return nil, err
	}
	i.Process = inner
	return i, nil
}

// run is the life of an instance: it joins, is what its function is, and
// leaves if that returns without an error.
func (l *clusterLauncher) run(p *process, launch ssmmp.Launch) error {
	inst, err := ssmmp.JoinWith(p.alive, ssmmp.JoinConfig{Launch: launch, Transport: p, Logger: l.node.c.log.Named(launch.Service)})
	if err != nil {
		return err
	}
	left := false
	defer func() {
		if !left { // by an error or a panic: it has no last word
			p.exit(false)
		}
		inst.Close()
	}()
	err = l.f(p.alive, inst)
	left = err == nil
	return err
}

// returned is called when the function of an instance is at its end.
func (l *clusterLauncher) returned(i *clusterInstance) {
	i.exit(false)
	close(i.returned)
	c := l.node.c
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.functions, i.process)
	c.idle.Broadcast()
}

// A clusterInstance is an instance as its agent sees it. Killed, it has ended
// at once: that its function may go on for a while is the cluster's to know.
type clusterInstance struct {
	*process
	ssmmp.Process
	returned chan struct{} // closed when the function has
}

func (i *clusterInstance) Wait() ssmmp.Exit {
	<-i.alive.Done()
	if i.killed {
		return ssmmp.Exit{Code: -1, Signal: "SIGKILL"}
	}
	<-i.returned
	return i.Process.Wait()
}

func (i *clusterInstance) Kill() error {
	i.kill()
	return nil
}
