package flow

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow/schedule"
)

const (
	refreshRetryMin = time.Second
	refreshRetryMax = 30 * time.Second // for further APIs; see package schedule for the session's own token
	refusedRetryMin = time.Minute      // the server refuses our client: no hammering
	refusedRetryMax = 10 * time.Minute
	forcedGap       = 30 * time.Second // between refreshes that a 401 asks for
	doubtfulTries   = 5                // refusals that are not clearly final, before they count as final
	doubtfulTime    = 30 * time.Second // and from the first of them: servers restart
	lockWaitMax     = refreshTimeout + 5*time.Second
	lapsedLockWait  = 15 * time.Second
	derivedLockWait = 3 * time.Second // there may be many of them, one after the other
	rereadAfter     = time.Second
)

// refreshForced starts the refresh that a 401 asks for, if it is the token in
// use that was rejected. It reports whether a refresh is under way now.
func (s *Session) refreshForced(rejected *Token) bool {
	if s.token != nil && !s.token.value.Equal(rejected.value) {
		return false
	}
	if s.refreshing() {
		return true
	}
	if s.rec.refresh.IsZero() {
		if s.token != nil && (s.refresh.err != nil || s.token == s.unsure) {
			// The server has ended this login, or nobody knows how old its token is,
			// and the API refuses what was left of it: only a new login helps.
			s.dropAccess()
			s.publish()
		}
		return false
	}
	now := time.Now()
	if !s.refresh.forced.IsZero() && now.Sub(s.refresh.forced) < forcedGap ||
		s.refresh.err != nil && now.Before(s.refresh.next) {
		if s.token != nil && s.token == s.unsure {
			s.token = nil // the API knows better than our clock
			s.publish()
		}
		return false
	}
	s.refresh.forced = now
	s.startRefresh()
	return true
}

// refreshing reports whether the session's own refresh is under way, or comes
// next.
func (s *Session) refreshing() bool {
	if s.refresh.slot == nil && (s.refresh.running || s.refresh.saving) {
		return true
	}
	busy := s.refresh.running || s.save.held != nil
	return busy && !s.rec.refresh.IsZero() && !time.Now().Before(s.refresh.next)
}

// startRefresh renews the session's own token, now or as soon as something else
// has come to its end: another API's exchange, or a code that is being saved.
func (s *Session) startRefresh() { s.trade(nil) }

// trade trades the refresh token for sl, or for the session itself, unless it is
// being traded: the loser of two refreshes would kill the login of the winner at
// many servers.
func (s *Session) trade(sl *slot) {
	if s.closing {
		return
	}
	if s.refresh.running || s.save.held != nil {
		if sl == nil && !s.refreshing() {
			s.refreshIn(time.Now(), 0) // else nothing would remind of those who wait for it
		}
		return
	}
	s.refresh.running, s.refresh.slot = true, sl
	if s.token == nil && sl == nil {
		s.publish() // callers may wait for it
	}
	access := s.rec.access
	c, epoch, id, generation, wait := s.client.Load(), s.epoch, s.id, s.rec.generation, s.lockWait(time.Now())
	if sl != nil {
		wait = min(wait, derivedLockWait)
	}
	s.job(func(ctx context.Context) func() {
		// The generation in the name keeps an orphaned lock from standing in the
		// way of any other refresh than the one it was taken for.
		unlock := c.lock(ctx, fmt.Sprint("refresh-", generation), wait)
		b, r, gone := c.turn(ctx, id, generation, max(wait/3, lookAtLeast))
		return func() {
			if epoch != s.epoch || s.closing {
				s.giveBack(unlock)
				return
			}
			s.refresh.unlock = unlock
			if r != nil || s.rec.generation != generation { // or a look was faster
				s.yield(access, b, r)
				return
			}
			s.claimRefresh(gone)
		}
	})
}

// yield ends an attempt to refresh that another instance has made needless, by
// the record r if that is not known yet. What it has brought may be for another
// API, and the grant alone has moved on: then it begins again. access is the
// session's own token when the attempt began.
func (s *Session) yield(access Secret, b []byte, r *record) {
	own := s.refresh.slot == nil
	s.letGo()
	if r != nil {
		s.found(b, r, nil)
	}
	switch {
	case !own: // it has kept its place in the queue
	case s.rec.access.Equal(access) && !s.rec.refresh.IsZero():
		s.startRefresh()
	default:
		s.refresh.reply(nil)
	}
}

