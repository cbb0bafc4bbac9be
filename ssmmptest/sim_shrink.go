package ssmmptest

import (
	"slices"
	"time"
)

// Shrink returns a smaller simulation in which the same invariant is broken:
// with less work, fewer faults, and a shorter time. It plays up to runs smaller
// ones, and returns s itself, and nil, when s breaks nothing.
func (s Simulation) Shrink(runs int) (Simulation, *SimulationFailure) {
	fails := func(t *Simulation) *SimulationFailure {
		if runs--; runs < 0 {
			return nil
		}
		res, err := t.Run(SimulationOptions{})
		if err != nil {
			return nil
		}
		return res.Failure
	}
	failure := fails(&s)
	if failure == nil {
		return s, nil
	}
	invariant := failure.Invariant
	// try takes over a smaller simulation if it fails alike.
	try := func(t Simulation) bool {
		f := fails(&t)
		if f == nil || f.Invariant != invariant {
			return false
		}
		s, failure = t, f
		return true
	}
	change := func(f func(t *Simulation)) bool {
		t := s
		f(&t)
		return try(t)
	}
	if failure.At < s.For {
		change(func(t *Simulation) { t.For, t.Quiet = failure.At+time.Second, true })
	}
	change(func(t *Simulation) { t.Load = nil })
	for again := true; again && runs > 0; {
		again = false
		if shrinkList(s.Faults, func(l []SimulationFault) bool { return change(func(t *Simulation) { t.Faults = l }) }) {
			again = true
		}
		if shrinkList(s.Work, func(l []SimulationWork) bool { return change(func(t *Simulation) { t.Work = l }) }) {
			again = true
		}
	}
	change(func(t *Simulation) { t.Load = nil })
	change(func(t *Simulation) { t.Commit = 0 })
	change(func(t *Simulation) { t.Jitter = 0 })
	for k := range s.Faults {
		change(func(t *Simulation) {
			t.Faults = slices.Clone(t.Faults)
			t.Faults[k].For /= 2
		})
		if len(s.Faults[k].Nodes) > 1 {
			for _, n := range s.Faults[k].Nodes {
				change(func(t *Simulation) {
					t.Faults = slices.Clone(t.Faults)
					t.Faults[k].Nodes = []int{n}
				})
			}
		}
	}
	return s, failure
}

// shrinkList leaves out halves of a list, then quarters, and so on, as long as
// fails says that what is left still does. It reports whether anything was left out.
func shrinkList[T any](list []T, fails func([]T) bool) bool {
	shrunk := false
	for size := (len(list) + 1) / 2; size > 0; size /= 2 {
		for at := 0; at < len(list); {
			less := slices.Concat(list[:at], list[min(at+size, len(list)):])
			if fails(less) {
				list, shrunk = less, true
			} else {
				at += size
			}
		}
	}
	return shrunk
}
