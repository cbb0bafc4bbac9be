package ssmmp

import (
	"errors"
	"fmt"
	"strconv"
	"time"
)

// Version is the protocol this package speaks.
const Version = "SSMMP/1.1"

// Fixed points of the protocol (PROTOCOL section 1). Each is a default that a
// configuration can change.
const (
	// ManagerPort is the TCP port on which the Manager listens for agents.
	ManagerPort = 55555
	// AgentPort is the TCP port on which an agent listens for the instances
	// of its own node.
	AgentPort = 55556
	// FirstSocketPort and LastSocketPort bound the ports that the Manager
	// gives to the sockets of instances, on each node.
	FirstSocketPort = 54000
	LastSocketPort  = 55554
)

// MaxLine is the greatest length in bytes of one physical line, without its
// line end (PROTOCOL section 2).
const MaxLine = 64 << 10

// MaxName is the greatest length in bytes of a name (PROTOCOL section 2).
const MaxName = 128

// A Status is the three-digit result that a message carries, with the classes
// of HTTP (PROTOCOL section 2). Zero means that there is none.
type Status uint16

// Statuses with a fixed meaning. Those above 199 follow HTTP.
const (
	StatusSessionClosed Status = 111 // a session closed by business logic
	StatusSessionBroken Status = 122 // a session whose connection broke
	StatusOverloaded    Status = 199 // health: alive, and wants no new work

	StatusOK Status = 200

	StatusStillOpen Status = 302 // the session that was asked after is open

	StatusBadMessage      Status = 400 // the message breaks the protocol
	StatusUnauthenticated Status = 401 // the peer did not prove who it is
	StatusForbidden       Status = 403 // no such edge, or another's name
	StatusNotFound        Status = 404 // no repository can execute the service
	StatusConflict        Status = 409 // the address belongs to another agent, or a port to another program
	StatusGone            Status = 410 // the instance has ended
	StatusLineTooLong     Status = 413 // a line longer than MaxLine
	StatusTooMany         Status = 429 // more requests than the receiver takes

	StatusCanceled Status = 499 // a dial was given up by who asked for it

	StatusFailed      Status = 500 // failed; health: no answer in time
	StatusUnreachable Status = 502 // the destination could not be dialled
	StatusUnavailable Status = 503 // no resources, or the Manager is away
	StatusTimeout     Status = 504 // did not become ready in time

	StatusInsufficientStorage Status = 507 // the Manager cannot record now what was asked for
)

// Success reports whether s is in the class 2xx.
func (s Status) Success() bool { return s >= 200 && s < 300 }

// Valid reports whether s has three digits and a class.
func (s Status) Valid() bool { return s >= 100 && s < 600 }

// String returns the digits and, where it has one, the meaning.
func (s Status) String() string {
	if t := statusText[s]; t != "" {
		return strconv.Itoa(int(s)) + " " + t
	}
	return strconv.Itoa(int(s))
}

var statusText = map[Status]string{
	StatusSessionClosed:   "closed by business logic",
	StatusSessionBroken:   "connection broke",
	StatusOverloaded:      "overloaded",
	StatusOK:              "ok",
	StatusStillOpen:       "still open",
	StatusBadMessage:      "bad message",
	StatusUnauthenticated: "not authenticated",
	StatusForbidden:       "forbidden",
	StatusNotFound:        "service not in any repository",
	StatusConflict:        "address or port taken",
	StatusGone:            "instance ended",
	StatusLineTooLong:     "line too long",
	StatusTooMany:         "too many requests",
	StatusCanceled:        "given up",
	StatusFailed:          "error",
	StatusUnreachable:     "destination unreachable",
	StatusUnavailable:     "unavailable",
	StatusTimeout:         "not ready in time",

	StatusInsufficientStorage: "insufficient storage",
}

// Errors that a program acts on. Those that come from the Manager's answer to
// a request are wrapped in a *StatusError, which carries the status.
var (
	// ErrNoEdge: the graph has no edge for the session that was asked for.
	ErrNoEdge = errors.New("ssmmp: no such edge in the graph")
	// ErrRefused: the Manager refused the request.
	ErrRefused = errors.New("ssmmp: refused by the Manager")
	// ErrStartTimeout: the destination was started and was not ready in time.
	ErrStartTimeout = errors.New("ssmmp: destination not ready in time")
	// ErrUnavailable: the destination cannot be had now. No node can execute
	// it, or has room for it, or none of its instances could be dialled.
	ErrUnavailable = errors.New("ssmmp: destination unavailable")
	// ErrPortTaken: another program holds a port that an instance was given. A
	// Launcher whose error wraps it has the instance executed anew, on others.
	ErrPortTaken = errors.New("ssmmp: port taken by another program")
	// ErrManagerAway: the Manager, or the agent on the way to it, does not
	// answer now. Sessions that are open go on.
	ErrManagerAway = errors.New("ssmmp: the Manager is away")
	// ErrSessionClosed: the Manager closed the session.
	ErrSessionClosed = errors.New("ssmmp: session closed by the Manager")
	// ErrDraining: this instance is shutting down and opens no new sessions.
	ErrDraining = errors.New("ssmmp: instance is shutting down")
	// ErrClosed: the Manager, agent or instance was closed.
	ErrClosed = errors.New("ssmmp: closed")
	// ErrNotFound: no such agent, instance, session, graph, plug or socket.
	ErrNotFound = errors.New("ssmmp: not found")
)

// A StatusError is an answer other than success. errors.Is finds the sentinel
// that its status stands for.
type StatusError struct {
	Op     string // what was asked for: "dial P6", "execute login"
	Status Status
	Reason string // more for a person; may be empty
}

func (e *StatusError) Error() string {
	if e.Reason != "" {
		return fmt.Sprintf("ssmmp: %s: %s: %s", e.Op, e.Status, e.Reason)
	}
	return fmt.Sprintf("ssmmp: %s: %s", e.Op, e.Status)
}

// Unwrap returns the sentinel for the status.
func (e *StatusError) Unwrap() error {
	switch e.Status {
	case StatusForbidden:
		return ErrNoEdge
	case StatusTimeout:
		return ErrStartTimeout
	case StatusUnavailable, StatusNotFound, StatusInsufficientStorage:
		return ErrUnavailable
	default:
		return ErrRefused
	}
}

// Timeout and Temporary make a StatusError a net.Error.
func (e *StatusError) Timeout() bool { return e.Status == StatusTimeout }

// Temporary reports whether the same request may succeed later.
func (e *StatusError) Temporary() bool { return e.Status >= 500 || e.Status == StatusTooMany }

// Defaults of the times that govern a mesh. All can be configured.
const (
	defaultStartTimeout   = 30 * time.Second // execution_request to ready
	defaultDrainTimeout   = 10 * time.Second // graceful_shutdown_request to response
	defaultRequestTimeout = 5 * time.Second  // any other request to its response
	defaultHealthPeriod   = 5 * time.Second  // between two health requests
	defaultIdleAfter      = 5 * time.Minute  // without a session, until shut down
)

// longestTime bounds the times of a configuration: so neither a sum of them
// overflows nor a few times one of them.
const longestTime = 10 * 365 * 24 * time.Hour

// A timeField is a field of a configuration that holds a time.
type timeField struct {
	name  string
	value time.Duration
}

// timeFaults reports the times that are out of range.
func timeFaults(fault func(field string, value any, why string), fields ...timeField) {
	for _, f := range fields {
		if f.value < 0 {
			fault(f.name, f.value, "negative")
		} else if f.value > longestTime {
			fault(f.name, f.value, "longer than 10 years")
		}
	}
}
