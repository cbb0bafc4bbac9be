package ssmmptest

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ssmmp/ssmmp"
)

// TestStore is the conformance suite: what a Manager expects of every
// ssmmp.Store. newMedium makes a new, empty place for a store. open returns a
// store on it: another one each time, as another process has it, or the same
// one where a medium has only one. crash returns the store that is found there
// had the process that has acquired s died at this moment; from then on open opens
// that. newMedium is called once for each subtest, in parallel.
func TestStore(t *testing.T, newMedium func(t *testing.T) (open func() ssmmp.Store, crash func(s ssmmp.Store) ssmmp.Store)) {
	tests := []struct {
		name string
		run  func(t *testing.T, m *medium)
	}{
		{"Append", testStoreAppend},
		{"AppendMany", testStoreAppendMany},
		{"AppendGap", testStoreAppendGap},
		{"Acquire", testStoreAcquire},
		{"NotAcquired", testStoreNotAcquired},
		{"Canceled", testStoreCanceled},
		{"Query", testStoreQuery},
		{"Pages", testStorePages},
		{"Checkpoint", testStoreCheckpoint},
		{"Retain", testStoreRetain},
		{"RetainNothing", testStoreRetainNothing},
		{"Crash", testStoreCrash},
		{"Readers", testStoreReaders},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			m := &medium{t: t}
			m.open, m.crash = newMedium(t)
			tt.run(t, m)
		})
	}
}

// A medium is where the stores of one test are.
type medium struct {
	t     *testing.T
	open  func() ssmmp.Store
	crash func(ssmmp.Store) ssmmp.Store
}

func (m *medium) acquire(s ssmmp.Store) (epoch, last uint64) {
	m.t.Helper()
	epoch, last, err := s.Acquire(m.t.Context())
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { s.Close() })
	return epoch, last
}

// acquired returns a store that is acquired.
func (m *medium) acquired() ssmmp.Store {
	m.t.Helper()
	s := m.open()
	m.acquire(s)
	return s
}

func (m *medium) append(s ssmmp.Store, events ...ssmmp.Event) {
	m.t.Helper()
	if err := s.Append(m.t.Context(), events); err != nil {
		m.t.Fatal(err)
	}
}

func (m *medium) checkpoint(s ssmmp.Store, seq uint64, events ...ssmmp.Event) {
	m.t.Helper()
	if err := s.Checkpoint(m.t.Context(), seq, events); err != nil {
		m.t.Fatal(err)
	}
}

// storeStart is the wall clock's time before the first event.
var storeStart = time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)

// storeEvent returns an event by its number. Its time is so many seconds after
// storeStart, except that the wall clock goes back once in a while.
func storeEvent(seq uint64) ssmmp.Event {
	at := storeStart.Add(time.Duration(seq) * time.Second)
	if seq%10 == 9 {
		at = at.Add(-5 * time.Second)
	}
	ev := ssmmp.Event{
		Seq: seq, Time: at, Kind: ssmmp.EventSessionOffered + ssmmp.EventKind(seq%3), Graph: "shop", Service: []string{"cart", "stock", "täuschend\xff\"ähnlich"}[seq%3],
		Node: netip.AddrFrom4([4]byte{10, 0, 0, byte(seq % 4)}), Session: ssmmp.SessionID(seq/3 + 1), Source: ssmmp.InstanceID(seq%5 + 1), Destination: ssmmp.InstanceID(seq%7 + 10),
		Plug: "P1", Socket: "S1", MessageID: int64(seq), Status: ssmmp.StatusOK, Cause: fmt.Sprintf("number %d", seq),
	}
	if seq%4 == 0 {
		ev = ssmmp.Event{Seq: seq, Time: at, Kind: ssmmp.EventInstanceRequested, Graph: "shop", Vertex: "v", Service: ev.Service, Instance: ssmmp.InstanceID(seq),
			Node: ev.Node, Sockets: []ssmmp.SocketPort{{Socket: "S1", Port: 54000}, {Socket: "S2", Port: 54001}}, Actor: "operator", CauseSeq: seq - 1}
	}
	return ev
}

