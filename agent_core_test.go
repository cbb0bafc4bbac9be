package ssmmp

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// An agentStepper steps an agent's core by hand and checks after each step
// what an agent must keep.
type agentStepper struct {
	t      tester
	core   *AgentCore
	reader lineReader
	now    time.Duration

	steps      []agentStep
	transcript []byte

	conns    map[ConnID]bool // open
	manager  ConnID
	launched map[InstanceID]Launch
	running  []InstanceID
	asked    []agentRequest // by the Manager, for an instance to answer
	relayed  []Message      // session requests that reached the Manager
	empty    bool
}

type agentRequest struct {
	to  InstanceID // over whatever connection it has
	msg Message
}

type agentStep struct {
	in   AgentInput
	line string
}

var coreAgent = AgentConfig{
	Manager: "10.0.0.100:55555", Address: coreNodes[0],
	Repository: []RepositoryEntry{{Service: "A"}, {Service: "B", ReadyWhenStarted: true}, {Service: "C", StopSignal: "SIGTERM"}},
}

func newAgentStepper(t tester) *agentStepper {
	return &agentStepper{t: t, core: NewAgentCore(coreAgent.WithDefaults(), "one"), conns: map[ConnID]bool{}, launched: map[InstanceID]Launch{}}
}

func (s *agentStepper) step(in AgentInput, line string) []AgentOutput {
	s.t.Helper()
	in.Now = s.now
	s.steps = append(s.steps, agentStep{in, line})
	switch in.Kind {
	case AgentInputManagerUp:
		s.manager = in.Conn
		s.conns[in.Conn] = true
	case AgentInputLost:
		delete(s.conns, in.Conn)
		if in.Conn == s.manager {
			s.manager = 0
		}
	}
	out := s.core.Step(in)
	s.transcript = appendAgentStep(s.t, s.transcript, out)
	for _, o := range out {
		s.output(o)
	}
	if len(s.core.reports) > maxReports {
		s.t.Fatalf("%d bytes of reports wait for the Manager", len(s.core.reports))
	}
	for conn, i := range s.core.conns {
		if i != nil && i.conn == conn && s.core.instances[i.id] != i {
			s.t.Fatalf("connection %d speaks for instance %d, which has ended", conn, i.id)
		}
	}
	return out
}

func appendAgentStep(t tester, b []byte, out []AgentOutput) []byte {
	for _, o := range out {
		b = fmt.Appendf(b, "%d %d %d %s %d %+v ", o.Kind, o.Conn, o.Instance, o.Text, o.Status, o.Launch)
		if o.Msg != nil {
			b = append(b, encode(t, o.Msg)...)
		}
		b = append(b, '\n')
	}
	return b
}

func (s *agentStepper) output(o AgentOutput) {
	s.t.Helper()
	switch o.Kind {
	case AgentOutputLaunch:
		if _, again := s.launched[o.Instance]; again || s.empty {
			s.t.Fatalf("instance %d is launched twice, or after the end", o.Instance)
		}
		if o.Entry == nil || o.Entry.Service != o.Launch.Service || o.Launch.ID != o.Instance || o.Launch.Address != coreAgent.Address {
			s.t.Fatalf("launch of %d: %+v", o.Instance, o.Launch)
		}
		s.launched[o.Instance] = o.Launch
		s.running = append(s.running, o.Instance)
	case AgentOutputKill, AgentOutputProbe, AgentOutputSignal:
		if !slices.Contains(s.running, o.Instance) {
			s.t.Fatalf("output %d for instance %d, which does not run", o.Kind, o.Instance)
		}
	case AgentOutputEmpty:
		if s.empty || len(s.running) > 0 {
			s.t.Fatalf("empty, with %v running", s.running)
		}
		s.empty = true
	case AgentOutputSend:
		s.sent(o)
	}
}

