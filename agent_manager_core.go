package ssmmp

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The agent's core, continued: its Manager. How it registers, when it gives a
// Manager up, and the reports that it keeps until that has heard them.

const (
	// maxMarks bounds the health answers that are not known to be heard.
	maxMarks = 16
	// silentLooks is how often a Manager is silent before it is given up.
	silentLooks = 3
)

// A reportMark says how many bytes of reports were sent before an answer.
type reportMark struct {
	answer  int64 // message id of an agent_health_control_response
	reports int
}

// A reportWait says what goes on when the Manager has heard all reports up to a
// place: an ended instance is forgotten, or another told how many of those that
// it sent on its connection have arrived.
type reportWait struct {
	reports int // bytes up to there
	end     InstanceID
	conn    ConnID
	arrived int
}

// register introduces the agent to the Manager, with what it can execute and
// what it runs.
func (c *AgentCore) register(conn ConnID) {
	c.manager, c.registered, c.registerID, c.marks = conn, false, c.ownID(), nil
	var names []string
	for i := range c.cfg.Repository {
		names = append(names, c.cfg.Repository[i].Service)
	}
	m := &InitiationRequest{Header: Header{MessageID: c.registerID}, AgentNetworkAddress: c.cfg.Address, ServiceRepository: names}
	m.Extensions = append(m.Extensions, Extension{extAgent, c.identity})
	if c.epoch != 0 {
		m.Extensions = append(m.Extensions, Extension{extEpoch, strconv.FormatUint(c.epoch, 10)})
	}
	var list []InstanceID
	for id := range c.instances {
		list = append(list, id)
	}
	// One whose end is still to be reported counts as running until then: the
	// Manager shall learn how it ended.
	c.eachReport(func(m Message) {
		if m, ok := m.(*TerminationInfo); ok && c.instances[m.ServiceInstanceID] == nil {
			list = append(list, m.ServiceInstanceID)
		}
	})
	if len(list) > 0 {
		m.Extensions = append(m.Extensions, Extension{extInstances, formatInstanceList(list)})
	}
	c.send(conn, m)
	c.after(c.cfg.RequestTimeout, func() {
		if c.manager == conn && !c.registered {
			c.warn(conn, "the Manager does not answer the registration")
			c.out = append(c.out, AgentOutput{Kind: AgentOutputClose, Conn: conn})
		}
	})
}

func (c *AgentCore) registrationAnswered(m *InitiationResponse) {
	switch {
	case m.MessageID != c.registerID || c.registered:
		c.dropped++
	case c.fenced(m):
	case m.Status.Success():
		c.registered, c.hears = true, m.Extension(extHeard) != ""
		c.eachReport(func(m Message) {
			markAgain(m, 0)
			c.send(c.manager, m)
		})
		if !c.hears {
			c.heard(len(c.reports))
			c.reports = nil
		}
		if ms, err := strconv.ParseUint(m.Extension(extSilence), 10, 32); err == nil {
			c.spoke = false
			c.listen(c.manager, max(time.Duration(ms)*time.Millisecond/silentLooks, time.Second), 0)
		}
	default:
		c.out = append(c.out, AgentOutput{Kind: AgentOutputRefused, Conn: c.manager, Status: m.Status},
			AgentOutput{Kind: AgentOutputClose, Conn: c.manager})
	}
}

// fenced ends the connection to a Manager in whose place another one has come:
// it was stopped, or cut off, and goes on as if nothing had happened.
func (c *AgentCore) fenced(m Message) bool {
	epoch, err := strconv.ParseUint(m.Head().Extension(extEpoch), 10, 64)
	if err != nil || epoch >= c.epoch {
		c.epoch = max(c.epoch, epoch)
		return false
	}
	c.warn(c.manager, fmt.Sprintf("a Manager of epoch %d is not obeyed: this agent has obeyed one of epoch %d", epoch, c.epoch))
	c.out = append(c.out, AgentOutput{Kind: AgentOutputAbort, Conn: c.manager})
	return true
}

// listen gives a Manager up that says nothing for too long, though its
// connection stands: its process hangs, or its machine is gone. It looks several
// times, or an agent that stood still itself would take the Manager to have.
func (c *AgentCore) listen(conn ConnID, look time.Duration, silent int) {
	c.after(look, func() {
		switch {
		case c.manager != conn:
			return
		case c.spoke:
			c.spoke, silent = false, 0
		default:
			silent++
		}
		if silent == silentLooks {
			c.warn(conn, fmt.Sprintf("the Manager said nothing for %v: its connection is given up", (silentLooks*look).Round(time.Millisecond)))
			c.out = append(c.out, AgentOutput{Kind: AgentOutputAbort, Conn: conn})
			return
		}
		c.listen(conn, look, silent)
	})
}

