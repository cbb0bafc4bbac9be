package ssmmp

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// The Manager's runtime, continued: with a Store, nothing leaves before the
// events that caused it are durable. Steps add what they decided to a batch, and
// one goroutine commits whatever waits, all of it with one Append, and then
// carries it out, in its order.

const (
	// maxUncommitted bounds the events that wait to be committed. Where there
	// are more, no agent is read from: they wait in its connection.
	maxUncommitted = 1 << 15
	// storeRetry is the time between two tries to write to a store that is
	// full or busy.
	storeRetry = 200 * time.Millisecond
	// retainEvery is at how many of them it is looked for what can go.
	retainEvery = 25
)

// A commit is what some steps decided and nobody has been told yet.
type commit struct {
	events  []Event
	outputs []decided
	lines   []byte // of the outputs' messages: the core uses its memory again
}

// A decided is an output that waits for its commit.
type decided struct {
	ManagerOutput
	from, to int // of its message, in lines
}

func (b *commit) empty() bool { return len(b.events) == 0 && len(b.outputs) == 0 }

func (b *commit) reset() {
	clear(b.events)
	clear(b.outputs)
	b.events, b.outputs, b.lines = b.events[:0], b.outputs[:0], b.lines[:0]
	if cap(b.lines) > maxQueue {
		*b = commit{} // a burst is over
	}
}

// decide adds to the batch what a step decided, and performs what need not wait.
// m.mu is held.
func (m *Manager) decide(events []Event, out []ManagerOutput, queued *flushList) {
	b := m.batch
	now := time.Now()
	for i := range events {
		events[i].Time = now
	}
	b.events = append(b.events, events...)
	for i := range out {
		o := &out[i]
		if o.Early {
			m.perform(o, queued)
			continue
		}
		d := decided{ManagerOutput: *o, from: len(b.lines)}
		if o.Msg != nil {
			l := m.links[o.Conn]
			if l == nil {
				continue // it has ended
			}
			lines, err := AppendMessage(b.lines, o.Msg)
			if err != nil {
				queued.failed(l, err)
				continue
			}
			b.lines, d.Msg = lines, nil
		}
		d.to = len(b.lines)
		b.outputs = append(b.outputs, d)
	}
	if !b.empty() {
		m.work.Signal()
	}
}

// waitForRoom waits until another message of an agent may be handled. m.mu is
// held.
func (m *Manager) waitForRoom() {
	for len(m.batch.events)+len(m.batch.outputs) > maxUncommitted && !m.closed {
		m.room.Wait()
	}
}

// commits is the goroutine that commits. It ends when the Manager was closed,
// with everything that was decided before, or when the store fails.
func (m *Manager) commits() {
	defer close(m.committed)
	other := new(commit)
	queued := flushList{log: m.log}
	for {
		m.mu.Lock()
		for m.batch.empty() && !m.closed {
			m.work.Wait()
		}
		if m.batch.empty() {
			m.mu.Unlock()
			return
		}
		b := m.batch
		m.batch = other
		m.room.Broadcast()
		checkpoint, seq := m.checkpointDue(len(b.events))
		m.mu.Unlock()

		if err := m.append(b); err != nil {
			m.storeFailed(err)
			return
		}
		logged := m.history.append(b.events, m.log)
		m.mu.Lock()
		if n := len(b.events); n > 0 {
			m.durable = b.events[n-1].Seq
		}
		for i := range b.outputs {
			m.performDecided(b, &b.outputs[i], &queued)
		}
		m.mu.Unlock()
		queued.flush()
		for _, ev := range logged {
			logEvent(m.log, ev)
		}
		b.reset()
		other = b
		if checkpoint != nil {
			m.wg.Go(func() { m.keep(checkpoint, seq) })
		}
	}
}

// append commits the events of a batch. While the store is full or busy it tries
// again and again, and has a full one forget what it need not keep; what is
// decided meanwhile waits.
func (m *Manager) append(b *commit) error {
	for try := 0; len(b.events) > 0; try++ {
		err := m.cfg.Store.Append(context.Background(), b.events)
		var why error // to try again
		switch {
		case errors.Is(err, ErrStoreFull):
			why = ErrStoreFull
		case errors.Is(err, ErrStoreBusy):
			why = ErrStoreBusy
		}
		m.mu.Lock()
		if why != m.storeErr {
			m.storeErr = why
			if why != nil {
				m.log.Error("the store takes no events: nothing new is begun until it does", "error", err)
			} else {
				m.log.Info("the store takes events again")
			}
		}
		closed := m.closed
		m.mu.Unlock()
		if why == nil || closed {
			return err
		}
		if why == ErrStoreFull && try%retainEvery == 0 {
			m.retain()
		}
		select {
		case <-time.After(storeRetry):
		case <-m.done:
		}
	}
	return nil
}

