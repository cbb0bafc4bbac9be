package ssmmp

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
)

// linkPair returns a link and the other end of its connection.
func linkPair() (*link, net.Conn) {
	addr := netip.MustParseAddrPort("10.0.0.1:1")
	network := NewMemNetwork()
	host, _ := network.Host("10.0.0.1")
	a, b := newMemConns(addr, addr)
	a.host, b.host = host, host
	return newLink(1, a), b
}

func healthOf(id int64) *InstanceHealthResponse {
	return &InstanceHealthResponse{Header: Header{MessageID: id, SubType: ServiceInstanceToAgent}, ServiceInstanceID: 7, Status: StatusOK}
}

// What is queued is written in order, also what still waits at close, and then
// the connection ends.
func TestLinkCloseFlushes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l, far := linkPair()
		const messages = 3000 // more than a connection buffers
		for id := range int64(messages) {
			if err := l.send(healthOf(1 + id)); err != nil {
				t.Fatal(err)
			}
		}
		l.close()
		l.close()
		if err := l.send(healthOf(1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("send after close: %v; want net.ErrClosed", err)
		}
		d := NewDecoder(far)
		for id := range int64(messages) {
			m, err := d.Decode()
			if err != nil {
				t.Fatalf("message %d: %v", 1+id, err)
			}
			if got := m.Head().MessageID; got != 1+id {
				t.Fatalf("message %d came in the place of %d", got, 1+id)
			}
		}
		if _, err := d.Decode(); err != io.EOF {
			t.Errorf("after the last message: %v; want EOF", err)
		}
		l.wait()
	})
}

// A peer that never reads loses its connection when the queue is full, and a
// send never waits for it. Others do not notice.
func TestLinkSlowPeer(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l, _ := linkPair()
		other, far := linkPair()
		start := time.Now()
		sent := 0
		var err error
		for err == nil && sent < 10*maxQueue {
			err = l.send(healthOf(1))
			sent++
		}
		if !errors.Is(err, errQueueFull) {
			t.Errorf("send to a peer that does not read: %v; want errQueueFull", err)
		}
		if waited := time.Since(start); waited != 0 {
			t.Errorf("sending took %s; want no time at all", waited)
		}
		line, _ := AppendMessage(nil, healthOf(1))
		if bytes := sent * len(line); bytes < maxQueue || bytes > 2*maxQueue+memMaxBuffer+len(line) {
			t.Errorf("ended after %d bytes; want one queue waiting, and at most one being written", bytes)
		}
		if err := l.send(healthOf(1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("send after that: %v; want net.ErrClosed", err)
		}
		l.wait()
		if err := l.read(new(flushList), hclog.NewNullLogger(), func(Message) {}, func(*ProtocolError) {}); !errors.Is(err, net.ErrClosed) {
			t.Errorf("read after that: %v; want net.ErrClosed", err)
		}

		if err := other.send(healthOf(5)); err != nil {
			t.Error(err)
		}
		if m, err := NewDecoder(far).Decode(); err != nil || m.Head().MessageID != 5 {
			t.Errorf("another link: %v, %v", m, err)
		}
		other.close()
		other.wait()
	})
}

// A write that does not get on ends the connection at its deadline, also one
// of a link that is closing.
func TestLinkWriteDeadline(t *testing.T) {
	t.Parallel()
	for name, then := range map[string]func(*link){"Open": func(*link) {}, "Closing": (*link).close} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				l, _ := linkPair()
				start := time.Now()
				for range 2000 { // more than is buffered, less than a full queue
					if err := l.send(healthOf(1)); err != nil {
						t.Fatal(err)
					}
				}
				then(l)
				failed := make(chan error, 1)
				go func() {
					failed <- l.read(new(flushList), hclog.NewNullLogger(), func(Message) {}, func(*ProtocolError) {})
				}()
				l.wait()
				if took := time.Since(start); took != writeTimeout {
					t.Errorf("ended after %s; want %s", took, writeTimeout)
				}
				if !errors.Is(l.failed, os.ErrDeadlineExceeded) {
					t.Errorf("failed with %v; want the deadline", l.failed)
				}
				if err := <-failed; !errors.Is(err, net.ErrClosed) {
					t.Errorf("the reader: %v; want net.ErrClosed", err)
				}
			})
		})
	}
}

