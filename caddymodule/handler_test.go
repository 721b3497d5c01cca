package caddymodule

import (
	"context"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// liveSession is a session of a server in memory, which runs as long as the test. For use in a synctest bubble.
func liveSession(t *testing.T, as *flowtest.Server) *session {
	t.Helper()
	r, err := start(nil, flow.Config{Name: "default", Issuer: as.Issuer(), ClientID: "demo-client", HTTP: as.RoundTripper()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.release(nil, poolKey{"default", flow.Config{Issuer: as.Issuer(), ClientID: "demo-client"}.Fingerprint()}); err != nil {
			t.Error(err)
		}
		as.Close()
	})
	s := &session{name: "default", started: make(chan struct{})}
	s.live.Store(r)
	close(s.started)
	synctest.Wait() // until the stored login has been looked for
	return s
}

// localRequest is what a program on this machine sends.
func localRequest(method, target string, body io.Reader) *http.Request {
	r := httptest.NewRequest(method, target, body)
	r.Host, r.RemoteAddr = "localhost:8080", "127.0.0.1:50000"
	return r
}

// next is a handler that records what it is given.
type next struct{ got *http.Request }

func (n *next) ServeHTTP(w http.ResponseWriter, r *http.Request) error {
	n.got = r
	_, err := io.WriteString(w, "served")
	return err
}

func TestWithoutATokenTheAnswerIsWhatTheCallerCanRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		as := flowtest.New(flowtest.Config{})
		h := &Handler{guard: new(keeper), session: liveSession(t, as), StatusPath: testPath}
		for _, c := range []struct{ accept, kind string }{
			{"", typeProblem},
			{"application/json", typeProblem},
			{"text/plain", typePlain + "; charset=utf-8"},
			{"text/html,application/xhtml+xml,*/*;q=0.8", typeHTML + "; charset=utf-8"},
		} {
			r := localRequest(http.MethodGet, "/things", nil)
			r.Header.Set("Accept", c.accept)
			w, n := httptest.NewRecorder(), new(next)
			if err := h.ServeHTTP(w, r, n); err != nil {
				t.Fatal(err)
			}
			if w.Code != http.StatusServiceUnavailable || n.got != nil {
				t.Errorf("%q: status %d, served: %t", c.accept, w.Code, n.got != nil)
			}
			if got := w.Header(); got.Get("Content-Type") != c.kind || got.Get("Retry-After") == "" || got.Get("Cache-Control") != "no-store" {
				t.Errorf("%q: the header is %v", c.accept, got)
			}
			if code := as.Pending()[0]; !strings.Contains(w.Body.String(), code) {
				t.Errorf("%q: no code %s in %s", c.accept, code, w.Body)
			}
		}
		if n := as.Count(flowtest.Device); n != 1 {
			t.Errorf("%d device requests, want 1", n)
		}
	})
}

