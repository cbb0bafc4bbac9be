package ssmmp

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"
)

// A catalogue is testdata/messages.json, the authority on names and order.
type catalogue struct {
	FieldTypes map[string]string `json:"field_types"`
	Messages   []struct {
		Type   string `json:"type"`
		Routes []struct {
			SubType  *string `json:"sub_type"`
			From, To string
		} `json:"routes"`
		Fields []string `json:"fields"`
	} `json:"messages"`
}

func readCatalogue(t *testing.T) catalogue {
	t.Helper()
	b, err := os.ReadFile("testdata/messages.json")
	if err != nil {
		t.Fatal(err)
	}
	var c catalogue
	if err := json.Unmarshal(b, &c); err != nil {
		t.Fatal(err)
	}
	return c
}

// samples holds a value of each kind of line, and its written form.
var samples = map[string]struct {
	value any
	text  string
}{
	"ip":               {netip.MustParseAddr("10.1.2.3"), "10.1.2.3"},
	"name":             {"A_1.b-c", "A_1.b-c"},
	"name_list":        {[]string{"A", "B"}, "(A, B)"},
	"socket_list":      {[]SocketPort{{"S1", 54000}, {"S2", 54001}}, "S1, 54000 & S2, 54001"},
	"plug_list":        {[]PlugTarget{{"P1", "S4", "B"}, {"P2", "S2", "C"}}, "P1, S4, B & P2, S2, C"},
	"positive_integer": {int64(math.MaxInt64), "9223372036854775807"},
	"port":             {uint16(65535), "65535"},
	"status":           {Status(200), "200"},
}

// camel turns a line's name into that of its field.
func camel(name string) string {
	var b strings.Builder
	for word := range strings.SplitSeq(name, "_") {
		if word == "id" {
			word = "ID"
		}
		b.WriteString(strings.ToUpper(word[:1]) + word[1:])
	}
	return b.String()
}

// Types, fields, their order, routes and sub_types are those of PROTOCOL
// section 2, no fewer and no more.
func TestCatalogue(t *testing.T) {
	t.Parallel()
	cat := readCatalogue(t)
	if got, want := numTypes-1, len(cat.Messages); got != want {
		t.Errorf("%d types, want %d", got, want)
	}
	lines := map[string]bool{"sub_type": true, "message_id": true}
	hops := 0
	for i, want := range cat.Messages {
		typ := Type(i + 1)
		m := newMessage(typ)
		if m.Type() != typ || typ.String() != want.Type {
			t.Fatalf("type %d is %v, named %q, want %q", i+1, m.Type(), typ, want.Type)
		}
		v := reflect.ValueOf(m).Elem()
		if got := v.NumField(); got != len(want.Fields)+1 || v.Type().Field(0).Name != "Header" {
			t.Errorf("%s has %d fields with its header, want %d", typ, got, len(want.Fields)+1)
		}
		var text string
		for j, name := range want.Fields {
			lines[name] = true
			if got := v.Type().Field(j + 1).Name; got != camel(name) {
				t.Errorf("%s field %d is %s, want %s", typ, j+1, got, camel(name))
			}
			s, ok := samples[cat.FieldTypes[name]]
			if !ok {
				t.Fatalf("no sample of %s", cat.FieldTypes[name])
			}
			f := v.FieldByName(camel(name))
			f.Set(reflect.ValueOf(s.value).Convert(f.Type()))
			text += " ~ " + name + ": " + s.text
		}
		if got := len(routes[typ]); got != len(want.Routes) {
			t.Fatalf("%s has %d routes, want %d", typ, got, len(want.Routes))
		}
		for j, r := range want.Routes {
			hops++
			head := "type: " + want.Type + " ~ message_id: 1"
			sub := SubType("")
			if r.SubType != nil {
				sub = SubType(*r.SubType)
				head += " ~ sub_type: " + *r.SubType
			}
			got := routes[typ][j]
			if got.sub != sub || got.from.String() != r.From || got.to.String() != r.To {
				t.Errorf("%s route %d is %v, want %v", typ, j, got, r)
			}
			m.Head().MessageID, m.Head().SubType = 1, sub
			b, err := AppendMessage(nil, m)
			if want := head + text + "\n"; err != nil || string(b) != want {
				t.Errorf("encoded %s: %v\n got %q\nwant %q", typ, err, b, want)
			}
			back, err := ParseMessage(string(b))
			if err != nil || !reflect.DeepEqual(back, m) {
				t.Errorf("decoded %s: %v\n got %+v\nwant %+v", typ, err, back, m)
			}
			back, err = ParseMessage(reversed(head + text))
			if err != nil || !reflect.DeepEqual(back, m) {
				t.Errorf("decoded %s in another order: %v\n got %+v\nwant %+v", typ, err, back, m)
			}
		}
	}
	if len(cat.Messages) != 22 || hops != 36 {
		t.Errorf("the catalogue has %d types and %d hops", len(cat.Messages), hops)
	}
	for _, name := range lineNames {
		if !lines[name] {
			t.Errorf("line %s is in no message", name)
		}
	}
	if len(lineNames)+1 != len(lines) {
		t.Errorf("%d line names, want %d", len(lineNames)+1, len(lines))
	}
}

