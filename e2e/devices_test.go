package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// perDevice is a site with one login for each device.
func perDevice(clientID, scope, more string) string {
	return fmt.Sprintf(`
http://:{$PORT} {
	bind 127.0.0.1
	device_flow {$API} {
		issuer {$ISSUER}
		client_id %s
		scope %s
		session_key {header.X-Device-Id}
		%s
	}
}
`, clientID, scope, more)
}

// call is a call of a device.
func (c *caddy) call(t *testing.T, device string) reply {
	t.Helper()
	r, err := http.NewRequest(http.MethodGet, c.url+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	if device != "" {
		r.Header.Set("X-Device-Id", device)
	}
	return do(t, client(t), r)
}

// codeOf has a device call, and reads its code as a person does, on the page that the answer names.
func (c *caddy) codeOf(t *testing.T, device string) (session string, p problem) {
	t.Helper()
	every(t, 100*time.Millisecond, patience, "a code for "+device, func() bool {
		p = problem{}
		res := c.call(t, device)
		if err := json.Unmarshal([]byte(res.body), &p); err != nil || res.status != 503 {
			t.Fatalf("%s: %d, %v\n%s", device, res.status, err, res.body)
		}
		return p.UserCode != ""
	})
	_, session, _ = strings.Cut(p.StatusURL, "?session=")
	if page := get(t, client(t), p.StatusURL, "text/html"); !strings.Contains(page.body, p.UserCode) || !strings.Contains(page.body, device) {
		t.Fatalf("the page of %s at %s: %d\n%s", device, p.StatusURL, page.status, page.body)
	}
	return session, p
}

// served waits until the calls of a device are.
func (c *caddy) served(t *testing.T, device string) {
	t.Helper()
	every(t, 100*time.Millisecond, patience, "calls of "+device+" are served", func() bool { return c.call(t, device).status == 200 })
}

// witness is an API that notes whose token a device comes with.
type witness struct {
	*httptest.Server
	mu   sync.Mutex
	seen map[string]string // token → device
	mix  []string
}

func startWitness(t *testing.T) *witness {
	t.Helper()
	a := &witness{seen: make(map[string]string)}
	a.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		device, token := r.Header.Get("X-Device-Id"), strings.Join(r.Header.Values("Authorization"), " and ")
		a.mu.Lock()
		defer a.mu.Unlock()
		if was, known := a.seen[token]; known && was != device {
			a.mix = append(a.mix, device+" with the token of "+was)
		}
		a.seen[token] = device
		fmt.Fprint(w, device)
	}))
	t.Cleanup(a.Close)
	return a
}

// require asserts that each device came with tokens of its own person only. whose asks the authorization server.
func (a *witness) require(t *testing.T, devices []string, whose func(token string) string) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.mix) > 0 {
		t.Errorf("mixed up: %q", a.mix)
	}
	came := make(map[string]int)
	for token, device := range a.seen {
		came[device]++
		if who := whose(strings.TrimPrefix(token, "Bearer ")); who != "" && who != "person of "+device {
			t.Errorf("%s came with the token of %s", device, who)
		}
	}
	for _, device := range devices {
		if came[device] == 0 {
			t.Errorf("%s never came", device)
		}
	}
	t.Logf("%d tokens of %d devices, %d mixed up", len(a.seen), len(came), len(a.mix))
}

