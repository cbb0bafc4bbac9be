package ssmmp

// The policy of the Manager: where an instance is placed, which one a session
// goes to, and when another is started. It looks at the core's state and
// changes nothing.

// place chooses the node for a new instance at a vertex: of the agents that
// are up and have the service, the one with the fewest instances; for a
// storage service the one where it stood last, since its data are there. It
// returns 404 when no agent that is up has the service, 503 when those that
// have it lack ports or hold the gateway's fixed port already.
func (c *ManagerCore) place(v *vertex) (*agent, Status) {
	var best *agent
	status := StatusNotFound
	for _, a := range c.agents {
		if !a.up() || !a.has(v.service) {
			continue
		}
		if len(a.strangers) > 0 || !c.portsFor(v, a) {
			status = StatusUnavailable
			continue
		}
		if v.kind == Storage && a == v.lastNode {
			return a, 0
		}
		if best == nil || c.betterPlace(v, a, best) {
			best = a
		}
	}
	if v.kind == Storage && v.lastNode != nil && !v.lastNode.lost && best != nil && v.lastNode.has(v.service) {
		// Its node is only away, or full: elsewhere it would begin without its data.
		return nil, StatusUnavailable
	}
	if best == nil {
		return nil, status
	}
	return best, 0
}

// betterPlace prefers another node than the one where the last instance died
// young, then the node with fewer instances.
func (c *ManagerCore) betterPlace(v *vertex, a, than *agent) bool {
	if v.quickEnds > 0 && (a == v.lastNode) != (than == v.lastNode) {
		return than == v.lastNode
	}
	return len(a.instances) < len(than.instances)
}

func (a *agent) has(service string) bool {
	for _, s := range a.services {
		if s == service {
			return true
		}
	}
	return false
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

// pick chooses the running instance for a new session: the one with the fewest
// sessions of those that are well and below the limit; rather not one that
// refused a dial just after its start. Those that are not well come last, and
// full ones not at all.
func (c *ManagerCore) pick(v *vertex) (well, unwell *instance) {
	better := func(a, b *instance) bool {
		if b == nil || a.refused != b.refused {
			return b == nil || b.refused
		}
		return c.sessionsOf(a) < c.sessionsOf(b)
	}
	for _, i := range v.instances {
		if i.state != instanceRunning || c.full(int(c.sessions.ends[i.slot].dstLen)) {
			continue
		}
		if i.suspect || i.status == StatusOverloaded {
			if better(i, unwell) {
				unwell = i
			}
		} else if better(i, well) {
			well = i
		}
	}
	return well, unwell
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
