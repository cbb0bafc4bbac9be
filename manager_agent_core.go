package ssmmp

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
)

// The Manager's core, continued: agents come, are watched, go away and are lost.

// register takes in an agent, or takes it back (PROTOCOL section 3,
// Registration).
func (c *ManagerCore) register(conn ConnID, m *InitiationRequest) {
	answer := func(s Status) {
		more := []Extension{{extHeard, "0"}}
		if s.Success() {
			// It is asked for its health each period; the rest is patience.
			silence := c.cfg.HealthPeriod.Milliseconds() * int64(min(c.cfg.HealthMisses, 1<<20)+1)
			more = append(more, Extension{extSilence, strconv.FormatInt(silence, 10)})
		}
		c.out = append(c.out, ManagerOutput{Kind: ManagerOutputSend, Conn: conn, Msg: &InitiationResponse{
			Header: Header{MessageID: m.MessageID, Extensions: c.epoch(more...)}, Status: s}, Early: c.noRoom})
	}
	refuse := func(s Status, cause string) {
		if c.misbehaves(conn) && c.newRefusal(m.AgentNetworkAddress, cause) {
			c.record(Event{Kind: EventAgentRefused, Node: m.AgentNetworkAddress, Status: s, Cause: cause})
		}
		answer(s)
	}
	if c.noRoom {
		answer(StatusInsufficientStorage)
		return
	}
	addr, identity := m.AgentNetworkAddress, m.Extension(extAgent)
	if a := c.conns[conn]; a != nil && a.addr != addr {
		refuse(StatusConflict, "this connection registered as "+a.addr.String())
		return
	}
	running, err := parseInstanceList(m.Extension(extInstances))
	if err != nil {
		c.violation(conn, err.Error())
		answer(StatusBadMessage)
		return
	}
	if obeyed, err := strconv.ParseUint(m.Extension(extEpoch), 10, 64); err == nil && c.cfg.Epoch != 0 && obeyed > c.cfg.Epoch {
		refuse(StatusConflict, fmt.Sprintf("it obeys a Manager of epoch %d, and this one is of epoch %d", obeyed, c.cfg.Epoch))
		return
	}
	a, back := c.byAddr[addr], false
	repository := "" // as it was
	if a == nil || a.identity != identity || !slices.Equal(a.services, m.ServiceRepository) {
		repository = toDetail(agentDetail{Identity: identity, Services: m.ServiceRepository})
	}
	if a != nil && identity != "" && identity == a.identity && conn < a.newest {
		// It was on its way on a connection that the agent gave up before it
		// made the next: what it says runs is of long ago.
		refuse(StatusConflict, "the agent registered again meanwhile")
		return
	}
	if a != nil && a.up() && a.conn != conn {
		if identity == "" || identity != a.identity {
			refuse(StatusConflict, "the address belongs to another agent")
			return
		}
		// The same agent came back before its old connection was seen to end.
		delete(c.conns, a.conn)
		c.out = append(c.out, ManagerOutput{Kind: ManagerOutputClose, Conn: a.conn})
		back = true
	}
	if a != nil && a.conn == conn {
		// A second registration on one connection brings a new repository, and
		// is no way to fill the history.
		if slices.Equal(a.services, m.ServiceRepository) {
			answer(StatusOK)
			return
		}
		if !c.misbehaves(conn) {
			answer(StatusTooMany)
			return
		}
		c.record(Event{Kind: EventAgentRegistered, Node: addr, Cause: "new repository", Detail: repository})
		answer(StatusOK)
		c.restore()
		return
	}
	cause := ""
	if back || a != nil {
		cause = "came back"
	}
	if a == nil && len(c.agents) >= maxAgents {
		refuse(StatusUnavailable, "too many agents")
		return
	}
	another := a != nil && a.identity != "" && a.identity != identity // process: it knows nothing of what was sent to the one before
	c.record(Event{Kind: EventAgentRegistered, Node: addr, Cause: cause, Detail: repository})
	delete(c.refused, addr)
	a = c.byAddr[addr]
	a.conn, a.newest = conn, conn
	c.connected.add(a)
	a.healthAsked, a.healthMissed, a.heard, a.hears, a.backSince = 0, 0, 0, 0, c.now
	c.conns[conn] = a
	answer(StatusOK)

	for _, i := range a.instances {
		i.healthAsked = 0 // the answer may have been lost with the connection
	}
	// What was asked for before, and is still wanted when it is settled what
	// runs, is sent again before what is asked for now.
	pending, answered := slices.Clone(a.exchanges), len(c.out)
	if m.Extension(extInstances) != "" || identity != "" {
		c.settle(a, running, another)
	} else {
		// It does not tell what it runs: the instances are asked.
		for _, i := range slices.Clone(a.instances) {
			c.askHealth(i)
		}
	}
	now := slices.Clone(c.out[answered:])
	c.out = c.out[:answered]
	for _, x := range pending {
		if c.exchanges[x.id] == x {
			c.send(a, x.msg)
		}
	}
	c.out = append(c.out, now...)
	c.watch(a, conn)
	c.askDoubts(a)
	c.calm()
	c.restore()
}

