// Command simulation asks what a CNApp does on a cluster that nobody has to
// own: it plays one on simulated nodes, under load and with faults, in virtual
// time, and reports how long sessions took to set up, what was started, and what
// ran and was open over time: as a table, as CSV, and as a chart.
//
//	go run ./examples/simulation
//	go run ./examples/simulation -graph shop -nodes 20 -every 2s -faults 10 -svg shop.svg
//	go run ./examples/simulation -graph shop -seeds 5 -set IdleAfter=10s -against IdleAfter=10m -csv idle.csv -svg idle.svg
//	go run ./examples/simulation -graph generated -services 4000 -nodes 100 -every 1m
//
// What runs is the production code of the Manager, of the agents and of the
// instances; the same flags give the same output, to the byte.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/ssmmp/ssmmp"
	"github.com/ssmmp/ssmmp/ssmmptest"
)

func main() {
	err := run(os.Args[1:], os.Stdout, os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "simulation:", strings.ReplaceAll(err.Error(), "\n", "; "))
		os.Exit(1)
	}
}

// A plan is what the flags ask for.
type plan struct {
	graph      *ssmmp.Graph
	nodes      int
	every      time.Duration
	hold       time.Duration
	length     time.Duration
	latency    time.Duration
	faults     int
	kind       string
	seed       uint64
	seeds      int
	set        settings
	against    settings
	compare    bool
	csv, svg   string
	transcript string
}

// String says what is played.
func (p *plan) String() string {
	s := fmt.Sprintf("%s: %d services, %d nodes, %s, a call every %s", p.graph.Name, len(p.graph.Services), p.nodes, span(p.length), span(p.every))
	if p.faults > 0 {
		s += fmt.Sprintf(", %d faults", p.faults)
	}
	if p.seeds > 1 {
		return s + fmt.Sprintf(", seeds %d to %d", p.seed, p.seed+uint64(p.seeds)-1)
	}
	return s + fmt.Sprintf(", seed %d", p.seed)
}

// span writes a duration without units that are zero.
func span(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}

func run(args []string, out, progress io.Writer) error {
	p, err := parsePlan(args, progress)
	if err != nil {
		return err
	}
	configs := []settings{p.set}
	if p.compare {
		configs = append(configs, p.against)
	}
	// Everything is described, and checked, before anything runs.
	var studies []*study
	for _, set := range configs {
		st := &study{name: set.String()}
		for n := range p.seeds {
			sim, err := p.simulation(set, p.seed+uint64(n))
			if err != nil {
				return err
			}
			if err := sim.Validate(); err != nil {
				return err
			}
			st.simulations = append(st.simulations, sim)
		}
		studies = append(studies, st)
	}
	// Files are opened now: it would be a pity to learn of a wrong name at the end.
	files := map[string]*os.File{}
	for _, name := range []string{p.csv, p.svg, p.transcript} {
		if name == "" {
			continue
		}
		f, err := os.Create(name)
		if err != nil {
			return err
		}
		defer f.Close()
		files[name] = f
	}
	var transcript io.Writer
	if p.transcript != "" {
		transcript = files[p.transcript]
	}
	for _, st := range studies {
		if err := st.run(progress, transcript); err != nil {
			return err
		}
	}
	fmt.Fprintf(out, "%s\n\n", p)
	writeTable(out, studies)
	if p.csv != "" {
		if err := writeCSV(files[p.csv], studies); err != nil {
			return fmt.Errorf("%s: %w", p.csv, err)
		}
	}
	if p.svg != "" {
		if err := writeSVG(files[p.svg], p.String(), p.length, studies); err != nil {
			return fmt.Errorf("%s: %w", p.svg, err)
		}
	}
	for _, st := range studies {
		if st.failure != nil {
			return fmt.Errorf("an invariant of the protocol was broken, which is a defect of this library: seed %d, %w", st.failedSeed, st.failure)
		}
	}
	return nil
}

