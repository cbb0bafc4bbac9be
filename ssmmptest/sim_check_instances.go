package ssmmptest

import (
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/ssmmp/ssmmp"
)

// What must hold of agents and instances, by the Manager's events.

// strangers returns what an agent says it runs, and should not.
func (c *simCheck) strangers(m *ssmmp.InitiationRequest) (list []ssmmp.InstanceID) {
	last := ssmmp.InstanceID(0)
	for part := range strings.SplitSeq(m.Extension("x_instances"), ", ") {
		id, _ := strconv.ParseInt(part, 10, 64)
		if strings.HasPrefix(part, "+") {
			id += int64(last)
		}
		last = ssmmp.InstanceID(id)
		if i := c.live[last]; c.ids[last] != nil && (i == nil || i.node != m.AgentNetworkAddress) {
			list = append(list, last)
		}
	}
	return list
}

// event applies an event to the model.
func (c *simCheck) event(in *ssmmp.ManagerInput, ev *ssmmp.Event) {
	cfg := &c.s.manager.cfg
	i := c.live[ev.Instance]
	switch ev.Kind {
	case ssmmp.EventInstanceReady, ssmmp.EventInstanceStopping, ssmmp.EventInstanceEnded, ssmmp.EventHealthChanged:
		if i == nil {
			c.fail("events concern what lives", "%s", ev)
			return
		}
	}
	switch ev.Kind {
	case ssmmp.EventGraphDeployed:
		for _, v := range c.ofGraph[ev.Graph] {
			v.quick = 0
		}

	case ssmmp.EventAgentRegistered:
		a := c.agents[ev.Node]
		if a == nil {
			a = &simAgent{}
			c.agents[ev.Node] = a
		}
		if a.up && !c.replaying {
			c.s.hit(SimSuperseded)
		}
		a.up, a.lost, a.heard = true, false, in.Now-c.skipped
		if m, ok := in.Msg.(*ssmmp.InitiationRequest); ok && ev.Cause != "new repository" {
			a.strangers = c.strangers(m)
		}

	case ssmmp.EventAgentRefused:
		if e := c.s.manager.ends[in.Conn]; e != nil && !c.replaying && strings.Contains(ev.Cause, "another agent") {
			if n, ok := e.peer().who.owner.(*simNode); ok && n.kept != nil {
				c.fail("an agent that kept its state is the one before", "%s: %s", n.name, ev)
			}
		}

	case ssmmp.EventAgentAway:
		if a := c.agents[ev.Node]; a != nil {
			a.up, a.awaySince = false, in.Now
		}

	case ssmmp.EventAgentLost:
		a := c.agents[ev.Node]
		if a == nil || a.up || a.lost || in.Now-a.awaySince < cfg.LostAfter {
			c.fail("an agent is lost only when it was away for long", "%s", ev)
			return
		}
		if c.mostAway() && !c.replaying {
			c.fail("no agent is lost while most of them are away", "%s", ev)
		}
		a.lost = true

	case ssmmp.EventStormBegan:
		c.storm = true

	case ssmmp.EventStormEnded:
		c.storm, c.calm = false, in.Now

	case ssmmp.EventManagerStarted:
		c.calm = in.Now // all of them get the time to come back

	case ssmmp.EventInstanceRequested:
		v := c.vertices[[2]string{ev.Graph, ev.Vertex}]
		a := c.agents[ev.Node]
		if ev.Instance <= c.greatest && !c.replaying {
			c.fail("no id is used twice", "%s after %d", ev, c.greatest)
		}
		c.greatest = max(c.greatest, ev.Instance)
		if v == nil || a == nil || !a.up {
			c.fail("an instance is requested where an agent is", "%s", ev)
			return
		}
		if v.kind == ssmmp.Storage && v.live > 0 {
			c.fail("one instance of a storage service runs", "%s", ev)
		}
		if v.kind == ssmmp.Gateway && v.live > 0 {
			c.fail("one instance of a gateway runs", "%s", ev)
		}
		if n := cfg.InstancesPerService; n > 0 && v.live >= n {
			c.fail("no more instances than InstancesPerService", "%s", ev)
		}
		if v.quick >= simQuickEnds && in.Now-v.lastEnd < time.Second {
			c.fail("starts are held back after quick ends", "%s, %d quick ends, the last %v ago", ev, v.quick, in.Now-v.lastEnd)
		}
		for _, id := range a.strangers {
			if p := c.ids[id]; (p.running || p.orphans) && !c.replaying {
				c.fail("nothing is placed where a stranger runs", "%s, where %s runs", ev, p.name)
			}
		}
		v.live++
		c.live[ev.Instance] = &simInstance{graph: ev.Graph, vertex: ev.Vertex, service: ev.Service, node: ev.Node, sockets: ev.Sockets,
			requested: in.Now, idleSince: in.Now}
		for _, p := range ev.Sockets {
			at := netip.AddrPortFrom(ev.Node, p.Port)
			if other, held := c.ports[at]; held {
				c.fail("no port is held twice on a node", "%s: %s is held by %d", ev, at, other)
			}
			if t, ok := c.freed[at]; ok && p.Port >= cfg.FirstPort && p.Port <= cfg.LastPort && in.Now-t < cfg.PortLinger {
				c.fail("a freed port rests", "%s: %s was freed %v ago", ev, at, in.Now-t)
			}
			c.ports[at] = ev.Instance
		}

	case ssmmp.EventInstanceReady:
		if i.ready || c.ids[ev.Instance] == nil {
			c.fail("an instance is ready once, and was executed", "%s", ev)
		}
		i.ready, i.readyAt = true, in.Now

	case ssmmp.EventInstanceStopping:
		if i.stopping {
			c.fail("a shutdown begins once", "%s", ev)
		}
		i.stopping = true
		if ev.Cause == "idle" && (i.open+i.offered > 0 || in.Now-i.idleSince < cfg.IdleAfter) {
			c.fail("only who was without a session for IdleAfter is idle", "%s: %d sessions, idle for %v", ev, i.open+i.offered, in.Now-i.idleSince)
		}

	case ssmmp.EventInstanceEnded:
		if i.open+i.offered > 0 {
			c.fail("sessions close before their instance ends", "%s: %d sessions", ev, i.open+i.offered)
		}
		if p, a := c.ids[ev.Instance], c.agents[i.node]; p != nil && !p.finished && !p.ended && !(a != nil && a.lost) && p.running && !c.replaying {
			c.fail("what ended does not run", "%s, and its process runs on %s", ev, p.host.name)
		}
		v := c.vertices[[2]string{ev.Graph, ev.Vertex}]
		v.live--
		if !i.stopping {
			if i.ready && in.Now-i.readyAt >= simQuickEnd || in.Now-v.lastEnd > simQuickEnd+time.Minute {
				v.quick = 0
			}
			v.quick++
			v.lastEnd = in.Now
		}
		for _, p := range i.sockets {
			at := netip.AddrPortFrom(i.node, p.Port)
			delete(c.ports, at)
			c.freed[at] = in.Now
		}
		delete(c.live, ev.Instance)

	default:
		c.sessionEvent(in, ev)
	}
}