func (s *agentStepper) sent(o AgentOutput) {
	s.t.Helper()
	line := encode(s.t, o.Msg)
	if !s.conns[o.Conn] {
		s.t.Fatalf("%s is sent to connection %d, which is not open", line, o.Conn)
	}
	if o.Conn != s.manager {
		if err := CheckHop(o.Msg, ActorAgent, ActorInstance); err != nil {
			s.t.Fatalf("%v", err)
		}
		if responseToAgent(o.Msg) != nil {
			s.asked = append(s.asked, agentRequest{s.core.conns[o.Conn].id, Clone(o.Msg)})
		}
		return
	}
	if err := CheckHop(o.Msg, ActorAgent, ActorManager); err != nil {
		s.t.Fatalf("%v", err)
	}
	if strings.Contains(line, extSecret) {
		s.t.Fatalf("an instance's secret leaves the node: %s", line)
	}
	if id, a := senderOf(o.Msg), addressOf(o.Msg); o.Msg.Type() != TypeInstanceHealthResponse {
		if _, own := s.launched[id]; id != 0 && !own {
			s.t.Fatalf("it speaks for instance %d, which is not its own: %s", id, line)
		}
		if a.IsValid() && a != coreAgent.Address {
			s.t.Fatalf("it gives another address for its own: %s", line)
		}
	}
	if m, ok := o.Msg.(*SessionRequest); ok {
		l := s.launched[m.SourceServiceInstanceID]
		if !slices.Contains(l.Plugs, PlugTarget{m.SourcePlugName, m.DestSocketName, m.DestServiceName}) || l.Service != m.SourceServiceName {
			s.t.Fatalf("off the graph: %s", line)
		}
		s.relayed = append(s.relayed, Clone(m))
	}
}

// responseToAgent returns the response that an instance gives, nil if m asks
// for none.
func responseToAgent(m Message) Message {
	r := responseTo(m, StatusOK)
	if r != nil {
		r.Head().SubType = routes[r.Type()][0].sub
	}
	return r
}

func (s *agentStepper) message(conn ConnID, line string, p Proof) []AgentOutput {
	s.t.Helper()
	if conn != s.manager {
		s.conns[conn] = true
	}
	s.step(AgentInput{Kind: AgentInputTime}, "")
	m, err := s.reader.read(line)
	if err != nil {
		s.t.Fatalf("%q: %v", line, err)
	}
	typ, id := m.Type(), m.Head().MessageID
	before := len(s.asked)
	out := s.step(AgentInput{Kind: AgentInputMessage, Conn: conn, Msg: m, Proof: p}, line)
	speaker := InstanceID(0)
	if i := s.core.conns[conn]; i != nil {
		speaker = i.id
	}
	asked := conn == s.manager || slices.ContainsFunc(s.asked[:before], func(r agentRequest) bool {
		want := responseToAgent(r.msg)
		return r.to == speaker && want.Type() == typ && want.Head().MessageID == id
	})
	for _, o := range out {
		if o.Kind == AgentOutputSend && o.Conn == s.manager && o.Msg.Type() == typ && responses[typ] && !asked {
			s.t.Fatalf("the Manager gets a response that this instance was not asked for: %q", line)
		}
	}
	return out
}

// responses are those that only an instance can give.
var responses = map[Type]bool{TypeSourceSessionCloseResponse: true, TypeDestSessionCloseResponse: true,
	TypeGracefulShutdownResponse: true, TypeInstanceHealthResponse: true}

func (s *agentStepper) exited(id InstanceID) {
	s.running = slices.DeleteFunc(s.running, func(r InstanceID) bool { return r == id })
	s.step(AgentInput{Kind: AgentInputExited, Instance: id, Exit: Exit{Code: 1}}, "")
}

func (s *agentStepper) started(id InstanceID, err error) {
	if err != nil {
		s.running = slices.DeleteFunc(s.running, func(r InstanceID) bool { return r == id })
	}
	s.step(AgentInput{Kind: AgentInputStarted, Instance: id, Err: err}, "")
}

