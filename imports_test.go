package ssmmp_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const modulePath = "github.com/ssmmp/ssmmp"

// What the files of the root package may import beside the standard library.
var (
	rootImports = []string{"github.com/hashicorp/go-hclog", "github.com/google/uuid"}
	testImports = append([]string{"pgregory.net/rapid", modulePath}, rootImports...)
)

// The files that decide, and do nothing: no I/O, no clock, no lock, no chance.
var pureFiles = []string{"*_core.go", "session.go", "graph*.go", "policy.go"}

// impureImports are refused there, with all packages below them.
var impureImports = append([]string{"net", "os", "sync", "math/rand", "crypto/rand", "log"}, rootImports...)

// clockNames are what package time has to ask the clock or to wait for it.
var clockNames = []string{"Now", "Since", "Until", "After", "AfterFunc", "Sleep", "Tick", "NewTicker", "NewTimer"}

// The root package stays light, so that a service that joins a mesh does, and
// what decides stays pure, so that the same inputs always give the same outputs.
func TestImports(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	pure := 0
	for _, name := range files {
		src, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, fault := range rootFaults(t, name, src) {
			t.Error(fault)
		}
		if isPure(name) {
			pure++
		}
	}
	if pure < len(pureFiles) {
		t.Errorf("%d of %d files are held to be pure: have they other names now?", pure, len(files))
	}
}

