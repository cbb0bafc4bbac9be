package ssmmptest

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/ssmmp/ssmmp"
)

// The simulated network: hosts, connections that carry lines in order, and
// what goes wrong between them.

// A simHost is a machine. The first is the Manager's.
type simHost struct {
	index int
	name  string
	addr  netip.Addr
	down  bool           // switched off
	rand  simRand        // of everything that happens here
	slow  []*simFaultRun // of its links, while they last
	noisy []*simFaultRun // that send lines twice, or garbage
}

// A simActor is a process: it has a clock, can be stopped and can die.
type simActor struct {
	name    string
	host    *simHost
	owner   simOwner
	dead    bool
	life    int        // how often it was started
	frozen  bool       // stopped: what happens to it waits
	backlog []simEvent // meanwhile

	born   time.Duration // virtual time
	ppm    int64         // by how much its clock is fast
	jumped time.Duration // by its clock so far
	wakeAt time.Duration // of the earliest wake-up that is under way; 0 if none
	wake   func()
}

// A simOwner handles what arrives at its ends of connections.
type simOwner interface {
	line(e *simEnd, line []byte)
	lost(e *simEnd)
}

// local is the time by the actor's own clock, since it began.
func (a *simActor) local(now time.Duration) time.Duration {
	d := now - a.born
	return d + time.Duration(int64(d/1000)*a.ppm/1000) + a.jumped
}

// until returns the virtual time at which the actor's clock shows at.
func (a *simActor) until(now, at time.Duration) time.Duration {
	wait := at - a.local(now)
	if wait <= 0 {
		return now
	}
	// Rounded up: a wake-up that comes a little late does no harm.
	return now + wait - time.Duration(int64(wait/1000)*a.ppm/1000) + wait/100_000 + 1
}

// A simConn is a connection: two ends and a pipe from each to the other.
type simConn struct {
	ends  [2]simEnd
	pipes [2]simPipe // into the end with the same index
	kind  simConnKind
}

type simConnKind uint8

const (
	simToManager  simConnKind = iota // from an agent
	simToAgent                       // from an instance
	simToInstance                    // a session: it carries no lines
)

// A simEnd is one end of a connection.
type simEnd struct {
	conn    *simConn
	index   int
	id      ssmmp.ConnID // its number at its owner
	who     *simActor
	closing bool // sends no more
	closed  bool // and takes no more
}

func (e *simEnd) peer() *simEnd { return &e.conn.ends[1-e.index] }

// A simPipe carries lines to an end, in their order.
type simPipe struct {
	to      *simEnd
	buf     []byte // of lines under way
	start   int
	lines   []simLine
	head    int
	last    time.Duration // when the last line arrives
	stalled int           // lines whose time has come, and which a partition holds
}

// A simLine is a line under way.
type simLine struct {
	size int32 // in bytes; 0 for the end of the stream
	lost bool
}

var errSimClosed = fmt.Errorf("connection closed")

// connect makes a connection, the first end at the one who dialled.
func (s *simRun) connect(kind simConnKind, from, to *simActor) *simConn {
	c := &simConn{kind: kind}
	for i, a := range [...]*simActor{from, to} {
		c.ends[i] = simEnd{conn: c, index: i, who: a}
		c.pipes[i].to = &c.ends[i]
	}
	return c
}

// blocked tells whether what one host sends to another does not arrive now.
func (s *simRun) blocked(from, to *simHost) bool {
	if from == to {
		return false
	}
	if from.down || to.down {
		return true
	}
	for _, c := range s.cuts {
		if c.from[from.index] && c.to[to.index] {
			return true
		}
	}
	return false
}

// delay is how long a line takes from one host to another.
func (s *simRun) delay(from, to *simHost) time.Duration {
	if from == to {
		return from.rand.between(20*time.Microsecond, 200*time.Microsecond)
	}
	d := from.rand.between(s.sim.Latency, s.sim.Latency+s.sim.Jitter)
	for _, h := range [...]*simHost{from, to} {
		for _, f := range h.slow {
			d += from.rand.between(0, f.Amount)
			s.hit(f.Kind)
		}
	}
	return d
}