// settle ends what runs and lets time pass: nothing may stay pending.
func (s *agentStepper) settle() {
	s.t.Helper()
	s.step(AgentInput{Kind: AgentInputStop}, "")
	for _, id := range slices.Clone(s.running) {
		s.exited(id)
	}
	for range 10_000 {
		at, ok := s.core.NextDeadline()
		if !ok {
			break
		}
		s.now = max(s.now, at)
		s.step(AgentInput{Kind: AgentInputTime}, "")
	}
	// What the agent itself asked of its last instances ends with it.
	maps.DeleteFunc(s.core.relayed, func(id int64, _ *relayedRequest) bool { return id > ownIDs })
	if !s.empty || len(s.core.instances) > 0 || len(s.core.relayed) > 0 || len(s.core.pending) > 0 {
		s.t.Fatalf("pending: empty %v, %d instances, %d requests, %d timers", s.empty, len(s.core.instances), len(s.core.relayed), len(s.core.pending))
	}
}

func (s *agentStepper) replay() { s.replayFrom("one", 0, nil) }

func (s *agentStepper) replayFrom(identity string, epoch uint64, ended []InstanceID) {
	s.t.Helper()
	core, b := NewAgentCore(coreAgent.WithDefaults(), "one"), []byte(nil)
	core.ComeBack(identity, epoch, ended)
	var reader lineReader
	for _, st := range s.steps {
		in := st.in
		if in.Kind == AgentInputMessage {
			m, err := reader.read(st.line)
			if err != nil {
				s.t.Fatalf("%v", err)
			}
			in.Msg = m
		}
		b = appendAgentStep(s.t, b, core.Step(in))
	}
	if !bytes.Equal(b, s.transcript) {
		s.t.Fatalf("the same inputs gave\n%s\nand then\n%s", s.transcript, b)
	}
}

func executionLine(id int64, service string, instance InstanceID) string {
	return fmt.Sprintf("type: execution_request ~ message_id: %d ~ agent_network_address: %s ~ service_name: %s ~ service_instance_id: %d ~ socket_configuration: S1, 54000 ~ plug_configuration: P1, S2, B & P2, S3, C",
		id, coreAgent.Address, service, instance)
}

func helloLine(instance InstanceID, secret string) string {
	line := fmt.Sprintf("type: service_instance_health_response ~ message_id: 1 ~ sub_type: service_instance_to_agent ~ service_instance_id: %d ~ status: 200", instance)
	if secret != "" {
		line += " ~ x_secret: " + secret
	}
	return line
}

// up registers the agent at its Manager, over a connection.
func (s *agentStepper) up(conn ConnID) {
	out := s.step(AgentInput{Kind: AgentInputManagerUp, Conn: conn}, "")
	s.message(conn, fmt.Sprintf("type: initiation_response ~ message_id: %d ~ status: 200", out[0].Msg.Head().MessageID), ProofNone)
}

