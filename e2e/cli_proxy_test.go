package e2e

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// TestProxyWithoutACaddyfile runs the product with nothing but flags.
func TestProxyWithoutACaddyfile(t *testing.T) {
	parallel(t)
	const secret = "s3cret-of-the-client"
	as := startAS(t, time.Hour, byHand, func(c *flowtest.Config) { c.ClientSecret = secret })
	a := startAPI(t, as.ValidToken)
	c := newCaddy(t, "", "", "")
	c.writeFile(t, "secret", secret+"\n")
	args := []string{
		"device-flow", "proxy", "--from", "localhost:" + c.port, "--to", a.URL, "--issuer", as.Issuer(), "--client-id", "device",
		"--client-secret-file", "secret", "--scope", "openid offline_access", "--eager", "--log-qr", "--admin", strings.TrimPrefix(c.admin, "http://"),
	}
	p := startProcess(t, c.command(args...))
	c.process = p
	for _, want := range []string{"Send calls to   http://localhost:" + c.port, "They go on to   " + a.URL, "Log in at       http://localhost:" + c.port + "/.device-flow"} {
		p.printed(t, want)
	}
	p.printed(t, "To approve the login, scan this with a phone, or open "+as.Issuer())
	st := c.status(t)
	mustScan(t, p.output.String(), darkTerminal, st.Login.VerificationURIComplete)
	c.mustSay(t, 0, []string{st.Login.UserCode}, "status")
	c.problem(t)
	if err := as.Approve(st.Login.UserCode); err != nil {
		t.Fatal(err)
	}
	c.login(t)
	requireSecretNowhere(t, c, secret)

	// The login is there after a restart, without a code.
	p.stop(t, interruptSignal)
	p = startProcess(t, c.command(args...))
	c.process = p
	p.printed(t, "Send calls to")
	c.login(t)
	if got := as.Stats().DeviceRequests; got != 1 {
		t.Errorf("%d codes were asked for, want 1", got)
	}
	// Only loopback is listened on: another address of this machine belongs to nobody.
	if listening("127.0.0.2:" + c.port) {
		t.Error("the proxy listens on more than localhost")
	}
}

// requireSecretNowhere looks for a secret in the process's arguments and output and in Caddy's configuration folder.
func requireSecretNowhere(t *testing.T, c *caddy, secret string) {
	t.Helper()
	if strings.Contains(strings.Join(c.cmd.Args, " ")+c.output.String(), secret) {
		t.Error("the secret stands in the arguments or the output")
	}
	if names := listing(t, filepath.Join(c.home, "config")); strings.Contains(names, "autosave") {
		t.Errorf("the configuration is kept:\n%s", names)
	}
}

// TestProxySaysWhatIsMissing is about flags that do not make a proxy.
func TestProxySaysWhatIsMissing(t *testing.T) {
	parallel(t)
	c := newCaddy(t, "", "", "")
	good := []string{"proxy", "--from", "localhost:" + c.port, "--to", "https://api.example.com", "--issuer", "https://login.example.com", "--client-id", "x"}
	for _, tc := range []struct {
		args []string
		want string
	}{
		{good[:3], "--to is missing"},
		{good[:5], "--client-id is missing"},
		{append([]string{"proxy", "--to", "https://api.example.com"}, "--client-id", "x"), "issuer"},
		{append(good, "--to", "api.example.com"), "write the whole URL"},
		{append(good, "--from", "scanner.example.com:80"), "write a Caddyfile"},
		{append(good, "--from", "localhost:http"), "has to be a number"},
		{append(good, "--param", "prompt"), "name=value"},
		{append(good, "--account", "email"), "claim=value"},
		{append(good, "--client-secret-file", "nowhere"), "check that the file or variable exists"},
		{append(good, "--client-secret-env", "NOWHERE"), "there is none of that name"},
		{append(good, "--client-secret-env", "A", "--client-secret-file", "b"), "exclude each other"},
		{append(good, "--client-secret", "abc"), "unknown flag"},
		{append(good, "--to", "http://api.example.com"), "http"},
	} {
		c.mustSay(t, 1, []string{tc.want}, tc.args...)
	}
}
