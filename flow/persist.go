package flow

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	storeTimeout    = 10 * time.Second
	publishAnyway   = 2 * time.Second // a new token is used after this even if the store hangs, or earlier if it is short-lived
	saveRetryMin    = time.Second
	saveRetryMax    = 30 * time.Second
	loadPatience    = 10 * time.Second // no login is asked of anybody while the store may just be slow to come
	lastSaveTimeout = time.Second
	lookEvery       = 2 * time.Second // for what other instances did; more often for short-lived tokens, and less for one of many sessions
	lookAtLeast     = 200 * time.Millisecond
)

// saveState is the owner's memory of storing.
type saveState struct {
	running  bool // there is one call at a time, so that none overtakes another
	began    time.Time
	slow     bool      // the running call has been reported
	unread   bool      // the store has not been read; nothing is written before
	patience time.Time // until then a login may yet be found in the store
	dirty    bool      // the record has changed since the last save began
	frozen   bool      // a record is there that must be left alone: nothing is written
	foreign  bool      // and another instance has put it there
	sealed   bool      // our keys do not open the record that is there: no login starts on demand
	over     bool      // a login that somebody asked for takes its place, and puts it aside
	outrank  bool      // what the store holds, unseen, is over: a logout came first
	failures int
	next     time.Time
	err      *StatusError
	// held runs when the record has been saved, or at heldUntil at the latest:
	// a rotated refresh token is on disk before anybody hears of its access token.
	held      func()
	heldUntil time.Time
	// unlock gives locks back once what they guarded is in the store.
	unlock []func()

	seen   digest    // of what was last read or written: whole, it would be every token once more
	reread int       // how often it has to be read all the same
	looked time.Time // when the store was last known to hold seen
}

// stepSave reads or saves if there is something to do and the store had its pause.
func (s *Session) stepSave(now time.Time) {
	if s.save.held != nil && !now.Before(s.save.heldUntil) {
		s.release()
	}
	if s.save.frozen {
		s.unlock() // nothing will be stored that they guard
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
	case s.save.dirty && !s.save.frozen:
		s.write(s.jobCtx)
	case s.mayLook() && !now.Before(s.nextLook()):
		s.look()
	}
}

