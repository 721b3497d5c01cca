package flowtest

import (
	"maps"
	"net/http"
)

// refreshToken is one refresh token of a family.
type refreshToken struct {
	grant *grant
	used  bool // rotated out
}

// RevokeAll makes every refresh token issued so far invalid, as an administrator would. Access tokens live on.
func (s *Server) RevokeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.refresh {
		t.grant.revoked = true
	}
}

func (s *Server) newRefreshLocked(g *grant) string {
	token := randomToken()
	s.refresh[token] = &refreshToken{grant: g}
	if len(s.refresh) >= 10*recordLimit {
		maps.DeleteFunc(s.refresh, func(_ string, t *refreshToken) bool { return t.used && t.grant.dead })
	}
	return token
}

// beginRefreshLocked notes a refresh at its arrival: two at once of one family are a race that one of them loses.
func (s *Server) beginRefreshLocked(x *exchange) {
	t := s.refresh[x.form.Get("refresh_token")]
	if t == nil {
		return
	}
	if othersLocked(t.grant.inFlight) {
		s.violateLocked("refresh: two at once of one login")
	}
	x.token = t
	t.grant.inFlight[x] = x.r.Context()
}

// serveRefresh is the token endpoint for the refresh_token grant (RFC 6749 section 6), with rotation and the reuse
// detection of RFC 9700 section 4.14.2.
func (s *Server) serveRefresh(x *exchange) reply {
	s.mu.Lock()
	defer s.mu.Unlock()
	fail := func(code, description string) reply {
		return errorReply(x.cfg.Flavour.status(code), code, description)
	}
	if x.form.Get("refresh_token") == "" {
		s.violateLocked("refresh: refresh_token is missing")
		return fail("invalid_request", "refresh_token is missing")
	}
	t := x.token
	switch {
	case t == nil:
		return fail("invalid_grant", "unknown or invalid refresh token")
	case t.used:
		s.stats.Reuses++
		s.violateLocked("refresh: a refresh token that had been rotated out was used again")
		t.grant.dead = true
		return fail("invalid_grant", "the refresh token was used before; all tokens of its login are revoked")
	case t.grant.dead || t.grant.revoked:
		return fail("invalid_grant", "unknown or invalid refresh token")
	}
	audience, scope, bad := x.cfg.narrow(t.grant, x.form)
	if bad != nil {
		return *bad
	}
	s.stats.Refreshes++
	next := ""
	if !x.cfg.NoRotation {
		t.used = true
		next = s.newRefreshLocked(t.grant)
	}
	return s.issueLocked(x.cfg, t.grant, audience, scope, next)
}

// serveRevoke is RFC 7009: unknown tokens are as good as revoked, and a refresh token takes its whole login along.
func (s *Server) serveRevoke(x *exchange) reply {
	s.mu.Lock()
	defer s.mu.Unlock()
	token := x.form.Get("token")
	if token == "" {
		s.violateLocked("revoke: token is missing")
		return errorReply(http.StatusBadRequest, "invalid_request", "token is missing")
	}
	if t := s.refresh[token]; t != nil {
		t.grant.dead = true
		s.stats.Revocations++
	} else if t := s.access[token]; t != nil {
		t.revoked = true
		s.stats.Revocations++
	}
	out := reply{status: http.StatusOK, header: http.Header{"Cache-Control": {"no-store"}}}
	if x.cfg.Flavour == Auth0 {
		out.header.Set("Content-Type", "text/plain; charset=utf-8")
		out.body = []byte("OK")
	}
	return out
}
