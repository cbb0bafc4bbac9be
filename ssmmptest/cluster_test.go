package ssmmptest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ssmmp/ssmmp"
)

// chain is gateway G → A → B → storage D, and A → D too.
func chain(t testing.TB) *ssmmp.Graph {
	t.Helper()
	g, err := ssmmp.NewGraph("chain").
		Gateway("G", ssmmp.FixedPorts{"S0": 8080}, ssmmp.Out{"PA"}).
		Regular("A", ssmmp.In{"SA"}, ssmmp.Out{"PB", "PD"}).
		Regular("B", ssmmp.In{"SB"}, ssmmp.Out{"PD"}).
		Storage("D", ssmmp.In{"SD"}).
		Edge("G", "PA", "SA", "A").
		Edge("A", "PB", "SB", "B").Edge("A", "PD", "SD", "D").
		Edge("B", "PD", "SD", "D").
		Build()
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// A testCluster is a cluster whose faults fail the test.
type testCluster struct {
	*Cluster
	t   testing.TB
	ctx context.Context
}

func newTestCluster(t testing.TB, nodes int, options ...ClusterOption) *testCluster {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	t.Cleanup(cancel)
	c := &testCluster{NewCluster(t, chain(t), append(options, Nodes(nodes))...), t, ctx}
	c.must(c.Deploy(ctx))
	return c
}

func (c *testCluster) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *testCluster) settle() { c.t.Helper(); c.must(c.Settle(c.ctx)) }

func (c *testCluster) ask(line string) string {
	c.t.Helper()
	reply, err := c.Ask(c.ctx, "G", "S0", line)
	c.must(err)
	return reply
}

// hold opens a connection of a user that holds sessions, and returns it.
func (c *testCluster) hold(line string) net.Conn {
	c.t.Helper()
	conn, err := c.Dial(c.ctx, "G", "S0")
	c.must(err)
	reply, err := askConn(conn, line)
	c.must(err)
	if reply != "held" {
		c.t.Fatalf("%s: %s", line, reply)
	}
	return conn
}

// the returns the one instance of a service.
func (c *testCluster) the(service string) ssmmp.InstanceStatus {
	c.t.Helper()
	var found []ssmmp.InstanceStatus
	for _, i := range c.Snapshot().Instances {
		if i.Service == service {
			found = append(found, i)
		}
	}
	if len(found) != 1 {
		c.t.Fatalf("%d instances of %s: %+v", len(found), service, found)
	}
	return found[0]
}

// ended returns the events that tell of an instance's end.
func (c *testCluster) ended(id ssmmp.InstanceID) (all []string) {
	for _, ev := range c.History() {
		if ev.Kind == ssmmp.EventInstanceEnded && ev.Instance == id {
			all = append(all, ev.String())
		}
	}
	return all
}

func TestClusterAnswers(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		for line, want := range map[string]string{
			"echo a b":                       "a b",
			"via PA echo x":                  "x",
			"via PA via PB via PD echo deep": "deep",
			"health 199":                     "ok",
			"health x":                       "error: strconv.ParseUint: parsing \"x\": invalid syntax",
			"nonsense":                       "error: no such command: \"nonsense\"",
			"":                               "error: no such command: \"\"",
			"via P9 who":                     "error: ssmmp: dial P9: 403 forbidden",
		} {
			if got := c.ask(line); got != want && !strings.HasPrefix(got, want) {
				t.Errorf("%q: %q, want %q", line, got, want)
			}
		}
		if got := c.ask("via PA who"); !strings.HasPrefix(got, "A ") {
			t.Errorf("who: %q", got)
		}
		c.settle()
		if got := len(c.Snapshot().Instances); got != 4 || len(c.Running()) != 4 {
			t.Errorf("%d instances, %v run, want 4", got, c.Running())
		}
	})
}

