package flow

import (
	"cmp"
	"errors"
	"slices"
	"strings"
	"time"
)

const (
	rejectedRetryMin = 30 * time.Second // what the server refuses for one API is not asked for again
	rejectedRetryMax = 10 * time.Minute
	strangerGap      = time.Second // after a refusal, before anything that was never granted
)

// The methods here run on the owner's goroutine. There is one exchange at a
// time for all tokens of a login, its own included, since each may rotate the
// refresh token: see refresh.go for how it is done, and here for whose turn it is.

// ask has a token made for a handle whose caller has found none.
func (s *Session) ask(d *Derived) error {
	if s.closing {
		return s.closed()
	}
	if s.rec.refresh.IsZero() {
		return s.notReadyFor(s.underivable())
	}
	sl := s.slotFor(d)
	if sl == nil {
		return s.notReadyFor(nil) // callers of so many others are waiting already
	}
	if sl.token == nil && !sl.held {
		s.enqueue(sl)
	}
	return nil
}

// underivable is why there can be no further tokens without a refresh token.
func (s *Session) underivable() *StatusError {
	if s.refresh.err != nil {
		return s.refresh.err // it has been refused
	}
	if !s.rec.loggedIn() {
		return nil
	}
	return statusError(&Error{Kind: KindConfiguration, Op: opRefresh, Code: CodeConfiguration, Err: errors.New(
		"the login came without a refresh token, which is what brings tokens for further APIs: " +
			"add the scope that grants one (offline_access at many servers) to the session, and log in again")}, time.Time{})
}

// enqueue lets a slot wait for its turn.
func (s *Session) enqueue(sl *slot) {
	if sl.turn == 0 {
		s.derived.turns++
		sl.turn = s.derived.turns
		sl.publish()
	}
}

// renew has a token replaced that the API has refused, if it is the one in use.
// It reports whether an exchange for it is under way now.
func (s *Session) renew(sl *slot, rejected *Token) bool {
	switch now := time.Now(); {
	case sl == nil || sl.gone || sl.token == nil || !sl.token.value.Equal(rejected.value):
		return sl != nil && sl.turn != 0
	case sl.turn != 0:
		return true
	case s.rec.refresh.IsZero():
		if s.refresh.err != nil { // the server has ended this login, as [Session.refreshForced] has it
			sl.token = nil
			sl.publish()
		}
		return false
	case !sl.forced.IsZero() && now.Sub(sl.forced) < forcedGap || sl.err != nil && now.Before(sl.next):
		return false
	default:
		sl.forced = now
		s.enqueue(sl)
		return true
	}
}

// stepDerived takes lapsed tokens out of use and begins the exchange whose turn
// it is. The session's own refresh has gone before.
func (s *Session) stepDerived(now time.Time) {
	var first *slot
	s.each(func(sl *slot) {
		s.stepSlot(sl, now)
		if sl.turn != 0 && (first == nil || sl.turn < first.turn) && !now.Before(s.notBefore(sl)) {
			first = sl
		}
	})
	if first != nil {
		s.trade(first)
	}
}

func (s *Session) stepSlot(sl *slot, now time.Time) {
	before := *sl.view.Load()
	wall := s.wall(now)
	if t := sl.token; t != nil && !t.expiry.IsZero() && (!now.Before(t.lapses) || !wall.Before(t.expiry)) {
		sl.token = nil
		if now.Before(t.lapses) && (sl.notice() || sl.wanted) {
			sl.doubted = t // an exchange tells
		}
		sl.held = sl.err != nil && now.Before(sl.next)
	}
	if sl.turn != 0 && sl.token == nil && now.Before(s.derived.pause) { // too long for anybody to wait
		sl.turn, sl.held, sl.next = 0, true, s.derived.pause
		sl.err = cmp.Or(sl.err, s.derived.err)
	}
	if sl.held && !now.Before(sl.next) {
		sl.held = false
	}
	switch {
	case s.rec.refresh.IsZero():
		sl.turn, sl.held = 0, false // whoever asks hears why
	case sl.turn != 0:
	case sl.doubted != nil && sl.token == nil && !sl.held,
		// Used between the last exchange and this moment, or since.
		sl.token != nil && (!now.Before(sl.next) || !wall.Before(sl.nextWall)) && (sl.notice() || sl.wanted) && !s.leaves(sl, now):
		s.enqueue(sl)
	}
	if v := sl.view.Load(); sl.token != before.token || sl.held != before.held || (sl.turn != 0) != v.waiting {
		sl.publish()
	}
}

