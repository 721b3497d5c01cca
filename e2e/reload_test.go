package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// eventStream is an open stream of a status page.
type eventStream struct {
	states chan string // of each event
	ended  chan struct{}
}

// watch opens the stream of the first site's status page and waits for its first event.
func (c *caddy) watch(t *testing.T) *eventStream {
	t.Helper()
	res, err := client(t).Get(c.url + "/.device-flow/events")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = res.Body.Close() })
	if got := res.Header.Get("Content-Type"); res.StatusCode != 200 || got != "text/event-stream" {
		t.Fatalf("the event stream: %d %s", res.StatusCode, got)
	}
	s := &eventStream{make(chan string, 100), make(chan struct{})}
	go func() {
		defer close(s.ended)
		lines := bufio.NewScanner(res.Body)
		for lines.Scan() {
			if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
				var st status
				if json.Unmarshal([]byte(data), &st) != nil {
					st.State = "unreadable: " + data
				}
				s.states <- st.State
			}
		}
	}()
	select {
	case <-s.states:
	case <-time.After(10 * time.Second):
		t.Fatal("the event stream has no first event")
	}
	return s
}

// requireEnd waits for the server to end the stream.
func (s *eventStream) requireEnd(t *testing.T) {
	t.Helper()
	select {
	case <-s.ended:
	case <-time.After(5 * time.Second):
		t.Error("the event stream is still open")
	}
}

// TestOpenStatusPageHoldsUpNeitherReloadNorEnd has browsers on the status page while Caddy reloads and while it ends,
// with no grace_period: Caddy then waits for open requests for ever.
func TestOpenStatusPageHoldsUpNeitherReloadNorEnd(t *testing.T) {
	as := startAS(t, time.Hour, byHand)
	a := startAPI(t, as.ValidToken)
	config := site("device", "openid")
	c := startCaddy(t, config, as.Issuer(), a.URL)

	old := []*eventStream{c.watch(t), c.watch(t), c.watch(t)}
	const only = "http://:{$PORT2} {\n\tbind 127.0.0.1\n\trespond \"only\"\n}\n"
	began := time.Now()
	c.reload(t, config+only) // the page's listener stays, its server is another
	for _, s := range old {
		s.requireEnd(t) // and the browser opens it anew
	}
	old = []*eventStream{c.watch(t), c.watch(t)}
	c.reload(t, only)
	for _, s := range old {
		s.requireEnd(t)
	}
	c.reload(t, config)
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("three reloads with open pages took %v", took)
	}

	fresh := []*eventStream{c.watch(t), c.watch(t)}
	_ = c.callForCode(t) // a code is out, and polled for
	for _, s := range fresh {
		select {
		case got := <-s.states:
			if got != "login_required" && got != "pending" {
				t.Errorf("the stream says %q", got)
			}
		case <-time.After(5 * time.Second):
			t.Error("the stream says nothing of the login")
		}
	}
	began = time.Now()
	c.stop(t, syscall.SIGTERM)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("with open status pages Caddy took %v to end", took)
	}
	for _, s := range fresh {
		s.requireEnd(t)
	}
}

