package ssmmp

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A fakeAgent is the agent of one instance, played by a test in virtual time:
// what the instance says is kept until the test takes it.
type fakeAgent struct {
	t    *testing.T
	node *MemHost
	far  *MemHost // another node, with the other ends of sessions
	ln   net.Listener
	conn net.Conn // the instance's newest connection
	inst *Instance

	mu   sync.Mutex
	said []Message
}

var (
	nodeAddr = netip.MustParseAddr("10.0.0.1")
	farAddr  = netip.MustParseAddr("10.0.0.2")
)

// newFakeAgent has instance 7 of service A join, with socket S at port 54000
// and plug P to socket T of service B.
func newFakeAgent(t *testing.T, edit func(*JoinConfig)) *fakeAgent {
	t.Helper()
	network := NewMemNetwork()
	f := &fakeAgent{t: t}
	var err error
	if f.node, err = network.Host(nodeAddr.String()); err != nil {
		t.Fatal(err)
	}
	if f.far, err = network.Host(farAddr.String()); err != nil {
		t.Fatal(err)
	}
	f.listen()
	cfg := JoinConfig{Transport: f.node, Launch: Launch{
		Service: "A", ID: 7, Address: nodeAddr, Agent: "localhost:55556", Secret: "s",
		Sockets: []SocketPort{{"S", 54000}}, Plugs: []PlugTarget{{"P", "T", "B"}},
	}}
	if edit != nil {
		edit(&cfg)
	}
	if f.inst, err = JoinWith(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.inst.Close(); f.ln.Close() })
	f.accept()
	return f
}

func (f *fakeAgent) listen() {
	f.t.Helper()
	var err error
	if f.ln, err = f.node.Listen(context.Background(), "localhost:55556"); err != nil {
		f.t.Fatal(err)
	}
}

// accept takes the instance's next connection, which begins with hello.
func (f *fakeAgent) accept() {
	f.t.Helper()
	var err error
	if f.conn, err = f.ln.Accept(); err != nil {
		f.t.Fatal(err)
	}
	go func(d *Decoder) {
		for {
			m, err := d.Decode()
			if err != nil {
				return
			}
			f.mu.Lock()
			f.said = append(f.said, Clone(m))
			f.mu.Unlock()
		}
	}(NewDecoder(f.conn))
	hello := said[*InstanceHealthResponse](f)
	if hello.ServiceInstanceID != 7 || hello.Status != StatusOK || hello.Extension(extSecret) != "s" {
		f.t.Fatalf("hello %+v; want instance 7, 200 and its secret", hello)
	}
}

// said returns the instance's next message, once nothing more happens.
func said[M Message](f *fakeAgent) M {
	f.t.Helper()
	synctest.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.said) == 0 {
		f.t.Fatalf("the instance said nothing; want %T", *new(M))
	}
	m, ok := f.said[0].(M)
	if !ok {
		f.t.Fatalf("the instance said %T %+v; want %T", f.said[0], f.said[0], *new(M))
	}
	f.said = f.said[1:]
	return m
}

// silent fails the test if the instance said anything more.
func (f *fakeAgent) silent() {
	f.t.Helper()
	synctest.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range f.said {
		f.t.Errorf("the instance said %s %+v; want nothing more", m.Type(), m)
	}
	f.said = nil
}

func (f *fakeAgent) send(m Message) {
	f.t.Helper()
	b, err := AppendMessage(nil, m)
	if err != nil {
		f.t.Fatal(err)
	}
	if _, err := f.conn.Write(b); err != nil {
		f.t.Fatal(err)
	}
}

// answer answers a session_request with an instance of B, or with a failure.
func (f *fakeAgent) answer(r *SessionRequest, status Status, id InstanceID, at netip.AddrPort) {
	f.t.Helper()
	m := &SessionResponse{Header: Header{MessageID: r.MessageID, SubType: AgentToService},
		SourceServiceName: "A", SourceServiceInstanceID: 7, DestServiceName: "B", DestSocketName: "T", Status: status}
	if status.Success() {
		m.DestServiceInstanceID, m.DestServiceInstanceNetworkAddress, m.DestSocketPort = id, at.Addr(), at.Port()
	}
	f.send(m)
}

type dialResult struct {
	conn net.Conn
	err  error
}

// dial dials plug P in the background.
func (f *fakeAgent) dial(ctx context.Context) <-chan dialResult {
	done := make(chan dialResult, 1)
	go func() {
		conn, err := f.inst.Dial(ctx, "P")
		done <- dialResult{conn, err}
	}()
	return done
}

