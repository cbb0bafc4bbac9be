package ssmmp

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func reattached(t *testing.T, c CommandLauncher, l Launch, id ProcessIdentity) Process {
	t.Helper()
	p, err := c.Reattach(context.Background(), l, id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Kill()
		p.Wait()
	})
	return p
}

// An instance is found again by what was noted of its process, and by its
// marks alone when nothing was.
func TestReattach(t *testing.T) {
	t.Parallel()
	for _, noted := range []bool{true, false} {
		s := newStage(t, loopback)
		c, l := s.launcher(t), testLaunch("a", 1)
		p := start(t, c, l)
		first := s.accept(t)
		all := []*puppet{first, first.spawn(t, s, "bare"), first.spawn(t, s, "daemon")}
		other := start(t, c, testLaunch("a", 1))
		stranger := s.accept(t)

		var id ProcessIdentity
		if noted {
			id = p.(Identified).Identity()
		}
		q := reattached(t, c, l, id)
		if q.PID() != p.PID() || q.(Identified).Identity() != p.(Identified).Identity() {
			t.Errorf("noted %t: found %d, want %d", noted, q.PID(), p.PID())
		}
		for _, m := range all {
			if owns, known := q.Owns(m); m != all[1] && (!owns || !known) {
				t.Errorf("noted %t: its own connection: owns %t, known %t", noted, owns, known)
			}
		}
		if owns, known := q.Owns(stranger); owns || !known {
			t.Errorf("noted %t: another's connection: owns %t, known %t", noted, owns, known)
		}
		if err := q.Kill(); err != nil {
			t.Error(err)
		}
		if got := q.Wait(); got != (Exit{Code: -1, Unknown: true}) || got.String() != "unknown" {
			t.Errorf("noted %t: exit %+v", noted, got)
		}
		for _, m := range all {
			checkEnded(t, m)
		}
		stranger.tell(t, "print alive")
		other.Kill()
		p.Wait()
	}
}

// What runs after the first process has ended is ended as well.
func TestReattachSweeps(t *testing.T) {
	t.Parallel()
	s := newStage(t, loopback)
	c, l := s.launcher(t), testLaunch("a", 1)
	p := start(t, c, l)
	first := s.accept(t)
	q := reattached(t, c, l, p.(Identified).Identity())
	child, daemon := first.spawn(t, s, "group"), first.spawn(t, s, "daemon")
	first.exit(0)
	q.Wait()
	checkEnded(t, child)
	checkEnded(t, daemon)
}

// An instance that was found again can be asked to end.
func TestReattachSignal(t *testing.T) {
	t.Parallel()
	s := newStage(t, loopback)
	c, l := s.launcher(t), testLaunch("a", 1)
	p := start(t, c, l)
	s.accept(t)
	q := reattached(t, c, l, p.(Identified).Identity())
	if err := q.(Signaler).Signal("SIGTERM"); err != nil {
		t.Error(err)
	}
	if got := p.Wait(); got.Signal != "SIGTERM" {
		t.Errorf("exit %+v", got)
	}
	q.Wait()
	if err := q.(Signaler).Signal("SIGTERM"); err != nil {
		t.Errorf("after its end: %v", err)
	}
}

// Nobody else's process is taken for the instance's.
func TestReattachNot(t *testing.T) {
	t.Parallel()
	s := newStage(t, loopback)
	c, l := s.launcher(t), testLaunch("a", 1)
	l.Secret = ""
	p := start(t, c, l)
	bystander := s.accept(t)
	id := p.(Identified).Identity()
	later, before := id, id
	later.Start++
	before.Boot = "another"
	for name, id := range map[string]ProcessIdentity{"another start": later, "another boot": before, "nothing": {}} {
		q, err := c.Reattach(context.Background(), l, id)
		var le *LaunchError
		if q != nil || !errors.Is(err, ErrNotFound) || !errors.As(err, &le) {
			t.Errorf("%s: %v, %v; want ErrNotFound", name, q, err)
		}
	}
	bystander.tell(t, "print alive")
	bystander.exit(0)
	p.Wait()
	if _, err := c.Reattach(context.Background(), l, id); !errors.Is(err, ErrNotFound) {
		t.Errorf("ended: %v, want ErrNotFound", err)
	}
}

// newCgroup returns a directory in which cgroups can be made.
func newCgroup(t testing.TB) string {
	t.Helper()
	mounts, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		if len(f) < 3 || f[2] != "cgroup2" {
			continue
		}
		dir, err := os.MkdirTemp(f[1], "ssmmp-test-")
		if err != nil {
			t.Skipf("cannot make a cgroup: %v", err)
		}
		if _, err := os.Stat(filepath.Join(dir, "cgroup.kill")); err != nil {
			os.Remove(dir)
			t.Skipf("cannot kill a cgroup: %v", err)
		}
		t.Cleanup(func() {
			if err := os.Remove(dir); err != nil {
				killCgroup(dir)
				t.Errorf("a cgroup is left: %v", err)
			}
		})
		return dir
	}
	t.Skip("no cgroup v2 hierarchy is mounted")
	return ""
}

// From its cgroup nothing of an instance escapes: not even what left the group,
// lost its parent and cleared its environment.
func TestCommandCgroup(t *testing.T) {
	t.Parallel()
	dir := newCgroup(t)
	for _, how := range []string{"killed", "ended", "killed by another", "found by its cgroup"} {
		s := newStage(t, loopback)
		c, l := s.launcher(t), testLaunch("a", 1)
		c.Cgroup = dir
		p := start(t, c, l)
		first := s.accept(t)
		// Its parent, a bare one, exits at once: so it is nobody's descendant.
		bare := first.spawn(t, s, "bare")
		lost := bare.spawn(t, s, "bare")
		bare.exit(0)
		bare.checkGone(t)
		id := p.(Identified).Identity()
		if _, err := os.Stat(id.Cgroup); err != nil || !strings.HasPrefix(id.Cgroup, dir) {
			t.Fatalf("cgroup %q: %v", id.Cgroup, err)
		}
		switch how {
		case "killed":
			p.Kill()
		case "ended":
			first.exit(0)
		case "killed by another":
			reattached(t, c, l, id).Kill()
		case "found by its cgroup":
			reattached(t, c, l, ProcessIdentity{}).Kill()
		}
		p.Wait()
		checkEnded(t, first)
		checkEnded(t, lost)
		if _, err := os.Stat(id.Cgroup); err == nil && how != "killed by another" && how != "found by its cgroup" {
			t.Errorf("%s: %s is left", how, id.Cgroup)
		}
	}
	c, l := CommandLauncher{Path: "true", Cgroup: t.TempDir()}, testLaunch("a", 1)
	if _, err := c.Launch(context.Background(), l); err == nil || !strings.Contains(err.Error(), "cgroup v2") {
		t.Errorf("a directory that is no cgroup: %v", err)
	}
	c.Cgroup = dir
	c.Path = filepath.Join(t.TempDir(), "nothing")
	if err := os.WriteFile(c.Path, nil, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Launch(context.Background(), l); err == nil {
		t.Error("an empty file was executed")
	}
}
