package ssmmp

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
)

// An instance that reports faster than the Manager reads is made to wait: its
// agent's connection to the Manager, which all others need, does not end, and
// nothing is lost.
func TestAgentFloodWaits(t *testing.T) {
	bubble(t, func(t *testing.T) {
		network := NewMemNetwork()
		host := func(addr string) *MemHost {
			h, err := network.Host(addr)
			if err != nil {
				t.Fatal(err)
			}
			return h
		}
		ln, err := host("10.0.0.100").Listen(t.Context(), "10.0.0.100:55555")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		launched := make(chan Launch, 1)
		node := host("10.0.0.1")
		a, err := NewAgent(AgentConfig{Manager: "10.0.0.100:55555", Address: node.Addr(), Transport: node, Repository: []RepositoryEntry{
			{Service: "A", ReadyWhenStarted: true, Launcher: FuncLauncher(func(ctx context.Context, l Launch) error {
				launched <- l
				<-ctx.Done()
				return nil
			})}}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- a.Run(ctx) }()

		conn, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		manager := NewDecoder(conn)
		if _, err := manager.Decode(); err != nil {
			t.Fatal(err)
		}
		write := func(conn net.Conn, m Message) {
			line, err := AppendMessage(nil, m)
			if err == nil {
				_, err = conn.Write(line)
			}
			if err != nil {
				t.Error(err)
			}
		}
		write(conn, &InitiationResponse{Header: Header{MessageID: ownIDs + 1}, Status: StatusOK})
		write(conn, &ExecutionRequest{Header: Header{MessageID: 1}, AgentNetworkAddress: node.Addr(), ServiceName: "A", ServiceInstanceID: 7})
		l := <-launched
		inst, err := node.Dial(t.Context(), l.Agent)
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			inst.Close()
			conn.Close()
			stop()
			if err := <-done; err != nil {
				t.Error(err)
			}
			synctest.Wait()
		}()
		const reports = 10_000 // about 4 MB, where the queue holds 1 MiB
		go func() {
			m := &SourceSessionCloseInfo{Header: Header{SubType: SourceServiceToAgent, Extensions: []Extension{{extSecret, l.Secret}}},
				SourceServiceName: "A", SourceServiceInstanceID: 7, SourceServiceInstanceNetworkAddress: node.Addr(), SourcePlugName: "P", SourcePlugPort: 1,
				DestServiceName: "B", DestServiceInstanceID: 8, DestServiceInstanceNetworkAddress: netip.MustParseAddr("10.0.0.2"), DestSocketName: "S",
				DestSocketPort: 54000, DestSocketNewPort: 54000, Status: StatusSessionClosed}
			for id := int64(1); id <= reports && !t.Failed(); id++ {
				m.MessageID = id
				write(inst, m)
			}
		}()
		time.Sleep(writeTimeout / 2) // the Manager does something else
		for next := int64(1); next <= reports; {
			m, err := manager.Decode()
			if err != nil {
				t.Fatalf("after report %d: %v", next-1, err)
			}
			if r, ok := m.(*SourceSessionCloseInfo); ok {
				if r.MessageID != next {
					t.Fatalf("report %d came in the place of %d", r.MessageID, next)
				}
				next++
			}
		}
	})
}

// What a Manager cannot send is logged: to an agent that does not read, and, so
// many times, what cannot be encoded. It does not count as dropped: that is what
// others sent.
func TestManagerLogsUnsent(t *testing.T) {
	for name, store := range map[string]Store{"no store": nil, "store": new(MemStore)} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				var log bytes.Buffer
				s := newMemMesh(t, ManagerConfig{Graphs: []*Graph{nineGraph(t)}, Store: store, Logger: hclog.New(&hclog.LoggerOptions{Output: &log})}, 0)
				defer s.close()
				want := func(n int, why string) {
					t.Helper()
					synctest.Wait() // and so nobody logs
					got := 0
					for line := range strings.Lines(log.String()) {
						if strings.Contains(line, "message not sent: to=10.0.0.100:") && strings.Contains(line, why) {
							got++
						}
					}
					if got != n {
						t.Errorf("logged %d times, want %d times %q:\n%s", got, n, why, log.String())
					}
				}
				conn, err := s.managers.Dial(t.Context(), s.address)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				ask := registerLine(1, netip.MustParseAddr("10.0.0.1"), "A, B, C", "") + "\n"
				io.WriteString(conn, ask)
				synctest.Wait()

				s.m.mu.Lock()
				queued := flushList{log: s.m.log}
				for range 3 * badLinesLogged {
					o := ManagerOutput{Kind: ManagerOutputSend, Conn: s.m.lastConn, Msg: &InitiationResponse{Header: Header{MessageID: 1, Extensions: []Extension{{"x_note", "two\nlines"}}}, Status: StatusOK}}
					if store == nil {
						s.m.perform(&o, &queued)
					} else {
						s.m.decide(nil, []ManagerOutput{o}, &queued)
					}
				}
				s.m.mu.Unlock()
				queued.flush()
				want(badLinesLogged, "x_note")

				s.m.mu.Lock()
				s.m.links[s.m.lastConn].unsent = 0
				s.m.mu.Unlock()
				// Each gets an answer; nobody reads them.
				for range 4 * maxQueue / len(ask) {
					if _, err := io.WriteString(conn, ask); err != nil {
						break
					}
				}
				want(1, errQueueFull.Error())
				if n := s.m.Dropped(); n != 0 {
					t.Errorf("%d dropped, and all that was sent was taken", n)
				}
			})
		})
	}
}
