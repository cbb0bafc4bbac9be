package ssmmptest

import (
	"fmt"
	"slices"
	"time"

	"github.com/ssmmp/ssmmp"
)

// Peers that break the rules: they have connections, and say what is not theirs
// to say.

// A simStranger is a process that nobody executed.
type simStranger struct {
	simActor
	s    *simRun
	gets func(e *simEnd, m ssmmp.Message)
}

func (s *simRun) stranger(name string, host *simHost) *simStranger {
	x := &simStranger{s: s}
	x.simActor = simActor{name: name, host: host, owner: x, born: s.now}
	return x
}

func (x *simStranger) line(e *simEnd, line []byte) {
	if m, err := x.s.decode(line); err == nil && x.gets != nil {
		x.gets(e, m)
	}
}

func (x *simStranger) lost(*simEnd) {}

// mislead has agents lose the Manager, and find an old one.
func (s *simRun) mislead(f *simFaultRun) {
	simBegin(simDials)(s, f)
	for _, i := range f.Nodes {
		if n := s.nodes[i]; n.manager != nil && !n.dead {
			s.reset(n.manager.conn)
		}
	}
}

// oldManager answers an agent as a Manager of an epoch before does, which was
// stopped and goes on: it wants all that runs killed, and something else executed.
func (s *simRun) oldManager(n *simNode, f *simFaultRun) {
	x := s.stranger("old Manager", s.manager.host)
	c := s.connect(simToManager, &n.simActor, &x.simActor)
	x.gets = func(e *simEnd, m ssmmp.Message) {
		r, ok := m.(*ssmmp.InitiationRequest)
		if !ok {
			return
		}
		s.hit(f.Kind)
		s.send(e, &ssmmp.InitiationResponse{Header: ssmmp.Header{MessageID: r.MessageID,
			Extensions: []ssmmp.Extension{{Name: "x_epoch", Value: "1"}, {Name: "x_heard", Value: "0"}}}, Status: ssmmp.StatusOK})
		for _, p := range n.procs {
			s.send(e, &ssmmp.HardShutdownRequest{Header: ssmmp.Header{MessageID: int64(p.id), SubType: ssmmp.ManagerToAgent},
				ServiceName: p.launch.Service, ServiceInstanceID: p.id})
		}
		s.send(e, &ssmmp.ExecutionRequest{Header: ssmmp.Header{MessageID: 1 << 50}, AgentNetworkAddress: n.host.addr,
			ServiceName: n.cfg.Repository[0].Service, ServiceInstanceID: 1 << 50})
	}
	n.manager = n.open(&c.ends[0])
	n.step(ssmmp.AgentInput{Kind: ssmmp.AgentInputManagerUp, Conn: n.manager.id})
}

// falseAgent claims the address of a node.
func (s *simRun) falseAgent(n *simNode, f *simFaultRun) {
	m := s.manager
	if m.dead || m.frozen || m.refuses || n.manager == nil || s.blocked(n.host, m.host) || s.check.away(n.host.addr) {
		return
	}
	x := s.stranger("false agent", n.host)
	c := s.connect(simToManager, &x.simActor, &m.simActor)
	m.accept(&c.ends[1])
	r := &ssmmp.InitiationRequest{Header: ssmmp.Header{MessageID: 1}, AgentNetworkAddress: n.host.addr, ServiceRepository: []string{"A"}}
	if f.rand.oneIn(2) {
		r.Extensions = []ssmmp.Extension{{Name: "x_agent", Value: "somebody"}}
	}
	s.hit(f.Kind)
	// At once: were the agent away when it arrives, nothing could tell the two apart.
	line, err := ssmmp.AppendMessage(nil, r)
	if err != nil {
		s.fail("every message can be encoded", "%v", err)
		return
	}
	m.line(&c.ends[1], line)
	s.after(nil, 5*time.Second, func() { s.hangUp(&c.ends[0]) })
}

