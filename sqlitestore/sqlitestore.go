package sqlitestore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"hash/crc32"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/ssmmp/ssmmp"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

const (
	// rowEvents is how many events one row holds at most: what a reader
	// decodes at once.
	rowEvents = 1024
	// walLimit is how much is written to the write-ahead log, in bytes, until
	// it is moved to the database.
	walLimit = 4 << 20
	// busyTimeout is how long a commit waits for another program, such as a
	// person's, that writes to the file.
	busyTimeout = 10 * time.Second
)

// A Store is a ssmmp.Store in a file. Its methods may be called by many
// goroutines at once.
type Store struct {
	path string

	mu     sync.Mutex // held by whoever writes
	lock   *lockFile  // nil while the store is not acquired
	db     *sql.DB
	conn   *sql.Conn
	insert *sql.Stmt
	epoch  uint64
	last   uint64
	failed error // of a write; it is the last word
	wal    int   // bytes written since the last move of the write-ahead log
	buf    []byte

	retaining sync.Mutex // held by Retain, before mu

	readMu sync.Mutex // guards reader
	reader *sql.DB    // nil until something is read
}

var _ ssmmp.Store = (*Store)(nil)

// New returns the store in the file at path, which Acquire makes if it is not
// there. Nothing is opened yet.
func New(path string) *Store { return &Store{path: path} }

func open(path, mode string) (*sql.DB, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	abs = filepath.ToSlash(abs)
	if !strings.HasPrefix(abs, "/") {
		abs = "/" + abs // a drive of Windows
	}
	q := url.Values{"mode": {mode}, "_pragma": {fmt.Sprintf("busy_timeout(%d)", busyTimeout.Milliseconds()), "cell_size_check(1)"}}
	u := url.URL{Scheme: "file", Path: abs, OmitHost: true, RawQuery: q.Encode()}
	return sql.Open("sqlite", u.String())
}

// Acquire implements ssmmp.Store. It locks the file, brings its schema to the
// version of this package, and looks whether its end is whole: the rest is
// looked at when it is read.
func (s *Store) Acquire(ctx context.Context) (epoch, last uint64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lock != nil {
		return 0, 0, fmt.Errorf("sqlitestore: %s is held by this process: %w", s.path, ssmmp.ErrStoreInUse)
	}
	for {
		l, err := lock(ctx, s.path+"-lock")
		if err != nil {
			return 0, 0, err
		}
		s.lock, s.failed, s.wal = l, nil, 0
		if err = s.start(ctx); err == nil {
			return s.epoch, s.last, nil
		}
		s.stop()
		// On a full disk there is the reserve.
		if err = s.fault("acquire", err); !errors.Is(err, ssmmp.ErrStoreFull) || os.Remove(s.path+"-reserve") != nil {
			return 0, 0, err
		}
	}
}

func (s *Store) start(ctx context.Context) (err error) {
	if s.db, err = open(s.path, "rwc"); err != nil {
		return err
	}
	if s.conn, err = s.db.Conn(ctx); err != nil {
		return err
	}
	// Another program's file is not even turned to a write-ahead log.
	if _, err := schemaVersion(ctx, s.conn); err != nil {
		return err
	}
	mode := ""
	if err := s.conn.QueryRowContext(ctx, "PRAGMA auto_vacuum = incremental; PRAGMA journal_mode = wal").Scan(&mode); err != nil {
		return err
	}
	if mode != "wal" {
		return fmt.Errorf("no write-ahead log is possible here: the journal mode is %s", mode)
	}
	if _, err := s.conn.ExecContext(ctx, "PRAGMA synchronous = full; PRAGMA wal_autocheckpoint = 0"); err != nil {
		return err
	}
	if err := migrate(ctx, s.conn); err != nil {
		return err
	}
	if s.last, err = lastSeq(ctx, s.conn); err != nil {
		return err
	}
	acknowledged, err := s.lock.mark()
	if err != nil {
		return err
	}
	if err := s.missing(s.last, acknowledged); err != nil {
		return err
	}
	// What a crash left of a checkpoint is of no use.
	if _, err := s.conn.ExecContext(ctx, "DELETE FROM checkpoint WHERE seq NOT IN ("+completeCheckpoints+")"); err != nil {
		return err
	}
	host, _ := os.Hostname()
	now := time.Now().UTC().Format(time.RFC3339Nano)
	err = s.conn.QueryRowContext(ctx, "INSERT INTO managers SELECT coalesce(max(epoch), 0) + 1, ?, ?, ?, ? FROM managers RETURNING epoch",
		now, os.Getpid(), host, int64(s.last)).Scan(&s.epoch)
	if err != nil {
		return err
	}
	if err := s.lock.setHolder(fmt.Sprintf("pid %d on %s, epoch %d, since %s", os.Getpid(), host, s.epoch, now)); err != nil {
		return err
	}
	if err := s.lock.setMark(s.last); err != nil {
		return err
	}
	// The epoch fences a Manager that thinks it still has the store.
	s.insert, err = s.conn.PrepareContext(ctx, "INSERT INTO log SELECT ?, ?, ?, ?, ?, ?, ?, ? WHERE (SELECT max(epoch) FROM managers) = ?")
	return err
}

