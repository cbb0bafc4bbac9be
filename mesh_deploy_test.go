package ssmmp

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// Deploy waits for whatever agents there will be, and says what lacks when it
// may not wait any longer.
func TestMeshDeployWaits(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newLifeMesh(t, ManagerConfig{}, 0, nil)
		defer s.close()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		err := s.m.Deploy(ctx, "life")
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "gw") || !strings.Contains(err.Error(), "404") {
			t.Errorf("Deploy without an agent: %v; want the deadline, gw and 404 in it", err)
		}
		if err := s.m.Deploy(t.Context(), "other"); !errors.Is(err, ErrNotFound) {
			t.Errorf("Deploy of an unknown graph: %v", err)
		}
		deployed := make(chan error, 1)
		go func() { deployed <- s.m.Deploy(t.Context(), "life") }()
		time.Sleep(time.Hour)
		s.node(1, "mid")
		synctest.Wait()
		if len(deployed) != 0 {
			t.Error("Deploy returned without a gateway")
		}
		s.node(2, "gw")
		if err := <-deployed; err != nil {
			t.Error(err)
		}
		s.one("gw")
		if n := len(s.events(EventGraphDeployed, nil)); n != 1 {
			t.Errorf("deployed %d times", n)
		}
	})
}

// Two gateways with one fixed port cannot stand on one node.
func TestMeshDeployLacksPort(t *testing.T) {
	bubble(t, func(t *testing.T) {
		graphs := []*Graph{lifeGraph(t, "one", 8080), lifeGraph(t, "two", 8080)}
		s := newLifeMesh(t, ManagerConfig{Graphs: graphs}, 1, nil)
		defer s.close()
		s.begin()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := s.m.Deploy(ctx, "two"); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "503") {
			t.Errorf("Deploy of the second: %v", err)
		}
		// The port becomes free.
		if err := s.m.Undeploy(t.Context(), "one"); err != nil {
			t.Fatal(err)
		}
		s.deploy("two")
	})
}

// A gateway that ends, in whichever way, is started again.
func TestMeshGatewayRestarts(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newLifeMesh(t, ManagerConfig{}, 2, nil)
		defer s.close()
		gw := s.begin()
		for n, end := range []func(){
			func() { gw.exit <- func() error { return errors.New("crash") } },
			func() { gw.Terminate() },
			func() { s.m.Shutdown(t.Context(), gw.ID()) },
			func() { s.m.HardShutdown(t.Context(), gw.ID()) },
		} {
			time.Sleep(time.Minute)
			end()
			again := s.one("gw")
			if again.ID() == gw.ID() {
				t.Fatalf("end %d: %d still runs", n, gw.ID())
			}
			gw = again
			s.dial(gw, "P")
		}
		for _, ev := range s.events(EventInstanceRequested, ofService("gw"))[1:] {
			if ev.Cause != "started again" {
				t.Errorf("%v", ev)
			}
		}
	})
}

// A gateway that keeps dying is started three times at once, then after 1 s to
// 60 s; once it lived for long, that is forgotten.
func TestMeshCrashLoop(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var s *lifeMesh
		var live atomic.Int64 // how long it lives
		dying := FuncLauncher(func(ctx context.Context, l Launch) error {
			p := &processTransport{MemHost: s.host("10.0.0.1")}
			inst, err := JoinWith(ctx, JoinConfig{Launch: l, Transport: p})
			if err != nil {
				return err
			}
			defer inst.Close()
			defer p.end()
			if d := time.Duration(live.Load()); d > 0 {
				select {
				case <-time.After(d):
				case <-inst.Done():
				}
			}
			return errors.New("crash")
		})
		s = newLifeMesh(t, ManagerConfig{}, 0, map[string]Launcher{"gw": dying})
		defer s.close()
		s.node(1, "gw")
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		s.m.Deploy(ctx, "life") // it may be ready for a moment
		<-ctx.Done()
		starts := func() []time.Duration {
			var gaps []time.Duration
			all := s.events(EventInstanceRequested, nil)
			for n := range all[1:] {
				gaps = append(gaps, all[n+1].Time.Sub(all[n].Time))
			}
			return gaps
		}
		sec := time.Second
		want := []time.Duration{0, 0, sec, 2 * sec, 4 * sec, 8 * sec, 16 * sec, 32 * sec, 60 * sec, 60 * sec, 60 * sec}
		got := starts()
		if !slices.Equal(got, want) {
			t.Errorf("starts after %v\nwant %v", got, want)
		}
		live.Store(int64(31 * time.Second))
		time.Sleep(2 * time.Minute)
		live.Store(0)
		n := len(starts())
		if got = starts()[len(want):]; n < len(want)+3 || got[1] != 31*sec || got[2] != 31*sec {
			t.Errorf("an instance that lived for 31 s was started again after %v", got)
		}
	})
}