// newRefusal tells whether the history has still to learn that an address is
// refused: who is tries again and again.
func (c *ManagerCore) newRefusal(addr netip.Addr, cause string) bool {
	if c.refused[addr] == cause || len(c.refused) >= maxAgents {
		return false
	}
	c.refused[addr] = cause
	return true
}

// settle compares what an agent says it runs with what should run there: the
// agent is right about the former, the Manager about the latter. another says
// that it is not the process that was asked before.
func (c *ManagerCore) settle(a *agent, running []InstanceID, another bool) {
	runs := map[InstanceID]bool{}
	for _, id := range running {
		runs[id] = true
		if i := c.instances[id]; (i == nil || i.a != a) && !a.strangers[id] {
			if a.strangers == nil {
				a.strangers = map[InstanceID]bool{}
			}
			a.strangers[id] = true
			a.toKill = append(a.toKill, id)
		}
	}
	gone := func(id InstanceID) bool { return !runs[id] }
	maps.DeleteFunc(a.strangers, func(id InstanceID, _ bool) bool { return gone(id) })
	a.toKill = slices.DeleteFunc(a.toKill, gone)
	for _, x := range slices.Clone(a.exchanges) {
		if m, ok := x.msg.(*HardShutdownRequest); ok && m.ServiceName == unknownName && gone(m.ServiceInstanceID) {
			c.forget(x)
		}
	}
	c.killStrangers(a)
	for _, i := range slices.Clone(a.instances) {
		switch {
		case runs[i.id]:
		case i.state == instanceStarting && !another:
			// Its execution_request may not have reached the agent: it is
			// sent again.
		case i.state == instanceStarting:
			// Nobody knows whether it was executed: its id is not used again.
			c.ended(i, StatusUnavailable, "its agent was started anew")
		default:
			c.ended(i, StatusGone, "not running when its agent came back")
		}
	}
}

// maxKills bounds the strangers that an agent is asked to kill at once: an agent
// may claim to run more than it ever could.
const maxKills = 64

func (c *ManagerCore) killStrangers(a *agent) {
	for len(a.toKill) > 0 && len(a.strangers)-len(a.toKill) < maxKills {
		id := a.toKill[0]
		a.toKill = a.toKill[1:]
		c.killStranger(a, id)
	}
}

// killStranger has an agent kill what it runs and should not, until it has.
// Nothing is placed there before, since its ports may be in use.
func (c *ManagerCore) killStranger(a *agent, id InstanceID) {
	if !a.strangers[id] {
		return
	}
	c.request(a, &HardShutdownRequest{Header: Header{SubType: ManagerToAgent}, ServiceName: unknownName, ServiceInstanceID: id},
		TypeHardShutdownResponse, c.cfg.RequestTimeout, func(s Status) {
			if !s.Success() && s != StatusNotFound && s != StatusGone {
				c.after(c.cfg.RequestTimeout, func() { c.killStranger(a, id) })
				return
			}
			if delete(a.strangers, id); len(a.strangers) == 0 {
				c.restore()
			}
			c.killStrangers(a)
		})
}

// forget takes an exchange out of the tables.
func (c *ManagerCore) forget(x *exchange) {
	delete(c.exchanges, x.id)
	all := x.to.exchanges
	if n, ok := slices.BinarySearchFunc(all, x.id, func(x *exchange, id int64) int { return cmp.Compare(x.id, id) }); ok {
		x.to.exchanges = slices.Delete(all, n, n+1)
	}
}

// connLost handles the end of an agent's connection: its instances are taken
// to run, until it stayed away for too long.
func (c *ManagerCore) connLost(conn ConnID) {
	delete(c.violations, conn)
	a := c.conns[conn]
	if a == nil {
		return
	}
	delete(c.conns, conn)
	a.conn = 0
	c.connected.remove(a)
	c.record(Event{Kind: EventAgentAway, Node: a.addr})
	c.watchAway(a)
}

