package flow_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// accessOnly is a server that grants no refresh token.
var accessOnly = flowtest.Config{OmitRefreshToken: true}

// madeIn1970 logs in, stops, and makes the session again later with a wall clock that
// stands long before that.
func (w *world) madeIn1970(later time.Duration) *flow.Session {
	w.Helper()
	_, stop := w.loggedIn()
	stop()
	w.sleep(later)
	s, err := flow.New(w.cfg)
	if err != nil {
		w.Fatal(err)
	}
	s.Skew(-26 * 365 * 24 * time.Hour)
	return s
}

// keepRunning has a session run until the end of the test.
func (w *world) keepRunning(s *flow.Session) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Run(ctx)
	}()
	w.Cleanup(func() { cancel(); <-done })
	synctest.Wait()
}

func (w *world) bornIn1970(later time.Duration) *flow.Session {
	w.Helper()
	s := w.madeIn1970(later)
	w.keepRunning(s)
	return s
}

// S82 of the scorecard, for a login that is an access token and nothing else.
func TestCorrectedClockEndsNoAccessTokenThatIsAlive(t *testing.T) {
	bubble(t, accessOnly, func(w *world) {
		s := w.bornIn1970(time.Minute)
		token := w.wantToken(s)
		w.sleep(time.Minute)
		s.StepClock(0)
		w.sleep(2 * time.Second)
		if got := w.wantToken(s); !got.Value().Equal(token.Value()) {
			w.Fatal("another token")
		}
		w.wantState(s, flow.StateAuthorized)
		if at := s.Status().Token.ExpiresAt; at == nil || !at.After(time.Now()) {
			w.Errorf("it is said to end at %v", at)
		}
		w.sleep(time.Hour)
		w.wantState(s, flow.StateLoginRequired)
		w.wantCount(flowtest.Device, 1)
	})
}

// Nobody knows how old such a token is: the API does.
func TestRefusedAccessTokenOfUnknownAgeIsGivenUp(t *testing.T) {
	for name, synced := range map[string]bool{"before the clock is right": false, "afterwards": true} {
		t.Run(name, func(t *testing.T) {
			bubble(t, accessOnly, func(w *world) {
				s := w.bornIn1970(2 * time.Hour)
				if synced {
					s.StepClock(0)
					w.sleep(2 * time.Second)
				}
				token := s.Current()
				if token == nil {
					w.Fatal("no token")
				}
				if s.Replace(w.Context(), token) != nil {
					w.Fatal("another token out of nothing")
				}
				w.wantState(s, flow.StateLoginRequired)
				w.login(s)
				token = w.wantToken(s)
				if s.Replace(w.Context(), token) != nil { // the API alone may be wrong about one call
					w.Fatal("another token out of nothing")
				}
				w.wantState(s, flow.StateAuthorized)
			})
		})
	}
}

// One instance hears from the API that a login is over; the other does not write
// again what that one has taken out of the store.
func TestAccessTokenThatWasGivenUpStaysSo(t *testing.T) {
	share(t, 2, flowtest.Config{}, func(c *cluster) {
		c.loginAll()
		c.as.RevokeAll()
		if _, err := c.all[0].Refresh(c.Context()); err == nil {
			c.Fatal("no error")
		}
		c.sleep(within)
		if c.all[0].Replace(c.Context(), c.all[0].Current()) != nil {
			c.Fatal("another token out of nothing")
		}
		c.sleep(within)
		c.wantStates(flow.StateLoginRequired)
		key, _ := c.shared.only()
		saves := c.shared.saves(key)
		c.sleep(10 * time.Second)
		if n := c.shared.saves(key) - saves; n > 0 {
			c.Errorf("%d saves with nothing going on", n)
		}
	})
}

func (s *sharedStore) saves(key string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.past[key])
}

// A token that only the wall clock speaks against may be used again, but not when
// another login has taken its place.
func TestDoubtedTokenEndsWithItsLogin(t *testing.T) {
	for name, end := range map[string]func(w *world, s *flow.Session){
		"a logout":    func(w *world, s *flow.Session) { _ = s.Logout(w.Context()) },
		"a new login": func(*world, *flow.Session) {},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, flowtest.Config{}, func(w *world) {
				s, _ := w.loggedIn()
				old := w.wantToken(s)
				w.as.Script(flowtest.Refresh, flowtest.Response{Hang: true})
				s.StepClock(2 * time.Hour)
				w.sleep(2 * time.Second)
				if s.Current() != nil {
					w.Fatal("the clock was not heeded")
				}
				end(w, s)
				w.as.Script(flowtest.Poll, member("access_token", "of no use"))
				w.as.Script(flowtest.Refresh, flowtest.Response{Status: 503})
				st, err := s.Login(w.Context())
				if err != nil {
					w.Fatal(err)
				}
				if err := w.as.ApproveAs(st.Login.UserCode, flowtest.User{Subject: "bob", Name: "Bob"}); err != nil {
					w.Fatal(err)
				}
				w.slowSaves(time.Second) // until then, what was in use stays so
				for range 100 {
					w.sleep(100 * time.Millisecond)
					if got := s.Current(); got != nil && got.Value().Equal(old.Value()) {
						w.Fatal("the token of the login before is in use")
					}
				}
				w.sleep(time.Minute)
				w.wantState(s, flow.StateAuthorized)
				if a := s.Status().Account; a == nil || a.Subject != "bob" {
					w.Fatalf("account %s", asJSON(a))
				}
				w.wantToken(s)
			})
		})
	}
}
