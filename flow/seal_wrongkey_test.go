package flow_test

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// wrong are configurations that do not open what key 1 has sealed.
func wrong(t *testing.T) map[string][]flow.Key {
	return map[string][]flow.Key{
		"another key": {key(t, 2)}, "two others": {key(t, 2), key(t, 3)}, "no key": nil, "off": {{}}, "off and another": {{}, key(t, 2)},
	}
}

func TestRecordOfAnotherKeyIsLeftAlone(t *testing.T) {
	for name, keys := range wrong(t) {
		t.Run(name, func(t *testing.T) {
			bubble(t, flowtest.Config{}, func(w *world) {
				w.cfg.Keys = []flow.Key{key(t, 1)}
				s, stop := w.loggedIn()
				token := w.wantToken(s)
				stop()
				before, writes := w.store.all(), w.store.count("save")
				_, record, _ := w.files()

				w.cfg.Keys = keys
				w.forgetEvents()
				for _, policy := range []flow.LoginPolicy{flow.LoginOnDemand, flow.LoginEager} {
					w.cfg.Login = policy
					s, stop = w.run()
					for range 40 {
						if _, err := s.Token(w.Context()); err == nil {
							w.Fatal("a token out of nothing")
						}
						s.Demand()
						w.sleep(time.Second)
					}
					w.wantState(s, flow.StateMisconfigured)
					w.wantError(s, flow.CodeStorageSealed, flow.ActionFixConfiguration)
					e := s.Status().Error
					if e.RetryAt != nil || !strings.Contains(e.Description, "encryption_key") || !strings.Contains(e.Description, w.sealedBy(record)) {
						w.Fatalf("what to do is not said: %s", asJSON(e))
					}
					if err := s.Logout(w.Context()); err == nil || !strings.Contains(err.Error(), "encryption_key") {
						w.Fatalf("a logout that changes nothing: %v", err)
					}
					s.Demand()
					w.sleep(time.Second)
					stop()
				}
				if n := w.count(flow.EventStoreFailed); n != 2 {
					w.Fatalf("%d events for two starts", n)
				}
				if w.store.count("save") != writes || !maps.Equal(w.store.all(), before) {
					w.Fatal("something was written")
				}
				w.wantCount(flowtest.Device, 1)

				// With the right key all is as it was.
				w.cfg.Login = flow.LoginOnDemand
				w.cfg.Keys = []flow.Key{key(t, 1)}
				s, _ = w.run()
				if !w.wantToken(s).Value().Equal(token.Value()) {
					w.Fatal("another token")
				}
			})
		})
	}
}

func TestReloadWithTheRightKeyBringsTheLoginBack(t *testing.T) {
	for name, late := range map[string]time.Duration{"soon": time.Second, "when the token has lapsed": 2 * time.Hour} {
		for form, keys := range map[string][]flow.Key{"the right one": {key(t, 1)}, "the right one as the second": {key(t, 2), key(t, 1)}, "off": {{}, key(t, 1)}} {
			t.Run(name+", "+form, func(t *testing.T) {
				bubble(t, flowtest.Config{}, func(w *world) {
					w.cfg.Keys = []flow.Key{key(t, 1)}
					_, stop := w.loggedIn()
					stop()
					_, record, _ := w.files()
					sealed := w.sealedBy(record)
					w.cfg.Keys = []flow.Key{key(t, 2)}
					s, stop := w.run()
					w.sleep(late)
					w.wantState(s, flow.StateMisconfigured)
					w.forgetEvents()
					w.setKeys(s, keys...)
					w.wantToken(s)
					w.wantState(s, flow.StateAuthorized)
					w.wantError(s, "", "")
					if n := w.count(flow.EventStoreHealed); n != 1 || slices.Contains(w.kinds(), "misconfigured>degraded") {
						w.Fatalf("%d events of healing in %q", n, w.kinds())
					}
					w.wantCount(flowtest.Device, 1)
					if _, record, aside := w.files(); aside != "" || (w.sealedBy(record) == sealed) != (form == "the right one") {
						w.Fatal("the record is not in its new form, or was put aside")
					}
					stop()
					s, _ = w.run()
					w.wantToken(s)
				})
			})
		}
	}
}

