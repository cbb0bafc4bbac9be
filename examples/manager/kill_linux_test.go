package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/ssmmp/ssmmp"
	"github.com/ssmmp/ssmmp/examples/internal/program"
)

var (
	kills   = flag.Int("kills", 20, "how often TestManagerKilled kills the Manager")
	callSet = flag.Bool("calls", false, "have TestManagerKilledAtCalls try every one, and not a few of them")
)

// The test binary is the program as well.
func TestMain(m *testing.M) {
	if os.Getenv("SSMMP_TEST_MANAGER") != "" {
		program.Main("manager", run)
		return
	}
	os.Exit(m.Run())
}

const patience = 60 * time.Second

// A rig is a Manager in a process of its own, with a store, and an agent with
// instances in this one. Its clients note what was acknowledged to them.
type rig struct {
	t       *testing.T
	dir     string
	data    string // the Manager's directory
	graph   string
	address string // where the Manager listens
	log     lockedBuffer
	cmd     *exec.Cmd
	stderr  *bytes.Buffer

	stop context.CancelFunc
	wg   sync.WaitGroup

	mu       sync.Mutex
	launched map[ssmmp.InstanceID]int
	dialled  map[string]int // sessions that were granted and opened, by instance and plug port
	closed   map[string]int
	open     map[string]net.Conn
	progress int      // dials that succeeded
	manager  net.Conn // of the agent
}

// A leadingTransport is an agent's, which finds the Manager where the rig says.
type leadingTransport struct {
	ssmmp.TCP
	r *rig
}

func (l leadingTransport) Dial(ctx context.Context, addr string) (net.Conn, error) {
	if addr != "manager:1" {
		return l.TCP.Dial(ctx, addr)
	}
	l.r.mu.Lock()
	addr = l.r.address
	l.r.mu.Unlock()
	conn, err := l.TCP.Dial(ctx, addr)
	l.r.mu.Lock()
	l.r.manager = conn
	l.r.mu.Unlock()
	return conn, err
}

// lead has the agent find the Manager at another address.
func (r *rig) lead(address string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.address = address
	if r.manager != nil {
		r.manager.Close()
	}
}

