package ssmmp

import (
	"math"
	"strconv"
	"strings"
)

// FormatSockets returns the contents of the line socket_configuration, as also
// stands on an instance's command line: "S1, 54000 & S2, 54001".
func FormatSockets(sockets []SocketPort) string {
	return string(appendSockets(nil, sockets))
}

// ParseSockets reads what FormatSockets writes, with the liberties of PROTOCOL
// section 2. Its error is a *ProtocolError.
func ParseSockets(s string) ([]SocketPort, error) {
	v, ok := parseSockets(nil, s)
	if !ok {
		return nil, badList(lineSocketConfiguration, s, notSockets)
	}
	return v, nil
}

// FormatPlugs returns the contents of the line plug_configuration, as also
// stands on an instance's command line: "P1, S4, B & P2, S2, C".
func FormatPlugs(plugs []PlugTarget) string {
	return string(appendPlugs(nil, plugs))
}

// ParsePlugs reads what FormatPlugs writes, with the liberties of PROTOCOL
// section 2. Its error is a *ProtocolError.
func ParsePlugs(s string) ([]PlugTarget, error) {
	v, ok := parsePlugs(nil, s)
	if !ok {
		return nil, badList(linePlugConfiguration, s, notPlugs)
	}
	return v, nil
}

func badList(l line, s, reason string) error {
	return &ProtocolError{Status: StatusBadMessage, Field: lineNames[l], Value: clip(s), Reason: reason}
}

// appendNames appends "(A, B, C)", and nothing for no names.
func appendNames(b []byte, names []string) []byte {
	for i, name := range names {
		if i == 0 {
			b = append(b, '(')
		} else {
			b = append(b, ", "...)
		}
		b = append(b, name...)
	}
	if len(names) > 0 {
		b = append(b, ')')
	}
	return b
}

func appendSockets(b []byte, sockets []SocketPort) []byte {
	for i, s := range sockets {
		if i > 0 {
			b = append(b, " & "...)
		}
		b = append(b, s.Socket...)
		b = append(b, ", "...)
		b = strconv.AppendUint(b, uint64(s.Port), 10)
	}
	return b
}

func appendPlugs(b []byte, plugs []PlugTarget) []byte {
	for i, p := range plugs {
		if i > 0 {
			b = append(b, " & "...)
		}
		b = append(b, p.Plug...)
		b = append(b, ", "...)
		b = append(b, p.Socket...)
		b = append(b, ", "...)
		b = append(b, p.Service...)
	}
	return b
}

// parseNames, parseSockets and parsePlugs append the entries of a list to v.

func parseNames(v []string, s string) ([]string, bool) {
	l := openList(s)
	if !l.more() {
		return v, !l.bad
	}
	v = room(v, strings.Count(l.s, ", ")+strings.Count(l.s, "; "))
	for l.more() {
		if len(v) > 0 {
			l.comma()
		}
		v = append(v, l.name())
	}
	return v, !l.bad
}

func parseSockets(v []SocketPort, s string) ([]SocketPort, bool) {
	l := openList(s)
	if !l.more() {
		return v, !l.bad
	}
	v = room(v, strings.Count(l.s, " & "))
	for l.more() {
		if len(v) > 0 {
			l.and()
		}
		var e SocketPort
		e.Socket = l.name()
		l.comma()
		e.Port = l.port()
		v = append(v, e)
	}
	return v, !l.bad
}

func parsePlugs(v []PlugTarget, s string) ([]PlugTarget, bool) {
	l := openList(s)
	if !l.more() {
		return v, !l.bad
	}
	v = room(v, strings.Count(l.s, " & "))
	for l.more() {
		if len(v) > 0 {
			l.and()
		}
		var e PlugTarget
		e.Plug = l.name()
		l.comma()
		e.Socket = l.name()
		l.comma()
		e.Service = l.name()
		v = append(v, e)
	}
	return v, !l.bad
}

// room gives an empty v without capacity enough of it for a list with that
// many separators, in one allocation.
func room[T any](v []T, separators int) []T {
	if cap(v) > separators {
		return v
	}
	return make([]T, 0, separators+1)
}

// A listReader reads the entries of a list.
type listReader struct {
	s   string // what is still to be read
	bad bool   // it is not a list
}

// openList begins to read s, without the brackets and the trailing separator
// that it may have.
func openList(s string) listReader {
	if s == "" || s == "()" {
		return listReader{}
	}
	t := trimSeparator(s)
	if len(t) > len("()") && t[0] == '(' && t[len(t)-1] == ')' {
		t = t[1 : len(t)-1]
		if len(t) == len(s)-2 {
			t = trimSeparator(t)
		}
	}
	return listReader{s: t, bad: t == ""}
}

func trimSeparator(s string) string {
	for _, sep := range [...]string{" & ", ", ", "; "} {
		if t, ok := strings.CutSuffix(s, sep); ok {
			return t
		}
	}
	return s
}

func (l *listReader) more() bool { return l.s != "" && !l.bad }

func (l *listReader) name() string {
	n := nameLen(l.s)
	if n == 0 {
		l.bad = true
	}
	name := l.s[:n]
	l.s = l.s[n:]
	return name
}

func (l *listReader) port() uint16 {
	p, n := digits(l.s)
	if n == 0 || p > math.MaxUint16 {
		l.bad = true
	}
	l.s = l.s[n:]
	return uint16(p)
}

func (l *listReader) comma() {
	if !strings.HasPrefix(l.s, ", ") && !strings.HasPrefix(l.s, "; ") {
		l.bad = true
		return
	}
	l.s = l.s[2:]
}

func (l *listReader) and() {
	if !strings.HasPrefix(l.s, " & ") {
		l.bad = true
		return
	}
	l.s = l.s[3:]
}
