package main

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/ssmmp/ssmmp/sqlitestore"
)

// What it costs that nothing leaves before it is on the disk.

const (
	durable  = "durable set-ups"
	inMemory = "set-ups without a store"
)

func durableRows(o options) []row {
	dir, err := os.MkdirTemp(o.dir, "ssmmp-bench-")
	check(err)
	defer os.RemoveAll(dir)
	contenders := []contender{
		{inMemory, setUpContender(tcp, 1, "").start},
		{durable, func(clients int) crew {
			store := sqlitestore.New(filepath.Join(dir, fmt.Sprintf("%d.db", clients)))
			m := startMesh(tcp(), clients, nil, store)
			w := m.crew(clients, 1, "")
			w.stop = m.stop
			return w
		}},
	}
	etcd := hasEtcd(o)
	if etcd {
		contenders = append(contenders, etcdContender(etcdPut, dir))
	}
	sync := syncTime(dir)
	var rows []row
	for _, clients := range clientCounts {
		r := race(contenders, clients, o.rounds, o.each)
		w := row{
			what:   fmt.Sprintf("durable set-ups over TCP, %d clients, an fsync takes %s: × the same without a store", clients, ms(sync)),
			values: []string{rate(median(r[durable])) + " : " + rate(median(r[inMemory]))},
			ratios: []float64{r.ratio(durable, inMemory)},
		}
		if clients == 256 {
			w.targets = []float64{0.75}
		}
		rows = append(rows, w)
		if !etcd {
			continue
		}
		w = row{
			what:   "the same: × " + etcdPut,
			values: []string{rate(median(r[durable])) + " : " + rate(median(r[etcdPut]))},
			ratios: []float64{r.ratio(durable, etcdPut)},
		}
		if clients >= 16 {
			w.targets = []float64{4}
		}
		rows = append(rows, w)
	}
	return rows
}

// syncTime returns how long a write with its fsync takes in a directory, in
// milliseconds: next to nothing if that is in memory, and then the rows say
// nothing about a disk.
func syncTime(dir string) float64 {
	f, err := os.Create(filepath.Join(dir, "sync"))
	check(err)
	defer f.Close()
	var took []float64
	for range 20 {
		began := time.Now()
		_, err := f.Write(make([]byte, 4096))
		check(err)
		check(f.Sync())
		took = append(took, time.Since(began).Seconds()*1000)
	}
	return median(took)
}
