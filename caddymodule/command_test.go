package caddymodule

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	"github.com/deviceflow/caddy-deviceflow/flow"
)

func failed(action flow.Action, code string) *flow.StatusError {
	return &flow.StatusError{Code: code, Description: "as the server says", At: time.Now(), Action: action}
}

func TestTableHasALineForEachSession(t *testing.T) {
	now := time.Date(2026, 11, 23, 13, 0, 0, 0, time.UTC)
	out := pending("QTZL\x1b-MCBW", "https://acme.example.com/activate", "")
	out.Session, out.Login.ExpiresAt = "acme", now.Add(14*time.Minute)
	all := []listed{
		{status: out},
		{status: flow.Status{Session: "default", State: flow.StateAuthorized, Account: &flow.Account{Name: "Ada\u202e Lovelace"}}},
		{status: flow.Status{Session: "my scanner", State: flow.StateLoginRequired}},
		{status: flow.Status{Session: "refused", State: flow.StateLoginRequired, Error: failed(flow.ActionReauthorize, "access_denied")}},
		{status: flow.Status{Session: "wrong", State: flow.StateMisconfigured, Error: failed(flow.ActionFixConfiguration, "invalid_target")}},
	}
	const want = `
SESSION        STATE            ACCOUNT        WHAT TO DO
acme           pending          -              open https://acme.example.com/activate and enter QTZL-MCBW (good for 14 minutes)
default        authorized       Ada Lovelace   nothing to do
'my scanner'   login_required   -              Log in: caddy device-flow login 'my scanner'
refused        login_required   -              The login was refused. Get a new code: caddy device-flow login refused
wrong          misconfigured    -              The login server does not know the API that the token is for. Correct audience or resource in Caddy's configuration. Then reload Caddy.`
	if got := "\n" + table(all, now); got != want {
		t.Errorf("got%s\nwant%s", got, want)
	}
}

func TestDescriptionNamesTheCommandInPlaceOfTheButton(t *testing.T) {
	got := described(flow.Status{Session: "acme", State: flow.StateLoginRequired, Error: failed(flow.ActionReauthorize, "expired_token")}, time.Now())
	if strings.Contains(got, "browser for the button") || !strings.HasSuffix(got, "\n\nGet a new code:        caddy device-flow login acme") {
		t.Error(got)
	}
}

func TestChosenSession(t *testing.T) {
	at := func(since int, names ...string) (all []listed) {
		for i, name := range names {
			all = append(all, listed{status: flow.Status{Session: name, Since: time.Unix(int64(since+i), 0)}})
		}
		return all
	}
	for _, tc := range []struct {
		all        []listed
		name, want string
		since      int64
	}{
		{at(0, "a", "default"), "", "default", 1},
		{at(0, "a"), "", "a", 0},
		{at(0, "a", "a"), "", "a", 1}, // during a reload; the second is of the new configuration
		{at(0, "a", "b", "b"), "b", "b", 2},
		{at(0, "a", "b"), "", "there are several sessions, so name one: a, b", 0},
		{at(0, "a", "b"), "c", "there is no session c; there are: a, b", 0},
		{nil, "", "there is no session: Caddy runs, but nothing in its configuration uses device_flow, or only with session_key and nobody has called yet", 0},
	} {
		got, err := choose(tc.all, tc.name)
		if err != nil && err.Error() != tc.want || err == nil && (got.status.Session != tc.want || got.status.Since.Unix() != tc.since) {
			t.Errorf("%q: got %+v, %v; want %q", tc.name, got.status, err, tc.want)
		}
	}
}

