package ssmmp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
)

func coreRecord(id InstanceID) *InstanceRecord {
	return &InstanceRecord{Execution: int64(100 + id), Launch: Launch{Service: "A", ID: id, Address: coreNodes[0], Agent: "10.0.0.1:1", Secret: "s",
		Sockets: []SocketPort{{"S1", 54000}}, Plugs: []PlugTarget{{"P1", "S2", "B"}}}}
}

// reattach gives the core an instance of the agent before it.
func (s *agentStepper) reattach(r *InstanceRecord) []AgentOutput {
	s.t.Helper()
	s.launched[r.Launch.ID] = r.Launch
	s.running = append(s.running, r.Launch.ID)
	return s.step(AgentInput{Kind: AgentInputReattached, Instance: r.Launch.ID, Record: r}, "")
}

// sentTo returns the lines that are sent to a connection.
func sentTo(t tester, conn ConnID, out []AgentOutput) []string {
	var lines []string
	for _, o := range out {
		if o.Kind == AgentOutputSend && o.Conn == conn {
			lines = append(lines, encode(t, o.Msg))
		}
	}
	return lines
}

// An agent that comes back lists what it found, says of what is ready that it
// is when asked again, speaks for programs, and executes nothing twice.
func TestAgentCoreReattached(t *testing.T) {
	t.Parallel()
	s := newAgentStepper(t)
	s.core.ComeBack("before", 5, []InstanceID{3})
	ready, starting, dead := coreRecord(7), coreRecord(8), coreRecord(9)
	ready.Ready, dead.Ready = true, true
	for _, o := range s.reattach(ready) {
		t.Errorf("of one that is ready: %+v", o)
	}
	if out := s.reattach(starting); len(out) != 1 || out[0].Kind != AgentOutputProbe {
		t.Errorf("of one that is not: %+v", out)
	}
	s.reattach(dead)
	s.exited(9)
	out := s.step(AgentInput{Kind: AgentInputManagerUp, Conn: 1}, "")
	if line := sentTo(t, 1, out)[0]; !strings.Contains(line, "x_agent: before ~ x_epoch: 5 ~ x_instances: 7, +1, +1") {
		t.Errorf("registration: %s", line)
	}
	// A Manager that the agent before this one has left for another is refused.
	out = s.message(1, registered(s.core.registerID, true)+" ~ x_epoch: 4", ProofNone)
	if !slices.ContainsFunc(out, func(o AgentOutput) bool { return o.Kind == AgentOutputAbort && o.Conn == 1 }) {
		t.Errorf("a Manager of an earlier epoch: %+v", out)
	}
	s.step(AgentInput{Kind: AgentInputLost, Conn: 1}, "")
	s.step(AgentInput{Kind: AgentInputManagerUp, Conn: 1}, "")
	out = s.message(1, registered(s.core.registerID, true)+" ~ x_epoch: 5", ProofNone)
	if lines := sentTo(t, 1, out); len(lines) != 1 || !strings.Contains(lines[0], "termination_info") || !strings.Contains(lines[0], "service_instance_id: 9") {
		t.Errorf("after registration: %q", lines)
	}
	for id, want := range map[InstanceID]string{7: "status: 200", 3: "status: 410", 9: "status: 410"} {
		if lines := sentTo(t, 1, s.message(1, executionLine(50+int64(id), "A", id), ProofNone)); len(lines) != 1 || !strings.HasSuffix(strings.TrimSpace(lines[0]), want) {
			t.Errorf("execution of %d: %q, want %s", id, lines, want)
		}
	}
	// Its hello makes the other ready; the request of the time before is answered.
	s.started(8, nil)
	out = s.message(2, helloLine(8, "s"), ProofGood)
	if lines := sentTo(t, 1, out); len(lines) != 1 || !strings.Contains(lines[0], "execution_response ~ message_id: 108 ~ status: 200") {
		t.Errorf("hello: %q", lines)
	}
	if !slices.ContainsFunc(out, func(o AgentOutput) bool { return o.Kind == AgentOutputChanged && o.Instance == 8 }) {
		t.Errorf("nothing is noted of: %+v", out)
	}
	s.settle()
	s.replayFrom("before", 5, []InstanceID{3})
}

