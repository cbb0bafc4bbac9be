package ssmmp

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// An instanceModel says in the simplest terms what an instance's core has to do
// next: each action of TestInstanceModel writes down what it expects, and the
// core has to do exactly that, in that order.
type instanceModel struct {
	core *InstanceCore

	up     bool
	health Status
	drain  int64 // message id of the graceful_shutdown_request; 0 for none
	lastID int64
	kept   []string // reports that may have to be said again, in their order
	gone   int      // those of this connection that are not among them any more
	never  bool     // this agent does not tell what the Manager has
	calls  CallID
	conns  uint64
	dials  []*modelDial
	ends   []*modelEnd
}

type modelDial struct {
	call    CallID // 0 when it was given up
	id      int64  // of the session_request
	plug    PlugTarget
	granted netip.AddrPort // invalid while it is not
}

type modelEnd struct {
	conn   uint64
	plug   PlugTarget // only Socket at the destination's end
	source bool
	peer   netip.AddrPort
	port   uint16
	asked  []int64 // message ids of the requests to close it
}

// report is what the core is expected to say: now, or when the agent is back;
// and again when another comes before the Manager is known to have it, unless
// it is an answer.
func (m *instanceModel) report(want []string, line string) []string {
	if !m.up || !m.never && !strings.Contains(line, " answer ") {
		m.kept = append(m.kept, line)
	}
	if m.up {
		want = append(want, line)
	}
	return want
}

func (m *instanceModel) nextID() int64 {
	m.lastID++
	return m.lastID
}

// do steps the core and compares what it does with what is expected.
func (m *instanceModel) do(t *rapid.T, in InstanceInput, want ...string) {
	t.Helper()
	var got []string
	for _, o := range m.core.Step(in) {
		got = append(got, instanceOutputText(o))
	}
	if !slices.Equal(got, want) {
		t.Fatalf("the core does\n\t%q\nwant\n\t%q", got, want)
	}
}

// instanceOutputText is one output without what the model does not predict.
func instanceOutputText(o InstanceOutput) string {
	switch o.Kind {
	case InstanceOutputConnect:
		return fmt.Sprintf("connect %d to %s", o.Call, o.Target)
	case InstanceOutputRefuse:
		return fmt.Sprintf("refuse %d: %d", o.Call, o.Status)
	case InstanceOutputDrop:
		return fmt.Sprintf("drop %d", o.Conn)
	case InstanceOutputDrain:
		return "drain"
	case InstanceOutputWarn:
		return "warn"
	}
	id := o.Msg.Head().MessageID
	switch m := o.Msg.(type) {
	case *SessionRequest:
		return fmt.Sprintf("%d request %s %s %s", id, m.SourcePlugName, m.DestSocketName, m.DestServiceName)
	case *SessionAck:
		return fmt.Sprintf("%d ack %d %d: %d", id, m.SourcePlugPort, m.DestSocketNewPort, m.Status)
	case *SourceSessionCloseInfo:
		return fmt.Sprintf("%d closed %s %d: %d", id, m.SourcePlugName, m.SourcePlugPort, m.Status)
	case *DestSessionCloseInfo:
		return fmt.Sprintf("%d closed %s %d: %d", id, m.DestSocketName, m.SourcePlugPort, m.Status)
	case *SourceSessionCloseResponse:
		return fmt.Sprintf("%d answer source: %d", id, m.Status)
	case *DestSessionCloseResponse:
		return fmt.Sprintf("%d answer destination: %d", id, m.Status)
	case *GracefulShutdownResponse:
		return fmt.Sprintf("%d answer graceful: %d", id, m.Status)
	case *InstanceHealthResponse:
		return fmt.Sprintf("%d health %d", id, m.Status)
	case *TerminationInfo:
		return fmt.Sprintf("%d terminates", id)
	}
	return fmt.Sprintf("unexpected %s", o.Msg.Type())
}

