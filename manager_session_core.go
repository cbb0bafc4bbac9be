package ssmmp

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// The Manager's core, continued: the life of sessions (PROTOCOL section 3).

// An offerKey names a session request: the instance that asks, and its message
// id.
type offerKey struct {
	src       InstanceID
	messageID int64
}

// An offerExpiry ends an offer that was not acknowledged.
type offerExpiry struct {
	at  time.Duration
	key offerKey
	id  SessionID
}

// listenGrace is how long after it is ready an instance may refuse: ready says
// that it runs, not yet that it listens.
const listenGrace = 3 * time.Second

// portTries is how many starts a request waits for that find a port taken.
const portTries = 3

// maxWaiting bounds the requests that wait for an instance to start.
const maxWaiting = 1 << 16

// maxOffers bounds the sessions of one instance that are offered, and that it has
// not acknowledged.
const maxOffers = 1 << 14

// sessionRequest answers, or has wait, the request for a session along an edge.
func (c *ManagerCore) sessionRequest(a *agent, m *SessionRequest) {
	src := c.instances[m.SourceServiceInstanceID]
	if src == nil || src.a != a || src.v.service != m.SourceServiceName {
		status, cause := StatusForbidden, fmt.Sprintf("instance %d of %s does not run on %s", m.SourceServiceInstanceID, m.SourceServiceName, a.addr)
		if src == nil && m.SourceServiceInstanceID <= c.lastInstance {
			status = StatusGone // its agent may not know yet
			c.dropped++
		} else if c.misbehaves(a.conn) {
			c.record(Event{Kind: EventSessionRefused, Node: a.addr, Source: m.SourceServiceInstanceID, Service: strings.Clone(m.DestServiceName),
				Plug: strings.Clone(m.SourcePlugName), MessageID: m.MessageID, Status: status, Cause: cause})
		}
		c.send(a, sessionFailure(m, status))
		return
	}
	edge, ok := src.v.edge(m.SourcePlugName)
	if !ok || src.v.edges[edge].socket != m.DestSocketName || src.v.edges[edge].to.service != m.DestServiceName {
		c.record(Event{Kind: EventSessionRefused, Graph: src.v.app.name, Node: a.addr, Source: src.id, Service: strings.Clone(m.DestServiceName),
			Plug: strings.Clone(m.SourcePlugName), MessageID: m.MessageID, Status: StatusForbidden, Cause: "no such edge"})
		c.send(a, sessionFailure(m, StatusForbidden))
		return
	}

	// A duplicate gets the same answer again, and nothing else happens.
	key := offerKey{src.id, m.MessageID}
	if c.waiting[key] != nil {
		c.dropped++
		return
	}
	if m.MessageID <= src.newestMessage {
		if slot := c.offers[key]; slot != 0 {
			s := c.sessions.at(slot)
			if int(s.edge) != edge {
				// Its acknowledgment could not be told from the other's.
				c.dropped++
				c.send(a, sessionFailure(m, StatusBadMessage))
				return
			}
			dst := c.slots[s.dst]
			c.answer(src, sessionAnswer{m.MessageID, edge, dst.id, dst.a.addr, dst.port(src.v.edges[edge].socket), StatusOK, false})
			return
		}
		if old, ok := src.answers.find(m.MessageID, edge); ok {
			c.answer(src, old)
			return
		}
	}
	if c.noRoom {
		c.sendEarly(a, sessionFailure(m, StatusInsufficientStorage))
		return
	}
	src.newestMessage = max(src.newestMessage, m.MessageID)

	if src.state >= instanceDraining {
		c.refuse(src, edge, m.MessageID, StatusUnavailable)
		return
	}
	if src.offers >= maxOffers {
		c.refuse(src, edge, m.MessageID, StatusTooMany)
		return
	}
	c.seek(waiter{src: src, edge: edge, messageID: m.MessageID})
}