// mayLook reports whether the owner is free to take over what others did.
func (s *Session) mayLook() bool {
	return s.loaded && !s.save.running && !s.save.unread && s.save.held == nil
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

// changed notes that the record has to be saved, soon.
func (s *Session) changed() {
	s.save.dirty = true
	s.stepSave(time.Now())
}

// changedThen saves the record and then runs f; f does not wait for ever. What is
// held already runs before it: a code may come while a refresh waits for the store,
// or the other way round.
func (s *Session) changedThen(f func()) {
	if s.save.frozen {
		s.save.dirty = true
		f()
		return
	}
	if before := s.save.held; before != nil {
		then := f
		f = func() { before(); then() }
	}
	wait := publishAnyway
	if l := s.rec.lifetime(); l > 0 {
		wait = min(wait, max(l/10, lookAtLeast))
	}
	s.save.held, s.save.heldUntil = f, time.Now().Add(wait)
	s.save.next = time.Time{} // a new secret is worth an attempt at once
	s.changed()
	s.writeClosing()
}

// writeClosing saves what cannot wait for the last save.
func (s *Session) writeClosing() {
	if s.closing && s.lastTries == 0 && s.save.dirty && !s.save.running && !s.save.frozen && !s.save.unread {
		s.write(s.jobCtx)
	}
}

// write saves the record, unless the store holds something that another
// instance put there: that is looked at first. What our keys do not open is not
// overwritten even if we have put it there, with the keys of another
// configuration: a start with these would not get that far, either.
func (s *Session) write(ctx context.Context) {
	c, seen, over := s.client.Load(), s.save.known(), s.save.over
	s.save.dirty = false
	b, encodeErr := s.encode()
	timeout := storeTimeout
	if s.closing {
		timeout = lastSaveTimeout
	}
	s.call(ctx, timeout, func(ctx context.Context) func() {
		if encodeErr != nil {
			return func() { s.saved(nil, encodeErr) }
		}
		there, r, err := c.readUnlike(ctx, seen)
		sealed := errors.Is(err, errSealed)
		switch {
		case over && (sealed || there == nil && err != nil):
			if sealed {
				err = c.putAside(ctx, there, nil)
			}
			if err != nil {
				return func() { s.saved(nil, err) }
			}
		case there != nil:
			if errors.Is(err, ErrRecord) && !leaveAlone(err) {
				err = c.putAside(ctx, there, nil)
			}
			if r != nil || err != nil {
				return func() {
					s.save.dirty = true
					s.found(there, r, err)
				}
			}
		}
		if err := ctx.Err(); err != nil {
			return func() { s.saved(nil, err) } // it was read in vain for that reason
		}
		// A store that cannot be read may still be written.
		err = c.Store.Save(ctx, c.storageKey, b)
		return func() { s.saved(b, err) }
	})
}

func (s *Session) saved(b []byte, err error) {
	newer := s.save.dirty // what is held may be in the next save only
	if err != nil {
		s.save.dirty = true
		s.storeFailed(fmt.Errorf("saving: %w", err))
	} else {
		s.remember(b)
		s.save.sealed, s.save.over = false, false
		if s.save.err != nil {
			s.storeWorks()
		}
	}
	if newer && s.save.held != nil {
		if !s.closing { // else it is the last save's
			s.write(s.jobCtx)
		}
		return
	}
	s.release()
	if err == nil {
		if newer {
			s.stepSave(time.Now())
		} else {
			s.unlock()
		}
	}
}

// unlock gives back the locks on what is in the store by now.
func (s *Session) unlock() {
	if s.closing {
		return // Run does it in the end
	}
	unlock := s.save.unlock
	s.save.unlock = nil
	for _, f := range unlock {
		s.giveBack(f)
	}
}

// giveBack gives a lock back without making the owner wait for the store.
func (s *Session) giveBack(unlock func()) {
	s.job(func(context.Context) func() {
		unlock()
		return func() {}
	})
}

// lastUnlock gives back what locks are left when Run ends, in a moment at most:
// a lock that nobody gives back is in the way of other instances for a while.
func (s *Session) lastUnlock() {
	if len(s.save.unlock) == 0 {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, f := range s.save.unlock {
			f()
		}
	}()
	t := time.NewTimer(abandonAfter)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
	}
}

func (s *Session) storeFailed(err error) {
	first := s.save.err == nil
	s.save.failures++
	s.save.next = time.Now().Add(backoff(s.save.failures, saveRetryMin, saveRetryMax))
	e, retry := &Error{Kind: KindTemporary, Op: "storage", Code: CodeStorageFailed, Err: err}, s.save.next
	if errors.Is(err, errSealed) {
		e.Kind, e.Code, retry = KindConfiguration, CodeStorageSealed, time.Time{}
	}
	s.save.err = statusError(e, retry)
	s.publish()
	if first {
		s.observe(Event{Kind: EventStoreFailed, Err: e})
	}
}

// freeze notes whether what is stored, b, has to be left alone, by the error that
// reading it gave.
func (s *saveState) freeze(b []byte, err error) {
	s.sealed = errors.Is(err, errSealed)
	s.frozen = leaveAlone(err) && !(s.sealed && s.over)
	s.foreign = s.frozen && (s.foreign || digestOf(b) != s.seen)
}

// thaw lets the login that was just approved take the place of a record that our
// keys do not open: none starts on demand, so that somebody has asked for it.
func (s *saveState) thaw() {
	if s.sealed {
		s.frozen, s.over = false, true
	}
}

// leftAlone is the answer to a logout that could not reach what is stored.
func (s *saveState) leftAlone() error {
	if !s.frozen || s.err == nil {
		return nil
	}
	return errors.New(s.err.Description)
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
	if !s.save.dirty || s.save.frozen || s.save.running || s.save.unread || s.lastTries >= 2 {
		return false
	}
	s.lastTries++                 // a second time, if the first found what another instance had written
	s.write(context.Background()) // the jobs' own context may be over
	return true
}
