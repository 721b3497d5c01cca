package e2e

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestAdminAPIShowsAndOperatesSessions goes through a login's life by the admin API alone.
func TestAdminAPIShowsAndOperatesSessions(t *testing.T) {
	parallel(t)
	as := startAS(t, time.Hour, byHand)
	a := startAPI(t, as.ValidToken)
	c := startCaddy(t, composed, as.Issuer(), a.URL)
	const list, one = "/device_flow/sessions", "/device_flow/sessions/acme"

	session := func(method, path string, want int) status {
		t.Helper()
		res := c.ask(t, method, path)
		var s status
		if err := json.Unmarshal([]byte(res.body), &s); err != nil || res.status != want {
			t.Fatalf("%s %s: got %d (%v), want %d\n%s", method, path, res.status, err, want, res.body)
		}
		if got := res.header.Get("Content-Type"); !strings.HasPrefix(got, "application/json") {
			t.Errorf("%s %s: the content is %q", method, path, got)
		}
		return s
	}
	if got := c.sessions(t); len(got) != 1 || got["acme"].State != "login_required" {
		t.Fatalf("GET %s: %+v", list, got)
	}
	if got := session("GET", one, 200); got.Session != "acme" || got.Login != nil {
		t.Fatalf("GET %s: %+v", one, got)
	}

	// Without a login there is nothing to refresh; the answer says what to do.
	if res := c.ask(t, "POST", one+"/refresh"); res.status != 409 || !strings.Contains(res.body, "log in") {
		t.Errorf("a refresh without a login: %d %s", res.status, res.body)
	}
	first := session("POST", one+"/login", 200)
	if first.State != "pending" || first.Login == nil || first.Login.VerificationURI == "" {
		t.Fatalf("login: %+v", first)
	}
	if again := session("POST", one+"/login", 200); again.Login == nil || again.Login.UserCode != first.Login.UserCode {
		t.Errorf("a second login asks for a second code: %+v", again.Login)
	}
	if err := as.Approve(first.Login.UserCode); err != nil {
		t.Fatal(err)
	}
	c.login(t)
	old := a.tokens()
	if got := session("POST", one+"/refresh", 200); got.State != "authorized" || as.Stats().Refreshes != 1 {
		t.Errorf("refresh: state %q, %d refreshes", got.State, as.Stats().Refreshes)
	}
	c.login(t)
	if got := a.tokens(); len(got) != len(old)+1 {
		t.Error("after the refresh calls go on with the old token")
	}
	if got := session("POST", one+"/logout", 200); got.State != "login_required" || got.Token != nil || got.Account != nil {
		t.Errorf("logout: %+v", got)
	}
	if got := as.Stats().Revocations; got != 1 {
		t.Errorf("the logout revoked %d tokens, want 1", got)
	}
	if token := a.tokens()[len(a.tokens())-1]; as.ValidToken(token) {
		t.Error("after the logout the token is still good")
	}

	for _, tc := range []struct {
		method, path string
		want         int
		says         string
	}{
		{"GET", list + "/other", 404, "other"},
		{"POST", list + "/other/login", 404, "other"},
		{"POST", one + "/restart", 404, "logout"},
		{"POST", list, 405, "GET"},
		{"DELETE", one, 405, "GET"},
		{"GET", one + "/login", 405, "POST"},
		{"GET", one + "/refresh", 405, "POST"},
		{"GET", one + "/logout", 405, "POST"},
	} {
		res := c.ask(t, tc.method, tc.path)
		if res.status != tc.want || !strings.Contains(res.body, tc.says) {
			t.Errorf("%s %s: got %d %s, want %d and %q", tc.method, tc.path, res.status, res.body, tc.want, tc.says)
		}
		if allow := res.header.Get("Allow"); tc.want == 405 && allow != tc.says {
			t.Errorf("%s %s: Allow is %q", tc.method, tc.path, allow)
		}
	}
	if got := as.Stats().DeviceRequests; got != 1 {
		t.Errorf("%d codes were asked for, want 1", got)
	}

	// Another site in the browser of who administers this machine gets nowhere; Caddy itself sees to that.
	r, err := http.NewRequest(http.MethodPost, c.admin+one+"/login", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Origin", "https://evil.example")
	if res := do(t, client(t), r); res.status != 403 {
		t.Errorf("a login asked for by another web site: %d %s", res.status, res.body)
	}
	if got := session("GET", one, 200).State; got != "login_required" {
		t.Errorf("the refused requests have made the session %q", got)
	}
}
