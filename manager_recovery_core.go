package ssmmp

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// The Manager's core, continued: coming back. Replay applies the events of a
// Manager before this one, Resume goes on from there, and Checkpoint says the
// state in events, so that those before can be forgotten.

// The details of events, as JSON. In a checkpoint they say in addition what the
// state has from events that are not kept.
type (
	// graphDetail is that of EventGraphDeployed: the graph as it was then.
	graphDetail struct {
		Graph    *Graph         `json:"graph"`
		Vertices []vertexDetail `json:"vertices,omitempty"`
	}
	vertexDetail struct {
		Name      string        `json:"name"`
		LastNode  netip.Addr    `json:"last_node,omitzero"`
		QuickEnds int           `json:"quick_ends,omitempty"`
		LastEnd   time.Duration `json:"last_end,omitempty"`
		NotBefore time.Duration `json:"not_before,omitempty"`
		Ended     uint64        `json:"ended,omitempty"`
	}
	// agentDetail is that of EventAgentRegistered.
	agentDetail struct {
		Identity  string          `json:"identity,omitempty"`
		Services  []string        `json:"services,omitempty"`
		NextPort  uint16          `json:"next_port,omitempty"`
		Freed     []uint16        `json:"freed,omitempty"`
		FreedAt   []time.Duration `json:"freed_at,omitempty"`
		AwaySince time.Duration   `json:"away_since,omitempty"`
	}
	// instanceDetail is that of EventInstanceRequested.
	instanceDetail struct {
		State     instanceState  `json:"state"`
		Ready     time.Duration  `json:"ready,omitempty"`
		IdleSince time.Duration  `json:"idle_since,omitempty"`
		Status    Status         `json:"status,omitempty"`
		Why       string         `json:"why,omitempty"`
		Failure   Status         `json:"failure,omitempty"`
		Stopping  uint64         `json:"stopping,omitempty"`
		Unwell    uint64         `json:"unwell,omitempty"`
		Newest    int64          `json:"newest,omitempty"`
		Answers   []answerDetail `json:"answers,omitempty"` // oldest first
	}
	answerDetail struct {
		MessageID int64      `json:"message_id"`
		Edge      int        `json:"edge"`
		Dest      InstanceID `json:"dest,omitempty"`
		Address   netip.Addr `json:"address,omitzero"`
		Port      uint16     `json:"port,omitempty"`
		Status    Status     `json:"status"`
		Opened    bool       `json:"opened,omitempty"`
	}
	// checkpointDetail is that of EventCheckpointBegan and EventCheckpointEnded.
	checkpointDetail struct {
		LastInstance InstanceID `json:"last_instance,omitempty"`
		Storm        bool       `json:"storm,omitempty"`
		Used         uint32     `json:"used,omitempty"` // slots of sessions
		Free         []uint32   `json:"free,omitempty"` // slots of sessions, and how often each was used
		Uses         []uint32   `json:"uses,omitempty"`
	}
)

func toDetail(d any) string {
	b, err := json.Marshal(d)
	if err != nil {
		return "" // a valid graph, a decoded repository: all of it can be written
	}
	return string(b)
}

// detailOf reads the detail of an event. Replay made sure that it can be read.
func detailOf[D any](ev *Event) D {
	var d D
	if ev.Detail != "" {
		json.Unmarshal([]byte(ev.Detail), &d)
	}
	return d
}

// Now returns the core's clock: the time of the last step, or of the last event
// that was replayed. Who resumes a state goes on counting from there.
func (c *ManagerCore) Now() time.Duration { return c.now }

// Replay applies an event that a core before this one recorded. The events of a
// history, in their order and from its first one or from a checkpoint on, give
// the state that this core had then. An event that does not fit the state is
// refused, and changes nothing. After the last one comes Resume; in between
// there is nothing but Replay and Snapshot.
func (c *ManagerCore) Replay(ev Event) error {
	if err := c.fits(&ev); err != nil {
		return fmt.Errorf("ssmmp: event %d, %s: %w", ev.Seq, ev, err)
	}
	c.now, c.seq = ev.At, ev.Seq
	c.evolve(&ev)
	return nil
}

