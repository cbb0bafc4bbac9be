package ssmmptest_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ssmmp/ssmmp"
	"golang.org/x/net/nettest"
)

// A sessionMesh is a Manager and one agent with two services, whose instances
// the test itself drives: an API Gateway with plug P, and back, which listens
// at socket S.
type sessionMesh struct {
	manager *ssmmp.Manager
	gateway *ssmmp.Instance
	back    *ssmmp.Instance
	ln      net.Listener // of back's S
	stop    func()
}

// newSessionMesh starts the mesh and opens one session, so that back runs.
// managers and node are the transports of the Manager and of the agent's node.
func newSessionMesh(t *testing.T, managers, node ssmmp.Transport, managerAddr string, addr netip.Addr) *sessionMesh {
	t.Helper()
	g, err := ssmmp.NewGraph("pair").
		Gateway("gateway", ssmmp.FixedPorts{"S0": 8080}, ssmmp.Out{"P"}).
		Storage("back", ssmmp.In{"S"}).
		Edge("gateway", "P", "S", "back").
		Build()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	m, err := ssmmp.NewManager(ssmmp.ManagerConfig{Graphs: []*ssmmp.Graph{g}, Transport: managers, FirstPort: 20000})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := managers.Listen(ctx, managerAddr)
	if err != nil {
		t.Fatal(err)
	}
	joined := make(chan *ssmmp.Instance, 2)
	join := ssmmp.FuncLauncher(func(ctx context.Context, l ssmmp.Launch) error {
		inst, err := ssmmp.JoinWith(ctx, ssmmp.JoinConfig{Launch: l, Transport: node})
		if err != nil {
			return err
		}
		defer inst.Close()
		joined <- inst
		select {
		case <-inst.Done():
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	a, err := ssmmp.NewAgent(ssmmp.AgentConfig{
		Manager: ln.Addr().String(), Address: addr, Listen: net.JoinHostPort(addr.String(), "0"), Transport: node,
		Repository: []ssmmp.RepositoryEntry{{Service: "gateway", Launcher: join}, {Service: "back", Launcher: join}},
	})
	if err != nil {
		t.Fatal(err)
	}
	s := &sessionMesh{manager: m}
	var wg sync.WaitGroup
	agentCtx, stopAgent := context.WithCancel(ctx)
	agentDone := make(chan struct{})
	wg.Go(func() { m.Serve(ctx, ln) })
	wg.Go(func() {
		defer close(agentDone)
		if err := a.Run(agentCtx); err != nil {
			t.Error(err)
		}
	})
	s.stop = sync.OnceFunc(func() {
		stopAgent()
		<-agentDone
		cancel()
		wg.Wait()
	})
	t.Cleanup(s.stop)

	wait, done := context.WithTimeout(ctx, 20*time.Second)
	defer done()
	if err := m.Deploy(wait, g.Name); err != nil {
		t.Fatal(err)
	}
	s.gateway = <-joined
	first := make(chan error, 1)
	go func() {
		conn, err := s.gateway.Dial(wait, "P")
		if err == nil {
			conn.Close()
		}
		first <- err
	}()
	s.back = <-joined
	if s.ln, err = s.back.Listen("S"); err != nil {
		t.Fatal(err)
	}
	conn, err := s.ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if err := <-first; err != nil {
		t.Fatal(err)
	}
	return s
}

// pipe opens a session and returns its ends. One that the agent opened, to
// find out whether the port listens, is passed over: the gateway says which is
// its own.
func (s *sessionMesh) pipe() (source, destination net.Conn, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if source, err = s.gateway.Dial(ctx, "P"); err != nil {
		return nil, nil, err
	}
	for {
		if destination, err = s.ln.Accept(); err != nil {
			return nil, nil, err
		}
		if destination.RemoteAddr().String() == source.LocalAddr().String() {
			return source, destination, nil
		}
		destination.Close()
	}
}

// await waits until the Manager's sessions are as f wants them.
func (s *sessionMesh) await(t *testing.T, f func([]ssmmp.SessionStatus) bool) []ssmmp.SessionStatus {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		snap := s.manager.Snapshot()
		if f(snap.Sessions) {
			return snap.Sessions
		}
		for range s.manager.Events(ctx, snap.Seq) {
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("sessions %+v", snap.Sessions)
		}
	}
}

// open waits until the Manager knows of one session, which is open, and
// returns its id.
func (s *sessionMesh) open(t *testing.T) ssmmp.SessionID {
	t.Helper()
	return s.await(t, func(all []ssmmp.SessionStatus) bool {
		return len(all) == 1 && all[0].State == ssmmp.SessionOpen
	})[0].ID
}

func memMesh(t *testing.T) *sessionMesh {
	t.Helper()
	network := ssmmp.NewMemNetwork()
	managers, err := network.Host("10.0.0.100")
	if err != nil {
		t.Fatal(err)
	}
	node, err := network.Host("10.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	return newSessionMesh(t, managers, node, "10.0.0.100:55555", node.Addr())
}

// tcpNodes counts the loopback addresses given to tcpMesh.
var tcpNodes struct {
	sync.Mutex
	n uint16
}

// tcpMesh is a mesh on a loopback address of its own, so that no other test,
// of this process or another, competes for the Manager's ports there.
func tcpMesh(t *testing.T) *sessionMesh {
	t.Helper()
	tcpNodes.Lock()
	tcpNodes.n++
	b := binary.BigEndian.AppendUint32(nil, uint32(os.Getpid())<<8|uint32(tcpNodes.n))
	tcpNodes.Unlock()
	addr := netip.AddrFrom4([4]byte{127, 64 | b[1]&63, b[2], b[3]})
	ln, err := net.Listen("tcp4", net.JoinHostPort(addr.String(), "0"))
	if err != nil {
		t.Skipf("NOT TESTED: sessions over TCP, because this machine has no %s: %v", addr, err)
	}
	ln.Close()
	transport := ssmmp.TCP{LocalAddr: addr}
	return newSessionMesh(t, transport, transport, ":0", addr)
}

// overBoth runs a test over the in-memory network, in virtual time, and over
// TCP.
func overBoth(t *testing.T, f func(t *testing.T, s *sessionMesh)) {
	t.Parallel()
	t.Run("Mem", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) { f(t, memMesh(t)) })
	})
	t.Run("TCP", func(t *testing.T) {
		t.Parallel()
		f(t, tcpMesh(t))
	})
}

