package e2e

import (
	"context"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// startBrowser starts a headless Chromium with a new, empty profile, and gives the context of its first tab, which
// ends, and the browser with it, at the end of the test; more are flags for this browser alone.
func startBrowser(t *testing.T, more ...chromedp.ExecAllocatorOption) context.Context {
	t.Helper()
	path := os.Getenv("CHROMIUM")
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "google-chrome-stable"} {
		if path == "" {
			path, _ = exec.LookPath(name) // no path if it is not there
		}
	}
	if path == "" {
		missing(t, "this test needs Chromium in PATH or its path in CHROMIUM (Debian: apt-get install chromium)")
	}

	// Not a t.TempDir: helper processes of the browser may outlive it for a moment and write there.
	profile, err := os.MkdirTemp(shared, "chromium-")
	if err != nil {
		t.Fatal(err)
	}
	flags := []chromedp.ExecAllocatorOption{
		chromedp.ExecPath(path),
		chromedp.UserDataDir(profile),
		chromedp.Env("TMPDIR=" + profile), // where it leaves a socket behind
		chromedp.NoFirstRun,
		chromedp.NoDefaultBrowserCheck,
		chromedp.Headless,
		chromedp.DisableGPU,
		// Nothing but the pages under test: no update, no report, no experiment.
		chromedp.Flag("disable-quic", true),
		chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-sync", true),
		chromedp.Flag("disable-extensions", true),
		chromedp.Flag("disable-dev-shm-usage", true), // containers have little of it
		chromedp.Flag("no-proxy-server", true),
		chromedp.WSURLReadTimeout(time.Minute),
	}
	if os.Geteuid() == 0 {
		flags = append(flags, chromedp.NoSandbox) // Chromium has no sandbox for root
	}
	ctx, cancel := chromedp.NewExecAllocator(context.Background(), append(flags, more...)...)
	t.Cleanup(cancel) // waits for the browser to end
	ctx, cancel = chromedp.NewContext(ctx, chromedp.WithErrorf(t.Logf))
	t.Cleanup(cancel)
	if err := chromedp.Do(ctx); err != nil {
		t.Fatalf("starting %s: %v", path, err)
	}
	return ctx
}

// browse runs steps in a tab.
func browse(t *testing.T, tab context.Context, what string, steps ...chromedp.Action[chromedp.Void]) {
	t.Helper()
	ctx, cancel := context.WithTimeout(tab, 30*time.Second)
	defer cancel()
	if err := chromedp.Do(ctx, steps...); err != nil {
		t.Fatalf("%s: %v\nin the tab:\n%s", what, err, source(tab))
	}
}

// evaluate runs JavaScript in a tab.
func evaluate[T any](t *testing.T, tab context.Context, script string) T {
	t.Helper()
	ctx, cancel := context.WithTimeout(tab, 30*time.Second)
	defer cancel()
	result, err := chromedp.Run(ctx, chromedp.Evaluate[T](script))
	if err != nil {
		t.Fatalf("%s: %v\nin the tab:\n%s", script, err, source(tab))
	}
	return result
}

// waitFor waits until JavaScript says true in a tab. It asks from outside: a hidden tab's own timers are slow.
func waitFor(t *testing.T, tab context.Context, script string) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	eventually(t, time.Minute, script, func() bool {
		if evaluate[bool](t, tab, script) {
			return true
		}
		if time.Now().After(deadline) {
			t.Fatalf("after 30 s, still not: %s\nin the tab:\n%s", script, source(tab))
		}
		return false
	})
}

// source is what a tab holds, for a failure's message.
func source(tab context.Context) string {
	ctx, cancel := context.WithTimeout(tab, 5*time.Second)
	defer cancel()
	text, err := chromedp.Run(ctx, chromedp.Evaluate[string](`location.href + "\n" + document.documentElement.outerHTML`))
	if err != nil {
		return err.Error()
	}
	return text
}

// newTab opens another tab of the same browser, as an operator does who keeps the status page open.
func newTab(t *testing.T, tab context.Context) context.Context {
	t.Helper()
	ctx, cancel := chromedp.NewContext(tab)
	t.Cleanup(cancel)
	// The tab is made by the first use of its context and ends with the context of that use: this one, not a step's.
	if err := chromedp.Do(ctx); err != nil {
		t.Fatal(err)
	}
	return ctx
}

// TestBrowserFixtureShowsAPage says, when a test in the browser fails, whether the browser is to blame.
func TestBrowserFixtureShowsAPage(t *testing.T) {
	parallel(t)
	a := startAPI(t, func(string) bool { return false })
	tab := startBrowser(t)
	browse(t, tab, "opening a page", chromedp.Navigate(a.URL))
	if got := evaluate[string](t, tab, `document.body.innerText`); got == "" {
		t.Fatal("the page is empty")
	}
	other := newTab(t, tab)
	browse(t, other, "opening a page in another tab", chromedp.Navigate(a.URL+"/second"))
	if got := evaluate[string](t, other, `location.pathname`); got != "/second" {
		t.Fatalf("the other tab is at %q", got)
	}
	targets, err := chromedp.Targets(tab)
	if err != nil {
		t.Fatal(err)
	}
	pages := 0
	for _, tg := range targets {
		if tg.Type == "page" {
			pages++
		}
	}
	if pages != 2 {
		t.Fatalf("the browser has %d pages open, want 2", pages)
	}
}
