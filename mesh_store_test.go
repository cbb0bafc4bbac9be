package ssmmp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
)

// A testStore is a MemStore whose commits a test holds up, or has fail.
type testStore struct {
	*MemStore
	mu      sync.Mutex
	held    chan struct{} // commits wait until it is closed
	failing error         // what they return
	appends int
}

func (s *testStore) Append(ctx context.Context, events []Event) error {
	s.mu.Lock()
	held := s.held
	s.mu.Unlock()
	if held != nil {
		<-held
	}
	s.mu.Lock()
	s.appends++
	err := s.failing
	s.mu.Unlock()
	if err != nil {
		return err
	}
	return s.MemStore.Append(ctx, events)
}

func (s *testStore) hold() (release func()) {
	c := make(chan struct{})
	s.mu.Lock()
	s.held = c
	s.mu.Unlock()
	return func() {
		s.mu.Lock()
		s.held = nil
		s.mu.Unlock()
		close(c)
	}
}

func (s *testStore) fail(err error) {
	s.mu.Lock()
	s.failing = err
	s.mu.Unlock()
}

// crash has the Manager die as its process would, and another one start on what
// the store holds then.
func (s *lifeMesh) crash() {
	s.t.Helper()
	store := s.cfg.Store.(interface{ Crash() *MemStore }).Crash()
	s.cfg.Store = store
	s.restartManager()
}

// A Manager that dies comes back and goes on: what runs and is open has the same
// ids, nothing is executed twice, sessions carry what they did, and new ones can
// be opened at once.
func TestMeshRecovery(t *testing.T) {
	for name, checkpointAfter := range map[string]int{"from the events": 0, "from a checkpoint": 3} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := newLifeMesh(t, ManagerConfig{Store: new(MemStore), CheckpointAfter: checkpointAfter}, 2, nil)
				defer s.close()
				gw := s.begin()
				in, dest := s.dial(gw, "P")
				mid := s.one("mid")
				s.dial(mid, "Q")
				before := s.m.Snapshot()

				s.crash()
				if got := s.m.Snapshot(); got.Seq < before.Seq || len(got.Instances) != 3 || len(got.Sessions) != 2 {
					t.Fatalf("right after the start there are %+v", got)
				}
				io.WriteString(in, "still")
				if b := make([]byte, 5); string(must(t, b, dest)) != "still" {
					t.Errorf("the session carried %q", b)
				}
				time.Sleep(backAgain)
				after := s.m.Snapshot()
				if !reflect.DeepEqual(after.Sessions, before.Sessions) {
					t.Errorf("the sessions are\n%+v, were\n%+v", after.Sessions, before.Sessions)
				}
				for n, i := range after.Instances {
					if i.ID != before.Instances[n].ID || i.State != InstanceRunning {
						t.Errorf("instance %+v was %+v", i, before.Instances[n])
					}
				}
				s.dial(gw, "Pd")
				if n := s.starts("db") + s.starts("mid") + s.starts("gw"); n != 3 {
					t.Errorf("%d executions, want 3", n)
				}
				if err := s.m.Shutdown(t.Context(), mid.ID()); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// Whatever a Manager has under way when it dies is brought to an end by the next
// one: an execution, a shutdown, a close of a session, a grant.
func TestMeshRecoveryPending(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newLifeMesh(t, ManagerConfig{Store: new(MemStore)}, 0, nil)
		defer s.close()
		s.node(1, "gw")
		n2 := s.node(2, "mid", "db")
		gw := s.begin()
		_, dest := s.dial(gw, "P")
		mid := s.one("mid")
		s.dial(mid, "Q")
		db := s.one("db")

		n2.gate.shut() // the agent hears of nothing any more
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := s.m.Shutdown(ctx, mid.ID()); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("Shutdown: %v, want it under way", err)
		}
		s.crash()
		n2.gate.open()
		time.Sleep(backAgain + 2*defaultDrainTimeout)
		synctest.Wait()
		if len(s.of("mid")) != 0 || s.ended(mid.ID()).Cause != "operator" {
			t.Errorf("%+v; it ended by %v", s.m.Snapshot().Instances, s.ended(mid.ID()))
		}
		if _, err := dest.Read(make([]byte, 1)); err == nil {
			t.Error("the session of the instance that was shut down is open")
		}
		if s.one("db").ID() != db.ID() || s.one("gw").ID() != gw.ID() {
			t.Error("others were executed anew")
		}
		if p := s.m.core.Pending(); p.Exchanges+p.Offers+p.Waiting > 0 || len(s.m.Snapshot().Sessions) != 0 {
			t.Errorf("pending: %+v, sessions %+v", p, s.m.Snapshot().Sessions)
		}
	})
}

