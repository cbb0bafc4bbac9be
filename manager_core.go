package ssmmp

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"
)

// The Manager's core: what a Manager decides, without goroutine, clock, I/O,
// log or randomness. Step takes one input and returns what is to be done. It
// decides by recording events, which evolve applies (manager_state_core.go);
// instances live in manager_instance_core.go, sessions in
// manager_session_core.go.

// A CallID is one call of a method that waits for its outcome. Who drives a
// core chooses it, and uses none twice.
type CallID uint64

// A ManagerInputKind tells what a ManagerInput is.
type ManagerInputKind uint8

const (
	ManagerInputTime    ManagerInputKind = iota // nothing but the time
	ManagerInputMessage                         // Msg arrived on Conn
	ManagerInputLost                            // Conn ended
	ManagerInputCommand                         // Cmd was called, as Call
	ManagerInputCancel                          // Call waits no more
)

// A ManagerInput is one thing that happens to a Manager.
type ManagerInput struct {
	Now  time.Duration // since the Manager's start, monotonic
	Kind ManagerInputKind
	Conn ConnID
	Msg  Message // borrowed: valid during the Step only
	Call CallID
	Cmd  any

	// Committed is the last event that is durable, for a driver that performs
	// outputs with Early before the events that came before them are; else 0.
	Committed uint64
	// StoreErr is why no event can be made durable now, and nothing is begun:
	// ErrStoreFull or ErrStoreBusy. It is nil while events can.
	StoreErr error
}

// The commands of an operator.
type (
	// DeployCommand executes the API Gateways of a graph.
	DeployCommand struct{ Graph string }
	// UndeployCommand shuts all instances of a graph down.
	UndeployCommand struct{ Graph string }
	// ShutdownCommand shuts an instance down, gracefully or hard.
	ShutdownCommand struct {
		Instance InstanceID
		Hard     bool
	}
	// CloseSessionCommand has a session closed.
	CloseSessionCommand struct{ Session SessionID }
)

// A ManagerOutputKind tells what a ManagerOutput asks for.
type ManagerOutputKind uint8

const (
	ManagerOutputSend  ManagerOutputKind = iota // Msg to Conn
	ManagerOutputClose                          // Conn, at once: its peer is gone, or misbehaves
	ManagerOutputReply                          // Call is answered with Err
)

// A ManagerOutput is one thing that the core wants done.
type ManagerOutput struct {
	Kind ManagerOutputKind
	Conn ConnID
	Msg  Message
	Call CallID
	Err  error
	// Early says that it depends on no event: it need not wait for any to be
	// durable, as all others have to for those of their Step and before.
	Early bool
}

const (
	// maxAgents bounds the nodes that a Manager remembers.
	maxAgents = 1 << 14
	// maxViolations is how often one connection may break the protocol, and
	// violationsKept how many of these are events.
	maxViolations, violationsKept = 1000, 10
)

// A ManagerCore decides what a Manager does. Whoever drives it, Manager or a
// simulator, owns it alone.
type ManagerCore struct {
	timers
	cfg    ManagerConfig
	out    []ManagerOutput
	events []Event

	graphs map[string]*Graph // the knowledge base: what can be deployed
	apps   []*cnapp          // what is deployed, in the order of its deployment
	appOf  map[string]*cnapp // by name
	down   int               // gateways of it that have no instance

	agents []*agent // in the order of their first registration
	byAddr map[netip.Addr]*agent
	conns  map[ConnID]*agent

	// What place looks at, instead of at every agent.
	connected, lost agentSet
	loads           []agentSet           // by number of instances
	hosts           map[string]*agentSet // by the services that are, or were, deployed: who has them

	instances    map[InstanceID]*instance
	slots        []*instance // by instance.slot; slot 0 is never used
	freeSlots    []uint32
	lastInstance InstanceID

	sessions sessionTable
	offers   map[offerKey]uint32    // slots of the offered sessions, for their acknowledgment
	expiries []offerExpiry          // of the offers, in order of time
	waiting  map[offerKey]*instance // requests that wait for an instance, and for which
	seekers  []waiter               // that go on at the end of the step

	responses []SessionResponse // not used yet

	lastMessage int64
	reserved    int64 // the last message id that the history lets be used
	exchanges   map[int64]*exchange
	reason      string // that the response gives which is being handled

	calls []call

	seq        uint64 // of the last event
	committed  uint64 // the last event that is durable, if the driver tells
	startedSeq uint64 // of the event that this Manager started, and which message ids it may use
	noRoom     bool   // no event can be made durable
	storeErr   error  // and why

	storm bool // so many agents are away that none is taken to be lost

	// While a state is taken over:
	restoring bool           // between the first and the last event of a checkpoint
	restoreTo uint32         // slots of sessions in it
	restored  instanceDetail // of the instance whose event is being replayed
	resuming  bool           // no agent can be here yet: all of them are waited for

	dropped    uint64                // late, unknown and unexpected messages
	violations map[ConnID]int        // of the protocol, by connection
	refused    map[netip.Addr]string // registrations since the last that was taken, with why

	doer doer
}

