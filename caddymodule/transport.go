package caddymodule

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/headers"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/deviceflow/caddy-deviceflow/flow"
)

func init() {
	caddy.RegisterModule(Transport{})
}

// Transport is the `http` transport of `reverse_proxy` with all its settings,
// and adds the session's access token to the request that leaves, after every
// other handler has had its way with it. When the API answers 401 it has the
// token refreshed and repeats the request once, if its body was at most 64 KiB.
//
// The token goes to the upstreams that the configuration names, and nowhere else:
// a request that is on its way to another host, or without TLS, is refused with
// 502. Health checks carry no token. The upstream gets its own name as Host, and
// its answer `Cache-Control: private` unless it says what shared caches may do.
type Transport struct {
	*reverseproxy.HTTPTransport

	// The session whose token is added. Default: `default`.
	Session string `json:"session,omitempty"`

	// Default: what a `device_flow` handler before the proxy asks of the session.
	Target

	// The same as in the handler before the proxy, whose choice holds where there is one.
	KeyedBy

	// The origins that may get the token, such as `https://api.example.com`.
	// Needed for upstreams that are known only at the request: those with
	// placeholders, by what these stand for, and dynamic ones, by the server name
	// of the TLS settings or by the addresses that are dialed. Default: the
	// upstreams of the proxy that have a fixed address. With this setting, only
	// what it lists.
	AllowUpstream []string `json:"allow_upstream,omitempty"`

	// Lets the token go to other hosts than this one without TLS. The session's
	// `insecure_http` does, too.
	InsecureHTTP bool `json:"insecure_http,omitempty"`

	session *session
	keyed   *keyed  // nil: one session for all, or as the handler has chosen
	varKey  string  // where it says so
	target  *target // nil: that of a handler before, or else the session's own API
	forKey  string  // of a handler's announcement
	guard   *keeper
	pins    map[destination]struct{}
	first   destination // of the pins
	tlsName string      // that every certificate is checked for; empty: the host dialed
	ownHost bool        // the upstream's own name is set here, not by RequestHeaderOps
}

// CaddyModule returns the Caddy module information.
func (Transport) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID: "http.reverse_proxy.transport.device_flow",
		New: func() caddy.Module {
			return &Transport{HTTPTransport: new(reverseproxy.HTTPTransport)}
		},
	}
}

const idleConnections = 256

// Provision sets up the HTTP transport and finds the session.
func (t *Transport) Provision(ctx caddy.Context) error {
	t.keepMore()
	if err := t.HTTPTransport.Provision(ctx); err != nil {
		return err
	}
	app, s, err := sessionOf(ctx, t.Session, nil)
	if err != nil {
		return err
	}
	t.session, t.forKey, t.varKey = s, targetKey(s.name), keyedVar(s.name)
	if t.keyed, err = app.keyBy(s, t.KeyedBy); err != nil {
		return err
	}
	if t.target, err = t.Target.provision(); err != nil {
		return err
	}
	if t.guard, err = (Guard{}).provision(ctx, t, s.name); err != nil {
		return err
	}
	if proxy := proxyAround(ctx); proxy != nil {
		lazyLog(proxy)
		t.ownHost = proxy.Headers == nil || proxy.Headers.Request == nil
	}
	return t.pin(ctx)
}

// RequestHeaderOps gives the upstream its own name as Host, whatever the caller
// has called the proxy. The operator's `header_up` comes later. Without one, direct
// does it: for any operation, the proxy copies the header of each request once more.
func (t *Transport) RequestHeaderOps() *headers.HeaderOps {
	if t.ownHost {
		return nil
	}
	return &headers.HeaderOps{Set: http.Header{"Host": {"{http.reverse_proxy.upstream.hostport}"}}}
}

// keepMore raises Caddy's own limit of 32 idle connections to an upstream, unless
// the operator has set one: beyond it each call dials anew, and one site here has
// one API.
func (t *Transport) keepMore() {
	if t.KeepAlive == nil {
		t.KeepAlive = new(reverseproxy.KeepAlive)
	}
	if t.KeepAlive.MaxIdleConnsPerHost == 0 {
		t.KeepAlive.MaxIdleConnsPerHost = idleConnections
	}
}

// Cleanup closes idle connections. Caddy calls it on half-built values, too.
func (t *Transport) Cleanup() error {
	if t.HTTPTransport == nil {
		return nil
	}
	return t.HTTPTransport.Cleanup()
}

// RoundTrip implements http.RoundTripper. Without a token it answers 503 itself:
// an error would count against the health of the upstream. An upstream that may
// not have the token is one.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	// Only a request that has come through a server has these; a health check has none,
	// and follows redirects.
	vars, ok := req.Context().Value(caddyhttp.VarsCtxKey).(map[string]any)
	if !ok {
		return t.HTTPTransport.RoundTrip(req)
	}
	if no := t.guard.admitHop(req, vars); no != nil {
		return t.turnAway(req, no, 0)
	}
	// A handler before the proxy may have put the token here, too, and the proxy logs
	// what it finds here afterwards. The map is the proxy's own copy.
	delete(req.Header, "Authorization")
	s, err := t.running(req, vars)
	if err != nil {
		if no, after := refusalOf(err); no != nil {
			return t.turnAway(req, no, after)
		}
		newTally(t.session.name).refused(err)
		return noAnswer(req, err)
	}
	s.tally.claim(vars)
	src, no := t.target.source(s, req)
	if announced, ok := vars[t.forKey].(flow.Source); ok && t.target == nil && isOf(announced, s.Session) {
		src = announced
	}
	if no != nil {
		return t.turnAway(req, no, 0)
	}
	if err := t.direct(req); err != nil {
		if req.Body != nil {
			_ = req.Body.Close() // as every RoundTripper must
		}
		s.tally.failed.Inc()
		return nil, err
	}
	ft := flow.Transport{Session: src, Base: t.HTTPTransport, Replayed: s.tally.replayed}
	resp, err := ft.RoundTrip(req)
	if err != nil {
		if no, after := refusalOf(noTurn(s, err)); no != nil {
			return t.turnAway(req, no, after)
		}
		s.tally.unanswered(req.Context(), err)
		return noAnswer(req, err)
	}
	s.tally.answered(resp.StatusCode)
	keepPrivate(resp.StatusCode, resp.Header)
	return resp, nil
}