// What is noted of an instance goes when the Manager knows of its end, and an
// instance hears how many of its reports have arrived.
func TestAgentCoreForgets(t *testing.T) {
	t.Parallel()
	for _, hears := range []bool{true, false} {
		s := newAgentStepper(t)
		s.step(AgentInput{Kind: AgentInputManagerUp, Conn: 1}, "")
		s.message(1, registered(s.core.registerID, hears), ProofNone)
		s.message(1, executionLine(1, "A", 7), ProofNone)
		s.started(7, nil)
		s.message(2, helloLine(7, ""), ProofGood)
		ack := "type: session_ack ~ message_id: 5 ~ sub_type: service_to_agent ~ source_service_name: A ~ source_service_instance_id: 7 ~ source_plug_port: 40112 ~ dest_socket_new_port: 54003 ~ status: 200"
		s.message(2, ack, ProofNone)
		told := func() string {
			lines := sentTo(t, 2, s.message(1, "type: service_instance_health_request ~ message_id: 9 ~ sub_type: Manager_to_agent ~ service_instance_id: 7 ~ service_instance_network_address: 10.0.0.1", ProofNone))
			if len(lines) != 1 {
				t.Fatalf("health requests: %q", lines)
			}
			_, n, _ := strings.Cut(strings.TrimSpace(lines[0]), "x_heard: ")
			return n
		}
		forgotten := func(out []AgentOutput) bool {
			return slices.ContainsFunc(out, func(o AgentOutput) bool { return o.Kind == AgentOutputForget && o.Instance == 7 })
		}
		health := func(id, heard string) []AgentOutput {
			return s.message(1, "type: agent_health_control_request ~ message_id: "+id+" ~ sub_type: Manager_to_agent ~ agent_network_address: 10.0.0.1"+heard, ProofNone)
		}
		if !hears {
			if n := told(); n != "1" {
				t.Errorf("a Manager that tells nothing: %s reports have arrived, want 1", n)
			}
			s.running = nil
			if out := s.step(AgentInput{Kind: AgentInputExited, Instance: 7}, ""); !forgotten(out) {
				t.Error("what ended is not forgotten")
			}
			continue
		}
		if n := told(); n != "0" {
			t.Errorf("%s reports have arrived, want 0", n)
		}
		health("20", "")
		s.message(2, strings.Replace(ack, "message_id: 5", "message_id: 6", 1), ProofNone)
		health("21", " ~ x_heard: 20")
		if n := told(); n != "1" {
			t.Errorf("%s reports have arrived, want 1", n)
		}
		s.running = nil
		if out := s.step(AgentInput{Kind: AgentInputExited, Instance: 7}, ""); forgotten(out) {
			t.Error("it is forgotten, and the Manager may not know")
		}
		health("22", " ~ x_heard: 21")
		if out := health("23", " ~ x_heard: 22"); !forgotten(out) {
			t.Error("the Manager knows, and it is not forgotten")
		}
	}
}

func registered(id int64, hears bool) string {
	line := "type: initiation_response ~ message_id: " + formatInstanceList([]InstanceID{InstanceID(id)}) + " ~ status: 200"
	if hears {
		line += " ~ x_heard: 0"
	}
	return line
}

// A directory that cannot be used is not taken for one that another agent uses.
// Who waits for that one ends with its context.
func TestAgentStateRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, stateLock), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := openAgentState(t.Context(), dir, hclog.NewNullLogger()); err == nil || errors.Is(err, errLocked) || strings.Contains(err.Error(), "another agent") {
		t.Errorf("with a directory in the place of its lock: %v", err)
	}
	dir = t.TempDir()
	s, err := openAgentState(t.Context(), dir, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := openAgentState(ctx, dir, hclog.NewNullLogger()); !errors.Is(err, errLocked) || !strings.Contains(err.Error(), dir) {
		t.Errorf("of an agent that lives: %v", err)
	}
}

