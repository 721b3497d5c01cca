package flow_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

func TestCallerIsServedWithinOneIntervalOfApproval(t *testing.T) {
	bubble(t, flowtest.Config{ApproveAfter: 3}, func(w *world) {
		s, _ := w.run()
		w.wantState(s, flow.StateLoginRequired)
		_, err := s.Token(w.Context())
		var notReady *flow.NotReadyError
		if !errors.As(err, &notReady) || notReady.Status.State != flow.StatePending || notReady.Status.Login == nil || notReady.RetryAfter < time.Second {
			w.Fatalf("a caller without a token gets %v, want to be told the code", err)
		}
		w.sleep(15 * time.Second)
		w.wantState(s, flow.StatePending)
		w.sleep(5 * time.Second)
		w.wantState(s, flow.StateAuthorized)
		w.wantToken(s)
		w.wantCount(flowtest.Poll, 4)
		w.wantEvents("unavailable>login_required", "login_required>pending", "login_pending", "pending>authorized", "login_succeeded")
	})
}

func TestNobodyThereMeansNoRequest(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		s, _ := w.run()
		w.sleep(time.Hour)
		if n := len(w.as.Requests()); n != 0 {
			w.Fatalf("%d requests with nobody there", n)
		}
		if n := w.store.count("save") + w.store.count("delete"); n != 0 {
			w.Fatalf("%d writes with nothing to keep", n)
		}
		w.wantState(s, flow.StateLoginRequired)
	})
}

func TestEagerSessionAsksAtOnce(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		w.cfg.Login = flow.LoginEager
		s, _ := w.run()
		w.wantState(s, flow.StatePending)
		w.wantCount(flowtest.Device, 1)
	})
}

func TestCallerWaitsForALoginAsLongAsItLikes(t *testing.T) {
	bubble(t, flowtest.Config{ApproveAfter: 2}, func(w *world) {
		s, _ := w.run()
		begin := time.Now()
		token, err := s.Await(w.Context(), time.Minute)
		if err != nil || token == nil || time.Since(begin) != 15*time.Second {
			w.Fatalf("%v after %v", err, time.Since(begin))
		}
		if err := s.Logout(w.Context()); err != nil {
			w.Fatal(err)
		}
		w.as.SetConfig(func(c *flowtest.Config) { c.ApproveAfter = 1000 })
		begin = time.Now()
		var notReady *flow.NotReadyError
		if _, err := s.Await(w.Context(), 7*time.Second); !errors.As(err, &notReady) || time.Since(begin) != 7*time.Second {
			w.Fatalf("%v after %v", err, time.Since(begin))
		}
		ctx, cancel := context.WithTimeout(w.Context(), time.Second)
		defer cancel()
		if _, err := s.Await(ctx, time.Minute); !errors.Is(err, context.DeadlineExceeded) {
			w.Fatalf("a caller who left got %v", err)
		}
	})
}

func TestManyCallersAtTheInstantOfExpiryShareOneRefresh(t *testing.T) {
	bubble(t, flowtest.Config{AccessTokenLifetime: 10 * time.Second}, func(w *world) {
		s, stop := w.loggedIn()
		// The refresh begins at 70 to 85 % of the lifetime, so this spans the expiry.
		slow := flowtest.Response{Pass: true, Delay: 4 * time.Second}
		w.as.Script(flowtest.Refresh, slow)
		time.Sleep(time.Until(s.Current().Expiry()) - time.Nanosecond)
		if s.Current() == nil {
			w.Fatal("the token was withheld before its time")
		}
		time.Sleep(time.Nanosecond)
		w.callAtOnce(s, 1000)
		w.wantToken(s)
		w.wantCount(flowtest.Refresh, 1)
		if n := w.as.Count(flowtest.Device); n != 1 {
			w.Fatalf("%d logins", n)
		}

		// The same after a time when nothing ran.
		stop()
		time.Sleep(time.Hour)
		w.as.Script(flowtest.Refresh, slow)
		s, err := flow.New(w.cfg)
		if err != nil {
			w.Fatal(err)
		}
		ctx, cancel := context.WithCancel(w.Context())
		defer cancel()
		go s.Run(ctx)
		w.callAtOnce(s, 1000)
		w.wantToken(s)
		w.wantCount(flowtest.Refresh, 2)
	})
}

// callAtOnce asks for a token n times and asserts that each call gets one. Half
// of the calls race with the owner, half come when it has done what was due.
func (w *world) callAtOnce(s *flow.Session, n int) {
	w.Helper()
	var wg sync.WaitGroup
	failed := make(chan error, n)
	for i := range n {
		if i == n/2 {
			synctest.Wait()
		}
		wg.Go(func() {
			if _, err := s.Token(w.Context()); err != nil {
				failed <- err
			}
		})
	}
	wg.Wait()
	if len(failed) > 0 {
		w.Fatalf("%d of %d calls failed, the first with: %v", len(failed), n, <-failed)
	}
}

