package ssmmp

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// pingPongSize is that of a message of a session's set-up.
const pingPongSize = 250

// BenchmarkPingPong has one client with one message in flight.
func BenchmarkPingPong(b *testing.B) {
	for _, way := range pingPongWays {
		b.Run(way.name, func(b *testing.B) {
			client, buf := startEcho(b, way.pair), make([]byte, pingPongSize)
			b.ReportAllocs()
			for b.Loop() {
				pingPong(b, client, buf)
			}
		})
	}
}

// BenchmarkPingPongRatio runs the ways in turns and prints how many times as
// fast as each of the others the memory transport is.
func BenchmarkPingPongRatio(b *testing.B) {
	const turn = 1000
	clients := make([]io.ReadWriter, len(pingPongWays))
	took := make([]time.Duration, len(pingPongWays))
	buf := make([]byte, pingPongSize)
	for i, way := range pingPongWays {
		clients[i] = startEcho(b, way.pair)
	}
	for b.Loop() {
		for i, client := range clients {
			start := time.Now()
			for range turn {
				pingPong(b, client, buf)
			}
			took[i] += time.Since(start)
		}
	}
	b.ReportMetric(0, "ns/op") // of all ways together: says nothing
	b.ReportMetric(float64(b.N*turn)/took[0].Seconds(), "mem-rounds/s")
	for i, way := range pingPongWays[1:] {
		b.ReportMetric(float64(took[i+1])/float64(took[0]), "x-"+way.name)
	}
}

// BenchmarkStream sends one way as fast as it is read.
func BenchmarkStream(b *testing.B) {
	for _, way := range pingPongWays {
		b.Run(way.name, func(b *testing.B) {
			client, server := way.pair(b)
			var wg sync.WaitGroup
			wg.Go(func() {
				for buf := make([]byte, 32<<10); ; {
					if _, err := server.Read(buf); err != nil {
						return
					}
				}
			})
			buf := make([]byte, 32<<10)
			b.SetBytes(int64(len(buf)))
			for b.Loop() {
				if _, err := client.Write(buf); err != nil {
					b.Fatal(err)
				}
			}
			client.Close()
			wg.Wait()
		})
	}
}

// BenchmarkMemDial opens, accepts and closes a connection.
func BenchmarkMemDial(b *testing.B) {
	hosts := memHosts(b, "10.0.0.1", "10.0.0.2")
	ln := memListen(b, hosts[0], "10.0.0.1:70")
	b.ReportAllocs()
	for b.Loop() {
		client, server := memConnect(b, hosts[1], ln)
		client.Close()
		server.Close()
	}
}

// pingPongWays begins with the memory transport; the others are its floor and
// its peers.
var pingPongWays = []struct {
	name string
	pair func(b *testing.B) (client, server io.ReadWriteCloser)
}{
	{"mem", func(b *testing.B) (client, server io.ReadWriteCloser) {
		hosts := memHosts(b, "10.0.0.1", "10.0.0.2")
		return memConnect(b, hosts[1], memListen(b, hosts[0], "10.0.0.1:70"))
	}},
	{"floor", func(*testing.B) (client, server io.ReadWriteCloser) {
		x, y := newFloorPipe(), newFloorPipe()
		return floorConn{x, y}, floorConn{y, x}
	}},
	{"net.Pipe", func(*testing.B) (client, server io.ReadWriteCloser) {
		return net.Pipe()
	}},
	{"tcp", func(b *testing.B) (client, server io.ReadWriteCloser) {
		ln, err := TCP{}.Listen(b.Context(), "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		defer ln.Close()
		if client, err = (TCP{}).Dial(b.Context(), ln.Addr().String()); err != nil {
			b.Fatal(err)
		}
		if server, err = ln.Accept(); err != nil {
			b.Fatal(err)
		}
		return client, server
	}},
}

// startEcho returns the client's end of a connection to an echo that ends with
// the benchmark.
func startEcho(b *testing.B, pair func(*testing.B) (client, server io.ReadWriteCloser)) io.ReadWriter {
	client, server := pair(b)
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, pingPongSize)
		for {
			if _, err := io.ReadFull(server, buf); err != nil {
				return
			}
			if _, err := server.Write(buf); err != nil {
				return
			}
		}
	})
	b.Cleanup(func() {
		client.Close()
		wg.Wait()
	})
	return client
}

func pingPong(b *testing.B, c io.ReadWriter, buf []byte) {
	if _, err := c.Write(buf); err != nil {
		b.Fatal(err)
	}
	if _, err := io.ReadFull(c, buf); err != nil {
		b.Fatal(err)
	}
}

// floorPipe is the least that a buffered pipe on a mutex and a condition does:
// no deadlines, no growth, one way to end.
type floorPipe struct {
	mu      sync.Mutex
	changed *sync.Cond
	buf     []byte
	n       int
	closed  bool
}

func newFloorPipe() *floorPipe {
	p := &floorPipe{buf: make([]byte, memMaxBuffer)}
	p.changed = sync.NewCond(&p.mu)
	return p
}

type floorConn struct{ in, out *floorPipe }

func (c floorConn) Read(b []byte) (int, error) {
	p := c.in
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.n == 0 && !p.closed {
		p.changed.Wait()
	}
	if p.n == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.buf[:p.n])
	p.n = copy(p.buf, p.buf[n:p.n])
	p.changed.Signal()
	return n, nil
}

func (c floorConn) Write(b []byte) (n int, err error) {
	p := c.out
	p.mu.Lock()
	defer p.mu.Unlock()
	for n < len(b) && !p.closed {
		k := copy(p.buf[p.n:], b[n:])
		p.n += k
		n += k
		p.changed.Signal()
		if n < len(b) {
			p.changed.Wait()
		}
	}
	if p.closed {
		return n, io.ErrClosedPipe
	}
	return n, nil
}

func (c floorConn) Close() error {
	for _, p := range []*floorPipe{c.in, c.out} {
		p.mu.Lock()
		p.closed = true
		p.changed.Broadcast()
		p.mu.Unlock()
	}
	return nil
}
