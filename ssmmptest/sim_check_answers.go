package ssmmptest

import (
	"slices"
	"strings"

	"github.com/ssmmp/ssmmp"
)

// What must hold of what leaves the Manager: requests to agents, answers to
// session requests, outcomes of commands.

// output checks what leaves the Manager.
func (c *simCheck) output(in *ssmmp.ManagerInput, o *ssmmp.ManagerOutput) {
	switch o.Kind {
	case ssmmp.ManagerOutputClose:
		delete(c.conns, o.Conn)
		return
	case ssmmp.ManagerOutputReply:
		c.replied(o)
		return
	}
	if want, id := simWants(o.Msg); want != 0 {
		node, ok := c.conns[o.Conn]
		if !ok && c.register.IsValid() && in.Conn == o.Conn {
			node, ok = c.register, true
		}
		if !ok {
			c.fail("requests go to registered agents", "%s to connection %d", o.Msg.Type(), o.Conn)
			return
		}
		message := o.Msg.Head().MessageID
		if a, again := c.asked[message]; message <= c.messages && !c.register.IsValid() && !(again && a.node == node && a.want == want && a.instance == id) {
			c.fail("no message id is used twice", "%s %d, and %d was used", o.Msg.Type(), message, c.messages)
		}
		c.messages = max(c.messages, message)
		c.asked[message] = simAsked{node, want, id, c.s.now}
		i := c.live[id]
		switch o.Msg.(type) {
		case *ssmmp.ExecutionRequest:
			if i == nil || i.node != node {
				c.fail("nothing executes without a recorded intent", "execution of %d on %s", id, node)
			}
		case *ssmmp.GracefulShutdownRequest, *ssmmp.HardShutdownRequest:
			if i != nil && i.open > 0 && !c.register.IsValid() {
				c.fail("no shutdown while a session is open", "%s of %d with %d sessions", o.Msg.Type(), id, i.open)
			}
			if i != nil && !i.stopping && !c.register.IsValid() {
				c.fail("an instance that is shut down is recorded to stop", "%s of %d", o.Msg.Type(), id)
			}
		}
		return
	}
	switch m := o.Msg.(type) {
	case *ssmmp.InitiationResponse:
		if m.Status.Success() && c.register.IsValid() {
			if a := c.agents[c.register]; a != nil {
				if a.conn != o.Conn {
					delete(c.conns, a.conn)
				}
				a.conn = o.Conn
			}
			c.conns[o.Conn] = c.register
		}
	case *ssmmp.SessionResponse:
		c.answer(in, o, m)
	}
}

// request returns the record of a session request.
func (i *simInstance) request(id int64, plug, socket string) *simRequest {
	if r := i.find(id, socket); r != nil {
		return r
	}
	if len(i.requests) >= 4*simAnswers {
		// The oldest that is answered.
		for k := range i.requests {
			if i.requests[k].answered > 0 {
				i.requests = slices.Delete(i.requests, k, k+1)
				break
			}
		}
	}
	i.requests = append(i.requests, simRequest{id: id, plug: strings.Clone(plug), socket: strings.Clone(socket)}) // they may be borrowed
	return &i.requests[len(i.requests)-1]
}

func (c *simCheck) answer(in *ssmmp.ManagerInput, o *ssmmp.ManagerOutput, m *ssmmp.SessionResponse) {
	i := c.live[m.SourceServiceInstanceID]
	if i == nil || i.node != c.conns[o.Conn] {
		if m.Status.Success() {
			c.fail("a session is granted to who asked", "%d", m.SourceServiceInstanceID)
		}
		return
	}
	if m.Status == ssmmp.StatusForbidden || m.Status == ssmmp.StatusBadMessage {
		return // repeats what was asked, right or wrong
	}
	r := i.request(m.MessageID, "", m.DestSocketName)
	if m.Status == ssmmp.StatusInsufficientStorage && in.StoreErr != nil {
		r.answered++ // and nothing is decided: asked again it may be granted
		return
	}
	if r.answered++; r.answered > r.asked {
		c.fail("a request gets one answer", "%d answers to %d requests %d of instance %d", r.answered, r.asked, m.MessageID, m.SourceServiceInstanceID)
	}
	if m.Status.Success() && !r.granted {
		c.fail("a grant is recorded before its answer leaves", "request %d of instance %d", m.MessageID, m.SourceServiceInstanceID)
	}
	if h := simAnswerHash(m.Status, m.DestServiceInstanceID, m.DestSocketPort); r.hash != h {
		c.fail("a duplicate request gets the same answer", "request %d of instance %d is answered with %s", m.MessageID, m.SourceServiceInstanceID, m.Status)
	}
}

func simAnswerHash(status ssmmp.Status, dest ssmmp.InstanceID, port uint16) uint64 {
	return simMix(uint64(status), uint64(dest)<<16|uint64(port))
}

func (i *simInstance) find(id int64, socket string) *simRequest {
	for k := range i.requests {
		if r := &i.requests[k]; r.id == id && r.socket == socket {
			return r
		}
	}
	return nil
}

// replied checks that what an operator is told is true.
func (c *simCheck) replied(o *ssmmp.ManagerOutput) {
	cmd, ok := c.commands[o.Call]
	if !ok {
		c.fail("a command gets one outcome", "call %d", o.Call)
		return
	}
	delete(c.commands, o.Call)
	if o.Err != nil {
		return
	}
	switch cmd := cmd.(type) {
	case ssmmp.ShutdownCommand:
		if c.live[cmd.Instance] != nil {
			c.fail("a command's outcome is true", "instance %d is not shut down", cmd.Instance)
		}
	case ssmmp.CloseSessionCommand:
		if c.sessions[cmd.Session] != nil {
			c.fail("a command's outcome is true", "session %s is not closed", cmd.Session)
		}
	case ssmmp.UndeployCommand:
		for _, i := range c.live {
			if i.graph == cmd.Graph {
				c.fail("a command's outcome is true", "instances of %s run", cmd.Graph)
				return
			}
		}
	case ssmmp.DeployCommand:
		for _, g := range c.s.sim.Graphs {
			if g.Name != cmd.Graph {
				continue
			}
			for _, v := range g.Gateways() {
				ready := false
				for _, i := range c.live {
					ready = ready || i.graph == g.Name && i.vertex == v && i.ready
				}
				if !ready {
					c.fail("a command's outcome is true", "gateway %s of %s is not ready", v, g.Name)
				}
			}
		}
	}
}
