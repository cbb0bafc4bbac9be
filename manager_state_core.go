package ssmmp

import (
	"net/netip"
	"slices"
	"time"
)

// A ConnID is one connection of a runtime. It is its epoch as well: a runtime
// never gives the same one twice. Zero means none.
type ConnID uint64

// A cnapp is a deployed graph in the form that the Manager's core works on.
type cnapp struct {
	name     string
	graph    *Graph
	vertices []*vertex
	byName   map[string]*vertex
	gateways []*vertex
	live     int  // instances that have not ended
	retiring bool // undeployed; its last instances are ending

	deployed, undeployed uint64 // events
}

// A vertex is a place of a cnapp, with the instances that stand there.
type vertex struct {
	app     *cnapp
	name    string
	service string
	kind    Kind
	sockets []Socket
	edges   []vertexEdge
	plugs   []PlugTarget // the edges, as execution_request wants them
	depth   int          // length of the shortest way from a gateway
	reports string       // the cause of what an instance reports, said once

	instances []*instance // not ended, in the order of their ids
	order     instanceOrder

	// Starts that failed or died young, for backing off.
	quickEnds    int
	lastEnd      time.Duration
	notBefore    time.Duration
	nextRelief   time.Duration // when another may be started for want of one that is well
	lastNode     *agent        // where the last instance stood
	restartArmed bool          // a timer will start this gateway again
	ended        uint64        // event of the last end of an instance
}

type vertexEdge struct {
	plug   string
	socket string
	to     *vertex
}

func (v *vertex) edge(plug string) (int, bool) {
	for i := range v.edges {
		if v.edges[i].plug == plug {
			return i, true
		}
	}
	return 0, false
}

// newCNApp compiles a valid graph.
func newCNApp(g *Graph) *cnapp {
	app := &cnapp{name: g.Name, graph: g.Clone(), byName: map[string]*vertex{}}
	services := map[string]*Service{}
	for i := range app.graph.Services {
		services[app.graph.Services[i].Name] = &app.graph.Services[i]
	}
	for _, gv := range app.graph.Vertices {
		s := services[gv.Service]
		v := &vertex{app: app, name: gv.Name, service: s.Name, reports: "reported by " + s.Name, kind: s.Kind, sockets: s.Sockets, depth: -1}
		app.byName[v.name] = v
		app.vertices = append(app.vertices, v)
	}
	for _, e := range app.graph.Edges {
		from, to := app.byName[e.From], app.byName[e.To]
		from.edges = append(from.edges, vertexEdge{e.Plug, e.Socket, to})
		from.plugs = append(from.plugs, PlugTarget{Plug: e.Plug, Socket: e.Socket, Service: to.service})
	}
	// Breadth first from the gateways.
	for _, v := range app.vertices {
		if v.kind == Gateway {
			v.depth = 0
			app.gateways = append(app.gateways, v)
		}
	}
	queue := slices.Clone(app.gateways)
	for i := 0; i < len(queue); i++ {
		for _, e := range queue[i].edges {
			if e.to.depth < 0 {
				e.to.depth = queue[i].depth + 1
				queue = append(queue, e.to)
			}
		}
	}
	return app
}

// An agent is what the Manager knows of one node.
type agent struct {
	index    uint32 // place in ManagerCore.agents
	addr     netip.Addr
	actor    string // what events call it
	identity string // of the agent's process, empty if it told none
	services []string
	conn     ConnID // zero while it is away
	newest   ConnID // on which it registered
	lost     bool

	came, gone uint64 // events

	instances []*instance // not ended, in the order of their ids
	ports     portTable
	strangers map[InstanceID]bool // run there and should not; being killed
	toKill    []InstanceID        // of these, which it was not asked to kill yet
	exchanges []*exchange         // requests that wait for its response, in the order of their ids
	doubts    []*doubt            // that are still to be asked, oldest first
	doubting  map[doubtKey]*doubt // these, and those that are
	asking    int                 // how many are

	here         bool // registered and not away since; after a recovery it may be so without a connection
	awaySince    time.Duration
	backSince    time.Duration // when it registered last
	healthAsked  int64         // message id of the request under way, 0 when answered
	askedAt      time.Duration
	healthMissed int
	reports      int   // since it was asked
	hears        int64 // the last one that was answered on this connection
	hearsSeq     uint64
	heard        int64 // the last one of which it was told so, since all before is durable
}

