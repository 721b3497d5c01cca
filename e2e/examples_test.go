package e2e

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// These tests start Caddyfiles of examples/ and deploy/ with nothing changed but names and ports, and call what their
// comments say. The others are adapted and validated by caddymodule's tests.

// exampleClient is the client that the examples name.
func exampleClient(c *flowtest.Config) { c.ClientID = "3f2aKq" }

// exampleSite is what every example has to have changed.
var exampleSite = []string{
	"http://:8080", "http://:{$PORT}",
	"bind 127.0.0.1 ::1", "bind 127.0.0.1",
	"https://acme.eu.auth0.com", "{$ISSUER}",
}

// example prepares the Caddy of an example.
func example(t *testing.T, name string, as *flowtest.Server, a *api, oldnew ...string) *caddy {
	t.Helper()
	return newCaddy(t, adapted(t, exampleFile(t, name), oldnew...), as.Issuer(), a.URL)
}

func TestExampleSimple(t *testing.T) {
	parallel(t)
	as := startAS(t, time.Hour, byHand, exampleClient)
	a := startAPI(t, as.ValidToken)
	c := example(t, "examples/simple/Caddyfile", as, a, append(exampleSite, "https://api.example.com {", "{$API} {")...)
	c.start(t)
	if err := as.Approve(c.callForCode(t).UserCode); err != nil {
		t.Fatal(err)
	}
	c.login(t)
}

// TestExampleSeveralAPIs has one approval bring three tokens, each for what its site names.
func TestExampleSeveralAPIs(t *testing.T) {
	parallel(t)
	as := startAS(t, time.Hour, byHand, exampleClient)
	a := startAPI(t, as.ValidToken)
	third := freePort(t)
	c := example(t, "examples/several-apis/Caddyfile", as, a, append(exampleSite,
		"http://:8081", "http://:{$PORT2}", "http://:8082", "http://:"+third,
		"device_flow https://things.example.com {", "device_flow {$API} {", "device_flow https://orders.example.com {", "device_flow {$API} {")...)
	c.start(t)
	if err := as.Approve(c.callForCode(t).UserCode); err != nil {
		t.Fatal(err)
	}
	for _, at := range []string{c.url, c.url2, "http://127.0.0.1:" + third} {
		c.loginAt(t, at)
	}
	if got := len(a.tokens()); got != 3 {
		t.Errorf("the API saw %d tokens, want 3", got)
	}
	var asked []string
	for _, r := range as.Requests() {
		if r.Form.Get("grant_type") == "refresh_token" {
			asked = append(asked, r.Form.Get("audience")+" "+r.Form.Get("scope"))
		}
	}
	for _, part := range []string{"https://orders.example.com", "read:things"} {
		if !slices.ContainsFunc(asked, func(s string) bool { return strings.Contains(s, part) }) {
			t.Errorf("nobody asked for %s: %q", part, asked)
		}
	}
	if got := as.Stats().DeviceRequests; got != 1 {
		t.Errorf("%d codes were asked for, want 1", got)
	}
}

// TestExampleComposed calls each branch of the example's proxy.
func TestExampleComposed(t *testing.T) {
	parallel(t)
	as := startAS(t, time.Hour, byHand, exampleClient)
	a, b := startAPI(t, as.ValidToken), startAPI(t, as.ValidToken)
	c := example(t, "examples/composed/Caddyfile", as, a, append(exampleSite,
		"https://api-1.example.com https://api-2.example.com", "{$API} "+b.URL, "least_conn", "round_robin")...)
	c.start(t)
	if res := get(t, client(t), c.url+"/about", ""); res.status != http.StatusOK || res.body != "a proxy for the warehouse" {
		t.Errorf("/about without a login: %d %s", res.status, res.body)
	}
	if res := get(t, client(t), c.url+"/orders/1", ""); res.status != http.StatusServiceUnavailable || res.body != "OUT OF SERVICE, CALL 4711" {
		t.Errorf("/orders/1 without a login: %d %s", res.status, res.body)
	}
	if len(a.requests())+len(b.requests()) != 0 {
		t.Error("an API was called without a token")
	}
	code := ""
	eventually(t, patience, "the page shows a code", func() bool {
		if s := c.status(t); s.Login != nil {
			code = s.Login.UserCode
		}
		return code != ""
	})
	if err := as.Approve(code); err != nil {
		t.Fatal(err)
	}
	c.login(t)
	for range 4 {
		if res := get(t, client(t), c.url+"/orders/1", ""); res.status != http.StatusOK {
			t.Errorf("/orders/1: %d %s", res.status, res.body)
		}
	}
	for i, api := range []*api{a, b} {
		if !slices.ContainsFunc(api.requests(), func(r seen) bool { return r.path == "/v2/orders/1" && len(r.header["Authorization"]) == 1 }) {
			t.Errorf("API %d was never asked for /v2/orders/1 with a token", i+1)
		}
	}
}

