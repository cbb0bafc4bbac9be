package ssmmp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/hashicorp/go-hclog"
)

// record waits until an instance of a service is noted as ok wants it, and
// returns what is noted.
func (s *agentStage) record(service string, ok func(InstanceRecord) bool) InstanceRecord {
	s.t.Helper()
	var found InstanceRecord
	s.until("noted: "+service, func() bool {
		for _, r := range s.records() {
			if r.Launch.Service == service && ok(r) {
				found = r
				return true
			}
		}
		return false
	})
	return found
}

func (s *agentStage) alive(p ProcessIdentity) bool {
	st, err := readStat(p.PID)
	return err == nil && st.alive() && st.start == p.Start
}

// A program that never says hello is as ready after its agent died as before.
func TestAgentKilledProgram(t *testing.T) {
	t.Parallel()
	s := newAgentStage(t, ManagerConfig{HealthPeriod: time.Second, HealthMisses: 1000, LostAfter: time.Hour})
	s.start()
	s.deploy()
	h := s.hub()
	if err := h.ask("mute"); err != "<nil>" {
		t.Fatal(err)
	}
	mute := s.record("mute", func(r InstanceRecord) bool { return r.Ready && !r.Spoke })
	seen := s.registrations()
	s.kill()
	s.start()
	s.until("the agent is back", func() bool { return s.registrations() > seen })
	s.until("a session to it opens", func() bool { return h.ask("mute") == "<nil>" })
	healthy := func() bool {
		for _, i := range s.m.Snapshot().Instances {
			if i.ID == mute.Launch.ID {
				return i.State == InstanceRunning && i.Health == StatusOK
			}
		}
		return false
	}
	s.until("it is well", healthy)
	if !s.alive(mute.Process) || len(s.running("mute")) != 1 {
		t.Errorf("%+v is not the one that runs: %v", mute.Process, s.running("mute"))
	}
	if got := s.events(EventInstanceEnded); len(got) > 0 {
		t.Errorf("ended: %v", got)
	}
}

// An agent that is killed between a fork and its note of it finds the process
// by its marks, or its cgroup: it runs once, and nothing is executed again.
func TestAgentKilledBeforeNote(t *testing.T) {
	t.Parallel()
	for _, cgroup := range []bool{false, true} {
		t.Run(fmt.Sprintf("cgroup=%t", cgroup), func(t *testing.T) {
			t.Parallel()
			dir := ""
			if cgroup {
				dir = newCgroup(t)
			}
			s := newAgentStage(t, ManagerConfig{HealthMisses: 1000, LostAfter: time.Hour})
			s.setup.Cgroup, s.setup.Dies = dir, true
			s.start()
			s.deploy()
			h := s.hub()
			s.record("hub", func(r InstanceRecord) bool { return r.Ready })
			if err := h.ask("dial"); err == "<nil>" {
				t.Fatal("a session opened without an agent")
			}
			s.agent.Wait()
			intent := s.record("echo", func(InstanceRecord) bool { return true })
			if intent.Process != (ProcessIdentity{}) {
				t.Fatalf("noted: %+v", intent.Process)
			}
			s.setup.Dies = false
			s.start()
			s.until("a session opens", func() bool { return h.ask("dial") == "<nil>" })
			echo := s.record("echo", func(r InstanceRecord) bool { return r.Ready && r.Process.PID > 0 })
			if echo.Launch.ID != intent.Launch.ID || !s.alive(echo.Process) || cgroup != (echo.Process.Cgroup != "") {
				t.Errorf("%+v runs for %+v", echo, intent)
			}
			if got := s.events(EventInstanceRequested); len(got) != 2 || len(s.running("")) != 2 {
				t.Errorf("requested: %v; running %v", got, s.running(""))
			}
			s.end()
		})
	}
}

// end stops the agent as a person does, with what it executed.
func (s *agentStage) end() {
	s.t.Helper()
	s.agent.Process.Signal(syscall.SIGTERM)
	if err := s.agent.Wait(); err != nil {
		s.t.Error("the agent stops with ", err)
	}
	s.agent = nil
}

// Of an instance whose record is damaged nothing is known but its id: it is
// ended, and the Manager starts another.
func TestAgentKilledRecordDamaged(t *testing.T) {
	t.Parallel()
	s := newAgentStage(t, ManagerConfig{HealthMisses: 1000, LostAfter: time.Hour})
	s.start()
	s.deploy()
	hub := s.record("hub", func(r InstanceRecord) bool { return r.Ready && r.Process.PID > 0 })
	s.kill()
	path := filepath.Join(s.setup.StateDir, recordName(hub.Launch.ID))
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	s.start()
	s.until("another gateway runs", func() bool {
		ids := s.running("hub")
		return len(ids) == 1 && ids[0] != hub.Launch.ID
	})
	if s.alive(hub.Process) {
		t.Errorf("%+v still runs", hub.Process)
	}
	if kept, err := os.ReadFile(path + stateDamaged); err != nil || string(kept) != string(b) {
		t.Errorf("set aside: %v", err)
	}
	if log, _ := os.ReadFile(s.log); !strings.Contains(string(log), path) {
		t.Error("the log does not name the file")
	}
}

