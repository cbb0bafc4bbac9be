package main

import (
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// cli runs the command-line client and returns what it prints.
func cli(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out strings.Builder
	err := runClient(t.Context(), args, &out)
	if err != nil && (out.Len() > 0 || strings.ContainsAny(err.Error(), "\r\n\x1b")) {
		t.Errorf("%q prints %q and then fails with %q", args, out.String(), err)
	}
	return out.String(), err
}

func TestClientModes(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.start(serviceNames...)
	s := c.slot("S0")
	<-s.ready
	dir := t.TempDir()
	content := strings.Repeat("content\x00", 10_000)
	source, target := filepath.Join(dir, "a.bin"), filepath.Join(dir, "b.bin")
	check(t, os.WriteFile(source, []byte(content), 0o600))

	for _, tt := range []struct {
		want string // of what is printed, or of the error where it begins with !
		args []string
	}{
		{"registered ann\n", []string{"registration", "-user", "ann", "-password", "p"}},
		{"!registration: status 409: ", []string{"registration", "-user", "ann", "-password", "p"}},
		{"logged in as ann\n", []string{"login", "-user", "ann", "-password", "p"}},
		{"!login: status 401: wrong user or password", []string{"login", "-user", "ann", "-password", "q"}},
		{"!send_post: status 401: ", []string{"send_post", "-user", "ann", "-password", "q", "-post", "x"}},
		{"posted\n", []string{"send_post", "-user", "ann", "-password", "p", "-post", "first"}},
		{"posted\n", []string{"send_post", "-user", "ann", "-password", "p", "-post", "zweite\nZeile ☂"}},
		{"  ann: zweite Zeile ☂\n", []string{"retrieve_last_10_posts"}},
		{"sent a.bin: 80000 bytes, SHA-256 ", []string{"send_file", "-user", "ann", "-password", "p", "-file", source}},
		{"sent c: 80000 bytes", []string{"send_file", "-user", "ann", "-password", "p", "-file", source, "-as", "c"}},
		{"got a.bin: 80000 bytes", []string{"get_file", "-user", "ann", "-password", "p", "-file", "a.bin", "-out", target}},
		{"!get_file: status 404: no such file", []string{"get_file", "-user", "ann", "-password", "p", "-file", "d", "-out", target}},
		{"!get_file: status 400: ", []string{"get_file", "-user", "ann", "-password", "p", "-file", "../x"}},
		{"!send_file: status 400: ", []string{"send_file", "-user", "ann", "-password", "p", "-file", source, "-as", "../x"}},
		{"!send_file: open ", []string{"send_file", "-user", "ann", "-password", "p", "-file", filepath.Join(dir, "none")}},
		{"!send_file: ", []string{"send_file", "-user", "ann", "-password", "p", "-file", dir}},
	} {
		out, err := cli(t, append(tt.args, "-gateway", s.ln.Addr().String())...)
		if want, fails := strings.CutPrefix(tt.want, "!"); fails {
			if err == nil || !strings.HasPrefix(err.Error(), want) {
				t.Errorf("%q: %v, want %q", tt.args, err, want)
			}
		} else if err != nil || !strings.Contains(out, want) {
			t.Errorf("%q prints %q, %v; want %q", tt.args, out, err, want)
		}
	}
	if b, err := os.ReadFile(target); err != nil || string(b) != content {
		t.Errorf("the file comes back with %d bytes, %v", len(b), err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
		t.Errorf("a failed get_file leaves %v, %v", entries, err)
	}
}

func TestClientUsage(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"help"}, {"-h"}, {"--help"}, {"send_post", "-h"}} {
		out, err := cli(t, args...)
		if err != nil {
			t.Errorf("%q: %v", args, err)
		}
		for _, m := range modes {
			if !strings.Contains(out, "  "+m.name+" ") {
				t.Errorf("%q does not tell of %s", args, m.name)
			}
		}
	}
	for want, args := range map[string][]string{
		"client: want a mode":                         {},
		`client: unknown mode "sendpost"`:             {"sendpost"},
		"login: flag -user is needed":                 {"login", "-password", "p"},
		"login: flag provided but not defined: -post": {"login", "-post", "p"},
		`login: unexpected argument "x"`:              {"login", "-user", "u", "-password", "p", "x"},
	} {
		if _, err := cli(t, args...); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q: %v, want %q", args, err, want)
		}
	}
}

func TestClientWithoutGateway(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	addr := ln.Addr().String()
	check(t, ln.Close())
	if _, err := cli(t, "retrieve_last_10_posts", "-gateway", addr); err == nil || !strings.Contains(err.Error(), addr) {
		t.Errorf("without a gateway: %v, want an error that names %s", err, addr)
	}
}

func TestClientInterrupted(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	ctx, cancel := context.WithCancel(t.Context())
	c.fake("S0", func(l *link) {
		l.receive(idleTimeout)
		cancel()
		<-c.ctx.Done()
	})
	err := runClient(ctx, []string{"retrieve_last_10_posts", "-gateway", c.slot("S0").ln.Addr().String()}, io.Discard)
	if err == nil || !strings.HasSuffix(err.Error(), context.Canceled.Error()) {
		t.Errorf("got %v, want that it was interrupted", err)
	}
}

// A client takes nothing from a gateway on trust.
func TestClientChecksFiles(t *testing.T) {
	t.Parallel()
	const empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	for name, answers := range map[string][]message{
		"too short":        {{status: 100, lines: []string{"1"}}, {status: 200, lines: []string{empty}}},
		"too long":         {{status: 100, lines: []string{"0"}}, {kind: "get_file_chunk", lines: []string{"AAAA"}}},
		"wrong sum":        {{status: 100, lines: []string{"0"}}, {status: 200, lines: []string{empty[1:] + "0"}}},
		"no sum":           {{status: 100, lines: []string{"0"}}, {status: 200}},
		"no size":          {{status: 100}},
		"size of letters":  {{status: 100, lines: []string{"x"}}},
		"at once complete": {{status: 200, lines: []string{empty}}},
		"twice begun":      {{status: 100, lines: []string{"0"}}, {status: 100, lines: []string{"0"}}},
		"bad base64":       {{status: 100, lines: []string{"9"}}, {kind: "get_file_chunk", lines: []string{"A=AA"}}},
		"breaks":           {{status: 100, lines: []string{"9"}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			near, far := net.Pipe()
			go func() {
				l := newLink(context.Background(), far)
				defer l.close()
				req, err := l.receive(clientTimeout)
				for _, m := range answers {
					if m.kind == "" {
						m.kind = responseKind(req.kind)
					}
					m.id = req.id
					if err == nil {
						err = l.send(m)
					}
				}
			}()
			u := newClient(t.Context(), near)
			var got strings.Builder
			if n, err := u.getFile("f", &got); err == nil || got.Len() > 0 {
				t.Errorf("getFile takes it: %d bytes, %d written, %v", n, got.Len(), err)
			}
		})
	}
}
