package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"
)

// A mesh is what a service needs of the mesh that it has joined.
type mesh interface {
	// Listen announces on one of the service's sockets.
	Listen(socket string) (net.Listener, error)
	// Dial opens a session through one of the service's plugs. It tries
	// another destination itself where one cannot be reached.
	Dial(ctx context.Context, plug string) (net.Conn, error)
}

// settings are what tests choose otherwise than users do.
type settings struct {
	cost     hashCost // of one password
	maxConns int      // connections that one instance serves at once
}

var defaultSettings = settings{
	cost:     hashCost{time: 2, memory: 19 << 10, threads: 1},
	maxConns: 1024,
}

// A handler serves one request. It answers the request itself; its error ends
// the connection.
type handler func(ctx context.Context, c *conversation, req message) error

// A service is one instance of one of the nine services.
type service struct {
	socket   string             // where it listens
	handlers map[string]handler // by type of request
	close    func() error       // what it holds open; nil for the stateless ones
}

// newService returns an instance of the named service. Storage services keep
// their data in dataDir.
func newService(name, dataDir string, set settings) (*service, error) {
	switch name {
	case "gateway":
		return newGateway(), nil
	case "register":
		return newRegister(set.cost), nil
	case "login":
		return newLogin(set.cost), nil
	case "posts":
		return newPosts(), nil
	case "last_10_posts":
		return newLast10Posts(), nil
	case "file_transfer":
		return newFileTransfer(), nil
	case "users_db":
		return newUsersDB(dataDir)
	case "posts_db":
		return newPostsDB(dataDir)
	case "hd":
		return newHD(dataDir)
	default:
		return nil, fmt.Errorf("there is no service %q", name)
	}
}

// runService runs one instance of the named service until ctx ends or its
// listener is closed. Requests that are then under way have graceTimeout to
// end. Storage services keep their data in dataDir.
func runService(ctx context.Context, name string, m mesh, dataDir string) error {
	return runServiceWith(ctx, name, m, dataDir, defaultSettings)
}

func runServiceWith(ctx context.Context, name string, m mesh, dataDir string, set settings) (err error) {
	s, err := newService(name, dataDir, set)
	if err != nil {
		return err
	}
	if s.close != nil {
		defer func() { err = errors.Join(err, s.close()) }()
	}
	ln, err := m.Listen(s.socket)
	if err != nil {
		return fmt.Errorf("%s: listen on %s: %w", name, s.socket, err)
	}
	if err := s.serve(ctx, ln, m, set.maxConns); err != nil {
		return fmt.Errorf("%s: accept on %s: %w", name, s.socket, err)
	}
	return nil
}

// serve accepts connections until ctx ends or ln is closed, and returns when
// every one that it accepted is closed.
func (s *service) serve(ctx context.Context, ln net.Listener, m mesh, maxConns int) error {
	accepting, stop := context.WithCancel(ctx)
	defer context.AfterFunc(accepting, func() { ln.Close() })()
	// Requests under way may outlive ctx, by the grace.
	working, abandon := context.WithCancel(context.WithoutCancel(ctx))
	var conversations sync.WaitGroup
	defer func() {
		stop()
		ln.Close()
		defer time.AfterFunc(graceTimeout, abandon).Stop()
		conversations.Wait()
		abandon()
	}()

	slots := make(chan struct{}, maxConns)
	for {
		conn, err := accept(accepting, ln)
		if conn == nil {
			return err
		}
		select {
		case slots <- struct{}{}:
		default:
			refuse(conn)
			continue
		}
		conversations.Go(func() {
			defer func() { <-slots }()
			c := &conversation{service: s, mesh: m, user: newLink(working, conn), sessions: map[string]*link{}}
			defer context.AfterFunc(accepting, c.finish)()
			c.run(working)
		})
	}
}

// accept returns the next connection, or none where the listener is closed. It
// goes on after passing errors, such as a lack of file descriptors, but not
// for ever.
func accept(ctx context.Context, ln net.Listener) (net.Conn, error) {
	const tries = 10
	for wait, n := 5*time.Millisecond, 1; ; wait, n = 2*wait, n+1 {
		conn, err := ln.Accept()
		if err == nil {
			return conn, nil
		}
		if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			return nil, nil
		}
		if n == tries {
			return nil, err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, nil
		}
	}
}

// refuse tells a peer that there is no room for it.
func refuse(conn net.Conn) {
	defer conn.Close()
	b, err := appendMessage(nil, message{
		kind: errorResponse, status: statusUnavailable, lines: []string{"too many connections"},
	})
	if err == nil && conn.SetWriteDeadline(time.Now().Add(lingerTimeout)) == nil {
		conn.Write(b)
	}
}

