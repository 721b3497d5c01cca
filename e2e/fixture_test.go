package e2e

import (
	"encoding/json"
	"net/http"
	"net/url"
	"testing"
	"time"
)

// tokenResponse is what a token endpoint says, as far as the tests of the fixture read it.
type tokenResponse struct {
	AccessToken  string `json:"access_token"`
	RefreshToken string `json:"refresh_token"`
	ExpiresIn    int    `json:"expires_in"`
	Error        string `json:"error"`
}

// TestProviderFixtureIsADeviceFlowServer logs in by hand at the npm oidc-provider, without the product: when a test of
// the product fails there and this one passes, the product is to blame.
func TestProviderFixtureIsADeviceFlowServer(t *testing.T) {
	parallel(t, installProvider)
	p := startProvider(t, 2*time.Second)
	c := client(t)
	post := func(path string, form url.Values, into any) int {
		t.Helper()
		form.Set("client_id", providerClient)
		res, err := c.PostForm(p.issuer+path, form)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if err := json.NewDecoder(res.Body).Decode(into); err != nil {
			t.Fatalf("%s: %d, %v", path, res.StatusCode, err)
		}
		return res.StatusCode
	}

	var device struct {
		DeviceCode              string `json:"device_code"`
		VerificationURIComplete string `json:"verification_uri_complete"`
	}
	if got := post("/device/auth", url.Values{"scope": {"openid offline_access"}}, &device); got != http.StatusOK {
		t.Fatalf("device authorization request: %d", got)
	}
	poll := func() (token tokenResponse) {
		t.Helper()
		post("/token", url.Values{
			"grant_type":  {"urn:ietf:params:oauth:grant-type:device_code"},
			"device_code": {device.DeviceCode},
		}, &token)
		return token
	}
	if got := poll(); got.Error != "authorization_pending" {
		t.Fatalf("polling before the approval: %q, want authorization_pending", got.Error)
	}
	approveAtProvider(t, device.VerificationURIComplete)
	first := poll()
	if first.AccessToken == "" || first.RefreshToken == "" || first.ExpiresIn != 2 {
		t.Fatalf("polling after the approval: error %q, access token %t, refresh token %t, expires_in %d",
			first.Error, first.AccessToken != "", first.RefreshToken != "", first.ExpiresIn)
	}
	if !p.valid(first.AccessToken) || p.valid("not a token") {
		t.Fatal("the fixture cannot tell a good token from a bad one")
	}
	every(t, 200*time.Millisecond, patience, "the access token expires", func() bool { return !p.valid(first.AccessToken) })

	refresh := func(token string) (next tokenResponse) {
		t.Helper()
		post("/token", url.Values{"grant_type": {"refresh_token"}, "refresh_token": {token}}, &next)
		return next
	}
	second := refresh(first.RefreshToken)
	if second.RefreshToken == "" || second.RefreshToken == first.RefreshToken {
		t.Fatalf("refresh tokens do not rotate: error %q", second.Error)
	}
	if third := refresh(second.RefreshToken); third.Error != "" || p.failedRefreshes() != 0 {
		t.Fatalf("the second refresh: %q", third.Error)
	}
	if again := refresh(first.RefreshToken); again.Error != "invalid_grant" {
		t.Fatalf("a used refresh token: %q, want invalid_grant", again.Error)
	}

	eventually(t, patience, "the fixture has counted all that", func() bool {
		return p.deviceRequests() == 1 && p.refreshes() == 2 && p.failedRefreshes() == 1
	})
}
