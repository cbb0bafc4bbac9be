package ssmmp_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"sync"

	"github.com/ssmmp/ssmmp"
)

// A service program: only its network connections differ from any other's.
func ExampleJoin() {
	ctx := context.Background()
	inst, err := ssmmp.Join(ctx) // with the command line that its agent wrote
	if err != nil {
		log.Fatal(err)
	}
	defer inst.Close()
	inst.OnDrain(func(ctx context.Context) { log.Print("no more sessions: saving what is to be saved") })

	ln, err := inst.Listen("S4")
	if err != nil {
		log.Fatal(err)
	}
	for {
		user, err := ln.Accept()
		if err != nil {
			break // the instance leaves the mesh
		}
		go func() {
			defer user.Close()
			db, err := inst.Dial(ctx, "P6") // starts the database if none runs
			if err != nil {
				log.Print(err)
				return
			}
			defer db.Close()
			io.Copy(user, db)
		}()
	}
	<-inst.Done()
}

// HTTP over a plug: the plug is the host name.
func ExampleInstance_DialContext() {
	front := func(inst *ssmmp.Instance) error {
		client := &http.Client{Transport: &http.Transport{DialContext: inst.DialContext}}
		return serveHTTP(inst, "S0", func(w http.ResponseWriter, r *http.Request) {
			resp, err := client.Get("http://P1/greetings" + r.URL.Path)
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadGateway)
				return
			}
			defer resp.Body.Close()
			io.Copy(w, resp.Body)
		})
	}
	greeter := func(inst *ssmmp.Instance) error {
		return serveHTTP(inst, "S1", func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%s answers %s\n", inst.Service(), r.URL.Path)
		})
	}
	_, node, stop := runMesh(front, greeter)
	defer stop()

	resp, err := userOf(node).Get("http://10.0.0.1:8080/bob")
	check(err)
	defer resp.Body.Close()
	io.Copy(os.Stdout, resp.Body)
	// Output: greeter answers /greetings/bob
}

// A session's life as the Manager tells it.
func ExampleManager_Events() {
	manager, node, stop := runMesh(front, greeter)
	defer stop()

	ctx := context.Background()
	user, err := node.Dial(ctx, "10.0.0.1:8080")
	check(err)
	defer user.Close()
	for ev := range manager.Events(ctx, 0) {
		switch ev.Kind {
		case ssmmp.EventSessionOffered, ssmmp.EventSessionOpened:
			fmt.Printf("%s: %d.%s to %d.%s\n", ev.Kind, ev.Source, ev.Plug, ev.Destination, ev.Socket)
		case ssmmp.EventSessionClosed:
			fmt.Printf("%s: %s\n", ev.Kind, ev.Status)
			return
		}
	}
	// Output:
	// session offered: 1.P1 to 2.S1
	// session opened: 1.P1 to 2.S1
	// session closed: 111 closed by business logic
}

// serveHTTP serves requests at a socket until the instance leaves the mesh.
func serveHTTP(inst *ssmmp.Instance, socket string, handle http.HandlerFunc) error {
	ln, err := inst.Listen(socket)
	if err != nil {
		return err
	}
	http.Serve(ln, handle)
	<-inst.Done()
	return nil
}

// userOf returns the client of a user at a node.
func userOf(node ssmmp.Transport) *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) { return node.Dial(ctx, addr) }}}
}

// runMesh deploys the graph of the package's example with other services.
func runMesh(front, greeter func(*ssmmp.Instance) error) (*ssmmp.Manager, ssmmp.Transport, func()) {
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
	return manager, node, func() {
		stop()
		running.Wait()
	}
}
