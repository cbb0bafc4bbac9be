package main

import (
	"bytes"
	"context"
	"net"
	"sync"

	"github.com/ssmmp/ssmmp"
)

// A ledger counts session requests and their answers as they pass on the wire.
type ledger struct {
	mu      sync.Mutex
	records map[ssmmp.InstanceID]*record
	counts
}

// A record has the message ids of one instance's requests, and those of them
// that were answered.
type record struct {
	asked, answered, acknowledged bitset
}

type counts struct {
	SetUps   int                  // acknowledged sessions
	Asked    int                  // requests
	Answered int                  // of those, by at least one answer
	Twice    int                  // answers after the first
	Unasked  int                  // answers to no request
	Again    int                  // requests with the message id of another
	ByStatus map[ssmmp.Status]int // answers
}

func newLedger() *ledger {
	return &ledger{records: map[ssmmp.InstanceID]*record{}, counts: counts{ByStatus: map[ssmmp.Status]int{}}}
}

func (l *ledger) of(id ssmmp.InstanceID) *record {
	r := l.records[id]
	if r == nil {
		r = &record{}
		l.records[id] = r
	}
	return r
}

// line takes one line that passed.
func (l *ledger) line(line []byte) {
	if !bytes.HasPrefix(line, []byte("type: session_")) {
		return
	}
	m, err := ssmmp.ParseMessage(string(line))
	if err != nil {
		return // the peer will say so
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch m := m.(type) {
	case *ssmmp.SessionAck:
		// A report that may have been lost comes again.
		if m.Status.Success() && l.of(m.SourceServiceInstanceID).acknowledged.add(m.MessageID) {
			l.SetUps++
		}
	case *ssmmp.SessionRequest:
		l.Asked++
		if !l.of(m.SourceServiceInstanceID).asked.add(m.MessageID) {
			l.Again++
		}
	case *ssmmp.SessionResponse:
		l.ByStatus[m.Status]++
		r := l.of(m.SourceServiceInstanceID)
		switch {
		case !r.asked.has(m.MessageID):
			l.Unasked++
		case !r.answered.add(m.MessageID):
			l.Twice++
		default:
			l.Answered++
		}
	}
}

// keep forgets all instances but those for which live holds.
func (l *ledger) keep(live func(ssmmp.InstanceID) bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id := range l.records {
		if !live(id) {
			delete(l.records, id)
		}
	}
}

func (l *ledger) read() counts {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.counts
	c.ByStatus = map[ssmmp.Status]int{}
	for s, n := range l.ByStatus {
		c.ByStatus[s] = n
	}
	return c
}

// A bitset holds small positive integers.
type bitset []uint64

func (b bitset) has(n int64) bool {
	return n/64 < int64(len(b)) && b[n/64]&(1<<(n%64)) != 0
}

// add reports whether n was not there yet.
func (b *bitset) add(n int64) bool {
	if b.has(n) {
		return false
	}
	for int64(len(*b)) <= n/64 {
		*b = append(*b, 0)
	}
	(*b)[n/64] |= 1 << (n % 64)
	return true
}

// A splitter cuts what passes on a connection into lines.
type splitter struct {
	part []byte
	line func([]byte)
}

func (s *splitter) pass(p []byte) {
	for {
		line, rest, whole := bytes.Cut(p, []byte{'\n'})
		if !whole {
			s.part = append(s.part, p...)
			return
		}
		if len(s.part) > 0 {
			line = append(s.part, line...)
		}
		s.line(line)
		s.part, p = s.part[:0], rest
	}
}

// A watchedTransport keeps a ledger of what is said to one address.
type watchedTransport struct {
	ssmmp.Transport
	addr   string
	ledger *ledger
}

func (w *watchedTransport) Dial(ctx context.Context, addr string) (net.Conn, error) {
	conn, err := w.Transport.Dial(ctx, addr)
	if err != nil || addr != w.addr {
		return conn, err
	}
	return &watchedConn{Conn: conn, in: splitter{line: w.ledger.line}, out: splitter{line: w.ledger.line}}, nil
}

// A watchedConn is read by one goroutine and written by one at a time.
type watchedConn struct {
	net.Conn
	in, out splitter
}

func (c *watchedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.in.pass(p[:n])
	return n, err
}

func (c *watchedConn) Write(p []byte) (int, error) {
	c.out.pass(p)
	return c.Conn.Write(p)
}
