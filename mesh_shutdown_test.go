package ssmmp

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// wantOrder fails the test unless events for which the functions hold are
// there, in that order.
func wantOrder(s *lifeMesh, what string, steps ...func(Event) bool) {
	s.t.Helper()
	n := 0
	all := s.history()
	for _, ev := range all {
		if n < len(steps) && steps[n](ev) {
			n++
		}
	}
	if n < len(steps) {
		s.t.Errorf("%s: step %d of %d did not come in order", what, n+1, len(steps))
		for _, ev := range all {
			s.t.Logf("%d %v", ev.Seq, ev)
		}
	}
}

func is(kind EventKind, id InstanceID) func(Event) bool {
	return func(ev Event) bool { return ev.Kind == kind && ev.Instance == id }
}

func closedWith(status Status) func(Event) bool {
	return func(ev Event) bool { return ev.Kind == EventSessionClosed && ev.Status == status }
}

// Graceful shutdown: sessions close first, at whichever end, then the instance
// finishes its work, then it ends (PROTOCOL section 3, Graceful shutdown).
func TestMeshShutdown(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newLifeMesh(t, ManagerConfig{}, 2, nil)
		defer s.close()
		gw := s.begin()
		in, _ := s.dial(gw, "P")
		mid := s.one("mid")
		out, far := s.dial(mid, "Q")
		mid.OnDrain(func(ctx context.Context) {
			if n := s.running("mid"); len(n) != 0 {
				t.Errorf("in OnDrain it still counts as running: %+v", n)
			}
			if len(s.m.Snapshot().Sessions) != 0 {
				t.Errorf("in OnDrain there are sessions: %+v", s.m.Snapshot().Sessions)
			}
			for _, c := range []net.Conn{in, out} {
				if _, err := c.Read(make([]byte, 1)); !errors.Is(err, ErrSessionClosed) {
					t.Errorf("in OnDrain a session's source reads: %v", err)
				}
			}
			if _, err := mid.Dial(ctx, "Q"); !errors.Is(err, ErrDraining) {
				t.Errorf("Dial while draining: %v, want ErrDraining", err)
			}
			if _, err := mid.Listen("S"); !errors.Is(err, ErrDraining) {
				t.Errorf("Listen while draining: %v, want ErrDraining", err)
			}
			// Its only instance drains: a dial has another one started.
			c, _ := s.dial(gw, "P")
			c.Close()
			time.Sleep(3 * time.Second)
		})
		began := time.Now()
		if err := s.m.Shutdown(t.Context(), mid.ID()); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(began); d != 3*time.Second {
			t.Errorf("the shutdown took %v, want the 3 s of OnDrain", d)
		}
		<-mid.Done()
		if _, err := far.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("the far end reads: %v, want EOF", err)
		}
		wantOrder(s, "shutdown", is(EventInstanceStopping, mid.ID()), closedWith(StatusOK), closedWith(StatusOK), is(EventInstanceEnded, mid.ID()))
		if ev := s.ended(mid.ID()); ev.Status != StatusOK || ev.Cause != "operator" {
			t.Errorf("ended: %v", ev)
		}
		if other := s.one("mid"); other.ID() == mid.ID() || s.starts("mid") != 2 {
			t.Errorf("%d runs after %d starts", other.ID(), s.starts("mid"))
		}
		if err := s.m.Shutdown(t.Context(), mid.ID()); !errors.Is(err, ErrNotFound) {
			t.Errorf("again: %v, want ErrNotFound", err)
		}
	})
}

// An instance that does not exit in time is killed (PROTOCOL section 3,
// Graceful shutdown: not answered in time → hard shutdown).
func TestMeshShutdownTurnsHard(t *testing.T) {
	for _, at := range []string{"OnDrain", "exit"} {
		t.Run(at, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				never := make(chan struct{})
				began := time.Now()
				var s *lifeMesh
				stuck := FuncLauncher(func(ctx context.Context, l Launch) error {
					p := &processTransport{MemHost: s.host("10.0.0.1")}
					inst, err := JoinWith(ctx, JoinConfig{Launch: l, Transport: p, DrainTimeout: time.Hour})
					if err != nil {
						return err
					}
					ln, err := inst.Listen("S")
					if err != nil {
						return err
					}
					go ln.Accept()
					inst.OnDrain(func(context.Context) {
						if at == "OnDrain" {
							<-never
						}
					})
					<-ctx.Done()
					if d := time.Since(began); d != 10*time.Second {
						t.Errorf("killed after %v, want the DrainTimeout of 10 s", d)
					}
					p.end()
					go func() { <-never; inst.Close() }()
					return ctx.Err()
				})
				s = newLifeMesh(t, ManagerConfig{}, 1, map[string]Launcher{"mid": stuck})
				defer s.close()
				defer close(never)
				gw := s.begin()
				if _, err := gw.Dial(t.Context(), "P"); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				mid := s.running("mid")[0]
				began = time.Now()
				if err := s.m.Shutdown(t.Context(), mid.ID); err != nil {
					t.Fatal(err)
				}
				if d := time.Since(began); d != 10*time.Second {
					t.Errorf("the shutdown took %v, want 10 s", d)
				}
				if n := len(s.m.Snapshot().Sessions); n != 0 {
					t.Errorf("%d sessions are left", n)
				}
			})
		})
	}
}

