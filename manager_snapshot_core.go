package ssmmp

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

// The Manager's core, continued: its state as others see it.

// An AgentState tells whether a node can be used.
type AgentState string

// The states of an agent.
const (
	AgentUp     AgentState = "up"
	AgentIsAway AgentState = "away" // its connection ended; its instances are taken to run
	AgentIsLost AgentState = "lost" // it stayed away; its instances are taken to be dead
)

// A Snapshot is the Manager's state at one moment, consistent in itself.
type Snapshot struct {
	Seq       uint64 // of the last event that it includes
	Graphs    []GraphStatus
	Agents    []AgentStatus    // in the order of their first registration
	Instances []InstanceStatus // in the order of their ids
	Sessions  []SessionStatus  // in the order of their sources, then newest first
	BackOffs  []BackOffStatus  // vertices whose instances keep dying young
	Storm     bool             // so many agents are away that none is taken to be lost
}

// A BackOffStatus is a vertex in a Snapshot at which starts back off, since its
// last instances all failed to start or ended soon after.
type BackOffStatus struct {
	Graph, Vertex, Service string
	Ends                   int           // of young instances in a row
	Next                   time.Duration // until the next start may be; 0 when it may be now
}

// A GraphStatus is a deployed graph in a Snapshot.
type GraphStatus struct {
	Name     string
	Retiring bool // undeployed; its last instances are ending
}

// An AgentStatus is an agent in a Snapshot.
type AgentStatus struct {
	Address  netip.Addr
	State    AgentState
	Services []string // its repository
	Unknown  []string // those of Services that no deployed graph has
}

// An InstanceStatus is a service instance in a Snapshot.
type InstanceStatus struct {
	ID       InstanceID
	Graph    string
	Vertex   string
	Service  string
	Kind     Kind
	Node     netip.Addr
	Sockets  []SocketPort
	State    InstanceState
	Health   Status // last reported, zero before the first report
	Sessions int    // that it is an end of
}

// A SessionStatus is a session in a Snapshot: everything that PROTOCOL
// section 3 has the Manager know of it.
type SessionStatus struct {
	ID                 SessionID
	State              SessionState
	Source             InstanceID
	SourceService      string
	SourceAddress      netip.Addr
	Plug               string
	PlugPort           uint16 // m, zero until it is acknowledged
	Destination        InstanceID
	DestinationService string
	DestinationAddress netip.Addr
	Socket             string
	SocketPort         uint16 // k
	NewPort            uint16 // l, zero until it is acknowledged
}

// An InstanceState tells how far an instance is in its life.
type InstanceState string

// The states of an instance, in their order.
const (
	InstanceStarting InstanceState = "starting" // its agent was asked to execute it
	InstanceRunning  InstanceState = "running"  // it is ready
	InstanceDraining InstanceState = "draining" // its sessions are being closed
	InstanceStopping InstanceState = "stopping" // it was asked to exit
	InstanceKilling  InstanceState = "killing"  // it is being killed
)

var instanceStates = [...]InstanceState{
	instanceStarting: InstanceStarting, instanceRunning: InstanceRunning, instanceDraining: InstanceDraining,
	instanceStopping: InstanceStopping, instanceKilling: InstanceKilling,
}

// Snapshot returns the state.
func (c *ManagerCore) Snapshot() Snapshot {
	s := Snapshot{Seq: c.seq, Storm: c.storm,
		Agents: slices.Grow[[]AgentStatus](nil, len(c.agents)), Instances: slices.Grow[[]InstanceStatus](nil, len(c.instances)),
		Sessions: slices.Grow[[]SessionStatus](nil, c.sessions.live)}
	known := map[string]bool{}
	for _, a := range c.apps {
		s.Graphs = append(s.Graphs, GraphStatus{Name: a.name, Retiring: a.retiring})
		for _, v := range a.vertices {
			known[v.service] = true
			if v.quickEnds >= c.cfg.QuickEnds && c.now-v.lastEnd <= c.cfg.QuickEnd+c.cfg.BackOffTo {
				s.BackOffs = append(s.BackOffs, BackOffStatus{a.name, v.name, v.service, v.quickEnds, max(0, v.notBefore-c.now)})
			}
		}
	}
	for _, a := range c.agents {
		st := AgentStatus{Address: a.addr, State: a.state(), Services: slices.Clone(a.services)}
		for _, name := range a.services {
			if !known[name] {
				st.Unknown = append(st.Unknown, name)
			}
		}
		s.Agents = append(s.Agents, st)
	}
	for _, i := range c.inOrder() {
		state := i.state
		if state == instanceDraining && c.sessionsOf(i) == 0 {
			state = instanceStopping // as drained will have it
		}
		s.Instances = append(s.Instances, InstanceStatus{
			ID: i.id, Graph: i.v.app.name, Vertex: i.v.name, Service: i.v.service, Kind: i.v.kind,
			Node: i.a.addr, Sockets: slices.Clone(i.sockets), State: instanceStates[state],
			Health: i.status, Sessions: c.sessionsOf(i),
		})
		for slot := c.sessions.ends[i.slot].srcHead; slot != 0; slot = c.sessions.at(slot).srcNext {
			s.Sessions = append(s.Sessions, c.sessionStatus(slot))
		}
	}
	return s
}

func (c *ManagerCore) sessionStatus(slot uint32) SessionStatus {
	s := c.sessions.at(slot)
	src, dst := c.slots[s.src], c.slots[s.dst]
	e := src.v.edges[s.edge]
	return SessionStatus{
		ID: c.sessions.id(slot), State: s.state,
		Source: src.id, SourceService: src.v.service, SourceAddress: src.a.addr, Plug: e.plug, PlugPort: s.plugPort,
		Destination: dst.id, DestinationService: dst.v.service, DestinationAddress: dst.a.addr,
		Socket: e.socket, SocketPort: dst.port(e.socket), NewPort: s.newPort,
	}
}

// inOrder returns the live instances by id: maps have no order of their own.
func (c *ManagerCore) inOrder() []*instance {
	all := make([]*instance, 0, len(c.instances))
	for _, i := range c.slots {
		if i != nil {
			all = append(all, i)
		}
	}
	slices.SortFunc(all, func(a, b *instance) int { return cmp.Compare(a.id, b.id) })
	return all
}

// A ManagerPending counts what a Manager's core has under way: when nothing
// happens any more, all of it comes down to zero but Timers.
type ManagerPending struct {
	Exchanges int // requests to agents that wait for their responses
	Waiting   int // session requests that wait for a start
	Offers    int // sessions that are granted and not acknowledged
	Calls     int // commands without their outcome
	Timers    int
}

// Pending returns what is under way.
func (c *ManagerCore) Pending() ManagerPending {
	return ManagerPending{Exchanges: len(c.exchanges), Waiting: len(c.waiting), Offers: len(c.offers), Calls: len(c.calls),
		Timers: len(c.pending) + len(c.expiries)}
}
