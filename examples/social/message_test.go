package main

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
)

func parse(text string) (message, error) {
	return readMessage(bufio.NewReaderSize(strings.NewReader(text), linkBuffer))
}

func TestMessageForm(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		m    message
		text string
	}{
		{
			message{kind: "registration_request", id: 30970, lines: []string{"ann", "50% säfe"}},
			"Type: registration_request\nMessage_id: 30970\nLine_1: ann\nLine_2: 50%25 s%C3%A4fe\n\n",
		},
		{
			message{kind: "login_response", id: 7, status: 401, lines: []string{"wrong user or password"}},
			"Type: login_response\nMessage_id: 7\nStatus: 401\nLine_1: wrong user or password\n\n",
		},
		{
			message{kind: "a_request", id: 1<<63 - 1, lines: []string{"", " x: y ", "two\r\nlines\x00", "~ 日本 🙂"}},
			"Type: a_request\nMessage_id: 9223372036854775807\nLine_1: \nLine_2:  x: y \n" +
				"Line_3: two%0D%0Alines%00\nLine_4: ~ %E6%97%A5%E6%9C%AC %F0%9F%99%82\n\n",
		},
		{
			message{kind: errorResponse, status: 400},
			"Type: error_response\nMessage_id: 0\nStatus: 400\n\n",
		},
	} {
		b, err := appendMessage(nil, tt.m)
		if err != nil || string(b) != tt.text {
			t.Errorf("appendMessage(%v) = %q, %v; want %q", tt.m, b, err, tt.text)
		}
		// A reader also takes the line ends of other systems, and no space
		// before empty contents.
		for _, text := range []string{tt.text, strings.ReplaceAll(tt.text, "\n", "\r\n"), strings.ReplaceAll(tt.text, ": \n", ":\n")} {
			if m, err := parse(text); err != nil || !reflect.DeepEqual(m, tt.m) {
				t.Errorf("readMessage(%q) = %v, %v; want %v", text, m, err, tt.m)
			}
		}
	}
}

func TestMessageErrors(t *testing.T) {
	t.Parallel()
	const head = "Type: x_request\nMessage_id: 5\n"
	long := strings.Repeat("x", maxLine)
	for _, tt := range []struct {
		name, text   string
		line         int
		lineName     string
		id           int64
		status       int
		reasonPartly string
	}{
		{"empty", "\n", 1, "Type", 0, 400, "missing"},
		{"no type", "Message_id: 5\n\n", 1, "Type", 0, 400, `found "Message_id"`},
		{"http", "GET / HTTP/1.1\r\n\r\n", 1, "Type", 0, 400, "no \": \""},
		{"type in capitals", "Type: Login_request\n", 1, "Type", 0, 400, "not a type"},
		{"type too long", "Type: " + strings.Repeat("x", maxType+1) + "\n", 1, "Type", 0, 400, "not a type"},
		{"no id", "Type: x_request\n\n", 2, "Message_id", 0, 400, "missing"},
		{"id zero", "Type: x_request\nMessage_id: 0\n", 2, "Message_id", 0, 400, "positive integer"},
		{"id signed", "Type: x_request\nMessage_id: +5\n", 2, "Message_id", 0, 400, "positive integer"},
		{"id padded", "Type: x_request\nMessage_id: 05\n", 2, "Message_id", 0, 400, "positive integer"},
		{"id too large", "Type: x_request\nMessage_id: 9223372036854775808\n", 2, "Message_id", 0, 400, "positive integer"},
		{"status on a request", head + "Status: 200\n", 3, "Line_1", 5, 400, `found "Status"`},
		{"no status", "Type: x_response\nMessage_id: 5\n\n", 3, "Status", 5, 400, "missing"},
		{"status of two digits", "Type: x_response\nMessage_id: 5\nStatus: 20\n", 3, "Status", 5, 400, "not a status"},
		{"status padded", "Type: x_response\nMessage_id: 5\nStatus: 0200\n", 3, "Status", 5, 400, "not a status"},
		{"line left out", head + "Line_1: a\nLine_3: b\n", 4, "Line_2", 5, 400, `found "Line_3"`},
		{"line twice", head + "Line_1: a\nLine_1: b\n", 4, "Line_2", 5, 400, `found "Line_1"`},
		{"bare percent", head + "Line_1: 100%\n", 3, "Line_1", 5, 400, "hexadecimal"},
		{"bad escape", head + "Line_1: %+1\n", 3, "Line_1", 5, 400, "hexadecimal"},
		{"bad UTF-8", head + "Line_1: %FF\n", 3, "Line_1", 5, 400, "UTF-8"},
		{"eighth bit", head + "Line_1: \xc3\xa4\n", 3, "Line_1", 5, 400, "0xc3"},
		{"NUL", head + "Line_1: \x00\n", 3, "Line_1", 5, 400, "0x00"},
		{"CR within", head + "Line_1: a\rb\n", 3, "Line_1", 5, 400, "0x0d"},
		{"line too long", head + "Line_1: " + long + "\n\n", 3, "Line_1", 5, 413, "longer than 8192"},
		{"line without end", head + strings.Repeat(long, 10), 3, "Line_1", 5, 413, "longer than 8192"},
		{"too many lines", head + numbered(maxLines+1), maxLines + 3, "Line_41", 5, 413, "more than 40"},
	} {
		m, err := parse(tt.text)
		var wrong *protocolError
		if !errors.As(err, &wrong) {
			t.Errorf("%s: readMessage = %v, %v; want a protocolError", tt.name, m, err)
			continue
		}
		if wrong.Line != tt.line || wrong.Name != tt.lineName || wrong.ID != tt.id || wrong.Status != tt.status ||
			!strings.Contains(wrong.Error(), tt.reasonPartly) {
			t.Errorf("%s: readMessage: %+v", tt.name, wrong)
		}
	}
}

