package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
)

// The floor of a session's set-up: a relay of two hops, which reads lines and
// writes them on, and decodes, checks and remembers nothing. It stands in the
// place of agent and Manager, for the same clients and with the same lines.

// A network is what a relay and its clients are connected by.
type network interface {
	listen() (accept func() (io.ReadWriteCloser, error), dial func() io.ReadWriteCloser, close func())
}

// loopback is TCP.
type loopback struct{}

func (loopback) listen() (func() (io.ReadWriteCloser, error), func() io.ReadWriteCloser, func()) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	dial := func() io.ReadWriteCloser {
		c, err := net.Dial("tcp", ln.Addr().String())
		check(err)
		return c
	}
	return func() (io.ReadWriteCloser, error) { return ln.Accept() }, dial, func() { ln.Close() }
}

// pipes are in memory: the least that a buffered pipe on a mutex and a condition
// does, without deadlines and with one way to end.
type pipes struct{}

func (pipes) listen() (func() (io.ReadWriteCloser, error), func() io.ReadWriteCloser, func()) {
	dialled, done := make(chan io.ReadWriteCloser), make(chan struct{})
	accept := func() (io.ReadWriteCloser, error) {
		select {
		case c := <-dialled:
			return c, nil
		case <-done:
			return nil, net.ErrClosed
		}
	}
	dial := func() io.ReadWriteCloser {
		x, y := newPipe(), newPipe()
		dialled <- pipeEnd{x, y}
		return pipeEnd{y, x}
	}
	return accept, dial, func() { close(done) }
}

type pipe struct {
	mu      sync.Mutex
	changed sync.Cond
	buf     []byte
	n       int
	closed  bool
}

func newPipe() *pipe {
	p := &pipe{buf: make([]byte, 64<<10)}
	p.changed.L = &p.mu
	return p
}

type pipeEnd struct{ in, out *pipe }

func (e pipeEnd) Read(b []byte) (int, error) {
	p := e.in
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.n == 0 && !p.closed {
		p.changed.Wait()
	}
	if p.n == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.buf[:p.n])
	p.n = copy(p.buf, p.buf[n:p.n])
	p.changed.Signal()
	return n, nil
}

func (e pipeEnd) Write(b []byte) (n int, err error) {
	p := e.out
	p.mu.Lock()
	defer p.mu.Unlock()
	for n < len(b) && !p.closed {
		k := copy(p.buf[p.n:], b[n:])
		p.n += k
		n += k
		p.changed.Signal()
		if n < len(b) {
			p.changed.Wait()
		}
	}
	if p.closed {
		return n, io.ErrClosedPipe
	}
	return n, nil
}

func (e pipeEnd) Close() error {
	for _, p := range []*pipe{e.in, e.out} {
		p.mu.Lock()
		p.closed = true
		p.changed.Broadcast()
		p.mu.Unlock()
	}
	return nil
}

// A sender writes lines to one connection.
type sender interface {
	send(line []byte)
	close()
}

// A queued sender has a goroutine write whatever was sent meanwhile in one
// write.
type queued struct {
	conn   io.WriteCloser
	mu     sync.Mutex
	more   sync.Cond
	queue  []byte
	closed bool
}

func newQueued(conn io.WriteCloser) sender {
	q := &queued{conn: conn}
	q.more.L = &q.mu
	go func() {
		var writing []byte
		q.mu.Lock()
		defer q.mu.Unlock()
		for {
			for len(q.queue) == 0 && !q.closed {
				q.more.Wait()
			}
			if q.closed {
				return
			}
			q.queue, writing = writing[:0], q.queue
			q.mu.Unlock()
			_, err := conn.Write(writing)
			q.mu.Lock()
			if err != nil {
				return
			}
		}
	}()
	return q
}

func (q *queued) send(line []byte) {
	q.mu.Lock()
	q.queue = append(q.queue, line...)
	q.more.Signal()
	q.mu.Unlock()
}

func (q *queued) close() {
	q.mu.Lock()
	q.closed = true
	q.more.Signal()
	q.mu.Unlock()
	q.conn.Close()
}

// An inline sender writes each line at once.
type inline struct {
	mu   sync.Mutex
	conn io.WriteCloser
}

func newInline(conn io.WriteCloser) sender { return &inline{conn: conn} }

func (s *inline) send(line []byte) {
	s.mu.Lock()
	s.conn.Write(line)
	s.mu.Unlock()
}

func (s *inline) close() { s.conn.Close() }

// A relay is both its hops: near takes the place of the agent, far that of the
// Manager.
type relay struct {
	newSender func(io.WriteCloser) sender
	clients   [maxClients]chan sender   // by number, holding the sender once it is known
	dial      func() io.ReadWriteCloser // for a client
	response  []byte                    // of far
	closers   []func()
}

// startRelay starts a relay.
func startRelay(n network, newSender func(io.WriteCloser) sender) *relay {
	r := &relay{newSender: newSender, response: []byte(responseLine)}
	for i := range r.clients {
		r.clients[i] = make(chan sender, 1)
	}
	acceptFar, dialFar, closeFar := n.listen()
	acceptNear, dialNear, closeNear := n.listen()
	go func() {
		conn, err := acceptFar()
		check(err)
		r.far(conn)
	}()
	up := dialFar()
	toFar := newSender(up)
	go r.fromFar(up)
	go func() {
		for {
			conn, err := acceptNear()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			check(err)
			go r.near(conn, toFar)
		}
	}()
	r.dial = dialNear
	r.closers = []func(){closeFar, closeNear, toFar.close}
	return r
}

func (r *relay) stop() {
	for _, f := range r.closers {
		f()
	}
}

// far answers requests.
func (r *relay) far(conn io.ReadWriteCloser) {
	to := r.newSender(conn)
	defer to.close()
	readLines(conn, func(line []byte) {
		if line[kindAt] == 'r' { // of session_request: the rest has no answer
			copy(r.response[responseID:], line[requestID:requestID+idDigits])
			to.send(r.response)
		}
	})
}

// near passes on what one client sends.
func (r *relay) near(conn io.ReadWriteCloser, toFar sender) {
	to := r.newSender(conn)
	defer to.close()
	known := false
	readLines(conn, func(line []byte) {
		if !known {
			known = true
			r.clients[clientOf(line[requestID:])] <- to
		}
		toFar.send(line)
	})
}

// fromFar passes answers on to the clients that they are for.
func (r *relay) fromFar(conn io.ReadWriteCloser) {
	var known [maxClients]sender
	readLines(conn, func(line []byte) {
		n := clientOf(line[responseID:])
		if known[n] == nil {
			known[n] = <-r.clients[n]
		}
		known[n].send(line)
	})
}

// clientOf returns the client that chose a message id.
func clientOf(id []byte) int {
	n, err := strconv.Atoi(string(id[:clientDigits]))
	if err != nil || n < firstClient || n >= firstClient+maxClients {
		fatal(fmt.Sprintf("not a message id: %q", id[:idDigits]))
	}
	return n - firstClient
}

// readLines calls handle with each line, its end included, until the
// connection ends.
func readLines(conn io.Reader, handle func(line []byte)) {
	buf := make([]byte, 64<<10)
	start, end := 0, 0
	for {
		for {
			n := bytes.IndexByte(buf[start:end], '\n')
			if n < 0 {
				break
			}
			handle(buf[start : start+n+1])
			start += n + 1
		}
		end = copy(buf, buf[start:end])
		start = 0
		n, err := conn.Read(buf[end:])
		if err != nil {
			return
		}
		end += n
	}
}
