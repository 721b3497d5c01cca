package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// twoResources is one login and two sites, each of which has the API of its own that RFC 8707 names by resource.
const twoResources = `
{
	device_flow acme {
		issuer {$ISSUER}
		client_id device
		scope openid offline_access read
		resource https://reports.example https://billing.example
	}
}

http://:{$PORT} {
	bind 127.0.0.1
	device_flow %s {
		session acme
		resource https://reports.example
	}
}

http://:{$PORT2} {
	bind 127.0.0.1
	device_flow %s {
		session acme
		resource https://billing.example
	}
}
`

// audience reads, by the provider's own keys, which API a JWT is for, and whether it is good just now.
func (p *provider) audience(keys jose.JSONWebKeySet, token string) (resource string, alive bool) {
	signed, err := jose.ParseSigned(token, []jose.SignatureAlgorithm{jose.RS256})
	if err != nil {
		return "", false
	}
	var claims struct {
		Issuer   string `json:"iss"`
		Expires  int64  `json:"exp"`
		Audience string `json:"aud"` // one: a list is no token for one API
		Scope    string `json:"scope"`
	}
	payload, err := signed.Verify(keys)
	if err != nil || json.Unmarshal(payload, &claims) != nil || claims.Issuer != p.issuer || claims.Scope != "read" {
		return "", false
	}
	// The provider leaves out the fraction of the second in which it issued the token.
	return claims.Audience, time.Now().Before(time.Unix(claims.Expires+1, 0))
}

// keys are the provider's public keys.
func (p *provider) keys(t *testing.T) (keys jose.JSONWebKeySet) {
	t.Helper()
	if err := json.Unmarshal([]byte(get(t, client(t), p.issuer+"/jwks", "").body), &keys); err != nil || len(keys.Keys) == 0 {
		t.Fatalf("%d keys: %v", len(keys.Keys), err)
	}
	return keys
}

// TestTwoResourcesOfOneLogin has a third party issue the tokens and hold the one chain of refresh tokens, which it ends
// at the first reuse. Each API accepts nothing but a signed token for itself.
func TestTwoResourcesOfOneLogin(t *testing.T) {
	parallel(t, installProvider)
	const calls, callers = 1000, 8
	p := startProvider(t, 3*time.Second, "RESOURCES=https://reports.example https://billing.example")
	keys := p.keys(t)
	forOne := func(resource string) func(string) bool {
		return func(token string) bool {
			got, alive := p.audience(keys, token)
			return alive && got == resource
		}
	}
	reports := startAPI(t, forOne("https://reports.example"))
	billing := startAPI(t, forOne("https://billing.example"))
	c := startCaddy(t, fmt.Sprintf(twoResources, reports.URL, billing.URL), p.issuer, "")
	c.callForCode(t)
	approveAtProvider(t, c.status(t).Login.VerificationURIComplete)
	c.login(t)
	c.loginAt(t, c.url2)

	// Calls over connections that both sites keep open, for longer than three tokens live.
	began := time.Now()
	var all sync.WaitGroup
	var mu sync.Mutex
	answers := map[int]int{}
	for range callers {
		all.Go(func() {
			transport := new(http.Transport)
			defer transport.CloseIdleConnections()
			hc := &http.Client{Transport: transport, Timeout: 30 * time.Second}
			ticker := time.NewTicker(8 * time.Second * callers / calls)
			defer ticker.Stop()
			for range calls / callers {
				<-ticker.C
				url := []string{c.url, c.url2}[rand.IntN(2)]
				res, err := hc.Get(url + "/")
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = io.Copy(io.Discard, res.Body)
				res.Body.Close()
				mu.Lock()
				answers[res.StatusCode]++
				mu.Unlock()
			}
		})
	}
	all.Wait()
	if answers[200] != calls {
		t.Errorf("answers by status: %v", answers)
	}

	// What each API was sent, good or not by now, was meant for it alone.
	mixed, tokens := 0, 0
	for resource, a := range map[string]*api{"https://reports.example": reports, "https://billing.example": billing} {
		sent := a.tokens()
		tokens += len(sent)
		for _, token := range sent {
			if got, _ := p.audience(keys, token); got != resource {
				mixed++
			}
		}
		if len(sent) < 3 {
			t.Errorf("%s saw %d tokens in %v", resource, len(sent), time.Since(began))
		}
	}
	if mixed != 0 {
		t.Errorf("%d tokens went to the wrong API", mixed)
	}
	revoked := p.count(func(e providerEvent) bool { return e.Event == "grant.revoked" })
	logins := p.count(func(e providerEvent) bool { return e.Grant == "device_code" && e.Status == 200 })
	if p.refreshes() < 4 || p.failedRefreshes() != 0 || revoked != 0 || logins != 1 {
		t.Errorf("%d refreshes, %d refused, %d grants revoked, %d logins", p.refreshes(), p.failedRefreshes(), revoked, logins)
	}

	// That the APIs can tell: a token that is good at one is not at the other.
	fresh := reports.tokens()
	if token := fresh[len(fresh)-1]; reports.valid(token) && billing.valid(token) {
		t.Error("an API accepts a token for the other")
	}
	t.Logf("%d calls in %v, %d mix-ups; %d tokens for two APIs by %d rotated refreshes of one login, %d refused, %d grants revoked",
		calls, time.Since(began).Round(time.Millisecond), mixed, tokens, p.refreshes(), p.failedRefreshes(), revoked)
}
