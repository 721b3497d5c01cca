package flow_test

import (
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

func TestOutageWithinTheLifetimeIsNotFelt(t *testing.T) {
	for name, fault := range map[string]flowtest.Response{
		"dropped":  {Drop: true},
		"hanging":  {Hang: true},
		"503":      {Status: 503},
		"429":      flowtest.ErrorResponse(429, "invalid_grant"),
		"HTML 200": {Body: "<html>welcome</html>"},
		"HTML 400": {Status: 400, Body: "<html>no</html>"},
		"HTML 404": {Status: 404, Body: "<html>no</html>"},
		"204":      {Status: 204},
		"empty":    {Status: 200},
		"301":      {Status: 301, Header: http.Header{"Location": {"https://evil.example/"}}},
		"doubtful": flowtest.ErrorResponse(400, "invalid_request"),
		"no name":  flowtest.ErrorResponse(400, "the server is restarting, please wait"),
		"denied":   flowtest.ErrorResponse(403, "access_denied"),
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, flowtest.Config{}, func(w *world) {
				s, _ := w.loggedIn()
				token := w.wantToken(s)
				w.sleep(30 * time.Minute)
				w.as.ScriptAlways(flowtest.Refresh, fault)
				w.sleep(time.Until(token.Expiry()) - 2*time.Minute) // a request that hangs has a minute
				if s.Current() != token {
					w.Fatal("a usable token was withheld")
				}
				if st := s.Status(); st.State != flow.StateDegraded && st.State != flow.StateMisconfigured || st.Error == nil || !st.Token.Refreshable {
					w.Fatalf("status %s", asJSON(st))
				}
				if n := w.as.Count(flowtest.Refresh); n < 2 || n > 60 {
					w.Fatalf("%d attempts in an outage of a quarter of an hour", n)
				}
				w.as.Unscript(flowtest.Refresh)
				w.sleep(2 * time.Minute)
				w.wantState(s, flow.StateAuthorized)
				w.wantError(s, "", "")
				w.wantToken(s)
				w.wantCount(flowtest.Device, 1)
			})
		})
	}
}

func TestOutagePastExpiryHealsWithinOneBackOffStep(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		s, _ := w.loggedIn()
		token := w.wantToken(s)
		w.as.ScriptAlways(flowtest.Refresh, flowtest.Response{Drop: true})
		w.sleep(time.Until(token.Expiry()))
		for range 600 {
			if _, err := s.Token(w.Context()); err == nil {
				w.Fatal("a lapsed token was handed out")
			}
			w.sleep(time.Second)
		}
		w.wantState(s, flow.StateUnavailable)
		w.wantError(s, flow.CodeUnreachable, flow.ActionRetry)
		w.wantCount(flowtest.Device, 1) // nobody is asked to log in again
		w.as.Unscript(flowtest.Refresh)
		w.sleep(30 * time.Second)
		w.wantState(s, flow.StateAuthorized)
		w.wantToken(s)
	})
}

func TestRetryAfterIsHonouredWithinBounds(t *testing.T) {
	for _, tc := range []struct {
		value       string
		least, most time.Duration // until the second attempt
	}{
		{"7", 7 * time.Second, 7700 * time.Millisecond}, // never less; and those turned away together part ways
		{"DATE", 9 * time.Second, 11 * time.Second},
		{"0", 900 * time.Millisecond, time.Second},
		{"-1", 900 * time.Millisecond, time.Second},
		{"soon", 900 * time.Millisecond, time.Second},
		{"1000000000", time.Hour, 66 * time.Minute},
		{"99999999999999999999999", time.Hour, 66 * time.Minute},
	} {
		for _, status := range []int{429, 503} {
			t.Run(fmt.Sprint(status, " ", tc.value), func(t *testing.T) {
				bubble(t, flowtest.Config{AccessTokenLifetime: 24 * time.Hour}, func(w *world) {
					s, _ := w.loggedIn()
					value := tc.value
					if value == "DATE" {
						value = time.Now().Add(10 * time.Second).UTC().Format(http.TimeFormat)
					}
					w.as.Script(flowtest.Refresh, flowtest.Response{Status: status, Header: http.Header{"Retry-After": {value}}})
					if _, err := s.Refresh(w.Context()); err == nil {
						w.Fatal("no error")
					}
					w.sleep(tc.most + time.Second)
					if gaps := w.gaps(flowtest.Refresh); len(gaps) != 1 || gaps[0] < tc.least || gaps[0] > tc.most+flow.Settling {
						w.Fatalf("gaps %v, want %v to %v", gaps, tc.least, tc.most)
					}
					w.wantToken(s)
				})
			})
		}
	}
}