// CNApps with the same names of services live side by side (PROTOCOL section
// 3, Execution).
func TestMeshTwoApps(t *testing.T) {
	bubble(t, func(t *testing.T) {
		graphs := []*Graph{lifeGraph(t, "one", 8080), lifeGraph(t, "two", 8081)}
		s := newLifeMesh(t, ManagerConfig{Graphs: graphs}, 2, nil)
		defer s.close()
		s.deploy("one")
		s.deploy("two")
		gws := s.of("gw")
		if len(gws) != 2 {
			t.Fatalf("%d gateways", len(gws))
		}
		for _, gw := range gws {
			s.dial(gw, "P")
			s.dial(gw, "Pd")
		}
		for _, mid := range s.of("mid") {
			s.dial(mid, "Q")
		}
		snap := s.m.Snapshot()
		graphOf := map[InstanceID]string{}
		for _, i := range snap.Instances {
			graphOf[i.ID] = i.Graph
		}
		if len(snap.Instances) != 6 || len(snap.Sessions) != 6 {
			t.Fatalf("%d instances, %d sessions; want 6 and 6", len(snap.Instances), len(snap.Sessions))
		}
		for _, sess := range snap.Sessions {
			if graphOf[sess.Source] != graphOf[sess.Destination] {
				t.Errorf("session %+v leads from %s to %s", sess, graphOf[sess.Source], graphOf[sess.Destination])
			}
		}
		if err := s.m.Undeploy(t.Context(), "one"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		after := s.m.Snapshot()
		if len(after.Instances) != 3 || len(after.Sessions) != 3 || len(after.Graphs) != 1 {
			t.Errorf("after Undeploy: %+v", after)
		}
		for _, i := range after.Instances {
			if i.Graph != "two" {
				t.Errorf("%+v is left", i)
			}
		}
		if err := s.m.Undeploy(t.Context(), "one"); !errors.Is(err, ErrNotFound) {
			t.Errorf("again: %v, want ErrNotFound", err)
		}
		s.deploy("one")
		if n := len(s.of("gw")); n != 2 {
			t.Errorf("%d gateways after deploying it again", n)
		}
	})
}

// Undeploy shuts down whoever dials before whom it dials, and leaves nothing.
func TestMeshUndeploy(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newLifeMesh(t, ManagerConfig{}, 3, nil)
		defer s.close()
		gw := s.begin()
		s.dial(gw, "P")
		mid := s.one("mid")
		s.dial(mid, "Q")
		db := s.one("db")
		gw.OnDrain(func(context.Context) {
			time.Sleep(2 * time.Second)
			if len(s.running("mid")) != 1 || len(s.running("db")) != 1 {
				t.Error("what the gateway dials goes before it")
			}
		})
		s.dial(gw, "Pd")
		undeployed := make(chan error, 1)
		go func() { undeployed <- s.m.Undeploy(t.Context(), "life") }()
		time.Sleep(time.Second)
		if snap := s.m.Snapshot(); len(snap.Graphs) != 1 || !snap.Graphs[0].Retiring {
			t.Errorf("graphs %+v", snap.Graphs)
		}
		if err := s.m.Deploy(t.Context(), "life"); !errors.Is(err, ErrRefused) {
			t.Errorf("Deploy meanwhile: %v, want ErrRefused", err)
		}
		if err := <-undeployed; err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if snap := s.m.Snapshot(); len(snap.Graphs)+len(snap.Instances)+len(snap.Sessions) != 0 {
			t.Errorf("left: %+v", snap)
		}
		// The storage service is as near to the gateway as the regular one.
		for _, deeper := range []InstanceID{mid.ID(), db.ID()} {
			wantOrder(s, "undeploy", is(EventInstanceEnded, gw.ID()), is(EventInstanceStopping, deeper))
		}
		time.Sleep(time.Hour)
		if n := s.starts("gw"); n != 1 {
			t.Errorf("the gateway was started %d times", n)
		}
	})
}

