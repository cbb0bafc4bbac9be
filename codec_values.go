package ssmmp

import (
	"math"
	"net/netip"
	"strconv"
	"strings"
)

// A mode is what a codec does with each line that a message shows it.
type mode uint8

const (
	scanning mode = iota // decode lines that stand in the specified order
	looking              // decode lines that were noted before
	writing              // encode
	sizing               // add up the lengths of strings
	copying              // move strings into a block of their own
	listing              // list the lines
)

// A codec goes through the lines of one message. Each type names its lines in
// one method, lines, for every mode.
type codec struct {
	mode      mode
	failed    bool           // scanning: the message has another form
	typ       Type           // of the message, zero when not known
	typeName  string         // looking: its name, also when it is unknown
	messageID int64          // of the message, zero when not known
	err       *ProtocolError // looking, writing: the first fault

	s string // scanning, looking: the message
	i int    // scanning: where the next line is expected

	seen uint32         // looking: the set of lines in the message
	at   [numLines]span // looking: where they stand

	b     []byte          // writing
	size  int             // sizing
	block strings.Builder // copying
	list  []line          // listing
}

// A span is the place of a line's contents in a message. A message is at most
// MaxLine long and begins with its type, so the sizes fit.
type span struct {
	start uint32
	size  uint16
	line  uint16 // number of the line, from 1
}

// The kinds of contents. Those with OrEmpty may be empty, then the value is
// zero.

func (c *codec) name(l line, v *string)            { c.nameLine(l, v, false) }
func (c *codec) nameOrEmpty(l line, v *string)     { c.nameLine(l, v, true) }
func (c *codec) id(l line, v *InstanceID)          { c.idLine(l, v, false) }
func (c *codec) idOrEmpty(l line, v *InstanceID)   { c.idLine(l, v, true) }
func (c *codec) addr(l line, v *netip.Addr)        { c.addrLine(l, v, false) }
func (c *codec) addrOrEmpty(l line, v *netip.Addr) { c.addrLine(l, v, true) }
func (c *codec) port(l line, v *uint16)            { c.portLine(l, v, false) }
func (c *codec) portOrEmpty(l line, v *uint16)     { c.portLine(l, v, true) }

func (c *codec) nameLine(l line, v *string, empty bool) {
	switch c.mode {
	case scanning:
		s := c.after(l)
		n := nameLen(s)
		if n == 0 && !empty {
			c.failed = true
		}
		*v = s[:n]
		c.i += n
	case writing:
		if !ValidName(*v) && !(empty && *v == "") {
			c.fail(l, *v, notName)
			return
		}
		c.b = append(append(c.b, keys[l]...), *v...)
	case looking:
		s, ok := c.value(l)
		if ok && !ValidName(s) && !(empty && s == "") {
			c.fail(l, s, notName)
		}
		*v = s
	case sizing:
		c.size += len(*v)
	case copying:
		*v = c.moved(*v)
	case listing:
		c.list = append(c.list, l)
	}
}

func (c *codec) idLine(l line, v *InstanceID, empty bool) {
	switch c.mode {
	case scanning:
		id, n := digits(c.after(l))
		if n == 0 && !empty || id > math.MaxInt64 {
			c.failed = true
		}
		*v = InstanceID(id)
		c.i += n
	case writing:
		if *v < 0 || *v == 0 && !empty {
			c.fail(l, strconv.FormatInt(int64(*v), 10), notID)
			return
		}
		c.b = append(c.b, keys[l]...)
		if *v != 0 {
			c.b = strconv.AppendInt(c.b, int64(*v), 10)
		}
	case looking:
		*v = 0
		s, ok := c.value(l)
		if !ok || empty && s == "" {
			return
		}
		id, ok := parseID(s)
		if !ok {
			c.fail(l, s, notID)
		}
		*v = InstanceID(id)
	case listing:
		c.list = append(c.list, l)
	}
}

func (c *codec) addrLine(l line, v *netip.Addr, empty bool) {
	switch c.mode {
	case scanning:
		s := c.after(l)
		a, n := scanAddr(s)
		if n == 0 && !empty {
			c.failed = true
		}
		*v = a
		c.i += n
	case writing:
		a := v.Unmap()
		if a.Zone() != "" || !a.IsValid() && !empty {
			c.fail(l, v.String(), notAddr)
			return
		}
		c.b = append(c.b, keys[l]...)
		if a.IsValid() {
			c.b = a.AppendTo(c.b)
		}
	case looking:
		*v = netip.Addr{}
		s, ok := c.value(l)
		if !ok || empty && s == "" {
			return
		}
		a, n := scanAddr(s)
		if n == 0 || n < len(s) {
			c.fail(l, s, notAddr)
		}
		*v = a
	case listing:
		c.list = append(c.list, l)
	}
}

