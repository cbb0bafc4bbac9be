package ssmmptest_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

var (
	hunt      = flag.String("hunt", "", "plant the bugs of testdata/bugs.txt whose names match, one after the other, and see how many seeds find each")
	huntFirst = flag.Bool("sim.first", false, "stop at the first seed that fails, and print it")
)

// A plantedBug is one line of a core that is wrong.
type plantedBug struct{ name, file, right, wrong string }

// plantedBugs reads testdata/bugs.txt: name, file, what stands there and what
// shall stand there, with tabs between them.
func plantedBugs(t *testing.T) []plantedBug {
	data, err := os.ReadFile("testdata/bugs.txt")
	if err != nil {
		t.Fatal(err)
	}
	unescape := strings.NewReplacer(`\\`, `\`, `\n`, "\n", `\t`, "\t")
	var bugs []plantedBug
	for n, line := range strings.Split(strings.TrimSuffix(string(data), "\n"), "\n") {
		f := strings.Split(line, "\t")
		if len(f) != 4 {
			t.Fatalf("bugs.txt:%d: %d fields, want 4", n+1, len(f))
		}
		bugs = append(bugs, plantedBug{f[0], f[1], unescape.Replace(f[2]), unescape.Replace(f[3])})
	}
	return bugs
}

// Each bug can be planted: the code that it changes is there, once.
func TestPlantedBugs(t *testing.T) {
	t.Parallel()
	bugs := plantedBugs(t)
	if len(bugs) < 30 {
		t.Errorf("%d bugs, want 30 at least", len(bugs))
	}
	names := map[string]bool{}
	for _, b := range bugs {
		src, err := os.ReadFile(filepath.Join("..", b.file))
		if err != nil {
			t.Errorf("%s: %v", b.name, err)
			continue
		}
		if n := strings.Count(string(src), b.right); n != 1 || names[b.name] || b.right == b.wrong {
			t.Errorf("%s: what it changes stands %d times in %s", b.name, n, b.file)
		}
		names[b.name] = true
	}
}

// Plants each bug in a copy of its file, which go test -overlay puts in its
// place, and counts the seeds until the simulator finds it. It takes minutes.
func TestHunt(t *testing.T) {
	if *hunt == "" {
		t.Skip("needs -hunt=. or another pattern of names")
	}
	want, err := regexp.Compile(*hunt)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range plantedBugs(t) {
		if !want.MatchString(b.name) {
			continue
		}
		found, what := huntOne(t, b)
		if found == 0 {
			t.Errorf("%s: not found", b.name)
		}
		fmt.Printf("| %s | %d | %s |\n", b.name, found, what)
	}
}

var seedFound = regexp.MustCompile(`first failure: seed (\d+) .*?broken: ([^:]*):`)

// huntOne returns how many seeds it took, and the invariant that was broken.
func huntOne(t *testing.T, b plantedBug) (int, string) {
	dir := t.TempDir()
	original, err := filepath.Abs(filepath.Join("..", b.file))
	if err != nil {
		t.Fatal(err)
	}
	src, err := os.ReadFile(original)
	if err != nil {
		t.Fatal(err)
	}
	wrong := filepath.Join(dir, b.file)
	if err := os.WriteFile(wrong, []byte(strings.Replace(string(src), b.right, b.wrong, 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {original: wrong}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o644); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "hunt.test")
	build := exec.Command("go", "test", "-c", "-vet=off", "-overlay", filepath.Join(dir, "overlay.json"), "-o", program, ".")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", b.name, err, out)
	}
	out, _ := exec.Command(program, "-test.run=TestSimulationSeeds", "-sim.first", "-sim.base=1", fmt.Sprintf("-sim.seeds=%d", *simHunt), "-test.timeout=20m").CombinedOutput()
	m := seedFound.FindSubmatch(out)
	if m == nil {
		return 0, lastLines(string(out), 3)
	}
	n := 0
	fmt.Sscan(string(m[1]), &n)
	return n, string(m[2])
}

var simHunt = flag.Int("sim.hunt", 10_000, "how many seeds to spend on each planted bug")

// firstFailure prints the first seed of many that fails.
func firstFailure(t *testing.T, base uint64, n int) {
	began := time.Now()
	sum := playSeeds(t, base, n, 1)
	for seed := base; seed < base+uint64(n); seed++ {
		if f := sum.failed[seed]; f != nil {
			fmt.Printf("first failure: seed %d (%v) %v\n", seed-base+1, time.Since(began).Round(time.Millisecond), strings.ReplaceAll(f.Error(), "\n", " "))
			t.Fail()
			return
		}
	}
}
