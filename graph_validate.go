package ssmmp

import (
	"errors"
	"fmt"
)

// maxGraphFaults bounds how many faults Validate lists, and with it the work
// and the memory that a hostile graph can cost.
const maxGraphFaults = 1000

// maxConfiguration bounds in bytes what an execution_request says of sockets and
// plugs: the rest of its line is shorter than 512.
const maxConfiguration = MaxLine - 512

// A GraphError is one fault in a graph.
type GraphError struct {
	Graph  string // the graph's name
	Where  string // "service login", "edge (login, (P7, S6), users_db)"
	Value  string // what is wrong there: a name, a port; may be empty
	Reason string // why it is wrong
}

func (e *GraphError) Error() string {
	s := "ssmmp: graph " + displayName(e.Graph) + ": "
	if e.Where != "" {
		s += e.Where + ": "
	}
	if e.Value != "" {
		s += displayName(e.Value) + ": "
	}
	return s + e.Reason
}

// Validate returns nil, or every fault of the graph at once: an error that
// errors.Join made of *GraphError, always in the same order. After the first
// 1,000 faults one more says that there are others.
//
// A valid graph has at least one API Gateway. All names keep the rule of
// PROTOCOL section 2 and are unique. Every service stands at a vertex, and
// every vertex can be reached from an API Gateway. Each plug of each vertex has
// exactly one edge, which leads to a socket that its destination has; the line
// that tells an instance of its sockets and plugs is no longer than MaxLine. An API
// Gateway has sockets, each with a fixed port of its own outside those that
// PROTOCOL section 1 gives to others; nothing leads to it. A regular service
// has sockets and plugs. A storage service has sockets and no plugs.
func (g *Graph) Validate() error {
	c := graphCheck{graph: g, services: make(map[string]*serviceCheck, len(g.Services))}
	c.checkName("", g.Name)
	c.checkServices()
	c.checkVertices()
	c.checkEdges()
	c.checkReach()
	if c.unlisted {
		c.faults = append(c.faults, &GraphError{Graph: g.Name, Reason: "there are more faults than are listed here"})
	}
	return errors.Join(c.faults...)
}

// A graphCheck is one run of Validate. Each of its steps uses what those before
// it have learned.
type graphCheck struct {
	graph    *Graph
	faults   []error
	unlisted bool // faults were left out

	services map[string]*serviceCheck // by name
	index    map[string]int           // of vertices, by name
	succ     [][]int                  // of each vertex
}

// A serviceCheck is what graphCheck knows of a service.
type serviceCheck struct {
	*Service
	sockets map[string]bool
	plugs   map[string]bool
	size    int  // of its sockets in a socket_configuration, in bytes
	stands  bool // at some vertex
}

// fault records one fault.
func (c *graphCheck) fault(where, value, format string, args ...any) {
	if len(c.faults) == maxGraphFaults {
		c.unlisted = true
		return
	}
	c.faults = append(c.faults, &GraphError{
		Graph: c.graph.Name, Where: where, Value: value, Reason: fmt.Sprintf(format, args...),
	})
}

// checkName checks a name against the rule of PROTOCOL section 2.
func (c *graphCheck) checkName(where, name string) {
	if !ValidName(name) {
		c.fault(where, name, "not a name of 1 to %d letters, digits, '_', and after the first also '.' and '-'", MaxName)
	}
}

// checkServices checks each service by itself, and the fixed ports.
func (c *graphCheck) checkServices() {
	gateway := false
	owners := make(map[uint16]string) // of fixed ports
	for i := range c.graph.Services {
		s := &c.graph.Services[i]
		where := graphPlace("service", i, s.Name)
		c.checkName(where, s.Name)
		sc := &serviceCheck{Service: s, sockets: make(map[string]bool), plugs: make(map[string]bool)}
		if c.services[s.Name] != nil {
			c.fault(where, "", "duplicate service")
		} else {
			c.services[s.Name] = sc
		}
		for _, socket := range s.Sockets {
			c.checkSocket(where, sc, socket, owners)
		}
		for _, p := range s.Plugs {
			c.checkName(where, p)
			if sc.plugs[p] {
				c.fault(where, p, "duplicate plug")
			}
			sc.plugs[p] = true
		}
		switch s.Kind {
		case Gateway:
			gateway = true
		case Regular:
			if len(s.Plugs) == 0 {
				c.fault(where, "", "a regular service without plugs")
			}
		case Storage:
			if len(s.Plugs) > 0 {
				c.fault(where, s.Plugs[0], "a storage service with plugs")
			}
		default:
			c.fault(where, "", "%v is not a kind of service", s.Kind)
		}
		if len(s.Sockets) == 0 {
			c.fault(where, "", "a %v service without sockets", s.Kind)
		}
	}
	if !gateway {
		c.fault("", "", "no API Gateway")
	}
}

