package ssmmptest

import (
	"hash/fnv"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/ssmmp/ssmmp"
)

const (
	// faultWindow is how many bytes of one direction of a connection can wait
	// in the network before its writer has to.
	faultWindow = 64 << 10
	// faultPiece is what travels, or is lost, as one.
	faultPiece = 1448
	// faultResend is after how long a piece that was lost is sent again; the
	// time doubles each time, as TCP's does.
	faultResend = 200 * time.Millisecond
	// faultLinger is how long the network tries to deliver what a connection
	// wrote before it was closed.
	faultLinger = time.Minute
	// faultMost is the longest delay.
	faultMost = 1000 * time.Hour
	// faultGiveUp is after how long an end of a connection notices that nothing
	// can come back: what the probes of ssmmp.TCP take.
	faultGiveUp = 30 * time.Second
)

// Hosts are hosts by their addresses. Where a method takes Hosts, nil means
// every host: every one there is where it is about hosts, and those to come as
// well where it is about the ways from some to others.
type Hosts []netip.Addr

func (h Hosts) has(addr netip.Addr) bool { return h == nil || slices.Contains(h, addr) }

// plain returns a copy with the addresses as a Faults knows them.
func (h Hosts) plain() Hosts {
	h = slices.Clone(h)
	for i := range h {
		h[i] = plainAddr(h[i])
	}
	return h
}

func plainAddr(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

// Faults is what can go wrong with a network. Host decorates the Transport of
// each host; after that the network between them does what the methods say,
// which may be called at any time and by many goroutines at once. As long as
// none was called the Transports are as they were.
//
// A host is an IP address. Over TCP, where all hosts may be one machine, give
// each a loopback address of its own: ssmmp.TCP{LocalAddr: 127.0.0.2} for
// 127.0.0.2. The network is what lies between two hosts: what a host says to
// itself, on localhost or its own address, suffers only from Freeze and
// SlowReader. Faults can be between a host of its own and any other, but delay,
// loss and bandwidth work on what its hosts send, and a connection is reset at
// both ends at once only if both are its.
//
// What is on its way is kept in order: each direction of a connection is a
// queue of at most 64 KiB, and a writer that is further ahead waits. A
// connection on which nothing can come back for GiveUpAfter breaks with
// ETIMEDOUT, as if it were probed.
//
// Chance depends on the seed, the two hosts, and how many connections and
// pieces there were between them before, not on the clock: the same seed, hosts and
// traffic give the same decisions. All times are those of the goroutine that
// waits, so a Faults made in a testing/synctest bubble keeps its time.
type Faults struct {
	seed uint64

	mu     sync.Mutex // guards all below, the connections' fields too
	change sync.Cond  // rules or hosts changed: for dials and Accept
	rules  []faultRule
	hosts  map[netip.Addr]*faultHostState
	paths  map[[2]netip.Addr]*faultPath
	conns  map[*faultConn]struct{}
	ends   map[faultKey]*faultConn
	made   int64 // connections so far
	giveUp time.Duration
	stats  FaultStats
	closed bool
	wg     sync.WaitGroup
}

// FaultStats counts what a Faults did so far.
type FaultStats struct {
	Conns    int64 // connections that its hosts dialled
	Bytes    int64 // bytes that its hosts sent and the network took on its way
	Delayed  int64 // of those, bytes that waited for delay, loss or bandwidth
	Held     int64 // calls and pieces that waited for a way to open or a host to thaw
	Resent   int64 // times that a piece was lost and sent again
	Resets   int64 // ends of connections that were reset
	TimedOut int64 // ends of connections that broke because nothing came back
	Lost     int64 // bytes that were written and never arrived
	InFlight int64 // bytes on their way now
}

// A faultRule is what was said of the ways from some hosts to others.
type faultRule struct {
	kind     faultKind
	from, to Hosts
	off      bool          // of faultBlock: the way is open
	delay    time.Duration // of faultDelay
	jitter   time.Duration
	chance   float64 // of faultLoss
	n        int64   // bytes a second of faultBandwidth, bytes of faultReset
}

type faultKind uint8

const (
	faultBlock faultKind = iota
	faultDelay
	faultLoss
	faultBandwidth
	faultReset
)

// A faultPath is the way from one host to another as the rules have it.
type faultPath struct {
	from, to netip.Addr
	blocked  bool
	delay    time.Duration
	jitter   time.Duration
	loss     float64
	rate     int64     // bytes a second, 0 for no limit
	resetAt  int64     // bytes, negative for never
	free     time.Time // when the last piece will have left, if there is a rate
	opened   uint64    // connections that have sent here, and dials, for their chance
}

// A faultHostState is what was said of one host.
type faultHostState struct {
	frozen   bool
	cut      bool
	off      bool  // without power: Heal does not help
	readRate int64 // bytes a second for each connection, 0 for no limit
}

// NewFaults returns a network without faults. The seed decides what chance
// would.
func NewFaults(seed uint64) *Faults {
	f := &Faults{
		seed: seed, hosts: map[netip.Addr]*faultHostState{}, paths: map[[2]netip.Addr]*faultPath{},
		conns: map[*faultConn]struct{}{}, ends: map[faultKey]*faultConn{}, giveUp: faultGiveUp,
	}
	f.change.L = &f.mu
	return f
}

// Host returns the Transport of the host with that address, with faults
// between it and others.
func (f *Faults) Host(addr netip.Addr, inner ssmmp.Transport) ssmmp.Transport {
	addr = plainAddr(addr)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.host(addr)
	return &faultHost{f: f, addr: addr, inner: inner}
}

// Delay has everything from the one hosts to the others arrive later by d, and
// by up to jitter more, 1,000 hours each at the most. A dial takes the time of
// both ways. Zero ends it.
func (f *Faults) Delay(from, to Hosts, d, jitter time.Duration) {
	f.rule(faultRule{kind: faultDelay, from: from, to: to, delay: clampDelay(d), jitter: clampDelay(jitter)})
}

// clampDelay keeps sums of delays in range.
func clampDelay(d time.Duration) time.Duration { return min(max(0, d), faultMost) }

// Loss has each piece of at most 1,448 bytes be lost with a chance between 0
// and 1. As with TCP it is sent again, after 200 ms and then twice as long each
// time, and all behind it waits.
func (f *Faults) Loss(from, to Hosts, chance float64) {
	f.rule(faultRule{kind: faultLoss, from: from, to: to, chance: min(max(0, chance), 0.99)})
}

// Bandwidth lets so many bytes a second pass from each of the one hosts to
// each of the others, over all their connections together. Zero is no limit.
func (f *Faults) Bandwidth(from, to Hosts, bytesPerSecond int64) {
	f.rule(faultRule{kind: faultBandwidth, from: from, to: to, n: max(0, bytesPerSecond)})
}

// Block holds everything from the one hosts to the others, also the end of a
// connection, until Unblock or Heal: then it arrives. The other direction is
// open, but dials hang in both.
func (f *Faults) Block(from, to Hosts) {
	f.rule(faultRule{kind: faultBlock, from: from, to: to})
}

// Unblock ends what Block and Partition did to these ways.
func (f *Faults) Unblock(from, to Hosts) {
	f.rule(faultRule{kind: faultBlock, from: from, to: to, off: true})
}

// Partition blocks both directions between hosts of a and of b.
func (f *Faults) Partition(a, b Hosts) {
	f.Block(a, b)
	f.Block(b, a)
}

// ResetAt has each connection break with ECONNRESET at both ends when n bytes
// went over it from one of the hosts to one of the others; the n bytes arrive.
// One that is past that breaks at the next byte. A negative n ends it.
func (f *Faults) ResetAt(from, to Hosts, n int64) {
	f.rule(faultRule{kind: faultReset, from: from, to: to, n: n})
}

// Reset breaks all connections between hosts of a and of b with ECONNRESET,
// now.
func (f *Faults) Reset(a, b Hosts) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a, b = a.plain(), b.plain()
	for _, c := range f.inOrder() {
		if p := c.out; p.from != p.to && (a.has(p.from) && b.has(p.to) || b.has(p.from) && a.has(p.to)) {
			c.reset()
		}
	}
}

