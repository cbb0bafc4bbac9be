package ssmmp

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// Reports that were on their way when a connection to the Manager broke are
// sent again on the next one, and those that it has are not.
func TestAgentReportsHeard(t *testing.T) {
	t.Parallel()
	c := NewAgentCore(AgentConfig{Manager: "10.0.0.9:55555", Address: nodeAddr}.WithDefaults(), "one")
	step := func(in AgentInput) (said []string) {
		for _, o := range c.Step(in) {
			if m, ok := o.Msg.(*TerminationInfo); ok {
				said = append(said, fmt.Sprint(m.ServiceInstanceID))
			}
		}
		return said
	}
	register := func(conn ConnID, x ...Extension) []string {
		step(AgentInput{Kind: AgentInputManagerUp, Conn: conn})
		return step(AgentInput{Kind: AgentInputMessage, Conn: conn, Msg: &InitiationResponse{Header: Header{MessageID: c.registerID, Extensions: x}, Status: StatusOK}})
	}
	health := func(conn ConnID, id int64, x ...Extension) {
		step(AgentInput{Kind: AgentInputMessage, Conn: conn, Msg: &AgentHealthRequest{Header: Header{MessageID: id, SubType: ManagerToAgent, Extensions: x}, AgentNetworkAddress: nodeAddr}})
	}
	report := func(id InstanceID) {
		c.out = c.out[:0]
		c.toManager(&TerminationInfo{Header: Header{MessageID: c.ownID(), SubType: AgentToManager}, ServiceName: "B", ServiceInstanceID: id, ServiceInstanceNetworkAddress: nodeAddr})
	}
	want := func(when string, got []string, ids ...string) {
		t.Helper()
		if !slices.Equal(got, ids) {
			t.Errorf("%s: reports of %v, want %v", when, got, ids)
		}
	}

	want("first", register(1, Extension{extHeard, "0"}))
	report(1)
	health(1, 100)
	report(2)
	health(1, 101, Extension{extHeard, "100"}) // so it has 1
	report(3)
	step(AgentInput{Kind: AgentInputLost, Conn: 1})
	report(4)
	want("back", register(2, Extension{extHeard, "0"}), "2", "3", "4")
	health(2, 102)
	report(8)
	health(2, 103)
	health(2, 104, Extension{extHeard, "102"})
	if n := bytes.Count(c.reports, []byte("\n")); n != 1 {
		t.Errorf("%d reports are kept, want the one since", n)
	}
	health(2, 105, Extension{extHeard, "103"})
	if len(c.reports) > 0 {
		t.Errorf("%q is kept, want nothing", c.reports)
	}
	report(5)
	health(2, 104, Extension{extHeard, "7"}) // an answer that was never given
	step(AgentInput{Kind: AgentInputLost, Conn: 2})
	want("back again", register(3, Extension{extHeard, "0"}), "5")

	// A Manager that does not tell what it has gets what it cannot have, once.
	step(AgentInput{Kind: AgentInputLost, Conn: 3})
	report(6)
	want("a Manager that does not tell", register(4), "5", "6")
	report(7)
	step(AgentInput{Kind: AgentInputLost, Conn: 4})
	want("and that one again", register(5))
}

// A report that is too many to be kept is counted, and said, but not each one.
func TestAgentReportsBounded(t *testing.T) {
	t.Parallel()
	c := NewAgentCore(AgentConfig{Manager: "10.0.0.9:55555", Address: nodeAddr}.WithDefaults(), "one")
	c.Step(AgentInput{Kind: AgentInputManagerUp, Conn: 1})
	c.Step(AgentInput{Kind: AgentInputMessage, Conn: 1, Msg: &InitiationResponse{Header: Header{MessageID: c.registerID, Extensions: []Extension{{extHeard, "0"}}}, Status: StatusOK}})
	c.reports = make([]byte, maxReports)
	c.out = nil
	const reports = 1000
	for range reports {
		c.toManager(&TerminationInfo{Header: Header{MessageID: c.ownID(), SubType: AgentToManager}, ServiceName: "B", ServiceInstanceID: 1, ServiceInstanceNetworkAddress: nodeAddr})
	}
	said, sent := 0, 0
	for _, o := range c.out {
		switch {
		case o.Kind == AgentOutputSend:
			sent++
		case o.Kind == AgentOutputWarn && strings.Contains(o.Text, "reports"):
			said++
		}
	}
	if p := c.Pending(); p.Unkept != reports || c.dropped != reports || said != 10 || sent != reports {
		t.Errorf("%d are not kept, %d counted, %d said, %d sent; want %d, %[5]d, 10, %[5]d", p.Unkept, c.dropped, said, sent, reports)
	}
}

// Where there is no room any more for the ends of sessions, after which the
// Manager can ask, there is some for what it cannot find out.
func TestReportsRoom(t *testing.T) {
	t.Parallel()
	closed := &SourceSessionCloseInfo{Header: Header{MessageID: 1, SubType: AgentToManager}, SourceServiceName: "A", SourceServiceInstanceID: 1, SourceServiceInstanceNetworkAddress: nodeAddr,
		SourcePlugName: "P1", SourcePlugPort: 40000, DestServiceName: "B", DestServiceInstanceID: 2, DestServiceInstanceNetworkAddress: nodeAddr, DestSocketName: "S1", DestSocketPort: 54000, DestSocketNewPort: 54000, Status: StatusSessionClosed}
	ended := &TerminationInfo{Header: Header{MessageID: 2, SubType: AgentToManager}, ServiceName: "B", ServiceInstanceID: 1, ServiceInstanceNetworkAddress: nodeAddr}
	opened := &SessionAck{Header: Header{MessageID: 3, SubType: AgentToManager}, SourceServiceName: "A", SourceServiceInstanceID: 1, SourcePlugPort: 40000, DestSocketNewPort: 54000, Status: StatusOK}

	a := NewAgentCore(AgentConfig{Manager: "10.0.0.9:55555", Address: nodeAddr}.WithDefaults(), "one")
	i := NewInstanceCore(Launch{Service: "A", ID: 1, Address: nodeAddr})
	a.reports, i.kept = make([]byte, keptUpTo(closed)), keptUpTo(closed)
	for _, tt := range []struct {
		m    Message
		kept bool
	}{{closed, false}, {ended, true}, {opened, true}, {closed, false}} {
		before, reports := len(a.reports), len(i.reports)
		a.toManager(tt.m)
		i.report(tt.m)
		if kept := len(a.reports) > before; kept != tt.kept {
			t.Errorf("%s: kept by the agent: %v, want %v", tt.m.Type(), kept, tt.kept)
		}
		if kept := len(i.reports) > reports; kept != tt.kept {
			t.Errorf("%s: kept by the instance: %v, want %v", tt.m.Type(), kept, tt.kept)
		}
	}
}
