// Command starter is the program whose start is measured: as an instance it
// joins its mesh, and with an address alone it connects there, which is the
// least that a program can do to be known. Either way it then waits to be
// killed.
package main

import (
	"context"
	"io"
	"log"
	"net"
	"os"

	"github.com/ssmmp/ssmmp"
)

func main() {
	if len(os.Args) == 2 {
		conn, err := net.Dial("tcp", os.Args[1])
		if err != nil {
			log.Fatal(err)
		}
		io.Copy(io.Discard, conn)
		return
	}
	inst, err := ssmmp.Join(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	<-inst.Done()
}
