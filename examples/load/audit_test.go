package main

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/ssmmp/ssmmp"
)

// soundMesh is one session from instance 1 to instance 2, as all know it.
func soundMesh() (ssmmp.Snapshot, []report, []ssmmp.InstanceID) {
	here, there := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2")
	var s ssmmp.Snapshot
	for n := range nodes {
		s.Agents = append(s.Agents, ssmmp.AgentStatus{Address: netip.AddrFrom4([4]byte{127, 0, 0, byte(1 + n)}), State: ssmmp.AgentUp})
	}
	s.Instances = []ssmmp.InstanceStatus{{ID: 1, Service: "A", State: ssmmp.InstanceRunning}, {ID: 2, Service: "B", State: ssmmp.InstanceRunning}}
	s.Sessions = []ssmmp.SessionStatus{{
		ID: 1, State: ssmmp.SessionOpen, Source: 1, SourceAddress: here, Plug: "P", PlugPort: 40000,
		Destination: 2, DestinationAddress: there, Socket: "S", SocketPort: 20000, NewPort: 20000,
	}}
	return s, []report{
		{ID: 1, Wire: counts{Asked: 3, Answered: 3}, Ends: []end{{true, "P", "127.0.0.1:40000", "127.0.0.2:20000"}}},
		{ID: 2, Ends: []end{{false, "S", "127.0.0.2:20000", "127.0.0.1:40000"}}},
	}, []ssmmp.InstanceID{1, 2}
}

var auditCases = []struct {
	name  string
	spoil func(*ssmmp.Snapshot, []report, *[]ssmmp.InstanceID)
}{
	{"sound", func(*ssmmp.Snapshot, []report, *[]ssmmp.InstanceID) {}},
	{"an agent is away", func(s *ssmmp.Snapshot, _ []report, _ *[]ssmmp.InstanceID) { s.Agents[2].State = ssmmp.AgentIsAway }},
	{"an agent is missing", func(s *ssmmp.Snapshot, _ []report, _ *[]ssmmp.InstanceID) { s.Agents = s.Agents[1:] }},
	{"a request has no answer", func(_ *ssmmp.Snapshot, r []report, _ *[]ssmmp.InstanceID) { r[0].Wire.Answered-- }},
	{"an instance ended", func(_ *ssmmp.Snapshot, _ []report, ids *[]ssmmp.InstanceID) { *ids = (*ids)[1:] }},
	{"a process is unknown", func(_ *ssmmp.Snapshot, _ []report, ids *[]ssmmp.InstanceID) { *ids = append(*ids, 3) }},
	{"an instance is starting", func(s *ssmmp.Snapshot, _ []report, _ *[]ssmmp.InstanceID) {
		s.Instances[1].State = ssmmp.InstanceStarting
	}},
	{"an instance is silent", func(_ *ssmmp.Snapshot, r []report, _ *[]ssmmp.InstanceID) { r[1] = report{} }},
	{"the Manager forgot a session", func(s *ssmmp.Snapshot, _ []report, _ *[]ssmmp.InstanceID) { s.Sessions = nil }},
	{"a session is only offered", func(s *ssmmp.Snapshot, _ []report, _ *[]ssmmp.InstanceID) { s.Sessions[0].State = ssmmp.SessionOffered }},
	{"the source closed", func(_ *ssmmp.Snapshot, r []report, _ *[]ssmmp.InstanceID) { r[0].Ends = nil }},
	{"the destination closed", func(_ *ssmmp.Snapshot, r []report, _ *[]ssmmp.InstanceID) { r[1].Ends = nil }},
	{"another port", func(s *ssmmp.Snapshot, _ []report, _ *[]ssmmp.InstanceID) { s.Sessions[0].PlugPort++ }},
	{"another plug", func(_ *ssmmp.Snapshot, r []report, _ *[]ssmmp.InstanceID) { r[0].Ends[0].Name = "Q" }},
	{"two sessions where one is known", func(_ *ssmmp.Snapshot, r []report, _ *[]ssmmp.InstanceID) {
		r[0].Ends = append(r[0].Ends, r[0].Ends[0])
	}},
}

// Each kind of difference is found.
func TestAudit(t *testing.T) {
	t.Parallel()
	for _, tt := range auditCases {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s, reports, running := soundMesh()
			tt.spoil(&s, reports, &running)
			if found := audit(s, reports, running); (len(found) > 0) != (tt.name != "sound") {
				t.Errorf("found %q", found)
			}
		})
	}
}

// The ledger tells one answer from two and from none, whatever pieces the
// lines come in.
func TestLedger(t *testing.T) {
	t.Parallel()
	request := "type: session_request ~ message_id: %d ~ sub_type: agent_to_Manager ~ source_service_name: A ~ source_service_instance_id: 7 ~ source_service_instance_network_address: 127.0.0.1 ~ source_plug_name: P ~ dest_service_name: B ~ dest_socket_name: S\n"
	response := "type: session_response ~ message_id: %d ~ sub_type: Manager_to_agent ~ source_service_name: A ~ source_service_instance_id: 7 ~ dest_service_name: B ~ dest_service_instance_id:  ~ dest_socket_name: S ~ dest_service_instance_network_address:  ~ dest_socket_port:  ~ status: 503\n"
	ack := "type: session_ack ~ message_id: %d ~ sub_type: agent_to_Manager ~ source_service_name: A ~ source_service_instance_id: 7 ~ source_plug_port: 40000 ~ dest_socket_new_port: 20000 ~ status: 200\n"
	said := fmt.Sprintf(request, 1) + "no message\n" + fmt.Sprintf(request, 65) + fmt.Sprintf(response, 65) + fmt.Sprintf(request, 2) +
		fmt.Sprintf(response, 1) + fmt.Sprintf(response, 65) + fmt.Sprintf(response, 9) + fmt.Sprintf(request, 1) + fmt.Sprintf(ack, 1) + fmt.Sprintf(ack, 1)
	want := counts{SetUps: 1, Asked: 4, Answered: 2, Twice: 1, Unasked: 1, Again: 1, ByStatus: map[ssmmp.Status]int{503: 4}}
	for _, piece := range []int{1, 7, 1000, len(said)} {
		l := newLedger()
		s := splitter{line: l.line}
		for from := 0; from < len(said); from += piece {
			s.pass([]byte(said[from:min(from+piece, len(said))]))
		}
		if got := l.read(); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("in pieces of %d: %+v, want %+v", piece, got, want)
		}
		if err := want.faults("here"); err == nil {
			t.Error("these are no faults")
		}
	}
}
