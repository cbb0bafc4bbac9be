package sqlitestore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ssmmp/ssmmp"
)

// history is a short life of a mesh.
func history() []ssmmp.Event {
	node := netip.MustParseAddr("10.0.0.1")
	events := []ssmmp.Event{
		{Kind: ssmmp.EventGraphDeployed, Graph: "shop", Actor: "operator"},
		{Kind: ssmmp.EventAgentRegistered, Node: node, Actor: "agent 10.0.0.1"},
		{Kind: ssmmp.EventAgentRegistered, Node: netip.MustParseAddr("10.0.0.2"), Actor: "agent 10.0.0.2"},
		{Kind: ssmmp.EventInstanceRequested, Graph: "shop", Vertex: "web", Service: "web", Instance: 7, Node: node, Actor: "Manager", Cause: "deployed", CauseSeq: 1},
		{Kind: ssmmp.EventInstanceReady, Graph: "shop", Vertex: "web", Service: "web", Instance: 7, Node: node, Status: 200, CauseSeq: 4},
		{Kind: ssmmp.EventInstanceRequested, Graph: "shop", Vertex: "cart", Service: "cart", Instance: 8, Node: node, Actor: "instance 7", CauseSeq: 4},
		{Kind: ssmmp.EventInstanceReady, Graph: "shop", Vertex: "cart", Service: "cart", Instance: 8, Node: node, Status: 200, CauseSeq: 6},
		{Kind: ssmmp.EventSessionOffered, Graph: "shop", Service: "cart", Session: 1, Source: 7, Destination: 8, Plug: "P1", Socket: "S1", MessageID: 5},
		{Kind: ssmmp.EventSessionOpened, Graph: "shop", Service: "cart", Session: 1, Source: 7, Destination: 8, Plug: "P1", Socket: "S1", PlugPort: 40000, NewPort: 50000, MessageID: 5},
		{Kind: ssmmp.EventSessionOffered, Graph: "shop", Service: "cart", Session: 2, Source: 7, Destination: 8, Plug: "P1", Socket: "S1", MessageID: 6},
		{Kind: ssmmp.EventSessionClosed, Graph: "shop", Service: "cart", Session: 2, Source: 7, Destination: 8, Plug: "P1", Socket: "S1", MessageID: 6, Status: 504, Cause: "not acknowledged"},
		{Kind: ssmmp.EventAgentAway, Node: netip.MustParseAddr("10.0.0.2")},
		{Kind: ssmmp.EventInstanceStopping, Graph: "shop", Vertex: "web", Service: "web", Instance: 7, Node: node, Actor: "operator", Cause: "it's \"old\""},
	}
	for i := range events {
		events[i].Seq = uint64(i + 1)
		events[i].Time = time.Date(2026, 1, 2, 3, 4, i, 123456789, time.UTC)
	}
	return events
}

