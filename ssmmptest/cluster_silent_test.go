package ssmmptest

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"
)

// A Manager that is stopped while its host answers for it holds no dial up for
// long: the agents give its connections up, and come back when it goes on.
func TestClusterManagerSilent(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newTestCluster(t, 2)
		if got := c.ask("via PA echo x"); got != "x" {
			t.Fatal(got)
		}
		before := c.the("A").ID
		c.Faults.GiveUpAfter(0)
		c.Faults.Freeze(Hosts{ManagerAddr})

		ctx, cancel := context.WithTimeout(c.ctx, time.Minute)
		defer cancel()
		waiting, err := c.Ask(ctx, "G", "S0", "via PA echo x")
		if err != nil || !strings.Contains(waiting, "Manager is away") {
			t.Errorf("a dial that waits: %q, %v; want that the Manager is away", waiting, err)
		}
		began := time.Now()
		if got := c.ask("via PA echo x"); !strings.Contains(got, "Manager is away") || time.Since(began) > time.Second {
			t.Errorf("a dial after that: %q after %v; want that the Manager is away, at once", got, time.Since(began))
		}
		time.Sleep(3 * time.Minute)
		c.Faults.Heal()
		c.settle()
		if got := c.ask("via PA echo x"); got != "x" || !slices.Contains(c.Running(), before) {
			t.Errorf("when it goes on: %q, and %d run, want the same instance, %d", got, c.Running(), before)
		}
	})
}
