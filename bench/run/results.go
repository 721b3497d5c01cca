package main

import (
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/deviceflow/caddy-deviceflow/bench/lab"
)

// results are what the stages have found.
type results struct {
	at    time.Time
	took  time.Duration
	quick bool
	plan  plan
	machine
	sizes       []float64 // MB, of the builds
	builds      []*starter
	contestants []*contestant
	herders     []*herder
	crowds      []*crowd
	functions   []*function
}

func (r *results) contestant(name string) *contestant {
	for _, c := range r.contestants {
		if c.name == name {
			return c
		}
	}
	panic("no contestant " + name) // a name in this package
}

// against is what a contestant had in each turn, divided by what the stock Caddy had in it.
func (r *results) against(c *contestant, connections int, of func(lab.Slice) float64) (lab.Spread, int, bool) {
	ratios, dropped, calm := lab.Pairs(c.slices[connections], r.contestant(stockName).slices[connections], of)
	return lab.SpreadOf(ratios), dropped, calm
}

// startRatio is that of each start to the stock Caddy's of the same turn.
func (r *results) startRatio(build int) lab.Spread {
	var ratios []float64
	for n, took := range r.builds[build].took {
		ratios = append(ratios, took/r.builds[0].took[n])
	}
	return lab.SpreadOf(ratios)
}

func ownAtRest(s *starter) float64 {
	var own []float64
	for _, m := range s.idle {
		own = append(own, m.Own)
	}
	return lab.SpreadOf(own).Mid
}

func rssAtRest(s *starter) float64 {
	var rss []float64
	for _, m := range s.idle {
		rss = append(rss, m.RSS)
	}
	return lab.SpreadOf(rss).Mid
}

// herdRatio compares p99.9 of a server with and without refreshing.
func (r *results) herdRatio(refreshing, still int) (lab.Spread, int, bool) {
	ratios, dropped, calm := lab.Pairs(r.herders[refreshing].slices, r.herders[still].slices, lab.P999)
	return lab.SpreadOf(ratios), dropped, calm
}

// perDevice is what a request costs more than with one device, in µs of processor time, and the KiB of a further device.
func (r *results) perDevice(crowd int) (cpu lab.Spread, kib float64) {
	one, many := r.crowds[0], r.crowds[crowd]
	var more []float64
	for i := range many.slices {
		more = append(more, many.slices[i].CPU-one.slices[i].CPU)
	}
	return lab.SpreadOf(more), (many.memory.Own - one.memory.Own) * 1024 / float64(max(many.devices-one.devices, 1))
}

// disturbed counts the slices in which others were busy, of all that were measured; others is the median of their share.
func (r *results) disturbed() (disturbed, all int, others float64) {
	var shares []float64
	count := func(slices []lab.Slice) {
		for _, s := range slices {
			all++
			shares = append(shares, s.Others)
			if s.Others > lab.Disturbed {
				disturbed++
			}
		}
	}
	for _, c := range r.contestants {
		for _, slices := range c.slices {
			count(slices)
		}
	}
	for _, h := range r.herders {
		count(h.slices)
	}
	for _, c := range r.crowds {
		count(c.slices)
	}
	return disturbed, all, lab.SpreadOf(shares).Mid
}

// goals are the bounds that the project has set itself, and what they are now.
func (r *results) goals() string {
	var out strings.Builder
	line := func(what string, got, bound float64, least bool) {
		verdict := "ok"
		if math.IsNaN(got) || (least && got < bound) || (!least && got > bound) {
			verdict = "MISSED"
		}
		sign := "≤"
		if least {
			sign = "≥"
		}
		fmt.Fprintf(&out, "%-6s  %-58s %7.2f   goal %s %.2f\n", verdict, what, got, sign, bound)
	}
	for _, g := range []struct {
		name   string
		bounds map[int]float64
		of     func(lab.Slice) float64
		what   string
		least  bool
	}{
		{oursName, map[int]float64{32: 1, 128: 0.85, 256: 0.75}, lab.CPU, "CPU per request", false},
		{profileName, map[int]float64{32: 0.8, 128: 0.62, 256: 0.6}, lab.CPU, "CPU per request", false},
		{profileName, map[int]float64{32: 1.15, 128: 1.45, 256: 1.5}, lab.Throughput, "throughput", true},
		{oneCoreName, map[int]float64{32: 0.8, 128: 0.62, 256: 0.6}, lab.CPU, "CPU per request", false},
		{oneCoreName, map[int]float64{32: 1.15, 128: 1.45, 256: 1.5}, lab.Throughput, "throughput", true},
	} {
		for _, connections := range r.plan.connections {
			got, _, _ := r.against(r.contestant(g.name), connections, g.of)
			line(fmt.Sprintf("%s, %d connections: %s", g.name, connections, g.what), got.Mid, g.bounds[connections], g.least)
		}
	}
	line("full build: first answer", r.startRatio(1).Mid, 1.05, false)
	line("slim build: first answer", r.startRatio(2).Mid, 0.55, false)
	line("slim build: MB", r.sizes[2], 45, false)
	line("slim build: own memory at rest", ownAtRest(r.builds[2])/ownAtRest(r.builds[0]), 0.75, false)
	herd, _, _ := r.herdRatio(1, 0)
	line("p99.9 with refreshing against without", herd.Mid, 1.1, false)
	for i, c := range r.crowds[1:] {
		more, _ := r.perDevice(i + 1)
		line(fmt.Sprintf("%d devices: µs more per request than one", c.devices), more.Mid, 1, false)
	}
	return out.String()
}
