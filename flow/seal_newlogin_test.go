package flow_test

import (
	"strings"
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// Somebody who has lost the key can log in again; until that has worked, and for
// good measure afterwards, the sealed record is kept.
func TestNewLoginTakesThePlaceOfARecordOfAnotherKey(t *testing.T) {
	for name, keys := range wrong(t) {
		t.Run(name, func(t *testing.T) {
			bubble(t, flowtest.Config{}, func(w *world) {
				w.cfg.Keys = []flow.Key{key(t, 1)}
				_, stop := w.loggedIn()
				stop()
				path, sealed, _ := w.files()
				w.cfg.Keys = keys
				s, stop := w.run()
				if _, err := s.Login(w.Context()); err != nil {
					w.Fatal(err)
				}
				w.wantState(s, flow.StatePending)
				w.sleep(time.Hour) // nobody approves it
				if err := s.Logout(w.Context()); err == nil {
					w.Fatal("a logout that changes nothing")
				}
				s.Demand()
				w.sleep(time.Minute)
				w.wantCount(flowtest.Device, 2)
				if all := w.store.all(); len(all) != 1 || all[path] != sealed {
					w.Fatal("the sealed record was touched before there was a new login")
				}
				// It cannot be read at first, and then not be put aside.
				w.store.setFault(failing("load"))
				st, err := s.Login(w.Context())
				if err != nil {
					w.Fatal(err)
				}
				if err := w.as.Approve(st.Login.UserCode); err != nil {
					w.Fatal(err)
				}
				for range 2 {
					w.sleep(time.Minute)
					w.wantToken(s)
					w.wantState(s, flow.StateDegraded)
					if all := w.store.all(); len(all) != 1 || all[path] != sealed {
						w.Fatal("it was overwritten without a copy")
					}
					w.store.setFault(func(op, key string) error {
						if op == "save" && strings.HasSuffix(key, ".refused") {
							return errDisk
						}
						return nil
					})
				}
				w.store.setFault(nil)
				w.sleep(time.Minute)
				w.wantState(s, flow.StateAuthorized)
				w.wantError(s, "", "")
				_, record, aside := w.files()
				if aside != sealed || record == sealed {
					w.Fatal("the sealed record is not aside, or the new login is not stored")
				}

				// That was for this once.
				w.put(path, sealed)
				w.sleep(10 * time.Minute)
				w.wantState(s, flow.StateDegraded)
				if _, record, _ := w.files(); record != sealed {
					w.Fatal("a sealed record is overwritten without a login")
				}
				w.put(path, record)
				w.sleep(flow.LookEvery)
				w.wantState(s, flow.StateAuthorized)
				stop()
				s, stop = w.run()
				w.wantToken(s)
				stop()
				w.wantCount(flowtest.Device, 3)

				// What was put aside can be put back.
				w.put(path, sealed)
				w.cfg.Keys = []flow.Key{key(t, 1)}
				s, _ = w.run()
				w.wantToken(s)
			})
		})
	}
}

// A look that is under way when the new login is approved finds another record
// than the one that was to be replaced.
func TestLateLookDuringANewLogin(t *testing.T) {
	for name, other := range map[string]string{"sealed by yet another key": `"version":2,"key_id":"0`, "of a newer release": `"version":99,"key_id":"0`} {
		t.Run(name, func(t *testing.T) {
			bubble(t, flowtest.Config{}, func(w *world) {
				w.cfg.Keys = []flow.Key{key(t, 1)}
				_, stop := w.loggedIn()
				stop()
				path, sealed, _ := w.files()
				other := strings.Replace(sealed, `"version":2,"key_id":"`, other, 1)
				w.cfg.Keys = []flow.Key{key(t, 2)}
				s, stop := w.run()
				if _, err := s.Login(w.Context()); err != nil {
					w.Fatal(err)
				}
				w.as.ApproveAll()
				w.sleep(3 * time.Second) // the next look is at 4 s, the poll at 5 s
				release := make(chan struct{})
				w.store.setFault(holding("load", release))
				w.sleep(time.Second)
				w.put(path, other)
				w.sleep(5 * time.Second) // the poll does not wait that long for the store
				if st := w.as.Stats(); st.Logins != 2 {
					w.Fatalf("%+v", st)
				}
				w.store.setFault(nil)
				close(release)
				w.sleep(time.Minute)
				token := w.wantToken(s)
				stop()
				if name == "of a newer release" {
					if all := w.store.all(); all[path] != other {
						w.Fatal("it was overwritten")
					}
					return
				}
				s, _ = w.run()
				if !w.wantToken(s).Value().Equal(token.Value()) {
					w.Fatal("the login is not in the store")
				}
				if _, _, aside := w.files(); aside != other {
					w.Fatal("what it has replaced is not kept")
				}
			})
		})
	}
}

// Two instances with different keys on one store is a mistake that may last a
// while. Neither takes the login from the other, nor do they write in turns.
func TestInstancesWithDifferentKeysDoNotOverwriteEachOther(t *testing.T) {
	bubble(t, flowtest.Config{AccessTokenLifetime: time.Minute}, func(w *world) {
		w.cfg.Keys = []flow.Key{key(t, 1)}
		a, _ := w.loggedIn()
		_, record, _ := w.files()
		id := w.sealedBy(record)
		w.cfg.Keys = []flow.Key{key(t, 2)}
		b, stop := w.run()
		w.login2(b)
		w.sleep(10 * time.Second)
		w.wantState(b, flow.StateAuthorized)
		w.wantState(a, flow.StateDegraded)
		w.wantError(a, flow.CodeStorageSealed, flow.ActionFixConfiguration)
		for range 60 {
			w.sleep(5 * time.Second)
			w.wantToken(a)
			w.wantToken(b)
			if _, record, aside := w.files(); w.sealedBy(record) == id || w.sealedBy(aside) != id {
				w.Fatal("the store is not as the last login left it")
			}
		}
		stop()
		w.sleep(time.Minute)
		w.wantState(a, flow.StateDegraded)
	})
}

// login2 is login for a session whose store gets the new one a moment later.
func (w *world) login2(s *flow.Session) {
	w.Helper()
	st, err := s.Login(w.Context())
	if err != nil || st.Login == nil {
		w.Fatalf("login: %v, %+v", err, st)
	}
	if err := w.as.Approve(st.Login.UserCode); err != nil {
		w.Fatal(err)
	}
	w.sleep(5*time.Second + time.Millisecond)
}

// While keys rotate, one instance seals with the new one and one with the old.
func TestInstancesWithTheSameKeysInAnotherOrderDoNotWriteInTurns(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		w.cfg.Keys = []flow.Key{key(t, 1), key(t, 2)}
		a, _ := w.loggedIn()
		w.cfg.Keys = []flow.Key{key(t, 2), key(t, 1)}
		b, _ := w.run()
		w.sleep(time.Second)
		saves := w.store.count("save")
		w.sleep(10 * time.Minute)
		if n := w.store.count("save") - saves; n != 0 {
			w.Fatalf("%d saves in ten minutes without news", n)
		}
		if _, err := a.Refresh(w.Context()); err != nil {
			w.Fatal(err)
		}
		w.sleep(flow.LookEvery)
		if !w.wantToken(a).Value().Equal(w.wantToken(b).Value()) {
			w.Fatal("they do not share the login")
		}
		w.wantCount(flowtest.Device, 1)
	})
}
