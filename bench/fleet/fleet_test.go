package main

import (
	"fmt"
	"testing"
	"time"
)

// cuts are longer and shorter than everything that matters to a token of an hour:
// none has lapsed, some have, all have, for many times over.
var cuts = []time.Duration{time.Minute, 5 * time.Minute, 15 * time.Minute, 20 * time.Minute, 30 * time.Minute, 45 * time.Minute,
	55 * time.Minute, time.Hour, 70 * time.Minute, 3 * time.Hour, 24 * time.Hour}

func powerCut(n int, d time.Duration) scenario {
	return scenario{proxies: n, lifetime: time.Hour, warm: 2 * time.Hour, after: 3 * time.Hour, cut: d, boot: 10 * time.Second}
}

// TestPowerCutPeaksAtTwiceTheMean is about a fleet whose callers do not all come
// at once. The fewer proxies, the more one second differs from the next by mere
// chance, so that this holds 100 000 to the 1 s bins and fewer to longer ones.
func TestPowerCutPeaksAtTwiceTheMean(t *testing.T) {
	for _, cut := range cuts {
		t.Run(fmt.Sprint(cut), func(t *testing.T) {
			t.Parallel()
		  for seed := range uint64(6) {
			r := simulate(powerCut(100_000, cut), seed)
			t.Log(cut, r.peak(), r.ratio(), r.lapsed)
			if r.ratio() > 2 {
				t.Errorf("peak of %d refreshes/s, %.2f times the mean of %.1f", r.peak(), r.ratio(), r.mean)
			}
		  }
		})
	}
}
