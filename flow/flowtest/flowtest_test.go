package flowtest_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

const deviceGrant = "urn:ietf:params:oauth:grant-type:device_code"

// client is the least that can talk to the server.
type client struct {
	t  *testing.T
	as *flowtest.Server
	hc *http.Client
	id string

	device, token string // paths
}

// bubble runs a test with a server in memory and a fake clock.
func bubble(t *testing.T, cfg flowtest.Config, f func(c *client)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		as := flowtest.New(cfg)
		defer as.Close()
		f(newClient(t, as, &http.Client{Transport: as.RoundTripper()}, cfg.Flavour))
	})
}

func newClient(t *testing.T, as *flowtest.Server, hc *http.Client, flavour flowtest.Flavour) *client {
	c := &client{t: t, as: as, hc: hc, id: "demo-client", device: "/device_authorization", token: "/token"}
	if flavour == flowtest.Auth0 {
		c.device, c.token = "/oauth/device/code", "/oauth/token"
	}
	return c
}

type answer struct {
	status int
	header http.Header
	raw    string
	body   map[string]any
}

func (a answer) str(name string) string { s, _ := a.body[name].(string); return s }

func (c *client) url(path string) string { return strings.TrimRight(c.as.Issuer(), "/") + path }

func (c *client) do(req *http.Request) (answer, error) {
	c.t.Helper()
	resp, err := c.hc.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return answer{}, err
	}
	a := answer{status: resp.StatusCode, header: resp.Header, raw: string(raw)}
	_ = json.Unmarshal(raw, &a.body) // not every answer is JSON
	return a, nil
}

func (c *client) request(method, path, body string) *http.Request {
	c.t.Helper()
	req, err := http.NewRequestWithContext(c.t.Context(), method, c.url(path), strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	if method == http.MethodPost {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	return req
}

// form makes an encoded form of pairs; client_id is added if the client has one.
func (c *client) form(pairs ...string) string {
	v := url.Values{}
	if c.id != "" {
		v.Set("client_id", c.id)
	}
	for i := 0; i < len(pairs); i += 2 {
		v.Add(pairs[i], pairs[i+1])
	}
	return v.Encode()
}

func (c *client) post(path string, pairs ...string) answer {
	c.t.Helper()
	a, err := c.do(c.request(http.MethodPost, path, c.form(pairs...)))
	if err != nil {
		c.t.Fatal(err)
	}
	return a
}

func (c *client) start(pairs ...string) answer {
	c.t.Helper()
	a := c.post(c.device, pairs...)
	if a.status != 200 || a.str("device_code") == "" || a.str("user_code") == "" {
		c.t.Fatalf("device authorization: %d %s", a.status, a.raw)
	}
	return a
}

func (c *client) poll(code string, pairs ...string) answer {
	c.t.Helper()
	return c.post(c.token, append([]string{"grant_type", deviceGrant, "device_code", code}, pairs...)...)
}

func (c *client) refresh(token string, pairs ...string) answer {
	c.t.Helper()
	return c.post(c.token, append([]string{"grant_type", "refresh_token", "refresh_token", token}, pairs...)...)
}

// login goes all the way and returns the token response.
func (c *client) login(pairs ...string) answer {
	c.t.Helper()
	d := c.start(pairs...)
	if err := c.as.Approve(d.str("user_code")); err != nil {
		c.t.Fatal(err)
	}
	time.Sleep(5 * time.Second)
	a := c.poll(d.str("device_code"))
	if a.status != 200 || a.str("access_token") == "" {
		c.t.Fatalf("login: %d %s", a.status, a.raw)
	}
	return a
}

func (c *client) want(a answer, status int, code string) {
	c.t.Helper()
	if a.status != status || a.str("error") != code {
		c.t.Errorf("got %d %s, want %d %s", a.status, a.raw, status, code)
	}
	if a.header.Get("Cache-Control") != "no-store" || a.header.Get("Content-Type") != "application/json" {
		c.t.Errorf("%s: Cache-Control %q, Content-Type %q", code, a.header.Get("Cache-Control"), a.header.Get("Content-Type"))
	}
}

// violations asserts that each of the violations holds one of the texts, in order.
func (c *client) violations(want ...string) {
	c.t.Helper()
	got := c.as.Stats().Violations
	if len(got) != len(want) || !slices.EqualFunc(got, want, strings.Contains) {
		c.t.Errorf("violations %q, want %q", got, want)
	}
}

// wantBody compares a whole answer.
func (c *client) wantBody(a answer, status int, body, contentType string) {
	c.t.Helper()
	if a.status != status || a.raw != body || a.header.Get("Content-Type") != contentType {
		c.t.Errorf("got %d %q %q, want %d %q %q", a.status, a.raw, a.header.Get("Content-Type"), status, body, contentType)
	}
}
