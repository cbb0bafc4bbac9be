package ssmmptest

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/ssmmp/ssmmp"
)

// settled is how long a cluster has to be at rest to be settled.
const settled = 50 * time.Millisecond

// Settle waits until the cluster is at rest: every agent that runs is
// registered, and every other lost; what the Manager takes to run is what runs,
// and the open sessions are those it knows; nothing is starting, ending or on
// its way; and every gateway of a deployed graph runs. When ctx ends before,
// the error says what was lacking at last.
//
// It waits for ever, if ctx lets it, where there is no rest: with a service
// that crashes each time, a partition, a workload that goes on.
func (c *Cluster) Settle(ctx context.Context) error {
	for {
		if err := c.await(ctx, c.unsettled); err != nil {
			return err
		}
		seq := c.Snapshot().Seq
		if !pause(ctx, settled) {
			return fmt.Errorf("ssmmptest: not at rest for %s: %w", settled, ctx.Err())
		}
		if c.unsettled() == "" && c.Snapshot().Seq == seq {
			return nil
		}
	}
}

// await waits until nothing is lacking.
func (c *Cluster) await(ctx context.Context, lacking func() string) error {
	for wait := time.Millisecond; ; wait = min(2*wait, 250*time.Millisecond) {
		what := lacking()
		if what == "" {
			return nil
		}
		c.mu.Lock()
		closed := c.closed
		c.mu.Unlock()
		if closed {
			return fmt.Errorf("ssmmptest: cluster: %w", net.ErrClosed)
		}
		if !pause(ctx, wait) {
			return fmt.Errorf("ssmmptest: %s: %w", what, ctx.Err())
		}
	}
}

// pause waits, and reports whether ctx let it.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// unregistered says which agent that runs the Manager does not have, if any.
func (c *Cluster) unregistered() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.agentsDiffer(c.manager.Snapshot())
}

// agentsDiffer says where the Manager's view of the agents is wrong. c.mu is
// held, here and below.
func (c *Cluster) agentsDiffer(s ssmmp.Snapshot) string {
	if c.managing == nil {
		return "no Manager runs"
	}
	states := map[netip.Addr]ssmmp.AgentState{}
	for _, a := range s.Agents {
		states[a.Address] = a.State
	}
	for _, n := range c.nodes {
		state, known := states[n.addr]
		switch {
		case n.agent == nil:
			if known && state != ssmmp.AgentIsLost {
				return fmt.Sprintf("agent %s has crashed and is %s", n.addr, state)
			}
		case n.agent.err != nil:
			return n.agent.err.Error()
		case !known:
			return fmt.Sprintf("agent %s is not registered", n.addr)
		case state != ssmmp.AgentUp:
			return fmt.Sprintf("agent %s runs and is %s", n.addr, state)
		}
	}
	return ""
}

// unsettled says what is not at rest, if anything.
func (c *Cluster) unsettled() string {
	if n := c.Faults.Stats().InFlight; n > 0 {
		return fmt.Sprintf("%d bytes are on their way", n)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.manager.Snapshot()
	for _, differ := range []func(ssmmp.Snapshot) string{c.agentsDiffer, c.gatewaysDiffer, c.instancesDiffer, c.sessionsDiffer} {
		if what := differ(s); what != "" {
			return what
		}
	}
	return ""
}

// gatewaysDiffer says which deployed gateway does not run.
func (c *Cluster) gatewaysDiffer(s ssmmp.Snapshot) string {
	type place struct{ graph, vertex string }
	standing := map[place]bool{}
	for _, i := range s.Instances {
		standing[place{i.Graph, i.Vertex}] = true
	}
	for _, deployed := range s.Graphs {
		if deployed.Retiring {
			return fmt.Sprintf("graph %s is being undeployed", deployed.Name)
		}
		for _, g := range c.cfg.Graphs {
			if g.Name != deployed.Name {
				continue
			}
			for _, vertex := range g.Gateways() {
				if !standing[place{g.Name, vertex}] {
					return fmt.Sprintf("gateway %s does not run", vertex)
				}
			}
		}
	}
	return ""
}

// instancesDiffer says where the Manager's view of the instances is wrong, or
// which of them is on its way to another state.
func (c *Cluster) instancesDiffer(s ssmmp.Snapshot) string {
	run := map[ssmmp.InstanceID]netip.Addr{}
	for _, n := range c.nodes {
		if n.agent != nil {
			for id := range n.agent.instances {
				run[id] = n.addr
			}
		}
	}
	for _, i := range s.Instances {
		switch node, runs := run[i.ID]; {
		case !runs:
			return fmt.Sprintf("instance %d of %s is %s and does not run", i.ID, i.Service, i.State)
		case node != i.Node:
			return fmt.Sprintf("instance %d of %s runs on %s, not on %s", i.ID, i.Service, node, i.Node)
		case i.State != ssmmp.InstanceRunning:
			return fmt.Sprintf("instance %d of %s is %s", i.ID, i.Service, i.State)
		}
		delete(run, i.ID)
	}
	for _, id := range slices.Sorted(maps.Keys(run)) {
		return fmt.Sprintf("instance %d runs and the Manager does not know it", id)
	}
	return ""
}

// sessionsDiffer says where the Manager's view of the sessions is wrong, or
// which of them is on its way to another state.
func (c *Cluster) sessionsDiffer(s ssmmp.Snapshot) string {
	type ends struct{ from, to netip.AddrPort }
	open := map[ends]bool{} // connections with an open end
	for _, n := range c.nodes {
		if n.agent == nil {
			continue
		}
		for _, p := range n.agent.instances {
			for local, remote := range p.conns() {
				open[ends{local, remote}] = true
			}
		}
	}
	known := map[ends]bool{}
	for _, session := range s.Sessions {
		if session.State != ssmmp.SessionOpen {
			return fmt.Sprintf("session %s is %s", session.ID, session.State)
		}
		e := ends{netip.AddrPortFrom(session.SourceAddress, session.PlugPort), netip.AddrPortFrom(session.DestinationAddress, session.SocketPort)}
		if !open[e] {
			return fmt.Sprintf("session %s is open and has no connection", session.ID)
		}
		known[e] = true
	}
	nodes := map[netip.Addr]bool{}
	for _, n := range c.nodes {
		nodes[n.addr] = true
	}
	for e := range open {
		back := ends{e.to, e.from}
		if open[back] && nodes[e.from.Addr()] && nodes[e.to.Addr()] && !known[e] && !known[back] {
			return fmt.Sprintf("there is a connection from %s to %s that is no session", e.from, e.to)
		}
	}
	return ""
}
