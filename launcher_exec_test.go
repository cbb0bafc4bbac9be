//go:build unix

package ssmmp

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// PROTOCOL section 1: the command line.
func TestCommandLine(t *testing.T) {
	t.Parallel()
	s := newStage(t, loopback)
	c := s.launcher(t)
	c.Args = []string{"-flag", "two words; $HOME `id`"}
	c.Dir = t.TempDir()
	l := testLaunch("service-1", 41)
	l.Sockets = []SocketPort{{"S1", 54000}, {"S2", 54001}}
	l.Plugs = []PlugTarget{{"P1", "S4", "B"}, {"P2", "S2", "C"}}
	start(t, c, l)

	h := s.accept(t).hello
	want := []string{c.Path, "-flag", "two words; $HOME `id`",
		"service-1", "41", "127.0.0.1", "S1, 54000 & S2, 54001", "P1, S4, B & P2, S2, C"}
	if !slices.Equal(h.Args, want) {
		t.Errorf("arguments %q, want %q", h.Args, want)
	}
	if dir, _ := filepath.EvalSymlinks(c.Dir); h.Dir != dir {
		t.Errorf("directory %q, want %q", h.Dir, dir)
	}
	if h.Stdin != 0 {
		t.Errorf("read %d bytes from standard input", h.Stdin)
	}
}

// A template is all of the command line, word by word.
func TestCommandTemplate(t *testing.T) {
	t.Parallel()
	l := testLaunch("service-1", 41)
	l.Sockets = []SocketPort{{"S1", 54000}, {"S2", 54001}}
	five := []string{"service-1", "41", "127.0.0.1", "S1, 54000 & S2, 54001", ""}
	for _, tt := range []struct {
		template []string
		want     []string
		fault    string
	}{
		{[]string{}, nil, ""},
		{[]string{"--port={port:S2}", "{address}:{port:S1}", "{service} {instance}"}, []string{"--port=54001", "127.0.0.1:54000", "service-1 41"}, ""},
		{[]string{"-v", allArguments}, append([]string{"-v"}, five...), ""},
		{[]string{`{{"a": {{}}}}`, "$HOME; `id`", ""}, []string{`{"a": {}}`, "$HOME; `id`", ""}, ""},
		{[]string{"{port:S3}"}, nil, `argument "{port:S3}": the instance has no socket "S3"`},
		{[]string{"{secret}"}, nil, "{secret} is not {service}, {instance}, {address} or {port:SOCKET}"},
		{[]string{"{}"}, nil, "{} is not {service}"},
		{[]string{"x{arguments}"}, nil, "{arguments} is not an argument by itself"},
		{[]string{"{port:S1"}, nil, "a single '{' is no placeholder; '{{' stands for one"},
		{[]string{"}"}, nil, "a single '}' is no placeholder; '}}' stands for one"},
	} {
		got, err := CommandLauncher{Args: []string{"unused"}, Template: tt.template}.arguments(l)
		if tt.fault != "" {
			if err == nil || !strings.Contains(err.Error(), tt.fault) {
				t.Errorf("%q: %v, want %q", tt.template, err, tt.fault)
			}
		} else if err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("%q: %q, %v, want %q", tt.template, got, err, tt.want)
		}
	}
}

// With a template the values of the environment are templates too.
func TestCommandTemplateEnvironment(t *testing.T) {
	t.Parallel()
	l := testLaunch("a", 41)
	l.Sockets = []SocketPort{{"S1", 54000}}
	for _, tt := range []struct {
		template []string
		env      string
		want     string
	}{
		{nil, "PORT={port:S1}", "PORT={port:S1}"},
		{[]string{}, "PORT={port:S1}", "PORT=54000"},
		{[]string{}, "PORT={port:S2}", `environment variable PORT: the instance has no socket "S2"`},
	} {
		env, err := CommandLauncher{Template: tt.template, Env: []string{tt.env}, PassEnv: []string{}}.environment(l)
		if err != nil {
			env = []string{err.Error()}
		}
		if env[0] != tt.want {
			t.Errorf("%s: %q, want %q", tt.env, env[0], tt.want)
		}
	}
}

