package ssmmp

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// Vertices, kind, sockets, plugs, edges and port may be left out.
func TestParseGraphDefaults(t *testing.T) {
	t.Parallel()
	const text = `{
		"edges": [{"to": "db", "socket": "S1", "plug": "P1", "from": "web"}, {"from": "cart", "plug": "P", "socket": "S2", "to": "db"},
			{"from": "web", "plug": "P2", "socket": "S", "to": "cart"}],
		"services": [
			{"name": "web", "kind": "gateway", "sockets": [{"port": 80, "name": "S0"}], "plugs": ["P1", "P2"]},
			{"name": "cart", "sockets": [{"name": "S"}], "plugs": ["P"]},
			{"name": "db", "kind": "storage", "sockets": [{"name": "S1"}, {"name": "S2"}], "plugs": []}],
		"name": "shop"}
	`
	want := &Graph{
		Name: "shop",
		Services: []Service{
			{"web", Gateway, []Socket{{"S0", 80}}, []string{"P1", "P2"}},
			{"cart", Regular, []Socket{{"S", 0}}, []string{"P"}},
			{"db", Storage, []Socket{{"S1", 0}, {"S2", 0}}, nil},
		},
		Vertices: []Vertex{{"web", "web"}, {"cart", "cart"}, {"db", "db"}},
		Edges:    []Edge{{"web", "P1", "S1", "db"}, {"cart", "P", "S2", "db"}, {"web", "P2", "S", "cart"}},
	}
	got, err := ParseGraph([]byte(text))
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("ParseGraph = %+v, %v, want %+v", got, err, want)
	}
}

// Vertices that are given are all there are, even if none are.
func TestParseGraphVertices(t *testing.T) {
	t.Parallel()
	const service = `{"name": "g", "services": [{"name": "web", "kind": "gateway", "sockets": [{"name": "S0", "port": 80}]}]`
	for vertices, want := range map[string][]Vertex{
		``:                   {{"web", "web"}},
		`, "vertices": []`:   {},
		`, "vertices": [{}]`: {{}},
		`, "vertices": [{"name": "w1", "service": "web"}, {"name": "w2", "service": "web"}]`: {{"w1", "web"}, {"w2", "web"}},
	} {
		var g Graph
		if err := json.Unmarshal([]byte(service+vertices+"}"), &g); err != nil {
			t.Errorf("%q: %v", vertices, err)
		} else if !slices.Equal(g.Vertices, want) {
			t.Errorf("%q: vertices are %+v, want %+v", vertices, g.Vertices, want)
		}
		if again := marshalled(t, &g); !reflect.DeepEqual(*again, g) {
			t.Errorf("%q: from JSON again: %+v, want %+v", vertices, *again, g)
		}
	}
}

