package main

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/ssmmp/ssmmp"
)

// A mesh is a Manager and agents, with servers and clients as their instances.
// The clients are run by this program itself.
type mesh struct {
	manager   *ssmmp.Manager
	transport ssmmp.Transport // of the first agent and the clients
	address   string          // of the Manager
	ctx       context.Context // of all
	cancel    context.CancelFunc
	ended     sync.WaitGroup

	clients []ssmmp.Launch // by number
	server  ssmmp.Launch   // of all of them, if they share one
}

var loopbackAddr = netip.MustParseAddr("127.0.0.1")

// tcp is the transport of a mesh over the loopback.
func tcp() ssmmp.Transport { return ssmmp.TCP{LocalAddr: loopbackAddr} }

// memory is the transport of a mesh in memory.
func memory() ssmmp.Transport {
	h, err := ssmmp.NewMemNetwork().Host("10.0.0.1")
	check(err)
	return h
}

// startMesh starts a mesh of a Manager and an agent, with some clients, each the
// instance of a service of its own, c000 and so on. Without a launcher they
// share a server that runs and does nothing; with one each has its own, which
// does not run. The store may be nil.
func startMesh(transport ssmmp.Transport, clients int, launcher ssmmp.Launcher, store ssmmp.Store) *mesh {
	ctx, cancel := context.WithCancel(context.Background())
	m := &mesh{transport: transport, ctx: ctx, cancel: cancel}
	launched := make(chan ssmmp.Launch, clients)
	served := make(chan ssmmp.Launch, 1)

	b := ssmmp.NewGraph("bench")
	var repository []ssmmp.RepositoryEntry
	execute := func(name string, l ssmmp.Launcher, ready bool) {
		repository = append(repository, ssmmp.RepositoryEntry{Service: name, ReadyWhenStarted: ready, Launcher: l})
	}
	if launcher == nil {
		b.Storage("server", ssmmp.In{"S1"})
		execute("server", tells(served), true)
	}
	for n := range clients {
		name, server := clientName(n), "server"
		if launcher != nil {
			server = serverName(n)
			b.Storage(server, ssmmp.In{"S1"})
			execute(server, launcher, false)
		}
		b.Gateway(name, ssmmp.FixedPorts{"S0": uint16(1000 + n)}, ssmmp.Out{"P1"}).Edge(name, "P1", "S1", server)
		execute(name, tells(launched), true)
	}
	g, err := b.Build()
	check(err)

	address := loopbackAddr
	if h, ok := transport.(*ssmmp.MemHost); ok {
		address = h.Addr()
	}
	ln, err := transport.Listen(ctx, address.String()+":0")
	check(err)
	// Clients that are busy asking do not answer for their health.
	m.manager, err = ssmmp.NewManager(ssmmp.ManagerConfig{Graphs: []*ssmmp.Graph{g}, Transport: transport, Store: store, IdleAfter: -1, HealthMisses: 1 << 30})
	check(err)
	m.ended.Go(func() { m.manager.Serve(ctx, ln) })
	m.address = ln.Addr().String()
	m.agent(ssmmp.AgentConfig{Manager: m.address, Address: address, Listen: address.String() + ":0",
		Transport: transport, Repository: repository, DrainTimeout: 1})
	check(m.manager.Deploy(ctx, "bench"))
	m.clients = make([]ssmmp.Launch, clients)
	for range clients {
		l := <-launched
		n, err := strconv.Atoi(l.Service[1:])
		check(err)
		m.clients[n] = l
	}
	if launcher == nil { // the first session starts the server
		c := m.client(0)
		check(c.ask())
		_, err = c.answer()
		check(err)
		check(c.conn.Close())
		m.server = <-served
	}
	return m
}

func (m *mesh) agent(cfg ssmmp.AgentConfig) {
	a, err := ssmmp.NewAgent(cfg)
	check(err)
	m.ended.Go(func() { a.Run(m.ctx) })
}

func serverName(n int) string { return fmt.Sprintf("srv%03d", n) }

// tells executes instances by telling of them.
func tells(launched chan ssmmp.Launch) ssmmp.Launcher {
	return ssmmp.FuncLauncher(func(ctx context.Context, l ssmmp.Launch) error {
		launched <- l
		<-ctx.Done()
		return nil
	})
}

// client connects client number n to its agent.
func (m *mesh) client(n int) *client {
	l := m.clients[n]
	conn, err := m.transport.Dial(context.Background(), l.Agent)
	check(err)
	_, err = fmt.Fprintf(conn, "type: service_instance_health_response ~ message_id: 1 ~ sub_type: service_instance_to_agent"+
		" ~ service_instance_id: %d ~ status: 200 ~ x_secret: %s\n", l.ID, l.Secret)
	check(err)
	return newClient(conn, n, len(m.clients), int64(l.ID), l.Plugs[0].Service, int64(m.server.ID))
}

// warm sets up sessions until the Manager's history is full, as one is that has
// run for a while.
func (m *mesh) warm(c *client) {
	var stop atomic.Bool
	stop.Store(true)
	for m.manager.Snapshot().Seq < 1<<16 {
		for range 100 {
			_, err := c.run(&stop, min(100, len(c.ports)))
			check(err)
			check(c.closeAll())
		}
	}
}

func (m *mesh) stop() {
	m.cancel()
	m.ended.Wait()
}
