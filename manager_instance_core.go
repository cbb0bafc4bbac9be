package ssmmp

import (
	"fmt"
	"slices"
	"strings"
)

// The Manager's core, continued: the life of instances.

// start requests a new instance at a vertex and returns it, or the status that
// says why none can be.
func (c *ManagerCore) start(v *vertex, cause string) (*instance, Status) {
	if c.now < v.notBefore || v.app.retiring {
		return nil, StatusUnavailable
	}
	a, status := c.place(v)
	if a == nil {
		return nil, status
	}
	id := c.lastInstance + 1
	var sockets []SocketPort
	next := a.ports.next
	for _, s := range v.sockets {
		port := s.Port
		if port == 0 {
			// place made sure that there are enough, so none is missing here.
			port = a.ports.find(next, c.now)
			next = a.ports.after(port)
		}
		sockets = append(sockets, SocketPort{s.Name, port})
	}
	c.record(Event{Kind: EventInstanceRequested, Graph: v.app.name, Vertex: v.name, Service: v.service,
		Instance: id, Node: a.addr, Sockets: sockets, Cause: cause})
	i := c.instances[id]
	c.execute(i)
	return i, 0
}

// execute has an instance executed by its agent, which has its own deadline for
// the start; the Manager's comes after.
func (c *ManagerCore) execute(i *instance) {
	c.request(i.a, &ExecutionRequest{
		AgentNetworkAddress: i.a.addr, ServiceName: i.v.service, ServiceInstanceID: i.id, SocketConfiguration: i.sockets, PlugConfiguration: i.v.plugs,
	}, TypeExecutionResponse, c.cfg.StartTimeout+c.cfg.RequestTimeout, func(s Status) { c.started(i, s) })
	i.execute = c.lastMessage
}

// started handles the outcome of an execution_request.
func (c *ManagerCore) started(i *instance, s Status) {
	switch {
	case !i.live():
	case s.Success():
		if i.state == instanceStarting {
			c.record(c.about(i, Event{Kind: EventInstanceReady, Status: s}))
			c.serveWaiters(i)
			c.armIdle(i)
		}
	case s == StatusTimeout && i.state == instanceStarting:
		// It may still be starting: whatever is there must go.
		c.failWaiters(i, s)
		c.stop(i, true, "not ready in time", s)
	case i.state == instanceStarting:
		cause := "not started"
		if c.reason != "" {
			cause += ": " + c.reason
		}
		c.ended(i, s, cause)
	}
}

// about fills in what every event of an instance says.
func (c *ManagerCore) about(i *instance, ev Event) Event {
	ev.Graph, ev.Vertex, ev.Service = i.v.app.name, i.v.name, i.v.service
	ev.Instance, ev.Node = i.id, i.a.addr
	return ev
}

// shutdown begins to shut an instance down (PROTOCOL section 3, Graceful and
// Hard shutdown): its sessions close first. A hard shutdown overtakes a
// graceful one.
func (c *ManagerCore) shutdown(i *instance, hard bool, cause string) { c.stop(i, hard, cause, 0) }

// stop is shutdown for a reason that counts as a failure, if it is not 0.
func (c *ManagerCore) stop(i *instance, hard bool, cause string, failure Status) {
	if i.state == instanceStarting {
		hard = true // it has nothing to finish, and may not listen yet
	}
	switch {
	case i.state == instanceKilling || !i.live():
		return
	case i.state >= instanceDraining && !hard:
		return
	}
	if i.state < instanceDraining {
		c.record(c.about(i, Event{Kind: EventInstanceStopping, Status: failure, Cause: cause}))
		c.failWaiters(i, StatusUnavailable)
	}
	if hard {
		c.record(c.about(i, Event{Kind: EventInstanceKilling, Cause: cause}))
	}
	c.goOn(i)
}

// goOn does what the shutdown of an instance needs, in the state that it is in.
func (c *ManagerCore) goOn(i *instance) {
	if i.state == instanceKilling {
		c.closeFarEnds(i)
		c.after(c.cfg.RequestTimeout, func() { c.kill(i) })
	} else {
		c.eachSession(i, func(slot uint32) { c.closeSession(slot, i.why) })
		c.after(c.cfg.DrainTimeout, func() { c.shutdown(i, true, i.why) })
	}
	c.drained(i)
}

// drained goes on with the shutdown of an instance that has no session left.
func (c *ManagerCore) drained(i *instance) {
	if !i.live() || i.leaving || c.sessionsOf(i) > 0 {
		return
	}
	switch i.state {
	case instanceDraining:
		i.state = instanceStopping
		c.request(i.a, &GracefulShutdownRequest{Header: Header{SubType: ManagerToAgent}, ServiceName: i.v.service, ServiceInstanceID: i.id},
			TypeGracefulShutdownResponse, c.cfg.DrainTimeout, func(s Status) {
				if !s.Success() {
					c.shutdown(i, true, i.why)
				}
				// Else it is about to exit, and its agent says when it has.
			})
		c.after(c.cfg.DrainTimeout+c.cfg.RequestTimeout, func() { c.shutdown(i, true, i.why) })
	case instanceKilling:
		c.kill(i)
	}
}

