package ssmmp

import (
	"os"
	"syscall"
)

const sharingViolation syscall.Errno = 32

// lockFile opens a file and shares it with nobody for as long as it is open. It
// fails with errLocked if somebody else has it open.
func lockFile(path string) (*os.File, error) {
	name, err := syscall.UTF16PtrFromString(path)
	if err != nil {
		return nil, err
	}
	h, err := syscall.CreateFile(name, syscall.GENERIC_READ|syscall.GENERIC_WRITE, 0, nil, syscall.OPEN_ALWAYS, syscall.FILE_ATTRIBUTE_NORMAL, 0)
	if err == sharingViolation {
		err = errLocked
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(h), path), nil
}

func unlockFile(f *os.File) { f.Close() }

// syncDir does nothing: a rename is durable here when the file is.
func syncDir(string) error { return nil }
