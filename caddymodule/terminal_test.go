package caddymodule

import (
	"bytes"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/deviceflow/caddy-deviceflow/flow"
)

func pending(code, uri, complete string) flow.Status {
	return flow.Status{
		Session: "default", State: flow.StatePending,
		Login: &flow.LoginInfo{UserCode: code, VerificationURI: uri, VerificationURIComplete: complete, ExpiresAt: time.Now().Add(10 * time.Minute)},
	}
}

func TestTerminalQRCodeFitsAndFollowsTheRulesOfLinks(t *testing.T) {
	const short = "https://login.example.com/activate"
	draw := func(uri, complete string) (string, bool) {
		t.Helper()
		drawn, ok := terminalQR(pending("c", uri, complete).Login, false)
		lines := strings.Split(drawn, "\n")
		for i, line := range lines[:len(lines)-1] {
			if n := utf8.RuneCountInString(line); n > maxColumns || n != utf8.RuneCountInString(lines[0]) {
				t.Errorf("line %d has %d columns", i, n)
			}
		}
		return drawn, ok
	}
	alone, ok := draw(short, "")
	if !ok {
		t.Fatal("an address without the code in it is not drawn")
	}
	if with, ok := draw(short, short+"?user_code=QTZL-MCBW"); !ok || with == alone {
		t.Error("the address with the code in it is not drawn")
	}
	if wide, ok := draw(short, short+"?ticket="+strings.Repeat("x", 600)); !ok || wide != alone {
		t.Error("in place of an address too long to be drawn, the short one is not")
	}
	// ISO/IEC 18004 asks for four light modules around the code.
	for i, lines := 0, strings.Fields(strings.ReplaceAll(alone, " ", "_")); i < len(lines); i++ {
		edge := i < quietZone/2 || i >= len(lines)-quietZone/2
		if !strings.HasPrefix(lines[i], "████") || !strings.HasSuffix(lines[i], "████") || edge && strings.Trim(lines[i], "█") != "" {
			t.Errorf("there is no quiet zone at line %d:\n%s", i, alone)
		}
	}
	for _, bad := range []string{
		"http://login.example.com/", "javascript:alert(1)", "https://a@b.example/", "https://\u0430pple.example/",
		"https://login.example.com/" + strings.Repeat("x", 600),
	} {
		if drawn, ok := draw(bad, ""); ok {
			t.Errorf("%.50q is drawn:\n%s", bad, drawn)
		}
		if drawn, ok := draw(short, bad); ok && len(bad) < 100 {
			t.Errorf("%.50q is drawn, or hidden:\n%s", bad, drawn)
		}
	}
	if _, ok := terminalQR(nil, true); ok {
		t.Error("there is a drawing of no login")
	}
}

func TestQRCodeColoursItselfOnEachLine(t *testing.T) {
	drawn, _ := terminalQR(pending("c", "https://login.example.com/", "").Login, true)
	for line := range strings.SplitSeq(strings.TrimSuffix(drawn, "\n"), "\n") {
		if !strings.HasPrefix(line, blackOnWhite) || !strings.HasSuffix(line, noColour) || strings.Count(line, "\x1b") != 2 {
			t.Fatalf("a line is %q", line)
		}
	}
}

func TestLogDrawsEachCodeOnce(t *testing.T) {
	var out bytes.Buffer
	observe := qrObserver(&terminal{w: &out})
	drawings := func() int { return strings.Count(out.String(), "To approve the login") }
	first := pending("AAAA", "https://login.example.com/", "")
	for _, e := range []flow.Event{
		{Kind: flow.EventStateChanged, Status: flow.Status{State: flow.StateLoginRequired}},
		{Kind: flow.EventStateChanged, Status: first},
		{Kind: flow.EventLoginPending, Status: first},
		{Kind: flow.EventStoreFailed, Status: first},
		{Kind: flow.EventLoginFailed, Status: flow.Status{State: flow.StateLoginRequired}},
	} {
		observe(e)
	}
	if drawings() != 1 || !strings.Contains(out.String(), "scan this with a phone, or open https://login.example.com/ and enter AAAA (until ") {
		t.Fatalf("%d drawings:\n%s", drawings(), out.String())
	}
	second := pending("BBBB\x1b[2J", "https://login.example.com/", "")
	second.Session, second.State = "acme", flow.StateAuthorized // in place of a login that works
	observe(flow.Event{Kind: flow.EventLoginPending, Status: second})
	if drawings() != 2 || !strings.Contains(out.String(), "the login of acme, ") || strings.Contains(out.String(), "\x1b") {
		t.Fatalf("%d drawings:\n%q", drawings(), out.String())
	}
	bad := pending("CCCC", "http://login.example.com/", "")
	observe(flow.Event{Kind: flow.EventLoginPending, Status: bad})
	if drawings() != 2 {
		t.Error("an address that nobody shall be sent to is drawn")
	}
}

func TestLogQRIsASwitch(t *testing.T) {
	for input, want := range map[string]string{
		"log_qr on":       "log_qr takes no argument, at Caddyfile:3",
		"log_qr {\n a\n}": "there is no block here",
	} {
		_, err := adapt(t, site("device_flow {\n "+input+"\n}"))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", input, err, want)
		}
	}
}

func TestOnlyAScreenCounts(t *testing.T) {
	var out bytes.Buffer
	term := &terminal{w: &out}
	term.count("10:00 left")
	term.say("done")
	if got := out.String(); got != "done\n" {
		t.Errorf("a pipe gets %q", got)
	}
	out.Reset()
	term.screen = true
	term.count("10:00 left")
	term.count("9:59 left")
	term.say("done")
	if got, want := out.String(), "\r10:00 left\r9:59 left \r         \rdone\n"; got != want {
		t.Errorf("a screen gets %q, want %q", got, want)
	}
}

func TestNamesCanBePastedIntoAShell(t *testing.T) {
	for name, want := range map[string]string{
		"acme": "acme", "a b": "'a b'", "it's": `'it'\''s'`, "$(reboot)": "'$(reboot)'", "a\x1b[2Jb\nc": "'a[2Jb c'",
	} {
		if got := word(name); got != want {
			t.Errorf("%q: %s, want %s", name, got, want)
		}
	}
}
