package flow_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

func TestClientAuthentication(t *testing.T) {
	const id, secret = "id:/%+&ü x", "s3:/%+&ü x="
	for _, auth := range []flow.ClientAuth{flow.ClientAuthNone, flow.ClientAuthPost, flow.ClientAuthBasic} {
		t.Run(string(auth), func(t *testing.T) {
			server := flowtest.Config{ClientID: id, ClientSecret: secret}
			if auth == flow.ClientAuthNone {
				server.ClientSecret = ""
			}
			bubble(t, server, func(w *world) {
				w.cfg.ClientID, w.cfg.ClientAuth = id, auth
				if auth != flow.ClientAuthNone {
					w.cfg.Secret = func(context.Context) (flow.Secret, error) { return flow.NewSecret(secret), nil }
				}
				s, _ := w.loggedIn()
				if _, err := s.Refresh(w.Context()); err != nil {
					w.Fatal(err)
				}
				if err := s.Logout(w.Context()); err != nil {
					w.Fatal(err)
				}
				w.wantCount(flowtest.Revoke, 1)
				for _, r := range w.as.Requests() {
					if r.Step == flowtest.Discovery {
						continue
					}
					_, basic := r.Header["Authorization"]
					if r.Form.Get("client_id") != id || r.Form.Has("client_secret") != (auth == flow.ClientAuthPost) || basic != (auth == flow.ClientAuthBasic) {
						w.Errorf("%s: %v, Authorization: %v", r.Step, r.Form.Encode(), basic)
					}
				}
			})
		})
	}
}

func TestSecretIsReadAtEachRequest(t *testing.T) {
	bubble(t, flowtest.Config{ClientSecret: "one"}, func(w *world) {
		secret, err := "one", error(nil)
		w.cfg.Secret = func(context.Context) (flow.Secret, error) { return flow.NewSecret(secret), err }
		s, _ := w.loggedIn()
		w.as.SetConfig(func(c *flowtest.Config) { c.ClientSecret = "two" })
		secret = "two"
		if _, err := s.Refresh(w.Context()); err != nil {
			w.Fatal(err)
		}
		requests := len(w.as.Requests())
		for _, secret = range []string{"", "unreadable"} {
			if secret != "" {
				err = errors.New("no such file")
			}
			if _, err := s.Refresh(w.Context()); err == nil || !strings.Contains(err.Error(), "client secret") {
				w.Fatalf("%v", err)
			}
			w.wantState(s, flow.StateMisconfigured)
		}
		if len(w.as.Requests()) != requests {
			w.Fatal("a request went out without its secret")
		}
	})
}

func TestParametersOfTheConfiguration(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		w.cfg.Params = url.Values{"organization": {"acme"}}
		w.cfg.Resource = []string{"https://one.example/", "https://two.example/"}
		s, _ := w.loggedIn()
		if _, err := s.Refresh(w.Context()); err != nil {
			w.Fatal(err)
		}
		for _, r := range w.as.Requests() {
			if r.Step == flowtest.Discovery {
				continue
			}
			want := w.cfg.Resource
			if r.Step != flowtest.Device {
				want = want[:1] // some servers use up a code or a token and then refuse a second
			}
			if r.Form.Get("organization") != "acme" || !slices.Equal(r.Form["resource"], want) {
				w.Errorf("%s: %v", r.Step, r.Form.Encode())
			}
		}
	})
}

