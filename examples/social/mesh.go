package main

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
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
	earlier earlier      // with which it goes on
	told    *narrator

	mu   sync.Mutex
	pids map[ssmmp.InstanceID]int

	stop context.CancelFunc
	wg   sync.WaitGroup
	errs chan error // why the Manager or an agent ended on its own
}

// startDeployment starts the Manager and the agents, on the ports of the protocol
// where they are free. With keep they have their state in dataDir, and go on with
// what they find there.
func startDeployment(ctx context.Context, dataDir string, keep bool, told *narrator, log hclog.Logger) (_ *deployment, err error) {
	c := &deployment{told: told, pids: map[ssmmp.InstanceID]int{}, errs: make(chan error, 3)}
	cfg := ssmmp.ManagerConfig{FirstInstance: 1, Logger: log.Named("manager")}
	if keep {
		if c.earlier, err = readEarlier(ctx, dataDir); err != nil {
			return nil, err
		}
		cfg.Store = openStore(dataDir)
	}
	if c.nodes, c.lock, err = takeNodes(c.earlier.node); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			c.lock.Close()
		}
	}()
	graph := c.earlier.graph
	if graph == nil {
		if graph, err = ssmmp.ParseGraph(graphJSON); err != nil {
			return nil, err
		}
		gateway := &graph.Services[0].Sockets[0]
		gateway.Port = freePort(c.nodes[0], gateway.Port, told.out)
	}
	c.gateway = netip.AddrPortFrom(c.nodes[0], graph.Services[0].Sockets[0].Port).String()
	cfg.Graphs = []*ssmmp.Graph{graph}
	cfg.Address = netip.AddrPortFrom(c.nodes[0], freePort(c.nodes[0], ssmmp.ManagerPort, told.out)).String()
	cfg.Transport = ssmmp.TCP{LocalAddr: c.nodes[0]}
	if c.manager, err = ssmmp.NewManager(cfg); err != nil {
		return nil, err
	}
	running, cancel := context.WithCancel(context.Background())
	c.stop = cancel
	c.wg.Go(func() {
		if err := c.manager.ListenAndServe(running); !errors.Is(err, ssmmp.ErrClosed) {
			c.errs <- err
		}
	})
	for n, addr := range c.nodes {
		var repository []ssmmp.RepositoryEntry
		for set := range repositories {
			if set%len(c.nodes) != n {
				continue
			}
			for _, name := range repositories[set] {
				if !slices.ContainsFunc(repository, func(e ssmmp.RepositoryEntry) bool { return e.Service == name }) {
					repository = append(repository, ssmmp.RepositoryEntry{Service: name, Launcher: c.launcher(dataDir, keep)})
				}
			}
		}
		acfg := ssmmp.AgentConfig{Manager: cfg.Address, Address: addr, Repository: repository, Logger: log.Named("agent")}
		if keep {
			acfg.StateDir = agentDir(dataDir, n)
		}
		port := uint16(0) // where its instances look for it
		if c.earlier.graph == nil {
			port = freePort(addr, ssmmp.AgentPort, told.out)
		}
		acfg.Listen = netip.AddrPortFrom(addr, port).String()
		agent, err := ssmmp.NewAgent(acfg)
		if err != nil {
			return nil, errors.Join(err, c.close())
		}
		c.wg.Go(func() {
			if err := agent.Run(running); err != nil {
				c.errs <- err
			}
		})
	}
	return c, nil
}

// close stops the agents, which shut down what still runs, and the Manager.
func (c *deployment) close() error {
	c.stop()
	c.wg.Wait()
	c.lock.Close()
	return c.manager.Close()
}

// lockPort is held on the first node for as long as a mesh of this program is
// there: two of them on the same addresses would give out the same ports.
const lockPort = ssmmp.FirstSocketPort - 1

// loopback begins the addresses of nodes. Tests have their own.
var loopback = [3]byte{127, 0, 0}

func node(n byte) netip.Addr {
	return netip.AddrFrom4([4]byte{loopback[0], loopback[1], loopback[2], n})
}

// takeNodes returns the addresses of two nodes that no other mesh of this
// program has, and what keeps it so: 127.0.0.1 and .2, or else .3 and .4 and so
// on, where every such address exists, as on Linux; elsewhere 127.0.0.1 and ::1.
// They are those of an earlier mesh if one of its nodes is given.
func takeNodes(earlier netip.Addr) ([]netip.Addr, net.Listener, error) {
	var taken error
	first, last := byte(1), byte(31)
	if earlier.Is4() {
		first = (earlier.As4()[3]-1)&^1 + 1
		last = first
	}
	for n := first; n <= last; n += 2 {
		nodes := []netip.Addr{node(n), node(n + 1)}
		if !free(nodes[1], 0) {
			if n > 1 {
				taken = cmp.Or(taken, fmt.Errorf("%s is no address here", nodes[1]))
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
	if earlier.IsValid() {
		return nil, nil, fmt.Errorf("another mesh runs on the addresses of this one: %w", taken)
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
// id. What is kept outlives this process where it can be found again.
func (c *deployment) launcher(dataDir string, keep bool) ssmmp.Launcher {
	self, err := os.Executable()
	if err != nil {
		self = os.Args[0]
	}
	args := []string{"service", "-data", dataDir}
	if keep && runtime.GOOS == "linux" {
		args = append(args, "-outlive")
	}
	return &rememberingLauncher{c, ssmmp.CommandLauncher{
		Path: self, Args: args, OutputDir: filepath.Join(dataDir, "output"),
	}}
}

type rememberingLauncher struct {
	c *deployment
	ssmmp.CommandLauncher
}

func (l *rememberingLauncher) Launch(ctx context.Context, what ssmmp.Launch) (ssmmp.Process, error) {
	p, err := l.CommandLauncher.Launch(ctx, what)
	if err == nil {
		l.c.remember(what.ID, p)
	}
	return p, err
}

func (l *rememberingLauncher) Reattach(ctx context.Context, what ssmmp.Launch, id ssmmp.ProcessIdentity) (ssmmp.Process, error) {
	p, err := l.CommandLauncher.Reattach(ctx, what, id)
	if err == nil {
		l.c.remember(what.ID, p)
		l.c.told.say("mesh", "%s %d still runs, pid %d", what.Service, what.ID, p.PID())
	}
	return p, err
}

func (c *deployment) remember(id ssmmp.InstanceID, p ssmmp.Process) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pids[id] = p.PID()
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
func (c *deployment) narrate(ctx context.Context) {
	say := func(format string, args ...any) { c.told.say("mesh", format, args...) }
	for ev := range c.manager.Events(ctx, c.earlier.event) {
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
func serveInstance(ctx context.Context, dataDir string, outlive bool) error {
	parent := os.Getppid()
	inst, err := ssmmp.Join(ctx)
	if err != nil {
		return err
	}
	if !outlive {
		// A parent that was killed cannot end its services: they see it go.
		go func() {
			for os.Getppid() == parent {
				time.Sleep(time.Second)
			}
			inst.Terminate()
		}()
	}
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