// falseInstance claims to be an instance of a node. Where the kernel does not
// tell who holds a connection, it is believed while the instance has none: so its
// lines arrive at once, while it has.
func (s *simRun) falseInstance(n *simNode, f *simFaultRun) {
	if n.dead || n.frozen {
		return
	}
	for _, p := range slices.Clone(n.procs) {
		linked := p.running && p.agent != nil && !p.agent.closing && !p.agent.peer().closing
		if !p.joined || !linked && !s.sim.Config.KernelProof || f.rand.oneIn(2) {
			continue
		}
		x := s.stranger("false instance", n.host)
		c := s.connect(simToAgent, &x.simActor, &n.simActor)
		n.open(&c.ends[1])
		h := ssmmp.Header{MessageID: 1, SubType: ssmmp.ServiceInstanceToAgent}
		switch f.rand.n(3) {
		case 0:
			h.Extensions = []ssmmp.Extension{{Name: "x_secret", Value: "guessed"}}
		case 1:
			h.Extensions = []ssmmp.Extension{{Name: "x_secret", Value: p.launch.Secret + "x"}}
		}
		x.gets = func(e *simEnd, m ssmmp.Message) {
			if r, ok := m.(*ssmmp.SessionResponse); ok && r.Status.Success() {
				s.fail("an instance is who its agent executed", "another process got a session as %s", p.name)
			}
		}
		s.hit(f.Kind)
		says := []ssmmp.Message{&ssmmp.InstanceHealthResponse{Header: h, ServiceInstanceID: p.id, Status: ssmmp.StatusOK}}
		for i, t := range p.launch.Plugs {
			says = append(says, &ssmmp.SessionRequest{Header: ssmmp.Header{MessageID: int64(1000 + i), SubType: ssmmp.ServiceToAgent},
				SourceServiceName: p.launch.Service, SourceServiceInstanceID: p.id, SourceServiceInstanceNetworkAddress: n.host.addr,
				SourcePlugName: t.Plug, DestServiceName: t.Service, DestSocketName: t.Socket})
		}
		says = append(says, &ssmmp.TerminationInfo{Header: ssmmp.Header{MessageID: 2, SubType: ssmmp.ServiceInstanceToAgent},
			ServiceName: p.launch.Service, ServiceInstanceID: p.id, ServiceInstanceNetworkAddress: n.host.addr})
		for _, m := range says {
			line, err := ssmmp.AppendMessage(nil, m)
			if err != nil {
				s.fail("every message can be encoded", "%v", err)
				return
			}
			n.line(&c.ends[1], line)
		}
		s.after(nil, 5*time.Second, func() { s.hangUp(&c.ends[0]) })
	}
}

// offGraph has instances ask for sessions that no edge allows.
func (s *simRun) offGraph(n *simNode, f *simFaultRun) {
	for _, p := range n.procs {
		if p.agent == nil || p.frozen {
			continue
		}
		s.hit(f.Kind)
		h := ssmmp.Header{MessageID: 1<<40 + int64(f.rand.n(1000)), SubType: ssmmp.ServiceToAgent}
		s.send(p.agent, &ssmmp.SessionRequest{Header: h, SourceServiceName: p.launch.Service, SourceServiceInstanceID: p.id,
			SourceServiceInstanceNetworkAddress: p.host.addr, SourcePlugName: "P", DestServiceName: p.launch.Service, DestSocketName: "S"})
		h.MessageID += 1000
		other := s.rand.n(len(s.check.everyID) + 1)
		if other < len(s.check.everyID) && s.check.everyID[other] != p.id {
			s.send(p.agent, &ssmmp.TerminationInfo{Header: ssmmp.Header{MessageID: h.MessageID, SubType: ssmmp.ServiceInstanceToAgent},
				ServiceName: p.launch.Service, ServiceInstanceID: s.check.everyID[other], ServiceInstanceNetworkAddress: p.host.addr})
		}
	}
}

// askInVain has processes ask for sessions that they do not use: what the Manager
// grants is never acknowledged.
func (s *simRun) askInVain(n *simNode, f *simFaultRun) {
	for _, p := range n.procs {
		if p.agent == nil || p.frozen || len(p.launch.Plugs) == 0 {
			continue
		}
		s.hit(f.Kind)
		t := p.launch.Plugs[f.rand.n(len(p.launch.Plugs))]
		s.send(p.agent, &ssmmp.SessionRequest{Header: ssmmp.Header{MessageID: 1<<41 + int64(f.rand.n(1<<20)), SubType: ssmmp.ServiceToAgent},
			SourceServiceName: p.launch.Service, SourceServiceInstanceID: p.id, SourceServiceInstanceNetworkAddress: p.host.addr,
			SourcePlugName: t.Plug, DestServiceName: t.Service, DestSocketName: t.Socket})
	}
}

