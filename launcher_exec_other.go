//go:build !unix && !windows

package ssmmp

import (
	"errors"
	"net"
	"os"
	"syscall"
)

// A tree is an instance's processes: here, the first one only.
type tree struct{ first *os.Process }

func newTree(first *os.Process, _ Launch, _ string) *tree { return &tree{first: first} }

func ownGroup() *syscall.SysProcAttr { return nil }

// awaitEnd returns false: a process cannot be waited for without reaping it.
func (t *tree) awaitEnd() bool { return false }

// kill ends the process, and returns 0 if it has ended.
func (t *tree) kill() (alive int, err error) {
	switch err := t.first.Kill(); {
	case err == nil:
		return 1, nil
	case errors.Is(err, os.ErrProcessDone):
		return 0, nil
	default:
		return 1, err
	}
}

// signalNamed returns false: there are no signals that ask a process to end.
func signalNamed(string) (os.Signal, bool) { return nil, false }

func (t *tree) exit(s *os.ProcessState) Exit { return Exit{Code: s.ExitCode()} }

func (t *tree) owns(net.Conn) (owns, known bool) { return false, false }

func (t *tree) identity() ProcessIdentity { return ProcessIdentity{PID: t.first.Pid} }
