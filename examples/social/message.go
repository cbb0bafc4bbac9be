package main

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Bounds of the application protocol. Whatever is within them fits in memory
// many times over; whatever is not ends the connection.
const (
	maxLine  = 8 << 10 // bytes of one line, without its line end
	maxLines = 40      // Line_n lines of one message
	maxType  = 64      // bytes of a message's type

	// chunkSize is how many bytes of a file one chunk carries: in base64 they
	// fill a line of 8000 bytes.
	chunkSize = 6000
)

// Statuses, with the meanings that HTTP gives them.
const (
	statusContinue     = 100 // go on with the stream; another response follows
	statusOK           = 200
	statusBadRequest   = 400
	statusUnauthorized = 401
	statusForbidden    = 403
	statusNotFound     = 404
	statusConflict     = 409
	statusTooLarge     = 413
	statusInternal     = 500
	statusBadGateway   = 502 // a session broke
	statusUnavailable  = 503 // no session could be opened
	statusTimeout      = 504 // a session gave no answer in time
	statusDiskFull     = 507
)

// errorResponse is the type of an answer to what was not a request that the
// receiver knows.
const errorResponse = "error_response"

// A protocolError says what is wrong with the bytes of a message. The framing
// can no longer be relied on, so a connection ends with it.
type protocolError struct {
	Line   int    // number of the line in its message, from 1; 0 for the message as a whole
	Name   string // name that the line has or should have, or the message's type
	ID     int64  // the message's id, 0 where it was not yet known
	Status int    // how it is answered: 400 or 413
	Reason string // for a person
}

func (e *protocolError) Error() string {
	if e.Line == 0 {
		return fmt.Sprintf("%q: %s", e.Name, e.Reason)
	}
	return fmt.Sprintf("line %d %q: %s", e.Line, e.Name, e.Reason)
}

// A message is one message of the application protocol.
type message struct {
	kind   string   // contents of Type
	id     int64    // Message_id, positive; 0 only in an answer to what had none
	status int      // Status, three digits; 0 in all but responses
	lines  []string // contents of Line_1, Line_2, ... as the users wrote them: UTF-8, not escaped
}

// isResponse reports whether messages of a type carry a status.
func isResponse(kind string) bool { return strings.HasSuffix(kind, "_response") }

// isRequest reports whether messages of a type are to be answered.
func isRequest(kind string) bool { return strings.HasSuffix(kind, "_request") }

// responseKind is the type of the response to a type of request.
func responseKind(request string) string {
	return strings.TrimSuffix(request, "_request") + "_response"
}

// response returns the answer to m.
func (m message) response(status int, lines ...string) message {
	return message{kind: responseKind(m.kind), id: m.id, status: status, lines: lines}
}

// wrong returns an error that condemns m as a whole.
func (m message) wrong(reason string) *protocolError {
	return &protocolError{Name: m.kind, ID: m.id, Status: statusBadRequest, Reason: reason}
}

// readMessage reads the next message. The error is io.EOF where the stream
// ends between two messages, io.ErrUnexpectedEOF where it ends inside one, a
// *protocolError, or what the reader returned.
func readMessage(r *bufio.Reader) (message, error) {
	var m message
	for n := 1; ; n++ {
		want := m.lineName(n)
		bad := func(status int, format string, args ...any) (message, error) {
			return message{}, &protocolError{
				Line: n, Name: want, ID: m.id, Status: status, Reason: fmt.Sprintf(format, args...),
			}
		}
		raw, err := r.ReadSlice('\n')
		if errors.Is(err, io.EOF) && (n > 1 || len(raw) > 0) {
			err = io.ErrUnexpectedEOF
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return message{}, err
		}
		raw = bytes.TrimSuffix(bytes.TrimSuffix(raw, []byte("\n")), []byte("\r"))
		if len(raw) > maxLine || err != nil {
			return bad(statusTooLarge, "longer than %d bytes", maxLine)
		}
		for _, b := range raw {
			if b < ' ' || b > '~' {
				return bad(statusBadRequest, "byte 0x%02x is not printable 7-bit ASCII", b)
			}
		}
		if len(raw) == 0 {
			if !strings.HasPrefix(want, "Line_") {
				return bad(statusBadRequest, "missing: the message ends before it")
			}
			return m, nil
		}
		name, value, ok := bytes.Cut(raw, []byte(": "))
		if !ok {
			name, ok = bytes.CutSuffix(raw, []byte(":"))
		}
		switch {
		case !ok:
			return bad(statusBadRequest, "no \": \" between a name and its contents")
		case string(name) != want:
			return bad(statusBadRequest, "found %q in its place", clip(string(name), maxType))
		case len(m.lines) == maxLines:
			return bad(statusTooLarge, "more than %d lines", maxLines)
		}
		if reason := m.setLine(n, string(value)); reason != "" {
			return bad(statusBadRequest, "%s", reason)
		}
	}
}

// lineName is the name that the nth line of m has. Those before it are known.
func (m *message) lineName(n int) string {
	switch {
	case n == 1:
		return "Type"
	case n == 2:
		return "Message_id"
	case n == 3 && isResponse(m.kind):
		return "Status"
	default:
		return "Line_" + strconv.Itoa(len(m.lines)+1)
	}
}

