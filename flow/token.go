package flow

import (
	"encoding/base64"
	"encoding/json"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow/schedule"
)

// assumedLifetime is what an access token without a usable expires_in gets:
// it is refreshed within the hour, and served on until the API refuses it.
const assumedLifetime = time.Hour

// Token is a usable access token. It is immutable.
type Token struct {
	value  Secret
	header Secret    // "Bearer …", built once so that a request builds nothing
	expiry time.Time // by the wall clock; zero: unknown
	lapses time.Time // the same moment by the monotonic clock, which a corrected clock does not move
}

// newToken makes a token of one piece of memory, with its text in it once: there may be
// one for each of a hundred thousand devices, and each request looks there.
func newToken(value Secret, expiry, lapses time.Time) *Token {
	const scheme = "Bearer "
	made := new(struct {
		Token
		header, value string
	})
	made.header = scheme + value.Reveal()
	made.value = made.header[len(scheme):]
	made.Token = Token{value: Secret{&made.value}, header: Secret{&made.header}, expiry: expiry, lapses: lapses}
	return &made.Token
}

// Value is the access token.
func (t *Token) Value() Secret { return t.value }

// Expiry is when the token lapses by the server's word; the zero time if the
// server did not say.
func (t *Token) Expiry() time.Time { return t.expiry }

// SetHeader replaces every Authorization field of h by the token (RFC 6750
// §2.1). The slice is a fresh one: what a later handler edits is its own.
func (t *Token) SetHeader(h http.Header) { t.setHeader(h, new([1]string)) }

// setHeader is SetHeader with the slice in a place of the request's own.
func (t *Token) setHeader(h http.Header, place *[1]string) {
	place[0] = t.header.Reveal()
	h["Authorization"] = place[:]
}

// grant is what a token response grants: an access token and what came with it.
type grant struct {
	access  Secret
	refresh Secret // empty: none was sent
	// lifetime of the access token from its receipt; 0: unknown.
	lifetime time.Duration
	// refreshLifetime is that of the refresh token; 0: unknown, or no end.
	refreshLifetime time.Duration

	scope   []string
	account *Account
	claims  claims // of the account, as far as the id_token tells
}

// grant reads a token response (RFC 6749 §5.1, §5.2). A response with an access
// token is never given up over a detail of another member.
func (a *answer) grant(op string) (*grant, error) {
	f := a.fields
	ok := a.ok && a.status >= 200 && a.status < 300
	if code, _ := f.errorCode(a.status); !ok || code != "" && f.text("access_token") == "" {
		return nil, a.failure(op)
	}
	g := &grant{
		access:  NewSecret(bareToken(f.text("access_token"))),
		refresh: NewSecret(f.text("refresh_token")),
		scope:   f.list("scope"),
	}
	if len(g.refresh.Reveal()) > maxToken {
		// Nobody issues one like that. As the other one it would be sent and stored
		// over and over; without it, the access token is good while it lasts.
		g.refresh = Secret{}
	}
	a.secrets = append(a.secrets, g.access, g.refresh)
	unusable := func(description string) error {
		// The refresh token may be good all the same: whoever gets this error
		// still finds it in the grant.
		return &Error{Kind: KindTemporary, Op: op, Code: CodeInvalidResponse, Status: a.status, Description: description}
	}
	if d, ok := f.seconds(maxTokenLifetime, "expires_in", "expire_in"); ok {
		g.lifetime = d
	}
	if d, ok := jwtRemaining(g.access.Reveal(), a.header, a.at); ok && (g.lifetime == 0 || d < g.lifetime) {
		// The server says how long the token lives from its making, which may
		// have been a while before this poll.
		g.lifetime = d
	}
	g.refreshLifetime, _ = f.seconds(maxTokenLifetime, "refresh_token_expires_in", "refresh_expires_in")
	if id := f.text("id_token"); id != "" {
		payload := jwtPayload(id)
		g.account, g.claims = accountFrom(normalize(payload), ""), claimsFrom(payload)
	}
	switch typ := f.text("token_type"); {
	case g.access.IsZero() && g.refresh.IsZero():
		return nil, unusable("the answer has neither a token nor an error")
	case g.access.IsZero():
		return g, unusable("the answer has no access_token")
	case !bearerSyntax(g.access.Reveal()):
		return g, unusable("the access token has characters that cannot stand in a header")
	case typ != "" && !isBearer(typ):
		return g, &Error{
			Kind: KindConfiguration, Op: op, Code: "unsupported_token_type", Status: a.status,
			Description: "the server issues tokens of type " + a.told(typ, 32) + ", only Bearer can be used",
		}
	}
	return g, nil
}

// isBearer reports whether tokens of that type are used as RFC 6750 says: Bearer in
// any case, or what Apigee calls them, BearerToken.
func isBearer(typ string) bool {
	typ = strings.TrimSpace(typ)
	return strings.EqualFold(typ, "Bearer") || strings.EqualFold(typ, "BearerToken")
}

// bareToken is an access token without what some servers put around it: a line
// break, or the scheme that goes before it in a request.
func bareToken(s string) string {
	s = strings.TrimSpace(s)
	if scheme, token, ok := strings.Cut(s, " "); ok && strings.EqualFold(scheme, "bearer") {
		s = strings.TrimSpace(token)
	}
	return s
}

// bearerSyntax is what can stand behind "Bearer" in a header, with a generous bound.
// It is more than b64token of RFC 6750 §2.1, since Salesforce's tokens have a !,
// and those of others a | or a colon (RFC 6749 allows all visible characters);
// but nothing that a reader of the header could take for its end or for a list.
func bearerSyntax(s string) bool {
	if strings.TrimRight(s, "=") == "" || len(s) > maxToken {
		return false
	}
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c > '~' || c == '"' || c == ',' || c == '\\' {
			return false
		}
	}
	return true
}

// jwtPayload reads the payload of a JWT without checking its signature. That is
// enough for a token that came straight from the token endpoint over TLS
// (OpenID Connect Core §3.1.3.7).
func jwtPayload(s string) map[string]any {
	parts := strings.Split(s, ".")
	if len(parts) != 3 {
		return nil
	}
	b, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(parts[1], "="))
	if err != nil {
		return nil
	}
	m, err := decodeObject(b)
	if err != nil {
		return nil
	}
	return m
}

// jwtRemaining is what a JWT's own exp leaves, by the clock of the server that
// sent it: ours may be hours off.
func jwtRemaining(token string, h http.Header, now time.Time) (time.Duration, bool) {
	exp, ok := jwtPayload(token)["exp"].(json.Number)
	if !ok {
		return 0, false
	}
	x, err := exp.Float64()
	if err != nil || x <= 0 || x > 1e11 {
		return 0, false
	}
	if sent, err := http.ParseTime(h.Get("Date")); err == nil {
		now = sent
	}
	d := time.Unix(int64(x), 0).Sub(now)
	return d, d > 0 && d <= maxTokenLifetime
}

// accountFrom picks the claims that tell people who is logged in. It returns
// nil when there are none.
func accountFrom(f fields, issuer string) *Account {
	a := Account{
		Issuer:  clean(firstOf(f.text("iss"), issuer), 200),
		Subject: clean(f.text("sub", "id"), 200),
		Name:    clean(f.text("name", "preferred_username", "login"), 200),
		Email:   clean(f.text("email", "upn"), 200),
	}
	if a.Subject == "" && a.Name == "" && a.Email == "" {
		return nil
	}
	return &a
}

// refreshAhead is how long after its receipt a token is renewed.
func refreshAhead(lifetime time.Duration) time.Duration {
	return schedule.Ahead(lifetime, rand.Float64())
}
