package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// Times that bound every wait.
const (
	idleTimeout   = 5 * time.Minute  // for the next request of a connection
	ioTimeout     = time.Minute      // for the next message of a stream, and for any write
	answerTimeout = 2 * time.Minute  // for the first response: services may have to be started
	clientTimeout = 3 * time.Minute  // for a user: longer than any answer inside
	dialTimeout   = 45 * time.Second // for a session
	graceTimeout  = 5 * time.Second  // for requests under way when a service ends
	lingerTimeout = time.Second      // for a refused peer to stop sending
)

// lingerBytes is how much of a refused peer's data is thrown away so that it
// can read why it was refused.
const lingerBytes = 1 << 20

// linkBuffer is the size in bytes of each of a link's two buffers. It holds
// the longest line.
const linkBuffer = 16 << 10

// maxReason bounds the text, in bytes, that explains a status.
const maxReason = 512

// A statusError is an answer other than success.
type statusError struct {
	status int
	reason string // for a person
}

func (e *statusError) Error() string { return fmt.Sprintf("status %d: %s", e.status, e.reason) }

// A link carries messages over one connection. Its methods are for one
// goroutine at a time, but for close.
type link struct {
	conn net.Conn
	r    *bufio.Reader
	w    *bufio.Writer
	buf  []byte      // the encoded message that is being sent
	stop func() bool // ends the watch on the context
}

// newLink returns a link over conn, which is closed at the latest when ctx
// ends.
func newLink(ctx context.Context, conn net.Conn) *link {
	return &link{
		conn: conn,
		r:    bufio.NewReaderSize(conn, linkBuffer),
		w:    bufio.NewWriterSize(conn, linkBuffer),
		stop: context.AfterFunc(ctx, func() { conn.Close() }),
	}
}

// receive returns the next message, which must be whole before the timeout.
func (l *link) receive(timeout time.Duration) (message, error) {
	if err := l.conn.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return message{}, err
	}
	return readMessage(l.r)
}

// pending reports whether bytes of a next message have arrived already.
func (l *link) pending() bool { return l.r.Buffered() > 0 }

// queue puts a message into the buffer, and writes the buffer when it is full.
func (l *link) queue(m message) error {
	var err error
	if l.buf, err = appendMessage(l.buf[:0], m); err != nil {
		return err
	}
	if err := l.conn.SetWriteDeadline(time.Now().Add(ioTimeout)); err != nil {
		return err
	}
	_, err = l.w.Write(l.buf)
	return err
}

// send writes a message, and all that is queued before it.
func (l *link) send(m message) error {
	if err := l.queue(m); err != nil {
		return err
	}
	return l.w.Flush()
}

// ask sends a message and returns the response to req that it brings about.
func (l *link) ask(m, req message, timeout time.Duration) (message, error) {
	if err := l.send(m); err != nil {
		return message{}, err
	}
	return l.answer(req, timeout)
}

// answer returns the next message from the peer, a response to req.
func (l *link) answer(req message, timeout time.Duration) (message, error) {
	m, err := l.receive(timeout)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return message{}, err
	}
	switch {
	case m.kind == errorResponse && m.status >= statusBadRequest:
		return message{}, &statusError{m.status, reasonOf(m)}
	case m.kind != responseKind(req.kind) || m.id != req.id:
		return message{}, m.wrong(fmt.Sprintf("does not answer %s %d", req.kind, req.id))
	}
	return m, nil
}

func (l *link) close() {
	l.stop()
	l.conn.Close()
}

// linger closes the connection of a peer that may still be sending, so that
// what was sent to it arrives: closing over unread bytes would reset it.
func (l *link) linger() {
	defer l.close()
	half, ok := l.conn.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	if l.conn.SetReadDeadline(time.Now().Add(lingerTimeout)) == nil {
		io.CopyN(io.Discard, l.conn, lingerBytes)
	}
}

// reasonOf returns the text of a response that is not a success.
func reasonOf(m message) string {
	if len(m.lines) == 0 {
		return "no reason given"
	}
	return m.lines[0]
}

// isTimeout reports whether err says that something took too long.
func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}
