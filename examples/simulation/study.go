package main

import (
	"encoding/csv"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/ssmmp/ssmmp/ssmmptest"
)

// A study is one configuration, run from each seed.
type study struct {
	name        string
	simulations []ssmmptest.Simulation
	runs        []*series
	failure     *ssmmptest.SimulationFailure
	failedSeed  uint64
}

// A series is what one run was seen to do.
type series struct {
	seed     uint64
	every    time.Duration // between two samples
	samples  []sample
	took     []time.Duration // of each dial that succeeded, sorted
	failed   map[int]int     // dials, by status
	starts   int
	events   int
	hash     uint64
	duration time.Duration // virtual
}

// A sample is the mesh at one moment, and what was dialled since the one before.
type sample struct {
	ssmmptest.SimulationSample
	took []time.Duration // sorted
}

// samplesKept is how many samples a run has: a chart and a table want no more.
const samplesKept = 300

func (st *study) run(progress, transcript io.Writer) error {
	p := newProgress(progress, st.name, len(st.simulations))
	defer p.end()
	for n, sim := range st.simulations {
		s := &series{seed: sim.Seed, every: max(time.Second, sim.For/samplesKept), failed: map[int]int{}}
		var since []time.Duration
		res, err := sim.Run(ssmmptest.SimulationOptions{
			Transcript:  transcript,
			SampleEvery: s.every,
			OnDial: func(d ssmmptest.SimulationDial) {
				if d.Status.Success() {
					since = append(since, d.Took)
					s.took = append(s.took, d.Took)
				} else {
					s.failed[int(d.Status)]++
				}
			},
			OnSample: func(x ssmmptest.SimulationSample) {
				p.at(n, float64(x.At)/float64(sim.For))
				slices.Sort(since)
				s.samples = append(s.samples, sample{x, since})
				since = nil
			},
		})
		if err != nil {
			return err
		}
		slices.Sort(s.took)
		s.starts, s.events, s.hash, s.duration = res.Starts, res.Events, res.Hash, res.Virtual
		st.runs = append(st.runs, s)
		if res.Failure != nil && st.failure == nil {
			st.failure, st.failedSeed = res.Failure, sim.Seed
		}
	}
	return nil
}

// quantile returns the value below which the part q of sorted values lies.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[max(0, int(math.Ceil(q*float64(len(sorted))))-1)]
}

// writeTable compares the studies, a column each. All runs of a study count
// together.
func writeTable(out io.Writer, studies []*study) {
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	row := func(name string, value func(*study) string) {
		fmt.Fprint(w, name)
		for _, st := range studies {
			fmt.Fprint(w, "\t", value(st))
		}
		fmt.Fprintln(w)
	}
	row("", func(st *study) string { return st.name })
	all := map[*study][]time.Duration{}
	for _, st := range studies {
		for _, s := range st.runs {
			all[st] = append(all[st], s.took...)
		}
		slices.Sort(all[st])
	}
	row("sessions set up", func(st *study) string { return strconv.Itoa(len(all[st])) })
	for _, q := range []struct {
		name string
		part float64
	}{{"set-up, median", 0.5}, {"set-up, 90 %", 0.9}, {"set-up, 99 %", 0.99}, {"set-up, longest", 1}} {
		row(q.name, func(st *study) string { return milliseconds(quantile(all[st], q.part)) + " ms" })
	}
	var statuses []int
	for _, st := range studies {
		for _, s := range st.runs {
			for status := range s.failed {
				if !slices.Contains(statuses, status) {
					statuses = append(statuses, status)
				}
			}
		}
	}
	slices.Sort(statuses)
	for _, status := range statuses {
		row(fmt.Sprintf("failed with %d", status), func(st *study) string {
			return strconv.Itoa(st.sum(func(s *series) int { return s.failed[status] }))
		})
	}
	row("instances started", func(st *study) string { return strconv.Itoa(st.sum(func(s *series) int { return s.starts })) })
	of := func(name string, value func(sample) int) {
		row(name+", mean", func(st *study) string { return fmt.Sprintf("%.1f", st.mean(value)) })
		row(name+", most", func(st *study) string { return strconv.Itoa(st.most(value)) })
	}
	of("instances running", func(x sample) int { return x.Instances })
	of("sessions open", func(x sample) int { return x.Sessions })
	row("events", func(st *study) string { return strconv.Itoa(st.sum(func(s *series) int { return s.events })) })
	row("hash of all events", func(st *study) string {
		var h uint64
		for _, s := range st.runs {
			h = h*1099511628211 ^ s.hash
		}
		return fmt.Sprintf("%016x", h)
	})
	w.Flush()
}

func (st *study) sum(value func(*series) int) int {
	n := 0
	for _, s := range st.runs {
		n += value(s)
	}
	return n
}

func (st *study) mean(value func(sample) int) float64 {
	sum, n := 0, 0
	for _, s := range st.runs {
		for _, x := range s.samples {
			sum += value(x)
			n++
		}
	}
	return float64(sum) / float64(max(1, n))
}

func (st *study) most(value func(sample) int) int {
	most := 0
	for _, s := range st.runs {
		for _, x := range s.samples {
			most = max(most, value(x))
		}
	}
	return most
}

func milliseconds(d time.Duration) string {
	return strconv.FormatFloat(float64(d)/float64(time.Millisecond), 'f', 2, 64)
}

// writeCSV writes a line for each sample of each run.
func writeCSV(out io.Writer, studies []*study) error {
	w := csv.NewWriter(out)
	w.Write([]string{"configuration", "seed", "at_s", "agents", "instances", "sessions", "starts", "dials", "failed",
		"setups", "setup_p50_ms", "setup_p90_ms", "setup_p99_ms", "setup_max_ms"})
	for _, st := range studies {
		for _, s := range st.runs {
			for _, x := range s.samples {
				p50, p90, p99, longest := "", "", "", "" // where nothing was set up
				if len(x.took) > 0 {
					p50, p90 = milliseconds(quantile(x.took, 0.5)), milliseconds(quantile(x.took, 0.9))
					p99, longest = milliseconds(quantile(x.took, 0.99)), milliseconds(quantile(x.took, 1))
				}
				w.Write([]string{st.name, strconv.FormatUint(s.seed, 10), strconv.FormatFloat(x.At.Seconds(), 'f', 3, 64),
					strconv.Itoa(x.Agents), strconv.Itoa(x.Instances), strconv.Itoa(x.Sessions), strconv.Itoa(x.Starts),
					strconv.Itoa(x.Dials), strconv.Itoa(x.Failed), strconv.Itoa(len(x.took)), p50, p90, p99, longest})
			}
		}
	}
	w.Flush()
	return w.Error()
}

// A progress shows how far a long run is.
type progress struct {
	out   io.Writer
	name  string
	runs  int
	shown time.Time
	any   bool
}

// progressEvery is how often that is shown.
const progressEvery = 2 * time.Second

func newProgress(out io.Writer, name string, runs int) *progress {
	return &progress{out: out, name: name, runs: runs, shown: time.Now()}
}

func (p *progress) at(run int, part float64) {
	if now := time.Now(); now.Sub(p.shown) >= progressEvery {
		p.shown, p.any = now, true
		fmt.Fprintf(p.out, "\r%s: run %d of %d, %3.0f %%", p.name, run+1, p.runs, 100*(float64(run)+min(1, part))/float64(p.runs))
	}
}

func (p *progress) end() {
	if p.any {
		fmt.Fprintf(p.out, "\r%s: done               \n", p.name)
	}
}
