package ssmmp

import (
	"bytes"
	"errors"
	"io"
	"math"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// genMessage draws any message that the encoder accepts.
func genMessage(t *rapid.T) Message {
	name := rapid.StringMatching(`[A-Za-z0-9_][A-Za-z0-9_.-]{0,12}`)
	longName := rapid.StringMatching(`[A-Za-z0-9_][A-Za-z0-9_.-]{100,127}`)
	anyName := rapid.OneOf(name, name, name, longName)
	id := rapid.OneOf(rapid.Int64Range(1, 9999), rapid.Int64Range(1, math.MaxInt64))
	port := rapid.Uint16Range(1, math.MaxUint16)
	addr := rapid.Custom(func(t *rapid.T) netip.Addr {
		b := rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "address")
		if rapid.Bool().Draw(t, "IPv4") {
			return netip.AddrFrom4([4]byte(b[:4]))
		}
		return netip.AddrFrom16([16]byte(b)).Unmap()
	})
	values := map[reflect.Type]func() any{
		reflect.TypeFor[string]():     func() any { return anyName.Draw(t, "name") },
		reflect.TypeFor[InstanceID](): func() any { return InstanceID(id.Draw(t, "id")) },
		reflect.TypeFor[netip.Addr](): func() any { return addr.Draw(t, "addr") },
		reflect.TypeFor[uint16]():     func() any { return port.Draw(t, "port") },
		reflect.TypeFor[Status]():     func() any { return Status(rapid.Uint16Range(100, 599).Draw(t, "status")) },
		reflect.TypeFor[[]string](): func() any {
			var v []string
			for range rapid.IntRange(0, 4).Draw(t, "names") {
				v = append(v, anyName.Draw(t, "name"))
			}
			return v
		},
		reflect.TypeFor[[]SocketPort](): func() any {
			var v []SocketPort
			for range rapid.IntRange(0, 4).Draw(t, "sockets") {
				v = append(v, SocketPort{anyName.Draw(t, "socket"), port.Draw(t, "port")})
			}
			return v
		},
		reflect.TypeFor[[]PlugTarget](): func() any {
			var v []PlugTarget
			for range rapid.IntRange(0, 4).Draw(t, "plugs") {
				v = append(v, PlugTarget{anyName.Draw(t, "plug"), anyName.Draw(t, "socket"), anyName.Draw(t, "service")})
			}
			return v
		},
	}
	typ := Type(rapid.IntRange(1, numTypes-1).Draw(t, "type"))
	m := newMessage(typ)
	v := reflect.ValueOf(m).Elem()
	for i := 1; i < v.NumField(); i++ {
		v.Field(i).Set(reflect.ValueOf(values[v.Field(i).Type()]()))
	}
	empty := func(what string) bool { return rapid.Bool().Draw(t, "empty "+what) }
	switch m := m.(type) {
	case *SessionResponse:
		if !m.Status.Success() {
			if empty("id") {
				m.DestServiceInstanceID = 0
			}
			if empty("address") {
				m.DestServiceInstanceNetworkAddress = netip.Addr{}
			}
			if empty("port") {
				m.DestSocketPort = 0
			}
		}
	case *SessionAck:
		if !m.Status.Success() {
			if empty("port") {
				m.SourcePlugPort = 0
			}
			if empty("new port") {
				m.DestSocketNewPort = 0
			}
		}
	case *DestSessionCloseInfo:
		if empty("plug") {
			m.SourcePlugName = ""
		}
	}
	h := m.Head()
	h.MessageID = id.Draw(t, "message_id")
	h.SubType = rapid.SampledFrom(routes[typ]).Draw(t, "route").sub
	text := rapid.OneOf(rapid.StringMatching(`[a-z ~&,:;()é]{0,12}`), rapid.String())
	for range rapid.IntRange(0, 3).Draw(t, "extensions") {
		h.Extensions = append(h.Extensions, Extension{
			Name:  "x_" + anyName.Draw(t, "extension"),
			Value: text.Filter(validText).Draw(t, "text"),
		})
	}
	return m
}