// Hard shutdown: the far ends of all sessions close them before the instance
// is killed, and what did not close is recorded with 122 (PROTOCOL section 3,
// Hard shutdown).
func TestMeshHardShutdown(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newLifeMesh(t, ManagerConfig{}, 0, nil)
		defer s.close()
		s.node(1, "gw")
		s.node(2, "mid")
		s.node(3, "db")
		gw := s.begin()
		in, _ := s.dial(gw, "P")
		mid := s.one("mid")
		_, far := s.dial(mid, "Q")
		closed := make(chan string, 2)
		gw.OnSessionClose(func(SessionClose) { closed <- "gw" })
		s.one("db").OnSessionClose(func(SessionClose) {
			time.Sleep(time.Second)
			closed <- "db"
		})
		mid.OnSessionClose(func(SessionClose) { t.Error("the instance itself is asked") })
		mid.OnDrain(func(context.Context) { t.Error("it is asked to drain") })
		if err := s.m.HardShutdown(t.Context(), mid.ID()); err != nil {
			t.Fatal(err)
		}
		if len(closed) != 2 {
			t.Errorf("when it was killed, %d far ends had closed, want 2", len(closed))
		}
		for _, c := range []net.Conn{in, far} {
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, ErrSessionClosed) {
				t.Errorf("a far end reads %v, want ErrSessionClosed", err)
			}
		}
		if n := len(s.events(EventSessionClosed, nil)); n != 2 {
			t.Errorf("%d sessions closed, want 2", n)
		}
		wantOrder(s, "hard shutdown", is(EventInstanceStopping, mid.ID()), func(ev Event) bool { return ev.Kind == EventSessionClosed },
			func(ev Event) bool { return ev.Kind == EventSessionClosed }, is(EventInstanceEnded, mid.ID()))
	})
}

// A far end that does not close in time does not hold the kill up.
func TestMeshHardShutdownDeaf(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newLifeMesh(t, ManagerConfig{}, 2, nil)
		defer s.close()
		gw := s.begin()
		never := make(chan struct{})
		defer close(never)
		gw.OnSessionClose(func(SessionClose) {
			select {
			case <-never:
			case <-time.After(time.Minute): // OnSessionClose waits for 4 s at the most
			}
		})
		s.dial(gw, "P")
		mid := s.one("mid")
		began := time.Now()
		if err := s.m.HardShutdown(t.Context(), mid.ID()); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(began); d > 5*time.Second {
			t.Errorf("it took %v, want at most the RequestTimeout of 5 s", d)
		}
		closed := s.events(EventSessionClosed, nil)
		if len(closed) != 1 || closed[0].Status != StatusSessionBroken {
			t.Errorf("closed: %v, want once with 122", closed)
		}
	})
}

// An instance that ends by itself, in whichever way, is reported with how; the
// far ends of its sessions close, and the next dial starts another (PROTOCOL
// section 3, Termination by business logic).
func TestMeshTermination(t *testing.T) {
	tests := []struct {
		name   string
		end    func(*keptInstance)
		status Status
		cause  string
		closed Status // of its sessions
	}{
		{"Terminate", func(k *keptInstance) { k.Terminate() }, StatusOK, "terminated by its business logic", StatusSessionClosed},
		{"return", func(k *keptInstance) { k.exit <- func() error { return nil } }, StatusOK, "exit 0", StatusSessionBroken},
		{"error", func(k *keptInstance) { k.exit <- func() error { return errors.New("lost") } }, StatusFailed, "exit 1", StatusSessionBroken},
		{"panic", func(k *keptInstance) { k.exit <- func() error { panic("on purpose") } }, StatusFailed, "exit -1", StatusSessionBroken},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := newLifeMesh(t, ManagerConfig{}, 2, nil)
				defer s.close()
				gw := s.begin()
				in, _ := s.dial(gw, "P")
				mid := s.one("mid")
				_, far := s.dial(mid, "Q")
				db := s.one("db")
				tt.end(mid)
				ended := s.ended(mid.ID())
				if ended.Status != tt.status || ended.Cause != tt.cause {
					t.Errorf("ended: %v, want %v: %s", ended, tt.status, tt.cause)
				}
				closed := s.events(EventSessionClosed, nil)
				if len(closed) != 2 || closed[0].Status != tt.closed || closed[1].Status != tt.closed {
					t.Errorf("closed: %v, want twice with %v", closed, tt.closed)
				}
				for _, c := range []net.Conn{in, far} {
					if _, err := c.Read(make([]byte, 1)); err == nil {
						t.Error("a far end's session is open")
					}
				}
				if n := len(s.m.Snapshot().Sessions); n != 0 {
					t.Errorf("%d sessions are left", n)
				}
				s.dial(gw, "P")
				again := s.one("mid")
				s.dial(again, "Q")
				if again.ID() == mid.ID() || s.one("db").ID() != db.ID() || s.one("gw").ID() != gw.ID() {
					t.Errorf("after all there are %+v", s.m.Snapshot().Instances)
				}
			})
		})
	}
}

