package ssmmp

import (
	"bufio"
	"context"
	"io"
	"testing"
	"testing/synctest"
	"time"
)

// An agent that answers no health request is away after HealthMisses of them
// (PROTOCOL section 3, Monitoring).
func TestMeshAgentSilent(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newLifeMesh(t, ManagerConfig{}, 1, nil)
		defer s.close()
		s.begin()
		began := time.Now()
		g := s.nodeGate(0)
		g.hold()
		defer g.sever()()
		time.Sleep(time.Minute)
		away := s.events(EventAgentAway, nil)
		if len(away) != 1 || away[0].Time.Sub(began) != 20*time.Second {
			t.Errorf("away: %v, want once, after 20 s", away)
		}
		time.Sleep(30 * time.Second)
		if n := len(s.events(EventAgentLost, nil)); n != 1 {
			t.Errorf("lost %d times", n)
		}
	})
}

// hungService says hello, and then nothing any more.
func hungService(s *lifeMesh, on string) Launcher {
	return FuncLauncher(func(ctx context.Context, l Launch) error {
		conn, err := s.host(on).Dial(ctx, l.Agent)
		if err != nil {
			return err
		}
		defer conn.Close()
		hello, err := AppendMessage(nil, &InstanceHealthResponse{Header: Header{MessageID: 1, SubType: ServiceInstanceToAgent,
			Extensions: []Extension{{extSecret, l.Secret}}}, ServiceInstanceID: l.ID, Status: StatusOK})
		if err != nil {
			return err
		}
		conn.Write(hello)
		go bufio.NewReader(conn).WriteTo(io.Discard)
		<-ctx.Done()
		return ctx.Err()
	})
}

// An instance that hangs is shut down after HealthMisses, and killed since it
// does not answer to that either (PROTOCOL section 3, Monitoring).
func TestMeshHung(t *testing.T) {
	bubble(t, func(t *testing.T) {
		services := map[string]Launcher{}
		s := newLifeMesh(t, ManagerConfig{}, 0, services)
		defer s.close()
		services["gw"] = hungService(s, "10.0.0.1")
		s.node(1, "gw")
		s.deploy("life")
		began := time.Now()
		id := s.running("gw")[0].ID
		time.Sleep(12 * time.Second)
		if i := s.running("gw"); len(i) != 1 || i[0].Health != StatusFailed {
			t.Errorf("after one missed request: %+v", i)
		}
		time.Sleep(30 * time.Second)
		stopping := s.events(EventInstanceStopping, ofInstance(id))
		if len(stopping) != 1 || stopping[0].Time.Sub(began) != 20*time.Second || stopping[0].Cause != "3 health requests not answered well" {
			t.Errorf("stopping: %v, want after 20 s", stopping)
		}
		if d := s.ended(id).Time.Sub(began); d != 30*time.Second {
			t.Errorf("ended after %v, want 30 s", d)
		}
		if n := s.starts("gw"); n != 2 {
			t.Errorf("%d starts, want 2", n)
		}
	})
}

// An instance that says it is not well is shut down gracefully; one that says
// so less than HealthMisses times in a row is not.
func TestMeshSick(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newLifeMesh(t, ManagerConfig{}, 1, nil)
		defer s.close()
		gw := s.begin()
		s.dial(gw, "P")
		mid := s.one("mid")
		drained := make(chan bool, 1)
		mid.OnDrain(func(context.Context) { drained <- true })
		mid.SetHealth(StatusFailed)
		time.Sleep(12 * time.Second)
		mid.SetHealth(StatusOK)
		time.Sleep(time.Minute)
		if s.one("mid").ID() != mid.ID() || s.running("mid")[0].Health != StatusOK {
			t.Fatalf("%+v", s.running("mid"))
		}
		var seen []Status
		for _, ev := range s.events(EventHealthChanged, ofInstance(mid.ID())) {
			seen = append(seen, ev.Status)
		}
		if len(seen) != 2 || seen[0] != StatusFailed || seen[1] != StatusOK {
			t.Errorf("health changed to %v", seen)
		}
		mid.SetHealth(StatusFailed)
		time.Sleep(11 * time.Second)
		if len(s.of("mid")) != 1 {
			t.Error("what it missed before it was well again still counts")
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if len(drained) != 1 || len(s.of("mid")) != 0 {
			t.Errorf("drained %d times, %+v", len(drained), s.running("mid"))
		}
		s.ended(mid.ID())
	})
}

// An overloaded instance gets no new session while another can take it, and
// keeps those it has (PROTOCOL section 2: 199).
func TestMeshOverloaded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newLifeMesh(t, ManagerConfig{InstancesPerService: 2}, 1, nil)
		defer s.close()
		gw := s.begin()
		s.dial(gw, "P")
		first := s.one("mid")
		first.SetHealth(StatusOverloaded)
		time.Sleep(6 * time.Second)
		for range 3 {
			s.dial(gw, "P")
		}
		run := s.running("mid")
		if len(run) != 2 || run[0].Sessions != 1 || run[1].Sessions != 3 || run[0].Health != StatusOverloaded {
			t.Fatalf("%+v, want the 3 new sessions with the second", run)
		}
		// With no other to be had, it serves.
		s.of("mid")[1].SetHealth(StatusOverloaded)
		time.Sleep(6 * time.Second)
		s.dial(gw, "P")
		if run = s.running("mid"); len(run) != 2 || run[0].Sessions != 2 {
			t.Errorf("%+v, want the newest session with the first", run)
		}
		time.Sleep(time.Minute)
		if run = s.running("mid"); len(run) != 2 {
			t.Errorf("%+v: overloaded is not ill", run)
		}
	})
}

// A health request that was lost with its agent's connection is not held
// against the instance.
func TestMeshHealthAcrossConnections(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newLifeMesh(t, ManagerConfig{HealthMisses: 1}, 1, nil)
		defer s.close()
		gw := s.begin()
		time.Sleep(4 * time.Second)
		g := s.nodeGate(0)
		g.hold()
		rejoin := g.sever()
		time.Sleep(2 * time.Second) // a request is under way
		rejoin()
		g.open()
		time.Sleep(backAgain)
		if s.one("gw").ID() != gw.ID() || len(s.events(EventAgentAway, nil)) != 1 {
			t.Errorf("%v", s.history())
		}
		for _, ev := range s.events(EventHealthChanged, nil) {
			if ev.Status != StatusOK {
				t.Errorf("%v", ev)
			}
		}
	})
}
