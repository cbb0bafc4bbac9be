package ssmmp

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// dialMany dials a plug n times at once, and returns the sessions and errors.
func dialMany(s *lifeMesh, from *keptInstance, plug string, n int) (conns []net.Conn, errs []error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			conn, err := from.Dial(s.ctx, plug)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, err)
			} else {
				conns = append(conns, conn)
			}
		})
	}
	wg.Wait()
	return conns, errs
}

// Many requests for a service that does not run share its start, up to the
// policy's limits (PROTOCOL section 3, Session).
func TestMeshSharedStart(t *testing.T) {
	tests := []struct {
		name             string
		cfg              ManagerConfig
		plug, service    string
		starts, sessions int
	}{
		{"one start", ManagerConfig{}, "P", "mid", 1, 50},
		{"five starts", ManagerConfig{SessionsPerInstance: 10}, "P", "mid", 5, 50},
		{"limit of instances", ManagerConfig{SessionsPerInstance: 10, InstancesPerService: 3}, "P", "mid", 3, 30},
		{"storage", ManagerConfig{}, "Pd", "db", 1, 50},
		{"storage with a limit", ManagerConfig{SessionsPerInstance: 10}, "Pd", "db", 1, 10},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := newLifeMesh(t, tt.cfg, 3, nil)
				defer s.close()
				gw := s.begin()
				conns, errs := dialMany(s, gw, tt.plug, 50)
				if n := s.starts(tt.service); n != tt.starts {
					t.Errorf("%d starts, want %d", n, tt.starts)
				}
				if len(conns) != tt.sessions || len(s.m.Snapshot().Sessions) != tt.sessions {
					t.Errorf("%d sessions, %d in the snapshot, want %d", len(conns), len(s.m.Snapshot().Sessions), tt.sessions)
				}
				for _, err := range errs {
					wantStatus(t, err, StatusUnavailable, ErrUnavailable)
				}
				each := tt.sessions / tt.starts
				for _, i := range s.running(tt.service) {
					if i.Sessions != each {
						t.Errorf("instance %d has %d sessions, want %d", i.ID, i.Sessions, each)
					}
				}
				// What was closed makes room.
				for _, c := range conns {
					c.Close()
				}
				synctest.Wait()
				if n := len(s.m.Snapshot().Sessions); n != 0 {
					t.Errorf("%d sessions are left", n)
				}
				s.dial(gw, tt.plug)
				if n := s.starts(tt.service); n != tt.starts {
					t.Errorf("%d starts after all, want %d", n, tt.starts)
				}
			})
		})
	}
}

// A session off the graph is refused, and nothing starts (PROTOCOL section 3,
// Session: 403).
func TestMeshNoEdge(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var s *lifeMesh
		// A gateway that claims one plug more than it was given.
		claim := FuncLauncher(func(ctx context.Context, l Launch) error {
			l.Plugs = append(l.Plugs, PlugTarget{Plug: "X", Socket: "S", Service: "db"})
			return s.keep(ctx, l, s.host("10.0.0.1"))
		})
		s = newLifeMesh(t, ManagerConfig{}, 0, map[string]Launcher{"gw": claim})
		defer s.close()
		s.node(1, "gw", "mid", "db")
		gw := s.begin()
		for _, plug := range []string{"X", "no such plug"} {
			_, err := gw.Dial(t.Context(), plug)
			wantStatus(t, err, StatusForbidden, ErrNoEdge)
		}
		if n := len(s.events(EventInstanceRequested, nil)); n != 1 {
			t.Errorf("%d starts, want the gateway alone", n)
		}
	})
}

// PROTOCOL section 3, Execution: 404 not in the repository.
func TestMeshNoRepository(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newLifeMesh(t, ManagerConfig{}, 0, nil)
		defer s.close()
		s.node(1, "gw", "mid", "stranger")
		gw := s.begin()
		_, err := gw.Dial(t.Context(), "Pd")
		wantStatus(t, err, StatusNotFound, ErrUnavailable)
		if refused := s.events(EventSessionRefused, nil); len(refused) != 1 || refused[0].Status != StatusNotFound || refused[0].Source != gw.ID() {
			t.Errorf("refused: %v", refused)
		}
		// Names that the graph does not know are accepted and never scheduled.
		if a := s.m.Snapshot().Agents[0]; len(a.Unknown) != 1 || a.Unknown[0] != "stranger" {
			t.Errorf("unknown services %v", a.Unknown)
		}
		// An agent that has it makes the next dial succeed.
		s.node(2, "db")
		synctest.Wait()
		s.dial(gw, "Pd")
	})
}

type failingLauncher struct{}

