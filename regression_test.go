package ssmmp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// Faults that were found once, each with what must hold since.

// A swallowing transport loses what is said to one address, and breaks that
// connection, when it is told to.
type swallowing struct {
	Transport
	addr string
	last atomic.Pointer[swallowingConn]
}

type swallowingConn struct {
	net.Conn
	swallows atomic.Bool
}

func (s *swallowing) Dial(ctx context.Context, addr string) (net.Conn, error) {
	conn, err := s.Transport.Dial(ctx, addr)
	if err != nil || addr != s.addr {
		return conn, err
	}
	c := &swallowingConn{Conn: conn}
	s.last.Store(c)
	return c, nil
}

func (c *swallowingConn) Write(b []byte) (int, error) {
	if c.swallows.Load() {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

// lossyMesh returns the mesh of nineGraph, deployed on one node, and what can
// lose what its agent says to the Manager.
func lossyMesh(t *testing.T) (*mesh, *swallowing) {
	t.Helper()
	g := nineGraph(t)
	s := newMemMesh(t, ManagerConfig{Graphs: []*Graph{g}}, 0)
	host, err := s.managers.(*MemHost).net.Host(nodeAddr.String())
	if err != nil {
		t.Fatal(err)
	}
	lossy := &swallowing{Transport: host, addr: s.address}
	repo := s.repository(g)
	for i := range repo {
		repo[i].Launcher = FuncLauncher(func(ctx context.Context, l Launch) error { return s.serveTest(ctx, l, host) })
	}
	s.addNode(nodeAddr, lossy, "", repo)
	s.deploy(g.Name)
	return s, lossy
}

// A session whose end was reported on a connection that broke before the
// Manager read it does not stay open there.
func TestMeshReportsLost(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, lossy := lossyMesh(t)
		defer s.close()
		conn, err := s.instance(1).Dial(t.Context(), "P1")
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if n := len(s.m.Snapshot().Sessions); n != 1 {
			t.Fatalf("%d sessions, want 1", n)
		}
		lossy.last.Load().swallows.Store(true)
		conn.Close()
		time.Sleep(2 * time.Second)
		lossy.last.Load().Conn.Close()
		time.Sleep(10 * time.Second)
		if left := s.m.Snapshot().Sessions; len(left) > 0 {
			t.Errorf("still open at the Manager: %+v", left)
		}
	})
}

// Nobody can claim an instance that is executed while the claim is on its way.
func TestAgentClaimBeforeExecution(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, err := NewAgent(AgentConfig{Manager: "10.0.0.9:55555", Address: nodeAddr, Repository: []RepositoryEntry{
			{Service: "A", Launcher: FuncLauncher(func(ctx context.Context, _ Launch) error { <-ctx.Done(); return nil })}}})
		if err != nil {
			t.Fatal(err)
		}
		a.timer = time.AfterFunc(time.Hour, func() {})
		defer a.timer.Stop()
		a.step(AgentInput{Kind: AgentInputManagerUp, Conn: 1})
		a.step(AgentInput{Kind: AgentInputMessage, Conn: 1, Msg: &InitiationResponse{Header: Header{MessageID: a.core.registerID}, Status: StatusOK}})
		hello := &InstanceHealthResponse{Header: Header{MessageID: 1, SubType: ServiceInstanceToAgent}, ServiceInstanceID: 7, Status: StatusOK}
		early := a.prove(&link{id: 9}, hello, map[InstanceID]Proof{})
		a.step(AgentInput{Kind: AgentInputMessage, Conn: 1, Msg: messageOf(t, startA7)})
		a.step(AgentInput{Kind: AgentInputMessage, Conn: 9, Msg: hello, Proof: early})
		if a.speaks(&link{id: 9}) {
			t.Error("a claim made before the execution was believed")
		}
		a.step(AgentInput{Kind: AgentInputMessage, Conn: 1, Msg: &HardShutdownRequest{Header: Header{MessageID: 100, SubType: ManagerToAgent}, ServiceName: "A", ServiceInstanceID: 7}})
		a.wg.Wait()
	})
}

