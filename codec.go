package ssmmp

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// ErrLineTooLong: a line is longer than MaxLine. The *ProtocolError that wraps
// it has StatusLineTooLong.
var ErrLineTooLong = errors.New("ssmmp: line longer than 64 KiB")

// A ProtocolError says what is wrong with a message, received or to be sent.
type ProtocolError struct {
	// Status is what to answer: StatusBadMessage or StatusLineTooLong.
	Status Status
	// Type is the message's type by its canonical name, or the contents of the
	// line type when no such type exists; empty when it could not be read.
	Type string
	// MessageID is the message's id, zero when it could not be read. A message
	// with a Type and a MessageID can be answered.
	MessageID int64
	// Line counts the lines of the message from 1. It is zero when the fault
	// is not in one line: one is missing, or the message is too long.
	Line int
	// Field is the name of the line, empty when it has none.
	Field string
	// Value is the contents of the line, or its beginning.
	Value string
	// Reason says what is wrong.
	Reason string
}

// Error returns everything that is known, on one line.
func (e *ProtocolError) Error() string {
	b := []byte("ssmmp: ")
	if e.Type != "" {
		b = strconv.AppendQuote(b, e.Type)
		if e.MessageID != 0 {
			b = append(b, ' ')
			b = strconv.AppendInt(b, e.MessageID, 10)
		}
		b = append(b, ": "...)
	}
	if e.Line != 0 {
		b = append(b, "line "...)
		b = strconv.AppendInt(b, int64(e.Line), 10)
		b = append(b, ": "...)
	}
	if e.Field != "" {
		b = strconv.AppendQuote(b, e.Field)
		b = append(b, ": "...)
	}
	b = append(b, e.Reason...)
	if e.Value != "" {
		b = append(b, ": "...)
		b = strconv.AppendQuote(b, e.Value)
	}
	return string(b)
}

// Unwrap returns ErrLineTooLong when the status says so.
func (e *ProtocolError) Unwrap() error {
	if e.Status == StatusLineTooLong {
		return ErrLineTooLong
	}
	return nil
}

// AppendMessage appends m to dst as one physical line with its "\n" (PROTOCOL
// section 2). It is strict: a message that breaks the specification, or whose
// values would break the framing, is a *ProtocolError, and then the result is
// dst as it was.
func AppendMessage(dst []byte, m Message) ([]byte, error) {
	if m == nil {
		return dst, &ProtocolError{Status: StatusBadMessage, Reason: "no message"}
	}
	t, h := m.Type(), m.Head()
	c := codec{mode: writing, typ: t, messageID: h.MessageID, b: dst}
	c.b = append(c.b, heads[t]...)
	if h.MessageID <= 0 {
		c.failAt(2, "message_id", strconv.FormatInt(h.MessageID, 10), notID)
	}
	c.b = strconv.AppendInt(c.b, h.MessageID, 10)
	if k := subKey(t, h.SubType); k >= 0 {
		c.b = append(c.b, subKeys[t][k]...)
	} else {
		c.failAt(3, "sub_type", string(h.SubType), notSubType)
	}
	visit(m, &c)
	for i, x := range h.Extensions {
		if !validExtension(x.Name, x.Value) {
			c.failAt(c.lineOf(line(numLines))+i, x.Name, x.Value, notExtension)
			break
		}
		c.b = append(c.b, separator...)
		c.b = append(c.b, x.Name...)
		c.b = append(c.b, ": "...)
		c.b = append(c.b, x.Value...)
	}
	if len(c.b)-len(dst) > MaxLine && c.err == nil {
		c.err = tooLong(string(c.b[len(dst):]))
	}
	if c.err != nil {
		return dst, c.err
	}
	return append(c.b, '\n'), nil
}

// ParseMessage decodes one physical line, with or without its line end. It is
// as liberal as PROTOCOL section 2 says, and the message has canonical names
// and sub_types whatever the line had. Its strings are parts of line. Anything
// else is a *ProtocolError.
func ParseMessage(line string) (Message, error) {
	line = strings.TrimSuffix(line, "\n")
	line = strings.TrimSuffix(line, "\r")
	var c codec
	return c.parse(line, nil)
}

