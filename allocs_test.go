package ssmmp

import (
	"context"
	"net/netip"
	"testing"
	"time"
)

// A session's set-up and its end, from the first line that the agent reads to
// the last that the Manager does, allocates next to nothing: reading, relaying,
// answering and writing their lines do not.
func TestSetUpAllocations(t *testing.T) {
	s := newMemMesh(t, ManagerConfig{Graphs: []*Graph{lifeGraph(t, "life", 100)}}, 0)
	defer s.close()
	host, err := s.managers.(*MemHost).net.Host("10.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	launched := make(chan Launch, 2)
	launcher := FuncLauncher(func(ctx context.Context, l Launch) error {
		launched <- l
		<-ctx.Done()
		return nil
	})
	var repository []RepositoryEntry
	for _, name := range []string{"gw", "mid", "db"} {
		repository = append(repository, RepositoryEntry{Service: name, Launcher: launcher, ReadyWhenStarted: true})
	}
	s.addAgent(AgentConfig{Manager: s.address, Address: host.Addr(), Repository: repository, Transport: host, DrainTimeout: time.Nanosecond})
	s.deploy("life")
	l := <-launched
	conn, err := host.Dial(t.Context(), l.Agent)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()

	var buf []byte
	id := int64(0)
	send := func(m Message) {
		m.Head().MessageID = id
		if buf, err = AppendMessage(buf[:0], m); err == nil {
			_, err = conn.Write(buf)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	hello := &InstanceHealthResponse{Header: Header{SubType: ServiceInstanceToAgent}, ServiceInstanceID: l.ID, Status: StatusOK}
	hello.Extensions = []Extension{{extSecret, l.Secret}}
	id++
	send(hello)

	to := l.Plugs[0]
	request := &SessionRequest{Header: Header{SubType: ServiceToAgent}, SourceServiceName: l.Service, SourceServiceInstanceID: l.ID,
		SourceServiceInstanceNetworkAddress: l.Address, SourcePlugName: to.Plug, DestServiceName: to.Service, DestSocketName: to.Socket}
	ack := &SessionAck{Header: Header{SubType: ServiceToAgent}, SourceServiceName: l.Service, SourceServiceInstanceID: l.ID,
		SourcePlugPort: 40000, Status: StatusOK}
	closed := &SourceSessionCloseInfo{Header: Header{SubType: SourceServiceToAgent}, SourceServiceName: l.Service, SourceServiceInstanceID: l.ID,
		SourceServiceInstanceNetworkAddress: l.Address, SourcePlugName: to.Plug, SourcePlugPort: 40000, DestServiceName: to.Service,
		DestServiceInstanceNetworkAddress: netip.MustParseAddr("10.0.0.1"), DestSocketName: to.Socket, Status: StatusSessionClosed}
	answers := NewDecoder(conn)
	setUp := func() {
		id++
		send(request)
		m, err := answers.Decode()
		if err != nil {
			t.Fatal(err)
		}
		r, ok := m.(*SessionResponse)
		if !ok || r.MessageID != id || !r.Status.Success() {
			t.Fatalf("answer to request %d: %+v", id, m)
		}
		ack.DestSocketNewPort, closed.DestServiceInstanceID = r.DestSocketPort, r.DestServiceInstanceID
		closed.DestSocketPort, closed.DestSocketNewPort = r.DestSocketPort, r.DestSocketPort
		send(ack)
		send(closed)
	}
	for range 300 {
		setUp()
	}
	const most = 1
	if n := testing.AllocsPerRun(1000, setUp); n > most {
		t.Errorf("%v allocations for a session, want %d at the most", n, most)
	}
	id++
	send(request) // answered when all before it was taken in
	if _, err := answers.Decode(); err != nil {
		t.Fatal(err)
	}
	if n := len(s.m.Snapshot().Sessions); n != 1 {
		t.Errorf("%d sessions, want the one that was not acknowledged", n)
	}
}
