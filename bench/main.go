// Command bench measures how fast this library is against floors and peers, and
// prints the ratios that are aimed at, with the machine it ran on:
//
//	go run .                          # everything, about three minutes
//	go run . -markdown                # the table as it stands in the README
//	go run . -sections setup,memory   # a part of it
//	go run . -guard                   # a short one, which fails when a ratio is far off
//
// Everything is measured in turns, for several rounds, so that a machine which
// others use as well slows all of it alike. What is measured is the median of
// the rounds, and a ratio is the median of each round's ratio.
//
// The floors are what any way of doing it has to do. For the codec (codec.go)
// it is to copy a line and to find where its parts end; for the set-up of a
// session (relay.go), to relay the same lines over the same two hops, without
// decoding, checking or remembering anything. The peers are google protobuf on
// the same fields, NATS and gRPC (peers.go), and etcd, where it is installed
// (etcd.go).
package main

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The code for session.proto was made by go generate, which needs protoc: on
// Debian it is in protobuf-compiler.

//go:generate sh -c "protoc --plugin=$(go tool -n protoc-gen-go) --go_out=. --go_opt=paths=source_relative sessionpb/session.proto"

// options say how much is measured.
type options struct {
	rounds int
	each   time.Duration // that one thing is measured in a round
	peers  bool          // NATS, gRPC and etcd too
	dir    string        // where databases are made
}

// sections are the parts of the table, in its order.
var sections = []struct {
	name string
	rows func(options) []row
}{
	{"codec", codecRows},
	{"setup", setUpRows},
	{"flight", flightRows},
	{"dial", dialRows},
	{"memory", memoryRows},
	{"durable", durableRows},
	{"start", startRows},
	{"scale", scaleRows},
	{"agents", agentRows},
}

func main() {
	testing.Init()
	var names []string
	for _, s := range sections {
		names = append(names, s.name)
	}
	chosen := flag.String("sections", join(names), "which parts to measure")
	var o options
	flag.BoolVar(&o.peers, "peers", true, "race NATS, gRPC and etcd too")
	flag.Func("clients", "how many clients ask at once, instead of each of "+join(counts(clientCounts)), func(s string) error {
		n, err := strconv.Atoi(s)
		if err == nil && (n < 1 || n > maxClients) {
			err = strconv.ErrRange
		}
		clientCounts = []int{n}
		return err
	})
	flag.IntVar(&o.rounds, "rounds", 11, "how often everything is measured")
	flag.DurationVar(&o.each, "time", 100*time.Millisecond, "for how long each is measured in a round")
	flag.StringVar(&o.dir, "dir", "", "where to make databases, on a disk and not in memory (default the system's directory for temporary files)")
	markdown := flag.Bool("markdown", false, "print the table in markdown")
	guard := flag.Bool("guard", false, "measure shortly, without NATS, gRPC and etcd, and fail when a ratio is far from its target")
	flag.Parse()
	if flag.NArg() > 0 || o.rounds < 1 || o.each <= 0 {
		flag.Usage()
		os.Exit(2)
	}
	if *guard {
		o = options{rounds: 5, each: 50 * time.Millisecond, dir: o.dir}
	}
	wanted := strings.FieldsFunc(*chosen, func(r rune) bool { return r == ',' || r == ' ' || r == '/' })
	for _, name := range wanted {
		if !slices.Contains(names, name) {
			fmt.Fprintf(os.Stderr, "bench: no section %q; there are %s\n", name, join(names))
			os.Exit(2)
		}
	}

	fmt.Printf("%s, %d cores, %s %s/%s; medians of %d rounds of %v\n\n",
		cpuModel(), runtime.NumCPU(), runtime.Version(), runtime.GOOS, runtime.GOARCH, o.rounds, o.each)
	var rows []row
	for _, s := range sections {
		if slices.Contains(wanted, s.name) {
			fmt.Fprintln(os.Stderr, "measuring:", s.name)
			rows = append(rows, s.rows(o)...)
		}
	}
	print(os.Stdout, rows, *markdown)
	if *guard && !guarded(rows) {
		os.Exit(1)
	}
}

// guarded reports whether no ratio is far from its target, and says which is.
// The bounds are generous: a machine that others use as well must not fail.
func guarded(rows []row) bool {
	const slack = 4
	ok := true
	for _, r := range rows {
		for i := range r.ratios {
			if len(r.targets) > 0 && !r.met(i, slack) {
				fmt.Fprintf(os.Stderr, "bench: %s: %s, far from %s\n", r.what, numbers(r.ratios[i:i+1]), numbers([]float64{r.target(i)}))
				ok = false
			}
		}
	}
	return ok
}

// cpuModel returns the processor's name where the system tells it in a file.
func cpuModel() string {
	info, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(info)) {
		if name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unnamed processor"
}
