package flow_test

import (
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

const deviceGrant = "urn:ietf:params:oauth:grant-type:device_code"

// TestAuth0Tutorial follows "Call Your API Using the Device Authorization Flow"
// of Auth0's documentation, step by step, against a server with Auth0's habits.
func TestAuth0Tutorial(t *testing.T) {
	real := flowtest.Response{Pass: true}
	for _, tc := range []struct {
		name   string
		secret string
		// polls are the answers the device gets before the operator has decided.
		polls []flowtest.Response
		// decide is what the operator does then.
		decide func(as *flowtest.Server, userCode string) error
		// What the final answer is.
		status int
		code   string
		state  flow.State
	}{
		{
			name:   "native application",
			polls:  []flowtest.Response{real, real, flowtest.ErrorResponse(429, "slow_down"), real},
			decide: func(as *flowtest.Server, userCode string) error { return as.Approve(userCode) },
			status: 200, state: flow.StateAuthorized,
		},
		{
			name: "application with a secret", secret: "s3cr3t & more",
			polls:  []flowtest.Response{real},
			decide: func(as *flowtest.Server, userCode string) error { return as.Approve(userCode) },
			status: 200, state: flow.StateAuthorized,
		},
		{
			name:   "the code runs out",
			polls:  []flowtest.Response{real, real},
			decide: func(as *flowtest.Server, userCode string) error { return as.Expire(userCode) },
			status: 403, code: "expired_token", state: flow.StateLoginRequired,
		},
		{
			name:   "the operator refuses",
			polls:  []flowtest.Response{real},
			decide: func(as *flowtest.Server, userCode string) error { return as.Deny(userCode) },
			status: 403, code: "access_denied", state: flow.StateLoginRequired,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := flowtest.Config{
				Flavour: flowtest.Auth0, ClientSecret: tc.secret, AccessTokenLifetime: 24 * time.Hour,
				AllowedAudiences: []string{"https://api.example.com"}, APIAudience: "https://api.example.com", APIScope: "read:things",
			}
			bubble(t, cfg, func(w *world) {
				w.cfg.Scope = []string{"openid", "offline_access", "read:things"}
				w.cfg.Audience = "https://api.example.com"
				own := url.Values{"client_id": {"demo-client"}} // what every request says of the client
				if tc.secret != "" {
					w.cfg.Secret = func(context.Context) (flow.Secret, error) { return flow.NewSecret(tc.secret), nil }
					own.Set("client_secret", tc.secret)
				}
				form := func(pairs ...string) url.Values {
					v := url.Values{}
					maps.Copy(v, own)
					for i := 0; i < len(pairs); i += 2 {
						v.Set(pairs[i], pairs[i+1])
					}
					return v
				}

				// Request device code.
				s, _ := w.run()
				st, err := s.Login(w.Context())
				if err != nil {
					w.Fatal(err)
				}
				w.wantRequest(flowtest.Device, "/oauth/device/code", 200,
					form("scope", "openid offline_access read:things", "audience", "https://api.example.com"))

				// Request device activation: show the operator where to go and what to enter.
				issued := time.Now()
				l := st.Login
				if st.State != flow.StatePending || l.VerificationURI != "https://as.flowtest.example/activate" ||
					l.VerificationURIComplete != l.VerificationURI+"?user_code="+l.UserCode || !l.ExpiresAt.Equal(issued.Add(15*time.Minute)) {
					w.Fatalf("what the operator sees: %s", asJSON(st))
				}

				// Request tokens: poll at the interval, here 5 seconds.
				w.as.Script(flowtest.Poll, tc.polls...)
				interval := 5 * time.Second
				for i, answer := range tc.polls {
					w.sleep(interval - time.Nanosecond)
					w.wantCount(flowtest.Poll, i)
					w.sleep(time.Nanosecond)
					status := 403 // authorization_pending
					if answer.Status == 429 {
						status = 429
						interval += 5 * time.Second
					}
					poll := w.wantRequest(flowtest.Poll, "/oauth/token", status, nil)
					if want := form("grant_type", deviceGrant, "device_code", poll.Get("device_code")); poll.Get("device_code") == "" || !reflect.DeepEqual(poll, want) {
						w.Fatalf("poll %v, want %v", poll, want)
					}
					w.wantState(s, flow.StatePending)
					w.wantError(s, "", "")
				}
				if err := tc.decide(w.as, l.UserCode); err != nil {
					w.Fatal(err)
				}
				w.sleep(interval)
				w.wantRequest(flowtest.Poll, "/oauth/token", tc.status, nil)
				polls := len(tc.polls) + 1
				w.wantCount(flowtest.Poll, polls)
				w.wantState(s, tc.state)
				if tc.code != "" {
					w.wantError(s, tc.code, flow.ActionReauthorize)
					w.sleep(time.Hour)
					w.wantCount(flowtest.Poll, polls)
					w.wantCount(flowtest.Device, 1)
					return
				}

				// Receive tokens.
				st = s.Status()
				if st.Error != nil || st.Login != nil || !st.Token.Refreshable || !st.Token.ExpiresAt.Equal(time.Now().Add(24*time.Hour)) ||
					!reflect.DeepEqual(st.Token.Scope, w.cfg.Scope) {
					w.Fatalf("status %s", asJSON(st))
				}
				if want := (flow.Account{Issuer: w.as.Issuer(), Subject: "auth0|alice", Name: "Alice Example", Email: "alice@example.com"}); *st.Account != want {
					w.Fatalf("account %+v, want %+v", *st.Account, want)
				}

				// Call your API.
				first := w.wantToken(s)
				w.callAPI(s, first)

				// Refresh tokens.
				w.sleep(24*time.Hour*85/100 + time.Second)
				refresh := w.wantRequest(flowtest.Refresh, "/oauth/token", 200, nil)
				if want := form("grant_type", "refresh_token", "refresh_token", refresh.Get("refresh_token")); refresh.Get("refresh_token") == "" || !reflect.DeepEqual(refresh, want) {
					w.Fatalf("refresh %v, want %v", refresh, want)
				}
				w.wantCount(flowtest.Refresh, 1)
				second := w.wantToken(s)
				if second.Value().Equal(first.Value()) {
					w.Fatal("the refresh brought no new token")
				}
				w.callAPI(s, second)
				w.wantCount(flowtest.Poll, polls) // after a 200, never again
				w.wantCount(flowtest.Device, 1)
			})
		})
	}
}

