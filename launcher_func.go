package ssmmp

import (
	"context"
	"fmt"
	"net"
	"runtime/debug"
	"strings"
)

// stackLines is how much of a stack the report of a panic holds.
const stackLines = 12

// FuncLauncher executes each instance as a call of f in a goroutine of this
// process: a mesh without processes, for tests and for services that are
// compiled into their agent.
//
// Kill cancels f's context and does not wait: a Go function cannot be killed,
// so f must return soon after its context is done, and Wait blocks until it
// does. An instance's exit code is 0 when f returns nil and 1 when it returns
// an error, which is then the Reason. A panic in f ends that instance only, with
// code -1 and the panic's value and stack as the Reason. The process id is 0.
func FuncLauncher(f func(ctx context.Context, l Launch) error) Launcher {
	return funcLauncher(f)
}

type funcLauncher func(ctx context.Context, l Launch) error

// Launch calls the function with ctx's values, but not its end.
func (f funcLauncher) Launch(ctx context.Context, l Launch) (Process, error) {
	if err := ctx.Err(); err != nil {
		return nil, &LaunchError{Service: l.Service, ID: l.ID, Err: err}
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	p := &funcProcess{cancel: cancel, done: make(chan struct{})}
	go p.run(ctx, f, l)
	return p, nil
}

// A funcProcess is an instance that is a call of a function.
type funcProcess struct {
	cancel context.CancelFunc
	done   chan struct{} // closed when exit is final
	exit   Exit
}

func (p *funcProcess) PID() int { return 0 }

func (p *funcProcess) Wait() Exit {
	<-p.done
	return p.exit
}

func (p *funcProcess) Kill() error {
	p.cancel()
	return nil
}

func (p *funcProcess) Owns(net.Conn) (owns, known bool) { return false, false }

// run calls the function to its end, whichever of the four ways that comes in.
func (p *funcProcess) run(ctx context.Context, f funcLauncher, l Launch) {
	defer close(p.done)
	defer p.cancel()
	p.exit = Exit{Code: -1, Reason: "runtime.Goexit"} // unless it returns or panics
	defer func() {
		if v := recover(); v != nil {
			p.exit = Exit{Code: -1, Reason: fmt.Sprintf("panic: %v\n%s", v, panicStack())}
		}
	}()
	if err := f(ctx, l); err != nil {
		p.exit = Exit{Code: 1, Reason: err.Error()}
	} else {
		p.exit = Exit{}
	}
}

// panicStack returns the first lines of the stack at which a panic began, to
// be called by the deferred function that recovers it.
func panicStack() string {
	stack := string(debug.Stack())
	if _, below, ok := strings.Cut(stack, "\npanic("); ok {
		// What follows is the rest of panic's own two lines.
		if lines := strings.SplitN(below, "\n", 3); len(lines) == 3 {
			stack = lines[2]
		}
	}
	lines := strings.SplitN(stack, "\n", stackLines+1)
	return strings.Join(lines[:min(len(lines), stackLines)], "\n")
}
