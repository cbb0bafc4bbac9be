package ssmmp

import (
	"cmp"
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/go-hclog"
)

// An AgentConfig configures an agent. A field's zero value means its default;
// Manager and Address have none.
type AgentConfig struct {
	// Manager is where the Manager listens, "host:port".
	Manager string
	// Address is the network address of this node, by which the Manager and
	// the instances of other nodes know it.
	Address netip.Addr
	// Listen is where the agent listens for the instances of its node,
	// "host:port"; port 55556 of the local host by default, or of Address
	// where that is a loopback address.
	Listen string
	// Repository holds the services that this agent can execute.
	Repository []RepositoryEntry
	// KeepInstances has Run leave all instances running when its context ends,
	// with their sessions, instead of shutting them down.
	KeepInstances bool
	// StateDir is the directory, made when missing and used by one agent at a
	// time, where the agent keeps what it has to know after it died: its
	// identity, and of each instance how it was executed, with its secret, and
	// as which process. An agent that starts with it goes on with the instances
	// that still run and whose Launcher is a Reattacher, and reports those that
	// ended meanwhile. Empty means that nothing is kept.
	StateDir string
	// Transport carries all connections; TCP from Address by default.
	Transport Transport
	// Logger receives what happens; nothing is logged by default.
	Logger hclog.Logger

	// StartTimeout is how long an instance may take to be ready; 30 s by
	// default. After that it is killed.
	StartTimeout time.Duration
	// DrainTimeout is how long instances may take to exit when the agent
	// itself stops; 10 s by default.
	DrainTimeout time.Duration
	// RequestTimeout is how long any other exchange may take; 5 s by default.
	RequestTimeout time.Duration
	// BackOffFrom and BackOffTo bound the wait between two attempts to reach
	// the Manager, which doubles and has jitter; 100 ms and 10 s by default.
	BackOffFrom, BackOffTo time.Duration
}

// Validate reports every fault of the configuration at once.
func (c *AgentConfig) Validate() error {
	var faults []error
	fault := func(field string, value any, why string) {
		faults = append(faults, fmt.Errorf("ssmmp: AgentConfig.%s: %v: %s", field, value, why))
	}
	if _, _, err := net.SplitHostPort(c.Manager); err != nil {
		fault("Manager", strconv.Quote(c.Manager), "not host:port")
	}
	if !isNode(c.Address) {
		fault("Address", c.Address, "not the address of a node")
	}
	if c.Listen != "" {
		if _, _, err := net.SplitHostPort(c.Listen); err != nil {
			fault("Listen", strconv.Quote(c.Listen), "not host:port")
		}
	}
	names := map[string]bool{}
	letters := 0
	for i, e := range c.Repository {
		letters += len(e.Service) + len(", ")
		field := fmt.Sprintf("Repository[%d]", i)
		switch {
		case !ValidName(e.Service):
			fault(field+".Service", strconv.Quote(e.Service), "not a name")
		case names[e.Service]:
			fault(field+".Service", e.Service, "another entry has this name")
		}
		names[e.Service] = true
		if e.Launcher == nil {
			fault(field+".Launcher", "nil", "nothing says how to execute it")
		}
		for _, name := range slices.Concat(e.Sockets, e.Plugs) {
			if !ValidName(name) {
				fault(field, strconv.Quote(name), "not the name of a socket or plug")
			}
		}
		if e.StopSignal != "" && !slices.Contains(stopSignals, e.StopSignal) {
			fault(field+".StopSignal", strconv.Quote(e.StopSignal), "not one of "+strings.Join(stopSignals, ", "))
		}
	}
	if letters > MaxLine/2 {
		fault("Repository", fmt.Sprintf("%d entries", len(c.Repository)), fmt.Sprintf("their names have more than the %d bytes that a registration can hold", MaxLine/2))
	}
	timeFaults(fault, timeField{"StartTimeout", c.StartTimeout}, timeField{"DrainTimeout", c.DrainTimeout},
		timeField{"RequestTimeout", c.RequestTimeout}, timeField{"BackOffFrom", c.BackOffFrom}, timeField{"BackOffTo", c.BackOffTo})
	return errors.Join(faults...)
}

