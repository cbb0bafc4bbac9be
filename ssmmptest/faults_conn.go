package ssmmptest

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
)

// A faultConn is one end of a connection of a Faults. What it writes goes
// straight into the inner connection as long as no fault is on the way, and
// else into a queue, which a goroutine carries on; that ends with the queue.
// What it reads is held when the way is closed, wherever it was by then. The
// mutex of the Faults guards all fields below changed.
type faultConn struct {
	f       *Faults
	inner   net.Conn
	host    *faultHostState
	number  int64 // in the order of making
	key     faultKey
	out, in *faultPath
	chance  *rand.Rand
	changed sync.Cond // anything below, a rule, or a time that was waited for

	closed    bool  // Close was called
	finished  bool  // the inner connection is closed
	lost      bool  // the network has forgotten it
	broken    error // why it broke at this end
	peerReset bool  // it broke at the other end; holds when what was sent before is read
	giveUp    *time.Timer
	linger    *time.Timer

	reading      bool // a Read is under way; others wait
	stash        []byte
	stashErr     error
	nextRead     time.Time // of a slow reader
	readDeadline time.Time

	writing       bool // a Write is under way; others wait, so none interleave
	passing       bool // it is in the inner connection
	ended         bool // CloseWrite was called
	doomed        bool // a reset is in the queue
	pumping       bool // a goroutine carries the queue on
	queue         []faultItem
	size          int   // bytes in queue
	sent          int64 // bytes taken so far
	pumpErr       error // of the inner connection
	writeDeadline time.Time
}

// A faultKey tells connections apart: on the loopback of each host there may
// be the same addresses.
type faultKey struct {
	loopback      netip.Addr // the host, zero for connections between two
	local, remote netip.AddrPort
}

// A faultItem is a piece of data on its way, or what comes after the last.
type faultItem struct {
	kind faultItemKind
	data []byte
	due  time.Time
	held bool
}

type faultItemKind uint8

const (
	faultData       faultItemKind = iota
	faultCloseWrite               // the end of the stream
	faultClose                    // likewise, and nobody is there any more
	faultBreak                    // a reset
)

// conn returns a connection of a host, nil when the Faults is closed.
func (f *Faults) conn(h *faultHost, inner net.Conn, dialled bool) *faultConn {
	local, remote := addrPortOf(inner.LocalAddr()), addrPortOf(inner.RemoteAddr())
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil
	}
	peer := h.peer(remote.Addr())
	f.made++
	c := &faultConn{f: f, inner: inner, host: f.host(h.addr), number: f.made, out: f.path(h.addr, peer), in: f.path(peer, h.addr)}
	c.changed.L = &f.mu
	c.key = faultKey{local: local, remote: remote}
	if peer == h.addr {
		c.key.loopback = peer
	}
	c.chance = f.chance(c.out, "conn")
	f.conns[c] = struct{}{}
	f.ends[c.key] = c
	if dialled {
		f.stats.Conns++
	}
	if t := c.twin(); t != nil {
		c.lost, c.peerReset = t.lost, t.broken != nil
	}
	c.check()
	return c
}

func addrPortOf(a net.Addr) netip.AddrPort {
	ap, _ := netip.ParseAddrPort(a.String())
	return netip.AddrPortFrom(plainAddr(ap.Addr()), ap.Port())
}

// twin returns the other end, if it is one of these hosts'.
func (c *faultConn) twin() *faultConn {
	return c.f.ends[faultKey{loopback: c.key.loopback, local: c.key.remote, remote: c.key.local}]
}

func (c *faultConn) LocalAddr() net.Addr  { return c.inner.LocalAddr() }
func (c *faultConn) RemoteAddr() net.Addr { return c.inner.RemoteAddr() }

