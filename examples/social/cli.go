package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
)

// options are the flags of the command-line client.
type options struct {
	gateway  string
	user     string
	password string
	post     string
	file     string
	as       string
	out      string
}

// A mode is one thing that the command-line client does.
type mode struct {
	name  string
	flags []string // flags without which it cannot be done
	also  []string // flags with a default
	about string
	login bool // log in first, on the same connection
	run   func(c *client, o options, stdout io.Writer) error
}

var modes = []mode{
	{"registration", []string{"user", "password"}, nil, "add a user", false, runRegistration},
	{"login", []string{"user", "password"}, nil, "check a password", true, runLogin},
	{"send_post", []string{"user", "password", "post"}, nil, "add a post", true, runSendPost},
	{"retrieve_last_10_posts", nil, nil, "print the last ten posts, the newest first", false, runLast10},
	{"send_file", []string{"user", "password", "file"}, []string{"as"}, "send a file", true, runSendFile},
	{"get_file", []string{"user", "password", "file"}, []string{"out"}, "get a file", true, runGetFile},
}

// runClient runs the command-line client: args are a mode and its flags. The
// text of an error is one line.
func runClient(ctx context.Context, args []string, stdout io.Writer) error {
	if len(args) == 0 {
		return fmt.Errorf("client: want a mode: %s", modeNames())
	}
	if args[0] == "help" || args[0] == "-h" || args[0] == "-help" || args[0] == "--help" {
		return printUsage(stdout)
	}
	for _, m := range modes {
		if m.name != args[0] {
			continue
		}
		o, err := m.parse(args[1:])
		if errors.Is(err, flag.ErrHelp) {
			return printUsage(stdout)
		}
		if err == nil {
			err = m.do(ctx, o, stdout)
		}
		if err != nil && ctx.Err() != nil {
			err = ctx.Err() // which is why the connection was closed
		}
		if err != nil {
			return fmt.Errorf("%s: %s", m.name, oneLine(err.Error()))
		}
		return nil
	}
	return fmt.Errorf("client: unknown mode %q, want one of: %s", args[0], modeNames())
}

// parse reads the flags of a mode.
func (m mode) parse(args []string) (options, error) {
	var o options
	f := flag.NewFlagSet(m.name, flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.StringVar(&o.gateway, "gateway", "127.0.0.1:8080", "")
	values := map[string]*string{
		"user": &o.user, "password": &o.password, "post": &o.post, "file": &o.file, "as": &o.as, "out": &o.out,
	}
	for _, name := range append(m.flags, m.also...) {
		f.StringVar(values[name], name, "", "")
	}
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	for _, name := range m.flags {
		if *values[name] == "" {
			return o, fmt.Errorf("flag -%s is needed", name)
		}
	}
	return o, nil
}

func (m mode) do(ctx context.Context, o options, stdout io.Writer) error {
	c, err := dial(ctx, o.gateway)
	if err != nil {
		return err
	}
	defer c.close()
	if m.login {
		if err := c.login(o.user, o.password); err != nil {
			return err
		}
	}
	return m.run(c, o, stdout)
}

func runRegistration(c *client, o options, stdout io.Writer) error {
	if err := c.register(o.user, o.password); err != nil {
		return err
	}
	_, err := fmt.Fprintf(stdout, "registered %s\n", oneLine(o.user))
	return err
}

func runLogin(_ *client, o options, stdout io.Writer) error {
	_, err := fmt.Fprintf(stdout, "logged in as %s\n", oneLine(o.user))
	return err
}

func runSendPost(c *client, o options, stdout io.Writer) error {
	if err := c.sendPost(o.user, o.post); err != nil {
		return err
	}
	_, err := fmt.Fprintln(stdout, "posted")
	return err
}

func runLast10(c *client, _ options, stdout io.Writer) error {
	posts, err := c.last10()
	if err != nil {
		return err
	}
	for _, p := range posts {
		at := p.time.Local().Format(time.DateTime)
		if _, err := fmt.Fprintf(stdout, "%s  %s: %s\n", at, oneLine(p.author), oneLine(p.text)); err != nil {
			return err
		}
	}
	return nil
}

func runSendFile(c *client, o options, stdout io.Writer) error {
	f, err := os.Open(o.file)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file", o.file)
	}
	name := o.as
	if name == "" {
		name = filepath.Base(o.file)
	}
	sum, err := c.sendFile(name, f, info.Size())
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(stdout, "sent %s: %d bytes, SHA-256 %s\n", name, info.Size(), sum)
	return err
}

// runGetFile writes the file beside its destination first: a transfer that
// fails leaves nothing, and keeps what was there.
func runGetFile(c *client, o options, stdout io.Writer) error {
	if err := checkFileName(o.file); err != nil {
		return err
	}
	out := o.out
	if out == "" {
		out = o.file
	}
	f, err := os.CreateTemp(filepath.Dir(out), ".get_file-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // does nothing once it is renamed
	size, err := c.getFile(o.file, f)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), out); err != nil {
		return err
	}
	_, err = fmt.Fprintf(stdout, "got %s: %d bytes in %s\n", o.file, size, out)
	return err
}

func modeNames() string {
	var names []string
	for _, m := range modes {
		names = append(names, m.name)
	}
	return strings.Join(names, ", ")
}

func printUsage(stdout io.Writer) error {
	w := tabwriter.NewWriter(stdout, 0, 8, 2, ' ', 0)
	fmt.Fprint(w, "usage: client MODE [-gateway HOST:PORT] FLAGS\n\n")
	for _, m := range modes {
		flags := ""
		for _, name := range m.flags {
			flags += " -" + name + " …"
		}
		for _, name := range m.also {
			flags += " [-" + name + " …]"
		}
		fmt.Fprintf(w, "  %s\t%s\t%s\n", m.name, strings.TrimSpace(flags), m.about)
	}
	fmt.Fprint(w, "\n-gateway is 127.0.0.1:8080 by default, -as the file's own name, -out the name it was sent under.\n")
	return w.Flush()
}

// oneLine makes text safe to print on a terminal, on one line.
func oneLine(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, text)
}
