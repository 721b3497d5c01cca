package flow

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"
	"unicode"
)

// Claim is one thing that an authorization server says of an account, such as
// its "sub", "email" or "preferred_username" (OpenID Connect Core §5.1). Both are
// compared as they are, case included.
type Claim struct {
	Name  string
	Value string
}

const (
	// maxClaim bounds a claim in bytes; a longer one counts as not told.
	maxClaim = 1024
	// accountTries is how often the userinfo endpoint is asked about an account
	// that must be known, and how often a refused grant's revocation is tried.
	accountTries = 3
	accountPause = time.Second
)

func (c *Claim) validate() error {
	odd := func(r rune) bool { return unicode.IsControl(r) || r == unicode.ReplacementChar }
	if c.Name == "" || c.Value == "" || len(c.Name)+len(c.Value) > maxClaim || strings.ContainsFunc(c.Name+c.Value, odd) {
		return errors.New("account: name a claim and the value it must have, as in 'account email alice@example.com'")
	}
	return nil
}

// claims are what a server says of an account. The names are exact: who can
// choose a claim of their own, "e_mail" say, shall not pass for another.
type claims map[string]string

// claimsFrom reads the payload of an id_token or a userinfo answer.
func claimsFrom(m map[string]any) claims {
	out := make(claims)
	for name, v := range m {
		var s string
		switch v := v.(type) {
		case string:
			s = v
		case bool:
			s = fmt.Sprint(v)
		case fmt.Stringer: // a number
			s = v.String()
		}
		if s != "" && len(s) <= maxClaim {
			out[name] = s
		}
	}
	return out.settled()
}

// unverified reports whether the address is only what its owner says.
func (c claims) unverified() bool { return strings.EqualFold(c["email_verified"], "false") }

// settled leaves out an address that anybody could have claimed.
func (c claims) settled() claims {
	if c.unverified() {
		delete(c, "email")
	}
	return c
}

// kept are the claims that a record remembers: those by which people know an
// account, and the one that the configuration asks for.
func (c claims) kept(asked *Claim) claims {
	names := []string{"sub", "email", "preferred_username", "name"}
	if asked != nil {
		names = append(names, asked.Name)
	}
	out := make(claims)
	for _, n := range names {
		if v := c[n]; v != "" {
			out[n] = v
		}
	}
	return out
}

// over adds to c what another answer told of the same account and this one does not.
func (c claims) over(old claims) claims {
	if len(old) == 0 || c["sub"] != "" && old["sub"] != "" && c["sub"] != old["sub"] {
		return c
	}
	out := maps.Clone(old)
	maps.Copy(out, c)
	return out
}

// askAccount asks the userinfo endpoint about a grant that is to be used for one
// account only and does not say in its id_token whose it is. The device code is
// spent by now: a hiccup there shall not cost the login.
func (c *client) askAccount(ctx context.Context, g *grant) error {
	if c.Account == nil || g == nil || g.claims[c.Account.Name] != "" || !bearerSyntax(g.access.Reveal()) {
		return nil
	}
	for n := 1; ; n++ {
		account, told, err := c.userInfo(ctx, g.access)
		if err == nil {
			// OpenID Connect Core §5.3.2: it counts only for the same subject.
			if sub := g.claims["sub"]; sub != "" && told["sub"] != sub {
				return errors.New("the userinfo endpoint does not speak of the account of the id_token")
			}
			g.claims = g.claims.over(told).settled()
			if g.account == nil {
				g.account = account
			}
			return nil
		}
		e := asError(opUserInfo, err)
		if e.Kind != KindTemporary || n == accountTries {
			return e
		}
		if sleep(ctx, max(backoff(n, accountPause, 4*accountPause), min(e.RetryAfter, 10*time.Second))); ctx.Err() != nil {
			return e
		}
	}
}

// refusal is why the grant of a login is not to be used, nil if it may be. asked
// is what went wrong in [client.askAccount].
func (c *client) refusal(g *grant, asked error) *Error {
	if c.Account == nil || g.claims[c.Account.Name] == c.Account.Value {
		return nil
	}
	if g.claims[c.Account.Name] != "" {
		return &Error{Kind: KindDenied, Op: opPoll, Code: CodeWrongAccount, Err: errors.New(c.Account.unlike(g.claims) + ": log in with that account")}
	}
	e := &Error{Kind: KindConfiguration, Op: opPoll, Code: CodeAccountUnknown}
	only := fmt.Sprintf("only the account whose %s is %q may be connected", clean(c.Account.Name, 50), clean(c.Account.Value, 80))
	var failed *Error
	switch {
	case errors.As(asked, &failed) && failed.Kind == KindTemporary:
		e.Kind = KindDenied // another try may do
		e.Err = fmt.Errorf("%s, and whose this one is could not be asked (%w): log in once more", only, asked)
	case asked != nil:
		e.Err = fmt.Errorf("%s, and the server does not tell whose this one is (%w): ask for the scope that brings this claim, such as 'openid email'", only, asked)
	case c.Account.Name == "email" && g.claims.unverified():
		e.Kind = KindDenied
		e.Err = errors.New(only + ", and this one's address is not verified: have it verified at the login server")
	default:
		e.Err = errors.New(only + ", and neither id_token nor userinfo endpoint tells whose this one is: ask for the scope that brings this claim, such as 'openid email'")
	}
	return e
}

