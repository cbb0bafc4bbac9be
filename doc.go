// Package ssmmp is a service mesh as a library. It speaks SSMMP/1.1, the Simple
// Service Mesh Management Protocol, by which a Manager executes the services of
// a network application on the nodes of a cluster, and has a part in opening
// and closing every connection between them.
//
// # Actors
//
// An application, a CNApp, is a [Graph]: services with abstract sockets (IN) and
// plugs (OUT), and edges that lead from a plug to a socket. The graph says who
// may talk to whom. Three actors make it run:
//
//   - The [Manager], once per cluster, holds the graphs and all state, decides,
//     and talks to agents only.
//   - An [Agent], one per node, executes and kills service instances with the
//     [Launcher] of its [RepositoryEntry], and relays between them and the
//     Manager.
//   - An [Instance] is what a service holds after [Join]: Listen for its
//     sockets, Dial for its plugs. What they return are a [net.Listener] and
//     [net.Conn], so a service changes in its network connections only.
//
// Manager.Deploy executes the API Gateways of a graph. Everything else is
// executed by the first session to it, and shut down when it was idle for long.
//
// # A session's life
//
// Instance i of service A dials plug P, which leads to socket S of service B:
//
//	i                  agent              Manager            agent              j
//	| session_request    |                  |                  |                |
//	|------------------->|----------------->| execution_request|                |
//	|                    |                  |----------------->| launch         |
//	|                    |                  |                  |--------------->|
//	|                    |                  |                  |<---------------|
//	|                    |                  |<-----------------| hello          |
//	|   session_response |                  |                  |                |
//	|<-------------------|<-----------------| offered          |                |
//	|                                                                           |
//	|========== dial j's address and port: from m to l =========================|
//	|                                                                           |
//	| session_ack        |                  |                  |                |
//	|------------------->|----------------->| open             |                |
//
// The execution is there only when no instance of B can take the session. The
// Manager grants a session ([SessionOffered]) before it answers; the
// acknowledgment makes it [SessionOpen] with both its ports, and a failed dial,
// or no acknowledgment within AckTimeout, ends it. Either end reports the close
// of its connection, 111 when it closed it and 122 when it broke, and the
// session closes once, by whichever report comes first. The Manager closes a session
// by asking the source, and if that fails the destination ([SessionClosing]);
// then reads and writes at that end give [ErrSessionClosed]. A session needs
// neither Manager nor agent while it is open: both may be away.
//
// # Cores and runtimes
//
// What decides is apart from what does. Three cores ([ManagerCore], [AgentCore],
// [InstanceCore]) are plain state machines: Step takes one input, such as a
// message, a lost connection, a command, the time, and returns what is to be
// sent, executed, killed and answered. They have no goroutine, clock, I/O, lock,
// log or chance, so the same inputs give the same outputs. The Manager's core
// records what happens to graphs, agents, instances and sessions as an [Event]
// in the past tense, and nothing leaves before the events that caused it were
// recorded. With a [Store] they are durable then, and a Manager that is started
// on it goes on from the state that its events give. Manager.History yields
// them, StateAt the state after one, Explain why an instance was started and
// ended; the functions [StateAt], [StateAtTime] and [Explain] ask a Store whose
// Manager is not there.
//
// Around each core is a thin runtime, the exported type, which owns a mutex, the
// connections and a timer. Each connection is a link, which a goroutine reads.
// Whoever steps a core writes what the step queued, once its lock is released
// and as far as the connections take it at once; the rest is left to each link's
// writer, which writes whatever is queued in one write. A peer that leaves 1 MiB
// waiting, beside what was decided since its last write was tried, or takes more
// than 10 s for a write, loses that connection.
// No lock is held across a read, a write, a callback or a log call.
//
// # Transports and launchers
//
// A [Transport] is how bytes travel, for control and for sessions: [TCP], or a
// [MemHost] of a [MemNetwork], where a whole mesh lives in one process, in the
// virtual time of testing/synctest where a test wants that. Package ssmmptest
// has conformance tests for others and for stores, faults for all, and whole
// clusters.
//
// A [Launcher] is how an instance is executed: [CommandLauncher] as processes of
// the operating system, [FuncLauncher] as a call of a Go function. Processes
// outlive an agent that died, and one with the same StateDir goes on with them.
//
// # Settings
//
// What is left at zero has a default, which its field tells.
//
//   - [ManagerConfig]: how long a start, a graceful shutdown, other requests and
//     a granted session may take (StartTimeout, DrainTimeout, RequestTimeout,
//     AckTimeout); when who is silent is given up (HealthPeriod, HealthMisses,
//     LostAfter, StormBrake), and how starts back off (QuickEnd, QuickEnds,
//     BackOffFrom, BackOffTo); when instances are shut down, or more of a service
//     started (IdleAfter, SessionsPerInstance, InstancesPerService); which ports
//     and ids are given (FirstPort, LastPort, PortLinger, FirstInstance,
//     FirstMessage); what is kept, and for how long (Store, Epoch, History,
//     CheckpointAfter, KeepFor, KeepBytes).
//   - [AgentConfig]: where it listens (Listen); what is left of it when it ends
//     (KeepInstances, StateDir); how long it waits (StartTimeout, DrainTimeout,
//     RequestTimeout, BackOffFrom, BackOffTo).
//   - [RepositoryEntry] and [CommandLauncher]: how a service is executed, when it
//     is ready, how it is ended. [ReadRepository] reads most of it from a file.
//   - [JoinConfig]: how long a dial, the end and an idle session last
//     (DialTimeout, DrainTimeout, IdleTimeout).
//
// # Errors
//
// Sentinels say what a program can act on, and work with [errors.Is]:
// [ErrNoEdge], [ErrRefused], [ErrStartTimeout], [ErrUnavailable],
// [ErrPortTaken], [ErrManagerAway], [ErrSessionClosed], [ErrDraining], [ErrClosed] and
// [ErrNotFound]; of a Store [ErrStoreInUse], [ErrStoreFull],
// [ErrStoreBusy] and [ErrStoreFailed]. An answer with a status other than success is a [*StatusError],
// which is a [net.Error] as well. [*ProtocolError] says which line of a message
// is wrong, [*GraphError] and [*GraphFileError] which place of a graph,
// [*RepositoryFileError] of a repository file, [*StoreError] of a store that is
// damaged, [*LaunchError] which instance could not be executed. Validate of a
// configuration or a graph reports all faults at once.
//
// # Borrowed and owned
//
// A [Decoder] decodes into its own memory: a message is borrowed, valid until
// the next Decode, and [Clone] makes it the caller's. [ParseMessage] returns a
// message of the caller's own, whose strings are parts of the line. The
// handlers of the cores get borrowed messages, relay them at once, and clone
// what they keep. Configurations are copied on entry and never changed; a
// [Snapshot] and its lists belong to the caller, the Sockets of an [Event] do
// not.
//
// # Extension lines
//
// Lines whose names begin with "x_" may follow the specified ones. This package
// sends eleven, and works, with less, with a peer that sends none:
//
//   - x_agent in initiation_request: which process of an agent this is. Without
//     it a second connection from an address whose first still stands is
//     refused, where with it the newer supersedes the older.
//   - x_instances in initiation_request: the ids of what the agent runs, "7, +2"
//     for 7 and 9.
//     With neither of these two the Manager takes all that it asked the agent to
//     run to run on.
//   - x_heard in initiation_response and agent_health_control_request: the last
//     health answer that the Manager has, and with it all reports before. The
//     agent sends later ones again when the connection broke. One that reports
//     much is asked for its health more often, so that it keeps little.
//     In a service_instance_health_request an agent tells its instance how many
//     of the reports on that connection the Manager has. The instance sends
//     later ones again, to an agent that was started in the place of one that
//     died.
//   - x_epoch in initiation_response and agent_health_control_request: which of
//     several Managers this is, by the epoch of its [Store]. Agents obey the one
//     with the greatest that they heard of, and tell it in initiation_request: a
//     Manager with a lesser one refuses them.
//   - x_again in a close info that may have been sent before: the message id of
//     the session_request that the session came of, or 0 where its sender does not
//     know it. Meanwhile another session may have its ports: where that cannot be
//     told the Manager asks first, with x_ask in a close request. An instance
//     that knows the line closes nothing and answers 404, or 302 when that session
//     is open.
//   - x_exit in a termination_info that an agent sends for a process that ended:
//     its exit code or signal.
//   - x_reason in a failed session_response or execution_response, and in the
//     answer to a request that could not be decoded: more for a person. By it a dial
//     tells [ErrManagerAway] from [ErrUnavailable].
//   - x_secret in the hello of an instance: that it is the one its agent
//     executed. Agents take it out before they relay.
//   - x_sessions in service_instance_health_response: of how many open sessions
//     the instance is the source. A Manager that knows of more asks after each,
//     with x_ask, and closes those that the instance has no more: the reports
//     of their ends were lost. A list of them would not fit into a line.
//   - x_silence in initiation_response: after how many milliseconds without a
//     word the Manager may be taken to be gone, though the connection stands.
//     The agent gives the connection up, and looks for a Manager anew.
//
// # Where to change what
//
//	ssmmp.go                  version, ports, statuses, sentinel errors, default times
//	message.go                the 22 messages as types
//	route.go                  which hops each of them takes; CheckHop
//	codec.go                  a physical line to a message and back
//	codec_lines.go            which lines each type has: here a message changes
//	codec_values.go           what each kind of contents may be, for all modes of the codec
//	codec_scan.go             names, numbers, addresses by the byte
//	codec_lists.go            repositories, socket and plug configurations
//	codec_reader.go           Decoder: messages from a stream
//	codec_text.go             the form for people
//	extension.go              the lines beginning with x_ that this package sends
//	graph.go                  the abstract graph; graph_builder, graph_file, graph_validate, graph_dot
//	repository_file.go        the file of what an agent can execute; json_reader.go: how both files are read
//	session.go                the Manager's table of sessions
//	policy.go                 placement, balancing, scaling
//	policy_core.go            the orders that it chooses by
//	timers_core.go            the clock and the timers of the Manager's core and the agent's
//	manager_core.go           the Manager's Step: requests and responses, commands
//	manager_agent_core.go     agents: registration, monitoring, those that are away or lost
//	manager_cause_core.go     who did it, and what it follows from
//	manager_state_core.go     its state, evolve; manager_snapshot_core.go: as others see it
//	manager_instance_core.go  execution, shutdown, health, idle instances, backing off
//	manager_session_core.go   requests, offers, acknowledgments, closing
//	manager_doubt_core.go     which sessions may be over: their ends are asked
//	manager_recovery_core.go  Replay, Checkpoint, Resume: coming back with the state of the one before
//	manager.go                the Manager's runtime; history.go: the events in memory
//	manager_commit.go         its part with a Store: nothing leaves before it is durable
//	manager_history.go        the history, the state as it was, why: of a Manager or a Store
//	agent_core.go             the agent's Step: what the Manager asks
//	agent_manager_core.go     registration, reports until they are heard, a silent Manager
//	agent_execution_core.go   executing and ending instances
//	agent_instance_core.go    what instances say, and whether they may
//	agent.go                  the agent's runtime; agent_process.go: what it executes
//	agent_state*.go           what it keeps in a directory; agent_reattach.go: how it comes back
//	instance_core.go          an instance's Step
//	instance.go               its runtime: Join, shutdown; instance_conn.go: Listen, Dial, connections
//	link*.go                  one connection's reader and writer
//	strangers.go              connections on which nobody has said yet who it is
//	transport*.go             TCP and the network in memory
//	launcher*.go              RepositoryEntry, Launcher; processes and functions;
//	                          launcher_exec_*.go: trees of processes on each system;
//	                          launcher_arguments.go: command lines and their templates;
//	                          launcher_cgroup_linux.go, launcher_owns_linux.go: what only Linux tells;
//	                          launcher_reattach*.go: processes of a launcher that died
//	event.go                  what a Manager records; event_codec.go: its form in stores
//	store.go                  where it is kept; store_mem.go: in memory; sqlitestore/: in a file
//	ssmmptest/transport.go    what every Transport has to do; store.go: what every Store
//	ssmmptest/faults*.go      what can go wrong with a network, over any transport
//	ssmmptest/cluster*.go     a mesh in one process, with crashes
//	ssmmptest/sim*.go         meshes that are played from a seed; docs/simulation.md
//	testdata/transcripts      what is said in each action, line by line; transcript_test.go
//	examples/, bench/, docs/  programs, measurements and pages; .ci/run: all that has to hold
//
// SPEC.md leads from each requirement of the protocol to its code and its test.
// PROTOCOL, in comments, is the specification of SSMMP/1.1: section 1 has the
// actors, 2 the wire form, 3 the actions, 4 and 5 two applications.
package ssmmp
