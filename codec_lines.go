package ssmmp

// A line is one of the lines that SSMMP/1.1 specifies after message_id.
type line uint8

const (
	lineSubType line = iota
	lineAgentNetworkAddress
	lineSourceServiceInstanceNetworkAddress
	lineDestServiceInstanceNetworkAddress
	lineServiceInstanceNetworkAddress
	lineServiceRepository
	lineSocketConfiguration
	linePlugConfiguration
	lineServiceName
	lineSourceServiceName
	lineDestServiceName
	lineSourcePlugName
	lineDestSocketName
	lineServiceInstanceID
	lineSourceServiceInstanceID
	lineDestServiceInstanceID
	lineSourcePlugPort
	lineDestSocketPort
	lineDestSocketNewPort
	lineStatus

	numLines = int(lineStatus) + 1
)

// separator stands between two lines of a message on a stream.
const separator = " ~ "

var lineNames = [numLines]string{
	lineSubType:                             "sub_type",
	lineAgentNetworkAddress:                 "agent_network_address",
	lineSourceServiceInstanceNetworkAddress: "source_service_instance_network_address",
	lineDestServiceInstanceNetworkAddress:   "dest_service_instance_network_address",
	lineServiceInstanceNetworkAddress:       "service_instance_network_address",
	lineServiceRepository:                   "service_repository",
	lineSocketConfiguration:                 "socket_configuration",
	linePlugConfiguration:                   "plug_configuration",
	lineServiceName:                         "service_name",
	lineSourceServiceName:                   "source_service_name",
	lineDestServiceName:                     "dest_service_name",
	lineSourcePlugName:                      "source_plug_name",
	lineDestSocketName:                      "dest_socket_name",
	lineServiceInstanceID:                   "service_instance_id",
	lineSourceServiceInstanceID:             "source_service_instance_id",
	lineDestServiceInstanceID:               "dest_service_instance_id",
	lineSourcePlugPort:                      "source_plug_port",
	lineDestSocketPort:                      "dest_socket_port",
	lineDestSocketNewPort:                   "dest_socket_new_port",
	lineStatus:                              "status",
}

// keys holds what stands before the contents of each line, with the separator
// that ends the line before it.
var keys = func() (k [numLines]string) {
	for l, name := range lineNames {
		k[l] = separator + name + ": "
	}
	return k
}()

// specified returns the lines of a type after sub_type, in their order.
func specified(t Type) []line {
	c := codec{mode: listing}
	visit(newMessage(t), &c)
	return c.list
}

func (m *InitiationRequest) lines(c *codec) {
	c.addr(lineAgentNetworkAddress, &m.AgentNetworkAddress)
	c.names(lineServiceRepository, &m.ServiceRepository)
}

func (m *InitiationResponse) lines(c *codec) {
	c.status(lineStatus, &m.Status)
}

func (m *ExecutionRequest) lines(c *codec) {
	c.addr(lineAgentNetworkAddress, &m.AgentNetworkAddress)
	c.name(lineServiceName, &m.ServiceName)
	c.id(lineServiceInstanceID, &m.ServiceInstanceID)
	c.sockets(lineSocketConfiguration, &m.SocketConfiguration)
	c.plugs(linePlugConfiguration, &m.PlugConfiguration)
}

func (m *ExecutionResponse) lines(c *codec) {
	c.status(lineStatus, &m.Status)
}

func (m *SessionRequest) lines(c *codec) {
	c.name(lineSourceServiceName, &m.SourceServiceName)
	c.id(lineSourceServiceInstanceID, &m.SourceServiceInstanceID)
	c.addr(lineSourceServiceInstanceNetworkAddress, &m.SourceServiceInstanceNetworkAddress)
	c.name(lineSourcePlugName, &m.SourcePlugName)
	c.name(lineDestServiceName, &m.DestServiceName)
	c.name(lineDestSocketName, &m.DestSocketName)
}

func (m *SessionResponse) lines(c *codec) {
	c.name(lineSourceServiceName, &m.SourceServiceName)
	c.id(lineSourceServiceInstanceID, &m.SourceServiceInstanceID)
	c.name(lineDestServiceName, &m.DestServiceName)
	c.idOrEmpty(lineDestServiceInstanceID, &m.DestServiceInstanceID)
	c.name(lineDestSocketName, &m.DestSocketName)
	c.addrOrEmpty(lineDestServiceInstanceNetworkAddress, &m.DestServiceInstanceNetworkAddress)
	c.portOrEmpty(lineDestSocketPort, &m.DestSocketPort)
	c.status(lineStatus, &m.Status)
	if m.Status.Success() {
		c.need(lineDestServiceInstanceID, m.DestServiceInstanceID != 0)
		c.need(lineDestServiceInstanceNetworkAddress, m.DestServiceInstanceNetworkAddress.IsValid())
		c.need(lineDestSocketPort, m.DestSocketPort != 0)
	}
}

