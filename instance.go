package ssmmp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// A JoinConfig says how a service instance joins its mesh. A field's zero
// value means its default; Launch has none.
type JoinConfig struct {
	// Launch is what the agent gave the instance.
	Launch Launch
	// Transport carries all connections; TCP from the node's address by
	// default.
	Transport Transport
	// Logger receives what happens; nothing is logged by default.
	Logger hclog.Logger
	// DialTimeout bounds a Dial whose context has no deadline; 45 s by
	// default, which leaves time to start the destination.
	DialTimeout time.Duration
	// DrainTimeout is how long the functions given to OnDrain have; 8 s by
	// default, so that they end before the Manager's patience does.
	DrainTimeout time.Duration
	// IdleTimeout closes a session that was dialled here when no byte went
	// either way for so long, and none waits in a Write to go, so that a pool
	// of connections cannot keep a service running for ever; 5 min by default,
	// never if it is negative.
	IdleTimeout time.Duration
}

// Validate reports every fault of the configuration at once.
func (c *JoinConfig) Validate() error {
	var faults []error
	fault := func(field string, value any, why string) {
		faults = append(faults, fmt.Errorf("ssmmp: JoinConfig.%s: %v: %s", field, value, why))
	}
	l := &c.Launch
	if !ValidName(l.Service) {
		fault("Launch.Service", strconv.Quote(l.Service), "not a name")
	}
	if l.ID <= 0 {
		fault("Launch.ID", l.ID, "not positive")
	}
	if !isNode(l.Address) {
		fault("Launch.Address", l.Address, "not the address of a node")
	}
	if _, _, err := net.SplitHostPort(l.Agent); err != nil {
		fault("Launch.Agent", strconv.Quote(l.Agent), "not host:port")
	}
	names := map[string]bool{} // after their kind
	named := func(field, kind, name string, valid bool, value any) {
		switch {
		case !valid:
			fault(field, value, "not the "+kind+" of a graph")
		case names[kind+name]:
			fault(field, value, "another "+kind+" has this name")
		}
		names[kind+name] = true
	}
	for n, s := range l.Sockets {
		named(fmt.Sprintf("Launch.Sockets[%d]", n), "socket", s.Socket, ValidName(s.Socket) && s.Port != 0, s)
	}
	for n, p := range l.Plugs {
		named(fmt.Sprintf("Launch.Plugs[%d]", n), "plug", p.Plug, ValidName(p.Plug) && ValidName(p.Socket) && ValidName(p.Service), p)
	}
	timeFaults(fault, timeField{"DialTimeout", c.DialTimeout}, timeField{"DrainTimeout", c.DrainTimeout},
		timeField{"IdleTimeout", max(c.IdleTimeout, 0)})
	return errors.Join(faults...)
}

// isNode reports whether a node can have the address.
func isNode(a netip.Addr) bool { return a.IsValid() && !a.IsUnspecified() && a.Zone() == "" }

const (
	defaultDialTimeout      = 45 * time.Second
	defaultCallbackDeadline = 8 * time.Second
	defaultSessionIdle      = 5 * time.Minute
	// reconnectFrom and reconnectTo bound the wait between two attempts to
	// reach the agent.
	reconnectFrom = 20 * time.Millisecond
	reconnectTo   = 2 * time.Second
	// dialAttempts is how often a Dial asks for a destination, and
	// refusedWindow how long it tries one that refuses: its instance may
	// have been started just now and not listen yet.
	dialAttempts  = 6
	refusedWindow = 500 * time.Millisecond
)

