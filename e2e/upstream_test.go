package e2e

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestUpstreamTroubleIsNoTokenTrouble breaks the API in each way that a network can: callers see what a stock Caddy
// shows, no refresh is asked for, and no token gets into an answer or a log.
func TestUpstreamTroubleIsNoTokenTrouble(t *testing.T) {
	parallel(t)
	as, a, c := startProxy(t, time.Hour)
	tokens := a.tokens()

	if res := get(t, client(t), c.url+"/reset", ""); res.status != http.StatusBadGateway {
		t.Errorf("a connection reset by the API: %d %s, want 502", res.status, res.body)
	}

	res, err := client(t).Get(c.url + "/half")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(res.Body)
	_ = res.Body.Close()
	if err == nil {
		t.Errorf("half an answer ends like a whole one: %d %q", res.StatusCode, body)
	}

	a.CloseClientConnections()
	a.Close()
	for range 3 {
		res := get(t, client(t), c.url+"/", "")
		if res.status != http.StatusBadGateway || res.body != "" {
			t.Errorf("an API that is down: %d %q, want Caddy's own empty 502", res.status, res.body)
		}
		for name, values := range res.header {
			requireAbsent(t, "the header "+name+" of a 502", strings.Join(values, " "), tokens)
		}
	}
	if got := c.status(t).State; got != "authorized" {
		t.Errorf("with the API down the state is %q", got)
	}
	if got := as.Stats(); got.Refreshes != 0 || got.DeviceRequests != 1 {
		t.Errorf("the API's troubles led to %d refreshes and %d codes, want 0 and 1", got.Refreshes, got.DeviceRequests)
	}
	if log := c.output.String(); !strings.Contains(log, "connection refused") {
		t.Error("the log does not say that the API is down")
	}
	requireAbsent(t, "the log", c.output.String(), tokens)
}

// requireAbsent looks for secrets in a text and fails without showing them.
func requireAbsent(t *testing.T, place, text string, secrets []string) {
	t.Helper()
	if len(secrets) == 0 {
		t.Errorf("%s: there is no secret to look for", place)
	}
	for i, s := range secrets {
		if s == "" {
			t.Errorf("%s: secret %d is empty", place, i)
		} else if strings.Contains(text, s) {
			t.Errorf("secret %d stands in %s", i, place)
		}
	}
}

// TestRefusedCallGoesThroughHandleErrors leaves the words to the operator's own error routes, and the headers that
// tell a device when to call again to us. Routes for other errors or of another site have no say.
func TestRefusedCallGoesThroughHandleErrors(t *testing.T) {
	parallel(t)
	const render = `
		header X-Rendered-By operator
		respond "the login is missing, says the operator ({err.status_code})" 503
	}
`
	for name, tc := range map[string]struct {
		address, errors, rest string
		want                  bool // is it the operator's answer?
	}{
		"all":          {address: "http://:{$PORT}", errors: "\thandle_errors {" + render, want: true},
		"this status":  {address: "http://:{$PORT}", errors: "\thandle_errors 503 {" + render, want: true},
		"named site":   {address: "http://127.0.0.1:{$PORT}", errors: "\thandle_errors 5xx {" + render, want: true},
		"other status": {address: "http://:{$PORT}", errors: "\thandle_errors 404 502 {" + render},
		"other site": {
			address: "http://:{$PORT}",
			rest:    "http://other.example:{$PORT} {\n\tbind 127.0.0.1\n\trespond other\n\thandle_errors {" + render + "}\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			as := startAS(t, time.Hour, byHand)
			a := startAPI(t, as.ValidToken)
			c := startCaddy(t, tc.address+` {
	bind 127.0.0.1
	device_flow {$API} {
		issuer {$ISSUER}
		client_id device
	}
`+tc.errors+"}\n"+tc.rest, as.Issuer(), a.URL)

			res := get(t, client(t), c.url+"/", "application/json")
			theirs := res.body == "the login is missing, says the operator (503)" && res.header.Get("X-Rendered-By") == "operator"
			ours := strings.HasPrefix(res.header.Get("Content-Type"), "application/problem+json") && strings.Contains(res.body, `"user_code"`)
			if res.status != 503 || theirs != tc.want || ours == tc.want {
				t.Fatalf("got %d %v %q; should it be the operator's? %t", res.status, res.header, res.body, tc.want)
			}
			if seconds, err := strconv.Atoi(res.header.Get("Retry-After")); err != nil || seconds < 1 {
				t.Errorf("Retry-After is %q", res.header.Get("Retry-After"))
			}
			if got := res.header.Get("Cache-Control"); got != "no-store" {
				t.Errorf("Cache-Control is %q", got)
			}
			if got := c.status(t); got.State != "pending" || got.Login == nil {
				t.Fatalf("the call has not started a login: %+v", got)
			}
			if got := len(a.requests()); got != 0 {
				t.Errorf("the API was contacted %d times without a token", got)
			}
			if strings.Contains(c.output.String(), "evaluating expression") {
				t.Error("asking the error routes left an error in the log")
			}
		})
	}
}

