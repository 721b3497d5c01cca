package flow

import (
	"context"
	"time"
)

// LookEvery is the longest pause between looks into a shared store.
const LookEvery = lookEvery

// Skew sets the wall clock of a session before it runs.
func (s *Session) Skew(d time.Duration) { s.skew = d }

// StepClock sets the wall clock of a running session.
func (s *Session) StepClock(d time.Duration) {
	_ = s.do(context.Background(), func() { s.skew = d })
}