// genDecorated draws a line that a liberal decoder takes for the same message.
func genDecorated(t *rapid.T, line string) string {
	does := func(what string) bool { return rapid.Bool().Draw(t, what) }
	parts := strings.Split(line, " ~ ")
	// Extensions keep their order, so only lines of the specification move.
	var fields, extensions []string
	for _, p := range parts[2:] {
		switch name, value, _ := strings.Cut(p, ": "); {
		case strings.HasPrefix(name, "x_"):
			extensions = append(extensions, p)
		case strings.HasSuffix(name, "_repository") || strings.HasSuffix(name, "_configuration"):
			if does("semicolons") {
				value = strings.ReplaceAll(value, ", ", "; ")
			}
			if does("other brackets") {
				if t, ok := strings.CutPrefix(value, "("); ok {
					value = strings.TrimSuffix(t, ")")
				} else {
					value = "(" + value + ")"
				}
			}
			if does("trailing separator") && value != "" && value != "()" {
				value += rapid.SampledFrom([]string{", ", " & ", "; "}).Draw(t, "separator")
			}
			fields = append(fields, name+": "+value)
		default:
			fields = append(fields, p)
		}
	}
	if does("shuffle") {
		fields = rapid.Permutation(fields).Draw(t, "order")
	}
	if does("extensions first") {
		fields = append(extensions, fields...)
	} else {
		fields = append(fields, extensions...)
	}
	line = strings.Join(append(parts[:2:2], fields...), " ~ ")
	if does("leading space") {
		line = " " + line
	}
	if does("trailing line separator") {
		line += " ~ "
	}
	return line + rapid.SampledFrom([]string{"", "\n", "\r\n", "\r"}).Draw(t, "end")
}

// What the encoder writes, the decoders read, however it is dressed.
func TestRoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		m := genMessage(t)
		b, err := AppendMessage(nil, m)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := ParseMessage(string(b)); err != nil || !reflect.DeepEqual(back, m) {
			t.Fatalf("%q: %v\n got %+v\nwant %+v", b, err, back, m)
		}
		text, err := FormatText(m)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := ParseText(text); err != nil || !reflect.DeepEqual(back, m) {
			t.Fatalf("%q: %v\n got %+v\nwant %+v", text, err, back, m)
		}
		line := genDecorated(t, strings.TrimSuffix(string(b), "\n"))
		if back, err := ParseMessage(line); err != nil || !reflect.DeepEqual(back, m) {
			t.Fatalf("%q: %v\n got %+v\nwant %+v", line, err, back, m)
		}
		d := NewDecoder(strings.NewReader(strings.TrimRight(line, "\r\n") + "\r\n"))
		if back, err := d.Decode(); err != nil || !reflect.DeepEqual(Clone(back), m) {
			t.Fatalf("%q: %v\n got %+v\nwant %+v", line, err, back, m)
		}
	})
}

func addSeeds(f *testing.F, add func(string)) {
	for _, line := range readHops(f) {
		add(line)
		add(reversed(line))
		add(" " + line + " ~ x_a: b ~ \r\n")
	}
	for _, s := range []string{
		"", " ", "~", " ~ ", "type: ", "type: session_ack ~ message_id: 1",
		"type: health_control_request ~ message_id: 1 ~ sub_type: agent_to_service ~ service_instance_id: 7 ~ service_instance_network_address: ::1",
		"type: session_ack ~ message_id: 1 ~ sub_type: service_to_agent ~ service_name: A ~ service_instance_id: 7 ~ source_plug_port: 0 ~ dest_socket_new_port: 0 ~ status: 502",
	} {
		add(s)
	}
}

// checkFixpoint fails unless m encodes, and what that decodes to encodes again
// to the same. Canonical names can be longer than those that came, so at the
// limit a line can be too long.
func checkFixpoint(t *testing.T, m Message) {
	b, err := AppendMessage(nil, m)
	if errors.Is(err, ErrLineTooLong) {
		return
	}
	if err != nil {
		t.Fatalf("decoded %+v, and cannot encode it: %v", m, err)
	}
	back, err := ParseMessage(string(b))
	if err != nil {
		t.Fatalf("encoded %q, and cannot decode it: %v", b, err)
	}
	again, err := AppendMessage(nil, back)
	if err != nil || !bytes.Equal(again, b) {
		t.Fatalf("encoded %q, then %q, %v", b, again, err)
	}
	if !reflect.DeepEqual(Clone(m), back) {
		t.Fatalf("%q: decoded %+v, then %+v", b, m, back)
	}
}

func checkError(t *testing.T, err error) {
	var p *ProtocolError
	if !errors.As(err, &p) || p.Reason == "" || !p.Status.Valid() {
		t.Fatalf("error %#v", err)
	}
	// The longest quoted form of a byte is "\xff".
	if s := err.Error(); len(s) > 4096 || strings.ContainsAny(s, "\r\n\x00") {
		t.Fatalf("error %q", s)
	}
}

