package ssmmp

// A Kind is what part a service plays in a CNApp.
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
type Graph struct {
	Name     string
	Services []Service
	Vertices []Vertex
	Edges    []Edge
}
