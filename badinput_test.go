package ssmmp

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A victim is one of the three places where lines arrive, with a peer that
// misbehaves there.
type victim struct {
	peer    *rawPeer
	valid   string               // a message that may arrive there; it has a service_instance_id
	unasked string               // a response that nobody asked for
	from    Actor                // who the peer is
	to      Actor                // who it misbehaves to
	dropped func() uint64        // by the victim
	good    func(more ...string) // the peer is served; more are lines of its message
	others  func(closed bool)    // everybody else is served, and the state is as it was
}

const otherNode = "127.0.0.2"

// rawAgent registers an agent of raw lines.
func (w *wire) rawAgent(addr string, extensions ...string) *rawPeer {
	w.t.Helper()
	p := dialRaw(w.t, w.address)
	if got := register(p, addr, "1", extensions...); got != "200" {
		w.t.Fatalf("agent %s is answered %s", addr, got)
	}
	return p
}

func register(p *rawPeer, addr, id string, extensions ...string) string {
	p.t.Helper()
	p.say("initiation_request", id, append([]string{"agent_network_address: " + addr, "service_repository: (A, B)"}, extensions...)...)
	r := p.hear("initiation_response")
	if r["message_id"] != id {
		p.t.Fatalf("%v, want id %s", r, id)
	}
	return r["status"]
}

// A rawManager is an agent's Manager of raw lines.
type rawManager struct {
	*rawPeer
	ln net.Listener
}

// newRawManager starts an agent that has a raw Manager.
func newRawManager(t testing.TB) (*wire, *rawManager) {
	t.Helper()
	ln, err := net.Listen("tcp", loopback)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	w := &wire{t: t, starts: make(stubs, 16)}
	w.runAgent(ln.Addr().String())
	m := &rawManager{ln: ln}
	m.rawPeer = &rawPeer{t: t}
	m.accept()
	return w, m
}

// accept takes the agent in.
func (m *rawManager) accept() {
	m.t.Helper()
	m.ln.(*net.TCPListener).SetDeadline(time.Now().Add(patience))
	conn, err := m.ln.Accept()
	if err != nil {
		m.t.Fatal(err)
	}
	m.rawPeer = newRaw(m.t, conn)
	r := m.hear("initiation_request")
	m.say("initiation_response", r["message_id"], "status: 200")
	// Its answer to this tells that it took that.
	m.say("agent_health_control_request", "1", "sub_type: Manager_to_agent", "agent_network_address: 127.0.0.1")
	m.hear("agent_health_control_response")
}

func executionLines(service string, id int) []string {
	return []string{"agent_network_address: 127.0.0.1", "service_name: " + service, fmt.Sprint("service_instance_id: ", id),
		"socket_configuration: S1, 54000", "plug_configuration: P1, S1, B"}
}

// execute has the agent start an instance and joins it.
func (w *wire) execute(m *rawManager, service string, id int) (*stubProcess, *rawPeer) {
	w.t.Helper()
	m.say("execution_request", strconv.Itoa(100+id), executionLines(service, id)...)
	p := w.started(service)
	raw := w.join(p, false)
	if r := m.hear("execution_response"); r["status"] != "200" {
		w.t.Fatalf("%v", r)
	}
	return p, raw
}

// relays asks over an instance's connection and answers from the Manager.
func relays(m *rawManager, p *rawPeer, id string, more ...string) {
	m.t.Helper()
	p.say("session_request", id, append(sessionLines(1), more...)...)
	r := m.hear("session_request")
	if r["message_id"] != id || r["sub_type"] != "agent_to_Manager" {
		m.t.Fatalf("%v", r)
	}
	m.say("session_response", id, "sub_type: Manager_to_agent", "source_service_name: A", "source_service_instance_id: 1", "dest_service_name: B",
		"dest_service_instance_id: ", "dest_socket_name: S1", "dest_service_instance_network_address: ", "dest_socket_port: ", "status: 503")
	if r := p.hear("session_response"); r["message_id"] != id || r["status"] != "503" {
		m.t.Fatalf("%v", r)
	}
}

