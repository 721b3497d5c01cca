package flow

import (
	"context"
	"io/fs"
	"sync"
)

// ErrNotFound is what [Store.Load] returns, wrapped or not, for a key that has
// no value. It is fs.ErrNotExist so that file systems fit as they are.
var ErrNotFound = fs.ErrNotExist

// MaxRecord is more bytes than any record has, sealed and at a server that sends the
// longest tokens and names it can. Most have a few thousand.
const MaxRecord = 8 << 20

// Store keeps records across restarts. Its methods may be called at any time,
// from several goroutines, and must end when the context does.
//
//   - Save either replaces the value whole or leaves the old one; when it has
//     returned nil, the value survives a crash of the process.
//   - Load returns what the last Save stored, by whichever instance, or an error
//     that is [ErrNotFound]. It may be a few seconds behind.
//
// A session calls nothing of it before [Session.Run]. Sessions of several
// processes may share a store; see [Locker].
type Store interface {
	Load(ctx context.Context, key string) ([]byte, error)
	Save(ctx context.Context, key string, value []byte) error
}

// Locker is what a [Store] that several instances share should have, too. Lock
// waits until nobody else holds the name, or until ctx ends, and returns the
// function that gives it back.
//
// ctx is for the waiting only, and ends as soon as Lock has returned: a lock is
// held until it is given back, whatever becomes of ctx. A Lock that waits for
// longer than ctx is not waited for. After eight of those nobody asks it any more
// until one returns.
//
// A lock is a courtesy that spares exchanges with the server: it may fail, hang,
// be orphaned, or do nothing. Whoever got one loads again before acting, and
// whoever did not get one in time acts without.
type Locker interface {
	Lock(ctx context.Context, name string) (unlock func(), err error)
}

// Deleter is what a [Store] may have, too. Delete removes a value; that there is
// none is no error. Only [Session.Discard] calls it.
type Deleter interface {
	Delete(ctx context.Context, key string) error
}

// MemoryStore is a [Store] that forgets everything with the process. The zero
// value is ready to use.
type MemoryStore struct {
	mu     sync.Mutex
	values map[string]Secret // records reveal tokens
	locks  map[string]chan struct{}
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

// Delete implements [Deleter].
func (m *MemoryStore) Delete(_ context.Context, key string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.values, key)
	return nil
}

// Lock implements [Locker].
func (m *MemoryStore) Lock(ctx context.Context, name string) (func(), error) {
	for {
		m.mu.Lock()
		held, taken := m.locks[name]
		if !taken {
			if m.locks == nil {
				m.locks = make(map[string]chan struct{})
			}
			mine := make(chan struct{})
			m.locks[name] = mine
			m.mu.Unlock()
			return func() {
				m.mu.Lock()
				delete(m.locks, name)
				m.mu.Unlock()
				close(mine)
			}, nil
		}
		m.mu.Unlock()
		select {
		case <-held:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

var (
	_ Store   = (*MemoryStore)(nil)
	_ Locker  = (*MemoryStore)(nil)
	_ Deleter = (*MemoryStore)(nil)
)
