package ssmmp

import (
	"fmt"
	"slices"
)

// A route is one hop of a message type's way.
type route struct {
	sub  SubType // its value of sub_type; empty where the type has none
	from Actor
	to   Actor
}

// routes holds the hops of each type, in the order in which a message takes
// them.
var routes = [numTypes][]route{
	TypeInitiationRequest:          {{"", ActorAgent, ActorManager}},
	TypeInitiationResponse:         {{"", ActorManager, ActorAgent}},
	TypeExecutionRequest:           {{"", ActorManager, ActorAgent}},
	TypeExecutionResponse:          {{"", ActorAgent, ActorManager}},
	TypeSessionRequest:             {{ServiceToAgent, ActorInstance, ActorAgent}, {AgentToManager, ActorAgent, ActorManager}},
	TypeSessionResponse:            {{ManagerToAgent, ActorManager, ActorAgent}, {AgentToService, ActorAgent, ActorInstance}},
	TypeSessionAck:                 {{ServiceToAgent, ActorInstance, ActorAgent}, {AgentToManager, ActorAgent, ActorManager}},
	TypeSourceSessionCloseInfo:     {{SourceServiceToAgent, ActorInstance, ActorAgent}, {AgentToManager, ActorAgent, ActorManager}},
	TypeDestSessionCloseInfo:       {{DestServiceToAgent, ActorInstance, ActorAgent}, {AgentToManager, ActorAgent, ActorManager}},
	TypeSourceSessionCloseRequest:  {{ManagerToAgent, ActorManager, ActorAgent}, {AgentToSourceService, ActorAgent, ActorInstance}},
	TypeSourceSessionCloseResponse: {{SourceServiceToAgent, ActorInstance, ActorAgent}, {AgentToManager, ActorAgent, ActorManager}},
	TypeDestSessionCloseRequest:    {{ManagerToAgent, ActorManager, ActorAgent}, {AgentToDestService, ActorAgent, ActorInstance}},
	TypeDestSessionCloseResponse:   {{DestServiceToAgent, ActorInstance, ActorAgent}, {AgentToManager, ActorAgent, ActorManager}},
	TypeGracefulShutdownRequest:    {{ManagerToAgent, ActorManager, ActorAgent}, {AgentToServiceInstance, ActorAgent, ActorInstance}},
	TypeGracefulShutdownResponse:   {{ServiceInstanceToAgent, ActorInstance, ActorAgent}, {AgentToManager, ActorAgent, ActorManager}},
	TypeHardShutdownRequest:        {{ManagerToAgent, ActorManager, ActorAgent}},
	TypeHardShutdownResponse:       {{AgentToManager, ActorAgent, ActorManager}},
	TypeTerminationInfo:            {{ServiceInstanceToAgent, ActorInstance, ActorAgent}, {AgentToManager, ActorAgent, ActorManager}},
	TypeInstanceHealthRequest:      {{ManagerToAgent, ActorManager, ActorAgent}, {AgentToServiceInstance, ActorAgent, ActorInstance}},
	TypeInstanceHealthResponse:     {{ServiceInstanceToAgent, ActorInstance, ActorAgent}, {AgentToManager, ActorAgent, ActorManager}},
	TypeAgentHealthRequest:         {{ManagerToAgent, ActorManager, ActorAgent}},
	TypeAgentHealthResponse:        {{AgentToManager, ActorAgent, ActorManager}},
}

// CheckHop returns a *ProtocolError when a message of m's type and sub_type
// does not travel from one actor to the other (PROTOCOL section 2).
func CheckHop(m Message, from, to Actor) error {
	t, h := m.Type(), m.Head()
	for _, r := range routes[t] {
		if r.sub == h.SubType && r.from == from && r.to == to {
			return nil
		}
	}
	err := &ProtocolError{
		Status:    StatusBadMessage,
		Type:      t.String(),
		MessageID: h.MessageID,
		Line:      1,
		Field:     "type",
		Value:     t.String(),
		Reason:    fmt.Sprintf("does not travel from %s to %s", from, to),
	}
	if hasSubType(t) {
		err.Line, err.Field, err.Value = 3, lineNames[lineSubType], clip(string(h.SubType))
	}
	return err
}

// travels reports whether messages of the type with that name go from one actor
// to the other.
func travels(name string, from, to Actor) bool {
	t := slices.Index(typeNames[:], name)
	return t > 0 && slices.ContainsFunc(routes[t], func(r route) bool { return r.from == from && r.to == to })
}

// hasSubType reports whether messages of type t have the line sub_type.
func hasSubType(t Type) bool { return routes[t][0].sub != "" }

// subTypeOf returns the canonical form of a sub_type of type t, or ok false.
// On a hop to an instance agent_to_service stands for the type's own value, as
// in the published code (PROTOCOL section 2).
func subTypeOf(t Type, s string) (sub SubType, ok bool) {
	for _, r := range routes[t] {
		if string(r.sub) == s || r.to == ActorInstance && s == string(AgentToService) {
			return r.sub, true
		}
	}
	return "", false
}
