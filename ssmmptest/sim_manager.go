package ssmmptest

import (
	"slices"
	"time"

	"github.com/ssmmp/ssmmp"
)

// The simulated Manager: the production core, a store that takes its time, and
// the connections of agents.

type simManager struct {
	simActor
	s    *simRun
	cfg  ssmmp.ManagerConfig
	core *ssmmp.ManagerCore

	ends     map[ssmmp.ConnID]*simEnd
	lastConn ssmmp.ConnID
	lastCall ssmmp.CallID
	calls    map[ssmmp.CallID]func(error)
	refuses  bool // does not accept connections
	store    []ssmmp.Event

	// What waits for the store: nothing leaves before the events that caused
	// it are committed.
	held       []simHeld
	committing int // of held, by the commit under way
	durable    int // of those, what the store holds already
	slow       []*simFaultRun
	failing    bool
	full       bool   // the store has no room
	knows      bool   // and the Manager has seen it
	last       uint64 // the last event that it knows to be committed
}

// A simHeld is what one step of the core asked for.
type simHeld struct {
	events []ssmmp.Event
	out    []simHeldOutput
}

type simHeldOutput struct {
	kind    ssmmp.ManagerOutputKind
	conn    ssmmp.ConnID
	line    []byte
	message int64 // its id, if it is a request
	call    ssmmp.CallID
	err     error
}

func newSimManager(s *simRun, host *simHost) *simManager {
	m := &simManager{s: s}
	m.simActor = simActor{name: "Manager", host: host, owner: m, dead: true}
	m.wake = func() { m.step(ssmmp.ManagerInput{Kind: ssmmp.ManagerInputTime}) }
	return m
}

// start executes a Manager: with what the store holds of the one before, or with
// nothing. An operator deploys what was deployed.
func (m *simManager) start() {
	s := m.s
	if !m.dead {
		return
	}
	m.life++
	m.dead, m.frozen, m.born, m.jumped, m.wakeAt = false, false, s.now, 0, 0
	m.ends, m.calls = map[ssmmp.ConnID]*simEnd{}, map[ssmmp.CallID]func(error){}
	m.held, m.committing, m.durable, m.failing = nil, 0, 0, false
	m.knows, m.last = false, 0
	m.cfg = s.sim.managerConfig()
	if s.sim.Forgets {
		// As from the wall clock: the ids of a Manager before it are not used.
		m.cfg.FirstInstance = ssmmp.InstanceID(m.life-1)*1_000_000 + 1
		m.cfg.FirstMessage = int64(m.life) * 1_000_000_000
		m.store = nil
	}
	m.cfg.Epoch = uint64(m.life) + 1
	m.cfg = m.cfg.WithDefaults()
	m.core = ssmmp.NewManagerCore(m.cfg)
	s.logf("Manager starts")
	s.check.managerStarted(m.store)
	if len(m.store) > 0 {
		for i := range m.store {
			if err := m.core.Replay(m.store[i]); err != nil {
				s.fail("what is stored can be replayed", "%v", err)
				return
			}
		}
		m.last = m.store[len(m.store)-1].Seq
		s.check.all()
		s.hit(SimReplayed)
		m.jumped = m.core.Now()
		in := ssmmp.ManagerInput{Kind: ssmmp.ManagerInputTime, Now: m.jumped}
		s.check.beforeManager(&in)
		out, events := m.core.Resume(in.Now)
		m.took(&in, out, events)
		if at, ok := m.core.NextDeadline(); ok {
			s.wakeAt(&m.simActor, at)
		}
	}
	for _, g := range s.deployed {
		s.deploy(g)
	}
}