// kill has the agent kill an instance, again and again until it says that
// nothing of it runs, or is lost.
func (c *ManagerCore) kill(i *instance) {
	if !i.live() || i.killSent {
		return
	}
	i.killSent = true
	c.eachSession(i, func(slot uint32) {
		c.sessionClosed(slot, StatusSessionBroken, "not closed before the shutdown of "+i.v.service)
	})
	c.request(i.a, &HardShutdownRequest{Header: Header{SubType: ManagerToAgent}, ServiceName: i.v.service, ServiceInstanceID: i.id},
		TypeHardShutdownResponse, c.cfg.RequestTimeout, func(s Status) {
			if !i.live() {
				return
			}
			if s.Success() || s == StatusNotFound || s == StatusGone {
				c.ended(i, StatusOK, i.why)
				return
			}
			c.after(c.cfg.RequestTimeout, func() { i.killSent = false; c.kill(i) })
		})
}

// termination handles the end of an instance that its agent reports.
func (c *ManagerCore) termination(a *agent, m *TerminationInfo) {
	i := c.instances[m.ServiceInstanceID]
	if i == nil {
		c.dropped++ // it has ended already
		return
	}
	if i.a != a || i.v.service != m.ServiceName {
		c.violation(a.conn, fmt.Sprintf("termination of instance %d, which is not its own", m.ServiceInstanceID))
		return
	}
	cause, status := "terminated by its business logic", StatusOK
	exit := clip(m.Extension(extExit))
	if exit != "" {
		if cause = "exit " + exit; exit != "0" {
			status = StatusFailed
		}
	}
	if i.state >= instanceDraining {
		cause, status = i.why, StatusOK
	}
	c.ended(i, status, cause)
}

// ended takes an instance out of the state. The far ends of its sessions are
// told to close; whoever lost one may ask for another.
func (c *ManagerCore) ended(i *instance, status Status, cause string) {
	if !i.live() || i.leaving {
		return
	}
	i.leaving = true
	if x := c.exchanges[i.execute]; x != nil {
		c.forget(x) // it is not to be executed after all
	}
	c.closeFarEnds(i)
	c.eachSession(i, func(slot uint32) { c.sessionClosed(slot, StatusSessionBroken, "its end "+i.v.service+" ended") })
	if i.failure != 0 {
		status = i.failure
	}
	waiters, ending := i.waiters, i.state >= instanceDraining
	i.waiters = nil
	c.record(c.about(i, Event{Kind: EventInstanceEnded, Status: status, Cause: cause}))

	if taken := status == StatusConflict; taken || ending {
		c.seekLater(waiters, taken)
		waiters = nil
	}
	for _, j := range i.v.instances {
		if j.state >= instanceDraining && len(j.waiters) > 0 {
			c.seekLater(j.waiters, false) // this one makes room before that one does
			j.waiters = nil
		}
	}
	for _, w := range waiters {
		if status.Success() {
			status = StatusUnavailable
		}
		c.refuse(w.src, w.edge, w.messageID, startFailure(status))
	}
	if i.v.app.retiring {
		c.retire(i.v.app)
	}
	c.restore()
}

// startFailure is the status that a session request gets when its destination
// could not be started: the agent's word, unless it has no meaning for a dial.
func startFailure(s Status) Status {
	if s >= 400 {
		return s
	}
	return StatusUnavailable
}

// backOff holds back starts at a vertex whose instances keep dying young. It is
// a part of evolve.
func (c *ManagerCore) backOff(i *instance, end *Event) {
	v, now := i.v, end.At
	if i.ready != 0 && now-i.ready >= c.cfg.QuickEnd || now-v.lastEnd > c.cfg.QuickEnd+c.cfg.BackOffTo {
		v.quickEnds = 0
	}
	v.quickEnds++
	v.lastEnd = now
	if n := v.quickEnds - c.cfg.QuickEnds; n >= 0 {
		wait := c.cfg.BackOffFrom
		for ; n > 0 && wait < c.cfg.BackOffTo; n-- {
			wait *= 2
		}
		v.notBefore = now + min(wait, c.cfg.BackOffTo)
	}
}

// restore starts the API Gateways that shall run and do not.
func (c *ManagerCore) restore() {
	if c.down == 0 {
		return
	}
	for _, app := range c.apps {
		if app.retiring {
			continue
		}
		for _, v := range app.gateways {
			if len(v.instances) > 0 {
				continue
			}
			if c.storm && v.lastNode != nil && v.lastNode.lost {
				continue // it may well run
			}
			if c.now < v.notBefore {
				if !v.restartArmed {
					v.restartArmed = true
					c.after(v.notBefore-c.now, func() { v.restartArmed = false; c.restore() })
				}
				continue
			}
			cause := "deployed"
			if v.lastNode != nil {
				cause = "started again"
			}
			c.start(v, cause)
		}
	}
}