// notBefore is when the exchange of a slot may begin.
func (s *Session) notBefore(sl *slot) time.Time {
	at := s.derived.pause
	if !sl.had && s.derived.strangers.After(at) {
		at = s.derived.strangers
	}
	return at
}

// derivedDue is when stepDerived has to look again; the zero time if that is
// not before the owner looks in any case.
func (s *Session) derivedDue(now time.Time, sooner func(time.Time)) {
	later := func(t time.Time) { // what has not been done at its time waits for something else
		if t.After(now) {
			sooner(t)
		}
	}
	s.each(func(sl *slot) {
		if sl.turn != 0 {
			later(s.notBefore(sl))
		} else {
			later(sl.next)
		}
		if sl.token != nil {
			later(sl.token.lapses)
		}
	})
}

// derivedBack takes the answer to an exchange for another API. Nothing of it
// touches the session's own access token; the new refresh token is the login's.
func (s *Session) derivedBack(sl *slot, g *grant, err error, took time.Duration) {
	if e := s.client.Load().swapped(s.rec.claims, g); e != nil {
		s.revokeGrant(g)
		s.refreshFailed(e, took)
		s.refresh.reply(e)
		s.slotFailed(sl, e, took)
		return
	}
	if err == nil && misdirected(sl.want, g.access, s.rec.access) {
		err = &Error{Kind: KindConfiguration, Op: opRefresh, Code: CodeWrongAudience, Err: errors.New(
			"the authorization server ignored what was asked for and issued another token for the session's own API, which must not go anywhere else: " +
				"allow this client tokens for several APIs there")}
	}
	now := time.Now()
	s.rec.others = true
	rotated := g != nil && !g.refresh.IsZero()
	if rotated {
		s.rec.refresh = g.refresh
		s.rec.generation++
	}
	finish := func() {
		s.refresh.slot = nil
		switch {
		case sl.gone: // with the login that it was of
		case err != nil:
			s.slotFailed(sl, asError(opRefresh, err), took)
		default:
			s.slotGot(sl, g, now, took)
		}
	}
	switch {
	case !rotated:
		s.changed() // the claim is given up
		finish()
	case s.refresh.waited && s.save.running:
		s.save.dirty = true // the store hangs: once is enough
		finish()
	default:
		s.refresh.slot = sl // what is held is not of the session's own refresh
		s.changedThen(finish)
	}
}

func (s *Session) slotGot(sl *slot, g *grant, at time.Time, took time.Duration) {
	var expiry, lapses time.Time
	if g.lifetime > 0 {
		expiry, lapses = s.wall(at).Add(g.lifetime), at.Add(g.lifetime)
	}
	ahead := refreshAhead(cmp.Or(g.lifetime, assumedLifetime))
	sl.next, sl.nextWall = at.Add(ahead), s.wall(at).Add(ahead)
	sl.token, sl.doubted, sl.had = newToken(g.access, expiry, lapses), nil, true
	sl.turn, sl.err, sl.failures, sl.held = 0, nil, 0, false
	sl.wanted = false
	sl.used.Store(false)
	s.derived.failures, s.derived.pause = 0, time.Time{}
	sl.publish()
	s.observe(Event{Kind: EventTokenRefreshed, For: sl.want.String(), Took: took})
}

