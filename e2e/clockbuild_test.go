package e2e

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// clockCaddy is a Caddy whose wall clock a test can set. Go asks the kernel for the time without the C library, so
// that no preloaded library can give it another; this Caddy is built with a changed copy of the standard library's
// package time. All that is in it, Caddy and certmagic too, sees the changed clock. Monotonic readings and timers stay
// true, as they do when a real clock is set. So do the times of files, which the kernel writes.
//
// The go command keeps the packages that it compiled for this: only the first run takes long. The race detector would
// double that and finds nothing new here.
var clockCaddy = sync.OnceValues(func() (string, error) {
	overlay, err := overlayTime()
	if err != nil {
		return "", err
	}
	return build("clock-caddy", "./cmd/caddy", "-overlay", overlay)
})

// overlayTime writes the changed package time and returns the file that tells the go command of it. What it writes
// depends on nothing but the Go release, or the compiled packages could not be used again.
func overlayTime() (string, error) {
	list := exec.Command("go", "list", "-f", "{{.Dir}}", "time") // in the go command's own spelling, which counts
	list.Dir = ".."
	folder, err := list.Output()
	if err != nil {
		return "", fmt.Errorf("go list time: %w", err)
	}
	original := filepath.Join(strings.TrimSpace(string(folder)), "time.go")
	source, err := os.ReadFile(original)
	if err != nil {
		return "", err
	}
	text := string(source)
	for _, change := range []struct{ from, to string }{
		{"import (\n\t\"errors\"\n\t\"math/bits\"\n\t_ \"unsafe\" // for go:linkname\n)\n", clockImports},
		{"\nfunc Now() Time {\n\tsec, nsec, mono := runtimeNow()\n", clockNow},
	} {
		if n := strings.Count(text, change.from); n != 1 {
			return "", fmt.Errorf("%s has changed: it holds %d times what the tests of the clock replace, want once:\n%s", original, n, change.from)
		}
		text = strings.Replace(text, change.from, change.to, 1)
	}
	changed, overlay := filepath.Join(shared, "clock-time.go"), filepath.Join(shared, "clock-overlay.json")
	replace, err := json.Marshal(map[string]any{"Replace": map[string]string{original: changed}})
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(changed, []byte(text), 0o600); err != nil {
		return "", err
	}
	return overlay, os.WriteFile(overlay, replace, 0o600)
}

// clockVariable names the file with the shift of the wall clock: one integer of 64 bits in the machine's byte order,
// in seconds. The process maps it into its memory, so that what is written there is in force at that instant.
const clockVariable = "DEVICEFLOW_CLOCK"

const clockImports = `import (
	"errors"
	"math/bits"
	"sync/atomic"
	"syscall"
	"unsafe"
)

var clockShift = mapClockShift()

func mapClockShift() *int64 {
	name, ok := syscall.Getenv("` + clockVariable + `")
	if !ok {
		return nil
	}
	fd, err := syscall.Open(name, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		panic("` + clockVariable + `: " + err.Error())
	}
	b, err := syscall.Mmap(fd, 0, 8, syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		panic("` + clockVariable + `: " + err.Error())
	}
	syscall.Close(fd)
	return (*int64)(unsafe.Pointer(&b[0]))
}
`

const clockNow = `
func Now() Time {
	sec, nsec, mono := runtimeNow()
	if clockShift != nil {
		sec += atomic.LoadInt64(clockShift)
	}
`

// wallClock is the wall clock of one Caddy.
type wallClock struct {
	c    *caddy
	file string
}

// newWallClock gives a Caddy that has not been started a wall clock of its own, which is right to begin with.
func newWallClock(t *testing.T, c *caddy) wallClock {
	t.Helper()
	binary, err := clockCaddy()
	if err != nil {
		t.Fatal(err)
	}
	w := wallClock{c, filepath.Join(c.home, "clock")}
	c.binary, c.env = binary, append(c.env, clockVariable+"="+w.file)
	w.write(t, 0)
	return w
}

// set makes the clock wrong by so much, in whole seconds, from this instant on. A Caddy that runs must show it, or
// the test would prove nothing.
func (w wallClock) set(t *testing.T, wrong time.Duration) {
	t.Helper()
	w.write(t, wrong)
	if w.c.process != nil && w.c.running() {
		w.requireShift(t, wrong)
	}
}

func (w wallClock) write(t *testing.T, wrong time.Duration) {
	t.Helper()
	f, err := os.OpenFile(w.file, os.O_WRONLY|os.O_CREATE, 0o600) // not truncated: it may be in use
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(binary.NativeEndian.AppendUint64(nil, uint64(wrong/time.Second)), 0); err != nil {
		t.Fatal(err)
	}
}

// requireShift looks at the clock of a Caddy that runs.
func (w wallClock) requireShift(t *testing.T, wrong time.Duration) {
	t.Helper()
	date := get(t, client(t), w.c.url+"/.device-flow", "application/json").header.Get("Date")
	shown, err := http.ParseTime(date)
	if off := time.Until(shown); err != nil || (off-wrong).Abs() > 5*time.Second {
		t.Fatalf("the Caddy whose clock is to be wrong by %v says that it is %q: its time package was not replaced", wrong, date)
	}
}
