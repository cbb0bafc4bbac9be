//go:build !unix

package ssmmp

import "net"

// tryWriterOf returns what writes to conn without waiting, nil where there is
// none.
func tryWriterOf(conn net.Conn) tryWriter {
	w, _ := conn.(tryWriter)
	return w
}
