package main

import (
	"embed"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"

	"github.com/ssmmp/ssmmp"
)

//go:embed graphs/*.json
var graphFiles embed.FS

// loadGraph returns a graph by name: social and nine are the two of the
// protocol, shop has eleven services, generated has as many as asked for, and
// all else is the name of a file.
func loadGraph(name string, services int, seed uint64) (*ssmmp.Graph, error) {
	switch name {
	case "social", "nine", "shop":
		data, err := graphFiles.ReadFile("graphs/" + name + ".json")
		if err != nil {
			return nil, err
		}
		return ssmmp.ParseGraph(data)
	case "generated":
		return generate(services, seed)
	}
	if !strings.HasSuffix(name, ".json") {
		return nil, fmt.Errorf("-graph %s: not one of social, nine, shop, generated, and no .json file", name)
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("-graph: %w", err)
	}
	g, err := ssmmp.ParseGraph(data)
	if err != nil {
		return nil, fmt.Errorf("-graph %s: %w", name, err)
	}
	return g, nil
}

// generate returns a graph of the size of the largest CNApps: gateways in front,
// layers of regular services that call some of the next layer, and storage
// services at the back. One service in a hundred is a gateway, one in five
// keeps data.
func generate(services int, seed uint64) (*ssmmp.Graph, error) {
	if services < 10 || services > 20_000 {
		return nil, fmt.Errorf("-services %d: not between 10 and 20000", services)
	}
	const layers = 5
	r := rand.New(rand.NewPCG(seed, 4000))
	g := ssmmp.NewGraph("generated")
	gateways, storages := max(1, services/100), max(2, services/5)
	regular := services - gateways - storages

	// Who may be called, by layer; the last one is storage.
	var layer [layers + 1][]string
	for n := range regular {
		l := n * layers / regular
		layer[l] = append(layer[l], fmt.Sprintf("service-%d", n+1))
	}
	for n := range storages {
		layer[layers] = append(layer[layers], fmt.Sprintf("storage-%d", n+1))
	}
	// A service calls one or two of the next layer, and every one of that layer
	// is called.
	calls := map[string][]string{}
	for l := range layers {
		here, next := layer[l], layer[l+1]
		for k := range max(len(here), len(next)) {
			from, to := here[k%len(here)], next[k%len(next)]
			calls[from] = append(calls[from], to)
		}
		for _, from := range here {
			if to := next[r.IntN(len(next))]; !slices.Contains(calls[from], to) {
				calls[from] = append(calls[from], to)
			}
		}
	}
	plugs := 0
	out := func(from string) (out ssmmp.Out) {
		for _, to := range calls[from] {
			plugs++
			plug := fmt.Sprintf("P%d", plugs)
			out = append(out, plug)
			g.Edge(from, plug, socketOf(to), to)
		}
		return out
	}
	for n := range gateways {
		name := fmt.Sprintf("gateway-%d", n+1)
		for k := n; k < len(layer[0]); k += gateways {
			calls[name] = append(calls[name], layer[0][k])
		}
		g.Gateway(name, ssmmp.FixedPorts{"S0": uint16(20000 + n)}, out(name))
	}
	for l := range layers {
		for _, name := range layer[l] {
			g.Regular(name, ssmmp.In{socketOf(name)}, out(name))
		}
	}
	for _, name := range layer[layers] {
		g.Storage(name, ssmmp.In{socketOf(name)})
	}
	return g.Build()
}

// socketOf is the name of a service's only socket.
func socketOf(service string) string { return "S-" + service }
