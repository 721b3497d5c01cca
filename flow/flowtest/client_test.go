package flowtest_test

import (
	"encoding/base64"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"testing"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

func TestMalformedRequestsAreRefused(t *testing.T) {
	for _, tc := range []struct {
		name      string
		change    func(*http.Request) *http.Request
		body      string
		status    int
		violation string
	}{
		{"GET", func(r *http.Request) *http.Request { r.Method = http.MethodGet; return r }, "", 405, "POST"},
		{"JSON", func(r *http.Request) *http.Request { r.Header.Set("Content-Type", "application/json"); return r }, `{"client_id":"demo-client"}`, 400, "form-urlencoded"},
		{"no content type", func(r *http.Request) *http.Request { r.Header.Del("Content-Type"); return r }, "client_id=demo-client", 400, "form-urlencoded"},
		{"query", func(r *http.Request) *http.Request { r.URL.RawQuery = "client_id=demo-client"; return r }, "client_id=demo-client", 400, "in the URL"},
		{"duplicate", nil, "client_id=demo-client&client_id=demo-client", 400, "occurs 2 times"},
		{"broken escape", nil, "client_id=%zz", 400, "not well-formed"},
		{"no client", nil, "scope=a", 400, "client_id is missing"},
		{"empty client", nil, "client_id=", 400, "client_id is missing"},
		{"secret of a public client", nil, "client_id=demo-client&client_secret=x", 401, "must not authenticate"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, path := range []string{"/device_authorization", "/token", "/revoke"} {
				bubble(t, flowtest.Config{}, func(c *client) {
					req := c.request(http.MethodPost, path, tc.body)
					if tc.change != nil {
						req = tc.change(req)
					}
					a, err := c.do(req)
					if err != nil {
						t.Fatal(err)
					}
					code := "invalid_request"
					if tc.status == 401 {
						code = "invalid_client"
					}
					c.want(a, tc.status, code)
					c.violations(tc.violation)
				})
			}
		})
	}
	bubble(t, flowtest.Config{}, func(c *client) {
		c.want(c.post("/token"), 400, "invalid_request")
		c.want(c.post("/token", "grant_type", "password"), 400, "unsupported_grant_type")
		c.want(c.poll(""), 400, "invalid_request")
		c.want(c.refresh(""), 400, "invalid_request")
		c.want(c.post("/nowhere"), 404, "not_found")
		c.violations("grant_type is missing", "unsupported", "device_code is missing", "refresh_token is missing")
	})
}

func TestClientAuthentication(t *testing.T) {
	const id, secret = "https://client.example/ü", "a:b/%+& ü"
	basic := func(id, secret string) string {
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(id+":"+secret))
	}
	good := basic(url.QueryEscape(id), url.QueryEscape(secret))
	for _, tc := range []struct {
		name          string
		authorization []string
		form          url.Values
		status        int
		challenge     bool
		violations    []string
	}{
		{name: "post", form: url.Values{"client_id": {id}, "client_secret": {secret}}, status: 200},
		{name: "basic", authorization: []string{good}, status: 200},
		{name: "basic with the id in the body", authorization: []string{good}, form: url.Values{"client_id": {id}}, status: 200},
		{name: "none", form: url.Values{"client_id": {id}}, status: 401},
		{name: "wrong secret", form: url.Values{"client_id": {id}, "client_secret": {"x"}}, status: 401},
		{name: "unknown client", form: url.Values{"client_id": {"x"}, "client_secret": {secret}}, status: 401},
		{name: "wrong basic", authorization: []string{basic(url.QueryEscape(id), "x")}, status: 401, challenge: true},
		{
			name: "basic not encoded", authorization: []string{basic("client", secret)}, status: 401, challenge: true,
			violations: []string{"form-urlencoded"},
		},
		{
			name: "bearer", authorization: []string{"Bearer x"}, status: 401, challenge: true,
			violations: []string{"not Basic"},
		},
		{
			name: "basic and post", authorization: []string{good}, form: url.Values{"client_id": {id}, "client_secret": {secret}}, status: 400,
			violations: []string{"more than one"},
		},
		{name: "basic twice", authorization: []string{good, good}, status: 400, violations: []string{"more than one"}},
		{
			name: "basic and another id", authorization: []string{good}, form: url.Values{"client_id": {"x"}}, status: 400,
			violations: []string{"differs"},
		},
		{
			name: "secret and assertion", form: url.Values{"client_id": {id}, "client_secret": {secret}, "client_assertion": {"x"}}, status: 400,
			violations: []string{"more than one"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubble(t, flowtest.Config{ClientID: id, ClientSecret: secret}, func(c *client) {
				req := c.request(http.MethodPost, "/device_authorization", tc.form.Encode())
				if tc.authorization != nil {
					req.Header["Authorization"] = tc.authorization
				}
				a, err := c.do(req)
				if err != nil {
					t.Fatal(err)
				}
				if a.status != tc.status {
					t.Errorf("got %d %s, want %d", a.status, a.raw, tc.status)
				}
				if got := a.header.Get("WWW-Authenticate") != ""; got != tc.challenge {
					t.Errorf("WWW-Authenticate %q", a.header.Get("WWW-Authenticate"))
				}
				c.violations(tc.violations...)
			})
		})
	}
}

