// Command agent is a stand-alone agent.
package main

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"

	"github.com/ssmmp/ssmmp"
	"github.com/ssmmp/ssmmp/examples/internal/program"
)

const usage = `usage: agent -manager HOST:PORT -address IP -repository FILE [flags]

The agent of this node: it executes the services in the repository file as the
Manager asks, until SIGTERM or an interrupt. Then it shuts down what it executed,
or leaves it running with -keep.
`

func main() { program.Main("agent", run) }

func run(ctx context.Context, args []string) error {
	flags := program.Flags(usage)
	var cfg ssmmp.AgentConfig
	flags.StringVar(&cfg.Manager, "manager", "", "`host:port` where the Manager listens")
	flags.TextVar(&cfg.Address, "address", netip.Addr{}, "`IP` address of this node, by which others reach it")
	flags.StringVar(&cfg.Listen, "listen", "", "`host:port` to listen on for instances of this node (default localhost:55556, or port 55556 of -address if that is a loopback address)")
	repository := flags.String("repository", "", "`file` with the services that this node can execute")
	flags.StringVar(&cfg.StateDir, "state", "", "`directory` that keeps what this agent executed, so that the next one with it goes on with what still runs")
	flags.BoolVar(&cfg.KeepInstances, "keep", false, "leave instances running when the agent ends")
	logger := program.LogFlags(flags)
	if err := program.Parse(flags, args); err != nil {
		return err
	}
	var err error
	if cfg.Logger, err = logger(); err != nil {
		return err
	}
	switch {
	case cfg.Manager == "":
		return program.Usagef("-manager is missing")
	case !cfg.Address.IsValid():
		return program.Usagef("-address is missing")
	case *repository == "":
		return program.Usagef("-repository is missing")
	}

	if cfg.Repository, err = program.Read(*repository, ssmmp.ReadRepository); err != nil {
		return err
	}
	for _, e := range cfg.Repository {
		if c, ok := e.Launcher.(ssmmp.CommandLauncher); ok {
			if _, err := exec.LookPath(c.Path); err != nil {
				return fmt.Errorf("%s: service %s: %w", *repository, e.Service, err)
			}
		}
	}
	a, err := ssmmp.NewAgent(cfg)
	if err != nil {
		return err
	}
	return a.Run(ctx)
}