// readHops returns the golden lines of testdata/hops.txt.
func readHops(tb testing.TB) []string {
	tb.Helper()
	f, err := os.Open("testdata/hops.txt")
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	var hops []string
	for s := bufio.NewScanner(f); s.Scan(); {
		if line := s.Text(); line != "" && !strings.HasPrefix(line, "#") {
			hops = append(hops, line)
		}
	}
	return hops
}

func TestGoldenHops(t *testing.T) {
	t.Parallel()
	hops := map[string]bool{}
	for _, line := range readHops(t) {
		m, err := ParseMessage(line)
		if err != nil {
			t.Errorf("%s: %v", line, err)
			continue
		}
		hops[m.Type().String()+" "+string(m.Head().SubType)] = true
		b, err := AppendMessage([]byte("before"), m)
		if err != nil || string(b) != "before"+line+"\n" {
			t.Errorf("%v\n got %q\nwant %q", err, b, line)
		}
		text, err := FormatText(m)
		if want := strings.ReplaceAll(line, " ~ ", "\n") + "\n"; err != nil || text != want {
			t.Errorf("%v\n got %q\nwant %q", err, text, want)
		}
		back, err := ParseText(text)
		if err != nil || !reflect.DeepEqual(back, m) {
			t.Errorf("text: %v\n got %+v\nwant %+v", err, back, m)
		}
	}
	if len(hops) != 36 {
		t.Errorf("%d hops, want 36", len(hops))
	}
}

// Every line of every hop must be there, and have contents but where PROTOCOL
// section 2 and 3 let it be empty, from either side.
func TestRequiredLines(t *testing.T) {
	t.Parallel()
	mayBeEmpty := map[string]bool{
		"200 initiation_request service_repository":                  true,
		"200 execution_request socket_configuration":                 true,
		"200 execution_request plug_configuration":                   true,
		"111 dest_service_session_close_info source_plug_name":       true,
		"503 dest_service_session_close_info source_plug_name":       true,
		"503 session_response dest_service_instance_id":              true,
		"503 session_response dest_service_instance_network_address": true,
		"503 session_response dest_socket_port":                      true,
		"503 session_ack source_plug_port":                           true,
		"503 session_ack dest_socket_new_port":                       true,
	}
	empty := 0
	for _, hop := range readHops(t) {
		lines := []string{hop}
		if i := strings.Index(hop, " ~ status: "); i >= 0 {
			lines = append(lines, hop[:i]+" ~ status: 503")
		}
		for _, line := range lines {
			status := "200"
			if i := strings.Index(line, " ~ status: "); i >= 0 {
				status = line[i+len(" ~ status: "):]
			}
			typ := mustParse(t, line).Type().String()
			parts := strings.Split(line, " ~ ")
			for i := 2; i < len(parts); i++ {
				name, _, _ := strings.Cut(parts[i], ": ")
				without := strings.Join(append(parts[:i:i], parts[i+1:]...), " ~ ")
				var p *ProtocolError
				if _, err := ParseMessage(without); !errors.As(err, &p) || p.Field != name || p.Line != 0 {
					t.Errorf("%q: %v", without, err)
				}
				blank := strings.Join(append(append(parts[:i:i], name+": "), parts[i+1:]...), " ~ ")
				m, err := ParseMessage(blank)
				if mayBeEmpty[status+" "+typ+" "+name] {
					empty++
					if b, err2 := AppendMessage(nil, m); err != nil || err2 != nil || string(b) != blank+"\n" {
						t.Errorf("%q: %v, %v, %q", blank, err, err2, b)
					}
					continue
				}
				if !errors.As(err, &p) || p.Field != name || p.Line != i+1 || p.Value != "" {
					t.Errorf("%q: %v", blank, err)
				}
				m = mustParse(t, line)
				if name == "sub_type" {
					m.Head().SubType = ""
				} else {
					reflect.ValueOf(m).Elem().FieldByName(camel(name)).SetZero()
				}
				if b, err := AppendMessage(nil, m); !errors.As(err, &p) || p.Field != name || p.Line != i+1 || b != nil {
					t.Errorf("%s without %s: %q, %v", typ, name, b, err)
				}
			}
		}
	}
	// Two of the types that have such lines take one hop, three take two.
	if want := 3 + 2*(2+3+2); empty != want {
		t.Errorf("%d lines may be empty, want %d", empty, want)
	}
}

