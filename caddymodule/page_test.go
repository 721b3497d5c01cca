package caddymodule

import (
	"context"
	"errors"
	"flag"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow"
)

var updatePages = flag.Bool("update", false, "write the golden files anew")

// fakeSession is a watcher that a test steers.
type fakeSession struct {
	mu       sync.Mutex
	st       flow.Status
	changed  chan struct{}
	demands  int
	logins   int
	onDemand func() // called without the lock
	onLogin  func(context.Context) error
}

func newFake(st flow.Status) *fakeSession {
	return &fakeSession{st: st, changed: make(chan struct{})}
}

func (f *fakeSession) Status() flow.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.st
}

func (f *fakeSession) Watch() (flow.Status, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.st, f.changed
}

func (f *fakeSession) set(st flow.Status) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.st = st
	close(f.changed)
	f.changed = make(chan struct{})
}

func (*fakeSession) Rouse() {}

func (f *fakeSession) Demand() {
	f.mu.Lock()
	f.demands++
	f.mu.Unlock()
	if f.onDemand != nil {
		f.onDemand()
	}
}

func (f *fakeSession) Login(ctx context.Context) (flow.Status, error) {
	f.mu.Lock()
	f.logins++
	f.mu.Unlock()
	if f.onLogin != nil {
		if err := f.onLogin(ctx); err != nil {
			return f.Status(), err
		}
	}
	return f.Status(), nil
}

func (f *fakeSession) counts() (demands, logins int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.demands, f.logins
}

const testPath = "/.device-flow"

func (f *fakeSession) page() *page {
	p := newPage(testPath, func(*http.Request) (watcher, error) { return f, nil })
	p.key = []byte("a key for tests")
	return p
}