// A conversation is one connection that a service accepted, with the sessions
// that it opened to serve it. Nothing of it outlives the connection.
type conversation struct {
	service  *service
	mesh     mesh
	user     *link            // the accepted connection: of a user, or of the service before this one
	sessions map[string]*link // open sessions, by plug
	name     string           // the gateway's: who has logged in, empty for nobody

	mu        sync.Mutex
	idle      bool // waiting for a request
	finishing bool // take no further request
}

// run serves requests, one after the other, until the connection ends.
func (c *conversation) run(ctx context.Context) {
	defer func() {
		c.user.close()
		for _, s := range c.sessions {
			s.close()
		}
	}()
	for c.startIdle() {
		req, err := c.user.receive(idleTimeout)
		c.endIdle()
		if err == nil {
			err = c.dispatch(ctx, req)
		}
		var wrong *protocolError
		if errors.As(err, &wrong) {
			m := message{kind: errorResponse, id: wrong.ID, status: wrong.Status,
				lines: []string{clip(wrong.Error(), maxReason)}}
			if c.user.send(m) == nil {
				c.user.linger()
			}
		}
		if err != nil {
			return
		}
	}
}

// startIdle reports whether a further request is to be waited for.
func (c *conversation) startIdle() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.idle = true
	return !c.finishing
}

func (c *conversation) endIdle() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.idle = false
}

// finish ends the conversation, after the request under way if there is one.
func (c *conversation) finish() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.finishing = true
	if c.idle {
		c.user.close()
	}
}

func (c *conversation) dispatch(ctx context.Context, req message) error {
	if h := c.service.handlers[req.kind]; h != nil {
		return h(ctx, c, req)
	}
	if !isRequest(req.kind) {
		return req.wrong("no request, and part of no stream")
	}
	return c.user.send(message{kind: errorResponse, id: req.id, status: statusBadRequest,
		lines: []string{"unknown request " + req.kind}})
}

// fail answers a request with an error.
func (c *conversation) fail(req message, err error) error {
	var e *statusError
	if !errors.As(err, &e) {
		slog.Error("request failed", "type", req.kind, "error", err)
		e = &statusError{statusInternal, "internal error"}
	}
	return c.user.send(req.response(e.status, clip(e.reason, maxReason)))
}

// unary makes a handler of a function that returns the lines of a success.
func unary(f func(ctx context.Context, c *conversation, req message) ([]string, error)) handler {
	return func(ctx context.Context, c *conversation, req message) error {
		lines, err := f(ctx, c, req)
		if err != nil {
			return c.fail(req, err)
		}
		return c.user.send(req.response(statusOK, lines...))
	}
}

// call sends a request through a plug and returns the lines of its success.
func (c *conversation) call(ctx context.Context, plug string, req message) ([]string, error) {
	m, err := c.open(ctx, plug, req)
	if err != nil {
		return nil, err
	}
	if m.status != statusOK {
		return nil, &statusError{m.status, reasonOf(m)}
	}
	return m.lines, nil
}

// open sends a request through a plug and returns the first response to it.
// Every request may arrive twice without acting twice, so one that was lost
// with its session is sent again, through a new session: the peer may have
// ended while this conversation was idle, and for a moment longer a dying one
// may still take connections. An error is a *statusError.
func (c *conversation) open(ctx context.Context, plug string, req message) (message, error) {
	const tries = 4
	for n := 1; ; n++ {
		if n > 2 {
			select {
			case <-time.After(time.Duration(n) * 10 * time.Millisecond):
			case <-ctx.Done():
			}
		}
		s, err := c.session(ctx, plug)
		if err != nil {
			return message{}, err
		}
		m, err := s.ask(req, req, answerTimeout)
		if err == nil {
			return m, nil
		}
		if e := c.broken(plug, err); n == tries || e.status != statusBadGateway || ctx.Err() != nil {
			return message{}, e
		}
	}
}

// session returns the open session of a plug, or opens it.
func (c *conversation) session(ctx context.Context, plug string) (*link, error) {
	if s := c.sessions[plug]; s != nil {
		return s, nil
	}
	dialing, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := c.mesh.Dial(dialing, plug)
	if err != nil {
		return nil, &statusError{statusUnavailable, fmt.Sprintf("no session through %s: %v", plug, err)}
	}
	s := newLink(ctx, conn)
	c.sessions[plug] = s
	return s, nil
}

// broken closes the session of a plug, after err, and returns how that is
// answered.
func (c *conversation) broken(plug string, err error) *statusError {
	c.sessions[plug].close()
	delete(c.sessions, plug)
	var e *statusError
	switch {
	case errors.As(err, &e):
		return e
	case isTimeout(err):
		return &statusError{statusTimeout, fmt.Sprintf("no answer through %s in time", plug)}
	default:
		return &statusError{statusBadGateway, fmt.Sprintf("session through %s broke: %v", plug, err)}
	}
}
