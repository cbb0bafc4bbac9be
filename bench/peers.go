package main

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/ssmmp/ssmmp/bench/sessionpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// The peers: what else a service could ask its way with, each in this process,
// each with the same information in its request and its response.

const (
	natsPlain = "NATS request and reply"
	natsLeaf  = "NATS through a leaf node"
	grpcProxy = "gRPC unary through a proxy"
)

// natsContender has each client ask over a connection of its own, to the server
// of the responder or to a leaf node of it, as an instance asks its agent.
func natsContender(name string, leaf bool) contender {
	return contender{name, func(clients int) crew {
		leafPort := freePort()
		hub := natsServer(&server.Options{LeafNode: server.LeafNodeOpts{Host: "127.0.0.1", Port: leafPort}})
		near, stop := hub, hub.Shutdown
		if leaf {
			to, err := url.Parse(fmt.Sprintf("nats-leaf://127.0.0.1:%d", leafPort))
			check(err)
			near = natsServer(&server.Options{LeafNode: server.LeafNodeOpts{Remotes: []*server.RemoteLeafOpts{{URLs: []*url.URL{to}}}}})
			stop = func() { near.Shutdown(); hub.Shutdown() }
		}
		request, response := []byte(requestLine()), []byte(responseLine)
		responder, err := nats.Connect(hub.ClientURL())
		check(err)
		_, err = responder.Subscribe("sessions", func(m *nats.Msg) { m.Respond(response) })
		check(err)
		check(responder.Flush())

		w := crew{stop: stop}
		for range clients {
			nc, err := nats.Connect(near.ClientURL())
			check(err)
			for { // a leaf node may not know of the responder yet
				if _, err = nc.Request("sessions", request, 10*time.Second); err != nats.ErrNoResponders {
					break
				}
				time.Sleep(time.Millisecond)
			}
			check(err)
			w.loops = append(w.loops, func(stop *atomic.Bool) (done int, err error) {
				for ; !stop.Load(); done++ {
					if _, err := nc.Request("sessions", request, 10*time.Second); err != nil {
						return 0, err
					}
				}
				return done, nil
			})
		}
		return w
	}}
}

func freePort() int {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port
}

func natsServer(o *server.Options) *server.Server {
	o.Host, o.Port, o.NoLog, o.NoSigs = "127.0.0.1", -1, true, true
	s, err := server.NewServer(o)
	check(err)
	s.Start()
	if !s.ReadyForConnections(30 * time.Second) {
		fatal("NATS is not ready")
	}
	return s
}

// requestLine is a request as a client sends it.
func requestLine() string {
	return string(newClient(nil, 0, 1, 1042000000000, "server", 1043000000000).request)
}

const grpcMethod = "/bench.Sessions/Ask"

// grpcContender has each client ask over a connection of its own, through a
// proxy that passes each call on over one connection to the server.
func grpcContender() contender {
	return contender{grpcProxy, func(clients int) crew {
		answer := subjects()[1].known.message.(*sessionpb.SessionResponse)
		far, stopFar := grpcServer(func(context.Context, *sessionpb.SessionRequest) (*sessionpb.SessionResponse, error) {
			return answer, nil
		})
		up := grpcDial(far)
		near, stopNear := grpcServer(func(ctx context.Context, q *sessionpb.SessionRequest) (*sessionpb.SessionResponse, error) {
			p := new(sessionpb.SessionResponse)
			return p, up.Invoke(ctx, grpcMethod, q, p)
		})
		w := crew{stop: func() { stopNear(); stopFar() }}
		question := subjects()[0].known.message.(*sessionpb.SessionRequest)
		for range clients {
			conn := grpcDial(near)
			w.loops = append(w.loops, func(stop *atomic.Bool) (done int, err error) {
				for ; !stop.Load(); done++ {
					if err := conn.Invoke(context.Background(), grpcMethod, question, new(sessionpb.SessionResponse)); err != nil {
						return 0, err
					}
				}
				return done, nil
			})
		}
		return w
	}}
}

type grpcHandler func(context.Context, *sessionpb.SessionRequest) (*sessionpb.SessionResponse, error)

func grpcServer(handle grpcHandler) (addr string, stop func()) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	s := grpc.NewServer()
	s.RegisterService(&grpc.ServiceDesc{ServiceName: "bench.Sessions", HandlerType: (*any)(nil), Methods: []grpc.MethodDesc{{
		MethodName: "Ask",
		Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			q := new(sessionpb.SessionRequest)
			if err := decode(q); err != nil {
				return nil, err
			}
			return handle(ctx, q)
		},
	}}}, struct{}{})
	go s.Serve(ln)
	return ln.Addr().String(), s.Stop
}

func grpcDial(addr string) *grpc.ClientConn {
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	check(err)
	return conn
}
