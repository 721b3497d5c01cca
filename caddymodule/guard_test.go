package caddymodule

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// kept is a guard as it stands in a configuration.
func kept(t testing.TB, c Guard) *keeper {
	t.Helper()
	ctx, cancel := caddy.NewContext(caddy.Context{Context: context.Background()})
	t.Cleanup(cancel)
	g, err := c.provision(ctx, nil, "default")
	if err != nil {
		t.Fatal(err)
	}
	g.logger = zap.NewNop()
	return g
}

// served is r as a handler of Caddy gets it.
func served(r *http.Request) *http.Request {
	return caddyhttp.PrepareRequest(r, caddy.NewReplacer(), httptest.NewRecorder(), new(caddyhttp.Server))
}

// asked is a request of a program on this machine with these fields, "Host" and
// "method" among them.
func asked(fields ...string) *http.Request {
	r := localRequest(http.MethodGet, "/things", nil)
	for i := 0; i+1 < len(fields); i += 2 {
		switch fields[i] {
		case "Host":
			r.Host = fields[i+1]
		case "method":
			r.Method = fields[i+1]
		default:
			r.Header.Add(fields[i], fields[i+1])
		}
	}
	return r
}

// judge is the kind of the refusal, or "".
func judge(g *keeper, r *http.Request) string {
	if no := g.admit(served(r)); no != nil {
		return no.kind
	}
	return ""
}

func TestGuardKnowsItsClients(t *testing.T) {
	local := kept(t, Guard{})
	lab := kept(t, Guard{AllowClient: []string{"203.0.113.0/24", "2001:db8::1", "::ffff:198.51.100.0/120"}})
	for _, c := range []struct {
		remote     string
		local, lab bool
	}{
		{"127.0.0.1:1", true, false},
		{"127.255.1.2:1", true, false},
		{"[::1]:1", true, false},
		{"[::ffff:127.0.0.1]:1", true, false},
		{"10.1.2.3:1", true, false},
		{"172.16.0.1:1", true, false},
		{"172.31.255.255:1", true, false},
		{"172.32.0.1:1", false, false},
		{"192.168.1.1:1", true, false},
		{"[::ffff:192.168.1.1]:1", true, false},
		{"169.254.3.4:1", true, false},
		{"[fe80::1%eth0]:1", true, false},
		{"[fd12::1]:1", true, false},
		{"[fc00::1]:1", true, false},
		{"100.64.0.1:1", false, false},
		{"0.0.0.0:1", false, false},
		{"203.0.113.9:1", false, true},
		{"[::ffff:203.0.113.9]:1", false, true},
		{"[2001:db8::1]:1", false, true},
		{"[2001:db8::1%eth0]:1", false, true},
		{"[2001:db8::2]:1", false, false},
		{"198.51.100.7:1", false, true},
		{"8.8.8.8:1", false, false},
		{"nonsense", false, false},
		{"", false, false},
		{"@", false, false},
	} {
		for name, g := range map[string]*keeper{"default": local, "lab": lab} {
			want := ""
			if name == "default" && !c.local || name == "lab" && !c.lab {
				want = "client-not-allowed"
			}
			r := asked()
			r.RemoteAddr = c.remote
			if got := judge(g, r); got != want {
				t.Errorf("%s from %q: %q, want %q", name, c.remote, got, want)
			}
			if got := g.admit(r); (got == nil) != (want == "") { // without a server
				t.Errorf("%s from %q without a server: %v", name, c.remote, got)
			}
		}
	}
}

func TestGuardLetsUnixSocketsIn(t *testing.T) {
	g := kept(t, Guard{AllowClient: []string{"203.0.113.0/24"}})
	for _, remote := range []string{"@", "", "/run/caller.sock"} {
		r := asked()
		r.RemoteAddr = remote
		r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, net.Addr(&net.UnixAddr{Net: "unix", Name: "/run/x"})))
		if got := judge(g, r); got != "" {
			t.Errorf("%q: %s", remote, got)
		}
	}
	// What a PROXY header says about the caller on a socket counts.
	r := asked()
	r.RemoteAddr = "192.0.2.1:1"
	r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, net.Addr(&net.UnixAddr{Net: "unix", Name: "/run/x"})))
	if got := judge(g, r); got != "client-not-allowed" {
		t.Errorf("192.0.2.1 over a socket: %q", got)
	}
}

