// Package languages holds services in another language than Go, and tests that
// run them as they are, under a Manager and an agent over TCP.
package languages

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/ssmmp/ssmmp"
)

// patience is until a test that is stuck fails: processes start slowly on a
// busy machine.
const patience = 90 * time.Second

// A mesh is a Manager and an agent on a loopback address of their own, which
// executes what repository.json says, below a temporary directory.
type mesh struct {
	t       *testing.T
	ctx     context.Context
	m       *ssmmp.Manager
	node    netip.Addr
	srv     string // stands for /srv
	gateway string // where users connect

	log logBuffer

	mu        sync.Mutex
	processes map[string][]ssmmp.Process // by service, oldest first
}

func newMesh(t *testing.T, graph string, tools ...string) *mesh {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not on this machine: %v", tool, err)
		}
	}
	s := &mesh{t: t, node: loopbackNode(t), srv: t.TempDir(), processes: map[string][]ssmmp.Process{}}
	for _, dir := range []string{"files", "redis"} {
		if err := os.Mkdir(filepath.Join(s.srv, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"front.py", "quirks.py"} {
		s.write(name, string(s.read(name)))
	}
	text := bytes.ReplaceAll(s.read("repository.json"), []byte(`"/srv/`), []byte(`"`+s.srv+"/"))
	repository, err := ssmmp.ParseRepository(text)
	if err != nil {
		t.Fatal(err)
	}
	for n := range repository {
		repository[n].Launcher = &recorder{s, repository[n].Launcher}
	}
	g, err := ssmmp.ParseGraph(s.read(graph))
	if err != nil {
		t.Fatal(err)
	}
	s.gateway = netip.AddrPortFrom(s.node, g.Services[0].Sockets[0].Port).String()

	var stop context.CancelFunc
	s.ctx, stop = context.WithTimeout(context.Background(), 2*patience)
	log := hclog.New(&hclog.LoggerOptions{Level: hclog.Debug, Output: &s.log})
	s.m, err = ssmmp.NewManager(ssmmp.ManagerConfig{Graphs: []*ssmmp.Graph{g}, Logger: log,
		HealthPeriod: time.Second, HealthMisses: 60, DrainTimeout: patience, StartTimeout: patience})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := ssmmp.TCP{LocalAddr: s.node}.Listen(s.ctx, ":0")
	if err != nil {
		t.Fatal(err)
	}
	a, err := ssmmp.NewAgent(ssmmp.AgentConfig{Manager: ln.Addr().String(), Address: s.node, Repository: repository, Logger: log,
		Listen: netip.AddrPortFrom(s.node, 0).String(), DrainTimeout: patience, StartTimeout: patience})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { s.m.Serve(s.ctx, ln) })
	wg.Go(func() {
		if err := a.Run(s.ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		stop()
		wg.Wait()
		if t.Failed() {
			s.logOutputs()
		}
	})
	if err := s.m.Deploy(s.ctx, g.Name); err != nil {
		t.Fatal(err)
	}
	return s
}

// loopbackNode returns an address of this machine that nothing else uses.
func loopbackNode(t *testing.T) netip.Addr {
	for range 100 {
		addr := netip.AddrFrom4([4]byte{127, byte(20 + rand.N(200)), byte(rand.N(256)), byte(2 + rand.N(250))})
		ln, err := net.Listen("tcp", netip.AddrPortFrom(addr, ssmmp.FirstSocketPort).String())
		if err == nil {
			ln.Close()
			return addr
		}
	}
	t.Skipf("%s has no loopback addresses but 127.0.0.1, or 100 of them are taken", runtime.GOOS)
	return netip.Addr{}
}

func (s *mesh) read(name string) []byte {
	s.t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		s.t.Fatal(err)
	}
	return text
}

func (s *mesh) write(name, text string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.srv, name), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// output is what the instances of a service have printed.
func (s *mesh) output(service string) string {
	var all strings.Builder
	files, _ := filepath.Glob(filepath.Join(s.srv, "output", service+"-*.log"))
	for _, name := range files {
		text, _ := os.ReadFile(name)
		all.Write(text)
	}
	return all.String()
}

func (s *mesh) logOutputs() {
	for service := range s.processes {
		s.t.Logf("%s printed:\n%s", service, s.output(service))
	}
	s.t.Logf("the log:\n%s", s.log.String())
}

