package ssmmp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func drainRequest(id int64) *GracefulShutdownRequest {
	return &GracefulShutdownRequest{Header: Header{MessageID: id, SubType: AgentToServiceInstance}, ServiceName: "A", ServiceInstanceID: 7}
}

// closeRequest asks for the session whose end is conn to be closed.
func closeRequest(id int64, source bool, conn net.Conn) Message {
	local, remote := addrPort(conn.LocalAddr()), addrPort(conn.RemoteAddr())
	if source {
		return &SourceSessionCloseRequest{Header: Header{MessageID: id, SubType: AgentToSourceService},
			SourceServiceName: "A", SourceServiceInstanceID: 7, SourceServiceInstanceNetworkAddress: local.Addr(), SourcePlugName: "P", SourcePlugPort: local.Port(),
			DestServiceName: "B", DestServiceInstanceNetworkAddress: remote.Addr(), DestSocketName: "T", DestSocketPort: remote.Port(), DestSocketNewPort: remote.Port()}
	}
	return &DestSessionCloseRequest{Header: Header{MessageID: id, SubType: AgentToDestService},
		DestServiceName: "A", DestServiceInstanceID: 7, DestServiceInstanceNetworkAddress: local.Addr(), DestSocketName: "S", DestSocketPort: local.Port(), DestSocketNewPort: local.Port(),
		SourceServiceInstanceNetworkAddress: remote.Addr(), SourcePlugName: "Q", SourcePlugPort: remote.Port()}
}

// closeAnswered takes the response to a close request.
func (f *fakeAgent) closeAnswered(id int64, source bool, want Status) {
	f.t.Helper()
	var h Header
	var status Status
	if source {
		m := said[*SourceSessionCloseResponse](f)
		h, status = m.Header, m.Status
	} else {
		m := said[*DestSessionCloseResponse](f)
		h, status = m.Header, m.Status
	}
	if h.MessageID != id || status != want {
		f.t.Errorf("answered %d with %s; want %d with %s", h.MessageID, status, id, want)
	}
}

