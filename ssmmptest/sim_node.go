package ssmmptest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/ssmmp/ssmmp"
)

// A simulated node: the production core of an agent, and what an agent's
// runtime does around it.

type simNode struct {
	simActor
	s     *simRun
	index int
	cfg   ssmmp.AgentConfig
	core  *ssmmp.AgentCore
	away  bool // stays away after a crash

	ends     map[ssmmp.ConnID]*simEnd
	lastConn ssmmp.ConnID
	manager  *simEnd // the connection to the Manager, nil while there is none
	wait     time.Duration
	stopping bool

	procs    []*simProc // that run, or whose children do, in the order of their start
	byID     map[ssmmp.InstanceID]*simProc
	executes map[int64]ssmmp.InstanceID // by execution_request
	plugs    map[simTuple]bool          // ports in use at this end
	next     uint16                     // port to dial from
	listen   map[uint16]*simProc
	squat    []*simFaultRun // another program holds the ports that instances want
	unheard  []*simFaultRun // its reports that sessions ended are lost
	faults   []*simFaultRun // of the processes that it starts
	misled   []*simFaultRun // an old Manager may answer it
	fewer    bool           // its repository lacks a service
	kept     *simKept       // what outlives an agent; nil where nothing does
}

func newSimNode(s *simRun, index int, host *simHost) *simNode {
	n := &simNode{s: s, index: index}
	n.simActor = simActor{name: "agent " + host.name, host: host, owner: n, dead: true, ppm: int64(s.sim.Nodes[index].Drift)}
	n.wake = func() { n.step(ssmmp.AgentInput{Kind: ssmmp.AgentInputTime}) }
	n.plugs, n.listen = map[simTuple]bool{}, map[uint16]*simProc{}
	n.next = s.sim.Config.FirstPlugPort
	if s.sim.Nodes[index].Keeps {
		n.kept = &simKept{records: map[ssmmp.InstanceID]*ssmmp.InstanceRecord{}}
	}
	return n
}

// simLauncher stands in a repository: the simulation executes by itself.
type simLauncher struct{}

func (simLauncher) Launch(context.Context, ssmmp.Launch) (ssmmp.Process, error) {
	return nil, errors.New("simulated")
}

// start executes an agent.
func (n *simNode) start() {
	s := n.s
	if !n.dead || n.away {
		return
	}
	n.life++
	n.host.down = false
	n.dead, n.frozen, n.born, n.jumped, n.wakeAt = false, false, s.now, 0, 0
	n.ends, n.byID, n.executes = map[ssmmp.ConnID]*simEnd{}, map[ssmmp.InstanceID]*simProc{}, map[int64]ssmmp.InstanceID{}
	n.manager, n.stopping, n.wait = nil, false, 100*time.Millisecond
	n.cfg = ssmmp.AgentConfig{
		Manager: "10.0.0.0:55555", Address: n.host.addr, Listen: "127.0.0.1:55556", Repository: s.repository(n),
		StartTimeout: s.sim.Config.StartTimeout, DrainTimeout: s.sim.Config.DrainTimeout, RequestTimeout: s.sim.Config.RequestTimeout,
	}.WithDefaults()
	n.core = ssmmp.NewAgentCore(n.cfg, fmt.Sprintf("%s.%d", n.host.name, n.life))
	s.logf("%s starts", n.name)
	if n.kept != nil {
		n.comeBack()
	}
	n.reach()
}

// crash ends the agent, and with it what it executed.
func (n *simNode) crash() {
	s := n.s
	if n.dead {
		return
	}
	s.logf("%s dies", n.name)
	n.dead = true
	for _, id := range simSorted(n.ends) {
		s.die(n.ends[id], n.host.down)
	}
	for _, p := range slices.Clone(n.procs) {
		p.gone(true)
	}
	n.backlog = nil
}

// reach dials the Manager, again and again.
func (n *simNode) reach() {
	s := n.s
	m := s.manager
	life := n.life
	again := func() {
		wait := n.wait/2 + n.host.rand.between(0, n.wait/2)
		n.wait = min(2*n.wait, n.cfg.BackOffTo)
		s.after(&n.simActor, wait, func() {
			if n.life == life && n.manager == nil {
				n.reach()
			}
		})
	}
	switch {
	case len(n.misled) > 0 && n.core.Epoch() > 1 && n.misled[0].rand.oneIn(2):
		s.oldManager(n, n.misled[0])
	case s.blocked(n.host, m.host) || s.blocked(m.host, n.host):
		s.hit(SimManagerDialBlocked)
		s.after(&n.simActor, n.cfg.RequestTimeout, again)
	case m.dead || m.refuses:
		if m.refuses {
			s.hit(SimManagerRefuses)
		}
		s.after(&n.simActor, s.delay(n.host, m.host), again)
	default:
		s.after(&n.simActor, 2*s.delay(n.host, m.host), func() {
			if n.life != life {
				return
			}
			if m.dead || m.refuses {
				again()
				return
			}
			c := s.connect(simToManager, &n.simActor, &m.simActor)
			m.accept(&c.ends[1])
			n.manager = n.open(&c.ends[0])
			n.step(ssmmp.AgentInput{Kind: ssmmp.AgentInputManagerUp, Conn: n.manager.id})
		})
	}
}

func (n *simNode) open(e *simEnd) *simEnd {
	n.lastConn++
	e.id = n.lastConn
	n.ends[e.id] = e
	return e
}