func TestAgentCoreChaos(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s := newAgentStepper(t)
		s.up(1)
		lastConn, lastID := ConnID(1), int64(0)
		id := func() InstanceID { return InstanceID(rapid.IntRange(1, 6).Draw(t, "instance")) }
		conn := func() ConnID {
			return rapid.SampledFrom(append(slices.Sorted(maps.Keys(s.conns)), lastConn+1)).Draw(t, "peer")
		}
		of := func(id InstanceID) ConnID {
			if i := s.core.instances[id]; i != nil && i.conn != 0 && rapid.IntRange(0, 7).Draw(t, "wrong peer") > 0 {
				return i.conn
			}
			return conn()
		}
		fromManager := func(m Message) {
			if s.manager != 0 {
				lastID++
				m.Head().MessageID = max(1, lastID-rapid.Int64Range(0, 1).Draw(t, "again"))
				s.message(s.manager, encode(t, m), ProofNone)
			}
		}
		session := func(id InstanceID) SourceSessionCloseRequest {
			return SourceSessionCloseRequest{Header: Header{SubType: ManagerToAgent}, SourceServiceName: "A", SourceServiceInstanceID: id,
				SourceServiceInstanceNetworkAddress: coreNodes[0], SourcePlugName: "P1", SourcePlugPort: 40000, DestServiceName: "B",
				DestServiceInstanceNetworkAddress: coreNodes[1], DestSocketName: "S2", DestSocketPort: 54001, DestSocketNewPort: 54001}
		}
		execute := func() {
			if s.manager == 0 {
				return
			}
			lastID++
			s.message(s.manager, executionLine(lastID, rapid.SampledFrom([]string{"A", "A", "B", "C", "D"}).Draw(t, "service"), id()), ProofNone)
		}
		hello := func() {
			lastConn++
			s.message(lastConn, helloLine(id(), rapid.SampledFrom([]string{"", "secret"}).Draw(t, "secret")),
				Proof(rapid.IntRange(0, 2).Draw(t, "proof")))
		}
		actions := []func(){execute, execute, hello, hello,
			func() {
				if err := rapid.SampledFrom([]error{nil, nil, nil, errors.New("no such file")}).Draw(t, "error"); len(s.running) > 0 {
					s.started(rapid.SampledFrom(s.running).Draw(t, "instance"), err)
				}
			},
			func() { s.step(AgentInput{Kind: AgentInputPortsListen, Instance: id()}, "") },
			func() {
				if len(s.running) > 0 {
					s.exited(rapid.SampledFrom(s.running).Draw(t, "instance"))
				}
			},
			func() { // a session request of an instance
				i := id()
				l := s.launched[i]
				m := &SessionRequest{Header: Header{MessageID: rapid.Int64Range(1, 6).Draw(t, "message id"), SubType: ServiceToAgent},
					SourceServiceName: "A", SourceServiceInstanceID: i,
					SourceServiceInstanceNetworkAddress: rapid.SampledFrom([]netip.Addr{coreNodes[0], wireNode, coreNodes[1]}).Draw(t, "address"),
					SourcePlugName:                      "P1", DestServiceName: "B", DestSocketName: rapid.SampledFrom([]string{"S2", "S2", "S9"}).Draw(t, "socket")}
				if rapid.Bool().Draw(t, "secret") {
					m.Extensions = []Extension{{extSecret, "secret"}}
				}
				if l.Service != "" {
					m.SourceServiceName = l.Service
				}
				s.message(of(i), encode(t, m), Proof(rapid.IntRange(0, 2).Draw(t, "proof")))
			},
			func() { // the Manager's answer to one
				if len(s.relayed) == 0 || s.manager == 0 {
					return
				}
				r := rapid.SampledFrom(s.relayed).Draw(t, "request").(*SessionRequest)
				i := s.core.instances[r.SourceServiceInstanceID]
				waits := i != nil && i.conn != 0
				if waits {
					_, waits = i.inFlight[r.MessageID]
				}
				answer := sessionFailure(r, StatusUnavailable)
				n := 0
				for _, o := range s.message(s.manager, encode(t, answer), ProofNone) {
					if o.Kind == AgentOutputSend {
						n++
					}
				}
				if waits != (n == 1) || n > 1 {
					t.Fatalf("an answer that is awaited (%v) is relayed %d times", waits, n)
				}
			},
			func() { m := session(id()); fromManager(&m) },
			func() {
				fromManager(&GracefulShutdownRequest{Header: Header{SubType: ManagerToAgent}, ServiceName: "A", ServiceInstanceID: id()})
			},
			func() {
				fromManager(&HardShutdownRequest{Header: Header{SubType: ManagerToAgent}, ServiceName: "A", ServiceInstanceID: id()})
			},
			func() {
				fromManager(&InstanceHealthRequest{Header: Header{SubType: ManagerToAgent}, ServiceInstanceID: id(), ServiceInstanceNetworkAddress: coreNodes[0]})
			},
			func() { // an instance's answer, from it or another
				if len(s.asked) > 0 {
					r := rapid.SampledFrom(s.asked).Draw(t, "request")
					to := of(r.to)
					if rapid.IntRange(0, 2).Draw(t, "another") == 0 {
						to = conn()
					}
					if to != s.manager {
						s.message(to, encode(t, responseToAgent(r.msg)), ProofNone)
					}
				}
			},
			func() { // anything
				m := genMessage(t)
				to := conn()
				if _, ok := m.(*InitiationResponse); ok && to == s.manager {
					return
				}
				if r := routes[m.Type()]; to != s.manager && r[0].from == ActorInstance {
					m.Head().SubType = r[0].sub
				}
				s.message(to, encode(t, m), Proof(rapid.IntRange(0, 2).Draw(t, "proof")))
			},
			func() { // a connection ends, perhaps the Manager's
				if len(s.conns) > 0 && rapid.Bool().Draw(t, "lose") {
					s.step(AgentInput{Kind: AgentInputLost, Conn: rapid.SampledFrom(slices.Sorted(maps.Keys(s.conns))).Draw(t, "lost")}, "")
				}
			},
			func() {
				if s.manager == 0 {
					lastConn++
					s.up(lastConn)
				}
			},
			func() {
				s.now += rapid.SampledFrom([]time.Duration{time.Millisecond, 6 * time.Second, 31 * time.Second}).Draw(t, "time")
				s.step(AgentInput{Kind: AgentInputTime}, "")
			},
			func() { // an instance of the agent before
				id := InstanceID(rapid.IntRange(5, 8).Draw(t, "instance"))
				if _, known := s.launched[id]; !known && !s.core.stop {
					r := coreRecord(id)
					r.Ready, r.Spoke = rapid.Bool().Draw(t, "ready"), rapid.Bool().Draw(t, "spoke")
					s.reattach(r)
				}
			},
			func() {
				if rapid.IntRange(0, 20).Draw(t, "stop") == 0 {
					s.step(AgentInput{Kind: AgentInputStop}, "")
				}
			},
		}
		for range rapid.IntRange(10, 120).Draw(t, "steps") {
			lastConn = max(lastConn, slices.Max(append(slices.Collect(maps.Keys(s.conns)), 0)))
			actions[rapid.IntRange(0, len(actions)-1).Draw(t, "action")]()
		}
		s.settle()
		s.replay()
	})
}

