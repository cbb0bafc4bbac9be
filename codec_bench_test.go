package ssmmp

import (
	"bytes"
	"strings"
	"testing"
)

// The messages that the benchmarks read and write: two of the most frequent,
// and what a relay adds to one.
var benchLines = []struct{ name, line string }{
	{"request", "type: session_request ~ message_id: 4711 ~ sub_type: service_to_agent" +
		" ~ source_service_name: service-1 ~ source_service_instance_id: 1042" +
		" ~ source_service_instance_network_address: 192.168.1.17 ~ source_plug_name: P6" +
		" ~ dest_service_name: service-4 ~ dest_socket_name: S6"},
	{"response", "type: session_response ~ message_id: 4711 ~ sub_type: Manager_to_agent" +
		" ~ source_service_name: service-1 ~ source_service_instance_id: 1042" +
		" ~ dest_service_name: service-4 ~ dest_service_instance_id: 1043 ~ dest_socket_name: S6" +
		" ~ dest_service_instance_network_address: 192.168.1.18 ~ dest_socket_port: 54003 ~ status: 200"},
}

// A repeater is a stream of the same bytes for ever.
type repeater struct {
	data []byte
	at   int
}

func (r *repeater) Read(p []byte) (int, error) {
	n := copy(p, r.data[r.at:])
	r.at = (r.at + n) % len(r.data)
	return n, nil
}

var (
	sinkMessage Message
	sinkInt     int
)

// BenchmarkFloorCopy copies a message.
func BenchmarkFloorCopy(b *testing.B) {
	for _, bm := range benchLines {
		b.Run(bm.name, func(b *testing.B) {
			dst := make([]byte, len(bm.line))
			for b.Loop() {
				sinkInt += copy(dst, bm.line)
			}
		})
	}
}

// BenchmarkFloorScan finds every '~' of a message.
func BenchmarkFloorScan(b *testing.B) {
	for _, bm := range benchLines {
		b.Run(bm.name, func(b *testing.B) {
			line := []byte(bm.line)
			for b.Loop() {
				for rest := line; ; {
					n := bytes.IndexByte(rest, '~')
					if n < 0 {
						break
					}
					sinkInt += n
					rest = rest[n+1:]
				}
			}
		})
	}
}

// BenchmarkEncode appends a message to a buffer.
func BenchmarkEncode(b *testing.B) {
	for _, bm := range benchLines {
		b.Run(bm.name, func(b *testing.B) {
			m := mustParse(b, bm.line)
			buf := make([]byte, 0, 1024)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := AppendMessage(buf, m); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkDecode reads borrowed messages from a stream.
func BenchmarkDecode(b *testing.B) {
	for _, bm := range benchLines {
		b.Run(bm.name, func(b *testing.B) { benchDecode(b, bm.line) })
	}
}

// BenchmarkDecodeShuffled does it with lines in another order.
func BenchmarkDecodeShuffled(b *testing.B) {
	for _, bm := range benchLines {
		b.Run(bm.name, func(b *testing.B) { benchDecode(b, reversed(bm.line)) })
	}
}

func benchDecode(b *testing.B, line string) {
	// Whole lines fill the buffer, so the benchmark moves no halves of them.
	d := NewDecoder(&repeater{data: []byte(strings.Repeat(line+"\n", firstBuffer/(len(line)+1)))})
	b.ReportAllocs()
	for b.Loop() {
		m, err := d.Decode()
		if err != nil {
			b.Fatal(err)
		}
		sinkMessage = m
	}
}

// BenchmarkParse decodes a message that its caller owns.
func BenchmarkParse(b *testing.B) {
	for _, bm := range benchLines {
		b.Run(bm.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				m, err := ParseMessage(bm.line)
				if err != nil {
					b.Fatal(err)
				}
				sinkMessage = m
			}
		})
	}
}

// BenchmarkClone copies a borrowed message.
func BenchmarkClone(b *testing.B) {
	for _, bm := range benchLines {
		b.Run(bm.name, func(b *testing.B) {
			m := mustParse(b, bm.line)
			b.ReportAllocs()
			for b.Loop() {
				sinkMessage = Clone(m)
			}
		})
	}
}

// reversed returns line with all lines after message_id in the opposite order.
func reversed(line string) string {
	parts := strings.Split(line, separator)
	for i, j := 2, len(parts)-1; i < j; i, j = i+1, j-1 {
		parts[i], parts[j] = parts[j], parts[i]
	}
	return strings.Join(parts, separator)
}

func mustParse(tb testing.TB, line string) Message {
	tb.Helper()
	m, err := ParseMessage(line)
	if err != nil {
		tb.Fatal(err)
	}
	return m
}
