package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// caddy is a running Caddy with the modules, with a home, an admin address and ports of its own.
//
// A test's Caddyfile names its ports as {$PORT} and {$PORT2}, and its authorization server and upstream as {$ISSUER}
// and {$API}; Caddy itself fills them in.
type caddy struct {
	*process
	binary  string
	wrapper []string // a command that runs the one after it, for `caddy run`
	home    string
	file    string // the Caddyfile
	env     []string

	port, port2 string
	url, url2   string // of the sites at {$PORT} and {$PORT2}
	admin       string // of the admin API
}

// newCaddy prepares a Caddy without starting it.
func newCaddy(t *testing.T, caddyfile, issuer, api string) *caddy {
	t.Helper()
	binary, err := caddyBinary()
	if err != nil {
		t.Fatal(err)
	}
	c := &caddy{binary: binary, home: newHome(t), port: freePort(t), port2: freePort(t)}
	// A port, not a unix socket: paths of temporary folders can be longer than a socket's may be.
	admin := "127.0.0.1:" + freePort(t)
	c.url, c.url2, c.admin = "http://127.0.0.1:"+c.port, "http://127.0.0.1:"+c.port2, "http://"+admin
	c.file = filepath.Join(c.home, "Caddyfile")
	c.env = environment(c.home,
		"CADDY_ADMIN="+admin,
		"PORT="+c.port, "PORT2="+c.port2, "ISSUER="+issuer, "API="+api,
	)
	c.write(t, caddyfile)
	return c
}

// startCaddy runs a Caddy and waits until it serves.
func startCaddy(t *testing.T, caddyfile, issuer, api string) *caddy {
	t.Helper()
	c := newCaddy(t, caddyfile, issuer, api)
	c.start(t)
	return c
}

// write replaces the Caddyfile; it takes effect at the next start or reload.
func (c *caddy) write(t *testing.T, caddyfile string) {
	t.Helper()
	if err := os.WriteFile(c.file, []byte(caddyfile), 0o600); err != nil {
		t.Fatal(err)
	}
}