// running is the session of this request: the one that the handler before has
// chosen, for what the key is made of may have changed on the way.
func (t *Transport) running(req *http.Request, vars map[string]any) (*running, error) {
	if len(t.session.keyed) > 0 {
		m, chosen := vars[t.varKey].(*member)
		if chosen && (t.keyed == nil || m.group == t.keyed.live.Load()) {
			return m.running, nil
		}
	}
	if t.keyed != nil {
		return t.keyed.running(req, nil, true) // the variables are only read now, see tally.claim
	}
	return t.session.running(req.Context())
}

// turnAway is the answer to a request that goes no further. after is when it makes
// sense to try again, if ever.
func (t *Transport) turnAway(req *http.Request, no *refusal, after time.Duration) (*http.Response, error) {
	if req.Body != nil {
		_ = req.Body.Close() // as every RoundTripper must
	}
	t.guard.note(req, no)
	w := &bufferedResponse{header: make(http.Header)}
	if after > 0 {
		setRetryAfter(w.header, after)
	}
	no.write(w, req)
	return w.response(req), nil
}

// noAnswer is an error, or the 503 in its place if it is for want of a token.
func noAnswer(req *http.Request, err error) (*http.Response, error) {
	if notReady, ok := errors.AsType[*flow.NotReadyError](err); ok {
		return unavailableResponse(req, notReady), nil
	}
	return nil, err
}

// unavailableResponse is the 503 as an upstream would send it.
func unavailableResponse(req *http.Request, e *flow.NotReadyError) *http.Response {
	w := &bufferedResponse{header: make(http.Header), status: http.StatusOK}
	writeUnavailable(w, req, e.Status, "", e.RetryAfter)
	return w.response(req)
}

// response is what was written, as an upstream would send it.
func (w *bufferedResponse) response(req *http.Request) *http.Response {
	return &http.Response{
		Status: fmt.Sprintf("%d %s", w.status, http.StatusText(w.status)), StatusCode: w.status,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: w.header, Body: io.NopCloser(&w.body), ContentLength: int64(w.body.Len()), Request: req,
	}
}

// bufferedResponse is an http.ResponseWriter in memory.
type bufferedResponse struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (w *bufferedResponse) Header() http.Header         { return w.header }
func (w *bufferedResponse) WriteHeader(status int)      { w.status = status }
func (w *bufferedResponse) Write(b []byte) (int, error) { return w.body.Write(b) }

// UnmarshalCaddyfile sets up the transport from Caddyfile tokens. Syntax:
//
//	transport device_flow [<session>] {
//	    audience <value>
//	    resource <uri...>
//	    scope    <scope...>
//	    allow_upstream <origins...>
//	    insecure_http
//	    session_key  <placeholder>
//	    max_sessions <n>
//	    <settings of the http transport>
//	}
func (t *Transport) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the module's name
	tokens := d.NextSegment()
	in := caddyfile.NewDispenser(tokens)
	in.Next()
	names := in.RemainingArgs()
	if len(names) > 1 {
		return in.Errf("unexpected argument %q: write 'transport device_flow [<session>]'", in.Val())
	}
	if len(names) == 1 {
		t.Session = names[0]
	}
	theirs := caddyfile.Segment{tokens[0]} // the http transport takes no argument
	if len(tokens) > 1+len(names) {
		theirs = append(theirs, tokens[1+len(names)])
		for in.NextBlock(0) {
			seg := in.NextSegment()
			own, err := t.unmarshalOption(caddyfile.NewDispenser(seg))
			if err != nil {
				return err
			}
			if !own {
				theirs = append(theirs, seg...)
			}
		}
		theirs = append(theirs, tokens[len(tokens)-1])
	}
	return t.HTTPTransport.UnmarshalCaddyfile(caddyfile.NewDispenser(theirs))
}

// unmarshalOption parses one setting. known is false for one of the http transport.
func (t *Transport) unmarshalOption(d *caddyfile.Dispenser) (known bool, err error) {
	d.Next()
	switch d.Val() {
	case "allow_upstream":
		return true, moreArgs(d, &t.AllowUpstream)
	case "insecure_http":
		if d.NextArg() {
			return true, d.Errf("insecure_http takes no argument")
		}
		t.InsecureHTTP = true
		return true, noBlock(d)
	case "session_key", "max_sessions":
		return true, t.KeyedBy.unmarshalOption(d)
	}
	return t.Target.unmarshalOption(d)
}

var (
	_ caddy.Provisioner                                = (*Transport)(nil)
	_ caddy.CleanerUpper                               = (*Transport)(nil)
	_ caddyfile.Unmarshaler                            = (*Transport)(nil)
	_ http.RoundTripper                                = (*Transport)(nil)
	_ reverseproxy.TLSTransport                        = (*Transport)(nil)
	_ reverseproxy.H2CTransport                        = (*Transport)(nil)
	_ reverseproxy.RequestHeaderOpsTransport           = (*Transport)(nil)
	_ reverseproxy.ProxyProtocolTransport              = (*Transport)(nil)
	_ reverseproxy.HealthCheckSchemeOverriderTransport = (*Transport)(nil)
)
