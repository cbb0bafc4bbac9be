package ssmmp

import "net/netip"

// An InstanceID names a service instance: a positive integer that the Manager
// chooses and never uses again, not even after a restart. Zero means none.
type InstanceID int64

// A Type is one of the 22 message types of SSMMP/1.1.
type Type uint8

// The message types, in the order of the specification.
const (
	TypeInitiationRequest Type = 1 + iota
	TypeInitiationResponse
	TypeExecutionRequest
	TypeExecutionResponse
	TypeSessionRequest
	TypeSessionResponse
	TypeSessionAck
	TypeSourceSessionCloseInfo
	TypeDestSessionCloseInfo
	TypeSourceSessionCloseRequest
	TypeSourceSessionCloseResponse
	TypeDestSessionCloseRequest
	TypeDestSessionCloseResponse
	TypeGracefulShutdownRequest
	TypeGracefulShutdownResponse
	TypeHardShutdownRequest
	TypeHardShutdownResponse
	TypeTerminationInfo
	TypeInstanceHealthRequest
	TypeInstanceHealthResponse
	TypeAgentHealthRequest
	TypeAgentHealthResponse

	numTypes = int(TypeAgentHealthResponse) + 1
)

// A SubType tells which hop of its way a message is on, by its value of the
// line sub_type. Empty where the message has no such line.
type SubType string

// The values of sub_type.
const (
	ServiceToAgent         SubType = "service_to_agent"
	AgentToManager         SubType = "agent_to_Manager"
	ManagerToAgent         SubType = "Manager_to_agent"
	AgentToService         SubType = "agent_to_service"
	SourceServiceToAgent   SubType = "source_service_to_agent"
	AgentToSourceService   SubType = "agent_to_source_service"
	DestServiceToAgent     SubType = "dest_service_to_agent"
	AgentToDestService     SubType = "agent_to_dest_service"
	AgentToServiceInstance SubType = "agent_to_service_instance"
	ServiceInstanceToAgent SubType = "service_instance_to_agent"
)

// An Actor is one of the three parties of the protocol (PROTOCOL section 1).
type Actor uint8

// The actors.
const (
	ActorManager Actor = 1 + iota
	ActorAgent
	ActorInstance
)

// A Header is what every message has.
type Header struct {
	// MessageID is a positive integer chosen by whoever starts the exchange,
	// unique for that sender only. Every answer and every relayed hop carries
	// the same one.
	MessageID int64
	// SubType tells the hop; empty for the types that have none.
	SubType SubType
	// Extensions are the lines whose names begin with "x_", in the order in
	// which they stood (PROTOCOL section 2). They survive a relay.
	Extensions []Extension
}

// An Extension is a line outside the specification. Its Name begins with "x_".
type Extension struct{ Name, Value string }

// Head returns the message's header, to read or to change.
func (h *Header) Head() *Header { return h }

// Extension returns the value of the first extension line with that name, or
// the empty string.
func (h *Header) Extension(name string) string {
	for _, x := range h.Extensions {
		if x.Name == name {
			return x.Value
		}
	}
	return ""
}

// A Message is one of the 22 message types: a pointer to one of the structs of
// this file. Fields are named as the lines of the specification, in its order.
type Message interface {
	// Type returns the message's type.
	Type() Type
	// Head returns the message's header.
	Head() *Header
}

// A SocketPort is one entry of a socket_configuration: an abstract socket and
// the port on which the instance listens for it.
type SocketPort struct {
	Socket string
	Port   uint16
}

// A PlugTarget is one entry of a plug_configuration: an abstract plug, and the
// abstract socket of the service that it leads to.
type PlugTarget struct {
	Plug    string
	Socket  string
	Service string
}

// InitiationRequest registers an agent, with its node's address and the names
// of the services that it can execute. Agent to Manager.
type InitiationRequest struct {
	Header
	AgentNetworkAddress netip.Addr
	ServiceRepository   []string
}

// InitiationResponse answers InitiationRequest. Manager to agent.
type InitiationResponse struct {
	Header
	Status Status
}

// ExecutionRequest asks an agent to execute an instance. Manager to agent.
type ExecutionRequest struct {
	Header
	AgentNetworkAddress netip.Addr
	ServiceName         string
	ServiceInstanceID   InstanceID
	SocketConfiguration []SocketPort
	PlugConfiguration   []PlugTarget
}

// ExecutionResponse answers ExecutionRequest once the instance is ready, or
// has failed. Agent to Manager.
type ExecutionResponse struct {
	Header
	Status Status
}

// SessionRequest asks for a session along an edge of the graph. Instance to
// agent to Manager.
type SessionRequest struct {
	Header
	SourceServiceName                   string
	SourceServiceInstanceID             InstanceID
	SourceServiceInstanceNetworkAddress netip.Addr
	SourcePlugName                      string
	DestServiceName                     string
	DestSocketName                      string
}

// SessionResponse answers SessionRequest with the address and the port to dial.
// On failure the destination's id, address and port are zero, which is written
// as an empty value. Manager to agent to instance.
type SessionResponse struct {
	Header
	SourceServiceName                 string
	SourceServiceInstanceID           InstanceID
	DestServiceName                   string
	DestServiceInstanceID             InstanceID
	DestSocketName                    string
	DestServiceInstanceNetworkAddress netip.Addr
	DestSocketPort                    uint16
	Status                            Status
}

