package ssmmptest

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/ssmmp/ssmmp"
)

// A simulated process of a service instance: the production core, what an
// instance's runtime does around it, and a program that does well or does not.

// simHabits say how a process behaves. They are drawn when it starts.
type simHabits struct {
	launch       time.Duration // until it runs
	hello        time.Duration // then until it reaches its agent; never if negative
	listen       time.Duration // then until it listens; never if negative
	fails        bool          // cannot be launched
	dies         time.Duration // after its start; not if 0
	panics       bool          // then with a panic, and not with exit code 1
	hangs        time.Duration // after its start; not if 0
	hangsFor     time.Duration // for ever if 0
	ends         time.Duration // by its business logic, after its start; not if 0
	endsFor      time.Duration // and takes so long to exit; for ever if negative
	children     bool          // that outlive it
	killTime     time.Duration // until a kill has worked
	killsFail    int           // first
	drain        time.Duration // time that the functions given to OnDrain take
	ignoresDrain bool
	ignoresEOF   bool
	closing      time.Duration // time that the functions given to OnSessionClose take
	refuses      time.Duration // does not listen for a while, after its start
	refusesFor   time.Duration
	health       ssmmp.Status
	reconnects   time.Duration // drops its connection to the agent, after its start
	repeats      time.Duration // until it sends a session_request again; not if 0
	showsSecret  bool
}

type simProc struct {
	simActor
	node   *simNode
	s      *simRun
	id     ssmmp.InstanceID
	launch ssmmp.Launch
	core   *ssmmp.InstanceCore
	habits simHabits
	rand   simRand

	running      bool // launched, and not exited
	orphans      bool // it exited and its children run on
	finished     bool // nothing of it runs any more
	reported     bool // its agent has been told so
	exit         ssmmp.Exit
	joined       bool           // has said hello
	listened     bool           // has listened on all its ports
	mayDie       bool           // somebody wants it killed
	killAsked    bool           // and its agent has it killed
	owes         map[int64]bool // see gets
	acked        map[int64]bool // session_acks that it sent
	unreadySince time.Duration  // when it was found to be late, in virtual time
	asked        time.Duration  // when its agent launched it, by the agent's clock
	listening    bool
	held         []uint16 // ports that it listens on
	agent        *simEnd  // nil while it has no connection to its agent
	wait         time.Duration
	draining     bool
	ended        bool // has left the mesh

	lastCall ssmmp.CallID
	dials    map[ssmmp.CallID]*simDialing
	lastEnd  uint64
	sessions []*simSessionEnd // open, in the order of their numbers
}

// launch executes an instance, or fails to.
func (n *simNode) launch(l ssmmp.Launch) {
	s := n.s
	l.Sockets, l.Plugs = slices.Clone(l.Sockets), slices.Clone(l.Plugs)
	l.Agent, l.Secret = n.cfg.Listen, fmt.Sprintf("secret-%d-%d", l.ID, n.host.rand.n(1<<30))
	p := &simProc{node: n, s: s, id: l.ID, launch: l, rand: newSimRand(s.sim.Seed, 1<<40+uint64(l.ID)), wait: 20 * time.Millisecond,
		dials: map[ssmmp.CallID]*simDialing{}, owes: map[int64]bool{}, acked: map[int64]bool{}}
	p.simActor = simActor{name: fmt.Sprintf("%s %d", l.Service, l.ID), host: n.host, owner: p, born: s.now}
	p.habits, p.asked = n.habits(p), n.local(s.now)
	n.byID[l.ID] = p
	n.intend(l)
	if n.portTaken(p) != 0 {
		s.after(&n.simActor, 250*time.Millisecond, func() {
			p.finished, p.dead = true, true
			delete(n.byID, l.ID)
			n.neverRan(l.ID)
			n.step(ssmmp.AgentInput{Kind: ssmmp.AgentInputStarted, Instance: l.ID, Err: ssmmp.ErrPortTaken})
		})
		return
	}
	s.after(&n.simActor, p.habits.launch, func() {
		if p.habits.fails {
			p.finished, p.dead = true, true
			delete(n.byID, l.ID)
			n.neverRan(l.ID)
			n.step(ssmmp.AgentInput{Kind: ssmmp.AgentInputStarted, Instance: l.ID, Err: errSimLaunch})
			return
		}
		p.run()
		n.step(ssmmp.AgentInput{Kind: ssmmp.AgentInputStarted, Instance: l.ID})
	})
}