func acquire(t testing.TB, path string) *Store {
	t.Helper()
	s := New(path)
	if _, _, err := s.Acquire(context.Background()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// What the package comment says of the tables and views holds for the tool that
// a person has, while a Manager has the store.
func TestTool(t *testing.T) {
	t.Parallel()
	tool, err := exec.LookPath("sqlite3")
	if err != nil {
		t.Skip("SKIPPED: no sqlite3 tool here, which would ask the tables and views:", err)
	}
	path := filepath.Join(t.TempDir(), "mana?g%er.db")
	s := acquire(t, path)
	events := history()
	must(t, s.Append(t.Context(), events[:3]))
	must(t, s.Append(t.Context(), events[3:]))
	ask := func(query string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		out, err := exec.CommandContext(ctx, tool, "-readonly", path, query).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", query, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	check := func(query, want string) {
		t.Helper()
		if got := ask(query); got != want {
			t.Errorf("%s\ngot:\n%s\nwant:\n%s", query, got, want)
		}
	}
	check("SELECT * FROM events WHERE seq = 9",
		"9|2026-01-02 03:04:08.123|session opened|shop||cart|||1|7|P1|40000|8|S1|50000|5||instance 7||")
	check("SELECT * FROM events WHERE seq = 13",
		`13|2026-01-02 03:04:12.123|instance stopping|shop|web|web|7|10.0.0.1||||||||||operator|it's "old"|`)
	check("SELECT count(*), min(seq), max(seq) FROM events", "13|1|13")
	check("SELECT c.kind, c.actor FROM events e JOIN events c ON c.seq = e.cause_seq WHERE e.instance = 7 AND e.kind = 'instance requested'", "graph deployed|operator")
	check("SELECT seq FROM events WHERE service = 'cart' AND time >= '2026-01-02 03:04:09' ORDER BY seq", "10\n11")
	check("SELECT epoch, last FROM managers", "1|0")

	present := func() {
		t.Helper()
		check("SELECT * FROM agents ORDER BY node", "10.0.0.1|up|2026-01-02 03:04:01.123|\n10.0.0.2|away|2026-01-02 03:04:11.123|")
		check("SELECT * FROM instances ORDER BY instance",
			"7|web|shop|web|10.0.0.1|stopping|2026-01-02 03:04:12.123||operator|it's \"old\"\n8|cart|shop|cart|10.0.0.1|running|2026-01-02 03:04:06.123|200||")
		check("SELECT session, source, plug, plug_port, destination, service, socket, new_port, state, since, actor FROM sessions WHERE state = 'open'",
			"1|7|P1|40000|8|cart|S1|50000|open|2026-01-02 03:04:08.123|instance 7")
	}
	present()
	check("SELECT session, state, status, cause FROM sessions WHERE state <> 'open'", "2|closed|504|not acknowledged")
	// The same from a checkpoint, and the events after it.
	state := slices.Concat(events[:2], events[2:9], events[11:12])
	early := []ssmmp.Event{{Kind: ssmmp.EventAgentAway, Node: netip.MustParseAddr("10.0.0.1"), Time: time.Unix(0, 0)}}
	state = append(slices.Repeat(early, 2*checkpointEvents), state...) // in three parts, of which the last counts
	must(t, s.Checkpoint(t.Context(), 12, state))
	present()
	check("SELECT count(*) FROM sessions", "1")
	must(t, s.Retain(t.Context(), ssmmp.Retention{MaxBytes: 1}))
	present()
	check("SELECT count(*), min(seq), max(seq) FROM events", "1|13|13")
}

// A person who has a transaction open is in the way of the Manager, and is told
// apart from a full disk: nothing is removed to make room. Once it has ended the
// store goes on.
func TestToolHasTransaction(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "manager.db")
	s := acquire(t, path)
	events := history()
	must(t, s.Append(t.Context(), events[:4]))
	must(t, s.Checkpoint(t.Context(), 4, events[:4]))
	must(t, s.Retain(t.Context(), ssmmp.Retention{MaxBytes: 1 << 30}))
	reserve, err := os.Stat(path + "-reserve")
	must(t, err)
	_, err = s.conn.ExecContext(t.Context(), "PRAGMA busy_timeout = 0")
	must(t, err)
	db, err := open(path, "rw")
	must(t, err)
	defer db.Close()
	person, err := db.Conn(t.Context())
	must(t, err)
	defer person.Close()
	_, err = person.ExecContext(t.Context(), "BEGIN IMMEDIATE")
	must(t, err)
	for what, err := range map[string]error{
		"append":     s.Append(t.Context(), events[4:]),
		"checkpoint": s.Checkpoint(t.Context(), 4, events[:4]),
		"retain":     s.Retain(t.Context(), ssmmp.Retention{MaxBytes: 1}),
	} {
		if !errors.Is(err, ssmmp.ErrStoreBusy) || errors.Is(err, ssmmp.ErrStoreFull) || errors.Is(err, ssmmp.ErrStoreFailed) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, want ErrStoreBusy", what, err)
		}
	}
	if now, err := os.Stat(path + "-reserve"); err != nil || !os.SameFile(now, reserve) {
		t.Errorf("the reserve is gone: %v", err)
	}
	_, err = person.ExecContext(t.Context(), "ROLLBACK")
	must(t, err)
	must(t, s.Append(t.Context(), events[4:]))
}

