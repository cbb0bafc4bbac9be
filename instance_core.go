package ssmmp

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// The instance's core: what a service instance says to its agent and how it
// answers, without goroutine, clock, I/O, log or randomness.

// An InstanceInputKind tells what an InstanceInput is.
type InstanceInputKind uint8

const (
	InstanceInputUp          InstanceInputKind = iota // the connection to the agent opened
	InstanceInputDown                                 // and ended
	InstanceInputMessage                              // Msg arrived
	InstanceInputDial                                 // Call asks for a session over Plug
	InstanceInputDialed                               // the connection of Call stands, as Conn
	InstanceInputDialFailed                           // it does not: Status; or the caller gave up
	InstanceInputAccepted                             // Conn was accepted at Socket
	InstanceInputConnClosed                           // this end closed Conn, or found it broken: Status
	InstanceInputConnDropped                          // Conn was closed as the Manager wanted
	InstanceInputDrained                              // the instance finished its work
	InstanceInputTerminating                          // it ends by its own business logic
	InstanceInputHealth                               // its health is now Status
)

// An InstanceInput is one thing that happens to an instance.
type InstanceInput struct {
	Kind   InstanceInputKind
	Msg    Message // borrowed: valid during the Step only
	Call   CallID
	Conn   uint64 // the runtime's number for a session's connection
	Plug   string
	Socket string
	Peer   netip.AddrPort // of Conn
	Port   uint16         // this end's port of Conn
	Status Status
}

// An InstanceOutputKind tells what an InstanceOutput asks for.
type InstanceOutputKind uint8

const (
	InstanceOutputSend    InstanceOutputKind = iota // Msg to the agent
	InstanceOutputConnect                           // Call shall dial Target
	InstanceOutputRefuse                            // Call failed with Status and Text
	InstanceOutputDrop                              // close Conn: the Manager wants it, as Text says
	InstanceOutputDrain                             // finish what is under way
	InstanceOutputWarn                              // Text is for the log
)

// An InstanceOutput is one thing that the core wants done.
type InstanceOutput struct {
	Kind   InstanceOutputKind
	Msg    Message
	Call   CallID
	Conn   uint64
	Target netip.AddrPort
	Status Status
	Text   string
}

// An InstanceCore decides what a service instance says. Whoever drives it,
// Instance or a simulator, owns it alone.
type InstanceCore struct {
	launch Launch
	out    []InstanceOutput

	up      bool
	health  Status
	lastID  int64
	reports []instanceReport // that the Manager is not known to have
	kept    int              // bytes of reports
	gone    int              // reports of this connection that are not among them any more
	hears   heardState       // whether this agent tells which have arrived

	dials   map[int64]*instanceDialing // by message id
	byCall  map[CallID]int64
	conns   map[uint64]*sessionEnd
	byPorts map[endKey]uint64 // of conns, to find what a close request names
	drainID int64             // of the graceful_shutdown_request to answer
	drain   bool
	dropped uint64
}

// An instanceReport is a message that may have to be sent again.
type instanceReport struct {
	msg     Message
	size    int   // of its line, in bytes
	request int64 // of the session whose end it tells, if its source does
}

// A heardState says whether an agent tells which reports the Manager has.
type heardState uint8

const (
	heardUnknown heardState = iota // it had no occasion to yet
	heardTold
	heardNever
)

// An instanceDialing is a session that is being set up from this end.
type instanceDialing struct {
	call    CallID // 0 when the caller gave up
	target  PlugTarget
	granted bool
	dest    InstanceID
	addr    netip.AddrPort // of the granted socket
}

// An endKey names a connection as seen from this instance.
type endKey struct {
	source bool
	port   uint16
	peer   netip.AddrPort
}

// A sessionEnd is one end of an open session, as its instance knows it.
type sessionEnd struct {
	source   bool
	target   PlugTarget // of the source's end; of the other only Socket
	dest     InstanceID
	peer     netip.AddrPort
	port     uint16  // this end's
	request  int64   // message id of the session_request, at the source
	askedIDs []int64 // message ids of the close requests to answer
}

