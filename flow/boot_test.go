package flow_test

import (
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// stoppedFor logs in, stops, and starts again after d.
func (w *world) stoppedFor(d time.Duration) *flow.Session {
	_, stop := w.loggedIn()
	stop()
	w.sleep(d)
	s, _ := w.run()
	w.sleep(time.Second)
	return s
}

func TestLapsedTokenIsRenewedForTheFirstCallAfterAStart(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		s := w.stoppedFor(3 * time.Hour)
		w.wantCount(flowtest.Refresh, 0)
		begin := time.Now()
		w.wantToken(s)
		if d := time.Since(begin); d > 2*flow.Settling {
			w.Errorf("the call waited %v", d)
		}
		w.wantCount(flowtest.Refresh, 1)
		w.wantCount(flowtest.Device, 1)
	})
}

// A call can come before the store has answered.
func TestLapsedTokenIsRenewedForACallDuringTheStart(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		_, stop := w.loggedIn()
		stop()
		w.sleep(3 * time.Hour)
		s, _ := w.run()
		w.wantToken(s)
		w.wantCount(flowtest.Refresh, 1)
	})
}

func TestLapsedTokenIsRenewedWithoutACallWithinALifetime(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		s := w.stoppedFor(3 * time.Hour)
		w.wantState(s, flow.StateUnavailable)
		for began := time.Now(); s.Status().State != flow.StateAuthorized; w.sleep(time.Second) {
			if time.Since(began) > 51*time.Minute {
				w.Fatal("still not renewed after the longest pause there is")
			}
		}
		w.wantCount(flowtest.Refresh, 1)
	})
}

func TestHealthCheckHasALapsedTokenRenewed(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		s := w.stoppedFor(3 * time.Hour)
		s.Rouse()
		w.sleep(time.Second)
		w.wantState(s, flow.StateAuthorized)
	})
}

func TestOverdueTokenIsServedAndRenewedBeforeItLapses(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		s := w.stoppedFor(54 * time.Minute)
		w.wantToken(s)
		w.wantCount(flowtest.Refresh, 0)
		w.sleep(6 * time.Minute)
		w.wantState(s, flow.StateAuthorized)
		w.wantCount(flowtest.Refresh, 1)
	})
}