// ParseLaunch reads what an agent wrote on the command line (PROTOCOL section
// 1) and, where it is this library's agent, into the environment: args are the
// last five arguments, lookup is os.LookupEnv or its like. Without SSMMP_AGENT
// the agent is taken to listen on port 55556 of the local host, or of the
// node's address where that is a loopback address.
func ParseLaunch(args []string, lookup func(string) (string, bool)) (Launch, error) {
	fault := func(what, value string, err error) (Launch, error) {
		return Launch{}, fmt.Errorf("ssmmp: command line: %s %q: %w", what, value, err)
	}
	if len(args) < 5 {
		return Launch{}, fmt.Errorf("ssmmp: command line: %d arguments, want service_name instance_id network_address socket_configuration plug_configuration", len(args))
	}
	args = args[len(args)-5:]
	l := Launch{Service: args[0]}
	if !ValidName(l.Service) {
		return fault("service_name", l.Service, errors.New("not a name"))
	}
	id, err := strconv.ParseInt(args[1], 10, 64)
	if err != nil || id <= 0 {
		return fault("instance_id", args[1], errors.New("not a positive integer"))
	}
	l.ID = InstanceID(id)
	l.Address, err = netip.ParseAddr(args[2])
	l.Address = l.Address.Unmap()
	if err != nil || !isNode(l.Address) {
		return fault("network_address", args[2], errors.New("not the address of a node"))
	}
	if l.Sockets, err = ParseSockets(args[3]); err != nil {
		return fault("socket_configuration", args[3], err)
	}
	if l.Plugs, err = ParsePlugs(args[4]); err != nil {
		return fault("plug_configuration", args[4], err)
	}
	l.Agent = defaultAgent(l.Address)
	if v, ok := lookup(envAgent); ok && v != "" {
		l.Agent = v
	}
	l.Secret, _ = lookup(envSecret)
	return l, nil
}

// defaultAgent is where the agent of a node listens for its instances.
func defaultAgent(node netip.Addr) string {
	host := "localhost"
	if node.IsLoopback() {
		host = node.String()
	}
	return net.JoinHostPort(host, strconv.Itoa(AgentPort))
}

// An Instance is a service instance as the service itself sees it: its way
// into the mesh. Its methods may be called by many goroutines at once.
type Instance struct {
	cfg JoinConfig
	log hclog.Logger

	mu        sync.Mutex // guards what follows; held during a step, never across I/O
	core      *InstanceCore
	link      *link // to the agent, nil while it is away
	lastCall  CallID
	calls     map[CallID]chan dialAnswer
	lastConn  uint64
	conns     map[uint64]*sessionConn
	listeners map[*sessionListener]struct{}
	onDrain   []func(context.Context)
	onClose   []func(SessionClose)
	draining  bool
	ended     bool

	stop     context.CancelFunc
	stopped  context.Context // done when the instance has left the mesh
	drainCtx context.Context // done when it begins to leave
	drain    context.CancelFunc
	wg       sync.WaitGroup
}

type dialAnswer struct {
	target netip.AddrPort
	status Status
	reason string
}

// A SessionClose tells that the Manager wants a session closed.
type SessionClose struct {
	Conn   net.Conn // as Dial or Accept returned it; still open
	Name   string   // the plug or the socket that it belongs to
	Reason string
}

// Join joins the mesh that the instance's agent executed it for, with what is
// on the command line. It returns when the agent knows of the instance.
func Join(ctx context.Context) (*Instance, error) {
	l, err := ParseLaunch(os.Args[1:], os.LookupEnv)
	if err != nil {
		return nil, err
	}
	return JoinWith(ctx, JoinConfig{Launch: l})
}

