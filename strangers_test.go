package ssmmp

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
)

// A connection to the Manager on which nobody registers in time ends, and where
// there are too many some of them end at once; an agent that did register may be
// silent for as long as it likes. To an agent it may be silent, since an instance
// that has sockets only has nothing to say, but only so many may, and where there
// are many the others have to say something soon.
func TestStrangersEnd(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var log bytes.Buffer
		s := newMemMesh(t, ManagerConfig{Graphs: []*Graph{nineGraph(t)}, Logger: hclog.New(&hclog.LoggerOptions{Output: &log})}, 1)
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
		var silent []net.Conn
		began := time.Now()
		for range maxStrangers {
			silent = append(silent, dial(s.managers, s.address))
			synctest.Wait()
		}
		for range 3 {
			silent = append(silent, dial(s.managers, s.address))
			synctest.Wait()
		}
		silent = wantEnded(t, silent, 3)
		if n := strings.Count(log.String(), "too many connections"); n != 1 {
			t.Errorf("logged %d times that there are too many, want once", n)
		}
		wantEndAfter(t, silent[0], introductionTime-time.Since(began))
		for _, conn := range silent {
			wantEndAfter(t, conn, 0)
		}
		synctest.Wait()
		if n := s.m.strangers.silent + len(s.m.strangers.hurried); n != 0 {
			t.Errorf("the Manager counts %d strangers, and none is there", n)
		}
		wantEndAfter(t, dial(s.managers, s.address), introductionTime)

		silent = nil
		for range maxStrangers {
			silent = append(silent, dial(s.nodes[0].transport, "localhost:55556"))
			synctest.Wait()
		}
		silent = append(silent, dial(s.nodes[0].transport, "localhost:55556"))
		synctest.Wait()
		if left := wantEnded(t, silent[maxStrangers/2:], 1); len(left) != maxStrangers/2 {
			t.Errorf("%d of those are left that have to say something, want %d", len(left), maxStrangers/2)
		}
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
		if among := &s.nodes[0].agent.strangers; among.silent+len(among.hurried) != 0 {
			n := among.silent + len(among.hurried)
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

// A peer that does little but break the protocol loses its connection, at the
// Manager and at an agent: by lines that are no messages, or by messages that
// it may not send.
func TestViolatorsEnd(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newMemMesh(t, ManagerConfig{Graphs: []*Graph{nineGraph(t)}}, 1)
		defer s.close()
		synctest.Wait()
		for name, line := range map[string]string{
			"no message":  "type: nonsense ~ message_id: 1\n",
			"not its own": "type: service_instance_health_response ~ message_id: 1 ~ sub_type: service_instance_to_agent ~ service_instance_id: 7 ~ status: 200\n",
		} {
			for where, to := range map[string]struct {
				from Transport
				addr string
			}{"Manager": {s.managers, s.address}, "agent": {s.nodes[0].transport, "localhost:55556"}} {
				conn, err := to.from.Dial(t.Context(), to.addr)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				if _, err := io.WriteString(conn, strings.Repeat(line, maxViolations-1)); err != nil {
					t.Errorf("%s, %s: ended before violation %d: %v", where, name, maxViolations, err)
				}
				synctest.Wait()
				if _, err := io.WriteString(conn, line); err != nil {
					t.Errorf("%s, %s: ended before violation %d: %v", where, name, maxViolations, err)
				}
				conn.SetReadDeadline(time.Now().Add(time.Second))
				if n, err := conn.Read(make([]byte, 1)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("%s, %s: goes on after %d violations", where, name, maxViolations)
				}
			}
		}
	})
}

// wantEnded returns the connections that go on, of some of which so many have
// ended. The last of them has not.
func wantEnded(t *testing.T, conns []net.Conn, want int) (left []net.Conn) {
	t.Helper()
	for _, conn := range conns {
		conn.SetReadDeadline(time.Now().Add(time.Millisecond))
		if _, err := conn.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
			left = append(left, conn)
		}
		conn.SetReadDeadline(time.Time{})
	}
	if ended := len(conns) - len(left); ended != want || left[len(left)-1] != conns[len(conns)-1] {
		t.Fatalf("%d of %d connections have ended, want %d, and not the last", ended, len(conns), want)
	}
	return left
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