func (c *faultConn) Read(p []byte) (int, error) {
	f := c.f
	f.mu.Lock()
	defer f.mu.Unlock()
	for c.reading {
		if err := c.readFault(); err != nil {
			return 0, c.opError("read", err)
		}
		c.wait(c.readDeadline)
	}
	c.reading = true
	defer func() {
		c.reading = false
		c.changed.Broadcast()
	}()
	for held := false; ; {
		if err := c.readFault(); err != nil {
			return 0, c.opError("read", err)
		}
		if len(p) == 0 {
			return 0, nil
		}
		if c.lost || !f.open(c.in) {
			if !held {
				held = true
				f.stats.Held++
			}
			c.wait(c.readDeadline)
			continue
		}
		if time.Until(c.nextRead) > 0 {
			c.wait(earlier(c.readDeadline, c.nextRead))
			continue
		}
		if len(c.stash) > 0 {
			n := copy(p[:c.readable(len(p))], c.stash)
			c.stash = c.stash[n:]
			c.tire(n)
			return n, nil
		}
		if err := c.stashErr; err != nil {
			return 0, c.readError(err)
		}
		into := p[:c.readable(len(p))]
		f.mu.Unlock()
		n, err := c.inner.Read(into)
		f.mu.Lock()
		if n == 0 && err != nil && (c.closed || c.broken != nil || errors.Is(err, os.ErrDeadlineExceeded)) {
			if fault := c.readFault(); fault != nil {
				return 0, c.opError("read", fault)
			}
			return 0, err
		}
		if c.lost || !f.open(c.in) {
			// It was in the buffers of this end; still, nothing arrives now.
			c.stash, c.stashErr = append(c.stash, into[:n]...), err
			continue
		}
		c.tire(n)
		if err != nil {
			err = c.readError(err)
		}
		return n, err
	}
}

// readFault is why this end cannot read, whatever has arrived.
func (c *faultConn) readFault() error {
	switch {
	case c.closed:
		return net.ErrClosed
	case passed(c.readDeadline):
		return os.ErrDeadlineExceeded
	}
	return c.broken
}

// readError is what the end of the inner connection means.
func (c *faultConn) readError(err error) error {
	if c.peerReset {
		return c.opError("read", os.NewSyscallError("read", syscall.ECONNRESET))
	}
	return err
}

// readable is how much of n bytes a slow reader takes at once.
func (c *faultConn) readable(n int) int {
	if rate := c.host.readRate; rate > 0 {
		n = min(n, int(max(1, rate/10)))
	}
	return n
}

// tire has a slow reader wait before its next Read.
func (c *faultConn) tire(n int) {
	if rate := c.host.readRate; rate > 0 {
		c.nextRead = time.Now().Add(time.Duration(n) * time.Second / time.Duration(rate))
	}
}

func (c *faultConn) Write(b []byte) (n int, err error) {
	f := c.f
	f.mu.Lock()
	defer f.mu.Unlock()
	for c.writing {
		if err := c.writeFault(); err != nil {
			return 0, c.opError("write", err)
		}
		c.wait(c.writeDeadline)
	}
	c.writing = true
	defer func() {
		c.writing = false
		c.changed.Broadcast()
	}()
	for held := false; ; {
		if c.lost && c.broken == nil && f.open(c.out) && f.open(c.in) {
			// The other end, or what was between, knows of no such connection.
			f.stats.Resets++
			c.breakOff(os.NewSyscallError("write", syscall.ECONNRESET))
		}
		if err := c.writeFault(); err != nil {
			return n, c.opError("write", err)
		}
		switch {
		case c.host.frozen:
			if !held {
				held = true
				f.stats.Held++
			}
		case !c.lost && !c.pumping && f.plain(c.out):
			c.passing = true
			f.mu.Unlock()
			k, err := c.inner.Write(b[n:])
			f.mu.Lock()
			c.passing = false
			c.sent += int64(k)
			f.stats.Bytes += int64(k)
			if err != nil {
				if fault := c.writeFault(); fault != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
					err = c.opError("write", fault)
				}
			}
			return n + k, err
		case n == len(b):
			return n, nil
		case c.doomed:
		case c.size < faultWindow:
			n += c.take(b[n:min(len(b), n+faultWindow-c.size)])
			continue
		}
		c.wait(c.writeDeadline)
	}
}

// writeFault is why this end cannot write.
func (c *faultConn) writeFault() error {
	switch {
	case c.closed:
		return net.ErrClosed
	case passed(c.writeDeadline):
		return os.ErrDeadlineExceeded
	case c.broken != nil:
		return c.broken
	case c.ended:
		return os.NewSyscallError("write", syscall.EPIPE)
	case c.peerReset && !c.lost && c.f.open(c.in):
		return os.NewSyscallError("write", syscall.ECONNRESET)
	}
	return c.pumpErr
}

