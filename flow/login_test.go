package flow_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

func TestFinalErrorsEndTheLogin(t *testing.T) {
	for _, tc := range []struct {
		status int
		code   string
		state  flow.State
		action flow.Action
		again  bool // a demand starts another login, after a pause
	}{
		{400, "access_denied", flow.StateLoginRequired, flow.ActionReauthorize, false},
		{403, "access_denied", flow.StateLoginRequired, flow.ActionReauthorize, false},
		{400, "authorization_declined", flow.StateLoginRequired, flow.ActionReauthorize, false},
		{400, "expired_token", flow.StateLoginRequired, flow.ActionReauthorize, true},
		{200, "expired_token", flow.StateLoginRequired, flow.ActionReauthorize, true},
		{400, "token_expired", flow.StateLoginRequired, flow.ActionReauthorize, true},
		{400, "invalid_grant", flow.StateLoginRequired, flow.ActionReauthorize, true},
		{400, "bad_verification_code", flow.StateLoginRequired, flow.ActionReauthorize, true},
		{400, "invalid_code_pair", flow.StateLoginRequired, flow.ActionReauthorize, true},
		{400, "invalid device code", flow.StateLoginRequired, flow.ActionReauthorize, true},
		{401, "invalid_client", flow.StateMisconfigured, flow.ActionFixConfiguration, false},
		{400, "unauthorized_client", flow.StateMisconfigured, flow.ActionFixConfiguration, false},
		{400, "unsupported_grant_type", flow.StateMisconfigured, flow.ActionFixConfiguration, false},
		{400, "invalid_request", flow.StateMisconfigured, flow.ActionFixConfiguration, false},
		{400, "something_new", flow.StateMisconfigured, flow.ActionFixConfiguration, false},
	} {
		t.Run(fmt.Sprint(tc.status, " ", tc.code), func(t *testing.T) {
			bubble(t, flowtest.Config{}, func(w *world) {
				s, _ := w.run()
				if _, err := s.Login(w.Context()); err != nil {
					w.Fatal(err)
				}
				w.forgetEvents()
				w.as.Script(flowtest.Poll, flowtest.ErrorResponse(tc.status, tc.code))
				w.sleep(5 * time.Second)
				w.wantState(s, tc.state)
				w.wantError(s, tc.code, tc.action)
				w.wantEvents("pending>"+string(tc.state), "login_failed")
				for range 60 {
					w.sleep(time.Second)
					if tc.again && time.Since(w.times(flowtest.Poll)[0]) > 8*time.Second {
						break // the pause after a code that nobody used is up
					}
					s.Demand()
				}
				w.wantCount(flowtest.Poll, 1)
				w.wantCount(flowtest.Device, 1)
				w.wantState(s, tc.state)
				if tc.again {
					w.sleep(2 * time.Second)
					s.Demand()
					w.sleep(0)
					w.wantCount(flowtest.Device, 2)
					w.wantState(s, flow.StatePending)
				}
				w.login(s) // a person can always start over
				w.wantError(s, "", "")
			})
		})
	}
}

func TestRefusedDeviceRequests(t *testing.T) {
	for _, tc := range []struct {
		answer flowtest.Response
		code   string
		state  flow.State
		action flow.Action
		most   int // device requests in an hour with a caller each second
	}{
		{flowtest.ErrorResponse(401, "invalid_client"), "invalid_client", flow.StateMisconfigured, flow.ActionFixConfiguration, 61},
		{flowtest.ErrorResponse(400, "invalid_scope"), "invalid_scope", flow.StateMisconfigured, flow.ActionFixConfiguration, 61},
		{flowtest.ErrorResponse(403, "access_denied"), "access_denied", flow.StateMisconfigured, flow.ActionFixConfiguration, 61},
		{flowtest.Response{Status: 307, Header: map[string][]string{"Location": {"https://evil.example/"}}}, "configuration", flow.StateMisconfigured, flow.ActionFixConfiguration, 61},
		{flowtest.ErrorResponse(503, "server_error"), "server_error", flow.StateLoginRequired, flow.ActionRetry, 80},
		{flowtest.Response{Drop: true}, "unreachable", flow.StateLoginRequired, flow.ActionRetry, 80},
		{flowtest.Response{Body: `{"user_code":"A"}`}, "invalid_response", flow.StateLoginRequired, flow.ActionRetry, 80},
		{flowtest.Response{Status: 429, Header: map[string][]string{"Retry-After": {"600"}}}, "temporarily_unavailable", flow.StateLoginRequired, flow.ActionRetry, 7},
	} {
		t.Run(fmt.Sprint(tc.answer.Status, tc.code), func(t *testing.T) {
			bubble(t, flowtest.Config{}, func(w *world) {
				w.as.ScriptAlways(flowtest.Device, tc.answer)
				s, _ := w.run()
				for range 3600 {
					s.Demand()
					w.sleep(time.Second)
				}
				w.wantState(s, tc.state)
				w.wantError(s, tc.code, tc.action)
				if n := w.as.Count(flowtest.Device); n < 2 || n > tc.most {
					w.Fatalf("%d device requests in an hour, want at most %d", n, tc.most)
				}
				w.as.Unscript(flowtest.Device)
				w.login(s)
			})
		})
	}
}

func TestCorrectedConfigurationIsTriedAtOnce(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		w.as.Script(flowtest.Device, flowtest.ErrorResponse(401, "invalid_client"))
		s, _ := w.run()
		s.Demand()
		w.sleep(0)
		w.wantState(s, flow.StateMisconfigured)
		if err := s.SetConfig(w.cfg); err != nil {
			w.Fatal(err)
		}
		s.Demand()
		w.sleep(0)
		w.wantState(s, flow.StatePending)
	})
}

func TestUnattendedCodesAreRenewedMoreAndMoreRarely(t *testing.T) {
	bubble(t, flowtest.Config{CodeLifetime: 10 * time.Second, Interval: 4 * time.Second}, func(w *world) {
		s, _ := w.run()
		for range 24 * 3600 {
			s.Demand()
			time.Sleep(time.Second)
		}
		n := w.as.Count(flowtest.Device)
		if n < 10 || n > 40 {
			w.Fatalf("%d codes in 24 h with a caller each second", n)
		}
		if polls := w.as.Count(flowtest.Poll); polls > 3*n {
			w.Fatalf("%d polls for %d codes", polls, n)
		}
		w.login(s)
	})
}

func TestLocalClockEndsALogin(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		w.as.ScriptAlways(flowtest.Poll, flowtest.ErrorResponse(400, "authorization_pending"))
		s, _ := w.run()
		if _, err := s.Login(w.Context()); err != nil {
			w.Fatal(err)
		}
		w.sleep(15*time.Minute - time.Nanosecond)
		w.wantState(s, flow.StatePending)
		w.sleep(time.Nanosecond)
		w.wantState(s, flow.StateLoginRequired)
		w.wantError(s, "expired_token", flow.ActionReauthorize)
		polls := w.as.Count(flowtest.Poll)
		w.sleep(time.Hour)
		w.wantCount(flowtest.Poll, polls)
	})
}
