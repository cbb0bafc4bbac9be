package ssmmptest

import "github.com/ssmmp/ssmmp"

// What must hold of sessions, by the Manager's events.

// sessionEvent applies an event about a session to the model.
func (c *simCheck) sessionEvent(in *ssmmp.ManagerInput, ev *ssmmp.Event) {
	cfg := &c.s.manager.cfg
	switch ev.Kind {
	case ssmmp.EventSessionOffered:
		src, dst := c.live[ev.Source], c.live[ev.Destination]
		slot, gen := uint32(ev.Session), uint32(ev.Session>>32)
		if gen <= c.uses[slot] {
			c.fail("no session id is used twice", "%s", ev)
		}
		c.uses[slot] = gen
		if src == nil || dst == nil || !dst.ready || dst.stopping {
			c.fail("a session joins instances that are live when it is granted", "%s", ev)
			return
		}
		e, ok := c.vertices[[2]string{src.graph, src.vertex}].edges[ev.Plug]
		if !ok || src.graph != dst.graph || e.To != dst.vertex || e.Socket != ev.Socket {
			c.fail("a session lies on an edge of the graph", "%s", ev)
		}
		if n := cfg.SessionsPerInstance; n > 0 && dst.serves >= n {
			c.fail("no more sessions than SessionsPerInstance", "%s: %d", ev, dst.serves)
		}
		r := src.request(ev.MessageID, ev.Plug, ev.Socket)
		if c.replaying {
			r.asked, r.answered = 1, 1
		}
		if r.granted && r.last > 0 && src.answers-r.last >= simAnswers {
			*r = simRequest{id: r.id, plug: r.plug, socket: r.socket, asked: 1} // too long ago to be known
		}
		if r.asked == 0 || r.granted {
			c.fail("a session is granted once, to who asked", "%s", ev)
		}
		r.granted, r.decided, r.dest = true, true, ev.Destination
		port := uint16(0)
		for _, p := range dst.sockets {
			if p.Socket == ev.Socket {
				port = p.Port
			}
		}
		r.hash = simAnswerHash(ssmmp.StatusOK, ev.Destination, port)
		src.offered++
		dst.offered++
		dst.serves++
		c.sessions[ev.Session] = &simOpen{src: ev.Source, dst: ev.Destination, messageID: ev.MessageID}

	case ssmmp.EventSessionRefused:
		if src := c.live[ev.Source]; src != nil && ev.Status != ssmmp.StatusForbidden {
			r := src.request(ev.MessageID, ev.Plug, ev.Socket)
			if c.replaying {
				r.asked, r.answered = 1, 1
			}
			if ev.Status == ssmmp.StatusConflict {
				c.fail("a request does not fail at the first port that is taken", "%s", ev)
			}
			if !r.decided {
				r.hash = simAnswerHash(ev.Status, 0, 0)
			}
			r.decided = true
			src.answers++
		}

	case ssmmp.EventSessionOpened:
		o := c.sessions[ev.Session]
		if o == nil || o.opened || o.src != ev.Source || o.dst != ev.Destination {
			c.fail("a session opens once, after it was granted", "%s", ev)
			return
		}
		o.opened, o.plugPort = true, ev.PlugPort
		if src := c.live[ev.Source]; src != nil {
			if r := src.find(ev.MessageID, ev.Socket); r != nil {
				r.opened = true
				src.answers++
				r.last = src.answers
			}
		}
		for _, id := range [...]ssmmp.InstanceID{o.src, o.dst} {
			if i := c.live[id]; i != nil {
				i.offered--
				i.open++
			}
		}

	case ssmmp.EventSessionClosing:
		if o := c.sessions[ev.Session]; o != nil {
			o.closing = true
		}

	case ssmmp.EventSessionClosed:
		o := c.sessions[ev.Session]
		if o == nil {
			c.fail("a session closes exactly once", "%s", ev)
			return
		}
		delete(c.sessions, ev.Session)
		if o.opened && !c.replaying {
			c.closed(in, ev, o)
		}
		for _, id := range [...]ssmmp.InstanceID{o.src, o.dst} {
			i := c.live[id]
			if i == nil {
				continue
			}
			if o.opened {
				i.open--
			} else {
				i.offered--
				if id == o.src {
					i.answers++
					if r := i.find(o.messageID, ev.Socket); r != nil {
						r.last = i.answers
					}
				}
			}
			if i.open+i.offered == 0 {
				i.idleSince = in.Now
			}
		}
		if i := c.live[o.dst]; i != nil {
			i.serves--
		}
	}
}