// deployed tells whether the gateways of a graph run.
func (c *ManagerCore) deployed(name string) (bool, error) {
	app := c.app(name)
	if app == nil || app.retiring {
		return true, fmt.Errorf("deploy %q: undeployed meanwhile: %w", name, ErrRefused)
	}
	for _, v := range app.gateways {
		if !slices.ContainsFunc(v.instances, func(i *instance) bool { return i.state == instanceRunning }) {
			return false, nil
		}
	}
	return true, nil
}

// lacking says what a deployment still waits for.
func (c *ManagerCore) lacking(name string) string {
	app := c.app(name)
	if app == nil {
		return "not deployed"
	}
	var what []string
	for _, v := range app.gateways {
		switch {
		case len(v.instances) > 0 && v.instances[0].state == instanceRunning:
		case len(v.instances) > 0:
			what = append(what, fmt.Sprintf("API Gateway %s is %s", v.name, instanceStates[v.instances[0].state]))
		case c.now < v.notBefore:
			what = append(what, fmt.Sprintf("API Gateway %s keeps ending; next start in %v", v.name, v.notBefore-c.now))
		default:
			_, s := c.place(v)
			what = append(what, fmt.Sprintf("API Gateway %s cannot be placed: %s", v.name, s))
		}
	}
	return strings.Join(what, "; ")
}

// retire shuts down what is left of an undeployed graph, from the gateways
// on: whoever dials goes before whom it dials.
func (c *ManagerCore) retire(app *cnapp) {
	depth := -1
	for _, v := range app.vertices {
		if len(v.instances) > 0 && (depth < 0 || v.depth < depth) {
			depth = v.depth
		}
	}
	for _, v := range app.vertices {
		if v.depth == depth && depth >= 0 {
			for _, i := range slices.Clone(v.instances) {
				c.shutdown(i, false, "undeployed")
			}
		}
	}
}

// armIdle has an instance shut down once it was without a session for long
// enough (PROTOCOL section 3, Idle). One timer is under way for each.
func (c *ManagerCore) armIdle(i *instance) {
	if c.cfg.IdleAfter < 0 || i.v.kind == Gateway || i.idleArmed || i.state != instanceRunning || c.sessionsOf(i) > 0 {
		return
	}
	i.idleArmed = true
	c.after(i.idleSince+c.cfg.IdleAfter-c.now, func() {
		i.idleArmed = false
		if i.state != instanceRunning || c.sessionsOf(i) > 0 {
			return
		}
		if c.now-i.idleSince < c.cfg.IdleAfter {
			c.armIdle(i)
			return
		}
		c.shutdown(i, false, "idle")
	})
}

// askHealth sends the periodic health request, or acts on those unanswered.
func (c *ManagerCore) askHealth(i *instance) {
	if i.state != instanceRunning {
		return
	}
	if i.healthAsked != 0 {
		c.healthMissed(i)
		if i.state != instanceRunning {
			return
		}
	}
	i.healthAsked = c.messageID()
	c.sendEarly(i.a, &InstanceHealthRequest{Header: Header{MessageID: i.healthAsked, SubType: ManagerToAgent},
		ServiceInstanceID: i.id, ServiceInstanceNetworkAddress: i.a.addr})
}

func (c *ManagerCore) healthMissed(i *instance) {
	i.suspect = true
	c.rank(i)
	if i.status != StatusFailed {
		c.record(c.about(i, Event{Kind: EventHealthChanged, Status: StatusFailed, Cause: "health request not answered well"}))
	}
	if i.healthMissed++; i.healthMissed >= c.cfg.HealthMisses {
		c.shutdown(i, false, fmt.Sprintf("%d health requests not answered well", i.healthMissed))
	}
}

func (c *ManagerCore) instanceHealth(a *agent, m *InstanceHealthResponse) {
	i := c.instances[m.ServiceInstanceID]
	if i == nil || i.healthAsked != m.MessageID || i.a != a {
		c.dropped++
		return
	}
	i.healthAsked = 0
	switch {
	case m.Status == StatusGone:
		// Its agent knows that it ended: the report of that was lost.
		c.ended(i, StatusFailed, "its agent says that it ended")
		return
	case m.Status != StatusOverloaded && !m.Status.Success():
		c.healthMissed(i)
		return
	}
	i.healthMissed, i.suspect, i.refused = 0, false, false
	c.rank(i)
	if i.status != m.Status {
		c.record(c.about(i, Event{Kind: EventHealthChanged, Status: m.Status}))
	}
	c.compareSessions(i, m.Extension(extSessions))
}
