package e2e

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// TestReadmeLeadsFromACloneToACall does what the README's eight steps say, with the commands as they stand there, at a
// server with Auth0's habits. The first one, which builds Caddy, is CI's own step.
func TestReadmeLeadsFromACloneToACall(t *testing.T) {
	parallel(t)
	text, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(text), "## From a clone to a call at Auth0, in eight steps\n")
	section, _, _ = strings.Cut(section, "\n## ")
	if steps := regexp.MustCompile(`(?m)^\d\. `).FindAllString(section, -1); !ok || len(steps) > 8 {
		t.Fatalf("the README has %d steps, want 8 at most", len(steps))
	}
	var commands []string
	for _, m := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(section, -1) {
		commands = append(commands, m[1])
	}
	if len(commands) != 3 {
		t.Fatalf("the README has %d commands, want 3: %q", len(commands), commands)
	}
	if _, err := exec.LookPath("curl"); err != nil {
		missing(t, "this test needs curl in PATH")
	}

	as := startAS(t, time.Hour, byHand, func(c *flowtest.Config) { c.Flavour, c.ClientID = flowtest.Auth0, "3f2aKq" })
	a := startAPI(t, as.ValidToken)
	c := newCaddy(t, "", "", "")
	binary, err := caddyBinary()
	if err != nil {
		t.Fatal(err)
	}
	here := strings.NewReplacer("./caddy", "exec '"+binary+"'", "https://api.example.com", a.URL,
		"https://acme.eu.auth0.com", as.Issuer(), "localhost:8080", "localhost:"+c.port)
	run := func(command string) *exec.Cmd {
		cmd := exec.Command("sh", "-c", here.Replace(command))
		cmd.Env, cmd.Dir = environment(c.home), c.home
		return cmd
	}
	p := startProcess(t, run(commands[1]))
	c.process = p
	p.printed(t, "Send calls to   http://localhost:"+c.port)

	page := get(t, client(t), "http://localhost:"+c.port+statusPath, "text/html")
	code := pendingCode(t, &victim{caddy: c, as: as})
	if page.status != 200 || !strings.Contains(page.body, code) {
		t.Fatalf("the page does not show the code %s: %d", code, page.status)
	}
	if err := as.Approve(code); err != nil {
		t.Fatal(err)
	}
	c.login(t)
	out, err := run(commands[2]).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "HTTP/1.1 200 OK") {
		t.Fatalf("%v\n%s", err, out)
	}

	// The same in a Caddyfile is the same login.
	p.stop(t, interruptSignal)
	example, err := os.ReadFile("../Caddyfile.example")
	if err != nil {
		t.Fatal(err)
	}
	file := "{\n\tadmin off\n}\n" + strings.ReplaceAll(here.Replace(string(example)), "http://:8080", "http://:"+c.port)
	file = strings.ReplaceAll(file, "bind 127.0.0.1 ::1", "bind 127.0.0.1")
	c.writeFile(t, "Caddyfile", file)
	c.process = startProcess(t, c.command("run", "--config", "Caddyfile"))
	c.printed(t, "serving initial configuration")
	c.login(t)
	if got := as.Stats().DeviceRequests; got != 1 {
		t.Errorf("%d codes were asked for, want 1", got)
	}
}