var victims = map[string]func(t testing.TB) *victim{
	"Manager": func(t testing.TB) *victim {
		w := newWire(t, ManagerConfig{})
		p, bystander := w.rawAgent("127.0.0.1"), w.rawAgent(otherNode)
		before := w.m.Snapshot()
		return &victim{peer: p, from: ActorAgent, to: ActorManager, dropped: w.m.Dropped,
			valid:   "type: hard_shutdown_response ~ message_id: 5 ~ sub_type: agent_to_Manager ~ service_instance_id: 1 ~ status: 200",
			unasked: "type: execution_response ~ message_id: 5 ~ status: 200",
			good: func(more ...string) {
				t.Helper()
				if got := register(p, "127.0.0.1", "77", more...); got != "200" {
					t.Fatalf("registered again: %s", got)
				}
			},
			others: func(closed bool) {
				t.Helper()
				if got := register(bystander, otherNode, "78"); got != "200" {
					t.Fatalf("the other agent is answered %s", got)
				}
				after := w.m.Snapshot()
				after.Seq = before.Seq
				if closed {
					after.Agents[0].State = AgentUp // it was, and that is all
				}
				if !reflect.DeepEqual(before, after) {
					t.Fatalf("the state was\n%+v\nand is\n%+v", before, after)
				}
			}}
	},
	"agent, from its Manager": func(t testing.TB) *victim {
		w, m := newRawManager(t)
		_, a := w.execute(m, "A", 1)
		p := m.rawPeer
		return &victim{peer: p, from: ActorManager, to: ActorAgent, dropped: w.a.Dropped,
			valid:   "type: hard_shutdown_request ~ message_id: 5 ~ sub_type: Manager_to_agent ~ service_name: A ~ service_instance_id: 5",
			unasked: "type: session_response ~ message_id: 5 ~ sub_type: Manager_to_agent ~ source_service_name: A ~ source_service_instance_id: 1 ~ dest_service_name: B ~ dest_service_instance_id: 8 ~ dest_socket_name: S1 ~ dest_service_instance_network_address: 127.0.0.1 ~ dest_socket_port: 54003 ~ status: 200",
			good: func(more ...string) {
				t.Helper()
				p.say("agent_health_control_request", "77", append([]string{"sub_type: Manager_to_agent", "agent_network_address: 127.0.0.1"}, more...)...)
				if r := p.hear("agent_health_control_response"); r["message_id"] != "77" {
					t.Fatalf("%v", r)
				}
			},
			others: func(closed bool) {
				t.Helper()
				if closed {
					m.accept() // the agent comes back
				}
				relays(m, a, "78")
			}}
	},
	"agent, from an instance": func(t testing.TB) *victim {
		w, m := newRawManager(t)
		_, a := w.execute(m, "A", 1)
		_, b := w.execute(m, "B", 2)
		return &victim{peer: a, from: ActorInstance, to: ActorAgent, dropped: w.a.Dropped,
			valid:   "type: service_instance_termination_info ~ message_id: 5 ~ sub_type: service_instance_to_agent ~ service_name: A ~ service_instance_id: 1 ~ service_instance_network_address: 127.0.0.1",
			unasked: "type: source_service_session_close_response ~ message_id: 5 ~ sub_type: source_service_to_agent ~ status: 200",
			good:    func(more ...string) { t.Helper(); relays(m, a, "77", more...) },
			others: func(closed bool) {
				t.Helper()
				m.say("graceful_shutdown_request", "78", "sub_type: Manager_to_agent", "service_name: B", "service_instance_id: 2")
				b.say("graceful_shutdown_response", b.hear("graceful_shutdown_request")["message_id"], "sub_type: service_instance_to_agent", "status: 200")
				if r := m.hear("graceful_shutdown_response"); r["message_id"] != "78" {
					t.Fatalf("%v", r)
				}
			}}
	},
}

// fill pads a message to a length with an extension line.
func fill(line string, length int) string {
	line += " ~ x_pad: "
	return line + strings.Repeat("x", length-len(line))
}

