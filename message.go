package ssmmp

import (
	"net/netip"
	"strconv"
)

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

var typeNames = [numTypes]string{
	TypeInitiationRequest:          "initiation_request",
	TypeInitiationResponse:         "initiation_response",
	TypeExecutionRequest:           "execution_request",
	TypeExecutionResponse:          "execution_response",
	TypeSessionRequest:             "session_request",
	TypeSessionResponse:            "session_response",
	TypeSessionAck:                 "session_ack",
	TypeSourceSessionCloseInfo:     "source_service_session_close_info",
	TypeDestSessionCloseInfo:       "dest_service_session_close_info",
	TypeSourceSessionCloseRequest:  "source_service_session_close_request",
	TypeSourceSessionCloseResponse: "source_service_session_close_response",
	TypeDestSessionCloseRequest:    "dest_service_session_close_request",
	TypeDestSessionCloseResponse:   "dest_service_session_close_response",
	TypeGracefulShutdownRequest:    "graceful_shutdown_request",
	TypeGracefulShutdownResponse:   "graceful_shutdown_response",
	TypeHardShutdownRequest:        "hard_shutdown_request",
	TypeHardShutdownResponse:       "hard_shutdown_response",
	TypeTerminationInfo:            "service_instance_termination_info",
	TypeInstanceHealthRequest:      "service_instance_health_request",
	TypeInstanceHealthResponse:     "service_instance_health_response",
	TypeAgentHealthRequest:         "agent_health_control_request",
	TypeAgentHealthResponse:        "agent_health_control_response",
}

// String returns the contents of the message's line type, such as
// "session_request".
func (t Type) String() string {
	if t == 0 || int(t) >= numTypes {
		return "Type(" + strconv.Itoa(int(t)) + ")"
	}
	return typeNames[t]
}

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

// String returns "manager", "agent" or "instance".
func (a Actor) String() string {
	switch a {
	case ActorManager:
		return "manager"
	case ActorAgent:
		return "agent"
	case ActorInstance:
		return "instance"
	default:
		return "Actor(" + strconv.Itoa(int(a)) + ")"
	}
}

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

	// lines shows the codec every line that is the type's own, in the order
	// of the specification.
	lines(c *codec)
	// shallow returns a copy that shares strings and lists.
	shallow() Message
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

// Type returns TypeInitiationRequest.
func (*InitiationRequest) Type() Type { return TypeInitiationRequest }

// Type returns TypeInitiationResponse.
func (*InitiationResponse) Type() Type { return TypeInitiationResponse }

// Type returns TypeExecutionRequest.
func (*ExecutionRequest) Type() Type { return TypeExecutionRequest }

// Type returns TypeExecutionResponse.
func (*ExecutionResponse) Type() Type { return TypeExecutionResponse }

// Type returns TypeSessionRequest.
func (*SessionRequest) Type() Type { return TypeSessionRequest }

// Type returns TypeSessionResponse.
func (*SessionResponse) Type() Type { return TypeSessionResponse }

// Type returns TypeSessionAck.
func (*SessionAck) Type() Type { return TypeSessionAck }

// Type returns TypeSourceSessionCloseInfo.
func (*SourceSessionCloseInfo) Type() Type { return TypeSourceSessionCloseInfo }

// Type returns TypeDestSessionCloseInfo.
func (*DestSessionCloseInfo) Type() Type { return TypeDestSessionCloseInfo }

// Type returns TypeSourceSessionCloseRequest.
func (*SourceSessionCloseRequest) Type() Type { return TypeSourceSessionCloseRequest }

// Type returns TypeSourceSessionCloseResponse.
func (*SourceSessionCloseResponse) Type() Type { return TypeSourceSessionCloseResponse }

// Type returns TypeDestSessionCloseRequest.
func (*DestSessionCloseRequest) Type() Type { return TypeDestSessionCloseRequest }

// Type returns TypeDestSessionCloseResponse.
func (*DestSessionCloseResponse) Type() Type { return TypeDestSessionCloseResponse }

// Type returns TypeGracefulShutdownRequest.
func (*GracefulShutdownRequest) Type() Type { return TypeGracefulShutdownRequest }

// Type returns TypeGracefulShutdownResponse.
func (*GracefulShutdownResponse) Type() Type { return TypeGracefulShutdownResponse }

// Type returns TypeHardShutdownRequest.
func (*HardShutdownRequest) Type() Type { return TypeHardShutdownRequest }

// Type returns TypeHardShutdownResponse.
func (*HardShutdownResponse) Type() Type { return TypeHardShutdownResponse }

// Type returns TypeTerminationInfo.
func (*TerminationInfo) Type() Type { return TypeTerminationInfo }

// Type returns TypeInstanceHealthRequest.
func (*InstanceHealthRequest) Type() Type { return TypeInstanceHealthRequest }

// Type returns TypeInstanceHealthResponse.
func (*InstanceHealthResponse) Type() Type { return TypeInstanceHealthResponse }

// Type returns TypeAgentHealthRequest.
func (*AgentHealthRequest) Type() Type { return TypeAgentHealthRequest }

// Type returns TypeAgentHealthResponse.
func (*AgentHealthResponse) Type() Type { return TypeAgentHealthResponse }

func (m *InitiationRequest) shallow() Message          { c := *m; return &c }
func (m *InitiationResponse) shallow() Message         { c := *m; return &c }
func (m *ExecutionRequest) shallow() Message           { c := *m; return &c }
func (m *ExecutionResponse) shallow() Message          { c := *m; return &c }
func (m *SessionRequest) shallow() Message             { c := *m; return &c }
func (m *SessionResponse) shallow() Message            { c := *m; return &c }
func (m *SessionAck) shallow() Message                 { c := *m; return &c }
func (m *SourceSessionCloseInfo) shallow() Message     { c := *m; return &c }
func (m *DestSessionCloseInfo) shallow() Message       { c := *m; return &c }
func (m *SourceSessionCloseRequest) shallow() Message  { c := *m; return &c }
func (m *SourceSessionCloseResponse) shallow() Message { c := *m; return &c }
func (m *DestSessionCloseRequest) shallow() Message    { c := *m; return &c }
func (m *DestSessionCloseResponse) shallow() Message   { c := *m; return &c }
func (m *GracefulShutdownRequest) shallow() Message    { c := *m; return &c }
func (m *GracefulShutdownResponse) shallow() Message   { c := *m; return &c }
func (m *HardShutdownRequest) shallow() Message        { c := *m; return &c }
func (m *HardShutdownResponse) shallow() Message       { c := *m; return &c }
func (m *TerminationInfo) shallow() Message            { c := *m; return &c }
func (m *InstanceHealthRequest) shallow() Message      { c := *m; return &c }
func (m *InstanceHealthResponse) shallow() Message     { c := *m; return &c }
func (m *AgentHealthRequest) shallow() Message         { c := *m; return &c }
func (m *AgentHealthResponse) shallow() Message        { c := *m; return &c }