func TestDiscovery(t *testing.T) {
	document := func(edit func(map[string]any)) flowtest.Response {
		return flowtest.Response{Pass: true, Edit: flowtest.EditJSON(edit)}
	}
	html := flowtest.Response{Body: "<html>", Header: http.Header{"Content-Type": {"text/html"}}}
	absent := flowtest.Response{Status: 404}
	outage := flowtest.Response{Status: 503}
	wrong := document(func(m map[string]any) { m["issuer"] = "https://evil.example" })
	for name, tc := range map[string]struct {
		answers []flowtest.Response // of the two places
		code    string              // "" means that the login starts
		text    string
		action  flow.Action
	}{
		"slash":             {[]flowtest.Response{document(func(m map[string]any) { m["issuer"] = m["issuer"].(string) + "/" })}, "", "", ""},
		"second place":      {[]flowtest.Response{absent}, "", "", ""},
		"page first":        {[]flowtest.Response{html}, "", "", ""},
		"mismatch":          {[]flowtest.Response{wrong, absent}, "configuration", "evil.example", flow.ActionFixConfiguration},
		"no issuer":         {[]flowtest.Response{document(func(m map[string]any) { delete(m, "issuer") }), absent}, "configuration", "issuer", flow.ActionFixConfiguration},
		"case":              {[]flowtest.Response{document(func(m map[string]any) { m["issuer"] = "https://AS.flowtest.example" }), absent}, "configuration", "issuer", flow.ActionFixConfiguration},
		"mismatch, outage":  {[]flowtest.Response{wrong, outage}, "configuration", "evil.example", flow.ActionFixConfiguration},
		"clear text":        {[]flowtest.Response{document(func(m map[string]any) { m["token_endpoint"] = "http://as.flowtest.example/token" }), absent}, "configuration", "insecure_http", flow.ActionFixConfiguration},
		"redirect":          {[]flowtest.Response{{Status: 302, Header: http.Header{"Location": {"https://evil.example/"}}}, absent}, "configuration", "redirect", flow.ActionFixConfiguration},
		"404":               {[]flowtest.Response{absent, absent}, "configuration", "no metadata", flow.ActionFixConfiguration},
		"page":              {[]flowtest.Response{html, html}, "configuration", "not a JSON document", flow.ActionFixConfiguration},
		"forbidden, outage": {[]flowtest.Response{{Status: 403}, outage}, "temporarily_unavailable", "", flow.ActionRetry},
		"outage":            {[]flowtest.Response{outage, outage}, "temporarily_unavailable", "", flow.ActionRetry},
		"no device flow": {[]flowtest.Response{document(func(m map[string]any) { delete(m, "device_authorization_endpoint") }), absent}, "configuration",
			"enable the device flow", flow.ActionFixConfiguration},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, flowtest.Config{}, func(w *world) {
				w.as.Script(flowtest.Discovery, tc.answers...)
				s, _ := w.run()
				st, err := s.Login(w.Context())
				if tc.code == "" {
					if err != nil {
						w.Fatal(err)
					}
					return
				}
				if err == nil || st.Error == nil || st.Error.Code != tc.code || st.Error.Action != tc.action || !strings.Contains(st.Error.Description, tc.text) {
					w.Fatalf("%v: %s, want %q", err, asJSON(st), tc.text)
				}
				w.wantCount(flowtest.Device, 0)
				w.login(s) // as soon as the server has been put right
				w.sleep(10 * time.Hour)
				if n := w.as.Count(flowtest.Discovery); n > 4 {
					w.Fatalf("%d requests for metadata that does not change", n)
				}
			})
		})
	}
}

func TestMetadataIsACourtesyWhereEndpointsAreConfigured(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		w.as.ScriptAlways(flowtest.Discovery, flowtest.Response{Drop: true})
		w.cfg.Endpoints = flow.Endpoints{DeviceAuthorization: w.cfg.Issuer + "/device_authorization", Token: w.cfg.Issuer + "/token"}
		s, _ := w.loggedIn()
		w.wantToken(s)
	})
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	for _, step := range []flowtest.Step{flowtest.Discovery, flowtest.Device, flowtest.Poll, flowtest.Refresh, flowtest.Revoke, flowtest.UserInfo} {
		for _, status := range []int{301, 302, 303, 307, 308} {
			t.Run(fmt.Sprint(step, " ", status), func(t *testing.T) {
				bubble(t, flowtest.Config{}, func(w *world) {
					inner := w.cfg.HTTP
					w.cfg.HTTP = roundTripper(func(r *http.Request) (*http.Response, error) {
						if r.URL.Host == "evil.example" {
							w.Error("a redirect was followed")
						}
						return inner.RoundTrip(r)
					})
					redirect := flowtest.Response{Status: status, Header: http.Header{"Location": {"https://evil.example/x"}}}
					w.as.Script(step, redirect, redirect)
					if step == flowtest.UserInfo {
						w.as.Script(flowtest.Poll, member("id_token", nil)) // else it is not asked
					}
					s, _ := w.run()
					s.Demand()
					w.sleep(0)
					w.as.ApproveAll()
					w.sleep(time.Minute)
					_, _ = s.Refresh(w.Context())
					_ = s.Logout(w.Context())
					if w.as.Count(step) == 0 {
						w.Error("nothing was redirected")
					}
				})
			})
		}
	}
}

