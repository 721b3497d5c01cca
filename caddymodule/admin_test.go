package caddymodule

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// adminCall asks the admin API as Caddy's admin server would.
func adminCall(ctx context.Context, method, path string) (int, http.Header, string) {
	w := httptest.NewRecorder()
	r := httptest.NewRequest(method, path, nil).WithContext(ctx)
	mux := http.NewServeMux()
	for _, route := range new(Admin).Routes() {
		mux.HandleFunc(route.Pattern, func(w http.ResponseWriter, r *http.Request) {
			if err := route.Handler.ServeHTTP(w, r); err != nil {
				status := http.StatusInternalServerError
				if api, ok := errors.AsType[caddy.APIError](err); ok {
					status = api.HTTPStatus
				}
				w.WriteHeader(status)
				_, _ = w.Write([]byte(err.Error()))
			}
		})
	}
	mux.ServeHTTP(w, r)
	return w.Code, w.Header(), w.Body.String()
}

func TestAdminAPI(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	const other = "device_flow other {\n issuer ISSUER\n client_id nobody\n}"
	x.load(x.config(t.Name(), "device_flow acme {\n LOGIN\n}\n"+other))
	await(t, x.session("acme").Session, flow.StateLoginRequired)
	for _, c := range []struct {
		name, method, path string
		before             func()
		status             int
		has                string
	}{
		{"the list", "GET", "/device_flow/sessions", nil, 200, `"session":"acme"`},
		{"the list has all", "GET", "/device_flow/sessions", nil, 200, `"session":"other"`},
		{"one", "GET", "/device_flow/sessions/acme", nil, 200, `"state":"login_required"`},
		{"one that is not there", "GET", "/device_flow/sessions/nobody", nil, 404, `there is no session "nobody"; GET /device_flow/sessions lists them`},
		{"none", "GET", "/device_flow/sessions/", nil, 404, `there is no session ""`},
		{"an unknown action", "POST", "/device_flow/sessions/acme/explode", nil, 404, `there is no action "explode"; use login, refresh or logout`},
		{"a refresh without a login", "POST", "/device_flow/sessions/acme/refresh", nil, 409, "session acme: there is no refresh token; log in first"},
		{"a login by GET", "GET", "/device_flow/sessions/acme/login", nil, 405, "use POST"},
		{"a list by POST", "POST", "/device_flow/sessions", nil, 405, "use GET"},
		{"a status by DELETE", "DELETE", "/device_flow/sessions/acme", nil, 405, "use GET"},
		{"a login", "POST", "/device_flow/sessions/acme/login", nil, 200, `"state":"pending"`},
		{"a login again", "POST", "/device_flow/sessions/acme/login", nil, 200, `"state":"pending"`},
		{"a refresh", "POST", "/device_flow/sessions/acme/refresh", func() {
			x.as.ApproveAll()
			await(t, x.session("acme").Session, flow.StateAuthorized)
		}, 200, `"state":"authorized"`},
		{"a logout", "POST", "/device_flow/sessions/acme/logout", nil, 200, `"state":"login_required"`},
		{"a login that the server refuses", "POST", "/device_flow/sessions/other/login", nil, 409, "session other: device authorization: invalid_client"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.before != nil {
				c.before()
			}
			status, header, body := adminCall(t.Context(), c.method, c.path)
			if status != c.status || !strings.Contains(body, c.has) {
				t.Errorf("%d %s\nwant %d %s", status, body, c.status, c.has)
			}
			if (status == 200) != (header.Get("Content-Type") == "application/json" && header.Get("Cache-Control") == "no-store") {
				t.Errorf("the header is %v", header)
			}
			if (status == 405) != (header.Get("Allow") != "") {
				t.Errorf("Allow is %q", header.Get("Allow"))
			}
		})
	}
	if st := x.as.Stats(); st.DeviceRequests != 2 || st.Refreshes != 1 || st.Revocations != 1 {
		t.Errorf("%d device requests, %d refreshes, %d revocations; want 2, 1, 1", st.DeviceRequests, st.Refreshes, st.Revocations)
	}
}

