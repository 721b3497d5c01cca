package flow

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// maxReplay is how much of a request body is kept for a second attempt.
const maxReplay = 64 << 10

// maxDiscard is how much of a 401's body is read so that its connection can be
// used again, and discardTime how long that may take: an API can keep one open.
const (
	maxDiscard  = 64 << 10
	discardTime = 100 * time.Millisecond
)

// Transport is an http.RoundTripper that adds the access token of a session at the
// last moment, to a clone, so that nothing before it can see or strip the token.
// When the API refuses the token (401), it has it replaced once and repeats the
// request if its body is still at hand. An http.Client that is redirected to another
// origin goes there without a token.
type Transport struct {
	// Session provides the token: a [*Session], or what its For has for another API.
	Session Source
	// Base does the exchange. Default: http.DefaultTransport.
	Base http.RoundTripper
	// Replayed hears about each repeated request, with the status of the second
	// answer, 0 for none. Nil: nobody.
	Replayed func(status int)
}

// RoundTrip implements http.RoundTripper. Without a usable token it fails with
// a [*NotReadyError] and does not contact the API.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Response != nil && strayed(req) {
		resp, err := t.base().RoundTrip(bare(req))
		if err == nil {
			resp.Request = req
		}
		return resp, err
	}
	token := t.Session.Current()
	if token == nil {
		var err error
		if token, err = t.Session.Token(req.Context()); err != nil {
			closeBody(req)
			return nil, err
		}
	}
	base := t.base()
	out, kept := authorized(req, token)
	resp, err := base.RoundTrip(out)
	if err != nil {
		return nil, err
	}
	resp.Request = req // whoever reads it there finds no token
	if resp.StatusCode != http.StatusUnauthorized {
		return resp, nil
	}
	body, ok := kept.replay()
	if !ok {
		// The next request can do better all the same.
		t.Session.Reject(token)
		return resp, nil
	}
	better := t.Session.Replace(req.Context(), token)
	if better == nil {
		return resp, nil // the API's own 401, untouched
	}
	discard(resp)
	again, _ := authorized(req, better)
	again.Body, again.Trailer = body, out.Trailer // both are read by now
	resp, err = base.RoundTrip(again)
	status := 0
	if err == nil {
		resp.Request = req
		status = resp.StatusCode
	}
	if t.Replayed != nil {
		t.Replayed(status)
	}
	return resp, err
}

func (t *Transport) base() http.RoundTripper {
	if t.Base == nil {
		return http.DefaultTransport
	}
	return t.Base
}

// discard gives a connection back without its answer, or closes it where that
// would take long.
func discard(resp *http.Response) {
	if resp.ContentLength <= maxDiscard {
		timer := time.AfterFunc(discardTime, func() { _ = resp.Body.Close() }) // which ends the reading, too
		defer timer.Stop()
		_, _ = io.CopyN(io.Discard, resp.Body, maxDiscard)
	}
	_ = resp.Body.Close()
}

// strayed reports whether an http.Client has been led to another origin than the one
// that its first request was for. It follows redirects by itself and has its transport
// do the rest, so that whoever could make the API redirect would be sent the token.
// One that was led back does not get it either, as with net/http's own handling of
// credentials: the way there was not of the caller's choosing.
func strayed(req *http.Request) bool {
	at := origin(req.URL)
	for r := req.Response; r != nil && r.Request != nil; r = r.Request.Response {
		if origin(r.Request.URL) != at {
			return true
		}
	}
	return false
}

// origin is scheme, host and port, in one spelling.
func origin(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return u.Scheme + "://" + net.JoinHostPort(strings.ToLower(u.Hostname()), port)
}

// bare is req without any credential.
func bare(req *http.Request) *http.Request {
	out := req.WithContext(req.Context())
	out.Header = make(http.Header, len(req.Header))
	copyWithoutCredentials(out.Header, req.Header)
	return out
}

// authorized is a shallow copy of req with the token as its only credential. It
// has a header map of its own, since net/http may read the old one for longer
// than RoundTrip runs.
func authorized(req *http.Request, token *Token) (*http.Request, *keptBody) {
	made := new(struct { // at once, as none of it outlives the other
		http.Request
		value [1]string
	})
	out := &made.Request
	*out = *req //nolint:govet // all of it is read, by the transport below
	out.Header = make(http.Header, len(req.Header)+1)
	copyWithoutCredentials(out.Header, req.Header)
	token.setHeader(out.Header, &made.value)

	if req.Trailer != nil {
		out.Trailer = nil
		if len(req.Trailer) > 0 || req.Body != nil { // Caddy makes one for each request
			out.Trailer = make(http.Header, len(req.Trailer))
			copyWithoutCredentials(out.Trailer, req.Trailer)
		}
	}
	if req.Body == nil || req.Body == http.NoBody {
		return out, nil
	}
	kept := &keptBody{inner: req.Body, length: req.ContentLength, whole: true}
	if kept.length == 0 {
		kept.length = -1 // of a request with a body, this means unknown
	}
	if req.Trailer != nil {
		kept.source, kept.trailer = req, out.Trailer
	}
	out.Body, out.GetBody = kept, nil
	return out, kept
}

// IsCredential reports whether a header field is one of the caller's credentials, in
// the spellings that a server behind CGI takes for Authorization, too.
func IsCredential(name string) bool {
	if len(name) < len("Authorization") {
		return false
	}
	switch name[0] | 0x20 { // in lower case: most fields begin with another letter
	case 'a', 'p', '-', '_' | 0x20:
	default:
		return false
	}
	name = strings.Trim(strings.ReplaceAll(name, "_", "-"), "-")
	return strings.EqualFold(name, "Authorization") || strings.EqualFold(name, "Proxy-Authorization")
}

// copyWithoutCredentials leaves out credentials. In a trailer, they must not arrive by the
// back door (RFC 9110 §6.5.1).
func copyWithoutCredentials(dst, src http.Header) {
	for k, v := range src {
		if !IsCredential(k) {
			dst[k] = v
		}
	}
}

// keptBody passes a body on and keeps its beginning. It never holds anything
// up: when the body outgrows maxReplay, it merely forgets.
type keptBody struct {
	inner  io.ReadCloser
	length int64 // -1: unknown

	mu      sync.Mutex
	kept    []byte
	whole   bool // kept is all that has been read
	ended   bool
	source  *http.Request // its Trailer is complete when its body has ended
	trailer http.Header
}

func (b *keptBody) Read(p []byte) (int, error) {
	n, err := b.inner.Read(p)
	// An API that answers early has its 401 looked at while the body still goes out.
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.whole && n > 0 {
		if len(b.kept)+n <= maxReplay {
			b.kept = append(b.kept, p[:n]...)
		} else {
			b.kept, b.whole = nil, false
		}
	}
	if errors.Is(err, io.EOF) {
		b.ended = true
		if b.source != nil {
			clear(b.trailer)
			copyWithoutCredentials(b.trailer, b.source.Trailer)
		}
	}
	return n, err
}

func (b *keptBody) Close() error { return b.inner.Close() }

// replay is a second copy of the body, if the whole of it has been read and
// kept; nil stands for a request without one.
func (b *keptBody) replay() (io.ReadCloser, bool) {
	if b == nil {
		return http.NoBody, true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.whole || !b.ended && int64(len(b.kept)) != b.length {
		return nil, false
	}
	return io.NopCloser(strings.NewReader(string(b.kept))), true
}

func closeBody(req *http.Request) {
	if req.Body != nil {
		_ = req.Body.Close() // as every RoundTripper must
	}
}
