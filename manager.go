package ssmmp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// A ManagerConfig configures a Manager. A field's zero value means its
// default; Graphs has none.
type ManagerConfig struct {
	// Graphs is the knowledge base: the CNApps that can be deployed.
	Graphs []*Graph
	// Address is where ListenAndServe listens for agents, "host:port";
	// ":55555" by default.
	Address string
	// Transport carries the connections of agents; TCP by default.
	Transport Transport
	// Logger receives what happens; nothing is logged by default.
	Logger hclog.Logger

	// StartTimeout is how long an instance may take from its execution_request
	// until it is ready; 30 s by default.
	StartTimeout time.Duration
	// DrainTimeout is how long a graceful shutdown may take before it turns
	// hard; 10 s by default.
	DrainTimeout time.Duration
	// RequestTimeout is how long any other request waits for its response;
	// 5 s by default.
	RequestTimeout time.Duration
	// AckTimeout is how long a granted session may wait for its
	// acknowledgment; 60 s by default, which is longer than a dial takes.
	AckTimeout time.Duration
	// HealthPeriod is the time between two health requests to each agent and
	// each instance; 5 s by default.
	HealthPeriod time.Duration
	// HealthMisses is how many of them in a row may be missed: then an
	// instance is shut down, and an agent's connection closed; 3 by default.
	HealthMisses int
	// LostAfter is how long an agent may be away before its instances are
	// taken to be dead; 60 s by default.
	LostAfter time.Duration
	// StormBrake is the share of agents from which on none that is away is
	// taken to be lost, since it is rather the Manager that is cut off: nothing
	// is replaced until enough of them are back. Agents that are lost already do
	// not count. 0.55 by default; never if it is negative.
	StormBrake float64
	// QuickEnd and QuickEnds tell when the starts of a service back off: after so
	// many instances in a row that could not be executed, or ended sooner after
	// they were ready; 30 s and 3 by default.
	QuickEnd  time.Duration
	QuickEnds int
	// BackOffFrom and BackOffTo bound the wait before the next start then, which
	// doubles each time; 1 s and 60 s by default.
	BackOffFrom, BackOffTo time.Duration
	// IdleAfter is how long an instance may be without a session before it is
	// shut down gracefully; 5 min by default, never if it is negative.
	IdleAfter time.Duration
	// PortLinger is how long a freed port rests; 60 s by default.
	PortLinger time.Duration
	// FirstPort and LastPort bound the ports given to sockets of instances;
	// 54000 and 55554 by default.
	FirstPort, LastPort uint16
	// FirstInstance is the id of the first instance; each further one has a
	// greater id. By default it comes from the wall clock, in milliseconds
	// since 1970, so that a Manager does not use the ids of one before it.
	FirstInstance InstanceID
	// SessionsPerInstance is how many sessions an instance serves before
	// another one is started; no limit by default.
	SessionsPerInstance int
	// InstancesPerService is how many instances of a regular service run at
	// the most at each vertex of its graph; no limit by default.
	InstancesPerService int
	// History is how many events are kept in memory; 65,536 by default. Events
	// reads older ones from the Store, if there is one.
	History int

	// Store keeps the state and the history. NewManager acquires it and goes on
	// from the state that it holds; nothing leaves before the events that caused
	// it are durable. Close closes it. None by default: then the state ends with
	// the Manager.
	Store Store
	// CheckpointAfter is after how many events the Store gets a checkpoint, or
	// more when the state is large: a start replays about so many; 65,536 by
	// default.
	CheckpointAfter int
	// KeepFor and KeepBytes bound the history in the Store by age and by size.
	// What the state needs stays. No bounds by default.
	KeepFor   time.Duration
	KeepBytes int64
	// Epoch tells agents which of several Managers this is: they obey the one
	// with the greatest. By default it comes from the Store.
	Epoch uint64

	// FirstMessage is a number after which the Manager's message ids come. By
	// default it comes from the wall clock, like FirstInstance.
	FirstMessage int64
}

