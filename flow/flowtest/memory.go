package flowtest

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// RoundTripper reaches the server in memory, under the host of its issuer; other hosts are not found. It needs no
// network and so works in a testing/synctest bubble, where waiting for an answer blocks durably. It heeds the request's
// context, and streams the answer: a scripted function may write a little now and then.
func (s *Server) RoundTripper() http.RoundTripper {
	return &memory{s: s, handler: s, host: func() string {
		u, err := url.Parse(s.Issuer())
		if err != nil {
			return ""
		}
		return u.Host
	}}
}

// APIRoundTripper reaches [Server.API] in memory in the same way, under any host.
func (s *Server) APIRoundTripper() http.RoundTripper { return &memory{s: s, handler: s.API()} }

type memory struct {
	s       *Server
	handler http.Handler
	host    func() string // nil: any
}

// RoundTrip implements http.RoundTripper.
func (m *memory) RoundTrip(req *http.Request) (*http.Response, error) {
	fail := func(err error) (*http.Response, error) {
		if req.Body != nil {
			_ = req.Body.Close() // RoundTrip must close it; there is nothing to learn from the error
		}
		return nil, err
	}
	if err := req.Context().Err(); err != nil {
		return fail(err)
	}
	if req.URL == nil || req.URL.Host == "" {
		return fail(errors.New("flowtest: the request has no host"))
	}
	if m.host != nil && !strings.EqualFold(req.URL.Host, m.host()) {
		return fail(&net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{
			Err: "no such host", Name: req.URL.Hostname(), IsNotFound: true,
		}})
	}
	if !m.s.enter() {
		return fail(&net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)})
	}

	ctx, cancel := context.WithCancel(req.Context())
	stop := context.AfterFunc(m.s.life, cancel) // Close frees functions that wait for their request to end
	sreq := serverRequest(ctx, req)
	w := &memoryWriter{
		header: http.Header{}, ready: make(chan struct{}), chunks: make(chan []byte, 16),
		gone: make(chan struct{}), ctx: ctx,
	}
	go func() {
		defer m.s.work.Done()
		defer cancel()
		defer stop()
		w.serve(m.handler, sreq)
	}()

	select {
	case <-w.ready:
	case <-req.Context().Done():
		cancel()
		return nil, req.Context().Err()
	}
	if w.status == 0 {
		return nil, &net.OpError{Op: "read", Net: "tcp", Err: os.NewSyscallError("read", syscall.ECONNRESET)}
	}
	resp := &http.Response{
		Status: strconv.Itoa(w.status) + " " + http.StatusText(w.status), StatusCode: w.status,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: w.sent, ContentLength: -1, Request: req, TLS: sreq.TLS, Body: &memoryBody{w: w, ctx: req.Context(), cancel: cancel},
	}
	if n, err := strconv.ParseInt(w.sent.Get("Content-Length"), 10, 64); err == nil {
		resp.ContentLength = n
	}
	if req.Method == http.MethodHead || w.status == http.StatusNoContent || w.status == http.StatusNotModified {
		resp.Body = http.NoBody
		w.leave()
	}
	return resp, nil
}

// serverRequest is the request as a server would see it. Nothing the client may change is shared, but the body and the
// trailer, which is filled in when the body has been read.
func serverRequest(ctx context.Context, req *http.Request) *http.Request {
	sreq := req.Clone(ctx)
	sreq.RequestURI = req.URL.RequestURI()
	sreq.URL = &url.URL{Path: req.URL.Path, RawPath: req.URL.RawPath, RawQuery: req.URL.RawQuery}
	sreq.Host = req.Host
	if sreq.Host == "" {
		sreq.Host = req.URL.Host
	}
	sreq.RemoteAddr = "127.0.0.1:1"
	sreq.Proto, sreq.ProtoMajor, sreq.ProtoMinor = "HTTP/1.1", 1, 1
	if sreq.Method == "" {
		sreq.Method = http.MethodGet
	}
	if sreq.Header == nil {
		sreq.Header = http.Header{}
	}
	if sreq.Body == nil {
		sreq.Body = http.NoBody
	}
	sreq.Trailer = req.Trailer
	if user := req.URL.User; user != nil && sreq.Header.Get("Authorization") == "" {
		password, _ := user.Password() // as http.Client does for URLs with credentials
		sreq.SetBasicAuth(user.Username(), password)
	}
	if req.URL.Scheme == "https" {
		sreq.TLS = &tls.ConnectionState{Version: tls.VersionTLS13, HandshakeComplete: true, ServerName: req.URL.Hostname()}
	}
	return sreq
}

