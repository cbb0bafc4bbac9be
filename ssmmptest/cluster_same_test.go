package ssmmptest

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ssmmp/ssmmp"
)

// A sameStep is one step of a workload that every kind of mesh can do.
type sameStep struct {
	dial     [2]string // an instance of this vertex dials this plug,
	short    bool      // and closes what it gets
	close    [2]string // the operator closes the session of this vertex and plug
	shutdown string    // or shuts the instance of a vertex down
	hard     bool
}

// sameWork leaves G, A and a second D, and one session.
var sameWork = []sameStep{
	{dial: [2]string{"G", "PA"}},
	{dial: [2]string{"A", "PB"}},
	{dial: [2]string{"B", "PD"}},
	{dial: [2]string{"A", "PD"}},
	{dial: [2]string{"G", "PA"}, short: true},
	{close: [2]string{"A", "PD"}},
	{shutdown: "D", hard: true},
	{dial: [2]string{"B", "PD"}},
	{shutdown: "B"},
}

// The same workload ends in the same state, whether the cores are simulated, or
// their runtimes run over the network in memory, or over TCP.
func TestSameEverywhere(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	states := map[string]string{}
	end := func(t *testing.T, events []ssmmp.Event) {
		mu.Lock()
		defer mu.Unlock()
		states[t.Name()] = sameState(events)
	}
	t.Run("all", func(t *testing.T) {
		t.Run("simulation", func(t *testing.T) {
			t.Parallel()
			end(t, sameSimulation(t))
		})
		t.Run("memory", func(t *testing.T) {
			inBubble(t, func(t *testing.T) { end(t, sameCluster(t, memNet())) })
		})
		t.Run("TCP", func(t *testing.T) {
			t.Parallel()
			end(t, sameCluster(t, tcpNet(t)))
		})
	})
	const want = "closed A.PB, closed A.PD, 2 × closed B.PD, closed G.PA, ended B, ended D, open G.PA, " +
		"opened A.PB, opened A.PD, 2 × opened B.PD, 2 × opened G.PA, " +
		"runs A, runs D, runs G, started A, started B, 2 × started D, started G"
	for name, state := range states {
		if state != want {
			t.Errorf("%s ends as\n%s\nwant\n%s", name, state, want)
		}
	}
}

// sameState says what events come to, in words that do not depend on ids,
// ports and nodes.
func sameState(events []ssmmp.Event) string {
	count := map[string]int{}
	vertex := map[ssmmp.InstanceID]string{}
	for _, ev := range events {
		switch ev.Kind {
		case ssmmp.EventInstanceRequested:
			vertex[ev.Instance] = ev.Vertex
		case ssmmp.EventInstanceReady:
			count["started "+vertex[ev.Instance]]++
			count["runs "+vertex[ev.Instance]]++
		case ssmmp.EventInstanceEnded:
			count["ended "+vertex[ev.Instance]]++
			count["runs "+vertex[ev.Instance]]--
		case ssmmp.EventSessionOpened:
			count["opened "+vertex[ev.Source]+"."+ev.Plug]++
			count["open "+vertex[ev.Source]+"."+ev.Plug]++
		case ssmmp.EventSessionClosed:
			edge := vertex[ev.Source] + "." + ev.Plug
			count["closed "+edge]++
			count["open "+edge]--
		}
	}
	var all []string
	for _, what := range slices.Sorted(maps.Keys(count)) {
		switch n := count[what]; n {
		case 0:
		case 1:
			all = append(all, what)
		default:
			all = append(all, fmt.Sprintf("%d × %s", n, what))
		}
	}
	return strings.Join(all, ", ")
}

// sameCluster does the work with a cluster.
func sameCluster(t *testing.T, hosts clusterNet) []ssmmp.Event {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	var mu sync.Mutex
	instances := map[string]*ssmmp.Instance{}
	service := Serve(func(ctx context.Context, inst *ssmmp.Instance, conn net.Conn) error {
		conn.Read(make([]byte, 1)) // until it is closed
		return nil
	})
	cfg := ClusterConfig{Graphs: []*ssmmp.Graph{chain(t)}, Nodes: 1, Services: map[string]ServiceFunc{}}
	cfg.Manager.FirstPort, cfg.Manager.LastPort = 20000, 30000 // where no system takes ports for dials
	for _, name := range []string{"G", "A", "B", "D"} {
		cfg.Services[name] = func(ctx context.Context, inst *ssmmp.Instance) error {
			mu.Lock()
			instances[name] = inst
			mu.Unlock()
			return service(ctx, inst)
		}
	}
	cluster, err := startCluster(ctx, cfg, hosts)
	if err != nil {
		t.Fatal(err)
	}
	c := &testCluster{cluster, t, ctx}
	defer func() { c.must(c.Close()) }()
	c.must(c.Deploy(ctx))
	c.settle()
	for _, step := range sameWork {
		switch {
		case step.dial[0] != "":
			mu.Lock()
			inst := instances[step.dial[0]]
			mu.Unlock()
			conn, err := inst.Dial(ctx, step.dial[1])
			c.must(err)
			defer conn.Close()
			c.settle()
			if step.short {
				conn.Close()
			}
		case step.close[0] != "":
			for _, s := range c.Snapshot().Sessions {
				if s.SourceService == step.close[0] && s.Plug == step.close[1] {
					c.must(c.Manager().CloseSession(ctx, s.ID))
				}
			}
		case step.hard:
			c.must(c.Manager().HardShutdown(ctx, c.the(step.shutdown).ID))
		default:
			c.must(c.Manager().Shutdown(ctx, c.the(step.shutdown).ID))
		}
		c.settle()
	}
	return c.History()
}

