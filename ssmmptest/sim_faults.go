package ssmmptest

import (
	"fmt"
	"slices"
	"time"

	"github.com/ssmmp/ssmmp"
)

// The faults of the simulator, and how each is brought about.

// A SimulationFault is something that goes wrong for a while.
type SimulationFault struct {
	At      time.Duration
	For     time.Duration `json:",omitempty"` // until the end of the safety phase at the most
	Kind    SimulationFaultKind
	Nodes   []int         `json:",omitempty"` // where; not for the Manager's
	Service string        `json:",omitempty"` // of which processes; of all if empty
	Amount  time.Duration `json:",omitempty"` // of what is late, slow or jumps
	Percent int           `json:",omitempty"` // of the processes or messages; 100 if zero
}

// A SimulationFaultKind is a kind of fault. Its text form is a short name.
type SimulationFaultKind uint8

// The kinds of fault that a Simulation can inject, and those that come of them.
const (
	_ SimulationFaultKind = iota
	// The network.
	SimResetManagerLink
	SimHalfOpenManagerLink
	SimResetInstanceLink
	SimResetSessions
	SimPartition
	SimPartitionToManager
	SimPartitionFromManager
	SimPartitionNodes
	SimPartitionNodesOneWay
	SimManagerCutOff
	SimManagerRefuses
	SimSlowLink
	SimTwiceToManager
	SimTwiceToInstances
	SimGarbageToManager
	SimGarbageToAgent
	SimReportsLost
	// Processes.
	SimSlowStart
	SimLaunchFails
	SimExitsAtOnce
	SimDiesBeforeHello
	SimCrashes
	SimCrashLoop
	SimPanics
	SimHangs
	SimHangsForever
	SimNeverConnects
	SimNeverReady
	SimListensLate
	SimPortSquatted
	SimPortsTaken
	SimRefusesDials
	SimLeavesChildren
	SimOverloaded
	SimUnwell
	SimIgnoresDrain
	SimDrainsSlowly
	SimEndsByItself
	SimOnlyAnnounces
	SimDiesSlowly
	SimKillFails
	SimReconnects
	SimClosesSlowly
	SimIgnoresEOF
	SimGivesUp
	SimRepeatsRequests
	SimAsksInVain
	SimShowsSecret
	// Nodes.
	SimNodeCrash
	SimAgentCrash
	SimPowerFailure
	SimAgentStops
	SimAgentFrozen
	SimNodeAway
	SimServiceRemoved
	// The Manager and its store.
	SimManagerCrash
	SimManagerFrozen
	SimStoreSlow
	SimStoreFails
	SimStoreFull
	// Clocks.
	SimManagerClockJumps
	SimAgentClockJumps
	// Peers that break the rules.
	SimOldManager
	SimFalseAgent
	SimFalseInstance
	SimOffGraph
	SimForeignReports
	SimUnaskedResponses
	SimWrongResponses
	// What comes of other faults, and what the operator does meanwhile.
	SimHalfOpen
	SimKeepAlive
	SimLinesLost
	SimManagerDialBlocked
	SimSessionDialBlocked
	SimSuperseded
	SimReattached
	SimHeldLost
	SimStoreTorn
	SimReplayed
	SimCallGivenUp
	SimClosesSession
	SimShutsDown
	SimKills
	SimRedeploys

	simFaultKinds
)

// A simFaultEntry says what a kind of fault is. Those without start come of
// others. start is called when one begins and stop, if there is one, when it
// ends; habit changes how the processes behave that begin meanwhile.
type simFaultEntry struct {
	name, what string
	start      func(s *simRun, f *simFaultRun)
	stop       func(s *simRun, f *simFaultRun)
	habit      func(p *simProc, h *simHabits, f *simFaultRun)
}

// A simFaultRun is a fault that happens.
type simFaultRun struct {
	SimulationFault
	rand    simRand
	percent int
	stopAt  time.Duration
	cut     *simCut
	conn    simConnKind // of the noise
	garbage bool
	ended   bool
	ports   uint64 // says which are taken
}

