package ssmmp

import (
	"context"
	"net"
)

// A Transport is how bytes travel: between a Manager and its agents, an agent
// and its instances, and along sessions. Everything above it sees net.Conn and
// net.Listener only.
//
// A Transport belongs to one host: an address without a host part, such as
// ":54000", is that host's own, and so is "localhost".
type Transport interface {
	// Listen announces on addr, "host:port". Port 0 chooses a free one.
	Listen(ctx context.Context, addr string) (net.Listener, error)
	// Dial connects to addr, "host:port". The context governs the dial only,
	// not the connection.
	Dial(ctx context.Context, addr string) (net.Conn, error)
}