func storeEvents(from, to uint64) (events []ssmmp.Event) {
	for seq := from; seq <= to; seq++ {
		events = append(events, storeEvent(seq))
	}
	return events
}

func sameEvents(a, b []ssmmp.Event) bool {
	return slices.EqualFunc(a, b, func(a, b ssmmp.Event) bool {
		sameTime := a.Time.Equal(b.Time)
		a.Time, b.Time = time.Time{}, time.Time{}
		return sameTime && reflect.DeepEqual(a, b)
	})
}

// collect returns what an iterator yields. After an error it may yield no more.
func collect(events iter.Seq2[ssmmp.Event, error]) (list []ssmmp.Event, err error) {
	for ev, e := range events {
		if err != nil {
			return list, fmt.Errorf("went on after the error %w", err)
		}
		if err = e; err == nil {
			list = append(list, ev)
		}
	}
	return list, err
}

func seqs(events []ssmmp.Event) (list []uint64) {
	for _, ev := range events {
		list = append(list, ev.Seq)
	}
	return list
}

func (m *medium) wantReplay(s ssmmp.Store, upTo uint64, want []ssmmp.Event) {
	m.t.Helper()
	got, err := collect(s.Replay(m.t.Context(), upTo))
	if err != nil || !sameEvents(got, want) {
		m.t.Fatalf("Replay up to %d: %v, %v, want %v", upTo, seqs(got), err, seqs(want))
	}
}

func (m *medium) wantQuery(s ssmmp.Store, q ssmmp.EventQuery, want []ssmmp.Event) {
	m.t.Helper()
	got, err := collect(s.Query(m.t.Context(), q))
	if err != nil || !sameEvents(got, want) {
		m.t.Fatalf("Query %+v: %v, %v, want %v", q, seqs(got), err, seqs(want))
	}
}

func testStoreAppend(t *testing.T, m *medium) {
	s := m.acquired()
	m.wantReplay(s, 0, nil)
	m.wantQuery(s, ssmmp.EventQuery{}, nil)
	m.append(s)
	m.append(s, storeEvent(1))
	m.append(s, storeEvents(2, 9)...)
	m.append(s, storeEvents(10, 11)...)
	m.wantReplay(s, 0, storeEvents(1, 11))
	for upTo := range uint64(11) {
		m.wantReplay(s, upTo+1, storeEvents(1, upTo+1))
	}
	m.wantQuery(s, ssmmp.EventQuery{}, storeEvents(1, 11))
	if _, err := collect(s.Replay(t.Context(), 12)); !errors.Is(err, ssmmp.ErrNotFound) {
		t.Errorf("Replay up to an event that is to come: %v", err)
	}
	for range s.Replay(t.Context(), 0) {
		break // and nothing stays open
	}
	for range s.Query(t.Context(), ssmmp.EventQuery{}) {
		break
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error("closed again:", err)
	}
}

// What a batch was made of may be used again.
func testStoreAppendMany(t *testing.T, m *medium) {
	s := m.acquired()
	batch := storeEvents(1, 5000)
	m.append(s, batch...)
	clear(batch)
	m.wantReplay(s, 0, storeEvents(1, 5000))
	m.wantReplay(s, 3000, storeEvents(1, 3000))
	m.wantQuery(s, ssmmp.EventQuery{After: 2999, Before: 3002}, storeEvents(3000, 3001))
}

func testStoreAppendGap(t *testing.T, m *medium) {
	s := m.acquired()
	m.append(s, storeEvents(1, 3)...)
	for _, bad := range [][]ssmmp.Event{storeEvents(5, 6), storeEvents(3, 4), storeEvents(1, 1), {storeEvent(4), storeEvent(6)}, {storeEvent(4), storeEvent(4)}} {
		if err := s.Append(t.Context(), bad); err == nil || errors.Is(err, ssmmp.ErrStoreFailed) {
			t.Errorf("Append of %v after 3: %v", seqs(bad), err)
		}
	}
	if err := s.Checkpoint(t.Context(), 4, nil); err == nil {
		t.Error("took a checkpoint of what is to come")
	}
	m.append(s, storeEvent(4))
	m.wantReplay(s, 0, storeEvents(1, 4))
}

