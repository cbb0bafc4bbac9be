package ssmmp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// takePorts has another program listen on ports of a node.
func takePorts(t *testing.T, on Transport, node netip.Addr, ports ...uint16) []net.Listener {
	t.Helper()
	var all []net.Listener
	for _, port := range ports {
		ln, err := on.Listen(t.Context(), netip.AddrPortFrom(node, port).String())
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, ln)
	}
	return all
}

// wantTaken checks that so many starts of a service found a port taken.
func wantTaken(t *testing.T, s *mesh, service string, want int) {
	t.Helper()
	var ended []Event
	for ev := range s.m.History(t.Context(), EventQuery{Service: service, Kinds: []EventKind{EventInstanceEnded}}) {
		ended = append(ended, ev)
		if ev.Status != StatusConflict || !strings.Contains(ev.Cause, ErrPortTaken.Error()) {
			t.Errorf("%v, want 409 for a port that is taken", ev)
		}
	}
	if len(ended) != want {
		t.Errorf("%d starts found a port taken, want %d: %v", len(ended), want, ended)
	}
}

// Another program holds ports of a node: the instance is executed on others,
// and who dials it notices nothing. After three tries the dial fails.
func TestMeshPortTaken(t *testing.T) {
	bubble(t, func(t *testing.T) {
		for taken := 1; taken <= 3; taken++ {
			s := newLifeMesh(t, ManagerConfig{}, 1, nil)
			node := s.nodes[0]
			takePorts(t, s.host("10.0.0.1"), node.addr, []uint16{54000, 54001, 54002}[:taken]...)
			gw := s.begin()
			began := time.Now()
			conn, err := gw.Dial(t.Context(), "P")
			if taken == 3 {
				wantStatus(t, err, StatusUnavailable, ErrUnavailable)
			} else if err != nil {
				t.Errorf("%d ports are taken: %v", taken, err)
			} else {
				if port := conn.RemoteAddr().(*net.TCPAddr).Port; port != 54000+taken {
					t.Errorf("%d ports are taken: a session to port %d", taken, port)
				}
				conn.Close()
			}
			if d := time.Since(began); d > time.Second {
				t.Errorf("%d ports are taken: it took %v", taken, d)
			}
			wantTaken(t, s.mesh, "mid", taken)
			s.m.mu.Lock()
			waiting := s.m.core.Pending().Waiting
			s.m.mu.Unlock()
			if waiting > 0 {
				t.Errorf("%d requests wait", waiting)
			}
			s.close()
		}
	})
}

// A port that is taken after its agent looked: the instance that ends since it
// cannot listen is executed on another.
func TestMeshPortTakenMeanwhile(t *testing.T) {
	bubble(t, func(t *testing.T) {
		services := map[string]Launcher{}
		s := newLifeMesh(t, ManagerConfig{}, 0, services)
		defer s.close()
		host := s.host("10.0.0.1")
		well := FuncLauncher(func(ctx context.Context, l Launch) error { return s.keep(ctx, l, host) })
		fails := FuncLauncher(func(ctx context.Context, l Launch) error {
			_, err := host.Listen(ctx, netip.AddrPortFrom(l.Address, l.Sockets[0].Port).String())
			if err == nil {
				err = errors.New("it listens where another program does")
			}
			return err
		})
		services["mid"] = launcherFunc(func(ctx context.Context, l Launch) (Process, error) {
			if l.Sockets[0].Port > 54001 {
				return well.Launch(ctx, l)
			}
			takePorts(t, host, l.Address, l.Sockets[0].Port)
			return fails.Launch(ctx, l)
		})
		s.node(1, "gw", "mid")
		gw := s.begin()
		conn, err := gw.Dial(t.Context(), "P")
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		wantTaken(t, s.mesh, "mid", 2)
	})
}

// Three tries are all that a request has, also where starting does not back off
// since others ran for long meanwhile; one that is given up has none.
func TestManagerPortTries(t *testing.T) {
	t.Parallel()
	for _, givenUp := range []bool{false, true} {
		s := newManagerStepper(t, ManagerConfig{Graphs: coreGraphs(t), SessionsPerInstance: 1, HealthPeriod: time.Hour})
		request := func(id int64) {
			s.message(1, fmt.Sprintf("type: session_request ~ message_id: %d ~ sub_type: agent_to_Manager ~ source_service_name: A ~ source_service_instance_id: 1 ~ source_service_instance_network_address: 10.0.0.1 ~ source_plug_name: P1 ~ dest_service_name: B ~ dest_socket_name: S1", id))
		}
		executed := func(status Status) {
			s.message(1, encode(t, responseTo(s.requests[len(s.requests)-1].msg, status)))
		}
		s.pass(time.Second)
		s.message(1, registerLine(1, coreNodes[0], "A, B, C", ""))
		s.step(ManagerInput{Kind: ManagerInputCommand, Call: 1, Cmd: DeployCommand{"one"}}, "")
		executed(StatusOK)
		request(9)
		executed(StatusOK)
		s.pass(40 * time.Second)
		request(10)
		executed(StatusConflict)
		executed(StatusConflict)
		if givenUp {
			s.message(1, "type: session_ack ~ message_id: 10 ~ sub_type: agent_to_Manager ~ source_service_name: A ~ source_service_instance_id: 1 ~ source_plug_port:  ~ dest_socket_new_port:  ~ status: 499")
		}
		s.message(1, "type: service_instance_termination_info ~ message_id: 5 ~ sub_type: agent_to_Manager ~ service_name: B ~ service_instance_id: 2 ~ service_instance_network_address: 10.0.0.1")
		executed(StatusConflict)
		want := StatusUnavailable
		if givenUp {
			want = StatusCanceled
		}
		for _, ev := range s.history {
			if ev.Kind == EventSessionRefused && ev.Status != want {
				t.Errorf("%v, want %s", ev, want)
			}
		}
		if n := s.count(EventInstanceRequested); n != 5 || s.core.Pending().Waiting > 0 {
			t.Errorf("given up %t: %d instances were requested, want 5; %d requests wait", givenUp, n, s.core.Pending().Waiting)
		}
		s.settle()
		s.replay()
	}
}