// Nothing leaves before it is durable, and meanwhile everything else goes on.
func TestMeshCommitHeldUp(t *testing.T) {
	bubble(t, func(t *testing.T) {
		store := &testStore{MemStore: new(MemStore)}
		s := newLifeMesh(t, ManagerConfig{Store: store}, 2, nil)
		defer s.close()
		gw := s.begin()
		s.dial(gw, "P")
		last := s.m.durable

		release := store.hold()
		dialled := make(chan error, 1)
		go func() {
			_, err := gw.Dial(t.Context(), "P")
			dialled <- err
		}()
		synctest.Wait()
		select {
		case err := <-dialled:
			t.Fatalf("granted before it was durable: %v", err)
		default:
		}
		if n := len(s.m.Snapshot().Sessions); n != 2 {
			t.Errorf("%d sessions, want the second one, granted", n)
		}
		for range s.m.Events(canceled(), last) {
			t.Error("an event that is not durable is shown")
		}
		time.Sleep(14 * time.Second) // health requests go on, and are answered
		for _, a := range s.m.Snapshot().Agents {
			if a.State != AgentUp {
				t.Errorf("agent %+v", a)
			}
		}
		select {
		case err := <-dialled:
			t.Fatalf("granted before it was durable: %v", err)
		default:
		}
		release()
		if err := <-dialled; err != nil {
			t.Error(err)
		}
	})
}

func canceled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// While the store is full, or another program has it locked, what would begin
// something is refused with 507, and the rest goes on; when it takes events again
// all is as before, and nothing was lost. Each is told for what it is.
func TestMeshStoreFull(t *testing.T) {
	t.Run("full", func(t *testing.T) { testMeshStoreTakesNothing(t, ErrStoreFull, ErrStoreBusy) })
	t.Run("busy", func(t *testing.T) { testMeshStoreTakesNothing(t, ErrStoreBusy, ErrStoreFull) })
}

func testMeshStoreTakesNothing(t *testing.T, why, other error) {
	bubble(t, func(t *testing.T) {
		store := &testStore{MemStore: new(MemStore)}
		var log bytes.Buffer
		s := newLifeMesh(t, ManagerConfig{Store: store, Logger: hclog.New(&hclog.LoggerOptions{Output: &log})}, 2, nil)
		defer s.close()
		gw := s.begin()
		first, dest := s.dial(gw, "P")

		store.fail(fmt.Errorf("%w: for a reason", why))
		first.Close() // its report is the first that finds no room
		time.Sleep(time.Second)
		_, err := gw.Dial(t.Context(), "P")
		var refused *StatusError
		if !errors.As(err, &refused) || refused.Status != StatusInsufficientStorage || !errors.Is(err, ErrUnavailable) {
			t.Errorf("Dial: %v, want 507", err)
		}
		if err := s.m.Undeploy(t.Context(), "life"); !errors.Is(err, why) || errors.Is(err, other) || !errors.As(err, &refused) || refused.Status != StatusInsufficientStorage {
			t.Errorf("Undeploy: %v, want 507 and %v", err, why)
		}
		time.Sleep(time.Minute)
		for _, a := range s.m.Snapshot().Agents {
			if a.State != AgentUp {
				t.Errorf("agent %+v", a)
			}
		}
		if _, err := dest.Read(make([]byte, 1)); err == nil {
			t.Error("the session is open")
		}

		store.fail(nil)
		time.Sleep(time.Second)
		s.dial(gw, "P")
		if n := len(s.events(EventSessionClosed, nil)); n != 1 {
			t.Errorf("%d sessions closed, want the first", n)
		}
		s.crash()
		synctest.Wait() // and so nobody logs
		told := fmt.Sprintf("nothing new is begun until it does: error=%q\n", why.Error()+": for a reason")
		if n := strings.Count(log.String(), told); n != 1 || strings.Contains(log.String(), other.Error()) || strings.Count(log.String(), "takes events again") != 1 {
			t.Errorf("logged %d times, want once, and its end:\n%s", n, log.String())
		}
		if n := len(s.m.Snapshot().Sessions); n != 1 {
			t.Errorf("%d sessions after a restart, want the second", n)
		}
	})
}

// After a write that failed a Manager acknowledges nothing: it ends.
func TestMeshStoreFailed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		store := &testStore{MemStore: new(MemStore)}
		s := newLifeMesh(t, ManagerConfig{Store: store}, 2, nil)
		gw := s.begin()
		served := make(chan error, 1)
		ln, err := s.managers.Listen(t.Context(), "10.0.0.100:7")
		if err != nil {
			t.Fatal(err)
		}
		go func() { served <- s.m.Serve(t.Context(), ln) }()
		synctest.Wait()

		store.fail(fmt.Errorf("input/output error: %w", ErrStoreFailed))
		if _, err := gw.Dial(t.Context(), "P"); !errors.Is(err, ErrManagerAway) {
			t.Errorf("Dial: %v, want ErrManagerAway", err)
		}
		if err := s.m.Undeploy(t.Context(), "life"); !errors.Is(err, ErrStoreFailed) {
			t.Errorf("Undeploy: %v, want ErrStoreFailed", err)
		}
		if err := <-served; !errors.Is(err, ErrStoreFailed) {
			t.Errorf("Serve: %v, want ErrStoreFailed", err)
		}
		if err := s.m.Close(); !errors.Is(err, ErrStoreFailed) {
			t.Errorf("Close: %v, want ErrStoreFailed", err)
		}
		s.cfg.Store = store.Crash()
		s.restartManager()
		time.Sleep(backAgain)
		s.dial(gw, "P")
		if s.one("gw").ID() != gw.ID() {
			t.Error("the gateway was executed anew")
		}
		s.close()
	})
}

