package ssmmp

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"
)

// A puppets mesh has the gateway A, whose plug Front leads to socket S of B, on
// two nodes. A's instance, and what those of B do, are the test's.
type puppets struct {
	*mesh
	a *Instance
}

// newPuppets deploys the mesh. An instance of B joins after slow, and then runs
// main.
func newPuppets(t *testing.T, cfg ManagerConfig, join JoinConfig, slow time.Duration, main func(*Instance)) *puppets {
	t.Helper()
	g, err := NewGraph("pair").
		Gateway("A", FixedPorts{"S0": 8080}, Out{"Front"}).
		Regular("B", In{"S"}, Out{"P"}).
		Storage("C", In{"T"}).
		Edge("A", "Front", "S", "B").
		Edge("B", "P", "T", "C").
		Build()
	if err != nil {
		t.Fatal(err)
	}
	cfg.Graphs = []*Graph{g}
	s := &puppets{mesh: newMemMesh(t, cfg, 0)}
	for _, addr := range []netip.Addr{nodeAddr, farAddr} {
		host, err := s.managers.(*MemHost).net.Host(addr.String())
		if err != nil {
			t.Fatal(err)
		}
		run := FuncLauncher(func(ctx context.Context, l Launch) error {
			join := join
			join.Launch, join.Transport = l, host
			if l.Service == "B" && slow > 0 {
				<-time.After(slow)
			}
			inst, err := JoinWith(ctx, join)
			if err != nil {
				return err
			}
			defer inst.Close()
			s.mu.Lock()
			s.instances[l.ID] = inst
			s.mu.Unlock()
			if l.Service == "B" {
				main(inst)
			}
			select {
			case <-inst.Done():
			case <-ctx.Done():
			}
			return nil
		})
		s.addNode(addr, host, "", []RepositoryEntry{{Service: "A", Launcher: run}, {Service: "B", Launcher: run}, {Service: "C", Launcher: run}})
	}
	synctest.Wait()
	s.deploy(g.Name)
	synctest.Wait()
	s.a = s.instance(s.running("A")[0].ID)
	return s
}

// serveID accepts at S and says which instance it is on each session.
func serveID(inst *Instance) net.Listener {
	ln, err := inst.Listen("S")
	if err != nil {
		panic(err)
	}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				io.WriteString(c, strconv.FormatInt(int64(inst.ID()), 10)+"\n")
				io.Copy(io.Discard, c)
				c.Close()
			}()
		}
	}()
	return ln
}

// open dials B and returns the session and who answered.
func (s *puppets) open() (net.Conn, InstanceID) {
	s.t.Helper()
	c, err := s.a.Dial(s.ctx, "Front")
	if err != nil {
		s.t.Fatal(err)
	}
	var id InstanceID
	if _, err := fmt.Fscan(bufio.NewReader(c), &id); err != nil {
		s.t.Fatal(err)
	}
	return c, id
}

// events returns the events so far that f wants.
func (s *puppets) events(f func(Event) bool) []Event {
	s.t.Helper()
	synctest.Wait()
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	var all []Event
	last := s.m.Snapshot().Seq
	for ev := range s.m.Events(ctx, 0) {
		if f(ev) {
			all = append(all, ev)
		}
		if ev.Seq == last {
			break
		}
	}
	return all
}

// A service that listens a while after it is ready is waited for.
func TestMeshDialListensLate(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newPuppets(t, ManagerConfig{}, JoinConfig{}, 0, func(inst *Instance) {
			time.Sleep(refusedWindow / 2)
			serveID(inst)
		})
		defer s.close()
		c, _ := s.open()
		defer c.Close()
		if closed := s.events(func(ev Event) bool { return ev.Kind == EventSessionClosed }); len(closed) > 0 {
			t.Errorf("sessions that failed before: %v", closed)
		}
	})
}

// An instance that does not accept any more is reported, and the session goes
// to another.
func TestMeshDialDeadDestination(t *testing.T) {
	bubble(t, func(t *testing.T) {
		listeners := map[InstanceID]net.Listener{}
		var s *puppets
		s = newPuppets(t, ManagerConfig{SessionsPerInstance: 1}, JoinConfig{}, 0, func(inst *Instance) {
			ln := serveID(inst)
			s.mu.Lock()
			listeners[inst.ID()] = ln
			s.mu.Unlock()
		})
		defer s.close()
		one, first := s.open()
		two, second := s.open()
		if first == second {
			t.Fatalf("both sessions went to %d", first)
		}
		one.Close()
		two.Close()
		time.Sleep(listenGrace) // a younger one would be given more time
		s.mu.Lock()
		listeners[first].Close()
		s.mu.Unlock()
		three, third := s.open()
		defer three.Close()
		if third != second {
			t.Errorf("answered by %d; want %d, the one that is left", third, second)
		}
		failed := s.events(func(ev Event) bool { return ev.Kind == EventSessionClosed && ev.Status == StatusUnreachable })
		if len(failed) != 1 || failed[0].Destination != first {
			t.Errorf("reported unreachable: %v; want %d once", failed, first)
		}
	})
}

