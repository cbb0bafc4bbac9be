//go:build unix

package ssmmp

import (
	"os"
	"strconv"
	"syscall"
)

// signalNames has the signals that can end a process on every Unix.
var signalNames = map[syscall.Signal]string{
	syscall.SIGABRT:   "SIGABRT",
	syscall.SIGALRM:   "SIGALRM",
	syscall.SIGBUS:    "SIGBUS",
	syscall.SIGFPE:    "SIGFPE",
	syscall.SIGHUP:    "SIGHUP",
	syscall.SIGILL:    "SIGILL",
	syscall.SIGINT:    "SIGINT",
	syscall.SIGKILL:   "SIGKILL",
	syscall.SIGPIPE:   "SIGPIPE",
	syscall.SIGPROF:   "SIGPROF",
	syscall.SIGQUIT:   "SIGQUIT",
	syscall.SIGSEGV:   "SIGSEGV",
	syscall.SIGSYS:    "SIGSYS",
	syscall.SIGTERM:   "SIGTERM",
	syscall.SIGTRAP:   "SIGTRAP",
	syscall.SIGUSR1:   "SIGUSR1",
	syscall.SIGUSR2:   "SIGUSR2",
	syscall.SIGVTALRM: "SIGVTALRM",
	syscall.SIGXCPU:   "SIGXCPU",
	syscall.SIGXFSZ:   "SIGXFSZ",
}

// signalNamed returns the signal that has a name, and false if there is none.
func signalNamed(name string) (os.Signal, bool) {
	for s, n := range signalNames {
		if n == name {
			return s, true
		}
	}
	return nil, false
}

// ownGroup makes an instance the leader of a process group, which neither a
// signal from this process's terminal nor this process's death reaches.
func ownGroup() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}

func (t *tree) exit(s *os.ProcessState) Exit {
	ws, ok := s.Sys().(syscall.WaitStatus)
	if !ok || !ws.Signaled() {
		return Exit{Code: s.ExitCode()}
	}
	name, ok := signalNames[ws.Signal()]
	if !ok {
		name = "SIG" + strconv.Itoa(int(ws.Signal()))
	}
	return Exit{Code: -1, Signal: name}
}
