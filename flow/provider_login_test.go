package flow_test

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// vendor dresses flowtest up as a server that a preset is for: its places, its
// names and statuses, what it leaves out.
type vendor struct {
	provider string
	metadata string            // at …/.well-known/openid-configuration; "" for none
	places   map[string]string // its endpoints and flowtest's
	server   flowtest.Config
	scope    string
	edit     func(path string, status int, m map[string]any) (int, map[string]any)
	account  string // as the session shows it
	once     bool   // no refresh token
}

// statuses gives errors the status that a server gives them.
func statuses(of map[string]int) func(string, int, map[string]any) (int, map[string]any) {
	return func(_ string, status int, m map[string]any) (int, map[string]any) {
		if code, _ := m["error"].(string); of[code] != 0 {
			status = of[code]
		}
		return status, m
	}
}

var vendors = []vendor{
	{
		provider: "auth0 acme.eu.auth0.com",
		server:   flowtest.Config{Flavour: flowtest.Auth0, Issuer: "https://acme.eu.auth0.com/"},
		scope:    "openid offline_access read:things", account: "Alice Example",
	},
	{
		provider: "google", scope: "openid email", account: "Alice Example",
		server: flowtest.Config{ClientSecret: "GOCSPX-ours", NoRotation: true},
		metadata: `{"issuer":"https://accounts.google.com","device_authorization_endpoint":"https://oauth2.googleapis.com/device/code",` +
			`"token_endpoint":"https://oauth2.googleapis.com/token","revocation_endpoint":"https://oauth2.googleapis.com/revoke",` +
			`"code_challenge_methods_supported":["plain","S256"]}`,
		places: map[string]string{
			"https://oauth2.googleapis.com/device/code": "/device_authorization",
			"https://oauth2.googleapis.com/token":       "/token",
			"https://oauth2.googleapis.com/revoke":      "/revoke",
		},
		edit: func(path string, status int, m map[string]any) (int, map[string]any) {
			if at, ok := m["verification_uri"]; ok {
				m["verification_url"] = at
				delete(m, "verification_uri")
				delete(m, "verification_uri_complete")
			}
			return statuses(map[string]int{"authorization_pending": 428, "slow_down": 403, "access_denied": 403})(path, status, m)
		},
	},
	{
		provider: "microsoft contoso.onmicrosoft.com", scope: "https://graph.microsoft.com/User.Read openid offline_access", account: "Alice Example",
		places: map[string]string{
			"https://login.microsoftonline.com/contoso.onmicrosoft.com/oauth2/v2.0/devicecode": "/device_authorization",
			"https://login.microsoftonline.com/contoso.onmicrosoft.com/oauth2/v2.0/token":      "/token",
		},
		edit: func(_ string, status int, m map[string]any) (int, map[string]any) {
			delete(m, "verification_uri_complete")
			if m["device_code"] != nil {
				m["message"] = "To sign in, open the page."
			}
			if m["error"] != nil {
				m["error_codes"], m["timestamp"] = []int{70016}, "2026-01-09 02:02:12Z"
			}
			return status, m
		},
	},
	{
		provider: "github", scope: "repo read:org", account: "octo", once: true,
		server: flowtest.Config{OmitRefreshToken: true},
		places: map[string]string{
			"https://github.com/login/device/code":        "/device_authorization",
			"https://github.com/login/oauth/access_token": "/token",
			"https://api.github.com/user":                 "/userinfo",
		},
		edit: func(path string, status int, m map[string]any) (int, map[string]any) {
			switch {
			case path == "/userinfo":
				return 200, map[string]any{"login": "octo", "id": 583231, "name": nil, "email": nil}
			case m["error"] == "slow_down":
				m["interval"] = 10
			case m["access_token"] != nil:
				delete(m, "expires_in")
				m["token_type"], m["scope"] = "bearer", "repo,read:org"
			}
			return 200, m
		},
	},
	{
		provider: "gitlab", scope: "openid read_api", account: "Alice Example",
		metadata: `{"issuer":"https://gitlab.com","token_endpoint":"https://gitlab.com/oauth/token","revocation_endpoint":"https://gitlab.com/oauth/revoke"}`,
		places: map[string]string{
			"https://gitlab.com/oauth/authorize_device": "/device_authorization",
			"https://gitlab.com/oauth/token":            "/token",
			"https://gitlab.com/oauth/revoke":           "/revoke",
		},
	},
	{
		provider: "okta acme.okta.com", scope: "openid offline_access", account: "Alice Example",
		places: map[string]string{
			"https://acme.okta.com/oauth2/default/v1/device/authorize": "/device_authorization",
			"https://acme.okta.com/oauth2/default/v1/token":            "/token",
		},
		edit: statuses(map[string]int{"access_denied": 403}),
	},
	{
		provider: "keycloak https://sso.acme.example things", scope: "openid offline_access", account: "Alice Example",
		server: flowtest.Config{ClientSecret: "ours"},
		metadata: `{"issuer":"https://sso.acme.example/realms/things",` +
			`"device_authorization_endpoint":"https://sso.acme.example/realms/things/protocol/openid-connect/auth/device",` +
			`"token_endpoint":"https://sso.acme.example/realms/things/protocol/openid-connect/token",` +
			`"revocation_endpoint":"https://sso.acme.example/realms/things/protocol/openid-connect/revoke"}`,
		places: map[string]string{
			"https://sso.acme.example/realms/things/protocol/openid-connect/auth/device": "/device_authorization",
			"https://sso.acme.example/realms/things/protocol/openid-connect/token":       "/token",
			"https://sso.acme.example/realms/things/protocol/openid-connect/revoke":      "/revoke",
		},
		edit: func(_ string, status int, m map[string]any) (int, map[string]any) {
			if m["access_token"] != nil {
				m["refresh_expires_in"], m["not-before-policy"] = 0, 0
			}
			return status, m
		},
	},
}