func TestClusterKill(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newTestCluster(t, 2)
		user := c.hold("via PA hold PD")
		user.Close()
		user = c.hold("hold PA")
		c.settle()
		a := c.the("A")
		c.must(c.Kill(a.ID))
		if err := c.Kill(a.ID); !errors.Is(err, ssmmp.ErrNotFound) {
			t.Errorf("killed again: %v", err)
		}
		c.settle()
		if got := c.ended(a.ID); len(got) != 1 || !strings.Contains(got[0], "SIGKILL") {
			t.Errorf("ends of A: %q, want one, by SIGKILL", got)
		}
		if s := c.Snapshot(); len(s.Sessions) != 0 {
			t.Errorf("sessions %+v", s.Sessions)
		}
		if got := c.ask("via PA who"); !strings.HasPrefix(got, "A ") || strings.HasPrefix(got, fmt.Sprintf("A %d ", a.ID)) {
			t.Errorf("after the kill: %q", got)
		}
		user.Close()
	})
}

// Nobody is told of a node without power: the Manager finds out.
func TestClusterCrashNode(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		user := c.hold("hold PA")
		defer user.Close()
		c.settle()
		a := c.the("A")
		node := c.NodeAt(a.Node)
		if a.Node == c.the("G").Node {
			t.Fatal("A and its gateway are on one node")
		}
		c.must(node.Crash())
		if node.Crash() == nil {
			t.Error("crashed twice")
		}
		begin := time.Now()
		synctest.Wait()
		for _, agent := range c.Snapshot().Agents {
			if agent.State != ssmmp.AgentUp {
				t.Errorf("the Manager was told of agent %s", agent.Address)
			}
		}
		if len(c.Snapshot().Sessions) != 1 {
			t.Error("the other end of the session was told")
		}
		c.settle()
		if d := time.Since(begin); d < time.Minute || d > 2*time.Minute {
			t.Errorf("A taken to be dead after %v, want LostAfter and the health periods before", d)
		}
		if len(c.Snapshot().Sessions) != 0 || len(c.Running()) != 1 {
			t.Errorf("sessions %+v, %v run", c.Snapshot().Sessions, c.Running())
		}
		if got := c.ask("via PA who"); !strings.HasPrefix(got, "A ") || strings.HasSuffix(got, a.Node.String()) {
			t.Errorf("after the crash: %q", got)
		}
		c.must(node.Start())
		if node.Start() == nil {
			t.Error("started twice")
		}
		c.settle()
	})
}

func TestClusterCrashAgent(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newTestCluster(t, 2)
		user := c.hold("hold PA")
		defer user.Close()
		a := c.the("A")
		node := c.NodeAt(a.Node)
		c.must(node.CrashAgent())
		if node.CrashAgent() == nil {
			t.Error("crashed twice")
		}
		if slices.Contains(c.Running(), a.ID) {
			t.Error("A goes on without its agent")
		}
		c.must(node.Start())
		begin := time.Now()
		c.settle()
		if d := time.Since(begin); d > 30*time.Second {
			t.Errorf("settled after %v: the agent is back, nobody has to be lost", d)
		}
		if got := c.ended(a.ID); len(got) != 1 {
			t.Errorf("ends of A: %q", got)
		}
		if got := c.ask("via PA via PD echo x"); got != "x" {
			t.Errorf("after the crash: %q", got)
		}
	})
}

// Instances and sessions go on without a Manager. The next one has its store,
// knows them all, and hears what it missed.
func TestClusterCrashManager(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newTestCluster(t, 2)
		user := c.hold("hold PA")
		c.ask("via PA via PB echo x")
		b := c.the("B")
		c.settle()
		before := c.Running()
		session := c.Snapshot().Sessions[0].ID
		c.must(c.CrashManager())
		if c.CrashManager() == nil {
			t.Error("crashed twice")
		}
		time.Sleep(time.Minute)
		if reply, err := askConn(user, "echo still here"); err != nil || reply != "still here" {
			t.Errorf("without a Manager: %q, %v", reply, err)
		}
		if got := c.ask("via PA who"); !strings.HasPrefix(got, "error: ") {
			t.Errorf("a dial without a Manager: %q", got)
		}
		if got := c.Running(); !slices.Equal(got, before) {
			t.Errorf("%v run, want %v still", got, before)
		}
		c.must(c.Kill(b.ID)) // the Manager hears of it when it is back
		c.must(c.StartManager())
		if c.StartManager() == nil {
			t.Error("started twice")
		}
		c.settle()
		if got, want := c.Running(), slices.DeleteFunc(slices.Clone(before), func(id ssmmp.InstanceID) bool { return id == b.ID }); !slices.Equal(got, want) {
			t.Errorf("%v run, want %v still", got, want)
		}
		if s := c.Snapshot().Sessions; len(s) != 1 || s[0].ID != session {
			t.Errorf("sessions %+v, want %s still", s, session)
		}
		if got := c.ended(b.ID); len(got) != 1 {
			t.Errorf("ends of B: %q", got)
		}
		if got := c.ask("via PA via PB echo again"); got != "again" {
			t.Errorf("after the restart: %q", got)
		}
		requested := map[ssmmp.InstanceID]bool{}
		for _, ev := range c.History() {
			if ev.Kind == ssmmp.EventInstanceRequested {
				if requested[ev.Instance] {
					t.Errorf("an id is used again: %s", ev)
				}
				requested[ev.Instance] = true
			}
		}
		if len(requested) != 4 {
			t.Errorf("instances %v in the history, want that of both Managers", requested)
		}
		user.Close()
	})
}

