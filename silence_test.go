package ssmmp

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// What both cores do where the specification is silent, one step at a time. The
// lines are as peers that send no extension lines write them.

// A steppedAgent is an agent's core with its Manager on connection 1.
type steppedAgent struct {
	t   *testing.T
	c   *AgentCore
	now time.Duration

	signals string       // sent to instances
	kills   []InstanceID // killed
}

const startA7 = "type: execution_request ~ message_id: 5 ~ agent_network_address: 10.0.0.1 ~ service_name: A ~ service_instance_id: 7 ~ socket_configuration: S1, 54000 ~ plug_configuration: "

func newSteppedAgent(t *testing.T, entry RepositoryEntry) *steppedAgent {
	cfg := AgentConfig{Manager: "10.0.0.9:55555", Address: netip.MustParseAddr("10.0.0.1"), Repository: []RepositoryEntry{entry}}
	a := &steppedAgent{t: t, c: NewAgentCore(cfg.WithDefaults(), "one")}
	a.step(AgentInput{Kind: AgentInputManagerUp, Conn: 1})
	id := a.c.registerID
	a.step(AgentInput{Kind: AgentInputMessage, Conn: 1, Msg: &InitiationResponse{Header: Header{MessageID: id}, Status: StatusOK}})
	return a
}

// step returns what the agent sends, as lines, and which instances it kills.
func (a *steppedAgent) step(in AgentInput) (sent []string, kills []InstanceID) {
	a.t.Helper()
	in.Now = a.now
	for _, o := range a.c.Step(in) {
		switch o.Kind {
		case AgentOutputSend:
			sent = append(sent, lineOf(a.t, o.Msg))
		case AgentOutputSignal:
			a.signals += o.Text
		case AgentOutputKill:
			kills = append(kills, o.Instance)
			a.kills = append(a.kills, o.Instance)
		}
	}
	return sent, kills
}

func (a *steppedAgent) message(conn ConnID, line string) []string {
	a.t.Helper()
	sent, _ := a.step(AgentInput{Kind: AgentInputMessage, Conn: conn, Msg: messageOf(a.t, line)})
	return sent
}

func lineOf(t *testing.T, m Message) string {
	t.Helper()
	line, err := AppendMessage(nil, m)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(string(line), "\n")
}

func messageOf(t *testing.T, line string) Message {
	t.Helper()
	m, err := ParseMessage(line)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func wantLines(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: sent %q, want %q", what, got, want)
	}
}

const ready5 = "type: execution_response ~ message_id: 5 ~ status: 200"

// Ready is the first message, or that all ports listen, or, where the entry
// says so, that it is started: and it is answered once.
func TestAgentReady(t *testing.T) {
	t.Parallel()
	hello := "type: service_instance_health_response ~ message_id: 1 ~ sub_type: service_instance_to_agent ~ service_instance_id: 7 ~ status: 200"
	for _, tt := range []struct {
		name    string
		started bool // the entry says that started is ready
		after   func(a *steppedAgent) []string
		want    []string
	}{
		{"first message", false, func(a *steppedAgent) []string { return a.message(2, hello) }, []string{ready5}},
		{"ports listen", false, func(a *steppedAgent) []string {
			sent, _ := a.step(AgentInput{Kind: AgentInputPortsListen, Instance: 7})
			return sent
		}, []string{ready5}},
		{"started", true, func(a *steppedAgent) []string { return nil }, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			a := newSteppedAgent(t, RepositoryEntry{Service: "A", ReadyWhenStarted: tt.started})
			wantLines(t, "execution_request", a.message(1, startA7))
			sent, _ := a.step(AgentInput{Kind: AgentInputStarted, Instance: 7})
			if tt.started {
				wantLines(t, "started", sent, ready5)
			} else {
				wantLines(t, "started", sent)
			}
			wantLines(t, tt.name, tt.after(a), tt.want...)
			sent, _ = a.step(AgentInput{Kind: AgentInputPortsListen, Instance: 7})
			wantLines(t, "again", sent)
		})
	}
}

