package flow

import (
	"context"
	"io/fs"
	"sync"
)

// ErrNotFound is what [Store.Load] returns, wrapped or not, for a key that has
// no value. It is fs.ErrNotExist so that file systems fit as they are.
var ErrNotFound = fs.ErrNotExist

// Store keeps records across restarts. Its methods may be called at any time,
// from several goroutines, and must end when the context does.
//
//   - Save either replaces the value whole or leaves the old one; when it has
//     returned nil, the value survives a crash of the process.
//   - Load returns what the last Save stored, or an error that is [ErrNotFound].
//   - Delete of a key that is not there is no error.
//
// A session calls nothing of it before [Session.Run].
type Store interface {
	Load(ctx context.Context, key string) ([]byte, error)
	Save(ctx context.Context, key string, value []byte) error
	Delete(ctx context.Context, key string) error
}

// MemoryStore is a [Store] that forgets everything with the process. The zero
// value is ready to use.
type MemoryStore struct {
	mu     sync.Mutex
	values map[string]Secret // records reveal tokens
}

// Load implements [Store].
func (m *MemoryStore) Load(_ context.Context, key string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, ok := m.values[key]
	if !ok {
		return nil, ErrNotFound
	}
	return []byte(v.Reveal()), nil
}

// Save implements [Store].
func (m *MemoryStore) Save(_ context.Context, key string, value []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.values == nil {
		m.values = make(map[string]Secret)
	}
	m.values[key] = NewSecret(string(value))
	return nil
}

// Delete implements [Store].
func (m *MemoryStore) Delete(_ context.Context, key string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.values, key)
	return nil
}

var _ Store = (*MemoryStore)(nil)
