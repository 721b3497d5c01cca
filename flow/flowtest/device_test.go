package flowtest_test

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

func TestLoginIsPendingUntilApproved(t *testing.T) {
	bubble(t, flowtest.Config{}, func(c *client) {
		d := c.start("scope", "openid read:things", "audience", "https://api.example.com")
		if d.body["interval"] != 5.0 || d.body["expires_in"] != 900.0 {
			t.Errorf("interval %v, expires_in %v", d.body["interval"], d.body["expires_in"])
		}
		code := d.str("user_code")
		if !regexp.MustCompile(`^[B-DF-HJ-NP-TV-XZ]{4}-[B-DF-HJ-NP-TV-XZ]{4}$`).MatchString(code) {
			t.Errorf("user code %q", code)
		}
		if got, want := d.str("verification_uri_complete"), d.str("verification_uri")+"?user_code="+code; got != want {
			t.Errorf("verification_uri_complete %q, want %q", got, want)
		}
		time.Sleep(5 * time.Second)
		c.want(c.poll(d.str("device_code")), 400, "authorization_pending")
		if err := c.as.Approve(strings.ToLower(strings.ReplaceAll(code, "-", ""))); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		tok := c.poll(d.str("device_code"))
		if tok.status != 200 || tok.str("token_type") != "Bearer" || tok.body["expires_in"] != 3600.0 || tok.str("refresh_token") == "" ||
			tok.str("scope") != "openid read:things" {
			t.Errorf("token response: %d %s", tok.status, tok.raw)
		}
		info, ok := c.as.Inspect(tok.str("access_token"))
		if !ok || !info.Valid || info.User.Name != "Alice Example" || info.Audience[0] != "https://api.example.com" || len(info.Scope) != 2 {
			t.Errorf("issued %+v, %v", info, ok)
		}
		c.violations()
		if s := c.as.Stats(); s.DeviceRequests != 1 || s.Polls != 2 || s.Logins != 1 {
			t.Errorf("stats %+v", s)
		}
	})
}

func TestIDTokenIsAWellFormedJWT(t *testing.T) {
	bubble(t, flowtest.Config{}, func(c *client) {
		if c.login("scope", "read:things").str("id_token") != "" {
			t.Error("an id_token without the openid scope")
		}
		parts := strings.Split(c.login("scope", "openid").str("id_token"), ".")
		if len(parts) != 3 {
			t.Fatalf("%d parts", len(parts))
		}
		var claims map[string]any
		raw, err := base64.RawURLEncoding.DecodeString(parts[1])
		if err != nil || json.Unmarshal(raw, &claims) != nil {
			t.Fatalf("claims %q: %v", raw, err)
		}
		now := float64(time.Now().Unix())
		if claims["iss"] != c.as.Issuer() || claims["sub"] != "auth0|alice" || claims["aud"] != "demo-client" || claims["iat"] != now ||
			claims["exp"] != now+3600 || claims["name"] != "Alice Example" || claims["email"] != "alice@example.com" {
			t.Errorf("claims %v", claims)
		}
	})
}

func TestPollingTooFastSlowsDownForGood(t *testing.T) {
	bubble(t, flowtest.Config{}, func(c *client) {
		code := c.start().str("device_code")
		for i, step := range []struct {
			wait time.Duration
			want string
		}{
			{5 * time.Second, "authorization_pending"},
			{5*time.Second - 1, "slow_down"}, // 10 s from here on
			{10*time.Second - 1, "slow_down"},
			{15 * time.Second, "authorization_pending"},
			{15*time.Second - 1, "slow_down"},
		} {
			time.Sleep(step.wait)
			if got := c.poll(code); got.str("error") != step.want {
				t.Errorf("poll %d: %s, want %s", i, got.raw, step.want)
			}
		}
		c.violations("too fast", "too fast", "too fast")
	})
}

func TestFirstPollAtOnceIsNotedButAnswered(t *testing.T) {
	bubble(t, flowtest.Config{}, func(c *client) {
		c.want(c.poll(c.start().str("device_code")), 400, "authorization_pending")
		c.violations("the first")
	})
}

