package flow

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode"
)

// One login can be good for several APIs. What a person has granted is one
// refresh token; each API gets an access token of its own, which a refresh of
// that grant brings when it asks for another audience, resource or scope.

// Want is what an access token shall be good for, where that is not what the
// session asks for itself. The zero value is the session's own token.
type Want struct {
	// Audience is the API as Auth0 calls it.
	Audience string
	// Resource is the API by RFC 8707. It takes the place of Config.Resource, as
	// an Audience does: a token for both would be one too many.
	Resource []string
	// Scope is what to ask for instead of what the login was granted, such as
	// https://vault.azure.net/.default at Microsoft Entra.
	Scope []string
}

// offlineAccess is the scope that brings a refresh token at most servers (OpenID
// Connect Core §11).
const offlineAccess = "offline_access"

// maxWant bounds a Want in bytes: it may come from a request.
const maxWant = 4096

// IsZero reports whether w is the session's own token.
func (w Want) IsZero() bool { return w.Audience == "" && len(w.Resource) == 0 && len(w.Scope) == 0 }

// String names w for people, on one line of at most 200 characters.
func (w Want) String() string {
	var parts []string
	if w.Audience != "" {
		parts = append(parts, "audience "+w.Audience)
	}
	if len(w.Resource) > 0 {
		parts = append(parts, "resource "+strings.Join(w.Resource, " "))
	}
	if len(w.Scope) > 0 {
		parts = append(parts, "scope "+strings.Join(w.Scope, " "))
	}
	return clean(strings.Join(parts, ", "), 200)
}

// Validate reports what is wrong with w, with what to write instead.
func (w Want) Validate() error {
	size := len(w.Audience)
	for _, s := range slices.Concat(w.Resource, w.Scope) {
		size += len(s)
	}
	if size > maxWant {
		return fmt.Errorf("audience, resource and scope have %d bytes: use %d at most", size, maxWant)
	}
	if strings.ContainsFunc(w.Audience, unicode.IsControl) {
		return errors.New("audience: it has control characters")
	}
	if slices.Contains(w.Scope, "") {
		return errors.New("scope: one of them is empty")
	}
	// What holds for those of the session holds here.
	return Config{Issuer: "https://as.invalid", ClientID: "x", Resource: w.Resource, Scope: w.Scope}.Validate()
}

// settled is w in the one order in which it is compared.
func (w Want) settled() Want {
	sorted := func(in []string) []string {
		if len(in) < 2 {
			return in
		}
		return slices.Compact(slices.Sorted(slices.Values(in)))
	}
	w.Resource, w.Scope = sorted(w.Resource), sorted(w.Scope)
	return w
}

// key tells two settled wants apart, whatever is in them.
func (w Want) key() string {
	b := make([]byte, 0, 128)
	add := func(s string) {
		b = strconv.AppendInt(b, int64(len(s)), 10)
		b = append(append(b, ':'), s...)
	}
	add(w.Audience)
	b = append(b, 'r')
	for _, s := range w.Resource {
		add(s)
	}
	b = append(b, 's')
	for _, s := range w.Scope {
		add(s)
	}
	return string(b)
}

// ask puts w into a refresh. granted is what the login was asked for.
func (w Want) ask(params url.Values, granted []string) {
	if w.Audience != "" {
		params.Set("audience", w.Audience)
		params.Del("resource") // the session's own would name another API
	}
	if len(w.Resource) > 0 {
		params["resource"] = w.Resource
	}
	if len(w.Scope) == 0 {
		return
	}
	scope := w.Scope
	// Microsoft Entra sends no new refresh token without it.
	if slices.Contains(granted, offlineAccess) && !slices.Contains(scope, offlineAccess) {
		scope = append(slices.Clip(scope), offlineAccess)
	}
	params.Set("scope", strings.Join(scope, " "))
}

// Source has access tokens for one API: a [Session] those for its own, a
// [Derived] those for another.
type Source interface {
	// Current is the usable token, or nil. It takes no lock and reads no clock.
	Current() *Token
	// Token and Await wait for one; see [Session.Await].
	Token(ctx context.Context) (*Token, error)
	Await(ctx context.Context, login time.Duration) (*Token, error)
	// Replace and Reject tell of a token that the API has refused.
	Replace(ctx context.Context, rejected *Token) *Token
	Reject(rejected *Token)
}

