package ssmmp

import (
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"unsafe"
)

const (
	processQueryLimited = 0x1000 // PROCESS_QUERY_LIMITED_INFORMATION
	stillActive         = 259    // the exit code of a process that runs
)

// A tree is an instance's processes: the first one and its descendants. The
// system keeps no link past an ancestor that has ended, so a process whose
// parent ended before it, other than the first one, is not found. Its methods
// may be called only until the first process was reaped: until then os.Process
// holds a handle, and its id is nobody else's.
type tree struct {
	pid uint32
	// killed says that the first process ended by kill, which its exit code
	// does not tell.
	killed atomic.Bool
}

func newTree(first *os.Process, _ Launch, _ string) *tree { return &tree{pid: uint32(first.Pid)} }

func (t *tree) identity() ProcessIdentity { return ProcessIdentity{PID: int(t.pid)} }

// ownGroup makes an instance the leader of a process group, which a Ctrl-C in
// this process's console does not reach.
func ownGroup() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{CreationFlags: syscall.CREATE_NEW_PROCESS_GROUP}
}

// awaitEnd blocks until the first process has ended, without reaping it.
func (t *tree) awaitEnd() bool {
	h, err := syscall.OpenProcess(syscall.SYNCHRONIZE, false, t.pid)
	if err != nil {
		return false
	}
	defer syscall.CloseHandle(h)
	event, err := syscall.WaitForSingleObject(h, syscall.INFINITE)
	return err == nil && event == syscall.WAIT_OBJECT_0
}

// kill terminates every process of the tree. It returns how many it found
// alive, and why it could not terminate one of them.
func (t *tree) kill() (alive int, err error) {
	// Found before any is terminated: then all still have their parents.
	children, err := childProcesses()
	type member struct {
		pid    uint32
		parent int64 // when its parent was created; an older process is no child
	}
	for queue := []member{{pid: t.pid}}; len(queue) > 0; queue = queue[1:] {
		m := queue[0]
		created, killed, e := terminate(m.pid, m.parent)
		if e != nil {
			err = e
		}
		if killed || e != nil {
			alive++
		}
		if killed && m.pid == t.pid {
			t.killed.Store(true)
		}
		if created == 0 {
			continue
		}
		for _, child := range children[m.pid] {
			queue = append(queue, member{pid: child, parent: created})
		}
		delete(children, m.pid)
	}
	return alive, err
}

// signalNamed returns false: there are no signals that ask a process to end.
func signalNamed(string) (os.Signal, bool) { return nil, false }

func (t *tree) exit(s *os.ProcessState) Exit {
	if t.killed.Load() {
		return Exit{Code: -1, Signal: "SIGKILL"}
	}
	return Exit{Code: s.ExitCode()}
}

func (t *tree) owns(net.Conn) (owns, known bool) { return false, false }

// childProcesses returns the ids of all processes by that of their parent.
func childProcesses() (map[uint32][]uint32, error) {
	children := make(map[uint32][]uint32)
	snap, err := syscall.CreateToolhelp32Snapshot(syscall.TH32CS_SNAPPROCESS, 0)
	if err != nil {
		return children, os.NewSyscallError("CreateToolhelp32Snapshot", err)
	}
	defer syscall.CloseHandle(snap)
	entry := syscall.ProcessEntry32{Size: uint32(unsafe.Sizeof(syscall.ProcessEntry32{}))}
	for err = syscall.Process32First(snap, &entry); err == nil; err = syscall.Process32Next(snap, &entry) {
		children[entry.ParentProcessID] = append(children[entry.ParentProcessID], entry.ProcessID)
	}
	return children, nil
}

// terminate ends the process unless it was created before its parent, whose id
// was then used again. It returns when the process was created, 0 if it is
// none of the tree's, and whether it was alive.
func terminate(pid uint32, parent int64) (created int64, killed bool, err error) {
	h, err := syscall.OpenProcess(syscall.PROCESS_TERMINATE|processQueryLimited, false, pid)
	if err != nil {
		return 0, false, nil // it has ended, or is another user's
	}
	defer syscall.CloseHandle(h)
	var creation, exit, kernel, user syscall.Filetime
	if err := syscall.GetProcessTimes(h, &creation, &exit, &kernel, &user); err != nil {
		return 0, false, os.NewSyscallError("GetProcessTimes", err)
	}
	created = creation.Nanoseconds()
	if created < parent {
		return 0, false, nil
	}
	var code uint32
	if err := syscall.GetExitCodeProcess(h, &code); err == nil && code != stillActive {
		return created, false, nil
	}
	if err := syscall.TerminateProcess(h, 1); err != nil {
		return created, false, os.NewSyscallError("TerminateProcess", err)
	}
	return created, true, nil
}
