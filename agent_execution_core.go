package ssmmp

import (
	"errors"
	"slices"
)

// The agent's core, continued: executing and ending instances.

// execute starts an instance (PROTOCOL section 3, Execution). The same request
// again gets the same answer and starts nothing.
func (c *AgentCore) execute(m *ExecutionRequest) {
	answer := func(s Status) {
		c.send(c.manager, &ExecutionResponse{Header: Header{MessageID: m.MessageID}, Status: s})
	}
	refuse := func(s Status, why string) {
		c.warn(0, "not executed: "+m.ServiceName+": "+why)
		c.send(c.manager, &ExecutionResponse{Header: Header{MessageID: m.MessageID, Extensions: reason(why)}, Status: s})
	}
	if i := c.instances[m.ServiceInstanceID]; i != nil {
		switch {
		case i.service != m.ServiceName:
			answer(StatusConflict) // an id of another Manager's
		case i.ready:
			answer(StatusOK)
		default:
			i.execID = m.MessageID
		}
		return
	}
	entry := c.repository[m.ServiceName]
	switch {
	case c.ended[m.ServiceInstanceID]:
		answer(StatusGone)
		return
	case m.AgentNetworkAddress != c.cfg.Address:
		answer(StatusBadMessage)
		return
	case entry == nil:
		answer(StatusNotFound)
		return
	case c.stop:
		answer(StatusUnavailable)
		return
	}
	if why := entry.lacks(m.SocketConfiguration, m.PlugConfiguration); why != "" {
		refuse(StatusNotFound, why)
		return
	}
	own := Clone(m).(*ExecutionRequest)
	i := &agentInstance{id: own.ServiceInstanceID, service: entry.Service, plugs: own.PlugConfiguration, sockets: own.SocketConfiguration,
		entry: entry, execID: own.MessageID, inFlight: map[int64]int{}}
	c.instances[i.id] = i
	c.out = append(c.out, AgentOutput{Kind: AgentOutputLaunch, Instance: i.id, Entry: entry, Launch: Launch{
		Service: i.service, ID: i.id, Address: c.cfg.Address, Sockets: i.sockets, Plugs: i.plugs}})
	c.awaitReady(i)
}

// awaitReady kills an instance that is not ready in time.
func (c *AgentCore) awaitReady(i *agentInstance) {
	c.after(c.cfg.StartTimeout, func() {
		if c.instances[i.id] == i && !i.ready {
			i.startLate = true
			c.answerExecution(i, StatusTimeout)
			c.kill(i)
		}
	})
}

// ComeBack gives a new core the identity of the agent before this one, the epoch
// of the Manager that it obeyed, and the instances that ended there, oldest
// first.
func (c *AgentCore) ComeBack(identity string, epoch uint64, ended []InstanceID) {
	c.identity, c.epoch = identity, epoch
	for _, id := range ended {
		c.remember(id)
	}
}

// Known tells what an InstanceRecord is to say of an instance: whether it is
// ready, and whether it spoke.
func (c *AgentCore) Known(id InstanceID) (ready, spoke bool) {
	if i := c.instances[id]; i != nil {
		ready, spoke = i.ready, i.wasBound
	}
	return ready, spoke
}

// Epoch returns the greatest epoch that a Manager told.
func (c *AgentCore) Epoch() uint64 { return c.epoch }

// remember keeps it in mind that an instance has ended.
func (c *AgentCore) remember(id InstanceID) {
	c.ended[id] = true
	c.endedList = append(c.endedList, id)
	if len(c.endedList) > endedKept {
		delete(c.ended, c.endedList[0])
		c.endedList = c.endedList[1:]
	}
}

// reattached takes in an instance that the agent before this one executed. It
// goes on as if that one had never died. Whether it still runs is said later.
func (c *AgentCore) reattached(r *InstanceRecord) {
	l := &r.Launch
	if c.instances[l.ID] != nil || c.ended[l.ID] {
		return
	}
	entry := c.repository[l.Service]
	if entry == nil {
		entry = &RepositoryEntry{Service: l.Service} // executed no more, and it runs
	}
	i := &agentInstance{id: l.ID, service: l.Service, plugs: slices.Clone(l.Plugs), sockets: slices.Clone(l.Sockets),
		entry: entry, ready: r.Ready, wasBound: r.Spoke, inFlight: map[int64]int{}}
	c.instances[i.id] = i
	if !i.ready {
		i.execID = r.Execution
		c.awaitReady(i)
		c.started(i.id, nil)
	}
}