func TestStatusURLIsWhereTheCallerWouldFindThePage(t *testing.T) {
	local := func(network, addr string) context.Context {
		var a net.Addr = &net.UnixAddr{Net: network, Name: addr}
		if network == "tcp" {
			a = net.TCPAddrFromAddrPort(netip.MustParseAddrPort(addr))
		}
		return context.WithValue(context.Background(), http.LocalAddrContextKey, a)
	}
	h := &Handler{StatusPath: testPath}
	for _, c := range []struct {
		name, host, target, orig, want string
		ctx                            context.Context
	}{
		{name: "a host", host: "proxy.lan:8080", target: "/x", want: "http://proxy.lan:8080/.device-flow"},
		{name: "TLS", host: "proxy.lan", target: "https://x/x", want: "https://proxy.lan/.device-flow"},
		{name: "no Host", target: "/x", ctx: local("tcp", "192.0.2.7:8080"), want: "http://192.0.2.7:8080/.device-flow"},
		{name: "no Host over IPv6", target: "/x", ctx: local("tcp", "[2001:db8::7]:80"), want: "http://[2001:db8::7]:80/.device-flow"},
		{name: "no Host on a socket", target: "/x", ctx: local("unix", "/run/x.sock"), want: "http://localhost/.device-flow"},
		{name: "a stripped prefix", host: "a", target: "/x%2fy", orig: "/legacy/x%2fy", want: "http://a/legacy/.device-flow"},
		{name: "a rewritten path", host: "a", target: "/v2/x", orig: "/x", want: "http://a/.device-flow"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodGet, c.target, nil)
			r.Host = c.host
			if c.ctx != nil {
				r = r.WithContext(c.ctx)
			}
			if c.orig != "" {
				orig := httptest.NewRequest(http.MethodGet, c.orig, nil)
				r = r.WithContext(context.WithValue(r.Context(), caddyhttp.OriginalRequestCtxKey, *orig))
			}
			if got := h.statusURL(r); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
	balanced := served(httptest.NewRequest(http.MethodGet, "/x", nil)) // TLS ends before us
	balanced.Host = "proxy.lan"
	balanced.Header.Set("X-Forwarded-Proto", "https")
	if got := h.statusURL(balanced); got != "http://proxy.lan/.device-flow" {
		t.Errorf("by anybody's own word: %s", got)
	}
	balanced.Context().Value(caddyhttp.VarsCtxKey).(map[string]any)[caddyhttp.TrustedProxyVarKey] = true
	if got := h.statusURL(balanced); got != "https://proxy.lan/.device-flow" {
		t.Errorf("behind a trusted proxy: %s", got)
	}
	if got := new(Handler).statusURL(httptest.NewRequest(http.MethodGet, "/", nil)); got != "" {
		t.Errorf("without a page: %s", got)
	}
}

func TestARequestIsHeldUntilTheLoginIsApproved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		as := flowtest.New(flowtest.Config{})
		h := &Handler{guard: new(keeper), session: liveSession(t, as), Wait: caddy.Duration(time.Minute), Authenticate: true}
		time.AfterFunc(20*time.Second, func() { as.ApproveAll() }) // the bubble's time
		w, n, began := httptest.NewRecorder(), new(next), time.Now()
		if err := h.ServeHTTP(w, localRequest(http.MethodGet, "/", nil), n); err != nil {
			t.Fatal(err)
		}
		if n.got == nil || w.Body.String() != "served" {
			t.Fatalf("after the approval: %d %s", w.Code, w.Body)
		}
		if held := time.Since(began); held < 20*time.Second || held > 30*time.Second {
			t.Errorf("it was held for %v; the approval came after 20 s", held)
		}
	})
}

func TestARequestIsHeldNoLongerThanWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &Handler{guard: new(keeper), session: liveSession(t, flowtest.New(flowtest.Config{})), Wait: caddy.Duration(time.Minute)}
		w, n, began := httptest.NewRecorder(), new(next), time.Now()
		if err := h.ServeHTTP(w, localRequest(http.MethodGet, "/", nil), n); err != nil {
			t.Fatal(err)
		}
		if held := time.Since(began); w.Code != http.StatusServiceUnavailable || n.got != nil || held != time.Minute {
			t.Errorf("%d after %v", w.Code, held)
		}
	})
}

func TestNothingIsWrittenToACallerWhoHasLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &Handler{guard: new(keeper), session: liveSession(t, flowtest.New(flowtest.Config{})), Wait: caddy.Duration(time.Minute)}
		ctx, leave := context.WithTimeout(t.Context(), time.Second)
		defer leave()
		w, n := httptest.NewRecorder(), new(next)
		err := h.ServeHTTP(w, localRequest(http.MethodGet, "/", nil).WithContext(ctx), n)
		if he, ok := err.(caddyhttp.HandlerError); !ok || he.StatusCode != 499 {
			t.Errorf("the error is %v", err)
		}
		if w.Body.Len() != 0 || len(w.Header()) != 0 || n.got != nil {
			t.Errorf("written: %v %s", w.Header(), w.Body)
		}
	})
}