// The whole depth of a graph, in order.
func TestMeshUndeployDepth(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := nineGraph(t)
		s := newMemMesh(t, ManagerConfig{Graphs: []*Graph{g}}, 2)
		defer s.close()
		s.deploy(g.Name)
		conn, err := s.managers.Dial(t.Context(), netip.AddrPortFrom(s.running("A")[0].Node, 8080).String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if answer, err := askConn(conn, "via P1 via P4 via Pp1 who"); err != nil || !strings.HasPrefix(answer, "BaaS-1 ") {
			t.Fatalf("answer %q, %v", answer, err)
		}
		if err := s.m.Undeploy(t.Context(), g.Name); err != nil {
			t.Fatal(err)
		}
		last := s.m.Snapshot().Seq
		var order []string
		for ev := range s.m.Events(t.Context(), 0) {
			if ev.Kind == EventInstanceStopping || ev.Kind == EventInstanceEnded {
				order = append(order, ev.Service)
			}
			if ev.Seq == last {
				break
			}
		}
		if want := []string{"A", "A", "B", "B", "service-4", "service-4", "BaaS-1", "BaaS-1"}; !slices.Equal(order, want) {
			t.Errorf("stopping and ended: %v, want %v", order, want)
		}
	})
}

// Undeploy while a service starts and a dial waits for it.
func TestMeshUndeployWhileStarting(t *testing.T) {
	bubble(t, func(t *testing.T) {
		never := FuncLauncher(func(ctx context.Context, l Launch) error { <-ctx.Done(); return nil })
		s := newLifeMesh(t, ManagerConfig{}, 2, map[string]Launcher{"mid": never})
		defer s.close()
		gw := s.begin()
		dialled := make(chan error, 1)
		go func() {
			_, err := gw.Dial(t.Context(), "P")
			dialled <- err
		}()
		time.Sleep(time.Second)
		began := time.Now()
		if err := s.m.Undeploy(t.Context(), "life"); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(began); d > time.Second {
			t.Errorf("it took %v", d)
		}
		if err := <-dialled; err == nil {
			t.Error("the dial succeeded")
		}
		if snap := s.m.Snapshot(); len(snap.Graphs)+len(snap.Instances)+len(snap.Sessions) != 0 {
			t.Errorf("left: %+v", snap)
		}
	})
	t.Run("gateway", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			never := FuncLauncher(func(ctx context.Context, l Launch) error { <-ctx.Done(); return nil })
			s := newLifeMesh(t, ManagerConfig{}, 1, map[string]Launcher{"gw": never})
			defer s.close()
			deployed := make(chan error, 1)
			go func() { deployed <- s.m.Deploy(t.Context(), "life") }()
			time.Sleep(time.Second)
			if err := s.m.Undeploy(t.Context(), "life"); err != nil {
				t.Fatal(err)
			}
			if err := <-deployed; !errors.Is(err, ErrRefused) {
				t.Errorf("Deploy: %v, want ErrRefused", err)
			}
		})
	})
}

// Undeploy while the only agent is away ends when that is lost.
func TestMeshUndeployAway(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newLifeMesh(t, ManagerConfig{}, 1, nil)
		defer s.close()
		s.dial(s.begin(), "P")
		s.nodeGate(0).shut()
		began := time.Now()
		if err := s.m.Undeploy(t.Context(), "life"); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(began); d != time.Minute {
			t.Errorf("it took %v, want LostAfter", d)
		}
		s.nodeGate(0).open()
		time.Sleep(backAgain)
	})
}