func TestGuardKnowsItsHosts(t *testing.T) {
	g := kept(t, Guard{AllowHost: []string{"Proxy.Example.com", "*.lab.example", "xn--bcher-kva.example."}})
	for host, want := range map[string]bool{
		"": true, "localhost": true, "localhost:8080": true, "LOCALHOST:8080": true, "localhost.": true, "localhost.:8080": true, "localhost:": true,
		"a.localhost": true, "a.b.LocalHost:80": true, "api-proxy": true, "api_proxy:8080": true, "API-PROXY.": true, "3com": true,
		"127.0.0.1": true, "127.0.0.1:8080": true, "127.0.0.1.:80": true, "192.168.1.7": true, "8.8.8.8:80": true, "[::1]": true, "[::1]:8080": true,
		"[fe80::1%25eth0]:80": true, "[::ffff:192.168.1.2]": true, "::1": true, "127.1": true, "127.1:80": true, "0x7f.0.0.1": true, "2130706433": true, "0177.1": true,
		"proxy.example.com": true, "PROXY.example.COM.:80": true, "a.lab.example": true, "A.LAB.example:1": true, "xn--bcher-kva.example": true,

		"0.0.0.0": false, "0.0.0.0:8080": false, "0.0.0.0.": false, "[::]": false, "[::]:8080": false, "::": false, "[0:0:0:0:0:0:0:0]": false, "[::0.0.0.0]": false,
		"[::ffff:127.0.0.1]": false, "[::ffff:7f00:1]": false, "[::ffff:0.0.0.0]": false, "[::ffff:0:0]": false, "[::%25eth0]": false, "0": false, "0:8080": false, "0x0": false, "00": false, "0.0": false, "0.0.0": false, "0x0.0": false,
		"0X0.00.0.0x00": false, "0x": false, "000000000000": false,
		"evil.example": false, "evil.example:8080": false, "localhost.evil.example": false, "evillocalhost.example": false, "x.proxy.example.com": false,
		"lab.example": false, "a.b.lab.example": false, "proxy.example.com.evil.example": false, "1.2.3.4.5": false, "1.2.3.256": false, "127.0.0.1.nip.io": false, "evil.1": false,
		"localhost..": false, ".localhost": false, "a..localhost": false, ".": false, "localhost:80x": false, "localhost:123456": false, "localhost@evil.example": false,
		"evil.example@localhost": false, "local host": false, "localhost/": false, "bücher": false, "[::1": false, "[::1]x": false, "[localhost]": false, "[127.0.0.1]": false,
		"a:b:c": false, "*": false, "*.localhost": false, "08.1": false,
	} {
		got := judge(g, asked("Host", host))
		if want && got != "" || !want && got != "host-not-allowed" {
			t.Errorf("Host %q: %q", host, got)
		}
	}
}

