package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/deviceflow/caddy-deviceflow/flow"
)

func init() {
	caddy.RegisterModule(Handler{})
}

// Handler guards the proxy, and lets a request pass only while its session has a
// usable access token. Otherwise it answers 503 and says, in the caller's own
// format, what a person has to do. A call without a token starts a login, if the
// session's policy is `on_demand`.
//
// With `authenticate` the handlers after it see a copy of the request that
// carries the token. Leave it out in front of a `reverse_proxy` with the
// `device_flow` transport, which adds the token at the last hop.
type Handler struct {
	// The session to use. Default: `default`.
	Session string `json:"session,omitempty"`

	// Declares the session here instead of in the app.
	Client *Client `json:"client,omitempty"`

	Target

	// How long to hold a request for a login before the 503. Default: 0.
	// A request always waits for a refresh that is under way, at most 5 s.
	Wait caddy.Duration `json:"wait,omitempty"`

	// Where the status page is, for the answer to name it. Default: none.
	StatusPath string `json:"status_path,omitempty"`

	// Put the token on the request that the next handlers see.
	Authenticate bool `json:"authenticate,omitempty"`

	KeyedBy

	Guard

	// A header field that callers have to send. Viewers of the status page need not.
	RequireHeader *RequiredHeader `json:"require_header,omitempty"`

	session *session
	keyed   *keyed  // nil: one session for all
	target  *target // nil: the session's own API
	forKey  string  // of the announcement to a transport
	varKey  string  // of the choice among keyed sessions
	guard   *keeper
	need    *requirement
}

// CaddyModule returns the Caddy module information.
func (Handler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.device_flow",
		New: func() caddy.Module { return new(Handler) },
	}
}

// Provision finds the session and sets the guard up.
func (h *Handler) Provision(ctx caddy.Context) error {
	if h.Wait < 0 {
		return fmt.Errorf("wait %s: use a duration of zero or more", time.Duration(h.Wait))
	}
	app, s, err := sessionOf(ctx, h.Session, h.Client)
	if err != nil {
		return err
	}
	h.session, h.forKey, h.varKey = s, targetKey(s.name), keyedVar(s.name)
	if h.keyed, err = app.keyBy(s, h.KeyedBy); err != nil {
		return err
	}
	s.plain = s.plain || h.keyed == nil
	if h.target, err = h.Target.provision(); err != nil {
		return err
	}
	s.aimed = s.aimed || h.target != nil
	if h.guard, err = h.Guard.provision(ctx, h, s.name); err != nil {
		return err
	}
	// The transport hides the token from the proxy's log, other handlers do not.
	srv, ok := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	logsCredentials := ok && srv.Logs != nil && srv.Logs.ShouldLogCredentials
	if h.Authenticate && logsCredentials {
		ctx.Logger().Warn("with log_credentials, a reverse_proxy behind device_flow writes the token into the debug log unless it has "+
			"'transport device_flow "+s.name+"': use that transport, or take log_credentials out", zap.String("session", s.name))
	}
	h.need, err = h.RequireHeader.provision()
	h.need.warn(ctx.Logger(), logsCredentials)
	return err
}

// ServeHTTP implements caddyhttp.MiddlewareHandler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	if no := h.guard.admit(r); no != nil {
		return h.guard.turnAway(w, r, no)
	}
	if isPreflight(r) {
		h.guard.answerPreflight(w, r)
		return nil
	}
	if from := h.guard.crossOrigin(r); from != "" {
		w = newHeadWriter(w, func(_ int, header http.Header) { allowFrom(header, from) }) // a proxy would add the API's own beside it
	}
	no := h.need.check(r)
	if no == nil {
		no = checkForm(r)
	}
	if no != nil {
		return h.guard.turnAway(w, r, no)
	}
	vars, _ := r.Context().Value(caddyhttp.VarsCtxKey).(map[string]any)
	if vars != nil {
		vars[verdictKey] = (*refusal)(nil)
	}
	return h.serve(w, r, next, vars)
}

// serve gives an admitted request its token.
func (h *Handler) serve(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler, vars map[string]any) error {
	s, src, token, err := h.take(r, vars)
	for range evictions {
		if err == nil || s == nil || !s.evicted() || r.Context().Err() != nil {
			break
		}
		s, src, token, err = h.take(r, vars)
	}
	if err != nil {
		if s != nil {
			err = noTurn(s, err)
		}
		if no, after := refusalOf(err); no != nil {
			return h.decline(w, r, no, after)
		}
		if s == nil {
			newTally(h.session.name).refused(err)
		} else {
			s.tally.refused(err)
		}
		return h.refuse(w, r, err)
	}
	if h.session.aimed { // else there is nothing to announce, nor to take back
		announceSource(vars, h.forKey, src)
	}
	if !h.Authenticate {
		return next.ServeHTTP(w, r) // and the transport counts
	}
	s.tally.announce(vars)
	defer func() { // even if the proxy panics, as it does when the API breaks off
		if vars == nil || s.tally.claim(vars) {
			s.tally.served.Inc()
		}
	}()
	return next.ServeHTTP(newHeadWriter(w, keepPrivate), authenticated(r, token))
}

