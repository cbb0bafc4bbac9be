package ssmmp

import (
	"fmt"
	"slices"
)

// A Kind is what part a service plays in a CNApp. Its text form is "regular",
// "gateway" or "storage".
type Kind uint8

// The three kinds of service.
const (
	// Regular services are stateless and have sockets and plugs.
	Regular Kind = iota
	// Gateway services are the entry points for users: nothing in the graph
	// leads to them, and each of their sockets has a fixed port.
	Gateway
	// Storage services (BaaS) keep the state; they have no plugs, and at most
	// one instance of each vertex runs.
	Storage
)

var kindText = [...]string{Regular: "regular", Gateway: "gateway", Storage: "storage"}

// A Service is an abstract service: its inputs IN and outputs OUT. Its
// function F is whatever program an agent's repository has for its name.
type Service struct {
	Name    string
	Kind    Kind
	Sockets []Socket // IN
	Plugs   []string // OUT
}

// A Socket is an abstract socket. Port is the fixed, well-known port of an API
// Gateway's socket, and zero for all other sockets: theirs the Manager chooses.
type Socket struct {
	Name string
	Port uint16
}

// A Vertex is a place for a service in the graph. The same service may stand
// at several, with different destinations for its plugs.
type Vertex struct {
	Name    string
	Service string
}

// An Edge (C, (P,S), D) leads from plug P of vertex C to socket S of vertex D.
type Edge struct {
	From   string // vertex C
	Plug   string // P, in OUT of C's service
	Socket string // S, in IN of D's service
	To     string // vertex D
}

// A Graph is the abstract graph of one CNApp: a directed labelled multigraph.
//
// Make one with NewGraph, ReadGraph or ParseGraph, or fill in the fields and
// call Validate. Names of services and vertices are unique within their graph,
// names of sockets and plugs within their service.
type Graph struct {
	Name     string
	Services []Service
	Vertices []Vertex
	Edges    []Edge
}

