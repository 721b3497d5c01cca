package flow_test

import (
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// Only what nobody has decided goes: a code that ran out, but no code that is out,
// no login, no logout and no refusal.
func TestDiscardRemovesWhatNobodyHasDecided(t *testing.T) {
	for name, c := range map[string]struct {
		do   func(w *world, s *flow.Session)
		kept bool
	}{
		"a code that ran out": {func(w *world, s *flow.Session) { s.Demand(); w.sleep(20 * time.Minute) }, false},
		"a code that is out":  {func(w *world, s *flow.Session) { s.Demand(); w.sleep(time.Minute) }, true},
		"a login":             {func(w *world, s *flow.Session) { w.login(s) }, true},
		"a logout": {func(w *world, s *flow.Session) {
			w.login(s)
			if err := s.Logout(w.Context()); err != nil {
				w.Fatal(err)
			}
		}, true},
		"a refusal": {func(w *world, s *flow.Session) {
			st, err := s.Login(w.Context())
			if err != nil {
				w.Fatal(err)
			}
			if err := w.as.Deny(st.Login.UserCode); err != nil {
				w.Fatal(err)
			}
			w.sleep(20 * time.Second)
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, flowtest.Config{}, func(w *world) {
				w.cfg.Store = new(flow.MemoryStore)
				s, stop := w.run()
				c.do(w, s)
				stop()
				has := func() bool {
					_, err := w.cfg.Store.Load(w.Context(), w.cfg.StorageKey())
					return err == nil
				}
				if !has() {
					w.Fatal("nothing is stored")
				}
				if err := s.Discard(w.Context()); err != nil {
					w.Fatal(err)
				}
				if has() != c.kept {
					w.Fatalf("it is there: %v", has())
				}
			})
		})
	}
}