// Each field of an event that the views have stands in its own column.
func TestViewFields(t *testing.T) {
	t.Parallel()
	s := acquire(t, filepath.Join(t.TempDir(), "manager.db"))
	ev := ssmmp.Event{Seq: 1, Time: time.Unix(1, 0), Kind: ssmmp.EventInstanceReady, Graph: "g", Vertex: "v", Service: "s", Instance: 1, Node: netip.MustParseAddr("::1"),
		Session: 2, Source: 3, Destination: 4, Plug: "p", Socket: "q", PlugPort: 5, NewPort: 6, MessageID: 7, Status: 8, Actor: "a", Cause: "c", CauseSeq: 9}
	later := ev
	later.Seq, later.Time = 2, time.Unix(2, 500_000_000)
	must(t, s.Append(t.Context(), []ssmmp.Event{ev, later}))
	for seq, want := range []string{"1970-01-01 00:00:01.000", "1970-01-01 00:00:02.500"} {
		var got string
		must(t, s.conn.QueryRowContext(t.Context(), `SELECT concat_ws('|', time, kind, graph, vertex, service, instance, node, session, source, destination,
			plug, socket, plug_port, new_port, message, status, actor, cause, cause_seq) FROM events WHERE seq = ?`, seq+1).Scan(&got))
		if want += "|instance ready|g|v|s|1|::1|2|3|4|p|q|5|6|7|8|a|c|9"; got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}

// A file that cannot be opened is refused with the reason.
func TestUnusable(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "manager.db")
	must(t, os.Mkdir(path, 0o700))
	_, _, err := New(path).Acquire(t.Context())
	if err == nil || !strings.Contains(err.Error(), path+": not a regular file") {
		t.Errorf("a directory: %v", err)
	}
	must(t, os.Remove(path))
	must(t, os.Symlink(filepath.Join(path, "nowhere"), path))
	_, _, err = New(path).Acquire(t.Context())
	if err == nil || !strings.Contains(err.Error(), "stat "+path) {
		t.Errorf("a link to nowhere: %v", err)
	}
	if os.Getuid() == 0 {
		t.Skip("SKIPPED: root may read and write every file")
	}
	must(t, os.Remove(path))
	must(t, os.WriteFile(path, nil, 0o000))
	if _, _, err = New(path).Acquire(t.Context()); !errors.Is(err, os.ErrPermission) {
		t.Errorf("a file that is not to be opened: %v", err)
	}
}

// A file of an earlier version keeps all it holds, also if its migration is
// interrupted; one of a later version, or of another program, is left alone.
func TestMigrate(t *testing.T) {
	t.Parallel()
	old := func(t *testing.T, statements ...string) string {
		t.Helper()
		path := filepath.Join(t.TempDir(), "manager.db")
		db, err := open(path, "rwc")
		must(t, err)
		defer db.Close()
		for _, s := range statements {
			_, err := db.Exec(s)
			must(t, err)
		}
		return path
	}
	version := func(n int) string {
		return fmt.Sprintf("PRAGMA user_version = %d; PRAGMA application_id = %d", n, applicationID)
	}
	events := history()
	record := string(ssmmp.AppendEvents(nil, events))
	r := row{first: 1, count: uint64(len(events)), epoch: 4, time: nano(events[0].Time), since: nano(events[0].Time), until: nano(events[len(events)-1].Time)}
	data := fmt.Sprintf("INSERT INTO managers VALUES (4, '', 1, '', 0); INSERT INTO log VALUES (1, %d, 4, %d, %d, %d, %d, '%s')",
		r.count, r.time, r.since, r.until, r.checksum(), strings.ReplaceAll(record, "'", "''"))

	path := old(t, steps[0], version(1), data)
	s := acquire(t, path)
	if s.epoch != 5 || s.last != uint64(len(events)) {
		t.Errorf("epoch %d, last event %d", s.epoch, s.last)
	}
	n := 0
	must(t, s.conn.QueryRowContext(t.Context(), "SELECT count(*) FROM events WHERE kind = 'session offered'").Scan(&n))
	if n != 2 {
		t.Errorf("the new view has %d of 2 events", n)
	}
	must(t, s.Close())
	s = acquire(t, path) // again, with nothing to do
	must(t, s.Close())

	for name, path := range map[string]string{
		"later version":            old(t, steps[0], steps[1], version(len(steps)+1)),
		"another program":          old(t, "CREATE TABLE t (x)"),
		"another program's number": old(t, "PRAGMA application_id = 7"),
		"half migrated":            old(t, steps[0], steps[1], version(1)), // which a transaction does not leave
	} {
		t.Run(name, func(t *testing.T) {
			before, err := os.ReadFile(path)
			must(t, err)
			s := New(path)
			if _, _, err := s.Acquire(t.Context()); err == nil {
				t.Fatal("acquired")
			} else {
				t.Log(err)
			}
			if _, ok := errors.AsType[*ssmmp.StoreError](func() error {
				for _, err := range New(path).Query(t.Context(), ssmmp.EventQuery{}) {
					return err
				}
				return nil
			}()); !ok && name != "half migrated" {
				t.Error("read")
			}
			must(t, s.Close())
			if after, err := os.ReadFile(path); name != "half migrated" && (err != nil || !bytes.Equal(before, after)) {
				t.Errorf("not left alone: %v", err)
			}
		})
	}
}
