package ssmmp

import (
	"context"
	"iter"
	"sync"

	"github.com/hashicorp/go-hclog"
)

// A history keeps the newest events in memory, for whoever follows them.
type history struct {
	mu    sync.Mutex
	ring  []*[historyChunk]Event // grows by chunks, so that no event is ever copied
	limit int
	base  uint64        // events up to this one were never here
	seq   uint64        // of the newest event
	more  chan struct{} // closed when an event is appended, then replaced
	await bool          // somebody waits on more
}

const historyChunk = 1 << 8

func newHistory(limit int) *history { return &history{limit: limit, more: make(chan struct{})} }

// append keeps events and returns a copy of those that log wants.
func (h *history) append(events []Event, log hclog.Logger) []Event {
	if len(events) == 0 {
		return nil
	}
	sessions, others := log.IsDebug(), log.IsWarn()
	var logged []Event
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, ev := range events {
		h.seq = ev.Seq
		*h.at(h.seq) = ev
		if sessions || others && ev.Kind != EventSessionOffered && ev.Kind != EventSessionOpened && ev.Kind != EventSessionClosed {
			logged = append(logged, ev)
		}
	}
	if h.await {
		close(h.more)
		h.more, h.await = make(chan struct{}), false
	}
	return logged
}

// at returns the place of the event with that sequence number, for the newest
// by making it.
func (h *history) at(seq uint64) *Event {
	n := (seq - 1 - h.base) % uint64(h.limit)
	if n/historyChunk == uint64(len(h.ring)) {
		h.ring = append(h.ring, new([historyChunk]Event))
	}
	return &h.ring[n/historyChunk][n%historyChunk]
}

// before returns the last event that is no longer kept. h.mu is held.
func (h *history) before() uint64 { return h.seq - min(h.seq-h.base, uint64(h.limit)) }

// oldest returns the first event that is kept, or will be.
func (h *history) oldest() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.before() + 1
}

func (h *history) last() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.seq
}

// next appends to buf the kept events after a sequence number, up to a batch.
// Without any it returns a channel that is closed when there are.
func (h *history) next(buf []Event, after uint64) ([]Event, <-chan struct{}) {
	const batch = 256
	h.mu.Lock()
	defer h.mu.Unlock()
	after = max(after, h.before())
	for ; after < h.seq && len(buf) < batch; after++ {
		buf = append(buf, *h.at(after + 1))
	}
	if len(buf) > 0 {
		return buf, nil
	}
	h.await = true
	return nil, h.more
}

func (h *history) follow(ctx context.Context, done <-chan struct{}, after uint64) iter.Seq[Event] {
	return func(yield func(Event) bool) {
		var buf []Event
		for ctx.Err() == nil {
			events, more := h.next(buf[:0], after)
			if more != nil {
				select {
				case <-more:
				case <-ctx.Done():
					return
				case <-done:
					if h.last() <= after {
						return
					}
				}
				continue
			}
			for _, ev := range events {
				after = ev.Seq
				if !yield(ev) {
					return
				}
			}
			buf = events
		}
	}
}
