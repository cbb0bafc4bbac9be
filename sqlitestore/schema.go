package sqlitestore

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/ssmmp/ssmmp"
)

// applicationID marks the files of this package, in the header of the file:
// "SSMP".
const applicationID = 0x53534d50

// steps lead from each version of the schema to the next: the version of a file
// is how many of them it has seen. A step that was released is never changed.
var steps = []string{tables, views}

const tables = `
CREATE TABLE managers (
	epoch INTEGER PRIMARY KEY,
	since TEXT NOT NULL,
	pid   INTEGER NOT NULL,
	host  TEXT NOT NULL,
	last  INTEGER NOT NULL
);
CREATE TABLE log (
	first  INTEGER PRIMARY KEY,
	count  INTEGER NOT NULL,
	epoch  INTEGER NOT NULL,
	time   INTEGER NOT NULL,
	since  INTEGER NOT NULL,
	until  INTEGER NOT NULL,
	sum    INTEGER NOT NULL,
	record TEXT NOT NULL
);
CREATE TABLE kept (
	first INTEGER NOT NULL,
	sum   INTEGER NOT NULL
);
INSERT INTO kept VALUES (1, 2126439055);
CREATE TABLE checkpoint (
	seq    INTEGER NOT NULL,
	part   INTEGER NOT NULL,
	parts  INTEGER NOT NULL,
	first  INTEGER NOT NULL,
	time   INTEGER NOT NULL,
	sum    INTEGER NOT NULL,
	record TEXT NOT NULL,
	UNIQUE (seq, part)
);
CREATE TABLE kinds (
	kind INTEGER PRIMARY KEY,
	name TEXT NOT NULL
);`

// fields are the columns of the views that come from the record of an event, by
// its place there (ssmmp.AppendEvents). e is the event, t the record's time.
const fields = `
	strftime('%Y-%m-%d %H:%M:%f', (t + coalesce(json_extract(e, '$[19]'), 0)) / 1000000000.0, 'unixepoch') AS time,
	(SELECT name FROM kinds WHERE kind = json_extract(e, '$[0]')) AS kind,
	nullif(json_extract(e, '$[1]'), 0) AS graph,
	nullif(json_extract(e, '$[17]'), 0) AS vertex,
	nullif(json_extract(e, '$[2]'), 0) AS service,
	nullif(json_extract(e, '$[3]'), 0) AS instance,
	nullif(json_extract(e, '$[4]'), 0) AS node,
	nullif(json_extract(e, '$[5]'), 0) AS session,
	nullif(json_extract(e, '$[6]'), 0) AS source,
	nullif(json_extract(e, '$[8]'), 0) AS plug,
	nullif(json_extract(e, '$[13]'), 0) AS plug_port,
	nullif(json_extract(e, '$[7]'), 0) AS destination,
	nullif(json_extract(e, '$[9]'), 0) AS socket,
	nullif(json_extract(e, '$[14]'), 0) AS new_port,
	nullif(json_extract(e, '$[10]'), 0) AS message,
	nullif(json_extract(e, '$[15]'), 0) AS status,
	coalesce(nullif(json_extract(e, '$[11]'), 0), 'instance ' || nullif(json_extract(e, '$[6]'), 0)) AS actor,
	nullif(json_extract(e, '$[16]'), 0) AS cause,
	nullif(json_extract(e, '$[12]'), 0) AS cause_seq`

const views = `
CREATE VIEW events AS SELECT n + coalesce(json_extract(e, '$[20]'), 0) AS seq,` + fields + `
FROM (SELECT l.first + j.key AS n, j.value AS e, l.time AS t FROM log l, json_each(l.record, '$.events') j);

CREATE VIEW present AS SELECT place,` + fields + `
FROM (
	SELECT part * 1000000 + j.key - (1 << 60) AS place, j.value AS e, c.time AS t
	FROM checkpoint c, json_each(c.record, '$.events') j
	WHERE seq = (SELECT max(seq) FROM (SELECT seq FROM checkpoint GROUP BY seq HAVING count(*) = max(parts)))
UNION ALL
	SELECT l.first + j.key, j.value, l.time
	FROM log l, json_each(l.record, '$.events') j
	WHERE l.first + j.key > (SELECT coalesce(max(seq), 0) FROM (SELECT seq FROM checkpoint GROUP BY seq HAVING count(*) = max(parts)))
	AND l.first + l.count - 1 > (SELECT coalesce(max(seq), 0) FROM (SELECT seq FROM checkpoint GROUP BY seq HAVING count(*) = max(parts)))
);

CREATE VIEW agents AS
SELECT node, CASE kind WHEN 'agent registered' THEN 'up' WHEN 'agent away' THEN 'away' ELSE 'lost' END AS state, time AS since, cause
FROM (SELECT node, kind, time, cause, max(place) FROM present WHERE kind IN ('agent registered', 'agent away', 'agent lost') GROUP BY node);

CREATE VIEW instances AS
SELECT instance, service, graph, vertex, node,
	CASE kind WHEN 'instance requested' THEN 'starting' WHEN 'instance ready' THEN 'running' ELSE substr(kind, length('instance ') + 1) END AS state,
	time AS since, status, actor, cause
FROM (SELECT *, max(place) FROM present WHERE kind LIKE 'instance %' GROUP BY instance);

CREATE VIEW sessions AS
SELECT session, source, plug, plug_port, destination, service, socket, new_port,
	CASE kind WHEN 'session opened' THEN 'open' ELSE substr(kind, length('session ') + 1) END AS state,
	time AS since, status, actor, cause
FROM (SELECT *, max(place) FROM present WHERE session IS NOT NULL GROUP BY session);`

// migrate brings the file to the schema of this version, in one transaction.
func migrate(ctx context.Context, conn *sql.Conn) error {
	version, err := schemaVersion(ctx, conn)
	if err != nil {
		return err
	}
	tx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	for ; version < len(steps); version++ {
		if _, err := tx.ExecContext(ctx, steps[version]); err != nil {
			return fmt.Errorf("schema from version %d to %d: %w", version, version+1, err)
		}
		if _, err := tx.ExecContext(ctx, fmt.Sprintf("PRAGMA user_version = %d; PRAGMA application_id = %d", version+1, applicationID)); err != nil {
			return err
		}
	}
	for kind := ssmmp.EventKind(1); kind.String() != fmt.Sprintf("event %d", kind); kind++ {
		if _, err := tx.ExecContext(ctx, "INSERT INTO kinds VALUES (?, ?) ON CONFLICT DO UPDATE SET name = excluded.name WHERE name <> excluded.name", kind, kind.String()); err != nil {
			return err
		}
	}
	return tx.Commit()
}

// schemaVersion returns the version of the file's schema, 0 for a new file. It
// refuses the files of other programs and of later versions.
func schemaVersion(ctx context.Context, conn *sql.Conn) (int, error) {
	var version, id, tables int
	err := conn.QueryRowContext(ctx, "SELECT (SELECT user_version FROM pragma_user_version), (SELECT application_id FROM pragma_application_id), (SELECT count(*) FROM sqlite_schema)").Scan(&version, &id, &tables)
	switch {
	case err != nil:
		return 0, err
	case version == 0 && id == 0 && tables == 0:
		return 0, nil
	case id != applicationID || version < 1:
		return 0, &ssmmp.StoreError{Place: "header", Reason: "not a store of this package"}
	case version > len(steps):
		return 0, &ssmmp.StoreError{Place: "header", Reason: fmt.Sprintf("schema version %d, and this program knows %d", version, len(steps))}
	}
	return version, nil
}