// A Manager that crashed has lost nothing that it promised, whenever that was.
func TestClusterCrashManagerAnyTime(t *testing.T) {
	for after := range 40 {
		t.Run(fmt.Sprint(after), func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				c := newTestCluster(t, 3)
				c.Faults.Delay(nil, nil, time.Millisecond, 0)
				done := make(chan error, 3)
				for range cap(done) {
					go func() {
						_, err := c.Ask(c.ctx, "G", "S0", "via PA via PB via PD who")
						done <- err
					}()
				}
				time.Sleep(time.Duration(after) * 500 * time.Microsecond)
				c.must(c.CrashManager())
				time.Sleep(10 * time.Second)
				c.must(c.StartManager())
				for range cap(done) {
					if err := <-done; err != nil {
						t.Error(err)
					}
				}
				c.settle()
				if got := c.ask("via PA via PB via PD echo x"); got != "x" {
					t.Errorf("after the restart: %q", got)
				}
				c.settle()
			})
		})
	}
}

// A partition that heals in time changes nothing.
func TestClusterPartition(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		user := c.hold("hold PA")
		c.settle()
		before := c.Running()
		node := c.NodeAt(c.the("A").Node)
		c.Faults.Partition(node.Hosts(), Hosts{ManagerAddr})
		time.Sleep(40 * time.Second)
		for _, a := range c.Snapshot().Agents {
			if want := map[bool]ssmmp.AgentState{true: ssmmp.AgentIsAway, false: ssmmp.AgentUp}[a.Address == node.Addr()]; a.State != want {
				t.Errorf("agent %s is %s, want %s", a.Address, a.State, want)
			}
		}
		ctx, cancel := context.WithTimeout(c.ctx, time.Second)
		if err := c.Settle(ctx); err == nil || !strings.Contains(err.Error(), node.Addr().String()+" runs and is away") {
			t.Errorf("Settle in a partition: %v", err)
		}
		cancel()
		if reply, err := askConn(user, "echo still here"); err != nil || reply != "still here" {
			t.Errorf("over a session in a partition: %q, %v", reply, err)
		}
		c.Faults.Heal()
		c.settle()
		if got := c.Running(); !slices.Equal(got, before) || len(c.Snapshot().Sessions) != 1 {
			t.Errorf("%v run, sessions %+v; want %v and one", got, c.Snapshot().Sessions, before)
		}
		user.Close()
	})
}

// Settle tells apart what the Manager thinks and what is.
func TestClusterUnsettled(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newTestCluster(t, 2)
		user := c.hold("hold PA")
		c.settle()
		wantUnsettled := func(what string) {
			t.Helper()
			ctx, cancel := context.WithTimeout(c.ctx, time.Second)
			defer cancel()
			if err := c.Settle(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), what) {
				t.Errorf("Settle: %v; want %q", err, what)
			}
		}
		a := c.the("A")
		// The node's words do not arrive, so the Manager does not know yet.
		c.Faults.Block(c.NodeAt(a.Node).Hosts(), nil)
		c.must(c.Kill(a.ID))
		wantUnsettled("bytes are on their way")
		c.Faults.Heal()
		c.settle()

		user.Close()
		g := c.the("G")
		c.Faults.CutOff(c.NodeAt(g.Node).Hosts())
		c.must(c.Kill(g.ID))
		wantUnsettled(fmt.Sprintf("instance %d of G is running and does not run", g.ID))
		c.Faults.Heal()
		c.settle() // the agent reports, and the gateway is started again

		c.must(c.CrashManager())
		wantUnsettled("no Manager runs")
	})
}

