package ssmmp

import "strconv"

// The Manager's core, continued: sessions of which it is doubtful whether they
// are open still. Their ends are asked.

// A doubt is a question to one end of a session.
type doubt struct {
	end      *instance
	session  SessionID
	reported bool   // it may have said that the session closed,
	status   Status // with this status
}

// A doubtKey names a doubt.
type doubtKey struct {
	end     InstanceID
	session SessionID
}

// doubtsAtOnce is how many questions are under way to one agent. An agent that
// was away for long may raise more than its connection takes.
const doubtsAtOnce = 64

// closeReported closes a session since one of its ends says so. A report that
// may be of an older one with the same ports is, if that end has this one open.
func (c *ManagerCore) closeReported(by *instance, slot uint32, h *Header, status Status, doubtful bool) {
	again := h.Extension(extAgain)
	doubtful = doubtful || h.MessageID == by.lastReport || again != ""
	by.lastReport = h.MessageID
	if slot == 0 {
		c.dropped++ // the other end reported it first
		return
	}
	if request, err := strconv.ParseInt(again, 10, 64); err == nil && request > 0 && c.slots[c.sessions.at(slot).src] == by {
		if request != c.sessions.at(slot).messageID {
			c.dropped++
			return
		}
		doubtful = false
	}
	if !doubtful {
		c.closedBy(by, slot, status, by.v.reports)
		return
	}
	c.doubt(doubt{by, c.sessions.id(slot), true, status})
}

func (c *ManagerCore) closedBy(by *instance, slot uint32, status Status, cause string) {
	c.doer.closing = by
	c.sessionClosed(slot, status, cause)
	c.doer.closing = nil
}

// compareSessions asks after the sessions of which an instance is the source,
// when it has fewer than the Manager knows of: the report of an end was lost. What
// it has said the Manager has heard, in that order, and of a session that its
// other end closed first it has still more.
func (c *ManagerCore) compareSessions(i *instance, said string) {
	n, err := strconv.ParseUint(said, 10, 32)
	if err != nil || uint64(c.sessions.ends[i.slot].srcLen) <= n || c.now < i.doubtAgain {
		return
	}
	var acknowledged []SessionID
	c.eachSession(i, func(slot uint32) {
		if s := c.sessions.at(slot); s.src == i.slot && s.state != SessionOffered {
			acknowledged = append(acknowledged, c.sessions.id(slot))
		}
	})
	if uint64(len(acknowledged)) <= n {
		return
	}
	i.doubtAgain = c.now + 10*c.cfg.HealthPeriod
	for _, id := range acknowledged {
		c.doubt(doubt{end: i, session: id})
	}
}

// doubt has an end of a session asked whether it is open there, in its turn.
func (c *ManagerCore) doubt(d doubt) {
	a, key := d.end.a, doubtKey{d.end.id, d.session}
	if old := a.doubting[key]; old != nil {
		if d.reported {
			*old = d
		}
		return
	}
	if a.doubting == nil {
		a.doubting = map[doubtKey]*doubt{}
	}
	a.doubting[key] = &d
	a.doubts = append(a.doubts, &d)
	c.askDoubts(a)
}

func (c *ManagerCore) askDoubts(a *agent) {
	for len(a.doubts) > 0 && a.asking < doubtsAtOnce && a.up() {
		d := a.doubts[0]
		a.doubts = a.doubts[1:]
		slot := c.sessions.lookup(d.session)
		if slot == 0 || !d.reported && c.sessions.at(slot).state != SessionOpen {
			delete(a.doubting, doubtKey{d.end.id, d.session})
			continue
		}
		m, want := c.sourceCloseRequest(slot), TypeSourceSessionCloseResponse
		if c.slots[c.sessions.at(slot).src] != d.end {
			m, want = c.destCloseRequest(slot), TypeDestSessionCloseResponse
		}
		m.Head().Extensions = []Extension{{extAsk, "1"}}
		a.asking++
		// An answer that is slow is waited for: without one what was reported
		// is taken to be true.
		c.request(a, m, want, c.cfg.LostAfter, func(st Status) {
			a.asking--
			delete(a.doubting, doubtKey{d.end.id, d.session})
			c.decide(d, st)
			c.askDoubts(a)
		})
	}
}

// decide closes a session, or leaves it open, as the end that was asked says.
func (c *ManagerCore) decide(d *doubt, st Status) {
	slot := c.sessions.lookup(d.session)
	switch {
	case slot == 0 || st == StatusStillOpen:
	case d.reported:
		c.closedBy(d.end, slot, d.status, d.end.v.reports)
	case st == StatusNotFound:
		c.closedBy(d.end, slot, StatusSessionBroken, "the report of its end was lost")
	}
}
