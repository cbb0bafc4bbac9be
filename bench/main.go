// Command bench compares the codec with google protobuf on the same fields, and
// both with what any reader of the text has to do: copy it, and find where its
// lines end, with bytes.IndexByte and with a loop over the bytes. One command
// prints the table, with the machine it ran on:
//
//	go run .
//
// Everything is measured in turns, for several rounds, so that a machine which
// others use as well slows all of it alike. A time is the median of the rounds,
// and a ratio is the median of each round's ratio.
//
// The messages are session_request and session_response (PROTOCOL section 2).
// The codec's times include to find out the type of a message and where it
// ends; protobuf is always told where a message ends, and is measured twice:
// told its type as well, and with a oneof of the types. A fresh message shares
// nothing with the buffer that it was decoded from, and a fresh encoding is in
// a buffer of its own.
package main

import (
	"flag"
	"fmt"
	"log"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"
)

// The code for session.proto was made by go generate, which needs protoc: on
// Debian it is in protobuf-compiler.

//go:generate sh -c "protoc --plugin=$(go tool -n protoc-gen-go) --go_out=. --go_opt=paths=source_relative sessionpb/session.proto"

// A work is something to measure.
type work struct {
	name string
	run  func(b *testing.B)
	// peer names the work of protobuf that it is compared with, if any. There
	// is another for a oneof.
	peer string
	// target is the ratio that is aimed at, if any.
	target string
}

// A measured is what all rounds made of one work.
type measured struct {
	ns     []float64 // per operation, one of each round
	allocs int64     // per operation, the most of any round
}

func main() {
	log.SetFlags(0)
	testing.Init()
	rounds := flag.Int("rounds", 21, "how often everything is measured")
	each := flag.Duration("time", 50*time.Millisecond, "for how long each is measured in a round")
	flag.Parse()
	if flag.NArg() > 0 || *rounds < 1 || *each <= 0 {
		flag.Usage()
		os.Exit(2)
	}
	if err := flag.Set("test.benchtime", each.String()); err != nil {
		log.Fatal(err)
	}

	fmt.Printf("%s, %d cores, %s %s/%s; medians of %d rounds of %v\n",
		cpuModel(), runtime.NumCPU(), runtime.Version(), runtime.GOOS, runtime.GOARCH, *rounds, *each)
	for _, s := range subjects() {
		works := s.works()
		fmt.Printf("\n%s, %d bytes; %d as protobuf, %d with oneof\n\n",
			s.name, len(s.line), len(s.known.wire), len(s.oneof.wire))
		printTable(works, measure(works, *rounds))
	}
}

// measure runs all works in turns.
func measure(works []work, rounds int) map[string]*measured {
	all := make(map[string]*measured, len(works))
	for range rounds {
		for _, w := range works {
			r := testing.Benchmark(w.run)
			if r.N == 0 {
				log.Fatalf("%s failed", w.name)
			}
			m := all[w.name]
			if m == nil {
				m = new(measured)
				all[w.name] = m
			}
			m.ns = append(m.ns, float64(r.T.Nanoseconds())/float64(r.N))
			m.allocs = max(m.allocs, r.AllocsPerOp())
		}
	}
	return all
}

// printTable writes the table of one message.
func printTable(works []work, all map[string]*measured) {
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "work\tns\tallocs\t× find\t× byte loop\t× faster than protobuf\tthan with oneof\ttarget")
	for _, w := range works {
		m := all[w.name]
		fmt.Fprintf(t, "%s\t%.1f\t%d\t%.2f\t%.2f\t",
			w.name, median(m.ns), m.allocs, ratio(m, all[find]), ratio(m, all[loop]))
		if w.peer != "" {
			fmt.Fprintf(t, "%.2f\t%.2f", ratio(all[w.peer], m), ratio(all[w.peer+oneof], m))
		} else {
			fmt.Fprint(t, "\t")
		}
		fmt.Fprintf(t, "\t%s\n", w.target)
	}
	if err := t.Flush(); err != nil {
		log.Fatal(err)
	}
}

// ratio returns the median of how many times b went into a in each round.
func ratio(a, b *measured) float64 {
	r := make([]float64, len(a.ns))
	for i := range r {
		r[i] = a.ns[i] / b.ns[i]
	}
	return median(r)
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
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
