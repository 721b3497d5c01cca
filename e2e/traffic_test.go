package e2e

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// long says that there is time for the counts that the project promises; without it, tests take a sample.
var long = os.Getenv("DEVICEFLOW_LONG") == "1"

// sample is a count for every run, or a larger one for a long run.
func sample(short, whole int) int {
	if long {
		return whole
	}
	return short
}

// traffic calls a site at a steady pace, one call after the other, and keeps count.
type traffic struct {
	quit, ended chan struct{}

	mu      sync.Mutex
	good    int
	bad     []string // what came in place of a 200, and when
	slowest time.Duration
}

// callEvery starts calls; end stops them.
func callEvery(t *testing.T, url string, pace time.Duration) *traffic {
	t.Helper()
	f := &traffic{quit: make(chan struct{}), ended: make(chan struct{})}
	c := client(t)
	go func() {
		defer close(f.ended)
		ticker := time.NewTicker(pace)
		defer ticker.Stop()
		for {
			began := time.Now()
			problem := call(c, url)
			f.mu.Lock()
			f.slowest = max(f.slowest, time.Since(began))
			if problem == "" {
				f.good++
			} else {
				f.bad = append(f.bad, began.Format("15:04:05.000 ")+problem)
			}
			f.mu.Unlock()
			select {
			case <-ticker.C:
			case <-f.quit:
				return
			}
		}
	}()
	t.Cleanup(func() { f.end() })
	return f
}

// call is one GET; it says what is wrong with the answer, or nothing.
func call(c *http.Client, url string) string {
	res, err := c.Get(url)
	if err != nil {
		return err.Error()
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return err.Error()
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Sprintf("%d Retry-After=%q %s", res.StatusCode, res.Header.Get("Retry-After"), body)
	}
	return ""
}

// end stops the calls. It may be called again.
func (f *traffic) end() {
	select {
	case <-f.quit:
	default:
		close(f.quit)
	}
	<-f.ended
}

// requireGood ends the traffic and requires that calls were made and every one was served.
func (f *traffic) requireGood(t *testing.T, what string) {
	t.Helper()
	f.end()
	if f.good == 0 {
		t.Errorf("%s: no call was served", what)
	}
	if len(f.bad) > 0 {
		t.Errorf("%s: %d of %d calls failed:\n%s", what, len(f.bad), len(f.bad)+f.good, strings.Join(f.bad[:min(len(f.bad), 5)], "\n"))
	}
}

// share lets Caddies keep their logins in one folder, which it returns.
func share(t *testing.T, nodes ...*caddy) string {
	t.Helper()
	folder := filepath.Join(t.TempDir(), "shared")
	for _, c := range nodes {
		c.env = append(c.env, "STORAGE="+folder)
	}
	return folder
}

// onShared puts a Caddyfile's Caddy on the folder of share.
func onShared(caddyfile string) string {
	return "{\n\tstorage file_system {$STORAGE}\n}\n" + caddyfile
}