// WithDefaults returns a copy with defaults in place of zero values.
func (c AgentConfig) WithDefaults() AgentConfig {
	c.Repository = slices.Clone(c.Repository)
	for i := range c.Repository {
		e := &c.Repository[i]
		e.Sockets, e.Plugs = slices.Clone(e.Sockets), slices.Clone(e.Plugs)
	}
	c.Address = c.Address.Unmap()
	c.Listen = cmp.Or(c.Listen, defaultAgent(c.Address))
	if c.Transport == nil {
		c.Transport = TCP{LocalAddr: c.Address}
	}
	if c.Logger == nil {
		c.Logger = hclog.NewNullLogger()
	}
	c.StartTimeout = cmp.Or(c.StartTimeout, defaultStartTimeout)
	c.DrainTimeout = cmp.Or(c.DrainTimeout, defaultDrainTimeout)
	c.RequestTimeout = cmp.Or(c.RequestTimeout, defaultRequestTimeout)
	c.BackOffFrom = cmp.Or(c.BackOffFrom, 100*time.Millisecond)
	c.BackOffTo = cmp.Or(c.BackOffTo, 10*time.Second)
	return c
}

// An Agent executes and kills service instances on its node as its Manager
// asks, and relays between the two (PROTOCOL section 1).
type Agent struct {
	cfg      AgentConfig
	log      hclog.Logger
	identity string // tells this agent from another that claims its address
	started  time.Time

	strangers strangers

	mu        sync.Mutex // guards what follows; held during a step, never across I/O
	core      *AgentCore
	links     map[ConnID]*link
	lastConn  ConnID
	processes map[InstanceID]*agentProcess
	timer     *time.Timer
	wakeAt    time.Duration // what timer is set for
	running   bool
	stopped   bool        // Run has ended, or is about to
	listen    string      // where instances find the agent
	state     *agentState // nil when nothing is kept
	epoch     uint64      // of the Manager, as far as it is noted in state

	empty chan struct{} // closed when, after a stop, nothing runs that is not kept
	done  chan struct{} // closed when Run ends
	wg    sync.WaitGroup
}

// NewAgent returns an agent that Run will run.
func NewAgent(cfg AgentConfig) (*Agent, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.WithDefaults()
	a := &Agent{
		cfg: cfg, log: cfg.Logger, identity: uuid.NewString(), started: time.Now(),
		links: map[ConnID]*link{}, processes: map[InstanceID]*agentProcess{},
		empty: make(chan struct{}), done: make(chan struct{}),
	}
	a.core = NewAgentCore(cfg, a.identity)
	return a, nil
}

// Run listens for the instances of this node and serves the Manager until ctx
// ends, trying again and again to reach it while it is away. Then it shuts its
// instances down, gracefully for the DrainTimeout, kills those that are left,
// and returns nil; or, with KeepInstances, leaves them and returns nil at once.
// It returns an error at once when it cannot listen, or not have its StateDir.
// An agent runs once.
func (a *Agent) Run(ctx context.Context) error {
	a.mu.Lock()
	if a.running {
		a.mu.Unlock()
		return fmt.Errorf("ssmmp: agent %s: %w", a.cfg.Address, ErrClosed)
	}
	a.running = true
	a.timer = time.AfterFunc(time.Hour, func() { a.step(AgentInput{Kind: AgentInputTime}) })
	a.mu.Unlock()

	ln, err := a.begin(ctx)
	if err != nil {
		a.timer.Stop()
		return fmt.Errorf("ssmmp: agent %s: %w", a.cfg.Address, err)
	}
	if a.state != nil {
		defer a.state.close()
		a.comeBack(ctx)
	}
	a.log.Info("serving instances", "address", a.listen)
	a.wg.Go(func() {
		if err := serve(ln, a.done, &a.wg, a.log, a.open, a.instanceConn); !errors.Is(err, ErrClosed) {
			a.log.Error("serving instances ended", "error", err)
		}
	})

	// The connection to the Manager outlives ctx, so that it hears how the
	// instances ended.
	manager, hangUp := context.WithCancel(context.WithoutCancel(ctx))
	defer hangUp()
	a.wg.Go(func() { a.reachManager(manager) })

	<-ctx.Done()
	a.step(AgentInput{Kind: AgentInputStop})
	<-a.empty

	hangUp()
	a.mu.Lock()
	a.stopped = true
	a.timer.Stop()
	close(a.done)
	for _, l := range a.links {
		l.close()
	}
	a.mu.Unlock()
	a.wg.Wait()
	return nil
}