func (s *simRun) startFault(f *simFaultRun) {
	if s.now >= s.sim.For {
		return
	}
	s.logf("fault: %s %v for %v", f.Kind, f.Nodes, f.For)
	s.active = append(s.active, f)
	simFaultTable[f.Kind].start(s, f)
	s.after(nil, f.stopAt-s.now, func() { s.stopFault(f) })
}

func (s *simRun) stopFault(f *simFaultRun) {
	if f.ended {
		return
	}
	f.ended = true
	s.active = slices.DeleteFunc(s.active, func(g *simFaultRun) bool { return g == f })
	if stop := simFaultTable[f.Kind].stop; stop != nil {
		s.logf("fault ends: %s %v", f.Kind, f.Nodes)
		stop(s, f)
	}
}

// simEachNode calls do with each node of a fault.
func simEachNode(do func(s *simRun, n *simNode, f *simFaultRun)) func(*simRun, *simFaultRun) {
	return func(s *simRun, f *simFaultRun) {
		for _, i := range f.Nodes {
			do(s, s.nodes[i], f)
		}
	}
}

// simBegin puts a fault into a list of each of its nodes; simEnds takes it out.
func simBegin(list func(n *simNode) *[]*simFaultRun) func(*simRun, *simFaultRun) {
	return simEachNode(func(_ *simRun, n *simNode, f *simFaultRun) { l := list(n); *l = append(*l, f) })
}

func simEnds(list func(n *simNode) *[]*simFaultRun) func(*simRun, *simFaultRun) {
	return simEachNode(func(_ *simRun, n *simNode, f *simFaultRun) {
		l := list(n)
		*l = slices.DeleteFunc(*l, func(g *simFaultRun) bool { return g == f })
	})
}

func simLinks(n *simNode) *[]*simFaultRun     { return &n.host.slow }
func simNoises(n *simNode) *[]*simFaultRun    { return &n.host.noisy }
func simProcesses(n *simNode) *[]*simFaultRun { return &n.faults }
func simDials(n *simNode) *[]*simFaultRun     { return &n.misled }
func simUnheard(n *simNode) *[]*simFaultRun   { return &n.unheard }
func simSquats(n *simNode) *[]*simFaultRun    { return &n.squat }

// simHabit is a fault of the processes that start at its nodes.
func simHabit(name, what string, h func(p *simProc, h *simHabits, f *simFaultRun)) simFaultEntry {
	return simFaultEntry{name: name, what: what, start: simBegin(simProcesses), stop: simEnds(simProcesses), habit: h}
}

// simCutOff is a partition. Which hosts send to whom in vain is said by in, for those
// of the fault, and out.
func simCutOff(name, what string, make func(in, out, manager []bool) (from, to []bool)) simFaultEntry {
	return simFaultEntry{name: name, what: what,
		start: func(s *simRun, f *simFaultRun) {
			in, out, manager := simBools(s), simBools(s), simBools(s)
			manager[0] = true
			for i := range out {
				out[i] = true
			}
			for _, n := range f.Nodes {
				in[n+1], out[n+1] = true, false
			}
			f.cut = &simCut{kind: f.Kind}
			f.cut.from, f.cut.to = make(in, out, manager)
			s.cuts = append(s.cuts, f.cut)
		},
		stop: func(s *simRun, f *simFaultRun) {
			s.cuts = slices.DeleteFunc(s.cuts, func(c *simCut) bool { return c == f.cut })
			s.unstall()
			s.unstick()
		}}
}

func simBools(s *simRun) []bool { return make([]bool, len(s.hosts)) }

