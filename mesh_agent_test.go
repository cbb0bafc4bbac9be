package ssmmp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// backAgain is longer than an agent waits between two attempts to reach its
// Manager.
const backAgain = 16 * time.Second

// While an agent is away for less than LostAfter, its instances and sessions
// go on; a dial there says at once that the Manager is away.
func TestMeshAgentAway(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newLifeMesh(t, ManagerConfig{}, 0, nil)
		defer s.close()
		s.node(1, "gw")
		n2 := s.node(2, "mid")
		s.node(3, "db")
		gw := s.begin()
		in, dest := s.dial(gw, "P")
		mid := s.one("mid")
		s.dial(mid, "Q")
		before := s.m.Snapshot()

		n2.gate.shut()
		if state := s.stateOf(n2); state != AgentIsAway {
			t.Errorf("the agent is %s, want away", state)
		}
		began := time.Now()
		if _, err := mid.Dial(t.Context(), "Q"); !errors.Is(err, ErrManagerAway) || time.Since(began) != 0 {
			t.Errorf("Dial: %v after %v, want ErrManagerAway at once", err, time.Since(began))
		}
		io.WriteString(in, "still")
		if b := make([]byte, 5); string(must(t, b, dest)) != "still" {
			t.Errorf("the session carried %q", b)
		}
		time.Sleep(40 * time.Second)
		n2.gate.open()
		time.Sleep(backAgain)
		synctest.Wait()

		after := s.m.Snapshot()
		if len(after.Instances) != 3 || len(after.Sessions) != 2 {
			t.Fatalf("after all there are %+v", after)
		}
		for n, i := range after.Instances {
			if i.ID != before.Instances[n].ID {
				t.Errorf("instance %d was %d", i.ID, before.Instances[n].ID)
			}
		}
		for n, sess := range after.Sessions {
			if sess != before.Sessions[n] {
				t.Errorf("session %+v was %+v", sess, before.Sessions[n])
			}
		}
		registered := s.events(EventAgentRegistered, func(ev Event) bool { return ev.Node == n2.addr })
		if len(registered) != 2 || registered[1].Cause != "came back" {
			t.Errorf("registered: %v", registered)
		}
		s.dial(mid, "Q")
	})
}

func must(t *testing.T, b []byte, r io.Reader) []byte {
	t.Helper()
	if _, err := io.ReadFull(r, b); err != nil {
		t.Fatal(err)
	}
	return b
}

// What happened on a node while its agent was away is reported afterwards.
func TestMeshReportsKept(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newLifeMesh(t, ManagerConfig{SessionsPerInstance: 1}, 0, nil)
		defer s.close()
		s.node(1, "gw")
		n2 := s.node(2, "mid")
		s.node(3, "db")
		gw := s.begin()
		s.dial(gw, "P")
		first := s.one("mid")
		s.dial(gw, "P")
		second := s.of("mid")[1]
		out, _ := s.dial(first, "Q")

		n2.gate.shut()
		out.Close()
		second.exit <- func() error { return errors.New("crash") }
		time.Sleep(10 * time.Second)
		if len(s.events(EventSessionClosed, nil)) != 0 || len(s.events(EventInstanceEnded, nil)) != 0 {
			t.Error("the Manager knows what it cannot know")
		}
		n2.gate.open()
		time.Sleep(backAgain)
		if ev := s.ended(second.ID()); ev.Status != StatusFailed || ev.Cause != "exit 1" {
			t.Errorf("ended: %v, want with exit 1", ev)
		}
		closed := s.events(EventSessionClosed, func(ev Event) bool { return ev.Source == first.ID() })
		if len(closed) != 1 || closed[0].Status != StatusSessionClosed {
			t.Errorf("closed: %v, want once with 111", closed)
		}
		if s.one("mid").ID() != first.ID() {
			t.Errorf("%+v run", s.running("mid"))
		}
	})
}