func testStoreAcquire(t *testing.T, m *medium) {
	first := m.open()
	epoch, last := m.acquire(first)
	if epoch == 0 || last != 0 {
		t.Errorf("epoch %d after event %d", epoch, last)
	}
	m.append(first, storeEvents(1, 3)...)
	second := m.open()
	for _, s := range []ssmmp.Store{first, second} {
		if _, _, err := s.Acquire(t.Context()); !errors.Is(err, ssmmp.ErrStoreInUse) {
			t.Fatalf("Acquire of a store that is held: %v", err)
		}
	}
	m.append(first, storeEvent(4))
	m.wantReplay(second, 0, storeEvents(1, 4)) // reading is for everybody
	m.wantQuery(second, ssmmp.EventQuery{After: 3}, storeEvents(4, 4))
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	for i, s := range []ssmmp.Store{second, first, m.open()} {
		next, last := m.acquire(s)
		if next <= epoch || last != uint64(4+i) {
			t.Errorf("epoch %d after %d, last event %d", next, epoch, last)
		}
		epoch = next
		m.append(s, storeEvent(last+1))
		m.wantReplay(s, 0, storeEvents(1, last+1))
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func testStoreNotAcquired(t *testing.T, m *medium) {
	s := m.acquired()
	m.append(s, storeEvent(1))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"Append": s.Append(t.Context(), storeEvents(2, 2)), "Checkpoint": s.Checkpoint(t.Context(), 1, nil), "Retain": s.Retain(t.Context(), ssmmp.Retention{MaxBytes: 1}),
	} {
		if !errors.Is(err, ssmmp.ErrClosed) {
			t.Errorf("%s after Close: %v", name, err)
		}
	}
	m.wantReplay(s, 0, storeEvents(1, 1))
}

func testStoreCanceled(t *testing.T, m *medium) {
	s := m.acquired()
	m.append(s, storeEvents(1, 3)...)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for name, events := range map[string]iter.Seq2[ssmmp.Event, error]{"Replay": s.Replay(ctx, 0), "Query": s.Query(ctx, ssmmp.EventQuery{})} {
		if list, err := collect(events); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %d events, %v", name, len(list), err)
		}
	}
	m.append(s, storeEvent(4))
	m.wantReplay(s, 0, storeEvents(1, 4))
}

func testStoreQuery(t *testing.T, m *medium) {
	s := m.acquired()
	const n = 300
	for from := uint64(1); from <= n; from += 7 {
		m.append(s, storeEvents(from, min(from+6, n))...)
	}
	m.checkpoint(s, 150, storeEvent(3)) // is no history
	all := storeEvents(1, n)
	at := func(seq int) time.Time { return storeStart.Add(time.Duration(seq) * time.Second) }
	for _, q := range []ssmmp.EventQuery{
		{}, {Graph: "shop"}, {Graph: "other"}, {Service: "cart"}, {Service: "car"}, {Service: "täuschend\xff\"ähnlich"}, {Service: "täuschend"},
		{Instance: 1}, {Instance: 12}, {Instance: 8}, {Instance: 299}, {Node: netip.MustParseAddr("10.0.0.3")}, {Node: netip.MustParseAddr("10.0.0.33")}, {Session: 17}, {Session: 1 << 40},
		{Kinds: []ssmmp.EventKind{ssmmp.EventInstanceRequested}}, {Kinds: []ssmmp.EventKind{ssmmp.EventSessionOpened, ssmmp.EventSessionClosed}}, {Kinds: []ssmmp.EventKind{ssmmp.EventAgentLost}},
		{From: at(100)}, {To: at(100)}, {From: at(39), To: at(40)}, {From: at(40), To: at(46)}, {From: at(44), To: at(44)}, {From: at(10_000)}, {To: at(0)}, {To: at(1).Add(1)}, {From: at(300)},
		{After: 17}, {Before: 17}, {After: 17, Before: 18}, {After: 17, Before: 19}, {After: 299}, {After: 300}, {After: 1000}, {Before: 1}, {Before: 1000}, {After: 20, Before: 10},
		{Limit: 1}, {Limit: 299}, {Limit: 1000}, {After: 5, Limit: 2, Service: "stock"},
		{Service: "cart", Instance: 12, From: at(60), To: at(200), After: 70, Kinds: []ssmmp.EventKind{ssmmp.EventSessionOffered}},
	} {
		var want []ssmmp.Event
		for _, ev := range all {
			if q.Match(&ev) && (q.Limit == 0 || len(want) < q.Limit) {
				want = append(want, ev)
			}
		}
		m.wantQuery(s, q, want)
	}
}

