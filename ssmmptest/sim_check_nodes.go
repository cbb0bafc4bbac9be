package ssmmptest

import (
	"time"

	"github.com/ssmmp/ssmmp"
)

// What must hold of what agents and instances do.

// beforeAgent looks at an input before an agent does.
func (c *simCheck) beforeAgent(n *simNode, in *ssmmp.AgentInput) {
	if e := n.ends[in.Conn]; in.Kind != ssmmp.AgentInputMessage || e == n.manager && e != nil && e.peer().who != &c.s.manager.simActor {
		return // what an old Manager wants does not count
	}
	switch m := in.Msg.(type) {
	case *ssmmp.HardShutdownRequest:
		if p := n.byID[m.ServiceInstanceID]; p != nil {
			p.mayDie = true
		}
	case *ssmmp.TerminationInfo:
		if p := n.byID[m.ServiceInstanceID]; p != nil && n.ends[in.Conn] != nil && n.ends[in.Conn].peer().who == &p.simActor {
			p.mayDie = true
		}
	case *ssmmp.ExecutionRequest:
		n.executes[m.MessageID] = m.ServiceInstanceID
	}
}

// agentOutput looks at what an agent wants done.
func (c *simCheck) agentOutput(n *simNode, in *ssmmp.AgentInput, o *ssmmp.AgentOutput) {
	switch o.Kind {
	case ssmmp.AgentOutputLaunch:
		id := o.Launch.ID
		want, ok := c.intents[id]
		if !ok || want.node != n.host.addr || want.service != o.Launch.Service {
			c.fail("nothing executes without a durable intent", "%s launches %s %d", n.name, o.Launch.Service, id)
		}
		if c.ids[id] != nil {
			c.fail("no id is executed twice", "%s launches %s %d", n.name, o.Launch.Service, id)
		}
	case ssmmp.AgentOutputKill:
		p := n.byID[o.Instance]
		if p != nil {
			p.killAsked = true
		}
		if p != nil && !p.mayDie && !n.stopping && n.local(c.s.now)-p.asked < n.cfg.StartTimeout {
			c.fail("nothing is killed that nobody wants killed", "%s kills %s", n.name, p.name)
		}
	case ssmmp.AgentOutputSend:
		c.agentSends(n, in, o)
	}
}

func (c *simCheck) agentSends(n *simNode, in *ssmmp.AgentInput, o *ssmmp.AgentOutput) {
	e := n.ends[o.Conn]
	if e == nil {
		return
	}
	if e == n.manager {
		_, again := in.Msg.(*ssmmp.InitiationResponse) // what was reported before is sent again
		if id := simSender(o.Msg); id != 0 {
			if p := c.ids[id]; (p == nil || p.node != n) && !simResponse(o.Msg) {
				c.fail("an agent speaks only for its own instances", "%s sends %s of %d", n.name, o.Msg.Type(), id)
			}
		}
		switch m := o.Msg.(type) {
		case *ssmmp.ExecutionResponse:
			id, ok := n.executes[m.MessageID]
			if p := n.byID[id]; ok && m.Status.Success() && !again && (p == nil || !p.joined && !p.listened) {
				c.fail("ready is who spoke, or listens", "%s says that %d is ready", n.name, id)
			}
		case *ssmmp.HardShutdownResponse:
			if p := n.byID[m.ServiceInstanceID]; m.Status.Success() && !again && p != nil && (p.running || p.orphans) {
				c.fail("who is reported killed does not run", "%s says that nothing of %s runs", n.name, p.name)
			}
		}
		return
	}
	p, ok := e.peer().who.owner.(*simProc)
	if !ok {
		return
	}
	var to ssmmp.InstanceID
	if r, ok := o.Msg.(*ssmmp.SessionResponse); ok {
		to = r.SourceServiceInstanceID
	} else {
		_, to = simWants(o.Msg)
	}
	if to != 0 && to != p.id {
		c.fail("a message reaches the instance that it names", "%s sends %s of %d to %s", n.name, o.Msg.Type(), to, p.name)
	}
}

// launched looks at a process that begins.
func (c *simCheck) launched(p *simProc) {
	c.ids[p.id] = p
	c.everyID = append(c.everyID, p.id)
	cfg := &c.s.manager.cfg
	for _, q := range p.node.procs {
		if q == p || q.ended {
			continue
		}
		for _, k := range p.launch.Sockets {
			for _, o := range q.launch.Sockets {
				if k.Port == o.Port && k.Port >= cfg.FirstPort && k.Port <= cfg.LastPort {
					c.fail("no port is held twice on a node", "%s runs, and %s has port %d as well", p.name, q.name, k.Port)
				}
			}
		}
	}
}

// instanceGets looks at a message for an instance.
func (c *simCheck) instanceGets(p *simProc, m ssmmp.Message) {
	p.gets(m)
	if r, ok := m.(*ssmmp.SessionResponse); ok && r.SourceServiceInstanceID != p.id {
		c.fail("a message reaches the instance that it names", "%s of %d reaches %s", m.Type(), r.SourceServiceInstanceID, p.name)
	}
}

// instanceOutput looks at what an instance's core wants done.
func (c *simCheck) instanceOutput(p *simProc, o *ssmmp.InstanceOutput) {
	switch o.Kind {
	case ssmmp.InstanceOutputSend:
		p.says(o.Msg)
	case ssmmp.InstanceOutputConnect, ssmmp.InstanceOutputRefuse:
		if d := p.dials[o.Call]; d == nil || !d.asked || d.done {
			c.fail("a dial has one outcome", "call %d of %s", o.Call, p.name)
		}
	case ssmmp.InstanceOutputDrop:
		if p.session(o.Conn) == nil {
			c.fail("only an open session is closed", "connection %d of %s", o.Conn, p.name)
		}
	}
}

// silence looks for agents that the Manager takes to be there, and does not hear.
func (c *simCheck) silence() {
	m := c.s.manager
	if m.dead || m.frozen {
		return
	}
	patience := time.Duration(m.cfg.HealthMisses+2)*m.cfg.HealthPeriod + time.Second
	for _, n := range c.s.nodes {
		a := c.agents[n.host.addr]
		if a == nil || !a.up {
			continue
		}
		if silent := c.lastNow - c.skipped - a.heard; silent > patience {
			c.fail("silence is not health", "nothing was heard of %s for %v", n.name, silent)
			return
		}
	}
}