// send puts a message on its way; every one is really encoded, and decoded
// where it arrives.
func (s *simRun) send(e *simEnd, m ssmmp.Message) error {
	if e.closing {
		return errSimClosed
	}
	p := &e.conn.pipes[1-e.index]
	before := len(p.buf)
	buf, err := ssmmp.AppendMessage(p.buf, m)
	if err != nil {
		s.fail("every message can be encoded", "%s sends %s: %v", e.who.name, m.Type(), err)
		return nil
	}
	p.buf = buf
	s.queued(e, p, len(buf)-before)
	return nil
}

// sendLine is send for an encoded message.
func (s *simRun) sendLine(e *simEnd, line []byte) error {
	if e.closing {
		return errSimClosed
	}
	p := &e.conn.pipes[1-e.index]
	p.buf = append(p.buf, line...)
	s.queued(e, p, len(line))
	return nil
}

// queued schedules the arrival of the line that ends the pipe's buffer.
func (s *simRun) queued(e *simEnd, p *simPipe, size int) {
	s.put(e, p, size)
	start := len(p.buf) - size
	for _, f := range e.who.host.noisy {
		if f.conn == e.conn.kind && f.rand.n(100) < f.percent {
			s.hit(f.Kind)
			if f.garbage {
				junk := simGarbage[f.rand.n(len(simGarbage))]
				p.buf = append(p.buf, junk...)
				s.put(e, p, len(junk))
				continue
			}
			p.buf = append(p.buf, p.buf[start:start+size]...)
			s.put(e, p, size)
		}
	}
}

// simGarbage are lines that are no messages.
var simGarbage = []string{"\n", "type: \n", "GET / HTTP/1.1\n", "type: session_ack ~ message_id: 0 ~ sub_type: x\n",
	"type: hard_shutdown_response ~ message_id: 99999999999999999999 ~ sub_type: agent_to_Manager ~ service_instance_id: 1 ~ status: 200\n",
	"type: execution_response ~ message_id: 7\n", "type: no_such_type ~ message_id: 1\n", " ~ ~ ~ \x00\n", strings.Repeat("a", 500) + "\n"}

func (s *simRun) put(e *simEnd, p *simPipe, size int) {
	p.lines = append(p.lines, simLine{size: int32(size)})
	p.last = max(p.last, s.now+s.delay(e.who.host, p.to.who.host))
	s.push(simEvent{at: p.last, who: p.to.who, in: p})
}

// arrive takes the next line off a pipe.
func (s *simRun) arrive(p *simPipe) {
	l := p.lines[p.head]
	line := p.buf[p.start : p.start+int(l.size)]
	p.head++
	p.start += int(l.size)
	e := p.to
	switch {
	case l.lost || e.closed:
	case l.size == 0:
		s.lose(e)
	default:
		s.hash = simMixBytes(s.hash, line)
		if s.transcript != nil {
			s.logf("%s → %s: %s", e.peer().who.name, e.who.name, strings.TrimSuffix(string(line), "\n"))
		}
		e.who.owner.line(e, line)
	}
	if p.head == len(p.lines) {
		p.buf, p.lines, p.head, p.start = p.buf[:0], p.lines[:0], 0, 0
	}
}

// lose tells an end's owner that its connection ended.
func (s *simRun) lose(e *simEnd) {
	if e.closed {
		return
	}
	e.closed, e.closing = true, true
	if e.who.dead {
		return
	}
	if s.transcript != nil {
		s.logf("%s: its connection %d with %s ended", e.who.name, e.id, e.peer().who.name)
	}
	e.who.owner.lost(e)
}

