package sqlitestore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"iter"
	"os"
	"strconv"
	"strings"

	"github.com/ssmmp/ssmmp"
)

// chunkRows is how many rows are read at once. Between two chunks nothing is
// open, so that a slow reader does not keep the write-ahead log from ending.
const chunkRows = 64

// An executor is a connection, or what uses one.
type executor interface {
	QueryContext(context.Context, string, ...any) (*sql.Rows, error)
	QueryRowContext(context.Context, string, ...any) *sql.Row
}

// reading returns what the store is read by, whoever has acquired it.
func (s *Store) reading(ctx context.Context) (*sql.DB, error) {
	s.readMu.Lock()
	defer s.readMu.Unlock()
	if s.reader != nil {
		return s.reader, nil
	}
	if _, err := os.Stat(s.path); err != nil {
		return nil, err
	}
	db, err := open(s.path, "ro")
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(8)
	conn, err := db.Conn(ctx)
	if err == nil {
		defer conn.Close()
		version := 0
		if version, err = schemaVersion(ctx, conn); err == nil && version == 0 {
			err = &ssmmp.StoreError{Place: "header", Reason: "empty file"}
		}
	}
	if err != nil {
		db.Close()
		return nil, err
	}
	s.reader = db
	return db, nil
}

// lastSeq returns the number of the last event, which it reads.
func lastSeq(ctx context.Context, db executor) (uint64, error) {
	rows, err := readRows(ctx, db, "ORDER BY first DESC LIMIT 1")
	if err != nil {
		return 0, err
	}
	if len(rows) == 0 {
		first, err := firstKept(ctx, db)
		return first - 1, err
	}
	if _, err := rows[0].events(nil); err != nil {
		return 0, err
	}
	return rows[0].last(), nil
}

// A fullRow is a row with its record, or without it where that is not needed.
type fullRow struct {
	row
	record sql.Null[string]
}

func readRows(ctx context.Context, db executor, which string, args ...any) ([]fullRow, error) {
	return readColumns(ctx, db, "record", which, args...)
}

// readChunk returns the next rows, from the one on that holds the event which is
// the last of args, and the number of the first event that is kept.
func readChunk(ctx context.Context, db *sql.DB, record string, args ...any) (rows []fullRow, first uint64, err error) {
	tx, err := db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return nil, 0, err
	}
	defer tx.Rollback()
	if first, err = firstKept(ctx, tx); err != nil {
		return nil, 0, err
	}
	// The row that holds an event is the last one that begins at or before it.
	rows, err = readColumns(ctx, tx, record, fmt.Sprintf("WHERE first >= coalesce((SELECT max(first) FROM log WHERE first <= ?), 0) ORDER BY first LIMIT %d", chunkRows), args...)
	return rows, first, err
}

func readColumns(ctx context.Context, db executor, record, which string, args ...any) (list []fullRow, err error) {
	rows, err := db.QueryContext(ctx, "SELECT first, count, epoch, time, since, until, sum, "+record+" FROM log "+which, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var r fullRow
		var first, sum int64
		if err := rows.Scan(&first, &r.count, &r.epoch, &r.time, &r.since, &r.until, &sum, &r.record); err != nil {
			return nil, damaged(err, "row after event %d", len(list))
		}
		if r.first = uint64(first); r.checksum() != sum {
			return nil, &ssmmp.StoreError{Place: fmt.Sprintf("row of event %d", r.first), Reason: "wrong checksum"}
		}
		list = append(list, r)
	}
	return list, rows.Err()
}

// damaged is the error for a column that holds what it cannot.
func damaged(err error, place string, args ...any) error {
	return &ssmmp.StoreError{Place: fmt.Sprintf(place, args...), Reason: err.Error()}
}

// events appends the events of the row to buf.
func (r *fullRow) events(buf []ssmmp.Event) ([]ssmmp.Event, error) {
	place := fmt.Sprintf("events %d to %d", r.first, r.last())
	events, err := ssmmp.DecodeEvents(buf, []byte(r.record.V))
	if err != nil {
		return buf, damaged(err, "%s", place)
	}
	list := events[len(buf):]
	if uint64(len(list)) != r.count || ssmmp.CheckAppend(r.first-1, list) != nil || nano(list[0].Time) != r.time {
		return buf, &ssmmp.StoreError{Place: place, Reason: "the record is that of another row"}
	}
	return events, nil
}

