package ssmmp

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"net/netip"
	"strconv"
	"time"
	"unicode/utf8"
)

// The form in which stores keep events. A record is a JSON text, so that a
// person and a database's own functions can read it, of exactly one shape, so
// that this package reads it fast, and ends with a checksum of what stands
// before it:
//
//	{"v":1,"first":17,"time":1790000000000000000,"events":[[9,"shop","cart",0,7],[...]],"sum":"0a1b2c3d"}
//
// Each event is the list of its fields in the order of eventFields. A field
// without a value is 0, and those at the end of a list are left out. The
// sequence number of an event is first + its place in the list + its shift; its
// time is time + its since, in nanoseconds.

// In eventHead stands the version of the form. A field that is added at the end
// of eventFields does not change it; a field with another meaning does.
const (
	eventHead = `{"v":1,"first":`
	eventTime = `,"time":`
	eventList = `,"events":[`
	eventSum  = `],"sum":"`
	eventTail = `"}`
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// An eventCoder writes or reads one field after the other: it gets the value
// and returns it, or gets what does not matter and returns what it read.
type eventCoder interface {
	number(int64) int64
	text(string) string
	addr(netip.Addr) netip.Addr
	sockets([]SocketPort) []SocketPort
	fail(reason string)
}

func eventNumber[T ~int64 | ~uint64 | ~uint16 | ~uint8 | ~int](c eventCoder, v *T) {
	n := c.number(int64(*v))
	if *v = T(n); int64(*v) != n {
		c.fail("number out of range")
	}
}

// eventFields has a coder write or read an event's fields, in their order.
// shift is its sequence number and since its time, relative to the record's.
func eventFields(c eventCoder, ev *Event, shift, since *int64) {
	eventNumber(c, &ev.Kind)
	ev.Graph = c.text(ev.Graph)
	ev.Service = c.text(ev.Service)
	eventNumber(c, &ev.Instance)
	ev.Node = c.addr(ev.Node)
	eventNumber(c, &ev.Session)
	eventNumber(c, &ev.Source)
	eventNumber(c, &ev.Destination)
	ev.Plug = c.text(ev.Plug)
	ev.Socket = c.text(ev.Socket)
	eventNumber(c, &ev.MessageID)
	ev.Actor = c.text(ev.Actor)
	eventNumber(c, &ev.CauseSeq)
	eventNumber(c, &ev.PlugPort)
	eventNumber(c, &ev.NewPort)
	eventNumber(c, &ev.Status)
	ev.Cause = c.text(ev.Cause)
	ev.Vertex = c.text(ev.Vertex)
	ev.Sockets = c.sockets(ev.Sockets)
	eventNumber(c, since)
	eventNumber(c, shift)
	ev.Detail = c.text(ev.Detail)
	eventNumber(c, &ev.At)
}

// AppendEvents appends a record of events to b. Their times must lie between
// the years 1678 and 2262; the zero time becomes the start of 1970, in UTC.
// Appending keeps every byte of every string, also of those that are not UTF-8.
func AppendEvents(b []byte, events []Event) []byte {
	start := len(b)
	var first uint64
	var base int64
	if len(events) > 0 {
		first, base = events[0].Seq, eventNano(events[0].Time)
	}
	b = append(b, eventHead...)
	b = strconv.AppendInt(b, int64(first), 10)
	b = append(b, eventTime...)
	b = strconv.AppendInt(b, base, 10)
	b = append(b, eventList...)
	w := eventWriter{b: b}
	for i := range events {
		if i > 0 {
			w.b = append(w.b, ',')
		}
		ev := events[i] // a copy: the caller's may be read by others
		shift, since := int64(ev.Seq-first-uint64(i)), eventNano(ev.Time)-base
		w.b = append(w.b, '[')
		w.end = len(w.b)
		eventFields(&w, &ev, &shift, &since)
		w.b = w.b[:w.end]
		w.b = append(w.b, ']')
	}
	return sealRecord(w.b, w.b[start:])
}

// sealRecord appends to b the end of the record that begins with body.
func sealRecord(b, body []byte) []byte {
	var sum [4]byte
	binary.BigEndian.PutUint32(sum[:], crc32.Checksum(body, castagnoli))
	b = append(b, eventSum...)
	b = hex.AppendEncode(b, sum[:])
	return append(b, eventTail...)
}

func eventNano(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// An eventWriter appends fields, each with a comma after it.
type eventWriter struct {
	b   []byte
	end int // of the last field that has a value
}

func (w *eventWriter) set(has bool) {
	if !has {
		w.b = append(w.b, '0')
	} else {
		w.end = len(w.b)
	}
	w.b = append(w.b, ',')
}

func (w *eventWriter) number(n int64) int64 {
	if n != 0 {
		w.b = strconv.AppendInt(w.b, n, 10)
	}
	w.set(n != 0)
	return n
}

func (w *eventWriter) text(s string) string {
	if s != "" {
		w.b = appendText(w.b, s)
	}
	w.set(s != "")
	return s
}

func (w *eventWriter) addr(a netip.Addr) netip.Addr {
	if a.IsValid() {
		if a.Zone() == "" {
			w.b = append(w.b, '"')
			w.b = a.AppendTo(w.b)
			w.b = append(w.b, '"')
		} else {
			w.b = appendText(w.b, a.String())
		}
	}
	w.set(a.IsValid())
	return a
}

func (w *eventWriter) sockets(list []SocketPort) []SocketPort {
	for i, s := range list {
		w.b = append(w.b, "[,"[min(i, 1)])
		w.b = appendText(w.b, s.Socket)
		w.b = append(w.b, ',')
		w.b = strconv.AppendUint(w.b, uint64(s.Port), 10)
	}
	if len(list) > 0 {
		w.b = append(w.b, ']')
	}
	w.set(len(list) > 0)
	return list
}

func (w *eventWriter) fail(string) {}

const hexDigits = "0123456789abcdef"

// appendText appends a JSON string. A byte that is no part of UTF-8 becomes a
// lone surrogate, which no valid string has.
func appendText(b []byte, s string) []byte {
	b = append(b, '"')
	clean := 0
	for clean < len(s) && s[clean] >= ' ' && s[clean] < utf8.RuneSelf && s[clean] != '"' && s[clean] != '\\' {
		clean++
	}
	b = append(b, s[:clean]...)
	for i := clean; i < len(s); {
		c := s[i]
		switch {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c < ' ':
			b = append(b, `\u00`...)
			b = append(b, hexDigits[c>>4], hexDigits[c&15])
		case c < utf8.RuneSelf:
			b = append(b, c)
		default:
			r, n := utf8.DecodeRuneInString(s[i:])
			if r == utf8.RuneError && n == 1 {
				b = append(b, `\udc`...)
				b = append(b, hexDigits[c>>4], hexDigits[c&15])
			} else {
				b = append(b, s[i:i+n]...)
			}
			i += n - 1
		}
		i++
	}
	return append(b, '"')
}

// CheckEvents reports whether a record is as AppendEvents made it, by its
// checksum alone.
func CheckEvents(record []byte) error {
	tail := len(record) - len(eventSum) - 8 - len(eventTail)
	if tail < 0 || string(record[len(record)-len(eventTail):]) != eventTail || string(record[tail:tail+len(eventSum)]) != eventSum {
		return fmt.Errorf("event record: byte %d: cut off", len(record))
	}
	if !bytes.Equal(record[tail:], sealRecord(nil, record[:tail])) {
		return fmt.Errorf("event record: byte %d: wrong checksum", tail)
	}
	return nil
}

// DecodeEvents appends the events of a record to buf. Anything but what
// AppendEvents made gets an error, be it changed in a single bit.
func DecodeEvents(buf []Event, record []byte) ([]Event, error) {
	if err := CheckEvents(record); err != nil {
		return buf, err
	}
	tail := len(record) - len(eventSum) - 8 - len(eventTail)
	r := eventReader{b: record[:tail]}
	r.expect(eventHead)
	first := uint64(r.integer())
	r.expect(eventTime)
	base := r.integer()
	r.expect(eventList)
	for n := uint64(0); r.reason == "" && r.at < tail; n++ {
		if n > 0 {
			r.expect(",")
		}
		var ev Event
		var shift, since int64
		r.field, r.open = 0, true
		r.expect("[")
		eventFields(&r, &ev, &shift, &since)
		if r.open {
			r.expect("]")
		}
		ev.Seq = first + n + uint64(shift)
		ev.Time = time.Unix(0, base+since).UTC()
		buf = append(buf, ev)
	}
	if r.reason != "" {
		return buf, fmt.Errorf("event record: byte %d: %s", r.at, r.reason)
	}
	return buf, nil
}

// An eventReader reads what an eventWriter wrote. After a fault it gives zero
// values only.
type eventReader struct {
	b      []byte
	at     int
	reason string // of the first fault
	field  int    // of the event
	open   bool   // the event has more fields

	// Many events say the same as the one before: its strings are used again.
	texts [32]string
	raw   [32][]byte
	nodes [32]netip.Addr
}

func (r *eventReader) fail(reason string) {
	if r.reason == "" {
		r.reason, r.open = reason, false
	}
}

func (r *eventReader) expect(s string) {
	if r.reason == "" && bytes.HasPrefix(r.b[r.at:], []byte(s)) {
		r.at += len(s)
	} else {
		r.fail("want " + s)
	}
}

func (r *eventReader) peek() byte {
	if r.at < len(r.b) {
		return r.b[r.at]
	}
	return 0
}

// next goes to the next field and reports whether it has a value.
func (r *eventReader) next() bool {
	if !r.open {
		return false
	}
	switch r.field++; {
	case r.peek() == ']':
		r.at++
		r.open = false
		return false
	case r.field > 1:
		if r.expect(","); !r.open {
			return false
		}
	}
	if r.peek() == '0' {
		r.at++
		return false
	}
	return true
}

func (r *eventReader) integer() int64 {
	start, negative, n := r.at, r.peek() == '-', uint64(0)
	if negative {
		r.at++
	}
	digits := r.at
	for ; r.at < len(r.b) && r.b[r.at]-'0' <= 9; r.at++ {
		n = 10*n + uint64(r.b[r.at]-'0')
	}
	if len := r.at - digits; len == 0 || len > 18 {
		m, err := strconv.ParseInt(string(r.b[start:r.at]), 10, 64)
		if err != nil {
			r.fail("not a number")
		}
		return m
	}
	if negative {
		return -int64(n)
	}
	return int64(n)
}

func (r *eventReader) number(int64) int64 {
	if !r.next() {
		return 0
	}
	return r.integer()
}

// quoted returns a JSON string with its quotes.
func (r *eventReader) quoted() []byte {
	if r.peek() != '"' {
		r.fail("not a string")
		return nil
	}
	start, b := r.at, r.b
	for i := start + 1; i < len(b); i++ {
		switch b[i] {
		case '\\':
			i++
		case '"':
			r.at = i + 1
			return b[start:r.at]
		}
	}
	r.at = len(b)
	r.fail("string without an end")
	return nil
}

// again returns the string of this field in the event before, with its quotes,
// if it stands here again.
func (r *eventReader) again() bool {
	raw := r.raw[r.field%len(r.raw)]
	if len(raw) == 0 || !bytes.HasPrefix(r.b[r.at:], raw) {
		return false
	}
	r.at += len(raw)
	return true
}

func (r *eventReader) text(string) string {
	if !r.next() {
		return ""
	}
	i := r.field % len(r.raw)
	if !r.again() {
		if raw := r.quoted(); r.reason == "" {
			r.raw[i], r.texts[i] = raw, r.unquote(raw)
		}
	}
	return r.texts[i]
}

func (r *eventReader) unquote(raw []byte) string {
	raw = raw[1 : len(raw)-1]
	if bytes.IndexByte(raw, '\\') < 0 {
		return string(raw)
	}
	var s []byte
	for i := 0; i < len(raw); i++ {
		c := raw[i]
		if c == '\\' {
			if i++; raw[i] != 'u' {
				c = raw[i]
			} else {
				n, err := strconv.ParseUint(string(raw[i+1:min(i+5, len(raw))]), 16, 16)
				if err != nil || i+5 > len(raw) {
					r.fail("not an escape")
					return ""
				}
				c = byte(n)
				i += 4
			}
		}
		s = append(s, c)
	}
	return string(s)
}

func (r *eventReader) addr(netip.Addr) netip.Addr {
	if !r.next() {
		return netip.Addr{}
	}
	i := r.field % len(r.raw)
	if !r.again() {
		if raw := r.quoted(); r.reason == "" {
			a, err := netip.ParseAddr(r.unquote(raw))
			if err != nil {
				r.fail("not an address")
			}
			r.raw[i], r.nodes[i] = raw, a
		}
	}
	return r.nodes[i]
}

func (r *eventReader) sockets([]SocketPort) (list []SocketPort) {
	if !r.next() {
		return nil
	}
	for r.expect("["); r.reason == ""; r.expect(",") {
		raw := r.quoted()
		if r.expect(","); r.reason != "" {
			break
		}
		s := SocketPort{Socket: r.unquote(raw)}
		n := r.integer()
		if s.Port = uint16(n); int64(s.Port) != n {
			r.fail("number out of range")
		}
		list = append(list, s)
		if r.peek() == ']' {
			r.at++
			break
		}
	}
	return list
}