// simNoise is a fault of the lines that are sent from its nodes, or to them by
// instances there.
func simNoise(name, what string, conn simConnKind, garbage bool) simFaultEntry {
	add := simBegin(simNoises)
	return simFaultEntry{name: name, what: what, stop: simEnds(simNoises), start: func(s *simRun, f *simFaultRun) {
		f.conn, f.garbage = conn, garbage
		if f.Percent == 0 {
			f.percent = 20
		}
		add(s, f)
	}}
}

// simFaultTable says of each kind what it is. Starting a fault leads to code that
// looks here: so it is filled in when the program begins.
var simFaultTable [simFaultKinds]simFaultEntry

func init() { simFaultTable = simAllFaults() }

func simAllFaults() [simFaultKinds]simFaultEntry {
	return [simFaultKinds]simFaultEntry{
		SimResetManagerLink: {name: "reset-manager-link", what: "the connection of an agent to the Manager breaks", start: simEachNode(func(s *simRun, n *simNode, f *simFaultRun) {
			if n.manager != nil && !n.dead {
				s.hit(f.Kind)
				s.reset(n.manager.conn)
			}
		})},
		SimHalfOpenManagerLink: {name: "half-open-manager-link", what: "an agent finds its connection to the Manager dead, and the Manager does not", start: simEachNode(func(s *simRun, n *simNode, f *simFaultRun) {
			if e := n.manager; e != nil && !n.dead && !e.closing {
				s.hit(f.Kind)
				e.closing = true
				s.after(e.who, 0, func() { s.lose(e) })
			}
		})},
		SimResetInstanceLink: {name: "reset-instance-link", what: "the connections of a node's instances to their agent break", start: simEachNode(func(s *simRun, n *simNode, f *simFaultRun) {
			for _, p := range n.procs {
				if p.agent != nil && f.rand.n(100) < f.percent {
					s.hit(f.Kind)
					s.reset(p.agent.conn)
				}
			}
		})},
		SimResetSessions: {name: "reset-sessions", what: "the sessions of a node break", start: simEachNode(func(s *simRun, n *simNode, f *simFaultRun) {
			for _, p := range n.procs {
				for _, e := range p.sessions {
					if f.rand.n(100) < f.percent {
						s.hit(f.Kind)
						e.session.reset()
					}
				}
			}
		})},
		SimPartition: simCutApart("partition", "some nodes are cut off from all else"),
		SimPartitionToManager: simCutOff("partition-to-manager", "what some agents send to the Manager does not arrive",
			func(in, out, manager []bool) ([]bool, []bool) { return in, manager }),
		SimPartitionFromManager: simCutOff("partition-from-manager", "what the Manager sends to some agents does not arrive",
			func(in, out, manager []bool) ([]bool, []bool) { return manager, in }),
		SimPartitionNodes: simCutApart("partition-nodes", "some nodes are cut off from the others, and not from the Manager"),
		SimPartitionNodesOneWay: simCutOff("partition-nodes-one-way", "what some nodes send to others does not arrive",
			func(in, out, manager []bool) ([]bool, []bool) { out[0] = false; return in, out }),
		SimManagerCutOff: simCutApart("manager-cut-off", "the Manager is cut off from all nodes"),
		SimManagerRefuses: {name: "manager-refuses", what: "the Manager's port refuses connections",
			start: func(s *simRun, f *simFaultRun) { s.manager.refuses = true },
			stop:  func(s *simRun, f *simFaultRun) { s.manager.refuses = false }},
		SimSlowLink:         {name: "slow-link", what: "lines are late, and those of different connections change order", start: simBegin(simLinks), stop: simEnds(simLinks)},
		SimTwiceToManager:   simNoise("twice-manager-link", "an agent's lines to the Manager arrive twice", simToManager, false),
		SimTwiceToInstances: simNoise("twice-instance-link", "lines between agent and instances arrive twice", simToAgent, false),
		SimGarbageToManager: simNoise("garbage-manager-link", "lines that are no messages reach the Manager", simToManager, true),
		SimGarbageToAgent:   simNoise("garbage-instance-link", "lines that are no messages reach agent and instances", simToAgent, true),
		SimReportsLost:      {name: "reports-lost", what: "an agent's reports that sessions ended reach nobody, on a connection that stands", start: simBegin(simUnheard), stop: simEnds(simUnheard)},

		SimSlowStart: simHabit("slow-start", "a process takes long until it runs", func(p *simProc, h *simHabits, f *simFaultRun) {
			h.launch += f.rand.between(0, f.Amount)
		}),
		SimLaunchFails: simHabit("launch-fails", "a process cannot be started", func(p *simProc, h *simHabits, f *simFaultRun) { h.fails = true }),
		SimExitsAtOnce: simHabit("exits-at-once", "a process exits as soon as it runs", func(p *simProc, h *simHabits, f *simFaultRun) { h.dies = 1 }),
		SimDiesBeforeHello: simHabit("dies-before-hello", "a process dies before its agent hears of it", func(p *simProc, h *simHabits, f *simFaultRun) {
			h.dies = max(1, h.hello/2)
		}),
		SimCrashes: simHabit("crashes", "a process dies some time after it was ready", func(p *simProc, h *simHabits, f *simFaultRun) {
			h.dies = h.hello + f.rand.between(time.Second, f.Amount+2*time.Second)
		}),
		SimCrashLoop: simHabit("crash-loop", "a service's processes die young, one after the other", func(p *simProc, h *simHabits, f *simFaultRun) {
			h.dies = max(h.hello, 0) + f.rand.between(time.Millisecond, 3*time.Second)
		}),
		SimPanics: simHabit("panics", "a process panics", func(p *simProc, h *simHabits, f *simFaultRun) {
			h.dies, h.panics = max(h.hello, 0)+f.rand.between(0, 30*time.Second)+1, true
		}),
		SimHangs: simHabit("hangs", "a process is stopped for a while", func(p *simProc, h *simHabits, f *simFaultRun) {
			h.hangs, h.hangsFor = f.rand.between(1, 20*time.Second), f.rand.between(time.Second, f.Amount+2*time.Second)
		}),
		SimHangsForever: simHabit("hangs-forever", "a process is stopped for ever", func(p *simProc, h *simHabits, f *simFaultRun) {
			h.hangs = f.rand.between(1, 20*time.Second)
		}),
		SimNeverConnects: simHabit("never-connects", "a process listens and never speaks to its agent", func(p *simProc, h *simHabits, f *simFaultRun) { h.hello = -1 }),
		SimNeverReady:    simHabit("never-ready", "a process neither listens nor speaks", func(p *simProc, h *simHabits, f *simFaultRun) { h.hello, h.listen = -1, -1 }),
		SimListensLate: simHabit("listens-late", "a process is ready long before it listens", func(p *simProc, h *simHabits, f *simFaultRun) {
			h.listen += f.rand.between(500*time.Millisecond, f.Amount+time.Second)
		}),
		SimPortSquatted: {name: "port-squatted", what: "another program holds the port of a socket when its process wants it", start: simBegin(simSquats), stop: simEnds(simSquats)},
		SimPortsTaken: {name: "ports-taken", what: "another program holds some ports of a node, also those that come next", stop: simEnds(simSquats), start: func(s *simRun, f *simFaultRun) {
			f.ports = f.rand.next()
			simBegin(simSquats)(s, f)
		}},
		SimRefusesDials: simHabit("refuses-dials", "a process does not listen for a while", func(p *simProc, h *simHabits, f *simFaultRun) {
			h.refuses, h.refusesFor = h.listen+f.rand.between(time.Second, 10*time.Second), f.rand.between(time.Second, f.Amount+2*time.Second)
		}),
		SimLeavesChildren: simHabit("leaves-children", "a process exits and its children live on", func(p *simProc, h *simHabits, f *simFaultRun) {
			h.children, h.dies = true, max(h.hello, 0)+f.rand.between(time.Second, 20*time.Second)
		}),
		SimOverloaded:   simHabit("overloaded", "a process says that it is overloaded", func(p *simProc, h *simHabits, f *simFaultRun) { h.health = ssmmp.StatusOverloaded }),
		SimUnwell:       simHabit("unwell", "a process says that it is not well", func(p *simProc, h *simHabits, f *simFaultRun) { h.health = ssmmp.StatusFailed }),
		SimIgnoresDrain: simHabit("ignores-drain", "a process ignores the request to exit", func(p *simProc, h *simHabits, f *simFaultRun) { h.ignoresDrain = true }),
		SimDrainsSlowly: simHabit("drains-slowly", "a process takes long to finish its work", func(p *simProc, h *simHabits, f *simFaultRun) {
			h.drain = f.rand.between(0, 2*f.Amount)
		}),
		SimEndsByItself: simHabit("ends-by-itself", "a process ends by its business logic", func(p *simProc, h *simHabits, f *simFaultRun) {
			h.ends = max(h.hello, 0) + f.rand.between(time.Second, f.Amount+5*time.Second)
		}),
		SimOnlyAnnounces: simHabit("only-announces", "a process says that it ends, and does not", func(p *simProc, h *simHabits, f *simFaultRun) {
			h.ends, h.endsFor = max(h.hello, 0)+f.rand.between(time.Second, f.Amount+5*time.Second), -1
		}),
		SimDiesSlowly: simHabit("dies-slowly", "a killed process takes long to be gone", func(p *simProc, h *simHabits, f *simFaultRun) {
			h.killTime = f.rand.between(0, f.Amount)
		}),
		SimKillFails: simHabit("kill-fails", "a process survives being killed, at first", func(p *simProc, h *simHabits, f *simFaultRun) { h.killsFail = 1 + f.rand.n(4) }),
		SimReconnects: simHabit("reconnects", "a process loses its agent, and finds it again", func(p *simProc, h *simHabits, f *simFaultRun) {
			h.reconnects = max(h.hello, 0) + f.rand.between(time.Millisecond, 20*time.Second)
		}),
		SimClosesSlowly: simHabit("closes-slowly", "a process takes long to close a session that the Manager wants closed", func(p *simProc, h *simHabits, f *simFaultRun) {
			h.closing = f.rand.between(time.Millisecond, 4*time.Second)
		}),
		SimIgnoresEOF: simHabit("ignores-eof", "a process does not notice that the far end closed a session", func(p *simProc, h *simHabits, f *simFaultRun) { h.ignoresEOF = true }),
		SimGivesUp:    {name: "gives-up", what: "who dials does not wait for the answer", start: simBegin(simProcesses), stop: simEnds(simProcesses)},

		SimRepeatsRequests: simHabit("repeats-requests", "a process asks for a session again, some time after it did", func(p *simProc, h *simHabits, f *simFaultRun) {
			h.repeats = f.rand.between(time.Millisecond, f.Amount)
		}),
		SimAsksInVain: {name: "asks-in-vain", what: "a process asks for a session, and does nothing with the answer", start: simEachNode((*simRun).askInVain)},
		SimShowsSecret: simHabit("shows-secret", "a process says its secret in all of its messages", func(p *simProc, h *simHabits, f *simFaultRun) {
			h.showsSecret = true
		}),

		SimNodeCrash: {name: "node-crash", what: "an agent dies, and with it what it executed",
			start: simEachNode(func(s *simRun, n *simNode, f *simFaultRun) {
				if !n.dead {
					s.hit(f.Kind)
					n.crash()
				}
			}), stop: simRestart},
		SimAgentCrash: {name: "agent-crash", what: "an agent dies, and what it executed runs on",
			start: simEachNode(func(s *simRun, n *simNode, f *simFaultRun) {
				if !n.dead && n.kept != nil {
					s.hit(f.Kind)
					n.leave()
				}
			}), stop: simRestart},
		SimPowerFailure: {name: "power-failure", what: "a node is off without a word",
			start: simEachNode(func(s *simRun, n *simNode, f *simFaultRun) {
				if !n.dead {
					s.hit(f.Kind)
					n.host.down = true
					n.crash()
				}
			}), stop: simRestart},
		SimAgentStops: {name: "agent-stops", what: "an agent is told to stop, and shuts its instances down",
			start: simEachNode(func(s *simRun, n *simNode, f *simFaultRun) {
				if !n.dead {
					s.hit(f.Kind)
					n.stopping = true
					s.after(&n.simActor, 0, func() { n.step(ssmmp.AgentInput{Kind: ssmmp.AgentInputStop}) })
				}
			}), stop: simEachNode(func(s *simRun, n *simNode, f *simFaultRun) { n.restart() })},
		SimAgentFrozen: {name: "agent-frozen", what: "an agent is stopped for a while, its instances are not",
			start: simEachNode(func(s *simRun, n *simNode, f *simFaultRun) {
				if !n.dead && !n.frozen {
					s.hit(f.Kind)
					s.freeze(&n.simActor)
				}
			}), stop: simEachNode(func(s *simRun, n *simNode, f *simFaultRun) { s.thaw(&n.simActor) })},
		SimNodeAway: {name: "node-away", what: "a node is gone for so long that it is lost",
			start: simEachNode(func(s *simRun, n *simNode, f *simFaultRun) {
				if !n.dead {
					s.hit(f.Kind)
					n.away = true
					n.crash()
				}
			}), stop: simEachNode(func(s *simRun, n *simNode, f *simFaultRun) { n.away = false; n.start() })},
		SimServiceRemoved: {name: "service-removed", what: "a service is missing in the repository of an agent that starts again",
			start: simEachNode(func(s *simRun, n *simNode, f *simFaultRun) {
				if !n.dead {
					s.hit(f.Kind)
					n.fewer = true
					n.crash()
					s.after(nil, time.Second, n.start)
				}
			}), stop: simEachNode(func(s *simRun, n *simNode, f *simFaultRun) {
				n.fewer = false
				n.crash()
				s.after(nil, time.Second, n.start)
			})},

		SimManagerCrash: {name: "manager-crash", what: "the Manager dies",
			start: func(s *simRun, f *simFaultRun) {
				if !s.manager.dead {
					s.hit(f.Kind)
					s.manager.crash()
				}
			}, stop: func(s *simRun, f *simFaultRun) { s.manager.start() }},
		SimManagerFrozen: {name: "manager-frozen", what: "the Manager is stopped for a while",
			start: func(s *simRun, f *simFaultRun) {
				if !s.manager.dead {
					s.hit(f.Kind)
					s.freeze(&s.manager.simActor)
				}
			}, stop: func(s *simRun, f *simFaultRun) { s.thaw(&s.manager.simActor) }},
		SimStoreSlow: {name: "store-slow", what: "the store takes long to commit",
			start: func(s *simRun, f *simFaultRun) { s.manager.slow = append(s.manager.slow, f) },
			stop: func(s *simRun, f *simFaultRun) {
				s.manager.slow = slices.DeleteFunc(s.manager.slow, func(g *simFaultRun) bool { return g == f })
			}},
		SimStoreFails: {name: "store-fails", what: "a commit fails, and the Manager with it",
			start: func(s *simRun, f *simFaultRun) { s.manager.failing = true },
			stop:  func(s *simRun, f *simFaultRun) { s.manager.failing = false }},
		SimStoreFull: {name: "store-full", what: "the store has no room for a commit",
			start: func(s *simRun, f *simFaultRun) { s.manager.full = true },
			stop:  func(s *simRun, f *simFaultRun) { s.manager.full = false }},

		SimManagerClockJumps: {name: "manager-clock-jumps", what: "the Manager's clock jumps ahead, as when its machine was suspended",
			start: func(s *simRun, f *simFaultRun) {
				s.hit(f.Kind)
				s.jump(&s.manager.simActor, f.Amount)
			}},
		SimAgentClockJumps: {name: "agent-clock-jumps", what: "an agent's clock jumps ahead",
			start: simEachNode(func(s *simRun, n *simNode, f *simFaultRun) {
				s.hit(f.Kind)
				s.jump(&n.simActor, f.Amount)
			})},

		SimOldManager:       {name: "old-manager", what: "a Manager in whose place another came answers agents that dial", start: (*simRun).mislead, stop: simEnds(simDials)},
		SimFalseAgent:       {name: "false-agent", what: "another process claims the address of an agent", start: simEachNode((*simRun).falseAgent)},
		SimFalseInstance:    {name: "false-instance", what: "another process claims to be an instance", start: simEachNode((*simRun).falseInstance)},
		SimOffGraph:         {name: "off-graph", what: "an instance asks for what the graph has no edge for", start: simEachNode((*simRun).offGraph)},
		SimForeignReports:   {name: "foreign-reports", what: "an agent reports about instances of others", start: simEachNode((*simRun).foreignReports)},
		SimUnaskedResponses: {name: "unasked-responses", what: "an agent answers what others were asked", start: simEachNode((*simRun).unaskedResponses)},
		SimWrongResponses:   {name: "wrong-responses", what: "an agent answers with a response of another type", start: simEachNode((*simRun).wrongResponses)},

		SimHalfOpen:           {name: "half-open", what: "a connection has ended at one end alone"},
		SimKeepAlive:          {name: "keep-alive", what: "keep-alives end a connection that a partition holds"},
		SimLinesLost:          {name: "lines-lost", what: "lines under way are lost with their connection"},
		SimManagerDialBlocked: {name: "manager-dial-blocked", what: "an agent dials the Manager in vain"},
		SimSessionDialBlocked: {name: "session-dial-blocked", what: "an instance dials another in vain"},
		SimSuperseded:         {name: "superseded", what: "an agent is back before its old connection was seen to end"},
		SimReattached:         {name: "reattached", what: "an agent that was started again finds an instance that runs"},
		SimHeldLost:           {name: "held-lost", what: "the Manager dies before what it decided was committed"},
		SimStoreTorn:          {name: "store-torn", what: "the store holds a part of what was not committed"},
		SimReplayed:           {name: "replayed", what: "a Manager goes on from what the store holds"},
		SimCallGivenUp:        {name: "call-given-up", what: "the operator does not wait for the outcome of a command"},
		SimClosesSession:      {name: "closes-session", what: "the operator closes a session"},
		SimShutsDown:          {name: "shuts-down", what: "the operator shuts an instance down"},
		SimKills:              {name: "kills", what: "the operator has an instance killed"},
		SimRedeploys:          {name: "redeploys", what: "the operator undeploys a graph, and deploys it again"},
	}
}

