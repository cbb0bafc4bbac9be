package main

import (
	"context"
	"fmt"
	"net/http"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/ssmmp/ssmmp"
)

// grpcWeb is a gateway that calls a gRPC service over plug P1.
func grpcWeb(inst *ssmmp.Instance) (http.Handler, error) {
	conn, err := grpc.NewClient("passthrough:///P1", grpc.WithContextDialer(inst.Dial),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		return nil, err
	}
	inst.OnDrain(func(context.Context) { conn.Close() })
	client := grpc_health_v1.NewHealthClient(conn)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		resp, err := client.Check(r.Context(), &grpc_health_v1.HealthCheckRequest{})
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		fmt.Fprintln(w, "the gRPC server says", resp.Status)
	}), nil
}

// grpcServer is a gRPC server on socket S1, with the health service that comes
// with the library.
func grpcServer(string) (ssmmp.RepositoryEntry, error) {
	return ssmmp.RepositoryEntry{Service: "grpc", Launcher: ssmmp.FuncLauncher(func(ctx context.Context, l ssmmp.Launch) error {
		inst, err := ssmmp.JoinWith(ctx, ssmmp.JoinConfig{Launch: l})
		if err != nil {
			return err
		}
		defer inst.Close()
		defer context.AfterFunc(ctx, inst.Terminate)()
		ln, err := inst.Listen("S1")
		if err != nil {
			return err
		}
		srv := grpc.NewServer()
		defer srv.Stop()
		grpc_health_v1.RegisterHealthServer(srv, health.NewServer())
		inst.OnDrain(func(context.Context) { srv.GracefulStop() })
		if err := srv.Serve(ln); err != nil && inst.Draining() == nil {
			return err
		}
		<-inst.Done()
		return nil
	})}, nil
}