func (failingLauncher) Launch(context.Context, Launch) (Process, error) {
	return nil, errors.New("no memory")
}

// PROTOCOL section 3, Execution: 503 no resources. After three failures in a
// row starting backs off, and a dial costs no start.
func TestMeshLaunchFails(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newLifeMesh(t, ManagerConfig{}, 1, map[string]Launcher{"mid": failingLauncher{}})
		defer s.close()
		gw := s.begin()
		for range 5 {
			began := time.Now()
			_, err := gw.Dial(t.Context(), "P")
			wantStatus(t, err, StatusUnavailable, ErrUnavailable)
			if d := time.Since(began); d > time.Second {
				t.Errorf("the dial failed after %v", d)
			}
		}
		if n := s.starts("mid"); n != 3 {
			t.Errorf("%d starts, want 3", n)
		}
		for _, ev := range s.events(EventInstanceEnded, nil) {
			if ev.Status != StatusUnavailable || ev.Cause != "not started: no memory" {
				t.Errorf("%v", ev)
			}
		}
		time.Sleep(time.Second)
		gw.Dial(t.Context(), "P")
		if n := s.starts("mid"); n != 4 {
			t.Errorf("%d starts after the back-off, want 4", n)
		}
	})
}

// PROTOCOL section 3, Execution: 504 did not become ready in time. The
// instance is killed, the history says why, and starting backs off.
func TestMeshStartTimeout(t *testing.T) {
	bubble(t, func(t *testing.T) {
		began := time.Now()
		var killed []time.Duration
		never := FuncLauncher(func(ctx context.Context, l Launch) error {
			<-ctx.Done()
			killed = append(killed, time.Since(began))
			return ctx.Err()
		})
		s := newLifeMesh(t, ManagerConfig{}, 1, map[string]Launcher{"mid": never})
		defer s.close()
		gw := s.begin()
		for n := 1; n <= 3; n++ {
			_, err := gw.Dial(t.Context(), "P")
			wantStatus(t, err, StatusTimeout, ErrStartTimeout)
			synctest.Wait()
			if want := time.Duration(n) * 30 * time.Second; len(killed) != n || killed[n-1] != want {
				t.Fatalf("killed at %v, want the last at %v", killed, want)
			}
			ended := s.events(EventInstanceEnded, ofService("mid"))
			if len(ended) != n || ended[n-1].Status != StatusTimeout || ended[n-1].Cause != "not ready in time" {
				t.Fatalf("ended: %v", ended)
			}
		}
		_, err := gw.Dial(t.Context(), "P")
		wantStatus(t, err, StatusUnavailable, ErrUnavailable)
		if n := s.starts("mid"); n != 3 {
			t.Errorf("%d starts, want 3", n)
		}
	})
}

// The Manager knows the whole session: A, NA_i, i, P, m, B, NA_j, j, S, k, l
// (PROTOCOL section 3, Session).
func TestMeshSessionKnown(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newLifeMesh(t, ManagerConfig{}, 0, nil)
		defer s.close()
		s.node(1, "gw")
		s.node(2, "mid")
		gw := s.begin()
		source, dest := s.dial(gw, "P")
		snap := s.m.Snapshot()
		mid := s.running("mid")[0]
		m, k := addrPort(source.LocalAddr()), addrPort(source.RemoteAddr())
		want := SessionStatus{
			ID: snap.Sessions[0].ID, State: SessionOpen,
			Source: gw.ID(), SourceService: "gw", SourceAddress: netip.MustParseAddr("10.0.0.1"), Plug: "P", PlugPort: m.Port(),
			Destination: mid.ID, DestinationService: "mid", DestinationAddress: netip.MustParseAddr("10.0.0.2"), Socket: "S",
			SocketPort: mid.Sockets[0].Port, NewPort: k.Port(),
		}
		if len(snap.Sessions) != 1 || snap.Sessions[0] != want {
			t.Errorf("sessions %+v\nwant %+v", snap.Sessions, want)
		}
		if k.Port() != mid.Sockets[0].Port || addrPort(dest.RemoteAddr()) != m {
			t.Errorf("the connection is %v → %v, its destination sees %v", m, k, dest.RemoteAddr())
		}
		opened := s.events(EventSessionOpened, nil)
		if len(opened) != 1 || opened[0].Session != want.ID || opened[0].PlugPort != m.Port() || opened[0].NewPort != k.Port() {
			t.Errorf("opened: %+v", opened)
		}
	})
}

