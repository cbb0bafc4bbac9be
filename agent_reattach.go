package ssmmp

import (
	"context"
	"errors"
	"fmt"
)

// How an agent keeps its state, and goes on with that of the agent before it.

// kept returns the state, nil when nothing is kept or the agent has stopped:
// then another may have the directory.
func (a *Agent) kept() *agentState {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.stopped {
		return nil
	}
	return a.state
}

// keep has the state changed, without waiting for the disk. a.mu is held.
func (a *Agent) keep(change func(*agentState)) {
	if s := a.state; s != nil && !a.stopped {
		a.wg.Go(func() { change(s) })
	}
}

// execute launches an instance. It is noted before that as an intent, and after
// it with its process: whenever the agent dies, the next one finds it.
func (a *Agent) execute(ctx context.Context, launcher Launcher, r InstanceRecord) (Process, error) {
	s := a.kept()
	if s == nil {
		return launcher.Launch(ctx, r.Launch)
	}
	if err := s.intend(r); err != nil {
		return nil, fmt.Errorf("ssmmp: cannot note instance %d: %w", r.Launch.ID, err)
	}
	p, err := launcher.Launch(ctx, r.Launch)
	if err != nil {
		s.forget(r.Launch.ID, false)
		return nil, err
	}
	if p, ok := p.(Identified); ok {
		s.update(r.Launch.ID, func(r *InstanceRecord) { r.Process = p.Identity() })
	}
	return p, nil
}

// comeBack goes on with what the agent before this one executed: it attaches
// to what still runs, and tells of what has ended.
func (a *Agent) comeBack() {
	for _, id := range a.state.damaged {
		if err := endMarked(envAgent+"="+a.listen, instanceMark(id)); err != nil {
			a.log.Error("cannot end an instance of which nothing is known", "instance", id, "error", err)
		}
	}
	for _, r := range a.state.list() {
		l := r.Launch
		a.step(AgentInput{Kind: AgentInputReattached, Instance: l.ID, Record: &r})
		a.mu.Lock()
		known := a.core.instances[l.ID] != nil
		a.mu.Unlock()
		if !known { // it is among the ended: only its record was left
			a.state.forget(l.ID, false)
			continue
		}
		process, err := a.reattach(r)
		if err != nil {
			exit := Exit{Code: -1, Unknown: true, Reason: err.Error()}
			if r.Ended != nil {
				exit = *r.Ended
			}
			a.log.Warn("ended while its agent was away", "service", l.Service, "instance", l.ID, "exit", exit.String(), "reason", exit.Reason)
			a.step(AgentInput{Kind: AgentInputExited, Instance: l.ID, Exit: exit})
			continue
		}
		a.log.Info("re-attached", "service", l.Service, "instance", l.ID, "pid", process.PID())
		p := &agentProcess{secret: l.Secret, process: process, launched: make(chan struct{})}
		close(p.launched)
		a.mu.Lock()
		a.processes[l.ID] = p
		a.mu.Unlock()
		if identified, ok := process.(Identified); ok && r.Process == (ProcessIdentity{}) {
			a.state.update(l.ID, func(r *InstanceRecord) { r.Process = identified.Identity() })
		}
		if a.cfg.KeepInstances {
			go a.follow(l, process)
		} else {
			a.wg.Go(func() { a.follow(l, process) })
		}
	}
}

// reattach finds an instance by its launcher. One whose service is not in the
// repository any more is looked for as a command.
func (a *Agent) reattach(r InstanceRecord) (Process, error) {
	if r.Ended != nil {
		return nil, fmt.Errorf("it was seen to end: %w", ErrNotFound)
	}
	var launcher Launcher = CommandLauncher{}
	for _, e := range a.cfg.Repository {
		if e.Service == r.Launch.Service {
			launcher = e.Launcher
		}
	}
	re, ok := launcher.(Reattacher)
	if !ok {
		return nil, errors.New("it ended with its agent")
	}
	return re.Reattach(context.Background(), r.Launch, r.Process)
}
