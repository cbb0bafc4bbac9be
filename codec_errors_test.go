package ssmmp

import (
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

// Everything else is an error that says where and why.
func TestBadLines(t *testing.T) {
	t.Parallel()
	const (
		registered = "type: initiation_response ~ message_id: 5 ~ status: 200"
		register   = "type: initiation_request ~ message_id: 5 ~ agent_network_address: 10.0.0.1 ~ service_repository: "
		execute    = "type: execution_request ~ message_id: 5 ~ agent_network_address: 10.0.0.1 ~ service_name: A ~ service_instance_id: 7 ~ socket_configuration: "
		stop       = "type: hard_shutdown_request ~ message_id: 5 ~ sub_type: Manager_to_agent ~ service_name: A ~ service_instance_id: "
		ack        = "type: session_ack ~ message_id: 5 ~ sub_type: service_to_agent ~ source_service_name: A ~ source_service_instance_id: 7 ~ source_plug_port: "
		answer     = "type: session_response ~ message_id: 5 ~ sub_type: agent_to_service ~ source_service_name: A ~ source_service_instance_id: 7 ~ dest_service_name: B ~ dest_service_instance_id:  ~ dest_socket_name: S4 ~ dest_service_instance_network_address:  ~ dest_socket_port:  ~ status: "
	)
	long := strings.Repeat("a", MaxName+1)
	type want struct {
		typ           string
		id            int64
		line          int
		field, value  string
		reasonIsAbout string
	}
	initiation := func(line int, field, value, reason string) want {
		return want{"initiation_response", 5, line, field, value, reason}
	}
	for _, test := range []struct {
		line string
		want want
	}{
		{"", want{"", 0, 1, "", "", "empty line"}},
		{" ", want{"", 0, 1, "", "", "empty line"}},
		{"\n", want{"", 0, 1, "", "", "empty line"}},
		{"nonsense", want{"", 0, 1, "", "nonsense", "line_name"}},
		{"  type: initiation_response ~ message_id: 5 ~ status: 200", want{"", 0, 1, " type", "initiation_response", "first line"}},
		{"message_id: 5 ~ type: initiation_response ~ status: 200", want{"", 0, 1, "message_id", "5", "first line"}},
		{"Type: initiation_response ~ message_id: 5 ~ status: 200", want{"", 0, 1, "Type", "initiation_response", "first line"}},
		{"type: initiation_response", want{"initiation_response", 0, 0, "message_id", "", "missing"}},
		{"type: initiation_response ~ status: 200 ~ message_id: 5", want{"initiation_response", 0, 2, "status", "200", "second line"}},
		{"type: initiation_response ~ message_id", want{"initiation_response", 0, 2, "", "message_id", "line_name"}},
		{"type: initiation_response ~ message_id: 0 ~ status: 200", want{"initiation_response", 0, 2, "message_id", "0", "integer"}},
		{"type: initiation_response ~ message_id: -5 ~ status: 200", want{"initiation_response", 0, 2, "message_id", "-5", "integer"}},
		{"type: initiation_response ~ message_id: +5 ~ status: 200", want{"initiation_response", 0, 2, "message_id", "+5", "integer"}},
		{"type: initiation_response ~ message_id: 05 ~ status: 200", want{"initiation_response", 0, 2, "message_id", "05", "integer"}},
		{"type: initiation_response ~ message_id: 5  ~ status: 200", want{"initiation_response", 0, 2, "message_id", "5 ", "integer"}},
		{"type: initiation_response ~ message_id:  ~ status: 200", want{"initiation_response", 0, 2, "message_id", "", "integer"}},
		{"type: initiation_response ~ message_id: 9223372036854775808 ~ status: 200", want{"initiation_response", 0, 2, "message_id", "9223372036854775808", "integer"}},
		{"type: initiation_response ~ message_id: 18446744073709551617 ~ status: 200", want{"initiation_response", 0, 2, "message_id", "18446744073709551617", "integer"}},
		{"type: reboot ~ message_id: 5", want{"reboot", 5, 1, "type", "reboot", "unknown type"}},
		{"type:  ~ message_id: 5", want{"", 5, 1, "type", "", "unknown type"}},
		{"type: Session_ack ~ message_id: 5", want{"Session_ack", 5, 1, "type", "Session_ack", "unknown type"}},

		{"type: initiation_response ~ message_id: 5", initiation(0, "status", "", "missing")},
		{registered + " ~ status: 200", initiation(4, "status", "200", "duplicate")},
		{registered + " ~ message_id: 5", initiation(4, "message_id", "5", "unknown line")},
		{registered + " ~ comment: none", initiation(4, "comment", "none", "unknown line")},
		{registered + " ~ service_name: A", initiation(4, "service_name", "A", "unknown line")},
		{registered + " ~ sub_type: Manager_to_agent", initiation(4, "sub_type", "Manager_to_agent", "unknown line")},
		{registered + " ~ comment", initiation(4, "", "comment", "line_name")},
		{registered + " ~ comment:none", initiation(4, "", "comment:none", "line_name")},
		{registered + " ~ : none", initiation(4, "", "none", "unknown line")},
		{registered + " ~  ~ ", initiation(4, "", "", "line_name")},
		{registered + "\r\r\n", initiation(3, "status", "200\r", "status")},
		{registered + "\n\n", initiation(3, "status", "200\n", "status")},
		{registered + " ~ x_: 1", initiation(4, "x_", "1", "extension")},
		{registered + " ~ x_é: 1", initiation(4, "x_é", "1", "extension")},
		{registered + " ~ x_" + long + ": 1", initiation(4, "x_"+long, "1", "extension")},
		{registered + " ~ x_a: 1\x002", initiation(4, "x_a", "1\x002", "extension")},
		{registered + " ~ x_a: 1\r2", initiation(4, "x_a", "1\r2", "extension")},
		{registered + " ~ x_a: 1\n2", initiation(4, "x_a", "1\n2", "extension")},
		{registered + " ~ x_a: 1 ~", initiation(4, "x_a", "1 ~", "extension")},
		{registered + " ~ x_a: ~", initiation(4, "x_a", "~", "extension")},
		{registered + " ~ " + strings.Repeat("n", 300) + ": " + strings.Repeat("v", 300), initiation(4, strings.Repeat("n", 253)+"...", strings.Repeat("v", 253)+"...", "unknown line")},

		{"type: initiation_response ~ message_id: 5 ~ status: ", initiation(3, "status", "", "status")},
		{"type: initiation_response ~ message_id: 5 ~ status: 099", initiation(3, "status", "099", "status")},
		{"type: initiation_response ~ message_id: 5 ~ status: 600", initiation(3, "status", "600", "status")},
		{"type: initiation_response ~ message_id: 5 ~ status: 20", initiation(3, "status", "20", "status")},
		{"type: initiation_response ~ message_id: 5 ~ status: 2000", initiation(3, "status", "2000", "status")},
		{"type: initiation_response ~ message_id: 5 ~ status: 2x0", initiation(3, "status", "2x0", "status")},
		{"type: initiation_response ~ message_id: 5 ~ status: 200 OK", initiation(3, "status", "200 OK", "status")},

		{"type: hard_shutdown_request ~ message_id: 5 ~ service_name: A ~ service_instance_id: 7", want{"hard_shutdown_request", 5, 0, "sub_type", "", "missing"}},
		{"type: hard_shutdown_request ~ message_id: 5 ~ sub_type: agent_to_service ~ service_name: A ~ service_instance_id: 7", want{"hard_shutdown_request", 5, 3, "sub_type", "agent_to_service", "sub_type"}},
		{"type: hard_shutdown_request ~ message_id: 5 ~ sub_type:  ~ service_name: A ~ service_instance_id: 7", want{"hard_shutdown_request", 5, 3, "sub_type", "", "sub_type"}},
		{stop, want{"hard_shutdown_request", 5, 5, "service_instance_id", "", "integer"}},
		{stop + "0", want{"hard_shutdown_request", 5, 5, "service_instance_id", "0", "integer"}},
		{stop + "7 ", want{"hard_shutdown_request", 5, 5, "service_instance_id", "7 ", "integer"}},
		{stop + "7~8", want{"hard_shutdown_request", 5, 5, "service_instance_id", "7~8", "integer"}},
		{stop + "9223372036854775808", want{"hard_shutdown_request", 5, 5, "service_instance_id", "9223372036854775808", "integer"}},
		{strings.Replace(stop+"7", "e: A", "e: ", 1), want{"hard_shutdown_request", 5, 4, "service_name", "", "name"}},
		{strings.Replace(stop+"7", "e: A", "e: -A", 1), want{"hard_shutdown_request", 5, 4, "service_name", "-A", "name"}},
		{strings.Replace(stop+"7", "e: A", "e: .A", 1), want{"hard_shutdown_request", 5, 4, "service_name", ".A", "name"}},
		{strings.Replace(stop+"7", "e: A", "e: A/B", 1), want{"hard_shutdown_request", 5, 4, "service_name", "A/B", "name"}},
		{strings.Replace(stop+"7", "e: A", "e: A\x00", 1), want{"hard_shutdown_request", 5, 4, "service_name", "A\x00", "name"}},
		{strings.Replace(stop+"7", "e: A", "e:  A", 1), want{"hard_shutdown_request", 5, 4, "service_name", " A", "name"}},
		{strings.Replace(stop+"7", "e: A", "e: "+long, 1), want{"hard_shutdown_request", 5, 4, "service_name", long, "name"}},

		{strings.Replace(register, "10.0.0.1", "", 1), want{"initiation_request", 5, 3, "agent_network_address", "", "address"}},
		{strings.Replace(register, "10.0.0.1", "10.0.0", 1), want{"initiation_request", 5, 3, "agent_network_address", "10.0.0", "address"}},
		{strings.Replace(register, "10.0.0.1", "10.0.0.256", 1), want{"initiation_request", 5, 3, "agent_network_address", "10.0.0.256", "address"}},
		{strings.Replace(register, "10.0.0.1", "10.0.0.01", 1), want{"initiation_request", 5, 3, "agent_network_address", "10.0.0.01", "address"}},
		{strings.Replace(register, "10.0.0.1", "10.0.0.1.2", 1), want{"initiation_request", 5, 3, "agent_network_address", "10.0.0.1.2", "address"}},
		{strings.Replace(register, "10.0.0.1", "fe80::1%eth0", 1), want{"initiation_request", 5, 3, "agent_network_address", "fe80::1%eth0", "address"}},
		{strings.Replace(register, "10.0.0.1", "localhost", 1), want{"initiation_request", 5, 3, "agent_network_address", "localhost", "address"}},
		{register + "A B", want{"initiation_request", 5, 4, "service_repository", "A B", "list"}},
		{register + "A,B", want{"initiation_request", 5, 4, "service_repository", "A,B", "list"}},
		{register + "A, , B", want{"initiation_request", 5, 4, "service_repository", "A, , B", "list"}},
		{register + "A, B, , ", want{"initiation_request", 5, 4, "service_repository", "A, B, , ", "list"}},
		{register + ", ", want{"initiation_request", 5, 4, "service_repository", ", ", "list"}},
		{register + "(A, B", want{"initiation_request", 5, 4, "service_repository", "(A, B", "list"}},
		{register + "A, B)", want{"initiation_request", 5, 4, "service_repository", "A, B)", "list"}},
		{register + "(", want{"initiation_request", 5, 4, "service_repository", "(", "list"}},
		{register + "((A))", want{"initiation_request", 5, 4, "service_repository", "((A))", "list"}},
		{register + "A & B", want{"initiation_request", 5, 4, "service_repository", "A & B", "list"}},
		{execute + "S1 ~ plug_configuration: ", want{"execution_request", 5, 6, "socket_configuration", "S1", "list"}},
		{execute + "S1, 0 ~ plug_configuration: ", want{"execution_request", 5, 6, "socket_configuration", "S1, 0", "list"}},
		{execute + "S1, 65536 ~ plug_configuration: ", want{"execution_request", 5, 6, "socket_configuration", "S1, 65536", "list"}},
		{execute + "S1, 1, S2, 2 ~ plug_configuration: ", want{"execution_request", 5, 6, "socket_configuration", "S1, 1, S2, 2", "list"}},
		{execute + "S1, 1 &  & S2, 2 ~ plug_configuration: ", want{"execution_request", 5, 6, "socket_configuration", "S1, 1 &  & S2, 2", "list"}},
		{execute + " ~ plug_configuration: P1, S1", want{"execution_request", 5, 7, "plug_configuration", "P1, S1", "list"}},
		{execute + " ~ plug_configuration: P1, S1, A, B", want{"execution_request", 5, 7, "plug_configuration", "P1, S1, A, B", "list"}},

		{ack + " ~ dest_socket_new_port: 1 ~ status: 200", want{"session_ack", 5, 6, "source_plug_port", "", "success"}},
		{ack + "1 ~ dest_socket_new_port:  ~ status: 299", want{"session_ack", 5, 7, "dest_socket_new_port", "", "success"}},
		{ack + "0 ~ dest_socket_new_port: 1 ~ status: 200", want{"session_ack", 5, 6, "source_plug_port", "0", "success"}},
		{ack + "00 ~ dest_socket_new_port: 1 ~ status: 500", want{"session_ack", 5, 6, "source_plug_port", "00", "port"}},
		{ack + "65536 ~ dest_socket_new_port: 1 ~ status: 200", want{"session_ack", 5, 6, "source_plug_port", "65536", "port"}},
		{ack + "1 ~ dest_socket_new_port: 1 ~ status: 200 ~ service_name: A", want{"session_ack", 5, 9, "service_name", "A", "duplicate"}},
		{answer + "200", want{"session_response", 5, 7, "dest_service_instance_id", "", "success"}},
		{strings.Replace(answer+"200", "dest_service_instance_id: ", "dest_service_instance_id: 8", 1), want{"session_response", 5, 9, "dest_service_instance_network_address", "", "success"}},
		{strings.Replace(answer+"503", "port: ", "port: 0", 1), want{"session_response", 5, 10, "dest_socket_port", "0", "port"}},
		{answer + "503 ~ extra: a\x00b", want{"session_response", 5, 12, "extra", "a\x00b", "unknown line"}},
		{answer + "503 ~ extra", want{"session_response", 5, 12, "", "extra", "line_name"}},
		{"type: health_control_request ~ message_id: 5 ~ sub_type: Manager_to_agent", want{"service_instance_health_request", 5, 0, "service_instance_id", "", "missing"}},
		{"type: health_control_response ~ message_id: 5 ~ sub_type: agent_to_Manager ~ service_instance_id: 7 ~ agent_network_address: 10.0.0.1 ~ status: 200", want{"agent_health_control_response", 5, 4, "service_instance_id", "7", "unknown line"}},
	} {
		m, err := ParseMessage(test.line)
		var p *ProtocolError
		if m != nil || !errors.As(err, &p) {
			t.Errorf("%q: %v, %v", test.line, m, err)
			continue
		}
		got := want{p.Type, p.MessageID, p.Line, p.Field, p.Value, test.want.reasonIsAbout}
		if got != test.want || p.Status != StatusBadMessage || !strings.Contains(p.Reason, test.want.reasonIsAbout) {
			t.Errorf("%q\n got %+v, %q\nwant %+v", test.line, got, p.Reason, test.want)
		}
		if s := err.Error(); strings.ContainsAny(s, "\r\n\x00") || !strings.Contains(s, p.Reason) || len(s) > 1200 {
			t.Errorf("%q: error %q", test.line, s)
		}
	}
}

func TestProtocolErrorText(t *testing.T) {
	t.Parallel()
	_, err := ParseMessage("type: session_ack ~ message_id: 5 ~ sub_type: wrong")
	const want = `ssmmp: "session_ack" 5: line 3: "sub_type": not a sub_type of this type: "wrong"`
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

// The encoder refuses what it must not send, and leaves dst alone.
func TestEncodeRefuses(t *testing.T) {
	t.Parallel()
	const line = "type: execution_request ~ message_id: 5 ~ agent_network_address: 10.0.0.1 ~ service_name: A ~ service_instance_id: 7 ~ socket_configuration: S1, 1 ~ plug_configuration: P1, S1, B"
	const ack = "type: session_ack ~ message_id: 5 ~ sub_type: service_to_agent ~ source_service_name: A ~ source_service_instance_id: 7 ~ source_plug_port: 1 ~ dest_socket_new_port: 2 ~ status: 200"
	execute := func(change func(m *ExecutionRequest)) Message {
		m := mustParse(t, line).(*ExecutionRequest)
		change(m)
		return m
	}
	acked := func(change func(m *SessionAck)) Message {
		m := mustParse(t, ack).(*SessionAck)
		change(m)
		return m
	}
	type test struct {
		m            Message
		line         int
		field, value string
	}
	tests := []test{
		{execute(func(m *ExecutionRequest) { m.MessageID = 0 }), 2, "message_id", "0"},
		{execute(func(m *ExecutionRequest) { m.MessageID = -1 }), 2, "message_id", "-1"},
		{execute(func(m *ExecutionRequest) { m.SubType = ManagerToAgent }), 3, "sub_type", "Manager_to_agent"},
		{execute(func(m *ExecutionRequest) { m.AgentNetworkAddress = netip.Addr{} }), 3, "agent_network_address", "invalid IP"},
		{execute(func(m *ExecutionRequest) { m.AgentNetworkAddress = netip.MustParseAddr("fe80::1%a") }), 3, "agent_network_address", "fe80::1%a"},
		{execute(func(m *ExecutionRequest) { m.ServiceInstanceID = 0 }), 5, "service_instance_id", "0"},
		{execute(func(m *ExecutionRequest) { m.ServiceInstanceID = -7 }), 5, "service_instance_id", "-7"},
		{execute(func(m *ExecutionRequest) { m.SocketConfiguration[0].Port = 0 }), 6, "socket_configuration", "0"},
		{acked(func(m *SessionAck) { m.SubType = "" }), 3, "sub_type", ""},
		{acked(func(m *SessionAck) { m.SubType = ManagerToAgent }), 3, "sub_type", "Manager_to_agent"},
		{acked(func(m *SessionAck) { m.SourcePlugPort = 0 }), 6, "source_plug_port", ""},
		{acked(func(m *SessionAck) { m.DestSocketNewPort = 0 }), 7, "dest_socket_new_port", ""},
		{acked(func(m *SessionAck) { m.Status = 0 }), 8, "status", "0"},
		{acked(func(m *SessionAck) { m.Status = 600 }), 8, "status", "600"},
		{acked(func(m *SessionAck) { m.Extensions = []Extension{{"x_a", ""}, {"y_a", "1"}} }), 10, "y_a", "1"},
		{acked(func(m *SessionAck) { m.Extensions = []Extension{{"x_a: b ~ x_c", "1"}} }), 9, "x_a: b ~ x_c", "1"},
	}
	for _, bad := range []string{"", "a b", "a ~ b", "a\nb", "a\rb", "a\x00b", "a, b", "a & b", "(a)", "é", "-a", strings.Repeat("a", MaxName+1)} {
		tests = append(tests,
			test{execute(func(m *ExecutionRequest) { m.ServiceName = bad }), 4, "service_name", bad},
			test{execute(func(m *ExecutionRequest) { m.SocketConfiguration[0].Socket = bad }), 6, "socket_configuration", bad},
			test{execute(func(m *ExecutionRequest) { m.PlugConfiguration[0].Plug = bad }), 7, "plug_configuration", bad},
			test{execute(func(m *ExecutionRequest) { m.PlugConfiguration[0].Socket = bad }), 7, "plug_configuration", bad},
			test{execute(func(m *ExecutionRequest) { m.PlugConfiguration[0].Service = bad }), 7, "plug_configuration", bad},
			test{acked(func(m *SessionAck) { m.Extensions = []Extension{{"x_" + bad, "1"}} }), 9, "x_" + bad, "1"},
			test{&InitiationRequest{Header: Header{MessageID: 1}, AgentNetworkAddress: netip.IPv6Loopback(), ServiceRepository: []string{"A", bad}}, 4, "service_repository", bad},
		)
	}
	for _, bad := range []string{"a ~ b", "~", "~ a", "a ~", "a\nb", "a\r", "\x00"} {
		tests = append(tests, test{acked(func(m *SessionAck) { m.Extensions = []Extension{{"x_a", bad}} }), 9, "x_a", bad})
	}
	for _, test := range tests {
		dst := []byte("before")
		b, err := AppendMessage(dst, test.m)
		var p *ProtocolError
		if string(b) != "before" || !errors.As(err, &p) {
			t.Errorf("%+v: %q, %v", test.m, b, err)
			continue
		}
		if p.Status != StatusBadMessage || p.Type != test.m.Type().String() || p.MessageID != test.m.Head().MessageID ||
			p.Line != test.line || p.Field != test.field || p.Value != test.value {
			t.Errorf("%+v\n got %+v\nwant line %d, field %q, value %q", test.m, p, test.line, test.field, test.value)
		}
		if text, err := FormatText(test.m); text != "" || err == nil {
			t.Errorf("%+v: text %q", test.m, text)
		}
	}
	if b, err := AppendMessage([]byte("before"), nil); string(b) != "before" || err == nil {
		t.Errorf("nil message: %q, %v", b, err)
	}
	// A message of another package may embed one of this, and is none itself.
	if b, err := AppendMessage(nil, struct{ *SessionAck }{mustParse(t, ack).(*SessionAck)}); len(b) > 0 || err == nil {
		t.Errorf("foreign message: %q, %v", b, err)
	}
}

// A line has at most MaxLine bytes, in both directions.
func TestLineLength(t *testing.T) {
	t.Parallel()
	m := &InitiationResponse{Header: Header{MessageID: 5, Extensions: []Extension{{Name: "x_pad"}}}, Status: 200}
	b, err := AppendMessage(nil, m)
	if err != nil {
		t.Fatal(err)
	}
	fill := MaxLine - (len(b) - 1)
	m.Extensions[0].Value = strings.Repeat("v", fill)
	b, err = AppendMessage(nil, m)
	if err != nil || len(b) != MaxLine+1 {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	if back, err := ParseMessage(string(b)); err != nil || !reflect.DeepEqual(back, m) {
		t.Errorf("the longest line: %v", err)
	}
	if back, err := ParseMessage(reversed(string(b[:len(b)-1])) + "\r\n"); err != nil || !reflect.DeepEqual(back, m) {
		t.Errorf("the longest line in another order: %v", err)
	}
	m.Extensions[0].Value += "v"
	long := "type: initiation_response ~ message_id: 5 ~ status: 200 ~ x_pad: " + m.Extensions[0].Value
	_, encodeErr := AppendMessage(nil, m)
	_, parseErr := ParseMessage(long)
	_, textErr := ParseText(strings.ReplaceAll(long, " ~ ", "\n"))
	for _, err := range []error{encodeErr, parseErr, textErr} {
		var p *ProtocolError
		if !errors.As(err, &p) || !errors.Is(err, ErrLineTooLong) || p.Status != StatusLineTooLong ||
			p.Type != "initiation_response" || p.MessageID != 5 {
			t.Errorf("too long: %#v", err)
		}
	}
}
