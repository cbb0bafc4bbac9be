package ssmmp

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

const repositoryText = `{
  "services": [
    {"command": ["/opt/shop/cart", "-v", "{arguments}"], "name": "cart", "sockets": ["S1"], "plugs": ["P2"], "output_dir": "log"},
    {"name": "db", "command": ["redis-server", "--port", "{port:S2}", "--bind={address}"], "sockets": ["S2"], "plugs": [],
     "env": {"TZ": "UTC", "PORT": "{port:S2}", "A": "{{}}"}, "dir": "/var/lib", "stop_signal": "SIGINT", "ready_when_started": true},
    {"name": "bare", "command": ["true"]},
    {"name": "any", "command": ["serve", "{port:S9}", "{service}", "{instance}"]}
  ]
}`

var repositoryWant = []RepositoryEntry{
	{Service: "cart", Sockets: []string{"S1"}, Plugs: []string{"P2"},
		Launcher: CommandLauncher{Path: "/opt/shop/cart", Template: []string{"-v", "{arguments}"}, OutputDir: "log"}},
	{Service: "db", Sockets: []string{"S2"}, Plugs: []string{}, StopSignal: "SIGINT", ReadyWhenStarted: true,
		Launcher: CommandLauncher{Path: "redis-server", Template: []string{"--port", "{port:S2}", "--bind={address}"},
			Env: []string{"TZ=UTC", "PORT={port:S2}", "A={{}}"}, Dir: "/var/lib"}},
	{Service: "bare", Launcher: CommandLauncher{Path: "true", Template: []string{}}},
	{Service: "any", Launcher: CommandLauncher{Path: "serve", Template: []string{"{port:S9}", "{service}", "{instance}"}}},
}

func TestParseRepository(t *testing.T) {
	t.Parallel()
	for name, read := range map[string]func() ([]RepositoryEntry, error){
		"ParseRepository": func() ([]RepositoryEntry, error) { return ParseRepository([]byte(repositoryText)) },
		"ReadRepository":  func() ([]RepositoryEntry, error) { return ReadRepository(strings.NewReader(repositoryText)) },
	} {
		got, err := read()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !reflect.DeepEqual(got, repositoryWant) {
			t.Errorf("%s: got\n%+v\nwant\n%+v", name, got, repositoryWant)
		}
	}
	cfg := AgentConfig{Manager: "10.0.0.9:55555", Address: coreNodes[0], Repository: repositoryWant}
	if err := cfg.Validate(); err != nil {
		t.Errorf("an agent refuses it: %v", err)
	}
}

func TestParseRepositoryFaults(t *testing.T) {
	t.Parallel()
	entry := func(fields string) string { return `{"services": [{"name": "a", "command": ["b"], ` + fields + `}]}` }
	for _, tt := range []struct {
		name, text string
		want       []string
	}{
		{"empty", "", []string{"1:1: unexpected end of JSON input"}},
		{"no JSON", "{\n  oops}", []string{"2:3: invalid character 'o' looking for beginning of object key string"}},
		{"after it", "{} {}", []string{"1:4: invalid character '{' after top-level value"}},
		{"an array", "[]", []string{"1:1: want an object, found an array"}},
		{"null", "null", []string{"1:1: want an object, found null"}},
		{"nothing", "{}", []string{"1:1: services is missing"}},
		{"no array", `{"services": {"a": [1]}}`, []string{"1:14: services: want an array, found an object"}},
		{"another case", `{"Services": []}`, []string{`1:2: unknown field Services`, "1:1: services is missing"}},
		{"empty entry", "{\"services\": [\n{}]}", []string{"2:2: services: name is missing", "2:2: services: command is missing"}},
		{"entry is a text", `{"services": ["a", {"name": "a", "command": ["b"]}]}`, []string{"1:15: services: want an object, found a string"}},
		{"unknown fields", entry(`"x": {"y": [1, {}]}, "ready": 1`), []string{"1:47: services: unknown field x", "1:68: services: unknown field ready"}},
		{"twice", entry(`"dir": "/", "dir": ["/", {}]`), []string{"1:59: services: the field dir is given twice"}},
		{"names", `{"services": [
			{"name": "../a", "command": ["b"]},
			{"name": "c", "command": ["b"]}, {"name": "c", "command": ["b"]},
			{"name": 7, "command": ["b"]}]}`,
			[]string{`2:13: name: "../a" is not a name`, "3:46: name: there is another service c", "4:13: name: want a string, found a number"}},
		{"commands", `{"services": [
			{"name": "a", "command": "b c"},
			{"name": "b", "command": []},
			{"name": "c", "command": ["", "x"]},
			{"name": "d", "command": ["x", 7, "y\u0000"]}]}`,
			[]string{"2:29: command: want an array, found a string", "3:30: command: has no binary", "4:37: command: has no binary",
				"5:35: command: want a string, found a number", `5:38: command: "y\x00" holds a NUL`}},
		{"placeholders", `{"services": [{"name": "a", "command": ["b", "{port:S2}", "{", "x{arguments}"],
			"env": {"A": "{arguments}", "B": "}", "C": "{port:S1}"}, "sockets": ["S1"]}]}`,
			[]string{`1:46: command: "{port:S2}": the instance has no socket "S2"`, `1:59: command: "{": a single '{' is no placeholder; '{{' stands for one`,
				`1:64: command: "x{arguments}": {arguments} is not an argument by itself`,
				`2:17: env: "{arguments}": {arguments} is not an argument by itself`, `2:37: env: "}": a single '}' is no placeholder; '}}' stands for one`}},
		{"sockets and plugs", entry(`"sockets": ["S1", "S1", "-x"], "plugs": ["P 1", null, "P1"]`),
			[]string{"1:65: sockets: S1 is given twice", `1:71: sockets: "-x" is not a name`, `1:88: plugs: "P 1" is not a name`, "1:95: plugs: want a string, found null"}},
		{"env", entry(`"env": {"": "a", "B=C": "d", "SSMMP_SECRET": "e", "F": 7, "G": "ok", "G": "twice"}`),
			[]string{`1:55: "" is not the name of a variable`, `1:64: B=C: "B=C" is not the name of a variable`, "1:76: SSMMP_SECRET: the agent itself sets SSMMP_SECRET",
				"1:102: F: want a string, found a number", "1:116: env: the field G is given twice"}},
		{"the rest", entry(`"dir": "", "output_dir": 7, "ready_when_started": "yes", "stop_signal": "SIGKILL"`),
			[]string{"1:54: dir: is empty", "1:72: output_dir: want a string, found a number", "1:97: ready_when_started: want true or false, found a string",
				"1:119: stop_signal: SIGKILL is not one of SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := ParseRepository([]byte(tt.text))
			if err == nil || got != nil {
				t.Fatalf("%v, %v, want an error", got, err)
			}
			if lines := strings.Split(strings.ReplaceAll(err.Error(), "ssmmp: repository file: ", ""), "\n"); !slices.Equal(lines, tt.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(lines, "\n"), strings.Join(tt.want, "\n"))
			}
			if fault := (*RepositoryFileError)(nil); !errors.As(err, &fault) {
				t.Errorf("a %T", err)
			}
		})
	}
}

