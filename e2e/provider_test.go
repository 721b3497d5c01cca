package e2e

import (
	"bufio"
	"encoding/json"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/html"
	"golang.org/x/net/html/atom"
)

// providerClient is the public client that provider/server.mjs knows.
const providerClient = "device"

// provider is an authorization server of a third party, running: the npm oidc-provider, or another that prints the same.
type provider struct {
	issuer string
	me     string // the path of its userinfo endpoint

	mu     sync.Mutex
	events []providerEvent
}

// providerEvent is a line of what provider/server.mjs prints; see there.
type providerEvent struct {
	Event   string `json:"event"` // device, token or revocation
	Grant   string `json:"grant"` // of a token request: device_code or refresh_token
	Status  int    `json:"status"`
	Error   string `json:"error"`
	Rotated bool   `json:"rotated"`

	at time.Time // when the line was read
}

// installProvider runs npm ci, once, where node_modules is missing or older than the lock file. The error is what to
// install, or what npm said.
var installProvider = sync.OnceValues(func() (output string, err error) {
	lock, err := os.Stat(filepath.Join("provider", "package-lock.json"))
	if err != nil {
		return "", err
	}
	done, err := os.Stat(filepath.Join("provider", "node_modules", ".package-lock.json"))
	if err == nil && !done.ModTime().Before(lock.ModTime()) {
		return "", nil
	}
	cmd := exec.Command("npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts")
	cmd.Dir = "provider"
	out, err := cmd.CombinedOutput()
	return string(out), err
})

// startProvider starts the third party's authorization server, with access tokens of that lifetime and more settings
// as provider/server.mjs has them.
func startProvider(t *testing.T, lifetime time.Duration, settings ...string) *provider {
	t.Helper()
	return startNode(t, "server.mjs", "oidc-provider", "/me", lifetime, settings...)
}

// startNode starts a program of e2e/provider, with access tokens of that lifetime.
func startNode(t *testing.T, script, name, me string, lifetime time.Duration, settings ...string) *provider {
	t.Helper()
	node, err := exec.LookPath("node")
	if err != nil {
		missing(t, "this test needs Node.js 20 or later as node in PATH (Debian: apt-get install nodejs npm): %v", err)
	}
	if out, err := installProvider(); err != nil {
		missing(t, "this test needs the packages of e2e/provider (npm ci there, with npm in PATH): %v\n%s", err, out)
	}

	cmd := exec.Command(node, script)
	cmd.Dir = "provider"
	cmd.Env = append(environment(newHome(t), "NODE_ENV=production",
		"ACCESS_TOKEN_TTL="+strconv.Itoa(int(lifetime/time.Second))), settings...)
	return runProvider(t, cmd, name, me)
}

// runProvider starts a program that prints what provider/server.mjs does; me is the path of its userinfo endpoint.
func runProvider(t *testing.T, cmd *exec.Cmd, name, me string) *provider {
	t.Helper()
	// It ends with its standard input, so even a test that is killed leaves none behind.
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	stderr := new(buffer)
	cmd.Stderr = stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &provider{me: me}
	read, first := make(chan struct{}), make(chan string, 1)
	go func() {
		defer close(read)
		p.read(stdout, first)
	}()
	t.Cleanup(func() {
		_ = stdin.Close()
		kill := time.AfterFunc(10*time.Second, func() { _ = cmd.Process.Kill() })
		defer kill.Stop()
		<-read // Wait closes the pipe
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s: %v\n%s", name, err, stderr)
		}
		if t.Failed() {
			t.Logf("%s saw %+v\nand printed\n%s", name, p.all(), stderr)
		}
	})
	select {
	case p.issuer = <-first:
	case <-time.After(30 * time.Second):
	}
	if !strings.HasPrefix(p.issuer, "http://127.0.0.1:") {
		t.Fatalf("%s has not started: its first line is %q\n%s", name, p.issuer, stderr)
	}
	return p
}

