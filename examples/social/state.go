package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"

	"github.com/ssmmp/ssmmp"
	"github.com/ssmmp/ssmmp/sqlitestore"
)

// The state of a mesh that is kept: the Manager's in manager.db, each agent's in
// a directory of its own, beside the data of the storage services.

// An earlier mesh is what a directory holds of the one that had it before. The
// zero value is that of none.
type earlier struct {
	event    uint64       // the last one of the history
	node     netip.Addr   // one of its nodes
	graph    *ssmmp.Graph // still deployed, with the port that its gateway has; nil if none is
	retiring bool         // and being undeployed
}

func openStore(dataDir string) *sqlitestore.Store {
	return sqlitestore.New(filepath.Join(dataDir, "manager.db"))
}

func agentDir(dataDir string, node int) string {
	return filepath.Join(dataDir, "agent-"+strconv.Itoa(node+1))
}

// readEarlier reads what a directory holds. It fails with ErrStoreInUse while a
// mesh runs that has the directory.
func readEarlier(ctx context.Context, dataDir string) (e earlier, err error) {
	store := openStore(dataDir)
	if _, _, err := store.Acquire(ctx); err != nil {
		return e, err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	s, err := ssmmp.StateAt(ctx, store, 0)
	if err != nil {
		return e, err
	}
	e.event = s.Seq
	if len(s.Agents) > 0 {
		e.node = s.Agents[0].Address
	}
	if len(s.Graphs) == 0 {
		return e, nil
	}
	e.retiring = s.Graphs[0].Retiring
	var deployed struct{ Graph json.RawMessage }
	for ev, err := range store.Query(ctx, ssmmp.EventQuery{Kinds: []ssmmp.EventKind{ssmmp.EventGraphDeployed}}) {
		if err == nil {
			err = json.Unmarshal([]byte(ev.Detail), &deployed)
		}
		if err != nil {
			return e, err
		}
	}
	if e.graph, err = ssmmp.ParseGraph(deployed.Graph); err != nil {
		return e, fmt.Errorf("the deployed graph: %w", err)
	}
	return e, nil
}

// makeDataDir returns the directory of a mesh, a temporary one by default, and
// what removes it when it is one.
func makeDataDir(dir string) (string, func(), error) {
	if dir != "" {
		return dir, func() {}, os.MkdirAll(dir, 0o700)
	}
	dir, err := os.MkdirTemp("", "social-")
	return dir, func() { os.RemoveAll(dir) }, err
}
