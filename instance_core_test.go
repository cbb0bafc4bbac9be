package ssmmp

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

var coreLaunch = Launch{
	Service: "A", ID: 7, Address: coreNodes[0], Secret: "secret",
	Sockets: []SocketPort{{"S1", 54000}},
	Plugs:   []PlugTarget{{"P1", "S2", "B"}, {"P2", "S3", "C"}},
}

// An instanceStepper steps an instance's core by hand and checks after each
// step what an instance must keep.
type instanceStepper struct {
	t      tester
	core   *InstanceCore
	reader lineReader

	steps      []instanceStep
	transcript []byte

	up       bool
	dials    map[CallID]InstanceOutputKind // of a call: its outcome, InstanceOutputSend while it has none
	requests map[int64]*SessionRequest
	waiting  map[int64]bool // of requests: no answer arrived, and the agent stayed
	granted  map[int64]bool // whether the answer was a success
	acked    map[int64]bool
	conns    map[uint64]InstanceInput // open
	reported map[uint64]bool          // ended
	reports  map[string]bool          // acknowledgments that were sent
	lost     int                      // connections to the agent that ended
	closing  map[int64]int            // close requests, not answered yet
}

type instanceStep struct {
	in   InstanceInput
	line string
}

func newInstanceStepper(t tester) *instanceStepper {
	return &instanceStepper{t: t, core: NewInstanceCore(coreLaunch), dials: map[CallID]InstanceOutputKind{},
		requests: map[int64]*SessionRequest{}, waiting: map[int64]bool{}, granted: map[int64]bool{}, acked: map[int64]bool{},
		conns: map[uint64]InstanceInput{}, reported: map[uint64]bool{}, closing: map[int64]int{}, reports: map[string]bool{}}
}

func (s *instanceStepper) step(in InstanceInput, line string) []InstanceOutput {
	s.t.Helper()
	s.steps = append(s.steps, instanceStep{in, line})
	switch in.Kind {
	case InstanceInputUp:
		s.up = true
	case InstanceInputDown:
		s.up = false
		s.lost++
		clear(s.waiting)
	}
	out := s.core.Step(in)
	s.transcript = appendInstanceStep(s.t, s.transcript, out)
	for _, o := range out {
		s.output(o)
	}
	if len(s.core.conns) != len(s.conns) || len(s.core.byPorts) > len(s.conns) {
		s.t.Fatalf("%d connections, %d by their ports, want %d", len(s.core.conns), len(s.core.byPorts), len(s.conns))
	}
	if len(s.core.byCall) > len(s.core.dials) {
		s.t.Fatalf("%d calls for %d dials", len(s.core.byCall), len(s.core.dials))
	}
	return out
}

func appendInstanceStep(t tester, b []byte, out []InstanceOutput) []byte {
	for _, o := range out {
		b = fmt.Appendf(b, "%d %d %d %s %d %q ", o.Kind, o.Call, o.Conn, o.Target, o.Status, o.Text)
		if o.Msg != nil {
			b = append(b, encode(t, o.Msg)...)
		}
		b = append(b, '\n')
	}
	return b
}

func (s *instanceStepper) output(o InstanceOutput) {
	s.t.Helper()
	switch o.Kind {
	case InstanceOutputConnect:
		if s.dials[o.Call] != InstanceOutputSend {
			s.t.Fatalf("call %d is answered twice", o.Call)
		}
		s.dials[o.Call] = InstanceOutputConnect
	case InstanceOutputRefuse:
		if s.dials[o.Call] != InstanceOutputSend || o.Status.Success() {
			s.t.Fatalf("call %d is answered twice, or refused with %s", o.Call, o.Status)
		}
		s.dials[o.Call] = InstanceOutputRefuse
	case InstanceOutputDrop:
		if _, open := s.conns[o.Conn]; !open {
			s.t.Fatalf("connection %d is dropped, and not open", o.Conn)
		}
	case InstanceOutputSend:
		s.sent(o.Msg)
	}
}

