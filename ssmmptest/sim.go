package ssmmptest

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	"github.com/ssmmp/ssmmp"
)

// A Simulation describes a mesh, what is done with it and what goes wrong in
// it. Run plays it: the cores of the Manager, of the agents and of the service
// instances are the production code; network, processes, clocks and the store
// are simulated, in virtual time. The same Simulation always runs the same, to
// the byte. It is a plain value: what encoding/json writes of it, it reads back.
//
// Faults happen during For, the safety phase; then they are mended, and the
// mesh has to find back to order by itself, the liveness phase. After every step
// the invariants of the protocol are checked.
type Simulation struct {
	// Seed is what chance depends on: delays, and who does what when.
	Seed uint64
	// Graphs are the CNApps; all are deployed at the start.
	Graphs []*ssmmp.Graph
	// Nodes are the machines, each with an agent.
	Nodes []SimulationNode
	// Config are the Manager's and the agents' settings; zero values are
	// their defaults.
	Config SimulationConfig
	// Latency and Jitter say how long a message takes between two nodes: from
	// Latency to Latency+Jitter; no time at all by default.
	Latency, Jitter time.Duration
	// Commit is how long the Manager's store takes to commit. With zero it
	// takes no time.
	Commit time.Duration
	// Forgets says that nothing outlives a Manager: the next one begins with
	// nothing, as with a store in memory.
	Forgets bool `json:",omitempty"`
	// For is how long the safety phase lasts.
	For time.Duration
	// Load is what users do all the time, Work what is done once.
	Load []SimulationLoad `json:",omitempty"`
	Work []SimulationWork `json:",omitempty"`
	// Faults are what goes wrong.
	Faults []SimulationFault `json:",omitempty"`
	// Quiet leaves the liveness phase out: the run ends after For.
	Quiet bool `json:",omitempty"`
}

// A SimulationNode is a machine with an agent.
type SimulationNode struct {
	// Services are what its agent can execute; all of all graphs if it is
	// empty.
	Services []string `json:",omitempty"`
	// Keeps says that its agent keeps its state: the next one goes on with what
	// it executed.
	Keeps bool `json:",omitempty"`
	// Drift is by how much its clock is fast, in millionths.
	Drift int `json:",omitempty"`
}

// SimulationConfig are the settings of the parts of a mesh. A field's zero
// value means the default of the part that it belongs to.
type SimulationConfig struct {
	StartTimeout, DrainTimeout, RequestTimeout, AckTimeout time.Duration
	HealthPeriod, LostAfter, IdleAfter, PortLinger         time.Duration
	FirstPort, LastPort                                    uint16
	SessionsPerInstance, InstancesPerService               int
	DialTimeout                                            time.Duration // of instances
	// FirstPlugPort and LastPlugPort bound the ports that nodes dial from;
	// 32768 and 50000 by default.
	FirstPlugPort, LastPlugPort uint16
	// KernelProof says that agents find out from the kernel which process
	// holds a connection. Otherwise the instance's secret alone proves it.
	KernelProof bool
}

// A SimulationLoad is what the users of a graph do: each running API Gateway
// gets calls, at random times, Every on the average. A call dials one of the
// gateway's plugs; the instance that it leads to dials one of its own, and so
// on, to a storage service. Each session lasts Hold on the average.
type SimulationLoad struct {
	Graph string
	Every time.Duration
	Hold  time.Duration
	From  time.Duration `json:",omitempty"`
	Until time.Duration `json:",omitempty"` // the end of For if zero
}

// A SimulationWork is one thing that is done once.
type SimulationWork struct {
	At   time.Duration
	Kind SimulationWorkKind
	Pick uint32        // which of those there are at that time
	Hold time.Duration `json:",omitempty"` // how long the session lasts
}

// A SimulationWorkKind tells what a SimulationWork is.
type SimulationWorkKind string

// The kinds of work.
const (
	SimDial         SimulationWorkKind = "dial"          // an instance dials a plug
	SimChain        SimulationWorkKind = "chain"         // and who it reaches dials on
	SimCloseSession SimulationWorkKind = "close session" // the operator closes a session
	SimShutdown     SimulationWorkKind = "shutdown"      // or shuts an instance down
	SimHardShutdown SimulationWorkKind = "hard shutdown"
	SimRedeploy     SimulationWorkKind = "redeploy" // or undeploys a graph, and deploys it again
)

// SimulationOptions say what Run shall tell while it runs. All may be nil.
type SimulationOptions struct {
	// Transcript gets a line for each thing that happens.
	Transcript io.Writer
	// OnEvent gets the events that the Manager records, at their virtual
	// times.
	OnEvent func(at time.Duration, ev ssmmp.Event)
	// OnDial gets the outcome of each dial.
	OnDial func(SimulationDial)
	// OnSample gets the state every SampleEvery; 1 s by default.
	OnSample    func(SimulationSample)
	SampleEvery time.Duration
	// Check says how often everything is compared: at every Check-th step,
	// and less often in a large mesh. 256 by default; the rules for single
	// steps hold always.
	Check int
}

// A SimulationDial is one session that an instance asked for, with its outcome.
type SimulationDial struct {
	At      time.Duration // when it was asked for
	Took    time.Duration // until the connection stood, or the dial failed
	Service string        // who dialled
	Plug    string
	Status  ssmmp.Status // 200, or why it failed
}

// A SimulationSample is the state of the mesh at one moment.
type SimulationSample struct {
	At        time.Duration
	Agents    int // registered, and not away
	Instances int // processes that run
	Sessions  int // connections between instances
	Starts    int // of instances so far
	Dials     int // asked for so far
	Failed    int // of them
}