func TestParseRepositoryBounds(t *testing.T) {
	t.Parallel()
	if _, err := ReadRepository(strings.NewReader(strings.Repeat(" ", MaxRepositoryFile+5))); err == nil || !strings.Contains(err.Error(), "larger than 1048576 bytes") {
		t.Errorf("a large file: %v", err)
	}
	want := errors.New("no more")
	if _, err := ReadRepository(io.MultiReader(strings.NewReader("{"), iotest.ErrReader(want))); !errors.Is(err, want) {
		t.Errorf("a reader that fails: %v", err)
	}
	for _, of := range []string{"7,", `"a", {"x": {"y": 7}},`, `{"env": {"": 7}},`} {
		text := `{"services": [` + strings.TrimSuffix(strings.Repeat(of, 30000), ",") + "]}"
		_, err := ParseRepository([]byte(text))
		lines := strings.Split(err.Error(), "\n")
		if len(lines) != maxRepositoryFaults+1 || lines[maxRepositoryFaults] != "there are more faults than are listed here" {
			t.Errorf("%d faults of many, the last %q", len(lines), lines[len(lines)-1])
		}
	}
	var many bytes.Buffer
	many.WriteString(`{"services": [{"name": "a", "command": ["b"], "env": {`)
	for n := range 60000 {
		fmt.Fprintf(&many, `"V%d": "",`, n)
	}
	many.WriteString(`"Z": ""}}]}`)
	if _, err := ParseRepository(many.Bytes()); err != nil {
		t.Errorf("many variables: %v", err)
	}
}

// What the parser takes an agent takes as well, and nothing makes it panic.
func FuzzParseRepository(f *testing.F) {
	f.Add([]byte(repositoryText))
	f.Add([]byte(`{"services": [{"name": "a", "command": ["b", "{port:S1}", "{{"], "env": {"A": "{x}"}}, 7, {"dir": ["{"]}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		entries, err := ParseRepository(data)
		if err != nil {
			if n := strings.Count(err.Error(), "\n"); n > 10*maxRepositoryFaults {
				t.Errorf("%d lines", n)
			}
			return
		}
		cfg := AgentConfig{Manager: "10.0.0.9:55555", Address: coreNodes[0], Repository: entries}
		if err := cfg.Validate(); err != nil && !strings.Contains(err.Error(), "a registration can hold") {
			t.Fatal(err)
		}
		for _, e := range entries {
			l := Launch{Service: e.Service, ID: 7, Address: coreNodes[0], Agent: "127.0.0.1:55556", Secret: "secret"}
			for _, s := range e.Sockets {
				l.Sockets = append(l.Sockets, SocketPort{s, 54000})
			}
			c := e.Launcher.(CommandLauncher)
			_, err := c.arguments(l)
			if err == nil {
				_, err = c.environment(l)
			}
			if err != nil && e.Sockets != nil {
				t.Errorf("%+v cannot be executed: %v", c, err)
			}
		}
	})
}