// seek finds the destination of a session: an instance that runs, one that is
// starting, or a new one.
func (c *ManagerCore) seek(w waiter) {
	src, edge, messageID := w.src, w.edge, w.messageID
	v := src.v.edges[edge].to
	best, how := v.order.first()
	if how == takesWell {
		c.offer(src, edge, messageID, best)
		return
	}
	if len(c.waiting) >= maxWaiting {
		c.refuse(src, edge, messageID, StatusTooMany)
		return
	}
	if how == takesSoon {
		c.wait(best, w)
		return
	}
	// One that cannot be reached is replaced, but not by ever more: what is
	// wrong may be the way to them all.
	status := StatusUnavailable
	relief := best != nil && best.suspect
	if c.room(v) && !(relief && c.now < v.nextRelief) {
		if relief {
			v.nextRelief = c.now + 2*c.cfg.HealthPeriod
		}
		var i *instance
		c.doer.asking = src
		i, status = c.start(v, fmt.Sprintf("session_request of %s %d", src.v.service, src.id))
		c.doer.asking = nil
		if i != nil {
			c.wait(i, w)
			return
		}
	}
	if best != nil {
		c.offer(src, edge, messageID, best)
		return
	}
	// One that is ending makes room for the next.
	if !c.room(v) && !v.app.retiring {
		for _, i := range v.instances {
			if i.state >= instanceDraining && i.a.up() {
				c.wait(i, w)
				return
			}
		}
	}
	c.refuse(src, edge, messageID, status)
}

func (c *ManagerCore) wait(i *instance, w waiter) {
	i.waiters = append(i.waiters, w)
	c.waiting[offerKey{w.src.id, w.messageID}] = i
	c.rank(i)
}

// giveUp refuses a request that waits: whoever asked said that it needs no
// session any more.
func (c *ManagerCore) giveUp(src *instance, messageID int64, status Status) {
	i := c.waiting[offerKey{src.id, messageID}]
	n := slices.IndexFunc(i.waiters, func(w waiter) bool { return w.src == src && w.messageID == messageID })
	if n < 0 {
		return
	}
	edge := i.waiters[n].edge
	i.waiters = slices.Delete(i.waiters, n, n+1)
	c.rank(i)
	c.refuse(src, edge, messageID, status)
}

func (c *ManagerCore) serveWaiters(i *instance) {
	waiters := i.waiters
	i.waiters = nil
	for _, w := range waiters {
		delete(c.waiting, offerKey{w.src.id, w.messageID})
		switch {
		case w.src.state == instanceRunning || w.src.state == instanceStarting:
			c.offer(w.src, w.edge, w.messageID, i)
		case w.src.live():
			c.refuse(w.src, w.edge, w.messageID, StatusUnavailable)
		}
	}
}

func (c *ManagerCore) failWaiters(i *instance, status Status) {
	waiters := i.waiters
	i.waiters = nil
	c.rank(i)
	for _, w := range waiters {
		c.refuse(w.src, w.edge, w.messageID, status)
	}
}

// seekLater has requests that waited for an instance find another destination:
// it made room, or another program left it without its port. That is at the end
// of the step, when it is known who of them is still there. At the third port
// that is taken they are refused.
func (c *ManagerCore) seekLater(waiters []waiter, taken bool) {
	for _, w := range waiters {
		delete(c.waiting, offerKey{w.src.id, w.messageID})
		if taken {
			w.taken++
		}
		c.seekers = append(c.seekers, w)
	}
}

func (c *ManagerCore) seekAgain() {
	for len(c.seekers) > 0 {
		w := c.seekers[0]
		c.seekers = c.seekers[1:]
		if w.taken == portTries || w.src.state >= instanceDraining || c.noRoom {
			c.refuse(w.src, w.edge, w.messageID, StatusUnavailable)
			continue
		}
		c.seek(w)
	}
	c.seekers = nil
}

// offer grants a session: the event is recorded before the answer is sent.
func (c *ManagerCore) offer(src *instance, edge int, messageID int64, dst *instance) {
	e := &src.v.edges[edge]
	c.record(Event{Kind: EventSessionOffered, Graph: src.v.app.name, Source: src.id, Destination: dst.id,
		Service: dst.v.service, Node: dst.a.addr, Plug: e.plug, Socket: e.socket, MessageID: messageID})
	c.awaitAck(c.events[len(c.events)-1].Session)
	c.answer(src, sessionAnswer{messageID, edge, dst.id, dst.a.addr, dst.port(e.socket), StatusOK, false})
}