func TestSessionConn(t *testing.T) {
	t.Parallel()
	// Not in virtual time: nettest runs subtests, which a bubble may not.
	for name, mesh := range map[string]func(*testing.T) *sessionMesh{"Mem": memMesh, "TCP": tcpMesh} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := mesh(t)
			nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
				if c1, c2, err = s.pipe(); err != nil {
					return nil, nil, nil, err
				}
				return c1, c2, func() { c1.Close(); c2.Close() }, nil
			})
		})
	}
}

func TestSessionHalfClose(t *testing.T) {
	overBoth(t, func(t *testing.T, s *sessionMesh) {
		source, destination, err := s.pipe()
		if err != nil {
			t.Fatal(err)
		}
		for _, end := range []struct{ from, to net.Conn }{{source, destination}, {destination, source}} {
			if _, err := io.WriteString(end.from, "to the end"); err != nil {
				t.Fatal(err)
			}
			if err := end.from.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			// The other direction stays open until its own turn.
			if got, err := io.ReadAll(end.to); string(got) != "to the end" || err != nil {
				t.Errorf("read %q, %v; want all that was written and then the end", got, err)
			}
		}
		id := s.open(t) // both halves are closed, but neither end closed it yet
		source.Close()
		destination.Close()
		for ev := range s.manager.Events(t.Context(), 0) {
			if ev.Kind == ssmmp.EventSessionClosed && ev.Session == id {
				if ev.Status != ssmmp.StatusSessionClosed {
					t.Errorf("closed with %s; want 111", ev.Status)
				}
				break
			}
		}
	})
}

