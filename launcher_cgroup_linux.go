package ssmmp

import (
	"bytes"
	"cmp"
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
	if noCgroup(err) {
		err = nil
	}
	left, e := populated(dir)
	return left, cmp.Or(err, e)
}

// populated reports whether a process lives in a cgroup or below it.
func populated(dir string) (bool, error) {
	if dir == "" {
		return false, nil
	}
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.events"))
	if err != nil && !noCgroup(err) {
		return false, err
	}
	return bytes.Contains(b, []byte("populated 1")), nil
}

// noCgroup tells whether a cgroup could not be read since it has gone.
func noCgroup(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV)
}

// cgroupProcs lists the processes of a cgroup.
func cgroupProcs(dir string) ([]int, error) {
	if dir == "" {
		return nil, nil
	}
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil && !noCgroup(err) {
		return nil, err
	}
	var pids []int
	for field := range strings.FieldsSeq(string(b)) {
		if pid, err := strconv.Atoi(field); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, nil
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
