package flow_test

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// moves gives the token endpoint a second address, and counts what is sent there.
func moves(w *world) (moved string, requests func() int) {
	const host = "moved.as.flowtest.example"
	inner, n := w.cfg.HTTP, 0
	issuer := strings.TrimPrefix(w.cfg.Issuer, "https://")
	w.cfg.HTTP = roundTripper(func(r *http.Request) (*http.Response, error) {
		if r.URL.Host == host {
			n++
			r = r.Clone(r.Context())
			r.URL.Host, r.Host = issuer, ""
		}
		return inner.RoundTrip(r)
	})
	return "https://" + host + "/token", func() int { return n }
}

func (w *world) swap(s *flow.Session) {
	w.Helper()
	if err := s.SetConfig(w.cfg); err != nil {
		w.Fatal(err)
	}
	w.sleep(0)
}

func (w *world) refresh(s *flow.Session) (took time.Duration) {
	w.Helper()
	began := time.Now()
	if _, err := s.Refresh(w.Context()); err != nil {
		w.Fatal(err)
	}
	return time.Since(began) - flow.Settling
}

func TestMetadataAreAskedForAgainAfterAReload(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		moved, requests := moves(w)
		s, _ := w.loggedIn()
		w.sleep(10 * time.Second)
		w.as.ScriptAlways(flowtest.Discovery, member("token_endpoint", moved))
		w.refresh(s)
		w.wantCount(flowtest.Discovery, 1)
		w.swap(s)
		w.wantCount(flowtest.Discovery, 1) // nobody has needed them yet
		w.refresh(s)
		w.refresh(s)
		w.wantCount(flowtest.Discovery, 2)
		if requests() != 2 {
			w.Errorf("%d requests to the new place, want 2", requests())
		}
	})
}

func TestMetadataThatFailAfterAReloadAreInNobodysWay(t *testing.T) {
	for name, tc := range map[string]struct {
		answer flowtest.Response
		delay  time.Duration
		each   int // requests
	}{
		"no answer":       {flowtest.Response{Hang: true}, 5 * time.Second, 1},
		"an outage":       {flowtest.Response{Status: 503}, 0, 2},
		"no device flow":  {member("device_authorization_endpoint", nil), 0, 2},
		"another issuer":  {member("issuer", "https://evil.example"), 0, 2},
		"this very host":  {member("token_endpoint", "http://127.0.0.1:25/"), 0, 2},
		"no longer there": {flowtest.Response{Status: 404}, 0, 2},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, flowtest.Config{}, func(w *world) {
				s, _ := w.loggedIn()
				w.sleep(10 * time.Second)
				w.as.ScriptAlways(flowtest.Discovery, tc.answer)
				w.swap(s)
				if took := w.refresh(s); took != tc.delay {
					w.Errorf("the refresh after the reload took %v, want %v", took, tc.delay)
				}
				w.wantCount(flowtest.Discovery, 1+tc.each)
				w.sleep(30 * time.Second)
				if took := w.refresh(s); took != 0 {
					w.Errorf("the next one took %v", took)
				}
				w.wantCount(flowtest.Discovery, 1+tc.each)
				// A person who wants a code is a reason to try again.
				if _, err := s.Login(w.Context()); err != nil {
					w.Fatal(err)
				}
				w.wantCount(flowtest.Discovery, 1+2*tc.each)
				w.sleep(55 * time.Second)
				w.as.Unscript(flowtest.Discovery)
				w.sleep(6 * time.Second)
				w.refresh(s)
				w.refresh(s)
				w.wantCount(flowtest.Discovery, 2+2*tc.each)
				w.wantToken(s)
			})
		})
	}
}

// What was good in clear text is not, once insecure_http is gone.
func TestOldMetadataInClearTextAreNotUsedWithoutInsecureHTTP(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		inner := w.cfg.HTTP
		w.cfg.HTTP = roundTripper(func(r *http.Request) (*http.Response, error) {
			if r.URL.Scheme == "http" {
				if !w.cfg.InsecureHTTP {
					w.Error("a secret in clear text")
				}
				r = r.Clone(r.Context())
				r.URL.Scheme = "https"
			}
			return inner.RoundTrip(r)
		})
		w.cfg.InsecureHTTP = true
		w.as.ScriptAlways(flowtest.Discovery, member("token_endpoint", strings.Replace(w.cfg.Issuer, "https", "http", 1)+"/token"))
		s, _ := w.loggedIn()
		w.cfg.InsecureHTTP = false
		w.swap(s)
		if _, err := s.Refresh(w.Context()); err == nil || !strings.Contains(err.Error(), "insecure_http") {
			w.Errorf("%v", err)
		}
	})
}