// take finds the session of a request and waits for its token. Without a session
// it is nil, and the error says why.
func (h *Handler) take(r *http.Request, vars map[string]any) (*running, flow.Source, *flow.Token, error) {
	s, err := h.running(r, vars)
	if err != nil {
		return nil, nil, nil, err
	}
	src, no := h.target.source(s, r)
	if no != nil {
		return s, nil, nil, no
	}
	token, err := h.token(r.Context(), src)
	return s, src, token, err
}

// running is the session of this request.
func (h *Handler) running(r *http.Request, vars map[string]any) (*running, error) {
	if h.keyed != nil {
		return h.keyed.running(r, vars, false)
	}
	if len(h.session.keyed) > 0 {
		delete(vars, h.varKey) // of a handler before: this one is nearer to the API
	}
	return h.session.running(r.Context())
}

// decline answers a caller whose session cannot be told, or not be had now.
func (h *Handler) decline(w http.ResponseWriter, r *http.Request, no *refusal, after time.Duration) error {
	if after > 0 {
		setRetryAfter(w.Header(), after)
	}
	return h.guard.turnAway(w, r, no)
}

// token is an atomic load or two while there is one.
func (h *Handler) token(ctx context.Context, s flow.Source) (*flow.Token, error) {
	if t := s.Current(); t != nil {
		return t, nil
	}
	return s.Await(ctx, time.Duration(h.Wait))
}

// refuse answers a caller for whom there is no token.
func (h *Handler) refuse(w http.ResponseWriter, r *http.Request, err error) error {
	var notReady *flow.NotReadyError
	if !errors.As(err, &notReady) {
		return caddyhttp.Error(499, err) // the caller has left
	}
	page := h.statusURL(r)
	if h.keyed != nil && page != "" && notReady.Status.Session != h.session.name {
		page += sessionLink(notReady.Status.Session)
	}
	return writeNotReady(w, r, notReady, page)
}

// writeNotReady answers by itself, or leaves it to handle_errors if the site
// has such routes.
func writeNotReady(w http.ResponseWriter, r *http.Request, e *flow.NotReadyError, statusURL string) error {
	if err := caddyhttp.Error(http.StatusServiceUnavailable, e); handlesErrors(r, err) {
		setRetryAfter(w.Header(), e.RetryAfter)
		w.Header().Set("Cache-Control", "no-store")
		return err
	}
	writeUnavailable(w, r, e.Status, statusURL, e.RetryAfter)
	return nil
}

// statusURL is the status page as the caller would reach it.
func (h *Handler) statusURL(r *http.Request) string {
	if h.StatusPath == "" {
		return ""
	}
	vars, _ := r.Context().Value(caddyhttp.VarsCtxKey).(map[string]any)
	host := r.Host
	if host == "" { // HTTP/1.0
		if a, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok && a.Network() == "tcp" {
			host = a.String()
		} else {
			host = "localhost"
		}
	}
	// A prefix that handle_path has stripped is still there for the caller.
	var prefix string
	if orig, ok := r.Context().Value(caddyhttp.OriginalRequestCtxKey).(http.Request); ok {
		if p, stripped := strings.CutSuffix(orig.URL.EscapedPath(), r.URL.EscapedPath()); stripped {
			prefix = p
		}
	}
	return schemeOf(r, vars) + "://" + host + prefix + h.StatusPath
}

// authenticated is a copy of r whose only credential is the token. The caller
// must not be able to have a later proxy strip it as a hop-by-hop field.
func authenticated(r *http.Request, token *flow.Token) *http.Request {
	out := r.WithContext(r.Context())
	out.Header = make(http.Header, len(r.Header)+1)
	for name, values := range r.Header {
		if !flow.IsCredential(name) {
			out.Header[name] = values
		}
	}
	token.SetHeader(out.Header)
	if options := out.Header["Connection"]; options != nil {
		out.Header["Connection"] = withoutCredentials(options)
	}
	if r.Trailer != nil && r.Body != nil {
		out.Trailer = make(http.Header, len(r.Trailer))
		body := &trailerFilter{ReadCloser: r.Body, from: r, to: out.Trailer}
		body.copy()
		out.Body = body
	}
	return out
}

// trailerFilter passes a body on and, at its end, the trailer that came with it, but for credentials, which must not
// arrive by the back door (RFC 9110 §6.5.1).
type trailerFilter struct {
	io.ReadCloser
	from *http.Request // net/http fills its Trailer in when the body has ended
	to   http.Header
}

func (f *trailerFilter) Read(p []byte) (int, error) {
	n, err := f.ReadCloser.Read(p)
	if errors.Is(err, io.EOF) {
		f.copy()
	}
	return n, err
}

func (f *trailerFilter) copy() {
	for name, values := range f.from.Trailer {
		if !flow.IsCredential(name) {
			f.to[name] = values
		}
	}
}

// withoutCredentials removes credential fields from Connection options.
func withoutCredentials(options []string) []string {
	kept := make([]string, 0, len(options))
	for _, line := range options {
		var fields []string
		for f := range strings.SplitSeq(line, ",") {
			if !flow.IsCredential(strings.TrimSpace(f)) {
				fields = append(fields, f)
			}
		}
		kept = append(kept, strings.Join(fields, ","))
	}
	return kept
}

var (
	_ caddy.Provisioner           = (*Handler)(nil)
	_ caddyhttp.MiddlewareHandler = (*Handler)(nil)
)
