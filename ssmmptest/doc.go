// Package ssmmptest holds what tests of programs built on ssmmp need.
//
// [TestTransport] is the conformance suite for implementations of
// [github.com/ssmmp/ssmmp.Transport].
//
// A [Faults] decorates any Transport, in memory or TCP, with what can go wrong
// on a network: delay and jitter, loss, a narrow bandwidth, partitions, also one-way ones,
// frozen hosts, half-open connections, resets at a byte, slow readers. It has a
// seed, counts what it did, and keeps the virtual time of testing/synctest.
package ssmmptest
