package ssmmp

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"slices"
	"sync"
)

// A MemStore is a Store in memory. It outlives the Manager that uses it but not
// the process, so it is for tests, and for meshes that may forget. Its zero
// value is empty and ready; it must not be copied.
type MemStore struct {
	mu          sync.RWMutex
	epoch, last uint64
	held        bool
	events      []Event         // without a gap; what was read once is never changed
	checkpoints []memCheckpoint // by sequence number
}

type memCheckpoint struct {
	seq    uint64
	events []Event
}

// memEventBytes is what an event is taken to cost, for Retention.
const memEventBytes = 300

// Acquire implements Store.
func (s *MemStore) Acquire(context.Context) (epoch, last uint64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held {
		return 0, 0, fmt.Errorf("store in memory: held since epoch %d: %w", s.epoch, ErrStoreInUse)
	}
	s.held = true
	s.epoch++
	return s.epoch, s.last, nil
}

// write calls f for the Manager that holds the store.
func (s *MemStore) write(f func() error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.held {
		return fmt.Errorf("store in memory: not acquired: %w", ErrClosed)
	}
	return f()
}

// Append implements Store.
func (s *MemStore) Append(_ context.Context, events []Event) error {
	return s.write(func() error {
		if err := CheckAppend(s.last, events); err != nil {
			return err
		}
		s.events = append(s.events, events...)
		s.last += uint64(len(events))
		return nil
	})
}

// Checkpoint implements Store.
func (s *MemStore) Checkpoint(_ context.Context, seq uint64, events []Event) error {
	return s.write(func() error {
		if seq > s.last {
			return fmt.Errorf("ssmmp: checkpoint %d of a store that ends at %d", seq, s.last)
		}
		i, found := slices.BinarySearchFunc(s.checkpoints, seq, func(c memCheckpoint, seq uint64) int { return cmp.Compare(c.seq, seq) })
		c := memCheckpoint{seq, slices.Clone(events)}
		next := slices.Clone(s.checkpoints)
		if found {
			next[i] = c
		} else {
			next = slices.Insert(next, i, c)
		}
		s.checkpoints = next
		return nil
	})
}

// view returns what there is now. Later writes do not change it.
func (s *MemStore) view() (events []Event, checkpoints []memCheckpoint, last uint64) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.events, s.checkpoints, s.last
}

// Replay implements Store.
func (s *MemStore) Replay(ctx context.Context, upTo uint64) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		events, checkpoints, last := s.view()
		if upTo == 0 {
			upTo = last
		}
		var from memCheckpoint
		for _, c := range checkpoints {
			if c.seq <= upTo {
				from = c
			}
		}
		first := last + 1 - uint64(len(events))
		if upTo > last || upTo > from.seq && first > from.seq+1 {
			yield(Event{}, fmt.Errorf("state after event %d: %w", upTo, ErrNotFound))
			return
		}
		after := events[:0]
		if upTo > from.seq {
			after = events[from.seq+1-first : upTo+1-first]
		}
		for _, part := range [...][]Event{from.events, after} {
			for _, ev := range part {
				if err := ctx.Err(); err != nil {
					yield(Event{}, err)
					return
				}
				if !yield(ev, nil) {
					return
				}
			}
		}
	}
}

// Query implements Store.
func (s *MemStore) Query(ctx context.Context, q EventQuery) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		events, _, _ := s.view()
		n := 0
		for i := range events {
			if err := ctx.Err(); err != nil {
				yield(Event{}, err)
				return
			}
			if !q.Match(&events[i]) {
				continue
			}
			if n++; !yield(events[i], nil) || n == q.Limit {
				return
			}
		}
	}
}

// Retain implements Store.
func (s *MemStore) Retain(_ context.Context, r Retention) error {
	return s.write(func() error {
		first := s.last + 1 - uint64(len(s.events))
		gone := 0 // events that go, up to a checkpoint
		for _, c := range s.checkpoints {
			if c.seq < first {
				continue
			}
			n := int(c.seq + 1 - first)
			old := s.events[n-1].Time.Before(r.Before)
			large := r.MaxBytes > 0 && int64(len(s.events)-gone)*memEventBytes > r.MaxBytes
			if !old && !large {
				break
			}
			gone = n
		}
		s.events = slices.Clone(s.events[gone:])
		kept := first + uint64(gone)
		s.checkpoints = slices.DeleteFunc(slices.Clone(s.checkpoints), func(c memCheckpoint) bool {
			return c.seq+1 < kept && c.seq != s.checkpoints[len(s.checkpoints)-1].seq
		})
		return nil
	})
}

// Close implements Store. What the store holds stays.
func (s *MemStore) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = false
	return nil
}

// Crash returns a store with what this one holds, as the next process would
// find it had the one that acquired this store died now.
func (s *MemStore) Crash() *MemStore {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return &MemStore{epoch: s.epoch, last: s.last, events: slices.Clip(s.events), checkpoints: slices.Clip(s.checkpoints)}
}