func (s *instanceStepper) sent(m Message) {
	s.t.Helper()
	line := encode(s.t, m)
	if err := CheckHop(m, ActorInstance, ActorAgent); err != nil {
		s.t.Fatalf("%v", err)
	}
	if !s.up {
		s.t.Fatalf("sent while the agent is away: %s", line)
	}
	if id := senderOf(m); id != 0 && id != coreLaunch.ID {
		s.t.Fatalf("it speaks for %d: %s", id, line)
	}
	id := m.Head().MessageID
	if s.reports[line] && s.lost > 0 {
		return // once more: it may not have arrived
	}
	switch m := m.(type) {
	case *SessionRequest:
		if s.requests[id] != nil {
			s.t.Fatalf("message id used again: %s", line)
		}
		s.requests[id], s.waiting[id] = Clone(m).(*SessionRequest), true
	case *SessionAck:
		if !s.granted[id] || s.acked[id] {
			s.t.Fatalf("acknowledged without a grant, or twice: %s", line)
		}
		s.acked[id], s.reports[line] = true, true
	case *SourceSessionCloseResponse, *DestSessionCloseResponse:
		if s.closing[id]--; s.closing[id] < 0 {
			s.t.Fatalf("nobody asked for %s", line)
		}
	case *InstanceHealthResponse:
		if h := m.Extension(extSecret); h != "" && h != coreLaunch.Secret {
			s.t.Fatalf("%s", line)
		}
	}
}

// message steps a line of the agent; nothing arrives while that is away.
func (s *instanceStepper) message(line string) {
	s.t.Helper()
	if !s.up {
		return
	}
	m, err := s.reader.read(line)
	if err != nil {
		s.t.Fatalf("%q: %v", line, err)
	}
	hop := CheckHop(m, ActorAgent, ActorInstance) == nil
	switch m := m.(type) {
	case *SessionResponse:
		r := s.requests[m.MessageID]
		if hop && s.waiting[m.MessageID] && m.SourceServiceInstanceID == coreLaunch.ID && m.DestServiceName == r.DestServiceName && m.DestSocketName == r.DestSocketName {
			delete(s.waiting, m.MessageID)
			s.granted[m.MessageID] = m.Status.Success()
		}
	case *SourceSessionCloseRequest, *DestSessionCloseRequest:
		if hop {
			s.closing[m.Head().MessageID]++
		}
	}
	s.step(InstanceInput{Kind: InstanceInputMessage, Msg: m}, line)
}

// end says that a connection ended, one way or the other: it is told once.
func (s *instanceStepper) end(conn uint64, kind InstanceInputKind) {
	s.t.Helper()
	_, open := s.conns[conn]
	delete(s.conns, conn)
	infos := 0
	for _, o := range s.step(InstanceInput{Kind: kind, Conn: conn, Status: StatusSessionClosed}, "") {
		if o.Kind == InstanceOutputSend {
			infos++
		}
	}
	if infos > 0 && (!open || s.reported[conn]) {
		s.t.Fatalf("the end of connection %d is told twice", conn)
	}
	s.reported[conn] = s.reported[conn] || open
}

func (s *instanceStepper) replay() {
	s.t.Helper()
	core, b := NewInstanceCore(coreLaunch), []byte(nil)
	var reader lineReader
	for _, st := range s.steps {
		in := st.in
		if in.Kind == InstanceInputMessage {
			m, err := reader.read(st.line)
			if err != nil {
				s.t.Fatalf("%v", err)
			}
			in.Msg = m
		}
		b = appendInstanceStep(s.t, b, core.Step(in))
	}
	if !bytes.Equal(b, s.transcript) {
		s.t.Fatalf("the same inputs gave\n%s\nand then\n%s", s.transcript, b)
	}
}

