package ssmmp

import (
	"bytes"
	"io"
	"unsafe"
)

const (
	// firstBuffer is the size of a Decoder's buffer until a line is longer.
	firstBuffer = 4 << 10
	// lastBuffer is room for the longest line and its line end.
	lastBuffer = MaxLine + len("\r\n")
	// longLine is the length from which on a line's message is not decoded into
	// again: what it needed is given back with the next Decode.
	longLine = 1 << 10
	// maxEmptyReads is how often a reader may return nothing at all in a row.
	maxEmptyReads = 100
)

// A Decoder reads messages from a stream, one physical line each (PROTOCOL
// section 2). It is not safe for use by many goroutines at once.
type Decoder struct {
	r       io.Reader
	buf     []byte
	start   int            // of what is not decoded yet, in buf
	end     int            // of what was read into buf
	line    []byte         // the line last decoded, in buf
	readErr error          // what r returned with the last bytes
	tooLong *ProtocolError // ends the stream
	codec   codec
	reuse   [numTypes]Message
}

// NewDecoder returns a Decoder that reads from r, through a buffer of its own.
func NewDecoder(r io.Reader) *Decoder {
	return &Decoder{r: r, buf: make([]byte, firstBuffer)}
}

// Decode reads the next message, as liberally as ParseMessage. The message is
// borrowed: it, its strings and its lists are valid until the next call of
// Decode; Clone it to keep it.
//
// A *ProtocolError concerns one line, and the next call goes on after it,
// unless it is ErrLineTooLong: then every call returns that. The error is
// io.EOF at the end of the stream, io.ErrUnexpectedEOF when it ends within a
// line, and otherwise the reader's.
func (d *Decoder) Decode() (Message, error) {
	if poison {
		for i := range d.line {
			d.line[i] = 0xFF
		}
	}
	if len(d.line) > longLine {
		d.reuse[d.codec.typ] = nil
	}
	if err := d.readLine(); err != nil {
		return nil, err
	}
	return d.codec.parse(unsafe.String(unsafe.SliceData(d.line), len(d.line)), &d.reuse)
}

// Buffered returns how many bytes were read and not yet decoded.
func (d *Decoder) Buffered() int { return d.end - d.start }

// ready reports whether the next line is there, so that Decode reads nothing.
func (d *Decoder) ready() bool {
	return d.end > d.start && bytes.IndexByte(d.buf[d.start:d.end], '\n') >= 0
}

// readLine sets d.line to the next line, without its line end.
func (d *Decoder) readLine() error {
	d.line = nil
	if d.tooLong != nil {
		return d.tooLong
	}
	for searched := 0; ; {
		unread := d.buf[d.start:d.end]
		if n := bytes.IndexByte(unread[searched:], '\n'); n >= 0 {
			n += searched
			d.start += n + 1
			if n > 0 && unread[n-1] == '\r' {
				n--
			}
			if n > MaxLine {
				return d.stop(unread)
			}
			d.line = unread[:n]
			return nil
		}
		searched = len(unread)
		if searched == lastBuffer {
			return d.stop(unread)
		}
		if err := d.fill(); err != nil {
			return err
		}
	}
}

// fill reads more, after it made room for it.
func (d *Decoder) fill() error {
	if err := d.readErr; err != nil {
		d.readErr = nil
		if err == io.EOF && d.end > d.start {
			return io.ErrUnexpectedEOF
		}
		return err
	}
	if d.start > 0 {
		d.end = copy(d.buf, d.buf[d.start:d.end])
		d.start = 0
	}
	if d.end == len(d.buf) {
		larger := make([]byte, min(2*len(d.buf), lastBuffer))
		copy(larger, d.buf)
		d.buf = larger
	}
	for range maxEmptyReads {
		n, err := d.r.Read(d.buf[d.end:])
		d.end += n
		d.readErr = err
		if n > 0 || err != nil {
			return nil
		}
	}
	return io.ErrNoProgress
}

// stop ends the stream at a line that begins with b and is too long.
func (d *Decoder) stop(b []byte) error {
	d.tooLong = tooLong(string(b))
	return d.tooLong
}