func (c *codec) portLine(l line, v *uint16, empty bool) {
	switch c.mode {
	case scanning:
		p, n := digits(c.after(l))
		if n == 0 && !empty || p > math.MaxUint16 {
			c.failed = true
		}
		*v = uint16(p)
		c.i += n
	case writing:
		if *v == 0 && !empty {
			c.fail(l, "0", notPort)
			return
		}
		c.b = append(c.b, keys[l]...)
		if *v != 0 {
			c.b = strconv.AppendUint(c.b, uint64(*v), 10)
		}
	case looking:
		*v = 0
		s, ok := c.value(l)
		if !ok || empty && s == "" {
			return
		}
		p, ok := parsePort(s)
		if !ok {
			c.fail(l, s, notPort)
		}
		*v = p
	case listing:
		c.list = append(c.list, l)
	}
}

// ackPort is a port of session_ack, where a peer may write 0 for no port.
func (c *codec) ackPort(l line, v *uint16) {
	if c.mode == looking && c.seen&(1<<l) != 0 && c.text(l) == "0" {
		*v = 0
		return
	}
	c.portOrEmpty(l, v)
}

func (c *codec) status(l line, v *Status) {
	switch c.mode {
	case scanning:
		s := c.after(l)
		st, ok := scanStatus(s)
		if !ok {
			c.failed = true
			return
		}
		*v = st
		c.i += 3
	case writing:
		if !v.Valid() {
			c.fail(l, strconv.Itoa(int(*v)), notStatus)
			return
		}
		c.b = append(c.b, keys[l]...)
		c.b = append(c.b, byte('0'+*v/100), byte('0'+*v/10%10), byte('0'+*v%10))
	case looking:
		*v = 0
		s, ok := c.value(l)
		if !ok {
			return
		}
		st, ok := scanStatus(s)
		if !ok || len(s) != 3 {
			c.fail(l, s, notStatus)
		}
		*v = st
	case listing:
		c.list = append(c.list, l)
	}
}

func (c *codec) names(l line, v *[]string) {
	switch c.mode {
	case scanning:
		*v = scanned(c, l, *v, parseNames)
	case looking:
		*v = looked(c, l, *v, parseNames, notNames)
	case writing:
		for _, name := range *v {
			if !ValidName(name) {
				c.fail(l, name, notName)
				return
			}
		}
		c.b = append(c.b, keys[l]...)
		c.b = appendNames(c.b, *v)
	case sizing:
		for _, name := range *v {
			c.size += len(name)
		}
	case copying:
		*v = owned(*v)
		for i := range *v {
			(*v)[i] = c.moved((*v)[i])
		}
	case listing:
		c.list = append(c.list, l)
	}
}

func (c *codec) sockets(l line, v *[]SocketPort) {
	switch c.mode {
	case scanning:
		*v = scanned(c, l, *v, parseSockets)
	case looking:
		*v = looked(c, l, *v, parseSockets, notSockets)
	case writing:
		for _, s := range *v {
			if !ValidName(s.Socket) {
				c.fail(l, s.Socket, notName)
				return
			}
			if s.Port == 0 {
				c.fail(l, "0", notPort)
				return
			}
		}
		c.b = append(c.b, keys[l]...)
		c.b = appendSockets(c.b, *v)
	case sizing:
		for _, s := range *v {
			c.size += len(s.Socket)
		}
	case copying:
		*v = owned(*v)
		for i := range *v {
			(*v)[i].Socket = c.moved((*v)[i].Socket)
		}
	case listing:
		c.list = append(c.list, l)
	}
}

func (c *codec) plugs(l line, v *[]PlugTarget) {
	switch c.mode {
	case scanning:
		*v = scanned(c, l, *v, parsePlugs)
	case looking:
		*v = looked(c, l, *v, parsePlugs, notPlugs)
	case writing:
		for _, p := range *v {
			for _, name := range [...]string{p.Plug, p.Socket, p.Service} {
				if !ValidName(name) {
					c.fail(l, name, notName)
					return
				}
			}
		}
		c.b = append(c.b, keys[l]...)
		c.b = appendPlugs(c.b, *v)
	case sizing:
		for _, p := range *v {
			c.size += len(p.Plug) + len(p.Socket) + len(p.Service)
		}
	case copying:
		*v = owned(*v)
		for i := range *v {
			p := &(*v)[i]
			p.Plug, p.Socket, p.Service = c.moved(p.Plug), c.moved(p.Socket), c.moved(p.Service)
		}
	case listing:
		c.list = append(c.list, l)
	}
}

