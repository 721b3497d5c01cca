package flow_test

import (
	"context"
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// slowSaves has each save take d.
func (w *world) slowSaves(d time.Duration) {
	w.store.setFault(func(op, _ string) error {
		if op == "save" {
			time.Sleep(d)
		}
		return nil
	})
}

// inTime fails the test when f takes longer than d.
func (w *world) inTime(what string, d time.Duration, f func(ctx context.Context) error) {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), d)
	defer cancel()
	if err := f(ctx); err != nil {
		w.Fatalf("%s: %v", what, err)
	}
}

// The code comes while the store has not taken the refresh's claim yet, or its
// token, or the other way round: each is told when it is stored, and none is lost.
func TestLoginDuringARefreshIsHeardOf(t *testing.T) {
	for _, ms := range []int{0, 100, 500, 900, 1300, 1500, 1700} {
		late := time.Duration(ms) * time.Millisecond
		t.Run(late.String(), func(t *testing.T) {
			bubble(t, flowtest.Config{}, func(w *world) {
				s, _ := w.loggedIn()
				w.slowSaves(500 * time.Millisecond)
				w.forgetEvents()
				refreshed := make(chan error, 1)
				go func() {
					_, err := s.Refresh(w.Context())
					refreshed <- err
				}()
				time.Sleep(late)
				w.inTime("login", 10*time.Second, func(ctx context.Context) error {
					st, err := s.Login(ctx)
					if err == nil && st.Login == nil {
						w.Error("no code")
					}
					return err
				})
				w.inTime("refresh", 10*time.Second, func(ctx context.Context) error {
					select {
					case err := <-refreshed:
						return err
					case <-ctx.Done():
						return ctx.Err()
					}
				})
				w.sleep(0)
				if n := w.count(flow.EventLoginPending); n != 1 {
					w.Errorf("%d events about the code: %q", n, w.kinds())
				}
				if n := w.count(flow.EventTokenRefreshed); n != 1 {
					w.Errorf("%d events about the refresh: %q", n, w.kinds())
				}
				w.wantCount(flowtest.Refresh, 1)
			})
		})
	}
}

// A refresh that somebody asks for while the code of another login is being saved
// comes right after it.
func TestRefreshAskedForWhileACodeIsBeingSaved(t *testing.T) {
	while := func(t *testing.T, f func(w *world, s *flow.Session)) {
		bubble(t, flowtest.Config{}, func(w *world) {
			s, _ := w.loggedIn()
			w.slowSaves(500 * time.Millisecond)
			go func() { _, _ = s.Login(w.Context()) }()
			time.Sleep(100 * time.Millisecond)
			f(w, s)
			w.sleep(10 * time.Second)
			w.wantCount(flowtest.Refresh, 1)
			if n := w.count(flow.EventLoginPending); n != 2 {
				w.Errorf("%d events about two codes: %q", n, w.kinds())
			}
		})
	}
	t.Run("by a person", func(t *testing.T) {
		while(t, func(w *world, s *flow.Session) {
			w.inTime("refresh", 5*time.Second, func(ctx context.Context) error {
				_, err := s.Refresh(ctx)
				return err
			})
		})
	})
	t.Run("by a 401", func(t *testing.T) {
		while(t, func(w *world, s *flow.Session) {
			token := s.Current()
			if s.Replace(w.Context(), token) == nil {
				w.Error("no better token")
			}
		})
	})
	t.Run("by two", func(t *testing.T) {
		while(t, func(w *world, s *flow.Session) {
			token := s.Current()
			s.Reject(token)
			if s.Replace(w.Context(), token) == nil {
				w.Error("no better token")
			}
		})
	})
}
