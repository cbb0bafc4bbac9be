package sqlitestore_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/ssmmp/ssmmp"
	"github.com/ssmmp/ssmmp/sqlitestore"
)

// BenchmarkRecovery starts a Manager over a store that holds 20,000 instances
// and 100,000 open sessions, as a checkpoint and as the events that led there.
func BenchmarkRecovery(b *testing.B) {
	const agents, gateways, instances, sessions = 100, 100, 20_000, 100_000
	g, err := ssmmp.NewGraph("shop").
		Gateway("A", ssmmp.FixedPorts{"S0": 8080}, ssmmp.Out{"P1"}).
		Storage("B", ssmmp.In{"S1", "S2"}).
		Edge("A", "P1", "S1", "B").
		Build()
	if err != nil {
		b.Fatal(err)
	}
	detail := func(v any) string {
		text, err := json.Marshal(v)
		if err != nil {
			b.Fatal(err)
		}
		return string(text)
	}
	node := func(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 1, byte(n % agents)}) }

	var events []ssmmp.Event
	core := ssmmp.NewManagerCore(ssmmp.ManagerConfig{Graphs: []*ssmmp.Graph{g}, FirstInstance: 1, FirstMessage: 1}.WithDefaults())
	add := func(ev ssmmp.Event) {
		ev.Seq = uint64(len(events) + 1)
		if err := core.Replay(ev); err != nil {
			b.Fatal(err)
		}
		events = append(events, ev)
	}
	for n := range agents {
		add(ssmmp.Event{Kind: ssmmp.EventAgentRegistered, Node: node(n), Detail: detail(map[string]any{"services": []string{"A", "B"}})})
	}
	add(ssmmp.Event{Kind: ssmmp.EventGraphDeployed, Graph: g.Name, Detail: detail(map[string]any{"graph": g})})
	for n := range instances {
		ev := ssmmp.Event{Kind: ssmmp.EventInstanceRequested, Graph: g.Name, Vertex: "A", Service: "A", Instance: ssmmp.InstanceID(n + 1), Node: node(n),
			Sockets: []ssmmp.SocketPort{{Socket: "S0", Port: 8080}}}
		if n >= gateways {
			port := uint16(54000 + 2*(n/agents))
			ev.Vertex, ev.Service, ev.Sockets = "B", "B", []ssmmp.SocketPort{{Socket: "S1", Port: port}, {Socket: "S2", Port: port + 1}}
		}
		add(ev)
		add(ssmmp.Event{Kind: ssmmp.EventInstanceReady, Instance: ev.Instance})
	}
	for n := range sessions {
		ev := ssmmp.Event{Kind: ssmmp.EventSessionOffered, Source: ssmmp.InstanceID(n%gateways + 1), Destination: ssmmp.InstanceID(gateways + 1 + n%(instances-gateways)),
			Plug: "P1", Socket: "S1", MessageID: int64(n + 1), Session: 1<<32 + ssmmp.SessionID(n+1)}
		add(ev)
		ev.Kind, ev.PlugPort, ev.NewPort = ssmmp.EventSessionOpened, uint16(n%60_000+1), 54000
		add(ev)
	}

	for _, checkpoint := range []bool{true, false} {
		b.Run(map[bool]string{true: "checkpoint", false: "events"}[checkpoint], func(b *testing.B) {
			dir := b.TempDir()
			path := filepath.Join(dir, "full.db")
			s := sqlitestore.New(path)
			if _, _, err := s.Acquire(b.Context()); err != nil {
				b.Fatal(err)
			}
			if err := s.Append(b.Context(), events); err != nil {
				b.Fatal(err)
			}
			if checkpoint {
				if err := s.Checkpoint(b.Context(), uint64(len(events)), core.Checkpoint()); err != nil {
					b.Fatal(err)
				}
			}
			if err := s.Close(); err != nil {
				b.Fatal(err)
			}
			full, err := os.ReadFile(path)
			if err != nil {
				b.Fatal(err)
			}
			for n := 0; b.Loop(); n++ {
				b.StopTimer()
				copied := filepath.Join(dir, fmt.Sprint(n, ".db"))
				if err := os.WriteFile(copied, full, 0o600); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				m, err := ssmmp.NewManager(ssmmp.ManagerConfig{Graphs: []*ssmmp.Graph{g}, Store: sqlitestore.New(copied)})
				b.StopTimer()
				if err != nil {
					b.Fatal(err)
				}
				if s := m.Snapshot(); len(s.Instances) != instances || len(s.Sessions) != sessions {
					b.Fatalf("%d instances, %d sessions", len(s.Instances), len(s.Sessions))
				}
				if err := m.Close(); err != nil {
					b.Fatal(err)
				}
				os.Remove(copied)
				b.StartTimer()
			}
			b.ReportMetric(float64(len(full))/(1<<20), "MiB")
		})
	}
}
