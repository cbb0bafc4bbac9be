package ssmmp

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// livenessCore is a core with so many agents, each of which can execute all of
// the first of coreGraphs, which is deployed.
func livenessCore(t *testing.T, cfg ManagerConfig, agents int) *managerStepper {
	t.Helper()
	cfg.Graphs = coreGraphs(t)
	cfg = cfg.WithDefaults()
	brake := cfg.StormBrake
	s := newManagerStepper(t, cfg)
	s.cfg.StormBrake = brake
	s.core = NewManagerCore(s.cfg)
	for n := range agents {
		s.message(ConnID(n+1), registerLine(1, agentAddr(n), "A, B, C, D", " ~ x_agent: one"))
	}
	s.step(ManagerInput{Kind: ManagerInputCommand, Call: 1, Cmd: DeployCommand{"one"}}, "")
	return s
}

func agentAddr(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 1, byte(n + 1)}) }

func (s *managerStepper) pass(d time.Duration) {
	s.t.Helper()
	for end := s.now + d; ; {
		at, ok := s.core.NextDeadline()
		if !ok || at > end {
			s.now = end
			s.step(ManagerInput{Kind: ManagerInputTime}, "")
			return
		}
		s.now = max(s.now, at)
		s.step(ManagerInput{Kind: ManagerInputTime}, "")
	}
}

func (s *managerStepper) count(kind EventKind) (n int) {
	for _, ev := range s.history {
		if ev.Kind == kind {
			n++
		}
	}
	return n
}

// While 55 % of the agents or more are away none is lost and nothing replaced;
// when enough are back the others have as long as before.
func TestManagerStormBrake(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ agents, away, lost int }{
		{20, 10, 10}, {20, 11, 0}, {20, 20, 0}, {2, 1, 1}, {3, 2, 0}, {1, 1, 0},
	} {
		t.Run(fmt.Sprintf("%d of %d", tt.away, tt.agents), func(t *testing.T) {
			t.Parallel()
			s := livenessCore(t, ManagerConfig{HealthPeriod: time.Hour}, tt.agents)
			for n := range tt.away { // the first one has the gateway
				s.lost(ConnID(n + 1))
			}
			s.pass(59 * time.Second)
			if n := s.count(EventAgentLost); n != 0 {
				t.Fatalf("%d are lost before their time", n)
			}
			s.pass(30 * time.Minute)
			storms, starts := 0, 1
			if tt.lost == 0 {
				storms = 1
			} else {
				starts = 2 // the gateway is replaced
			}
			if n := s.count(EventAgentLost); n != tt.lost || s.count(EventStormBegan) != storms || s.core.Snapshot().Storm != (storms == 1) {
				t.Errorf("%d lost, want %d; %d storms, want %d", n, tt.lost, s.count(EventStormBegan), storms)
			}
			if n := s.count(EventInstanceRequested); n < starts || tt.lost == 0 && n != 1 {
				t.Errorf("%d executions, want %d", n, starts)
			}
			if storms == 0 || tt.agents < 3 {
				return
			}
			// Enough of them come back.
			back := tt.away - tt.agents/2
			for n := range back {
				s.message(ConnID(100+n), registerLine(1, agentAddr(tt.away-1-n), "A, B, C, D", " ~ x_agent: one"))
			}
			if s.count(EventStormEnded) != 1 || s.core.Snapshot().Storm {
				t.Errorf("%d came back: %d storms ended", back, s.count(EventStormEnded))
			}
			s.pass(59 * time.Second)
			if n := s.count(EventAgentLost); n != 0 {
				t.Errorf("%d are lost at once", n)
			}
			s.pass(2 * time.Second)
			if n := s.count(EventAgentLost); n != tt.away-back {
				t.Errorf("%d are lost, want %d", n, tt.away-back)
			}
		})
	}
}

