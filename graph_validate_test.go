package ssmmp

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// shopGraph is a small valid graph in which a regular service stands at two
// vertices with different destinations.
func shopGraph(t testing.TB) *Graph {
	t.Helper()
	g, err := NewGraph("shop").
		Gateway("web", FixedPorts{"S0": 8080, "S9": 8090}, Out{"P1", "P2"}).
		Regular("cart", In{"S1"}, Out{"P3"}).
		Storage("db", In{"S2", "S3"}).
		At("cart2", "cart").At("db2", "db").
		Edge("web", "P1", "S1", "cart").
		Edge("web", "P2", "S1", "cart2").
		Edge("cart", "P3", "S2", "db").
		Edge("cart2", "P3", "S3", "db2").
		Build()
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// Indices into shopGraph.
const (
	shopWeb, shopCart, shopDB                        = 0, 1, 2    // services
	shopVertexCart2                                  = 3          // vertices
	shopWebCart, shopWebCart2, shopCartDB, shopCart2 = 0, 1, 2, 3 // edges
	notAName                                         = "not a name of 1 to 128 letters, digits, '_', and after the first also '.' and '-'"
)

// Each fault alone is reported with its place, and nothing that does not
// follow from it.
func TestValidateFaults(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("n", MaxName)
	for _, test := range []struct {
		name  string
		spoil func(g *Graph)
		want  []string // without "ssmmp: graph shop: "
	}{
		{"nothing", func(*Graph) {}, nil},
		{"longest name", func(g *Graph) { g.Services[shopWeb].Sockets[0].Name = long }, nil},

		// Names.
		{"graph without a name", func(g *Graph) { g.Name = "" },
			[]string{notAName}},
		{"name too long", func(g *Graph) { g.Services[shopWeb].Sockets[0].Name = long + "n" },
			[]string{`service web: "` + long + `"...: ` + notAName}},
		{"name that begins with -", func(g *Graph) { g.Services[shopWeb].Sockets[0].Name = "-S" },
			[]string{`service web: "-S": ` + notAName}},
		{"name that begins with .", func(g *Graph) { g.Services[shopWeb].Sockets[0].Name = ".S" },
			[]string{`service web: ".S": ` + notAName}},
		{"name with separator", func(g *Graph) { g.Services[shopWeb].Sockets[0].Name = "S ~ x" },
			[]string{`service web: "S ~ x": ` + notAName}},
		{"name with line end", func(g *Graph) { g.Services[shopWeb].Sockets[0].Name = "S\n" },
			[]string{`service web: "S\n": ` + notAName}},
		{"name not ASCII", func(g *Graph) { g.Services[shopWeb].Sockets[0].Name = "Ś" },
			[]string{`service web: "Ś": ` + notAName}},
		{"empty socket name", func(g *Graph) { g.Services[shopWeb].Sockets[0].Name = "" },
			[]string{`service web: ` + notAName}},
		{"bad plug name", func(g *Graph) { g.Services[shopWeb].Plugs[0], g.Edges[shopWebCart].Plug = "P,", "P," },
			[]string{`service web: "P,": ` + notAName}},
		{"bad service name", func(g *Graph) {
			g.Services[shopDB].Name, g.Vertices[2].Service, g.Vertices[4].Service = "d b", "d b", "d b"
		},
			[]string{`service "d b": "d b": ` + notAName}},
		{"empty service name", func(g *Graph) { g.Services[shopDB].Name, g.Vertices[2].Service, g.Vertices[4].Service = "", "", "" },
			[]string{`service #3: ` + notAName}},
		{"bad vertex name", func(g *Graph) {
			g.Vertices[shopVertexCart2].Name, g.Edges[shopWebCart2].To, g.Edges[shopCart2].From = "c&", "c&", "c&"
		},
			[]string{`vertex "c&": "c&": ` + notAName}},

		// Duplicates.
		{"duplicate service", func(g *Graph) { g.Services = append(g.Services, g.Services[shopCart]) },
			[]string{"service cart: duplicate service"}},
		{"duplicate vertex", func(g *Graph) { g.Vertices = append(g.Vertices, g.Vertices[shopVertexCart2]) },
			[]string{"vertex cart2: duplicate vertex"}},
		{"duplicate vertex of another service", func(g *Graph) { g.Vertices = append(g.Vertices, Vertex{"db", "cart"}) },
			[]string{"vertex db: duplicate vertex"}},
		{"duplicate socket", func(g *Graph) { s := &g.Services[shopDB]; s.Sockets = append(s.Sockets, Socket{Name: "S2"}) },
			[]string{"service db: S2: duplicate socket"}},
		{"duplicate plug", func(g *Graph) { s := &g.Services[shopCart]; s.Plugs = append(s.Plugs, "P3") },
			[]string{"service cart: P3: duplicate plug"}},
		{"duplicate edge", func(g *Graph) { g.Edges = append(g.Edges, g.Edges[shopCartDB]) },
			[]string{"edge (cart, (P3, S2), db): duplicate edge"}},
		{"second edge", func(g *Graph) { g.Edges = append(g.Edges, Edge{"cart", "P3", "S3", "db"}) },
			[]string{"edge (cart, (P3, S3), db): P3: the plug has an edge already: put the service at two vertices"}},

		// Kinds.
		{"unknown kind", func(g *Graph) { g.Services[shopCart].Kind = 7 },
			[]string{"service cart: Kind(7) is not a kind of service"}},
		{"gateway without sockets", func(g *Graph) { g.Services[shopWeb].Sockets = nil },
			[]string{"service web: a gateway service without sockets"}},
		{"regular without plugs", func(g *Graph) { g.Services[shopCart].Plugs = nil }, []string{
			"service cart: a regular service without plugs",
			"edge (cart, (P3, S2), db): P3: not a plug of service cart",
			"edge (cart2, (P3, S3), db2): P3: not a plug of service cart"}},
		{"regular without sockets", func(g *Graph) { g.Services[shopCart].Sockets = nil }, []string{
			"service cart: a regular service without sockets",
			"edge (web, (P1, S1), cart): S1: not a socket of service cart",
			"edge (web, (P2, S1), cart2): S1: not a socket of service cart"}},
		{"storage without sockets", func(g *Graph) { g.Services[shopDB].Sockets = nil }, []string{
			"service db: a storage service without sockets",
			"edge (cart, (P3, S2), db): S2: not a socket of service db",
			"edge (cart2, (P3, S3), db2): S3: not a socket of service db"}},
		{"storage with plugs", func(g *Graph) {
			g.Services[shopDB].Plugs = []string{"P"}
			g.Edges = append(g.Edges, Edge{"db", "P", "S1", "cart"}, Edge{"db2", "P", "S1", "cart"})
		}, []string{"service db: P: a storage service with plugs"}},
		{"no gateway", func(g *Graph) {
			*g = *g.Clone()
			s := &g.Services[shopWeb]
			s.Kind = Regular
			s.Sockets = []Socket{{Name: "S0"}}
		},
			[]string{"no API Gateway"}},
		{"gateway not initial", func(g *Graph) {
			g.Services[shopCart].Plugs = append(g.Services[shopCart].Plugs, "P4")
			g.Edges = append(g.Edges, Edge{"cart", "P4", "S0", "web"}, Edge{"cart2", "P4", "S2", "db2"})
		}, []string{"edge (cart, (P4, S0), web): web: leads to an API Gateway, which must be an initial vertex"}},

		// Ports.
		{"gateway without port", func(g *Graph) { g.Services[shopWeb].Sockets[1].Port = 0 },
			[]string{"service web: S9: a socket of an API Gateway without a fixed port"}},
		{"port of a regular service", func(g *Graph) { g.Services[shopCart].Sockets[0].Port = 80 },
			[]string{"service cart: S1: fixed port 80, which only a socket of an API Gateway has"}},
		{"port of a storage service", func(g *Graph) { g.Services[shopDB].Sockets[0].Port = 80 },
			[]string{"service db: S2: fixed port 80, which only a socket of an API Gateway has"}},
		{"same port twice", func(g *Graph) { g.Services[shopWeb].Sockets[1].Port = 8080 },
			[]string{"service web: S9: fixed port 8080 is already that of socket S0 of service web"}},
		{"same port in another gateway", func(g *Graph) {
			g.Services = append(g.Services, Service{"admin", Gateway, []Socket{{"S0", 8090}}, nil})
			g.Vertices = append(g.Vertices, Vertex{"admin", "admin"})
		}, []string{"service admin: S0: fixed port 8090 is already that of socket S9 of service web"}},
		{"gateway at two vertices", func(g *Graph) {
			g.Services = append(g.Services, Service{"admin", Gateway, []Socket{{"S0", 80}}, nil})
			g.Vertices = append(g.Vertices, Vertex{"admin", "admin"}, Vertex{"admin2", "admin"})
		}, []string{"vertex admin2: admin: an API Gateway at two vertices, whose fixed ports would clash"}},
		{"port before the Manager's range", func(g *Graph) { g.Services[shopWeb].Sockets[0].Port = 53999 }, nil},
		{"first port of the Manager's range", func(g *Graph) { g.Services[shopWeb].Sockets[0].Port = 54000 },
			[]string{"service web: S0: fixed port 54000 is among those that the Manager gives out, 54000 to 55554"}},
		{"last port of the Manager's range", func(g *Graph) { g.Services[shopWeb].Sockets[0].Port = 55554 },
			[]string{"service web: S0: fixed port 55554 is among those that the Manager gives out, 54000 to 55554"}},
		{"the Manager's port", func(g *Graph) { g.Services[shopWeb].Sockets[0].Port = 55555 },
			[]string{"service web: S0: fixed port 55555 is the Manager's"}},
		{"the agents' port", func(g *Graph) { g.Services[shopWeb].Sockets[0].Port = 55556 },
			[]string{"service web: S0: fixed port 55556 is the agents'"}},
		{"port after the fixed points", func(g *Graph) { g.Services[shopWeb].Sockets[0].Port = 55557 }, nil},

		// Vertices.
		{"vertex of an unknown service", func(g *Graph) { g.Vertices[shopVertexCart2].Service = "none" },
			[]string{"vertex cart2: none: no such service"}},
		{"service at no vertex", func(g *Graph) { g.Services = append(g.Services, Service{"spare", Storage, []Socket{{"S", 0}}, nil}) },
			[]string{"service spare: stands at no vertex"}},
		{"gateway at no vertex", func(g *Graph) { g.Services = append(g.Services, Service{"admin", Gateway, []Socket{{"S", 80}}, nil}) },
			[]string{"service admin: stands at no vertex"}},
		{"unreachable vertex", func(g *Graph) { g.Vertices = append(g.Vertices, Vertex{"db3", "db"}) },
			[]string{"vertex db3: no API Gateway leads to it"}},
		{"unreachable cycle", func(g *Graph) {
			g.Services = append(g.Services, Service{"loop", Regular, []Socket{{"S", 0}}, []string{"P"}})
			g.Vertices = append(g.Vertices, Vertex{"l1", "loop"}, Vertex{"l2", "loop"})
			g.Edges = append(g.Edges, Edge{"l1", "P", "S", "l2"}, Edge{"l2", "P", "S", "l1"})
		}, []string{
			"vertex l1: no API Gateway leads to it",
			"vertex l2: no API Gateway leads to it"}},
		{"legal cycle", func(g *Graph) {
			g.Edges[shopCartDB] = Edge{"cart", "P3", "S1", "cart"}
			g.Edges[shopCart2].To = "db"
			g.Vertices = g.Vertices[:4]
		},
			nil},

		// Edges.
		{"plug without edge", func(g *Graph) {
			s := &g.Services[shopCart]
			s.Plugs = append(s.Plugs, "P4")
			g.Edges = append(g.Edges, Edge{"cart", "P4", "S2", "db"})
		},
			[]string{"vertex cart2: P4: the plug has no edge"}},
		{"edge from an unknown vertex", func(g *Graph) { g.Edges = append(g.Edges, Edge{"none", "P", "S2", "db"}) },
			[]string{"edge (none, (P, S2), db): none: no such vertex"}},
		{"edge to an unknown vertex", func(g *Graph) {
			g.Edges[shopCartDB].To = "db3"
			g.Edges[shopCart2].To = "db"
			g.Vertices = g.Vertices[:4]
		},
			[]string{"edge (cart, (P3, S2), db3): db3: no such vertex"}},
		{"edge from an unknown plug", func(g *Graph) { g.Edges = append(g.Edges, Edge{"cart", "P1", "S2", "db"}) },
			[]string{"edge (cart, (P1, S2), db): P1: not a plug of service cart"}},
		{"edge to an unknown socket", func(g *Graph) { g.Edges[shopCartDB].Socket = "S1" },
			[]string{"edge (cart, (P3, S1), db): S1: not a socket of service db"}},
		{"edge of names that are none", func(g *Graph) { g.Edges = append(g.Edges, Edge{"a b", "", "\r", ""}) },
			[]string{
				`edge ("a b", ("", "\r"), ""): "a b": no such vertex`,
				`edge ("a b", ("", "\r"), ""): no such vertex`}},

		// Many at once.
		{"empty graph", func(g *Graph) { *g = Graph{Name: "shop"} },
			[]string{"no API Gateway"}},
		{"many", func(g *Graph) {
			g.Services[shopWeb].Sockets[0].Port = 0
			g.Services[shopDB].Kind = Gateway
			g.Vertices = append(g.Vertices, Vertex{"x", "y"})
			g.Edges[shopWebCart].Plug = "P2"
			g.Edges = append(g.Edges, g.Edges[shopCartDB])
		}, []string{
			"service web: S0: a socket of an API Gateway without a fixed port",
			"service db: S2: a socket of an API Gateway without a fixed port",
			"service db: S3: a socket of an API Gateway without a fixed port",
			"vertex db2: db: an API Gateway at two vertices, whose fixed ports would clash",
			"vertex x: y: no such service",
			"edge (web, (P2, S1), cart2): P2: the plug has an edge already: put the service at two vertices",
			"edge (cart, (P3, S2), db): db: leads to an API Gateway, which must be an initial vertex",
			"edge (cart2, (P3, S3), db2): db2: leads to an API Gateway, which must be an initial vertex",
			"edge (cart, (P3, S2), db): duplicate edge",
			"vertex web: P1: the plug has no edge",
			"vertex x: no API Gateway leads to it"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			g := shopGraph(t)
			test.spoil(g)
			var got []string
			for _, fault := range graphFaults(t, g.Validate()) {
				if fault.Graph != g.Name {
					t.Errorf("fault of graph %q", fault.Graph)
				}
				text := strings.TrimPrefix(fault.Error(), "ssmmp: graph "+displayName(g.Name)+": ")
				got = append(got, text)
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("faults are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(test.want, "\n"))
			}
		})
	}
}

// graphFaults returns what Validate has joined.
func graphFaults(t testing.TB, err error) []*GraphError {
	t.Helper()
	if err == nil {
		return nil
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		t.Fatalf("%T is not joined errors", err)
	}
	var faults []*GraphError
	for _, e := range joined.Unwrap() {
		fault := (*GraphError)(nil)
		if !errors.As(e, &fault) {
			t.Fatalf("%T is not a GraphError", e)
		}
		faults = append(faults, fault)
	}
	return faults
}

// A graph with more faults than can be listed costs no more than its size:
// here 2,000,000,000 plugs of vertices have no edge, and one has a long name.
func TestValidateManyFaults(t *testing.T) {
	t.Parallel()
	g := &Graph{Name: "many"}
	s := Service{Name: "s", Kind: Regular, Plugs: []string{strings.Repeat("P", 2<<20)}}
	for i := range 100_000 {
		s.Plugs = append(s.Plugs, fmt.Sprint("P", i))
	}
	for i := range 20_000 {
		g.Vertices = append(g.Vertices, Vertex{fmt.Sprint("v", i), s.Name})
	}
	g.Services = append(g.Services, s)
	err := g.Validate()
	faults := graphFaults(t, err)
	if len(faults) != maxGraphFaults+1 {
		t.Fatalf("%d faults, want %d", len(faults), maxGraphFaults+1)
	}
	if last, want := faults[maxGraphFaults].Reason, "there are more faults than are listed here"; last != want {
		t.Errorf("the last fault is %q, want %q", last, want)
	}
	if n := len(err.Error()); n > 1000*maxGraphFaults {
		t.Errorf("the error has %d bytes", n)
	}
}

// What an instance is told of its sockets and plugs fits into a line, or the
// graph is not valid: else nothing of it could be executed.
func TestValidateLongLine(t *testing.T) {
	t.Parallel()
	name := func(kind string, n int) string { return fmt.Sprintf("%s%0*d", kind, MaxName-1, n) }
	valid := 0
	for n := 1; valid == n-1; n++ {
		b := NewGraph("long").Storage(name("D", 0), In{name("S", 0)})
		var out Out
		m := &ExecutionRequest{Header: Header{MessageID: math.MaxInt64}, AgentNetworkAddress: netip.MustParseAddr("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
			ServiceName: name("G", 0), ServiceInstanceID: math.MaxInt64, SocketConfiguration: []SocketPort{{name("S", 0), 65535}}}
		for p := range n {
			out = append(out, name("P", p))
			b.Edge(m.ServiceName, name("P", p), name("S", 0), name("D", 0))
			m.PlugConfiguration = append(m.PlugConfiguration, PlugTarget{name("P", p), name("S", 0), name("D", 0)})
		}
		_, err := b.Gateway(m.ServiceName, FixedPorts{name("S", 0): 65535}, out).Build()
		if _, encodes := AppendMessage(nil, m); err == nil && encodes != nil {
			t.Fatalf("with %d plugs it is valid, and %v", n, encodes)
		}
		if err == nil {
			valid = n
		} else if faults := graphFaults(t, err); len(faults) != 1 || !strings.Contains(faults[0].Error(), "an execution_request has room for") || !strings.Contains(faults[0].Where, m.ServiceName) {
			t.Fatalf("with %d plugs: %.500v", n, err)
		}
	}
	if least := MaxLine / (3*MaxName + 20); valid < least {
		t.Errorf("valid with %d plugs at the most, want %d", valid, least)
	}
}

// drawGraph draws a valid graph: gateways, regular services at one or two
// vertices each and storage services, with every vertex led to by an earlier
// one, and cycles.
func drawGraph(t *rapid.T) *Graph {
	name := rapid.StringMatching(`[A-Za-z0-9_][A-Za-z0-9_.-]{0,6}`)
	g := &Graph{Name: name.Draw(t, "graph")}
	services := rapid.SliceOfNDistinct(name, 2, 9, rapid.ID[string]).Draw(t, "services")
	gateways := rapid.IntRange(1, len(services)-1).Draw(t, "gateways")
	storages := rapid.IntRange(0, len(services)-gateways).Draw(t, "storages")
	ports := rapid.SliceOfNDistinct(rapid.Uint16Range(1, FirstSocketPort-1), 3*len(services), 3*len(services),
		rapid.ID[uint16]).Draw(t, "ports")

	type plugs struct {
		service int
		edges   []Edge // Plug is an index until all are known
	}
	var vertices []plugs
	out := make([]int, len(services)) // number of plugs of each service
	for i, s := range services {
		kind, stands := Regular, 1
		switch {
		case i < gateways:
			kind = Gateway
		case i >= len(services)-storages:
			kind = Storage
		}
		if kind != Gateway {
			stands = rapid.IntRange(1, 2).Draw(t, "stands")
		}
		service := Service{Name: s, Kind: kind}
		for _, socket := range rapid.SliceOfNDistinct(name, 1, 3, rapid.ID[string]).Draw(t, "sockets") {
			port := uint16(0)
			if kind == Gateway {
				port, ports = ports[0], ports[1:]
			}
			service.Sockets = append(service.Sockets, Socket{socket, port})
		}
		g.Services = append(g.Services, service)
		for j := range stands {
			v := Vertex{Name: s, Service: s}
			if j > 0 {
				v.Name += "_elsewhere" // longer than any drawn name
			}
			g.Vertices = append(g.Vertices, v)
			vertices = append(vertices, plugs{service: i})
		}
	}

	// Each vertex but a gateway's gets an edge from an earlier one that may
	// have plugs; then every vertex gets what its service's plugs still want.
	lead := func(from, to int) {
		sockets := g.Services[vertices[to].service].Sockets
		v := &vertices[from]
		v.edges = append(v.edges, Edge{
			From:   g.Vertices[from].Name,
			Socket: rapid.SampledFrom(sockets).Draw(t, "socket").Name,
			To:     g.Vertices[to].Name,
		})
		out[v.service] = max(out[v.service], len(v.edges))
	}
	first := gateways // vertex that is not a gateway's
	for to := first; to < len(vertices); to++ {
		var sources []int
		for from := range to {
			if g.Services[vertices[from].service].Kind != Storage {
				sources = append(sources, from)
			}
		}
		lead(rapid.SampledFrom(sources).Draw(t, "from"), to)
	}
	for i, v := range vertices {
		if g.Services[v.service].Kind == Regular && len(v.edges) == 0 {
			lead(i, rapid.IntRange(first, len(vertices)-1).Draw(t, "to"))
		}
	}
	for i := range vertices {
		for len(vertices[i].edges) < out[vertices[i].service] {
			lead(i, rapid.IntRange(first, len(vertices)-1).Draw(t, "to"))
		}
	}
	for i, n := range out {
		if n > 0 {
			g.Services[i].Plugs = rapid.SliceOfNDistinct(name, n, n, rapid.ID[string]).Draw(t, "plugs")
		}
	}
	for _, v := range vertices {
		for i, e := range v.edges {
			e.Plug = g.Services[v.service].Plugs[i]
			g.Edges = append(g.Edges, e)
		}
	}
	g.Edges = rapid.Permutation(g.Edges).Draw(t, "edges")
	return g
}

// A mutation breaks one rule of a valid graph, and says in which words
// Validate must name it; it returns "" when this graph has nothing to break.
type mutation func(t *rapid.T, g *Graph) string

var mutations = map[string]mutation{
	"name": func(t *rapid.T, g *Graph) string {
		bad := rapid.SampledFrom([]string{"", " ", "a b", "a~", "a:", "a&", "a,", "(a", "a)", "-a", ".a", "a\x00", "a\n", "é"}).Draw(t, "bad")
		s := drawService(t, g)
		if rapid.Bool().Draw(t, "plug") && len(s.Plugs) > 0 {
			s.Plugs[0] = bad
		} else {
			s.Sockets[0].Name = bad
		}
		return notAName
	},
	"service twice": func(t *rapid.T, g *Graph) string {
		g.Services = append(g.Services, *drawService(t, g))
		return "duplicate service"
	},
	"vertex twice": func(t *rapid.T, g *Graph) string {
		g.Vertices = append(g.Vertices, rapid.SampledFrom(g.Vertices).Draw(t, "vertex"))
		return "duplicate vertex"
	},
	"socket twice": func(t *rapid.T, g *Graph) string {
		s := drawService(t, g)
		s.Sockets = append(s.Sockets, s.Sockets[0])
		return "duplicate socket"
	},
	"plug twice": func(t *rapid.T, g *Graph) string {
		s := drawService(t, g)
		if len(s.Plugs) == 0 {
			return ""
		}
		s.Plugs = append(s.Plugs, s.Plugs[0])
		return "duplicate plug"
	},
	"edge twice": func(t *rapid.T, g *Graph) string {
		g.Edges = append(g.Edges, *drawEdge(t, g))
		return "duplicate edge"
	},
	"second edge": func(t *rapid.T, g *Graph) string {
		e := *drawEdge(t, g)
		e.Socket += "x"
		g.Edges = append(g.Edges, e)
		return "the plug has an edge already"
	},
	"edge away": func(t *rapid.T, g *Graph) string {
		i := rapid.IntRange(0, len(g.Edges)-1).Draw(t, "edge")
		g.Edges = slices.Delete(g.Edges, i, i+1)
		return "the plug has no edge"
	},
	"edge from nowhere": func(t *rapid.T, g *Graph) string {
		drawEdge(t, g).From = "long_name"
		return "no such vertex"
	},
	"edge to nowhere": func(t *rapid.T, g *Graph) string {
		drawEdge(t, g).To = "long_name"
		return "no such vertex"
	},
	"edge from another plug": func(t *rapid.T, g *Graph) string {
		drawEdge(t, g).Plug = "long_name"
		return "not a plug of service"
	},
	"edge to another socket": func(t *rapid.T, g *Graph) string {
		drawEdge(t, g).Socket = "long_name"
		return "not a socket of service"
	},
	"edge to a gateway": func(t *rapid.T, g *Graph) string {
		drawEdge(t, g).To = rapid.SampledFrom(g.Gateways()).Draw(t, "gateway")
		return "which must be an initial vertex"
	},
	"service nowhere": func(t *rapid.T, g *Graph) string {
		g.Services = append(g.Services, Service{"long_name", Storage, []Socket{{"S", 0}}, nil})
		return "stands at no vertex"
	},
	"vertex of nothing": func(t *rapid.T, g *Graph) string {
		g.Vertices[rapid.IntRange(0, len(g.Vertices)-1).Draw(t, "vertex")].Service = "long_name"
		return "no such service"
	},
	"vertex out of reach": func(t *rapid.T, g *Graph) string {
		g.Services = append(g.Services, Service{"long_name", Storage, []Socket{{"S", 0}}, nil})
		g.Vertices = append(g.Vertices, Vertex{"long_name", "long_name"})
		return "no API Gateway leads to it"
	},
	"no sockets": func(t *rapid.T, g *Graph) string {
		s := drawService(t, g)
		s.Sockets = nil
		return s.Kind.String() + " service without sockets"
	},
	"no plugs": func(t *rapid.T, g *Graph) string {
		s := drawService(t, g)
		if s.Kind != Regular {
			return ""
		}
		s.Plugs = nil
		return "a regular service without plugs"
	},
	"plugs of storage": func(t *rapid.T, g *Graph) string {
		s := drawService(t, g)
		if s.Kind != Storage {
			return ""
		}
		s.Plugs = []string{"P"}
		return "a storage service with plugs"
	},
	"kind": func(t *rapid.T, g *Graph) string {
		drawService(t, g).Kind = Kind(rapid.Uint8Range(3, 255).Draw(t, "kind"))
		return "is not a kind of service"
	},
	"no gateway": func(t *rapid.T, g *Graph) string {
		for i := range g.Services {
			if g.Services[i].Kind == Gateway {
				g.Services[i].Kind = Regular
			}
		}
		return "no API Gateway"
	},
	"port": func(t *rapid.T, g *Graph) string {
		s := drawService(t, g)
		if s.Kind != Gateway {
			s.Sockets[0].Port = 80
			return "which only a socket of an API Gateway has"
		}
		s.Sockets[0].Port = 0
		return "without a fixed port"
	},
	"port taken": func(t *rapid.T, g *Graph) string {
		first := &g.Services[0] // a gateway
		s := drawService(t, g)
		if s == first || s.Kind != Gateway {
			return ""
		}
		s.Sockets[0].Port = first.Sockets[0].Port
		return "is already that of"
	},
	"port of others": func(t *rapid.T, g *Graph) string {
		g.Services[0].Sockets[0].Port = rapid.Uint16Range(FirstSocketPort, AgentPort).Draw(t, "port")
		return "fixed port 5"
	},
}

func drawService(t *rapid.T, g *Graph) *Service {
	return &g.Services[rapid.IntRange(0, len(g.Services)-1).Draw(t, "service")]
}

func drawEdge(t *rapid.T, g *Graph) *Edge {
	return &g.Edges[rapid.IntRange(0, len(g.Edges)-1).Draw(t, "edge")]
}

// Random valid graphs are valid, survive Clone, and no single broken rule goes
// unseen in them.
func TestValidateMutations(t *testing.T) {
	t.Parallel()
	for name, mutate := range mutations {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rapid.Check(t, func(t *rapid.T) {
				g := drawGraph(t)
				if err := g.Validate(); err != nil {
					t.Fatalf("a valid graph: %v", err)
				}
				broken := g.Clone()
				want := mutate(t, broken)
				if want == "" {
					t.Skip("nothing to break")
				}
				err := broken.Validate()
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Fatalf("faults are\n%v\nwant among them %q", err, want)
				}
				if again := broken.Validate(); again.Error() != err.Error() {
					t.Fatalf("at second sight the faults are\n%v\nat first\n%v", again, err)
				}
				if err := g.Validate(); err != nil {
					t.Fatalf("the clone's fault is the graph's: %v", err)
				}
			})
		})
	}
}
