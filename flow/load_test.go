package flow_test

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

func TestStoreThatComesLateCostsNoLogin(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		_, stop := w.loggedIn()
		stop()
		stored := w.store.record()
		w.store.setFault(failing("load"))
		w.forgetEvents()
		s, _ := w.run()
		for range 8 {
			if _, err := s.Token(w.Context()); err == nil {
				w.Fatal("a token out of nothing")
			}
			w.sleep(time.Second)
		}
		w.wantState(s, flow.StateUnavailable)
		w.wantError(s, flow.CodeStorageFailed, flow.ActionRetry)
		w.wantCount(flowtest.Device, 1) // that of the login before
		w.store.setFault(nil)
		w.sleep(10 * time.Second)
		w.wantState(s, flow.StateAuthorized)
		w.wantError(s, "", "")
		w.wantToken(s)
		if w.store.record() != stored {
			w.Fatal("the stored login was overwritten")
		}
		w.wantEvents("store_failed", "store_healed", "unavailable>authorized")
	})
}

func TestStoreThatCannotBeReadDoesNotPreventALogin(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		_, stop := w.loggedIn()
		stop()
		stored := w.store.record()
		w.store.setFault(failing("load"))
		s, stop := w.run()
		w.sleep(11 * time.Second)
		s.Demand()
		w.sleep(0)
		w.wantState(s, flow.StatePending)
		w.as.ApproveAll()
		w.sleep(5 * time.Second)
		w.wantState(s, flow.StateDegraded)
		w.wantToken(s)
		if w.store.record() != stored {
			w.Fatal("a login that could not be read was overwritten")
		}
		w.store.setFault(nil)
		w.sleep(time.Minute)
		w.wantState(s, flow.StateAuthorized)
		aside := ""
		for key, v := range w.store.all() {
			if strings.HasSuffix(key, ".refused") {
				aside = v
			}
		}
		if aside != stored {
			w.Fatal("the old login was not put aside")
		}
		token := w.wantToken(s)
		stop()
		s, _ = w.run()
		if !w.wantToken(s).Value().Equal(token.Value()) {
			w.Fatal("the new login was not saved")
		}
	})
}

func TestStoreThatHangsOnLoadHoldsNobodyUpForEver(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		_, stop := w.loggedIn()
		stop()
		release := make(chan struct{})
		w.store.setFault(holding("load", release))
		s, _ := w.run()
		w.wantState(s, flow.StateUnavailable)
		begin := time.Now()
		if _, err := s.Token(w.Context()); err == nil || time.Since(begin) != 5*time.Second {
			w.Fatalf("%v after %v", err, time.Since(begin))
		}
		w.sleep(6 * time.Second)
		w.wantError(s, flow.CodeStorageFailed, flow.ActionRetry)
		begin = time.Now()
		if _, err := s.Token(w.Context()); err == nil || time.Since(begin) > 2*time.Second {
			w.Fatalf("%v after %v", err, time.Since(begin))
		}
		close(release)
		w.sleep(time.Second)
		w.wantState(s, flow.StateAuthorized)
		w.wantToken(s)
	})
}

func TestCommandsWaitForTheStoredLogin(t *testing.T) {
	for name, command := range map[string]func(w *world, s *flow.Session) error{
		"login": func(w *world, s *flow.Session) error {
			st, err := s.Login(w.Context())
			if err == nil && st.State != flow.StateAuthorized {
				w.Errorf("status %s", asJSON(st))
			}
			return err
		},
		"refresh": func(w *world, s *flow.Session) error { _, err := s.Refresh(w.Context()); return err },
		"logout":  func(w *world, s *flow.Session) error { return s.Logout(w.Context()) },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, flowtest.Config{}, func(w *world) {
				_, stop := w.loggedIn()
				stop()
				release := make(chan struct{})
				w.store.setFault(holding("load", release))
				s, _ := w.run()
				done := make(chan error, 1)
				go func() { done <- command(w, s) }()
				w.sleep(time.Second)
				if len(done) != 0 {
					w.Fatal("done before anything was known of the login")
				}
				close(release)
				w.sleep(time.Second)
				if err := <-done; err != nil {
					w.Fatal(err)
				}
				if name == "logout" {
					w.wantState(s, flow.StateLoginRequired)
					if st := w.as.Stats(); st.Revocations != 1 || w.store.record() != "" {
						w.Fatalf("the stored login was not ended: %+v", st)
					}
					return
				}
				w.wantToken(s)
			})
		})
	}
}

