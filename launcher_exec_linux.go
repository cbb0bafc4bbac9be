package ssmmp

import (
	"bytes"
	"cmp"
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// maxEnviron is more than the kernel lets a process have of arguments and
// environment.
const maxEnviron = 8 << 20

// A tree is an instance's processes. Its methods but owns may be called only
// until the first process was reaped: until then its id and its group's are
// nobody else's.
type tree struct {
	pid   int    // of the first process, and of its group; 0 if only others are left
	start uint64 // when that started, in ticks since boot
	// marks are the environment entries that all of the instance's processes
	// inherit. Nil when there is no secret, without which others could have
	// the same.
	marks  [][]byte
	cgroup string // the directory of its own cgroup, empty if it has none

	// adopted says that the first process is not a child of this one: nothing
	// keeps its id and its group's from being used again once it ended.
	adopted bool
	pidfd   *os.File // of the first process of an adopted tree, while it lives

	// mu lets one look at /proc follow another, so that seen only gains.
	mu sync.Mutex
	// seen are the members that the last look found, their starts by pid.
	// Nothing else tells that one without a mark, whose parent has ended since,
	// is of the tree.
	seen map[int]uint64
}

// A procStat is what the tree needs of /proc/PID/stat. The pid and the start
// together name a process for ever.
type procStat struct {
	pid, ppid, pgrp int
	state           byte
	start           uint64 // ticks since boot
}

func newTree(first *os.Process, l Launch, cgroup string) *tree {
	t := &tree{pid: first.Pid, marks: treeMarks(l), cgroup: cgroup}
	if s, err := readStat(t.pid); err == nil {
		t.start = s.start
	}
	return t
}

func treeMarks(l Launch) [][]byte {
	if l.Secret == "" {
		return nil
	}
	return [][]byte{[]byte(instanceMark(l.ID)), []byte(envSecret + "=" + l.Secret)}
}

func (t *tree) identity() ProcessIdentity {
	return ProcessIdentity{PID: t.pid, Start: t.start, Boot: bootID(), Cgroup: t.cgroup}
}

// awaitEnd blocks until the first process has ended, without reaping it. It
// returns false if that cannot be had, as when SIGCHLD is ignored.
func (t *tree) awaitEnd() bool {
	const byPID = 1 // P_PID
	for {
		_, _, errno := syscall.Syscall6(syscall.SYS_WAITID, byPID, uintptr(t.pid), 0,
			syscall.WEXITED|syscall.WNOWAIT, 0, 0)
		if errno != syscall.EINTR {
			return errno == 0
		}
	}
}

// kill sends SIGKILL to every process of the tree. It returns how many it
// found alive, and why it could not send to one of them.
func (t *tree) kill() (alive int, err error) {
	// Found before the signal: then orphans still have their parents.
	members, err := t.members()
	alive = len(members)
	if t.cgroup != "" {
		left, e := killCgroup(t.cgroup)
		if err = cmp.Or(e, err); left {
			alive = max(alive, 1)
		}
	}
	if err != nil {
		alive = max(alive, 1) // for all that can be seen
	}
	if !t.adopted {
		if e := syscall.Kill(-t.pid, syscall.SIGKILL); e != nil && e != syscall.ESRCH {
			err = os.NewSyscallError("kill", e)
		}
	}
	for _, m := range members {
		if m.pgrp == t.pid && !t.adopted {
			continue
		}
		if e := killProcess(m); e != nil {
			err = e
		}
	}
	return alive, err
}

// release gives back what outlasts the processes of a tree.
func (t *tree) release() {
	if t.cgroup != "" {
		removeCgroup(t.cgroup)
	}
}

// members returns the processes of the tree that are alive: the first one, its
// group, those that have its marks, those seen before, and all descendants of
// any of these. The error says that there may be others.
func (t *tree) members() (members []procStat, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []procStat
	children := make(map[int][]procStat) // others, by parent
	self := os.Getpid()
	pids, err := processIDs()
	for _, pid := range pids {
		s, e := readStat(pid)
		if e != nil && !noProcess(e) {
			err = cmp.Or(err, e)
		}
		// The kernel's own threads have no group.
		if e == nil && s.start >= t.start && s.pgrp != 0 && pid != self {
			all = append(all, s)
		}
	}
	marked := func(s procStat) bool {
		is, e := t.marked(s)
		err = cmp.Or(err, e)
		return is
	}
	grouped := t.hasGroup(all, marked)
	for _, s := range all {
		switch {
		case !s.alive():
		case t.isFirst(s) || grouped && s.pgrp == t.pid || t.saw(s) || marked(s):
			members = append(members, s)
		default:
			children[s.ppid] = append(children[s.ppid], s)
		}
	}
	for i := 0; i < len(members); i++ {
		parent := members[i]
		if len(children[parent.pid]) == 0 || parent.replaced() {
			continue
		}
		for _, s := range children[parent.pid] {
			if s.start >= parent.start {
				members = append(members, s)
			}
		}
	}
	t.seen = make(map[int]uint64, len(members))
	for _, m := range members {
		t.seen[m.pid] = m.start
	}
	return members, err
}

// isFirst reports whether that is the tree's first process, alive or a zombie.
func (t *tree) isFirst(s procStat) bool {
	return s.pid == t.pid && (!t.adopted || s.start == t.start)
}

// hasGroup reports whether the group of the first process is the tree's. Its
// id is taken as long as it has a member: so one of the tree's has to be there.
func (t *tree) hasGroup(all []procStat, marked func(procStat) bool) bool {
	return !t.adopted || slices.ContainsFunc(all, func(s procStat) bool {
		return s.pgrp == t.pid && (t.isFirst(s) || t.saw(s) || s.alive() && marked(s))
	})
}

// saw reports whether the last look found that very process to be a member.
func (t *tree) saw(s procStat) bool {
	start, ok := t.seen[s.pid]
	return ok && start == s.start
}

// marked reports whether a process has the instance's marks in the environment
// that it was executed with. One that may not be looked at has not.
func (t *tree) marked(s procStat) (bool, error) {
	if t.marks == nil {
		return false, nil
	}
	env, err := readEnviron(s.pid)
	// A process in the middle of execve has no environment for a moment.
	for try := 0; err == nil && len(env) == 0 && try < 5; try++ {
		time.Sleep(time.Millisecond << try)
		if now, err := readStat(s.pid); err == nil && !now.alive() {
			return false, nil
		}
		env, err = readEnviron(s.pid)
	}
	if err != nil && (noProcess(err) || errors.Is(err, fs.ErrPermission)) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	entries := bytes.Split(env, []byte{0})
	for _, mark := range t.marks { // each of them: one that is there twice proves nothing
		if !slices.ContainsFunc(entries, func(e []byte) bool { return bytes.Equal(e, mark) }) {
			return false, nil
		}
	}
	return true, nil
}

// alive reports whether the process still runs: a zombie does not.
func (s procStat) alive() bool { return s.state != 'Z' && s.state != 'X' }

// replaced reports whether the pid has become another process's.
func (s procStat) replaced() bool {
	now, err := readStat(s.pid)
	return err == nil && now.start != s.start
}

// killProcess sends SIGKILL to that very process, though its pid may have been
// used again: the handle is taken first, and what it stands for checked then.
func killProcess(s procStat) error {
	p, err := os.FindProcess(s.pid)
	if err != nil {
		return err
	}
	defer p.Release()
	if s.replaced() {
		return nil
	}
	if err := p.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

// noProcess tells whether what could not be read in /proc is of a process that
// has gone.
func noProcess(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH)
}

// processIDs lists the processes that /proc shows; none where it is missing.
func processIDs() ([]int, error) {
	dir, err := os.Open("/proc")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	pids := make([]int, 0, len(names))
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, err
}

func readStat(pid int) (procStat, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return procStat{}, err
	}
	return parseStat(pid, b)
}

// parseStat reads the third field and on: the second, the program's name in
// parentheses, may hold anything.
func parseStat(pid int, b []byte) (procStat, error) {
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(f) < 20 {
		return procStat{}, errors.New("/proc/PID/stat is too short")
	}
	s := procStat{pid: pid, state: f[0][0]}
	var errs [3]error
	s.ppid, errs[0] = strconv.Atoi(string(f[1]))
	s.pgrp, errs[1] = strconv.Atoi(string(f[2]))
	s.start, errs[2] = strconv.ParseUint(string(f[19]), 10, 64)
	return s, errors.Join(errs[:]...)
}

func readEnviron(pid int) ([]byte, error) {
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/environ")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxEnviron))
}