func TestGuardRefusesWhatPagesOfOtherOriginsSend(t *testing.T) {
	g := kept(t, Guard{AllowOrigin: []string{"https://App.example.com", "http://localhost:3000/", "chrome-extension://abc"}})
	const own = "http://localhost:8080"
	for _, c := range []struct {
		want   bool
		fields []string
	}{
		{true, nil},
		{true, []string{"Origin", own}},
		{true, []string{"Origin", "http://LocalHost:8080"}},
		{true, []string{"Origin", own, "Sec-Fetch-Site", "same-origin"}},
		{true, []string{"Origin", own, "Sec-Fetch-Site", "none"}},
		{true, []string{"Host", "localhost", "Origin", "http://localhost"}},
		{true, []string{"Host", "localhost:80", "Origin", "http://localhost"}},
		{true, []string{"Host", "[::1]:8080", "Origin", "http://[::1]:8080"}},
		{true, []string{"Sec-Fetch-Site", "same-origin"}},
		{true, []string{"Sec-Fetch-Site", "none"}},
		{true, []string{"Sec-Fetch-Site", "none", "Referer", "https://evil.example/"}},
		{true, []string{"Origin", "null", "Sec-Fetch-Site", "same-origin"}},
		{true, []string{"Host", "proxy", "Origin", "https://proxy", "Sec-Fetch-Site", "same-origin"}}, // TLS in front of us
		{true, []string{"Host", "proxy:8443", "Origin", "https://proxy:8443", "Sec-Fetch-Site", "same-origin"}},
		{true, []string{"Referer", own + "/page?x=http://evil.example"}},
		{true, []string{"Referer", own}},
		{true, []string{"Host", "proxy", "Referer", "https://proxy/page"}},
		{true, []string{"Referer", "android-app://x"}},
		{true, []string{"Referer", "/index.html"}},
		{true, []string{"Referer", ""}},
		{true, []string{"Origin", "https://app.example.com"}},
		{true, []string{"Origin", "https://app.example.com:443", "Sec-Fetch-Site", "cross-site"}},
		{true, []string{"Origin", "http://localhost:3000", "Sec-Fetch-Site", "same-site"}},
		{true, []string{"Origin", "chrome-extension://abc", "Sec-Fetch-Site", "none"}},
		{true, []string{"Sec-Fetch-Site", "cross-site", "Referer", "https://app.example.com/links"}},
		{true, []string{"Referer", "https://app.example.com"}},

		{false, []string{"Sec-Fetch-Site", "cross-site"}},
		{false, []string{"Sec-Fetch-Site", "same-site"}},
		{false, []string{"Sec-Fetch-Site", "Cross-Site"}},
		{false, []string{"Sec-Fetch-Site", ""}},
		{false, []string{"Sec-Fetch-Site", "same-origin", "Sec-Fetch-Site", "cross-site"}},
		{false, []string{"Sec-Fetch-Site", "same-origin, cross-site"}},
		{false, []string{"Sec-Fetch-Site", "cross-site", "Origin", own}},
		{false, []string{"Sec-Fetch-Site", "cross-site", "Referer", own + "/"}},
		{false, []string{"Sec-Fetch-Site", "cross-site", "Referer", "device"}},
		{false, []string{"Origin", "null"}},
		{false, []string{"Origin", "null", "Sec-Fetch-Site", "none"}},
		{false, []string{"Origin", "null", "Sec-Fetch-Site", "cross-site"}},
		{false, []string{"Origin", ""}},
		{false, []string{"Origin", "https://evil.example"}},
		{false, []string{"Origin", "https://evil.example", "Sec-Fetch-Site", "same-origin"}},
		{false, []string{"Origin", own, "Origin", "https://evil.example"}},
		{false, []string{"Origin", own + ", https://evil.example"}},
		{false, []string{"Origin", own + " https://evil.example"}},
		{false, []string{"Origin", "http://localhost"}},
		{false, []string{"Origin", "http://localhost:8081"}},
		{false, []string{"Origin", "http://127.0.0.1:8080"}},
		{false, []string{"Origin", "https://localhost:8080"}},
		{false, []string{"Host", "localhost", "Origin", "https://localhost", "Sec-Fetch-Site", "none"}},
		{false, []string{"Origin", "http://localhost:8080.evil.example"}},
		{false, []string{"Origin", "http://evil.example:8080"}},
		{false, []string{"Origin", "http://user@localhost:8080"}},
		{false, []string{"Origin", "http://localhost:8080/"}},
		{false, []string{"Origin", "localhost:8080"}},
		{false, []string{"Origin", "://localhost:8080"}},
		{false, []string{"Origin", "file://"}},
		{false, []string{"Host", "", "Origin", "http://localhost:8080"}},
		{false, []string{"Origin", "http://app.example.com"}},
		{false, []string{"Origin", "https://app.example.com:444"}},
		{false, []string{"Origin", "https://x.app.example.com"}},
		{false, []string{"Referer", "https://evil.example/" + own}},
		{false, []string{"Referer", "HTTP://evil.example"}},
		{false, []string{"Referer", "http://localhost:8080@evil.example/"}},
		{false, []string{"Referer", "http://localhost:8081/"}},
		{false, []string{"Referer", "http://"}},
		{false, []string{"Referer", own, "Referer", "https://evil.example"}},
	} {
		for _, upgrade := range []bool{false, true} {
			fields := c.fields
			if upgrade {
				fields = append(handshake("websocket"), fields...)
			}
			got := judge(g, asked(fields...))
			if c.want && got != "" || !c.want && got != "origin-not-allowed" {
				t.Errorf("%q: %q", fields, got)
			}
		}
	}
}

