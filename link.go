package ssmmp

import (
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

const (
	// maxQueue bounds in bytes what waits to be written on one connection.
	maxQueue = 1 << 20
	// longQueue is how much of it may wait before who floods it is not read.
	longQueue = maxQueue / 4
	// maxReports bounds in bytes the reports that are kept until the far side
	// is known to have them. They all go out in one burst when it is back.
	maxReports = 32 << 20
	// writeTimeout bounds one write. A peer that reads slower loses the
	// connection, and only that one.
	writeTimeout = 10 * time.Second
	// lingerTime is how long a peer that sends an endless line is heard out.
	lingerTime = time.Second
	// badLinesLogged is how many bad lines of one connection are logged, and of
	// messages that cannot be sent on it.
	badLinesLogged = 10
)

// keptUpTo is how many bytes of reports are kept, with this one. Of sessions
// that ended unreported the Manager can ask; there is room for all else.
func keptUpTo(m Message) int {
	switch m.(type) {
	case *SourceSessionCloseInfo, *DestSessionCloseInfo:
		return maxReports - maxReports/8
	}
	return maxReports
}

var errQueueFull = errors.New("ssmmp: peer reads too slowly")

// A link carries messages over one connection. One goroutine reads. What is
// queued is written by whoever queued it, if the connection takes it at once;
// all else is left to the link's own writer, which writes whatever is queued in
// one write.
type link struct {
	id   ConnID
	conn net.Conn
	try  tryWriter // nil where only the writer can write

	mu      sync.Mutex
	wake    sync.Cond // of the writer
	eased   sync.Cond // the queue was taken, or never will be
	queue   []byte    // encoded messages
	fresh   int       // bytes of queue that do not wait for the peer: nobody tried to write them yet
	writing []byte    // of whoever has busy; swapped with queue
	rest    []byte    // of writing: what the connection did not take at once
	busy    bool      // somebody writes: nobody else may
	crowded bool      // somebody had something to write while it was busy
	wanted  bool      // the writer has to
	closing bool      // write what is queued, then close
	linger  bool      // closing, while the peer still sends
	failed  error     // the connection is of no use any more
	unsent  int       // messages that could not be queued, while it was
	done    chan struct{}
}

// A tryWriter writes without ever waiting: what it could not write at once, it
// does not write.
type tryWriter interface {
	tryWrite(p []byte) (n int, err error)
}

func newLink(id ConnID, conn net.Conn) *link {
	l := &link{id: id, conn: conn, try: tryWriterOf(conn), done: make(chan struct{})}
	l.wake.L, l.eased.L = &l.mu, &l.mu
	go l.write()
	return l
}

// send queues a message and has it written. It never waits for the peer.
func (l *link) send(m Message) error {
	_, err := l.put(m)
	if err == nil {
		l.flush()
	}
	return err
}

// put queues a message, which goes out with the next flush: it is for a caller
// that holds a lock. A full queue ends the connection. It returns how many bytes
// are queued.
func (l *link) put(m Message) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closing || l.failed != nil {
		return 0, net.ErrClosed
	}
	queue, err := AppendMessage(l.queue, m)
	if err != nil {
		return 0, err
	}
	if len(l.queue)-l.fresh > maxQueue {
		l.fail(errQueueFull)
		return 0, errQueueFull
	}
	l.fresh += len(queue) - len(l.queue)
	l.queue = queue
	return len(queue), nil
}

// take begins a write of all that is queued. l.mu is held.
func (l *link) take() {
	l.queue, l.writing, l.fresh = l.writing[:0], l.queue, 0
	l.eased.Broadcast()
}

// ease waits until the queue is not long, or nobody will write it any more.
func (l *link) ease() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.queue) > longQueue && l.failed == nil {
		l.eased.Wait()
	}
}

// putLine is put for a message that is encoded already.
func (l *link) putLine(line []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closing || l.failed != nil {
		return net.ErrClosed
	}
	if len(l.queue)-l.fresh > maxQueue {
		l.fail(errQueueFull)
		return errQueueFull
	}
	l.fresh += len(line)
	l.queue = append(l.queue, line...)
	return nil
}

