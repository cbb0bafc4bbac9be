package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
)

// A row is one line of the ratio table.
type row struct {
	what    string
	values  []string  // what was measured
	ratios  []float64 // what counts, one for each of the targets
	targets []float64 // one for each ratio, or one for all; none where nothing is aimed at
	most    bool      // targets are upper bounds
}

// target returns the target of ratio i, 0 if there is none.
func (r row) target(i int) float64 {
	if len(r.targets) == 0 {
		return 0
	}
	return r.targets[min(i, len(r.targets)-1)]
}

// met reports whether ratio i meets its target, with some slack: 1 for none.
func (r row) met(i int, slack float64) bool {
	if r.most {
		return r.ratios[i] <= r.target(i)*slack
	}
	return r.ratios[i] >= r.target(i)/slack
}

// verdict says which targets are met.
func (r row) verdict() string {
	if len(r.targets) == 0 {
		return ""
	}
	var v []string
	for i := range r.ratios {
		if r.met(i, 1) {
			v = append(v, "yes")
		} else {
			v = append(v, "no")
		}
	}
	if len(slices.Compact(slices.Clone(v))) == 1 {
		return v[0]
	}
	return strings.Join(v, " / ")
}

func (r row) cells() []string {
	sign := "≥ "
	if r.most {
		sign = "≤ "
	}
	target := ""
	if len(r.targets) > 0 {
		target = sign + numbers(r.targets)
	}
	return []string{r.what, join(r.values), numbers(r.ratios), target, r.verdict()}
}

var heads = []string{"what", "measured", "ratio", "target", "met"}

// print writes rows as text, or in markdown.
func print(w io.Writer, rows []row, markdown bool) {
	all := [][]string{heads}
	if markdown {
		all = append(all, slices.Repeat([]string{"---"}, len(heads)))
	}
	for _, r := range rows {
		all = append(all, r.cells())
	}
	if markdown {
		for _, cells := range all {
			fmt.Fprintf(w, "| %s |\n", strings.Join(cells, " | "))
		}
		return
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, cells := range all {
		fmt.Fprintln(t, strings.Join(cells, "\t"))
	}
	check(t.Flush())
}

func numbers(v []float64) string {
	var s []string
	for _, x := range v {
		switch {
		case x >= 100:
			s = append(s, fmt.Sprintf("%.0f", x))
		case x >= 10:
			s = append(s, fmt.Sprintf("%.1f", x))
		default:
			s = append(s, fmt.Sprintf("%.2f", x))
		}
	}
	return join(s)
}

func join(s []string) string { return strings.Join(s, " / ") }

func ms(v float64) string          { return fmt.Sprintf("%.2f ms", v) }
func nanoseconds(v float64) string { return fmt.Sprintf("%.0f ns", v) }

// medianRatio returns the median of how many times b went into a in each round.
func medianRatio(a, b []float64) float64 {
	r := make([]float64, len(a))
	for i := range r {
		r[i] = a[i] / b[i]
	}
	return median(r)
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

func check(err error) {
	if err != nil {
		fatal(err.Error())
	}
}

func fatal(why string) {
	fmt.Fprintln(os.Stderr, "bench:", why)
	os.Exit(1)
}