// Two programs that are both the same instance do not drive each other round.
func TestMeshTwoJoins(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := nineGraph(t)
		s := newMemMesh(t, ManagerConfig{Graphs: []*Graph{g}}, 1)
		defer s.close()
		s.deploy(g.Name)
		first := s.instance(1)
		second, err := JoinWith(t.Context(), JoinConfig{Launch: first.cfg.Launch, Transport: s.nodes[0].transport})
		if err != nil {
			t.Fatal(err)
		}
		a := s.nodes[0].agent
		connections := func() ConnID {
			a.mu.Lock()
			defer a.mu.Unlock()
			return a.lastConn
		}
		before := connections()
		time.Sleep(time.Minute)
		if n := connections() - before; n > 200 {
			t.Errorf("%d connections in a minute", n)
		}
		second.Close()
		first.Close()
	})
}

// However often it is asked for, one kill of an instance is under way.
func TestAgentKillsOnce(t *testing.T) {
	t.Parallel()
	a := newSteppedAgent(t, RepositoryEntry{Service: "A", ReadyWhenStarted: true})
	a.message(1, startA7)
	a.step(AgentInput{Kind: AgentInputStarted, Instance: 7})
	for n := range 60 {
		a.now += 10 * time.Second
		a.message(1, fmt.Sprintf("type: hard_shutdown_request ~ message_id: %d ~ sub_type: Manager_to_agent ~ service_name: A ~ service_instance_id: 7", 100+n))
	}
	if n := len(a.c.pending); n > 1 {
		t.Errorf("%d timers", n)
	}
	if n := len(a.c.instances[7].hardIDs); n > maxShutdownIDs {
		t.Errorf("%d requests wait for an answer", n)
	}
}

// sessionCore returns a Manager's core with a session offered from instance 1 to
// instance 2, both on one node, and what steps it.
func sessionCore(t *testing.T) (c *ManagerCore, say func(conn ConnID, line string) []ManagerOutput, pass func(time.Duration) []ManagerOutput) {
	cfg := (&ManagerConfig{Graphs: coreGraphs(t), FirstInstance: 1, HealthPeriod: time.Hour, LostAfter: 10 * time.Minute, StormBrake: -1}).WithDefaults()
	cfg.FirstMessage = 0
	c = NewManagerCore(cfg)
	now := time.Duration(0)
	say = func(conn ConnID, line string) []ManagerOutput {
		out, _ := c.Step(ManagerInput{Now: now, Kind: ManagerInputMessage, Conn: conn, Msg: messageOf(t, line)})
		return out
	}
	pass = func(d time.Duration) []ManagerOutput {
		now += d
		out, _ := c.Step(ManagerInput{Now: now, Kind: ManagerInputTime})
		return out
	}
	say(1, registerLine(1, netip.MustParseAddr("10.0.0.1"), "A, B, C", " ~ x_agent: one"))
	c.Step(ManagerInput{Kind: ManagerInputCommand, Call: 1, Cmd: DeployCommand{"one"}})
	say(1, fmt.Sprintf("type: execution_response ~ message_id: %d ~ status: 200", c.instances[1].execute))
	say(1, "type: session_request ~ message_id: 1 ~ sub_type: agent_to_Manager ~ source_service_name: A ~ source_service_instance_id: 1 ~ source_service_instance_network_address: 10.0.0.1 ~ source_plug_name: P1 ~ dest_service_name: B ~ dest_socket_name: S1")
	say(1, fmt.Sprintf("type: execution_response ~ message_id: %d ~ status: 200", c.instances[2].execute))
	return c, say, pass
}

const ackOne = "type: session_ack ~ message_id: 1 ~ sub_type: agent_to_Manager ~ source_service_name: A ~ source_service_instance_id: 1 ~ source_plug_port: 40000 ~ dest_socket_new_port: 54000 ~ status: 200"

// An acknowledgment that waits for its agent to come back opens the session.
func TestManagerAckWhileAway(t *testing.T) {
	t.Parallel()
	c, say, pass := sessionCore(t)
	c.Step(ManagerInput{Kind: ManagerInputLost, Conn: 1})
	pass(5 * time.Minute)
	say(2, registerLine(1, netip.MustParseAddr("10.0.0.1"), "A, B, C", " ~ x_agent: one ~ x_instances: 1, 2"))
	say(2, ackOne)
	if s := c.Snapshot().Sessions; len(s) != 1 || s[0].State != SessionOpen {
		t.Errorf("sessions %+v, want the one open", s)
	}
}

