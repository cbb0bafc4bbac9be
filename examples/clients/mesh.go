package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/ssmmp/ssmmp"
)

// A webFunc makes the handler of a gateway, which serves users over HTTP.
type webFunc func(*ssmmp.Instance) (http.Handler, error)

const graphName = "clients"

type meshOptions struct {
	out          io.Writer     // is told what comes and goes; may be nil
	healthPeriod time.Duration // the Manager's default if it is zero
	healthMisses int           // likewise
}

// A mesh is a Manager and an agent on one node, over TCP. The gateway, web, is
// a function of this process; the server is whatever its entry executes.
type mesh struct {
	manager *ssmmp.Manager
	users   string // where web listens, "host:port"
	stop    context.CancelFunc
	wg      sync.WaitGroup
}

func startMesh(ctx context.Context, e example, dir string, opt meshOptions) (_ *mesh, err error) {
	server, err := e.server(dir)
	if err != nil {
		return nil, err
	}
	node := loopback()
	transport := ssmmp.TCP{LocalAddr: node}
	free := netip.AddrPortFrom(node, 0).String() // at a port that nobody has
	ln, err := transport.Listen(ctx, free)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			ln.Close()
		}
	}()
	users, err := net.Listen("tcp", free)
	if err != nil {
		return nil, err
	}
	users.Close()
	g, err := ssmmp.NewGraph(graphName).
		Gateway("web", ssmmp.FixedPorts{"S0": users.Addr().(*net.TCPAddr).AddrPort().Port()}, ssmmp.Out{"P1"}).
		Storage(e.name, ssmmp.In{"S1"}).
		Edge("web", "P1", "S1", e.name).
		Build()
	if err != nil {
		return nil, err
	}
	manager, err := ssmmp.NewManager(ssmmp.ManagerConfig{
		Graphs: []*ssmmp.Graph{g}, Transport: transport, FirstInstance: 1, HealthPeriod: opt.healthPeriod, HealthMisses: opt.healthMisses,
		FirstPort: 20000, LastPort: 29999, // where the system looks for no port of a connection
	})
	if err != nil {
		return nil, err
	}
	agent, err := ssmmp.NewAgent(ssmmp.AgentConfig{
		Manager: ln.Addr().String(), Address: node, Listen: free,
		Repository: []ssmmp.RepositoryEntry{{Service: "web", Launcher: webLauncher(e.web)}, server},
	})
	if err != nil {
		return nil, err
	}
	m := &mesh{manager: manager, users: users.Addr().String()}
	ctx, m.stop = context.WithCancel(ctx)
	m.wg.Go(func() { manager.Serve(context.WithoutCancel(ctx), ln) })
	m.wg.Go(func() {
		agent.Run(ctx) // its instances end with it
		manager.Close()
	})
	if opt.out != nil {
		m.wg.Go(func() { m.narrate(opt.out) })
	}
	if err = manager.Deploy(ctx, graphName); err != nil {
		m.close()
	}
	return m, err
}

// loopback returns an address of this machine alone, on Linux one that hardly
// anybody else uses.
func loopback() netip.Addr {
	if runtime.GOOS == "linux" {
		return netip.AddrFrom4([4]byte{127, byte(1 + rand.N(250)), byte(rand.N(250)), 1})
	}
	return netip.AddrFrom4([4]byte{127, 0, 0, 1})
}

// webLauncher executes a gateway as a function of this process.
func webLauncher(web webFunc) ssmmp.Launcher {
	return ssmmp.FuncLauncher(func(ctx context.Context, l ssmmp.Launch) error {
		inst, err := ssmmp.JoinWith(ctx, ssmmp.JoinConfig{Launch: l})
		if err != nil {
			return err
		}
		defer inst.Close()
		defer context.AfterFunc(ctx, inst.Terminate)()
		handler, err := web(inst)
		if err != nil {
			return err
		}
		ln, err := inst.Listen("S0")
		if err != nil {
			return err
		}
		srv := &http.Server{Handler: handler}
		inst.OnDrain(func(ctx context.Context) { srv.Shutdown(ctx) })
		if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			return err
		}
		<-inst.Done()
		return nil
	})
}

// narrate tells what comes and goes, until the Manager is closed.
func (m *mesh) narrate(out io.Writer) {
	for ev := range m.manager.Events(context.Background(), 0) {
		switch ev.Kind {
		case ssmmp.EventInstanceRequested, ssmmp.EventInstanceReady, ssmmp.EventInstanceEnded:
			fmt.Fprintln(out, "mesh ", ev)
		}
	}
}

// visit is one request of a user. The gateway may be ready before it listens.
func (m *mesh) visit(ctx context.Context) (string, error) {
	for try := 0; ; try++ {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+m.users+"/", nil)
		if err != nil {
			return "", err
		}
		resp, err := http.DefaultClient.Do(req)
		if errors.Is(err, syscall.ECONNREFUSED) && try < 1000 {
			time.Sleep(5 * time.Millisecond)
			continue
		}
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err == nil && resp.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s: %s", resp.Status, body)
		}
		return strings.TrimSpace(string(body)), err
	}
}

// instances returns the instances of a service that run.
func (m *mesh) instances(service string) (found []ssmmp.InstanceStatus) {
	for _, i := range m.manager.Snapshot().Instances {
		if i.Service == service && i.State == ssmmp.InstanceRunning {
			found = append(found, i)
		}
	}
	return found
}

// sessions returns what the Manager knows of connections between services.
func (m *mesh) sessions() []ssmmp.SessionStatus { return m.manager.Snapshot().Sessions }

// close ends the gateway, then the server, and then the mesh.
func (m *mesh) close() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	m.manager.Undeploy(ctx, graphName)
	m.stop()
	m.wg.Wait()
}