func TestWithoutTokenNorAnswerCallersFailFast(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		w.as.ScriptAlways(flowtest.Device, flowtest.Response{Hang: true})
		s, _ := w.run()
		begin := time.Now()
		call := func(most time.Duration) {
			w.Helper()
			begin := time.Now()
			var notReady *flow.NotReadyError
			if _, err := s.Token(w.Context()); !errors.As(err, &notReady) || time.Since(begin) > most {
				w.Fatalf("%v after %v", err, time.Since(begin))
			}
		}
		call(2 * time.Second) // whoever starts the login gives its code a moment
		for range 1000 {
			call(0)
		}
		w.sleep(30*time.Second - time.Since(begin))
		w.wantError(s, flow.CodeUnreachable, flow.ActionRetry)
		w.wantCount(flowtest.Device, 1)
	})
}

func TestTwoLoginsAtOnceAreOne(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		s, _ := w.run()
		w.as.Script(flowtest.Device, flowtest.Response{Pass: true, Delay: time.Second})
		var wg sync.WaitGroup
		codes := make([]string, 10)
		for i := range codes {
			wg.Go(func() {
				st, err := s.Login(w.Context())
				if err != nil {
					w.Error(err)
					return
				}
				codes[i] = st.Login.UserCode
			})
		}
		wg.Wait()
		for _, c := range codes {
			if c == "" || c != codes[0] {
				w.Fatalf("codes %q", codes)
			}
		}
		w.wantCount(flowtest.Device, 1)
		if st, err := s.Login(w.Context()); err != nil || st.Login.UserCode != codes[0] {
			w.Fatal("a code that is out was not kept")
		}
		w.wantCount(flowtest.Device, 1)
	})
}

func TestCallsAfterTheEndDoNotBlock(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		s, stop := w.run()
		stop()
		ctx := context.Background()
		other := w.source(s, flow.Want{Audience: "https://a.example"})
		for name, call := range map[string]func() (*flow.Token, error){
			"token":                 func() (*flow.Token, error) { return s.Token(ctx) },
			"await":                 func() (*flow.Token, error) { return s.Await(ctx, time.Hour) },
			"token for another API": func() (*flow.Token, error) { return other.Token(ctx) },
		} {
			var notReady *flow.NotReadyError
			if _, err := call(); !errors.As(err, &notReady) || !errors.Is(err, flow.ErrClosed) || notReady.RetryAfter < time.Second {
				w.Errorf("%s: %v", name, err)
			}
		}
		if _, err := s.Login(ctx); !errors.Is(err, flow.ErrClosed) {
			w.Error(err)
		}
		if _, err := s.Refresh(ctx); !errors.Is(err, flow.ErrClosed) {
			w.Error(err)
		}
		if err := s.Logout(ctx); !errors.Is(err, flow.ErrClosed) {
			w.Error(err)
		}
		s.Demand()
		if err := s.SetConfig(w.cfg); err != nil {
			w.Error(err)
		}
	})
}

// Requests that outlive their configuration still have the token, and no longer
// than it lives.
func TestTokenIsHandedOutAfterTheEndUntilItLapses(t *testing.T) {
	bubble(t, minute, func(w *world) {
		s, stop := w.loggedIn()
		other := w.source(s, apiA)
		w.wantFor(other, "https://a.example")
		sources := map[string]flow.Source{"the session": s, "another API": other}
		stop()
		for name, src := range sources {
			token := src.Current()
			if got, err := src.Token(w.Context()); err != nil || got != token {
				w.Errorf("%s: %v", name, err)
			}
			if got, err := src.Await(w.Context(), time.Minute); err != nil || got != token {
				w.Errorf("%s: %v", name, err)
			}
		}
		w.sleep(time.Minute)
		for name, src := range sources {
			var notReady *flow.NotReadyError
			if _, err := src.Token(w.Context()); !errors.Is(err, flow.ErrClosed) || !errors.As(err, &notReady) || notReady.Status.State.Usable() {
				w.Errorf("%s: %v", name, err)
			}
			if _, err := src.Await(w.Context(), time.Minute); !errors.Is(err, flow.ErrClosed) {
				w.Errorf("%s: %v", name, err)
			}
		}
	})
}

func TestEndIsToldToThoseWhoWait(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		s, stop := w.run()
		waited := make(chan error, 1)
		go func() {
			_, err := s.Await(context.Background(), time.Hour)
			waited <- err
		}()
		w.sleep(time.Minute)
		stop()
		if err := <-waited; !errors.Is(err, flow.ErrClosed) {
			w.Error(err)
		}
	})
}

func TestSessionThatDoesNotRunYetHoldsNobodyUpForEver(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		s, err := flow.New(w.cfg)
		if err != nil {
			w.Fatal(err)
		}
		begin := time.Now()
		var notReady *flow.NotReadyError
		if _, err := s.Token(context.Background()); !errors.As(err, &notReady) || time.Since(begin) > 10*time.Second {
			w.Fatalf("%v after %v", err, time.Since(begin))
		}
	})
}