// So does one that comes when the agent is back, and its instance a little later:
// the offer does not expire in between.
func TestManagerAckAfterReturn(t *testing.T) {
	t.Parallel()
	c, say, pass := sessionCore(t)
	c.Step(ManagerInput{Kind: ManagerInputLost, Conn: 1})
	pass(59 * time.Second)
	say(2, registerLine(1, netip.MustParseAddr("10.0.0.1"), "A, B, C", " ~ x_agent: one ~ x_instances: 1, 2"))
	pass(2 * time.Second)
	say(2, ackOne)
	if s := c.Snapshot().Sessions; len(s) != 1 || s[0].State != SessionOpen {
		t.Errorf("sessions %+v, want the one open", s)
	}
	c, say, pass = sessionCore(t)
	c.Step(ManagerInput{Kind: ManagerInputLost, Conn: 1})
	say(2, registerLine(1, netip.MustParseAddr("10.0.0.1"), "A, B, C", " ~ x_agent: one ~ x_instances: 1, 2"))
	pass(61 * time.Second)
	pass(61 * time.Second)
	if s := c.Snapshot().Sessions; len(s) != 0 {
		t.Errorf("sessions %+v, want the offer to have expired some time after the return", s)
	}
}

// A session that is acknowledged after its offer has expired is closed; an
// acknowledgment that only comes twice closes nothing.
func TestManagerLateAck(t *testing.T) {
	t.Parallel()
	closes := func(out []ManagerOutput) (n int) {
		for _, o := range out {
			if m, ok := o.Msg.(*SourceSessionCloseRequest); ok && m.SourcePlugPort == 40000 {
				n++
			}
		}
		return n
	}
	c, say, pass := sessionCore(t)
	pass(2 * time.Minute)
	if n := len(c.Snapshot().Sessions); n != 0 {
		t.Fatalf("%d sessions, want the offer to have expired", n)
	}
	if n := closes(say(1, ackOne)); n != 1 {
		t.Errorf("%d close requests for the session that is too late, want 1", n)
	}

	_, say, _ = sessionCore(t)
	if n := closes(say(1, ackOne)) + closes(say(1, ackOne)); n != 0 {
		t.Errorf("%d close requests for one that was acknowledged twice", n)
	}
}

// A report that may be of an older session with the same ports closes nothing
// that the end which reported has open: it is asked.
func TestManagerReportOfOlderSession(t *testing.T) {
	t.Parallel()
	const (
		request2 = "type: session_request ~ message_id: 2 ~ sub_type: agent_to_Manager ~ source_service_name: A ~ source_service_instance_id: 1 ~ source_service_instance_network_address: 10.0.0.1 ~ source_plug_name: P1 ~ dest_service_name: B ~ dest_socket_name: S1"
		source   = "type: source_service_session_close_info ~ message_id: 7 ~ sub_type: agent_to_Manager ~ source_service_name: A ~ source_service_instance_id: 1 ~ source_service_instance_network_address: 10.0.0.1 ~ source_plug_name: P1 ~ source_plug_port: 40000 ~ dest_service_name: B ~ dest_service_instance_id: 2 ~ dest_service_instance_network_address: 10.0.0.1 ~ dest_socket_name: S1 ~ dest_socket_port: 54000 ~ dest_socket_new_port: 54000 ~ status: 111"
		dest     = "type: dest_service_session_close_info ~ message_id: 7 ~ sub_type: agent_to_Manager ~ source_service_instance_network_address: 10.0.0.1 ~ source_plug_name: P1 ~ source_plug_port: 40000 ~ dest_service_name: B ~ dest_service_instance_network_address: 10.0.0.1 ~ dest_service_instance_id: 2 ~ dest_socket_name: S1 ~ dest_socket_port: 54000 ~ dest_socket_new_port: 54000 ~ status: 111"
	)
	for _, tt := range []struct {
		name, first, doubtful string
		asks                  Type
	}{
		{"sent again by the source", source, source + " ~ x_again: 0", TypeSourceSessionCloseRequest},
		{"sent again by the destination", dest, dest + " ~ x_again: 0", TypeDestSessionCloseRequest},
		{"late from the destination", source, dest, TypeDestSessionCloseRequest},
		{"twice from the destination", dest, dest, TypeDestSessionCloseRequest},
	} {
		for _, status := range []Status{StatusStillOpen, StatusNotFound} {
			c, say, _ := sessionCore(t)
			say(1, ackOne)
			say(1, tt.first)
			say(1, request2)
			say(1, strings.Replace(ackOne, "message_id: 1", "message_id: 2", 1))
			out := say(1, tt.doubtful)
			if len(out) != 1 || out[0].Msg.Type() != tt.asks || out[0].Msg.Head().Extension(extAsk) == "" {
				t.Fatalf("%s: %+v, want a question", tt.name, out)
			}
			if n := len(c.Snapshot().Sessions); n != 1 {
				t.Errorf("%s: %d sessions before the answer", tt.name, n)
			}
			say(1, encode(t, responseTo(out[0].Msg, status)))
			if n := len(c.Snapshot().Sessions); (n == 1) != (status == StatusStillOpen) {
				t.Errorf("%s: %d sessions after %s", tt.name, n, status)
			}
		}
	}
	// A source that says which session it was need not be asked.
	for request, left := range map[string]int{"1": 1, "2": 0} {
		c, say, _ := sessionCore(t)
		say(1, ackOne)
		say(1, source)
		say(1, request2)
		say(1, strings.Replace(ackOne, "message_id: 1", "message_id: 2", 1))
		if out := say(1, source+" ~ x_again: "+request); len(out) != 0 || len(c.Snapshot().Sessions) != left {
			t.Errorf("%+v and %d sessions after the end of that of request %s, want %d", out, len(c.Snapshot().Sessions), request, left)
		}
	}
}