func (a *agent) up() bool { return a.conn != 0 }

func (a *agent) state() AgentState {
	switch {
	case a.lost:
		return AgentIsLost
	case a.here:
		return AgentUp
	}
	return AgentIsAway
}

// portTable gives a node's ports to sockets. A port that was freed rests, so
// that what lingers of its connections cannot reach its next owner.
type portTable struct {
	first, last uint16
	linger      time.Duration
	held        map[uint16]InstanceID
	freed       map[uint16]time.Duration
	next        uint16
}

// find returns the next free port from one on, 0 if there is none. The search
// goes round: a port is used again as late as possible.
func (p *portTable) find(from uint16, now time.Duration) uint16 {
	if from < p.first || from > p.last {
		from = p.first
	}
	for port := from; ; {
		at, used := p.freed[port]
		if p.held[port] == 0 && (!used || now-at >= p.linger) {
			return port
		}
		if port = p.after(port); port == from {
			return 0
		}
	}
}

func (p *portTable) after(port uint16) uint16 {
	if port >= p.last {
		return p.first
	}
	return port + 1
}

// available tells whether n ports can be taken.
func (p *portTable) available(n int, now time.Duration) bool {
	size := int(p.last-p.first) + 1
	if size-len(p.held)-len(p.freed) >= n {
		return true
	}
	for port := p.first; n > 0; port++ {
		if at, used := p.freed[port]; p.held[port] == 0 && (!used || now-at >= p.linger) {
			n--
		}
		if port == p.last {
			break
		}
	}
	return n <= 0
}

func (p *portTable) hold(port uint16, id InstanceID) {
	p.held[port] = id
	delete(p.freed, port)
}

func (p *portTable) free(port uint16, now time.Duration) {
	delete(p.held, port)
	if port >= p.first && port <= p.last {
		p.freed[port] = now
	}
}

// An instanceState tells how far an instance is. The states only go forward.
type instanceState uint8

const (
	instanceStarting instanceState = iota // execution_request is under way
	instanceRunning                       // ready
	instanceDraining                      // its sessions are being closed
	instanceStopping                      // graceful_shutdown_request is under way
	instanceKilling                       // far ends are closing, or hard_shutdown_request is under way
	instanceEnded                         // runs no more; out of all tables
)

// An instance is what the Manager knows of one service instance.
type instance struct {
	id      InstanceID
	slot    uint32 // in ManagerCore.slots and in the session table
	v       *vertex
	a       *agent
	sockets []SocketPort
	state   instanceState

	ready    time.Duration // when it was ready, 0 before
	waiters  []waiter      // session requests that wait for it to be ready
	execute  int64         // message id of the execution_request
	killSent bool
	leaving  bool   // it is being taken out of the state
	why      string // cause of the shutdown under way
	failure  Status // what its end will count as, when that is a failure; else 0

	status       Status // last reported health
	suspect      bool   // a dial to it failed since it last reported well
	refused      bool   // likewise, but it may not have listened yet
	healthAsked  int64
	healthMissed int
	idleSince    time.Duration
	idleArmed    bool
	rank         instanceRank

	began, stopping, unwell uint64 // events

	doubtAgain time.Duration // when its sessions may be compared again
	offers     int           // that it has not acknowledged

	newestMessage int64 // the greatest message id that it used
	answers       answerRing
	unsaid        []sessionPorts // of closed sessions of which it was the destination, and has not said so
	unsaidMore    bool           // and of others, which are not among them any more
	lastReport    int64          // message id of the last report that a session closed
}