func isDone(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func TestJoinFaults(t *testing.T) {
	bubble(t, func(t *testing.T) {
		host, err := NewMemNetwork().Host("10.0.0.1")
		if err != nil {
			t.Fatal(err)
		}
		good := Launch{Service: "A", ID: 7, Address: nodeAddr, Agent: "localhost:55556", Sockets: []SocketPort{{"S", 54000}}, Plugs: []PlugTarget{{"S", "S", "B"}, {"P", "S", "B"}}}
		for _, edit := range []func(*Launch){
			func(l *Launch) { l.Service = "" }, func(l *Launch) { l.Service = "a b" }, func(l *Launch) { l.ID = 0 },
			func(l *Launch) { l.ID = -1 }, func(l *Launch) { l.Address = netip.Addr{} }, func(l *Launch) { l.Agent = "" },
			func(l *Launch) { l.Sockets = []SocketPort{{"a b", 54000}} }, func(l *Launch) { l.Sockets = []SocketPort{{"S1", 0}} },
			func(l *Launch) { l.Sockets = []SocketPort{{"S1", 54000}, {"S1", 54001}} },
			func(l *Launch) { l.Plugs = []PlugTarget{{"", "S", "B"}} }, func(l *Launch) { l.Plugs = []PlugTarget{{"P", "S~", "B"}} },
			func(l *Launch) { l.Plugs = []PlugTarget{{"P", "S", ""}} }, func(l *Launch) { l.Plugs = []PlugTarget{{"P", "S", "B"}, {"P", "S", "C"}} },
		} {
			l := good
			edit(&l)
			if _, err := JoinWith(t.Context(), JoinConfig{Launch: l, Transport: host}); err == nil || !strings.Contains(err.Error(), "JoinConfig.Launch.") {
				t.Errorf("JoinWith %+v: %v; want an error that says what is lacking", l, err)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		start := time.Now()
		if _, err := JoinWith(ctx, JoinConfig{Launch: good, Transport: host}); err == nil || !strings.Contains(err.Error(), "localhost:55556") {
			t.Errorf("JoinWith without an agent: %v; want its address", err)
		} else if waited := time.Since(start); waited != time.Minute {
			t.Errorf("gave up after %s; want the context's minute", waited)
		}
	})
}

// While the agent is away sessions go on, and what has to be reported is kept
// and said in order when it is back, after hello.
func TestAgentAway(t *testing.T) {
	withAgent(t, nil, func(t *testing.T, f *fakeAgent) {
		one, oneFar := f.session()
		two, _ := f.session()
		three, _ := f.accepted()
		f.health()
		f.ln.Close()
		f.conn.Close()
		synctest.Wait()

		two.Close()
		three.Close()
		if _, err := io.WriteString(one, "on"); err != nil {
			t.Fatal(err)
		}
		if got := make([]byte, 2); true {
			if _, err := io.ReadFull(oneFar, got); err != nil || string(got) != "on" {
				t.Errorf("the other end read %q, %v", got, err)
			}
		}
		oneFar.Close()
		io.Copy(io.Discard, one)
		one.Close()

		time.Sleep(time.Minute)
		f.listen()
		f.accept()
		f.endReported(true, two, StatusSessionClosed)
		f.endReported(false, three, StatusSessionClosed)
		f.endReported(true, one, StatusSessionClosed)
		f.silent()

		f.health() // it does not tell what arrived: what was said is not said again
		f.conn.Close()
		f.accept()
		f.silent()
	})
}

// What is kept while the agent is away has a bound, and comes in its order when
// the agent is back.
func TestReportsKeptAreBounded(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("n", MaxName)
	c := NewInstanceCore(Launch{Service: long, ID: 1 << 60, Address: netip.MustParseAddr("fd00:1111:2222:3333:4444:5555:6666:7777"), Secret: long,
		Plugs: []PlugTarget{{long, long, long}}})
	const ends = 45_000
	warned := 0
	for n := range uint64(ends) {
		c.add(n, &sessionEnd{source: true, target: c.launch.Plugs[0], dest: 1 << 60, peer: netip.AddrPortFrom(c.launch.Address, 54000), port: uint16(n + 1)})
		for _, o := range c.Step(InstanceInput{Kind: InstanceInputConnClosed, Conn: n, Status: StatusSessionClosed}) {
			if o.Kind != InstanceOutputWarn {
				t.Fatalf("without an agent: %+v", o)
			}
			warned++
		}
	}
	size, reports := 0, 0
	for n, o := range c.Step(InstanceInput{Kind: InstanceInputUp}) {
		b, err := AppendMessage(nil, o.Msg)
		if err != nil {
			t.Fatal(err)
		}
		size += len(b)
		if n == 0 {
			continue // hello
		}
		reports++
		if m := o.Msg.(*SourceSessionCloseInfo); m.SourcePlugPort != uint16(reports) {
			t.Fatalf("report %d is of port %d: not in order", reports, m.SourcePlugPort)
		}
	}
	if size > maxReports+MaxLine || size < maxReports/2 {
		t.Errorf("%d reports have %d bytes; want up to %d", reports, size, maxReports)
	}
	if reports+warned != ends {
		t.Errorf("%d reports kept and %d warned of; want %d in all", reports, warned, ends)
	}

	// The bound is on what waits, not on what ever waited.
	c.Step(InstanceInput{Kind: InstanceInputMessage, Msg: healthRequest(1)})
	c.Step(InstanceInput{Kind: InstanceInputDown})
	c.add(1, &sessionEnd{source: true, target: c.launch.Plugs[0], peer: netip.AddrPortFrom(c.launch.Address, 54000), port: 1})
	c.Step(InstanceInput{Kind: InstanceInputConnClosed, Conn: 1, Status: StatusSessionClosed})
	if out := c.Step(InstanceInput{Kind: InstanceInputUp}); len(out) != 2 {
		t.Errorf("on the next return: %d messages; want hello and one report", len(out))
	}
}

// healthRequest is one of an agent that does not tell what the Manager has.
func healthRequest(id int64) *InstanceHealthRequest {
	return &InstanceHealthRequest{Header: Header{MessageID: id, SubType: AgentToServiceInstance}, ServiceInstanceID: 7, ServiceInstanceNetworkAddress: nodeAddr}
}

// health asks for the instance's health.
func (f *fakeAgent) health() {
	f.t.Helper()
	f.send(healthRequest(51))
	if m := said[*InstanceHealthResponse](f); m.MessageID != 51 {
		f.t.Errorf("health %+v", m)
	}
}

func TestHealthAndBadLines(t *testing.T) {
	withAgent(t, nil, func(t *testing.T, f *fakeAgent) {
		ask := func(want Status) {
			t.Helper()
			f.send(&InstanceHealthRequest{Header: Header{MessageID: 50, SubType: AgentToServiceInstance}, ServiceInstanceID: 7, ServiceInstanceNetworkAddress: nodeAddr})
			if m := said[*InstanceHealthResponse](f); m.Status != want || m.MessageID != 50 {
				t.Errorf("health %+v; want %s", m, want)
			}
		}
		ask(StatusOK)
		if err := f.inst.SetHealth(StatusOverloaded); err != nil {
			t.Error(err)
		}
		ask(StatusOverloaded)
		for _, s := range []Status{0, 99, 600} {
			if err := f.inst.SetHealth(s); err == nil {
				t.Errorf("SetHealth(%d) succeeded", s)
			}
		}
		for range 3 * badLinesLogged {
			io.WriteString(f.conn, "type: nonsense ~ message_id: 1\n")
		}
		// Neither does what is meant for another actor, or answers nothing.
		f.send(&AgentHealthRequest{Header: Header{MessageID: 51, SubType: ManagerToAgent}, AgentNetworkAddress: nodeAddr})
		ask(StatusOverloaded)
		if n := f.inst.Dropped(); n != 3*badLinesLogged+1 {
			t.Errorf("%d dropped, want %d lines and a message", n, 3*badLinesLogged)
		}
	})
}

// The functions given to OnDrain run at the same time. The answer comes when
// all have returned, or at the deadline, and just before the instance leaves.
func TestOnDrain(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		takes []time.Duration // what the functions take; more than the DrainTimeout: until their context ends
		want  time.Duration
	}{
		{"None", nil, 0},
		{"Several", []time.Duration{time.Second, 3 * time.Second, 2 * time.Second}, 3 * time.Second},
		{"OneHangs", []time.Duration{time.Second, time.Hour}, 5 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			withAgent(t, func(cfg *JoinConfig) { cfg.DrainTimeout = 5 * time.Second }, func(t *testing.T, f *fakeAgent) {
				ln, err := f.inst.Listen("S")
				if err != nil {
					t.Fatal(err)
				}
				start := time.Now()
				release := make(chan struct{})
				var ran sync.WaitGroup
				for _, d := range tt.takes {
					ran.Add(1)
					f.inst.OnDrain(func(ctx context.Context) {
						defer ran.Done()
						if at, ok := ctx.Deadline(); !ok || at.Sub(start) != 5*time.Second {
							t.Errorf("deadline %s after the request, %t; want 5s", at.Sub(start), ok)
						}
						if !isDone(f.inst.Draining()) || isDone(f.inst.Done()) {
							t.Error("want Draining closed and Done open in OnDrain")
						}
						if _, err := f.inst.Dial(ctx, "P"); !errors.Is(err, ErrDraining) {
							t.Errorf("Dial: %v; want ErrDraining", err)
						}
						if d > 5*time.Second {
							<-release // it hangs, and does not look at its context
							return
						}
						time.Sleep(d)
					})
				}
				f.send(drainRequest(60))
				f.send(drainRequest(60)) // a duplicate changes nothing
				<-f.inst.Done()
				if took := time.Since(start); took != tt.want {
					t.Errorf("left after %s; want %s", took, tt.want)
				}
				if m := said[*GracefulShutdownResponse](f); m.MessageID != 60 || m.Status != StatusOK {
					t.Errorf("answered %+v", m)
				}
				f.silent()
				if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
					t.Errorf("Accept: %v; want net.ErrClosed", err)
				}
				if _, err := f.conn.Write([]byte("\n")); err == nil {
					t.Error("the connection to the agent is open after the instance left")
				}
				close(release)
				ran.Wait()
				f.inst.Close()
				f.silent()
			})
		})
	}
}

