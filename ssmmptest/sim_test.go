package ssmmptest_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	. "github.com/ssmmp/ssmmp/ssmmptest"
)

var (
	simSeed   = flag.Uint64("sim.seed", 0, "play the simulation of this seed, with its transcript")
	simFile   = flag.String("sim.file", "", "or the one in this file")
	simShrink = flag.Bool("sim.shrink", false, "and shrink it if it fails")
	simOut    = flag.String("sim.out", "", "and write it to this file then")
	simSeeds  = flag.Int("sim.seeds", 100, "how many seeds to play")
	simBase   = flag.Uint64("sim.base", 1, "the first of them; from the clock if zero")
)

// enoughSeeds is how many seeds it takes to meet every kind of fault for sure.
const enoughSeeds = 2000

// A simSum is what came of many seeds.
type simSum struct {
	mu     sync.Mutex
	seeds  int
	events int
	faults [len(SimulationResult{}.Faults)]int
	failed map[uint64]*SimulationFailure
}

// playSeeds plays n seeds from base on, on all processors, until limit of them
// failed.
func playSeeds(t testing.TB, base uint64, n, limit int) *simSum {
	// A small mesh leaves little to collect: most of a collection is what each costs.
	defer debug.SetGCPercent(debug.SetGCPercent(800))
	sum := &simSum{failed: map[uint64]*SimulationFailure{}}
	var next, failed atomic.Int64
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for {
				i := next.Add(1) - 1
				if i >= int64(n) || failed.Load() >= int64(limit) {
					return
				}
				seed := base + uint64(i)
				res, err := RandomSimulation(seed).Run(SimulationOptions{})
				if err != nil {
					t.Errorf("seed %d: %v", seed, err)
					return
				}
				sum.mu.Lock()
				sum.seeds++
				sum.events += res.Events
				for k, c := range res.Faults {
					sum.faults[k] += c
				}
				if res.Failure != nil {
					failed.Add(1)
					sum.failed[seed] = res.Failure
					fmt.Printf("simulation: seed %d breaks: %v\n", seed, res.Failure) // in a long run it is wanted at once
				}
				sum.mu.Unlock()
			}
		})
	}
	wg.Wait()
	return sum
}

// Many seeds break nothing.
func TestSimulationSeeds(t *testing.T) {
	t.Parallel()
	base := *simBase
	if base == 0 {
		base = uint64(time.Now().UnixMilli()) * 1000
	}
	if *huntFirst {
		firstFailure(t, base, *simSeeds)
		return
	}
	fmt.Printf("simulation: %d seeds from -sim.base=%d on\n", *simSeeds, base)
	began := time.Now()
	sum := playSeeds(t, base, *simSeeds, 10)
	t.Logf("%d seeds, %d events in %v", sum.seeds, sum.events, time.Since(began).Round(time.Millisecond))
	first := true
	for seed := base; seed < base+uint64(*simSeeds); seed++ {
		f := sum.failed[seed]
		if f == nil {
			continue
		}
		t.Errorf("seed %d: %v\nTo see it: go test ./ssmmptest -run TestSimulationReplay -v -sim.seed=%d", seed, f, seed)
		if first {
			first = false
			report(t, RandomSimulation(seed))
		}
	}
	for _, k := range SimulationFaultKinds() {
		n := sum.faults[k]
		t.Logf("%-26s %9d  %s", k, n, k.What())
		if n == 0 && sum.seeds >= enoughSeeds && len(sum.failed) == 0 {
			t.Errorf("%s never happened", k)
		}
	}
}

// report shows a failing simulation, shrunk.
func report(t *testing.T, s Simulation) {
	small, f := s.Shrink(400)
	if f == nil {
		return
	}
	data, err := json.MarshalIndent(small, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	if *simOut != "" {
		if err := os.WriteFile(*simOut, append(data, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var transcript bytes.Buffer
	if _, err := small.Run(SimulationOptions{Transcript: &transcript}); err != nil {
		t.Fatal(err)
	}
	t.Logf("shrunk to %d faults and %d items of work, it breaks: %v\n%s\nIts transcript ends so:\n%s",
		len(small.Faults), len(small.Work), f, data, lastLines(transcript.String(), 60))
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSuffix(s, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// One simulation, with its whole transcript.
func TestSimulationReplay(t *testing.T) {
	var s Simulation
	switch {
	case *simFile != "":
		s = readSimulation(t, *simFile)
	case *simSeed != 0:
		s = RandomSimulation(*simSeed)
	default:
		t.Skip("needs -sim.seed or -sim.file")
	}
	if *simShrink {
		report(t, s)
		return
	}
	res, err := s.Run(SimulationOptions{Transcript: os.Stdout})
	if err != nil {
		t.Fatal(err)
	}
	if res.Failure != nil {
		t.Error(res.Failure)
	}
	t.Logf("%d events in %v of virtual time, hash %016x", res.Events, res.Virtual, res.Hash)
}

func readSimulation(t *testing.T, name string) (s Simulation) {
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &s); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return s
}

// Simulations that broke something once, shrunk, break nothing any more.
func TestSimulationKept(t *testing.T) {
	t.Parallel()
	names, err := filepath.Glob("testdata/sim/*.json")
	if err != nil || len(names) == 0 {
		t.Fatalf("%d files, %v", len(names), err)
	}
	for _, name := range names {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".json"), func(t *testing.T) {
			t.Parallel()
			res, err := readSimulation(t, name).Run(SimulationOptions{Check: 1})
			if err != nil {
				t.Fatal(err)
			}
			if res.Failure != nil {
				t.Errorf("%v\nTo see it: go test ./ssmmptest -run TestSimulationReplay -v -sim.file=%s", res.Failure, name)
			}
		})
	}
}

// The same seed gives the same run, to the byte, alone and beside others.
func TestSimulationRepeats(t *testing.T) {
	seeds := 1000
	if testing.Short() {
		seeds = 100
	}
	type outcome struct{ hash, transcript uint64 }
	play := func(s Simulation) outcome {
		s.For, s.Quiet = 1500*time.Millisecond, true
		h := fnv.New64a()
		res, err := s.Run(SimulationOptions{Transcript: h})
		if err != nil {
			t.Errorf("seed %d: %v", s.Seed, err)
			return outcome{}
		}
		return outcome{res.Hash, h.Sum64()}
	}
	all := func(procs int) []outcome {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(procs))
		got := make([]outcome, seeds)
		var wg sync.WaitGroup
		for part := range procs {
			wg.Go(func() {
				for seed := part; seed < seeds; seed += procs {
					got[seed] = play(RandomSimulation(uint64(seed)))
				}
			})
		}
		wg.Wait()
		return got
	}
	one, two := all(1), all(2)
	different := map[outcome]bool{}
	for seed := range seeds {
		if one[seed] != two[seed] {
			t.Errorf("seed %d: %x, and then %x", seed, one[seed], two[seed])
		}
		different[one[seed]] = true
	}
	if len(different) < seeds {
		t.Errorf("%d different runs of %d seeds", len(different), seeds)
	}
	// What is written as JSON is the same simulation.
	for seed := range uint64(20) {
		data, err := json.Marshal(RandomSimulation(seed))
		if err != nil {
			t.Fatal(err)
		}
		var s Simulation
		if err := json.Unmarshal(data, &s); err != nil {
			t.Fatal(err)
		}
		if got := play(s); got != one[seed] {
			t.Errorf("seed %d from JSON: %x, want %x", seed, got, one[seed])
		}
	}
}