// do sends one request; header is pairs of name and value.
func do(h http.Handler, method, target string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, nil)
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// sampleStatuses has each state in each shape that is worded differently.
func sampleStatuses(now time.Time) map[string]flow.Status {
	at := func(minutes int) time.Time { return now.Add(time.Duration(minutes) * time.Minute) }
	ptr := func(t time.Time) *time.Time { return &t }
	ada := &flow.Account{Issuer: "https://acme.eu.auth0.com/", Subject: "auth0|5f7c8e", Name: "Ada Lovelace", Email: "ada@example.com"}
	token := &flow.TokenInfo{
		ExpiresAt: ptr(at(47)), RefreshAt: ptr(at(35)), Refreshable: true,
		Scope: []string{"openid", "offline_access", "read:things", "write:scans"},
	}
	oops := func(code, description string, action flow.Action) *flow.StatusError {
		e := &flow.StatusError{Code: code, Description: description, At: at(-3), Action: action}
		if action == flow.ActionRetry {
			e.RetryAt = ptr(at(1))
		}
		return e
	}
	login := &flow.LoginInfo{
		UserCode: "QTZL-MCBW", VerificationURI: "https://acme.eu.auth0.com/activate",
		VerificationURIComplete: "https://acme.eu.auth0.com/activate?user_code=QTZL-MCBW", ExpiresAt: at(12),
	}
	status := func(state flow.State, minutes int) flow.Status {
		return flow.Status{Session: "default", State: state, Since: at(minutes)}
	}
	all := map[string]flow.Status{}
	add := func(name string, st flow.Status, fill func(*flow.Status)) {
		if fill != nil {
			fill(&st)
		}
		all[name] = st
	}
	add("login_required", status(flow.StateLoginRequired, -30), nil)
	add("login_required-expired", status(flow.StateLoginRequired, -3), func(s *flow.Status) {
		s.Error = oops("expired_token", "the code ran out before the login was approved: expired_token", flow.ActionReauthorize)
	})
	add("login_required-denied", status(flow.StateLoginRequired, -3), func(s *flow.Status) {
		s.Error = oops("access_denied", "the end user denied the request", flow.ActionReauthorize)
	})
	add("login_required-revoked", status(flow.StateLoginRequired, -3), func(s *flow.Status) {
		s.Error = oops("invalid_grant", "refresh token revoked", flow.ActionReauthorize)
		s.Account = ada
	})
	wrong := `the login is not used: its email is "bob@example.com", and only "ada@example.com" may be connected: log in with that account`
	add("login_required-account", status(flow.StateLoginRequired, -3), func(s *flow.Status) {
		s.Error = oops("wrong_account", wrong, flow.ActionReauthorize)
	})
	add("authorized-account", status(flow.StateAuthorized, -75), func(s *flow.Status) {
		s.Account, s.Token = ada, token
		s.Error = oops("wrong_account", wrong, flow.ActionReauthorize)
	})
	add("misconfigured-account", status(flow.StateMisconfigured, -3), func(s *flow.Status) {
		s.Error = oops("account_unknown", `the login is not used: only the account whose email is "ada@example.com" may be connected, and neither id_token nor userinfo endpoint tells whose this one is: ask for the scope that brings this claim, such as 'openid email'`, flow.ActionFixConfiguration)
	})
	add("login_required-unreachable", status(flow.StateLoginRequired, -3), func(s *flow.Status) {
		s.Error = oops("unreachable", "asking acme.eu.auth0.com for a code: connection refused", flow.ActionRetry)
	})
	add("login_required-unknown", status(flow.StateLoginRequired, -3), func(s *flow.Status) {
		s.Error = oops("teapot", "", flow.ActionReauthorize)
	})
	add("pending", status(flow.StatePending, -3), func(s *flow.Status) { s.Login = login })
	add("pending-plain", status(flow.StatePending, -14), func(s *flow.Status) {
		s.Session = "lab"
		s.Login = &flow.LoginInfo{UserCode: "GQVQ-JKEC", VerificationURI: "http://localhost:9090/device", ExpiresAt: now.Add(45 * time.Second)}
	})
	add("pending-trouble", status(flow.StatePending, -3), func(s *flow.Status) {
		s.Login = &flow.LoginInfo{
			UserCode: "WDJB-MJHT-2291-XQPL-77KD", VerificationURI: "https://login.a-rather-long-name.example.com/realms/production/device",
			VerificationURIComplete: "https://login.a-rather-long-name.example.com/realms/production/device?user_code=WDJB-MJHT-2291-XQPL-77KD",
			ExpiresAt:               at(90),
		}
		s.Error = oops("unreachable", "asking login.a-rather-long-name.example.com whether the code is approved: i/o timeout", flow.ActionRetry)
	})
	add("authorized", status(flow.StateAuthorized, -75), func(s *flow.Status) { s.Account, s.Token = ada, token })
	add("authorized-bare", status(flow.StateAuthorized, -75), func(s *flow.Status) { s.Token = &flow.TokenInfo{} })
	add("authorized-short", status(flow.StateAuthorized, -2), func(s *flow.Status) {
		s.Session = "scanner-hall-3"
		s.Account = &flow.Account{Email: "lab@example.com"}
		s.Token = &flow.TokenInfo{ExpiresAt: ptr(at(58)), Scope: []string{"read:things"}}
	})
	add("authorized-replacing", status(flow.StateAuthorized, -75), func(s *flow.Status) { s.Account, s.Token, s.Login = ada, token, login })
	add("degraded-replacing", status(flow.StateDegraded, -3), func(s *flow.Status) {
		s.Account, s.Token, s.Login = ada, token, login
		s.Error = oops("invalid_grant", "the authorization server has ended this login: invalid_grant (HTTP 400)", flow.ActionReauthorize)
	})
	add("degraded-unreachable", status(flow.StateDegraded, -3), func(s *flow.Status) {
		s.Account, s.Token = ada, token
		s.Error = oops("unreachable", "refreshing the token: lookup acme.eu.auth0.com: no such host", flow.ActionRetry)
	})
	add("degraded-storage", status(flow.StateDegraded, -3), func(s *flow.Status) {
		s.Account, s.Token = ada, token
		s.Error = oops("storage_failed", "saving the login: no space left on device", flow.ActionRetry)
	})
	add("degraded-revoked", status(flow.StateDegraded, -3), func(s *flow.Status) {
		s.Account, s.Token = ada, token
		s.Error = oops("invalid_grant", "refresh token revoked", flow.ActionReauthorize)
	})
	add("unavailable", status(flow.StateUnavailable, -3), func(s *flow.Status) {
		s.Account = ada
		s.Error = oops("temporarily_unavailable", "503 Service Unavailable", flow.ActionRetry)
	})
	add("unavailable-starting", status(flow.StateUnavailable, 0), nil)
	add("misconfigured", status(flow.StateMisconfigured, -3), func(s *flow.Status) {
		s.Error = oops("invalid_client", "client authentication failed", flow.ActionFixConfiguration)
	})
	add("misconfigured-serving", status(flow.StateMisconfigured, -3), func(s *flow.Status) {
		s.Account, s.Token = ada, token
		s.Error = oops("unauthorized_client", "Grant type 'refresh_token' not allowed for the client.", flow.ActionFixConfiguration)
	})
	return all
}