// hangUp ends a connection from one end, once what was sent is written.
func (s *simRun) hangUp(e *simEnd) {
	if e.closing {
		return
	}
	e.closing = true
	s.put(e, &e.conn.pipes[1-e.index], 0)
	s.after(e.who, e.who.host.rand.between(0, time.Millisecond), func() { s.lose(e) })
}

// abort ends a connection from one end at once: what is under way is lost.
func (s *simRun) abort(e *simEnd) {
	if e.closed {
		return
	}
	p := &e.conn.pipes[1-e.index]
	s.drop(p, p.head)
	if !e.closing {
		e.closing = true
		s.put(e, p, 0)
	}
	s.after(e.who, 0, func() { s.lose(e) })
}

// drop takes the lines of a pipe from an index on out of the stream, but not
// its end.
func (s *simRun) drop(p *simPipe, from int) {
	for i := from; i < len(p.lines); i++ {
		if p.lines[i].size > 0 && !p.lines[i].lost {
			p.lines[i].lost = true
			s.hit(SimLinesLost)
		}
	}
}

// die ends a connection since the process at one end died: of what it sent, a
// part may have been written.
func (s *simRun) die(e *simEnd, silently bool) {
	if e.closed {
		return
	}
	p := &e.conn.pipes[1-e.index]
	if n := len(p.lines) - p.head; n > 0 {
		s.drop(p, p.head+e.who.host.rand.n(n+1))
	}
	if !e.closing && !silently {
		s.put(e, p, 0)
	}
	e.closed, e.closing = true, true
}

// reset breaks a connection: both ends see it, each in its time.
func (s *simRun) reset(c *simConn) {
	for i := range c.ends {
		e := &c.ends[i]
		if e.closed {
			continue
		}
		e.closing = true
		s.after(e.who, e.who.host.rand.between(0, 5*time.Millisecond), func() {
			if p := &c.pipes[e.index]; p.head < len(p.lines) {
				s.drop(p, p.head)
			}
			s.lose(e)
		})
	}
}

// stall holds back what arrives from a host that a partition cuts off.
func (s *simRun) stall(p *simPipe) {
	if p.stalled == 0 {
		s.stalled = append(s.stalled, p)
		// Keep-alives find out in the end, unless data are under way: those
		// are sent again for a quarter of an hour.
		if e, r := p.to, &p.to.who.host.rand; !r.oneIn(4) {
			s.after(nil, r.between(15*time.Second, 45*time.Second), func() {
				if p.stalled > 0 && !e.closed {
					s.hit(SimKeepAlive)
					s.timedOut(e)
				}
			})
		}
	}
	p.stalled++
	s.hitCuts(p.to.peer().who.host, p.to.who.host)
}

// hitCuts counts the partitions that keep what one host sends from another.
func (s *simRun) hitCuts(from, to *simHost) {
	for _, c := range s.cuts {
		if c.from[from.index] && c.to[to.index] {
			s.hit(c.kind)
		}
	}
}

// timedOut ends a connection at one end alone: the other is half-open.
func (s *simRun) timedOut(e *simEnd) {
	if e.closed || e.who.dead {
		return
	}
	s.hit(SimHalfOpen)
	if !e.closing {
		e.closing = true
		s.put(e, &e.conn.pipes[1-e.index], 0)
	}
	s.after(e.who, 0, func() { s.lose(e) })
}

// unstall lets arrive what no partition holds any more.
func (s *simRun) unstall() {
	old := s.stalled
	s.stalled = nil
	for _, p := range old {
		from, to := p.to.peer().who, p.to.who
		if s.blocked(from.host, to.host) {
			s.stalled = append(s.stalled, p)
			continue
		}
		for ; p.stalled > 0; p.stalled-- {
			p.last = max(p.last, s.now+s.delay(from.host, to.host))
			s.push(simEvent{at: p.last, who: to, in: p})
		}
	}
}

// A simCut keeps what some hosts send from others.
type simCut struct {
	kind     SimulationFaultKind
	from, to []bool  // by host
	twin     *simCut // the other direction
}
