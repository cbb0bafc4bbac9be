package ssmmp

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
)

// MaxGraphFile is the greatest size in bytes of a graph's JSON form.
const MaxGraphFile = 16 << 20

// A GraphFileError says where a text is not the JSON form of a graph.
type GraphFileError struct {
	Line   int    // from 1; 0 when the whole file is meant
	Column int    // from 1, in characters
	Field  string // the field it stands in; may be empty
	Reason string
}

func (e *GraphFileError) Error() string {
	return fileFault("graph", e.Line, e.Column, e.Field, e.Reason)
}

// ReadGraph reads a graph in its JSON form and validates it. It reads to the
// end of r, or to just beyond MaxGraphFile. Errors are those of r and of
// ParseGraph.
func ReadGraph(r io.Reader) (*Graph, error) {
	data, err := io.ReadAll(io.LimitReader(r, MaxGraphFile+1))
	if err != nil {
		return nil, fmt.Errorf("ssmmp: graph file: %w", err)
	}
	return ParseGraph(data)
}

// ParseGraph reads a graph from its JSON form and validates it:
//
//	{
//	  "name": "shop",
//	  "services": [
//	    {"name": "web", "kind": "gateway", "sockets": [{"name": "S0", "port": 8080}], "plugs": ["P1"]},
//	    {"name": "cart", "kind": "regular", "sockets": [{"name": "S1"}], "plugs": ["P2"]},
//	    {"name": "db", "kind": "storage", "sockets": [{"name": "S2"}]}
//	  ],
//	  "vertices": [
//	    {"name": "web", "service": "web"},
//	    {"name": "cart", "service": "cart"},
//	    {"name": "db", "service": "db"}
//	  ],
//	  "edges": [
//	    {"from": "web", "plug": "P1", "socket": "S1", "to": "cart"},
//	    {"from": "cart", "plug": "P2", "socket": "S2", "to": "db"}
//	  ]
//	}
//
// Every field may be left out, and is then empty, but for two: without a kind
// a service is regular, and without vertices each service stands at one vertex
// of its own name, as here. Vertices that are given are all there are. A port
// is from 1 to 65535.
//
// The form is read strictly: an unknown field (case counts), a field given
// twice, a value of another type, null and anything after the graph are a
// *GraphFileError, and so is a text longer than MaxGraphFile. The faults of a
// graph that can be read are those of Validate, all of them.
func ParseGraph(data []byte) (*Graph, error) {
	g := new(Graph)
	if err := g.UnmarshalJSON(data); err != nil {
		return nil, err
	}
	if err := g.Validate(); err != nil {
		return nil, err
	}
	return g, nil
}

// UnmarshalJSON sets g from its JSON form, as ParseGraph does, without
// validating it. An error leaves g as it was.
func (g *Graph) UnmarshalJSON(data []byte) error {
	if len(data) > MaxGraphFile {
		return &GraphFileError{Reason: fmt.Sprintf("larger than %d bytes", MaxGraphFile)}
	}
	r := graphReader{newJSONReader(data, func(line, column int, field, reason string) error {
		return &GraphFileError{line, column, field, reason}
	})}
	if err := r.checkSyntax(); err != nil {
		return err
	}
	read, err := r.graph()
	if err != nil {
		return err
	}
	*g = read
	return nil
}

// MarshalJSON returns the JSON form of g, which need not be valid. It leaves
// out what ParseGraph can do without. The error is that of a kind that is none
// of the three.
func (g Graph) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	if err := g.write(&b); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// WriteTo writes the JSON form of g for people to read, with one service,
// vertex or edge on each line. Errors are those of w and of MarshalJSON.
func (g *Graph) WriteTo(w io.Writer) (int64, error) {
	var b bytes.Buffer
	if err := g.write(&b); err != nil {
		return 0, err
	}
	b.WriteByte('\n')
	return b.WriteTo(w)
}

