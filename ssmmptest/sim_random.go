package ssmmptest

import (
	"fmt"
	"slices"
	"time"

	"github.com/ssmmp/ssmmp"
)

// Simulations drawn from a seed.

// RandomSimulation returns the simulation of a seed: a few nodes, one or two
// small graphs, a workload and what goes wrong. The same seed gives the same in
// one version of this package; to keep one for later, keep its JSON.
func RandomSimulation(seed uint64) Simulation {
	r := newSimRand(seed, 0)
	s := Simulation{Seed: seed, For: r.between(60*time.Second, 150*time.Second)}
	s.Latency, s.Jitter = r.between(0, 5*time.Millisecond), r.between(0, 20*time.Millisecond)
	if r.oneIn(2) {
		s.Commit = r.between(100*time.Microsecond, 20*time.Millisecond)
	}
	s.Forgets = r.oneIn(4)
	s.Config = simRandomConfig(&r)
	for range 1 + r.n(2) {
		s.Graphs = append(s.Graphs, simRandomGraph(&r, len(s.Graphs)))
	}
	s.Nodes = make([]SimulationNode, 2+r.n(4))
	simPlaceServices(&r, &s)
	for range 40 + r.n(80) {
		s.Work = append(s.Work, simRandomWork(&r, s.For))
	}
	if r.oneIn(2) {
		for _, g := range s.Graphs {
			s.Load = append(s.Load, SimulationLoad{Graph: g.Name, Every: r.between(200*time.Millisecond, 5*time.Second), Hold: r.between(0, 10*time.Second)})
		}
	}
	for range 2 + r.n(14) {
		s.Faults = append(s.Faults, simRandomFault(&r, &s))
	}
	byTime := func(a, b time.Duration) int { return int(min(max(a-b, -1), 1)) }
	slices.SortStableFunc(s.Work, func(a, b SimulationWork) int { return byTime(a.At, b.At) })
	slices.SortStableFunc(s.Faults, func(a, b SimulationFault) int { return byTime(a.At, b.At) })
	return s
}

func simRandomConfig(r *simRand) SimulationConfig {
	pick := func(ds ...time.Duration) time.Duration { return ds[r.n(len(ds))] }
	c := SimulationConfig{
		StartTimeout: pick(10*time.Second, 30*time.Second), DrainTimeout: pick(3*time.Second, 10*time.Second),
		RequestTimeout: pick(2*time.Second, 5*time.Second), HealthPeriod: pick(2*time.Second, 5*time.Second),
		LostAfter: pick(20*time.Second, 60*time.Second), IdleAfter: pick(20*time.Second, 60*time.Second, 5*time.Minute),
		PortLinger: pick(5*time.Second, 60*time.Second), DialTimeout: pick(10*time.Second, 45*time.Second),
		KernelProof: r.oneIn(2),
	}
	c.AckTimeout = c.DialTimeout + pick(5*time.Second, 15*time.Second)
	if r.oneIn(4) {
		c.SessionsPerInstance = 1 + r.n(4)
	}
	if r.oneIn(4) {
		c.InstancesPerService = 1 + r.n(3)
	}
	if r.oneIn(4) { // few ports, so that they are used again
		c.FirstPort, c.LastPort = 54000, 54000+uint16(15+r.n(20))
	}
	if r.oneIn(2) {
		c.FirstPlugPort, c.LastPlugPort = 40000, 40000+uint16(8+r.n(40))
	}
	return c
}