func (m *Manager) performDecided(b *commit, d *decided, queued *flushList) {
	if d.Kind != ManagerOutputSend {
		m.perform(&d.ManagerOutput, queued)
		return
	}
	if l := m.links[d.Conn]; l != nil {
		queued.add(l)
		queued.failed(l, l.putLine(b.lines[d.from:d.to]))
	}
}

// storeFailed ends a Manager whose store failed: nobody is told anything any
// more, for nobody knows what is durable.
func (m *Manager) storeFailed(err error) {
	m.log.Error("the store failed: this Manager ends", "error", err)
	m.mu.Lock()
	m.failure = fmt.Errorf("ssmmp: Manager: %w", err)
	for _, l := range m.links {
		l.abort()
	}
	m.shut()
	m.mu.Unlock()
}

// checkpointDue returns the events of a checkpoint, and the event after which it
// is, when it is time for one: the state is then that after the batch which is
// being committed, of n events. m.mu is held.
func (m *Manager) checkpointDue(n int) ([]Event, uint64) {
	m.sinceCheckpoint += n
	if m.keeping || m.sinceCheckpoint < max(m.cfg.CheckpointAfter, 2*m.checkpointSize) {
		return nil, 0
	}
	events := m.core.Checkpoint()
	m.keeping, m.sinceCheckpoint, m.checkpointSize = true, 0, len(events)
	return events, m.core.seq
}

// keep writes a checkpoint and lets the store forget what is too old.
func (m *Manager) keep(checkpoint []Event, seq uint64) {
	now := time.Now()
	for i := range checkpoint {
		checkpoint[i].Time = now
	}
	if err := m.cfg.Store.Checkpoint(context.Background(), seq, checkpoint); err != nil {
		m.log.Warn("no checkpoint: the next start takes longer", "error", err)
	}
	m.retain()
	m.mu.Lock()
	m.keeping = false
	m.mu.Unlock()
}

// retain has the store forget what is beyond the bounds, if there are any.
func (m *Manager) retain() {
	r := Retention{MaxBytes: m.cfg.KeepBytes}
	if m.cfg.KeepFor > 0 {
		r.Before = time.Now().Add(-m.cfg.KeepFor)
	}
	if r == (Retention{}) {
		return
	}
	if err := m.cfg.Store.Retain(context.Background(), r); err != nil {
		m.log.Warn("the store keeps more than it should", "error", err)
	}
}

// recover takes the store, and the state that it holds.
func (m *Manager) recover() error {
	ctx := context.Background()
	began := time.Now()
	epoch, last, err := m.cfg.Store.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("ssmmp: Manager: %w", err)
	}
	if m.cfg.Epoch == 0 {
		m.cfg.Epoch = epoch
	}
	m.core = NewManagerCore(m.cfg)
	n := 0
	for ev, err := range m.cfg.Store.Replay(ctx, 0) {
		if err == nil {
			err = m.core.Replay(ev)
		}
		if err != nil {
			m.cfg.Store.Close()
			return fmt.Errorf("ssmmp: Manager: recovery: %w", err)
		}
		n++
	}
	if m.core.seq != last {
		m.cfg.Store.Close()
		return fmt.Errorf("ssmmp: Manager: recovery: the store ends with event %d, and its state with %d", last, m.core.seq)
	}
	m.history.base, m.history.seq, m.durable = last, last, last
	m.started = time.Now().Add(-m.core.Now())
	out, events := m.core.Resume(m.core.Now())
	m.sinceCheckpoint = n
	m.batch, m.committed = new(commit), make(chan struct{})
	m.work.L, m.room.L = &m.mu, &m.mu
	m.mu.Lock()
	m.decide(events, out, new(flushList)) // no agent is here
	m.setTimer(ManagerInput{Now: m.core.Now()})
	m.mu.Unlock()
	m.log.Info("recovered", "epoch", epoch, "event", last, "replayed", n, "time", time.Since(began))
	go m.commits()
	return nil
}
