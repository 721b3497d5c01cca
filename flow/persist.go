package flow

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	storeTimeout  = 10 * time.Second
	publishAnyway = 2 * time.Second // a new token is used after this even if the store hangs
	saveRetryMin  = time.Second
	saveRetryMax  = 30 * time.Second
)

// saveState is the owner's memory of storing.
type saveState struct {
	running  bool
	dirty    bool // the record has changed since the last save began
	failures int
	next     time.Time
	err      *StatusError
	// held runs when the record has been saved, or at heldUntil at the latest:
	// a rotated refresh token is on disk before anybody hears of its access token.
	held      func()
	heldUntil time.Time
}

// load reads the stored login. Until it is through, callers wait.
func (s *Session) load() {
	c := s.client.Load()
	s.job(func(ctx context.Context) func() {
		ctx, cancel := context.WithTimeout(ctx, storeTimeout)
		defer cancel()
		key := c.storageKey()
		b, err := c.Store.Load(ctx, key)
		var r *record
		switch {
		case err == nil:
			if r, err = decodeRecord(b, c.Fingerprint()); err != nil {
				// Never overwrite in silence what a person may still need.
				if aside := c.Store.Save(ctx, key+".refused", b); aside != nil {
					err = fmt.Errorf("%w; and it could not be put aside: %w", err, aside)
				}
			}
		case errors.Is(err, ErrNotFound):
			err = nil
		}
		return func() { s.loadedRecord(r, err) }
	})
}

// loadedRecord begins the session's life with what was stored.
func (s *Session) loadedRecord(r *record, err error) {
	now := time.Now()
	s.loaded = true
	if err != nil {
		e := &Error{Kind: KindTemporary, Op: "reading the stored login", Code: CodeStorageFailed, Err: err}
		s.save.err = statusError(e, time.Time{})
		s.save.err.Action = ActionReauthorize
		s.observe(Event{Kind: EventStoreFailed, Err: e})
	}
	if r != nil {
		if p := r.pending; p != nil {
			if now.Round(0).Before(p.info.ExpiresAt) {
				p.nextPoll = now.Add(p.interval)
			} else {
				r.pending = nil
			}
		}
		s.rec = r
		s.refresh.next = r.refreshAt
		s.useAdopted()
		if s.token == nil && !r.refresh.IsZero() {
			s.startRefresh()
		}
		if s.token == nil && r.refresh.IsZero() {
			r.access = Secret{} // lapsed, and nothing to renew it with
		}
	}
	s.publish()
}

// changed notes that the record has to be saved, soon.
func (s *Session) changed() {
	s.save.dirty = true
	s.stepSave(time.Now())
}

// changedThen saves the record and then runs f; f does not wait for ever.
func (s *Session) changedThen(f func()) {
	if held := s.save.held; held != nil {
		// A login overtakes a refresh that waits for the store.
		s.save.held = nil
		held()
	}
	s.save.held, s.save.heldUntil = f, time.Now().Add(publishAnyway)
	s.save.next = time.Time{} // a new secret is worth an attempt at once
	s.changed()
}

// stepSave saves if there is something to save and the store had its pause.
func (s *Session) stepSave(now time.Time) {
	if s.save.held != nil && !now.Before(s.save.heldUntil) {
		s.release()
	}
	if !s.save.dirty || s.save.running || now.Before(s.save.next) || s.closing {
		return
	}
	s.save.running, s.save.dirty = true, false
	c := s.client.Load()
	b, err := s.encoded()
	s.job(func(ctx context.Context) func() {
		if err == nil {
			err = c.write(ctx, b)
		}
		return func() { s.saved(err) }
	})
}

// encoded is the record for the store, nil when there is nothing to keep.
func (s *Session) encoded() ([]byte, error) {
	if !s.rec.loggedIn() && s.rec.pending == nil {
		return nil, nil
	}
	return s.rec.encode()
}

func (c *client) write(ctx context.Context, b []byte) error {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	if b == nil {
		return c.Store.Delete(ctx, c.storageKey())
	}
	return c.Store.Save(ctx, c.storageKey(), b)
}

func (s *Session) saved(err error) {
	s.save.running = false
	failed := s.save.err != nil
	if err != nil {
		s.save.dirty = true
		s.save.failures++
		s.save.next = time.Now().Add(backoff(s.save.failures, saveRetryMin, saveRetryMax))
		e := &Error{Kind: KindTemporary, Op: "storing the login", Code: CodeStorageFailed, Err: err}
		s.save.err = statusError(e, s.save.next)
		s.release()
		s.publish()
		if !failed {
			s.observe(Event{Kind: EventStoreFailed, Err: e})
		}
		return
	}
	s.save.failures, s.save.err = 0, nil
	if s.save.dirty {
		s.stepSave(time.Now()) // what is held may be in the next save only
	} else {
		s.release()
	}
	if failed {
		s.publish()
		s.observe(Event{Kind: EventStoreHealed})
	}
}

// release runs what waited for the store.
func (s *Session) release() {
	if f := s.save.held; f != nil {
		s.save.held = nil
		f()
	}
}

// lastSave is the attempt before Run returns.
func (s *Session) lastSave() {
	defer s.release()
	if !s.save.dirty {
		return
	}
	b, err := s.encoded()
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := s.client.Load().write(ctx, b); err != nil {
		s.observe(Event{Kind: EventStoreFailed, Err: err})
	}
}