func TestGuardRefusesWhatABrowserFetchesAhead(t *testing.T) {
	g := kept(t, Guard{AllowOrigin: []string{"https://app.example.com"}})
	for want, fields := range map[string][]string{
		"":                    {"Sec-Fetch-Site", "same-origin", "Sec-Purpose", "prefetch"},
		"speculative-request": {"Sec-Fetch-Site", "none", "Sec-Purpose", "prefetch;prerender"},
		"origin-not-allowed":  {"Sec-Fetch-Site", "cross-site", "Sec-Purpose", "prefetch"},
	} {
		if got := judge(g, asked(fields...)); got != want {
			t.Errorf("%q: %q, want %q", fields, got, want)
		}
	}
	if got := judge(g, asked("Sec-Fetch-Site", "none", "Purpose", "prefetch", "Referer", "https://app.example.com/")); got != "speculative-request" {
		t.Errorf("the older field: %q", got)
	}
}

func TestGuardKnowsTheSchemeOfItsOwnOrigin(t *testing.T) {
	g := kept(t, Guard{})
	r := asked("Host", "localhost", "Origin", "https://localhost")
	r.TLS = new(tls.ConnectionState)
	if got := judge(g, r); got != "" {
		t.Errorf("https: %s", got)
	}
	r.Header.Set("Origin", "http://localhost")
	if judge(g, r) == "" {
		t.Error("a page over http may call a site over https")
	}
	r = served(asked("Host", "localhost", "Origin", "https://localhost", "X-Forwarded-Proto", "https"))
	if g.admit(r) == nil {
		t.Error("anybody's X-Forwarded-Proto is believed")
	}
	r.Context().Value(caddyhttp.VarsCtxKey).(map[string]any)[caddyhttp.TrustedProxyVarKey] = true
	if no := g.admit(r); no != nil {
		t.Errorf("behind a trusted proxy: %v", no)
	}
}

func TestGuardKnowsMethods(t *testing.T) {
	g := kept(t, Guard{})
	for method, want := range map[string]bool{
		"GET": true, "HEAD": true, "POST": true, "PUT": true, "PATCH": true, "DELETE": true, "OPTIONS": true, "QUERY": true, "PROPFIND": true, "MKCOL": true,
		"TRACE": false, "TRACK": false, "CONNECT": false, "FOO": false, "get": false, "Get": false, "": false, "DEBUG": false, "PRI": false,
		strings.Repeat("A", 40): false, "GET ": false, "G\x00T": false,
	} {
		got := judge(g, asked("method", method))
		if want && got != "" || !want && got != "method-not-allowed" {
			t.Errorf("%q: %q", method, got)
		}
	}
	if got := judge(g, asked("method", "CONNECT", "Host", "evil.example:443")); got != "method-not-allowed" {
		t.Errorf("CONNECT to another host: %q", got)
	}
	for method := range strings.SplitSeq(allowedMethods, ", ") {
		if !knownMethod(method) {
			t.Errorf("Allow names %s", method)
		}
	}
}

// handshake is the fields of a WebSocket handshake with that Upgrade.
func handshake(upgrade string) []string {
	return []string{"Connection", "Upgrade", "Upgrade", upgrade, "Sec-WebSocket-Version", "13", "Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="}
}