func TestErrorsOfTheAdminAPINameTheFix(t *testing.T) {
	o := &operator{address: "localhost:2019"}
	for said, want := range map[string]string{
		`caddy responded with error: HTTP 409: {"error":"session a: ` + "\u009b" + `no"}`: "session a: no",
		`caddy responded with error: HTTP 404: 404 page not found`:                        "the Caddy at localhost:2019 knows nothing of device_flow: is it another build, or another server?",
		`caddy responded with error: HTTP 403: {"error":"origin not allowed"}`:            "origin not allowed (see 'origins' of the admin option)",
		"caddy responded with error: HTTP 502: bad\x1b[2J":                                "the admin API at localhost:2019 answers HTTP 502: bad[2J",
		"performing request: dial tcp: connection refused":                                "no answer from Caddy's admin API at localhost:2019: is Caddy running, and its admin API not switched off? If it is elsewhere, give --address or --config (performing request: dial tcp: connection refused)",
	} {
		err := o.explain(errors.New(said))
		if err.Error() != want {
			t.Errorf("%q: got %q, want %q", said, err, want)
		}
		if strings.HasPrefix(want, "no answer") != errors.Is(err, errSilent) {
			t.Errorf("%q: silent is %t", said, errors.Is(err, errSilent))
		}
	}
}

func TestJSONForProgramsIsASCIIAndTheSame(t *testing.T) {
	in := map[string]any{"name": "Zoë\u009b31m\u202e\u2028\x7f\x1b😀<&>", "n": 1.5, "list": []any{"a", nil}}
	var out bytes.Buffer
	if err := printJSON(&out, in); err != nil {
		t.Fatal(err)
	}
	for _, b := range out.Bytes() {
		if b >= 0x7f || b < ' ' && b != '\n' {
			t.Fatalf("it is not plain: %q", out.String())
		}
	}
	var back map[string]any
	if err := json.Unmarshal(out.Bytes(), &back); err != nil || fmt.Sprint(back) != fmt.Sprint(in) {
		t.Errorf("%v: got %v, want %v", err, back, in)
	}
}

// scripted is a session that looks different each time, the last way from then on.
func scripted(looks ...any) look {
	return func(context.Context) (flow.Status, error) {
		next := looks[0]
		if len(looks) > 1 {
			looks = looks[1:]
		}
		if err, ok := next.(error); ok {
			return flow.Status{}, err
		}
		return next.(flow.Status), nil
	}
}

func TestWaitingForApprovalEndsWithTheCode(t *testing.T) {
	out := func(code string) flow.Status {
		st := pending(code, "https://login.example.com/", "")
		st.Login.ExpiresAt = time.Now().Add(time.Minute)
		return st
	}
	silent := fmt.Errorf("%w from Caddy", errSilent)
	is := func(state flow.State, e *flow.StatusError) flow.Status {
		return flow.Status{Session: "default", State: state, Error: e}
	}
	for name, tc := range map[string]struct {
		looks func() look
		want  string // of the error; empty: it was approved
		after time.Duration
	}{
		"approved":                 {func() look { return scripted(out("A"), out("A"), is(flow.StateAuthorized, nil)) }, "", 9 * time.Second},
		"approved, but not stored": {func() look { return scripted(is(flow.StateDegraded, failed(flow.ActionRetry, flow.CodeStorageFailed))) }, "", 3 * time.Second},
		"refused": {func() look {
			return scripted(is(flow.StateLoginRequired, failed(flow.ActionReauthorize, "access_denied")))
		}, "The login was refused on the approval page, or the account may not use this service.\nDetails: as the server says\nGet a new code: caddy device-flow login", 3 * time.Second},
		"refused, the old one works": {func() look {
			return scripted(is(flow.StateAuthorized, failed(flow.ActionReauthorize, "access_denied")))
		}, "The present login stays in use.", 3 * time.Second},
		"the old one limps": {func() look { return scripted(is(flow.StateDegraded, failed(flow.ActionRetry, "unreachable"))) }, "does not answer", 3 * time.Second},
		"given up":          {func() look { return scripted(out("A"), is(flow.StateLoginRequired, nil)) }, "somebody has logged out", 6 * time.Second},
		"replaced":          {func() look { return scripted(out("B")) }, "another one is out", 3 * time.Second},
		"restarted": {func() look {
			return scripted(silent, silent, is(flow.StateUnavailable, nil), out("A"), silent, is(flow.StateAuthorized, nil))
		}, "", 18 * time.Second},
		"gone for good":   {func() look { return scripted(silent) }, "no answer from Caddy", 36 * time.Second},
		"never read back": {func() look { return scripted(is(flow.StateUnavailable, nil)) }, "given up", 90 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var printed bytes.Buffer
				start := time.Now()
				err := waitForApproval(t.Context(), &terminal{w: &printed, screen: true}, out("A"), tc.looks())
				if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
					t.Errorf("got %v, want %q", err, tc.want)
				}
				if got := time.Since(start); got != tc.after {
					t.Errorf("it took %v, want %v", got, tc.after)
				}
				if err != nil && errors.As(err, new(notDone)) == errors.Is(err, errSilent) {
					t.Errorf("exit status: %#v", err)
				}
				if !strings.HasPrefix(printed.String(), "\rWaiting for approval, 1:00 left ") {
					t.Errorf("printed %q", printed.String())
				}
			})
		})
	}
}

