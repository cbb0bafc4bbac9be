package ssmmptest_test

import (
	"bufio"
	"context"
	"fmt"
	"log"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ssmmp/ssmmp"
	"github.com/ssmmp/ssmmp/ssmmptest"
)

// greeting is a graph of a gateway and the service that it asks.
func greeting() *ssmmp.Graph {
	g, err := ssmmp.NewGraph("greeting").
		Gateway("front", ssmmp.FixedPorts{"S0": 8080}, ssmmp.Out{"P1"}).
		Storage("greeter", ssmmp.In{"S1"}).
		Edge("front", "P1", "S1", "greeter").
		Build()
	if err != nil {
		log.Fatal(err)
	}
	return g
}

// A test of what a mesh does when a node loses its power, in virtual time: the
// Manager takes more than a minute to find out, the test some milliseconds.
func ExampleNewCluster() {
	_ = func(t *testing.T) { // TestPowerLoss
		synctest.Test(t, func(t *testing.T) {
			c := ssmmptest.NewCluster(t, greeting(), ssmmptest.Nodes(3))
			if err := c.Deploy(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Ask(t.Context(), "front", "S0", "via P1 who"); err != nil {
				t.Error(err)
			}
			for _, i := range c.Snapshot().Instances {
				if i.Service == "greeter" {
					c.NodeAt(i.Node).Crash()
				}
			}
			if err := c.Settle(t.Context()); err != nil {
				t.Error(err)
			}
			if n := len(c.Snapshot().Instances); n != 1 {
				t.Errorf("%d instances are left, want the gateway", n)
			}
		})
	}
}

// A program that has a mesh of its own, with one service of its own.
func ExampleStartCluster() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := ssmmptest.StartCluster(ctx, ssmmptest.ClusterConfig{
		Graphs: []*ssmmp.Graph{greeting()},
		Nodes:  2,
		Services: map[string]ssmmptest.ServiceFunc{
			"greeter": ssmmptest.Serve(func(ctx context.Context, inst *ssmmp.Instance, conn net.Conn) error {
				name, err := bufio.NewReader(conn).ReadString('\n')
				if err == nil {
					fmt.Fprint(conn, "hello ", name)
				}
				return nil
			}),
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	if err := c.Deploy(ctx); err != nil {
		log.Fatal(err)
	}
	fmt.Println(c.Ask(ctx, "front", "S0", "via P1 world"))

	greeter := c.Snapshot().Instances[1]
	c.Kill(greeter.ID)
	if err := c.Settle(ctx); err != nil {
		log.Fatal(err)
	}
	for _, ev := range c.History() {
		if ev.Kind == ssmmp.EventInstanceEnded {
			fmt.Println(ev.Service, "ended:", ev.Cause)
		}
	}
	fmt.Println(c.Ask(ctx, "front", "S0", "via P1 again"))
	// Output:
	// hello world <nil>
	// greeter ended: exit SIGKILL
	// hello again <nil>
}

// A description that cannot work is refused with all its faults.
func ExampleClusterConfig_Validate() {
	cfg := ssmmptest.ClusterConfig{
		Graphs:   []*ssmmp.Graph{greeting()},
		Services: map[string]ssmmptest.ServiceFunc{"greter": ssmmptest.Answer},
	}
	fmt.Println(cfg.Validate())
	// Output:
	// ssmmptest: ClusterConfig.Nodes: 0: a cluster has 1 to 62500 nodes
	// ssmmptest: ClusterConfig.Services: "greter": no graph has this service
}

// Two hosts in memory, with a partition between them for a while.
func ExampleFaults() {
	network := ssmmp.NewMemNetwork()
	faults := ssmmptest.NewFaults(1)
	defer faults.Close()
	host := func(addr netip.Addr) ssmmp.Transport {
		h, err := network.Host(addr.String())
		if err != nil {
			log.Fatal(err)
		}
		return faults.Host(addr, h)
	}
	serverAddr, clientAddr := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	server, client := host(serverAddr), host(clientAddr)

	ctx := context.Background()
	ln, err := server.Listen(ctx, ":7000")
	if err != nil {
		log.Fatal(err)
	}
	defer ln.Close()
	conn, err := client.Dial(ctx, "10.0.0.1:7000")
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()

	faults.Block(ssmmptest.Hosts{clientAddr}, ssmmptest.Hosts{serverAddr})
	fmt.Fprintln(conn, "held for a while")
	fmt.Println(faults.Stats().InFlight, "bytes are on their way")
	faults.Heal()

	far, err := ln.Accept()
	if err != nil {
		log.Fatal(err)
	}
	defer far.Close()
	line, err := bufio.NewReader(far).ReadString('\n')
	fmt.Printf("%q %v\n", line, err)
	// Output:
	// 17 bytes are on their way
	// "held for a while\n" <nil>
}