func TestGuardLetsConnectionsBecomeWebSocketsOnly(t *testing.T) {
	g := kept(t, Guard{})
	for _, c := range []struct {
		want   bool
		fields []string
	}{
		{true, handshake("websocket")},
		{true, handshake("WebSocket")},
		{true, []string{"Connection", "upgrade"}},
		{false, handshake("websocket")[:4]},
		{false, handshake("websocket")[:6]},
		{false, append(handshake("websocket")[:4], "Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")},
		{false, append(handshake("websocket")[:6], "Sec-WebSocket-Key", "")},
		{false, append(handshake("websocket"), "Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")},
		{false, []string{"Upgrade", "h2c"}},
		{false, []string{"Upgrade", "h2c", "HTTP2-Settings", "AAMAAABkAAQAAP__"}},
		{false, append(handshake("websocket"), "HTTP2-Settings", "AAMAAABkAAQAAP__")},
		{false, []string{"HTTP2-Settings", "AAMAAABkAAQAAP__"}},
		{false, handshake("websocket, h2c")},
		{false, append(handshake("websocket"), "Upgrade", "h2c")},
		{false, append(handshake("websocket"), "Upgrade", "websocket")},
		{false, handshake("websocket/13")},
		{false, []string{"Upgrade", "TLS/1.2"}},
		{false, []string{"Upgrade", "foo"}},
		{false, []string{"Upgrade", ""}},
		{false, append(handshake("websocket"), "method", "POST")},
	} {
		r := asked(append([]string{"Connection", "Upgrade, HTTP2-Settings"}, c.fields...)...)
		got := judge(g, r)
		if c.want && got != "" || !c.want && got != "upgrade-not-allowed" {
			t.Errorf("%q: %q", c.fields, got)
		}
	}
	r := asked(handshake("websocket")...)
	r.ContentLength = -1
	if judge(g, r) == "" {
		t.Error("a handshake with a body")
	}
	r = asked(handshake("websocket")...)
	r.ProtoMinor = 0
	if judge(g, r) == "" {
		t.Error("a handshake in HTTP/1.0")
	}
}

func TestGuardFindsTokensInQueries(t *testing.T) {
	g := kept(t, Guard{})
	for query, want := range map[string]bool{
		"access_token=x": true, "a=b&access_token=x": true, "a=b;access_token=x": true, "access_token": true, "access_token=": true, "&&access_token=x": true,
		"%61ccess_token=x": true, "access%5ftoken=x": true, "access%5Ftoken=x": true, "%61%63%63%65%73%73%5F%74%6F%6B%65%6E": true, "ACCESS_TOKEN=x": true,
		"Access_Token=x": true, "access_token[]=x": true, "access_token%5B0%5D=x": true, "access.token=x": true, "access%20token=x": true, "access+token=x": true,
		"access[token=x": true, "+access_token=x": true, "%20%20access_token=x": true, "access_token%00=x": true, "a&%61ccess_token": true,

		"": false, "a=access_token": false, "a=access_token=x": false, "access_tokens=x": false, "my_access_token=x": false, "access_toke": false, "token=x": false,
		"access-token=x": false, "accesstoken=x": false, "a=%26access_token%3Dx": false, "%2561ccess_token=x": false, "a=b&access": false, "%6": false, "%": false,
		"q=a+b&page=2": false,
	} {
		r := asked()
		r.URL.RawQuery = query
		got := judge(g, r)
		if want && got != "access-token-in-query" || !want && got != "" {
			t.Errorf("?%s: %q", query, got)
		}
		form := asked("Content-Type", "Application/x-www-form-urlencoded ; charset=utf-8", "method", "POST")
		form.Body, form.ContentLength = io.NopCloser(strings.NewReader(query)), -1
		no := checkForm(form)
		if want != (no != nil) {
			t.Errorf("the form %s: %v", query, no)
		}
		if rest, err := io.ReadAll(form.Body); !want && (err != nil || string(rest) != query) {
			t.Errorf("the form %s is passed on as %s, %v", query, rest, err)
		}
	}
}

