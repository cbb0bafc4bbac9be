package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/ssmmp/ssmmp"
)

//go:embed social.json
var graphJSON []byte

// deployTimeout is how long the API Gateway may take to run, and everything to
// end.
const deployTimeout = 30 * time.Second

// repositories says which services each of the two nodes can execute. The
// stateless ones stand on both; each storage service has one home.
var repositories = [2][]string{
	{"gateway", "register", "login", "posts", "last_10_posts", "file_transfer", "users_db"},
	{"register", "login", "posts", "last_10_posts", "file_transfer", "posts_db", "hd"},
}

// A deployment is a Manager and two agents in this process. The services that
// they execute are processes of their own.
type deployment struct {
	manager *ssmmp.Manager
	gateway string // where users connect, "host:port"
	nodes   []netip.Addr
	lock    net.Listener // keeps other meshes off these nodes

	mu   sync.Mutex
	pids map[ssmmp.InstanceID]int

	stop context.CancelFunc
	wg   sync.WaitGroup
	errs chan error // why the Manager or an agent ended on its own
}

// startDeployment starts the Manager and the agents, on the ports of the protocol
// where they are free.
func startDeployment(dataDir string, out io.Writer, log hclog.Logger) (_ *deployment, err error) {
	graph, err := ssmmp.ParseGraph(graphJSON)
	if err != nil {
		return nil, err
	}
	nodes, lock, err := takeNodes()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	port := freePort(nodes[0], graph.Services[0].Sockets[0].Port, out)
	graph.Services[0].Sockets[0].Port = port // of the gateway
	c := &deployment{
		nodes: nodes, lock: lock, gateway: netip.AddrPortFrom(nodes[0], port).String(),
		pids: map[ssmmp.InstanceID]int{}, errs: make(chan error, 3),
	}
	managerAddr := netip.AddrPortFrom(nodes[0], freePort(nodes[0], ssmmp.ManagerPort, out)).String()
	c.manager, err = ssmmp.NewManager(ssmmp.ManagerConfig{
		Graphs: []*ssmmp.Graph{graph}, FirstInstance: 1, Address: managerAddr, Transport: ssmmp.TCP{LocalAddr: nodes[0]}, Logger: log.Named("manager"),
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	c.stop = cancel
	c.wg.Go(func() {
		if err := c.manager.ListenAndServe(ctx); !errors.Is(err, ssmmp.ErrClosed) {
			c.errs <- err
		}
	})
	for n, addr := range nodes {
		var repository []ssmmp.RepositoryEntry
		for set := range repositories {
			if set%len(nodes) != n {
				continue
			}
			for _, name := range repositories[set] {
				if !slices.ContainsFunc(repository, func(e ssmmp.RepositoryEntry) bool { return e.Service == name }) {
					repository = append(repository, ssmmp.RepositoryEntry{Service: name, Launcher: c.launcher(dataDir)})
				}
			}
		}
		agent, err := ssmmp.NewAgent(ssmmp.AgentConfig{
			Manager: managerAddr, Address: addr, Repository: repository, Logger: log.Named("agent"),
			Listen: netip.AddrPortFrom(addr, freePort(addr, ssmmp.AgentPort, out)).String(),
		})
		if err != nil {
			c.close()
			return nil, err
		}
		c.wg.Go(func() {
			if err := agent.Run(ctx); err != nil {
				c.errs <- err
			}
		})
	}
	return c, nil
}

// close stops the agents, which shut down what still runs, and the Manager.
func (c *deployment) close() {
	c.stop()
	c.wg.Wait()
	c.manager.Close()
	c.lock.Close()
}

// lockPort is held on the first node for as long as a mesh of this program is
// there: two of them on the same addresses would give out the same ports.
const lockPort = ssmmp.FirstSocketPort - 1

// takeNodes returns the addresses of two nodes that no other mesh of this
// program has, and what keeps it so: 127.0.0.1 and .2, or else .3 and .4 and so
// on, where every such address exists, as on Linux; elsewhere 127.0.0.1 and ::1.
func takeNodes() ([]netip.Addr, net.Listener, error) {
	var taken error
	for n := byte(1); n < 32; n += 2 {
		nodes := []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, n}), netip.AddrFrom4([4]byte{127, 0, 0, n + 1})}
		if !free(nodes[1], 0) {
			if n > 1 {
				break
			}
			if nodes = nodes[:1]; free(netip.IPv6Loopback(), 0) {
				nodes = append(nodes, netip.IPv6Loopback())
			}
		}
		lock, err := net.Listen("tcp", netip.AddrPortFrom(nodes[0], lockPort).String())
		if err == nil {
			return nodes, lock, nil
		}
		taken = err
	}
	return nil, nil, fmt.Errorf("other meshes run on the loopback addresses: %w", taken)
}

