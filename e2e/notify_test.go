package e2e

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// notifyBinary is the Caddy of examples/notify.
var notifyBinary = builder("./examples/notify/caddy", "caddy-notify")

// webhook is what the example posts to.
type webhook struct {
	*httptest.Server
	mu     sync.Mutex
	types  []string
	bodies []string
}

func startWebhook(t *testing.T) *webhook {
	t.Helper()
	w := new(webhook)
	w.Server = httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.types = append(w.types, r.Header.Get("Content-Type"))
		w.bodies = append(w.bodies, string(body))
	}))
	t.Cleanup(w.Close)
	return w
}

// received is every body so far.
func (w *webhook) received() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.bodies)
}

// await waits for the n-th notice and returns it.
func (w *webhook) await(t *testing.T, n int) string {
	t.Helper()
	eventually(t, patience, "one more notice", func() bool { return len(w.received()) >= n })
	return w.received()[n-1]
}

// notice reads a notice, which has to be a JSON object of strings.
func notice(t *testing.T, body string) map[string]string {
	t.Helper()
	var m map[string]string
	if err := json.Unmarshal([]byte(body), &m); err != nil {
		t.Fatalf("a notice is no JSON object: %v\n%s", err, body)
	}
	return m
}

// exampleFile reads a file of the repository that the tests use as it stands.
func exampleFile(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", filepath.FromSlash(path)))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// adapted puts what a test needs in the place of what a reader would change in an example; each has to be there.
func adapted(t *testing.T, text string, oldnew ...string) string {
	t.Helper()
	for i := 0; i < len(oldnew); i += 2 {
		if !strings.Contains(text, oldnew[i]) {
			t.Fatalf("the example lacks %q", oldnew[i])
		}
		text = strings.ReplaceAll(text, oldnew[i], oldnew[i+1])
	}
	return text
}

// ownProxy turns the proxy of an example into one between the test's servers.
func ownProxy(t *testing.T, text string, more ...string) string {
	t.Helper()
	return adapted(t, text, append([]string{
		"http://:8080", "http://:{$PORT}",
		"bind 127.0.0.1 ::1", "bind 127.0.0.1",
		"https://api.example.com {", "{$API} {",
		"\t\taudience https://api.example.com\n", "",
		"https://acme.eu.auth0.com", "{$ISSUER}",
		"client_id 3f2aKq", "client_id device",
	}, more...)...)
}

// startNotifying starts the example's Caddy with its Caddyfile and script.
func startNotifying(t *testing.T, issuer, api, caddyfile string, env ...string) *caddy {
	t.Helper()
	if !hasCurl() {
		missing(t, "the script of examples/notify needs curl")
	}
	binary, err := notifyBinary()
	if err != nil {
		t.Fatal(err)
	}
	c := newCaddy(t, caddyfile, issuer, api)
	c.binary = binary
	c.env = append(c.env, env...)
	script := filepath.Join(c.home, "notify.sh") // Caddy runs there
	if err := os.WriteFile(script, []byte(exampleFile(t, "examples/notify/notify.sh")), 0o700); err != nil {
		t.Fatal(err)
	}
	c.start(t)
	return c
}

// TestOneLoginOfManyDevicesIsOneNotice runs the example as it stands.
func TestOneLoginOfManyDevicesIsOneNotice(t *testing.T) {
	parallel(t, notifyBinary)
	as := startAS(t, time.Hour, byHand)
	a := startAPI(t, as.ValidToken)
	w := startWebhook(t)
	c := startNotifying(t, as.Issuer(), a.URL, ownProxy(t, exampleFile(t, "examples/notify/Caddyfile")), "NOTIFY_URL="+w.URL+"/hook")

	const devices = 20
	var all sync.WaitGroup
	for range devices {
		hc := client(t)
		all.Go(func() {
			for range 3 {
				if problem := call(hc, c.url+"/"); !strings.HasPrefix(problem, "503") {
					t.Errorf("a device that is too early gets %q", problem)
				}
			}
		})
	}
	all.Wait()
	code := c.callForCode(t).UserCode
	first := notice(t, w.await(t, 1))
	for key, want := range map[string]string{
		"event": "login_pending", "session": "default", "state": "pending", "user_code": code,
		"verification_uri": as.Issuer() + "/device", "verification_uri_complete": as.Issuer() + "/device?user_code=" + code,
	} {
		if first[key] != want {
			t.Errorf("the notice has the %s %q, want %q", key, first[key], want)
		}
	}
	if text := first["text"]; !strings.Contains(text, code) || !strings.Contains(text, as.Issuer()+"/device") {
		t.Errorf("the sentence lacks the code or where to enter it: %s", text)
	}
	if err := as.Approve(code); err != nil {
		t.Fatal(err)
	}
	second := notice(t, w.await(t, 2))
	if second["event"] != "login_succeeded" || second["account"] != "Alice Example" {
		t.Errorf("the second notice is %v", second)
	}
	c.login(t)
	if res := c.ask(t, http.MethodPost, "/device_flow/sessions/default/refresh"); res.status != http.StatusOK {
		t.Fatalf("refresh: %d %s", res.status, res.body)
	}
	c.login(t)
	c.stop(t, syscall.SIGTERM) // whatever is told, has been told then
	if got := w.received(); len(got) != 2 {
		t.Errorf("%d notices of one login, want 2:\n%s", len(got), strings.Join(got, "\n"))
	}
	if got := w.types[0]; got != "application/json" {
		t.Errorf("the notice is sent as %q", got)
	}
	if got := as.Stats().DeviceRequests; got != 1 {
		t.Errorf("%d codes were asked for, want 1", got)
	}
	secrets := a.tokens()
	for _, r := range as.Requests() {
		secrets = append(secrets, r.Form["device_code"]...)
		secrets = append(secrets, r.Form["refresh_token"]...)
	}
	if len(secrets) < 4 {
		t.Fatalf("only %d secrets to look for", len(secrets))
	}
	for _, secret := range secrets {
		if strings.Contains(strings.Join(w.received(), ""), secret) || strings.Contains(c.output.String(), secret) {
			t.Error("a secret is in a notice or in the log")
		}
	}
	t.Logf("%d devices, 2 notices:\n%s\n%s", devices, first["text"], second["text"])
}

// TestANoticeIsWellFormedWhateverTheServerSays has a server that would like to break out of a string, of a line, or
// into a shell.
func TestANoticeIsWellFormedWhateverTheServerSays(t *testing.T) {
	parallel(t, notifyBinary)
	const breaks = "A\"B'C\\D\nE\rF\x1b[31m$(touch pwned)`touch pwned`;touch pwned;{env.HOME}\u202e"
	for name, env := range map[string]string{"json": "NOTIFY_AS=json", "text": "NOTIFY_AS=text"} {
		t.Run(name, func(t *testing.T) {
			as := startAS(t, time.Hour, byHand, func(c *flowtest.Config) { c.User.Name = breaks })
			a := startAPI(t, as.ValidToken)
			w := startWebhook(t)
			as.Script(flowtest.Device, flowtest.Response{Pass: true, Edit: flowtest.EditJSON(func(m map[string]any) {
				m["user_code"] = breaks
			})})
			c := startNotifying(t, as.Issuer(), a.URL, ownProxy(t, exampleFile(t, "examples/notify/Caddyfile")), "NOTIFY_URL="+w.URL, env)
			_ = c.callForCode(t)
			pending := w.await(t, 1)
			as.ApproveAll()
			succeeded := w.await(t, 2)
			for _, body := range []string{pending, succeeded} {
				if name == "text" {
					if strings.Count(body, "\n") != 1 || strings.ContainsAny(body, "\r\x1b\u202e") || !strings.Contains(body, `A"B'C\D`) {
						t.Errorf("the notice is %q", body)
					}
					continue
				}
				m := notice(t, body)
				for key, value := range m {
					if strings.ContainsAny(value, "\n\r\x1b\u202e") {
						t.Errorf("%s is %q", key, value)
					}
				}
				if !strings.Contains(m["text"], `A"B'C\D`) || !strings.Contains(m["text"], "$(touch pwned)") {
					t.Errorf("the sentence is %q", m["text"])
				}
			}
			if files := listing(t, c.home); strings.Contains(files, "pwned") {
				t.Errorf("what the server said has been run:\n%s", files)
			}
		})
	}
}

// TestAWebhookThatIsDownHoldsNothingUp is told in the log, and the login goes on. The log has no more of the webhook's
// address, which is a secret at many services, than who it belongs to.
func TestAWebhookThatIsDownHoldsNothingUp(t *testing.T) {
	parallel(t, notifyBinary)
	as := startAS(t, time.Hour)
	a := startAPI(t, as.ValidToken)
	c := startNotifying(t, as.Issuer(), a.URL, ownProxy(t, exampleFile(t, "examples/notify/Caddyfile")),
		"NOTIFY_URL=http://127.0.0.1:"+freePort(t)+"/T0-secret")
	c.login(t)
	eventually(t, patience, "the log tells of the notice that failed", func() bool {
		return strings.Contains(c.output.String(), "notify: ./notify.sh: exit status 7")
	})
	if strings.Contains(c.output.String(), "T0-secret") {
		t.Error("the address of the webhook is in the log")
	}
}

// TestACommandThatIsNotThereIsFoundAtOnce and not by the first event.
func TestACommandThatIsNotThereIsFoundAtOnce(t *testing.T) {
	parallel(t, notifyBinary)
	binary, err := notifyBinary()
	if err != nil {
		t.Fatal(err)
	}
	c := newCaddy(t, ownProxy(t, exampleFile(t, "examples/notify/Caddyfile")), "http://127.0.0.1:1", "http://127.0.0.1:1")
	c.binary = binary // there is no notify.sh in its folder
	out, err := c.run(t, "validate", "--config", c.file, "--adapter", "caddyfile")
	if err == nil || !strings.Contains(out, "notify: the command cannot be run") {
		t.Errorf("caddy validate: %v\n%s", err, out)
	}
}