// endless is a good answer without an end.
type endless struct{ read int }

func (e *endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	if e.read == 0 {
		copy(p, `{"access_token":"x"}`)
	}
	e.read += len(p)
	return len(p), nil
}

func (e *endless) Close() error { return nil }

// slow gives a byte a second, until the request is over.
type slow struct{ ctx context.Context }

func (s slow) Read(p []byte) (int, error) {
	select {
	case <-time.After(time.Second):
		p[0] = ' '
		return 1, nil
	case <-s.ctx.Done():
		return 0, s.ctx.Err()
	}
}

func (s slow) Close() error { return nil }

func TestEndlessAnswersAreBounded(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		s, _ := w.loggedIn()
		token := w.wantToken(s)
		var body io.ReadCloser
		cfg := w.cfg
		cfg.HTTP = roundTripper(func(r *http.Request) (*http.Response, error) {
			if body == nil {
				return &http.Response{StatusCode: 200, Body: slow{r.Context()}}, nil
			}
			return &http.Response{StatusCode: 200, Body: body}, nil
		})
		if err := s.SetConfig(cfg); err != nil {
			w.Fatal(err)
		}
		flood := new(endless)
		body = flood
		if _, err := s.Refresh(w.Context()); err == nil || flood.read > 2<<20 {
			w.Fatalf("%v after %d bytes", err, flood.read)
		}
		body = nil
		begin := time.Now()
		if _, err := s.Refresh(w.Context()); err == nil || time.Since(begin) != time.Minute+flow.Settling {
			w.Fatalf("%v after %v", err, time.Since(begin))
		}
		if s.Current() != token {
			w.Fatal("the token in use was disturbed")
		}
		w.wantState(s, flow.StateDegraded)
	})
}

func TestAccountFromUserInfo(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		w.as.Script(flowtest.Poll, flowtest.Response{Pass: true, Edit: flowtest.EditJSON(func(m map[string]any) { delete(m, "id_token") })})
		w.as.Script(flowtest.UserInfo, flowtest.Response{Pass: true, Delay: time.Second})
		s, _ := w.loggedIn()
		if s.Status().Account != nil {
			w.Fatal("the answer came early")
		}
		w.sleep(time.Second)
		if a := s.Status().Account; a == nil || a.Name != "Alice Example" || a.Issuer != w.as.Issuer() {
			w.Fatalf("account %s", asJSON(a))
		}
		w.wantCount(flowtest.UserInfo, 1)
		w.mu.Lock()
		defer w.mu.Unlock()
		if last := w.events[len(w.events)-1]; last.Kind != flow.EventIdentified || last.Status.Account == nil {
			w.Errorf("the last event is %s", last.Kind)
		}
	})
}

func TestAccountThatIDTokenNamesBySubjectAlone(t *testing.T) {
	thin := func(subject string) string {
		part := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
		return part(`{"alg":"none"}`) + "." + part(`{"sub":"`+subject+`"}`) + "."
	}
	for subject, name := range map[string]string{"auth0|alice": "Alice Example", "auth0|bob": ""} {
		bubble(t, flowtest.Config{}, func(w *world) {
			w.as.Script(flowtest.Poll, flowtest.Response{Pass: true, Edit: flowtest.EditJSON(func(m map[string]any) { m["id_token"] = thin(subject) })})
			s, _ := w.loggedIn()
			w.sleep(time.Second)
			if a := s.Status().Account; a == nil || a.Subject != subject || a.Name != name {
				w.Fatalf("%s: account %s", subject, asJSON(a))
			}
		})
	}
}
