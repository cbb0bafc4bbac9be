package ssmmp

import (
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
)

const (
	wellLine   = "type: service_instance_health_response ~ message_id: 1 ~ sub_type: service_instance_to_agent ~ service_instance_id: 7 ~ status: 200"
	sickLine   = "type: service_instance_health_response ~ message_id: 2 ~ sub_type: service_instance_to_agent ~ service_instance_id: 8 ~ status: 500"
	brokenLine = "type: service_instance_health_response ~ message_id: 3 ~ sub_type: service_instance_to_agent ~ service_instance_id: 0 ~ status: 200"
)

// However the bytes arrive, the messages are the same.
func TestDecoderReads(t *testing.T) {
	t.Parallel()
	hops := readHops(t)
	stream := strings.Join(hops, "\r\n") + "\n"
	for name, r := range map[string]io.Reader{
		"at once":        strings.NewReader(stream),
		"byte by byte":   iotest.OneByteReader(strings.NewReader(stream)),
		"by halves":      iotest.HalfReader(strings.NewReader(stream)),
		"EOF with bytes": iotest.DataErrReader(strings.NewReader(stream)),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := NewDecoder(r)
			for _, line := range hops {
				got, err := d.Decode()
				if want := mustParse(t, line); err != nil || !reflect.DeepEqual(Clone(got), want) {
					t.Fatalf("%v\n got %+v\nwant %+v", err, got, want)
				}
			}
			for range 2 {
				if m, err := d.Decode(); m != nil || err != io.EOF {
					t.Errorf("at the end: %v, %v", m, err)
				}
			}
			if len(d.buf) != firstBuffer {
				t.Errorf("buffer of %d bytes", len(d.buf))
			}
		})
	}
}

func TestDecoderEnds(t *testing.T) {
	t.Parallel()
	d := NewDecoder(strings.NewReader(wellLine + "\n" + sickLine))
	if _, err := d.Decode(); err != nil {
		t.Error(err)
	}
	if got := d.Buffered(); got != len(sickLine) {
		t.Errorf("%d bytes buffered, want %d", got, len(sickLine))
	}
	if m, err := d.Decode(); m != nil || err != io.ErrUnexpectedEOF {
		t.Errorf("half a line: %v, %v", m, err)
	}

	d = NewDecoder(iotest.TimeoutReader(iotest.OneByteReader(strings.NewReader(wellLine + "\n"))))
	if m, err := d.Decode(); m != nil || err != iotest.ErrTimeout {
		t.Errorf("timeout: %v, %v", m, err)
	}
	if _, err := d.Decode(); err != nil {
		t.Errorf("after the timeout: %v", err)
	}

	if m, err := NewDecoder(silent{}).Decode(); m != nil || err != io.ErrNoProgress {
		t.Errorf("no progress: %v, %v", m, err)
	}
}

// silent is a reader that breaks the contract of io.Reader.
type silent struct{}

func (silent) Read([]byte) (int, error) { return 0, nil }

// A bad line, also an empty one, costs only itself.
func TestDecoderRecovers(t *testing.T) {
	t.Parallel()
	d := NewDecoder(strings.NewReader(strings.Join([]string{wellLine, brokenLine, "", sickLine, ""}, "\n")))
	if _, err := d.Decode(); err != nil {
		t.Fatal(err)
	}
	var p *ProtocolError
	if m, err := d.Decode(); m != nil || !errors.As(err, &p) || p.MessageID != 3 || p.Field != "service_instance_id" || p.Value != "0" {
		t.Errorf("broken line: %v, %v", m, err)
	}
	if m, err := d.Decode(); m != nil || !errors.As(err, &p) || p.Line != 1 {
		t.Errorf("empty line: %v, %v", m, err)
	}
	m, err := d.Decode()
	if err != nil || m.(*InstanceHealthResponse).ServiceInstanceID != 8 {
		t.Errorf("%v, %v", m, err)
	}
}

// An error keeps its own copy of what it quotes.
func TestErrorOutlivesBuffer(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("~", 3000)
	d := NewDecoder(strings.NewReader(brokenLine + "\n" + long + "\n" + long + "\n"))
	_, err := d.Decode()
	before := strings.Clone(err.Error())
	for range 3 {
		if _, err := d.Decode(); err == nil {
			t.Error("no error")
		}
	}
	if after := err.Error(); after != before {
		t.Errorf("the error was %s, became %s", before, after)
	}
}

