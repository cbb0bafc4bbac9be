package ssmmp_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"sync"

	"github.com/ssmmp/ssmmp"
)

// A whole mesh in one process: a Manager, an agent and two services, over a
// network in memory. The greeter is started by the first dial to it. On real
// nodes the Transport is left out, and what is a function here is a program
// that calls Join.
func Example() {
	g, err := ssmmp.NewGraph("hello").
		Gateway("front", ssmmp.FixedPorts{"S0": 8080}, ssmmp.Out{"P1"}).
		Storage("greeter", ssmmp.In{"S1"}).
		Edge("front", "P1", "S1", "greeter").
		Build()
	check(err)
	node, err := ssmmp.NewMemNetwork().Host("10.0.0.1")
	check(err)
	manager, err := ssmmp.NewManager(ssmmp.ManagerConfig{Graphs: []*ssmmp.Graph{g}, Transport: node})
	check(err)
	agent, err := ssmmp.NewAgent(ssmmp.AgentConfig{Manager: "10.0.0.1:55555", Address: node.Addr(), Transport: node,
		Repository: []ssmmp.RepositoryEntry{
			{Service: "front", Launcher: launcher(node, front)},
			{Service: "greeter", Launcher: launcher(node, greeter)},
		}})
	check(err)

	ctx, stop := context.WithCancel(context.Background())
	ln, err := node.Listen(ctx, ":55555")
	check(err)
	var running sync.WaitGroup
	running.Go(func() { manager.Serve(ctx, ln) })
	running.Go(func() { agent.Run(ctx) })
	check(manager.Deploy(ctx, "hello"))

	user, err := node.Dial(ctx, "10.0.0.1:8080")
	check(err)
	io.Copy(os.Stdout, user)
	user.Close()
	stop()
	running.Wait()
	// Output: hello from greeter 2
}

// front passes what its users send on over plug P1, and the answer back.
func front(inst *ssmmp.Instance) error {
	return serve(inst, "S0", func(user net.Conn) {
		back, err := inst.Dial(context.Background(), "P1")
		if err != nil {
			fmt.Fprintln(user, err)
			return
		}
		defer back.Close()
		io.Copy(user, back)
	})
}

func greeter(inst *ssmmp.Instance) error {
	return serve(inst, "S1", func(c net.Conn) {
		fmt.Fprintf(c, "hello from %s %d\n", inst.Service(), inst.ID())
	})
}

// serve accepts at a socket until the instance leaves the mesh.
func serve(inst *ssmmp.Instance, socket string, handle func(net.Conn)) error {
	ln, err := inst.Listen(socket)
	if err != nil {
		return err
	}
	for {
		c, err := ln.Accept()
		if err != nil {
			<-inst.Done()
			return nil
		}
		go func() {
			defer c.Close()
			handle(c)
		}()
	}
}

// launcher executes a service as a function that leaves when it is killed.
func launcher(node ssmmp.Transport, main func(*ssmmp.Instance) error) ssmmp.Launcher {
	return ssmmp.FuncLauncher(func(ctx context.Context, l ssmmp.Launch) error {
		inst, err := ssmmp.JoinWith(ctx, ssmmp.JoinConfig{Launch: l, Transport: node})
		if err != nil {
			return err
		}
		defer inst.Close()
		defer context.AfterFunc(ctx, inst.Terminate)()
		return main(inst)
	})
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