func TestGuardReadsAheadInFormsOnly(t *testing.T) {
	for _, kind := range []string{"", "text/plain", "application/json", "multipart/form-data", "application/x-www-form-urlencoded-not"} {
		r := asked("Content-Type", kind, "method", "POST")
		r.Body, r.ContentLength = io.NopCloser(failedReader{errors.New("read")}), 10
		body := r.Body
		if checkForm(r) != nil || r.Body != body {
			t.Errorf("%q: it was read", kind)
		}
	}
	long := "a=" + strings.Repeat("x", 3*maxForm)
	r := asked("Content-Type", "application/x-www-form-urlencoded", "method", "POST")
	source := strings.NewReader(long)
	r.Body, r.ContentLength = io.NopCloser(source), int64(len(long))
	if no := checkForm(r); no != nil || source.Len() != len(long)-maxForm {
		t.Errorf("%v, %d bytes are left", no, source.Len())
	}
	if all, err := io.ReadAll(r.Body); err != nil || string(all) != long {
		t.Errorf("%d bytes of %d are passed on, %v", len(all), len(long), err)
	}
	r.Body = io.NopCloser(io.MultiReader(strings.NewReader("a=b"), failedReader{io.ErrUnexpectedEOF}))
	if no := checkForm(r); no != nil {
		t.Error(no)
	}
	if all, err := io.ReadAll(r.Body); string(all) != "a=b" || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("of a body that breaks off, %q is passed on, and %v", all, err)
	}
}

func TestGuardRefusesUserinfo(t *testing.T) {
	r := localRequest(http.MethodGet, "http://user:secret@localhost:8080/", nil)
	r.Host = "localhost:8080"
	if got := judge(kept(t, Guard{}), r); got != "userinfo" {
		t.Error(got)
	}
}

func TestRefusalIsWhatTheCallerCanRead(t *testing.T) {
	h := &Handler{guard: kept(t, Guard{}), session: &session{name: "default"}, StatusPath: testPath}
	for _, c := range []struct {
		r       *http.Request
		status  int
		setting string
	}{
		{asked("Host", "evil.example"), 403, "allow_host"},
		{asked("Origin", "https://evil.example"), 403, "allow_origin"},
		{asked("Sec-Fetch-Site", "cross-site"), 403, "allow_origin"},
		{asked("Upgrade", "h2c"), 403, "WebSocket"},
		{asked("method", "TRACE"), 405, "GET"},
		{httptest.NewRequest(http.MethodGet, "/", nil), 403, "allow_client"},
		{localRequest(http.MethodGet, "/?access_token=x", nil), 400, "Leave it out"},
	} {
		for accept, kind := range map[string]string{"": typeProblem, "text/plain": typePlain, "text/html,*/*;q=0.8": typeHTML} {
			c.r.Header.Set("Accept", accept)
			w, n := httptest.NewRecorder(), new(next)
			if err := h.ServeHTTP(w, served(c.r), n); err != nil {
				t.Fatal(err)
			}
			if w.Code != c.status || n.got != nil || !strings.HasPrefix(w.Header().Get("Content-Type"), kind) || w.Header().Get("Cache-Control") != "no-store" {
				t.Errorf("%s, %q: %d, served: %t, %v", c.setting, accept, w.Code, n.got != nil, w.Header())
			}
			body := w.Body.String()
			if !strings.Contains(body, c.setting) || strings.Contains(body, testPath) {
				t.Errorf("%s: %s", c.setting, body)
			}
			if allow := w.Header().Get("Allow"); (allow != "") != (c.status == 405) {
				t.Errorf("%d with Allow %q", c.status, allow)
			}
			if w.Header().Get("Access-Control-Allow-Origin") != "" {
				t.Error("a page may read the refusal")
			}
			if kind == typeProblem {
				var m map[string]any
				if err := json.Unmarshal([]byte(body), &m); err != nil || len(m) != 4 || m["status"] != float64(c.status) {
					t.Errorf("%v, %v", m, err)
				}
			}
		}
	}
}

