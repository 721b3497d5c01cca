package e2e

import (
	"context"
	"fmt"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// TestFriendlyCallersNeedNoSetting calls through the shortest configuration as programs and devices do, none of which
// should have to know that there is a guard.
func TestFriendlyCallersNeedNoSetting(t *testing.T) {
	parallel(t)
	v := startVictim(t, caddyBinary)
	v.login(t)
	url := v.url + "/things.txt"

	const python = `import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=30).read().decode())`
	for name, command := range map[string][]string{
		"curl":                {"curl", "-sS", "--fail", url},
		"curl, compose name":  {"curl", "-sS", "--fail", "-H", "Host: api-proxy", url},
		"curl, name and port": {"curl", "-sS", "--fail", "-H", "Host: api_proxy:8080", url},
		"curl, HTTP/1.0":      {"curl", "-sS", "--fail", "--http1.0", "-H", "Host:", url},
		"curl, PUT":           {"curl", "-sS", "--fail", "-X", "PUT", "--data", "x=y", url},
		"curl, JSON":          {"curl", "-sS", "--fail", "-H", "Content-Type: application/json", "-d", "{}", url},
		"curl, own referrer":  {"curl", "-sS", "--fail", "--referer", v.url + "/index.html", url},
		"wget":                {"wget", "-q", "-t", "1", "-O", "-", url},
		"busybox wget":        {"busybox", "wget", "-q", "-O", "-", url},
		"Python":              {"python3", "-c", python, url},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := exec.LookPath(command[0]); err != nil {
				if command[0] == "curl" {
					missing(t, "this test needs curl in PATH")
				}
				t.Logf("there is no %s here: %v", command[0], err)
				return
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, command[0], command[1:]...)
			cmd.Env = environment(newHome(t))
			if out, err := cmd.CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != loot {
				t.Errorf("%v: %s", err, out)
			}
		})
	}

	t.Run("Go", func(t *testing.T) {
		for _, host := range []string{"localhost", "127.0.0.1"} {
			if res := get(t, client(t), "http://"+net.JoinHostPort(host, v.port)+"/things.txt", ""); res.status != 200 || res.body != loot {
				t.Errorf("%s: %d %s", host, res.status, res.body)
			}
		}
	})
	for name, request := range map[string]string{
		"HTTP/1.0 without Host":      "GET /things.txt HTTP/1.0\r\n\r\n",
		"HTTP/1.0, POST":             "POST /things.txt HTTP/1.0\r\nContent-Length: 4\r\n\r\nscan",
		"Host of another machine":    "GET /things.txt HTTP/1.1\r\nHost: 192.168.7.20\r\n\r\n",
		"Host in IPv6":               "GET /things.txt HTTP/1.1\r\nHost: [fd00::20]:8080\r\n\r\n",
		"Host in capitals":           "GET /things.txt HTTP/1.1\r\nHost: SCANNER-PROXY\r\n\r\n",
		"ESP32":                      "GET /things.txt HTTP/1.1\r\nHost: 192.168.4.1\r\nUser-Agent: ESP32HTTPClient\r\nConnection: keep-alive\r\nAccept-Encoding: identity;q=1,chunked;q=0.1,*;q=0\r\n\r\n",
		"a Referer that names none":  "GET /things.txt HTTP/1.1\r\nHost: localhost\r\nReferer: scanner\r\n\r\n",
		"Sec-Fetch-Site of a person": "GET /things.txt HTTP/1.1\r\nHost: localhost\r\nSec-Fetch-Site: none\r\n\r\n",
		"OPTIONS that asks nothing":  "OPTIONS /things.txt HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"absolute form":              "GET http://localhost/things.txt HTTP/1.1\r\nHost: localhost\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			if res := raw(t, v.caddy, request); res.status != 200 || res.body != loot {
				t.Errorf("%d %s", res.status, res.body)
			}
		})
	}
}

