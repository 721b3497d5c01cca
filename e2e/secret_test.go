package e2e

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"io/fs"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// talkative is the short form with everything switched on that makes Caddy say more.
const talkative = `
{
	debug
	servers {
		trace
		log_credentials
	}
	metrics
}
http://:{$PORT} {
	bind 127.0.0.1
	log
	device_flow {$API} {
		issuer {$ISSUER}
		client_id device
		client_secret {file.{$HOME}/secret}
		scope openid profile offline_access
	}
}
`

// TestSecretsAppearNowhere goes through a login's life, with failures that echo secrets, while Caddy logs all it can,
// and looks for every access token, refresh token, device code and the client's secret in all that anybody can read.
func TestSecretsAppearNowhere(t *testing.T) {
	parallel(t)
	const secret = "s3cret/of+the%client"
	as := startAS(t, time.Hour, byHand, func(c *flowtest.Config) { c.ClientSecret = secret })
	a := startAPI(t, as.ValidToken)
	c := newCaddy(t, talkative, as.Issuer(), a.URL)
	c.writeFile(t, "secret", secret)
	c.start(t)

	said := map[string]string{} // by place
	read := func(phase string) {
		t.Helper()
		for _, accept := range []string{"application/json", "text/plain", "text/html"} {
			for _, path := range []string{"/", "/.device-flow", "/.device-flow/healthz", "/.device-flow/qr.svg"} {
				res := get(t, client(t), c.url+path, accept)
				var header strings.Builder
				_ = res.header.Write(&header) // a strings.Builder takes everything
				said[phase+" "+path+" "+accept] = header.String() + res.body
			}
		}
		said[phase+" events"] = c.firstEvent(t)
		for _, path := range []string{
			"/config/", "/device_flow/sessions", "/device_flow/sessions/default", "/metrics", "/debug/vars",
			"/debug/pprof/cmdline", "/debug/pprof/goroutine?debug=2", "/reverse_proxy/upstreams",
		} {
			said[phase+" admin "+path] = c.ask(t, http.MethodGet, path).body
		}
	}
	echo := func(r *http.Request) string {
		return r.PostForm.Get("refresh_token") + r.PostForm.Get("device_code") + " " + r.PostForm.Get("client_secret")
	}
	fail := func(status int, code string) flowtest.Response {
		return flowtest.Response{Func: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			_ = json.NewEncoder(w).Encode(map[string]string{
				"error": code, "error_description": "no good: " + echo(r), "error_uri": "https://login.example.com/?" + url.QueryEscape(echo(r)),
			})
		}}
	}

	// A code is out, and a poll for it fails with an answer that holds what it was asked with.
	as.Script(flowtest.Poll, fail(503, "temporarily_unavailable"))
	_ = c.callForCode(t)
	eventually(t, patience, "a poll has failed", func() bool { return as.Count(flowtest.Poll) > 0 })
	read("pending")
	as.ApproveAll()
	c.login(t)
	read("authorized")

	// Refreshes that fail and one that succeeds, a token that the API refuses, an API that is not there.
	for _, f := range []flowtest.Response{fail(500, "server_error"), fail(400, "invalid_request")} {
		as.Script(flowtest.Refresh, f)
		said["a failed refresh"] += c.ask(t, http.MethodPost, "/device_flow/sessions/default/refresh").body
		read("degraded")
	}
	if res := c.ask(t, http.MethodPost, "/device_flow/sessions/default/refresh"); res.status != 200 {
		t.Fatalf("refresh: %d %s", res.status, res.body)
	}
	as.ExpireAccessTokens()
	if res := get(t, client(t), c.url+"/", ""); res.status != 200 {
		t.Fatalf("a call with a token that the API refuses: %d %s", res.status, res.body)
	}
	said["502"] = get(t, client(t), c.url+"/reset", "").body
	out, err := c.run(t, "adapt", "--config", c.file, "--adapter", "caddyfile")
	if err != nil {
		t.Fatalf("caddy adapt: %v\n%s", err, out)
	}
	said["caddy adapt"] = out
	stored := storedSecrets(t, c)
	if res := c.ask(t, http.MethodPost, "/device_flow/sessions/default/logout"); res.status != 200 {
		t.Fatalf("logout: %d %s", res.status, res.body)
	}
	read("logged out")
	c.stop(t, os.Interrupt)
	said["the log"] = c.output.String()
	maps.Copy(said, filesBelow(t, filepath.Join(c.home, "config")))

	// The log is as full as it can be, or its silence would prove nothing.
	for _, want := range []string{`"level":"debug"`, "upstream roundtrip", "handled request", `"verification_uri"`} {
		if !strings.Contains(said["the log"], want) {
			t.Errorf("the log has no %s", want)
		}
	}
	secrets := append(a.tokens(), secret, url.QueryEscape(secret), base64.StdEncoding.EncodeToString([]byte("device:"+secret)))
	for _, r := range as.Requests() {
		for _, name := range []string{"device_code", "refresh_token", "token"} {
			if v := r.Form.Get(name); v != "" {
				secrets = append(secrets, v)
			}
		}
	}
	secrets = append(secrets, stored...)
	if len(a.tokens()) < 3 || len(stored) != 2 {
		t.Errorf("only %d access tokens were used and %d secrets stored", len(a.tokens()), len(stored))
	}
	for place, text := range said {
		requireAbsent(t, place, text, secrets)
	}
}

// firstEvent is the text of the status page's first event.
func (c *caddy) firstEvent(t *testing.T) string {
	t.Helper()
	res, err := client(t).Get(c.url + "/.device-flow/events")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	lines := bufio.NewScanner(res.Body)
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "data: ") {
			return lines.Text()
		}
	}
	t.Fatal("the event stream has no event")
	return ""
}

// filesBelow is the text of every file below a folder.
func filesBelow(t *testing.T, root string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		files[path] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 {
		t.Errorf("there is no file below %s", root)
	}
	return files
}

// recordsOf is the folder of the stored logins.
func recordsOf(c *caddy) string { return filepath.Join(c.home, "data", "caddy", "device_flow") }

// storedSecrets are the tokens of the stored login.
func storedSecrets(t *testing.T, c *caddy) []string {
	t.Helper()
	var found []string
	for path, text := range filesBelow(t, recordsOf(c)) {
		var record struct {
			Access  string `json:"access_token"`
			Refresh string `json:"refresh_token"`
		}
		if err := json.Unmarshal([]byte(text), &record); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		for _, s := range []string{record.Access, record.Refresh} {
			if s != "" {
				found = append(found, s)
			}
		}
	}
	return found
}

// TestStoredLoginIsPrivate holds the modes of what is stored, for a Caddy whose umask would allow everything.
func TestStoredLoginIsPrivate(t *testing.T) {
	parallel(t)
	as := startAS(t, time.Hour)
	a := startAPI(t, as.ValidToken)
	c := newCaddy(t, site("device", "offline_access"), as.Issuer(), a.URL)
	c.wrapper = []string{"sh", "-c", `umask 0; exec "$@"`, "sh"}
	c.start(t)
	c.login(t)

	files := 0
	err := filepath.WalkDir(recordsOf(c), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		want := fs.FileMode(0o600)
		if d.IsDir() {
			want = 0o700
		} else {
			files++
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has the mode %#o, want %#o", path, got, want)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files != 1 {
		t.Errorf("%d files are stored for one login", files)
	}
}
