package caddymodule

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// lastHop is a site without a gate: what it answers, the transport answers.
const lastHop = "reverse_proxy API {\n transport device_flow\n"

const global = "device_flow {\n LOGIN\n}"

func TestTransportHasTheSettingsOfTheHTTPTransport(t *testing.T) {
	mod := new(Transport).CaddyModule().New()
	if err := json.Unmarshal([]byte(`{"session": "acme", "tls": {"except_ports": ["80"]}, "proxy_protocol": "v2", "dial_timeout": 7}`), mod); err != nil {
		t.Fatal(err)
	}
	transport := mod.(*Transport)
	if transport.Session != "acme" || transport.DialTimeout != 7 {
		t.Errorf("session %q, dial_timeout %d", transport.Session, transport.DialTimeout)
	}
	if !mod.(reverseproxy.TLSTransport).TLSEnabled() {
		t.Error("TLS is off")
	}
	if !mod.(reverseproxy.ProxyProtocolTransport).ProxyProtocolEnabled() {
		t.Error("the proxy protocol is off")
	}
	ops := mod.(reverseproxy.RequestHeaderOpsTransport).RequestHeaderOps()
	if ops == nil || ops.Set.Get("Host") != "{http.reverse_proxy.upstream.hostport}" {
		t.Errorf("an https upstream would get the caller's Host: %+v", ops)
	}
	u := &url.URL{Scheme: "http"}
	mod.(reverseproxy.HealthCheckSchemeOverriderTransport).OverrideHealthCheckScheme(u, "443")
	if u.Scheme != "https" {
		t.Errorf("health checks use %s", u.Scheme)
	}
	if err := mod.(reverseproxy.H2CTransport).EnableH2C(); err != nil || transport.Versions[0] != "h2c" {
		t.Errorf("versions %v: %v", transport.Versions, err)
	}
	if err := new(Transport).Cleanup(); err != nil {
		t.Errorf("Cleanup of a half-built value: %v", err)
	}
}

func TestAnUpstreamOverTLSGetsItsOwnHostAndTheToken(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	upstream := httptest.NewTLSServer(x.as.API())
	defer upstream.Close()
	x.load(x.config(t.Name(), "", "a", "device_flow "+upstream.URL+" {\n LOGIN\n transport http {\n  tls_insecure_skip_verify\n }\n}"))
	x.login("default")
	if got := x.get("http://a/"); got.status != http.StatusOK {
		t.Fatalf("%d %s", got.status, got.body)
	}
	if got := x.as.APIRequests()[0].Host; "https://"+got != upstream.URL {
		t.Errorf("Host is %s, not that of %s", got, upstream.URL)
	}
}

// Caddy keeps 32 connections for the next call, and dials anew for each call beyond.
func TestConnectionsAreKeptForMoreCallersThanCaddyDoes(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	x.load(x.config(t.Name(), global, "a", "device_flow API", "b", "device_flow API {\n transport http {\n  keepalive_idle_conns_per_host 7\n }\n}"))
	app, err := caddy.ActiveContext().App("http")
	if err != nil {
		t.Fatal(err)
	}
	var kept []int
	for _, srv := range app.(*caddyhttp.App).Servers {
		handlersOf(srv.Routes, func(m caddyhttp.MiddlewareHandler) {
			if proxy, ok := m.(*reverseproxy.Handler); ok {
				rt := proxy.Transport.(*Transport).HTTPTransport.Transport
				if kept = append(kept, rt.MaxIdleConnsPerHost); rt.IdleConnTimeout != 2*time.Minute {
					t.Errorf("they are kept for %v", rt.IdleConnTimeout)
				}
			}
		})
	}
	if slices.Sort(kept); !slices.Equal(kept, []int{7, 256}) {
		t.Errorf("the sites keep %v connections", kept)
	}
}

func TestUpstreamsOverTLSAreAskedByHTTP2(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	upstream := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Proto) }))
	upstream.EnableHTTP2 = true
	upstream.StartTLS()
	defer upstream.Close()
	x.load(x.config(t.Name(), "", "a", "device_flow "+upstream.URL+" {\n LOGIN\n transport http {\n  tls_insecure_skip_verify\n }\n}"))
	x.login("default")
	if got := x.get("http://a/"); got.status != http.StatusOK || got.body != "HTTP/2.0" {
		t.Errorf("%d %s", got.status, got.body)
	}
}

