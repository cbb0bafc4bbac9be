package ssmmptest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"

	"github.com/ssmmp/ssmmp"
)

// A Node is one node of a Cluster: a host with an agent and its instances.
type Node struct {
	c    *Cluster
	addr netip.Addr
	net  ssmmp.Transport

	// Guarded by c.mu.
	off   bool
	agent *agentRun // nil when it crashed
}

// An agentRun is the life of one agent, and of the instances that it executed.
type agentRun struct {
	process   *process
	dead      bool
	instances map[ssmmp.InstanceID]*process
	stop      context.CancelFunc
	done      chan struct{} // closed when Run has returned
	err       error         // of Run
}

// AddNode adds a node and starts its agent. It does not wait for the agent to
// register: Settle does.
func (c *Cluster) AddNode() (*Node, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := len(c.nodes)
	if n == maxNodes {
		return nil, fmt.Errorf("ssmmptest: a cluster has at most %d nodes", maxNodes)
	}
	addr := c.net.node(n)
	host, err := c.host(addr)
	if err != nil {
		return nil, err
	}
	node := &Node{c: c, addr: addr, net: host}
	if err := node.start(); err != nil {
		return nil, err
	}
	c.nodes = append(c.nodes, node)
	return node, nil
}

// Nodes returns all nodes in the order in which they were added, also those
// that crashed.
func (c *Cluster) Nodes() []*Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.nodes)
}

// Node returns the i-th node, from 0, or nil if there are not so many.
func (c *Cluster) Node(i int) *Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i < 0 || i >= len(c.nodes) {
		return nil
	}
	return c.nodes[i]
}

// NodeAt returns the node with that address, or nil.
func (c *Cluster) NodeAt(addr netip.Addr) *Node {
	for _, n := range c.Nodes() {
		if n.addr == addr {
			return n
		}
	}
	return nil
}

// Addr returns the node's address.
func (n *Node) Addr() netip.Addr { return n.addr }

// Hosts returns the node as Faults knows it.
func (n *Node) Hosts() Hosts { return Hosts{n.addr} }

// Crash has the node lose its power: its agent and all its instances are gone
// without a word, and nobody at the other ends of their connections is told.
func (n *Node) Crash() error {
	n.c.mu.Lock()
	off := n.off
	n.off = true
	n.c.mu.Unlock()
	if off {
		return fmt.Errorf("ssmmptest: node %s has no power", n.addr)
	}
	n.c.Faults.power(n.addr, false)
	n.CrashAgent() // an error is that none runs
	return nil
}

// CrashAgent ends the agent as kill -9 does. Functions have no life without
// it: its instances end too, and for both the system closes their connections.
func (n *Node) CrashAgent() error {
	c := n.c
	c.mu.Lock()
	a := n.agent
	n.agent = nil
	var dying []*process
	if a != nil {
		a.dead = true
		dying = append(slices.Collect(maps.Values(a.instances)), a.process)
	}
	c.mu.Unlock()
	if a == nil {
		return fmt.Errorf("ssmmptest: no agent runs on %s", n.addr)
	}
	for _, p := range dying {
		p.kill()
	}
	a.stop()
	<-a.done
	return nil
}

// Start switches a node that lost its power on again, and starts an agent where
// none runs. It does not wait for the agent to register: Settle does.
func (n *Node) Start() error {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	if n.agent != nil {
		return fmt.Errorf("ssmmptest: an agent runs on %s", n.addr)
	}
	return n.start()
}

// start starts an agent. c.mu is held.
func (n *Node) start() error {
	c := n.c
	if c.closed {
		return net.ErrClosed
	}
	a := &agentRun{process: newProcess(n.net), instances: map[ssmmp.InstanceID]*process{}, done: make(chan struct{})}
	cfg := c.cfg.Agent
	cfg.Manager, cfg.Address, cfg.Transport = c.managerAddress(), n.addr, a.process
	cfg.Logger = c.log.Named("agent " + n.addr.String())
	cfg.Repository = c.repository(n, a)
	agent, err := ssmmp.NewAgent(cfg)
	if err != nil {
		return err
	}
	n.off = false
	c.Faults.power(n.addr, true)
	ctx, stop := context.WithCancel(context.Background())
	a.stop, n.agent = stop, a
	go func() {
		defer close(a.done)
		err := agent.Run(ctx)
		c.mu.Lock()
		a.err = err
		c.mu.Unlock()
	}()
	return nil
}

// repository has all services of all graphs.
func (c *Cluster) repository(n *Node, a *agentRun) (repo []ssmmp.RepositoryEntry) {
	seen := map[string]bool{}
	for _, g := range c.cfg.Graphs {
		for _, s := range g.Services {
			if seen[s.Name] {
				continue
			}
			seen[s.Name] = true
			f := c.cfg.Services[s.Name]
			if f == nil {
				f = Answer
			}
			repo = append(repo, ssmmp.RepositoryEntry{Service: s.Name, Launcher: &clusterLauncher{n, a, f}})
		}
	}
	return repo
}

// Kill ends an instance as kill -9 does: it says nothing more, and the system
// closes its connections.
func (c *Cluster) Kill(id ssmmp.InstanceID) error {
	c.mu.Lock()
	var p *process
	for _, n := range c.nodes {
		if n.agent != nil && n.agent.instances[id] != nil {
			p = n.agent.instances[id]
		}
	}
	c.mu.Unlock()
	if p == nil {
		return fmt.Errorf("ssmmptest: instance %d does not run: %w", id, ssmmp.ErrNotFound)
	}
	p.kill()
	return nil
}

// Running returns the ids of the instances whose functions run, whatever the
// Manager thinks, in order.
func (c *Cluster) Running() (ids []ssmmp.InstanceID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.nodes {
		if n.agent != nil {
			ids = slices.AppendSeq(ids, maps.Keys(n.agent.instances))
		}
	}
	slices.Sort(ids)
	return ids
}

var errNoPower = errors.New("ssmmptest: the agent has crashed")
