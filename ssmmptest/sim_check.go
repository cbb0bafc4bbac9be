package ssmmptest

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
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
	hash     uint64 // of the first answer
}

type simOpen struct {
	src, dst  ssmmp.InstanceID
	messageID int64
	opened    bool
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
	awaySince time.Duration
	heard     time.Duration // less what was skipped
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
	c.vertices, c.agents = map[[2]string]*simVertex{}, map[netip.Addr]*simAgent{}
	c.conns, c.asked, c.commands = map[ssmmp.ConnID]netip.Addr{}, map[int64]simAsked{}, map[ssmmp.CallID]any{}
	c.lastNow, c.skipped = 0, 0
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

// responseInstance returns which instance a response names, and whether m is
// one.
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
	c.foreign, c.speaks, c.register = false, 0, netip.Addr{}
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
	}
	if id := simSender(in.Msg); id != 0 {
		if i := c.live[id]; i != nil && i.node != node {
			c.speaks = id
		}
	}
}

// request returns the record of a session request.
func (i *simInstance) request(id int64, plug, socket string) *simRequest {
	for k := range i.requests {
		if r := &i.requests[k]; r.id == id && r.socket == socket {
			return r
		}
	}
	if len(i.requests) >= 4*simAnswers {
		// The oldest that is answered.
		for k := range i.requests {
			if i.requests[k].answered > 0 {
				i.requests = slices.Delete(i.requests, k, k+1)
				break
			}
		}
	}
	i.requests = append(i.requests, simRequest{id: id, plug: strings.Clone(plug), socket: strings.Clone(socket)}) // they may be borrowed
	return &i.requests[len(i.requests)-1]
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
		c.event(in, ev)
	}
	if in.Kind == ssmmp.ManagerInputLost {
		delete(c.conns, in.Conn)
	}
	for i := range out {
		c.output(in, &out[i])
	}
}

