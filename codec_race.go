//go:build race

package ssmmp

// poison has a Decoder overwrite each line before it reads on, so that a test
// under the race detector sees when a borrowed message is used for too long.
const poison = true
