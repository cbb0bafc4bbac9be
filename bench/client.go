package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync/atomic"
)

func clientName(n int) string { return fmt.Sprintf("c%03d", n) }

// A client sets up sessions, over a relay or over an agent, with the same
// lines: it sends a session_request, reads the session_response, and sends the
// session_ack, each written by copying and not by the codec.
type client struct {
	conn    io.ReadWriteCloser
	request []byte // and message_id at requestID
	ack     []byte // and its message_id at ackID, its source_plug_port at portAt
	closing []byte // and its message_id at closeID, its source_plug_port at closeAt
	ackID   int
	portAt  int
	closeAt int
	dialTo  string // what a session connects to, if its client dials

	id         int64
	ports      []int // that c's sessions leave from: no other's do
	port       int   // the next of them
	opened     int   // sessions that c did not close
	buf        []byte
	start, end int
}

const (
	// The first digits of a message id are the client's number, so that a
	// relay finds it at a fixed place.
	idDigits, clientDigits  = 14, 4
	firstClient, maxClients = 1000, 1024
	eachClient              = 1e10
	firstPort, lastPort     = 10000, 65535 // all of five digits

	requestHead  = "type: session_request ~ message_id: "
	responseHead = "type: session_response ~ message_id: "
	ackHead      = "type: session_ack ~ message_id: "
	closeHead    = "type: source_service_session_close_info ~ message_id: "
	portKey      = " ~ source_plug_port: "

	requestID, responseID, closeID = len(requestHead), len(responseHead), len(closeHead)
	kindAt                         = len("type: session_") // 'r' of a request, 'a' of an acknowledgment

	// responseLine is what a relay answers: as long as what a Manager does.
	responseLine = responseHead + "00000000000000 ~ sub_type: agent_to_service ~ source_service_name: c000" +
		" ~ source_service_instance_id: 1042000000000 ~ dest_service_name: server ~ dest_service_instance_id: 1043000000000" +
		" ~ dest_socket_name: S1 ~ dest_service_instance_network_address: 127.0.0.1 ~ dest_socket_port: 54003 ~ status: 200\n"
)

// newClient returns client number n of some, which is this instance, for
// sessions to this instance of a server.
func newClient(conn io.ReadWriteCloser, n, of int, instance int64, serverName string, server int64) *client {
	const id, port, socketPort = "00000000000000", "10000", 54000
	c := &client{conn: conn, buf: make([]byte, 64<<10)}
	for p := firstPort + n; p <= lastPort; p += of {
		c.ports = append(c.ports, p)
	}
	c.id = int64(firstClient+n) * eachClient
	service := clientName(n)
	c.request = fmt.Appendf(nil, "%s%s ~ sub_type: service_to_agent ~ source_service_name: %s ~ source_service_instance_id: %d"+
		" ~ source_service_instance_network_address: 127.0.0.1 ~ source_plug_name: P1 ~ dest_service_name: %s ~ dest_socket_name: S1\n",
		requestHead, id, service, instance, serverName)
	c.ack = fmt.Appendf(nil, "%s%s ~ sub_type: service_to_agent ~ source_service_name: %s ~ source_service_instance_id: %d"+
		"%s%s ~ dest_socket_new_port: %d ~ status: 200\n", ackHead, id, service, instance, portKey, port, socketPort)
	c.ackID = len(ackHead)
	c.portAt = bytes.Index(c.ack, []byte(portKey)) + len(portKey)
	c.closing = fmt.Appendf(nil, "%s%s ~ sub_type: source_service_to_agent ~ source_service_name: %s ~ source_service_instance_id: %d"+
		" ~ source_service_instance_network_address: 127.0.0.1 ~ source_plug_name: P1%s%s ~ dest_service_name: %s"+
		" ~ dest_service_instance_id: %d ~ dest_service_instance_network_address: 127.0.0.1 ~ dest_socket_name: S1"+
		" ~ dest_socket_port: %d ~ dest_socket_new_port: %d ~ status: 111\n", closeHead, id, service, instance, portKey, port, serverName, server, socketPort, socketPort)
	c.closeAt = bytes.Index(c.closing, []byte(portKey)) + len(portKey)
	return c
}