// event applies an event to the model.
func (c *simCheck) event(in *ssmmp.ManagerInput, ev *ssmmp.Event) {
	cfg := &c.s.manager.cfg
	i := c.live[ev.Instance]
	switch ev.Kind {
	case ssmmp.EventInstanceReady, ssmmp.EventInstanceStopping, ssmmp.EventInstanceEnded, ssmmp.EventHealthChanged:
		if i == nil {
			c.fail("events concern what lives", "%s", ev)
			return
		}
	}
	switch ev.Kind {
	case ssmmp.EventGraphDeployed:
		for key, v := range c.vertices {
			if key[0] == ev.Graph {
				v.quick = 0
			}
		}

	case ssmmp.EventAgentRegistered:
		a := c.agents[ev.Node]
		if a == nil {
			a = &simAgent{}
			c.agents[ev.Node] = a
		}
		if a.up && !c.replaying {
			c.s.hit(SimSuperseded)
		}
		a.up, a.lost, a.heard = true, false, in.Now-c.skipped

	case ssmmp.EventAgentAway:
		if a := c.agents[ev.Node]; a != nil {
			a.up, a.awaySince = false, in.Now
		}

	case ssmmp.EventAgentLost:
		a := c.agents[ev.Node]
		if a == nil || a.up || a.lost || in.Now-a.awaySince < cfg.LostAfter {
			c.fail("an agent is lost only when it was away for long", "%s", ev)
			return
		}
		a.lost = true

	case ssmmp.EventInstanceRequested:
		v := c.vertices[[2]string{ev.Graph, ev.Vertex}]
		a := c.agents[ev.Node]
		if ev.Instance <= c.greatest && !c.replaying {
			c.fail("no id is used twice", "%s after %d", ev, c.greatest)
		}
		c.greatest = max(c.greatest, ev.Instance)
		if v == nil || a == nil || !a.up {
			c.fail("an instance is requested where an agent is", "%s", ev)
			return
		}
		if v.kind == ssmmp.Storage && v.live > 0 {
			c.fail("one instance of a storage service runs", "%s", ev)
		}
		if v.kind == ssmmp.Gateway && v.live > 0 {
			c.fail("one instance of a gateway runs", "%s", ev)
		}
		if n := cfg.InstancesPerService; n > 0 && v.live >= n {
			c.fail("no more instances than InstancesPerService", "%s", ev)
		}
		if v.quick >= simQuickEnds && in.Now-v.lastEnd < time.Second {
			c.fail("starts are held back after quick ends", "%s, %d quick ends, the last %v ago", ev, v.quick, in.Now-v.lastEnd)
		}
		v.live++
		c.live[ev.Instance] = &simInstance{graph: ev.Graph, vertex: ev.Vertex, service: ev.Service, node: ev.Node, sockets: ev.Sockets,
			requested: in.Now, idleSince: in.Now}
		for _, p := range ev.Sockets {
			at := netip.AddrPortFrom(ev.Node, p.Port)
			if other, held := c.ports[at]; held {
				c.fail("no port is held twice on a node", "%s: %s is held by %d", ev, at, other)
			}
			if t, ok := c.freed[at]; ok && p.Port >= cfg.FirstPort && p.Port <= cfg.LastPort && in.Now-t < cfg.PortLinger {
				c.fail("a freed port rests", "%s: %s was freed %v ago", ev, at, in.Now-t)
			}
			c.ports[at] = ev.Instance
		}

	case ssmmp.EventInstanceReady:
		if i.ready || c.ids[ev.Instance] == nil {
			c.fail("an instance is ready once, and was executed", "%s", ev)
		}
		i.ready, i.readyAt = true, in.Now

	case ssmmp.EventInstanceStopping:
		if i.stopping {
			c.fail("a shutdown begins once", "%s", ev)
		}
		i.stopping = true
		if ev.Cause == "idle" && (i.open+i.offered > 0 || in.Now-i.idleSince < cfg.IdleAfter) {
			c.fail("only who was without a session for IdleAfter is idle", "%s: %d sessions, idle for %v", ev, i.open+i.offered, in.Now-i.idleSince)
		}

	case ssmmp.EventInstanceEnded:
		if i.open+i.offered > 0 {
			c.fail("sessions close before their instance ends", "%s: %d sessions", ev, i.open+i.offered)
		}
		if p, a := c.ids[ev.Instance], c.agents[i.node]; p != nil && !p.finished && !p.ended && !(a != nil && a.lost) && p.running && !c.replaying {
			c.fail("what ended does not run", "%s, and its process runs on %s", ev, p.host.name)
		}
		v := c.vertices[[2]string{ev.Graph, ev.Vertex}]
		v.live--
		if !i.stopping {
			if i.ready && in.Now-i.readyAt >= simQuickEnd || in.Now-v.lastEnd > simQuickEnd+time.Minute {
				v.quick = 0
			}
			v.quick++
			v.lastEnd = in.Now
		}
		for _, p := range i.sockets {
			at := netip.AddrPortFrom(i.node, p.Port)
			delete(c.ports, at)
			c.freed[at] = in.Now
		}
		delete(c.live, ev.Instance)

	case ssmmp.EventSessionOffered:
		src, dst := c.live[ev.Source], c.live[ev.Destination]
		slot, gen := uint32(ev.Session), uint32(ev.Session>>32)
		if gen <= c.uses[slot] {
			c.fail("no session id is used twice", "%s", ev)
		}
		c.uses[slot] = gen
		if src == nil || dst == nil || !dst.ready || dst.stopping {
			c.fail("a session joins instances that are live when it is granted", "%s", ev)
			return
		}
		e, ok := c.vertices[[2]string{src.graph, src.vertex}].edges[ev.Plug]
		if !ok || src.graph != dst.graph || e.To != dst.vertex || e.Socket != ev.Socket {
			c.fail("a session lies on an edge of the graph", "%s", ev)
		}
		if n := cfg.SessionsPerInstance; n > 0 && dst.serves >= n {
			c.fail("no more sessions than SessionsPerInstance", "%s: %d", ev, dst.serves)
		}
		r := src.request(ev.MessageID, ev.Plug, ev.Socket)
		if c.replaying {
			r.asked, r.answered = 1, 1
		}
		if r.asked == 0 || r.granted {
			c.fail("a session is granted once, to who asked", "%s", ev)
		}
		r.granted, r.decided = true, true
		port := uint16(0)
		for _, p := range dst.sockets {
			if p.Socket == ev.Socket {
				port = p.Port
			}
		}
		r.hash = simAnswerHash(ssmmp.StatusOK, ev.Destination, port)
		src.offered++
		dst.offered++
		dst.serves++
		c.sessions[ev.Session] = &simOpen{src: ev.Source, dst: ev.Destination, messageID: ev.MessageID}

	case ssmmp.EventSessionRefused:
		if src := c.live[ev.Source]; src != nil && ev.Status != ssmmp.StatusForbidden {
			r := src.request(ev.MessageID, ev.Plug, ev.Socket)
			if c.replaying {
				r.asked, r.answered = 1, 1
			}
			if !r.decided {
				r.hash = simAnswerHash(ev.Status, 0, 0)
			}
			r.decided = true
		}

	case ssmmp.EventSessionOpened:
		o := c.sessions[ev.Session]
		if o == nil || o.opened || o.src != ev.Source || o.dst != ev.Destination {
			c.fail("a session opens once, after it was granted", "%s", ev)
			return
		}
		o.opened = true
		for _, id := range [...]ssmmp.InstanceID{o.src, o.dst} {
			if i := c.live[id]; i != nil {
				i.offered--
				i.open++
			}
		}

	case ssmmp.EventSessionClosed:
		o := c.sessions[ev.Session]
		if o == nil {
			c.fail("a session closes exactly once", "%s", ev)
			return
		}
		delete(c.sessions, ev.Session)
		for _, id := range [...]ssmmp.InstanceID{o.src, o.dst} {
			i := c.live[id]
			if i == nil {
				continue
			}
			if o.opened {
				i.open--
			} else {
				i.offered--
			}
			if i.open+i.offered == 0 {
				i.idleSince = in.Now
			}
		}
		if i := c.live[o.dst]; i != nil {
			i.serves--
		}
	}
}