func TestClientAssertion(t *testing.T) {
	cfg := flowtest.Config{VerifyAssertion: func(assertion string) error {
		if assertion != "good" {
			return errors.New("bad signature")
		}
		return nil
	}}
	const kind = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
	bubble(t, cfg, func(c *client) {
		c.start("client_assertion_type", kind, "client_assertion", "good")
		c.want(c.post(c.device), 401, "invalid_client")
		c.violations()
		c.want(c.post(c.device, "client_assertion", "good"), 400, "invalid_request")
		c.want(c.post(c.device, "client_assertion_type", kind, "client_assertion", "bad"), 401, "invalid_client")
		c.violations("client_assertion_type", "bad signature")
		c.id = ""
		c.start("client_assertion_type", kind, "client_assertion", "good")
	})
}

func TestDiscovery(t *testing.T) {
	for _, tc := range []struct {
		cfg      flowtest.Config
		path     string
		endpoint string
	}{
		{flowtest.Config{}, "/.well-known/oauth-authorization-server", "https://as.flowtest.example/token"},
		{flowtest.Config{Flavour: flowtest.Auth0}, "/.well-known/openid-configuration", "https://as.flowtest.example/oauth/token"},
		{flowtest.Config{Issuer: "https://as.example/t/1"}, "/.well-known/oauth-authorization-server/t/1", "https://as.example/t/1/token"},
		{flowtest.Config{Issuer: "https://as.example/t/1"}, "/t/1/.well-known/openid-configuration", "https://as.example/t/1/token"},
	} {
		bubble(t, tc.cfg, func(c *client) {
			req := c.request(http.MethodGet, "", "")
			req.URL.Path = tc.path
			doc, err := c.do(req)
			if err != nil {
				t.Fatal(err)
			}
			if doc.str("issuer") != c.as.Issuer() || doc.str("token_endpoint") != tc.endpoint || doc.str("device_authorization_endpoint") == "" ||
				doc.str("revocation_endpoint") == "" || doc.str("userinfo_endpoint") == "" {
				t.Errorf("%s: %d %s", tc.path, doc.status, doc.raw)
			}
			methods, _ := doc.body["token_endpoint_auth_methods_supported"].([]any)
			if !slices.Equal(methods, []any{"none"}) {
				t.Errorf("authentication methods %v", methods)
			}
			if c.as.Count(flowtest.Discovery) != 1 {
				t.Errorf("%d discovery requests", c.as.Count(flowtest.Discovery))
			}
			u, _ := url.Parse(doc.str("device_authorization_endpoint"))
			c.device = u.Path
			req = c.request(http.MethodPost, "", c.form())
			req.URL.Path = u.Path
			if a, err := c.do(req); err != nil || a.status != 200 {
				t.Errorf("the device endpoint of the document: %d, %v", a.status, err)
			}
		})
	}
}
