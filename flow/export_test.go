package flow

import (
	"context"
	"time"
)

// LookEvery is the longest pause between looks into a shared store.
const LookEvery = lookEvery

// Settling is the pause between a claim and the refresh.
const Settling = settling

// Skew sets the wall clock of a session before it runs.
func (s *Session) Skew(d time.Duration) { s.skew = d }

// StepClock sets the wall clock of a running session.
func (s *Session) StepClock(d time.Duration) {
	_ = s.do(context.Background(), func() { s.skew = d })
}

// Kept is how many tokens for other APIs are kept, or waited for.
func (s *Session) Kept() (n int) {
	s.each(func(*slot) { n++ })
	return n
}
