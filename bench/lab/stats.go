package lab

import (
	"math"
	"slices"
	"time"
)

// Slice is one turn of one contestant.
type Slice struct {
	CPU        float64       // µs of processor time per request
	Throughput float64       // requests per second
	P50, P99   float64       // ms
	P999       float64       // ms
	Failed     int           // requests without a 200
	Others     float64       // share of the machine, from 0 to 1, that processes outside of the measurement had meanwhile
	Length     time.Duration // as it was, not as it was meant to be
}

// Spread is a median between its quartiles.
type Spread struct{ Low, Mid, High float64 }

// SpreadOf sorts a copy of values. Of none it is NaN.
func SpreadOf(values []float64) Spread {
	sorted := slices.Sorted(slices.Values(values))
	return Spread{Quantile(sorted, 0.25), Quantile(sorted, 0.5), Quantile(sorted, 0.75)}
}

// Quantile lies between the two nearest of the sorted values. Of none it is NaN.
func Quantile(sorted []float64, q float64) float64 {
	if len(sorted) == 0 {
		return math.NaN()
	}
	at := q * float64(len(sorted)-1)
	i := int(at)
	if i+1 >= len(sorted) {
		return sorted[len(sorted)-1]
	}
	return sorted[i] + (at-float64(i))*(sorted[i+1]-sorted[i])
}

// Disturbed is the share of the machine that others may have in a slice. The kernel samples the machine's time at its
// ticks but counts that of a process to the nanosecond: below this, the difference is noise.
const Disturbed = 0.05

// Quiet are the slices that nobody disturbed. When that leaves fewer than a third, the machine was never quiet: then all
// of them count, and calm is false, which has to be said beside the figure.
func Quiet(all []Slice) (kept []Slice, calm bool) {
	for _, s := range all {
		if s.Others <= Disturbed {
			kept = append(kept, s)
		}
	}
	if 3*len(kept) < len(all) {
		return all, false
	}
	return kept, true
}

// Pairs divides what contestant a had in each turn by what b had in the same turn, and drops the pairs in which either
// was disturbed. Fewer than a third left is as in Quiet.
func Pairs(a, b []Slice, of func(Slice) float64) (ratios []float64, dropped int, calm bool) {
	var all []float64
	for i := range min(len(a), len(b)) {
		ratio := of(a[i]) / of(b[i])
		all = append(all, ratio)
		if a[i].Others <= Disturbed && b[i].Others <= Disturbed {
			ratios = append(ratios, ratio)
		}
	}
	if 3*len(ratios) < len(all) {
		return all, 0, false
	}
	return ratios, len(all) - len(ratios), true
}

// Each is one figure of every slice.
func Each(in []Slice, of func(Slice) float64) []float64 {
	out := make([]float64, len(in))
	for i, s := range in {
		out[i] = of(s)
	}
	return out
}

// The figures of a slice, for Pairs and Each.
var (
	CPU        = func(s Slice) float64 { return s.CPU }
	Throughput = func(s Slice) float64 { return s.Throughput }
	P50        = func(s Slice) float64 { return s.P50 }
	P99        = func(s Slice) float64 { return s.P99 }
	P999       = func(s Slice) float64 { return s.P999 }
)

// Milliseconds of d.
func Milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