// roundTrip answers in the vendor's name.
func (v *vendor) roundTrip(w *world, inner http.RoundTripper) roundTripper {
	return func(r *http.Request) (*http.Response, error) {
		if v.places == nil {
			if r.URL.Host != "acme.eu.auth0.com" {
				w.Errorf("%s is somebody else's", r.URL)
			}
			return inner.RoundTrip(r)
		}
		if strings.Contains(r.URL.Path, "/.well-known/") {
			if v.metadata != "" && strings.HasSuffix(r.URL.Path, "/openid-configuration") {
				return jsonAnswer(r, 200, v.metadata), nil
			}
			return jsonAnswer(r, 404, `{"error":"not found"}`), nil
		}
		path := v.places[r.URL.String()]
		if path == "" {
			w.Errorf("%s is no place of this vendor", r.URL)
			return jsonAnswer(r, 404, ``), nil
		}
		ours := r.Clone(r.Context())
		ours.URL.Host, ours.URL.Path, ours.Host = "as.flowtest.example", path, ""
		res, err := inner.RoundTrip(ours)
		if err != nil || v.edit == nil {
			return res, err
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			return nil, err
		}
		m := map[string]any{}
		if len(b) > 0 && json.Unmarshal(b, &m) != nil {
			m = map[string]any{}
		}
		status, m := v.edit(path, res.StatusCode, m)
		return jsonAnswer(r, status, asJSON(m)), nil
	}
}