// A program that never says a word is well as long as it runs; one that spoke
// and is silent now is not.
func TestAgentSpeaksForPrograms(t *testing.T) {
	t.Parallel()
	a := newSteppedAgent(t, RepositoryEntry{Service: "A", ReadyWhenStarted: true})
	a.message(1, startA7)
	a.step(AgentInput{Kind: AgentInputStarted, Instance: 7})
	const ask = "type: service_instance_health_request ~ message_id: 6 ~ sub_type: Manager_to_agent ~ service_instance_id: 7 ~ service_instance_network_address: 10.0.0.1"
	const answer = "type: service_instance_health_response ~ message_id: 6 ~ sub_type: agent_to_Manager ~ service_instance_id: 7 ~ status: "
	wantLines(t, "health of a program", a.message(1, ask), answer+"200")
	a.message(2, "type: service_instance_health_response ~ message_id: 1 ~ sub_type: service_instance_to_agent ~ service_instance_id: 7 ~ status: 200")
	a.step(AgentInput{Kind: AgentInputLost, Conn: 2})
	wantLines(t, "health of one that spoke", a.message(1, ask), answer+"503")
	a.step(AgentInput{Kind: AgentInputExited, Instance: 7})
	wantLines(t, "health of one that ended", a.message(1, ask), answer+"410")
}

// A program that was ready when its ports listened is well while they do: its
// agent says nothing while they do not, and answers the latest request then.
func TestAgentLooksAtPorts(t *testing.T) {
	t.Parallel()
	a := newSteppedAgent(t, RepositoryEntry{Service: "A"})
	a.message(1, startA7)
	a.step(AgentInput{Kind: AgentInputStarted, Instance: 7})
	a.step(AgentInput{Kind: AgentInputPortsListen, Instance: 7})
	const ask = "type: service_instance_health_request ~ message_id: 6 ~ sub_type: Manager_to_agent ~ service_instance_id: 7 ~ service_instance_network_address: 10.0.0.1"
	probes := func(id string) (n int) {
		for _, o := range a.c.Step(AgentInput{Kind: AgentInputMessage, Conn: 1, Msg: messageOf(t, strings.Replace(ask, "6", id, 1))}) {
			switch o.Kind {
			case AgentOutputProbe:
				n++
			case AgentOutputSend:
				t.Errorf("answered %s before the ports listen", lineOf(t, o.Msg))
			}
		}
		return n
	}
	if n := probes("6"); n != 1 {
		t.Errorf("%d probes, want 1", n)
	}
	if n := probes("8"); n != 0 {
		t.Errorf("%d more probes, while one is under way", n)
	}
	sent, _ := a.step(AgentInput{Kind: AgentInputPortsListen, Instance: 7})
	wantLines(t, "the ports listen", sent,
		"type: service_instance_health_response ~ message_id: 8 ~ sub_type: agent_to_Manager ~ service_instance_id: 7 ~ status: 200")
	sent, _ = a.step(AgentInput{Kind: AgentInputPortsListen, Instance: 7})
	wantLines(t, "again", sent)
}

