// Package ssmmptest holds what tests of programs built on ssmmp need.
//
// [TestTransport] is the conformance suite for implementations of
// [github.com/ssmmp/ssmmp.Transport], [TestStore] that for those of
// [github.com/ssmmp/ssmmp.Store].
//
// A [Faults] decorates any Transport, in memory or TCP, with what can go wrong
// on a network: delay and jitter, loss, a narrow bandwidth, partitions, also
// one-way ones, frozen hosts, half-open connections, resets at a byte, slow
// readers. It has a seed, counts what it did, and keeps the virtual time of
// testing/synctest.
//
// # A mesh in a test
//
// [NewCluster] runs a whole mesh in the test's process: the Manager, agents and
// instances of package ssmmp over a network in memory, with a Faults in between,
// and services as Go functions. [Answer] is what a service is when it is given
// no function: it takes commands, so that sessions between any two services can
// be opened from outside.
//
//	c := ssmmptest.NewCluster(t, graph, ssmmptest.Nodes(3))
//	c.Deploy(ctx)
//	reply, err := c.Ask(ctx, "gateway", "S0", "via P1 who")
//	c.Node(1).Crash()                             // no power, no word
//	c.Kill(7)                                     // kill -9 of an instance
//	c.Faults.Partition(c.Node(2).Hosts(), nil)
//	c.Faults.Heal()
//	err = c.Settle(ctx)                           // the Manager's view is what runs
//	s, events := c.Snapshot(), c.History()
//
// In a testing/synctest bubble it keeps virtual time: an hour of a hundred
// nodes takes some seconds. [StartCluster] is the same for programs.
//
// # A mesh from a seed
//
// A [Simulation] is a whole mesh that is played from a seed: the production
// cores of Manager, agents and instances, stepped by one scheduler in virtual
// time, over a simulated network, with simulated processes, clocks and store. The
// same seed gives the same run, to the byte. What must hold is checked after
// every step. [RandomSimulation] draws one; docs/simulation.md tells more.
package ssmmptest
