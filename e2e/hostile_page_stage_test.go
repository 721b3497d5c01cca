package e2e

import (
	"bufio"
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"html"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"golang.org/x/net/websocket"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// unguardedBinary is a Caddy that lets everybody in. Whatever a test finds held off by the guard must get through here:
// a test that could not fail would prove nothing. It is nobody's product, so the race detector has no business in it.
var unguardedBinary = sync.OnceValues(func() (string, error) {
	return build("caddy-unguarded", "./cmd/caddy", "-tags", "unguarded")
})

// loot is in every answer of the API.
const loot = "loot-3f9c1d"

// temptingAPI lets in who brings a good token, and has the browser show its answers to every web page.
type temptingAPI struct {
	*httptest.Server
	valid func(token string) bool

	mu   sync.Mutex
	hits map[string][]string // the methods by path; one that came without a good token has a question mark
}

func startTemptingAPI(t *testing.T, valid func(token string) bool) *temptingAPI {
	t.Helper()
	a := &temptingAPI{valid: valid, hits: map[string][]string{}}
	a.Server = httptest.NewServer(a)
	t.Cleanup(a.Close)
	t.Cleanup(a.CloseClientConnections)
	return a
}

// at is what arrived at a path.
func (a *temptingAPI) at(path string) []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.hits[path])
}

// total is how many requests arrived.
func (a *temptingAPI) total() (n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, methods := range a.hits {
		n += len(methods)
	}
	return n
}

// ServeHTTP implements http.Handler.
func (a *temptingAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	good, method := a.valid(token), r.Method
	if !good {
		method += "?"
	}
	a.mu.Lock()
	a.hits[r.URL.Path] = append(a.hits[r.URL.Path], method)
	a.mu.Unlock()
	if !good {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}

	// As careless as an API can be.
	h := w.Header()
	if origin := r.Header.Get("Origin"); origin != "" {
		h.Set("Access-Control-Allow-Origin", origin)
		h.Set("Access-Control-Allow-Credentials", "true")
	}
	for _, name := range []string{"Headers", "Method"} {
		if asked := r.Header.Get("Access-Control-Request-" + name); asked != "" {
			h.Set("Access-Control-Allow-"+strings.TrimSuffix(name, "s")+"s", asked)
		}
	}
	h.Set("Access-Control-Allow-Private-Network", "true")
	h.Set("Cache-Control", "no-store")
	if servePages(w, r) { // the same page as one of the API's own
		return
	}
	name := strings.TrimSuffix(path.Base(r.URL.Path), path.Ext(r.URL.Path))
	switch path.Ext(r.URL.Path) {
	case ".ws":
		websocket.Server{Handler: func(ws *websocket.Conn) {
			_, _ = io.WriteString(ws, loot)
			_, _ = io.Copy(io.Discard, ws)
		}}.ServeHTTP(w, r)
	case ".events":
		h.Set("Content-Type", "text/event-stream")
		fmt.Fprintf(w, "data: %s\n\n", loot)
	case ".svg":
		h.Set("Content-Type", "image/svg+xml")
		fmt.Fprintf(w, `<svg xmlns="http://www.w3.org/2000/svg" width="77" height="33"><!-- %s --></svg>`, loot)
	case ".js":
		h.Set("Content-Type", "text/javascript")
		fmt.Fprintf(w, "self.%s = %q; if (!self.document) postMessage(%[2]q);", strings.ReplaceAll(name, "-", "_"), loot)
	case ".css":
		h.Set("Content-Type", "text/css")
		fmt.Fprintf(w, ":root { --%s: %q; }", name, loot)
	case ".html":
		h.Set("Content-Type", "text/html")
		fmt.Fprintf(w, "<!doctype html><title>API</title><p>%s</p>", loot)
	default:
		_, _ = io.WriteString(w, loot)
	}
}

//go:embed testdata/hostile.js
var hostileScript string

// hostilePage loads all attacks; what it is to do, the test tells it.
const hostilePage = `<!doctype html><title>hostile</title><body><script src="/hostile.js"></script>`

// servePages serves the page that can send everything.
func servePages(w http.ResponseWriter, r *http.Request) bool {
	h := w.Header()
	h.Set("Content-Type", "text/html")
	switch r.URL.Path {
	case "/page":
		_, _ = io.WriteString(w, hostilePage)
	case "/opaque": // the same from no origin at all: requests say "Origin: null"
		h.Set("Content-Security-Policy", "sandbox allow-scripts allow-forms allow-popups")
		_, _ = io.WriteString(w, hostilePage)
	case "/hostile.js":
		h.Set("Content-Type", "text/javascript")
		fmt.Fprintf(w, "const LOOT = %q;\n%s", loot, hostileScript)
	case "/sw.js":
		h.Set("Content-Type", "text/javascript")
		_, _ = io.WriteString(w, `self.onmessage = e => fetch(e.data).then(r => r.text())
			.then(text => e.ports[0].postMessage(text), () => e.ports[0].postMessage(''));`)
	default:
		h.Del("Content-Type")
		return false
	}
	return true
}

