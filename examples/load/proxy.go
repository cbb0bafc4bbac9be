package main

import (
	"net"
	"sync"
	"time"
)

// A proxy stands between an agent and its Manager: it keeps a ledger of what
// passes, and can hold it up and cut the connection at any byte.
type proxy struct {
	ln      net.Listener
	manager string
	ledger  *ledger

	mu     sync.Mutex
	thawed sync.Cond
	frozen bool
	closed bool
	conns  [2]*net.TCPConn // of the newest connection; nil when there is none
	wg     sync.WaitGroup
}

func startProxy(ln net.Listener, manager string, l *ledger) *proxy {
	p := &proxy{ln: ln, manager: manager, ledger: l}
	p.thawed.L = &p.mu
	p.wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			p.wg.Go(func() { p.serve(conn.(*net.TCPConn)) })
		}
	})
	return p
}

func (p *proxy) serve(agent *net.TCPConn) {
	defer agent.Close()
	conn, err := net.Dial("tcp", p.manager)
	if err != nil {
		return
	}
	manager := conn.(*net.TCPConn)
	defer manager.Close()
	pair := [2]*net.TCPConn{agent, manager}
	p.mu.Lock()
	p.conns = pair
	if p.closed {
		agent.Close()
	}
	p.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { p.pump(manager, agent) })
	both.Go(func() { p.pump(agent, manager) })
	both.Wait()
	p.mu.Lock()
	if p.conns == pair {
		p.conns = [2]*net.TCPConn{}
	}
	p.mu.Unlock()
}

// pump carries one direction, and ends both when it ends.
func (p *proxy) pump(to, from *net.TCPConn) {
	defer to.Close()
	defer from.Close()
	lines := splitter{line: p.ledger.line}
	buf := make([]byte, 16<<10)
	for {
		n, err := from.Read(buf)
		p.mu.Lock()
		for p.frozen {
			p.thawed.Wait()
		}
		p.mu.Unlock()
		lines.pass(buf[:n])
		if _, werr := to.Write(buf[:n]); err != nil || werr != nil {
			return
		}
	}
}

// freeze holds up whatever passes, until thaw.
func (p *proxy) freeze() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.frozen = true
}

func (p *proxy) thaw() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.frozen = false
	p.thawed.Broadcast()
}

// cut resets the connection at both ends: what is on its way is lost.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		if c != nil {
			c.SetLinger(0)
			c.Close()
		}
	}
}

func (p *proxy) close() {
	p.ln.Close()
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.thaw()
	p.cut()
	p.wg.Wait()
}

// A cutOff is one way to cut an agent off, for a while.
type cutOff struct {
	name string
	do   func(p *proxy, d time.Duration)
}

var cutOffs = []cutOff{
	{"reset", func(p *proxy, _ time.Duration) { p.cut() }},
	{"frozen, then reset", func(p *proxy, d time.Duration) {
		p.freeze()
		time.Sleep(d)
		p.cut()
		p.thaw()
	}},
	{"frozen for a while", func(p *proxy, d time.Duration) {
		p.freeze()
		time.Sleep(d)
		p.thaw()
	}},
}