// begin listens for instances, with the state that the agent keeps.
func (a *Agent) begin(ctx context.Context) (net.Listener, error) {
	var state *agentState
	listen := a.cfg.Listen
	if a.cfg.StateDir != "" {
		var err error
		if state, err = openAgentState(ctx, a.cfg.StateDir, a.log); err != nil {
			return nil, err
		}
		if _, port, _ := net.SplitHostPort(listen); port == "0" && state.self.Listen != "" {
			listen = state.self.Listen // where its instances look for it
		}
	}
	ln, err := a.cfg.Transport.Listen(ctx, listen)
	if err == nil && state != nil {
		if err = state.begin(ln.Addr().String()); err != nil {
			ln.Close()
		}
	}
	if err != nil {
		if state != nil {
			state.close()
		}
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.listen, a.state = ln.Addr().String(), state
	if state != nil {
		a.core.ComeBack(state.self.Identity, state.self.Epoch, state.ended)
	}
	return ln, nil
}

// reachManager keeps a connection to the Manager.
func (a *Agent) reachManager(ctx context.Context) {
	wait := a.cfg.BackOffFrom
	for ctx.Err() == nil {
		dialCtx, cancel := context.WithTimeout(ctx, a.cfg.RequestTimeout)
		conn, err := a.cfg.Transport.Dial(dialCtx, a.cfg.Manager)
		cancel()
		if err != nil {
			a.log.Warn("cannot reach the Manager", "address", a.cfg.Manager, "error", err, "again in", wait)
		} else if a.managerConn(ctx, conn) {
			wait = a.cfg.BackOffFrom
		}
		// Full jitter: agents that lost their Manager together come back apart.
		if !sleep(ctx, wait/2+rand.N(wait/2+1)) {
			return
		}
		wait = min(2*wait, a.cfg.BackOffTo)
	}
}

// managerConn serves one connection to the Manager and tells whether the
// Manager registered this agent on it.
func (a *Agent) managerConn(ctx context.Context, conn net.Conn) bool {
	l := a.open(conn)
	a.step(AgentInput{Kind: AgentInputManagerUp, Conn: l.id})
	a.log.Info("connected to the Manager", "address", a.cfg.Manager)
	out := flushList{log: a.log}
	err := l.read(&out, a.log, func(m Message) {
		a.stepOnly(AgentInput{Kind: AgentInputMessage, Conn: l.id, Msg: m}, &out)
	}, func(p *ProtocolError) { a.badLine(l, ActorManager, p) })
	a.mu.Lock()
	registered := a.core.registered // and not with a Manager that it does not obey
	a.mu.Unlock()
	a.step(AgentInput{Kind: AgentInputLost, Conn: l.id})
	a.close(l)
	if ctx.Err() == nil {
		a.log.Warn("connection to the Manager ended", "error", err)
	}
	return registered
}

// instanceConn serves one connection of an instance.
func (a *Agent) instanceConn(l *link) {
	log := a.log.With("peer", l.conn.RemoteAddr().String())
	// An instance may be silent for long, but those that say nothing shall not
	// keep the others out.
	peer := a.strangers.meet(l, maxStrangers/2, log)
	asked := map[InstanceID]Proof{} // the kernel, which takes its time
	out := flushList{log: a.log}
	err := l.read(&out, log, func(m Message) {
		proof := ProofNone
		if !peer.known {
			out.flush()
			proof = a.prove(l, m, asked)
		}
		a.stepOnly(AgentInput{Kind: AgentInputMessage, Conn: l.id, Msg: m, Proof: proof}, &out)
		out.ease()
		if !peer.known && a.speaks(l) {
			peer.introduced()
		}
	}, func(p *ProtocolError) { a.badLine(l, ActorInstance, p) })
	peer.left()
	a.step(AgentInput{Kind: AgentInputLost, Conn: l.id})
	a.close(l)
	log.Debug("connection of an instance ended", "error", err)
}

// Dropped returns how many messages and lines were dropped so far, because they
// came late, again or unasked, or broke the protocol.
func (a *Agent) Dropped() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.core.dropped
}

// speaks reports whether a connection is bound to an instance.
func (a *Agent) speaks(l *link) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.core.conns[l.id] != nil
}

// badLine counts a line that is no message, and answers it where it was a
// request.
func (a *Agent) badLine(l *link, from Actor, p *ProtocolError) {
	a.mu.Lock()
	a.core.dropped++
	service, id := "", InstanceID(0)
	if i := a.core.conns[l.id]; i != nil && i.conn == l.id {
		service, id = i.service, i.id
	}
	a.mu.Unlock()
	if r := refusal(p, from, ActorAgent, service, id); r != nil {
		l.send(r)
	}
}