// NewInstanceCore returns the core of an instance that is not connected yet.
func NewInstanceCore(l Launch) *InstanceCore {
	return &InstanceCore{
		launch: l, health: StatusOK,
		dials:  map[int64]*instanceDialing{},
		byCall: map[CallID]int64{},
		conns:  map[uint64]*sessionEnd{}, byPorts: map[endKey]uint64{},
	}
}

// Step takes one input. What it returns is valid until the next Step.
func (c *InstanceCore) Step(in InstanceInput) []InstanceOutput {
	clear(c.out)
	c.out = c.out[:0]
	switch in.Kind {
	case InstanceInputUp:
		c.hello()
	case InstanceInputDown:
		c.down()
	case InstanceInputMessage:
		c.message(in.Msg)
	case InstanceInputDial:
		c.dial(in.Call, in.Plug)
	case InstanceInputDialed:
		c.dialed(in)
	case InstanceInputDialFailed:
		c.dialFailed(in.Call, in.Status)
	case InstanceInputAccepted:
		c.add(in.Conn, &sessionEnd{target: PlugTarget{Socket: in.Socket}, peer: in.Peer, port: in.Port})
	case InstanceInputConnClosed:
		c.connClosed(in.Conn, in.Status)
	case InstanceInputConnDropped:
		c.connDropped(in.Conn)
	case InstanceInputDrained:
		if c.drainID != 0 {
			c.report(&GracefulShutdownResponse{Header: Header{MessageID: c.drainID, SubType: ServiceInstanceToAgent}, Status: StatusOK})
		}
	case InstanceInputTerminating:
		c.drain = true
		c.report(&TerminationInfo{Header: Header{MessageID: c.nextID(), SubType: ServiceInstanceToAgent},
			ServiceName: c.launch.Service, ServiceInstanceID: c.launch.ID, ServiceInstanceNetworkAddress: c.launch.Address})
	case InstanceInputHealth:
		c.health = in.Status
	}
	return c.out
}

func (c *InstanceCore) nextID() int64 {
	c.lastID++
	return c.lastID
}

func (c *InstanceCore) send(m Message) {
	c.out = append(c.out, InstanceOutput{Kind: InstanceOutputSend, Msg: m})
}

// report sends what the Manager has to learn, now or when the agent is back. A
// report is kept until it is known to have arrived, because an agent that dies
// takes with it what it had not passed on; an answer only while the agent is
// away, for the Manager asks again.
func (c *InstanceCore) report(m Message) { c.reportOf(m, 0) }

// reportOf is report for the end of the session that came of a request.
func (c *InstanceCore) reportOf(m Message, request int64) {
	answer := true
	switch m.(type) {
	case *SessionAck, *SourceSessionCloseInfo, *DestSessionCloseInfo, *TerminationInfo:
		answer = false
	}
	if c.up {
		c.send(m)
	}
	if !c.up || !answer && c.hears != heardNever {
		c.keep(m, request)
	}
}

func (c *InstanceCore) keep(m Message, request int64) {
	line, _ := AppendMessage(nil, m)                           // a message that cannot be sent is warned of when it is
	size := len(line) + len(" ~ x_again: 9223372036854775807") // as it is sent again
	for c.up && len(c.reports) > 0 && c.kept+size > keptUpTo(m) {
		c.arrived(1) // it was sent long ago
	}
	if c.kept+size > keptUpTo(m) {
		c.warn("the agent is away for too long: a report is lost: " + m.Type().String())
		return
	}
	c.kept += size
	c.reports = append(c.reports, instanceReport{m, size, request})
}

// arrived forgets the oldest reports.
func (c *InstanceCore) arrived(n int) {
	for _, r := range c.reports[:n] {
		c.kept -= r.size
	}
	c.reports = slices.Delete(c.reports, 0, n)
	c.gone += n
}