func FuzzParseMessage(f *testing.F) {
	addSeeds(f, func(s string) { f.Add(s) })
	f.Fuzz(func(t *testing.T, line string) {
		m, err := ParseMessage(line)
		if err != nil {
			checkError(t, err)
			return
		}
		checkFixpoint(t, m)
	})
}

func FuzzParseText(f *testing.F) {
	addSeeds(f, func(s string) { f.Add(strings.ReplaceAll(s, " ~ ", "\n")) })
	f.Fuzz(func(t *testing.T, text string) {
		m, err := ParseText(text)
		if err != nil {
			checkError(t, err)
			return
		}
		checkFixpoint(t, m)
		canonical, err := FormatText(m)
		if errors.Is(err, ErrLineTooLong) {
			return
		}
		back, err2 := ParseText(canonical)
		if err != nil || err2 != nil || !reflect.DeepEqual(back, m) {
			t.Fatalf("%q: %v, %v, %+v", canonical, err, err2, back)
		}
	})
}

// chunks is a reader that returns a few bytes at a time.
type chunks struct {
	data []byte
	size int
}

func (c *chunks) Read(p []byte) (int, error) {
	if len(c.data) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), c.size)], c.data)
	c.data = c.data[n:]
	return n, nil
}

// A Decoder says of a stream what ParseMessage says of each of its lines.
func FuzzDecoder(f *testing.F) {
	addSeeds(f, func(s string) { f.Add([]byte(s+"\n"+s+"\r\n\n"+s), uint8(7)) })
	f.Add([]byte(strings.Repeat("a", MaxLine+3)), uint8(255))
	f.Fuzz(func(t *testing.T, stream []byte, size uint8) {
		d := NewDecoder(&chunks{bytes.Clone(stream), int(size) + 1})
		lines := strings.Split(string(stream), "\n")
		for i, line := range lines {
			got, err := d.Decode()
			if cap(d.buf) > max(firstBuffer, min(2*len(stream), lastBuffer)) {
				t.Fatalf("buffer of %d bytes for a stream of %d", cap(d.buf), len(stream))
			}
			if errors.Is(err, ErrLineTooLong) {
				if len(line) <= MaxLine {
					t.Fatalf("%v: a line of %d bytes", err, len(line))
				}
				return
			}
			if i == len(lines)-1 {
				want := io.EOF
				if line != "" {
					want = io.ErrUnexpectedEOF
				}
				if got != nil || err != want {
					t.Fatalf("at the end: %v, %v, want %v", got, err, want)
				}
				return
			}
			want, wantErr := ParseMessage(line)
			if wantErr != nil {
				checkError(t, err)
				if err.Error() != wantErr.Error() {
					t.Fatalf("%q: %v, want %v", line, err, wantErr)
				}
				continue
			}
			if err != nil || !reflect.DeepEqual(Clone(got), want) {
				t.Fatalf("%q: %v\n got %+v\nwant %+v", line, err, got, want)
			}
		}
	})
}

func FuzzSocketsAndPlugs(f *testing.F) {
	for _, s := range []string{
		"", "()", "(", ", ", " & ", "S1, 54000 & S2, 54001", "(S1; 54000)", "S1, 54000 & ", "S1, 0", "S1, 65536",
		"P1, S4, B & P2, S2, C", "(P1; S4; B), ", "P1, S4", "A, B, C",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		sockets, err := ParseSockets(s)
		if err != nil {
			checkError(t, err)
		} else if back, err := ParseSockets(FormatSockets(sockets)); err != nil || !reflect.DeepEqual(back, sockets) {
			t.Fatalf("%q: sockets %v, then %v, %v", s, sockets, back, err)
		}
		plugs, err := ParsePlugs(s)
		if err != nil {
			checkError(t, err)
		} else if back, err := ParsePlugs(FormatPlugs(plugs)); err != nil || !reflect.DeepEqual(back, plugs) {
			t.Fatalf("%q: plugs %v, then %v, %v", s, plugs, back, err)
		}
		if cap(sockets) > len(s)+1 || cap(plugs) > len(s)+1 {
			t.Fatalf("%q: room for %d sockets, %d plugs", s, cap(sockets), cap(plugs))
		}
	})
}
