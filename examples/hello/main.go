// Command hello is a whole mesh in one process: a Manager, an agent, two
// services as Go functions, and the network between them in memory.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/ssmmp/ssmmp"
)

func main() {
	g, err := ssmmp.NewGraph("hello").
		Gateway("front", ssmmp.FixedPorts{"S0": 8080}, ssmmp.Out{"P1"}).
		Storage("greeter", ssmmp.In{"S1"}).
		Edge("front", "P1", "S1", "greeter").
		Build()
	check(err)
	host, err := ssmmp.NewMemNetwork().Host("10.0.0.1") // ssmmp.TCP{} is the real one
	check(err)
	ctx := context.Background()

	m, err := ssmmp.NewManager(ssmmp.ManagerConfig{Graphs: []*ssmmp.Graph{g}, Transport: host})
	check(err)
	defer m.Close()
	go m.ListenAndServe(ctx)

	a, err := ssmmp.NewAgent(ssmmp.AgentConfig{
		Manager: "10.0.0.1:55555", Address: host.Addr(), Transport: host,
		Repository: []ssmmp.RepositoryEntry{
			{Service: "front", Launcher: service(host, "S0", func(inst *ssmmp.Instance, user net.Conn) {
				greeter, err := inst.Dial(ctx, "P1") // the first dial starts it
				if err != nil {
					return // whoever it was, all may be over by now
				}
				defer greeter.Close()
				io.Copy(user, greeter)
			})},
			{Service: "greeter", Launcher: service(host, "S1", func(inst *ssmmp.Instance, peer net.Conn) {
				fmt.Fprintf(peer, "hello from %s on %s\n", inst.Service(), inst.Address())
			})},
		},
	})
	check(err)
	go a.Run(ctx)

	check(m.Deploy(ctx, "hello"))
	user, err := host.Dial(ctx, "10.0.0.1:8080")
	for errors.Is(err, syscall.ECONNREFUSED) { // front has joined, and may not listen yet
		time.Sleep(time.Millisecond)
		user, err = host.Dial(ctx, "10.0.0.1:8080")
	}
	check(err)
	io.Copy(os.Stdout, user)
}

// service executes an instance that handles connections to one socket.
func service(host ssmmp.Transport, socket string, handle func(*ssmmp.Instance, net.Conn)) ssmmp.Launcher {
	return ssmmp.FuncLauncher(func(ctx context.Context, l ssmmp.Launch) error {
		inst, err := ssmmp.JoinWith(ctx, ssmmp.JoinConfig{Launch: l, Transport: host})
		if err != nil {
			return err
		}
		defer inst.Close()
		defer context.AfterFunc(ctx, inst.Terminate)()
		ln, err := inst.Listen(socket)
		if err != nil {
			return err
		}
		for {
			conn, err := ln.Accept()
			if err != nil {
				return nil // the instance is shutting down
			}
			go func() { defer conn.Close(); handle(inst, conn) }()
		}
	})
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
