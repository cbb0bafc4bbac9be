package ssmmptest

import (
	"net/netip"
	"time"

	"github.com/ssmmp/ssmmp"
)

// What must hold after every step. The checker keeps a model of its own of what
// the Manager's events say, and knows what really runs.

const (
	simQuickEnd  = 30 * time.Second // an instance that ends sooner counts as a quick end
	simQuickEnds = 3                // after so many of them starts are held back
	simAnswers   = 16               // answers that a duplicate request must get again
)

type simCheck struct {
	s *simRun

	// What really happened, whatever the Manager believes.
	ids      map[ssmmp.InstanceID]*simProc // every one that was launched
	everyID  []ssmmp.InstanceID
	intents  map[ssmmp.InstanceID]simIntent // committed
	greatest ssmmp.InstanceID

	// The model of this Manager's state.
	live      map[ssmmp.InstanceID]*simInstance
	ports     map[netip.AddrPort]ssmmp.InstanceID
	freed     map[netip.AddrPort]time.Duration // by the Manager's clock
	sessions  map[ssmmp.SessionID]*simOpen
	uses      map[uint32]uint32 // of session slots
	vertices  map[[2]string]*simVertex
	ofGraph   map[string][]*simVertex
	agents    map[netip.Addr]*simAgent
	conns     map[ssmmp.ConnID]netip.Addr // registered
	asked     map[int64]simAsked
	commands  map[ssmmp.CallID]any
	lastNow   time.Duration
	skipped   time.Duration    // by jumps of the Manager's clock
	foreign   bool             // the message under way is a response that was not asked for
	speaks    ssmmp.InstanceID // of another node, for whom the message under way speaks
	register  netip.Addr       // by the message under way
	replaying bool             // what happened is told again
	messages  int64            // the greatest message id of the Manager's requests
	left      int64            // likewise, of those that were sent
	late      *simLateAck      // what the message under way is
	closedNow []simClosed      // in the step under way, and not asked to close before
	storm     bool             // so many agents are away that none is taken to be lost
	calm      time.Duration    // when that was over
}

type simIntent struct {
	node    netip.Addr
	service string
}

type simInstance struct {
	graph, vertex, service string
	node                   netip.Addr
	sockets                []ssmmp.SocketPort
	ready, stopping        bool
	requested, readyAt     time.Duration
	open, offered          int
	serves                 int // sessions of which it is the destination
	idleSince              time.Duration
	requests               []simRequest
	answers                int // to its requests, so far
}

// A simRequest is a session request, with what it was answered.
type simRequest struct {
	id       int64
	plug     string
	socket   string
	asked    int
	answered int
	decided  bool // granted or refused, whether the answer could be sent or not
	granted  bool
	opened   bool
	last     int // of answers, when it was decided for good
	dest     ssmmp.InstanceID
	hash     uint64 // of the first answer
}

type simOpen struct {
	src, dst  ssmmp.InstanceID
	messageID int64
	plugPort  uint16
	opened    bool
	closing   bool // the Manager wants it closed
}

type simVertex struct {
	kind    ssmmp.Kind
	live    int
	quick   int
	lastEnd time.Duration
	edges   map[string]ssmmp.Edge
}

type simAgent struct {
	up, lost  bool
	conn      ssmmp.ConnID // the last that registered
	awaySince time.Duration
	heard     time.Duration // less what was skipped
	strangers []ssmmp.InstanceID
}

// A simAsked is a request of the Manager.
type simAsked struct {
	node     netip.Addr
	want     ssmmp.Type
	instance ssmmp.InstanceID
	at       time.Duration // virtual time
}

func (c *simCheck) init(s *simRun) {
	c.s = s
	c.ids, c.intents = map[ssmmp.InstanceID]*simProc{}, map[ssmmp.InstanceID]simIntent{}
	c.managerStarted(nil)
}

// managerStarted makes the model that of a Manager that goes on from a history.
func (c *simCheck) managerStarted(history []ssmmp.Event) {
	c.live, c.ports, c.freed = map[ssmmp.InstanceID]*simInstance{}, map[netip.AddrPort]ssmmp.InstanceID{}, map[netip.AddrPort]time.Duration{}
	c.sessions, c.uses = map[ssmmp.SessionID]*simOpen{}, map[uint32]uint32{}
	c.vertices, c.ofGraph, c.agents = map[[2]string]*simVertex{}, map[string][]*simVertex{}, map[netip.Addr]*simAgent{}
	c.conns, c.asked, c.commands = map[ssmmp.ConnID]netip.Addr{}, map[int64]simAsked{}, map[ssmmp.CallID]any{}
	c.lastNow, c.skipped = 0, 0
	c.storm, c.calm, c.closedNow = false, 0, nil
	for _, g := range c.s.sim.Graphs {
		for _, v := range g.Vertices {
			sv, _ := g.Service(v.Service)
			m := &simVertex{kind: sv.Kind, edges: map[string]ssmmp.Edge{}}
			for _, e := range g.Edges {
				if e.From == v.Name {
					m.edges[e.Plug] = e
				}
			}
			c.vertices[[2]string{g.Name, v.Name}] = m
			c.ofGraph[g.Name] = append(c.ofGraph[g.Name], m)
		}
	}
	// What was decided and not committed has not left: it may be decided again.
	c.messages = c.left
	if !c.s.sim.Forgets {
		c.greatest = 0
	}
	c.replaying = true
	for i := range history {
		c.event(&ssmmp.ManagerInput{Now: history[i].At}, &history[i])
		c.lastNow = history[i].At
	}
	c.replaying = false
}

func (c *simCheck) fail(invariant, format string, args ...any) {
	c.s.fail(invariant, format, args...)
}