// A state that is damaged at any place is found to be, named and set aside;
// what is whole is read.
func TestAgentStateDamaged(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var log bytes.Buffer
	open := func() *agentState {
		t.Helper()
		s, err := openAgentState(t.Context(), dir, hclog.New(&hclog.LoggerOptions{Output: &log}))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.close)
		return s
	}
	s := open()
	if err := errors.Join(s.begin("10.0.0.1:1"), s.intend(*coreRecord(7)), s.intend(*coreRecord(8))); err != nil {
		t.Fatal(err)
	}
	identity := s.self.Identity
	s.update(8, func(r *InstanceRecord) {
		r.Process, r.Ready = ProcessIdentity{PID: 5, Start: 6, Boot: "b", Cgroup: "c"}, true
	})
	s.forget(7, true)
	s.obeys(9)
	s.obeys(8)
	s.close()
	s.update(8, func(r *InstanceRecord) { r.Ready = false }) // too late

	s = open()
	want := *coreRecord(8)
	want.Process, want.Ready = ProcessIdentity{PID: 5, Start: 6, Boot: "b", Cgroup: "c"}, true
	got := s.list()
	if len(got) != 1 || got[0].Process != want.Process || !got[0].Ready || got[0].Launch.Secret != "s" || !slices.Equal(got[0].Launch.Plugs, want.Launch.Plugs) {
		t.Errorf("read %+v, want %+v", got, want)
	}
	if s.self != (agentIdentity{identity, "10.0.0.1:1", 9}) || !slices.Equal(s.ended, []InstanceID{7}) {
		t.Errorf("read %+v, ended %v", s.self, s.ended)
	}
	s.close()

	for _, name := range []string{recordName(8), stateSelf} {
		path := filepath.Join(dir, name)
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for n := range whole {
			for _, damaged := range [][]byte{whole[:n], append(slices.Clone(whole[:n]), append([]byte{whole[n] ^ 4}, whole[n+1:]...)...)} {
				log.Reset()
				if err := os.WriteFile(path, damaged, 0o600); err != nil {
					t.Fatal(err)
				}
				s := &agentState{dir: dir, log: hclog.New(&hclog.LoggerOptions{Output: &log}), records: map[InstanceID]*InstanceRecord{}}
				if err := s.load(); err != nil {
					t.Fatalf("%s, byte %d: %v", name, n, err)
				}
				if !strings.Contains(log.String(), path) {
					t.Fatalf("%s, byte %d: taken for whole: %q", name, n, damaged)
				}
				if is := name == stateSelf; is == slices.Contains(s.damaged, 8) || is == (s.self.Identity != "") {
					t.Fatalf("%s, byte %d: damaged %v, identity %q", name, n, s.damaged, s.self.Identity)
				}
			}
		}
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// The list of those that ended bears a line that was cut, and stays bounded.
func TestAgentStateEnded(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var b bytes.Buffer
	for id := range InstanceID(endedKept + 100) {
		b.WriteString(formatInstanceList([]InstanceID{id + 1}) + "\n")
	}
	b.WriteString("x\n\n-1\n99999")
	path := filepath.Join(dir, stateEnded)
	if err := errors.Join(os.WriteFile(path, b.Bytes(), 0o600), os.WriteFile(filepath.Join(dir, "instance-5.new"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		s, err := openAgentState(t.Context(), dir, hclog.NewNullLogger())
		if err != nil {
			t.Fatal(err)
		}
		if len(s.ended) != endedKept || s.ended[0] != 101 || s.ended[endedKept-1] != endedKept+100 {
			t.Errorf("%d are read, from %d to %d", len(s.ended), s.ended[0], s.ended[len(s.ended)-1])
		}
		s.close()
	}
	s, err := openAgentState(t.Context(), dir, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	for id := range InstanceID(endedKept) {
		if err := s.noteEnded(1_000_000 + id); err != nil {
			t.Fatal(err)
		}
	}
	if written, err := os.ReadFile(path); err != nil || bytes.Count(written, []byte("\n")) != endedKept || !bytes.HasPrefix(written, []byte("1000000\n")) {
		t.Errorf("as many again leave %d, %v", bytes.Count(written, []byte("\n")), err)
	}
	if _, err := os.Stat(filepath.Join(dir, "instance-5.new")); err == nil {
		t.Error("a file that was being written is left")
	}
}

// A findLauncher finds an instance again, after the errors that it has for it.
type findLauncher struct {
	mu    sync.Mutex
	errs  map[InstanceID][]error // the last one for ever
	asked map[InstanceID]int
	found map[InstanceID]*foundProcess
}

func (f *findLauncher) Launch(context.Context, Launch) (Process, error) {
	return nil, errors.New("nothing is executed here")
}

func (f *findLauncher) Reattach(_ context.Context, l Launch, _ ProcessIdentity) (Process, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked[l.ID]++
	if errs := f.errs[l.ID]; len(errs) > 0 {
		if len(errs) > 1 {
			f.errs[l.ID] = errs[1:]
		}
		if errs[0] != nil {
			return nil, &LaunchError{Service: l.Service, ID: l.ID, Err: errs[0]}
		}
	}
	f.found[l.ID] = &foundProcess{ended: make(chan struct{})}
	return f.found[l.ID], nil
}

type foundProcess struct {
	once  sync.Once
	ended chan struct{}
}

func (p *foundProcess) PID() int                         { return 1 }
func (p *foundProcess) Wait() Exit                       { <-p.ended; return Exit{} }
func (p *foundProcess) Kill() error                      { p.once.Do(func() { close(p.ended) }); return nil }
func (p *foundProcess) Owns(net.Conn) (owns, known bool) { return false, false }

// Only an instance that is not there any more has ended while its agent was
// away: what cannot be seen is looked for until it can, and nothing of it lost.
func TestAgentReattachAgain(t *testing.T) {
	for _, keep := range []bool{false, true} {
		t.Run(fmt.Sprintf("keep %t", keep), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				dir := t.TempDir()
				before, err := openAgentState(t.Context(), dir, hclog.NewNullLogger())
				if err != nil {
					t.Fatal(err)
				}
				if err := before.begin("10.0.0.1:1"); err != nil {
					t.Fatal(err)
				}
				for id := range InstanceID(3) {
					r := coreRecord(id + 1)
					r.Ready = true
					if err := before.intend(*r); err != nil {
						t.Fatal(err)
					}
				}
				before.close()
				host, err := NewMemNetwork().Host("10.0.0.1")
				if err != nil {
					t.Fatal(err)
				}
				const there, gone, unseen = 1, 2, 3
				f := &findLauncher{asked: map[InstanceID]int{}, found: map[InstanceID]*foundProcess{}, errs: map[InstanceID][]error{
					there:  {syscall.EMFILE, syscall.ENOMEM, nil},
					gone:   {ErrNotFound},
					unseen: {syscall.EACCES},
				}}
				a, err := NewAgent(AgentConfig{Manager: "10.0.0.9:1", Address: host.Addr(), Listen: ":0", Transport: host, StateDir: dir,
					KeepInstances: keep, Repository: []RepositoryEntry{{Service: "A", Launcher: f}}})
				if err != nil {
					t.Fatal(err)
				}
				ctx, stop := context.WithCancel(t.Context())
				ran := make(chan error, 1)
				go func() { ran <- a.Run(ctx) }()
				time.Sleep(time.Minute)
				a.mu.Lock()
				for id, runs := range map[InstanceID]bool{there: true, gone: false, unseen: true} {
					if is := a.core.instances[id] != nil; is != runs || a.core.ended[id] == runs {
						t.Errorf("instance %d runs: %t, want %t", id, is, runs)
					}
				}
				a.mu.Unlock()
				f.mu.Lock()
				found := f.found[there]
				if f.asked[there] != 3 || f.asked[gone] != 1 || f.asked[unseen] < 4 || f.asked[unseen] > 30 {
					t.Errorf("looked for %v times", f.asked)
				}
				f.mu.Unlock()
				if found == nil {
					t.Fatal("it was not found")
				}
				stop()
				if err := <-ran; err != nil {
					t.Error(err)
				}
				if keep {
					found.Kill()
				}
				<-found.ended // else it was not killed
				after, err := openAgentState(t.Context(), dir, hclog.NewNullLogger())
				if err != nil {
					t.Fatal(err)
				}
				defer after.close()
				if after.records[unseen] == nil {
					t.Error("nothing is known any more of what could not be seen")
				}
			})
		})
	}
}

// A file that cannot be read is not damaged: the agent does not start, and
// nothing is ended.
func TestAgentStateUnread(t *testing.T) {
	t.Parallel()
	for _, name := range []string{recordName(7), stateSelf} {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		s, err := openAgentState(t.Context(), dir, hclog.NewNullLogger())
		if err == nil {
			s.close()
			t.Errorf("%s: it is taken for damaged", name)
		} else if !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A launch that hangs, and is killed again and again, is killed once when it is
// there: nothing gathers meanwhile.
func TestAgentKillWhileLaunching(t *testing.T) {
	bubble(t, func(t *testing.T) {
		goOn, kills := make(chan struct{}), new(atomic.Int32)
		services := map[string]Launcher{"mid": launcherFunc(func(context.Context, Launch) (Process, error) {
			<-goOn
			return &countedProcess{foundProcess{ended: make(chan struct{})}, kills}, nil
		})}
		s := newLifeMesh(t, ManagerConfig{StartTimeout: time.Second}, 1, services)
		defer s.close()
		gw := s.begin()
		if _, err := gw.Dial(t.Context(), "P"); !errors.Is(err, ErrStartTimeout) {
			t.Errorf("dial: %v", err)
		}
		time.Sleep(10 * time.Minute)
		close(goOn)
		time.Sleep(time.Minute)
		if n := kills.Load(); n != 1 && n != 2 { // one that waited, one for a kill asked for meanwhile
			t.Errorf("killed %d times", n)
		}
	})
}

type countedProcess struct {
	foundProcess
	kills *atomic.Int32
}

func (p *countedProcess) Kill() error { p.kills.Add(1); return p.foundProcess.Kill() }
