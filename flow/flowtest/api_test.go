package flowtest_test

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

func TestAPIGreetsAGoodToken(t *testing.T) {
	bubble(t, flowtest.Config{AccessTokenLifetime: time.Minute, APIAudience: "https://api.example", APIScope: "read"}, func(c *client) {
		api := &client{t: t, as: c.as, hc: &http.Client{Transport: c.as.APIRoundTripper()}}
		call := func(values ...string) answer {
			t.Helper()
			req := c.request(http.MethodGet, "/things?q=1", "")
			req.Header["Authorization"] = values
			a, err := api.do(req)
			if err != nil {
				t.Fatal(err)
			}
			return a
		}
		tok := c.login("scope", "openid read", "audience", "https://api.example").str("access_token")
		time.Sleep(10 * time.Second)
		a := call("Bearer " + tok)
		account, _ := a.body["account"].(map[string]any)
		if a.status != 200 || !strings.HasPrefix(a.str("message"), "Hello, Alice Example.") || a.str("path") != "/things" ||
			a.body["token_expires_in"] != 50.0 || account["email"] != "alice@example.com" || account["sub"] != "auth0|alice" {
			t.Errorf("%d %s", a.status, a.raw)
		}
		for _, tc := range []struct {
			name   string
			values []string
			status int
			err    string
		}{
			{"none", nil, 401, ""},
			{"unknown", []string{"Bearer x"}, 401, "invalid_token"},
			{"another scheme", []string{"Basic " + tok}, 401, "invalid_token"},
			{"two", []string{"Bearer " + tok, "Bearer " + tok}, 400, "invalid_request"},
			{"another audience", []string{"Bearer " + c.login("scope", "read").str("access_token")}, 401, "invalid_token"},
			{
				"too little scope",
				[]string{"Bearer " + c.login("audience", "https://api.example").str("access_token")},
				403, "insufficient_scope",
			},
		} {
			a := call(tc.values...)
			challenge := a.header.Get("WWW-Authenticate")
			if a.status != tc.status || !strings.HasPrefix(challenge, "Bearer ") || tc.err != "" && !strings.Contains(challenge, `error="`+tc.err+`"`) ||
				tc.err == "" && strings.Contains(challenge, "error=") {
				t.Errorf("%s: %d, %s", tc.name, a.status, challenge)
			}
		}
		time.Sleep(time.Minute)
		if a := call("Bearer " + tok); a.status != 401 {
			t.Errorf("expired: %d", a.status)
		}
		info, err := c.do(withToken(c.request(http.MethodGet, "/userinfo", ""), tok))
		if err != nil || info.status != 401 {
			t.Errorf("user information for an expired token: %d, %v", info.status, err)
		}
	})
}

func withToken(req *http.Request, token string) *http.Request {
	req.Header.Set("Authorization", "Bearer "+token)
	return req
}

func TestUserInfo(t *testing.T) {
	bubble(t, flowtest.Config{}, func(c *client) {
		a, err := c.do(withToken(c.request(http.MethodGet, "/userinfo", ""), c.login("scope", "openid").str("access_token")))
		if err != nil || a.status != 200 || a.str("sub") != "auth0|alice" || a.str("name") != "Alice Example" {
			t.Errorf("%d %s %v", a.status, a.raw, err)
		}
		a, err = c.do(withToken(c.request(http.MethodGet, "/userinfo", ""), c.login("scope", "read").str("access_token")))
		if err != nil || a.status != 403 {
			t.Errorf("without the openid scope: %d %v", a.status, err)
		}
	})
}

func TestAPIRecordsWhatItReceived(t *testing.T) {
	as := flowtest.New(flowtest.Config{})
	defer as.Close()
	base, err := as.StartAPI()
	if err != nil {
		t.Fatal(err)
	}
	hc := &http.Client{Transport: &http.Transport{}}
	defer hc.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, base+"/x?y=z", io.MultiReader(strings.NewReader(strings.Repeat("b", 100_000))))
	if err != nil {
		t.Fatal(err)
	}
	req.Header["X-Twice"] = []string{"1", "2"}
	req.Trailer = http.Header{"X-Trailer": {"t"}}
	as.Script(flowtest.API, flowtest.ErrorResponse(429, "busy"))
	resp, err := hc.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	rs := as.APIRequests()
	if len(rs) != 1 || as.Count(flowtest.API) != 1 {
		t.Fatalf("%d requests", len(rs))
	}
	if r := rs[0]; r.Method != http.MethodPut || r.URL != "/x?y=z" || len(r.Header["X-Twice"]) != 2 || r.Trailer.Get("X-Trailer") != "t" ||
		len(r.Body) != 64<<10 || r.BodyLen != 100_000 || r.Status != 429 {
		t.Errorf("recorded %s %s %v %v, %d of %d bytes, status %d", r.Method, r.URL, r.Header, r.Trailer, len(r.Body), r.BodyLen, r.Status)
	}
}

func TestAPIScriptedFunctionReadsTheBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		as := flowtest.New(flowtest.Config{})
		defer as.Close()
		as.Script(flowtest.API, flowtest.Response{Func: func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(w, r.Body)
		}})
		resp, err := (&http.Client{Transport: as.APIRoundTripper()}).Post("http://api.example/", "text/plain", strings.NewReader("echo"))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if raw, err := io.ReadAll(resp.Body); err != nil || string(raw) != "echo" {
			t.Errorf("%q, %v", raw, err)
		}
		synctest.Wait()
		if r := as.APIRequests()[0]; string(r.Body) != "echo" || r.Status != 200 {
			t.Errorf("recorded %q, status %d", r.Body, r.Status)
		}
	})
}