func TestTheNextHandlerSeesACopyWithTheTokenOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &Handler{guard: new(keeper), session: liveSession(t, flowtest.New(flowtest.Config{AutoApprove: true})), Wait: caddy.Duration(time.Minute), Authenticate: true}
		r := localRequest(http.MethodPost, "/", strings.NewReader("body"))
		r.Header = http.Header{
			"Authorization": {"Basic one", "Basic two"}, "Proxy-Authorization": {"Basic three"}, "Authorization_": {"four"},
			"Proxy_authorization": {"five"}, "Connection": {"Upgrade, authorization", "Proxy-Authorization,Keep-Alive", "AUTHORIZATION"}, "X-Other": {"kept"},
		}
		r.Trailer = http.Header{"Authorization": {"six"}, "X-Sum": {"7"}}
		before := maps.Clone(r.Header)
		n := new(next)
		if err := h.ServeHTTP(httptest.NewRecorder(), r, n); err != nil {
			t.Fatal(err)
		}
		live, err := h.session.get(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		want := http.Header{
			"Authorization": {"Bearer " + live.Current().Value().Reveal()},
			"Connection":    {"Upgrade", "Keep-Alive", ""}, "X-Other": {"kept"},
		}
		if !maps.EqualFunc(n.got.Header, want, slices.Equal) {
			t.Errorf("the next handler sees the fields %v of %d", slices.Sorted(maps.Keys(n.got.Header)), len(want))
			t.Errorf("Connection is %q", n.got.Header["Connection"])
		}
		if !maps.EqualFunc(r.Header, before, slices.Equal) {
			t.Error("the caller's own request has been changed")
		}
		if _, err := io.ReadAll(n.got.Body); err != nil {
			t.Fatal(err)
		}
		if got := n.got.Trailer; len(got) != 1 || got.Get("X-Sum") != "7" {
			t.Errorf("the trailer is %v", got)
		}
		n.got.Header["Authorization"][0] = "changed by a later handler"
		second := new(next)
		if err := h.ServeHTTP(httptest.NewRecorder(), r, second); err != nil {
			t.Fatal(err)
		}
		if second.got.Header["Authorization"][0] != want["Authorization"][0] {
			t.Error("one request's edit of the token reaches another's")
		}
	})
}

func TestTheSitesOwnErrorPageIsUsed(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	x.load(x.config(t.Name(), "",
		"a", proxy+"\nhandle_errors {\n respond \"sorry: {err.status_code} {http.error.message}\"\n}",
		"b", proxy))
	got := x.get("http://a/")
	if got.status != http.StatusServiceUnavailable || !strings.HasPrefix(got.body, "sorry: 503 ") {
		t.Errorf("with handle_errors: %d %s", got.status, got.body)
	}
	if got.header.Get("Retry-After") == "" || got.header.Get("Cache-Control") != "no-store" {
		t.Errorf("with handle_errors: %v", got.header)
	}
	if got := x.get("http://b/"); !strings.Contains(got.body, `"user_code"`) {
		t.Errorf("without: %d %q", got.status, got.body)
	}
}

func TestAnErrorPageForOtherErrorsIsNot(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	x.load(x.config(t.Name(), "",
		"a", proxy+"\nhandle_errors 404 {\n respond sorry\n}",
		"b", proxy+"\nhandle_errors 5xx {\n respond sorry\n}"))
	if got := x.get("http://a/"); got.status != http.StatusServiceUnavailable || !strings.Contains(got.body, `"user_code"`) {
		t.Errorf("a page for 404: %d %q", got.status, got.body)
	}
	if got := x.get("http://b/"); got.body != "sorry" {
		t.Errorf("a page for 5xx: %d %q", got.status, got.body)
	}
}

// Sites that listen in one place are one server to Caddy, and have their error routes in one list.
func TestTheErrorPageOfAnotherSiteIsNot(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	if err := os.Symlink(x.socket("a"), x.socket("b")); err != nil {
		t.Fatal(err)
	}
	x.load(x.config(t.Name(), "", "a", proxy+"\nhandle_errors {\n respond sorry\n}", "b@a", proxy))
	if got := x.get("http://a/"); got.body != "sorry" {
		t.Errorf("the site with handle_errors: %d %s", got.status, got.body)
	}
	if got := x.get("http://b/"); got.status != http.StatusServiceUnavailable || !strings.Contains(got.body, `"user_code"`) {
		t.Errorf("the site without: %d %q", got.status, got.body)
	}
}
