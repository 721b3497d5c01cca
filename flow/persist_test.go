package flow_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

var errDisk = errors.New("no space left on device")

// failing makes every call of these operations fail.
func failing(ops ...string) func(op, key string) error {
	return func(op, _ string) error {
		if slices.Contains(ops, op) {
			return errDisk
		}
		return nil
	}
}

// holding makes calls of op wait until release is closed.
func holding(op string, release <-chan struct{}) func(op, key string) error {
	return func(x, _ string) error {
		if x == op {
			<-release
		}
		return nil
	}
}

// holdingResults is holding for saves, from the next refresh on.
func (w *world) holdingResults(release <-chan struct{}) func(op, key string) error {
	hold, before := holding("save", release), w.as.Count(flowtest.Refresh)
	return func(op, key string) error {
		if w.as.Count(flowtest.Refresh) == before {
			return nil // it is only said that one is coming
		}
		return hold(op, key)
	}
}

func TestRestartKeepsTheLogin(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		s, stop := w.loggedIn()
		token, before := w.wantToken(s), s.Status()
		stop()
		requests := len(w.as.Requests())
		s, stop = w.run()
		if got := w.wantToken(s); !got.Value().Equal(token.Value()) || !got.Expiry().Equal(token.Expiry()) {
			w.Fatal("another token after the restart")
		}
		after := s.Status()
		before.Since = after.Since
		// Late in what remains: a fleet that starts at once would be in step.
		left := time.Until(*after.Token.ExpiresAt)
		if in := time.Until(*after.Token.RefreshAt); in < left*79/100 || in > left*96/100 {
			w.Fatalf("refresh in %v of %v that remain", in, left)
		}
		before.Token.RefreshAt = after.Token.RefreshAt
		if asJSON(after) != asJSON(before) {
			w.Fatalf("status %s, want %s", asJSON(after), asJSON(before))
		}
		if n := len(w.as.Requests()); n != requests {
			w.Fatal("a restart with a good token asked the server")
		}
		stop()
		w.sleep(2 * time.Hour)
		s, _ = w.run()
		w.wantToken(s)
		w.wantCount(flowtest.Refresh, 1)
		w.wantCount(flowtest.Device, 1)
	})
}

func TestRestartKeepsThePendingCode(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		s, stop := w.run()
		st, err := s.Login(w.Context())
		if err != nil {
			w.Fatal(err)
		}
		w.sleep(7 * time.Second)
		stop()
		s, stop = w.run()
		w.wantState(s, flow.StatePending)
		if got := s.Status().Login; got.UserCode != st.Login.UserCode || got.VerificationURIComplete != st.Login.VerificationURIComplete || !got.ExpiresAt.Equal(st.Login.ExpiresAt) {
			w.Fatalf("login %s, want %s", asJSON(got), asJSON(st.Login))
		}
		w.as.ApproveAll()
		w.sleep(5 * time.Second)
		w.wantToken(s)
		w.wantCount(flowtest.Device, 1)

		// A code that ran out meanwhile is forgotten.
		if _, err := s.Login(w.Context()); err != nil {
			w.Fatal(err)
		}
		stop()
		w.sleep(16 * time.Minute)
		s, _ = w.run()
		if s.Status().Login != nil {
			w.Fatal("a dead code is shown")
		}
	})
}

func TestTokenIsSavedBeforeItIsUsed(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		s, _ := w.loggedIn()
		old := w.wantToken(s)
		release := make(chan struct{})
		w.store.setFault(w.holdingResults(release))
		done := make(chan error, 1)
		go func() {
			_, err := s.Refresh(w.Context())
			done <- err
		}()
		w.sleep(2*time.Second - time.Nanosecond)
		w.wantCount(flowtest.Refresh, 1)
		if s.Current() != old || len(done) != 0 {
			w.Fatal("somebody heard of the new token before it was saved")
		}
		close(release)
		synctest.Wait()
		if err := <-done; err != nil || s.Current() == old {
			w.Fatalf("the new token is not in use: %v", err)
		}
		if !strings.Contains(w.store.record(), s.Current().Value().Reveal()) {
			w.Fatal("the token in use is not in the store")
		}
		w.wantState(s, flow.StateAuthorized)

		// A store that hangs does not keep it for ever.
		release = make(chan struct{})
		w.store.setFault(holding("save", release))
		old = s.Current()
		go func() {
			_, err := s.Refresh(w.Context())
			done <- err
		}()
		w.sleep(2*time.Second - time.Nanosecond)
		if s.Current() != old {
			w.Fatal("used before its time")
		}
		w.sleep(time.Nanosecond)
		if err := <-done; err != nil || s.Current() == old {
			w.Fatalf("withheld for a hanging store: %v", err)
		}
		w.sleep(8*time.Second + time.Second)
		w.wantState(s, flow.StateDegraded)
		w.wantError(s, flow.CodeStorageFailed, flow.ActionRetry)
		close(release)
		w.sleep(time.Second)
		w.wantState(s, flow.StateAuthorized)
		if !strings.Contains(w.store.record(), s.Current().Value().Reveal()) {
			w.Fatal("the store healed without the token")
		}
	})
}