func (n *simNode) line(e *simEnd, line []byte) {
	m, err := n.s.decode(line)
	if err != nil {
		return
	}
	if e == n.manager {
		if r, ok := m.(*ssmmp.InitiationResponse); ok && r.Status.Success() {
			n.wait = n.cfg.BackOffFrom
		}
		n.step(ssmmp.AgentInput{Kind: ssmmp.AgentInputMessage, Conn: e.id, Msg: m})
		return
	}
	n.step(ssmmp.AgentInput{Kind: ssmmp.AgentInputMessage, Conn: e.id, Msg: m, Proof: n.prove(e, m)})
}

// prove finds out who sent a message, as an agent's runtime does.
func (n *simNode) prove(e *simEnd, m ssmmp.Message) ssmmp.Proof {
	p := n.byID[simSender(m)]
	if p == nil {
		return ssmmp.ProofFailed
	}
	if secret := m.Head().Extension("x_secret"); secret != "" {
		if secret == p.launch.Secret {
			return ssmmp.ProofGood
		}
		return ssmmp.ProofFailed
	}
	switch {
	case !n.s.sim.Config.KernelProof:
		return ssmmp.ProofNone
	case e.peer().who == &p.simActor:
		return ssmmp.ProofGood
	}
	return ssmmp.ProofFailed
}

func (n *simNode) lost(e *simEnd) {
	delete(n.ends, e.id)
	n.step(ssmmp.AgentInput{Kind: ssmmp.AgentInputLost, Conn: e.id})
	if e == n.manager {
		n.manager = nil
		life := n.life
		n.s.after(&n.simActor, n.wait/2+n.host.rand.between(0, n.wait/2), func() {
			if n.life == life && n.manager == nil {
				n.reach()
			}
		})
		n.wait = min(2*n.wait, n.cfg.BackOffTo)
	}
}

func (n *simNode) step(in ssmmp.AgentInput) {
	if n.dead {
		return
	}
	in.Now = n.local(n.s.now)
	if at, ok := n.core.NextDeadline(); ok && at <= in.Now && in.Kind != ssmmp.AgentInputTime {
		n.step1(ssmmp.AgentInput{Kind: ssmmp.AgentInputTime, Now: in.Now})
	}
	n.step1(in)
	if at, ok := n.core.NextDeadline(); ok {
		n.s.wakeAt(&n.simActor, at)
	}
}

func (n *simNode) step1(in ssmmp.AgentInput) {
	s := n.s
	s.check.beforeAgent(n, &in)
	out := n.core.Step(in)
	if n.kept != nil {
		n.kept.epoch = n.core.Epoch()
	}
	for i := range out {
		o := &out[i]
		s.check.agentOutput(n, &in, o)
		switch o.Kind {
		case ssmmp.AgentOutputSend:
			e := n.ends[o.Conn]
			if e == n.manager && n.loses(o.Msg) {
				continue
			}
			if e != nil && s.send(e, o.Msg) != nil && e == n.manager {
				n.core.Unsent(o.Msg)
			}
		case ssmmp.AgentOutputClose:
			if e := n.ends[o.Conn]; e != nil {
				s.hangUp(e)
			}
		case ssmmp.AgentOutputAbort:
			if e := n.ends[o.Conn]; e != nil {
				s.abort(e)
			}
		case ssmmp.AgentOutputLaunch:
			n.launch(o.Launch)
		case ssmmp.AgentOutputProbe:
			if p := n.byID[o.Instance]; p != nil {
				p.probe(20 * time.Millisecond)
			}
		case ssmmp.AgentOutputKill:
			if p := n.byID[o.Instance]; p != nil {
				p.killed()
			}
		case ssmmp.AgentOutputChanged:
			n.learned(o.Instance)
		case ssmmp.AgentOutputForget:
			n.forgets(o.Instance)
		case ssmmp.AgentOutputEmpty:
			life := n.life
			s.after(&n.simActor, time.Second, func() {
				if n.life == life {
					n.crash()
				}
			})
		case ssmmp.AgentOutputWarn:
			if s.transcript != nil {
				s.logf("%s warns: %s", n.name, o.Text)
			}
		case ssmmp.AgentOutputRefused:
			s.logf("%s is refused: %s", n.name, o.Status)
		}
	}
}

// loses tells whether a message to the Manager goes into nothing.
func (n *simNode) loses(m ssmmp.Message) bool {
	switch m.(type) {
	case *ssmmp.SourceSessionCloseInfo, *ssmmp.DestSessionCloseInfo:
		for _, f := range n.unheard {
			if f.rand.n(100) < f.percent {
				n.s.hit(f.Kind)
				return true
			}
		}
	}
	return false
}

// simSender returns the instance that a message names as its sender.
func simSender(m ssmmp.Message) ssmmp.InstanceID {
	switch m := m.(type) {
	case *ssmmp.SessionRequest:
		return m.SourceServiceInstanceID
	case *ssmmp.SessionAck:
		return m.SourceServiceInstanceID
	case *ssmmp.SourceSessionCloseInfo:
		return m.SourceServiceInstanceID
	case *ssmmp.DestSessionCloseInfo:
		return m.DestServiceInstanceID
	case *ssmmp.TerminationInfo:
		return m.ServiceInstanceID
	case *ssmmp.InstanceHealthResponse:
		return m.ServiceInstanceID
	}
	return 0
}

// simSorted gives a map an order.
func simSorted[K cmp.Ordered, V any](m map[K]V) []K {
	keys := make([]K, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
