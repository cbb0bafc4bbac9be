package ssmmp

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

const (
	// MaxRepositoryFile is the greatest size in bytes of a repository file.
	MaxRepositoryFile = 1 << 20
	// maxRepositoryFaults bounds how many faults are listed.
	maxRepositoryFaults = 100
)

// A RepositoryFileError is one fault in a repository file.
type RepositoryFileError struct {
	Line   int    // from 1; 0 when the whole file is meant
	Column int    // from 1, in characters
	Field  string // the field it stands in; may be empty
	Reason string // with the value that is wrong
}

func (e *RepositoryFileError) Error() string {
	return fileFault("repository", e.Line, e.Column, e.Field, e.Reason)
}

// ReadRepository reads a repository file. It reads to the end of r, or to just
// beyond MaxRepositoryFile. Errors are those of r and of ParseRepository.
func ReadRepository(r io.Reader) ([]RepositoryEntry, error) {
	data, err := io.ReadAll(io.LimitReader(r, MaxRepositoryFile+1))
	if err != nil {
		return nil, fmt.Errorf("ssmmp: repository file: %w", err)
	}
	return ParseRepository(data)
}

// ParseRepository reads the services that an agent can execute, each by a
// CommandLauncher, from their JSON form:
//
//	{
//	  "services": [
//	    {
//	      "name": "cart",
//	      "command": ["/opt/shop/cart", "-v", "{arguments}"],
//	      "sockets": ["S1"],
//	      "plugs": ["P2"],
//	      "output_dir": "/var/log/shop"
//	    },
//	    {
//	      "name": "db",
//	      "command": ["redis-server", "--bind", "{address}", "--port", "{port:S2}"],
//	      "sockets": ["S2"],
//	      "plugs": [],
//	      "env": {"TZ": "UTC"},
//	      "dir": "/var/lib/shop",
//	      "stop_signal": "SIGTERM"
//	    }
//	  ]
//	}
//
// Only name and command are needed. The first word of the command is the
// binary: a path, relative to the agent's own directory, or a name that is
// looked for in PATH. The others, and the values in env, are the Template and
// the Env of a CommandLauncher, with the same placeholders; so {arguments} is
// where a program that speaks SSMMP gets the five arguments of the protocol.
// sockets, plugs, ready_when_started and stop_signal are those of a
// RepositoryEntry, dir and output_dir those of a CommandLauncher.
//
// The form is read strictly: an unknown field (case counts), a field given
// twice, a value of another type, null and anything after the object are
// faults. The error has all of them, each a *RepositoryFileError, up to 100;
// where the text is no JSON, or longer than MaxRepositoryFile, that alone.
func ParseRepository(data []byte) ([]RepositoryEntry, error) {
	if len(data) > MaxRepositoryFile {
		return nil, &RepositoryFileError{Reason: fmt.Sprintf("larger than %d bytes", MaxRepositoryFile)}
	}
	r := &repositoryReader{jsonReader: newJSONReader(data, func(line, column int, field, reason string) error {
		return &RepositoryFileError{line, column, field, reason}
	})}
	if err := r.checkSyntax(); err != nil {
		return nil, err
	}
	r.collects = maxRepositoryFaults
	if err := r.repository(); err != nil {
		return nil, errors.Join(append(r.faults, err)...)
	}
	if len(r.faults) > 0 {
		return nil, errors.Join(r.faults...)
	}
	return r.entries, nil
}

// A repositoryReader reads a repository file and keeps all its faults.
type repositoryReader struct {
	*jsonReader
	entries []RepositoryEntry
	names   map[string]bool
}

// A word is a text of the file that may have placeholders.
type word struct {
	text  string
	at    int // where it stands
	field string
}

func (r *repositoryReader) repository() error {
	r.names = map[string]bool{}
	given := false
	err := r.object(func(key string) error {
		if key != "services" {
			return errUnknownField
		}
		given = true
		return r.array(r.entry)
	})
	if err == nil && !given {
		r.at = 0
		err = r.fail("services is missing")
	}
	return err
}

