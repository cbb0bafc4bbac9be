// Command load puts a mesh under load and looks whether it stays correct: four
// agents, forty instances as processes of their own, sessions set up as fast as
// they go, while instances are killed and agents cut off from their Manager.
// Again and again it has all of them pause, and holds the Manager's sessions
// against the instances' own lists, its instances against the processes, every
// request on the wire against its answer, and the heap against what it was.
//
//	go run ./examples/load -for 60s
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "service" {
		fatal(serveInstance())
	}
	duration := flag.Duration("for", 6*time.Second, "how long the load lasts")
	verbose := flag.Bool("v", false, "log what the Manager and the agents do")
	flag.Parse()
	if flag.NArg() > 0 {
		fatal(fmt.Errorf("unexpected argument %q", flag.Arg(0)))
	}
	level := hclog.Off
	if *verbose {
		level = hclog.Info
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	say := func(format string, args ...any) { fmt.Printf(format+"\n", args...) }
	if err := run(ctx, *duration, say, hclog.New(&hclog.LoggerOptions{Level: level, Output: os.Stderr})); err != nil {
		fatal(err)
	}
	say("all is as it should be")
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "load:", err)
	os.Exit(1)
}