// simRandomGraph returns a small graph: gateways lead to regular services, those
// to others after them, and all may lead to storage services.
func simRandomGraph(r *simRand, number int) *ssmmp.Graph {
	name := func(kind string, i int) string { return fmt.Sprintf("%s%d%d", kind, number, i) }
	g := &ssmmp.Graph{Name: fmt.Sprintf("app%d", number)}
	gateways, regulars, storages := 1+r.n(2), 1+r.n(4), 1+r.n(2)
	add := func(sv ssmmp.Service) {
		g.Services = append(g.Services, sv)
		g.Vertices = append(g.Vertices, ssmmp.Vertex{Name: sv.Name, Service: sv.Name})
	}
	for i := range gateways {
		sv := ssmmp.Service{Name: name("G", i), Kind: ssmmp.Gateway, Sockets: []ssmmp.Socket{{Name: "S0", Port: uint16(8000 + 10*number + i)}}}
		for p := range 1 + r.n(2) {
			sv.Plugs = append(sv.Plugs, fmt.Sprintf("P%d", p))
		}
		add(sv)
	}
	sockets := func() (list []ssmmp.Socket) {
		for k := range 1 + r.n(2) {
			list = append(list, ssmmp.Socket{Name: fmt.Sprintf("S%d", k)})
		}
		return list
	}
	for i := range regulars {
		sv := ssmmp.Service{Name: name("R", i), Sockets: sockets()}
		for p := range 1 + r.n(2) {
			sv.Plugs = append(sv.Plugs, fmt.Sprintf("P%d", p))
		}
		add(sv)
		if r.oneIn(6) { // the same service in another place
			g.Vertices = append(g.Vertices, ssmmp.Vertex{Name: sv.Name + "b", Service: sv.Name})
		}
	}
	for i := range storages {
		add(ssmmp.Service{Name: name("D", i), Kind: ssmmp.Storage, Sockets: sockets()})
	}
	// Each plug leads to a later place. Whatever nothing leads to gets a plug
	// of a gateway, since every place has to be reachable.
	used := make([]bool, len(g.Vertices))
	edge := func(from int, plug string, to int) {
		sv, _ := g.Service(g.Vertices[to].Service)
		socket := sv.Sockets[r.n(len(sv.Sockets))].Name
		g.Edges = append(g.Edges, ssmmp.Edge{From: g.Vertices[from].Name, Plug: plug, Socket: socket, To: g.Vertices[to].Name})
		used[to] = true
	}
	for i, v := range g.Vertices {
		sv, _ := g.Service(v.Service)
		for _, p := range sv.Plugs {
			first := max(i+1, gateways)
			edge(i, p, first+r.n(len(g.Vertices)-first))
		}
	}
	for i := gateways; i < len(g.Vertices); i++ {
		if !used[i] {
			plug := fmt.Sprintf("P%d", 2+i)
			g.Services[0].Plugs = append(g.Services[0].Plugs, plug)
			edge(0, plug, i)
		}
	}
	// A socket that nothing leads to would be a fault of the graph.
	for k := range g.Services {
		sv := &g.Services[k]
		if sv.Kind == ssmmp.Gateway {
			continue
		}
		for _, socket := range sv.Sockets {
			for i, v := range g.Vertices {
				if v.Service != sv.Name || slices.ContainsFunc(g.Edges, func(e ssmmp.Edge) bool { return e.Socket == socket.Name && e.To == v.Name }) {
					continue
				}
				plug := fmt.Sprintf("Q%d%s", i, socket.Name)
				g.Services[0].Plugs = append(g.Services[0].Plugs, plug)
				g.Edges = append(g.Edges, ssmmp.Edge{From: g.Vertices[0].Name, Plug: plug, Socket: socket.Name, To: v.Name})
			}
		}
	}
	return g
}

// simPlaceServices gives each node a part of the services, and one that no graph
// knows; each service is somewhere.
func simPlaceServices(r *simRand, s *Simulation) {
	var names []string
	for _, g := range s.Graphs {
		for _, sv := range g.Services {
			names = append(names, sv.Name)
		}
	}
	for i := range s.Nodes {
		n := &s.Nodes[i]
		n.Keeps = r.oneIn(2)
		if r.oneIn(3) {
			n.Drift = r.n(2001) - 1000
		}
		if r.oneIn(3) {
			n.Services = []string{"unknown_service"}
			for k, name := range names {
				if r.oneIn(2) || k%len(s.Nodes) == i {
					n.Services = append(n.Services, name)
				}
			}
		}
	}
}

func simRandomWork(r *simRand, until time.Duration) SimulationWork {
	w := SimulationWork{At: r.between(time.Second, until), Pick: uint32(r.next()), Hold: r.between(0, 20*time.Second)}
	switch r.n(14) {
	case 0:
		w.Kind = SimCloseSession
	case 1:
		w.Kind = SimShutdown
	case 2:
		w.Kind = SimHardShutdown
	case 3:
		if w.Kind = SimRedeploy; r.oneIn(2) {
			w.Kind = SimDial
		}
	case 4, 5, 6, 7, 8:
		w.Kind = SimDial
	default:
		w.Kind = SimChain
	}
	if r.oneIn(5) {
		w.Hold = r.between(0, 100*time.Millisecond)
	}
	return w
}

func simRandomFault(r *simRand, s *Simulation) SimulationFault {
	var kinds []SimulationFaultKind
	for k := SimulationFaultKind(1); k < simFaultKinds; k++ {
		if k.Injectable() {
			kinds = append(kinds, k)
		}
	}
	f := SimulationFault{Kind: kinds[r.n(len(kinds))], At: r.between(0, s.For*9/10), For: r.between(100*time.Millisecond, 30*time.Second), Amount: r.between(time.Millisecond, 10*time.Second)}
	switch f.Kind {
	case SimNodeAway, SimManagerClockJumps, SimAgentClockJumps:
		f.For, f.Amount = r.between(10*time.Second, 90*time.Second), r.between(time.Second, 90*time.Second)
	case SimSlowLink:
		f.Amount = r.between(time.Millisecond, 3*time.Second)
	case SimPartition, SimPartitionToManager, SimPartitionFromManager, SimAgentFrozen, SimManagerFrozen:
		f.For = r.between(time.Second, 80*time.Second)
	}
	if e := &simFaultTable[f.Kind]; e.habit != nil {
		f.At = r.between(0, s.For/2) // most processes start early
		if f.For = r.between(5*time.Second, 60*time.Second); r.oneIn(2) {
			g := s.Graphs[r.n(len(s.Graphs))]
			f.Service = g.Services[r.n(len(g.Services))].Name
		}
		f.Percent = 20 + r.n(81)
	}
	if f.Kind.ofManager() {
		return f
	}
	for i := range s.Nodes {
		if r.oneIn(3) || f.Service != "" {
			f.Nodes = append(f.Nodes, i)
		}
	}
	if len(f.Nodes) == 0 {
		f.Nodes = []int{r.n(len(s.Nodes))}
	}
	return f
}