// output checks what leaves the Manager.
func (c *simCheck) output(in *ssmmp.ManagerInput, o *ssmmp.ManagerOutput) {
	switch o.Kind {
	case ssmmp.ManagerOutputClose:
		delete(c.conns, o.Conn)
		return
	case ssmmp.ManagerOutputReply:
		c.replied(o)
		return
	}
	if want, id := simWants(o.Msg); want != 0 {
		node, ok := c.conns[o.Conn]
		if !ok && c.register.IsValid() && in.Conn == o.Conn {
			node, ok = c.register, true
		}
		if !ok {
			c.fail("requests go to registered agents", "%s to connection %d", o.Msg.Type(), o.Conn)
			return
		}
		message := o.Msg.Head().MessageID
		if a, again := c.asked[message]; message <= c.messages && !c.register.IsValid() && !(again && a.node == node && a.want == want && a.instance == id) {
			c.fail("no message id is used twice", "%s %d, and %d was used", o.Msg.Type(), message, c.messages)
		}
		c.messages = max(c.messages, message)
		c.asked[message] = simAsked{node, want, id, c.s.now}
		i := c.live[id]
		switch o.Msg.(type) {
		case *ssmmp.ExecutionRequest:
			if i == nil || i.node != node {
				c.fail("nothing executes without a recorded intent", "execution of %d on %s", id, node)
			}
		case *ssmmp.GracefulShutdownRequest, *ssmmp.HardShutdownRequest:
			if i != nil && i.open > 0 && !c.register.IsValid() {
				c.fail("no shutdown while a session is open", "%s of %d with %d sessions", o.Msg.Type(), id, i.open)
			}
			if i != nil && !i.stopping && !c.register.IsValid() {
				c.fail("an instance that is shut down is recorded to stop", "%s of %d", o.Msg.Type(), id)
			}
		}
		return
	}
	switch m := o.Msg.(type) {
	case *ssmmp.InitiationResponse:
		if m.Status.Success() && c.register.IsValid() {
			for conn, a := range c.conns {
				if a == c.register && conn != o.Conn {
					delete(c.conns, conn)
				}
			}
			c.conns[o.Conn] = c.register
		}
	case *ssmmp.SessionResponse:
		c.answer(in, o, m)
	}
}