// read takes the issuer from the first line and an event from each of the others.
func (p *provider) read(r io.Reader, first chan<- string) {
	lines := bufio.NewScanner(r)
	if lines.Scan() {
		first <- lines.Text()
	} else {
		close(first)
	}
	for lines.Scan() {
		var e providerEvent
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			e = providerEvent{Event: "unreadable", Error: lines.Text()}
		}
		e.at = time.Now()
		p.mu.Lock()
		p.events = append(p.events, e)
		p.mu.Unlock()
	}
}

// all is what happened so far.
func (p *provider) all() []providerEvent {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]providerEvent(nil), p.events...)
}

// count counts the events that a test looks for.
func (p *provider) count(match func(providerEvent) bool) int {
	n := 0
	for _, e := range p.all() {
		if match(e) {
			n++
		}
	}
	return n
}

// deviceRequests counts the codes asked for.
func (p *provider) deviceRequests() int {
	return p.count(func(e providerEvent) bool { return e.Event == "device" })
}

// refreshes counts those that succeeded and came with another refresh token.
func (p *provider) refreshes() int {
	return p.count(func(e providerEvent) bool {
		return e.Event == "token" && e.Grant == "refresh_token" && e.Status == 200 && e.Rotated
	})
}

// failedRefreshes counts those that were refused: a client that refreshes one at a time sees none.
func (p *provider) failedRefreshes() int {
	return p.count(func(e providerEvent) bool { return e.Grant == "refresh_token" && e.Status != 200 })
}

// valid asks the provider's userinfo endpoint whether an access token (with the scope openid) is good right now.
func (p *provider) valid(token string) bool {
	r, err := http.NewRequest(http.MethodGet, p.issuer+p.me, nil)
	if err != nil {
		return false
	}
	r.Header.Set("Authorization", "Bearer "+token)
	r.Close = true
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return false
	}
	defer res.Body.Close()
	return res.StatusCode == http.StatusOK
}

// approveAtProvider does what the operator does with the link of a login: opens it, confirms the code, signs in and
// consents, by the provider's own pages and forms.
func approveAtProvider(t *testing.T, verificationURIComplete string) {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	c := &http.Client{Jar: jar, Transport: transport, Timeout: 30 * time.Second} // follows redirects, as a browser does

	res, err := c.Get(verificationURIComplete)
	// One page each: the code, its confirmation, the login, the consent. The last has no form.
	for range 6 {
		if err != nil {
			t.Fatal(err)
		}
		page, text := readPage(t, res)
		if page == nil {
			if !strings.Contains(text, "Sign-in Success") {
				t.Fatalf("approving at %s ended with: %s", verificationURIComplete, text)
			}
			return
		}
		res, err = c.PostForm(page.action, page.values)
	}
	t.Fatalf("approving at %s does not come to an end", verificationURIComplete)
}

// page is a form, filled in.
type page struct {
	action string
	values url.Values
}

// readPage reads the first form of an HTML page, nil if there is none, and the page's text.
func readPage(t *testing.T, res *http.Response) (*page, string) {
	t.Helper()
	defer res.Body.Close()
	doc, err := html.Parse(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	var form *page
	var text strings.Builder
	var node *html.Node // the form
	for n := range doc.Descendants() {
		switch {
		case n.Type == html.TextNode && n.Parent.DataAtom != atom.Style && n.Parent.DataAtom != atom.Script:
			text.WriteString(n.Data)
		case n.DataAtom == atom.Form && node == nil:
			action, err := res.Request.URL.Parse(attr(n, "action"))
			if err != nil {
				t.Fatal(err)
			}
			node, form = n, &page{action.String(), url.Values{}}
		}
	}
	if node == nil {
		return nil, strings.Join(strings.Fields(text.String()), " ")
	}
	for n := range node.Descendants() {
		if name := attr(n, "name"); n.DataAtom == atom.Input && name != "" {
			value := attr(n, "value")
			switch name {
			case "login":
				value = "operator"
			case "password":
				value = "any"
			}
			form.values.Set(name, value)
		}
	}
	return form, text.String()
}

// attr is an attribute of an element.
func attr(n *html.Node, name string) string {
	for _, a := range n.Attr {
		if a.Key == name {
			return a.Val
		}
	}
	return ""
}