var errSimLaunch = fmt.Errorf("fork: resource temporarily unavailable")

// run begins the life of a process.
func (p *simProc) run() {
	s, h := p.s, &p.habits
	p.running, p.born = true, s.now
	p.node.procs = append(p.node.procs, p)
	s.starts++
	s.running++
	s.logf("%s runs on %s", p.name, p.host.name)
	s.check.launched(p)
	p.core = ssmmp.NewInstanceCore(p.launch)
	if h.health != 0 {
		p.core.Step(ssmmp.InstanceInput{Kind: ssmmp.InstanceInputHealth, Status: h.health})
	}
	at := func(d time.Duration, f func()) { s.after(&p.simActor, d, f) }
	if h.hello >= 0 {
		at(h.hello, p.reach)
	}
	if h.listen >= 0 {
		at(h.listen, func() { p.bind(5) })
	}
	if h.dies > 0 {
		at(h.dies, func() {
			if h.panics {
				s.hit(SimPanics)
				p.exits(ssmmp.Exit{Code: -1, Reason: "panic"})
				return
			}
			p.exits(ssmmp.Exit{Code: 1})
		})
	}
	if h.ends > 0 {
		at(h.ends, func() {
			if !p.ended {
				s.hit(SimEndsByItself)
				p.leave(ssmmp.InstanceInputTerminating)
			}
		})
	}
	if h.hangs > 0 {
		at(h.hangs, func() {
			s.freeze(&p.simActor)
			if h.hangsFor == 0 && h.hello < 0 && h.listen >= 0 {
				h.hangsFor = time.Minute // its agent takes it to be well: nobody would end it
			}
			if h.hangsFor > 0 {
				s.after(nil, h.hangsFor, func() { s.thaw(&p.simActor) })
			}
		})
	}
	if h.refuses > 0 {
		at(h.refuses, func() {
			p.unbind()
			s.hit(SimRefusesDials)
			at(h.refusesFor, func() { p.bind(5) })
		})
	}
	if h.reconnects > 0 {
		at(h.reconnects, func() {
			if p.agent != nil {
				s.hit(SimReconnects)
				s.abort(p.agent)
			}
		})
	}
	for _, l := range s.loads[p.launch.Service] {
		p.load(l)
	}
}

// bind listens on the ports of all sockets, or exits when another program
// holds one for too long.
func (p *simProc) bind(tries int) {
	if !p.running || p.listening || p.ended {
		return
	}
	n := p.node
	taken := n.portTaken(p)
	for _, k := range p.launch.Sockets {
		for _, f := range n.squat {
			if f.Kind == SimPortSquatted && f.rand.n(100) < f.percent {
				p.s.hit(f.Kind)
				taken = k.Port
			}
		}
	}
	if taken != 0 {
		p.s.logf("%s cannot listen on %d", p.name, taken)
		if tries == 0 {
			p.exits(simCannotListen)
			return
		}
		p.s.after(&p.simActor, time.Second, func() { p.bind(tries - 1) })
		return
	}
	p.listening, p.listened = true, true
	for _, k := range p.launch.Sockets {
		n.listen[k.Port] = p
		p.held = append(p.held, k.Port)
	}
}

// simCannotListen is how a process exits that lacks a port.
var simCannotListen = ssmmp.Exit{Code: 98}

// portTaken returns a port that a process is to listen on and cannot, since
// another has it; 0 if there is none.
func (n *simNode) portTaken(p *simProc) uint16 {
	for _, k := range p.launch.Sockets {
		if q := n.listen[k.Port]; q == p {
			continue
		} else if q != nil {
			return k.Port
		}
		for _, f := range n.squat {
			if r := newSimRand(f.ports, uint64(k.Port)); f.Kind == SimPortsTaken && r.oneIn(3) {
				n.s.hit(f.Kind)
				return k.Port
			}
		}
	}
	return 0
}

func (p *simProc) unbind() {
	p.listening = false
	for _, port := range p.held {
		delete(p.node.listen, port)
	}
	p.held = nil
}

// probe finds out whether all ports listen, as an agent's runtime does.
func (p *simProc) probe(wait time.Duration) {
	n := p.node
	p.s.after(&n.simActor, wait, func() {
		if p.joined || p.finished || n.byID[p.id] != p {
			return
		}
		for _, k := range p.launch.Sockets {
			if n.listen[k.Port] == nil {
				if p.s.now-p.born < time.Minute {
					p.probe(min(2*wait, 500*time.Millisecond))
				}
				return
			}
		}
		n.step(ssmmp.AgentInput{Kind: ssmmp.AgentInputPortsListen, Instance: p.id})
	})
}

