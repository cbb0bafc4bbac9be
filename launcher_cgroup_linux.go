package ssmmp

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// makeCgroup makes the cgroup of an instance and has its first process begin
// its life there. The caller closes the directory once the process has started.
func makeCgroup(dir string, attr *syscall.SysProcAttr) (*os.File, error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	// Elsewhere than in a cgroup v2 hierarchy it is only a directory.
	if _, err := os.Stat(filepath.Join(dir, "cgroup.kill")); err != nil {
		os.Remove(dir)
		return nil, &fs.PathError{Op: "mkdir", Path: dir, Err: errors.New("not in a cgroup v2 hierarchy with cgroup.kill")}
	}
	f, err := os.Open(dir)
	if err != nil {
		os.Remove(dir)
		return nil, err
	}
	attr.UseCgroupFD, attr.CgroupFD = true, int(f.Fd())
	return f, nil
}

// killCgroup kills every process of a cgroup and of those below it, and reports
// whether any is left. A cgroup that is not there has none.
func killCgroup(dir string) (left bool, err error) {
	err = os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return populated(dir), err
}

// populated reports whether a process lives in a cgroup or below it.
func populated(dir string) bool {
	if dir == "" {
		return false
	}
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.events"))
	return err == nil && bytes.Contains(b, []byte("populated 1"))
}

// cgroupProcs lists the processes of a cgroup.
func cgroupProcs(dir string) []int {
	if dir == "" {
		return nil
	}
	b, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	var pids []int
	for field := range strings.FieldsSeq(string(b)) {
		if pid, err := strconv.Atoi(field); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// removeCgroup removes an empty cgroup, with those that the instance made below
// it. One that is not empty stays.
func removeCgroup(dir string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if e.IsDir() {
			removeCgroup(filepath.Join(dir, e.Name()))
		}
	}
	syscall.Rmdir(dir)
}