// crash ends the Manager as kill -9 does.
func (m *simManager) crash() {
	s := m.s
	if m.dead {
		return
	}
	s.logf("Manager dies")
	m.dead = true
	for _, id := range simSorted(m.ends) {
		s.die(m.ends[id], m.host.down)
	}
	m.ends = nil
	if len(m.held) > 0 {
		s.hit(SimHeldLost)
	}
	// Of what was not committed a part may be on the disk.
	var torn []ssmmp.Event
	for _, h := range m.held[m.durable:] {
		torn = append(torn, h.events...)
	}
	if len(torn) > 0 && !s.sim.Forgets && !m.full {
		torn = torn[:m.host.rand.n(len(torn)+1)]
		if len(torn) > 0 {
			s.hit(SimStoreTorn)
		}
		m.committed(torn)
	}
	m.held = nil
	m.backlog = nil
}

// committed notes events that the store holds from now on.
func (m *simManager) committed(events []ssmmp.Event) {
	m.s.check.committed(events)
	if !m.s.sim.Forgets && len(m.s.sim.Faults) > 0 { // else no other will go on from it
		m.store = append(m.store, events...)
	}
}

func (m *simManager) accept(e *simEnd) {
	m.lastConn++
	e.id = m.lastConn
	m.ends[e.id] = e
}

func (m *simManager) line(e *simEnd, line []byte) {
	msg, err := m.s.decode(line)
	if err != nil {
		return // counted, logged and dropped
	}
	m.step(ssmmp.ManagerInput{Kind: ssmmp.ManagerInputMessage, Conn: e.id, Msg: msg})
}

func (m *simManager) lost(e *simEnd) {
	delete(m.ends, e.id)
	m.step(ssmmp.ManagerInput{Kind: ssmmp.ManagerInputLost, Conn: e.id})
}

// command has the core carry out what an operator asks for. It is given up
// after a while.
func (m *simManager) command(cmd any, patience time.Duration, done func(error)) {
	if m.dead {
		return
	}
	m.lastCall++
	id := m.lastCall
	m.calls[id] = done
	m.step(ssmmp.ManagerInput{Kind: ssmmp.ManagerInputCommand, Call: id, Cmd: cmd})
	life := m.life
	m.s.after(&m.simActor, patience, func() {
		if m.life == life && m.calls[id] != nil {
			m.s.hit(SimCallGivenUp)
			delete(m.calls, id)
			m.step(ssmmp.ManagerInput{Kind: ssmmp.ManagerInputCancel, Call: id})
		}
	})
}

// step has the core take one input. What time brings comes in a step before, so
// that the rest is the input's doing.
func (m *simManager) step(in ssmmp.ManagerInput) {
	in.Now = m.local(m.s.now)
	if at, ok := m.core.NextDeadline(); ok && at <= in.Now && in.Kind != ssmmp.ManagerInputTime {
		m.step1(ssmmp.ManagerInput{Kind: ssmmp.ManagerInputTime, Now: in.Now})
	}
	m.step1(in)
	if at, ok := m.core.NextDeadline(); ok {
		m.s.wakeAt(&m.simActor, at)
	}
}

func (m *simManager) step1(in ssmmp.ManagerInput) {
	s := m.s
	if in.Committed = m.last; m.knows {
		in.StoreErr = ssmmp.ErrStoreFull
	}
	s.check.beforeManager(&in)
	out, events := m.core.Step(in)
	m.took(&in, out, events)
}