func TestIntervalCountsFromTheAnswer(t *testing.T) {
	bubble(t, flowtest.Config{}, func(c *client) {
		code := c.start().str("device_code")
		time.Sleep(5 * time.Second)
		c.as.Script(flowtest.Poll, flowtest.Response{Pass: true, Delay: 3 * time.Second})
		c.want(c.poll(code), 400, "authorization_pending")
		time.Sleep(5*time.Second - 1)
		c.want(c.poll(code), 400, "slow_down")
	})
}

func TestPollWithoutAnAnswerCountsFromItsArrival(t *testing.T) {
	bubble(t, flowtest.Config{}, func(c *client) {
		code := c.start().str("device_code")
		time.Sleep(5 * time.Second)
		c.as.Script(flowtest.Poll, flowtest.Response{Drop: true})
		if _, err := c.do(c.request(http.MethodPost, c.token, c.form("grant_type", deviceGrant, "device_code", code))); err == nil {
			t.Fatal("the answer came")
		}
		time.Sleep(5*time.Second - 1)
		c.want(c.poll(code), 400, "slow_down")
	})
}

func TestEndedLogins(t *testing.T) {
	for _, tc := range []struct {
		name    string
		flavour flowtest.Flavour
		end     func(*flowtest.Server, string) error
		first   string
		second  string
		status  int
	}{
		{"denied", flowtest.RFC, (*flowtest.Server).Deny, "access_denied", "access_denied", 400},
		{"expired", flowtest.RFC, (*flowtest.Server).Expire, "expired_token", "expired_token", 400},
		{"denied at Auth0", flowtest.Auth0, (*flowtest.Server).Deny, "access_denied", "invalid_grant", 403},
		{"expired at Auth0", flowtest.Auth0, (*flowtest.Server).Expire, "expired_token", "invalid_grant", 403},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubble(t, flowtest.Config{Flavour: tc.flavour}, func(c *client) {
				d := c.start()
				if err := tc.end(c.as, d.str("user_code")); err != nil {
					t.Fatal(err)
				}
				if len(c.as.Pending()) != 0 {
					t.Error("still pending")
				}
				time.Sleep(5 * time.Second)
				c.want(c.poll(d.str("device_code")), tc.status, tc.first)
				c.violations()
				time.Sleep(5 * time.Second)
				c.want(c.poll(d.str("device_code")), tc.status, tc.second)
				c.violations("after the final answer")
			})
		})
	}
}

func TestCodeExpiresByItself(t *testing.T) {
	bubble(t, flowtest.Config{CodeLifetime: time.Minute}, func(c *client) {
		d := c.start()
		time.Sleep(time.Minute - 1)
		c.want(c.poll(d.str("device_code")), 400, "authorization_pending")
		time.Sleep(time.Minute)
		c.want(c.poll(d.str("device_code")), 400, "expired_token")
		if c.as.Approve(d.str("user_code")) == nil {
			t.Error("an expired code can be approved")
		}
	})
}

func TestAuth0Statuses(t *testing.T) {
	bubble(t, flowtest.Config{Flavour: flowtest.Auth0}, func(c *client) {
		d := c.start("scope", "openid")
		time.Sleep(5 * time.Second)
		c.want(c.poll(d.str("device_code")), 403, "authorization_pending")
		c.want(c.poll(d.str("device_code")), 429, "slow_down")
		c.want(c.poll("nonsense"), 403, "invalid_grant")
		c.want(c.refresh("nonsense"), 403, "invalid_grant")
		if !strings.HasSuffix(c.as.Issuer(), ".example/") {
			t.Errorf("issuer %q", c.as.Issuer())
		}
		if tok := c.login("scope", "openid"); tok.str("refresh_token") != "" {
			t.Error("a refresh token without offline_access")
		}
		tok := c.login("scope", "openid offline_access")
		if tok.str("refresh_token") == "" {
			t.Error("no refresh token with offline_access")
		}
		gone := c.post("/oauth/revoke", "token", tok.str("refresh_token"))
		if gone.status != 200 || !strings.HasPrefix(gone.header.Get("Content-Type"), "text/plain") {
			t.Errorf("revocation: %d %v", gone.status, gone.header)
		}
		c.want(c.refresh(tok.str("refresh_token")), 403, "invalid_grant")
	})
}