// Validate reports every fault of the configuration at once.
func (c *ManagerConfig) Validate() error {
	var faults []error
	fault := func(field string, value any, why string) {
		faults = append(faults, fmt.Errorf("ssmmp: ManagerConfig.%s: %v: %s", field, value, why))
	}
	if len(c.Graphs) == 0 {
		fault("Graphs", "none", "a Manager needs a graph")
	}
	names := map[string]bool{}
	for i, g := range c.Graphs {
		field := fmt.Sprintf("Graphs[%d]", i)
		if g == nil {
			fault(field, "nil", "not a graph")
			continue
		}
		if names[g.Name] {
			fault(field, g.Name, "another graph has this name")
		}
		names[g.Name] = true
		if err := g.Validate(); err != nil {
			faults = append(faults, fmt.Errorf("ssmmp: ManagerConfig.%s: %w", field, err))
		}
	}
	timeFaults(fault, timeField{"StartTimeout", c.StartTimeout}, timeField{"DrainTimeout", c.DrainTimeout},
		timeField{"RequestTimeout", c.RequestTimeout}, timeField{"AckTimeout", c.AckTimeout}, timeField{"HealthPeriod", c.HealthPeriod},
		timeField{"LostAfter", c.LostAfter}, timeField{"IdleAfter", max(c.IdleAfter, 0)}, timeField{"PortLinger", c.PortLinger},
		timeField{"KeepFor", c.KeepFor}, timeField{"QuickEnd", c.QuickEnd}, timeField{"BackOffFrom", c.BackOffFrom}, timeField{"BackOffTo", c.BackOffTo})
	for _, n := range []struct {
		field string
		value int
	}{{"HealthMisses", c.HealthMisses}, {"SessionsPerInstance", c.SessionsPerInstance}, {"InstancesPerService", c.InstancesPerService}, {"History", c.History}, {"CheckpointAfter", c.CheckpointAfter}, {"QuickEnds", c.QuickEnds}} {
		if n.value < 0 {
			fault(n.field, n.value, "negative")
		}
	}
	if c.KeepBytes < 0 {
		fault("KeepBytes", c.KeepBytes, "negative")
	}
	if !(c.StormBrake <= 1) {
		fault("StormBrake", c.StormBrake, "more than all")
	}
	if c.FirstInstance < 0 || c.FirstInstance > ownIDs {
		fault("FirstInstance", c.FirstInstance, "not between 0 and 2^62")
	}
	if c.FirstMessage < 0 || c.FirstMessage > ownIDs/2 {
		fault("FirstMessage", c.FirstMessage, "not between 0 and 2^61: agents have ids from 2^62 on")
	}
	if c.BackOffTo > 0 && cmp.Or(c.BackOffFrom, time.Second) > c.BackOffTo {
		fault("BackOffTo", c.BackOffTo, "less than BackOffFrom")
	}
	if first, last := cmp.Or(c.FirstPort, FirstSocketPort), cmp.Or(c.LastPort, LastSocketPort); first > last {
		fault("FirstPort", first, fmt.Sprintf("above LastPort, %d", last))
	}
	return errors.Join(faults...)
}