// TestExampleLANPage looks at the page under its name, by https, and finds nothing else there.
func TestExampleLANPage(t *testing.T) {
	parallel(t)
	const name = "login.warehouse.internal"
	as := startAS(t, time.Hour, byHand, exampleClient, func(c *flowtest.Config) { c.User.Email = "warehouse@example.com" })
	a := startAPI(t, as.ValidToken)
	c := example(t, "examples/lan-page/Caddyfile", as, a, append(exampleSite,
		// Nothing of a test goes into the machine's list of authorities, nor to port 80.
		"{\n\tdevice_flow acme {", "{\n\tskip_install_trust\n\tauto_https disable_redirects\n\tdevice_flow acme {",
		"https://api.example.com {", "{$API} {", "https://"+name+" {", "https://"+name+":{$PORT2} {\n\tbind 127.0.0.1")...)
	c.start(t)
	phone := client(t)
	phone.Transport = &http.Transport{
		DisableKeepAlives: true,
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, // the certificate is not what this test is about
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, "127.0.0.1:"+c.port2)
		},
	}
	eventually(t, patience, "the page has its certificate", func() bool {
		conn, err := tls.Dial("tcp", "127.0.0.1:"+c.port2, &tls.Config{ServerName: name, InsecureSkipVerify: true})
		if err != nil {
			return false
		}
		return conn.Close() == nil
	})
	page := "https://" + name + ":" + c.port2
	if err := as.Approve(c.callForCode(t).UserCode); err != nil {
		t.Fatal(err)
	}
	c.login(t)
	calls := len(a.requests())
	if res := get(t, phone, page+statusPath, "text/html"); res.status != http.StatusOK || !strings.Contains(res.body, "Alice Example") {
		t.Errorf("the page: %d %s", res.status, res.body)
	}
	if res := get(t, phone, page+"/things", ""); res.status != http.StatusNotFound {
		t.Errorf("a call at the page's address: %d %s", res.status, res.body)
	}
	if len(a.requests()) != calls {
		t.Error("a call from the network has reached the API")
	}
}

// TestExampleCompose runs the proxy of the container as its compose.yaml does, without the container.
func TestExampleCompose(t *testing.T) {
	parallel(t)
	as := startAS(t, time.Hour, byHand)
	a := startAPI(t, as.ValidToken)
	c := example(t, "examples/compose/Caddyfile", as, a, "http://:8080", "http://127.0.0.1:{$PORT}", "/run/secrets", "{$HOME}")
	c.env = append(c.env, "DEVICE_FLOW_API="+a.URL, "DEVICE_FLOW_ISSUER="+as.Issuer(), "DEVICE_FLOW_CLIENT_ID=device",
		"DEVICE_FLOW_AUDIENCE=https://api.example.com")
	c.writeFile(t, "encryption_key", "q83vEjRWeJCrze8SNFZ4kKvN7xI0VniQq83vEjRWeJA=\n")
	c.start(t)
	p := c.callForCode(t)
	eventually(t, patience, "a QR code in the log", func() bool { return strings.Contains(c.output.String(), "█") })
	if err := as.Approve(p.UserCode); err != nil {
		t.Fatal(err)
	}
	c.login(t)
	stored, err := filepath.Glob(filepath.Join(c.home, "data", "caddy", "device_flow", "*.json"))
	if err != nil || len(stored) != 1 {
		t.Fatalf("%d records, %v", len(stored), err)
	}
	if raw, err := os.ReadFile(stored[0]); err != nil || strings.Contains(string(raw), "refresh_token") {
		t.Errorf("the login is stored in clear text: %v", err)
	}
}

// serverBinary is the server of the demo's compose.yaml.
var serverBinary = builder("./demo/server", "server")

