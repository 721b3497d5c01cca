package e2e

import (
	"fmt"
	"net/http"
	"net/url"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// zitadelBinary builds the nested module once. It needs Go alone, but for the modules it is made of a network, the
// first time.
var zitadelBinary = sync.OnceValues(func() (string, error) {
	if err := readSources(); err != nil {
		return "", err
	}
	output := filepath.Join(shared, "zitadel")
	cmd := exec.Command("go", "build", "-o", output, ".")
	cmd.Dir = "zitadel"
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%v in e2e/zitadel: %w\n%s", cmd.Args, err, out)
	}
	return output, nil
})

// startZitadel starts the server of github.com/zitadel/oidc, with access tokens of that lifetime and more settings as
// zitadel/main.go has them.
func startZitadel(t *testing.T, lifetime time.Duration, settings ...string) *provider {
	t.Helper()
	binary, err := zitadelBinary()
	if err != nil {
		missing(t, "this test needs the modules of e2e/zitadel: %v", err)
	}
	cmd := exec.Command(binary)
	cmd.Env = append(environment(newHome(t), "ACCESS_TOKEN_TTL="+strconv.Itoa(int(lifetime/time.Second))), settings...)
	return runProvider(t, cmd, "zitadel/oidc", "/userinfo")
}

// decide is the operator's part at zitadel/main.go and provider/better-auth.mjs.
func (p *provider) decide(t *testing.T, userCode, decision string) {
	t.Helper()
	at, err := url.Parse(p.issuer)
	if err != nil {
		t.Fatal(err)
	}
	at.Path = "/operator"
	res, err := client(t).PostForm(at.String(), url.Values{"user_code": {userCode}, "decision": {decision}})
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	if res.StatusCode >= 300 {
		t.Fatalf("%s the code %s: %s", decision, userCode, res.Status)
	}
}

// polls are the answers to the polling of device codes: the error's name, or "token".
func (p *provider) polls() []string {
	var all []string
	for _, e := range p.all() {
		switch {
		case e.Grant != "device_code":
		case e.Status == http.StatusOK:
			all = append(all, "token")
		default:
			all = append(all, e.Error)
		}
	}
	return all
}

// pollAfter waits for one more answer to a poll.
func (p *provider) pollAfter(t *testing.T, n int) {
	t.Helper()
	eventually(t, patience, "another poll", func() bool { return len(p.polls()) > n })
}

// revocations counts those that the server confirmed.
func (p *provider) revocations() int {
	return p.count(func(e providerEvent) bool { return e.Event == "revocation" && e.Status == http.StatusOK })
}

// wholeLife takes a session from its first call to its logout, at any server: a code, its approval, calls over rotated
// refreshes with a reload among them, and the revocation.
func wholeLife(t *testing.T, p *provider, config string, approve func(s status)) {
	t.Helper()
	a := startAPI(t, p.valid)
	c := startCaddy(t, config, p.issuer, a.URL)
	c.callForCode(t)
	p.pollAfter(t, 0)
	approve(c.status(t))
	c.login(t)
	if got := c.status(t); got.State != "authorized" || got.Account == nil || got.Account.Name == "" {
		t.Fatalf("after the approval: state %q, account %+v, want authorized and a name", got.State, got.Account)
	}

	calls, reloaded := 0, false
	every(t, 300*time.Millisecond, time.Minute, "12 calls, 3 rotated refreshes and a reload", func() bool {
		calls++
		if res := get(t, client(t), c.url+"/", ""); res.status != 200 || res.body != "hello from the API" {
			t.Fatalf("call %d, after %d refreshes: %d %s", calls, p.refreshes(), res.status, res.body)
		}
		if !reloaded && p.refreshes() >= 1 {
			reloaded = true
			c.reload(t, config+"\nhttp://:{$PORT2} {\n\tbind 127.0.0.1\n\trespond \"unrelated\"\n}\n")
		}
		return calls >= 12 && p.refreshes() >= 3 && reloaded
	})
	requireNoToken(t, c, a)

	// A fresh token: no other takes its place before the logout, which ends the newest.
	had := len(a.tokens())
	every(t, 100*time.Millisecond, time.Minute, "a call with a new token", func() bool {
		if res := get(t, client(t), c.url+"/", ""); res.status != 200 {
			t.Fatalf("%d %s", res.status, res.body)
		}
		return len(a.tokens()) > had
	})
	last := a.tokens()[had]
	if res := c.ask(t, http.MethodPost, "/device_flow/sessions/default/logout"); res.status != 200 {
		t.Fatalf("logout: %d %s", res.status, res.body)
	}
	eventually(t, patience, "a revocation", func() bool { return p.revocations() >= 1 }) // two if a refresh was under way
	if p.valid(last) {
		t.Error("after the logout the server still takes the token")
	}
	if got := c.status(t); got.State != "login_required" {
		t.Errorf("after the logout the state is %q", got.State)
	}
	if got := p.deviceRequests(); got != 1 {
		t.Errorf("%d codes were asked for, want 1", got)
	}
	if got := p.failedRefreshes(); got != 0 {
		t.Errorf("%d refreshes were refused", got)
	}
	if got := p.polls(); slices.Index(got, "token") != len(got)-1 {
		t.Errorf("the polling went on after the token: %v", got)
	}
}

