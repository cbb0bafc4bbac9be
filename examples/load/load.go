package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/ssmmp/ssmmp"
)

const (
	// killEvery and cutEvery are how far apart, on the average, two instances
	// are killed and two agents cut off. One is cut off for cutFor at most.
	killEvery = 300 * time.Millisecond
	cutEvery  = 500 * time.Millisecond
	cutFor    = time.Second
	// settleTime is how long the mesh may take to be what it should be, once
	// nothing disturbs it any more: less than the AckTimeout, at which the
	// Manager forgets what nobody acknowledged.
	settleTime = 45 * time.Second
	// healthPeriod is short, so that much happens in a short run.
	healthPeriod = 500 * time.Millisecond
	// rounds is how often a run is interrupted, at the least, to look at
	// everything, and roundTime how long it goes on at the most.
	rounds    = 2
	roundTime = 15 * time.Second
	// heapSlack is how many bytes the heap may grow after the first look,
	// beside a tenth: what connections keep of the largest bursts, and agents of
	// what they executed.
	heapSlack = 4 << 20
)

// A load is one run.
type load struct {
	*mesh
	say   func(format string, args ...any)
	kills map[string]int // by service
	cuts  map[string]int // by kind
	heaps []uint64       // in use after each look
}

// run puts a mesh under load for so long, and returns what was wrong.
func run(ctx context.Context, duration time.Duration, say func(format string, args ...any), log hclog.Logger) (err error) {
	m, err := startMesh(ctx, log)
	if err != nil {
		return err
	}
	defer m.close()
	l := &load{mesh: m, say: say, kills: map[string]int{}, cuts: map[string]int{}}
	defer func() { l.summary() }()
	begin, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	if err := m.manager.Deploy(begin, graphName); err != nil {
		return err
	}
	m.control.all("run")
	if err := l.settle(ctx, l.allRun); err != nil {
		return err
	}
	say("%d instances run on %d nodes", instances, nodes)
	if err := l.look(ctx); err != nil {
		return err
	}
	n := max(rounds, int(duration/roundTime))
	for range n {
		m.control.all("run")
		if err := l.disturb(ctx, duration/time.Duration(n)); err != nil {
			return err
		}
		if err := l.look(ctx); err != nil {
			return err
		}
	}
	if l.ledger.read().SetUps == 0 || len(l.kills) == 0 || len(l.cuts) == 0 {
		return errors.New("there was no load to speak of")
	}
	end, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	if err := m.manager.Undeploy(end, graphName); err != nil {
		return err
	}
	return l.settle(ctx, func() []string {
		if left := m.running(); len(left) > 0 {
			return []string{fmt.Sprintf("after the end these instances run: %v", left)}
		}
		return nil
	})
}

// settle waits until nothing is wrong any more.
func (l *load) settle(ctx context.Context, wrong func() []string) error {
	deadline := time.Now().Add(settleTime)
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		faults := wrong()
		if len(faults) == 0 {
			return nil
		}
		select {
		case err := <-l.errs:
			return err
		case <-ctx.Done():
			return ctx.Err()
		default:
		}
		if time.Now().After(deadline) {
			const most = 20
			var errs []error
			for _, f := range faults[:min(len(faults), most)] {
				errs = append(errs, errors.New(f))
			}
			return fmt.Errorf("%v after the load: %d faults: %w", settleTime, len(faults), errors.Join(errs...))
		}
		time.Sleep(wait)
	}
}

func (l *load) allRun() []string {
	n := 0
	for _, i := range l.manager.Snapshot().Instances {
		if i.State == ssmmp.InstanceRunning {
			n++
		}
	}
	if n < instances {
		return []string{fmt.Sprintf("%d of %d instances run", n, instances)}
	}
	return nil
}

// disturb kills instances and cuts agents off for a while.
func (l *load) disturb(ctx context.Context, d time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	every := func(pause time.Duration, f func()) {
		for {
			timer := time.NewTimer(pause/2 + rand.N(pause))
			select {
			case <-timer.C:
				f()
			case <-ctx.Done():
				timer.Stop()
				return
			}
		}
	}
	var both sync.WaitGroup
	both.Go(func() { every(killEvery, l.killOne) })
	both.Go(func() { every(cutEvery, l.cutOne) })
	both.Wait()
	if errors.Is(ctx.Err(), context.Canceled) {
		return ctx.Err()
	}
	return nil
}