// Events come with Seq from 1 without gaps, to those who follow from the
// start, late, slowly, or beyond the end; and a reader who lost some sees so.
func TestMeshEvents(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newLifeMesh(t, ManagerConfig{History: 64}, 2, nil)
		defer s.mesh.close()
		follow := func(after uint64, pause time.Duration) (seen *[]uint64) {
			seen = new([]uint64)
			s.wg.Go(func() {
				for ev := range s.m.Events(context.Background(), after) {
					*seen = append(*seen, ev.Seq)
					time.Sleep(pause)
				}
			})
			return seen
		}
		begin, slow, beyond := follow(0, 0), follow(0, time.Second), follow(1<<40, 0)
		gw := s.begin()
		for range 100 {
			conn, _ := s.dial(gw, "P")
			conn.Close()
			synctest.Wait()
		}
		seq := s.m.Snapshot().Seq
		late, tail := follow(0, 0), follow(seq, 0)
		synctest.Wait()
		conn, _ := s.dial(gw, "P")
		conn.Close()
		time.Sleep(time.Hour)
		synctest.Wait()
		last := s.m.Snapshot().Seq
		if last < 303 {
			t.Fatalf("%d events", last)
		}
		check := func(name string, seen []uint64, first uint64, gaps int) {
			t.Helper()
			if len(seen) == 0 || seen[0] != first || seen[len(seen)-1] != last {
				t.Errorf("%s: %d to %d, want %d to %d", name, seen[0], seen[len(seen)-1], first, last)
			}
			for n := range seen[1:] {
				if seen[n+1] <= seen[n] {
					t.Errorf("%s: %d after %d", name, seen[n+1], seen[n])
				}
				if seen[n+1] != seen[n]+1 {
					gaps--
				}
			}
			if gaps != 0 {
				t.Errorf("%s: %d gaps too few", name, gaps)
			}
		}
		check("from the start", *begin, 1, 0)
		check("slow", *slow, 1, 1)
		check("late", *late, (*late)[0], 0)
		check("tail", *tail, seq+1, 0)
		if n := uint64(len(*late)); n != 64+last-seq {
			t.Errorf("the late one saw %d events, want the 64 kept and the new ones", n)
		}
		if len(*beyond) != 0 {
			t.Errorf("beyond the end there are %v", *beyond)
		}
	})
}

// Every snapshot under load is consistent in itself, and what it says agrees
// with the events up to its Seq.
func TestMeshSnapshotConsistent(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newLifeMesh(t, ManagerConfig{SessionsPerInstance: 4}, 3, nil)
		defer s.close()
		gw := s.begin()
		var wg sync.WaitGroup
		for n := range 20 {
			wg.Go(func() {
				for range 20 {
					conn, err := gw.Dial(t.Context(), []string{"P", "P", "P", "Pd"}[n%4])
					time.Sleep(time.Duration(n+1) * 100 * time.Millisecond)
					if err == nil {
						conn.Close()
					}
				}
			})
		}
		wg.Go(func() {
			for range 10 {
				time.Sleep(time.Second)
				if all := s.running("mid"); len(all) > 0 {
					s.m.HardShutdown(t.Context(), all[0].ID)
				}
				if all := s.m.Snapshot().Sessions; len(all) > 0 {
					s.m.CloseSession(t.Context(), all[len(all)-1].ID)
				}
			}
		})
		over := make(chan struct{})
		go func() { wg.Wait(); close(over) }()
		var snaps []Snapshot
		for more := true; more; {
			snaps = append(snaps, s.m.Snapshot())
			select {
			case <-over:
				more = false
			case <-time.After(37 * time.Millisecond):
			}
		}
		all := s.history()
		for _, snap := range snaps {
			counts := map[InstanceID]int{}
			for _, i := range snap.Instances {
				counts[i.ID] = 0
			}
			for _, sess := range snap.Sessions {
				for _, end := range []InstanceID{sess.Source, sess.Destination} {
					if _, ok := counts[end]; !ok {
						t.Fatalf("at %d session %+v has the end %d, which is not there", snap.Seq, sess, end)
					}
					counts[end]++
				}
			}
			for _, i := range snap.Instances {
				if i.Sessions != counts[i.ID] {
					t.Fatalf("at %d instance %d says it has %d sessions, there are %d", snap.Seq, i.ID, i.Sessions, counts[i.ID])
				}
			}
			live, open := 0, 0
			for _, ev := range all[:snap.Seq] {
				switch ev.Kind {
				case EventInstanceRequested:
					live++
				case EventInstanceEnded:
					live--
				case EventSessionOffered:
					open++
				case EventSessionClosed:
					open--
				}
			}
			if live != len(snap.Instances) || open != len(snap.Sessions) {
				t.Fatalf("at %d there are %d instances and %d sessions, by the events %d and %d", snap.Seq, len(snap.Instances), len(snap.Sessions), live, open)
			}
		}
		if len(snaps) < 100 {
			t.Fatal(fmt.Errorf("only %d snapshots", len(snaps)))
		}
		time.Sleep(10 * time.Second)
		if n := len(s.m.Snapshot().Sessions); n != 0 {
			t.Errorf("%d sessions are left", n)
		}
	})
}
