package sqlitestore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/ssmmp/ssmmp"
)

// A lockFile stands beside the database. Its lock says that a Manager holds the
// store; its two lines say which one, and up to which event it has acknowledged.
// The second is written after each commit and not synced: after a crash of the
// process it is exact, after one of the machine it may say less than is true,
// but never more. So acknowledged events that are missing are missed, be it that
// the end of the write-ahead log was damaged, which SQLite takes for a torn one.
type lockFile struct{ f *os.File }

const (
	holderSize = 128 // of the first line, padded
	markSize   = len("acknowledged 00000000000000000000 00000000\n")
)

// lockPatience is how long lock waits: a process that was killed while it was
// executing another has left that one the lock for a moment.
const lockPatience = 250 * time.Millisecond

// lock takes the lock file, or fails with ErrStoreInUse.
func lock(ctx context.Context, path string) (*lockFile, error) {
	f, err := openLocked(path)
	for until := time.Now().Add(lockPatience); errors.Is(err, errLocked) && time.Now().Before(until); f, err = openLocked(path) {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(lockPatience / 10):
		}
	}
	if errors.Is(err, errLocked) {
		holder := "a process that it does not name"
		if b, err := os.ReadFile(path); err == nil && len(b) >= holderSize {
			holder = strings.TrimSpace(string(b[:holderSize]))
		}
		return nil, fmt.Errorf("sqlitestore: %s is held by %s: %w", path, holder, ssmmp.ErrStoreInUse)
	}
	if err != nil {
		return nil, fmt.Errorf("sqlitestore: lock: %w", err)
	}
	return &lockFile{f}, nil
}

func (l *lockFile) setHolder(holder string) error {
	_, err := l.f.WriteAt(fmt.Appendf(nil, "%-*.*s\n", holderSize-1, holderSize-1, holder), 0)
	return err
}

func (l *lockFile) setMark(seq uint64) error {
	_, err := l.f.WriteAt(formatMark(seq), holderSize)
	return err
}

func formatMark(seq uint64) []byte {
	b := fmt.Appendf(make([]byte, 0, markSize), "acknowledged %020d ", seq)
	return fmt.Appendf(b, "%08x\n", crc32.ChecksumIEEE(b))
}

func (l *lockFile) mark() (uint64, error) { return readMark(l.f) }

func (l *lockFile) close() error {
	unlock(l.f) // also for a process that is just being executed with a copy of l.f
	return l.f.Close()
}

// mark returns what the lock file at path says, 0 if there is none.
func mark(path string) (uint64, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return readMark(f)
}

// readMark returns 0 for a mark that is damaged or being written: less than is
// true does no harm.
func readMark(r io.ReaderAt) (uint64, error) {
	var b [markSize]byte
	if _, err := r.ReadAt(b[:], holderSize); err == io.EOF {
		return 0, nil
	} else if err != nil {
		return 0, err
	}
	var seq uint64
	if _, err := fmt.Sscanf(string(b[:]), "acknowledged %d", &seq); err != nil || !bytes.Equal(b[:], formatMark(seq)) {
		return 0, nil
	}
	return seq, nil
}
