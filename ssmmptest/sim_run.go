package ssmmptest

import (
	"fmt"
	"io"
	"net/netip"
	"runtime/debug"
	"slices"
	"strconv"
	"time"

	"github.com/ssmmp/ssmmp"
)

const (
	// simBusy is how many things may happen at one moment.
	simBusy = 1 << 20
	// simCheckShare is how many events there are between two comparisons of
	// the whole state for each part of a large mesh.
	simCheckShare = 16
)

// A simRun is a Simulation that is being played.
type simRun struct {
	sim  *Simulation
	opts *SimulationOptions

	now    time.Duration
	heap   simHeap
	seq    uint64
	events int
	busy   int // things that happened at this moment
	hash   uint64

	nextCheck int // event after which everything is compared

	hosts   []*simHost // the Manager's first
	nodes   []*simNode
	manager *simManager
	cuts    []*simCut
	stalled []*simPipe       // in which a partition holds lines
	stuck   []*simSessionEnd // whose end a partition holds
	active  []*simFaultRun

	deployed []string // graphs that the operator wants to run
	rand     simRand  // of the operator and of faults
	check    simCheck
	counts   [simFaultKinds]int
	failure  *SimulationFailure

	starts, running, sessions, dials, failed int
	dialTimeout                              time.Duration

	transcript io.Writer
	logLine    []byte
	in         simLineReader
	dec        *ssmmp.Decoder
	gateways   map[[2]string]bool
	services   []string                     // of all graphs
	loads      map[string][]*SimulationLoad // by the service of a gateway
}

// A simLineReader gives a decoder one line at a time.
type simLineReader struct{ line []byte }

