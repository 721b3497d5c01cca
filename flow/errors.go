package flow

import (
	"errors"
	"fmt"
	"html"
	"math/rand/v2"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/deviceflow/caddy-deviceflow/flow/schedule"
)

// Kind sorts errors by what a session does about them.
type Kind int

// The kinds of [Error].
const (
	// KindTemporary: try again later; nothing is given up. Network and TLS
	// errors, 5xx, 429, HTML pages, empty bodies.
	KindTemporary Kind = iota
	// KindDoubtful: a refusal that is not clearly final. Some servers say
	// invalid_request for a dead refresh token, others while they restart.
	KindDoubtful
	// KindPending: the operator has not decided yet (RFC 8628 §3.5).
	KindPending
	// KindSlowDown: as pending, and poll more slowly from now on.
	KindSlowDown
	// KindDenied: the request was refused, by a person or by a policy.
	KindDenied
	// KindExpired: the device code is dead.
	KindExpired
	// KindReauthorize: the refresh token is dead, a person has to log in.
	KindReauthorize
	// KindConfiguration: the server refuses the client, the scope or the
	// grant type; a person has to fix the configuration.
	KindConfiguration
)

// Codes of our own, where the server gave none.
const (
	CodeUnreachable     = "unreachable"
	CodeInvalidResponse = "invalid_response"
	CodeStorageFailed   = "storage_failed"
	CodeStorageSealed   = "storage_sealed" // with a key that Config.Keys does not have
	CodeConfiguration   = "configuration"
	CodeWrongAccount    = "wrong_account"   // it is not the one of Config.Account
	CodeAccountUnknown  = "account_unknown" // nobody tells whether it is
	CodeWrongAudience   = "wrong_audience"  // the token is not for the API that it was asked for
)

// Error is a failed exchange with the authorization server.
type Error struct {
	Kind Kind
	// Op is what was tried: "discovery", "device authorization", "poll", "refresh", …
	Op string
	// Code is the server's error code, or one of ours.
	Code string
	// Description is the server's own, cleaned and bounded, without secrets.
	Description string
	// Hint is ours: what to write instead in the configuration, where that is likely
	// to help. Often empty.
	Hint string
	// Status is the HTTP status, 0 when there was no answer.
	Status int
	// RetryAfter is the server's wish (RFC 9110 §10.2.3), clamped; 0 when there was none.
	RetryAfter time.Duration
	// Interval is the polling interval that came with a slow_down, 0 for none.
	Interval time.Duration
	// Err is the cause, where there was one.
	Err error
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	b.WriteString(": ")
	b.WriteString(e.reason())
	return b.String()
}

// reason is the error without the operation, for people.
func (e *Error) reason() string {
	s := e.Code
	switch {
	case e.Err != nil:
		s = e.Err.Error()
	case e.Status != 0:
		s = fmt.Sprintf("%s (HTTP %d)", e.Code, e.Status)
	}
	switch {
	case e.Hint != "" && e.Description != "": // ours first: what is too long is cut at its end
		s += ": " + e.Hint + ". The server says: " + e.Description
	case e.Hint+e.Description != "":
		s += ": " + e.Hint + e.Description
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// asError makes an *Error of any error; a foreign one is temporary.
func asError(op string, err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	return &Error{Kind: KindTemporary, Op: op, Code: CodeUnreachable, Err: err}
}

// describe says in plain words what an error means for the operator.
func describe(e *Error) string {
	var s string
	if e.Code == CodeWrongAccount || e.Code == CodeAccountUnknown {
		return clean("the login is not used: "+e.reason(), 400)
	}
	switch e.Kind {
	case KindTemporary:
		switch {
		case e.Status == 429:
			s = "the authorization server asks us to slow down"
		case e.Code == CodeStorageFailed:
			s = "the storage of the login fails"
		case e.Status >= 500:
			s = "the authorization server has a problem of its own"
		case e.Status != 0:
			s = "the authorization server sent an answer that cannot be used"
		default:
			s = "the authorization server cannot be reached"
		}
	case KindDenied:
		// Not "you refused": servers say access_denied for policies as well.
		s = "the login was not approved"
	case KindExpired:
		s = "the code ran out before the login was approved"
	case KindReauthorize:
		s = "the authorization server has ended this login"
	case KindDoubtful:
		s = "the authorization server did not accept the refresh"
	case KindConfiguration:
		s = "the authorization server refuses this client or what it asks for"
		if e.Code == CodeStorageSealed {
			s = "the stored login is left as it is"
		}
	default:
		s = "waiting for the operator"
	}
	if d := e.reason(); d != "" {
		s += ": " + d
	}
	return clean(s, 400)
}

// clean makes text from a server fit to be shown: one line, no control,
// bidirectional or invisible characters, at most max runes.
func clean(s string, max int) string {
	var b strings.Builder
	n := 0
	space := false
	for _, r := range s {
		if unicode.IsSpace(r) {
			space = n > 0
			continue
		}
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			continue
		}
		if space {
			b.WriteByte(' ')
			n++
			space = false
		}
		if n >= max {
			b.WriteString("…")
			break
		}
		b.WriteRune(r)
		n++
	}
	return b.String()
}

// scrub removes secrets that a server has put back into its error text, in the forms
// in which they were sent or which a page or a log gives them.
func scrub(s string, secrets ...Secret) string {
	var forms []string
	for _, x := range secrets {
		v := x.Reveal()
		if len(v) < 4 {
			continue
		}
		quoted := strconv.Quote(v)
		query, path := url.QueryEscape(v), url.PathEscape(v)
		forms = append(forms, v, clean(v, len(v)), query, path, lowerHex(query), lowerHex(path),
			html.EscapeString(v), quoted[1:len(quoted)-1])
	}
	// A secret can be a part of another.
	slices.SortFunc(forms, func(a, b string) int { return len(b) - len(a) })
	for _, v := range slices.Compact(forms) {
		if len(v) >= 4 {
			s = strings.ReplaceAll(s, v, redacted)
		}
	}
	return s
}

// lowerHex is percent-encoded text with %2f in place of %2F.
func lowerHex(s string) string {
	b := []byte(s)
	for i := range b {
		if i >= 1 && b[i-1] == '%' || i >= 2 && b[i-2] == '%' {
			b[i] |= 0x20 // a digit has that bit already
		}
	}
	return string(b)
}

// backoff is the pause after the n-th failure in a row, n ≥ 1.
func backoff(n int, first, most time.Duration) time.Duration {
	return schedule.Backoff(n, first, most, rand.Float64())
}