// Three instances that end young in a row are a crash loop: starts are held
// back, from 1 s up to a minute, and the Snapshot says so, also after a restart.
func TestManagerCrashLoop(t *testing.T) {
	t.Parallel()
	crashLoop(t, ManagerConfig{}, 0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60)
	crashLoop(t, ManagerConfig{QuickEnds: 1, BackOffFrom: 5 * time.Second, BackOffTo: 30 * time.Second}, 5, 10, 20, 30, 30, 30, 30, 30, 30, 30, 30)
	crashLoop(t, ManagerConfig{QuickEnds: 12}, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
}

// crashLoop checks how many seconds lie between the starts of an instance that
// cannot be executed.
func crashLoop(t *testing.T, cfg ManagerConfig, want ...time.Duration) {
	t.Helper()
	cfg.HealthPeriod = time.Hour
	s := livenessCore(t, cfg, 1)
	var starts []time.Duration
	seen := 0
	for range 12 {
		for ; seen < len(s.history); seen++ {
			if ev := s.history[seen]; ev.Kind == EventInstanceRequested {
				starts = append(starts, ev.At)
			}
		}
		last := s.core.lastInstance
		s.message(1, fmt.Sprintf("type: execution_response ~ message_id: %d ~ status: 500", s.core.instances[last].execute))
		for range 10 {
			if at, ok := s.core.NextDeadline(); ok && len(s.core.instances) == 0 {
				s.now = max(s.now, at)
				s.step(ManagerInput{Kind: ManagerInputTime}, "")
			}
		}
	}
	var waits []time.Duration
	for n := 1; n < len(starts); n++ {
		waits = append(waits, starts[n]-starts[n-1])
	}
	for n := range want {
		want[n] *= time.Second
	}
	if !slices.Equal(waits, want) {
		t.Errorf("waits between the starts: %v, want %v", waits, want)
	}
	core := replayEvents(t, s.cfg, s.history)
	for _, c := range []*ManagerCore{s.core, core} {
		if b := c.Snapshot().BackOffs; len(b) != 1 || b[0].Vertex != "A" || b[0].Ends != 12 {
			t.Errorf("the snapshot has %+v", b)
		}
	}
}

// What was under way when a Manager ended is asked for again by the next one,
// once the agent is back.
func TestManagerResumeAsksAgain(t *testing.T) {
	t.Parallel()
	requests := func(events []Event, cfg ManagerConfig, runs string) (types []Type) {
		c := replayEvents(t, cfg, events)
		c.Resume(c.Now())
		out, _ := c.Step(ManagerInput{Now: c.Now(), Kind: ManagerInputMessage, Conn: 9,
			Msg: messageOf(t, registerLine(1, agentAddr(0), "A, B, C, D", " ~ x_agent: one ~ x_instances: "+runs))})
		for _, o := range out {
			if o.Msg != nil && o.Msg.Type() != TypeInitiationResponse {
				types = append(types, o.Msg.Type())
			}
		}
		return types
	}
	s := livenessCore(t, ManagerConfig{}, 1)
	if got := requests(s.history, s.cfg, "1"); !slices.Equal(got, []Type{TypeExecutionRequest}) {
		t.Errorf("an execution: %v", got)
	}
	s.message(1, fmt.Sprintf("type: execution_response ~ message_id: %d ~ status: 200", s.core.instances[1].execute))
	if got := requests(s.history, s.cfg, "1"); len(got) != 0 {
		t.Errorf("nothing: %v", got)
	}
	s.step(ManagerInput{Kind: ManagerInputCommand, Call: 2, Cmd: ShutdownCommand{1, false}}, "")
	if got := requests(s.history, s.cfg, "1"); !slices.Equal(got, []Type{TypeGracefulShutdownRequest}) {
		t.Errorf("a shutdown: %v", got)
	}
	s.step(ManagerInput{Kind: ManagerInputCommand, Call: 3, Cmd: ShutdownCommand{1, true}}, "")
	if got := requests(s.history, s.cfg, "1"); !slices.Equal(got, []Type{TypeHardShutdownRequest}) {
		t.Errorf("a hard shutdown: %v", got)
	}
}

// A history that lacks an event, or has one that cannot be, is refused.
func TestManagerReplayRefuses(t *testing.T) {
	t.Parallel()
	s := livenessCore(t, ManagerConfig{}, 1)
	s.message(1, fmt.Sprintf("type: execution_response ~ message_id: %d ~ status: 200", s.core.instances[1].execute))
	events := s.history
	at := slices.IndexFunc(events, func(ev Event) bool { return ev.Kind == EventInstanceRequested })
	change := func(f func(ev *Event)) []Event {
		all := slices.Clone(events)
		f(&all[at])
		return all
	}
	for name, bad := range map[string][]Event{
		"a gap":             slices.Delete(slices.Clone(events), at, at+1),
		"twice":             slices.Insert(slices.Clone(events), at, events[at]),
		"another vertex":    change(func(ev *Event) { ev.Vertex = "Z" }),
		"another agent":     change(func(ev *Event) { ev.Node = agentAddr(9) }),
		"another graph":     change(func(ev *Event) { ev.Graph = "two" }),
		"no id":             change(func(ev *Event) { ev.Instance = 0 }),
		"no kind":           change(func(ev *Event) { ev.Kind = 0 }),
		"a later kind":      change(func(ev *Event) { ev.Kind = 200 }),
		"no session":        change(func(ev *Event) { ev.Kind, ev.Source, ev.Destination = EventSessionClosed, 1, 1 }),
		"half a checkpoint": change(func(ev *Event) { ev.Kind, ev.Detail = EventCheckpointEnded, "{}" }),
		"time goes back":    change(func(ev *Event) { ev.At = -1 }),
	} {
		c := NewManagerCore(s.cfg)
		var err error
		for _, ev := range bad {
			if err = c.Replay(ev); err != nil {
				break
			}
		}
		if err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// BenchmarkRecovery takes over a state of 20,000 instances and 100,000 open
// sessions from a checkpoint.
func BenchmarkRecovery(b *testing.B) {
	g := coreGraphs(b)[0]
	cfg := ManagerConfig{Graphs: []*Graph{g}, FirstInstance: 1, FirstMessage: 1}.WithDefaults()
	c := NewManagerCore(cfg)
	step := func(ev Event) {
		ev.Seq, ev.At = c.seq+1, c.now
		if err := c.Replay(ev); err != nil {
			b.Fatal(err)
		}
	}
	const agents, instances, sessions = 100, 20_000, 100_000
	for n := range agents {
		step(Event{Kind: EventAgentRegistered, Node: agentAddr(n), Detail: toDetail(agentDetail{Services: []string{"A", "B", "C"}})})
	}
	step(Event{Kind: EventGraphDeployed, Graph: g.Name, Detail: toDetail(graphDetail{Graph: g})})
	for id := InstanceID(1); id <= instances; id++ {
		ev := Event{Kind: EventInstanceRequested, Graph: g.Name, Vertex: "B", Service: "B", Instance: id, Node: agentAddr(int(id) % agents),
			Sockets: []SocketPort{{"S1", uint16(54000 + 2*(id/agents)%1500)}, {"S2", uint16(54001 + 2*(id/agents)%1500)}}}
		if id <= 100 {
			ev.Vertex, ev.Service, ev.Sockets = "A", "A", []SocketPort{{"S0", 8080}}
		}
		step(ev)
		step(Event{Kind: EventInstanceReady, Instance: id})
	}
	for n := range sessions {
		ev := Event{Kind: EventSessionOffered, Source: InstanceID(n%100 + 1), Destination: InstanceID(101 + n%(instances-100)),
			Plug: "P1", Socket: "S1", MessageID: int64(n), Session: c.sessions.next()}
		step(ev)
		ev.Kind, ev.PlugPort, ev.NewPort = EventSessionOpened, uint16(n%60000+1), 54000
		step(ev)
	}
	began := time.Now()
	events := c.Checkpoint()
	took := time.Since(began)
	record := AppendEvents(nil, events)
	b.Run("checkpoint", func(b *testing.B) {
		for b.Loop() {
			cfg := cfg
			decoded, err := DecodeEvents(nil, record)
			if err != nil {
				b.Fatal(err)
			}
			c := NewManagerCore(cfg)
			for _, ev := range decoded {
				if err := c.Replay(ev); err != nil {
					b.Fatal(err)
				}
			}
			c.Resume(c.Now())
			if s := c.sessions.live; s != sessions || len(c.instances) != instances {
				b.Fatalf("%d sessions, %d instances", s, len(c.instances))
			}
		}
		b.ReportMetric(float64(len(record))/(1<<20), "MiB")
		b.ReportMetric(float64(took.Milliseconds()), "ms/checkpoint")
	})
}

// An agent that reports much is told what the Manager has before its next
// health request is due, and a request ahead of time is not a missed one.
func TestManagerHearsManyReports(t *testing.T) {
	t.Parallel()
	s := livenessCore(t, ManagerConfig{HealthMisses: 1}, 1)
	var asked []*AgentHealthRequest
	step := func(m Message) {
		out, _ := s.core.Step(ManagerInput{Kind: ManagerInputMessage, Now: s.now, Conn: 1, Msg: m})
		for _, o := range out {
			if r, ok := o.Msg.(*AgentHealthRequest); ok {
				asked = append(asked, r)
			}
		}
	}
	reports := func(n int) {
		for k := range n {
			step(&SourceSessionCloseInfo{Header: Header{MessageID: int64(100 + k), SubType: AgentToManager}, SourceServiceName: "A", SourceServiceInstanceID: 1,
				SourceServiceInstanceNetworkAddress: agentAddr(0), SourcePlugName: "P1", SourcePlugPort: 40000, DestServiceName: "B", DestSocketName: "S1", DestSocketNewPort: 54000, Status: StatusSessionClosed})
		}
	}
	answer := func() {
		step(&AgentHealthResponse{Header: Header{MessageID: asked[len(asked)-1].MessageID, SubType: AgentToManager}, AgentNetworkAddress: agentAddr(0), Status: StatusOK})
	}
	s.pass(s.cfg.HealthPeriod - time.Millisecond)
	reports(reportsKept - 1)
	if len(asked) != 0 {
		t.Fatalf("asked after %d reports", reportsKept-1)
	}
	reports(3 * reportsKept)
	if len(asked) != 1 {
		t.Fatalf("asked %d times without an answer, want once", len(asked))
	}
	s.pass(2 * time.Millisecond)
	if got := s.count(EventAgentAway); got != 0 {
		t.Fatal("a request that was made ahead of time counts as missed")
	}
	first := asked[0].MessageID
	answer()
	reports(1)
	if len(asked) != 2 || asked[1].Extension(extHeard) != fmt.Sprint(first) {
		t.Fatalf("asked %d times, the last with x_heard %q, want twice and %d", len(asked), asked[len(asked)-1].Extension(extHeard), first)
	}
	s.pass(3 * s.cfg.HealthPeriod)
	if got := s.count(EventAgentAway); got != 1 {
		t.Fatal("who does not answer a request made ahead of time is not away")
	}
}

// A registration that arrives after a newer one of the same agent process was
// on its way on a connection that the agent gave up: what it says is of long
// ago.
func TestManagerOldRegistration(t *testing.T) {
	t.Parallel()
	s := livenessCore(t, ManagerConfig{}, 1)
	s.message(1, "type: execution_response ~ message_id: 1 ~ status: 200")
	s.message(3, registerLine(9, agentAddr(0), "A, B, C, D", " ~ x_agent: one ~ x_instances: 1"))
	s.message(2, registerLine(8, agentAddr(0), "A, B, C, D", " ~ x_agent: one ~ x_instances: "))
	if a := s.core.byAddr[agentAddr(0)]; a.conn != 3 || len(s.live) != 1 || s.count(EventAgentRefused) != 1 {
		t.Errorf("connection %d, %d instances, %d refusals, want 3, 1 and 1", a.conn, len(s.live), s.count(EventAgentRefused))
	}
	// The process after it may go on with its identity, and begins anew.
	s.lost(3)
	s.message(4, registerLine(1, agentAddr(0), "A, B, C, D", " ~ x_agent: one ~ x_instances: 1"))
	if a := s.core.byAddr[agentAddr(0)]; a.conn != 4 || len(s.live) != 1 {
		t.Errorf("connection %d, %d instances, want 4 and 1", a.conn, len(s.live))
	}
}

// A request for a service whose only instance is being shut down waits for the
// next one.
func TestManagerWaitsForRoom(t *testing.T) {
	t.Parallel()
	s := newManagerStepper(t, ManagerConfig{Graphs: coreGraphs(t)})
	ask := func(id int64) {
		s.message(1, fmt.Sprintf("type: session_request ~ message_id: %d ~ sub_type: agent_to_Manager ~ source_service_name: D ~ source_service_instance_id: 1 ~ source_service_instance_network_address: 10.0.0.1 ~ source_plug_name: P1 ~ dest_service_name: C ~ dest_socket_name: S3", id))
	}
	last := func() Message { return s.requests[len(s.requests)-1].msg }
	answer := func() { s.message(1, encode(t, responseTo(last(), StatusOK))) }
	s.message(1, registerLine(1, coreNodes[0], "C, D", ""))
	s.step(ManagerInput{Kind: ManagerInputCommand, Call: 1, Cmd: DeployCommand{"two"}}, "")
	answer()
	ask(9)
	answer()
	s.message(1, "type: session_ack ~ message_id: 9 ~ sub_type: agent_to_Manager ~ source_service_name: D ~ source_service_instance_id: 1 ~ source_plug_port:  ~ dest_socket_new_port:  ~ status: 499")
	s.step(ManagerInput{Kind: ManagerInputCommand, Call: 2, Cmd: ShutdownCommand{2, false}}, "")
	ask(10)
	if n := s.count(EventSessionRefused); n != 0 || len(s.live) != 2 {
		t.Fatalf("%d requests refused, %d instances, want 0 and 2", n, len(s.live))
	}
	answer() // to graceful_shutdown_request
	s.message(1, "type: service_instance_termination_info ~ message_id: 11 ~ sub_type: agent_to_Manager ~ service_name: C ~ service_instance_id: 2 ~ service_instance_network_address: 10.0.0.1 ~ x_exit: 0")
	if m, ok := last().(*ExecutionRequest); !ok || m.ServiceInstanceID != 3 {
		t.Fatalf("%s, want the execution of 3", last().Type())
	}
	answer()
	if n := s.count(EventSessionOffered); n != 2 {
		t.Errorf("%d sessions offered, want 2", n)
	}
	s.settle()
	s.replay()
}

// The history learns once that an address is refused, once that an agent's
// repository changed, and of a few requests for what is not the agent's own.
func TestManagerHistoryOfPeers(t *testing.T) {
	t.Parallel()
	s := livenessCore(t, ManagerConfig{}, 2)
	before := len(s.history)
	for n := range 100 {
		conn := ConnID(100 + n)
		s.message(conn, registerLine(1, agentAddr(0), "A, B, C, D", " ~ x_agent: another"))
		s.lost(conn)
	}
	if n := s.count(EventAgentRefused); n != 1 {
		t.Errorf("%d refusals in the history, want one", n)
	}
	for n := range 10 {
		s.lost(ConnID(2 + 300*n))
		s.message(ConnID(2+300*(n+1)), registerLine(1, agentAddr(1), "A, B, C, D", " ~ x_agent: one"))
	}
	for _, ev := range s.history[before:] {
		if ev.Kind == EventAgentRegistered && ev.Detail != "" {
			t.Errorf("%s has a repository that is not new: %s", ev, ev.Detail)
		}
	}
	s.lost(3002)
	s.message(3302, registerLine(1, agentAddr(1), "A, B", " ~ x_agent: one"))
	if ev := s.history[len(s.history)-1]; !slices.ContainsFunc(s.history, func(ev Event) bool {
		return ev.Kind == EventAgentRegistered && ev.Node == agentAddr(1) && strings.Contains(ev.Detail, `["A","B"]`)
	}) {
		t.Errorf("the last of the history is %s, and nothing in it has the new repository", ev)
	}
	for n := range 100 {
		s.message(3302, fmt.Sprintf("type: session_request ~ message_id: %d ~ sub_type: agent_to_Manager ~ source_service_name: A ~ source_service_instance_id: 1 ~ source_service_instance_network_address: 10.0.1.2 ~ source_plug_name: P1 ~ dest_service_name: B ~ dest_socket_name: S1", n+1))
	}
	if n := s.count(EventSessionRefused); n != violationsKept {
		t.Errorf("%d refused requests in the history, want %d", n, violationsKept)
	}
}