// entry reads one service. The command, whatever its place among the fields, is
// checked when all of them are known.
func (r *repositoryReader) entry() error {
	var e RepositoryEntry
	var launcher CommandLauncher
	var command, env []word
	missing := []string{"name", "command"}
	begin, depth := -1, r.depth
	err := r.object(func(key string) error {
		if begin < 0 {
			begin = r.at
		}
		missing = slices.DeleteFunc(missing, func(field string) bool { return field == key })
		switch key {
		case "name":
			return r.name(&e.Service)
		case "command":
			if err := r.array(func() error {
				w, err := r.word()
				command = append(command, w)
				return err
			}); err != nil {
				return err
			}
			if len(command) == 0 || command[0].text == "" {
				return r.fail("has no binary")
			}
			return nil
		case "sockets":
			return r.list(&e.Sockets)
		case "plugs":
			return r.list(&e.Plugs)
		case "env":
			return r.environment(&launcher.Env, &env)
		case "dir":
			return r.path(&launcher.Dir)
		case "output_dir":
			return r.path(&launcher.OutputDir)
		case "ready_when_started":
			return r.boolean(&e.ReadyWhenStarted)
		case "stop_signal":
			return r.signal(&e.StopSignal)
		}
		return errUnknownField
	})
	if err != nil {
		return err
	}
	if begin < 0 {
		begin = r.at
	}
	for _, field := range missing {
		if err := r.keep(r.failAt(begin, "%s is missing", field), depth); err != nil {
			return err
		}
	}
	launcher.Template = []string{}
	for n, w := range command {
		if n == 0 {
			launcher.Path = w.text
		} else {
			launcher.Template = append(launcher.Template, w.text)
		}
	}
	if len(command) > 0 {
		if err := r.checkWords(&e, command[1:], env, depth); err != nil {
			return err
		}
	}
	e.Launcher = launcher
	r.entries = append(r.entries, e)
	return nil
}

// checkWords checks the placeholders of an entry, as its launcher will: against
// its sockets, where it has them.
func (r *repositoryReader) checkWords(e *RepositoryEntry, command, env []word, depth int) error {
	launch := Launch{Service: e.Service}
	for _, s := range e.Sockets {
		launch.Sockets = append(launch.Sockets, SocketPort{s, FirstSocketPort})
	}
	value := func(name string) (string, error) {
		if socket, ok := strings.CutPrefix(name, "port:"); ok && e.Sockets == nil && ValidName(socket) {
			return "", nil
		}
		return launch.placeholder(name)
	}
	for _, w := range slices.Concat(command, env) {
		if w.text == allArguments && w.field == "command" {
			continue
		}
		if _, err := expand(w.text, value); err != nil {
			outer := r.field
			r.field = w.field
			fault := r.failAt(w.at, "%.150q: %v", w.text, err)
			r.field = outer
			if err := r.keep(fault, depth); err != nil {
				return err
			}
		}
	}
	return nil
}

// name reads the name of a service, which no other has.
func (r *repositoryReader) name(name *string) error {
	var s string
	if err := r.text(&s); err != nil {
		return err
	}
	*name = s
	switch {
	case !ValidName(s):
		return r.fail("%s is not a name", displayName(s))
	case r.names[s]:
		return r.fail("there is another service %s", s)
	}
	r.names[s] = true
	return nil
}

// list reads the names of sockets or plugs, which are none if none are given.
func (r *repositoryReader) list(names *[]string) error {
	*names = []string{}
	seen := map[string]bool{}
	return r.array(func() error {
		var s string
		if err := r.text(&s); err != nil {
			return err
		}
		*names = append(*names, s)
		switch {
		case !ValidName(s):
			return r.fail("%s is not a name", displayName(s))
		case seen[s]:
			return r.fail("%s is given twice", s)
		}
		seen[s] = true
		return nil
	})
}

func (r *repositoryReader) environment(env *[]string, values *[]word) error {
	return r.object(func(key string) error {
		at := r.at
		w, err := r.word()
		if err != nil {
			return err
		}
		switch {
		case key == "" || strings.ContainsAny(key, "=\x00"):
			return r.failAt(at, "%.150q is not the name of a variable", key)
		case key == envAgent || key == envSecret || key == envInstance:
			return r.failAt(at, "the agent itself sets %s", key)
		}
		w.field = "env"
		*env = append(*env, key+"="+w.text)
		*values = append(*values, w)
		return nil
	})
}

// word reads a text that a program can be given.
func (r *repositoryReader) word() (word, error) {
	w := word{field: r.field}
	if err := r.text(&w.text); err != nil {
		return w, err
	}
	w.at = r.at
	if strings.IndexByte(w.text, 0) >= 0 {
		return w, r.fail("%.150q holds a NUL", w.text)
	}
	return w, nil
}

func (r *repositoryReader) path(path *string) error {
	w, err := r.word()
	if err == nil && w.text == "" {
		err = r.fail("is empty")
	}
	*path = w.text
	return err
}

func (r *repositoryReader) signal(name *string) error {
	if err := r.text(name); err != nil {
		return err
	}
	if !slices.Contains(stopSignals, *name) {
		return r.fail("%s is not one of %s", displayName(*name), strings.Join(stopSignals, ", "))
	}
	return nil
}