// JoinWith is Join with explicit values.
func JoinWith(ctx context.Context, cfg JoinConfig) (*Instance, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	l := &cfg.Launch
	l.Sockets, l.Plugs = slices.Clone(l.Sockets), slices.Clone(l.Plugs)
	l.Address = l.Address.Unmap()
	if cfg.Transport == nil {
		cfg.Transport = TCP{LocalAddr: l.Address}
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	cfg.DialTimeout = cmp.Or(cfg.DialTimeout, defaultDialTimeout)
	cfg.DrainTimeout = cmp.Or(cfg.DrainTimeout, defaultCallbackDeadline)
	cfg.IdleTimeout = cmp.Or(cfg.IdleTimeout, defaultSessionIdle)
	i := &Instance{
		cfg: cfg, log: cfg.Logger.With("service", l.Service, "instance", l.ID), core: NewInstanceCore(*l),
		calls: map[CallID]chan dialAnswer{}, conns: map[uint64]*sessionConn{}, listeners: map[*sessionListener]struct{}{},
	}
	i.stopped, i.stop = context.WithCancel(context.Background())
	i.drainCtx, i.drain = context.WithCancel(i.stopped)

	conn, err := i.dialAgent(ctx)
	if err != nil {
		i.stop()
		return nil, fmt.Errorf("ssmmp: join: agent %s: %w", l.Agent, err)
	}
	l0 := i.attach(conn)
	i.wg.Go(func() { i.serveAgent(l0) })
	return i, nil
}

// dialAgent tries to reach the agent until ctx ends.
func (i *Instance) dialAgent(ctx context.Context) (net.Conn, error) {
	for wait := reconnectFrom; ; wait = min(2*wait, reconnectTo) {
		conn, err := i.cfg.Transport.Dial(ctx, i.cfg.Launch.Agent)
		if err == nil {
			return conn, nil
		}
		if !sleep(ctx, wait/2+rand.N(wait/2+1)) {
			return nil, err
		}
	}
}

// sleep waits, and reports whether ctx let it.
func sleep(ctx context.Context, d time.Duration) bool {
	pause := time.NewTimer(d)
	defer pause.Stop()
	select {
	case <-pause.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// attach makes conn the connection to the agent, and says hello on it. It
// returns nil when the instance has left meanwhile.
func (i *Instance) attach(conn net.Conn) *link {
	i.mu.Lock()
	if i.ended {
		i.mu.Unlock()
		conn.Close()
		return nil
	}
	l := newLink(0, conn)
	i.link = l
	i.mu.Unlock()
	i.step(InstanceInput{Kind: InstanceInputUp})
	return l
}

// serveAgent reads from the agent, and finds it again when it was away.
// Sessions go on meanwhile.
func (i *Instance) serveAgent(l *link) {
	const short = 5 * time.Second // a connection that ends sooner is not worth hurrying for
	for wait := reconnectFrom; l != nil; {
		began := time.Now()
		err := l.read(new(flushList), i.log, func(m Message) {
			i.step(InstanceInput{Kind: InstanceInputMessage, Msg: m})
		}, func(*ProtocolError) {
			i.mu.Lock()
			i.core.dropped++
			i.mu.Unlock()
		})
		i.step(InstanceInput{Kind: InstanceInputDown})
		i.mu.Lock()
		i.link = nil
		ended := i.ended
		i.mu.Unlock()
		l.wait()
		if ended {
			return
		}
		i.log.Warn("the agent is away", "error", err)
		if time.Since(began) >= short {
			wait = reconnectFrom
		} else if !sleep(i.stopped, wait/2+rand.N(wait/2+1)) {
			return
		}
		wait = min(2*wait, reconnectTo)
		conn, err := i.dialAgent(i.stopped)
		if err != nil {
			return
		}
		l = i.attach(conn)
	}
}

// step has the core take one input and carries out what it decides.
func (i *Instance) step(in InstanceInput) {
	i.mu.Lock()
	out := i.core.Step(in)
	queued := flushList{log: i.log}
	var warnings []string
	for k := range out {
		o := &out[k]
		switch o.Kind {
		case InstanceOutputSend:
			if i.link != nil {
				err := queued.put(i.link, o.Msg)
				if errors.Is(err, net.ErrClosed) || errors.Is(err, errQueueFull) {
					i.core.Unsent(o.Msg)
				}
			}
		case InstanceOutputConnect:
			i.answerDial(o.Call, dialAnswer{target: o.Target, status: StatusOK})
		case InstanceOutputRefuse:
			i.answerDial(o.Call, dialAnswer{status: o.Status, reason: strings.Clone(o.Text)})
		case InstanceOutputDrop:
			if c := i.conns[o.Conn]; c != nil {
				reason := o.Text
				i.wg.Go(func() { i.dropSession(c, reason) })
			}
		case InstanceOutputDrain:
			i.draining = true
			i.wg.Go(i.drainNow)
		case InstanceOutputWarn:
			warnings = append(warnings, o.Text)
		}
	}
	i.mu.Unlock()
	queued.flush()
	for _, w := range warnings {
		i.log.Warn(w)
	}
}

func (i *Instance) answerDial(call CallID, a dialAnswer) {
	if reply := i.calls[call]; reply != nil {
		delete(i.calls, call)
		reply <- a
	}
}

// ID returns the id that the Manager gave the instance.
func (i *Instance) ID() InstanceID { return i.cfg.Launch.ID }

// Service returns the name of the service that it is an instance of.
func (i *Instance) Service() string { return i.cfg.Launch.Service }

// Address returns the network address of its node.
func (i *Instance) Address() netip.Addr { return i.cfg.Launch.Address }

// Sockets returns the sockets of the service, with the ports that the Manager
// chose for them.
func (i *Instance) Sockets() []SocketPort { return slices.Clone(i.cfg.Launch.Sockets) }

// Dropped returns how many messages and lines were dropped so far, because they
// came late, again or unasked, or broke the protocol.
func (i *Instance) Dropped() uint64 {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.core.dropped
}

// SetHealth sets the status with which the instance answers health requests
// from now on: StatusOK, StatusOverloaded to get no new sessions while others
// can take them, or a 5xx to be shut down.
func (i *Instance) SetHealth(s Status) error {
	if !s.Valid() {
		return fmt.Errorf("ssmmp: health %d: not a status", uint16(s))
	}
	i.step(InstanceInput{Kind: InstanceInputHealth, Status: s})
	return nil
}

// OnDrain has f called when the Manager begins to shut the instance down
// gracefully, after all its sessions were closed. The instance answers, and
// Done is closed, when every such f has returned; ctx ends when it will not be
// waited for any longer.
func (i *Instance) OnDrain(f func(ctx context.Context)) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.onDrain = append(i.onDrain, f)
}

// OnSessionClose has f called before a session is closed because the Manager
// wants it. The connection closes when f returns, at the latest after half of
// the DrainTimeout.
func (i *Instance) OnSessionClose(f func(SessionClose)) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.onClose = append(i.onClose, f)
}

// Draining is closed when the instance begins to shut down.
func (i *Instance) Draining() <-chan struct{} { return i.drainCtx.Done() }

// Done is closed when the instance has left the mesh: now the program should
// exit.
func (i *Instance) Done() <-chan struct{} { return i.stopped.Done() }

// drainNow finishes the instance's work as the Manager asked and answers just
// before it exits.
func (i *Instance) drainNow() {
	i.drain()
	i.mu.Lock()
	fs := slices.Clone(i.onDrain)
	i.mu.Unlock()
	ctx, cancel := context.WithTimeout(i.stopped, i.cfg.DrainTimeout)
	defer cancel()
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		var wg sync.WaitGroup
		for _, f := range fs {
			wg.Go(func() { f(ctx) })
		}
		wg.Wait()
	}()
	select {
	case <-finished:
	case <-ctx.Done():
		i.log.Warn("functions given to OnDrain did not return in time")
	}
	i.leave(InstanceInputDrained)
}

