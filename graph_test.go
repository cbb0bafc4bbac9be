package ssmmp

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// socialGraph is the CNApp of PROTOCOL section 4.
func socialGraph(t testing.TB) *Graph {
	t.Helper()
	g, err := NewGraph("social").
		Gateway("gateway", FixedPorts{"S0": 8080}, Out{"P1", "P2", "P3", "P4", "P5"}).
		Regular("register", In{"S1"}, Out{"P6"}).
		Regular("login", In{"S2"}, Out{"P7"}).
		Regular("posts", In{"S3"}, Out{"P8"}).
		Regular("last_10_posts", In{"S4"}, Out{"P9"}).
		Regular("file_transfer", In{"S5"}, Out{"P10"}).
		Storage("users_db", In{"S6"}).
		Storage("posts_db", In{"S7"}).
		Storage("hd", In{"S8"}).
		Edge("gateway", "P1", "S1", "register").
		Edge("gateway", "P2", "S2", "login").
		Edge("gateway", "P3", "S3", "posts").
		Edge("gateway", "P4", "S4", "last_10_posts").
		Edge("gateway", "P5", "S5", "file_transfer").
		Edge("register", "P6", "S6", "users_db").
		Edge("login", "P7", "S6", "users_db").
		Edge("posts", "P8", "S7", "posts_db").
		Edge("last_10_posts", "P9", "S7", "posts_db").
		Edge("file_transfer", "P10", "S8", "hd").
		Build()
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// nineGraph is the other CNApp, of PROTOCOL section 5.
func nineGraph(t testing.TB) *Graph {
	t.Helper()
	g, err := NewGraph("nine").
		Gateway("A", FixedPorts{"S1": 8080}, Out{"P1", "P2", "P3"}).
		Regular("B", In{"S1"}, Out{"P4", "P5"}).
		Regular("service-1", In{"S2"}, Out{"P6", "P7"}).
		Regular("service-2", In{"S3"}, Out{"P8", "P9"}).
		Regular("service-3", In{"S7", "S8", "S9"}, Out{"Pp", "Pp4", "Pp5"}).
		Regular("service-4", In{"S4", "S5", "S6"}, Out{"Pp1", "Pp2", "Pp3"}).
		Storage("BaaS-1", In{"Sp", "Sp1", "Sp2"}).
		Storage("BaaS-2", In{"Sp3", "Sp4", "Sp5"}).
		Edge("A", "P1", "S1", "B").
		Edge("A", "P2", "S2", "service-1").
		Edge("A", "P3", "S3", "service-2").
		Edge("B", "P4", "S4", "service-4").
		Edge("B", "P5", "S5", "service-4").
		Edge("service-1", "P6", "S6", "service-4").
		Edge("service-1", "P7", "S7", "service-3").
		Edge("service-2", "P8", "S8", "service-3").
		Edge("service-2", "P9", "S9", "service-3").
		Edge("service-3", "Pp", "Sp", "BaaS-1").
		Edge("service-3", "Pp4", "Sp4", "BaaS-2").
		Edge("service-3", "Pp5", "Sp5", "BaaS-2").
		Edge("service-4", "Pp1", "Sp1", "BaaS-1").
		Edge("service-4", "Pp2", "Sp2", "BaaS-1").
		Edge("service-4", "Pp3", "Sp3", "BaaS-2").
		Build()
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func readTestdata(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", "graphs", name))
	if err != nil {
		t.Fatal(err)
	}
	return bytes.ReplaceAll(data, []byte("\r\n"), []byte("\n")) // as git may check it out
}

// The graphs of PROTOCOL sections 4 and 5 are the same in Go and in a file,
// and the file is what WriteTo writes.
func TestGraphOfProtocol(t *testing.T) {
	t.Parallel()
	for file, built := range map[string]*Graph{
		"social.json": socialGraph(t),
		"nine.json":   nineGraph(t),
	} {
		data := readTestdata(t, file)
		read, err := ReadGraph(bytes.NewReader(data))
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		if !reflect.DeepEqual(read, built) {
			t.Errorf("%s is\n%+v\nwant\n%+v", file, read, built)
		}
		var written bytes.Buffer
		if n, err := built.WriteTo(&written); err != nil || n != int64(written.Len()) {
			t.Errorf("%s: WriteTo = %d, %v, with %d bytes written", file, n, err, written.Len())
		}
		if written.String() != string(data) {
			t.Errorf("%s: WriteTo writes\n%s", file, written.String())
		}
		if c := built.Cycles(); c != nil {
			t.Errorf("%s has cycles %v", file, c)
		}
	}
}

func TestGraphDOT(t *testing.T) {
	t.Parallel()
	if got, want := socialGraph(t).DOT(), string(readTestdata(t, "social.dot")); got != want {
		t.Errorf("DOT is\n%s\nwant\n%s", got, want)
	}
	odd := &Graph{
		Name:     "a\"b\\",
		Services: []Service{{Name: "x\ny", Kind: Storage}},
		Vertices: []Vertex{{Name: "v\x00\r\xff", Service: "x\ny"}, {Name: "w", Service: "none"}},
		Edges:    []Edge{{From: "w", Plug: "\\", Socket: "\"", To: "->"}},
	}
	want := `digraph "a\"b\\" {
	rankdir=LR;
	"v  ` + "\uFFFD" + `" [shape=cylinder, label="v  ` + "\uFFFD" + `\n(x\ny)"];
	"w" [shape=plaintext, label="w\n(none)"];
	"w" -> "->" [label="\\ → \""];
}
`
	if got := odd.DOT(); got != want {
		t.Errorf("DOT is\n%s\nwant\n%s", got, want)
	}
}

func TestKindText(t *testing.T) {
	t.Parallel()
	for kind, text := range map[Kind]string{Regular: "regular", Gateway: "gateway", Storage: "storage"} {
		if kind.String() != text {
			t.Errorf("String of %d = %q, want %q", kind, kind, text)
		}
		if b, err := kind.MarshalText(); err != nil || string(b) != text {
			t.Errorf("MarshalText of %d = %q, %v", kind, b, err)
		}
		got := Kind(9)
		if err := got.UnmarshalText([]byte(text)); err != nil || got != kind {
			t.Errorf("UnmarshalText(%q) = %v, %v", text, got, err)
		}
	}
	if s := Kind(3).String(); s != "Kind(3)" {
		t.Errorf("String of an unknown kind = %q", s)
	}
	if _, err := Kind(3).MarshalText(); err == nil {
		t.Error("MarshalText takes an unknown kind")
	}
	kept := Storage
	if err := kept.UnmarshalText([]byte("Gateway")); err == nil || kept != Storage {
		t.Errorf("UnmarshalText(Gateway) = %v, %v", kept, err)
	}
}

func TestGraphLookup(t *testing.T) {
	t.Parallel()
	g := nineGraph(t)
	if s, ok := g.Service("service-4"); !ok || s.Kind != Regular || len(s.Sockets) != 3 {
		t.Errorf("Service(service-4) = %+v, %v", s, ok)
	}
	if s, ok := g.Service("service-5"); ok {
		t.Errorf("Service(service-5) = %+v", s)
	}
	if v, ok := g.Vertex("B"); !ok || v != (Vertex{"B", "B"}) {
		t.Errorf("Vertex(B) = %+v, %v", v, ok)
	}
	if v, ok := g.Vertex("C"); ok {
		t.Errorf("Vertex(C) = %+v", v)
	}
	if e, ok := g.EdgeOf("service-2", "P9"); !ok || e != (Edge{"service-2", "P9", "S9", "service-3"}) {
		t.Errorf("EdgeOf(service-2, P9) = %v, %v", e, ok)
	}
	if e, ok := g.EdgeOf("service-1", "P9"); ok {
		t.Errorf("EdgeOf(service-1, P9) = %v", e)
	}
	if got := g.Gateways(); !slices.Equal(got, []string{"A"}) {
		t.Errorf("Gateways = %q", got)
	}
}

func TestGraphClone(t *testing.T) {
	t.Parallel()
	g, want := nineGraph(t), nineGraph(t)
	c := g.Clone()
	if !reflect.DeepEqual(c, g) {
		t.Fatalf("Clone = %+v, want %+v", c, g)
	}
	c.Name = "other"
	c.Services[0].Sockets[0].Port++
	c.Services[0].Plugs[0] = "other"
	c.Services[1].Name = "other"
	c.Vertices[0].Name = "other"
	c.Edges[0].To = "other"
	if !reflect.DeepEqual(g, want) {
		t.Error("a change of the clone changed the graph")
	}
}

// A builder keeps what it was given, and when it goes on after Build it does not
// change what it built.
func TestGraphBuilderGoesOn(t *testing.T) {
	t.Parallel()
	out := Out{"P1"}
	b := NewGraph("g").Gateway("A", FixedPorts{"S2": 82, "S1": 81, "S3": 80}, out).
		Storage("D", In{"S"}).Edge("A", "P1", "S", "D")
	out[0] = "other"
	first, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	want := first.Clone()
	if s := first.Services[0].Sockets; !slices.Equal(s, []Socket{{"S1", 81}, {"S2", 82}, {"S3", 80}}) {
		t.Errorf("the gateway's sockets are %v, want them in the order of their names", s)
	}
	b.Storage("E", In{"S"}).At("D2", "D")
	if _, err := b.Build(); err == nil {
		t.Error("Build takes vertices to which nothing leads")
	}
	if !reflect.DeepEqual(first, want) {
		t.Errorf("the first graph became %+v", first)
	}
}

func TestGraphCycles(t *testing.T) {
	t.Parallel()
	// Edges of one letter each way: "ab" leads from a to b.
	for edges, want := range map[string][][]string{
		"":                     nil,
		"ab bc ac":             nil,
		"bb":                   {{"b"}},
		"ab bc ca":             {{"a", "b", "c"}},
		"ba cb ac":             {{"a", "b", "c"}},
		"ab ba cd dc bc":       {{"a", "b"}, {"c", "d"}},
		"dc cd ba ab ca":       {{"a", "b"}, {"c", "d"}},
		"ab bc cb bd db dd ee": {{"b", "c", "d"}, {"e"}},
		"az za ab ba ab":       {{"a", "b"}},
	} {
		g := &Graph{}
		for _, v := range "abcde" {
			g.Vertices = append(g.Vertices, Vertex{Name: string(v)})
		}
		for _, e := range strings.Fields(edges) {
			g.Edges = append(g.Edges, Edge{From: e[:1], To: e[1:]})
		}
		if got := g.Cycles(); !reflect.DeepEqual(got, want) {
			t.Errorf("Cycles of %q = %q, want %q", edges, got, want)
		}
	}
}

// Vertices are in a common component exactly if each can be reached from the
// other.
func TestGraphCyclesAreComponents(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		const n = 7
		g := &Graph{}
		for i := range n {
			g.Vertices = append(g.Vertices, Vertex{Name: fmt.Sprint(i)})
		}
		var reach [n][n]bool
		for range rapid.IntRange(0, 14).Draw(t, "edges") {
			from, to := rapid.IntRange(0, n-1).Draw(t, "from"), rapid.IntRange(0, n-1).Draw(t, "to")
			g.Edges = append(g.Edges, Edge{From: fmt.Sprint(from), To: fmt.Sprint(to)})
			reach[from][to] = true
		}
		for k := range n {
			for i := range n {
				for j := range n {
					reach[i][j] = reach[i][j] || reach[i][k] && reach[k][j]
				}
			}
		}
		var want [][]string
		for i := range n {
			var component []string
			for j := range n {
				if reach[i][j] && reach[j][i] {
					component = append(component, fmt.Sprint(j))
				}
			}
			if len(component) > 0 && component[0] == fmt.Sprint(i) {
				want = append(want, component)
			}
		}
		if got := g.Cycles(); !reflect.DeepEqual(got, want) {
			t.Fatalf("Cycles of %v = %v, want %v", g.Edges, got, want)
		}
	})
}

