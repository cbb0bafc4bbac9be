package ssmmptest_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"hash/fnv"
	"runtime"
	"sync"
	"testing"
	"time"

	. "github.com/ssmmp/ssmmp/ssmmptest"
)

var (
	simSeed  = flag.Uint64("sim.seed", 0, "play this seed alone, with its transcript")
	simSeeds = flag.Int("sim.seeds", 150, "how many seeds to play")
	simBase  = flag.Uint64("sim.base", 1, "the first of them")
)

func TestSimulationSeeds(t *testing.T) {
	t.Parallel()
	if *simSeed != 0 {
		var b bytes.Buffer
		res, err := RandomSimulation(*simSeed).Run(SimulationOptions{Transcript: &b, Check: 1})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s", b.Bytes())
		if res.Failure != nil {
			t.Error(res.Failure)
		}
		t.Logf("%d events, hash %x", res.Events, res.Hash)
		return
	}
	events, bad := 0, 0
	for i := range *simSeeds {
		seed := *simBase + uint64(i)
		res, err := RandomSimulation(seed).Run(SimulationOptions{})
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		events += res.Events
		if res.Failure != nil {
			t.Errorf("seed %d: %v", seed, res.Failure)
			if bad++; bad > 20 {
				t.FailNow()
			}
		}
	}
	t.Logf("%d events", events)
}

// The same seed gives the same run, to the byte, alone and beside others.
func TestSimulationRepeats(t *testing.T) {
	seeds := 1000
	if testing.Short() {
		seeds = 100
	}
	type outcome struct{ hash, transcript uint64 }
	play := func(s Simulation) outcome {
		s.For, s.Quiet = 3*time.Second, true
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