// The form is strict, and an error names the place.
func TestParseGraphErrors(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		``:                            "1:1: unexpected end of JSON input",
		"{\n  \"name\": \"g\",\n":     "3:1: unexpected end of JSON input",
		"{\n  \"name\": \"g\",\n}":    "3:1: invalid character '}' looking for beginning of object key string",
		"\ufeff{}":                    "1:1: invalid character 'ï' looking for beginning of value",
		`null`:                        "1:1: want an object, found null",
		`[]`:                          "1:1: want an object, found an array",
		`{} {}`:                       "1:4: invalid character '{' after top-level value",
		"{}\n\n  x":                   "3:3: invalid character 'x' after top-level value",
		`{"Name": "g"}`:               `1:2: unknown field Name`,
		"{\r\n\t\"x y\": 1}":          `2:2: unknown field "x y"`,
		`{"name": "g", "name": "g"}`:  `1:15: the field name is given twice`,
		`{"name": null}`:              `1:10: name: want a string, found null`,
		`{"name" :  7}`:               `1:12: name: want a string, found a number`,
		`{"edges": {}}`:               `1:11: edges: want an array, found an object`,
		`{"edges": "e"}`:              `1:11: edges: want an array, found a string`,
		`{"services": [true]}`:        `1:15: services: want an object, found a boolean`,
		`{"name": "żółć", "port": 1}`: `1:18: unknown field port`,
		"{\"services\": [\n {\"name\": \"a\"},\n {\"nam\": \"b\"}]}":                 `3:3: services: unknown field nam`,
		`{"services": [{"kind": "Storage"}]}`:                                        `1:24: kind: Storage is not gateway, regular or storage`,
		`{"services": [{"kind": 1}]}`:                                                `1:24: kind: want a string, found a number`,
		`{"services": [{"plugs": ["P", ["Q"]]}]}`:                                    `1:31: plugs: want a string, found an array`,
		`{"services": [{"sockets": ["S"]}]}`:                                         `1:28: sockets: want an object, found a string`,
		`{"services": [{"sockets": [{"name": "S", "ports": 1}]}]}`:                   `1:42: sockets: unknown field ports`,
		`{"services": [{"sockets": [{"port": "80"}]}]}`:                              `1:37: port: want a port, found a string`,
		`{"services": [{"sockets": [{"port": 0}]}]}`:                                 `1:37: port: want a port from 1 to 65535, found 0`,
		`{"services": [{"sockets": [{"port": 65536}]}]}`:                             `1:37: port: want a port from 1 to 65535, found 65536`,
		`{"services": [{"sockets": [{"port": -1}]}]}`:                                `1:37: port: want a port from 1 to 65535, found "-1"`,
		`{"services": [{"sockets": [{"port": 80.0}]}]}`:                              `1:37: port: want a port from 1 to 65535, found 80.0`,
		`{"services": [{"sockets": [{"port": 1, "port": 1}]}]}`:                      `1:40: sockets: the field port is given twice`,
		`{"vertices": [{"vertex": "v"}]}`:                                            `1:16: vertices: unknown field vertex`,
		`{"edges": [{"from": "a", "from": "a"}]}`:                                    `1:26: edges: the field from is given twice`,
		`{"edges": [{"fr\u006fm": "a", "from": "a"}]}`:                               `1:31: edges: the field from is given twice`,
		`{"edges": [], "services": [], "vertices": [], "edges": []}`:                 `1:47: the field edges is given twice`,
		strings.Repeat("[", 20000):                                                   "1:10001: invalid character '[' exceeded max depth",
		`{"services":` + strings.Repeat("[", 9000) + strings.Repeat("]", 9000) + "}": "1:14: services: want an object, found an array",
	} {
		_, err := ParseGraph([]byte(text))
		fault := (*GraphFileError)(nil)
		if !errors.As(err, &fault) {
			t.Errorf("%.100q: %v (%T), want a GraphFileError", text, err, err)
		} else if got := strings.TrimPrefix(err.Error(), "ssmmp: graph file: "); got != want {
			t.Errorf("%.100q:\n got %s\nwant %s", text, got, want)
		}
	}
}

// A text that is a graph, with faults, gets them all from ParseGraph, and
// UnmarshalJSON lets them be.
func TestParseGraphValidates(t *testing.T) {
	t.Parallel()
	const text = `{"name": "g\ud800", "services": [{"name": "a", "plugs": ["P"]}]}`
	_, err := ParseGraph([]byte(text))
	if faults := graphFaults(t, err); len(faults) != 4 || faults[0].Value != "g\uFFFD" {
		t.Errorf("faults are %v", err)
	}
	var g Graph
	if err := g.UnmarshalJSON([]byte(text)); err != nil {
		t.Error(err)
	}
	kept := g.Clone()
	if err := g.UnmarshalJSON([]byte(`{"name": "other", "services": [], "x": 1}`)); err == nil || !reflect.DeepEqual(&g, kept) {
		t.Errorf("after the error %v the graph is %+v", err, g)
	}
}

type countingReader struct {
	r io.Reader
	n int
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += n
	return n, err
}

// endless reads as spaces, which JSON allows anywhere.
type endlessFile struct{}

func (endlessFile) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