// Whoever closes a session, it closes once (PROTOCOL section 3, Closing).
func TestMeshSessionCloses(t *testing.T) {
	tests := []struct {
		name   string
		close  func(source, dest net.Conn)
		status Status
	}{
		{"source", func(source, dest net.Conn) { source.Close() }, StatusSessionClosed},
		{"destination", func(source, dest net.Conn) { dest.Close() }, StatusSessionClosed},
		{"both", func(source, dest net.Conn) { go source.Close(); dest.Close() }, StatusSessionClosed},
		{"one after the other", func(source, dest net.Conn) {
			dest.Close()
			if _, err := source.Read(make([]byte, 1)); err != io.EOF {
				panic(err)
			}
			source.Close()
			source.Close()
		}, StatusSessionClosed},
		{"broken", func(source, dest net.Conn) {
			source.(*sessionConn).Conn.(*memConn).reset()
			for _, c := range []net.Conn{source, dest} {
				if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF || errors.Is(err, net.ErrClosed) {
					panic(err)
				}
				c.Close()
			}
		}, StatusSessionBroken},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := newLifeMesh(t, ManagerConfig{}, 0, nil)
				defer s.close()
				s.node(1, "gw")
				s.node(2, "mid")
				gw := s.begin()
				tt.close(s.dial(gw, "P"))
				closed := s.events(EventSessionClosed, nil)
				if len(closed) != 1 || closed[0].Status != tt.status {
					t.Fatalf("closed: %v, want once with %v", closed, tt.status)
				}
				if ev := closed[0]; ev.Source != gw.ID() || ev.Destination != s.one("mid").ID() || ev.PlugPort == 0 || ev.NewPort == 0 {
					t.Errorf("%+v", ev)
				}
				if n := len(s.m.Snapshot().Sessions); n != 0 {
					t.Errorf("%d sessions are left", n)
				}
			})
		})
	}
}

// The Manager has the source close a session, or the destination when the
// source's agent is away; whoever lost it may ask for another (PROTOCOL
// section 3, Closing by the Manager).
func TestMeshCloseSession(t *testing.T) {
	for _, away := range []bool{false, true} {
		name := map[bool]string{false: "at its source", true: "at its destination"}[away]
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := newLifeMesh(t, ManagerConfig{}, 0, nil)
				defer s.close()
				source := s.node(1, "gw")
				s.node(2, "mid")
				gw := s.begin()
				near, far := s.dial(gw, "P")
				mid := s.one("mid")
				asked, plug, other := gw, "P", mid
				if away {
					source.gate.shut()
					near, far = far, near
					asked, plug, other = mid, "S", gw
				}
				var told []SessionClose
				asked.OnSessionClose(func(c SessionClose) {
					if c.Conn != near {
						return // the last session ends with the mesh
					}
					if _, err := c.Conn.Write([]byte("bye")); err != nil {
						t.Errorf("the session is not open in OnSessionClose: %v", err)
					}
					told = append(told, c)
				})
				other.OnSessionClose(func(c SessionClose) {
					if c.Conn == far {
						t.Errorf("the other end is asked too: %+v", c)
					}
				})

				read := make(chan error, 1)
				go func() {
					_, err := near.Read(make([]byte, 1))
					read <- err
				}()
				synctest.Wait()
				id := s.m.Snapshot().Sessions[0].ID
				if err := s.m.CloseSession(t.Context(), id); err != nil {
					t.Fatal(err)
				}
				if err := <-read; !errors.Is(err, ErrSessionClosed) || !errors.Is(err, net.ErrClosed) {
					t.Errorf("Read: %v, want ErrSessionClosed and net.ErrClosed", err)
				}
				if _, err := near.Write([]byte("x")); !errors.Is(err, ErrSessionClosed) || !errors.Is(err, net.ErrClosed) {
					t.Errorf("Write: %v, want ErrSessionClosed and net.ErrClosed", err)
				}
				if len(told) != 1 || told[0].Conn != near || told[0].Name != plug {
					t.Errorf("OnSessionClose: %+v", told)
				}
				if b, err := io.ReadAll(far); string(b) != "bye" || err != nil {
					t.Errorf("the far end read %q, %v", b, err)
				}
				far.Close()
				closed := s.events(EventSessionClosed, nil)
				if len(closed) != 1 || closed[0].Session != id || closed[0].Status != StatusOK {
					t.Errorf("closed: %v", closed)
				}
				if err := s.m.CloseSession(t.Context(), id); !errors.Is(err, ErrNotFound) {
					t.Errorf("closing it again: %v, want ErrNotFound", err)
				}

				source.gate.open()
				time.Sleep(15 * time.Second)
				s.dial(gw, "P")
				if n := len(s.m.Snapshot().Sessions); n != 1 || s.starts("mid") != 1 {
					t.Errorf("%d sessions, %d starts; want 1 and 1", n, s.starts("mid"))
				}
			})
		})
	}
}

