//go:build unix

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience is until a test that is stuck fails: processes start slowly on a
// busy machine.
const patience = 90 * time.Second

// build builds the programs once, as docs/getting-started.md says, into a
// directory with the name bin.
var build = sync.OnceValues(func() (dir string, err error) {
	if _, err := exec.LookPath("go"); err != nil {
		return "", err
	}
	if dir, err = os.MkdirTemp("", "programs"); err != nil {
		return "", err
	}
	for _, line := range commands("go build ") {
		cmd := exec.Command("go", strings.Fields(strings.Replace(line, " bin/ ", " "+dir+"/bin/ ", 1))[1:]...)
		cmd.Dir = filepath.Join("..", "..")
		if out, err := cmd.CombinedOutput(); err != nil {
			return dir, fmt.Errorf("%s: %w\n%s", line, err, out)
		}
	}
	return dir, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if dir, err := build(); err == nil && dir != "" {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

// page is the text of docs/getting-started.md.
var page = sync.OnceValue(func() string {
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "getting-started.md"))
	if err != nil {
		panic(err)
	}
	return string(text)
})

// commands returns the commands of the page that begin so.
func commands(prefix string) (lines []string) {
	for _, block := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(page(), -1) {
		for line := range strings.Lines(block[1]) {
			if line = strings.TrimSpace(line); strings.HasPrefix(line, prefix) {
				lines = append(lines, line)
			}
		}
	}
	return lines
}

// A site is a directory with what the page has its reader build and write. Two
// loopback addresses stand for the two machines.
type site struct {
	t       *testing.T
	dir     string
	nodes   [2]string
	started []*process
}

func newSite(t *testing.T) *site {
	t.Helper()
	bin, err := build()
	if errors.Is(err, exec.ErrNotFound) {
		t.Skip("there is no go here to build the programs with")
	}
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, dir: t.TempDir()}
	if err := os.Symlink(filepath.Join(bin, "bin"), filepath.Join(s.dir, "bin")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"hello.json", "machine-1.json", "machine-2.json"} {
		text, err := os.ReadFile(filepath.Join("..", "manager", "testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		s.write(name, string(text))
	}
	for try := 0; s.nodes[1] == ""; try++ {
		net2, host := 20+rand.N(200), rand.N(250)
		a, b := fmt.Sprintf("127.%d.%d.1", net2, host), fmt.Sprintf("127.%d.%d.2", net2, host)
		if free(a+":8080") && free(b+":55556") {
			s.nodes = [2]string{a, b}
		} else if try == 100 {
			t.Skipf("%s has no loopback addresses but 127.0.0.1, or 100 of them are taken", runtime.GOOS)
		}
	}
	t.Cleanup(func() {
		for _, p := range s.started {
			p.cmd.Process.Signal(syscall.SIGTERM) // an agent that is killed leaves its instances
		}
		for _, p := range s.started {
			select {
			case <-p.done:
			case <-time.After(patience):
				p.kill()
			}
		}
		if t.Failed() {
			for _, p := range s.started {
				t.Logf("%s:\n%s", p, p.log.String())
			}
			outputs, _ := filepath.Glob(filepath.Join(s.dir, "output", "*"))
			for _, name := range outputs {
				text, _ := os.ReadFile(name)
				t.Logf("%s:\n%s", name, text)
			}
		}
	})
	return s
}

func free(addr string) bool {
	ln, err := net.Listen("tcp", addr)
	if err == nil {
		ln.Close()
	}
	return err == nil
}

func (s *site) write(name, text string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// A process is a program that runs, with what it logged so far.
type process struct {
	t    *testing.T
	name string
	cmd  *exec.Cmd
	log  lines
	done chan struct{} // closed when it has ended
}

func (p *process) String() string { return p.name }

// lines are what a program has written to standard error.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
	more chan struct{} // closed at the next write
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.more != nil {
		close(l.more)
		l.more = nil
	}
	return l.text.Write(b)
}

func (l *lines) String() string {
	text, _ := l.look()
	return text
}

// look returns what was written, and what tells that more was.
func (l *lines) look() (string, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.more == nil {
		l.more = make(chan struct{})
	}
	return l.text.String(), l.more
}

// start starts a command as the page gives it, with the two loopback addresses.
func (s *site) start(line string, more ...string) *process {
	s.t.Helper()
	line = strings.NewReplacer("10.0.0.1", s.nodes[0], "10.0.0.2", s.nodes[1]).Replace(line)
	words := append(strings.Fields(line), more...)
	p := &process{t: s.t, name: strings.Join(words, " "), cmd: exec.Command(filepath.Join(s.dir, words[0]), words[1:]...), done: make(chan struct{})}
	p.cmd.Dir, p.cmd.Stderr = s.dir, &p.log
	if err := p.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.started = append(s.started, p)
	go func() {
		defer close(p.done)
		p.cmd.Wait()
	}()
	return p
}

// awaitLog waits until a program has logged something, and returns all of it.
func (p *process) awaitLog(what string) string {
	p.t.Helper()
	deadline := time.After(patience)
	for {
		text, more := p.log.look()
		if strings.Contains(text, what) {
			return text
		}
		select {
		case <-more:
		case <-p.done:
			if text := p.log.String(); strings.Contains(text, what) {
				return text
			}
			p.t.Fatalf("%s ended and did not log %q", p, what)
		case <-deadline:
			p.t.Fatalf("%s did not log %q", p, what)
		}
	}
}

// exit waits for a program's end and returns its status.
func (p *process) exit() int {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(patience):
		p.t.Fatalf("%s does not end", p)
	}
	return p.cmd.ProcessState.ExitCode()
}

// terminate ends a program as an operator does, who wants status 0.
func (p *process) terminate() {
	p.t.Helper()
	p.cmd.Process.Signal(syscall.SIGTERM)
	if code := p.exit(); code != 0 {
		p.t.Errorf("%s: exit status %d", p, code)
	}
}

func (p *process) kill() {
	p.cmd.Process.Kill()
	<-p.done
}

// greet is a user: it returns what the gateway says.
func (s *site) greet() (string, error) {
	conn, err := net.Dial("tcp", s.nodes[0]+":8080")
	if err != nil {
		return "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	greeting, err := io.ReadAll(conn)
	return string(greeting), err
}

// up starts all that the page starts and waits until users are served.
func (s *site) up() (manager *process, agents []*process, greeting string) {
	s.t.Helper()
	manager = s.start(commands("bin/manager ")[0])
	for _, line := range commands("bin/agent ") {
		agents = append(agents, s.start(line))
	}
	manager.awaitLog("deployed, and ready: graph=hello")
	return manager, agents, s.awaitGreeting("")
}

// awaitGreeting waits until a user is greeted by another instance than before.
func (s *site) awaitGreeting(before string) string {
	s.t.Helper()
	var greeting string
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		if greeting, err = s.greet(); err == nil && greeting != "" && greeting != before {
			return greeting
		}
		<-time.After(50 * time.Millisecond)
	}
	s.t.Fatalf("greeted with %q, %v", greeting, err)
	return ""
}

// The page's files and commands are what works.
func TestGettingStarted(t *testing.T) {
	t.Parallel()
	shown := regexp.MustCompile("(?s)`([a-z0-9-]+\\.json)`:\n\n```json\n(.*?)```").FindAllStringSubmatch(page(), -1)
	if len(shown) != 3 {
		t.Fatalf("the page shows %d files", len(shown))
	}
	for _, file := range shown {
		if text, err := os.ReadFile(filepath.Join("..", "manager", "testdata", file[1])); err != nil || string(text) != file[2] {
			t.Errorf("the page does not show %s as it is: %v", file[1], err)
		}
	}
	s := newSite(t)
	manager, agents, greeting := s.up()
	if want := regexp.MustCompile(`^hello from greeter \d+ on ` + regexp.QuoteMeta(s.nodes[1]) + "\n$"); !want.MatchString(greeting) {
		t.Errorf("greeted with %q", greeting)
	}
	if cat := commands("cat "); len(cat) != 1 {
		t.Errorf("the page's user gives %q", cat)
	} else if bash, err := exec.LookPath("bash"); err == nil {
		out, err := exec.Command(bash, "-c", strings.Replace(cat[0], "10.0.0.1", s.nodes[0], 1)).CombinedOutput()
		if err != nil || string(out) != greeting {
			t.Errorf("%s: %q, %v", cat[0], out, err)
		}
	}
	for _, a := range agents {
		a.terminate()
		if text := a.log.String(); !strings.Contains(text, "exit=0") || strings.Contains(text, "connection to the Manager ended") {
			t.Errorf("%s logged\n%s", a, text)
		}
	}
	if greeting, err := s.greet(); err == nil {
		t.Errorf("greeted with %q after all", greeting)
	}
	manager.terminate()
}

// A Manager that is killed and had no -data comes back with nothing: it has the
// agents kill what it does not know, and deploys anew.
func TestManagerForgets(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	manager, agents, before := s.up()
	manager.kill()
	agents[0].awaitLog("cannot reach the Manager")
	again := s.start(commands("bin/manager ")[0])
	again.awaitLog("deployed, and ready: graph=hello")
	s.awaitGreeting(before)
	for _, a := range agents {
		if text := a.awaitLog("exit=SIGKILL"); strings.Count(text, "executed:") < 1 {
			t.Errorf("%s logged\n%s", a, text)
		}
		a.terminate()
	}
	again.terminate()
}

// An agent with -keep leaves its instances; the next one with its state directory
// goes on with them, and ends them.
func TestAgentKeeps(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	manager, agents, before := s.up()
	agents[0].terminate() // its gateway goes with it
	keeper := s.start(commands("bin/agent ")[0], "-state", "state-1", "-keep", "-log-format", "json")
	keeper.awaitLog(`"executed"`)
	s.awaitGreeting("")
	keeper.terminate()
	if pids := keeper.executed(); len(pids) != 1 || syscall.Kill(pids[0], 0) != nil {
		t.Errorf("processes %v are not left", pids)
	}
	next := s.start(commands("bin/agent ")[0], "-state", "state-1")
	next.awaitLog("connected to the Manager")
	if greeting := s.awaitGreeting(""); greeting != before {
		t.Errorf("greeted with %q, want %q", greeting, before)
	}
	next.terminate()
	if _, err := s.greet(); err == nil {
		t.Error("the gateway runs after all")
	}
	agents[1].terminate()
	manager.terminate()
}

// executed returns the process ids that an agent logged, as JSON.
func (p *process) executed() (pids []int) {
	p.t.Helper()
	for line := range strings.Lines(p.log.String()) {
		var entry struct {
			Message string `json:"@message"`
			PID     int
		}
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			p.t.Errorf("not JSON: %q", line)
		}
		if entry.Message == "executed" {
			pids = append(pids, entry.PID)
		}
	}
	return pids
}