// golden compares got with a file in testdata/page.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", "page", name)
	if *updatePages {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs from what is served now; look at it, and if it is right run go test -update\n--- now\n%s", file, got)
	}
}

// forGolden takes out what changes with every touch of the style sheet, and the
// drawing of the QR code, which has a file of its own.
func forGolden(html string) string {
	html = strings.ReplaceAll(html, assetVersion(), "ASSETS")
	return regexp.MustCompile(` d="M4 4h[^"]*"`).ReplaceAllString(html, ` d="QR"`)
}

// translated are the samples that are reviewed in every language.
var translated = []string{"pending", "authorized", "login_required-expired", "misconfigured"}

func TestPageOfEachStateIsAsReviewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, st := range sampleStatuses(time.Now()) {
			p := newFake(st).page()
			html := do(p, "GET", testPath, "Accept", "text/html", refreshHeader, "1")
			golden(t, name+".html", forGolden(html.Body.String()))
			text := do(p, "GET", testPath, refreshHeader, "1")
			golden(t, name+".txt", text.Body.String())
			if !slices.Contains(translated, name) {
				continue
			}
			for _, c := range catalogues()[1:] {
				html := do(p, "GET", testPath, "Accept", "text/html", "Accept-Language", c.tag, refreshHeader, "1")
				golden(t, name+"."+c.tag+".html", forGolden(html.Body.String()))
			}
		}
	})
}