// A whole life with each preset: a code, a poll too soon for the server, approval,
// refreshes, logout.
func TestLoginWithEachPreset(t *testing.T) {
	covered := map[string]bool{}
	for _, v := range vendors {
		name, args, _ := strings.Cut(v.provider, " ")
		covered[name] = true
		t.Run(name, func(t *testing.T) {
			bubble(t, v.server, func(w *world) {
				cfg := flow.Config{
					ClientID: "demo-client", Scope: strings.Fields(v.scope), Store: w.store, Observer: w.observe,
					HTTP: v.roundTrip(w, w.as.RoundTripper()),
				}
				if v.server.ClientSecret != "" {
					cfg.Secret = secretOf(v.server.ClientSecret)
				}
				var err error
				if w.cfg, err = (flow.Provider{Name: name, Args: strings.Fields(args)}).Apply(cfg); err != nil {
					w.Fatal(err)
				}
				s, _ := w.run()
				st, err := s.Login(w.Context())
				if err != nil {
					w.Fatal(err)
				}
				w.as.Script(flowtest.Poll, flowtest.ErrorResponse(400, "slow_down"))
				w.sleep(16 * time.Second) // slow_down at 5 s, pending at 15 s
				w.wantCount(flowtest.Poll, 2)
				w.wantState(s, flow.StatePending)
				w.wantError(s, "", "")
				if err := w.as.Approve(st.Login.UserCode); err != nil {
					w.Fatal(err)
				}
				w.sleep(10 * time.Second)
				w.wantState(s, flow.StateAuthorized)
				first := w.wantToken(s)
				if a := s.Status().Account; a == nil || a.Name != v.account {
					w.Errorf("account %s", asJSON(a))
				}
				w.sleep(59 * time.Minute)
				if second := w.wantToken(s); first.Value().Equal(second.Value()) != v.once {
					w.Error("the token has not been refreshed, or there was nothing to do it with")
				}
				if v.once && !first.Expiry().IsZero() {
					w.Errorf("a token without an end ends at %s", first.Expiry())
				}
				if err := s.Logout(w.Context()); err != nil {
					w.Fatal(err)
				}
				for _, r := range w.as.Requests() {
					if r.Form.Has("code_challenge") != (r.Step == flowtest.Device && name == "keycloak") {
						w.Errorf("%s: %s", r.Step, r.Form.Encode())
					}
				}
			})
		})
	}
	for _, usage := range flow.Providers() {
		if name, _, _ := strings.Cut(usage, " "); !covered[name] {
			t.Errorf("nobody logs in with %s", name)
		}
	}
}

// What differs in how a login ends.
func TestHowLoginsEndWithPresets(t *testing.T) {
	for _, tc := range []struct {
		name  string
		step  flowtest.Step
		body  string
		code  int
		state flow.State
	}{
		{"microsoft: declined", flowtest.Poll, `{"error":"authorization_declined"}`, 400, flow.StateLoginRequired},
		{"github: denied", flowtest.Poll, `{"error":"access_denied"}`, 200, flow.StateLoginRequired},
		{"github: device flow switched off", flowtest.Device, `{"error":"device_flow_disabled"}`, 400, flow.StateMisconfigured},
		{"google: quota", flowtest.Device, `{"error_code":"rate_limit_exceeded"}`, 403, flow.StateLoginRequired},
		{"okta: rate limit", flowtest.Refresh, `{"error":"invalid_grant","error_description":"API call exceeded rate limit due to too many requests."}`, 429, flow.StateDegraded},
		{"keycloak: session gone", flowtest.Refresh, `{"error":"invalid_grant","error_description":"Session not active"}`, 400, flow.StateDegraded},
		{"github: refresh token used up", flowtest.Refresh, `{"error":"bad_refresh_token"}`, 200, flow.StateDegraded},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubble(t, flowtest.Config{}, func(w *world) {
				answer := flowtest.Response{Status: tc.code, Body: tc.body}
				if tc.step == flowtest.Refresh {
					s, _ := w.loggedIn()
					w.as.Script(tc.step, answer)
					if _, err := s.Refresh(w.Context()); err == nil {
						w.Error("no error")
					}
					w.wantState(s, tc.state)
					if dead := tc.code != 429; dead != (s.Status().Error.Action == flow.ActionReauthorize) {
						w.Errorf("%s", asJSON(s.Status().Error))
					}
					w.wantToken(s)
					return
				}
				w.as.Script(tc.step, answer)
				s, _ := w.run()
				_, _ = s.Login(w.Context())
				w.sleep(6 * time.Second)
				w.wantState(s, tc.state)
			})
		})
	}
}
