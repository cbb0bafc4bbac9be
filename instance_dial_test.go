package ssmmp

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// withAgent runs a test of one instance in virtual time.
func withAgent(t *testing.T, edit func(*JoinConfig), test func(t *testing.T, f *fakeAgent)) {
	t.Helper()
	bubble(t, func(t *testing.T) { test(t, newFakeAgent(t, edit)) })
}

// An instance that was just started may refuse for a while.
func TestDialListensLate(t *testing.T) {
	withAgent(t, nil, func(t *testing.T, f *fakeAgent) {
		done := f.dial(t.Context())
		f.answer(said[*SessionRequest](f), StatusOK, 9, netip.AddrPortFrom(farAddr, 54001))
		time.Sleep(refusedWindow / 2)
		f.silent()
		ln, err := f.far.Listen(t.Context(), "10.0.0.2:54001")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		r := <-done
		if r.err != nil {
			t.Fatal(r.err)
		}
		if ack := said[*SessionAck](f); ack.Status != StatusOK {
			t.Errorf("acknowledged with %s; want 200", ack.Status)
		}
	})
}

// A transport that fails its first dials, to another host than localhost, as
// an operating system does.
type failingDials struct {
	Transport
	err   error
	times int
	until func(context.Context) // waited for before failing, if set
}

func (f *failingDials) Dial(ctx context.Context, addr string) (net.Conn, error) {
	if f.times == 0 || strings.HasPrefix(addr, "localhost:") {
		return f.Transport.Dial(ctx, addr)
	}
	f.times--
	if f.until != nil {
		f.until(ctx)
	}
	return nil, &net.OpError{Op: "dial", Net: "tcp", Err: f.err}
}

// Windows says "refused" with a number of its own.
func TestDialRefusedOnWindows(t *testing.T) {
	withAgent(t, func(cfg *JoinConfig) {
		cfg.Transport = &failingDials{Transport: cfg.Transport, err: os.NewSyscallError("connectex", syscall.Errno(10061)), times: 3}
	}, func(t *testing.T, f *fakeAgent) {
		f.session() // by one request
	})
}

// Each destination that cannot be dialled is acknowledged with 502, and
// another one asked for.
func TestDialUnreachable(t *testing.T) {
	withAgent(t, nil, func(t *testing.T, f *fakeAgent) {
		done := f.dial(t.Context())
		for n := range dialAttempts {
			start := time.Now()
			f.answer(said[*SessionRequest](f), StatusOK, InstanceID(9+n), netip.AddrPortFrom(farAddr, 54001))
			time.Sleep(refusedWindow + time.Second)
			ack := said[*SessionAck](f)
			if ack.Status != StatusUnreachable || ack.SourcePlugPort != 0 {
				t.Errorf("acknowledged with %+v after %s; want 502", ack, time.Since(start))
			}
		}
		r := <-done
		if !errors.Is(r.err, ErrUnavailable) || !errors.Is(r.err, syscall.ECONNREFUSED) {
			t.Errorf("Dial: %v; want ErrUnavailable and the last attempt's reason", r.err)
		}
		f.silent()

		// The second destination is well.
		done = f.dial(t.Context())
		f.answer(said[*SessionRequest](f), StatusOK, 9, netip.MustParseAddrPort("10.0.0.3:54001")) // no such host
		said[*SessionAck](f)
		ln, err := f.far.Listen(t.Context(), "10.0.0.2:54001")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		f.answer(said[*SessionRequest](f), StatusOK, 10, netip.AddrPortFrom(farAddr, 54001))
		if r := <-done; r.err != nil {
			t.Errorf("Dial: %v; want the second destination", r.err)
		}
	})
}

// A caller that gives up, at each point of a session's set-up.
func TestDialGivenUp(t *testing.T) {
	t.Parallel()
	refuses := netip.AddrPortFrom(farAddr, 54001)
	timeout := func(cfg *JoinConfig) { cfg.DialTimeout = refusedWindow / 2 }
	causes := []struct {
		name string
		want error
		// context returns the dial's context and what ends it, or waits for its end.
		context func(t *testing.T) (context.Context, func())
		ack     Status // for a destination that had the time until then
	}{
		{"Canceled", context.Canceled, func(t *testing.T) (context.Context, func()) {
			return context.WithCancel(t.Context())
		}, StatusCanceled},
		{"DeadlineExceeded", context.DeadlineExceeded, func(t *testing.T) (context.Context, func()) {
			ctx, cancel := context.WithTimeout(t.Context(), refusedWindow/2)
			t.Cleanup(cancel)
			return ctx, func() { time.Sleep(refusedWindow / 2) }
		}, StatusUnreachable},
		{"DialTimeout", context.DeadlineExceeded, func(t *testing.T) (context.Context, func()) {
			return t.Context(), func() { time.Sleep(refusedWindow / 2) }
		}, StatusUnreachable},
	}
	for _, tt := range causes {
		t.Run(tt.name+"/BeforeGrant", func(t *testing.T) {
			withAgent(t, timeout, func(t *testing.T, f *fakeAgent) {
				ctx, end := tt.context(t)
				done := f.dial(ctx)
				request := said[*SessionRequest](f)
				end()
				if r := <-done; !errors.Is(r.err, tt.want) {
					t.Errorf("Dial: %v; want %v", r.err, tt.want)
				}
				f.silent()
				f.answer(request, StatusOK, 9, refuses)
				if ack := said[*SessionAck](f); ack.Status != StatusCanceled || ack.MessageID != request.MessageID {
					t.Errorf("a grant that came late was acknowledged with %+v; want 499", ack)
				}
			})
		})
		t.Run(tt.name+"/WhileRefused", func(t *testing.T) {
			withAgent(t, timeout, func(t *testing.T, f *fakeAgent) {
				ctx, end := tt.context(t)
				done := f.dial(ctx)
				f.answer(said[*SessionRequest](f), StatusOK, 9, refuses)
				end()
				if r := <-done; !errors.Is(r.err, tt.want) || errors.Is(r.err, ErrUnavailable) {
					t.Errorf("Dial: %v; want %v, not ErrUnavailable", r.err, tt.want)
				}
				if ack := said[*SessionAck](f); ack.Status != tt.ack {
					t.Errorf("acknowledged with %s; want %s", ack.Status, tt.ack)
				}
				f.silent()
			})
		})
	}
}