// Clone returns a copy of m that shares nothing with it, so it outlives the
// buffer of the Decoder that m came from.
func Clone(m Message) Message {
	m = m.shallow()
	h := m.Head()
	c := codec{mode: sizing}
	visit(m, &c)
	for _, x := range h.Extensions {
		c.size += len(x.Name) + len(x.Value)
	}
	c.mode = copying
	c.block.Grow(c.size)
	visit(m, &c)
	h.Extensions = owned(h.Extensions)
	for i := range h.Extensions {
		x := &h.Extensions[i]
		x.Name, x.Value = c.moved(x.Name), c.moved(x.Value)
	}
	// A SubType needs no copy: a decoder makes it one of the constants.
	return m
}

// heads holds, for each type, what stands before the contents of message_id.
var heads = func() (h [numTypes]string) {
	for t, name := range typeNames {
		h[t] = "type: " + name + " ~ message_id: "
	}
	return h
}()

// subKeys holds, for each hop in routes, the line sub_type with the separator
// before it, and nothing for a hop without that line.
var subKeys = func() (k [numTypes][]string) {
	for t, hops := range routes {
		for _, r := range hops {
			s := ""
			if r.sub != "" {
				s = keys[lineSubType] + string(r.sub)
			}
			k[t] = append(k[t], s)
		}
	}
	return k
}()

// subKey returns the index of sub among the routes of t, or -1.
func subKey(t Type, sub SubType) int {
	for i := range routes[t] {
		if routes[t][i].sub == sub {
			return i
		}
	}
	return -1
}

// parse decodes s, which has no line end. With reuse it returns, and keeps
// there, one value for each type.
//
// Most messages come from a strict encoder, so it first tries to read s as one;
// only when that fails it looks closer, and finds what is wrong with it.
func (c *codec) parse(s string, reuse *[numTypes]Message) (Message, error) {
	if len(s) > MaxLine {
		return nil, tooLong(s)
	}
	s = strings.TrimPrefix(s, " ")
	s = strings.TrimSuffix(s, separator)
	var m Message
	i := c.scanHead(s)
	if i > 0 {
		if m = c.scan(s, i, reuse); m != nil && !c.failed {
			return m, nil
		}
	}
	return c.look(s, i, m, reuse)
}

// scanHead reads type and message_id in their canonical form. It returns where
// they end, 0 when they have another form.
func (c *codec) scanHead(s string) int {
	const start = len("type: ")
	if len(s) < start {
		return 0
	}
	n := strings.IndexByte(s[start:], ' ')
	if n <= 0 {
		return 0
	}
	t := typeSlots[slot(s[start:start+n])]
	if t == 0 || !strings.HasPrefix(s, heads[t]) {
		return 0
	}
	i := len(heads[t])
	id, n := digits(s[i:])
	if n == 0 || id > math.MaxInt64 {
		return 0
	}
	c.typ, c.messageID = t, int64(id)
	return i + n
}

// scan decodes a message whose lines have the canonical names and order, from
// i on, where its head ends. The result is nil, or c.failed, when they have
// not.
func (c *codec) scan(s string, i int, reuse *[numTypes]Message) Message {
	t := c.typ
	for k, key := range subKeys[t] {
		if strings.HasPrefix(s[i:], key) {
			m := take(t, reuse)
			h := m.Head()
			h.MessageID = c.messageID
			h.SubType = routes[t][k].sub
			h.Extensions = h.Extensions[:0]
			c.mode, c.failed, c.s, c.i = scanning, false, s, i+len(key)
			visit(m, c)
			if c.i != len(s) && !c.failed {
				c.scanExtensions(h)
			}
			return m
		}
	}
	return nil
}

func (c *codec) scanExtensions(h *Header) {
	for c.i < len(c.s) {
		if !strings.HasPrefix(c.s[c.i:], separator) {
			c.failed = true
			return
		}
		rest := c.s[c.i+len(separator):]
		n := lineEnd(rest)
		name, value, _ := strings.Cut(rest[:n], ": ")
		if !validExtension(name, value) {
			c.failed = true
			return
		}
		h.Extensions = append(h.Extensions, Extension{name, value})
		c.i += len(separator) + n
	}
}

