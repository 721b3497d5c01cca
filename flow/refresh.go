package flow

import (
	"context"
	"time"
)

const (
	refreshRetryMin = time.Second
	refreshRetryMax = 30 * time.Second
	refusedRetryMin = time.Minute // the server refuses our client: no hammering
	refusedRetryMax = 10 * time.Minute
	forcedGap       = 30 * time.Second // between refreshes that a 401 asks for
	doubtfulTries   = 5                // refusals that are not clearly final, before they count as final
)

// refreshState is the owner's memory of refreshes.
type refreshState struct {
	running  bool
	next     time.Time // when to refresh; meaningless without a refresh token
	failures int
	doubtful int
	forced   time.Time // when a 401 last asked for one
	err      *StatusError
	replies  []chan error
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
	if s.rec.refresh.IsZero() || s.refresh.running || s.save.held != nil {
		return
	}
	if !now.Before(s.refresh.next) {
		s.startRefresh()
	}
}

// refreshForced starts the refresh that a 401 asks for, if it is the token in
// use that was rejected. It reports whether a refresh is under way now.
func (s *Session) refreshForced(rejected *Token) bool {
	if s.token != nil && !s.token.value.Equal(rejected.value) {
		return false
	}
	if s.refresh.running || s.save.held != nil {
		return true
	}
	if s.rec.refresh.IsZero() {
		if s.token != nil && s.refresh.err != nil {
			// The server has ended this login and the API refuses what was left of
			// it: nothing but a new login helps.
			s.token, s.rec.access = nil, Secret{}
			s.changed()
			s.publish()
		}
		return false
	}
	now := time.Now()
	if !s.refresh.forced.IsZero() && now.Sub(s.refresh.forced) < forcedGap ||
		s.refresh.err != nil && now.Before(s.refresh.next) {
		return false
	}
	s.refresh.forced = now
	s.startRefresh()
	return true
}

// startRefresh trades the refresh token, unless that is under way: the loser of
// two refreshes would kill the login of the winner at many servers.
func (s *Session) startRefresh() {
	if s.refresh.running || s.save.held != nil || s.closing {
		return
	}
	s.refresh.running = true
	if s.token == nil {
		s.publish() // callers may wait for it
	}
	c, epoch, token := s.client.Load(), s.epoch, s.rec.refresh
	s.job(func(ctx context.Context) func() {
		begin := time.Now()
		g, err := c.refresh(ctx, token)
		took := time.Since(begin)
		return func() {
			if epoch != s.epoch {
				s.discard(g)
				return
			}
			s.refreshed(g, err, took)
		}
	})
}

// refreshed takes the answer to a refresh.
func (s *Session) refreshed(g *grant, err error, took time.Duration) {
	s.refresh.running = false
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
	s.changedThen(func() {
		s.useAdopted()
		s.publish()
		s.observe(Event{Kind: EventTokenRefreshed, Took: took})
		s.refresh.reply(nil)
	})
}

// adopt writes a grant into the record. The token in use stays what it is until
// useAdopted.
func (s *Session) adopt(g *grant) {
	r := s.rec
	r.generation++
	r.access, r.expiry, r.obtained = g.access, g.expiry, g.at
	if !g.refresh.IsZero() {
		r.refresh = g.refresh // else: the old one goes on (RFC 6749 §6)
	}
	if len(g.scope) > 0 {
		r.scope = g.scope
	}
	if g.account != nil {
		r.account = g.account.completedBy(r.account)
	}
	lifetime, _ := g.lifetime()
	r.refreshAt = refreshTime(g.at, lifetime)
	s.refresh.next = r.refreshAt
}

// useAdopted makes the record's access token the one in use, if it is alive.
func (s *Session) useAdopted() {
	s.token = nil
	r := s.rec
	if bearerSyntax(r.access.Reveal()) && (r.expiry.IsZero() || time.Now().Round(0).Before(r.expiry)) {
		s.token = newToken(r.access, r.expiry)
	}
}

// refreshFailed decides what a failed refresh means. The token in use is kept
// until it really lapses, whatever the error.
func (s *Session) refreshFailed(e *Error, took time.Duration) {
	s.refresh.failures++
	kind := e.Kind
	if kind == KindDoubtful {
		s.refresh.doubtful++
		switch {
		case s.refresh.doubtful < doubtfulTries:
		case s.token == nil:
			s.putAside()
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
		// Short-lived tokens need a shorter first pause.
		first := refreshRetryMin
		if l := s.rec.expiry.Sub(s.rec.obtained); l > 0 {
			first = min(first, max(l/20, minInterval))
		}
		wait = backoff(s.refresh.failures, first, refreshRetryMax)
	}
	now := time.Now()
	if s.token != nil && !s.token.expiry.IsZero() {
		// However long the pause: another attempt before calls begin to fail.
		least := refreshRetryMin
		if e.Kind == KindConfiguration {
			least = refusedRetryMin
		}
		wait = min(wait, max(s.token.expiry.Sub(now), least))
	}
	s.refresh.next = now.Add(max(wait, e.RetryAfter))
	s.refresh.err = statusError(e, s.refresh.next)
	s.publish()
	s.observe(Event{Kind: EventRefreshFailed, Err: e, Took: took})
}
