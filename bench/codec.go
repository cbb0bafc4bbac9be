package main

import (
	"bytes"
	"flag"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/ssmmp/ssmmp"
	"github.com/ssmmp/ssmmp/bench/sessionpb"
	"google.golang.org/protobuf/proto"
)

// A subject is one message in every form that is measured.
type subject struct {
	name    string
	line    string        // as text, without its line end
	message ssmmp.Message // for the codec
	known   peer          // for protobuf, with the same fields
	oneof   peer          // the same in a oneof
}

// A peer is a message for protobuf, and its encoding.
type peer struct {
	message proto.Message
	wire    []byte
}

func newPeer(m proto.Message) peer {
	wire, err := proto.Marshal(m)
	if err != nil {
		fatal(err.Error())
	}
	return peer{m, wire}
}

func subjects() []subject {
	request := subject{line: "type: session_request ~ message_id: 4711 ~ sub_type: service_to_agent" +
		" ~ source_service_name: service-1 ~ source_service_instance_id: 1042" +
		" ~ source_service_instance_network_address: 192.168.1.17 ~ source_plug_name: P6" +
		" ~ dest_service_name: service-4 ~ dest_socket_name: S6"}
	q := parse[*ssmmp.SessionRequest](&request)
	pbRequest := &sessionpb.SessionRequest{
		MessageId:                           q.MessageID,
		SubType:                             sessionpb.SubType_SUB_TYPE_SERVICE_TO_AGENT,
		SourceServiceName:                   q.SourceServiceName,
		SourceServiceInstanceId:             int64(q.SourceServiceInstanceID),
		SourceServiceInstanceNetworkAddress: q.SourceServiceInstanceNetworkAddress.String(),
		SourcePlugName:                      q.SourcePlugName,
		DestServiceName:                     q.DestServiceName,
		DestSocketName:                      q.DestSocketName,
	}
	request.known = newPeer(pbRequest)
	request.oneof = newPeer(&sessionpb.Message{
		Kind: &sessionpb.Message_SessionRequest{SessionRequest: pbRequest},
	})

	response := subject{line: "type: session_response ~ message_id: 4711 ~ sub_type: Manager_to_agent" +
		" ~ source_service_name: service-1 ~ source_service_instance_id: 1042" +
		" ~ dest_service_name: service-4 ~ dest_service_instance_id: 1043 ~ dest_socket_name: S6" +
		" ~ dest_service_instance_network_address: 192.168.1.18 ~ dest_socket_port: 54003 ~ status: 200"}
	p := parse[*ssmmp.SessionResponse](&response)
	pbResponse := &sessionpb.SessionResponse{
		MessageId:                         p.MessageID,
		SubType:                           sessionpb.SubType_SUB_TYPE_MANAGER_TO_AGENT,
		SourceServiceName:                 p.SourceServiceName,
		SourceServiceInstanceId:           int64(p.SourceServiceInstanceID),
		DestServiceName:                   p.DestServiceName,
		DestServiceInstanceId:             int64(p.DestServiceInstanceID),
		DestSocketName:                    p.DestSocketName,
		DestServiceInstanceNetworkAddress: p.DestServiceInstanceNetworkAddress.String(),
		DestSocketPort:                    uint32(p.DestSocketPort),
		Status:                            uint32(p.Status),
	}
	response.known = newPeer(pbResponse)
	response.oneof = newPeer(&sessionpb.Message{
		Kind: &sessionpb.Message_SessionResponse{SessionResponse: pbResponse},
	})
	return []subject{request, response}
}

// parse sets what the codec makes of s's line, and returns it.
func parse[M ssmmp.Message](s *subject) M {
	m, err := ssmmp.ParseMessage(s.line)
	if err != nil {
		fatal(err.Error())
	}
	s.name, s.message = m.Type().String(), m
	return m.(M)
}

// The names of works.
const (
	find        = "find every ~"
	decode      = "decode"
	decodeOrder = "decode, other order"
	decodeClone = "decode and Clone"
	decodePeer  = "protobuf decode"
	encode      = "encode"
	encodePeer  = "protobuf encode"
	oneof       = " with oneof"
)

// A work is something to measure.
type work struct {
	name string
	run  func(b *testing.B)
}

// A measured is what all rounds made of one work.
type measured struct {
	ns     []float64 // per operation, one of each round
	allocs int64     // per operation, the most of any round
}