func TestKindredSessionsAskForTheMetadataOnceAfterAReload(t *testing.T) {
	bubble(t, flowtest.Config{AutoApprove: true}, func(w *world) {
		kin := new(flow.Kin)
		cfgs, all := make([]flow.Config, 20), make([]*flow.Session, 20)
		for i := range all {
			w.kindred(kin, i)
			cfgs[i] = w.cfg
			all[i], _ = w.run()
			all[i].Demand()
		}
		w.sleep(20 * time.Second)
		w.wantCount(flowtest.Discovery, 1)
		for i, s := range all {
			w.cfg = cfgs[i]
			w.swap(s)
			w.refresh(s) // while others have not been swapped
		}
		w.wantCount(flowtest.Discovery, 2)
	})
}

// places are the endpoints that a login needs.
func (w *world) places() flow.Endpoints {
	return flow.Endpoints{DeviceAuthorization: w.cfg.Issuer + "/device_authorization", Token: w.cfg.Issuer + "/token"}
}

func TestDeadMetadataDelayNothingThatIsConfigured(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		w.as.ScriptAlways(flowtest.Discovery, flowtest.Response{Hang: true})
		w.cfg.Endpoints = w.places()
		s, _ := w.run()
		began := time.Now()
		if _, err := s.Login(w.Context()); err != nil || time.Since(began) != 0 {
			w.Fatalf("a code after %v, %v", time.Since(began), err)
		}
		w.as.ApproveAll()
		w.sleep(5 * time.Second)
		w.wantToken(s)
		if took := w.refresh(s); took != 0 {
			w.Errorf("a refresh took %v", took)
		}
		w.wantCount(flowtest.Discovery, 0)
		// Where to revoke, only the metadata know.
		if err := s.Logout(w.Context()); err == nil || !strings.Contains(err.Error(), "discovery") {
			w.Errorf("logout: %v", err)
		}
		w.wantCount(flowtest.Revoke, 0)
	})
}

func TestMetadataBringWhatIsNotConfigured(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		w.cfg.Endpoints = w.places()
		w.as.Script(flowtest.Poll, member("id_token", nil)) // so that userinfo is asked
		s, _ := w.loggedIn()
		w.sleep(time.Second)
		if a := s.Status().Account; a == nil || a.Name == "" {
			w.Errorf("account %s", asJSON(a))
		}
		if err := s.Logout(w.Context()); err != nil {
			w.Fatal(err)
		}
		w.wantCount(flowtest.Revoke, 1)
		w.wantCount(flowtest.Discovery, 1)
	})
}

// An assertion names the issuer as it writes itself; without its word, as it is configured.
func TestDeadMetadataDelayAnAssertionOnceAMinute(t *testing.T) {
	bubble(t, flowtest.Config{VerifyAssertion: func(string) error { return nil }}, func(w *world) {
		w.as.ScriptAlways(flowtest.Discovery, flowtest.Response{Hang: true})
		a := new(assertions)
		w.cfg.Endpoints, w.cfg.Assertion = w.places(), a.sign
		s, _ := w.run()
		began := time.Now()
		if _, err := s.Login(w.Context()); err != nil || time.Since(began) != 5*time.Second {
			w.Fatalf("a code after %v, %v", time.Since(began), err)
		}
		w.as.ApproveAll()
		w.sleep(5 * time.Second)
		w.wantToken(s)
		if took := w.refresh(s); took != 0 {
			w.Errorf("a refresh took %v", took)
		}
		w.sleep(time.Minute)
		if took := w.refresh(s); took != 5*time.Second {
			w.Errorf("a refresh a minute later took %v", took)
		}
		w.wantCount(flowtest.Discovery, 2)
		for _, audience := range a.audiences {
			if audience != w.cfg.Issuer {
				w.Errorf("an assertion for %q", audience)
			}
		}
	})
}

func TestMetadataHelpWhereEndpointsAreConfigured(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		w.cfg.Endpoints = w.places()
		pkce(w, `{"error":"invalid_request"}`, true)
		s, _ := w.loggedIn()
		w.wantToken(s)
		w.wantCount(flowtest.Discovery, 1)
	})
	bubble(t, flowtest.Config{ClientSecret: "s3cr3t"}, func(w *world) {
		w.cfg.Endpoints = w.places()
		w.cfg.Secret = func(context.Context) (flow.Secret, error) { return flow.NewSecret("s3cr3t"), nil }
		w.as.ScriptAlways(flowtest.Discovery, member("token_endpoint_auth_methods_supported", []string{"client_secret_basic"}))
		w.as.Script(flowtest.Device, flowtest.ErrorResponse(401, "invalid_client"))
		s, _ := w.run()
		if _, err := s.Login(w.Context()); err == nil || !strings.Contains(err.Error(), "metadata wants it in the header: write 'client_auth basic'") {
			w.Errorf("%v", err)
		}
	})
}