// The system's own deadline may strike just before the context's.
func TestDialSystemDeadline(t *testing.T) {
	withAgent(t, func(cfg *JoinConfig) {
		cfg.Transport = &failingDials{Transport: cfg.Transport, err: os.ErrDeadlineExceeded, times: 9, until: func(ctx context.Context) {
			at, _ := ctx.Deadline()
			time.Sleep(time.Until(at) - time.Microsecond)
		}}
	}, func(t *testing.T, f *fakeAgent) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		done := f.dial(ctx)
		f.answer(said[*SessionRequest](f), StatusOK, 9, netip.AddrPortFrom(farAddr, 54001))
		if r := <-done; !errors.Is(r.err, context.DeadlineExceeded) {
			t.Errorf("Dial: %v; want DeadlineExceeded", r.err)
		}
		if ack := said[*SessionAck](f); ack.Status != StatusUnreachable {
			t.Errorf("acknowledged with %s; want 502", ack.Status)
		}
		f.silent()
	})
}

// What a refusal means to the program.
func TestDialRefusals(t *testing.T) {
	t.Parallel()
	tests := []struct {
		status             Status
		want               error
		timeout, temporary bool
	}{
		{StatusForbidden, ErrNoEdge, false, false},
		{StatusNotFound, ErrUnavailable, false, false},
		{StatusGone, ErrRefused, false, false},
		{StatusTooMany, ErrRefused, false, true},
		{StatusFailed, ErrRefused, false, true},
		{StatusUnavailable, ErrUnavailable, false, true},
		{StatusTimeout, ErrStartTimeout, true, true},
		{300, ErrRefused, false, false},
	}
	for _, tt := range tests {
		t.Run(tt.status.String(), func(t *testing.T) {
			withAgent(t, nil, func(t *testing.T, f *fakeAgent) {
				done := f.dial(t.Context())
				f.answer(said[*SessionRequest](f), tt.status, 0, netip.AddrPort{})
				r := <-done
				var status *StatusError
				if !errors.Is(r.err, tt.want) || !errors.As(r.err, &status) || status.Status != tt.status || status.Op != "dial P" {
					t.Errorf("Dial: %v; want %v in a StatusError", r.err, tt.want)
				}
				var n net.Error
				if !errors.As(r.err, &n) || n.Timeout() != tt.timeout || status.Temporary() != tt.temporary {
					t.Errorf("Dial: %v; want a net.Error with Timeout %t, Temporary %t", r.err, tt.timeout, tt.temporary)
				}
				f.silent()
			})
		})
	}
}

