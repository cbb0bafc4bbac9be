// Command clients shows ordinary clients in a mesh: of gRPC, Redis and
// PostgreSQL. Each is given the mesh's way to dial, and nothing else of it
// changes; Redis and PostgreSQL are the real servers, as they come, behind a
// plug. README.md tells more.
//
//	go run . grpc
//	go run . redis
//	go run . postgres
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/ssmmp/ssmmp"
)

// An example is a service at the end of plug P1, and a gateway that is its
// client.
type example struct {
	name   string
	web    webFunc
	server func(dir string) (ssmmp.RepositoryEntry, error) // dir is for its data
	says   func(n int) string                              // what the n-th user hears
}

var examples = []example{
	{"grpc", grpcWeb, grpcServer, func(int) string { return "the gRPC server says SERVING" }},
	{"redis", redisWeb, redisServer, visitOfShop},
	{"postgres", postgresWeb, postgresServer, visitOfShop},
}

func visitOfShop(n int) string { return fmt.Sprintf("visit %d of the shop", n) }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(os.Args) != 2 {
		fatal(usage())
	}
	for _, e := range examples {
		if e.name == os.Args[1] {
			if err := run(ctx, e, os.Stdout); err != nil {
				fatal(err)
			}
			return
		}
	}
	fatal(usage())
}

func usage() error {
	var names []string
	for _, e := range examples {
		names = append(names, e.name)
	}
	return fmt.Errorf("usage: clients %s", strings.Join(names, "|"))
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "clients:", err)
	os.Exit(1)
}

// tempDir is where the servers keep their data. Root's own directory may be
// closed to the user that a server runs as.
func tempDir() string {
	if os.Geteuid() == 0 {
		return "/var/tmp"
	}
	return os.TempDir()
}

// run plays a few users, and ends the server between two of them.
func run(ctx context.Context, e example, out io.Writer) error {
	dir, err := os.MkdirTemp(tempDir(), "clients-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	m, err := startMesh(ctx, e, dir, meshOptions{out: out})
	if err != nil {
		return err
	}
	defer m.close()
	visit := func(times int) error {
		for range times {
			text, err := m.visit(ctx)
			if err != nil {
				return err
			}
			fmt.Fprintln(out, "user ", text)
		}
		for _, s := range m.sessions() {
			fmt.Fprintf(out, "mesh  session %s: %s %d → %s %d\n", s.ID, s.SourceService, s.Source, s.DestinationService, s.Destination)
		}
		return nil
	}
	if err := visit(3); err != nil {
		return err
	}
	servers := m.instances(e.name)
	if len(servers) != 1 {
		return errors.New("not one server runs")
	}
	fmt.Fprintf(out, "      %s %d is killed\n", e.name, servers[0].ID)
	if err := m.manager.HardShutdown(ctx, servers[0].ID); err != nil {
		return err
	}
	return visit(2)
}
