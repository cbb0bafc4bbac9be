package main

import (
	"bytes"
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
)

// TestMain lets the test's own binary be the program, and the services that
// agents execute.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && (os.Args[1] == "service" || os.Args[1] == "up") {
		if addr, err := netip.ParseAddr(os.Getenv("SOCIAL_TEST_NODES")); err == nil {
			b := addr.As4()
			loopback = [3]byte(b[:3])
		}
		main()
		return
	}
	os.Exit(m.Run())
}

// The whole example: a Manager, two agents, nine services as processes, one of
// them killed on the way, and nothing left at the end.
func TestDemo(t *testing.T) {
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	var out bytes.Buffer
	if err := runDemo(context.Background(), &out, hclog.NewNullLogger()); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	story := out.String()
	for _, want := range []string{
		"gateway 1 is ready", "a wrong password is refused", "is killed", "ended (exit SIGKILL)", "sent post 12 of 12",
		`from "post number 12" to "post number 3"`, "byte for byte the same", "gateway 1 ended (undeployed)",
		" processes ran, none is left",
	} {
		if !strings.Contains(story, want) {
			t.Errorf("the demo does not say %q", want)
		}
	}
	for _, service := range []string{"gateway", "register", "login", "posts", "last_10_posts", "file_transfer", "users_db", "posts_db", "hd"} {
		if !strings.Contains(story, "mesh  "+service+" ") {
			t.Errorf("%s never came to life", service)
		}
	}
	if t.Failed() {
		t.Log(story)
	}
	if left, _ := filepath.Glob(filepath.Join(temp, "*")); len(left) > 0 {
		t.Errorf("files are left: %v", left)
	}
}