// A message that cannot be written is refused, and harms no other.
func TestLinkRefusesBadMessage(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l, far := linkPair()
		bad := healthOf(2)
		bad.Extensions = []Extension{{"x_note", "two\nlines"}}
		if err := l.send(healthOf(1)); err != nil {
			t.Error(err)
		}
		var p *ProtocolError
		if err := l.send(bad); !errors.As(err, &p) {
			t.Errorf("send of a value with a line end: %v; want a ProtocolError", err)
		}
		if err := l.send(healthOf(3)); err != nil {
			t.Error(err)
		}
		l.close()
		want := ""
		for _, id := range []int64{1, 3} {
			b, _ := AppendMessage(nil, healthOf(id))
			want += string(b)
		}
		if got, err := io.ReadAll(far); string(got) != want || err != nil {
			t.Errorf("written %q, %v; want %q", got, err, want)
		}
		l.wait()
	})
}

func TestLinkRead(t *testing.T) {
	t.Parallel()
	line := func(id int64) string {
		b, err := AppendMessage(nil, healthOf(id))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	tests := []struct {
		name, input string
		ids         []int64
		bad         int
		want        error // nil for an orderly end
	}{
		{"nothing", "", nil, 0, nil},
		{"after a bad line", line(1) + "type: nonsense ~ message_id: 9\n" + "\x00\x00\n" + line(2), []int64{1, 2}, 2, nil},
		{"an endless line", line(1) + strings.Repeat("x", 2*MaxLine) + "\n" + line(2), []int64{1}, 1, ErrLineTooLong},
		{"half a line", line(1) + line(2)[:20], []int64{1}, 0, io.ErrUnexpectedEOF},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				l, far := linkPair()
				go func() {
					io.WriteString(far, tt.input)
					far.Close()
				}()
				var ids []int64
				bad := 0
				err := l.read(new(flushList), hclog.NewNullLogger(), func(m Message) { ids = append(ids, m.Head().MessageID) }, func(*ProtocolError) { bad++ })
				if !errors.Is(err, tt.want) {
					t.Errorf("read: %v; want %v", err, tt.want)
				}
				if len(ids) != len(tt.ids) || bad != tt.bad {
					t.Fatalf("messages %v and %d bad lines; want %v and %d", ids, bad, tt.ids, tt.bad)
				}
				for n := range ids {
					if ids[n] != tt.ids[n] {
						t.Errorf("messages %v; want %v", ids, tt.ids)
					}
				}
				l.wait() // the writer ends with the reader
				if err := l.send(healthOf(1)); !errors.Is(err, net.ErrClosed) {
					t.Errorf("send on a connection that ended: %v; want net.ErrClosed", err)
				}
			})
		})
	}
}

// Many goroutines send, and close, at once: whole messages arrive, each
// sender's in order.
func TestLinkManySenders(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l, far := linkPair()
		manySenders(t, l, far)
		synctest.Wait()
	})
}

// The same over TCP, where the system may take a part of a write.
func TestLinkManySendersTCP(t *testing.T) {
	t.Parallel()
	l, far := linkPairTCP(t)
	manySenders(t, l, far)
}