// Functions that panic are instances that crash.
func TestClusterPanics(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newTestCluster(t, 2,
			Service("B", func(ctx context.Context, inst *ssmmp.Instance) error { panic("a function") }),
			Service("D", Serve(func(ctx context.Context, inst *ssmmp.Instance, conn net.Conn) error {
				conn.Read(make([]byte, 8))
				panic("a handler")
			})),
		)
		if got := c.ask("via PA via PD who"); got != "error: unexpected EOF" {
			t.Errorf("to a handler that panics: %q", got)
		}
		if got := c.ask("via PA via PB who"); !strings.HasPrefix(got, "error: ssmmp: dial PB: ") {
			t.Errorf("to a function that panics: %q", got)
		}
		c.settle()
		ends := map[string]int{}
		for _, ev := range c.History() {
			if ev.Kind == ssmmp.EventInstanceEnded {
				ends[ev.Service]++
				if ev.Service == "D" && ev.Cause != "exit -1" {
					t.Errorf("the end of D: %s", ev)
				}
			}
		}
		if ends["D"] != 1 || ends["B"] == 0 || len(ends) != 2 {
			t.Errorf("ends %v, want one of D and some of B", ends)
		}
	})
}

// What a Manager could be wrong about, by a view that is wrong in one thing.
func TestClusterViews(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newTestCluster(t, 2)
		user := c.hold("hold PA")
		c.settle()
		right := c.Snapshot()
		instance := func(change func(*ssmmp.InstanceStatus)) ssmmp.Snapshot {
			s := right
			s.Instances = slices.Clone(s.Instances)
			change(&s.Instances[1])
			return s
		}
		sessions := func(all ...ssmmp.SessionStatus) ssmmp.Snapshot {
			s := right
			s.Sessions = all
			return s
		}
		closing, elsewhere := right.Sessions[0], right.Sessions[0]
		closing.State, elsewhere.PlugPort = ssmmp.SessionClosing, 1
		without := right
		without.Instances = right.Instances[1:]
		retiring := right
		retiring.Graphs = []ssmmp.GraphStatus{{Name: "chain", Retiring: true}}
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, tt := range []struct {
			name   string
			differ func(ssmmp.Snapshot) string
			view   ssmmp.Snapshot
			want   string
		}{
			{"right", c.agentsDiffer, right, ""},
			{"right", c.gatewaysDiffer, right, ""},
			{"right", c.instancesDiffer, right, ""},
			{"right", c.sessionsDiffer, right, ""},
			{"an agent missed", c.agentsDiffer, ssmmp.Snapshot{Agents: right.Agents[1:]}, "is not registered"},
			{"a gateway missed", c.gatewaysDiffer, without, "gateway G does not run"},
			{"an end", c.gatewaysDiffer, retiring, "graph chain is being undeployed"},
			{"an instance missed", c.instancesDiffer, without, "instance 1 runs and the Manager does not know it"},
			{"a ghost", c.instancesDiffer, instance(func(i *ssmmp.InstanceStatus) { i.ID = 9 }), "instance 9 of A is running and does not run"},
			{"another node", c.instancesDiffer, instance(func(i *ssmmp.InstanceStatus) { i.Node = c.nodes[0].addr.Next().Next() }), "instance 2 of A runs on 10.0.0."},
			{"not ready", c.instancesDiffer, instance(func(i *ssmmp.InstanceStatus) { i.State = ssmmp.InstanceStarting }), "instance 2 of A is starting"},
			{"a session missed", c.sessionsDiffer, sessions(), "that is no session"},
			{"a session without a connection", c.sessionsDiffer, sessions(elsewhere), "is open and has no connection"},
			{"a session on its way", c.sessionsDiffer, sessions(closing), "is closing"},
		} {
			if got := tt.differ(tt.view); !strings.Contains(got, tt.want) || (got == "") != (tt.want == "") {
				t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
			}
		}
		user.Close()
	})
}

// A gateway that crashes each time is not at rest until it stands.
func TestClusterSettlesAfterBackOff(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newTestCluster(t, 1)
		for range 5 {
			c.must(c.Kill(c.the("G").ID))
			c.settle()
			c.the("G")
		}
	})
}