// A lockedBuffer is what an agent logs.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newRig(t *testing.T) *rig {
	// An address of its own: the ports of instances are fixed.
	node := netip.AddrFrom4([4]byte{127, byte(16 + rand.IntN(200)), byte(rand.IntN(256)), byte(1 + rand.IntN(254))})
	r := &rig{t: t, dir: t.TempDir(), launched: map[ssmmp.InstanceID]int{}, dialled: map[string]int{}, closed: map[string]int{}, open: map[string]net.Conn{}}
	r.data = filepath.Join(r.dir, "data")
	r.address = netip.AddrPortFrom(node, 55555).String()
	g, err := ssmmp.NewGraph("killed").
		Gateway("front", ssmmp.FixedPorts{"S0": 8080}, ssmmp.Out{"P1"}).
		Storage("greeter", ssmmp.In{"S1"}).
		Edge("front", "P1", "S1", "greeter").
		Build()
	if err != nil {
		t.Fatal(err)
	}
	b, err := g.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	r.graph = filepath.Join(r.dir, "graph.json")
	if err := os.WriteFile(r.graph, b, 0o600); err != nil {
		t.Fatal(err)
	}
	tcp := ssmmp.TCP{LocalAddr: node}
	a, err := ssmmp.NewAgent(ssmmp.AgentConfig{Manager: "manager:1", Address: node, Transport: leadingTransport{tcp, r}, Logger: hclog.New(&hclog.LoggerOptions{Output: &r.log}), Repository: []ssmmp.RepositoryEntry{
		{Service: "front", Launcher: ssmmp.FuncLauncher(func(ctx context.Context, l ssmmp.Launch) error { return r.front(ctx, l, tcp) })},
		{Service: "greeter", Launcher: ssmmp.FuncLauncher(func(ctx context.Context, l ssmmp.Launch) error { return r.greeter(ctx, l, tcp) })},
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	r.stop = stop
	r.wg.Go(func() {
		if err := a.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		r.kill()
		stop()
		r.wg.Wait()
	})
	return r
}

func (r *rig) join(ctx context.Context, l ssmmp.Launch, tcp ssmmp.TCP) (*ssmmp.Instance, error) {
	r.mu.Lock()
	r.launched[l.ID]++
	r.mu.Unlock()
	return ssmmp.JoinWith(ctx, ssmmp.JoinConfig{Launch: l, Transport: tcp, IdleTimeout: -1})
}

func (r *rig) front(ctx context.Context, l ssmmp.Launch, tcp ssmmp.TCP) error {
	inst, err := r.join(ctx, l, tcp)
	if err != nil {
		return err
	}
	defer inst.Close()
	for range 4 {
		go r.client(ctx, inst)
	}
	<-ctx.Done()
	return nil
}

func (r *rig) greeter(ctx context.Context, l ssmmp.Launch, tcp ssmmp.TCP) error {
	inst, err := r.join(ctx, l, tcp)
	if err != nil {
		return err
	}
	defer inst.Close()
	defer context.AfterFunc(ctx, inst.Terminate)()
	ln, err := inst.Listen("S1")
	if err != nil {
		return err
	}
	for {
		c, err := ln.Accept()
		if err != nil {
			return nil
		}
		go func() { defer c.Close(); io.Copy(c, c) }()
	}
}

// client opens sessions and closes most of them, and notes both.
func (r *rig) client(ctx context.Context, inst *ssmmp.Instance) {
	for n := 0; ctx.Err() == nil; n++ {
		c, err := inst.Dial(ctx, "P1")
		if err != nil {
			pause(ctx, 20*time.Millisecond)
			continue
		}
		if _, err := io.WriteString(c, "?"); err == nil {
			io.ReadFull(c, make([]byte, 1)) // an answer, or the session was closed again
		}
		key := fmt.Sprintf("%d:%d", inst.ID(), c.LocalAddr().(*net.TCPAddr).Port)
		r.mu.Lock()
		r.dialled[key]++
		r.progress++
		keep := n%16 == 0 && len(r.open) < 50
		if keep {
			r.open[key] = c
		}
		r.mu.Unlock()
		if !keep {
			c.Close()
			r.mu.Lock()
			r.closed[key]++
			r.mu.Unlock()
		}
		pause(ctx, time.Millisecond)
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// start starts the Manager's process.
func (r *rig) start(prefix ...string) {
	self, err := os.Executable()
	if err != nil {
		r.t.Fatal(err)
	}
	args := append(prefix, self, "-graph", r.graph, "-deploy", "killed", "-data", r.data, "-listen", r.address, "-log-level", "warn")
	r.cmd, r.stderr = exec.Command(args[0], args[1:]...), new(bytes.Buffer)
	r.cmd.Env = append(os.Environ(), "SSMMP_TEST_MANAGER=1")
	r.cmd.Stderr = r.stderr
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := r.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
}

// kill ends the Manager's process as a crash does.
func (r *rig) kill() {
	if r.cmd != nil {
		syscall.Kill(-r.cmd.Process.Pid, syscall.SIGKILL)
		r.cmd.Wait()
		r.cmd = nil
	}
}

// work waits until some more sessions were opened.
func (r *rig) work(dials int) {
	r.t.Helper()
	r.mu.Lock()
	until := r.progress + dials
	r.mu.Unlock()
	r.wait("sessions are opened", func() error {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.progress < until {
			return fmt.Errorf("%d of %d", dials-(until-r.progress), dials)
		}
		return nil
	})
}

func (r *rig) wait(what string, f func() error) {
	r.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			r.kill() // and so it says no more
			r.t.Fatalf("%s: not within %v: %v\nthe Manager says:\n%s", what, patience, err, r.stderr)
		}
		pause(context.Background(), 5*time.Millisecond)
	}
}

// acknowledged returns what is so far: work goes on while the store is read.
func (r *rig) acknowledged() (dialled, closed map[string]int, open []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.dialled), maps.Clone(r.closed), slices.Collect(maps.Keys(r.open))
}

// compare compares the history and the state with what was acknowledged.
func (r *rig) compare(dialled, wasClosed map[string]int, open []string) error {
	store := openStore(r.data)
	defer store.Close()
	opened, closed, first := map[string]int{}, map[string]int{}, map[string]ssmmp.InstanceID{}
	deployed := 0
	last := uint64(0)
	for ev, err := range store.Query(context.Background(), ssmmp.EventQuery{}) {
		if err != nil {
			return err
		}
		if ev.Seq != last+1 {
			return fmt.Errorf("event %d after %d", ev.Seq, last)
		}
		last = ev.Seq
		key := fmt.Sprintf("%d:%d", ev.Source, ev.PlugPort)
		switch ev.Kind {
		case ssmmp.EventGraphDeployed:
			deployed++
		case ssmmp.EventSessionOpened:
			opened[key]++
		case ssmmp.EventSessionClosed:
			if ev.PlugPort != 0 {
				closed[key]++
			}
		case ssmmp.EventInstanceRequested:
			if id := first[ev.Service]; id != 0 {
				return fmt.Errorf("%s was executed as %d and again as %d: %s", ev.Service, id, ev.Instance, ev.Cause)
			}
			first[ev.Service] = ev.Instance
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, n := range dialled {
		if opened[key] < n {
			return fmt.Errorf("session %s was acknowledged %d times, and is %d times in the history", key, n, opened[key])
		}
	}
	for key, n := range wasClosed {
		if closed[key] < n {
			return fmt.Errorf("session %s was closed %d times, and is %d times in the history", key, n, closed[key])
		}
	}
	for id, n := range r.launched {
		if n != 1 {
			return fmt.Errorf("instance %d was executed %d times", id, n)
		}
	}
	if deployed != 1 || len(r.launched) != 2 {
		return fmt.Errorf("deployed %d times, %d instances executed", deployed, len(r.launched))
	}
	s, err := ssmmp.StateAt(context.Background(), store, 0)
	if err != nil {
		return err
	}
	live := map[string]bool{}
	for _, x := range s.Sessions {
		live[fmt.Sprintf("%d:%d", x.Source, x.PlugPort)] = true
	}
	for _, key := range open {
		if !live[key] {
			return fmt.Errorf("session %s is open and not in the state", key)
		}
	}
	return nil
}

// check waits until what was acknowledged is in the store, and has the sessions
// that were open all the time carry something.
func (r *rig) check() {
	r.t.Helper()
	dialled, closed, open := r.acknowledged()
	r.wait("all that was acknowledged is in the store", func() error { return r.compare(dialled, closed, open) })
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, c := range r.open {
		c.SetDeadline(time.Now().Add(patience))
		_, err := io.WriteString(c, "!")
		if err == nil {
			_, err = io.ReadFull(c, make([]byte, 1))
		}
		if err != nil {
			r.t.Errorf("session %s, which never closed: %v", key, err)
		}
	}
	if len(r.open) == 0 {
		r.t.Error("no session stayed open")
	}
}

// The Manager is killed again and again under load. Nothing that it acknowledged
// is lost, nothing is executed twice, and no session breaks.
func TestManagerKilled(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	n := *kills
	if testing.Short() {
		n = 3
	}
	for range n {
		r.start()
		r.work(1 + rand.IntN(60))
		r.kill()
	}
	r.start()
	r.work(20)
	r.check()
	r.mu.Lock()
	defer r.mu.Unlock()
	t.Logf("killed %d times, %d sessions acknowledged", n, r.progress)
}

// The Manager is killed at one of its calls that write, to the store or to agents,
// and each time at a later one. The next one always goes on.
func TestManagerKilledAtCalls(t *testing.T) {
	t.Parallel()
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("strace is not installed: ", err)
	}
	if out, err := exec.Command(strace, "-f", "-o", os.DevNull, "true").CombinedOutput(); err != nil {
		t.Skipf("strace does not work here: %v: %s", err, out)
	}
	step := 9
	if *callSet {
		step = 1
	}
	// What is counted are the calls of one kind by one thread: the Manager is
	// killed at the at-th of those that get there first, which differs from run
	// to run. Under load some always do.
	const calls = "pwrite64,write,fdatasync,fsync,ftruncate,unlink,unlinkat,openat"
	chosen, killed := 0, 0
	r := newRig(t)
	for at := 1; at < 120; at += step {
		chosen++
		inject := fmt.Sprintf("%s:signal=KILL:when=%d", calls, at)
		r.start(strace, "-f", "-qq", "-o", os.DevNull, "-e", "trace="+calls, "-e", "inject="+inject)
		done := make(chan error, 1)
		cmd := r.cmd
		go func() { done <- cmd.Wait() }()
		select {
		case err := <-done:
			// strace ends as the Manager did.
			if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !status.Signaled() || status.Signal() != syscall.SIGKILL {
				r.cmd = nil
				t.Fatalf("call %d: it was not killed, but ended: %v\n%s", at, err, r.stderr)
			}
			killed++
		case <-time.After(patience):
			t.Logf("call %d: no thread made so many of a kind within %v", at, patience)
			syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			<-done
		}
		r.cmd = nil
		r.start()
		r.work(3)
		r.kill()
	}
	if killed < chosen-chosen/10 {
		t.Fatalf("it was killed at %d calls, of %d that were chosen", killed, chosen)
	}
	r.start()
	r.work(3)
	r.check()
	r.mu.Lock()
	defer r.mu.Unlock()
	t.Logf("killed at %d of %d calls, %d sessions acknowledged", killed, chosen, r.progress)
}

// A Manager that is stopped while another one goes on from a copy of its data,
// elsewhere, has nothing to say when it wakes up: agents know of a greater epoch.
func TestManagerWakesUp(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.start()
	r.work(50)
	old, oldAddress, oldData := r.cmd, r.address, r.data
	defer func() {
		syscall.Kill(-old.Process.Pid, syscall.SIGKILL)
		old.Wait()
	}()
	syscall.Kill(-old.Process.Pid, syscall.SIGSTOP)
	r.cmd = nil
	r.data = filepath.Join(r.dir, "copy")
	if err := os.Mkdir(r.data, 0o700); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(oldData)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if strings.HasSuffix(f.Name(), "-shm") {
			continue // it is only memory that processes share
		}
		b, err := os.ReadFile(filepath.Join(oldData, f.Name()))
		if err == nil {
			err = os.WriteFile(filepath.Join(r.data, f.Name()), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	host, _, _ := net.SplitHostPort(oldAddress)
	newAddress := net.JoinHostPort(host, "55557")
	r.lead(newAddress)
	r.start()
	r.work(50)

	// The old one wakes up, and the agent is led to it.
	syscall.Kill(-old.Process.Pid, syscall.SIGCONT)
	r.lead(oldAddress)
	r.wait("the agent refuses the old Manager", func() error {
		if !strings.Contains(r.log.String(), "a Manager of epoch 1 is not obeyed") {
			return errors.New(r.log.String())
		}
		return nil
	})
	r.lead(newAddress)
	r.work(50)
	r.check()
}

// What a person asks of the history.
func TestHistory(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.start()
	r.work(20)
	r.check()
	if err := r.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := r.cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v\n%s", err, r.stderr)
	}
	r.cmd = nil
	ask := func(args ...string) (string, error) {
		var out bytes.Buffer
		err := history(t.Context(), append([]string{"-data", r.data}, args...), &out)
		return out.String(), err
	}
	for _, tt := range []struct {
		args string
		has  string
		not  string
	}{
		{"", "graph deployed killed: operator", ""},
		{"-kind|instance requested|-service|greeter", "session_request of front", "instance requested front"},
		{"-limit|1", "manager started", "graph deployed"},
		{"-session|1.1", "session opened 1.1", "instance"},
		{"-to|2001-01-01", "", "manager"},
		{"-from|1h|-kind|session closed|-limit|2", "session closed", "session opened"},
		{"-state", "instance", "lost"},
		{"-session|4294967297", "session opened 1.1", "instance"},
		{"-state|-before|2", "after event 1", "instance"},
		{"-state|-before|1", "after event 0", "graph"},
		{"-state|-before|3|-to|0s", "after event 2", "instance"},
		{"-state|-to|0s", "graph", ""},
	} {
		out, err := ask(strings.Split(strings.Trim(tt.args, "|"), "|")[:strings.Count(tt.args, "|")+min(1, len(tt.args))]...)
		if err != nil || !strings.Contains(out, tt.has) || tt.not != "" && strings.Contains(out, tt.not) {
			t.Errorf("history %s: %v\n%s", tt.args, err, out)
		}
	}
	for _, bad := range []string{"-kind|x", "-node|x", "-session|x", "-from|x", "-before|x", "rest", "-state|-to|2001-01-01",
		"-session|1", "-session|1.", "-session|0", "-instance|0", "-limit|0", "-limit|-1", "-state|-service|front", "-state|-before|2|-to|2001-01-01", "-why|0", "-why|7"} {
		if out, err := ask(strings.Split(bad, "|")...); err == nil {
			t.Errorf("history %s: no error, but\n%s", bad, out)
		}
	}
	out, err := ask("-kind", "instance requested", "-service", "greeter", "-limit", "1")
	if err != nil {
		t.Fatal(err)
	}
	greeter := strings.Fields(out)[5]
	out, err = ask("-why", greeter)
	if lines := strings.Split(out, "\n"); err != nil || len(lines) < 4 || !strings.Contains(lines[0], "started: event") || !strings.Contains(lines[0], "greeter "+greeter) ||
		!strings.Contains(lines[1], "follows from event") || !strings.Contains(lines[1], "requested front") || !strings.Contains(lines[2], "graph deployed") {
		t.Errorf("why greeter %s runs: %v\n%s", greeter, err, out)
	}
	if err := history(t.Context(), []string{"-data", t.TempDir()}, io.Discard); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("history of an empty directory: %v", err)
	}
}
