package flow

import (
	"context"
	"errors"
	"time"
)

// Login asks for a new code whatever went before, and returns when it is out.
// A code that is out already is kept. While a token is usable it stays so until
// the new login has been approved.
func (s *Session) Login(ctx context.Context) (Status, error) {
	reply := make(chan error, 1)
	err := s.command(ctx, reply, func() {
		s.login.unused = 0 // somebody is there
		if s.rec.pending != nil {
			reply <- nil
			return
		}
		s.login.replies = append(s.login.replies, reply)
		s.startLogin()
	})
	return s.Status(), err
}

// Refresh trades the refresh token now and returns when that is done.
func (s *Session) Refresh(ctx context.Context) (Status, error) {
	reply := make(chan error, 1)
	err := s.command(ctx, reply, func() {
		if s.rec.refresh.IsZero() {
			reply <- errors.New("there is no refresh token; log in first, with the scope that grants one (offline_access at many servers)")
			return
		}
		s.refresh.replies = append(s.refresh.replies, reply)
		s.startRefresh()
	})
	return s.Status(), err
}

// Replace is for a caller whose token the API has refused (401). It returns
// another token if there is one by now, or after one refresh; nil if there is
// none to be had. A session refreshes for this reason at most once in 30 s.
func (s *Session) Replace(ctx context.Context, rejected *Token) *Token {
	if t := s.Current(); t != nil && !t.value.Equal(rejected.value) {
		return t
	}
	reply := make(chan error, 1)
	err := s.do(ctx, func() {
		if !s.refreshForced(rejected) {
			reply <- nil
			return
		}
		s.refresh.replies = append(s.refresh.replies, reply)
	})
	if err != nil {
		return nil
	}
	timer := time.NewTimer(s.client.Load().RefreshWait)
	defer timer.Stop()
	select {
	case <-reply: //nolint:errcheck // the token in use tells
	case <-timer.C:
	case <-ctx.Done():
	case <-s.done:
	}
	if t := s.Current(); t != nil && !t.value.Equal(rejected.value) {
		return t
	}
	return nil
}

// Logout forgets the login and asks the server to revoke it (RFC 7009). The
// login is forgotten even if revocation fails; the error is then about that.
func (s *Session) Logout(ctx context.Context) error {
	reply := make(chan error, 1)
	return s.command(ctx, reply, func() { s.forget(reply) })
}

// command runs f on the owner's goroutine, once the stored login is there for it
// to act on, and returns what f, or what f has begun, replies.
func (s *Session) command(ctx context.Context, reply <-chan error, f func()) error {
	err := s.do(ctx, func() {
		if s.loaded {
			f()
		} else {
			s.early = append(s.early, f)
		}
	})
	if err != nil {
		return err
	}
	select {
	case err = <-reply:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-s.done:
		return ErrClosed
	}
}

// do runs f on the owner's goroutine and waits until it has run.
func (s *Session) do(ctx context.Context, f func()) error {
	ran := make(chan struct{})
	select {
	case s.inbox <- func() { defer close(ran); f() }:
		<-ran
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-s.done:
		return ErrClosed
	}
}

// Reject tells the session that the API refused a token, for a caller that
// cannot wait for a better one. See [Session.Replace].
func (s *Session) Reject(rejected *Token) {
	select {
	case s.rejected <- rejection{token: rejected}:
	default:
	}
}
