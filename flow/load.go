package flow

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// load reads the stored login. What cannot be used, because it is damaged or
// because there is another login by now, is put aside: nothing is overwritten
// in silence.
func (s *Session) load() {
	c, epoch, superseded := s.client.Load(), s.epoch, s.rec.loggedIn()
	s.call(s.jobCtx, storeTimeout, func(ctx context.Context) func() {
		b, r, err := c.read(ctx)
		if b != nil && (errors.Is(err, ErrRecord) && !leaveAlone(err) || superseded) {
			err = c.putAside(ctx, b, err)
		}
		return func() {
			// Else: read again, or not at all after a logout, or when another look at
			// the store was faster.
			if epoch == s.epoch && s.save.unread {
				s.loadedRecord(b, r, err)
			}
		}
	})
}

// loadedRecord begins the session's life with what was stored.
func (s *Session) loadedRecord(b []byte, r *record, err error) {
	if errors.Is(err, errAccount) {
		s.login.err, err = storedAccount(err), nil // it has been put aside; nothing is wrong with the storage
	}
	if err != nil {
		s.storeFailed(fmt.Errorf("reading: %w", err))
		if !errors.Is(err, ErrRecord) {
			s.ready()
			s.release()
			return // the login may be there all the same: try again
		}
		s.save.freeze(b, err)
		if !s.save.sealed {
			e := *s.save.err // others may be reading it
			e.Action, e.RetryAt = ActionReauthorize, nil
			s.save.err = &e
		}
	} else if s.save.err != nil {
		s.storeWorks()
	}
	s.save.unread, s.save.next = false, time.Time{}
	s.remember(b)
	switch {
	case r == nil:
	case s.rec.loggedIn():
		s.supersede(r) // it is put aside; and stores may be behind
	case r.worthSaving() || s.rec.pending == nil:
		s.adoptRecord(r, false)
	}
	// Another key seals now, or one at all. Only at the start: two instances with
	// the same keys in another order would go on for ever.
	s.save.dirty = s.save.dirty || r != nil && r.stale && s.rec.worthSaving()
	s.ready()
}

// supersede puts the session's own login, which came while the store could not be
// read, above what is stored.
func (s *Session) supersede(r *record) {
	if r.generation >= s.rec.generation {
		s.rec.generation = r.generation + loginLeap
		s.save.dirty = true
	}
}

// known is what need not be opened and decoded again. After a change of the
// configuration there is nothing like that, neither for a call that is under
// way nor for the next: other keys make another thing of the same bytes.
func (s *saveState) known() digest {
	if s.reread > 0 || s.sealed {
		s.reread = max(s.reread-1, 0)
		return digest{}
	}
	return s.seen
}

// remember notes what the store holds.
func (s *Session) remember(b []byte) {
	s.save.seen, s.save.looked = digestOf(b), time.Now()
}

// nextLook is when to see again what other instances did.
func (s *Session) nextLook() time.Time {
	every := lookEvery
	if l := s.rec.lifetime(); l > 0 {
		every = min(every, max(l/10, lookAtLeast))
	}
	if s.rec.pending == nil { // else a person waits
		every = max(every, s.client.Load().kin.share())
	}
	return s.save.looked.Add(every)
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