// Each liberty of the decoder (PROTOCOL section 2), and what it becomes.
func TestLiberties(t *testing.T) {
	t.Parallel()
	const (
		ack       = "type: session_ack ~ message_id: 1 ~ sub_type: service_to_agent ~ source_service_name: A ~ source_service_instance_id: 7 ~ source_plug_port: 40112 ~ dest_socket_new_port: 54003 ~ status: 200"
		failedAck = "type: session_ack ~ message_id: 1 ~ sub_type: service_to_agent ~ source_service_name: A ~ source_service_instance_id: 7 ~ source_plug_port:  ~ dest_socket_new_port:  ~ status: 502"
		register  = "type: initiation_request ~ message_id: 1 ~ agent_network_address: 10.0.0.1 ~ service_repository: (A, B)"
		nothing   = "type: initiation_request ~ message_id: 1 ~ agent_network_address: 10.0.0.1 ~ service_repository: "
		execute   = "type: execution_request ~ message_id: 1 ~ agent_network_address: 10.0.0.1 ~ service_name: A ~ service_instance_id: 7 ~ socket_configuration: S1, 54000 & S2, 54001 ~ plug_configuration: P1, S4, B & P2, S2, C"
		bare      = "type: execution_request ~ message_id: 1 ~ agent_network_address: 10.0.0.1 ~ service_name: A ~ service_instance_id: 7 ~ socket_configuration:  ~ plug_configuration: "
		answer    = "type: session_response ~ message_id: 1 ~ sub_type: agent_to_service ~ source_service_name: A ~ source_service_instance_id: 7 ~ dest_service_name: B ~ dest_service_instance_id: 8 ~ dest_socket_name: S4 ~ dest_service_instance_network_address: 10.0.0.2 ~ dest_socket_port: 54003 ~ status: 200"
		noAnswer  = "type: session_response ~ message_id: 1 ~ sub_type: agent_to_service ~ source_service_name: A ~ source_service_instance_id: 7 ~ dest_service_name: B ~ dest_service_instance_id:  ~ dest_socket_name: S4 ~ dest_service_instance_network_address:  ~ dest_socket_port:  ~ status: 503"
		ended     = "type: service_instance_termination_info ~ message_id: 1 ~ sub_type: agent_to_Manager ~ service_name: A ~ service_instance_id: 7 ~ service_instance_network_address: 10.0.0.1"
		killed    = "type: hard_shutdown_response ~ message_id: 1 ~ sub_type: agent_to_Manager ~ service_instance_id: 7 ~ status: 200"
		askAgent  = "type: agent_health_control_request ~ message_id: 1 ~ sub_type: Manager_to_agent ~ agent_network_address: 10.0.0.1"
		askOne    = "type: service_instance_health_request ~ message_id: 1 ~ sub_type: agent_to_service_instance ~ service_instance_id: 7 ~ service_instance_network_address: 10.0.0.1"
		agentWell = "type: agent_health_control_response ~ message_id: 1 ~ sub_type: agent_to_Manager ~ agent_network_address: 10.0.0.1 ~ status: 200"
		oneWell   = "type: service_instance_health_response ~ message_id: 1 ~ sub_type: service_instance_to_agent ~ service_instance_id: 7 ~ status: 200"
		serverEnd = "type: dest_service_session_close_info ~ message_id: 1 ~ sub_type: dest_service_to_agent ~ source_service_instance_network_address: 10.0.0.1 ~ source_plug_name:  ~ source_plug_port: 40112 ~ dest_service_name: B ~ dest_service_instance_network_address: 10.0.0.2 ~ dest_service_instance_id: 8 ~ dest_socket_name: S4 ~ dest_socket_port: 54003 ~ dest_socket_new_port: 54003 ~ status: 111"
		closeIt   = "type: source_service_session_close_request ~ message_id: 1 ~ sub_type: agent_to_source_service ~ source_service_name: A ~ source_service_instance_id: 7 ~ source_service_instance_network_address: 10.0.0.1 ~ source_plug_name: P1 ~ source_plug_port: 40112 ~ dest_service_name: B ~ dest_service_instance_network_address: 10.0.0.2 ~ dest_socket_name: S4 ~ dest_socket_port: 54003 ~ dest_socket_new_port: 54003"
	)
	replace := strings.NewReplacer
	for _, test := range []struct{ name, line, want string }{
		{"canonical", ack, ack},
		{"newline", ack + "\n", ack},
		{"carriage return", ack + "\r", ack},
		{"carriage return and newline", ack + "\r\n", ack},
		{"trailing separator", ack + " ~ ", ack},
		{"trailing separator and line end", ack + " ~ \r\n", ack},
		{"trailing separator after an empty value", bare + " ~ ", bare},
		{"leading space", " " + ack, ack},
		{"other order", reversed(ack), ack},
		{"IPv6", replace("10.0.0.1", "fd00:0::1").Replace(register), replace("10.0.0.1", "fd00::1").Replace(register)},
		{"IPv4 in IPv6", replace("10.0.0.1", "::ffff:10.0.0.1").Replace(register), register},

		{"list without brackets", replace("(A, B)", "A, B").Replace(register), register},
		{"list with semicolons", replace("(A, B)", "(A; B)").Replace(register), register},
		{"list with a trailing comma", replace("(A, B)", "A, B, ").Replace(register), register},
		{"list with a trailing semicolon", replace("(A, B)", "A; B; ").Replace(register), register},
		{"list with a trailing comma in brackets", replace("(A, B)", "(A, B, )").Replace(register), register},
		{"list with a trailing comma behind brackets", replace("(A, B)", "(A, B), ").Replace(register), register},
		{"empty list", nothing, nothing},
		{"empty list in brackets", nothing + "()", nothing},
		{"sockets and plugs in brackets", replace("S1, 54000 & S2, 54001", "(S1, 54000 & S2, 54001)", "P1, S4, B & P2, S2, C", "(P1, S4, B & P2, S2, C)").Replace(execute), execute},
		{"sockets and plugs with semicolons", replace("S1, 54000 & S2, 54001", "S1; 54000 & S2; 54001", "P1, S4, B & P2, S2, C", "P1; S4; B & P2; S2; C").Replace(execute), execute},
		{"sockets and plugs with trailing separators", replace("S2, 54001", "S2, 54001 & ", "P2, S2, C", "P2, S2, C, ").Replace(execute), execute},
		{"no sockets and no plugs", bare, bare},

		{"session_ack with short names", replace("source_service_name", "service_name", "source_service_instance_id", "service_instance_id").Replace(ack), ack},
		{"failed session_ack", failedAck, failedAck},
		{"failed session_ack with zero ports", replace("port: ", "port: 0").Replace(failedAck), failedAck},
		{"failed session_ack with ports", replace("200", "502").Replace(ack), replace("200", "502").Replace(ack)},
		{"termination with the source's address", replace("service_instance_network", "source_service_instance_network").Replace(ended), ended},
		{"hard shutdown with the source's id", replace(" service_instance_id", " source_service_instance_id").Replace(killed), killed},
		{"agent's health request", replace("agent_health_control_request", "health_control_request").Replace(askAgent), askAgent},
		{"instance's health request", replace("service_instance_health_request", "health_control_request").Replace(askOne), askOne},
		{"agent's health response", replace("agent_health_control_response", "health_control_response").Replace(agentWell), agentWell},
		{"instance's health response", replace("service_instance_health_response", "health_control_response").Replace(oneWell), oneWell},
		{"sub_type to an instance", replace("agent_to_service_instance", "agent_to_service").Replace(askOne), askOne},
		{"sub_type to the source", replace("agent_to_source_service", "agent_to_service").Replace(closeIt), closeIt},
		{"session_response with extra lines", replace("dest_service_name: B", "dest_service_name: B ~ source_plug_name: P1 ~ source_plug_name: P1 ~ comment: none").Replace(answer), answer},
		{"failed session_response", noAnswer, noAnswer},
		{"failed session_response with a destination", replace("200", "503").Replace(answer), replace("200", "503").Replace(answer)},
		{"server end without a plug", serverEnd, serverEnd},

		{"extension", ack + " ~ x_exit: SIGKILL", ack + " ~ x_exit: SIGKILL"},
		{"extensions keep order, repeat and may be empty", ack + " ~ x_b: a: b, c & d ~ x_a:  ~ x_b: é ", ack + " ~ x_b: a: b, c & d ~ x_a:  ~ x_b: é "},
		{"extensions between other lines", replace("sub_type", "x_a: 1 ~ sub_type", "status", "x_b: ~2 ~ status").Replace(ack), ack + " ~ x_a: 1 ~ x_b: ~2"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m, err := ParseMessage(test.line)
			if err != nil {
				t.Fatal(err)
			}
			b, err := AppendMessage(nil, m)
			if err != nil || string(b) != test.want+"\n" {
				t.Errorf("%v\n got %q\nwant %q", err, b, test.want)
			}
			if want := mustParse(t, test.want); !reflect.DeepEqual(m, want) {
				t.Errorf("got %+v, want %+v", m, want)
			}
			d := NewDecoder(strings.NewReader(strings.TrimSuffix(test.line, "\n") + "\n"))
			borrowed, err := d.Decode()
			if err != nil || !reflect.DeepEqual(Clone(borrowed), m) {
				t.Errorf("Decoder: %v\n got %+v\nwant %+v", err, borrowed, m)
			}
			text := strings.ReplaceAll(strings.TrimSuffix(test.line, " ~ "), " ~ ", "\r\n")
			fromText, err := ParseText(text)
			if err != nil || !reflect.DeepEqual(fromText, m) {
				t.Errorf("ParseText: %v\n got %+v\nwant %+v", err, fromText, m)
			}
		})
	}
}

