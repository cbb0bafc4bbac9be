package main

import (
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ssmmp/ssmmp"
)

// The set-ups of sessions against the relays and the peers.

// A contender is one way to answer requests.
type contender struct {
	name  string
	start func(clients int) crew
}

// A crew is the clients of a contender at work.
type crew struct {
	loops []loop
	rest  func() // what is to be done after each round, if anything
	stop  func()
}

// A loop is what one client does until it is told to stop. It returns how often
// it did it.
type loop func(stop *atomic.Bool) (int, error)

// rates are the operations a second of each contender, one of each round.
type rates map[string][]float64

// race lets contenders work in turns, for several rounds.
func race(contenders []contender, clients, rounds int, each time.Duration) rates {
	var crews []crew
	for _, c := range contenders {
		w := c.start(clients)
		defer w.stop()
		if w.rest == nil {
			w.rest = func() {}
		}
		crews = append(crews, w)
		run(w.loops, each/4) // to be warm
		w.rest()
	}
	result := rates{}
	for range rounds {
		for i, c := range contenders {
			result[c.name] = append(result[c.name], run(crews[i].loops, each))
			crews[i].rest()
		}
	}
	return result
}

// run has all loops run for some time, and returns the operations a second.
func run(loops []loop, d time.Duration) float64 {
	var stop atomic.Bool
	var wg sync.WaitGroup
	var done atomic.Int64
	began := time.Now()
	for _, l := range loops {
		wg.Go(func() {
			n, err := l(&stop)
			check(err)
			done.Add(int64(n))
		})
	}
	time.Sleep(d)
	stop.Store(true)
	wg.Wait()
	return float64(done.Load()) / time.Since(began).Seconds()
}

// ratio returns the median of how many times the best of b went into a in each
// round.
func (r rates) ratio(a string, b ...string) float64 {
	best := make([]float64, len(r[a]))
	for _, name := range b {
		for i, v := range r[name] {
			best[i] = max(best[i], v)
		}
	}
	return medianRatio(r[a], best)
}

const (
	queuedRelay = "relay, queued writes"
	inlineRelay = "relay, inline writes"
	setUps      = "set-ups"
)

// relayContender is a relay with the shape of a set-up.
func relayContender(name string, n network, newSender func(io.WriteCloser) sender, inFlight int, dialTo string) contender {
	return contender{name, func(clients int) crew {
		r := startRelay(n, newSender)
		var all []*client
		for i := range clients {
			all = append(all, newClient(r.dial(), i, clients, 1042000000000, "server", 1043000000000))
		}
		return crewOf(all, inFlight, dialTo, r.stop)
	}}
}

func relayContenders(n network, inFlight int, dialTo string) []contender {
	return []contender{
		relayContender(queuedRelay, n, newQueued, inFlight, dialTo),
		relayContender(inlineRelay, n, newInline, inFlight, dialTo),
	}
}

// setUpContender is the real thing: a real agent and a real Manager.
func setUpContender(transport func() ssmmp.Transport, inFlight int, dialTo string) contender {
	return contender{setUps, func(clients int) crew {
		m := startMesh(transport(), clients, nil, nil)
		w := m.crew(clients, inFlight, dialTo)
		w.stop = m.stop
		return w
	}}
}

func (m *mesh) crew(clients, inFlight int, dialTo string) crew {
	var all []*client
	for i := range clients {
		all = append(all, m.client(i))
	}
	m.warm(all[0])
	return crewOf(all, inFlight, dialTo, func() {})
}

// contender is a mesh that somebody else stops.
func (m *mesh) contender(name string, clients int) contender {
	return contender{name, func(int) crew { return m.crew(clients, 1, "") }}
}

