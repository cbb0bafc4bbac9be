package ssmmp

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// fullEvent returns an event in which no field is zero.
func fullEvent(t testing.TB, seq uint64) Event {
	t.Helper()
	var ev Event
	v := reflect.ValueOf(&ev).Elem()
	for i := range v.NumField() {
		switch f := v.Field(i); f.Interface().(type) {
		case time.Time:
			f.Set(reflect.ValueOf(time.Unix(1_790_000_000, int64(i)).UTC()))
		case netip.Addr:
			f.Set(reflect.ValueOf(netip.MustParseAddr("fe80::1%eth0")))
		case []SocketPort:
			f.Set(reflect.ValueOf([]SocketPort{{"S1", 54000}, {`"S2\`, 65535}}))
		default:
			switch f.Kind() {
			case reflect.String:
				f.SetString(v.Type().Field(i).Name)
			case reflect.Uint8, reflect.Uint16, reflect.Uint64:
				f.SetUint(uint64(i) + 100)
			case reflect.Int, reflect.Int64:
				f.SetInt(-int64(i) - 100)
			default:
				t.Fatalf("Event.%s: this test knows no value for a %s", v.Type().Field(i).Name, f.Type())
			}
		}
	}
	ev.Seq = seq
	return ev
}

// sessionEvents returns the events of session set-ups, as a busy Manager
// records them.
func sessionEvents(first uint64, n int) []Event {
	events := make([]Event, n)
	node := netip.MustParseAddr("10.0.0.1")
	at := time.Unix(1_790_000_000, 0).UTC()
	for i := range events {
		events[i] = Event{Seq: first + uint64(i), Time: at.Add(time.Duration(i) * time.Microsecond), Kind: EventSessionOffered + EventKind(i%3),
			Graph: "social", Service: "posts", Node: node, Session: 1<<32 + SessionID(i/3), Source: 1_790_000_000_000, Destination: 1_790_000_000_001,
			Plug: "P6", Socket: "S4", MessageID: 1<<33 + int64(i/3)}
	}
	return events
}

func TestEventRecord(t *testing.T) {
	t.Parallel()
	full := fullEvent(t, 17)
	later := full
	later.Seq, later.Time = 18, full.Time.Add(-time.Hour) // the wall clock jumped
	gap := full
	gap.Seq = 1 << 63
	gap.Session = 1<<64 - 1
	odd := Event{Seq: 20, Time: time.Unix(0, 0).UTC(), Cause: "\x00\x1f\"\\é\xff\xed\xb3\xbf\u2028\U0001f600 'tis", Graph: "\xc3"}
	for _, events := range [][]Event{nil, {full}, {full, later}, {gap, full, odd}, {{Seq: 1, Time: time.Unix(0, 0).UTC()}}, sessionEvents(1000, 100)} {
		record := AppendEvents([]byte("before"), events)
		got, err := DecodeEvents(nil, record[len("before"):])
		if err != nil {
			t.Fatal(err)
		}
		if !slices.EqualFunc(got, events, func(a, b Event) bool { return reflect.DeepEqual(a, b) }) {
			t.Errorf("got  %+v\nwant %+v", got, events)
		}
		if !json.Valid(record[len("before"):]) {
			t.Errorf("not JSON: %s", record)
		}
	}
	// The fields of an event that has them all: each has its place.
	var list struct{ Events [][]any }
	if err := json.Unmarshal(AppendEvents(nil, []Event{full, later}), &list); err != nil {
		t.Fatal(err)
	}
	if got, want := len(list.Events[1]), reflect.TypeFor[Event]().NumField(); got != want {
		t.Errorf("a full event has %d fields in its record, %d in Event", got, want)
	}
}

// A record with any bit changed, or any part of its end missing, is no record.
func TestEventRecordDamage(t *testing.T) {
	t.Parallel()
	record := AppendEvents(nil, []Event{fullEvent(t, 17), fullEvent(t, 18)})
	for n := range record {
		if _, err := DecodeEvents(nil, record[:n]); err == nil {
			t.Fatalf("%d of %d bytes are a record", n, len(record))
		}
		for bit := range 8 {
			bad := slices.Clone(record)
			bad[n] ^= 1 << bit
			if _, err := DecodeEvents(nil, bad); err == nil {
				t.Fatalf("byte %d is %q in place of %q: taken", n, bad[n], record[n])
			}
		}
	}
}

// A form of a later version is refused, and so is an event with a field that
// this version does not know, though their checksums are right.
func TestEventRecordVersion(t *testing.T) {
	t.Parallel()
	seal := func(text string) []byte { return sealRecord([]byte(text), []byte(text)) }
	text := strings.TrimSuffix(string(AppendEvents(nil, []Event{fullEvent(t, 1), fullEvent(t, 3)})), eventTail)
	text = text[:len(text)-8-len(eventSum)]
	if _, err := DecodeEvents(nil, seal(text)); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{
		strings.Replace(text, `{"v":1`, `{"v":2`, 1), strings.TrimSuffix(text, "]") + ",1]", text + ",[1", text + ",", text + "[1]", text[:len(text)-1],
		`{"v":1,"first":0,"time":0,"events":[[300]`, `{"v":1,"first":0,"time":0,"events":[["x"]`, `{"v":1,"first":0,"time":0,"events":[[1,7]`,
		`{"v":1,"first":0,"time":0,"events":[[1,"\u00"]`, `{"v":1,"first":0,"time":0,"events":[[1,"a,0]`, `{"v":1,"first":,"time":0,"events":[`,
	} {
		if events, err := DecodeEvents(nil, seal(bad)); err == nil {
			t.Errorf("%s: taken as %+v", bad, events)
		}
	}
}

func FuzzDecodeEvents(f *testing.F) {
	f.Add([]byte(`[1,"a",0]`))
	f.Add([]byte(`[1,"\u0001\udcff\"",0,-1,"::1",0,0,0,0,0,0,0,0,0,0,0,0,0,["S",1]]`))
	f.Fuzz(func(t *testing.T, list []byte) {
		body := append([]byte(`{"v":1,"first":7,"time":7,"events":[`), list...)
		events, err := DecodeEvents(nil, sealRecord(body, body))
		if err != nil {
			return
		}
		again, err := DecodeEvents(nil, AppendEvents(nil, events))
		if err != nil || !slices.EqualFunc(events, again, func(a, b Event) bool { return reflect.DeepEqual(a, b) }) {
			t.Errorf("%+v\nbecame %+v, %v", events, again, err)
		}
	})
}

func BenchmarkEventRecord(b *testing.B) {
	events := sessionEvents(1, 256)
	record := AppendEvents(nil, events)
	b.Run("encode", func(b *testing.B) {
		b.ReportAllocs()
		buf := record
		for b.Loop() {
			buf = AppendEvents(buf[:0], events)
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(events)), "ns/event")
		b.ReportMetric(float64(len(record))/float64(len(events)), "B/event")
	})
	b.Run("decode", func(b *testing.B) {
		b.ReportAllocs()
		var buf []Event
		for b.Loop() {
			var err error
			if buf, err = DecodeEvents(buf[:0], record); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(events)), "ns/event")
	})
}
