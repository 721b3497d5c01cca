package e2e

import (
	"context"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// TestPageInUse has people work with the page: for a whole life of a login, without JavaScript, and without a mouse.
func TestPageInUse(t *testing.T) {
	parallel(t)
	browser := startBrowser(t)
	t.Run("through a whole life", func(t *testing.T) { t.Parallel(); testPageLife(t, browser) })
	t.Run("without JavaScript", func(t *testing.T) { t.Parallel(); testPageLoginNoScript(t, browser) })
	t.Run("without a mouse", func(t *testing.T) { t.Parallel(); testPageKeyboard(t, browser) })
	t.Run("copying the code", func(t *testing.T) { t.Parallel(); testPageCopy(t, browser) })
}

// cable is the network between a browser and the proxy.
type cable struct {
	net.Listener
	to string

	mu   sync.Mutex
	down bool
	open map[net.Conn]bool
}

func startCable(t *testing.T, to string) *cable {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	c := &cable{Listener: l, to: to, open: map[net.Conn]bool{}}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go c.carry(conn)
		}
	}()
	return c
}

// cut ends all connections and lets none through until it is called with false.
func (c *cable) cut(down bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.down = down
	for conn := range c.open {
		_ = conn.Close()
	}
}

func (c *cable) carry(conn net.Conn) {
	defer conn.Close()
	c.mu.Lock()
	down := c.down
	if !down {
		c.open[conn] = true
	}
	c.mu.Unlock()
	if down {
		return
	}
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.open, conn)
	}()
	far, err := net.Dial("tcp", c.to)
	if err != nil {
		return
	}
	defer far.Close()
	go func() {
		_, _ = io.Copy(conn, far)
		_ = conn.Close()
	}()
	_, _ = io.Copy(far, conn)
}

// What a page shows, as JavaScript that asks it. They say false while a page is loading.
const (
	showsLost = `(() => { const l = document.getElementById('lost'); return !!l && l.checkVisibility() && l.innerText.trim() !== ''; })()`
	showsLive = `(() => { const l = document.getElementById('lost'); return !!l && !l.checkVisibility(); })()`
	lastTime  = `Array.from(document.querySelectorAll('main time')).map(e => e.dateTime).sort().pop() || ''`
	nextStep  = `document.querySelector('main form[method=post] button')`
)

func showsState(state string) string {
	return `document.getElementById('main')?.dataset.state === '` + state + `'`
}

func showsCode(code string) string {
	return `document.getElementById('code')?.innerText === '` + code + `'`
}

// newestCode waits for a code that waits for approval.
func newestCode(t *testing.T, as *flowtest.Server) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	code, err := as.AwaitPending(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return code
}

// approve approves the newest code, which a page shows by then.
func approve(t *testing.T, as *flowtest.Server) {
	t.Helper()
	if err := as.Approve(newestCode(t, as)); err != nil {
		t.Fatal(err)
	}
}

// testPageLife leaves one page open from the first code on. Nobody reloads it; all that is ever pressed is its button.
func testPageLife(t *testing.T, browser context.Context) {
	const lifetime = 6 * time.Second
	as := startAS(t, lifetime, byHand)
	a := startAPI(t, as.ValidToken)
	c := startCaddy(t, site("device", "openid profile email offline_access"), as.Issuer(), a.URL)
	line := startCable(t, strings.TrimPrefix(c.url, "http://"))
	tab := newTab(t, browser)
	browse(t, tab, "opening the page", chromedp.Navigate("http://"+line.Addr().String()+statusPath))
	waitFor(t, tab, showsCode(newestCode(t, as)))
	evaluate[chromedp.Void](t, tab, `window.marked = true`)

	// The cable is pulled while a code is out; the proxy starts anew, too. The code stays, and so does the page.
	code := newestCode(t, as)
	line.cut(true)
	waitFor(t, tab, showsLost)
	c.stop(t, syscall.SIGKILL)
	c.start(t)
	if !evaluate[bool](t, tab, showsLost) {
		t.Error("the page believes to be connected while the cable is cut")
	}
	line.cut(false)
	waitFor(t, tab, showsLive+`&&`+showsCode(code))

	approve(t, as)
	waitFor(t, tab, showsState("authorized")+`&& document.body.innerText.includes('Alice Example')`)
	before := evaluate[string](t, tab, lastTime)
	waitFor(t, tab, showsState("authorized")+`&& (`+lastTime+`) > '`+before+`'`)
	if as.Stats().Refreshes == 0 {
		t.Error("the page shows a later end without a refresh")
	}

	// The login is withdrawn while nobody can see it.
	line.cut(true)
	waitFor(t, tab, showsLost)
	as.RevokeAll()
	eventually(t, 3*lifetime, "nobody is logged in", func() bool { return c.status(t).State == "login_required" })
	line.cut(false)
	waitFor(t, tab, showsLive+`&&`+showsState("login_required")+`&& !!`+nextStep)
	if !evaluate[bool](t, tab, `window.marked === true`) {
		t.Error("the page was loaded anew: what was being read or typed there is lost")
	}

	as.SetConfig(func(c *flowtest.Config) { c.AccessTokenLifetime = time.Hour }) // or it may be refreshed while we look
	evaluate[chromedp.Void](t, tab, nextStep+`.click()`)
	again := newestCode(t, as)
	waitFor(t, tab, showsState("pending")+`&&`+showsCode(again))
	evaluate[chromedp.Void](t, tab, `window.marked = true`)
	approve(t, as)
	waitFor(t, tab, showsState("authorized"))
	if !evaluate[bool](t, tab, `window.marked === true`) {
		t.Error("the page was loaded anew after the approval")
	}
	if code == again {
		t.Error("the second login has the code of the first")
	}
	if got := as.Stats().DeviceRequests; got != 2 {
		t.Errorf("%d codes were asked for, want 2", got)
	}
	c.login(t)
}

// testPageLoginNoScript logs in with a browser that runs no scripts: the button posts a form, and the page looks again
// by itself.
func testPageLoginNoScript(t *testing.T, browser context.Context) {
	as := startAS(t, time.Hour, byHand)
	a := startAPI(t, as.ValidToken)
	c := startCaddy(t, site("device", "openid offline_access"), as.Issuer(), a.URL)
	tab := newTab(t, browser)
	browse(t, tab, "opening the page", scripts(false), chromedp.Navigate(c.url+statusPath+"?refresh"))
	evaluate[chromedp.Void](t, tab, nextStep+`.focus()`)
	browse(t, tab, "pressing the button", chromedp.KeyEvent("\r"))
	waitFor(t, tab, showsState("pending")+`&&`+showsCode(newestCode(t, as)))
	approve(t, as)
	waitFor(t, tab, showsState("authorized"))
	if got := as.Stats().DeviceRequests; got != 1 {
		t.Errorf("%d codes were asked for, want 1", got)
	}
}
