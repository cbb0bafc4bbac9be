//go:build unix && !linux

package ssmmp

import (
	"net"
	"os"
	"syscall"
)

// A tree is an instance's processes: here, its process group.
type tree struct{ group int }

func newTree(first *os.Process, _ Launch, _ string) *tree { return &tree{group: first.Pid} }

// awaitEnd returns false: there is no portable way to wait for a process
// without reaping it. So the group is swept just after its leader was reaped;
// the group's id stays taken as long as it has a member.
func (t *tree) awaitEnd() bool { return false }

// kill sends SIGKILL to the group, and returns 0 if it is empty.
func (t *tree) kill() (alive int, err error) {
	switch err := syscall.Kill(-t.group, syscall.SIGKILL); err {
	case nil:
		return 1, nil
	case syscall.ESRCH:
		return 0, nil
	default:
		return 1, os.NewSyscallError("kill", err)
	}
}

func (t *tree) owns(net.Conn) (owns, known bool) { return false, false }

func (t *tree) identity() ProcessIdentity { return ProcessIdentity{PID: t.group} }
