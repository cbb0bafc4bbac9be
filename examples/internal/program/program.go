// Package program has what the stand-alone programs share: how they begin, log,
// fail and end.
package program

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/hashicorp/go-hclog"
)

// Main runs a program until it ends, or SIGTERM or an interrupt ends its
// context; a second one ends the process at once. An error is one line on
// standard error and exit status 1, or 2 when the program was called wrongly.
func Main(name string, run func(ctx context.Context, args []string) error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	err := run(ctx, os.Args[1:])
	var wrong *usageError
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return
	case errors.As(err, &wrong):
		fmt.Fprintf(os.Stderr, "%s: %s (%s -help tells more)\n", name, line(err), name)
		os.Exit(2)
	default:
		fmt.Fprintf(os.Stderr, "%s: %s\n", name, line(err))
		os.Exit(1)
	}
}

// line is an error, however many it joins, as one line.
func line(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

type usageError struct{ error }

// Usagef returns the error of a program that was called wrongly.
func Usagef(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

// Flags returns a set of flags that Parse parses. usage is what -help prints
// before them.
func Flags(usage string) *flag.FlagSet {
	flags := flag.NewFlagSet("", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.Usage = func() {
		if flags.Output() == io.Discard {
			return // the error is told, and in one line
		}
		fmt.Fprintln(flags.Output(), usage)
		flags.PrintDefaults()
	}
	return flags
}

// Parse parses flags, and refuses other arguments. After -help, which prints
// the usage, it returns flag.ErrHelp.
func Parse(flags *flag.FlagSet, args []string) error {
	err := flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		flags.SetOutput(os.Stdout)
		flags.Usage()
		return err
	case err != nil:
		return Usagef("%w", err)
	case flags.NArg() > 0:
		return Usagef("unexpected argument %q", flags.Arg(0))
	}
	return nil
}

// A List is a flag that can be given many times, and each time many values with
// commas between them.
type List []string

func (l *List) String() string { return strings.Join(*l, ",") }

// Set adds values.
func (l *List) Set(values string) error {
	for _, v := range strings.Split(values, ",") {
		if v == "" {
			return errors.New("an empty value")
		}
		*l = append(*l, v)
	}
	return nil
}

// LogFlags adds the flags -log-level and -log-format. The function that it
// returns makes the logger that they ask for, on standard error.
func LogFlags(flags *flag.FlagSet) func() (hclog.Logger, error) {
	level := flags.String("log-level", "info", "what to log: trace, debug, info, warn, error or off")
	format := flags.String("log-format", "text", "how to log: text or json")
	return func() (hclog.Logger, error) {
		o := &hclog.LoggerOptions{Level: hclog.LevelFromString(*level), JSONFormat: *format == "json", Output: os.Stderr}
		if o.Level == hclog.NoLevel {
			return nil, Usagef("-log-level: %q is not trace, debug, info, warn, error or off", *level)
		}
		if *format != "json" && *format != "text" {
			return nil, Usagef("-log-format: %q is not text or json", *format)
		}
		return hclog.New(o), nil
	}
}

// Read reads a file by a function that reads its form. Errors name the file.
func Read[T any](path string, read func(io.Reader) (T, error)) (v T, err error) {
	f, err := os.Open(path)
	if err != nil {
		return v, err
	}
	defer f.Close()
	if v, err = read(f); err != nil {
		return v, fmt.Errorf("%s: %w", path, err)
	}
	return v, nil
}
