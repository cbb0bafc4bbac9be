package ssmmp

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Errors of a Store that a program acts on.
var (
	// ErrStoreInUse: another Manager has acquired the store. The error that
	// wraps it names the place and, where it is known, the holder.
	ErrStoreInUse = errors.New("ssmmp: store is in use by another Manager")
	// ErrStoreFull: there is no room. What was to be written was not, and may be
	// tried again later.
	ErrStoreFull = errors.New("ssmmp: store is full")
	// ErrStoreBusy: another program is in the way, such as a person's tool with a
	// transaction open. What was to be written was not, and may be tried again
	// later.
	ErrStoreBusy = errors.New("ssmmp: another program has locked the store")
	// ErrStoreFailed: a write or its fsync failed, and nobody knows what is on
	// the disk. This store writes no more; acquiring it in a new process shows
	// what it holds.
	ErrStoreFailed = errors.New("ssmmp: store failed")
)

// A StoreError says where a store is damaged. What is damaged is refused, and
// never served.
type StoreError struct {
	Store  string // the file, or another name
	Place  string // "events 17 to 40", "checkpoint 12"
	Reason string
}

func (e *StoreError) Error() string {
	return fmt.Sprintf("ssmmp: store %s: %s: %s", e.Store, e.Place, e.Reason)
}

// A Store keeps what a Manager records. Events are the record: applied in their
// order to an empty state they give the state back, and nothing else is kept of
// it. A checkpoint is a short list of events that does the same at one sequence
// number, so that what came before need be neither read nor kept.
//
// One Manager writes to a store, between Acquire and Close. Reading, by Replay
// and Query, is for everybody, at any time, also without Acquire, and is never
// held up by the writing nor holds it up. What a reader sees was committed.
//
// Methods may be called by many goroutines at once. An iterator yields an error
// at most once, at its end.
type Store interface {
	EventReader

	// Acquire takes the store for one Manager, verifies what recovery needs of
	// it, cuts off what a crash left unfinished at its end, and returns its
	// epoch, which is greater than every one before, and the sequence number of
	// the last event, 0 without any. It fails with ErrStoreInUse, with a
	// *StoreError when there is damage, or with the error of the medium.
	Acquire(ctx context.Context) (epoch, last uint64, err error)

	// Append adds events, all of them or none: when it returns without an error
	// they are durable. They are numbered on from the last event without a
	// gap. Each call costs an fsync, so whoever has more that waits gives it at
	// once. The error is ErrStoreFailed, and then every later call fails too, or
	// another, such as ErrStoreFull or ErrStoreBusy, and then the store is as it was. Append does
	// not keep the slice.
	Append(ctx context.Context, events []Event) error

	// Checkpoint keeps a list of events that give, applied to an empty state,
	// the state after the event seq, which was appended before. Their sequence
	// numbers and times are the caller's and are given back as they were; they
	// are no part of the history that Query returns. Errors are those of Append.
	Checkpoint(ctx context.Context, seq uint64, events []Event) error

	// Retain removes old events and checkpoints, as far as the newest
	// checkpoint allows: the present state is never lost, and the state after
	// each event that stays can be replayed.
	Retain(ctx context.Context, r Retention) error

	// Close gives the store up, after which it can be acquired again. A second
	// call does nothing.
	Close() error
}

// A Retention says what a store keeps. Zero fields set no limit.
type Retention struct {
	Before   time.Time // events before this go
	MaxBytes int64     // the oldest go until the store is no larger
}

// An EventQuery selects events. Its zero value selects all, each field that is
// set fewer. For the next page of a limited query set After to the last
// sequence number of the one before.
type EventQuery struct {
	Graph    string
	Service  string
	Instance InstanceID // itself, or an end of the session
	Node     netip.Addr
	Session  SessionID
	Kinds    []EventKind // one of these
	From, To time.Time   // from From on, and before To
	After    uint64      // with greater sequence numbers
	Before   uint64      // with smaller ones
	Limit    int         // at most so many
}

// Match reports whether the query selects an event, as far as Limit lets it.
func (q *EventQuery) Match(ev *Event) bool {
	switch {
	case ev.Seq <= q.After, q.Before != 0 && ev.Seq >= q.Before:
	case q.Graph != "" && ev.Graph != q.Graph:
	case q.Service != "" && ev.Service != q.Service:
	case q.Instance != 0 && ev.Instance != q.Instance && ev.Source != q.Instance && ev.Destination != q.Instance:
	case q.Node.IsValid() && ev.Node != q.Node:
	case q.Session != 0 && ev.Session != q.Session:
	case len(q.Kinds) > 0 && !slices.Contains(q.Kinds, ev.Kind):
	case !q.From.IsZero() && ev.Time.Before(q.From), !q.To.IsZero() && !ev.Time.Before(q.To):
	default:
		return true
	}
	return false
}

// CheckAppend says why events cannot be appended after the one with the
// sequence number last. Stores call it first.
func CheckAppend(last uint64, events []Event) error {
	for i := range events {
		if want := last + 1 + uint64(i); events[i].Seq != want {
			return fmt.Errorf("ssmmp: append to a store: event %d where %d comes next", events[i].Seq, want)
		}
	}
	return nil
}