// foreignReports has an agent speak about what runs elsewhere.
func (s *simRun) foreignReports(n *simNode, f *simFaultRun) {
	if n.manager == nil || n.dead {
		return
	}
	for _, o := range s.nodes {
		if o == n {
			continue
		}
		for _, p := range o.procs {
			if f.rand.oneIn(3) {
				s.hit(f.Kind)
				s.send(n.manager, &ssmmp.TerminationInfo{Header: ssmmp.Header{MessageID: 1 << 61, SubType: ssmmp.AgentToManager},
					ServiceName: p.launch.Service, ServiceInstanceID: p.id, ServiceInstanceNetworkAddress: n.host.addr})
			}
			for _, e := range p.sessions {
				if e.source && f.rand.oneIn(3) {
					s.hit(f.Kind)
					far := e.far()
					t := p.launch.Plugs[0]
					s.send(n.manager, &ssmmp.SourceSessionCloseInfo{Header: ssmmp.Header{MessageID: 1 << 61, SubType: ssmmp.AgentToManager},
						SourceServiceName: p.launch.Service, SourceServiceInstanceID: p.id, SourceServiceInstanceNetworkAddress: o.host.addr,
						SourcePlugName: t.Plug, SourcePlugPort: e.port, DestServiceName: far.p.launch.Service, DestServiceInstanceID: far.p.id,
						DestServiceInstanceNetworkAddress: far.p.host.addr, DestSocketName: t.Socket, DestSocketPort: far.port, DestSocketNewPort: far.port,
						Status: ssmmp.StatusSessionClosed})
				}
			}
		}
	}
}

// unaskedResponses has an agent answer what the Manager asked of others.
func (s *simRun) unaskedResponses(n *simNode, f *simFaultRun) {
	if n.manager == nil || n.dead {
		return
	}
	for _, id := range simSorted(s.check.asked) {
		a := s.check.asked[id]
		if a.node == n.host.addr || f.rand.oneIn(2) {
			continue
		}
		s.respond(n, f, id, a, a.want)
	}
}

// wrongResponses has an agent answer what it was asked with responses to
// something else.
func (s *simRun) wrongResponses(n *simNode, f *simFaultRun) {
	if n.manager == nil || n.dead {
		return
	}
	for _, id := range simSorted(s.check.asked) {
		a := s.check.asked[id]
		if want := simResponses[f.rand.n(len(simResponses))]; a.node == n.host.addr && want != a.want {
			s.respond(n, f, id, a, want)
		}
	}
}

var simResponses = []ssmmp.Type{ssmmp.TypeExecutionResponse, ssmmp.TypeSourceSessionCloseResponse, ssmmp.TypeDestSessionCloseResponse,
	ssmmp.TypeGracefulShutdownResponse, ssmmp.TypeHardShutdownResponse, ssmmp.TypeInstanceHealthResponse, ssmmp.TypeAgentHealthResponse}

// respond has an agent answer a request of the Manager with success.
func (s *simRun) respond(n *simNode, f *simFaultRun, id int64, a simAsked, want ssmmp.Type) {
	h := ssmmp.Header{MessageID: id, SubType: ssmmp.AgentToManager}
	var m ssmmp.Message
	switch want {
	case ssmmp.TypeExecutionResponse:
		m = &ssmmp.ExecutionResponse{Header: ssmmp.Header{MessageID: id}, Status: ssmmp.StatusOK}
	case ssmmp.TypeSourceSessionCloseResponse:
		m = &ssmmp.SourceSessionCloseResponse{Header: h, Status: ssmmp.StatusOK}
	case ssmmp.TypeDestSessionCloseResponse:
		m = &ssmmp.DestSessionCloseResponse{Header: h, Status: ssmmp.StatusOK}
	case ssmmp.TypeGracefulShutdownResponse:
		m = &ssmmp.GracefulShutdownResponse{Header: h, Status: ssmmp.StatusOK}
	case ssmmp.TypeHardShutdownResponse:
		m = &ssmmp.HardShutdownResponse{Header: h, ServiceInstanceID: max(a.instance, 1), Status: ssmmp.StatusOK}
	case ssmmp.TypeInstanceHealthResponse:
		m = &ssmmp.InstanceHealthResponse{Header: h, ServiceInstanceID: max(a.instance, 1), Status: ssmmp.StatusOK}
	case ssmmp.TypeAgentHealthResponse:
		m = &ssmmp.AgentHealthResponse{Header: h, AgentNetworkAddress: a.node, Status: ssmmp.StatusOK}
	default:
		s.fail("simulator", "%s", fmt.Sprint(want))
		return
	}
	s.hit(f.Kind)
	s.send(n.manager, m)
}