func TestAdminListIsAnArrayWithoutSessions(t *testing.T) {
	if status, _, body := adminCall(t.Context(), "GET", adminPath); status != 200 || strings.TrimSpace(body) != "[]" {
		t.Errorf("%d %s", status, body)
	}
}

func TestALogoutTellsWhenTheRevocationFails(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	x.load(x.config(t.Name(), "device_flow acme {\n LOGIN\n}"))
	x.login("acme")
	x.as.Script(flowtest.Revoke, flowtest.ErrorResponse(503, "server_error"))
	status, header, body := adminCall(t.Context(), "POST", adminPath+"/acme/logout")
	if status != 200 || !strings.Contains(body, `"state":"login_required"`) || !strings.Contains(header.Get("Warning"), "did not confirm") {
		t.Errorf("%d %v %s", status, header, body)
	}

	// A login that is not forgotten is no success.
	s := x.session("acme")
	s.stop()
	receive(t, s.ended, "the session to end")
	if status, header, body := adminCall(t.Context(), "POST", adminPath+"/acme/logout"); status == 200 || header.Get("Warning") != "" {
		t.Errorf("of a session that has ended: %d %v %s", status, header, body)
	}
}

// During a reload two sessions of one name run for a moment.
func TestAdminShowsTheNewerOfTwoSessions(t *testing.T) {
	as := flowtest.New(flowtest.Config{})
	defer as.Close()
	var app App
	for i := range 20 {
		cfg := flow.Config{Name: "acme", Issuer: as.Issuer(), ClientID: strings.Repeat("x", i+1), HTTP: as.RoundTripper()}
		r, err := start(&app, cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := r.release(&app, poolKey{cfg.Name, cfg.Fingerprint()}); err != nil {
				t.Error(err)
			}
		}()
		if runningSession("acme") != r {
			t.Fatal("the older session is shown")
		}
	}
}

// Nothing that the admin API shows is a secret (S50 of the scorecard); neither is anything that Caddy logs meanwhile.
func TestNoSecretInAdminAnswersAndLogs(t *testing.T) {
	x := newRig(t, flowtest.Config{ClientSecret: "s3cr3t-of-the-client"})
	if err := os.WriteFile(filepath.Join(x.dir, "secret"), []byte("s3cr3t-of-the-client\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	x.load(x.config(t.Name(), "", "a", "log {\n output memory "+t.Name()+"\n}\ndevice_flow API {\n LOGIN\n client_secret {file.DIR/secret}\n}"))
	secrets := []string{"s3cr3t-of-the-client"}
	_, _, shown := adminCall(t.Context(), "POST", adminPath+"/default/login")
	x.as.ApproveAll()
	s := x.session("default")
	await(t, s.Session, flow.StateAuthorized)
	secrets = append(secrets, s.Current().Value().Reveal())
	x.get("http://a/")
	x.as.ExpireAccessTokens()
	shown += x.get("http://a/.device-flow").body + x.get("http://a/").body
	_, _, list := adminCall(t.Context(), "GET", adminPath)
	shown += list
	var stored struct {
		Refresh string `json:"refresh_token"`
	}
	if err := json.Unmarshal([]byte(x.saved("storage")), &stored); err != nil || stored.Refresh == "" {
		t.Fatalf("no refresh token in the storage: %v", err)
	}
	secrets = append(secrets, stored.Refresh, s.Current().Value().Reveal())
	for _, r := range x.as.Requests() {
		if code := r.Form.Get("device_code"); code != "" {
			secrets = append(secrets, code)
		}
	}
	if len(secrets) < 5 || len(logged(t.Name(), "upstream roundtrip")) == 0 || len(logged(t.Name(), "http.log.access")) == 0 {
		t.Fatalf("%d secrets; the log is not what this test is about", len(secrets))
	}
	for i, secret := range secrets {
		if strings.Contains(shown, secret) {
			t.Errorf("secret %d is shown", i)
		}
		if lines := logged(t.Name(), secret); len(lines) > 0 {
			t.Errorf("secret %d is logged in %d lines, the first begins %.80s", i, len(lines), lines[0])
		}
	}
}
