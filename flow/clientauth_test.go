package flow_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// assertions makes one for each audience that it is asked for, and remembers them.
type assertions struct {
	audiences []string
	err       error
}

func (a *assertions) sign(_ context.Context, audience string) (flow.Secret, error) {
	a.audiences = append(a.audiences, audience)
	return flow.NewSecret("signed-" + time.Now().String()), a.err
}

func TestAssertionAtEachRequest(t *testing.T) {
	var seen []string
	server := flowtest.Config{Flavour: flowtest.Auth0, VerifyAssertion: func(s string) error {
		for _, old := range seen {
			if old == s {
				return errors.New("this jti was used before")
			}
		}
		seen = append(seen, s)
		return nil
	}}
	bubble(t, server, func(w *world) {
		a := new(assertions)
		w.cfg.Issuer = strings.TrimSuffix(w.cfg.Issuer, "/")
		w.cfg.Assertion = a.sign
		s, _ := w.loggedIn()
		w.sleep(time.Second)
		if _, err := s.Refresh(w.Context()); err != nil {
			w.Fatal(err)
		}
		w.sleep(time.Second)
		if err := s.Logout(w.Context()); err != nil {
			w.Fatal(err)
		}
		w.wantCount(flowtest.Revoke, 1)
		for _, r := range w.as.Requests() {
			if r.Step != flowtest.Discovery && (r.Form.Get("client_id") != "demo-client" || r.Form.Get("client_assertion") == "" || r.Form.Has("client_secret")) {
				w.Errorf("%s: %s", r.Step, r.Form.Encode())
			}
		}
		for _, audience := range a.audiences {
			if audience != w.as.Issuer() || !strings.HasSuffix(audience, "/") {
				w.Errorf("an assertion for %q, not for the issuer as it writes itself", audience)
			}
		}
		requests := len(w.as.Requests())
		a.err = errors.New("client_key key.pem: no such file")
		if _, err := s.Login(w.Context()); err == nil || !strings.Contains(err.Error(), "key.pem") || len(w.as.Requests()) != requests {
			w.Errorf("%v", err)
		}
		w.wantState(s, flow.StateMisconfigured)
	})
}

func TestAssertionIsForTheTokenEndpointWithoutAnIssuer(t *testing.T) {
	bubble(t, flowtest.Config{VerifyAssertion: func(string) error { return nil }}, func(w *world) {
		a := new(assertions)
		w.cfg.Endpoints = flow.Endpoints{DeviceAuthorization: w.cfg.Issuer + "/device_authorization", Token: w.cfg.Issuer + "/token"}
		w.cfg.Assertion, w.cfg.Issuer = a.sign, ""
		w.loggedIn()
		for _, audience := range a.audiences {
			if audience != w.cfg.Endpoints.Token {
				w.Errorf("an assertion for %q", audience)
			}
		}
	})
}

// RFC 8705 §5: the aliases count for a client with a certificate and nobody else;
// what they do not name is where it is for all.
func TestCertificateHasEndpointsOfItsOwn(t *testing.T) {
	for _, auth := range []flow.ClientAuth{flow.ClientAuthNone, flow.ClientAuthTLS} {
		bubble(t, flowtest.Config{}, func(w *world) {
			const alias = "https://mtls.as.flowtest.example"
			inner, aliased := w.cfg.HTTP, 0
			w.cfg.HTTP = roundTripper(func(r *http.Request) (*http.Response, error) {
				if strings.HasPrefix(r.URL.String(), alias) {
					aliased++
					r = r.Clone(r.Context())
					r.URL.Host, r.Host = strings.TrimPrefix(w.cfg.Issuer, "https://"), ""
				}
				return inner.RoundTrip(r)
			})
			w.as.ScriptAlways(flowtest.Discovery, flowtest.Response{Pass: true, Edit: flowtest.EditJSON(func(m map[string]any) {
				m["mtls_endpoint_aliases"] = map[string]any{"token_endpoint": alias + "/token", "revocation_endpoint": alias + "/revoke"}
			})})
			w.cfg.ClientAuth = auth
			s, _ := w.loggedIn()
			if _, err := s.Refresh(w.Context()); err != nil {
				w.Fatal(err)
			}
			if err := s.Logout(w.Context()); err != nil {
				w.Fatal(err)
			}
			want := 0
			if auth == flow.ClientAuthTLS {
				want = w.as.Count(flowtest.Poll) + w.as.Count(flowtest.Refresh) + w.as.Count(flowtest.Revoke)
			}
			if aliased != want || w.as.Count(flowtest.Device) != 1 {
				w.Errorf("client_auth %s: %d requests to the aliases, want %d", auth, aliased, want)
			}
			for _, r := range w.as.Requests() {
				if r.Step != flowtest.Discovery && r.Form.Get("client_id") != "demo-client" {
					w.Errorf("%s without client_id", r.Step)
				}
			}
		})
	}
}