func (g *Graph) write(b *bytes.Buffer) error {
	fmt.Fprintf(b, "{\n  \"name\": %s", quoteJSON(g.Name))
	var err error
	writeLines(b, "services", g.Services, func(s Service) {
		kind, e := s.Kind.MarshalText()
		err = errors.Join(err, e)
		fmt.Fprintf(b, `{"name": %s, "kind": %s`, quoteJSON(s.Name), quoteJSON(string(kind)))
		if len(s.Sockets) > 0 {
			b.WriteString(`, "sockets": [`)
			for i, socket := range s.Sockets {
				fmt.Fprintf(b, `%s{"name": %s`, listSeparator(i), quoteJSON(socket.Name))
				if socket.Port != 0 {
					fmt.Fprintf(b, `, "port": %d`, socket.Port)
				}
				b.WriteByte('}')
			}
			b.WriteByte(']')
		}
		if len(s.Plugs) > 0 {
			b.WriteString(`, "plugs": [`)
			for i, p := range s.Plugs {
				b.WriteString(listSeparator(i))
				b.WriteString(quoteJSON(p))
			}
			b.WriteByte(']')
		}
		b.WriteByte('}')
	})
	if !slices.Equal(g.Vertices, defaultVertices(g.Services)) {
		writeLines(b, "vertices", g.Vertices, func(v Vertex) {
			fmt.Fprintf(b, `{"name": %s, "service": %s}`, quoteJSON(v.Name), quoteJSON(v.Service))
		})
	}
	writeLines(b, "edges", g.Edges, func(e Edge) {
		fmt.Fprintf(b, `{"from": %s, "plug": %s, "socket": %s, "to": %s}`,
			quoteJSON(e.From), quoteJSON(e.Plug), quoteJSON(e.Socket), quoteJSON(e.To))
	})
	b.WriteString("\n}")
	return err
}

// writeLines writes one field of the graph, an array with each item on a line.
func writeLines[T any](b *bytes.Buffer, field string, items []T, write func(T)) {
	fmt.Fprintf(b, ",\n  %q: [", field)
	for i, item := range items {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString("\n    ")
		write(item)
	}
	if len(items) > 0 {
		b.WriteString("\n  ")
	}
	b.WriteByte(']')
}

// listSeparator is what stands before the item i of an array on one line.
func listSeparator(i int) string {
	if i == 0 {
		return ""
	}
	return ", "
}

func quoteJSON(s string) string {
	quoted, _ := json.Marshal(s) // cannot fail: s is a string
	return string(quoted)
}

// A graphReader reads a graph's JSON form, to its first fault.
type graphReader struct{ *jsonReader }

func (r graphReader) graph() (g Graph, err error) {
	err = r.object(func(key string) error {
		switch key {
		case "name":
			return r.text(&g.Name)
		case "services":
			return r.array(func() error {
				s, err := r.service()
				g.Services = append(g.Services, s)
				return err
			})
		case "vertices":
			g.Vertices = []Vertex{} // given, even when there are none
			return r.array(func() error {
				var v Vertex
				err := r.texts(map[string]*string{"name": &v.Name, "service": &v.Service})
				g.Vertices = append(g.Vertices, v)
				return err
			})
		case "edges":
			return r.array(func() error {
				var e Edge
				err := r.texts(map[string]*string{"from": &e.From, "plug": &e.Plug, "socket": &e.Socket, "to": &e.To})
				g.Edges = append(g.Edges, e)
				return err
			})
		}
		return errUnknownField
	})
	if g.Vertices == nil {
		g.Vertices = defaultVertices(g.Services)
	}
	return g, err
}

func (r graphReader) service() (s Service, err error) {
	err = r.object(func(key string) error {
		switch key {
		case "name":
			return r.text(&s.Name)
		case "kind":
			var text string
			if err := r.text(&text); err != nil {
				return err
			}
			if err := s.Kind.UnmarshalText([]byte(text)); err != nil {
				return r.fail("%s is not gateway, regular or storage", displayName(text))
			}
			return nil
		case "sockets":
			return r.array(func() error {
				socket, err := r.socket()
				s.Sockets = append(s.Sockets, socket)
				return err
			})
		case "plugs":
			return r.array(func() error {
				var p string
				err := r.text(&p)
				s.Plugs = append(s.Plugs, p)
				return err
			})
		}
		return errUnknownField
	})
	return s, err
}

func (r graphReader) socket() (s Socket, err error) {
	err = r.object(func(key string) error {
		switch key {
		case "name":
			return r.text(&s.Name)
		case "port":
			return r.port(&s.Port)
		}
		return errUnknownField
	})
	return s, err
}

func (r graphReader) port(port *uint16) error {
	token, err := r.token()
	if err != nil {
		return err
	}
	number, ok := token.(json.Number)
	if !ok {
		return r.fail("want a port, found %s", tokenName(token))
	}
	n, err := strconv.ParseUint(number.String(), 10, 16)
	if err != nil || n == 0 {
		return r.fail("want a port from 1 to 65535, found %s", displayName(number.String()))
	}
	*port = uint16(n)
	return nil
}