func TestOnSessionClose(t *testing.T) {
	t.Parallel()
	const limit = 4 * time.Second // half of the DrainTimeout
	for _, source := range []bool{true, false} {
		name := map[bool]string{true: "S", false: "P"}[!source]
		run := func(what string, test func(t *testing.T, f *fakeAgent, conn, far net.Conn)) {
			t.Run(fmt.Sprintf("%s/source=%t", what, source), func(t *testing.T) {
				withAgent(t, nil, func(t *testing.T, f *fakeAgent) {
					open := f.accepted
					if source {
						open = f.session
					}
					conn, far := open()
					test(t, f, conn, far)
					conn.Close()
					f.silent()
				})
			})
		}
		run("Slow", func(t *testing.T, f *fakeAgent, conn, far net.Conn) {
			f.inst.OnSessionClose(func(c SessionClose) {
				if c.Conn != conn || c.Name != name || c.Reason == "" {
					t.Errorf("told of %+v; want %v of %s and a reason", c, conn, name)
				}
				time.Sleep(time.Second)
				io.WriteString(c.Conn, "good bye")
			})
			f.send(closeRequest(70, source, conn))
			f.silent() // not yet
			if got, err := io.ReadAll(far); string(got) != "good bye" || err != nil {
				t.Errorf("the other end read %q, %v; want the last word", got, err)
			}
			f.closeAnswered(70, source, StatusOK)
			if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, ErrSessionClosed) {
				t.Errorf("Read: %v; want ErrSessionClosed", err)
			}
		})
		run("Hangs", func(t *testing.T, f *fakeAgent, conn, far net.Conn) {
			release := make(chan struct{})
			defer close(release)
			f.inst.OnSessionClose(func(SessionClose) { <-release })
			start := time.Now()
			f.send(closeRequest(70, source, conn))
			f.send(closeRequest(70, source, conn))
			f.send(closeRequest(71, source, conn))
			io.Copy(io.Discard, far)
			if took := time.Since(start); took != limit {
				t.Errorf("closed after %s; want %s", took, limit)
			}
			f.closeAnswered(70, source, StatusOK)
			f.closeAnswered(71, source, StatusOK)
		})
		run("ClosesItself", func(t *testing.T, f *fakeAgent, conn, far net.Conn) {
			f.inst.OnSessionClose(func(c SessionClose) { c.Conn.Close() })
			f.send(closeRequest(70, source, conn))
			f.closeAnswered(70, source, StatusOK) // and no report that it closed
		})
		run("Unknown", func(t *testing.T, f *fakeAgent, conn, far net.Conn) {
			f.inst.OnSessionClose(func(SessionClose) { t.Error("told of another session") })
			conn.Close()
			f.endReported(source, conn, StatusSessionClosed)
			f.send(closeRequest(70, source, conn))
			f.closeAnswered(70, source, StatusNotFound)
		})
		run("Leaves", func(t *testing.T, f *fakeAgent, conn, far net.Conn) {
			release := make(chan struct{})
			defer close(release)
			f.inst.OnSessionClose(func(SessionClose) { <-release })
			f.send(closeRequest(70, source, conn))
			synctest.Wait()
			start := time.Now()
			f.inst.Close()
			if took := time.Since(start); took != 0 {
				t.Errorf("Close waited %s for a function of a session that is closed", took)
			}
			f.closeAnswered(70, source, StatusOK)
			said[*TerminationInfo](f)
		})
	}
}