func TestSessionUseAfterClose(t *testing.T) {
	overBoth(t, func(t *testing.T, s *sessionMesh) {
		source, destination, err := s.pipe()
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []net.Conn{source, destination} {
			if err := c.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
			_, readErr := c.Read(make([]byte, 1))
			_, writeErr := c.Write(make([]byte, 1))
			for op, err := range map[string]error{
				"second Close": c.Close(), "Read": readErr, "Write": writeErr,
				"CloseWrite": c.(interface{ CloseWrite() error }).CloseWrite(), "SetDeadline": c.SetDeadline(time.Now()),
			} {
				if !errors.Is(err, net.ErrClosed) || errors.Is(err, ssmmp.ErrSessionClosed) {
					t.Errorf("%s after Close: %v; want net.ErrClosed alone", op, err)
				}
			}
		}
	})
}

// A session that the Manager closes tells both: that it is closed, and by whom.
func TestSessionClosedByManager(t *testing.T) {
	overBoth(t, func(t *testing.T, s *sessionMesh) {
		source, destination, err := s.pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer destination.Close()
		id := s.open(t)
		read := make(chan error, 1)
		go func() {
			_, err := source.Read(make([]byte, 1))
			read <- err
		}()
		if err := s.manager.CloseSession(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		_, writeErr := source.Write(make([]byte, 1))
		for op, err := range map[string]error{"Read that waited": <-read, "Write": writeErr} {
			if !errors.Is(err, net.ErrClosed) || !errors.Is(err, ssmmp.ErrSessionClosed) {
				t.Errorf("%s: %v; want net.ErrClosed and ErrSessionClosed", op, err)
			}
		}
		if _, err := destination.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("Read at the other end: %v; want EOF", err)
		}
	})
}

func TestSessionListener(t *testing.T) {
	overBoth(t, func(t *testing.T, s *sessionMesh) {
		if _, err := s.back.Listen("S9"); !errors.Is(err, ssmmp.ErrNotFound) {
			t.Errorf("Listen at a socket that is none: %v; want ErrNotFound", err)
		}
		accepted := make(chan error, 1)
		go func() {
			_, err := s.ln.Accept()
			accepted <- err
		}()
		if err := s.ln.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		if err := <-accepted; !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept that waited: %v; want net.ErrClosed", err)
		}
		if _, err := s.ln.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept after Close: %v; want net.ErrClosed", err)
		}
		if err := s.ln.Close(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("second Close: %v; want net.ErrClosed", err)
		}

		again, err := s.back.Listen("S")
		if err != nil {
			t.Fatalf("Listen again: %v", err)
		}
		go func() {
			_, err := again.Accept()
			accepted <- err
		}()
		s.back.Terminate()
		if err := <-accepted; !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept of an instance that leaves: %v; want net.ErrClosed", err)
		}
		if _, err := s.back.Listen("S"); !errors.Is(err, ssmmp.ErrDraining) {
			t.Errorf("Listen after leaving: %v; want ErrDraining", err)
		}
	})
}

// Many goroutines use sessions of one instance, and two each session.
func TestSessionConcurrency(t *testing.T) {
	overBoth(t, func(t *testing.T, s *sessionMesh) {
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				c, err := s.ln.Accept()
				if err != nil {
					return
				}
				wg.Go(func() {
					defer c.Close()
					io.Copy(c, c)
				})
			}
		})
		errs := make(chan error, 16)
		for n := range cap(errs) {
			go func() { errs <- echo(s.gateway, strings.Repeat(fmt.Sprint(n), 1<<16)) }()
		}
		for range cap(errs) {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		s.await(t, func(all []ssmmp.SessionStatus) bool { return len(all) == 0 })
		s.stop()
		wg.Wait()
	})
}

func echo(inst *ssmmp.Instance, text string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, err := inst.Dial(ctx, "P")
	if err != nil {
		return err
	}
	defer c.Close()
	go func() {
		io.WriteString(c, text)
		c.(interface{ CloseWrite() error }).CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err == nil && string(got) != text {
		err = fmt.Errorf("%d bytes came back, not the %d that were sent", len(got), len(text))
	}
	return err
}
