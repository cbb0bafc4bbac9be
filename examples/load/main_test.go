package main

import (
	"flag"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
)

var duration = flag.Duration("for", 4*time.Second, "how long the load lasts")

// TestMain lets the test's own binary be the services that agents execute.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "service" {
		main()
		return
	}
	os.Exit(m.Run())
}

// A mesh of forty processes stays correct under load, with instances killed and
// agents cut off. For longer: go test ./examples/load -v -for 60s
func TestLoad(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("four nodes need four loopback addresses, which only Linux has")
	}
	if err := run(t.Context(), *duration, t.Logf, hclog.NewNullLogger()); err != nil {
		t.Fatal(err)
	}
}
