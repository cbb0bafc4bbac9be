package ssmmp

// The policy of the Manager: where an instance is placed, which one a session
// goes to, and when another is started. It looks at the core's state and
// changes nothing but the orders that it chooses by (policy_core.go).

// place chooses the node for a new instance at a vertex: of the agents that
// are up and have the service, the one with the fewest instances, rather not the
// one where the last instance died young; for a storage service the one where it
// stood last, since its data are there. It returns 404 when no agent that is up
// has the service, 503 when those that have it lack ports or hold the gateway's
// fixed port already.
func (c *ManagerCore) place(v *vertex) (*agent, Status) {
	status := StatusNotFound
	fits := func(a *agent) bool {
		if len(a.strangers) > 0 || !c.portsFor(v, a) {
			status = StatusUnavailable
			return false
		}
		return true
	}
	hosts, last := c.hosts[v.service], v.lastNode
	bound := v.kind == Storage && last != nil && hosts.has(last)
	if bound && last.up() && fits(last) {
		return last, 0
	}
	second := false
	for load := range c.loads {
		for index := range hosts.both(&c.connected, &c.loads[load]) {
			switch a := c.agents[index]; {
			case !fits(a):
			case bound:
				// Its node is only away, or full: elsewhere it would begin without its data.
				return nil, StatusUnavailable
			case a == last && v.quickEnds > 0:
				second = true
			default:
				return a, 0
			}
		}
	}
	if second {
		return last, 0
	}
	return nil, status
}

// portsFor tells whether a node has the ports that an instance at v needs.
func (c *ManagerCore) portsFor(v *vertex, a *agent) bool {
	need := 0
	for _, s := range v.sockets {
		if s.Port == 0 {
			need++
		} else if a.ports.held[s.Port] != 0 {
			return false
		}
	}
	return need == 0 || a.ports.available(need, c.now)
}

// rank says anew how good an instance is as the destination of a session: best
// one that is well and below the limit, of those the one with the fewest
// sessions; rather not one that refused a dial just after its start. Then comes
// one that is starting, then those that are not well. Full ones take none.
func (c *ManagerCore) rank(i *instance) {
	sessions := uint64(c.sessionsOf(i))
	takes := takesWell
	switch {
	case i.state == instanceStarting:
		takes, sessions = takesSoon, 0
		if c.full(len(i.waiters)) {
			takes = takesNone
		}
	case i.state != instanceRunning || c.full(int(c.sessions.ends[i.slot].dstLen)):
		takes = takesNone
	case i.suspect || i.status == StatusOverloaded:
		takes = takesUnwell
	}
	switch {
	case takes == takesNone:
		sessions = 0
	case i.refused && takes != takesSoon:
		sessions |= 1 << 32
	}
	i.v.order.put(i, takes, sessions)
}

func (c *ManagerCore) full(sessions int) bool {
	return c.cfg.SessionsPerInstance > 0 && sessions >= c.cfg.SessionsPerInstance
}

// room tells whether another instance may be started at a vertex.
func (c *ManagerCore) room(v *vertex) bool {
	if v.kind == Storage {
		return len(v.instances) == 0
	}
	return c.cfg.InstancesPerService == 0 || len(v.instances) < c.cfg.InstancesPerService
}
