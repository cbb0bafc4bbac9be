package main

import (
	"bytes"
	"log"
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
		log.Fatal(err)
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
		log.Fatal(err)
	}
	s.name, s.message = m.Type().String(), m
	return m.(M)
}

// The names of works that others refer to.
const (
	find        = "find every ~"
	loop        = "find every ~, byte loop"
	decodePeer  = "  protobuf decode"
	freshPeer   = "  protobuf decode, fresh"
	encodePeer  = "  protobuf encode"
	encodeFresh = "  protobuf encode, fresh"
	oneof       = " with oneof"
)

// works returns what is measured of s. Neighbours in the table are neighbours
// in time, so what is compared stands close together.
func (s *subject) works() []work {
	return []work{
		{name: "copy", run: s.copy},
		{name: loop, run: s.loop},
		{name: find, run: s.find},
		{name: "decode", run: s.decode(s.line), peer: decodePeer, target: "≤ 1.3 × find, ≥ 4 × faster, 0 allocs"},
		{name: decodePeer, run: s.known.decode},
		{name: decodePeer + oneof, run: s.oneof.decode},
		{name: "decode, other order", run: s.decode(reversed(s.line)), peer: decodePeer, target: "≤ 250 ns, 0 allocs"},
		{name: "decode, fresh", run: s.decodeFresh, peer: freshPeer, target: "≤ 2 allocs"},
		{name: freshPeer, run: s.known.decodeFresh},
		{name: freshPeer + oneof, run: s.oneof.decodeFresh},
		{name: "decode and Clone", run: s.decodeClone, peer: freshPeer, target: "≤ 2 allocs"},
		{name: "encode", run: s.encode, peer: encodePeer, target: "≥ 2.5 × faster, 0 allocs"},
		{name: encodePeer, run: s.known.encode},
		{name: encodePeer + oneof, run: s.oneof.encode},
		{name: "encode, fresh", run: s.encodeFresh, peer: encodeFresh},
		{name: encodeFresh, run: s.known.encodeFresh},
		{name: encodeFresh + oneof, run: s.oneof.encodeFresh},
	}
}

// Where results go, so that no work is optimised away.
var (
	sinkInt     int
	sinkBytes   []byte
	sinkMessage ssmmp.Message
	sinkPeer    proto.Message
)

func (s *subject) copy(b *testing.B) {
	dst := make([]byte, len(s.line))
	for b.Loop() {
		sinkInt += copy(dst, s.line)
	}
}

func (s *subject) find(b *testing.B) {
	line := []byte(s.line)
	for b.Loop() {
		sinkInt += findIndex(line)
	}
}

func (s *subject) loop(b *testing.B) {
	line := []byte(s.line)
	for b.Loop() {
		sinkInt += findLoop(line)
	}
}

// findIndex and findLoop find every '~', and do next to nothing with it. They
// are functions of their own so that b.Loop keeps none of their variables.

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

//go:noinline
func findLoop(line []byte) (sum int) {
	for i, c := range line {
		if c == '~' {
			sum += i
		}
	}
	return sum
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

func (s *subject) decodeFresh(b *testing.B) {
	line := []byte(s.line)
	for b.Loop() {
		m, err := ssmmp.ParseMessage(string(line))
		if err != nil {
			b.Fatal(err)
		}
		sinkMessage = m
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

func (s *subject) encodeFresh(b *testing.B) {
	for b.Loop() {
		buf, err := ssmmp.AppendMessage(nil, s.message)
		if err != nil {
			b.Fatal(err)
		}
		sinkBytes = buf
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

func (p *peer) decodeFresh(b *testing.B) {
	t := p.message.ProtoReflect().Type()
	for b.Loop() {
		m := t.New().Interface()
		if err := proto.Unmarshal(p.wire, m); err != nil {
			b.Fatal(err)
		}
		sinkPeer = m
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

func (p *peer) encodeFresh(b *testing.B) {
	for b.Loop() {
		buf, err := proto.Marshal(p.message)
		if err != nil {
			b.Fatal(err)
		}
		sinkBytes = buf
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