// One directory is one agent's at a time.
func TestAgentStateLocked(t *testing.T) {
	t.Parallel()
	s := newAgentStage(t, ManagerConfig{LostAfter: time.Hour})
	s.start()
	s.until("the agent is there", func() bool { return s.registrations() == 1 })
	second := exec.Command(s.agent.Path)
	second.Env = s.agent.Env
	out, err := second.CombinedOutput()
	if err == nil || !strings.Contains(string(out), s.setup.StateDir) {
		t.Errorf("a second agent: %v, %s", err, out)
	}
	s.end()
}

// What is no file, or has no end, is not read: the agent does not start.
func TestAgentStateStrange(t *testing.T) {
	t.Parallel()
	for _, name := range []string{recordName(8), stateSelf, stateEnded} {
		for what, create := range map[string]func(path string) error{
			"a pipe":        func(path string) error { return syscall.Mkfifo(path, 0o600) },
			"a link":        func(path string) error { return os.Symlink("/dev/zero", path) },
			"a file of 1 T": func(path string) error { return errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, 1<<40)) },
		} {
			dir := t.TempDir()
			path := filepath.Join(dir, name)
			if err := create(path); err != nil {
				t.Fatal(err)
			}
			s, err := openAgentState(t.Context(), dir, hclog.NewNullLogger())
			if err == nil {
				s.close()
			}
			if err == nil || !strings.Contains(err.Error(), path+": no file of an agent") {
				t.Errorf("%s is %s: %v", name, what, err)
			}
		}
	}
}

// Out of descriptors an agent executes nothing more, and says so; what runs
// goes on; and when there are some again, so does the rest.
func TestAgentOutOfFiles(t *testing.T) {
	t.Parallel()
	s := newAgentStage(t, ManagerConfig{SessionsPerInstance: 1, HealthMisses: 1000, LostAfter: time.Hour})
	s.setup.Files, s.setup.Start = 28, 10*time.Second
	s.start()
	s.deploy()
	h := s.hub()
	opened, answer := 0, "<nil>"
	for ; opened < 30; opened++ {
		if answer = h.ask("dial"); answer != "<nil>" {
			break
		}
	}
	if opened == 0 || opened == 30 || !strings.Contains(answer, "503") && !strings.Contains(answer, "504") {
		t.Fatalf("%d sessions opened, and then: %s", opened, answer)
	}
	least := h.least()
	s.until("the sessions go on", func() bool { return h.least() > least })
	for _, sess := range s.m.Snapshot().Sessions {
		if !slices.Contains(s.running("echo"), sess.Destination) {
			t.Errorf("its destination is gone: %+v", sess)
		}
	}
	if got := s.registrations(); got != 1 {
		t.Errorf("registered %d times", got)
	}
	s.allowFiles(1000)
	s.until("a session opens", func() bool { return h.ask("dial") == "<nil>" })
	if n := len(s.m.Snapshot().Sessions); n != opened+1 {
		t.Errorf("%d sessions, want %d", n, opened+1)
	}
}

// allowFiles sets the agent's limit of open files.
func (s *agentStage) allowFiles(n uint64) {
	s.t.Helper()
	var limit syscall.Rlimit
	prlimit := func(set, get *syscall.Rlimit) {
		if _, _, errno := syscall.Syscall6(syscall.SYS_PRLIMIT64, uintptr(s.agent.Process.Pid), syscall.RLIMIT_NOFILE, uintptr(unsafe.Pointer(set)), uintptr(unsafe.Pointer(get)), 0, 0); errno != 0 {
			s.t.Skip("cannot change another process's limit: ", errno)
		}
	}
	prlimit(nil, &limit)
	limit.Cur = min(n, limit.Max)
	prlimit(&limit, nil)
}