// codecRows compares the codec with google protobuf on the same fields, and
// with what any reader of the text has to do. The codec's times include to find
// out the type of a message and where it ends; protobuf is always told where a
// message ends, and is measured twice: told its type as well, and with a oneof
// of the types. A fresh message shares nothing with the buffer that it was
// decoded from, and a fresh encoding is in a buffer of its own.
func codecRows(o options) []row {
	check(flag.Set("test.benchtime", (o.each / 2).String()))
	var all []map[string]*measured
	for _, s := range subjects() {
		all = append(all, measure(s.works(), o.rounds))
	}
	const both = ", session_request / session_response: "
	versus := func(what, a, b, how string, faster bool, target float64) row {
		r := row{what: what + both + how, targets: []float64{target}, most: !faster}
		for _, m := range all {
			x, y := m[a].ns, m[b].ns
			r.values = append(r.values, fmt.Sprintf("%.0f : %.0f ns", median(x), median(y)))
			if faster {
				x, y = y, x
			}
			r.ratios = append(r.ratios, medianRatio(x, y))
		}
		return r
	}
	amount := func(what, unit string, target float64, of func(*measured) float64, a string) row {
		r := row{what: what + both + unit, targets: []float64{target}, most: true}
		for _, m := range all {
			r.ratios = append(r.ratios, of(m[a]))
		}
		return r
	}
	allocs := func(m *measured) float64 { return float64(m.allocs) }
	times := func(m *measured) float64 { return median(m.ns) }
	return []row{
		versus("encode", encode, encodePeer, "× as fast as protobuf told the type", true, 2.5),
		versus("encode", encode, encodePeer+oneof, "× as fast as protobuf with a oneof", true, 2.5),
		amount("encode", "allocations", 0, allocs, encode),
		versus("decode, reusing the value", decode, find, "× the find of every ~", false, 1.3),
		versus("decode, reusing the value", decode, decodePeer, "× as fast as protobuf told the type", true, 4),
		versus("decode, reusing the value", decode, decodePeer+oneof, "× as fast as protobuf with a oneof", true, 4),
		amount("decode, reusing the value", "allocations", 0, allocs, decode),
		amount("decode, lines in another order", "ns", 250, times, decodeOrder),
		amount("decode, and keep", "allocations", 2, allocs, decodeClone),
	}
}

// measure runs all works in turns.
func measure(works []work, rounds int) map[string]*measured {
	all := make(map[string]*measured, len(works))
	for range rounds {
		for _, w := range works {
			r := testing.Benchmark(w.run)
			if r.N == 0 {
				fatal(w.name + " failed")
			}
			m := all[w.name]
			if m == nil {
				m = new(measured)
				all[w.name] = m
			}
			m.ns = append(m.ns, float64(r.T.Nanoseconds())/float64(r.N))
			m.allocs = max(m.allocs, r.AllocsPerOp())
		}
	}
	return all
}

// works returns what is measured of s. Neighbours in the table are neighbours
// in time, so what is compared stands close together.
func (s *subject) works() []work {
	return []work{
		{find, s.find},
		{decode, s.decode(s.line)},
		{decodePeer, s.known.decode},
		{decodePeer + oneof, s.oneof.decode},
		{decodeOrder, s.decode(reversed(s.line))},
		{decodeClone, s.decodeClone},
		{encode, s.encode},
		{encodePeer, s.known.encode},
		{encodePeer + oneof, s.oneof.encode},
	}
}

// Where results go, so that no work is optimised away.
var (
	sinkInt     int
	sinkMessage ssmmp.Message
)

func (s *subject) find(b *testing.B) {
	line := []byte(s.line)
	for b.Loop() {
		sinkInt += findIndex(line)
	}
}

// findIndex finds every '~', and does next to nothing with it. It is a function
// of its own so that b.Loop keeps none of its variables.

//go:noinline
func findIndex(line []byte) (sum int) {
	for {
		n := bytes.IndexByte(line, '~')
		if n < 0 {
			return sum
		}
		sum += n
		line = line[n+1:]
	}
}

// decode reads line from a stream, again and again, into the same message.
func (s *subject) decode(line string) func(b *testing.B) {
	return func(b *testing.B) {
		d := ssmmp.NewDecoder(newRepeater(line))
		for b.Loop() {
			m, err := d.Decode()
			if err != nil {
				b.Fatal(err)
			}
			sinkMessage = m
		}
	}
}

func (s *subject) decodeClone(b *testing.B) {
	d := ssmmp.NewDecoder(newRepeater(s.line))
	for b.Loop() {
		m, err := d.Decode()
		if err != nil {
			b.Fatal(err)
		}
		sinkMessage = ssmmp.Clone(m)
	}
}

func (s *subject) encode(b *testing.B) {
	buf := make([]byte, 0, 1024)
	for b.Loop() {
		if _, err := ssmmp.AppendMessage(buf, s.message); err != nil {
			b.Fatal(err)
		}
	}
}

func (p *peer) decode(b *testing.B) {
	m := p.message.ProtoReflect().New().Interface()
	for b.Loop() {
		if err := proto.Unmarshal(p.wire, m); err != nil {
			b.Fatal(err)
		}
	}
}

func (p *peer) encode(b *testing.B) {
	buf := make([]byte, 0, 1024)
	for b.Loop() {
		if _, err := (proto.MarshalOptions{}).MarshalAppend(buf, p.message); err != nil {
			b.Fatal(err)
		}
	}
}

// A repeater is a stream of the same bytes for ever.
type repeater struct {
	data []byte
	at   int
}

// newRepeater repeats line. Whole lines fill a Decoder's first buffer, so it
// moves no halves of them.
func newRepeater(line string) *repeater {
	const buffer = 4 << 10
	return &repeater{data: []byte(strings.Repeat(line+"\n", buffer/(len(line)+1)))}
}

func (r *repeater) Read(p []byte) (int, error) {
	n := copy(p, r.data[r.at:])
	r.at = (r.at + n) % len(r.data)
	return n, nil
}

// reversed returns line with all lines after message_id in the opposite order.
func reversed(line string) string {
	parts := strings.Split(line, " ~ ")
	slices.Reverse(parts[2:])
	return strings.Join(parts, " ~ ")
}
