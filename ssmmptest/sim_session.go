package ssmmptest

import (
	"net/netip"
	"slices"
	"time"

	"github.com/ssmmp/ssmmp"
)

// Sessions: dials, as an instance's runtime makes them, and the connections
// between instances. They carry no bytes: only how they begin and end counts.

// A simTuple names a connection of a node: its own port and the far end.
type simTuple struct {
	port uint16
	peer netip.AddrPort
}

// A simSession is a connection between two processes.
type simSession struct {
	ends    [2]*simSessionEnd // source, destination
	chain   time.Duration     // who it reaches dials on and holds that so long; 0 if not
	message int64             // id of the session_request that it came of, once it is acknowledged
}

// A simSessionEnd is one end of a session, at its process.
type simSessionEnd struct {
	session *simSession
	p       *simProc
	number  uint64
	source  bool
	socket  string // of the destination's end
	peer    netip.AddrPort
	port    uint16
	taken   bool // its process knows of it
	over    bool // closed here, or its process is gone
	stuck   bool // its end did not get through a partition
}

func (e *simSessionEnd) far() *simSessionEnd {
	if e.source {
		return e.session.ends[1]
	}
	return e.session.ends[0]
}

// A simDialing is a dial under way.
type simDialing struct {
	p        *simProc
	call     ssmmp.CallID
	plug     string
	began    time.Duration
	until    time.Duration // the caller's patience
	canceled bool          // the caller gives up, and does not only lose patience
	attempt  int
	asked    bool // the Manager's answer is awaited
	hold     time.Duration
	chain    bool
	done     bool
	first    time.Duration // when the destination first refused
}

// dial opens a session over a plug and closes it after a while.
func (p *simProc) dial(plug string, hold time.Duration, chain bool) {
	s := p.s
	if !p.running || p.draining {
		return
	}
	d := &simDialing{p: p, plug: plug, began: s.now, hold: hold, chain: chain, until: s.now + s.dialTimeout}
	if f := p.node.impatient(); f != nil {
		d.until, d.canceled = s.now+f.rand.between(0, f.Amount), true
	}
	s.dials++
	s.after(&p.simActor, d.until-s.now, d.late)
	d.ask()
}

// ask asks the Manager for a destination.
func (d *simDialing) ask() {
	p := d.p
	if p.draining {
		d.finish(ssmmp.StatusUnavailable)
		return
	}
	p.lastCall++
	d.call, d.asked, d.first = p.lastCall, true, 0
	d.attempt++
	p.dials[d.call] = d
	p.step(ssmmp.InstanceInput{Kind: ssmmp.InstanceInputDial, Call: d.call, Plug: d.plug})
}

// over handles a refusal: there is no session.
func (d *simDialing) over(status ssmmp.Status) {
	delete(d.p.dials, d.call)
	d.finish(status)
}

func (d *simDialing) finish(status ssmmp.Status) {
	if d.done {
		return
	}
	d.done = true
	s := d.p.s
	if !status.Success() {
		s.failed++
	}
	if s.opts.OnDial != nil {
		s.opts.OnDial(SimulationDial{At: d.began, Took: s.now - d.began, Service: d.p.launch.Service, Plug: d.plug, Status: status})
	}
}

// late ends a dial that takes too long for its caller.
func (d *simDialing) late() {
	if d.done || d.p.dials[d.call] != d {
		return
	}
	status := ssmmp.StatusUnreachable
	if d.asked || d.canceled {
		status = ssmmp.StatusCanceled
	}
	if d.canceled {
		d.p.s.hit(SimGivesUp)
	}
	delete(d.p.dials, d.call)
	d.p.step(ssmmp.InstanceInput{Kind: ssmmp.InstanceInputDialFailed, Call: d.call, Status: status})
	d.finish(ssmmp.StatusCanceled)
}

// granted dials the destination that the Manager named.
func (d *simDialing) granted(target netip.AddrPort) {
	d.asked = false
	d.connect(target, 2*time.Millisecond)
}