// Who is asked whether a session is open closes nothing; and says of what it
// reports again that it does.
func TestInstanceIsAsked(t *testing.T) {
	t.Parallel()
	c := NewInstanceCore(Launch{Service: "B", ID: 2, Address: netip.MustParseAddr("10.0.0.1")})
	c.Step(InstanceInput{Kind: InstanceInputUp})
	c.Step(InstanceInput{Kind: InstanceInputAccepted, Conn: 1, Socket: "S1", Peer: netip.MustParseAddrPort("10.0.0.1:40000"), Port: 54000})
	ask := func(extra string) []InstanceOutput {
		return slices.Clone(c.Step(InstanceInput{Kind: InstanceInputMessage, Msg: messageOf(t, "type: dest_service_session_close_request ~ message_id: 5 ~ sub_type: agent_to_dest_service ~ dest_service_name: B ~ dest_service_instance_id: 2 ~ dest_service_instance_network_address: 10.0.0.1 ~ source_service_instance_network_address: 10.0.0.1 ~ source_plug_name: P1 ~ source_plug_port: 40000 ~ dest_socket_name: S1 ~ dest_socket_port: 54000 ~ dest_socket_new_port: 54000"+extra)}))
	}
	answer := func(out []InstanceOutput, want Status) {
		t.Helper()
		if len(out) != 1 || out[0].Kind != InstanceOutputSend || out[0].Msg.(*DestSessionCloseResponse).Status != want {
			t.Errorf("%+v, want %s", out, want)
		}
	}
	answer(ask(" ~ x_ask: 1"), StatusStillOpen)
	if out := ask(""); len(out) != 1 || out[0].Kind != InstanceOutputDrop {
		t.Errorf("%+v, want the session to be closed", out)
	}
	c.Step(InstanceInput{Kind: InstanceInputConnDropped, Conn: 1})
	answer(ask(" ~ x_ask: 1"), StatusNotFound)

	c.Step(InstanceInput{Kind: InstanceInputAccepted, Conn: 2, Socket: "S1", Peer: netip.MustParseAddrPort("10.0.0.1:40000"), Port: 54000})
	first := slices.Clone(c.Step(InstanceInput{Kind: InstanceInputConnClosed, Conn: 2, Status: StatusSessionClosed}))
	if len(first) != 1 || first[0].Msg.Head().Extension(extAgain) != "" {
		t.Errorf("%+v, want a report that is no repetition", first)
	}
	c.Step(InstanceInput{Kind: InstanceInputDown})
	if out := c.Step(InstanceInput{Kind: InstanceInputUp}); len(out) != 2 || out[1].Msg.Head().Extension(extAgain) == "" {
		t.Errorf("%+v, want hello and the report, marked", out)
	}
}