func TestAliasesInClearTextAreRefused(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		w.as.ScriptAlways(flowtest.Discovery, flowtest.Response{Pass: true, Edit: flowtest.EditJSON(func(m map[string]any) {
			m["mtls_endpoint_aliases"] = map[string]any{"token_endpoint": "http://mtls.as.flowtest.example/token"}
		})})
		w.cfg.ClientAuth = flow.ClientAuthTLS
		s, _ := w.run()
		if _, err := s.Login(w.Context()); err == nil || !strings.Contains(err.Error(), "clear text") {
			w.Errorf("%v", err)
		}
	})
}

// pkce is a server that binds the code to the client as RFC 7636 says.
func pkce(w *world, demand string, metadata bool) {
	if metadata {
		w.as.ScriptAlways(flowtest.Discovery, flowtest.Response{Pass: true, Edit: flowtest.EditJSON(func(m map[string]any) {
			m["code_challenge_methods_supported"] = []string{"plain", "S256"}
		})})
	}
	inner := w.cfg.HTTP
	w.cfg.HTTP = roundTripper(func(r *http.Request) (*http.Response, error) {
		body := readAll(w, r)
		if strings.HasSuffix(r.URL.Path, "/device_authorization") && demand != "" && !strings.Contains(body, "code_challenge=") {
			return jsonAnswer(r, 400, demand), nil
		}
		return inner.RoundTrip(r)
	})
}

func TestPKCEWhereTheServerAsksForIt(t *testing.T) {
	for name, tc := range map[string]struct {
		on       bool
		demand   string // what the device endpoint answers without a challenge
		metadata bool   // it names S256
		want     bool
		failed   string
	}{
		"not asked for":          {},
		"metadata alone":         {metadata: true},
		"by the preset":          {on: true, want: true},
		"in words":               {demand: `{"error":"invalid_request","error_description":"Missing parameter: code_challenge_method"}`, want: true},
		"in words of its own":    {demand: `{"error":"access_denied","error_description":"PKCE is required here"}`, want: true},
		"metadata and a refusal": {demand: `{"error":"invalid_request"}`, metadata: true, want: true},
		"refused for the client": {demand: `{"error":"unauthorized_client"}`, metadata: true, failed: "unauthorized_client"},
		"refused without words":  {demand: `{"error":"invalid_request"}`, failed: "invalid_request"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, flowtest.Config{}, func(w *world) {
				pkce(w, tc.demand, tc.metadata)
				w.cfg.PKCE = tc.on
				s, stop := w.run()
				st, err := s.Login(w.Context())
				if tc.failed != "" {
					if err == nil || !strings.Contains(err.Error(), tc.failed) {
						w.Errorf("%v", err)
					}
					return
				}
				if err != nil {
					w.Fatal(err)
				}
				stop() // the verifier must survive with the code
				s, _ = w.run()
				if err := w.as.Approve(st.Login.UserCode); err != nil {
					w.Fatal(err)
				}
				w.sleep(6 * time.Second)
				w.wantState(s, flow.StateAuthorized)
				var challenge, verifier string
				for _, r := range w.as.Requests() {
					switch r.Step {
					case flowtest.Device:
						challenge = r.Form.Get("code_challenge")
						if r.Form.Has("code_challenge") != (r.Form.Get("code_challenge_method") == "S256") || r.Form.Has("code_verifier") {
							w.Errorf("device request %s", r.Form.Encode())
						}
					case flowtest.Poll:
						verifier = r.Form.Get("code_verifier")
					case flowtest.Refresh:
						if r.Form.Has("code_verifier") {
							w.Error("a refresh has a verifier")
						}
					}
				}
				if tc.want != (challenge != "") || tc.want != (verifier != "") || tc.want && (s256(verifier) != challenge || len(verifier) < 43) {
					w.Errorf("challenge %q, verifier %q", challenge, verifier)
				}
			})
		})
	}
}

