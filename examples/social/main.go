// Command social is the simple CNApp of PROTOCOL section 4: a small social
// network of nine services, each a process that an agent executes, and its
// command-line client. README.md describes it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/hashicorp/go-hclog"
)

const usage = `usage:
  social [-v]                play one user's session on a mesh of its own, and exit
  social up [-v] [-data DIR] keep a mesh up until interrupted; DIR keeps its data and its state
  social client MODE FLAGS   talk to a mesh that is up (social client help)`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "social:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	verb := ""
	if len(args) > 0 && len(args[0]) > 0 && args[0][0] != '-' {
		verb, args = args[0], args[1:]
	}
	flags := flag.NewFlagSet("social", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	verbose, outlive := false, false
	dataDir := ""
	switch verb {
	case "client":
		return runClient(ctx, args, out)
	case "service":
		flags.StringVar(&dataDir, "data", "", "directory of the storage services")
		flags.BoolVar(&outlive, "outlive", false, "go on when the program that executed it is killed")
	case "up":
		flags.StringVar(&dataDir, "data", "", "directory that keeps the data and the state; a temporary one by default")
		flags.BoolVar(&verbose, "v", false, "log what the Manager and the agents do")
	case "":
		flags.BoolVar(&verbose, "v", false, "log what the Manager and the agents do")
	default:
		return fmt.Errorf("unknown command %q\n%s", verb, usage)
	}
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(out, usage)
		return nil
	} else if err != nil {
		return fmt.Errorf("%w\n%s", err, usage)
	}
	if verb == "service" {
		return serveInstance(ctx, dataDir, outlive)
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q\n%s", flags.Arg(0), usage)
	}
	level := hclog.Error
	if verbose {
		level = hclog.Debug
	}
	log := hclog.New(&hclog.LoggerOptions{Level: level, Output: os.Stderr})
	if verb == "up" {
		return runUp(ctx, dataDir, out, log)
	}
	return runDemo(ctx, out, log)
}