// Whatever stands in the way of the network, a cluster ends at once.
func TestClusterCloses(t *testing.T) {
	for name, fault := range map[string]func(*Faults){
		"partition": func(f *Faults) { f.Partition(nil, nil) },
		"frozen":    func(f *Faults) { f.Freeze(nil) },
		"cut off":   func(f *Faults) { f.CutOff(nil) },
		"slow":      func(f *Faults) { f.Delay(nil, nil, time.Hour, 0); f.SlowReader(nil, 1) },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				c := newTestCluster(t, 3)
				user := c.hold("hold PA")
				defer user.Close()
				fault(c.Faults)
				time.Sleep(10 * time.Second)
				begin := time.Now()
				c.must(c.Close())
				if d := time.Since(begin); d > time.Second {
					t.Errorf("took %v", d)
				}
				if err := c.Close(); err != nil {
					t.Errorf("closed again: %v", err)
				}
				if _, err := c.AddNode(); !errors.Is(err, net.ErrClosed) {
					t.Errorf("AddNode after that: %v", err)
				}
				if err := c.Settle(c.ctx); !errors.Is(err, net.ErrClosed) {
					t.Errorf("Settle after that: %v", err)
				}
				if _, err := c.Ask(c.ctx, "G", "S0", "who"); !errors.Is(err, net.ErrClosed) {
					t.Errorf("Ask after that: %v", err)
				}
				if err := c.Deploy(c.ctx); err == nil {
					t.Error("deployed after that")
				}
			})
		})
	}
}

func TestClusterCommands(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		for command, cause := range map[string]string{"exit": "terminat", "fail of its own": "1", "panic at once": "-1"} {
			c := newTestCluster(t, 1)
			g := c.the("G")
			if _, err := c.Ask(c.ctx, "G", "S0", command); err == nil {
				t.Errorf("%s: answered", command)
			}
			c.settle()
			if got := c.ended(g.ID); len(got) != 1 || !strings.Contains(got[0], cause) {
				t.Errorf("%s: ends of the gateway %q, want %q", command, got, cause)
			}
			if got := c.ask("echo x"); got != "x" {
				t.Errorf("after %s: %q", command, got)
			}
		}
	})
}

// A function that does not return when it is killed is a fault of the test,
// and is named.
func TestClusterStuckFunction(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		release := make(chan struct{})
		c, err := StartCluster(t.Context(), ClusterConfig{
			Graphs: []*ssmmp.Graph{chain(t)}, Nodes: 1,
			Services: map[string]ServiceFunc{"G": func(context.Context, *ssmmp.Instance) error { <-release; return nil }},
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Deploy(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := c.Close(); err == nil || !strings.Contains(err.Error(), "the function of G 1 does not return") {
			t.Errorf("Close: %v", err)
		}
		close(release)
	})
}

func TestClusterBadDescription(t *testing.T) {
	t.Parallel()
	good := chain(t)
	noGateway := good.Clone()
	noGateway.Services[0].Kind = ssmmp.Regular
	unknown := good.Clone()
	unknown.Vertices[1].Service = "nowhere"
	other := good.Clone()
	other.Name = "other"
	for name, tt := range map[string]struct {
		cfg  ClusterConfig
		want []string
	}{
		"nothing":         {ClusterConfig{}, []string{"Nodes: 0", "Graphs: none"}},
		"nil graph":       {ClusterConfig{Graphs: []*ssmmp.Graph{nil}, Nodes: 1}, []string{"Graphs[0]: nil"}},
		"no gateway":      {ClusterConfig{Graphs: []*ssmmp.Graph{noGateway}, Nodes: 1}, []string{"no API Gateway"}},
		"unknown service": {ClusterConfig{Graphs: []*ssmmp.Graph{unknown}, Nodes: 1}, []string{"nowhere"}},
		"too many nodes":  {ClusterConfig{Graphs: []*ssmmp.Graph{good}, Nodes: 1 << 20}, []string{"Nodes: 1048576"}},
		"two gateways, one port": {ClusterConfig{Graphs: []*ssmmp.Graph{good, other}, Nodes: 1},
			[]string{"2 gateways want port 8080"}},
		"functions": {ClusterConfig{Graphs: []*ssmmp.Graph{good}, Nodes: 1, Services: map[string]ServiceFunc{"X": Answer, "A": nil}},
			[]string{`"X": no graph has this service`, `"A": no function`}},
		"what is the cluster's": {ClusterConfig{Graphs: []*ssmmp.Graph{good}, Nodes: 1,
			Manager: ssmmp.ManagerConfig{Transport: ssmmp.TCP{}, Address: ":1", HealthPeriod: -1}, Agent: ssmmp.AgentConfig{Manager: "x", StartTimeout: -1}},
			[]string{"Manager.Transport", "Manager.Address", "HealthPeriod", "Agent.Manager", "StartTimeout"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, err := StartCluster(t.Context(), tt.cfg)
			if err == nil {
				c.Close()
				t.Fatal("started")
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error\n%v\ndoes not tell %q", err, want)
				}
			}
		})
	}
}

