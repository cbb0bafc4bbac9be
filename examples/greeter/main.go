// Command greeter is the other service of docs/getting-started.md: storage without
// storage, which greets whoever opens a session to it.
package main

import (
	"context"
	"fmt"
	"log"

	"github.com/ssmmp/ssmmp"
)

func main() {
	inst, err := ssmmp.Join(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	defer inst.Close()
	ln, err := inst.Listen("S1")
	if err != nil {
		log.Fatal(err)
	}
	for {
		peer, err := ln.Accept()
		if err != nil {
			return // the instance is shutting down
		}
		fmt.Fprintf(peer, "hello from %s %d on %s\n", inst.Service(), inst.ID(), inst.Address())
		peer.Close()
	}
}