// look decodes a message whose lines have any order that the protocol allows,
// by first noting where each line stands. i is where scanHead found the end of
// its head, or 0, and m is what scan made of it, or nil.
func (c *codec) look(s string, i int, m Message, reuse *[numTypes]Message) (Message, error) {
	c.mode, c.err, c.s, c.seen = looking, nil, s, 0
	n := 0
	if i > 0 && (i == len(s) || strings.HasPrefix(s[i:], separator)) {
		s = s[i:]
	} else {
		s, n = c.head(s)
		if c.err != nil {
			return nil, c.err
		}
		c.typ = c.typeOf(c.typeName)
		if c.typ == 0 {
			return nil, c.failAt(1, "type", c.typeName, "unknown type")
		}
	}
	c.typeName = c.typ.String()
	if m == nil || m.Type() != c.typ {
		m = take(c.typ, reuse)
	}
	h := m.Head()
	h.MessageID = c.messageID
	h.SubType = ""
	h.Extensions = h.Extensions[:0]
	for number := 3; n < len(s); number++ {
		s, n = next(s, n)
		if !c.note(h, number, s[:n], len(c.s)-len(s)) {
			return nil, c.err
		}
	}
	if hasSubType(c.typ) {
		if value, ok := c.value(lineSubType); ok {
			if h.SubType, ok = subTypeOf(c.typ, value); !ok {
				c.fail(lineSubType, value, notSubType)
			}
		}
	}
	visit(m, c)
	if c.err != nil {
		return nil, c.err
	}
	return m, nil
}

// head reads type and message_id, or notes what is wrong with them. It returns
// s from its second line on, and the length of that line.
func (c *codec) head(s string) (string, int) {
	c.typ, c.typeName, c.messageID = 0, "", 0
	n := lineEnd(s)
	name, value, ok := strings.Cut(s[:n], ": ")
	switch {
	case s == "":
		c.failAt(1, "", "", "empty line")
	case !ok:
		c.failAt(1, "", s[:n], notLine)
	case name != "type":
		c.failAt(1, name, value, "the first line must be type")
	}
	if c.err != nil {
		return "", 0
	}
	c.typeName = value

	if n == len(s) {
		c.failAt(0, "message_id", "", "missing line")
		return "", 0
	}
	s, n = next(s, n)
	name, value, ok = strings.Cut(s[:n], ": ")
	id, isID := parseID(value)
	switch {
	case !ok:
		c.failAt(2, "", s[:n], notLine)
	case name != "message_id":
		c.failAt(2, name, value, "the second line must be message_id")
	case !isID:
		c.failAt(2, name, value, notID)
	}
	c.messageID = id
	return s, n
}

// note remembers one line of the message that look reads, which begins at
// offset in it. It is false when there is something wrong with the line.
func (c *codec) note(h *Header, number int, text string, offset int) bool {
	n := strings.IndexByte(text, ':') // quicker, and nearly always right
	if n < 0 || n+1 == len(text) || text[n+1] != ' ' {
		n = strings.Index(text, ": ")
	}
	if n < 0 {
		c.failAt(number, "", text, notLine)
		return false
	}
	field, value := text[:n], text[n+len(": "):]
	if strings.HasPrefix(field, "x_") {
		if !validExtension(field, value) {
			c.failAt(number, field, value, notExtension)
			return false
		}
		h.Extensions = append(h.Extensions, Extension{field, value})
		return true
	}
	l, ok := c.lineNamed(field)
	if !ok {
		// The published code adds lines to session_response (PROTOCOL section 2).
		if c.typ == TypeSessionResponse && validText(text) {
			return true
		}
		c.failAt(number, field, value, "unknown line")
		return false
	}
	if c.seen&(1<<l) != 0 {
		c.failAt(number, field, value, "duplicate line")
		return false
	}
	c.seen |= 1 << l
	c.at[l] = span{
		start: uint32(offset + len(field) + len(": ")),
		size:  uint16(len(value)),
		line:  uint16(number),
	}
	return true
}

