// Package sqlitestore keeps what a Manager records in one file: a
// [ssmmp.Store] on SQLite, embedded, without a server.
//
//	store := sqlitestore.New("/var/lib/mesh/manager.db")
//
// A commit is one transaction and one fsync (write-ahead log, synchronous FULL).
// Readers never wait for commits, nor commits for readers, in this process or
// another. The file is to be on a local file system.
//
// # Files
//
// Beside FILE stand FILE-wal and FILE-shm, which are SQLite's, and FILE-lock. The
// lock on the latter says that a Manager has acquired the store; its text says
// which one, and up to which event it has acknowledged. With bounds for what is
// kept there is also FILE-reserve, of 8 MiB: room to forget something once the
// disk is full. A copy of a store is a
// copy of FILE, FILE-wal and FILE-lock while no Manager has it, or what
// "sqlite3 FILE '.backup COPY'" makes at any time.
//
// A store whose acknowledged events are not all there is refused with a
// [*ssmmp.StoreError]. Whoever put an older copy of FILE in place, or would
// rather lose them, removes FILE-lock.
//
// # Asking with the sqlite3 tool
//
// The file can be read by the sqlite3 tool, at any time and while a Manager
// writes. Times are in UTC, ids as in ssmmp, and what has no value is NULL.
//
//   - events: the history. seq, time, kind, graph, vertex, service, instance,
//     node, session, source, plug, plug_port, destination, socket, new_port,
//     message, status, actor, cause, cause_seq.
//   - agents: node, state (up, away, lost), since, cause.
//   - instances: instance, service, graph, vertex, node, state, since, status,
//     actor, cause; those that run, and those that ended since the last
//     checkpoint.
//   - sessions: session, source, plug, plug_port, destination, service, socket,
//     new_port, state, since, status, actor, cause; likewise.
//   - managers: every Manager that had the store. epoch, since, pid, host, and
//     the last event that it found.
//
// For example:
//
//	SELECT time, kind, cause FROM events WHERE instance = 1790000000001;
//	SELECT time, kind, source, plug, status FROM events WHERE service = 'cart' AND time >= '2026-01-02 03:00';
//	SELECT instance, service, node FROM instances WHERE state = 'running';
//	SELECT source, plug, destination, since FROM sessions WHERE state = 'open';
//	SELECT c.* FROM events e JOIN events c ON c.seq = e.cause_seq WHERE e.instance = 7 AND e.kind = 'instance ended';
//
// These are views; each reads the records that its table holds, as JSON, one for
// each commit (log) or part of a checkpoint (checkpoint). All of events are read
// for each question: a second for some hundred thousand. Methods of [Store] are
// far faster, and check what they read. The tool does not; and whoever writes
// with it is in the way of commits, which fail with [ssmmp.ErrStoreBusy] once they
// have waited for 10 s, and takes the guarantees into their own hands.
package sqlitestore
