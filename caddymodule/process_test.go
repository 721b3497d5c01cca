package caddymodule

import (
	"flag"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// TestMain has more parallel tests at a time than there are processors, unless the command line says how many: those
// here have processes of their own, and wait.
func TestMain(m *testing.M) {
	flag.Parse()
	told := false
	flag.Visit(func(f *flag.Flag) { told = told || f.Name == "test.parallel" })
	if !told && runtime.GOMAXPROCS(0) < 4 {
		_ = flag.Set("test.parallel", "4") // a number is fine
	}
	os.Exit(m.Run())
}

// processOf names, in the environment, the test that a process has been made for.
const processOf = "DEVICE_FLOW_PROCESS_OF"

// apart runs the test in a process of its own, and reports whether this is that process. There is one Caddy in a
// process, and these tests wait most of the time, for tokens to grow old: apart, they wait beside each other.
func apart(t *testing.T) bool {
	t.Helper()
	if hasProcess(t) {
		return true
	}
	ownProcess(t)
	return false
}

// eachApart runs f for each case, all at once.
func eachApart[T any](t *testing.T, cases map[string]T, f func(t *testing.T, c T)) {
	t.Helper()
	t.Parallel()
	var wg sync.WaitGroup
	for name, c := range cases {
		// Not as parallel subtests: there are no more of those at a time than there are processors.
		wg.Go(func() {
			t.Run(name, func(t *testing.T) {
				if apart(t) {
					f(t, c)
				}
			})
		})
	}
	wg.Wait()
}

// hasProcess reports whether this process is the test's own.
func hasProcess(t *testing.T) bool { return os.Getenv(processOf) == t.Name() }

// ownProcess runs this very test, and no other, in a process of its own, with more in its environment.
func ownProcess(t *testing.T, env ...string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	names := strings.Split(t.Name(), "/")
	for i, name := range names {
		names[i] = "^" + regexp.QuoteMeta(name) + "$"
	}
	cmd := exec.CommandContext(t.Context(), self, "-test.v", "-test.timeout=5m", "-test.run="+strings.Join(names, "/"))
	cmd.Env = append(append(os.Environ(), processOf+"="+t.Name()), env...)
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(out), "--- PASS: "+t.Name()+" (") {
		t.Fatal("the process has not run the test")
	}
}
