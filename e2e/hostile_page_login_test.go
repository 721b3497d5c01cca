package e2e

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/chromedp/chromedp"
)

const statusPath = "/.device-flow"

var formTokens = regexp.MustCompile(`name="token" value="([^"]+)"`)

// formToken is what the form of the status page carries just now. To look does not start a login.
func (v *victim) formToken(t *testing.T) string {
	t.Helper()
	r, err := http.NewRequest(http.MethodGet, v.url+statusPath, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Accept", "text/html")
	r.Header.Set("Device-Flow-Refresh", "1")
	found := formTokens.FindStringSubmatch(do(t, client(t), r).body)
	if found == nil {
		t.Fatal("the status page has no form")
	}
	return found[1]
}

// session is all that the admin API tells of the session, and how many codes it has asked for.
func (v *victim) session(t *testing.T) string {
	t.Helper()
	return fmt.Sprintf("%s%d codes", v.ask(t, http.MethodGet, "/device_flow/sessions").body, v.as.Stats().DeviceRequests)
}

// answers is the status of all that was asked of the status page.
func (v *victim) answers() (all []string) {
	for path, answers := range v.accessed() {
		if strings.HasPrefix(path, statusPath) {
			all = append(all, answers...)
		}
	}
	return all
}

// stormLogin has a page at a place try to change the session, and returns how the proxy has answered.
func (v *victim) stormLogin(t *testing.T, browser context.Context, name, evilPort string) []string {
	t.Helper()
	p := places[slices.IndexFunc(places, func(p place) bool { return p.name == name })]
	before := v.answers()
	token := v.formToken(t)
	eventually(t, patience, "the access log shows that", func() bool { return len(v.answers()) > len(before) })
	before = v.answers()
	tab := newTab(t, browser)
	v.rebind.bind(false)
	browse(t, tab, "opening the hostile page",
		chromedp.Navigate(strings.NewReplacer("{EVIL}", evilPort, "{PROXY}", v.port).Replace(p.page)))
	v.rebind.bind(true)
	evaluate[chromedp.Void](t, tab, fmt.Sprintf("void attackLogin(%q, %q, %q)", "http://"+p.target+":"+v.port+statusPath, v.admin, token))
	waitFor(t, tab, "window.ended === true")
	sent := evaluate[int](t, tab, "sent")
	eventually(t, patience, "all has arrived", func() bool { return len(v.answers())-len(before) >= sent })
	evaluate[chromedp.Void](t, tab, "finish()")

	counts := map[string]int{}
	for _, a := range before {
		counts[a]++
	}
	var news []string
	for _, a := range v.answers() {
		if counts[a]--; counts[a] < 0 {
			news = append(news, a)
		}
	}
	return news
}

// TestHostilePagesCannotLogInOrOut has pages of other origins try to start a login, to replace one and to end one, with a
// token that the form would accept.
func TestHostilePagesCannotLogInOrOut(t *testing.T) {
	parallel(t, unguardedBinary)
	guarded, unguarded := startVictim(t, caddyBinary, byHand), startVictim(t, unguardedBinary, byHand)
	evilPort := startAttacker(t)
	browser := startHostileBrowser(t, guarded, unguarded)
	requireUnchanged := func(t *testing.T, from string) {
		t.Helper()
		before := guarded.session(t)
		answers := guarded.stormLogin(t, browser, from, evilPort)
		if after := guarded.session(t); after != before {
			t.Errorf("from %s, the session has changed\nfrom %s\nto   %s", from, before, after)
		}
		for _, a := range answers {
			if !strings.HasSuffix(a, " 403") {
				t.Errorf("from %s, the status page was asked for and answered %s, want 403", from, a)
			}
		}
	}

	t.Run("LoggedOut", func(t *testing.T) {
		for _, from := range []string{foreignName, rebinding} {
			requireUnchanged(t, from)
		}
		unguarded.stormLogin(t, browser, foreignName, evilPort)
		if unguarded.as.Stats().DeviceRequests == 0 {
			t.Error("without the guard, pages start no login either")
		}
	})
	for _, v := range []*victim{guarded, unguarded} {
		if err := v.as.Approve(v.callForCode(t).UserCode); err != nil {
			t.Fatal(err)
		}
		v.login(t)
	}
	t.Run("LoggedIn", func(t *testing.T) {
		for _, from := range []string{anotherPort, opaqueOrigin, rebinding} {
			requireUnchanged(t, from)
		}
		before := unguarded.as.Stats().DeviceRequests
		unguarded.stormLogin(t, browser, anotherPort, evilPort)
		if unguarded.as.Stats().DeviceRequests != before {
			t.Error("without the guard, the form does not look at where it comes from")
		}
		unguarded.stormLogin(t, browser, rebinding, evilPort)
		if unguarded.as.Stats().DeviceRequests == before {
			t.Error("without the guard, rebinding does not get at the form either")
		}
	})
	t.Run("OldToken", func(t *testing.T) { replayForm(t, guarded) })
}

// replayForm posts the form as a program would that has seen the page, with a token of the process before and with all
// that is not a person's consent, and at last as a person does.
func replayForm(t *testing.T, v *victim) {
	old := v.formToken(t)
	v.stop(t, syscall.SIGTERM)
	v.start(t)
	// Until then the page says that it is starting, and has no form.
	eventually(t, patience, "the stored login is read", func() bool { return v.sessions(t)["default"].State == "authorized" })
	token := v.formToken(t)
	if token == old {
		t.Fatal("a new process takes the form tokens of the last one")
	}
	before := v.session(t)
	post := func(method, token, confirm string, header ...string) int {
		t.Helper()
		form := url.Values{"token": {token}, "confirm": {confirm}}.Encode()
		r, err := http.NewRequest(method, v.url+statusPath+"/login?"+form, strings.NewReader(form))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		for i := 0; i < len(header); i += 2 {
			if header[i] == "Host" {
				r.Host = header[i+1]
			}
			r.Header.Set(header[i], header[i+1])
		}
		return do(t, client(t), r).status
	}
	for _, tc := range []struct {
		name          string
		method, token string
		confirm       string
		header        []string
		want          int
	}{
		{"an old token", "POST", old, "1", nil, 403},
		{"no token", "POST", "", "1", nil, 403},
		{"no confirmation", "POST", token, "", nil, 409},
		{"GET", "GET", token, "1", nil, 405},
		{"HEAD", "HEAD", token, "1", nil, 405},
		{"PUT", "PUT", token, "1", nil, 405},
		{"another origin", "POST", token, "1", []string{"Origin", "http://evil.test"}, 403},
		{"another port", "POST", token, "1", []string{"Origin", "http://127.0.0.1:1"}, 403},
		{"no origin", "POST", token, "1", []string{"Origin", "null"}, 403},
		{"another site", "POST", token, "1", []string{"Sec-Fetch-Site", "cross-site"}, 403},
		{"a rebinding name", "POST", token, "1", []string{"Host", "rebind.test:" + v.port, "Origin", "http://rebind.test:" + v.port}, 403},
	} {
		if got := post(tc.method, tc.token, tc.confirm, tc.header...); got != tc.want {
			t.Errorf("%s: got %d, want %d", tc.name, got, tc.want)
		}
		if after := v.session(t); after != before {
			t.Fatalf("%s: the session has changed\nfrom %s\nto   %s", tc.name, before, after)
		}
	}
	if got := post("POST", token, "1", "Origin", v.url); got != http.StatusSeeOther {
		t.Errorf("with a token of the page, confirmed and from the page: %d, want 303", got)
	}
	if v.session(t) == before {
		t.Error("the form does nothing at all")
	}
}
