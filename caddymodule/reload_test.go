package caddymodule

import (
	"errors"
	"fmt"
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

func TestReloadsKeepThePendingCodeAndItsPace(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	slowedDown := make(chan struct{})
	x.as.Script(flowtest.Poll, flowtest.Response{Func: func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusBadRequest)
		_, _ = w.Write([]byte(`{"error":"slow_down"}`))
		close(slowedDown)
	}})
	site := func(i int) string { return x.config(t.Name(), "", "a", proxy, "b", fmt.Sprintf("respond %d", i)) }
	x.load(site(0))
	s := x.session("default")
	st, err := s.Login(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	receive(t, slowedDown, "the first poll")
	for i := range 20 {
		x.load(site(i + 1))
	}
	x.awaitAnswer("http://b/", "20")
	if x.session("default") != s || len(runningSessions()) != 1 {
		t.Error("another session runs now")
	}
	if now := s.Status(); now.Login == nil || now.Login.UserCode != st.Login.UserCode {
		t.Errorf("the code was %s, now it is %+v", st.Login.UserCode, now.Login)
	}
	if n, polls := x.as.Count(flowtest.Device), x.as.Count(flowtest.Poll); n != 1 || polls != 1 {
		t.Errorf("%d device requests and %d polls, want one each: the pause is five seconds now", n, polls)
	}
}

func TestAReloadBringsANewSecret(t *testing.T) {
	x := newRig(t, flowtest.Config{ClientSecret: "right"})
	config := func(secret string) string {
		return x.config(t.Name(), "", "a", "device_flow API {\n LOGIN\n client_secret "+secret+"\n}")
	}
	x.load(config("wrong"))
	s := x.session("default")
	if _, err := s.Login(t.Context()); err == nil {
		t.Fatal("the wrong secret is good enough")
	}
	await(t, s.Session, flow.StateMisconfigured)

	x.load(config("right"))
	if x.session("default") != s {
		t.Error("another session runs now")
	}
	if got := x.get("http://a/"); !strings.Contains(got.body, string(flow.StatePending)) {
		t.Errorf("a call does not start a login with the new secret: %s", got.body)
	}
}

func TestARotatedSecretFileNeedsNoReload(t *testing.T) {
	x := newRig(t, flowtest.Config{ClientSecret: "right"})
	file := filepath.Join(x.dir, "secret")
	write := func(s string) {
		if err := os.WriteFile(file, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("wrong\n")
	x.load(x.config(t.Name(), "", "a", "device_flow API {\n LOGIN\n client_secret {file.DIR/secret}\n}"))
	s := x.session("default")
	if _, err := s.Login(t.Context()); err == nil {
		t.Fatal("the wrong secret is good enough")
	}
	write("right\n")
	x.login("default")
}

// brokenApp is an app of a configuration that cannot start.
type brokenApp struct{}

// brokenLoader fails when all apps have started already.
type brokenLoader struct{}

func init() {
	caddy.RegisterModule(brokenApp{})
	caddy.RegisterModule(brokenLoader{})
}

func (brokenApp) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "broken", New: func() caddy.Module { return new(brokenApp) }}
}
func (brokenApp) Start() error { return errors.New("it is broken") }
func (brokenApp) Stop() error  { return nil }

func (brokenLoader) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "caddy.config_loaders.broken", New: func() caddy.Module { return new(brokenLoader) }}
}

func (brokenLoader) LoadConfig(caddy.Context) ([]byte, error) { return nil, errors.New("it is broken") }

func TestAFailedReloadLeavesTheSessionAsItWas(t *testing.T) {
	for name, breakIt := range map[string]func(config string) string{
		"at provisioning": func(config string) string {
			return strings.Replace(config, `"apps": {`, `"apps": {"http": {"servers": {"x": {"routes": [{"handle": [{"handler": "nonsense"}]}]}}}, `, 1)
		},
		"at the start": func(config string) string { return strings.Replace(config, `"apps": {`, `"apps": {"broken": {}, `, 1) },
		"after the start": func(config string) string {
			return strings.Replace(config, `"persist": false`, `"persist": false, "load": {"module": "broken"}`, 1)
		},
	} {
		t.Run(name, func(t *testing.T) {
			x := newRig(t, flowtest.Config{})
			const session = "device_flow acme {\n LOGIN\n}"
			good, bad := t.Name()+" good", t.Name()+" bad"
			x.load(x.config(`"`+good+`"`, session))
			s := x.login("acme")

			config := breakIt(strings.Replace(x.config(`"`+bad+`"`, session), x.dir+"/storage", x.dir+"/elsewhere", 1))
			for range 8 { // Caddy starts apps in any order
				if err := caddy.Load([]byte(config), true); err == nil {
					t.Fatal("the broken configuration runs")
				}
			}
			if n, _ := pool.References(poolKey{"acme", s.configs[0].cfg.Fingerprint()}); n != 1 || len(s.configs) != 1 {
				t.Errorf("%d references and %d configurations, want one each", n, len(s.configs))
			}
			if _, err := s.Refresh(t.Context()); err != nil {
				t.Fatal(err)
			}
			token := s.Current().Value().Reveal() // it is stored before it is used
			if !strings.Contains(x.saved("storage"), token) {
				t.Error("the new token is not in the storage of the configuration in force")
			}
			if strings.Contains(x.saved("elsewhere"), token) {
				t.Error("the storage of the broken configuration is in use")
			}
			if n := len(logged(good, `"msg":"token_refreshed"`)); n != 1 {
				t.Errorf("%d lines about the refresh in the log of the configuration in force, want 1", n)
			}
			if lines := logged(bad, `"token_refreshed"`); len(lines) != 0 {
				t.Errorf("the log of the broken configuration has %q", lines)
			}
		})
	}
}

// awaitAnswer asks until the answer is want: Caddy does not wait for the old servers to stop accepting.
func (x *rig) awaitAnswer(url, want string) {
	x.t.Helper()
	for deadline := time.Now().Add(patience); ; {
		got := x.get(url).body
		if got == want {
			return
		}
		if time.Now().After(deadline) {
			x.t.Fatalf("%s answers %q, not %q", url, got, want)
		}
		x.client.CloseIdleConnections()
	}
}

// saved is the stored record, empty if there is none.
func (x *rig) saved(storage string) string {
	x.t.Helper()
	files, err := filepath.Glob(filepath.Join(x.dir, storage, storageFolder, "*.json"))
	if err != nil || len(files) > 1 {
		x.t.Fatalf("%d records in the storage: %v", len(files), err)
	}
	if len(files) == 0 {
		return ""
	}
	b, err := os.ReadFile(files[0])
	if err != nil {
		x.t.Fatal(err)
	}
	return string(b)
}
