package e2e

import (
	"testing"

	"github.com/chromedp/chromedp"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// TestTheStatusPageIsNobodysFrame is S60: not even a page of its own origin, which the API may serve, can frame it; no
// script that gets into it runs; and the login server does not learn where the operator comes from.
func TestTheStatusPageIsNobodysFrame(t *testing.T) {
	parallel(t)
	v := startVictim(t, caddyBinary, byHand)
	code := v.callForCode(t)
	browser := startHostileBrowser(t, v)

	t.Run("Referrer", func(t *testing.T) {
		tab := newTab(t, browser)
		browse(t, tab, "opening the status page", chromedp.Navigate(v.url+statusPath))
		waitFor(t, tab, `document.querySelector('a.address') !== null`)
		evaluate[chromedp.Void](t, tab, `document.querySelector('a.address').click()`)
		var visit flowtest.Request
		eventually(t, patience, "the login server's page is opened", func() bool {
			for _, r := range v.as.Requests() {
				if r.Step == flowtest.Page && r.Header.Get("Sec-Fetch-Mode") == "navigate" {
					visit = r
					return true
				}
			}
			return false
		})
		if got := visit.Header.Values("Referer"); len(got) != 0 {
			t.Errorf("the login server is told %q", got)
		}
	})
	if err := v.as.Approve(code.UserCode); err != nil {
		t.Fatal(err)
	}
	v.login(t)

	const inject = `(() => { const s = document.createElement('script'); s.textContent = 'window.ran = true'; document.body.append(s);
		const d = document.createElement('div'); d.innerHTML = '<img src="data:,x" onerror="window.ran = true"><b style="color: red">x</b>'; document.body.append(d);
		const u = document.createElement('script'); u.src = 'data:text/javascript,window.ran=true'; u.onload = u.onerror = () => { window.tried = true }; document.body.append(u) })()`
	ran := func(t *testing.T, path string) bool {
		t.Helper()
		tab := newTab(t, browser)
		browse(t, tab, "opening "+path, chromedp.Navigate(v.url+path))
		evaluate[chromedp.Void](t, tab, inject)
		waitFor(t, tab, `window.tried === true`)
		return evaluate[bool](t, tab, `window.ran === true`)
	}
	t.Run("Script", func(t *testing.T) {
		if ran(t, statusPath) {
			t.Error("a script that was put into the page has run")
		}
		if !ran(t, "/page.html") {
			t.Error("nor does it run in a page without a policy, so this proves nothing")
		}
	})

	t.Run("Frame", func(t *testing.T) {
		tab := newTab(t, browser)
		browse(t, tab, "opening a page of the API", chromedp.Navigate(v.url+"/page.html"))
		evaluate[chromedp.Void](t, tab, `['`+statusPath+`', '/framed.html'].forEach((src, i) => {
			const f = document.createElement('iframe'); f.id = 'f' + i; f.onload = () => { f.loaded = true }; f.src = src; document.body.append(f) })`)
		waitFor(t, tab, `f0.loaded === true && f1.loaded === true`)
		if evaluate[bool](t, tab, `f0.contentDocument !== null && f0.contentDocument.querySelector('main') !== null`) {
			t.Error("the status page can be framed")
		}
		if !evaluate[bool](t, tab, `f1.contentDocument.body.innerText.includes('`+loot+`')`) {
			t.Error("nor can the API's own page, so this proves nothing")
		}
	})
}
