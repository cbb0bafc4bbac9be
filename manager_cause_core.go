package ssmmp

import "strconv"

// The Manager's core, continued: who did it, and what it follows from. The state
// has, for what may become a cause, the sequence number of its event.

// Actors that are no instance and no agent.
const (
	actorManager  = "Manager"
	actorOperator = "operator"
)

// A doer is who has the core decide what it decides now.
type doer struct {
	actor    string    // empty if it is reporter
	reporter *agent    // whose message is being handled
	asking   *instance // whose request is having another one started
	closing  *instance // whose report is closing a session
}

func (i *instance) actor() string { return "instance " + strconv.FormatInt(int64(i.id), 10) }

// blame fills in an event's Actor and CauseSeq, before it is applied.
func (c *ManagerCore) blame(ev *Event) {
	ev.Actor = c.doer.actor
	if a := c.doer.reporter; a != nil && c.doer.actor == "" {
		ev.Actor = a.actor
	}
	switch ev.Kind {
	case EventGraphUndeployed:
		ev.CauseSeq = c.app(ev.Graph).deployed

	case EventAgentAway, EventAgentLost:
		a := c.byAddr[ev.Node]
		if ev.CauseSeq = a.came; ev.Kind == EventAgentLost {
			ev.CauseSeq = a.gone
		}

	case EventInstanceRequested:
		ev.Actor = actorManager
		switch v := c.vertex(ev.Graph, ev.Vertex); {
		case c.doer.asking != nil:
			ev.Actor, ev.CauseSeq = c.doer.asking.actor(), c.doer.asking.began
		case v.ended != 0:
			ev.CauseSeq = v.ended
		default:
			ev.CauseSeq = v.app.deployed
		}

	case EventInstanceReady, EventHealthChanged:
		ev.CauseSeq = c.instances[ev.Instance].began

	case EventInstanceStopping:
		i := c.instances[ev.Instance]
		if c.doer.actor != actorOperator {
			ev.Actor = actorManager
		}
		switch {
		case i.v.app.retiring:
			ev.CauseSeq = i.v.app.undeployed
		case i.status == StatusFailed:
			ev.CauseSeq = i.unwell
		}

	case EventInstanceKilling:
		if c.doer.actor != actorOperator {
			ev.Actor = actorManager
		}
		ev.CauseSeq = c.instances[ev.Instance].end()

	case EventInstanceEnded:
		ev.CauseSeq = c.instances[ev.Instance].end()

	case EventSessionOffered, EventSessionRefused:
		ev.Actor = "" // its source
		if src := c.instances[ev.Source]; src != nil {
			ev.CauseSeq = src.began
		}

	case EventSessionOpened:
		ev.Actor = ""

	case EventSessionClosing, EventSessionClosed:
		src, dst := c.instances[ev.Source], c.instances[ev.Destination]
		if c.doer.reporter == nil && c.doer.actor != actorOperator {
			ev.Actor = actorManager
		}
		switch c.doer.closing {
		case src:
			ev.Actor = ""
		case dst:
			ev.Actor = dst.actor()
		default:
			ev.CauseSeq = max(src.end(), dst.end())
		}
	}
}

// end is what an instance's end follows from, 0 if there is nothing.
func (i *instance) end() uint64 {
	if i.stopping == 0 && i.a.lost {
		return i.a.gone
	}
	return i.stopping
}

// note keeps the number of an event that may become a cause, after it was
// applied. In a checkpoint an event has in CauseSeq the number of the one that it
// stands for.
func (c *ManagerCore) note(ev *Event) {
	seq := ev.Seq
	if c.restoring {
		seq = ev.CauseSeq
	}
	switch ev.Kind {
	case EventGraphDeployed:
		c.app(ev.Graph).deployed = seq
	case EventGraphUndeployed:
		if app := c.app(ev.Graph); app != nil {
			app.undeployed = seq
		}
	case EventAgentRegistered:
		a := c.byAddr[ev.Node]
		a.came, a.gone = seq, 0
	case EventAgentAway, EventAgentLost:
		c.byAddr[ev.Node].gone = seq
	case EventInstanceRequested:
		c.instances[ev.Instance].began = seq
	case EventInstanceStopping:
		c.instances[ev.Instance].stopping = seq
	case EventInstanceEnded:
		if v := c.vertex(ev.Graph, ev.Vertex); v != nil {
			v.ended = seq
		}
	case EventHealthChanged:
		c.instances[ev.Instance].unwell = seq
	}
}
