package flow

import (
	"math/rand/v2"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow/schedule"
)

// refreshState is the owner's memory of refreshes.
type refreshState struct {
	running   bool
	slot      *slot     // that the refresh under way is for; nil: the session's own token
	trading   bool      // the exchange itself is under way
	saving    bool      // its token is being saved, or a login's: who waits hears of it then
	nextBeat  time.Time // of our claim, while trading
	waited    bool      // in vain, for the claim to be stored
	gone      claim     // of an instance that did not come to an end
	unlock    func()    // of the lock that the attempt under way holds
	next      time.Time // when to refresh; meaningless without a refresh token
	nextWall  time.Time // the same by the wall clock
	unhurried bool      // the token lapsed before the start: the first who asks makes it due
	failures  int
	doubtful  int
	// doubtfulSince is when the first of the doubtful refusals came.
	doubtfulSince time.Time
	forced        time.Time // when a 401 last asked for one
	err           *StatusError
	replies       []chan error
}

func (r *refreshState) succeeded() { r.failures, r.doubtful, r.err = 0, 0, nil }

// unblock forgets a refusal of the configuration, for there is a new one.
func (r *refreshState) unblock() {
	if r.err != nil && r.err.Action == ActionFixConfiguration {
		r.next, r.failures = time.Now(), 0
	}
}

func (r *refreshState) reply(err error) {
	for _, c := range r.replies {
		c <- err
	}
	r.replies = nil
}

func (s *Session) stepRefresh(now time.Time) {
	s.stepClaim(now)
	if s.rec.refresh.IsZero() || s.refresh.running || s.save.held != nil || s.leaves(nil, now) {
		return
	}
	// By either clock: a machine that slept has missed it by the monotonic one, a
	// clock that was put back by the other.
	if !now.Before(s.refresh.next) || !s.wall(now).Before(s.refresh.nextWall) {
		s.startRefresh()
	}
}

// leaves reports whether an exchange, for sl or for the session itself, is left to
// whoever has stored what we cannot open. While instances get another key, or
// another release, one after the other, that one is ahead of us: it refreshes, we
// cannot see what comes of it, and the same refresh token used twice ends the login
// at many servers. But a token that has lapsed or was refused, or a person, has no
// time to wait until we are reloaded, too.
func (s *Session) leaves(sl *slot, now time.Time) bool {
	switch {
	case !s.save.foreign:
		return false
	case sl != nil:
		return sl.token != nil && now.Sub(sl.forced) >= forcedGap
	default:
		return s.token != nil && len(s.refresh.replies) == 0 && now.Sub(s.refresh.forced) >= forcedGap
	}
}

// refreshIn makes a refresh due d after now.
func (s *Session) refreshIn(now time.Time, d time.Duration) {
	s.refresh.next, s.refresh.nextWall, s.refresh.unhurried = now.Add(d), s.wall(now).Add(d), false
}

// hurry makes the refresh due that has been waiting since the start for somebody
// to need it.
func (s *Session) hurry() {
	if s.refresh.unhurried && s.token == nil {
		s.refreshIn(time.Now(), 0)
	}
}

// firstRefresh sets when to refresh by the record r, found in the store at the
// start, when a whole fleet may be starting.
func (s *Session) firstRefresh(now time.Time, r *record) {
	wall := s.wall(now)
	l, ahead := r.lifetime(), r.refreshAt.Sub(r.obtained)
	c := s.client.Load()
	if l <= 0 || ahead < schedule.Ahead(l, 0) || c.Login == LoginEager || c.Kin != nil {
		// The refresh token may end before the access token does, or nobody is to
		// wait: then it is due when it was. One of many sessions comes into memory
		// because somebody calls, again and again where there is no room for all: each
		// time a little later, it would never be refreshed in time.
		s.refreshIn(now, r.refreshAt.Sub(wall))
		return
	}
	left := r.expiry.Sub(wall)
	s.refreshIn(now, schedule.AtBoot(ahead, left, rand.Float64()))
	s.refresh.unhurried = left <= 0
}