// A reload may name another key and forget the one before. The login goes on, but
// not in the store, and the state says so.
func TestReloadWithTheWrongKeyOverwritesNothing(t *testing.T) {
	for name, keys := range wrong(t) {
		t.Run(name, func(t *testing.T) {
			bubble(t, flowtest.Config{AccessTokenLifetime: time.Minute}, func(w *world) {
				w.cfg.Keys = []flow.Key{key(t, 1)}
				s, stop := w.loggedIn()
				before := w.store.all()
				w.setKeys(s, keys...)
				for range 60 {
					w.wantToken(s)
					w.wantState(s, flow.StateDegraded)
					w.wantError(s, flow.CodeStorageSealed, flow.ActionFixConfiguration)
					w.sleep(5 * time.Second)
				}
				if !maps.Equal(w.store.all(), before) {
					w.Fatal("the record was touched")
				}
				w.setKeys(s, append(slices.Clip(keys), key(t, 1))...)
				w.wantState(s, flow.StateAuthorized)
				token := w.wantToken(s)
				stop()
				s, _ = w.run()
				if !w.wantToken(s).Value().Equal(token.Value()) {
					w.Fatal("what came meanwhile was not stored")
				}
				w.wantCount(flowtest.Device, 1)
			})
		})
	}
}

// A save that is under way when the keys change ends as it began; the next one
// looks again.
func TestReloadDuringASaveOverwritesNothingThatCannotBeOpened(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		w.cfg.Keys = []flow.Key{key(t, 1)}
		s, _ := w.loggedIn()
		release := make(chan struct{})
		w.store.setFault(holding("save", release))
		go func() { _, _ = s.Refresh(w.Context()) }()
		w.sleep(time.Second)
		w.cfg.Keys = []flow.Key{key(t, 2)}
		if err := s.SetConfig(w.cfg); err != nil {
			w.Fatal(err)
		}
		w.sleep(0)
		close(release)
		w.store.setFault(nil)
		w.sleep(5 * time.Second)
		w.wantState(s, flow.StateDegraded)
		w.wantError(s, flow.CodeStorageSealed, flow.ActionFixConfiguration)
		w.setKeys(s, key(t, 1))
		w.wantState(s, flow.StateAuthorized)
	})
}

// lockingStore counts the locks that are held.
type lockingStore struct {
	*testStore
	held atomic.Int32
}

func (s *lockingStore) Lock(context.Context, string) (func(), error) {
	s.held.Add(1)
	return func() { s.held.Add(-1) }, nil
}

// A session that stores nothing for a long time must not pile up locks meanwhile.
func TestNoLockIsKeptWhileNothingCanBeStored(t *testing.T) {
	bubble(t, flowtest.Config{AccessTokenLifetime: time.Minute}, func(w *world) {
		locks := &lockingStore{testStore: w.store}
		w.cfg.Store, w.cfg.Keys = locks, []flow.Key{key(t, 1)}
		s, _ := w.loggedIn()
		w.setKeys(s, key(t, 2))
		w.sleep(10 * time.Minute)
		w.wantError(s, flow.CodeStorageSealed, flow.ActionFixConfiguration)
		if st := w.as.Stats(); st.Refreshes < 10 || locks.held.Load() != 0 {
			w.Fatalf("%d locks are held after %d refreshes", locks.held.Load(), st.Refreshes)
		}
	})
}

func TestSealedRecordThatIsTakenAwayMakesRoomForALogin(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		w.cfg.Keys = []flow.Key{key(t, 1)}
		_, stop := w.loggedIn()
		stop()
		path, _, _ := w.files()
		w.cfg.Keys = []flow.Key{key(t, 2)}
		s, _ := w.run()
		w.wantState(s, flow.StateMisconfigured)
		saves := w.store.count("save")
		w.store.setFault(func(op, k string) error {
			if op == "load" && k == path && w.store.count("save") == saves {
				return flow.ErrNotFound
			}
			return nil
		})
		w.sleep(flow.LookEvery)
		w.wantState(s, flow.StateLoginRequired)
		w.wantError(s, "", "")
		s.Demand()
		w.sleep(0)
		w.wantState(s, flow.StatePending)
	})
}