// Closing a session that neither end can be told to close is an error.
func TestManagerCloseAway(t *testing.T) {
	t.Parallel()
	c, say, _ := sessionCore(t)
	say(1, ackOne)
	id := c.Snapshot().Sessions[0].ID
	c.Step(ManagerInput{Kind: ManagerInputLost, Conn: 1})
	out, _ := c.Step(ManagerInput{Kind: ManagerInputCommand, Call: 2, Cmd: CloseSessionCommand{id}})
	if len(out) != 1 || !errors.Is(out[0].Err, ErrUnavailable) || len(c.Snapshot().Sessions) != 1 {
		t.Errorf("%+v with %+v, want ErrUnavailable and the session as it was", out, c.Snapshot().Sessions)
	}
}

// An instance that breaks the protocol does not cost its node the Manager.
func TestManagerInstanceMisbehaves(t *testing.T) {
	t.Parallel()
	c, say, _ := sessionCore(t)
	for range maxViolations + 1 {
		say(1, "type: session_request ~ message_id: 1 ~ sub_type: agent_to_Manager ~ source_service_name: A ~ source_service_instance_id: 1 ~ source_service_instance_network_address: 10.0.0.1 ~ source_plug_name: P2 ~ dest_service_name: B ~ dest_socket_name: S2")
	}
	if c.agents[0].conn != 1 || c.violations[1] != 0 {
		t.Errorf("%d violations are held against the agent", c.violations[1])
	}
}

// An instance that acknowledges nothing is offered no more than so many
// sessions, until it does or they expire.
func TestManagerOffersBounded(t *testing.T) {
	t.Parallel()
	_, say, pass := sessionCore(t)
	ask := func(id int) Status {
		t.Helper()
		out := say(1, fmt.Sprintf("type: session_request ~ message_id: %d ~ sub_type: agent_to_Manager ~ source_service_name: A ~ source_service_instance_id: 1 ~ source_service_instance_network_address: 10.0.0.1 ~ source_plug_name: P1 ~ dest_service_name: B ~ dest_socket_name: S1", id))
		for _, o := range out {
			if m, ok := o.Msg.(*SessionResponse); ok {
				return m.Status
			}
		}
		t.Fatalf("request %d has no answer: %+v", id, out)
		return 0
	}
	for id := 2; id <= maxOffers; id++ { // 1 is offered already
		if s := ask(id); s != StatusOK {
			t.Fatalf("request %d: %s", id, s)
		}
	}
	if s := ask(maxOffers + 1); s != StatusTooMany {
		t.Errorf("one too many: %s, want 429", s)
	}
	say(1, ackOne)
	if a, b := ask(maxOffers+2), ask(maxOffers+3); a != StatusOK || b != StatusTooMany {
		t.Errorf("after one acknowledgment: %s and %s, want 200 and 429", a, b)
	}
	pass(2 * time.Minute)
	if s := ask(maxOffers + 4); s != StatusOK {
		t.Errorf("when they have expired: %s, want 200", s)
	}
}

// Many offers that expire at once all end, and nothing else does.
func TestManagerOffersExpireTogether(t *testing.T) {
	t.Parallel()
	c, say, pass := sessionCore(t)
	for id := 2; id <= 200; id++ {
		say(1, fmt.Sprintf("type: session_request ~ message_id: %d ~ sub_type: agent_to_Manager ~ source_service_name: A ~ source_service_instance_id: 1 ~ source_service_instance_network_address: 10.0.0.1 ~ source_plug_name: P1 ~ dest_service_name: B ~ dest_socket_name: S1", id))
	}
	if n := len(c.Snapshot().Sessions); n != 200 {
		t.Fatalf("%d offers, want 200", n)
	}
	pass(2 * time.Minute)
	if n := len(c.Snapshot().Sessions); n != 0 || len(c.offers) != 0 || len(c.Snapshot().Instances) != 2 {
		t.Errorf("%d sessions and %d offers are left, of %d instances", n, len(c.offers), len(c.Snapshot().Instances))
	}
}

// An acknowledgment that names no ports opens nothing and leaves nothing.
func TestManagerAckWithoutPorts(t *testing.T) {
	t.Parallel()
	c, _, _ := sessionCore(t)
	c.Step(ManagerInput{Kind: ManagerInputMessage, Conn: 1, Msg: &SessionAck{Header: Header{MessageID: 1, SubType: AgentToManager},
		SourceServiceName: "A", SourceServiceInstanceID: 1, Status: StatusOK}})
	if n := len(c.Snapshot().Sessions); n != 0 || c.sessions.indexed != 0 {
		t.Errorf("%d sessions, %d in the index, want none", n, c.sessions.indexed)
	}
}

