package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// TestPageInEveryState looks at the page of every state: with every kind of screen, by the rules of accessibility,
// without JavaScript, in a text browser, and on paper.
func TestPageInEveryState(t *testing.T) {
	browser := startBrowser(t)
	st := startStage(t)
	t.Run("fits every screen and breaks no rule of accessibility", func(t *testing.T) { st.testAccessibility(t, browser) })
	t.Run("asks nobody else", func(t *testing.T) { st.testRequests(t, browser) })
	t.Run("works without JavaScript", func(t *testing.T) { st.testNoScript(t, browser) })
	t.Run("can be read in a text browser", func(t *testing.T) { st.testTextBrowser(t, browser) })
	t.Run("has a QR code that can be scanned", func(t *testing.T) { st.testQR(t, browser) })
	t.Run("can be printed", func(t *testing.T) { st.testPrint(t, browser) })
	t.Run("screenshots", func(t *testing.T) { st.testScreenshots(t, browser) })
}

// axeScript is axe-core, which e2e/provider/package.json names.
func axeScript(t *testing.T) string {
	t.Helper()
	if out, err := installProvider(); err != nil {
		missing(t, "this test needs the packages of e2e/provider (npm ci there, with npm in PATH): %v\n%s", err, out)
	}
	text, err := os.ReadFile(filepath.Join("provider", "node_modules", "axe-core", "axe.min.js"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// runAxe gives what is against WCAG 2.2 AA or good practice, and how many rules were kept.
const runAxe = `axe.run(document, {
	runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22a', 'wcag22aa', 'best-practice'],
	resultTypes: ['violations', 'passes'],
}).then(r => JSON.stringify({
	kept: r.passes.length,
	broken: r.violations.map(v => v.id + ': ' + v.help + '\n' + v.nodes.map(n => n.html + '\n' + n.failureSummary).join('\n')),
}))`

// requireAccessible fails the test for each rule that the page in a tab breaks. The folded parts are looked at, too.
func requireAccessible(t *testing.T, tab context.Context, what string) {
	t.Helper()
	evaluate[chromedp.Void](t, tab, `document.querySelectorAll('details').forEach(d => { d.open = true })`)
	var found struct {
		Kept   int
		Broken []string
	}
	if err := json.Unmarshal([]byte(promise[string](t, tab, runAxe)), &found); err != nil {
		t.Fatal(err)
	}
	for _, rule := range found.Broken {
		t.Errorf("%s: %s", what, rule)
	}
	if found.Kept < 15 {
		t.Errorf("%s: only %d rules apply: is this the page?", what, found.Kept)
	}
}

// cutOff names what reaches over the edge of the screen without making it scroll.
const cutOff = `Array.from(document.body.querySelectorAll('*')).filter(e => {
	const box = e.getBoundingClientRect();
	return e.checkVisibility() && box.width > 1 && box.height > 1 && (box.left < -1 || box.right > innerWidth + 1);
}).map(e => e.tagName + '.' + e.className).join(', ')`

func (st *stage) testAccessibility(t *testing.T, browser context.Context) {
	axe, tab := axeScript(t), newTab(t, browser)
	for _, s := range st.scenes {
		s.open(t, tab)
		waitFor(t, tab, `document.readyState === 'complete' && !!document.getElementById('main')`)
		evaluate[chromedp.Void](t, tab, axe)
		if got := evaluate[string](t, tab, `document.getElementById('main').dataset.state`); got != s.state {
			t.Errorf("%s: the page shows the state %q, want %q", s.name, got, s.state)
		}
		for _, l := range append([]look{smallPhone, wallScreen}, looks...) {
			l.put(t, tab)
			what := s.name + " on a " + l.name
			if over := evaluate[int](t, tab, `document.scrollingElement.scrollWidth - innerWidth`); over > 0 {
				t.Errorf("%s: the page is %d pixels too wide", what, over)
			}
			if cut := evaluate[string](t, tab, cutOff); cut != "" {
				t.Errorf("%s: there is no room for %s", what, cut)
			}
			if l.name == smallPhone.name || l.name == wallScreen.name {
				continue
			}
			requireAccessible(t, tab, what)
		}
	}
}

// tabTraffic is what a tab asked for and what went wrong there.
type tabTraffic struct {
	mu     sync.Mutex
	urls   []string
	bytes  float64
	errors []string
}

// watchTraffic notes all that a tab does from now on, with an empty cache.
func watchTraffic(t *testing.T, tab context.Context) *tabTraffic {
	t.Helper()
	seen := new(tabTraffic)
	err := chromedp.Listen(tab, func(ev any) {
		seen.mu.Lock()
		defer seen.mu.Unlock()
		switch ev := ev.(type) {
		case *network.EventRequestWillBeSent:
			seen.urls = append(seen.urls, ev.Request.URL)
		case *network.EventLoadingFinished:
			seen.bytes += ev.EncodedDataLength
		case *log.EventEntryAdded:
			if ev.Entry.Level == log.EntryLevelError || ev.Entry.Level == log.EntryLevelWarning {
				seen.errors = append(seen.errors, ev.Entry.Text+" "+ev.Entry.URL)
			}
		case *runtime.EventExceptionThrown:
			seen.errors = append(seen.errors, fmt.Sprint(ev.ExceptionDetails.Text, ev.ExceptionDetails.Exception))
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	browse(t, tab, "watching the traffic", chromedp.Func(func(ctx context.Context, _ *chromedp.Target) error {
		if _, err := chromedp.Call(ctx, network.Enable, network.EnableParams{}); err != nil {
			return err
		}
		_, err := chromedp.Call(ctx, network.SetCacheDisabled, network.SetCacheDisabledParams{CacheDisabled: true})
		return err
	}))
	return seen
}

func (st *stage) testRequests(t *testing.T, browser context.Context) {
	for _, s := range st.scenes {
		tab := newTab(t, browser)
		seen := watchTraffic(t, tab)
		s.open(t, tab)
		waitFor(t, tab, `document.readyState === 'complete' && !document.getElementById('live').hidden`) // the stream is open
		seen.mu.Lock()
		for _, url := range seen.urls {
			if !strings.HasPrefix(url, st.url+"/"+s.name+statusPath) {
				t.Errorf("%s: the page asks for %s", s.name, url)
			}
		}
		if len(seen.urls) < 4 {
			t.Errorf("%s: only %q were asked for", s.name, seen.urls)
		}
		if seen.bytes > 60_000 || seen.bytes < 5_000 {
			t.Errorf("%s: the page takes %.0f bytes, want less than 60 kB", s.name, seen.bytes)
		}
		for _, e := range seen.errors {
			t.Errorf("%s: the browser complains: %s", s.name, e)
		}
		if s.name == "pending" {
			t.Logf("a pending page takes %.0f bytes in %d requests", seen.bytes, len(seen.urls))
		}
		seen.mu.Unlock()
		if err := chromedp.Cancel(tab); err != nil {
			t.Error(err)
		}
	}
}

// essentials is what a page says to somebody who sees it.
type essentials struct {
	Title   string // at a glance
	Text    string
	Code    string
	Address string // where to enter the code
	QR      bool
	Button  string // of the form that is the next step
}

// seenEssentials reads them in a tab: what is hidden is not there. The tab must be one where scripts may run in pages
// or not; these come from outside.
func seenEssentials(t *testing.T, tab context.Context) (e essentials) {
	t.Helper()
	result := evaluate[string](t, tab, `(() => {
		const shown = selector => Array.from(document.querySelectorAll(selector)).find(e => e.checkVisibility() && e.getBoundingClientRect().width > 0);
		const text = e => e ? e.innerText.trim() : '';
		return JSON.stringify({
			Title: text(shown('main h1')), Text: document.body.innerText, Code: text(shown('#code')),
			Address: shown('main a[href]') ? shown('main a[href]').href : '',
			QR: !!shown('main svg.qr, main #qr'), Button: text(shown('main form[method=post] button')),
		});
	})()`)
	if err := json.Unmarshal([]byte(result), &e); err != nil {
		t.Fatal(err)
	}
	return e
}

// require says what is missing for that scene.
func (e essentials) require(t *testing.T, s *scene) {
	t.Helper()
	if e.Title == "" {
		t.Errorf("%s: the page has no title", s.name)
	}
	if l := s.shown.Login; l != nil {
		if e.Code != l.UserCode || e.Address != l.VerificationURI || !e.QR {
			t.Errorf("%s: the page shows %+v, want the code %s, the address %s and a QR code", s.name, e, l.UserCode, l.VerificationURI)
		}
	} else if e.Code != "" || e.QR {
		t.Errorf("%s: the page shows the code %q, and a QR code: %t", s.name, e.Code, e.QR)
	}
	// Where somebody has to act on the page, and not elsewhere, the step is a button.
	er, wants := s.shown.Error, s.shown.State == "login_required" || s.shown.State == "misconfigured" && s.shown.Token == nil
	if wants = wants || er != nil && er.Action == "reauthorize"; wants != (e.Button != "") {
		t.Errorf("%s: the button that is the next step is %q", s.name, e.Button)
	}
	if a := s.shown.Account; a != nil && !strings.Contains(e.Text, a.Name) && s.state != "login_required" {
		t.Errorf("%s: the page does not say that it is %s who is logged in", s.name, a.Name)
	}
	if er != nil && er.Description != "" && !strings.Contains(e.Text, er.Code) {
		t.Errorf("%s: the page does not name the error %s", s.name, er.Code)
	}
}

func (st *stage) testNoScript(t *testing.T, browser context.Context) {
	with, without := newTab(t, browser), newTab(t, browser)
	browse(t, without, "switching JavaScript off", scripts(false))
	titles := map[string]string{}
	for _, s := range st.scenes {
		s.open(t, with)
		s.open(t, without)
		waitFor(t, with, `document.documentElement.classList.contains('js')`)
		a, b := seenEssentials(t, with), seenEssentials(t, without)
		a.require(t, s)
		b.require(t, s)
		if a.Title != b.Title || a.Code != b.Code || a.Address != b.Address || a.Button != b.Button {
			t.Errorf("%s: with JavaScript %+v\nand without %+v", s.name, a, b)
		}
		if evaluate[bool](t, without, `document.documentElement.classList.contains('js') || !!document.querySelector('#copy:not([hidden])')`) {
			t.Errorf("%s: without JavaScript there is a button that needs it", s.name)
		}
		titles[a.Title] += " " + s.name
	}
	// One glance tells them apart: what needs another step, says something else.
	if len(titles) < 9 {
		t.Errorf("different states say the same: %q", titles)
	}
}

func (st *stage) testTextBrowser(t *testing.T, browser context.Context) {
	w3m, err := exec.LookPath("w3m")
	if err != nil {
		missing(t, "this test needs a text browser (Debian: apt-get install w3m): %v", err)
	}
	tab := newTab(t, browser)
	for _, s := range st.scenes {
		s.open(t, tab)
		want := seenEssentials(t, tab)
		cmd := exec.Command(w3m, "-dump", "-cols", "100", "-header", "Accept-Language: en", s.url+"?refresh")
		cmd.Env = environment(newHome(t), "LANG=C.UTF-8", "LC_ALL=C.UTF-8", "TERM=dumb")
		out, err := cmd.CombinedOutput()
		text := strings.Join(strings.Fields(string(out)), " ")
		if err != nil {
			t.Errorf("%s: w3m: %v\n%s", s.name, err, out)
		}
		parts := []string{want.Title}
		if l := s.shown.Login; l != nil {
			parts = append(parts, l.UserCode, strings.TrimPrefix(l.VerificationURI, "https://"))
		}
		if want.Button != "" {
			parts = append(parts, want.Button)
		}
		for _, part := range parts {
			if !strings.Contains(text, part) {
				t.Errorf("%s: in a text browser %q is missing:\n%s", s.name, part, out)
			}
		}
	}
}
