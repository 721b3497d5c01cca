package flow

import (
	"context"
	"errors"
)

// Discard removes what is stored of a session that nobody ever logged in to and
// that has no code out, so that callers who come once leave nothing behind. It is
// for a session whose Run has ended. What a person has decided stays: a login, a
// logout, a refusal. So does what cannot be read, and all that is in a store that
// is no [Deleter].
func (s *Session) Discard(ctx context.Context) error {
	select {
	case <-s.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	c := s.client.Load()
	d, ok := c.Store.(Deleter)
	if !ok {
		return nil
	}
	if b, err := c.load(ctx); b == nil {
		if errors.Is(err, ErrNotFound) {
			err = nil // as after most calls of a stranger
		}
		return err
	}
	// Whoever asks for a code, here or in another instance, holds this lock until
	// the code is in the store.
	unlock := c.lock(ctx, "login", loginLockWait)
	defer unlock()
	b, r, err := c.read(ctx)
	if b == nil || r == nil || err != nil || r.loggedIn() || r.pending != nil || r.generation > 0 || r.held {
		return err
	}
	return d.Delete(ctx, c.storageKey)
}