// wantRequest asserts the latest request of a step and returns its parameters; a
// nil form is not compared.
func (w *world) wantRequest(step flowtest.Step, path string, status int, form url.Values) url.Values {
	w.Helper()
	all := w.as.Requests()
	for _, r := range slices.Backward(all) {

		if r.Step != step {
			continue
		}
		if r.Method != http.MethodPost || r.Path != path || r.Status != status || r.Header.Get("Content-Type") != "application/x-www-form-urlencoded" {
			w.Fatalf("%s: %s %s (%s) answered with %d, want POST %s, %d", step, r.Method, r.Path, r.Header.Get("Content-Type"), r.Status, path, status)
		}
		if form != nil && !reflect.DeepEqual(r.Form, form) {
			w.Fatalf("%s: %v, want %v", step, r.Form, form)
		}
		return r.Form
	}
	w.Fatalf("no request of step %s", step)
	return nil
}

// callAPI calls the API through flow.Transport and asserts that it saw the token.
func (w *world) callAPI(s *flow.Session, token *flow.Token) {
	w.Helper()
	client := &http.Client{Transport: &flow.Transport{Session: s, Base: w.as.APIRoundTripper()}}
	req, err := http.NewRequestWithContext(w.Context(), http.MethodGet, "https://api.example.com/things", nil)
	if err != nil {
		w.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		w.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil || resp.StatusCode != 200 {
		w.Fatalf("the API answers %d %s, %v", resp.StatusCode, body, err)
	}
	calls := w.as.APIRequests()
	got := calls[len(calls)-1].Header["Authorization"]
	if want := []string{"Bearer " + token.Value().Reveal()}; !reflect.DeepEqual(got, want) {
		w.Fatal("the API did not get the session's token as its only credential")
	}
}
