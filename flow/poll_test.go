package flow_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// member makes an answer real but for one member; a nil value leaves it out.
func member(name string, value any) flowtest.Response {
	return flowtest.Response{Pass: true, Edit: flowtest.EditJSON(func(m map[string]any) {
		if value == nil {
			delete(m, name)
		} else {
			m[name] = value
		}
	})}
}

func raw(s string) json.RawMessage { return json.RawMessage(s) }

func TestIntervalOfTheDeviceResponse(t *testing.T) {
	for _, tc := range []struct {
		interval any
		want     time.Duration
	}{
		{nil, 5 * time.Second},
		{raw("null"), 5 * time.Second},
		{raw("0"), 5 * time.Second},
		{raw("-3"), 5 * time.Second},
		{"soon", 5 * time.Second},
		{raw("{}"), 5 * time.Second},
		{raw("7"), 7 * time.Second},
		{raw("6.5"), 6500 * time.Millisecond},
		{"8", 8 * time.Second},
		{raw("1e1"), 10 * time.Second},
		{raw("1"), time.Second},                        // the server's word
		{raw("99999999999999999999"), 5 * time.Minute}, // a third of the code's lifetime
	} {
		t.Run(fmt.Sprint(tc.interval), func(t *testing.T) {
			bubble(t, flowtest.Config{Interval: time.Second}, func(w *world) {
				w.as.Script(flowtest.Device, member("interval", tc.interval))
				s, _ := w.run()
				issued := time.Now()
				if _, err := s.Login(w.Context()); err != nil {
					w.Fatal(err)
				}
				w.sleep(2 * tc.want)
				if at := w.times(flowtest.Poll); len(at) != 2 || at[0].Sub(issued) != tc.want || at[1].Sub(at[0]) != tc.want {
					w.Fatalf("polls at %v, want one each %v", at, tc.want)
				}
			})
		})
	}
}

func TestSlowDownCountsForGoodEvenAfterARestart(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		s, stop := w.run()
		if _, err := s.Login(w.Context()); err != nil {
			w.Fatal(err)
		}
		slow, pending := flowtest.ErrorResponse(400, "slow_down"), flowtest.Response{Pass: true}
		w.as.Script(flowtest.Poll, slow, pending, slow, slow)
		w.sleep(55 * time.Second) // polls at 5, 15, 25, 40, 60 (and so on each 20)
		want := []time.Duration{10 * time.Second, 10 * time.Second, 15 * time.Second}
		if got := w.gaps(flowtest.Poll); !slices.Equal(got, want) {
			w.Fatalf("gaps %v, want %v", got, want)
		}
		stop()
		again := time.Now()
		s, _ = w.run()
		w.sleep(60 * time.Second)
		at := w.times(flowtest.Poll)[4:]
		if len(at) != 3 || at[0].Sub(again) != 20*time.Second || at[1].Sub(at[0]) != 20*time.Second {
			w.Fatalf("after the restart, polls at %v", at)
		}
		w.wantCount(flowtest.Device, 1)
		w.as.ApproveAll()
		w.sleep(20 * time.Second)
		w.wantToken(s)
	})
}

func TestSlowDownTakesTheLongestOfAllThatIsSaid(t *testing.T) {
	for _, tc := range []struct {
		name   string
		answer flowtest.Response
		want   time.Duration
	}{
		{"nothing", flowtest.Response{Status: 200, Body: `{"error":"slow_down"}`}, 10 * time.Second},
		{"interval", flowtest.Response{Status: 200, Body: `{"error":"slow_down","interval":22}`}, 22 * time.Second},
		{"shorter interval", flowtest.Response{Status: 200, Body: `{"error":"slow_down","interval":2}`}, 10 * time.Second},
		{"Retry-After", flowtest.Response{Status: 429, Header: map[string][]string{"Retry-After": {"31"}}, Body: `{"error":"slow_down"}`}, 31 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubble(t, flowtest.Config{}, func(w *world) {
				s, _ := w.run()
				if _, err := s.Login(w.Context()); err != nil {
					w.Fatal(err)
				}
				w.as.Script(flowtest.Poll, tc.answer)
				w.sleep(5*time.Second + 2*tc.want)
				if got := w.gaps(flowtest.Poll); !slices.Equal(got, []time.Duration{tc.want, tc.want}) {
					w.Fatalf("gaps %v, want %v each", got, tc.want)
				}
			})
		})
	}
}

func TestConnectionTimeoutsSlowPollingDownAndDoNotEndIt(t *testing.T) {
	for name, fault := range map[string]flowtest.Response{"hang": {Hang: true}, "drop": {Drop: true}} {
		t.Run(name, func(t *testing.T) {
			bubble(t, flowtest.Config{}, func(w *world) {
				s, _ := w.run()
				if _, err := s.Login(w.Context()); err != nil {
					w.Fatal(err)
				}
				w.as.Script(flowtest.Poll, fault, fault, fault, fault, flowtest.Response{Pass: true})
				took := time.Duration(0)
				if fault.Hang {
					took = time.Minute
				}
				w.sleep(5*time.Second + 4*took + (10+20+40+60)*time.Second)
				gaps := w.gaps(flowtest.Poll)
				if len(gaps) < 4 {
					w.Fatalf("gaps %v", gaps)
				}
				for i, want := range []time.Duration{10 * time.Second, 20 * time.Second, 40 * time.Second, 60 * time.Second} {
					if got := gaps[i] - took; got > want || got < want*9/10 {
						w.Errorf("gap %d is %v, want about %v", i, got, want)
					}
				}
				w.wantState(s, flow.StatePending)
				w.wantError(s, "", "") // healed
				w.as.ApproveAll()
				w.sleep(5 * time.Second)
				w.wantToken(s)
			})
		})
	}
}

