package flow_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// deafStore has a lock that heeds no context, and never comes.
type deafStore struct {
	*testStore
	healed  chan struct{}
	waiting atomic.Int32
	asked   atomic.Int32
}

func (s *deafStore) Lock(context.Context, string) (func(), error) {
	s.asked.Add(1)
	s.waiting.Add(1)
	defer s.waiting.Add(-1)
	<-s.healed
	return func() {}, nil
}

// A store that is broken like that costs a few goroutines and no refresh.
func TestLocksThatNeverComeDoNotPileUp(t *testing.T) {
	bubble(t, flowtest.Config{AccessTokenLifetime: 10 * time.Second}, func(w *world) {
		store := &deafStore{testStore: w.store, healed: make(chan struct{})}
		w.cfg.Store = store
		s, _ := w.run()
		if _, err := s.Login(w.Context()); err != nil {
			w.Fatal(err)
		}
		w.as.ApproveAll()
		w.sleep(10 * time.Second)
		for range 300 {
			w.wantToken(s)
			w.sleep(time.Second)
		}
		if n := store.waiting.Load(); n > 8 {
			w.Errorf("%d attempts to lock hang", n)
		}
		if err := s.SetConfig(w.cfg); err != nil { // the same store in another configuration
			w.Fatal(err)
		}
		w.sleep(time.Minute)
		if n := store.waiting.Load(); n > 8 {
			w.Errorf("%d attempts to lock hang", n)
		}
		before := store.asked.Load()
		close(store.healed)
		w.sleep(time.Minute)
		w.wantToken(s)
		if store.asked.Load() == before {
			w.Error("the lock is not asked for again")
		}
		w.wantState(s, flow.StateAuthorized)
	})
}
