package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ssmmp/ssmmp"
)

// patience is until a test that is stuck fails: processes start slowly on a
// busy machine.
const patience = 90 * time.Second

// A program is one run of "social up" in a process of its own.
type program struct {
	t   *testing.T
	cmd *exec.Cmd
	end chan error

	mu  sync.Mutex
	out bytes.Buffer
}

func (p *program) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.Write(b)
}

func (p *program) said() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

// up starts the program on addresses of its own: those of nodes.
func up(t *testing.T, nodes netip.Addr, args ...string) *program {
	t.Helper()
	self, err := os.Executable()
	check(t, err)
	p := &program{t: t, cmd: exec.Command(self, append([]string{"up"}, args...)...), end: make(chan error, 1)}
	p.cmd.Env = append(os.Environ(), "SOCIAL_TEST_NODES="+nodes.String(), "TMPDIR="+t.TempDir())
	p.cmd.Stdout, p.cmd.Stderr = p, p
	check(t, p.cmd.Start())
	go func() { p.end <- p.cmd.Wait() }()
	t.Cleanup(func() {
		p.cmd.Process.Kill()
		for id, pid := range p.pids() {
			// The path keeps somebody else's process out, should the id be its now.
			if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err == nil && exe == self {
				syscall.Kill(pid, syscall.SIGKILL)
				if !t.Failed() {
					t.Errorf("%s, pid %d, is left", id, pid)
				}
			}
		}
		if t.Failed() {
			t.Logf("up %q says:\n%s", args, p.said())
		}
	})
	return p
}

// ended waits until the program has ended.
func (p *program) ended() error {
	p.t.Helper()
	select {
	case err := <-p.end:
		return err
	case <-time.After(patience):
		p.t.Fatalf("it does not end:\n%s", p.said())
		return nil
	}
}

// kill ends the program as a crash does.
func (p *program) kill() {
	p.t.Helper()
	check(p.t, p.cmd.Process.Kill())
	p.ended()
}

// stop ends the program as Ctrl-C does.
func (p *program) stop() {
	p.t.Helper()
	check(p.t, p.cmd.Process.Signal(os.Interrupt))
	check(p.t, p.ended())
}

var (
	isUp   = regexp.MustCompile(`-gateway (\S+)`)
	hasPID = regexp.MustCompile(`mesh  (\w+ \d+) (?:is ready|still runs), pid (\d+)`)
)

// pids returns the processes of the instances that it has told of, by the name
// of the service and the id.
func (p *program) pids() map[string]int {
	pids := map[string]int{}
	for _, m := range hasPID.FindAllStringSubmatch(p.said(), -1) {
		pids[m[1]], _ = strconv.Atoi(m[2])
	}
	return pids
}

// client waits until the program is up and connects to its gateway.
func (p *program) client() *client {
	p.t.Helper()
	await(p.t, "the gateway", func() bool {
		select {
		case err := <-p.end:
			p.t.Fatalf("it ends: %v\n%s", err, p.said())
		default:
		}
		return isUp.MatchString(p.said())
	})
	c, err := dialSoon(p.t.Context(), isUp.FindStringSubmatch(p.said())[1])
	check(p.t, err)
	p.t.Cleanup(c.close)
	return c
}

