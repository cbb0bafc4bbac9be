package ssmmp

import "fmt"

// The agent's core, continued: what its node's instances say.

// fromInstance handles a message on a connection of an instance. The first
// message that names an instance binds the connection to it (PROTOCOL section
// 3, Hello); from then on it speaks for that instance only.
func (c *AgentCore) fromInstance(conn ConnID, m Message, p Proof) {
	if err := CheckHop(m, ActorInstance, ActorAgent); err != nil {
		c.warn(conn, err.Error())
		return
	}
	i := c.conns[conn]
	if i == nil {
		if i = c.bind(conn, m, p); i == nil {
			return
		}
	} else if c.instances[i.id] != i || i.conn != conn {
		c.dropped++ // what an instance said last, after it ended or came back on another connection
		return
	} else if id := senderOf(m); id != 0 && id != i.id {
		c.forbid(conn, m, fmt.Sprintf("instance %d names %d as the sender", i.id, id))
		return
	}
	if a := addressOf(m); a.IsValid() && a != c.cfg.Address && !a.IsLoopback() {
		c.forbid(conn, m, fmt.Sprintf("instance %d gives the address %s, not its node's", i.id, a))
		return
	}
	stripSecret(m.Head())

	switch m := m.(type) {
	case *SessionRequest:
		c.sessionRequest(i, m)
	case *SessionAck:
		m.SubType = AgentToManager
		c.relayReport(i, m)
	case *SourceSessionCloseInfo:
		m.SubType, m.SourceServiceInstanceNetworkAddress = AgentToManager, c.cfg.Address
		c.relayReport(i, m)
	case *DestSessionCloseInfo:
		m.SubType, m.DestServiceInstanceNetworkAddress = AgentToManager, c.cfg.Address
		c.relayReport(i, m)
	case *TerminationInfo:
		if i.announced {
			return
		}
		i.announced = true
		m.SubType, m.ServiceName, m.ServiceInstanceNetworkAddress = AgentToManager, i.service, c.cfg.Address
		c.relayReport(i, m)
		// It said that it is about to exit: it is not waited for in vain.
		c.after(c.cfg.DrainTimeout, func() {
			if c.instances[i.id] == i {
				c.kill(i)
			}
		})
	case *InstanceHealthResponse:
		c.relayResponse(i, m)
	case *SourceSessionCloseResponse, *DestSessionCloseResponse, *GracefulShutdownResponse:
		c.relayResponse(i, m)
	}
}

// relayReport passes a report on to the Manager. The instance keeps it, and
// sends it to the agent after this one, until it is told that the Manager has
// it: what this agent keeps dies with it.
func (c *AgentCore) relayReport(i *agentInstance, m Message) {
	before := len(c.reports)
	c.toManager(m)
	i.reported++
	if len(c.reports) > before || before == 0 { // else it is not kept, and a later one tells
		c.whenHeard(reportWait{conn: i.conn, arrived: i.reported})
	}
}

// bind ties a connection to the instance that its first message names.
func (c *AgentCore) bind(conn ConnID, m Message, p Proof) *agentInstance {
	id := senderOf(m)
	i := c.instances[id]
	switch {
	case id == 0:
		c.warn(conn, m.Type().String()+" before the connection named an instance")
		return nil
	case i == nil:
		c.forbid(conn, m, fmt.Sprintf("instance %d does not run here", id))
		return nil
	case p == ProofFailed:
		c.forbid(conn, m, fmt.Sprintf("another process claims to be instance %d", id))
		return nil
	case p == ProofNone && i.conn != 0:
		c.forbid(conn, m, fmt.Sprintf("instance %d has a connection, and this one cannot prove to be its", id))
		return nil
	}
	if i.conn != 0 {
		// It came back before its old connection was seen to end.
		c.failInFlight(i)
		c.out = append(c.out, AgentOutput{Kind: AgentOutputClose, Conn: i.conn})
	}
	c.conns[conn] = i
	i.conn, i.probed, i.reported, i.arrived = conn, false, 0, 0
	if !i.wasBound {
		i.wasBound = true
		c.changed(i)
	}
	c.becomeReady(i)
	return i
}

// forbid refuses a message that claims what it may not.
func (c *AgentCore) forbid(conn ConnID, m Message, why string) {
	c.warn(conn, "403 "+m.Type().String()+": "+why)
	if r, ok := m.(*SessionRequest); ok {
		f := sessionFailure(r, StatusForbidden)
		f.SubType = AgentToService
		c.send(conn, f)
	}
}

// sessionRequest relays a request for a session, unless it is off the graph:
// the agent knows the edges from the instance's plug configuration.
func (c *AgentCore) sessionRequest(i *agentInstance, m *SessionRequest) {
	plug := -1
	for p := range i.plugs {
		if t := &i.plugs[p]; t.Plug == m.SourcePlugName && t.Socket == m.DestSocketName && t.Service == m.DestServiceName {
			plug = p
		}
	}
	if plug < 0 || m.SourceServiceName != i.service {
		c.forbid(i.conn, m, fmt.Sprintf("instance %d of %s has no edge %s to %s of %s", i.id, i.service, m.SourcePlugName, m.DestSocketName, m.DestServiceName))
		return
	}
	switch {
	case !c.registered:
		c.answerSession(i, m.MessageID, i.plugs[plug], StatusUnavailable, reasonManagerAway)
		return
	case len(i.inFlight) >= maxInFlight:
		c.answerSession(i, m.MessageID, i.plugs[plug], StatusTooMany, "")
		return
	}
	i.inFlight[m.MessageID] = plug
	m.SubType, m.SourceServiceInstanceNetworkAddress = AgentToManager, c.cfg.Address
	c.send(c.manager, m)
}

// relayResponse passes a response on to the Manager, if it is to a request
// that this instance was asked.
func (c *AgentCore) relayResponse(i *agentInstance, m Message) {
	h := m.Head()
	r := c.relayed[h.MessageID]
	if r == nil || r.to != i.id || r.want != m.Type() {
		c.dropped++ // hello again, late, or nobody asked
		return
	}
	delete(c.relayed, h.MessageID)
	if h.MessageID > ownIDs {
		return // this agent asked
	}
	h.SubType = AgentToManager
	if m.Type() != TypeInstanceHealthResponse {
		c.toManager(m)
	} else if c.registered {
		c.send(c.manager, m) // once the connection breaks nobody waits for it
	}
}
