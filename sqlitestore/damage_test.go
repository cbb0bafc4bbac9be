package sqlitestore_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/ssmmp/ssmmp"
	"github.com/ssmmp/ssmmp/sqlitestore"
)

// With -damage=-1 each bit and each byte is tried, which takes hours.
var damage = flag.Int("damage", 0, "damage a store in so many places of each file and way, instead of some; -1 for all")

// storeFiles are the files of a store that matter: SQLite makes FILE-shm anew.
var storeFiles = []string{"manager.db", "manager.db-wal", "manager.db-lock"}

// damageBatches are the sizes of the commits in a store that is damaged.
var damageBatches = []int{1, 3, 40, 2, 1, 7}

func damageEvents(n int) []ssmmp.Event {
	events := make([]ssmmp.Event, n)
	for i := range events {
		events[i] = ssmmp.Event{Seq: uint64(i + 1), Time: time.Unix(1_790_000_000, int64(i)).UTC(), Kind: ssmmp.EventSessionOpened, Graph: "shop", Service: "cart",
			Session: ssmmp.SessionID(i), Source: 7, Destination: 8, Plug: "P1", Socket: "S1", Cause: fmt.Sprint("number ", i)}
	}
	return events
}

// damageStore makes a small store, as a Manager that was killed left it, or one
// that was closed, and returns its files.
func damageStore(t *testing.T, closed bool) (files map[string][]byte, events []ssmmp.Event) {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "manager.db")
	n := 0
	for _, size := range damageBatches {
		n += size
	}
	events = damageEvents(n)
	s := sqlitestore.New(path)
	defer s.Close()
	if _, _, err := s.Acquire(t.Context()); err != nil {
		t.Fatal(err)
	}
	at := 0
	for i, size := range damageBatches {
		if i == 3 && closed { // so that there is something in each of the files
			s.Close()
			if _, _, err := s.Acquire(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Append(t.Context(), events[at:at+size]); err != nil {
			t.Fatal(err)
		}
		if at += size; i == 1 {
			if err := s.Checkpoint(t.Context(), 2, events[:2]); err != nil {
				t.Fatal(err)
			}
		}
	}
	if closed {
		s.Close()
	}
	files = map[string][]byte{}
	for _, name := range storeFiles {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err == nil {
			files[name] = b
		} else if !closed || !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	return files, events
}

// A scratch is a directory for one damaged store after the other.
type scratch struct{ dir string }

func newScratch(t *testing.T) *scratch {
	t.Helper()
	dir := t.TempDir()
	// Thousands of fsyncs of what nobody needs: in memory, where there is a place.
	if shm, err := os.MkdirTemp("/dev/shm", "store"); err == nil {
		dir = shm
		t.Cleanup(func() { os.RemoveAll(shm) })
	}
	return &scratch{dir}
}

// open acquires a store with these files and returns its whole history and
// state, or the error that it gives in place of any of it.
func (s *scratch) open(t *testing.T, files map[string][]byte) (history, state []ssmmp.Event, err error) {
	t.Helper()
	for _, name := range append(storeFiles, "manager.db-shm") {
		if err := os.Remove(filepath.Join(s.dir, name)); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(s.dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	store := sqlitestore.New(filepath.Join(s.dir, "manager.db"))
	defer store.Close()
	if _, _, err := store.Acquire(t.Context()); err != nil {
		return nil, nil, err
	}
	for ev, err := range store.Query(t.Context(), ssmmp.EventQuery{}) {
		if err != nil {
			return nil, nil, err
		}
		history = append(history, ev)
	}
	for ev, err := range store.Replay(t.Context(), 0) {
		if err != nil {
			return nil, nil, err
		}
		state = append(state, ev)
	}
	return history, state, nil
}

func same(a, b []ssmmp.Event) bool {
	return slices.EqualFunc(a, b, func(a, b ssmmp.Event) bool { return reflect.DeepEqual(a, b) })
}

// places returns up to some of n places, spread evenly, or as the flag says.
func places(n, some int) (list []int) {
	if *damage != 0 {
		some = *damage
	}
	if some < 0 || some > n {
		some = n
	}
	for i := range some {
		list = append(list, i*n/some)
	}
	return list
}

// With any bit of any of its files changed a store gives what it gave before, or
// refuses.
func TestFlippedBits(t *testing.T) {
	t.Parallel()
	for _, closed := range []bool{true, false} {
		t.Run(fmt.Sprintf("closed=%v", closed), func(t *testing.T) {
			t.Parallel()
			files, events := damageStore(t, closed)
			s := newScratch(t)
			for _, name := range storeFiles {
				b := files[name]
				refused, tried := 0, places(8*len(b), 100)
				for _, bit := range tried {
					b[bit/8] ^= 1 << (bit % 8)
					history, state, err := s.open(t, files)
					if err != nil {
						refused++
					} else if !same(history, events) || !same(state, events) {
						t.Errorf("%s with bit %d of byte %d changed: silently wrong: %d of %d events, %d in the state", name, bit%8, bit/8, len(history), len(events), len(state))
					}
					b[bit/8] ^= 1 << (bit % 8)
				}
				t.Logf("%s, %d bytes: %d of %d bits refused, the others of no account", name, len(b), refused, len(tried))
			}
			if history, _, err := s.open(t, files); err != nil || !same(history, events) {
				t.Errorf("without damage: %d events, %v", len(history), err)
			}
		})
	}
}

// Cut anywhere, a file is recovered or refused: nothing acknowledged is missing
// from a store that opens. Without the file that says what was acknowledged, as
// after a power cut that came before that was written, whole commits are there,
// up to one of them.
func TestCut(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name          string
		closed, knows bool
	}{
		{"manager.db", true, true}, {"manager.db", false, true}, {"manager.db-lock", false, true},
		{"manager.db-wal", false, true}, {"manager.db-wal", false, false},
	} {
		t.Run(fmt.Sprintf("%s,closed=%v,knows=%v", tt.name, tt.closed, tt.knows), func(t *testing.T) {
			t.Parallel()
			files, events := damageStore(t, tt.closed)
			if !tt.knows {
				delete(files, "manager.db-lock")
			}
			whole := map[int]bool{0: true}
			for i, n := 0, 0; i < len(damageBatches); i++ {
				n += damageBatches[i]
				whole[n] = true
			}
			s := newScratch(t)
			b := files[tt.name]
			refused, found := 0, map[int]int{}
			for _, n := range places(len(b), 120) {
				files[tt.name] = b[:n:n]
				history, state, err := s.open(t, files)
				switch {
				case err != nil:
					refused++
					continue
				case tt.knows && len(history) != len(events), !whole[len(history)],
					!same(history, events[:len(history)]), !same(state, events[:len(history)]):
					t.Errorf("cut after %d of %d bytes: silently wrong: %d of %d events, %d in the state", n, len(b), len(history), len(events), len(state))
				}
				found[len(history)]++
			}
			t.Logf("%d bytes: refused %d times; found so many events so often: %v", len(b), refused, found)
			if !tt.knows && (refused > 0 || len(found) < len(damageBatches)) {
				t.Errorf("a torn end was refused %d times, and cut off in %d places", refused, len(found))
			}
		})
	}
}

// A store that was put back from an older copy lacks what was acknowledged since.
func TestOlderCopy(t *testing.T) {
	t.Parallel()
	files, _ := damageStore(t, true)
	s := newScratch(t)
	if _, _, err := s.open(t, files); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(s.dir, "manager.db")
	store := sqlitestore.New(path)
	last := uint64(0)
	var err error
	if _, last, err = store.Acquire(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := store.Append(t.Context(), damageEvents(int(last) + 1)[last:]); err != nil {
		t.Fatal(err)
	}
	store.Close()
	if err := os.WriteFile(path, files["manager.db"], 0o600); err != nil {
		t.Fatal(err)
	}
	_, _, err = store.Acquire(t.Context())
	want := fmt.Sprintf("ssmmp: store %s: events %d to %d: acknowledged, and missing; a start without %s-lock goes on without them", path, last+1, last+1, path)
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	if err := os.Remove(path + "-lock"); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	if _, got, err := store.Acquire(t.Context()); err != nil || got != last {
		t.Errorf("with nothing acknowledged: last event %d, %v", got, err)
	}
	store.Close()
}
