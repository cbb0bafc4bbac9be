package ssmmp

import (
	"context"
	"errors"
	"net"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestFuncExit(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		f    func(context.Context, Launch) error
		want Exit
	}{
		{"well", func(context.Context, Launch) error { return nil }, Exit{}},
		{"error", func(context.Context, Launch) error { return errors.New("no disk") },
			Exit{Code: 1, Reason: "no disk"}},
		{"Goexit", func(context.Context, Launch) error { runtime.Goexit(); return nil },
			Exit{Code: -1, Reason: "runtime.Goexit"}},
	} {
		p, err := FuncLauncher(test.f).Launch(context.Background(), Launch{Service: "a", ID: 1})
		if err != nil {
			t.Fatal(err)
		}
		if p.PID() != 0 {
			t.Errorf("%s: PID %d", test.name, p.PID())
		}
		for range 2 {
			if got := p.Wait(); got != test.want {
				t.Errorf("%s: exit %+v, want %+v", test.name, got, test.want)
			}
		}
		if err := p.Kill(); err != nil {
			t.Errorf("%s: Kill after the end: %v", test.name, err)
		}
	}
}

func explode() { panic("boom") }

func TestFuncPanic(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]func(context.Context, Launch) error{
		"panic: boom\n":                 func(context.Context, Launch) error { explode(); return nil },
		"panic: runtime error: index":   func(_ context.Context, l Launch) error { _ = l.Sockets[l.ID]; return nil },
		"panic: runtime error: invalid": nil,
	} {
		p, err := FuncLauncher(f).Launch(context.Background(), Launch{Service: "a", ID: 1})
		if err != nil {
			t.Fatal(err)
		}
		got := p.Wait()
		if got.Code != -1 || got.Signal != "" || !strings.HasPrefix(got.Reason, name) {
			t.Errorf("exit %+v, want %q", got, name)
		}
		lines := strings.Split(got.Reason, "\n")
		if len(lines) < 3 || len(lines) > 1+stackLines {
			t.Errorf("a reason of %d lines: %s", len(lines), got.Reason)
		}
		if strings.Contains(name, "boom") && !strings.Contains(lines[1], "explode") {
			t.Errorf("the stack begins with %q, want explode", lines[1])
		}
	}
}

func TestFuncKill(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		type key struct{}
		ctx, cancel := context.WithCancel(context.WithValue(context.Background(), key{}, "kept"))
		const linger = time.Hour
		want := Launch{Service: "a", ID: 7, Secret: "s"}
		told := make(chan struct{})
		p, err := FuncLauncher(func(ctx context.Context, l Launch) error {
			if l.ID != want.ID || l.Service != want.Service || l.Secret != want.Secret || ctx.Value(key{}) != "kept" {
				t.Errorf("got %+v", l)
			}
			<-ctx.Done()
			close(told)
			time.Sleep(linger)
			return ctx.Err()
		}).Launch(ctx, want)
		if err != nil {
			t.Fatal(err)
		}
		cancel() // governs the start only
		synctest.Wait()
		select {
		case <-told:
			t.Error("told to end with the context of its start")
		default:
		}

		began := time.Now()
		if err := p.Kill(); err != nil {
			t.Error(err)
		}
		if d := time.Since(began); d != 0 {
			t.Errorf("Kill waited %s", d)
		}
		if got, want := p.Wait(), (Exit{Code: 1, Reason: context.Canceled.Error()}); got != want {
			t.Errorf("exit %+v, want %+v", got, want)
		}
		if d := time.Since(began); d != linger {
			t.Errorf("Wait took %s, want %s", d, linger)
		}
	})
}

func TestFuncContextIsDoneAfterwards(t *testing.T) {
	t.Parallel()
	held := make(chan context.Context, 1)
	p, err := FuncLauncher(func(ctx context.Context, _ Launch) error {
		held <- ctx
		return nil
	}).Launch(context.Background(), Launch{})
	if err != nil {
		t.Fatal(err)
	}
	p.Wait()
	if (<-held).Err() == nil {
		t.Error("the context outlives the instance")
	}
}

func TestFuncCanceledStart(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := FuncLauncher(func(context.Context, Launch) error {
		t.Error("called")
		return nil
	}).Launch(ctx, Launch{Service: "a", ID: 7})
	var le *LaunchError
	if !errors.Is(err, context.Canceled) || !errors.As(err, &le) || le.ID != 7 {
		t.Errorf("error %v", err)
	}
}

func TestFuncOwns(t *testing.T) {
	t.Parallel()
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	p, err := FuncLauncher(func(ctx context.Context, _ Launch) error { return nil }).Launch(context.Background(), Launch{})
	if err != nil {
		t.Fatal(err)
	}
	if owns, known := p.Owns(near); owns || known {
		t.Errorf("owns %t, known %t", owns, known)
	}
	p.Wait()
}