func TestParseText(t *testing.T) {
	t.Parallel()
	const text = "type: initiation_response\nmessage_id: 5\nstatus: 200\nx_a: b: c\n"
	want := &InitiationResponse{Header: Header{MessageID: 5, Extensions: []Extension{{"x_a", "b: c"}}}, Status: 200}
	for _, s := range []string{
		text, strings.TrimSuffix(text, "\n"), " " + text, strings.ReplaceAll(text, "\n", "\r\n"),
		strings.TrimSuffix(text, "\n") + "\r", strings.TrimSuffix(text, "\n") + " ~ ",
	} {
		if m, err := ParseText(s); err != nil || !reflect.DeepEqual(m, want) {
			t.Errorf("%q: %+v, %v", s, m, err)
		}
	}
	for _, test := range []struct {
		text, field, value string
		line               int
	}{
		{"", "", "", 1},
		{"type: initiation_response\nmessage_id: 5 ~ status: 200\n", "message_id", "5 ~ status: 200", 2},
		{"type: initiation_response\nmessage_id: 5\nstatus: 200\nx_a: b ~\nx_c: d\n", "x_a", "b ~", 4},
		{"type: initiation_response\nmessage_id: 5\nstatus: 200\n~ x_a: b\n", "~ x_a", "b", 4},
		{"type: initiation_response\nmessage_id: 5\nstatus: 200\nx_a: b\rc\n", "x_a", "b\rc", 4},
		{"type: initiation_response\nmessage_id: 5\n\nstatus: 200\n", "", "", 3},
		{"type: initiation_response\nmessage_id: 5\nstatus: 20\n", "status", "20", 3},
	} {
		m, err := ParseText(test.text)
		var p *ProtocolError
		if m != nil || !errors.As(err, &p) || p.Field != test.field || p.Value != test.value || p.Line != test.line {
			t.Errorf("%q: %v, %#v", test.text, m, err)
		}
	}
}

