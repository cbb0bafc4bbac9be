package ssmmp

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// The history answers questions alike from a store and from memory.
func TestMeshHistory(t *testing.T) {
	for _, store := range []Store{nil, &MemStore{}} {
		t.Run(fmt.Sprintf("%T", store), func(t *testing.T) {
			testMeshHistory(t, store)
		})
	}
}

func testMeshHistory(t *testing.T, store Store) {
	bubble(t, func(t *testing.T) {
		s := newLifeMesh(t, ManagerConfig{Store: store}, 2, nil)
		defer s.mesh.close()
		// remember keeps the state of a moment, with its time.
		type moment struct {
			at   time.Time
			want Snapshot
		}
		var moments []moment
		remember := func() {
			synctest.Wait()
			moments = append(moments, moment{time.Now(), s.m.Snapshot()})
			time.Sleep(time.Second) // so that the next event has a later time
		}
		remember()
		gw := s.begin()
		remember()
		source, dest := s.dial(gw, "P")
		mid := s.one("mid").Instance.ID()
		remember()
		source.Close()
		dest.Close()
		remember()
		time.Sleep(defaultIdleAfter + time.Minute)
		remember()
		if err := s.m.Shutdown(t.Context(), gw.Instance.ID()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		remember()
		again := s.one("gw").Instance.ID()
		source, _ = s.dial(s.one("gw"), "Pd")
		for n := range s.nodes {
			s.nodeGate(n).shut()
		}
		remember()
		if err := s.m.Undeploy(t.Context(), "life"); err != nil {
			t.Fatal(err)
		}
		source.Close()
		remember()

		explain := func(id InstanceID, want string) {
			t.Helper()
			e, err := s.m.Explain(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, list := range [][]Event{e.Started, e.Ended} {
				for _, ev := range list {
					got = append(got, fmt.Sprintf("%s %s by %s", ev.Kind, ev.Cause, ev.Actor))
				}
				got = append(got, "")
			}
			if got := strings.Join(got, "\n"); got != want {
				t.Errorf("instance %d:\n%s\nwant:\n%s", id, got, want)
			}
			if n := strings.Count(e.String(), "\n"); n != len(e.Started)+len(e.Ended) {
				t.Errorf("%d lines: %s", n, e)
			}
		}
		explain(gw.Instance.ID(), `instance requested deployed by Manager
graph deployed operator by operator

instance ended operator by `+hostOf(s, gw.Instance.ID())+`
instance stopping operator by operator
`)
		explain(mid, fmt.Sprintf(`instance requested session_request of gw %[1]d by instance %[1]d
instance requested deployed by Manager
graph deployed operator by operator

instance ended idle by %[2]s
instance stopping idle by Manager
`, gw.Instance.ID(), hostOf(s, mid)))
		explain(again, `instance requested started again by Manager
instance ended operator by `+hostOf(s, gw.Instance.ID())+`
instance stopping operator by operator

instance ended its agent is lost by Manager
instance stopping undeployed by operator
graph undeployed operator by operator
graph deployed operator by operator
`)
		if _, err := s.m.Explain(t.Context(), 999); !errors.Is(err, ErrNotFound) {
			t.Errorf("an instance that never was: %v", err)
		}

		for n, m := range moments {
			got, err := s.m.StateAt(t.Context(), m.want.Seq)
			if m.want.Seq == 0 {
				got, err = Snapshot{}, nil
			}
			if err != nil || !reflect.DeepEqual(got, m.want) {
				t.Errorf("moment %d, event %d:\ngot  %+v, %v\nwant %+v", n, m.want.Seq, got, err, m.want)
			}
			got, err = s.m.StateAtTime(t.Context(), m.at)
			if err != nil || !reflect.DeepEqual(got, m.want) {
				t.Errorf("moment %d, at %v:\ngot  %+v, %v\nwant %+v", n, m.at, got, err, m.want)
			}
		}
		last := moments[len(moments)-1].want.Seq
		if got, err := s.m.StateAt(t.Context(), 0); err != nil || got.Seq != last {
			t.Errorf("the state now is that after event %d, %v, want %d", got.Seq, err, last)
		}
		if _, err := s.m.StateAt(t.Context(), last+1); !errors.Is(err, ErrNotFound) {
			t.Errorf("the state to come: %v", err)
		}
		if got, err := s.m.StateAtTime(t.Context(), moments[0].at.Add(-time.Hour)); err != nil || !reflect.DeepEqual(got, Snapshot{}) {
			t.Errorf("the state before there was a Manager: %+v, %v", got, err)
		}

		all := s.query(EventQuery{})
		for n, ev := range all {
			if ev.Seq != uint64(n+1) || ev.CauseSeq >= ev.Seq {
				t.Fatalf("event %d is %d, and follows from %d", n+1, ev.Seq, ev.CauseSeq)
			}
		}
		var page []Event
		for q := (EventQuery{Instance: mid, Limit: 2}); ; q.After = page[len(page)-1].Seq {
			list := s.query(q)
			if len(list) == 0 {
				break
			}
			page = append(page, list...)
		}
		want := slices.DeleteFunc(slices.Clone(all), func(ev Event) bool { return ev.Instance != mid && ev.Source != mid && ev.Destination != mid })
		if !reflect.DeepEqual(page, want) || len(page) < 6 {
			t.Errorf("of instance %d, by pages: %v, want %v", mid, page, want)
		}
		for _, q := range []EventQuery{{Service: "mid"}, {Node: s.nodes[0].addr}, {From: moments[2].at, To: moments[4].at}, {Kinds: []EventKind{EventSessionClosed}}} {
			want := slices.DeleteFunc(slices.Clone(all), func(ev Event) bool { return !q.Match(&ev) })
			if got := s.query(q); !reflect.DeepEqual(got, want) || len(got) == 0 || len(got) == len(all) {
				t.Errorf("%+v: %v, want %v", q, got, want)
			}
		}
	})
}

func (s *lifeMesh) query(q EventQuery) (list []Event) {
	s.t.Helper()
	for ev, err := range s.m.History(s.t.Context(), q) {
		if err != nil {
			s.t.Fatal(err)
		}
		list = append(list, ev)
	}
	return list
}

// hostOf returns the agent on whose node an instance was executed, as an actor.
func hostOf(s *lifeMesh, id InstanceID) string {
	for _, ev := range s.query(EventQuery{Instance: id, Kinds: []EventKind{EventInstanceRequested}}) {
		return "agent " + ev.Node.String()
	}
	return "nobody"
}

// Of what is no longer kept nothing is made up.
func TestHistoryForgets(t *testing.T) {
	bubble(t, func(t *testing.T) {
		store := &MemStore{}
		for _, cfg := range []ManagerConfig{{History: 20}, {Store: store, CheckpointAfter: 30, KeepBytes: 1}} {
			s := newLifeMesh(t, cfg, 1, nil)
			gw := s.begin()
			id := gw.Instance.ID()
			began := time.Now()
			for range 30 {
				source, dest := s.dial(gw, "P")
				source.Close()
				dest.Close()
				time.Sleep(time.Second)
			}
			synctest.Wait()
			oldest := s.query(EventQuery{Limit: 1})[0]
			if oldest.Seq < 10 {
				t.Fatalf("event %d is kept", oldest.Seq)
			}
			if _, err := s.m.StateAtTime(t.Context(), began); !errors.Is(err, ErrNotFound) {
				t.Errorf("the state at a time that is forgotten: %v", err)
			}
			if _, err := s.m.StateAt(t.Context(), 5); !errors.Is(err, ErrNotFound) {
				t.Errorf("the state after an event that is forgotten: %v", err)
			}
			if _, err := s.m.Explain(t.Context(), id); !errors.Is(err, ErrNotFound) {
				t.Errorf("the start that is forgotten: %v", err)
			}
			if cfg.Store != nil {
				if got, err := s.m.StateAt(t.Context(), 0); err != nil || !reflect.DeepEqual(got, s.m.Snapshot()) {
					t.Errorf("the present state: %+v, %v", got, err)
				}
				// Its end still says what is known: the cause of its start is another matter.
				if err := s.m.Shutdown(t.Context(), id); err != nil {
					t.Fatal(err)
				}
				if e, err := s.m.Explain(t.Context(), id); err != nil || len(e.Started) != 0 || len(e.Ended) != 2 {
					t.Errorf("the end after a start that is forgotten: %+v, %v", e, err)
				}
			}
			s.mesh.close()
		}
	})
}
