package flow

import (
	"context"
)

// forget is Logout on the owner's goroutine.
func (s *Session) forget(reply chan error) {
	token := s.rec.refresh
	hint := "refresh_token"
	if token.IsZero() {
		token, hint = s.rec.access, "access_token"
	}
	was := s.rec.loggedIn()
	s.rec.endPending()
	ended := s.rec.ended
	s.epoch++
	s.rec = &record{fingerprint: s.rec.fingerprint, generation: s.rec.generation + logoutLeap, ended: ended}
	s.token, s.doubted, s.unsure = nil, nil, nil
	s.login.reply(errOvertaken)
	s.login = loginState{asking: s.login.asking, ended: ended}
	s.refresh.reply(errOvertaken)
	s.letGo()
	s.dropDerived()
	s.refresh = refreshState{}
	s.save.held = nil              // nobody shall hear of it any more
	s.save.outrank = s.save.unread // whatever is stored goes
	s.save.unread = false
	s.changed()
	s.publish()
	if was {
		s.observe(Event{Kind: EventLoggedOut})
	}
	if token.IsZero() {
		reply <- s.save.leftAlone()
		return
	}
	c := s.client.Load()
	s.job(func(ctx context.Context) func() {
		err := c.revoke(ctx, token, hint)
		return func() { reply <- err }
	})
}

// discard revokes a grant that came for a login that is no longer wanted,
// unless that could end the one that took its place.
func (s *Session) discard(g *grant) {
	if g != nil && !s.rec.loggedIn() {
		s.revokeInBackground(g.refresh)
	}
}

func (s *Session) revokeInBackground(token Secret) {
	if token.IsZero() {
		return
	}
	c := s.client.Load()
	s.job(func(ctx context.Context) func() {
		_ = c.revoke(ctx, token, "refresh_token") // best effort: nobody waits for it
		return func() {}
	})
}
