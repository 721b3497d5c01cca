package flow

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	maxBody         = 1 << 20          // after decompression
	exchangeTimeout = 30 * time.Second // one exchange, body included
	// A refresh and a poll have more time: nobody waits for them, and an answer that
	// is given up on may have been the one with the new refresh token.
	refreshTimeout = time.Minute
)

// answer is a response that has been read.
type answer struct {
	status  int
	header  http.Header
	fields  fields
	ok      bool // fields could be decoded
	at      time.Time
	secrets []Secret // to be scrubbed from texts
	body    []byte
	hint    func() string // what to try if it refuses the client; nil: nothing
}

// exchange sends req and reads the answer. It follows no redirect, since it
// would carry codes and secrets elsewhere, and reads at most maxBody. The error
// is an *Error, of KindTemporary unless it is about the configured headers.
func (c *client) exchange(req *http.Request, op string) (*answer, error) {
	timeout := exchangeTimeout
	if op == opRefresh || op == opPoll {
		timeout = refreshTimeout
	}
	ctx, cancel := context.WithTimeout(req.Context(), timeout)
	defer cancel()
	req = req.WithContext(ctx)
	req.Header.Set("Accept", "application/json")
	secrets, err := c.addHeaders(ctx, op, req.Header)
	if err != nil {
		return nil, err
	}
	if _, credential, ok := strings.Cut(req.Header.Get("Authorization"), " "); ok {
		secrets = append(secrets, NewSecret(credential)) // of the client, or the access token
	}
	if req.Header.Get("User-Agent") == "" {
		req.Header.Set("User-Agent", "caddy-deviceflow")
	}

	resp, err := c.HTTP.RoundTrip(req)
	if err != nil {
		return nil, unreachable(op, req, timeout, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	if err != nil && !complete(resp.StatusCode, body) {
		return nil, unreachable(op, req, timeout, fmt.Errorf("reading the answer: %w", err))
	}
	if len(body) > maxBody {
		return nil, &Error{
			Kind: KindTemporary, Op: op, Code: CodeInvalidResponse, Status: resp.StatusCode,
			Description: "the answer is larger than 1 MiB",
		}
	}
	a := &answer{status: resp.StatusCode, header: resp.Header, at: time.Now(), body: body, secrets: secrets}
	a.fields, a.ok = decodeFields(resp.Header.Get("Content-Type"), body)
	return a, nil
}

// complete reports whether a good answer has arrived although its connection ended
// badly afterwards: a Content-Length that is too large, no last chunk, a reset. The
// code or refresh token is used up by then, and there is no second answer. An object
// that is cut off does not decode; a form would.
func complete(status int, body []byte) bool {
	if status < 200 || status > 299 || !bytes.HasPrefix(trimText(body), []byte("{")) {
		return false
	}
	_, ok := decodeFields("", body)
	return ok
}

func unreachable(op string, req *http.Request, timeout time.Duration, err error) *Error {
	// A *url.Error would repeat the URL; name the host alone.
	if ue, ok := errors.AsType[*url.Error](err); ok {
		err = ue.Err
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("no answer within %s", timeout)
	}
	return &Error{Kind: KindTemporary, Op: op, Code: CodeUnreachable, Err: fmt.Errorf("%s: %w", req.URL.Host, err)}
}

// told is a text of the server fit to be shown: without what was sent to it in
// confidence, cleaned, at most max runes.
func (a *answer) told(s string, max int) string {
	s = scrub(s, a.secrets...)
	s = clean(s, len(s))
	// Again, for clean joins what an invisible character has parted. And it cuts last:
	// half a secret is not found.
	return clean(scrub(s, a.secrets...), max)
}

// failure is the error that an answer means.
func (a *answer) failure(op string) *Error {
	e := &Error{Op: op, Status: a.status, RetryAfter: retryAfter(a.header, a.at)}
	if a.ok {
		code, description := a.fields.errorCode(a.status)
		e.Code, e.Description = a.told(code, 64), a.told(description, 200)
		e.Interval, _ = a.fields.seconds(maxCodeLifetime, "interval")
	}
	e.Kind = a.kind(op, e.Code)
	if a.status >= 300 && a.status < 400 {
		e.Kind, e.Code, e.Description = KindConfiguration, CodeConfiguration, "the endpoint redirects, and redirects are not followed; check its URL"
	}
	if e.Code == "" {
		e.Code = codeOfStatus(a.status)
	}
	if a.hint != nil && e.Kind == KindConfiguration && refusesClient(e.Code, a.status) {
		e.Hint = a.hint()
	}
	return e
}

// codeOfStatus names an error that the server did not: the standard's names where
// the status says that it is in trouble (RFC 6749 §4.1.2.1).
func codeOfStatus(status int) string {
	switch {
	case status == http.StatusServiceUnavailable, status == http.StatusTooManyRequests:
		return "temporarily_unavailable"
	case status >= 500:
		return "server_error"
	}
	return CodeInvalidResponse
}