// slotFailed decides what a failed exchange means for one API. The others, and
// the session itself, go on.
func (s *Session) slotFailed(sl *slot, e *Error, took time.Duration) {
	now := time.Now()
	if t := sl.doubted; t != nil && now.Before(t.lapses) { // nothing but the wall clock speaks against it
		sl.token = newToken(t.value, s.wall(now).Add(t.lapses.Sub(now)), t.lapses)
	}
	sl.doubted = nil
	sl.failures++
	shown, least := *e, refreshRetryMin
	var wait time.Duration
	if e.Kind == KindTemporary {
		wait = max(backoff(sl.failures, refreshRetryMin, refreshRetryMax), e.RetryAfter)
		// It is the server's trouble: not one attempt for each API.
		s.derived.failures++
		s.derived.pause = now.Add(max(backoff(s.derived.failures, refreshRetryMin, refreshRetryMax), e.RetryAfter))
		s.derived.err = statusError(e, s.derived.pause)
	} else {
		least = rejectedRetryMin
		wait = max(backoff(sl.failures, rejectedRetryMin*10/9, rejectedRetryMax), e.RetryAfter)
		s.derived.strangers = now.Add(strangerGap)
		if e.Kind == KindReauthorize {
			s.suspect(now)
		}
		shown.Kind = KindConfiguration
	}
	if sl.token != nil && !sl.token.expiry.IsZero() {
		wait = min(wait, max(sl.token.lapses.Sub(now)-s.claimBeat(), least))
	}
	sl.next = now.Add(wait)
	sl.nextWall = s.wall(sl.next)
	sl.err = statusError(&shown, sl.next)
	sl.err.Description = clean("there is no token for "+sl.want.String()+": "+sl.err.Description, 600)
	sl.turn, sl.held = 0, sl.token == nil
	sl.publish()
	s.observe(Event{Kind: EventRefreshFailed, For: sl.want.String(), Err: e, Took: took})
}

// suspect has the session's own refresh tell whether the login is over, now that
// an exchange for another API says so: some servers mean that API alone, and a
// login is not given up for that.
func (s *Session) suspect(now time.Time) {
	if s.rec.refresh.IsZero() || !s.refresh.forced.IsZero() && now.Sub(s.refresh.forced) < forcedGap ||
		s.refresh.err != nil && now.Before(s.refresh.next) {
		return
	}
	s.refresh.forced = now
	s.refreshIn(now, 0)
}

// unblockDerived forgets what was refused: there is a new configuration.
func (s *Session) unblockDerived() {
	s.resize()
	s.derived.pause, s.derived.strangers, s.derived.failures = time.Time{}, time.Time{}, 0
	now := time.Now()
	s.each(func(sl *slot) {
		if sl.err != nil {
			sl.err, sl.failures, sl.held, sl.next, sl.nextWall = nil, 0, false, now, s.wall(now)
			sl.publish()
		}
	})
}

// ownWant is what the session's own refresh asks for. As long as nobody has
// asked for anything else, it is what the refresh token stands for; afterwards
// some servers would take the last thing for the usual one.
func (s *Session) ownWant() Want {
	if !s.rec.others {
		return Want{}
	}
	c := s.client.Load()
	return Want{Audience: c.Audience, Resource: c.ownResource(), Scope: s.rec.scope}
}

// misdirected reports whether the server has paid no heed to the API that is
// wanted, as far as its token tells: it is the session's own token once more, or
// a JWT for the same audience (RFC 9068 §2.2) and not for the one that is wanted.
func misdirected(want Want, token, own Secret) bool {
	wanted := append(slices.Clip(want.Resource), want.Audience)
	if wanted[0] == "" || own.IsZero() { // by scope alone, it may well be the same
		return false
	}
	if token.Equal(own) {
		return true
	}
	got := audiences(token)
	for _, w := range wanted {
		if w != "" && slices.Contains(got, strings.TrimSuffix(w, "/")) {
			return false
		}
	}
	return len(got) > 0 && slices.Equal(got, audiences(own))
}

// audiences are those of a JWT, in order; none for another token.
func audiences(token Secret) []string {
	var out []string
	switch aud := jwtPayload(token.Reveal())["aud"].(type) {
	case string:
		out = append(out, strings.TrimSuffix(aud, "/"))
	case []any:
		for _, a := range aud {
			if a, ok := a.(string); ok {
				out = append(out, strings.TrimSuffix(a, "/"))
			}
		}
	}
	slices.Sort(out)
	return out
}
