package lab

import (
	"encoding/xml"
	"fmt"
	"math"
	"strings"
)

// Bars is a plot of horizontal bars, each with a whisker from the lower to the upper quartile.
type Bars struct {
	Title  string
	Unit   string  // behind each value
	Format string  // of a value, such as %.2f
	Line   float64 // a value to compare with, drawn through all; 0: none
	Groups []Group
}

// Group is some bars under a heading.
type Group struct {
	Name string
	Bars []Bar
}

// Bar is one of them. Ours are drawn in another colour.
type Bar struct {
	Name  string
	Value Spread
	Ours  bool
}

// The measures of a plot, in pixels.
const (
	plotWidth, plotLabels, plotValues = 760, 250, 70
	plotRow, plotHead                 = 20, 36
)

// SVG draws the plot. It follows the reader's choice of light or dark, and is text for those who hear it.
func (p Bars) SVG() string {
	most, rows := p.Line, 0
	var said []string
	for _, g := range p.Groups {
		if rows++; g.Name == "" {
			rows--
		}
		for _, b := range g.Bars {
			rows++
			if v := b.Value.High; !math.IsNaN(v) {
				most = max(most, v)
			}
			said = append(said, fmt.Sprintf("%s %s: %s", g.Name, b.Name, p.value(b.Value.Mid)))
		}
	}
	if most == 0 {
		most = 1
	}
	height := plotHead + rows*plotRow + 12
	x := func(v float64) float64 {
		if math.IsNaN(v) {
			v = 0
		}
		return plotLabels + v/most*(plotWidth-plotLabels-plotValues)
	}
	var out strings.Builder
	fmt.Fprintf(&out, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img">
<title>%s</title>
<desc>%s</desc>
<style>
text { font: 12px system-ui, sans-serif; fill: #1f2328 }
.title, .group { font-weight: 600 }
.title { font-size: 14px }
.bar { fill: #9aa4b2 } .ours { fill: #0a7d55 }
.whisker { stroke: #1f2328; stroke-width: 1.5 } .line { stroke: #b4232a; stroke-dasharray: 4 3 }
.ground { fill: #fff }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .bar { fill: #6b7684 } .ours { fill: #2fb67f } .whisker { stroke: #e6edf3 } .line { stroke: #ff7b72 } .ground { fill: #0d1117 }
}
</style>
<rect class="ground" width="%d" height="%d"/>
<text class="title" x="8" y="20">%s</text>
`, plotWidth, height, plotWidth, height, escape(p.Title), escape(strings.Join(said, "; ")), plotWidth, height, escape(p.Title))
	y := plotHead
	for _, g := range p.Groups {
		if g.Name != "" {
			fmt.Fprintf(&out, "<text class=\"group\" x=\"8\" y=\"%d\">%s</text>\n", y+15, escape(g.Name))
			y += plotRow
		}
		for _, b := range g.Bars {
			class := "bar"
			if b.Ours {
				class = "bar ours"
			}
			fmt.Fprintf(&out, "<text x=\"%d\" y=\"%d\" text-anchor=\"end\">%s</text>\n", plotLabels-8, y+14, escape(b.Name))
			fmt.Fprintf(&out, "<rect class=\"%s\" x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"%d\"/>\n", class, plotLabels, y+3, x(b.Value.Mid)-plotLabels, plotRow-6)
			fmt.Fprintf(&out, "<path class=\"whisker\" d=\"M%.1f %dH%.1f\"/>\n", x(b.Value.Low), y+plotRow/2, x(b.Value.High))
			fmt.Fprintf(&out, "<text x=\"%.1f\" y=\"%d\">%s</text>\n", max(x(b.Value.Mid), x(b.Value.High))+6, y+14, escape(p.value(b.Value.Mid)))
			y += plotRow
		}
	}
	if p.Line > 0 {
		fmt.Fprintf(&out, "<path class=\"line\" d=\"M%.1f %dV%d\"/>\n", x(p.Line), plotHead, y)
	}
	out.WriteString("</svg>\n")
	return out.String()
}

func (p Bars) value(v float64) string {
	return strings.TrimSpace(fmt.Sprintf(p.Format+" %s", v, p.Unit))
}

func escape(s string) string {
	var out strings.Builder
	_ = xml.EscapeText(&out, []byte(s)) // a strings.Builder takes everything
	return out.String()
}