// end takes an end of a session out of the model, and says what is reported.
func (m *instanceModel) end(want []string, e *modelEnd, status Status) []string {
	m.ends = slices.DeleteFunc(m.ends, func(o *modelEnd) bool { return o == e })
	switch {
	case len(e.asked) > 0:
		for _, id := range e.asked {
			want = m.report(want, answerText(e.source, id, StatusOK))
		}
	case e.source:
		want = m.report(want, fmt.Sprintf("%d closed %s %d: %d", m.nextID(), e.plug.Plug, e.port, status))
	default:
		want = m.report(want, fmt.Sprintf("%d closed %s %d: %d", m.nextID(), e.plug.Socket, e.peer.Port(), status))
	}
	return want
}

func answerText(source bool, id int64, s Status) string {
	if source {
		return fmt.Sprintf("%d answer source: %d", id, s)
	}
	return fmt.Sprintf("%d answer destination: %d", id, s)
}

func pickOne[T any](t *rapid.T, label string, from []T) T {
	if len(from) == 0 {
		t.Skip("none")
	}
	return rapid.SampledFrom(from).Draw(t, label)
}

// TestInstanceModel compares an instance's core with a simple model of what an
// instance says and does (PROTOCOL section 3), action by action.
func TestInstanceModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		m := &instanceModel{core: NewInstanceCore(coreLaunch), health: StatusOK}
		message := func(msg Message) InstanceInput { return InstanceInput{Kind: InstanceInputMessage, Msg: msg} }
		closeRequest := func(e *modelEnd, id int64) InstanceInput {
			if e.source {
				return message(&SourceSessionCloseRequest{Header: Header{MessageID: id, SubType: AgentToSourceService},
					SourceServiceInstanceID: coreLaunch.ID, SourcePlugName: e.plug.Plug, SourcePlugPort: e.port,
					DestServiceInstanceNetworkAddress: e.peer.Addr(), DestSocketNewPort: e.peer.Port()})
			}
			return message(&DestSessionCloseRequest{Header: Header{MessageID: id, SubType: AgentToDestService},
				DestServiceInstanceID: coreLaunch.ID, DestSocketName: e.plug.Socket, DestSocketNewPort: e.port,
				SourceServiceInstanceNetworkAddress: e.peer.Addr(), SourcePlugPort: e.peer.Port()})
		}
		t.Repeat(map[string]func(*rapid.T){
			"agent comes": func(t *rapid.T) {
				if m.up {
					t.Skip("it is there")
				}
				m.up, m.gone, m.never = true, 0, false
				want := append([]string{fmt.Sprintf("%d health 200", m.nextID())}, m.kept...)
				m.kept = slices.DeleteFunc(m.kept, func(line string) bool { return strings.Contains(line, " answer ") })
				m.do(t, InstanceInput{Kind: InstanceInputUp}, want...)
			},
			"agent goes": func(t *rapid.T) {
				if !m.up {
					t.Skip("it is away")
				}
				m.up = false
				var want []string
				m.dials = slices.DeleteFunc(m.dials, func(d *modelDial) bool {
					if d.granted.IsValid() {
						return false
					}
					if d.call != 0 {
						want = append(want, fmt.Sprintf("refuse %d: 503", d.call))
					}
					return true
				})
				m.do(t, InstanceInput{Kind: InstanceInputDown}, want...)
			},
			"dial": func(t *rapid.T) {
				m.calls++
				plug := rapid.SampledFrom(append(slices.Clone(coreLaunch.Plugs), PlugTarget{Plug: "P9"})).Draw(t, "plug")
				in := InstanceInput{Kind: InstanceInputDial, Call: m.calls, Plug: plug.Plug}
				switch {
				case plug.Socket == "":
					m.do(t, in, fmt.Sprintf("refuse %d: 403", m.calls))
				case !m.up:
					m.do(t, in, fmt.Sprintf("refuse %d: 503", m.calls))
				default:
					d := &modelDial{call: m.calls, id: m.nextID(), plug: plug}
					m.dials = append(m.dials, d)
					m.do(t, in, fmt.Sprintf("%d request %s %s %s", d.id, plug.Plug, plug.Socket, plug.Service))
				}
			},
			"answer": func(t *rapid.T) {
				if !m.up {
					t.Skip("the agent is away")
				}
				d := pickOne(t, "dial", m.dials)
				status := rapid.SampledFrom([]Status{StatusOK, StatusUnavailable, StatusTimeout}).Draw(t, "status")
				r := &SessionResponse{Header: Header{MessageID: d.id, SubType: AgentToService}, SourceServiceName: "A", SourceServiceInstanceID: coreLaunch.ID,
					DestServiceName: d.plug.Service, DestSocketName: d.plug.Socket, Status: status}
				var want []string
				switch {
				case d.granted.IsValid(): // again
				case status != StatusOK:
					m.dials = slices.DeleteFunc(m.dials, func(o *modelDial) bool { return o == d })
					if d.call != 0 {
						want = append(want, fmt.Sprintf("refuse %d: %d", d.call, status))
					}
				default:
					r.DestServiceInstanceID, r.DestServiceInstanceNetworkAddress, r.DestSocketPort = 9, coreNodes[1], 54000
					if d.call == 0 {
						m.dials = slices.DeleteFunc(m.dials, func(o *modelDial) bool { return o == d })
						want = m.report(want, fmt.Sprintf("%d ack 0 0: 499", d.id))
						break
					}
					d.granted = netip.AddrPortFrom(coreNodes[1], 54000)
					want = append(want, fmt.Sprintf("connect %d to %s", d.call, d.granted))
				}
				m.do(t, message(r), want...)
			},
			"answer to nobody": func(t *rapid.T) {
				if !m.up {
					t.Skip("the agent is away")
				}
				m.do(t, message(&SessionResponse{Header: Header{MessageID: m.lastID + 7, SubType: AgentToService}, SourceServiceName: "A",
					SourceServiceInstanceID: coreLaunch.ID, DestServiceName: "B", DestSocketName: "S2", Status: StatusUnavailable}))
			},
			"connect": func(t *rapid.T) {
				d := pickOne(t, "dial", m.dials)
				if !d.granted.IsValid() {
					t.Skip("not granted")
				}
				m.conns++
				e := &modelEnd{conn: m.conns, plug: d.plug, source: true, peer: d.granted, port: uint16(40000 + m.conns)}
				m.ends = append(m.ends, e)
				m.dials = slices.DeleteFunc(m.dials, func(o *modelDial) bool { return o == d })
				m.do(t, InstanceInput{Kind: InstanceInputDialed, Call: d.call, Conn: e.conn, Peer: e.peer, Port: e.port},
					m.report(nil, fmt.Sprintf("%d ack %d %d: 200", d.id, e.port, e.peer.Port()))...)
			},
			"dial fails or is given up": func(t *rapid.T) {
				d := pickOne(t, "dial", m.dials)
				if d.call == 0 {
					t.Skip("it was")
				}
				in := InstanceInput{Kind: InstanceInputDialFailed, Call: d.call, Status: rapid.SampledFrom([]Status{StatusCanceled, StatusUnreachable}).Draw(t, "status")}
				if !d.granted.IsValid() {
					d.call = 0
					m.do(t, in)
					return
				}
				m.dials = slices.DeleteFunc(m.dials, func(o *modelDial) bool { return o == d })
				m.do(t, in, m.report(nil, fmt.Sprintf("%d ack 0 0: %d", d.id, in.Status))...)
			},
			"accept": func(t *rapid.T) {
				m.conns++
				e := &modelEnd{conn: m.conns, plug: PlugTarget{Socket: "S1"}, port: 54000, peer: netip.AddrPortFrom(coreNodes[1], uint16(41000+m.conns))}
				m.ends = append(m.ends, e)
				m.do(t, InstanceInput{Kind: InstanceInputAccepted, Conn: e.conn, Socket: "S1", Peer: e.peer, Port: e.port})
			},
			"close or break": func(t *rapid.T) {
				e := pickOne(t, "end", m.ends)
				status := rapid.SampledFrom([]Status{StatusSessionClosed, StatusSessionBroken}).Draw(t, "status")
				m.do(t, InstanceInput{Kind: InstanceInputConnClosed, Conn: e.conn, Status: status}, m.end(nil, e, status)...)
			},
			"close request": func(t *rapid.T) {
				if !m.up {
					t.Skip("the agent is away")
				}
				e, id := pickOne(t, "end", m.ends), rapid.Int64Range(1, 3).Draw(t, "id")
				var want []string
				if len(e.asked) == 0 {
					want = append(want, fmt.Sprintf("drop %d", e.conn))
				}
				if !slices.Contains(e.asked, id) {
					e.asked = append(e.asked, id)
				}
				m.do(t, closeRequest(e, id), want...)
			},
			"close request for none": func(t *rapid.T) {
				if !m.up {
					t.Skip("the agent is away")
				}
				e := &modelEnd{source: rapid.Bool().Draw(t, "source"), plug: coreLaunch.Plugs[0], port: 39999, peer: netip.AddrPortFrom(coreNodes[2], 54000)}
				m.do(t, closeRequest(e, 5), answerText(e.source, 5, StatusNotFound))
			},
			"closed as asked": func(t *rapid.T) {
				e := pickOne(t, "end", m.ends)
				if len(e.asked) == 0 {
					t.Skip("not asked")
				}
				m.do(t, InstanceInput{Kind: InstanceInputConnDropped, Conn: e.conn}, m.end(nil, e, 0)...)
			},
			"health": func(t *rapid.T) {
				if !m.up {
					t.Skip("the agent is away")
				}
				if rapid.Bool().Draw(t, "change") {
					m.health = rapid.SampledFrom([]Status{StatusOK, StatusOverloaded, StatusFailed}).Draw(t, "status")
					m.do(t, InstanceInput{Kind: InstanceInputHealth, Status: m.health})
				}
				r := &InstanceHealthRequest{Header: Header{MessageID: 77, SubType: AgentToServiceInstance}, ServiceInstanceID: coreLaunch.ID,
					ServiceInstanceNetworkAddress: coreNodes[0]}
				n := len(m.kept)
				m.never = rapid.IntRange(0, 3).Draw(t, "tells") == 0
				if !m.never {
					heard := rapid.IntRange(0, m.gone+len(m.kept)).Draw(t, "heard")
					r.Extensions = []Extension{{extHeard, strconv.Itoa(heard)}}
					n = max(0, heard-m.gone)
				}
				m.kept, m.gone = m.kept[n:], m.gone+n
				m.do(t, message(r), fmt.Sprintf("77 health %d", m.health))
			},
			"graceful shutdown": func(t *rapid.T) {
				if !m.up {
					t.Skip("the agent is away")
				}
				var want []string
				if m.drain == 0 {
					want = append(want, "drain")
				}
				m.drain = rapid.Int64Range(80, 90).Draw(t, "id")
				m.do(t, message(&GracefulShutdownRequest{Header: Header{MessageID: m.drain, SubType: AgentToServiceInstance}, ServiceName: "A", ServiceInstanceID: coreLaunch.ID}), want...)
			},
			"finished": func(t *rapid.T) {
				if m.drain == 0 {
					m.do(t, InstanceInput{Kind: InstanceInputDrained})
					return
				}
				m.do(t, InstanceInput{Kind: InstanceInputDrained}, m.report(nil, fmt.Sprintf("%d answer graceful: 200", m.drain))...)
			},
			"what is not for an instance": func(t *rapid.T) {
				m.do(t, message(&HardShutdownRequest{Header: Header{MessageID: 3, SubType: ManagerToAgent}, ServiceName: "A", ServiceInstanceID: coreLaunch.ID}), "warn")
			},
		})
	})
}
