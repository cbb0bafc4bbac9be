package main

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/ssmmp/ssmmp"
	"github.com/ssmmp/ssmmp/examples/internal/program"
	"github.com/ssmmp/ssmmp/sqlitestore"
)

const historyUsage = `usage: manager history -data DIR [flags]

Prints the events that a Manager recorded, one a line: sequence number, time and
what happened; with -state the state that they gave, with -why the reasons for
one instance. A Manager may be using DIR.
A time is 2006-01-02T15:04:05Z, 2006-01-02, or an age such as 90m.
`

// openStore returns the store in a directory.
func openStore(dir string) *sqlitestore.Store {
	return sqlitestore.New(filepath.Join(dir, "manager.db"))
}

func history(ctx context.Context, args []string, out io.Writer) error {
	flags := program.Flags(historyUsage)
	data := flags.String("data", "", "`directory` of a Manager")
	var q ssmmp.EventQuery
	flags.StringVar(&q.Graph, "graph", "", "only events of this graph")
	flags.StringVar(&q.Service, "service", "", "only events of this service")
	flags.Func("instance", "only events of the instance with this `id`, or of its sessions", instanceFlag(&q.Instance))
	flags.Uint64Var(&q.After, "after", 0, "only events after the one with this sequence number")
	flags.Uint64Var(&q.Before, "before", 0, "only events before the one with this sequence number")
	flags.Func("limit", "at most so many events", func(s string) error {
		n, err := strconv.ParseUint(s, 10, 31)
		if err != nil || n == 0 {
			return fmt.Errorf("%q is not a positive number", s)
		}
		q.Limit = int(n)
		return nil
	})
	flags.Func("node", "only events on the node with this `address`", func(s string) (err error) {
		q.Node, err = netip.ParseAddr(s)
		return err
	})
	flags.Func("session", "only events of this session, such as 12.1, or its number in the tables of the database", func(s string) (err error) {
		q.Session, err = parseSession(s)
		return err
	})
	flags.Func("kind", "only events of this kind, such as \"instance ended\"; the flag again for more", func(s string) error {
		for k := ssmmp.EventKind(1); ; k++ {
			switch name := k.String(); {
			case name == s:
				q.Kinds = append(q.Kinds, k)
				return nil
			case strings.HasPrefix(name, "event "):
				return fmt.Errorf("no kind of event is called %q", s)
			}
		}
	})
	now := time.Now()
	flags.Func("from", "only events from this `time` on", timeFlag(&q.From, now))
	flags.Func("to", "only events before this `time`; with -state the state then", timeFlag(&q.To, now))
	state := flags.Bool("state", false, "print the state before the event of -before or the time of -to, or the present one, and not the events")
	var why ssmmp.InstanceID
	flags.Func("why", "print why the instance with this `id` was started, and why it ended, and not the events", instanceFlag(&why))
	if err := program.Parse(flags, args); err != nil {
		return err
	}
	if *data == "" {
		return program.Usagef("-data is missing")
	}
	only := ssmmp.EventQuery{Before: q.Before, To: q.To}
	if *state && !reflect.DeepEqual(q, only) {
		return program.Usagef("-state goes with -before and -to only")
	}
	store := openStore(*data)
	if _, err := os.Stat(filepath.Join(*data, "manager.db")); err != nil {
		return err
	}
	defer store.Close()
	if *state {
		return printState(ctx, store, q, out)
	}
	if why != 0 {
		e, err := ssmmp.Explain(ctx, store, why)
		fmt.Fprint(out, e)
		return err
	}
	for ev, err := range store.Query(ctx, q) {
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(out, "%8d  %s  %s\n", ev.Seq, ev.Time.UTC().Format("2006-01-02T15:04:05.000Z"), ev); err != nil {
			return err
		}
	}
	return nil
}

func instanceFlag(id *ssmmp.InstanceID) func(string) error {
	return func(s string) error {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil || n <= 0 {
			return fmt.Errorf("%q is not the id of an instance", s)
		}
		*id = ssmmp.InstanceID(n)
		return nil
	}
}

func parseSession(s string) (ssmmp.SessionID, error) {
	slot, uses, dot := strings.Cut(s, ".")
	low, err := strconv.ParseUint(slot, 10, 32)
	high, err2 := strconv.ParseUint(uses, 10, 32)
	if !dot {
		low, err = strconv.ParseUint(s, 10, 63)
		high, err2 = 0, nil
	}
	if id := ssmmp.SessionID(high<<32 | low); err == nil && err2 == nil && id>>32 != 0 {
		return id, nil
	}
	return 0, fmt.Errorf("%q is not a session, such as 12.1", s)
}

func timeFlag(t *time.Time, now time.Time) func(string) error {
	return func(s string) error {
		if d, err := time.ParseDuration(s); err == nil {
			*t = now.Add(-d)
			return nil
		}
		for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", time.DateTime, time.DateOnly} {
			if at, err := time.Parse(layout, s); err == nil {
				*t = at
				return nil
			}
		}
		return fmt.Errorf("%q is not a time", s)
	}
}

// printState prints the state after the last event that the query allows.
func printState(ctx context.Context, store ssmmp.Store, q ssmmp.EventQuery, out io.Writer) error {
	s, err := stateBefore(ctx, store, q)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "after event %d\n", s.Seq)
	for _, g := range s.Graphs {
		word := "deployed"
		if g.Retiring {
			word = "being undeployed"
		}
		fmt.Fprintf(w, "graph\t%s\t%s\n", g.Name, word)
	}
	for _, a := range s.Agents {
		fmt.Fprintf(w, "agent\t%s\t%s\t%s\n", a.Address, a.State, strings.Join(a.Services, ", "))
	}
	for _, i := range s.Instances {
		fmt.Fprintf(w, "instance\t%d\t%s\ton %s\t%s\t%d sessions\n", i.ID, i.Service, i.Node, i.State, i.Sessions)
	}
	for _, x := range s.Sessions {
		fmt.Fprintf(w, "session\t%s\t%d.%s → %d.%s\t%s\n", x.ID, x.Source, x.Plug, x.Destination, x.Socket, x.State)
	}
	for _, b := range s.BackOffs {
		fmt.Fprintf(w, "backing off\t%s\t%d ends in a row\n", b.Service, b.Ends)
	}
	return w.Flush()
}

// stateBefore returns the state before the event and the time that the query
// names; the present one when it names neither.
func stateBefore(ctx context.Context, store ssmmp.Store, q ssmmp.EventQuery) (ssmmp.Snapshot, error) {
	before := q.Before
	if !q.To.IsZero() {
		for ev, err := range store.Query(ctx, ssmmp.EventQuery{Limit: 1}) {
			if err == nil && !ev.Time.Before(q.To) {
				err = fmt.Errorf("the history begins at %s", ev.Time.UTC().Format(time.RFC3339))
			}
			if err != nil {
				return ssmmp.Snapshot{}, err
			}
		}
		for ev, err := range store.Query(ctx, ssmmp.EventQuery{From: q.To, Limit: 1}) {
			if err != nil {
				return ssmmp.Snapshot{}, err
			}
			if before == 0 || ev.Seq < before {
				before = ev.Seq
			}
		}
	}
	switch before {
	case 0:
		return ssmmp.StateAt(ctx, store, 0)
	case 1:
		return ssmmp.Snapshot{}, nil
	}
	return ssmmp.StateAt(ctx, store, before-1)
}