// reach connects to the agent.
func (p *simProc) reach() {
	if !p.running || p.ended || p.agent != nil {
		return
	}
	n := p.node
	if n.dead {
		p.again()
		return
	}
	c := p.s.connect(simToAgent, &p.simActor, &n.simActor)
	p.agent = &c.ends[0]
	n.open(&c.ends[1])
	p.joined = true
	p.step(ssmmp.InstanceInput{Kind: ssmmp.InstanceInputUp})
}

func (p *simProc) again() {
	wait := p.wait/2 + p.rand.between(0, p.wait/2)
	p.wait = min(2*p.wait, 2*time.Second)
	p.s.after(&p.simActor, wait, p.reach)
}

func (p *simProc) line(e *simEnd, line []byte) {
	if e != p.agent {
		return
	}
	m, err := p.s.decode(line)
	if err != nil {
		return
	}
	p.s.check.instanceGets(p, m)
	p.step(ssmmp.InstanceInput{Kind: ssmmp.InstanceInputMessage, Msg: m})
}

func (p *simProc) lost(e *simEnd) {
	if e != p.agent {
		return
	}
	p.agent = nil
	for id, granted := range p.owes {
		if !granted {
			delete(p.owes, id) // it is not answered any more
		}
	}
	if p.core != nil {
		p.step(ssmmp.InstanceInput{Kind: ssmmp.InstanceInputDown})
	}
	if !p.ended {
		p.again()
	}
}

// step has the core take one input and carries out what it decides.
func (p *simProc) step(in ssmmp.InstanceInput) {
	s := p.s
	out := p.core.Step(in)
	if len(out) == 0 {
		return
	}
	// What is done below steps the core again, which overwrites its outputs.
	var kept [4]ssmmp.InstanceOutput
	for _, o := range append(kept[:0], out...) {
		s.check.instanceOutput(p, &o)
		switch o.Kind {
		case ssmmp.InstanceOutputSend:
			p.send(o.Msg)
		case ssmmp.InstanceOutputConnect:
			if d := p.dials[o.Call]; d != nil {
				d.granted(o.Target)
			}
		case ssmmp.InstanceOutputRefuse:
			if d := p.dials[o.Call]; d != nil {
				d.over(o.Status)
			}
		case ssmmp.InstanceOutputDrop:
			if e := p.session(o.Conn); e != nil {
				e.drop(p.habits.closing)
			}
		case ssmmp.InstanceOutputDrain:
			p.drain()
		case ssmmp.InstanceOutputWarn:
			if s.transcript != nil {
				s.logf("%s warns: %s", p.name, o.Text)
			}
		}
	}
}

// send sends a message to the agent.
func (p *simProc) send(m ssmmp.Message) {
	s := p.s
	if p.agent == nil {
		return
	}
	line := m
	if p.habits.showsSecret && m.Head().Extension("x_secret") == "" {
		line = ssmmp.Clone(m) // the core may keep it, and send it again
		line.Head().Extensions = append(line.Head().Extensions, ssmmp.Extension{Name: "x_secret", Value: p.launch.Secret})
	}
	if s.send(p.agent, line) != nil {
		p.core.Unsent(m)
		return
	}
	if _, ok := m.(*ssmmp.SessionRequest); ok && p.habits.repeats > 0 {
		agent, asked := p.agent, int(p.lastCall)-len(p.dials)
		again := ssmmp.Clone(line)
		s.after(&p.simActor, p.habits.repeats, func() {
			// Older answers need not be known any more.
			if p.agent == agent && int(p.lastCall)-asked < simAnswers {
				s.hit(SimRepeatsRequests)
				s.send(agent, again)
			}
		})
	}
}

// drain finishes the instance's work, as the Manager asked.
func (p *simProc) drain() {
	p.draining = true
	if p.habits.ignoresDrain {
		p.s.hit(SimIgnoresDrain)
		return
	}
	p.s.after(&p.simActor, min(p.habits.drain, 8*time.Second), func() { p.leave(ssmmp.InstanceInputDrained) })
}

