package caddymodule

import (
	"bufio"
	"context"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// elsewhere is a server that no site names. It keeps what it is asked.
func elsewhere(t *testing.T) (addr string, seen chan *http.Request) {
	t.Helper()
	seen = make(chan *http.Request, 100)
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { seen <- r }))
	t.Cleanup(s.Close)
	return s.Listener.Addr().String(), seen
}

func TestTheTokenGoesToTheUpstreamsThatTheSiteNames(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	other, seen := elsewhere(t)
	t.Setenv("DEVICE_FLOW_TEST_UPSTREAM", x.api)
	host, port, err := net.SplitHostPort(x.api)
	if err != nil {
		t.Fatal(err)
	}
	const fromHeader = "reverse_proxy {http.request.header.X-To} {\n transport device_flow"
	for _, c := range []struct {
		name, site string
		to         string // X-To
		want       int
	}{
		{"what the proxy names", "reverse_proxy API {\n transport device_flow\n}", "", 200},
		{"the short form", "device_flow API", "", 200},
		{"an address that is fixed at start-up", "reverse_proxy {env.DEVICE_FLOW_TEST_UPSTREAM} {\n transport device_flow\n}", "", 200},
		{"an address from the request", fromHeader + "\n}", x.api, 502},
		{"an address from the request, named", fromHeader + " {\n  allow_upstream http://API\n }\n}", x.api, 200},
		{"an address from the request, in the short form", "device_flow {http.request.header.X-To} {\n allow_upstream http://API\n}", x.api, 200},
		{"another address from the request", fromHeader + " {\n  allow_upstream http://API\n }\n}", other, 502},
		{"the same host at another port", fromHeader + " {\n  allow_upstream http://" + host + "\n }\n}", x.api, 502},
		{"without the TLS that it must have", fromHeader + " {\n  allow_upstream https://API\n }\n}", x.api, 502},
		{"an upstream besides the list", "device_flow " + other + " {\n allow_upstream http://API\n}", "", 502},
		{"a dynamic upstream", "device_flow {\n dynamic a " + host + " " + port + "\n}", "", 502},
		{"a dynamic upstream, named", "device_flow {\n dynamic a " + host + " " + port + "\n allow_upstream http://API\n}", "", 200},
		{"both, and the dynamic one is another", "device_flow API {\n dynamic a " + strings.Replace(other, ":", " ", 1) + "\n}", "", 502},
	} {
		t.Run(c.name, func(t *testing.T) {
			x.t = t
			x.load(x.config(t.Name(), global, "a", c.site))
			if x.as.Count(flowtest.Device) == 0 {
				x.login("default")
			}
			before := len(x.as.APIRequests())
			got := x.get("http://a/", "X-To", c.to)
			if got.status != c.want {
				t.Fatalf("%d %s, want %d", got.status, got.body, c.want)
			}
			if calls := len(x.as.APIRequests()) - before; calls != map[int]int{200: 1, 502: 0}[c.want] {
				t.Errorf("the API got %d requests", calls)
			}
			if len(seen) > 0 {
				t.Error("a request got to a server that the site does not name")
			}
			if c.want == 502 && len(logged(t.Name(), `"level":"error"`, "allow_upstream", "session default")) != 1 {
				t.Error("the log does not say what to write")
			}
		})
	}
	x.t = t
}

func TestAnotherUpstreamIsTriedAfterOneThatMayNotHaveTheToken(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	other, seen := elsewhere(t)
	x.load(x.config(t.Name(), global,
		"a", "device_flow "+other+" API {\n allow_upstream http://API\n lb_policy round_robin\n}",
		"b", "device_flow "+other+" API {\n allow_upstream http://API\n lb_policy round_robin\n lb_retries 1\n}"))
	x.login("default")
	if lines := logged(t.Name(), `"level":"warn"`, "allow_upstream", other); len(lines) != 2 {
		t.Errorf("at load, %d warnings for 2 sites", len(lines))
	}
	count := map[string]int{}
	for range 4 {
		for _, site := range []string{"a", "b"} {
			count[fmt.Sprint(site, x.get("http://"+site+"/").status)]++
		}
	}
	if count["a200"] != 2 || count["a502"] != 2 || count["b200"] != 4 {
		t.Errorf("the answers are %v", count)
	}
	if len(seen) > 0 || len(x.as.APIRequests()) != 6 {
		t.Errorf("%d requests to the other upstream, %d to the API", len(seen), len(x.as.APIRequests()))
	}
}

