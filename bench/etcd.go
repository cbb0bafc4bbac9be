package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// etcd, which meshes keep their services in: a process of its own, with its
// files on the same disk as the other databases. On Debian it is in etcd-server.

const (
	etcdGet = "etcd linearizable get"
	etcdPut = "etcd put with a lease"
)

// hasEtcd reports whether etcd can be raced, and says so if not.
func hasEtcd(o options) bool {
	if !o.peers {
		return false
	}
	_, err := exec.LookPath("etcd")
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench: the rows on etcd are left out:", err)
	}
	return err == nil
}

// etcdContender has each client get, or put, a value of the size of a response
// over a connection of its own.
func etcdContender(name, dir string) contender {
	return contender{name, func(clients int) crew {
		dir, err := os.MkdirTemp(dir, "ssmmp-bench-etcd-")
		check(err)
		at := "http://127.0.0.1:" + strconv.Itoa(freePort())
		log, err := os.Create(filepath.Join(dir, "log"))
		check(err)
		peer := "http://127.0.0.1:" + strconv.Itoa(freePort())
		cmd := exec.Command("etcd", "--name", "bench", "--data-dir", filepath.Join(dir, "data"),
			"--listen-client-urls", at, "--advertise-client-urls", at,
			"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "bench="+peer)
		cmd.Stdout, cmd.Stderr = log, log
		check(cmd.Start())
		ctx := context.Background()
		w := crew{}
		var all []*clientv3.Client
		w.stop = func() {
			for _, c := range all {
				c.Close()
			}
			cmd.Process.Kill()
			cmd.Wait()
			log.Close()
			os.RemoveAll(dir)
		}
		value := responseLine
		for n := range clients {
			c, err := clientv3.New(clientv3.Config{Endpoints: []string{at}, DialTimeout: 30 * time.Second})
			check(err)
			all = append(all, c)
			first, cancel := context.WithTimeout(ctx, 30*time.Second) // it may not be ready yet
			lease, err := c.Grant(first, 3600)
			check(err)
			key := clientName(n)
			put := func() error {
				_, err := c.Put(ctx, key, value, clientv3.WithLease(lease.ID))
				return err
			}
			check(put())
			cancel()
			do := put
			if name == etcdGet {
				do = func() error {
					_, err := c.Get(ctx, key)
					return err
				}
			}
			w.loops = append(w.loops, func(stop *atomic.Bool) (done int, err error) {
				for ; !stop.Load(); done++ {
					if err := do(); err != nil {
						return 0, err
					}
				}
				return done, nil
			})
		}
		return w
	}}
}
