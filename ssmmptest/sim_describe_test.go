package ssmmptest_test

import (
	"strings"
	"testing"
	"time"

	"github.com/ssmmp/ssmmp"
	. "github.com/ssmmp/ssmmp/ssmmptest"
)

// smallSimulation is a gateway that calls a service with a store, on two nodes.
func smallSimulation(tb testing.TB) Simulation {
	g, err := ssmmp.NewGraph("small").Gateway("A", ssmmp.FixedPorts{"S0": 8080}, ssmmp.Out{"P1"}).
		Regular("B", ssmmp.In{"S1"}, ssmmp.Out{"P2"}).Storage("C", ssmmp.In{"S2"}).
		Edge("A", "P1", "S1", "B").Edge("B", "P2", "S2", "C").Build()
	if err != nil {
		tb.Fatal(err)
	}
	return Simulation{Seed: 1, Graphs: []*ssmmp.Graph{g}, Nodes: make([]SimulationNode, 2), For: time.Minute,
		Load: []SimulationLoad{{Graph: "small", Every: time.Second, Hold: time.Second}}}
}

// What cannot work is an error at once, which names all that is wrong.
func TestSimulationBad(t *testing.T) {
	t.Parallel()
	for want, change := range map[string]func(*Simulation){
		"Simulation.Nodes: none":                   func(s *Simulation) { s.Nodes = nil },
		"Simulation.Nodes: 16385: more than 16384": func(s *Simulation) { s.Nodes = make([]SimulationNode, 16385) },
		"Simulation.For: -1s":                      func(s *Simulation) { s.For = -time.Second },
		"Simulation.Latency: -1s":                  func(s *Simulation) { s.Latency = -time.Second },
		"Simulation.Config.DialTimeout: -1s":       func(s *Simulation) { s.Config.DialTimeout = -time.Second },
		"ManagerConfig.StartTimeout: -1s":          func(s *Simulation) { s.Config.StartTimeout = -time.Second },
		"Simulation.Config.FirstPlugPort: 2":       func(s *Simulation) { s.Config.FirstPlugPort, s.Config.LastPlugPort = 2, 1 },
		"Simulation.Graphs: none":                  func(s *Simulation) { s.Graphs, s.Load = nil, nil },
		"Simulation.Graphs[0]: nil":                func(s *Simulation) { s.Graphs = []*ssmmp.Graph{nil} },
		"Simulation.Graphs[1]: small: another":     func(s *Simulation) { s.Graphs = append(s.Graphs, s.Graphs[0]) },
		"has no API Gateway":                       func(s *Simulation) { s.Graphs = []*ssmmp.Graph{{Name: "none"}} },
		"Simulation.Nodes[1].Services: a b":        func(s *Simulation) { s.Nodes[1].Services = []string{"a b"} },
		"Simulation.Nodes[0].Drift":                func(s *Simulation) { s.Nodes[0].Drift = 1 << 20 },
		"Simulation.Load[0].Graph: nonesuch":       func(s *Simulation) { s.Load[0].Graph = "nonesuch" },
		"Simulation.Load[0].Every: 0s":             func(s *Simulation) { s.Load[0].Every = 0 },
		"Simulation.Load[0].Hold: 2562047h47m16.8": func(s *Simulation) { s.Load[0].Hold = 1<<63 - 1 },
		"Simulation.Faults[0].Kind":                func(s *Simulation) { s.Faults = []SimulationFault{{Nodes: []int{0}}} },
		"Simulation.Faults[0].Nodes: 2":            func(s *Simulation) { s.Faults = []SimulationFault{{Kind: SimPartition, Nodes: []int{2}}} },
		"Simulation.Faults[0].Nodes: none":         func(s *Simulation) { s.Faults = []SimulationFault{{Kind: SimPartition}} },
		"Simulation.Faults[0].Service: D":          func(s *Simulation) { s.Faults = []SimulationFault{{Kind: SimCrashes, Nodes: []int{0}, Service: "D"}} },
		"Simulation.Work[0].Kind":                  func(s *Simulation) { s.Work = []SimulationWork{{Kind: "play"}} },
	} {
		s := smallSimulation(t)
		change(&s)
		res, err := s.Run(SimulationOptions{})
		if err == nil || !strings.Contains(err.Error(), want) || res != nil {
			t.Errorf("error %v, want one with %q", err, want)
		}
	}
}

// A simulation that ends with its faults has a Manager that goes on from its
// store all the same.
func TestSimulationQuiet(t *testing.T) {
	t.Parallel()
	s := smallSimulation(t)
	s.Quiet = true
	s.Faults = []SimulationFault{{Kind: SimManagerCrash, At: 20 * time.Second, For: 2 * time.Second}}
	starts := 0
	res, err := s.Run(SimulationOptions{OnEvent: func(_ time.Duration, ev ssmmp.Event) {
		if ev.Kind == ssmmp.EventManagerStarted {
			starts++
		}
	}})
	if err != nil || res.Failure != nil || res.Virtual != s.For {
		t.Fatal(err, res)
	}
	if starts != 1 || res.Faults[SimReplayed] != 1 || res.Starts != 3 {
		t.Errorf("the Manager went on from its store %d times, and %d instances were started; want 1 and 3", res.Faults[SimReplayed], res.Starts)
	}
}