func (c *simCheck) answer(in *ssmmp.ManagerInput, o *ssmmp.ManagerOutput, m *ssmmp.SessionResponse) {
	i := c.live[m.SourceServiceInstanceID]
	if i == nil || i.node != c.conns[o.Conn] {
		if m.Status.Success() {
			c.fail("a session is granted to who asked", "%d", m.SourceServiceInstanceID)
		}
		return
	}
	if m.Status == ssmmp.StatusForbidden || m.Status == ssmmp.StatusBadMessage {
		return // repeats what was asked, right or wrong
	}
	r := i.request(m.MessageID, "", m.DestSocketName)
	if r.answered++; r.answered > r.asked {
		c.fail("a request gets one answer", "%d answers to %d requests %d of instance %d", r.answered, r.asked, m.MessageID, m.SourceServiceInstanceID)
	}
	if m.Status.Success() && !r.granted {
		c.fail("a grant is recorded before its answer leaves", "request %d of instance %d", m.MessageID, m.SourceServiceInstanceID)
	}
	if h := simAnswerHash(m.Status, m.DestServiceInstanceID, m.DestSocketPort); r.hash != h {
		c.fail("a duplicate request gets the same answer", "request %d of instance %d is answered with %s", m.MessageID, m.SourceServiceInstanceID, m.Status)
	}
}

func simAnswerHash(status ssmmp.Status, dest ssmmp.InstanceID, port uint16) uint64 {
	return simMix(uint64(status), uint64(dest)<<16|uint64(port))
}

// replied checks that what an operator is told is true.
func (c *simCheck) replied(o *ssmmp.ManagerOutput) {
	cmd, ok := c.commands[o.Call]
	if !ok {
		c.fail("a command gets one outcome", "call %d", o.Call)
		return
	}
	delete(c.commands, o.Call)
	if o.Err != nil {
		return
	}
	switch cmd := cmd.(type) {
	case ssmmp.ShutdownCommand:
		if c.live[cmd.Instance] != nil {
			c.fail("a command's outcome is true", "instance %d is not shut down", cmd.Instance)
		}
	case ssmmp.CloseSessionCommand:
		if c.sessions[cmd.Session] != nil {
			c.fail("a command's outcome is true", "session %s is not closed", cmd.Session)
		}
	case ssmmp.UndeployCommand:
		for _, i := range c.live {
			if i.graph == cmd.Graph {
				c.fail("a command's outcome is true", "instances of %s run", cmd.Graph)
				return
			}
		}
	case ssmmp.DeployCommand:
		for _, g := range c.s.sim.Graphs {
			if g.Name != cmd.Graph {
				continue
			}
			for _, v := range g.Gateways() {
				ready := false
				for _, i := range c.live {
					ready = ready || i.graph == g.Name && i.vertex == v && i.ready
				}
				if !ready {
					c.fail("a command's outcome is true", "gateway %s of %s is not ready", v, g.Name)
				}
			}
		}
	}
}

// beforeAgent looks at an input before an agent does.
func (c *simCheck) beforeAgent(n *simNode, in *ssmmp.AgentInput) {
	if in.Kind != ssmmp.AgentInputMessage {
		return
	}
	switch m := in.Msg.(type) {
	case *ssmmp.HardShutdownRequest:
		if p := n.byID[m.ServiceInstanceID]; p != nil {
			p.mayDie = true
		}
	case *ssmmp.TerminationInfo:
		if p := n.byID[m.ServiceInstanceID]; p != nil && n.ends[in.Conn] != nil && n.ends[in.Conn].peer().who == &p.simActor {
			p.mayDie = true
		}
	case *ssmmp.ExecutionRequest:
		n.executes[m.MessageID] = m.ServiceInstanceID
	}
}

