package ssmmptest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/ssmmp/ssmmp"
)

const (
	maxNodes = 250 * 250
	// clusterPatience is how long Close waits for functions that were told to
	// return, and NewCluster for the agents to register.
	clusterPatience = 30 * time.Second
)

// ManagerAddr and UserAddr are where a cluster's Manager runs, and where its
// users are. Its nodes begin at 10.0.0.1.
var (
	ManagerAddr = netip.AddrFrom4([4]byte{10, 255, 0, 1})
	UserAddr    = netip.AddrFrom4([4]byte{10, 255, 0, 2})
)

// A ClusterConfig describes a cluster. Graphs and Nodes have no default; the
// zero value of any other field means its own.
type ClusterConfig struct {
	// Graphs are the CNApps that can be deployed.
	Graphs []*ssmmp.Graph
	// Nodes is how many nodes there are at first, at least one.
	Nodes int
	// Services are the functions of services, by the services' names. Those
	// that are not here are Answer.
	Services map[string]ServiceFunc
	// Manager and Agent hold times and policies. What the cluster itself
	// decides (graphs, addresses, transports, repositories) has to be zero.
	// Instances are numbered from 1 by default, and the Manager's Store is in
	// memory.
	Manager ssmmp.ManagerConfig
	Agent   ssmmp.AgentConfig
	// Seed decides what chance would in the cluster's Faults.
	Seed uint64
	// Logger receives what happens; nothing is logged by default.
	Logger hclog.Logger
}

// Validate reports every fault of the description at once.
func (c *ClusterConfig) Validate() error {
	var faults []error
	fault := func(format string, args ...any) {
		faults = append(faults, fmt.Errorf("ssmmptest: ClusterConfig."+format, args...))
	}
	if c.Nodes < 1 || c.Nodes > maxNodes {
		fault("Nodes: %d: a cluster has 1 to %d nodes", c.Nodes, maxNodes)
	}
	m := c.Manager
	set := func(config string, fields map[string]bool) {
		for _, name := range slices.Sorted(maps.Keys(fields)) {
			if fields[name] {
				fault("%s.%s: is the cluster's to decide", config, name)
			}
		}
	}
	set("Manager", map[string]bool{
		"Graphs": m.Graphs != nil, "Address": m.Address != "", "Transport": m.Transport != nil, "Logger": m.Logger != nil,
	})
	m.Graphs = c.Graphs
	if err := m.Validate(); err != nil {
		faults = append(faults, err)
	}
	a := c.Agent
	set("Agent", map[string]bool{
		"Manager": a.Manager != "", "Address": a.Address.IsValid(), "Listen": a.Listen != "",
		"Repository": a.Repository != nil, "Transport": a.Transport != nil, "Logger": a.Logger != nil,
	})
	a.Manager, a.Address, a.Repository = "10.255.0.1:55555", netip.MustParseAddr("10.0.0.1"), nil
	if err := a.Validate(); err != nil {
		faults = append(faults, err)
	}
	known := map[string]bool{}
	ports := map[uint16]int{}
	for _, g := range c.Graphs {
		if g == nil {
			continue // the Manager's fault
		}
		for _, s := range g.Services {
			known[s.Name] = true
		}
		for _, vertex := range g.Gateways() {
			v, _ := g.Vertex(vertex)
			s, _ := g.Service(v.Service)
			for _, socket := range s.Sockets {
				ports[socket.Port]++
			}
		}
	}
	for _, port := range slices.Sorted(maps.Keys(ports)) {
		if c.Nodes > 0 && ports[port] > c.Nodes {
			fault("Nodes: %d: %d gateways want port %d, and each a node of its own for it", c.Nodes, ports[port], port)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Services)) {
		if !known[name] {
			fault("Services: %q: no graph has this service", name)
		}
		if c.Services[name] == nil {
			fault("Services: %q: no function", name)
		}
	}
	return errors.Join(faults...)
}