func TestUsedDeviceCodeKillsItsTokens(t *testing.T) {
	bubble(t, flowtest.Config{AutoApprove: true}, func(c *client) {
		code := c.start().str("device_code")
		time.Sleep(5 * time.Second)
		tok := c.poll(code)
		if !c.as.ValidToken(tok.str("access_token")) {
			t.Fatal("the token is not valid")
		}
		time.Sleep(5 * time.Second)
		c.want(c.poll(code), 400, "invalid_grant")
		if c.as.ValidToken(tok.str("access_token")) {
			t.Error("the access token survived")
		}
		c.want(c.refresh(tok.str("refresh_token")), 400, "invalid_grant")
		c.violations("after the final answer")
	})
}

func TestApproveAfterSoManyPolls(t *testing.T) {
	bubble(t, flowtest.Config{ApproveAfter: 2}, func(c *client) {
		code := c.start().str("device_code")
		for i := range 2 {
			time.Sleep(5 * time.Second)
			if got := c.poll(code); got.str("error") != "authorization_pending" {
				t.Errorf("poll %d: %s", i, got.raw)
			}
		}
		time.Sleep(5 * time.Second)
		if got := c.poll(code); got.status != 200 {
			t.Errorf("last poll: %s", got.raw)
		}
	})
}

func TestTwoPollsAtATimeAreNoted(t *testing.T) {
	bubble(t, flowtest.Config{}, func(c *client) {
		code := c.start().str("device_code")
		time.Sleep(5 * time.Second)
		c.as.Script(flowtest.Poll, flowtest.Response{Pass: true, Delay: time.Minute})
		var wg sync.WaitGroup
		wg.Go(func() { c.poll(code) })
		time.Sleep(10 * time.Second)
		c.poll(code)
		wg.Wait()
		c.violations("two polls at a time")
	})
}

func TestApproveAllAndUsers(t *testing.T) {
	bubble(t, flowtest.Config{}, func(c *client) {
		first, second := c.start(), c.start()
		if p := c.as.Pending(); len(p) != 2 || p[0] != first.str("user_code") {
			t.Errorf("pending %q", p)
		}
		if code, err := c.as.AwaitPending(c.t.Context()); err != nil || code != second.str("user_code") {
			t.Errorf("newest %q, %v", code, err)
		}
		if err := c.as.ApproveAs(first.str("user_code"), flowtest.User{Subject: "auth0|bob"}); err != nil {
			t.Fatal(err)
		}
		if n := c.as.ApproveAll(); n != 1 {
			t.Errorf("approved %d", n)
		}
		time.Sleep(5 * time.Second)
		for i, want := range []string{"auth0|bob", "auth0|alice"} {
			info, _ := c.as.Inspect(c.poll([]answer{first, second}[i].str("device_code")).str("access_token"))
			if info.User.Subject != want {
				t.Errorf("login %d is %q's", i, info.User.Subject)
			}
		}
		if c.as.Approve("ZZZZ-ZZZZ") == nil || c.as.Deny("") == nil || c.as.Expire(first.str("user_code")) == nil {
			t.Error("a code that is not pending was decided")
		}
	})
}

func TestTargetsAndScopesAreChecked(t *testing.T) {
	bubble(t, flowtest.Config{AllowedAudiences: []string{"https://a.example"}, AllowedScopes: []string{"a", "b"}}, func(c *client) {
		c.want(c.post(c.device, "audience", "https://b.example"), 400, "invalid_target")
		c.want(c.post(c.device, "resource", "https://b.example"), 400, "invalid_target")
		c.want(c.post(c.device, "resource", "/relative"), 400, "invalid_target")
		c.want(c.post(c.device, "scope", "a c"), 400, "invalid_scope")
		c.want(c.post(c.device, "scope", "a  b"), 400, "invalid_scope")
		c.want(c.post(c.device, "scope", `a"`), 400, "invalid_scope")
		c.start("scope", "a b", "audience", "https://a.example")
	})
	bubble(t, flowtest.Config{Flavour: flowtest.Auth0, AllowedAudiences: []string{"https://a.example"}, AllowedScopes: []string{"a"}}, func(c *client) {
		c.want(c.post(c.device, "audience", "https://b.example"), 403, "access_denied")
		if tok := c.login("scope", "a c"); tok.str("scope") != "a" {
			t.Errorf("granted %q", tok.str("scope"))
		}
	})
}
