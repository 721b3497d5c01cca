package flow_test

import (
	"context"
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

func TestReloadKeepsTheCodeAndItsPace(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		s, _ := w.run()
		st, err := s.Login(w.Context())
		if err != nil {
			w.Fatal(err)
		}
		w.as.Script(flowtest.Poll, flowtest.ErrorResponse(400, "slow_down"))
		w.sleep(5 * time.Second)
		for range 50 {
			cfg := w.cfg
			cfg.Store = new(testStore)
			if err := s.SetConfig(cfg); err != nil {
				w.Fatal(err)
			}
			w.sleep(100 * time.Millisecond)
		}
		w.sleep(5*time.Second - time.Nanosecond)
		w.wantCount(flowtest.Poll, 1)
		w.sleep(time.Nanosecond)
		w.wantCount(flowtest.Poll, 2)
		w.wantCount(flowtest.Device, 1)
		if got := s.Status().Login; got == nil || got.UserCode != st.Login.UserCode {
			w.Fatalf("the code changed: %s", asJSON(s.Status()))
		}
		if err := w.as.Approve(st.Login.UserCode); err != nil {
			w.Fatal(err)
		}
		w.sleep(10 * time.Second)
		w.wantToken(s)
	})
}

func TestReloadBringsTheLoginToANewStore(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		s, stop := w.loggedIn()
		other := new(testStore)
		w.cfg.Store = other
		if err := s.SetConfig(w.cfg); err != nil {
			w.Fatal(err)
		}
		w.sleep(0)
		stop()
		s, _ = w.run()
		w.wantState(s, flow.StateAuthorized)
		w.wantToken(s)
	})
}

func TestConfigurationOfAnotherLoginIsRefused(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		s, _ := w.loggedIn()
		cfg := w.cfg
		cfg.Scope = append(cfg.Scope, "write:things")
		if err := s.SetConfig(cfg); err == nil {
			w.Fatal("a wider scope was taken for the same login")
		}
		// A session of the new scope neither uses nor harms the stored login.
		w.cfg = cfg
		wider, stop := w.run()
		w.wantState(wider, flow.StateLoginRequired)
		w.login(wider)
		stop()
		if n := len(w.store.all()); n != 2 {
			w.Fatalf("%d records, want one for each scope", n)
		}
		w.wantToken(s)
	})
}

func TestFingerprint(t *testing.T) {
	base := flow.Config{Issuer: "https://as.example", ClientID: "c", Scope: []string{"a", "b"}, Audience: "x"}
	same := map[string]func(*flow.Config){
		"order of scopes":   func(c *flow.Config) { c.Scope = []string{"b", "a", "b"} },
		"final slash":       func(c *flow.Config) { c.Issuer += "/" },
		"name":              func(c *flow.Config) { c.Name = "other" },
		"empty parameters":  func(c *flow.Config) { c.Params = map[string][]string{} },
		"endpoint override": func(c *flow.Config) { c.Endpoints.Revocation = "https://as.example/r" },
		"secret": func(c *flow.Config) {
			c.Secret = func(context.Context) (flow.Secret, error) { return flow.NewSecret("s"), nil }
		},
	}
	differs := map[string]func(*flow.Config){
		"issuer":     func(c *flow.Config) { c.Issuer = "https://other.example" },
		"client":     func(c *flow.Config) { c.ClientID = "d" },
		"scope":      func(c *flow.Config) { c.Scope = []string{"a"} },
		"audience":   func(c *flow.Config) { c.Audience = "y" },
		"resource":   func(c *flow.Config) { c.Resource = []string{"https://r.example"} },
		"parameters": func(c *flow.Config) { c.Params = map[string][]string{"organization": {"o"}} },
	}
	for name, change := range same {
		if c := base; func() bool { change(&c); return c.Fingerprint() != base.Fingerprint() }() {
			t.Errorf("%s: another fingerprint", name)
		}
	}
	for name, change := range differs {
		if c := base; func() bool { change(&c); return c.Fingerprint() == base.Fingerprint() }() {
			t.Errorf("%s: the same fingerprint", name)
		}
	}
	// The stored access token is for the first of several resources.
	a, b := base, base
	a.Resource, b.Resource = []string{"https://r.example", "https://s.example"}, []string{"https://s.example", "https://r.example"}
	if a.Fingerprint() == b.Fingerprint() {
		t.Error("another first resource: the same fingerprint")
	}
}

func TestReloadDuringARefreshIsOneRefresh(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		s, stop := w.loggedIn()
		w.as.Script(flowtest.Refresh, flowtest.Response{Pass: true, Delay: 2 * time.Second})
		done := make(chan error, 1)
		go func() {
			_, err := s.Refresh(w.Context())
			done <- err
		}()
		w.sleep(time.Second)
		w.cfg.Store = new(testStore)
		for range 10 {
			if err := s.SetConfig(w.cfg); err != nil {
				w.Fatal(err)
			}
		}
		w.sleep(time.Second)
		if err := <-done; err != nil {
			w.Fatal(err)
		}
		w.wantCount(flowtest.Refresh, 1)
		stop()
		s, _ = w.run() // over the new store
		if _, err := s.Refresh(w.Context()); err != nil {
			w.Fatal(err)
		}
		if st := w.as.Stats(); st.Reuses != 0 {
			w.Fatalf("%+v", st)
		}
	})
}