// committed notes what the store holds from now on.
func (c *simCheck) committed(events []ssmmp.Event) {
	for i := range events {
		if ev := &events[i]; ev.Kind == ssmmp.EventInstanceRequested {
			c.intents[ev.Instance] = simIntent{ev.Node, ev.Service}
		}
	}
}

// leaves notes that a request with a message id is sent.
func (c *simCheck) leaves(message int64) { c.left = max(c.left, message) }

// away tells whether the Manager misses an agent.
func (c *simCheck) away(a netip.Addr) bool { m := c.agents[a]; return m == nil || !m.up }

// simResponse tells whether m answers a request of the Manager.
func simResponse(m ssmmp.Message) bool {
	switch m.(type) {
	case *ssmmp.ExecutionResponse, *ssmmp.SourceSessionCloseResponse, *ssmmp.DestSessionCloseResponse, *ssmmp.GracefulShutdownResponse,
		*ssmmp.HardShutdownResponse, *ssmmp.InstanceHealthResponse, *ssmmp.AgentHealthResponse:
		return true
	}
	return false
}

// simWants returns the type of the response that a request of the Manager
// wants, and which instance it concerns; 0 if m is no request.
func simWants(m ssmmp.Message) (ssmmp.Type, ssmmp.InstanceID) {
	switch m := m.(type) {
	case *ssmmp.ExecutionRequest:
		return ssmmp.TypeExecutionResponse, m.ServiceInstanceID
	case *ssmmp.SourceSessionCloseRequest:
		return ssmmp.TypeSourceSessionCloseResponse, m.SourceServiceInstanceID
	case *ssmmp.DestSessionCloseRequest:
		return ssmmp.TypeDestSessionCloseResponse, m.DestServiceInstanceID
	case *ssmmp.GracefulShutdownRequest:
		return ssmmp.TypeGracefulShutdownResponse, m.ServiceInstanceID
	case *ssmmp.HardShutdownRequest:
		return ssmmp.TypeHardShutdownResponse, m.ServiceInstanceID
	case *ssmmp.InstanceHealthRequest:
		return ssmmp.TypeInstanceHealthResponse, m.ServiceInstanceID
	case *ssmmp.AgentHealthRequest:
		return ssmmp.TypeAgentHealthResponse, 0
	}
	return 0, 0
}

// beforeManager looks at an input before the Manager does.
func (c *simCheck) beforeManager(in *ssmmp.ManagerInput) {
	c.foreign, c.speaks, c.register, c.late = false, 0, netip.Addr{}, nil
	if d := in.Now - c.lastNow; d > c.s.manager.cfg.HealthPeriod {
		c.skipped += d - c.s.manager.cfg.HealthPeriod
	}
	c.lastNow = in.Now
	switch in.Kind {
	case ssmmp.ManagerInputCommand:
		c.commands[in.Call] = in.Cmd
	case ssmmp.ManagerInputCancel:
		delete(c.commands, in.Call)
	}
	if in.Kind != ssmmp.ManagerInputMessage {
		return
	}
	node := c.conns[in.Conn]
	if a := c.agents[node]; a != nil {
		a.heard = in.Now - c.skipped
	}
	if in.Msg.Head().Extension("x_secret") != "" {
		c.fail("a secret stays on its node", "%s", in.Msg.Type())
	}
	if simResponse(in.Msg) {
		id := in.Msg.Head().MessageID
		a, ok := c.asked[id]
		if ok && a.node == node && a.want == in.Msg.Type() {
			delete(c.asked, id)
		} else {
			c.foreign = true
		}
		return
	}
	switch m := in.Msg.(type) {
	case *ssmmp.InitiationRequest:
		c.register = m.AgentNetworkAddress
	case *ssmmp.SessionRequest:
		if i := c.live[m.SourceServiceInstanceID]; i != nil && i.node == node && i.service == m.SourceServiceName {
			i.request(m.MessageID, m.SourcePlugName, m.DestSocketName).asked++
		}
	case *ssmmp.SessionAck:
		if i := c.live[m.SourceServiceInstanceID]; i != nil && i.node == node {
			c.lateAck(m, i)
		}
	}
	if id := simSender(in.Msg); id != 0 {
		if i := c.live[id]; i != nil && i.node != node {
			c.speaks = id
		}
	}
}

// managerStep looks at what the Manager did with an input.
func (c *simCheck) managerStep(in *ssmmp.ManagerInput, out []ssmmp.ManagerOutput, events []ssmmp.Event) {
	if c.foreign {
		for i := range events {
			if events[i].Kind != ssmmp.EventProtocolViolated {
				c.fail("a response counts only from the peer that was asked", "%s %d from %s: %s",
					in.Msg.Type(), in.Msg.Head().MessageID, c.conns[in.Conn], events[i])
			}
		}
		for i := range out {
			if out[i].Kind == ssmmp.ManagerOutputSend {
				c.fail("a response counts only from the peer that was asked", "%s %d from %s: %s is sent",
					in.Msg.Type(), in.Msg.Head().MessageID, c.conns[in.Conn], out[i].Msg.Type())
			}
		}
	}
	for i := range events {
		ev := &events[i]
		if c.speaks != 0 && ev.Kind != ssmmp.EventProtocolViolated && ev.Kind != ssmmp.EventSessionRefused {
			c.fail("an agent speaks only for its own instances", "%s for instance %d: %s", c.conns[in.Conn], c.speaks, ev)
		}
		if in.StoreErr != nil && in.Kind != ssmmp.ManagerInputTime {
			c.begins(in, ev)
		}
		c.event(in, ev)
	}
	if in.Kind == ssmmp.ManagerInputLost {
		delete(c.conns, in.Conn)
	}
	for i := range out {
		c.output(in, &out[i])
	}
	c.asks(out, events)
}