// awaitAck makes an offered session findable by its acknowledgment, and ends it
// when none comes.
func (c *ManagerCore) awaitAck(id SessionID) {
	s := c.sessions.at(uint32(id))
	key := offerKey{c.slots[s.src].id, s.messageID}
	c.offers[key] = uint32(id)
	c.slots[s.src].offers++
	c.expiries = append(c.expiries, offerExpiry{c.now + c.cfg.AckTimeout, key, id})
}

// refuse answers a request with a failure.
func (c *ManagerCore) refuse(src *instance, edge int, messageID int64, status Status) {
	delete(c.waiting, offerKey{src.id, messageID})
	if !src.live() {
		return
	}
	e := &src.v.edges[edge]
	c.record(Event{Kind: EventSessionRefused, Graph: src.v.app.name, Node: src.a.addr, Source: src.id, Service: e.to.service,
		Plug: e.plug, Socket: e.socket, MessageID: messageID, Status: status})
	c.answer(src, sessionAnswer{messageID: messageID, edge: edge, status: status})
}

func (c *ManagerCore) answer(src *instance, ans sessionAnswer) {
	e := &src.v.edges[ans.edge]
	if len(c.responses) == 0 {
		c.responses = make([]SessionResponse, 32) // an answer alone would be an allocation each
	}
	m := &c.responses[0]
	c.responses = c.responses[1:]
	*m = SessionResponse{
		Header:            Header{MessageID: ans.messageID, SubType: ManagerToAgent},
		SourceServiceName: src.v.service, SourceServiceInstanceID: src.id,
		DestServiceName: e.to.service, DestServiceInstanceID: ans.dest, DestSocketName: e.socket,
		DestServiceInstanceNetworkAddress: ans.address, DestSocketPort: ans.port, Status: ans.status,
	}
	c.send(src.a, m)
}

// sessionFailure is the answer to a request that names no instance of its
// sender, or no edge: it repeats what the request says.
func sessionFailure(m *SessionRequest, status Status) *SessionResponse {
	r := &SessionResponse{
		Header:            Header{MessageID: m.MessageID, SubType: ManagerToAgent},
		SourceServiceName: strings.Clone(m.SourceServiceName), SourceServiceInstanceID: m.SourceServiceInstanceID,
		DestServiceName: strings.Clone(m.DestServiceName), DestSocketName: strings.Clone(m.DestSocketName), Status: status,
	}
	return r
}

// sessionAck completes the set-up of an offered session, or ends it.
func (c *ManagerCore) sessionAck(a *agent, m *SessionAck) {
	src := c.instances[m.SourceServiceInstanceID]
	if src == nil || src.a != a {
		c.dropped++
		return
	}
	key := offerKey{src.id, m.MessageID}
	slot := c.offers[key]
	if slot == 0 && c.waiting[key] != nil && !m.Status.Success() {
		c.giveUp(src, m.MessageID, m.Status)
		return
	}
	if slot == 0 {
		c.dropped++ // a duplicate, or too late
		c.lateAck(src, m)
		return
	}
	c.takeOffer(key)
	s := c.sessions.at(slot)
	dst := c.slots[s.dst]
	if m.Status.Success() && (m.SourcePlugPort == 0 || m.DestSocketNewPort == 0) {
		c.violation(a.conn, fmt.Sprintf("session_ack %d of instance %d lacks a port", m.MessageID, src.id))
		c.sessionClosed(slot, StatusBadMessage, "acknowledged without its ports")
		return
	}
	if !m.Status.Success() {
		if m.Status >= 500 { // the next request may go to another instance
			dst.refused = true
			dst.suspect = dst.suspect || c.now-dst.ready >= listenGrace
			c.rank(dst)
		}
		c.sessionClosed(slot, m.Status, "dial failed")
		return
	}
	edge := s.edge
	if old := c.findSession(src.a, m.SourcePlugPort, dst, func(o *session) bool { return o.src == s.src && o.edge == edge }); old != 0 {
		// The same ports again: the report that the old one closed was lost.
		c.sessionClosed(old, StatusSessionBroken, "its ports are in use again")
	}
	e := &src.v.edges[edge]
	c.record(Event{Kind: EventSessionOpened, Graph: src.v.app.name, Session: c.sessions.id(slot), Source: src.id, Destination: dst.id,
		Service: dst.v.service, Plug: e.plug, Socket: e.socket, PlugPort: m.SourcePlugPort, NewPort: m.DestSocketNewPort,
		MessageID: m.MessageID, Status: m.Status})
	if s.closeWhen {
		c.closeSession(slot, "asked for before it was acknowledged")
	}
}

