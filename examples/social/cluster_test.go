package main

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
)

var serviceNames = []string{
	"gateway", "register", "login", "posts", "last_10_posts", "file_transfer", "users_db", "posts_db", "hd",
}

// testSettings make a hash cheap.
var testSettings = settings{cost: hashCost{time: 1, memory: 64, threads: 1}, maxConns: 64}

// graphFile is social.json as the tests need it.
type graphFile struct {
	Name     string
	Services []struct {
		Name, Kind string
		Sockets    []struct {
			Name string
			Port int
		}
		Plugs []string
	}
	Edges []struct{ From, Plug, Socket, To string }
}

func readGraph(t *testing.T) graphFile {
	t.Helper()
	b, err := os.ReadFile("social.json")
	if err != nil {
		t.Fatal(err)
	}
	var g graphFile
	if err := json.Unmarshal(b, &g); err != nil {
		t.Fatal(err)
	}
	return g
}

// A cluster stands for the mesh: it connects the plugs and sockets of
// social.json in this process, by TCP over loopback or by net.Pipe.
type cluster struct {
	t       *testing.T
	dataDir string
	set     settings
	pipes   bool              // net.Pipe: no buffers but the services' own, and fit for synctest
	sockets map[string]string // socket of each plug
	// wrap, where it is not nil, stands between each dial and its caller.
	wrap func(plug string, conn net.Conn, err error) (net.Conn, error)

	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup

	mu        sync.Mutex
	listening map[string]*slot // by socket
}

// A slot is where the listener of a socket appears.
type slot struct {
	ln    net.Listener
	ready chan struct{}
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{
		t: t, dataDir: t.TempDir(), set: testSettings,
		sockets: map[string]string{}, listening: map[string]*slot{},
	}
	for _, e := range readGraph(t).Edges {
		c.sockets[e.Plug] = e.Socket
	}
	c.ctx, c.cancel = context.WithCancel(t.Context())
	t.Cleanup(c.stop)
	return c
}

// start runs services until the cluster stops.
func (c *cluster) start(names ...string) {
	for _, name := range names {
		c.running.Go(func() {
			if err := runServiceWith(c.ctx, name, c, c.dataDir, c.set); err != nil {
				c.t.Errorf("%s: %v", name, err)
			}
		})
	}
}

// fake serves each connection to a socket with f, in place of its service.
func (c *cluster) fake(socket string, f func(l *link)) {
	ln, err := c.Listen(socket)
	if err != nil {
		c.t.Fatal(err)
	}
	context.AfterFunc(c.ctx, func() { ln.Close() })
	c.running.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			c.running.Go(func() {
				l := newLink(c.ctx, conn)
				defer l.close()
				f(l)
			})
		}
	})
}

// stop ends the services and waits for them.
func (c *cluster) stop() {
	c.cancel()
	c.running.Wait()
}

func (c *cluster) slot(socket string) *slot {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.listening[socket]
	if s == nil {
		s = &slot{ready: make(chan struct{})}
		c.listening[socket] = s
	}
	return s
}

func (c *cluster) Listen(socket string) (net.Listener, error) {
	s := c.slot(socket)
	if c.pipes {
		s.ln = newPipeListener()
	} else {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		s.ln = ln
	}
	close(s.ready)
	return s.ln, nil
}

func (c *cluster) Dial(ctx context.Context, plug string) (net.Conn, error) {
	conn, err := c.dialSocket(ctx, c.sockets[plug])
	if c.wrap != nil {
		return c.wrap(plug, conn, err)
	}
	return conn, err
}

func (c *cluster) dialSocket(ctx context.Context, socket string) (net.Conn, error) {
	s := c.slot(socket)
	select {
	case <-s.ready:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if p, ok := s.ln.(*pipeListener); ok {
		return p.dial(ctx)
	}
	return new(net.Dialer).DialContext(ctx, "tcp", s.ln.Addr().String())
}

// connect returns a user's connection to the gateway.
func (c *cluster) connect() *client {
	c.t.Helper()
	conn, err := c.dialSocket(c.ctx, "S0")
	if err != nil {
		c.t.Fatal(err)
	}
	return newClient(c.ctx, conn)
}

// enter returns a user's connection that has registered and logged in.
func (c *cluster) enter(user string) *client {
	c.t.Helper()
	u := c.connect()
	check(c.t, u.register(user, "secret of "+user))
	check(c.t, u.login(user, "secret of "+user))
	return u
}

// stored returns the names in the file store.
func (c *cluster) stored() []string {
	c.t.Helper()
	entries, err := os.ReadDir(filepath.Join(c.dataDir, "files"))
	if err != nil {
		c.t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// A pipeListener is a net.Listener whose connections are net.Pipes.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (p *pipeListener) dial(ctx context.Context) (net.Conn, error) {
	near, far := net.Pipe()
	select {
	case p.conns <- far:
		return near, nil
	case <-p.closed:
		return nil, errors.New("connection refused")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (p *pipeListener) Accept() (net.Conn, error) {
	select {
	case conn := <-p.conns:
		return conn, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipeListener) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

func (p *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "pipe"} }

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wantStatus checks that err is an answer with that status.
func wantStatus(t *testing.T, err error, status int) {
	t.Helper()
	var e *statusError
	if !errors.As(err, &e) || e.status != status {
		t.Fatalf("got %v, want status %d", err, status)
	}
}

// The graph names the services that this program has, each socket where its
// service listens, and one edge for each plug.
func TestGraph(t *testing.T) {
	t.Parallel()
	g := readGraph(t)
	listens := map[string]string{} // service of each socket
	plugs := map[string]string{}   // service of each plug
	var names []string
	for _, s := range g.Services {
		names = append(names, s.Name)
		svc, err := newService(s.Name, t.TempDir(), testSettings)
		check(t, err)
		if svc.close != nil {
			check(t, svc.close())
		}
		if (svc.close != nil) != (s.Kind == "storage") {
			t.Errorf("%s is of kind %s", s.Name, s.Kind)
		}
		if len(s.Sockets) != 1 || s.Sockets[0].Name != svc.socket {
			t.Errorf("%s has sockets %v and listens on %s", s.Name, s.Sockets, svc.socket)
		}
		if fixed := s.Sockets[0].Port == 8080; fixed != (s.Kind == "gateway") {
			t.Errorf("%s of kind %s has port %d", s.Name, s.Kind, s.Sockets[0].Port)
		}
		listens[svc.socket] = s.Name
		for _, p := range s.Plugs {
			plugs[p] = s.Name
		}
	}
	if g.Name != "social" || !slices.Equal(names, serviceNames) {
		t.Errorf("graph %s has services %v", g.Name, names)
	}
	for _, e := range g.Edges {
		if plugs[e.Plug] != e.From || listens[e.Socket] != e.To {
			t.Errorf("edge %v leads from a plug of %q to a socket of %q", e, plugs[e.Plug], listens[e.Socket])
		}
		delete(plugs, e.Plug)
	}
	if len(plugs) != 0 {
		t.Errorf("plugs without an edge: %v", plugs)
	}
}

func TestUnknownService(t *testing.T) {
	t.Parallel()
	if err := runService(t.Context(), "gate", nil, t.TempDir()); err == nil {
		t.Error("a service that there is not runs")
	}
}

func TestStorageNeedsItsDirectory(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	check(t, os.WriteFile(file, nil, 0o600))
	for _, name := range []string{"users_db", "posts_db", "hd"} {
		if _, err := newService(name, file, testSettings); err == nil {
			t.Errorf("%s keeps its data inside a file", name)
		}
	}
}
