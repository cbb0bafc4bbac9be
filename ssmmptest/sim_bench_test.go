package ssmmptest_test

import (
	"flag"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/ssmmp/ssmmp"
	. "github.com/ssmmp/ssmmp/ssmmptest"
)

var simHour = flag.Duration("sim.hour", time.Hour, "how long the large meshes are simulated, in virtual time")

// largeGraph is a CNApp of a hundred services: a gateway that calls nine others,
// which call nine others each, which have a storage service for each nine.
func largeGraph(tb testing.TB, n int) *ssmmp.Graph {
	b := ssmmp.NewGraph(fmt.Sprintf("app-%d", n))
	gateway := fmt.Sprintf("G-%d", n)
	var first ssmmp.Out
	for i := range 9 {
		a, d := fmt.Sprintf("A-%d", i), fmt.Sprintf("D-%d", i)
		first = append(first, fmt.Sprintf("P%d", i))
		b.Edge(gateway, first[i], "S", a)
		var second ssmmp.Out
		for k := range 9 {
			c := fmt.Sprintf("B-%d-%d", i, k)
			second = append(second, fmt.Sprintf("P%d", k))
			b.Edge(a, second[k], "S", c).Regular(c, ssmmp.In{"S"}, ssmmp.Out{"P"}).Edge(c, "P", "S", d)
		}
		b.Regular(a, ssmmp.In{"S"}, second).Storage(d, ssmmp.In{"S"})
	}
	g, err := b.Gateway(gateway, ssmmp.FixedPorts{"S": 8080}, first).Build()
	if err != nil {
		tb.Fatal(err)
	}
	return g
}

// largeSimulation has so many nodes with so many instances each, of CNApps of a
// hundred services. Each CNApp gets a call every 4 s, which opens and closes three
// sessions, and each instance is asked for its health.
func largeSimulation(tb testing.TB, nodes, each int, period, length time.Duration) Simulation {
	s := Simulation{Seed: 1, For: length, Quiet: true, Latency: 200 * time.Microsecond, Jitter: 200 * time.Microsecond,
		Config: SimulationConfig{HealthPeriod: period, IdleAfter: 2 * length}}
	for n := range nodes * each / 100 {
		g := largeGraph(tb, n)
		s.Graphs = append(s.Graphs, g)
		s.Load = append(s.Load, SimulationLoad{Graph: g.Name, Every: 4 * time.Second, Hold: 4 * time.Second})
	}
	// Each service can be executed on a fifth of the nodes.
	for n := range nodes {
		var node SimulationNode
		for k, sv := range s.Graphs[n%len(s.Graphs)].Services {
			if sv.Kind == ssmmp.Gateway || k%5 == n%5 {
				node.Services = append(node.Services, sv.Name)
			}
		}
		s.Nodes = append(s.Nodes, node)
	}
	return s
}

// An hour of a large mesh. The largest takes minutes: give it a -timeout, or
// less than an -sim.hour.
func BenchmarkSimulation(b *testing.B) {
	for _, size := range []struct {
		nodes, each int
		period      time.Duration
	}{{10, 10, 5 * time.Second}, {100, 20, 5 * time.Second}, {1000, 20, 5 * time.Second}, {10_000, 10, 30 * time.Second}} {
		b.Run(fmt.Sprintf("nodes=%d/each=%d/health=%v", size.nodes, size.each, size.period), func(b *testing.B) {
			for b.Loop() {
				var before, after runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&before)
				s := largeSimulation(b, size.nodes, size.each, size.period, *simHour)
				sessions := 0
				began := time.Now()
				res, err := s.Run(SimulationOptions{SampleEvery: *simHour - time.Second, OnSample: func(sm SimulationSample) {
					if sm.At > 0 && sm.At < *simHour {
						runtime.GC()
						runtime.ReadMemStats(&after)
					}
				}, OnDial: func(d SimulationDial) {
					if d.Status.Success() {
						sessions++
					}
				}})
				if err != nil || res.Failure != nil {
					b.Fatal(err, res.Failure)
				}
				took := time.Since(began).Seconds()
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(took, "s")
				b.ReportMetric(float64(res.Instances), "instances")
				b.ReportMetric(float64(sessions), "sessions")
				b.ReportMetric(float64(res.Events), "events")
				b.ReportMetric(float64(res.Events)/took, "events/s")
				b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(max(res.Instances, 1)), "B/instance")
			}
		})
	}
}
