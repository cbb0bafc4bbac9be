//go:build unix

package ssmmp

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
)

// Variables that make the test binary a puppet: a process that connects to the
// test, says who it is, and does what it is told until the connection ends.
const (
	puppetEnv   = "SSMMP_TEST_PUPPET" // address of the stage
	puppetForks = "SSMMP_TEST_FORKS"  // set: start a puppet in a session of its own, and exit
)

func TestMain(m *testing.M) {
	if addr := os.Getenv(puppetEnv); addr != "" {
		syscall.Exit(puppetMain(addr)) // os.Exit takes a second under -race
	}
	if role := os.Getenv(roleEnv); role != "" {
		syscall.Exit(roleMain(role))
	}
	os.Exit(m.Run())
}

// A hello is the first line of a puppet, as JSON.
type hello struct {
	PID   int
	Args  []string
	Env   []string
	Dir   string
	Stdin int64 // bytes read from the standard input, to its end
}

func puppetMain(addr string) int {
	if os.Getenv(puppetForks) != "" {
		if _, err := puppetSpawn(addr, "session"); err != nil {
			return 90
		}
		return 0
	}
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return 91
	}
	h := hello{PID: os.Getpid(), Args: os.Args, Env: os.Environ()}
	h.Dir, _ = os.Getwd()
	h.Stdin, _ = io.Copy(io.Discard, os.Stdin)
	if json.NewEncoder(c).Encode(h) != nil {
		return 92
	}
	lines := bufio.NewScanner(c)
	for lines.Scan() {
		verb, arg, _ := strings.Cut(lines.Text(), " ")
		reply := "ok"
		switch verb {
		case "exit":
			code, _ := strconv.Atoi(arg)
			return code
		case "print":
			fmt.Fprintf(os.Stdout, "out %s\n", arg)
			fmt.Fprintf(os.Stderr, "err %s\n", arg)
		case "spawn":
			if cmd, err := puppetSpawn(addr, arg); err != nil {
				reply = err.Error()
			} else if arg == "daemon" {
				reply = fmt.Sprint(cmd.Wait()) // now the daemon is an orphan
			}
		}
		fmt.Fprintln(c, reply)
	}
	return 93
}

// puppetSpawn starts another puppet: in the same "group", in a "session" of
// its own, there and "bare" of the instance's environment, or, through a
// process that exits, as a "daemon".
func puppetSpawn(addr, kind string) (*exec.Cmd, error) {
	cmd := exec.Command(os.Args[0])
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: kind != "group"}
	for _, kv := range os.Environ() {
		if kind != "bare" && !strings.HasPrefix(kv, puppetForks) {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	switch kind {
	case "bare":
		cmd.Env = []string{puppetEnv + "=" + addr}
	case "daemon":
		cmd.Env = append(cmd.Env, puppetForks+"=1")
	}
	return cmd, cmd.Start()
}

// A stage is where the puppets of one test connect.
type stage struct{ ln *net.TCPListener }

func newStage(t testing.TB, addr string) *stage {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Skipf("cannot listen on %s: %v", addr, err)
	}
	t.Cleanup(func() { ln.Close() })
	return &stage{ln.(*net.TCPListener)}
}

// launcher returns one whose instances are puppets, with nothing inherited.
func (s *stage) launcher(t testing.TB) CommandLauncher {
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return CommandLauncher{
		Path:    path,
		PassEnv: []string{},
		Env:     []string{puppetEnv + "=" + s.ln.Addr().String()},
	}
}

// accept returns the puppet that was started last.
func (s *stage) accept(t testing.TB) *puppet {
	t.Helper()
	s.ln.SetDeadline(time.Now().Add(patience))
	c, err := s.ln.Accept()
	if err != nil {
		t.Fatal("no puppet: ", err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	p := &puppet{Conn: c, lines: bufio.NewReader(c)}
	line, err := p.lines.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &p.hello)
	}
	if err != nil {
		t.Fatal("no hello: ", err)
	}
	return p
}

// A puppet is the test's end of one.
type puppet struct {
	net.Conn
	hello
	lines *bufio.Reader
}

// tell has the puppet do something, and waits until it did.
func (p *puppet) tell(t testing.TB, order string) {
	t.Helper()
	fmt.Fprintln(p, order)
	if reply, err := p.lines.ReadString('\n'); err != nil || (reply != "ok\n" && reply != "<nil>\n") {
		t.Fatalf("told %q: %q, %v", order, reply, err)
	}
}

// spawn has the puppet start another.
func (p *puppet) spawn(t testing.TB, s *stage, kind string) *puppet {
	t.Helper()
	// The new one's connection may come before the reply.
	p.tell(t, "spawn "+kind)
	return s.accept(t)
}

// exit has the puppet exit.
func (p *puppet) exit(code int) { fmt.Fprintf(p, "exit %d\n", code) }

// checkGone fails unless the puppet's process has ended.
func (p *puppet) checkGone(t testing.TB) {
	t.Helper()
	if _, err := p.lines.ReadByte(); err == nil || os.IsTimeout(err) {
		t.Errorf("process %d is still connected: %v", p.PID, err)
	}
}

// testLaunch returns a launch that shares its secret with no other.
func testLaunch(service string, id InstanceID) Launch {
	return Launch{
		Service: service,
		ID:      id,
		Address: netip.MustParseAddr("127.0.0.1"),
		Agent:   "127.0.0.1:55556",
		Secret:  uuid.NewString(),
	}
}

// start launches an instance that is gone when the test ends.
func start(t testing.TB, c Launcher, l Launch) Process {
	t.Helper()
	p, err := c.Launch(context.Background(), l)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Kill()
		p.Wait()
	})
	return p
}