// unlike says how an account differs from the one that is asked for.
func (c *Claim) unlike(told claims) string {
	got := "not known"
	if v := told[c.Name]; v != "" {
		got = fmt.Sprintf("%q", clean(v, 80))
	}
	return fmt.Sprintf("its %s is %s, and only %q may be connected", clean(c.Name, 50), got, clean(c.Value, 80))
}

// refuse ends a login whose grant must not be used.
func (s *Session) refuse(g *grant, e *Error) {
	// Where it is not known whose it is, it may be the account in use, and some
	// servers would end that login as well.
	if e.Code == CodeWrongAccount || !s.rec.loggedIn() {
		s.revokeGrant(g)
	}
	s.loginFailed(e)
}

// revokeGrant has all tokens of a refused grant revoked (RFC 7009 §2.1: the
// refresh token takes the others along). Nobody waits for it.
func (s *Session) revokeGrant(g *grant) {
	token, hint := g.refresh, "refresh_token"
	if token.IsZero() {
		token, hint = g.access, "access_token"
	}
	if token.IsZero() {
		return
	}
	c := s.client.Load()
	s.job(func(ctx context.Context) func() {
		for n := 1; c.revoke(ctx, token, hint) != nil && n < accountTries && ctx.Err() == nil; n++ {
			sleep(ctx, backoff(n, accountPause, 4*accountPause))
		}
		return func() {}
	})
}

// swapped is why what a refresh brought must not be used, nil if it may be: an
// id_token that comes with it has to name the same subject as before (OpenID
// Connect Core §12.2), and the account that is asked for.
func (c *client) swapped(before claims, g *grant) *Error {
	if c.Account == nil || g == nil {
		return nil
	}
	for _, want := range []Claim{{"sub", before["sub"]}, *c.Account} {
		if got := g.claims[want.Name]; got != "" && want.Value != "" && got != want.Value {
			return &Error{
				Kind: KindReauthorize, Op: opRefresh, Code: CodeWrongAccount,
				Err: errors.New("the refresh brought a token of another account: " + want.unlike(g.claims)),
			}
		}
	}
	return nil
}

// errAccount is the ErrRecord about a login of another account.
var errAccount = fmt.Errorf("%w: it is of another account", ErrRecord)

// allows reports whether r may be used: there is no login in it, or it is that
// of the account that is asked for.
func (c *client) allows(r *record) bool {
	return c.Account == nil || !r.loggedIn() || r.claims[c.Account.Name] == c.Account.Value
}

// notAllowed is the error about a stored login of another account.
func (c *client) notAllowed(r *record) error {
	return fmt.Errorf("%w: %s: log in with that account", errAccount, c.Account.unlike(r.claims))
}

// storedAccount is the reason for a new login when the stored one is of another account.
func storedAccount(err error) *StatusError {
	return statusError(&Error{Kind: KindReauthorize, Op: "storage", Code: CodeWrongAccount, Err: err}, time.Time{})
}

// stepAccount stops using a login that a new configuration does not allow. It
// begins again with what is stored, which is put aside if it is no better: so
// that a configuration that is taken back (a reload that failed half-way) finds
// its login again.
func (s *Session) stepAccount(now time.Time) {
	if s.client.Load().allows(s.rec) {
		return
	}
	s.epoch++
	s.letGo()
	s.dropDerived()
	s.rec = &record{fingerprint: s.rec.fingerprint, pending: s.rec.pending, ended: s.rec.ended}
	s.token, s.doubted, s.unsure = nil, nil, nil
	s.refresh.reply(errOvertaken)
	s.refresh = refreshState{}
	s.release()
	s.save.dirty = false
	s.readAgain(now)
	s.stepSave(now)
	s.publish()
	s.observe(Event{Kind: EventLoggedOut})
}

// readAgain begins again with what is stored.
func (s *Session) readAgain(now time.Time) {
	s.save.unread, s.save.patience, s.save.next = true, now.Add(loadPatience), time.Time{}
}

// anotherAccount is told that the configuration may ask for another account now.
func (s *Session) anotherAccount() {
	if s.loaded && !s.rec.loggedIn() && s.login.err != nil && s.login.err.Code == CodeWrongAccount {
		s.readAgain(time.Now())
	}
}
