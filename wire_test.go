package ssmmp

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A wireHop is one of the hops of the catalogue.
type wireHop struct{ typ, sub, from, to string }

// A recorder keeps the first physical line of each hop.
type recorder struct {
	mu   sync.Mutex
	seen map[wireHop]string
	more chan struct{} // closed at the next new hop
}

func newRecorder() *recorder {
	return &recorder{seen: map[wireHop]string{}, more: make(chan struct{})}
}

func (r *recorder) note(from, to, line string) {
	m := parseRaw(line)
	hop := wireHop{m["type"], m["sub_type"], from, to}
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.seen[hop]; !ok {
		r.seen[hop] = strings.TrimSuffix(line, "\n")
		close(r.more)
		r.more = make(chan struct{})
	}
}

// await waits until a hop was seen.
func (r *recorder) await(t testing.TB, hop wireHop) {
	t.Helper()
	for late := time.After(patience); ; {
		r.mu.Lock()
		_, ok := r.seen[hop]
		more := r.more
		r.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-more:
		case <-late:
			t.Fatalf("not seen: %+v", hop)
		}
	}
}

// proxy passes connections on to target, line by line, and records them.
func (r *recorder) proxy(t testing.TB, target, from, to string) string {
	t.Helper()
	ln, err := net.Listen("tcp", loopback)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	copyLines := func(dst, src net.Conn, from, to string) {
		defer dst.Close()
		defer src.Close()
		for in := bufio.NewReader(src); ; {
			line, err := in.ReadString('\n')
			if err != nil {
				return
			}
			r.note(from, to, line)
			if _, err := io.WriteString(dst, line); err != nil {
				return
			}
		}
	}
	wg.Go(func() {
		for {
			near, err := ln.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", target)
			if err != nil {
				near.Close()
				continue
			}
			wg.Go(func() { copyLines(far, near, from, to) })
			wg.Go(func() { copyLines(near, far, to, from) })
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	return ln.Addr().String()
}

// A rawMessage is a message as the names and contents of its lines.
type rawMessage map[string]string

func parseRaw(line string) rawMessage {
	m := rawMessage{}
	for _, l := range strings.Split(strings.TrimRight(line, "\r\n"), " ~ ") {
		if name, value, ok := strings.Cut(strings.TrimLeft(l, " "), ": "); ok {
			m[name] = value
		}
	}
	return m
}

// A rawPeer speaks SSMMP with nothing but a connection and lines.
type rawPeer struct {
	t       testing.TB
	conn    net.Conn
	in      *bufio.Reader
	rec     *recorder // may be nil
	me, far string
	liberal bool // it takes every liberty that a receiver must bear
}

func dialRaw(t testing.TB, addr string) *rawPeer {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return newRaw(t, conn)
}

func newRaw(t testing.TB, conn net.Conn) *rawPeer {
	t.Cleanup(func() { conn.Close() })
	return &rawPeer{t: t, conn: conn, in: bufio.NewReader(conn)}
}

// liberties are other names for lines, seen in the published code.
var liberties = map[string]*strings.Replacer{
	"session_ack":                       strings.NewReplacer("source_service_name", "service_name", "source_service_instance_id", "service_instance_id"),
	"service_instance_termination_info": strings.NewReplacer("service_instance_network_address", "source_service_instance_network_address"),
	"hard_shutdown_response":            strings.NewReplacer("service_instance_id", "source_service_instance_id"),
	"service_instance_health_response":  strings.NewReplacer("service_instance_health_response", "health_control_response"),
	"agent_health_control_response":     strings.NewReplacer("agent_health_control_response", "health_control_response"),
	"initiation_request":                strings.NewReplacer("(", "", ", ", "; ", ")", ""),
}

// say sends a message: its type, its id and its other lines.
func (p *rawPeer) say(typ, id string, lines ...string) {
	p.t.Helper()
	all := append([]string{"type: " + typ, "message_id: " + id}, lines...)
	line := strings.Join(all, " ~ ")
	if p.rec != nil {
		p.rec.note(p.me, p.far, line)
	}
	end := "\n"
	if p.liberal {
		slices.Reverse(all[2:])
		line, end = " "+strings.Join(all, " ~ "), " ~ \r\n"
		if r := liberties[typ]; r != nil {
			line = r.Replace(line)
		}
	}
	p.write(line + end)
}

func (p *rawPeer) write(s string) {
	p.t.Helper()
	p.conn.SetWriteDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(p.conn, s); err != nil {
		p.t.Fatal(err)
	}
}

// hear returns the next message of a type. Health requests, which come any
// time, pass by; anything else should not be there.
func (p *rawPeer) hear(typ string) rawMessage {
	p.t.Helper()
	p.conn.SetReadDeadline(time.Now().Add(patience))
	for {
		line, err := p.in.ReadString('\n')
		if err != nil {
			p.t.Fatalf("waiting for %s: %v", typ, err)
		}
		if p.rec != nil {
			p.rec.note(p.far, p.me, line)
		}
		m := parseRaw(line)
		switch m["type"] {
		case typ:
			return m
		case "service_instance_health_request", "agent_health_control_request":
		default:
			p.t.Fatalf("waiting for %s: %s", typ, line)
		}
	}
}

// closed waits until the other end closed the connection.
func (p *rawPeer) closed() {
	p.t.Helper()
	p.conn.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.Copy(io.Discard, p.in); err != nil {
		if e, ok := err.(net.Error); ok && e.Timeout() {
			p.t.Fatal("the connection is still open")
		}
	}
}

// A stubProcess is an instance whose program is the test.
type stubProcess struct {
	Launch
	foreign atomic.Bool // whoever connects is another process
	once    sync.Once
	done    chan struct{}
	code    Exit
}

func (p *stubProcess) PID() int                         { return 0 }
func (p *stubProcess) Wait() Exit                       { <-p.done; return p.code }
func (p *stubProcess) Kill() error                      { p.exit(Exit{Code: -1, Signal: "SIGKILL"}); return nil }
func (p *stubProcess) Owns(net.Conn) (owns, known bool) { return false, p.foreign.Load() }
func (p *stubProcess) exit(e Exit)                      { p.once.Do(func() { p.code = e; close(p.done) }) }
func (s stubs) Launch(_ context.Context, l Launch) (Process, error) {
	p := &stubProcess{Launch: l, done: make(chan struct{})}
	s <- p
	return p, nil
}

// stubs is a Launcher that hands what it launches to the test.
type stubs chan *stubProcess

// A wire is a Manager, and an agent if the test wants one, on loopback TCP.
type wire struct {
	t       testing.TB
	m       *Manager
	a       *Agent
	address string // of the Manager
	starts  stubs
	rec     *recorder
	seq     uint64 // of the last event awaited
}

var wireNode = netip.MustParseAddr("127.0.0.1")

// wireGraph has one edge; nothing listens on its ports.
func wireGraph(t testing.TB) *Graph {
	t.Helper()
	g, err := NewGraph("wire").Gateway("A", FixedPorts{"S0": 8080}, Out{"P1"}).Storage("B", In{"S1"}).Edge("A", "P1", "S1", "B").Build()
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func newWire(t testing.TB, cfg ManagerConfig) *wire {
	t.Helper()
	cfg.Graphs, cfg.FirstInstance = []*Graph{wireGraph(t)}, 1
	m, err := NewManager(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", loopback)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- m.Serve(context.Background(), ln) }()
	t.Cleanup(func() { m.Close(); <-served })
	return &wire{t: t, m: m, address: ln.Addr().String(), starts: make(stubs, 16), rec: newRecorder()}
}

// runAgent starts a real agent whose Manager is at an address.
func (w *wire) runAgent(manager string) {
	w.t.Helper()
	a, err := NewAgent(AgentConfig{Manager: manager, Address: wireNode, Listen: loopback, DrainTimeout: 20 * time.Millisecond,
		Repository: []RepositoryEntry{{Service: "A", Launcher: w.starts}, {Service: "B", Launcher: w.starts}}})
	if err != nil {
		w.t.Fatal(err)
	}
	w.a = a
	ctx, stop := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- a.Run(ctx) }()
	w.t.Cleanup(func() {
		stop()
		if err := <-ran; err != nil {
			w.t.Error(err)
		}
	})
}

// call calls a method of the Manager; the function that it returns waits for
// its success.
func (w *wire) call(f func(ctx context.Context) error) func() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	return func() {
		w.t.Helper()
		defer cancel()
		if err := <-done; err != nil {
			w.t.Fatal(err)
		}
	}
}

// await waits for the next event of a kind.
func (w *wire) await(kind EventKind) Event {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for ev := range w.m.Events(ctx, w.seq) {
		w.seq = ev.Seq
		if ev.Kind == kind {
			return ev
		}
	}
	w.t.Fatalf("no event %s", kind)
	return Event{}
}

// started waits for the next instance that the agent executes.
func (w *wire) started(service string) *stubProcess {
	w.t.Helper()
	select {
	case p := <-w.starts:
		if p.Service != service {
			w.t.Fatalf("%s is started, want %s", p.Service, service)
		}
		return p
	case <-time.After(patience):
		w.t.Fatalf("%s is not started", service)
	}
	return nil
}

// join connects a raw instance to its agent and says hello.
func (w *wire) join(p *stubProcess, liberal bool) *rawPeer {
	w.t.Helper()
	raw := dialRaw(w.t, p.Agent)
	raw.rec, raw.me, raw.far, raw.liberal = w.rec, "instance", "agent", liberal
	raw.say("service_instance_health_response", "1", "sub_type: service_instance_to_agent", fmt.Sprint("service_instance_id: ", p.ID), "status: 200")
	return raw
}

// sessionLines are the lines of a request along the edge of wireGraph.
func sessionLines(source InstanceID) []string {
	return []string{"sub_type: service_to_agent", "source_service_name: A", fmt.Sprint("source_service_instance_id: ", source),
		"source_service_instance_network_address: 127.0.0.1", "source_plug_name: P1", "dest_service_name: B", "dest_socket_name: S1"}
}

func ackLines(source InstanceID, plugPort int, port string) []string {
	return []string{"sub_type: service_to_agent", "source_service_name: A", fmt.Sprint("source_service_instance_id: ", source),
		fmt.Sprint("source_plug_port: ", plugPort), "dest_socket_new_port: " + port, "status: 200"}
}

func relabel(lines []string, sub string) []string {
	lines = slices.Clone(lines)
	lines[0] = "sub_type: " + sub
	return lines
}

// Every message crosses a real connection on each of its hops, between real
// actors and instances that know lines only; and so it does when these take
// every liberty (PROTOCOL section 2).
func TestWireHops(t *testing.T) {
	t.Parallel()
	for _, liberal := range []bool{false, true} {
		t.Run(fmt.Sprint("liberal ", liberal), func(t *testing.T) {
			t.Parallel()
			w := newWire(t, ManagerConfig{HealthPeriod: 20 * time.Millisecond, HealthMisses: 1 << 30})
			w.runAgent(w.rec.proxy(t, w.address, "agent", "manager"))
			w.allHops(liberal)
			w.checkHops()
		})
	}
}

func (w *wire) allHops(liberal bool) {
	t := w.t
	deployed := w.call(func(ctx context.Context) error { return w.m.Deploy(ctx, "wire") })
	pa := w.started("A")
	a := w.join(pa, liberal)
	deployed()

	// Sessions, closed from either end, and by the Manager.
	var pb *stubProcess
	var b *rawPeer
	message := 1000
	port, plugPort := "", 40111 // each session has its own: a destination tells them apart by nothing else
	session := func() Event {
		t.Helper()
		message++
		plugPort++
		a.say("session_request", strconv.Itoa(message), sessionLines(pa.ID)...)
		if pb == nil {
			pb = w.started("B")
			b = w.join(pb, liberal)
		}
		r := a.hear("session_response")
		port = strconv.Itoa(int(pb.Sockets[0].Port))
		if r["status"] != "200" || r["message_id"] != strconv.Itoa(message) || r["dest_service_instance_id"] != fmt.Sprint(pb.ID) ||
			r["dest_service_instance_network_address"] != "127.0.0.1" || r["dest_socket_port"] != port {
			t.Fatalf("session_response %v, want instance %d at port %s", r, pb.ID, port)
		}
		a.say("session_ack", r["message_id"], ackLines(pa.ID, plugPort, port)...)
		ev := w.await(EventSessionOpened)
		if ev.Source != pa.ID || ev.Destination != pb.ID || int(ev.PlugPort) != plugPort || fmt.Sprint(ev.NewPort) != port {
			t.Fatalf("opened: %+v", ev)
		}
		return ev
	}
	closed := func(status Status) {
		t.Helper()
		if ev := w.await(EventSessionClosed); ev.Status != status {
			t.Fatalf("closed: %+v, want status %s", ev, status)
		}
	}
	session()
	a.say("source_service_session_close_info", "7", "sub_type: source_service_to_agent", "source_service_name: A", fmt.Sprint("source_service_instance_id: ", pa.ID),
		"source_service_instance_network_address: 127.0.0.1", "source_plug_name: P1", fmt.Sprint("source_plug_port: ", plugPort), "dest_service_name: B",
		fmt.Sprint("dest_service_instance_id: ", pb.ID), "dest_service_instance_network_address: 127.0.0.1", "dest_socket_name: S1",
		"dest_socket_port: "+port, "dest_socket_new_port: "+port, "status: 111")
	closed(StatusSessionClosed)
	session()
	b.say("dest_service_session_close_info", "7", "sub_type: dest_service_to_agent", "source_service_instance_network_address: 127.0.0.1",
		"source_plug_name: ", fmt.Sprint("source_plug_port: ", plugPort), "dest_service_name: B", "dest_service_instance_network_address: 127.0.0.1",
		fmt.Sprint("dest_service_instance_id: ", pb.ID), "dest_socket_name: S1", "dest_socket_port: "+port, "dest_socket_new_port: "+port, "status: 122")
	closed(StatusSessionBroken)
	id := session().Session
	closing := w.call(func(ctx context.Context) error { return w.m.CloseSession(ctx, id) })
	r := a.hear("source_service_session_close_request")
	if r["source_plug_port"] != strconv.Itoa(plugPort) || r["sub_type"] != "agent_to_source_service" {
		t.Fatalf("%v", r)
	}
	a.say("source_service_session_close_response", r["message_id"], "sub_type: source_service_to_agent", "status: 200")
	closing()

	// The source dies: its far end has to close, and the gateway starts again.
	session()
	pa.exit(Exit{Code: 3})
	a.closed()
	r = b.hear("dest_service_session_close_request")
	if r["source_plug_port"] != strconv.Itoa(plugPort) || r["sub_type"] != "agent_to_dest_service" || r["dest_socket_new_port"] != port {
		t.Fatalf("%v", r)
	}
	b.say("dest_service_session_close_response", r["message_id"], "sub_type: dest_service_to_agent", "status: 200")
	if ev := w.await(EventInstanceEnded); ev.Instance != pa.ID || ev.Cause != "exit 3" {
		t.Fatalf("%+v", ev)
	}
	pa = w.started("A")
	a = w.join(pa, liberal)

	// Health of both.
	r = a.hear("service_instance_health_request")
	a.say("service_instance_health_response", r["message_id"], "sub_type: service_instance_to_agent", fmt.Sprint("service_instance_id: ", pa.ID), "status: 200")
	w.rec.await(t, wireHop{"service_instance_health_response", "agent_to_Manager", "agent", "manager"})
	w.rec.await(t, wireHop{"agent_health_control_response", "agent_to_Manager", "agent", "manager"})

	// The three ways in which an instance ends.
	ending := w.call(func(ctx context.Context) error { return w.m.Shutdown(ctx, pb.ID) })
	r = b.hear("graceful_shutdown_request")
	b.say("graceful_shutdown_response", r["message_id"], "sub_type: service_instance_to_agent", "status: 200")
	w.rec.await(t, wireHop{"graceful_shutdown_response", "agent_to_Manager", "agent", "manager"})
	pb.exit(Exit{})
	ending()
	pb = nil
	session()
	b.say("service_instance_termination_info", "99", "sub_type: service_instance_to_agent", "service_name: B",
		fmt.Sprint("service_instance_id: ", pb.ID), "service_instance_network_address: 127.0.0.1")
	pb.exit(Exit{})
	r = a.hear("source_service_session_close_request")
	a.say("source_service_session_close_response", r["message_id"], "sub_type: source_service_to_agent", "status: 200")
	w.call(func(ctx context.Context) error { return w.m.HardShutdown(ctx, pa.ID) })()
	w.rec.await(t, wireHop{"hard_shutdown_response", "agent_to_Manager", "agent", "manager"})
}

// checkHops compares what was seen with the catalogue: every hop, every line,
// in its order.
func (w *wire) checkHops() {
	w.t.Helper()
	hops := 0
	for _, m := range readCatalogue(w.t.(*testing.T)).Messages {
		for _, r := range m.Routes {
			hops++
			want := []string{"type", "message_id"}
			hop := wireHop{m.Type, "", r.From, r.To}
			if r.SubType != nil {
				hop.sub = *r.SubType
				want = append(want, "sub_type")
			}
			want = append(want, m.Fields...)
			w.rec.mu.Lock()
			line, ok := w.rec.seen[hop]
			w.rec.mu.Unlock()
			if !ok {
				w.t.Errorf("not seen: %+v", hop)
				continue
			}
			var names []string
			for _, l := range strings.Split(line, " ~ ") {
				if name, _, _ := strings.Cut(l, ": "); !strings.HasPrefix(name, "x_") {
					names = append(names, name)
				}
			}
			if !slices.Equal(names, want) {
				w.t.Errorf("%s\nhas the lines %v, want %v", line, names, want)
			}
		}
	}
	if hops != 36 {
		w.t.Errorf("%d hops in the catalogue, want 36", hops)
	}
}

// An agent that knows lines only, sends none that begins with x_ and takes
// every liberty, is served like any other (PROTOCOL section 2).
func TestForeignAgent(t *testing.T) {
	t.Parallel()
	w := newWire(t, ManagerConfig{HealthPeriod: 20 * time.Millisecond, HealthMisses: 1 << 30})
	p := dialRaw(t, w.address)
	p.liberal = true
	toManager := "sub_type: agent_to_Manager"
	p.say("initiation_request", "1", "agent_network_address: 127.0.0.1", "service_repository: (A, B)")
	if r := p.hear("initiation_response"); r["status"] != "200" || r["message_id"] != "1" {
		t.Fatalf("%v", r)
	}
	execute := func(service, answer string) InstanceID {
		t.Helper()
		r := p.hear("execution_request")
		if r["service_name"] != service {
			t.Fatalf("%v, want %s", r, service)
		}
		p.say("execution_response", r["message_id"], "status: "+answer)
		id, _ := strconv.ParseInt(r["service_instance_id"], 10, 64)
		return InstanceID(id)
	}
	deployed := w.call(func(ctx context.Context) error { return w.m.Deploy(ctx, "wire") })
	a, b := execute("A", "200"), InstanceID(0)
	deployed()
	session := func(message string) (id SessionID, port string) {
		t.Helper()
		p.say("session_request", message, relabel(sessionLines(a), "agent_to_Manager")...)
		if b == 0 {
			b = execute("B", "200")
		}
		r := p.hear("session_response")
		if r["status"] != "200" || r["dest_service_instance_id"] != fmt.Sprint(b) || r["sub_type"] != "Manager_to_agent" || r["message_id"] != message {
			t.Fatalf("%v", r)
		}
		p.say("session_ack", message, relabel(ackLines(a, 40112, r["dest_socket_port"]), "agent_to_Manager")...)
		return w.await(EventSessionOpened).Session, r["dest_socket_port"]
	}

	// Not in its repository, in the published code's words.
	p.say("session_request", "10", relabel(sessionLines(a), "agent_to_Manager")...)
	execute("B", "300")
	if r := p.hear("session_response"); r["status"] != "503" || r["dest_socket_port"] != "" {
		t.Fatalf("%v", r)
	}

	_, port := session("11")
	ends := []string{"source_service_name: A", fmt.Sprint("source_service_instance_id: ", a), "source_service_instance_network_address: 127.0.0.1",
		"source_plug_name: P1", "source_plug_port: 40112", "dest_service_name: B", fmt.Sprint("dest_service_instance_id: ", b),
		"dest_service_instance_network_address: 127.0.0.1", "dest_socket_name: S1", "dest_socket_port: " + port, "dest_socket_new_port: " + port, "status: 111"}
	p.say("source_service_session_close_info", "12", append([]string{toManager}, ends...)...)
	// The other end reports the same session: it closes once.
	p.say("dest_service_session_close_info", "13", append([]string{toManager}, slices.Concat(ends[2:6], ends[7:8], ends[6:7], ends[8:])...)...)
	if ev := w.await(EventSessionClosed); ev.Status != StatusSessionClosed {
		t.Fatalf("%+v", ev)
	}
	id, _ := session("14")
	if n := w.m.Dropped(); n != 1 {
		t.Errorf("%d messages dropped, want the second report", n)
	}
	closing := w.call(func(ctx context.Context) error { return w.m.CloseSession(ctx, id) })
	r := p.hear("source_service_session_close_request")
	p.say("source_service_session_close_response", r["message_id"], toManager, "status: 500")
	r = p.hear("dest_service_session_close_request")
	p.say("dest_service_session_close_response", r["message_id"], toManager, "status: 200")
	closing()

	// An answer to an old request counts for nothing: a few may be needed.
	overloaded := func(i InstanceStatus) bool { return i.Health == StatusOverloaded }
	for n := 0; !slices.ContainsFunc(w.m.Snapshot().Instances, overloaded); n++ {
		if n == 1000 {
			t.Fatal("no health response was taken")
		}
		r = p.hear("service_instance_health_request")
		p.say("service_instance_health_response", r["message_id"], toManager, "service_instance_id: "+r["service_instance_id"], "status: 199")
	}
	r = p.hear("agent_health_control_request")
	p.say("agent_health_control_response", r["message_id"], toManager, "agent_network_address: 127.0.0.1", "status: 200")

	ending := w.call(func(ctx context.Context) error { return w.m.Shutdown(ctx, b) })
	r = p.hear("graceful_shutdown_request")
	p.say("graceful_shutdown_response", r["message_id"], toManager, "status: 200")
	p.say("service_instance_termination_info", "20", toManager, "service_name: B", fmt.Sprint("service_instance_id: ", b), "service_instance_network_address: 127.0.0.1")
	ending()
	ending = w.call(func(ctx context.Context) error { return w.m.HardShutdown(ctx, a) })
	r = p.hear("hard_shutdown_request")
	p.say("hard_shutdown_response", r["message_id"], toManager, "service_instance_id: "+r["service_instance_id"], "status: 200")
	ending()
	execute("A", "200") // it is a gateway
}