// An instance that ends by itself closes everything first, and says so last
// and once, however often it is told to.
func TestTerminate(t *testing.T) {
	for name, end := range map[string]func(*Instance){
		"Terminate": (*Instance).Terminate,
		"Close":     func(i *Instance) { i.Close() },
		"Many": func(i *Instance) {
			var wg sync.WaitGroup
			for n := range 8 {
				wg.Go(func() {
					if n%2 == 0 {
						i.Terminate()
					} else if err := i.Close(); err != nil || !isDone(i.Done()) {
						panic("Close returned before the instance left")
					}
				})
			}
			wg.Wait()
		},
	} {
		t.Run(name, func(t *testing.T) {
			withAgent(t, nil, func(t *testing.T, f *fakeAgent) {
				f.inst.OnDrain(func(context.Context) { t.Error("OnDrain is for a graceful shutdown") })
				ln, err := f.inst.Listen("S")
				if err != nil {
					t.Fatal(err)
				}
				accepted := make(chan error, 1)
				go func() {
					_, err := ln.Accept()
					accepted <- err
				}()
				conn, far := f.session()
				waiting := f.dial(t.Context())
				said[*SessionRequest](f)

				end(f.inst)
				if !isDone(f.inst.Done()) || !isDone(f.inst.Draining()) {
					t.Error("want Done and Draining closed")
				}
				if err := <-accepted; !errors.Is(err, net.ErrClosed) {
					t.Errorf("Accept: %v; want net.ErrClosed", err)
				}
				if _, err := io.ReadAll(far); err != nil {
					t.Errorf("the other end of a session: %v; want EOF", err)
				}
				if r := <-waiting; !errors.Is(r.err, ErrDraining) {
					t.Errorf("Dial that waited: %v; want ErrDraining", r.err)
				}
				f.endReported(true, conn, StatusSessionClosed)
				if m := said[*TerminationInfo](f); m.ServiceName != "A" || m.ServiceInstanceID != 7 || m.ServiceInstanceNetworkAddress != nodeAddr {
					t.Errorf("said %+v", m)
				}
				end(f.inst)
				f.silent()
			})
		})
	}
	t.Run("WhileAgentIsAway", func(t *testing.T) {
		withAgent(t, nil, func(t *testing.T, f *fakeAgent) {
			f.ln.Close()
			f.conn.Close()
			synctest.Wait()
			start := time.Now()
			f.inst.Close()
			if took := time.Since(start); took != 0 {
				t.Errorf("Close took %s; want none: there is nobody to tell", took)
			}
		})
	})
}