// A SimulationResult says how a run went.
type SimulationResult struct {
	Seed    uint64
	Events  int           // things that happened
	Virtual time.Duration // how long it took in virtual time
	// Hash depends on everything that happened.
	Hash uint64
	// Faults counts how often each kind happened.
	Faults [simFaultKinds]int
	SimulationSample
	// Failure is the invariant that was broken, nil if none was.
	Failure *SimulationFailure
}

// A SimulationFailure is an invariant that does not hold.
type SimulationFailure struct {
	Invariant string // as docs/simulation.md lists it
	Detail    string
	At        time.Duration
	Event     int // how many things had happened
}

func (f *SimulationFailure) Error() string {
	return fmt.Sprintf("at %v, event %d: broken: %s: %s", f.At, f.Event, f.Invariant, f.Detail)
}

const (
	simMostNodes = 1 << 14
	simLongest   = 10 * 365 * 24 * time.Hour
)

// Validate reports every fault of the description at once.
func (s *Simulation) Validate() error {
	var faults []error
	fault := func(field string, value any, why string) {
		faults = append(faults, fmt.Errorf("ssmmptest: Simulation.%s: %v: %s", field, value, why))
	}
	if len(s.Nodes) == 0 {
		fault("Nodes", "none", "instances need a node")
	}
	if len(s.Nodes) > simMostNodes {
		fault("Nodes", len(s.Nodes), fmt.Sprintf("more than %d, which a Manager does not take", simMostNodes))
	}
	if s.For <= 0 || s.For > simLongest {
		fault("For", s.For, "not positive, or more than ten years")
	}
	for _, d := range []struct {
		field string
		value time.Duration
	}{{"Latency", s.Latency}, {"Jitter", s.Jitter}, {"Commit", s.Commit}, {"Config.DialTimeout", s.Config.DialTimeout}} {
		if d.value < 0 || d.value > simLongest {
			fault(d.field, d.value, "negative, or more than ten years")
		}
	}
	services := map[string]bool{}
	graphs := map[string]bool{}
	if len(s.Graphs) == 0 {
		fault("Graphs", "none", "a mesh needs one")
	}
	for i, g := range s.Graphs {
		field := fmt.Sprintf("Graphs[%d]", i)
		switch {
		case g == nil:
			fault(field, "nil", "not a graph")
			continue
		case graphs[g.Name]:
			fault(field, g.Name, "another graph has this name")
		case len(g.Gateways()) == 0:
			fault(field, g.Name, "has no API Gateway: nothing of it would ever run")
		}
		graphs[g.Name] = true
		if err := g.Validate(); err != nil {
			faults = append(faults, fmt.Errorf("ssmmptest: Simulation.%s: %w", field, err))
		}
		for _, sv := range g.Services {
			services[sv.Name] = true
		}
	}
	for i, n := range s.Nodes {
		for _, name := range n.Services {
			if !ssmmp.ValidName(name) {
				fault(fmt.Sprintf("Nodes[%d].Services", i), name, "not a name")
			}
		}
		if n.Drift < -100_000 || n.Drift > 100_000 {
			fault(fmt.Sprintf("Nodes[%d].Drift", i), n.Drift, "not between -100000 and 100000")
		}
	}
	for i, l := range s.Load {
		field := fmt.Sprintf("Load[%d]", i)
		if !graphs[l.Graph] {
			fault(field+".Graph", l.Graph, "no such graph")
		}
		if l.Every <= 0 || l.Every > simLongest {
			fault(field+".Every", l.Every, "not positive, or more than ten years")
		}
		if l.Hold < 0 || l.Hold > simLongest {
			fault(field+".Hold", l.Hold, "negative, or more than ten years")
		}
	}
	for i, f := range s.Faults {
		field := fmt.Sprintf("Faults[%d]", i)
		if int(f.Kind) >= len(simFaultTable) || f.Kind == 0 || simFaultTable[f.Kind].start == nil {
			fault(field+".Kind", f.Kind, "cannot be injected")
		}
		for _, n := range f.Nodes {
			if n < 0 || n >= len(s.Nodes) {
				fault(field+".Nodes", n, "no such node")
			}
		}
		if len(f.Nodes) == 0 && !f.Kind.ofManager() {
			fault(field+".Nodes", "none", "nowhere to happen")
		}
		if f.Service != "" && !services[f.Service] {
			fault(field+".Service", f.Service, "no such service")
		}
	}
	for i, w := range s.Work {
		switch w.Kind {
		case SimDial, SimChain, SimCloseSession, SimShutdown, SimHardShutdown, SimRedeploy:
		default:
			fault(fmt.Sprintf("Work[%d].Kind", i), w.Kind, "no such kind")
		}
	}
	cfg := s.managerConfig()
	if err := cfg.Validate(); err != nil {
		faults = append(faults, err)
	}
	if c := s.Config; c.FirstPlugPort > c.LastPlugPort {
		fault("Config.FirstPlugPort", c.FirstPlugPort, "above LastPlugPort")
	}
	return errors.Join(faults...)
}

func (s *Simulation) managerConfig() ssmmp.ManagerConfig {
	c := s.Config
	return ssmmp.ManagerConfig{
		Graphs: s.Graphs, StartTimeout: c.StartTimeout, DrainTimeout: c.DrainTimeout, RequestTimeout: c.RequestTimeout,
		AckTimeout: c.AckTimeout, HealthPeriod: c.HealthPeriod, LostAfter: c.LostAfter, IdleAfter: c.IdleAfter, PortLinger: c.PortLinger,
		FirstPort: c.FirstPort, LastPort: c.LastPort, SessionsPerInstance: c.SessionsPerInstance, InstancesPerService: c.InstancesPerService,
		FirstInstance: 1, FirstMessage: 1,
	}
}

// simAddr is the address of the n-th node.
func simAddr(n int) netip.Addr {
	n++
	return netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)})
}