// An instance that becomes ready, or fails to, while its agent is away: the
// dial that waits for it gets its answer afterwards, and nothing starts twice.
func TestMeshStartWhileAway(t *testing.T) {
	for _, fails := range []bool{false, true} {
		t.Run(fmt.Sprintf("fails=%v", fails), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				var s *lifeMesh
				launched := 0
				slow := FuncLauncher(func(ctx context.Context, l Launch) error {
					launched++
					time.Sleep(5 * time.Second)
					if fails {
						return errors.New("no")
					}
					return s.keep(ctx, l, s.host("10.0.0.2"))
				})
				s = newLifeMesh(t, ManagerConfig{}, 0, map[string]Launcher{"mid": slow})
				defer s.close()
				s.node(1, "gw")
				n2 := s.node(2, "mid")
				gw := s.begin()
				dialled := make(chan error, 1)
				go func() {
					_, err := gw.Dial(t.Context(), "P")
					dialled <- err
				}()
				time.Sleep(time.Second)
				n2.gate.shut()
				time.Sleep(7 * time.Second)
				n2.gate.open()
				time.Sleep(backAgain)
				synctest.Wait()
				select {
				case err := <-dialled:
					if fails {
						wantStatus(t, err, StatusFailed, ErrRefused)
					} else if err != nil {
						t.Error(err)
					}
				default:
					t.Fatal("the dial still waits")
				}
				if launched != 1 || s.starts("mid") != 1 {
					t.Errorf("launched %d times, %d starts", launched, s.starts("mid"))
				}
			})
		})
	}
}

// A request that is lost with an agent's connection is made again when the
// agent is back.
func TestMeshRequestLost(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newLifeMesh(t, ManagerConfig{}, 0, nil)
		defer s.close()
		s.node(1, "gw")
		n2 := s.node(2, "mid")
		gw := s.begin()
		n2.gate.hold()
		rejoin := n2.gate.sever()
		dialled := make(chan error, 1)
		go func() {
			_, err := gw.Dial(t.Context(), "P")
			dialled <- err
		}()
		time.Sleep(2 * time.Second)
		rejoin()
		n2.gate.open()
		time.Sleep(backAgain)
		synctest.Wait()
		if len(dialled) != 1 {
			t.Fatal("the dial still waits")
		}
		if err := <-dialled; err != nil {
			t.Error(err)
		}
		if n := s.starts("mid"); n != 1 {
			t.Errorf("%d starts, want 1", n)
		}
	})
}

// An agent kills an instance that is not ready in time also when no Manager
// can tell it to.
func TestMeshStartTimeoutAway(t *testing.T) {
	bubble(t, func(t *testing.T) {
		killed := make(chan time.Time, 1)
		never := FuncLauncher(func(ctx context.Context, l Launch) error {
			<-ctx.Done()
			killed <- time.Now()
			return ctx.Err()
		})
		s := newLifeMesh(t, ManagerConfig{}, 0, map[string]Launcher{"mid": never})
		defer s.close()
		s.node(1, "gw")
		n2 := s.node(2, "mid")
		gw := s.begin()
		began := time.Now()
		go gw.Dial(t.Context(), "P")
		time.Sleep(time.Second)
		n2.gate.shut()
		time.Sleep(40 * time.Second)
		select {
		case at := <-killed:
			if d := at.Sub(began); d != 30*time.Second {
				t.Errorf("killed after %v, want 30 s", d)
			}
		default:
			t.Error("it still runs")
		}
		n2.gate.open()
		time.Sleep(backAgain)
		if ended := s.events(EventInstanceEnded, ofService("mid")); len(ended) != 1 || ended[0].Status != StatusTimeout {
			t.Errorf("ended: %v, want once with 504", ended)
		}
	})
}

// What an instance said just before it ended counts, however late its agent
// comes to read it (PROTOCOL section 3, Termination by business logic).
func TestMeshLastWords(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newLifeMesh(t, ManagerConfig{}, 0, nil)
		defer s.close()
		s.node(1, "gw")
		n2 := s.node(2, "mid")
		n2.gate.lag.Store(int64(100 * time.Millisecond))
		gw := s.begin()
		s.dial(gw, "P")
		time.Sleep(time.Second)
		mid := s.one("mid")
		mid.Terminate()
		time.Sleep(time.Second)
		if ev := s.ended(mid.ID()); ev.Cause != "terminated by its business logic" {
			t.Errorf("ended: %v", ev)
		}
		if closed := s.events(EventSessionClosed, nil); len(closed) != 1 || closed[0].Status != StatusSessionClosed {
			t.Errorf("closed: %v, want once with 111", closed)
		}
	})
}

