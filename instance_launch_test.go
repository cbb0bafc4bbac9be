package ssmmp

import (
	"net"
	"net/netip"
	"reflect"
	"strconv"
	"strings"
	"testing"
)

// env is a lookup in a map.
func env(vars map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		v, ok := vars[name]
		return v, ok
	}
}

func TestParseLaunch(t *testing.T) {
	t.Parallel()
	v4, v6 := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")
	sockets := []SocketPort{{"S1", 54000}, {"S2", 54001}}
	plugs := []PlugTarget{{"P1", "S4", "B"}, {"P2", "S2", "C"}}
	tests := []struct {
		name string
		args []string
		env  map[string]string
		want Launch
	}{
		{"PROTOCOL section 2", []string{"A", "7", "10.0.0.1", "S1, 54000 & S2, 54001", "P1, S4, B & P2, S2, C"}, nil,
			Launch{Service: "A", ID: 7, Address: v4, Sockets: sockets, Plugs: plugs, Agent: "localhost:55556"}},
		{"no sockets and no plugs", []string{"A", "7", "10.0.0.1", "", ""}, nil,
			Launch{Service: "A", ID: 7, Address: v4, Agent: "localhost:55556"}},
		{"arguments of the program before the five", []string{"-v", "--data", "/tmp", "A", "7", "10.0.0.1", "", ""}, nil,
			Launch{Service: "A", ID: 7, Address: v4, Agent: "localhost:55556"}},
		{"IPv6", []string{"A", "9223372036854775807", "fd00::1", "", ""}, nil,
			Launch{Service: "A", ID: 1<<63 - 1, Address: v6, Agent: "localhost:55556"}},
		{"IPv4 in IPv6", []string{"A", "7", "::ffff:10.0.0.1", "", ""}, nil,
			Launch{Service: "A", ID: 7, Address: v4, Agent: "localhost:55556"}},
		{"loopback node", []string{"A", "7", "127.0.0.3", "", ""}, nil,
			Launch{Service: "A", ID: 7, Address: netip.MustParseAddr("127.0.0.3"), Agent: "127.0.0.3:55556"}},
		{"IPv6 loopback node", []string{"A", "7", "::1", "", ""}, nil,
			Launch{Service: "A", ID: 7, Address: netip.IPv6Loopback(), Agent: "[::1]:55556"}},
		{"environment", []string{"A", "7", "127.0.0.3", "", ""}, map[string]string{"SSMMP_AGENT": "10.0.0.1:1", "SSMMP_SECRET": "s"},
			Launch{Service: "A", ID: 7, Address: netip.MustParseAddr("127.0.0.3"), Agent: "10.0.0.1:1", Secret: "s"}},
		{"empty environment", []string{"A", "7", "10.0.0.1", "", ""}, map[string]string{"SSMMP_AGENT": "", "SSMMP_SECRET": ""},
			Launch{Service: "A", ID: 7, Address: v4, Agent: "localhost:55556"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := ParseLaunch(tt.args, env(tt.env))
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got  %+v\nwant %+v", got, tt.want)
			}
		})
	}
}

