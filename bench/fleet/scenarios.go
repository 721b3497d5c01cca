package main

import (
	"fmt"
	"io"
	"math"
	"strings"
	"time"
)

const seed = 1

// cuts are shorter and longer than all that matters to a token of an hour: none
// has lapsed, some have, all have, many times over.
var cuts = []time.Duration{
	time.Minute, 5 * time.Minute, 15 * time.Minute, 20 * time.Minute, 30 * time.Minute, 45 * time.Minute,
	55 * time.Minute, time.Hour, 70 * time.Minute, 3 * time.Hour, 24 * time.Hour,
}

func powerCut(n int, d time.Duration) scenario {
	return scenario{proxies: n, lifetime: time.Hour, warm: 2 * time.Hour, after: 2 * time.Hour, cut: d, boot: 10 * time.Second}
}

// newFleet has got all its tokens within ten seconds.
func newFleet(n int) scenario {
	return scenario{proxies: n, lifetime: time.Hour, after: 8 * time.Hour, boot: 10 * time.Second, sameAge: true}
}

func outage(n int, d time.Duration) scenario {
	return scenario{proxies: n, lifetime: time.Hour, warm: 2 * time.Hour, after: time.Hour, outage: d}
}

// limited is the worst morning: all tokens have lapsed, every proxy has a caller
// within half a minute, and the server answers ten times the mean and no more.
func limited(n int, retryAfter time.Duration) scenario {
	sc := powerCut(n, 24*time.Hour)
	sc.calls, sc.limit, sc.retryAfter = 30*time.Second, int(math.Ceil(10*float64(n)/(0.775*3600))), retryAfter
	return sc
}

func eager(sc scenario) scenario                        { sc.eager = true; return sc }
func inStep(sc scenario) scenario                       { sc.step = true; return sc }
func called(sc scenario, within time.Duration) scenario { sc.calls = within; return sc }

// report writes the tables of docs/fleets.md.
func report(w io.Writer) {
	p := func(format string, args ...any) { fmt.Fprintf(w, format+"\n", args...) }
	const n = 100_000
	mean := simulate(outage(1000, 0), seed).mean * n / 1000

	p("### After a power cut: %s proxies, tokens of an hour\n", number(n))
	p("All boot within 10 s. The mean is %.1f refreshes/s. Nobody calls a proxy whose token has lapsed; see the table after the next for what calls do.\n", mean)
	p("| power was off for | tokens lapsed | peak per second | times the mean | over ten seconds | with `login eager`, times the mean |\n|---|---|---|---|---|---|")
	for _, d := range cuts {
		r, e := simulate(powerCut(n, d), seed), simulate(eager(powerCut(n, d)), seed)
		p("| %s | %.0f %% | %d | **%.2f** | %.2f | %.0f |", span(d), 100*float64(r.lapsed)/n, r.peak(), r.ratio(), r.smooth(10)/r.mean, e.ratio())
	}

	p("\n### From 10 to 1 000 000 proxies\n")
	p("| proxies | mean per second | peak after 30 min without power | peak after a day | with `login eager` after a day |\n|---|---|---|---|---|")
	for _, n := range []int{10, 100, 1000, 10_000, 100_000, 1_000_000} {
		a, b, e := simulate(powerCut(n, 30*time.Minute), seed), simulate(powerCut(n, 24*time.Hour), seed), simulate(eager(powerCut(n, 24*time.Hour)), seed)
		p("| %s | %.3g | %s | %s | %s |", number(n), a.mean, a.times(), b.times(), e.times())
	}

	p("\n### After a day without power, when calls come: %s proxies\n", number(n))
	p("| every proxy has its first call | peak per second | times the mean | 99 %% have a token again after |\n|---|---|---|---|")
	for _, within := range []time.Duration{10 * time.Second, time.Minute, 5 * time.Minute, 30 * time.Minute, time.Hour, 0} {
		r, when := simulate(called(powerCut(n, 24*time.Hour), within), seed), "never"
		if within > 0 {
			when = "within " + span(within)
		}
		p("| %s | %d | %.1f | %s |", when, r.peak(), r.ratio(), span(r.healed))
	}

	p("\n### A new fleet: %s proxies that all got their tokens within 10 s\n", number(n))
	p("| | with jitter, times the mean | without, times the mean |\n|---|---|---|")
	with, without := simulate(newFleet(n), seed), simulate(inStep(newFleet(n)), seed)
	for h := range 8 {
		p("| hour %d | %.1f | %.0f |", h+1, with.hour(h), without.hour(h))
	}

	p("\n### After an outage of the authorization server\n")
	p("| server was away for | proxies | tokens lapsed | requests per second in its last minute | peak once it is back | times the mean | 99 %% have a token again after |\n|---|---|---|---|---|---|---|")
	for _, d := range []time.Duration{time.Minute, time.Hour, 24 * time.Hour} {
		n := n
		if d > 2*time.Hour {
			n /= 10
		}
		r := simulate(outage(n, d), seed)
		p("| %s | %s | %.0f %% | %.0f | %d | %.0f | %s |", span(d), number(n), 100*float64(r.lapsed)/float64(n), r.knocks, r.peak(), r.ratio(), span(r.healed))
	}

	p("\n### At a rate limit: %s proxies, all lapsed, all called within 30 s, ten times the mean allowed (%d/s)\n", number(n), limited(n, 0).limit)
	p("| the 429 says | requests turned away | for each proxy | peak per second | 99 %% have a token again after |\n|---|---|---|---|---|")
	for _, after := range []time.Duration{0, 10 * time.Second, time.Minute, 5 * time.Minute} {
		r, says := simulate(limited(n, after), seed), "no Retry-After"
		if after > 0 {
			says = fmt.Sprintf("`Retry-After: %.0f`", after.Seconds())
		}
		p("| %s | %s | %.1f | %d | %s |", says, number(r.rejected), float64(r.rejected)/n, r.peak(), span(r.healed))
	}
	p("\nThe quickest that %d/s allow is %s.", limited(n, 0).limit, span(time.Duration(n/limited(n, 0).limit)*time.Second))
}