// writeFile writes a file that only its owner may read into the home, which a Caddyfile names {$HOME}.
func (c *caddy) writeFile(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(c.home, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// start runs `caddy run`, again if need be, and waits until its first site answers.
func (c *caddy) start(t *testing.T) {
	t.Helper()
	cmd := c.command("run", "--config", c.file, "--adapter", "caddyfile")
	if c.wrapper != nil {
		wrapped := exec.Command(c.wrapper[0], append(c.wrapper[1:], cmd.Args...)...)
		wrapped.Dir, wrapped.Env = cmd.Dir, cmd.Env
		cmd = wrapped
	}
	c.process = startProcess(t, cmd)
	eventually(t, patience, "Caddy serves", func() bool {
		if !c.running() {
			t.Fatalf("caddy run ended: %v", c.err)
		}
		return listening("127.0.0.1:" + c.port)
	})
	// Caddy starts its apps in any order, and says when it has started all of them, if its log is to be seen here.
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end) && !strings.Contains(c.output.String(), "serving initial configuration"); {
		<-time.After(10 * time.Millisecond)
	}
}

// kill ends it as a power cut does.
func (c *caddy) kill(t *testing.T) {
	t.Helper()
	c.stop(t, syscall.SIGKILL)
}

// command is a caddy command in this Caddy's environment.
func (c *caddy) command(args ...string) *exec.Cmd {
	cmd := exec.Command(c.binary, args...)
	cmd.Dir, cmd.Env = c.home, slices.Clone(c.env)
	return cmd
}

// run runs a caddy command to its end and returns all it printed.
func (c *caddy) run(t *testing.T, args ...string) (string, error) {
	t.Helper()
	out, err := c.command(args...).CombinedOutput()
	return string(out), err
}

// reload puts another Caddyfile into force.
func (c *caddy) reload(t *testing.T, caddyfile string) {
	t.Helper()
	c.write(t, caddyfile)
	if out, err := c.run(t, "reload", "--config", c.file, "--adapter", "caddyfile"); err != nil {
		t.Fatalf("caddy reload: %v\n%s", err, out)
	}
}

// status is the JSON status of contract.md section 7, as far as the tests read it.
type status struct {
	Session string `json:"session"`
	State   string `json:"state"`
	Login   *struct {
		UserCode                string    `json:"user_code"`
		VerificationURI         string    `json:"verification_uri"`
		VerificationURIComplete string    `json:"verification_uri_complete"`
		ExpiresAt               time.Time `json:"expires_at"`
	} `json:"login"`
	Account *struct {
		Name string `json:"name"`
	} `json:"account"`
	Token *struct {
		ExpiresAt time.Time `json:"expires_at"`
		Scope     []string  `json:"scope"`
	} `json:"token"`
	Error *struct {
		Code        string `json:"code"`
		Description string `json:"description"`
		Action      string `json:"action"`
	} `json:"error"`
}

// status reads the status page of the first site as JSON.
func (c *caddy) status(t *testing.T) status {
	t.Helper()
	return statusOf(t, c.url)
}

// statusOf reads the status page of a site as JSON.
func statusOf(t *testing.T, url string) status {
	t.Helper()
	res := get(t, client(t), url+"/.device-flow", "application/json")
	var s status
	if err := json.Unmarshal([]byte(res.body), &s); res.status != 200 || err != nil {
		t.Fatalf("status page: %d, %v\n%s", res.status, err, res.body)
	}
	return s
}

// problem is what a caller gets who comes too early.
type problem struct {
	Type            string `json:"type"`
	Title           string `json:"title"`
	Status          int    `json:"status"`
	Detail          string `json:"detail"`
	State           string `json:"state"`
	StatusURL       string `json:"status_url"`
	VerificationURI string `json:"verification_uri"`
	UserCode        string `json:"user_code"`
}

// problem calls through the proxy and requires the refusal of a session without a token.
func (c *caddy) problem(t *testing.T) problem {
	t.Helper()
	res := get(t, client(t), c.url+"/", "application/problem+json, application/json")
	if res.status != 503 {
		t.Fatalf("a call without a login: got %d, want 503\n%s", res.status, res.body)
	}
	for name, want := range map[string]string{
		"Content-Type": "application/problem+json", "Cache-Control": "no-store", "Retry-After": "",
	} {
		if got := res.header.Get(name); got == "" || !strings.HasPrefix(got, want) {
			t.Fatalf("a call without a login: %s is %q, want %q", name, got, want)
		}
	}
	var p problem
	if err := json.Unmarshal([]byte(res.body), &p); err != nil {
		t.Fatalf("a call without a login: %v\n%s", err, res.body)
	}
	if p.Status != 503 || p.Title == "" || p.Detail == "" || p.StatusURL == "" {
		t.Fatalf("a call without a login: the problem lacks members: %s", res.body)
	}
	return p
}

// callForCode calls through the proxy, as a device does that knows nothing of logins, until the refusal names a code.
func (c *caddy) callForCode(t *testing.T) problem {
	t.Helper()
	var p problem
	every(t, 250*time.Millisecond, patience, "a 503 with a user code", func() bool {
		p = c.problem(t)
		return p.UserCode != ""
	})
	if p.State != "pending" || p.VerificationURI == "" {
		t.Fatalf("the refusal with a code: state %q, verification_uri %q", p.State, p.VerificationURI)
	}
	return p
}

// login waits until calls are served, for an authorization server that approves by itself.
func (c *caddy) login(t *testing.T) {
	t.Helper()
	c.loginAt(t, c.url)
}

// loginAt is login at one of several sites.
func (c *caddy) loginAt(t *testing.T, url string) {
	t.Helper()
	every(t, 250*time.Millisecond, patience, "a call is served by "+url, func() bool {
		return get(t, client(t), url+"/", "").status == 200
	})
}

// ask sends a request to the admin API.
func (c *caddy) ask(t *testing.T, method, path string) reply {
	t.Helper()
	r, err := http.NewRequest(method, c.admin+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	return do(t, client(t), r)
}

// sessions is the admin API's list: the state of each session by its name.
func (c *caddy) sessions(t *testing.T) map[string]status {
	t.Helper()
	res := c.ask(t, http.MethodGet, "/device_flow/sessions")
	var list []status
	if err := json.Unmarshal([]byte(res.body), &list); res.status != 200 || err != nil {
		t.Fatalf("GET /device_flow/sessions: %d, %v\n%s", res.status, err, res.body)
	}
	all := make(map[string]status, len(list))
	for _, s := range list {
		if _, twice := all[s.Session]; twice {
			t.Fatalf("the session %s is listed twice", s.Session)
		}
		all[s.Session] = s
	}
	return all
}

// site is the short form of contract.md section 4 with a public client.
func site(clientID, scope string) string {
	return fmt.Sprintf(`
http://:{$PORT} {
	bind 127.0.0.1
	device_flow {$API} {
		issuer {$ISSUER}
		client_id %s
		scope %s
	}
}
`, clientID, scope)
}