func parsePlan(args []string, usage io.Writer) (*plan, error) {
	p := &plan{}
	fs := flag.NewFlagSet("simulation", flag.ContinueOnError)
	fs.SetOutput(io.Discard) // an error is one line
	graph := fs.String("graph", "shop", "social, nine, shop, generated, or a graph's JSON `file`")
	services := fs.Int("services", 4000, "how many services -graph generated has")
	fs.IntVar(&p.nodes, "nodes", 10, "how many nodes there are, each with an agent")
	fs.DurationVar(&p.length, "for", 10*time.Minute, "how long it lasts, in virtual time")
	fs.DurationVar(&p.every, "every", 5*time.Second, "how often each API Gateway gets a call, on the average")
	fs.DurationVar(&p.hold, "hold", 2*time.Second, "how long a session is held, on the average")
	fs.DurationVar(&p.latency, "latency", 200*time.Microsecond, "how long a message takes at least; up to twice as long at most")
	fs.IntVar(&p.faults, "faults", 0, "how many faults happen, at random times")
	fs.StringVar(&p.kind, "fault", "", "of which `kind` they are; any if empty, \"help\" lists them")
	fs.Uint64Var(&p.seed, "seed", 1, "what chance depends on")
	fs.IntVar(&p.seeds, "seeds", 1, "how many runs there are, with the seeds from -seed on")
	fs.Func("set", "a `setting` of the mesh, such as IdleAfter=30s; may be given again (\"help\" lists them)", p.set.add)
	fs.Func("against", "a setting of a second mesh that is run from the same seeds and compared; may be given again", func(s string) error {
		p.compare = true
		return p.against.add(s)
	})
	fs.StringVar(&p.csv, "csv", "", "a `file` for what happened over time")
	fs.StringVar(&p.svg, "svg", "", "a `file` for a chart of it")
	fs.StringVar(&p.transcript, "transcript", "", "a `file` for every single thing that happened")
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		fs.SetOutput(usage)
		fs.Usage()
		return nil, err
	case err != nil:
		return nil, err
	}
	if fs.NArg() > 0 {
		return nil, fmt.Errorf("%q: no arguments are expected, only flags", fs.Arg(0))
	}
	var faults []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			faults = append(faults, fmt.Errorf(format, args...))
		}
	}
	check(p.nodes > 0 && p.nodes <= 10_000, "-nodes %d: not between 1 and 10000", p.nodes)
	const year = 365 * 24 * time.Hour
	check(p.length >= time.Second && p.length <= year, "-for %v: not between 1s and %v", p.length, year)
	check(p.every >= time.Millisecond && p.every <= year, "-every %v: not between 1ms and %v", p.every, year)
	check(p.hold > 0 && p.hold <= year, "-hold %v: not positive, or more than %v", p.hold, year)
	check(p.latency >= 0 && p.latency <= time.Second, "-latency %v: not between 0 and 1s", p.latency)
	check(p.faults >= 0 && p.faults <= 10_000, "-faults %d: not between 0 and 10000", p.faults)
	check(p.seeds > 0 && p.seeds <= 1000, "-seeds %d: not between 1 and 1000", p.seeds)
	names := map[string]string{}
	for _, f := range [][2]string{{"-csv", p.csv}, {"-svg", p.svg}, {"-transcript", p.transcript}} {
		if f[1] != "" {
			check(names[f[1]] == "", "%s %s: that is the file of %s", f[0], f[1], names[f[1]])
			names[f[1]] = f[0]
		}
	}
	if p.kind != "" {
		if _, err := faultKind(p.kind); err != nil {
			faults = append(faults, err)
		}
		check(p.faults > 0, "-fault %s: -faults says how many, and says none", p.kind)
	}
	var err error
	if p.graph, err = loadGraph(*graph, *services, p.seed); err != nil {
		faults = append(faults, err)
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	return p, nil
}

// simulation describes one run.
func (p *plan) simulation(set settings, seed uint64) (ssmmptest.Simulation, error) {
	s := ssmmptest.Simulation{Seed: seed, Graphs: []*ssmmp.Graph{p.graph}, For: p.length, Quiet: true, Latency: p.latency, Jitter: p.latency,
		Load: []ssmmptest.SimulationLoad{{Graph: p.graph.Name, Every: p.every, Hold: p.hold}}}
	for range p.nodes {
		s.Nodes = append(s.Nodes, ssmmptest.SimulationNode{})
	}
	// The registration of an agent is one line, which a large repository does
	// not fit into: then each service is on three nodes.
	if n := len(p.graph.Services); n > 1000 {
		for i, sv := range p.graph.Services {
			for k := range min(3, p.nodes) {
				node := &s.Nodes[(i+k*7)%p.nodes]
				node.Services = append(node.Services, sv.Name)
			}
		}
	}
	s.Faults = p.faultsOf(seed)
	return s, set.apply(&s.Config)
}
