package ssmmp

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// An instance says of how many sessions it is the source; the Manager asks
// after them when it knows of more.

// A Manager that knows of more sessions than their source asks after each, a few
// at a time, and closes those that it has no more.
func TestManagerComparesSessions(t *testing.T) {
	t.Parallel()
	const sessions = 2*doubtsAtOnce + 7
	c, say, pass := sessionCore(t)
	say(1, ackOne)
	last := 1
	request := func() int {
		last++
		say(1, fmt.Sprintf("type: session_request ~ message_id: %d ~ sub_type: agent_to_Manager ~ source_service_name: A ~ source_service_instance_id: 1 ~ source_service_instance_network_address: 10.0.0.1 ~ source_plug_name: P1 ~ dest_service_name: B ~ dest_socket_name: S1", last))
		return last
	}
	for range sessions - 1 {
		n := request()
		say(1, fmt.Sprintf("type: session_ack ~ message_id: %d ~ sub_type: agent_to_Manager ~ source_service_name: A ~ source_service_instance_id: 1 ~ source_plug_port: %d ~ dest_socket_new_port: 54000 ~ status: 200", n, 40000+n))
	}
	ended := map[uint16]bool{} // by plug port
	for n := 2; n <= sessions; n += 2 {
		ended[uint16(40000+n)] = true
	}

	// health lets a period pass, has instance 1 say how many sessions it has, and
	// returns after how many it is asked.
	health := func(said string) (asked int) {
		var questions []*SourceSessionCloseRequest
		take := func(out []ManagerOutput) {
			for _, o := range out {
				if m, ok := o.Msg.(*SourceSessionCloseRequest); ok {
					if m.Extension(extAsk) == "" {
						t.Fatalf("%q says %s, which closes", said, encode(t, m))
					}
					questions = append(questions, m)
				}
			}
		}
		for _, o := range slices.Clone(pass(time.Hour)) {
			switch m := o.Msg.(type) {
			case *AgentHealthRequest:
				say(1, encode(t, responseTo(m, StatusOK)))
			case *InstanceHealthRequest:
				request() // a session that is only offered does not count
				line := encode(t, responseTo(m, StatusOK))
				if m.ServiceInstanceID == 1 && said != "" {
					line += " ~ x_sessions: " + said
				}
				take(say(1, line))
			}
		}
		for len(questions) > 0 {
			if len(questions) > doubtsAtOnce {
				t.Fatalf("%d questions at once", len(questions))
			}
			m := questions[0]
			questions = questions[1:]
			asked++
			status := StatusStillOpen
			switch {
			case m.SourcePlugPort%4 == 1:
				status = StatusUnavailable // its agent has no connection to it just now
			case ended[m.SourcePlugPort]:
				status = StatusNotFound
			}
			take(say(1, encode(t, responseTo(m, status))))
		}
		return asked
	}
	for _, said := range []string{"", "-1", "x", "+1", "1e3", strings.Repeat("9", 60), fmt.Sprint(sessions), fmt.Sprint(sessions + 5)} {
		if n := health(said); n != 0 {
			t.Errorf("asked after %d sessions of an instance that says it has %q of %d", n, said, sessions)
		}
	}
	if n := health(fmt.Sprint(sessions - len(ended))); n != sessions {
		t.Errorf("asked after %d of %d sessions", n, sessions)
	}
	left := 0
	for _, s := range c.Snapshot().Sessions {
		if ended[s.PlugPort] {
			t.Errorf("%+v is still known", s)
		} else if s.State == SessionOpen {
			left++
		}
	}
	if left != sessions-len(ended) {
		t.Errorf("%d sessions are left, want %d", left, sessions-len(ended))
	}

	// Who says again and again that it has none, and has them when it is asked,
	// is not asked each time.
	asked := 0
	for range 20 {
		asked += health("0")
	}
	if asked > 2*left {
		t.Errorf("asked %d times after %d sessions in twenty periods", asked, left)
	}
	if n := len(c.Snapshot().Sessions); n < left {
		t.Errorf("%d sessions are left, want %d", n, left)
	}
}