// WithDefaults returns a copy with defaults in place of zero values.
func (c ManagerConfig) WithDefaults() ManagerConfig {
	c.Graphs = slices.Clone(c.Graphs)
	for i, g := range c.Graphs {
		c.Graphs[i] = g.Clone()
	}
	c.Address = cmp.Or(c.Address, ":"+strconv.Itoa(ManagerPort))
	if c.Transport == nil {
		c.Transport = TCP{}
	}
	if c.Logger == nil {
		c.Logger = hclog.NewNullLogger()
	}
	c.StartTimeout = cmp.Or(c.StartTimeout, defaultStartTimeout)
	c.DrainTimeout = cmp.Or(c.DrainTimeout, defaultDrainTimeout)
	c.RequestTimeout = cmp.Or(c.RequestTimeout, defaultRequestTimeout)
	c.AckTimeout = cmp.Or(c.AckTimeout, time.Minute)
	c.HealthPeriod = cmp.Or(c.HealthPeriod, defaultHealthPeriod)
	c.HealthMisses = cmp.Or(c.HealthMisses, 3)
	c.LostAfter = cmp.Or(c.LostAfter, time.Minute)
	c.StormBrake = cmp.Or(c.StormBrake, 0.55)
	c.QuickEnd = cmp.Or(c.QuickEnd, 30*time.Second)
	c.QuickEnds = cmp.Or(c.QuickEnds, 3)
	c.BackOffFrom = cmp.Or(c.BackOffFrom, time.Second)
	c.BackOffTo = cmp.Or(c.BackOffTo, max(time.Minute, c.BackOffFrom))
	c.IdleAfter = cmp.Or(c.IdleAfter, defaultIdleAfter)
	c.PortLinger = cmp.Or(c.PortLinger, time.Minute)
	c.FirstPort = cmp.Or(c.FirstPort, FirstSocketPort)
	c.LastPort = cmp.Or(c.LastPort, LastSocketPort)
	c.History = cmp.Or(c.History, 1<<16)
	c.CheckpointAfter = cmp.Or(c.CheckpointAfter, 1<<16)
	now := time.Now().UnixMilli()
	c.FirstInstance = cmp.Or(c.FirstInstance, InstanceID(max(now, 1)))
	// As with instances: an answer to a Manager before this one must not be
	// taken for an answer to it. Agents have the ids from 1<<62 on.
	c.FirstMessage = cmp.Or(c.FirstMessage, now&(1<<45-1)<<16)
	return c
}

// A Manager controls the agents of a cluster, and through them the service
// instances of the CNApps that are deployed on it (PROTOCOL section 1). Its
// methods may be called by many goroutines at once.
type Manager struct {
	cfg     ManagerConfig
	log     hclog.Logger
	started time.Time
	history *history

	strangers strangers

	mu       sync.Mutex // guards what follows; held during a step, never across I/O
	core     *ManagerCore
	links    map[ConnID]*link
	lastConn ConnID
	calls    map[CallID]chan error
	lastCall CallID
	timer    *time.Timer
	wakeAt   time.Duration // what timer is set for
	closed   bool
	released bool  // the store is closed
	failure  error // of the store: what Serve and the calls return

	// With a store:
	batch           *commit // decided, and not being committed yet
	work, room      sync.Cond
	durable         uint64 // the last event that is committed
	storeErr        error  // why the store takes no events now; nil while it does
	keeping         bool   // a checkpoint is being written
	sinceCheckpoint int    // events
	checkpointSize  int    // of the last one, in events

	done      chan struct{} // closed when the Manager is
	committed chan struct{} // closed when nothing more will be committed; nil without a store
	wg        sync.WaitGroup
}

// NewManager returns a Manager. It has nothing deployed yet, or what its Store
// says; then it fails with ErrStoreInUse while another Manager has the store,
// and with a *StoreError if the store is damaged.
func NewManager(cfg ManagerConfig) (*Manager, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.WithDefaults()
	m := &Manager{
		cfg: cfg, log: cfg.Logger, started: time.Now(), history: newHistory(cfg.History),
		core:  NewManagerCore(cfg),
		links: map[ConnID]*link{}, calls: map[CallID]chan error{}, done: make(chan struct{}),
	}
	m.timer = time.AfterFunc(time.Hour, func() { m.step(ManagerInput{Kind: ManagerInputTime}) })
	if cfg.Store != nil {
		if err := m.recover(); err != nil {
			m.timer.Stop()
			return nil, err
		}
	}
	return m, nil
}