// Waiting for time to pass makes a test slow or flaky, except in virtual time.
func TestNoSleepInTests(t *testing.T) {
	t.Parallel()
	packages := map[string]map[string][]byte{} // sources by file, by directory
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(name, "_test.go") {
			return err
		}
		dir := filepath.Dir(name)
		if packages[dir] == nil {
			packages[dir] = map[string][]byte{}
		}
		packages[dir][name], err = os.ReadFile(name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, files := range packages {
		for _, fault := range sleepFaults(t, files) {
			t.Error(fault)
		}
	}
	if len(packages) < 3 {
		t.Errorf("looked at the tests of %d packages", len(packages))
	}
}

// Each rule finds what breaks it.
func TestImportRules(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, file, src string
		want            []string
	}{
		{"standard library", "agent.go", `import ("net"; "sync")`, nil},
		{"the two libraries", "agent.go", `import ("github.com/hashicorp/go-hclog"; "github.com/google/uuid")`, nil},
		{"another library", "agent.go", `import "golang.org/x/net/nettest"`, []string{"agent.go:2: imports golang.org/x/net/nettest"}},
		{"the tests' library", "agent.go", `import "pgregory.net/rapid"`, []string{"agent.go:2: imports pgregory.net/rapid"}},
		{"in a test", "agent_test.go", `import "pgregory.net/rapid"`, nil},
		{"another in a test", "agent_test.go", `import "golang.org/x/net/nettest"`, []string{"agent_test.go:2: imports golang.org/x/net/nettest"}},
		{"ssmmptest", "agent.go", `import "github.com/ssmmp/ssmmp/ssmmptest"`, []string{"agent.go:2: imports github.com/ssmmp/ssmmp/ssmmptest"}},
		{"ssmmptest in a test", "agent_test.go", `import "github.com/ssmmp/ssmmp/ssmmptest"`, []string{"agent_test.go:2: imports github.com/ssmmp/ssmmp/ssmmptest"}},

		{"addresses in a core", "agent_core.go", `import ("net/netip"; "time")`, nil},
		{"net", "session.go", `import "net"`, []string{"session.go:2: imports net"}},
		{"below net", "policy.go", `import "net/http"`, []string{"policy.go:2: imports net/http"}},
		{"os", "graph_file.go", `import "os"`, []string{"graph_file.go:2: imports os"}},
		{"atomics", "manager_core.go", `import "sync/atomic"`, []string{"manager_core.go:2: imports sync/atomic"}},
		{"chance", "manager_core.go", `import "math/rand/v2"`, []string{"manager_core.go:2: imports math/rand/v2"}},
		{"log", "manager_core.go", `import "github.com/hashicorp/go-hclog"`, []string{"manager_core.go:2: imports github.com/hashicorp/go-hclog"}},
		{"a test of a core", "manager_core_test.go", `import ("net"; "time"); var t = time.Now()`, nil},
		{"the clock", "manager_core.go", `import "time"; func f() { time.Now(); time.Sleep(time.Second) }`,
			[]string{"manager_core.go:2: names time.Now", "manager_core.go:2: names time.Sleep"}},
		{"the clock by another name", "graph.go", `import clock "time"; var f = clock.After`, []string{"graph.go:2: names time.After"}},
		{"the clock without a name", "graph.go", `import . "time"; var d Duration`, []string{"graph.go:2: imports time without a name"}},
		{"a goroutine", "graph.go", "func f() {\n\tgo f()\n}", []string{"graph.go:3: starts a goroutine"}},
		{"a goroutine elsewhere", "link.go", "func f() {\n\tgo f()\n}", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := rootFaults(t, tt.file, []byte("package ssmmp\n"+tt.src)); !slices.Equal(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
	for _, tt := range []struct {
		name, src string
		want      []string
	}{
		{"real time", `func f() { time.Sleep(1) }`, []string{"x_test.go:2: time.Sleep outside a synctest bubble"}},
		{"by another name", `func f() { clock.Sleep(1) }`, []string{"x_test.go:2: time.Sleep outside a synctest bubble"}},
		{"as a value", `var f = time.Sleep`, []string{"x_test.go:2: time.Sleep outside a synctest bubble"}},
		{"a helper", "func f() { synctest.Test(t, g) }\nfunc g() { time.Sleep(1) }", []string{"x_test.go:3: time.Sleep outside a synctest bubble"}},
		{"virtual time", `func f() { synctest.Test(t, func(t *testing.T) { go func() { time.Sleep(1) }() }) }`, nil},
		{"virtual time of another function", "func f() { g(func() { time.Sleep(1) }) }\nfunc g(f func()) { h(f) }\nfunc h(f func()) { synctest.Test(t, f) }", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			imports := "import (\"time\"; \"testing/synctest\")"
			if strings.Contains(tt.src, "clock.") {
				imports = "import clock \"time\""
			}
			src := "package ssmmp; " + imports + "\n" + tt.src
			if got := sleepFaults(t, map[string][]byte{"x_test.go": []byte(src)}); !slices.Equal(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// rootFaults returns what a file of the root package does and may not.
func rootFaults(t *testing.T, name string, src []byte) (faults []string) {
	file, fault := parse(t, name, src, &faults)
	allowed := rootImports
	if strings.HasSuffix(name, "_test.go") {
		allowed = testImports
	}
	pure := isPure(name)
	for _, spec := range file.Imports {
		p := importPath(t, spec)
		first, _, _ := strings.Cut(p, "/")
		switch {
		case strings.Contains(first, ".") && !slices.Contains(allowed, p),
			pure && p != "net/netip" && slices.ContainsFunc(impureImports, func(i string) bool { return p == i || strings.HasPrefix(p, i+"/") }):
			fault(spec.Pos(), "imports "+p)
		case pure && p == "time" && spec.Name != nil && spec.Name.Name == ".":
			fault(spec.Pos(), "imports time without a name")
		}
	}
	if !pure {
		return faults
	}
	clock := importName(t, file, "time")
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			fault(n.Pos(), "starts a goroutine")
		case *ast.SelectorExpr:
			if x, ok := n.X.(*ast.Ident); ok && x.Name == clock && slices.Contains(clockNames, n.Sel.Name) {
				fault(n.Pos(), "names time."+n.Sel.Name)
			}
		}
		return true
	})
	return faults
}

// sleepFaults returns where the tests of a package sleep in a function that
// does not enter a synctest bubble, by itself or through those that it calls.
func sleepFaults(t *testing.T, files map[string][]byte) (faults []string) {
	type sleep struct {
		in    string // a function
		fault string
	}
	var sleeps []sleep
	calls := map[string][]string{} // functions that a function names
	enters := map[string]bool{}    // functions that enter a bubble
	for name, src := range files {
		var found []string
		file, fault := parse(t, name, src, &found)
		clock, virtual := importName(t, file, "time"), importName(t, file, "testing/synctest")
		for _, decl := range file.Decls {
			in := ""
			if f, ok := decl.(*ast.FuncDecl); ok {
				in = f.Name.Name
			}
			ast.Inspect(decl, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.Ident:
					calls[in] = append(calls[in], n.Name)
				case *ast.SelectorExpr:
					x, ok := n.X.(*ast.Ident)
					switch {
					case !ok:
					case x.Name == virtual && n.Sel.Name == "Test":
						enters[in] = true
					case x.Name == clock && n.Sel.Name == "Sleep":
						fault(n.Pos(), "time.Sleep outside a synctest bubble")
						sleeps = append(sleeps, sleep{in, found[len(found)-1]})
					}
				}
				return true
			})
		}
	}
	for more := true; more; {
		more = false
		for f, names := range calls {
			if !enters[f] && slices.ContainsFunc(names, func(name string) bool { return enters[name] }) {
				enters[f], more = true, true
			}
		}
	}
	for _, s := range sleeps {
		if s.in == "" || !enters[s.in] {
			faults = append(faults, s.fault)
		}
	}
	slices.Sort(faults)
	return faults
}

// isPure reports whether the file of that name has to be.
func isPure(name string) bool {
	return !strings.HasSuffix(name, "_test.go") && slices.ContainsFunc(pureFiles, func(pattern string) bool {
		ok, _ := filepath.Match(pattern, name)
		return ok
	})
}

// parse returns a file, and a function that notes a fault at a place in it.
func parse(t *testing.T, name string, src []byte, faults *[]string) (*ast.File, func(token.Pos, string)) {
	t.Helper()
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, name, src, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	return file, func(at token.Pos, what string) {
		*faults = append(*faults, fmt.Sprintf("%s:%d: %s", name, set.Position(at).Line, what))
	}
}

func importPath(t *testing.T, spec *ast.ImportSpec) string {
	t.Helper()
	p, err := strconv.Unquote(spec.Path.Value)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// importName returns the name that a file has for a package.
func importName(t *testing.T, file *ast.File, pkg string) string {
	t.Helper()
	for _, spec := range file.Imports {
		if importPath(t, spec) == pkg && spec.Name != nil {
			return spec.Name.Name
		}
	}
	return path.Base(pkg)
}
