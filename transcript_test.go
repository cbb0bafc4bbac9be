package ssmmp

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

var updateTranscripts = flag.Bool("update", false, "rewrite the transcripts in testdata with what happens now")

// TestTranscripts plays the files of testdata/transcripts: commands, each
// followed by everything that they made a Manager, its agents and instances say
// and do. The files are documentation of PROTOCOL section 3, one for each of its
// actions; testdata/transcripts/README.md tells how to read and write them.
func TestTranscripts(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/transcripts/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			t.Parallel()
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := playTranscript(t, file, string(want))
			if *updateTranscripts {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			wants, gots := strings.Split(string(want), "\n"), strings.Split(got, "\n")
			for i := range max(len(wants), len(gots)) {
				var w, g string
				if i < len(wants) {
					w = wants[i]
				}
				if i < len(gots) {
					g = gots[i]
				}
				if w != g {
					t.Fatalf("%s:%d: is now\n\t%s\nwas\n\t%s\n(go test -run TestTranscripts -update rewrites it)", file, i+1, g, w)
				}
			}
		})
	}
}

// playTranscript carries out the commands of a transcript, and returns it with
// what happens put in place of what is written below each of them.
func playTranscript(t *testing.T, file, text string) string {
	w := &transcriptWorld{t: t, launches: map[string]string{}}
	var out strings.Builder
	for n, line := range strings.Split(strings.TrimRight(text, "\n"), "\n") {
		switch {
		case strings.HasPrefix(line, "> "):
			out.WriteString(line + "\n")
			w.said.Reset()
			args := strings.Fields(line[2:])
			if args[0] == "says" { // what is said keeps its spaces
				args = strings.SplitN(line[2:], " ", 3)
			}
			if err := w.command(args); err != nil {
				t.Fatalf("%s:%d: %s: %v", file, n+1, line, err)
			}
			w.settle()
			out.WriteString(w.said.String())
		case line == "" || strings.HasPrefix(line, "#"):
			out.WriteString(line + "\n")
		case !strings.HasPrefix(line, "  "):
			t.Fatalf("%s:%d: %q is neither a command, a comment nor what happened", file, n+1, line)
		}
	}
	return out.String()
}

// A transcriptWorld is a mesh stepped by hand: every message travels as its
// line, one after the other and at once; time passes where a command says so.
type transcriptWorld struct {
	t     *testing.T
	said  strings.Builder
	now   time.Duration
	queue []func() // what is to happen next, in order

	manager   *ManagerCore
	agents    []*transcriptAgent
	instances []*transcriptInstance

	launches map[string]string // how the next launches of a service go
	last     map[string]func() // the last delivery of each type
	conns    int
	ports    uint16
	calls    CallID
}

type transcriptAgent struct {
	core   *AgentCore
	addr   netip.Addr
	conn   ConnID // to the Manager, 0 while there is none
	reader lineReader
}

type transcriptInstance struct {
	id      InstanceID
	core    *InstanceCore
	launch  Launch
	agent   *transcriptAgent
	conn    ConnID
	reader  lineReader
	hung    bool
	busy    bool
	listens bool // and knows nothing of SSMMP
	refuses bool // connections
	dials   map[CallID]string
	ends    map[uint64]*transcriptEnd
}

// A transcriptEnd is one end of a connection between two instances.
type transcriptEnd struct {
	inst *transcriptInstance
	conn uint64
	name string // of its plug or socket
	far  *transcriptEnd
}

func (w *transcriptWorld) say(format string, args ...any) {
	fmt.Fprintf(&w.said, "  "+format+"\n", args...)
}

// settle lets everything happen that is under way.
func (w *transcriptWorld) settle() {
	for n := 0; len(w.queue) > 0; n++ {
		if n > 100_000 {
			w.t.Fatal("the mesh does not come to rest")
		}
		next := w.queue[0]
		w.queue = w.queue[1:]
		next()
	}
}

func (w *transcriptWorld) later(f func()) { w.queue = append(w.queue, f) }

