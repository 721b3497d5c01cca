package e2e

import (
	"flag"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"
)

// shared holds the built binaries; TestMain makes and removes it.
var shared string

// atOnce is how many tests that call parallel run at the same time. What they do, mostly, is wait: for the next poll, for
// a token to lapse. The default, one for each processor, would have the processors wait, too. `go test -parallel` has
// the last word.
const atOnce = 8

func TestMain(m *testing.M) {
	os.Exit(func() int {
		err := flag.Set("test.parallel", strconv.Itoa(max(atOnce, runtime.GOMAXPROCS(0))))
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		if shared, err = os.MkdirTemp("", "deviceflow-e2e-"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(shared)
		return m.Run()
	}())
}

// readSources looks at each file of the module that the programs under test are made of. The go command notes what a
// test looks at and runs it again when that has changed; of the packages that the test merely has built it knows
// nothing, and would go on reporting an old success. It notes nothing before m.Run, hence not in TestMain.
func readSources() error {
	return filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == ".git" || d.Name() == "node_modules"):
			return filepath.SkipDir
		case d.IsDir() || filepath.Ext(path) == ".md":
			return nil
		}
		_, err = os.Stat(path)
		return err
	})
}

// build compiles a package of this module, without what debuggers need: linking it would take as long as all the rest.
func build(name, pkg string, flags ...string) (string, error) {
	if err := readSources(); err != nil {
		return "", err
	}
	output := filepath.Join(shared, name)
	cmd := exec.Command("go", slices.Concat([]string{"build", "-ldflags=-w", "-o", output}, flags, []string{pkg})...)
	cmd.Dir = ".."
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%v: %w\n%s", cmd.Args, err, out)
	}
	return output, nil
}

// builder compiles a package of this module once for all tests. When the tests run with the race detector, so does
// what they test: races between requests, refreshes and reloads show up in the process, not in the test.
func builder(pkg, name string) func() (string, error) {
	var flags []string
	if raceEnabled {
		flags = append(flags, "-race")
	}
	return sync.OnceValues(func() (string, error) { return build(name, pkg, flags...) })
}

var (
	caddyBinary = builder("./cmd/caddy", "caddy")
	demoBinary  = builder("./demo", "demo")
)

// parallel has a test run beside others, once all that do not call this have ended. Those measure, or need the processors
// for themselves. Caddy and what else it needs is built before: a compiler at work would upset tests that look at the
// clock. What cannot be built or installed, the test itself reports.
func parallel(t *testing.T, needs ...func() (string, error)) {
	t.Helper()
	for _, build := range append(needs, caddyBinary) {
		_, _ = build()
	}
	t.Parallel()
}

// missing ends a test for want of a program: by skipping it, or, where DEVICEFLOW_E2E=1 says that all must run, by
// failing it.
func missing(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("DEVICEFLOW_E2E") == "1" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// needLinux ends a test that looks into /proc, or uses a tool as Linux has it, as missing does.
func needLinux(t *testing.T) {
	t.Helper()
	if runtime.GOOS != "linux" {
		missing(t, "this test needs Linux")
	}
}

// patience is for what is sure to happen, if later on a busy machine. A test that means a certain time names it.
const patience = time.Minute

// eventually waits for something that another process does.
func eventually(t *testing.T, limit time.Duration, what string, done func() bool) {
	t.Helper()
	every(t, 50*time.Millisecond, limit, what, done)
}

// every calls done at that pace until it says true.
func every(t *testing.T, pace, limit time.Duration, what string, done func() bool) {
	t.Helper()
	ticker := time.NewTicker(pace)
	defer ticker.Stop()
	deadline := time.After(limit)
	for !done() {
		select {
		case <-ticker.C:
		case <-deadline:
			t.Fatalf("after %v, still not: %s", limit, what)
		}
	}
}

// handedOut holds the ports that freePort gave.
var handedOut sync.Map

// freePort is a port for a program under test, which nothing listens on. It is none of those that the system gives to
// outgoing connections and to listeners on port 0 (on Linux from 32768): one of these could be gone by the time the
// program listens.
func freePort(t *testing.T) string {
	t.Helper()
	for range 100 {
		port := strconv.Itoa(12000 + rand.IntN(20000))
		if _, taken := handedOut.LoadOrStore(port, true); taken {
			continue
		}
		if l, err := net.Listen("tcp", "127.0.0.1:"+port); err == nil {
			_ = l.Close()
			return port
		}
	}
	t.Fatal("no free port")
	return ""
}

// client follows no redirect, reuses no connection between tests, and cannot hang for ever.
func client(t *testing.T) *http.Client {
	t.Helper()
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{
		Transport:     transport,
		Timeout:       2 * time.Minute,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// reply is an answer read to its end.
type reply struct {
	status int
	header http.Header
	body   string
}

// do sends a request and reads the whole answer.
func do(t *testing.T, c *http.Client, r *http.Request) reply {
	t.Helper()
	res, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("%s %s: reading the answer: %v", r.Method, r.URL, err)
	}
	return reply{res.StatusCode, res.Header, string(body)}
}

// get is a GET with an Accept header, or without one if it is empty.
func get(t *testing.T, c *http.Client, url, accept string) reply {
	t.Helper()
	r, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if accept != "" {
		r.Header.Set("Accept", accept)
	}
	return do(t, c, r)
}
