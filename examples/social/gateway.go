package main

import (
	"context"
	"crypto/rand"
)

// newGateway returns the API Gateway: users' connections end here, and each of
// their requests goes on to the service that serves it.
func newGateway() *service {
	return &service{socket: "S0", handlers: map[string]handler{
		"registration_request":           forward("P1", addKey),
		"login_request":                  logIn,
		"send_post_request":              forward("P3", ownName, addKey),
		"retrieve_last_10_posts_request": forward("P4"),
		"send_file_request":              loggedIn(relayUpload("P5")),
		"get_file_request":               loggedIn(relayDownload("P5")),
	}}
}

// A step checks a request of a user, or completes it.
type step func(c *conversation, req *message) error

// forward takes the steps, and sends the request on through a plug.
func forward(plug string, steps ...step) handler {
	return unary(func(ctx context.Context, c *conversation, req message) ([]string, error) {
		for _, s := range steps {
			if err := s(c, &req); err != nil {
				return nil, err
			}
		}
		return c.call(ctx, plug, req)
	})
}

// addKey appends to the two lines of a request a key by which storage knows
// the same request when it arrives twice.
func addKey(_ *conversation, req *message) error {
	if err := wantLines(*req, 2); err != nil {
		return err
	}
	req.lines = append(req.lines, rand.Text())
	return nil
}

// ownName checks that Line_1 is the name of who has logged in.
func ownName(c *conversation, req *message) error {
	if c.name == "" {
		return errNotLoggedIn
	}
	if len(req.lines) > 0 && req.lines[0] != c.name {
		return &statusError{statusForbidden, "logged in under another name"}
	}
	return nil
}

var errNotLoggedIn = &statusError{statusUnauthorized, "log in first, on this connection"}

// loggedIn serves a request with h where somebody has logged in.
func loggedIn(h handler) handler {
	return func(ctx context.Context, c *conversation, req message) error {
		if c.name == "" {
			return c.fail(req, errNotLoggedIn)
		}
		return h(ctx, c, req)
	}
}

// logIn has the login service check a password, and remembers for this
// connection who has shown theirs. A failed login logs out.
var logIn = unary(func(ctx context.Context, c *conversation, req message) ([]string, error) {
	c.name = ""
	if err := wantLines(req, 2); err != nil {
		return nil, err
	}
	lines, err := c.call(ctx, "P2", req)
	if err == nil {
		c.name = req.lines[0]
	}
	return lines, err
})

// wantLines checks how many lines a request has.
func wantLines(req message, n int) error {
	if len(req.lines) != n {
		return badRequest("%s has %d lines, want %d", req.kind, len(req.lines), n)
	}
	return nil
}
