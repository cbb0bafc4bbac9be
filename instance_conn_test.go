package ssmmp

import (
	"net"
	"syscall"
	"testing"
)

// A pool of connections finds out by the system's own connection that a
// session has been closed, by the Manager or by the far end, while nobody read.
func TestSessionSyscallConn(t *testing.T) {
	t.Parallel()
	ln, err := TCP{}.Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	conn, err := TCP{}.Dial(t.Context(), ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	inst := &Instance{core: NewInstanceCore(Launch{}), conns: map[uint64]*sessionConn{}}
	c := inst.newConn(conn, "P", true)
	session, ok := c.given.(syscall.Conn)
	if !ok {
		t.Fatalf("a session over TCP is a %T, which pools cannot look at", c.given)
	}
	look := func() error {
		raw, err := session.SyscallConn()
		if err != nil {
			return err
		}
		return raw.Control(func(uintptr) {})
	}
	if err := look(); err != nil {
		t.Errorf("an open session: %v", err)
	}
	inst.dropSession(c, "closed by the Manager")
	if look() == nil {
		t.Error("a session that the Manager closed looks well")
	}

	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	if c := inst.newConn(near, "P", true); c.given != net.Conn(c) {
		t.Errorf("a session in memory is a %T", c.given)
	}
}
