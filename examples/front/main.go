// Command front is a service of the simplest kind: what it is asked at socket
// S0, it asks on over plug P1. Its agent starts it.
package main

import (
	"context"
	"io"
	"log"

	"github.com/ssmmp/ssmmp"
)

func main() {
	ctx := context.Background()
	inst, err := ssmmp.Join(ctx) // from the command line its agent gave it
	if err != nil {
		log.Fatal(err)
	}
	defer inst.Close()
	ln, err := inst.Listen("S0") // on the port the Manager chose
	if err != nil {
		log.Fatal(err)
	}
	for {
		user, err := ln.Accept()
		if err != nil {
			return // the instance is shutting down
		}
		go func() {
			defer user.Close()
			greeter, err := inst.Dial(ctx, "P1") // starts a greeter if none runs
			if err != nil {
				log.Print(err)
				return
			}
			defer greeter.Close()
			io.Copy(user, greeter)
		}()
	}
}