// What does not speak SSMMP is shut down by its entry's signal, once, and by
// nothing gentler than death without one.
func TestAgentStopSignal(t *testing.T) {
	t.Parallel()
	const ask = "type: graceful_shutdown_request ~ message_id: 6 ~ sub_type: Manager_to_agent ~ service_name: A ~ service_instance_id: 7"
	const answer = "type: graceful_shutdown_response ~ message_id: 6 ~ sub_type: agent_to_Manager ~ status: "
	stop := func(a *steppedAgent) { a.step(AgentInput{Kind: AgentInputStop}) }
	asked := func(a *steppedAgent) { a.message(1, ask); a.message(1, ask) }
	hello := func(a *steppedAgent) {
		a.message(2, "type: service_instance_health_response ~ message_id: 1 ~ sub_type: service_instance_to_agent ~ service_instance_id: 7 ~ status: 200")
	}
	for _, tt := range []struct {
		name, signal string
		before       func(*steppedAgent)
		stop         func(*steppedAgent)
		signals      string
		killed       bool // at once
		late         bool // it has not ended by the deadline
		want         []string
	}{
		{"asked", "SIGINT", nil, asked, "SIGINT", false, false, []string{answer + "200"}},
		{"asked, and hangs", "SIGINT", nil, asked, "SIGINT", false, true, []string{answer + "504"}},
		{"asked, and speaks", "SIGINT", hello, asked, "", false, false, nil},
		{"the agent stops", "SIGTERM", nil, stop, "SIGTERM", false, false, nil},
		{"the agent stops, and it hangs", "SIGTERM", nil, stop, "SIGTERM", false, true, nil},
		{"the agent stops, without a signal", "", nil, stop, "", true, false, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			a := newSteppedAgent(t, RepositoryEntry{Service: "A", ReadyWhenStarted: true, StopSignal: tt.signal})
			a.message(1, startA7)
			a.step(AgentInput{Kind: AgentInputStarted, Instance: 7})
			if tt.before != nil {
				tt.before(a)
			}
			a.signals, a.kills = "", nil
			tt.stop(a)
			if a.signals != tt.signals || (len(a.kills) > 0) != tt.killed {
				t.Errorf("sent the signal %q and killed %v", a.signals, a.kills)
			}
			if tt.late {
				a.now += 10 * time.Second
				a.step(AgentInput{Kind: AgentInputTime})
				if len(a.kills) != 1 {
					t.Errorf("killed %v, want it killed", a.kills)
				}
			}
			sent, _ := a.step(AgentInput{Kind: AgentInputExited, Instance: 7})
			sent = slices.DeleteFunc(sent, func(line string) bool { return strings.HasPrefix(line, "type: service_instance_termination_info") })
			wantLines(t, "exited", sent, tt.want...)
		})
	}
}

// An entry that says which sockets and plugs its program has is no entry for a
// program with others.
func TestAgentOtherProgram(t *testing.T) {
	t.Parallel()
	const start = "type: execution_request ~ message_id: 5 ~ agent_network_address: 10.0.0.1 ~ service_name: A ~ service_instance_id: 7 ~ socket_configuration: S1, 54000 ~ plug_configuration: P1, S4, B"
	const no = "type: execution_response ~ message_id: 5 ~ status: 404 ~ x_reason: its repository entry has no "
	for _, tt := range []struct {
		name           string
		sockets, plugs []string
		want           []string
	}{
		{"says nothing", nil, nil, nil},
		{"has both", []string{"S1"}, []string{"P1"}, nil},
		{"has more", []string{"S2", "S1"}, []string{"P1", "P2"}, nil},
		{"another socket", []string{"S2"}, []string{"P1"}, []string{no + "socket S1"}},
		{"no socket", []string{}, nil, []string{no + "socket S1"}},
		{"another plug", nil, []string{"P2"}, []string{no + "plug P1"}},
		{"no plug", nil, []string{}, []string{no + "plug P1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			a := newSteppedAgent(t, RepositoryEntry{Service: "A", Sockets: tt.sockets, Plugs: tt.plugs})
			wantLines(t, "execution_request", a.message(1, start), tt.want...)
			if launched := a.c.instances[7] != nil; launched != (tt.want == nil) {
				t.Errorf("launched: %t", launched)
			}
		})
	}
}

// The same execution_request gets the same answer, also after the end.
func TestAgentExecutesOnce(t *testing.T) {
	t.Parallel()
	a := newSteppedAgent(t, RepositoryEntry{Service: "A", ReadyWhenStarted: true})
	a.message(1, startA7)
	a.step(AgentInput{Kind: AgentInputStarted, Instance: 7})
	wantLines(t, "again", a.message(1, startA7), ready5)
	a.step(AgentInput{Kind: AgentInputExited, Instance: 7})
	wantLines(t, "after the end", a.message(1, startA7), "type: execution_response ~ message_id: 5 ~ status: 410")
}

