package ssmmp

import (
	"fmt"
	"testing"
)

// What an agent had asked the Manager when their connection broke, its
// instances hear that it failed, and the Manager that nobody uses the answer.
func TestAgentGivesBack(t *testing.T) {
	t.Parallel()
	s := newAgentStepper(t)
	s.up(1)
	s.message(1, executionLine(1, "A", 7), ProofNone)
	s.started(7, nil)
	s.message(2, helloLine(7, "secret"), ProofGood)
	ask := func(conn ConnID, id int64) {
		s.message(conn, fmt.Sprintf("type: session_request ~ message_id: %d ~ sub_type: service_to_agent ~ source_service_name: A ~ source_service_instance_id: 7 ~ source_service_instance_network_address: %s ~ source_plug_name: P1 ~ dest_service_name: B ~ dest_socket_name: S2", id, coreAgent.Address), ProofNone)
	}
	acks := func(out []AgentOutput) (acks []string) {
		for _, o := range out {
			if m, ok := o.Msg.(*SessionAck); ok {
				acks = append(acks, fmt.Sprintf("%d of %d: %d to %d", m.MessageID, m.SourceServiceInstanceID, m.Status, o.Conn))
			}
		}
		return acks
	}
	want := func(when string, got []string, ids ...string) {
		t.Helper()
		if fmt.Sprint(got) != fmt.Sprint(ids) {
			t.Errorf("%s: %v, want %v", when, got, ids)
		}
	}
	back := func(conn ConnID) []string {
		out := s.step(AgentInput{Kind: AgentInputManagerUp, Conn: conn}, "")
		return acks(s.message(conn, fmt.Sprintf("type: initiation_response ~ message_id: %d ~ status: 200", out[0].Msg.Head().MessageID), ProofNone))
	}

	ask(2, 11)
	ask(2, 12)
	s.message(1, "type: session_response ~ message_id: 11 ~ sub_type: Manager_to_agent ~ source_service_name: A ~ source_service_instance_id: 7 ~ dest_service_name: B ~ dest_service_instance_id: 8 ~ dest_socket_name: S2 ~ dest_service_instance_network_address: 10.0.0.2 ~ dest_socket_port: 54000 ~ status: 200", ProofNone)
	want("away", acks(s.step(AgentInput{Kind: AgentInputLost, Conn: 1}, "")))
	want("the Manager is back", back(3), "12 of 7: 499 to 3")

	ask(2, 13)
	want("the instance is away", acks(s.step(AgentInput{Kind: AgentInputLost, Conn: 2}, "")), "13 of 7: 499 to 3")
	s.message(4, helloLine(7, "secret"), ProofGood)
	ask(4, 14)
	want("the instance came back before it was seen to go", acks(s.message(5, helloLine(7, "secret"), ProofGood)), "14 of 7: 499 to 3")
	s.settle()
	s.replay()
}

// An agent that is away answers for the health of nobody.
func TestAgentHealthWhileAway(t *testing.T) {
	t.Parallel()
	s := newAgentStepper(t)
	s.up(1)
	s.message(1, executionLine(1, "A", 7), ProofNone)
	s.started(7, nil)
	s.step(AgentInput{Kind: AgentInputPortsListen, Instance: 7}, "")
	s.message(1, fmt.Sprintf("type: service_instance_health_request ~ message_id: 2 ~ sub_type: Manager_to_agent ~ service_instance_id: 7 ~ service_instance_network_address: %s", coreAgent.Address), ProofNone)
	s.step(AgentInput{Kind: AgentInputLost, Conn: 1}, "")
	for _, o := range s.step(AgentInput{Kind: AgentInputPortsListen, Instance: 7}, "") {
		t.Errorf("away, and it says %s to connection %d", o.Msg.Type(), o.Conn)
	}
	s.settle()
	s.replay()
}

