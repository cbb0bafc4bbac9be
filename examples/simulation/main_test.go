package main

import (
	"bytes"
	"encoding/csv"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
)

// output runs the program and returns what it writes to its standard output and
// to the files of -csv and -svg.
func output(t *testing.T, args ...string) (out, table, chart []byte) {
	t.Helper()
	dir := t.TempDir()
	csvFile, svgFile := filepath.Join(dir, "a.csv"), filepath.Join(dir, "a.svg")
	var b bytes.Buffer
	if err := run(append(args, "-csv", csvFile, "-svg", svgFile), &b, io.Discard); err != nil {
		t.Fatalf("%v: %v", args, err)
	}
	table, err := os.ReadFile(csvFile)
	if err != nil {
		t.Fatal(err)
	}
	chart, err = os.ReadFile(svgFile)
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), table, chart
}

// The same flags give the same output, to the byte, and another seed another.
func TestSameSeed(t *testing.T) {
	t.Parallel()
	args := []string{"-for", "1m", "-every", "2s", "-faults", "5", "-seeds", "2", "-against", "IdleAfter=5s"}
	out, table, chart := output(t, args...)
	out2, table2, chart2 := output(t, args...)
	if !bytes.Equal(out, out2) || !bytes.Equal(table, table2) || !bytes.Equal(chart, chart2) {
		t.Errorf("the same flags give\n%s\nand then\n%s", out, out2)
	}
	if out3, _, _ := output(t, append(args, "-seed", "7")...); bytes.Equal(out, out3) {
		t.Error("another seed gives the same output")
	}
}

// Every CNApp runs, sets sessions up, and gives a table and a chart that other
// programs can read.
func TestGraphs(t *testing.T) {
	t.Parallel()
	for _, graph := range []string{"social", "nine", "shop", "generated", "graphs/shop.json"} {
		t.Run(filepath.Base(graph), func(t *testing.T) {
			t.Parallel()
			args := []string{"-graph", graph, "-services", "60", "-for", "1m", "-every", "1s"}
			out, table, chart := output(t, append(args, "-against", "IdleAfter=3s")...)
			rows, err := csv.NewReader(bytes.NewReader(table)).ReadAll()
			if err != nil || len(rows) < 2*50 {
				t.Fatalf("%d rows of CSV: %v", len(rows), err)
			}
			last := rows[len(rows)-1]
			if last[0] != "IdleAfter=3s" || last[6] == "0" || last[7] == "0" {
				t.Errorf("the last row is %v: nothing was started or dialled", last)
			}
			if !strings.Contains(string(out), "IdleAfter=3s") || strings.Contains(string(out), "sessions set up   0") {
				t.Errorf("nothing is compared:\n%s", out)
			}
			if texts := words(t, chart); !slices.Contains(texts, "IdleAfter=3s") || !slices.Contains(texts, "virtual time") {
				t.Errorf("the chart says %q", texts)
			}
		})
	}
}

// The command in the documentation still draws the chart that stands there: its
// words are the same, while its curves change with whatever changes the mesh.
func TestDocumentedChart(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/simulation.md")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^ +go run ./examples/simulation (.*) -svg docs/simulation.svg$`).FindSubmatch(page)
	if m == nil {
		t.Fatal("docs/simulation.md has no command that draws docs/simulation.svg")
	}
	committed, err := os.ReadFile("../../docs/simulation.svg")
	if err != nil {
		t.Fatal(err)
	}
	_, _, chart := output(t, strings.Fields(string(m[1]))...)
	if want, got := words(t, committed), words(t, chart); !slices.Equal(got, want) {
		t.Errorf("%s draws a chart with\n%q\nwant\n%q", m[1], got, want)
	}
	if n := bytes.Count(chart, []byte("NaN")) + bytes.Count(chart, []byte("Inf")); n > 0 {
		t.Errorf("%d of its numbers are none", n)
	}
}

// words returns the texts of a chart but those that are numbers.
func words(t *testing.T, chart []byte) []string {
	var texts []string
	for d := xml.NewDecoder(bytes.NewReader(chart)); ; {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			return texts
		} else if err != nil {
			t.Fatalf("the chart: %v", err)
		}
		if text, ok := tok.(xml.CharData); ok && strings.IndexFunc(string(text), unicode.IsLetter) >= 0 {
			texts = append(texts, string(text))
		}
	}
}

// The generated CNApp has the size that was asked for, and no service that
// nobody calls.
func TestGenerate(t *testing.T) {
	t.Parallel()
	for _, n := range []int{10, 11, 99, 4000} {
		g, err := generate(n, 1)
		if err != nil {
			t.Fatalf("%d services: %v", n, err)
		}
		if len(g.Services) != n {
			t.Errorf("%d services, want %d", len(g.Services), n)
		}
		called := map[string]bool{}
		for _, e := range g.Edges {
			called[e.To] = true
		}
		for _, name := range g.Gateways() {
			called[name] = true
		}
		if len(called) != n {
			t.Errorf("of %d services %d can be reached", n, len(called))
		}
	}
}

// What cannot work is an error that says so, with all faults at once.
func TestBadFlags(t *testing.T) {
	t.Parallel()
	bad := filepath.Join(t.TempDir(), "bad.json")
	if err := os.WriteFile(bad, []byte(`{"name": "x", "services": [{"name": "a", "kind": "regular"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for want, args := range map[string][]string{
		"-nodes 0":                   {"-nodes", "0", "-for", "-1s"},
		"-every 1ns":                 {"-every", "1ns"},
		"-latency 2s":                {"-latency", "2s"},
		"the file of -csv":           {"-csv", "a", "-svg", "a"},
		"DialTimeout: -1s":           {"-set", "DialTimeout=-1s"},
		"-for -1s":                   {"-nodes", "0", "-for", "-1s"},
		"not one of social":          {"-graph", "nonesuch"},
		"no such file":               {"-graph", "nonesuch.json"},
		"bad.json":                   {"-graph", bad},
		"-services 3":                {"-graph", "generated", "-services", "3"},
		"the settings are":           {"-set", "Idle=3s"},
		"IdleAfter":                  {"-against", "IdleAfter=soon"},
		"the kinds are":              {"-fault", "plague"},
		"says none":                  {"-fault", "partition"},
		"no arguments":               {"shop"},
		"flag provided":              {"-nonesuch"},
		"-seeds 0":                   {"-seeds", "0"},
		"a.csv: no such file":        {"-csv", "nonesuch/a.csv"},
		"ManagerConfig.StartTimeout": {"-set", "StartTimeout=-1s"},
	} {
		err := run(args, io.Discard, io.Discard)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: error %v, want one with %q", args, err, want)
		}
	}
}

// -help tells of all flags.
func TestHelp(t *testing.T) {
	t.Parallel()
	var usage strings.Builder
	if err := run([]string{"-help"}, io.Discard, &usage); err == nil || !strings.Contains(usage.String(), "-against") {
		t.Errorf("-help: %v\n%s", err, usage.String())
	}
}