// fits tells whether an event can be applied: a history that lacks events, or
// was changed, shall not be taken for another.
func (c *ManagerCore) fits(ev *Event) error {
	if !c.restoring && ev.Seq != c.seq+1 && ev.Kind != EventCheckpointBegan {
		return fmt.Errorf("event %d comes next", c.seq+1)
	}
	if !c.restoring && ev.At < c.now {
		return fmt.Errorf("its time %v is before the one before it, %v", ev.At, c.now)
	}
	if ev.Kind == 0 || int(ev.Kind) >= len(eventNames) {
		return errors.New("not a kind of event")
	}
	needsAgent, needsInstance, needsApp := false, false, false
	switch ev.Kind {
	case EventGraphDeployed:
		var d graphDetail
		if err := json.Unmarshal([]byte(ev.Detail), &d); err != nil {
			return fmt.Errorf("its graph: %w", err)
		}
		if d.Graph == nil || d.Graph.Name != ev.Graph {
			return errors.New("without its graph")
		}
		if err := d.Graph.Validate(); err != nil {
			return err
		}
		if c.app(ev.Graph) != nil {
			return errors.New("deployed twice")
		}
	case EventAgentRegistered:
		if !ev.Node.IsValid() {
			return errors.New("without an address")
		}
		if ev.Detail != "" {
			var d agentDetail
			if err := json.Unmarshal([]byte(ev.Detail), &d); err != nil || len(d.Freed) != len(d.FreedAt) {
				return errors.New("its repository cannot be read")
			}
		}
	case EventGraphUndeployed:
		needsApp = true
	case EventAgentAway, EventAgentLost:
		needsAgent = true
	case EventInstanceRequested:
		needsAgent, needsApp = true, true
		switch {
		case ev.Instance <= 0 || c.instances[ev.Instance] != nil:
			return errors.New("its id is in use")
		case c.vertex(ev.Graph, ev.Vertex) == nil:
			return errors.New("the graph has no such vertex")
		}
		if c.restoring {
			c.restored = instanceDetail{}
			if err := json.Unmarshal([]byte(ev.Detail), &c.restored); err != nil {
				return fmt.Errorf("its state: %w", err)
			}
		}
	case EventInstanceReady, EventInstanceStopping, EventInstanceKilling, EventInstanceEnded, EventHealthChanged:
		needsInstance = true
		if i := c.instances[ev.Instance]; i != nil && ev.Kind == EventInstanceEnded && c.sessionsOf(i) > 0 {
			return errors.New("it has sessions")
		}
	case EventSessionOffered, EventSessionOpened, EventSessionClosing, EventSessionClosed:
		src, dst := c.instances[ev.Source], c.instances[ev.Destination]
		if src == nil || dst == nil {
			return errors.New("an end is not known")
		}
		if edge, ok := src.v.edge(ev.Plug); !ok || src.v.edges[edge].socket != ev.Socket || src.v.edges[edge].to != dst.v {
			return errors.New("not on an edge of the graph")
		}
		slot := c.sessions.lookup(ev.Session)
		switch {
		case c.restoring:
			if slot != 0 || uint32(ev.Session) == 0 || ev.Session>>32 == 0 || ev.Kind == EventSessionClosed || uint32(ev.Session) >= c.restoreTo {
				return errors.New("not a session of a checkpoint")
			}
			if ev.Kind != EventSessionOffered && ev.PlugPort == 0 {
				return errors.New("open without a port")
			}
		case ev.Kind == EventSessionOffered:
			if next := c.sessions.next(); ev.Session != next {
				return fmt.Errorf("not the next session, %s", next)
			}
		case slot == 0 || c.slots[c.sessions.at(slot).src] != src || c.slots[c.sessions.at(slot).dst] != dst:
			return errors.New("no such session")
		case ev.Kind == EventSessionOpened && (c.sessions.at(slot).state != SessionOffered || ev.PlugPort == 0):
			return errors.New("it was open")
		}
	case EventSessionRefused:
		if src := c.instances[ev.Source]; src != nil && ev.Socket != "" {
			if _, ok := src.v.edge(ev.Plug); !ok {
				return errors.New("the graph has no such edge")
			}
		}
	case EventCheckpointBegan, EventCheckpointEnded:
		if c.restoring == (ev.Kind == EventCheckpointBegan) {
			return errors.New("not in its place")
		}
		if ev.Kind == EventCheckpointBegan && (len(c.agents) > 0 || len(c.apps) > 0) {
			return errors.New("not at the beginning")
		}
		var d checkpointDetail
		if err := json.Unmarshal([]byte(ev.Detail), &d); err != nil {
			return fmt.Errorf("its state: %w", err)
		}
		if len(d.Free) != len(d.Uses) || d.Used > maxSlots {
			return errors.New("its free sessions cannot be read")
		}
		free := map[uint32]bool{}
		for _, slot := range d.Free {
			twice := free[slot]
			free[slot] = true
			if twice || slot == 0 || slot >= d.Used || d.Used != c.restoreTo || slot < c.sessions.used && c.sessions.at(slot).state != 0 {
				return fmt.Errorf("%d is not a free session", slot)
			}
		}
	}
	switch {
	case needsAgent && c.byAddr[ev.Node] == nil:
		return errors.New("its agent is not known")
	case needsInstance && c.instances[ev.Instance] == nil:
		return errors.New("its instance is not known")
	case needsApp && c.app(ev.Graph) == nil:
		return errors.New("its graph is not deployed")
	}
	return nil
}

