package flow_test

import (
	"context"
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

func TestReplaceRefreshesOnceForARejectedToken(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		s, _ := w.loggedIn()
		token := w.wantToken(s)
		w.as.ExpireAccessTokens()
		better := s.Replace(w.Context(), token)
		if better == nil || better.Value().Equal(token.Value()) || !w.as.ValidToken(better.Value().Reveal()) {
			w.Fatal("no better token")
		}
		if again := s.Replace(w.Context(), token); again != better {
			w.Fatal("a token that has been replaced already cost another refresh")
		}
		w.wantCount(flowtest.Refresh, 1)
		// The API refuses everything: one attempt in 30 seconds.
		for range 600 {
			if t := s.Current(); s.Replace(w.Context(), t) == nil {
				s.Reject(t)
			}
			w.sleep(100 * time.Millisecond)
		}
		if n := w.as.Count(flowtest.Refresh); n > 1+2 {
			w.Fatalf("%d refreshes in a minute of 401s", n)
		}
	})
}

func TestReplaceWaitsNoLongerThanTheCaller(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		s, _ := w.loggedIn()
		token := w.wantToken(s)
		w.as.Script(flowtest.Refresh, flowtest.Response{Pass: true, Delay: 20 * time.Second})
		ctx, cancel := context.WithTimeout(w.Context(), time.Second)
		defer cancel()
		begin := time.Now()
		if s.Replace(ctx, token) != nil || time.Since(begin) != time.Second {
			w.Fatalf("waited %v", time.Since(begin))
		}
		if s.Replace(w.Context(), token) != nil || time.Since(begin) != 6*time.Second {
			w.Fatalf("waited %v", time.Since(begin)-time.Second)
		}
		w.sleep(20 * time.Second) // the refresh hangs on nobody's context
		w.wantCount(flowtest.Refresh, 1)
		if s.Current() == token {
			w.Fatal("the refresh was given up with its caller")
		}
	})
}

func TestDeadLoginWithARejectedTokenIsOver(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		s, _ := w.loggedIn()
		token := w.wantToken(s)
		w.as.RevokeAll()
		w.as.ExpireAccessTokens()
		if s.Replace(w.Context(), token) != nil {
			w.Fatal("a better token out of nothing")
		}
		w.wantState(s, flow.StateDegraded) // the API alone may be wrong about one call
		if s.Replace(w.Context(), token) != nil {
			w.Fatal("a better token out of nothing")
		}
		w.wantState(s, flow.StateLoginRequired)
		w.login(s)
		w.wantToken(s)
	})
}