// checkSocket checks one socket of a service; owners holds the fixed ports
// seen so far.
func (c *graphCheck) checkSocket(where string, s *serviceCheck, socket Socket, owners map[uint16]string) {
	c.checkName(where, socket.Name)
	if s.sockets[socket.Name] {
		c.fault(where, socket.Name, "duplicate socket")
	}
	s.sockets[socket.Name] = true
	s.size += len(socket.Name) + len(", 65535 & ")

	port := socket.Port
	owner, taken := owners[port]
	switch {
	case port == 0 && s.Kind == Gateway:
		c.fault(where, socket.Name, "a socket of an API Gateway without a fixed port")
	case port == 0:
	case s.Kind != Gateway:
		c.fault(where, socket.Name, "fixed port %d, which only a socket of an API Gateway has", port)
	case taken:
		c.fault(where, socket.Name, "fixed port %d is already that of %s", port, owner)
	case port >= FirstSocketPort && port <= LastSocketPort:
		c.fault(where, socket.Name, "fixed port %d is among those that the Manager gives out, %d to %d",
			port, FirstSocketPort, LastSocketPort)
	case port == ManagerPort:
		c.fault(where, socket.Name, "fixed port %d is the Manager's", port)
	case port == AgentPort:
		c.fault(where, socket.Name, "fixed port %d is the agents'", port)
	default:
		owners[port] = fmt.Sprintf("socket %s of service %s", displayName(socket.Name), displayName(s.Name))
	}
}

// checkVertices checks each vertex by itself, and that every service stands.
func (c *graphCheck) checkVertices() {
	c.index, c.succ = c.graph.successors()
	for i, v := range c.graph.Vertices {
		where := graphPlace("vertex", i, v.Name)
		c.checkName(where, v.Name)
		if c.index[v.Name] != i {
			c.fault(where, "", "duplicate vertex")
		}
		s := c.services[v.Service]
		switch {
		case s == nil:
			c.fault(where, v.Service, "no such service")
			continue
		case s.Kind == Gateway && s.stands:
			// Its instances here would need the fixed ports of those there.
			c.fault(where, v.Service, "an API Gateway at two vertices, whose fixed ports would clash")
		}
		s.stands = true
	}
	for i := range c.graph.Services {
		if s := &c.graph.Services[i]; !c.services[s.Name].stands {
			c.fault(graphPlace("service", i, s.Name), "", "stands at no vertex")
		}
	}
}

// checkEdges checks each edge, and that each plug of each vertex has one.
func (c *graphCheck) checkEdges() {
	type plug struct{ vertex, name string }
	seen := make(map[Edge]bool, len(c.graph.Edges))
	used := make(map[plug]bool, len(c.graph.Edges))
	size := make([]int, len(c.graph.Vertices)) // of the plug_configuration of each
	for _, e := range c.graph.Edges {
		if seen[e] {
			c.fault("edge "+e.String(), "", "duplicate edge")
			continue
		}
		seen[e] = true
		if _, ok := c.index[e.From]; !ok {
			c.fault("edge "+e.String(), e.From, "no such vertex")
		} else if s := c.serviceAt(e.From); s != nil && !s.plugs[e.Plug] {
			c.fault("edge "+e.String(), e.Plug, "not a plug of service %s", displayName(s.Name))
		} else if used[plug{e.From, e.Plug}] {
			c.fault("edge "+e.String(), e.Plug, "the plug has an edge already: put the service at two vertices")
		}
		used[plug{e.From, e.Plug}] = true

		if _, ok := c.index[e.To]; !ok {
			c.fault("edge "+e.String(), e.To, "no such vertex")
		} else if s := c.serviceAt(e.To); s != nil {
			if from, ok := c.index[e.From]; ok {
				size[from] += len(e.Plug) + len(e.Socket) + len(s.Name) + len(", ,  & ")
			}
			if s.Kind == Gateway {
				c.fault("edge "+e.String(), e.To, "leads to an API Gateway, which must be an initial vertex")
			}
			if !s.sockets[e.Socket] {
				c.fault("edge "+e.String(), e.Socket, "not a socket of service %s", displayName(s.Name))
			}
		}
	}
	for i, v := range c.graph.Vertices {
		s := c.services[v.Service]
		if s == nil || c.index[v.Name] != i {
			continue
		}
		if n := s.size + size[i]; n > maxConfiguration {
			c.fault(graphPlace("vertex", i, v.Name), "", "its sockets and plugs need %d bytes, and an execution_request has room for %d", n, maxConfiguration)
		}
		for _, p := range s.Plugs {
			if used[plug{v.Name, p}] {
				continue
			}
			c.fault(graphPlace("vertex", i, v.Name), p, "the plug has no edge")
			if c.unlisted {
				return // plugs times vertices can be far more than the file's size
			}
		}
	}
}

// checkReach checks that every vertex can be reached from an API Gateway. A
// graph without one has that fault and not also this one for each vertex.
func (c *graphCheck) checkReach() {
	var (
		vertices = c.graph.Vertices
		reached  = make([]bool, len(vertices))
		queue    []int
	)
	for i, v := range vertices {
		if s := c.services[v.Service]; s != nil && s.Kind == Gateway {
			reached[i] = true
			queue = append(queue, i)
		}
	}
	if len(queue) == 0 {
		return
	}
	for len(queue) > 0 {
		v := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		for _, w := range c.succ[v] {
			if !reached[w] {
				reached[w] = true
				queue = append(queue, w)
			}
		}
	}
	for i, v := range vertices {
		if !reached[i] && c.index[v.Name] == i {
			c.fault(graphPlace("vertex", i, v.Name), "", "no API Gateway leads to it")
		}
	}
}

// serviceAt returns the service at a known vertex, nil when that is unknown.
func (c *graphCheck) serviceAt(vertex string) *serviceCheck {
	return c.services[c.graph.Vertices[c.index[vertex]].Service]
}

// graphPlace names a service or a vertex: by its name, or by its position from
// 1 when it has none.
func graphPlace(what string, i int, name string) string {
	if name == "" {
		return fmt.Sprintf("%s #%d", what, i+1)
	}
	return what + " " + displayName(name)
}