func (m *SessionAck) lines(c *codec) {
	c.name(lineSourceServiceName, &m.SourceServiceName)
	c.id(lineSourceServiceInstanceID, &m.SourceServiceInstanceID)
	c.ackPort(lineSourcePlugPort, &m.SourcePlugPort)
	c.ackPort(lineDestSocketNewPort, &m.DestSocketNewPort)
	c.status(lineStatus, &m.Status)
	if m.Status.Success() {
		c.need(lineSourcePlugPort, m.SourcePlugPort != 0)
		c.need(lineDestSocketNewPort, m.DestSocketNewPort != 0)
	}
}

func (m *SourceSessionCloseInfo) lines(c *codec) {
	c.name(lineSourceServiceName, &m.SourceServiceName)
	c.id(lineSourceServiceInstanceID, &m.SourceServiceInstanceID)
	c.addr(lineSourceServiceInstanceNetworkAddress, &m.SourceServiceInstanceNetworkAddress)
	c.name(lineSourcePlugName, &m.SourcePlugName)
	c.port(lineSourcePlugPort, &m.SourcePlugPort)
	c.name(lineDestServiceName, &m.DestServiceName)
	c.id(lineDestServiceInstanceID, &m.DestServiceInstanceID)
	c.addr(lineDestServiceInstanceNetworkAddress, &m.DestServiceInstanceNetworkAddress)
	c.name(lineDestSocketName, &m.DestSocketName)
	c.port(lineDestSocketPort, &m.DestSocketPort)
	c.port(lineDestSocketNewPort, &m.DestSocketNewPort)
	c.status(lineStatus, &m.Status)
}

func (m *DestSessionCloseInfo) lines(c *codec) {
	c.addr(lineSourceServiceInstanceNetworkAddress, &m.SourceServiceInstanceNetworkAddress)
	c.nameOrEmpty(lineSourcePlugName, &m.SourcePlugName)
	c.port(lineSourcePlugPort, &m.SourcePlugPort)
	c.name(lineDestServiceName, &m.DestServiceName)
	c.addr(lineDestServiceInstanceNetworkAddress, &m.DestServiceInstanceNetworkAddress)
	c.id(lineDestServiceInstanceID, &m.DestServiceInstanceID)
	c.name(lineDestSocketName, &m.DestSocketName)
	c.port(lineDestSocketPort, &m.DestSocketPort)
	c.port(lineDestSocketNewPort, &m.DestSocketNewPort)
	c.status(lineStatus, &m.Status)
}

func (m *SourceSessionCloseRequest) lines(c *codec) {
	c.name(lineSourceServiceName, &m.SourceServiceName)
	c.id(lineSourceServiceInstanceID, &m.SourceServiceInstanceID)
	c.addr(lineSourceServiceInstanceNetworkAddress, &m.SourceServiceInstanceNetworkAddress)
	c.name(lineSourcePlugName, &m.SourcePlugName)
	c.port(lineSourcePlugPort, &m.SourcePlugPort)
	c.name(lineDestServiceName, &m.DestServiceName)
	c.addr(lineDestServiceInstanceNetworkAddress, &m.DestServiceInstanceNetworkAddress)
	c.name(lineDestSocketName, &m.DestSocketName)
	c.port(lineDestSocketPort, &m.DestSocketPort)
	c.port(lineDestSocketNewPort, &m.DestSocketNewPort)
}

func (m *SourceSessionCloseResponse) lines(c *codec) {
	c.status(lineStatus, &m.Status)
}

func (m *DestSessionCloseRequest) lines(c *codec) {
	c.name(lineDestServiceName, &m.DestServiceName)
	c.id(lineDestServiceInstanceID, &m.DestServiceInstanceID)
	c.addr(lineDestServiceInstanceNetworkAddress, &m.DestServiceInstanceNetworkAddress)
	c.addr(lineSourceServiceInstanceNetworkAddress, &m.SourceServiceInstanceNetworkAddress)
	c.name(lineSourcePlugName, &m.SourcePlugName)
	c.port(lineSourcePlugPort, &m.SourcePlugPort)
	c.name(lineDestSocketName, &m.DestSocketName)
	c.port(lineDestSocketPort, &m.DestSocketPort)
	c.port(lineDestSocketNewPort, &m.DestSocketNewPort)
}

func (m *DestSessionCloseResponse) lines(c *codec) {
	c.status(lineStatus, &m.Status)
}

func (m *GracefulShutdownRequest) lines(c *codec) {
	c.name(lineServiceName, &m.ServiceName)
	c.id(lineServiceInstanceID, &m.ServiceInstanceID)
}

func (m *GracefulShutdownResponse) lines(c *codec) {
	c.status(lineStatus, &m.Status)
}

