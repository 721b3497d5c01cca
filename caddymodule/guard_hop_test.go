package caddymodule

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// servedBy is the server that listens in some place.
func servedBy(t *testing.T, listen string) *caddyhttp.Server {
	t.Helper()
	app, err := caddy.ActiveContext().App("http")
	if err != nil {
		t.Fatal(err)
	}
	for _, srv := range app.(*caddyhttp.App).Servers {
		if strings.Contains(strings.Join(srv.Listen, " "), listen) {
			return srv
		}
	}
	t.Fatalf("no server listens at %s", listen)
	return nil
}

var overSocket = context.WithValue(context.Background(), http.LocalAddrContextKey, net.Addr(&net.UnixAddr{Net: "unix", Name: "/run/x"}))

// A balancer appends to what it was sent, and so does the proxy that the transport is in: of its own address, nothing
// is to be judged, of all before it each.
func TestTheLastHopJudgesWhatATrustedProxyReports(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	const hop = "transport device_flow\n"
	x.load(x.config(t.Name(), "device_flow {\n LOGIN\n}\nservers {\n trusted_proxies static 198.51.100.7/32 10.0.0.0/8\n trusted_proxies_unix\n client_ip_headers X-Forwarded-For X-Real-IP\n}",
		":1@plain", "reverse_proxy API {\n "+hop+"}",
		":1@deleted", "reverse_proxy API {\n header_up -X-Forwarded-For\n "+hop+"}",
		":1@set", "reverse_proxy API {\n header_up X-Forwarded-For 127.0.0.1\n "+hop+"}"))
	x.login("default")
	for _, c := range []struct {
		remote string
		header []string
		want   int
	}{
		{"@", nil, 200},
		{"@", []string{"X-Forwarded-For", "10.0.0.1"}, 200},
		{"@", []string{"X-Forwarded-For", "10.0.0.1, 8.8.8.8"}, 403},
		{"@", []string{"X-Forwarded-For", "8.8.8.8, 10.0.0.1"}, 403},
		{"@", []string{"X-Forwarded-For", "10.0.0.1", "X-Forwarded-For", "8.8.8.8"}, 403},
		{"@", []string{"X-Real-Ip", "8.8.8.8"}, 403},
		{"198.51.100.7:99", nil, 403}, // itself
		{"198.51.100.7:99", []string{"X-Forwarded-For", "10.0.0.1"}, 200},
		{"198.51.100.7:99", []string{"X-Forwarded-For", "10.0.0.1, 8.8.8.8"}, 403},
		{"198.51.100.7:99", []string{"X-Forwarded-For", "10.0.0.1, unknown"}, 403},
		{"198.51.100.7:99", []string{"X-Forwarded-For", "10.0.0.1", "X-Real-Ip", "8.8.8.8"}, 403},
		{"198.51.100.7:99", []string{"X-Forwarded-For", "10.0.0.1", "X-Real-Ip", "10.0.0.2"}, 200},
		{"10.0.0.1:99", []string{"X-Forwarded-For", "192.168.1.1, 10.1.1.1"}, 200},
		{"127.0.0.1:99", []string{"X-Forwarded-For", "8.8.8.8"}, 200}, // no proxy that is trusted: anybody's own word
	} {
		for _, site := range []string{"plain", "deleted", "set"} {
			r := httptest.NewRequestWithContext(callerContext, http.MethodGet, "/", nil)
			r.Host, r.RemoteAddr, r.Header = "localhost", c.remote, http.Header{}
			if c.remote == "@" {
				r = r.WithContext(overSocket)
			}
			for i := 0; i < len(c.header); i += 2 {
				r.Header[c.header[i]] = append(r.Header[c.header[i]], c.header[i+1])
			}
			w, before := httptest.NewRecorder(), x.as.Count(flowtest.API)
			servedBy(t, "/"+site+".sock").ServeHTTP(w, r)
			if reached := x.as.Count(flowtest.API) > before; w.Code != c.want || reached != (c.want == 200) {
				t.Errorf("%s from %s with %q: %d %s, reached: %t", site, c.remote, c.header, w.Code, w.Body, reached)
			}
		}
	}
}

func TestARefusedMethodAtTheLastHopNamesThoseAllowed(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	x.load(x.config(t.Name(), "device_flow {\n LOGIN\n}", ":1@a", "reverse_proxy API {\n transport device_flow\n}"))
	req, err := http.NewRequestWithContext(t.Context(), http.MethodTrace, "http://a/", nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := x.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusMethodNotAllowed || res.Header.Get("Allow") != allowedMethods {
		t.Errorf("%d %v", res.StatusCode, res.Header)
	}
}

// Names that only the routes of errors or of a proxy's answers have are the site's, too.
func TestNamesAreFoundInErrorAndResponseRoutes(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	const last = "reverse_proxy API {\n transport device_flow\n}\n"
	x.load(x.config(t.Name(), "device_flow {\n LOGIN\n}",
		":1@error", "error 404\nhandle_errors {\n @own host error.example.com\n "+strings.Replace(last, "reverse_proxy", "reverse_proxy @own", 1)+"}",
		":1@answer", "reverse_proxy API {\n @all status 2xx 4xx\n handle_response @all {\n @own host answer.example.com\n "+strings.Replace(last, "reverse_proxy", "reverse_proxy @own", 1)+" }\n}"))
	x.login("default")
	x.alias("error", "error.example.com", "evil.example")
	x.alias("answer", "answer.example.com")
	for _, name := range []string{"error.example.com", "answer.example.com"} {
		before := len(x.as.APIRequests())
		got := x.get("http://" + name + "/")
		calls := x.as.APIRequests()[before:]
		if n := len(calls); n == 0 || calls[n-1].Header.Get("Authorization") == "" {
			t.Errorf("%s: %d %s", name, got.status, got.body)
		}
	}
	before := x.as.Count(flowtest.API)
	if x.get("http://evil.example/"); x.as.Count(flowtest.API) != before {
		t.Error("a name that nobody has given reaches the API")
	}
}