func numbered(n int) string {
	m := message{lines: make([]string, n)}
	var b strings.Builder
	for i := range n {
		m.lines = m.lines[:i]
		b.WriteString(m.lineName(4) + ": x\n")
	}
	return b.String() + "\n"
}

func TestMessageEnds(t *testing.T) {
	t.Parallel()
	const text = "Type: x_request\nMessage_id: 5\nLine_1: a\n\n"
	for n := range len(text) {
		want := io.ErrUnexpectedEOF
		if n == 0 {
			want = io.EOF
		}
		if _, err := parse(text[:n]); err != want {
			t.Errorf("readMessage(%q): %v, want %v", text[:n], err, want)
		}
	}
}

// A longest line passes, and a sender finds out before it sends a longer one.
func TestMessageBounds(t *testing.T) {
	t.Parallel()
	fits := message{kind: "x_request", id: 1, lines: []string{strings.Repeat("x", maxLine-len("Line_1: "))}}
	b, err := appendMessage(nil, fits)
	if err != nil {
		t.Fatal(err)
	}
	if m, err := parse(string(b)); err != nil || !reflect.DeepEqual(m, fits) {
		t.Errorf("the longest line does not come back: %v", err)
	}
	for _, m := range []message{
		{},
		{kind: "x_request"},
		{kind: "x_request", id: -1},
		{kind: "x_request", id: 1, status: 200},
		{kind: "x_response", id: 1},
		{kind: "x_response", id: 1, status: 1000},
		{kind: "x\nrequest", id: 1},
		{kind: "x_request", id: 1, lines: make([]string, maxLines+1)},
		{kind: "x_request", id: 1, lines: []string{fits.lines[0] + "x"}},
		{kind: "x_request", id: 1, lines: []string{strings.Repeat("%", maxLine/3)}},
	} {
		if b, err := appendMessage(nil, m); err == nil {
			t.Errorf("appendMessage took %.80q", b)
		}
	}
}

