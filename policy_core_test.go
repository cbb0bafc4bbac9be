package ssmmp

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// checkChoices compares what the policy chooses from its orders with what a look
// at everything finds. managerStepper has it done after every step.
func checkChoices(t tester, c *ManagerCore) {
	t.Helper()
	down := 0
	for _, app := range c.apps {
		live := 0
		for _, v := range app.vertices {
			live += len(v.instances)
			if v.kind == Gateway && len(v.instances) == 0 {
				down++
			}
			if got, how := v.order.first(); got != bestAt(c, v) {
				t.Fatalf("at %s instance %v is the best (%d), want %v", v.name, got, how, bestAt(c, v))
			}
			got, status := c.place(v)
			if want, wantStatus := placeAt(c, v); got != want || status != wantStatus {
				t.Fatalf("%s is placed on %v (%s), want %v (%s)", v.name, got, status, want, wantStatus)
			}
		}
		if live != app.live {
			t.Fatalf("%d instances of %s, want %d", app.live, app.name, live)
		}
	}
	if down != c.down {
		t.Fatalf("%d gateways are down, want %d", c.down, down)
	}
	away, all, exchanges := 0, 0, 0
	for _, a := range c.agents {
		exchanges += len(a.exchanges)
		if a.up() || !a.lost {
			all++
		}
		if !a.up() && !a.lost {
			away++
		}
	}
	if gotAway, gotAll := c.agentsAway(); gotAway != away || gotAll != all {
		t.Fatalf("%d of %d agents are away, want %d of %d", gotAway, gotAll, away, all)
	}
	if exchanges != len(c.exchanges) {
		t.Fatalf("the agents have %d exchanges, want %d", exchanges, len(c.exchanges))
	}
}

// What is chosen by order is what a look at everything finds, whatever became of
// the instances.
func TestPolicyOrder(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(1, 2))
	c := choiceCore(t, 6)
	c.cfg.SessionsPerInstance = 3
	a, b := c.apps[0].byName["A"].instances[0], c.apps[0].byName["B"]
	id := int64(0)
	for range 2000 {
		c.out, c.events = c.out[:0], c.events[:0]
		switch r.IntN(4) {
		case 0:
			if i, _ := c.start(b, ""); i != nil && len(b.instances) > 8 {
				c.ended(b.instances[r.IntN(len(b.instances))], StatusOK, "")
			}
		case 1:
			id++
			c.seek(waiter{src: a, messageID: id})
		case 2:
			if slot := c.offers[offerKey{a.id, 1 + r.Int64N(id+1)}]; slot != 0 {
				c.sessionClosed(slot, StatusOK, "")
			}
		default:
			if len(b.instances) == 0 {
				continue
			}
			i := b.instances[r.IntN(len(b.instances))]
			i.suspect, i.refused, i.status = r.IntN(3) == 0, r.IntN(3) == 0, [...]Status{StatusOK, StatusOverloaded}[r.IntN(2)]
			c.rank(i)
			if i.state == instanceStarting {
				c.started(i, StatusOK)
			}
		}
		checkChoices(t, c)
	}
}

// bestAt finds the instance for a new session.
func bestAt(c *ManagerCore, v *vertex) *instance {
	var well, soon, unwell *instance
	better := func(a, b *instance) bool {
		if b == nil || a.refused != b.refused {
			return b == nil || b.refused
		}
		return c.sessionsOf(a) < c.sessionsOf(b)
	}
	for _, i := range v.instances {
		switch {
		case i.state == instanceStarting && soon == nil && !c.full(len(i.waiters)):
			soon = i
		case i.state != instanceRunning || c.full(int(c.sessions.ends[i.slot].dstLen)):
		case i.suspect || i.status == StatusOverloaded:
			if better(i, unwell) {
				unwell = i
			}
		case better(i, well):
			well = i
		}
	}
	for _, i := range []*instance{well, soon, unwell} {
		if i != nil {
			return i
		}
	}
	return nil
}

// placeAt finds the node for a new instance.
func placeAt(c *ManagerCore, v *vertex) (*agent, Status) {
	var best *agent
	status := StatusNotFound
	has := func(a *agent) bool { return slices.Contains(a.services, v.service) }
	for _, a := range c.agents {
		switch {
		case !a.up() || !has(a):
		case len(a.strangers) > 0 || !c.portsFor(v, a):
			status = StatusUnavailable
		case v.kind == Storage && a == v.lastNode:
			return a, 0
		case best == nil, v.quickEnds > 0 && best == v.lastNode:
			best = a
		case v.quickEnds > 0 && a == v.lastNode:
		case len(a.instances) < len(best.instances):
			best = a
		}
	}
	switch {
	case best == nil:
		return nil, status
	case v.kind == Storage && v.lastNode != nil && !v.lastNode.lost && has(v.lastNode):
		return nil, StatusUnavailable
	}
	return best, 0
}

// BenchmarkManagerChoice is what a start costs among many nodes, and what a
// session costs among many instances of its destination.
func BenchmarkManagerChoice(b *testing.B) {
	for _, n := range []int{10, 1000, 10_000} {
		b.Run(fmt.Sprintf("start/nodes=%d", n), func(b *testing.B) {
			c := choiceCore(b, n)
			v := c.apps[0].byName["B"]
			for b.Loop() {
				if a, _ := c.place(v); a == nil {
					b.Fatal("no place")
				}
			}
		})
		b.Run(fmt.Sprintf("session/instances=%d", n), func(b *testing.B) {
			c := choiceCore(b, n)
			for k := range n {
				i, status := c.start(c.apps[0].byName["B"], "")
				if i == nil {
					b.Fatal(k, status)
				}
				c.started(i, StatusOK)
			}
			src, id := c.apps[0].byName["A"].instances[0], int64(0)
			for b.Loop() {
				id++
				c.out, c.events = c.out[:0], c.events[:0]
				c.seek(waiter{src: src, messageID: id})
				c.sessionClosed(c.offers[offerKey{src.id, id}], StatusOK, "")
			}
		})
	}
}

// choiceCore has a gateway A that calls B, which each of n nodes can execute.
func choiceCore(tb testing.TB, n int) *ManagerCore {
	g, err := NewGraph("pair").Gateway("A", FixedPorts{"S0": 8080}, Out{"P1"}).
		Regular("B", In{"S1"}, Out{"P2"}).Storage("C", In{"S2"}).
		Edge("A", "P1", "S1", "B").Edge("B", "P2", "S2", "C").Build()
	if err != nil {
		tb.Fatal(err)
	}
	c := NewManagerCore(ManagerConfig{Graphs: []*Graph{g}, IdleAfter: -1, HealthPeriod: time.Hour}.WithDefaults())
	for k := range n {
		services := []string{"B"}
		if k == 0 {
			services = append(services, "A")
		}
		c.Step(ManagerInput{Kind: ManagerInputMessage, Conn: ConnID(k + 1),
			Msg: &InitiationRequest{Header: Header{MessageID: 1}, AgentNetworkAddress: netip.AddrFrom4([4]byte{10, 1, byte(k >> 8), byte(k)}), ServiceRepository: services}})
	}
	c.Step(ManagerInput{Kind: ManagerInputCommand, Call: 1, Cmd: DeployCommand{"pair"}})
	c.started(c.apps[0].byName["A"].instances[0], StatusOK)
	return c
}