// In real time it is the same, and nothing is left of it.
func TestClusterInRealTime(t *testing.T) {
	t.Parallel()
	wantNoLeak(t, func() {
		t.Run("Cluster", func(t *testing.T) {
			c := newTestCluster(t, 3)
			user := c.hold("hold PA")
			c.settle()
			c.must(c.Kill(c.the("A").ID))
			c.settle()
			if got := c.ask("via PA via PD echo x"); got != "x" {
				t.Errorf("answer %q", got)
			}
			node, err := c.AddNode()
			c.must(err)
			c.settle()
			c.must(node.Crash())
			c.Faults.Delay(nil, nil, time.Minute, 0)
			user.Close()
		})
	})
}

// An hour of a hundred nodes: health requests all the time, sessions that come
// and go, a network that loses and delays, nodes that lose their power.
func TestClusterHour(t *testing.T) {
	t.Parallel()
	const nodes, apps = 100, 25
	var graphs []*ssmmp.Graph
	for i := range apps {
		g := chain(t)
		g.Name = fmt.Sprintf("chain-%d", i)
		own := func(names ...*string) {
			for _, name := range names {
				*name += strconv.Itoa(i)
			}
		}
		for k := range g.Services {
			own(&g.Services[k].Name, &g.Vertices[k].Name, &g.Vertices[k].Service)
		}
		for k := range g.Edges {
			own(&g.Edges[k].From, &g.Edges[k].To)
		}
		graphs = append(graphs, g)
	}
	began := time.Now()
	var asked, failed, crashes, events int
	var stats FaultStats
	synctest.Test(t, func(t *testing.T) {
		c := NewCluster(t, graphs[0], Nodes(nodes), func(cfg *ClusterConfig) { cfg.Graphs, cfg.Seed = graphs, 1 })
		c.Faults.Delay(nil, nil, 2*time.Millisecond, 3*time.Millisecond)
		c.Faults.Loss(nil, nil, 0.01)
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Hour)
		defer cancel()
		if err := c.Deploy(ctx); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		for minute := 0; time.Since(begin) < clusterHour; minute++ {
			app := minute % apps
			asked++
			short, cancel := context.WithTimeout(ctx, time.Minute)
			got, err := c.Ask(short, fmt.Sprintf("G%d", app), "S0", "via PA via PB via PD echo x")
			cancel()
			if err != nil || got != "x" {
				failed++
			}
			switch minute % 10 {
			case 3:
				if err := c.Node(minute % nodes).Crash(); err != nil {
					t.Fatal(err)
				}
				crashes++
			case 8:
				if err := c.Node((minute - 5) % nodes).Start(); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(time.Minute)
		}
		if err := c.Settle(ctx); err != nil {
			t.Error(err)
		}
		events, stats = len(c.History()), c.Faults.Stats()
		if d := time.Since(begin); d < clusterHour || d > clusterHour+10*time.Minute {
			t.Errorf("it took %v of virtual time", d)
		}
	})
	t.Logf("%d nodes, %v of virtual time in %v: %d events, %d asked and %d failed, %d nodes crashed, network %+v",
		nodes, clusterHour, time.Since(began).Round(time.Millisecond), events, asked, failed, crashes, stats)
	if failed > asked/4 || crashes < int(clusterHour/(15*time.Minute)) || stats.Resent == 0 {
		t.Errorf("%d of %d failed, %d crashes, %d resent", failed, asked, crashes, stats.Resent)
	}
}
