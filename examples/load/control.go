package main

import (
	"encoding/json"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/ssmmp/ssmmp"
)

// A control tells all instances to dial or to pause, and hears what they say
// of themselves. Each has a connection to it for as long as it lives.
type control struct {
	ln net.Listener
	wg sync.WaitGroup

	mu       sync.Mutex
	order    string
	children map[ssmmp.InstanceID]*child
	born     int
}

// A child is an instance on its control connection.
type child struct {
	id   ssmmp.InstanceID
	conn net.Conn

	mu      sync.Mutex // one order at a time
	orders  *json.Encoder
	reports *json.Decoder
}

func startControl() (*control, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	c := &control{ln: ln, order: "pause", children: map[ssmmp.InstanceID]*child{}}
	c.wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			c.wg.Go(func() { c.welcome(conn) })
		}
	})
	return c, nil
}

// welcome takes in an instance, and gives it the order of the hour.
func (c *control) welcome(conn net.Conn) {
	ch := &child{conn: conn, orders: json.NewEncoder(conn), reports: json.NewDecoder(conn)}
	var hello report
	if err := ch.reports.Decode(&hello); err != nil {
		conn.Close()
		return
	}
	ch.id = hello.ID
	c.mu.Lock()
	c.children[ch.id] = ch
	c.born++
	c.mu.Unlock()
	c.tell(ch)
}

// tell gives a child the order and returns its report; one that does not
// answer has ended.
func (c *control) tell(ch *child) (report, bool) {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	c.mu.Lock()
	order := c.order
	c.mu.Unlock()
	var r report
	// A pause waits for the dials under way, and these for what they may take.
	ch.conn.SetDeadline(time.Now().Add(3 * patience))
	err := ch.orders.Encode(order)
	if err == nil {
		err = ch.reports.Decode(&r)
	}
	if err != nil {
		ch.conn.Close()
		c.mu.Lock()
		delete(c.children, ch.id)
		c.mu.Unlock()
	}
	return r, err == nil
}

// all gives all instances an order and returns the reports of those that live,
// by their ids.
func (c *control) all(order string) []report {
	c.mu.Lock()
	c.order = order
	var children []*child
	for _, ch := range c.children {
		children = append(children, ch)
	}
	c.mu.Unlock()
	reports := make([]report, len(children))
	var told sync.WaitGroup
	for n, ch := range children {
		told.Go(func() {
			if r, ok := c.tell(ch); ok {
				reports[n] = r
			}
		})
	}
	told.Wait()
	reports = slices.DeleteFunc(reports, func(r report) bool { return r.ID == 0 })
	slices.SortFunc(reports, func(a, b report) int { return int(a.ID - b.ID) })
	return reports
}

func (c *control) close() {
	c.ln.Close()
	c.mu.Lock()
	for _, ch := range c.children {
		ch.conn.Close()
	}
	c.mu.Unlock()
	c.wg.Wait()
}