func TestReadGraphIsBounded(t *testing.T) {
	t.Parallel()
	const want = "ssmmp: graph file: larger than 16777216 bytes"
	r := &countingReader{r: endlessFile{}}
	if _, err := ReadGraph(r); err == nil || err.Error() != want {
		t.Errorf("ReadGraph without end: %v, want %s", err, want)
	}
	if r.n > MaxGraphFile+1 {
		t.Errorf("ReadGraph read %d bytes", r.n)
	}
	text := marshalText(t, socialGraph(t))
	text = append(text, bytes.Repeat([]byte(" "), MaxGraphFile-len(text))...)
	if _, err := ReadGraph(bytes.NewReader(text)); err != nil {
		t.Errorf("ReadGraph of the greatest size: %v", err)
	}
	broken := errors.New("broken")
	if _, err := ReadGraph(io.MultiReader(strings.NewReader("{}"), errReader{broken})); !errors.Is(err, broken) {
		t.Errorf("ReadGraph of a broken reader: %v", err)
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

func TestMarshalGraphErrors(t *testing.T) {
	t.Parallel()
	g := &Graph{Services: []Service{{Name: "a", Kind: 3}}}
	if _, err := json.Marshal(g); err == nil {
		t.Error("Marshal writes an unknown kind")
	}
	var b bytes.Buffer
	if n, err := g.WriteTo(&b); err == nil || n != 0 || b.Len() != 0 {
		t.Errorf("WriteTo of an unknown kind = %d, %v", n, err)
	}
}

func marshalText(t testing.TB, g *Graph) []byte {
	t.Helper()
	text, err := g.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// marshalled returns g after a journey through encoding/json.
func marshalled(t testing.TB, g *Graph) *Graph {
	t.Helper()
	text, err := json.Marshal(*g) // also a Graph by value has its own form
	if err != nil {
		t.Fatal(err)
	}
	back := new(Graph)
	if err := json.Unmarshal(text, back); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return back
}

// checkDOT checks that quotes and brackets are balanced, and that outside the
// quotes there is only what DOT writes itself.
func checkDOT(t interface {
	Helper()
	Fatalf(string, ...any)
}, dot string) {
	t.Helper()
	var outside strings.Builder
	quoted, escaped := false, false
	for _, c := range dot {
		switch {
		case escaped:
			escaped = false
		case quoted && c == '\\':
			escaped = true
		case c == '"':
			quoted = !quoted
		case quoted && c < ' ':
			t.Fatalf("control character in quotes:\n%s", dot)
		case !quoted:
			outside.WriteRune(c)
		}
	}
	if quoted || escaped {
		t.Fatalf("quotes are not balanced:\n%s", dot)
	}
	rest, ok := strings.CutPrefix(outside.String(), "digraph  {\n\trankdir=LR;\n")
	rest, closed := strings.CutSuffix(rest, "}\n")
	if !ok || !closed {
		t.Fatalf("no graph:\n%s", dot)
	}
	known := []string{"\t ->  [label=];", "\t [shape=house, label=];", "\t [shape=box, label=];",
		"\t [shape=cylinder, label=];", "\t [shape=plaintext, label=];", ""}
	for line := range strings.SplitSeq(rest, "\n") {
		if !slices.Contains(known, line) {
			t.Fatalf("unknown statement %q:\n%s", line, dot)
		}
	}
}

// Random valid graphs survive their JSON form, and can be drawn.
func TestGraphRoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		g := drawGraph(rt)
		var file bytes.Buffer
		if _, err := g.WriteTo(&file); err != nil {
			rt.Fatal(err)
		}
		read, err := ReadGraph(&file)
		if err != nil {
			rt.Fatal(err)
		}
		if !reflect.DeepEqual(read, g) {
			rt.Fatalf("read %+v, want %+v", read, g)
		}
		if back := marshalled(t, g); !reflect.DeepEqual(back, g) {
			rt.Fatalf("unmarshalled %+v, want %+v", back, g)
		}
		checkDOT(rt, g.DOT())
	})
}

// Whatever the text, nothing panics, and what was read is a fixed point of
// marshal and parse.
func FuzzParseGraph(f *testing.F) {
	files, err := filepath.Glob("testdata/graphs/*.json")
	if err != nil || len(files) == 0 {
		f.Fatalf("no graphs: %v", err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte(`{"name":"a\"\\\u0000","services":[{"name":"","kind":"regular","sockets":[{"name":"<S>"}]}],"vertices":[{"name":"v"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var g Graph
		if g.UnmarshalJSON(data) != nil {
			if _, err := ParseGraph(data); err == nil {
				t.Fatal("ParseGraph takes what UnmarshalJSON refuses")
			}
			return
		}
		text := marshalText(t, &g)
		var again Graph
		if err := again.UnmarshalJSON(text); err != nil || !reflect.DeepEqual(again, g) {
			t.Fatalf("%s\nis read as %+v, %v\nwant %+v", text, again, err, g)
		}
		if text2 := marshalText(t, &again); !bytes.Equal(text, text2) {
			t.Fatalf("written again it is\n%s\nfirst it was\n%s", text2, text)
		}
		valid := g.Validate() == nil
		if _, err := ParseGraph(data); (err == nil) != valid {
			t.Fatalf("ParseGraph: %v, valid: %v", err, valid)
		}
		checkDOT(t, g.DOT())
		if cycles := g.Cycles(); valid {
			for _, cycle := range cycles {
				for _, v := range cycle {
					vertex, _ := g.Vertex(v)
					if s, _ := g.Service(vertex.Service); s.Kind != Regular {
						t.Fatalf("%s is in the cycle %q", v, cycle)
					}
				}
			}
		}
	})
}
