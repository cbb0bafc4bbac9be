package ssmmptest

import (
	"strings"
	"time"

	"github.com/ssmmp/ssmmp"
)

// What must hold, continued: what the Manager believes of sessions, against what
// their ends really do, and what is owed to whoever asked.

// A simLateAck is the acknowledgment of a session whose offer had expired.
type simLateAck struct {
	src, dst ssmmp.InstanceID
	port     uint16
}

// A simClosed is a session that a step of the Manager closed since an end of it
// ended.
type simClosed struct {
	src, dst ssmmp.InstanceID
	m, l     uint16
}

// endOf finds an end of a session that its process has open, nil if it has not.
// message is the id of the request that the session came of.
func (c *simCheck) endOf(id, src ssmmp.InstanceID, message int64, source bool) *simSessionEnd {
	p := c.ids[id]
	if p == nil {
		return nil
	}
	for _, e := range p.sessions {
		if e.source == source && e.session.message == message && e.session.ends[0].p.id == src {
			return e
		}
	}
	return nil
}

// closed looks at the end of a session that was open: who said so must have
// closed it.
func (c *simCheck) closed(in *ssmmp.ManagerInput, ev *ssmmp.Event, o *simOpen) {
	if !o.closing && strings.HasPrefix(ev.Cause, "its end ") {
		c.closedNow = append(c.closedNow, simClosed{o.src, o.dst, ev.PlugPort, ev.NewPort})
	}
	compared := strings.Contains(ev.Cause, "report of its end was lost")
	if compared && !c.replaying && c.s.counts[SimReportsLost] == 0 {
		c.fail("no report is lost on a connection that loses none", "%s, ports %d and %d", ev, ev.PlugPort, ev.NewPort)
	}
	src := c.endOf(o.src, o.src, o.messageID, true)
	dst := c.endOf(o.dst, o.src, o.messageID, false)
	open := src != nil && (compared || dst != nil && ev.Status == ssmmp.StatusOK)
	switch in.Msg.(type) {
	case *ssmmp.SourceSessionCloseInfo:
		open = src != nil
	case *ssmmp.DestSessionCloseInfo:
		open = dst != nil
	}
	if open {
		c.fail("who says that a session is closed has closed it", "%s, ports %d and %d", ev, ev.PlugPort, ev.NewPort)
	}
}

// lateAck notes the acknowledgment of a session that the Manager had given up.
func (c *simCheck) lateAck(m *ssmmp.SessionAck, i *simInstance) {
	if !m.Status.Success() || m.SourcePlugPort == 0 || m.DestSocketNewPort == 0 {
		return
	}
	var found *simRequest
	for k := max(0, len(i.requests)-simAnswers); k < len(i.requests); k++ {
		if r := &i.requests[k]; r.id == m.MessageID && r.granted && i.answers-r.last < simAnswers {
			if found != nil {
				return // which of the two cannot be told
			}
			found = r
		}
	}
	if found == nil || found.opened {
		return
	}
	for _, o := range c.sessions {
		if o.src == m.SourceServiceInstanceID && (o.messageID == m.MessageID || o.opened && o.plugPort == m.SourcePlugPort) {
			return
		}
	}
	c.late = &simLateAck{m.SourceServiceInstanceID, found.dest, m.SourcePlugPort}
}

// asks looks at what a step of the Manager asked of others: all that it has to.
func (c *simCheck) asks(out []ssmmp.ManagerOutput, events []ssmmp.Event) {
	if c.late != nil && c.live[c.late.dst] != nil {
		asked := false
		for i := range out {
			m, ok := out[i].Msg.(*ssmmp.SourceSessionCloseRequest)
			asked = asked || ok && m.SourceServiceInstanceID == c.late.src && m.SourcePlugPort == c.late.port
		}
		if !asked {
			c.fail("a session is known, or has to close", "that of instance %d from port %d", c.late.src, c.late.port)
		}
	}
	for i := range events {
		switch ev := &events[i]; {
		case ev.Kind == ssmmp.EventAgentRegistered && ev.Cause != "new repository":
			c.asksAgain(ev, out)
		case ev.Kind == ssmmp.EventInstanceEnded:
			c.asksFarEnds(ev.Instance, out)
		}
	}
	c.closedNow = c.closedNow[:0]
}

// asksAgain looks whether an agent that is back is asked to execute what it may
// never have heard of.
func (c *simCheck) asksAgain(ev *ssmmp.Event, out []ssmmp.ManagerOutput) {
	asked := map[ssmmp.InstanceID]bool{}
	for i := range out {
		if m, ok := out[i].Msg.(*ssmmp.ExecutionRequest); ok {
			asked[m.ServiceInstanceID] = true
		}
	}
	for _, id := range simSorted(c.live) {
		if i := c.live[id]; i.node == ev.Node && !i.ready && !i.stopping && !asked[id] {
			c.fail("an agent that is back is asked again", "%s, and not for %s %d, which is starting", ev, i.service, id)
		}
	}
}

