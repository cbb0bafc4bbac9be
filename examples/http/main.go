// Command http shows net/http in a mesh, with keep-alive: a gateway that is an
// http.Server and an http.Client, and a greeter that is an http.Server. Nothing
// but where their connections come from is of the mesh. Several requests travel
// over one session, which the Manager knows, and can close.
//
//	go run ./examples/http
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/ssmmp/ssmmp"
)

// front serves users on socket S0 and asks the service at the end of plug P1.
func front(inst *ssmmp.Instance) http.Handler {
	client := &http.Client{Transport: &http.Transport{DialContext: inst.DialContext}}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		req, err := http.NewRequestWithContext(r.Context(), http.MethodGet, "http://P1"+r.URL.Path, nil)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		resp, err := client.Do(req) // the first one starts a greeter
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		w.WriteHeader(resp.StatusCode)
		io.Copy(w, resp.Body)
	})
}

// greeter serves front on socket S1.
func greeter(inst *ssmmp.Instance) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello %s from %s, over the session from %s", r.URL.Path[1:], inst.Service(), r.RemoteAddr)
	})
}

// serve joins the mesh and runs an http.Server on a socket, until the instance
// is shut down.
func serve(ctx context.Context, cfg ssmmp.JoinConfig, socket string, handler func(*ssmmp.Instance) http.Handler) error {
	inst, err := ssmmp.JoinWith(ctx, cfg)
	if err != nil {
		return err
	}
	defer inst.Close()
	defer context.AfterFunc(ctx, inst.Terminate)()
	ln, err := inst.Listen(socket)
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: handler(inst)}
	inst.OnDrain(func(ctx context.Context) { srv.Shutdown(ctx) })
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
		return err
	}
	<-inst.Done()
	return nil
}

// A mesh is a Manager and an agent on one node, with front and greeter as
// functions of this process.
type mesh struct {
	manager *ssmmp.Manager
	users   string // where front listens for users, "host:port"
	stop    context.CancelFunc
	wg      sync.WaitGroup
}

func startMesh(ctx context.Context, transport ssmmp.Transport, node netip.Addr, port uint16) (*mesh, error) {
	g, err := ssmmp.NewGraph("web").
		Gateway("front", ssmmp.FixedPorts{"S0": port}, ssmmp.Out{"P1"}).
		Storage("greeter", ssmmp.In{"S1"}).
		Edge("front", "P1", "S1", "greeter").
		Build()
	if err != nil {
		return nil, err
	}
	m, err := ssmmp.NewManager(ssmmp.ManagerConfig{Graphs: []*ssmmp.Graph{g}, Transport: transport, FirstInstance: 1})
	if err != nil {
		return nil, err
	}
	any := netip.AddrPortFrom(node, 0).String() // a port that is free
	ln, err := transport.Listen(ctx, any)
	if err != nil {
		return nil, err
	}
	execute := func(socket string, handler func(*ssmmp.Instance) http.Handler) ssmmp.Launcher {
		return ssmmp.FuncLauncher(func(ctx context.Context, l ssmmp.Launch) error {
			return serve(ctx, ssmmp.JoinConfig{Launch: l, Transport: transport}, socket, handler)
		})
	}
	a, err := ssmmp.NewAgent(ssmmp.AgentConfig{
		Manager: ln.Addr().String(), Address: node, Listen: any, Transport: transport,
		Repository: []ssmmp.RepositoryEntry{
			{Service: "front", Launcher: execute("S0", front)},
			{Service: "greeter", Launcher: execute("S1", greeter)},
		},
	})
	if err != nil {
		ln.Close()
		return nil, err
	}
	c := &mesh{manager: m, users: netip.AddrPortFrom(node, port).String()}
	ctx, c.stop = context.WithCancel(ctx)
	c.wg.Go(func() { m.Serve(context.WithoutCancel(ctx), ln) })
	c.wg.Go(func() {
		a.Run(ctx) // its instances end with it
		m.Close()
	})
	if err := m.Deploy(ctx, "web"); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

func (c *mesh) close() {
	c.stop()
	c.wg.Wait()
}

// get is one request of a user. The gateway may be ready before it listens.
func get(client *http.Client, url string) (string, error) {
	resp, err := client.Get(url)
	for try := 0; errors.Is(err, syscall.ECONNREFUSED) && try < 1000; try++ {
		time.Sleep(5 * time.Millisecond)
		resp, err = client.Get(url)
	}
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, body)
	}
	return string(body), err
}

// run has a user ask several times, and tells of the sessions that the Manager
// knows.
func run(ctx context.Context, transport ssmmp.Transport, node netip.Addr, port uint16, out io.Writer) error {
	c, err := startMesh(ctx, transport, node, port)
	if err != nil {
		return err
	}
	defer c.close()
	pool := &http.Transport{DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) { return transport.Dial(ctx, addr) }}
	defer pool.CloseIdleConnections()
	client := &http.Client{Transport: pool}
	ask := func(names ...string) error {
		for _, name := range names {
			text, err := get(client, "http://"+c.users+"/"+name)
			if err != nil {
				return err
			}
			fmt.Fprintln(out, text)
		}
		return nil
	}

	if err := ask("Ann", "Bob", "Cem", "Dan", "Eve"); err != nil {
		return err
	}
	for ev := range c.manager.Events(ctx, 0) {
		if ev.Kind == ssmmp.EventSessionOpened {
			break // its acknowledgment may come after the first answer
		}
	}
	sessions := c.manager.Snapshot().Sessions
	fmt.Fprintf(out, "sessions that the Manager knows: %d\n", len(sessions))
	for _, s := range sessions {
		fmt.Fprintf(out, "  %s of %s %d → %s of %s %d, %s\n", s.Plug, s.SourceService, s.Source, s.Socket, s.DestinationService, s.Destination, s.State)
		if err := c.manager.CloseSession(ctx, s.ID); err != nil {
			return err
		}
		fmt.Fprintln(out, "  the Manager closed it, and the client will ask for another")
	}
	if err := ask("Fay", "Gil"); err != nil {
		return err
	}
	granted := 0
	for ev := range c.manager.Events(ctx, 0) {
		if ev.Kind == ssmmp.EventSessionOffered {
			granted++
		}
		if ev.Seq >= c.manager.Snapshot().Seq {
			break
		}
	}
	fmt.Fprintf(out, "7 requests went over %d sessions\n", granted)
	return nil
}

func main() {
	host, err := ssmmp.NewMemNetwork().Host("10.0.0.1") // ssmmp.TCP{} is the real one
	if err == nil {
		err = run(context.Background(), host, host.Addr(), 8080, os.Stdout)
	}
	if err != nil {
		log.Fatal(err)
	}
}
