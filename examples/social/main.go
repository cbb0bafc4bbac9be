// Command social is the simple CNApp of PROTOCOL section 4: a small social
// network of nine services, and its command-line client. README.md describes
// it.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "social:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 || args[0] != "client" {
		return fmt.Errorf("usage: social client MODE FLAGS (social client help lists them)")
	}
	return runClient(ctx, args[1:], os.Stdout)
}