// A logBuffer keeps what is logged.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// history yields the events so far.
func (s *mesh) history() func(func(ssmmp.Event) bool) {
	last := s.m.Snapshot().Seq
	return func(yield func(ssmmp.Event) bool) {
		if last == 0 {
			return
		}
		for ev := range s.m.Events(context.Background(), 0) {
			if !yield(ev) || ev.Seq >= last {
				return
			}
		}
	}
}

// await returns the first event that is wanted, of those that were and of those
// that come.
func (s *mesh) await(what string, want func(ssmmp.Event) bool) ssmmp.Event {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, patience)
	defer cancel()
	for ev := range s.m.Events(ctx, 0) {
		if want(ev) {
			return ev
		}
	}
	s.t.Fatalf("not seen: %s", what)
	return ssmmp.Event{}
}

func (s *mesh) awaitHealthy(services ...string) {
	s.t.Helper()
	for _, service := range services {
		s.await(service+" is well", func(ev ssmmp.Event) bool {
			return ev.Kind == ssmmp.EventHealthChanged && ev.Service == service && ev.Status == ssmmp.StatusOK
		})
	}
}

// exitedWell checks how the instances of a service ended that have ended, of
// which there must be one.
func (s *mesh) exitedWell(service string) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	ended := 0
	for ev := range s.history() {
		if ev.Kind == ssmmp.EventInstanceEnded && ev.Service == service {
			ended++
		}
	}
	if ended == 0 || ended > len(s.processes[service]) {
		s.t.Fatalf("of %d instances of %s %d have ended", len(s.processes[service]), service, ended)
	}
	for _, p := range s.processes[service][:ended] {
		if exit := p.Wait(); exit.Code != 0 || exit.Signal != "" {
			s.t.Errorf("%s: exit %+v", service, exit)
		}
	}
}

// instance returns the running instance of a service.
func (s *mesh) instance(service string) ssmmp.InstanceStatus {
	s.t.Helper()
	all := s.m.Snapshot().Instances
	n := slices.IndexFunc(all, func(i ssmmp.InstanceStatus) bool { return i.Service == service && i.State == ssmmp.InstanceRunning })
	if n < 0 {
		s.t.Fatalf("no instance of %s runs: %+v", service, all)
	}
	return all[n]
}

// user connects as a user does and says something.
func (s *mesh) user(text string) *bufio.ReadWriter {
	s.t.Helper()
	conn, err := net.Dial("tcp", s.gateway)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(conn, text); err != nil {
		s.t.Fatal(err)
	}
	return bufio.NewReadWriter(bufio.NewReader(conn), bufio.NewWriter(conn))
}

// get retrieves a file over HTTP, through whatever the gateway leads to.
func (s *mesh) get(path string) string {
	s.t.Helper()
	answer, err := io.ReadAll(s.user("GET " + path + " HTTP/1.0\r\n\r\n"))
	if err != nil {
		s.t.Fatal(err)
	}
	head, body, _ := strings.Cut(string(answer), "\r\n\r\n")
	if !strings.HasPrefix(head, "HTTP/1.0 200 ") {
		s.t.Fatalf("answered %q", answer)
	}
	return body
}

// A recorder is a launcher that remembers what it launched.
type recorder struct {
	mesh *mesh
	ssmmp.Launcher
}

func (r *recorder) Launch(ctx context.Context, l ssmmp.Launch) (ssmmp.Process, error) {
	p, err := r.Launcher.Launch(ctx, l)
	if err == nil {
		r.mesh.mu.Lock()
		r.mesh.processes[l.Service] = append(r.mesh.processes[l.Service], p)
		r.mesh.mu.Unlock()
	}
	return p, err
}

