//go:build !linux

package ssmmp

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
)

// reattach refuses: here nothing tells a process from a later one with its id.
func (c CommandLauncher) reattach(context.Context, Launch, ProcessIdentity) (Process, error) {
	return nil, fmt.Errorf("re-attachment: %w", errors.ErrUnsupported)
}

// endMarked refuses: here nothing tells what environment a process has.
func endMarked(...string) error {
	return fmt.Errorf("search by environment: %w", errors.ErrUnsupported)
}

// makeCgroup refuses: only Linux has cgroups.
func makeCgroup(string, *syscall.SysProcAttr) (*os.File, error) {
	return nil, fmt.Errorf("cgroup: %w", errors.ErrUnsupported)
}

func removeCgroup(string) {}

func (t *tree) release() {}