// An agent that stays away is lost: its instances end, the far ends of their
// sessions close and gateways run elsewhere. When it comes back, what still
// runs there is killed.
func TestMeshAgentLost(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newLifeMesh(t, ManagerConfig{}, 0, nil)
		defer s.close()
		n1 := s.node(1, "gw")
		old := s.begin()
		n2 := s.node(2, "gw", "mid")
		synctest.Wait()
		_, far := s.dial(old, "P")

		n1.gate.shut()
		began := time.Now()
		time.Sleep(time.Minute - time.Second)
		if s.one("gw").ID() != old.ID() || len(s.m.Snapshot().Sessions) != 1 {
			t.Fatal("it was given up before LostAfter")
		}
		time.Sleep(2 * time.Second)
		lost := s.events(EventAgentLost, nil)
		if len(lost) != 1 || lost[0].Node != n1.addr || lost[0].Time.Sub(began) != time.Minute {
			t.Errorf("lost: %v", lost)
		}
		if ev := s.ended(old.ID()); ev.Status != StatusSessionBroken || ev.Cause != "its agent is lost" {
			t.Errorf("ended: %v", ev)
		}
		gw := s.one("gw")
		if gw.ID() == old.ID() || gw.Address() != n2.addr {
			t.Errorf("gateway %d runs on %s, want a new one on %s", gw.ID(), gw.Address(), n2.addr)
		}
		if _, err := far.Read(make([]byte, 1)); !errors.Is(err, ErrSessionClosed) {
			t.Errorf("the far end reads %v, want ErrSessionClosed", err)
		}
		if closed := s.events(EventSessionClosed, nil); len(closed) != 1 || closed[0].Status != StatusSessionBroken {
			t.Errorf("closed: %v", closed)
		}
		select {
		case <-old.Done():
			t.Error("the old gateway ended though nobody could tell it to")
		default:
		}

		n1.gate.open()
		time.Sleep(backAgain)
		synctest.Wait()
		select {
		case <-old.Done():
		default:
			t.Error("the old gateway still runs")
		}
		if s.one("gw").ID() != gw.ID() || s.stateOf(n1) != AgentUp {
			t.Errorf("after all there is %+v", s.m.Snapshot())
		}
		s.dial(gw, "P")
	})
}

// LostAfter counts from the last time that an agent went.
func TestMeshAgentAwayTwice(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newLifeMesh(t, ManagerConfig{}, 1, nil)
		defer s.close()
		gw := s.begin()
		g := s.nodeGate(0)
		for range 2 {
			g.shut()
			time.Sleep(40 * time.Second)
			g.open()
			time.Sleep(backAgain)
		}
		if len(s.events(EventAgentLost, nil)) != 0 || s.one("gw").ID() != gw.ID() {
			t.Errorf("%v", s.history())
		}
	})
}

// A storage service is started where its data are, until that node is lost.
func TestMeshStorageStays(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newLifeMesh(t, ManagerConfig{}, 0, nil)
		defer s.close()
		s.node(1, "gw")
		gw := s.begin()
		n2 := s.node(2, "db")
		synctest.Wait()
		s.dial(gw, "Pd")
		db := s.one("db")
		s.node(3, "db")
		synctest.Wait()
		db.Terminate()
		s.dial(gw, "Pd")
		if db = s.one("db"); db.Address() != n2.addr {
			t.Fatalf("it was started again on %s", db.Address())
		}
		if err := s.m.Shutdown(t.Context(), db.ID()); err != nil {
			t.Fatal(err)
		}
		n2.gate.shut()
		_, err := gw.Dial(t.Context(), "Pd")
		wantStatus(t, err, StatusUnavailable, ErrUnavailable)
		time.Sleep(time.Minute)
		s.dial(gw, "Pd")
		if db = s.one("db"); db.Address() == n2.addr {
			t.Error("it was started on a node that is lost")
		}
		n2.gate.open()
		time.Sleep(backAgain)
	})
}

