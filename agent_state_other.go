//go:build (!unix && !windows) || solaris || aix

package ssmmp

import (
	"errors"
	"io/fs"
	"os"
)

// lockFile creates a file, and fails with errLocked if it is there. Here a file cannot be locked for
// as long as its process lives, so one that died leaves it, to be removed by a
// person; one that ends well removes it.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		err = &os.PathError{Op: "open", Path: path, Err: errLocked}
	}
	return f, err
}

func unlockFile(f *os.File) {
	f.Close()
	os.Remove(f.Name())
}

// syncDir does nothing: directories cannot be synchronized here.
func syncDir(string) error { return nil }