// watchAway has an agent that stays away taken to be lost. But when most of
// them are away it is the Manager that is cut off, and all goes on out there: no
// agent is lost then, and nothing replaced.
func (c *ManagerCore) watchAway(a *agent) {
	since := a.awaySince
	c.after(c.cfg.LostAfter, func() {
		switch {
		case a.up() || a.lost || a.awaySince != since:
		case c.stormy():
			if !c.storm {
				c.record(Event{Kind: EventStormBegan, Cause: c.countAgents()})
			}
		default:
			c.lose(a)
		}
	})
}

// stormy tells whether so many agents are away that the storm brake holds.
// Those that are lost already do not count: the cluster goes on without them.
func (c *ManagerCore) stormy() bool {
	away, all := c.agentsAway()
	return c.cfg.StormBrake >= 0 && away > 0 && float64(away) >= c.cfg.StormBrake*float64(all)
}

func (c *ManagerCore) agentsAway() (away, all int) {
	all = len(c.agents) - c.lost.count() // who is lost has no connection
	return all - c.connected.count(), all
}

func (c *ManagerCore) countAgents() string {
	away, all := c.agentsAway()
	return fmt.Sprintf("%d of %d agents are away", away, all)
}

// calm ends a storm when enough agents are back. The others get the time to come
// back that they had before.
func (c *ManagerCore) calm() {
	if !c.storm || c.stormy() {
		return
	}
	c.record(Event{Kind: EventStormEnded, Cause: c.countAgents()})
	for _, a := range c.agents {
		if !a.up() && !a.lost {
			c.watchAway(a)
		}
	}
}

func (c *ManagerCore) lose(a *agent) {
	c.record(Event{Kind: EventAgentLost, Node: a.addr, Cause: fmt.Sprintf("away for %v", c.cfg.LostAfter)})
	for _, x := range a.exchanges {
		delete(c.exchanges, x.id)
	}
	a.exchanges = nil
	a.doubts, a.doubting, a.asking = nil, nil, 0
	clear(a.strangers)
	a.toKill = nil
	for _, i := range slices.Clone(a.instances) {
		c.ended(i, StatusSessionBroken, "its agent is lost")
	}
}

// watch asks an agent and its instances for their health, periodically, for as
// long as this connection lasts (PROTOCOL section 3, Monitoring).
func (c *ManagerCore) watch(a *agent, conn ConnID) {
	c.after(c.cfg.HealthPeriod, func() {
		if a.conn != conn {
			return
		}
		mute := !c.idsDurable() // and so an answer that is missed
		if mute || a.healthAsked != 0 && c.now-a.askedAt >= c.cfg.HealthPeriod {
			if a.healthMissed++; a.healthMissed >= c.cfg.HealthMisses {
				c.out = append(c.out, ManagerOutput{Kind: ManagerOutputClose, Conn: conn})
				c.connLost(conn)
				return
			}
			a.healthAsked = 0
		}
		if mute {
			c.watch(a, conn)
			return
		}
		if a.healthAsked == 0 {
			c.askAgent(a)
		}
		for _, i := range slices.Clone(a.instances) {
			c.askHealth(i)
		}
		c.watch(a, conn)
	})
}

// askAgent asks an agent for its health, and tells it what it need not keep any
// longer.
func (c *ManagerCore) askAgent(a *agent) {
	a.healthAsked, a.askedAt, a.reports = c.messageID(), c.now, 0
	h := Header{MessageID: a.healthAsked, SubType: ManagerToAgent, Extensions: c.epoch()}
	if a.hears != 0 && (c.committed == 0 || a.hearsSeq <= c.committed) {
		a.heard = a.hears // what came before it is durable
	}
	if a.heard != 0 {
		h.Extensions = append(h.Extensions, Extension{extHeard, strconv.FormatInt(a.heard, 10)})
	}
	c.sendEarly(a, &AgentHealthRequest{Header: h, AgentNetworkAddress: a.addr})
}

// reported counts a report of an agent. One that has many is asked for its
// health before it is time, so that it never keeps many that are durable.
func (c *ManagerCore) reported(a *agent) {
	if a.reports++; a.reports >= reportsKept && a.healthAsked == 0 && c.idsDurable() {
		c.askAgent(a)
	}
}

func (c *ManagerCore) agentHealth(a *agent, m *AgentHealthResponse) {
	if m.MessageID != a.healthAsked {
		c.dropped++
		return
	}
	a.hears, a.hearsSeq = a.healthAsked, c.seq
	a.healthAsked, a.healthMissed = 0, 0
}
