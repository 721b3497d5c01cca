package flow_test

import (
	"context"
	"maps"
	"strings"
	"sync"

	"github.com/deviceflow/caddy-deviceflow/flow"
)

// testStore is a store in memory that can fail, hang, and tell what it holds.
type testStore struct {
	mu    sync.Mutex
	m     map[string]string
	fault func(op, key string) error // called without the lock
	calls map[string]int
	keep  flow.MemoryStore
}

func (s *testStore) enter(op, key string) error {
	s.mu.Lock()
	if s.calls == nil {
		s.calls = map[string]int{}
	}
	s.calls[op]++
	fault := s.fault
	s.mu.Unlock()
	if fault != nil {
		return fault(op, key)
	}
	return nil
}

func (s *testStore) setFault(f func(op, key string) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
}

func (s *testStore) Load(ctx context.Context, key string) ([]byte, error) {
	if err := s.enter("load", key); err != nil {
		return nil, err
	}
	return s.keep.Load(ctx, key)
}

func (s *testStore) Save(ctx context.Context, key string, value []byte) error {
	if err := s.enter("save", key); err != nil {
		return err
	}
	s.mu.Lock()
	if s.m == nil {
		s.m = map[string]string{}
	}
	s.m[key] = string(value)
	s.mu.Unlock()
	return s.keep.Save(ctx, key, value)
}

// all is everything that is stored.
func (s *testStore) all() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.m)
}

// record is the one stored login, aside copies not counted, nor a record that
// says that there is none any more.
func (s *testStore) record() string {
	for key, v := range s.all() {
		if strings.HasSuffix(key, ".json") && (strings.Contains(v, "_token\"") || strings.Contains(v, "device_code")) {
			return v
		}
	}
	return ""
}

func (s *testStore) count(op string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[op]
}