// command carries out one line of a transcript.
func (w *transcriptWorld) command(args []string) error {
	arg := func(i int) string {
		if i < len(args) {
			return args[i]
		}
		return ""
	}
	if arg(0) == "manager" {
		return w.startManager(args[1:])
	}
	if w.manager == nil {
		return fmt.Errorf("the first command is manager GRAPH")
	}
	switch arg(0) {
	case "agent":
		return w.startAgent(arg(1), args[2:])
	case "cut", "reconnect":
		a := w.agent(arg(1))
		if a == nil {
			return fmt.Errorf("no agent %q", arg(1))
		}
		if arg(0) == "cut" {
			w.disconnect(a)
		} else {
			w.connect(a)
		}
		return nil
	case "launches":
		w.launches[arg(1)] = arg(2)
		return nil
	case "deploy":
		return w.operator(DeployCommand{arg(1)})
	case "undeploy":
		return w.operator(UndeployCommand{arg(1)})
	case "shutdown", "kill":
		id, err := strconv.ParseInt(arg(1), 10, 64)
		if err != nil {
			return err
		}
		return w.operator(ShutdownCommand{InstanceID(id), arg(0) == "kill"})
	case "close-session":
		for _, s := range w.manager.Snapshot().Sessions {
			if s.ID.String() == arg(1) {
				return w.operator(CloseSessionCommand{s.ID})
			}
		}
		return fmt.Errorf("no session %q", arg(1))
	case "wait":
		d, err := time.ParseDuration(arg(1))
		if err != nil {
			return err
		}
		w.wait(w.now + d)
		return nil
	case "again":
		deliver := w.last[arg(1)]
		if deliver == nil {
			return fmt.Errorf("no %s was delivered", arg(1))
		}
		w.later(deliver)
		return nil
	case "snapshot":
		w.snapshot()
		return nil
	}
	i := w.instance(arg(1))
	if i == nil {
		return fmt.Errorf("no such command, or no instance %q", arg(1))
	}
	switch arg(0) {
	case "dial":
		w.calls++
		i.dials[w.calls] = arg(2)
		i.step(w, InstanceInput{Kind: InstanceInputDial, Call: w.calls, Plug: arg(2)})
	case "close", "break":
		for _, e := range i.inOrder() {
			if e.name == arg(2) {
				w.closeEnd(e, arg(0) == "break")
				return nil
			}
		}
		return fmt.Errorf("no open session at %s", arg(2))
	case "hang":
		i.hung = true
	case "busy":
		i.busy = true
	case "refuses":
		i.refuses = true
	case "health":
		s, err := strconv.Atoi(arg(2))
		if err != nil {
			return err
		}
		i.step(w, InstanceInput{Kind: InstanceInputHealth, Status: Status(s)})
	case "terminates":
		i.step(w, InstanceInput{Kind: InstanceInputTerminating})
		w.later(func() { w.exit(i, Exit{}) })
	case "exits":
		if code, err := strconv.Atoi(arg(2)); err == nil {
			w.exit(i, Exit{Code: code})
		} else {
			w.exit(i, Exit{Code: -1, Signal: arg(2)})
		}
	case "says":
		w.deliverToAgent(i, arg(2))
	default:
		return fmt.Errorf("no such command")
	}
	return nil
}

// wait lets time pass, stepping each core when it wants to be.
func (w *transcriptWorld) wait(until time.Duration) {
	for {
		at, next := until, func() {}
		if d, ok := w.manager.NextDeadline(); ok && d < at {
			at, next = d, func() { w.stepManager(ManagerInput{Kind: ManagerInputTime}) }
		}
		for _, a := range w.agents {
			if d, ok := a.core.NextDeadline(); ok && d < at {
				at, next = d, func() { a.step(w, AgentInput{Kind: AgentInputTime}) }
			}
		}
		w.now = max(w.now, at)
		next()
		w.settle()
		if at == until {
			return
		}
	}
}

func (w *transcriptWorld) startManager(args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("usage: manager GRAPH [monitors]")
	}
	data, err := os.ReadFile("testdata/graphs/" + args[0] + ".json")
	if err != nil {
		return err
	}
	g, err := ParseGraph(data)
	if err != nil {
		return err
	}
	cfg := ManagerConfig{Graphs: []*Graph{g}, FirstInstance: 1, FirstMessage: 1000, HealthPeriod: time.Hour}
	if len(args) > 1 && args[1] == "monitors" {
		cfg.HealthPeriod = 0
	}
	cfg = cfg.WithDefaults()
	w.manager, w.last, w.ports = NewManagerCore(cfg), map[string]func(){}, 40000
	return nil
}

