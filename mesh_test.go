package ssmmp

import (
	"bufio"
	"context"
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

	"github.com/hashicorp/go-hclog"
)

const (
	patience = 30 * time.Second // until a test over real connections that is stuck fails
	loopback = "127.0.0.1:0"    // where it listens
)

// A mesh is a Manager and its agents in one test, with services as Go
// functions, over whatever transport it is made with.
type mesh struct {
	t        testing.TB
	m        *Manager
	managers Transport
	address  string // of the Manager
	nodes    []*node
	stop     context.CancelFunc
	ctx      context.Context
	wg       sync.WaitGroup

	mu        sync.Mutex
	instances map[InstanceID]*Instance
}

type node struct {
	agent     *Agent
	addr      netip.Addr
	transport Transport
	stop      context.CancelFunc
	done      chan struct{}
}

// testLogger logs to standard error when SSMMP_TEST_LOG is set.
func testLogger(name string) hclog.Logger {
	if os.Getenv("SSMMP_TEST_LOG") == "" {
		return nil
	}
	return hclog.New(&hclog.LoggerOptions{Name: name, Level: hclog.Debug})
}

// newMemMesh starts a mesh over the in-memory network.
func newMemMesh(t testing.TB, cfg ManagerConfig, nodes int) *mesh {
	network := NewMemNetwork()
	host := func(addr string) *MemHost {
		h, err := network.Host(addr)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	s := &mesh{t: t, managers: host("10.0.0.100"), address: "10.0.0.100:55555", instances: map[InstanceID]*Instance{}}
	s.start(cfg)
	for n := range nodes {
		addr := fmt.Sprintf("10.0.0.%d", n+1)
		s.addNode(netip.MustParseAddr(addr), host(addr), "", s.repository(cfg.Graphs...))
	}
	return s
}

func (s *mesh) start(cfg ManagerConfig) {
	s.ctx, s.stop = context.WithCancel(context.Background())
	cfg.Transport, cfg.Address, cfg.FirstInstance = s.managers, s.address, 1
	if cfg.StormBrake == 0 {
		cfg.StormBrake = -1 // one agent of two is most of them
	}
	if cfg.Logger == nil {
		cfg.Logger = testLogger("manager")
	}
	m, err := NewManager(cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	s.m = m
	ln, err := s.managers.Listen(s.ctx, s.address)
	if err != nil {
		s.t.Fatal(err)
	}
	s.address = ln.Addr().String()
	s.wg.Go(func() { m.Serve(s.ctx, ln) })
}

// repository has every service of the graphs as the function serveTest.
func (s *mesh) repository(graphs ...*Graph) []RepositoryEntry {
	var repo []RepositoryEntry
	seen := map[string]bool{}
	for _, g := range graphs {
		for _, svc := range g.Services {
			if !seen[svc.Name] {
				seen[svc.Name] = true
				repo = append(repo, RepositoryEntry{Service: svc.Name})
			}
		}
	}
	return repo
}

// addNode starts an agent. Entries without a launcher get the test service.
func (s *mesh) addNode(addr netip.Addr, transport Transport, listen string, repo []RepositoryEntry) *node {
	for i := range repo {
		if repo[i].Launcher == nil {
			repo[i].Launcher = FuncLauncher(func(ctx context.Context, l Launch) error { return s.serveTest(ctx, l, transport) })
		}
	}
	return s.addAgent(AgentConfig{Manager: s.address, Address: addr, Listen: listen, Repository: repo, Transport: transport,
		Logger: testLogger("agent " + addr.String())})
}

func (s *mesh) addAgent(cfg AgentConfig) *node {
	a, err := NewAgent(cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(s.ctx)
	n := &node{agent: a, addr: cfg.Address, transport: cfg.Transport, stop: cancel, done: make(chan struct{})}
	s.nodes = append(s.nodes, n)
	s.wg.Go(func() {
		defer close(n.done)
		if err := a.Run(ctx); err != nil {
			s.t.Errorf("agent %s: %v", cfg.Address, err)
		}
	})
	return n
}

// close ends everything and waits for it.
func (s *mesh) close() {
	for _, n := range s.nodes {
		n.stop()
		<-n.done
	}
	s.stop()
	s.m.Close()
	s.wg.Wait()
}

// serveTest is a service: every socket answers lines. "who" gives its service
// and id, "via PLUG REST" asks over a plug and passes the answer on, "exit N"
// ends the instance, "hold" holds the line.
func (s *mesh) serveTest(ctx context.Context, l Launch, transport Transport) error {
	inst, err := JoinWith(ctx, JoinConfig{Launch: l, Transport: transport, Logger: testLogger(l.Service)})
	if err != nil {
		return err
	}
	defer inst.Close()
	s.mu.Lock()
	s.instances[l.ID] = inst
	s.mu.Unlock()
	exit := make(chan error, 1)
	for _, sock := range l.Sockets {
		ln, err := inst.Listen(sock.Socket)
		if err != nil {
			return err
		}
		go func() {
			for {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				go serveLines(ctx, inst, conn, exit)
			}
		}()
	}
	select {
	case <-inst.Done():
		return nil
	case err := <-exit:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func serveLines(ctx context.Context, inst *Instance, conn net.Conn, exit chan<- error) {
	defer conn.Close()
	in := bufio.NewScanner(conn)
	for in.Scan() {
		verb, rest, _ := strings.Cut(in.Text(), " ")
		switch verb {
		case "who":
			fmt.Fprintf(conn, "%s %d\n", inst.Service(), inst.ID())
		case "via":
			plug, rest, _ := strings.Cut(rest, " ")
			answer, err := ask(ctx, inst, plug, rest)
			if err != nil {
				answer = "error " + err.Error()
			}
			fmt.Fprintln(conn, answer)
		case "exit":
			exit <- errors.New(rest)
			return
		}
	}
}

// ask sends one line over a plug and returns the line that comes back.
func ask(ctx context.Context, inst *Instance, plug, line string) (string, error) {
	conn, err := inst.Dial(ctx, plug)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	return askConn(conn, line)
}

func askConn(conn net.Conn, line string) (string, error) {
	if _, err := fmt.Fprintln(conn, line); err != nil {
		return "", err
	}
	answer, err := bufio.NewReader(conn).ReadString('\n')
	if err == io.EOF && answer == "" {
		return "", io.ErrUnexpectedEOF
	}
	return strings.TrimSpace(answer), nil
}

func (s *mesh) instance(id InstanceID) *Instance {
	synctest.Wait() // it is known before its Join returns
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.instances[id]
}

// running returns the snapshot's instances of a service that run.
func (s *mesh) running(service string) []InstanceStatus {
	var all []InstanceStatus
	for _, i := range s.m.Snapshot().Instances {
		if i.Service == service && i.State == "running" {
			all = append(all, i)
		}
	}
	return all
}

func (s *mesh) deploy(graph string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, 20*time.Second)
	defer cancel()
	if err := s.m.Deploy(ctx, graph); err != nil {
		s.t.Fatal(err)
	}
}

// bubble runs a test of a mesh in virtual time.
func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, f)
}

// The nine-service graph from end to end: one line through four services, each
// started by the first dial to it.
func TestMeshOnDemand(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := nineGraph(t)
		s := newMemMesh(t, ManagerConfig{Graphs: []*Graph{g}}, 2)
		defer s.close()
		s.deploy(g.Name)
		if snap := s.m.Snapshot(); len(snap.Instances) != 1 {
			t.Fatalf("after Deploy: %+v, want the gateway alone", snap.Instances)
		}
		gw := s.m.Snapshot().Instances[0]
		conn, err := s.managers.Dial(t.Context(), netip.AddrPortFrom(gw.Node, gw.Sockets[0].Port).String())
		if err != nil {
			t.Fatal(err)
		}
		answer, err := askConn(conn, "via P1 via P4 via Pp1 who")
		if err != nil || !strings.HasPrefix(answer, "BaaS-1 ") {
			t.Fatalf("answer %q, %v", answer, err)
		}
		synctest.Wait()
		snap := s.m.Snapshot()
		if len(snap.Instances) != 4 || len(snap.Sessions) != 0 {
			t.Errorf("%d instances, %d sessions; want 4 and none", len(snap.Instances), len(snap.Sessions))
		}
		conn.Close()
	})
}