// An agent that cannot kill is asked again later, not at once.
func TestManagerKillFails(t *testing.T) {
	t.Parallel()
	c, say, pass := sessionCore(t)
	c.Step(ManagerInput{Kind: ManagerInputCommand, Call: 2, Cmd: ShutdownCommand{2, true}})
	asked := func(out []ManagerOutput) (ids []int64) {
		for _, o := range out {
			if m, ok := o.Msg.(*HardShutdownRequest); ok {
				ids = append(ids, m.MessageID)
			}
		}
		return ids
	}
	first := asked(pass(6 * time.Second))
	if len(first) != 1 {
		t.Fatalf("asked %d times, want once", len(first))
	}
	if again := asked(say(1, fmt.Sprintf("type: hard_shutdown_response ~ message_id: %d ~ sub_type: agent_to_Manager ~ service_instance_id: 2 ~ status: 500", first[0]))); len(again) != 0 {
		t.Errorf("asked %d times at once", len(again))
	}
	if again := asked(pass(6 * time.Second)); len(again) != 1 {
		t.Errorf("asked %d times later, want once", len(again))
	}
}

// An agent that comes back as another process is not sent what the one before
// was to execute: nobody knows whether it did. Neither is one sent what has
// been given up since.
func TestManagerExecutesOnce(t *testing.T) {
	t.Parallel()
	executed := func(out []ManagerOutput) (ids []InstanceID) {
		for _, o := range out {
			if m, ok := o.Msg.(*ExecutionRequest); ok {
				ids = append(ids, m.ServiceInstanceID)
			}
		}
		return ids
	}
	start := func() (c *ManagerCore, say func(ConnID, string) []ManagerOutput, pass func(time.Duration) []ManagerOutput) {
		c, say, pass = sessionCore(t)
		say(1, "type: session_request ~ message_id: 2 ~ sub_type: agent_to_Manager ~ source_service_name: A ~ source_service_instance_id: 1 ~ source_service_instance_network_address: 10.0.0.1 ~ source_plug_name: P2 ~ dest_service_name: B ~ dest_socket_name: S2")
		return c, say, pass
	}
	node := netip.MustParseAddr("10.0.0.1")

	c, say, _ := start()
	c.Step(ManagerInput{Kind: ManagerInputLost, Conn: 1})
	if ids := executed(say(2, registerLine(1, node, "A, B, C", " ~ x_agent: one ~ x_instances: 1, 2"))); len(ids) != 1 || ids[0] != 3 {
		t.Errorf("the same process is to execute %v, want 3 again", ids)
	}

	c, say, _ = start()
	c.Step(ManagerInput{Kind: ManagerInputLost, Conn: 1})
	if ids := executed(say(2, registerLine(1, node, "A, B, C", " ~ x_agent: two"))); len(ids) != 1 || ids[0] != 4 {
		t.Errorf("another process is to execute %v, want only 4, a gateway with a new id", ids)
	}

	c, say, pass := start()
	pass(35 * time.Second) // not ready in time: to be killed
	c.Step(ManagerInput{Kind: ManagerInputLost, Conn: 1})
	if ids := executed(say(2, registerLine(1, node, "A, B, C", " ~ x_agent: one ~ x_instances: 1, 2"))); len(ids) != 0 {
		t.Errorf("%v is to be executed after it was given up", ids)
	}
}

// Nothing is executed where something runs that should not, before that is
// gone: it may hold the ports.
func TestManagerStrangers(t *testing.T) {
	t.Parallel()
	c, say, pass := sessionCore(t)
	node := netip.MustParseAddr("10.0.0.1")
	c.Step(ManagerInput{Kind: ManagerInputLost, Conn: 1})
	pass(11 * time.Minute) // it is lost
	var kills []int64
	look := func(out []ManagerOutput) {
		for _, o := range out {
			switch m := o.Msg.(type) {
			case *HardShutdownRequest:
				kills = append(kills, m.MessageID)
			case *ExecutionRequest:
				t.Errorf("%d is to be executed", m.ServiceInstanceID)
			}
		}
	}
	look(say(2, registerLine(1, node, "A, B, C", " ~ x_agent: one ~ x_instances: 1")))
	for range 4 {
		look(pass(6 * time.Second))
	}
	if len(kills) < 2 {
		t.Fatalf("asked %d times to kill it, want again and again", len(kills))
	}
	out := say(2, fmt.Sprintf("type: hard_shutdown_response ~ message_id: %d ~ sub_type: agent_to_Manager ~ service_instance_id: 1 ~ status: 200", kills[len(kills)-1]))
	if len(c.instances) != 1 || len(out) == 0 {
		t.Errorf("%d instances, want the gateway again", len(c.instances))
	}
}

