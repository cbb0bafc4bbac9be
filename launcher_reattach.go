package ssmmp

import "context"

// A Reattacher is a Launcher whose instances outlive a process that launched
// them and died: an agent that keeps its state in a directory finds them again.
type Reattacher interface {
	Launcher
	// Reattach returns an instance that an earlier process launched with l
	// and of which something still runs. id is what is known of its process;
	// the zero value when that process died before it could note it. The error
	// wraps ErrNotFound when nothing of the instance runs any more.
	Reattach(ctx context.Context, l Launch, id ProcessIdentity) (Process, error)
}

// An Identified is a Process that can be found again by its identity.
type Identified interface {
	Process
	Identity() ProcessIdentity
}

// A ProcessIdentity tells the first process of an instance from all others that
// ever run on its machine.
type ProcessIdentity struct {
	PID    int    `json:"pid"`
	Start  uint64 `json:"start"`            // when it started, in ticks since the boot
	Boot   string `json:"boot"`             // which boot of the machine
	Cgroup string `json:"cgroup,omitempty"` // the directory of its own cgroup, where it has one
}

// Reattach returns an instance that a CommandLauncher with the same Cgroup
// started in an earlier process. That process's children are nobody's now, so
// Wait learns when the instance ends, but not how. It works on Linux; elsewhere
// the error wraps errors.ErrUnsupported.
func (c CommandLauncher) Reattach(ctx context.Context, l Launch, id ProcessIdentity) (Process, error) {
	p, err := c.reattach(ctx, l, id)
	if err != nil {
		return nil, &LaunchError{Service: l.Service, ID: l.ID, Err: err}
	}
	return p, nil
}
