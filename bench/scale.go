package main

import (
	"fmt"
	"math"
	"net/netip"
	"runtime"
	"time"

	"github.com/ssmmp/ssmmp"
)

// What a set-up costs in clusters of all sizes, at the Manager's core, and what
// an open session and an agent keep of the memory.

// A cluster is a Manager's core and what it knows: agents, and clients of which
// each has servers of its own. All instances run.
type cluster struct {
	core    *ssmmp.ManagerCore
	clients []coreClient
	asking  int // how many of them ask
	turn    int

	request  ssmmp.SessionRequest
	ack      ssmmp.SessionAck
	closeMsg ssmmp.SourceSessionCloseInfo
}

// A coreClient is an instance that asks for sessions.
type coreClient struct {
	conn    ssmmp.ConnID // of its agent
	service string
	id      ssmmp.InstanceID
	addr    netip.Addr
	plugs   []ssmmp.PlugTarget
	asked   int64
	port    uint16
}

func newCluster(agents, clients, serversEach int) *cluster {
	b := ssmmp.NewGraph("scale")
	var names []string
	for n := range clients {
		name := clientName(n)
		var plugs ssmmp.Out
		for k := range serversEach {
			plugs = append(plugs, fmt.Sprintf("P%d", k))
		}
		names = append(names, name)
		b.Gateway(name, ssmmp.FixedPorts{"S0": uint16(1000 + n)}, plugs)
		for k, plug := range plugs {
			server := fmt.Sprintf("srv%03d.%d", n, k)
			names = append(names, server)
			b.Storage(server, ssmmp.In{"S1"}).Edge(name, plug, "S1", server)
		}
	}
	g, err := b.Build()
	check(err)
	cfg := ssmmp.ManagerConfig{Graphs: []*ssmmp.Graph{g}, FirstInstance: 1, FirstMessage: 1, IdleAfter: -1}
	check(cfg.Validate())
	c := &cluster{core: ssmmp.NewManagerCore(cfg.WithDefaults()), clients: make([]coreClient, clients), asking: clients}
	for n := range agents {
		c.step(ssmmp.ConnID(n+1), &ssmmp.InitiationRequest{Header: ssmmp.Header{MessageID: 1},
			AgentNetworkAddress: nodeAddr(n), ServiceRepository: names})
	}
	c.carryOut(c.core.Step(ssmmp.ManagerInput{Kind: ssmmp.ManagerInputCommand, Call: 1, Cmd: ssmmp.DeployCommand{Graph: "scale"}}))
	for range clients * serversEach { // the first session to each server starts it
		c.setUp()
	}
	return c
}

func nodeAddr(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, 1, byte(n >> 8), byte(n)}) }

func (c *cluster) step(conn ssmmp.ConnID, m ssmmp.Message) {
	c.carryOut(c.core.Step(ssmmp.ManagerInput{Kind: ssmmp.ManagerInputMessage, Conn: conn, Msg: m}))
}

// carryOut answers what the core sends as its agents do: it executes.
func (c *cluster) carryOut(out []ssmmp.ManagerOutput, _ []ssmmp.Event) {
	type execution struct {
		conn ssmmp.ConnID
		id   int64
	}
	var executed []execution
	for _, o := range out {
		m, ok := o.Msg.(*ssmmp.ExecutionRequest)
		if !ok {
			continue
		}
		executed = append(executed, execution{o.Conn, m.MessageID})
		var n int
		if _, err := fmt.Sscanf(m.ServiceName, "c%d", &n); err == nil {
			c.clients[n] = coreClient{conn: o.Conn, service: m.ServiceName, id: m.ServiceInstanceID,
				addr: m.AgentNetworkAddress, plugs: m.PlugConfiguration, port: 1024}
		}
	}
	for _, x := range executed {
		c.step(x.conn, &ssmmp.ExecutionResponse{Header: ssmmp.Header{MessageID: x.id}, Status: ssmmp.StatusOK})
	}
}

// open sets up the next session, and leaves in c.closeMsg how it is closed.
func (c *cluster) open() (conn ssmmp.ConnID) {
	i := &c.clients[c.turn%c.asking]
	to := i.plugs[c.turn/c.asking%len(i.plugs)]
	c.turn++
	i.asked++
	c.request = ssmmp.SessionRequest{Header: ssmmp.Header{MessageID: i.asked, SubType: ssmmp.AgentToManager}, SourceServiceName: i.service,
		SourceServiceInstanceID: i.id, SourceServiceInstanceNetworkAddress: i.addr,
		SourcePlugName: to.Plug, DestServiceName: to.Service, DestSocketName: to.Socket}
	out, events := c.core.Step(ssmmp.ManagerInput{Kind: ssmmp.ManagerInputMessage, Conn: i.conn, Msg: &c.request})
	if len(out) != 1 || out[0].Kind != ssmmp.ManagerOutputSend || out[0].Conn != i.conn {
		c.carryOut(out, events)
		return 0
	}
	r, ok := out[0].Msg.(*ssmmp.SessionResponse)
	if !ok {
		c.carryOut(out, events)
		return 0
	}
	if !r.Status.Success() {
		fatal("a session is refused: " + r.Status.String())
	}
	if i.port++; i.port == math.MaxUint16 {
		i.port = 1024
	}
	c.ack = ssmmp.SessionAck{Header: ssmmp.Header{MessageID: i.asked, SubType: ssmmp.AgentToManager}, SourceServiceName: i.service,
		SourceServiceInstanceID: i.id, SourcePlugPort: i.port, DestSocketNewPort: r.DestSocketPort, Status: ssmmp.StatusOK}
	c.closeMsg = ssmmp.SourceSessionCloseInfo{Header: ssmmp.Header{MessageID: i.asked, SubType: ssmmp.AgentToManager}, SourceServiceName: i.service,
		SourceServiceInstanceID: i.id, SourceServiceInstanceNetworkAddress: i.addr, SourcePlugName: to.Plug, SourcePlugPort: i.port,
		DestServiceName: to.Service, DestServiceInstanceID: r.DestServiceInstanceID, DestServiceInstanceNetworkAddress: r.DestServiceInstanceNetworkAddress,
		DestSocketName: to.Socket, DestSocketPort: r.DestSocketPort, DestSocketNewPort: r.DestSocketPort, Status: ssmmp.StatusSessionClosed}
	c.core.Step(ssmmp.ManagerInput{Kind: ssmmp.ManagerInputMessage, Conn: i.conn, Msg: &c.ack})
	return i.conn
}

