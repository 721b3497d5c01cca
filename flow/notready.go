package flow

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// ErrClosed is the error of a session whose Run has ended. Nothing comes of asking
// it again.
var ErrClosed = errors.New("the session is closed: keep its Run going")

// NotReadyError says that there is no usable token and why.
type NotReadyError struct {
	Status Status
	// RetryAfter is when it makes sense to ask again; at least one second.
	RetryAfter time.Duration
	// Err is [ErrClosed] when Run has ended, so that it never makes sense. Else nil.
	Err error
}

func (e *NotReadyError) Error() string {
	msg := fmt.Sprintf("session %s has no usable token (%s)", e.Status.Session, e.Status.State)
	if e.Err != nil {
		return msg + ": " + e.Err.Error()
	}
	if e.Status.Error != nil {
		msg += ": " + e.Status.Error.Description
	}
	if l := e.Status.Login; l != nil {
		msg += fmt.Sprintf(": open %s and enter the code %s", clean(l.VerificationURI, 200), clean(l.UserCode, 64))
	}
	return msg
}

// Unwrap makes it known that Run has ended.
func (e *NotReadyError) Unwrap() error { return e.Err }

// RetryAfter is when a caller without a token should try again: when the
// session does, or in a few seconds, between one second and five minutes.
func (s *Status) RetryAfter(now time.Time) time.Duration {
	d := 5 * time.Second
	if s.Error != nil && s.Error.RetryAt != nil {
		d = s.Error.RetryAt.Sub(now)
	}
	return max(time.Second, min(d+time.Second-1, 5*time.Minute)).Truncate(time.Second)
}

// notReady is the answer to a caller who has waited for the session's own token,
// unless there is one by now.
func (s *Session) notReady() (*Token, error) {
	v := s.view.Load()
	if s.ended() {
		return s.last(v.token)
	}
	if v.token != nil {
		return v.token, nil
	}
	return nil, &NotReadyError{Status: v.status, RetryAfter: v.status.RetryAfter(time.Now())}
}

// notReadyFor is the error of a caller who wants a token for another API, for
// the reason e, or because it takes too long. It shows the session as that
// caller finds it; for others the session may be all right.
func (s *Session) notReadyFor(e *StatusError) *NotReadyError {
	st := s.Status()
	st.Token = nil // it is not the one that was asked for
	if e != nil {
		st.Error = e
	}
	switch {
	case e == nil:
		if st.State.Usable() {
			st.State = StateUnavailable
		}
	case e.Action == ActionFixConfiguration:
		st.State = StateMisconfigured
	case e.Action == ActionReauthorize && st.Login != nil:
		st.State = StatePending
	case e.Action == ActionReauthorize:
		st.State = StateLoginRequired
	default:
		st.State = StateUnavailable
	}
	return &NotReadyError{Status: st, RetryAfter: st.RetryAfter(time.Now())}
}

// gaveUp is the error of a caller whose time is over, or its context.
func (s *Session) gaveUp(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.ended() {
		return s.closed()
	}
	return s.notReadyFor(nil)
}

// ended reports whether Run has.
func (s *Session) ended() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// last is the answer when Run has ended: the token t that was in use then, as long
// as it is alive, for requests that outlive their configuration. Nobody takes it
// out of use any more, so that this looks at the clocks.
func (s *Session) last(t *Token) (*Token, error) {
	now := time.Now()
	if t != nil && (t.expiry.IsZero() || now.Before(t.lapses) && now.Round(0).Before(t.expiry)) {
		return t, nil
	}
	return nil, s.closed()
}

// closed is the error about a session that has ended, for those who branch on a
// token that is missing and for those who branch on the end.
func (s *Session) closed() *NotReadyError {
	e := s.notReadyFor(nil)
	e.Err = ErrClosed
	return e
}
