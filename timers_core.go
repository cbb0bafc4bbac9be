package ssmmp

import (
	"container/heap"
	"time"
)

// timers is a core's clock, and what the core does when its time has come.
// Timers are never taken back: each looks whether what it was set for still
// holds.
type timers struct {
	now     time.Duration // of the last step
	pending timerHeap
	set     uint64 // so many: those of one time go off in the order they were set in
}

type timer struct {
	at  time.Duration
	seq uint64
	f   func()
}

// after sets a timer.
func (t *timers) after(d time.Duration, f func()) {
	t.set++
	heap.Push(&t.pending, timer{t.now + d, t.set, f})
}

// expire does what is due.
func (t *timers) expire() {
	for len(t.pending) > 0 && t.pending[0].at <= t.now {
		heap.Pop(&t.pending).(timer).f()
	}
}

// next returns when the next timer is due, and false when none is set.
func (t *timers) next() (time.Duration, bool) {
	if len(t.pending) == 0 {
		return 0, false
	}
	return t.pending[0].at, true
}

type timerHeap []timer

func (h timerHeap) Len() int { return len(h) }
func (h timerHeap) Less(i, j int) bool {
	return h[i].at < h[j].at || h[i].at == h[j].at && h[i].seq < h[j].seq
}
func (h timerHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *timerHeap) Push(x any)   { *h = append(*h, x.(timer)) }
func (h *timerHeap) Pop() any {
	old := *h
	t := old[len(old)-1]
	old[len(old)-1] = timer{}
	*h = old[:len(old)-1]
	return t
}
