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
// to what still runs, and tells of what has ended. What cannot be seen now, for
// want of descriptors or the like, is tried again until ctx ends.
func (a *Agent) comeBack(ctx context.Context) {
	for _, id := range a.state.damaged {
		find := func() error { return endMarked(envAgent+"="+a.listen, instanceMark(id)) }
		if err := find(); err != nil {
			a.log.Error("cannot end an instance of which nothing is known", "instance", id, "error", err)
			a.wg.Go(func() { a.insist(ctx, err, find) })
		}
	}
	for _, r := range a.state.list() {
		l := r.Launch
		a.step(AgentInput{Kind: AgentInputReattached, Instance: l.ID, Record: &r})
		a.mu.Lock()
		known := a.core.instances[l.ID] != nil
		p := &agentProcess{secret: l.Secret, launched: make(chan struct{})}
		if known {
			a.processes[l.ID] = p
		}
		a.mu.Unlock()
		if !known { // it is among the ended: only its record was left
			a.state.forget(l.ID, false)
			continue
		}
		process, err := a.reattach(r)
		if err == nil || hasEnded(err) {
			a.reattached(r, p, process, err)
			continue
		}
		a.log.Error("cannot tell whether an instance runs", "service", l.Service, "instance", l.ID, "error", err)
		a.wg.Go(func() {
			err := a.insist(ctx, err, func() (err error) {
				process, err = a.reattach(r)
				return err
			})
			if err != nil && !hasEnded(err) && a.cfg.KeepInstances {
				close(p.launched)
				return // the agent after this one will try
			}
			a.reattached(r, p, process, err)
		})
	}
}

// insist calls f, which failed, again and again until it succeeds, or says that
// there is nothing to be found, or ctx ends. It returns the last error.
func (a *Agent) insist(ctx context.Context, err error, f func() error) error {
	for wait := a.cfg.BackOffFrom; err != nil && !hasEnded(err) && sleep(ctx, wait); wait = min(2*wait, a.cfg.BackOffTo) {
		err = f()
	}
	return err
}

// hasEnded tells whether an instance could not be found since it is not there
// any more, or cannot be found here at all. No other error says so.
func hasEnded(err error) bool {
	return errors.Is(err, ErrNotFound) || errors.Is(err, errors.ErrUnsupported)
}

// reattached has an instance followed that was found, or tells that it was not.
func (a *Agent) reattached(r InstanceRecord, p *agentProcess, process Process, err error) {
	l := r.Launch
	if err != nil {
		exit := Exit{Code: -1, Unknown: true, Reason: err.Error()}
		if r.Ended != nil {
			exit = *r.Ended
		}
		if hasEnded(err) {
			a.log.Warn("ended while its agent was away", "service", l.Service, "instance", l.ID, "exit", exit.String(), "reason", exit.Reason)
		} else {
			a.log.Error("given up, and it may run on", "service", l.Service, "instance", l.ID, "pid", r.Process.PID, "error", err)
		}
		close(p.launched)
		a.mu.Lock()
		delete(a.processes, l.ID)
		a.mu.Unlock()
		a.step(AgentInput{Kind: AgentInputExited, Instance: l.ID, Exit: exit})
		return
	}
	a.log.Info("re-attached", "service", l.Service, "instance", l.ID, "pid", process.PID())
	p.process = process
	close(p.launched)
	if identified, ok := process.(Identified); ok && r.Process == (ProcessIdentity{}) {
		if s := a.kept(); s != nil {
			s.update(l.ID, func(r *InstanceRecord) { r.Process = identified.Identity() })
		}
	}
	if a.cfg.KeepInstances {
		go a.follow(l, process)
	} else {
		a.wg.Go(func() { a.follow(l, process) })
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
		return nil, fmt.Errorf("it ended with its agent: %w", ErrNotFound)
	}
	return re.Reattach(context.Background(), r.Launch, r.Process)
}
