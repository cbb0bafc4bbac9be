package ssmmp

import (
	"slices"
	"strconv"
	"strings"
)

// Extension lines that this library sends (PROTOCOL section 2). Nothing that
// SSMMP/1.1 specifies depends on one.
const (
	extAgent     = "x_agent"     // initiation_request: identity of the agent's process
	extInstances = "x_instances" // initiation_request: the ids of what it runs, "7, +2" for 7 and 9
	extAgain     = "x_again"     // close info: it may have been sent before; the id of the session_request, or 0
	extAsk       = "x_ask"       // close request: nothing is to be closed, only to be said whether it is open
	extHeard     = "x_heard"     // initiation_response, agent_health_control_request: the last health answer that the Manager has; service_instance_health_request: how many reports
	extExit      = "x_exit"      // termination_info: exit code or signal
	extEpoch     = "x_epoch"     // initiation_response, agent_health_control_request: which Manager of several; the greatest counts; initiation_request: the greatest so far
	extReason    = "x_reason"    // failures: more for a person
	extSecret    = "x_secret"    // hello: proves that the instance is who it says
	extSessions  = "x_sessions"  // service_instance_health_response: of how many open sessions it is the source
	extSilence   = "x_silence"   // initiation_response: after how many milliseconds without a word the Manager is gone
)

// reason returns the extension line that explains a failure.
func reason(why string) []Extension {
	clean := func(r rune) rune {
		if r == '~' || r < ' ' {
			return ' '
		}
		return r
	}
	return []Extension{{extReason, clip(strings.TrimSpace(strings.Map(clean, why)))}}
}

// formatInstanceList writes ids in their order, each after the first as what it
// is greater by: a line has room for all that a node may run.
func formatInstanceList(ids []InstanceID) string {
	slices.Sort(ids)
	var b []byte
	for i, id := range ids {
		if i > 0 {
			b, id = append(b, ", +"...), id-ids[i-1]
		}
		b = strconv.AppendInt(b, int64(id), 10)
	}
	return string(b)
}

// parseInstanceList reads such a list, in which ids may also stand as they are.
func parseInstanceList(s string) ([]InstanceID, error) {
	if s == "" {
		return nil, nil
	}
	var ids []InstanceID
	for _, part := range strings.Split(s, ", ") {
		id, err := strconv.ParseInt(part, 10, 64)
		if part[:min(1, len(part))] == "+" && len(ids) > 0 {
			id += int64(ids[len(ids)-1]) // beyond the greatest it becomes negative
		}
		if err != nil || id <= 0 {
			return nil, &ProtocolError{Status: StatusBadMessage, Type: TypeInitiationRequest.String(), Field: extInstances, Value: clip(part), Reason: "not an instance id"}
		}
		ids = append(ids, InstanceID(id))
	}
	return ids, nil
}