func TestCommandSignal(t *testing.T) {
	t.Parallel()
	s := newStage(t, loopback)
	p := start(t, s.launcher(t), testLaunch("a", 1)).(Signaler)
	s.accept(t)
	if err := p.Signal("SIGNOTHING"); err == nil || !strings.Contains(err.Error(), `no signal "SIGNOTHING"`) {
		t.Errorf("an unknown signal: %v", err)
	}
	for _, name := range stopSignals {
		if _, ok := signalNamed(name); !ok {
			t.Errorf("there is no signal %s", name)
		}
	}
	if err := p.Signal("SIGTERM"); err != nil {
		t.Error(err)
	}
	if got := p.(Process).Wait(); got.Signal != "SIGTERM" {
		t.Errorf("exit %+v", got)
	}
	if err := p.Signal("SIGTERM"); err != nil {
		t.Errorf("after its end: %v", err)
	}
}

func TestCommandLineOfNothing(t *testing.T) {
	t.Parallel()
	l := testLaunch("a", 1)
	l.Address = netip.MustParseAddr("fd00::7")
	got, err := commandArgs(l)
	if want := []string{"a", "1", "fd00::7", "", ""}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
}

func TestCommandEnvironment(t *testing.T) {
	t.Parallel()
	path, ok := os.LookupEnv("PATH")
	if !ok {
		t.Skip("no PATH to pass on")
	}
	s := newStage(t, loopback)
	c := s.launcher(t)
	c.PassEnv = []string{"PATH", "SSMMP_TEST_UNSET"}
	c.Env = append(c.Env, "EXTRA=a=b", envSecret+"=forged", envInstance+"=99")
	l := testLaunch("a", 41)
	start(t, c, l)

	got := s.accept(t).Env
	slices.Sort(got)
	want := []string{
		"EXTRA=a=b", "PATH=" + path, envAgent + "=127.0.0.1:55556", envInstance + "=41",
		envSecret + "=" + l.Secret, puppetEnv + "=" + s.ln.Addr().String(),
	}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("environment %q, want %q", got, want)
	}
}

func TestCommandEnvironmentByDefault(t *testing.T) {
	t.Parallel()
	env, err := CommandLauncher{}.environment(testLaunch("a", 1))
	if err != nil {
		t.Fatal(err)
	}
	own := []string{envAgent, envInstance, envSecret}
	for _, kv := range env {
		name, value, _ := strings.Cut(kv, "=")
		switch {
		case slices.Contains(own, name):
		case !slices.Contains(defaultPassEnv, name):
			t.Errorf("inherits %s", name)
		case value != os.Getenv(name):
			t.Errorf("%s=%q, want %q", name, value, os.Getenv(name))
		}
	}
	if _, ok := os.LookupEnv("PATH"); ok && !slices.Contains(env, "PATH="+os.Getenv("PATH")) {
		t.Error("does not inherit PATH")
	}
}

func TestCommandOwnGroup(t *testing.T) {
	t.Parallel()
	s := newStage(t, loopback)
	p := start(t, s.launcher(t), testLaunch("a", 1))
	if pid := s.accept(t).PID; p.PID() != pid {
		t.Errorf("PID %d, want %d", p.PID(), pid)
	}
	if group, err := syscall.Getpgid(p.PID()); err != nil || group != p.PID() {
		t.Errorf("process group %d, %v, want %d", group, err, p.PID())
	}
}

func TestCommandExit(t *testing.T) {
	t.Parallel()
	signal := func(s syscall.Signal) func(Process, *puppet) {
		return func(p Process, _ *puppet) { syscall.Kill(p.PID(), s) }
	}
	for _, test := range []struct {
		name, text string
		end        func(Process, *puppet)
		want       Exit
	}{
		{"well", "0", func(_ Process, c *puppet) { c.exit(0) }, Exit{}},
		{"code", "3", func(_ Process, c *puppet) { c.exit(3) }, Exit{Code: 3}},
		{"terminated", "SIGTERM", signal(syscall.SIGTERM), Exit{Code: -1, Signal: "SIGTERM"}},
		{"killed", "SIGKILL", signal(syscall.SIGKILL), Exit{Code: -1, Signal: "SIGKILL"}},
		{"Kill", "SIGKILL", func(p Process, _ *puppet) { p.Kill() }, Exit{Code: -1, Signal: "SIGKILL"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := newStage(t, loopback)
			p := start(t, s.launcher(t), testLaunch("a", 1))
			test.end(p, s.accept(t))
			if got := p.Wait(); got != test.want || got.String() != test.text {
				t.Errorf("exit %+v, want %+v", got, test.want)
			}
			if err := p.Kill(); err != nil {
				t.Errorf("Kill after the end: %v", err)
			}
		})
	}
}