// A fresh Manager knows nothing of what runs: it has it killed, and never gives
// an id to an agent that has seen it (PROTOCOL section 3, Execution).
func TestMeshManagerRestart(t *testing.T) {
	// With one node, since an id that only another node has seen may be given
	// before that one is back.
	for nodes, at := range map[int]string{1: "deployed at once", 2: "deployed later"} {
		t.Run(at, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := newLifeMesh(t, ManagerConfig{}, nodes, nil)
				defer s.close()
				gw := s.begin()
				s.dial(gw, "P")
				mid := s.one("mid")
				if err := s.m.Shutdown(t.Context(), mid.ID()); err != nil {
					t.Fatal(err)
				}
				s.dial(gw, "P")
				mid = s.one("mid")

				s.restartManager()
				if nodes > 1 {
					time.Sleep(backAgain)
				}
				s.deploy("life")
				time.Sleep(backAgain)
				synctest.Wait()
				for _, k := range []*keptInstance{gw, mid} {
					select {
					case <-k.Done():
					default:
						t.Errorf("instance %d of the old Manager still runs", k.ID())
					}
				}
				if again := s.one("gw"); again.ID() <= mid.ID() {
					t.Errorf("the new gateway has the id %d, which was used", again.ID())
				}
				s.dial(s.one("gw"), "P")
				if ended := s.events(EventInstanceEnded, func(ev Event) bool { return ev.Status == StatusGone }); len(ended) != 0 {
					t.Errorf("ended: %v", ended)
				}
			})
		})
	}
}

// Two agents claim one address: the second is refused until the first goes
// (PROTOCOL section 3, Registration: 409).
func TestMeshAddressTaken(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newLifeMesh(t, ManagerConfig{}, 0, nil)
		defer s.close()
		first := s.node(1, "gw")
		gw := s.begin()
		second := s.agent("10.0.0.1", "10.0.0.9", "mid")
		time.Sleep(30 * time.Second)
		refused := s.events(EventAgentRefused, nil)
		if len(refused) == 0 || refused[0].Status != StatusConflict || refused[0].Node != second.addr {
			t.Errorf("refused: %v", refused)
		}
		if s.one("gw").ID() != gw.ID() || len(s.events(EventAgentAway, nil)) != 0 {
			t.Error("the first agent suffered from it")
		}
		if _, err := gw.Dial(t.Context(), "P"); !errors.Is(err, ErrUnavailable) {
			t.Errorf("Dial: %v, want ErrUnavailable", err)
		}
		first.stop()
		<-first.done
		time.Sleep(backAgain)
		synctest.Wait()
		a := s.m.Snapshot().Agents
		if len(a) != 1 || a[0].State != AgentUp || len(a[0].Services) != 1 || a[0].Services[0] != "mid" {
			t.Errorf("agents %+v, want the second", a)
		}
	})
}

// The same agent comes back before the Manager saw its old connection end: the
// new one supersedes it, and the old one's end means nothing.
func TestMeshAgentSupersedes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newLifeMesh(t, ManagerConfig{}, 1, nil)
		defer s.close()
		gw := s.begin()
		s.dial(gw, "P")
		mid := s.one("mid")
		rejoin := s.nodeGate(0).sever()
		time.Sleep(time.Second)
		if n := len(s.events(EventAgentRegistered, nil)); n != 2 {
			t.Fatalf("registered %d times, want 2", n)
		}
		s.dial(gw, "P")
		rejoin()
		time.Sleep(2 * time.Minute)
		s.dial(gw, "P")
		if len(s.events(EventAgentAway, nil)) != 0 || s.one("gw").ID() != gw.ID() || s.one("mid").ID() != mid.ID() {
			t.Errorf("%v", s.history())
		}
		if n := len(s.m.Snapshot().Sessions); n != 3 {
			t.Errorf("%d sessions, want 3", n)
		}
	})
}

// An agent that stops shuts its instances down gracefully, and its gateway runs
// elsewhere.
func TestMeshAgentStops(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newLifeMesh(t, ManagerConfig{}, 0, nil)
		defer s.close()
		n1 := s.node(1, "gw")
		gw := s.begin()
		s.node(2, "gw", "mid")
		synctest.Wait()
		s.dial(gw, "P")
		drained := make(chan bool, 1)
		gw.OnDrain(func(context.Context) { drained <- true })
		n1.stop()
		<-n1.done
		synctest.Wait()
		if len(drained) != 1 {
			t.Error("the gateway was not drained")
		}
		again := s.one("gw")
		if again.Address() != netip.MustParseAddr("10.0.0.2") {
			t.Errorf("the gateway runs on %s", again.Address())
		}
		if ev := s.ended(gw.ID()); ev.Status != StatusOK {
			t.Errorf("ended: %v", ev)
		}
		if n := len(s.m.Snapshot().Sessions); n != 0 {
			t.Errorf("%d sessions are left", n)
		}
	})
}

