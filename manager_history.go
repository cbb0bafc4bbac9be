package ssmmp

import (
	"context"
	"fmt"
	"iter"
	"strings"
	"time"
)

// What a program asks of a Manager's history, and of that in any Store.

// An EventReader has a history that can be asked, by StateAt, StateAtTime and
// Explain. Every Store is one; a Manager has methods of these names.
type EventReader interface {
	// Replay yields what gives the state after the event upTo, or after the
	// last one if upTo is 0: the events of the newest checkpoint up to there,
	// and then the events after it. It yields ErrNotFound when what it takes is
	// no longer kept.
	Replay(ctx context.Context, upTo uint64) iter.Seq2[Event, error]

	// Query yields the events that match, by sequence number.
	Query(ctx context.Context, q EventQuery) iter.Seq2[Event, error]
}

// History yields the events that match, by sequence number. It reads the Store,
// or without one the events in memory, and yields an error at most once, at its
// end. It ends with the newest event; Events goes on with those to come.
func (m *Manager) History(ctx context.Context, q EventQuery) iter.Seq2[Event, error] {
	return m.reader().Query(ctx, q)
}

// StateAt returns the state as it was after an event. See the function StateAt.
func (m *Manager) StateAt(ctx context.Context, seq uint64) (Snapshot, error) {
	return StateAt(ctx, m.reader(), seq)
}

// StateAtTime returns the state as it was at a time. See the function
// StateAtTime.
func (m *Manager) StateAtTime(ctx context.Context, at time.Time) (Snapshot, error) {
	return StateAtTime(ctx, m.reader(), at)
}

// Explain says why an instance was started, and why it ended. See the function
// Explain.
func (m *Manager) Explain(ctx context.Context, id InstanceID) (Explanation, error) {
	return Explain(ctx, m.reader(), id)
}

func (m *Manager) reader() EventReader {
	if m.cfg.Store != nil {
		return m.cfg.Store
	}
	return m.history
}

// StateAt returns the state as it was after an event, after the last one if seq
// is 0. The error is ErrNotFound when there is no such event, or what the state
// takes is no longer kept.
func StateAt(ctx context.Context, r EventReader, seq uint64) (Snapshot, error) {
	c := NewManagerCore(ManagerConfig{}.WithDefaults())
	for ev, err := range r.Replay(ctx, seq) {
		if err == nil {
			err = c.Replay(ev)
		}
		if err != nil {
			return Snapshot{}, err
		}
	}
	return c.Snapshot(), nil
}

// StateAtTime returns the state as it was at a time of the wall clock: that
// before the first event with a later time. The error is ErrNotFound when the
// history does not go back so far.
func StateAtTime(ctx context.Context, r EventReader, at time.Time) (Snapshot, error) {
	next, err := firstEvent(ctx, r, EventQuery{From: at.Add(1)})
	if err != nil {
		return Snapshot{}, err
	}
	switch next.Seq {
	case 0:
		return StateAt(ctx, r, 0)
	case 1:
		return Snapshot{}, nil
	}
	oldest, err := firstEvent(ctx, r, EventQuery{})
	if err != nil {
		return Snapshot{}, err
	}
	if oldest.Seq == next.Seq {
		return Snapshot{}, fmt.Errorf("state at %v: event %d at %v is the oldest that is kept: %w", at, oldest.Seq, oldest.Time, ErrNotFound)
	}
	return StateAt(ctx, r, next.Seq-1)
}

// firstEvent returns the first event that matches, a zero one if none does.
func firstEvent(ctx context.Context, r EventReader, q EventQuery) (Event, error) {
	q.Limit = 1
	for ev, err := range r.Query(ctx, q) {
		return ev, err
	}
	return Event{}, nil
}

// An Explanation says why an instance was started, and why it ended. Each event
// of a list follows from the one after it; the last is the doing of its Actor,
// or what it follows from is not known, or no longer kept.
type Explanation struct {
	Instance InstanceID
	Started  []Event // from EventInstanceRequested on; empty if that is no longer kept
	Ended    []Event // from EventInstanceEnded on, or from EventInstanceStopping while it goes on; empty before
}

// String has a line for each event, for people.
func (e Explanation) String() string {
	var b strings.Builder
	for i, list := range [...][]Event{e.Started, e.Ended} {
		for n, ev := range list {
			why := "follows from"
			if n == 0 {
				why = [...]string{"started:", "ended:"}[i]
			}
			fmt.Fprintf(&b, "%s event %d at %s, %s", why, ev.Seq, ev.Time.Format(time.RFC3339), ev)
			if ev.Actor != "" {
				fmt.Fprintf(&b, " (%s)", ev.Actor)
			}
			b.WriteByte('\n')
		}
	}
	return b.String()
}

// Explain says why an instance was started, and why it ended, back to a request
// or a person. The error is ErrNotFound when nothing is known of it.
func Explain(ctx context.Context, r EventReader, id InstanceID) (Explanation, error) {
	e := Explanation{Instance: id}
	var began, end Event
	for ev, err := range r.Query(ctx, EventQuery{Instance: id, Kinds: []EventKind{EventInstanceRequested, EventInstanceStopping, EventInstanceEnded}}) {
		if err != nil {
			return e, err
		}
		if ev.Kind == EventInstanceRequested {
			began = ev
		} else {
			end = ev
		}
	}
	if began.Seq == 0 && end.Seq == 0 {
		return e, fmt.Errorf("explain instance %d: %w", id, ErrNotFound)
	}
	var err error
	if e.Started, err = causes(ctx, r, began); err == nil {
		e.Ended, err = causes(ctx, r, end)
	}
	return e, err
}

// causes returns an event and what it follows from, as far as that is known.
func causes(ctx context.Context, r EventReader, ev Event) (list []Event, err error) {
	for ev.Seq != 0 && err == nil {
		list = append(list, ev)
		if ev.CauseSeq == 0 || ev.CauseSeq >= ev.Seq { // a cause comes before
			break
		}
		ev, err = firstEvent(ctx, r, EventQuery{After: ev.CauseSeq - 1, Before: ev.CauseSeq + 1})
	}
	return list, err
}

// Query implements EventReader with the events in memory.
func (h *history) Query(ctx context.Context, q EventQuery) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		var buf []Event
		n := 0
		for after, last := q.After, h.last(); after < last; after = buf[len(buf)-1].Seq {
			if err := ctx.Err(); err != nil {
				yield(Event{}, err)
				return
			}
			if buf, _ = h.next(buf[:0], after); len(buf) == 0 {
				return
			}
			for i := range buf {
				if !q.Match(&buf[i]) {
					continue
				}
				if n++; !yield(buf[i], nil) || n == q.Limit {
					return
				}
			}
		}
	}
}

// Replay implements EventReader, while all events are in memory.
func (h *history) Replay(ctx context.Context, upTo uint64) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		if h.oldest() > 1 || upTo > h.last() {
			yield(Event{}, fmt.Errorf("state after event %d, with events %d to %d in memory: %w", upTo, h.oldest(), h.last(), ErrNotFound))
			return
		}
		q := EventQuery{}
		if upTo > 0 {
			q.Before = upTo + 1
		}
		h.Query(ctx, q)(yield)
	}
}