// Reports that raise doubts have their ends asked in turn, each once, however
// often they come; what is not answered before the agent is lost is forgotten.
func TestManagerAsksInTurn(t *testing.T) {
	t.Parallel()
	const sessions = 3*doubtsAtOnce + 5
	for _, ends := range []string{"", "the agent comes back", "the agent is lost"} {
		c, say, pass := sessionCore(t)
		say(1, ackOne)
		for n := 2; n <= sessions; n++ {
			say(1, fmt.Sprintf("type: session_request ~ message_id: %d ~ sub_type: agent_to_Manager ~ source_service_name: A ~ source_service_instance_id: 1 ~ source_service_instance_network_address: 10.0.0.1 ~ source_plug_name: P1 ~ dest_service_name: B ~ dest_socket_name: S1", n))
			say(1, fmt.Sprintf("type: session_ack ~ message_id: %d ~ sub_type: agent_to_Manager ~ source_service_name: A ~ source_service_instance_id: 1 ~ source_plug_port: %d ~ dest_socket_new_port: 54000 ~ status: 200", n, 40000+n-1))
		}
		conn, asked := ConnID(1), map[int64]*DestSessionCloseRequest{}
		take := func(out []ManagerOutput) {
			for _, o := range out {
				if m, ok := o.Msg.(*DestSessionCloseRequest); ok && o.Conn == conn {
					asked[m.MessageID] = m
				}
			}
			if len(asked) > doubtsAtOnce {
				t.Fatalf("%q: %d questions at once", ends, len(asked))
			}
		}
		for range 2 {
			for n := range sessions {
				take(say(conn, fmt.Sprintf("type: dest_service_session_close_info ~ message_id: %d ~ sub_type: agent_to_Manager ~ source_service_instance_network_address: 10.0.0.1 ~ source_plug_name: P1 ~ source_plug_port: %d ~ dest_service_name: B ~ dest_service_instance_network_address: 10.0.0.1 ~ dest_service_instance_id: 2 ~ dest_socket_name: S1 ~ dest_socket_port: 54000 ~ dest_socket_new_port: 54000 ~ status: 111 ~ x_again: 0", 7+n, 40000+n)))
			}
		}
		switch ends {
		case "the agent comes back":
			conn, asked = 2, map[int64]*DestSessionCloseRequest{}
			take(say(2, registerLine(1, netip.MustParseAddr("10.0.0.1"), "A, B, C", " ~ x_agent: one ~ x_instances: 1, 2")))
		case "the agent is lost":
			c.Step(ManagerInput{Kind: ManagerInputLost, Conn: 1})
			pass(c.cfg.LostAfter + time.Second)
			if a := c.agents[0]; len(a.doubts)+len(a.doubting)+a.asking > 0 {
				t.Errorf("%d questions wait, %d are known, %d under way for an agent that is lost", len(a.doubts), len(a.doubting), a.asking)
			}
			continue
		}
		answered := 0
		for len(asked) > 0 {
			for id, m := range asked {
				answered++
				delete(asked, id)
				take(say(conn, encode(t, responseTo(m, StatusNotFound))))
				break
			}
		}
		if n := len(c.Snapshot().Sessions); n != 0 || answered != sessions {
			t.Errorf("%q: %d sessions are left, after %d answers; want none, after %d", ends, n, answered, sessions)
		}
		if a := c.agents[0]; len(a.doubts)+len(a.doubting)+a.asking > 0 {
			t.Errorf("%q: %d questions wait, %d are known, %d under way when all are answered", ends, len(a.doubts), len(a.doubting), a.asking)
		}
	}
}

// A session whose end was reported into nothing, on a connection that stands,
// does not stay open at the Manager; those that are open do.
func TestMeshComparesSessions(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, lossy := lossyMesh(t)
		defer s.close()
		gone, err := s.instance(1).Dial(t.Context(), "P1")
		if err != nil {
			t.Fatal(err)
		}
		stays, err := s.instance(1).Dial(t.Context(), "P1")
		if err != nil {
			t.Fatal(err)
		}
		defer stays.Close()
		synctest.Wait()
		if n := len(s.m.Snapshot().Sessions); n != 2 {
			t.Fatalf("%d sessions, want 2", n)
		}
		lossy.last.Load().swallows.Store(true)
		gone.Close()
		synctest.Wait()
		lossy.last.Load().swallows.Store(false)
		if n := len(s.m.Snapshot().Sessions); n != 2 {
			t.Fatalf("%d sessions before they are compared, want 2", n)
		}
		time.Sleep(2 * s.m.cfg.HealthPeriod)
		if left := s.m.Snapshot().Sessions; len(left) != 1 || left[0].PlugPort != addrPort(stays.LocalAddr()).Port() {
			t.Errorf("at the Manager are %+v, want the session that is open", left)
		}
	})
}