// Where a dynamic source finds a server does not matter if it proves its name.
func TestACertificateNamesADynamicUpstream(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	upstream := httptest.NewTLSServer(x.as.API()) // its certificate is for example.com and 127.0.0.1
	defer upstream.Close()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: upstream.Certificate().Raw})
	if err := os.WriteFile(filepath.Join(x.dir, "ca.pem"), ca, 0o600); err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(upstream.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	site := func(allow, name, more string) string {
		return "device_flow {\n dynamic a 127.0.0.1 " + port + "\n allow_upstream https://" + allow + ":" + port +
			"\n transport http {\n  tls_server_name " + name + "\n  tls_trust_pool file DIR/ca.pem\n" + more + " }\n}"
	}
	x.load(x.config(t.Name(), global,
		"a", site("example.com", "example.com", ""),
		"b", site("api.example.org", "example.com", ""),
		"c", site("api.example.org", "api.example.org", ""),
		"d", site("api.example.org", "api.example.org", "  tls_insecure_skip_verify\n"),
	))
	x.login("default")
	for site, want := range map[string]int{"a": 200, "b": 502, "c": 502, "d": 502} {
		if got := x.get("http://" + site + "/"); got.status != want {
			t.Errorf("site %s: %d %s, want %d", site, got.status, got.body, want)
		}
	}
	if n := len(x.as.APIRequests()); n != 1 {
		t.Errorf("the API got %d requests, want 1", n)
	}
	if lines := logged(t.Name(), `"level":"error"`, "certificate"); len(lines) != 1 {
		t.Errorf("%d errors about a certificate, want that of site c", len(lines))
	}
}

func TestASocketIsOnThisMachine(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	ln, err := net.Listen("unix", filepath.Join(x.dir, "api"))
	if err != nil {
		t.Fatal(err)
	}
	api := &http.Server{Handler: x.as.API()}
	done := make(chan error, 1)
	go func() { done <- api.Serve(ln) }()
	defer func() {
		_ = api.Close()
		receive(t, done, "the end of the API")
	}()
	x.load(x.config(t.Name(), global, "a", "device_flow unix/DIR/api",
		"b", "device_flow unix/DIR/{http.request.header.X-To} {\n allow_upstream unix/DIR/api\n}"))
	x.login("default")
	for _, c := range []struct {
		site, to string
		want     int
	}{{"a", "", 200}, {"b", "api", 200}, {"b", "a.sock", 502}} {
		if got := x.get("http://"+c.site+"/", "X-To", c.to); got.status != c.want {
			t.Errorf("site %s: %d %s", c.site, got.status, got.body)
		}
	}
	for _, r := range x.as.APIRequests() {
		if r.Host != "localhost" {
			t.Errorf("Host is %q", r.Host)
		}
	}
	if newDestination("unix", "/run/API", false) == newDestination("unix", "/run/api", false) {
		t.Error("two sockets are taken for one")
	}
}

func TestARedirectOfTheAPIIsTheCallersToFollow(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	other, seen := elsewhere(t)
	x.load(x.config(t.Name(), "", "a", proxy))
	x.login("default")
	for _, status := range []int{301, 302, 303, 307, 308} {
		x.as.Script(flowtest.API, flowtest.Response{Status: status, Header: http.Header{"Location": {"http://" + other + "/"}}})
		if got := x.get("http://a/"); got.status != status || got.header.Get("Location") != "http://"+other+"/" {
			t.Errorf("%d %v, want %d", got.status, got.header, status)
		}
	}
	if len(seen) > 0 {
		t.Error("a redirect has been followed")
	}
}