// largeGraph is a valid graph of n vertices, n at least 3: a gateway, a long
// path of regular services that closes to a cycle, and a storage service.
func largeGraph(n int) *Graph {
	g := &Graph{Name: "large"}
	g.Services = append(g.Services, Service{"gateway", Gateway, []Socket{{"S", 80}}, []string{"P"}})
	for i := 1; i < n-1; i++ {
		g.Services = append(g.Services, Service{fmt.Sprint("s", i), Regular, []Socket{{"S", 0}}, []string{"P", "Q", "R"}})
	}
	g.Services = append(g.Services, Service{"storage", Storage, []Socket{{"S", 0}}, nil})
	g.Vertices = defaultVertices(g.Services)
	g.Edges = append(g.Edges, Edge{"gateway", "P", "S", "s1"})
	for i := 1; i < n-1; i++ {
		g.Edges = append(g.Edges,
			Edge{fmt.Sprint("s", i), "P", "S", fmt.Sprint("s", i%(n-2)+1)},
			Edge{fmt.Sprint("s", i), "Q", "S", fmt.Sprint("s", i*7%(n-2)+1)},
			Edge{fmt.Sprint("s", i), "R", "S", "storage"})
	}
	return g
}

func TestLargeGraph(t *testing.T) {
	t.Parallel()
	g := largeGraph(4000)
	if err := g.Validate(); err != nil {
		t.Error(err)
	}
	if c := g.Cycles(); len(c) != 1 || len(c[0]) != 3998 {
		t.Errorf("%d cycles, want one of 3998 vertices", len(c))
	}
	data, err := json.Marshal(g)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ParseGraph(data); err != nil || !reflect.DeepEqual(got, g) {
		t.Errorf("the graph does not survive its JSON form: %v", err)
	}
}

func BenchmarkGraph4000(b *testing.B) {
	g := largeGraph(4000)
	data, err := g.MarshalJSON()
	if err != nil {
		b.Fatal(err)
	}
	for _, bench := range []struct {
		name string
		f    func()
	}{
		{"Validate", func() { _ = g.Validate() }},
		{"Cycles", func() { g.Cycles() }},
		{"Parse", func() { _, _ = ParseGraph(data) }},
		{"Marshal", func() { _, _ = g.MarshalJSON() }},
		{"DOT", func() { _ = g.DOT() }},
	} {
		b.Run(bench.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				bench.f()
			}
		})
	}
}