func testStorePages(t *testing.T, m *medium) {
	s := m.acquired()
	m.append(s, storeEvents(1, 100)...)
	m.append(s, storeEvents(101, 150)...)
	var got []ssmmp.Event
	for q := (ssmmp.EventQuery{Service: "cart", Limit: 7}); ; q.After = got[len(got)-1].Seq {
		page, err := collect(s.Query(t.Context(), q))
		if err != nil || len(page) > q.Limit {
			t.Fatal(len(page), err)
		}
		if len(page) == 0 {
			break
		}
		got = append(got, page...)
	}
	m.wantQuery(s, ssmmp.EventQuery{Service: "cart"}, got)
	if len(got) != 50 {
		t.Errorf("%d events", len(got))
	}
}

// state returns what a test takes for the state after an event: few events,
// which have numbers of their own.
func state(seq uint64) []ssmmp.Event {
	a, b := storeEvent(seq/2), storeEvent(seq)
	a.Cause, b.Cause, b.Time = "state", "state", time.Unix(0, 0)
	return []ssmmp.Event{b, a, a}
}

func testStoreCheckpoint(t *testing.T, m *medium) {
	s := m.acquired()
	m.checkpoint(s, 0) // of nothing
	m.append(s, storeEvents(1, 10)...)
	m.append(s, storeEvents(11, 20)...)
	m.checkpoint(s, 15, state(15)...)
	m.append(s, storeEvents(21, 30)...)
	m.checkpoint(s, 25, storeEvent(1))
	m.checkpoint(s, 25, state(25)...) // again, and better
	m.checkpoint(s, 5, state(5)...)   // later than a newer one
	check := func(s ssmmp.Store) {
		t.Helper()
		for upTo := uint64(1); upTo <= 30; upTo++ {
			var want []ssmmp.Event
			from := uint64(0)
			for _, c := range []uint64{5, 15, 25} {
				if c <= upTo {
					want, from = state(c), c
				}
			}
			m.wantReplay(s, upTo, append(want, storeEvents(from+1, upTo)...))
		}
		m.wantQuery(s, ssmmp.EventQuery{}, storeEvents(1, 30))
	}
	check(s)
	m.wantReplay(s, 0, append(state(25), storeEvents(26, 30)...))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = m.open()
	m.acquire(s)
	check(s)
	large := storeEvents(1, 10_000)
	m.checkpoint(s, 30, large...)
	m.wantReplay(s, 0, large)
	m.checkpoint(s, 30)
	m.wantReplay(s, 0, nil)
}

