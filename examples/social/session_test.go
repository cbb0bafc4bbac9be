package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
)

// random returns n bytes that are the same in every run.
func random(n int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{1, 2, 3}), n)
}

// All that a user does, through all nine services.
func TestUserSession(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.start(serviceNames...)
	u := c.connect()

	const ann, password = "änn 安", "pass: wörd %41 \n"
	check(t, u.register(ann, password))
	wantStatus(t, u.register(ann, password), statusConflict)
	wantStatus(t, u.register(ann, "other"), statusConflict)

	wrong, unknown := u.login(ann, "wrong"), u.login("bob", password)
	wantStatus(t, wrong, statusUnauthorized)
	if unknown == nil || wrong.Error() != unknown.Error() {
		t.Errorf("an unknown user is told from a wrong password: %q, %q", unknown, wrong)
	}
	wantStatus(t, u.sendPost(ann, "x"), statusUnauthorized)
	check(t, u.login(ann, password))

	if posts, err := u.last10(); err != nil || len(posts) != 0 {
		t.Fatalf("last10 of none: %v, %v", posts, err)
	}
	text := func(n int) string { return fmt.Sprintf("post %d: 100%% ☂\n\t%s", n, strings.Repeat("é", 1000)) }
	for n := range 12 {
		check(t, u.sendPost(ann, text(n)))
	}
	wantStatus(t, u.sendPost("bob", "x"), statusForbidden)
	posts, err := c.connect().last10() // without a login
	check(t, err)
	if len(posts) != 10 {
		t.Fatalf("%d posts, want 10", len(posts))
	}
	for i, p := range posts {
		if p.author != ann || p.text != text(11-i) || p.time.IsZero() {
			t.Errorf("post %d from the newest: %v", i, p)
		}
	}

	size := int64(64 << 20)
	if testing.Short() || raceEnabled {
		size = 8<<20 + 1
	}
	for _, n := range []int64{0, 1, chunkSize, chunkSize + 1, size} {
		sent := sha256.New()
		const name = "bild ☂.bin" // each one in place of the one before
		sum, err := u.sendFile(name, io.TeeReader(random(n), sent), n)
		check(t, err)
		got := sha256.New()
		m, err := u.getFile(name, got)
		check(t, err)
		if want := hex.EncodeToString(sent.Sum(nil)); m != n || sum != want || hexSum(got) != want {
			t.Errorf("a file of %d bytes comes back with %d", n, m)
		}
	}
	_, err = u.getFile("no such", io.Discard)
	wantStatus(t, err, statusNotFound)

	// A failed login logs out.
	wantStatus(t, u.login(ann, "wrong"), statusUnauthorized)
	wantStatus(t, u.sendPost(ann, "x"), statusUnauthorized)
	_, err = u.sendFile("x", strings.NewReader("x"), 1)
	wantStatus(t, err, statusUnauthorized)
	_, err = u.getFile("x", io.Discard)
	wantStatus(t, err, statusUnauthorized)
}

func TestRefusedContents(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.start(serviceNames...)
	u := c.enter("ann")
	for _, user := range []string{"", " ann", "ann ", "a\nb", "a\x00b", "a\u202eb", strings.Repeat("x", maxUser+1)} {
		wantStatus(t, u.register(user, "x"), statusBadRequest)
	}
	for _, password := range []string{"", strings.Repeat("x", maxPassword+1)} {
		wantStatus(t, u.register("bob", password), statusBadRequest)
	}
	for _, text := range []string{"", " \n", "a\x1b[2Jb", "\x00"} {
		wantStatus(t, u.sendPost("ann", text), statusBadRequest)
	}
	wantStatus(t, u.sendPost("ann", strings.Repeat("x", maxPost+1)), statusTooLarge)
	for _, kind := range []string{"no_request", "add_user_request", strings.Repeat("x", maxType-8) + "_request"} {
		_, err := u.l.ask(u.request(kind), message{}, clientTimeout)
		wantStatus(t, err, statusBadRequest)
	}
	for _, req := range []message{
		u.request("registration_request", "bob"),
		u.request("retrieve_last_10_posts_request", "x"),
		u.request("send_file_request", "x"),
		u.request("send_file_request", "x", "-1"),
		u.request("send_file_request", "x", "1e3"),
		u.request("get_file_request"),
	} {
		_, err := u.ask(req, req, statusOK)
		wantStatus(t, err, statusBadRequest)
	}
	// After all of that, the connection is as good as before.
	wantStatus(t, u.login("", ""), statusUnauthorized)
	req := u.request("login_request")
	_, err := u.ask(req, req, statusOK)
	wantStatus(t, err, statusBadRequest)
	check(t, u.login("ann", "secret of ann"))
	check(t, u.sendPost("ann", "x"))
}