// A session that was dialled here closes when no byte went either way for the
// IdleTimeout.
func TestIdleTimeout(t *testing.T) {
	const idle = time.Minute
	withIdle := func(d time.Duration) func(*JoinConfig) {
		return func(cfg *JoinConfig) { cfg.IdleTimeout = d }
	}
	// lasts returns how long conn lasts without more bytes.
	lasts := func(far net.Conn) time.Duration {
		start := time.Now()
		far.SetReadDeadline(start.Add(24 * time.Hour))
		io.Copy(io.Discard, far)
		return time.Since(start)
	}
	t.Run("Idle", func(t *testing.T) {
		withAgent(t, withIdle(idle), func(t *testing.T, f *fakeAgent) {
			conn, far := f.session()
			if took := lasts(far); took != idle {
				t.Errorf("closed after %s; want %s", took, idle)
			}
			if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Read: %v; want net.ErrClosed", err)
			}
			f.endReported(true, conn, StatusSessionClosed)
		})
	})
	t.Run("BytesEitherWay", func(t *testing.T) {
		withAgent(t, withIdle(idle), func(t *testing.T, f *fakeAgent) {
			conn, far := f.session()
			for range 5 {
				time.Sleep(idle - time.Second)
				io.WriteString(far, "x")
				if _, err := conn.Read(make([]byte, 1)); err != nil {
					t.Fatal(err)
				}
				time.Sleep(idle - time.Second)
				if _, err := io.WriteString(conn, "x"); err != nil {
					t.Fatal(err)
				}
			}
			if took := lasts(far); took != idle {
				t.Errorf("closed %s after the last byte; want %s", took, idle)
			}
		})
	})
	t.Run("LongWrite", func(t *testing.T) {
		withAgent(t, withIdle(idle), func(t *testing.T, f *fakeAgent) {
			conn, far := f.session()
			const size = 10 * memMaxBuffer
			var wrote time.Time
			failed := make(chan error, 1)
			go func() {
				_, err := conn.Write(make([]byte, size))
				wrote = time.Now()
				failed <- err
			}()
			for range 10 {
				time.Sleep(idle - time.Second)
				if _, err := io.ReadFull(far, make([]byte, memMaxBuffer)); err != nil {
					t.Fatal(err)
				}
			}
			if err := <-failed; err != nil {
				t.Errorf("a Write whose peer reads slowly: %v", err)
			}
			lasts(far)
			if took := time.Since(wrote); took != idle {
				t.Errorf("closed %s after the Write; want %s", took, idle)
			}
		})
	})
	t.Run("Never", func(t *testing.T) {
		withAgent(t, withIdle(-1), func(t *testing.T, f *fakeAgent) {
			conn, far := f.session()
			if took := lasts(far); took != 24*time.Hour {
				t.Errorf("closed after %s; want never", took)
			}
			conn.Close()
		})
	})
	t.Run("Accepted", func(t *testing.T) {
		withAgent(t, withIdle(idle), func(t *testing.T, f *fakeAgent) {
			conn, far := f.accepted()
			if took := lasts(far); took != 24*time.Hour {
				t.Errorf("closed after %s; want never: that is up to the end that dialled", took)
			}
			conn.Close()
		})
	})
}