func (i *instance) live() bool { return i.state != instanceEnded }

func (i *instance) port(socket string) uint16 {
	for _, s := range i.sockets {
		if s.Socket == socket {
			return s.Port
		}
	}
	return 0
}

// sessionPorts are how a destination names a session: by them alone it cannot
// tell it from a later one.
type sessionPorts struct {
	node     *agent // of the source
	plugPort uint16
	socket   string
}

// maxUnsaid bounds the reports of an instance that are known one by one.
const maxUnsaid = 64

// addUnsaid notes that a session closed before its destination said so. What it
// says later may not be about the next session with the same ports.
func (i *instance) addUnsaid(p sessionPorts) {
	if len(i.unsaid) == maxUnsaid {
		i.unsaid = slices.Delete(i.unsaid, 0, 1)
		i.unsaidMore = true
	}
	i.unsaid = append(i.unsaid, p)
}

// takeUnsaid reports whether that was, or may have been, still to be said.
func (i *instance) takeUnsaid(p sessionPorts) bool {
	n, more := slices.Index(i.unsaid, p), i.unsaidMore
	if n >= 0 {
		i.unsaid = slices.Delete(i.unsaid, n, n+1)
	}
	i.unsaidMore = more && len(i.unsaid) > 0
	return n >= 0 || more
}

// A waiter is a session request whose answer waits for an instance to start.
type waiter struct {
	src       *instance
	edge      int
	messageID int64
	taken     int // starts that it waited for in vain, since a port was taken
}

// An answerRing remembers the answers that an instance got last, so that a
// duplicate request gets the same one.
type answerRing struct {
	ring []sessionAnswer
	next int
}

const answersKept = 32

type sessionAnswer struct {
	messageID int64
	edge      int
	dest      InstanceID
	address   netip.Addr
	port      uint16
	status    Status
	opened    bool // the session that was granted
}

func (r *answerRing) add(a sessionAnswer) {
	if len(r.ring) < answersKept {
		r.ring = append(r.ring, a)
		return
	}
	r.ring[r.next] = a
	r.next = (r.next + 1) % answersKept
}

// expired returns the answer to a request that was granted, and of which no
// session came.
func (r *answerRing) expired(messageID int64) (sessionAnswer, bool) {
	for _, a := range r.ring {
		if a.messageID == messageID && a.status.Success() && !a.opened {
			return a, true
		}
	}
	return sessionAnswer{}, false
}

func (r *answerRing) find(messageID int64, edge int) (sessionAnswer, bool) {
	for i := range r.ring {
		if r.ring[i].messageID == messageID && r.ring[i].edge == edge {
			return r.ring[i], true
		}
	}
	return sessionAnswer{}, false
}

// record appends an event to the history and applies it. What is deployed, runs
// and is open changes in evolve alone; the rest of the core's state is about
// connections, requests under way and timers, and ends with the Manager.
func (c *ManagerCore) record(ev Event) {
	c.seq++
	ev.Seq, ev.At = c.seq, c.now
	c.blame(&ev)
	c.events = append(c.events, ev)
	c.evolve(&c.events[len(c.events)-1])
}