// agentOutput looks at what an agent wants done.
func (c *simCheck) agentOutput(n *simNode, in *ssmmp.AgentInput, o *ssmmp.AgentOutput) {
	switch o.Kind {
	case ssmmp.AgentOutputLaunch:
		id := o.Launch.ID
		want, ok := c.intents[id]
		if !ok || want.node != n.host.addr || want.service != o.Launch.Service {
			c.fail("nothing executes without a durable intent", "%s launches %s %d", n.name, o.Launch.Service, id)
		}
		if c.ids[id] != nil {
			c.fail("no id is executed twice", "%s launches %s %d", n.name, o.Launch.Service, id)
		}
	case ssmmp.AgentOutputKill:
		p := n.byID[o.Instance]
		if p != nil && !p.mayDie && !n.stopping && n.local(c.s.now)-p.asked < n.cfg.StartTimeout {
			c.fail("nothing is killed that nobody wants killed", "%s kills %s", n.name, p.name)
		}
	case ssmmp.AgentOutputSend:
		c.agentSends(n, in, o)
	}
}

func (c *simCheck) agentSends(n *simNode, in *ssmmp.AgentInput, o *ssmmp.AgentOutput) {
	e := n.ends[o.Conn]
	if e == nil {
		return
	}
	if e == n.manager {
		_, again := in.Msg.(*ssmmp.InitiationResponse) // what was reported before is sent again
		if id := simSender(o.Msg); id != 0 {
			if p := c.ids[id]; (p == nil || p.node != n) && !simResponse(o.Msg) {
				c.fail("an agent speaks only for its own instances", "%s sends %s of %d", n.name, o.Msg.Type(), id)
			}
		}
		switch m := o.Msg.(type) {
		case *ssmmp.ExecutionResponse:
			id, ok := n.executes[m.MessageID]
			if p := n.byID[id]; ok && m.Status.Success() && !again && (p == nil || !p.joined && !p.listened) {
				c.fail("ready is who spoke, or listens", "%s says that %d is ready", n.name, id)
			}
		case *ssmmp.HardShutdownResponse:
			if p := n.byID[m.ServiceInstanceID]; m.Status.Success() && !again && p != nil && (p.running || p.orphans) {
				c.fail("who is reported killed does not run", "%s says that nothing of %s runs", n.name, p.name)
			}
		}
		return
	}
	p, ok := e.peer().who.owner.(*simProc)
	if !ok {
		return
	}
	var to ssmmp.InstanceID
	if r, ok := o.Msg.(*ssmmp.SessionResponse); ok {
		to = r.SourceServiceInstanceID
	} else {
		_, to = simWants(o.Msg)
	}
	if to != 0 && to != p.id {
		c.fail("a message reaches the instance that it names", "%s sends %s of %d to %s", n.name, o.Msg.Type(), to, p.name)
	}
}

// launched looks at a process that begins.
func (c *simCheck) launched(p *simProc) {
	c.ids[p.id] = p
	c.everyID = append(c.everyID, p.id)
	cfg := &c.s.manager.cfg
	for _, q := range p.node.procs {
		if q == p || q.ended {
			continue
		}
		for _, k := range p.launch.Sockets {
			for _, o := range q.launch.Sockets {
				if k.Port == o.Port && k.Port >= cfg.FirstPort && k.Port <= cfg.LastPort {
					c.fail("no port is held twice on a node", "%s runs, and %s has port %d as well", p.name, q.name, k.Port)
				}
			}
		}
	}
}

// instanceGets looks at a message for an instance.
func (c *simCheck) instanceGets(p *simProc, m ssmmp.Message) {
	if r, ok := m.(*ssmmp.SessionResponse); ok && r.SourceServiceInstanceID != p.id {
		c.fail("a message reaches the instance that it names", "%s of %d reaches %s", m.Type(), r.SourceServiceInstanceID, p.name)
	}
}