func TestInstanceCoreChaos(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s := newInstanceStepper(t)
		s.step(InstanceInput{Kind: InstanceInputUp}, "")
		lastCall, lastConn, lastID := CallID(0), uint64(0), int64(0)
		call := func() CallID { return CallID(rapid.Uint64Range(1, uint64(lastCall)+1).Draw(t, "call")) }
		conn := func() uint64 { return rapid.Uint64Range(1, lastConn+1).Draw(t, "connection") }
		peer := func() netip.AddrPort {
			return netip.AddrPortFrom(coreNodes[1], rapid.Uint16Range(1, 3).Draw(t, "peer"))
		}
		open := func(in InstanceInput) {
			lastConn++
			in.Conn, in.Peer = lastConn, peer()
			s.conns[lastConn] = in
			s.step(in, "")
		}
		actions := []func(){
			func() {
				lastCall++
				s.dials[lastCall] = InstanceOutputSend
				s.step(InstanceInput{Kind: InstanceInputDial, Call: lastCall, Plug: rapid.SampledFrom([]string{"P1", "P1", "P2", "P9"}).Draw(t, "plug")}, "")
			},
			func() { // an answer, to a request that there was or not
				m := &SessionResponse{Header: Header{MessageID: rapid.Int64Range(1, s.core.lastID+1).Draw(t, "message id"), SubType: AgentToService},
					SourceServiceName: "A", SourceServiceInstanceID: 7, DestServiceName: "B", DestSocketName: "S2",
					Status: rapid.SampledFrom([]Status{200, 200, 503, 403}).Draw(t, "status")}
				if r := s.requests[m.MessageID]; r != nil && rapid.IntRange(0, 5).Draw(t, "another edge") > 0 {
					m.DestServiceName, m.DestSocketName = r.DestServiceName, r.DestSocketName
				}
				if m.Status.Success() {
					m.DestServiceInstanceID, m.DestServiceInstanceNetworkAddress, m.DestSocketPort = 9, coreNodes[1], 54001
				}
				s.message(encode(t, m))
			},
			func() {
				c := call()
				if s.dials[c] == InstanceOutputConnect && len(s.core.byCall) > 0 {
					if _, waits := s.core.byCall[c]; waits {
						open(InstanceInput{Kind: InstanceInputDialed, Call: c, Port: rapid.Uint16Range(1, 3).Draw(t, "port")})
						return
					}
				}
				// Not granted, or over: nothing comes of it.
				s.step(InstanceInput{Kind: InstanceInputDialFailed, Call: c, Status: StatusCanceled}, "")
			},
			func() {
				s.step(InstanceInput{Kind: InstanceInputDialFailed, Call: call(), Status: StatusUnreachable}, "")
			},
			func() { open(InstanceInput{Kind: InstanceInputAccepted, Socket: "S1", Port: 54000}) },
			func() { s.end(conn(), InstanceInputConnClosed) },
			func() { s.end(conn(), InstanceInputConnDropped) },
			func() { // a close request for a session that there is or not
				lastID++
				id := max(1, lastID-rapid.Int64Range(0, 1).Draw(t, "again"))
				c := s.conns[conn()]
				if c.Kind == InstanceInputDialed {
					e := s.core.conns[c.Conn]
					s.message(encode(t, &SourceSessionCloseRequest{Header: Header{MessageID: id, SubType: AgentToSourceService},
						SourceServiceName: "A", SourceServiceInstanceID: 7, SourceServiceInstanceNetworkAddress: coreNodes[0],
						SourcePlugName: e.target.Plug, SourcePlugPort: c.Port, DestServiceName: "B",
						DestServiceInstanceNetworkAddress: c.Peer.Addr(), DestSocketName: "S2", DestSocketPort: 54001, DestSocketNewPort: c.Peer.Port()}))
					return
				}
				s.message(encode(t, &DestSessionCloseRequest{Header: Header{MessageID: id, SubType: AgentToDestService},
					DestServiceName: "A", DestServiceInstanceID: 7, DestServiceInstanceNetworkAddress: coreNodes[0],
					SourceServiceInstanceNetworkAddress: coreNodes[1], SourcePlugName: "P", SourcePlugPort: peer().Port(),
					DestSocketName: "S1", DestSocketPort: 54000, DestSocketNewPort: 54000}))
			},
			func() { // anything
				m := genMessage(t)
				if r := routes[m.Type()]; r[len(r)-1].to == ActorInstance {
					m.Head().SubType = r[len(r)-1].sub
				}
				s.message(encode(t, m))
			},
			func() { s.step(InstanceInput{Kind: InstanceInputHealth, Status: StatusOverloaded}, "") },
			func() { s.step(InstanceInput{Kind: InstanceInputDrained}, "") },
			func() {
				if s.up {
					s.step(InstanceInput{Kind: InstanceInputDown}, "")
				} else {
					s.step(InstanceInput{Kind: InstanceInputUp}, "")
				}
			},
			func() { s.step(InstanceInput{Kind: InstanceInputTerminating}, "") },
		}
		for range rapid.IntRange(5, 100).Draw(t, "steps") {
			actions[rapid.IntRange(0, len(actions)-1).Draw(t, "action")]()
		}

		// In the end nothing stays pending: dials fail with the agent, and the
		// Manager hears of every end.
		for c := range lastConn {
			s.end(c+1, InstanceInputConnClosed)
		}
		for c := range lastCall {
			s.step(InstanceInput{Kind: InstanceInputDialFailed, Call: c + 1, Status: StatusCanceled}, "")
		}
		if s.up {
			s.step(InstanceInput{Kind: InstanceInputDown}, "")
		}
		s.step(InstanceInput{Kind: InstanceInputUp}, "")
		s.message(encode(t, &InstanceHealthRequest{Header: Header{MessageID: 1, SubType: AgentToServiceInstance, Extensions: []Extension{{extHeard, "1000000"}}},
			ServiceInstanceID: coreLaunch.ID, ServiceInstanceNetworkAddress: coreNodes[0]}))
		if len(s.core.dials) > 0 || len(s.core.byCall) > 0 || len(s.core.reports) > 0 || len(s.core.byPorts) > 0 {
			t.Fatalf("pending: %d dials, %d calls, %d reports, %d connections", len(s.core.dials), len(s.core.byCall), len(s.core.reports), len(s.core.byPorts))
		}
		for id, granted := range s.granted {
			if granted && !s.acked[id] {
				t.Fatalf("a grant is not acknowledged: %d", id)
			}
		}
		for id, n := range s.closing {
			if n > 1 {
				t.Fatalf("close request %d was not answered %d times", id, n)
			}
		}
		s.replay()
	})
}

