package ssmmp

import (
	"maps"
	"slices"
)

// FixedPorts are the sockets of an API Gateway, each with its fixed port.
type FixedPorts map[string]uint16

// In are the abstract sockets of a service, IN.
type In []string

// Out are the abstract plugs of a service, OUT.
type Out []string

// A GraphBuilder makes a Graph in Go. Its methods return the builder itself,
// and all faults wait for Build.
type GraphBuilder struct {
	graph Graph
	extra []Vertex // of At
}

// NewGraph begins a graph with that name.
func NewGraph(name string) *GraphBuilder {
	return &GraphBuilder{graph: Graph{Name: name}}
}

// Gateway adds an API Gateway, at a vertex of its own name.
func (b *GraphBuilder) Gateway(name string, in FixedPorts, out Out) *GraphBuilder {
	var sockets []Socket
	for _, socket := range slices.Sorted(maps.Keys(in)) {
		sockets = append(sockets, Socket{Name: socket, Port: in[socket]})
	}
	return b.service(name, Gateway, sockets, out)
}

// Regular adds a regular service, at a vertex of its own name.
func (b *GraphBuilder) Regular(name string, in In, out Out) *GraphBuilder {
	return b.service(name, Regular, in.sockets(), out)
}

// Storage adds a storage service, at a vertex of its own name.
func (b *GraphBuilder) Storage(name string, in In) *GraphBuilder {
	return b.service(name, Storage, in.sockets(), nil)
}

// At puts a service at one more vertex.
func (b *GraphBuilder) At(vertex, service string) *GraphBuilder {
	b.extra = append(b.extra, Vertex{Name: vertex, Service: service})
	return b
}

// Edge adds the edge (from, (plug, socket), to) between two vertices.
func (b *GraphBuilder) Edge(from, plug, socket, to string) *GraphBuilder {
	b.graph.Edges = append(b.graph.Edges, Edge{From: from, Plug: plug, Socket: socket, To: to})
	return b
}

// Build returns the graph, or all its faults as Validate gives them. The
// builder may go on afterwards; the graph shares nothing with it.
func (b *GraphBuilder) Build() (*Graph, error) {
	g := b.graph.Clone()
	g.Vertices = append(defaultVertices(g.Services), b.extra...)
	if err := g.Validate(); err != nil {
		return nil, err
	}
	return g, nil
}

func (b *GraphBuilder) service(name string, kind Kind, in []Socket, out Out) *GraphBuilder {
	b.graph.Services = append(b.graph.Services, Service{
		Name: name, Kind: kind, Sockets: in, Plugs: slices.Clone(out),
	})
	return b
}

// sockets returns the sockets with no fixed port.
func (in In) sockets() []Socket {
	var sockets []Socket
	for _, name := range in {
		sockets = append(sockets, Socket{Name: name})
	}
	return sockets
}
