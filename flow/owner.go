package flow

import (
	"context"
	"time"
)

const (
	// lookAgain is how long an owner sleeps at most while anything is going on.
	lookAgain = time.Second
	// lookAgainQuiet is the same for one who only keeps a token; see [clock].
	lookAgainQuiet = time.Hour
)

// Run owns the session until ctx ends; then it waits up to three seconds for
// exchanges that are under way, saves what they brought, and returns. It may be
// called once.
func (s *Session) Run(ctx context.Context) {
	defer close(s.done)
	kin := s.client.Load().kin
	defer kin.clock.join()()
	jumped := kin.clock.jumped()
	jobCtx, cancelJobs := context.WithCancel(context.WithoutCancel(ctx))
	defer cancelJobs()
	s.jobCtx = jobCtx

	s.save.unread, s.save.patience = true, time.Now().Add(loadPatience)
	timer := time.NewTimer(0)
	defer timer.Stop()
	var grace, end <-chan time.Time
	abandoned := false // what is still under way ignores its context
	stop := ctx.Done()
	for {
		select {
		case f := <-s.inbox:
			f()
		case <-s.wake:
			s.demanded = true
		case r := <-s.rejected:
			if r.slot == nil {
				s.refreshForced(r.token)
			} else {
				s.renew(r.slot, r.token)
			}
		case <-s.rouse:
			s.hurry()
		case <-s.swap:
			s.login.unblock()
			s.refresh.unblock()
			s.unblockDerived()
			s.anotherAccount()
			if s.view.Load().status.Key != s.client.Load().Key {
				s.publish()
			}
			s.save.reread = 2
			// Perhaps there is a better store now; it does not have the login yet.
			s.save.next = time.Time{}
			s.save.dirty = s.save.dirty || s.rec.worthSaving()
		case <-timer.C:
		case <-jumped:
			jumped = kin.clock.jumped()
		case <-stop:
			stop = nil
			s.closing = true
			t := time.NewTimer(shutdownGrace)
			defer t.Stop()
			grace = t.C
		case <-grace:
			cancelJobs()
			t := time.NewTimer(abandonAfter)
			defer t.Stop()
			end = t.C
		case <-end:
			abandoned = true
		}
		now := time.Now()
		if s.closing {
			if s.jobs > 0 && !abandoned && (s.lastTries == 0 || s.save.running) {
				s.stepClaim(now)
				timer.Reset(s.claimBeat())
				continue
			}
			s.leavePending()
			if s.lastSave() {
				t := time.NewTimer(lastSaveTimeout + abandonAfter)
				defer t.Stop()
				grace, end, abandoned = nil, t.C, false
				continue
			}
			s.release()
			s.lastUnlock()
			return
		}
		s.step(now)
		timer.Reset(s.untilDue(now))
	}
}

// step does everything that is due. It reports whether it has begun a login.
func (s *Session) step(now time.Time) (began bool) {
	s.stepSave(now)
	if !s.loaded || s.closing {
		return false
	}
	s.stepAccount(now)
	if s.demanded || s.client.Load().Login == LoginEager {
		s.hurry()
	}
	lapsed := s.stepToken(now)
	s.stepRefresh(now)
	if lapsed {
		s.publish() // now that there is a refresh to wait for, if it was due
	}
	s.stepDerived(now)
	s.stepPending(now)
	wanted := s.demanded || s.client.Load().Login == LoginEager
	s.demanded = false
	if !wanted || s.token != nil || s.rec.loggedIn() || s.rec.pending != nil || s.login.asking || !s.login.allowed(now) ||
		s.save.sealed || s.save.unread && now.Before(s.save.patience) {
		return false
	}
	if may := s.client.Load().MayLogin; may != nil && !may() {
		return false
	}
	s.startLogin()
	return true
}

// wall is now by the wall clock.
func (s *Session) wall(now time.Time) time.Time { return now.Round(0).Add(s.skew) }

// quiet reports whether nothing can become due but at a time that is known: the
// login is there, nothing is under way, and nothing has failed. That is what most
// of many sessions are, most of the time.
func (s *Session) quiet() bool {
	return s.token != nil && s.loaded && s.rec.pending == nil && s.jobs == 0 && !s.refresh.running && !s.refresh.trading &&
		s.refresh.err == nil && s.save.err == nil && s.mayLook() && !s.save.dirty && !s.login.asking && s.derived.cache.Len() == 0
}