// Another process that claims to be an instance gets 403, whoever's it is.
func TestAgentClaimed(t *testing.T) {
	t.Parallel()
	s := newAgentStage(t, ManagerConfig{LostAfter: time.Hour})
	s.start()
	s.deploy()
	h := s.hub()
	hub := s.record("hub", func(r InstanceRecord) bool { return r.Spoke })
	request := fmt.Sprintf("type: session_request ~ message_id: 1000 ~ sub_type: service_to_agent ~ source_service_name: hub ~ source_service_instance_id: %d ~ "+
		"source_service_instance_network_address: %s ~ source_plug_name: P1 ~ dest_service_name: echo ~ dest_socket_name: S1", hub.Launch.ID, s.setup.Address)
	for _, test := range []struct {
		name, more string
		uid        uint32
	}{
		{"same user", "", 0},
		{"same user, wrong secret", " ~ x_secret: guessed", 0},
		{"another user", "", 65534},
	} {
		// Another user may not see the way to the binary.
		binary, err := os.Open(s.agent.Path)
		if err != nil {
			t.Fatal(err)
		}
		defer binary.Close()
		cmd := exec.Command("/proc/self/fd/3", hub.Launch.Agent, request+test.more)
		cmd.ExtraFiles = []*os.File{binary}
		cmd.Env = []string{roleEnv + "=claim", leashEnv + "=" + s.leash.Addr().String(), runEnv + "=" + s.run}
		cmd.Dir = "/"
		if test.uid != 0 {
			if os.Getuid() != 0 {
				t.Log("skipped, as it needs root: ", test.name)
				continue
			}
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: test.uid, Gid: test.uid}}
		}
		out, err := cmd.Output()
		if err != nil || !strings.Contains(string(out), "status: 403") {
			t.Errorf("%s: %q, %v; want 403", test.name, out, err)
		}
	}
	if got := s.events(EventSessionOffered); len(got) > 0 || len(s.running("echo")) > 0 {
		t.Errorf("offered: %v", got)
	}
	if err := h.ask("probe"); err != "<nil>" {
		t.Errorf("the instance itself: %s", err)
	}
}

// A stranger listens on the ports that would come next, and answers there: an
// instance gets others, and who dials it never speaks to the stranger.
func TestPortTaken(t *testing.T) {
	t.Parallel()
	g := nineGraph(t)
	managers, addr := TCP{LocalAddr: randomLoopback()}, randomLoopback()
	s := &mesh{t: t, managers: managers, address: ":0", instances: map[InstanceID]*Instance{}}
	s.start(ManagerConfig{Graphs: []*Graph{g}})
	defer s.close()
	for _, ln := range takePorts(t, TCP{}, addr, 54000, 54001) {
		defer ln.Close()
		go func() {
			for {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				fmt.Fprintln(conn, "a stranger")
				conn.Close()
			}
		}()
	}
	n := s.addNode(addr, TCP{LocalAddr: addr}, netip.AddrPortFrom(addr, 0).String(), s.repository(g))
	s.deploy(g.Name)
	gw := s.running("A")[0]
	user := func() (net.Conn, error) {
		return n.transport.Dial(t.Context(), netip.AddrPortFrom(addr, gw.Sockets[0].Port).String())
	}
	conn, err := user()
	for deadline := time.Now().Add(patience); err != nil && time.Now().Before(deadline); conn, err = user() {
		pause() // a gateway that said hello listens in a moment
	}
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	if answer, err := askConn(conn, "via P1 who"); err != nil || !strings.HasPrefix(answer, "B ") {
		t.Errorf("answer %q, %v", answer, err)
	}
	wantTaken(t, s, "B", 2)
}

// An agent that comes back and is out of descriptors takes nothing to have
// ended: it looks again until it can see what runs.
func TestAgentBackOutOfFiles(t *testing.T) {
	t.Parallel()
	s := newAgentStage(t, ManagerConfig{SessionsPerInstance: 1, HealthMisses: 1000, LostAfter: time.Hour})
	s.start()
	s.deploy()
	h := s.hub()
	const sessions = 12
	for range sessions {
		if answer := h.ask("dial"); answer != "<nil>" {
			t.Fatal(answer)
		}
	}
	s.until("all is noted", func() bool {
		return !slices.ContainsFunc(s.records(), func(r InstanceRecord) bool { return !r.Ready || !r.Spoke })
	})
	records := s.records()
	s.kill()
	seen := s.registrations()
	s.setup.Files = 16 // of which each instance that is found takes one
	s.start()
	s.until("it cannot see all", func() bool {
		log, _ := os.ReadFile(s.log)
		return strings.Contains(string(log), "too many open files")
	})
	least := h.least()
	s.until("the sessions go on", func() bool { return h.least() > least })
	s.allowFiles(1000)
	s.until("the agent is back", func() bool { return s.registrations() > seen })
	s.until("a session opens", func() bool { return h.ask("dial") == "<nil>" })
	for _, r := range records {
		if !s.alive(r.Process) {
			t.Errorf("instance %d of %s is gone", r.Launch.ID, r.Launch.Service)
		}
	}
	for _, ev := range s.events(EventInstanceEnded) {
		t.Errorf("%v", ev)
	}
	if n := len(s.m.Snapshot().Sessions); n != sessions+1 {
		t.Errorf("%d sessions, want %d", n, sessions+1)
	}
}