// toManager sends a report. It is kept until the Manager is known to have it:
// what was on its way when a connection broke is sent again on the next one, and
// a report that comes twice does no harm.
func (c *AgentCore) toManager(m Message) {
	if c.registered {
		c.send(c.manager, m)
		if !c.hears {
			return // a Manager that does not tell what it has gets each once
		}
	}
	c.keep(m)
}

func (c *AgentCore) keep(m Message) {
	before := len(c.reports)
	c.reports, _ = AppendMessage(c.reports, m) // a message that cannot be sent is warned of when it is
	if len(c.reports) > keptUpTo(m) {
		c.reports = c.reports[:before]
		if c.unkept++; c.unkept&(c.unkept-1) == 0 { // of many, few are said
			c.warn(0, fmt.Sprintf("too many reports that the Manager is not known to have: %d are not kept, now a %s: "+
				"if the Manager does not get it, it has to find out by itself", c.unkept, m.Type()))
		} else {
			c.dropped++
		}
	}
}

// eachReport calls f with each report that is kept, oldest first.
func (c *AgentCore) eachReport(f func(Message)) {
	for line := range strings.Lines(string(c.reports)) {
		if m, err := ParseMessage(line); err == nil { // keep wrote it
			f(m)
		}
	}
}

// Unsent takes back a report that the connection to the Manager did not take.
func (c *AgentCore) Unsent(m Message) {
	switch m.(type) {
	case *SessionAck, *SourceSessionCloseInfo, *DestSessionCloseInfo, *TerminationInfo, *ExecutionResponse, *HardShutdownResponse:
		if !c.hears {
			c.keep(m)
		}
	}
}

// markAgain says of a report that a session closed that it may have been sent
// before. When it arrives its ports may be those of another session. request is
// the id of the session_request that it came of, 0 if that is not known.
func markAgain(m Message, request int64) {
	switch m.(type) {
	case *SourceSessionCloseInfo, *DestSessionCloseInfo:
		if h := m.Head(); h.Extension(extAgain) == "" {
			h.Extensions = append(h.Extensions, Extension{extAgain, strconv.FormatInt(request, 10)})
		}
	}
}

// health answers the Manager's request. What was sent before an answer that
// the Manager says it has heard, it has as well.
func (c *AgentCore) health(m *AgentHealthRequest) {
	if c.fenced(m) {
		return
	}
	heard := m.Extension(extHeard)
	for n, mark := range c.marks {
		if strconv.FormatInt(mark.answer, 10) != heard {
			continue
		}
		if c.reports = slices.Delete(c.reports, 0, mark.reports); len(c.reports) == 0 && cap(c.reports) > maxQueue {
			c.reports = nil // what a long absence left
		}
		c.heard(mark.reports)
		later := c.marks[n+1:]
		for k := range later {
			later[k].reports -= mark.reports
		}
		c.marks = slices.Delete(c.marks, 0, n+1)
		break
	}
	c.send(c.manager, &AgentHealthResponse{Header: Header{MessageID: m.MessageID, SubType: AgentToManager},
		AgentNetworkAddress: c.cfg.Address, Status: StatusOK})
	if c.hears {
		if len(c.marks) == maxMarks { // the Manager's store has no room: in the end it has the last one
			c.marks = slices.Delete(c.marks, 0, 1)
		}
		c.marks = append(c.marks, reportMark{m.MessageID, len(c.reports)})
	}
}

// whenHeard has it go on when the Manager has all reports of now.
func (c *AgentCore) whenHeard(w reportWait) {
	w.reports = len(c.reports)
	c.waits = append(c.waits, w)
	if w.reports == 0 {
		c.heard(0)
	}
}

// heard goes on with what waited for the first reports, of so many bytes.
func (c *AgentCore) heard(reports int) {
	n := 0
	for n < len(c.waits) && c.waits[n].reports <= reports {
		w := &c.waits[n]
		if w.end != 0 {
			c.out = append(c.out, AgentOutput{Kind: AgentOutputForget, Instance: w.end})
		} else if i := c.conns[w.conn]; i != nil && i.conn == w.conn {
			i.arrived = w.arrived
		}
		n++
	}
	c.waits = slices.Delete(c.waits, 0, n)
	for k := range c.waits {
		c.waits[k].reports -= reports
	}
}
