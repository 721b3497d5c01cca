package e2e

import (
	"slices"
	"testing"
	"time"
)

// startBetterAuth starts better-auth with its oauth-provider plugin; for the settings see provider/better-auth.mjs.
func startBetterAuth(t *testing.T, lifetime time.Duration, settings ...string) *provider {
	t.Helper()
	return startNode(t, "better-auth.mjs", "better-auth", "/oauth2/userinfo", lifetime, settings...)
}

// The issuer has a path here, so its metadata is at an address of RFC 8414's own making.
func TestWholeLifeAtBetterAuth(t *testing.T) {
	parallel(t, installProvider)
	p := startBetterAuth(t, 8*time.Second)
	wholeLife(t, p, site(providerClient, "openid offline_access profile email"), func(s status) {
		p.decide(t, s.Login.UserCode, "allow")
	})
	if slices.Contains(p.polls(), "slow_down") {
		t.Errorf("polls: %v: the interval is enforced and was not kept", p.polls())
	}
}

// A server that enforces more than it announces.
func TestBetterAuthSaysSlowDown(t *testing.T) {
	parallel(t, installProvider)
	p := startBetterAuth(t, time.Minute, "INTERVAL=1", "ENFORCED_INTERVAL=4")
	c := startCaddy(t, site(providerClient, "openid offline_access"), p.issuer, startAPI(t, p.valid).URL)
	code := c.callForCode(t).UserCode
	p.pollAfter(t, 2)
	p.decide(t, code, "allow")
	c.login(t)
	if got, want := p.polls(), []string{"authorization_pending", "slow_down", "authorization_pending", "token"}; !slices.Equal(got, want) {
		t.Errorf("polls: %v, want %v: one slow_down is enough", got, want)
	}
	if got := p.deviceRequests(); got != 1 {
		t.Errorf("%d codes were asked for, want 1", got)
	}
}

func TestLoginDeniedAtBetterAuth(t *testing.T) {
	parallel(t, installProvider)
	p := startBetterAuth(t, time.Minute)
	c := startCaddy(t, site(providerClient, "openid offline_access"), p.issuer, startAPI(t, p.valid).URL)
	code := c.callForCode(t).UserCode
	p.pollAfter(t, 0)
	p.decide(t, code, "deny")
	ends(t, p, c, code, "access_denied")
	if got := p.polls(); !slices.Contains(got, "access_denied") {
		t.Errorf("polls: %v, want denied", got)
	}
}

// The code dies earlier than was announced: it is the server that says so.
func TestCodeRunsOutAtBetterAuth(t *testing.T) {
	parallel(t, installProvider)
	p := startBetterAuth(t, time.Minute, "DEVICE_CODE_DIES=3")
	c := startCaddy(t, site(providerClient, "openid offline_access"), p.issuer, startAPI(t, p.valid).URL)
	code := c.callForCode(t).UserCode
	ends(t, p, c, code, "expired_token")
	if got := p.polls(); !slices.Contains(got, "expired_token") {
		t.Errorf("polls: %v, want expired", got)
	}
}
