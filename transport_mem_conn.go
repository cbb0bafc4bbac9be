package ssmmp

import (
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
)

const (
	// memMinBuffer and memMaxBuffer bound the bytes of memory that one
	// direction of a connection keeps from its first write on; without a write
	// it keeps none. memMaxBuffer is also what a writer can be ahead.
	memMinBuffer = 1 << 10
	memMaxBuffer = 64 << 10
)

// memConn is one end of a connection between two hosts of a MemNetwork.
//
// It closes as TCP does, with one kindness: bytes that the closing end leaves
// unread do not turn its end of stream into a reset, and the first write after
// the peer's Close fails, not only a later one.
type memConn struct {
	host          *MemHost // whose conns it is in
	peer          *memConn
	in, out       *memStream
	local, remote *net.TCPAddr
}

// memStream is one direction of a connection: a ring of bytes with one writing
// and one reading end.
type memStream struct {
	mu      sync.Mutex
	changed sync.Cond // anything below changed, or a deadline passed

	ring  []byte // its length is its capacity: zero, or a power of two
	start int    // of the oldest byte in ring
	size  int    // bytes in ring

	writing      bool // a Write is under way; others wait, so none interleave
	ended        bool // the writing end sends no more: CloseWrite or Close
	writerClosed bool // the writing end is closed
	readerClosed bool // the reading end is closed
	broken       bool // reset: fails at both ends until they close

	readDeadline, writeDeadline memDeadline
}

// memDeadline is the time after which an operation fails. Its stream's mutex
// guards it.
type memDeadline struct {
	at    time.Time // zero: never
	timer *time.Timer
	armed bool // timer runs, or has run, for at
}

// memLink holds both ends of a connection and both directions, so that it is
// one allocation.
type memLink struct {
	ends    [2]memConn
	streams [2]memStream
	addrs   [2]net.TCPAddr
}

// newMemConns returns the two ends of a new connection, which no host knows.
func newMemConns(from, to netip.AddrPort) (client, server *memConn) {
	k := new(memLink)
	k.addrs[0] = *net.TCPAddrFromAddrPort(from)
	k.addrs[1] = *net.TCPAddrFromAddrPort(to)
	for i := range 2 {
		k.streams[i].changed.L = &k.streams[i].mu
		k.ends[i] = memConn{
			peer:   &k.ends[1-i],
			in:     &k.streams[1-i],
			out:    &k.streams[i],
			local:  &k.addrs[i],
			remote: &k.addrs[1-i],
		}
	}
	return &k.ends[0], &k.ends[1]
}

func (c *memConn) LocalAddr() net.Addr  { return c.local }
func (c *memConn) RemoteAddr() net.Addr { return c.remote }

func (c *memConn) Read(p []byte) (int, error) {
	n, err := c.in.read(p)
	if err != nil && err != io.EOF {
		err = c.opError("read", err)
	}
	return n, err
}

func (c *memConn) Write(p []byte) (int, error) {
	n, err := c.out.write(p)
	if err != nil {
		err = c.opError("write", err)
	}
	return n, err
}

// tryWrite writes what there is room for, and does not wait.
func (c *memConn) tryWrite(p []byte) (int, error) {
	n, err := c.out.tryWrite(p)
	if err != nil {
		err = c.opError("write", err)
	}
	return n, err
}

// CloseWrite ends the stream to the peer, which reads what was sent and then
// io.EOF. Reading goes on.
func (c *memConn) CloseWrite() error {
	s := c.out
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.writerClosed:
		return c.opError("close", net.ErrClosed)
	case s.broken:
		return c.opError("close", os.NewSyscallError("shutdown", syscall.ENOTCONN))
	}
	s.ended = true
	s.changed.Broadcast()
	return nil
}

func (c *memConn) Close() error {
	if !c.in.closeReader() {
		return c.opError("close", net.ErrClosed)
	}
	c.out.closeWriter()
	c.host.net.mu.Lock()
	c.forget()
	c.host.net.mu.Unlock()
	return nil
}

func (c *memConn) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}

func (c *memConn) SetReadDeadline(t time.Time) error {
	s := c.in
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.readerClosed {
		return c.opError("set", net.ErrClosed)
	}
	s.readDeadline.set(t)
	s.changed.Broadcast()
	return nil
}

func (c *memConn) SetWriteDeadline(t time.Time) error {
	s := c.out
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.writerClosed {
		return c.opError("set", net.ErrClosed)
	}
	s.writeDeadline.set(t)
	s.changed.Broadcast()
	return nil
}

// forget takes c out of its host's tables, which frees its port. The caller
// holds the network's mutex.
func (c *memConn) forget() {
	delete(c.host.conns, c)
	if port := uint16(c.local.Port); c.host.ports[port] == c {
		delete(c.host.ports, port)
	}
}

// reset breaks both directions.
func (c *memConn) reset() {
	c.in.breakOff()
	c.out.breakOff()
}

