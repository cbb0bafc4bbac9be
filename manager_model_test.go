package ssmmp

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// A managerModel says in the simplest terms what the Manager's core has to do
// with one edge, (A, (P1,S1), B): A's instance runs on one node, those of B are
// executed on the other. Every action writes down what it expects, in any order,
// and the core has to do exactly that.
type managerModel struct {
	core *ManagerCore

	lastID   InstanceID
	b        *modelInstance // at most one: InstancesPerService is 1
	ends     int            // of B's instances: three in a row would make it back off
	requests []*modelRequest
	sessions []*modelOpen
	calls    CallID
	closing  []*modelClose
}

type modelInstance struct {
	id      InstanceID
	execID  int64
	running bool
	waiting []*modelRequest
}

// A modelRequest is a session request, and its answer once it has one.
type modelRequest struct {
	id     int64
	answer string // "" while it waits
	offer  bool   // granted, and not acknowledged
	dst    *modelInstance
}

// A modelOpen is an open session.
type modelOpen struct {
	id      SessionID
	request int64
	port    uint16
	closing bool
}

// A modelClose is a close request that an end of a session has to answer.
type modelClose struct {
	messageID int64
	atSource  bool
	session   *modelOpen
	call      CallID
}

var (
	modelNodeA, modelNodeB = coreNodes[0], coreNodes[1]
	modelConns             = map[netip.Addr]ConnID{modelNodeA: 1, modelNodeB: 2}
)

func newManagerModel(t *rapid.T) *managerModel {
	g, err := NewGraph("pair").
		Gateway("A", FixedPorts{"S0": 8080}, Out{"P1"}).
		Regular("B", In{"S1"}, Out{"P2"}).
		Storage("C", In{"S2"}).
		Edge("A", "P1", "S1", "B").Edge("B", "P2", "S2", "C").Build()
	if err != nil {
		t.Fatal(err)
	}
	day := 24 * time.Hour
	m := &managerModel{lastID: 1, core: NewManagerCore(ManagerConfig{Graphs: []*Graph{g}, FirstInstance: 1, FirstMessage: 1000, InstancesPerService: 1,
		HealthPeriod: day, StartTimeout: day, RequestTimeout: day, AckTimeout: day, DrainTimeout: day, IdleAfter: -1}.WithDefaults())}
	for node, services := range map[netip.Addr][]string{modelNodeA: {"A"}, modelNodeB: {"B"}} {
		m.core.Step(m.message(node, &InitiationRequest{Header: Header{MessageID: 1}, AgentNetworkAddress: node, ServiceRepository: services}))
	}
	m.core.Step(ManagerInput{Kind: ManagerInputCommand, Call: 1, Cmd: DeployCommand{"pair"}})
	m.calls = 1
	m.do(t, m.message(modelNodeA, &ExecutionResponse{Header: Header{MessageID: m.core.lastMessage}, Status: StatusOK}),
		"instance ready 1", "reply 1: true")
	return m
}

func (m *managerModel) message(node netip.Addr, msg Message) ManagerInput {
	return ManagerInput{Kind: ManagerInputMessage, Conn: modelConns[node], Msg: msg}
}

