package main

import (
	"fmt"
	"testing"
	"time"
)

// TestPowerCutPeaksAtTwiceTheMean is about a fleet whose callers do not all come
// at once. Tokens of six minutes make 10 000 proxies as busy as tokens of an hour
// make 100 000: the mean is the same, and so is what chance adds to a second.
func TestPowerCutPeaksAtTwiceTheMean(t *testing.T) {
	for _, cut := range cuts {
		sc := powerCut(10_000, cut/10)
		sc.lifetime, sc.warm, sc.after, sc.boot = sc.lifetime/10, sc.warm/10, sc.after/10, sc.boot/10
		t.Run(fmt.Sprint(sc.cut), func(t *testing.T) { wantTwice(t, sc) })
	}
	t.Run("100000", func(t *testing.T) { wantTwice(t, powerCut(100_000, 30*time.Minute)) })
}

// TestNewFleetComesApart begins with proxies that all got their tokens within ten
// seconds. Nothing but the dice can part those.
func TestNewFleetComesApart(t *testing.T) {
	sc := newFleet(10_000)
	sc.lifetime, sc.warm, sc.after, sc.boot = sc.lifetime/10, sc.warm/10, sc.after/10, sc.boot/10
	sc.warm = 40 * sc.lifetime // about 50 cycles
	wantTwice(t, sc)
	sc.step = true
	if r := simulate(sc, seed); r.ratio() < 10 {
		t.Errorf("without jitter the peak is %.2f times the mean: this test would not see it missing", r.ratio())
	}
}

func wantTwice(t *testing.T, sc scenario) {
	t.Helper()
	if r := simulate(sc, seed); r.ratio() > 2 || r.peak() == 0 {
		t.Errorf("peak of %d refreshes/s, %.2f times the mean of %.1f", r.peak(), r.ratio(), r.mean)
	}
}

// TestACallIsNotMadeToWait: the evenness is for those whom nobody calls.
func TestACallIsNotMadeToWait(t *testing.T) {
	sc := powerCut(1000, 24*time.Hour)
	sc.calls = time.Minute
	if r := simulate(sc, seed); r.lapsed != 1000 || r.healed < 0 || r.healed > sc.boot+sc.calls {
		t.Errorf("%d lapsed, 99 %% had a token again after %v", r.lapsed, r.healed)
	}
}

// TestOnePeakForOneSeed keeps the figures in docs/fleets.md repeatable.
func TestOnePeakForOneSeed(t *testing.T) {
	sc := powerCut(1000, time.Hour)
	if a, b := simulate(sc, 1), simulate(sc, 1); fmt.Sprint(a.requests) != fmt.Sprint(b.requests) {
		t.Error("two runs differ")
	}
}

// TestLimitIsKept: a server that answers 20 a second answers no more.
func TestLimitIsKept(t *testing.T) {
	sc := limited(1000, time.Minute)
	sc.limit = 20
	r := simulate(sc, seed)
	for _, n := range r.renewed {
		if n > 20 {
			t.Fatalf("%d in one second", n)
		}
	}
	if r.rejected == 0 || r.healed < 0 {
		t.Errorf("%d rejected, healed after %v", r.rejected, r.healed)
	}
}
