package main

import (
	"bufio"
	"fmt"
	"html"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The chart: four panels, one below the other, with a curve for each
// configuration. The runs of one configuration count together.
const (
	chartWidth   = 900
	panelHeight  = 150
	panelGap     = 62
	marginLeft   = 70
	marginRight  = 30
	marginTop    = 106
	marginBottom = 46
	chartSlices  = 60 // of time, with a point of each curve
)

// colours that can be told apart, also by those who see fewer of them.
var colours = []string{"#0072b2", "#d55e00"}

// A curve has a value for each slice of time; NaN where there is none.
type curve struct {
	colour, dash string
	values       []float64
}

type panel struct {
	title  string
	powers bool // the axis goes in powers of ten
	curves []curve
}

func writeSVG(out io.Writer, title string, length time.Duration, studies []*study) error {
	panels := []panel{
		{title: "session set-up (ms, logarithmic): median, and dashed the 99th percentile", powers: true},
		{title: "instances started so far"},
		{title: "instances running"},
		{title: "sessions open"},
	}
	for n, st := range studies {
		c := colours[n%len(colours)]
		panels[0].curves = append(panels[0].curves, curve{c, "", setUps(st, length, 0.5)}, curve{c, "4 3", setUps(st, length, 0.99)})
		panels[1].curves = append(panels[1].curves, curve{c, "", average(st, length, func(x sample) int { return x.Starts })})
		panels[2].curves = append(panels[2].curves, curve{c, "", average(st, length, func(x sample) int { return x.Instances })})
		panels[3].curves = append(panels[3].curves, curve{c, "", average(st, length, func(x sample) int { return x.Sessions })})
	}
	if len(studies[0].runs) > 1 {
		for n := range panels[1:] {
			panels[n+1].title += ", average of the runs"
		}
	}

	w := bufio.NewWriter(out)
	height := marginTop + len(panels)*(panelHeight+panelGap) - panelGap + marginBottom
	fmt.Fprintf(w, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" font-family="sans-serif" font-size="12" fill="#222">`+"\n",
		chartWidth, height, chartWidth, height)
	fmt.Fprintf(w, `<rect width="%d" height="%d" fill="white"/>`+"\n", chartWidth, height)
	fmt.Fprintf(w, `<text x="%d" y="28" font-size="15">%s</text>`+"\n", marginLeft, html.EscapeString(title))
	for n, st := range studies {
		y := 48 + 18*n
		fmt.Fprintf(w, `<rect x="%d" y="%d" width="22" height="4" fill="%s"/><text x="%d" y="%d">%s</text>`+"\n",
			marginLeft, y, colours[n%len(colours)], marginLeft+30, y+6, html.EscapeString(st.name))
	}
	for n, p := range panels {
		writePanel(w, p, marginTop+n*(panelHeight+panelGap), length)
	}
	fmt.Fprintf(w, `<text x="%d" y="%d" text-anchor="middle">virtual time</text>`+"\n", (chartWidth+marginLeft-marginRight)/2, height-8)
	fmt.Fprintln(w, "</svg>")
	return w.Flush()
}

func writePanel(w io.Writer, p panel, top int, length time.Duration) {
	ticks := p.ticks()
	least, most := p.scale(ticks[0]), p.scale(ticks[len(ticks)-1])
	width := float64(chartWidth - marginLeft - marginRight)
	y := func(v float64) float64 { return float64(top) + panelHeight*(1-(p.scale(v)-least)/(most-least)) }

	fmt.Fprintf(w, `<text x="%d" y="%d" font-weight="bold">%s</text>`+"\n", marginLeft, top-10, html.EscapeString(p.title))
	fmt.Fprintf(w, `<rect x="%d" y="%d" width="%.0f" height="%d" fill="#fafafa"/>`+"\n", marginLeft, top, width, panelHeight)
	for _, v := range ticks {
		fmt.Fprintf(w, `<path d="M%d %.1fH%d" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%s</text>`+"\n",
			marginLeft, y(v), chartWidth-marginRight, marginLeft-8, y(v)+4, strconv.FormatFloat(v, 'f', -1, 64))
	}
	step := niceTime(length / 6)
	for at := time.Duration(0); at <= length; at += step {
		x := marginLeft + width*float64(at)/float64(length)
		fmt.Fprintf(w, `<path d="M%.1f %dv5" stroke="#999"/><text x="%.1f" y="%d" text-anchor="middle" fill="#666">%s</text>`+"\n",
			x, top+panelHeight, x, top+panelHeight+18, span(at))
	}
	for _, c := range p.curves {
		fmt.Fprintf(w, `<path fill="none" stroke="%s" stroke-width="1.8" stroke-linejoin="round" stroke-linecap="round"`, c.colour)
		if c.dash != "" {
			fmt.Fprintf(w, ` stroke-dasharray="%s"`, c.dash)
		}
		var d strings.Builder
		for k, v := range c.values {
			if math.IsNaN(v) {
				continue
			}
			x := marginLeft + width*(float64(k)+0.5)/chartSlices
			if d.Len() == 0 {
				fmt.Fprintf(&d, "M%.1f %.1fh0", x, y(v)) // a dot, if it is alone
				continue
			}
			fmt.Fprintf(&d, "L%.1f %.1f", x, y(v))
		}
		fmt.Fprintf(w, ` d="%s"/>`+"\n", d.String())
	}
}

// scale is where a value lies on the axis.
func (p *panel) scale(v float64) float64 {
	if p.powers {
		return math.Log10(v)
	}
	return v
}

// ticks are the values on the axis: what they span holds all curves.
func (p *panel) ticks() []float64 {
	least, most := math.Inf(1), 0.0
	for _, c := range p.curves {
		for _, v := range c.values {
			if !math.IsNaN(v) {
				least, most = min(least, v), max(most, v)
			}
		}
	}
	var ticks []float64
	if p.powers {
		if most == 0 {
			least, most = 1, 1 // nothing was set up
		}
		from, to := math.Floor(math.Log10(max(least, 0.01))), math.Ceil(math.Log10(max(most, 0.01)))
		for e := from; e <= max(to, from+1); e++ {
			ticks = append(ticks, math.Pow(10, e))
		}
		return ticks
	}
	step := nice(most / 4)
	for k := 0.0; k == 0 || (k-1)*step < most; k++ {
		ticks = append(ticks, k*step)
	}
	return ticks
}

// nice rounds up to 1, 2 or 5 times a power of ten.
func nice(v float64) float64 {
	if v <= 0 {
		return 1
	}
	p := math.Pow(10, math.Floor(math.Log10(v)))
	for _, m := range []float64{1, 2, 5} {
		if v <= m*p {
			return m * p
		}
	}
	return 10 * p
}

// niceTime rounds up to a time that people count in.
func niceTime(d time.Duration) time.Duration {
	day := 24 * time.Hour
	for _, t := range []time.Duration{time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second, 30 * time.Second,
		time.Minute, 2 * time.Minute, 5 * time.Minute, 10 * time.Minute, 30 * time.Minute,
		time.Hour, 2 * time.Hour, 4 * time.Hour, 12 * time.Hour} {
		if d <= t {
			return t
		}
	}
	return time.Duration(nice(float64(d)/float64(day))) * day
}

// slice is the slice of time that a sample belongs to.
func slice(x sample, length time.Duration) int {
	return min(chartSlices-1, int(float64(x.At)/float64(length)*chartSlices))
}

// setUps returns a quantile of the set-ups in each slice of time, in ms.
func setUps(st *study, length time.Duration, q float64) []float64 {
	var took [chartSlices][]time.Duration
	for _, s := range st.runs {
		for _, x := range s.samples {
			k := slice(x, length)
			took[k] = append(took[k], x.took...)
		}
	}
	values := make([]float64, chartSlices)
	for k := range took {
		slices.Sort(took[k])
		if values[k] = math.NaN(); len(took[k]) > 0 {
			values[k] = float64(quantile(took[k], q)) / float64(time.Millisecond)
		}
	}
	return values
}

// average returns the average of a value in each slice of time.
func average(st *study, length time.Duration, value func(sample) int) []float64 {
	var sum, n [chartSlices]int
	for _, s := range st.runs {
		for _, x := range s.samples {
			k := slice(x, length)
			sum[k] += value(x)
			n[k]++
		}
	}
	values := make([]float64, chartSlices)
	for k := range values {
		values[k] = float64(sum[k]) / float64(n[k]) // NaN if there is none
	}
	return values
}