// flush has what is queued written, and never waits for the peer. An idle link
// writes it here and now, which saves a goroutine's wake-up; what others queue
// meanwhile, and what the connection does not take, the writer writes.
func (l *link) flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.busy || l.try != nil {
		l.fresh = 0 // what is queued waits for the peer
	}
	if len(l.queue) == 0 || l.busy || l.wanted || l.closing || l.failed != nil {
		l.crowded = l.crowded || l.busy
		return // nothing to do, or somebody does it
	}
	if l.try != nil {
		l.busy = true
		if l.crowded {
			// One write for many: let others that are about to send add to it.
			l.crowded = false
			l.mu.Unlock()
			runtime.Gosched()
			l.mu.Lock()
		}
		l.take()
		l.mu.Unlock()
		n, err := l.try.tryWrite(l.writing)
		l.mu.Lock()
		l.busy = false
		l.rest = l.writing[n:]
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) { // the deadline of an earlier write
			l.fail(err)
		}
		l.shrink()
	}
	if len(l.queue)+len(l.rest) > 0 || l.closing {
		l.wanted = true
		l.wake.Signal()
	}
}

// A flushList holds the links with messages that were queued under a lock, to
// be flushed after it, and then logs what could not be queued.
type flushList struct {
	log    hclog.Logger
	links  []*link
	long   bool // a queue among theirs is
	unsent []unsent
}

// An unsent is a message that could not be queued.
type unsent struct {
	to  net.Addr
	why error
}

func (f *flushList) add(l *link) {
	if n := len(f.links); n == 0 || f.links[n-1] != l {
		f.links = append(f.links, l)
	}
}

// put queues a message on a link.
func (f *flushList) put(l *link, m Message) error {
	f.add(l)
	n, err := l.put(m)
	f.long = f.long || n > longQueue
	f.failed(l, err)
	return err
}

// failed notes, for the log, why a message is not sent: not of a connection that
// has ended, and not for ever of one.
func (f *flushList) failed(l *link, err error) {
	if err == nil || errors.Is(err, net.ErrClosed) {
		return
	}
	l.mu.Lock()
	l.unsent++
	n := l.unsent
	l.mu.Unlock()
	if n <= badLinesLogged {
		f.unsent = append(f.unsent, unsent{l.conn.RemoteAddr(), err})
	}
}

func (f *flushList) flush() {
	for _, l := range f.links {
		l.flush()
	}
	for _, u := range f.unsent {
		f.log.Warn("message not sent", "to", u.to.String(), "error", u.why)
	}
	clear(f.links)
	f.links, f.long, f.unsent = f.links[:0], false, nil
}

// ease is for a reader whose peer shall not send faster than it can be passed
// on: where a queue is long it waits, which ends at the latest when that
// connection does.
func (f *flushList) ease() {
	if !f.long {
		return
	}
	for _, l := range f.links {
		l.flush()
		l.ease()
	}
	f.flush()
}

// refusal is the answer to a request that could not be decoded, nil where there
// is none to give: it is no request, its message id could not be read, or the
// answer would have to say what could not be. service and id are those of the
// instance that the line came from, zero where it came from elsewhere.
func refusal(p *ProtocolError, from, to Actor, service string, id InstanceID) Message {
	if p.MessageID <= 0 || !travels(p.Type, from, to) {
		return nil
	}
	h := Header{MessageID: p.MessageID, Extensions: reason(p.Error())}
	switch p.Type {
	case TypeInitiationRequest.String():
		return &InitiationResponse{Header: h, Status: p.Status}
	case TypeExecutionRequest.String():
		return &ExecutionResponse{Header: h, Status: p.Status}
	case TypeSourceSessionCloseRequest.String():
		h.SubType = AgentToManager
		return &SourceSessionCloseResponse{Header: h, Status: p.Status}
	case TypeDestSessionCloseRequest.String():
		h.SubType = AgentToManager
		return &DestSessionCloseResponse{Header: h, Status: p.Status}
	case TypeGracefulShutdownRequest.String():
		h.SubType = AgentToManager
		return &GracefulShutdownResponse{Header: h, Status: p.Status}
	case TypeSessionRequest.String():
		if id == 0 {
			return nil
		}
		h.SubType = AgentToService
		return &SessionResponse{Header: h, SourceServiceName: service, SourceServiceInstanceID: id,
			DestServiceName: unknownName, DestSocketName: unknownName, Status: p.Status}
	}
	return nil
}

