package ssmmptest

import (
	"math/bits"
	"time"
)

// The simulator's time and chance: a heap of events in virtual time, and
// numbers that depend on a seed alone.

// A simEvent is one thing that is going to happen.
type simEvent struct {
	at   time.Duration // virtual time
	seq  uint64        // among those of one time
	who  *simActor     // whose it is; nil for the world's
	life int           // of who: what a process is about to do dies with it
	in   *simPipe      // its next line arrives
	f    func()        // or this happens; with neither, who is woken
}

// A simHeap is a heap of events with four children to a node: it is shallow, and
// children lie side by side.
type simHeap []simEvent

func (e *simEvent) before(o *simEvent) bool {
	return e.at < o.at || e.at == o.at && e.seq < o.seq
}

func (h *simHeap) push(ev simEvent) {
	*h = append(*h, ev)
	all := *h
	i := len(all) - 1
	for i > 0 {
		up := (i - 1) / 4
		if !ev.before(&all[up]) {
			break
		}
		all[i] = all[up]
		i = up
	}
	all[i] = ev
}

func (h *simHeap) pop() simEvent {
	all := *h
	first, last := all[0], all[len(all)-1]
	all[len(all)-1] = simEvent{}
	all = all[:len(all)-1]
	*h = all
	if len(all) == 0 {
		return first
	}
	i := 0
	for {
		least := 4*i + 1
		if least >= len(all) {
			break
		}
		for child := least + 1; child < min(4*i+5, len(all)); child++ {
			if all[child].before(&all[least]) {
				least = child
			}
		}
		if !all[least].before(&last) {
			break
		}
		all[i] = all[least]
		i = least
	}
	all[i] = last
	return first
}

// A simRand gives numbers that look random (SplitMix64). Each node has its own,
// so that what is left out at one changes little at the others.
type simRand uint64

func newSimRand(seed, stream uint64) simRand {
	r := simRand(seed ^ bits.RotateLeft64(stream*0xd1342543de82ef95, 31))
	r.next()
	return r
}

func (r *simRand) next() uint64 {
	*r += 0x9e3779b97f4a7c15
	z := uint64(*r)
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// n returns a number from 0 to n-1.
func (r *simRand) n(n int) int {
	hi, _ := bits.Mul64(r.next(), uint64(n))
	return int(hi)
}

// between returns a duration from lo to hi.
func (r *simRand) between(lo, hi time.Duration) time.Duration {
	if hi <= lo {
		return lo
	}
	return lo + time.Duration(r.n(int(hi-lo)+1))
}

// oneIn is true once in n times.
func (r *simRand) oneIn(n int) bool { return r.n(n) == 0 }

// simMix folds a number into a hash.
func simMix(h, x uint64) uint64 {
	h ^= x
	h *= 0x9fb21c651e98df25
	return h ^ h>>32
}

// simMixBytes folds bytes into a hash.
func simMixBytes(h uint64, b []byte) uint64 {
	n := uint64(len(b))
	for ; len(b) >= 8; b = b[8:] {
		h = simMix(h, uint64(b[0])|uint64(b[1])<<8|uint64(b[2])<<16|uint64(b[3])<<24|
			uint64(b[4])<<32|uint64(b[5])<<40|uint64(b[6])<<48|uint64(b[7])<<56)
	}
	last := n << 56
	for i, c := range b {
		last |= uint64(c) << (8 * i)
	}
	return simMix(h, last)
}
