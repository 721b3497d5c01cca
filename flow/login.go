package flow

import (
	"context"
	"errors"
	"slices"
	"time"
)

// Pauses between attempts to get a code.
const (
	deviceRetryMin   = time.Second
	deviceRetryMax   = time.Minute
	configurationGap = time.Minute // between attempts that the server refuses for our configuration
	pollRetryMax     = time.Minute
	expiredGapMin    = 10 * time.Second // after a code that nobody used, doubled each time
	expiredGapMax    = time.Hour
	loginLockWait    = 3 * time.Second
)

// errOvertaken answers those who waited for something that a newer login or a
// logout has made pointless.
var errOvertaken = errors.New("overtaken by another login or a logout")

// loginState is the owner's memory of logins.
type loginState struct {
	asking  bool          // a device authorization request is under way
	polling *pendingLogin // the code that an exchange is under way for
	// held: the last login was refused; only Login starts another.
	held     bool
	failures int       // device requests in a row that failed
	unused   int       // codes in a row that nobody approved
	next     time.Time // no device request on demand before this
	err      *StatusError
	ended    endedCodes // as in the record, but of what this instance knows
	replies  []chan error
}

// allowed reports whether a demand may start a login now.
func (l *loginState) allowed(now time.Time) bool { return !l.held && !now.Before(l.next) }

// unblock forgets a refusal of the configuration, for there is a new one.
func (l *loginState) unblock() {
	if l.err != nil && l.err.Action == ActionFixConfiguration {
		l.held, l.next, l.failures = false, time.Time{}, 0
	}
}

func (l *loginState) reply(err error) {
	for _, r := range l.replies {
		r <- err
	}
	l.replies = nil
}

// startLogin asks for a code, unless a request for one is under way.
func (s *Session) startLogin() {
	if s.login.asking || s.closing {
		return
	}
	s.login.asking, s.login.held = true, false
	s.publish()
	c, epoch, generation, ended := s.client.Load(), s.epoch, s.rec.generation, s.login.ended
	loginAt, wall := s.rec.loginAt, s.wall(time.Now())
	s.job(func(ctx context.Context) func() {
		// Another instance may have a code out, or be about to: one is enough.
		unlock := c.lock(ctx, "login", loginLockWait)
		if b, r := c.elsewhere(ctx, generation, loginAt, ended, wall); r != nil {
			unlock()
			return func() {
				s.login.asking = false
				s.login.next = time.Now().Add(lookAtLeast) // should it not lead anywhere
				s.found(b, r, nil)
				s.publish()
				s.login.reply(nil)
			}
		}
		d, err := c.authorize(ctx)
		return func() {
			s.login.asking = false
			s.save.unlock = append(s.save.unlock, unlock) // once the code is in the store
			if epoch != s.epoch {
				if len(s.login.replies) > 0 {
					s.startLogin() // of somebody who came after the logout
				}
				s.publish()
			} else {
				s.codeReceived(d, err)
			}
			if !s.save.dirty && !s.save.running {
				s.unlock() // there was nothing to store
			}
		}
	})
}

// codeReceived takes the answer to a device authorization request.
func (s *Session) codeReceived(d *deviceCode, err error) {
	now := time.Now()
	if err != nil {
		e := asError(opDevice, err)
		s.login.failures++
		wait := max(backoff(s.login.failures, deviceRetryMin, deviceRetryMax), e.RetryAfter)
		if e.Kind == KindConfiguration {
			wait = max(wait, configurationGap)
		}
		s.login.next = now.Add(wait)
		s.login.err = statusError(e, s.login.next)
		s.publish()
		s.observe(Event{Kind: EventLoginFailed, Err: e})
		s.login.reply(e)
		return
	}
	if s.rec.pending != nil {
		// Another instance was faster; people may be typing in its code by now.
		s.publish()
		s.login.reply(nil)
		return
	}
	s.login.failures, s.login.err = 0, nil
	s.rec.failed, s.rec.held = nil, false
	left := d.login.ExpiresAt.Sub(now.Round(0))
	d.login.ExpiresAt = s.wall(now).Add(left)
	s.rec.pending = &pendingLogin{
		code: d.code, verifier: d.verifier, info: d.login, interval: d.interval, poller: s.id,
		ends:     now.Add(left),
		nextPoll: now.Add(d.interval), // RFC 8628 §3.5: wait before the first poll, too
	}
	// Nobody shall type in a code that a restart has forgotten.
	s.beat(s.rec.pending, now)
	s.changedThen(func() {
		s.publish()
		s.observe(Event{Kind: EventLoginPending})
		s.login.reply(nil)
	})
}

// startPoll asks once; there is never a second poll at the same time, since
// some servers revoke the tokens of a code that is used twice.
func (s *Session) startPoll() {
	c, epoch, p, generation := s.client.Load(), s.epoch, s.rec.pending, s.rec.generation
	s.login.polling = p
	code, beat := p.code, p.beat
	s.job(func(ctx context.Context) func() {
		if b, r := c.overtaken(ctx, generation, code, s.id, beat); r != nil {
			return func() {
				s.polledLast(p)
				if epoch == s.epoch {
					s.found(b, r, nil)
				}
			}
		}
		begin := time.Now()
		g, err := c.poll(ctx, p.code, p.verifier)
		took := time.Since(begin)
		asked := c.askAccount(ctx, g)
		return func() {
			s.polledLast(p)
			if epoch != s.epoch || s.rec.pending != p {
				s.discard(g)
				return
			}
			s.polled(p, g, err, asked, took)
		}
	})
}