// simCutApart is a partition in both directions.
func simCutApart(name, what string) simFaultEntry {
	e := simCutOff(name, what, func(in, out, manager []bool) ([]bool, []bool) {
		switch name {
		case "partition-nodes":
			out[0] = false
		case "manager-cut-off":
			out[0] = false
			for i := range out {
				in[i], out[i] = i == 0, i != 0
			}
		}
		return in, out
	})
	start, stop := e.start, e.stop
	e.start = func(s *simRun, f *simFaultRun) {
		start(s, f)
		s.cuts = append(s.cuts, &simCut{kind: f.Kind, from: f.cut.to, to: f.cut.from, twin: f.cut})
	}
	e.stop = func(s *simRun, f *simFaultRun) {
		s.cuts = slices.DeleteFunc(s.cuts, func(c *simCut) bool { return c.twin == f.cut })
		stop(s, f)
	}
	return e
}

// ofManager tells whether a kind needs no nodes.
func (k SimulationFaultKind) ofManager() bool {
	switch k {
	case SimManagerCutOff, SimManagerRefuses, SimManagerCrash, SimManagerFrozen, SimStoreSlow, SimStoreFails, SimStoreFull, SimManagerClockJumps:
		return true
	}
	return false
}

func (k SimulationFaultKind) String() string {
	if k > 0 && k < simFaultKinds {
		return simFaultTable[k].name
	}
	return fmt.Sprintf("fault %d", uint8(k))
}

