package ssmmp

import (
	"math/rand/v2"
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

// strangers are the connections on which nobody has said yet who it is.
type strangers struct {
	mu      sync.Mutex
	silent  int         // of them may be so for as long as they like
	hurried []*stranger // the others
	full    bool        // and the log says so
}

// A stranger is one of them.
type stranger struct {
	among *strangers
	link  *link
	known bool // it has said who it is
	out   bool // it is not among them any more
	place int  // among those that are hurried; -1 of a silent one
}

// meet takes in a new connection. So many may be silent for as long as they like;
// each further one has to say soon who it is, and where there are too many any
// other of these ends: who keeps connections open keeps nobody else out, and of
// many that come back at once most are served.
func (s *strangers) meet(l *link, silent int, log hclog.Logger) *stranger {
	x := &stranger{among: s, link: l, place: -1}
	s.mu.Lock()
	if s.silent < silent {
		s.silent++
		s.mu.Unlock()
		return x
	}
	l.conn.SetReadDeadline(time.Now().Add(introductionTime))
	var other *stranger
	tell := false
	if n := len(s.hurried); n >= maxStrangers-silent {
		other = s.hurried[rand.IntN(n)]
		s.take(other)
		tell, s.full = !s.full, true
	}
	x.place = len(s.hurried)
	s.hurried = append(s.hurried, x)
	s.mu.Unlock()
	if tell {
		log.Warn("too many connections of nobody known: some are closed")
	}
	if other != nil {
		other.link.abort()
	}
	return x
}

// introduced is called when it is known who it is: it may be silent from now on.
func (x *stranger) introduced() {
	x.known = true
	x.left()
	x.link.conn.SetReadDeadline(time.Time{})
}

// left is called when the connection has ended.
func (x *stranger) left() {
	s := x.among
	s.mu.Lock()
	defer s.mu.Unlock()
	s.take(x)
	s.full = s.full && len(s.hurried) > maxStrangers/4
}

// take takes one out. s.mu is held.
func (s *strangers) take(x *stranger) {
	switch {
	case x.out:
	case x.place < 0:
		s.silent--
	default:
		last := len(s.hurried) - 1
		s.hurried[x.place] = s.hurried[last]
		s.hurried[x.place].place = x.place
		s.hurried[last] = nil
		s.hurried = s.hurried[:last]
	}
	x.out = true
}
