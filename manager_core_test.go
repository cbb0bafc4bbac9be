package ssmmp

import (
	"bytes"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// A tester is what the steppers of the cores need of *testing.T and *rapid.T.
type tester interface {
	Helper()
	Fatalf(format string, args ...any)
}

// A lineReader turns lines into messages as a link does: borrowed, so that the
// next line overwrites what a core wrongly kept.
type lineReader struct {
	in  bytes.Buffer
	dec *Decoder
}

func (r *lineReader) read(line string) (Message, error) {
	if r.dec == nil {
		r.dec = NewDecoder(r)
	}
	r.in.WriteString(line + "\n")
	return r.dec.Decode()
}

func (r *lineReader) Read(b []byte) (int, error) { return r.in.Read(b) }

// encode returns a message's line: what a core sends has one.
func encode(t tester, m Message) string {
	t.Helper()
	line, err := AppendMessage(nil, m)
	if err != nil {
		t.Fatalf("%s cannot be sent: %v", m.Type(), err)
	}
	return strings.TrimSuffix(string(line), "\n")
}

// coreGraphs are small, and want the same fixed port on a node.
func coreGraphs(t testing.TB) []*Graph {
	t.Helper()
	one, err := NewGraph("one").
		Gateway("A", FixedPorts{"S0": 8080}, Out{"P1", "P2"}).
		Regular("B", In{"S1", "S2"}, Out{"P3", "P4"}).
		Storage("C", In{"S3", "S4"}).
		At("B2", "B").
		Edge("A", "P1", "S1", "B").Edge("A", "P2", "S2", "B2").
		Edge("B", "P3", "S3", "C").Edge("B", "P4", "S4", "C").
		Edge("B2", "P3", "S3", "C").Edge("B2", "P4", "S4", "C").
		Build()
	if err != nil {
		t.Fatal(err)
	}
	two, err := NewGraph("two").
		Gateway("D", FixedPorts{"S0": 8080}, Out{"P1"}).
		Storage("C", In{"S3"}).
		Edge("D", "P1", "S3", "C").
		Build()
	if err != nil {
		t.Fatal(err)
	}
	return []*Graph{one, two}
}

// A managerStepper steps a Manager's core by hand. After each step it compares
// the core with what its own events and messages say, and with the invariants
// that a Manager must keep.
type managerStepper struct {
	t      tester
	cfg    ManagerConfig
	core   *ManagerCore
	reader lineReader
	now    time.Duration

	history    []Event
	steps      []managerStep // for doing the same again
	transcript []byte        // of every output and event

	conns  map[ConnID]netip.Addr // open; with the address that was accepted on it
	lastID InstanceID
	live   map[InstanceID]Event // its EventInstanceRequested
	ready  map[InstanceID]bool
	ports  map[netip.AddrPort]InstanceID
	open   map[SessionID]Event // its last event, until it is closed
	seen   map[SessionID]bool
	keys   []SessionID // of open, in order

	asked    map[offerKey]int          // session requests that were stepped
	sockets  map[offerKey][]string     // that they asked for
	answered map[offerKey]int          // and answered
	granted  map[offerKey]bool         // offered, says an event
	answers  map[answerKey]string      // the first answer
	recent   map[InstanceID][]offerKey // the requests answered last
	requests []managerRequest          // of the Manager, that an agent may answer
	past     []managerRequest          // and those that were answered
	offers   []*SessionResponse        // grants, that an instance may acknowledge
	replied  map[CallID]bool
	sent     map[string]bool // requests, by connection and message id
	closings map[ConnID]int  // how often a connection should have been closed

	comesBack bool // an agent registers: what was pending is sent again
}

type managerStep struct {
	in   ManagerInput
	line string
}

type answerKey struct {
	offerKey
	service, socket string
}

type managerRequest struct {
	to  netip.Addr
	msg Message
}

func newManagerStepper(t tester, cfg ManagerConfig) *managerStepper {
	cfg = cfg.WithDefaults()
	cfg.FirstInstance, cfg.FirstMessage = 1, 0 // not from the clock: a replay gives the same
	cfg.StormBrake = -1                        // settle loses all agents
	return &managerStepper{
		t: t, cfg: cfg, core: NewManagerCore(cfg),
		conns: map[ConnID]netip.Addr{}, live: map[InstanceID]Event{}, ready: map[InstanceID]bool{}, ports: map[netip.AddrPort]InstanceID{},
		open: map[SessionID]Event{}, seen: map[SessionID]bool{}, asked: map[offerKey]int{}, sockets: map[offerKey][]string{}, answered: map[offerKey]int{},
		granted: map[offerKey]bool{}, answers: map[answerKey]string{}, recent: map[InstanceID][]offerKey{}, replied: map[CallID]bool{}, sent: map[string]bool{}, closings: map[ConnID]int{},
	}
}

// message steps a line that arrives on a connection. What time brings comes in
// a step before, so that the rest is the line's doing.
func (s *managerStepper) message(conn ConnID, line string) {
	s.t.Helper()
	if _, ok := s.conns[conn]; !ok {
		s.conns[conn] = netip.Addr{}
	}
	s.step(ManagerInput{Kind: ManagerInputTime}, "")
	m, err := s.reader.read(line)
	if err != nil {
		s.t.Fatalf("%q: %v", line, err)
	}
	unasked := s.unasked(conn, m)
	var register *InitiationRequest
	switch m := m.(type) {
	case *InitiationRequest:
		register = Clone(m).(*InitiationRequest)
	case *SessionRequest:
		key := offerKey{m.SourceServiceInstanceID, m.MessageID}
		s.asked[key]++
		s.sockets[key] = append(s.sockets[key], strings.Clone(m.DestSocketName))
	}
	speaker, known := s.live[senderOf(m)]
	foreign := known && speaker.Node != s.conns[conn]
	s.comesBack = register != nil
	out, events := s.step(ManagerInput{Kind: ManagerInputMessage, Conn: conn, Msg: m}, line)
	s.comesBack = false
	if unasked {
		for _, ev := range events {
			if ev.Kind != EventProtocolViolated {
				s.t.Fatalf("nobody asked for %q, and still: %s", line, ev)
			}
		}
		if len(out) > 0 {
			s.t.Fatalf("nobody asked for %q, and still %d outputs", line, len(out))
		}
	}
	for _, ev := range events {
		if foreign && ev.Kind != EventProtocolViolated && ev.Kind != EventSessionRefused {
			s.t.Fatalf("an agent speaks for another's instance %d, and gets %s", speaker.Instance, ev)
		}
	}
	for _, o := range out {
		if r, ok := o.Msg.(*InitiationResponse); ok && register != nil && r.Status.Success() {
			for c, a := range s.conns {
				if a == register.AgentNetworkAddress {
					s.conns[c] = netip.Addr{} // superseded
				}
			}
			s.conns[o.Conn] = register.AgentNetworkAddress
		}
	}
}

func (s *managerStepper) lost(conn ConnID) {
	s.step(ManagerInput{Kind: ManagerInputLost, Conn: conn}, "")
	delete(s.conns, conn)
}

// responseTo returns the response that m could get, nil if m is no request.
func responseTo(m Message, status Status) Message {
	h := Header{MessageID: m.Head().MessageID, SubType: AgentToManager}
	switch m := m.(type) {
	case *ExecutionRequest:
		return &ExecutionResponse{Header: Header{MessageID: h.MessageID}, Status: status}
	case *SourceSessionCloseRequest:
		return &SourceSessionCloseResponse{Header: h, Status: status}
	case *DestSessionCloseRequest:
		return &DestSessionCloseResponse{Header: h, Status: status}
	case *GracefulShutdownRequest:
		return &GracefulShutdownResponse{Header: h, Status: status}
	case *HardShutdownRequest:
		return &HardShutdownResponse{Header: h, ServiceInstanceID: m.ServiceInstanceID, Status: status}
	case *InstanceHealthRequest:
		return &InstanceHealthResponse{Header: h, ServiceInstanceID: m.ServiceInstanceID, Status: status}
	case *AgentHealthRequest:
		return &AgentHealthResponse{Header: h, AgentNetworkAddress: m.AgentNetworkAddress, Status: status}
	}
	return nil
}

// unasked tells whether m is a response that its sender was never asked for.
// A request that was answered once was not asked for any more.
func (s *managerStepper) unasked(conn ConnID, m Message) bool {
	switch m.(type) {
	case *ExecutionResponse, *SourceSessionCloseResponse, *DestSessionCloseResponse, *GracefulShutdownResponse,
		*HardShutdownResponse, *InstanceHealthResponse, *AgentHealthResponse:
	default:
		return false
	}
	for i, r := range s.requests {
		if r.to != s.conns[conn] {
			continue
		}
		want := responseTo(r.msg, StatusOK)
		if want.Type() == m.Type() && want.Head().MessageID == m.Head().MessageID {
			s.past = append(s.past, r)
			s.requests = slices.Delete(s.requests, i, i+1)
			return false
		}
	}
	return true
}

func (s *managerStepper) step(in ManagerInput, line string) ([]ManagerOutput, []Event) {
	s.t.Helper()
	in.Now = s.now
	s.steps = append(s.steps, managerStep{in, line})
	out, events := s.core.Step(in)
	s.took(out, events)
	return out, events
}

// took compares what a core returned with the model.
func (s *managerStepper) took(out []ManagerOutput, events []Event) {
	s.t.Helper()
	s.history = append(s.history, events...)
	s.transcript = appendManagerStep(s.t, s.transcript, out, events)
	for _, ev := range events {
		s.event(ev)
	}
	for _, o := range out {
		s.output(o)
	}
	s.checkCore()
	checkChoices(s.t, s.core)
}

// restart has a core go on that was given the state of the one before.
func (s *managerStepper) restart(core *ManagerCore) {
	s.t.Helper()
	s.core = core
	for conn := range s.conns {
		delete(s.conns, conn)
	}
	s.requests, s.past = nil, nil
	clear(s.asked)
	clear(s.answered)
	s.took(core.Resume(s.now))
}

func appendManagerStep(t tester, b []byte, out []ManagerOutput, events []Event) []byte {
	for _, ev := range events {
		b = fmt.Appendf(b, "%+v\n", ev)
	}
	for _, o := range out {
		b = fmt.Appendf(b, "%d %d %d %v ", o.Kind, o.Conn, o.Call, o.Err)
		if o.Msg != nil {
			b = append(b, encode(t, o.Msg)...)
		}
		b = append(b, '\n')
	}
	return b
}

// event applies an event to the model.
func (s *managerStepper) event(ev Event) {
	s.t.Helper()
	switch ev.Kind {
	case EventInstanceRequested:
		if ev.Instance <= s.lastID {
			s.t.Fatalf("instance id %d after %d", ev.Instance, s.lastID)
		}
		s.lastID, s.live[ev.Instance] = ev.Instance, ev
		for _, p := range ev.Sockets {
			at := netip.AddrPortFrom(ev.Node, p.Port)
			if other, held := s.ports[at]; held || p.Port == 0 {
				s.t.Fatalf("%s is given to %d and held by %d", at, ev.Instance, other)
			}
			s.ports[at] = ev.Instance
		}
	case EventInstanceReady:
		if _, ok := s.live[ev.Instance]; !ok || s.ready[ev.Instance] {
			s.t.Fatalf("%s: not live, or ready before", ev)
		}
		s.ready[ev.Instance] = true
	case EventInstanceEnded:
		if _, ok := s.live[ev.Instance]; !ok {
			s.t.Fatalf("%s: it is not live", ev)
		}
		for _, o := range s.open {
			if o.Source == ev.Instance || o.Destination == ev.Instance {
				s.t.Fatalf("%s, and its session %s is not closed", ev, o.Session)
			}
		}
		delete(s.live, ev.Instance)
		maps.DeleteFunc(s.ports, func(_ netip.AddrPort, id InstanceID) bool { return id == ev.Instance })
	case EventSessionOffered:
		src, srcLive := s.live[ev.Source]
		dst, dstLive := s.live[ev.Destination]
		if s.seen[ev.Session] || !srcLive || !dstLive || !s.ready[ev.Destination] {
			s.t.Fatalf("%s: its id is used again, or an end is not live", ev)
		}
		edge, ok := s.core.graphs[src.Graph].EdgeOf(src.Vertex, ev.Plug)
		if !ok || src.Graph != dst.Graph || edge.To != dst.Vertex || edge.Socket != ev.Socket ||
			!slices.Contains(s.sockets[offerKey{ev.Source, ev.MessageID}], ev.Socket) {
			s.t.Fatalf("%s: not on an edge of the graph", ev)
		}
		s.seen[ev.Session], s.open[ev.Session] = true, ev
		s.keys = append(s.keys, ev.Session)
		s.granted[offerKey{ev.Source, ev.MessageID}] = true
	case EventSessionOpened:
		if o := s.open[ev.Session]; o.Kind != EventSessionOffered || o.Source != ev.Source || o.Destination != ev.Destination {
			s.t.Fatalf("%s: it was %s", ev, o)
		}
		s.open[ev.Session] = ev
	case EventSessionClosed:
		if _, ok := s.open[ev.Session]; !ok {
			s.t.Fatalf("%s: it is not open", ev)
		}
		delete(s.open, ev.Session)
		s.keys = slices.DeleteFunc(s.keys, func(id SessionID) bool { return id == ev.Session })
	}
}

// output checks what leaves the core.
func (s *managerStepper) output(o ManagerOutput) {
	s.t.Helper()
	switch o.Kind {
	case ManagerOutputReply:
		if s.replied[o.Call] {
			s.t.Fatalf("call %d is answered twice", o.Call)
		}
		s.replied[o.Call] = true
		return
	case ManagerOutputClose:
		s.conns[o.Conn] = netip.Addr{} // what still arrives there is nobody's
		s.closings[o.Conn]++
		return
	}
	addr, ok := s.conns[o.Conn]
	if !ok {
		s.t.Fatalf("%s is sent to connection %d, which is not open", encode(s.t, o.Msg), o.Conn)
	}
	line := encode(s.t, o.Msg)
	if err := CheckHop(o.Msg, ActorManager, ActorAgent); err != nil {
		s.t.Fatalf("%v", err)
	}
	if responseTo(o.Msg, StatusOK) != nil {
		once := fmt.Sprint(o.Conn, s.closings[o.Conn], o.Msg.Head().MessageID)
		if s.sent[once] {
			s.t.Fatalf("sent twice on connection %d: %s", o.Conn, line)
		}
		s.sent[once] = true
		if g, ok := o.Msg.(*GracefulShutdownRequest); ok && s.live[g.ServiceInstanceID].Kind == 0 && !s.comesBack {
			s.t.Fatalf("instance %d has ended: %s", g.ServiceInstanceID, line)
		}
		to := addr
		if a := s.core.conns[o.Conn]; a != nil {
			to = a.addr // registered in this very step
		}
		s.requests = append(s.requests, managerRequest{to, Clone(o.Msg)})
		return
	}
	m, ok := o.Msg.(*SessionResponse)
	if !ok {
		return
	}
	key := offerKey{m.SourceServiceInstanceID, m.MessageID}
	if s.answered[key]++; s.answered[key] > s.asked[key] {
		s.t.Fatalf("%d answers to %d requests: %s", s.answered[key], s.asked[key], line)
	}
	if m.Status.Success() {
		if !s.granted[key] {
			s.t.Fatalf("granted without an event: %s", line)
		}
		s.offers = append(s.offers, Clone(m).(*SessionResponse))
	}
	src, live := s.live[key.src]
	if !live || src.Node != addr || src.Service != m.SourceServiceName || m.Status == StatusBadMessage {
		return // not the asker's to know
	}
	// The last answers are remembered, so that a duplicate gets the same.
	recent := s.recent[key.src]
	full := answerKey{key, m.DestServiceName, m.DestSocketName}
	if first, ok := s.answers[full]; ok && slices.Contains(recent, key) && first != line {
		s.t.Fatalf("a duplicate request got another answer:\n%s\n%s", first, line)
	}
	s.answers[full] = line
	recent = append(slices.DeleteFunc(recent, func(k offerKey) bool { return k == key }), key)
	s.recent[key.src] = recent[max(0, len(recent)-answersKept/2):]
}

// checkCore compares the core's state with the model.
func (s *managerStepper) checkCore() {
	s.t.Helper()
	c := s.core
	if len(c.instances) != len(s.live) || c.sessions.live != len(s.open) {
		s.t.Fatalf("%d instances and %d sessions, want %d and %d", len(c.instances), c.sessions.live, len(s.live), len(s.open))
	}
	held, waiters := 0, 0
	for _, a := range c.agents {
		if a.up() && c.conns[a.conn] != a {
			s.t.Fatalf("agent %s is not the one on its connection %d", a.addr, a.conn)
		}
		for port, id := range a.ports.held {
			held++
			if s.ports[netip.AddrPortFrom(a.addr, port)] != id {
				s.t.Fatalf("port %d of %s is held by %d", port, a.addr, id)
			}
		}
		for _, i := range a.instances {
			waiters += len(i.waiters)
			if len(i.waiters) > 0 && i.state != instanceStarting && (i.state < instanceDraining || s.core.room(i.v)) {
				s.t.Fatalf("%d requests wait for instance %d, which is %s", len(i.waiters), i.id, instanceStates[i.state])
			}
		}
	}
	if held != len(s.ports) {
		s.t.Fatalf("%d ports are held, want %d", held, len(s.ports))
	}
	if waiters != len(c.waiting) {
		s.t.Fatalf("%d requests wait, and %d are known to", waiters, len(c.waiting))
	}
	offered := 0
	for id, ev := range s.open {
		slot := c.sessions.lookup(id)
		if slot == 0 {
			s.t.Fatalf("session %s is not in the table", id)
		}
		r := c.sessions.at(slot)
		if c.slots[r.src].id != ev.Source || c.slots[r.dst].id != ev.Destination {
			s.t.Fatalf("session %s joins %d and %d, want %d and %d", id, c.slots[r.src].id, c.slots[r.dst].id, ev.Source, ev.Destination)
		}
		if r.state == SessionOffered {
			offered++
			if c.offers[offerKey{ev.Source, ev.MessageID}] != slot {
				s.t.Fatalf("nothing will ever end the offer of session %s", id)
			}
		}
	}
	if offered != len(c.offers) || len(c.expiries) > 2*len(c.offers)+65 {
		s.t.Fatalf("%d offers, %d acknowledgments awaited, %d expiries", offered, len(c.offers), len(c.expiries))
	}
}

// settle loses every agent and lets time pass: nothing may stay pending.
func (s *managerStepper) settle() {
	s.t.Helper()
	for _, conn := range slices.Sorted(maps.Keys(s.conns)) {
		s.lost(conn)
	}
	for range 10_000 {
		at, ok := s.core.NextDeadline()
		if !ok {
			if len(s.live) > 0 || len(s.open) > 0 || len(s.core.exchanges) > 0 || len(s.core.waiting) > 0 {
				s.t.Fatalf("pending for ever: %d instances, %d sessions, %d exchanges, %d requests",
					len(s.live), len(s.open), len(s.core.exchanges), len(s.core.waiting))
			}
			return
		}
		s.now = max(s.now, at)
		s.step(ManagerInput{Kind: ManagerInputTime}, "")
	}
	s.t.Fatalf("without any agent, there is always something to do")
}

// replay steps the same inputs into a fresh core.
func (s *managerStepper) replay() {
	s.t.Helper()
	core, b := NewManagerCore(s.cfg), []byte(nil)
	var reader lineReader
	for _, st := range s.steps {
		in := st.in
		if in.Kind == ManagerInputMessage {
			m, err := reader.read(st.line)
			if err != nil {
				s.t.Fatalf("%v", err)
			}
			in.Msg = m
		}
		out, events := core.Step(in)
		b = appendManagerStep(s.t, b, out, events)
	}
	if !bytes.Equal(b, s.transcript) {
		s.t.Fatalf("the same inputs gave\n%s\nand then\n%s", s.transcript, b)
	}
}

var coreNodes = []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::3")}

func registerLine(id int64, addr netip.Addr, services string, extensions string) string {
	return fmt.Sprintf("type: initiation_request ~ message_id: %d ~ agent_network_address: %s ~ service_repository: (%s)%s", id, addr, services, extensions)
}

// managerChaos draws what may happen to a Manager.
type managerChaos struct {
	*managerStepper
	t        *rapid.T
	lastConn ConnID
	lastCall CallID
	lastMsg  int64
}

// conn returns the right connection mostly, and now and then any other.
func (s *managerChaos) conn(of netip.Addr) ConnID {
	right, all := ConnID(0), slices.Sorted(maps.Keys(s.conns))
	for _, c := range all {
		if s.conns[c] == of {
			right = c
		}
	}
	if right != 0 && rapid.IntRange(0, 9).Draw(s.t, "wrong peer") != 9 {
		return right
	}
	return rapid.SampledFrom(append(all, s.lastConn+1)).Draw(s.t, "peer")
}

func (s *managerChaos) status() Status {
	if rapid.IntRange(0, 7).Draw(s.t, "well") > 0 {
		return StatusOK
	}
	return rapid.SampledFrom([]Status{199, 300, 404, 410, 500, 502, 503, 504}).Draw(s.t, "status")
}

func (s *managerChaos) id() InstanceID {
	return InstanceID(rapid.Int64Range(1, int64(s.lastID)+1).Draw(s.t, "instance"))
}

func (s *managerChaos) register() {
	conn := s.lastConn + 1
	if len(s.conns) > 0 && rapid.IntRange(0, 5).Draw(s.t, "again") == 0 {
		conn = rapid.SampledFrom(slices.Sorted(maps.Keys(s.conns))).Draw(s.t, "peer")
	}
	s.lastConn = max(s.lastConn, conn)
	services := rapid.SampledFrom([]string{"A, B, C, D", "A, B, C, D", "A, B, D", "C, unheard-of", ""}).Draw(s.t, "services")
	ext := rapid.SampledFrom([]string{"", " ~ x_agent: one", " ~ x_agent: one", " ~ x_agent: two"}).Draw(s.t, "identity")
	var runs []InstanceID
	for range rapid.IntRange(0, 4).Draw(s.t, "runs") {
		runs = append(runs, s.id())
	}
	if len(runs) > 0 {
		ext += " ~ x_instances: " + formatInstanceList(runs)
	}
	s.message(conn, registerLine(1, rapid.SampledFrom(coreNodes).Draw(s.t, "node"), services, ext))
}

func (s *managerChaos) respond() {
	if len(s.requests) == 0 {
		return
	}
	// The newest are more to the point.
	n := rapid.IntRange(1, min(4, len(s.requests))).Draw(s.t, "request")
	r := s.requests[len(s.requests)-n]
	s.message(s.conn(r.to), encode(s.t, responseTo(r.msg, s.status())))
}

// respondAgain answers what was answered before.
func (s *managerChaos) respondAgain() {
	if len(s.past) > 0 {
		r := rapid.SampledFrom(s.past).Draw(s.t, "request")
		s.message(s.conn(r.to), encode(s.t, responseTo(r.msg, s.status())))
	}
}

func (s *managerChaos) request() {
	id := s.id()
	src := s.live[id]
	m := &SessionRequest{Header: Header{SubType: AgentToManager}, SourceServiceName: "A", SourceServiceInstanceID: id,
		SourceServiceInstanceNetworkAddress: coreNodes[0], SourcePlugName: "P1", DestServiceName: "B", DestSocketName: "S1"}
	if src.Graph != "" {
		m.SourceServiceName, m.SourceServiceInstanceNetworkAddress = src.Service, src.Node
		if edges := s.core.vertex(src.Graph, src.Vertex).edges; len(edges) > 0 {
			e := rapid.SampledFrom(edges).Draw(s.t, "edge")
			m.SourcePlugName, m.DestServiceName, m.DestSocketName = e.plug, e.to.service, e.socket
		}
	}
	if rapid.IntRange(0, 9).Draw(s.t, "off the graph") == 9 {
		m.DestSocketName = "S9"
	}
	s.lastMsg++
	m.MessageID = s.lastMsg
	if rapid.IntRange(0, 3).Draw(s.t, "again") == 3 {
		m.MessageID = rapid.Int64Range(max(1, s.lastMsg-5), s.lastMsg).Draw(s.t, "message id")
	}
	s.message(s.conn(src.Node), encode(s.t, m))
}

func (s *managerChaos) acknowledge() {
	if len(s.offers) == 0 {
		return
	}
	n := rapid.IntRange(1, min(3, len(s.offers))).Draw(s.t, "offer")
	o := s.offers[len(s.offers)-n]
	m := &SessionAck{Header: Header{MessageID: o.MessageID, SubType: AgentToManager}, SourceServiceName: o.SourceServiceName,
		SourceServiceInstanceID: o.SourceServiceInstanceID, SourcePlugPort: rapid.Uint16Range(1, 5).Draw(s.t, "plug port"),
		DestSocketNewPort: o.DestSocketPort, Status: s.status()}
	s.message(s.conn(s.live[o.SourceServiceInstanceID].Node), encode(s.t, m))
}

func (s *managerChaos) closeInfo() {
	if len(s.keys) == 0 {
		return
	}
	o := s.open[rapid.SampledFrom(s.keys).Draw(s.t, "session")]
	src, dst := s.live[o.Source], s.live[o.Destination]
	status := rapid.SampledFrom([]Status{StatusSessionClosed, StatusSessionBroken}).Draw(s.t, "status")
	h, port := Header{MessageID: 1, SubType: AgentToManager}, max(1, o.PlugPort)
	if rapid.Bool().Draw(s.t, "at its source") {
		s.message(s.conn(src.Node), encode(s.t, &SourceSessionCloseInfo{Header: h, SourceServiceName: src.Service, SourceServiceInstanceID: o.Source,
			SourceServiceInstanceNetworkAddress: src.Node, SourcePlugName: o.Plug, SourcePlugPort: port, DestServiceName: dst.Service,
			DestServiceInstanceID: o.Destination, DestServiceInstanceNetworkAddress: dst.Node, DestSocketName: o.Socket,
			DestSocketPort: 1, DestSocketNewPort: 1, Status: status}))
		return
	}
	s.message(s.conn(dst.Node), encode(s.t, &DestSessionCloseInfo{Header: h, SourceServiceInstanceNetworkAddress: src.Node, SourcePlugPort: port,
		DestServiceName: dst.Service, DestServiceInstanceNetworkAddress: dst.Node, DestServiceInstanceID: o.Destination,
		DestSocketName: o.Socket, DestSocketPort: 1, DestSocketNewPort: 1, Status: status}))
}

func (s *managerChaos) terminate() {
	i := s.live[s.id()]
	if i.Instance == 0 || rapid.Bool().Draw(s.t, "spare it") {
		return
	}
	m := &TerminationInfo{Header: Header{MessageID: 1, SubType: AgentToManager}, ServiceName: i.Service, ServiceInstanceID: i.Instance, ServiceInstanceNetworkAddress: i.Node}
	if exit := rapid.SampledFrom([]string{"", "0", "1", "SIGKILL"}).Draw(s.t, "exit"); exit != "" {
		m.Extensions = []Extension{{extExit, exit}}
	}
	s.message(s.conn(i.Node), encode(s.t, m))
}

func (s *managerChaos) command() {
	graph := rapid.SampledFrom([]string{"one", "one", "two", "none"}).Draw(s.t, "graph")
	var cmd any
	switch rapid.IntRange(0, 5).Draw(s.t, "command") {
	case 0, 1:
		cmd = DeployCommand{graph}
	case 2:
		cmd = UndeployCommand{graph}
	case 3:
		cmd = ShutdownCommand{s.id(), rapid.Bool().Draw(s.t, "hard")}
	case 4:
		cmd = CloseSessionCommand{rapid.SampledFrom(append(s.keys[:len(s.keys):len(s.keys)], 0, 1<<32|77)).Draw(s.t, "session")}
	case 5:
		s.step(ManagerInput{Kind: ManagerInputCancel, Call: s.lastCall}, "")
		return
	}
	s.lastCall++
	s.step(ManagerInput{Kind: ManagerInputCommand, Call: s.lastCall, Cmd: cmd}, "")
}

func (s *managerChaos) garbage() {
	m := genMessage(s.t)
	if rapid.Bool().Draw(s.t, "to a Manager") && hasSubType(m.Type()) {
		m.Head().SubType = routes[m.Type()][len(routes[m.Type()])-1].sub
	}
	if m.Type() == TypeInitiationRequest {
		return // register does that
	}
	if r, ok := m.(*SessionRequest); ok {
		r.SourceServiceInstanceID = s.id()
	}
	s.message(s.conn(rapid.SampledFrom(coreNodes).Draw(s.t, "node")), encode(s.t, m))
}

func (s *managerChaos) pass() {
	s.now += rapid.SampledFrom([]time.Duration{time.Millisecond, time.Second, 5 * time.Second, 31 * time.Second, 61 * time.Second, 6 * time.Minute}).Draw(s.t, "time")
	s.step(ManagerInput{Kind: ManagerInputTime}, "")
}

// act does one of all that.
func (s *managerChaos) act() {
	actions := []func(){s.respond, s.respond, s.respond, s.respond, s.request, s.request, s.request, s.acknowledge, s.acknowledge,
		s.closeInfo, s.command, s.garbage, s.pass, s.register, s.terminate, s.respondAgain,
		func() {
			if len(s.conns) > 0 && rapid.IntRange(0, 2).Draw(s.t, "lose") == 0 {
				s.lost(rapid.SampledFrom(slices.Sorted(maps.Keys(s.conns))).Draw(s.t, "peer"))
			}
		}}
	actions[rapid.IntRange(0, len(actions)-1).Draw(s.t, "action")]()
}

// Whatever arrives, from whomever, whenever: the invariants hold after every
// step, nothing stays pending, and a replay gives the same, byte for byte.
func TestManagerCoreChaos(t *testing.T) {
	t.Parallel()
	graphs := coreGraphs(t)
	rapid.Check(t, func(t *rapid.T) {
		var s *managerChaos
		drawManagerChaos(t, graphs, 150, func(chaos *managerChaos) { s = chaos })
		if snap := s.core.Snapshot(); len(snap.Instances) != len(s.live) || len(snap.Sessions) != len(s.open) {
			t.Fatalf("the snapshot has %d instances and %d sessions, want %d and %d", len(snap.Instances), len(snap.Sessions), len(s.live), len(s.open))
		}
		s.settle()
		s.replay()
	})
}

// While one request waits for its acknowledgment, another cannot have its id.
func TestManagerCoreSameID(t *testing.T) {
	t.Parallel()
	s := newManagerStepper(t, ManagerConfig{Graphs: coreGraphs(t)})
	ask := func(plug, socket string) Status {
		t.Helper()
		s.message(1, fmt.Sprintf("type: session_request ~ message_id: 9 ~ sub_type: agent_to_Manager ~ source_service_name: A ~ source_service_instance_id: 1 ~ source_service_instance_network_address: 10.0.0.1 ~ source_plug_name: %s ~ dest_service_name: B ~ dest_socket_name: %s", plug, socket))
		if m, ok := s.core.out[len(s.core.out)-1].Msg.(*SessionResponse); ok {
			return m.Status
		}
		return 0
	}
	s.message(1, registerLine(1, coreNodes[0], "A, B, C", ""))
	s.step(ManagerInput{Kind: ManagerInputCommand, Call: 1, Cmd: DeployCommand{"one"}}, "")
	s.message(1, "type: execution_response ~ message_id: 1 ~ status: 200")
	ask("P1", "S1")
	s.message(1, "type: execution_response ~ message_id: 2 ~ status: 200")
	if got := ask("P1", "S1"); got != StatusOK {
		t.Errorf("a duplicate: %s, want 200", got)
	}
	if got := ask("P2", "S2"); got != StatusBadMessage {
		t.Errorf("another edge with the same id: %s, want 400", got)
	}
	if len(s.live) != 2 || len(s.open) != 1 {
		t.Errorf("%d instances and %d sessions, want 2 and 1", len(s.live), len(s.open))
	}
	s.settle()
	s.replay()
}

// A session that is acknowledged when the shutdown of an end has begun is
// closed before that end is killed.
func TestManagerCoreLateAck(t *testing.T) {
	t.Parallel()
	s := newManagerStepper(t, ManagerConfig{Graphs: coreGraphs(t)})
	s.message(1, registerLine(1, coreNodes[0], "A, B, C", ""))
	s.step(ManagerInput{Kind: ManagerInputCommand, Call: 1, Cmd: DeployCommand{"one"}}, "")
	s.message(1, "type: execution_response ~ message_id: 1 ~ status: 200")
	s.message(1, "type: session_request ~ message_id: 9 ~ sub_type: agent_to_Manager ~ source_service_name: A ~ source_service_instance_id: 1 ~ source_service_instance_network_address: 10.0.0.1 ~ source_plug_name: P1 ~ dest_service_name: B ~ dest_socket_name: S1")
	s.message(1, "type: execution_response ~ message_id: 2 ~ status: 200")
	s.step(ManagerInput{Kind: ManagerInputCommand, Call: 2, Cmd: ShutdownCommand{2, true}}, "")
	s.message(1, "type: session_ack ~ message_id: 9 ~ sub_type: agent_to_Manager ~ source_service_name: A ~ source_service_instance_id: 1 ~ source_plug_port: 40000 ~ dest_socket_new_port: 54000 ~ status: 200")
	if len(s.requests) == 0 {
		t.Fatal("after the acknowledgment: nothing, want the source to close")
	}
	last := s.requests[len(s.requests)-1].msg
	s.message(1, encode(t, responseTo(last, StatusOK)))
	last = s.requests[len(s.requests)-1].msg
	if _, ok := last.(*HardShutdownRequest); !ok || len(s.open) > 0 {
		t.Fatalf("after the close: %s and %d sessions, want hard_shutdown_request and none", last.Type(), len(s.open))
	}
	s.settle()
	s.replay()
}

// FuzzManagerCore reads a script, one step a line: "T 5" passes five seconds,
// "L 2" loses connection 2, "D one" deploys, "2 type: …" is what arrives on
// connection 2.
func FuzzManagerCore(f *testing.F) {
	hops := strings.Join(readHops(f), "\n1 ")
	f.Add("1 " + registerLine(1, coreNodes[0], "A, B, C, D", " ~ x_agent: one ~ x_instances: 7, A") + "\nD one\nD two\n1 " + hops)
	f.Add("1 " + registerLine(1, coreNodes[0], "A, B, C", "") + `
D one
1 type: execution_response ~ message_id: 1 ~ status: 200
1 type: session_request ~ message_id: 9 ~ sub_type: agent_to_Manager ~ source_service_name: A ~ source_service_instance_id: 1 ~ source_service_instance_network_address: 10.0.0.1 ~ source_plug_name: P1 ~ dest_service_name: B ~ dest_socket_name: S1
1 type: execution_response ~ message_id: 2 ~ status: 200
1 type: session_ack ~ message_id: 9 ~ sub_type: agent_to_Manager ~ source_service_name: A ~ source_service_instance_id: 1 ~ source_plug_port: 40000 ~ dest_socket_new_port: 54000 ~ status: 200
T 5
L 1
T 70`)
	graphs := coreGraphs(f)
	f.Fuzz(func(t *testing.T, script string) {
		s := newManagerStepper(t, ManagerConfig{Graphs: graphs, LastPort: 54005})
		for n, line := range strings.Split(script, "\n") {
			verb, rest, _ := strings.Cut(line, " ")
			number, _ := strconv.ParseUint(rest, 10, 12)
			switch {
			case n > 200:
			case verb == "T":
				s.now += time.Duration(number) * time.Second
				s.step(ManagerInput{Kind: ManagerInputTime}, "")
			case verb == "L":
				s.lost(ConnID(number))
			case verb == "D":
				s.step(ManagerInput{Kind: ManagerInputCommand, Call: CallID(n + 1), Cmd: DeployCommand{rest}}, "")
			case len(verb) == 1 && len(rest) <= MaxLine:
				if _, err := ParseMessage(rest); err == nil {
					s.message(ConnID(verb[0]-'0'), rest)
				}
			}
		}
		s.settle()
		s.replay()
	})
}