func TestPageFileForEachGoldenHasASample(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("testdata", "page", "*.html"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	samples := sampleStatuses(time.Now())
	for _, f := range files {
		name, _, _ := strings.Cut(filepath.Base(f), ".")
		if _, ok := samples[name]; !ok && name != "overview" {
			t.Errorf("%s is left over: no test renders it", f)
		}
	}
}

// All that a browser loads for a page, in whatever language takes the most.
func TestPageIsSmall(t *testing.T) {
	p := newFake(sampleStatuses(time.Now())["pending"]).page()
	total := 0
	for _, name := range []string{"page.css", "page.js", "icon.svg?tone=wait"} {
		total += do(p, "GET", testPath+"/"+name).Body.Len()
	}
	largest := 0
	for _, st := range sampleStatuses(time.Now()) {
		for _, c := range catalogues() {
			w := do(newFake(st).page(), "GET", testPath, "Accept", "text/html", "Accept-Language", c.tag, refreshHeader, "1")
			largest = max(largest, w.Body.Len())
		}
	}
	t.Logf("%d bytes of assets, at most %d of HTML with the QR code", total, largest)
	if total += largest; total > 60_000 {
		t.Errorf("%d bytes, want at most 60000", total)
	}
}

// problemIn is the page of a call that was turned away.
func problemIn(c *catalogue, st flow.Status) *httptest.ResponseRecorder {
	r := httptest.NewRequest("GET", "/things", nil)
	r.Header.Set("Accept", "text/html")
	r.Header.Set("Accept-Language", c.tag)
	w := httptest.NewRecorder()
	writeUnavailable(w, r, st, testPath, time.Second)
	return w
}

// In no language is a sentence missing, and in none is English left over.
func TestPageSpeaksEachLanguageThroughout(t *testing.T) {
	for _, c := range catalogues() {
		for name, st := range sampleStatuses(time.Now()) {
			p := newFake(st).page()
			header := []string{"Accept", "text/html", "Accept-Language", c.tag, refreshHeader, "1"}
			for _, w := range []*httptest.ResponseRecorder{do(p, "GET", testPath, header...), problemIn(c, st), do(p, "POST", testPath+"/login", header...)} {
				body := w.Body.String()
				if m := regexp.MustCompile(`\[[a-z_]*\.[a-z_.]*\]|\{[a-z]+\}`).FindString(body); m != "" {
					t.Errorf("%s in %s: %s is left", name, c.tag, m)
				}
				if w.Header().Get("Content-Language") != c.tag {
					t.Errorf("%s in %s: the answer is in %s", name, c.tag, w.Header().Get("Content-Language"))
				}
				if c == english() {
					continue
				}
				for _, word := range []string{"login server", "Calls ", "Log in", "Token valid", "Time left", "proxy logs"} {
					if strings.Contains(body, word) {
						t.Errorf("%s in %s: %q", name, c.tag, word)
					}
				}
			}
		}
	}
}

func TestPageFormatFollowsAccept(t *testing.T) {
	const chrome = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"
	p := newFake(sampleStatuses(time.Now())["authorized"]).page()
	for _, c := range []struct{ accept, want string }{
		{"", typePlain},
		{"*/*", typePlain},
		{chrome, typeHTML},
		{"text/html", typeHTML},
		{"TEXT/HTML ; charset=utf-8", typeHTML},
		{"application/json", typeJSON},
		{"application/json, text/plain, */*", typeJSON},
		{"application/*", typeJSON},
		{"text/*", typePlain},
		{"text/*, application/json;q=0.5", typePlain},
		{"text/html;q=0.4, application/json;q=0.5", typeJSON},
		{"text/html, */*", typeHTML},
		{"*/*, text/html", typeHTML},
		{"text/plain, text/html", typePlain},
		{"text/html, text/plain", typeHTML},
		{"text/html;q=0, */*", typePlain},
		{"text/plain;q=0, */*", typeHTML},
		{"text/plain;q=0.1, */*", typeHTML},
		{"*/*;q=0.1, application/json;q=0.2", typeJSON},
		{`text/html;x="a,application/json;q=1", application/json;q=0.5`, typeHTML},
		{"image/png", typePlain},
		{"text/html;q=2", typePlain},
		{"text/html;q=x", typePlain},
		{"text/html;q=NaN", typePlain},
		{"html", typePlain},
		{"*/html", typePlain},
		{"text/ht ml", typePlain},
		{",,;;,=", typePlain},
		{strings.Repeat("a/b,", 200) + "text/html", typePlain},
	} {
		w := do(p, "GET", testPath, "Accept", c.accept)
		if got, _, _ := strings.Cut(w.Header().Get("Content-Type"), ";"); got != c.want || w.Code != 200 {
			t.Errorf("Accept %q: %d %s, want %s", c.accept, w.Code, got, c.want)
		}
		if w.Header().Get("Vary") != "Accept, Accept-Language" {
			t.Errorf("Accept %q: Vary is %q", c.accept, w.Header().Get("Vary"))
		}
	}
	if w := do(p, "GET", testPath, "Accept", "image/png", "Accept", "text/html"); !strings.HasPrefix(w.Header().Get("Content-Type"), typeHTML) {
		t.Error("the second Accept line was not read")
	}
}

func TestPageJSONIsTheStatusItself(t *testing.T) {
	now := time.Date(2026, 11, 23, 13, 0, 0, 0, time.UTC)
	w := do(newFake(sampleStatuses(now)["pending"]).page(), "GET", testPath, "Accept", typeJSON)
	want := `{"session":"default","state":"pending","since":"2026-11-23T12:57:00Z","login":{"user_code":"QTZL-MCBW",` +
		`"verification_uri":"https://acme.eu.auth0.com/activate",` +
		`"verification_uri_complete":"https://acme.eu.auth0.com/activate?user_code=QTZL-MCBW","expires_at":"2026-11-23T13:12:00Z"}}` + "\n"
	if w.Body.String() != want {
		t.Errorf("got %s\nwant %s", w.Body, want)
	}
}

func TestPageMatchesItsOwnPathsOnly(t *testing.T) {
	p := newFake(flow.Status{}).page()
	for _, path := range []string{"", "/", "/events", "/qr.svg", "/healthz", "/login", "/page.css", "/page.js", "/icon.svg"} {
		if !p.match(testPath + path) {
			t.Errorf("%s is not matched", testPath+path)
		}
	}
	for _, path := range []string{"/", "", "/x" + testPath, testPath + "x", testPath + "//", testPath + "/events/", testPath + "/other", testPath + "/page.html", "/.DEVICE-FLOW"} {
		if p.match(path) {
			t.Errorf("%q is matched", path)
		}
	}
	if w := do(p, "GET", testPath+"/other"); w.Code != http.StatusNotFound {
		t.Errorf("unknown path: %d", w.Code)
	}
	if !newPage(testPath+"/", nil).match(testPath) {
		t.Error("a slash at the end of the configured path counts")
	}
}

func TestPageHeadersAreOnEveryAnswer(t *testing.T) {
	f := newFake(sampleStatuses(time.Now())["pending"])
	p := f.page()
	failing := newPage(testPath, func(*http.Request) (watcher, error) { return nil, errors.New("no such session") })
	for _, c := range []struct {
		h              http.Handler
		method, target string
		code           int
	}{
		{p, "GET", testPath, 200},
		{p, "GET", testPath + "/", 200},
		{p, "GET", testPath + "/qr.svg", 200},
		{p, "GET", testPath + "/healthz", 503},
		{p, "GET", testPath + "/page.css", 200},
		{p, "GET", testPath + "/page.js", 200},
		{p, "GET", testPath + "/icon.svg?tone=good", 200},
		{p, "HEAD", testPath + "/events", 200},
		{p, "POST", testPath + "/login", 403},
		{p, "GET", testPath + "/login", 405},
		{p, "POST", testPath, 405},
		{p, "GET", testPath + "/none", 404},
		{failing, "GET", testPath, 503},
	} {
		for _, accept := range []string{"*/*", "text/html"} {
			w := do(c.h, c.method, c.target, "Accept", accept)
			if w.Code != c.code {
				t.Errorf("%s %s: %d, want %d", c.method, c.target, w.Code, c.code)
			}
			for name, want := range map[string]string{
				"Cache-Control":                "no-store",
				"Referrer-Policy":              "no-referrer",
				"X-Content-Type-Options":       "nosniff",
				"X-Frame-Options":              "DENY",
				"Cross-Origin-Opener-Policy":   "same-origin",
				"Cross-Origin-Resource-Policy": "same-origin",
			} {
				if got := w.Header().Get(name); got != want {
					t.Errorf("%s %s: %s is %q", c.method, c.target, name, got)
				}
			}
			csp := w.Header().Get("Content-Security-Policy")
			for _, part := range []string{"default-src 'none'", "frame-ancestors 'none'", "base-uri 'none'"} {
				if !strings.Contains(csp, part) {
					t.Errorf("%s %s: policy %q lacks %s", c.method, c.target, csp, part)
				}
			}
			if strings.Contains(csp, "unsafe") {
				t.Errorf("%s %s: policy %q", c.method, c.target, csp)
			}
		}
	}
}

// What a browser would refuse under the policy must not be in the page at all.
func TestPageNeedsNothingInline(t *testing.T) {
	for name, st := range sampleStatuses(time.Now()) {
		body := do(newFake(st).page(), "GET", testPath, "Accept", "text/html", refreshHeader, "1").Body.String()
		if m := regexp.MustCompile(`(?i) style=| on\w+=|<style|<script>|javascript:|src="https?:`).FindString(body); m != "" {
			t.Errorf("%s: %q", name, m)
		}
	}
}

func TestPageAssetsAreKeptUnderTheirVersionOnly(t *testing.T) {
	p := newFake(flow.Status{}).page()
	body := do(p, "GET", testPath, "Accept", "text/html", refreshHeader, "1").Body.String()
	for _, name := range []string{"page.css?v=", "page.js?v="} {
		if !strings.Contains(body, `"./.device-flow/`+name+assetVersion()+`"`) {
			t.Errorf("the page does not link %s", name)
		}
		target := testPath + "/" + name
		if got := do(p, "GET", target+assetVersion()).Header().Get("Cache-Control"); got != "private, max-age=31536000, immutable" {
			t.Errorf("%s: %q", name, got)
		}
		if got := do(p, "GET", target+"older").Header().Get("Cache-Control"); got != "no-store" {
			t.Errorf("%s of another release: %q", name, got)
		}
	}
}

func TestPageLinksAreRelativeToWhereItIsServed(t *testing.T) {
	p := newFake(flow.Status{State: flow.StateLoginRequired}).page()
	for target, want := range map[string]string{testPath: `action="./.device-flow/login"`, testPath + "/": `action="./login"`} {
		body := do(p, "GET", target, "Accept", "text/html", refreshHeader, "1").Body.String()
		if !strings.Contains(body, want) {
			t.Errorf("%s: no %s", target, want)
		}
	}
}

func TestPageMethods(t *testing.T) {
	f := newFake(sampleStatuses(time.Now())["login_required"])
	p := f.page()
	for _, c := range []struct{ path, allow string }{
		{"", "GET, HEAD"}, {"/", "GET, HEAD"}, {"/events", "GET, HEAD"}, {"/qr.svg", "GET, HEAD"}, {"/healthz", "GET, HEAD"}, {"/page.css", "GET, HEAD"}, {"/login", "POST"},
	} {
		for _, method := range []string{"POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "ET", "GET", "HEAD"} {
			if slices.Contains(strings.Split(c.allow, ", "), method) {
				continue
			}
			w := do(p, method, testPath+c.path)
			if w.Code != http.StatusMethodNotAllowed || w.Header().Get("Allow") != c.allow {
				t.Errorf("%s %s: %d, Allow %q", method, c.path, w.Code, w.Header().Get("Allow"))
			}
		}
	}
	if demands, logins := f.counts(); demands+logins != 0 {
		t.Errorf("%d demands, %d logins", demands, logins)
	}
}

func TestPageHeadChangesNothingAndSaysTheSame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(sampleStatuses(time.Now())["pending"])
		p := f.page()
		for _, path := range []string{"", "/qr.svg", "/healthz", "/page.js"} {
			head := do(p, "HEAD", testPath+path, "Accept", "text/html")
			get := do(p, "GET", testPath+path, "Accept", "text/html", refreshHeader, "1")
			if head.Code != get.Code || head.Body.Len() != 0 || head.Header().Get("Content-Length") != get.Header().Get("Content-Length") {
				t.Errorf("%q: %d, %d bytes, length %s and %s", path, head.Code, head.Body.Len(), head.Header().Get("Content-Length"), get.Header().Get("Content-Length"))
			}
		}
		if n, _ := f.counts(); n != 0 {
			t.Errorf("%d demands", n)
		}
	})
}

func TestPageDemandsALoginForPeopleOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			what   string
			method string
			target string
			header []string
			want   int
		}{
			{"a browser", "GET", testPath, []string{"Accept", "text/html", "Sec-Fetch-Dest", "document"}, 1},
			{"an old browser", "GET", testPath + "/", []string{"Accept", "text/html"}, 1},
			{"curl", "GET", testPath, []string{"Accept", "*/*"}, 1},
			{"a monitor", "GET", testPath, []string{"Accept", "application/json"}, 0},
			{"HEAD", "HEAD", testPath, []string{"Accept", "text/html"}, 0},
			{"the script's own reload", "GET", testPath, []string{"Accept", "text/html", refreshHeader, "1"}, 0},
			{"the reload without a script", "GET", testPath + "?refresh", []string{"Accept", "text/html"}, 0},
			{"an image on a web site", "GET", testPath, []string{"Sec-Fetch-Dest", "image"}, 0},
			{"a frame", "GET", testPath, []string{"Accept", "text/html", "Sec-Fetch-Dest", "iframe"}, 0},
			{"a prefetch", "GET", testPath, []string{"Accept", "text/html", "Sec-Purpose", "prefetch"}, 0},
			{"the QR code", "GET", testPath + "/qr.svg", nil, 0},
			{"a probe", "GET", testPath + "/healthz", nil, 0},
			{"the style", "GET", testPath + "/page.css", nil, 0},
		} {
			f := newFake(sampleStatuses(time.Now())["login_required"])
			do(f.page(), c.method, c.target, c.header...)
			if n, _ := f.counts(); n != c.want {
				t.Errorf("%s: %d demands, want %d", c.what, n, c.want)
			}
		}
	})
}

