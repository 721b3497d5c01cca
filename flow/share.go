package flow

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// Several instances may share a store: one login for all of them, one refresh
// for each lifetime, one code on every page. They never talk to each other. Each
// looks into the store every few seconds, and before it writes, and takes over
// what is newer than its own; see [record.generation].

// liveWithin is how recent the look before must be for a new record to have
// been made just now.
const liveWithin = time.Minute

// look reads what other instances may have written.
func (s *Session) look() {
	c, known, seen, sealed := s.client.Load(), s.save.known(), s.save.seen, s.save.sealed
	s.call(s.jobCtx, storeTimeout, func(ctx context.Context) func() {
		b, r, err := c.readUnlike(ctx, known)
		// A configuration with the right key makes another thing of the same bytes.
		changed := b != nil && (digestOf(b) != seen || sealed != errors.Is(err, errSealed))
		if changed && errors.Is(err, ErrRecord) && !leaveAlone(err) {
			err = c.putAside(ctx, b, err)
		}
		return func() {
			switch {
			case changed:
				s.found(b, r, err)
			case err != nil && !errors.Is(err, ErrRecord):
				s.storeFailed(fmt.Errorf("reading: %w", err))
			default:
				s.remember(b)
				if b == nil && err == nil { // somebody has taken it away, or there never was one
					s.save.freeze(nil, nil)
					s.save.dirty = s.save.dirty || s.rec.worthSaving()
				}
				if s.save.err != nil && !s.save.frozen && !s.save.dirty {
					s.storeWorks()
				}
			}
		}
	})
}

// found takes a record that was not there before.
func (s *Session) found(b []byte, r *record, err error) {
	sealed := s.save.sealed // until now, so that it may have been written long ago
	// One of many sessions looks seldom.
	live := time.Since(s.save.looked) < max(liveWithin, 2*s.client.Load().kin.share()) && !sealed
	s.save.freeze(b, err)
	if err != nil {
		if errors.Is(err, ErrRecord) { // else it could not be put aside, which is to be tried again
			s.remember(b)
		}
		s.save.dirty = s.save.dirty || s.rec.worthSaving()
		s.storeFailed(fmt.Errorf("reading: %w", err))
		s.release()
		return
	}
	if sealed {
		s.save.err = nil // it is history by the time merge publishes
	}
	switch {
	case !s.save.unread:
		s.merge(r, live)
		s.remember(b)
	case s.rec.loggedIn():
		// Generations of what we had not read tell nothing about our own login.
		s.supersede(r)
		s.save.next = time.Time{} // load can put it aside now
	default:
		s.loadedRecord(b, r, nil) // a refresh or a login was faster than load
	}
	if sealed {
		s.save.dirty = s.save.dirty || r.stale
		s.storeWorks()
	}
	s.stepSave(time.Now())
	s.writeClosing()
}

// merge takes over what is newer in r than in the session's own record.
func (s *Session) merge(r *record, live bool) {
	mine := s.rec
	if s.save.outrank {
		s.save.outrank, s.save.dirty = false, true
		mine.generation = max(mine.generation, r.generation+logoutLeap)
		return
	}
	theirs := r.generation > mine.generation ||
		r.generation == mine.generation && r.obtained.After(mine.obtained) && !r.access.Equal(mine.access)
	if theirs {
		s.adoptRecord(r, live)
		s.publish()
		switch {
		case r.loggedIn() && !(mine.loggedIn() && mine.loginAt.Equal(r.loginAt)):
			s.observe(Event{Kind: EventLoginSucceeded, Adopted: true})
		case mine.loggedIn() && !r.loggedIn():
			s.observe(Event{Kind: EventLoggedOut, Adopted: true})
		}
		if !mine.onlyRotated(r) {
			s.refresh.reply(nil)
		}
		return
	}
	if r.generation < mine.generation || !r.access.Equal(mine.access) {
		s.save.dirty = true // a late writer, or a store that is behind
		if r.loginAt.Equal(mine.loginAt) {
			s.mergePending(r, live)
			s.publish()
		}
		return
	}
	s.mergeClaim(r.claim)
	s.mergePending(r, live)
	s.publish()
}