// Health checks can follow redirects, to another host, too, and are nobody's call. What the operator has them carry is
// the operator's.
func TestHealthChecksCarryNoToken(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	x.load(x.config(t.Name(), global))
	x.login("default")
	other, elsewhere := elsewhere(t)
	seen := make(chan *http.Request, 100)
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen <- r
		switch r.URL.Path {
		case "/up":
			http.Redirect(w, r, "/moved", http.StatusFound)
		case "/moved":
			http.Redirect(w, r, "http://"+strings.Replace(other, "127.0.0.1", "localhost", 1)+"/away", http.StatusFound)
		}
	}))
	defer upstream.Close()
	x.load(x.config(t.Name(), global, "a", "reverse_proxy "+upstream.URL+
		" {\n transport device_flow\n health_uri /up\n health_follow_redirects\n health_headers {\n  X-Api-Key mine\n }\n}"))
	for _, path := range []string{"/up", "/moved"} {
		if r := receive(t, seen, "a health check"); r.URL.Path != path || r.Header.Get("Authorization") != "" || r.Header.Get("X-Api-Key") != "mine" {
			t.Errorf("a health check of %s carries %d tokens and the key %q", r.URL.Path, len(r.Header["Authorization"]), r.Header.Get("X-Api-Key"))
		}
	}
	select { // Caddy dials the upstream for whatever host a redirect names
	case r := <-seen:
		if r.URL.Path != "/away" || r.Header.Get("Authorization") != "" {
			t.Errorf("a health check that goes away carries %d tokens to %s", len(r.Header["Authorization"]), r.URL.Path)
		}
	case r := <-elsewhere:
		if r.Header.Get("Authorization") != "" {
			t.Error("a health check carries a token to another host")
		}
	case <-time.After(patience):
		t.Fatal("waited in vain for the redirect to be followed")
	}
	if got := x.get("http://a/"); got.status != http.StatusOK {
		t.Errorf("a call: %d %s", got.status, got.body)
	}
	if r := receive(t, seen, "the call"); !strings.HasPrefix(r.Header.Get("Authorization"), "Bearer ") {
		t.Error("a call carries no token")
	}
}

func TestNoTokenIsNoFaultOfTheUpstream(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	x.load(x.config(t.Name(), global, "a", lastHop+" max_fails 1\n fail_duration 1h\n}"))
	for range 3 {
		got := x.get("http://a/")
		if got.status != http.StatusServiceUnavailable || !strings.Contains(got.body, `"user_code"`) || got.header.Get("Retry-After") == "" {
			t.Fatalf("without a token: %d %v %s", got.status, got.header, got.body)
		}
	}
	if x.as.ApproveAll() != 1 {
		t.Fatal("there is not exactly one code out")
	}
	await(t, x.session("default").Session, flow.StateAuthorized)
	if got := x.get("http://a/"); got.status != http.StatusOK {
		t.Errorf("with a token: %d %s", got.status, got.body)
	}
}

func TestA401IsRepairedOnTheWay(t *testing.T) {
	for name, c := range map[string]struct {
		size, status, calls int
	}{
		"a body that is kept":     {64 << 10, http.StatusOK, 2},
		"a body that is too long": {64<<10 + 1, http.StatusUnauthorized, 1},
	} {
		t.Run(name, func(t *testing.T) {
			x := newRig(t, flowtest.Config{})
			x.load(x.config(t.Name(), "", "a", proxy))
			s := x.login("default")
			old := s.Current()
			x.as.ExpireAccessTokens()
			body := strings.Repeat("x", c.size)
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://a/", strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			resp, err := x.client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			calls := x.as.APIRequests()
			if resp.StatusCode != c.status || len(calls) != c.calls {
				t.Fatalf("status %d after %d calls, want %d after %d", resp.StatusCode, len(calls), c.status, c.calls)
			}
			if last := calls[len(calls)-1]; last.BodyLen != int64(c.size) {
				t.Errorf("the API got %d bytes at last, want %d", last.BodyLen, c.size)
			}
			for st, changed := s.Watch(); s.Current() == old; st, changed = s.Watch() { // the next call can do better
				receive(t, changed, "a better token than "+string(st.State))
			}
			if got := x.get("http://a/"); got.status != http.StatusOK {
				t.Errorf("the next call: %d %s", got.status, got.body)
			}
		})
	}
}

