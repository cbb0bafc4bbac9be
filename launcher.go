package ssmmp

import (
	"context"
	"net"
	"net/netip"
	"strconv"
)

// A RepositoryEntry is one service that an agent can execute (PROTOCOL
// section 3, Registration).
type RepositoryEntry struct {
	// Service is the name by which the graph knows the service.
	Service string
	// Launcher executes an instance of it.
	Launcher Launcher
	// Sockets and Plugs are those that the program has. An instance that
	// would have others is not executed: the graph means another program. Nil
	// says nothing of them, empty that it has none.
	Sockets, Plugs []string
	// ReadyWhenStarted makes an instance ready as soon as it runs. Otherwise
	// it is ready when its first message arrives or all its configured ports
	// listen, whichever comes first.
	ReadyWhenStarted bool
	// StopSignal is the signal by which an instance that does not speak SSMMP
	// is shut down gracefully: SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1 or
	// SIGUSR2. One that has not ended within the agent's DrainTimeout is
	// killed. Without a signal, or where its Process is no Signaler, it is
	// killed at once.
	StopSignal string
}

// stopSignals are those that a StopSignal can name.
var stopSignals = []string{"SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2"}

// A Launch is what an agent knows of an instance that it is about to execute.
type Launch struct {
	Service string
	ID      InstanceID
	Address netip.Addr // of the node
	Sockets []SocketPort
	Plugs   []PlugTarget
	// Agent is where the instance finds its agent, "host:port".
	Agent string
	// Secret is known to the agent and to this instance alone.
	Secret string
}

// A Launcher executes instances of one service: CommandLauncher as a process
// of the operating system, FuncLauncher as a Go function in this process.
type Launcher interface {
	// Launch starts an instance and returns without waiting for it to be
	// ready. The context governs the start only.
	Launch(ctx context.Context, l Launch) (Process, error)
}

// A Process is a running instance as its launcher sees it. Its methods may be
// called from many goroutines.
type Process interface {
	// PID is the operating system's process id, 0 where there is none.
	PID() int
	// Wait blocks until the instance and, where the launcher can know them,
	// all its children have ended, and says how. Every call returns the same.
	Wait() Exit
	// Kill ends the instance and all its children, now. Killing one that has
	// ended does nothing.
	Kill() error
	// Owns reports whether the instance holds the far end of a connection
	// that its agent accepted. known is false where that cannot be found out
	// here; then the instance's secret decides alone.
	Owns(c net.Conn) (owns, known bool)
}

// A Signaler is a Process that can be sent a signal.
type Signaler interface {
	// Signal sends the signal with that name, "SIGTERM", to the instance's
	// first process. One that has ended does not get it, which is no error.
	Signal(name string) error
}

// An Exit says how an instance ended.
type Exit struct {
	Code   int    // exit code; -1 when a signal or a panic ended it
	Signal string // name of the signal, "SIGKILL", or empty
	Reason string // more for a person: a panic's value, an error
	// Unknown says that nobody could see how it ended: it did after its agent
	// had died, or was started by an agent that has died.
	Unknown bool
}

// String is the form of the extension line x_exit: a code, a signal, or
// "unknown".
func (e Exit) String() string {
	if e.Unknown {
		return "unknown"
	}
	if e.Signal != "" {
		return e.Signal
	}
	return strconv.Itoa(e.Code)
}