// exchange trades the refresh token, now that it is this instance's turn, if
// that is still so after a pause.
func (s *Session) exchange(pause time.Duration) {
	s.refresh.trading = true
	c, epoch, token, generation, id := s.client.Load(), s.epoch, s.rec.refresh, s.rec.generation, s.id
	sl, access, want := s.refresh.slot, s.rec.access, s.ownWant()
	if sl != nil {
		want = sl.want
	}
	s.job(func(ctx context.Context) func() {
		if sleep(ctx, pause); c.claimed(ctx, generation, id) {
			return func() {
				if epoch == s.epoch {
					s.letGo()
					s.trade(sl)
				}
			}
		}
		begin := time.Now()
		g, err := c.refresh(ctx, token, want)
		took := time.Since(begin)
		var (
			b []byte
			r *record
		)
		if e := (*Error)(nil); errors.As(err, &e) && (e.Kind == KindReauthorize || e.Kind == KindDoubtful) {
			// The refresh token may have been used up by another instance, whose
			// claim was lost and whose record is on its way.
			for i := 0; r == nil && i < 2; i++ {
				sleep(ctx, time.Duration(i)*rereadAfter)
				b, r = c.newerThan(ctx, generation)
			}
		}
		return func() {
			switch {
			case epoch != s.epoch:
				s.discard(g)
			case r != nil:
				s.yield(access, b, r)
			default:
				s.save.unlock = append(s.save.unlock, s.refresh.unlock) // once the result is in the store
				s.refresh.unlock = nil
				s.letGo()
				if sl == nil {
					s.refreshed(g, err, took)
				} else {
					s.derivedBack(sl, g, err, took)
				}
				if !s.save.dirty && !s.save.running {
					s.unlock() // there was nothing to store
				}
			}
		}
	})
}

// lockWait is how long to wait for the lock: as long as the token in use leaves
// time for an exchange afterwards, and without one long enough for a store to
// notice that a lock has been orphaned.
func (s *Session) lockWait(now time.Time) time.Duration {
	if s.token == nil {
		return lapsedLockWait
	}
	if s.token.expiry.IsZero() {
		return lockWaitMax
	}
	return min(max(s.token.lapses.Sub(now)*7/10, lookAtLeast), lockWaitMax)
}

// sleep waits for d or the end of ctx.
func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// refreshed takes the answer to a refresh.
func (s *Session) refreshed(g *grant, err error, took time.Duration) {
	if e := s.client.Load().swapped(s.rec.claims, g); e != nil {
		s.revokeGrant(g)
		g, err = nil, e
	}
	if err != nil {
		e := asError(opRefresh, err)
		if g != nil && !g.refresh.IsZero() {
			// The access token cannot be used, but the old refresh token may
			// be dead by now: keep the new one.
			s.rec.refresh = g.refresh
			s.rec.generation++
			s.changed()
		}
		s.refreshFailed(e, took)
		s.refresh.reply(e)
		return
	}
	s.adopt(g)
	s.refresh.succeeded()
	use := func() {
		s.refresh.saving = false
		s.useAdopted()
		s.publish()
		s.observe(Event{Kind: EventTokenRefreshed, Took: took})
		s.refresh.reply(nil)
	}
	if s.refresh.waited && s.save.running {
		s.save.dirty = true // the store hangs: once is enough
		use()
		return
	}
	s.refresh.saving = true
	s.changedThen(use)
}

// refreshFailed decides what a failed refresh means. The token in use is kept
// until it really lapses, whatever the error.
func (s *Session) refreshFailed(e *Error, took time.Duration) {
	s.trust(time.Now())
	s.refresh.failures++
	kind := e.Kind
	if kind == KindDoubtful {
		if s.refresh.doubtful++; s.refresh.doubtful == 1 {
			s.refresh.doubtfulSince = time.Now()
		}
		switch {
		case s.refresh.doubtful < doubtfulTries || time.Since(s.refresh.doubtfulSince) < doubtfulTime:
		case s.token == nil:
			s.keepCopy()
			kind = KindReauthorize
		default:
			kind = KindConfiguration // as rarely: there is time until the token lapses
		}
	}
	var wait time.Duration
	switch kind {
	case KindReauthorize:
		s.rec.refresh = Secret{}
		if s.token == nil {
			s.rec.access = Secret{} // nothing is left of this login
		}
		s.rec.generation++
		s.changed()
		s.refresh.err = statusError(&Error{Kind: kind, Op: e.Op, Code: e.Code, Description: e.Description, Status: e.Status, Err: e.Err}, time.Time{})
		s.publish()
		s.observe(Event{Kind: EventRefreshFailed, Err: e, Took: took})
		return
	case KindConfiguration:
		wait = backoff(s.refresh.failures, refusedRetryMin*10/9, refusedRetryMax)
	default:
		wait = schedule.Retry(s.refresh.failures, s.rec.lifetime(), rand.Float64())
	}
	now := time.Now()
	if s.token != nil && !s.token.expiry.IsZero() {
		// Another attempt before calls begin to fail, where that leaves the shortest
		// pause and the server has not asked for a longer one.
		least := refreshRetryMin
		if e.Kind == KindConfiguration {
			least = refusedRetryMin
		}
		wait = min(wait, max(s.token.lapses.Sub(now)-s.claimBeat(), least))
	}
	s.changed() // the claim is given up
	s.refreshIn(now, max(wait, schedule.NotBefore(e.RetryAfter, rand.Float64())))
	s.refresh.err = statusError(e, s.refresh.next)
	s.publish()
	s.observe(Event{Kind: EventRefreshFailed, Err: e, Took: took})
}