func crewOf(clients []*client, inFlight int, dialTo string, stop func()) crew {
	w := crew{stop: stop}
	for _, c := range clients {
		c.dialTo = dialTo
		w.loops = append(w.loops, func(stop *atomic.Bool) (int, error) { return c.run(stop, inFlight) })
	}
	w.rest = func() {
		for _, c := range clients {
			check(c.closeAll())
		}
	}
	return w
}

// clientCounts are how many clients ask at once.
var clientCounts = []int{1, 16, 256}

// A raceRow compares the set-ups with the best of some others.
type raceRow struct {
	what    string
	against []string
	targets []float64 // for 1, 16 and 256 clients, or one for all
}

func (w raceRow) target(clients int) float64 {
	n := 0
	for n < len(w.targets)-1 && clients > []int{1, 16}[n] {
		n++
	}
	return w.targets[n]
}

func raceRows(o options, contenders []contender, want ...raceRow) []row {
	rows := make([]row, len(want))
	for _, clients := range clientCounts {
		r := race(contenders, clients, o.rounds, o.each)
		for i, w := range want {
			var best []float64
			for k := range o.rounds {
				b := 0.0
				for _, name := range w.against {
					b = max(b, r[name][k])
				}
				best = append(best, b)
			}
			rows[i].what = w.what
			rows[i].targets = append(rows[i].targets, w.target(clients))
			rows[i].values = append(rows[i].values, rate(median(r[setUps]))+" : "+rate(median(best)))
			rows[i].ratios = append(rows[i].ratios, r.ratio(setUps, w.against...))
		}
	}
	return rows
}

func counts(v []int) (s []string) {
	for _, n := range v {
		s = append(s, strconv.Itoa(n))
	}
	return s
}

// clients says how many clients there are, in a row's name.
func clients() string { return join(counts(clientCounts)) + " clients" }

var relays = []string{queuedRelay, inlineRelay}

func setUpRows(o options) []row {
	contenders := append(relayContenders(loopback{}, 1, ""), setUpContender(tcp, 1, ""))
	want := []raceRow{{"set-ups over TCP, " + clients() + ": × the better relay", relays, []float64{0.80, 0.88, 0.90}}}
	if o.peers {
		contenders = append(contenders, natsContender(natsPlain, false), natsContender(natsLeaf, true), grpcContender())
		want = append(want,
			raceRow{"the same: × " + natsPlain, []string{natsPlain}, []float64{1.5}},
			raceRow{"the same: × " + natsLeaf, []string{natsLeaf}, []float64{2}},
			raceRow{"the same: × " + grpcProxy, []string{grpcProxy}, []float64{5}})
	}
	if hasEtcd(o) {
		contenders = append(contenders, etcdContender(etcdGet, o.dir))
		want = append(want, raceRow{"the same: × " + etcdGet, []string{etcdGet}, []float64{3.5}})
	}
	return raceRows(o, contenders, want...)
}

func flightRows(o options) []row {
	return raceRows(o, append(relayContenders(loopback{}, 16, ""), setUpContender(tcp, 16, "")),
		raceRow{"set-ups over TCP, 16 in flight for each of " + clients() + ": × the better relay", relays, []float64{0.40}})
}

func dialRows(o options) []row {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	defer ln.Close()
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { io.Copy(io.Discard, conn); conn.Close() }()
		}
	}()
	to := ln.Addr().String()
	return raceRows(o, append(relayContenders(loopback{}, 1, to), setUpContender(tcp, 1, to)),
		raceRow{"sessions over TCP with dial, close and its report, " + clients() + ": × the better relay", relays, []float64{0.95}})
}

func memoryRows(o options) []row {
	return raceRows(o, append(relayContenders(pipes{}, 1, ""), setUpContender(memory, 1, "")),
		raceRow{"set-ups in memory, " + clients() + ": × the better relay in memory", relays, []float64{0.55}})
}

func rate(v float64) string {
	if v >= 1000 {
		return fmt.Sprintf("%.0fk/s", v/1000)
	}
	return fmt.Sprintf("%.0f/s", v)
}