// maxSlots bounds what a checkpoint may make the table of sessions hold.
const maxSlots = 1 << 28

// Checkpoint returns the state in events: replayed into a new core they give
// it, and the events that are recorded from now on fit after them. They all
// have the Seq of the last event before, and no Time.
func (c *ManagerCore) Checkpoint() []Event {
	t := &c.sessions
	events := make([]Event, 0, 2+len(c.agents)+len(c.apps)+len(c.instances)+t.live)
	add := func(ev Event) {
		ev.At, ev.Seq = c.now, c.seq
		events = append(events, ev)
	}
	add(Event{Kind: EventCheckpointBegan, MessageID: c.reserved, Detail: toDetail(checkpointDetail{LastInstance: c.lastInstance, Storm: c.storm, Used: t.used})})
	for _, a := range c.agents {
		add(a.checkpoint(c.now))
		if a.lost {
			add(Event{Kind: EventAgentLost, Node: a.addr, CauseSeq: a.gone})
		} else if !a.here {
			add(Event{Kind: EventAgentAway, Node: a.addr, CauseSeq: a.gone})
			events[len(events)-1].At = a.awaySince
		}
	}
	for _, app := range c.apps {
		d := graphDetail{Graph: app.graph}
		for _, v := range app.vertices {
			if v.lastNode != nil {
				d.Vertices = append(d.Vertices, vertexDetail{v.name, v.lastNode.addr, v.quickEnds, v.lastEnd, v.notBefore, v.ended})
			}
		}
		add(Event{Kind: EventGraphDeployed, Graph: app.name, CauseSeq: app.deployed, Detail: toDetail(d)})
	}
	for _, i := range c.inOrder() {
		d := instanceDetail{State: i.state, Ready: i.ready, IdleSince: i.idleSince, Status: i.status, Why: i.why, Failure: i.failure, Newest: i.newestMessage, Stopping: i.stopping, Unwell: i.unwell}
		if d.State == instanceStopping {
			d.State = instanceDraining
		}
		r := &i.answers
		for n := range r.ring {
			a := r.ring[(r.next+n)%len(r.ring)]
			d.Answers = append(d.Answers, answerDetail{a.messageID, a.edge, a.dest, a.address, a.port, a.status, a.opened})
		}
		add(c.about(i, Event{Kind: EventInstanceRequested, CauseSeq: i.began, Sockets: i.sockets, Detail: toDetail(d)}))
	}
	// Graphs are undeployed when all of their instances are there, or they
	// would be forgotten at once.
	for _, app := range c.apps {
		if app.retiring {
			add(Event{Kind: EventGraphUndeployed, Graph: app.name, CauseSeq: app.undeployed})
		}
	}
	slots := make([]uint32, 0, t.live)
	for slot := uint32(1); slot < t.used; slot++ {
		if t.at(slot).state != 0 {
			slots = append(slots, slot)
		}
	}
	// The oldest first: so the lists of each instance have their order again.
	slices.SortFunc(slots, func(a, b uint32) int { return cmp.Compare(t.offers-t.at(b).age, t.offers-t.at(a).age) })
	kinds := [...]EventKind{SessionOffered: EventSessionOffered, SessionOpen: EventSessionOpened, SessionClosing: EventSessionClosing}
	for _, slot := range slots {
		s, st := t.at(slot), c.sessionStatus(slot)
		ev := Event{Kind: kinds[s.state], Graph: c.slots[s.src].v.app.name, Session: st.ID, Source: st.Source, Destination: st.Destination,
			Service: st.DestinationService, Node: st.DestinationAddress, Plug: st.Plug, Socket: st.Socket, PlugPort: s.plugPort, NewPort: s.newPort, MessageID: s.messageID}
		if s.closeWhen {
			ev.Status = StatusSessionClosed
		}
		add(ev)
	}
	d := checkpointDetail{Used: t.used}
	for slot := t.free; slot != 0; slot = t.at(slot).srcNext {
		d.Free, d.Uses = append(d.Free, slot), append(d.Uses, t.at(slot).gen)
	}
	add(Event{Kind: EventCheckpointEnded, Detail: toDetail(d)})
	return events
}