func TestClearTextIsAnErrorAtLoad(t *testing.T) {
	const clearText = " would get the token in clear text: use https://, or set insecure_http if the network is trusted"
	login := " issuer https://l.example.com\n client_id a\n"
	for _, c := range []struct{ name, options, site, want string }{
		{"a host name", login, "reverse_proxy http://api.example.com {\n transport device_flow\n}", "upstream http://api.example.com" + clearText},
		{"without a scheme", login, "device_flow api:3000", "upstream http://api:3000" + clearText},
		{"HTTP/2", login, "device_flow h2c://api:3000", "upstream http://api:3000" + clearText},
		{"an address", login, "device_flow 192.0.2.1:80", "upstream http://192.0.2.1" + clearText},
		{"what only looks like loopback", login, "device_flow 127.0.0.1.example.com:80", "upstream http://127.0.0.1.example.com" + clearText},
		{"a port without TLS", login, "reverse_proxy https://api.example.com:8443 {\n transport device_flow {\n  tls_except_ports 8443\n }\n}", "upstream http://api.example.com:8443" + clearText},
		{"one of several", login, "device_flow 127.0.0.1:1 api:1", "upstream http://api:1" + clearText},
		{"in the list", login, "device_flow {http.request.header.X-To} {\n allow_upstream http://api:3000\n}", "upstream http://api:3000" + clearText},
		{"besides the list", login, "device_flow http://api:3000 {\n allow_upstream http://127.0.0.1\n}", ""},
		{"TLS", login, "device_flow https://api.example.com", ""},
		{"loopback", login, "device_flow http://127.9.9.9 http://[::1]:9 http://localhost http://api.localhost", ""},
		{"insisted on for the login", login + " insecure_http\n", "device_flow http://api:3000", ""},
		{"insisted on for the proxy", login, "reverse_proxy http://api:3000 {\n transport device_flow {\n  insecure_http\n }\n}", ""},
		{"no URL", login, "device_flow a:1 {\n allow_upstream api.example.com\n}", "allow_upstream api.example.com: write scheme, host and, if need be, port, as in https://api.example.com"},
		{"a URL with a path", login, "device_flow a:1 {\n allow_upstream https://api.example.com/v1\n}",
			"allow_upstream https://api.example.com/v1: write scheme, host and, if need be, port, as in https://api.example.com"},
		{"a URL of a user", login, "device_flow a:1 {\n allow_upstream https://a@b\n}", "allow_upstream https://a@b: write scheme, host and, if need be, port, as in https://api.example.com"},
		{"a URL from the request", login, "device_flow a:1 {\n allow_upstream https://{http.request.host}\n}",
			"allow_upstream https://{http.request.host}: unrecognized placeholder {http.request.host}: only placeholders that are known at start-up, such as {env.…}, say who may get the token"},
	} {
		t.Run(c.name, func(t *testing.T) {
			config, err := adapt(t, "{\n device_flow {\n"+c.options+" }\n}\n"+site(c.site))
			if err != nil {
				t.Fatal(err)
			}
			err = provisioned(t, config)
			switch {
			case c.want == "" && err != nil:
				t.Error(err)
			case c.want != "" && (err == nil || !strings.HasSuffix(err.Error(), ": "+c.want)):
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
		})
	}
}

func TestAllowUpstreamIsOfTheProxy(t *testing.T) {
	_, err := adapt(t, site("device_flow {\n session a\n allow_upstream https://api.example.com\n}"))
	const want = "allow_upstream belongs to the proxy: name the upstream here, or write it into the block of 'transport device_flow', at Caddyfile:2"
	if err == nil || !strings.HasSuffix(err.Error(), want) {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

// S43 of the scorecard: what a request line says about the host decides nothing.
func TestAnAbsoluteRequestGoesToTheUpstreamUnderItsName(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	upstream := httptest.NewTLSServer(x.as.API())
	defer upstream.Close()
	x.load(x.config(t.Name(), global, ":1@plain", lastHop+"\n}",
		":2@tls", "reverse_proxy "+upstream.URL+" {\n transport device_flow {\n  tls_insecure_skip_verify\n }\n}",
		":3@chosen", lastHop+" header_up Host {host}\n}"))
	s := x.login("default")
	for _, target := range []string{
		"http://169.254.169.254/latest", "http://evil.localhost/latest", "https://evil.localhost:444/latest", "/latest", // what else there is, the guard refuses
	} {
		host := "evil.localhost"
		if strings.Contains(target, "169") {
			host = "169.254.169.254"
		}
		for site, want := range map[string]string{
			"plain": x.api, "tls": upstream.Listener.Addr().String(), "chosen": host,
		} {
			resp := x.raw(site, "GET "+target+" HTTP/1.1\r\nHost: "+host+"\r\nConnection: close\r\n\r\n")
			calls := x.as.APIRequests()
			if resp.status != http.StatusOK || len(calls) == 0 {
				t.Fatalf("%s of %s: %d %s", target, site, resp.status, resp.body)
			}
			got := calls[len(calls)-1]
			if got.Host != want && (site != "chosen" || got.Host != host+":444") || got.URL != "/latest" {
				t.Errorf("%s of %s: the API saw %s of %s, want host %s", target, site, got.URL, got.Host, want)
			}
			if a := got.Header["Authorization"]; len(a) != 1 || a[0] != "Bearer "+s.Current().Value().Reveal() {
				t.Errorf("%s of %s: the API got %d values of Authorization", target, site, len(a))
			}
		}
	}
}

func TestARetryNamesTheUpstreamThatItGoesTo(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := gone.Addr().String()
	_ = gone.Close()
	x.load(x.config(t.Name(), "", "a", "device_flow "+nobody+" API {\n LOGIN\n lb_policy first\n lb_retries 1\n fail_duration 1h\n}"))
	x.login("default")
	if got := x.get("http://a/"); got.status != http.StatusOK {
		t.Fatalf("%d %s", got.status, got.body)
	}
	if got := x.as.APIRequests()[0].Host; got != x.api {
		t.Errorf("Host is %s, want %s", got, x.api)
	}
}

func TestADefaultPortIsNoPartOfTheName(t *testing.T) {
	for _, c := range []struct{ address, scheme, want string }{
		{"api.example.com:443", "https", "api.example.com"},
		{"api.example.com:80", "http", "api.example.com"},
		{"api.example.com:80", "https", "api.example.com:80"},
		{"api.example.com:8443", "https", "api.example.com:8443"},
		{"[2001:db8::7]:443", "https", "[2001:db8::7]"},
	} {
		req, transport := directed(t, c.address, c.scheme == "https")
		req.Host = c.address
		if err := transport.direct(req); err != nil || req.Host != c.want || req.URL.Scheme != c.scheme {
			t.Errorf("%s: %s for host %s: %v", c.address, req.URL.Scheme, req.Host, err)
		}
	}
	req, transport := directed(t, "api.example.com:443", true)
	req.Host = "other.example.com"
	if err := transport.direct(req); err != nil || req.Host != "other.example.com" {
		t.Errorf("the operator's Host has become %s: %v", req.Host, err)
	}
}

// A retry finds the scheme that the attempt before it has left.
func TestTheSchemeIsThatOfThePort(t *testing.T) {
	req, transport := directed(t, "api.example.com:443", true)
	req.URL.Scheme = "http"
	if err := transport.direct(req); err != nil || req.URL.Scheme != "https" {
		t.Errorf("port 443 gets %s: %v", req.URL.Scheme, err)
	}
	req, transport = directed(t, "api.example.com:443", true)
	transport.TLS.ExceptPorts = []string{"443"}
	if err := transport.direct(req); err == nil {
		t.Error("clear text where the site names TLS is accepted")
	}
}

// raw sends bytes to a site and reads its answer.
func (x *rig) raw(site, request string) answer {
	x.t.Helper()
	conn, err := net.Dial("unix", x.socket(site))
	if err != nil {
		x.t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		x.t.Fatal(err)
	}
	if _, err := io.WriteString(conn, request); err != nil {
		x.t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		x.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		x.t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, string(body)}
}

// dialInfoKey is where reverse_proxy puts what it has decided to dial.
const dialInfoKey caddy.CtxKey = "reverse_proxy.dial_info"

func dialInfo(t *testing.T, address string) reverseproxy.DialInfo {
	t.Helper()
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	return reverseproxy.DialInfo{Network: "tcp", Address: address, Host: host, Port: port}
}

// directed is a request that reverse_proxy sends to an address, and a transport that may send the token there.
func directed(t *testing.T, address string, tls bool) (*http.Request, *Transport) {
	t.Helper()
	transport := &Transport{
		HTTPTransport: new(reverseproxy.HTTPTransport), session: &session{name: "default"},
		pins: map[destination]struct{}{newDestination("tcp", address, tls): {}},
	}
	if tls {
		transport.TLS = new(reverseproxy.TLSConfig)
	}
	ctx := context.WithValue(t.Context(), dialInfoKey, dialInfo(t, address))
	req := &http.Request{Method: http.MethodGet, URL: &url.URL{Host: address, Path: "/"}, Header: http.Header{}}
	return req.WithContext(ctx), transport
}