func TestDialWithoutAsking(t *testing.T) {
	withAgent(t, nil, func(t *testing.T, f *fakeAgent) {
		if _, err := f.inst.Dial(t.Context(), "P9"); !errors.Is(err, ErrNoEdge) || !strings.Contains(err.Error(), "P9") {
			t.Errorf("Dial over a plug that is none: %v; want ErrNoEdge and its name", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := f.inst.Dial(ctx, "P"); !errors.Is(err, context.Canceled) {
			t.Errorf("Dial with a context that has ended: %v; want Canceled", err)
		}
		f.silent()
		f.inst.Close()
		if _, err := f.inst.Dial(t.Context(), "P"); !errors.Is(err, ErrDraining) {
			t.Errorf("Dial of an instance that left: %v; want ErrDraining", err)
		}
	})
}

// The agent says that the Manager is away, or is away itself.
func TestDialManagerAway(t *testing.T) {
	withAgent(t, nil, func(t *testing.T, f *fakeAgent) {
		done := f.dial(t.Context())
		r := said[*SessionRequest](f)
		f.send(&SessionResponse{Header: Header{MessageID: r.MessageID, SubType: AgentToService, Extensions: []Extension{{extReason, reasonManagerAway}}},
			SourceServiceName: "A", SourceServiceInstanceID: 7, DestServiceName: "B", DestSocketName: "T", Status: StatusUnavailable})
		if r := <-done; !errors.Is(r.err, ErrManagerAway) {
			t.Errorf("Dial: %v; want ErrManagerAway", r.err)
		}

		done = f.dial(t.Context())
		said[*SessionRequest](f)
		start := time.Now()
		f.ln.Close()
		f.conn.Close()
		if r := <-done; !errors.Is(r.err, ErrManagerAway) {
			t.Errorf("Dial that waited while the agent went: %v; want ErrManagerAway", r.err)
		}
		if _, err := f.inst.Dial(t.Context(), "P"); !errors.Is(err, ErrManagerAway) {
			t.Errorf("Dial while the agent is away: %v; want ErrManagerAway", err)
		}
		if waited := time.Since(start); waited != 0 {
			t.Errorf("waited %s; want an answer at once", waited)
		}
	})
}

// Answers that were not asked for, that come again, or for another instance
// change nothing.
func TestDialStrayAnswers(t *testing.T) {
	withAgent(t, nil, func(t *testing.T, f *fakeAgent) {
		done := f.dial(t.Context())
		r := said[*SessionRequest](f)
		stray := *r
		stray.MessageID += 100
		f.answer(&stray, StatusForbidden, 0, netip.AddrPort{})
		f.send(&SessionResponse{Header: Header{MessageID: r.MessageID, SubType: AgentToService},
			SourceServiceName: "A", SourceServiceInstanceID: 8, DestServiceName: "B", DestSocketName: "T", Status: StatusForbidden})
		synctest.Wait()
		select {
		case r := <-done:
			t.Fatalf("Dial ended by another's answer: %v", r.err)
		default:
		}
		ln, err := f.far.Listen(t.Context(), "10.0.0.2:54001")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		f.answer(r, StatusOK, 9, netip.AddrPortFrom(farAddr, 54001))
		f.answer(r, StatusOK, 9, netip.AddrPortFrom(farAddr, 54001))
		if r := <-done; r.err != nil {
			t.Fatal(r.err)
		}
		said[*SessionAck](f)
		f.silent()
	})
}

func TestDialContextPlug(t *testing.T) {
	t.Parallel()
	plugs := []PlugTarget{{"P6", "T", "B"}, {"users", "U", "B"}, {"x", "X", "B"}, {"X", "XX", "B"}}
	for addr, want := range map[string]string{
		"P6:80": "P6", "p6:80": "P6", "P6": "P6", "USERS:443": "users", "x:1": "x", "X:1": "X",
	} {
		t.Run(addr, func(t *testing.T) {
			withAgent(t, func(cfg *JoinConfig) { cfg.Launch.Plugs = plugs }, func(t *testing.T, f *fakeAgent) {
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() {
					_, err := f.inst.DialContext(ctx, "tcp", addr)
					done <- err
				}()
				if m := said[*SessionRequest](f); m.SourcePlugName != want {
					t.Errorf("asked for plug %s; want %s", m.SourcePlugName, want)
				}
				cancel()
				<-done
			})
		})
	}
	t.Run("Ambiguous", func(t *testing.T) {
		withAgent(t, func(cfg *JoinConfig) { cfg.Launch.Plugs = []PlugTarget{{"ab", "T", "B"}, {"AB", "U", "B"}} }, func(t *testing.T, f *fakeAgent) {
			if _, err := f.inst.DialContext(t.Context(), "tcp", "aB:80"); !errors.Is(err, ErrNoEdge) {
				t.Errorf("DialContext: %v; want ErrNoEdge", err)
			}
			f.silent()
		})
	})
}

// The reason outlives the message that it came with, whose buffer is used again
// (and overwritten, under the race detector).
func TestDialReasonIsKept(t *testing.T) {
	withAgent(t, nil, func(t *testing.T, f *fakeAgent) {
		done := f.dial(t.Context())
		r := said[*SessionRequest](f)
		f.send(&SessionResponse{Header: Header{MessageID: r.MessageID, SubType: AgentToService, Extensions: []Extension{{extReason, "every node is full"}}},
			SourceServiceName: "A", SourceServiceInstanceID: 7, DestServiceName: "B", DestSocketName: "T", Status: StatusUnavailable})
		synctest.Wait()
		f.send(&InstanceHealthRequest{Header: Header{MessageID: 50, SubType: AgentToServiceInstance, Extensions: []Extension{{"x_fill", strings.Repeat("x", 1000)}}},
			ServiceInstanceID: 7, ServiceInstanceNetworkAddress: nodeAddr})
		said[*InstanceHealthResponse](f)
		res := <-done
		var status *StatusError
		if !errors.As(res.err, &status) || status.Reason != "every node is full" || !strings.HasSuffix(res.err.Error(), ": every node is full") {
			t.Errorf("Dial: %v; want the reason", res.err)
		}
	})
}
