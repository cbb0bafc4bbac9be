package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ssmmp/ssmmp"
)

// Each client uses its server through many health periods, in order and all at
// once, and again after the server was killed. The Manager knows the sessions.
func TestClients(t *testing.T) {
	t.Parallel()
	for _, e := range examples {
		t.Run(e.name, func(t *testing.T) {
			t.Parallel()
			testClient(t, e)
		})
	}
}

func testClient(t *testing.T, e example) {
	const (
		period = 500 * time.Millisecond
		misses = 8
	)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	m := newMesh(t, ctx, e, meshOptions{healthPeriod: period, healthMisses: misses})
	visits := 0
	visit := func() {
		t.Helper()
		visits++
		if text, err := m.visit(ctx); err != nil || text != e.says(visits) {
			t.Fatalf("visit %d: %q, %v", visits, text, err)
		}
	}
	server := func() ssmmp.InstanceStatus {
		t.Helper()
		found := m.instances(e.name)
		if len(found) != 1 {
			t.Fatalf("%d instances of %s run", len(found), e.name)
		}
		return found[0]
	}
	// One that did not answer for its health would be shut down meanwhile.
	pace := time.NewTicker(period / 2)
	defer pace.Stop()
	for range 2 * (misses + 2) {
		visit()
		<-pace.C
	}
	first := server()
	if first.Health != ssmmp.StatusOK {
		t.Errorf("the health of %s is %v", e.name, first.Health)
	}
	for ev := range m.manager.Events(ctx, 0) {
		if ev.Kind == ssmmp.EventInstanceStopping || ev.Kind == ssmmp.EventInstanceEnded {
			t.Errorf("meanwhile: %s", ev)
		}
		if ev.Seq >= m.manager.Snapshot().Seq {
			break
		}
	}
	sessions := m.sessions()
	if len(sessions) != 1 {
		t.Errorf("one user after the other: %d sessions", len(sessions))
	}
	for _, s := range sessions {
		if s.SourceService != "web" || s.Plug != "P1" || s.Destination != first.ID || s.Socket != "S1" || s.State != ssmmp.SessionOpen {
			t.Errorf("the Manager knows the session %+v", s)
		}
	}

	const crowd = 32
	errs := make([]error, crowd)
	var all sync.WaitGroup
	for n := range crowd {
		all.Go(func() { _, errs[n] = m.visit(ctx) })
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	visits += crowd
	visit()

	if err := m.manager.HardShutdown(ctx, first.ID); err != nil {
		t.Fatal(err)
	}
	visit()
	if second := server(); second.ID == first.ID {
		t.Errorf("%s %d was killed and runs", e.name, second.ID)
	}
}

func newMesh(t *testing.T, ctx context.Context, e example, opt meshOptions) *mesh {
	t.Helper()
	dir, err := os.MkdirTemp(tempDir(), "clients-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	m, err := startMesh(ctx, e, dir, opt)
	if errors.Is(err, exec.ErrNotFound) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.close)
	return m
}

// What the program prints, for those servers that are there.
func TestRun(t *testing.T) {
	t.Parallel()
	for _, e := range examples {
		t.Run(e.name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			var out lockedBuilder
			if err := run(ctx, e, &out); errors.Is(err, exec.ErrNotFound) {
				t.Skip(err)
			} else if err != nil {
				t.Fatalf("%v\n%s", err, out.String())
			}
			for _, want := range []string{
				"user  " + e.says(1) + "\n", "user  " + e.says(5) + "\n", e.name + " 2 is killed",
				fmt.Sprintf(": web 1 → %s 2\n", e.name), fmt.Sprintf(": web 1 → %s 3\n", e.name),
			} {
				if !strings.Contains(out.String(), want) {
					t.Errorf("the example does not say %q", want)
				}
			}
			if t.Failed() {
				t.Log(out.String())
			}
		})
	}
}

// A lockedBuilder is a strings.Builder for many goroutines.
type lockedBuilder struct {
	mu sync.Mutex
	strings.Builder
}

func (b *lockedBuilder) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Builder.Write(p)
}