// TestFailedReloadLeavesTheSessionAlone loads configurations that fail in Start, when our app may have started
// already: the login that is pending goes on with the same code, and nothing of the failed ones stays behind.
func TestFailedReloadLeavesTheSessionAlone(t *testing.T) {
	parallel(t)
	as := startAS(t, time.Hour, byHand)
	a := startAPI(t, as.ValidToken)
	config := site("device", "openid")
	c := startCaddy(t, config, as.Issuer(), a.URL)
	code := c.callForCode(t).UserCode

	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	_, port, err := net.SplitHostPort(taken.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	// Caddy starts apps in any order; after so many attempts both orders have very likely been.
	for n := range 6 {
		c.write(t, config+fmt.Sprintf(`
http://:%s {
	bind 127.0.0.1
	device_flow {$API} {
		issuer {$ISSUER}
		client_id other
		scope attempt-%d
	}
}
`, port, n))
		if out, err := c.run(t, "reload", "--config", c.file, "--adapter", "caddyfile"); err == nil {
			t.Fatalf("the reload with a port that is taken succeeds:\n%s", out)
		}
		if got := c.status(t); got.State != "pending" || got.Login == nil || got.Login.UserCode != code {
			t.Fatalf("after failed reload %d the page shows %+v, want the code %s still", n+1, got, code)
		}
	}
	if got := c.callForCode(t).UserCode; got != code {
		t.Errorf("a caller is told the code %s, want %s", got, code)
	}
	if got := c.sessions(t); len(got) != 1 {
		t.Errorf("the failed reloads left sessions behind: %+v", got)
	}
	if err := as.Approve(code); err != nil {
		t.Fatal(err)
	}
	c.login(t)
	if got := as.Stats(); got.DeviceRequests != 1 || got.Logins != 1 {
		t.Errorf("%d codes and %d logins, want 1 and 1", got.DeviceRequests, got.Logins)
	}

	// The reload that succeeds at last lets go of all of it.
	c.reload(t, "http://:{$PORT2} {\n\tbind 127.0.0.1\n\trespond \"only\"\n}\n")
	if got := c.sessions(t); len(got) != 0 {
		t.Errorf("after the last use there are sessions still: %+v", got)
	}
	c.reload(t, config)
	c.login(t)
	if got := as.Stats(); got.DeviceRequests != 1 {
		t.Errorf("back again, the session has lost its login: %d codes", got.DeviceRequests)
	}
}

// TestReloadDuringARefreshIsOneRefresh reloads Caddy while a slow server is refreshing: with the session in the new
// configuration, whose calls wait for the same refresh, and without it.
func TestReloadDuringARefreshIsOneRefresh(t *testing.T) {
	parallel(t)
	const only = "http://:{$PORT2} {\n\tbind 127.0.0.1\n\trespond \"only\"\n}\n"
	for name, next := range map[string]string{"kept": site("device", "offline_access") + only, "removed": only} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			as := startAS(t, time.Hour)
			issued := watchIssued(as)
			a := startAPI(t, as.ValidToken)
			config := site("device", "offline_access")
			c := startCaddy(t, config, as.Issuer(), a.URL)
			c.login(t)

			as.Script(flowtest.Refresh, flowtest.Response{Pass: true, Delay: 2 * time.Second, Edit: issued.note})
			as.ExpireAccessTokens() // the API refuses the token, which asks for a refresh
			hc := client(t)
			early := make(chan string, 1)
			go func() { early <- call(hc, c.url+"/") }()
			eventually(t, patience, "a refresh is under way", func() bool { return as.Count(flowtest.Refresh) == 1 })
			began := time.Now()
			c.load(t, next)
			took := time.Since(began)
			t.Logf("the reload took %v", took.Round(time.Millisecond))
			if took > 5*time.Second {
				t.Errorf("the reload took %v", took)
			}
			if name == "kept" {
				if problem := call(hc, c.url+"/"); problem != "" {
					t.Errorf("a call of the new configuration: %s", problem)
				}
				if problem := <-early; problem != "" {
					t.Errorf("the call that is older than the configuration: %s", problem)
				}
			}
			c.load(t, config+"# again\n") // the removed one has ended by now, and starts anew
			c.login(t)
			if got := as.Stats(); got.Refreshes != 1 || as.Count(flowtest.Refresh) != 1 {
				t.Errorf("%d refreshes of %d attempts, want one", got.Refreshes, as.Count(flowtest.Refresh))
			}
			c.kill(t)
			if saved, _ := recordAndLeftovers(t, recordsOf(c)); saved != issued.latest() {
				t.Error("what the refresh brought is not on disk")
			}
			c.start(t)
			if problem := call(hc, c.url+"/"); problem != "" {
				t.Errorf("after a restart: %s", problem)
			}
			if got := as.Stats(); got.DeviceRequests != 1 || got.Reuses != 0 {
				t.Errorf("%d codes and %d reuses, want 1 and 0", got.DeviceRequests, got.Reuses)
			}
		})
	}
}