// The decoder uses its values again, and what a message had does not show
// through in the next.
func TestDecoderReuses(t *testing.T) {
	t.Parallel()
	const (
		full  = "type: execution_request ~ message_id: 1 ~ agent_network_address: 10.0.0.1 ~ service_name: A ~ service_instance_id: 7 ~ socket_configuration: S1, 1 & S2, 2 ~ plug_configuration: P1, S1, B ~ x_a: 1"
		empty = "type: execution_request ~ message_id: 2 ~ agent_network_address: fd00::1 ~ service_name: B ~ service_instance_id: 8 ~ socket_configuration:  ~ plug_configuration: "
		given = "type: session_response ~ message_id: 1 ~ sub_type: agent_to_service ~ source_service_name: A ~ source_service_instance_id: 7 ~ dest_service_name: B ~ dest_service_instance_id: 8 ~ dest_socket_name: S4 ~ dest_service_instance_network_address: 10.0.0.2 ~ dest_socket_port: 54003 ~ status: 200"
		none  = "type: session_response ~ message_id: 2 ~ sub_type: agent_to_service ~ source_service_name: A ~ source_service_instance_id: 7 ~ dest_service_name: B ~ dest_service_instance_id:  ~ dest_socket_name: S4 ~ dest_service_instance_network_address:  ~ dest_socket_port:  ~ status: 503"
	)
	for _, lines := range [][]string{
		{full, empty, full}, {full, reversed(empty), reversed(full)},
		{given, none, given}, {given, reversed(none), reversed(given)},
		{wellLine, brokenLine, sickLine}, {reversed(given), brokenLine, none},
	} {
		d := NewDecoder(strings.NewReader(strings.Join(lines, "\n") + "\n"))
		seen := map[Type]Message{}
		for _, line := range lines {
			want, wantErr := ParseMessage(line)
			got, err := d.Decode()
			if (err == nil) != (wantErr == nil) {
				t.Errorf("%q: %v", line, err)
			}
			if err != nil {
				continue
			}
			if !reflect.DeepEqual(Clone(got), want) {
				t.Errorf("%q\n got %+v\nwant %+v", line, got, want)
			}
			if first, ok := seen[got.Type()]; ok && first != got {
				t.Errorf("%s: another value", got.Type())
			}
			seen[got.Type()] = got
		}
	}
}

// A message that is used when it is no longer valid shows it under the race
// detector; a clone never does.
func TestBorrowedMessage(t *testing.T) {
	t.Parallel()
	const line = "type: execution_request ~ message_id: 1 ~ agent_network_address: 10.0.0.1 ~ service_name: A ~ service_instance_id: 7 ~ socket_configuration: S1, 1 & S2, 2 ~ plug_configuration: P1, S1, B ~ x_a: 1"
	d := NewDecoder(strings.NewReader(line + "\n" + wellLine + "\n"))
	m, err := d.Decode()
	if err != nil {
		t.Fatal(err)
	}
	borrowed, kept := m.(*ExecutionRequest), Clone(m)
	if _, err := d.Decode(); err != nil {
		t.Fatal(err)
	}
	if want := mustParse(t, line); !reflect.DeepEqual(kept, want) {
		t.Errorf("the clone became %+v, want %+v", kept, want)
	}
	if poison {
		for _, s := range []string{borrowed.ServiceName, borrowed.SocketConfiguration[1].Socket, borrowed.PlugConfiguration[0].Service, borrowed.Extensions[0].Name, borrowed.Extensions[0].Value} {
			if s != strings.Repeat("\xff", len(s)) {
				t.Errorf("a borrowed string is still %q", s)
			}
		}
	}
}

// A clone shares no list either.
func TestClone(t *testing.T) {
	t.Parallel()
	const line = "type: execution_request ~ message_id: 1 ~ agent_network_address: 10.0.0.1 ~ service_name: A ~ service_instance_id: 7 ~ socket_configuration: S1, 1 & S2, 2 ~ plug_configuration: P1, S1, B ~ x_a: 1"
	m, want := mustParse(t, line).(*ExecutionRequest), mustParse(t, line)
	c := Clone(m)
	m.ServiceName = "changed"
	m.SocketConfiguration[0] = SocketPort{}
	m.PlugConfiguration[0] = PlugTarget{}
	m.Extensions[0] = Extension{}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got %+v, want %+v", c, want)
	}
	for _, line := range readHops(t) {
		if m := mustParse(t, line); !reflect.DeepEqual(Clone(m), m) {
			t.Errorf("the clone of %+v is %+v", m, Clone(m))
		}
	}
}

// endless is a line without an end.
type endless struct{ left int }

func (e *endless) Read(p []byte) (int, error) {
	if e.left == 0 {
		return 0, io.EOF
	}
	n := min(e.left, len(p))
	for i := range p[:n] {
		p[i] = 'a'
	}
	e.left -= n
	return n, nil
}

