package ssmmp

import (
	"net"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

const (
	// introductionTime is how long a new connection may take to say who it is,
	// unless it is one of those that may be silent.
	introductionTime = 30 * time.Second
	// maxStrangers bounds the connections, to a Manager or of instances to an
	// agent, on which nobody has said yet who it is.
	maxStrangers = 1024
)

// strangers counts the connections on which nobody has said yet who it is.
type strangers struct {
	mu   sync.Mutex
	n    int
	full bool // and the log says so
}

// A stranger is one of them.
type stranger struct {
	among *strangers
	conn  net.Conn
	known bool // it has said who it is
}

// meet counts a new connection. So many may be silent for as long as they like;
// each further one has to say soon who it is; and where all are there it ends.
func (s *strangers) meet(l *link, silent int, log hclog.Logger) *stranger {
	s.mu.Lock()
	s.n++
	n, tell := s.n, s.n > maxStrangers && !s.full
	s.full = s.full || tell
	s.mu.Unlock()
	if tell {
		log.Warn("too many connections of nobody known: the newest are closed")
	}
	switch {
	case n > maxStrangers:
		l.abort()
	case n > silent:
		l.conn.SetReadDeadline(time.Now().Add(introductionTime))
	}
	return &stranger{among: s, conn: l.conn}
}

// introduced is called when it is known who it is: it may be silent from now on.
func (x *stranger) introduced() {
	if !x.known {
		x.known = true
		x.conn.SetReadDeadline(time.Time{})
		x.among.less()
	}
}

// left is called when the connection has ended.
func (x *stranger) left() {
	if !x.known {
		x.among.less()
	}
}

func (s *strangers) less() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n--
	s.full = s.full && s.n > maxStrangers/2
}
