package flow

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	storeTimeout    = 10 * time.Second
	publishAnyway   = 2 * time.Second // a new token is used after this even if the store hangs
	saveRetryMin    = time.Second
	saveRetryMax    = 30 * time.Second
	loadPatience    = 10 * time.Second // no login is asked of anybody while the store may just be slow to come
	lastSaveTimeout = time.Second
	asideSuffix     = ".refused" // of the key of a record that is put aside
)

// saveState is the owner's memory of storing.
type saveState struct {
	running  bool // there is one call at a time, so that none overtakes another
	began    time.Time
	slow     bool      // the running call has been reported
	unread   bool      // the store has not been read; nothing is written before
	patience time.Time // until then a login may yet be found in the store
	dirty    bool      // the record has changed since the last save began
	failures int
	next     time.Time
	err      *StatusError
	// held runs when the record has been saved, or at heldUntil at the latest:
	// a rotated refresh token is on disk before anybody hears of its access token.
	held      func()
	heldUntil time.Time
}

// stepSave reads or saves if there is something to do and the store had its pause.
func (s *Session) stepSave(now time.Time) {
	if s.save.held != nil && !now.Before(s.save.heldUntil) {
		s.release()
	}
	switch {
	case s.save.running:
		if !s.save.slow && now.Sub(s.save.began) >= storeTimeout {
			s.save.slow = true
			s.storeFailed(fmt.Errorf("no answer from the store within %s", storeTimeout))
			s.ready()
		}
	case s.closing || now.Before(s.save.next):
	case s.save.unread:
		s.load()
	case s.save.dirty:
		s.write(s.jobCtx)
	}
}

// call runs work, a call of the store, beside the owner, and then done.
func (s *Session) call(ctx context.Context, timeout time.Duration, work func(ctx context.Context) (done func())) {
	s.save.running, s.save.slow, s.save.began = true, false, time.Now()
	s.job(func(context.Context) func() {
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		done := work(ctx)
		return func() {
			s.save.running = false
			done()
		}
	})
}

// load reads the stored login. What cannot be used, because it is damaged or
// because there is another login by now, is put aside: nothing is overwritten
// in silence.
func (s *Session) load() {
	c, epoch, superseded := s.client.Load(), s.epoch, s.rec.loggedIn()
	s.call(s.jobCtx, storeTimeout, func(ctx context.Context) func() {
		key := c.storageKey()
		b, err := c.Store.Load(ctx, key)
		var r *record
		switch {
		case err == nil:
			if r, err = decodeRecord(b, c.Fingerprint()); err != nil || superseded {
				if aside := c.Store.Save(ctx, key+asideSuffix, b); aside != nil {
					err = fmt.Errorf("putting the stored login aside: %w", aside)
				}
			}
		case errors.Is(err, ErrNotFound):
			err = nil
		}
		return func() {
			if epoch == s.epoch { // else: read again, or not at all after a logout
				s.loadedRecord(r, err)
			}
		}
	})
}

// loadedRecord begins the session's life with what was stored.
func (s *Session) loadedRecord(r *record, err error) {
	if err != nil {
		s.storeFailed(fmt.Errorf("reading: %w", err))
		if !errors.Is(err, ErrRecord) {
			s.ready()
			s.release()
			return // the login may be there all the same: try again
		}
		s.save.err.Action, s.save.err.RetryAt = ActionReauthorize, nil
	} else if s.save.err != nil {
		s.storeWorks()
	}
	s.save.unread, s.save.next = false, time.Time{}
	if r != nil && !s.rec.loggedIn() && (r.loggedIn() || s.rec.pending == nil) {
		s.adoptRecord(r)
	}
	s.ready()
}

func (s *Session) adoptRecord(r *record) {
	now := time.Now()
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
	switch {
	case s.token != nil:
	case !r.refresh.IsZero():
		s.startRefresh()
	default:
		r.access = Secret{} // lapsed, and nothing to renew it with
	}
}

// ready lets those go on who wait for the stored login.
func (s *Session) ready() {
	s.loaded = true
	s.publish()
	early := s.early
	s.early = nil
	for _, f := range early {
		f()
	}
}

// changed notes that the record has to be saved, soon.
func (s *Session) changed() {
	s.save.dirty = true
	s.stepSave(time.Now())
}

// changedThen saves the record and then runs f; f does not wait for ever.
func (s *Session) changedThen(f func()) {
	s.save.held, s.save.heldUntil = f, time.Now().Add(publishAnyway)
	s.save.next = time.Time{} // a new secret is worth an attempt at once
	s.changed()
}

// write saves the record, or deletes it when there is nothing to keep.
func (s *Session) write(ctx context.Context) {
	c := s.client.Load()
	s.save.dirty = false
	var b []byte
	var err error
	if s.rec.worthSaving() {
		b, err = s.rec.encode()
	}
	timeout := storeTimeout
	if s.closing {
		timeout = lastSaveTimeout
	}
	s.call(ctx, timeout, func(ctx context.Context) func() {
		switch {
		case err != nil:
		case b == nil:
			err = c.Store.Delete(ctx, c.storageKey())
		default:
			err = c.Store.Save(ctx, c.storageKey(), b)
		}
		return func() { s.saved(err) }
	})
}

func (s *Session) saved(err error) {
	newer := s.save.dirty // what is held may be in the next save only
	if err != nil {
		s.save.dirty = true
		s.storeFailed(fmt.Errorf("saving: %w", err))
	} else if s.save.err != nil {
		s.storeWorks()
	}
	if newer && s.save.held != nil {
		if !s.closing { // else it is the last save's
			s.write(s.jobCtx)
		}
		return
	}
	s.release()
	if err == nil && newer {
		s.stepSave(time.Now())
	}
}

func (s *Session) storeFailed(err error) {
	first := s.save.err == nil
	s.save.failures++
	s.save.next = time.Now().Add(backoff(s.save.failures, saveRetryMin, saveRetryMax))
	e := &Error{Kind: KindTemporary, Op: "storage", Code: CodeStorageFailed, Err: err}
	s.save.err = statusError(e, s.save.next)
	s.publish()
	if first {
		s.observe(Event{Kind: EventStoreFailed, Err: e})
	}
}

func (s *Session) storeWorks() {
	s.save.failures, s.save.err = 0, nil
	s.publish()
	s.observe(Event{Kind: EventStoreHealed})
}

// release runs what waited for the store.
func (s *Session) release() {
	if f := s.save.held; f != nil {
		s.save.held = nil
		f()
	}
}

// lastSave begins the attempt before Run returns, if there is something to save
// and the store is not known to hang. It reports whether it did.
func (s *Session) lastSave() bool {
	if !s.save.dirty || s.save.running || s.save.unread || s.lastTried {
		return false
	}
	s.lastTried = true
	s.write(context.Background()) // the jobs' own context may be over
	return true
}

// putAside keeps a copy of the stored login before a part of it is given up.
func (s *Session) putAside() {
	c := s.client.Load()
	b, err := s.rec.encode()
	if err != nil {
		return
	}
	s.job(func(ctx context.Context) func() {
		ctx, cancel := context.WithTimeout(ctx, storeTimeout)
		defer cancel()
		_ = c.Store.Save(ctx, c.storageKey()+asideSuffix, b) // for a person to look at; nothing depends on it
		return func() {}
	})
}