func TestExtraHeaders(t *testing.T) {
	value := func(s string) func(context.Context) (flow.Secret, error) {
		return func(context.Context) (flow.Secret, error) { return flow.NewSecret(s), nil }
	}
	bubble(t, flowtest.Config{}, func(w *world) {
		w.cfg.Headers = map[string]func(context.Context) (flow.Secret, error){"x-gateway": value("open sesame"), "User-Agent": value("till/7"), "Authorization": value("Gate x")}
		inner := w.cfg.HTTP
		w.cfg.HTTP = roundTripper(func(r *http.Request) (*http.Response, error) {
			if userinfo := strings.HasSuffix(r.URL.Path, "/userinfo"); strings.HasPrefix(r.Header.Get("Authorization"), "Bearer ") != userinfo ||
				!userinfo && r.Header.Get("Authorization") != "Gate x" {
				w.Errorf("%s: %q", r.URL.Path, r.Header["Authorization"])
			} else if !userinfo {
				r.Header.Del("Authorization") // the gate takes it
			}
			return inner.RoundTrip(r)
		})
		w.as.Script(flowtest.Poll, member("id_token", nil)) // so that userinfo is asked
		s, _ := w.loggedIn()
		w.sleep(0)
		if _, err := s.Refresh(w.Context()); err != nil {
			w.Fatal(err)
		}
		refused := flowtest.Response{Status: 400, Body: `{"error":"invalid_request","error_description":"open sesame is no key"}`}
		w.as.Script(flowtest.Refresh, refused)
		if _, err := s.Refresh(w.Context()); err == nil || strings.Contains(err.Error(), "sesame") {
			w.Errorf("%v", err)
		}
		seen := map[flowtest.Step]bool{}
		for _, r := range w.as.Requests() {
			seen[r.Step] = true
			if r.Header.Get("X-Gateway") != "open sesame" || r.Header.Get("User-Agent") != "till/7" {
				w.Errorf("%s: %v", r.Step, r.Header)
			}
		}
		if !seen[flowtest.UserInfo] || !seen[flowtest.Discovery] || !seen[flowtest.Device] {
			w.Errorf("only %v were seen", seen)
		}
		requests := len(w.as.Requests())
		for bad, text := range map[string]string{"a\r\nX-Injected: b": "control character", "": ""} {
			cfg := w.cfg
			cfg.Headers = map[string]func(context.Context) (flow.Secret, error){"X-Gateway": value(bad)}
			if text == "" {
				cfg.Headers["X-Gateway"] = func(context.Context) (flow.Secret, error) { return flow.Secret{}, errors.New("no such file") }
				text = "header X-Gateway: no such file"
			}
			if err := s.SetConfig(cfg); err != nil {
				w.Fatal(err)
			}
			w.sleep(0)
			if _, err := s.Refresh(w.Context()); err == nil || !strings.Contains(err.Error(), text) || strings.Contains(err.Error(), "Injected") {
				w.Errorf("%v", err)
			}
		}
		if len(w.as.Requests()) != requests {
			w.Error("a request went out without its header")
		}
	})
}

func TestRevocationIsBestEffort(t *testing.T) {
	for name, answer := range map[string]flowtest.Response{
		"text":     {Status: 200, Body: "OK", Header: http.Header{"Content-Type": {"text/plain"}}},
		"empty":    {Status: 204},
		"400":      {Status: 400, Body: `{"error":"unsupported_token_type"}`},
		"401":      {Status: 401},
		"no reply": {Drop: true},
	} {
		for _, auth := range []flow.ClientAuth{flow.ClientAuthNone, flow.ClientAuthPost, flow.ClientAuthBasic, flow.ClientAuthPrivateKeyJWT, flow.ClientAuthTLS} {
			t.Run(name+" "+string(auth), func(t *testing.T) {
				server := flowtest.Config{}
				switch auth {
				case flow.ClientAuthPost, flow.ClientAuthBasic:
					server.ClientSecret = "s3cret"
				case flow.ClientAuthPrivateKeyJWT:
					server.VerifyAssertion = func(string) error { return nil }
				}
				bubble(t, server, func(w *world) {
					w.cfg.ClientAuth = auth
					if server.ClientSecret != "" {
						w.cfg.Secret = func(context.Context) (flow.Secret, error) { return flow.NewSecret("s3cret"), nil }
					}
					if server.VerifyAssertion != nil {
						w.cfg.Assertion = new(assertions).sign
					}
					w.as.ScriptAlways(flowtest.Revoke, answer)
					s, _ := w.loggedIn()
					_ = s.Logout(w.Context()) // what it says is tested elsewhere
					w.wantState(s, flow.StateLoginRequired)
					w.wantCount(flowtest.Revoke, 1)
					w.login(s) // and nothing is left behind
				})
			})
		}
	}
}