// log yields the rows that hold the events after one number and up to another,
// without a gap. It reads records only where their times may lie in those that q
// asks for. With 0 for upTo it ends at the last row there is.
func (s *Store) log(ctx context.Context, db *sql.DB, after, upTo uint64, q *ssmmp.EventQuery) iter.Seq2[*fullRow, error] {
	return func(yield func(*fullRow, error) bool) {
		acknowledged, err := mark(s.path + "-lock")
		if err != nil {
			yield(nil, err)
			return
		}
		record, args := "record", []any{}
		if q != nil && !q.From.IsZero() {
			record, args = "CASE WHEN until >= ? THEN "+record+" END", append(args, nano(q.From))
		}
		if q != nil && !q.To.IsZero() {
			record, args = "CASE WHEN since < ? THEN "+record+" END", append([]any{nano(q.To)}, args...)
		}
		for upTo == 0 || after < upTo {
			rows, first, err := readChunk(ctx, db, record, append(args, int64(after+1))...)
			if err != nil {
				yield(nil, err)
				return
			}
			if first > after+1 {
				if after > 0 && q == nil {
					yield(nil, fmt.Errorf("events from %d on are not kept any more: %w", after+1, ssmmp.ErrNotFound))
					return
				}
				after = first - 1
			}
			for i := range rows {
				r := &rows[i]
				if r.last() <= after {
					continue
				}
				if upTo != 0 && after >= upTo {
					return
				}
				if r.first > after+1 {
					yield(nil, &ssmmp.StoreError{Place: fmt.Sprintf("events %d to %d", after+1, r.first-1), Reason: "missing"})
					return
				}
				after = r.last()
				if !yield(r, nil) {
					return
				}
			}
			if len(rows) < chunkRows {
				break
			}
		}
		limit := acknowledged
		if upTo != 0 {
			limit = min(limit, upTo)
		}
		if err := s.missing(after, limit); err != nil {
			yield(nil, err)
		}
	}
}

// Query implements ssmmp.Store.
func (s *Store) Query(ctx context.Context, q ssmmp.EventQuery) iter.Seq2[ssmmp.Event, error] {
	return func(yield func(ssmmp.Event, error) bool) {
		db, err := s.reading(ctx)
		if err != nil {
			yield(ssmmp.Event{}, s.fault("query", err))
			return
		}
		upTo := uint64(0)
		if q.Before != 0 {
			if upTo = q.Before - 1; upTo == 0 {
				return
			}
		}
		marks := needles(&q)
		var buf []ssmmp.Event
		n := 0
		for r, err := range s.log(ctx, db, q.After, upTo, &q) {
			if err == nil && !r.record.Valid {
				continue
			}
			if err == nil {
				if mentions(r.record.V, marks) {
					buf, err = r.events(buf[:0])
				} else if err = ssmmp.CheckEvents([]byte(r.record.V)); err == nil {
					continue
				} else {
					err = damaged(err, "events %d to %d", r.first, r.last())
				}
			}
			if err != nil {
				yield(ssmmp.Event{}, s.fault("query", err))
				return
			}
			for i := range buf {
				if !q.Match(&buf[i]) {
					continue
				}
				if n++; !yield(buf[i], nil) || n == q.Limit {
					return
				}
			}
		}
	}
}

// needles are the texts that stand in every record with an event that matches.
func needles(q *ssmmp.EventQuery) (list []string) {
	for _, name := range []string{q.Graph, q.Service} {
		if name != "" && !strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r >= 0x7f || r == '"' || r == '\\' }) {
			list = append(list, `"`+name+`"`)
		}
	}
	if q.Node.IsValid() && q.Node.Zone() == "" {
		list = append(list, `"`+q.Node.String()+`"`)
	}
	for _, id := range []int64{int64(q.Instance), int64(q.Session)} {
		if id != 0 {
			list = append(list, strconv.FormatInt(id, 10))
		}
	}
	return list
}