// A session that is given back is none, whether it was granted already or its
// request still waits for a start.
func TestManagerGivenBack(t *testing.T) {
	t.Parallel()
	s := newManagerStepper(t, ManagerConfig{Graphs: coreGraphs(t)})
	ask := func(id int64) {
		s.message(1, fmt.Sprintf("type: session_request ~ message_id: %d ~ sub_type: agent_to_Manager ~ source_service_name: A ~ source_service_instance_id: 1 ~ source_service_instance_network_address: 10.0.0.1 ~ source_plug_name: P1 ~ dest_service_name: B ~ dest_socket_name: S1", id))
	}
	giveBack := func(id int64) {
		s.message(1, fmt.Sprintf("type: session_ack ~ message_id: %d ~ sub_type: agent_to_Manager ~ source_service_name: A ~ source_service_instance_id: 1 ~ source_plug_port:  ~ dest_socket_new_port:  ~ status: 499", id))
	}
	s.message(1, registerLine(1, coreNodes[0], "A, B, C", ""))
	s.step(ManagerInput{Kind: ManagerInputCommand, Call: 1, Cmd: DeployCommand{"one"}}, "")
	s.message(1, "type: execution_response ~ message_id: 1 ~ status: 200")
	ask(9)
	ask(10)
	giveBack(9)
	if len(s.core.waiting) != 1 {
		t.Errorf("%d requests wait, want the one that was not given back", len(s.core.waiting))
	}
	s.message(1, "type: execution_response ~ message_id: 2 ~ status: 200")
	if len(s.open) != 1 {
		t.Errorf("%d sessions are granted, want 1", len(s.open))
	}
	giveBack(10)
	if len(s.open) != 0 {
		t.Errorf("%d sessions are left, want none", len(s.open))
	}
	giveBack(11) // of a request that never arrived
	s.settle()
	s.replay()
}

// An answer about health is not kept for a Manager that comes back: it is out
// of date by then. What large reports took is free once they are heard.
func TestAgentKeepsNoHealth(t *testing.T) {
	t.Parallel()
	s := newAgentStepper(t)
	up := s.step(AgentInput{Kind: AgentInputManagerUp, Conn: 1}, "")
	s.message(1, fmt.Sprintf("type: initiation_response ~ message_id: %d ~ status: 200 ~ x_heard: 0", up[0].Msg.Head().MessageID), ProofNone)
	health := func(id int64, x string) {
		s.message(1, fmt.Sprintf("type: agent_health_control_request ~ message_id: %d ~ sub_type: Manager_to_agent ~ agent_network_address: %s%s", id, coreAgent.Address, x), ProofNone)
	}
	s.message(1, executionLine(1, "A", 7), ProofNone)
	s.started(7, nil)
	s.message(2, helloLine(7, "secret"), ProofGood) // and so an execution_response
	health(2, "")
	health(3, " ~ x_heard: 2")
	if len(s.core.reports) > 0 {
		t.Errorf("%d bytes are kept of reports that were heard", len(s.core.reports))
	}
	s.message(1, fmt.Sprintf("type: service_instance_health_request ~ message_id: 4 ~ sub_type: Manager_to_agent ~ service_instance_id: 7 ~ service_instance_network_address: %s", coreAgent.Address), ProofNone)
	answer := "type: service_instance_health_response ~ message_id: 4 ~ sub_type: service_instance_to_agent ~ service_instance_id: 7 ~ status: 200"
	if out := s.message(2, answer, ProofNone); len(out) != 1 || out[0].Conn != 1 || out[0].Msg.Type() != TypeInstanceHealthResponse {
		t.Errorf("the Manager gets %+v, want the answer", out)
	}
	s.message(1, fmt.Sprintf("type: service_instance_health_request ~ message_id: 5 ~ sub_type: Manager_to_agent ~ service_instance_id: 7 ~ service_instance_network_address: %s", coreAgent.Address), ProofNone)
	s.step(AgentInput{Kind: AgentInputLost, Conn: 1}, "")
	s.message(2, "type: service_instance_health_response ~ message_id: 5 ~ sub_type: service_instance_to_agent ~ service_instance_id: 7 ~ status: 200", ProofNone)
	if len(s.core.reports) > 0 {
		t.Errorf("kept for the Manager: %q", s.core.reports)
	}
	s.settle()
	s.replay()
}