func (r *simLineReader) Read(b []byte) (int, error) {
	n := copy(b, r.line)
	r.line = r.line[n:]
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

// Run plays the simulation. The error is that of Validate; what goes wrong in
// the mesh is the result's Failure.
func (s Simulation) Run(opts SimulationOptions) (*SimulationResult, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	r := newSimRun(&s, &opts)
	r.playSafely()
	res := &SimulationResult{Seed: s.Seed, Events: r.events, Virtual: r.now, Hash: r.hash, Faults: r.counts,
		SimulationSample: r.sample(), Failure: r.failure}
	return res, nil
}

func newSimRun(sim *Simulation, opts *SimulationOptions) *simRun {
	s := &simRun{sim: sim, opts: opts, transcript: opts.Transcript, rand: newSimRand(sim.Seed, 1), gateways: map[[2]string]bool{}, loads: map[string][]*SimulationLoad{}}
	if opts.Check == 0 {
		opts.Check = 256
	}
	s.nextCheck = opts.Check
	if opts.SampleEvery <= 0 {
		opts.SampleEvery = time.Second
	}
	c := &sim.Config
	if c.FirstPlugPort == 0 {
		c.FirstPlugPort = 32768
	}
	if c.LastPlugPort == 0 {
		c.LastPlugPort = max(50000, c.FirstPlugPort)
	}
	if s.dialTimeout = c.DialTimeout; s.dialTimeout == 0 {
		s.dialTimeout = 45 * time.Second
	}
	s.dec = ssmmp.NewDecoder(&s.in)
	named := map[string]bool{}
	for _, g := range sim.Graphs {
		for _, name := range g.Gateways() {
			v, _ := g.Vertex(name)
			s.gateways[[2]string{g.Name, v.Service}] = true
		}
		for _, sv := range g.Services {
			if !named[sv.Name] {
				named[sv.Name] = true
				s.services = append(s.services, sv.Name)
			}
		}
	}
	for k := range sim.Load {
		l := &sim.Load[k]
		for service := range named {
			if s.gateway(l.Graph, service) {
				s.loads[service] = append(s.loads[service], l)
			}
		}
	}
	s.check.init(s)
	host := &simHost{name: "manager", addr: netip.AddrFrom4([4]byte{10, 0, 0, 0}), rand: newSimRand(sim.Seed, 2)}
	s.hosts = append(s.hosts, host)
	s.manager = newSimManager(s, host)
	for i := range sim.Nodes {
		host := &simHost{index: i + 1, name: "n" + strconv.Itoa(i), addr: simAddr(i), rand: newSimRand(sim.Seed, uint64(i)+3)}
		s.hosts = append(s.hosts, host)
		s.nodes = append(s.nodes, newSimNode(s, i, host))
	}
	return s
}

func (s *simRun) hostOf(a netip.Addr) *simHost {
	if !a.Is4() {
		return nil
	}
	b := a.As4()
	n := int(b[1])<<16 | int(b[2])<<8 | int(b[3])
	if n < 1 || n >= len(s.hosts) {
		return nil
	}
	return s.hosts[n]
}

func (s *simRun) gateway(graph, service string) bool { return s.gateways[[2]string{graph, service}] }

// repository is what a node can execute.
func (s *simRun) repository(n *simNode) []ssmmp.RepositoryEntry {
	names := s.sim.Nodes[n.index].Services
	if len(names) == 0 {
		names = s.services
	}
	var entries []ssmmp.RepositoryEntry
	for i, name := range names {
		if n.fewer && i == 0 && len(names) > 1 {
			continue
		}
		entries = append(entries, ssmmp.RepositoryEntry{Service: name, Launcher: simLauncher{}})
	}
	return entries
}

func (s *simRun) push(ev simEvent) {
	s.seq++
	ev.seq = s.seq
	if ev.who != nil {
		ev.life = ev.who.life
	}
	s.heap.push(ev)
}

// after has f happen to an actor; to the world if who is nil.
func (s *simRun) after(who *simActor, d time.Duration, f func()) {
	s.push(simEvent{at: s.now + max(d, 0), who: who, f: f})
}

// wakeAt has an actor woken when its clock shows at.
func (s *simRun) wakeAt(a *simActor, at time.Duration) {
	when := a.until(s.now, at)
	if a.wakeAt > s.now && a.wakeAt <= when {
		return
	}
	a.wakeAt = max(when, s.now+1)
	s.push(simEvent{at: a.wakeAt, who: a})
}

// run lets happen what is due until a time, and reports whether all is well.
func (s *simRun) run(until time.Duration) bool {
	for s.failure == nil && len(s.heap) > 0 && s.heap[0].at <= until {
		ev := s.heap.pop()
		if s.busy++; ev.at > s.now {
			s.busy = 0
		} else if s.busy > simBusy {
			s.fail("time goes on", "%d things happen at once", s.busy)
			break
		}
		s.now = ev.at
		if ev.in != nil {
			from := ev.in.to.peer().who.host
			if s.blocked(from, ev.who.host) {
				s.stall(ev.in)
				continue
			}
		}
		if a := ev.who; a != nil {
			if a.dead || a.life != ev.life {
				continue
			}
			if a.frozen {
				a.backlog = append(a.backlog, ev)
				continue
			}
		}
		s.events++
		s.hash = simMix(s.hash, uint64(ev.at))
		switch {
		case ev.in != nil:
			s.arrive(ev.in)
		case ev.f != nil:
			ev.f()
		case ev.who.wakeAt == ev.at:
			ev.who.wakeAt = 0
			ev.who.wake()
		}
		if s.events >= s.nextCheck {
			s.check.silence()
			s.check.absent()
			s.check.unready()
			s.check.all()
			// It costs as much as the mesh is large: its share of an event's cost
			// stays the same.
			s.nextCheck = s.events + max(s.opts.Check, simCheckShare*(len(s.nodes)+s.running+s.sessions))
		}
	}
	if s.failure == nil {
		s.now = max(s.now, until)
	}
	return s.failure == nil
}

// freeze stops a process, as SIGSTOP does; thaw lets it go on.
func (s *simRun) freeze(a *simActor) {
	if !a.dead && !a.frozen {
		a.frozen = true
		s.logf("%s is stopped", a.name)
	}
}

func (s *simRun) thaw(a *simActor) {
	if !a.frozen {
		return
	}
	a.frozen = false
	s.logf("%s goes on", a.name)
	for _, ev := range a.backlog {
		if ev.f == nil && ev.in == nil {
			a.wakeAt = s.now
		}
		ev.at = s.now
		s.push(ev)
	}
	a.backlog = nil
}

func (s *simRun) decode(line []byte) (ssmmp.Message, error) {
	s.in.line = line
	return s.dec.Decode()
}

// hit counts that a fault of a kind happened.
func (s *simRun) hit(k SimulationFaultKind) { s.counts[k]++ }

func (s *simRun) logf(format string, args ...any) {
	if s.transcript == nil {
		return
	}
	s.logLine = fmt.Appendf(s.logLine[:0], "%12.6f ", s.now.Seconds())
	s.logLine = append(fmt.Appendf(s.logLine, format, args...), '\n')
	s.transcript.Write(s.logLine)
}

// fail says that an invariant is broken: the run ends.
func (s *simRun) fail(invariant, format string, args ...any) {
	if s.failure != nil {
		return
	}
	s.failure = &SimulationFailure{Invariant: invariant, Detail: fmt.Sprintf(format, args...), At: s.now, Event: s.events}
	s.logf("BROKEN: %s: %s", invariant, s.failure.Detail)
}

func (s *simRun) sample() SimulationSample {
	up := 0
	for _, n := range s.nodes {
		if n.manager != nil {
			up++
		}
	}
	return SimulationSample{At: s.now, Agents: up, Instances: s.running, Sessions: s.sessions, Starts: s.starts, Dials: s.dials, Failed: s.failed}
}

// playSafely makes a panic of a core a failure.
func (s *simRun) playSafely() {
	defer func() {
		if v := recover(); v != nil {
			s.fail("nothing panics", "%v\n%s", v, debug.Stack())
		}
	}()
	s.play()
}

// play runs the two phases.
func (s *simRun) play() {
	for _, g := range s.sim.Graphs {
		s.deployed = append(s.deployed, g.Name)
	}
	s.manager.start()
	for _, n := range s.nodes {
		s.after(nil, n.host.rand.between(0, 100*time.Millisecond), n.start)
	}
	for i := range s.sim.Faults {
		f := &simFaultRun{SimulationFault: s.sim.Faults[i], rand: newSimRand(s.sim.Seed, 1<<32+uint64(i))}
		if f.percent = f.Percent; f.percent == 0 {
			f.percent = 100
		}
		f.stopAt = min(f.At+f.For, s.sim.For)
		s.after(nil, f.At, func() { s.startFault(f) })
	}
	for i := range s.sim.Work {
		w := &s.sim.Work[i]
		s.after(nil, w.At, func() { s.work(w) })
	}
	if s.opts.OnSample != nil {
		s.sampling()
	}
	if !s.run(s.sim.For) || s.sim.Quiet {
		s.finish()
		return
	}

	// The liveness phase: faults are mended, and all has to come right.
	s.logf("faults end")
	for len(s.active) > 0 {
		s.stopFault(s.active[0])
	}
	s.after(nil, time.Millisecond, s.manager.start)
	for _, n := range s.nodes {
		n.away = false
		s.after(nil, time.Millisecond, n.start)
	}
	s.run(s.now + 2*time.Second)
	if s.settle("settles") && s.probe() && s.settle("settles after dials") {
		s.retire()
	}
	s.finish()
}

func (s *simRun) finish() {
	if s.failure == nil {
		s.check.all()
	}
	if s.manager.core != nil {
		s.hash = simMixBytes(s.hash, fmt.Appendf(nil, "%+v", s.manager.core.Snapshot()))
	}
	for _, c := range s.counts {
		s.hash = simMix(s.hash, uint64(c))
	}
}

// patience is how long the mesh may take to come right.
func (s *simRun) patience() time.Duration {
	c := s.manager.cfg
	return c.LostAfter + c.IdleAfter/4 + c.AckTimeout + 2*c.StartTimeout + 6*(c.DrainTimeout+c.RequestTimeout) +
		time.Duration(c.HealthMisses+3)*c.HealthPeriod + 3*time.Minute
}

// settle waits until everything has come right.
func (s *simRun) settle(what string) bool {
	deadline := s.now + s.patience()
	for {
		wrong := s.check.unsettled()
		if wrong == "" {
			s.logf("the mesh %s", what)
			return s.failure == nil
		}
		if s.now >= deadline {
			s.fail("once faults stop the mesh "+what, "%s", wrong)
			return false
		}
		if !s.run(s.now + s.rand.between(time.Second, 9*time.Second)) {
			return false
		}
	}
}

// probe has each API Gateway dial each of its plugs: that must work now.
func (s *simRun) probe() bool {
	deadline := s.now + s.patience()
	for _, g := range s.sim.Graphs {
		for _, p := range s.gatewaysOf(g) {
			for _, t := range p.launch.Plugs {
				if !s.check.reachable(g, p, t.Plug) {
					continue
				}
				for {
					if !p.running || p.draining {
						break // it was replaced meanwhile
					}
					if ok, done := s.tryDial(p, t.Plug); !done {
						return false
					} else if ok {
						break
					}
					if s.now > deadline {
						s.fail("once faults stop a dial succeeds", "%s over %s", p.name, t.Plug)
						return false
					}
					if !s.run(s.now + s.rand.between(time.Second, 9*time.Second)) {
						return false
					}
				}
			}
		}
	}
	return true
}

func (s *simRun) gatewaysOf(g *ssmmp.Graph) []*simProc {
	var procs []*simProc
	for _, n := range s.nodes {
		for _, p := range n.procs {
			if p.joined && p.running && !p.frozen && s.gateway(g.Name, p.launch.Service) {
				procs = append(procs, p)
			}
		}
	}
	return procs
}

// tryDial reports whether a dial succeeded, and whether all is well otherwise.
func (s *simRun) tryDial(p *simProc, plug string) (ok, well bool) {
	failed, dials := s.failed, s.dials
	p.dial(plug, 50*time.Millisecond, false)
	if s.dials == dials {
		return false, true
	}
	d := p.dials[p.lastCall]
	for d != nil && !d.done {
		if !s.run(s.now + 200*time.Millisecond) {
			return false, false
		}
		if p.finished {
			return false, true
		}
	}
	return s.failed == failed, true
}

// retire undeploys everything: nothing may be left.
func (s *simRun) retire() {
	waiting := 0
	s.deployed = nil
	for _, g := range s.sim.Graphs {
		waiting++
		s.manager.command(ssmmp.UndeployCommand{Graph: g.Name}, time.Hour, func(err error) {
			waiting--
			if err != nil {
				s.fail("undeploying ends well", "%v", err)
			}
		})
	}
	deadline := s.now + s.patience()
	for s.failure == nil {
		left := s.check.unsettled()
		if left == "" && waiting > 0 {
			left = "the command was not answered"
		}
		for _, n := range s.nodes {
			if len(n.procs) > 0 && left == "" {
				left = n.procs[0].name + " runs"
			}
		}
		if left == "" {
			s.logf("nothing is left")
			return
		}
		if s.now >= deadline {
			s.fail("undeploying leaves nothing", "%s", left)
			return
		}
		s.run(s.now + s.rand.between(time.Second, 9*time.Second))
	}
}

func (s *simRun) sampling() {
	s.opts.OnSample(s.sample())
	if s.now < s.sim.For {
		s.after(nil, s.opts.SampleEvery, s.sampling)
	}
}

// deploy has the operator deploy a graph, as often as it takes.
func (s *simRun) deploy(graph string) {
	s.manager.command(ssmmp.DeployCommand{Graph: graph}, time.Hour, func(err error) {
		if err != nil && slices.Contains(s.deployed, graph) {
			s.after(&s.manager.simActor, time.Second, func() {
				if slices.Contains(s.deployed, graph) {
					s.deploy(graph)
				}
			})
		}
	})
}

// work does one thing of the workload.
func (s *simRun) work(w *SimulationWork) {
	pick := func(n int) int { return int(w.Pick) % n }
	m := s.manager
	switch w.Kind {
	case SimDial, SimChain:
		var who []*simProc
		for _, n := range s.nodes {
			for _, p := range n.procs {
				if p.running && p.joined && !p.draining && !p.frozen && len(p.launch.Plugs) > 0 {
					who = append(who, p)
				}
			}
		}
		if len(who) == 0 {
			return
		}
		p := who[pick(len(who))]
		p.dial(p.launch.Plugs[int(w.Pick>>8)%len(p.launch.Plugs)].Plug, w.Hold, w.Kind == SimChain)
	case SimCloseSession:
		if m.dead || m.frozen {
			return
		}
		if all := m.core.Snapshot().Sessions; len(all) > 0 {
			s.hit(SimClosesSession)
			m.command(ssmmp.CloseSessionCommand{Session: all[pick(len(all))].ID}, w.Hold+time.Millisecond, func(error) {})
		}
	case SimShutdown, SimHardShutdown:
		if m.dead || m.frozen {
			return
		}
		if all := m.core.Snapshot().Instances; len(all) > 0 {
			hard := w.Kind == SimHardShutdown
			if hard {
				s.hit(SimKills)
			} else {
				s.hit(SimShutsDown)
			}
			m.command(ssmmp.ShutdownCommand{Instance: all[pick(len(all))].ID, Hard: hard}, w.Hold+time.Millisecond, func(error) {})
		}
	case SimRedeploy:
		if m.dead || m.frozen || len(s.deployed) == 0 {
			return
		}
		graph := s.deployed[pick(len(s.deployed))]
		s.hit(SimRedeploys)
		m.command(ssmmp.UndeployCommand{Graph: graph}, time.Hour, func(error) {})
		s.after(&m.simActor, w.Hold, func() {
			if slices.Contains(s.deployed, graph) {
				s.deploy(graph)
			}
		})
	}
}
