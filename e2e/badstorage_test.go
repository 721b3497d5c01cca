package e2e

import (
	"bytes"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// breakage is a way in which storage stops taking records while Caddy runs, and what undoes it.
type breakage struct {
	name           string
	spoil, restore func(t *testing.T, c *caddy, folder string)
}

// breakages work for root, too, whom no mode keeps out.
var breakages = []breakage{
	{
		"no byte can be written",
		func(t *testing.T, c *caddy, _ string) { limitFiles(t, c, "0") },
		func(t *testing.T, c *caddy, _ string) { limitFiles(t, c, "unlimited") },
	},
	{
		"disk full in the middle of a record",
		func(t *testing.T, c *caddy, _ string) { limitFiles(t, c, "100") },
		func(t *testing.T, c *caddy, _ string) { limitFiles(t, c, "unlimited") },
	},
	{
		"a file in place of the folder",
		func(t *testing.T, _ *caddy, folder string) {
			if err := os.Rename(filepath.Join(folder, "device_flow"), filepath.Join(folder, "elsewhere")); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(folder, "device_flow"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		},
		func(t *testing.T, _ *caddy, folder string) {
			if err := os.Remove(filepath.Join(folder, "device_flow")); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(filepath.Join(folder, "elsewhere"), filepath.Join(folder, "device_flow")); err != nil {
				t.Fatal(err)
			}
		},
	},
}

// limitFiles bounds the size of the files that a running Caddy may write, in bytes.
func limitFiles(t *testing.T, c *caddy, size string) {
	t.Helper()
	needLinux(t)
	out, err := exec.Command("prlimit", "--pid", strconv.Itoa(c.cmd.Process.Pid), "--fsize="+size+":unlimited").CombinedOutput()
	if err != nil {
		t.Fatalf("prlimit: %v %s", err, out)
	}
}

// TestStorageThatFailsCostsNoCall has the storage fail while tokens are renewed: Caddy serves from memory and says
// that something is wrong; once the storage works again, the newest tokens are in it.
func TestStorageThatFailsCostsNoCall(t *testing.T) {
	parallel(t)
	for _, b := range breakages {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			const lifetime = 3 * time.Second
			as := startAS(t, lifetime)
			issued := watchIssued(as)
			a := startAPI(t, as.ValidToken)
			c := newCaddy(t, onShared(site("device", "offline_access")), as.Issuer(), a.URL)
			folder := share(t, c)
			c.start(t)
			c.login(t)
			calls := callEvery(t, c.url+"/", 50*time.Millisecond)

			b.spoil(t, c, folder)
			for range 3 {
				awaitRefresh(t, as, 3*lifetime)
			}
			eventually(t, lifetime, "the state is degraded", func() bool { return c.status(t).State == "degraded" })
			if s := c.status(t); s.Error == nil || s.Error.Code != "storage_failed" {
				t.Errorf("the status does not name the storage: %+v", s.Error)
			}
			b.restore(t, c, folder)
			// The pause between attempts is 30 s at most.
			eventually(t, patience, "the storage is in use again", func() bool { return c.status(t).State == "authorized" })
			calls.requireGood(t, "while the storage failed")
			// A kill between a refresh and its save is another test's: this one comes just after both, when the next
			// is far away.
			issued.awaitSaved(t, folder, 2*lifetime)
			c.kill(t)
			if !strings.Contains(c.output.String(), "stor") {
				t.Error("the log says nothing of the storage")
			}
			if saved, leftovers := recordAndLeftovers(t, folder); saved != issued.latest() || len(leftovers) > 0 {
				t.Errorf("the newest refresh token is on disk: %t; %d unfinished files", saved == issued.latest(), len(leftovers))
			}
			c.start(t)
			c.login(t)
			if got := as.Stats(); got.DeviceRequests != 1 || got.Reuses != 0 {
				t.Errorf("%d codes and %d reuses, want 1 and 0", got.DeviceRequests, got.Reuses)
			}
		})
	}
}

// TestStartWithoutStorageAndServer has neither a folder nor an authorization server when Caddy starts: it starts all
// the same, serves its other sites and keeps the status page; a reload is as quick. Then both come back.
func TestStartWithoutStorageAndServer(t *testing.T) {
	parallel(t)
	as := startAS(t, time.Hour)
	a := startAPI(t, as.ValidToken)
	config := onShared(site("device", "offline_access") + "\nhttp://:{$PORT2} {\n\tbind 127.0.0.1\n\trespond \"other site\"\n}\n")
	c := newCaddy(t, config, as.Issuer(), a.URL)
	folder := share(t, c)
	if err := os.WriteFile(folder, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	down(as)
	began := time.Now()
	c.start(t)
	c.reload(t, strings.Replace(config, "other site", "changed site", 1))
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("start and reload took %v", took)
	}
	if res := get(t, client(t), c.url2, ""); res.body != "changed site" {
		t.Errorf("the other site: %d %s", res.status, res.body)
	}
	if got := c.status(t).State; got != "unavailable" {
		t.Errorf("the state is %q, want unavailable", got)
	}
	_ = c.problem(t)
	if err := os.Remove(folder); err != nil {
		t.Fatal(err)
	}
	up(as)
	every(t, 250*time.Millisecond, patience, "calls are served", func() bool { return get(t, client(t), c.url+"/", "").status == 200 })
	eventually(t, patience, "the login is stored", func() bool { return c.status(t).State == "authorized" })
	if saved, _ := recordAndLeftovers(t, folder); saved == "" {
		t.Error("the login is not on disk")
	}
}

