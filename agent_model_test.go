package ssmmp

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// An agentModel says in the simplest terms what an agent's core has to do:
// every action of TestAgentModel writes down what it expects, in any order, and
// the core has to do exactly that.
type agentModel struct {
	core *AgentCore

	manager ConnID // 0 while it is away
	conns   ConnID
	kept    []string // reports, while the Manager is away
	message int64    // ids of the Manager's requests
	all     []*modelProcess
	broken  map[ConnID]int // how often a connection broke the protocol
}

// warned adds a warning of a connection, of which there are only so many.
func (m *agentModel) warned(conn ConnID, want ...string) []string {
	if m.broken[conn]++; m.broken[conn] <= violationsKept {
		want = append(want, "warn")
	}
	return want
}

// A modelProcess is an instance that the agent was asked to execute.
type modelProcess struct {
	id       InstanceID
	execID   int64 // to answer; 0 when it was
	conn     ConnID
	ready    bool
	killed   []int64 // hard_shutdown_requests to answer
	ended    bool
	inFlight []int64        // session requests
	asked    map[int64]bool // close requests, to answer
	lastID   int64          // of its own messages
	plug     PlugTarget
}

// do steps the core and compares what it does with what is expected. Records on
// a disk are not the model's business.
func (m *agentModel) do(t *rapid.T, in AgentInput, want ...string) {
	t.Helper()
	var got []string
	for _, o := range m.core.Step(in) {
		switch o.Kind {
		case AgentOutputSend:
			to := fmt.Sprintf("to %d", o.Conn)
			if o.Conn == m.core.manager {
				to = "to the Manager"
			}
			got = append(got, fmt.Sprintf("%s: %s %d %s", to, o.Msg.Type(), o.Msg.Head().MessageID%ownIDs, statusOf(o.Msg)))
		case AgentOutputLaunch:
			got = append(got, fmt.Sprintf("launch %d", o.Instance))
		case AgentOutputKill:
			got = append(got, fmt.Sprintf("kill %d", o.Instance))
		case AgentOutputClose, AgentOutputAbort:
			got = append(got, fmt.Sprintf("close %d", o.Conn))
		case AgentOutputWarn:
			got = append(got, "warn")
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Fatalf("the core does\n\t%q\nwant\n\t%q", got, want)
	}
}

// statusOf is the status that a message carries, as far as the model cares.
func statusOf(m Message) string {
	switch m := m.(type) {
	case *ExecutionResponse:
		return fmt.Sprint(uint16(m.Status))
	case *SessionResponse:
		return fmt.Sprint(uint16(m.Status))
	case *SourceSessionCloseResponse:
		return fmt.Sprint(uint16(m.Status))
	case *HardShutdownResponse:
		return fmt.Sprint(uint16(m.Status))
	}
	return ""
}

// report is what goes to the Manager, now or when it is back.
func (m *agentModel) report(want []string, format string, args ...any) []string {
	line := "to the Manager: " + fmt.Sprintf(format, args...)
	if m.manager == 0 {
		m.kept = append(m.kept, line)
		return want
	}
	return append(want, line)
}

// giveBack is what becomes of the session requests whose answers cannot arrive:
// the instance, if it is there, gets one, and the Manager shall hold no grant.
func (m *agentModel) giveBack(p *modelProcess, want []string) []string {
	for _, id := range p.inFlight {
		if p.conn != 0 {
			want = append(want, fmt.Sprintf("to %d: session_response %d 503", p.conn, id))
		}
		want = m.report(want, "session_ack %d ", id)
	}
	p.inFlight = nil
	return want
}

func (m *agentModel) fromManager(msg Message) AgentInput {
	return AgentInput{Kind: AgentInputMessage, Conn: m.manager, Msg: msg}
}

func (m *agentModel) nextMessage() int64 {
	m.message++
	return m.message
}

// process picks one that is as it should be.
func (m *agentModel) process(t *rapid.T, ok func(*modelProcess) bool) *modelProcess {
	var some []*modelProcess
	for _, p := range m.all {
		if ok(p) {
			some = append(some, p)
		}
	}
	return pickOne(t, "instance", some)
}

func (m *agentModel) execute(p *modelProcess) AgentInput {
	return m.fromManager(&ExecutionRequest{Header: Header{MessageID: p.execID}, AgentNetworkAddress: coreNodes[0], ServiceName: "A", ServiceInstanceID: p.id,
		PlugConfiguration: []PlugTarget{p.plug}})
}

// TestAgentModel compares an agent's core with a simple model of executing and
// relaying (PROTOCOL section 3), action by action. Its Manager says nothing of
// what it has heard, so that each report is sent once.
func TestAgentModel(t *testing.T) {
	t.Parallel()
	connected := func(p *modelProcess) bool { return p.conn != 0 && !p.ended }
	rapid.Check(t, func(t *rapid.T) {
		m := &agentModel{core: NewAgentCore(coreAgent.WithDefaults(), "one"), broken: map[ConnID]int{}}
		needManager := func(t *rapid.T) {
			if m.manager == 0 {
				t.Skip("the Manager is away")
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"Manager comes": func(t *rapid.T) {
				if m.manager != 0 {
					t.Skip("it is there")
				}
				m.conns++
				out := m.core.Step(AgentInput{Kind: AgentInputManagerUp, Conn: m.conns})
				r, ok := out[0].Msg.(*InitiationRequest)
				if !ok || len(out) != 1 || r.AgentNetworkAddress != coreNodes[0] || !slices.Equal(r.ServiceRepository, []string{"A", "B", "C"}) {
					t.Fatalf("it introduces itself with %+v", out)
				}
				m.manager = m.conns
				want := m.kept
				m.kept = nil
				m.do(t, m.fromManager(&InitiationResponse{Header: Header{MessageID: r.MessageID}, Status: StatusOK}), want...)
			},
			"Manager goes": func(t *rapid.T) {
				needManager(t)
				var want []string
				conn := m.manager
				m.manager = 0
				for _, p := range m.all {
					want = m.giveBack(p, want)
				}
				m.do(t, AgentInput{Kind: AgentInputLost, Conn: conn}, want...)
			},
			"execute": func(t *rapid.T) {
				needManager(t)
				p := &modelProcess{id: InstanceID(len(m.all) + 1), execID: m.nextMessage(), asked: map[int64]bool{}, plug: PlugTarget{"P1", "S2", "B"}}
				m.all = append(m.all, p)
				m.do(t, m.execute(p), fmt.Sprintf("launch %d", p.id))
			},
			"execute the same": func(t *rapid.T) {
				needManager(t)
				p := m.process(t, func(*modelProcess) bool { return true })
				was := p.execID
				p.execID = m.nextMessage()
				in, id := m.execute(p), p.execID
				switch {
				case p.ended:
					p.execID = was
					m.do(t, in, fmt.Sprintf("to the Manager: execution_response %d 410", id))
				case p.ready:
					p.execID = was
					m.do(t, in, fmt.Sprintf("to the Manager: execution_response %d 200", id))
				default:
					m.do(t, in) // the answer will be to this one
				}
			},
			"execute what it has not": func(t *rapid.T) {
				needManager(t)
				id := m.nextMessage()
				m.do(t, m.fromManager(&ExecutionRequest{Header: Header{MessageID: id}, AgentNetworkAddress: coreNodes[0], ServiceName: "Z", ServiceInstanceID: 9999}),
					fmt.Sprintf("to the Manager: execution_response %d 404", id))
			},
			"hello": func(t *rapid.T) {
				p := m.process(t, func(p *modelProcess) bool { return !p.ended && p.conn == 0 })
				m.conns++
				p.conn = m.conns
				var want []string
				if !p.ready {
					p.ready = true
					want = m.report(want, "execution_response %d 200", p.execID)
					p.execID = 0
				}
				p.lastID++
				m.do(t, AgentInput{Kind: AgentInputMessage, Conn: p.conn, Proof: ProofGood, Msg: &InstanceHealthResponse{
					Header: Header{MessageID: p.lastID, SubType: ServiceInstanceToAgent}, ServiceInstanceID: p.id, Status: StatusOK}}, want...)
			},
			"another claims to be it": func(t *rapid.T) {
				p := m.process(t, func(p *modelProcess) bool { return !p.ended })
				m.conns++
				m.do(t, AgentInput{Kind: AgentInputMessage, Conn: m.conns, Proof: ProofFailed, Msg: &InstanceHealthResponse{
					Header: Header{MessageID: 1, SubType: ServiceInstanceToAgent}, ServiceInstanceID: p.id, Status: StatusOK}}, "warn")
				m.do(t, AgentInput{Kind: AgentInputLost, Conn: m.conns})
			},
			"session request": func(t *rapid.T) {
				p := m.process(t, connected)
				p.lastID++
				req := &SessionRequest{Header: Header{MessageID: p.lastID, SubType: ServiceToAgent}, SourceServiceName: "A", SourceServiceInstanceID: p.id,
					SourceServiceInstanceNetworkAddress: coreNodes[0], SourcePlugName: "P1", DestServiceName: "B", DestSocketName: "S2"}
				in := AgentInput{Kind: AgentInputMessage, Conn: p.conn, Msg: req}
				switch {
				case rapid.IntRange(0, 4).Draw(t, "off the graph") == 0:
					req.DestServiceName = "C"
					m.do(t, in, m.warned(p.conn, fmt.Sprintf("to %d: session_response %d 403", p.conn, p.lastID))...)
				case m.manager == 0:
					m.do(t, in, fmt.Sprintf("to %d: session_response %d 503", p.conn, p.lastID))
				default:
					p.inFlight = append(p.inFlight, p.lastID)
					m.do(t, in, fmt.Sprintf("to the Manager: session_request %d ", p.lastID))
				}
			},
			"session response": func(t *rapid.T) {
				needManager(t)
				p := m.process(t, func(p *modelProcess) bool { return p.lastID > 0 })
				id := rapid.Int64Range(1, p.lastID).Draw(t, "message id")
				var want []string
				if n := slices.Index(p.inFlight, id); n >= 0 {
					p.inFlight = slices.Delete(p.inFlight, n, n+1)
					want = append(want, fmt.Sprintf("to %d: session_response %d 404", p.conn, id))
				}
				m.do(t, m.fromManager(&SessionResponse{Header: Header{MessageID: id, SubType: ManagerToAgent}, SourceServiceName: "A", SourceServiceInstanceID: p.id,
					DestServiceName: "B", DestSocketName: "S2", Status: StatusNotFound}), want...)
			},
			"report": func(t *rapid.T) {
				p := m.process(t, connected)
				p.lastID++
				m.do(t, AgentInput{Kind: AgentInputMessage, Conn: p.conn, Msg: &SessionAck{Header: Header{MessageID: p.lastID, SubType: ServiceToAgent},
					SourceServiceName: "A", SourceServiceInstanceID: p.id, SourcePlugPort: 40000, DestSocketNewPort: 54000, Status: StatusOK}},
					m.report(nil, "session_ack %d ", p.lastID)...)
			},
			"speak for another": func(t *rapid.T) {
				p := m.process(t, connected)
				m.do(t, AgentInput{Kind: AgentInputMessage, Conn: p.conn, Msg: &SessionAck{Header: Header{MessageID: 1, SubType: ServiceToAgent},
					SourceServiceName: "A", SourceServiceInstanceID: p.id + 1, Status: StatusOK}}, m.warned(p.conn)...)
			},
			"close request": func(t *rapid.T) {
				needManager(t)
				p := m.process(t, func(*modelProcess) bool { return true })
				id := m.nextMessage()
				var want string
				switch {
				case p.ended:
					want = fmt.Sprintf("to the Manager: source_service_session_close_response %d 410", id)
				case p.conn == 0:
					want = fmt.Sprintf("to the Manager: source_service_session_close_response %d 503", id)
				default:
					p.asked[id] = true
					want = fmt.Sprintf("to %d: source_service_session_close_request %d ", p.conn, id)
				}
				m.do(t, m.fromManager(&SourceSessionCloseRequest{Header: Header{MessageID: id, SubType: ManagerToAgent}, SourceServiceName: "A", SourceServiceInstanceID: p.id,
					SourcePlugName: "P1", SourcePlugPort: 40000, DestServiceName: "B", DestSocketName: "S2"}), want)
			},
			"close response": func(t *rapid.T) {
				p := m.process(t, connected)
				if m.message == 0 {
					t.Skip("nothing was asked")
				}
				id := rapid.Int64Range(1, m.message).Draw(t, "message id")
				var want []string
				if p.asked[id] {
					delete(p.asked, id)
					want = m.report(want, "source_service_session_close_response %d 200", id)
				}
				m.do(t, AgentInput{Kind: AgentInputMessage, Conn: p.conn, Msg: &SourceSessionCloseResponse{
					Header: Header{MessageID: id, SubType: SourceServiceToAgent}, Status: StatusOK}}, want...)
			},
			"hard shutdown": func(t *rapid.T) {
				needManager(t)
				p := m.process(t, func(p *modelProcess) bool { return len(p.killed) < 4 })
				id := m.nextMessage()
				in := m.fromManager(&HardShutdownRequest{Header: Header{MessageID: id, SubType: ManagerToAgent}, ServiceName: "A", ServiceInstanceID: p.id})
				switch {
				case p.ended:
					m.do(t, in, fmt.Sprintf("to the Manager: hard_shutdown_response %d 200", id))
					return
				case len(p.killed) == 0:
					m.do(t, in, fmt.Sprintf("kill %d", p.id))
				default:
					m.do(t, in)
				}
				p.killed = append(p.killed, id)
			},
			"connection breaks": func(t *rapid.T) {
				p := m.process(t, connected)
				conn := p.conn
				p.conn = 0
				m.do(t, AgentInput{Kind: AgentInputLost, Conn: conn}, m.giveBack(p, nil)...)
			},
			"exits": func(t *rapid.T) {
				p := m.process(t, func(p *modelProcess) bool { return !p.ended })
				var want []string
				if p.execID != 0 {
					want = m.report(want, "execution_response %d 500", p.execID)
				}
				if p.conn != 0 {
					want = append(want, fmt.Sprintf("close %d", p.conn))
				}
				for _, id := range p.killed {
					want = m.report(want, "hard_shutdown_response %d 200", id)
				}
				if p.ready && len(p.killed) == 0 {
					want = m.report(want, "service_instance_termination_info %d ", m.core.lastOwn%ownIDs+1)
				}
				p.ended, p.conn, p.inFlight = true, 0, nil // its end says more than what it had asked for
				m.do(t, AgentInput{Kind: AgentInputExited, Instance: p.id, Exit: Exit{}}, want...)
			},
			"": func(t *rapid.T) {
				live := 0
				for _, p := range m.all {
					if !p.ended {
						live++
					}
				}
				if len(m.core.instances) != live {
					t.Fatalf("%d instances, want %d", len(m.core.instances), live)
				}
			},
		})
	})
}
