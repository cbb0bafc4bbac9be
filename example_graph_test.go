package ssmmp_test

import (
	"fmt"
	"log"

	"github.com/ssmmp/ssmmp"
)

// A shop whose carts and orders are kept by the same service, db, in two
// places: two vertices, each with data of its own.
func ExampleNewGraph() {
	g, err := ssmmp.NewGraph("shop").
		Gateway("web", ssmmp.FixedPorts{"S0": 8080}, ssmmp.Out{"P1", "P2"}).
		Regular("cart", ssmmp.In{"S1"}, ssmmp.Out{"P3"}).
		Regular("orders", ssmmp.In{"S2"}, ssmmp.Out{"P4"}).
		Storage("db", ssmmp.In{"S3"}).
		At("orders_db", "db").
		Edge("web", "P1", "S1", "cart").
		Edge("web", "P2", "S2", "orders").
		Edge("cart", "P3", "S3", "db").
		Edge("orders", "P4", "S3", "orders_db").
		Build()
	if err != nil {
		log.Fatal(err)
	}
	for _, e := range g.Edges {
		fmt.Println(e)
	}
	// Output:
	// (web, (P1, S1), cart)
	// (web, (P2, S2), orders)
	// (cart, (P3, S3), db)
	// (orders, (P4, S3), orders_db)
}

// All faults of a graph come at once, each with its place.
func ExampleGraph_Validate() {
	_, err := ssmmp.NewGraph("shop").
		Gateway("web", ssmmp.FixedPorts{"S0": 55555}, ssmmp.Out{"P1"}).
		Regular("cart", ssmmp.In{"S1"}, ssmmp.Out{"P3"}).
		Storage("db", ssmmp.In{"S3"}).
		Edge("web", "P1", "S2", "cart").
		Edge("cart", "P3", "S3", "db").
		Build()
	fmt.Println(err)
	// Output:
	// ssmmp: graph shop: service web: S0: fixed port 55555 is the Manager's
	// ssmmp: graph shop: edge (web, (P1, S2), cart): S2: not a socket of service cart
}