// A dial that is given up leaves nothing behind, whenever that is.
func TestMeshDialGivenUpStarting(t *testing.T) {
	bubble(t, func(t *testing.T) {
		slow := make(chan struct{})
		var s *lifeMesh
		late := FuncLauncher(func(ctx context.Context, l Launch) error {
			<-slow
			return s.keep(ctx, l, s.host("10.0.0.1"))
		})
		s = newLifeMesh(t, ManagerConfig{}, 1, map[string]Launcher{"mid": late})
		defer s.close()
		gw := s.begin()
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		if _, err := gw.Dial(ctx, "P"); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("error %v, want the context's", err)
		}
		close(slow)
		closed := s.events(EventSessionClosed, nil)
		if len(closed) != 1 || closed[0].Status != StatusCanceled {
			t.Errorf("closed: %v, want once with 499", closed)
		}
		if len(s.m.Snapshot().Sessions) != 0 {
			t.Errorf("sessions %+v are left", s.m.Snapshot().Sessions)
		}
		s.dial(gw, "P")
		if n := s.starts("mid"); n != 1 {
			t.Errorf("%d starts, want 1", n)
		}
	})
}

// A destination that cannot be dialled is reported, and another one asked for
// (PROTOCOL section 3, Session: session_ack 5xx).
func TestMeshUnreachable(t *testing.T) {
	bubble(t, func(t *testing.T) {
		services := map[string]Launcher{}
		s := newLifeMesh(t, ManagerConfig{}, 0, services)
		defer s.close()
		hung, well := hungService(s, "10.0.0.1"), FuncLauncher(func(ctx context.Context, l Launch) error { return s.keep(ctx, l, s.host("10.0.0.1")) })
		var first InstanceID
		services["mid"] = launcherFunc(func(ctx context.Context, l Launch) (Process, error) {
			if first == 0 {
				first = l.ID
				return hung.Launch(ctx, l)
			}
			return well.Launch(ctx, l)
		})
		s.node(1, "gw", "mid")
		gw := s.begin()
		soon, cancel := context.WithTimeout(t.Context(), listenGrace/2)
		defer cancel()
		if _, err := gw.Dial(soon, "P"); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("Dial: %v, want the deadline's end", err)
		}
		time.Sleep(listenGrace) // by now it should listen, if ever
		s.dial(gw, "P")
		if n := s.starts("mid"); n != 2 {
			t.Errorf("%d starts, want 2", n)
		}
		closed := s.events(EventSessionClosed, nil)
		if len(closed) == 0 || closed[0].Status != StatusUnreachable || closed[0].Destination != first {
			t.Errorf("closed: %v, want 502 for %d", closed, first)
		}
		if open := s.m.Snapshot().Sessions; len(open) != 1 || open[0].Destination == first {
			t.Errorf("open: %+v, want one to another", open)
		}
	})
}

type launcherFunc func(ctx context.Context, l Launch) (Process, error)

func (f launcherFunc) Launch(ctx context.Context, l Launch) (Process, error) { return f(ctx, l) }

// A session that is closed before it is acknowledged closes when it is.
func TestMeshCloseOffered(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var s *lifeMesh
		late := FuncLauncher(func(ctx context.Context, l Launch) error {
			inst, err := JoinWith(ctx, JoinConfig{Launch: l, Transport: s.host("10.0.0.1")})
			if err != nil {
				return err
			}
			defer inst.Close()
			time.Sleep(20 * time.Millisecond)
			if _, err := inst.Listen("S"); err != nil {
				return err
			}
			select {
			case <-inst.Done():
			case <-ctx.Done():
			}
			return nil
		})
		s = newLifeMesh(t, ManagerConfig{}, 1, map[string]Launcher{"mid": late})
		defer s.close()
		gw := s.begin()
		dialled := make(chan net.Conn, 1)
		go func() {
			conn, err := gw.Dial(t.Context(), "P")
			if err != nil {
				t.Error(err)
			}
			dialled <- conn
		}()
		time.Sleep(10 * time.Millisecond)
		open := s.m.Snapshot().Sessions
		if len(open) != 1 || open[0].State != SessionOffered {
			t.Fatalf("sessions %+v, want one that is offered", open)
		}
		if err := s.m.CloseSession(t.Context(), open[0].ID); err != nil {
			t.Fatal(err)
		}
		conn := <-dialled
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, ErrSessionClosed) {
			t.Errorf("Read: %v, want ErrSessionClosed", err)
		}
		wantOrder(s, "closing", func(ev Event) bool { return ev.Kind == EventSessionOpened }, closedWith(StatusOK))
	})
}
