package flowtest_test

import (
	"sync"
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

func TestRotationGoesOnAndOn(t *testing.T) {
	bubble(t, flowtest.Config{AccessTokenLifetime: time.Minute}, func(c *client) {
		tok := c.login("scope", "openid")
		for range 50 {
			time.Sleep(50 * time.Second)
			next := c.refresh(tok.str("refresh_token"))
			if next.status != 200 || next.str("refresh_token") == "" || next.str("refresh_token") == tok.str("refresh_token") ||
				!c.as.ValidToken(next.str("access_token")) || next.str("id_token") == "" {
				t.Fatalf("refresh: %d %s", next.status, next.raw)
			}
			tok = next
		}
		if s := c.as.Stats(); s.Refreshes != 50 || s.Reuses != 0 {
			t.Errorf("stats %+v", s)
		}
		c.violations()
	})
}

func TestReuseKillsTheWholeLogin(t *testing.T) {
	bubble(t, flowtest.Config{}, func(c *client) {
		other := c.login()
		first := c.login()
		second := c.refresh(first.str("refresh_token"))
		c.want(c.refresh(first.str("refresh_token")), 400, "invalid_grant")
		for _, tok := range []answer{first, second} {
			if c.as.ValidToken(tok.str("access_token")) {
				t.Error("an access token of the login survived")
			}
		}
		c.want(c.refresh(second.str("refresh_token")), 400, "invalid_grant")
		if s := c.as.Stats(); s.Reuses != 1 || s.Refreshes != 1 {
			t.Errorf("stats %+v", s)
		}
		c.violations("used again")
		if !c.as.ValidToken(other.str("access_token")) || c.refresh(other.str("refresh_token")).status != 200 {
			t.Error("another login suffered")
		}
	})
}

func TestNoRotationAndNoRefreshToken(t *testing.T) {
	bubble(t, flowtest.Config{NoRotation: true}, func(c *client) {
		tok := c.login()
		for range 3 {
			if next := c.refresh(tok.str("refresh_token")); next.status != 200 || next.str("refresh_token") != "" {
				t.Errorf("refresh: %d %s", next.status, next.raw)
			}
		}
		c.violations()
		c.as.SetConfig(func(cfg *flowtest.Config) { cfg.OmitRefreshToken = true })
		if c.login().str("refresh_token") != "" {
			t.Error("a refresh token, though omitted")
		}
	})
}

func TestTwoRefreshesAtATimeAreNoted(t *testing.T) {
	bubble(t, flowtest.Config{NoRotation: true}, func(c *client) {
		tok := c.login().str("refresh_token")
		c.as.Script(flowtest.Refresh, flowtest.Response{Pass: true, Delay: time.Second})
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() { c.refresh(tok) })
		}
		wg.Wait()
		c.violations("two at once")
	})
}

func TestRefreshNarrowsAndSelects(t *testing.T) {
	bubble(t, flowtest.Config{}, func(c *client) {
		tok := c.login("scope", "a b", "resource", "https://one.example", "resource", "https://two.example")
		next := c.refresh(tok.str("refresh_token"), "scope", "a", "resource", "https://two.example")
		info, _ := c.as.Inspect(next.str("access_token"))
		if len(info.Scope) != 1 || len(info.Audience) != 1 || info.Audience[0] != "https://two.example" || next.str("scope") != "a" {
			t.Errorf("narrowed to %+v", info)
		}
		c.want(c.refresh(next.str("refresh_token"), "scope", "a c"), 400, "invalid_scope")
		c.want(c.refresh(next.str("refresh_token"), "resource", "https://three.example"), 400, "invalid_target")
		next = c.refresh(next.str("refresh_token")) // the refusals did not use it up, and the narrowing was for once
		if info, _ = c.as.Inspect(next.str("access_token")); len(info.Scope) != 2 || len(info.Audience) != 2 {
			t.Errorf("then %+v", info)
		}
		c.violations()
	})
	bubble(t, flowtest.Config{Flavour: flowtest.Auth0}, func(c *client) {
		tok := c.login("scope", "a offline_access", "audience", "https://one.example")
		next := c.refresh(tok.str("refresh_token"), "scope", "z", "audience", "https://two.example")
		info, _ := c.as.Inspect(next.str("access_token"))
		if len(info.Scope) != 1 || info.Scope[0] != "z" || info.Audience[0] != "https://two.example" {
			t.Errorf("selected %+v", info)
		}
	})
}

func TestServerSideEnds(t *testing.T) {
	bubble(t, flowtest.Config{AccessTokenLifetime: time.Minute}, func(c *client) {
		tok := c.login()
		time.Sleep(time.Minute - 1)
		if !c.as.ValidToken(tok.str("access_token")) {
			t.Error("expired too early")
		}
		time.Sleep(time.Nanosecond)
		if c.as.ValidToken(tok.str("access_token")) {
			t.Error("outlived its time")
		}
		tok = c.refresh(tok.str("refresh_token"))
		c.as.ExpireAccessTokens()
		if c.as.ValidToken(tok.str("access_token")) {
			t.Error("survived ExpireAccessTokens")
		}
		tok = c.refresh(tok.str("refresh_token"))
		c.as.RevokeAll()
		if !c.as.ValidToken(tok.str("access_token")) {
			t.Error("RevokeAll took the access token along")
		}
		c.want(c.refresh(tok.str("refresh_token")), 400, "invalid_grant")
		if c.as.Stats().Reuses != 0 {
			t.Error("counted as a reuse")
		}
		c.violations()
	})
}

func TestRevocation(t *testing.T) {
	bubble(t, flowtest.Config{}, func(c *client) {
		tok := c.login()
		if a := c.post("/revoke", "token", "unknown"); a.status != 200 {
			t.Errorf("unknown token: %d", a.status)
		}
		if a := c.post("/revoke", "token", tok.str("access_token")); a.status != 200 || c.as.ValidToken(tok.str("access_token")) {
			t.Errorf("access token: %d", a.status)
		}
		tok = c.refresh(tok.str("refresh_token"))
		if a := c.post("/revoke", "token", tok.str("refresh_token"), "token_type_hint", "refresh_token"); a.status != 200 {
			t.Errorf("refresh token: %d", a.status)
		}
		if c.as.ValidToken(tok.str("access_token")) {
			t.Error("the access token survived its login (RFC 7009 section 2.1)")
		}
		c.want(c.refresh(tok.str("refresh_token")), 400, "invalid_grant")
		c.violations()
		c.want(c.post("/revoke"), 400, "invalid_request")
		c.violations("token is missing")
		if c.as.Stats().Revocations != 2 {
			t.Errorf("stats %+v", c.as.Stats())
		}
	})
}
