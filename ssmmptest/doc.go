// Package ssmmptest holds what tests of programs built on ssmmp need.
//
// [TestTransport] is the conformance suite for implementations of
// [github.com/ssmmp/ssmmp.Transport].
//
// A [Faults] decorates any Transport, in memory or TCP, with what can go wrong
// on a network: delay and jitter, loss, a narrow bandwidth, partitions, also one-way ones,
// frozen hosts, half-open connections, resets at a byte, slow readers. It has a
// seed, counts what it did, and keeps the virtual time of testing/synctest.
//
// A [Simulation] is a whole mesh that is played from a seed: the production
// cores of Manager, agents and instances, stepped by one scheduler in virtual
// time, over a simulated network, with simulated processes, clocks and store. The
// same seed gives the same run, to the byte. What must hold is checked after
// every step.
package ssmmptest