// An agent that keeps its instances leaves them when it stops: nobody asks them
// to shut down, and their sessions go on.
func TestMeshAgentKeeps(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newLifeMesh(t, ManagerConfig{}, 0, nil)
		defer s.close()
		s.node(2, "mid")
		host := s.host("10.0.0.1")
		n1 := s.addAgent(AgentConfig{Manager: s.address, Address: netip.MustParseAddr("10.0.0.1"), Transport: host, KeepInstances: true,
			Repository: []RepositoryEntry{{Service: "gw", Launcher: FuncLauncher(func(ctx context.Context, l Launch) error { return s.keep(ctx, l, host) })}}})
		gw := s.begin()
		out, in := s.dial(gw, "P")
		gw.OnDrain(func(context.Context) { t.Error("the gateway was drained") })
		n1.stop()
		<-n1.done
		time.Sleep(10 * time.Second)
		io.WriteString(out, "still")
		if b := make([]byte, 5); string(must(t, b, in)) != "still" {
			t.Errorf("the session carried %q", b)
		}
		if s.one("gw").ID() != gw.ID() {
			t.Error("another gateway runs")
		}
		gw.exit <- func() error { return nil }
		synctest.Wait()
	})
}

// Agents come and go under load. Once that stops, what the Manager knows is
// what there is: every agent is up, every instance that runs is known, and no
// session is left that has closed.
func TestMeshFlapping(t *testing.T) {
	for seed := range uint64(2) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := newLifeMesh(t, ManagerConfig{SessionsPerInstance: 5, LostAfter: 20 * time.Second, IdleAfter: 10 * time.Second, History: 1 << 20}, 3, nil)
				defer s.close()
				s.begin()
				over := make(chan struct{})
				var load sync.WaitGroup
				for n := range 12 {
					load.Go(func() {
						rnd := rand.New(rand.NewPCG(seed, uint64(n)))
						for {
							select {
							case <-over:
								return
							case <-time.After(time.Duration(1+rnd.IntN(1000)) * time.Millisecond):
							}
							service, plug := "gw", []string{"P", "Pd"}[n%2]
							if n%3 == 0 {
								service, plug = "mid", "Q"
							}
							s.mu.Lock()
							var from *keptInstance
							for _, k := range s.kept {
								if k.Service() == service && (from == nil || rnd.IntN(2) == 0) {
									from = k
								}
							}
							s.mu.Unlock()
							if from == nil {
								continue
							}
							ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
							conn, err := from.Dial(ctx, plug)
							cancel()
							if err == nil {
								time.Sleep(time.Duration(rnd.IntN(5000)) * time.Millisecond)
								conn.Close()
							}
						}
					})
				}
				rnd := rand.New(rand.NewPCG(seed, 99))
				for range 30 {
					g := s.nodeGate(rnd.IntN(3))
					if rnd.IntN(3) == 0 {
						rejoin := g.sever()
						time.Sleep(time.Duration(rnd.IntN(10)) * time.Second)
						rejoin()
					} else {
						g.shut()
						time.Sleep(time.Duration(rnd.IntN(30)) * time.Second)
						g.open()
					}
					time.Sleep(time.Duration(rnd.IntN(3000)) * time.Millisecond)
				}
				time.Sleep(backAgain)
				close(over)
				load.Wait()
				time.Sleep(time.Minute)
				synctest.Wait()

				if n := len(s.events(EventSessionOpened, nil)); n < 500 {
					t.Errorf("only %d sessions were opened", n)
				}
				snap := s.m.Snapshot()
				for _, a := range snap.Agents {
					if a.State != AgentUp {
						t.Errorf("agent %s is %s", a.Address, a.State)
					}
				}
				if len(snap.Sessions) != 0 {
					t.Errorf("sessions are left: %+v", snap.Sessions)
				}
				known := map[InstanceID]bool{}
				for _, i := range snap.Instances {
					known[i.ID] = true
					if i.State != "running" || i.Service != "gw" {
						t.Errorf("%+v", i)
					}
				}
				s.mu.Lock()
				defer s.mu.Unlock()
				for id, k := range s.kept {
					select {
					case <-k.Done():
						if known[id] {
							t.Errorf("instance %d ended, and the Manager does not know", id)
						}
					default:
						if !known[id] {
							t.Errorf("instance %d runs, and the Manager does not know", id)
						}
					}
				}
			})
		})
	}
}