func TestRefusedClientIsNotHammered(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		s, _ := w.loggedIn()
		token := w.wantToken(s)
		grant := func() string { // without the traces of attempts
			return regexp.MustCompile(`,"(refreshing|saved_at)":("[^"]*"|{[^}]*})`).ReplaceAllString(w.store.record(), "")
		}
		stored := grant()
		w.as.ScriptAlways(flowtest.Refresh, flowtest.ErrorResponse(401, "invalid_client"))
		w.sleep(time.Until(token.Expiry()) - time.Second)
		w.wantState(s, flow.StateMisconfigured)
		w.wantError(s, "invalid_client", flow.ActionFixConfiguration)
		w.wantToken(s) // served while it lasts
		w.sleep(4 * time.Hour)
		w.wantState(s, flow.StateMisconfigured)
		for range 60 {
			s.Reject(token) // not even when callers insist
			w.sleep(time.Second)
		}
		for _, gap := range w.gaps(flowtest.Refresh) {
			if gap < time.Minute {
				w.Fatalf("an attempt after %v, want a minute at least", gap)
			}
		}
		if grant() != stored {
			w.Fatal("the stored login was touched")
		}
		w.as.Unscript(flowtest.Refresh)
		if err := s.SetConfig(w.cfg); err != nil { // the secret has been put right
			w.Fatal(err)
		}
		w.sleep(flow.Settling)
		w.wantState(s, flow.StateAuthorized)
		w.wantToken(s)
		w.wantCount(flowtest.Device, 1)
	})
}

func TestDeadRefreshTokenAsksForALogin(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		s, _ := w.loggedIn()
		token := w.wantToken(s)
		w.as.RevokeAll()
		w.forgetEvents()
		w.sleep(time.Until(token.Expiry()) - time.Nanosecond)
		w.wantState(s, flow.StateDegraded)
		w.wantError(s, "invalid_grant", flow.ActionReauthorize)
		w.wantToken(s)
		w.wantCount(flowtest.Refresh, 1)
		w.wantCount(flowtest.Device, 1) // while the token lasts, nobody needs to hurry
		w.sleep(time.Nanosecond)
		w.wantState(s, flow.StateLoginRequired)
		w.wantError(s, "invalid_grant", flow.ActionReauthorize)
		if st := s.Status(); st.Account != nil || w.store.record() != "" {
			w.Fatal("the dead login is still there")
		}
		if _, err := s.Token(w.Context()); err == nil || !strings.Contains(err.Error(), "pending") {
			w.Fatalf("a caller gets %v, want a code", err)
		}
		w.wantEvents("authorized>degraded", "refresh_failed", "degraded>login_required", "login_required>pending", "login_pending")
		w.as.ApproveAll()
		w.sleep(5 * time.Second)
		w.wantState(s, flow.StateAuthorized)
		w.wantError(s, "", "")
	})
}

func TestLoginAfterADeadOneShowsItsOwnTrouble(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		s, _ := w.loggedIn()
		w.as.RevokeAll()
		w.as.ExpireAccessTokens()
		if _, err := s.Refresh(w.Context()); err == nil {
			w.Fatal("no error")
		}
		w.sleep(time.Hour)
		w.wantState(s, flow.StateLoginRequired)
		w.as.Script(flowtest.Device, flowtest.ErrorResponse(401, "invalid_client"))
		s.Demand()
		w.sleep(0)
		w.wantState(s, flow.StateMisconfigured)
		w.wantError(s, "invalid_client", flow.ActionFixConfiguration)
	})
}

