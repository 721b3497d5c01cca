// Package schedule decides when a session renews its token: pure functions of
// lifetimes and of dice, without a clock. The engine calls them, and so does the
// simulation of whole fleets in bench/fleet, which therefore shows what the
// engine does and not what somebody believes it does.
//
// A dice is a number in [0, 1) that the caller draws anew for each call.
package schedule

import "time"

const (
	retryMin      = time.Second
	retryMax      = 30 * time.Second
	retryFloor    = 100 * time.Millisecond
	minRefreshGap = time.Second / 2 // keeps tokens of a millisecond from becoming a storm
)

// Ahead is how long after its receipt a token of that lifetime is renewed: at 70
// to 85 % of it, so that no request waits for a refresh and a fleet does not
// refresh in step.
func Ahead(lifetime time.Duration, dice float64) time.Duration {
	return max(share(lifetime, 0.70+0.15*dice), minRefreshGap)
}

// AtBoot is how long a process waits to renew a token that it finds in its store
// when it starts. ahead is the pause that [Ahead] gave when the token came, and
// left what remains of the token, negative if it has lapsed.
//
// A token that is alive is renewed late in what remains, never after it: in a
// fleet that boots at once, each has a different remainder, and a share of it
// keeps them apart. For one that has lapsed while the power was off, the pause
// ends when a refresh would have been due had there been no cut. So the fleet is
// as even as it was before, without a word between its members. A call does not
// wait for that: whoever calls this must renew a lapsed token at once when
// somebody needs it.
func AtBoot(ahead, left time.Duration, dice float64) time.Duration {
	if left > 0 {
		return share(left, 0.80+0.15*dice)
	}
	return ahead - (-left)%ahead
}

// Backoff is the pause after the n-th failure in a row, n ≥ 1: first, doubled
// each time up to most, and spread by a tenth so that instances part ways.
func Backoff(n int, first, most time.Duration, dice float64) time.Duration {
	d := first
	for ; n > 1 && d < most; n-- {
		d *= 2
	}
	d = min(d, most)
	return d - share(d, dice/10)
}

// Retry is the pause after the n-th refresh in a row that failed for the moment.
// lifetime is that of the last token, 0 if unknown: short-lived tokens need a
// shorter first pause.
func Retry(n int, lifetime time.Duration, dice float64) time.Duration {
	first := retryMin
	if lifetime > 0 {
		first = min(first, max(lifetime/20, retryFloor))
	}
	return Backoff(n, first, retryMax, dice)
}

// NotBefore is a server's Retry-After, made up to a tenth longer: those whom a
// server turns away within one second would else be back within one second.
func NotBefore(retryAfter time.Duration, dice float64) time.Duration {
	return retryAfter + share(retryAfter, dice/10)
}

func share(d time.Duration, part float64) time.Duration { return time.Duration(float64(d) * part) }