// ListenAndServe listens on the configured address and serves agents there.
// It returns as Serve does.
func (m *Manager) ListenAndServe(ctx context.Context) error {
	ln, err := m.cfg.Transport.Listen(ctx, m.cfg.Address)
	if err != nil {
		return fmt.Errorf("ssmmp: Manager: %w", err)
	}
	return m.Serve(ctx, ln)
}

// Serve accepts agents on ln until ctx ends or the Manager is closed, then
// closes ln and returns ErrClosed, or why the store failed. It closes the
// Manager when ctx ends: what runs in the mesh goes on without it.
func (m *Manager) Serve(ctx context.Context, ln net.Listener) error {
	m.mu.Lock()
	if m.closed {
		err := m.closeError()
		m.mu.Unlock()
		ln.Close()
		return err
	}
	m.wg.Add(1) // so that Close waits for what is accepted from now on, too
	m.mu.Unlock()
	defer context.AfterFunc(ctx, func() { m.Close() })()
	m.log.Info("serving agents", "address", ln.Addr().String())
	err := serve(ln, m.done, &m.wg, m.log, m.open, m.agentConn)
	m.wg.Done()
	if ctx.Err() != nil {
		m.Close()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if errors.Is(err, ErrClosed) {
		return m.closeError()
	}
	return err
}

// closeError is what a closed Manager returns. m.mu is held.
func (m *Manager) closeError() error { return cmp.Or(m.failure, ErrClosed) }

// serve runs an accept loop until done is closed: each connection is opened,
// and then handled beside the others. It backs off while accepting fails:
// whoever is out of descriptors has enough to do.
func serve(ln net.Listener, done <-chan struct{}, wg *sync.WaitGroup, log hclog.Logger, open func(net.Conn) *link, handle func(*link)) error {
	stop := make(chan struct{})
	defer close(stop)
	wg.Go(func() {
		select {
		case <-done:
		case <-stop:
		}
		ln.Close()
	})
	for wait := time.Duration(0); ; {
		conn, err := ln.Accept()
		if err == nil {
			wait = 0
			l := open(conn) // here, so that a newer connection has a greater id
			wg.Go(func() { handle(l) })
			continue
		}
		select {
		case <-done:
			return ErrClosed
		default:
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("ssmmp: accept: %w", err)
		}
		wait = min(max(2*wait, 5*time.Millisecond), time.Second)
		log.Warn("cannot accept", "error", err, "again in", wait)
		select {
		case <-time.After(wait):
		case <-done:
		}
	}
}

func (m *Manager) open(conn net.Conn) *link {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lastConn++
	l := newLink(m.lastConn, conn)
	if m.closed {
		l.close()
	} else {
		m.links[l.id] = l
	}
	return l
}

// agentConn serves one connection of an agent, from its first byte to its last.
func (m *Manager) agentConn(l *link) {
	log := m.log.With("peer", l.conn.RemoteAddr().String())
	log.Debug("connection opened")
	peer := m.strangers.meet(l, 0, log)
	out := flushList{log: m.log}
	err := l.read(&out, log, func(msg Message) {
		m.stepOnly(ManagerInput{Kind: ManagerInputMessage, Conn: l.id, Msg: msg}, &out)
		if !peer.known && m.registered(l) {
			peer.introduced()
		}
	}, func(p *ProtocolError) {
		m.mu.Lock()
		m.core.dropped++
		m.mu.Unlock()
		if r := refusal(p, ActorAgent, ActorManager, "", 0); r != nil {
			l.send(r)
		}
	})
	peer.left()
	m.step(ManagerInput{Kind: ManagerInputLost, Conn: l.id})
	l.wait()
	m.mu.Lock()
	delete(m.links, l.id)
	m.mu.Unlock()
	log.Debug("connection ended", "error", err)
}

// registered reports whether an agent registered on a connection.
func (m *Manager) registered(l *link) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.core.conns[l.id] != nil
}

// step has the core take one input and carries out what it decides.
func (m *Manager) step(in ManagerInput) {
	out := flushList{log: m.log}
	m.stepOnly(in, &out)
	out.flush()
}