func (c *memConn) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: "mem", Source: c.local, Addr: c.remote, Err: err}
}

func (s *memStream) read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case s.readerClosed:
			return 0, net.ErrClosed
		case len(p) == 0:
			return 0, nil
		case s.readDeadline.passed():
			return 0, os.ErrDeadlineExceeded
		case s.broken:
			return 0, os.NewSyscallError("read", syscall.ECONNRESET)
		case s.size > 0:
			n := s.take(p)
			s.changed.Broadcast()
			return n, nil
		case s.ended:
			return 0, io.EOF
		}
		s.wait(&s.readDeadline)
	}
}

func (s *memStream) write(p []byte) (n int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	mine := false // writing is this call's
	for {
		if err = s.writable(); err == nil && (mine || !s.writing) {
			mine, s.writing = true, true
			n += s.put(p[n:])
		}
		if err != nil || mine && n == len(p) {
			if mine {
				s.writing = false
				s.changed.Broadcast()
			}
			return n, err
		}
		s.wait(&s.writeDeadline)
	}
}

func (s *memStream) tryWrite(p []byte) (n int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err = s.writable(); err == nil && !s.writing {
		n = s.put(p)
	}
	return n, err
}

// writable returns why nothing can be written, if so.
func (s *memStream) writable() error {
	switch {
	case s.writerClosed:
		return net.ErrClosed
	case s.writeDeadline.passed():
		return os.ErrDeadlineExceeded
	case s.broken:
		return os.NewSyscallError("write", syscall.ECONNRESET)
	case s.ended, s.readerClosed:
		return os.NewSyscallError("write", syscall.EPIPE)
	}
	return nil
}

// wait returns after anything in s changed or d passed.
func (s *memStream) wait(d *memDeadline) {
	d.arm(s)
	s.changed.Wait()
}

// take moves up to len(p) bytes from the ring into p.
func (s *memStream) take(p []byte) int {
	n := copy(p, s.ring[s.start:min(s.start+s.size, len(s.ring))])
	if n < len(p) && n < s.size {
		n += copy(p[n:], s.ring[:s.size-n])
	}
	s.start = (s.start + n) & (len(s.ring) - 1)
	s.size -= n
	if s.size == 0 {
		s.start = 0 // the next write lies in one piece
	}
	return n
}

// put moves as many bytes of p into the ring as there is room for, after
// making the ring larger if that helps, and wakes who waits for them.
func (s *memStream) put(p []byte) int {
	if s.size+len(p) > len(s.ring) && len(s.ring) < memMaxBuffer {
		length := max(len(s.ring), memMinBuffer)
		for length < s.size+len(p) && length < memMaxBuffer {
			length *= 2
		}
		ring := make([]byte, length)
		size := s.size
		s.take(ring)
		s.ring, s.start, s.size = ring, 0, size
	}
	n := min(len(p), len(s.ring)-s.size)
	end := (s.start + s.size) & (len(s.ring) - 1)
	k := copy(s.ring[end:], p[:n])
	copy(s.ring, p[k:n])
	s.size += n
	if n > 0 {
		s.changed.Broadcast()
	}
	return n
}

// closeReader closes the reading end, and reports whether it was open.
func (s *memStream) closeReader() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.readerClosed {
		return false
	}
	s.readerClosed = true
	s.readDeadline.set(time.Time{})
	s.drop()
	s.changed.Broadcast()
	return true
}

func (s *memStream) closeWriter() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writerClosed, s.ended = true, true
	s.writeDeadline.set(time.Time{})
	s.changed.Broadcast()
}

func (s *memStream) breakOff() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken = true
	s.drop()
	s.changed.Broadcast()
}

// drop loses the bytes that nobody will read.
func (s *memStream) drop() { s.ring, s.start, s.size = nil, 0, 0 }

// set changes the deadline to t. The caller wakes those who wait, and they arm
// it anew.
func (d *memDeadline) set(t time.Time) {
	if d.armed {
		d.timer.Stop()
		d.armed = false
	}
	if !t.IsZero() {
		// From here on on the monotonic clock, which the timer uses too.
		now := time.Now()
		t = now.Add(t.Sub(now))
	}
	d.at = t
}

func (d *memDeadline) passed() bool {
	return !d.at.IsZero() && !time.Now().Before(d.at)
}

// arm has the timer wake those who wait for s when the deadline passes. Only
// an operation that waits needs that, so most deadlines never start a timer.
func (d *memDeadline) arm(s *memStream) {
	if d.at.IsZero() || d.armed {
		return
	}
	d.armed = true
	if d.timer != nil {
		d.timer.Reset(time.Until(d.at))
		return
	}
	d.timer = time.AfterFunc(time.Until(d.at), func() {
		s.mu.Lock() // else it could fire just before the wait begins
		defer s.mu.Unlock()
		s.changed.Broadcast()
	})
}