// missing returns the error for acknowledged events that are not there.
func (s *Store) missing(last, acknowledged uint64) error {
	if last >= acknowledged {
		return nil
	}
	return &ssmmp.StoreError{Place: fmt.Sprintf("events %d to %d", last+1, acknowledged), Reason: fmt.Sprintf("acknowledged, and missing; a start without %s-lock goes on without them", s.path)}
}

// fault says in which store something failed, and what of it a program can act on.
func (s *Store) fault(op string, err error) error {
	if damage, ok := errors.AsType[*ssmmp.StoreError](err); ok {
		damage.Store = s.path
		return damage
	}
	code := 0
	if e, ok := errors.AsType[*sqlite.Error](err); ok {
		code = e.Code() & 0xff
	}
	switch code {
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return &ssmmp.StoreError{Store: s.path, Place: "database", Reason: err.Error()}
	case sqlite3.SQLITE_FULL:
		return fmt.Errorf("sqlitestore: %s: %s: %w: %w", s.path, op, ssmmp.ErrStoreFull, err)
	case sqlite3.SQLITE_BUSY:
		return fmt.Errorf("sqlitestore: %s: %s: %w: %w", s.path, op, ssmmp.ErrStoreBusy, err)
	case sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY:
		err = errors.Join(err, usable(s.path))
	case sqlite3.SQLITE_IOERR:
		return fmt.Errorf("sqlitestore: %s: %s: %w: %w", s.path, op, ssmmp.ErrStoreFailed, err)
	}
	return fmt.Errorf("sqlitestore: %s: %s: %w", s.path, op, err)
}

// usable says why a file cannot be used, where that can be told without opening
// it: closing it again would take SQLite's locks away.
func usable(path string) error {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return &os.PathError{Op: "open", Path: path, Err: errors.New("not a regular file")}
	}
	return access(path)
}

// write calls f for the Manager that holds the store. The context ends the
// waiting for a turn, never a commit.
func (s *Store) write(ctx context.Context, op string, f func(ctx context.Context) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.lock == nil {
		return fmt.Errorf("sqlitestore: %s: %s: not acquired: %w", s.path, op, ssmmp.ErrClosed)
	}
	if s.failed != nil {
		return s.failed
	}
	err := f(context.WithoutCancel(ctx))
	if err == nil && s.wal >= walLimit {
		s.wal = 0
		err = s.moveWAL(context.WithoutCancel(ctx))
	}
	if err == nil {
		return nil
	}
	err = s.fault(op, err)
	if !errors.Is(err, ssmmp.ErrStoreFull) && !errors.Is(err, ssmmp.ErrStoreBusy) && !errors.Is(err, errCaller) {
		if !errors.Is(err, ssmmp.ErrStoreFailed) && !errors.Is(err, ssmmp.ErrStoreInUse) {
			err = fmt.Errorf("%w: %w", ssmmp.ErrStoreFailed, err)
		}
		s.failed = err
	}
	return err
}

// errCaller marks what the caller did wrong.
var errCaller = errors.New("not written")

// moveWAL moves what is in the write-ahead log to the database. There may be no
// room: then the log goes on, for as long as it has some.
func (s *Store) moveWAL(ctx context.Context) error {
	_, err := s.conn.ExecContext(ctx, "PRAGMA wal_checkpoint(PASSIVE)")
	if e, ok := errors.AsType[*sqlite.Error](err); ok && e.Code()&0xff == sqlite3.SQLITE_FULL {
		return nil
	}
	return err
}

// Append implements ssmmp.Store.
func (s *Store) Append(ctx context.Context, events []ssmmp.Event) error {
	return s.write(ctx, "append", func(ctx context.Context) error {
		if err := ssmmp.CheckAppend(s.last, events); err != nil {
			return fmt.Errorf("%w: %w", errCaller, err)
		}
		if len(events) == 0 {
			return nil
		}
		if len(events) <= rowEvents {
			if err := s.insertRow(ctx, s.insert, events); err != nil {
				return err
			}
		} else if err := s.inTransaction(ctx, func(tx *sql.Tx) error {
			insert := tx.StmtContext(ctx, s.insert)
			for rest := events; len(rest) > 0; {
				n := min(len(rest), rowEvents)
				if err := s.insertRow(ctx, insert, rest[:n]); err != nil {
					return err
				}
				rest = rest[n:]
			}
			return nil
		}); err != nil {
			return err
		}
		s.last += uint64(len(events))
		s.lock.setMark(s.last) // that it may say less than is true is in its nature
		return nil
	})
}