func (m *HardShutdownRequest) lines(c *codec) {
	c.name(lineServiceName, &m.ServiceName)
	c.id(lineServiceInstanceID, &m.ServiceInstanceID)
}

func (m *HardShutdownResponse) lines(c *codec) {
	c.id(lineServiceInstanceID, &m.ServiceInstanceID)
	c.status(lineStatus, &m.Status)
}

func (m *TerminationInfo) lines(c *codec) {
	c.name(lineServiceName, &m.ServiceName)
	c.id(lineServiceInstanceID, &m.ServiceInstanceID)
	c.addr(lineServiceInstanceNetworkAddress, &m.ServiceInstanceNetworkAddress)
}

func (m *InstanceHealthRequest) lines(c *codec) {
	c.id(lineServiceInstanceID, &m.ServiceInstanceID)
	c.addr(lineServiceInstanceNetworkAddress, &m.ServiceInstanceNetworkAddress)
}

func (m *InstanceHealthResponse) lines(c *codec) {
	c.id(lineServiceInstanceID, &m.ServiceInstanceID)
	c.status(lineStatus, &m.Status)
}

func (m *AgentHealthRequest) lines(c *codec) {
	c.addr(lineAgentNetworkAddress, &m.AgentNetworkAddress)
}

func (m *AgentHealthResponse) lines(c *codec) {
	c.addr(lineAgentNetworkAddress, &m.AgentNetworkAddress)
	c.status(lineStatus, &m.Status)
}

// visit calls m's method lines. It does so by name, not through the interface,
// so that c can stay on its owner's stack.
func visit(m Message, c *codec) {
	switch m := m.(type) {
	case *InitiationRequest:
		m.lines(c)
	case *InitiationResponse:
		m.lines(c)
	case *ExecutionRequest:
		m.lines(c)
	case *ExecutionResponse:
		m.lines(c)
	case *SessionRequest:
		m.lines(c)
	case *SessionResponse:
		m.lines(c)
	case *SessionAck:
		m.lines(c)
	case *SourceSessionCloseInfo:
		m.lines(c)
	case *DestSessionCloseInfo:
		m.lines(c)
	case *SourceSessionCloseRequest:
		m.lines(c)
	case *SourceSessionCloseResponse:
		m.lines(c)
	case *DestSessionCloseRequest:
		m.lines(c)
	case *DestSessionCloseResponse:
		m.lines(c)
	case *GracefulShutdownRequest:
		m.lines(c)
	case *GracefulShutdownResponse:
		m.lines(c)
	case *HardShutdownRequest:
		m.lines(c)
	case *HardShutdownResponse:
		m.lines(c)
	case *TerminationInfo:
		m.lines(c)
	case *InstanceHealthRequest:
		m.lines(c)
	case *InstanceHealthResponse:
		m.lines(c)
	case *AgentHealthRequest:
		m.lines(c)
	case *AgentHealthResponse:
		m.lines(c)
	default:
		c.failAt(1, "type", m.Type().String(), "not a message of this package")
	}
}

func newMessage(t Type) Message {
	switch t {
	case TypeInitiationRequest:
		return new(InitiationRequest)
	case TypeInitiationResponse:
		return new(InitiationResponse)
	case TypeExecutionRequest:
		return new(ExecutionRequest)
	case TypeExecutionResponse:
		return new(ExecutionResponse)
	case TypeSessionRequest:
		return new(SessionRequest)
	case TypeSessionResponse:
		return new(SessionResponse)
	case TypeSessionAck:
		return new(SessionAck)
	case TypeSourceSessionCloseInfo:
		return new(SourceSessionCloseInfo)
	case TypeDestSessionCloseInfo:
		return new(DestSessionCloseInfo)
	case TypeSourceSessionCloseRequest:
		return new(SourceSessionCloseRequest)
	case TypeSourceSessionCloseResponse:
		return new(SourceSessionCloseResponse)
	case TypeDestSessionCloseRequest:
		return new(DestSessionCloseRequest)
	case TypeDestSessionCloseResponse:
		return new(DestSessionCloseResponse)
	case TypeGracefulShutdownRequest:
		return new(GracefulShutdownRequest)
	case TypeGracefulShutdownResponse:
		return new(GracefulShutdownResponse)
	case TypeHardShutdownRequest:
		return new(HardShutdownRequest)
	case TypeHardShutdownResponse:
		return new(HardShutdownResponse)
	case TypeTerminationInfo:
		return new(TerminationInfo)
	case TypeInstanceHealthRequest:
		return new(InstanceHealthRequest)
	case TypeInstanceHealthResponse:
		return new(InstanceHealthResponse)
	case TypeAgentHealthRequest:
		return new(AgentHealthRequest)
	case TypeAgentHealthResponse:
		return new(AgentHealthResponse)
	default:
		return nil
	}
}
