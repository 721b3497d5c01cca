package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// place is where a hostile page is, and what it calls the proxy.
type place struct {
	name   string
	page   string // its URL, with {EVIL} for the port of the attacker's server and {PROXY} for that of the proxy
	target string // the host
}

const (
	anotherPort     = "AnotherPortOfLocalhost"
	anotherLoopback = "LoopbackAddressAgainstLocalhost"
	foreignName     = "ForeignName"
	opaqueOrigin    = "OpaqueOrigin"
	rebinding       = "Rebinding"
)

var places = []place{
	{anotherPort, "http://localhost:{EVIL}/page", "localhost"}, // same-site
	{anotherLoopback, "http://127.0.0.1:{EVIL}/page", "localhost"},
	{foreignName, "http://evil.test:{EVIL}/page", "127.0.0.1"},
	{opaqueOrigin, "http://evil.test:{EVIL}/opaque", "localhost"},
	{rebinding, "http://rebind.test:{PROXY}/page", "rebind.test"},
}

// outcome is what became of one attack.
type outcome struct {
	attack
	path     string
	Read     string `json:"read"`    // by the page
	Problem  string `json:"problem"` // that the page had
	accessed []string
	hits     []string
}

// assault has a page at a place send a proxy what it can, and returns what became of it when all that should arrive at
// the proxy has arrived there.
func (v *victim) assault(t *testing.T, browser context.Context, p place, list []attack, evilPort string) []outcome {
	t.Helper()
	ports := strings.NewReplacer("{EVIL}", evilPort, "{PROXY}", v.port)
	page, err := url.Parse(ports.Replace(p.page))
	if err != nil {
		t.Fatal(err)
	}
	tab := newTab(t, browser)
	v.rebind.bind(false)
	browse(t, tab, "opening the hostile page", chromedp.Navigate(page.String()))
	v.rebind.bind(true)

	type order struct {
		Name string `json:"name"`
		URL  string `json:"url"`
	}
	orders, all := make([]order, len(list)), make([]outcome, len(list))
	for i, a := range list {
		if a.ext == "" {
			a.ext = ".txt"
		}
		if a.method == "" {
			a.method = http.MethodGet
		}
		all[i] = outcome{attack: a, path: "/" + p.name + "/" + slug(a.name) + a.ext}
		orders[i] = order{a.name, "http://" + p.target + ":" + v.port + all[i].path}
	}
	script, err := json.Marshal(orders)
	if err != nil {
		t.Fatal(err)
	}
	helper := "evil.test:" + evilPort
	if page.Port() == evilPort {
		helper = page.Host
	}
	evaluate[chromedp.Void](t, tab, fmt.Sprintf("start(%s, %q)", script, "http://"+helper))
	waitFor(t, tab, "window.ended === true")
	results := evaluate[map[string]outcome](t, tab, "results")

	arrived := func() bool {
		accessed, missing := v.accessed(), false
		for i := range all {
			o := &all[i]
			o.accessed, o.hits = accessed[o.path], v.api.at(o.path)
			missing = missing || o.held(p.name) == "" && len(o.accessed)+len(o.hits) == 0
		}
		return !missing
	}
	// What is still missing then, the caller of this reports.
	for deadline := time.Now().Add(10 * time.Second); !arrived() && time.Now().Before(deadline); {
		<-time.After(100 * time.Millisecond)
	}
	for i := range all {
		r := results[all[i].name]
		all[i].Read, all[i].Problem = r.Read, r.Problem
	}
	evaluate[chromedp.Void](t, tab, "finish()")
	return all
}

// slug is a name as it stands in a path, a script and a style sheet.
func slug(name string) string {
	return strings.Join(strings.FieldsFunc(strings.ToLower(name), func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9')
	}), "-")
}

// TestHostilePagesGetNothing has web pages of other origins send the proxy whatever a browser lets them send: the API
// hears nothing of it, and nothing can be read. The same pages get through to it without the guard.
func TestHostilePagesGetNothing(t *testing.T) {
	guarded, unguarded := startVictim(t, caddyBinary), startVictim(t, unguardedBinary)
	guarded.login(t)
	unguarded.login(t)
	evilPort := startAttacker(t)
	browser := startHostileBrowser(t, guarded, unguarded)

	siege := func(p place, list []attack) {
		t.Run(p.name, func(t *testing.T) {
			before := guarded.api.total()
			requireThrough(t, p, unguarded.assault(t, browser, p, list, evilPort))
			requireHeldOff(t, p, guarded.assault(t, browser, p, list, evilPort))
			if n := guarded.api.total() - before; n != 0 {
				t.Errorf("the API got %d requests", n)
			}
		})
	}
	for _, p := range places {
		siege(p, attacks)
	}
	for name, host := range otherHosts {
		siege(place{name, "http://evil.test:{EVIL}/page", host}, quiet())
	}
}

// requireThrough checks that without the guard all comes to the API, with a token, and pages read what browsers let them
// read.
func requireThrough(t *testing.T, p place, all []outcome) {
	t.Helper()
	for _, o := range all {
		held := o.held(p.name)
		if through := slices.Contains(o.hits, o.method); through == (held != "") {
			t.Errorf("without the guard, %q (%s): the API got %v, the proxy %v; the page: %q %s; what should hold it: %q",
				o.name, o.method, o.hits, o.accessed, o.Read, o.Problem, held)
		}
		if o.reads && held == "" && !strings.Contains(o.Read, loot) {
			t.Errorf("without the guard, %q reads nothing: %q %s", o.name, o.Read, o.Problem)
		}
	}
}