func TestPreflightsAreAnsweredInThePlaceOfTheAPI(t *testing.T) {
	h := &Handler{guard: kept(t, Guard{AllowOrigin: []string{"https://app.example.com"}}), session: &session{name: "default"}}
	ask := func(fields ...string) *httptest.ResponseRecorder {
		t.Helper()
		w, n := httptest.NewRecorder(), new(next)
		r := asked(append([]string{"method", "OPTIONS", "Access-Control-Request-Method", "DELETE"}, fields...)...)
		if err := h.ServeHTTP(w, served(r), n); err != nil {
			t.Fatal(err)
		}
		if n.got != nil {
			t.Fatalf("%q reached the API", fields)
		}
		return w
	}
	w := ask("Origin", "https://app.example.com", "Sec-Fetch-Site", "cross-site", "Access-Control-Request-Headers", "x-a, content-type", "Access-Control-Request-Private-Network", "true")
	for name, want := range map[string]string{
		"Access-Control-Allow-Origin": "https://app.example.com", "Access-Control-Allow-Methods": "DELETE", "Access-Control-Allow-Headers": "x-a, content-type",
		"Access-Control-Allow-Private-Network": "true", "Access-Control-Allow-Credentials": "", "Vary": "Origin", "Cache-Control": "no-store",
	} {
		if got := w.Header().Get(name); got != want || w.Code != http.StatusNoContent {
			t.Errorf("%d, %s: %q, want %q", w.Code, name, got, want)
		}
	}
	w = ask("Origin", "https://app.example.com", "Access-Control-Request-Headers", strings.Repeat("x", 2000))
	if got := w.Header().Get("Access-Control-Allow-Headers"); got != "" {
		t.Errorf("%d bytes of fields are repeated", len(got))
	}
	for _, from := range []string{"https://evil.example", "null"} {
		if w := ask("Origin", from, "Access-Control-Request-Private-Network", "true"); w.Code != http.StatusForbidden || hasCORS(w.Header()) {
			t.Errorf("%s: %d %v", from, w.Code, w.Header())
		}
	}
	for _, fields := range [][]string{nil, {"Origin", "http://localhost:8080"}} {
		if w := ask(fields...); w.Code != http.StatusNoContent || hasCORS(w.Header()) {
			t.Errorf("%q: %d %v", fields, w.Code, w.Header())
		}
	}
}

func hasCORS(h http.Header) bool {
	for name := range h {
		if strings.HasPrefix(name, "Access-Control-") {
			return true
		}
	}
	return false
}

func TestPagesOfAllowedOriginsCanReadTheAnswer(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	// An API that speaks of origins itself, and one that does not.
	x.load(x.config(t.Name(), "", "a", "device_flow {\n LOGIN\n allow_origin https://app.example.com\n}\n"+
		"@own path /own\nheader @own Access-Control-Allow-Origin *\nrespond hello",
		"p", "device_flow http://127.0.0.1:1 {\n LOGIN\n allow_origin https://app.example.com\n}"))
	x.login("default")
	for _, path := range []string{"/", "/own"} {
		got := x.get("http://a"+path, "Origin", "https://app.example.com", "Sec-Fetch-Site", "cross-site")
		if got.body != "hello" || strings.Join(got.header.Values("Access-Control-Allow-Origin"), "|") != "https://app.example.com" || got.header.Get("Vary") != "Origin" {
			t.Errorf("%s: %d %s %v", path, got.status, got.body, got.header)
		}
	}
	if got := x.get("http://a/"); got.body != "hello" || hasCORS(got.header) {
		t.Errorf("a plain call: %v", got.header)
	}
	if got := x.get("http://a/.device-flow", "Origin", "https://app.example.com"); got.status != 200 || hasCORS(got.header) {
		t.Errorf("the page: %d %v", got.status, got.header)
	}
}