// FuzzAgentCore reads a script, one step a line: "T 5" passes five seconds,
// "L 2" loses connection 2, "S 9", "E 9" and "P 9" are instance 9 started,
// exited and listening; "2 type: …" arrives on connection 2. The Manager's is 1.
func FuzzAgentCore(f *testing.F) {
	hops := readHops(f)
	f.Add("1 " + executionLine(1, "A", 7) + "\n2 " + strings.Join(hops, "\n2 "))
	f.Add("1 " + executionLine(1, "A", 9) + "\nS 9\n2 " + helloLine(9, "s") + "\n1 " + strings.Join(hops, "\n1 ") + "\nE 9")
	f.Fuzz(func(t *testing.T, script string) {
		s := newAgentStepper(t)
		s.up(1)
		for n, line := range strings.Split(script, "\n") {
			verb, rest, _ := strings.Cut(line, " ")
			var number uint16
			fmt.Sscanf(rest, "%d", &number)
			id := InstanceID(number)
			switch {
			case n > 200:
			case verb == "T":
				s.now += time.Duration(number) * time.Second
				s.step(AgentInput{Kind: AgentInputTime}, "")
			case verb == "L":
				s.step(AgentInput{Kind: AgentInputLost, Conn: ConnID(number)}, "")
			case verb == "S" && slices.Contains(s.running, id):
				s.started(id, nil)
			case verb == "E" && slices.Contains(s.running, id):
				s.exited(id)
			case verb == "P":
				s.step(AgentInput{Kind: AgentInputPortsListen, Instance: id}, "")
			case len(verb) == 1 && len(rest) <= MaxLine && verb >= "1" && verb <= "9":
				conn := ConnID(verb[0] - '0')
				if _, err := ParseMessage(rest); err == nil && (conn != 1 || s.manager == 1) {
					s.message(conn, rest, Proof(len(rest)%3))
				}
			}
		}
		s.settle()
		s.replay()
	})
}
