package main

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/ssmmp/ssmmp"
)

// audit compares what the Manager knows, what the instances say of themselves,
// and which processes run, and returns what differs. It is for a mesh that is
// left alone: what is under way differs for a moment.
func audit(s ssmmp.Snapshot, reports []report, running []ssmmp.InstanceID) []string {
	var faults []string
	fault := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	for _, a := range s.Agents {
		if a.State != ssmmp.AgentUp {
			fault("agent %s is %s", a.Address, a.State)
		}
	}
	if len(s.Agents) != nodes {
		fault("the Manager knows %d agents", len(s.Agents))
	}

	known, says, runs := map[ssmmp.InstanceID]bool{}, map[ssmmp.InstanceID]bool{}, map[ssmmp.InstanceID]bool{}
	for _, id := range running {
		runs[id] = true
	}
	for _, r := range reports {
		says[r.ID] = true
		if r.Wire.Answered != r.Wire.Asked {
			fault("instance %d asked %d times and has %d answers", r.ID, r.Wire.Asked, r.Wire.Answered)
		}
		if !runs[r.ID] {
			fault("instance %d speaks and does not run", r.ID)
		}
	}
	for _, i := range s.Instances {
		known[i.ID] = true
		if i.State != ssmmp.InstanceRunning || !says[i.ID] || !runs[i.ID] {
			fault("instance %d of %s is %s to the Manager; its process runs: %t; it speaks: %t", i.ID, i.Service, i.State, runs[i.ID], says[i.ID])
		}
	}
	for id := range runs {
		if !known[id] {
			fault("instance %d runs, and the Manager does not know it", id)
		}
	}

	// Each session has two ends, each of them in the list of one instance.
	type place struct {
		instance ssmmp.InstanceID
		end
	}
	want := map[place]string{}
	for _, x := range s.Sessions {
		what := fmt.Sprintf("session %s, %s, from %s %d over %s to %s %d", x.ID, x.State, x.SourceService, x.Source, x.Plug, x.DestinationService, x.Destination)
		if x.State != ssmmp.SessionOpen {
			fault("%s", what)
			continue
		}
		from := netip.AddrPortFrom(x.SourceAddress, x.PlugPort).String()
		to := netip.AddrPortFrom(x.DestinationAddress, x.NewPort).String()
		want[place{x.Source, end{true, x.Plug, from, to}}] = what
		want[place{x.Destination, end{false, x.Socket, to, from}}] = what
	}
	for _, r := range reports {
		for _, e := range r.Ends {
			if p := (place{r.ID, e}); want[p] == "" {
				fault("instance %d has the session %+v, and the Manager does not", r.ID, e)
			} else {
				delete(want, p)
			}
		}
	}
	for p, what := range want {
		fault("%s: instance %d does not have it", what, p.instance)
	}
	return faults
}

// faults returns what an instance saw that may never be.
func (r *report) faults() error {
	errs := []error{r.Wire.faults(fmt.Sprintf("between instance %d and its agent", r.ID))}
	for _, m := range r.Misrouted {
		errs = append(errs, fmt.Errorf("instance %d: %s", r.ID, m))
	}
	total := 0
	for class, n := range r.Outcomes {
		total += n
		if strings.HasPrefix(class, unexpected) {
			errs = append(errs, fmt.Errorf("instance %d: %d times %s", r.ID, n, class))
		}
	}
	if total != r.Dials {
		errs = append(errs, fmt.Errorf("instance %d: %d dials and %d outcomes", r.ID, r.Dials, total))
	}
	return errors.Join(errs...)
}

// faults returns what may not pass on a wire, whatever happens.
func (c *counts) faults(where string) error {
	if c.Twice+c.Unasked+c.Again == 0 {
		return nil
	}
	return fmt.Errorf("%s: %d requests answered twice, %d answers to no request, %d message ids used again", where, c.Twice, c.Unasked, c.Again)
}
