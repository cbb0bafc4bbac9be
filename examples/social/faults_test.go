package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// okay answers every request with 200, and logs everybody in.
func okay(l *link) {
	for {
		req, err := l.receive(idleTimeout)
		if err != nil || l.send(req.response(statusOK)) != nil {
			return
		}
	}
}

// raw sends bytes to the gateway and returns all that comes back until it
// closes the connection.
func raw(c *cluster, text string) []message {
	c.t.Helper()
	l := c.connect().l
	defer l.close()
	go io.WriteString(l.conn, text)
	var got []message
	for {
		m, err := l.receive(clientTimeout)
		if err == io.EOF {
			return got
		}
		check(c.t, err)
		got = append(got, m)
	}
}

func TestGarbageIsAnswered(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.start("gateway", "login", "users_db")
	const login = "Type: login_request\nMessage_id: 8\nLine_1: ann\nLine_2: x\n\n"
	for _, tt := range []struct {
		name, text string
		id         int64
		status     int
		reason     string
	}{
		{"http", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", 0, 400, `line 1 "Type"`},
		{"binary", "\x16\x03\x01\x02\x00\x01\n", 0, 400, `line 1 "Type"`},
		{"bad line", "Type: login_request\nMessage_id: 9\nLine_1 ann\n\n", 9, 400, `line 3 "Line_1"`},
		{"long line", "Type: login_request\nMessage_id: 9\nLine_1: " + strings.Repeat("x", 1<<20), 9, 413, `line 3 "Line_1"`},
		{"many lines", "Type: login_request\nMessage_id: 9\n" + numbered(10_000), 9, 413, `line 43 "Line_41"`},
		{"a response", "Type: login_response\nMessage_id: 9\nStatus: 200\n\n", 9, 400, `"login_response"`},
		{"chunk of nothing", "Type: send_file_chunk\nMessage_id: 9\nLine_1: AAAA\n\n", 9, 400, `"send_file_chunk"`},
	} {
		got := raw(c, login+tt.text)
		if len(got) != 2 || got[0].id != 8 || got[0].status != statusUnauthorized {
			t.Errorf("%s: want an answer to the request before it, got %v", tt.name, got)
			continue
		}
		if m := got[1]; m.kind != errorResponse || m.id != tt.id || m.status != tt.status || !strings.Contains(reasonOf(m), tt.reason) {
			t.Errorf("%s: answered %v", tt.name, m)
		}
	}
}

func TestBadFileNames(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.start(serviceNames...)
	check(t, os.WriteFile(filepath.Join(c.dataDir, "x"), nil, 0o600))
	u := c.enter("ann")
	for _, name := range []string{
		"", ".", "..", "../x", "a/b", "/x", `a\b`, `C:\x`, "C:x", ".hidden", uploadPrefix + "x", "x\x00", "x\n", "x.", "x ", " x",
		"a\u202eb", strings.Repeat("x", maxFileName+1), "a*", "a?",
	} {
		_, err := u.sendFile(name, strings.NewReader("x"), 1)
		wantStatus(t, err, statusBadRequest)
		_, err = u.getFile(name, io.Discard)
		wantStatus(t, err, statusBadRequest)
	}
	if names := c.stored(); len(names) != 0 {
		t.Errorf("stored %v", names)
	}
	long := strings.Repeat("é", maxFileName/2)
	_, err := u.sendFile(long, strings.NewReader("x"), 1)
	check(t, err)
	if names := c.stored(); !slices.Equal(names, []string{long}) {
		t.Errorf("stored %v", names)
	}
	// What is no file cannot be got, and a link does not lead out.
	files := filepath.Join(c.dataDir, "files")
	check(t, os.Mkdir(filepath.Join(files, "dir"), 0o700))
	_, err = u.getFile("dir", io.Discard)
	wantStatus(t, err, statusNotFound)
	if os.Symlink("../users.db", filepath.Join(files, "link")) == nil {
		_, err = u.getFile("link", io.Discard)
		wantStatus(t, err, statusInternal)
	}
}

// What is not complete, or not what was declared, leaves nothing, and an older
// file of that name stays.
func TestBrokenUploadsLeaveNothing(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.start(serviceNames...)
	u := c.enter("ann")
	_, err := u.sendFile("f", strings.NewReader("first"), 5)
	check(t, err)

	begin := func(u *client, size string) message {
		req := u.request("send_file_request", "f", size)
		_, err := u.ask(req, req, statusContinue)
		check(t, err)
		check(t, u.l.send(chunk("send_file_chunk", req.id, []byte("12345"))))
		return req
	}
	end := func(u *client, req message, lines ...string) error {
		_, err := u.ask(message{kind: "send_file_end", id: req.id, lines: lines}, req, statusOK)
		return err
	}
	// The connection goes on after these.
	const sum = "5994471abb01112afcc18159f6cc74b4f511b99806da59b3caf5a9c173cacfc5" // of 12345
	wantStatus(t, end(u, begin(u, "6"), sum), statusBadRequest)
	wantStatus(t, end(u, begin(u, "5"), sum[1:]+"0"), statusBadRequest)
	_, err = u.sendFile("f", strings.NewReader(""), maxFile+1)
	wantStatus(t, err, statusTooLarge)

	// So it does where only hd finds out what is wrong.
	req := begin(u, "1000")
	check(t, u.l.queue(message{kind: "send_file_chunk", id: req.id, lines: []string{"A=AA"}}))
	wantStatus(t, end(u, req, sum), statusBadRequest)

	// It does not after these.
	for _, last := range []message{
		chunk("send_file_chunk", 0, []byte("6")),
		{kind: "send_file_chunk", lines: []string{"=*="}},
		{kind: "send_file_end"},
		{kind: "send_file_end", id: 77, lines: []string{sum}},
		{kind: "login_request", lines: []string{"ann", "x"}},
		{}, // nothing: the connection breaks
	} {
		u := c.connect()
		check(t, u.login("ann", "secret of ann"))
		req := begin(u, "5")
		if last.kind == "" {
			u.close()
			continue
		}
		if last.id == 0 {
			last.id = req.id
		}
		_, err := u.ask(last, req, statusOK)
		wantStatus(t, err, statusBadRequest)
	}
	var b strings.Builder
	if _, err := u.getFile("f", &b); err != nil || b.String() != "first" {
		t.Errorf("getFile = %q, %v", b.String(), err)
	}
	c.stop()
	if names := c.stored(); !slices.Equal(names, []string{"f"}) {
		t.Errorf("stored %v", names)
	}
}

// A new instance of hd removes what one that was killed left.
func TestLeftUploadsAreRemoved(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	files := filepath.Join(c.dataDir, "files")
	check(t, os.Mkdir(files, 0o700))
	for _, name := range []string{uploadPrefix + "1", uploadPrefix + "2", "kept"} {
		check(t, os.WriteFile(filepath.Join(files, name), []byte("x"), 0o600))
	}
	s, err := newHD(c.dataDir)
	check(t, err)
	check(t, s.close())
	if names := c.stored(); !slices.Equal(names, []string{"kept"}) {
		t.Errorf("stored %v", names)
	}
}

// A lost conn is one whose peer acts on what it is sent, and whose answer is
// lost.
type lostConn struct{ net.Conn }

func (c lostConn) Read(b []byte) (int, error) {
	if _, err := c.Conn.Read(b); err != nil {
		return 0, err
	}
	return 0, io.ErrUnexpectedEOF
}

// loseFirst makes the first session through each of the plugs lose its answer.
func loseFirst(plugs ...string) func(string, net.Conn, error) (net.Conn, error) {
	var mu sync.Mutex
	return func(plug string, conn net.Conn, err error) (net.Conn, error) {
		mu.Lock()
		defer mu.Unlock()
		i := slices.Index(plugs, plug)
		if i < 0 || err != nil {
			return conn, err
		}
		plugs = slices.Delete(plugs, i, i+1)
		return lostConn{conn}, nil
	}
}

// A request whose session breaks is sent again, and acts once.
func TestRequestsAreRetriedAndActOnce(t *testing.T) {
	t.Parallel()
	for _, plug := range []string{"P1", "P2", "P3", "P4", "P5", "P6", "P7", "P8", "P9", "P10"} {
		t.Run(plug, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t)
			c.wrap = loseFirst(plug)
			c.start(serviceNames...)
			u := c.enter("ann")
			check(t, u.sendPost("ann", "once"))
			posts, err := u.last10()
			if err != nil || len(posts) != 1 {
				t.Errorf("last10 = %v, %v", posts, err)
			}
			_, err = u.sendFile("f", strings.NewReader("content"), 7)
			check(t, err)
			_, err = u.getFile("f", io.Discard)
			check(t, err)
		})
	}
}

