//go:build (!unix && !windows) || solaris || aix

package ssmmp

import "os"

// lockFile creates a file that is not there. Here a file cannot be locked for
// as long as its process lives, so one that died leaves it, to be removed by a
// person; one that ends well removes it.
func lockFile(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
}

func unlockFile(f *os.File) {
	f.Close()
	os.Remove(f.Name())
}

// syncDir does nothing: directories cannot be synchronized here.
func syncDir(string) error { return nil }