func TestWaitingForCallsEndsInTime(t *testing.T) {
	silent := fmt.Errorf("%w from Caddy", errSilent)
	gone := fmt.Errorf("%w a", errNoSession)
	several := errors.New("there are several sessions")
	needed := flow.Status{Session: "default", State: flow.StateLoginRequired}
	good := flow.Status{Session: "default", State: flow.StateAuthorized}
	for name, tc := range map[string]struct {
		looks   []any
		timeout time.Duration
		want    string
		after   time.Duration
		printed string
	}{
		"served already":    {[]any{good}, 0, "", 0, "authorized: calls are served\n"},
		"not now":           {[]any{needed}, 0, "login_required: Log in: caddy device-flow login", 0, ""},
		"degraded is good":  {[]any{flow.Status{State: flow.StateDegraded}}, 0, "", 0, "degraded: calls are served\n"},
		"in time":           {[]any{needed, needed, needed, good}, time.Minute, "", 9 * time.Second, "login_required: Log in: caddy device-flow login\nauthorized: calls are served\n"},
		"at the very end":   {[]any{needed, needed, good}, 4500 * time.Millisecond, "", 4500 * time.Millisecond, ""},
		"too late":          {[]any{needed}, 10 * time.Second, "after 10s, calls are still not served: login_required", 10 * time.Second, ""},
		"Caddy comes":       {[]any{silent, silent, gone, good}, time.Minute, "", 9 * time.Second, "no answer from Caddy\nthere is no session a\nauthorized: calls are served\n"},
		"Caddy never comes": {[]any{silent}, 5 * time.Second, "still not served: no answer from Caddy", 5 * time.Second, ""},
		"misspelt":          {[]any{gone}, time.Minute, "there is no session a", 3 * time.Second, ""},
		"not named":         {[]any{several}, time.Minute, "several", 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var printed bytes.Buffer
				start := time.Now()
				err := waitUntilUsable(t.Context(), &terminal{w: &printed}, tc.timeout, scripted(tc.looks...))
				if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
					t.Errorf("got %v, want %q", err, tc.want)
				}
				if got := time.Since(start); got != tc.after {
					t.Errorf("it took %v, want %v", got, tc.after)
				}
				if got := printed.String(); tc.printed != "" && got != tc.printed {
					t.Errorf("printed %q, want %q", got, tc.printed)
				}
				if got, want := errors.As(err, new(notDone)), strings.Contains(tc.want, "login_required"); got != want {
					t.Errorf("exit status 2: %t, want %t", got, want)
				}
			})
		})
	}
}