// stepOnly is step, but for flushing what it queues.
func (m *Manager) stepOnly(in ManagerInput, queued *flushList) {
	m.mu.Lock()
	if m.committed != nil {
		m.stepDurably(in, queued)
		m.mu.Unlock()
		return
	}
	now := time.Now()
	in.Now = now.Sub(m.started)
	out, events := m.core.Step(in)
	for i := range events {
		events[i].Time = now
	}
	logged := m.history.append(events, m.log)
	for i := range out {
		m.perform(&out[i], queued)
	}
	m.setTimer(in)
	m.mu.Unlock()
	for _, ev := range logged {
		logEvent(m.log, ev)
	}
}

// stepDurably is stepOnly with a store. m.mu is held.
func (m *Manager) stepDurably(in ManagerInput, queued *flushList) {
	if in.Kind == ManagerInputMessage {
		m.waitForRoom()
	}
	if m.failure != nil {
		return // what would be decided would never be done
	}
	in.Now, in.Committed, in.StoreErr = time.Since(m.started), m.durable, m.storeErr
	out, events := m.core.Step(in)
	m.decide(events, out, queued)
	m.setTimer(in)
}

// setTimer has the core stepped when it wants to be. m.mu is held.
func (m *Manager) setTimer(in ManagerInput) {
	if at, ok := m.core.NextDeadline(); ok && !m.closed && (at != m.wakeAt || in.Kind == ManagerInputTime) {
		m.wakeAt = at
		m.timer.Reset(max(0, at-in.Now))
	}
}

func (m *Manager) perform(o *ManagerOutput, queued *flushList) {
	switch o.Kind {
	case ManagerOutputSend:
		if l := m.links[o.Conn]; l != nil {
			queued.put(l, o.Msg)
		}
	case ManagerOutputClose:
		if l := m.links[o.Conn]; l != nil {
			l.abort()
		}
	case ManagerOutputReply:
		if reply := m.calls[o.Call]; reply != nil {
			delete(m.calls, o.Call)
			reply <- o.Err
		}
	}
}

// call has the core carry out a command and waits for its outcome.
func (m *Manager) call(ctx context.Context, cmd any) error {
	reply := make(chan error, 1)
	m.mu.Lock()
	if m.closed {
		defer m.mu.Unlock()
		return m.closeError()
	}
	m.lastCall++
	id := m.lastCall
	m.calls[id] = reply
	m.mu.Unlock()

	m.step(ManagerInput{Kind: ManagerInputCommand, Call: id, Cmd: cmd})
	select {
	case err := <-reply:
		return err
	case <-ctx.Done():
	case <-m.done:
	}
	m.step(ManagerInput{Kind: ManagerInputCancel, Call: id})
	m.mu.Lock()
	delete(m.calls, id)
	closed := m.closeError()
	m.mu.Unlock()
	select {
	case err := <-reply: // it came at the last moment
		return err
	case <-m.done:
		return closed
	default:
		return ctx.Err()
	}
}

// Deploy executes the API Gateways of a graph, by its name, and returns when
// they are ready, which may be a moment before they listen; everything else is
// started by the first dial to it. When ctx ends before, the error says what is
// lacking; the graph stays deployed, and its gateways start when they can. A
// deployed gateway that ends, by itself or through Shutdown, is started again.
func (m *Manager) Deploy(ctx context.Context, graph string) error {
	err := m.call(ctx, DeployCommand{graph})
	if err != nil && ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		m.mu.Lock()
		lacking := m.core.lacking(graph)
		m.mu.Unlock()
		return fmt.Errorf("deploy %q: %s: %w", graph, lacking, err)
	}
	return err
}

// Undeploy shuts all instances of a graph down gracefully, from its gateways
// on, and returns when none runs any more. When ctx ends before, it goes on
// without being waited for.
func (m *Manager) Undeploy(ctx context.Context, graph string) error {
	return m.call(ctx, UndeployCommand{graph})
}

