package flow_test

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// S68 of the scorecard, for instances that get the new key one after the other:
// the first seals anew what the second cannot open, and both hold the same
// refresh token.
func TestInstanceWithoutTheNewKeyLeavesTheRefreshToOthers(t *testing.T) {
	for name, late := range map[string]bool{"long before it is due": false, "at the moment when it is due": true} {
		t.Run(name, func(t *testing.T) {
			old, both := []flow.Key{key(t, 1)}, []flow.Key{key(t, 2), key(t, 1)}
			bubble(t, flowtest.Config{AccessTokenLifetime: 10 * time.Minute}, func(w *world) {
				w.cfg.Keys = old
				c := newCluster(w, 2)
				c.loginAll()
				a, b := w.source(c.all[0].Session, apiA), w.source(c.all[1].Session, apiA)
				w.wantFor(a, "https://a.example")
				w.wantFor(b, "https://a.example")
				c.sleep(within)
				if late {
					w.sleep(time.Until(c.all[1].Status().Token.RefreshAt.Add(-time.Second)))
				}
				reload := func(i *instance) {
					i.cfg.Keys = both
					if err := i.SetConfig(i.cfg); err != nil {
						w.Fatal(err)
					}
				}
				reload(c.all[0])
				last := c.all[1].Current().Expiry()
				for time.Until(last) > 30*time.Second {
					c.sleep(time.Second)
					b.Current() // it is used, so that it would be renewed
					c.wantTokens()
				}
				if !late {
					w.wantError(c.all[1].Session, flow.CodeStorageSealed, flow.ActionFixConfiguration)
				}
				reload(c.all[1])
				c.sleep(within)
				c.wantTokens()
				c.wantStates(flow.StateAuthorized)
				if x, y := c.all[0].Current(), c.all[1].Current(); !x.Value().Equal(y.Value()) {
					w.Error("two tokens are in use")
				}
				c.sleep(time.Hour)
				c.wantTokens()
				if n := w.as.Stats().Logins; n != 1 {
					w.Errorf("%d logins", n)
				}
			})
		})
	}
}

// It is put off, not given up: calls are worth more than a login that may be lost.
func TestInstanceWithoutTheNewKeyRefreshesALapsedToken(t *testing.T) {
	for name, foreign := range map[string]func(record string) string{
		"sealed": func(r string) string { return strings.Replace(r, `"key_id":"`, `"key_id":"0`, 1) },
		"newer":  func(r string) string { return strings.Replace(r, `"version":2`, `"version":99`, 1) },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, flowtest.Config{AccessTokenLifetime: 10 * time.Minute}, func(w *world) {
				w.cfg.Keys = []flow.Key{key(t, 1)}
				s, _ := w.loggedIn()
				token := w.wantToken(s)
				path, record, _ := w.files()
				w.put(path, foreign(record))
				w.sleep(time.Until(token.Expiry()) - time.Second)
				w.wantCount(flowtest.Refresh, 0)
				if s.Current() != token {
					w.Fatal("another token")
				}
				w.sleep(2 * time.Second)
				w.wantToken(s)
				w.wantCount(flowtest.Refresh, 1)
				if _, now, _ := w.files(); now != foreign(record) {
					w.Error("what another instance has stored was overwritten")
				}
				// A person and the API have no time to wait, either.
				if _, err := s.Refresh(w.Context()); err != nil {
					w.Fatal(err)
				}
				if s.Replace(w.Context(), s.Current()) == nil {
					w.Fatal("no better token")
				}
				w.wantCount(flowtest.Refresh, 3)
			})
		})
	}
}

// lateStore has another instance store something just after a refresh has begun.
type lateStore struct {
	*testStore
	late atomic.Pointer[func()]
}

func (s *lateStore) Lock(_ context.Context, name string) (func(), error) {
	if strings.Contains(name, ".refresh-") {
		if f := s.late.Swap(nil); f != nil {
			(*f)()
		}
	}
	return func() {}, nil
}

func TestRefreshThatFindsARecordOfAnotherKeyIsPutOff(t *testing.T) {
	for name, other := range map[string]bool{"of the session": false, "for another API": true} {
		t.Run(name, func(t *testing.T) {
			bubble(t, flowtest.Config{AccessTokenLifetime: 10 * time.Minute}, func(w *world) {
				store := &lateStore{testStore: w.store}
				w.cfg.Store, w.cfg.Keys = store, []flow.Key{key(t, 1)}
				s, _ := w.loggedIn()
				src := flow.Source(s)
				if other {
					src = w.source(s, apiA)
					w.wantFor(src, "https://a.example")
					w.sleep(time.Minute)
					w.wantFor(src, "https://a.example") // used: renewed ahead
					if _, err := s.Refresh(w.Context()); err != nil {
						w.Fatal(err)
					}
				}
				token := src.Current()
				before := w.as.Count(flowtest.Refresh)
				path, record, _ := w.files()
				begun := false
				late := func() {
					begun = true
					w.put(path, strings.Replace(record, `"key_id":"`, `"key_id":"0`, 1))
				}
				store.late.Store(&late)
				w.sleep(time.Until(token.Expiry()) - time.Second)
				if !begun {
					w.Fatal("no refresh has begun")
				}
				w.wantCount(flowtest.Refresh, before)
				if src.Current() != token {
					w.Fatal("another token")
				}
				w.sleep(2 * time.Second)
				if _, err := src.Token(w.Context()); err != nil {
					w.Fatal(err)
				}
				w.wantCount(flowtest.Refresh, before+1)
			})
		})
	}
}
