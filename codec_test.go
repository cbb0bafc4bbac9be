package ssmmp

import "testing"

func TestSmoke(t *testing.T) {
	const s = "type: session_ack ~ message_id: 1000 ~ sub_type: service_to_agent ~ source_service_name: A ~ source_service_instance_id: 7 ~ source_plug_port: 40112 ~ dest_socket_new_port: 54003 ~ status: 200"
	m, err := ParseMessage(s)
	if err != nil {
		t.Fatal(err)
	}
	b, err := AppendMessage(nil, m)
	if err != nil || string(b) != s+"\n" {
		t.Fatal(err, string(b))
	}
	t.Log(testing.AllocsPerRun(100, func() { ParseMessage(s) }), testing.AllocsPerRun(100, func() { AppendMessage(b[:0], m) }), testing.AllocsPerRun(100, func() { Clone(m) }))
	m, err = ParseMessage("type: health_control_response ~ message_id: 5 ~ status: 200 ~ service_instance_id: 7 ~ sub_type: agent_to_Manager ~ x_a: b")
	t.Logf("%+v %v", m, err)
	_, err = ParseMessage("type: health_control_response ~ message_id: 5 ~ status: 20 ~ service_instance_id: 7 ~ sub_type: agent_to_Manager ~ x_a: b")
	t.Log(err)
}
