//go:build unix

package sqlitestore

import (
	"errors"
	"os"
	"syscall"
)

var errLocked = errors.New("locked")

// openLocked opens a file, which it makes if need be, and locks it for as long
// as it is open. It fails with errLocked if it is locked already.
func openLocked(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err != syscall.EINTR {
			break
		}
	}
	if err == nil {
		return f, nil
	}
	f.Close()
	if err == syscall.EWOULDBLOCK {
		return nil, errLocked
	}
	return nil, &os.PathError{Op: "flock", Path: path, Err: err}
}

// access reports whether this process may read and write a file.
func access(path string) error {
	if err := syscall.Access(path, 6); err != nil {
		return &os.PathError{Op: "access", Path: path, Err: err}
	}
	return nil
}

func unlock(f *os.File) { syscall.Flock(int(f.Fd()), syscall.LOCK_UN) }