func TestPageFirstViewWaitsForTheCode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		samples := sampleStatuses(time.Now())
		for _, c := range []struct {
			what     string
			from, to string
			after    time.Duration
			took     time.Duration
			shows    string
		}{
			{"the code comes", "login_required", "pending", 300 * time.Millisecond, 300 * time.Millisecond, "QTZL-MCBW"},
			{"the code comes too late", "login_required", "pending", 5 * time.Second, firstCodeWait, "Log in"},
			{"it fails", "login_required", "login_required-unreachable", time.Second, time.Second, "connection refused"},
			{"it fails again", "login_required-expired", "login_required-denied", time.Second, time.Second, "refused"},
			{"nothing speaks for a login", "login_required-denied", "", 0, firstCodeWait, "refused"},
			{"the stored login is read", "unavailable-starting", "authorized", time.Second, time.Second, "Ada Lovelace"},
			{"a code is out already", "pending", "", 0, 0, "QTZL-MCBW"},
			{"connected", "authorized", "", 0, 0, "Ada Lovelace"},
			{"connected, and a code is out", "authorized-replacing", "", 0, 0, "QTZL-MCBW"},
			{"degraded", "degraded-storage", "", 0, 0, "no space"},
			{"misconfigured", "misconfigured", "", 0, 0, "invalid_client"},
		} {
			f := newFake(samples[c.from])
			if c.to != "" {
				f.onDemand = func() { time.AfterFunc(c.after, func() { f.set(samples[c.to]) }) }
			}
			start := time.Now()
			body := do(f.page(), "GET", testPath, "Accept", "text/html").Body.String()
			if took := time.Since(start); took != c.took {
				t.Errorf("%s: took %s, want %s", c.what, took, c.took)
			}
			if !strings.Contains(body, c.shows) {
				t.Errorf("%s: the page does not say %q", c.what, c.shows)
			}
			time.Sleep(10 * time.Second) // of the bubble: lets the timers end
		}
	})
}

func TestPageFirstViewDoesNotOutlastItsReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(sampleStatuses(time.Now())["login_required"])
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		f.page().ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", testPath, nil).WithContext(ctx))
		if took := time.Since(start); took != time.Second {
			t.Errorf("took %s", took)
		}
	})
}

func TestPageHealthOfEachState(t *testing.T) {
	samples := sampleStatuses(time.Now())
	for name, want := range map[string]int{
		"authorized":            200,
		"authorized-bare":       200,
		"degraded-storage":      200,
		"misconfigured-serving": 503,
		"misconfigured":         503,
		"login_required":        503,
		"pending":               503,
		"unavailable":           503,
	} {
		w := do(newFake(samples[name]).page(), "GET", testPath+"/healthz", "Accept", "text/html")
		if w.Code != want || strings.TrimSpace(w.Body.String()) != string(samples[name].State) {
			t.Errorf("%s: %d %q, want %d", name, w.Code, w.Body, want)
		}
	}
}

// hostile is a status of a server that wants to break out of every field.
func hostile(payload string, state flow.State) flow.Status {
	at := time.Now().Add(time.Hour)
	return flow.Status{
		Session: payload,
		State:   state,
		Since:   time.Now(),
		Login:   &flow.LoginInfo{UserCode: payload, VerificationURI: payload, VerificationURIComplete: payload, ExpiresAt: at},
		Account: &flow.Account{Issuer: payload, Subject: payload, Name: payload, Email: payload + "2"},
		Token:   &flow.TokenInfo{ExpiresAt: &at, Scope: []string{payload, payload}, Refreshable: true},
		Error:   &flow.StatusError{Code: payload, Description: payload, At: at, RetryAt: &at, Action: flow.Action(payload)},
	}
}