// setLine keeps the contents of the nth line, or says what is wrong with them.
func (m *message) setLine(n int, value string) string {
	switch {
	case n == 1:
		if !validType(value) {
			return fmt.Sprintf("%q is not a type", clip(value, maxType))
		}
		m.kind = value
	case n == 2:
		id, err := strconv.ParseInt(value, 10, 64)
		if err != nil || id < 0 || id == 0 && !isResponse(m.kind) || strconv.FormatInt(id, 10) != value {
			return fmt.Sprintf("%q is not a positive integer", clip(value, maxType))
		}
		m.id = id
	case n == 3 && isResponse(m.kind):
		status, err := strconv.Atoi(value)
		if err != nil || !validStatus(status) || len(value) != 3 {
			return fmt.Sprintf("%q is not a status", clip(value, maxType))
		}
		m.status = status
	default:
		text, err := unescape(value)
		if err != nil {
			return err.Error()
		}
		m.lines = append(m.lines, text)
	}
	return ""
}

// appendMessage appends m as it travels. It refuses what readMessage would not
// take.
func appendMessage(b []byte, m message) ([]byte, error) {
	switch {
	case !validType(m.kind):
		return b, fmt.Errorf("message type %q cannot be sent", m.kind)
	case m.id < 0 || m.id == 0 && !isResponse(m.kind):
		return b, fmt.Errorf("%s: message id %d cannot be sent", m.kind, m.id)
	case isResponse(m.kind) != validStatus(m.status):
		return b, fmt.Errorf("%s: status %d cannot be sent", m.kind, m.status)
	case len(m.lines) > maxLines:
		return b, fmt.Errorf("%s: %d lines are more than %d", m.kind, len(m.lines), maxLines)
	}
	b = append(append(b, "Type: "...), m.kind...)
	b = strconv.AppendInt(append(b, "\nMessage_id: "...), m.id, 10)
	b = append(b, '\n')
	if isResponse(m.kind) {
		b = strconv.AppendInt(append(b, "Status: "...), int64(m.status), 10)
		b = append(b, '\n')
	}
	for i, text := range m.lines {
		start := len(b)
		b = strconv.AppendInt(append(b, "Line_"...), int64(i+1), 10)
		b = appendEscaped(append(b, ": "...), text)
		if len(b)-start > maxLine {
			return b[:start], fmt.Errorf("%s: Line_%d is longer than %d bytes", m.kind, i+1, maxLine)
		}
		b = append(b, '\n')
	}
	return append(b, '\n'), nil
}

func validType(s string) bool {
	for i := range len(s) {
		c := s[i]
		letter := c >= 'a' && c <= 'z'
		if !letter && (i == 0 || c != '_' && (c < '0' || c > '9')) {
			return false
		}
	}
	return s != "" && len(s) <= maxType
}

func validStatus(status int) bool { return status >= 100 && status < 600 }

// appendEscaped appends text with each byte that is not printable 7-bit ASCII,
// and the percent sign itself, as % and two hexadecimal digits.
func appendEscaped(b []byte, text string) []byte {
	const digits = "0123456789ABCDEF"
	plain := 0 // where the text that needs no escape begins
	for i := range len(text) {
		if c := text[i]; c < ' ' || c > '~' || c == '%' {
			b = append(append(b, text[plain:i]...), '%', digits[c>>4], digits[c&15])
			plain = i + 1
		}
	}
	return append(b, text[plain:]...)
}

// unescape undoes appendEscaped.
func unescape(s string) (string, error) {
	if !strings.Contains(s, "%") {
		return s, nil
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			b = append(b, s[i])
			continue
		}
		if i+2 >= len(s) {
			return "", errors.New("% without two hexadecimal digits after it")
		}
		v, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
		if err != nil {
			return "", errors.New("% without two hexadecimal digits after it")
		}
		b = append(b, byte(v))
		i += 2
	}
	if !utf8.Valid(b) {
		return "", errors.New("not UTF-8 when unescaped")
	}
	return string(b), nil
}

// clip shortens text for a person to at most n bytes of valid UTF-8.
func clip(text string, n int) string {
	text = strings.ToValidUTF8(text, "?")
	if len(text) <= n {
		return text
	}
	for n > 0 && !utf8.RuneStart(text[n]) {
		n--
	}
	return text[:n] + "..."
}

// chunk returns a message that carries data, a piece of a file.
func chunk(kind string, id int64, data []byte) message {
	return message{kind: kind, id: id, lines: []string{base64.StdEncoding.EncodeToString(data)}}
}

// chunkBytes returns the piece of a file that m carries.
func chunkBytes(m message) ([]byte, error) {
	n, err := chunkLen(m)
	if err != nil {
		return nil, err
	}
	data, err := base64.StdEncoding.Strict().DecodeString(m.lines[0])
	if err != nil || int64(len(data)) != n { // the decoder skips line ends
		return nil, m.wrong("Line_1 is not base64")
	}
	return data, nil
}

// chunkLen returns how many bytes of a file m carries, without decoding them.
func chunkLen(m message) (int64, error) {
	if len(m.lines) != 1 {
		return 0, m.wrong("want exactly Line_1")
	}
	s := m.lines[0]
	n := len(s) / 4 * 3
	switch {
	case s == "" || len(s)%4 != 0:
		return 0, m.wrong("Line_1 is not base64")
	case strings.HasSuffix(s, "=="):
		n -= 2
	case strings.HasSuffix(s, "="):
		n--
	}
	if n > chunkSize {
		return 0, m.wrong(fmt.Sprintf("carries more than %d bytes", chunkSize))
	}
	return int64(n), nil
}
