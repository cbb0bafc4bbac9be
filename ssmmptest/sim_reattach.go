package ssmmptest

import (
	"maps"
	"slices"
	"time"

	"github.com/ssmmp/ssmmp"
)

// Agents that keep their state, as with AgentConfig.StateDir: what an agent
// leaves when it dies, and how the next one goes on with it.

// A simKept is the state directory of a node. It is written as the production
// agent does: an intent before an instance is executed, and what is learned of
// it a little later.
type simKept struct {
	identity string
	epoch    uint64
	records  map[ssmmp.InstanceID]*ssmmp.InstanceRecord
	ended    []ssmmp.InstanceID // oldest first
}

// keep has the state changed a little later, if the agent lives until then.
func (n *simNode) keep(change func(k *simKept)) {
	if n.kept != nil {
		n.s.after(&n.simActor, n.host.rand.between(0, 2*time.Millisecond), func() { change(n.kept) })
	}
}

// intend notes an instance before it is executed.
func (n *simNode) intend(l ssmmp.Launch) {
	if n.kept == nil {
		return
	}
	r := &ssmmp.InstanceRecord{Launch: l}
	for execution, id := range n.executes {
		if id == l.ID {
			r.Execution = max(r.Execution, execution)
		}
	}
	n.kept.records[l.ID] = r
}

// neverRan forgets an instance that could not be executed.
func (n *simNode) neverRan(id ssmmp.InstanceID) {
	if n.kept != nil {
		delete(n.kept.records, id)
	}
}

// learned notes what the core knows of an instance.
func (n *simNode) learned(id ssmmp.InstanceID) {
	ready, spoke := n.core.Known(id)
	n.keep(func(k *simKept) {
		if r := k.records[id]; r != nil {
			r.Ready, r.Spoke = r.Ready || ready, r.Spoke || spoke
		}
	})
}

// sawEnd notes how an instance ended, before the core is told.
func (n *simNode) sawEnd(id ssmmp.InstanceID, exit ssmmp.Exit) {
	if n.kept != nil && n.kept.records[id] != nil {
		n.kept.records[id].Ended = &exit
	}
}

// forgets removes what is noted of an instance of whose end the Manager knows.
func (n *simNode) forgets(id ssmmp.InstanceID) {
	n.keep(func(k *simKept) {
		if k.records[id] != nil {
			delete(k.records, id)
			k.ended = append(k.ended, id)
		}
	})
}

// leave ends the agent, and nothing of what it executed.
func (n *simNode) leave() {
	s := n.s
	s.logf("%s dies, and what it executed does not", n.name)
	n.dead = true
	for _, id := range simSorted(n.ends) {
		s.die(n.ends[id], false)
	}
	n.backlog = nil
}

// comeBack goes on with what the agent before this one executed.
func (n *simNode) comeBack() {
	s, k := n.s, n.kept
	if k.identity == "" {
		k.identity = n.host.name
	}
	n.core.ComeBack(k.identity, k.epoch, k.ended)
	running := map[ssmmp.InstanceID]*simProc{}
	for _, p := range n.procs {
		running[p.id] = p
	}
	for _, id := range simSorted(k.records) {
		r := *k.records[id]
		r.Launch.Sockets, r.Launch.Plugs = slices.Clone(r.Launch.Sockets), slices.Clone(r.Launch.Plugs)
		if slices.Contains(k.ended, id) {
			delete(k.records, id)
			continue
		}
		if r.Execution != 0 {
			n.executes[r.Execution] = id
		}
		p := running[id]
		if p != nil {
			n.byID[id] = p
			p.asked, p.killAsked = n.local(s.now), false
		}
		n.step(ssmmp.AgentInput{Kind: ssmmp.AgentInputReattached, Instance: id, Record: &r})
		if p != nil && r.Ended == nil {
			s.hit(SimReattached)
			continue
		}
		exit := ssmmp.Exit{Code: -1, Unknown: true, Reason: "it ended with its agent"}
		if r.Ended != nil {
			exit = *r.Ended
		}
		delete(n.byID, id)
		n.step(ssmmp.AgentInput{Kind: ssmmp.AgentInputExited, Instance: id, Exit: exit})
	}
	// Whatever runs and is not known would never be ended.
	for _, id := range slices.Sorted(maps.Keys(running)) {
		if n.byID[id] == nil {
			s.fail("an agent that comes back finds all that it executed", "%s", running[id].name)
		}
	}
}
