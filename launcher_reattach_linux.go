package ssmmp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

// sysPidfdOpen is pidfd_open(2), which has one number on all that Go runs on;
// package syscall has no name for it.
const sysPidfdOpen = 434

// stateLook is how often a process is looked at where no pidfd can be had.
const stateLook = 100 * time.Millisecond

// bootID names this boot of the machine.
var bootID = sync.OnceValue(func() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
})

func (c CommandLauncher) reattach(ctx context.Context, l Launch, id ProcessIdentity) (Process, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if id.Boot != "" && id.Boot != bootID() {
		return nil, fmt.Errorf("it ran before this boot: %w", ErrNotFound)
	}
	if _, err := readStat(os.Getpid()); err != nil {
		return nil, fmt.Errorf("processes cannot be seen: %w", err)
	}
	t := &tree{pid: id.PID, start: id.Start, marks: treeMarks(l), adopted: true, cgroup: id.Cgroup}
	if t.cgroup == "" && id.PID == 0 && c.Cgroup != "" {
		t.cgroup = cgroupOf(c.Cgroup, l)
	}
	if id.PID == 0 {
		if err := t.findFirst(); err != nil {
			return nil, err
		}
	}
	alive, err := t.openFirst()
	if err == nil && !alive {
		alive, err = t.anyAlive()
	}
	if err != nil {
		t.closeFirst()
		return nil, err
	}
	if !alive {
		t.release()
		return nil, fmt.Errorf("nothing of it runs: %w", ErrNotFound)
	}
	p := &adoptedProcess{tree: t, done: make(chan struct{})}
	go p.follow()
	return p, nil
}

// An adoptedProcess is an instance that an earlier process launched: a tree
// whose first process is not this one's child.
type adoptedProcess struct {
	tree *tree
	done chan struct{} // closed when exit is final
	exit Exit

	mu    sync.Mutex
	ended bool
}

// follow waits for the first process to end and then ends what it left behind.
func (p *adoptedProcess) follow() {
	defer close(p.done)
	p.exit = Exit{Code: -1, Unknown: true}
	p.tree.awaitFirst()
	if err := p.tree.sweep(); err != nil {
		p.exit.Reason = err.Error()
	}
	p.mu.Lock()
	p.ended = true
	p.mu.Unlock()
	p.tree.release()
}

func (p *adoptedProcess) PID() int { return p.tree.identity().PID }

func (p *adoptedProcess) Identity() ProcessIdentity { return p.tree.identity() }

func (p *adoptedProcess) Wait() Exit {
	<-p.done
	return p.exit
}

func (p *adoptedProcess) Kill() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return nil
	}
	_, err := p.tree.kill()
	return err
}

func (p *adoptedProcess) Signal(name string) error {
	s, ok := signalNamed(name)
	if !ok {
		return noSignal(name)
	}
	first, err := os.FindProcess(p.PID())
	if err != nil {
		return err
	}
	defer first.Release()
	if alive, err := p.tree.firstAlive(); !alive {
		return err
	}
	// The handle came before the look, so it is of the process looked at.
	if err := first.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

func (p *adoptedProcess) Owns(c net.Conn) (owns, known bool) {
	owns, known = p.tree.owns(c)
	p.mu.Lock()
	defer p.mu.Unlock()
	return owns && !p.ended, known
}

// endMarked kills every process that has all the marks in its environment.
func endMarked(marks ...string) error {
	t := &tree{adopted: true}
	for _, m := range marks {
		t.marks = append(t.marks, []byte(m))
	}
	return t.sweep()
}

// findFirst looks for the first process of a tree of which only the marks and
// the cgroup are known: it leads its own group and started before all others.
func (t *tree) findFirst() error {
	members, err := t.members()
	if err != nil {
		return err
	}
	pids, err := cgroupProcs(t.cgroup)
	if err != nil {
		return err
	}
	for _, pid := range pids {
		s, err := readStat(pid)
		if err != nil && !noProcess(err) {
			return err
		}
		if err == nil && s.alive() {
			members = append(members, s)
		}
	}
	members = slices.DeleteFunc(members, func(s procStat) bool { return s.pid != s.pgrp })
	if len(members) == 0 {
		return nil
	}
	first := slices.MinFunc(members, func(a, b procStat) int {
		return cmp.Or(cmp.Compare(a.start, b.start), cmp.Compare(a.pid, b.pid))
	})
	t.pid, t.start = first.pid, first.start
	return nil
}

// anyAlive reports whether anything lives of a tree whose first process does
// not.
func (t *tree) anyAlive() (bool, error) {
	members, err := t.members()
	if err != nil || len(members) > 0 {
		return len(members) > 0, err
	}
	return populated(t.cgroup)
}

// openFirst takes a handle of the first process and reports whether that is
// alive. The handle comes first and the look after it: then the handle is of
// the process that was looked at.
func (t *tree) openFirst() (alive bool, err error) {
	if t.pid <= 0 {
		return false, nil
	}
	fd, _, errno := syscall.Syscall(sysPidfdOpen, uintptr(t.pid), syscall.O_NONBLOCK, 0)
	switch errno {
	case 0:
		t.pidfd = os.NewFile(fd, "pidfd")
	case syscall.ESRCH:
		return false, nil
	case syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM:
		return false, os.NewSyscallError("pidfd_open", errno)
	default:
		// Not here: the process is looked at from time to time.
	}
	alive, err = t.firstAlive()
	if !alive {
		t.closeFirst()
	}
	return alive, err
}

// awaitFirst blocks until the first process of an adopted tree has ended.
func (t *tree) awaitFirst() {
	if t.pidfd != nil {
		defer t.closeFirst()
		raw, err := t.pidfd.SyscallConn()
		if err == nil {
			// The runtime's poller wakes this goroutine; no thread waits.
			err = raw.Read(readable)
		}
		if err == nil {
			return
		}
	}
	for {
		if alive, err := t.firstAlive(); err == nil && !alive {
			return
		}
		time.Sleep(stateLook)
	}
}

// readable reports whether a descriptor can be read, as a pidfd can once its
// process has ended.
func readable(fd uintptr) bool {
	poll := struct {
		fd              int32
		events, revents int16
	}{fd: int32(fd), events: 1} // POLLIN
	var now syscall.Timespec
	n, _, errno := syscall.Syscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&poll)), 1, uintptr(unsafe.Pointer(&now)), 0, 0, 0)
	return errno == 0 && n == 1
}

// firstAlive reports whether the first process of an adopted tree lives. With an
// error it is not known.
func (t *tree) firstAlive() (bool, error) {
	s, err := readStat(t.pid)
	if err != nil && !noProcess(err) {
		return false, err
	}
	return err == nil && s.alive() && s.start == t.start, nil
}

func (t *tree) closeFirst() {
	if t.pidfd != nil {
		t.pidfd.Close()
		t.pidfd = nil
	}
}