// What is one sentence about the kind.
func (k SimulationFaultKind) What() string {
	if k > 0 && k < simFaultKinds {
		return simFaultTable[k].what
	}
	return ""
}

// MarshalText returns the kind's name.
func (k SimulationFaultKind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText sets k from its name.
func (k *SimulationFaultKind) UnmarshalText(text []byte) error {
	for i := range simFaultTable {
		if simFaultTable[i].name == string(text) && i > 0 {
			*k = SimulationFaultKind(i)
			return nil
		}
	}
	return fmt.Errorf("ssmmptest: no kind of fault is called %q", text)
}

// SimulationFaultKinds returns all kinds, those first that can be injected.
func SimulationFaultKinds() []SimulationFaultKind {
	var all []SimulationFaultKind
	for k := SimulationFaultKind(1); k < simFaultKinds; k++ {
		all = append(all, k)
	}
	return all
}

// Injectable tells whether a Simulation's Faults may name the kind; the others
// come of those.
func (k SimulationFaultKind) Injectable() bool {
	return k > 0 && k < simFaultKinds && simFaultTable[k].start != nil
}

func simRestart(s *simRun, f *simFaultRun) {
	for _, i := range f.Nodes {
		s.nodes[i].host.down = false
		s.nodes[i].start()
	}
	// What was sent to the dead is answered with a reset now.
	for _, i := range f.Nodes {
		h := s.hosts[i+1]
		s.after(nil, h.rand.between(0, time.Second), func() { s.resetStale(h) })
	}
	s.unstall()
	s.unstick()
}

// resetStale ends the connections whose far ends a host has forgotten.
func (s *simRun) resetStale(h *simHost) {
	for _, id := range simSorted(s.manager.ends) {
		if e := s.manager.ends[id]; e.peer().who.host == h && e.peer().closed {
			s.lose(e)
		}
	}
}

// restart starts an agent again, once it has stopped.
func (n *simNode) restart() {
	n.s.after(nil, time.Second, func() {
		switch {
		case n.dead:
			n.start()
		case n.s.now > n.s.sim.For+time.Minute: // it cannot stop
			n.crash()
			n.start()
		case n.stopping:
			n.restart()
		}
	})
}

func (s *simRun) jump(a *simActor, by time.Duration) {
	if !a.dead {
		a.jumped += by
		s.logf("the clock of %s jumps by %v", a.name, by)
		s.after(a, 0, a.wake)
	}
}

// habits draws how a process behaves.
func (n *simNode) habits(p *simProc) simHabits {
	r := &p.rand
	h := simHabits{
		launch: r.between(time.Millisecond, 20*time.Millisecond), hello: r.between(time.Millisecond, 200*time.Millisecond),
		listen: r.between(0, 300*time.Millisecond), drain: r.between(0, 100*time.Millisecond),
	}
	for _, f := range n.faults {
		if e := &simFaultTable[f.Kind]; e.habit != nil && (f.Service == "" || f.Service == p.launch.Service) && f.rand.n(100) < f.percent {
			n.s.hit(f.Kind)
			e.habit(p, &h, f)
		}
	}
	return h
}

// impatient returns the fault by which dials are given up at the node, if any.
func (n *simNode) impatient() *simFaultRun {
	for _, f := range n.faults {
		if f.Kind == SimGivesUp && f.rand.n(100) < f.percent {
			return f
		}
	}
	return nil
}
