package flowtest

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"
)

// APIRequest is one request as the API received it.
type APIRequest struct {
	Time    time.Time
	Method  string
	URL     string // path and query, as sent
	Host    string
	Proto   string
	Header  http.Header // every value, as sent
	Trailer http.Header
	Body    []byte // at most its first 64 KiB
	BodyLen int64  // of the whole
	Status  int    // as answered; 0 while, or if, there was no answer

	path string // without the query, which can hold anything: for the log
}

const keptBody = 64 << 10

// API is the resource server: it greets who brings a good token. A token is good if it is alive, and if APIAudience
// and APIScope, where configured, are among its own. The answers follow RFC 6750 section 3. Script and ScriptAlways
// work with the step API; there a scripted function reads the body itself.
func (s *Server) API() http.Handler { return http.HandlerFunc(s.serveAPI) }

// APIRequests returns what the API received so far, oldest first (at most the last 10,000). Count(API) is exact.
func (s *Server) APIRequests() []APIRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]APIRequest, len(s.apiRequests))
	for i, r := range s.apiRequests {
		out[i] = *r
		out[i].Header = r.Header.Clone()
		out[i].Trailer = r.Trailer.Clone()
		out[i].Body = slices.Clone(r.Body)
	}
	return out
}

func (s *Server) serveAPI(w http.ResponseWriter, r *http.Request) {
	if !s.enter() {
		panic(http.ErrAbortHandler)
	}
	defer s.work.Done()

	rec := &APIRequest{
		Time: time.Now(), Method: r.Method, URL: r.RequestURI, Host: r.Host, Proto: r.Proto, Header: r.Header.Clone(),
		path: r.URL.Path,
	}
	s.mu.Lock()
	s.counts[API]++
	s.apiRequests = appendBounded(s.apiRequests, rec)
	res, scripted := s.nextLocked(API)
	s.mu.Unlock()

	body := &keptReader{ReadCloser: r.Body}
	r.Body = body
	var bodyErr error
	if res.Func == nil { // a function reads the body as it likes, even while it answers
		_, bodyErr = io.Copy(io.Discard, body)
		s.noteBody(rec, body, r.Trailer)
	} else {
		defer func() { s.noteBody(rec, body, r.Trailer) }()
	}
	serve := func() reply {
		if bodyErr != nil {
			return errorReply(http.StatusBadRequest, "invalid_request", "the body ended early")
		}
		return s.greet(r)
	}
	var out reply
	if scripted {
		out = s.play(r, res, serve)
	} else {
		out = serve()
	}
	sw := &statusWriter{ResponseWriter: w}
	if out.custom == nil {
		s.noteAPI(rec, out.status) // before it is written: the client may look at once
	} else {
		defer func() { s.noteAPI(rec, sw.status) }()
	}
	out.write(sw, r)
}

// keptReader keeps the beginning of a body and counts the whole.
type keptReader struct {
	io.ReadCloser
	kept []byte
	n    int64
}

// Read implements io.Reader.
func (k *keptReader) Read(p []byte) (int, error) {
	n, err := k.ReadCloser.Read(p)
	k.kept = append(k.kept, p[:min(n, keptBody-len(k.kept))]...)
	k.n += int64(n)
	return n, err
}

func (s *Server) noteBody(rec *APIRequest, body *keptReader, trailer http.Header) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rec.Body, rec.BodyLen = body.kept, body.n
	rec.Trailer = trailer.Clone() // complete only when the body has been read
}

func (s *Server) noteAPI(rec *APIRequest, status int) {
	s.mu.Lock()
	rec.Status = status
	logf := s.cfg.Logf
	s.mu.Unlock()
	if logf != nil {
		logf("API %s %s: %d", rec.Method, rec.path, status)
	}
}

func (s *Server) greet(r *http.Request) reply {
	s.mu.Lock()
	defer s.mu.Unlock()
	cfg := s.configLocked()
	t, bad := s.bearerLocked(r.Header)
	if bad != nil {
		return *bad
	}
	if cfg.APIAudience != "" && !slices.Contains(t.audience, cfg.APIAudience) {
		return bearerError(http.StatusUnauthorized, "invalid_token", "the token is for another audience")
	}
	if cfg.APIScope != "" && !slices.Contains(t.scope, cfg.APIScope) {
		return bearerError(http.StatusForbidden, "insufficient_scope", "the token lacks a scope")
	}
	user := t.grant.user
	return jsonReply(http.StatusOK, map[string]any{
		"message":          "Hello, " + user.Name + ". Your call carried a valid token.",
		"account":          claims(user),
		"scope":            append([]string{}, t.scope...),
		"audience":         append([]string{}, t.audience...),
		"method":           r.Method,
		"path":             r.URL.Path,
		"token_expires_in": int64(time.Until(t.expires) / time.Second),
	})
}

// serveUserInfo is OpenID Connect Core section 5.3.
func (s *Server) serveUserInfo(x *exchange) reply {
	s.mu.Lock()
	defer s.mu.Unlock()
	if x.r.Method != http.MethodGet && x.r.Method != http.MethodPost {
		out := errorReply(http.StatusMethodNotAllowed, "invalid_request", "the method must be GET or POST")
		out.header.Set("Allow", "GET, POST")
		return out
	}
	if x.r.URL.RawQuery != "" {
		s.violateLocked("userinfo: parameters in the URL")
	}
	t, bad := s.bearerLocked(x.r.Header)
	if bad != nil {
		return *bad
	}
	if !slices.Contains(t.scope, "openid") {
		return bearerError(http.StatusForbidden, "insufficient_scope", "the token lacks the openid scope")
	}
	return jsonReply(http.StatusOK, claims(t.grant.user))
}

func claims(u User) map[string]string {
	return map[string]string{"sub": u.Subject, "name": u.Name, "email": u.Email}
}

// bearerLocked finds the token of a request, which must be in exactly one Authorization header (RFC 6750 section 2.1).
func (s *Server) bearerLocked(header http.Header) (*accessToken, *reply) {
	values := header["Authorization"]
	if len(values) == 0 {
		bad := bearerError(http.StatusUnauthorized, "", "no token")
		return nil, &bad
	}
	if len(values) > 1 {
		bad := bearerError(http.StatusBadRequest, "invalid_request", "more than one Authorization header")
		return nil, &bad
	}
	scheme, token, _ := strings.Cut(values[0], " ")
	t := s.access[token]
	if !strings.EqualFold(scheme, "Bearer") || !t.alive() {
		bad := bearerError(http.StatusUnauthorized, "invalid_token", "the token is unknown, expired or revoked")
		return nil, &bad
	}
	return t, nil
}

// bearerError is RFC 6750 section 3.1: a request without any authentication is told no error code.
func bearerError(status int, code, description string) reply {
	challenge := `Bearer realm="flowtest"`
	if code != "" {
		challenge += fmt.Sprintf(`, error=%q, error_description=%q`, code, description)
	} else {
		code = "unauthorized"
	}
	out := errorReply(status, code, description)
	out.header.Set("WWW-Authenticate", challenge)
	return out
}