func (w *transcriptWorld) startAgent(addr string, services []string) error {
	at, err := netip.ParseAddr(addr)
	if err != nil {
		return err
	}
	cfg := AgentConfig{Manager: "10.0.0.100:55555", Address: at}
	for _, s := range services {
		cfg.Repository = append(cfg.Repository, RepositoryEntry{Service: s, Launcher: FuncLauncher(nil), StopSignal: "SIGTERM"})
	}
	if err := cfg.Validate(); err != nil {
		return err
	}
	a := &transcriptAgent{core: NewAgentCore(cfg.WithDefaults(), fmt.Sprintf("agent-%d", len(w.agents)+1)), addr: at}
	w.agents = append(w.agents, a)
	w.connect(a)
	return nil
}

func (w *transcriptWorld) newConn() ConnID {
	w.conns++
	return ConnID(w.conns)
}

func (w *transcriptWorld) connect(a *transcriptAgent) {
	a.conn = w.newConn()
	a.step(w, AgentInput{Kind: AgentInputManagerUp, Conn: a.conn})
}

func (w *transcriptWorld) disconnect(a *transcriptAgent) {
	conn := a.conn
	a.conn = 0
	w.say("the connection of agent %s ends", a.addr)
	w.later(func() { a.step(w, AgentInput{Kind: AgentInputLost, Conn: conn}) })
	w.later(func() { w.stepManager(ManagerInput{Kind: ManagerInputLost, Conn: conn}) })
}

func (w *transcriptWorld) agent(addr string) *transcriptAgent {
	for _, a := range w.agents {
		if a.addr.String() == addr {
			return a
		}
	}
	return nil
}

func (w *transcriptWorld) instance(id string) *transcriptInstance {
	for _, i := range w.instances {
		if strconv.FormatInt(int64(i.id), 10) == id {
			return i
		}
	}
	return nil
}

func (w *transcriptWorld) operator(cmd any) error {
	w.calls++
	w.stepManager(ManagerInput{Kind: ManagerInputCommand, Call: w.calls, Cmd: cmd})
	return nil
}

func (w *transcriptWorld) stepManager(in ManagerInput) {
	in.Now = w.now
	out, events := w.manager.Step(in)
	for _, ev := range events {
		w.say("· %s", ev)
	}
	for _, o := range out {
		switch o.Kind {
		case ManagerOutputSend:
			line := encode(w.t, o.Msg)
			if a := w.agentOn(o.Conn); a != nil {
				w.deliver("Manager", "agent "+a.addr.String(), o.Msg.Type().String(), line, func() {
					if m, err := a.reader.read(line); err == nil && a.conn == o.Conn {
						a.step(w, AgentInput{Kind: AgentInputMessage, Conn: o.Conn, Msg: m})
					}
				})
			}
		case ManagerOutputClose:
			if a := w.agentOn(o.Conn); a != nil {
				w.disconnect(a)
			}
		case ManagerOutputReply:
			if o.Err != nil {
				w.say("operator ← %v", o.Err)
			} else {
				w.say("operator ← done")
			}
		}
	}
}

func (w *transcriptWorld) agentOn(conn ConnID) *transcriptAgent {
	for _, a := range w.agents {
		if a.conn == conn && conn != 0 {
			return a
		}
	}
	return nil
}

// deliver says that a message travels, and lets it arrive.
func (w *transcriptWorld) deliver(from, to, typ, line string, arrive func()) {
	again := func() {
		w.say("%s → %s  %s", from, to, line)
		arrive()
	}
	w.last[typ] = again
	w.later(again)
}

func (a *transcriptAgent) step(w *transcriptWorld, in AgentInput) {
	in.Now = w.now
	for _, o := range slices.Clone(a.core.Step(in)) {
		switch o.Kind {
		case AgentOutputSend:
			line, typ := encode(w.t, o.Msg), o.Msg.Type().String()
			if o.Conn == a.conn {
				conn := a.conn
				var r lineReader
				w.deliver("agent "+a.addr.String(), "Manager", typ, line, func() {
					if m, err := r.read(line); err == nil && a.conn == conn {
						w.stepManager(ManagerInput{Kind: ManagerInputMessage, Conn: conn, Msg: m})
					}
				})
				continue
			}
			for _, i := range w.instances {
				if i.conn != o.Conn {
					continue
				}
				w.deliver("agent "+a.addr.String(), i.String(), typ, line, func() {
					if m, err := i.reader.read(line); err == nil && !i.hung {
						i.step(w, InstanceInput{Kind: InstanceInputMessage, Msg: m})
					}
				})
			}
		case AgentOutputAbort, AgentOutputClose:
			if o.Conn == a.conn && o.Conn != 0 {
				w.disconnect(a)
			}
		case AgentOutputLaunch:
			w.launch(a, o.Launch)
		case AgentOutputProbe:
			if i := w.instance(strconv.FormatInt(int64(o.Instance), 10)); i != nil && i.listens && !i.hung {
				w.later(func() { a.step(w, AgentInput{Kind: AgentInputPortsListen, Instance: o.Instance}) })
			}
		case AgentOutputSignal:
			w.say("agent %s sends %s to %d", a.addr, o.Text, o.Instance)
			if i := w.instance(strconv.FormatInt(int64(o.Instance), 10)); i != nil && !i.hung {
				w.later(func() { w.exit(i, Exit{}) })
			}
		case AgentOutputKill:
			w.say("agent %s kills %d with all its children", a.addr, o.Instance)
			if i := w.instance(strconv.FormatInt(int64(o.Instance), 10)); i != nil {
				w.later(func() { w.exit(i, Exit{Code: -1, Signal: "SIGKILL"}) })
			}
		case AgentOutputWarn:
			w.say("agent %s warns: %s", a.addr, o.Text)
		case AgentOutputRefused:
			w.say("agent %s is refused: %s", a.addr, o.Status)
		}
	}
}