// A 401 that stays is the API's own, and costs one refresh.
func TestA401ThatStaysIsPassedOn(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	x.load(x.config(t.Name(), "", "a", proxy))
	x.login("default")
	x.as.ScriptAlways(flowtest.API, flowtest.Response{Status: http.StatusUnauthorized, Body: "never", Header: http.Header{"X-From": {"api"}}})
	for range 5 {
		if got := x.get("http://a/"); got.status != http.StatusUnauthorized || got.body != "never" || got.header.Get("X-From") != "api" {
			t.Errorf("%d %q", got.status, got.body)
		}
	}
	if n := x.as.Count(flowtest.Refresh); n != 1 {
		t.Errorf("%d refreshes, want 1", n)
	}
}

// What a caller can do by hand (S37, S39 and S40 of the scorecard), with the token added at the last hop and before it.
func TestARawCallerCannotTouchTheToken(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	x.load(x.config(t.Name(), global, ":1@hop", "device_flow API", ":2@gate", "device_flow\nreverse_proxy API"))
	s := x.login("default")
	for _, site := range []string{"hop", "gate"} {
		for name, request := range map[string]string{
			"a hop-by-hop option":   "GET / HTTP/1.1\r\nHost: x\r\nConnection: Authorization, keep-alive\r\n\r\n",
			"another spelling":      "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nConnection: aUTHORIZATION\r\n\r\n",
			"several values":        "GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Basic a\r\nauthorization: Basic b\r\nAuthorization_: c\r\n\r\n",
			"HTTP/1.0 without Host": "GET / HTTP/1.0\r\n\r\n",
			"a trailer": "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTrailer: Authorization, X-Sum\r\n\r\n" +
				"3\r\nabc\r\n0\r\nAuthorization: Basic a\r\nX-Sum: 3\r\nProxy-Authorization: b\r\n\r\n",
		} {
			t.Run(site+": "+name, func(t *testing.T) {
				resp := x.raw(site, request)
				if resp.status != http.StatusOK {
					t.Errorf("status %d", resp.status)
				}
				calls := x.as.APIRequests()
				got := calls[len(calls)-1]
				if a := got.Header["Authorization"]; len(a) != 1 || a[0] != "Bearer "+s.Current().Value().Reveal() {
					t.Errorf("the API got %d values of Authorization", len(a))
				}
				if got.Header["Authorization_"] != nil || got.Trailer["Authorization"] != nil || got.Trailer["Proxy-Authorization"] != nil {
					t.Errorf("the API got more: %v", got.Trailer)
				}
				if name == "a trailer" && got.Trailer.Get("X-Sum") != "3" {
					t.Errorf("the trailer is %v", got.Trailer)
				}
			})
		}
	}
}

// reverse_proxy takes context.Canceled for a caller who has left: no retry, no other upstream, an empty 499.
func TestErrorsAreCanceledOnlyIfTheCallerLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		as := flowtest.New(flowtest.Config{AutoApprove: true})
		live := liveSession(t, as)
		hung := errors.New("the upstream is gone")
		_, transport := directed(t, "api.example.com:80", false)
		transport.Transport, transport.session = &http.Transport{
			DialContext: func(context.Context, string, string) (net.Conn, error) { return nil, hung },
		}, live
		call := func(ctx context.Context) (*http.Response, error) {
			ctx = context.WithValue(ctx, caddyhttp.VarsCtxKey, map[string]any{verdictKey: (*refusal)(nil)})
			req, _ := directed(t, "api.example.com:80", false)
			return transport.RoundTrip(req.WithContext(context.WithValue(ctx, dialInfoKey, dialInfo(t, "api.example.com:80"))))
		}

		as.Script(flowtest.Device, flowtest.Response{Pass: true, Delay: 2 * time.Second})
		left, leave := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, leave)
		if _, err := call(left); !errors.Is(err, context.Canceled) {
			t.Errorf("a caller who has left: %v", err)
		}
		resp, err := call(t.Context())
		if err != nil || resp.StatusCode != http.StatusServiceUnavailable {
			t.Fatalf("no token: %v %v", resp, err)
		}
		if body, err := io.ReadAll(resp.Body); err != nil || int64(len(body)) != resp.ContentLength {
			t.Errorf("the 503 has %d bytes and says %d: %v", len(body), resp.ContentLength, err)
		}
		s, err := live.get(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		await(t, s, flow.StateAuthorized)
		if _, err := call(t.Context()); !errors.Is(err, hung) || errors.Is(err, context.Canceled) {
			t.Errorf("an upstream that is gone: %v", err)
		}

		transport.session = &session{name: "late", started: make(chan struct{})}
		if resp, err := call(t.Context()); err != nil || resp.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("an app that does not start: %v %v", resp, err)
		}
	})
}