// An instance that said that it terminates, and runs on, is killed.
func TestAgentKillsTerminated(t *testing.T) {
	t.Parallel()
	a := newSteppedAgent(t, RepositoryEntry{Service: "A"})
	a.message(1, startA7)
	a.step(AgentInput{Kind: AgentInputStarted, Instance: 7})
	const info = "type: service_instance_termination_info ~ message_id: 3 ~ sub_type: service_instance_to_agent ~ service_name: A ~ service_instance_id: 7 ~ service_instance_network_address: 10.0.0.1"
	wantLines(t, "termination_info", a.message(2, info), ready5, strings.Replace(info, "service_instance_to_agent", "agent_to_Manager", 1))
	a.now += a.c.cfg.DrainTimeout - 1
	if _, kills := a.step(AgentInput{Kind: AgentInputTime}); len(kills) != 0 {
		t.Errorf("killed %v too early", kills)
	}
	a.now++
	if _, kills := a.step(AgentInput{Kind: AgentInputTime}); !slices.Equal(kills, []InstanceID{7}) {
		t.Errorf("killed %v, want 7", kills)
	}
}

// An agent that sends no extension lines registers, registers more on the same
// connection, and is refused under another address; nobody else is heard.
func TestManagerRegistration(t *testing.T) {
	t.Parallel()
	g := nineGraph(t)
	c := NewManagerCore(ManagerConfig{Graphs: []*Graph{g}}.WithDefaults())
	say := func(conn ConnID, line string) (sent []string) {
		t.Helper()
		out, _ := c.Step(ManagerInput{Kind: ManagerInputMessage, Conn: conn, Msg: messageOf(t, line)})
		for _, o := range out {
			if o.Kind == ManagerOutputSend && o.Conn == conn {
				sent = append(sent, lineOf(t, o.Msg))
			}
		}
		return sent
	}
	const (
		register = "type: initiation_request ~ message_id: 1 ~ agent_network_address: 10.0.0.1 ~ service_repository: "
		answered = "type: initiation_response ~ message_id: 1 ~ status: "
		hears    = " ~ x_heard: 0"
		request  = "type: session_request ~ message_id: 2 ~ sub_type: agent_to_Manager ~ source_service_name: A ~ source_service_instance_id: 1 ~ source_service_instance_network_address: 10.0.0.1 ~ source_plug_name: P1 ~ dest_service_name: B ~ dest_socket_name: S2"
		failed   = "type: session_response ~ message_id: 2 ~ sub_type: Manager_to_agent ~ source_service_name: A ~ source_service_instance_id: 1 ~ dest_service_name: B ~ dest_service_instance_id:  ~ dest_socket_name: S2 ~ dest_service_instance_network_address:  ~ dest_socket_port:  ~ status: "
	)
	wantLines(t, "request before registration", say(1, request), failed+"401")
	wantLines(t, "registration", say(1, register+"(A, stranger)"), answered+"200"+hears+" ~ x_silence: 20000")
	wantLines(t, "another agent", say(2, register+"(A)"), answered+"409"+hears)
	wantLines(t, "another address", say(1, strings.Replace(register, "10.0.0.1", "10.0.0.2", 1)), answered+"409"+hears)

	c.Step(ManagerInput{Kind: ManagerInputCommand, Call: 1, Cmd: DeployCommand{g.Name}})
	if snap := c.Snapshot(); len(snap.Agents) != 1 || !slices.Equal(snap.Agents[0].Unknown, []string{"stranger"}) || len(snap.Instances) != 1 {
		t.Errorf("%+v, want one agent, with a stranger in its repository, and the gateway", snap)
	}
	wantLines(t, "a new repository", say(1, register+"(A, B)"), answered+"200"+hears+" ~ x_silence: 20000")
	if snap := c.Snapshot(); !slices.Equal(snap.Agents[0].Services, []string{"A", "B"}) || len(snap.Instances) != 1 {
		t.Errorf("%+v, want the new repository, and the gateway", snap)
	}
}
