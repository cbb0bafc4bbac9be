package sqlitestore

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"hash/crc32"
	"os"

	"github.com/ssmmp/ssmmp"
)

// What is removed at once, in rows, and given back at once, in pages: then
// commits get their turn again.
const removedRows, vacuumPages = 64, 512

// Retain implements ssmmp.Store. MaxBytes is about the size of the file after
// it: what is free in it is given back.
func (s *Store) Retain(ctx context.Context, r ssmmp.Retention) error {
	s.retaining.Lock()
	defer s.retaining.Unlock()
	err := s.retain(ctx, r)
	if errors.Is(err, ssmmp.ErrStoreFull) && os.Remove(s.path+"-reserve") == nil {
		// First the write-ahead log, whose room is worth as much again.
		if err = s.write(ctx, "retain", s.emptyWAL); err == nil {
			err = s.retain(ctx, r)
		}
		if err == nil {
			err = s.write(ctx, "retain", s.emptyWAL)
		}
	}
	if err == nil {
		s.reserve()
	}
	return err
}

// reserveSize is the size of a file beside the database that is worth nothing but
// the room it takes. On a full disk there is none even to forget, for what is
// removed goes to the write-ahead log first; and moving that to the database may
// take as much as it has: walLimit, and what was left when that was tried.
const reserveSize = 2 * walLimit

// reserve makes the reserve, where there is room for it.
func (s *Store) reserve() {
	path := s.path + "-reserve"
	if info, err := os.Stat(path); err == nil && info.Size() >= reserveSize {
		return
	}
	f, err := os.Create(path)
	if err != nil {
		return
	}
	block := make([]byte, 1<<16)
	rand.Read(block) // for file systems that give room to nothing else
	for n := 0; n < reserveSize && err == nil; n += len(block) {
		_, err = f.Write(block)
	}
	if errors.Join(err, f.Close()) != nil {
		os.Remove(path) // what comes next needs the room
	}
}

// emptyWAL moves all of the write-ahead log to the database, and gives back its
// room.
func (s *Store) emptyWAL(ctx context.Context) error {
	_, err := s.conn.ExecContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)")
	return err
}

func (s *Store) retain(ctx context.Context, r ssmmp.Retention) error {
	err := s.write(ctx, "retain", func(ctx context.Context) error {
		cut, err := s.cut(ctx, r)
		if err != nil || cut == 0 {
			return err
		}
		return s.inTransaction(ctx, func(tx *sql.Tx) error { return s.forget(ctx, tx, cut) })
	})
	if err != nil {
		return err
	}
	for _, statement := range []string{
		"DELETE FROM log WHERE first IN (SELECT first FROM log WHERE first < (SELECT first FROM kept) ORDER BY first LIMIT %d)",
		"DELETE FROM checkpoint WHERE rowid IN (SELECT rowid FROM checkpoint WHERE seq + 1 < (SELECT first FROM kept) LIMIT %d)",
	} {
		for more := true; more; {
			if err := s.write(ctx, "retain", func(ctx context.Context) error {
				res, err := s.conn.ExecContext(ctx, fmt.Sprintf(statement, removedRows))
				if err != nil {
					return err
				}
				n, err := res.RowsAffected()
				more = n == removedRows
				s.wal += int(n) * 2 * pageSize
				return err
			}); err != nil {
				return err
			}
		}
	}
	for free := 1; free > 0; {
		if err := s.write(ctx, "retain", func(ctx context.Context) error {
			if err := s.conn.QueryRowContext(ctx, "SELECT freelist_count FROM pragma_freelist_count").Scan(&free); err != nil || free == 0 {
				return err
			}
			_, err := s.conn.ExecContext(ctx, fmt.Sprintf("PRAGMA incremental_vacuum(%d)", vacuumPages))
			s.wal += vacuumPages * pageSize
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}

// cut returns the event up to which all shall go, which is that of a checkpoint,
// or 0.
func (s *Store) cut(ctx context.Context, r ssmmp.Retention) (cut uint64, err error) {
	first, err := firstKept(ctx, s.conn)
	if err != nil {
		return 0, err
	}
	rows, err := s.conn.QueryContext(ctx, completeCheckpoints+" AND seq >= ? ORDER BY seq", int64(first))
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	var candidates []uint64
	for rows.Next() {
		var seq uint64
		if err := rows.Scan(&seq); err != nil {
			return 0, damaged(err, "checkpoints")
		}
		candidates = append(candidates, seq)
	}
	if err := rows.Err(); err != nil {
		return 0, err
	}
	for _, seq := range candidates {
		gone := false
		if !r.Before.IsZero() {
			var until sql.NullInt64
			if err := s.conn.QueryRowContext(ctx, "SELECT max(until) FROM log WHERE first <= ?", int64(seq)).Scan(&until); err != nil {
				return 0, err
			}
			gone = until.Int64 < nano(r.Before)
		}
		if !gone && r.MaxBytes > 0 {
			var size int64
			if err := s.conn.QueryRowContext(ctx, "SELECT coalesce((SELECT sum(octet_length(record) + 100) FROM log WHERE first > ?), 0) + coalesce((SELECT sum(octet_length(record) + 100) FROM checkpoint WHERE seq >= ?), 0)",
				int64(cut), int64(cut)).Scan(&size); err != nil {
				return 0, err
			}
			gone = size > r.MaxBytes
		}
		if !gone {
			break
		}
		cut = seq
	}
	return cut, nil
}

// forget has the log begin after the event of a checkpoint. A row that has events
// on both sides of it is written anew.
func (s *Store) forget(ctx context.Context, tx *sql.Tx, cut uint64) error {
	rows, err := readRows(ctx, tx, "WHERE first <= ? AND first + count > ?", int64(cut), int64(cut)+1)
	if err != nil {
		return err
	}
	for _, r := range rows {
		events, err := r.events(nil)
		if err != nil {
			return err
		}
		if err := s.insertRow(ctx, tx.StmtContext(ctx, s.insert), events[cut+1-r.first:]); err != nil {
			return err
		}
	}
	_, err = tx.ExecContext(ctx, "UPDATE kept SET first = ?, sum = ?", int64(cut+1), keptSum(cut+1))
	return err
}

func keptSum(first uint64) int64 {
	return int64(crc32.ChecksumIEEE(fmt.Appendf(nil, "kept %d", first)))
}

// firstKept returns the number of the first event that was not removed.
func firstKept(ctx context.Context, db executor) (uint64, error) {
	var first, sum int64
	if err := db.QueryRowContext(ctx, "SELECT first, sum FROM kept").Scan(&first, &sum); errors.Is(err, sql.ErrNoRows) {
		return 0, damaged(err, "table kept")
	} else if err != nil {
		return 0, err
	}
	if sum != keptSum(uint64(first)) {
		return 0, &ssmmp.StoreError{Place: "table kept", Reason: "wrong checksum"}
	}
	return uint64(first), nil
}