func TestFailingStoreDegradesAndHeals(t *testing.T) {
	bubble(t, flowtest.Config{AccessTokenLifetime: time.Minute}, func(w *world) {
		s, stop := w.loggedIn()
		w.forgetEvents()
		w.store.setFault(failing("save"))
		for range 600 {
			w.sleep(time.Second)
			w.wantToken(s)
		}
		w.wantState(s, flow.StateDegraded)
		w.wantError(s, flow.CodeStorageFailed, flow.ActionRetry)
		if n := w.store.count("save"); n > 60 {
			w.Fatalf("%d attempts in ten minutes", n)
		}
		if n := w.count(flow.EventStoreFailed); n != 1 {
			w.Fatalf("%d events for one outage", n)
		}
		w.store.setFault(nil)
		w.sleep(31 * time.Second)
		w.wantState(s, flow.StateAuthorized)
		w.wantError(s, "", "")
		if n := w.count(flow.EventStoreHealed); n != 1 {
			w.Fatalf("%d events for one recovery", n)
		}
		stop()
		s, _ = w.run()
		w.wantToken(s)
		if st := w.as.Stats(); st.Reuses != 0 || st.Logins != 1 {
			w.Fatalf("%+v", st)
		}
	})
}

func TestNewSecretIsTriedInTheStoreEvenIfAnOlderSaveFails(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		s, _ := w.run()
		if _, err := s.Login(w.Context()); err != nil {
			w.Fatal(err)
		}
		w.as.ApproveAll()
		release := make(chan struct{})
		w.store.setFault(func(op, _ string) error {
			if op != "save" {
				return nil
			}
			select {
			case <-release:
				return nil
			default:
			}
			<-release
			return errDisk // this one, of the slow_down, is too late and fails
		})
		w.as.Script(flowtest.Poll, flowtest.ErrorResponse(400, "slow_down"))
		w.sleep(16 * time.Second) // slow_down is being saved, then the login comes
		w.wantState(s, flow.StatePending)
		close(release)
		synctest.Wait()
		w.wantState(s, flow.StateAuthorized)
		if !strings.Contains(w.store.record(), s.Current().Value().Reveal()) {
			w.Fatal("the login was used without an attempt to save it")
		}
	})
}

func TestLoginOvertakesARefreshThatWaitsForTheStore(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		s, stop := w.loggedIn()
		st, err := s.Login(w.Context())
		if err != nil {
			w.Fatal(err)
		}
		w.sleep(4500 * time.Millisecond)
		if err := w.as.Approve(st.Login.UserCode); err != nil {
			w.Fatal(err)
		}
		old := s.Current()
		release := make(chan struct{})
		w.store.setFault(w.holdingResults(release))
		w.forgetEvents()
		done := make(chan error, 1)
		go func() {
			_, err := s.Refresh(w.Context())
			done <- err
		}()
		w.sleep(time.Second)
		if err := <-done; err != nil {
			w.Fatal(err)
		}
		refreshed := s.Current()
		if refreshed == old {
			w.Fatal("the refresh was lost")
		}
		close(release)
		synctest.Wait()
		if s.Current() == refreshed {
			w.Fatal("the login was lost")
		}
		w.wantToken(s)
		w.wantEvents("token_refreshed", "login_succeeded")
		stop()
		s, _ = w.run()
		if _, err := s.Refresh(w.Context()); err != nil {
			w.Fatal(err)
		}
		w.wantToken(s)
	})
}

func TestLogoutForgetsWhatWaitsForTheStore(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		s, _ := w.loggedIn()
		release := make(chan struct{})
		w.store.setFault(w.holdingResults(release))
		go func() { _, _ = s.Refresh(w.Context()) }()
		w.sleep(time.Second)
		w.forgetEvents()
		if err := s.Logout(w.Context()); err != nil {
			w.Fatal(err)
		}
		close(release)
		w.sleep(time.Second)
		w.wantEvents("authorized>login_required", "logged_out")
		if s.Current() != nil || w.store.record() != "" {
			w.Fatal("the login came back")
		}
	})
}

// What another program has left in the record's place is kept, if not at the first
// attempt, then at the next, and only then overwritten.
func TestDamagedRecordIsNotOverwrittenBeforeThereIsACopy(t *testing.T) {
	for name, refused := range map[string]int{"copied at once": 0, "not at the first attempt": 1, "at the fourth": 3} {
		t.Run(name, func(t *testing.T) {
			bubble(t, flowtest.Config{}, func(w *world) {
				s, stop := w.loggedIn()
				path, _, _ := w.files()
				w.put(path, "damaged")
				left := refused
				w.store.setFault(func(op, key string) error {
					if op == "save" && strings.HasSuffix(key, ".refused") && left > 0 {
						left--
						return errDisk
					}
					return nil
				})
				w.sleep(time.Minute)
				if _, record, aside := w.files(); aside != "damaged" || record == "damaged" {
					w.Fatalf("put aside: %q; stored: %q", aside, record)
				}
				w.wantState(s, flow.StateAuthorized)
				stop()
				s, _ = w.run()
				w.wantToken(s)
			})
		})
	}
}