func (d *simDialing) connect(target netip.AddrPort, wait time.Duration) {
	p, s := d.p, d.p.s
	host := s.hostOf(target.Addr())
	if host == nil {
		s.fail("a session leads to a node", "%s was granted %s", p.name, target)
		return
	}
	src := p.host
	if s.blocked(src, host) || s.blocked(host, src) {
		s.hit(SimSessionDialBlocked)
		s.hitCuts(src, host)
		s.hitCuts(host, src)
		return // the caller's patience ends it
	}
	s.after(&p.simActor, 2*s.delay(src, host), func() {
		if d.done || d.p.dials[d.call] != d {
			return
		}
		q := s.nodes[host.index-1].listen[target.Port()]
		if s.blocked(src, host) || host.down {
			return
		}
		if q == nil || !q.running {
			if d.first == 0 {
				d.first = s.now
			}
			if s.now-d.first < 500*time.Millisecond {
				s.after(&p.simActor, wait, func() {
					if !d.done && d.p.dials[d.call] == d {
						d.connect(target, min(2*wait, 200*time.Millisecond))
					}
				})
				return
			}
			d.unreachable()
			return
		}
		d.connected(q, target)
	})
}

// unreachable reports that the destination could not be dialled, and asks for
// another, a few times.
func (d *simDialing) unreachable() {
	p := d.p
	delete(p.dials, d.call)
	p.step(ssmmp.InstanceInput{Kind: ssmmp.InstanceInputDialFailed, Call: d.call, Status: ssmmp.StatusUnreachable})
	if d.attempt == 6 {
		d.finish(ssmmp.StatusUnreachable)
		return
	}
	d.ask()
}

// connected has both ends of a session.
func (d *simDialing) connected(q *simProc, target netip.AddrPort) {
	p, s := d.p, d.p.s
	port := p.node.plugPort(target)
	if port == 0 {
		d.unreachable()
		return
	}
	x := &simSession{}
	if d.chain {
		x.chain = max(d.hold, 1)
	}
	src := &simSessionEnd{session: x, p: p, source: true, peer: target, port: port}
	dst := &simSessionEnd{session: x, p: q, peer: p.addr(port), port: target.Port(), socket: q.socketOf(target.Port())}
	x.ends = [2]*simSessionEnd{src, dst}
	p.add(src)
	q.add(dst)
	s.sessions++
	delete(p.dials, d.call)
	closer := src
	// The kernel has accepted; the process does when it can.
	s.after(&q.simActor, s.delay(p.host, q.host)/2, func() {
		if dst.over || q.ended {
			return
		}
		dst.taken = true
		q.step(ssmmp.InstanceInput{Kind: ssmmp.InstanceInputAccepted, Conn: dst.number, Socket: dst.socket, Peer: dst.peer, Port: dst.port})
		if src.over && !src.stuck {
			dst.ending()
		}
		if closer == dst {
			s.after(&q.simActor, d.hold, func() { dst.close(ssmmp.StatusSessionClosed) })
		}
		if x.chain > 0 && len(q.launch.Plugs) > 0 && !dst.over && q.joined {
			q.dial(q.launch.Plugs[q.rand.n(len(q.launch.Plugs))].Plug, x.chain*3/4, true)
		}
	})
	src.taken = true
	p.step(ssmmp.InstanceInput{Kind: ssmmp.InstanceInputDialed, Call: d.call, Conn: src.number, Peer: target, Port: port})
	d.finish(ssmmp.StatusOK)
	if p.rand.oneIn(4) {
		closer = dst // once it has accepted
		return
	}
	s.after(&p.simActor, d.hold, func() { src.close(ssmmp.StatusSessionClosed) })
}

func (p *simProc) socketOf(port uint16) string {
	for _, k := range p.launch.Sockets {
		if k.Port == port {
			return k.Socket
		}
	}
	return ""
}

func (p *simProc) add(e *simSessionEnd) {
	p.lastEnd++
	e.number = p.lastEnd
	p.sessions = append(p.sessions, e)
}