// Three services of three kinds in a row: one written from the protocol alone,
// which never says hello; one with the quirks of the published reference code;
// and a file server that knows nothing of SSMMP.
func TestLanguages(t *testing.T) {
	t.Parallel()
	s := newMesh(t, "languages.json", "python3")
	s.write("files/hello.txt", "hello")

	// Before it ever spoke its agent answers for the first one.
	s.awaitHealthy("front")
	if body := s.get("/hello.txt"); body != "hello" {
		t.Errorf("got %q", body)
	}
	s.awaitHealthy("quirks", "files")
	for _, plug := range []string{"P1", "P2"} {
		opened := s.await("session over "+plug, func(ev ssmmp.Event) bool { return ev.Kind == ssmmp.EventSessionOpened && ev.Plug == plug })
		if opened.PlugPort == 0 || opened.NewPort == 0 {
			t.Errorf("session over %s: %+v", plug, opened)
		}
		s.await("end of the session over "+plug, func(ev ssmmp.Event) bool {
			return ev.Kind == ssmmp.EventSessionClosed && ev.Session == opened.Session && ev.Status == ssmmp.StatusSessionClosed
		})
	}

	// Their health is their own word now: with two sessions at once they are
	// overloaded.
	held := []*bufio.ReadWriter{s.user("GET /hello.txt HTTP/1.0\r\n"), s.user("GET /hello.txt HTTP/1.0\r\n")}
	var overloaded uint64
	for _, service := range []string{"front", "quirks"} {
		ev := s.await(service+" is overloaded", func(ev ssmmp.Event) bool {
			return ev.Kind == ssmmp.EventHealthChanged && ev.Service == service && ev.Status == ssmmp.StatusOverloaded
		})
		overloaded = max(overloaded, ev.Seq)
	}

	// The Manager closes the sessions of users, which the source does.
	for range held {
		all := s.m.Snapshot().Sessions
		n := slices.IndexFunc(all, func(x ssmmp.SessionStatus) bool { return x.SourceService == "front" && x.State == ssmmp.SessionOpen })
		if n < 0 {
			t.Fatalf("no session of front is open: %+v", all)
		}
		if err := s.m.CloseSession(s.ctx, all[n].ID); err != nil {
			t.Error(err)
		}
		s.await("closed by the Manager at its source", func(ev ssmmp.Event) bool {
			return ev.Kind == ssmmp.EventSessionClosed && ev.Session == all[n].ID && strings.HasSuffix(ev.Cause, ", closed by the Manager")
		})
	}
	for _, user := range held {
		if rest, err := io.ReadAll(user); len(rest) > 0 || err != nil {
			t.Errorf("a user read %q, %v after the session was closed", rest, err)
		}
	}

	s.await("quirks is well again", func(ev ssmmp.Event) bool {
		return ev.Kind == ssmmp.EventHealthChanged && ev.Service == "quirks" && ev.Status == ssmmp.StatusOK && ev.Seq > overloaded
	})

	// Business logic ends one, which says so first; the next request starts another.
	io.ReadAll(s.user("quit\n"))
	s.await("quirks terminated", func(ev ssmmp.Event) bool {
		return ev.Kind == ssmmp.EventInstanceEnded && ev.Service == "quirks" && ev.Cause == "terminated by its business logic"
	})
	if body := s.get("/hello.txt"); body != "hello" {
		t.Errorf("got %q", body)
	}

	// All shut down gracefully: two answer for themselves, one gets its signal.
	if err := s.m.Undeploy(s.ctx, "languages"); err != nil {
		t.Fatal(err)
	}
	for _, service := range []string{"front", "quirks", "files"} {
		s.exitedWell(service)
	}
	if !strings.Contains(s.output("files"), "Keyboard interrupt received") {
		t.Error("the file server got no SIGINT")
	}
	for _, service := range []string{"front", "quirks"} {
		if printed := s.output(service); printed != "" {
			t.Errorf("%s printed %s", service, printed)
		}
	}
	for _, line := range strings.Split(s.log.String(), "\n") {
		if strings.Contains(line, "bad line") || strings.Contains(line, "protocol violated") || strings.Contains(line, "(403") {
			t.Error(line)
		}
	}
}

// A database that knows nothing of SSMMP keeps its data from one instance to the
// next: its signal lets it save them.
func TestUnmodifiedRedis(t *testing.T) {
	t.Parallel()
	s := newMesh(t, "cache.json", "python3", "redis-server")
	redis := func(command string, lines int) string {
		t.Helper()
		answer, conn := "", s.user(command+"\r\n")
		for range lines {
			line, err := conn.ReadString('\n')
			if err != nil {
				t.Fatalf("%s: %q, %v", command, answer, err)
			}
			answer += strings.TrimSpace(line) + " "
		}
		return answer
	}
	if a := redis("SET greeting hello", 1); a != "+OK " {
		t.Errorf("SET: %q", a)
	}
	s.awaitHealthy("redis")
	first := s.instance("redis")
	if err := s.m.Shutdown(s.ctx, first.ID); err != nil {
		t.Fatal(err)
	}
	s.exitedWell("redis")
	if a := redis("GET greeting", 2); a != "$5 hello " {
		t.Errorf("GET from the next instance: %q", a)
	}
	if again := s.instance("redis"); again.ID == first.ID {
		t.Error("the same instance runs")
	}
}
