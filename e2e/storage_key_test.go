package e2e

import (
	"archive/tar"
	"encoding/base64"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// anyUmask runs a command with an umask that allows everything.
var anyUmask = []string{"sh", "-c", `umask 0; exec "$@"`, "sh"}

// keyedSite is the short form with an encryption_key that stands in a file.
func keyedSite() string {
	return strings.Replace(site("device", "offline_access"), "\t\tclient_id", "\t\tencryption_key {file.{$HOME}/key}\n\t\tclient_id", 1)
}

// writeKey writes the key that keyedSite names, as `openssl rand -base64 32` makes it.
func (c *caddy) writeKey(t *testing.T, b byte) {
	t.Helper()
	c.writeFile(t, "key", base64.StdEncoding.EncodeToString([]byte(strings.Repeat(string(b), 32)))+"\n")
}

// TestStorageMovesToAnotherMachine takes a login from one Caddy to another by `caddy storage export` and `import`:
// the new one goes on without asking anybody. What is in the archive can be used by whoever has it, unless it is
// sealed: then only with the key.
func TestStorageMovesToAnotherMachine(t *testing.T) {
	parallel(t)
	for name, config := range map[string]string{"clear text": site("device", "offline_access"), "sealed": keyedSite()} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sealed := name == "sealed"
			as := startAS(t, time.Hour)
			issued := watchIssued(as)
			a := startAPI(t, as.ValidToken)
			old := newCaddy(t, config, as.Issuer(), a.URL)
			old.writeKey(t, 'k')
			old.start(t)
			old.login(t)
			old.stop(t, os.Interrupt)
			archive := filepath.Join(old.home, "backup.tar")
			if out, err := old.run(t, "storage", "export", "--config", old.file, "--output", archive); err != nil {
				t.Fatalf("caddy storage export: %v\n%s", err, out)
			}
			records := recordsIn(t, archive)
			if len(records) != 1 || issued.latest() == "" {
				t.Fatalf("the archive has %d records", len(records))
			}
			for record, text := range records {
				for _, secret := range []string{issued.latest(), a.tokens()[0]} {
					if strings.Contains(text, secret) == sealed {
						t.Errorf("%s holds a token to be read: %t", record, !sealed)
					}
				}
			}

			begin := func(key byte) *caddy {
				t.Helper()
				c := newCaddy(t, config, as.Issuer(), a.URL)
				c.writeKey(t, key)
				c.wrapper = anyUmask
				cmd := c.command("storage", "import", "--config", c.file, "--input", archive)
				wrapped := exec.Command(anyUmask[0], append(anyUmask[1:], cmd.Args...)...)
				wrapped.Dir, wrapped.Env = cmd.Dir, cmd.Env
				if out, err := wrapped.CombinedOutput(); err != nil {
					t.Fatalf("caddy storage import: %v\n%s", err, out)
				}
				c.start(t)
				return c
			}
			if sealed {
				c := begin('x')
				eventually(t, patience, "the stored login has been read", func() bool { return c.status(t).State != "unavailable" })
				for range 5 {
					if p := c.problem(t); p.State != "misconfigured" || !strings.Contains(p.Detail, "encryption_key") {
						t.Errorf("with another key: %+v", p)
					}
				}
				if s := c.status(t); s.Error == nil || s.Error.Code != "storage_sealed" || s.Error.Action != "fix_configuration" {
					t.Errorf("with another key: %+v", s)
				}
				c.stop(t, syscall.SIGTERM)
				for path, text := range filesBelow(t, recordsOf(c)) {
					if text != records["device_flow/"+filepath.Base(path)] {
						t.Errorf("with another key, %s was changed", filepath.Base(path))
					}
				}
			}
			c := begin('k')
			c.login(t)
			before := issued.latest()
			if res := c.ask(t, "POST", "/device_flow/sessions/default/refresh"); res.status != 200 || issued.latest() == before {
				t.Errorf("refresh: %d %s", res.status, res.body)
			}
			c.kill(t)
			for path, text := range filesBelow(t, recordsOf(c)) {
				if !killedWrite(filepath.Base(path)) && strings.Contains(text, issued.latest()) == sealed {
					t.Errorf("%s: the new refresh token is to be read: %t", filepath.Base(path), !sealed)
				}
			}
			requirePrivate(t, recordsOf(c))
			c.start(t)
			c.login(t)
			if got := as.Stats(); got.DeviceRequests != 1 || got.Reuses != 0 {
				t.Errorf("%d codes and %d reuses, want 1 and 0", got.DeviceRequests, got.Reuses)
			}
		})
	}
}

// TestKeyRotatesByAReload rotates the key of a running Caddy in the way that the README describes, by a
// reload, and kills it right after.
func TestKeyRotatesByAReload(t *testing.T) {
	parallel(t)
	as := startAS(t, time.Hour)
	a := startAPI(t, as.ValidToken)
	c := newCaddy(t, keyedSite(), as.Issuer(), a.URL)
	c.writeKey(t, 'k')
	c.start(t)
	c.login(t)
	record := func() (text string) {
		for path, s := range filesBelow(t, recordsOf(c)) {
			if strings.HasSuffix(path, ".json") {
				text = s
			}
		}
		return text
	}
	before := record()
	c.writeFile(t, "old", base64.StdEncoding.EncodeToString([]byte(strings.Repeat("k", 32))))
	c.writeKey(t, 'n')
	c.reload(t, strings.Replace(keyedSite(), "/key}", "/key} {file.{$HOME}/old}", 1))
	eventually(t, patience, "the record is sealed anew", func() bool { return record() != before })
	c.kill(t)
	c.write(t, keyedSite()) // the old key is gone for good
	c.start(t)
	c.login(t)
	if got := as.Stats(); got.DeviceRequests != 1 || got.Reuses != 0 {
		t.Errorf("%d codes and %d reuses, want 1 and 0", got.DeviceRequests, got.Reuses)
	}
}

// recordsIn are the stored logins in an archive of the storage.
func recordsIn(t *testing.T, archive string) map[string]string {
	t.Helper()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	records := map[string]string{}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return records
		}
		if err != nil {
			t.Fatal(err)
		}
		if text, err := io.ReadAll(r); err != nil {
			t.Fatal(err)
		} else if strings.HasPrefix(h.Name, "device_flow/") {
			records[h.Name] = string(text)
		}
	}
}

// requirePrivate holds the modes of a folder and all below it.
func requirePrivate(t *testing.T, folder string) {
	t.Helper()
	err := filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		want := fs.FileMode(0o600)
		if d.IsDir() {
			want = 0o700
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has the mode %#o, want %#o", path, got, want)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
