package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"os/exec"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// said is what a command printed and how it ended.
type said struct {
	code     int
	out, err string
}

// cli runs `caddy device-flow …` to its end.
func (c *caddy) cli(t *testing.T, args ...string) said {
	t.Helper()
	cmd := c.command(append([]string{"device-flow"}, args...)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatal(err)
	}
	return said{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
}

// mustSay runs a command and requires its exit status and some text, all of it on standard output if it succeeds, and
// none of it if it fails.
func (c *caddy) mustSay(t *testing.T, code int, want []string, args ...string) said {
	t.Helper()
	got := c.cli(t, args...)
	text := got.out
	if code != 0 {
		text = got.err
	}
	for _, w := range want {
		if !strings.Contains(text, w) {
			t.Errorf("device-flow %q does not say %q", args, w)
		}
	}
	if got.code != code || code == 0 && got.err != "" {
		t.Errorf("device-flow %q ended with %d, want %d", args, got.code, code)
	}
	if t.Failed() {
		t.Fatalf("device-flow %q printed\n%s\nand as errors\n%s", args, got.out, got.err)
	}
	return got
}

// exitCode waits for the end of a command that was started.
func (p *process) exitCode(t *testing.T) int {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(30 * time.Second):
		t.Fatalf("%q has not ended\n%s", p.cmd.Args, p.output.String())
	}
	return p.cmd.ProcessState.ExitCode()
}

// printed waits until a command has printed something.
func (p *process) printed(t *testing.T, what string) {
	t.Helper()
	eventually(t, patience, "the command prints "+what, func() bool {
		if !p.running() && !strings.Contains(p.output.String(), what) {
			t.Fatalf("%q ended without %q:\n%s", p.cmd.Args, what, p.output.String())
		}
		return strings.Contains(p.output.String(), what)
	})
}

// TestCommandsGoThroughALogin is a session's life as somebody at a console has it.
func TestCommandsGoThroughALogin(t *testing.T) {
	parallel(t)
	as := startAS(t, time.Hour, byHand)
	a := startAPI(t, as.ValidToken)
	c := startCaddy(t, site("device", "openid offline_access"), as.Issuer(), a.URL)

	c.mustSay(t, 0, []string{"Log in to connect (login_required)", "caddy device-flow login"}, "status")
	c.mustSay(t, 2, []string{"login_required", "caddy device-flow login"}, "wait", "--timeout", "0s")
	c.mustSay(t, 1, []string{"there is no refresh token; log in first"}, "refresh")
	c.mustSay(t, 0, []string{"Nobody was logged in"}, "logout")

	wait := startProcess(t, c.command("device-flow", "wait"))
	wait.printed(t, "login_required")
	login := startProcess(t, c.command("device-flow", "login"))
	login.printed(t, "Waiting for approval.")
	st := c.status(t)
	for _, want := range []string{st.Login.UserCode, st.Login.VerificationURI, st.Login.VerificationURIComplete, "██████"} {
		login.printed(t, want)
	}
	wait.printed(t, "pending: open "+st.Login.VerificationURI+" and enter "+st.Login.UserCode)
	if strings.ContainsAny(login.output.String()+wait.output.String(), "\x1b\r") {
		t.Error("a pipe gets control characters")
	}
	again := c.mustSay(t, 0, []string{st.Login.UserCode}, "login", "--no-wait", "--no-qr")
	if strings.ContainsAny(again.out, "█▀▄") {
		t.Errorf("--no-qr draws:\n%s", again.out)
	}
	for _, r := range again.out {
		if r > 0x7e || r < ' ' && r != '\n' {
			t.Fatalf("without a QR code the text is not plain ASCII: %q", again.out)
		}
	}

	// What is for programs is what the admin API says, by name one object, else the list.
	for path, args := range map[string][]string{"": {"status", "--json"}, "/default": {"status", "default", "--json"}} {
		var got, want any
		if err := json.Unmarshal([]byte(c.mustSay(t, 0, nil, args...).out), &got); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal([]byte(c.ask(t, "GET", "/device_flow/sessions"+path).body), &want); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %v, want %v", args, got, want)
		}
	}

	if err := as.Approve(st.Login.UserCode); err != nil {
		t.Fatal(err)
	}
	if code := login.exitCode(t); code != 0 || !strings.Contains(login.output.String(), "Connected (authorized)") || !strings.Contains(login.output.String(), "Alice Example") {
		t.Fatalf("login ended with %d:\n%s", code, login.output.String())
	}
	if code := wait.exitCode(t); code != 0 || !strings.Contains(wait.output.String(), "authorized: calls are served") {
		t.Fatalf("wait ended with %d:\n%s", code, wait.output.String())
	}
	c.login(t)
	c.mustSay(t, 0, []string{"authorized"}, "wait", "--timeout", "0s")
	c.mustSay(t, 0, []string{"The token has been renewed.", "Token valid until:"}, "refresh")
	if got := as.Stats().Refreshes; got != 1 {
		t.Errorf("%d refreshes, want 1", got)
	}
	c.mustSay(t, 0, []string{"Logged out.", "caddy device-flow login"}, "logout")
	if got := as.Stats().Revocations; got != 1 {
		t.Errorf("%d revocations, want 1", got)
	}
	c.mustSay(t, 0, []string{"login_required"}, "status")
	if got := as.Stats().DeviceRequests; got != 1 {
		t.Errorf("%d codes were asked for, want 1", got)
	}
}