// A caller that gives up leaves no session behind, whether it waits for the
// destination's start or for its port.
func TestMeshDialLeavesNothing(t *testing.T) {
	t.Parallel()
	for _, slow := range []time.Duration{0, 10 * time.Second} {
		for _, want := range []error{context.Canceled, context.DeadlineExceeded} {
			t.Run(fmt.Sprintf("start=%s/%v", slow, want), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					s := newPuppets(t, ManagerConfig{}, JoinConfig{}, slow, func(*Instance) {}) // never listens
					defer s.close()
					ctx, cancel := context.WithTimeout(s.ctx, refusedWindow/2)
					defer cancel()
					if want == context.Canceled {
						time.AfterFunc(refusedWindow/4, cancel)
					}
					if _, err := s.a.Dial(ctx, "Front"); !errors.Is(err, want) {
						t.Errorf("Dial: %v; want %v", err, want)
					}
					time.Sleep(slow)
					synctest.Wait()
					snap := s.m.Snapshot()
					if len(snap.Sessions) > 0 {
						t.Errorf("sessions left: %+v", snap.Sessions)
					}
					if len(s.running("B")) != 1 {
						t.Errorf("instances: %+v; want B started all the same", snap.Instances)
					}
					if closed := s.events(func(ev Event) bool { return ev.Kind == EventSessionClosed }); len(closed) != 1 {
						t.Errorf("sessions that ended: %v; want one", closed)
					}
				})
			})
		}
	}
}

// A pool of HTTP connections works over sessions and does not keep its
// destination running for ever.
func TestMeshHTTP(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newPuppets(t, ManagerConfig{IdleAfter: 2 * time.Minute}, JoinConfig{IdleTimeout: time.Minute}, 0, func(inst *Instance) {
			ln, err := inst.Listen("S")
			if err != nil {
				t.Error(err)
				return
			}
			go http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				fmt.Fprintf(w, "%d %s %s", inst.ID(), r.URL.Path, body)
			}))
		})
		defer s.close()
		pool := &http.Transport{DialContext: s.a.DialContext}
		defer pool.CloseIdleConnections()
		client := &http.Client{Transport: pool}
		get := func(host string, id InstanceID) {
			t.Helper()
			resp, err := client.Get("http://" + host + "/path")
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if body, err := io.ReadAll(resp.Body); string(body) != fmt.Sprintf("%d /path ", id) || err != nil {
				t.Errorf("%q, %v; want instance %d's answer", body, err, id)
			}
		}
		opened := func() int { return len(s.events(func(ev Event) bool { return ev.Kind == EventSessionOpened })) }
		for range 3 {
			get("Front", 2)
			time.Sleep(50 * time.Second) // kept alive by use
		}
		if n := opened(); n != 1 {
			t.Errorf("%d sessions for three requests in a row; want one kept alive", n)
		}
		get("FRONT", 2) // another host to the pool, the same plug to the mesh
		if n := opened(); n != 2 {
			t.Errorf("%d sessions; want a second one", n)
		}

		time.Sleep(time.Minute)
		synctest.Wait()
		snap := s.m.Snapshot()
		if len(snap.Sessions) != 0 || len(s.running("B")) != 1 {
			t.Errorf("a minute later: sessions %+v, instances %+v; want B alone without sessions", snap.Sessions, snap.Instances)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if all := s.running("B"); len(all) != 0 {
			t.Errorf("two minutes later: %+v; want none of B", all)
		}
		ended := s.events(func(ev Event) bool { return ev.Kind == EventSessionClosed })
		if len(ended) != 2 || slices.ContainsFunc(ended, func(ev Event) bool { return ev.Status != StatusSessionClosed }) {
			t.Errorf("sessions ended: %v; want two with 111", ended)
		}
		get("front", 3)
	})
}

// An instance that leaves by itself, and one that is shut down, are gone for
// the Manager with all their sessions.
func TestMeshLeave(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newPuppets(t, ManagerConfig{}, JoinConfig{}, 0, func(inst *Instance) { serveID(inst) })
		defer s.close()
		c, first := s.open()
		s.instance(first).Terminate()
		if _, err := io.ReadAll(c); err != nil {
			t.Errorf("the other end: %v; want EOF", err)
		}
		c.Close()
		synctest.Wait()
		if snap := s.m.Snapshot(); len(snap.Instances) != 1 || len(snap.Sessions) != 0 {
			t.Errorf("after Terminate: %+v, %+v; want A alone", snap.Instances, snap.Sessions)
		}

		c, second := s.open()
		drained := false
		s.instance(second).OnDrain(func(context.Context) {
			drained = len(s.m.Snapshot().Sessions) == 0
		})
		if err := s.m.Shutdown(s.ctx, second); err != nil {
			t.Fatal(err)
		}
		if !drained {
			t.Error("OnDrain was not called after the sessions closed")
		}
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, ErrSessionClosed) {
			t.Errorf("the source's end: %v; want ErrSessionClosed", err)
		}
		if status := s.events(func(ev Event) bool { return ev.Kind == EventInstanceEnded }); len(status) != 2 {
			t.Errorf("ended: %v; want two", status)
		}
	})
}