// A line that does not end is given up soon, with little memory, and for good.
func TestDecoderEndlessLine(t *testing.T) {
	t.Parallel()
	const gigabyte = 1 << 30
	r := &endless{gigabyte}
	d := NewDecoder(io.MultiReader(strings.NewReader(wellLine+"\ntype: session_ack ~ message_id: 9 ~ x_a: "), r))
	if _, err := d.Decode(); err != nil {
		t.Fatal(err)
	}
	var first error
	for range 3 {
		m, err := d.Decode()
		var p *ProtocolError
		if m != nil || !errors.Is(err, ErrLineTooLong) || !errors.As(err, &p) || p.Status != StatusLineTooLong || p.Type != "session_ack" || p.MessageID != 9 {
			t.Errorf("%v, %#v", m, err)
		}
		if first == nil {
			first = err
		}
		if err != first {
			t.Errorf("%v, then %v", first, err)
		}
	}
	if cap(d.buf) > lastBuffer {
		t.Errorf("buffer of %d bytes", cap(d.buf))
	}
	if read := gigabyte - r.left; read > lastBuffer {
		t.Errorf("read %d bytes", read)
	}
}

// The limit counts the line without its line end.
func TestDecoderLongestLine(t *testing.T) {
	t.Parallel()
	const start = "type: initiation_response ~ message_id: 5 ~ status: 200 ~ x_pad: "
	for _, test := range []struct {
		length int
		end    string
		ok     bool
	}{
		{MaxLine, "\n", true}, {MaxLine, "\r\n", true},
		{MaxLine + 1, "\n", false}, {MaxLine + 1, "\r\n", false}, {2 * MaxLine, "\n", false},
	} {
		line := start + strings.Repeat("v", test.length-len(start)) + test.end
		d := NewDecoder(strings.NewReader(wellLine + "\n" + line + wellLine + "\n"))
		if _, err := d.Decode(); err != nil {
			t.Fatal(err)
		}
		m, err := d.Decode()
		if test.ok && err == nil {
			if got := len(m.Head().Extension("x_pad")); got != test.length-len(start) {
				t.Errorf("%d bytes and %q: value of %d bytes", test.length, test.end, got)
			}
			_, err = d.Decode()
		}
		if (err == nil) != test.ok || !test.ok && !errors.Is(err, ErrLineTooLong) {
			t.Errorf("%d bytes and %q: %v", test.length, test.end, err)
		}
		if _, err := d.Decode(); !test.ok && !errors.Is(err, ErrLineTooLong) {
			t.Errorf("%d bytes and %q, then: %v", test.length, test.end, err)
		}
		if cap(d.buf) > lastBuffer {
			t.Errorf("%d bytes and %q: buffer of %d bytes", test.length, test.end, cap(d.buf))
		}
	}
}

// What PROTOCOL section 2 costs in memory. Not parallel: it counts allocations.
func TestAllocations(t *testing.T) {
	if poison {
		t.Skip("the race detector allocates")
	}
	for _, line := range readHops(t) {
		m := mustParse(t, line)
		lists := 0.0
		switch m.(type) {
		case *InitiationRequest:
			lists = 1
		case *ExecutionRequest:
			lists = 2
		}
		buf := make([]byte, 0, MaxLine)
		if n := testing.AllocsPerRun(100, func() { _, _ = AppendMessage(buf, m) }); n != 0 {
			t.Errorf("%s: encoding allocates %v times", m.Type(), n)
		}
		if n := testing.AllocsPerRun(100, func() { _, _ = ParseMessage(line) }); n != 1+lists {
			t.Errorf("%s: parsing allocates %v times", m.Type(), n)
		}
		if n := testing.AllocsPerRun(100, func() { _ = Clone(m) }); n > 2+lists {
			t.Errorf("%s: cloning allocates %v times", m.Type(), n)
		}
		for _, line := range []string{line, line + " ~ x_a: 1", reversed(line)} {
			d := NewDecoder(&repeater{data: []byte(line + "\n")})
			if n := testing.AllocsPerRun(100, func() { _, _ = d.Decode() }); n != 0 {
				t.Errorf("%s: decoding allocates %v times", line, n)
			}
		}
	}
}

// What a long message needed is given back with the next one: a peer that sends
// one of each type has a Decoder keep little.
func TestDecoderKeepsLittle(t *testing.T) {
	t.Parallel()
	var stream strings.Builder
	for _, line := range readHops(t) {
		stream.WriteString(line + strings.Repeat(" ~ x_a: ", (MaxLine-len(line))/len(" ~ x_a: ")) + "\n")
	}
	stream.WriteString(wellLine + "\n")
	d := NewDecoder(strings.NewReader(stream.String()))
	for {
		m, err := d.Decode()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		lines := 0
		for _, m := range d.reuse {
			if m != nil {
				lines += cap(m.Head().Extensions)
			}
		}
		if most := 2 * MaxLine / len(" ~ x_a: "); lines > most {
			t.Fatalf("after a %s there is room for %d extension lines, want %d at the most", m.Type(), lines, most)
		}
	}
}