// need is for a line that may be empty, but not in this message.
func (c *codec) need(l line, has bool) {
	if has {
		return
	}
	switch c.mode {
	case scanning:
		c.failed = true
	case writing:
		c.fail(l, "", needed)
	case looking:
		if c.err == nil {
			c.fail(l, c.text(l), needed)
		}
	}
}

// after returns what follows the name of line l, which is expected next.
func (c *codec) after(l line) string {
	s, k := c.s[c.i:], keys[l]
	if len(s) < len(k) || s[:len(k)] != k {
		c.failed = true
		return ""
	}
	c.i += len(k)
	return s[len(k):]
}

// value returns the noted contents of line l. It is a fault if there are none.
func (c *codec) value(l line) (s string, ok bool) {
	if c.err != nil {
		return "", false
	}
	if c.seen&(1<<l) == 0 {
		c.fail(l, "", "missing line")
		return "", false
	}
	return c.text(l), true
}

func (c *codec) text(l line) string {
	at := c.at[l]
	return c.s[at.start : at.start+uint32(at.size)]
}

// scanned decodes the list that is expected next, into the capacity of v.
func scanned[T any](c *codec, l line, v []T, parse func([]T, string) ([]T, bool)) []T {
	s := c.after(l)
	n := lineEnd(s)
	v, ok := parse(v[:0], s[:n])
	if !ok {
		c.failed = true
	}
	c.i += n
	return v
}

// looked decodes the list that was noted as line l, into the capacity of v.
func looked[T any](c *codec, l line, v []T, parse func([]T, string) ([]T, bool), reason string) []T {
	s, ok := c.value(l)
	if !ok {
		return v[:0]
	}
	v, ok = parse(v[:0], s)
	if !ok {
		c.fail(l, s, reason)
	}
	return v
}

// moved returns a copy of s in the block.
func (c *codec) moved(s string) string {
	n := c.block.Len()
	c.block.WriteString(s)
	return c.block.String()[n:]
}

// owned returns a copy of v, nil when it is empty.
func owned[T any](v []T) []T {
	if len(v) == 0 {
		return nil
	}
	return append(make([]T, 0, len(v)), v...)
}

// What values can be other than what they should be.
const (
	notName      = "not a name"
	notID        = "not a positive integer"
	notAddr      = "not an IP address"
	notPort      = "not a port"
	notStatus    = "not a status"
	notNames     = "not a list of names"
	notSockets   = "not a list of sockets and ports"
	notPlugs     = "not a list of plugs, sockets and services"
	notLine      = `not a "line_name: contents"`
	notSubType   = "not a sub_type of this type"
	notExtension = "not an extension line"
	needed       = "missing, and the status is a success"
)

// fail notes a fault in line l, unless there is one.
func (c *codec) fail(l line, value, reason string) {
	number := int(c.at[l].line)
	switch {
	case c.mode == writing:
		number = c.lineOf(l)
	case c.seen&(1<<l) == 0:
		number = 0
	}
	c.failAt(number, lineNames[l], value, reason)
}

// failAt notes a fault in the line of that number, unless there is one. It
// copies its arguments: they may lie in a buffer, the error does not.
func (c *codec) failAt(number int, field, value, reason string) *ProtocolError {
	if c.err == nil {
		if c.mode == writing {
			c.typeName = c.typ.String()
		}
		c.err = &ProtocolError{
			Status:    StatusBadMessage,
			Type:      clip(c.typeName),
			MessageID: c.messageID,
			Line:      number,
			Field:     clip(field),
			Value:     clip(value),
			Reason:    reason,
		}
	}
	return c.err
}

// lineOf returns the number of line l in a message of the type that c writes,
// and of the first line after all for any other.
func (c *codec) lineOf(l line) int {
	number := 3
	if hasSubType(c.typ) {
		number++
	}
	for i, has := range specified(c.typ) {
		if has == l {
			return number + i
		}
	}
	return number + len(specified(c.typ))
}

// clip returns a copy of s, or of its beginning, that fits in an error.
func clip(s string) string {
	const longest = 256
	if len(s) > longest {
		return s[:longest-len("...")] + "..."
	}
	return strings.Clone(s)
}