// lateAck has a session closed that was opened after its offer had expired: the
// Manager knows of every session, or it is none.
func (c *ManagerCore) lateAck(src *instance, m *SessionAck) {
	old, ok := src.answers.expired(m.MessageID)
	dst := c.instances[old.dest]
	if !ok || dst == nil || !m.Status.Success() || m.SourcePlugPort == 0 || m.DestSocketNewPort == 0 {
		return
	}
	same := func(s *session) bool { return s.src == src.slot && int(s.edge) == old.edge }
	if c.findSession(src.a, m.SourcePlugPort, dst, same) != 0 {
		return
	}
	port := m.SourcePlugPort
	e := &src.v.edges[old.edge]
	dst.addUnsaid(sessionPorts{src.a, port, e.socket})
	c.askEnd(src, &SourceSessionCloseRequest{
		Header:            Header{SubType: ManagerToAgent},
		SourceServiceName: src.v.service, SourceServiceInstanceID: src.id, SourceServiceInstanceNetworkAddress: src.a.addr,
		SourcePlugName: e.plug, SourcePlugPort: m.SourcePlugPort, DestServiceName: e.to.service,
		DestServiceInstanceNetworkAddress: old.address, DestSocketName: e.socket,
		DestSocketPort: old.port, DestSocketNewPort: m.DestSocketNewPort,
	}, TypeSourceSessionCloseResponse, func(st Status) {
		// What closed may have been the next session with these ports, whose
		// acknowledgment came meanwhile.
		if st.Success() && dst.live() && src.live() {
			if slot := c.findSession(src.a, port, dst, same); slot != 0 {
				c.sessionClosed(slot, StatusOK, "closed by the Manager")
			}
		}
	})
}

// takeOffer takes an offer out of the tables.
func (c *ManagerCore) takeOffer(key offerKey) {
	delete(c.offers, key)
	if src := c.instances[key.src]; src != nil {
		src.offers--
	}
	// Most offers are acknowledged long before they expire.
	if len(c.expiries) > 2*len(c.offers)+64 {
		keep := c.expiries[:0]
		for _, x := range c.expiries {
			if c.offers[x.key] == uint32(x.id) {
				keep = append(keep, x)
			}
		}
		c.expiries = keep
	}
}

func (c *ManagerCore) expireOffers() {
	// Closing a session may compact the list: each entry is taken out first.
	for len(c.expiries) > 0 && c.expiries[0].at <= c.now {
		x := c.expiries[0]
		c.expiries = c.expiries[1:]
		slot := c.sessions.lookup(x.id)
		if slot == 0 || c.offers[x.key] != slot {
			continue
		}
		if a := c.slots[c.sessions.at(slot).src].a; !a.lost && (!a.up() || c.now-a.backSince < c.cfg.AckTimeout) {
			// Its acknowledgment may be waiting for the agent to come back, or for
			// the instance to come back to an agent that did.
			c.expiries = append(c.expiries, offerExpiry{c.now + c.cfg.AckTimeout, x.key, x.id})
			continue
		}
		c.sessionClosed(slot, StatusTimeout, "not acknowledged")
	}
}