// smooth is the peak of the mean over so many seconds.
func (r *result) smooth(seconds int) float64 {
	most, sum := int32(0), int32(0)
	for i, n := range r.requests {
		if sum += n; i >= seconds {
			sum -= r.requests[i-seconds]
		}
		most = max(most, sum)
	}
	return float64(most) / float64(seconds)
}

// hour is the ratio within one hour.
func (r *result) hour(h int) float64 {
	part := result{requests: r.requests[h*3600 : (h+1)*3600], mean: r.mean}
	return part.ratio()
}

func (r *result) times() string {
	if r.mean < 1 {
		return fmt.Sprint(r.peak()) // one request is many times such a mean
	}
	return fmt.Sprintf("%s (%.1f ×)", number(r.peak()), r.ratio())
}

func number(n int) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + " " + s[i:]
	}
	return s
}

func span(d time.Duration) string {
	switch {
	case d < 0:
		return "not within the time looked at"
	case d == 0:
		return "at once"
	case d < 2*time.Minute && d%time.Minute != 0:
		return fmt.Sprintf("%.0f s", d.Seconds())
	case d < time.Hour || d%time.Hour != 0 && d < 3*time.Hour:
		return fmt.Sprintf("%.0f min", d.Minutes())
	case d < 24*time.Hour:
		return fmt.Sprintf("%.0f h", d.Hours())
	}
	return strings.Replace(fmt.Sprintf("%.0f days", d.Hours()/24), "1 days", "1 day", 1)
}

// plots are the pictures of docs/fleets.md by their file names.
func plots() map[string]plot {
	const n = 100_000
	curve := func(label string, sc scenario) line { r := simulate(sc, seed); return line{label, r.requests} }
	half, day := powerCut(n, 30*time.Minute), powerCut(n, 24*time.Hour)
	mean := n / (0.775 * 3600)
	return map[string]plot{
		"power-cut.svg": {"100 000 proxies after 30 minutes without power", "since the power is back", mean, []line{
			curve("as built", half), curve("login eager", eager(half)),
		}},
		"power-cut-day.svg": {"100 000 proxies after a day without power: every token has lapsed", "since the power is back", mean, []line{
			curve("nobody calls", day), curve("all called within 5 min", called(day, 5*time.Minute)), curve("login eager", eager(day)),
		}},
		"new-fleet.svg": {"100 000 new proxies that got their tokens within 10 seconds", "since then", mean, []line{
			curve("with jitter", newFleet(n)), curve("without", inStep(newFleet(n))),
		}},
		"outage.svg": {"100 000 proxies when the authorization server is back", "since the server is back", mean, []line{
			curve("after 1 minute", outage(n, time.Minute)), curve("after 1 hour", outage(n, time.Hour)),
		}},
		"rate-limit.svg": {"100 000 lapsed proxies, all called, at a limit of ten times the mean", "since the power is back", mean, []line{
			curve("429 without Retry-After", limited(n, 0)), curve("Retry-After: 60", limited(n, time.Minute)),
		}},
	}
}