// launch executes an instance as a command tells: it joins, fails to start, is
// silent and never ready, or is silent and listens.
func (w *transcriptWorld) launch(a *transcriptAgent, l Launch) {
	how := w.launches[l.Service]
	l.Secret = fmt.Sprintf("secret-%d", l.ID)
	argv, err := commandArgs(l)
	if err != nil {
		w.t.Fatal(err)
	}
	for n := range argv {
		if argv[n] == "" || strings.ContainsAny(argv[n], " &") {
			argv[n] = strconv.Quote(argv[n])
		}
	}
	w.say("agent %s executes %s %s", a.addr, l.Service, strings.Join(argv, " "))
	if how == "fail" {
		w.later(func() {
			a.step(w, AgentInput{Kind: AgentInputStarted, Instance: l.ID, Err: fmt.Errorf("no such file")})
		})
		return
	}
	i := &transcriptInstance{id: l.ID, launch: l, agent: a, dials: map[CallID]string{}, ends: map[uint64]*transcriptEnd{}}
	w.instances = append(w.instances, i)
	w.later(func() { a.step(w, AgentInput{Kind: AgentInputStarted, Instance: l.ID}) })
	switch how {
	case "silently":
	case "without-hello":
		i.listens = true
	default:
		i.core, i.conn = NewInstanceCore(l), w.newConn()
		w.later(func() { i.step(w, InstanceInput{Kind: InstanceInputUp}) })
	}
}

func (w *transcriptWorld) exit(i *transcriptInstance, e Exit) {
	if w.instance(strconv.FormatInt(int64(i.id), 10)) == nil {
		return
	}
	w.say("%s exits: %s", i, e)
	w.instances = slices.DeleteFunc(w.instances, func(o *transcriptInstance) bool { return o == i })
	for _, end := range i.inOrder() {
		w.closeEnd(end, true)
	}
	if i.conn != 0 {
		w.later(func() { i.agent.step(w, AgentInput{Kind: AgentInputLost, Conn: i.conn}) })
	}
	w.later(func() { i.agent.step(w, AgentInput{Kind: AgentInputExited, Instance: i.id, Exit: e}) })
}

// closeEnd closes a connection at one end; the other one notices.
func (w *transcriptWorld) closeEnd(e *transcriptEnd, broken bool) {
	here, there := StatusSessionClosed, StatusSessionClosed
	if broken {
		here, there = StatusSessionBroken, StatusSessionBroken
	}
	w.end(e, here)
	w.later(func() { w.end(e.far, there) })
}

func (w *transcriptWorld) end(e *transcriptEnd, s Status) {
	if e.inst.ends[e.conn] != e {
		return
	}
	delete(e.inst.ends, e.conn)
	if w.instance(strconv.FormatInt(int64(e.inst.id), 10)) == nil {
		return // it runs no more
	}
	e.inst.step(w, InstanceInput{Kind: InstanceInputConnClosed, Conn: e.conn, Status: s})
}

func (i *transcriptInstance) String() string { return fmt.Sprintf("%s %d", i.launch.Service, i.id) }

func (i *transcriptInstance) inOrder() []*transcriptEnd {
	var ends []*transcriptEnd
	for _, e := range i.ends {
		ends = append(ends, e)
	}
	slices.SortFunc(ends, func(a, b *transcriptEnd) int { return int(a.conn) - int(b.conn) })
	return ends
}