// setUp opens a session and closes it.
func (c *cluster) setUp() {
	if conn := c.open(); conn != 0 {
		c.core.Step(ssmmp.ManagerInput{Kind: ssmmp.ManagerInputMessage, Conn: conn, Msg: &c.closeMsg})
	}
}

// perSetUp returns how many ns a set-up and its end take.
func (c *cluster) perSetUp(d time.Duration) float64 {
	began, n := time.Now(), 0
	for time.Since(began) < d {
		for range 100 {
			c.setUp()
		}
		n += 100
	}
	return float64(time.Since(began).Nanoseconds()) / float64(n)
}

const manySessions = 1_000_000

// scaleRows has the same few clients ask in clusters of all sizes, and then all
// of them in turn, where what grows is what the processor's caches cannot hold.
func scaleRows(o options) []row {
	const few = 4
	var rows []row
	flat := func(what string, sizes []string, clusters ...*cluster) {
		for _, all := range []bool{false, true} {
			r := row{what: what + ", " + join(sizes) + ": × the first", targets: []float64{1.3}, most: true}
			if all {
				r.what, r.targets = "the same, where every client asks", nil
			}
			ns := make([][]float64, len(clusters))
			for range o.rounds {
				for i, c := range clusters {
					c.asking = len(c.clients)
					if !all {
						c.asking = few
					}
					ns[i] = append(ns[i], c.perSetUp(o.each/2))
				}
			}
			for i := range clusters {
				r.values = append(r.values, nanoseconds(median(ns[i])))
				if i > 0 {
					r.ratios = append(r.ratios, medianRatio(ns[i], ns[0]))
				}
			}
			rows = append(rows, r)
		}
	}
	flat("a set-up in the Manager's core with so many agents", []string{"10", "1,000", "5,000"},
		newCluster(10, 100, 1), newCluster(1000, 100, 1), newCluster(5000, 100, 1))
	flat("with so many services", []string{"10", "1,000", "4,000"},
		newCluster(10, 5, 1), newCluster(10, 250, 3), newCluster(10, 250, 15))

	c := newCluster(10, 256, 1)
	before := heap()
	for range manySessions {
		c.open()
	}
	each := float64(heap()-before) / manySessions
	var gc []float64
	for range 5 {
		began := time.Now()
		runtime.GC()
		gc = append(gc, time.Since(began).Seconds()*1000)
	}
	flat("with so many sessions open", []string{"0", "1,000,000"}, newCluster(10, 256, 1), c)
	return append(rows,
		row{what: "heap of an open session at 1,000,000 of them, bytes", ratios: []float64{each}, targets: []float64{64}, most: true},
		row{what: "full GC at 1,000,000 open sessions, ms", ratios: []float64{median(gc)}, targets: []float64{5}, most: true})
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

const manyAgents = 5000

// agentRows measures set-ups over the network in memory with one agent, and
// with thousands of them in the same process.
func agentRows(o options) []row {
	const clients = 16
	network := ssmmp.NewMemNetwork()
	host, err := network.Host("10.0.0.1")
	check(err)
	few, many := startMesh(memory(), clients, nil, nil), startMesh(host, clients, nil, nil)
	defer few.stop()
	defer many.stop()
	before, goroutines := heap(), runtime.NumGoroutine()
	for n := range manyAgents - 1 {
		host, err := network.Host(nodeAddr(n).String())
		check(err)
		many.agent(ssmmp.AgentConfig{Manager: many.address, Address: host.Addr(), Transport: host,
			Repository: []ssmmp.RepositoryEntry{{Service: "server", Launcher: tells(nil)}}})
	}
	for len(many.manager.Snapshot().Agents) < manyAgents {
		time.Sleep(10 * time.Millisecond)
	}
	each := float64(heap()-before) / manyAgents / 1024
	perAgent := float64(runtime.NumGoroutine()-goroutines) / manyAgents
	r := race([]contender{few.contender("few", clients), many.contender("many", clients)}, clients, o.rounds, o.each)
	return []row{
		{what: "set-ups in memory, 16 clients, with 5,000 agents in this process: × those with one",
			values: []string{rate(median(r["few"])), rate(median(r["many"]))}, ratios: []float64{r.ratio("many", "few")}, targets: []float64{1 / 1.3}},
		{what: "memory of an agent and of what the Manager and the network keep for it, KiB; goroutines",
			values: []string{fmt.Sprintf("%.1f KiB", each), fmt.Sprintf("%.1f", perAgent)}},
	}
}
