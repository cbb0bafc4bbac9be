package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"

	"github.com/hashicorp/go-hclog"

	"github.com/ssmmp/ssmmp"
)

const (
	graphName = "load"
	// Four gateways dial six services each, in a place of the graph that
	// nobody else dials; every other one of those dials two of twelve storage
	// services: 40 instances.
	gateways, middles, storages = 4, 24, 12
	instances                   = gateways + middles + storages
	nodes                       = 4
)

// buildGraph returns a graph of 40 vertices, each of which gets an instance.
func buildGraph() (*ssmmp.Graph, error) {
	b := ssmmp.NewGraph(graphName)
	for g := range gateways {
		var out ssmmp.Out
		for m := g; m < middles; m += gateways {
			plug := fmt.Sprintf("P%d", m)
			out = append(out, plug)
			b.Edge(gateway(g), plug, fmt.Sprintf("S%d", m), middle(m))
		}
		b.Gateway(gateway(g), ssmmp.FixedPorts{"S": uint16(19000 + g)}, out)
	}
	for m := range middles {
		var out ssmmp.Out
		for k := range 2 {
			n, plug := (m+5*k)%storages, fmt.Sprintf("P%d.%d", m, k)
			out = append(out, plug)
			b.Edge(middle(m), plug, fmt.Sprintf("T%d", n), storage(n))
		}
		b.Regular(middle(m), ssmmp.In{fmt.Sprintf("S%d", m)}, out)
	}
	for n := range storages {
		b.Storage(storage(n), ssmmp.In{fmt.Sprintf("T%d", n)})
	}
	return b.Build()
}

func gateway(n int) string { return fmt.Sprintf("gateway%d", n) }
func middle(n int) string  { return fmt.Sprintf("middle%d", n) }
func storage(n int) string { return fmt.Sprintf("storage%d", n) }

// A mesh is a Manager and four agents of this process, each agent behind a
// proxy of its own, and processes that they execute.
type mesh struct {
	manager *ssmmp.Manager
	control *control
	proxies []*proxy
	ledger  *ledger // of what agents and Manager say to each other

	mu        sync.Mutex
	processes map[ssmmp.InstanceID]*process

	stop context.CancelFunc
	wg   sync.WaitGroup
	errs chan error // why an agent ended on its own
}

// A process is an instance as the operating system has it.
type process struct {
	ssmmp.Process
	ended bool
}

func startMesh(ctx context.Context, log hclog.Logger) (_ *mesh, err error) {
	m := &mesh{ledger: newLedger(), processes: map[ssmmp.InstanceID]*process{}, errs: make(chan error, nodes)}
	defer func() {
		if err != nil {
			m.close()
		}
	}()
	var life context.Context
	life, m.stop = context.WithCancel(ctx)
	g, err := buildGraph()
	if err != nil {
		return nil, err
	}
	// Addresses that hardly anybody else uses; where the system has only
	// 127.0.0.1, listening fails.
	net24 := [4]byte{127, byte(1 + rand.N(250)), byte(rand.N(250)), 0}
	addr := func(host byte) netip.Addr {
		net24[3] = host
		return netip.AddrFrom4(net24)
	}
	ln, err := net.Listen("tcp", netip.AddrPortFrom(addr(100), 0).String())
	if err != nil {
		return nil, err
	}
	m.manager, err = ssmmp.NewManager(ssmmp.ManagerConfig{
		Graphs: []*ssmmp.Graph{g}, Logger: log.Named("manager"), FirstInstance: 1, History: 256,
		HealthPeriod: healthPeriod, HealthMisses: 40, // a busy machine is slow
		FirstPort: 20000, LastPort: 29999, // where the system looks for no port of a connection
	})
	if err != nil {
		ln.Close()
		return nil, err
	}
	m.wg.Go(func() { m.manager.Serve(context.WithoutCancel(life), ln) })
	if m.control, err = startControl(); err != nil {
		return nil, err
	}
	var repository []ssmmp.RepositoryEntry
	for _, s := range g.Services {
		repository = append(repository, ssmmp.RepositoryEntry{Service: s.Name, Launcher: m.launcher()})
	}
	for n := range nodes {
		node := addr(byte(1 + n))
		front, err := net.Listen("tcp", netip.AddrPortFrom(node, 0).String())
		if err != nil {
			return nil, err
		}
		m.proxies = append(m.proxies, startProxy(front, ln.Addr().String(), m.ledger))
		agent, err := ssmmp.NewAgent(ssmmp.AgentConfig{
			Manager: front.Addr().String(), Address: node, Listen: netip.AddrPortFrom(node, 0).String(),
			Repository: repository, Logger: log.Named("agent"),
		})
		if err != nil {
			return nil, err
		}
		m.wg.Go(func() {
			if err := agent.Run(life); err != nil {
				m.errs <- err
			}
		})
	}
	return m, nil
}

// launcher executes this program again as an instance, and remembers it.
func (m *mesh) launcher() ssmmp.Launcher {
	self, err := os.Executable()
	if err != nil {
		self = os.Args[0]
	}
	return &launcher{m, ssmmp.CommandLauncher{Path: self, Args: []string{"service"}, Env: []string{controlEnv + "=" + m.control.ln.Addr().String()}}}
}

type launcher struct {
	m *mesh
	ssmmp.CommandLauncher
}

func (l *launcher) Launch(ctx context.Context, what ssmmp.Launch) (ssmmp.Process, error) {
	p, err := l.CommandLauncher.Launch(ctx, what)
	if err != nil {
		return nil, err
	}
	own := &process{Process: p}
	l.m.mu.Lock()
	l.m.processes[what.ID] = own
	l.m.mu.Unlock()
	l.m.wg.Go(func() {
		p.Wait()
		l.m.mu.Lock()
		own.ended = true
		l.m.mu.Unlock()
	})
	return p, nil
}

// kill ends an instance's process from outside, as SIGKILL does.
func (m *mesh) kill(id ssmmp.InstanceID) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.processes[id]
	if p == nil || p.ended {
		return errors.New("does not run")
	}
	process, err := os.FindProcess(p.PID())
	if err != nil {
		return err
	}
	return process.Kill()
}

// running returns the instances whose processes have not ended.
func (m *mesh) running() []ssmmp.InstanceID {
	m.mu.Lock()
	defer m.mu.Unlock()
	var ids []ssmmp.InstanceID
	for id, p := range m.processes {
		if !p.ended {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// close ends everything. What runs of an instance is killed by its agent.
func (m *mesh) close() {
	m.stop()
	for _, p := range m.proxies {
		p.thaw()
	}
	if m.manager != nil {
		defer m.wg.Wait()
		defer m.manager.Close()
	}
	if m.control != nil {
		m.control.close()
	}
	for _, p := range m.proxies {
		p.close()
	}
}