// heard takes note of how many reports of this connection have arrived. An
// agent that does not say so gets each once.
func (c *InstanceCore) heard(m *InstanceHealthRequest) {
	n, err := strconv.Atoi(m.Extension(extHeard))
	if err != nil {
		c.hears = heardNever
		c.arrived(len(c.reports))
		return
	}
	c.hears = heardTold
	c.arrived(max(0, min(n-c.gone, len(c.reports))))
}

// Unsent takes back a report that the connection to the agent did not take.
func (c *InstanceCore) Unsent(m Message) {
	switch m.(type) {
	case *SessionAck, *SourceSessionCloseInfo, *DestSessionCloseInfo, *TerminationInfo:
		if c.hears == heardNever {
			c.keep(m, 0)
		}
	}
}

func (c *InstanceCore) warn(text string) {
	c.dropped++
	c.out = append(c.out, InstanceOutput{Kind: InstanceOutputWarn, Text: text})
}

// hello tells a fresh connection who speaks (PROTOCOL section 3, Hello).
func (c *InstanceCore) hello() {
	c.up = true
	h := Header{MessageID: c.nextID(), SubType: ServiceInstanceToAgent}
	if c.launch.Secret != "" {
		h.Extensions = []Extension{{extSecret, c.launch.Secret}}
	}
	c.send(&InstanceHealthResponse{Header: h, ServiceInstanceID: c.launch.ID, Status: StatusOK})
	reports := c.reports
	c.reports, c.kept, c.gone, c.hears = nil, 0, 0, heardUnknown
	for _, r := range reports {
		markAgain(r.msg, r.request)
		c.reportOf(r.msg, r.request)
	}
}

