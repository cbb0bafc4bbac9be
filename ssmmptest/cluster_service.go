package ssmmptest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/ssmmp/ssmmp"
)

// A ServiceFunc is a service of a Cluster. It is called for each instance, in
// a goroutine, when that has joined; ctx ends when the instance is killed, and
// then its connections are closed already and it has to return. It should
// return too when inst.Done is closed.
//
// When it returns nil the instance terminates and its agent is told so. When
// it returns an error, or panics, the instance has crashed: it is gone without
// a word, and its agent finds out. That holds for a panic of the function
// itself and of what Serve calls; one in a goroutine that the function starts
// ends the program, as ever.
type ServiceFunc func(ctx context.Context, inst *ssmmp.Instance) error

// Serve returns a service that accepts at all its sockets and calls handle for
// each connection, in a goroutine of its own; the connection closes when handle
// returns. An error of handle, or a panic in it, crashes the instance.
func Serve(handle func(ctx context.Context, inst *ssmmp.Instance, conn net.Conn) error) ServiceFunc {
	return func(ctx context.Context, inst *ssmmp.Instance) error {
		crash := make(chan any, 1) // an error, or what to panic with
		fail := func(v any) {
			select {
			case crash <- v:
			default: // another was first
			}
		}
		for _, s := range inst.Sockets() {
			ln, err := inst.Listen(s.Socket)
			if err != nil {
				return err
			}
			go func() {
				for {
					conn, err := ln.Accept()
					if err != nil {
						return
					}
					go func() {
						defer func() {
							if v := recover(); v != nil {
								fail(fmt.Sprintf("%v\n%s", v, debug.Stack()))
							}
						}()
						defer conn.Close()
						if err := handle(ctx, inst, conn); err != nil {
							fail(err)
						}
					}()
				}
			}()
		}
		select {
		case <-inst.Done():
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case v := <-crash:
			if err, ok := v.(error); ok {
				return err
			}
			panic(v)
		}
	}
}

// Answer is the service that a Cluster has where it is given no other. At each
// socket it takes lines and answers each with one, until the other end closes:
//
//	who             its service, instance and node: "B 7 10.0.0.2"
//	echo TEXT       TEXT
//	via PLUG LINE   opens a session over PLUG, sends LINE there, and passes the answer on
//	hold PLUG       opens a session over PLUG and keeps it until this connection ends: "held"
//	health STATUS   answers health requests with STATUS from now on: "ok"
//	exit            terminates
//	fail TEXT       crashes with the error TEXT
//	panic TEXT      crashes with a panic
//
// What cannot be done is answered with "error: " and why.
func Answer(ctx context.Context, inst *ssmmp.Instance) error { return answer(ctx, inst) }

var answer = Serve(func(ctx context.Context, inst *ssmmp.Instance, conn net.Conn) error {
	in := bufio.NewScanner(conn)
	for in.Scan() {
		verb, rest, _ := strings.Cut(in.Text(), " ")
		reply := ""
		switch verb {
		case "who":
			reply = fmt.Sprintf("%s %d %s", inst.Service(), inst.ID(), inst.Address())
		case "echo":
			reply = rest
		case "via":
			plug, line, _ := strings.Cut(rest, " ")
			far, err := inst.Dial(ctx, plug)
			if err == nil {
				reply, err = askConn(far, line)
				far.Close()
			}
			if err != nil {
				reply = "error: " + err.Error()
			}
		case "hold":
			far, err := inst.Dial(ctx, rest)
			if err != nil {
				reply = "error: " + err.Error()
				break
			}
			defer far.Close()
			reply = "held"
		case "health":
			status, err := strconv.ParseUint(rest, 10, 16)
			if err == nil {
				err = inst.SetHealth(ssmmp.Status(status))
			}
			if reply = "ok"; err != nil {
				reply = "error: " + err.Error()
			}
		case "exit":
			go inst.Terminate() // closes this connection too
			return nil
		case "fail":
			return errors.New(rest)
		case "panic":
			panic(rest)
		default:
			reply = fmt.Sprintf("error: no such command: %q", verb)
		}
		if _, err := fmt.Fprintln(conn, reply); err != nil {
			return nil
		}
	}
	return nil
})

// askConn sends one line and returns the one that comes back.
func askConn(conn net.Conn, line string) (string, error) {
	if _, err := fmt.Fprintln(conn, line); err != nil {
		return "", err
	}
	reply, err := bufio.NewReader(conn).ReadString('\n')
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return strings.TrimSuffix(reply, "\n"), err
}

// Dial connects to a socket of an API Gateway, by the name of its vertex, as a
// user at UserAddr does. It waits for the gateway to run and to listen, until
// ctx ends.
func (c *Cluster) Dial(ctx context.Context, gateway, socket string) (net.Conn, error) {
	graph, err := c.gateway(gateway, socket)
	if err != nil {
		return nil, err
	}
	for wait := time.Millisecond; ; wait = min(2*wait, 250*time.Millisecond) {
		var conn net.Conn
		err := fmt.Errorf("ssmmptest: no instance of %s runs", gateway)
		for _, i := range c.Snapshot().Instances {
			if i.Graph != graph || i.Vertex != gateway || i.State != ssmmp.InstanceRunning {
				continue
			}
			for _, s := range i.Sockets {
				if s.Socket == socket {
					conn, err = c.users.Dial(ctx, net.JoinHostPort(i.Node.String(), strconv.Itoa(int(s.Port))))
				}
			}
		}
		switch {
		case err == nil:
			return conn, nil
		case c.users.alive.Err() != nil:
			return nil, fmt.Errorf("ssmmptest: cluster: %w", net.ErrClosed)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", ctx.Err(), err)
		case <-time.After(wait):
		}
	}
}

// gateway returns the name of the graph that has a gateway.
func (c *Cluster) gateway(vertex, socket string) (string, error) {
	for _, g := range c.cfg.Graphs {
		v, ok := g.Vertex(vertex)
		if !ok {
			continue
		}
		s, _ := g.Service(v.Service)
		if s.Kind != ssmmp.Gateway {
			return "", fmt.Errorf("ssmmptest: %s is no API Gateway: users cannot dial it", vertex)
		}
		for _, own := range s.Sockets {
			if own.Name == socket {
				return g.Name, nil
			}
		}
		return "", fmt.Errorf("ssmmptest: %s has no socket %q: %w", vertex, socket, ssmmp.ErrNotFound)
	}
	return "", fmt.Errorf("ssmmptest: no graph has the vertex %q: %w", vertex, ssmmp.ErrNotFound)
}

// Ask dials a socket of a gateway, sends one line, such as those that Answer
// takes, and returns the line that comes back.
func (c *Cluster) Ask(ctx context.Context, gateway, socket, line string) (string, error) {
	conn, err := c.Dial(ctx, gateway, socket)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	reply, err := askConn(conn, line)
	if err != nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	return reply, err
}