// FuzzInstanceCore reads a script, one step a line: "U" and "D" are the agent's
// coming and going, "C P1" dials, "F 1" fails call 1, anything else arrives.
func FuzzInstanceCore(f *testing.F) {
	f.Add("C P1\nC P2\nD\nU\nF 2\n" + strings.Join(readHops(f), "\n"))
	f.Fuzz(func(t *testing.T, script string) {
		s := newInstanceStepper(t)
		s.step(InstanceInput{Kind: InstanceInputUp}, "")
		calls := CallID(0)
		for n, line := range strings.Split(script, "\n") {
			verb, rest, _ := strings.Cut(line, " ")
			switch {
			case n > 200:
			case verb == "U" && !s.up:
				s.step(InstanceInput{Kind: InstanceInputUp}, "")
			case verb == "D" && s.up:
				s.step(InstanceInput{Kind: InstanceInputDown}, "")
			case verb == "C":
				calls++
				s.dials[calls] = InstanceOutputSend
				s.step(InstanceInput{Kind: InstanceInputDial, Call: calls, Plug: rest}, "")
			case verb == "F":
				s.step(InstanceInput{Kind: InstanceInputDialFailed, Call: CallID(len(rest)), Status: StatusCanceled}, "")
			case len(line) <= MaxLine:
				if _, err := ParseMessage(line); err == nil {
					s.message(line)
				}
			}
		}
		s.replay()
	})
}
