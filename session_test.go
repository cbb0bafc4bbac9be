package ssmmp

import (
	"runtime"
	"slices"
	"testing"
	"unsafe"

	"pgregory.net/rapid"
)

// A sessionModel is what a session table should hold, in the simplest form.
type sessionModel struct {
	table sessionTable
	nodes []uint32               // by instance slot
	live  []*modelSession        // oldest first
	used  map[SessionID]struct{} // every id there ever was
}

type modelSession struct {
	id       SessionID
	slot     uint32
	src, dst uint32
	edge     uint16
	message  int64
	plugPort uint16 // 0 until it is open
	newPort  uint16
}

func (m *sessionModel) offer(t *rapid.T) *modelSession {
	slots := rapid.Uint32Range(1, uint32(len(m.nodes)-1))
	s := &modelSession{
		src: slots.Draw(t, "source"), dst: slots.Draw(t, "destination"),
		edge: rapid.Uint16Range(0, 2).Draw(t, "edge"), message: rapid.Int64Range(1, 1<<62).Draw(t, "message"),
	}
	s.slot = m.table.offer(s.src, s.dst, s.edge, s.message)
	s.id = m.table.id(s.slot)
	if _, again := m.used[s.id]; again {
		t.Fatalf("session id %s is used again", s.id)
	}
	m.used[s.id] = struct{}{}
	m.live = append(m.live, s)
	return s
}

// open uses few ports, so that sessions share their place in the index.
func (m *sessionModel) open(t *rapid.T, s *modelSession) {
	s.plugPort = rapid.Uint16Range(1, 12).Draw(t, "plug port")
	s.newPort = rapid.Uint16Range(1, 12).Draw(t, "new port")
	m.table.open(s.slot, s.plugPort, s.newPort)
}

// check compares the table with the model in everything that it can be asked.
func (m *sessionModel) check(t *rapid.T) {
	tab := &m.table
	if tab.live != len(m.live) {
		t.Fatalf("live: %d, want %d", tab.live, len(m.live))
	}
	sources, destinations := make([][]uint32, len(m.nodes)), make([][]uint32, len(m.nodes))
	opened := 0
	for _, s := range slices.Backward(m.live) { // the lists begin with the newest
		sources[s.src] = append(sources[s.src], s.slot)
		destinations[s.dst] = append(destinations[s.dst], s.slot)
		if got := tab.lookup(s.id); got != s.slot {
			t.Fatalf("lookup %s: slot %d, want %d", s.id, got, s.slot)
		}
		got, state := tab.at(s.slot), SessionOffered
		if s.plugPort != 0 {
			state = SessionOpen
			opened++
		}
		if got.src != s.src || got.dst != s.dst || got.edge != s.edge || got.messageID != s.message ||
			got.plugPort != s.plugPort || got.newPort != s.newPort || got.state != state {
			t.Fatalf("session %s: %+v, want %+v in state %s", s.id, *got, *s, state)
		}
		if s.plugPort == 0 {
			continue
		}
		found := tab.find(m.nodes[s.src], s.plugPort, s.dst, func(o *session) bool { return o == got })
		if found != s.slot {
			t.Fatalf("find session %s: slot %d, want %d", s.id, found, s.slot)
		}
	}
	if tab.indexed != opened {
		t.Fatalf("indexed: %d, want %d", tab.indexed, opened)
	}
	if filled := len(tab.index) - count(tab.index, 0); filled != opened {
		t.Fatalf("the index holds %d, want %d", filled, opened)
	}
	for i := range m.nodes {
		var src, dst []uint32
		for slot := tab.ends[i].srcHead; slot != 0 && len(src) <= len(m.live); slot = tab.at(slot).srcNext {
			src = append(src, slot)
		}
		for slot := tab.ends[i].dstHead; slot != 0 && len(dst) <= len(m.live); slot = tab.at(slot).dstNext {
			dst = append(dst, slot)
		}
		if !slices.Equal(src, sources[i]) || int(tab.ends[i].srcLen) != len(src) {
			t.Fatalf("instance %d is the source of %v (%d), want %v", i, src, tab.ends[i].srcLen, sources[i])
		}
		if !slices.Equal(dst, destinations[i]) || int(tab.ends[i].dstLen) != len(dst) {
			t.Fatalf("instance %d is the destination of %v (%d), want %v", i, dst, tab.ends[i].dstLen, destinations[i])
		}
	}
}

func count(list []uint32, v uint32) (n int) {
	for _, x := range list {
		if x == v {
			n++
		}
	}
	return n
}