func (i *transcriptInstance) step(w *transcriptWorld, in InstanceInput) {
	if i.core == nil {
		return // it knows nothing of SSMMP
	}
	for _, o := range slices.Clone(i.core.Step(in)) {
		switch o.Kind {
		case InstanceOutputSend:
			line := encode(w.t, o.Msg)
			w.deliver(i.String(), "agent "+i.agent.addr.String(), o.Msg.Type().String(), line, func() { w.receive(i, line) })
		case InstanceOutputConnect:
			w.later(func() { w.dial(i, o.Call, o.Target) })
		case InstanceOutputRefuse:
			w.say("%s: the dial of %s fails: %s", i, i.dials[o.Call], strings.TrimSpace(o.Status.String()+" "+o.Text))
		case InstanceOutputDrop:
			e := i.ends[o.Conn]
			delete(i.ends, o.Conn)
			w.say("%s closes its end at %s: %s", i, e.name, o.Text)
			w.later(func() {
				i.step(w, InstanceInput{Kind: InstanceInputConnDropped, Conn: o.Conn})
				w.end(e.far, StatusSessionBroken)
			})
		case InstanceOutputDrain:
			if i.busy {
				w.say("%s is asked to finish, and does not", i)
				continue
			}
			w.say("%s finishes", i)
			w.later(func() { i.step(w, InstanceInput{Kind: InstanceInputDrained}) })
			w.later(func() { w.later(func() { w.exit(i, Exit{}) }) })
		case InstanceOutputWarn:
			w.say("%s warns: %s", i, o.Text)
		}
	}
}

// receive lets an agent read a line of an instance.
func (w *transcriptWorld) receive(i *transcriptInstance, line string) {
	m, err := i.agent.reader.read(line)
	if err != nil {
		w.say("agent %s drops it: %v", i.agent.addr, err)
		return
	}
	i.agent.step(w, AgentInput{Kind: AgentInputMessage, Conn: i.conn, Msg: m, Proof: ProofGood})
}

func (w *transcriptWorld) deliverToAgent(i *transcriptInstance, line string) {
	w.say("%s → agent %s  %s", i, i.agent.addr, line)
	w.receive(i, line)
}

// dial connects two instances, as the transport does.
func (w *transcriptWorld) dial(i *transcriptInstance, call CallID, target netip.AddrPort) {
	for _, j := range w.instances {
		for _, s := range j.launch.Sockets {
			if j.refuses || j.agent.addr != target.Addr() || s.Port != target.Port() {
				continue
			}
			w.ports++
			m := w.ports
			near := &transcriptEnd{inst: i, conn: uint64(2 * m), name: i.dials[call]}
			far := &transcriptEnd{inst: j, conn: uint64(2*m) + 1, name: s.Socket, far: near}
			near.far = far
			i.ends[near.conn], j.ends[far.conn] = near, far
			w.say("%s connects from %s to %s of %s", i, netip.AddrPortFrom(i.agent.addr, m), target, j)
			j.step(w, InstanceInput{Kind: InstanceInputAccepted, Conn: far.conn, Socket: s.Socket, Peer: netip.AddrPortFrom(i.agent.addr, m), Port: target.Port()})
			i.step(w, InstanceInput{Kind: InstanceInputDialed, Call: call, Conn: near.conn, Peer: target, Port: m})
			return
		}
	}
	w.say("%s cannot connect to %s", i, target)
	i.step(w, InstanceInput{Kind: InstanceInputDialFailed, Call: call, Status: StatusUnreachable})
	w.say("%s: the dial of %s fails", i, i.dials[call])
}

// snapshot says what the Manager knows.
func (w *transcriptWorld) snapshot() {
	s := w.manager.Snapshot()
	for _, a := range s.Agents {
		w.say("agent %s %s %v", a.Address, a.State, a.Services)
	}
	for _, i := range s.Instances {
		w.say("instance %d %s on %s %v %s, %d sessions", i.ID, i.Service, i.Node, i.Sockets, i.State, i.Sessions)
	}
	for _, x := range s.Sessions {
		w.say("session %s %s: %s %s %d %s %d → %s %s %d %s %d %d", x.ID, x.State,
			x.SourceService, x.SourceAddress, x.Source, x.Plug, x.PlugPort,
			x.DestinationService, x.DestinationAddress, x.Destination, x.Socket, x.SocketPort, x.NewPort)
	}
}