// Sessions are kept for the next request of a connection, and replaced when
// they have broken meanwhile.
func TestSessionsAreReusedAndReplaced(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	var opened atomic.Int32
	c.fake("S4", func(l *link) {
		opened.Add(1)
		for range 3 { // then the instance ends
			req, err := l.receive(idleTimeout)
			if err != nil || l.send(req.response(statusOK)) != nil {
				return
			}
		}
	})
	c.start("gateway")
	u := c.connect()
	for range 6 {
		_, err := u.last10()
		check(t, err)
	}
	if n := opened.Load(); n != 2 {
		t.Errorf("%d sessions for 6 requests, want 2", n)
	}
}

func TestDialErrorIs503(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.wrap = func(string, net.Conn, error) (net.Conn, error) {
		return nil, errors.New("no node has rööm\n")
	}
	for socket := range map[string]bool{"S1": true, "S2": true, "S3": true, "S4": true, "S5": true} {
		c.fake(socket, okay)
	}
	c.start("gateway")
	u := c.connect()
	_, err := u.last10()
	wantStatus(t, err, statusUnavailable)
	if !strings.Contains(err.Error(), "P4: no node has rööm") {
		t.Errorf("the answer does not hold the error: %v", err)
	}
	wantStatus(t, u.login("ann", "x"), statusUnavailable)
}

