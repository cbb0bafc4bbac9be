package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/ssmmp/ssmmp"
)

// postgresWeb is a gateway that counts its users in PostgreSQL, over plug P1.
func postgresWeb(inst *ssmmp.Instance) (http.Handler, error) {
	config, err := pgxpool.ParseConfig("host=P1 user=postgres sslmode=disable")
	if err != nil {
		return nil, err
	}
	config.ConnConfig.DialFunc = inst.DialContext
	// pgx would look the plug up in DNS.
	config.ConnConfig.LookupFunc = func(_ context.Context, host string) ([]string, error) { return []string{host}, nil }
	config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, "CREATE TABLE IF NOT EXISTS visits (id int PRIMARY KEY, n int); INSERT INTO visits VALUES (1, 0) ON CONFLICT DO NOTHING")
		return err
	}
	pool, err := pgxpool.NewWithConfig(context.Background(), config)
	if err != nil {
		return nil, err
	}
	inst.OnDrain(func(context.Context) { pool.Close() })
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := 0
		err := patiently(r.Context(), func(ctx context.Context) error {
			return pool.QueryRow(ctx, "UPDATE visits SET n = n + 1 WHERE id = 1 RETURNING n").Scan(&n)
		})
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		fmt.Fprintf(w, "visit %d of the shop\n", n)
	}), nil
}

// patiently does something again when it surely was not done: when a
// connection had ended meanwhile, as pgx does not find out by itself, and while
// PostgreSQL, which listens before it is ready, is starting up.
func patiently(ctx context.Context, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	const cannotConnectNow = "57P03"
	for {
		err := do(ctx)
		var pg *pgconn.PgError
		if err == nil || !pgconn.SafeToRetry(err) && !(errors.As(err, &pg) && pg.Code == cannotConnectNow) {
			return err
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return err
		}
	}
}

// postgresServer is the PostgreSQL server as it comes, with a new cluster in
// dir. It does not run as root: then it is user postgres who runs it.
func postgresServer(dir string) (ssmmp.RepositoryEntry, error) {
	none := ssmmp.RepositoryEntry{}
	bin, err := postgresBin()
	if err != nil {
		return none, err
	}
	as := []string{}
	if os.Geteuid() == 0 {
		u, err := user.Lookup("postgres")
		if err != nil {
			return none, err
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		if err := os.Chown(dir, uid, gid); err != nil {
			return none, err
		}
		as = []string{"setpriv", "--reuid=" + u.Uid, "--regid=" + u.Gid, "--clear-groups"}
	}
	data := filepath.Join(dir, "cluster")
	initdb := append(as[:len(as):len(as)], filepath.Join(bin, "initdb"), "--pgdata="+data, "--username=postgres", "--auth=trust", "--no-sync", "--no-locale", "--encoding=UTF8")
	if out, err := exec.Command(initdb[0], initdb[1:]...).CombinedOutput(); err != nil {
		return none, fmt.Errorf("initdb: %w\n%s", err, out)
	}
	if err := appendFile(filepath.Join(data, "pg_hba.conf"), "host all postgres samenet trust\n"); err != nil {
		return none, err
	}
	postgres := append(as, filepath.Join(bin, "postgres"), "-D", data, "-h", "{address}", "-p", "{port:S1}", "-k", "")
	return ssmmp.RepositoryEntry{
		Service:    "postgres",
		Launcher:   ssmmp.CommandLauncher{Path: postgres[0], Template: postgres[1:]},
		StopSignal: "SIGINT", // which does not wait for its clients
	}, nil
}

func appendFile(name, text string) error {
	f, err := os.OpenFile(name, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// postgresBin is where the programs of PostgreSQL are; Debian has them outside
// of PATH.
func postgresBin() (string, error) {
	if path, err := exec.LookPath("postgres"); err == nil {
		path, err = filepath.EvalSymlinks(path)
		return filepath.Dir(path), err
	}
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if err == nil && len(found) == 0 {
		err = fmt.Errorf("postgres: %w: install the package postgresql", exec.ErrNotFound)
	}
	if err != nil {
		return "", err
	}
	return filepath.Dir(found[len(found)-1]), nil
}