// The same instance is closed by two shutdowns at once, and by itself: it ends
// once, and both calls return.
func TestMeshShutdownTwice(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newLifeMesh(t, ManagerConfig{}, 2, nil)
		defer s.close()
		gw := s.begin()
		s.dial(gw, "P")
		mid := s.one("mid")
		mid.OnDrain(func(ctx context.Context) { <-ctx.Done() })
		errs := make(chan error, 3)
		go func() { errs <- s.m.Shutdown(t.Context(), mid.ID()) }()
		go func() { errs <- s.m.Shutdown(t.Context(), mid.ID()) }()
		time.Sleep(time.Second)
		go func() { errs <- s.m.HardShutdown(t.Context(), mid.ID()) }()
		for range 3 {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		s.ended(mid.ID())
		if n := len(s.events(EventInstanceStopping, ofInstance(mid.ID()))); n != 1 {
			t.Errorf("stopping %d times", n)
		}
	})
}

// Idle: an instance without a session for IdleAfter is shut down gracefully,
// and started again by the next dial; an API Gateway never is (PROTOCOL
// section 3, Idle).
func TestMeshIdle(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newLifeMesh(t, ManagerConfig{IdleAfter: time.Minute}, 2, nil)
		defer s.close()
		gw := s.begin()
		conn, _ := s.dial(gw, "P")
		mid := s.one("mid")
		drained := make(chan time.Time, 1)
		mid.OnDrain(func(context.Context) { drained <- time.Now() })
		time.Sleep(10 * time.Minute)
		if s.one("mid").ID() != mid.ID() {
			t.Fatal("it was shut down with a session open")
		}
		conn.Close()
		time.Sleep(40 * time.Second)
		conn, _ = s.dial(gw, "P") // idle for less than IdleAfter
		conn.Close()
		closed := time.Now()
		time.Sleep(59 * time.Second)
		if len(s.of("mid")) != 1 {
			t.Error("it was shut down before IdleAfter")
		}
		time.Sleep(2 * time.Second)
		if d := (<-drained).Sub(closed); d != time.Minute {
			t.Errorf("drained after %v, want IdleAfter", d)
		}
		if ev := s.ended(mid.ID()); ev.Status != StatusOK || ev.Cause != "idle" {
			t.Errorf("ended: %v", ev)
		}
		time.Sleep(10 * time.Minute)
		if s.one("gw").ID() != gw.ID() || len(s.m.Snapshot().Instances) != 1 {
			t.Errorf("after 10 min more there are %+v, want the gateway", s.m.Snapshot().Instances)
		}
		s.dial(gw, "P")
		if n := s.starts("mid"); n != 2 {
			t.Errorf("%d starts, want 2", n)
		}
	})
}

// IdleAfter below zero: nothing is ever idle.
func TestMeshNeverIdle(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newLifeMesh(t, ManagerConfig{IdleAfter: -1}, 1, nil)
		defer s.close()
		conn, _ := s.dial(s.begin(), "P")
		mid := s.one("mid")
		conn.Close()
		time.Sleep(time.Hour)
		if s.one("mid").ID() != mid.ID() {
			t.Error("it was shut down")
		}
	})
}

// A session over which nothing goes is closed by the instance that dialled it,
// so that a pool of connections keeps no service running.
func TestMeshIdleSession(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newMemMesh(t, ManagerConfig{Graphs: []*Graph{lifeGraph(t, "life", 8080)}, IdleAfter: time.Minute}, 1)
		defer s.close()
		s.deploy("life")
		synctest.Wait()
		gw := s.instance(s.running("gw")[0].ID)
		conn, err := gw.Dial(t.Context(), "P")
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			time.Sleep(4 * time.Minute)
			if answer, err := askConn(conn, "who"); err != nil || answer == "" {
				t.Fatalf("answer %q, %v", answer, err)
			}
		}
		time.Sleep(5*time.Minute + time.Second)
		synctest.Wait()
		if n := len(s.m.Snapshot().Sessions); n != 0 {
			t.Errorf("%d sessions after 5 min without a byte", n)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := len(s.running("mid")); n != 0 {
			t.Error("its destination was not idle a minute later")
		}
	})
}