// down fails the dials that wait for an answer. Those that have theirs go on:
// a session needs no agent.
func (c *InstanceCore) down() {
	c.up = false
	ids := make([]int64, 0, len(c.dials))
	for id := range c.dials {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	for _, id := range ids {
		if d := c.dials[id]; !d.granted {
			c.refuse(id, d, StatusUnavailable, reasonManagerAway)
		}
	}
}

func (c *InstanceCore) refuse(id int64, d *instanceDialing, status Status, why string) {
	delete(c.dials, id)
	delete(c.byCall, d.call)
	if d.call != 0 {
		c.out = append(c.out, InstanceOutput{Kind: InstanceOutputRefuse, Call: d.call, Status: status, Text: why})
	}
}

// dial asks for a session along the edge of a plug (PROTOCOL section 3,
// Session).
func (c *InstanceCore) dial(call CallID, plug string) {
	for _, t := range c.launch.Plugs {
		if t.Plug != plug {
			continue
		}
		if !c.up {
			c.out = append(c.out, InstanceOutput{Kind: InstanceOutputRefuse, Call: call, Status: StatusUnavailable, Text: reasonManagerAway})
			return
		}
		id := c.nextID()
		c.dials[id] = &instanceDialing{call: call, target: t}
		c.byCall[call] = id
		c.send(&SessionRequest{Header: Header{MessageID: id, SubType: ServiceToAgent},
			SourceServiceName: c.launch.Service, SourceServiceInstanceID: c.launch.ID, SourceServiceInstanceNetworkAddress: c.launch.Address,
			SourcePlugName: t.Plug, DestServiceName: t.Service, DestSocketName: t.Socket})
		return
	}
	c.out = append(c.out, InstanceOutput{Kind: InstanceOutputRefuse, Call: call, Status: StatusForbidden, Text: "no plug " + plug})
}

// message handles what the agent sent.
func (c *InstanceCore) message(m Message) {
	if err := CheckHop(m, ActorAgent, ActorInstance); err != nil {
		c.warn(err.Error())
		return
	}
	switch m := m.(type) {
	case *SessionResponse:
		c.sessionResponse(m)
	case *SourceSessionCloseRequest:
		peer := netip.AddrPortFrom(m.DestServiceInstanceNetworkAddress, m.DestSocketNewPort)
		c.closeRequest(&m.Header, endKey{true, m.SourcePlugPort, peer}, m.SourcePlugName)
	case *DestSessionCloseRequest:
		peer := netip.AddrPortFrom(m.SourceServiceInstanceNetworkAddress, m.SourcePlugPort)
		c.closeRequest(&m.Header, endKey{false, m.DestSocketNewPort, peer}, m.DestSocketName)
	case *GracefulShutdownRequest:
		c.drainID = m.MessageID
		if !c.drain {
			c.drain = true
			c.out = append(c.out, InstanceOutput{Kind: InstanceOutputDrain})
		}
	case *InstanceHealthRequest:
		c.heard(m)
		sources := 0
		for _, e := range c.conns {
			if e.source {
				sources++
			}
		}
		h := Header{MessageID: m.MessageID, SubType: ServiceInstanceToAgent, Extensions: []Extension{{extSessions, strconv.Itoa(sources)}}}
		c.send(&InstanceHealthResponse{Header: h, ServiceInstanceID: c.launch.ID, Status: c.health})
	}
}

func (c *InstanceCore) sessionResponse(m *SessionResponse) {
	d := c.dials[m.MessageID]
	if d == nil || d.granted || m.SourceServiceInstanceID != c.launch.ID ||
		m.DestSocketName != d.target.Socket || m.DestServiceName != d.target.Service {
		c.dropped++ // late, again, or to a request that was never made
		return
	}
	if !m.Status.Success() {
		c.refuse(m.MessageID, d, m.Status, strings.Clone(m.Extension(extReason)))
		return
	}
	d.granted, d.dest = true, m.DestServiceInstanceID
	d.addr = netip.AddrPortFrom(m.DestServiceInstanceNetworkAddress, m.DestSocketPort)
	if d.call == 0 {
		c.ack(m.MessageID, d, 0, 0, StatusCanceled)
		return
	}
	c.out = append(c.out, InstanceOutput{Kind: InstanceOutputConnect, Call: d.call, Target: d.addr})
}

func (c *InstanceCore) ack(id int64, d *instanceDialing, plugPort, newPort uint16, status Status) {
	delete(c.dials, id)
	delete(c.byCall, d.call)
	c.report(&SessionAck{Header: Header{MessageID: id, SubType: ServiceToAgent},
		SourceServiceName: c.launch.Service, SourceServiceInstanceID: c.launch.ID,
		SourcePlugPort: plugPort, DestSocketNewPort: newPort, Status: status})
}

func (c *InstanceCore) dialed(in InstanceInput) {
	id := c.byCall[in.Call]
	d := c.dials[id]
	if d == nil {
		return
	}
	c.add(in.Conn, &sessionEnd{source: true, target: d.target, dest: d.dest, peer: in.Peer, port: in.Port, request: id})
	c.ack(id, d, in.Port, in.Peer.Port(), StatusOK)
}

// dialFailed says that a granted session did not come about, or that the
// caller of one that is not granted yet has gone.
func (c *InstanceCore) dialFailed(call CallID, status Status) {
	id := c.byCall[call]
	d := c.dials[id]
	if d == nil {
		return
	}
	if d.granted {
		c.ack(id, d, 0, 0, status)
		return
	}
	delete(c.byCall, call)
	d.call = 0 // its answer will be acknowledged as given up
}

func (c *InstanceCore) add(conn uint64, e *sessionEnd) {
	c.conns[conn] = e
	c.byPorts[endKey{e.source, e.port, e.peer}] = conn
}

// take removes a connection and returns what was known of it, nil if nothing.
func (c *InstanceCore) take(conn uint64) *sessionEnd {
	e := c.conns[conn]
	if e == nil {
		return nil
	}
	delete(c.conns, conn)
	if key := (endKey{e.source, e.port, e.peer}); c.byPorts[key] == conn {
		delete(c.byPorts, key)
	}
	return e
}

// connClosed reports a session's end, from this end of it.
func (c *InstanceCore) connClosed(conn uint64, status Status) {
	e := c.take(conn)
	if e == nil {
		return
	}
	if len(e.askedIDs) > 0 {
		c.answerClose(e) // the Manager asked for it meanwhile
		return
	}
	if e.source {
		c.reportOf(&SourceSessionCloseInfo{Header: Header{MessageID: c.nextID(), SubType: SourceServiceToAgent},
			SourceServiceName: c.launch.Service, SourceServiceInstanceID: c.launch.ID, SourceServiceInstanceNetworkAddress: c.launch.Address,
			SourcePlugName: e.target.Plug, SourcePlugPort: e.port, DestServiceName: e.target.Service, DestServiceInstanceID: e.dest,
			DestServiceInstanceNetworkAddress: e.peer.Addr(), DestSocketName: e.target.Socket,
			DestSocketPort: e.peer.Port(), DestSocketNewPort: e.peer.Port(), Status: status}, e.request)
		return
	}
	c.report(&DestSessionCloseInfo{Header: Header{MessageID: c.nextID(), SubType: DestServiceToAgent},
		SourceServiceInstanceNetworkAddress: e.peer.Addr(), SourcePlugPort: e.peer.Port(), DestServiceName: c.launch.Service,
		DestServiceInstanceNetworkAddress: c.launch.Address, DestServiceInstanceID: c.launch.ID, DestSocketName: e.target.Socket,
		DestSocketPort: e.port, DestSocketNewPort: e.port, Status: status})
}

// closeRequest has a session closed, or answers that there is none. name is
// its plug at the source and its socket at the destination.
func (c *InstanceCore) closeRequest(h *Header, key endKey, name string) {
	messageID := h.MessageID
	conn, ok := c.byPorts[key]
	e := c.conns[conn]
	if !ok || key.source && e.target.Plug != name || !key.source && e.target.Socket != name {
		c.sendCloseResponse(key.source, messageID, StatusNotFound)
		return
	}
	if h.Extension(extAsk) != "" {
		c.sendCloseResponse(key.source, messageID, StatusStillOpen)
		return
	}
	if slices.Contains(e.askedIDs, messageID) {
		c.dropped++ // a duplicate: the answer is on its way
		return
	}
	if e.askedIDs = append(e.askedIDs, messageID); len(e.askedIDs) == 1 {
		c.out = append(c.out, InstanceOutput{Kind: InstanceOutputDrop, Conn: conn, Text: "closed by the Manager"})
	}
}

func (c *InstanceCore) connDropped(conn uint64) {
	if e := c.take(conn); e != nil {
		c.answerClose(e)
	}
}

func (c *InstanceCore) answerClose(e *sessionEnd) {
	for _, id := range e.askedIDs {
		c.sendCloseResponse(e.source, id, StatusOK)
	}
}

func (c *InstanceCore) sendCloseResponse(source bool, messageID int64, status Status) {
	if source {
		c.report(&SourceSessionCloseResponse{Header: Header{MessageID: messageID, SubType: SourceServiceToAgent}, Status: status})
	} else {
		c.report(&DestSessionCloseResponse{Header: Header{MessageID: messageID, SubType: DestServiceToAgent}, Status: status})
	}
}

// An InstancePending counts what an instance's core has under way: when
// nothing happens any more, all of it comes down to zero.
type InstancePending struct {
	Dials   int // sessions that are being set up from this end
	Conns   int // ends of open sessions
	Reports int // that the Manager is not known to have
}

// Pending returns what is under way.
func (c *InstanceCore) Pending() InstancePending {
	return InstancePending{Dials: len(c.dials), Conns: len(c.conns), Reports: len(c.reports)}
}