// Freeze stops hosts, as a virtual machine is paused: what they call on their
// connections and listeners does not return, but at a deadline and by Close,
// and nothing reaches them, until Thaw or Heal. The goroutines of their programs
// go on.
func (f *Faults) Freeze(hosts Hosts) {
	f.each(hosts, func(h *faultHostState) { h.frozen = true })
}

// Thaw lets frozen hosts go on.
func (f *Faults) Thaw(hosts Hosts) {
	f.each(hosts, func(h *faultHostState) { h.frozen = false })
}

// CutOff takes hosts off the network and has it forget their connections,
// without a word to either end: they are half open. What is written into them
// is lost. Dials hang until Restore or Heal; after that a write into an old
// connection resets it.
func (f *Faults) CutOff(hosts Hosts) {
	f.each(hosts, func(h *faultHostState) { h.cut = true })
}

// Restore brings hosts that were cut off back.
func (f *Faults) Restore(hosts Hosts) {
	f.each(hosts, func(h *faultHostState) { h.cut = false })
}

// SlowReader lets hosts read so many bytes a second from each of their
// connections. Zero is no limit.
func (f *Faults) SlowReader(hosts Hosts, bytesPerSecond int64) {
	f.each(hosts, func(h *faultHostState) { h.readRate = max(0, bytesPerSecond) })
}

// GiveUpAfter sets after how long an end of a connection breaks with ETIMEDOUT
// when nothing can come back on it; 30 s at first, which is what the probes of
// ssmmp.TCP take, and never for 0. It holds for what begins after it.
func (f *Faults) GiveUpAfter(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.giveUp = max(0, d)
}

