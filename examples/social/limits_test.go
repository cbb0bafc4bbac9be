package main

import (
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// counter counts what is read through it.
type counter struct {
	io.Reader
	n atomic.Int64
}

func (c *counter) Read(b []byte) (int, error) {
	n, err := c.Reader.Read(b)
	c.n.Add(int64(n))
	return n, err
}

// With a file store that does not read, an upload stands still: between it and
// the user there are the buffers of the links, and nothing more.
func TestUploadIsPushedBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		c.pipes = true
		release := make(chan struct{})
		c.fake("S2", okay)
		c.fake("S8", func(l *link) {
			req, err := l.receive(idleTimeout)
			if err != nil || l.send(req.response(statusContinue)) != nil {
				return
			}
			<-release
			for {
				m, err := l.receive(ioTimeout)
				if err != nil {
					return
				}
				if m.kind == "send_file_end" {
					l.send(req.response(statusOK, m.lines[0]))
				}
			}
		})
		c.start("gateway", "file_transfer")
		u := c.connect()
		check(t, u.login("ann", "x"))
		const size = 8 << 20
		r := &counter{Reader: random(size)}
		done := make(chan error)
		go func() {
			_, err := u.sendFile("f", r, size)
			done <- err
		}()
		synctest.Wait() // until everything waits for the file store
		// Two services, each with two buffers of 16 KiB and a message between
		// them, and the client's buffer and chunk.
		const bound = 112 << 10
		if n := r.n.Load(); n == 0 || n > bound {
			t.Errorf("%d bytes left the user before any was taken, want at most %d", n, bound)
		}
		close(release)
		check(t, <-done)
		if n := r.n.Load(); n != size {
			t.Errorf("%d bytes were sent of %d", n, size)
		}
		u.close()
		c.stop()
	})
}

// Every wait ends.
func TestTimeouts(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		run    func(c *cluster, u *client) error
		status int // 0: the connection is closed
		after  time.Duration
	}{
		{"idle user", func(_ *cluster, u *client) error {
			_, err := u.l.receive(2 * idleTimeout)
			return err
		}, 0, idleTimeout},
		{"half a request", func(_ *cluster, u *client) error {
			io.WriteString(u.l.conn, "Type: login_request\n")
			_, err := u.l.receive(2 * idleTimeout)
			return err
		}, 0, idleTimeout},
		{"no answer", func(_ *cluster, u *client) error {
			_, err := u.last10()
			return err
		}, statusTimeout, answerTimeout},
		{"no session", func(_ *cluster, u *client) error {
			return u.register("ann", "x")
		}, statusUnavailable, dialTimeout},
		{"user stops inside a file", func(_ *cluster, u *client) error {
			check := u.login("ann", "x")
			req := u.request("send_file_request", "f", "10")
			_, err := u.ask(req, req, statusContinue)
			if err := errors.Join(check, err); err != nil {
				return err
			}
			_, err = u.l.receive(2 * idleTimeout)
			return err
		}, 0, ioTimeout},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t)
				c.pipes = true
				c.fake("S2", okay)
				c.fake("S4", func(l *link) {
					l.receive(idleTimeout)
					<-c.ctx.Done()
				})
				c.fake("S5", func(l *link) {
					if req, err := l.receive(idleTimeout); err == nil {
						l.send(req.response(statusContinue))
						l.receive(2 * idleTimeout)
					}
				})
				c.start("gateway")
				u := c.connect()
				start := time.Now()
				err := tt.run(c, u)
				if took := time.Since(start); took != tt.after {
					t.Errorf("took %v, want %v", took, tt.after)
				}
				if tt.status != 0 {
					wantStatus(t, err, tt.status)
				} else if !errors.Is(err, io.EOF) {
					t.Errorf("got %v, want the end of the connection", err)
				}
				u.close()
				c.stop()
			})
		})
	}
}

// When its service ends, a request under way has the grace to end in, and a
// connection without one ends at once.
func TestShutdown(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		hangs bool
		after time.Duration
	}{
		{"request ends", false, time.Second},
		{"request hangs", true, graceTimeout},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t)
				c.pipes = true
				c.fake("S4", func(l *link) {
					req, err := l.receive(idleTimeout)
					if err != nil {
						return
					}
					if tt.hangs {
						<-c.ctx.Done()
						return
					}
					time.Sleep(time.Second)
					l.send(req.response(statusOK))
				})
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan error)
				go func() { ended <- runServiceWith(ctx, "gateway", c, c.dataDir, c.set) }()
				idle, busy := c.connect(), c.connect()
				answered := make(chan error, 1)
				go func() {
					_, err := busy.last10()
					answered <- err
				}()
				synctest.Wait()
				start := time.Now()
				cancel()
				if _, err := idle.l.receive(idleTimeout); err != io.EOF || time.Since(start) != 0 {
					t.Errorf("an idle connection ends after %v with %v", time.Since(start), err)
				}
				if err := <-ended; err != nil {
					t.Error(err)
				}
				if took := time.Since(start); took != tt.after {
					t.Errorf("ended after %v, want %v", took, tt.after)
				}
				if err := <-answered; (err != nil) != tt.hangs {
					t.Errorf("the request under way: %v", err)
				}
				idle.close()
				busy.close()
				c.stop()
			})
		})
	}
}

// A service whose listener is closed ends as if its context did.
func TestListenerClosed(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.start("hd")
	s := c.slot("S8")
	<-s.ready
	conn, err := c.dialSocket(c.ctx, "S8")
	check(t, err)
	defer conn.Close()
	s.ln.Close()
	c.running.Wait()
	if c.ctx.Err() != nil {
		t.Error("the service ended because of its context")
	}
}

// failing is a listener that cannot accept, at first or for ever.
type failing struct {
	net.Listener
	left int
}

func (f *failing) Accept() (net.Conn, error) {
	if f.left--; f.left >= 0 {
		return nil, errors.New("too many open files")
	}
	return nil, net.ErrClosed
}

func TestAcceptGoesOnAfterErrors(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		if conn, err := accept(t.Context(), &failing{left: 9}); conn != nil || err != nil {
			t.Errorf("accept after 9 errors: %v, %v", conn, err)
		}
		if conn, err := accept(t.Context(), &failing{left: 10}); conn != nil || err == nil {
			t.Errorf("accept after 10 errors: %v, %v", conn, err)
		}
	})
}