func TestRecordsThatCannotBeUsedArePutAside(t *testing.T) {
	for name, spoil := range map[string]func(stored string) string{
		"truncated":      func(s string) string { return s[:len(s)/2] },
		"empty":          func(string) string { return "" },
		"{}":             func(string) string { return "{}" },
		"zeros":          func(string) string { return strings.Repeat("\x00", 500) },
		"another client": func(s string) string { return strings.Replace(s, `"fingerprint":"`, `"fingerprint":"0`, 1) },
		"not a record":   func(string) string { return `["a","b"]` },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, flowtest.Config{}, func(w *world) {
				_, stop := w.loggedIn()
				stop()
				spoiled := ""
				for key, v := range w.store.all() {
					spoiled = spoil(v)
					if err := w.store.Save(context.Background(), key, []byte(spoiled)); err != nil {
						w.Fatal(err)
					}
				}
				s, _ := w.run()
				w.wantState(s, flow.StateLoginRequired)
				w.wantError(s, flow.CodeStorageFailed, flow.ActionReauthorize)
				w.login(s)
				w.wantError(s, "", "")
				found := false
				for key, v := range w.store.all() {
					found = found || strings.HasSuffix(key, ".refused") && v == spoiled
				}
				if !found {
					w.Fatal("the record was not put aside")
				}
			})
		})
	}
}

func TestDamagedAccessTokenInARecordCostsNoLogin(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		s, stop := w.loggedIn()
		token := s.Current().Value().Reveal()
		stop()
		for key, v := range w.store.all() {
			if err := w.store.Save(context.Background(), key, []byte(strings.Replace(v, token, "a b", 1))); err != nil {
				w.Fatal(err)
			}
		}
		s, _ = w.run()
		w.wantToken(s)
		w.wantCount(flowtest.Refresh, 1)
	})
}

func TestEndBeforeTheStoreAnswersWritesNothing(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		_, stop := w.loggedIn()
		stop()
		stored, writes := w.store.record(), w.store.count("save")+w.store.count("delete")
		release := make(chan struct{})
		w.store.setFault(holding("load", release))
		s, stop := w.run()
		go func() { _, _ = s.Login(context.Background()) }()
		s.Demand()
		synctest.Wait()
		go func() {
			time.Sleep(time.Second)
			close(release)
		}()
		stop()
		w.sleep(2 * time.Second)
		if w.store.record() != stored || w.store.count("save")+w.store.count("delete") != writes {
			w.Fatal("the stored login was touched")
		}
		if n := w.as.Count(flowtest.Device); n != 1 {
			w.Fatal("a login began at the end")
		}
	})
}

func TestEndNeverOverwritesALoginThatCouldNotBeRead(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		_, stop := w.loggedIn()
		stop()
		stored := w.store.record()
		w.store.setFault(failing("load"))
		s, stop := w.run()
		w.sleep(11 * time.Second)
		if _, err := s.Login(w.Context()); err != nil {
			w.Fatal(err)
		}
		w.as.ApproveAll()
		w.sleep(5 * time.Second)
		w.wantToken(s)
		stop()
		if w.store.record() != stored {
			w.Fatal("it was overwritten")
		}
	})
}