func TestCommandManyCallers(t *testing.T) {
	t.Parallel()
	s := newStage(t, loopback)
	p := start(t, s.launcher(t), testLaunch("a", 1))
	c := s.accept(t)
	var callers sync.WaitGroup
	for range 8 {
		callers.Go(func() {
			if err := p.Kill(); err != nil {
				t.Errorf("Kill: %v", err)
			}
			p.Owns(c)
			if got := p.Wait(); got.Signal != "SIGKILL" || got.Reason != "" {
				t.Errorf("exit %+v", got)
			}
		})
	}
	callers.Wait()
	c.checkGone(t)
}

func TestCommandKillsGroup(t *testing.T) {
	t.Parallel()
	s := newStage(t, loopback)
	p := start(t, s.launcher(t), testLaunch("a", 1))
	first := s.accept(t)
	child := first.spawn(t, s, "group")
	grandchild := child.spawn(t, s, "group")
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	if got := p.Wait(); got.Signal != "SIGKILL" {
		t.Errorf("exit %+v", got)
	}
	for _, c := range []*puppet{first, child, grandchild} {
		c.checkGone(t)
	}
}

func TestCommandLeavesNoChildBehind(t *testing.T) {
	t.Parallel()
	s := newStage(t, loopback)
	p := start(t, s.launcher(t), testLaunch("a", 1))
	first := s.accept(t)
	child := first.spawn(t, s, "group")
	first.exit(7)
	if got := p.Wait(); got != (Exit{Code: 7}) {
		t.Errorf("exit %+v, want code 7", got)
	}
	child.checkGone(t)
}

func TestCommandOutput(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "made", "here")
	s := newStage(t, loopback)
	c := s.launcher(t)
	c.OutputDir = dir
	for _, text := range []string{"one", "two"} {
		p := start(t, c, testLaunch("service-1", 41))
		told := s.accept(t)
		told.tell(t, "print "+text)
		told.exit(0)
		p.Wait()
	}
	got, err := os.ReadFile(filepath.Join(dir, "service-1-41.log"))
	if want := "out one\nerr one\nout two\nerr two\n"; err != nil || string(got) != want {
		t.Errorf("output %q, %v, want %q", got, err, want)
	}
}

func TestCommandOutputStaysInside(t *testing.T) {
	t.Parallel()
	dir, outside := t.TempDir(), filepath.Join(t.TempDir(), "victim")
	if err := os.Symlink(outside, filepath.Join(dir, "a-1.log")); err != nil {
		t.Skip("no symbolic links: ", err)
	}
	c := CommandLauncher{Path: "true", OutputDir: dir}
	if p, err := c.Launch(context.Background(), testLaunch("a", 1)); err == nil {
		p.Wait()
		t.Error("launched with its output outside of OutputDir")
	}
	if _, err := os.Lstat(outside); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file outside of OutputDir: %v", err)
	}
}

func TestCommandRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, []byte("#!/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	canceled, cancel := context.WithCancel(context.Background())
	cancel()
	good := func() (CommandLauncher, Launch) {
		return CommandLauncher{Path: "true", OutputDir: dir}, testLaunch("a", 1)
	}
	for _, test := range []struct {
		name  string
		ctx   context.Context
		spoil func(*CommandLauncher, *Launch)
		is    error  // what errors.Is finds, or nil
		text  string // what the message names
	}{
		{name: "no binary", is: fs.ErrNotExist, text: "absent",
			spoil: func(c *CommandLauncher, _ *Launch) { c.Path = filepath.Join(dir, "absent") }},
		{name: "no binary in PATH", is: fs.ErrNotExist, text: "ssmmp-absent",
			spoil: func(c *CommandLauncher, _ *Launch) { c.Path = "ssmmp-absent" }},
		{name: "no path", is: fs.ErrNotExist,
			spoil: func(c *CommandLauncher, _ *Launch) { c.Path = "" }},
		{name: "not executable", is: fs.ErrPermission, text: plain,
			spoil: func(c *CommandLauncher, _ *Launch) { c.Path = plain }},
		{name: "no directory", is: fs.ErrNotExist, text: "absent",
			spoil: func(c *CommandLauncher, _ *Launch) { c.Dir = filepath.Join(dir, "absent") }},
		{name: "context", ctx: canceled, is: context.Canceled,
			spoil: func(*CommandLauncher, *Launch) {}},
		{name: "environment", text: `"NOVALUE"`,
			spoil: func(c *CommandLauncher, _ *Launch) { c.Env = []string{"NOVALUE"} }},
		{name: "path as service", text: `"../a"`,
			spoil: func(_ *CommandLauncher, l *Launch) { l.Service = "../a" }},
		{name: "flag as service", text: `"-a"`,
			spoil: func(_ *CommandLauncher, l *Launch) { l.Service = "-a" }},
		{name: "dots as service", text: `".."`,
			spoil: func(_ *CommandLauncher, l *Launch) { l.Service = ".." }},
		{name: "no service", text: `""`,
			spoil: func(_ *CommandLauncher, l *Launch) { l.Service = "" }},
		{name: "long service", text: "xxx",
			spoil: func(_ *CommandLauncher, l *Launch) { l.Service = strings.Repeat("x", MaxName+1) }},
		{name: "NUL in service", text: `\x00`,
			spoil: func(_ *CommandLauncher, l *Launch) { l.Service = "a\x00b" }},
		{name: "id", text: "id 0",
			spoil: func(_ *CommandLauncher, l *Launch) { l.ID = 0 }},
		{name: "address", text: "address",
			spoil: func(_ *CommandLauncher, l *Launch) { l.Address = netip.Addr{} }},
		{name: "separator in socket", text: `"S & T"`,
			spoil: func(_ *CommandLauncher, l *Launch) { l.Sockets = []SocketPort{{"S & T", 1}} }},
		{name: "separator in plug", text: `"P, Q"`,
			spoil: func(_ *CommandLauncher, l *Launch) { l.Plugs = []PlugTarget{{"P, Q", "S", "B"}} }},
		{name: "separator in plug's socket", text: `"S~"`,
			spoil: func(_ *CommandLauncher, l *Launch) { l.Plugs = []PlugTarget{{"P", "S~", "B"}} }},
		{name: "separator in plug's service", text: `"B\n"`,
			spoil: func(_ *CommandLauncher, l *Launch) { l.Plugs = []PlugTarget{{"P", "S", "B\n"}} }},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c, l := good()
			test.spoil(&c, &l)
			ctx := test.ctx
			if ctx == nil {
				ctx = context.Background()
			}
			p, err := c.Launch(ctx, l)
			if err == nil {
				p.Wait()
				t.Fatal("launched")
			}
			var le *LaunchError
			if !errors.As(err, &le) || le.Service != l.Service || le.ID != l.ID {
				t.Errorf("%#v is no *LaunchError of the instance", err)
			}
			if test.is != nil && !errors.Is(err, test.is) {
				t.Errorf("%v, want %v", err, test.is)
			}
			if !strings.Contains(err.Error(), test.text) {
				t.Errorf("%v does not name %s", err, test.text)
			}
		})
	}
	t.Run("nothing", func(t *testing.T) {
		t.Parallel()
		c, l := good()
		if got := start(t, c, l).Wait(); got != (Exit{}) {
			t.Errorf("exit %+v", got)
		}
	})
}

func BenchmarkCommandLauncher(b *testing.B) {
	c := CommandLauncher{Path: "true"}
	for id := InstanceID(1); b.Loop(); id++ {
		p, err := c.Launch(context.Background(), testLaunch("a", id))
		if err != nil {
			b.Fatal(err)
		}
		p.Wait()
	}
}

func ExampleCommandLauncher() {
	l := CommandLauncher{Path: "/no/such/binary", OutputDir: os.TempDir()}
	_, err := l.Launch(context.Background(), Launch{
		Service: "login", ID: 7, Address: netip.MustParseAddr("10.0.0.2"),
	})
	fmt.Println(errors.Is(err, fs.ErrNotExist))
	// Output: true
}