// What is wrong is said in one line, and nothing begins.
func TestBadCalls(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.write("broken.json", "{\n  oops")
	s.write("faults.json", `{"services": [{"name": "a b", "command": []}, {"x": 1}]}`)
	s.write("missing.json", `{"services": [{"name": "a", "command": ["bin/none"]}]}`)
	s.write("empty.json", "")
	taken, err := net.Listen("tcp", s.nodes[0]+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	const manager, agent = "bin/manager -log-level warn ", "bin/agent -log-level off -manager 10.0.0.1:55555 -address 10.0.0.1 "
	for _, tt := range []struct {
		call   string
		status int
		want   string
	}{
		{"bin/manager", 2, "manager: -graph is missing"},
		{manager + "-wrong", 2, "manager: flag provided but not defined: -wrong"},
		{manager + "-graph hello.json more", 2, `manager: unexpected argument "more"`},
		{manager + "-graph hello.json -deploy other", 2, `manager: -deploy: no graph has the name "other"`},
		{manager + "-graph hello.json,", 2, "an empty value"},
		{manager + "-graph none.json", 1, "manager: open none.json: no such file or directory"},
		{manager + "-graph broken.json", 1, "manager: broken.json: ssmmp: graph file: 2:3: "},
		{manager + "-graph hello.json -graph hello.json", 1, "another graph has this name"},
		{manager + "-graph hello.json -listen " + taken.Addr().String(), 1, "address already in use"},
		{manager + "-graph hello.json -listen nowhere", 1, "missing port in address"},
		{"bin/manager -graph hello.json -log-level loud", 2, `-log-level: "loud" is not trace, debug`},
		{"bin/manager -graph hello.json -log-format xml", 2, `-log-format: "xml" is not text or json`},
		{"bin/agent", 2, "agent: -manager is missing"},
		{"bin/agent -manager 10.0.0.1:1", 2, "agent: -address is missing"},
		{"bin/agent -manager 10.0.0.1:1 -address nobody", 2, `invalid value "nobody" for flag -address`},
		{agent, 2, "agent: -repository is missing"},
		{agent + "-repository empty.json", 1, "agent: empty.json: ssmmp: repository file: 1:1: unexpected end of JSON input"},
		{agent + "-repository faults.json", 1, `agent: faults.json: ssmmp: repository file: 1:24: name: "a b" is not a name; ssmmp: repository file: 1:43: command: has no binary; ` +
			"ssmmp: repository file: 1:48: services: unknown field x; "},
		{agent + "-repository missing.json", 1, "agent: missing.json: service a: "},
		{agent + "-repository machine-1.json -listen " + taken.Addr().String(), 1, "address already in use"},
		{agent + "-repository machine-1.json -manager nowhere", 1, `AgentConfig.Manager: "nowhere": not host:port`},
		{agent + "-repository machine-1.json -address 0.0.0.0", 1, "0.0.0.0: not the address of a node"},
	} {
		t.Run(tt.call, func(t *testing.T) {
			p := s.start(tt.call)
			if code := p.exit(); code != tt.status {
				t.Errorf("exit status %d, want %d", code, tt.status)
			}
			text := p.log.String()
			if !strings.Contains(text, tt.want) || strings.Count(text, "\n") != 1 || !strings.HasSuffix(text, "\n") {
				t.Errorf("said %q, want one line with %q", text, tt.want)
			}
		})
	}
	for _, name := range []string{"bin/manager", "bin/agent"} {
		out, err := exec.Command(filepath.Join(s.dir, name), "-help").Output()
		if err != nil || !strings.HasPrefix(string(out), "usage: ") || !strings.Contains(string(out), "-log-level") {
			t.Errorf("%s -help: %q, %v", name, out, err)
		}
	}
}