// evolve applies an event to the state: it decides nothing and sends nothing.
// The same events give the same state, be they recorded now or replayed.
func (c *ManagerCore) evolve(ev *Event) {
	switch ev.Kind {
	case EventCheckpointBegan, EventCheckpointEnded:
		c.evolveCheckpoint(ev)

	case EventMessagesReserved, EventManagerStarted:
		c.reserved = max(c.reserved, ev.MessageID)

	case EventStormBegan, EventStormEnded:
		c.storm = ev.Kind == EventStormBegan

	case EventAgentRegistered:
		a := c.byAddr[ev.Node]
		if a == nil {
			a = &agent{index: uint32(len(c.agents)), addr: ev.Node, actor: "agent " + ev.Node.String()}
			a.ports = portTable{first: c.cfg.FirstPort, last: c.cfg.LastPort, linger: c.cfg.PortLinger,
				held: map[uint16]InstanceID{}, freed: map[uint16]time.Duration{}}
			c.agents = append(c.agents, a)
			c.byAddr[ev.Node] = a
			c.loaded(a, 0)
		}
		a.here, a.lost = true, false
		c.lost.remove(a)
		if ev.Detail != "" {
			d := detailOf[agentDetail](ev)
			a.identity = d.Identity
			c.provides(a, d.Services)
			c.restoreAgent(a, &d)
		}

	case EventAgentAway:
		a := c.byAddr[ev.Node]
		a.here, a.awaySince = false, ev.At

	case EventAgentLost:
		a := c.byAddr[ev.Node]
		a.here, a.lost = false, true
		c.lost.add(a)
		c.provides(a, nil)

	case EventInstanceRequested:
		a, v := c.byAddr[ev.Node], c.vertex(ev.Graph, ev.Vertex)
		i := &instance{id: ev.Instance, v: v, a: a, sockets: ev.Sockets, idleSince: ev.At}
		if n := len(c.freeSlots); n > 0 {
			i.slot, c.freeSlots = c.freeSlots[n-1], c.freeSlots[:n-1]
			c.slots[i.slot] = i
		} else {
			if len(c.slots) == 0 {
				c.slots = append(c.slots, nil)
			}
			i.slot = uint32(len(c.slots))
			c.slots = append(c.slots, i)
		}
		c.sessions.instance(i.slot, a.index)
		c.instances[i.id] = i
		c.lastInstance = max(c.lastInstance, i.id)
		v.app.live++
		if v.kind == Gateway && len(v.instances) == 0 {
			c.down--
		}
		v.instances = append(v.instances, i)
		a.instances = append(a.instances, i)
		c.loaded(a, len(a.instances)-1)
		for n, s := range i.sockets {
			a.ports.hold(s.Port, i.id)
			if n < len(v.sockets) && v.sockets[n].Port == 0 && !c.restoring {
				a.ports.next = a.ports.after(s.Port)
			}
		}
		if c.restoring {
			c.restoreInstance(i)
		} else {
			v.lastNode = a
		}
		c.rank(i)

	case EventInstanceReady:
		i := c.instances[ev.Instance]
		i.ready = ev.At
		if i.state == instanceStarting {
			i.state = instanceRunning
		}
		c.rank(i)

	case EventInstanceStopping:
		i := c.instances[ev.Instance]
		i.state, i.why, i.failure = instanceDraining, ev.Cause, ev.Status
		c.rank(i)

	case EventInstanceKilling:
		i := c.instances[ev.Instance]
		i.state = instanceKilling
		c.rank(i)

	case EventInstanceEnded:
		i := c.instances[ev.Instance]
		if i.state < instanceDraining || i.failure != 0 {
			c.backOff(i, ev)
		}
		i.state = instanceEnded
		c.rank(i)
		for _, s := range i.sockets {
			i.a.ports.free(s.Port, ev.At)
		}
		same := func(o *instance) bool { return o == i }
		i.v.instances = slices.DeleteFunc(i.v.instances, same)
		i.a.instances = slices.DeleteFunc(i.a.instances, same)
		c.loaded(i.a, len(i.a.instances)+1)
		if i.v.app.live--; i.v.kind == Gateway && len(i.v.instances) == 0 {
			c.down++
		}
		delete(c.instances, i.id)
		c.slots[i.slot] = nil
		c.freeSlots = append(c.freeSlots, i.slot)
		c.forgetRetired(i.v.app)

	case EventSessionOffered, EventSessionOpened, EventSessionClosing, EventSessionClosed, EventSessionRefused:
		c.evolveSession(ev)

	case EventGraphDeployed:
		d := detailOf[graphDetail](ev)
		app := newCNApp(d.Graph)
		c.apps = append(c.apps, app)
		c.appOf[app.name] = app
		c.down += len(app.gateways)
		c.findHosts(app)
		c.restoreGraph(app, &d)

	case EventGraphUndeployed:
		app := c.app(ev.Graph)
		app.retiring = true
		c.forgetRetired(app)

	case EventHealthChanged:
		i := c.instances[ev.Instance]
		i.status = ev.Status
		c.rank(i)
	}
	c.note(ev)
}