// leave says a last word to the agent and closes everything.
func (p *simProc) leave(last ssmmp.InstanceInputKind) {
	if p.ended || !p.running {
		return
	}
	p.ended, p.draining = true, true
	p.unbind()
	for _, e := range slices.Clone(p.sessions) {
		e.close(ssmmp.StatusSessionClosed)
	}
	p.step(ssmmp.InstanceInput{Kind: last})
	if p.agent != nil {
		p.s.hangUp(p.agent)
	}
	if last == ssmmp.InstanceInputTerminating && p.habits.endsFor < 0 {
		p.s.hit(SimOnlyAnnounces)
		return
	}
	p.s.after(&p.simActor, p.habits.endsFor+p.rand.between(time.Millisecond, 50*time.Millisecond), func() { p.exits(ssmmp.Exit{}) })
}

// exits ends the process; its children may live on.
func (p *simProc) exits(exit ssmmp.Exit) {
	if !p.running {
		return
	}
	p.exit = exit
	if p.habits.children {
		p.s.hit(SimLeavesChildren)
		p.halt(false)
		p.orphans = true
		return
	}
	p.gone(false)
}

// halt takes the process from the network: the kernel closes what it held.
func (p *simProc) halt(silently bool) {
	s := p.s
	if !p.running {
		return
	}
	p.running, p.dead, p.backlog = false, true, nil
	s.running--
	p.unbind()
	for _, e := range slices.Clone(p.sessions) {
		e.died(silently)
	}
	p.sessions = nil
	if p.agent != nil {
		s.die(p.agent, silently)
	}
}

// gone ends all of it. with says that its agent died as well.
func (p *simProc) gone(with bool) {
	s, n := p.s, p.node
	if p.finished {
		return
	}
	s.logf("%s has ended: %s", p.name, p.exit)
	last := time.Duration(0)
	if p.agent != nil {
		last = p.agent.conn.pipes[1].last
	}
	p.halt(n.host.down)
	p.dead, p.finished, p.orphans = true, true, false
	n.procs = slices.DeleteFunc(n.procs, func(q *simProc) bool { return q == p })
	if with {
		return
	}
	if !n.dead && !n.frozen {
		n.sawEnd(p.id, p.exit)
	}
	// Its agent hears it out, for a second at the most.
	life := n.life
	wait := min(max(last-s.now, 0), time.Second) + p.rand.between(10*time.Microsecond, time.Millisecond)
	s.after(&n.simActor, wait, func() {
		if n.life == life && n.byID[p.id] == p {
			delete(n.byID, p.id)
			p.reported = true
			var why error // as far as its agent can see
			if p.exit == simCannotListen {
				why = ssmmp.ErrPortTaken
			}
			n.step(ssmmp.AgentInput{Kind: ssmmp.AgentInputExited, Instance: p.id, Exit: p.exit, Err: why})
		}
	})
}

// killed ends all of it as SIGKILL does, sooner or later.
func (p *simProc) killed() {
	if p.habits.killsFail > 0 {
		p.habits.killsFail--
		p.s.hit(SimKillFails)
		return
	}
	p.s.after(nil, p.habits.killTime+p.rand.between(0, time.Millisecond), func() {
		if p.finished || !p.running && !p.orphans {
			return
		}
		p.exit = ssmmp.Exit{Code: -1, Signal: "SIGKILL"}
		p.gone(false)
	})
}

func (p *simProc) session(number uint64) *simSessionEnd {
	if i, ok := p.indexOf(number); ok {
		return p.sessions[i]
	}
	return nil
}

func (p *simProc) indexOf(number uint64) (int, bool) {
	return slices.BinarySearchFunc(p.sessions, number, func(e *simSessionEnd, n uint64) int { return cmp.Compare(e.number, n) })
}

// load dials for the users of a graph, as long as this is one of its gateways
// and runs.
func (p *simProc) load(l *SimulationLoad) {
	s := p.s
	if len(p.launch.Plugs) == 0 {
		return
	}
	until := l.Until
	if until == 0 {
		until = s.sim.For
	}
	wait := max(l.From-s.now, 0) + p.rand.between(0, 2*l.Every)
	s.after(&p.simActor, wait, func() {
		if s.now >= until || p.ended || p.draining {
			return
		}
		if p.joined { // else it has nothing to dial with yet
			p.dial(p.launch.Plugs[p.rand.n(len(p.launch.Plugs))].Plug, p.rand.between(0, 2*l.Hold), true)
		}
		p.load(l)
	})
}

func (p *simProc) addr(port uint16) netip.AddrPort { return netip.AddrPortFrom(p.host.addr, port) }