func TestParseLaunchFaults(t *testing.T) {
	t.Parallel()
	const usage = "want service_name instance_id network_address socket_configuration plug_configuration"
	tests := []struct {
		args []string
		want string
	}{
		{nil, "0 arguments, " + usage},
		{[]string{"A", "7", "10.0.0.1", "S1, 54000"}, "4 arguments, " + usage},
		{[]string{"", "7", "10.0.0.1", "", ""}, `service_name "": not a name`},
		{[]string{"../A", "7", "10.0.0.1", "", ""}, `service_name "../A": not a name`},
		{[]string{"A\n", "7", "10.0.0.1", "", ""}, `service_name "A\n": not a name`},
		{[]string{"A", "", "10.0.0.1", "", ""}, `instance_id "": not a positive integer`},
		{[]string{"A", "0", "10.0.0.1", "", ""}, `instance_id "0": not a positive integer`},
		{[]string{"A", "-7", "10.0.0.1", "", ""}, `instance_id "-7": not a positive integer`},
		{[]string{"A", "9223372036854775808", "10.0.0.1", "", ""}, `instance_id "9223372036854775808": not a positive integer`},
		{[]string{"A", "7", "node-1", "", ""}, `network_address "node-1": not the address of a node`},
		{[]string{"A", "7", "10.0.0.1:80", "", ""}, `network_address "10.0.0.1:80": not the address of a node`},
		{[]string{"A", "7", "0.0.0.0", "", ""}, `network_address "0.0.0.0": not the address of a node`},
		{[]string{"A", "7", "::ffff:0.0.0.0", "", ""}, `network_address "::ffff:0.0.0.0": not the address of a node`},
		{[]string{"A", "7", "fe80::1%eth0", "", ""}, `network_address "fe80::1%eth0": not the address of a node`},
		{[]string{"A", "7", "10.0.0.1", "S1", ""}, `socket_configuration "S1": `},
		{[]string{"A", "7", "10.0.0.1", "S1, 0", ""}, `socket_configuration "S1, 0": `},
		{[]string{"A", "7", "10.0.0.1", "S1, 65536", ""}, `socket_configuration "S1, 65536": `},
		{[]string{"A", "7", "10.0.0.1", "", "P1, S4"}, `plug_configuration "P1, S4": `},
		{[]string{"A", "7", "10.0.0.1", "", "P1, S4, B, C"}, `plug_configuration "P1, S4, B, C": `},
	}
	for _, tt := range tests {
		got, err := ParseLaunch(tt.args, env(nil))
		if err == nil {
			t.Errorf("%q: %+v; want the error %s", tt.args, got, tt.want)
			continue
		}
		text := strings.TrimPrefix(err.Error(), "ssmmp: command line: ")
		// The lists' own reasons are the codec's matter, and tested there.
		if text != tt.want && !(strings.HasSuffix(tt.want, ": ") && strings.HasPrefix(text, tt.want)) || !reflect.DeepEqual(got, Launch{}) {
			t.Errorf("%q: %+v, %v; want %s", tt.args, got, err, tt.want)
		}
	}
}

// What is taken is good enough to join with, and says the same when it is
// written again.
func FuzzParseLaunch(f *testing.F) {
	f.Add("A", "7", "10.0.0.1", "S1, 54000 & S2, 54001", "P1, S4, B & P2, S2, C", "")
	f.Add("A", "7", "::1", "", "", "h:1")
	f.Add("A", "+07", "::ffff:127.0.0.1", "(S1, 1);", "[P, S, B]", ":")
	f.Fuzz(func(t *testing.T, service, id, address, sockets, plugs, agent string) {
		lookup := env(map[string]string{"SSMMP_AGENT": agent})
		l, err := ParseLaunch([]string{"before", service, id, address, sockets, plugs}, lookup)
		if err != nil {
			if !reflect.DeepEqual(l, Launch{}) {
				t.Errorf("%+v beside the error %v", l, err)
			}
			return
		}
		if !ValidName(l.Service) || l.ID <= 0 || !l.Address.IsValid() || l.Address.Is4In6() || l.Agent == "" {
			t.Fatalf("taken: %+v", l)
		}
		if agent == "" {
			if _, port, err := net.SplitHostPort(l.Agent); err != nil || port != strconv.Itoa(AgentPort) {
				t.Fatalf("agent %q", l.Agent)
			}
		}
		again, err := ParseLaunch([]string{l.Service, strconv.FormatInt(int64(l.ID), 10), l.Address.String(), FormatSockets(l.Sockets), FormatPlugs(l.Plugs)}, lookup)
		if err != nil || !reflect.DeepEqual(again, l) {
			t.Fatalf("%+v became %+v, %v", l, again, err)
		}
	})
}