// findSession finds an acknowledged session by its connection.
func (c *ManagerCore) findSession(node *agent, plugPort uint16, dst *instance, match func(*session) bool) uint32 {
	return c.sessions.find(node.index, plugPort, dst.slot, match)
}

// sourceCloseInfo handles the report of a session's end from its client.
func (c *ManagerCore) sourceCloseInfo(a *agent, m *SourceSessionCloseInfo) {
	src, dst := c.instances[m.SourceServiceInstanceID], c.instances[m.DestServiceInstanceID]
	if src == nil || dst == nil {
		c.dropped++ // an end is gone, and its sessions with it
		return
	}
	if src.a != a {
		c.violation(a.conn, fmt.Sprintf("close info for instance %d, which is not its own", src.id))
		return
	}
	slot := c.findSession(a, m.SourcePlugPort, dst, func(s *session) bool {
		return s.src == src.slot && src.v.edges[s.edge].plug == m.SourcePlugName
	})
	c.closeReported(src, slot, &m.Header, m.Status, false)
}

// destCloseInfo handles the report of a session's end from its server, who
// knows of its client only the address and the port.
func (c *ManagerCore) destCloseInfo(a *agent, m *DestSessionCloseInfo) {
	dst := c.instances[m.DestServiceInstanceID]
	node := c.byAddr[m.SourceServiceInstanceNetworkAddress]
	if dst == nil || node == nil {
		c.dropped++
		return
	}
	if dst.a != a {
		c.violation(a.conn, fmt.Sprintf("close info for instance %d, which is not its own", dst.id))
		return
	}
	// What comes again is doubted anyway, and leaves what is still to be said.
	late := m.Extension(extAgain) == "" && dst.takeUnsaid(sessionPorts{node, m.SourcePlugPort, m.DestSocketName})
	slot := c.findSession(node, m.SourcePlugPort, dst, func(s *session) bool {
		return c.slots[s.src].v.edges[s.edge].socket == m.DestSocketName
	})
	c.closeReported(dst, slot, &m.Header, m.Status, late)
}

// sessionClosed ends a session, whatever its state, and goes on with what
// waited for that.
func (c *ManagerCore) sessionClosed(slot uint32, status Status, cause string) {
	s := c.sessions.at(slot)
	src, dst := c.slots[s.src], c.slots[s.dst]
	if s.state == SessionOffered {
		if key := (offerKey{src.id, s.messageID}); c.offers[key] == slot {
			c.takeOffer(key)
		}
	}
	e := &src.v.edges[s.edge]
	if s.state != SessionOffered && dst != c.doer.closing {
		dst.addUnsaid(sessionPorts{src.a, s.plugPort, e.socket})
	}
	c.record(Event{Kind: EventSessionClosed, Graph: src.v.app.name, Session: c.sessions.id(slot), Source: src.id, Destination: dst.id,
		Service: dst.v.service, Plug: e.plug, Socket: e.socket, PlugPort: s.plugPort, NewPort: s.newPort,
		MessageID: s.messageID, Status: status, Cause: cause})
	for _, i := range [...]*instance{src, dst} {
		if i.state >= instanceDraining {
			c.drained(i)
		} else {
			c.armIdle(i)
		}
	}
}

// closeSession has a session closed at its source; if that does not do it, at
// its destination.
func (c *ManagerCore) closeSession(slot uint32, cause string) {
	s := c.sessions.at(slot)
	if s.closeWhen && s.state == SessionOffered || s.state == SessionClosing {
		return
	}
	c.sessionClosing(slot, cause)
	if s.state == SessionClosing {
		c.askToClose(slot, cause)
	}
}

// sessionClosing records that a session is to be closed by the Manager. One
// that is only offered has no connection to name yet.
func (c *ManagerCore) sessionClosing(slot uint32, cause string) {
	s := c.sessionStatus(slot)
	c.record(Event{Kind: EventSessionClosing, Graph: c.slots[c.sessions.at(slot).src].v.app.name, Session: s.ID,
		Source: s.Source, Destination: s.Destination, Service: s.DestinationService, Plug: s.Plug, Socket: s.Socket,
		PlugPort: s.PlugPort, NewPort: s.NewPort, MessageID: c.sessions.at(slot).messageID, Cause: cause})
}

