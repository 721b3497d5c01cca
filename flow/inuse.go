package flow

import (
	"cmp"
	"time"
)

// adopt writes a grant into the record. The token in use stays what it is until
// useAdopted.
func (s *Session) adopt(g *grant) {
	r := s.rec
	r.generation++
	now := time.Now()
	r.access, r.obtained, r.expiry, s.lapses = g.access, s.wall(now), time.Time{}, time.Time{}
	if g.lifetime > 0 {
		r.expiry, s.lapses = r.obtained.Add(g.lifetime), now.Add(g.lifetime)
	}
	if !g.refresh.IsZero() {
		r.refresh = g.refresh // else: the old one goes on (RFC 6749 §6)
	}
	if len(g.scope) > 0 {
		r.scope = g.scope
	}
	if g.account != nil {
		r.account = g.account.completedBy(r.account)
	}
	r.claims = g.claims.kept(s.client.Load().Account).over(r.claims)
	lifetime := cmp.Or(g.lifetime, assumedLifetime)
	if g.refreshLifetime > 0 {
		lifetime = min(lifetime, g.refreshLifetime) // Keycloak's can end first, and the login with it
	}
	ahead := refreshAhead(lifetime)
	r.refreshAt = r.obtained.Add(ahead)
	s.refreshIn(now, ahead)
}

// useAdopted makes the record's access token the one in use, if it is alive.
func (s *Session) useAdopted() {
	s.token, s.doubted = nil, nil
	r, now := s.rec, time.Now()
	if bearerSyntax(r.access.Reveal()) && (r.expiry.IsZero() || s.wall(now).Before(r.expiry) && now.Before(s.lapses)) {
		s.token = newToken(r.access, r.expiry, s.lapses)
		r.access = s.token.value // the same text, once
	}
}

// stepToken takes the token out of use when it lapses. If only the wall clock
// says so, the machine has slept or its clock was put right: then a refresh
// tells, and if there is none to be had, the token is used again. Without a refresh
// token the API tells: a 401 ends it.
func (s *Session) stepToken(now time.Time) (changed bool) {
	t := s.token
	if t == nil || t.expiry.IsZero() {
		return false
	}
	gone := !now.Before(t.lapses)
	if !gone && s.wall(now).Before(t.expiry) {
		return false
	}
	s.token = nil
	switch {
	case gone && s.rec.refresh.IsZero():
		s.dropAccess()
	case s.rec.refresh.IsZero():
		s.doubted = t
		s.trust(now)
		s.unsure = s.token
	case !gone:
		s.doubted = t
		s.refreshIn(now, 0)
	}
	return true
}

// dropAccess ends a login of which nothing but the access token was left.
func (s *Session) dropAccess() {
	s.token, s.rec.access = nil, Secret{}
	s.rec.generation++ // so that other instances do not write it again
	s.changed()
}

// trust puts a token back in use that nothing but the wall clock spoke against.
func (s *Session) trust(now time.Time) {
	if t := s.doubted; t != nil && now.Before(t.lapses) {
		s.rec.expiry = s.wall(now).Add(t.lapses.Sub(now))
		s.token = newToken(t.value, s.rec.expiry, t.lapses)
	}
	s.doubted = nil
}
