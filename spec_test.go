package ssmmp_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// declared holds what Go files declare, by file: functions, types, constants
// and variables by their names, methods and fields as Type.name.
type declared map[string]map[string]bool

// SPEC.md leads from requirements to code and tests. What it names is there.
func TestSpecNames(t *testing.T) {
	t.Parallel()
	decls := declaredIn(t, ".")
	text := readText(t, "SPEC.md")
	for _, fault := range specFaults(decls, text) {
		t.Error(fault)
	}
	if rows := specRows(text); len(rows) < 50 {
		t.Errorf("SPEC.md has %d rows", len(rows))
	}
}

func TestSpecFaults(t *testing.T) {
	t.Parallel()
	decls := declared{
		"a.go":      {"F": true, "T": true, "T.m": true},
		"b.go":      {"G": true},
		"a_test.go": {"TestF": true, "helper": true},
	}
	for _, tt := range []struct {
		name, cells string
		want        []string
	}{
		{"all there", "`a.go` `F`, `T.m`; `b.go` `G` | `TestF`", nil},
		{"no test, and why", "`a.go` `F` | none: why", nil},
		{"no such file", "`c.go` `F` | `TestF`", []string{"SPEC.md:3: there is no file c.go", "SPEC.md:3: c.go does not declare F"}},
		{"in another file", "`a.go` `G` | `TestF`", []string{"SPEC.md:3: a.go does not declare G"}},
		{"no such method", "`a.go` `T.n` | `TestF`", []string{"SPEC.md:3: a.go does not declare T.n"}},
		{"no such test", "`a.go` `F` | `TestF`, `TestG`", []string{"SPEC.md:3: there is no test TestG"}},
		{"not a test", "`a.go` `F` | `helper`", []string{"SPEC.md:3: there is no test helper"}},
		{"no code", "somewhere | `TestF`", []string{"SPEC.md:3: names no code"}},
		{"no test", "`a.go` `F` | ", []string{"SPEC.md:3: names no test"}},
		{"a cell too few", "`a.go` `F`", []string{"SPEC.md:3: 2 cells, want 3"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			text := "| requirement | code | test |\n|---|---|---|\n| what | " + tt.cells + " |\n"
			if got := specFaults(decls, text); !slices.Equal(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// The programs in README.md are examples of this module, which are built and
// vetted with it, and its tests exist.
func TestReadme(t *testing.T) {
	t.Parallel()
	text := readText(t, "README.md")
	shown := regexp.MustCompile("(?s)`(examples/[^`\n]+\\.go)`[^`]*\n```go\n(.*?)```\n").FindAllStringSubmatch(text, -1)
	if len(shown) != strings.Count(text, "```go\n") || len(shown) == 0 {
		t.Errorf("%d programs of %d name their file", len(shown), strings.Count(text, "```go\n"))
	}
	for _, s := range shown {
		src := readText(t, s[1])
		if _, program, _ := strings.Cut("\n"+src, "\npackage main\n"); s[2] != "package main\n"+program {
			t.Errorf("README.md does not show %s as it is", s[1])
		}
	}
	decls := declaredIn(t, ".")
	names := regexp.MustCompile("`((?:Test|Fuzz|Example)[A-Za-z0-9_]*)`").FindAllStringSubmatch(text, -1)
	if len(names) == 0 {
		t.Error("README.md names no test")
	}
	for _, name := range names {
		if !decls.hasTest(name[1]) {
			t.Errorf("README.md names the test %s, which does not exist", name[1])
		}
	}
}

// A specRow is a row of a table with the columns requirement, code and test.
type specRow struct {
	line  int
	cells []string
}

func specRows(text string) (rows []specRow) {
	inTable := false
	for i, line := range strings.Split(text, "\n") {
		cells := strings.Split(strings.Trim(line, "| "), " | ")
		switch {
		case !strings.HasPrefix(line, "|"):
			inTable = false
		case slices.Equal(cells, []string{"requirement", "code", "test"}):
			inTable = true
		case inTable && !strings.HasPrefix(line, "|---"):
			// An empty last cell is trimmed with the bar before it.
			if strings.HasSuffix(line, " |  |") {
				cells = append(cells, "")
			}
			rows = append(rows, specRow{i + 1, cells})
		}
	}
	return rows
}

var codeSpan = regexp.MustCompile("`([^`]+)`")

// specFaults returns what the tables of SPEC.md name and decls does not have.
// In the column code a name is looked for in the file named before it.
func specFaults(decls declared, text string) (faults []string) {
	for _, row := range specRows(text) {
		fault := func(format string, args ...any) {
			faults = append(faults, fmt.Sprintf("SPEC.md:%d: ", row.line)+fmt.Sprintf(format, args...))
		}
		if len(row.cells) != 3 {
			fault("%d cells, want 3", len(row.cells))
			continue
		}
		code := codeSpan.FindAllStringSubmatch(row.cells[1], -1)
		if len(code) == 0 && !strings.HasPrefix(row.cells[1], "none: ") {
			fault("names no code")
		}
		file := ""
		for _, span := range code {
			if name := span[1]; !strings.HasSuffix(name, ".go") {
				if !decls[file][name] {
					fault("%s does not declare %s", file, name)
				}
			} else if file = name; decls[file] == nil {
				fault("there is no file %s", file)
			}
		}
		tests := codeSpan.FindAllStringSubmatch(row.cells[2], -1)
		if len(tests) == 0 && !strings.HasPrefix(row.cells[2], "none: ") {
			fault("names no test")
		}
		for _, span := range tests {
			if !decls.hasTest(span[1]) {
				fault("there is no test %s", span[1])
			}
		}
	}
	return faults
}

// hasTest reports whether a test file declares a test, fuzz test or example of
// that name.
func (d declared) hasTest(name string) bool {
	if !regexp.MustCompile(`^(Test|Fuzz|Example)`).MatchString(name) {
		return false
	}
	for file, names := range d {
		if strings.HasSuffix(file, "_test.go") && names[name] {
			return true
		}
	}
	return false
}

// declaredIn parses all Go files below dir.
func declaredIn(t *testing.T, dir string) declared {
	t.Helper()
	decls := declared{}
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(name) != ".go" {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		names := map[string]bool{}
		for _, decl := range file.Decls {
			addDeclared(names, decl)
		}
		decls[filepath.ToSlash(name)] = names
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return decls
}

func addDeclared(names map[string]bool, decl ast.Decl) {
	switch decl := decl.(type) {
	case *ast.FuncDecl:
		name := decl.Name.Name
		if decl.Recv != nil {
			recv := decl.Recv.List[0].Type
			if star, ok := recv.(*ast.StarExpr); ok {
				recv = star.X
			}
			name = fmt.Sprint(recv) + "." + name
		}
		names[name] = true
	case *ast.GenDecl:
		for _, spec := range decl.Specs {
			switch spec := spec.(type) {
			case *ast.ValueSpec:
				for _, name := range spec.Names {
					names[name.Name] = true
				}
			case *ast.TypeSpec:
				names[spec.Name.Name] = true
				if s, ok := spec.Type.(*ast.StructType); ok {
					for _, field := range s.Fields.List {
						for _, name := range field.Names {
							names[spec.Name.Name+"."+name.Name] = true
						}
					}
				}
			}
		}
	}
}

func readText(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.FromSlash(name))
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(b), "\r\n", "\n")
}
