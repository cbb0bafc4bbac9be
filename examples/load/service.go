package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/ssmmp/ssmmp"
)

// controlEnv names the variable in which an instance finds whom to obey.
const controlEnv = "LOAD_CONTROL"

const (
	// patience bounds everything that an instance waits for.
	patience = 20 * time.Second
	// dialers is how many goroutines of each instance dial, and held how many
	// of its sessions stay open for longer.
	dialers = 2
	held    = 3
)

// A report is what an instance says of itself.
type report struct {
	ID        ssmmp.InstanceID
	Dials     int            // calls of Dial that have returned
	Outcomes  map[string]int // of these, by class
	Misrouted []string       // sessions that led to another service than the plug's
	Wire      counts         // what was said to the agent, and by it
	Ends      []end          // open sessions
}

// An end is one end of an open session, as its instance has it.
type end struct {
	Source      bool
	Name        string // plug or socket
	Local, Peer string // "host:port"
}

// A service is an instance of whatever service it was executed for: it dials
// its plugs as fast as it goes, and answers on its sockets with its name.
type service struct {
	inst   *ssmmp.Instance
	plugs  []ssmmp.PlugTarget
	ledger *ledger
	gate   sync.RWMutex // held for writing while it shall not dial
	paused bool

	mu   sync.Mutex
	rep  report
	ends map[net.Conn]end
}

// serveInstance is the main function of an instance.
func serveInstance() error {
	l, err := ssmmp.ParseLaunch(os.Args[1:], os.LookupEnv)
	if err != nil {
		return err
	}
	control, err := net.Dial("tcp", os.Getenv(controlEnv))
	if err != nil {
		return err
	}
	s := &service{plugs: l.Plugs, ledger: newLedger(), paused: true, ends: map[net.Conn]end{}}
	s.rep = report{ID: l.ID, Outcomes: map[string]int{}}
	s.gate.Lock()
	s.inst, err = ssmmp.JoinWith(context.Background(), ssmmp.JoinConfig{
		Launch: l, Transport: &watchedTransport{ssmmp.TCP{LocalAddr: l.Address}, l.Agent, s.ledger},
	})
	if err != nil {
		return err
	}
	for _, socket := range l.Sockets {
		ln, err := s.inst.Listen(socket.Socket)
		if err != nil {
			return err
		}
		go s.accept(ln, socket.Socket)
	}
	if len(s.plugs) > 0 {
		for range dialers {
			go s.dialOn()
		}
	}
	go func() {
		<-s.inst.Done()
		s.inst.Close()
		os.Exit(0)
	}()
	return s.obey(control)
}

// obey does as it is told, and ends when nobody tells it anything any more.
func (s *service) obey(control net.Conn) error {
	answer, orders := json.NewEncoder(control), json.NewDecoder(control)
	for first := true; ; first = false {
		if !first {
			var order string
			if err := orders.Decode(&order); err != nil {
				return fmt.Errorf("control: %w", err)
			}
			switch {
			case order == "pause" && !s.paused:
				s.gate.Lock()
				s.paused = true
			case order == "run" && s.paused:
				s.gate.Unlock()
				s.paused = false
			}
		}
		if err := answer.Encode(s.report()); err != nil {
			return fmt.Errorf("control: %w", err)
		}
	}
}

func (s *service) report() report {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.rep
	r.Wire = s.ledger.read()
	for _, e := range s.ends {
		r.Ends = append(r.Ends, e)
	}
	return r
}

// open and closed keep the list of sessions.
func (s *service) open(conn net.Conn, source bool, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ends[conn] = end{source, name, conn.LocalAddr().String(), conn.RemoteAddr().String()}
}

func (s *service) closed(conn net.Conn) {
	conn.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.ends, conn)
}

// accept answers each line with the name of the service, and closes when the
// line is "close".
func (s *service) accept(ln net.Listener, socket string) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return // it is shutting down
		}
		s.open(conn, false, socket)
		go func() {
			defer s.closed(conn)
			for in := bufio.NewReader(conn); ; {
				line, err := in.ReadString('\n')
				if err != nil || line == "close\n" {
					return
				}
				fmt.Fprintln(conn, s.inst.Service())
			}
		}()
	}
}

// dialOn opens session after session. Most are closed at once, by either end;
// some stay, until newer ones take their place.
func (s *service) dialOn() {
	var kept []net.Conn
	for n := 0; ; n++ {
		s.gate.RLock()
		conn := s.dialOnce(s.plugs[rand.N(len(s.plugs))])
		switch {
		case conn == nil:
		case n%4 == 0:
			kept = append(kept, conn)
			if len(kept) > held {
				kept[0].Close()
				kept = kept[1:]
			}
		case n%4 == 1:
			fmt.Fprintln(conn, "close")
		default:
			conn.Close()
		}
		s.gate.RUnlock()
	}
}

// dialOnce opens a session, and asks who is there. Whoever ends it later, a
// reader notices.
func (s *service) dialOnce(plug ssmmp.PlugTarget) net.Conn {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := s.inst.Dial(ctx, plug.Plug)
	s.mu.Lock()
	s.rep.Dials++
	s.rep.Outcomes[outcome(err)]++
	s.mu.Unlock()
	if err != nil {
		// Whoever is refused tries again, but not at once.
		time.Sleep(rand.N(20 * time.Millisecond))
		return nil
	}
	s.open(conn, true, plug.Plug)
	conn.SetDeadline(time.Now().Add(patience))
	in := bufio.NewReader(conn)
	name := ""
	if _, err = fmt.Fprintln(conn, "who"); err == nil {
		name, err = in.ReadString('\n')
	}
	if err != nil {
		s.closed(conn) // its end was killed
		return nil
	}
	if name = strings.TrimSpace(name); name != plug.Service {
		s.mu.Lock()
		s.rep.Misrouted = append(s.rep.Misrouted, fmt.Sprintf("%s leads to %s, reached %s", plug.Plug, plug.Service, name))
		s.mu.Unlock()
	}
	conn.SetDeadline(time.Time{})
	go func() {
		in.ReadByte() // until either end, or the Manager, closes it
		s.closed(conn)
	}()
	return conn
}

// outcome is the class of a Dial's end; one that has none is a fault.
func outcome(err error) string {
	for _, class := range []error{
		ssmmp.ErrManagerAway, ssmmp.ErrUnavailable, ssmmp.ErrStartTimeout, ssmmp.ErrDraining, context.DeadlineExceeded,
	} {
		if errors.Is(err, class) {
			return class.Error()
		}
	}
	var status *ssmmp.StatusError
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &status) && status.Status == ssmmp.StatusFailed:
		return "the destination ended as it started"
	}
	return unexpected + err.Error()
}

const unexpected = "unexpected: "
