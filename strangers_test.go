package ssmmp

import (
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// A connection on which nobody says in time who it is ends, at the Manager and
// at an agent; one that did may be silent for as long as it likes.
func TestStrangersEnd(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newMemMesh(t, ManagerConfig{Graphs: []*Graph{nineGraph(t)}}, 1)
		defer s.close()
		synctest.Wait()
		n := s.nodes[0]
		for _, at := range []struct {
			dial Transport
			addr string
		}{{s.managers, s.address}, {n.transport, "localhost:55556"}} {
			conn, err := at.dial.Dial(t.Context(), at.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			wantEndAfter(t, conn, introductionTime)
		}
		time.Sleep(10 * introductionTime)
		for ev := range s.m.Events(t.Context(), 0) {
			if ev.Kind != EventAgentRegistered {
				t.Errorf("the agent that registered lost its connection: %s", ev)
			}
			if ev.Seq == s.m.Snapshot().Seq {
				break
			}
		}
	})
}

func wantEndAfter(t *testing.T, conn net.Conn, d time.Duration) {
	t.Helper()
	began := time.Now()
	if n, err := conn.Read(make([]byte, 1)); err == nil {
		t.Errorf("read %d bytes", n)
	}
	if took := time.Since(began); took != d {
		t.Errorf("ended after %s, want %s", took, d)
	}
}