// instanceOutput looks at what an instance's core wants done.
func (c *simCheck) instanceOutput(p *simProc, o *ssmmp.InstanceOutput) {
	switch o.Kind {
	case ssmmp.InstanceOutputConnect, ssmmp.InstanceOutputRefuse:
		if d := p.dials[o.Call]; d == nil || !d.asked || d.done {
			c.fail("a dial has one outcome", "call %d of %s", o.Call, p.name)
		}
	case ssmmp.InstanceOutputDrop:
		if p.session(o.Conn) == nil {
			c.fail("only an open session is closed", "connection %d of %s", o.Conn, p.name)
		}
	}
}

// silence looks for agents that the Manager takes to be there, and does not hear.
func (c *simCheck) silence() {
	m := c.s.manager
	if m.dead || m.frozen {
		return
	}
	patience := time.Duration(m.cfg.HealthMisses+2)*m.cfg.HealthPeriod + time.Second
	for _, n := range c.s.nodes {
		a := c.agents[n.host.addr]
		if a == nil || !a.up {
			continue
		}
		if silent := c.lastNow - c.skipped - a.heard; silent > patience {
			c.fail("silence is not health", "nothing was heard of %s for %v", n.name, silent)
			return
		}
	}
}

// all compares the Manager's whole state with the model.
func (c *simCheck) all() {
	m := c.s.manager
	if m.dead || c.s.failure != nil {
		return
	}
	snap := m.core.Snapshot()
	if len(snap.Instances) != len(c.live) || len(snap.Sessions) != len(c.sessions) {
		c.fail("the state is what the events say", "%d instances and %d sessions, want %d and %d", len(snap.Instances), len(snap.Sessions), len(c.live), len(c.sessions))
		return
	}
	for k := range snap.Instances {
		i := &snap.Instances[k]
		o := c.live[i.ID]
		if o == nil || o.node != i.Node || o.vertex != i.Vertex || o.stopping != (i.State != ssmmp.InstanceStarting && i.State != ssmmp.InstanceRunning) ||
			!o.stopping && o.ready != (i.State == ssmmp.InstanceRunning) || o.open+o.offered != i.Sessions {
			c.fail("the state is what the events say", "%+v, and not %+v", *i, o)
			return
		}
	}
	for k := range snap.Sessions {
		x := &snap.Sessions[k]
		if o := c.sessions[x.ID]; o == nil || o.src != x.Source || o.dst != x.Destination || o.opened != (x.State != ssmmp.SessionOffered) {
			c.fail("the state is what the events say", "session %+v, and not %+v", *x, o)
			return
		}
	}
	p := m.core.Pending()
	if limit := 8*(len(c.live)+len(c.sessions)+len(c.ids)) + 64; p.Exchanges > limit || p.Waiting > limit*4 || p.Calls > 64 {
		c.fail("memory is bounded", "%+v with %d instances and %d sessions", p, len(c.live), len(c.sessions))
	}
	for id, a := range c.asked {
		if c.s.now-a.at > 10*time.Minute {
			delete(c.asked, id)
		}
	}
}