// TestABrowserOnTheProxyItselfNeedsNoSetting visits the proxy by each of its names and has a page that the API serves
// use all that a page may use at its own origin.
func TestABrowserOnTheProxyItselfNeedsNoSetting(t *testing.T) {
	v := startVictim(t, caddyBinary)
	v.login(t)
	browser := startHostileBrowser(t, v)
	for _, host := range []string{"localhost", "127.0.0.1", "any.localhost", "api-proxy"} {
		t.Run(host, func(t *testing.T) {
			tab, at := newTab(t, browser), "http://"+net.JoinHostPort(host, v.port)
			shown := func(what string) {
				t.Helper()
				if got := evaluate[string](t, tab, `document.body.innerText`); strings.TrimSpace(got) != loot {
					t.Errorf("%s: the tab shows %q", what, got)
				}
			}
			browse(t, tab, "the address bar", chromedp.Navigate(at+"/visit.html"))
			shown("the address bar")
			browse(t, tab, "reloading", chromedp.Reload())
			shown("reloading")
			evaluate[chromedp.Void](t, tab, `void (location = '/next.html')`)
			comesTo(t, tab, `location.pathname === '/next.html' && document.readyState === 'complete'`)
			shown("following a link")
			browse(t, tab, "reloading that", chromedp.Reload())
			shown("reloading that")

			if host != "localhost" && host != "api-proxy" { // the rest depends on whether the browser trusts the address
				return
			}
			p := place{"own-" + slug(host), at + "/page", host}
			for _, o := range v.assault(t, browser, p, own(host), v.port) {
				if len(o.hits) == 0 || o.reads && !strings.Contains(o.Read, loot) {
					t.Errorf("%q: the proxy has answered %v, the page reads %q %s", o.name, o.accessed, o.Read, o.Problem)
				}
			}
		})
	}
}

// comesTo is waitFor for a tab that may be on its way to another page.
func comesTo(t *testing.T, tab context.Context, script string) {
	t.Helper()
	eventually(t, patience, script, func() bool {
		ctx, cancel := context.WithTimeout(tab, 10*time.Second)
		defer cancel()
		yes, err := chromedp.Run(ctx, chromedp.Evaluate[bool](script))
		return err == nil && yes
	})
}

// own is the attacks that are none when the page is the proxy's own: all but those by way of another server or from an
// origin of their own, and methods that nobody knows.
func own(host string) (list []attack) {
	for _, a := range attacks {
		switch {
		case strings.Contains(a.name, "redirect"), strings.HasPrefix(a.name, "link "), strings.Contains(a.name, "sandboxed"),
			strings.Contains(a.name, "whole page"), strings.HasPrefix(a.name, "speculative"):
			continue
		case strings.HasPrefix(a.name, "service worker") && host == "api-proxy": // no secure context
			continue
		}
		switch a.name {
		case "location set", "meta refresh", "report of a content policy", "fetch from a data: frame", "identity provider",
			"fetch own method", "fetch TRACE", "service worker of the proxy":
			continue
		}
		list = append(list, a)
	}
	return list
}

// TestStatusPageInABrowserNeedsNoSetting logs in as an operator does: by the address bar, the live page and its form.
func TestStatusPageInABrowserNeedsNoSetting(t *testing.T) {
	parallel(t)
	v := startVictim(t, caddyBinary, byHand)
	browser := startHostileBrowser(t, v)
	for i, host := range []string{"localhost", "api-proxy"} {
		tab := newTab(t, browser)
		browse(t, tab, "opening the status page", chromedp.Navigate("http://"+host+":"+v.port+statusPath))
		if i == 0 {
			code := pendingCode(t, v)
			comesTo(t, tab, fmt.Sprintf(`document.body?.innerText.includes(%q) === true`, code))
			evaluate[bool](t, tab, `window.marked = true`)
			if err := v.as.Approve(code); err != nil {
				t.Fatal(err)
			}
			v.login(t)
		}
		// The stream of events brings the change; the page is not loaded anew.
		comesTo(t, tab, `/connected|authorized|logged in/i.test(document.getElementById('main')?.innerText)`)
		if i == 0 && !evaluate[bool](t, tab, `window.marked === true`) {
			t.Error("the page has changed by being loaded again")
		}

		codes := v.as.Stats().DeviceRequests
		submit(t, tab)
		eventually(t, patience, "the form on "+host+" has asked for a code", func() bool { return v.as.Stats().DeviceRequests == codes+1 })
		code := pendingCode(t, v)
		comesTo(t, tab, fmt.Sprintf(`document.body?.innerText.includes(%q) === true`, code))
		if err := v.as.Approve(code); err != nil {
			t.Fatal(err)
		}
		eventually(t, patience, "the new login is there", func() bool { return v.status(t).Login == nil })
	}
}

// pendingCode is the one code that waits for approval.
func pendingCode(t *testing.T, v *victim) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	code, err := v.as.AwaitPending(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return code
}

// submit ticks the box of the form that replaces a login, and presses its button.
func submit(t *testing.T, tab context.Context) {
	t.Helper()
	evaluate[chromedp.Void](t, tab, `(() => {
		const form = document.querySelector('form[method=post]');
		form.closest('details').open = true;
		form.querySelector('input[type=checkbox]').checked = true;
		form.querySelector('button').click();
	})()`)
}
