package e2e

import (
	"bytes"
	"image"
	"image/color"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// interruptSignal is Ctrl-C.
const interruptSignal = syscall.SIGINT

// theme is how a terminal is coloured where a program does not say.
type theme struct {
	name   string
	fg, bg color.Gray
}

var (
	darkTerminal  = theme{"dark", color.Gray{Y: 0xd0}, color.Gray{Y: 0x10}}
	lightTerminal = theme{"light", color.Gray{Y: 0x20}, color.Gray{Y: 0xf0}}
)

// colours are the control sequences that a QR code may have in it.
var colours = regexp.MustCompile(`\x1b\[[0-9;]*m`)

// screenshot draws a text as a terminal shows it, each character 8 by 16 pixels. Block characters are drawn as such, all
// others but the space as a smear.
func screenshot(t *testing.T, text string, in theme) *image.Gray {
	t.Helper()
	const w, h, margin = 8, 16, 20
	lines := strings.Split(strings.ReplaceAll(text, "\r\n", "\n"), "\n")
	columns := 0
	for _, line := range lines {
		columns = max(columns, len([]rune(colours.ReplaceAllString(line, ""))))
	}
	img := image.NewGray(image.Rect(0, 0, columns*w+2*margin, len(lines)*h+2*margin))
	fill := func(x0, y0, x1, y1 int, c color.Gray) {
		for y := y0; y < y1; y++ {
			for x := x0; x < x1; x++ {
				img.SetGray(margin+x, margin+y, c)
			}
		}
	}
	fill(-margin, -margin, columns*w+margin, len(lines)*h+margin, in.bg)
	fg, bg := in.fg, in.bg
	for row, line := range lines {
		x, y := 0, row*h
		for line != "" {
			if at := colours.FindStringIndex(line); at != nil && at[0] == 0 {
				switch line[2 : at[1]-1] {
				case "30;47":
					fg, bg = color.Gray{Y: 0}, color.Gray{Y: 0xaa} // on the darkest of consoles
				case "0":
					fg, bg = in.fg, in.bg
				default:
					t.Fatalf("the terminal is told %q", line[:at[1]])
				}
				line = line[at[1]:]
				continue
			}
			r := []rune(line)[0]
			line = line[len(string(r)):]
			fill(x, y, x+w, y+h, bg)
			switch {
			case r == '█':
				fill(x, y, x+w, y+h, fg)
			case r == '▀':
				fill(x, y, x+w, y+h/2, fg)
			case r == '▄':
				fill(x, y+h/2, x+w, y+h, fg)
			case r != ' ':
				fill(x+2, y+3, x+6, y+13, fg)
			}
			x += w
		}
	}
	return img
}

// scan has zbarimg, which is none of ours, look for QR codes in a picture.
func scan(t *testing.T, img image.Image, options ...string) []string {
	t.Helper()
	tool, err := exec.LookPath("zbarimg")
	if err != nil {
		missing(t, "reading QR codes needs zbarimg (Debian: zbar-tools): %v", err)
	}
	file := filepath.Join(t.TempDir(), "screen.png")
	var data bytes.Buffer
	if err := png.Encode(&data, img); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, data.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(tool, append(options, "--quiet", "--raw", "--nodbus", file)...).Output()
	if exit, ok := err.(*exec.ExitError); err != nil && (!ok || exit.ExitCode() != 4) { // 4: it found none
		t.Fatalf("zbarimg: %v", err)
	}
	return strings.Fields(string(out))
}

// mustScan requires one QR code, of that text, on the screen.
func mustScan(t *testing.T, text string, in theme, want string, options ...string) {
	t.Helper()
	if got := scan(t, screenshot(t, text, in), options...); len(got) != 1 || got[0] != want {
		t.Errorf("on a %s terminal %q is read, want %q\n%s", in.name, got, want, text)
	}
}

// onTerminal is a command that runs on a terminal of its own.
func onTerminal(t *testing.T, cmd *exec.Cmd) *exec.Cmd {
	t.Helper()
	needLinux(t) // elsewhere, script has other options
	tool, err := exec.LookPath("script")
	if err != nil {
		missing(t, "a terminal needs the command script (Debian: bsdutils): %v", err)
	}
	wrapped := exec.Command(tool, "--quiet", "--return", "--flush", "--command", strings.Join(cmd.Args, " "), os.DevNull)
	wrapped.Dir, wrapped.Env = cmd.Dir, append(cmd.Env, "TERM=xterm-256color", "SHELL=/bin/sh")
	return wrapped
}

// TestQRCodeOfTheLoginCommandIsReadable has an independent program read what `caddy device-flow login` draws.
func TestQRCodeOfTheLoginCommandIsReadable(t *testing.T) {
	parallel(t)
	as := startAS(t, time.Hour, byHand)
	a := startAPI(t, as.ValidToken)
	c := startCaddy(t, site("device", "openid offline_access"), as.Issuer(), a.URL)
	c.order(t, "login")
	link := c.status(t).Login.VerificationURIComplete

	p := startProcess(t, onTerminal(t, c.command("device-flow", "login")))
	p.printed(t, "left")
	text := p.output.String()
	if !regexp.MustCompile(`\rWaiting for approval, 1[45]:\d\d left`).MatchString(text) {
		t.Errorf("the time left is not shown: %q", text[len(text)-200:])
	}
	text = text[:strings.Index(text, "Waiting for approval")]
	for _, in := range []theme{darkTerminal, lightTerminal} {
		mustScan(t, text, in, link)
	}
	if rest := colours.ReplaceAllString(text, ""); strings.Contains(rest, "\x1b") {
		t.Errorf("the terminal is told more than colours: %q", rest)
	}

	// Without colours it is right in a dark terminal; in a light one it is inverted, which zbar reads when told to.
	plain := c.mustSay(t, 0, nil, "login", "--no-wait").out
	mustScan(t, plain, darkTerminal, link)
	mustScan(t, plain, lightTerminal, link, "-Stest-inverted")
	noColour := c.command("device-flow", "login", "--no-wait")
	noColour.Env = append(noColour.Env, "NO_COLOR=1")
	q := startProcess(t, onTerminal(t, noColour))
	if code := q.exitCode(t); code != 0 || strings.Contains(q.output.String(), "\x1b") {
		t.Errorf("NO_COLOR: ended with %d: %q", code, q.output.String())
	}

	if err := as.Approve(c.status(t).Login.UserCode); err != nil {
		t.Fatal(err)
	}
	if code := p.exitCode(t); code != 0 {
		t.Errorf("login ended with %d", code)
	}
	// The line that counted has given way to the text.
	if text = p.output.String(); !regexp.MustCompile(`\r +\rConnected \(authorized\)`).MatchString(text) {
		t.Errorf("on a terminal, the end of it is %q", text[len(text)-500:])
	}
}

// composeLogs is a text as `docker compose logs` shows it.
func composeLogs(text string) string {
	return regexp.MustCompile(`(?m)^`).ReplaceAllString(strings.TrimSuffix(text, "\n"), "proxy-1  | ")
}

// TestQRCodeInTheLogIsReadable is the setting log_qr: one code, one drawing.
func TestQRCodeInTheLogIsReadable(t *testing.T) {
	parallel(t)
	as := startAS(t, time.Hour, byHand)
	a := startAPI(t, as.ValidToken)
	config := strings.Replace(site("device", "openid offline_access"), "client_id", "log_qr\n\t\tclient_id", 1)
	c := startCaddy(t, config, as.Issuer(), a.URL)
	drawings := func() int { return strings.Count(c.output.String(), "To approve the login, scan this") }
	warnings := func(code string) (n int) {
		for line := range strings.SplitSeq(c.output.String(), "\n") {
			if strings.Contains(line, `"level":"warn"`) && strings.Contains(line, `"user_code":"`+code+`"`) && strings.Contains(line, `"verification_uri":"`+as.Issuer()) {
				n++
			}
		}
		return n
	}

	c.order(t, "login")
	first := c.status(t).Login
	eventually(t, patience, "the code is in the log", func() bool { return drawings() > 0 })
	polls := as.Stats().Polls
	eventually(t, patience, "some polls", func() bool { return as.Stats().Polls >= polls+3 })
	c.reload(t, config+"\nhttp://:{$PORT2} {\n\tbind 127.0.0.1\n\trespond hello\n}\n")
	c.callForCode(t)
	if drawings() != 1 || warnings(first.UserCode) != 1 {
		t.Errorf("the code is drawn %d times and warned of %d times, want once each", drawings(), warnings(first.UserCode))
	}
	logs := c.output.String()
	mustScan(t, composeLogs(logs), darkTerminal, first.VerificationURIComplete)
	mustScan(t, composeLogs(logs), lightTerminal, first.VerificationURIComplete, "-Stest-inverted")
	if strings.Contains(logs, "\x1b") {
		t.Error("a log that is no terminal has colours in it")
	}

	if err := as.Expire(first.UserCode); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, "the code ends", func() bool { return c.status(t).Login == nil })
	c.order(t, "login")
	second := c.status(t).Login
	eventually(t, patience, "the next code is in the log", func() bool { return drawings() == 2 })
	mustScan(t, composeLogs(strings.TrimPrefix(c.output.String(), logs)), darkTerminal, second.VerificationURIComplete)
	if err := as.Approve(second.UserCode); err != nil {
		t.Fatal(err)
	}
	c.login(t)
	if drawings() != 2 || warnings(second.UserCode) != 1 {
		t.Errorf("in the end %d drawings, and %d warnings of the second code", drawings(), warnings(second.UserCode))
	}
}