// SessionAck completes a session set-up with the two ports of the connection,
// or says that the dial failed; then the ports are zero, which is written as
// an empty value. Instance to agent to Manager.
type SessionAck struct {
	Header
	SourceServiceName       string
	SourceServiceInstanceID InstanceID
	SourcePlugPort          uint16
	DestSocketNewPort       uint16
	Status                  Status
}

// SourceSessionCloseInfo reports that a session ended, from its client's end:
// source_service_session_close_info. Instance to agent to Manager.
type SourceSessionCloseInfo struct {
	Header
	SourceServiceName                   string
	SourceServiceInstanceID             InstanceID
	SourceServiceInstanceNetworkAddress netip.Addr
	SourcePlugName                      string
	SourcePlugPort                      uint16
	DestServiceName                     string
	DestServiceInstanceID               InstanceID
	DestServiceInstanceNetworkAddress   netip.Addr
	DestSocketName                      string
	DestSocketPort                      uint16
	DestSocketNewPort                   uint16
	Status                              Status
}

// DestSessionCloseInfo reports that a session ended, from its server's end:
// dest_service_session_close_info. The server knows of its peer only the
// address and the port, so SourcePlugName may be empty. Instance to agent to
// Manager.
type DestSessionCloseInfo struct {
	Header
	SourceServiceInstanceNetworkAddress netip.Addr
	SourcePlugName                      string
	SourcePlugPort                      uint16
	DestServiceName                     string
	DestServiceInstanceNetworkAddress   netip.Addr
	DestServiceInstanceID               InstanceID
	DestSocketName                      string
	DestSocketPort                      uint16
	DestSocketNewPort                   uint16
	Status                              Status
}

// SourceSessionCloseRequest asks the client's end to close a session:
// source_service_session_close_request. Manager to agent to instance.
type SourceSessionCloseRequest struct {
	Header
	SourceServiceName                   string
	SourceServiceInstanceID             InstanceID
	SourceServiceInstanceNetworkAddress netip.Addr
	SourcePlugName                      string
	SourcePlugPort                      uint16
	DestServiceName                     string
	DestServiceInstanceNetworkAddress   netip.Addr
	DestSocketName                      string
	DestSocketPort                      uint16
	DestSocketNewPort                   uint16
}

// SourceSessionCloseResponse answers SourceSessionCloseRequest. Instance to
// agent to Manager.
type SourceSessionCloseResponse struct {
	Header
	Status Status
}

// DestSessionCloseRequest asks the server's end to close a session, when the
// client's end cannot: dest_service_session_close_request. Manager to agent to
// instance.
type DestSessionCloseRequest struct {
	Header
	DestServiceName                     string
	DestServiceInstanceID               InstanceID
	DestServiceInstanceNetworkAddress   netip.Addr
	SourceServiceInstanceNetworkAddress netip.Addr
	SourcePlugName                      string
	SourcePlugPort                      uint16
	DestSocketName                      string
	DestSocketPort                      uint16
	DestSocketNewPort                   uint16
}

// DestSessionCloseResponse answers DestSessionCloseRequest. Instance to agent
// to Manager.
type DestSessionCloseResponse struct {
	Header
	Status Status
}

// GracefulShutdownRequest asks an instance to finish and exit. Manager to agent
// to instance.
type GracefulShutdownRequest struct {
	Header
	ServiceName       string
	ServiceInstanceID InstanceID
}

// GracefulShutdownResponse is sent just before the instance exits. Instance to
// agent to Manager.
type GracefulShutdownResponse struct {
	Header
	Status Status
}

// HardShutdownRequest has the agent kill an instance with all its children.
// Manager to agent.
type HardShutdownRequest struct {
	Header
	ServiceName       string
	ServiceInstanceID InstanceID
}

// HardShutdownResponse answers HardShutdownRequest when nothing of the
// instance runs any more. Agent to Manager.
type HardShutdownResponse struct {
	Header
	ServiceInstanceID InstanceID
	Status            Status
}

// TerminationInfo says that an instance ends by its own business logic, or,
// when its agent sends it, that its process ended: it is
// service_instance_termination_info. Instance to agent to Manager.
type TerminationInfo struct {
	Header
	ServiceName                   string
	ServiceInstanceID             InstanceID
	ServiceInstanceNetworkAddress netip.Addr
}

// InstanceHealthRequest asks an instance for its health:
// service_instance_health_request. Manager to agent to instance.
type InstanceHealthRequest struct {
	Header
	ServiceInstanceID             InstanceID
	ServiceInstanceNetworkAddress netip.Addr
}

// InstanceHealthResponse answers InstanceHealthRequest; unsolicited and first
// on a connection it is the instance's hello (PROTOCOL section 3):
// service_instance_health_response. Instance to agent to Manager.
type InstanceHealthResponse struct {
	Header
	ServiceInstanceID InstanceID
	Status            Status
}

// AgentHealthRequest asks an agent for its health:
// agent_health_control_request. Manager to agent.
type AgentHealthRequest struct {
	Header
	AgentNetworkAddress netip.Addr
}

// AgentHealthResponse answers AgentHealthRequest:
// agent_health_control_response. Agent to Manager.
type AgentHealthResponse struct {
	Header
	AgentNetworkAddress netip.Addr
	Status              Status
}