// A ClusterOption changes what NewCluster starts.
type ClusterOption func(*ClusterConfig)

// Nodes has the cluster begin with n nodes.
func Nodes(n int) ClusterOption { return func(c *ClusterConfig) { c.Nodes = n } }

// Service has f be the function of a service.
func Service(name string, f ServiceFunc) ClusterOption {
	return func(c *ClusterConfig) {
		if c.Services == nil {
			c.Services = map[string]ServiceFunc{}
		}
		c.Services[name] = f
	}
}

// A clusterNet is where the hosts of a cluster are.
type clusterNet struct {
	manager, users netip.Addr
	node           func(i int) netip.Addr
	transport      func(netip.Addr) (ssmmp.Transport, error)
}

func memNet() clusterNet {
	network := ssmmp.NewMemNetwork()
	return clusterNet{
		manager: ManagerAddr, users: UserAddr,
		node:      func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, byte(i / 250), byte(i%250 + 1)}) },
		transport: func(a netip.Addr) (ssmmp.Transport, error) { return network.Host(a.String()) },
	}
}

// A Cluster is a whole mesh in one process: the Manager, the agents and the
// instances are those of package ssmmp, over a network in memory with Faults in
// between, and services are Go functions. Made in a testing/synctest bubble it
// keeps the bubble's time.
//
// Whatever runs in it runs as if in a process of its own: it can be killed,
// and then its connections close and it says nothing any more. Its methods may
// be called by many goroutines at once.
type Cluster struct {
	// Faults lie between all hosts of the cluster: its nodes, ManagerAddr and
	// UserAddr.
	Faults *Faults

	cfg   ClusterConfig
	log   hclog.Logger
	net   clusterNet
	users *process

	mu        sync.Mutex // guards what follows
	manager   *ssmmp.Manager
	managing  *process      // nil while the Manager is crashed
	managed   chan struct{} // closed when its Serve has returned
	nodes     []*Node
	functions map[*process]string
	idle      sync.Cond // functions is empty
	closed    bool
}