// lineNamed returns the line of c's type that has this name, or had it in the
// published code (PROTOCOL section 2).
func (c *codec) lineNamed(name string) (line, bool) {
	if name == "" {
		return 0, false
	}
	l := lineSlots[slot(name)]
	if lineNames[l] != name {
		return 0, false
	}
	if expected[c.typ]&(1<<l) != 0 {
		return l, true
	}
	switch {
	case c.typ == TypeSessionAck && l == lineServiceName:
		l = lineSourceServiceName
	case c.typ == TypeSessionAck && l == lineServiceInstanceID:
		l = lineSourceServiceInstanceID
	case c.typ == TypeTerminationInfo && l == lineSourceServiceInstanceNetworkAddress:
		l = lineServiceInstanceNetworkAddress
	case c.typ == TypeHardShutdownResponse && l == lineSourceServiceInstanceID:
		l = lineServiceInstanceID
	default:
		return 0, false
	}
	return l, true
}

// typeOf returns the type with this name, or that had it in the published
// code, where two pairs of types share a name and differ in their lines
// (PROTOCOL section 2). It is zero when there is none.
func (c *codec) typeOf(name string) Type {
	if name == "" {
		return 0
	}
	if t := typeSlots[slot(name)]; t != 0 && typeNames[t] == name {
		return t
	}
	agent := strings.Contains(c.s, keys[lineAgentNetworkAddress])
	switch {
	case name == "health_control_request" && agent:
		return TypeAgentHealthRequest
	case name == "health_control_request":
		return TypeInstanceHealthRequest
	case name == "health_control_response" && agent:
		return TypeAgentHealthResponse
	case name == "health_control_response":
		return TypeInstanceHealthResponse
	default:
		return 0
	}
}

// expected holds, for each type, the set of lines that it has.
var expected = func() (e [numTypes]uint32) {
	for t := Type(1); int(t) < numTypes; t++ {
		if hasSubType(t) {
			e[t] = 1 << lineSubType
		}
		for _, l := range specified(t) {
			e[t] |= 1 << l
		}
	}
	return e
}()

// typeSlots and lineSlots find a type or a line by its name: what stands in
// the name's slot either has that name, or nothing has.
var (
	typeSlots = func() (s [slots]Type) {
		for t := Type(1); int(t) < numTypes; t++ {
			s[slot(typeNames[t])] = t
		}
		return s
	}()
	lineSlots = func() (s [slots]line) {
		for l, name := range lineNames {
			s[slot(name)] = line(l)
		}
		return s
	}()
)

const slots = 128

// slot is a hash without collisions among the names of types, and among those
// of lines. The name is not empty.
func slot(name string) uint8 {
	return (uint8(len(name)) + 5*name[len(name)/2] + name[len(name)-1]) % slots
}

// take returns the message of type t to decode into.
func take(t Type, reuse *[numTypes]Message) Message {
	if reuse == nil {
		return newMessage(t)
	}
	if reuse[t] == nil {
		reuse[t] = newMessage(t)
	}
	return reuse[t]
}

// lineEnd returns where the first line of s ends: at a separator, or with s.
func lineEnd(s string) int {
	for i := 0; ; i++ {
		n := strings.IndexByte(s[i:], '~')
		if n < 0 {
			return len(s)
		}
		i += n
		if i > 0 && s[i-1] == ' ' && i+1 < len(s) && s[i+1] == ' ' {
			return i - 1
		}
	}
}

// next returns what follows the first line of s, which is n bytes long, and
// the length of the line there.
func next(s string, n int) (string, int) {
	if n == len(s) {
		return "", 0
	}
	s = s[n+len(separator):]
	return s, lineEnd(s)
}

// tooLong returns the error for a line that begins with s, and is longer than
// MaxLine. What it carries of the message is what s has of it.
func tooLong(s string) *ProtocolError {
	var c codec
	c.head(s[:min(len(s), MaxLine)])
	return &ProtocolError{
		Status:    StatusLineTooLong,
		Type:      clip(c.typeName),
		MessageID: c.messageID,
		Reason:    fmt.Sprintf("line longer than %d bytes", MaxLine),
	}
}