func TestCallersWaitForATokenThatIsBeingSaved(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		_, stop := w.loggedIn()
		stop()
		w.sleep(2 * time.Hour)
		release := make(chan struct{})
		w.store.setFault(w.holdingResults(release))
		s, _ := w.run()
		s.Rouse() // refreshes at once
		w.sleep(flow.Settling)
		w.wantState(s, flow.StateUnavailable)
		w.wantCount(flowtest.Refresh, 1)
		go func() {
			_, _ = s.Login(w.Context()) // has something saved, too
		}()
		go func() {
			time.Sleep(time.Second)
			close(release)
		}()
		begin := time.Now()
		w.wantToken(s)
		if time.Since(begin) != time.Second {
			w.Fatalf("waited %v", time.Since(begin))
		}
	})
}

func TestRecordOfANewerReleaseIsLeftAlone(t *testing.T) {
	bubble(t, flowtest.Config{AccessTokenLifetime: time.Minute}, func(w *world) {
		_, stop := w.loggedIn()
		stop()
		var key, newer string
		for k, v := range w.store.all() {
			key, newer = k, strings.Replace(v, `"version":1`, `"version":2`, 1)
		}
		if err := w.store.Save(context.Background(), key, []byte(newer)); err != nil {
			w.Fatal(err)
		}
		s, stop := w.run()
		w.wantState(s, flow.StateLoginRequired)
		w.wantError(s, flow.CodeStorageFailed, flow.ActionReauthorize)
		st, err := s.Login(w.Context())
		if err != nil {
			w.Fatal(err)
		}
		if err := w.as.Approve(st.Login.UserCode); err != nil {
			w.Fatal(err)
		}
		w.sleep(10 * time.Minute)
		w.wantState(s, flow.StateDegraded)
		w.wantToken(s)
		stop()
		if all := w.store.all(); len(all) != 1 || all[key] != newer {
			w.Fatal("the record of the newer release was touched")
		}
	})
}

// slowReader has the read that is armed return late what was stored before.
type slowReader struct {
	*testStore
	late atomic.Int64 // of the next read, once
}

func (s *slowReader) Load(ctx context.Context, key string) ([]byte, error) {
	late := s.late.Swap(0)
	b, err := s.testStore.Load(ctx, key)
	time.Sleep(time.Duration(late))
	return b, err
}

// A login has looked into the store while the first read of it was still under
// way. What that brings in the end is old by then.
func TestLateReadIsNotTakenForWhatIsStoredNow(t *testing.T) {
	bubble(t, flowtest.Config{Interval: time.Second}, func(w *world) {
		store := &slowReader{testStore: w.store}
		w.cfg.Store = store
		before, stop := w.run()
		st, err := before.Login(w.Context())
		if err != nil {
			w.Fatal(err)
		}
		stop()

		w.store.setFault(failing("load"))
		s, stop := w.run()
		w.store.setFault(nil)
		store.late.Store(int64(9 * time.Second))
		w.sleep(time.Second) // the second attempt has begun
		if store.late.Load() != 0 {
			w.Fatal("it does not read again")
		}
		if now, err := s.Login(w.Context()); err != nil || now.Login == nil || now.Login.UserCode != st.Login.UserCode {
			w.Fatalf("%v, %s", err, asJSON(now))
		}
		if err := w.as.Deny(st.Login.UserCode); err != nil {
			w.Fatal(err)
		}
		w.sleep(4 * time.Second)
		w.wantError(s, "access_denied", flow.ActionReauthorize)
		w.sleep(10 * time.Second) // the late read has come
		w.wantState(s, flow.StateLoginRequired)
		w.wantError(s, "access_denied", flow.ActionReauthorize)
		stop()

		s, _ = w.run()
		s.Demand()
		w.sleep(time.Second)
		w.wantState(s, flow.StateLoginRequired) // only a person asks again
		w.wantError(s, "access_denied", flow.ActionReauthorize)
		w.wantCount(flowtest.Device, 1)
	})
}