// String returns the kind's text form.
func (k Kind) String() string {
	if int(k) < len(kindText) {
		return kindText[k]
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}

// MarshalText returns the kind's text form, and an error when k is not one of
// the three kinds.
func (k Kind) MarshalText() ([]byte, error) {
	if int(k) < len(kindText) {
		return []byte(kindText[k]), nil
	}
	return nil, fmt.Errorf("ssmmp: %v is not a kind of service", k)
}

// UnmarshalText sets k from its text form, and leaves it alone when text is
// none.
func (k *Kind) UnmarshalText(text []byte) error {
	i := slices.Index(kindText[:], string(text))
	if i < 0 {
		return fmt.Errorf("ssmmp: kind %s is not gateway, regular or storage", displayName(string(text)))
	}
	*k = Kind(i)
	return nil
}

// String returns the edge as (C, (P, S), D).
func (e Edge) String() string {
	return fmt.Sprintf("(%s, (%s, %s), %s)",
		displayName(e.From), displayName(e.Plug), displayName(e.Socket), displayName(e.To))
}

// Service returns the service with that name. Its slices are the graph's own.
func (g *Graph) Service(name string) (Service, bool) {
	for i := range g.Services {
		if g.Services[i].Name == name {
			return g.Services[i], true
		}
	}
	return Service{}, false
}

// Vertex returns the vertex with that name.
func (g *Graph) Vertex(name string) (Vertex, bool) {
	for _, v := range g.Vertices {
		if v.Name == name {
			return v, true
		}
	}
	return Vertex{}, false
}

// EdgeOf returns the edge that leads from a plug of a vertex. In a valid graph
// each plug of each vertex has exactly one.
func (g *Graph) EdgeOf(vertex, plug string) (Edge, bool) {
	for _, e := range g.Edges {
		if e.From == vertex && e.Plug == plug {
			return e, true
		}
	}
	return Edge{}, false
}

// Gateways returns the names of the vertices at which API Gateways stand, in
// the order of the graph's vertices.
func (g *Graph) Gateways() []string {
	gateway := make(map[string]bool)
	for i := range g.Services {
		if g.Services[i].Kind == Gateway {
			gateway[g.Services[i].Name] = true
		}
	}
	var names []string
	for _, v := range g.Vertices {
		if gateway[v.Service] {
			names = append(names, v.Name)
		}
	}
	return names
}

// Clone returns a copy that shares nothing with g that can be changed.
func (g *Graph) Clone() *Graph {
	c := &Graph{
		Name:     g.Name,
		Services: slices.Clone(g.Services),
		Vertices: slices.Clone(g.Vertices),
		Edges:    slices.Clone(g.Edges),
	}
	for i := range c.Services {
		s := &c.Services[i]
		s.Sockets = slices.Clone(s.Sockets)
		s.Plugs = slices.Clone(s.Plugs)
	}
	return c
}

// Cycles returns the graph's cycles as its strongly connected components: each
// element holds the names of vertices that all lead to one another, or one
// vertex that leads to itself. Cycles among regular services are legal; in a
// valid graph there are no others. A graph can have more elementary cycles
// than could ever be listed; its components are found in one pass over its
// vertices and edges.
//
// Components, and the vertices in each, are in the order of the graph's
// vertices. Edges that name unknown vertices are passed over.
func (g *Graph) Cycles() [][]string {
	// Tarjan's algorithm, with its own stack in place of recursion: a graph
	// may be a path as long as a graph file can hold.
	type frame struct{ vertex, next int }
	var (
		_, succ = g.successors()
		order   = make([]int, len(succ)) // of discovery, from 1; 0 is unseen
		low     = make([]int, len(succ)) // least order known to be reachable
		open    = make([]bool, len(succ))
		path    []int // open vertices, in order of discovery
		calls   []frame
		seen    int
		found   [][]int
	)
	enter := func(v int) {
		seen++
		order[v], low[v], open[v] = seen, seen, true
		path = append(path, v)
		calls = append(calls, frame{vertex: v})
	}
	for root := range succ {
		if order[root] != 0 {
			continue
		}
		enter(root)
		for len(calls) > 0 {
			f := &calls[len(calls)-1]
			v := f.vertex
			if f.next < len(succ[v]) {
				w := succ[v][f.next]
				f.next++
				if order[w] == 0 {
					enter(w)
				} else if open[w] {
					low[v] = min(low[v], order[w])
				}
				continue
			}
			calls = calls[:len(calls)-1]
			if len(calls) > 0 {
				parent := calls[len(calls)-1].vertex
				low[parent] = min(low[parent], low[v])
			}
			if low[v] != order[v] {
				continue
			}
			start := len(path) - 1
			for path[start] != v {
				start--
			}
			component := slices.Clone(path[start:])
			path = path[:start]
			for _, w := range component {
				open[w] = false
			}
			if len(component) > 1 || slices.Contains(succ[v], v) {
				slices.Sort(component)
				found = append(found, component)
			}
		}
	}
	slices.SortFunc(found, func(a, b []int) int { return a[0] - b[0] })
	var cycles [][]string
	for _, component := range found {
		names := make([]string, len(component))
		for i, v := range component {
			names[i] = g.Vertices[v].Name
		}
		cycles = append(cycles, names)
	}
	return cycles
}

// successors returns the index in g.Vertices of each vertex by its name, the
// first where a name is there twice, and for each vertex the indices of those
// that its edges lead to.
func (g *Graph) successors() (index map[string]int, succ [][]int) {
	index = make(map[string]int, len(g.Vertices))
	for i, v := range g.Vertices {
		if _, dup := index[v.Name]; !dup {
			index[v.Name] = i
		}
	}
	succ = make([][]int, len(g.Vertices))
	for _, e := range g.Edges {
		from, ok := index[e.From]
		if to, known := index[e.To]; ok && known {
			succ[from] = append(succ[from], to)
		}
	}
	return index, succ
}

// defaultVertices puts each service at one vertex of its own name.
func defaultVertices(services []Service) []Vertex {
	vertices := make([]Vertex, len(services))
	for i := range services {
		vertices[i] = Vertex{Name: services[i].Name, Service: services[i].Name}
	}
	return vertices
}

// displayName returns a name as it is written in errors: as it is, or quoted
// and cut short when it is no name, so that an error stays one short line
// whatever a graph holds.
func displayName(s string) string {
	switch {
	case ValidName(s):
		return s
	case len(s) > MaxName:
		return fmt.Sprintf("%q...", s[:MaxName])
	default:
		return fmt.Sprintf("%q", s)
	}
}
