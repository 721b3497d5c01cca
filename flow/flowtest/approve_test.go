package flowtest_test

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"html"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

func (c *client) get(uri string) answer {
	c.t.Helper()
	req, err := http.NewRequestWithContext(c.t.Context(), http.MethodGet, uri, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	a, err := c.do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	return a
}

func (c *client) submit(uri, userCode, action string, header ...string) answer {
	c.t.Helper()
	req, err := http.NewRequestWithContext(c.t.Context(), http.MethodPost, uri,
		strings.NewReader(url.Values{"user_code": {userCode}, "action": {action}}.Encode()))
	if err != nil {
		c.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	a, err := c.do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	return a
}

func TestApprovalPageLeadsToALogin(t *testing.T) {
	for name, flavour := range map[string]flowtest.Flavour{"/device": flowtest.RFC, "/activate": flowtest.Auth0} {
		cfg := flowtest.Config{Flavour: flavour, ClientName: "Garage <b>door</b>"}
		bubble(t, cfg, func(c *client) {
			d := c.start("scope", "openid read:things", "audience", "https://api.example.com")
			uri := d.str("verification_uri")
			if !strings.HasSuffix(uri, name) {
				t.Errorf("verification_uri %q", uri)
			}
			if a := c.get(uri); a.status != 200 || !strings.Contains(a.raw, `id="user_code"`) || !strings.Contains(a.raw, `id="continue"`) {
				t.Errorf("entry page: %d %s", a.status, a.raw)
			}
			a := c.get(d.str("verification_uri_complete"))
			for _, want := range []string{
				`value="` + d.str("user_code") + `"`, `id="approve"`, `id="deny"`, html.EscapeString(cfg.ClientName), "Know who you are",
				"Read your things", "read:things", "https://api.example.com", "Alice Example",
			} {
				if !strings.Contains(a.raw, want) {
					t.Errorf("the page lacks %q", want)
				}
			}
			if strings.Contains(a.raw, "<b>") {
				t.Error("the client's name is not escaped")
			}
			if len(c.as.Pending()) != 1 {
				t.Fatal("looking at the page changed something")
			}
			a = c.submit(uri, strings.ToLower(strings.Replace(d.str("user_code"), "-", "", 1)), "approve")
			if a.status != 200 || !strings.Contains(a.raw, `data-state="approved"`) || !strings.Contains(a.raw, `id="result"`) {
				t.Errorf("result page: %d %s", a.status, a.raw)
			}
			time.Sleep(5 * time.Second)
			if tok := c.poll(d.str("device_code")); tok.status != 200 {
				t.Errorf("poll: %s", tok.raw)
			}
			if a := c.get(d.str("verification_uri_complete")); a.status != 410 || !strings.Contains(a.raw, "has been used") {
				t.Errorf("used code: %d", a.status)
			}
			c.violations()
		})
	}
}

func TestApprovalPageRefusals(t *testing.T) {
	bubble(t, flowtest.Config{}, func(c *client) {
		d := c.start()
		uri, code := d.str("verification_uri"), d.str("user_code")
		if a := c.submit(uri, "ZZZZZZZZ", "approve"); a.status != 404 || !strings.Contains(a.raw, `role="alert"`) {
			t.Errorf("unknown code: %d", a.status)
		}
		if a := c.submit(uri, "", "approve"); a.status != 404 {
			t.Errorf("no code: %d", a.status)
		}
		if a := c.submit(uri, code, ""); a.status != 200 || !strings.Contains(a.raw, `data-state="confirm"`) {
			t.Errorf("no action: %d", a.status)
		}
		if a := c.submit(uri, code, "approve", "Sec-Fetch-Site", "cross-site"); a.status != 403 {
			t.Errorf("from another site: %d", a.status)
		}
		if a := c.submit(uri, code, "approve", "Origin", "https://evil.example"); a.status != 403 {
			t.Errorf("from another origin: %d", a.status)
		}
		if a := c.get(uri + "?action=approve&user_code=" + code); a.status != 200 || !strings.Contains(a.raw, `data-state="confirm"`) {
			t.Errorf("GET with an action: %d", a.status)
		}
		if len(c.as.Pending()) != 1 {
			t.Fatal("one of these decided the login")
		}
		if a := c.submit(uri, code, "deny", "Sec-Fetch-Site", "same-origin"); a.status != 200 || !strings.Contains(a.raw, `data-state="denied"`) {
			t.Errorf("deny: %d %s", a.status, a.raw)
		}
		time.Sleep(5 * time.Second)
		c.want(c.poll(d.str("device_code")), 400, "access_denied")
		d = c.start()
		if err := c.as.Expire(d.str("user_code")); err != nil {
			t.Fatal(err)
		}
		if a := c.submit(uri, d.str("user_code"), "approve"); a.status != 410 || !strings.Contains(a.raw, "expired") {
			t.Errorf("expired code: %d", a.status)
		}
	})
}

func TestApprovalPageHeaders(t *testing.T) {
	bubble(t, flowtest.Config{}, func(c *client) {
		a := c.get(c.url("/device"))
		_, rest, _ := strings.Cut(a.raw, "<style>")
		style, _, ok := strings.Cut(rest, "</style>")
		sum := sha256.Sum256([]byte(style))
		csp := a.header.Get("Content-Security-Policy")
		if !ok || !strings.Contains(csp, "'sha256-"+base64.StdEncoding.EncodeToString(sum[:])+"'") {
			t.Errorf("the style does not match its hash in %q", csp)
		}
		if !strings.Contains(csp, "default-src 'none'") || !strings.Contains(csp, "frame-ancestors 'none'") || strings.Contains(csp, "unsafe") {
			t.Errorf("Content-Security-Policy %q", csp)
		}
		if regexp.MustCompile(`<script|\son\w+=|style="`).MatchString(a.raw) {
			t.Error("the page holds what its policy forbids")
		}
		if a.header.Get("Cache-Control") != "no-store" || a.header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("header %v", a.header)
		}
	})
}

func TestAwaitPending(t *testing.T) {
	bubble(t, flowtest.Config{}, func(c *client) {
		got := make(chan string)
		go func() {
			code, err := c.as.AwaitPending(c.t.Context())
			if err != nil {
				t.Error(err)
			}
			got <- code
		}()
		time.Sleep(time.Hour)
		if want := c.start().str("user_code"); <-got != want {
			t.Error("another code")
		}
		if err := c.as.Deny(c.as.Pending()[0]); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(c.t.Context(), time.Second)
		defer cancel()
		if _, err := c.as.AwaitPending(ctx); err == nil {
			t.Error("found a pending login")
		}
	})
}
