package main

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/bench/lab"
)

// made is what a run might find: ours at 0.9 of the plain Caddy, with one pair disturbed that would spoil it.
func made() *results {
	r := &results{at: time.Date(2026, 11, 24, 0, 0, 0, 0, time.UTC), took: 13 * time.Minute, plan: brief, sizes: []float64{52, 53, 44}}
	for _, name := range []string{"nginx, static header", stockName, oursName, profileName, oneCoreName} {
		c := &contestant{name: name, slices: make(map[int][]lab.Slice), memory: map[int]lab.Memory{}}
		for _, n := range r.plan.connections {
			for i := range 5 {
				s := lab.Slice{CPU: 100, Throughput: 1000, P50: 1, P99: 2}
				switch {
				case name == oursName && i == 3:
					s.CPU, s.Others = 900, 0.5
				case name == oursName:
					s.CPU = 90
				case name == profileName, name == oneCoreName:
					s.CPU, s.Throughput = 50, 2000
				}
				c.slices[n] = append(c.slices[n], s)
			}
		}
		r.contestants = append(r.contestants, c)
	}
	for i, name := range []string{"Caddy", "device_flow", "device_flow, slim"} {
		s := &starter{name: name, idle: []lab.Memory{{Own: 10 - 3*float64(i), RSS: 50}}}
		for range 3 {
			s.took = append(s.took, 40-10*float64(i))
		}
		r.builds = append(r.builds, s)
	}
	for i := range 4 {
		h := &herder{name: "herder"}
		for range 3 {
			h.slices = append(h.slices, lab.Slice{P999: 10 + float64(i)})
		}
		r.herders = append(r.herders, h)
	}
	for _, devices := range []int{1, 1001} {
		c := &crowd{devices: devices, loaded: time.Second, memory: lab.Memory{Own: 10}}
		if devices > 1 {
			c.memory.Own += 20
		}
		for range 3 {
			c.slices = append(c.slices, lab.Slice{CPU: 50 + float64(devices)/2000, Throughput: 10, Length: time.Second})
		}
		c.slices[2].CPU, c.slices[2].Throughput = c.slices[2].CPU+1, 20 // the collector works
		r.crowds = append(r.crowds, c)
	}
	r.functions = []*function{{name: "Guard", ns: []float64{1, 2, 3}, allocated: []float64{0}, allocations: 0}}
	return r
}

func TestTheSectionStatesMediansOfUndisturbedPairs(t *testing.T) {
	text := made().section()
	for _, want := range []string{
		"| **device_flow** | 90.0 µs | 0.90 (0.90–0.90) | 1000 | 1.00 (1.00–1.00) | 1.00 ms | 2.00 ms | 0 MiB | 4 |",
		"In 3 of 93 slices", "32 connections:", "256 connections:",
		"| device_flow, slim | 20.0 ms | 0.50 (0.50–0.50) | 44.0 MB | 4.0 MiB | 0.40 | 50 MiB |",
		"| herder | 0.00 ms | 0.00 ms | 11.00 ms | 1.10 (1.10–1.10) |",
		"| 1001 | 50.5 µs | +0.5 µs (+0.5 – +0.5) | 51.0 µs | 0.00 ms | 0.00 ms | 30 MiB | 20.5 KiB | 1.0 s |",
		"| Guard | 2.0 ns | 0 B | 0 |",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
	if strings.Contains(text, "NaN") || strings.Contains(text, "not quiet") {
		t.Error(text)
	}
}

func TestTheSummaryHasARowForEachContestant(t *testing.T) {
	text := made().summary()
	for _, want := range []string{
		"| CPU per request, plain Caddy = 1 | 32 connections | 128 connections | 256 connections |\n|---|--:|--:|--:|\n",
		"| nginx, static header | 1.00 | 1.00 | 1.00 |", "| **device_flow** | 0.90 | 0.90 | 0.90 |", "| **device_flow**, operator's profile | 0.50 | 0.50 | 0.50 |",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
}

func TestABusyMachineIsSaid(t *testing.T) {
	r := made()
	for _, c := range r.contestants {
		for _, slices := range c.slices {
			for i := range slices {
				slices[i].Others = 0.5
			}
		}
	}
	if !strings.Contains(r.section(), "**The machine was not quiet") {
		t.Error(r.section())
	}
}

func TestGoalsThatAreMissedAreSaid(t *testing.T) {
	r := made()
	goals := r.goals()
	if n := strings.Count(goals, "MISSED"); n != 2 { // 0.90 at 128 and at 256 connections
		t.Errorf("%d missed:\n%s", n, goals)
	}
	r.herders[1].slices[0].P999 = math.NaN()
	r.herders[1].slices[1].P999 = math.NaN()
	if !strings.Contains(r.goals(), "MISSED  p99.9") {
		t.Error("what was not measured is a goal that was reached")
	}
}

func TestOnlyTheSectionOfThePageChanges(t *testing.T) {
	page := "# Title\n" + begins + "old\n" + ends + "prose\n"
	got, err := replaceSection([]byte(page), "new\n")
	if want := "# Title\n" + begins + "new\n" + ends + "prose\n"; err != nil || string(got) != want {
		t.Errorf("%q, %v", got, err)
	}
	for _, bad := range []string{"", "# Title\n", begins, ends + begins} {
		if got, err := replaceSection([]byte(bad), "new\n"); err == nil {
			t.Errorf("%q became %q", bad, got)
		}
	}
}

func TestBenchmarksAreReadTogether(t *testing.T) {
	got, err := parseBenchmarks(`goos: linux
BenchmarkGuard-2         	 9651190	       124.5 ns/op	       0 B/op	       0 allocs/op
BenchmarkKeyed/devices=1000-2 	 1000	 1.5e+03 ns/op	 12.0 MB/s	 736 B/op	 4 allocs/op
BenchmarkGuard-2         	 9651190	       120 ns/op	       0 B/op	       0 allocs/op
PASS
`)
	if err != nil || len(got) != 2 || got[0].name != "Guard" || len(got[0].ns) != 2 || got[1].name != "Keyed/devices=1000" ||
		got[1].ns[0] != 1500 || got[1].allocated[0] != 736 || got[1].allocations != 4 {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := parseBenchmarks("PASS\n"); err == nil {
		t.Error("no benchmarks are taken for a result")
	}
}

func TestPlotsAreMade(t *testing.T) {
	plots := made().plots()
	text := made().section()
	for name := range plots {
		if !strings.Contains(text, "("+plotsDir+"/"+name+")") {
			t.Errorf("the page does not show %s", name)
		}
	}
	if len(plots) != strings.Count(text, ".svg)") {
		t.Errorf("%d plots", len(plots))
	}
}
