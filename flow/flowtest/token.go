package flowtest

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// grant is one login: the family of every token that came of it.
type grant struct {
	login     int // the first is 1
	user      User
	scope     []string
	audience  string
	resources []string
	dead      bool // no token of the family works any more
	revoked   bool // its refresh tokens do not work any more
	inFlight  map[*exchange]context.Context
}

// accessToken is one access token and what it is good for.
type accessToken struct {
	grant    *grant
	scope    []string
	audience []string
	expires  time.Time
	revoked  bool
}

func (t *accessToken) alive() bool {
	return t != nil && !t.revoked && !t.grant.dead && time.Now().Before(t.expires)
}

// TokenInfo describes an access token.
type TokenInfo struct {
	User     User
	Scope    []string
	Audience []string // the audience, or the resources, that it was issued for
	Expires  time.Time
	Valid    bool
	Login    int  // which login it came of, as Stats counts them: 1 is the first
	Ended    bool // no refresh token of that login works any more
}

// Inspect describes an access token, alive or not; false if this server never issued it.
func (s *Server) Inspect(token string) (TokenInfo, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.access[token]
	if t == nil {
		return TokenInfo{}, false
	}
	return TokenInfo{
		User: t.grant.user, Scope: slices.Clone(t.scope), Audience: slices.Clone(t.audience),
		Expires: t.expires, Valid: t.alive(),
		Login: t.grant.login, Ended: t.grant.dead || t.grant.revoked,
	}, true
}

// ValidToken says whether an access token is alive, by the server's clock.
func (s *Server) ValidToken(token string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.access[token].alive()
}

// ExpireAccessTokens makes every access token issued so far invalid, as if its time were up.
func (s *Server) ExpireAccessTokens() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for _, t := range s.access {
		if t.expires.After(now) {
			t.expires = now
		}
	}
}

// issueLocked issues an access token and builds the token response (RFC 6749 section 5.1).
func (s *Server) issueLocked(cfg Config, g *grant, audience, scope []string, refresh string) reply {
	now := time.Now()
	if len(s.access) >= recordLimit {
		maps.DeleteFunc(s.access, func(_ string, t *accessToken) bool { return !t.alive() })
	}
	token := randomToken()
	s.access[token] = &accessToken{grant: g, scope: scope, audience: audience, expires: now.Add(cfg.AccessTokenLifetime)}

	body := map[string]any{
		"access_token": token,
		"token_type":   "Bearer",
		"expires_in":   seconds(cfg.AccessTokenLifetime),
	}
	if len(scope) > 0 {
		body["scope"] = strings.Join(scope, " ")
	}
	if refresh != "" {
		body["refresh_token"] = refresh
	}
	if slices.Contains(scope, "openid") {
		body["id_token"] = s.idToken(cfg, g, now)
	}
	return jsonReply(http.StatusOK, body)
}

// idToken is a well-formed JWT, signed with a key that nobody else has: clients of this server read it off the token
// endpoint's TLS connection and need not verify it (OpenID Connect Core section 3.1.3.7, item 6).
func (s *Server) idToken(cfg Config, g *grant, now time.Time) string {
	part := func(v map[string]any) string {
		raw, err := json.Marshal(v)
		if err != nil {
			panic(err) // strings and numbers always encode
		}
		return base64.RawURLEncoding.EncodeToString(raw)
	}
	signed := part(map[string]any{"alg": "HS256", "typ": "JWT"}) + "." + part(map[string]any{
		"iss": cfg.Issuer, "sub": g.user.Subject, "aud": cfg.ClientID,
		"iat": now.Unix(), "exp": now.Add(cfg.AccessTokenLifetime).Unix(),
		"name": g.user.Name, "email": g.user.Email,
	})
	mac := hmac.New(sha256.New, s.signKey)
	mac.Write([]byte(signed))
	return signed + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// parseScope splits a scope by the grammar of RFC 6749 section 3.3.
func parseScope(raw string) ([]string, *reply) {
	if raw == "" {
		return nil, nil
	}
	var out []string
	for token := range strings.SplitSeq(raw, " ") {
		bad := token == "" || strings.ContainsFunc(token, func(r rune) bool {
			return r < '!' || r > '~' || r == '"' || r == '\\'
		})
		if bad {
			re := errorReply(http.StatusBadRequest, "invalid_scope", "the scope is not a list of tokens with single spaces")
			return nil, &re
		}
		if !slices.Contains(out, token) {
			out = append(out, token)
		}
	}
	return out, nil
}

// grantScope gives what may be granted of a scope: all or nothing, but Auth0 leaves out what it does not know.
func (c Config) grantScope(scope []string) ([]string, *reply) {
	if len(c.AllowedScopes) == 0 {
		return scope, nil
	}
	var out []string
	for _, token := range scope {
		if slices.Contains(c.AllowedScopes, token) {
			out = append(out, token)
		} else if c.Flavour != Auth0 {
			re := errorReply(http.StatusBadRequest, "invalid_scope", "a scope asked for is not offered")
			return nil, &re
		}
	}
	return out, nil
}

// checkTargets judges audience and resource where a login is asked for.
func (c Config) checkTargets(audience string, resources []string) *reply {
	if audience != "" && !c.allowedAudience(audience) {
		return c.refuseTarget("unknown audience")
	}
	for _, resource := range resources {
		u, err := url.Parse(resource)
		if err != nil || !u.IsAbs() || strings.Contains(resource, "#") { // RFC 8707 section 2
			return c.refuseTarget("resource is not an absolute URI without fragment")
		}
		if !c.allowedAudience(resource) {
			return c.refuseTarget("unknown resource")
		}
	}
	return nil
}

func (c Config) refuseTarget(description string) *reply {
	re := errorReply(http.StatusBadRequest, "invalid_target", description) // RFC 8707 section 2
	if c.Flavour == Auth0 {
		re = errorReply(http.StatusForbidden, "access_denied", "Service not found")
	}
	return &re
}

// narrow selects audience and scope of one access token from what the token request asks and the login granted.
func (c Config) narrow(g *grant, form url.Values) (audience, scope []string, bad *reply) {
	wanted, resources := form.Get("audience"), form["resource"]
	if bad := c.checkTargets(wanted, resources); bad != nil {
		return nil, nil, bad
	}
	for _, resource := range resources {
		if len(c.AllowedAudiences) == 0 && !slices.Contains(g.resources, resource) {
			return nil, nil, c.refuseTarget("the resource was not asked for at login") // RFC 8707 section 2.2
		}
	}
	switch {
	case len(resources) > 0:
		audience = slices.Clone(resources)
	case wanted != "":
		audience = []string{wanted}
	case g.audience != "":
		audience = []string{g.audience}
	default:
		audience = slices.Clone(g.resources)
	}

	scope, bad = parseScope(form.Get("scope"))
	if bad != nil {
		return nil, nil, bad
	}
	if len(scope) == 0 {
		return audience, slices.Clone(g.scope), nil
	}
	if c.Flavour == Auth0 && wanted != "" && wanted != g.audience {
		scope, bad = c.grantScope(scope) // another API has scopes of its own
		return audience, scope, bad
	}
	for _, token := range scope {
		if !slices.Contains(g.scope, token) { // RFC 6749 section 6
			re := errorReply(http.StatusBadRequest, "invalid_scope", "the scope goes beyond what was granted")
			return nil, nil, &re
		}
	}
	return audience, scope, nil
}
