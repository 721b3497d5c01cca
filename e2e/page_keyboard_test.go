package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/accessibility"
	"github.com/chromedp/cdproto/browser"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// focused has a tab behave as the one in front, which has the keyboard and may use the clipboard.
func focused(t *testing.T, tab context.Context) {
	t.Helper()
	browse(t, tab, "giving the tab the focus", chromedp.Func(func(ctx context.Context, _ *chromedp.Target) error {
		_, err := chromedp.Call(ctx, emulation.SetFocusEmulationEnabled, emulation.SetFocusEmulationEnabledParams{Enabled: true})
		return err
	}))
}

// whereFocus names what has the keyboard, and how wide the line around it is.
const whereFocus = `(() => {
	const e = document.activeElement, style = getComputedStyle(e), box = e.getBoundingClientRect();
	return JSON.stringify({
		Name: e === document.body ? '' : e.id || e.tagName.toLowerCase() + (e.className && '.' + e.className) + (e.type ? ' ' + e.type : ''),
		Href: e.href || '', Outline: style.outlineStyle === 'none' ? 0 : parseFloat(style.outlineWidth), Top: box.top + scrollY, Seen: box.width > 0,
	});
})()`

// stop is a place where the Tab key leads.
type stop struct {
	Name    string
	Href    string
	Outline float64
	Top     float64
	Seen    bool
}