// tcpNets counts the networks of this process.
var tcpNets struct {
	sync.Mutex
	n uint16
}

// tcpNet has loopback addresses of its own for each host, so that no other
// test, of this process or another, competes for their ports.
func tcpNet(t *testing.T) clusterNet {
	tcpNets.Lock()
	tcpNets.n++
	n := uint32(os.Getpid())<<6 | uint32(tcpNets.n)&63
	tcpNets.Unlock()
	addr := func(host int) netip.Addr {
		return netip.AddrFrom4([4]byte{127, 128 | byte(n>>12)&127, byte(n >> 4), byte(n<<4) | byte(host)})
	}
	ln, err := net.Listen("tcp4", net.JoinHostPort(addr(1).String(), "0"))
	if err != nil {
		t.Skipf("NOT TESTED: a cluster over TCP, because this machine has no %s: %v", addr(1), err)
	}
	ln.Close()
	return clusterNet{
		manager: addr(1), users: addr(2), node: func(i int) netip.Addr { return addr(3 + i) },
		transport: func(a netip.Addr) (ssmmp.Transport, error) { return ssmmp.TCP{LocalAddr: a}, nil },
	}
}

// sameSimulation does the work with a simulation of the same graph.
func sameSimulation(t *testing.T) (events []ssmmp.Event) {
	g := chain(t)
	s := Simulation{Seed: 1, Graphs: []*ssmmp.Graph{g}, Nodes: make([]SimulationNode, 1), Quiet: true}
	// What a step picks from depends on those before it: the instances in the
	// order of their starts, and the sessions by their sources, newest first.
	instances, sessions := []string{"G"}, [][2]string(nil)
	end := func(vertex string) {
		instances = slices.DeleteFunc(instances, func(v string) bool { return v == vertex })
		sessions = slices.DeleteFunc(sessions, func(e [2]string) bool { edge, _ := g.EdgeOf(e[0], e[1]); return e[0] == vertex || edge.To == vertex })
	}
	for _, step := range sameWork {
		s.For += 5 * time.Second
		w := SimulationWork{At: s.For, Hold: time.Hour}
		switch {
		case step.dial[0] != "":
			w.Kind = SimDial
			callers := slices.DeleteFunc(slices.Clone(instances), func(v string) bool { return v == "D" })
			service, _ := g.Service(step.dial[0])
			who, plug := slices.Index(callers, step.dial[0]), slices.Index(service.Plugs, step.dial[1])
			for int(w.Pick)%len(callers) != who || int(w.Pick>>8)%len(service.Plugs) != plug {
				w.Pick++
			}
			if edge, _ := g.EdgeOf(step.dial[0], step.dial[1]); !slices.Contains(instances, edge.To) {
				instances = append(instances, edge.To)
			}
			if step.short {
				w.Hold = time.Second
			} else {
				sessions = append([][2]string{step.dial}, sessions...)
				slices.SortStableFunc(sessions, func(a, b [2]string) int {
					return slices.Index(instances, a[0]) - slices.Index(instances, b[0])
				})
			}
		case step.close[0] != "":
			w.Kind, w.Pick = SimCloseSession, uint32(slices.Index(sessions, step.close))
			sessions = slices.Delete(sessions, int(w.Pick), int(w.Pick)+1)
		default:
			w.Kind, w.Pick = SimShutdown, uint32(slices.Index(instances, step.shutdown))
			if step.hard {
				w.Kind = SimHardShutdown
			}
			end(step.shutdown)
		}
		s.Work = append(s.Work, w)
	}
	s.For += 5 * time.Second
	result, err := s.Run(SimulationOptions{OnEvent: func(_ time.Duration, ev ssmmp.Event) { events = append(events, ev) }})
	if err != nil {
		t.Fatal(err)
	}
	if result.Failure != nil {
		t.Error(result.Failure)
	}
	return events
}
