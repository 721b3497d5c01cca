package caddymodule

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// What a call costs is measured without a network: the authorization server is real, and the API answers in the place of
// the HTTP transport's connections. Times are for `go test -bench`, only allocations are a test.

// hotConfig has a site by the short form, and a stock proxy to hold it against.
const hotConfig = `{
	admin off
	persist_config off
	storage file_system DIR/storage
	log {
		output discard
	}
}
http://:80 {
	bind unix/DIR/ours.sock
	device_flow http://API {
		LOGIN
	}
}
http://:80 {
	bind unix/DIR/stock.sock
	reverse_proxy http://API
}`

// instant is an API without a network between.
type instant struct{}

func (instant) RoundTrip(r *http.Request) (*http.Response, error) {
	h := make(http.Header, 4)
	h["Content-Type"], h["Content-Length"], h["Date"] = []string{"text/plain"}, []string{"6"}, []string{"Mon, 01 Jan 2024 00:00:00 GMT"}
	return &http.Response{
		Status: "200 OK", StatusCode: 200, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: h, Body: io.NopCloser(strings.NewReader("hello\n")), ContentLength: 6, Request: r,
	}, nil
}

// hot is the two sites of hotConfig, logged in, and requests as the transport gets them.
type hot struct {
	ours, stock *caddyhttp.Server
	gate        *Handler
	transport   *Transport
	few, many   *http.Request // header fields: as programs send, and more than one group of a Go map holds
}

// throughServer is one request through a whole server.
func throughServer(tb testing.TB, srv *caddyhttp.Server) func() {
	w := &statusWriter{header: make(http.Header, 8)}
	return func() {
		r := incoming("a=b")
		clear(w.header)
		w.status = 0
		srv.ServeHTTP(w, r)
		if w.status != http.StatusOK {
			tb.Fatalf("status %d", w.status)
		}
	}
}

// statusWriter throws an answer away, but for its status.
type statusWriter struct {
	header http.Header
	status int
}

func (w *statusWriter) Header() http.Header         { return w.header }
func (w *statusWriter) WriteHeader(status int)      { w.status = status }
func (w *statusWriter) Write(p []byte) (int, error) { return len(p), nil }

var callerContext = context.WithValue(context.Background(), http.LocalAddrContextKey, net.Addr(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 8080}))

// incoming is what a program on this machine sends. cookie may be empty.
func incoming(cookie string) *http.Request {
	r := &http.Request{
		Method: http.MethodGet, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Host: "localhost:8080",
		RemoteAddr: "127.0.0.1:50000", RequestURI: "/things?page=2", Body: http.NoBody,
		Header: http.Header{"User-Agent": {"scanner/1.0"}, "Accept": {"*/*"}, "Accept-Encoding": {"gzip"}},
	}
	if cookie != "" {
		r.Header["Cookie"] = []string{cookie}
	}
	r.URL = &url.URL{Path: "/things", RawQuery: "page=2"}
	return r.WithContext(callerContext)
}

// newHot loads hotConfig and takes the network out of it.
func newHot(tb testing.TB) *hot {
	tb.Helper()
	x := newRig(tb, flowtest.Config{})
	config, err := adapt(tb, x.expand(hotConfig))
	if err != nil {
		tb.Fatal(err)
	}
	x.load(config)
	x.login("default")
	app, err := caddy.ActiveContext().App("http")
	if err != nil {
		tb.Fatal(err)
	}
	h := new(hot)
	for _, srv := range app.(*caddyhttp.App).Servers {
		var gate *Handler
		handlersOf(srv.Routes, func(m caddyhttp.MiddlewareHandler) {
			switch m := m.(type) {
			case *Handler:
				gate, h.gate = m, m
			case *reverseproxy.Handler:
				var base *reverseproxy.HTTPTransport
				if gate != nil {
					h.ours, h.transport = srv, m.Transport.(*Transport)
					base = h.transport.HTTPTransport
				} else {
					h.stock, base = srv, m.Transport.(*reverseproxy.HTTPTransport)
				}
				base.Transport.RegisterProtocol("http", instant{})
			}
		})
	}
	if h.ours == nil || h.stock == nil {
		tb.Fatal("a site is missing")
	}
	h.few, h.many = h.capture(tb, incoming("")), h.capture(tb, incoming("a=b"))
	return h
}

// capture returns what becomes of a request on its way to the transport.
func (h *hot) capture(tb testing.TB, r *http.Request) *http.Request {
	t := &tap{RoundTripper: h.transport}
	handlersOf(h.ours.Routes, func(m caddyhttp.MiddlewareHandler) {
		if proxy, ok := m.(*reverseproxy.Handler); ok {
			proxy.Transport = t
			h.ours.ServeHTTP(&statusWriter{header: make(http.Header)}, r)
			proxy.Transport = h.transport
		}
	})
	if t.seen == nil {
		tb.Fatal("the request has not come through")
	}
	return t.seen
}

// tap remembers a request on its way through.
type tap struct {
	http.RoundTripper
	seen *http.Request
}

