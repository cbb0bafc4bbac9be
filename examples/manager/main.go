// Command manager is a stand-alone Manager.
package main

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync"

	"github.com/hashicorp/go-hclog"

	"github.com/ssmmp/ssmmp"
	"github.com/ssmmp/ssmmp/examples/internal/program"
)

const usage = `usage: manager -graph FILE [-deploy NAME] [-data DIR] [flags]
       manager history -data DIR [flags]

A Manager of the CNApps in the graph files. It deploys those that it is told to,
and serves agents until SIGTERM or an interrupt. What runs then goes on, and with
-data another Manager goes on with it. "manager history -help" tells how to read
what happened.
`

func main() { program.Main("manager", run) }

func run(ctx context.Context, args []string) (err error) {
	if len(args) > 0 && args[0] == "history" {
		return history(ctx, args[1:], os.Stdout)
	}
	flags := program.Flags(usage)
	var graphs, deploy program.List
	flags.Var(&graphs, "graph", "`file` with the graph of a CNApp; many with commas, or the flag again")
	flags.Var(&deploy, "deploy", "`name` of a graph to deploy; many with commas, or the flag again")
	listen := flags.String("listen", ":55555", "`host:port` to listen on for agents")
	data := flags.String("data", "", "`directory` that keeps the state and the history; without it they end with the program")
	keep := flags.Duration("keep", 0, "how long the history is kept, such as 720h; for ever by default")
	logger := program.LogFlags(flags)
	if err := program.Parse(flags, args); err != nil {
		return err
	}
	log, err := logger()
	if err != nil {
		return err
	}
	if len(graphs) == 0 {
		return program.Usagef("-graph is missing")
	}

	cfg := ssmmp.ManagerConfig{Address: *listen, Logger: log, KeepFor: *keep}
	if *data != "" {
		if err := os.MkdirAll(*data, 0o700); err != nil {
			return err
		}
		cfg.Store = openStore(*data)
	}
	for _, path := range graphs {
		g, err := program.Read(path, ssmmp.ReadGraph)
		if err != nil {
			return err
		}
		cfg.Graphs = append(cfg.Graphs, g)
	}
	for _, name := range deploy {
		if !slices.ContainsFunc(cfg.Graphs, func(g *ssmmp.Graph) bool { return g.Name == name }) {
			return program.Usagef("-deploy: no graph has the name %q", name)
		}
	}
	m, err := ssmmp.NewManager(cfg)
	if err != nil {
		return err
	}
	defer func() {
		if closed := m.Close(); err == nil {
			err = closed
		}
	}()
	ctx, stop := context.WithCancel(ctx)
	var deploying sync.WaitGroup
	defer deploying.Wait()
	defer stop()
	for _, name := range deploy {
		deploying.Go(func() { deployGraph(ctx, m, name, log) })
	}
	if err := m.ListenAndServe(ctx); !errors.Is(err, ssmmp.ErrClosed) {
		return err
	}
	return nil
}

// deployGraph deploys a graph, whenever there are agents that can run its API
// Gateways.
func deployGraph(ctx context.Context, m *ssmmp.Manager, name string, log hclog.Logger) {
	switch err := m.Deploy(ctx, name); {
	case err == nil:
		log.Info("deployed, and ready", "graph", name)
	case ctx.Err() == nil:
		log.Error("not deployed", "graph", name, "error", err)
	}
}
