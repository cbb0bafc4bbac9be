package ssmmp

import (
	"container/heap"
	"iter"
	"math/bits"
	"slices"
)

// What the policy chooses by, kept up to date with the state: a choice costs
// little among thousands.

// An instanceOrder has the instances at a vertex that take sessions, the best
// first.
type instanceOrder []*instance

// An instanceRank is an instance's place in the order of its vertex.
type instanceRank struct {
	index    int // in the order, from 1; 0 for not in it
	takes    takes
	sessions uint64
}

// takes says whether an instance takes a session, from best to worst.
type takes uint8

const (
	takesNone takes = iota
	takesWell
	takesSoon // when it is ready
	takesUnwell
)

// first returns the best instance, nil if none takes a session.
func (o instanceOrder) first() (*instance, takes) {
	if len(o) == 0 {
		return nil, takesNone
	}
	return o[0], o[0].rank.takes
}

// put gives an instance its place.
func (o *instanceOrder) put(i *instance, t takes, sessions uint64) {
	r := &i.rank
	was := r.takes
	if was == t && r.sessions == sessions {
		return
	}
	r.takes, r.sessions = t, sessions
	switch {
	case t == takesNone:
		heap.Remove(o, r.index-1)
	case was == takesNone:
		heap.Push(o, i)
	default:
		heap.Fix(o, r.index-1)
	}
}

func (o instanceOrder) Len() int { return len(o) }

func (o instanceOrder) Less(a, b int) bool {
	x, y := &o[a].rank, &o[b].rank
	switch {
	case x.takes != y.takes:
		return x.takes < y.takes
	case x.sessions != y.sessions:
		return x.sessions < y.sessions
	}
	return o[a].id < o[b].id
}

func (o instanceOrder) Swap(a, b int) {
	o[a], o[b] = o[b], o[a]
	o[a].rank.index, o[b].rank.index = a+1, b+1
}

func (o *instanceOrder) Push(x any) {
	i := x.(*instance)
	*o = append(*o, i)
	i.rank.index = len(*o)
}

func (o *instanceOrder) Pop() any {
	old := *o
	i := old[len(old)-1]
	old[len(old)-1] = nil
	*o = old[:len(old)-1]
	i.rank.index = 0
	return i
}

// An agentSet is a set of agents: a bit for each, by agent.index.
type agentSet struct{ words []uint64 }

func (s *agentSet) add(a *agent) {
	for len(s.words) <= int(a.index/64) {
		s.words = append(s.words, 0)
	}
	s.words[a.index/64] |= 1 << (a.index % 64)
}

func (s *agentSet) remove(a *agent) {
	if int(a.index/64) < len(s.words) {
		s.words[a.index/64] &^= 1 << (a.index % 64)
	}
}

func (s *agentSet) has(a *agent) bool {
	return int(a.index/64) < len(s.words) && s.words[a.index/64]&(1<<(a.index%64)) != 0
}

func (s *agentSet) count() int {
	n := 0
	for _, w := range s.words {
		n += bits.OnesCount64(w)
	}
	return n
}

// both goes through the indexes of the agents that are in this set and in two
// others, in their order.
func (s *agentSet) both(p, q *agentSet) iter.Seq[int] {
	return func(yield func(int) bool) {
		for n := range min(len(s.words), len(p.words), len(q.words)) {
			for w := s.words[n] & p.words[n] & q.words[n]; w != 0; w &= w - 1 {
				if !yield(64*n + bits.TrailingZeros64(w)) {
					return
				}
			}
		}
	}
}

// loaded notes that an agent has another number of instances than before.
func (c *ManagerCore) loaded(a *agent, before int) {
	now := len(a.instances)
	for len(c.loads) <= now {
		c.loads = append(c.loads, agentSet{})
	}
	if before < len(c.loads) {
		c.loads[before].remove(a)
	}
	c.loads[now].add(a)
}

// findHosts notes who has the services of a graph that is deployed.
func (c *ManagerCore) findHosts(app *cnapp) {
	fresh := map[string]*agentSet{}
	for _, v := range app.vertices {
		if c.hosts[v.service] == nil {
			fresh[v.service] = &agentSet{}
			c.hosts[v.service] = fresh[v.service]
		}
	}
	if len(fresh) == 0 {
		return
	}
	for _, a := range c.agents {
		for _, name := range a.services {
			if s := fresh[name]; s != nil {
				s.add(a)
			}
		}
	}
}

// provides notes which services an agent has from now on.
func (c *ManagerCore) provides(a *agent, services []string) {
	if slices.Equal(a.services, services) {
		return
	}
	for _, name := range a.services {
		if s := c.hosts[name]; s != nil {
			s.remove(a)
		}
	}
	a.services = services
	for _, name := range services {
		if s := c.hosts[name]; s != nil {
			s.add(a)
		}
	}
}
