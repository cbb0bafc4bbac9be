package main

import (
	"bufio"
	"fmt"
	"html"
	"io"
	"math"
	"strconv"
	"time"
)

// The chart: four panels, one below the other, with a curve for each
// configuration. The runs of one configuration are averaged.
const (
	chartWidth  = 900
	panelHeight = 150
	panelGap    = 46
	marginLeft  = 70
	marginRight = 20
	marginTop   = 70
)

// colours that can be told apart, also by those who see fewer of them.
var colours = []string{"#0072b2", "#d55e00"}

// A curve has a value for each sample; NaN where there is none.
type curve struct {
	colour, dash string
	values       []float64
}

type panel struct {
	title  string
	curves []curve
}

func writeSVG(out io.Writer, graph string, studies []*study) error {
	length := time.Duration(0)
	for _, st := range studies {
		for _, s := range st.runs {
			if n := len(s.samples); n > 0 {
				length = max(length, s.samples[n-1].At)
			}
		}
	}
	panels := []panel{
		{title: "session set-up, ms: median (line) and 99 % (dashed)"},
		{title: "instances started"},
		{title: "instances running"},
		{title: "sessions open"},
	}
	for n, st := range studies {
		c := colours[n%len(colours)]
		p50 := func(x sample) float64 { return latency(x, 0.5) }
		p99 := func(x sample) float64 { return latency(x, 0.99) }
		panels[0].curves = append(panels[0].curves, curve{c, "", average(st, p50)}, curve{c, "4 3", average(st, p99)})
		panels[1].curves = append(panels[1].curves, curve{c, "", average(st, func(x sample) float64 { return float64(x.Starts) })})
		panels[2].curves = append(panels[2].curves, curve{c, "", average(st, func(x sample) float64 { return float64(x.Instances) })})
		panels[3].curves = append(panels[3].curves, curve{c, "", average(st, func(x sample) float64 { return float64(x.Sessions) })})
	}

	w := bufio.NewWriter(out)
	height := marginTop + len(panels)*(panelHeight+panelGap)
	fmt.Fprintf(w, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n",
		chartWidth, height, chartWidth, height)
	fmt.Fprintf(w, `<rect width="%d" height="%d" fill="white"/>`+"\n", chartWidth, height)
	fmt.Fprintf(w, `<text x="%d" y="24" font-size="16">%s, %v of virtual time</text>`+"\n", marginLeft, html.EscapeString(graph), length.Round(time.Second))
	for n, st := range studies {
		x := marginLeft + n*(chartWidth-marginLeft)/max(1, len(studies))
		fmt.Fprintf(w, `<rect x="%d" y="36" width="14" height="4" fill="%s"/><text x="%d" y="43">%s</text>`+"\n", x, colours[n%len(colours)], x+20, html.EscapeString(st.name))
	}
	for n, p := range panels {
		writePanel(w, p, marginTop+n*(panelHeight+panelGap), length)
	}
	fmt.Fprintln(w, "</svg>")
	return w.Flush()
}

func writePanel(w io.Writer, p panel, top int, length time.Duration) {
	most := 0.0
	for _, c := range p.curves {
		for _, v := range c.values {
			if !math.IsNaN(v) {
				most = max(most, v)
			}
		}
	}
	step := niceStep(most / 4)
	most = max(step, math.Ceil(most/step)*step)
	width := float64(chartWidth - marginLeft - marginRight)
	y := func(v float64) float64 { return float64(top) + panelHeight*(1-v/most) }

	fmt.Fprintf(w, `<text x="%d" y="%d" font-weight="bold">%s</text>`+"\n", marginLeft, top-8, html.EscapeString(p.title))
	for v := 0.0; v <= most+step/2; v += step {
		fmt.Fprintf(w, `<path d="M%d %.1fH%d" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%s</text>`+"\n",
			marginLeft, y(v), chartWidth-marginRight, marginLeft-6, y(v)+4, strconv.FormatFloat(v, 'g', 6, 64))
	}
	for k := range 6 {
		x := marginLeft + width*float64(k)/5
		at := (length * time.Duration(k) / 5).Round(time.Second)
		fmt.Fprintf(w, `<text x="%.1f" y="%d" text-anchor="middle" fill="#666">%v</text>`+"\n", x, top+panelHeight+16, at)
	}
	for _, c := range p.curves {
		fmt.Fprintf(w, `<path fill="none" stroke="%s" stroke-width="1.5"`, c.colour)
		if c.dash != "" {
			fmt.Fprintf(w, ` stroke-dasharray="%s"`, c.dash)
		}
		fmt.Fprint(w, ` d="`)
		pen := "M"
		for k, v := range c.values {
			if math.IsNaN(v) {
				pen = "M" // a gap
				continue
			}
			x := marginLeft + width*float64(k)/float64(max(1, len(c.values)-1))
			fmt.Fprintf(w, "%s%.1f %.1f", pen, x, y(v))
			pen = "L"
		}
		fmt.Fprintln(w, `"/>`)
	}
}

// niceStep rounds up to 1, 2 or 5 times a power of ten.
func niceStep(v float64) float64 {
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

func latency(x sample, q float64) float64 {
	if len(x.took) == 0 {
		return math.NaN()
	}
	return float64(quantile(x.took, q)) / float64(time.Millisecond)
}

// average returns a value over time, averaged over the runs that have one.
func average(st *study, value func(sample) float64) []float64 {
	var avg []float64
	for k := 0; ; k++ {
		sum, n, any := 0.0, 0, false
		for _, s := range st.runs {
			if k >= len(s.samples) {
				continue
			}
			any = true
			if v := value(s.samples[k]); !math.IsNaN(v) {
				sum += v
				n++
			}
		}
		switch {
		case !any:
			return avg
		case n == 0:
			avg = append(avg, math.NaN())
		default:
			avg = append(avg, sum/float64(n))
		}
	}
}