func (a *agent) checkpoint(now time.Duration) Event {
	d := agentDetail{Identity: a.identity, Services: a.services, NextPort: a.ports.next, AwaySince: a.awaySince}
	for port, at := range a.ports.freed {
		if now-at < a.ports.linger {
			d.Freed = append(d.Freed, port)
		}
	}
	slices.Sort(d.Freed)
	for _, port := range d.Freed {
		d.FreedAt = append(d.FreedAt, a.ports.freed[port])
	}
	return Event{Kind: EventAgentRegistered, Node: a.addr, CauseSeq: a.came, Detail: toDetail(d)}
}

// evolveCheckpoint applies the first and the last event of a checkpoint. The
// restore functions apply what those between have beyond others of their kind.
func (c *ManagerCore) evolveCheckpoint(ev *Event) {
	d := detailOf[checkpointDetail](ev)
	if ev.Kind == EventCheckpointBegan {
		c.restoring, c.restoreTo = true, d.Used
		c.reserved, c.lastInstance = max(c.reserved, ev.MessageID), max(c.lastInstance, d.LastInstance)
		c.storm = d.Storm
		return
	}
	c.restoring = false
	t := &c.sessions
	if d.Used > 0 {
		t.reach(d.Used - 1)
	}
	for n := len(d.Free) - 1; n >= 0; n-- {
		*t.at(d.Free[n]) = session{gen: d.Uses[n], srcNext: t.free}
		t.free = d.Free[n]
	}
}

func (c *ManagerCore) restoreAgent(a *agent, d *agentDetail) {
	if !c.restoring {
		return
	}
	a.ports.next, a.awaySince = d.NextPort, d.AwaySince
	for n, port := range d.Freed {
		a.ports.free(port, d.FreedAt[n])
	}
}

func (c *ManagerCore) restoreGraph(app *cnapp, d *graphDetail) {
	for _, vd := range d.Vertices {
		if v := app.byName[vd.Name]; v != nil {
			v.lastNode = c.byAddr[vd.LastNode]
			v.quickEnds, v.lastEnd, v.notBefore, v.ended = vd.QuickEnds, vd.LastEnd, vd.NotBefore, vd.Ended
		}
	}
}

