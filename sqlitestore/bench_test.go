package sqlitestore_test

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/ssmmp/ssmmp"
	"github.com/ssmmp/ssmmp/sqlitestore"
)

var benchEvents = flag.Int("events", 200_000, "events in the store that BenchmarkQuery asks")

// busyEvents fills in the events of set-ups between some hundred instances, each
// offered, opened and closed.
func busyEvents(events []ssmmp.Event, first uint64) {
	start := time.Unix(1_790_000_000, 0).UTC()
	for i := range events {
		seq := first + uint64(i)
		n := seq / 3
		at := time.Duration(seq) * 20 * time.Microsecond
		events[i] = ssmmp.Event{
			Seq: seq, At: at, Time: start.Add(at), Kind: [...]ssmmp.EventKind{ssmmp.EventSessionOffered, ssmmp.EventSessionOpened, ssmmp.EventSessionClosed}[seq%3],
			Graph: "social", Service: [...]string{"posts", "users", "feed", "media"}[n%4], Session: ssmmp.SessionID(1<<32 + n),
			Source: ssmmp.InstanceID(1_790_000_000_000 + n%100), Destination: ssmmp.InstanceID(1_790_000_000_100 + n%97), Plug: "P6", Socket: "S4", MessageID: int64(1<<33 + n),
			PlugPort: uint16(30_000 + n%20_000), NewPort: uint16(54_000 + n%1000), Status: ssmmp.StatusOK, CauseSeq: 1 + n%100, Node: netip.AddrFrom4([4]byte{10, 0, 0, byte(n % 3)}),
		}
	}
}

// One commit of so many events, as the group commit of a Manager has them.
func BenchmarkAppend(b *testing.B) {
	for _, size := range []int{1, 64, 256, 768} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			s := sqlitestore.New(filepath.Join(b.TempDir(), "manager.db"))
			if _, _, err := s.Acquire(b.Context()); err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			batch, last := make([]ssmmp.Event, size), uint64(0)
			for b.Loop() {
				busyEvents(batch, last+1)
				if err := s.Append(b.Context(), batch); err != nil {
					b.Fatal(err)
				}
				last += uint64(size)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(last), "ns/event")
		})
	}
}

// What a history of -events events takes on the disk, and how long it takes to
// ask it.
func BenchmarkQuery(b *testing.B) {
	dir := b.TempDir()
	path := filepath.Join(dir, "manager.db")
	s := sqlitestore.New(path)
	if _, _, err := s.Acquire(b.Context()); err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	last := uint64(0)
	batch := make([]ssmmp.Event, 256)
	for last < uint64(*benchEvents) {
		busyEvents(batch, last+1)
		if err := s.Append(b.Context(), batch); err != nil {
			b.Fatal(err)
		}
		last += uint64(len(batch))
	}
	if err := s.Checkpoint(b.Context(), last/2, batch); err != nil {
		b.Fatal(err)
	}
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		b.Fatal(err)
	}
	one := make([]ssmmp.Event, 1)
	busyEvents(one, last/2)
	count := func(b *testing.B, want uint64, events func(func(ssmmp.Event, error) bool)) {
		n := uint64(0)
		for _, err := range events {
			if err != nil {
				b.Fatal(err)
			}
			n++
		}
		if n < want/2 || n > want*2+2 {
			b.Fatalf("%d events, about %d match", n, want)
		}
		b.ReportMetric(float64(n), "events")
		b.ReportMetric(float64(info.Size())/float64(last), "B/event-on-disk")
	}
	for _, tt := range []struct {
		name string
		want uint64
		q    ssmmp.EventQuery
	}{
		{"all", last, ssmmp.EventQuery{}},
		{"instance", last / 100, ssmmp.EventQuery{Instance: one[0].Source}},
		{"session", 3, ssmmp.EventQuery{Session: one[0].Session}},
		{"service", last / 4, ssmmp.EventQuery{Service: "feed"}},
		{"time", 500, ssmmp.EventQuery{From: one[0].Time, To: one[0].Time.Add(10 * time.Millisecond)}},
		{"page", 100, ssmmp.EventQuery{After: last / 2, Limit: 100}},
	} {
		b.Run(tt.name, func(b *testing.B) {
			for b.Loop() {
				count(b, tt.want, s.Query(b.Context(), tt.q))
			}
		})
	}
	b.Run("state", func(b *testing.B) { // half of the events after a checkpoint
		for b.Loop() {
			count(b, last/4, s.Replay(b.Context(), last*3/4))
		}
	})
}