// do steps the core, compares what it does with what is expected, and returns
// the messages.
func (m *managerModel) do(t *rapid.T, in ManagerInput, want ...string) []Message {
	t.Helper()
	out, events := m.core.Step(in)
	var got []string
	var sent []Message
	for _, ev := range events {
		if ev.Instance != 0 {
			got = append(got, fmt.Sprintf("%s %d", ev.Kind, ev.Instance))
		} else {
			got = append(got, fmt.Sprintf("%s %d", ev.Kind, ev.MessageID))
		}
	}
	for _, o := range out {
		switch o.Kind {
		case ManagerOutputReply:
			got = append(got, fmt.Sprintf("reply %d: %v", o.Call, o.Err == nil))
		case ManagerOutputClose:
			got = append(got, fmt.Sprintf("close connection %d", o.Conn))
		case ManagerOutputSend:
			sent = append(sent, o.Msg)
			switch msg := o.Msg.(type) {
			case *SessionResponse:
				got = append(got, fmt.Sprintf("answer %d: %s", msg.MessageID, answerOf(msg.Status, msg.DestServiceInstanceID)))
			default:
				got = append(got, fmt.Sprintf("%s to %d", msg.Type(), o.Conn))
			}
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Fatalf("the core does\n\t%q\nwant\n\t%q", got, want)
	}
	return sent
}

func answerOf(s Status, dst InstanceID) string { return fmt.Sprintf("%d by %d", s, dst) }

func (m *managerModel) sessionRequest(id int64) ManagerInput {
	return m.message(modelNodeA, &SessionRequest{Header: Header{MessageID: id, SubType: AgentToManager}, SourceServiceName: "A", SourceServiceInstanceID: 1,
		SourceServiceInstanceNetworkAddress: modelNodeA, SourcePlugName: "P1", DestServiceName: "B", DestSocketName: "S1"})
}

// grant answers a request with a running instance.
func (m *managerModel) grant(r *modelRequest, want []string) []string {
	r.answer, r.offer, r.dst = answerOf(StatusOK, m.b.id), true, m.b
	return append(want, fmt.Sprintf("session offered %d", r.id), fmt.Sprintf("answer %d: %s", r.id, r.answer))
}

// refuse answers it with a failure.
func (m *managerModel) refuse(r *modelRequest, s Status, want []string) []string {
	r.answer = answerOf(s, 0)
	return append(want, fmt.Sprintf("session refused %d", r.id), fmt.Sprintf("answer %d: %s", r.id, r.answer))
}

// gone takes B's instance out of the model, with all its sessions; whoever
// waits for one of them to close has what it wanted.
func (m *managerModel) gone(want []string) []string {
	for _, r := range m.requests {
		if r.offer && r.dst == m.b {
			r.offer = false
			want = append(want, fmt.Sprintf("session closed %d", r.id))
		}
	}
	for _, s := range m.sessions {
		want = append(want, fmt.Sprintf("session closed %d", s.request), "source_service_session_close_request to 1")
	}
	for _, c := range m.closing {
		want = append(want, fmt.Sprintf("reply %d: true", c.call))
	}
	m.sessions, m.closing, m.b = nil, nil, nil
	m.ends++
	return want
}

func (m *managerModel) closeOf(s *modelOpen) *modelClose {
	for _, c := range m.closing {
		if c.session == s {
			return c
		}
	}
	return nil
}

// closed takes a session out of the model.
func (m *managerModel) closed(s *modelOpen, want []string) []string {
	m.sessions = slices.DeleteFunc(m.sessions, func(o *modelOpen) bool { return o == s })
	if c := m.closeOf(s); c != nil {
		m.closing = slices.DeleteFunc(m.closing, func(o *modelClose) bool { return o == c })
		want = append(want, fmt.Sprintf("reply %d: true", c.call))
	}
	return append(want, fmt.Sprintf("session closed %d", s.request))
}

// TestManagerModel compares the Manager's core with a simple model of the
// sessions along one edge (PROTOCOL section 3), action by action.
func TestManagerModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		m := newManagerModel(t)
		t.Repeat(map[string]func(*rapid.T){
			"request": func(t *rapid.T) {
				r := &modelRequest{id: int64(len(m.requests) + 1)}
				m.requests = append(m.requests, r)
				var want []string
				switch {
				case m.b == nil && m.ends > 2: // it died young too often
					m.do(t, m.sessionRequest(r.id), m.refuse(r, StatusUnavailable, nil)...)
				case m.b == nil:
					m.lastID++
					m.b = &modelInstance{id: m.lastID, waiting: []*modelRequest{r}}
					want = append(want, fmt.Sprintf("instance requested %d", m.b.id), "execution_request to 2")
					m.b.execID = m.do(t, m.sessionRequest(r.id), want...)[0].Head().MessageID
				case !m.b.running:
					m.b.waiting = append(m.b.waiting, r)
					m.do(t, m.sessionRequest(r.id))
				default:
					m.do(t, m.sessionRequest(r.id), m.grant(r, nil)...)
				}
			},
			"the same request": func(t *rapid.T) {
				r := pickOne(t, "request", m.requests)
				if len(m.requests)-int(r.id) >= answersKept/2 {
					t.Skip("only the newest answers are kept")
				}
				if r.answer == "" {
					m.do(t, m.sessionRequest(r.id))
					return
				}
				m.do(t, m.sessionRequest(r.id), fmt.Sprintf("answer %d: %s", r.id, r.answer))
			},
			"request off the graph": func(t *rapid.T) {
				in := m.sessionRequest(9999)
				in.Msg.(*SessionRequest).DestServiceName = "C"
				m.do(t, in, "session refused 9999", "answer 9999: "+answerOf(StatusForbidden, 0))
			},
			"started": func(t *rapid.T) {
				if m.b == nil || m.b.running {
					t.Skip("nothing starts")
				}
				b := m.b
				b.running = true
				want := []string{fmt.Sprintf("instance ready %d", b.id)}
				for _, r := range b.waiting {
					want = m.grant(r, want)
				}
				b.waiting = nil
				m.do(t, m.message(modelNodeB, &ExecutionResponse{Header: Header{MessageID: b.execID}, Status: StatusOK}), want...)
			},
			"not started": func(t *rapid.T) {
				if m.b == nil || m.b.running {
					t.Skip("nothing starts")
				}
				b, status := m.b, rapid.SampledFrom([]Status{StatusNotFound, StatusUnavailable, StatusFailed}).Draw(t, "status")
				want := m.gone([]string{fmt.Sprintf("instance ended %d", b.id)})
				for _, r := range b.waiting {
					want = m.refuse(r, status, want)
				}
				m.do(t, m.message(modelNodeB, &ExecutionResponse{Header: Header{MessageID: b.execID}, Status: status}), want...)
			},
			"terminated": func(t *rapid.T) {
				if m.b == nil || !m.b.running {
					t.Skip("nothing runs")
				}
				b := m.b
				want := m.gone([]string{fmt.Sprintf("instance ended %d", b.id)})
				m.do(t, m.message(modelNodeB, &TerminationInfo{Header: Header{MessageID: 5, SubType: AgentToManager}, ServiceName: "B", ServiceInstanceID: b.id,
					ServiceInstanceNetworkAddress: modelNodeB}), want...)
			},
			"acknowledge": func(t *rapid.T) {
				r := pickOne(t, "request", m.requests)
				ack := &SessionAck{Header: Header{MessageID: r.id, SubType: AgentToManager}, SourceServiceName: "A", SourceServiceInstanceID: 1, Status: StatusOK,
					SourcePlugPort: uint16(40000 + r.id), DestSocketNewPort: 54000}
				if !r.offer {
					if r.dst != nil && r.dst == m.b && !slices.ContainsFunc(m.sessions, func(s *modelOpen) bool { return s.request == r.id }) {
						t.Skip("closed: an acknowledgment would be of a session that the Manager does not know")
					}
					if r.answer == "" || r.dst == nil || r.dst == m.b {
						m.do(t, m.message(modelNodeA, ack)) // a duplicate, or to nothing
					}
					return
				}
				r.offer = false
				if rapid.Bool().Draw(t, "failed") {
					ack.Status, ack.SourcePlugPort, ack.DestSocketNewPort = StatusUnreachable, 0, 0
					m.do(t, m.message(modelNodeA, ack), fmt.Sprintf("session closed %d", r.id))
					return
				}
				m.do(t, m.message(modelNodeA, ack), fmt.Sprintf("session opened %d", r.id))
				id := m.core.Snapshot().Sessions
				at := slices.IndexFunc(id, func(s SessionStatus) bool { return s.PlugPort == ack.SourcePlugPort })
				m.sessions = append(m.sessions, &modelOpen{id: id[at].ID, request: r.id, port: ack.SourcePlugPort})
			},
			"closed by an end": func(t *rapid.T) {
				s := pickOne(t, "session", m.sessions)
				b := m.b.id
				src := &SourceSessionCloseInfo{Header: Header{MessageID: 1000 + 2*s.request, SubType: AgentToManager}, SourceServiceName: "A", SourceServiceInstanceID: 1,
					SourceServiceInstanceNetworkAddress: modelNodeA, SourcePlugName: "P1", SourcePlugPort: s.port, DestServiceName: "B", DestServiceInstanceID: b,
					DestServiceInstanceNetworkAddress: modelNodeB, DestSocketName: "S1", DestSocketPort: 54000, DestSocketNewPort: 54000, Status: StatusSessionClosed}
				dst := &DestSessionCloseInfo{Header: Header{MessageID: 1001 + 2*s.request, SubType: AgentToManager}, SourceServiceInstanceNetworkAddress: modelNodeA, SourcePlugPort: s.port,
					DestServiceName: "B", DestServiceInstanceID: b, DestServiceInstanceNetworkAddress: modelNodeB, DestSocketName: "S1", DestSocketPort: 54000,
					DestSocketNewPort: 54000, Status: StatusSessionBroken}
				first, second := m.message(modelNodeA, src), m.message(modelNodeB, dst)
				if rapid.Bool().Draw(t, "destination first") {
					first, second = second, first
				}
				m.do(t, first, m.closed(s, nil)...)
				m.do(t, second) // it closed once
			},
			"closed by the operator": func(t *rapid.T) {
				s := pickOne(t, "session", m.sessions)
				if s.closing {
					t.Skip("it is being closed")
				}
				m.calls++
				s.closing = true
				sent := m.do(t, ManagerInput{Kind: ManagerInputCommand, Call: m.calls, Cmd: CloseSessionCommand{s.id}},
					fmt.Sprintf("session closing %d", s.request), "source_service_session_close_request to 1")
				m.closing = append(m.closing, &modelClose{sent[0].Head().MessageID, true, s, m.calls})
			},
			"an end answers": func(t *rapid.T) {
				c := pickOne(t, "close request", m.closing)
				status := rapid.SampledFrom([]Status{StatusOK, StatusNotFound, StatusUnavailable}).Draw(t, "status")
				h := Header{MessageID: c.messageID, SubType: AgentToManager}
				in := m.message(modelNodeB, &DestSessionCloseResponse{Header: h, Status: status})
				other := m.message(modelNodeA, &DestSessionCloseResponse{Header: h, Status: status})
				if c.atSource {
					in = m.message(modelNodeA, &SourceSessionCloseResponse{Header: h, Status: status})
					other = m.message(modelNodeB, &SourceSessionCloseResponse{Header: h, Status: status})
				}
				m.do(t, other) // who was not asked is not listened to
				if c.atSource && status == StatusUnavailable {
					c.atSource = false
					c.messageID = m.do(t, in, "dest_service_session_close_request to 2")[0].Head().MessageID
					return
				}
				m.do(t, in, m.closed(c.session, nil)...)
			},
			"": func(t *rapid.T) {
				s := m.core.Snapshot()
				offers := 0
				for _, r := range m.requests {
					if r.offer {
						offers++
					}
				}
				if len(s.Sessions) != len(m.sessions)+offers {
					t.Fatalf("%d sessions, want %d open and %d offered", len(s.Sessions), len(m.sessions), offers)
				}
			},
		})
	})
}
