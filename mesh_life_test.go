package ssmmp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// A lifeMesh is a mesh in virtual time whose services do nothing by
// themselves: the test holds each instance, both ends of every session, and
// the way of every agent to the Manager.
type lifeMesh struct {
	*mesh
	cfg      ManagerConfig
	network  *MemNetwork
	services map[string]Launcher // those that are not kept

	kept map[InstanceID]*keptInstance // guarded by mesh.mu
}

// A lifeNode is an agent whose way to the Manager is a gate.
type lifeNode struct {
	*node
	gate *gate
}

// A keptInstance is an instance in the hands of its test.
type keptInstance struct {
	*Instance
	exit     chan func() error // has the instance's function return as this one does
	mesh     *lifeMesh
	accepted []net.Conn // guarded by mesh.mu
}

// lifeGraph is a gateway that reaches a regular service over P, and a storage
// service both over Pd and through the regular one's Q.
func lifeGraph(t testing.TB, name string, port uint16) *Graph {
	t.Helper()
	g, err := NewGraph(name).
		Gateway("gw", FixedPorts{"S": port}, Out{"P", "Pd"}).
		Regular("mid", In{"S"}, Out{"Q"}).
		Storage("db", In{"S"}).
		Edge("gw", "P", "S", "mid").
		Edge("gw", "Pd", "S", "db").
		Edge("mid", "Q", "S", "db").
		Build()
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// newLifeMesh starts a Manager of lifeGraph, unless cfg has others, and as
// many nodes with all services.
func newLifeMesh(t testing.TB, cfg ManagerConfig, nodes int, services map[string]Launcher) *lifeMesh {
	t.Helper()
	if cfg.Graphs == nil {
		cfg.Graphs = []*Graph{lifeGraph(t, "life", 8080)}
	}
	s := &lifeMesh{cfg: cfg, network: NewMemNetwork(), services: services, kept: map[InstanceID]*keptInstance{}}
	s.mesh = &mesh{t: t, address: "10.0.0.100:55555", instances: map[InstanceID]*Instance{}}
	s.managers = s.host("10.0.0.100")
	s.start(cfg)
	for n := range nodes {
		s.node(n+1, "gw", "mid", "db")
	}
	return s
}

func (s *lifeMesh) host(addr string) *MemHost {
	h, err := s.network.Host(addr)
	if err != nil {
		s.t.Fatal(err)
	}
	return h
}

// node starts the agent of 10.0.0.n with these services.
func (s *lifeMesh) node(n int, services ...string) *lifeNode {
	addr := fmt.Sprintf("10.0.0.%d", n)
	return s.agent(addr, addr, services...)
}

// agent starts an agent that says it is addr, on a host.
func (s *lifeMesh) agent(addr, on string, services ...string) *lifeNode {
	host := s.host(on)
	var repo []RepositoryEntry
	for _, name := range services {
		launcher := s.services[name]
		if launcher == nil {
			launcher = FuncLauncher(func(ctx context.Context, l Launch) error { return s.keep(ctx, l, host) })
		}
		repo = append(repo, RepositoryEntry{Service: name, Launcher: launcher})
	}
	g := &gate{MemHost: host, manager: s.address, conns: map[*gateConn]struct{}{}}
	n := s.addAgent(AgentConfig{Manager: s.address, Address: netip.MustParseAddr(addr), Repository: repo, Transport: g,
		Logger: testLogger("agent " + addr)})
	return &lifeNode{n, g}
}

// nodeGate returns the gate of a node, in the order in which they were added.
func (s *lifeMesh) nodeGate(n int) *gate { return s.nodes[n].transport.(*gate) }

// stateOf returns what the Manager makes of a node's agent.
func (s *lifeMesh) stateOf(n *lifeNode) AgentState {
	for _, a := range s.m.Snapshot().Agents {
		if a.Address == n.addr {
			return a.State
		}
	}
	return ""
}

// keep is the function of an instance that does what its test does with it.
func (s *lifeMesh) keep(ctx context.Context, l Launch, host *MemHost) error {
	p := &processTransport{MemHost: host}
	inst, err := JoinWith(ctx, JoinConfig{Launch: l, Transport: p, Logger: testLogger(l.Service), IdleTimeout: -1})
	if err != nil {
		return err
	}
	// It ends as a process does: its connections close, and it says no more.
	defer inst.Close()
	defer p.end()
	k := &keptInstance{Instance: inst, exit: make(chan func() error, 1), mesh: s}
	for _, sock := range l.Sockets {
		ln, err := inst.Listen(sock.Socket)
		if err != nil {
			return err
		}
		go func() {
			for {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				s.mu.Lock()
				k.accepted = append(k.accepted, conn)
				s.mu.Unlock()
			}
		}()
	}
	s.mu.Lock()
	s.kept[l.ID] = k
	s.mu.Unlock()
	select {
	case <-inst.Done():
		return nil
	case f := <-k.exit:
		return f()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// of returns the running instances of a service, oldest first.
func (s *lifeMesh) of(service string) []*keptInstance {
	synctest.Wait()
	var all []*keptInstance
	for _, i := range s.running(service) {
		s.mu.Lock()
		k := s.kept[i.ID]
		s.mu.Unlock()
		if k != nil {
			all = append(all, k)
		}
	}
	return all
}

// one returns the only running instance of a service.
func (s *lifeMesh) one(service string) *keptInstance {
	s.t.Helper()
	all := s.of(service)
	if len(all) != 1 {
		s.t.Fatalf("%d instances of %s run, want 1; %+v", len(all), service, s.m.Snapshot().Instances)
	}
	return all[0]
}

// dial opens a session that must succeed, and returns both its ends.
func (s *lifeMesh) dial(from *keptInstance, plug string) (source, dest net.Conn) {
	s.t.Helper()
	conn, err := from.Dial(s.ctx, plug)
	if err != nil {
		s.t.Fatal(err)
	}
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.kept {
		for _, c := range k.accepted {
			if c.RemoteAddr().String() == conn.LocalAddr().String() && c.LocalAddr().String() == conn.RemoteAddr().String() {
				return conn, c
			}
		}
	}
	s.t.Fatal("the destination did not accept the session")
	return nil, nil
}

// begin deploys the first graph and returns its gateway.
func (s *lifeMesh) begin() *keptInstance {
	s.t.Helper()
	s.deploy(s.cfg.Graphs[0].Name)
	return s.one("gw")
}

// history returns all events so far, once nothing moves any more.
func (s *lifeMesh) history() []Event {
	synctest.Wait()
	last := s.m.Snapshot().Seq
	var all []Event
	if last == 0 {
		return nil
	}
	for ev := range s.m.Events(context.Background(), 0) {
		if all = append(all, ev); ev.Seq >= last {
			break
		}
	}
	return all
}

// events returns the events of one kind for which f holds, if there is an f.
func (s *lifeMesh) events(kind EventKind, f func(Event) bool) []Event {
	return slices.DeleteFunc(s.history(), func(ev Event) bool { return ev.Kind != kind || f != nil && !f(ev) })
}

func (s *lifeMesh) starts(service string) int {
	return len(s.events(EventInstanceRequested, ofService(service)))
}

func ofService(name string) func(Event) bool {
	return func(ev Event) bool { return ev.Service == name }
}

func ofInstance(id InstanceID) func(Event) bool {
	return func(ev Event) bool { return ev.Instance == id }
}

// ended returns how an instance ended; it must have.
func (s *lifeMesh) ended(id InstanceID) Event {
	s.t.Helper()
	all := s.events(EventInstanceEnded, ofInstance(id))
	if len(all) != 1 {
		s.t.Fatalf("instance %d ended %d times, want once", id, len(all))
	}
	return all[0]
}

// restartManager puts a fresh Manager in the place of the old one.
func (s *lifeMesh) restartManager() {
	s.m.Close()
	synctest.Wait()
	cfg := s.cfg
	cfg.Transport, cfg.Address, cfg.Logger = s.managers, s.address, testLogger("manager")
	m, err := NewManager(cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	ln, err := s.managers.Listen(s.ctx, s.address)
	if err != nil {
		s.t.Fatal(err)
	}
	s.m = m
	s.wg.Go(func() { m.Serve(s.ctx, ln) })
}

// close ends the mesh, and holds what is true of every history.
func (s *lifeMesh) close() {
	s.t.Helper()
	s.checkHistory()
	s.mesh.close()
}

// checkHistory holds the invariants of a history from its beginning.
func (s *lifeMesh) checkHistory() {
	s.t.Helper()
	type end struct {
		storage  string
		stopping bool
	}
	live := map[InstanceID]*end{}
	storage := map[string]InstanceID{}
	used := map[InstanceID]bool{}
	open := map[SessionID]Event{}
	for n, ev := range s.history() {
		if ev.Seq != uint64(n)+1 {
			s.t.Fatalf("event %d has the sequence number %d", n, ev.Seq)
		}
		switch ev.Kind {
		case EventInstanceRequested:
			if used[ev.Instance] {
				s.t.Errorf("%d: %v: this id was used before", ev.Seq, ev)
			}
			used[ev.Instance] = true
			i := &end{}
			if ev.Service == "db" {
				i.storage = ev.Graph + "/" + ev.Vertex
				if other := storage[i.storage]; other != 0 {
					s.t.Errorf("%d: %v: %d is live", ev.Seq, ev, other)
				}
				storage[i.storage] = ev.Instance
			}
			live[ev.Instance] = i
		case EventInstanceStopping:
			live[ev.Instance].stopping = true
		case EventInstanceEnded:
			i := live[ev.Instance]
			if i == nil {
				s.t.Fatalf("%d: %v: not live", ev.Seq, ev)
			}
			delete(storage, i.storage)
			delete(live, ev.Instance)
			for _, o := range open {
				if o.Source == ev.Instance || o.Destination == ev.Instance {
					s.t.Errorf("%d: %v: its session %v is there", ev.Seq, ev, o.Session)
				}
			}
		case EventSessionOffered:
			src, dst := live[ev.Source], live[ev.Destination]
			if src == nil || dst == nil || src.stopping || dst.stopping {
				s.t.Errorf("%d: %v: an end is not live", ev.Seq, ev)
			}
			if _, again := open[ev.Session]; again {
				s.t.Errorf("%d: %v: offered twice", ev.Seq, ev)
			}
			open[ev.Session] = ev
		case EventSessionOpened:
			if _, ok := open[ev.Session]; !ok {
				s.t.Errorf("%d: %v: not offered", ev.Seq, ev)
			}
		case EventSessionClosed:
			if _, ok := open[ev.Session]; !ok {
				s.t.Errorf("%d: %v: closed twice, or never offered", ev.Seq, ev)
			}
			delete(open, ev.Session)
		}
	}
	snap := s.m.Snapshot()
	if len(snap.Instances) != len(live) || len(snap.Sessions) != len(open) {
		s.t.Errorf("the state has %d instances and %d sessions, the history %d and %d", len(snap.Instances), len(snap.Sessions), len(live), len(open))
	}
}

// A processTransport belongs to one instance, and ends with it as the sockets
// of a process do.
type processTransport struct {
	*MemHost
	mu    sync.Mutex
	over  bool
	conns []net.Conn
}

func (p *processTransport) Dial(ctx context.Context, addr string) (net.Conn, error) {
	return p.add(p.MemHost.Dial(ctx, addr))
}

func (p *processTransport) Listen(ctx context.Context, addr string) (net.Listener, error) {
	ln, err := p.MemHost.Listen(ctx, addr)
	if err != nil {
		return nil, err
	}
	return &processListener{ln, p}, nil
}

type processListener struct {
	net.Listener
	process *processTransport
}

func (l *processListener) Accept() (net.Conn, error) {
	return l.process.add(l.Listener.Accept())
}

func (p *processTransport) add(c net.Conn, err error) (net.Conn, error) {
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		c.Close()
		return nil, net.ErrClosed
	}
	p.conns = append(p.conns, c)
	return c, nil
}

func (p *processTransport) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.over = true
	for _, c := range p.conns {
		c.Close()
	}
}

// A gate is the transport of an agent. The way to the Manager can be shut.
type gate struct {
	*MemHost
	manager string
	mu      sync.Mutex
	isShut  bool
	conns   map[*gateConn]struct{}
	lag     atomic.Int64 // how late instances are read, in ns
}

func (g *gate) Listen(ctx context.Context, addr string) (net.Listener, error) {
	ln, err := g.MemHost.Listen(ctx, addr)
	if err != nil {
		return nil, err
	}
	return &gateListener{ln, g}, nil
}

type gateListener struct {
	net.Listener
	gate *gate
}

func (l *gateListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &lateConn{conn, l.gate}, nil
}

type lateConn struct {
	net.Conn
	gate *gate
}

func (c *lateConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if lag := time.Duration(c.gate.lag.Load()); lag > 0 {
		<-time.After(lag)
	}
	return n, err
}

func (g *gate) Dial(ctx context.Context, addr string) (net.Conn, error) {
	if addr != g.manager {
		return g.MemHost.Dial(ctx, addr)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.isShut {
		return nil, &net.OpError{Op: "dial", Net: "mem", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	}
	conn, err := g.MemHost.Dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	c := &gateConn{Conn: conn, gate: g}
	g.conns[c] = struct{}{}
	return c, nil
}

// shut ends the connection to the Manager and lets none begin.
func (g *gate) shut() {
	g.mu.Lock()
	g.isShut = true
	conns := g.conns
	g.conns = map[*gateConn]struct{}{}
	g.mu.Unlock()
	for c := range conns {
		c.Conn.Close()
	}
	synctest.Wait()
}

// hold lets no connection to the Manager begin, and leaves those that are.
func (g *gate) hold() {
	g.mu.Lock()
	g.isShut = true
	g.mu.Unlock()
}

func (g *gate) open() {
	g.mu.Lock()
	g.isShut = false
	g.mu.Unlock()
}

// sever ends the connection for the agent alone: the Manager is not told. It
// returns what tells the Manager after all.
func (g *gate) sever() (rejoin func()) {
	g.mu.Lock()
	conns := g.conns
	g.conns = map[*gateConn]struct{}{}
	g.mu.Unlock()
	for c := range conns {
		c.mu.Lock()
		c.severed = true
		c.mu.Unlock()
		c.Conn.SetReadDeadline(time.Now().Add(-time.Second))
	}
	return func() {
		for c := range conns {
			c.Conn.Close()
		}
	}
}

type gateConn struct {
	net.Conn
	gate    *gate
	mu      sync.Mutex
	severed bool
}

func (c *gateConn) isSevered() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.severed
}

func (c *gateConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.isSevered() {
		return 0, syscall.ECONNRESET
	}
	return n, err
}

func (c *gateConn) Write(b []byte) (int, error) {
	if c.isSevered() {
		return 0, syscall.ECONNRESET
	}
	return c.Conn.Write(b)
}

func (c *gateConn) Close() error {
	if c.isSevered() {
		return nil
	}
	c.gate.mu.Lock()
	delete(c.gate.conns, c)
	c.gate.mu.Unlock()
	return c.Conn.Close()
}

// wantStatus fails the test unless err is a StatusError with that status.
func wantStatus(t testing.TB, err error, status Status, is error) {
	t.Helper()
	var s *StatusError
	if !errors.As(err, &s) || s.Status != status || !errors.Is(err, is) {
		t.Fatalf("error %v; want status %v, which is %v", err, status, is)
	}
}