// An agent that says again and again that it runs many others than before makes
// the Manager keep no more for it than the last time.
func TestManagerManyStrangers(t *testing.T) {
	t.Parallel()
	c, say, _ := sessionCore(t)
	node := netip.MustParseAddr("10.0.0.1")
	const many = 1000
	var kills []*HardShutdownRequest
	for n := range ConnID(20) {
		c.Step(ManagerInput{Kind: ManagerInputLost, Conn: n + 1})
		kills = kills[:0]
		for _, o := range say(n+2, registerLine(1, node, "A, B, C", fmt.Sprintf(" ~ x_agent: one ~ x_instances: 1, %d%s", 1_000_000*(n+1), strings.Repeat(", +1", many-1)))) {
			if m, ok := o.Msg.(*HardShutdownRequest); ok {
				kills = append(kills, m)
			}
		}
		if n := len(c.exchanges); len(kills) != maxKills || n > maxKills+10 {
			t.Fatalf("asked to kill %d, with %d requests under way", len(kills), n)
		}
	}
	killed := map[InstanceID]bool{}
	for ; len(kills) > 0; kills = kills[1:] {
		killed[kills[0].ServiceInstanceID] = true
		for _, o := range say(21, fmt.Sprintf("type: hard_shutdown_response ~ message_id: %d ~ sub_type: agent_to_Manager ~ service_instance_id: %d ~ status: 200", kills[0].MessageID, kills[0].ServiceInstanceID)) {
			if m, ok := o.Msg.(*HardShutdownRequest); ok {
				kills = append(kills, m)
			}
		}
	}
	if a := c.byAddr[node]; len(killed) != many || len(a.strangers) != 0 || len(a.toKill) != 0 {
		t.Errorf("%d of %d were killed, and %d are left", len(killed), many, len(a.strangers))
	}
}

// What an instance says of its end is kept for ever: a word, and not a line full.
func TestManagerLongExit(t *testing.T) {
	t.Parallel()
	c, _, _ := sessionCore(t)
	_, events := c.Step(ManagerInput{Kind: ManagerInputMessage, Conn: 1, Msg: messageOf(t, "type: service_instance_termination_info ~ message_id: 9 ~ sub_type: agent_to_Manager ~ "+
		"service_name: B ~ service_instance_id: 2 ~ service_instance_network_address: 10.0.0.1 ~ x_exit: "+strings.Repeat("x", 60_000))})
	for _, ev := range events {
		if ev.Kind == EventInstanceEnded && len(ev.Cause) < 300 {
			return
		}
		if len(ev.Cause) >= 300 {
			t.Errorf("the history has %d bytes of it", len(ev.Cause))
		}
	}
	t.Error("it did not end")
}

// An agent's instances may be more than ids fit into a line.
func TestInstanceList(t *testing.T) {
	t.Parallel()
	var ids []InstanceID
	for n := range InstanceID(10_000) {
		ids = append(ids, 1_795_833_600_000+n*37)
	}
	s := formatInstanceList(slices.Clone(ids))
	if len(s) > MaxLine-4096 {
		t.Errorf("%d ids take %d bytes", len(ids), len(s))
	}
	for _, list := range []string{s, strings.ReplaceAll(fmt.Sprint(ids), " ", ", ")} {
		got, err := parseInstanceList(strings.Trim(list, "[]"))
		if err != nil || !slices.Equal(got, ids) {
			t.Errorf("%.60s… is read as %d ids, %v", list, len(got), err)
		}
	}
	for _, bad := range []string{"x", "0", "-3", "7, ", "7, +0x", "9223372036854775807, +1", "7, -9", "+", "7, +"} {
		if got, err := parseInstanceList(bad); err == nil {
			t.Errorf("%q is read as %v", bad, got)
		}
	}
	if got, err := parseInstanceList("7, 9, +1"); err != nil || !slices.Equal(got, []InstanceID{7, 9, 10}) {
		t.Errorf("7, 9, +1 is read as %v, %v", got, err)
	}
}