// Keycloak's refresh token can end before the access token does.
func TestARefreshComesBeforeTheRefreshTokenEnds(t *testing.T) {
	bubble(t, flowtest.Config{AccessTokenLifetime: 10 * time.Hour}, func(w *world) {
		w.as.ScriptAlways(flowtest.Poll, member("refresh_expires_in", 1800))
		w.as.ScriptAlways(flowtest.Refresh, member("refresh_expires_in", 0))
		s, _ := w.loggedIn()
		w.sleep(20 * time.Minute)
		w.wantCount(flowtest.Refresh, 0)
		w.sleep(6 * time.Minute)
		w.wantCount(flowtest.Refresh, 1)
		w.wantToken(s)
		w.sleep(2 * time.Hour) // its successor has no end
		w.wantCount(flowtest.Refresh, 1)
	})
}

// A server says no more than invalid_client to a secret in the wrong place.
func TestARefusedClientIsToldOfTheOtherPlaceForItsSecret(t *testing.T) {
	const (
		toHeader = "the secret was sent in the body; if the server expects it in the header, write 'client_auth basic'"
		toBody   = "the secret was sent in the header; if the server expects it in the body, write 'client_auth post'"
	)
	for name, tc := range map[string]struct {
		auth    flow.ClientAuth
		code    string
		status  int
		methods any // of the metadata
		hint    string
	}{
		"post":                             {"", "invalid_client", 401, nil, toHeader},
		"basic":                            {flow.ClientAuthBasic, "invalid_client", 400, nil, toBody},
		"no secret":                        {flow.ClientAuthNone, "invalid_client", 401, nil, ""},
		"GitHub":                           {"", "incorrect_client_credentials", 200, nil, toHeader},
		"Keycloak":                         {flow.ClientAuthBasic, "unauthorized_client", 401, nil, toBody},
		"it is about the grant":            {"", "unauthorized_client", 400, nil, ""},
		"it is about the scope":            {"", "invalid_scope", 400, nil, ""},
		"metadata with both":               {"", "invalid_client", 401, []string{"client_secret_post", "client_secret_basic"}, toHeader},
		"metadata with the other":          {"", "invalid_client", 401, []string{"none", "client_secret_basic"}, "the server's metadata wants it in the header: write 'client_auth basic'"},
		"metadata with the other, to body": {flow.ClientAuthBasic, "invalid_client", 401, []string{"client_secret_post"}, "wants it in the body: write 'client_auth post'"},
		"metadata without the other":       {"", "invalid_client", 401, []string{"client_secret_post"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, flowtest.Config{ClientSecret: "s3cr3t"}, func(w *world) {
				w.as.ScriptAlways(flowtest.Discovery, flowtest.Response{Pass: true, Edit: flowtest.EditJSON(func(m map[string]any) {
					delete(m, "token_endpoint_auth_methods_supported")
					if tc.methods != nil {
						m["token_endpoint_auth_methods_supported"] = tc.methods
					}
				})})
				w.as.Script(flowtest.Device, flowtest.ErrorResponse(tc.status, tc.code))
				w.cfg.ClientAuth = tc.auth
				if tc.auth != flow.ClientAuthNone {
					w.cfg.Secret = func(context.Context) (flow.Secret, error) { return flow.NewSecret("s3cr3t"), nil }
				}
				s, _ := w.run()
				_, err := s.Login(w.Context())
				w.wantError(s, tc.code, flow.ActionFixConfiguration)
				for _, text := range []string{err.Error(), s.Status().Error.Description} {
					if !strings.Contains(text, tc.hint) || strings.Contains(text, "client_auth") != (tc.hint != "") || strings.Contains(text, "s3cr3t") {
						w.Error(text)
					}
				}
				if got := w.as.Count(flowtest.Device); got != 1 {
					w.Errorf("%d attempts: the other place is for people to try", got)
				}
			})
		})
	}
}
