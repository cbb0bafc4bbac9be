package ssmmp

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/go-hclog"
)

// kills is how often TestAgentKilled kills its agent.
var kills = flag.Int("kills", 20, "how often TestAgentKilled kills its agent")

// An agentStage is a Manager in this process with one agent in a process of its
// own, whose instances are processes too.
type agentStage struct {
	t     *testing.T
	m     *Manager
	setup agentSetup
	run   string // marks all processes
	leash net.Listener
	agent *exec.Cmd
	log   string // the agent's output
}

// randomLoopback returns an address that hardly another test has: the ports on
// it are free.
func randomLoopback() netip.Addr {
	return netip.AddrFrom4([4]byte{127, byte(64 + rand.N(64)), byte(rand.N(256)), byte(1 + rand.N(250))})
}

func newAgentStage(t *testing.T, cfg ManagerConfig) *agentStage {
	t.Helper()
	g, err := NewGraph("kill").
		Gateway("hub", FixedPorts{"S0": 9000}, Out{"P1", "P2"}).
		Regular("echo", In{"S1"}, Out{"P1"}).
		Regular("mute", In{"S1"}, Out{"P1"}).
		Storage("never", In{"S1"}).
		Edge("hub", "P1", "S1", "echo").
		Edge("hub", "P2", "S1", "mute").
		Edge("echo", "P1", "S1", "never").
		Edge("mute", "P1", "S1", "never").
		Build()
	if err != nil {
		t.Fatal(err)
	}
	cfg.Graphs, cfg.Transport, cfg.IdleAfter = []*Graph{g}, TCP{LocalAddr: randomLoopback()}, -1
	cfg.FirstPort, cfg.LastPort = 20000, 29999 // which no outgoing connection is given
	if cfg.Logger = testLogger("manager"); cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	m, err := NewManager(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := cfg.Transport.Listen(context.Background(), ":0")
	if err != nil {
		t.Skip("cannot listen on any address of the loopback: ", err)
	}
	go m.Serve(context.Background(), ln)
	s := &agentStage{t: t, m: m, run: uuid.NewString()}
	dir := t.TempDir()
	s.setup = agentSetup{Manager: ln.Addr().String(), Address: randomLoopback(), StateDir: filepath.Join(dir, "state"), Output: filepath.Join(dir, "output")}
	s.setup.Listen = net.JoinHostPort(s.setup.Address.String(), "0")
	s.log = filepath.Join(dir, "agent.log")
	if s.leash, err = net.Listen("tcp", loopback); err != nil {
		t.Fatal(err)
	}
	go func() {
		var held []net.Conn // until the test ends, and this process's descriptors with it
		for {
			c, err := s.leash.Accept()
			if err != nil {
				for _, c := range held {
					c.Close()
				}
				return
			}
			held = append(held, c)
		}
	}()
	t.Cleanup(func() {
		if s.agent != nil {
			s.kill()
		}
		if err := endMarked(runEnv + "=" + s.run); err != nil {
			t.Error(err)
		}
		s.leash.Close()
		m.Close()
		if t.Failed() {
			s.tell()
		}
	})
	return s
}

// tell logs what the processes wrote.
func (s *agentStage) tell() {
	files, _ := filepath.Glob(filepath.Join(s.setup.Output, "*.log"))
	for _, name := range append(files, s.log) {
		b, _ := os.ReadFile(name)
		if len(b) > 0 {
			s.t.Logf("%s:\n%s", filepath.Base(name), b[max(0, len(b)-8000):])
		}
	}
}

// start executes the agent.
func (s *agentStage) start() {
	s.t.Helper()
	path, err := os.Executable()
	if err != nil {
		s.t.Fatal(err)
	}
	setup, err := json.Marshal(s.setup)
	if err != nil {
		s.t.Fatal(err)
	}
	out, err := os.OpenFile(s.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer out.Close()
	s.agent = exec.Command(path)
	s.agent.Env = append(os.Environ(), roleEnv+"=agent", agentEnv+"="+string(setup), leashEnv+"="+s.leash.Addr().String(), runEnv+"="+s.run)
	s.agent.Stdout, s.agent.Stderr = out, out
	if err := s.agent.Start(); err != nil {
		s.t.Fatal(err)
	}
}

func (s *agentStage) kill() {
	s.agent.Process.Kill()
	s.agent.Wait()
	s.agent = nil
}

// until waits for a condition.
func (s *agentStage) until(what string, ok func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(4 * patience); !ok(); pause() {
		if time.Now().After(deadline) {
			s.t.Fatalf("still not: %s; %+v", what, s.m.Snapshot())
		}
	}
}

func pause() { <-time.After(5 * time.Millisecond) }

func (s *agentStage) deploy() {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 4*patience)
	defer cancel()
	if err := s.m.Deploy(ctx, "kill"); err != nil {
		s.t.Fatal(err)
	}
}

// running returns the ids of the instances that run, in their order.
func (s *agentStage) running(service string) []InstanceID {
	var ids []InstanceID
	for _, i := range s.m.Snapshot().Instances {
		if i.State == InstanceRunning && (service == "" || i.Service == service) {
			ids = append(ids, i.ID)
		}
	}
	return ids
}

// records reads what the agent keeps of its instances.
func (s *agentStage) records() []InstanceRecord {
	st := &agentState{dir: s.setup.StateDir}
	names, _ := filepath.Glob(filepath.Join(s.setup.StateDir, stateInstance+"*"))
	var all []InstanceRecord
	for _, name := range names {
		var r InstanceRecord
		if _, err := strconv.ParseInt(strings.TrimPrefix(filepath.Base(name), stateInstance), 10, 64); err != nil {
			continue // a record that is being written
		}
		if st.read(filepath.Base(name), &r) == nil { // else it is being replaced, or has gone
			all = append(all, r)
		}
	}
	return all
}

// events returns the events of a kind.
func (s *agentStage) events(kind EventKind) []Event {
	var all []Event
	last := s.m.Snapshot().Seq
	for ev := range s.m.Events(context.Background(), 0) {
		if ev.Kind == kind {
			all = append(all, ev)
		}
		if ev.Seq >= last {
			break
		}
	}
	return all
}

// registrations counts how often the agent registered.
func (s *agentStage) registrations() int { return len(s.events(EventAgentRegistered)) }

// A hub is the test's connection to the gateway.
type hub struct {
	t     *testing.T
	conn  net.Conn
	lines *bufio.Reader
}

func (s *agentStage) hub() *hub {
	s.t.Helper()
	h := &hub{t: s.t}
	s.until("the gateway listens", func() bool {
		var err error
		h.conn, err = net.Dial("tcp", netip.AddrPortFrom(s.setup.Address, 9000).String())
		return err == nil
	})
	s.t.Cleanup(func() { h.conn.Close() })
	h.lines = bufio.NewReader(h.conn)
	return h
}

func (h *hub) ask(line string) string {
	h.t.Helper()
	h.conn.SetDeadline(time.Now().Add(4 * patience))
	fmt.Fprintln(h.conn, line)
	answer, err := h.lines.ReadString('\n')
	if err != nil {
		h.t.Fatalf("the gateway is gone: %v", err)
	}
	return strings.TrimSpace(answer)
}

// least is how many numbers came back on every session.
func (h *hub) least() uint64 {
	n, err := strconv.ParseUint(h.ask("min"), 10, 64)
	if err != nil {
		h.t.Fatal(err)
	}
	return n
}

// An agent that is killed again and again, at any moment, is never missed: the
// same processes run, no session breaks or loses a byte, and to the Manager
// nothing has happened but that the agent came back.
func TestAgentKilled(t *testing.T) {
	t.Parallel()
	const instances = 50 // the gateway, one for each session, and one for probes
	n := *kills
	if testing.Short() {
		n = min(n, 5)
	}
	s := newAgentStage(t, ManagerConfig{SessionsPerInstance: 1, HealthPeriod: 2 * time.Second, HealthMisses: 1000, LostAfter: time.Hour})
	s.start()
	s.deploy()
	h := s.hub()
	for range instances - 2 {
		if err := h.ask("dial"); err != "<nil>" {
			t.Fatal(err)
		}
	}
	if err := h.ask("probe"); err != "<nil>" {
		t.Fatal(err)
	}
	sessions := func() []SessionStatus { return s.m.Snapshot().Sessions }
	s.until("the probe has closed", func() bool { return len(sessions()) == instances-2 })
	s.until("all is noted", func() bool {
		return !slices.ContainsFunc(s.records(), func(r InstanceRecord) bool { return !r.Ready || !r.Spoke })
	})
	before, records := s.m.Snapshot(), s.records()
	if len(before.Instances) != instances || len(records) != instances {
		t.Fatalf("%d instances, %d records", len(before.Instances), len(records))
	}

	for k := range n {
		seen := s.registrations()
		s.kill()
		least := h.least()
		s.until("the sessions go on without an agent", func() bool { return h.least() > least })
		s.start()
		switch k % 4 {
		case 0: // killed while it starts
			pause()
		case 1: // killed as soon as it is back
			s.until("the agent is back", func() bool { return s.registrations() > seen })
		default: // killed when all go on
			s.until("sessions open", func() bool { return h.ask("probe") == "<nil>" })
		}
	}
	s.until("sessions open", func() bool { return h.ask("probe") == "<nil>" })
	s.until("the probes have closed", func() bool { return len(sessions()) == instances-2 })

	for _, r := range records {
		if st, err := readStat(r.Process.PID); err != nil || !st.alive() || st.start != r.Process.Start {
			t.Errorf("instance %d of %s was process %+v, which is gone: %v", r.Launch.ID, r.Launch.Service, r.Process, err)
		}
	}
	after := s.m.Snapshot()
	if len(after.Instances) != len(before.Instances) {
		t.Fatalf("there are %d instances", len(after.Instances))
	}
	for n, i := range after.Instances {
		if was := before.Instances[n]; i.ID != was.ID || i.State != InstanceRunning || i.Sessions != was.Sessions {
			t.Errorf("instance %+v was %+v", i, was)
		}
	}
	if got := sessions(); !slices.Equal(got, before.Sessions) {
		t.Errorf("sessions %+v\nwere %+v", got, before.Sessions)
	}
	for _, ev := range s.events(EventInstanceEnded) {
		t.Errorf("%v", ev)
	}
	if got := len(s.events(EventInstanceRequested)); got != instances {
		t.Errorf("%d instances were requested", got)
	}
	for _, ev := range s.events(EventSessionClosed) {
		if slices.ContainsFunc(before.Sessions, func(b SessionStatus) bool { return b.ID == ev.Session }) {
			t.Errorf("%v", ev)
		}
	}
	t.Logf("%d kills, %d registrations, %d numbers on each session", n, s.registrations(), h.least())
}

// The end of an instance while its agent is dead is reported.
func TestAgentKilledInstanceEnds(t *testing.T) {
	t.Parallel()
	s := newAgentStage(t, ManagerConfig{SessionsPerInstance: 1, HealthMisses: 1000, LostAfter: time.Hour})
	s.start()
	s.deploy()
	h := s.hub()
	if err := h.ask("dial"); err != "<nil>" {
		t.Fatal(err)
	}
	if err := h.ask("probe"); err != "<nil>" {
		t.Fatal(err)
	}
	s.until("two echoes run, one with a session", func() bool {
		return len(s.running("echo")) == 2 && len(s.m.Snapshot().Sessions) == 1
	})
	s.until("all is noted", func() bool {
		return !slices.ContainsFunc(s.records(), func(r InstanceRecord) bool { return r.Process.PID == 0 || !r.Ready })
	})
	busy := s.m.Snapshot().Sessions[0].Destination
	victim := slices.DeleteFunc(s.running("echo"), func(id InstanceID) bool { return id == busy })[0]
	s.kill()
	for _, r := range s.records() {
		if r.Launch.ID == victim {
			syscall.Kill(r.Process.PID, syscall.SIGKILL)
			s.until("it has ended", func() bool { st, err := readStat(r.Process.PID); return err != nil || !st.alive() })
		}
	}
	s.start()
	s.until("its end is known", func() bool { return len(s.events(EventInstanceEnded)) == 1 })
	if ev := s.events(EventInstanceEnded)[0]; ev.Instance != victim || !strings.Contains(ev.Cause, "unknown") {
		t.Errorf("ended: %v", ev)
	}
	// Once the Manager has heard of it, nothing is kept of it.
	s.until("it is forgotten", func() bool { return len(s.records()) == 2 })
	s.kill()
	b, err := os.ReadFile(filepath.Join(s.setup.StateDir, stateEnded))
	if err != nil || string(b) != fmt.Sprintln(victim) {
		t.Errorf("ended: %q, %v", b, err)
	}
	s.start()
	s.until("sessions open", func() bool { return h.ask("probe") == "<nil>" })
	if got := s.events(EventInstanceEnded); len(got) != 1 {
		t.Errorf("ended: %v", got)
	}
}
