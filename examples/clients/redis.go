package main

import (
	"context"
	"fmt"
	"net/http"
	"os/exec"

	"github.com/redis/go-redis/v9"

	"github.com/ssmmp/ssmmp"
)

// redisWeb is a gateway that counts its users in Redis, over plug P1.
func redisWeb(inst *ssmmp.Instance) (http.Handler, error) {
	client := redis.NewClient(&redis.Options{Addr: "P1:6379", Dialer: inst.DialContext})
	inst.OnDrain(func(context.Context) { client.Close() })
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, err := client.Incr(r.Context(), "visits").Result()
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		fmt.Fprintf(w, "visit %d of the shop\n", n)
	}), nil
}

// redisServer is the Redis server as it comes. It keeps its data in dir.
func redisServer(dir string) (ssmmp.RepositoryEntry, error) {
	if _, err := exec.LookPath("redis-server"); err != nil {
		return ssmmp.RepositoryEntry{}, fmt.Errorf("%w: install the package redis-server", err)
	}
	return ssmmp.RepositoryEntry{
		Service: "redis",
		Launcher: ssmmp.CommandLauncher{Path: "redis-server", Template: []string{
			"--bind", "{address}", "--port", "{port:S1}", "--protected-mode", "no",
			"--dir", dir, "--save", "", "--appendonly", "yes", "--appendfsync", "always",
		}},
		StopSignal: "SIGTERM",
	}, nil
}
