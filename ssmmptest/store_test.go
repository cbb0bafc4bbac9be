package ssmmptest

import (
	"testing"

	"github.com/ssmmp/ssmmp"
)

func TestMemStore(t *testing.T) {
	t.Parallel()
	TestStore(t, func(*testing.T) (func() ssmmp.Store, func(ssmmp.Store) ssmmp.Store) {
		s := &ssmmp.MemStore{}
		return func() ssmmp.Store { return s }, func(ssmmp.Store) ssmmp.Store {
			s = s.Crash()
			return s
		}
	})
}
