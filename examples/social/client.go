package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"
)

// A post is one post as the gateway returns it.
type post struct {
	author string
	time   time.Time
	text   string
}

// A client is one user's connection to the gateway. Its methods are for one
// goroutine at a time. An answer other than success is a *statusError; after
// any other error the connection is closed.
type client struct {
	l      *link
	nextID int64
}

// dial connects to a gateway at addr, "host:port". The connection is closed
// when ctx ends.
func dial(ctx context.Context, addr string) (*client, error) {
	dialing, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(dialing, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return newClient(ctx, conn), nil
}

func newClient(ctx context.Context, conn net.Conn) *client {
	return &client{l: newLink(ctx, conn), nextID: 1}
}

func (c *client) close() { c.l.close() }

// register adds a user.
func (c *client) register(user, password string) error {
	_, err := c.do("registration_request", user, password)
	return err
}

// login logs the connection in. Posting and file transfer need that.
func (c *client) login(user, password string) error {
	_, err := c.do("login_request", user, password)
	return err
}

// sendPost adds a post. The author is who has logged in.
func (c *client) sendPost(author, text string) error {
	_, err := c.do("send_post_request", author, text)
	return err
}

// last10 returns the last ten posts, the newest first.
func (c *client) last10() ([]post, error) {
	lines, err := c.do("retrieve_last_10_posts_request")
	if err != nil {
		return nil, err
	}
	var posts []post
	for ; len(lines) >= 3; lines = lines[3:] {
		at, err := time.Parse(time.RFC3339, lines[1])
		if err != nil {
			return nil, c.end(err)
		}
		posts = append(posts, post{author: lines[0], time: at, text: lines[2]})
	}
	return posts, nil
}

// sendFile sends size bytes of r, to be kept under a name, and returns their
// SHA-256 in hexadecimal.
func (c *client) sendFile(name string, r io.Reader, size int64) (string, error) {
	req := c.request("send_file_request", name, strconv.FormatInt(size, 10))
	if _, err := c.ask(req, req, statusContinue); err != nil {
		return "", err
	}
	sum := sha256.New()
	buf := make([]byte, chunkSize)
	for left := size; left > 0; {
		data := buf[:min(left, chunkSize)]
		if _, err := io.ReadFull(r, data); err != nil {
			return "", c.end(fmt.Errorf("read %s: %w", name, err))
		}
		sum.Write(data)
		if err := c.l.queue(chunk("send_file_chunk", req.id, data)); err != nil {
			return "", c.end(err)
		}
		left -= int64(len(data))
	}
	end := message{kind: "send_file_end", id: req.id, lines: []string{hexSum(sum)}}
	_, err := c.ask(end, req, statusOK)
	return hexSum(sum), err
}

// getFile writes the file of that name to w, and returns its size in bytes.
// What was written is the file only where there is no error.
func (c *client) getFile(name string, w io.Writer) (int64, error) {
	req := c.request("get_file_request", name)
	m, err := c.ask(req, req, statusContinue)
	if err != nil {
		return 0, err
	}
	if len(m.lines) != 1 {
		return 0, c.end(m.wrong("want exactly Line_1"))
	}
	size, err := parseSize(m.lines[0])
	if err != nil {
		return 0, c.end(err)
	}
	sum := sha256.New()
	both := io.MultiWriter(w, sum)
	for got := int64(0); ; {
		m, err := c.l.receive(ioTimeout)
		if err != nil {
			return 0, c.end(err)
		}
		more, err := inDownload(m, req)
		if err != nil {
			return 0, c.end(err)
		}
		if !more {
			if m.status != statusOK {
				return 0, &statusError{m.status, reasonOf(m)}
			}
			if got != size || len(m.lines) != 1 || m.lines[0] != hexSum(sum) {
				return 0, c.end(fmt.Errorf("%s arrived damaged: %d bytes of %d", name, got, size))
			}
			return size, nil
		}
		data, err := chunkBytes(m)
		if err != nil {
			return 0, c.end(err)
		}
		if got += int64(len(data)); got > size {
			return 0, c.end(m.wrong("exceeds the declared size"))
		}
		if _, err := both.Write(data); err != nil {
			return 0, c.end(err)
		}
	}
}

func (c *client) request(kind string, lines ...string) message {
	m := message{kind: kind, id: c.nextID, lines: lines}
	c.nextID++
	return m
}

// do sends a request and returns the lines of its success.
func (c *client) do(kind string, lines ...string) ([]string, error) {
	req := c.request(kind, lines...)
	m, err := c.ask(req, req, statusOK)
	return m.lines, err
}

// ask sends a message and returns the response to req that it brings about,
// which must have the given status.
func (c *client) ask(m, req message, status int) (message, error) {
	m, err := c.l.ask(m, req, clientTimeout)
	if err != nil {
		return message{}, c.end(err)
	}
	if m.status < statusBadRequest && m.status != status {
		return message{}, c.end(m.wrong(fmt.Sprintf("status %d, want %d", m.status, status)))
	}
	if m.status != status {
		return message{}, &statusError{m.status, reasonOf(m)}
	}
	return m, nil
}

// end closes the connection after an error, and returns it.
func (c *client) end(err error) error {
	c.close()
	return err
}