func TestTroubleWhilePollingIsShownAndPasses(t *testing.T) {
	for name, tc := range map[string]struct {
		answer flowtest.Response
		code   string
		action flow.Action
	}{
		"503":             {flowtest.ErrorResponse(503, "temporarily_unavailable"), "temporarily_unavailable", flow.ActionRetry},
		"500":             {flowtest.ErrorResponse(500, "server_error"), "server_error", flow.ActionRetry},
		"a rate limit":    {flowtest.ErrorResponse(429, "invalid_grant"), "invalid_grant", flow.ActionRetry},
		"HTML":            {flowtest.Response{Status: 200, Body: "<html>log in, please</html>", Header: map[string][]string{"Content-Type": {"text/html"}}}, "invalid_response", flow.ActionRetry},
		"HTML, 400":       {flowtest.Response{Status: 400, Body: "<html>no</html>"}, "invalid_response", flow.ActionRetry},
		"nothing":         {flowtest.Response{Status: 204}, "invalid_response", flow.ActionRetry},
		"empty":           {flowtest.Response{Status: 200}, "invalid_response", flow.ActionRetry},
		"empty object":    {flowtest.Response{Status: 200, Body: "{}"}, "invalid_response", flow.ActionRetry},
		"another object":  {flowtest.Response{Status: 200, Body: `{"status":"ok"}`}, "invalid_response", flow.ActionRetry},
		"cut off":         {flowtest.Response{Status: 200, Body: `{"access_token":"abc","expires`}, "invalid_response", flow.ActionRetry},
		"captive portal":  {flowtest.Response{Status: 302, Header: map[string][]string{"Location": {"https://portal.example/"}}}, "configuration", flow.ActionFixConfiguration},
		"408 and a name":  {flowtest.ErrorResponse(408, "too_slow"), "too_slow", flow.ActionRetry},
		"503 with denial": {flowtest.ErrorResponse(503, "access_denied"), "access_denied", flow.ActionRetry},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, flowtest.Config{}, func(w *world) {
				s, _ := w.run()
				if _, err := s.Login(w.Context()); err != nil {
					w.Fatal(err)
				}
				w.as.Script(flowtest.Poll, tc.answer)
				w.sleep(5 * time.Second)
				w.wantState(s, flow.StatePending)
				w.wantError(s, tc.code, tc.action)
				if s.Status().Error.RetryAt == nil {
					w.Fatal("the status does not say when the next poll comes")
				}
				w.as.ApproveAll()
				w.sleep(10 * time.Second)
				w.wantState(s, flow.StateAuthorized)
				w.wantError(s, "", "")
				w.wantToken(s)
			})
		})
	}
}

// RFC 8628 §3.5: the client waits as long as the server says, however short the
// code's life. Only what would never come to a poll is cut.
func TestIntervalIsKeptToTheEndOfTheCode(t *testing.T) {
	for _, tc := range []struct{ interval, lifetime, want time.Duration }{
		{10 * time.Second, 20 * time.Second, 10 * time.Second},
		{14 * time.Second, 15 * time.Second, 14 * time.Second},
		{10 * time.Minute, 15 * time.Minute, 10 * time.Minute},
		{15 * time.Second, 15 * time.Second, 5 * time.Second},
		{time.Hour, 15 * time.Minute, 5 * time.Minute},
	} {
		bubble(t, flowtest.Config{Interval: time.Second, CodeLifetime: tc.lifetime}, func(w *world) {
			w.as.Script(flowtest.Device, member("interval", tc.interval.Seconds()))
			s, _ := w.run()
			issued := time.Now()
			if _, err := s.Login(w.Context()); err != nil {
				w.Fatal(err)
			}
			w.sleep(tc.want)
			if at := w.times(flowtest.Poll); len(at) != 1 || at[0].Sub(issued) != tc.want {
				w.Errorf("interval %v, lifetime %v: polls at %v, want the first after %v", tc.interval, tc.lifetime, at, tc.want)
			}
		})
	}
}

// S93 of the scorecard: the answer to a poll is the login, and comes once.
func TestPollThatIsAnsweredLateIsALogin(t *testing.T) {
	for _, late := range []time.Duration{31 * time.Second, 59 * time.Second} {
		bubble(t, flowtest.Config{}, func(w *world) {
			s, _ := w.run()
			st, err := s.Login(w.Context())
			if err != nil {
				w.Fatal(err)
			}
			w.as.Script(flowtest.Poll, flowtest.Response{Pass: true, Delay: late})
			if err := w.as.Approve(st.Login.UserCode); err != nil {
				w.Fatal(err)
			}
			w.sleep(5*time.Second + late)
			w.wantState(s, flow.StateAuthorized)
			w.wantToken(s)
			w.wantCount(flowtest.Poll, 1)
		})
	}
}
