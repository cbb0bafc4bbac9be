package ssmmp

import (
	"errors"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// A connection to the Manager on which nobody registers in time ends; an agent
// that did may be silent for as long as it likes. To an agent it may be silent,
// since an instance that has sockets only has nothing to say, but only so many
// may, and where there are many the newest have to say something soon.
func TestStrangersEnd(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newMemMesh(t, ManagerConfig{Graphs: []*Graph{nineGraph(t)}}, 1)
		defer s.close()
		synctest.Wait()
		dial := func(from Transport, addr string) net.Conn {
			t.Helper()
			conn, err := from.Dial(t.Context(), addr)
			if err != nil {
				t.Fatal(err)
			}
			return conn
		}
		conn := dial(s.managers, s.address)
		defer conn.Close()
		wantEndAfter(t, conn, introductionTime)

		var silent []net.Conn
		for range maxStrangers {
			silent = append(silent, dial(s.nodes[0].transport, "localhost:55556"))
			synctest.Wait()
		}
		wantEndAfter(t, dial(s.nodes[0].transport, "localhost:55556"), 0)
		time.Sleep(10 * introductionTime)
		for i, conn := range silent {
			conn.SetReadDeadline(time.Now().Add(time.Second))
			_, err := conn.Read(make([]byte, 1))
			if stays := errors.Is(err, os.ErrDeadlineExceeded); stays != (i < maxStrangers/2) {
				t.Fatalf("silent connection %d: %v", i, err)
			}
			conn.Close()
		}
		synctest.Wait()
		if n := s.nodes[0].agent.stranger(0); n != 0 {
			t.Errorf("%d strangers are counted, and none is there", n)
		}
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
