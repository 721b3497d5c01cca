package flowtest

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/x509"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

// Server is the authorization server. Make it with New; in a testing/synctest bubble, make it inside the bubble.
// All methods may be called at the same time.
type Server struct {
	life    context.Context // ended by Close
	end     context.CancelFunc
	work    sync.WaitGroup // handlers, connections and listeners
	signKey []byte         // of id_tokens

	mu        sync.Mutex // never held while waiting, writing, or calling out
	closed    bool
	cfg       Config
	listenURL string // of the first listener
	servers   []*http.Server
	cert      *x509.Certificate
	changed   chan struct{} // closed, and made anew, when a device code is issued

	devices map[string]*device // by device code
	order   []*device          // oldest first
	refresh map[string]*refreshToken
	access  map[string]*accessToken

	queued map[Step][]Response
	always map[Step]Response

	requests    []*Request
	counts      map[Step]int
	stats       Stats
	apiRequests []*APIRequest
}

// New makes a server. It listens nowhere yet: use RoundTripper, Start, StartTLS or Listen, or mount it as a handler.
func New(cfg Config) *Server {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails: crypto/rand ends the program instead
	life, end := context.WithCancel(context.Background())
	return &Server{
		life: life, end: end,
		signKey: key,
		cfg:     cfg,
		changed: make(chan struct{}),
		devices: map[string]*device{},
		refresh: map[string]*refreshToken{},
		access:  map[string]*accessToken{},
		queued:  map[Step][]Response{},
		always:  map[Step]Response{},
		counts:  map[Step]int{},
	}
}

// SetConfig changes the configuration. Codes and tokens already issued keep their lifetimes and intervals.
// The function must not call the server.
func (s *Server) SetConfig(change func(*Config)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.cfg)
}

// Issuer returns the issuer exactly as discovery and id_tokens state it.
func (s *Server) Issuer() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.configLocked().Issuer
}

// configLocked is the configuration with its defaults filled in, the issuer too.
func (s *Server) configLocked() Config {
	cfg := s.cfg.withDefaults()
	if cfg.Issuer == "" {
		cfg.Issuer = DefaultIssuer
		if s.listenURL != "" {
			cfg.Issuer = s.listenURL
		}
		if cfg.Flavour == Auth0 {
			cfg.Issuer += "/"
		}
	}
	return cfg
}

// base is the issuer without a final slash: what the endpoints' paths are appended to.
func (c Config) base() string { return strings.TrimRight(c.Issuer, "/") }

// enter counts a piece of work that Close must wait for; false after Close.
func (s *Server) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.work.Add(1)
	return true
}

// Close ends listeners, connections and hanging requests, and returns when every goroutine of the server has ended.
// It may be called again.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	s.end()
	servers := slices.Clone(s.servers)
	s.mu.Unlock()
	for _, srv := range servers {
		_ = srv.Close() // closes what it can; the error is that of a listener already closed
	}
	s.work.Wait()
}

// exchange is one request on its way through the server.
type exchange struct {
	r       *http.Request
	step    Step
	cfg     Config
	form    url.Values
	refused *refusal // what is wrong with the request itself, whatever it asks for
	record  *Request

	device *device       // of a poll, if known
	pace   string        // why the poll came too early, or empty
	token  *refreshToken // of a refresh, if known
}

// ServeHTTP answers the authorization server's endpoints and its approval page.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !s.enter() {
		panic(http.ErrAbortHandler)
	}
	defer s.work.Done()

	x := s.receive(w, r)
	defer s.finish(x)

	s.mu.Lock()
	res, scripted := s.nextLocked(x.step)
	s.mu.Unlock()

	var out reply
	if scripted {
		out = s.play(r, res, func() reply { return s.serve(x) })
	} else {
		out = s.serve(x)
	}
	if out.custom != nil {
		sw := &statusWriter{ResponseWriter: w}
		defer func() { s.answered(x, reply{status: sw.status}, false) }()
		w = sw
	} else {
		s.answered(x, out, scripted && !res.Pass)
	}
	out.write(w, r)
}