// A session that breaks inside a stream is an answer of 502, and the user's
// connection goes on.
func TestBackendBreaksInsideStream(t *testing.T) {
	t.Parallel()
	for _, chunks := range []int{0, 1, 20} {
		t.Run(fmt.Sprint(chunks, " chunks"), func(t *testing.T) {
			t.Parallel()
			c := newCluster(t)
			var requests atomic.Int32
			c.fake("S2", okay)
			c.fake("S8", func(l *link) {
				req, err := l.receive(idleTimeout)
				if err != nil {
					return
				}
				requests.Add(1)
				l.send(req.response(statusContinue, "1000000"))
				for range chunks {
					if req.kind == "send_file_request" {
						l.receive(ioTimeout)
					} else {
						l.send(chunk("get_file_chunk", req.id, make([]byte, chunkSize)))
					}
				}
			})
			c.start("gateway", "file_transfer")
			u := c.connect()
			check(t, u.login("ann", "x"))
			_, err := u.sendFile("f", random(1_000_000), 1_000_000)
			wantStatus(t, err, statusBadGateway)
			_, err = u.getFile("f", io.Discard)
			wantStatus(t, err, statusBadGateway)
			check(t, u.login("ann", "x"))
			if n := requests.Load(); n != 2 {
				t.Errorf("%d streams were begun, want 2: none is begun again", n)
			}
		})
	}
}

// A peer inside the mesh that does not keep to the protocol is a broken one.
func TestBackendTalksNonsense(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]string{
		"garbage":        "hello\n\n",
		"other id":       "Type: retrieve_last_10_posts_response\nMessage_id: 77\nStatus: 200\n\n",
		"other type":     "Type: login_response\nMessage_id: 1\nStatus: 200\n\n",
		"a request":      "Type: retrieve_last_10_posts_request\nMessage_id: 1\n\n",
		"an open line":   strings.Repeat("x", 2*linkBuffer),
		"half an answer": "Type: retrieve_last_10_posts_response\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t)
			c.fake("S4", func(l *link) {
				if _, err := l.receive(idleTimeout); err == nil {
					io.WriteString(l.conn, answer)
				}
			})
			c.start("gateway")
			u := c.connect()
			for range 2 {
				_, err := u.last10()
				wantStatus(t, err, statusBadGateway)
			}
		})
	}
}

func TestTooManyConnections(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.set.maxConns = 2
	c.fake("S4", okay)
	c.start("gateway")
	first, second := c.connect(), c.connect()
	for _, u := range []*client{first, second} {
		_, err := u.last10()
		check(t, err)
	}
	m, err := c.connect().l.receive(clientTimeout)
	if err != nil || m.kind != errorResponse || m.status != statusUnavailable {
		t.Errorf("a third connection gets %v, %v", m, err)
	}
	_, err = first.last10()
	check(t, err)
}

// A login service that takes everything does not make the gateway do so.
func TestLoginWithoutName(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.fake("S2", okay)
	c.start("gateway")
	u := c.connect()
	for _, lines := range [][]string{nil, {"ann"}, {"ann", "x", "y"}} {
		_, err := u.do("login_request", lines...)
		wantStatus(t, err, statusBadRequest)
	}
	check(t, u.login("ann", "x"))
}