// TestComposeStackServesTheScanner runs what the compose.yaml at the root runs, on loopback: the demonstration server
// with its two names, and the proxy.
func TestComposeStackServesTheScanner(t *testing.T) {
	parallel(t, serverBinary)
	binary, err := serverBinary()
	if err != nil {
		t.Fatal(err)
	}
	stack := exampleFile(t, "compose.yaml")
	if !strings.Contains(stack, `command: ["--listen", ":9000", "--api", ":9001", "--issuer", "http://localhost:9000"]`) ||
		!strings.Contains(stack, "./deploy/compose/Caddyfile:/etc/caddy/Caddyfile") {
		t.Fatal("compose.yaml starts something else than this test")
	}
	as, apiPort := freePort(t), freePort(t)
	c := newCaddy(t, adapted(t, exampleFile(t, "deploy/compose/Caddyfile"), "http://:8080", "http://127.0.0.1:{$PORT}",
		"http://server:9000", "http://127.0.0.1:"+as, "http://server:9001", "http://127.0.0.1:"+apiPort), "", "")
	cmd := exec.Command(binary, "--listen", "127.0.0.1:"+as, "--api", "127.0.0.1:"+apiPort, "--issuer", "http://localhost:"+as)
	cmd.Env = environment(c.home)
	startProcess(t, cmd).printed(t, "authorization server at")
	c.start(t)
	p := c.callForCode(t)
	if want := "http://localhost:" + as + "/device"; p.VerificationURI != want {
		t.Fatalf("people are sent to %s, want %s", p.VerificationURI, want)
	}
	res, err := client(t).PostForm("http://127.0.0.1:"+as+"/device", url.Values{"user_code": {p.UserCode}, "action": {"approve"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := res.Body.Close(); err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("approving: %d, %v", res.StatusCode, err)
	}
	c.login(t)
}

// TestSystemdCredentialsAreRead does what systemd does for LoadCredential: a folder, and its name in the environment.
func TestSystemdCredentialsAreRead(t *testing.T) {
	parallel(t)
	as := startAS(t, time.Hour, exampleClient, func(c *flowtest.Config) { c.ClientSecret = "a secret of systemd's" })
	a := startAPI(t, as.ValidToken)
	c := example(t, "deploy/systemd/Caddyfile", as, a, append(exampleSite, "https://api.example.com {", "{$API} {")...)
	dropIn := exampleFile(t, "deploy/systemd/caddy.service.d/device-flow.conf")
	credentials := filepath.Join(c.home, "credentials")
	if err := os.Mkdir(credentials, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"client-secret": "a secret of systemd's\n", "encryption-key": "q83vEjRWeJCrze8SNFZ4kKvN7xI0VniQq83vEjRWeJA=\n",
	} {
		if !strings.Contains(dropIn, "\nLoadCredential="+name+":") {
			t.Errorf("the drop-in does not load %s", name)
		}
		if err := os.WriteFile(filepath.Join(credentials, name), []byte(text), 0o400); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := c.run(t, "validate", "--config", c.file, "--adapter", "caddyfile"); err == nil || !strings.Contains(out, "/run/credentials/caddy.service/") {
		t.Errorf("without the folder, validate says %v and does not name where the secret should be:\n%s", err, out)
	}
	c.env = append(c.env, "CREDENTIALS_DIRECTORY="+credentials)
	c.start(t)
	c.login(t)
}

// TestExampleOneLoginPerDevice has two scanners with a code and a token each.
func TestExampleOneLoginPerDevice(t *testing.T) {
	parallel(t)
	as := startAS(t, time.Hour, byHand, exampleClient)
	a := startAPI(t, as.ValidToken)
	c := example(t, "examples/one-login-per-device/Caddyfile", as, a, append(exampleSite, "https://api.example.com {", "{$API} {")...)
	c.start(t)
	call := func(device string) reply {
		t.Helper()
		r, err := http.NewRequest(http.MethodGet, c.url+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-Device-Id", device)
		r.Header.Set("Accept", "application/json")
		return do(t, client(t), r)
	}
	if res := get(t, client(t), c.url+"/", ""); res.status != http.StatusBadRequest {
		t.Errorf("a call that does not say whose it is: %d %s", res.status, res.body)
	}
	codes := map[string]bool{}
	for _, device := range []string{"scanner-7", "scanner-8"} {
		eventually(t, patience, device+" is told its code", func() bool {
			var p problem
			if res := call(device); json.Unmarshal([]byte(res.body), &p) != nil || res.status != http.StatusServiceUnavailable {
				t.Fatalf("%s: %d %s", device, res.status, res.body)
			}
			if p.UserCode != "" {
				codes[p.UserCode] = true
			}
			return p.UserCode != ""
		})
	}
	if len(codes) != 2 {
		t.Fatalf("the codes of two devices are %v", codes)
	}
	as.ApproveAll()
	for _, device := range []string{"scanner-7", "scanner-8"} {
		eventually(t, patience, device+" is served", func() bool { return call(device).status == http.StatusOK })
	}
	if got := len(a.tokens()); got != 2 {
		t.Errorf("the API saw %d tokens, want 2", got)
	}
}