// NewCluster starts a cluster of one node, or as many as Nodes says, with all
// services of the graph. When it cannot work the test fails at once. It ends
// with the test.
func NewCluster(t testing.TB, graph *ssmmp.Graph, options ...ClusterOption) *Cluster {
	t.Helper()
	cfg := ClusterConfig{Graphs: []*ssmmp.Graph{graph}, Nodes: 1}
	for _, o := range options {
		o(&cfg)
	}
	ctx, cancel := context.WithTimeout(context.Background(), clusterPatience)
	defer cancel()
	c, err := StartCluster(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, ev := range c.History() {
				t.Log(ev.Time.Format("15:04:05.000"), ev.Seq, ev)
			}
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// StartCluster starts a cluster and returns when all its agents are registered.
// ctx governs the start only. The caller has to close the cluster.
func StartCluster(ctx context.Context, cfg ClusterConfig) (*Cluster, error) {
	return startCluster(ctx, cfg, memNet())
}

func startCluster(ctx context.Context, cfg ClusterConfig, network clusterNet) (*Cluster, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.Graphs, cfg.Services = slices.Clone(cfg.Graphs), maps.Clone(cfg.Services)
	c := &Cluster{
		Faults: NewFaults(cfg.Seed), cfg: cfg, log: cfg.Logger, net: network, functions: map[*process]string{},
	}
	c.idle.L = &c.mu
	c.cfg.Manager.FirstInstance = cmp.Or(cfg.Manager.FirstInstance, 1)
	if cfg.Manager.Store == nil {
		c.cfg.Manager.Store = new(ssmmp.MemStore)
	}
	if c.log == nil {
		c.log = hclog.NewNullLogger()
	}
	users, err := c.host(c.net.users)
	if err != nil {
		return nil, err
	}
	c.users = newProcess(users)
	if err := c.StartManager(); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	for range cfg.Nodes {
		if _, err := c.AddNode(); err != nil {
			return nil, errors.Join(err, c.Close())
		}
	}
	if err := c.await(ctx, c.unregistered); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// host returns the Transport of a host of the cluster, with faults.
func (c *Cluster) host(addr netip.Addr) (ssmmp.Transport, error) {
	t, err := c.net.transport(addr)
	if err != nil {
		return nil, err
	}
	return c.Faults.Host(addr, t), nil
}

// managerAddress is where the Manager listens.
func (c *Cluster) managerAddress() string {
	return netip.AddrPortFrom(c.net.manager, ssmmp.ManagerPort).String()
}

// Manager returns the Manager; a crashed one until another is started.
func (c *Cluster) Manager() *ssmmp.Manager {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.manager
}

// Snapshot returns the Manager's state at this moment.
func (c *Cluster) Snapshot() ssmmp.Snapshot { return c.Manager().Snapshot() }

// History returns what the Manager recorded so far and still keeps.
func (c *Cluster) History() (events []ssmmp.Event) {
	m := c.Manager()
	last := m.Snapshot().Seq
	if last == 0 {
		return nil
	}
	for ev := range m.Events(context.Background(), 0) {
		events = append(events, ev)
		if ev.Seq >= last {
			break
		}
	}
	return events
}

// Deploy has the Manager deploy all graphs.
func (c *Cluster) Deploy(ctx context.Context) error {
	m := c.Manager()
	for _, g := range c.cfg.Graphs {
		if err := m.Deploy(ctx, g.Name); err != nil {
			return err
		}
	}
	return nil
}

// CrashManager ends the Manager as kill -9 does. Agents, instances and sessions
// go on.
func (c *Cluster) CrashManager() error {
	c.mu.Lock()
	m, p, served := c.manager, c.managing, c.managed
	c.managing = nil
	c.mu.Unlock()
	if p == nil {
		return errors.New("ssmmptest: no Manager runs")
	}
	p.kill()
	m.Close()
	<-served
	return nil
}

// StartManager starts a Manager in place of one that crashed. It has the store
// of the one before, and goes on from there.
func (c *Cluster) StartManager() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return net.ErrClosed
	case c.managing != nil:
		return errors.New("ssmmptest: a Manager runs")
	}
	host, err := c.host(c.net.manager)
	if err != nil {
		return err
	}
	p := newProcess(host)
	cfg := c.cfg.Manager
	cfg.Graphs, cfg.Transport, cfg.Logger = c.cfg.Graphs, p, c.log.Named("manager")
	cfg.Store = &processStore{cfg.Store, p}
	m, err := ssmmp.NewManager(cfg)
	if err != nil {
		return err
	}
	ln, err := p.Listen(context.Background(), c.managerAddress())
	if err != nil {
		m.Close()
		return err
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		m.Serve(context.Background(), ln)
	}()
	c.manager, c.managing, c.managed = m, p, served
	return nil
}

// Close kills everything in the cluster and waits for it. The error tells of
// functions of services that do not return when their context ends.
func (c *Cluster) Close() error {
	c.mu.Lock()
	closed := c.closed
	c.closed = true
	nodes := slices.Clone(c.nodes)
	c.mu.Unlock()
	if closed {
		return nil
	}
	for _, n := range nodes {
		n.CrashAgent() // an error is that none runs
	}
	c.CrashManager()
	c.users.kill()
	err := c.Faults.Close()

	late := time.AfterFunc(clusterPatience, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.idle.Broadcast()
	})
	defer late.Stop()
	begin := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.functions) > 0 && time.Since(begin) < clusterPatience {
		c.idle.Wait()
	}
	for _, name := range slices.Sorted(maps.Values(c.functions)) {
		err = errors.Join(err, fmt.Errorf("ssmmptest: the function of %s does not return though its context ended", name))
	}
	return err
}