// Every message travels its routes, and no others.
func TestCheckHop(t *testing.T) {
	t.Parallel()
	cat := readCatalogue(t)
	actors := []Actor{ActorManager, ActorAgent, ActorInstance}
	legal := map[string]bool{}
	subs := map[SubType]bool{"": true}
	for _, m := range cat.Messages {
		for _, r := range m.Routes {
			sub := ""
			if r.SubType != nil {
				sub = *r.SubType
			}
			subs[SubType(sub)] = true
			legal[fmt.Sprint(m.Type, "|", sub, "|", r.From, "|", r.To)] = true
		}
	}
	hops := 0
	for typ := Type(1); int(typ) < numTypes; typ++ {
		for sub := range subs {
			for _, from := range actors {
				for _, to := range actors {
					m := newMessage(typ)
					m.Head().SubType, m.Head().MessageID = sub, 9
					err := CheckHop(m, from, to)
					var p *ProtocolError
					switch ok := legal[fmt.Sprint(typ, "|", sub, "|", from, "|", to)]; {
					case ok && err != nil:
						t.Error(err)
					case ok:
						hops++
					case !errors.As(err, &p) || p.Status != StatusBadMessage || p.Type != typ.String() || p.MessageID != 9:
						t.Errorf("%s %q from %s to %s: %v", typ, sub, from, to, err)
					case hasSubType(typ) && (p.Line != 3 || p.Field != "sub_type" || p.Value != string(sub)):
						t.Errorf("%s %q from %s to %s: %v", typ, sub, from, to, err)
					case !hasSubType(typ) && (p.Line != 1 || p.Field != "type" || p.Value != typ.String()):
						t.Errorf("%s %q from %s to %s: %v", typ, sub, from, to, err)
					}
				}
			}
		}
	}
	if hops != 36 {
		t.Errorf("%d hops, want 36", hops)
	}
}