// For is where tokens for want come from: the session itself for the zero
// Want, else a [*Derived]. It starts nothing and fails for a faulty want only.
func (s *Session) For(want Want) (Source, error) {
	if want.IsZero() {
		return s, nil
	}
	want = want.settled()
	key := want.key()
	if d, ok := s.handles.Load(key); ok {
		return d.(*Derived), nil
	}
	if err := want.Validate(); err != nil {
		return nil, err
	}
	want.Resource, want.Scope = slices.Clone(want.Resource), slices.Clone(want.Scope)
	return &Derived{session: s, want: want, key: key}, nil
}

// Derived has the access tokens for one API other than the session's own. The
// first use makes one, by a refresh of the session's grant. It is kept in memory
// only, and refreshed ahead for as long as it is used; there are at most
// Config.CacheSize at once. Make it with [Session.For] and keep it: it goes on
// through logins, logouts and evictions.
type Derived struct {
	session *Session
	want    Want
	key     string
	slot    atomic.Pointer[slot] // nil: never used
}

// Session is the login that the tokens come from.
func (d *Derived) Session() *Session { return d.session }

// Current implements [Source].
func (d *Derived) Current() *Token {
	sl := d.slot.Load()
	if sl == nil {
		return nil
	}
	t := sl.view.Load().token
	if t != nil && !sl.used.Load() { // a store for each call would have all CPUs fight for the line
		sl.used.Store(true)
	}
	return t
}

// Token implements [Source].
func (d *Derived) Token(ctx context.Context) (*Token, error) {
	if t := d.Current(); t != nil && !d.session.ended() {
		return t, nil
	}
	return d.Await(ctx, 0)
}

// Await implements [Source]. Without a login it does what [Session.Await] does,
// and then waits for the exchange, at most Config.RefreshWait.
func (d *Derived) Await(ctx context.Context, login time.Duration) (*Token, error) {
	t := d.Current()
	if d.session.ended() {
		return d.session.last(t)
	}
	if t != nil {
		return t, nil
	}
	if v := d.session.view.Load(); v.token == nil && !v.grant {
		if _, err := d.session.Await(ctx, login); err != nil && !d.session.view.Load().grant {
			return nil, err
		}
	}
	return d.await(ctx, nil)
}

// Replace implements [Source]; the pause of 30 s is one for each API.
func (d *Derived) Replace(ctx context.Context, rejected *Token) *Token {
	if t := d.Current(); t != nil && !t.value.Equal(rejected.value) {
		return t
	}
	begun := false
	err := d.session.do(ctx, func() { begun = d.session.renew(d.slot.Load(), rejected) })
	if err != nil || !begun {
		return nil
	}
	t, err := d.await(ctx, rejected)
	if err != nil {
		return nil
	}
	return t
}

// Reject implements [Source].
func (d *Derived) Reject(rejected *Token) {
	select {
	case d.session.rejected <- rejection{rejected, d.slot.Load()}:
	default:
	}
}

// rejection is a token that an API has refused.
type rejection struct {
	token *Token
	slot  *slot // nil: it was the session's own
}

// asks is how often a caller has the owner see to the same token. Once does,
// unless the login changes in between.
const asks = 3

// await waits for a token other than rejected, if there is any to come.
func (d *Derived) await(ctx context.Context, rejected *Token) (*Token, error) {
	s := d.session
	limit, cancel := context.WithTimeout(ctx, s.client.Load().RefreshWait)
	defer cancel()
	for asked := 0; ; {
		v := idle
		if sl := d.slot.Load(); sl != nil {
			v = sl.view.Load()
		}
		switch {
		case v.token != nil && (rejected == nil || !v.token.value.Equal(rejected.value)):
			if t := d.Current(); t != nil {
				return t, nil
			}
			continue
		case v.held:
			return nil, s.notReadyFor(v.err)
		case !v.waiting && (rejected != nil || asked == asks):
			return nil, s.notReadyFor(nil)
		case !v.waiting:
			asked++
			var refused error
			if err := s.do(limit, func() { refused = s.ask(d) }); err != nil {
				return nil, s.gaveUp(ctx)
			}
			if refused != nil {
				return nil, refused
			}
			continue
		}
		select {
		case <-v.changed:
		case <-s.done:
			return nil, s.closed()
		case <-limit.Done():
			return nil, s.gaveUp(ctx)
		}
	}
}