// An agent that has many ends of sessions to report comes back once, however
// many questions they raise.
func TestMeshManyReports(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, lossy := lossyMesh(t)
		defer s.close()
		var conns []net.Conn
		for range 4000 {
			conn, err := s.instance(1).Dial(t.Context(), "P1")
			if err != nil {
				t.Fatal(err)
			}
			conns = append(conns, conn)
		}
		synctest.Wait()
		if n := len(s.m.Snapshot().Sessions); n != len(conns) {
			t.Fatalf("%d sessions, want %d", n, len(conns))
		}
		lossy.last.Load().swallows.Store(true)
		for _, conn := range conns {
			conn.Close()
		}
		time.Sleep(time.Second)
		lossy.last.Load().Conn.Close()
		time.Sleep(2 * time.Second) // less than sessions take to be compared
		if n := len(s.m.Snapshot().Sessions); n > 0 {
			t.Errorf("%d of %d sessions are still open at the Manager", n, len(conns))
		}
		back := 0
		for ev := range s.m.History(t.Context(), EventQuery{}) {
			if ev.Kind == EventAgentRegistered {
				back++
			}
		}
		if back != 2 {
			t.Errorf("the agent registered %d times, want twice", back)
		}
	})
}

// An agent gives up a Manager that says nothing though its connection stands, if
// the Manager said how long that may take.
func TestAgentManagerSilent(t *testing.T) {
	t.Parallel()
	registered := func(said string) (c *AgentCore, step func(time.Duration, Message) (aborts int)) {
		c = NewAgentCore(AgentConfig{Manager: "10.0.0.9:55555", Address: nodeAddr}.WithDefaults(), "one")
		c.Step(AgentInput{Kind: AgentInputManagerUp, Conn: 1})
		now := time.Duration(0)
		step = func(d time.Duration, m Message) (aborts int) {
			now += d
			in := AgentInput{Now: now}
			if m != nil {
				in.Kind, in.Conn, in.Msg = AgentInputMessage, 1, m
			}
			for _, o := range c.Step(in) {
				if o.Kind == AgentOutputAbort && o.Conn == 1 {
					aborts++
				}
			}
			return aborts
		}
		h := Header{MessageID: c.registerID}
		if said != "" {
			h.Extensions = []Extension{{extSilence, said}}
		}
		step(0, &InitiationResponse{Header: h, Status: StatusOK})
		return c, step
	}
	health := func() Message {
		return &AgentHealthRequest{Header: Header{MessageID: 9, SubType: ManagerToAgent}, AgentNetworkAddress: nodeAddr}
	}
	// silent returns after how many seconds without a word it is given up.
	silent := func(step func(time.Duration, Message) int) time.Duration {
		for d := range 7200 {
			if step(time.Second, nil) > 0 {
				return time.Duration(d+1) * time.Second
			}
		}
		return 0
	}

	_, step := registered("15000")
	for range 100 {
		if step(5*time.Second-time.Millisecond, nil)+step(0, health()) > 0 {
			t.Fatal("a Manager that asks is given up")
		}
	}
	if d := silent(step); d < 15*time.Second || d > 21*time.Second {
		t.Errorf("given up after %v of silence, want 15 s and what is left until it is looked at", d)
	}
	if step(time.Hour, nil) > 0 {
		t.Error("given up twice")
	}
	for said, want := range map[string]time.Duration{
		"": 0, "-5": 0, "x": 0, "99999999999999999999": 0, // not told
		"0": silentLooks * time.Second, "1": silentLooks * time.Second, "4294967295": 0,
	} {
		_, step := registered(said)
		if d := silent(step); d != want {
			t.Errorf("x_silence %q: given up after %v, want %v", said, d, want)
		}
	}

	// An agent that stood still has heard nothing, and that says nothing.
	_, step = registered("15000")
	if step(time.Hour, nil) > 0 || step(time.Second, health()) > 0 || step(10*time.Second, nil) > 0 {
		t.Error("given up since the agent itself stood still")
	}
	// Another connection is another Manager's.
	c, step := registered("15000")
	c.Step(AgentInput{Kind: AgentInputLost, Conn: 1})
	c.Step(AgentInput{Kind: AgentInputManagerUp, Conn: 2})
	if step(time.Minute, nil)+step(time.Minute, nil)+step(time.Minute, nil) > 0 {
		t.Error("a connection that ended is given up")
	}
}