// An exchange is a request of the Manager that waits for its response.
type exchange struct {
	id   int64
	to   *agent
	want Type
	msg  Message
	done func(Status)
}

// A call waits until finished says so.
type call struct {
	id       CallID
	finished func() (bool, error)
}

// NewManagerCore returns a core without agents. cfg is complete: WithDefaults
// returned it.
func NewManagerCore(cfg ManagerConfig) *ManagerCore {
	c := &ManagerCore{
		cfg:    cfg,
		graphs: map[string]*Graph{}, appOf: map[string]*cnapp{}, hosts: map[string]*agentSet{},
		byAddr:    map[netip.Addr]*agent{},
		conns:     map[ConnID]*agent{},
		instances: map[InstanceID]*instance{},
		offers:    map[offerKey]uint32{},
		waiting:   map[offerKey]*instance{},
		exchanges: map[int64]*exchange{}, violations: map[ConnID]int{}, refused: map[netip.Addr]string{},
		lastInstance: max(cfg.FirstInstance-1, 0), lastMessage: cfg.FirstMessage, reserved: cfg.FirstMessage + messageBlock,
	}
	for _, g := range cfg.Graphs {
		c.graphs[g.Name] = g
	}
	return c
}

// emptied returns a slice to be filled again, with its room, unless a burst
// has made that large.
func emptied[T any](s []T) []T {
	if cap(s) > 1<<8 {
		return nil
	}
	clear(s)
	return s[:0]
}

// Step takes one input. What it returns is valid until the next Step. The
// events come before the outputs: nothing may leave before they are kept.
func (c *ManagerCore) Step(in ManagerInput) ([]ManagerOutput, []Event) {
	c.out, c.events = emptied(c.out), c.events[:0]
	c.now = max(c.now, in.Now)
	c.committed, c.storeErr, c.noRoom = max(c.committed, in.Committed), in.StoreErr, in.StoreErr != nil
	c.doer.actor = actorManager
	c.expire()

	switch in.Kind {
	case ManagerInputMessage:
		c.message(in.Conn, in.Msg)
	case ManagerInputLost:
		c.connLost(in.Conn)
	case ManagerInputCommand:
		c.doer.actor = actorOperator
		c.command(in.Call, in.Cmd)
	case ManagerInputCancel:
		c.calls = slices.DeleteFunc(c.calls, func(w call) bool { return w.id == in.Call })
	}
	c.seekAgain()
	c.finishCalls()
	c.doer = doer{}
	return c.out, c.events
}

// NextDeadline returns when the core wants to be stepped at the latest, and
// false when it waits for nothing. A step that comes too early does no harm.
func (c *ManagerCore) NextDeadline() (time.Duration, bool) {
	at, ok := c.next()
	if len(c.expiries) > 0 && (!ok || c.expiries[0].at < at) {
		at, ok = c.expiries[0].at, true
	}
	return at, ok
}

func (c *ManagerCore) send(a *agent, m Message) {
	if a.up() {
		c.out = append(c.out, ManagerOutput{Kind: ManagerOutputSend, Conn: a.conn, Msg: m})
	}
}

func (c *ManagerCore) sendEarly(a *agent, m Message) {
	if a.up() {
		c.out = append(c.out, ManagerOutput{Kind: ManagerOutputSend, Conn: a.conn, Msg: m, Early: true})
	}
}

