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
	services := make(map[string]*Service, len(g.Services))
	for i := range g.Services {
		s := &g.Services[i]
		services[s.Name] = s
	}
	for _, v := range g.Vertices {
		var label strings.Builder
		label.WriteString(v.Name)
		if v.Service != v.Name {
			label.WriteString("\n(" + v.Service + ")")
		}
		shape := "plaintext" // of a service that is unknown
		if s := services[v.Service]; s != nil {
			switch s.Kind {
			case Gateway:
				shape = "house"
				for _, socket := range s.Sockets {
					fmt.Fprintf(&label, "\n%s :%d", socket.Name, socket.Port)
				}
			case Regular:
				shape = "box"
			case Storage:
				shape = "cylinder"
			}
		}
		fmt.Fprintf(&b, "\t%s [shape=%s, label=%s];\n", quoteDOT(v.Name), shape, quoteDOT(label.String()))
	}
	for _, e := range g.Edges {
		fmt.Fprintf(&b, "\t%s -> %s [label=%s];\n", quoteDOT(e.From), quoteDOT(e.To), quoteDOT(e.Plug+" → "+e.Socket))
	}
	b.WriteString("}\n")
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
