package main

import (
	"fmt"
	"io"
	"math"
	"slices"
)

// plot shows requests a second over time, on a logarithmic scale: what matters
// lies a thousand times apart.
type plot struct {
	title, since string
	mean         float64
	lines        []line
}

type line struct {
	label   string
	seconds []int32
}

const (
	width, height            = 800, 420
	left, right, top, bottom = 84, 20, 84, 54
	style                    = `<style>
text{font:13px system-ui,sans-serif;fill:#1f2328}.t{font-size:16px;font-weight:600}.g{stroke:#d0d7de}.m{stroke:#57606a;stroke-dasharray:6 4}
.bg{fill:#fff}.l{fill:none;stroke-width:1.6;stroke-linejoin:round}.c0{stroke:#0757b8}.c1{stroke:#b34700}.c2{stroke:#6b2fa0}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.g{stroke:#30363d}.m{stroke:#9da7b3}.bg{fill:#0d1117}.c0{stroke:#58a6ff}.c1{stroke:#ffa657}.c2{stroke:#d2a8ff}}
</style>`
)

// write draws the peak of 1 s bins within each step of the picture.
func (p plot) write(w io.Writer) {
	f := func(format string, args ...any) { fmt.Fprintf(w, format+"\n", args...) }
	length, most := 0, int32(1)
	for _, l := range p.lines {
		length = max(length, len(l.seconds)-1)
		for _, n := range l.seconds {
			most = max(most, n)
		}
	}
	decades := math.Ceil(math.Log10(float64(most)))
	x := func(second int) float64 { return left + float64(second)/float64(length)*(width-left-right) }
	y := func(n float64) float64 {
		return height - bottom - math.Log10(max(n, 1))/decades*(height-top-bottom)
	}
	f(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" role="img" aria-label="%s">%s`, width, height, p.title, style)
	f(`<rect class="bg" width="%d" height="%d"/><text class="t" x="%d" y="26">%s</text>`, width, height, left, p.title)
	for d := range int(decades) + 1 {
		n := math.Pow10(d)
		f(`<path class="g" d="M%d %.1fH%d"/><text x="%d" y="%.1f" text-anchor="end">%s</text>`, left, y(n), width-right, left-8, y(n)+4, number(int(n)))
	}
	minutes := 10
	for length/60/minutes > 12 {
		minutes *= 2
	}
	for m := 0; m*60 <= length; m += minutes {
		f(`<path class="g" d="M%.1f %dv%d"/><text x="%.1f" y="%d" text-anchor="middle">%d</text>`, x(m*60), top, height-top-bottom, x(m*60), height-bottom+18, m)
	}
	f(`<text x="%d" y="%d" text-anchor="middle">minutes %s</text>`, (left+width-right)/2, height-12, p.since)
	f(`<text transform="translate(18 %d) rotate(-90)" text-anchor="middle">requests per second, peak</text>`, (top+height-bottom)/2)
	at := left
	for i, l := range p.lines {
		f(`<path class="l c%d" d="M%d 52h24"/><text x="%d" y="56">%s</text>`, i, at, at+30, l.label)
		at += 60 + 8*len(l.label)
	}
	f(`<path class="m" d="M%d 52h24"/><text x="%d" y="56">mean: %.0f/s</text>`, at, at+30, p.mean)
	for i, line := range slices.Backward(p.lines) { // the first on top
		fmt.Fprintf(w, `<path class="l c%d" d="M`, i)
		seconds, step := line.seconds, max(length/720, 1)
		for from := 0; from+step <= length; from += step {
			var peak int32
			for _, n := range seconds[from:min(from+step, len(seconds))] {
				peak = max(peak, n)
			}
			fmt.Fprintf(w, "%.1f %.1f ", x(from), y(float64(peak)))
		}
		f(`"/>`)
	}
	f(`<path class="m" d="M%d %.1fH%d"/></svg>`, left, y(p.mean), width-right)
}