func testStoreRetain(t *testing.T, m *medium) {
	s := m.acquired()
	const n = 2000
	for from := uint64(1); from <= n; from += 10 {
		m.append(s, storeEvents(from, from+9)...)
		if from%100 == 1 {
			m.checkpoint(s, from+4, state(from+4)...) // within a batch
		}
	}
	// check looks that the history begins after that event, and that the state
	// after it and after each later one is there.
	check := func(s ssmmp.Store, kept uint64) {
		t.Helper()
		m.wantQuery(s, ssmmp.EventQuery{}, storeEvents(kept+1, n))
		m.wantQuery(s, ssmmp.EventQuery{Before: kept + 3}, storeEvents(kept+1, kept+2))
		m.wantReplay(s, 0, append(state(1905), storeEvents(1906, n)...))
		m.wantReplay(s, kept, state(kept))
		m.wantReplay(s, kept+1, append(state(kept), storeEvents(kept+1, kept+1)...))
		if kept < 1900 {
			m.wantReplay(s, kept+110, append(state(kept+100), storeEvents(kept+101, kept+110)...))
		}
		for _, gone := range []uint64{1, kept - 1} {
			if list, err := collect(s.Replay(t.Context(), gone)); !errors.Is(err, ssmmp.ErrNotFound) {
				t.Errorf("state after event %d, where %d is the first: %v, %v", gone, kept+1, seqs(list), err)
			}
		}
	}
	retain := func(r ssmmp.Retention) {
		t.Helper()
		if err := s.Retain(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	retain(ssmmp.Retention{Before: storeStart.Add(450 * time.Second)})
	check(s, 405)
	retain(ssmmp.Retention{Before: storeStart.Add(450 * time.Second), MaxBytes: 1 << 40})
	check(s, 405)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = m.open()
	m.acquire(s)
	check(s, 405)
	retain(ssmmp.Retention{MaxBytes: 1})
	check(s, 1905)
	retain(ssmmp.Retention{Before: storeStart.Add(time.Hour)})
	check(s, 1905)
	s = m.crash(s)
	m.acquire(s)
	check(s, 1905)

	m.checkpoint(s, n, state(n)...)
	retain(ssmmp.Retention{MaxBytes: 1})
	m.wantQuery(s, ssmmp.EventQuery{}, nil)
	m.wantReplay(s, 0, state(n))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = m.open()
	if _, last := m.acquire(s); last != n {
		t.Errorf("the last event was %d, and is %d", n, last)
	}
	m.append(s, storeEvent(n+1))
	m.wantReplay(s, 0, append(state(n), storeEvent(n+1)))
}

// Without a checkpoint all events are needed, and without a limit they stay.
func testStoreRetainNothing(t *testing.T, m *medium) {
	s := m.acquired()
	m.append(s, storeEvents(1, 100)...)
	m.wantKept(s, ssmmp.Retention{MaxBytes: 1, Before: storeStart.Add(time.Hour)})
	m.checkpoint(s, 50, state(50)...)
	m.wantKept(s, ssmmp.Retention{})
	m.wantKept(s, ssmmp.Retention{MaxBytes: 1 << 40})
	m.wantKept(s, ssmmp.Retention{Before: storeStart})
}

func (m *medium) wantKept(s ssmmp.Store, r ssmmp.Retention) {
	m.t.Helper()
	if err := s.Retain(m.t.Context(), r); err != nil {
		m.t.Fatal(err)
	}
	m.wantQuery(s, ssmmp.EventQuery{}, storeEvents(1, 100))
	m.wantReplay(s, 40, storeEvents(1, 40))
}

// Whoever dies leaves what was acknowledged, and nobody in the way.
func testStoreCrash(t *testing.T, m *medium) {
	s := m.acquired()
	epoch := uint64(0)
	for seq := uint64(0); seq < 60; {
		m.append(s, storeEvents(seq+1, seq+5)...)
		seq += 5
		if seq == 30 {
			m.checkpoint(s, 27, state(27)...)
		}
		s = m.crash(s)
		next, last := m.acquire(s)
		if next <= epoch || last != seq {
			t.Fatalf("epoch %d after %d, event %d after %d", next, epoch, last, seq)
		}
		epoch = next
		m.wantQuery(s, ssmmp.EventQuery{}, storeEvents(1, seq))
	}
	m.wantReplay(s, 0, append(state(27), storeEvents(28, 60)...))
}

// Those who read while others write see whole batches, in order.
func testStoreReaders(t *testing.T, m *medium) {
	s := m.acquired()
	const batches, size = 200, 17
	var readers sync.WaitGroup
	for range 3 {
		readers.Go(func() {
			for last := uint64(0); ; {
				n := uint64(0)
				for ev, err := range s.Query(t.Context(), ssmmp.EventQuery{}) {
					if n++; err != nil || ev.Seq != n {
						t.Errorf("event %d at %d: %v", ev.Seq, n, err)
						return
					}
				}
				if n%size != 0 || n < last {
					t.Errorf("saw %d events, and before them %d", n, last)
					return
				}
				if last = n; n == batches*size || t.Failed() {
					return
				}
			}
		})
	}
	for b := range uint64(batches) {
		m.append(s, storeEvents(b*size+1, (b+1)*size)...)
		if b%50 == 10 {
			m.checkpoint(s, b*size, state(b*size+1)...)
		}
	}
	readers.Wait()
	m.wantQuery(s, ssmmp.EventQuery{}, storeEvents(1, batches*size))
}
