// Command manager is a stand-alone Manager.
package main

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/hashicorp/go-hclog"

	"github.com/ssmmp/ssmmp"
	"github.com/ssmmp/ssmmp/examples/internal/program"
)

const usage = `usage: manager -graph FILE [-deploy NAME] [flags]

A Manager of the CNApps in the graph files. It deploys those that it is told to,
and serves agents until SIGTERM or an interrupt. What runs then goes on.
`

func main() { program.Main("manager", run) }

func run(ctx context.Context, args []string) error {
	flags := program.Flags(usage)
	var graphs, deploy program.List
	flags.Var(&graphs, "graph", "`file` with the graph of a CNApp; many with commas, or the flag again")
	flags.Var(&deploy, "deploy", "`name` of a graph to deploy; many with commas, or the flag again")
	listen := flags.String("listen", ":55555", "`host:port` to listen on for agents")
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

	cfg := ssmmp.ManagerConfig{Address: *listen, Logger: log}
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
	defer m.Close()
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