// adoptRecord makes r the session's own: at the start what was stored, later
// what another instance has put there. live says that this was just now, so that
// lifetimes can be counted by our own clock; instances' clocks differ.
func (s *Session) adoptRecord(r *record, live bool) {
	was, now := s.rec, time.Now()
	if s.loaded && was.onlyRotated(r) {
		s.adoptRotation(r, live)
		return
	}
	another := s.loaded && !was.loginAt.Equal(r.loginAt)
	if another {
		s.epoch++
		s.letGo()
		s.dropDerived()
		s.login.polling = nil
		if p := was.pending; p != nil && (r.pending == nil || !p.code.Equal(r.pending.code)) {
			was.endPending() // the new login is there, no need for another
			s.login.ended = was.ended
		}
	}
	wall := s.wall(now)
	// A record from the future: this clock is wrong, or the writer's was.
	future := !live && r.obtained.After(wall.Add(time.Minute))
	if l := r.lifetime(); l > 0 {
		ahead := r.refreshAt.Sub(r.obtained)
		if future {
			r.obtained, r.expiry, r.refreshAt = wall, wall.Add(l), wall.Add(ahead)
		}
		if looked := s.wall(s.save.looked); live && (r.obtained.Before(looked) || r.obtained.After(wall)) {
			// Another clock: the token is not older than our look before.
			r.obtained, r.expiry, r.refreshAt = looked, looked.Add(l), looked.Add(ahead)
		}
		s.lapses = now.Add(min(r.expiry.Sub(wall), maxTokenLifetime))
	} else {
		s.lapses = time.Time{}
	}
	ahead := r.refreshAt.Sub(wall)
	if s.loaded {
		// Whoever refreshed last goes first the next time: locks may do nothing.
		ahead += time.Duration((0.02 + 0.06*rand.Float64()) * float64(r.lifetime()))
	}
	if future {
		ahead = 0
	}
	s.refreshIn(now, ahead)
	if !s.loaded && !future {
		s.firstRefresh(now, r)
	}
	s.refresh.succeeded()
	pending := r.pending
	r.pending = was.pending
	s.rec = r
	s.mergePending(&record{pending: pending, failed: r.failed, held: r.held, ended: r.ended}, live)
	s.useAdopted()
	if future {
		s.unsure = s.token
	}
	switch {
	case s.token != nil, s.refresh.unhurried:
	case !r.refresh.IsZero():
		s.refreshIn(now, 0)
		s.startRefresh()
	default:
		r.access = Secret{} // lapsed, and nothing to renew it with
	}
}

// onlyRotated reports whether theirs is r after an exchange for another API: the
// refresh token is a new one, the access token is not.
func (r *record) onlyRotated(theirs *record) bool {
	return r.loginAt.Equal(theirs.loginAt) && r.access.Equal(theirs.access) && !r.access.IsZero() &&
		!r.refresh.IsZero() && !theirs.refresh.IsZero()
}

// adoptRotation takes over the refresh token, and what does not belong to the
// grant. The access token is as old as it was, and when to renew it is known.
func (s *Session) adoptRotation(r *record, live bool) {
	was, pending := s.rec, r.pending
	r.obtained, r.expiry, r.refreshAt = was.obtained, was.expiry, was.refreshAt
	r.pending = was.pending
	s.rec = r
	s.mergePending(&record{pending: pending, failed: r.failed, held: r.held, ended: r.ended}, live)
}

// maxLocks bounds the attempts to lock at the same time, all but one or two of
// them abandoned.
const maxLocks = 8

// lock takes a lock of the store, within wait at most. It returns a function in
// any case: a lock that cannot be had is done without.
func (c *client) lock(ctx context.Context, name string, wait time.Duration) (unlock func()) {
	l, ok := c.Store.(Locker)
	if !ok {
		return func() {}
	}
	if c.locks.Add(1) > maxLocks {
		c.locks.Add(-1)
		return func() {}
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	got := make(chan func(), 1)
	go func() {
		defer c.locks.Add(-1)
		unlock, err := l.Lock(ctx, c.storageKey+"."+name)
		if err != nil {
			unlock = func() {}
		}
		got <- unlock
	}()
	select {
	case unlock = <-got:
		return unlock
	case <-ctx.Done():
		go func() { (<-got)() }() // it came too late, or never does
		return func() {}
	}
}

// elsewhere reads the store before a login starts, and returns the record if
// another instance has logged in meanwhile or has a code out.
func (c *client) elsewhere(ctx context.Context, generation uint64, loginAt time.Time, ended endedCodes, wall time.Time) ([]byte, *record) {
	ctx, cancel := context.WithTimeout(ctx, loginLockWait)
	defer cancel()
	b, r, err := c.read(ctx)
	if err != nil || r == nil || r.generation < generation {
		return nil, nil
	}
	p := r.pending
	if r.generation > generation && r.loggedIn() && !r.loginAt.Equal(loginAt) || p != nil && !ended.has(p) && p.left > 0 && wall.Before(p.info.ExpiresAt) {
		return b, r
	}
	return nil, nil
}

// overtaken reads the store before a poll, and returns the record if there is
// nothing to poll for any more, or somebody else does.
func (c *client) overtaken(ctx context.Context, generation uint64, code Secret, id string, beat uint64) ([]byte, *record) {
	ctx, cancel := context.WithTimeout(ctx, loginLockWait)
	defer cancel()
	b, r, err := c.read(ctx)
	if err != nil || r == nil {
		return nil, nil
	}
	p := r.pending
	if r.generation > generation || r.generation == generation && p != nil && p.code.Equal(code) && p.poller != id && p.beat >= beat {
		return b, r
	}
	return nil, nil
}

// newerThan reads the store once more and reports whether another instance has
// changed the grant since generation.
func (c *client) newerThan(ctx context.Context, generation uint64) (b []byte, r *record) {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout/2)
	defer cancel()
	b, r, err := c.read(ctx)
	if err != nil || r == nil || r.generation <= generation {
		return nil, nil
	}
	return b, r
}