func (a *Agent) open(conn net.Conn) *link {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.lastConn++
	l := newLink(a.lastConn, conn)
	select {
	case <-a.done:
		l.close()
	default:
		a.links[l.id] = l
	}
	return l
}

func (a *Agent) close(l *link) {
	l.wait()
	a.mu.Lock()
	delete(a.links, l.id)
	a.mu.Unlock()
}

// prove finds out who sent the first message of a connection: by the secret
// that only the instance was given, or else by asking the kernel which process
// holds the other end.
func (a *Agent) prove(l *link, m Message, asked map[InstanceID]Proof) Proof {
	a.mu.Lock()
	id, open := a.core.claim(l.id, m)
	p := a.processes[id]
	a.mu.Unlock()
	if p == nil {
		return ProofFailed // not even if it is executed in this moment
	}
	if !open {
		return ProofNone
	}
	if secret := m.Head().Extension(extSecret); secret != "" {
		if subtle.ConstantTimeCompare([]byte(secret), []byte(p.secret)) == 1 {
			return ProofGood
		}
		return ProofFailed
	}
	<-p.launched
	if p.process == nil {
		return ProofFailed
	}
	answer, done := asked[id]
	if !done {
		switch owns, known := p.process.Owns(l.conn); {
		case !known:
		case owns:
			answer = ProofGood
		default:
			answer = ProofFailed
		}
		asked[id] = answer
	}
	return answer
}

// step has the core take one input and carries out what it decides.
func (a *Agent) step(in AgentInput) {
	out := flushList{log: a.log}
	a.stepOnly(in, &out)
	out.flush()
}

// stepOnly is step, but for flushing what it queues.
func (a *Agent) stepOnly(in AgentInput, out *flushList) {
	a.mu.Lock()
	in.Now = time.Since(a.started)
	var warnings []AgentOutput
	outputs := a.core.Step(in)
	for i := range outputs {
		o := &outputs[i]
		switch o.Kind {
		case AgentOutputSend:
			if l := a.links[o.Conn]; l != nil {
				if err := out.put(l, o.Msg); err != nil && o.Conn == a.core.manager {
					a.core.Unsent(o.Msg)
				}
			}
		case AgentOutputClose:
			if l := a.links[o.Conn]; l != nil {
				l.close()
			}
		case AgentOutputAbort:
			if l := a.links[o.Conn]; l != nil {
				l.abort()
			}
		case AgentOutputLaunch:
			a.launch(*o)
		case AgentOutputProbe:
			id, sockets := o.Instance, a.core.instances[o.Instance].sockets
			a.wg.Go(func() { a.probe(id, sockets) })
		case AgentOutputKill:
			if id, p := o.Instance, a.processes[o.Instance]; p != nil && !p.killing {
				p.killing = true // a launch that hangs gathers no more of them
				a.wg.Go(func() { a.kill(id, p) })
			}
		case AgentOutputSignal:
			if id, name, p := o.Instance, o.Text, a.processes[o.Instance]; p != nil {
				a.wg.Go(func() { a.signal(id, p, name) })
			}
		case AgentOutputChanged:
			if i := a.core.instances[o.Instance]; i != nil {
				id, ready, spoke := o.Instance, i.ready, i.wasBound
				a.keep(func(s *agentState) {
					s.update(id, func(r *InstanceRecord) { r.Ready, r.Spoke = r.Ready || ready, r.Spoke || spoke })
				})
			}
		case AgentOutputForget:
			id := o.Instance
			a.keep(func(s *agentState) { s.forget(id, true) })
		case AgentOutputEmpty:
			close(a.empty)
		case AgentOutputWarn, AgentOutputRefused:
			warnings = append(warnings, *o)
		}
	}
	if epoch := a.core.epoch; epoch > a.epoch {
		a.epoch = epoch
		a.keep(func(s *agentState) { s.obeys(epoch) })
	}
	if at, ok := a.core.NextDeadline(); ok && !a.stopped && (at != a.wakeAt || in.Kind == AgentInputTime) {
		a.wakeAt = at
		a.timer.Reset(max(0, at-in.Now))
	}
	a.mu.Unlock()
	for _, w := range warnings {
		if w.Kind == AgentOutputRefused {
			a.log.Error("the Manager refused this agent", "status", w.Status.String())
		} else {
			a.log.Warn(w.Text)
		}
	}
}