func (c *ManagerCore) evolveSession(ev *Event) {
	if c.restoring && ev.Kind != EventSessionClosed && ev.Kind != EventSessionRefused {
		c.restoreSession(ev)
		return
	}
	if ev.Kind == EventSessionOffered {
		src, dst := c.instances[ev.Source], c.instances[ev.Destination]
		edge, _ := src.v.edge(ev.Plug)
		ev.Session = c.sessions.id(c.sessions.offer(src.slot, dst.slot, uint16(edge), ev.MessageID))
		src.newestMessage = max(src.newestMessage, ev.MessageID)
		c.rank(src)
		c.rank(dst)
		return
	}
	if ev.Kind == EventSessionRefused {
		// A request that names no edge, or another's instance, has no answer
		// to remember.
		if src := c.instances[ev.Source]; src != nil && ev.Socket != "" {
			edge, _ := src.v.edge(ev.Plug)
			src.answers.add(sessionAnswer{messageID: ev.MessageID, edge: edge, status: ev.Status})
			src.newestMessage = max(src.newestMessage, ev.MessageID)
		}
		return
	}
	slot := c.sessions.lookup(ev.Session)
	s := c.sessions.at(slot)
	src, dst := c.slots[s.src], c.slots[s.dst]
	switch {
	case ev.Kind == EventSessionClosing && s.state == SessionOffered:
		s.closeWhen = true
		return
	case ev.Kind == EventSessionClosing:
		s.state = SessionClosing
		return
	}
	if s.state == SessionOffered {
		// The answer stays known, for a duplicate of the request.
		src.answers.add(sessionAnswer{s.messageID, int(s.edge), dst.id, dst.a.addr, dst.port(src.v.edges[s.edge].socket), StatusOK, ev.Kind == EventSessionOpened})
	}
	if ev.Kind == EventSessionOpened {
		c.sessions.open(slot, ev.PlugPort, ev.NewPort)
		return
	}
	c.sessions.remove(slot)
	for _, i := range [...]*instance{src, dst} {
		if c.sessionsOf(i) == 0 {
			i.idleSince = ev.At
		}
		c.rank(i)
	}
}

// forgetRetired takes an undeployed graph of which nothing runs out of the
// state.
func (c *ManagerCore) forgetRetired(app *cnapp) {
	if app.retiring && app.live == 0 {
		c.apps = slices.DeleteFunc(c.apps, func(a *cnapp) bool { return a == app })
		delete(c.appOf, app.name)
		c.down -= len(app.gateways)
	}
}

func (c *ManagerCore) app(name string) *cnapp { return c.appOf[name] }

func (c *ManagerCore) vertex(app, name string) *vertex {
	if a := c.app(app); a != nil {
		return a.byName[name]
	}
	return nil
}

// sessionsOf counts the sessions that an instance is an end of.
func (c *ManagerCore) sessionsOf(i *instance) int {
	e := &c.sessions.ends[i.slot]
	return int(e.srcLen + e.dstLen)
}

// eachSession calls f with the slot of every session of an instance. What f
// does may end any of them; those are passed over.
func (c *ManagerCore) eachSession(i *instance, f func(slot uint32)) {
	t := &c.sessions
	ids := make([]SessionID, 0, c.sessionsOf(i))
	for slot := t.ends[i.slot].srcHead; slot != 0; slot = t.at(slot).srcNext {
		ids = append(ids, t.id(slot))
	}
	for slot := t.ends[i.slot].dstHead; slot != 0; slot = t.at(slot).dstNext {
		ids = append(ids, t.id(slot))
	}
	for _, id := range ids {
		if slot := t.lookup(id); slot != 0 {
			f(slot)
		}
	}
}