// take puts bytes on their way, and returns how many before a reset.
func (c *faultConn) take(b []byte) (n int) {
	f := c.f
	for n < len(b) {
		k := min(len(b)-n, faultPiece)
		if at := c.out.resetAt; at >= 0 {
			if c.sent >= at {
				c.doom()
				return n
			}
			k = int(min(int64(k), at-c.sent))
		}
		c.sent += int64(k)
		c.size += k
		f.stats.Bytes += int64(k)
		if c.lost {
			f.stats.Lost += int64(k)
		} else {
			f.stats.InFlight += int64(k)
			c.enqueue(faultItem{kind: faultData, data: append([]byte(nil), b[n:n+k]...)})
		}
		n += k
		if c.sent == c.out.resetAt {
			c.doom()
			return n
		}
	}
	return n
}

func (c *faultConn) doom() {
	if !c.doomed {
		c.doomed = true
		c.enqueue(faultItem{kind: faultBreak})
	}
}

// enqueue says when an item is due, and sees to it that it is carried on.
func (c *faultConn) enqueue(i faultItem) {
	f, p, now := c.f, c.out, time.Now()
	i.due = now
	if p.rate > 0 && len(i.data) > 0 {
		if p.free.Before(now) {
			p.free = now
		}
		p.free = p.free.Add(time.Duration(len(i.data)) * time.Second / time.Duration(p.rate))
		i.due = p.free
	}
	i.due = i.due.Add(f.latency(p, c.chance))
	if i.due.After(now) {
		f.stats.Delayed += int64(len(i.data))
	}
	c.queue = append(c.queue, i)
	if c.pumping {
		c.changed.Broadcast()
	} else if !f.closed {
		c.pumping = true
		f.wg.Go(c.pump)
	}
}

// pump carries the queue on until it is empty.
func (c *faultConn) pump() {
	f := c.f
	f.mu.Lock()
	defer f.mu.Unlock()
	for c.passing {
		c.changed.Wait()
	}
	if !c.finished {
		c.inner.SetWriteDeadline(time.Time{}) // it is the writer's
	}
	for len(c.queue) > 0 && !c.finished {
		i := &c.queue[0]
		if !f.open(c.out) {
			if !i.held {
				i.held = true
				f.stats.Held++
			}
			c.changed.Wait()
			continue
		}
		if time.Until(i.due) > 0 {
			c.wait(i.due)
			continue
		}
		item := *i
		c.queue = c.queue[1:]
		switch item.kind {
		case faultBreak:
			c.reset()
		case faultClose:
			c.finish()
		case faultCloseWrite:
			if half, ok := c.inner.(interface{ CloseWrite() error }); ok {
				half.CloseWrite()
			}
		case faultData:
			f.mu.Unlock()
			n, err := c.inner.Write(item.data)
			f.mu.Lock()
			c.size -= len(item.data)
			f.stats.InFlight -= int64(len(item.data))
			if err != nil {
				f.stats.Lost += int64(len(item.data) - n)
				c.drop()
				c.pumpErr = err
				if c.closed {
					c.finish()
				}
			}
			c.changed.Broadcast()
		}
	}
	c.drop() // nothing, unless it is finished
	c.pumping = false
	if !c.finished {
		c.inner.SetWriteDeadline(c.writeDeadline)
	}
	c.changed.Broadcast()
}

// drop loses what is on its way.
func (c *faultConn) drop() {
	for _, i := range c.queue {
		c.size -= len(i.data)
		c.f.stats.InFlight -= int64(len(i.data))
		c.f.stats.Lost += int64(len(i.data))
	}
	c.queue = nil
}

// CloseWrite ends the stream to the peer, behind what is on its way.
func (c *faultConn) CloseWrite() error {
	f := c.f
	f.mu.Lock()
	defer f.mu.Unlock()
	half, ok := c.inner.(interface{ CloseWrite() error })
	switch {
	case c.closed:
		return c.opError("close", net.ErrClosed)
	case c.broken != nil:
		return c.opError("close", c.broken)
	case !ok:
		return fmt.Errorf("ssmmptest: close write: %w", errors.ErrUnsupported)
	case !c.lost && !c.pumping && f.plain(c.out):
		return half.CloseWrite()
	}
	if !c.ended && !c.lost {
		c.enqueue(faultItem{kind: faultCloseWrite})
	}
	c.ended = true
	c.changed.Broadcast()
	return nil
}

// Close ends this end at once; the other one learns of it behind what is on
// its way.
func (c *faultConn) Close() error {
	f := c.f
	f.mu.Lock()
	defer f.mu.Unlock()
	if c.closed {
		return c.opError("close", net.ErrClosed)
	}
	c.closed = true
	c.changed.Broadcast()
	switch {
	case c.finished:
	case c.lost || c.passing || !c.pumping && f.plain(c.out):
		c.finish()
	default:
		c.inner.SetReadDeadline(time.Unix(1, 0)) // a Read returns
		c.linger = time.AfterFunc(faultLinger, c.abandon)
		c.enqueue(faultItem{kind: faultClose})
	}
	return nil
}