// unsettled says what is still wrong, now that no faults happen any more; empty
// if nothing is.
func (c *simCheck) unsettled() string {
	s := c.s
	m := s.manager
	if m.dead || m.frozen || len(m.held) > 0 {
		return "the Manager does not run"
	}
	snap := m.core.Snapshot()
	if p := m.core.Pending(); p.Exchanges > 0 || p.Waiting > 0 || p.Offers > 0 || len(c.commands) > 0 && len(s.deployed) > 0 {
		return fmt.Sprintf("the Manager waits: %+v", p)
	}
	if len(snap.Agents) != len(s.nodes) {
		return fmt.Sprintf("%d of %d agents are registered", len(snap.Agents), len(s.nodes))
	}
	for i := range snap.Agents {
		if snap.Agents[i].State != ssmmp.AgentUp {
			return fmt.Sprintf("agent %s is %s", snap.Agents[i].Address, snap.Agents[i].State)
		}
	}
	real := 0
	for _, n := range s.nodes {
		if n.dead || n.stopping {
			return n.name + " does not run"
		}
		p := n.core.Pending()
		if p.InFlight > 0 || p.Reports > 2*len(n.procs) || p.Relayed > len(n.procs) {
			return fmt.Sprintf("%s waits: %+v", n.name, p)
		}
		real += len(n.procs)
		for _, q := range n.procs {
			i := c.live[q.id]
			if i == nil || i.node != n.host.addr {
				return fmt.Sprintf("%s runs on %s, and the Manager does not know", q.name, n.host.name)
			}
			if q.core == nil || q.frozen {
				continue
			}
			if ip := q.core.Pending(); ip.Dials > 0 || ip.Conns != q.taken() || q.agent != nil && ip.Reports > 0 {
				return fmt.Sprintf("%s waits: %+v, %d sessions", q.name, ip, q.taken())
			}
		}
	}
	if real != len(snap.Instances) {
		return fmt.Sprintf("%d processes run, and the Manager knows of %d", real, len(snap.Instances))
	}
	for k := range snap.Instances {
		if i := &snap.Instances[k]; i.State != ssmmp.InstanceRunning {
			return fmt.Sprintf("%s %d is %s", i.Service, i.ID, i.State)
		}
	}
	known := map[simTriple]bool{}
	open := c.realSessions()
	for k := range snap.Sessions {
		x := &snap.Sessions[k]
		key := simTriple{x.Source, x.Destination, x.PlugPort, x.NewPort}
		if _, ok := open[key]; !ok || known[key] {
			return fmt.Sprintf("session %+v is not open", *x)
		}
		known[key] = true
	}
	for key, awake := range open {
		if awake && !known[key] {
			return fmt.Sprintf("a session from %d to %d is open, and the Manager does not know", key.src, key.dst)
		}
	}
	for _, g := range s.sim.Graphs {
		if !slices.Contains(s.deployed, g.Name) {
			continue
		}
		for _, v := range g.Gateways() {
			runs := false
			for k := range snap.Instances {
				runs = runs || snap.Instances[k].Graph == g.Name && snap.Instances[k].Vertex == v
			}
			if !runs {
				return fmt.Sprintf("gateway %s of %s does not run", v, g.Name)
			}
		}
	}
	for id, i := range c.live {
		for k := range i.requests {
			if r := &i.requests[k]; !r.decided && r.answered == 0 {
				return fmt.Sprintf("request %d of instance %d was never answered", r.id, id)
			}
		}
	}
	return ""
}

// taken counts the sessions that a process knows of.
func (p *simProc) taken() int {
	n := 0
	for _, e := range p.sessions {
		if e.taken {
			n++
		}
	}
	return n
}

// A simTriple names a session by its ends.
type simTriple struct {
	src, dst ssmmp.InstanceID
	m, l     uint16
}

// realSessions are those that an end holds. They are true when a process holds
// one that is not stopped.
func (c *simCheck) realSessions() map[simTriple]bool {
	open := map[simTriple]bool{}
	for _, n := range c.s.nodes {
		for _, p := range n.procs {
			for _, e := range p.sessions {
				src, dst := e.session.ends[0], e.session.ends[1]
				key := simTriple{src.p.id, dst.p.id, src.port, dst.port}
				open[key] = open[key] || !p.frozen && e.taken
			}
		}
	}
	return open
}

// reachable tells whether a plug leads to what an agent can execute.
func (c *simCheck) reachable(g *ssmmp.Graph, p *simProc, plug string) bool {
	i := c.live[p.id]
	if i == nil || i.graph != g.Name {
		return false
	}
	e := c.vertices[[2]string{i.graph, i.vertex}].edges[plug]
	v, _ := g.Vertex(e.To)
	for _, n := range c.s.nodes {
		for _, r := range n.cfg.Repository {
			if r.Service == v.Service {
				return true
			}
		}
	}
	return false
}