func focusIn(t *testing.T, tab context.Context) (s stop) {
	t.Helper()
	if err := json.Unmarshal([]byte(evaluate[string](t, tab, whereFocus)), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// tabThrough presses Tab until it has been everywhere, and requires that everybody can see where it is.
func tabThrough(t *testing.T, tab context.Context) (stops []stop) {
	t.Helper()
	evaluate[chromedp.Void](t, tab, `document.activeElement.blur()`)
	for range 20 {
		browse(t, tab, "the Tab key", chromedp.KeyEvent("\t"))
		s := focusIn(t, tab)
		if s.Name == "" || len(stops) > 0 && s == stops[0] {
			return stops
		}
		if s.Outline < 2 || !s.Seen {
			t.Errorf("nobody sees that the focus is on %+v", s)
		}
		stops = append(stops, s)
	}
	t.Errorf("the Tab key leads nowhere: %+v", stops)
	return stops
}

// tabTo presses Tab until that has the focus.
func tabTo(t *testing.T, tab context.Context, selector string) {
	t.Helper()
	for range 20 {
		browse(t, tab, "the Tab key", chromedp.KeyEvent("\t"))
		if evaluate[bool](t, tab, fmt.Sprintf(`document.activeElement.matches(%q)`, selector)) {
			return
		}
	}
	t.Fatalf("the Tab key does not lead to %s", selector)
}

// spoken is what a screen reader gets of a page: the name of everything, with its role in front. Of an image that is the
// name alone (WAI-ARIA 1.2 section 5.2.8: its children are presentational).
func spoken(t *testing.T, tab context.Context) (all []string) {
	t.Helper()
	tree, err := chromedp.Call(tab, accessibility.GetFullAXTree, accessibility.GetFullAXTreeParams{})
	if err != nil {
		t.Fatal(err)
	}
	text := func(v *accessibility.Value) (s string) {
		if v != nil {
			_ = json.Unmarshal(v.Value, &s) // what is no text is nothing to say
		}
		return s
	}
	nodes := map[accessibility.NodeID]*accessibility.Node{}
	for _, n := range tree.Nodes {
		nodes[n.NodeID] = n
	}
	for _, n := range tree.Nodes {
		over := nodes[n.ParentID]
		for over != nil && text(over.Role) != "image" {
			over = nodes[over.ParentID]
		}
		if !n.Ignored && over == nil {
			all = append(all, text(n.Role)+" "+text(n.Name))
		}
	}
	return all
}

// testPageKeyboard goes through a login and its replacement by keys alone, and listens to what is read out.
func testPageKeyboard(t *testing.T, browser context.Context) {
	as := startAS(t, time.Hour, byHand)
	a := startAPI(t, as.ValidToken)
	c := startCaddy(t, site("device", "openid profile email offline_access"), as.Issuer(), a.URL)
	tab := newTab(t, browser)
	focused(t, tab)
	browse(t, tab, "opening the page", chromedp.Navigate(c.url+statusPath+"?refresh"))
	waitFor(t, tab, showsState("login_required")+`&&`+showsLive)
	tabTo(t, tab, "form[method=post] button")
	browse(t, tab, "Enter", chromedp.KeyEvent("\r"))
	code := newestCode(t, as)
	waitFor(t, tab, showsState("pending")+`&&`+showsCode(code)+`&& !document.getElementById('copy').hidden`)

	login := c.status(t).Login
	stops := tabThrough(t, tab)
	at := map[string]int{}
	for i, s := range stops {
		if i > 0 && s.Top < stops[i-1].Top {
			t.Errorf("the Tab key goes up, from %+v to %+v", stops[i-1], s)
		}
		at[s.Name], at[s.Href] = i+1, i+1
	}
	if address, copying, direct := at[login.VerificationURI], at["copy"], at[login.VerificationURIComplete]; address == 0 || copying <= address || direct <= copying {
		t.Errorf("the Tab key leads to %+v, want the address, the copy button and the link with the code", stops)
	}

	// The code is read letter by letter, and only so: as a word it is not understood.
	first, second, _ := strings.Cut(code, "-")
	spelled := false
	for _, s := range spoken(t, tab) {
		spelled = spelled || strings.Contains(s, spellOut(first)) && strings.Contains(s, spellOut(second))
		role, name, _ := strings.Cut(s, " ")
		if name == code {
			t.Errorf("a screen reader says %q", s)
		}
		if name == "" && slices.Contains([]string{"button", "link", "progressbar", "image", "checkbox"}, role) {
			t.Errorf("to a screen reader a %s has no name", role)
		}
	}
	if !spelled {
		t.Errorf("a screen reader does not spell the code %s: %q", code, spoken(t, tab))
	}

	// What is new comes without taking the focus from where somebody is.
	evaluate[chromedp.Void](t, tab, `document.activeElement.blur()`)
	tabTo(t, tab, "#copy")
	version := evaluate[string](t, tab, `document.getElementById('main').dataset.version`)
	as.Script(flowtest.Poll, flowtest.Response{Status: http.StatusInternalServerError})
	waitFor(t, tab, `document.getElementById('main').dataset.version !== '`+version+`'`)
	if got := focusIn(t, tab).Name; got != "copy" {
		t.Errorf("when something is new the focus goes from the copy button to %q", got)
	}
	approve(t, as)
	waitFor(t, tab, showsState("authorized"))
	if got := focusIn(t, tab).Name; got != "main" {
		t.Errorf("when the button is gone the focus is at %q, want the new contents", got)
	}
	announced := evaluate[string](t, tab, `document.querySelector('[role=status]').textContent`)
	title := evaluate[string](t, tab, `document.querySelector('h1').innerText`)
	if !strings.Contains(announced, title) {
		t.Errorf("a screen reader is told %q of a page with the title %q", announced, title)
	}
	if all := strings.Join(spoken(t, tab), "\n"); !strings.Contains(all, "status") || !strings.Contains(all, announced) {
		t.Errorf("%q does not reach the screen reader:\n%s", announced, all)
	}

	// Another login in place of this one.
	tabTo(t, tab, "summary")
	browse(t, tab, "Enter", chromedp.KeyEvent("\r"))
	tabTo(t, tab, "input[type=checkbox]")
	browse(t, tab, "the space bar", chromedp.KeyEvent(" "))
	tabTo(t, tab, "details button")
	browse(t, tab, "Enter", chromedp.KeyEvent("\r"))
	waitFor(t, tab, showsState("authorized")+`&&`+showsCode(newestCode(t, as)))
}

func spellOut(text string) string { return strings.Join(strings.Split(text, ""), " ") }

// testPageCopy presses the copy button where the browser has a clipboard for scripts, and where it has none, as on a
// page of the local network.
func testPageCopy(t *testing.T, browser context.Context) {
	as := startAS(t, time.Hour, byHand)
	a := startAPI(t, as.ValidToken)
	c := startCaddy(t, site("device", "openid offline_access"), as.Issuer(), a.URL)
	tab := newTab(t, browser)
	focused(t, tab)
	allowClipboard(t, tab)
	browse(t, tab, "opening the page", chromedp.Navigate(c.url+statusPath))
	code := newestCode(t, as)
	waitFor(t, tab, showsCode(code)+`&& !document.getElementById('copy').hidden`)
	evaluate[chromedp.Void](t, tab, `window.clipboard = navigator.clipboard`)
	for _, way := range []string{"with a clipboard", "without one"} {
		promise[string](t, tab, `clipboard.writeText('something else').then(() => '')`)
		evaluate[chromedp.Void](t, tab, `document.getElementById('said').textContent = ''`)
		evaluate[chromedp.Void](t, tab, `document.getElementById('copy').focus()`)
		browse(t, tab, "Enter", chromedp.KeyEvent("\r"))
		waitFor(t, tab, `document.getElementById('said').textContent !== ''`)
		if got := promise[string](t, tab, `clipboard.readText()`); got != code {
			t.Errorf("%s, after copying it holds %q, want %q", way, got, code)
		}
		if got := focusIn(t, tab).Name; got != "copy" {
			t.Errorf("%s, after copying the focus is at %q", way, got)
		}
		evaluate[chromedp.Void](t, tab, `Object.defineProperty(navigator, 'clipboard', { value: undefined, configurable: true })`)
	}
}

// promise is evaluate of JavaScript that takes its time.
func promise[T any](t *testing.T, tab context.Context, script string) T {
	t.Helper()
	ctx, cancel := context.WithTimeout(tab, 30*time.Second)
	defer cancel()
	result, err := chromedp.Run(ctx, chromedp.Evaluate[T](script, chromedp.EvalAwaitPromise))
	if err != nil {
		t.Fatalf("%s: %v", script, err)
	}
	return result
}

// allowClipboard has a browser's user allow scripts to use the clipboard.
func allowClipboard(t *testing.T, tab context.Context) {
	t.Helper()
	for _, name := range []string{"clipboard-read", "clipboard-write"} {
		_, err := chromedp.CallBrowser(tab, browser.SetPermission, browser.SetPermissionParams{
			Permission: &browser.PermissionDescriptor{Name: name}, Setting: browser.PermissionSettingGranted,
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}
