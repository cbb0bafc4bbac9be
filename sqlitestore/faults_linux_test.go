package sqlitestore_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ssmmp/ssmmp"
	"github.com/ssmmp/ssmmp/sqlitestore"
)

// writerEnv has this program be a process that appends to the store of that
// name, for as long as it can, and says so.
const writerEnv = "SQLITESTORE_TEST_WRITER"

func TestMain(m *testing.M) {
	if path := os.Getenv(writerEnv); path != "" {
		write(path)
		return
	}
	os.Exit(m.Run())
}

// write appends batch after batch, and prints the last event of each that is
// acknowledged. After the first error it goes on trying.
func write(path string) {
	ctx := context.Background()
	s := sqlitestore.New(path)
	_, last, err := s.Acquire(ctx)
	if err != nil {
		fmt.Println("cannot acquire:", err)
		return
	}
	fmt.Println("acquired", last)
	for failures := 0; failures < 20; {
		n := last%5 + 1
		batch := make([]ssmmp.Event, n)
		for i := range batch {
			batch[i] = writerEvent(last + 1 + uint64(i))
		}
		if err := s.Append(ctx, batch); err != nil {
			failures++
			fmt.Println("failed", errors.Is(err, ssmmp.ErrStoreFailed), err)
			continue
		}
		last += n
		if _, err := fmt.Println("acknowledged", last); err != nil {
			return // nobody listens
		}
		if last%50 == 0 {
			if err := s.Checkpoint(ctx, last, nil); err != nil {
				failures++
				fmt.Println("failed", errors.Is(err, ssmmp.ErrStoreFailed), err)
			}
		}
	}
}

func writerEvent(seq uint64) ssmmp.Event {
	return ssmmp.Event{Seq: seq, Time: time.Unix(int64(seq), 0).UTC(), Kind: ssmmp.EventSessionOpened, Service: "cart", Cause: strings.Repeat("x", int(seq%100))}
}

// A writer is a process that appends to a store.
type writer struct {
	t     *testing.T
	cmd   *exec.Cmd
	lines *bufio.Scanner
}

func startWriter(t *testing.T, path string, wrapper ...string) *writer {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	args := append(wrapper, self)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), writerEnv+"="+path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		cmd.Wait()
	})
	return &writer{t: t, cmd: cmd, lines: bufio.NewScanner(out)}
}

// next returns the next line, and false at the end.
func (w *writer) next() (string, bool) {
	ok := w.lines.Scan()
	return w.lines.Text(), ok
}

func acknowledged(line string) (uint64, bool) {
	n, ok := strings.CutPrefix(line, "acknowledged ")
	if !ok {
		return 0, false
	}
	seq, err := strconv.ParseUint(n, 10, 64)
	return seq, err == nil
}

// checkHistory looks that a store opens and has the writer's events, up to one
// that is acknowledged at least.
func checkHistory(t *testing.T, path string, acknowledged uint64) {
	t.Helper()
	s := sqlitestore.New(path)
	defer s.Close()
	_, last, err := s.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	n := uint64(0)
	for ev, err := range s.Query(t.Context(), ssmmp.EventQuery{}) {
		if n++; err != nil || !same([]ssmmp.Event{ev}, []ssmmp.Event{writerEvent(n)}) {
			t.Fatalf("event %d: %+v, %v", n, ev, err)
		}
	}
	if n != last || last < acknowledged {
		t.Fatalf("%d events and the last is %d, where %d were acknowledged", n, last, acknowledged)
	}
	for _, err := range s.Replay(t.Context(), 0) {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func needRoot(t *testing.T, what string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root,", what)
	}
}

// mount mounts what is to be unmounted at the end.
func mount(t *testing.T, dir string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), "mount", append(args, dir)...).CombinedOutput(); err != nil {
		t.Skipf("SKIPPED: cannot mount here: mount %s %s: %v: %s", strings.Join(args, " "), dir, err, out)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
}

