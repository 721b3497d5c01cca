package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestLoginThenEveryCallIsAuthenticated is the whole product against a third party's authorization server: a device
// calls, an operator approves once, and from then on every call is served, over renewed tokens and a power cut.
func TestLoginThenEveryCallIsAuthenticated(t *testing.T) {
	parallel(t, installProvider)
	// Shorter ones would lapse here before they are due to be renewed: the provider counts whole seconds, and of the
	// second it is in from its beginning.
	p := startProvider(t, 8*time.Second)
	a := startAPI(t, p.valid)
	c := startCaddy(t, site(providerClient, "openid offline_access profile email"), p.issuer, a.URL)

	if got := p.deviceRequests(); got != 0 {
		t.Fatalf("%d codes were asked for before anybody wanted one", got)
	}
	refused := c.callForCode(t)
	shown := c.status(t)
	if shown.State != "pending" || shown.Login == nil || shown.Login.UserCode != refused.UserCode {
		t.Fatalf("the status page does not show the code %s of the refusal: %+v", refused.UserCode, shown)
	}
	if got := len(a.requests()); got != 0 {
		t.Fatalf("the API was contacted %d times without a token", got)
	}
	approveAtProvider(t, shown.Login.VerificationURIComplete)
	c.login(t)
	if got := c.status(t); got.State != "authorized" {
		t.Fatalf("after the approval the state is %q", got.State)
	}

	calls := 0
	mustServe := func() {
		t.Helper()
		calls++
		if res := get(t, client(t), c.url+"/", ""); res.status != 200 || res.body != "hello from the API" {
			t.Fatalf("call %d, after %d refreshes: %d %s", calls, p.refreshes(), res.status, res.body)
		}
	}
	every(t, 500*time.Millisecond, time.Minute, "20 calls and 3 rotated refreshes", func() bool {
		mustServe()
		return calls >= 20 && p.refreshes() >= 3
	})

	// Not in the middle of a refresh: the answer that is on its way then holds the only good refresh token, and no
	// client could keep it.
	before := c.status(t).Token.ExpiresAt
	eventually(t, patience, "a renewed token", func() bool { return c.status(t).Token.ExpiresAt.After(before) })
	c.kill(t)
	refreshed := p.refreshes()
	c.start(t)
	mustServe() // the first call, with the token or the refresh token that was on disk
	every(t, 500*time.Millisecond, time.Minute, "a refresh after the restart", func() bool {
		mustServe()
		return p.refreshes() > refreshed
	})

	if got := p.deviceRequests(); got != 1 {
		t.Errorf("%d codes were asked for, want the one that was approved", got)
	}
	if got := p.failedRefreshes(); got != 0 {
		t.Errorf("%d refreshes were refused: %+v", got, p.all())
	}
	requireNoToken(t, c, a)
}

// requireNoToken looks for the tokens that the API saw in what Caddy printed and in its configuration on disk.
func requireNoToken(t *testing.T, c *caddy, a *api) {
	t.Helper()
	// The configuration that Caddy keeps for its next start.
	autosave, err := os.ReadFile(filepath.Join(c.home, "config", "caddy", "autosave.json"))
	if err != nil {
		t.Fatal(err)
	}
	places := map[string]string{"the log": c.output.String(), "autosave.json": string(autosave)}
	tokens := a.tokens()
	if len(tokens) < 2 {
		t.Fatalf("the API has seen %d tokens, want more than one", len(tokens))
	}
	for place, text := range places {
		for _, token := range tokens {
			if strings.Contains(text, token) {
				t.Errorf("a token stands in %s", place)
			}
		}
	}
}

// TestReloadKeepsThePendingCode changes another line of the configuration while an operator has a code in hand.
func TestReloadKeepsThePendingCode(t *testing.T) {
	parallel(t, installProvider)
	p := startProvider(t, 4*time.Second)
	a := startAPI(t, p.valid)
	config := site(providerClient, "openid offline_access")
	c := startCaddy(t, config, p.issuer, a.URL)
	code := c.callForCode(t).UserCode
	link := c.status(t).Login.VerificationURIComplete

	c.reload(t, config+`
http://:{$PORT2} {
	bind 127.0.0.1
	respond "unrelated"
}
`)
	if got := get(t, client(t), "http://127.0.0.1:"+c.port2, ""); got.body != "unrelated" {
		t.Fatalf("the new configuration is not in force: %d %q", got.status, got.body)
	}
	if got := c.status(t); got.State != "pending" || got.Login == nil || got.Login.UserCode != code {
		t.Fatalf("after the reload the page shows %+v, want the code %s still", got, code)
	}
	if got := c.callForCode(t).UserCode; got != code {
		t.Fatalf("after the reload a caller is told the code %s, want %s", got, code)
	}
	if got := p.deviceRequests(); got != 1 {
		t.Fatalf("%d codes were asked for, want 1", got)
	}

	approveAtProvider(t, link) // the polling has gone on
	c.login(t)
	if got := p.deviceRequests(); got != 1 {
		t.Errorf("%d codes were asked for, want 1", got)
	}
}