func (c *ManagerCore) askToClose(slot uint32, cause string) {
	id := c.sessions.id(slot)
	closed := func(st Status) bool { return st.Success() || st == StatusNotFound || st == StatusGone }
	end := func(status Status, how string) {
		if slot := c.sessions.lookup(id); slot != 0 {
			c.sessionClosed(slot, status, cause+how)
		}
	}
	c.askSource(slot, func(st Status) {
		if closed(st) {
			end(StatusOK, ", closed by the Manager")
			return
		}
		if slot := c.sessions.lookup(id); slot != 0 {
			c.askDestination(slot, func(st Status) {
				if closed(st) {
					end(StatusOK, ", closed by the Manager at its destination")
				} else {
					end(StatusSessionBroken, ", neither end answered")
				}
			})
		}
	})
}

// closeFarEnds has the far end of each session of an instance that is going,
// or gone, close it.
func (c *ManagerCore) closeFarEnds(i *instance) {
	c.eachSession(i, func(slot uint32) {
		s := c.sessions.at(slot)
		if !i.leaving && s.state != SessionClosing && !s.closeWhen {
			c.sessionClosing(slot, "shutdown of "+i.v.service)
		}
		if s.state == SessionOffered {
			return
		}
		id := c.sessions.id(slot)
		done := func(Status) {
			if slot := c.sessions.lookup(id); slot != 0 {
				c.sessionClosed(slot, StatusSessionBroken, "shutdown of "+i.v.service)
			}
		}
		if s.src == i.slot {
			c.askDestination(slot, done)
		} else {
			c.askSource(slot, done)
		}
	})
}

func (c *ManagerCore) askSource(slot uint32, done func(Status)) {
	c.askEnd(c.slots[c.sessions.at(slot).src], c.sourceCloseRequest(slot), TypeSourceSessionCloseResponse, done)
}

func (c *ManagerCore) askDestination(slot uint32, done func(Status)) {
	c.askEnd(c.slots[c.sessions.at(slot).dst], c.destCloseRequest(slot), TypeDestSessionCloseResponse, done)
}

func (c *ManagerCore) sourceCloseRequest(slot uint32) Message {
	s := c.sessionStatus(slot)
	return &SourceSessionCloseRequest{
		Header:            Header{SubType: ManagerToAgent},
		SourceServiceName: s.SourceService, SourceServiceInstanceID: s.Source, SourceServiceInstanceNetworkAddress: s.SourceAddress,
		SourcePlugName: s.Plug, SourcePlugPort: s.PlugPort, DestServiceName: s.DestinationService,
		DestServiceInstanceNetworkAddress: s.DestinationAddress, DestSocketName: s.Socket,
		DestSocketPort: s.SocketPort, DestSocketNewPort: s.NewPort,
	}
}

func (c *ManagerCore) destCloseRequest(slot uint32) Message {
	s := c.sessionStatus(slot)
	return &DestSessionCloseRequest{
		Header:          Header{SubType: ManagerToAgent},
		DestServiceName: s.DestinationService, DestServiceInstanceID: s.Destination, DestServiceInstanceNetworkAddress: s.DestinationAddress,
		SourceServiceInstanceNetworkAddress: s.SourceAddress, SourcePlugName: s.Plug, SourcePlugPort: s.PlugPort,
		DestSocketName: s.Socket, DestSocketPort: s.SocketPort, DestSocketNewPort: s.NewPort,
	}
}

// askEnd asks an instance to close its end. One whose agent is away is not
// waited for, unless all are.
func (c *ManagerCore) askEnd(i *instance, m Message, want Type, done func(Status)) {
	timeout := c.cfg.RequestTimeout
	if !i.a.up() {
		if !c.resuming {
			done(StatusUnavailable)
			return
		}
		timeout = c.cfg.LostAfter
	}
	c.request(i.a, m, want, timeout, done)
}