func TestPageTakesNoMarkupFromAServer(t *testing.T) {
	tags := regexp.MustCompile(`<[a-zA-Z/!][^>]*>`)
	value := regexp.MustCompile(`="[^"]*"`)
	shape := func(html string) []string {
		all := tags.FindAllString(html, -1)
		for i := range all {
			all[i] = value.ReplaceAllString(all[i], "")
		}
		return all
	}
	for state := range tones {
		var tag string
		render := func(payload string, state flow.State) string {
			return do(newFake(hostile(payload, state)).page(), "GET", testPath, "Accept", "text/html", "Accept-Language", tag, refreshHeader, "1").Body.String()
		}
		for _, payload := range []string{
			`<script>alert(1)</script>`,
			`"><img src=x onerror=alert(1)>`,
			`' onmouseover='alert(1)' x='`,
			`" autofocus onfocus="alert(1)`,
			`</title></main><script src=//evil.example></script>`,
			`{{.Token}}<!--`,
			`&lt;b&gt;&#60;script&#62;`,
			"a\x00<b>\x1b[31mred\u202e\u2066\u200b",
			"]]></svg><iframe srcdoc=x>",
		} {
			for _, c := range catalogues() {
				tag = c.tag
				want := shape(render("harmless-but-as-long-as-that", state))
				html := render(payload, state)
				if got := shape(html); !slices.Equal(got, want) {
					t.Errorf("%s, %s: %q changes the markup:\n%s\nwant\n%s", state, tag, payload, got, want)
				}
				if i := strings.IndexAny(html, "\x00\x1b\u202e\u2066\u200b"); i >= 0 {
					t.Errorf("%s, %s: %q leaves %q", state, tag, payload, html[i])
				}
			}
			text := do(newFake(hostile(payload, state)).page(), "GET", testPath, refreshHeader, "1").Body.String()
			if i := strings.IndexAny(text, "\x00\x1b\r\t\u202e\u2066\u200b"); i >= 0 {
				t.Errorf("%s: %q leaves %q in the text", state, payload, text[i])
			}
		}
	}
}

func TestPageLinksOnlyWhatMayBeOpened(t *testing.T) {
	st := sampleStatuses(time.Now())["pending"]
	href := regexp.MustCompile(`<a [^>]*href="([^"]*)"`)
	for raw, want := range linkCases {
		in := *st.Login
		in.VerificationURI, in.VerificationURIComplete = raw, raw+"?x"
		st.Login = &in
		p := newFake(st).page()
		body := do(p, "GET", testPath, "Accept", "text/html").Body.String()
		links := href.FindAllStringSubmatch(body, -1)
		qr := do(p, "GET", testPath+"/qr.svg").Code
		if want == (len(links) == 0) || want == (qr == 404) || want != strings.Contains(body, "<svg xmlns") {
			t.Errorf("%.60q: links %q, QR code %d", raw, links, qr)
		}
		if !strings.Contains(body, "QTZL-MCBW") {
			t.Errorf("%.60q: the page lost the code", raw)
		}
		for _, l := range links {
			if !strings.HasPrefix(l[1], "https://") && !strings.HasPrefix(l[1], "http://localhost") && !strings.HasPrefix(l[1], "http://idp.localhost") && !strings.HasPrefix(l[1], "http://127.") && !strings.HasPrefix(l[1], "http://[::1]") {
				t.Errorf("%.60q: href %q", raw, l[1])
			}
		}
	}
}

func TestPageOfAnUnknownSessionSaysWhy(t *testing.T) {
	p := newPage(testPath, func(*http.Request) (watcher, error) { return nil, errors.New("the request has no X-Device-Id\x1b[2J") })
	for _, path := range []string{"", "/events", "/healthz", "/qr.svg"} {
		w := do(p, "GET", testPath+path)
		if w.Code != 503 || !strings.Contains(w.Body.String(), "the request has no X-Device-Id[2J") || w.Header().Get("Retry-After") == "" {
			t.Errorf("%q: %d %s", path, w.Code, w.Body)
		}
	}
}

// formOf reads the fields of the page's first form, as a browser would.
func formOf(t *testing.T, p *page) url.Values {
	t.Helper()
	body := do(p, "GET", testPath, "Accept", "text/html", refreshHeader, "1").Body.String()
	_, form, ok := strings.Cut(body, "<form")
	if !ok {
		t.Fatal("the page has no form")
	}
	form, _, _ = strings.Cut(form, "</form>")
	fields := url.Values{}
	for _, m := range regexp.MustCompile(`<input type="hidden" name="(\w+)" value="([^"]*)">`).FindAllStringSubmatch(form, -1) {
		fields.Set(m[1], m[2])
	}
	return fields
}
