package ssmmp

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/google/uuid"
)

// The agent, continued: executing the processes of instances, following and
// ending them.

// lastWords bounds how long the connection of an instance that has ended is
// still read: it ends with the instance, unless another process holds it too.
const lastWords = time.Second

// portPatience is how long a port that is taken is tried before an instance is
// executed: an outgoing connection may hold it, but others are soon had.
const portPatience = 250 * time.Millisecond

// An agentProcess is an instance as the agent's runtime holds it.
type agentProcess struct {
	secret   string
	launched chan struct{} // closed when process is set, or the launch failed
	process  Process       // nil when the launch failed
	killing  bool          // kill is under way; guarded by Agent.mu
}

// launch executes an instance and has it followed to its end. a.mu is held.
func (a *Agent) launch(o AgentOutput) {
	p := &agentProcess{secret: uuid.NewString(), launched: make(chan struct{})}
	a.processes[o.Instance] = p
	o.Launch.Agent, o.Launch.Secret = a.listen, p.secret
	execution := a.core.instances[o.Instance].execID
	a.wg.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), a.cfg.StartTimeout)
		defer cancel()
		var process Process
		err := a.portTaken(ctx, o.Launch)
		if err == nil {
			process, err = a.execute(ctx, o.Entry.Launcher, InstanceRecord{Launch: o.Launch, Execution: execution})
		}
		if err == nil {
			p.process = process
			a.log.Info("executed", "service", o.Launch.Service, "instance", o.Instance, "pid", process.PID())
		}
		close(p.launched)
		a.step(AgentInput{Kind: AgentInputStarted, Instance: o.Instance, Err: err})
		switch {
		case err != nil:
			a.mu.Lock()
			delete(a.processes, o.Instance)
			a.mu.Unlock()
		case a.cfg.KeepInstances:
			go a.follow(o.Launch, process) // for as long as the instance runs: Run does not wait
		default:
			a.follow(o.Launch, process)
		}
	})
}

// follow waits for an instance's end and tells of it.
func (a *Agent) follow(l Launch, process Process) {
	exit := process.Wait()
	if s := a.kept(); s != nil {
		s.update(l.ID, func(r *InstanceRecord) { r.Ended = &exit })
	}
	a.hearOut(l.ID)
	a.log.Info("ended", "service", l.Service, "instance", l.ID, "exit", exit.String(), "reason", exit.Reason)
	a.step(AgentInput{Kind: AgentInputExited, Instance: l.ID, Exit: exit, Err: a.whyNotReady(l)})
	a.mu.Lock()
	delete(a.processes, l.ID)
	a.mu.Unlock()
}

// portTaken returns ErrPortTaken when another program holds a port that an
// instance is to listen on. What else may be wrong with it the instance finds
// out by itself.
func (a *Agent) portTaken(ctx context.Context, l Launch) error {
	ctx, cancel := context.WithTimeout(ctx, portPatience)
	defer cancel()
	for _, s := range l.Sockets {
		ln, err := a.cfg.Transport.Listen(ctx, netip.AddrPortFrom(l.Address, s.Port).String())
		if err == nil {
			ln.Close()
		} else if addrInUse(err) {
			return fmt.Errorf("%w: %d of %s", ErrPortTaken, s.Port, s.Socket)
		}
	}
	return nil
}

// whyNotReady says what an instance lacked that ended before it was ready, as
// far as can be seen: the port may have been taken since it was executed.
func (a *Agent) whyNotReady(l Launch) error {
	a.mu.Lock()
	i := a.core.instances[l.ID]
	early := i != nil && !i.ready && !i.killed
	a.mu.Unlock()
	if !early {
		return nil
	}
	return a.portTaken(context.Background(), l)
}

// hearOut waits until everything is read that an ended instance said: its last
// words may still be on their way.
func (a *Agent) hearOut(id InstanceID) {
	a.mu.Lock()
	var l *link
	if i := a.core.instances[id]; i != nil {
		l = a.links[i.conn]
	}
	a.mu.Unlock()
	if l == nil {
		return
	}
	late := time.NewTimer(lastWords)
	defer late.Stop()
	select {
	case <-l.done:
	case <-late.C:
	}
}

func (a *Agent) kill(id InstanceID, p *agentProcess) {
	<-p.launched
	if p.process == nil {
		return
	}
	if err := p.process.Kill(); err != nil {
		a.log.Error("cannot kill", "instance", id, "error", err)
	}
	a.mu.Lock()
	p.killing = false
	a.mu.Unlock()
}

// signal asks an instance that does not speak SSMMP to end.
func (a *Agent) signal(id InstanceID, p *agentProcess, name string) {
	<-p.launched
	if p.process == nil {
		return
	}
	err := errors.ErrUnsupported
	if s, ok := p.process.(Signaler); ok {
		err = s.Signal(name)
	}
	if err != nil {
		a.log.Error("cannot signal, so it is killed", "instance", id, "signal", name, "error", err)
		a.kill(id, p)
	}
}

// probe waits until all ports of an instance listen: so is one found ready,
// and later well, that does not speak SSMMP. It gives up when the instance
// speaks, or is gone.
func (a *Agent) probe(id InstanceID, sockets []SocketPort) {
	for wait := 20 * time.Millisecond; ; wait = min(2*wait, 500*time.Millisecond) {
		select {
		case <-time.After(wait):
		case <-a.done:
			return
		}
		a.mu.Lock()
		i := a.core.instances[id]
		waiting := i != nil && i.probed && !i.killed
		a.mu.Unlock()
		if !waiting {
			return
		}
		if a.listening(sockets) {
			a.step(AgentInput{Kind: AgentInputPortsListen, Instance: id})
			return
		}
	}
}

func (a *Agent) listening(sockets []SocketPort) bool {
	for _, s := range sockets {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		conn, err := a.cfg.Transport.Dial(ctx, netip.AddrPortFrom(a.cfg.Address, s.Port).String())
		cancel()
		if err != nil {
			return false
		}
		conn.Close()
	}
	return true
}