// lacks says which socket or plug the entry's program does not have, "" if it
// has all.
func (e *RepositoryEntry) lacks(sockets []SocketPort, plugs []PlugTarget) string {
	for _, s := range sockets {
		if e.Sockets != nil && !slices.Contains(e.Sockets, s.Socket) {
			return "its repository entry has no socket " + s.Socket
		}
	}
	for _, p := range plugs {
		if e.Plugs != nil && !slices.Contains(e.Plugs, p.Plug) {
			return "its repository entry has no plug " + p.Plug
		}
	}
	return ""
}

func (c *AgentCore) answerExecution(i *agentInstance, s Status, x ...Extension) {
	if i.execID != 0 {
		c.toManager(&ExecutionResponse{Header: Header{MessageID: i.execID, Extensions: x}, Status: s})
		i.execID = 0
	}
}

func (c *AgentCore) started(id InstanceID, err error) {
	i := c.instances[id]
	switch {
	case i == nil:
	case err != nil:
		c.warn(0, "cannot execute "+i.service+": "+err.Error())
		c.answerExecution(i, notStarted(err, StatusUnavailable), reason(err.Error())...)
		c.forget(i, Exit{Code: -1, Reason: err.Error()})
	case i.entry.ReadyWhenStarted:
		c.becomeReady(i)
	case len(i.sockets) > 0:
		c.probe(i)
	}
	if i != nil && err == nil && i.killed {
		c.out = append(c.out, AgentOutput{Kind: AgentOutputKill, Instance: id}) // asked for while it was being launched
	}
}

// notStarted is the status of a start that failed for a reason: 409 says that
// on other ports it may succeed.
func notStarted(err error, otherwise Status) Status {
	if errors.Is(err, ErrPortTaken) {
		return StatusConflict
	}
	return otherwise
}

// probe has it found out when the ports of an instance listen.
func (c *AgentCore) probe(i *agentInstance) {
	if !i.probed {
		i.probed = true
		c.out = append(c.out, AgentOutput{Kind: AgentOutputProbe, Instance: i.id})
	}
}

func (c *AgentCore) portsListen(id InstanceID) {
	i := c.instances[id]
	if i == nil {
		return
	}
	i.probed = false
	c.becomeReady(i)
	if i.healthID != 0 {
		c.answerFor(id, TypeInstanceHealthResponse, i.healthID, StatusOK)
		i.healthID = 0
	}
}

// programHealth answers for a program that knows nothing of SSMMP. It is well
// when it runs and its ports listen; while they do not there is no answer. Of
// one that was ready when started, only that it runs can be said.
func (c *AgentCore) programHealth(i *agentInstance, messageID int64) {
	if i.entry.ReadyWhenStarted {
		c.answerFor(i.id, TypeInstanceHealthResponse, messageID, StatusOK)
		return
	}
	i.healthID = messageID
	c.probe(i)
}

func (c *AgentCore) becomeReady(i *agentInstance) {
	if !i.ready && !i.startLate {
		i.ready = true
		c.changed(i)
		c.answerExecution(i, StatusOK)
	}
}

// changed has what is kept of an instance brought up to date.
func (c *AgentCore) changed(i *agentInstance) {
	c.out = append(c.out, AgentOutput{Kind: AgentOutputChanged, Instance: i.id})
}

func (c *AgentCore) hardShutdown(m *HardShutdownRequest) {
	i := c.instances[m.ServiceInstanceID]
	if i == nil {
		// Nothing of it runs, whether it ever did here or not.
		c.send(c.manager, &HardShutdownResponse{Header: Header{MessageID: m.MessageID, SubType: AgentToManager},
			ServiceInstanceID: m.ServiceInstanceID, Status: StatusOK})
		return
	}
	if !slices.Contains(i.hardIDs, m.MessageID) && len(i.hardIDs) < maxShutdownIDs {
		i.hardIDs = append(i.hardIDs, m.MessageID)
	}
	c.kill(i)
}

