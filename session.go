package ssmmp

import (
	"fmt"
	"math"
)

// A SessionID names a session at its Manager. It is never used again.
type SessionID uint64

// String returns a short form for people: the place in the Manager's table and
// how often that place was used before.
func (id SessionID) String() string { return fmt.Sprintf("%d.%d", uint32(id), id>>32) }

// A SessionState tells how far a session is.
//
//	(none) → offered → open → closing → (none)
//
// An offered session ends without having been open when its acknowledgment
// reports a failed dial, or never comes.
type SessionState uint8

// The states of a session.
const (
	SessionOffered SessionState = 1 + iota // answered, and not acknowledged yet
	SessionOpen                            // acknowledged
	SessionClosing                         // the Manager asked an end to close it
)

func (s SessionState) String() string {
	switch s {
	case SessionOffered:
		return "offered"
	case SessionOpen:
		return "open"
	case SessionClosing:
		return "closing"
	}
	return "none"
}

// A session is what the Manager keeps of one session: 48 bytes and no
// pointer, so that a million of them cost the collector nothing. Names,
// addresses and listening ports stand once, in the instances and the graph.
type session struct {
	messageID int64  // of the request that asked for it
	gen       uint32 // how often this slot was used: the upper half of the id
	src, dst  uint32 // slots of the instances at its two ends

	// Every session hangs in the list of its source and of its destination.
	srcNext, srcPrev uint32
	dstNext, dstPrev uint32

	edge     uint16 // index into the edges of the source's vertex
	plugPort uint16 // m
	newPort  uint16 // l

	state     SessionState
	closeWhen bool   // close it as soon as it is acknowledged
	age       uint32 // counts the offers; it wraps
}

// sessionChunk is how many records are allocated together: the table grows
// without ever copying one.
const sessionChunk = 1 << 10

// A sessionEnds is the part of an instance that the table keeps: the heads of
// its two lists, their lengths, and the node it runs on.
type sessionEnds struct {
	srcHead, dstHead uint32
	srcLen, dstLen   uint32
	node             uint32
}

// A sessionTable holds the sessions of a Manager. Slot 0 is never used, so
// that 0 means none.
type sessionTable struct {
	chunks []*[sessionChunk]session
	used   uint32 // slots handed out so far, slot 0 among them
	free   uint32 // head of the list of free slots, linked by srcNext
	live   int
	offers uint32 // so far; it wraps

	ends []sessionEnds // by instance slot

	// index finds an acknowledged session by its connection: linear probing
	// over slots, hashed by (source node, plug port, destination).
	index   []uint32
	indexed int
}

func (t *sessionTable) at(slot uint32) *session {
	return &t.chunks[slot/sessionChunk][slot%sessionChunk]
}

func (t *sessionTable) id(slot uint32) SessionID {
	return SessionID(t.at(slot).gen)<<32 | SessionID(slot)
}

// lookup returns the slot of a live session, 0 if the id names none.
func (t *sessionTable) lookup(id SessionID) uint32 {
	slot := uint32(id)
	if slot == 0 || slot >= t.used {
		return 0
	}
	if s := t.at(slot); s.state == 0 || s.gen != uint32(id>>32) {
		return 0
	}
	return slot
}

// instance makes room for an instance's slot and says on which node it runs.
func (t *sessionTable) instance(slot, node uint32) {
	for uint32(len(t.ends)) <= slot {
		t.ends = append(t.ends, sessionEnds{})
	}
	t.ends[slot] = sessionEnds{node: node}
}

// next returns the id of the session that will be offered next.
func (t *sessionTable) next() SessionID {
	if t.free != 0 {
		return SessionID(t.at(t.free).gen+1)<<32 | SessionID(t.free)
	}
	return 1<<32 | SessionID(max(t.used, 1))
}

// offer adds a session and returns its slot.
func (t *sessionTable) offer(src, dst uint32, edge uint16, messageID int64) uint32 {
	slot := t.free
	if slot != 0 {
		t.free = t.at(slot).srcNext
	} else {
		slot = max(t.used, 1)
		t.reach(slot)
	}
	t.place(slot, t.at(slot).gen+1, src, dst, edge, messageID)
	return slot
}

// reach makes the table hold a slot.
func (t *sessionTable) reach(slot uint32) {
	for int(slot/sessionChunk) >= len(t.chunks) {
		t.chunks = append(t.chunks, new([sessionChunk]session))
	}
	t.used = max(t.used, slot+1)
}