// Reading goes on over the store: also what is no longer in memory, and what was
// before a restart.
func TestMeshStoreEvents(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newLifeMesh(t, ManagerConfig{Store: new(MemStore), History: 5}, 2, nil)
		defer s.close()
		gw := s.begin()
		read := func(after uint64) []uint64 {
			synctest.Wait()
			var seqs []uint64
			for ev := range s.m.Events(t.Context(), after) {
				if seqs = append(seqs, ev.Seq); ev.Seq == s.m.Snapshot().Seq {
					break
				}
			}
			return seqs
		}
		check := func(when string) {
			t.Helper()
			synctest.Wait()
			last := s.m.Snapshot().Seq
			for _, after := range []uint64{0, 3, last - 2} {
				got := read(after)
				if uint64(len(got)) != last-after || got[0] != after+1 || !slices.IsSorted(got) {
					t.Errorf("%s, after %d of %d: %v", when, after, last, got)
				}
			}
		}
		for range 10 {
			c, _ := s.dial(gw, "P")
			c.Close()
		}
		check("running")
		s.crash()
		check("started anew")
		time.Sleep(backAgain)
		s.dial(gw, "P")
		check("later")
	})
}

// A store has one Manager, and a Manager that another one followed is not obeyed.
func TestMeshManagerFenced(t *testing.T) {
	bubble(t, func(t *testing.T) {
		store := new(MemStore)
		s := newLifeMesh(t, ManagerConfig{Store: store}, 2, nil)
		gw := s.begin()
		if _, err := NewManager(s.cfg); !errors.Is(err, ErrStoreInUse) {
			t.Errorf("a second Manager: %v, want ErrStoreInUse", err)
		}
		old := s.cfg
		s.crash()
		time.Sleep(backAgain)
		s.dial(gw, "P")

		// The agents are led to the old one, which slept, and has much to say.
		_, _, last := store.view()
		old.Epoch = 1
		s.cfg = old
		s.restartManager()
		time.Sleep(time.Minute)
		refused := 0
		for ev := range store.Query(t.Context(), EventQuery{After: last, Kinds: []EventKind{EventAgentRegistered, EventAgentRefused}}) {
			if refused++; ev.Kind != EventAgentRefused || ev.Cause != "it obeys a Manager of epoch 2, and this one is of epoch 1" {
				t.Errorf("of an agent that obeys another Manager: %v", ev)
			}
		}
		if refused < 2 || refused > 40 {
			t.Errorf("2 agents were refused %d times in a minute", refused)
		}
		if _, err := gw.Dial(t.Context(), "P"); !errors.Is(err, ErrManagerAway) {
			t.Errorf("Dial by the old Manager: %v, want ErrManagerAway", err)
		}
		old.Epoch = 3
		s.cfg = old
		s.restartManager()
		time.Sleep(time.Minute)
		s.dial(gw, "P")
		s.mesh.close()
	})
}

// A roomStore has room for so many events.
type roomStore struct {
	*testStore
	room int
}

func (s *roomStore) Append(ctx context.Context, events []Event) error {
	s.mu.Lock()
	room := s.room
	s.mu.Unlock()
	if kept, _, _ := s.view(); room > 0 && len(kept)+len(events) > room {
		return ErrStoreFull
	}
	return s.testStore.Append(ctx, events)
}

func (s *roomStore) Checkpoint(ctx context.Context, seq uint64, events []Event) error {
	s.mu.Lock()
	room := s.room
	s.mu.Unlock()
	if room > 0 {
		return ErrStoreFull
	}
	return s.testStore.Checkpoint(ctx, seq, events)
}

// A full store forgets what it need not keep any more, and goes on.
func TestMeshStoreFullForgets(t *testing.T) {
	bubble(t, func(t *testing.T) {
		store := &roomStore{testStore: &testStore{MemStore: new(MemStore)}}
		s := newLifeMesh(t, ManagerConfig{Store: store, CheckpointAfter: 1, KeepFor: time.Minute}, 2, nil)
		defer s.close()
		gw := s.begin()
		for range 20 {
			conn, _ := s.dial(gw, "P")
			conn.Close()
		}
		synctest.Wait()
		events, _, _ := store.view()
		store.mu.Lock()
		store.room = len(events)
		store.mu.Unlock()
		soon, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if _, err := gw.Dial(soon, "P"); err == nil {
			t.Error("a session opened, and the store is full")
		}
		time.Sleep(90 * time.Second)
		if conn, err := gw.Dial(t.Context(), "P"); err != nil {
			t.Errorf("nothing was forgotten: %v", err)
		} else {
			conn.Close()
		}
		store.mu.Lock()
		store.room = 0
		store.mu.Unlock()
	})
}