// TestEachDeviceHasItsOwnLogin has more devices than fit into memory, each with another person's login.
func TestEachDeviceHasItsOwnLogin(t *testing.T) {
	as := startAS(t, 5*time.Second, byHand)
	a := startWitness(t)
	c := startCaddy(t, perDevice("device", "openid offline_access", "max_sessions 4"), as.Issuer(), a.URL)
	devices := []string{"scanner", "printer", "door", "scale", "lamp", "pump"}

	if res := c.call(t, ""); res.status != 400 || !strings.Contains(res.body, "X-Device-Id") {
		t.Errorf("a call without the key: %d %s", res.status, res.body)
	}
	sessions := make(map[string]string)
	for pair := range slices.Chunk(devices, 2) { // half of max_sessions may wait for a person
		for _, device := range pair {
			var p problem
			sessions[device], p = c.codeOf(t, device)
			if err := as.ApproveAs(p.UserCode, flowtest.User{Subject: "person of " + device}); err != nil {
				t.Fatal(err)
			}
		}
		if res := c.call(t, "one too many"); res.status != 429 || res.header.Get("Retry-After") == "" {
			t.Errorf("a third login at a time: %d %s", res.status, res.body)
		}
		for _, device := range pair {
			c.served(t, device)
		}
	}
	whose := func(token string) string {
		r, err := http.NewRequest(http.MethodGet, as.Issuer()+"/userinfo", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+token)
		var claims struct{ Sub string }
		_ = json.Unmarshal([]byte(do(t, client(t), r).body), &claims) // of a token that has run out, none
		return claims.Sub
	}
	a.require(t, devices, whose)

	// All at once, for longer than a token lives: sessions come and go and refresh meanwhile.
	stop := time.Now().Add(6 * time.Second)
	var wg sync.WaitGroup
	var mu sync.Mutex
	calls, bad := 0, []string{}
	for _, device := range devices {
		h := client(t)
		wg.Go(func() {
			for time.Now().Before(stop) {
				r, err := http.NewRequest(http.MethodGet, c.url+"/", nil)
				if err != nil {
					t.Error(err)
					return
				}
				r.Header.Set("X-Device-Id", device)
				got := ""
				res, err := h.Do(r)
				if err == nil {
					var b []byte
					b, err = io.ReadAll(res.Body)
					res.Body.Close()
					got = fmt.Sprint(res.StatusCode, " ", string(b))
				}
				mu.Lock()
				if calls++; err != nil || got != "200 "+device {
					bad = append(bad, fmt.Sprint(device, ": ", got, err))
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	t.Logf("%d mixed calls, %d refreshes", calls, as.Stats().Refreshes)
	if len(bad) > 0 {
		t.Errorf("%d of %d calls failed: %s", len(bad), calls, bad[0])
	}
	a.require(t, devices, whose)
	if n := len(c.sessions(t)); n > 5 { // one may be on its way out
		t.Errorf("%d sessions are in memory", n)
	}

	c.stop(t, syscall.SIGTERM)
	c.start(t)
	for _, device := range devices {
		c.served(t, device)
	}
	// By the admin API's own name for it, whether it is in memory or not.
	c.mustSay(t, 0, []string{"Logged out"}, "logout", sessions["scanner"])
	for _, device := range devices[1:] {
		if res := c.call(t, device); res.status != 200 {
			t.Errorf("%s after the logout of another: %d %s", device, res.status, res.body)
		}
	}
	if n := as.Count(flowtest.Device); n != len(devices) {
		t.Errorf("%d codes were asked for by %d devices", n, len(devices))
	}
	c.codeOf(t, "scanner")
	a.require(t, devices, whose)
}

// TestEachDeviceHasItsOwnLoginAtOIDCProvider does so at a server that others have written.
func TestEachDeviceHasItsOwnLoginAtOIDCProvider(t *testing.T) {
	parallel(t, installProvider)
	p := startProvider(t, time.Minute)
	a := startWitness(t)
	c := startCaddy(t, perDevice(providerClient, "openid offline_access", ""), p.issuer, a.URL)
	devices := []string{"scanner", "printer", "door"}
	for _, device := range devices {
		session, _ := c.codeOf(t, device)
		approveAtProvider(t, c.sessions(t)[session].Login.VerificationURIComplete)
	}
	for range 2 {
		for _, device := range devices {
			c.served(t, device)
		}
		c.stop(t, syscall.SIGTERM)
		c.start(t)
	}
	a.require(t, devices, func(string) string { return "" })
	if len(a.seen) != len(devices) || p.deviceRequests() != len(devices) {
		t.Errorf("%d tokens and %d codes of %d devices", len(a.seen), p.deviceRequests(), len(devices))
	}
}