// place puts an offered session into a free slot that is in no list.
func (t *sessionTable) place(slot, gen, src, dst uint32, edge uint16, messageID int64) {
	s := t.at(slot)
	t.offers++
	*s = session{messageID: messageID, gen: gen, src: src, dst: dst, edge: edge, state: SessionOffered, age: t.offers}

	from, to := &t.ends[src], &t.ends[dst]
	if s.srcNext = from.srcHead; s.srcNext != 0 {
		t.at(s.srcNext).srcPrev = slot
	}
	if s.dstNext = to.dstHead; s.dstNext != 0 {
		t.at(s.dstNext).dstPrev = slot
	}
	from.srcHead, to.dstHead = slot, slot
	from.srcLen++
	to.dstLen++
	t.live++
}

// open notes the ports of an acknowledged session and makes it findable.
func (t *sessionTable) open(slot uint32, plugPort, newPort uint16) {
	s := t.at(slot)
	s.plugPort, s.newPort, s.state = plugPort, newPort, SessionOpen
	if (t.indexed+1)*4 > len(t.index)*3 {
		t.grow()
	}
	t.insert(slot)
	t.indexed++
}

// find returns the slot of the acknowledged session between a node's port and
// an instance for which match holds, 0 if there is none.
func (t *sessionTable) find(node uint32, plugPort uint16, dst uint32, match func(*session) bool) uint32 {
	if len(t.index) == 0 {
		return 0
	}
	mask := uint32(len(t.index) - 1)
	for i := sessionHash(node, plugPort, dst) & mask; t.index[i] != 0; i = (i + 1) & mask {
		s := t.at(t.index[i])
		if s.plugPort == plugPort && s.dst == dst && t.ends[s.src].node == node && match(s) {
			return t.index[i]
		}
	}
	return 0
}

// remove forgets a session.
func (t *sessionTable) remove(slot uint32) {
	s := t.at(slot)
	if s.plugPort != 0 {
		t.unindex(slot)
	}
	from, to := &t.ends[s.src], &t.ends[s.dst]
	if s.srcPrev != 0 {
		t.at(s.srcPrev).srcNext = s.srcNext
	} else {
		from.srcHead = s.srcNext
	}
	if s.srcNext != 0 {
		t.at(s.srcNext).srcPrev = s.srcPrev
	}
	if s.dstPrev != 0 {
		t.at(s.dstPrev).dstNext = s.dstNext
	} else {
		to.dstHead = s.dstNext
	}
	if s.dstNext != 0 {
		t.at(s.dstNext).dstPrev = s.dstPrev
	}
	from.srcLen--
	to.dstLen--
	t.live--
	if s.gen == math.MaxUint32 {
		*s = session{} // its ids are used up: it is not among the free ones
		return
	}
	*s = session{gen: s.gen, srcNext: t.free}
	t.free = slot
}

func (t *sessionTable) hash(slot uint32) uint32 {
	s := t.at(slot)
	return sessionHash(t.ends[s.src].node, s.plugPort, s.dst)
}

func (t *sessionTable) insert(slot uint32) {
	mask := uint32(len(t.index) - 1)
	i := t.hash(slot) & mask
	for t.index[i] != 0 {
		i = (i + 1) & mask
	}
	t.index[i] = slot
}

func (t *sessionTable) grow() {
	old := t.index
	t.index = make([]uint32, max(64, 2*len(old)))
	for _, slot := range old {
		if slot != 0 {
			t.insert(slot)
		}
	}
}

// unindex takes a slot out of the index and moves up those that probed past
// it, so that no tombstone is needed.
func (t *sessionTable) unindex(slot uint32) {
	mask := uint32(len(t.index) - 1)
	i := t.hash(slot) & mask
	for t.index[i] != slot {
		i = (i + 1) & mask
	}
	for j := (i + 1) & mask; t.index[j] != 0; j = (j + 1) & mask {
		home := t.hash(t.index[j]) & mask
		if (j-home)&mask >= (j-i)&mask {
			t.index[i] = t.index[j]
			i = j
		}
	}
	t.index[i] = 0
	t.indexed--
}

// sessionHash mixes the three keys; each step is a bijection of the bits.
func sessionHash(node uint32, plugPort uint16, dst uint32) uint32 {
	h := uint64(node)<<48 ^ uint64(plugPort)<<32 ^ uint64(dst)
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	return uint32(h ^ h>>33)
}