// polledLast notes the end of an exchange, which may be one about another code
// than the one that is out by now.
func (s *Session) polledLast(p *pendingLogin) {
	if s.login.polling == p {
		s.login.polling = nil
	}
}

// polled takes the answer to a poll (RFC 8628 §3.5).
func (s *Session) polled(p *pendingLogin, g *grant, err, asked error, took time.Duration) {
	now := time.Now() // the interval counts from the receipt of the answer
	if err == nil || g != nil {
		if e := s.client.Load().refusal(g, asked); e != nil {
			s.refuse(g, e)
			return
		}
		s.approved(g, err, took)
		return
	}
	e := asError(opPoll, err)
	kind := e.Kind
	if e.Code == CodeConfiguration {
		kind = KindTemporary // our own trouble (a secret file, the metadata) does not end the code
	}
	switch kind {
	case KindPending:
		p.failures = 0
	case KindSlowDown:
		// For this and all later polls.
		p.failures = 0
		p.interval = min(max(p.interval+5*time.Second, e.Interval, e.RetryAfter), maxCodeLifetime)
		s.changed() // a restart must not poll faster again
	case KindTemporary, KindDoubtful:
		p.failures++
		wait := max(backoff(p.failures, p.interval*2, max(pollRetryMax, p.interval)), p.interval, e.RetryAfter)
		p.nextPoll = now.Add(wait)
		s.login.err = statusError(e, p.nextPoll)
		s.publish()
		return
	default:
		s.loginFailed(e)
		return
	}
	p.nextPoll = now.Add(p.interval)
	if s.login.err != nil {
		s.login.err = nil
		s.publish()
	}
}

// approved turns the token response into the session's login. err is set when
// its access token cannot be used; its refresh token may be good all the same.
func (s *Session) approved(g *grant, err error, took time.Duration) {
	if err != nil && g.refresh.IsZero() {
		s.loginFailed(asError(opPoll, err))
		return
	}
	s.letGo() // what a refresh brings now belongs to the login before
	s.release()
	s.dropDerived()
	before := s.rec
	before.endPending()
	s.epoch++
	s.doubted, s.unsure = nil, nil
	s.login = loginState{asking: s.login.asking, replies: s.login.replies, ended: before.ended}
	s.rec = &record{fingerprint: before.fingerprint, generation: before.generation + loginLeap - 1, loginAt: time.Now().Round(0), ended: before.ended}
	s.rec.account = g.account
	if len(g.scope) == 0 {
		// RFC 6749 §5.1: left out when identical to what was asked for.
		g.scope = s.client.Load().Scope
	}
	if err != nil {
		g.access, g.lifetime, s.token = Secret{}, 0, nil
	}
	s.adopt(g)
	if err != nil {
		s.refreshFailed(asError(opPoll, err), took)
	} else {
		s.refresh.succeeded()
	}
	s.save.thaw()
	s.refresh.saving = true
	s.changedThen(func() {
		s.refresh.saving = false
		s.useAdopted()
		s.publish()
		s.observe(Event{Kind: EventLoginSucceeded, Took: took})
		s.refresh.reply(nil)
		s.identify()
	})
	if a, b := before.account, s.rec.account; a != nil && b != nil && a.Subject != b.Subject {
		// Only of another account: some servers (Auth0) take revocation as one of
		// all that this client has of the account, the new login included.
		s.revokeInBackground(before.refresh)
	}
}

// loginFailed ends a pending login. Except for a code that ran out, only a
// person starts the next one.
func (s *Session) loginFailed(e *Error) {
	s.rec.endPending()
	s.login.ended = s.rec.ended
	s.login.held = e.Kind != KindExpired
	if e.Kind == KindExpired {
		s.login.unused++
		s.login.next = time.Now().Add(backoff(s.login.unused, expiredGapMin, expiredGapMax))
	}
	s.login.err = statusError(e, time.Time{})
	if s.login.err.Action == ActionRetry {
		s.login.err.Action = ActionReauthorize // nobody tries this code again
	}
	s.rec.failed, s.rec.held = s.login.err, s.login.held
	s.changed()
	s.publish()
	s.observe(Event{Kind: EventLoginFailed, Err: e})
}

// identify asks the userinfo endpoint who logged in, where no id_token said so, or
// named the subject alone, and an openid scope allows the question, or the endpoint
// needs no such scope. With [Config.Account] it has been asked already, if need was.
func (s *Session) identify() {
	c, epoch := s.client.Load(), s.epoch
	if s.closing || s.token == nil || s.rec.account.named() || s.rec.account != nil && c.Account != nil ||
		!c.Identify && !slices.Contains(s.rec.scope, "openid") {
		return
	}
	token := s.token.value
	s.job(func(ctx context.Context) func() {
		account, told, err := c.userInfo(ctx, token)
		return func() {
			known := s.rec.account
			if err != nil || account == nil || epoch != s.epoch || known != nil && account.Subject != known.Subject {
				return // a name on the page is a courtesy
			}
			s.rec.account, s.rec.claims = account.completedBy(known), s.rec.claims.over(told.kept(s.client.Load().Account))
			s.changed()
			s.publish()
			s.observe(Event{Kind: EventIdentified})
		}
	})
}