// The flags are another way to write a Caddyfile, not another product.
func TestProxyFlagsMakeWhatTheCaddyfileMakes(t *testing.T) {
	t.Setenv("CLIENT_SECRET", "secret")
	for _, tc := range []struct{ flags, directive string }{
		{
			"--to https://api.example.com --issuer https://acme.eu.auth0.com --client-id 3f2aKq",
			"device_flow https://api.example.com {\n issuer https://acme.eu.auth0.com\n client_id 3f2aKq\n}",
		},
		{
			"--to https://a.example.com --to https://b.example.com:8443 --client-id 3f2aKq --client-auth basic --client-secret-env CLIENT_SECRET" +
				" --device-authorization-endpoint https://l.example.com/device --token-endpoint https://l.example.com/token" +
				" --scope offline_access,openid --scope read:things --audience https://api.example.com" +
				" --resource https://a.example.com --resource https://b.example.com --param prompt=consent --param claims={\"a\":\"b=c\"}" +
				" --account email=alice@example.com --eager --log-qr",
			"device_flow https://a.example.com https://b.example.com:8443 {\n client_id 3f2aKq\n client_auth basic\n client_secret {env.CLIENT_SECRET}\n" +
				" device_authorization_endpoint https://l.example.com/device\n token_endpoint https://l.example.com/token\n" +
				" scope offline_access openid read:things\n audience https://api.example.com\n" +
				" resource https://a.example.com https://b.example.com\n param prompt consent\n param claims `{\"a\":\"b=c\"}`\n" +
				" account email alice@example.com\n login eager\n log_qr\n}",
		},
	} {
		cmd := proxyCommand()
		if err := cmd.ParseFlags(append(strings.Fields(tc.flags), "--from", "127.0.0.1:8080")); err != nil {
			t.Fatal(err)
		}
		cfg, url, err := proxyConfig(caddycmd.Flags{FlagSet: cmd.Flags()})
		if err != nil || url != "http://127.0.0.1:8080" {
			t.Fatalf("%s: %v, %s", tc.flags, err, url)
		}
		want, err := adapt(t, site(" bind 127.0.0.1\n "+tc.directive))
		if err != nil {
			t.Fatal(err)
		}
		got, err := json.Marshal(map[string]any{"apps": cfg.AppsRaw})
		if err != nil {
			t.Fatal(err)
		}
		var indented bytes.Buffer
		if err := json.Indent(&indented, got, "", "\t"); err != nil {
			t.Fatal(err)
		}
		if indented.String()+"\n" != want {
			t.Errorf("%s\nmakes\n%s\nwant\n%s", tc.flags, indented.String(), want)
		}
		if !cfg.Admin.Disabled || *cfg.Admin.Config.Persist {
			t.Error("the admin API is on, or the configuration is kept for the next caddy")
		}
	}
}

func TestProxyListensOnLoopbackUnlessToldOtherwise(t *testing.T) {
	for from, want := range map[string]string{
		"localhost:8080":         "127.0.0.1:8080 http://localhost:8080",
		"http://localhost:8080/": "127.0.0.1:8080 http://localhost:8080",
		"localhost":              "127.0.0.1:80 http://localhost:80",
		"192.0.2.1:81":           "192.0.2.1:81 http://192.0.2.1:81",
		"[::1]:81":               "[::1]:81 http://[::1]:81",
		":81":                    ":81 http://localhost:81",
	} {
		listen, url, err := proxyListen(from)
		if err != nil || listen[0]+" "+url != want {
			t.Errorf("%s: %v %s, %v; want %s", from, listen, url, err, want)
		}
		if len(listen) > 1 && (len(listen) > 2 || listen[1] != strings.Replace(listen[0], "127.0.0.1", "[::1]", 1)) {
			t.Errorf("%s: %v", from, listen)
		}
	}
	for _, from := range []string{"", "scanner.example.com:80", "https://localhost:8080", "localhost:0", "localhost:x", "localhost:8080/path"} {
		if listen, _, err := proxyListen(from); err == nil {
			t.Errorf("%q: %v", from, listen)
		}
	}
}

func TestHelpFitsATerminal(t *testing.T) {
	root := proxyCommand()
	buildCommand(root) // any command will do
	for _, cmd := range append(root.Commands(), root) {
		for _, line := range strings.Split(cmd.Long+"\n"+cmd.Example+"\n"+deviceFlowHelp, "\n") {
			if len([]rune(line)) > 82 {
				t.Errorf("%s: %q is wider than 82 columns", cmd.Name(), line)
			}
		}
		if cmd.Short == "" || cmd.Example == "" {
			t.Errorf("%s has no short help or no example", cmd.Name())
		}
	}
}