// free tells whether a port of an address can be listened on.
func free(addr netip.Addr, port uint16) bool {
	ln, err := net.Listen("tcp", netip.AddrPortFrom(addr, port).String())
	if err != nil {
		return false
	}
	ln.Close()
	return true
}

// freePort returns want, or another port when that one is taken.
func freePort(addr netip.Addr, want uint16, out io.Writer) uint16 {
	if free(addr, want) {
		return want
	}
	ln, err := net.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
	if err != nil {
		return want // whoever listens there will say what is wrong
	}
	defer ln.Close()
	port := uint16(ln.Addr().(*net.TCPAddr).Port)
	fmt.Fprintf(out, "port %d of %s is taken, so %d is used\n", want, addr, port)
	return port
}

// launcher executes this program again as a service, and remembers its process
// id.
func (c *deployment) launcher(dataDir string) ssmmp.Launcher {
	self, err := os.Executable()
	if err != nil {
		self = os.Args[0]
	}
	return &rememberingLauncher{c, ssmmp.CommandLauncher{
		Path: self, Args: []string{"service", "-data", dataDir}, OutputDir: filepath.Join(dataDir, "output"),
	}}
}

type rememberingLauncher struct {
	c *deployment
	ssmmp.CommandLauncher
}

func (l *rememberingLauncher) Launch(ctx context.Context, what ssmmp.Launch) (ssmmp.Process, error) {
	p, err := l.CommandLauncher.Launch(ctx, what)
	if err == nil {
		l.c.mu.Lock()
		l.c.pids[what.ID] = p.PID()
		l.c.mu.Unlock()
	}
	return p, err
}

// pid returns the process id of an instance.
func (c *deployment) pid(id ssmmp.InstanceID) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pids[id]
}

// left returns the processes of instances that still run.
func (c *deployment) left() []int {
	c.mu.Lock()
	defer c.mu.Unlock()
	var pids []int
	for _, pid := range c.pids {
		// Signal 0 asks only whether there is somebody to get it.
		if p, err := os.FindProcess(pid); err == nil && p.Signal(syscall.Signal(0)) == nil {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids
}

// instance returns a running instance of a service.
func (c *deployment) instance(service string) (ssmmp.InstanceStatus, error) {
	for _, i := range c.manager.Snapshot().Instances {
		if i.Service == service && i.State == ssmmp.InstanceRunning {
			return i, nil
		}
	}
	return ssmmp.InstanceStatus{}, fmt.Errorf("no instance of %s runs", service)
}

// narrate prints what comes to life and what ends, until ctx ends or the
// Manager is closed.
func (c *deployment) narrate(ctx context.Context, say func(format string, args ...any)) {
	for ev := range c.manager.Events(ctx, 0) {
		switch ev.Kind {
		case ssmmp.EventAgentRegistered:
			say("node %s registered", ev.Node)
		case ssmmp.EventAgentLost, ssmmp.EventAgentRefused:
			say("%s", ev)
		case ssmmp.EventInstanceRequested:
			say("%s %d is started on %s%s (%s)", ev.Service, ev.Instance, ev.Node, portsOf(ev.Sockets), ev.Cause)
		case ssmmp.EventInstanceReady:
			say("%s %d is ready, pid %d", ev.Service, ev.Instance, c.pid(ev.Instance))
		case ssmmp.EventInstanceEnded:
			say("%s %d ended (%s)", ev.Service, ev.Instance, ev.Cause)
		}
	}
}

func portsOf(sockets []ssmmp.SocketPort) string {
	s := ""
	for _, p := range sockets {
		s += ", port " + strconv.Itoa(int(p.Port))
	}
	return s
}

// serveInstance is the main function of every service: the agent executed it,
// with its own arguments last on the command line.
func serveInstance(ctx context.Context, dataDir string) error {
	inst, err := ssmmp.Join(ctx)
	if err != nil {
		return err
	}
	// A parent that was killed cannot end its services: they see it go.
	go func() {
		for parent := os.Getppid(); os.Getppid() == parent; {
			time.Sleep(time.Second)
		}
		inst.Terminate()
	}()
	serving, stop := context.WithCancel(ctx)
	defer stop()
	served := make(chan error, 1)
	go func() { served <- runService(serving, inst.Service(), inst, dataDir) }()
	// What is under way ends before the agent is told that all is done.
	inst.OnDrain(func(ctx context.Context) {
		stop()
		select {
		case err := <-served:
			served <- err
		case <-ctx.Done():
		}
	})
	select {
	case err := <-served:
		if err == nil {
			inst.Close()
		}
		return err // and the exit code tells the agent that it failed
	case <-inst.Done():
		return inst.Close()
	}
}