// Heal ends all faults. What was held arrives, and what was lost stays lost.
func (f *Faults) Heal() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rules = nil
	for _, h := range f.hosts {
		*h = faultHostState{off: h.off}
	}
	f.changed()
}

// Stats returns what happened so far.
func (f *Faults) Stats() FaultStats {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.stats
}

// Close resets the connections that are left and waits for all goroutines of
// the Faults. Its hosts cannot dial or accept any more.
func (f *Faults) Close() error {
	f.mu.Lock()
	f.closed = true
	for _, c := range f.inOrder() {
		c.reset()
	}
	f.changed()
	f.mu.Unlock()
	f.wg.Wait()
	return nil
}

// power switches a host off, as CutOff does but not for Heal to undo, or on.
func (f *Faults) power(host netip.Addr, on bool) {
	f.each(Hosts{host}, func(h *faultHostState) { h.off = !on })
}

// rule adds a rule, in place of one about the same of the same hosts.
func (f *Faults) rule(r faultRule) {
	r.from, r.to = r.from.plain(), r.to.plain()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rules = slices.DeleteFunc(f.rules, func(o faultRule) bool {
		return o.kind == r.kind && sameHosts(o.from, r.from) && sameHosts(o.to, r.to)
	})
	f.rules = append(f.rules, r)
	f.changed()
}

func sameHosts(a, b Hosts) bool { return (a == nil) == (b == nil) && slices.Equal(a, b) }

// each changes the state of hosts.
func (f *Faults) each(hosts Hosts, change func(*faultHostState)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, addr := range hosts.plain() {
		change(f.host(addr))
	}
	if hosts == nil {
		for _, h := range f.hosts {
			change(h)
		}
	}
	f.changed()
}

// changed has the rules hold for everything that is there. f.mu is held, here
// and in all that follows.
func (f *Faults) changed() {
	for _, p := range f.paths {
		f.apply(p)
	}
	for _, c := range f.inOrder() {
		c.check()
	}
	f.change.Broadcast()
}

// inOrder returns the connections in the order in which they were made.
func (f *Faults) inOrder() []*faultConn {
	all := make([]*faultConn, 0, len(f.conns))
	for c := range f.conns {
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b *faultConn) int { return int(a.number) - int(b.number) })
	return all
}

func (f *Faults) host(addr netip.Addr) *faultHostState {
	h := f.hosts[addr]
	if h == nil {
		h = new(faultHostState)
		f.hosts[addr] = h
	}
	return h
}

func (f *Faults) path(from, to netip.Addr) *faultPath {
	p := f.paths[[2]netip.Addr{from, to}]
	if p == nil {
		f.host(from)
		f.host(to)
		p = &faultPath{from: from, to: to}
		f.paths[[2]netip.Addr{from, to}] = p
		f.apply(p)
	}
	return p
}

// apply computes a path from the rules; later ones hold.
func (f *Faults) apply(p *faultPath) {
	p.blocked, p.delay, p.jitter, p.loss, p.rate, p.resetAt = false, 0, 0, 0, 0, -1
	if p.from == p.to {
		return
	}
	for _, r := range f.rules {
		if !r.from.has(p.from) || !r.to.has(p.to) {
			continue
		}
		switch r.kind {
		case faultBlock:
			p.blocked = !r.off
		case faultDelay:
			p.delay, p.jitter = r.delay, r.jitter
		case faultLoss:
			p.loss = r.chance
		case faultBandwidth:
			p.rate = r.n
		case faultReset:
			p.resetAt = r.n
		}
	}
}

// open reports whether anything can pass now.
func (f *Faults) open(p *faultPath) bool {
	from, to := f.hosts[p.from], f.hosts[p.to]
	if from.frozen || to.frozen {
		return false
	}
	return p.from == p.to || !p.blocked && !from.gone() && !to.gone()
}

// plain reports whether everything passes as if there were no Faults.
func (f *Faults) plain(p *faultPath) bool {
	return p.delay == 0 && p.jitter == 0 && p.loss == 0 && p.rate == 0 && p.resetAt < 0 && f.open(p)
}

// gone reports whether the network has forgotten the host.
func (h *faultHostState) gone() bool { return h.cut || h.off }

// chance returns the chance of the next connection or dial on a path.
func (f *Faults) chance(p *faultPath, what string) *rand.Rand {
	p.opened++
	h := fnv.New64a()
	for _, s := range []string{p.from.String(), p.to.String(), what} {
		h.Write([]byte(s))
		h.Write([]byte{0})
	}
	return rand.New(rand.NewPCG(f.seed+p.opened, h.Sum64()))
}

// latency is how long the next piece takes on a path.
func (f *Faults) latency(p *faultPath, chance *rand.Rand) time.Duration {
	d := p.delay
	if p.jitter > 0 {
		d += time.Duration(chance.Int64N(int64(p.jitter) + 1))
	}
	for again := faultResend; p.loss > 0 && chance.Float64() < p.loss; again = min(2*again, faultLinger) {
		f.stats.Resent++
		d += again
	}
	return d
}