func await(t *testing.T, what string, ready func() bool) {
	t.Helper()
	deadline, tick := time.After(patience), time.NewTicker(20*time.Millisecond)
	defer tick.Stop()
	for !ready() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

// runs tells whether a process runs: one that nobody has waited for does not.
func runs(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

// ownNodes returns loopback addresses that nothing else has.
func ownNodes() netip.Addr {
	return netip.AddrFrom4([4]byte{127, byte(20 + rand.N(200)), byte(rand.N(250)), 1})
}

// posts reads the last posts, newest first.
func posts(t *testing.T, c *client) (texts []string) {
	t.Helper()
	list, err := c.last10()
	check(t, err)
	for _, p := range list {
		texts = append(texts, p.text)
	}
	return texts
}

// started returns how often each service was executed, and which instances
// there are, from the Manager's store.
func started(t *testing.T, dir string) (executed map[string]int, s ssmmp.Snapshot) {
	t.Helper()
	store := openStore(dir)
	defer store.Close()
	executed = map[string]int{}
	for ev, err := range store.Query(context.Background(), ssmmp.EventQuery{Kinds: []ssmmp.EventKind{ssmmp.EventInstanceRequested}}) {
		check(t, err)
		executed[ev.Service]++
	}
	s, err := ssmmp.StateAt(context.Background(), store, 0)
	check(t, err)
	return executed, s
}

// Everything is there again after the program was killed: its services run on,
// with their ids and their sessions. It also is there after the program ended,
// when they are new ones.
func TestUpGoesOn(t *testing.T) {
	t.Parallel()
	dir, nodes := filepath.Join(t.TempDir(), "data"), ownNodes()
	content := strings.Repeat("content\x00", 10_000)

	first := up(t, nodes, "-data", dir)
	u := first.client()
	check(t, u.register("ann", "secret of ann"))
	check(t, u.login("ann", "secret of ann"))
	check(t, u.sendPost("ann", "one"))
	_, err := u.sendFile("f", strings.NewReader(content), int64(len(content)))
	check(t, err)
	if got := posts(t, u); len(got) != 1 || got[0] != "one" {
		t.Fatalf("posts %q", got)
	}
	await(t, "nine services", func() bool { return len(first.pids()) == 9 })
	before, gateway := first.pids(), isUp.FindString(first.said())

	again := up(t, nodes, "-data", dir)
	if err := again.ended(); err == nil || !strings.Contains(again.said(), ssmmp.ErrStoreInUse.Error()) {
		t.Errorf("a second program with the directory: %v, %s", err, again.said())
	}

	first.kill()
	check(t, u.sendPost("ann", "two, while the program is dead"))

	lock, err := net.Listen("tcp", netip.AddrPortFrom(nodes, lockPort).String())
	check(t, err)
	again = up(t, nodes, "-data", dir)
	if err := again.ended(); err == nil || !strings.Contains(again.said(), "another mesh runs on the addresses of this one") {
		t.Errorf("its addresses are another's: %v, %s", err, again.said())
	}
	check(t, lock.Close())

	second := up(t, nodes, "-data", dir)
	v := second.client()
	await(t, "nine services", func() bool { return len(second.pids()) == 9 })
	for what, pid := range before {
		if got := second.pids()[what]; got != pid || !runs(pid) {
			t.Errorf("%s had pid %d before, %d now; it runs: %t", what, pid, got, runs(pid))
		}
	}
	if got := isUp.FindString(second.said()); got != gateway {
		t.Errorf("%s, want %s", got, gateway)
	}
	check(t, u.sendPost("ann", "three, through sessions of before"))
	// New sessions are there once the services have found their agents again,
	// each for itself.
	soon := func(what string, ask func() error) {
		t.Helper()
		await(t, what, func() bool {
			err := ask()
			var e *statusError
			if !errors.As(err, &e) || e.status != statusUnavailable {
				check(t, err)
			}
			return err == nil
		})
	}
	soon("a login", func() error { return v.login("ann", "secret of ann") })
	soon("a post", func() error { return v.sendPost("ann", "four") })
	soon("the last posts", func() error { _, err := v.last10(); return err })
	if got := posts(t, v); len(got) != 4 || got[0] != "four" || got[3] != "one" {
		t.Errorf("posts %q", got)
	}
	var file strings.Builder
	soon("the file", func() error { file.Reset(); _, err := v.getFile("f", &file); return err })
	if file.String() != content {
		t.Errorf("the file has %d bytes", file.Len())
	}
	executed, s := started(t, dir)
	for service, n := range executed {
		if n != 1 {
			t.Errorf("%s was executed %d times", service, n)
		}
	}
	if len(executed) != 9 || len(s.Instances) != 9 {
		t.Errorf("%d services were executed, the state has %d instances", len(executed), len(s.Instances))
	}
	last := s.Instances[len(s.Instances)-1].ID

	u.close()
	v.close()
	second.stop()
	if _, s = started(t, dir); len(s.Graphs) > 0 || len(s.Instances) > 0 {
		t.Errorf("after the end the state has %v, %v", s.Graphs, s.Instances)
	}

	third := up(t, nodes, "-data", dir)
	w := third.client()
	check(t, w.login("ann", "secret of ann"))
	if got := posts(t, w); len(got) != 4 || got[0] != "four" {
		t.Errorf("posts %q", got)
	}
	if _, err := w.getFile("f", io.Discard); err != nil {
		t.Error(err)
	}
	if _, s = started(t, dir); len(s.Instances) == 0 || s.Instances[0].ID <= last {
		t.Errorf("instances %v, want ids after %d", s.Instances, last)
	}
	w.close()
	third.stop()
}

// Without a directory nothing of a program that was killed is left.
func TestUpKilled(t *testing.T) {
	t.Parallel()
	p := up(t, ownNodes())
	u := p.client()
	check(t, u.register("ann", "secret of ann"))
	await(t, "three services", func() bool { return len(p.pids()) == 3 })
	p.kill()
	for what, pid := range p.pids() {
		await(t, what+" ends", func() bool { return !runs(pid) })
	}
}