// signal shuts an instance down gracefully that cannot be asked to.
func (c *AgentCore) signal(i *agentInstance) {
	if i.signalled {
		return
	}
	i.signalled = true
	c.out = append(c.out, AgentOutput{Kind: AgentOutputSignal, Instance: i.id, Text: i.entry.StopSignal})
	c.after(c.cfg.DrainTimeout, func() {
		if c.instances[i.id] == i {
			c.kill(i)
		}
	})
}

// kill has an instance killed, again and again until it has ended.
func (c *AgentCore) kill(i *agentInstance) {
	if !i.killed {
		i.killed = true
		c.killOn(i)
	}
}

func (c *AgentCore) killOn(i *agentInstance) {
	if c.instances[i.id] == i {
		c.out = append(c.out, AgentOutput{Kind: AgentOutputKill, Instance: i.id})
		c.after(c.cfg.RequestTimeout, func() { c.killOn(i) })
	}
}

// exited handles the end of an instance and all its children. why says what it
// lacked, if it was not ready.
func (c *AgentCore) exited(id InstanceID, exit Exit, why error) {
	i := c.instances[id]
	if i == nil {
		return
	}
	if why != nil {
		c.answerExecution(i, notStarted(why, StatusFailed), reason(why.Error())...)
	}
	c.answerExecution(i, StatusFailed)
	c.forget(i, exit)
}

// forget takes an instance that runs no more out of the state and reports it,
// unless an answer or its own report said so.
func (c *AgentCore) forget(i *agentInstance, exit Exit) {
	delete(c.instances, i.id)
	if i.conn != 0 {
		// The connection stays tied to it: its last messages may still come.
		c.out = append(c.out, AgentOutput{Kind: AgentOutputClose, Conn: i.conn})
		i.conn = 0
	}
	c.remember(i.id)
	for _, id := range i.stopIDs {
		status := StatusOK
		if i.killed {
			status = StatusTimeout
		}
		c.toManager(&GracefulShutdownResponse{Header: Header{MessageID: id, SubType: AgentToManager}, Status: status})
	}
	for _, id := range i.hardIDs {
		c.toManager(&HardShutdownResponse{Header: Header{MessageID: id, SubType: AgentToManager}, ServiceInstanceID: i.id, Status: StatusOK})
	}
	if i.ready && !i.announced && len(i.hardIDs) == 0 {
		c.toManager(&TerminationInfo{
			Header:      Header{MessageID: c.ownID(), SubType: AgentToManager, Extensions: []Extension{{extExit, exit.String()}}},
			ServiceName: i.service, ServiceInstanceID: i.id, ServiceInstanceNetworkAddress: c.cfg.Address,
		})
	}
	c.whenHeard(reportWait{end: i.id})
	if c.stop && len(c.instances) == 0 && !c.cfg.KeepInstances {
		c.out = append(c.out, AgentOutput{Kind: AgentOutputEmpty})
	}
}

// stopAll shuts all instances down: gracefully, and at the deadline hard. With
// KeepInstances it leaves them.
func (c *AgentCore) stopAll() {
	if c.stop {
		return
	}
	c.stop = true
	if len(c.instances) == 0 || c.cfg.KeepInstances {
		c.out = append(c.out, AgentOutput{Kind: AgentOutputEmpty})
		return
	}
	for _, i := range c.inOrder() {
		if i.conn == 0 {
			if i.entry.StopSignal != "" {
				c.signal(i)
			} else {
				c.kill(i)
			}
			continue
		}
		id := c.ownID()
		c.relayed[id] = &relayedRequest{i.id, TypeGracefulShutdownResponse}
		c.send(i.conn, &GracefulShutdownRequest{Header: Header{MessageID: id, SubType: AgentToServiceInstance}, ServiceName: i.service, ServiceInstanceID: i.id})
	}
	c.after(c.cfg.DrainTimeout, func() {
		for _, i := range c.inOrder() {
			c.kill(i)
		}
	})
}