// memoryWriter carries an answer across. Channels rather than locks, so that waiting blocks durably in a bubble.
type memoryWriter struct {
	header http.Header // the handler's
	sent   http.Header // what was sent of it
	status int         // 0 until sent
	ready  chan struct{}
	once   sync.Once

	chunks  chan []byte
	cut     bool          // a write failed
	aborted bool          // the answer is not complete; read after chunks is closed
	gone    chan struct{} // the client closed the body
	leaving sync.Once
	ctx     context.Context
}

func (w *memoryWriter) serve(h http.Handler, r *http.Request) {
	w.aborted = true // unless the handler returns: it may panic, or a test end its goroutine
	defer func() {
		_ = r.Body.Close()
		close(w.chunks)
		w.once.Do(func() { close(w.ready) })
		if p := recover(); p != nil && p != http.ErrAbortHandler { //nolint:errorlint // net/http compares it so
			panic(p)
		}
	}()
	h.ServeHTTP(w, r)
	w.aborted = w.cut
	w.WriteHeader(http.StatusOK)
}

// Header implements http.ResponseWriter.
func (w *memoryWriter) Header() http.Header { return w.header }

// WriteHeader implements http.ResponseWriter. Informational statuses are dropped.
func (w *memoryWriter) WriteHeader(status int) {
	if status < 200 {
		return
	}
	w.once.Do(func() {
		w.sent, w.status = w.header.Clone(), status
		close(w.ready)
	})
}

// Write implements http.ResponseWriter.
func (w *memoryWriter) Write(p []byte) (int, error) {
	if w.status == 0 && w.header.Get("Content-Type") == "" {
		w.header.Set("Content-Type", http.DetectContentType(p))
	}
	w.WriteHeader(http.StatusOK)
	select {
	case w.chunks <- append([]byte(nil), p...):
		return len(p), nil
	case <-w.gone:
	case <-w.ctx.Done():
	}
	w.cut = true
	return 0, io.ErrClosedPipe
}

// Flush implements http.Flusher; nothing is held back.
func (w *memoryWriter) Flush() { w.WriteHeader(http.StatusOK) }

func (w *memoryWriter) leave() { w.leaving.Do(func() { close(w.gone) }) }

// memoryBody is the client's end of the answer.
type memoryBody struct {
	w      *memoryWriter
	ctx    context.Context // the client's own: the handler's ends with the handler
	rest   []byte
	cancel context.CancelFunc
}

// Read implements io.Reader.
func (b *memoryBody) Read(p []byte) (int, error) {
	select {
	case <-b.w.gone:
		return 0, errors.New("flowtest: read on a closed response body")
	default:
	}
	if len(b.rest) == 0 {
		select { // what has arrived is read before a cancellation is heeded, or a test could not foresee the outcome
		case chunk, ok := <-b.w.chunks:
			return b.take(p, chunk, ok)
		default:
		}
		select {
		case chunk, ok := <-b.w.chunks:
			return b.take(p, chunk, ok)
		case <-b.w.gone:
			return 0, errors.New("flowtest: read on a closed response body")
		case <-b.ctx.Done():
			return 0, b.ctx.Err()
		}
	}
	n := copy(p, b.rest)
	b.rest = b.rest[n:]
	return n, nil
}

func (b *memoryBody) take(p, chunk []byte, ok bool) (int, error) {
	if !ok {
		if b.w.aborted {
			return 0, cmp.Or(b.ctx.Err(), io.ErrUnexpectedEOF)
		}
		return 0, io.EOF
	}
	n := copy(p, chunk)
	b.rest = chunk[n:]
	return n, nil
}

// Close implements io.Closer.
func (b *memoryBody) Close() error {
	b.w.leave()
	b.cancel() // as when a connection is closed under a handler that still writes
	return nil
}