func TestDoubtfulRefusalsEndALoginOnlyWithItsToken(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		s, _ := w.loggedIn()
		token := w.wantToken(s)
		w.as.ScriptAlways(flowtest.Refresh, flowtest.ErrorResponse(400, "invalid_request"))
		w.sleep(time.Until(token.Expiry()) - time.Second)
		if n := w.as.Count(flowtest.Refresh); n < 5 || n > 30 {
			w.Fatalf("%d attempts", n)
		}
		w.wantToken(s)
		w.sleep(5 * time.Second) // one more attempt after a pause, and the second look after it
		w.wantState(s, flow.StateLoginRequired)
		w.wantError(s, "invalid_request", flow.ActionReauthorize)
		aside := false
		for key, v := range w.store.all() {
			aside = aside || strings.HasSuffix(key, ".refused") && strings.Contains(v, token.Value().Reveal())
		}
		if !aside || w.store.record() != "" {
			w.Fatal("the old login was not put aside")
		}
		n := w.as.Count(flowtest.Refresh)
		w.sleep(time.Hour)
		w.wantCount(flowtest.Refresh, n)
	})
}

// While an ingress or a firewall answers in the server's place, nobody has said
// anything about the refresh token.
func TestPageInsteadOfAnAnswerNeverEndsALogin(t *testing.T) {
	for name, page := range map[string]flowtest.Response{
		"default backend": {Status: 404, Body: "<html><body><h1>404 Not Found</h1></body></html>"},
		"firewall":        {Status: 403, Header: http.Header{"Content-Type": {"text/html; charset=utf-8"}}, Body: "Access denied"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, flowtest.Config{AccessTokenLifetime: time.Minute}, func(w *world) {
				s, _ := w.loggedIn()
				w.as.ScriptAlways(flowtest.Refresh, page)
				w.sleep(time.Hour)
				w.wantState(s, flow.StateUnavailable)
				w.wantError(s, flow.CodeInvalidResponse, flow.ActionRetry)
				w.as.Unscript(flowtest.Refresh)
				w.sleep(30 * time.Second)
				w.wantState(s, flow.StateAuthorized)
				w.wantToken(s)
				w.wantCount(flowtest.Device, 1)
			})
		})
	}
}

// A server that starts may refuse for a while what it takes again afterwards.
func TestDoubtfulRefusalsTakeTimeToCount(t *testing.T) {
	bubble(t, flowtest.Config{AccessTokenLifetime: 5 * time.Second}, func(w *world) {
		s, _ := w.loggedIn()
		w.as.ExpireAccessTokens()
		w.as.ScriptAlways(flowtest.Refresh, flowtest.ErrorResponse(400, "invalid_request"))
		if _, err := s.Refresh(w.Context()); err == nil {
			w.Fatal("no error")
		}
		w.sleep(25 * time.Second)
		if n := w.as.Count(flowtest.Refresh); n < 5 {
			w.Fatalf("%d attempts", n)
		}
		w.wantState(s, flow.StateUnavailable)
		w.as.Unscript(flowtest.Refresh)
		w.sleep(30 * time.Second)
		w.wantToken(s)
		w.wantCount(flowtest.Device, 1)
	})
}

func TestSlowServerDoesNotDisturbCalls(t *testing.T) {
	for _, latency := range []time.Duration{5 * time.Second, 29 * time.Second, 31 * time.Second} {
		t.Run(latency.String(), func(t *testing.T) {
			bubble(t, flowtest.Config{AccessTokenLifetime: 10 * time.Minute}, func(w *world) {
				s, _ := w.loggedIn()
				w.as.Script(flowtest.Refresh, flowtest.Response{Pass: true, Delay: latency})
				for range 900 {
					begin := time.Now()
					w.wantToken(s)
					if time.Since(begin) != 0 {
						w.Fatal("a call waited")
					}
					time.Sleep(time.Second)
				}
				if st := w.as.Stats(); st.Reuses != 0 || st.Logins != 1 {
					w.Fatalf("%+v", st)
				}
			})
		})
	}
}