// onSmallDisk returns a store on a disk that is soon full, and its directory.
func onSmallDisk(t *testing.T, size string) (s *sqlitestore.Store, dir string) {
	t.Helper()
	needRoot(t, "to mount a disk that is soon full")
	dir = t.TempDir()
	mount(t, dir, "-t", "tmpfs", "-o", "size="+size, "tmpfs")
	s = sqlitestore.New(filepath.Join(dir, "manager.db"))
	t.Cleanup(func() { s.Close() })
	if _, _, err := s.Acquire(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s, dir
}

// nextEvents returns the forty events after one.
func nextEvents(last uint64) []ssmmp.Event {
	batch := make([]ssmmp.Event, 40)
	for i := range batch {
		batch[i] = writerEvent(last + 1 + uint64(i))
	}
	return batch
}

// When the disk is full the store says so, loses nothing, can be read, and goes
// on with the same events when there is room.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	s, dir := onSmallDisk(t, "512k")
	last := uint64(0)
	appendTo := func(limit uint64) error {
		for last < limit {
			batch := nextEvents(last)
			if err := s.Append(t.Context(), batch); err != nil {
				return err
			}
			last += uint64(len(batch))
		}
		return nil
	}
	err := appendTo(100_000)
	if !errors.Is(err, ssmmp.ErrStoreFull) || errors.Is(err, ssmmp.ErrStoreFailed) {
		t.Fatalf("after event %d: %v", last, err)
	}
	t.Logf("after event %d: %v", last, err)
	for range 3 {
		if err := appendTo(last + 1); !errors.Is(err, ssmmp.ErrStoreFull) {
			t.Fatalf("tried again: %v", err)
		}
		if err := s.Checkpoint(t.Context(), last, make([]ssmmp.Event, 20_000)); !errors.Is(err, ssmmp.ErrStoreFull) {
			t.Fatalf("checkpoint: %v", err)
		}
	}
	n := uint64(0)
	for ev, err := range s.Query(t.Context(), ssmmp.EventQuery{}) {
		if n++; err != nil || ev.Seq != n {
			t.Fatal(ev, err)
		}
	}
	if n != last {
		t.Fatalf("%d events can be read, %d were acknowledged", n, last)
	}
	// As found by a process that came now; the disk stays full.
	checkHistory(t, filepath.Join(copyDir(t, dir), "manager.db"), last)

	if out, err := exec.CommandContext(t.Context(), "mount", "-o", "remount,size=16m", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := appendTo(last + 1000); err != nil {
		t.Fatalf("with room again: %v", err)
	}
	checkHistory(t, filepath.Join(copyDir(t, dir), "manager.db"), last)
}

// On a full disk the store forgets what it need not keep, and goes on in the room
// that this makes.
func TestDiskFullForgets(t *testing.T) {
	t.Parallel()
	s, dir := onSmallDisk(t, "32m")
	last := uint64(0)
	fill := func(limit uint64) error {
		for last < limit {
			batch := nextEvents(last)
			if err := s.Append(t.Context(), batch); err != nil {
				return err
			}
			last += uint64(len(batch))
			if last%4000 != 0 {
				continue
			}
			if err := s.Checkpoint(t.Context(), last, nil); err != nil {
				return err
			}
			if err := s.Retain(t.Context(), ssmmp.Retention{Before: time.Unix(1, 0)}); err != nil { // nothing is so old
				return err
			}
		}
		return nil
	}
	for range 3 {
		before := last
		if err := fill(last + 1_000_000); !errors.Is(err, ssmmp.ErrStoreFull) {
			t.Fatalf("after event %d: %v", last, err)
		}
		// Another program takes the rest, to the last byte.
		other, err := os.Create(filepath.Join(dir, "other"))
		if err != nil {
			t.Fatal(err)
		}
		for block := make([]byte, 4096); err == nil; {
			_, err = other.Write(block)
		}
		other.Close()
		if err := fill(last + 1); !errors.Is(err, ssmmp.ErrStoreFull) {
			t.Fatalf("with no byte left: %v", err)
		}
		if before > 0 { // not the first time: so would a Manager that was started now
			s.Close()
			if _, _, err := s.Acquire(t.Context()); err != nil {
				t.Fatalf("with no byte left: %v", err)
			}
		}
		if err := s.Retain(t.Context(), ssmmp.Retention{Before: time.Unix(int64(before+(last-before)/2), 0)}); err != nil {
			t.Fatalf("after event %d: %v", last, err)
		}
		n := uint64(0)
		for ev, err := range s.Query(t.Context(), ssmmp.EventQuery{}) {
			if err != nil {
				t.Fatal(err)
			}
			if n++; n == 1 {
				t.Logf("at event %d the history begins with %d", last, ev.Seq)
				n = ev.Seq
			}
			if ev.Seq != n {
				t.Fatalf("event %d, want %d", ev.Seq, n)
			}
		}
		if n != last {
			t.Fatalf("the history ends with event %d, acknowledged were %d", n, last)
		}
	}
	if err := fill(last + 4000); err != nil {
		t.Fatalf("in the room that was made: %v", err)
	}
}

// After an fsync that failed nothing is acknowledged any more, though the next
// one would succeed: nobody knows what is on the disk.
func TestSyncFails(t *testing.T) {
	t.Parallel()
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("SKIPPED: no strace here, which would make an fsync fail:", err)
	}
	for call, when := range map[string]int{"fsync,fdatasync": 25, "pwrite64,write": 300} {
		t.Run(call, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "manager.db")
			// One call on the write-ahead log fails, all others succeed.
			w := startWriter(t, path, strace, "-f", "-qq", "-o", filepath.Join(t.TempDir(), "trace"), "-P", path+"-wal", "-e", "trace="+call, "-e", fmt.Sprintf("inject=%s:error=EIO:when=%d", call, when))
			last, failures, after := uint64(0), 0, 0
			for line, ok := w.next(); ok; line, ok = w.next() {
				if seq, ok := acknowledged(line); ok {
					if last = seq; failures > 0 {
						after++
					}
				} else if strings.HasPrefix(line, "failed") {
					if failures++; !strings.HasPrefix(line, "failed true") {
						t.Error("not ErrStoreFailed:", line)
					} else if failures == 1 {
						t.Logf("after event %d: %s", last, line)
					}
				} else if strings.HasPrefix(line, "cannot") {
					if strings.Contains(line, "ptrace") {
						t.Skip("SKIPPED:", line)
					}
					t.Fatal(line)
				}
			}
			if err := w.cmd.Wait(); err != nil {
				t.Fatal("the writer under strace: ", err)
			}
			if last == 0 || failures < 20 || after != 0 { // and of a checkpoint before
				t.Errorf("%d acknowledged, then %d failures, and %d commits acknowledged after the first of them", last, failures, after)
			}
			checkHistory(t, path, last)
		})
	}
}