// unknownName stands where a message needs a name that its sender does not
// know.
const unknownName = "unknown"

// close ends the connection once everything queued is written. It does not
// wait for that: wait does.
func (l *link) close() {
	l.mu.Lock()
	l.closing = true
	l.wake.Signal()
	l.mu.Unlock()
}

// abort ends the connection at once.
func (l *link) abort() {
	l.mu.Lock()
	l.fail(net.ErrClosed)
	l.mu.Unlock()
}

func (l *link) wait() { <-l.done }

// fail ends the connection at once. l.mu is held.
func (l *link) fail(err error) {
	if l.failed == nil {
		l.failed = err
		l.wake.Signal()
		l.eased.Broadcast()
		// Closing never blocks for long: nothing lingers on a queue of ours.
		l.conn.Close()
	}
}

// write is the writer.
func (l *link) write() {
	defer close(l.done)
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		for l.failed == nil && (l.busy || !l.wanted && !l.closing) {
			l.wake.Wait()
		}
		if l.failed != nil {
			return
		}
		if len(l.rest) == 0 {
			if len(l.queue) == 0 && !l.closing {
				l.wanted = false
				continue
			}
			if len(l.queue) == 0 {
				if l.linger {
					l.mu.Unlock()
					l.drain()
					l.mu.Lock()
				}
				l.fail(net.ErrClosed)
				return
			}
			l.take()
			l.rest = l.writing
		}
		l.busy = true
		l.mu.Unlock()
		err := l.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
		if err == nil {
			_, err = l.conn.Write(l.rest)
		}
		l.mu.Lock()
		l.busy, l.rest = false, nil
		if err != nil {
			l.fail(err)
			return
		}
		l.shrink()
	}
}

// shrink frees a large buffer once a burst is over.
func (l *link) shrink() {
	if cap(l.writing) > maxQueue/16 && len(l.rest) == 0 {
		l.writing = nil
	}
}

// drain lets a peer that still sends read the last answer: closing with bytes
// unread would take it back. It is bounded in bytes and in time.
func (l *link) drain() {
	if half, ok := l.conn.(interface{ CloseWrite() error }); !ok || half.CloseWrite() != nil {
		return
	}
	l.conn.SetReadDeadline(time.Now().Add(lingerTime))
	io.CopyN(io.Discard, l.conn, maxQueue)
}

// read calls handle with each message, and bad with each line that is none,
// until the connection ends, which it does at the latest with the maxViolations-th
// such line. The message is borrowed: valid until handle returns. What these
// queue elsewhere and add to out is flushed before read waits for more.
func (l *link) read(out *flushList, log hclog.Logger, handle func(Message), bad func(*ProtocolError)) error {
	d := NewDecoder(l.conn)
	for lines := 0; ; { // that were bad
		if !d.ready() {
			out.flush()
		}
		m, err := d.Decode()
		if err == nil {
			handle(m)
			continue
		}
		var p *ProtocolError
		if errors.As(err, &p) {
			if lines++; lines <= badLinesLogged {
				log.Warn("bad line dropped", "error", p)
			}
			bad(p) // may answer
			if lines < maxViolations && !errors.Is(err, ErrLineTooLong) {
				continue
			}
		}
		out.flush()
		l.mu.Lock()
		if p == nil {
			l.fail(err)
		} else { // it shall read what it was answered
			l.closing, l.linger = true, true
			l.wake.Signal()
		}
		l.mu.Unlock()
		if errors.Is(err, io.EOF) {
			return nil
		}
		return err
	}
}