// receive reads, classifies and records a request, and notes what it overlaps with.
func (s *Server) receive(w http.ResponseWriter, r *http.Request) *exchange {
	s.mu.Lock()
	cfg := s.configLocked()
	s.mu.Unlock()
	x := &exchange{r: r, cfg: cfg, step: route(cfg, r.URL.Path)}

	now := time.Now() // before the body, which may be slow to come
	switch x.step {
	case Device, Token, Revoke:
		x.form, x.refused = readForm(w, r)
	case Page:
		x.form, x.refused = readPageForm(w, r)
	default:
		x.form = r.URL.Query()
	}
	if x.step == Token {
		switch x.form.Get("grant_type") {
		case deviceGrant:
			x.step = Poll
		case "refresh_token":
			x.step = Refresh
		}
	}
	x.record = &Request{
		Step: x.step, Time: now, Method: r.Method, Path: r.URL.Path,
		Header: r.Header.Clone(), Form: cloneForm(x.form),
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	s.recordLocked(x.record)
	if x.refused == nil {
		switch x.step {
		case Device, Token, Poll, Refresh, Revoke:
			x.refused = authenticate(x) // RFC 8628 section 3.1: at the device endpoint as at the token endpoint
		}
	}
	if x.refused != nil && x.refused.violation != "" {
		s.violateLocked("%s: %s", cmp.Or(x.step, "request"), x.refused.violation)
	}
	switch x.step {
	case Device:
		s.stats.DeviceRequests++
	case Poll:
		s.stats.Polls++
		s.beginPollLocked(x)
	case Refresh:
		s.beginRefreshLocked(x)
	}
	return x
}

// serve does the real thing.
func (s *Server) serve(x *exchange) reply {
	if x.refused != nil {
		return x.refused.reply
	}
	switch x.step {
	case Discovery:
		return s.serveDiscovery(x)
	case Device:
		return s.serveDevice(x)
	case Poll:
		return s.servePoll(x)
	case Refresh:
		return s.serveRefresh(x)
	case Token:
		return s.serveOtherGrant(x)
	case Revoke:
		return s.serveRevoke(x)
	case UserInfo:
		return s.serveUserInfo(x)
	case Page:
		return s.servePage(x)
	}
	if x.r.URL.Path == "/" && x.r.Method == http.MethodGet {
		return reply{status: http.StatusFound, header: http.Header{"Location": {x.cfg.base() + x.cfg.Flavour.paths().page}}}
	}
	return errorReply(http.StatusNotFound, "not_found", "no such endpoint")
}

// answered notes the outcome, before it is written where that is possible: the client may act on it at once.
func (s *Server) answered(x *exchange, out reply, scripted bool) {
	s.mu.Lock()
	if x.device != nil {
		x.device.lastAnswer = time.Now()
		if scripted {
			x.device.heed(out)
		}
	}
	s.endLocked(x)
	x.record.Status = out.status
	s.mu.Unlock()
	if x.cfg.Logf != nil {
		x.cfg.Logf("%s %s: %d", x.r.Method, x.r.URL.Path, out.status)
	}
}

func (s *Server) finish(x *exchange) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.endLocked(x)
}

// endLocked takes a request out of those in flight.
func (s *Server) endLocked(x *exchange) {
	if x.device != nil {
		delete(x.device.inFlight, x)
	}
	if x.token != nil {
		delete(x.token.grant.inFlight, x)
	}
}

// othersLocked says whether someone still waits for another of these requests. One whose client has left does not
// count, even if its handler has not noticed yet.
func othersLocked(inFlight map[*exchange]context.Context) bool {
	for ctx := range maps.Values(inFlight) {
		if ctx.Err() == nil {
			return true
		}
	}
	return false
}

// statusWriter notes the status that a function chooses.
type statusWriter struct {
	http.ResponseWriter
	status int
}

// WriteHeader implements http.ResponseWriter.
func (w *statusWriter) WriteHeader(status int) {
	if w.status == 0 && (status >= 200 || status == http.StatusSwitchingProtocols) {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (w *statusWriter) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(p)
}

// Flush implements http.Flusher.
func (w *statusWriter) Flush() {
	_ = http.NewResponseController(w.ResponseWriter).Flush() // as http.Flusher, which tells no errors
}

// Unwrap lets http.ResponseController reach Flush and Hijack.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