// asksFarEnds looks whether the far ends of who ended are told to close.
func (c *simCheck) asksFarEnds(id ssmmp.InstanceID, out []ssmmp.ManagerOutput) {
	for _, x := range c.closedNow {
		far := x.src
		if far == id {
			far = x.dst
		} else if x.dst != id {
			continue
		}
		i := c.live[far]
		if i == nil || c.away(i.node) {
			continue
		}
		asked := false
		for k := range out {
			switch m := out[k].Msg.(type) {
			case *ssmmp.SourceSessionCloseRequest:
				asked = asked || m.SourceServiceInstanceID == far && m.SourcePlugPort == x.m
			case *ssmmp.DestSessionCloseRequest:
				asked = asked || m.DestServiceInstanceID == far && m.SourcePlugPort == x.m && m.DestSocketNewPort == x.l
			}
		}
		if !asked {
			c.fail("the far ends of who ended close", "instance %d ended, and %d is not asked to close its session %d to %d", id, far, x.m, x.l)
		}
	}
}

// begins looks at what is recorded while the store has no room.
func (c *simCheck) begins(in *ssmmp.ManagerInput, ev *ssmmp.Event) {
	asks := in.Kind == ssmmp.ManagerInputCommand
	switch in.Msg.(type) {
	case *ssmmp.SessionRequest, *ssmmp.InitiationRequest:
		asks = true
	}
	switch ev.Kind {
	case ssmmp.EventProtocolViolated, ssmmp.EventAgentRefused, ssmmp.EventMessagesReserved, ssmmp.EventSessionRefused:
	default:
		if asks {
			c.fail("nothing is begun while the store is full", "%s", ev)
		}
	}
}

// absent looks for agents that stay away and are neither waited for nor lost.
func (c *simCheck) absent() {
	m := c.s.manager
	if m.dead || m.frozen || c.storm {
		return
	}
	for _, n := range c.s.nodes {
		a := c.agents[n.host.addr]
		if a != nil && !a.up && !a.lost && c.lastNow-max(a.awaySince, c.calm) > m.cfg.LostAfter {
			c.fail("an agent that stays away is lost", "%s is away for %v", n.name, c.lastNow-a.awaySince)
			return
		}
	}
}

// mostAway tells whether so many agents are away that none is taken to be lost.
func (c *simCheck) mostAway() bool {
	away, all := 0, 0
	for _, a := range c.agents {
		if !a.lost {
			all++
			if !a.up {
				away++
			}
		}
	}
	return float64(away) >= c.s.manager.cfg.StormBrake*float64(all)
}

// unready looks for processes that are not ready in time, and whose agents do not
// have them killed.
func (c *simCheck) unready() {
	for _, n := range c.s.nodes {
		for _, p := range n.procs {
			if p.joined || p.listened || p.killAsked || n.dead || n.frozen || n.stopping || n.local(c.s.now)-p.asked <= n.cfg.StartTimeout {
				p.unreadySince = 0
				continue
			}
			// Its agent may be about to be woken.
			if p.unreadySince == 0 {
				p.unreadySince = c.s.now
			} else if c.s.now-p.unreadySince > time.Second {
				c.fail("who is not ready in time is killed", "%s runs for %v", p.name, c.s.now-p.born)
				return
			}
		}
	}
}

// gets notes what a process owes an answer to, since the Manager waits for it:
// requests to close a session, and sessions that it was granted.
func (p *simProc) gets(m ssmmp.Message) {
	switch m := m.(type) {
	case *ssmmp.SourceSessionCloseRequest, *ssmmp.DestSessionCloseRequest:
		p.owes[-m.Head().MessageID] = true
	case *ssmmp.SessionResponse:
		if _, asked := p.owes[m.MessageID]; asked && m.Status.Success() {
			p.owes[m.MessageID] = true
		} else if !p.owes[m.MessageID] {
			delete(p.owes, m.MessageID)
		}
	}
}

// says notes what a process asks for and what it answers.
func (p *simProc) says(m ssmmp.Message) {
	switch m := m.(type) {
	case *ssmmp.SessionRequest:
		p.owes[m.MessageID] = false // nothing until it is granted
	case *ssmmp.SessionAck:
		delete(p.owes, m.MessageID)
		if !m.Status.Success() {
			return
		}
		if p.acked[m.MessageID] {
			return // it is said again
		}
		p.acked[m.MessageID] = true
		// Those that wait for an agent are said in their order.
		for _, e := range p.sessions {
			if e.source && e.session.message == 0 && e.port == m.SourcePlugPort {
				e.session.message = m.MessageID
				return
			}
		}
	case *ssmmp.SourceSessionCloseResponse, *ssmmp.DestSessionCloseResponse:
		delete(p.owes, -m.Head().MessageID)
	}
}

// debt says what a process owes; empty if nothing.
func (p *simProc) debt() string {
	for _, id := range simSorted(p.owes) {
		switch {
		case p.owes[id] && id < 0:
			return "the answer to a request to close a session"
		case p.owes[id]:
			return "the acknowledgment of a session"
		}
	}
	return ""
}