// TestLoginCommandTellsHowItEnded is about the codes that are not approved.
func TestLoginCommandTellsHowItEnded(t *testing.T) {
	parallel(t)
	as := startAS(t, time.Hour, byHand)
	a := startAPI(t, as.ValidToken)
	c := startCaddy(t, site("device", "openid offline_access"), as.Issuer(), a.URL)
	begin := func() (*process, string) {
		t.Helper()
		p := startProcess(t, c.command("device-flow", "login", "--no-qr"))
		p.printed(t, "Waiting for approval.")
		return p, c.status(t).Login.UserCode
	}
	ends := func(p *process, code int, want ...string) {
		t.Helper()
		if got := p.exitCode(t); got != code {
			t.Errorf("%q ended with %d, want %d", p.cmd.Args, got, code)
		}
		for _, w := range want {
			if !strings.Contains(p.output.String(), w) {
				t.Errorf("%q does not say %q:\n%s", p.cmd.Args, w, p.output.String())
			}
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}

	p, code := begin()
	must(as.Deny(code))
	ends(p, 2, "Error: The login was refused on the approval page", "Get a new code: caddy device-flow login")
	p, code = begin()
	must(as.Expire(code))
	ends(p, 2, "Error: Nobody approved the login before its code ran out.")
	p, _ = begin()
	c.order(t, "logout")
	ends(p, 2, "the login was given up")

	// Ctrl-C ends the waiting, not the login.
	p, code = begin()
	must(p.cmd.Process.Signal(interruptSignal))
	ends(p, 1, "interrupted", "caddy device-flow wait")
	// Caddy is restarted meanwhile.
	p, again := begin()
	if again != code {
		t.Errorf("after Ctrl-C the code is another one")
	}
	c.kill(t)
	p.printed(t, "Trying on.")
	c.start(t)
	must(as.Approve(code))
	ends(p, 0, "Connected (authorized)")

	// A login in place of one that works.
	p, code = begin()
	if !strings.Contains(p.output.String(), "Until then the present one stays in use") {
		t.Errorf("it is not said that the present login goes on:\n%s", p.output.String())
	}
	must(as.Deny(code))
	ends(p, 2, "The present login stays in use.")
	p, code = begin()
	must(as.Approve(code))
	ends(p, 0, "Connected (authorized)")

	as.Script(flowtest.Revoke, flowtest.Response{Status: 503})
	c.mustSay(t, 2, []string{"forgotten here", "did not confirm"}, "logout")
	as.ScriptAlways(flowtest.Device, flowtest.ErrorResponse(400, "unauthorized_client"))
	c.mustSay(t, 1, []string{"unauthorized_client"}, "login")
	c.mustSay(t, 2, []string{"misconfigured", "Allow the client the Device Code"}, "wait", "--timeout", "1s")
}

// TestCommandsSayWhatToMend has what goes wrong before a session is found.
func TestCommandsSayWhatToMend(t *testing.T) {
	parallel(t)
	as := startAS(t, time.Hour, byHand)
	a := startAPI(t, as.ValidToken)
	c := newCaddy(t, composed, as.Issuer(), a.URL)

	nobody := []string{"no answer from Caddy's admin API at " + strings.TrimPrefix(c.admin, "http://"), "is Caddy running", "--address"}
	c.mustSay(t, 1, nobody, "status")
	c.mustSay(t, 1, nobody, "login")
	c.mustSay(t, 1, append(nobody, "after 1s"), "wait", "--timeout", "1s")
	c.writeFile(t, "off.caddyfile", "{\n\tadmin off\n}\n")
	c.mustSay(t, 1, []string{"admin off"}, "status", "--config", "off.caddyfile")
	c.mustSay(t, 1, []string{"nowhere.caddyfile"}, "status", "--config", "nowhere.caddyfile")

	// It waits for a Caddy that is about to start.
	wait := startProcess(t, c.command("device-flow", "wait"))
	wait.printed(t, "no answer")
	c.start(t)
	wait.printed(t, "login_required")
	wait.stop(t, interruptSignal)

	// The only session need not be named, nor called default.
	c.mustSay(t, 0, []string{"acme: Log in to connect", "caddy device-flow login acme"}, "status")
	c.mustSay(t, 1, []string{"there is no session acne; there are: acme"}, "status", "acne")
	c.mustSay(t, 1, []string{"there is no session acne; there are: acme"}, "wait", "acne")
	c.mustSay(t, 1, []string{`there is no command "lgin"`}, "lgin")
	c.mustSay(t, 1, []string{"--stauts"}, "status", "--stauts")
	c.mustSay(t, 1, []string{"at most 1 arg"}, "status", "acme", "other")

	c.reload(t, strings.Replace(composed, "{\n", "{\n\tdevice_flow other {\n\t\tissuer {$ISSUER}\n\t\tclient_id device\n\t}\n", 1))
	c.mustSay(t, 1, []string{"there are several sessions, so name one: acme, other"}, "login")
	c.mustSay(t, 1, []string{"so name one"}, "wait", "--timeout", "1s")
	c.mustSay(t, 0, []string{"acme", "other", "caddy device-flow login other"}, "status", "--config", c.file, "--adapter", "caddyfile", "--address", strings.TrimPrefix(c.admin, "http://"))
	c.mustSay(t, 0, []string{"pending"}, "login", "other", "--no-wait")
	c.mustSay(t, 0, []string{"SESSION", "open " + as.Issuer()}, "status")

	// What the shell offers behind `caddy device-flow status `.
	out, err := c.run(t, "__complete", "device-flow", "status", "")
	if err != nil || !strings.Contains(out, "acme\tlogin_required") || !strings.Contains(out, "other\tpending") {
		t.Errorf("completion of names: %v\n%s", err, out)
	}
	out, err = c.run(t, "__complete", "device-flow", "")
	for _, name := range []string{"login", "logout", "proxy", "refresh", "status", "wait"} {
		if err != nil || !strings.Contains(out, name+"\t") {
			t.Errorf("completion of commands lacks %s: %v\n%s", name, err, out)
		}
	}

	// A Caddy that uses it nowhere.
	c.reload(t, "http://:{$PORT} {\n\tbind 127.0.0.1\n\trespond hello\n}\n")
	c.mustSay(t, 1, []string{"there is no session", "nothing in its configuration uses device_flow"}, "status", "default")
}

// TestStringsOfTheServerSteerNoCommand is S33 of the scorecard for the commands.
func TestStringsOfTheServerSteerNoCommand(t *testing.T) {
	parallel(t)
	as, a := startScribbler(t), startAPI(t, func(string) bool { return true })
	c := startCaddy(t, strings.Replace(scribbled, "client_id", "log_qr\n\t\tclient_id", 1), as.URL, a.URL)
	const evil = "AB\x1b[2J\x1b]0;title\x07\u009b31m\u202eCD\u2066\u200b\x7f\r\n\nstate: authorized\r\rEF\u2028GH"
	check := func(phase, want string, commands ...[]string) {
		t.Helper()
		for _, args := range commands {
			got := c.cli(t, args...)
			text := got.out + got.err
			if strings.ContainsAny(text, "\x00\x07\x08\x0b\x0c\r\x1b\x7f\u0085\u009b\u202e\u2066\u200b\u2028\ufeff") || strings.Contains(text, "\nstate: authorized") {
				t.Errorf("%s: %q: %q", phase, args, text)
			}
			if !strings.Contains(text, want) {
				t.Errorf("%s: %q does not show %q:\n%s", phase, args, want, text)
			}
		}
	}
	status, list, once := []string{"status"}, []string{"status", "--json"}, []string{"wait", "--timeout", "0s"}

	as.offer(evil, "https://login.example.com/"+evil, evil)
	check("a code", "AB", []string{"login", "--no-wait"}, status, list, once)
	as.offer(evil, "https://login.example.com/", "https://login.example.com/?"+strings.Repeat("x", 300))
	as.answer(map[string]any{"error": "EC" + evil, "error_description": "ED" + evil, "error_uri": evil})
	eventually(t, patience, "the login fails", func() bool { return c.status(t).Error != nil })
	check("an error", "EDAB", status)
	check("an error", "ED", list)
	check("a new code", "AB", []string{"login"})
	as.offer("code", "https://login.example.com/", "")
	c.order(t, "login")
	as.answer(granted([]string{"SC" + evil}, map[string]string{"sub": evil, "name": "NA" + evil, "email": evil, "iss": evil}))
	c.login(t)
	check("a login", "NAAB", status)
	check("a login", "NA", list)
	if out := levels.ReplaceAllString(c.output.String(), ""); strings.ContainsAny(out, "\x07\r\x1b\x7f\u009b\u202e\u2028") {
		t.Errorf("in what Caddy printed: %q", out)
	}
}
