package caddymodule

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
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
type Transport struct {
	*reverseproxy.HTTPTransport

	// The session whose token is added. Default: `default`.
	Session string `json:"session,omitempty"`

	session *session
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
	_, s, err := sessionOf(ctx, t.Session, nil)
	t.session = s
	return err
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
// an error would count against the health of the upstream.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	// Only a request that has come through a server has these; a health check has none,
	// and follows redirects.
	vars, ok := req.Context().Value(caddyhttp.VarsCtxKey).(map[string]any)
	if !ok {
		return t.HTTPTransport.RoundTrip(req)
	}
	s, err := t.session.running(req.Context())
	if err != nil {
		newTally(t.session.name).refused(err)
		return noAnswer(req, err)
	}
	s.tally.claim(vars)
	ft := flow.Transport{Session: s.Session, Base: t.HTTPTransport, Replayed: s.tally.replayed}
	resp, err := ft.RoundTrip(req)
	if err != nil {
		s.tally.unanswered(req.Context(), err)
		return noAnswer(req, err)
	}
	s.tally.answered(resp.StatusCode)
	return resp, nil
}

// noAnswer is an error, or the 503 in its place if it is for want of a token.
func noAnswer(req *http.Request, err error) (*http.Response, error) {
	var notReady *flow.NotReadyError
	if errors.As(err, &notReady) {
		return unavailableResponse(req, notReady), nil
	}
	return nil, err
}

// unavailableResponse is the 503 as an upstream would send it.
func unavailableResponse(req *http.Request, e *flow.NotReadyError) *http.Response {
	w := &bufferedResponse{header: make(http.Header), status: http.StatusOK}
	writeUnavailable(w, req, e.Status, "", e.RetryAfter)
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
//	    <settings of the http transport>
//	}
func (t *Transport) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the module's name
	tokens := d.NextSegment()
	args := caddyfile.NewDispenser(tokens)
	args.Next()
	names := args.RemainingArgs()
	if len(names) > 1 {
		return args.Errf("unexpected argument %q: write 'transport device_flow [<session>]'", args.Val())
	}
	if len(names) == 1 {
		t.Session = names[0]
		tokens = slices.Delete(tokens, 1, 2) // the http transport takes no argument
	}
	return t.HTTPTransport.UnmarshalCaddyfile(caddyfile.NewDispenser(tokens))
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