// leave says a last word to the agent and closes everything.
func (i *Instance) leave(last InstanceInputKind) {
	i.mu.Lock()
	if i.ended {
		i.mu.Unlock()
		return
	}
	i.ended, i.draining = true, true
	var listeners []*sessionListener
	for ln := range i.listeners {
		listeners = append(listeners, ln)
	}
	var conns []*sessionConn
	for _, c := range i.conns {
		conns = append(conns, c)
	}
	i.mu.Unlock()

	i.drain()
	for _, ln := range listeners {
		ln.Close()
	}
	slices.SortFunc(conns, func(a, b *sessionConn) int { return cmp.Compare(a.number, b.number) })
	for _, c := range conns {
		c.Close()
	}
	i.step(InstanceInput{Kind: last})
	i.mu.Lock()
	l := i.link
	i.mu.Unlock()
	if l != nil {
		l.close()
		l.wait()
	}
	i.stop()
}

// Terminate ends the instance by its own business logic (PROTOCOL section 3):
// it closes listeners and sessions, tells the agent, and closes Done.
func (i *Instance) Terminate() { i.leave(InstanceInputTerminating) }

// Close terminates the instance if it has not left the mesh yet, and waits for
// its goroutines. It is for the end of main; do not call it from a function
// given to OnDrain or OnSessionClose.
func (i *Instance) Close() error {
	i.Terminate()
	<-i.stopped.Done()
	i.wg.Wait()
	return nil
}