// What is no message, or none for its receiver, is dropped, counted, and
// nothing else (PROTOCOL section 2).
func TestBadInput(t *testing.T) {
	t.Parallel()
	swap := func(old, new string) func(v *victim) string {
		return func(v *victim) string { return strings.Replace(v.valid, old, new, 1) + "\n" }
	}
	id := func(value string) func(v *victim) string { return swap("message_id: 5", "message_id: "+value) }
	instance := func(value string) func(v *victim) string {
		return func(v *victim) string {
			before, after, _ := strings.Cut(v.valid, "service_instance_id: ")
			return before + "service_instance_id: " + value + strings.TrimLeft(after, "0123456789") + "\n"
		}
	}
	line := func(s string) func(*victim) string { return func(*victim) string { return s } }
	rows := []struct {
		name    string
		input   func(v *victim) string
		dropped uint64
		closes  bool
	}{
		{"garbage", line("hello\n"), 1, false},
		{"three lines of garbage", line("hello\n: \n~ ~ ~\n"), 3, false},
		{"empty line", line("\n"), 1, false},
		{"binary noise", line("\x00\xff\xfe ~ \x80: \x01\r\r\x7f\n"), 1, false},
		{"HTTP", line("GET / HTTP/1.1\r\nHost: a\r\n\r\n"), 3, false},
		{"unknown type", line("type: mesh_request ~ message_id: 5 ~ status: 200\n"), 1, false},
		{"no type", line("message_id: 5 ~ status: 200\n"), 1, false},
		{"no id", swap(" ~ message_id: 5", ""), 1, false},
		{"id empty", id(""), 1, false},
		{"id 0", id("0"), 1, false},
		{"id negative", id("-5"), 1, false},
		{"id beyond int64", id("9223372036854775808"), 1, false},
		{"id not a number", id("5x"), 1, false},
		{"instance id missing", func(v *victim) string {
			before, after, _ := strings.Cut(v.valid, "service_instance_id: ")
			return strings.TrimSuffix(before, " ~ ") + strings.TrimLeft(after, "0123456789") + "\n"
		}, 1, false},
		{"instance id doubled", instance("5 ~ service_instance_id: 5"), 1, false},
		{"instance id empty", instance(""), 1, false},
		{"instance id 0", instance("0"), 1, false},
		{"instance id negative", instance("-1"), 1, false},
		{"instance id beyond int64", instance("9223372036854775808"), 1, false},
		{"instance id with a NUL", instance("1\x00"), 1, false},
		{"a line of another message", instance("1 ~ source_plug_name: P1"), 1, false},
		{"unknown sub_type", func(v *victim) string {
			before, after, _ := strings.Cut(v.valid, "sub_type: ")
			_, after, _ = strings.Cut(after, " ~ ")
			return before + "sub_type: manager_to_nobody ~ " + after + "\n"
		}, 1, false},
		{"no sub_type", func(v *victim) string {
			before, after, _ := strings.Cut(v.valid, "sub_type: ")
			_, after, _ = strings.Cut(after, " ~ ")
			return before + after + "\n"
		}, 1, false},
		{"a response that nobody asked for", func(v *victim) string { return v.unasked + "\n" + v.unasked + "\n" }, 2, false},
		{"64 KiB", func(v *victim) string { return fill(v.unasked, MaxLine) + "\n" }, 1, false},
		{"64 KiB and a byte", func(v *victim) string { return fill(v.unasked, MaxLine+1) + "\n" }, 1, true},
		{"an endless line", func(v *victim) string { return strings.Repeat("type: ", 1<<19) }, 1, true},
	}
	for where, newVictim := range victims {
		t.Run(where, func(t *testing.T) {
			t.Parallel()
			for _, row := range rows {
				t.Run(row.name, func(t *testing.T) {
					t.Parallel()
					v := newVictim(t)
					before := v.dropped()
					if row.closes {
						// What is not read any more may fail to be written.
						io.WriteString(v.peer.conn, row.input(v))
						v.peer.closed()
					} else {
						v.peer.write(row.input(v))
						v.good()
					}
					if got := v.dropped() - before; got != row.dropped {
						t.Errorf("%d dropped, want %d", got, row.dropped)
					}
					v.others(row.closes)
				})
			}
			t.Run("every hop to somebody else", func(t *testing.T) {
				t.Parallel()
				v := newVictim(t)
				before, want := v.dropped(), uint64(0)
				for _, hop := range readHops(t) {
					if CheckHop(mustParse(t, hop), v.from, v.to) != nil {
						want++
						v.peer.write(hop + "\n")
					}
				}
				v.good()
				if got := v.dropped() - before; got != want || want < 20 {
					t.Errorf("%d dropped, want %d", got, want)
				}
				v.others(false)
			})
			t.Run("extension lines", func(t *testing.T) {
				t.Parallel()
				v := newVictim(t)
				before := v.dropped()
				v.good("x_pad: " + strings.Repeat("x", MaxLine/2))
				if got := v.dropped() - before; got != 0 {
					t.Errorf("%d dropped, want none", got)
				}
				v.others(false)
			})
		})
	}
}

