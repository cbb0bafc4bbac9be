package ssmmp

import (
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// An EventKind tells what happened. Events are in the past tense: they are the
// Manager's history, and applying them in order gives its state.
type EventKind uint8

// The kinds of event.
const (
	EventGraphDeployed     EventKind = 1 + iota // its API Gateways shall run
	EventGraphUndeployed                        // nothing of it shall run
	EventAgentRegistered                        // an agent came, or came back
	EventAgentRefused                           // an address was claimed twice
	EventAgentAway                              // its connection ended; its instances are taken to run
	EventAgentLost                              // it stayed away; its instances are taken to be dead
	EventInstanceRequested                      // an id, a node and ports were given; its agent is asked to execute it
	EventInstanceReady                          // it is started and ready
	EventInstanceStopping                       // its shutdown began
	EventInstanceEnded                          // it runs no more
	EventSessionOffered                         // a request was answered with an address and a port
	EventSessionOpened                          // the connection was acknowledged
	EventSessionClosed                          // it ended, or never opened
	EventSessionRefused                         // a request was answered with a failure
	EventHealthChanged                          // an instance reports another status than before
	EventProtocolViolated                       // a peer broke the protocol; its message was dropped
	EventInstanceKilling                        // its shutdown is hard from now on
	EventSessionClosing                         // the Manager has an end close it
	EventMessagesReserved                       // message ids up to MessageID may be in use
	EventManagerStarted                         // a Manager took the state over from one before it
	EventStormBegan                             // so many agents are away that none is taken to be lost
	EventStormEnded                             // enough of them are back
	EventCheckpointBegan                        // the events up to EventCheckpointEnded are a state, not a history
	EventCheckpointEnded                        // see ManagerCore.Checkpoint
)

var eventNames = [...]string{
	EventGraphDeployed: "graph deployed", EventGraphUndeployed: "graph undeployed",
	EventAgentRegistered: "agent registered", EventAgentRefused: "agent refused", EventAgentAway: "agent away", EventAgentLost: "agent lost",
	EventInstanceRequested: "instance requested", EventInstanceReady: "instance ready",
	EventInstanceStopping: "instance stopping", EventInstanceEnded: "instance ended",
	EventSessionOffered: "session offered", EventSessionOpened: "session opened",
	EventSessionClosed: "session closed", EventSessionRefused: "session refused",
	EventHealthChanged: "health changed", EventProtocolViolated: "protocol violated",
	EventInstanceKilling: "instance killing", EventSessionClosing: "session closing", EventMessagesReserved: "messages reserved",
	EventManagerStarted: "manager started", EventStormBegan: "storm began", EventStormEnded: "storm ended",
	EventCheckpointBegan: "checkpoint began", EventCheckpointEnded: "checkpoint ended",
}

func (k EventKind) String() string {
	if int(k) < len(eventNames) && eventNames[k] != "" {
		return eventNames[k]
	}
	return fmt.Sprintf("event %d", uint8(k))
}

// An Event is one thing that happened, with its cause. Fields that a kind does
// not need are zero.
type Event struct {
	Seq  uint64        // 1 for the first, without gaps
	Time time.Time     // wall clock, for people: it may jump, Seq does not
	At   time.Duration // the Manager's clock: it stands still while no Manager runs, and never goes back
	Kind EventKind

	Graph    string // name of the CNApp
	Vertex   string // where in its graph
	Service  string
	Instance InstanceID
	Node     netip.Addr // of the agent, or of the instance

	Session      SessionID
	Source       InstanceID // of the session
	Destination  InstanceID // of the session
	Plug, Socket string
	PlugPort     uint16       // m
	NewPort      uint16       // l
	MessageID    int64        // of the session_request, or the last that is reserved
	Sockets      []SocketPort // of EventInstanceRequested; not to be changed

	Status   Status
	Actor    string // who, "operator", "Manager", "agent 10.0.0.1", "instance 7"; of a session, Source if empty
	Cause    string // why, for people: "session_request of 7", "idle"
	CauseSeq uint64 // the event that this one follows from, 0 if none or unknown
	Detail   string // JSON that the state needs: the graph, an agent's repository, in a checkpoint more
}

// String is one line for people, without sequence and time.
func (e Event) String() string {
	var b strings.Builder
	b.WriteString(e.Kind.String())
	add := func(format string, args ...any) { b.WriteByte(' '); fmt.Fprintf(&b, format, args...) }
	switch e.Kind {
	case EventSessionOffered, EventSessionOpened, EventSessionClosing, EventSessionClosed:
		add("%s %d.%s → %d.%s", e.Session, e.Source, e.Plug, e.Destination, e.Socket)
	case EventSessionRefused:
		add("%s %d.%s", e.Service, e.Source, e.Plug)
	case EventGraphDeployed, EventGraphUndeployed:
		add("%s", e.Graph)
	default:
		if e.Service != "" {
			add("%s %d", e.Service, e.Instance)
		}
		if e.Node.IsValid() {
			add("on %s", e.Node)
		}
	}
	if e.Status != 0 {
		add("(%s)", e.Status)
	}
	if e.Cause != "" {
		b.WriteString(": ")
		b.WriteString(e.Cause)
	}
	return b.String()
}
