package sqlitestore

import (
	"errors"
	"os"
	"syscall"
)

var errLocked = errors.New("locked")

const sharingViolation syscall.Errno = 32

// openLocked opens a file, which it makes if need be, for as long as which no
// other can open it for writing. It fails with errLocked if one has.
func openLocked(path string) (*os.File, error) {
	name, err := syscall.UTF16PtrFromString(path)
	if err != nil {
		return nil, err
	}
	h, err := syscall.CreateFile(name, syscall.GENERIC_READ|syscall.GENERIC_WRITE, syscall.FILE_SHARE_READ, nil,
		syscall.OPEN_ALWAYS, syscall.FILE_ATTRIBUTE_NORMAL, 0)
	if err == sharingViolation {
		return nil, errLocked
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(h), path), nil
}

func access(string) error { return nil }

func unlock(*os.File) {} // closing does it