// requireHeldOff checks that what the browser sends comes to the proxy and no further.
func requireHeldOff(t *testing.T, p place, all []outcome) {
	t.Helper()
	for _, o := range all {
		if len(o.hits) > 0 {
			t.Errorf("%q: the API got %v, want nothing", o.name, o.hits)
		}
		if strings.Contains(o.Read, loot) {
			t.Errorf("%q: the page reads the answer", o.name)
		}
		if o.held(p.name) == "" && len(o.accessed) == 0 {
			t.Errorf("%q has not arrived at the proxy, so this proves nothing; the page: %q %s", o.name, o.Read, o.Problem)
		}
		for _, answer := range o.accessed {
			if !strings.HasSuffix(answer, " 403") && !strings.HasSuffix(answer, " 405") {
				t.Errorf("%q was answered %s, want 403", o.name, answer)
			}
		}
	}
}

// otherHosts are what else a page may call a proxy that listens on 127.0.0.1.
var otherHosts = map[string]string{
	"ReboundName":          "rebound.test", // of the attacker's, leading here
	"AddressOfNoInterface": "0.0.0.0",
	"FinalDot":             "localhost.",
	"HexadecimalAddress":   "0x7f.1",
	"NameBelowLocalhost":   "any.localhost",
	"MappedAddress":        "[::ffff:127.0.0.1]", // which Chromium does not take for loopback: no Sec-Fetch-Site
}

// quiet is the attacks that say least of where they come from, and a few others.
func quiet() (list []attack) {
	for _, a := range attacks {
		switch a.name {
		case "fetch GET no-cors without referrer", "fetch POST no-cors without referrer", "iframe without referrer", "window.open",
			"fetch from a sandboxed frame", "link without referrer", "worker imports", "form POST of a whole page", "WebSocket":
			list = append(list, a)
		}
	}
	return list
}

// TestPreflightsOfOtherOriginsComeToNothing asks, as a browser does before a page may call, in each form that browsers
// have had. The API, which would allow everything, must not hear of it, and no page may learn that it could call.
func TestPreflightsOfOtherOriginsComeToNothing(t *testing.T) {
	parallel(t, unguardedBinary)
	guarded, unguarded := startVictim(t, caddyBinary), startVictim(t, unguardedBinary)
	guarded.login(t)
	unguarded.login(t)
	for v, want := range map[*victim]int{guarded: 0, unguarded: 1} {
		if n := strings.Count(v.output.String(), "the guard is off"); n != want {
			t.Errorf("%d lines of the log say that there is no guard, want %d", n, want)
		}
	}
	before := guarded.api.total()
	ask := func(v *victim, path, origin string, header ...string) reply {
		t.Helper()
		r, err := http.NewRequest(http.MethodOptions, v.url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Origin", origin)
		for i := 0; i < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		return do(t, client(t), r)
	}
	kinds := map[string][]string{
		"method":                 {"Access-Control-Request-Method", "DELETE"},
		"simple method":          {"Access-Control-Request-Method", "GET"},
		"header":                 {"Access-Control-Request-Method", "GET", "Access-Control-Request-Headers", "authorization,x-own"},
		"private network":        {"Access-Control-Request-Method", "GET", "Access-Control-Request-Private-Network", "true"},
		"local network":          {"Access-Control-Request-Method", "GET", "Access-Control-Request-Local-Network", "true"},
		"with Sec-Fetch-Site":    {"Access-Control-Request-Method", "PUT", "Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "cors"},
		"claiming same-origin":   {"Access-Control-Request-Method", "PUT", "Sec-Fetch-Site", "same-origin"},
		"no method":              {"Access-Control-Request-Headers", "x-own"},
		"nothing but the origin": nil,
	}
	for _, path := range []string{"/things", statusPath, statusPath + "/login"} {
		for kind, header := range kinds {
			for _, origin := range []string{"http://evil.test", "https://evil.test", "null", "http://127.0.0.1:1", "http://localhost:" + guarded.port, "file://"} {
				if origin == "null" && kind == "claiming same-origin" { // no browser says that of a page without an origin
					continue
				}
				res := ask(guarded, path, origin, header...)
				if res.status != http.StatusForbidden {
					t.Errorf("%s, %s from %s: got %d, want 403", path, kind, origin, res.status)
				}
				for name := range res.header {
					if strings.HasPrefix(name, "Access-Control-") {
						t.Errorf("%s, %s from %s: the answer says %s", path, kind, origin, name)
					}
				}
			}
		}
	}
	// Nor does a simple request, which needs no leave, have its origin reflected.
	for _, path := range []string{"/things", statusPath, statusPath + "/events", statusPath + "/healthz"} {
		r, err := http.NewRequest(http.MethodGet, guarded.url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Origin", "http://evil.test")
		if res := do(t, client(t), r); res.status != http.StatusForbidden || res.header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("GET %s from another origin: %d, Access-Control-Allow-Origin %q", path, res.status, res.header.Get("Access-Control-Allow-Origin"))
		}
	}
	// A question about the proxy's own origin is answered by the proxy: it is not worth a token.
	if res := ask(guarded, "/things", guarded.url, kinds["method"]...); res.status >= 500 {
		t.Errorf("a preflight of the proxy's own origin: %d", res.status)
	}
	if n := guarded.api.total() - before; n != 0 {
		t.Errorf("the API got %d requests", n)
	}
	if res := ask(unguarded, "/things", "http://evil.test", kinds["private network"]...); res.header.Get("Access-Control-Allow-Origin") != "http://evil.test" ||
		!slices.Contains(unguarded.api.at("/things"), http.MethodOptions) {
		t.Errorf("without the guard, the question does not come to the API with a token either: %d %v", res.status, unguarded.api.at("/things"))
	}
}