func TestSessionTable(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		m := &sessionModel{used: map[SessionID]struct{}{}}
		for i := range uint32(6) {
			m.nodes = append(m.nodes, i%3)
			m.table.instance(i, i%3)
		}
		pick := func(keep func(*modelSession) bool) *modelSession {
			var some []*modelSession
			for _, s := range m.live {
				if keep(s) {
					some = append(some, s)
				}
			}
			if len(some) == 0 {
				t.Skip("none")
			}
			return rapid.SampledFrom(some).Draw(t, "session")
		}
		t.Repeat(map[string]func(*rapid.T){
			"offer": func(t *rapid.T) { m.offer(t) },
			"open": func(t *rapid.T) {
				m.open(t, pick(func(s *modelSession) bool { return s.plugPort == 0 }))
			},
			"offer and open many": func(t *rapid.T) {
				for range rapid.IntRange(1, 40).Draw(t, "sessions") {
					m.open(t, m.offer(t))
				}
			},
			"remove": func(t *rapid.T) {
				s := pick(func(*modelSession) bool { return true })
				m.table.remove(s.slot)
				m.live = slices.DeleteFunc(m.live, func(o *modelSession) bool { return o == s })
				if got := m.table.lookup(s.id); got != 0 {
					t.Fatalf("lookup %s: slot %d after it was removed", s.id, got)
				}
			},
			"remove many": func(t *rapid.T) {
				for i := rapid.IntRange(0, 2).Draw(t, "first"); i < len(m.live); i += 2 {
					m.table.remove(m.live[i].slot)
					m.live = slices.Delete(m.live, i, i+1)
				}
			},
			"move an instance": func(t *rapid.T) {
				i := rapid.Uint32Range(1, uint32(len(m.nodes)-1)).Draw(t, "instance")
				if e := m.table.ends[i]; e.srcLen+e.dstLen > 0 {
					t.Skip("in use")
				}
				m.nodes[i] = rapid.Uint32Range(0, 2).Draw(t, "node")
				m.table.instance(i, m.nodes[i])
			},
			"find none": func(t *rapid.T) {
				node, port, dst := rapid.Uint32Range(0, 3).Draw(t, "node"), rapid.Uint16Range(1, 13).Draw(t, "port"), rapid.Uint32Range(1, 6).Draw(t, "destination")
				want := slices.ContainsFunc(m.live, func(s *modelSession) bool {
					return m.nodes[s.src] == node && s.plugPort == port && s.dst == dst
				})
				if got := m.table.find(node, port, dst, func(*session) bool { return true }); (got != 0) != want {
					t.Fatalf("find (%d, %d, %d): slot %d, want any: %v", node, port, dst, got, want)
				}
				if got := m.table.find(node, port, dst, func(*session) bool { return false }); got != 0 {
					t.Fatalf("find (%d, %d, %d): slot %d, which does not match", node, port, dst, got)
				}
			},
			"lookup none": func(t *rapid.T) {
				id := SessionID(rapid.Uint64Range(0, 3).Draw(t, "generation")<<32 | rapid.Uint64Range(0, 2000).Draw(t, "slot"))
				want := slices.ContainsFunc(m.live, func(s *modelSession) bool { return s.id == id })
				if got := m.table.lookup(id); (got != 0) != want {
					t.Fatalf("lookup %s: slot %d, want any: %v", id, got, want)
				}
			},
			"": m.check,
		})
	})
}

// The record is small and holds no pointer, and the table grows by whole chunks
// without moving one: a pointer into it stays good.
func TestSessionChunks(t *testing.T) {
	t.Parallel()
	if size := unsafe.Sizeof(session{}); size != 48 {
		t.Errorf("a session takes %d bytes, want 48", size)
	}
	var tab sessionTable
	tab.instance(1, 0)
	first := tab.at(tab.offer(1, 1, 0, 1))
	for range 3*sessionChunk - 2 { // slot 0 is not used
		tab.offer(1, 1, 0, 1)
	}
	if got := len(tab.chunks); got != 3 {
		t.Errorf("%d sessions in %d chunks, want 3", tab.live, got)
	}
	if tab.at(1) != first {
		t.Error("growing moved a session")
	}
	tab.offer(1, 1, 0, 1)
	if got := len(tab.chunks); got != 4 {
		t.Errorf("%d sessions in %d chunks, want 4", tab.live, got)
	}
	for tab.live > 0 {
		tab.remove(tab.ends[1].srcHead)
	}
	for range 3 * sessionChunk {
		tab.offer(1, 1, 0, 1)
	}
	if got := len(tab.chunks); got != 4 {
		t.Errorf("%d chunks when free slots were used again, want 4", got)
	}
}

// A session that comes and goes allocates nothing. Not parallel: allocations of
// others would count.
func TestSessionAllocations(t *testing.T) {
	var tab sessionTable
	tab.instance(1, 0)
	tab.remove(cycleSession(&tab, 1))
	if n := testing.AllocsPerRun(1000, func() { tab.remove(cycleSession(&tab, 1)) }); n != 0 {
		t.Errorf("%v allocations for a session, want none", n)
	}
}

// cycleSession offers, opens and finds a session.
func cycleSession(tab *sessionTable, port uint16) uint32 {
	slot := tab.offer(1, 1, 0, 1)
	tab.open(slot, port, 54000)
	return tab.find(0, port, 1, func(s *session) bool { return s.src == 1 })
}

func BenchmarkSession(b *testing.B) {
	var tab sessionTable
	tab.instance(1, 0)
	b.ReportAllocs()
	for b.Loop() {
		tab.remove(cycleSession(&tab, 40112))
	}
}

// BenchmarkMillionSessions opens a million sessions between a thousand
// instances and tells what one of them costs.
func BenchmarkMillionSessions(b *testing.B) {
	const sessions, instances = 1_000_000, 1000
	var before, after runtime.MemStats
	for b.Loop() {
		runtime.GC()
		runtime.ReadMemStats(&before)
		tab := new(sessionTable)
		for i := range uint32(instances) {
			tab.instance(i+1, i%10)
		}
		for i := range uint32(sessions) {
			slot := tab.offer(1+i%instances, 1+i/instances, 0, int64(i)+1)
			tab.open(slot, uint16(1024+i%60000), 54000)
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		runtime.KeepAlive(tab)
	}
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/sessions, "B/session")
}