// untilDue is when step has to look again at the latest.
func (s *Session) untilDue(now time.Time) time.Duration {
	d := lookAgain
	if s.quiet() {
		d = lookAgainQuiet
	}
	sooner := func(t time.Time) {
		if !t.IsZero() {
			d = min(d, t.Sub(now))
		}
	}
	if p := s.rec.pending; p != nil && s.login.polling == nil {
		if p.poller == s.id {
			sooner(p.nextPoll)
			sooner(p.nextBeat)
		}
		sooner(p.ends)
	}
	byWall := func(t time.Time) { d = min(d, t.Sub(s.wall(now))) }
	if s.token != nil && !s.token.expiry.IsZero() {
		sooner(s.token.lapses)
		byWall(s.token.expiry)
	}
	if s.mayLook() {
		if now.Before(s.save.next) {
			sooner(s.save.next)
		} else {
			sooner(s.nextLook())
		}
	}
	if !s.refresh.running && s.save.held == nil && !s.rec.refresh.IsZero() && !s.leaves(nil, now) {
		sooner(s.refresh.next)
		byWall(s.refresh.nextWall)
	}
	if s.save.held != nil {
		sooner(s.save.heldUntil)
	}
	s.derivedDue(now, sooner)
	if s.refresh.trading {
		sooner(s.refresh.nextBeat)
	}
	return max(d, 0)
}

// job runs work beside the owner and then, on the owner's goroutine, what work
// returns. The work hangs on no caller's context.
func (s *Session) job(work func(ctx context.Context) func()) {
	s.jobs++
	ctx := s.jobCtx
	go func() {
		done := work(ctx)
		select {
		case s.inbox <- func() { s.jobs--; done() }:
		case <-s.done:
		}
	}()
}

// publish makes the present state public.
func (s *Session) publish() {
	st := s.snapshot()
	from := s.state
	changed := st.State != from
	if changed {
		s.state, s.since = st.State, stamp(time.Now())
	}
	st.Since = s.since
	old := s.view.Swap(&view{
		token:   s.token,
		status:  st,
		waiting: !s.loaded || s.token == nil && (s.refreshing() || s.refresh.unhurried),
		asleep:  !s.loaded || s.refresh.unhurried,
		grant:   !s.rec.refresh.IsZero(),
		asking:  s.login.asking,
		unsaved: s.save.err != nil,
		changed: make(chan struct{}),
	})
	close(old.changed)
	if changed {
		s.observe(Event{Kind: EventStateChanged, From: from})
	}
}

func (s *Session) observe(e Event) {
	e.Status = s.view.Load().status
	s.client.Load().Observer(e)
}

// snapshot builds the status from what the owner knows.
func (s *Session) snapshot() Status {
	c := s.client.Load()
	st := Status{Session: c.Name, Key: c.Key}
	if s.rec.loggedIn() {
		st.Account = s.rec.account
	}
	if p := s.rec.pending; p != nil {
		info := p.info
		info.ExpiresAt = stamp(info.ExpiresAt)
		st.Login = &info
	}
	if t := s.token; t != nil {
		info := TokenInfo{Scope: s.rec.scope, Refreshable: !s.rec.refresh.IsZero()}
		if !t.expiry.IsZero() {
			at := stamp(t.expiry)
			info.ExpiresAt = &at
		}
		if info.Refreshable {
			at := stamp(s.refresh.next)
			info.RefreshAt = &at
		}
		st.Token = &info
	}
	first, second := s.refresh.err, s.login.err
	if !s.rec.loggedIn() {
		first, second = second, first // what came of the next login matters more than how the last one ended
	}
	for _, e := range []*StatusError{first, second, s.save.err} {
		if e != nil {
			st.Error = e
			break
		}
	}
	fix := st.Error != nil && st.Error.Action == ActionFixConfiguration
	switch {
	case !s.loaded:
		st.State = StateUnavailable
	case s.token != nil && fix && st.Error == s.refresh.err:
		st.State = StateMisconfigured
	case s.token != nil && (s.refresh.err != nil || s.save.err != nil):
		st.State = StateDegraded
	case s.token != nil:
		st.State = StateAuthorized
	case st.Login != nil:
		st.State = StatePending
	case fix:
		st.State = StateMisconfigured
	case s.rec.loggedIn() || s.save.unread:
		st.State = StateUnavailable
	default:
		st.State = StateLoginRequired
	}
	return st
}

// stamp is t as it stands in a Status: whole seconds in UTC, which every JSON
// tool can read.
func stamp(t time.Time) time.Time { return t.UTC().Truncate(time.Second) }

// statusError is e as the operator sees it; retry is zero when nothing is tried again.
func statusError(e *Error, retry time.Time) *StatusError {
	st := &StatusError{Code: e.Code, Description: describe(e), At: stamp(time.Now())}
	switch e.Kind {
	case KindConfiguration:
		st.Action = ActionFixConfiguration
	case KindDenied, KindExpired, KindReauthorize:
		st.Action = ActionReauthorize
	default:
		st.Action = ActionRetry
	}
	if !retry.IsZero() {
		at := stamp(retry.Add(time.Second - 1)) // never too early
		st.RetryAt = &at
	}
	return st
}
