package ssmmp

import (
	"bytes"
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The agent's core: what an agent decides, without goroutine, clock, I/O, log
// or randomness. It relays between the Manager and the instances of its node,
// changing only sub_type, and it executes and kills.

// An AgentInputKind tells what an AgentInput is.
type AgentInputKind uint8

const (
	AgentInputTime        AgentInputKind = iota // nothing but the time
	AgentInputManagerUp                         // Conn to the Manager opened
	AgentInputMessage                           // Msg arrived on Conn
	AgentInputLost                              // Conn ended
	AgentInputStarted                           // Instance was launched, or not: Err
	AgentInputPortsListen                       // all configured ports of Instance listen
	AgentInputExited                            // all of Instance has ended, as Exit says; Err may say what it lacked
	AgentInputStop                              // shut all instances down, or leave them
	AgentInputReattached                        // an instance of the agent before this one, as Record says
)

// An AgentInput is one thing that happens to an agent.
type AgentInput struct {
	Now      time.Duration // since the agent's start, monotonic
	Kind     AgentInputKind
	Conn     ConnID
	Msg      Message // borrowed: valid during the Step only
	Proof    Proof   // of who sent Msg
	Instance InstanceID
	Err      error
	Exit     Exit
	Record   *InstanceRecord
}

// A Proof says what is known of a claim to be an instance (PROTOCOL section 3,
// Hello).
type Proof uint8

const (
	ProofNone   Proof = iota // it cannot be found out here
	ProofGood                // the instance's secret, or its process, holds the connection
	ProofFailed              // another process holds it, or the secret is wrong
)

// An AgentOutputKind tells what an AgentOutput asks for.
type AgentOutputKind uint8

const (
	AgentOutputSend    AgentOutputKind = iota // Msg to Conn
	AgentOutputClose                          // Conn, once what was sent is written
	AgentOutputAbort                          // Conn, at once: its peer misbehaves
	AgentOutputLaunch                         // Launch with Entry
	AgentOutputProbe                          // tell when the ports of Instance listen
	AgentOutputSignal                         // the signal named Text to Instance
	AgentOutputKill                           // Instance with all its children
	AgentOutputWarn                           // Text is for the log: a peer broke the protocol
	AgentOutputRefused                        // the Manager refused the registration with Status
	AgentOutputEmpty                          // after AgentInputStop: nothing runs that is not kept
	AgentOutputChanged                        // Instance is ready, or spoke: its record has changed
	AgentOutputForget                         // the Manager knows that Instance has ended: its record can go
)

// An AgentOutput is one thing that the core wants done.
type AgentOutput struct {
	Kind     AgentOutputKind
	Conn     ConnID
	Msg      Message
	Launch   Launch
	Entry    *RepositoryEntry
	Instance InstanceID
	Text     string
	Status   Status
}

const (
	// ownIDs is where an agent's own message ids begin, so that a response
	// can be told from one to the Manager.
	ownIDs = 1 << 62
	// maxShutdownIDs bounds the shutdown requests of each kind for one
	// instance that wait for its end.
	maxShutdownIDs = 16
	// maxInFlight bounds the session requests of one instance under way.
	maxInFlight = 1 << 12
	// endedKept is how many ended instances are remembered.
	endedKept = 1 << 14
)

// An AgentCore decides what an agent does. Whoever drives it, Agent or a
// simulator, owns it alone.
type AgentCore struct {
	timers
	cfg AgentConfig
	out []AgentOutput

	repository map[string]*RepositoryEntry
	identity   string

	manager    ConnID
	registered bool
	registerID int64
	epoch      uint64       // the greatest that a Manager told
	hears      bool         // the Manager tells what it has heard
	spoke      bool         // it said something since that was looked at
	reports    []byte       // for the Manager, until it has heard them: lines, oldest first
	marks      []reportMark // health answers on this connection that it may have heard
	waits      []reportWait // for the Manager to hear reports, oldest first
	unkept     uint64       // reports that were too many to keep

	conns     map[ConnID]*agentInstance // of instances, once they are bound
	instances map[InstanceID]*agentInstance
	ended     map[InstanceID]bool
	endedList []InstanceID // oldest first, for forgetting

	relayed map[int64]*relayedRequest // requests of the Manager, by message id
	lastOwn int64
	stop    bool

	dropped    uint64
	violations map[ConnID]int // of the protocol, by connection
}

// A relayedRequest is a request that an instance has to answer: only that
// instance, only with that type.
type relayedRequest struct {
	to   InstanceID
	want Type
}

// An agentInstance is an instance that this agent executes.
type agentInstance struct {
	id      InstanceID
	service string
	plugs   []PlugTarget
	sockets []SocketPort
	entry   *RepositoryEntry

	execID    int64 // message id of the execution_request to answer; 0 when answered
	ready     bool
	hardIDs   []int64 // message ids of the hard_shutdown_requests to answer
	stopIDs   []int64 // and of the graceful ones, if it does not speak SSMMP
	announced bool    // it said itself that it terminates
	signalled bool    // it was told by its StopSignal to end
	killed    bool
	probed    bool  // whether its ports listen is being found out
	healthID  int64 // message id of the health request to answer then; 0 for none

	conn      ConnID
	wasBound  bool          // it spoke at least once
	reported  int           // reports that came on conn
	arrived   int           // and how many of these the Manager is known to have
	inFlight  map[int64]int // session requests under way: message id to plug
	startLate bool          // killed since it was not ready in time
}

// NewAgentCore returns a core without instances. cfg is complete: WithDefaults
// returned it. identity tells this process of an agent from others.
func NewAgentCore(cfg AgentConfig, identity string) *AgentCore {
	c := &AgentCore{
		cfg: cfg, identity: identity,
		repository: map[string]*RepositoryEntry{},
		conns:      map[ConnID]*agentInstance{},
		instances:  map[InstanceID]*agentInstance{},
		ended:      map[InstanceID]bool{},
		relayed:    map[int64]*relayedRequest{}, violations: map[ConnID]int{},
		lastOwn: ownIDs,
	}
	for i := range cfg.Repository {
		c.repository[cfg.Repository[i].Service] = &cfg.Repository[i]
	}
	return c
}

// Step takes one input. What it returns is valid until the next Step.
func (c *AgentCore) Step(in AgentInput) []AgentOutput {
	c.out = emptied(c.out)
	c.now = max(c.now, in.Now)
	c.expire()
	switch in.Kind {
	case AgentInputManagerUp:
		c.register(in.Conn)
	case AgentInputMessage:
		if in.Conn == c.manager {
			c.spoke = true
			c.fromManager(in.Msg)
		} else {
			c.fromInstance(in.Conn, in.Msg, in.Proof)
		}
	case AgentInputLost:
		c.connLost(in.Conn)
	case AgentInputStarted:
		c.started(in.Instance, in.Err)
	case AgentInputPortsListen:
		c.portsListen(in.Instance)
	case AgentInputExited:
		c.exited(in.Instance, in.Exit, in.Err)
	case AgentInputReattached:
		c.reattached(in.Record)
	case AgentInputStop:
		c.stopAll()
	}
	return c.out
}

// NextDeadline returns when the core wants to be stepped at the latest, and
// false when it waits for nothing.
func (c *AgentCore) NextDeadline() (time.Duration, bool) {
	return c.next()
}

func (c *AgentCore) send(conn ConnID, m Message) {
	c.out = append(c.out, AgentOutput{Kind: AgentOutputSend, Conn: conn, Msg: m})
}

// warn counts and logs what breaks the protocol. An instance's connection that
// does little else ends.
func (c *AgentCore) warn(conn ConnID, text string) {
	c.dropped++
	if conn != 0 {
		c.violations[conn]++
	}
	if n := c.violations[conn]; n <= violationsKept {
		c.out = append(c.out, AgentOutput{Kind: AgentOutputWarn, Conn: conn, Text: text})
	} else if n == maxViolations && conn != c.manager {
		c.out = append(c.out, AgentOutput{Kind: AgentOutputAbort, Conn: conn})
	}
}

func (c *AgentCore) ownID() int64 {
	c.lastOwn++
	return c.lastOwn
}

// fromManager handles a message of the Manager.
func (c *AgentCore) fromManager(m Message) {
	if err := CheckHop(m, ActorManager, ActorAgent); err != nil {
		c.warn(c.manager, err.Error())
		return
	}
	if r, ok := m.(*InitiationResponse); ok {
		c.registrationAnswered(r)
		return
	}
	if !c.registered {
		c.warn(c.manager, m.Type().String()+" before initiation_response")
		return
	}
	switch m := m.(type) {
	case *ExecutionRequest:
		c.execute(m)
	case *SessionResponse:
		i := c.instances[m.SourceServiceInstanceID]
		if i == nil {
			c.dropped++
			return
		}
		if _, asked := i.inFlight[m.MessageID]; !asked || i.conn == 0 {
			c.dropped++
			return
		}
		delete(i.inFlight, m.MessageID)
		m.SubType = AgentToService
		c.send(i.conn, m)
	case *SourceSessionCloseRequest:
		c.relayRequest(m.SourceServiceInstanceID, m, AgentToSourceService, TypeSourceSessionCloseResponse)
	case *DestSessionCloseRequest:
		c.relayRequest(m.DestServiceInstanceID, m, AgentToDestService, TypeDestSessionCloseResponse)
	case *GracefulShutdownRequest:
		c.relayRequest(m.ServiceInstanceID, m, AgentToServiceInstance, TypeGracefulShutdownResponse)
	case *InstanceHealthRequest:
		if i := c.instances[m.ServiceInstanceID]; i != nil {
			m.Extensions = append(slices.DeleteFunc(m.Extensions, func(x Extension) bool { return x.Name == extHeard }),
				Extension{extHeard, strconv.Itoa(i.arrived)})
		}
		c.relayRequest(m.ServiceInstanceID, m, AgentToServiceInstance, TypeInstanceHealthResponse)
	case *HardShutdownRequest:
		c.hardShutdown(m)
	case *AgentHealthRequest:
		c.health(m)
	}
}

// relayRequest passes a request of the Manager on to an instance, or answers
// for one that cannot.
func (c *AgentCore) relayRequest(id InstanceID, m Message, sub SubType, want Type) {
	messageID := m.Head().MessageID
	i := c.instances[id]
	switch {
	case i == nil:
		c.answerFor(id, want, messageID, StatusGone)
	case i.conn == 0 && want == TypeInstanceHealthResponse && !i.wasBound:
		c.programHealth(i, messageID)
	case i.conn == 0 && want == TypeGracefulShutdownResponse && i.entry.StopSignal != "":
		if !slices.Contains(i.stopIDs, messageID) && len(i.stopIDs) < maxShutdownIDs {
			i.stopIDs = append(i.stopIDs, messageID)
		}
		c.signal(i)
	case i.conn == 0:
		c.answerFor(id, want, messageID, StatusUnavailable)
	default:
		r := &relayedRequest{id, want}
		c.relayed[messageID] = r
		c.after(c.cfg.DrainTimeout+c.cfg.RequestTimeout, func() {
			if c.relayed[messageID] == r {
				delete(c.relayed, messageID)
			}
		})
		m.Head().SubType = sub
		c.send(i.conn, m)
	}
}

// answerFor answers a request of the Manager in the place of an instance.
func (c *AgentCore) answerFor(id InstanceID, want Type, messageID int64, status Status) {
	h := Header{MessageID: messageID, SubType: AgentToManager}
	switch want {
	case TypeSourceSessionCloseResponse:
		c.send(c.manager, &SourceSessionCloseResponse{Header: h, Status: status})
	case TypeDestSessionCloseResponse:
		c.send(c.manager, &DestSessionCloseResponse{Header: h, Status: status})
	case TypeGracefulShutdownResponse:
		c.send(c.manager, &GracefulShutdownResponse{Header: h, Status: status})
	case TypeInstanceHealthResponse:
		c.send(c.manager, &InstanceHealthResponse{Header: h, ServiceInstanceID: id, Status: status})
	}
}

// connLost handles the end of a connection, to the Manager or of an instance.
func (c *AgentCore) connLost(conn ConnID) {
	delete(c.violations, conn)
	if conn == c.manager {
		c.manager, c.registered = 0, false
		for _, i := range c.inOrder() {
			c.failInFlight(i)
			i.healthID = 0
		}
		return
	}
	if i := c.conns[conn]; i != nil && i.conn == conn {
		i.conn = 0
		c.failInFlight(i)
	}
	delete(c.conns, conn)
}

// failInFlight answers the session requests whose answers cannot reach the
// instance any more, and tells the Manager that it will use no session that
// was, or will be, granted to them.
func (c *AgentCore) failInFlight(i *agentInstance) {
	ids := make([]int64, 0, len(i.inFlight))
	for id := range i.inFlight {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	for _, id := range ids {
		if i.conn != 0 {
			c.answerSession(i, id, i.plugs[i.inFlight[id]], StatusUnavailable, reasonManagerAway)
		}
		c.toManager(&SessionAck{Header: Header{MessageID: id, SubType: AgentToManager},
			SourceServiceName: i.service, SourceServiceInstanceID: i.id, Status: StatusCanceled})
	}
	clear(i.inFlight)
}

// reasonManagerAway is how an instance tells that its dial failed for want of
// a Manager.
const reasonManagerAway = "manager_away"

func (c *AgentCore) answerSession(i *agentInstance, messageID int64, p PlugTarget, status Status, reason string) {
	h := Header{MessageID: messageID, SubType: AgentToService}
	if reason != "" {
		h.Extensions = []Extension{{extReason, reason}}
	}
	c.send(i.conn, &SessionResponse{Header: h, SourceServiceName: i.service, SourceServiceInstanceID: i.id,
		DestServiceName: p.Service, DestSocketName: p.Socket, Status: status})
}

func (c *AgentCore) inOrder() []*agentInstance {
	var all []*agentInstance
	for _, i := range c.instances {
		all = append(all, i)
	}
	slices.SortFunc(all, func(a, b *agentInstance) int { return cmp.Compare(a.id, b.id) })
	return all
}

// claim returns the instance that a message says it comes from, and whether
// the connection has still to prove that.
func (c *AgentCore) claim(conn ConnID, m Message) (InstanceID, bool) {
	if i := c.conns[conn]; i != nil {
		return i.id, false
	}
	id := senderOf(m)
	return id, c.instances[id] != nil
}

// senderOf returns the instance that a message of an instance names as its
// sender, 0 if its type names none.
func senderOf(m Message) InstanceID {
	switch m := m.(type) {
	case *SessionRequest:
		return m.SourceServiceInstanceID
	case *SessionAck:
		return m.SourceServiceInstanceID
	case *SourceSessionCloseInfo:
		return m.SourceServiceInstanceID
	case *DestSessionCloseInfo:
		return m.DestServiceInstanceID
	case *TerminationInfo:
		return m.ServiceInstanceID
	case *InstanceHealthResponse:
		return m.ServiceInstanceID
	}
	return 0
}

// addressOf returns the network address that an instance's message gives for
// its sender, the zero Addr if its type gives none.
func addressOf(m Message) netip.Addr {
	switch m := m.(type) {
	case *SessionRequest:
		return m.SourceServiceInstanceNetworkAddress
	case *SourceSessionCloseInfo:
		return m.SourceServiceInstanceNetworkAddress
	case *DestSessionCloseInfo:
		return m.DestServiceInstanceNetworkAddress
	case *TerminationInfo:
		return m.ServiceInstanceNetworkAddress
	}
	return netip.Addr{}
}

// stripSecret takes the proof out of a message before it is relayed.
func stripSecret(h *Header) {
	h.Extensions = slices.DeleteFunc(h.Extensions, func(x Extension) bool { return strings.EqualFold(x.Name, extSecret) })
}

// An AgentPending counts what an agent's core has under way: when nothing
// happens any more, all of it comes down to zero but Timers.
type AgentPending struct {
	InFlight int // session requests that the Manager has not answered
	Relayed  int // requests of the Manager that an instance has not answered
	Reports  int // that the Manager is not known to have
	Unkept   int // reports that were too many to keep, since the agent's start
	Timers   int
}

// Pending returns what is under way.
func (c *AgentCore) Pending() AgentPending {
	p := AgentPending{Relayed: len(c.relayed), Reports: bytes.Count(c.reports, []byte("\n")), Unkept: int(c.unkept), Timers: len(c.pending)}
	for _, i := range c.instances {
		p.InFlight += len(i.inFlight)
	}
	return p
}
