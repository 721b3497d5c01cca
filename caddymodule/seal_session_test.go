package caddymodule

import (
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// stored is the text of every file of the stored logins, by its name.
func (x *rig) stored() map[string]string {
	x.t.Helper()
	folder := filepath.Join(x.dir, "storage", "device_flow")
	entries, err := os.ReadDir(folder)
	if err != nil {
		x.t.Fatal(err)
	}
	files := make(map[string]string)
	for _, e := range entries {
		if isLeftover(e.Name()) {
			continue // a write is under way
		}
		text, err := os.ReadFile(filepath.Join(folder, e.Name()))
		if err != nil {
			x.t.Fatal(err)
		}
		files[e.Name()] = string(text)
	}
	return files
}

// one is the only stored file.
func (x *rig) one() string {
	x.t.Helper()
	files := x.stored()
	for _, text := range files {
		if len(files) == 1 {
			return text
		}
	}
	x.t.Fatalf("there are %d files", len(files))
	return ""
}

// keyed is a configuration with that encryption_key, or without one.
func (x *rig) keyed(keys string) string {
	if keys != "" {
		keys = "encryption_key " + keys
	}
	return x.config(x.t.Name(), "", "a", "device_flow API {\n LOGIN\n "+keys+"\n}")
}

func (x *rig) restart(config string) {
	x.t.Helper()
	if err := caddy.Stop(); err != nil {
		x.t.Fatal(err)
	}
	x.load(config)
}

// awaitServed waits until calls are answered by the API.
func (x *rig) awaitServed(when string) {
	x.t.Helper()
	await(x.t, x.session("default").Session, flow.StateAuthorized)
	if got := x.get("http://a/"); got.status != http.StatusOK {
		x.t.Fatalf("%s: %d %s", when, got.status, got.body)
	}
}

// awaitStored waits until the stored file is as it should be.
func (x *rig) awaitStored(what string, ok func(text string) bool) {
	x.t.Helper()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	timeout := time.After(patience)
	for !ok(x.one()) {
		select {
		case <-ticker.C:
		case <-timeout:
			x.t.Fatalf("waited in vain for a record that is %s", what)
		}
	}
}

func clearText(text string) bool { return strings.Contains(text, `"refresh_token"`) }

func TestTheStoredLoginIsSealedWithTheKeyOfAFile(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	if err := os.WriteFile(filepath.Join(x.dir, "key"), []byte(keyText("k")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	config := x.keyed("{file.DIR/key}")
	x.load(config)
	s := x.login("default")
	text, token := x.one(), s.Current().Value().Reveal()
	for _, word := range []string{token, "token", "demo-client", x.issuer, "scope"} {
		if strings.Contains(text, word) {
			t.Errorf("%q is to be read in %s", word, text)
		}
	}
	x.restart(config)
	x.awaitServed("after a restart")
	if got := x.session("default").Current().Value().Reveal(); got != token || x.one() != text {
		t.Error("the restart did not take the login from the storage")
	}
	if n := x.as.Count(flowtest.Device); n != 1 {
		t.Errorf("%d device requests, want 1", n)
	}
	if lines := logged(t.Name(), keyText("k")); len(lines) > 0 {
		t.Errorf("the key is logged: %s", lines[0])
	}
}

// S68 of the scorecard.
func TestEncryptionKeysRotateBothWays(t *testing.T) {
	for name, apply := range map[string]func(x *rig, config string){
		"reload": (*rig).load, "restart": (*rig).restart,
	} {
		t.Run(name, func(t *testing.T) {
			x := newRig(t, flowtest.Config{})
			x.load(x.keyed(""))
			x.login("default")
			a, b := keyText("a"), keyText("b")
			ids := make(map[string]string)
			for _, keys := range []string{a, b + " " + a, b, a + " " + b, "off " + a, "", b} {
				apply(x, x.keyed(keys))
				x.awaitServed(keys)
				before := ids["now"]
				x.awaitStored("written with '"+keys+"'", func(text string) bool {
					ids["now"] = text
					if keys == "" || strings.HasPrefix(keys, "off") {
						return clearText(text)
					}
					return !clearText(text) && (keys == b || keyID(text) != keyID(before))
				})
			}
			if n := x.as.Count(flowtest.Device); n != 1 {
				t.Errorf("%d device requests, want 1", n)
			}
		})
	}
}

func keyID(text string) string {
	_, rest, _ := strings.Cut(text, `"key_id":"`)
	id, _, _ := strings.Cut(rest, `"`)
	return id
}

// S68 of the scorecard.
func TestAWrongOrMissingKeyLeavesTheStoredLoginAlone(t *testing.T) {
	for name, keys := range map[string]string{"another key": keyText("b"), "no key": "", "off": "off"} {
		t.Run(name, func(t *testing.T) {
			x := newRig(t, flowtest.Config{})
			right := x.keyed(keyText("a"))
			x.load(right)
			x.login("default")
			before := x.stored()

			x.restart(x.keyed(keys))
			s := x.session("default")
			await(t, s.Session, flow.StateMisconfigured)
			for i := range 5 {
				got := x.get("http://a/", "Accept", "application/problem+json")
				if got.status != http.StatusServiceUnavailable || !strings.Contains(got.body, "encryption_key") || !strings.Contains(got.body, `"misconfigured"`) {
					t.Fatalf("call %d: %d %s", i, got.status, got.body)
				}
			}
			e := s.Status().Error
			if e == nil || e.Code != flow.CodeStorageSealed || e.Action != flow.ActionFixConfiguration || !strings.Contains(e.Description, keyID(x.one())) {
				t.Errorf("%+v", e)
			}
			for _, accept := range []string{"text/html", "text/plain"} {
				if got := x.get("http://a/.device-flow", "Accept", accept); !strings.Contains(got.body, "Put that key back into Caddy") ||
					!strings.Contains(got.body, "A new login puts the stored one aside.") || strings.Contains(got.body, "does not accept this proxy") {
					t.Errorf("the page says\n%s", got.body)
				}
			}
			if lines := logged(t.Name(), storeSealed, `"level":"error"`, fmt.Sprintf("%q", "fix_configuration")); len(lines) == 0 || len(lines) > 2 ||
				len(logged(t.Name(), storeFails))+len(logged(t.Name(), "refuses this client")) > 0 {
				t.Errorf("the log has %d lines: %q", len(lines), lines)
			}
			if !maps.Equal(x.stored(), before) {
				t.Error("the stored login was touched")
			}

			x.load(right)
			x.awaitServed("with the right key")
			if n := x.as.Count(flowtest.Device); n != 1 {
				t.Errorf("%d device requests, want 1", n)
			}
		})
	}
}

func TestALoginWithAnotherKeyKeepsTheSealedOne(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	x.load(x.keyed(keyText("a")))
	x.login("default")
	sealed := x.one()
	x.restart(x.keyed(keyText("b")))
	await(t, x.session("default").Session, flow.StateMisconfigured)
	x.login("default")
	found := map[bool]int{}
	for name, text := range x.stored() {
		found[strings.HasSuffix(name, ".refused") && text == sealed]++
	}
	if found[true] != 1 || found[false] != 1 {
		t.Errorf("stored are %v", found)
	}
	x.restart(x.keyed(keyText("b")))
	x.awaitServed("after a restart with the new key")
}

// A reload whose key file is not there is refused, and what runs goes on.
func TestAReloadWithoutItsKeyFileChangesNothing(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	key := filepath.Join(x.dir, "key")
	if err := os.WriteFile(key, []byte(keyText("k")), 0o600); err != nil {
		t.Fatal(err)
	}
	x.load(x.keyed("{file.DIR/key}"))
	x.login("default")
	before := x.stored()
	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
	err := caddy.Load([]byte(x.keyed("{file.DIR/key}")), true)
	if err == nil || !strings.Contains(err.Error(), "encryption_key {file."+key+"} has no value") {
		t.Errorf("%v", err)
	}
	x.awaitServed("after the reload that failed")
	if !maps.Equal(x.stored(), before) {
		t.Error("the stored login was touched")
	}
	// It needs the file no more.
	if _, err := x.session("default").Refresh(t.Context()); err != nil {
		t.Error(err)
	}
	x.awaitStored("new", func(text string) bool { return !maps.Equal(x.stored(), before) })
	if clearText(x.one()) || keyID(x.one()) == "" {
		t.Error("it is stored in clear text")
	}
}