func manySenders(t *testing.T, l *link, far net.Conn) {
	const senders, each = 8, 500
	var wg sync.WaitGroup
	for s := range int64(senders) {
		wg.Go(func() {
			for n := range int64(each) {
				m := healthOf(1 + n)
				m.ServiceInstanceID = InstanceID(1 + s)
				_, err := l.put(m)
				if n%3 == 0 {
					l.flush()
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
			l.flush()
		})
	}
	go func() { wg.Wait(); l.close() }()
	d := NewDecoder(far)
	var next [senders]int64
	for {
		m, err := d.Decode()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		h := m.(*InstanceHealthResponse)
		if next[h.ServiceInstanceID-1]++; h.MessageID != next[h.ServiceInstanceID-1] {
			t.Fatalf("sender %d: message %d; want %d", h.ServiceInstanceID, h.MessageID, next[h.ServiceInstanceID-1])
		}
	}
	for s, n := range next {
		if n != each {
			t.Errorf("sender %d: %d messages arrived of %d", s+1, n, each)
		}
	}
	l.wait()
}

// linkPairTCP is linkPair over TCP.
func linkPairTCP(t *testing.T) (*link, net.Conn) {
	ln, err := TCP{}.Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	near, err := TCP{}.Dial(t.Context(), ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close(); far.Close() })
	return newLink(1, near), far
}

// A peer over TCP that does not read makes nobody wait who sends to it, and
// loses the connection when the queue is full; what it reads is whole.
func TestLinkSlowPeerTCP(t *testing.T) {
	t.Parallel()
	l, far := linkPairTCP(t)
	var err error
	for id := int64(1); err == nil; id++ {
		err = l.send(healthOf(id))
	}
	if !errors.Is(err, errQueueFull) {
		t.Errorf("send to a peer that does not read: %v; want errQueueFull", err)
	}
	l.wait()
	d := NewDecoder(far)
	for want := int64(1); ; want++ {
		m, err := d.Decode()
		if err != nil {
			break
		}
		if got := m.Head().MessageID; got != want {
			t.Fatalf("message %d came in the place of %d", got, want)
		}
	}
}

// An idle link writes what was put into it in flush itself: nothing has to wake
// the writer, and nothing is allocated.
func TestLinkFlush(t *testing.T) {
	l, far := linkPairTCP(t)
	go io.Copy(io.Discard, far)
	m := healthOf(7)
	for range 100 {
		l.send(m)
	}
	if n := testing.AllocsPerRun(1000, func() {
		if err := l.send(m); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations for a message, want none", n)
	}
	bubble(t, func(t *testing.T) {
		l, far := linkPair()
		l.put(m)
		synctest.Wait() // the writer sleeps on
		if n := far.(*memConn).in.size; n != 0 {
			t.Errorf("%d bytes were written before flush", n)
		}
		l.flush()
		line, _ := AppendMessage(nil, m)
		if n := far.(*memConn).in.size; n != len(line) {
			t.Errorf("flush wrote %d bytes, want %d", n, len(line))
		}
		l.close()
		l.wait()
	})
}

// What is decided at once may be more than the queue of a peer that reads: it
// had no time to. One that does not read loses the connection by the next.
func TestLinkBurst(t *testing.T) {
	bubble(t, testLinkBurst)
}

func testLinkBurst(t *testing.T) {
	near, far := net.Pipe()
	defer far.Close()
	l := newLink(1, near)
	m := &AgentHealthRequest{Header: Header{MessageID: 1, SubType: ManagerToAgent}, AgentNetworkAddress: netip.MustParseAddr("10.0.0.1")}
	burst := func() error {
		for n := 0; n < maxReports; {
			more, err := l.put(m)
			if err != nil {
				return err
			}
			n = max(more, n+1)
		}
		l.flush()
		return nil
	}
	if err := burst(); err != nil {
		t.Fatalf("a burst: %v", err)
	}
	// Once the writer has taken it, and nobody reads, the second burst waits, and
	// the third is too much.
	synctest.Wait()
	if err := burst(); err != nil {
		t.Fatalf("a second burst: %v", err)
	}
	err := burst()
	if !errors.Is(err, errQueueFull) {
		t.Errorf("a peer that never reads: %v, want %v", err, errQueueFull)
	}
	l.wait()
}