// killOne kills an instance of one of the services that were killed least, so
// that none is held back for long.
func (l *load) killOne() {
	var victims []ssmmp.InstanceStatus
	for _, i := range l.manager.Snapshot().Instances {
		if len(victims) > 0 && l.kills[i.Service] < l.kills[victims[0].Service] {
			victims = victims[:0]
		}
		if len(victims) == 0 || l.kills[i.Service] == l.kills[victims[0].Service] {
			victims = append(victims, i)
		}
	}
	if len(victims) == 0 {
		return
	}
	victim := victims[rand.N(len(victims))]
	if err := l.kill(victim.ID); err == nil {
		l.kills[victim.Service]++
	}
}

func (l *load) cutOne() {
	c := cutOffs[rand.N(len(cutOffs))]
	c.do(l.proxies[rand.N(len(l.proxies))], rand.N(cutFor))
	l.cuts[c.name]++
}

// look has all instances pause, and holds what each part of the mesh knows
// against what the others do.
func (l *load) look(ctx context.Context) error {
	l.control.all("pause")
	var reports []report
	err := l.settle(ctx, func() []string {
		reports = l.control.all("pause")
		return audit(l.manager.Snapshot(), reports, l.running())
	})
	for _, r := range reports {
		err = errors.Join(err, r.faults())
	}
	wire := l.ledger.read()
	err = errors.Join(err, wire.faults("between agents and Manager"))
	l.ledger.keep(func(id ssmmp.InstanceID) bool {
		return slices.ContainsFunc(reports, func(r report) bool { return r.ID == id })
	})
	ends := 0
	for _, r := range reports {
		ends += len(r.Ends)
	}
	reports = nil
	heap, herr := l.heap(ctx)
	err = errors.Join(err, herr)
	l.heaps = append(l.heaps, heap)
	l.say("look %d: %d set-ups so far; %d ends of sessions are as the Manager knows them; heap %d KiB",
		len(l.heaps), wire.SetUps, ends, heap>>10)
	return err
}

// heap returns how much is in use once nothing is under way. What agents keep
// for a Manager that may not have heard it goes with the next health requests.
func (l *load) heap(ctx context.Context) (uint64, error) {
	var heap uint64
	wait := 4 * healthPeriod
	for deadline := time.Now().Add(settleTime); ; wait = healthPeriod {
		if len(l.heaps) == 0 || wait == healthPeriod {
			select {
			case <-time.After(wait):
			case <-ctx.Done():
				return heap, ctx.Err()
			}
		}
		runtime.GC()
		runtime.GC() // what finalizers and pools held
		var mem runtime.MemStats
		runtime.ReadMemStats(&mem)
		if heap = mem.HeapAlloc; len(l.heaps) == 0 {
			return heap, nil
		}
		if limit := l.heaps[0] + l.heaps[0]/10 + heapSlack; heap <= limit {
			return heap, nil
		}
		if time.Now().After(deadline) {
			return heap, fmt.Errorf("the heap grows: %d KiB in use at the first look, and now %d KiB", l.heaps[0]>>10, heap>>10)
		}
	}
}

func (l *load) summary() {
	wire := l.ledger.read()
	kills := 0
	for _, n := range l.kills {
		kills += n
	}
	l.say("set-ups: %d", wire.SetUps)
	l.say("requests: %d, answered %d, twice %d, unasked %d", wire.Asked, wire.Answered, wire.Twice, wire.Unasked)
	for _, s := range slices.Sorted(maps.Keys(wire.ByStatus)) {
		l.say("  answer %s: %d", s, wire.ByStatus[s])
	}
	l.say("instances killed: %d, of %d that lived", kills, l.control.born)
	for _, kind := range slices.Sorted(maps.Keys(l.cuts)) {
		l.say("agents cut off, %s: %d", kind, l.cuts[kind])
	}
}