func (t *tap) RoundTrip(r *http.Request) (*http.Response, error) {
	t.seen = r
	return t.RoundTripper.RoundTrip(r)
}

// handlersOf goes to all handlers of routes.
func handlersOf(routes caddyhttp.RouteList, to func(caddyhttp.MiddlewareHandler)) {
	for _, route := range routes {
		for _, m := range route.Handlers {
			if sub, ok := m.(*caddyhttp.Subroute); ok {
				handlersOf(sub.Routes, to)
			}
			to(m)
		}
	}
}

// gated is one call of the handler alone, with nothing behind it.
func (h *hot) gated(tb testing.TB) func() {
	r, w, n := plainCall(), &statusWriter{header: make(http.Header)}, new(reached)
	return func() {
		*n = false
		if err := h.gate.ServeHTTP(w, r, n); err != nil || !*n {
			tb.Fatal("refused")
		}
	}
}

// reached is a handler that notes that it was called.
type reached bool

func (n *reached) ServeHTTP(http.ResponseWriter, *http.Request) error { *n = true; return nil }

// trip is one call of a transport with the request that the proxy has for it.
func trip(tb testing.TB, rt http.RoundTripper, r *http.Request) func() {
	return func() {
		resp, err := rt.RoundTrip(r)
		if err != nil || resp.StatusCode != http.StatusOK {
			tb.Fatal(err)
		}
	}
}

func TestTheHotPathAllocatesLittle(t *testing.T) {
	h := newHot(t)
	for _, c := range []struct {
		name      string
		ours, not func()
		most      float64
	}{
		{"guard and gate", h.gated(t), func() {}, 0},
		// The request, a map of two parts and what marks the answer as private.
		{"transport", trip(t, h.transport, h.few), trip(t, h.transport.HTTPTransport, h.few), 4},
		// From nine fields on, a map has four parts.
		{"transport, many fields", trip(t, h.transport, h.many), trip(t, h.transport.HTTPTransport, h.many), 6},
		{"the whole chain", throughServer(t, h.ours), throughServer(t, h.stock), 12},
	} {
		if racing && c.name == "the whole chain" {
			continue // the race detector has sync.Pool forget at random, and Caddy uses it
		}
		ours, not := testing.AllocsPerRun(500, c.ours), testing.AllocsPerRun(500, c.not)
		if ours-not > c.most {
			t.Errorf("%s: %v allocations, %v more than without us, want at most %v", c.name, ours, ours-not, c.most)
		}
	}
}

// Caddy's replace operations edit the values of a field where they stand.
func TestAnEditOfOneCallReachesNoOther(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	const edits = "@edit path /edit\n"
	x.load(x.config(t.Name(), global,
		"handler", edits+"route {\n header @edit >Cache-Control private edited\n device_flow\n request_header @edit Authorization Bearer Edited\n reverse_proxy API\n}",
		"hop", edits+"route {\n header @edit >Cache-Control private edited\n device_flow\n request_header @edit Authorization Bearer Edited\n"+
			lastHop+" header_up Authorization Bearer Edited\n }\n}",
		"short", edits+"header @edit >Cache-Control private edited\ndevice_flow @edit API {\n header_up Authorization Bearer Edited\n header_down Cache-Control private edited\n}\n"+
			"device_flow API"))
	want := "Bearer " + x.login("default").Current().Value().Reveal()
	for site, edited := range map[string]string{"handler": strings.Replace(want, "Bearer", "Edited", 1), "hop": want, "short": want} {
		for _, path := range []string{"/", "/edit", "/", "/edit", "/"} {
			token, control := want, "private"
			if path == "/edit" {
				token, control = edited, "edited"
			}
			x.as.Script(flowtest.API, flowtest.Response{Body: "hello", Header: http.Header{"Content-Type": {"text/plain"}}})
			got := x.get("http://" + site + path)
			if calls := x.as.APIRequests(); calls[len(calls)-1].Header.Get("Authorization") != token {
				t.Errorf("%s%s: the API got another token, or an edited one", site, path)
			}
			if got.header.Get("Cache-Control") != control {
				t.Errorf("%s%s: %d, Cache-Control is %q, want %q", site, path, got.status, got.header.Get("Cache-Control"), control)
			}
		}
	}
}

func bench(b *testing.B, f func()) {
	b.ReportAllocs()
	for b.Loop() {
		f()
	}
}

func BenchmarkHandler(b *testing.B) { bench(b, newHot(b).gated(b)) }

// What the transport costs is the difference between the two.
func BenchmarkTransport(b *testing.B) {
	h := newHot(b)
	b.Run("device_flow", func(b *testing.B) { bench(b, trip(b, h.transport, h.few)) })
	b.Run("http", func(b *testing.B) { bench(b, trip(b, h.transport.HTTPTransport, h.few)) })
}

// The whole of Caddy but for its connections.
func BenchmarkChain(b *testing.B) {
	h := newHot(b)
	b.Run("device_flow", func(b *testing.B) { bench(b, throughServer(b, h.ours)) })
	b.Run("reverse_proxy", func(b *testing.B) { bench(b, throughServer(b, h.stock)) })
}
