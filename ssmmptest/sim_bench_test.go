package ssmmptest_test

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/ssmmp/ssmmp"
	. "github.com/ssmmp/ssmmp/ssmmptest"
)

// largeSimulation has a number of nodes, and so many instances on each: one
// gateway dials services that serve one session an instance, until all run. Then
// they run for the rest of an hour, each asked for its health.
func largeSimulation(tb testing.TB, nodes, each int, period time.Duration) Simulation {
	total := nodes * each
	services := max(1, total/500)
	plugs := make([]string, services)
	b := ssmmp.NewGraph("large")
	for i := range plugs {
		plugs[i] = fmt.Sprintf("P%d", i)
	}
	b.Gateway("G", ssmmp.FixedPorts{"S": 8080}, plugs)
	for i := range services {
		b.Regular(fmt.Sprintf("R%d", i), ssmmp.In{"S"}, ssmmp.Out{"P"})
		b.Edge("G", plugs[i], "S", fmt.Sprintf("R%d", i)).Edge(fmt.Sprintf("R%d", i), "P", "S", "D")
	}
	b.Storage("D", ssmmp.In{"S"}) // which no node can execute
	g, err := b.Build()
	if err != nil {
		tb.Fatal(err)
	}
	s := Simulation{Seed: 1, Graphs: []*ssmmp.Graph{g}, For: time.Hour, Quiet: true, Latency: time.Millisecond,
		Config: SimulationConfig{SessionsPerInstance: 1, HealthPeriod: period, IdleAfter: 3 * time.Hour, FirstPlugPort: 1024, LastPlugPort: 65535},
		Load:   []SimulationLoad{{Graph: "large", Every: 10 * time.Minute / time.Duration(total), Hold: 100 * time.Hour, Until: 10 * time.Minute}},
	}
	for i := range nodes {
		// Each node can execute a few of the services, the first the gateway too.
		n := SimulationNode{Services: []string{fmt.Sprintf("R%d", i%services), fmt.Sprintf("R%d", (i*7+1)%services)}}
		if i == 0 {
			n.Services = append(n.Services, "G")
		}
		s.Nodes = append(s.Nodes, n)
	}
	return s
}

// An hour of a large mesh. 10,000 nodes take minutes: give them a -timeout.
func BenchmarkSimulation(b *testing.B) {
	for _, size := range []struct {
		nodes, each int
		period      time.Duration
	}{{100, 20, 5 * time.Second}, {1000, 20, 5 * time.Second}, {10_000, 10, 30 * time.Second}} {
		b.Run(fmt.Sprintf("nodes=%d/each=%d/health=%v", size.nodes, size.each, size.period), func(b *testing.B) {
			for b.Loop() {
				s := largeSimulation(b, size.nodes, size.each, size.period)
				var before, after runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&before)
				res, err := s.Run(SimulationOptions{Check: 1 << 30, SampleEvery: time.Hour - time.Second, OnSample: func(sm SimulationSample) {
					if sm.At > 0 {
						runtime.GC()
						runtime.ReadMemStats(&after)
					}
				}})
				if err != nil || res.Failure != nil {
					b.Fatal(err, res.Failure)
				}
				b.ReportMetric(float64(res.Instances), "instances")
				b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(max(res.Instances, 1)), "B/instance")
				b.ReportMetric(float64(res.Events), "events")
				b.ReportMetric(float64(res.Events)*float64(b.N)/b.Elapsed().Seconds(), "events/s")
			}
		})
	}
}