func (c *ManagerCore) restoreInstance(i *instance) {
	d := &c.restored
	i.state, i.ready, i.idleSince, i.status = min(d.State, instanceKilling), d.Ready, d.IdleSince, d.Status
	i.why, i.failure, i.newestMessage, i.stopping, i.unwell = d.Why, d.Failure, d.Newest, d.Stopping, d.Unwell
	for _, a := range d.Answers {
		if a.Edge >= 0 && a.Edge < len(i.v.edges) {
			i.answers.add(sessionAnswer{a.MessageID, a.Edge, a.Dest, a.Address, a.Port, a.Status, a.Opened})
		}
	}
}

func (c *ManagerCore) restoreSession(ev *Event) {
	src, dst, slot := c.instances[ev.Source], c.instances[ev.Destination], uint32(ev.Session)
	edge, _ := src.v.edge(ev.Plug)
	c.sessions.reach(slot)
	c.sessions.place(slot, uint32(ev.Session>>32), src.slot, dst.slot, uint16(edge), ev.MessageID)
	s := c.sessions.at(slot)
	if ev.Kind != EventSessionOffered {
		c.sessions.open(slot, ev.PlugPort, ev.NewPort)
	}
	if ev.Kind == EventSessionClosing {
		s.state = SessionClosing
	}
	s.closeWhen = ev.Status == StatusSessionClosed
	c.rank(src)
	c.rank(dst)
}

// Resume goes on from the state that Replay gave, once, before the first Step.
// No connection is left, and no request under way: agents are away until they
// register again, and then what was pending is asked for again, or has ended
// meanwhile, or is given up when its time is over. now is on the clock of the
// events, not before the last of them. What Resume returns is as from Step.
func (c *ManagerCore) Resume(now time.Duration) ([]ManagerOutput, []Event) {
	clear(c.out)
	c.out, c.events = c.out[:0], c.events[:0]
	c.now = max(c.now, now)
	c.restoring, c.resuming = false, true
	c.doer.actor = actorManager
	c.lastMessage = max(c.lastMessage, c.reserved)
	c.record(Event{Kind: EventManagerStarted, MessageID: c.lastMessage + messageBlock, Cause: fmt.Sprintf("%d agents, %d instances, %d sessions", len(c.agents), len(c.instances), c.sessions.live)})
	c.startedSeq = c.seq

	for _, a := range c.agents {
		if a.here {
			c.record(Event{Kind: EventAgentAway, Node: a.addr, Cause: "the Manager started"})
		}
		if !a.lost {
			a.awaySince = c.now
			c.watchAway(a)
		}
	}
	for slot := uint32(1); slot < c.sessions.used; slot++ {
		switch s := c.sessions.at(slot); s.state {
		case SessionOffered:
			c.awaitAck(c.sessions.id(slot))
		case SessionClosing:
			if c.slots[s.src].state < instanceKilling && c.slots[s.dst].state < instanceKilling {
				c.askToClose(slot, c.whyClosing(s))
			}
		}
	}
	for _, i := range c.inOrder() {
		i.suspect = i.status == StatusFailed
		c.rank(i)
		switch i.state {
		case instanceStarting:
			c.execute(i)
		case instanceRunning:
			c.armIdle(i)
		default:
			c.goOn(i)
		}
	}
	for _, app := range slices.Clone(c.apps) {
		if app.retiring {
			c.retire(app)
		}
	}
	c.restore()
	c.seekAgain()
	c.resuming = false
	c.doer = doer{}
	return c.out, c.events
}

// whyClosing finds the cause of a close that was under way again.
func (c *ManagerCore) whyClosing(s *session) string {
	for _, i := range [...]*instance{c.slots[s.src], c.slots[s.dst]} {
		if i.state >= instanceDraining {
			return i.why
		}
	}
	return "operator"
}
