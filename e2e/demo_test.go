package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// demo is `go run ./demo`, running.
type demo struct {
	*process
	home string
	url  string // of the proxy
}

// startDemo runs the demo on a free port.
func startDemo(t *testing.T, flags ...string) *demo {
	t.Helper()
	binary, err := demoBinary()
	if err != nil {
		t.Fatal(err)
	}
	listen := "127.0.0.1:" + freePort(t)
	d := &demo{home: newHome(t), url: "http://" + listen}
	cmd := exec.Command(binary, append([]string{"--listen", listen}, flags...)...)
	cmd.Dir, cmd.Env = d.home, environment(d.home)
	d.process = startProcess(t, cmd)
	eventually(t, patience, "the demo serves", func() bool {
		if !d.running() {
			t.Fatalf("the demo ended: %v", d.err)
		}
		return listening(listen)
	})
	return d
}

// interrupt is Ctrl-C, after which nothing may be left.
func (d *demo) interrupt(t *testing.T) {
	t.Helper()
	d.stop(t, syscall.SIGINT)
	if d.err != nil {
		t.Errorf("Ctrl-C: the demo ended with %v", d.err)
	}
	if listening(strings.TrimPrefix(d.url, "http://")) {
		t.Error("Ctrl-C: something still listens on the demo's port")
	}
	for line := range strings.SplitSeq(listing(t, d.home), "\n") {
		// The folders that the test made.
		if name := filepath.Base(line); line != "" && !strings.HasPrefix(line, "d") {
			t.Errorf("Ctrl-C: the file %s is left", name)
		}
	}
	if left, err := os.ReadDir(filepath.Join(d.home, "tmp")); err != nil || len(left) != 0 {
		t.Errorf("Ctrl-C: %d temporary files or folders are left: %v (%v)", len(left), left, err)
	}
}

// TestDemoApprovesItself is what a stranger runs first, without a browser.
func TestDemoApprovesItself(t *testing.T) {
	parallel(t, demoBinary)
	d := startDemo(t, "--auto-approve", "--token-lifetime", "4s")
	var first reply
	every(t, 250*time.Millisecond, patience, "the demo serves the API's answer", func() bool {
		first = get(t, client(t), d.url+"/", "")
		return first.status == 200
	})
	// More than two lifetimes of a token: the calls go on being served.
	began := time.Now()
	every(t, 500*time.Millisecond, time.Minute, "two token lifetimes", func() bool {
		if res := get(t, client(t), d.url+"/", ""); res.status != 200 {
			t.Fatalf("%v after the first answer: %d %s", time.Since(began), res.status, res.body)
		}
		return time.Since(began) > 9*time.Second
	})
	for _, what := range []string{d.url, "/.device-flow"} {
		if !strings.Contains(d.output.String(), what) {
			t.Errorf("the demo does not say what to open: no %s in its output", what)
		}
	}
	d.interrupt(t)
}

// TestDemoInABrowser is what a stranger sees: the code and the QR code on one page, the approval on another, and the
// first page changing by itself.
func TestDemoInABrowser(t *testing.T) {
	parallel(t, demoBinary)
	page := startBrowser(t)
	d := startDemo(t)

	// A device calls and is told where the operator finds the code.
	c := &caddy{process: d.process, url: d.url}
	code := c.callForCode(t).UserCode
	if code == "" {
		t.Fatal("no code")
	}
	link := c.status(t).Login.VerificationURIComplete

	browse(t, page, "opening the status page",
		chromedp.EmulateViewport(1280, 900),
		chromedp.Navigate(d.url+"/.device-flow"),
	)
	waitFor(t, page, fmt.Sprintf(`document.body.innerText.includes(%q)`, code))
	if !evaluate[bool](t, page, `[...document.querySelectorAll('svg, img')].some(e => {
		const box = e.getBoundingClientRect();
		return box.width >= 80 && box.height >= 80 && Math.abs(box.width - box.height) < 2 &&
			(e.tagName !== 'IMG' || e.naturalWidth > 0);
	})`) {
		t.Error("the page shows no QR code")
	}
	if !evaluate[bool](t, page, fmt.Sprintf(`[...document.links].some(a => a.href === %q)`, link)) {
		t.Errorf("the page has no link to %s", link)
	}
	// Gone after a reload: the page must change without one.
	evaluate[bool](t, page, `window.marked = true`)

	approval := newTab(t, page)
	browse(t, approval, "opening the approval page", chromedp.Navigate(link))
	if !evaluate[bool](t, approval, fmt.Sprintf(`[document.body.innerText, ...[...document.querySelectorAll('input')]
		.map(i => i.value)].some(text => text.includes(%q))`, code)) {
		t.Errorf("the approval page does not show the code %s", code)
	}
	evaluate[chromedp.Void](t, approval, `(() => {
		const button = [...document.querySelectorAll('button, input[type=submit]')]
			.find(b => /approve|allow|confirm|continue|yes/i.test(b.innerText || b.value));
		if (!button) throw new Error('no button to approve with');
		button.click();
	})()`)

	waitFor(t, page, fmt.Sprintf(`(text => !text.includes(%q) && /connected|authorized/i.test(text))(document.body.innerText)`, code))
	if !evaluate[bool](t, page, `window.marked === true`) {
		t.Error("the page changed by being loaded again")
	}
	if got := c.status(t).State; got != "authorized" {
		t.Errorf("the page says connected, but the state is %q", got)
	}
	if res := get(t, client(t), d.url+"/", ""); res.status != 200 {
		t.Errorf("a call after the approval: %d %s", res.status, res.body)
	}
	d.interrupt(t)
}