// run sets up sessions until told to stop, with some of them in flight, and
// returns how many.
func (c *client) run(stop *atomic.Bool, inFlight int) (done int, err error) {
	for range inFlight {
		if err := c.ask(); err != nil {
			return 0, err
		}
	}
	for waiting := inFlight; waiting > 0; {
		id, err := c.answer()
		if err != nil {
			return 0, err
		}
		done++
		switch {
		case c.dialTo != "":
			port, err := c.dial()
			if err == nil {
				err = c.acknowledge(id, port)
			}
			if err == nil {
				err = c.ends(port)
			}
			if err != nil {
				return 0, err
			}
		default:
			if err := c.acknowledge(id, c.nextPort()); err != nil {
				return 0, err
			}
		}
		waiting--
		if !stop.Load() {
			waiting++
			if err := c.ask(); err != nil {
				return 0, err
			}
		}
	}
	return done, nil
}

func (c *client) ask() error {
	c.id++
	strconv.AppendInt(c.request[:requestID], c.id, 10)
	_, err := c.conn.Write(c.request)
	return err
}

var success = []byte(" ~ status: 200\n")

// answer reads the next answer, and returns its message id, in c.buf.
func (c *client) answer() ([]byte, error) {
	for {
		if n := bytes.IndexByte(c.buf[c.start:c.end], '\n'); n >= 0 {
			line := c.buf[c.start : c.start+n+1]
			c.start += n + 1
			if !bytes.HasPrefix(line, []byte(responseHead)) {
				continue // a health request: one unanswered harms nobody
			}
			if !bytes.HasSuffix(line, success) {
				return nil, errors.New(string(line))
			}
			return line[responseID : responseID+idDigits], nil
		}
		c.end = copy(c.buf, c.buf[c.start:c.end])
		c.start = 0
		n, err := c.conn.Read(c.buf[c.end:])
		if err != nil {
			return nil, err
		}
		c.end += n
	}
}

func (c *client) acknowledge(id []byte, port int) error {
	copy(c.ack[c.ackID:], id)
	strconv.AppendInt(c.ack[:c.portAt], int64(port), 10)
	_, err := c.conn.Write(c.ack)
	return err
}

// refuse acknowledges that a session did not come about.
func (c *client) refuse(id []byte) error {
	copy(c.ack[c.ackID:], id)
	_, err := c.conn.Write(bytes.Replace(c.ack, success, []byte(" ~ status: 499\n"), 1))
	return err
}

// ends reports the end of the session from a port.
func (c *client) ends(port int) error {
	c.id++
	strconv.AppendInt(c.closing[:closeID], c.id, 10)
	strconv.AppendInt(c.closing[:c.closeAt], int64(port), 10)
	_, err := c.conn.Write(c.closing)
	return err
}

// nextPort returns a port for one more session.
func (c *client) nextPort() int {
	c.port = (c.port + 1) % len(c.ports)
	c.opened = min(c.opened+1, len(c.ports))
	return c.ports[c.port]
}

// closeAll ends all sessions that c opened, and waits until that is known.
func (c *client) closeAll() error {
	for ; c.opened > 0; c.opened-- {
		if err := c.ends(c.ports[(c.port-c.opened+1+len(c.ports))%len(c.ports)]); err != nil {
			return err
		}
	}
	if err := c.ask(); err != nil {
		return err
	}
	id, err := c.answer()
	if err != nil {
		return err
	}
	return c.acknowledge(id, c.nextPort())
}

// dial connects to the destination, closes the connection, and returns the port
// that it left from. It is reset, for
// else its port would rest for a minute, and there are not enough of them.
func (c *client) dial() (port int, err error) {
	conn, err := net.Dial("tcp", c.dialTo)
	if err != nil {
		return 0, err
	}
	conn.(*net.TCPConn).SetLinger(0)
	return conn.LocalAddr().(*net.TCPAddr).Port, conn.Close()
}