func (s *Store) insertRow(ctx context.Context, insert *sql.Stmt, events []ssmmp.Event) error {
	s.buf = ssmmp.AppendEvents(s.buf[:0], events)
	r := row{first: events[0].Seq, count: uint64(len(events)), epoch: s.epoch, time: nano(events[0].Time)}
	r.since, r.until = r.time, r.time
	for i := range events {
		at := nano(events[i].Time)
		r.since, r.until = min(r.since, at), max(r.until, at)
	}
	res, err := insert.ExecContext(ctx, int64(r.first), int64(r.count), int64(r.epoch), r.time, r.since, r.until, r.checksum(), string(s.buf), int64(s.epoch))
	if err != nil {
		return err
	}
	if n, err := res.RowsAffected(); err != nil || n != 1 {
		return fmt.Errorf("epoch %d is over: %w", s.epoch, errors.Join(ssmmp.ErrStoreInUse, err))
	}
	s.wal += len(s.buf) + 2*pageSize
	return nil
}

// pageSize is what SQLite writes at once.
const pageSize = 4096

func (s *Store) inTransaction(ctx context.Context, f func(*sql.Tx) error) error {
	tx, err := s.conn.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err := f(tx); err != nil {
		tx.Rollback() // SQLite has done it already after some errors
		return err
	}
	return tx.Commit()
}

func nano(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// checkpointEvents is how many events of a checkpoint are written at once: then
// commits get their turn again.
const checkpointEvents = 4 * rowEvents

// Checkpoint implements ssmmp.Store. A long one is written in parts, and counts
// when the last of them is there.
func (s *Store) Checkpoint(ctx context.Context, seq uint64, events []ssmmp.Event) error {
	parts := max(1, (len(events)+checkpointEvents-1)/checkpointEvents)
	for part := range parts {
		err := s.write(ctx, "checkpoint", func(ctx context.Context) error {
			if seq > s.last {
				return fmt.Errorf("%w: checkpoint %d of a store that ends at %d", errCaller, seq, s.last)
			}
			return s.inTransaction(ctx, func(tx *sql.Tx) error {
				if part == 0 {
					if _, err := tx.ExecContext(ctx, "DELETE FROM checkpoint WHERE seq = ?", int64(seq)); err != nil {
						return err
					}
				}
				list := events[part*checkpointEvents : min(len(events), (part+1)*checkpointEvents)]
				s.buf = ssmmp.AppendEvents(s.buf[:0], list)
				r := partRow{seq: seq, part: part, parts: parts}
				if len(list) > 0 {
					r.first, r.time = list[0].Seq, nano(list[0].Time)
				}
				_, err := tx.ExecContext(ctx, "INSERT INTO checkpoint VALUES (?, ?, ?, ?, ?, ?, ?)",
					int64(seq), part, parts, int64(r.first), r.time, r.checksum(), string(s.buf))
				s.wal += len(s.buf) + 2*pageSize
				return err
			})
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// A row is what stands beside a record of events in the log. It has a checksum
// of its own, as the record has.
type row struct {
	first, count, epoch uint64
	time, since, until  int64 // of the first event, the least, the greatest
}

func (r *row) last() uint64 { return r.first + r.count - 1 }

func (r *row) checksum() int64 {
	return int64(crc32.ChecksumIEEE(fmt.Appendf(nil, "log %d %d %d %d %d %d", r.first, r.count, r.epoch, r.time, r.since, r.until)))
}

// A partRow is what stands beside a part of a checkpoint.
type partRow struct {
	seq         uint64
	part, parts int
	first       uint64
	time        int64
}

func (r *partRow) checksum() int64 {
	return int64(crc32.ChecksumIEEE(fmt.Appendf(nil, "checkpoint %d %d %d %d %d", r.seq, r.part, r.parts, r.first, r.time)))
}

// stop gives up what start has taken, as far as it got.
func (s *Store) stop() error {
	var errs []error
	if s.insert != nil {
		s.insert.Close()
	}
	if s.conn != nil {
		errs = append(errs, s.conn.Close())
	}
	if s.db != nil {
		errs = append(errs, s.db.Close())
	}
	errs = append(errs, s.lock.close())
	s.lock, s.db, s.conn, s.insert = nil, nil, nil, nil
	return errors.Join(errs...)
}

// Close implements ssmmp.Store.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.readMu.Lock()
	defer s.readMu.Unlock()
	var errs []error
	if s.reader != nil {
		errs = append(errs, s.reader.Close())
		s.reader = nil
	}
	if s.lock != nil {
		errs = append(errs, s.stop())
	}
	if err := errors.Join(errs...); err != nil {
		return s.fault("close", err)
	}
	return nil
}