// What is well formed and wrong all the same.
func TestBadConduct(t *testing.T) {
	t.Parallel()
	toManager := "sub_type: agent_to_Manager"
	status := func(t testing.TB, got rawMessage, want string) {
		t.Helper()
		if got["status"] != want {
			t.Fatalf("%v, want status %s", got, want)
		}
	}
	// deploy has a raw agent run the gateway, and B if it wants a session.
	deploy := func(w *wire, p *rawPeer) {
		w.t.Helper()
		deployed := w.call(func(ctx context.Context) error { return w.m.Deploy(ctx, "wire") })
		p.say("execution_response", p.hear("execution_request")["message_id"], "status: 200")
		deployed()
	}
	request := relabel(sessionLines(1), "agent_to_Manager")
	rows := []struct {
		name string
		run  func(t *testing.T)
	}{
		{"messages before registration are dropped, requests refused with 401", func(t *testing.T) {
			w := newWire(t, ManagerConfig{})
			p := dialRaw(t, w.address)
			p.say("session_ack", "4", relabel(ackLines(1, 40112, "54000"), "agent_to_Manager")...)
			p.say("session_request", "5", request...)
			status(t, p.hear("session_response"), "401")
			if got := register(p, "127.0.0.1", "1"); got != "200" || w.m.Dropped() != 2 {
				t.Errorf("registered: %s, %d dropped", got, w.m.Dropped())
			}
		}},
		{"an agent that registers again brings its repository", func(t *testing.T) {
			w := newWire(t, ManagerConfig{})
			p := w.rawAgent("127.0.0.1")
			p.say("initiation_request", "2", "agent_network_address: 127.0.0.1", "service_repository: (A, new)")
			status(t, p.hear("initiation_response"), "200")
			if a := w.m.Snapshot().Agents; len(a) != 1 || !slices.Equal(a[0].Services, []string{"A", "new"}) {
				t.Errorf("%+v", a)
			}
		}},
		{"one connection is one agent (10)", func(t *testing.T) {
			w := newWire(t, ManagerConfig{})
			p := w.rawAgent("127.0.0.1")
			if got := register(p, otherNode, "2"); got != "409" {
				t.Errorf("another address: %s", got)
			}
			if got := register(p, "127.0.0.1", "3"); got != "200" || len(w.m.Snapshot().Agents) != 1 {
				t.Errorf("its own: %s", got)
			}
		}},
		{"an address belongs to one agent (10)", func(t *testing.T) {
			w := newWire(t, ManagerConfig{})
			p := w.rawAgent("127.0.0.1", "x_agent: one")
			for _, identity := range [][]string{nil, {"x_agent: two"}} {
				other := dialRaw(t, w.address)
				if got := register(other, "127.0.0.1", "2", identity...); got != "409" {
					t.Errorf("another agent, %v: %s", identity, got)
				}
			}
			if got := register(p, "127.0.0.1", "4", "x_agent: one"); got != "200" {
				t.Errorf("the owner: %s", got)
			}
			same := w.rawAgent("127.0.0.1", "x_agent: one")
			p.closed()
			if got := register(same, "127.0.0.1", "5"); got != "200" {
				t.Errorf("the owner that came back: %s", got)
			}
		}},
		{"unknown services are accepted, and never started (25)", func(t *testing.T) {
			w := newWire(t, ManagerConfig{})
			p := dialRaw(t, w.address)
			p.say("initiation_request", "1", "agent_network_address: 127.0.0.1", "service_repository: (A, unheard-of, Z)")
			status(t, p.hear("initiation_response"), "200")
			deploy(w, p)
			p.say("session_request", "5", request...)
			status(t, p.hear("session_response"), "404")
			if s := w.m.Snapshot(); !slices.Equal(s.Agents[0].Unknown, []string{"unheard-of", "Z"}) || len(s.Instances) != 1 {
				t.Errorf("%+v", s)
			}
		}},
		{"an agent speaks for its own instances only (31)", func(t *testing.T) {
			w := newWire(t, ManagerConfig{})
			p := w.rawAgent("127.0.0.1")
			deploy(w, p)
			other := w.rawAgent(otherNode)
			before := w.m.Snapshot()
			other.say("session_request", "5", request...)
			status(t, other.hear("session_response"), "403")
			other.say("session_ack", "5", relabel(ackLines(1, 40112, "54000"), "agent_to_Manager")...)
			other.say("service_instance_termination_info", "6", toManager, "service_name: A", "service_instance_id: 1", "service_instance_network_address: 127.0.0.1")
			other.say("service_instance_health_response", "1", toManager, "service_instance_id: 1", "status: 410")
			register(other, otherNode, "7")
			after := w.m.Snapshot()
			after.Seq = before.Seq
			if !reflect.DeepEqual(before, after) || w.m.Dropped() != 4 {
				t.Errorf("%d dropped, and the state was\n%+v\nand is\n%+v", w.m.Dropped(), before, after)
			}
		}},
		{"no session off the graph, says the Manager (32)", func(t *testing.T) {
			w := newWire(t, ManagerConfig{})
			p := w.rawAgent("127.0.0.1")
			deploy(w, p)
			for n, off := range []string{"source_plug_name: P2", "dest_service_name: C", "dest_socket_name: S0"} {
				lines := slices.Clone(request)
				name, _, _ := strings.Cut(off, ": ")
				lines[slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, name+": ") })] = off
				p.say("session_request", strconv.Itoa(5+n), lines...)
				status(t, p.hear("session_response"), "403")
			}
			if s := w.m.Snapshot(); len(s.Instances) != 1 {
				t.Errorf("%+v", s.Instances)
			}
		}},
		{"a duplicate session_request gets the same answer (7)", func(t *testing.T) {
			w := newWire(t, ManagerConfig{})
			p := w.rawAgent("127.0.0.1")
			deploy(w, p)
			p.say("session_request", "5", request...)
			p.say("session_request", "5", request...) // while the first one waits
			p.say("execution_response", p.hear("execution_request")["message_id"], "status: 200")
			first := p.hear("session_response")
			status(t, first, "200")
			again := func() {
				t.Helper()
				p.say("session_request", "5", request...)
				if r := p.hear("session_response"); !reflect.DeepEqual(r, first) {
					t.Errorf("%v, and then %v", first, r)
				}
			}
			again()
			p.say("session_ack", "5", relabel(ackLines(1, 40112, first["dest_socket_port"]), "agent_to_Manager")...)
			again()
			if s := w.m.Snapshot(); len(s.Instances) != 2 || len(s.Sessions) != 1 {
				t.Errorf("%+v", s)
			}
		}},
		{"a slow reader loses its connection, and nobody else (16)", func(t *testing.T) {
			w := newWire(t, ManagerConfig{})
			bystander := w.rawAgent(otherNode)
			near, far := net.Pipe() // it buffers nothing
			defer near.Close()
			served := make(chan struct{})
			go func() { defer close(served); w.m.agentConn(w.m.open(far)) }()
			near.SetDeadline(time.Now().Add(patience))
			io.WriteString(near, registerLine(1, netip.MustParseAddr("127.0.0.3"), "A", "")+"\n")
			if answer, err := bufio.NewReader(near).ReadString('\n'); err != nil || !strings.Contains(answer, "status: 200") {
				t.Fatalf("registration: %q, %v", answer, err)
			}
			line := registerLine(5, netip.MustParseAddr("127.0.0.3"), "A", "") + "\n" // again, which is answered
			sent := 0
			for ; sent < maxQueue; sent++ {
				if _, err := io.WriteString(near, line); err != nil {
					break
				}
			}
			if sent < maxQueue/512 || sent == maxQueue {
				t.Errorf("the connection ended after %d requests", sent)
			}
			<-served
			if got := register(bystander, otherNode, "2"); got != "200" {
				t.Errorf("the other agent: %s", got)
			}
		}},
		{"a request that is too long hears 413 before its connection ends (27)", func(t *testing.T) {
			p := newWire(t, ManagerConfig{}).rawAgent("127.0.0.1")
			p.say("initiation_request", "7", "agent_network_address: 127.0.0.1", "service_repository: ("+strings.Repeat("a", 4*MaxLine)+")")
			status(t, p.hear("initiation_response"), "413")
			p.closed()
		}},
		{"what cannot be decoded is answered where its answer goes", func(t *testing.T) {
			w, m := newRawManager(t)
			_, a := w.execute(m, "A", 1)
			m.say("execution_request", "31", "agent_network_address: nowhere", "service_name: B", "service_instance_id: 2", "socket_configuration: ", "plug_configuration: ")
			status(t, m.hear("execution_response"), "400")
			a.say("session_request", "32", "sub_type: service_to_agent", "source_service_name: A")
			r := a.hear("session_response")
			status(t, r, "400")
			if r["message_id"] != "32" || !strings.Contains(r["x_reason"], "source_service_instance_id") {
				t.Errorf("%v, want the reason", r)
			}
			a.say("initiation_request", "33", "agent_network_address: nowhere", "service_repository: ") // not its to say
			relays(m, a, "6")
		}},
		{"a registration is answered once (8)", func(t *testing.T) {
			w, m := newRawManager(t)
			_, a := w.execute(m, "A", 1)
			m.say("initiation_response", "999", "status: 409")
			relays(m, a, "6")
		}},
		{"a duplicate execution_request starts nothing (7)", func(t *testing.T) {
			w, m := newRawManager(t)
			p, _ := w.execute(m, "A", 1)
			m.say("execution_request", "200", executionLines("A", 1)...)
			status(t, m.hear("execution_response"), "200")
			p.exit(Exit{})
			m.hear("service_instance_termination_info")
			m.say("execution_request", "201", executionLines("A", 1)...)
			status(t, m.hear("execution_response"), "410")
			m.say("execution_request", "202", executionLines("C", 2)...)
			status(t, m.hear("execution_response"), "404")
			if len(w.starts) != 0 {
				t.Error("something was started")
			}
		}},
		{"no session off the graph, says the agent (32)", func(t *testing.T) {
			w, m := newRawManager(t)
			_, a := w.execute(m, "A", 1)
			before := w.a.Dropped()
			a.say("session_request", "5", append(sessionLines(1)[:6:6], "dest_socket_name: S9")...)
			status(t, a.hear("session_response"), "403")
			if got := w.a.Dropped() - before; got != 1 {
				t.Errorf("%d dropped, want 1", got)
			}
			relays(m, a, "6") // and this is the first that the Manager hears
		}},
		{"an instance speaks for itself, on its connection (29)", func(t *testing.T) {
			w, m := newRawManager(t)
			_, a := w.execute(m, "A", 1)
			_, b := w.execute(m, "B", 2)
			b.say("session_request", "5", sessionLines(1)...)
			status(t, b.hear("session_response"), "403")
			relays(m, a, "6")
		}},
		{"an instance with a connection is no other's (29)", func(t *testing.T) {
			w, m := newRawManager(t)
			p, a := w.execute(m, "A", 1)
			for n, secret := range []string{"", "x_secret: wrong", "x_secret: " + p.Secret + "x"} {
				thief := dialRaw(t, p.Agent)
				lines := sessionLines(1)
				if secret != "" {
					lines = append(lines, secret)
				}
				thief.say("session_request", strconv.Itoa(5+n), lines...)
				status(t, thief.hear("session_response"), "403")
			}
			relays(m, a, "6")
		}},
		{"an instance without a connection is not the first comer's (29)", func(t *testing.T) {
			w, m := newRawManager(t)
			m.say("execution_request", "1", executionLines("A", 1)...)
			p := w.started("A")
			p.foreign.Store(true) // the kernel says: another process
			thief := dialRaw(t, p.Agent)
			thief.say("session_request", "5", sessionLines(1)...)
			status(t, thief.hear("session_response"), "403")
			thief.say("session_request", "6", append(sessionLines(1), "x_secret: wrong")...)
			status(t, thief.hear("session_response"), "403")
			own := dialRaw(t, p.Agent)
			own.say("service_instance_health_response", "1", "sub_type: service_instance_to_agent", "service_instance_id: 1", "status: 200", "x_secret: "+p.Secret)
			status(t, m.hear("execution_response"), "200")
			relays(m, own, "7")
		}},
		{"an instance that is none is refused", func(t *testing.T) {
			w, m := newRawManager(t)
			p, a := w.execute(m, "A", 1)
			nobody := dialRaw(t, p.Agent)
			nobody.say("session_request", "5", sessionLines(9)...)
			status(t, nobody.hear("session_response"), "403")
			relays(m, a, "6")
		}},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			row.run(t)
		})
	}
}