// TestDamagedRecordIsKeptAndAsksForALogin starts Caddy with each kind of damage to the stored login. The state says
// what to do, nothing is overwritten in silence, and after a login all is well for good.
func TestDamagedRecordIsKeptAndAsksForALogin(t *testing.T) {
	parallel(t)
	noise := make([]byte, 4096)
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(noise) // never fails
	for name, damage := range map[string]func(good []byte) []byte{
		"empty":     func([]byte) []byte { return nil },
		"truncated": func(good []byte) []byte { return good[:len(good)*2/3] },
		"NULs":      func(good []byte) []byte { return make([]byte, len(good)) },
		"noise":     func([]byte) []byte { return noise },
		"no member": func([]byte) []byte { return []byte("{}") },
		"null":      func([]byte) []byte { return []byte("null") },
		"deep":      func([]byte) []byte { return bytes.Repeat([]byte("["), 1<<20) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			as, path, good, c := storedLogin(t)
			bad := damage(good)
			if err := os.WriteFile(path, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			c.start(t)
			requireLoginAsked(t, c)
			if got, err := os.ReadFile(path + ".refused"); err != nil || !bytes.Equal(got, bad) {
				t.Errorf("the damaged record is not kept: %d bytes, %v, want %d", len(got), err, len(bad))
			}
			c.login(t)
			c.kill(t)
			c.start(t)
			c.login(t)
			if got := as.Stats(); got.DeviceRequests != 2 || got.Reuses != 0 {
				t.Errorf("%d codes, %d reuses; want one login, and one more after the damage", got.DeviceRequests, got.Reuses)
			}
		})
	}

	t.Run("folder", func(t *testing.T) {
		t.Parallel()
		as, path, good, c := storedLogin(t)
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(path, "sub"), 0o700); err != nil {
			t.Fatal(err)
		}
		kept := filepath.Join(path, "sub", "kept")
		if err := os.WriteFile(kept, good, 0o600); err != nil {
			t.Fatal(err)
		}
		c.start(t)
		every(t, 250*time.Millisecond, patience, "calls are served all the same", func() bool {
			return get(t, client(t), c.url+"/", "").status == 200
		})
		if s := c.status(t); s.State != "authorized" {
			t.Errorf("the login is not stored: %+v", s)
		}
		kept = filepath.Join(path+".refused-folder", "sub", "kept")
		if got, err := os.ReadFile(kept); err != nil || !bytes.Equal(got, good) {
			t.Errorf("what was in the folder is gone: %v", err)
		}
		if got := as.Stats().DeviceRequests; got != 2 {
			t.Errorf("%d codes, want 2", got)
		}
	})

	t.Run("gigabyte", func(t *testing.T) {
		t.Parallel()
		_, path, _, c := storedLogin(t)
		if err := os.Truncate(path, 1<<30); err != nil {
			t.Fatal(err)
		}
		c.start(t)
		requireLoginAsked(t, c)
		c.login(t)
		peak := memory(t, c, "VmHWM") >> 10
		t.Logf("memory: %d MiB at most", peak)
		if peak > 400 {
			t.Errorf("a record of 1 GiB took %d MiB of memory", peak)
		}
	})

	t.Run("newer", func(t *testing.T) {
		t.Parallel()
		as, path, good, c := storedLogin(t)
		newer := bytes.Replace(good, []byte(`"version":1`), []byte(`"version":99`), 1)
		if bytes.Equal(newer, good) {
			t.Fatal("the record has no version")
		}
		if err := os.WriteFile(path, newer, 0o600); err != nil {
			t.Fatal(err)
		}
		c.start(t)
		c.login(t) // a new one, which is not stored
		c.kill(t)
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, newer) {
			t.Errorf("the record of a newer release is changed (%v)", err)
		}
		if got := as.Stats().DeviceRequests; got != 2 {
			t.Errorf("%d codes, want 2", got)
		}
	})
}

// requireLoginAsked waits until the stored login has been looked at, and requires that another is asked for.
func requireLoginAsked(t *testing.T, c *caddy) {
	t.Helper()
	state := ""
	eventually(t, patience, "the stored login has been read", func() bool {
		state = c.status(t).State
		return state != "unavailable"
	})
	if state != "login_required" {
		t.Errorf("with a damaged record the state is %q, want login_required", state)
	}
}

// storedLogin leaves a Caddy that has ended with a login on disk.
func storedLogin(t *testing.T) (as *flowtest.Server, path string, content []byte, c *caddy) {
	t.Helper()
	as, _, c = startProxy(t, time.Hour)
	c.kill(t)
	for p, text := range filesBelow(t, recordsOf(c)) {
		if path != "" {
			t.Fatalf("there are two records: %s and %s", path, p)
		}
		path, content = p, []byte(text)
	}
	return as, path, content, c
}