// request sends a request to an agent and calls done once: with the status of
// the response, or with 504 when none came in time. While the agent is away
// the request waits for it to come back.
func (c *ManagerCore) request(a *agent, m Message, want Type, timeout time.Duration, done func(Status)) {
	x := &exchange{id: c.messageID(), to: a, want: want, msg: m, done: done}
	m.Head().MessageID = x.id
	c.exchanges[x.id] = x
	a.exchanges = append(a.exchanges, x)
	c.send(a, m)
	c.after(timeout, func() {
		if c.exchanges[x.id] == x {
			c.forget(x)
			x.done(StatusTimeout)
		}
	})
}

// epoch returns the extension lines that tell an agent which of several Managers
// this is, and others.
func (c *ManagerCore) epoch(more ...Extension) []Extension {
	if c.cfg.Epoch == 0 {
		return more
	}
	return append(more, Extension{extEpoch, strconv.FormatUint(c.cfg.Epoch, 10)})
}

// messageBlock is how many message ids are reserved at once: a Manager that
// takes over uses none of them again, wherever the one before it stopped. Half
// of them are left when the next are reserved: so the requests that leave before
// that is durable have ids that were reserved long ago.
const messageBlock = 1 << 32

// reportsKept is after how many reports an agent is told which of them are
// durable, if that is sooner than its next health request.
const reportsKept = 1 << 10

// messageID returns a message id that was never used.
func (c *ManagerCore) messageID() int64 {
	if c.reserved-c.lastMessage <= messageBlock/2 {
		c.record(Event{Kind: EventMessagesReserved, MessageID: c.lastMessage + messageBlock})
	}
	c.lastMessage++
	return c.lastMessage
}

// idsDurable reports whether it is durable which message ids this Manager uses:
// until then it makes no request that does not wait for the store.
func (c *ManagerCore) idsDurable() bool { return c.committed == 0 || c.committed >= c.startedSeq }

// response completes the exchange that a response belongs to. A response
// counts only from the agent that was asked, and only of the type asked for.
func (c *ManagerCore) response(a *agent, m Message, status Status) {
	x := c.exchanges[m.Head().MessageID]
	if x == nil || x.to != a || x.want != m.Type() {
		c.dropped++
		return
	}
	c.forget(x)
	if why := m.Head().Extension(extReason); why != "" {
		c.reason = clip(why)
	}
	x.done(status)
	c.reason = ""
}

// message handles what an agent sent.
func (c *ManagerCore) message(conn ConnID, m Message) {
	if err := CheckHop(m, ActorAgent, ActorManager); err != nil {
		c.violation(conn, err.Error())
		return
	}
	if r, ok := m.(*InitiationRequest); ok {
		c.register(conn, r)
		return
	}
	a := c.conns[conn]
	if a == nil {
		c.violation(conn, m.Type().String()+" before initiation_request")
		if r, ok := m.(*SessionRequest); ok {
			c.out = append(c.out, ManagerOutput{Kind: ManagerOutputSend, Conn: conn, Msg: sessionFailure(r, StatusUnauthenticated)})
		}
		return
	}
	c.doer = doer{reporter: a}
	switch m := m.(type) {
	case *SessionRequest:
		c.sessionRequest(a, m)
	case *SessionAck:
		c.sessionAck(a, m)
		c.reported(a)
	case *SourceSessionCloseInfo:
		c.sourceCloseInfo(a, m)
		c.reported(a)
	case *DestSessionCloseInfo:
		c.destCloseInfo(a, m)
		c.reported(a)
	case *InstanceHealthResponse:
		c.instanceHealth(a, m)
	case *AgentHealthResponse:
		c.agentHealth(a, m)
	case *TerminationInfo:
		c.termination(a, m)
	case *ExecutionResponse:
		c.response(a, m, m.Status)
	case *SourceSessionCloseResponse:
		c.response(a, m, m.Status)
	case *DestSessionCloseResponse:
		c.response(a, m, m.Status)
	case *GracefulShutdownResponse:
		c.response(a, m, m.Status)
	case *HardShutdownResponse:
		c.response(a, m, m.Status)
	}
}

