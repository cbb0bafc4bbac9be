package ssmmp

import (
	"fmt"
	"strings"
)

// DOT returns the graph as Graphviz draws it: API Gateways as houses with
// their fixed ports, regular services as boxes, storage services as cylinders,
// and each edge with the label "P → S". A vertex with another name than its
// service shows both. The graph need not be valid.
func (g *Graph) DOT() string {
	var b strings.Builder
	fmt.Fprintf(&b, "digraph %s {\n\trankdir=LR;\n", quoteDOT(g.Name))
	shapes := make(map[string]string, len(g.Services))
	ports := make(map[string]string) // more of an API Gateway's label
	for i := range g.Services {
		s := &g.Services[i]
		switch s.Kind {
		case Gateway:
			shapes[s.Name] = "house"
			ports[s.Name] = portsLabel(s.Sockets)
		case Regular:
			shapes[s.Name] = "box"
		case Storage:
			shapes[s.Name] = "cylinder"
		}
	}
	for _, v := range g.Vertices {
		label := v.Name
		if v.Service != v.Name {
			label += "\n(" + v.Service + ")"
		}
		label += ports[v.Service]
		delete(ports, v.Service) // a fixed port is at one vertex only
		shape, ok := shapes[v.Service]
		if !ok {
			shape = "plaintext" // the service or its kind is unknown
		}
		fmt.Fprintf(&b, "\t%s [shape=%s, label=%s];\n", quoteDOT(v.Name), shape, quoteDOT(label))
	}
	for _, e := range g.Edges {
		fmt.Fprintf(&b, "\t%s -> %s [label=%s];\n", quoteDOT(e.From), quoteDOT(e.To), quoteDOT(e.Plug+" → "+e.Socket))
	}
	b.WriteString("}\n")
	return b.String()
}

// portsLabel returns a line for each socket with its fixed port.
func portsLabel(sockets []Socket) string {
	var b strings.Builder
	for _, s := range sockets {
		fmt.Fprintf(&b, "\n%s :%d", s.Name, s.Port)
	}
	return b.String()
}

// quoteDOT returns s as a quoted string of the DOT language. A backslash is
// doubled, or in a label it would begin an escape; control characters, which
// have no place there, become spaces.
func quoteDOT(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, c := range s {
		switch {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteRune(c)
		case c == '\n':
			b.WriteString(`\n`)
		case c < ' ' || c == 0x7f:
			b.WriteByte(' ')
		default:
			b.WriteRune(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}