func TestSocketsAndPlugs(t *testing.T) {
	t.Parallel()
	sockets := []SocketPort{{"S1", 54000}, {"S2", 54001}}
	plugs := []PlugTarget{{"P1", "S4", "B"}, {"P2", "S2", "C"}}
	if got := FormatSockets(sockets); got != "S1, 54000 & S2, 54001" {
		t.Errorf("sockets %q", got)
	}
	if got := FormatPlugs(plugs); got != "P1, S4, B & P2, S2, C" {
		t.Errorf("plugs %q", got)
	}
	if got := FormatSockets(nil) + FormatPlugs(nil); got != "" {
		t.Errorf("empty lists are %q", got)
	}
	if got, err := ParseSockets(FormatSockets(sockets)); err != nil || !reflect.DeepEqual(got, sockets) {
		t.Errorf("sockets %v, %v", got, err)
	}
	if got, err := ParsePlugs(FormatPlugs(plugs)); err != nil || !reflect.DeepEqual(got, plugs) {
		t.Errorf("plugs %v, %v", got, err)
	}
	if got, err := ParseSockets("()"); got != nil || err != nil {
		t.Errorf("no sockets: %v, %v", got, err)
	}
	if got, err := ParsePlugs(""); got != nil || err != nil {
		t.Errorf("no plugs: %v, %v", got, err)
	}
	var p *ProtocolError
	if got, err := ParseSockets("S1, x"); got != nil || !errors.As(err, &p) || p.Field != "socket_configuration" || p.Value != "S1, x" {
		t.Errorf("bad sockets: %v, %v", got, err)
	}
	if got, err := ParsePlugs("P1, S1"); got != nil || !errors.As(err, &p) || p.Field != "plug_configuration" || p.Value != "P1, S1" {
		t.Errorf("bad plugs: %v, %v", got, err)
	}
}

func TestValidName(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]bool{
		"A": true, "_": true, "9": true, "a.b-c_D9": true, strings.Repeat("a", MaxName): true,
		"": false, ".a": false, "-a": false, "a b": false, "a~b": false, "é": false, "a\n": false, strings.Repeat("a", MaxName+1): false,
	} {
		if got := ValidName(s); got != want {
			t.Errorf("ValidName(%q) = %v", s, got)
		}
	}
}

func TestNamesOfNothing(t *testing.T) {
	t.Parallel()
	if got := Type(0).String() + Type(numTypes).String() + Actor(0).String(); got != "Type(0)Type(23)Actor(0)" {
		t.Error(got)
	}
}