// Shutdown shuts an instance down gracefully (PROTOCOL section 3): its sessions
// close first, then it is asked to exit; at the DrainTimeout the shutdown turns
// hard. It returns when the instance has ended.
func (m *Manager) Shutdown(ctx context.Context, id InstanceID) error {
	return m.call(ctx, ShutdownCommand{id, false})
}

// HardShutdown has the far ends of an instance's sessions close them, and then
// has it killed with all its children. It returns when it has ended.
func (m *Manager) HardShutdown(ctx context.Context, id InstanceID) error {
	return m.call(ctx, ShutdownCommand{id, true})
}

// CloseSession has a session closed, at its source, or at its destination when
// the source does not answer. It returns when the session is closed.
func (m *Manager) CloseSession(ctx context.Context, id SessionID) error {
	return m.call(ctx, CloseSessionCommand{id})
}

// Snapshot returns the state at this moment. With a Store its last events may not
// be durable yet.
func (m *Manager) Snapshot() Snapshot {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.core.Snapshot()
}

// Dropped returns how many messages and lines were dropped so far, because they
// came late, again or unasked, or broke the protocol.
func (m *Manager) Dropped() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.core.dropped
}

// Events returns the events after the one with that sequence number, those
// kept and then those to come, until ctx ends or the Manager is closed. With 0
// it begins at the oldest event that is kept. Without a Store a reader that is
// slower than the history is long misses events: Seq tells. With one it reads
// what is no longer in memory there, and gets no event that is not durable.
func (m *Manager) Events(ctx context.Context, after uint64) iter.Seq[Event] {
	if m.cfg.Store == nil {
		return m.history.follow(ctx, m.done, after)
	}
	return func(yield func(Event) bool) {
		for {
			oldest := m.history.oldest()
			if after+1 < oldest {
				for ev, err := range m.cfg.Store.Query(ctx, EventQuery{After: after, Before: oldest}) {
					if err != nil {
						m.log.Warn("the history cannot be read", "after", after, "error", err)
						return
					}
					if after = ev.Seq; !yield(ev) {
						return
					}
				}
				after = max(after, oldest-1)
			}
			missed := false
			for ev := range m.history.follow(ctx, m.done, after) {
				if missed = ev.Seq != after+1; missed {
					break // the store has what went out of memory meanwhile
				}
				if after = ev.Seq; !yield(ev) {
					return
				}
			}
			if !missed {
				return
			}
		}
	}
}

// Close ends the connections to all agents and waits for the Manager's
// goroutines. What runs in the mesh goes on; calls that wait get ErrClosed. What
// was decided is committed, and the Store closed; the error is the Store's.
func (m *Manager) Close() error {
	m.mu.Lock()
	m.shut()
	m.mu.Unlock()
	if m.committed != nil {
		<-m.committed
	}
	m.mu.Lock()
	for _, l := range m.links {
		l.close()
	}
	m.mu.Unlock()
	m.wg.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cfg.Store != nil && !m.released {
		m.released = true
		return errors.Join(m.failure, m.cfg.Store.Close())
	}
	return m.failure
}

// shut has nothing begin any more. m.mu is held.
func (m *Manager) shut() {
	if m.closed {
		return
	}
	m.closed = true
	m.timer.Stop()
	close(m.done)
	if m.committed != nil {
		m.work.Broadcast()
		m.room.Broadcast()
	}
}

func logEvent(log hclog.Logger, ev Event) {
	switch ev.Kind {
	case EventSessionOffered, EventSessionOpened, EventSessionClosed, EventHealthChanged:
		log.Debug(ev.String(), "seq", ev.Seq)
	case EventSessionRefused, EventAgentRefused, EventAgentAway, EventAgentLost, EventProtocolViolated:
		log.Warn(ev.String(), "seq", ev.Seq)
	default:
		log.Info(ev.String(), "seq", ev.Seq)
	}
}
