//go:build unix

package ssmmp

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
)

// Variables that make the test binary an agent, or an instance of one, in a
// process of its own. Each ends when the connection to its test does, so that
// none outlives a test, however that ends.
const (
	roleEnv  = "SSMMP_TEST_ROLE"  // "agent", "hub", "echo", "mute" or "claim"
	agentEnv = "SSMMP_TEST_AGENT" // an agentSetup as JSON
	leashEnv = "SSMMP_TEST_LEASH" // where the test listens
	runEnv   = "SSMMP_TEST_RUN"   // marks all processes of one test
)

// An agentSetup is what a test tells an agent that it executes.
type agentSetup struct {
	Manager  string
	Address  netip.Addr
	Listen   string
	StateDir string
	Output   string
	Cgroup   string
	Files    uint64 // limit of open files, 0 for none
	Dies     bool   // as soon as it has forked an echo
	Start    time.Duration
}

// A dyingLauncher kills its agent between a fork and the note of it.
type dyingLauncher struct{ CommandLauncher }

func (d dyingLauncher) Launch(ctx context.Context, l Launch) (Process, error) {
	p, err := d.CommandLauncher.Launch(ctx, l)
	if err == nil {
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
	return p, err
}

func roleMain(role string) int {
	leash, err := net.Dial("tcp", os.Getenv(leashEnv))
	if err != nil {
		return 80
	}
	go func() {
		io.Copy(io.Discard, leash)
		syscall.Exit(81)
	}()
	switch role {
	case "agent":
		return agentMain()
	case "mute": // a program that knows nothing of SSMMP
		return muteMain()
	case "claim":
		return claimMain()
	}
	inst, err := Join(context.Background())
	if err != nil {
		return 82
	}
	if role == "hub" {
		return hubMain(inst)
	}
	ln, err := inst.Listen("S1")
	if err != nil {
		return 83
	}
	for {
		c, err := ln.Accept()
		if err != nil {
			return 0
		}
		go func() {
			defer c.Close()
			io.Copy(c, c)
		}()
	}
}

func agentMain() int {
	var s agentSetup
	if err := json.Unmarshal([]byte(os.Getenv(agentEnv)), &s); err != nil {
		return 84
	}
	if s.Files > 0 {
		var limit syscall.Rlimit
		err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit)
		limit.Cur = s.Files // which a test may raise again
		if err = errors.Join(err, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)); err != nil {
			return 85
		}
	}
	path, err := os.Executable()
	if err != nil {
		return 86
	}
	entry := func(service, role string) RepositoryEntry {
		return RepositoryEntry{Service: service, Launcher: CommandLauncher{Path: path, OutputDir: s.Output, Cgroup: s.Cgroup,
			PassEnv: []string{"TMPDIR", leashEnv, runEnv}, Env: []string{roleEnv + "=" + role}}}
	}
	hub, echo, mute := entry("hub", "hub"), entry("echo", "echo"), entry("mute", "mute")
	if s.Dies {
		echo.Launcher = dyingLauncher{echo.Launcher.(CommandLauncher)}
	}
	a, err := NewAgent(AgentConfig{
		Manager: s.Manager, Address: s.Address, Listen: s.Listen, StateDir: s.StateDir,
		Logger:      hclog.New(&hclog.LoggerOptions{Name: "agent", Level: hclog.Debug}),
		BackOffFrom: 10 * time.Millisecond, BackOffTo: 200 * time.Millisecond,
		StartTimeout: s.Start, Repository: []RepositoryEntry{hub, echo, mute},
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 87
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := a.Run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 88
	}
	return 0
}

// muteMain listens on the port that the command line gives its socket.
func muteMain() int {
	l, err := ParseLaunch(os.Args[1:], os.LookupEnv)
	if err != nil || len(l.Sockets) == 0 {
		return 89
	}
	ln, err := net.Listen("tcp", netip.AddrPortFrom(l.Address, l.Sockets[0].Port).String())
	if err != nil {
		return 90
	}
	for {
		c, err := ln.Accept()
		if err != nil {
			return 91
		}
		c.Close()
	}
}

// claimMain claims to be an instance, whose agent and request come by the
// arguments, and prints the answer.
func claimMain() int {
	c, err := net.Dial("tcp", os.Args[1])
	if err != nil {
		return 92
	}
	fmt.Fprintln(c, os.Args[2])
	c.SetReadDeadline(time.Now().Add(patience))
	line, err := bufio.NewReader(c).ReadString('\n')
	fmt.Print(line)
	if err != nil {
		return 93
	}
	return 0
}

// streamPause is the time between two numbers that a hub sends on a session.
const streamPause = 50 * time.Millisecond

// hubMain serves its test. "dial" opens one more session over P1, on which it
// sends numbers and checks that they come back, for ever; "probe" does that for
// one number, and closes; "mute" does nothing over P2; "min" gives the smallest number of those that came
// back on any session. A session that fails ends the process.
func hubMain(inst *Instance) int {
	ln, err := inst.Listen("S0")
	if err != nil {
		return 70
	}
	var streams []*atomic.Uint64
	failed := make(chan error, 1)
	go func() {
		fmt.Fprintln(os.Stderr, "a session failed:", <-failed)
		syscall.Exit(71)
	}()
	for {
		conn, err := ln.Accept()
		if err != nil {
			return 0
		}
		for lines := bufio.NewScanner(conn); lines.Scan(); {
			reply := ""
			switch verb := lines.Text(); verb {
			case "min":
				least := ^uint64(0)
				for _, s := range streams {
					least = min(least, s.Load())
				}
				reply = fmt.Sprint(least)
			case "mute":
				c, err := inst.Dial(context.Background(), "P2")
				if err == nil {
					c.Close()
				}
				reply = fmt.Sprint(err)
			case "dial", "probe":
				c, err := inst.Dial(context.Background(), "P1")
				if err == nil && verb == "probe" {
					err = echoed(c, 1)
					c.Close()
				} else if err == nil {
					n := new(atomic.Uint64)
					streams = append(streams, n)
					go func() {
						for echoed(c, n.Load()+1) == nil {
							n.Add(1)
							<-time.After(streamPause)
						}
						failed <- echoed(c, n.Load()+1)
					}()
				}
				reply = fmt.Sprint(err)
			}
			fmt.Fprintln(conn, strings.ReplaceAll(reply, "\n", " "))
		}
	}
}

// echoed sends a number and waits until it comes back.
func echoed(c net.Conn, n uint64) error {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], n)
	if _, err := c.Write(b[:]); err != nil {
		return err
	}
	if _, err := io.ReadFull(c, b[:]); err != nil {
		return err
	}
	if got := binary.BigEndian.Uint64(b[:]); got != n {
		return fmt.Errorf("%d came back for %d", got, n)
	}
	return nil
}