func TestConcurrentUsers(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.start(serviceNames...)
	var users sync.WaitGroup
	for n := range 12 {
		users.Go(func() {
			name := fmt.Sprintf("user %d", n)
			conn, err := c.dialSocket(c.ctx, "S0")
			if err != nil {
				t.Error(err)
				return
			}
			u := newClient(c.ctx, conn)
			defer u.close()
			content := bytes.Repeat([]byte(name), 20_000)
			var back bytes.Buffer
			for _, step := range []func() error{
				func() error { return u.register(name, name) },
				func() error { return u.login(name, name) },
				func() error { return u.sendPost(name, "x") },
				func() error { _, err := u.sendFile(name, bytes.NewReader(content), int64(len(content))); return err },
				func() error {
					_, err := u.sendFile("shared", bytes.NewReader(content), int64(len(content)))
					return err
				},
				func() error { _, err := u.getFile("shared", io.Discard); return err },
				func() error { _, err := u.getFile(name, &back); return err },
				func() error { _, err := u.last10(); return err },
			} {
				if err := step(); err != nil {
					t.Errorf("%s: %v", name, err)
					return
				}
			}
			if !bytes.Equal(back.Bytes(), content) {
				t.Errorf("%s gets another file than was sent", name)
			}
		})
	}
	users.Wait()
}

// Only one of many wins a name, and what storage holds outlives its instances.
func TestStorageLasts(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.start(serviceNames...)
	var users sync.WaitGroup
	won := make(chan string, 8)
	for n := range cap(won) {
		u := c.connect()
		users.Go(func() {
			password := fmt.Sprint(n)
			if u.register("ann", password) == nil {
				won <- password
			}
		})
	}
	users.Wait()
	if len(won) != 1 {
		t.Fatalf("%d users registered under one name", len(won))
	}
	password := <-won
	u := c.connect()
	check(t, u.login("ann", password))
	check(t, u.sendPost("ann", "kept"))
	_, err := u.sendFile("kept", strings.NewReader("content"), 7)
	check(t, err)
	c.stop()

	again := newCluster(t)
	again.dataDir = c.dataDir
	again.start(serviceNames...)
	u = again.connect()
	check(t, u.login("ann", password))
	posts, err := u.last10()
	if err != nil || len(posts) != 1 || posts[0].text != "kept" {
		t.Errorf("last10 = %v, %v", posts, err)
	}
	var b strings.Builder
	if _, err := u.getFile("kept", &b); err != nil || b.String() != "content" {
		t.Errorf("getFile = %q, %v", b.String(), err)
	}
}

func TestHash(t *testing.T) {
	t.Parallel()
	h := newHasher(testSettings.cost)
	long := strings.Repeat("x", 80) // longer than some hashes look
	text, err := h.hash(t.Context(), long+"a")
	check(t, err)
	for password, want := range map[string]bool{long + "a": true, long + "b": false, long: false, "": false} {
		if same, err := h.matches(t.Context(), password, text); err != nil || same != want {
			t.Errorf("matches(%q) = %v, %v", password, same, err)
		}
	}
	if again, err := h.hash(t.Context(), long+"a"); err != nil || again == text {
		t.Errorf("two hashes of one password are the same: %v", err)
	}
	if _, _, _, err := parseHash(h.nobody); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{
		"", "x", strings.Repeat("$", 5), text + "$", text[:len(text)-1] + "!", "x" + text,
		strings.Replace(text, "t=1", "t=0", 1), strings.Replace(text, "p=1", "p=0", 1),
		strings.Replace(text, "m=64", "m=4294967295", 1), strings.Replace(text, "argon2id", "argon2i", 1),
	} {
		if _, err := h.matches(t.Context(), "x", bad); err == nil {
			t.Errorf("matches takes %q", bad)
		}
	}
}