// session opens a session to the far node: conn is the instance's end.
func (f *fakeAgent) session() (conn, far net.Conn) {
	f.t.Helper()
	ln, err := f.far.Listen(f.t.Context(), "10.0.0.2:54001")
	if err != nil {
		f.t.Fatal(err)
	}
	defer ln.Close()
	done := f.dial(f.t.Context())
	f.answer(said[*SessionRequest](f), StatusOK, 9, netip.AddrPortFrom(farAddr, 54001))
	if far, err = ln.Accept(); err != nil {
		f.t.Fatal(err)
	}
	r := <-done
	if r.err != nil {
		f.t.Fatal(r.err)
	}
	if ack := said[*SessionAck](f); ack.Status != StatusOK || ack.DestSocketNewPort != 54001 || ack.SourcePlugPort != addrPort(r.conn.LocalAddr()).Port() {
		f.t.Fatalf("acknowledged with %+v", ack)
	}
	return r.conn, far
}

// accepted opens a session from the far node: conn is the instance's end.
func (f *fakeAgent) accepted() (conn, far net.Conn) {
	f.t.Helper()
	ln, err := f.inst.Listen("S")
	if err != nil {
		f.t.Fatal(err)
	}
	defer ln.Close()
	if far, err = f.far.Dial(f.t.Context(), "10.0.0.1:54000"); err != nil {
		f.t.Fatal(err)
	}
	if conn, err = ln.Accept(); err != nil {
		f.t.Fatal(err)
	}
	return conn, far
}

// endReported takes the report of the session's end, whichever end conn is,
// and checks that it names conn.
func (f *fakeAgent) endReported(source bool, conn net.Conn, want Status) {
	f.t.Helper()
	local, remote := addrPort(conn.LocalAddr()), addrPort(conn.RemoteAddr())
	if source {
		m := said[*SourceSessionCloseInfo](f)
		if m.Status != want || m.SourcePlugPort != local.Port() || m.SourcePlugName != "P" || m.DestServiceInstanceID != 9 ||
			m.DestServiceInstanceNetworkAddress != remote.Addr() || m.DestSocketNewPort != remote.Port() {
			f.t.Errorf("reported %+v; want %s of %s to %s", m, want, local, remote)
		}
	} else {
		m := said[*DestSessionCloseInfo](f)
		if m.Status != want || m.DestSocketName != "S" || m.DestSocketNewPort != local.Port() ||
			m.SourceServiceInstanceNetworkAddress != remote.Addr() || m.SourcePlugPort != remote.Port() {
			f.t.Errorf("reported %+v; want %s of %s from %s", m, want, local, remote)
		}
	}
}

// What each end reports of a session's end (PROTOCOL section 3): 111 when it
// is closed, 122 when it broke, each once.
func TestSessionEndReported(t *testing.T) {
	t.Parallel()
	read := func(c net.Conn) error { _, err := c.Read(make([]byte, 1)); return err }
	tests := []struct {
		name string
		want Status
		end  func(t *testing.T, f *fakeAgent, conn, far net.Conn)
		open bool // what end does is reported before conn is closed
	}{
		{"Close", StatusSessionClosed, func(t *testing.T, f *fakeAgent, conn, far net.Conn) {
			conn.Close()
		}, true},
		{"CloseFromMany", StatusSessionClosed, func(t *testing.T, f *fakeAgent, conn, far net.Conn) {
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() { conn.Close() })
			}
			wg.Wait()
		}, true},
		{"EOFThenClose", StatusSessionClosed, func(t *testing.T, f *fakeAgent, conn, far net.Conn) {
			far.Close()
			if err := read(conn); err != io.EOF {
				t.Errorf("Read: %v; want EOF", err)
			}
			f.silent() // the program may still have to send
		}, false},
		{"DeadlineThenClose", StatusSessionClosed, func(t *testing.T, f *fakeAgent, conn, far net.Conn) {
			conn.SetReadDeadline(time.Now().Add(time.Second))
			if err, ok := read(conn).(net.Error); !ok || !err.Timeout() {
				t.Errorf("Read: %v; want a timeout", err)
			}
			f.silent()
		}, false},
		{"ResetWhileReading", StatusSessionBroken, func(t *testing.T, f *fakeAgent, conn, far net.Conn) {
			failed := make(chan error, 1)
			go func() { failed <- read(conn) }()
			synctest.Wait()
			f.far.Crash()
			if err := <-failed; err == nil || err == io.EOF {
				t.Errorf("Read: %v; want the reset", err)
			}
		}, true},
		{"ResetBeforeWriting", StatusSessionBroken, func(t *testing.T, f *fakeAgent, conn, far net.Conn) {
			f.far.Crash()
			if _, err := conn.Write([]byte("x")); err == nil {
				t.Error("Write succeeded on a broken connection")
			}
		}, true},
	}
	for _, tt := range tests {
		for _, source := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/source=%t", tt.name, source), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					f := newFakeAgent(t, nil)
					open := f.accepted
					if source {
						open = f.session
					}
					conn, far := open()
					tt.end(t, f, conn, far)
					if !tt.open {
						conn.Close()
					}
					f.endReported(source, conn, tt.want)
					f.silent()
					conn.Close()
					read(conn)
					f.silent()
				})
			})
		}
	}
}