func (p *simProc) take(e *simSessionEnd) {
	if i, ok := p.indexOf(e.number); ok {
		p.sessions = slices.Delete(p.sessions, i, i+1)
	}
}

// plugPort gives a port to dial from, 0 if none is free.
func (n *simNode) plugPort(peer netip.AddrPort) uint16 {
	c := &n.s.sim.Config
	for range int(c.LastPlugPort-c.FirstPlugPort) + 1 {
		port := max(n.next, c.FirstPlugPort)
		if n.next = port + 1; port >= c.LastPlugPort {
			n.next = c.FirstPlugPort
		}
		if key := (simTuple{port, peer}); !n.plugs[key] {
			n.plugs[key] = true
			return port
		}
	}
	return 0
}

// close closes a session from one end.
func (e *simSessionEnd) close(status ssmmp.Status) {
	if e.over || !e.taken {
		return
	}
	e.finish()
	e.p.step(ssmmp.InstanceInput{Kind: ssmmp.InstanceInputConnClosed, Conn: e.number, Status: status})
}

// drop closes a session since the Manager wants it.
func (e *simSessionEnd) drop(wait time.Duration) {
	if wait > 0 {
		e.p.s.hit(SimClosesSlowly)
	}
	e.p.s.after(&e.p.simActor, wait, func() {
		if e.over {
			return
		}
		e.finish()
		e.p.step(ssmmp.InstanceInput{Kind: ssmmp.InstanceInputConnDropped, Conn: e.number})
	})
}

// died ends a session since its process did.
func (e *simSessionEnd) died(silently bool) {
	if e.over {
		return
	}
	e.stuck = silently
	e.finish()
}

// finish closes this end: the far end sees it, if it can.
func (e *simSessionEnd) finish() {
	s, far := e.p.s, e.far()
	e.over = true
	e.p.take(e)
	if far.over {
		s.sessions--
		src := e.session.ends[0]
		// The port rests for a moment.
		s.after(nil, time.Second, func() { delete(src.p.node.plugs, simTuple{src.port, src.peer}) })
		return
	}
	if s.blocked(e.p.host, far.p.host) {
		e.stuck = true
		s.hitCuts(e.p.host, far.p.host)
	}
	if e.stuck {
		s.stuck = append(s.stuck, e)
		if !far.p.rand.oneIn(3) {
			s.after(&far.p.simActor, far.p.rand.between(15*time.Second, 45*time.Second), func() {
				if !far.over {
					far.close(ssmmp.StatusSessionBroken) // by keep-alives
				}
			})
		}
		return
	}
	s.after(&far.p.simActor, s.delay(e.p.host, far.p.host), far.ending)
}

// ending tells an end that the far end closed.
func (e *simSessionEnd) ending() {
	if e.over || !e.taken {
		return
	}
	if e.p.habits.ignoresEOF && e.p.s.now < e.p.s.sim.For {
		e.p.s.hit(SimIgnoresEOF)
		e.p.s.after(&e.p.simActor, 10*time.Second, e.ending)
		return
	}
	status := ssmmp.StatusSessionClosed
	if e.p.rand.oneIn(3) {
		status = ssmmp.StatusSessionBroken
	}
	e.p.s.after(&e.p.simActor, e.p.rand.between(0, 5*time.Millisecond), func() { e.close(status) })
}

// reset breaks a session at both ends.
func (x *simSession) reset() {
	for _, e := range x.ends {
		e.p.s.after(&e.p.simActor, e.p.rand.between(0, 3*time.Millisecond), func() { e.close(ssmmp.StatusSessionBroken) })
	}
}

// unstick lets the ends of sessions through that no partition holds any more.
func (s *simRun) unstick() {
	old := s.stuck
	s.stuck = nil
	for _, e := range old {
		far := e.far()
		switch {
		case far.over:
		case s.blocked(e.p.host, far.p.host):
			s.stuck = append(s.stuck, e)
		default:
			e.stuck = false
			s.after(&far.p.simActor, s.delay(e.p.host, far.p.host), far.ending)
		}
	}
}