// serveHostile is the attacker's own server.
func serveHostile(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Access-Control-Allow-Origin", "*")
	h.Set("Cache-Control", "no-store")
	if servePages(w, r) {
		return
	}
	h.Set("Content-Type", "text/html")
	to, how := r.FormValue("to"), r.FormValue("how")
	quoted := html.EscapeString(to)
	switch r.URL.Path {
	case "/redirect":
		status := http.StatusFound
		if how == "307" {
			status = http.StatusTemporaryRedirect // keeps method and body
		}
		http.Redirect(w, r, to, status)
	case "/report":
		h.Set("Content-Security-Policy", "img-src 'none'; report-uri "+to)
		_, _ = io.WriteString(w, `<!doctype html><img src="/forbidden.png">`)
	case "/go":
		switch how {
		case "redirect":
			http.Redirect(w, r, to, http.StatusFound)
		case "refresh":
			fmt.Fprintf(w, `<!doctype html><meta http-equiv="refresh" content="0;url=%s">`, quoted)
		case "location":
			fmt.Fprintf(w, `<!doctype html><script>location = %q</script>`, to)
		case "form":
			fmt.Fprintf(w, `<!doctype html><form method="post" action="%s"><input name="a" value="b"></form><script>document.forms[0].submit()</script>`, quoted)
		case "ping":
			fmt.Fprintf(w, `<!doctype html><a href="#there" ping="%s">x</a><script>document.links[0].click()</script>`, quoted)
		default:
			fmt.Fprintf(w, `<!doctype html><a href="%s" rel="%s">x</a><script>document.links[0].click()</script>`, quoted, how)
		}
	default:
		http.NotFound(w, r)
	}
}

// rebinder is what a name of the attacker's leads to: at first the attacker's page, and once that is loaded, the proxy,
// with the same name and port. A DNS server that gives another answer the second time does the same; for the browser
// all is one origin.
type rebinder struct {
	net.Listener
	proxy string

	mu    sync.Mutex
	bound bool
	open  map[net.Conn]bool
}

// bind says where the name leads from now on. Connections end, as they do when a browser has long had nothing to send.
func (b *rebinder) bind(toProxy bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.bound = toProxy
	for conn := range b.open {
		_ = conn.Close()
	}
}

func startRebinder(t *testing.T, proxy string) *rebinder {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	b := &rebinder{Listener: l, proxy: proxy, open: map[net.Conn]bool{}}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go b.serve(conn)
		}
	}()
	return b
}

func (b *rebinder) serve(conn net.Conn) {
	b.mu.Lock()
	bound := b.bound
	b.open[conn] = true
	b.mu.Unlock()
	defer func() {
		_ = conn.Close()
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.open, conn)
	}()
	in := bufio.NewReader(conn)
	if !bound {
		if r, err := http.ReadRequest(in); err == nil {
			w := httptest.NewRecorder()
			serveHostile(w, r)
			w.Header().Set("Connection", "close")
			_ = w.Result().Write(conn)
		}
		return
	}
	proxy, err := net.Dial("tcp", b.proxy)
	if err != nil {
		return
	}
	defer proxy.Close()
	go func() {
		_, _ = io.Copy(conn, proxy)
		_ = conn.Close()
	}()
	_, _ = io.Copy(proxy, in)
}

// victim is a proxy that is logged in, or waits for a login, and what is behind it.
type victim struct {
	*caddy
	as     *flowtest.Server
	api    *temptingAPI
	rebind *rebinder
}

// startAttacker starts the attacker's server and returns its port.
func startAttacker(t *testing.T) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(serveHostile))
	t.Cleanup(s.Close)
	_, port, err := net.SplitHostPort(s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func startVictim(t *testing.T, binary func() (string, error), change ...func(*flowtest.Config)) *victim {
	t.Helper()
	as := startAS(t, time.Hour, change...)
	a := startTemptingAPI(t, as.ValidToken)
	// The access log tells what the browser has sent even if nothing comes of it.
	config := strings.Replace(site("device", "offline_access"), "bind 127.0.0.1\n", "bind 127.0.0.1\n\tlog\n", 1)
	c := newCaddy(t, config, as.Issuer(), a.URL)
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	c.binary = path
	c.start(t)
	return &victim{c, as, a, startRebinder(t, "127.0.0.1:"+c.port)}
}

// accessed is the status of each answer to requests of a path, with "OPTIONS" in front if it was a preflight.
func (v *victim) accessed() map[string][]string {
	all := map[string][]string{}
	for line := range strings.Lines(v.output.String()) {
		var entry struct {
			Logger  string `json:"logger"`
			Status  int    `json:"status"`
			Request struct {
				Method string `json:"method"`
				URI    string `json:"uri"`
			} `json:"request"`
		}
		if json.Unmarshal([]byte(line), &entry) != nil || !strings.HasPrefix(entry.Logger, "http.log.access") {
			continue
		}
		path, _, _ := strings.Cut(entry.Request.URI, "?")
		all[path] = append(all[path], fmt.Sprint(entry.Request.Method, " ", entry.Status))
	}
	return all
}

// startHostileBrowser starts a browser for which the attacker's names lead to this machine, and which lets scripts open
// windows, as it does after a click.
func startHostileBrowser(t *testing.T, victims ...*victim) context.Context {
	t.Helper()
	rules := []string{"MAP evil.test 127.0.0.1", "MAP rebound.test 127.0.0.1", "MAP api-proxy 127.0.0.1"}
	for _, v := range victims {
		rules = append(rules, "MAP rebind.test:"+v.port+" "+v.rebind.Addr().String())
	}
	return startBrowser(t, chromedp.Flag("host-resolver-rules", strings.Join(rules, ",")), chromedp.Flag("disable-popup-blocking", true))
}