func mentions(record string, needles []string) bool {
	for _, n := range needles {
		if !strings.Contains(record, n) {
			return false
		}
	}
	return true
}

// Replay implements ssmmp.Store.
func (s *Store) Replay(ctx context.Context, upTo uint64) iter.Seq2[ssmmp.Event, error] {
	return func(yield func(ssmmp.Event, error) bool) {
		for ev, err := range s.replay(ctx, upTo) {
			if err != nil {
				yield(ssmmp.Event{}, s.fault("replay", err))
				return
			}
			if !yield(ev, nil) {
				return
			}
		}
	}
}

const completeCheckpoints = "SELECT seq FROM checkpoint GROUP BY seq HAVING count(*) = max(parts)"

func (s *Store) replay(ctx context.Context, upTo uint64) iter.Seq2[ssmmp.Event, error] {
	return func(yield func(ssmmp.Event, error) bool) {
		fail := func(err error) { yield(ssmmp.Event{}, err) }
		db, err := s.reading(ctx)
		if err != nil {
			fail(err)
			return
		}
		last, err := lastSeq(ctx, db)
		if err != nil {
			fail(err)
			return
		}
		if upTo == 0 {
			upTo = last
		}
		if upTo > last {
			fail(fmt.Errorf("state after event %d: the last one is %d: %w", upTo, last, ssmmp.ErrNotFound))
			return
		}
		first, err := firstKept(ctx, db)
		if err != nil {
			fail(err)
			return
		}
		var from sql.Null[uint64]
		if err := db.QueryRowContext(ctx, "SELECT max(seq) FROM ("+completeCheckpoints+") WHERE seq <= ?", int64(upTo)).Scan(&from); err != nil {
			fail(err)
			return
		}
		start := from.V
		if upTo > start && first > start+1 {
			fail(fmt.Errorf("state after event %d: event %d is the first that is kept, and there is no checkpoint between: %w", upTo, first, ssmmp.ErrNotFound))
			return
		}
		var buf []ssmmp.Event
		if from.Valid {
			for part, parts := 0, 1; part < parts; part++ {
				if buf, parts, err = readPart(ctx, db, start, part, buf[:0]); err != nil {
					fail(err)
					return
				}
				for _, ev := range buf {
					if !yield(ev, nil) {
						return
					}
				}
			}
		}
		if upTo == start {
			return
		}
		for r, err := range s.log(ctx, db, start, upTo, nil) {
			if err == nil {
				buf, err = r.events(buf[:0])
			}
			if err != nil {
				fail(err)
				return
			}
			for _, ev := range buf {
				if ev.Seq > start && ev.Seq <= upTo && !yield(ev, nil) {
					return
				}
			}
		}
	}
}

// readPart reads a part of a checkpoint, and of how many parts it is one.
func readPart(ctx context.Context, db executor, seq uint64, part int, buf []ssmmp.Event) (events []ssmmp.Event, parts int, err error) {
	r := partRow{seq: seq, part: part}
	var first, sum int64
	var record string
	err = db.QueryRowContext(ctx, "SELECT parts, first, time, sum, record FROM checkpoint WHERE seq = ? AND part = ?", int64(seq), part).
		Scan(&r.parts, &first, &r.time, &sum, &record)
	place := fmt.Sprintf("checkpoint %d, part %d", seq, part)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, 0, &ssmmp.StoreError{Place: place, Reason: "missing"}
	}
	if err != nil {
		return nil, 0, err
	}
	if r.first = uint64(first); r.checksum() != sum {
		return nil, 0, &ssmmp.StoreError{Place: place, Reason: "wrong checksum"}
	}
	if events, err = ssmmp.DecodeEvents(buf, []byte(record)); err != nil {
		return nil, 0, damaged(err, "%s", place)
	}
	if len(events) > 0 && (events[0].Seq != r.first || nano(events[0].Time) != r.time) {
		return nil, 0, &ssmmp.StoreError{Place: place, Reason: "the record is that of another part"}
	}
	return events, r.parts, nil
}
