// Package tokensource hands the tokens of package flow to libraries that ask for
// a [golang.org/x/oauth2.TokenSource], as the clients of many APIs do. It is a
// package of its own so that flow itself needs nothing of that module, whose
// types are all that is used here: [flow.Session] does the rest.
package tokensource

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/oauth2"

	"github.com/deviceflow/caddy-deviceflow/flow"
)

// New returns the tokens that from has: those of a [flow.Session], or of what its
// For returns for another API. Its Token method may be called from any goroutine
// and costs no lock while there is a usable token; the session refreshes that
// ahead, for as long as its Run goes on.
//
// Without a usable token, Token starts a login if the session's policy allows it
// and waits for a person up to wait, or returns soon if that is zero. ctx ends
// the waiting for all calls, since they bring no context of their own. The error
// wraps a [*flow.NotReadyError], which knows the page and the code, the error of
// ctx, or [flow.ErrClosed] once Run has ended and its last token has lapsed.
//
// What Token returns is the caller's own. It is of type Bearer, its Expiry is
// zero if the server named none, and it holds no refresh token: nobody but the
// session may use that, since many servers end a login whose refresh token is
// used twice.
//
// Do not keep a token for longer than a call: [oauth2.Transport] and most clients
// of APIs ask for each. [oauth2.NewClient] and [oauth2.ReuseTokenSource] keep one
// until ten seconds before its end, and so miss a logout or another login.
func New(ctx context.Context, from flow.Source, wait time.Duration) oauth2.TokenSource {
	return &source{ctx: ctx, from: from, wait: wait}
}

type source struct {
	ctx  context.Context
	from flow.Source
	wait time.Duration
}

// Token implements [oauth2.TokenSource].
func (s *source) Token() (*oauth2.Token, error) {
	if err := s.ctx.Err(); err != nil {
		return nil, fmt.Errorf("token source: %w", err)
	}
	t, err := s.from.Await(s.ctx, s.wait)
	if err != nil {
		return nil, fmt.Errorf("token source: %w", err)
	}
	return &oauth2.Token{AccessToken: t.Value().Reveal(), TokenType: "Bearer", Expiry: t.Expiry()}, nil
}