// TestChangedScopeAsksForAnotherLogin never uses a token for more or less than it was asked for.
func TestChangedScopeAsksForAnotherLogin(t *testing.T) {
	parallel(t)
	as := startAS(t, time.Hour, byHand)
	a := startAPI(t, as.ValidToken)
	c := startCaddy(t, site("device", "offline_access read:things"), as.Issuer(), a.URL)
	first := c.callForCode(t).UserCode
	as.ApproveAll()
	c.login(t)
	old := a.tokens()

	c.reload(t, site("device", "offline_access read:things write:things"))
	seen := len(a.requests())
	second := c.callForCode(t).UserCode
	if second == first {
		t.Error("the new scope has the old code")
	}
	if got := len(a.requests()) - seen; got != 0 {
		t.Errorf("the API was contacted %d times before the new login", got)
	}
	as.ApproveAll()
	c.login(t)
	for _, token := range a.tokens()[len(old):] {
		if info, ok := as.Inspect(token); !ok || !slices.Contains(info.Scope, "write:things") {
			t.Errorf("a token was used with the scope %v", info.Scope)
		}
	}
	for _, r := range a.requests()[seen:] {
		if slices.Contains(old, strings.TrimPrefix(r.header.Get("Authorization"), "Bearer ")) {
			t.Error("the API received the old token after the reload")
		}
	}
	if len(a.tokens()) == len(old) {
		t.Error("no call was served with a new token")
	}

	// The old configuration finds the old login again.
	c.reload(t, site("device", "read:things offline_access"))
	c.login(t)
	if got := as.Stats().DeviceRequests; got != 2 {
		t.Errorf("%d codes for two logins", got)
	}
}

// TestTwoLoginsKeepTheirOwnWhenSitesAreMoved has the sites in another order after a restart, so that the sessions
// change their names.
func TestTwoLoginsKeepTheirOwnWhenSitesAreMoved(t *testing.T) {
	parallel(t)
	as := startAS(t, time.Hour)
	a := startAPI(t, as.ValidToken)
	one := site("device", "offline_access one")
	two := strings.Replace(site("device", "offline_access two"), "{$PORT}", "{$PORT2}", 1)
	c := startCaddy(t, one+two, as.Issuer(), a.URL)

	requireScopes := func() {
		t.Helper()
		for url, scope := range map[string]string{c.url: "one", c.url2: "two"} {
			seen := len(a.requests())
			if res := get(t, client(t), url+"/", ""); res.status != 200 {
				t.Fatalf("the site with the scope %s: %d %s", scope, res.status, res.body)
			}
			token := strings.TrimPrefix(a.requests()[seen].header.Get("Authorization"), "Bearer ")
			if info, _ := as.Inspect(token); !slices.Contains(info.Scope, scope) {
				t.Errorf("the site with the scope %s sends a token for %v", scope, info.Scope)
			}
		}
	}
	c.loginAt(t, c.url)
	if got := statusOf(t, c.url2).State; got != "login_required" {
		t.Errorf("the login of one site has made the other %q", got)
	}
	c.loginAt(t, c.url2)
	requireScopes()
	if got := c.sessions(t); len(got) != 2 || got["default"].State != "authorized" || got["default-2"].State != "authorized" {
		t.Errorf("sessions: %+v, want default and default-2, authorized", got)
	}

	c.stop(t, syscall.SIGTERM)
	c.write(t, two+one)
	c.start(t)
	requireScopes()
	if got := statusOf(t, c.url2).Session; got != "default-2" && got != "default" {
		t.Errorf("the moved site's session is %q", got)
	}
	if got := as.Stats().DeviceRequests; got != 2 {
		t.Errorf("%d codes for two logins", got)
	}
}

// TestRotatedSecretFileNeedsNoReload changes the client's secret at both ends while Caddy runs.
func TestRotatedSecretFileNeedsNoReload(t *testing.T) {
	parallel(t)
	for _, auth := range []string{"post", "basic"} {
		t.Run(auth, func(t *testing.T) {
			const before, after = "first:secret/%+ü", "second secret & more"
			as := startAS(t, time.Hour, func(c *flowtest.Config) { c.ClientSecret = before })
			a := startAPI(t, as.ValidToken)
			c := newCaddy(t, fmt.Sprintf(`
http://:{$PORT} {
	bind 127.0.0.1
	device_flow {$API} {
		issuer {$ISSUER}
		client_id device
		client_secret {file.{$HOME}/secret}
		client_auth %s
		scope offline_access
	}
}
`, auth), as.Issuer(), a.URL)
			c.writeFile(t, "secret", before+"\n")
			c.start(t)
			c.login(t)

			c.writeFile(t, "secret", after+"\n")
			as.SetConfig(func(cfg *flowtest.Config) { cfg.ClientSecret = after })
			if res := c.ask(t, http.MethodPost, "/device_flow/sessions/default/refresh"); res.status != 200 {
				t.Fatalf("the refresh with the rotated secret: %d %s", res.status, res.body)
			}
			if got := as.Stats().Refreshes; got != 1 {
				t.Errorf("%d refreshes, want 1", got)
			}
			requireAbsent(t, "the log", c.output.String(), []string{before, after})
		})
	}
}