// TestRefusalReachesAnHTTP10CallerWithoutHost gives a caller that cannot name the host it calls an address that
// works all the same.
func TestRefusalReachesAnHTTP10CallerWithoutHost(t *testing.T) {
	parallel(t)
	as := startAS(t, time.Hour, byHand)
	a := startAPI(t, as.ValidToken)
	c := startCaddy(t, site("device", "openid"), as.Issuer(), a.URL)
	res := raw(t, c, "GET / HTTP/1.0\r\nAccept: text/plain\r\n\r\n")
	if res.status != 503 || res.header.Get("Retry-After") == "" || !strings.HasPrefix(res.header.Get("Content-Type"), "text/plain") {
		t.Fatalf("got %d %v %s", res.status, res.header, res.body)
	}
	codes := as.Pending()
	if len(codes) != 1 || !strings.Contains(res.body, codes[0]) || !strings.Contains(res.body, as.Issuer()) {
		t.Fatalf("the refusal does not say to enter the code %v at %s: %s", codes, as.Issuer(), res.body)
	}
	if p := c.problem(t); !strings.HasPrefix(p.StatusURL, c.url+"/") {
		t.Errorf("status_url is %q, want one at %s", p.StatusURL, c.url)
	}
	res = raw(t, c, "GET / HTTP/1.0\r\nAccept: application/json\r\n\r\n")
	if want := `"` + c.url + `/.device-flow"`; !strings.Contains(res.body, want) {
		t.Errorf("without a Host, the refusal does not name the page %s: %s", want, res.body)
	}
}

// issuerMismatch answers discovery with a document that names another issuer.
func issuerMismatch(t *testing.T, other string) *httptest.Server {
	t.Helper()
	as := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, "/.well-known/") {
			t.Errorf("the server of another issuer was asked for %s", r.URL.Path)
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"issuer":"`+other+`","device_authorization_endpoint":"`+other+`/device","token_endpoint":"`+other+`/token"}`)
	}))
	t.Cleanup(as.Close)
	return as
}

// TestIssuerMismatchIsShownAndStopsNothing can only be known at run time: the status names both issuers, callers are
// told, and Caddy goes on with its other sites.
func TestIssuerMismatchIsShownAndStopsNothing(t *testing.T) {
	parallel(t)
	const other = "https://login.example.net"
	as := issuerMismatch(t, other)
	a := startAPI(t, func(string) bool { return true })
	c := startCaddy(t, site("device", "openid")+`
http://:{$PORT2} {
	bind 127.0.0.1
	respond "other site"
}
`, as.URL, a.URL)
	_ = c.problem(t)
	var s status
	eventually(t, patience, "the session is misconfigured", func() bool {
		s = c.status(t)
		return s.State == "misconfigured"
	})
	if s.Error == nil || s.Error.Action != "fix_configuration" ||
		!strings.Contains(s.Error.Description, other) || !strings.Contains(s.Error.Description, as.URL) {
		t.Fatalf("the status does not name both %s and %s: %+v", other, as.URL, s.Error)
	}
	if p := c.problem(t); p.State != "misconfigured" || !strings.Contains(p.Detail, p.StatusURL) {
		t.Errorf("a caller is not told where to read more: %+v", p)
	}
	if res := get(t, client(t), c.url+"/.device-flow", "text/plain"); !strings.Contains(res.body, other) || !strings.Contains(res.body, as.URL) {
		t.Errorf("the page does not name both %s and %s:\n%s", other, as.URL, res.body)
	}
	if res := get(t, client(t), c.url+"/.device-flow/healthz", ""); res.status != 503 || strings.TrimSpace(res.body) != "misconfigured" {
		t.Errorf("healthz: %d %q", res.status, res.body)
	}
	if res := get(t, client(t), c.url2, ""); res.body != "other site" {
		t.Errorf("the other site: %d %s", res.status, res.body)
	}
	if !strings.Contains(c.output.String(), other) {
		t.Error("the log does not name the other issuer")
	}
	if got := len(a.requests()); got != 0 {
		t.Errorf("the API was contacted %d times without a token", got)
	}
}