// What fills a chunk, a post, and an answer of ten posts fits in a message.
func TestLargestContentsFit(t *testing.T) {
	t.Parallel()
	var lines []string
	for range 10 {
		lines = append(lines, strings.Repeat("é", maxUser/2), "2026-01-02T03:04:05Z", strings.Repeat("é", maxPost/2))
	}
	for _, m := range []message{
		chunk("send_file_chunk", 1<<62, make([]byte, chunkSize)),
		{kind: "retrieve_last_10_posts_response", id: 1, status: 200, lines: lines},
	} {
		if _, err := appendMessage(nil, m); err != nil {
			t.Error(err)
		}
	}
}

type endless struct{ read int }

func (e *endless) Read(b []byte) (int, error) {
	e.read += len(b)
	for i := range b {
		b[i] = 'x'
	}
	return len(b), nil
}

func TestEndlessLineStops(t *testing.T) {
	t.Parallel()
	var e endless
	_, err := readMessage(bufio.NewReaderSize(&e, linkBuffer))
	var wrong *protocolError
	if !errors.As(err, &wrong) || wrong.Status != statusTooLarge {
		t.Errorf("readMessage: %v, want status 413", err)
	}
	if e.read > linkBuffer {
		t.Errorf("%d bytes were read of an endless line, want at most %d", e.read, linkBuffer)
	}
}

func TestChunks(t *testing.T) {
	t.Parallel()
	for n := 1; n <= 8; n++ {
		data := bytes.Repeat([]byte{0xff}, n)
		m := chunk("send_file_chunk", 1, data)
		size, err := chunkLen(m)
		got, err2 := chunkBytes(m)
		if err != nil || err2 != nil || size != int64(n) || !bytes.Equal(got, data) {
			t.Errorf("%d bytes come back as %v, length %d: %v, %v", n, got, size, err, err2)
		}
	}
	for _, lines := range [][]string{
		nil, {""}, {"a"}, {"AAA"}, {"AA=A"}, {"===="}, {"AB=="}, {"AAAA", "AAAA"}, {"AA A"}, {"AAA\n"}, {"AAAA\n\n\n\n"},
		{strings.Repeat("AAAA", chunkSize/3+1)},
	} {
		if got, err := chunkBytes(message{kind: "send_file_chunk", id: 1, lines: lines}); err == nil {
			t.Errorf("chunkBytes(%q) = %v, want an error", lines, got)
		}
	}
}

func FuzzReadMessage(f *testing.F) {
	f.Add([]byte("Type: registration_request\nMessage_id: 30970\nLine_1: ann\nLine_2: s%C3%A4fe\n\n"))
	f.Add([]byte("Type: login_response\r\nMessage_id: 0\r\nStatus: 401\r\nLine_1:\r\n\r\n"))
	f.Add([]byte("Type: send_file_chunk\nMessage_id: 1\nLine_1: AAE=\n\nType: "))
	f.Add([]byte("Type: x_request\nMessage_id: 1\nLine_1: %\n\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bufio.NewReaderSize(bytes.NewReader(data), linkBuffer)
		for {
			m, err := readMessage(r)
			var wrong *protocolError
			if errors.As(err, &wrong) {
				if wrong.Line < 1 || wrong.Name == "" || wrong.Status != 400 && wrong.Status != 413 {
					t.Fatalf("error without a place: %+v", wrong)
				}
				reason := message{kind: errorResponse, id: wrong.ID, status: wrong.Status, lines: []string{clip(wrong.Error(), maxReason)}}
				if _, err := appendMessage(nil, reason); err != nil {
					t.Fatalf("error that cannot be answered: %v", err)
				}
				return
			}
			if err == io.EOF || err == io.ErrUnexpectedEOF {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if n, err := chunkLen(m); err == nil {
				if b, err := chunkBytes(m); err == nil && int64(len(b)) != n {
					t.Fatalf("chunk of %d bytes counted as %d", len(b), n)
				}
			}
			b, err := appendMessage(nil, m)
			if err != nil {
				t.Fatalf("%v: read, but cannot be sent: %v", m, err)
			}
			again, err := parse(string(b))
			if err != nil || !reflect.DeepEqual(again, m) {
				t.Fatalf("%v comes back as %v, %v", m, again, err)
			}
		}
	})
}
