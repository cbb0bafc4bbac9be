package ssmmptest

import (
	"fmt"
	"slices"
	"time"

	"github.com/ssmmp/ssmmp"
)

// What must hold of the mesh as a whole: now and then, and once faults have
// stopped.

// all compares the Manager's whole state with the model.
func (c *simCheck) all() {
	m := c.s.manager
	if m.dead || c.s.failure != nil {
		return
	}
	snap := m.core.Snapshot()
	if len(snap.Instances) != len(c.live) || len(snap.Sessions) != len(c.sessions) {
		c.fail("the state is what the events say", "%d instances and %d sessions, want %d and %d", len(snap.Instances), len(snap.Sessions), len(c.live), len(c.sessions))
		return
	}
	for k := range snap.Instances {
		i := &snap.Instances[k]
		o := c.live[i.ID]
		if o == nil || o.node != i.Node || o.vertex != i.Vertex || o.stopping != (i.State != ssmmp.InstanceStarting && i.State != ssmmp.InstanceRunning) ||
			!o.stopping && o.ready != (i.State == ssmmp.InstanceRunning) || o.open+o.offered != i.Sessions {
			c.fail("the state is what the events say", "%+v, and not %+v", *i, o)
			return
		}
	}
	for k := range snap.Sessions {
		x := &snap.Sessions[k]
		if o := c.sessions[x.ID]; o == nil || o.src != x.Source || o.dst != x.Destination || o.opened != (x.State != ssmmp.SessionOffered) {
			c.fail("the state is what the events say", "session %+v, and not %+v", *x, o)
			return
		}
	}
	p := m.core.Pending()
	if limit := 8*(len(c.live)+len(c.sessions)+len(c.ids)) + 64; p.Exchanges > limit || p.Waiting > limit*4 || p.Calls > 64+len(c.s.sim.Graphs) {
		c.fail("memory is bounded", "%+v with %d instances and %d sessions", p, len(c.live), len(c.sessions))
	}
	for id, a := range c.asked {
		if c.s.now-a.at > 10*time.Minute {
			delete(c.asked, id)
		}
	}
}

// unsettled says what is still wrong, now that no faults happen any more; empty
// if nothing is.
func (c *simCheck) unsettled() string {
	s := c.s
	m := s.manager
	if m.dead || m.frozen || len(m.held) > 0 {
		return "the Manager does not run"
	}
	snap := m.core.Snapshot()
	if p := m.core.Pending(); p.Exchanges > 0 || p.Waiting > 0 || p.Offers > 0 || len(c.commands) > 0 && len(s.deployed) > 0 {
		return fmt.Sprintf("the Manager waits: %+v", p)
	}
	if len(snap.Agents) != len(s.nodes) {
		return fmt.Sprintf("%d of %d agents are registered", len(snap.Agents), len(s.nodes))
	}
	for i := range snap.Agents {
		if snap.Agents[i].State != ssmmp.AgentUp {
			return fmt.Sprintf("agent %s is %s", snap.Agents[i].Address, snap.Agents[i].State)
		}
	}
	real := 0
	for _, n := range s.nodes {
		if n.dead || n.stopping {
			return n.name + " does not run"
		}
		p := n.core.Pending()
		if p.InFlight > 0 || p.Reports > 2*len(n.procs) || p.Relayed > len(n.procs) {
			return fmt.Sprintf("%s waits: %+v", n.name, p)
		}
		real += len(n.procs)
		for _, q := range n.procs {
			i := c.live[q.id]
			if i == nil || i.node != n.host.addr {
				return fmt.Sprintf("%s runs on %s, and the Manager does not know", q.name, n.host.name)
			}
			if q.core == nil || q.frozen {
				continue
			}
			if what := q.debt(); what != "" {
				return q.name + " owes " + what
			}
			if ip := q.core.Pending(); ip.Dials > 0 || ip.Conns != q.taken() || q.agent != nil && ip.Reports > 0 {
				return fmt.Sprintf("%s waits: %+v, %d sessions", q.name, ip, q.taken())
			}
		}
	}
	if real != len(snap.Instances) {
		return fmt.Sprintf("%d processes run, and the Manager knows of %d", real, len(snap.Instances))
	}
	for k := range snap.Instances {
		if i := &snap.Instances[k]; i.State != ssmmp.InstanceRunning {
			return fmt.Sprintf("%s %d is %s", i.Service, i.ID, i.State)
		}
	}
	known := map[simTriple]bool{}
	open := c.realSessions()
	for k := range snap.Sessions {
		x := &snap.Sessions[k]
		key := simTriple{x.Source, x.Destination, x.PlugPort, x.NewPort}
		if _, ok := open[key]; !ok || known[key] {
			return fmt.Sprintf("session %+v is not open", *x)
		}
		known[key] = true
	}
	for key, awake := range open {
		if awake && !known[key] {
			return fmt.Sprintf("a session from %d to %d is open, and the Manager does not know", key.src, key.dst)
		}
	}
	for _, g := range s.sim.Graphs {
		if !slices.Contains(s.deployed, g.Name) {
			continue
		}
		for _, v := range g.Gateways() {
			runs := false
			for k := range snap.Instances {
				runs = runs || snap.Instances[k].Graph == g.Name && snap.Instances[k].Vertex == v
			}
			if !runs {
				return fmt.Sprintf("gateway %s of %s does not run", v, g.Name)
			}
		}
	}
	for id, i := range c.live {
		for k := range i.requests {
			if r := &i.requests[k]; !r.decided && r.answered == 0 {
				return fmt.Sprintf("request %d of instance %d was never answered", r.id, id)
			}
		}
	}
	return ""
}

// taken counts the sessions that a process knows of.
func (p *simProc) taken() int {
	n := 0
	for _, e := range p.sessions {
		if e.taken {
			n++
		}
	}
	return n
}

// A simTriple names a session by its ends.
type simTriple struct {
	src, dst ssmmp.InstanceID
	m, l     uint16
}

// realSessions are those that an end holds. They are true when a process holds
// one that is not stopped.
func (c *simCheck) realSessions() map[simTriple]bool {
	open := map[simTriple]bool{}
	for _, n := range c.s.nodes {
		for _, p := range n.procs {
			for _, e := range p.sessions {
				src, dst := e.session.ends[0], e.session.ends[1]
				key := simTriple{src.p.id, dst.p.id, src.port, dst.port}
				open[key] = open[key] || !p.frozen && e.taken
			}
		}
	}
	return open
}

// reachable tells whether a plug leads to what an agent can execute.
func (c *simCheck) reachable(g *ssmmp.Graph, p *simProc, plug string) bool {
	i := c.live[p.id]
	if i == nil || i.graph != g.Name {
		return false
	}
	e := c.vertices[[2]string{i.graph, i.vertex}].edges[plug]
	v, _ := g.Vertex(e.To)
	for _, n := range c.s.nodes {
		for _, r := range n.cfg.Repository {
			if r.Service == v.Service {
				return true
			}
		}
	}
	return false
}
