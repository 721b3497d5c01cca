package lab

import (
	"encoding/xml"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
)

func TestPlotIsGoodXMLAndSaysItsValues(t *testing.T) {
	svg := Bars{
		Title: "a < b & \"c\"", Unit: "ms", Format: "%.1f", Line: 1,
		Groups: []Group{{Name: "32 <connections>", Bars: []Bar{
			{Name: "x & y", Value: Spread{1, 2, 3}},
			{Name: "ours", Value: Spread{1, 1.5, 2}, Ours: true},
			{Name: "nobody", Value: Spread{math.NaN(), math.NaN(), math.NaN()}},
		}}},
	}.SVG()
	d := xml.NewDecoder(strings.NewReader(svg))
	for {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("%v\n%s", err, svg)
		}
	}
	for _, want := range []string{">2.0 ms<", ">1.5 ms<", "x &amp; y", `class="bar ours"`, `class="line"`, "<desc>32 &lt;connections&gt; x"} {
		if !strings.Contains(svg, want) {
			t.Errorf("%q is missing in\n%s", want, svg)
		}
	}
	for _, bad := range []string{`="NaN`, "MNaN", "HNaN", `="-`} {
		if strings.Contains(svg, bad) {
			t.Errorf("%q is in\n%s", bad, svg)
		}
	}
}
