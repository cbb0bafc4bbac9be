package main

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"github.com/ssmmp/ssmmp"
)

// How long the first session to a service takes that is not running, against
// the bare start of the same program.

const (
	startsEach = 8 // starts in a round, of each kind
	atOnce     = 2 // starts at the same time, for starts a second
)

func startRows(o options) []row {
	dir, err := os.MkdirTemp("", "ssmmp-bench")
	check(err)
	defer os.RemoveAll(dir)
	program := filepath.Join(dir, "starter")
	build := exec.Command("go", "build", "-o", program, "./starter")
	build.Stderr = os.Stderr
	check(build.Run())

	ln, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	defer ln.Close()
	m := startMesh(tcp(), startsEach, ssmmp.CommandLauncher{Path: program}, nil)
	defer m.stop()
	var clients []*client
	for n := range startsEach {
		clients = append(clients, m.client(n))
	}

	var bare, first, bareRate, firstRate []float64 // ms to start, and starts a second
	for range min(o.rounds, 5) {                   // most of a round is to end them again
		// Alone, one after another.
		var b, f []float64
		for n := range startsEach {
			b = append(b, bareStart(program, ln))
			f = append(f, firstSession(clients[n]))
		}
		bare, first = append(bare, median(b)), append(first, median(f))
		m.endServers()

		// Some at once.
		bareRate = append(bareRate, startsPerSecond(func(int) { bareStart(program, ln) }))
		firstRate = append(firstRate, startsPerSecond(func(n int) { firstSession(clients[n]) }))
		m.endServers()
	}
	return []row{
		{what: "first session to a service that does not run, to its answer: × the bare start of its program",
			values: []string{ms(median(bare)), ms(median(first))}, ratios: []float64{medianRatio(first, bare)}, targets: []float64{1.3}, most: true},
		{what: "the same, starts a second: × the bare starts",
			values: []string{rate(median(bareRate)), rate(median(firstRate))}, ratios: []float64{medianRatio(firstRate, bareRate)}, targets: []float64{0.8}},
	}
}

// bareStart starts the program and waits until it has connected. It returns how
// many ms that took.
func bareStart(program string, ln net.Listener) float64 {
	began := time.Now()
	cmd := exec.Command(program, ln.Addr().String())
	check(cmd.Start())
	conn, err := ln.Accept()
	check(err)
	took := time.Since(began)
	conn.Close() // one of those that start at once: all of them end
	check(cmd.Wait())
	return float64(took.Microseconds()) / 1000
}

// firstSession asks for a session to a client's own server, and returns how
// many ms the answer took.
func firstSession(c *client) float64 {
	began := time.Now()
	check(c.ask())
	id, err := c.answer()
	check(err)
	took := time.Since(began)
	check(c.refuse(id)) // nobody listens there
	return float64(took.Microseconds()) / 1000
}

func startsPerSecond(start func(n int)) float64 {
	began := time.Now()
	var wg sync.WaitGroup
	for k := range atOnce {
		wg.Go(func() {
			for n := k; n < startsEach; n += atOnce {
				start(n)
			}
		})
	}
	wg.Wait()
	return startsEach / time.Since(began).Seconds()
}

// endServers ends all servers, and with them the sessions to them.
func (m *mesh) endServers() {
	for _, i := range m.manager.Snapshot().Instances {
		if i.Kind == ssmmp.Storage {
			check(m.manager.HardShutdown(context.Background(), i.ID))
		}
	}
}