// took carries out what the core decided, once that is committed.
func (m *simManager) took(in *ssmmp.ManagerInput, out []ssmmp.ManagerOutput, events []ssmmp.Event) {
	s := m.s
	if s.transcript != nil {
		for _, ev := range events {
			s.logf("Manager: %s", ev)
		}
	}
	for i := range events {
		s.hash = simMix(s.hash, uint64(events[i].Kind)<<48^uint64(events[i].Instance)^uint64(events[i].Session)<<8)
	}
	s.check.managerStep(in, out, events)
	if s.opts.OnEvent != nil {
		for _, ev := range events {
			s.opts.OnEvent(s.now, ev)
		}
	}
	if len(out) == 0 && len(events) == 0 {
		return
	}
	if s.sim.Commit == 0 && len(m.slow) == 0 && len(m.held) == 0 && !m.failing && !m.full {
		m.committed(events)
		m.knowsOf(events)
		for i := range out {
			o := &out[i]
			if o.Kind == ssmmp.ManagerOutputSend {
				if e := m.ends[o.Conn]; e != nil {
					s.check.leaves(simRequestID(o.Msg))
					s.send(e, o.Msg)
				}
				continue
			}
			m.perform(&simHeldOutput{kind: o.Kind, conn: o.Conn, call: o.Call, err: o.Err})
		}
		return
	}
	h := simHeld{events: slices.Clone(events)}
	for _, o := range out {
		ho := simHeldOutput{kind: o.Kind, conn: o.Conn, call: o.Call, err: o.Err}
		if o.Msg != nil {
			var err error
			ho.message = simRequestID(o.Msg)
			if ho.line, err = ssmmp.AppendMessage(nil, o.Msg); err != nil {
				s.fail("every message can be encoded", "Manager sends %s: %v", o.Msg.Type(), err)
			}
		}
		if o.Early { // it depends on no event
			m.perform(&ho)
			continue
		}
		h.out = append(h.out, ho)
	}
	if len(h.events)+len(h.out) > 0 {
		m.held = append(m.held, h)
		m.commit()
	}
}

// knowsOf notes what the Manager knows to be committed.
func (m *simManager) knowsOf(events []ssmmp.Event) {
	if n := len(events); n > 0 {
		m.last = events[n-1].Seq
	}
}

// commit has the store commit all that waits for it, at once.
func (m *simManager) commit() {
	s := m.s
	if m.committing > 0 || len(m.held) == 0 {
		return
	}
	m.committing = len(m.held)
	wait := m.host.rand.between(s.sim.Commit/2, s.sim.Commit)
	for _, f := range m.slow {
		wait += m.host.rand.between(0, f.Amount)
		s.hit(SimStoreSlow)
	}
	life := m.life
	s.after(nil, wait, func() { // the disk does not care who waits for it
		if m.dead || m.life != life {
			return
		}
		if m.failing {
			// Nobody knows what is on the disk: this process acknowledges
			// nothing any more.
			s.hit(SimStoreFails)
			m.crash()
			s.after(nil, time.Second, m.start)
			return
		}
		done := m.held[:m.committing]
		if m.full && slices.ContainsFunc(done, func(h simHeld) bool { return len(h.events) > 0 }) {
			s.hit(SimStoreFull)
			s.after(&m.simActor, 200*time.Millisecond, func() {
				m.knows, m.committing = true, 0
				m.commit()
			})
			return
		}
		for i := range done {
			m.committed(done[i].events)
		}
		m.durable = m.committing
		s.after(&m.simActor, 0, func() {
			if m.life != life {
				return
			}
			done := m.held[:m.committing]
			m.held, m.committing, m.durable = m.held[m.committing:], 0, 0
			for i := range done {
				if len(done[i].events) > 0 {
					m.knows = false
				}
				m.knowsOf(done[i].events)
				for k := range done[i].out {
					m.perform(&done[i].out[k])
				}
			}
			if len(m.held) == 0 {
				m.held = nil
			}
			m.commit()
		})
	})
}

func (m *simManager) perform(o *simHeldOutput) {
	switch o.kind {
	case ssmmp.ManagerOutputSend:
		if e := m.ends[o.conn]; e != nil {
			m.s.check.leaves(o.message)
			m.s.sendLine(e, o.line)
		}
	case ssmmp.ManagerOutputClose:
		if e := m.ends[o.conn]; e != nil {
			m.s.abort(e)
		}
	case ssmmp.ManagerOutputReply:
		if done := m.calls[o.call]; done != nil {
			delete(m.calls, o.call)
			done(o.err)
		}
	}
}

// simRequestID is the message id of a request, 0 for other messages.
func simRequestID(m ssmmp.Message) int64 {
	if want, _ := simWants(m); want != 0 {
		return m.Head().MessageID
	}
	return 0
}
