//go:build unix

package ssmmp

import (
	"net"
	"syscall"
)

// tryWriterOf returns what writes to conn without waiting, nil where there is
// none: over TLS, for one, half a write would be the end.
func tryWriterOf(conn net.Conn) tryWriter {
	switch conn := conn.(type) {
	case tryWriter:
		return conn
	case *net.TCPConn:
		raw, err := conn.SyscallConn()
		if err != nil {
			return nil
		}
		w := &rawWriter{raw: raw}
		w.attempt = w.once
		return w
	}
	return nil
}

// A rawWriter writes to a socket of the system, which does not block. Its
// fields are those of one attempt at a time: so there is nothing to allocate.
type rawWriter struct {
	raw     syscall.RawConn
	attempt func(fd uintptr) bool
	p       []byte
	n       int
	err     error
}

func (w *rawWriter) tryWrite(p []byte) (int, error) {
	w.p, w.n, w.err = p, 0, nil
	err := w.raw.Write(w.attempt)
	w.p = nil
	if err == nil {
		err = w.err
	}
	return w.n, err
}

func (w *rawWriter) once(fd uintptr) bool {
	for {
		n, err := syscall.Write(int(fd), w.p)
		switch err {
		case nil:
			w.n = n
		case syscall.EINTR:
			continue
		case syscall.EAGAIN:
		default:
			w.err = err
		}
		return true // whatever came of it: never wait
	}
}