// A power cut leaves what was acknowledged. The disk is an image file; a copy of
// it, made while a process that was stopped between two instructions has it
// mounted, has what was synced and of the rest what happened to be written.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	needRoot(t, "to mount an image of a disk")
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		t.Skip("SKIPPED: no mkfs.ext4 here, which would make the image of a disk:", err)
	}
	dir := t.TempDir()
	image := filepath.Join(dir, "disk")
	if out, err := exec.CommandContext(t.Context(), "mkfs.ext4", "-q", "-F", "-m", "0", image, "32m").CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v: %s", err, out)
	}
	mountImage := func(image string) string {
		at := image + "-mounted"
		if err := os.Mkdir(at, 0o700); err != nil {
			t.Fatal(err)
		}
		mount(t, at, "-o", "loop", image)
		return at
	}
	path := filepath.Join(mountImage(image), "manager.db")
	w := startWriter(t, path)
	if line, _ := w.next(); line != "acquired 0" {
		t.Fatal(line)
	}
	last := uint64(0)
	for cut := range 5 {
		for range 40 + 17*cut {
			line, ok := w.next()
			seq, is := acknowledged(line)
			if !ok || !is {
				t.Fatalf("%q", line)
			}
			last = seq
		}
		if err := syscall.Kill(w.cmd.Process.Pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		waitStopped(t, w.cmd.Process.Pid)
		copied := filepath.Join(dir, fmt.Sprint("cut", cut))
		copyFile(t, image, copied)
		if err := syscall.Kill(w.cmd.Process.Pid, syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		at := mountImage(copied)
		checkHistory(t, filepath.Join(at, "manager.db"), last)
		// Another test may be executing a process, which has what is open here
		// for a moment.
		if err := syscall.Unmount(at, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d events acknowledged at the last of 5 cuts", last)
}

// waitStopped waits until all threads of a process are stopped, and thus none is
// in a system call.
func waitStopped(t *testing.T, pid int) {
	t.Helper()
	for until := time.Now().Add(time.Minute); ; {
		stopped := true
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		if err != nil || len(tasks) == 0 {
			t.Fatal("no threads of the writer", err)
		}
		for _, task := range tasks {
			b, err := os.ReadFile(task)
			if err == nil && !strings.Contains(string(b), ") T ") {
				stopped = false
			}
		}
		if stopped {
			return
		}
		if time.Now().After(until) {
			t.Fatal("the writer does not stop")
		}
		<-time.After(time.Millisecond)
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	src, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	dst, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	if _, err := io.Copy(dst, src); err != nil {
		t.Fatal(err)
	}
}