// abandon gives up to deliver what was written before the end.
func (c *faultConn) abandon() {
	c.f.mu.Lock()
	defer c.f.mu.Unlock()
	if !c.finished {
		c.breakOff(net.ErrClosed)
	}
}

// reset breaks both ends: this one now, the other when it has read what was
// sent.
func (c *faultConn) reset() {
	if c.finished {
		return
	}
	c.f.stats.Resets++
	if t := c.twin(); t != nil && !t.finished && !t.peerReset {
		c.f.stats.Resets++
	} else if l, ok := c.inner.(interface{ SetLinger(int) error }); ok {
		l.SetLinger(0) // TCP tells the stranger
	}
	c.breakOff(os.NewSyscallError("read", syscall.ECONNRESET))
}

// breakOff ends the connection at this end; the other one will be told.
func (c *faultConn) breakOff(err error) {
	if t := c.twin(); t != nil {
		t.peerReset = true
		t.changed.Broadcast()
	}
	c.broken = err
	c.drop()
	c.finish()
}

// finish closes the inner connection, which wakes whatever is in it.
func (c *faultConn) finish() {
	if c.finished {
		return
	}
	c.finished = true
	for _, t := range []*time.Timer{c.giveUp, c.linger} {
		if t != nil {
			t.Stop()
		}
	}
	delete(c.f.conns, c)
	if c.f.ends[c.key] == c {
		delete(c.f.ends, c.key)
	}
	c.inner.Close()
	c.changed.Broadcast()
}

// check has what changed in the network hold for the connection.
func (c *faultConn) check() {
	f := c.f
	if c.finished {
		return
	}
	if c.out.from != c.out.to && (f.hosts[c.out.from].gone() || f.hosts[c.out.to].gone()) {
		c.lost = true
		c.drop()
	}
	silent := c.lost || !f.open(c.out) || !f.open(c.in)
	switch {
	case silent && !c.host.frozen && c.giveUp == nil && f.giveUp > 0:
		var timer *time.Timer
		timer = time.AfterFunc(f.giveUp, func() {
			f.mu.Lock()
			defer f.mu.Unlock()
			if c.giveUp == timer && !c.finished {
				f.stats.TimedOut++
				c.breakOff(os.NewSyscallError("read", syscall.ETIMEDOUT))
			}
		})
		c.giveUp = timer
	case (!silent || c.host.frozen) && c.giveUp != nil:
		c.giveUp.Stop()
		c.giveUp = nil
	}
	c.changed.Broadcast()
}

func (c *faultConn) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}

func (c *faultConn) SetReadDeadline(t time.Time) error {
	return c.setDeadline(&c.readDeadline, t, func() error { return c.inner.SetReadDeadline(t) })
}

func (c *faultConn) SetWriteDeadline(t time.Time) error {
	return c.setDeadline(&c.writeDeadline, t, func() error {
		if c.pumping && !c.passing {
			return nil // the pump sets it when it ends
		}
		return c.inner.SetWriteDeadline(t)
	})
}

func (c *faultConn) setDeadline(d *time.Time, t time.Time, pass func() error) error {
	c.f.mu.Lock()
	defer c.f.mu.Unlock()
	if c.closed {
		return c.opError("set", net.ErrClosed)
	}
	*d = t
	c.changed.Broadcast()
	if c.finished {
		return nil
	}
	return pass()
}

// wait returns after anything changed or until has come, if it is not zero.
// f.mu is held.
func (c *faultConn) wait(until time.Time) {
	if !until.IsZero() {
		left := time.Until(until)
		if left <= 0 {
			return
		}
		timer := time.AfterFunc(left, func() {
			c.f.mu.Lock()
			defer c.f.mu.Unlock()
			c.changed.Broadcast()
		})
		defer timer.Stop()
	}
	c.changed.Wait()
}

func (c *faultConn) opError(op string, err error) error {
	if err == io.EOF {
		return err
	}
	return &net.OpError{Op: op, Net: c.LocalAddr().Network(), Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}

func passed(deadline time.Time) bool { return !deadline.IsZero() && !time.Now().Before(deadline) }

// earlier returns the earlier of two times; a zero one never comes.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
