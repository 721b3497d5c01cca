package flow_test

import (
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

func TestRecordFromTheFutureIsRefreshedAtOnce(t *testing.T) {
	future := func(t *testing.T, later time.Duration, f func(w *world, s *flow.Session)) {
		bubble(t, flowtest.Config{}, func(w *world) { f(w, w.madeIn1970(later)) })
	}
	t.Run("a good token", func(t *testing.T) {
		future(t, time.Minute, func(w *world, s *flow.Session) {
			w.keepRunning(s)
			w.wantToken(s) // even before the refresh
			w.sleep(flow.Settling)
			w.wantCount(flowtest.Refresh, 1)
			w.wantToken(s)
			s.StepClock(0)
			w.sleep(2 * time.Second)
			w.wantToken(s)
			w.wantState(s, flow.StateAuthorized)
			w.wantCount(flowtest.Device, 1)
		})
	})
	t.Run("a lapsed one, and no server", func(t *testing.T) {
		future(t, 2*time.Hour, func(w *world, s *flow.Session) {
			w.as.ScriptAlways(flowtest.Refresh, flowtest.Response{Drop: true})
			w.keepRunning(s)
			old := s.Current() // nobody can know
			w.sleep(time.Second / 2)
			if old == nil || s.Replace(w.Context(), old) != nil {
				w.Fatal("there is no other token")
			}
			w.wantState(s, flow.StateUnavailable)
			w.as.Unscript(flowtest.Refresh)
			w.sleep(5 * time.Second)
			w.wantToken(s)
			w.wantCount(flowtest.Device, 1)
		})
	})
	t.Run("the end is not further away than it can be", func(t *testing.T) {
		future(t, time.Minute, func(w *world, s *flow.Session) {
			w.as.ScriptAlways(flowtest.Refresh, flowtest.Response{Drop: true})
			w.keepRunning(s)
			if d := s.Current().Expiry().Sub(time.Now().Add(-26 * 365 * 24 * time.Hour)); d > time.Hour {
				w.Fatalf("%v", d)
			}
			w.sleep(time.Hour)
			w.wantState(s, flow.StateUnavailable)
		})
	})
}