// ends waits until the login that is under way has come to its end without a token, and requires the reason; then an
// operator asks for another code.
func ends(t *testing.T, p *provider, c *caddy, code, reason string) {
	t.Helper()
	eventually(t, patience, "the end of the login", func() bool { return c.status(t).State != "pending" })
	if got := c.status(t); got.State != "login_required" || got.Error == nil || got.Error.Code != reason {
		t.Fatalf("the login ended with %+v, error %+v; want login_required and %s", got, got.Error, reason)
	}
	polls := p.polls()
	if res := c.ask(t, http.MethodPost, "/device_flow/sessions/default/login"); res.status >= 300 {
		t.Fatalf("another login: %d %s", res.status, res.body)
	}
	if next := c.callForCode(t).UserCode; next == code {
		t.Errorf("the code %s is shown again", code)
	}
	if slices.Contains(polls, "token") || len(polls) == 0 {
		t.Errorf("polls: %v", polls)
	}
}

// The public client at zitadel/oidc, and one with a secret: this library takes it in the device grant by Basic alone,
// although its metadata promises client_secret_post too.
func TestWholeLifeAtZitadel(t *testing.T) {
	parallel(t, zitadelBinary)
	const scope = "openid offline_access profile email"
	for name, config := range map[string]string{
		"public": site(providerClient, scope),
		"basic": strings.Replace(site(serviceClient, scope), "\t\tscope",
			"\t\tclient_secret \"secret of the service\"\n\t\tclient_auth basic\n\t\tscope", 1),
	} {
		t.Run(name, func(t *testing.T) {
			p := startZitadel(t, 4*time.Second)
			wholeLife(t, p, config, func(s status) { p.decide(t, s.Login.UserCode, "allow") })
		})
	}
}

// slow_down is what this library says when its storage takes too long. The pause after it is 5 s longer, a reload in
// the middle makes it no shorter, and the login goes on.
func TestZitadelSaysSlowDown(t *testing.T) {
	parallel(t, zitadelBinary)
	p := startZitadel(t, time.Minute, "SLOW_POLLS=1")
	a := startAPI(t, p.valid)
	config := site(providerClient, "openid offline_access")
	c := startCaddy(t, config, p.issuer, a.URL)
	code := c.callForCode(t).UserCode
	p.pollAfter(t, 0)
	c.reload(t, config+"\nhttp://:{$PORT2} {\n\tbind 127.0.0.1\n\trespond \"unrelated\"\n}\n")
	p.pollAfter(t, 1)
	p.decide(t, code, "allow")
	c.login(t)

	if got, want := p.polls(), []string{"slow_down", "authorization_pending", "token"}; !slices.Equal(got, want) {
		t.Errorf("polls: %v, want %v", got, want)
	}
	var before time.Time
	for _, e := range p.all() {
		if e.Grant != "device_code" {
			continue
		}
		// The interval was 1 s; 5900 ms leave some room for how late a line is read.
		if pause := e.at.Sub(before); !before.IsZero() && pause < 5900*time.Millisecond {
			t.Errorf("the pause before %q was %v, want 6 s", e.Error, pause)
		}
		before = e.at
	}
	if got := p.deviceRequests(); got != 1 {
		t.Errorf("%d codes were asked for, want 1", got)
	}
}

func TestLoginDeniedAtZitadel(t *testing.T) {
	parallel(t, zitadelBinary)
	p := startZitadel(t, time.Minute)
	c := startCaddy(t, site(providerClient, "openid offline_access"), p.issuer, startAPI(t, p.valid).URL)
	code := c.callForCode(t).UserCode
	p.pollAfter(t, 0)
	p.decide(t, code, "deny")
	ends(t, p, c, code, "access_denied")
	if got := p.polls(); got[0] != "authorization_pending" || !slices.Contains(got, "access_denied") {
		t.Errorf("polls: %v, want pending and then denied", got)
	}
}

// The code dies earlier than was announced: it is the server that says so.
func TestCodeRunsOutAtZitadel(t *testing.T) {
	parallel(t, zitadelBinary)
	p := startZitadel(t, time.Minute, "DEVICE_CODE_DIES=3")
	c := startCaddy(t, site(providerClient, "openid offline_access"), p.issuer, startAPI(t, p.valid).URL)
	code := c.callForCode(t).UserCode
	ends(t, p, c, code, "expired_token")
	if got := p.polls(); got[0] != "authorization_pending" || !slices.Contains(got, "expired_token") {
		t.Errorf("polls: %v, want pending and then expired", got)
	}
}