// violation records that a peer broke the protocol. Its message is dropped and
// nothing else of it; a peer that does little else loses its connection.
func (c *ManagerCore) violation(conn ConnID, cause string) {
	if !c.misbehaves(conn) {
		return
	}
	ev := Event{Kind: EventProtocolViolated, Status: StatusBadMessage, Cause: cause}
	if a := c.conns[conn]; a != nil {
		ev.Node = a.addr
	}
	c.record(ev)
}

// misbehaves counts a peer's misconduct, ends a connection that has little else
// to offer, and reports whether the history shall have it.
func (c *ManagerCore) misbehaves(conn ConnID) bool {
	c.dropped++
	c.violations[conn]++
	n := c.violations[conn]
	if n == maxViolations {
		c.out = append(c.out, ManagerOutput{Kind: ManagerOutputClose, Conn: conn, Early: true})
	}
	return n <= violationsKept
}

// command carries out what an operator asked for.
func (c *ManagerCore) command(id CallID, cmd any) {
	fail := func(err error) {
		c.out = append(c.out, ManagerOutput{Kind: ManagerOutputReply, Call: id, Err: err})
	}
	wait := func(finished func() (bool, error)) { c.calls = append(c.calls, call{id, finished}) }
	if c.noRoom {
		c.out = append(c.out, ManagerOutput{Kind: ManagerOutputReply, Call: id, Early: true,
			Err: fmt.Errorf("%w: %w", &StatusError{Op: "change the state", Status: StatusInsufficientStorage}, c.storeErr)})
		return
	}

	switch cmd := cmd.(type) {
	case DeployCommand:
		if c.graphs[cmd.Graph] == nil {
			fail(fmt.Errorf("deploy %q: no such graph: %w", cmd.Graph, ErrNotFound))
			return
		}
		if app := c.app(cmd.Graph); app != nil && app.retiring {
			fail(fmt.Errorf("deploy %q: it is being undeployed: %w", cmd.Graph, ErrRefused))
			return
		} else if app == nil {
			c.record(Event{Kind: EventGraphDeployed, Graph: cmd.Graph, Cause: "operator", Detail: toDetail(graphDetail{Graph: c.graphs[cmd.Graph]})})
		}
		c.restore()
		wait(func() (bool, error) { return c.deployed(cmd.Graph) })

	case UndeployCommand:
		app := c.app(cmd.Graph)
		if app == nil {
			fail(fmt.Errorf("undeploy %q: not deployed: %w", cmd.Graph, ErrNotFound))
			return
		}
		if !app.retiring {
			c.record(Event{Kind: EventGraphUndeployed, Graph: cmd.Graph, Cause: "operator"})
			c.retire(app)
		}
		wait(func() (bool, error) { return c.app(cmd.Graph) != app, nil })

	case ShutdownCommand:
		i := c.instances[cmd.Instance]
		if i == nil {
			fail(fmt.Errorf("shut down instance %d: %w", cmd.Instance, ErrNotFound))
			return
		}
		c.shutdown(i, cmd.Hard, "operator")
		wait(func() (bool, error) { return !i.live(), nil })

	case CloseSessionCommand:
		slot := c.sessions.lookup(cmd.Session)
		if slot == 0 {
			fail(fmt.Errorf("close session %s: %w", cmd.Session, ErrNotFound))
			return
		}
		if s := c.sessions.at(slot); !c.slots[s.src].a.up() && !c.slots[s.dst].a.up() {
			fail(fmt.Errorf("close session %s: the agents of both its ends are away: %w", cmd.Session, ErrUnavailable))
			return
		}
		c.closeSession(slot, "operator")
		wait(func() (bool, error) { return c.sessions.lookup(cmd.Session) == 0, nil })
	}
}

func (c *ManagerCore) finishCalls() {
	if len(c.calls) == 0 {
		return
	}
	c.calls = slices.DeleteFunc(c.calls, func(w call) bool {
		done, err := w.finished()
		if done {
			c.out = append(c.out, ManagerOutput{Kind: ManagerOutputReply, Call: w.id, Err: err})
		}
		return done
	})
}

// expire does what is due.
func (c *ManagerCore) expire() {
	c.timers.expire()
	c.expireOffers()
}
