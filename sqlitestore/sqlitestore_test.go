package sqlitestore_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/ssmmp/ssmmp"
	"github.com/ssmmp/ssmmp/sqlitestore"
	"github.com/ssmmp/ssmmp/ssmmptest"
)

func TestStore(t *testing.T) {
	t.Parallel()
	ssmmptest.TestStore(t, func(t *testing.T) (func() ssmmp.Store, func(ssmmp.Store) ssmmp.Store) {
		dir := t.TempDir()
		open := func() ssmmp.Store { return sqlitestore.New(filepath.Join(dir, "manager.db")) }
		return open, func(ssmmp.Store) ssmmp.Store {
			dir = copyDir(t, dir)
			return open()
		}
	})
}

// copyDir copies the files of a store that nobody writes to just now, as a crash
// leaves them.
func copyDir(t testing.TB, dir string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}