func TestRequiredHeaderIsAskedForAndKept(t *testing.T) {
	t.Setenv("DEVICE_FLOW_TEST_KEY", "correct horse\n")
	need := func(name, value string) *requirement {
		t.Helper()
		n, err := (&RequiredHeader{Name: name, Value: value}).provision()
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	secret, presence := need("x-proxy-key", "{env.DEVICE_FLOW_TEST_KEY}"), need("X-Requested-With", "")
	for _, c := range []struct {
		n      *requirement
		want   bool
		fields []string
	}{
		{nil, true, nil},
		{secret, true, []string{"X-Proxy-Key", "correct horse"}},
		{secret, false, nil},
		{secret, false, []string{"X-Proxy-Key", ""}},
		{secret, false, []string{"X-Proxy-Key", "correct hors"}},
		{secret, false, []string{"X-Proxy-Key", "correct horse "}},
		{secret, false, []string{"X-Proxy-Key", "correct horse", "X-Proxy-Key", "correct horse"}},
		{presence, true, []string{"X-Requested-With", ""}},
		{presence, true, []string{"X-Requested-With", "anything"}},
		{presence, false, []string{"X-Other", "anything"}},
	} {
		r := asked(c.fields...)
		no := c.n.check(r)
		if c.want != (no == nil) {
			t.Errorf("%q: %v", c.fields, no)
		}
		if no != nil && (no.status != 403 || !strings.Contains(no.detail, "require_header") || strings.Contains(no.detail, "horse")) {
			t.Errorf("%d %s", no.status, no.detail)
		}
		if c.want && c.n == secret && len(r.Header) != 0 {
			t.Error("the secret is passed on")
		}
		if c.want && c.n == presence && len(r.Header) != 1 {
			t.Error("a field without a secret is not passed on")
		}
	}
	for _, bad := range []RequiredHeader{
		{Name: ""}, {Name: "a b"}, {Name: "Host"}, {Name: "connection"}, {Name: "X-A", Value: "{env.DEVICE_FLOW_NO_SUCH}"}, {Name: "X-A", Value: "{file.testdata/none}"},
	} {
		if _, err := bad.provision(); err == nil || !strings.HasPrefix(err.Error(), "require_header") {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

func TestAGuardLeavesItsVerdictForTheLastHop(t *testing.T) {
	h := &Handler{guard: kept(t, Guard{}), session: &session{name: "default", started: make(chan struct{})}}
	for _, host := range []string{"localhost", "evil.example"} {
		ctx, leave := context.WithCancel(t.Context())
		leave()
		r := served(asked("Host", host).WithContext(ctx))
		_ = h.ServeHTTP(httptest.NewRecorder(), r, new(next)) // the session never starts
		no, judged := r.Context().Value(caddyhttp.VarsCtxKey).(map[string]any)[verdictKey].(*refusal)
		if !judged || (no == nil) != (host == "localhost") {
			t.Errorf("%s: %t, %v", host, judged, no)
		}
	}
}

// plainCall is what a program on this machine sends, as the handler gets it.
func plainCall() *http.Request {
	r := asked("User-Agent", "scanner/1.0", "Accept", "*/*", "Content-Type", "application/json")
	r.URL.RawQuery = "page=2&sort=name"
	return served(r)
}

func TestGuardAllocatesNothingForPlainCallers(t *testing.T) {
	for name, g := range map[string]*keeper{
		"default":  kept(t, Guard{}),
		"settings": kept(t, Guard{AllowClient: []string{"10.0.0.0/8", "127.0.0.0/8"}, AllowHost: []string{"a.example"}, AllowOrigin: []string{"https://a.example"}}),
	} {
		for _, host := range []string{"localhost:8080", "127.0.0.1:8080", "[::1]:8080", "api-proxy", ""} {
			r := plainCall()
			r.Host = host
			if n := testing.AllocsPerRun(1000, func() {
				if g.admit(r) != nil || isPreflight(r) || g.crossOrigin(r) != "" || checkForm(r) != nil {
					t.Error("refused")
				}
			}); n != 0 {
				t.Errorf("%s, Host %q: %v allocations", name, host, n)
			}
		}
	}
}

func BenchmarkGuard(b *testing.B) {
	g := kept(b, Guard{})
	r := plainCall()
	vars := r.Context().Value(caddyhttp.VarsCtxKey).(map[string]any)
	var need *requirement
	b.ReportAllocs()
	for b.Loop() {
		if g.admit(r) != nil || isPreflight(r) || g.crossOrigin(r) != "" || need.check(r) != nil || checkForm(r) != nil {
			b.Fatal("refused")
		}
		vars[verdictKey] = (*refusal)(nil)
	}
}
