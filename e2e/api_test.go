package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/websocket"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// seen is a request as the API received it, body and trailer included.
type seen struct {
	path    string
	header  http.Header
	trailer http.Header
}

// api is an API that lets nobody in without exactly one good bearer token, and offers the kinds of exchange that
// legacy callers use.
type api struct {
	*httptest.Server
	valid func(token string) bool

	mu   sync.Mutex
	seen []seen
}

// startAPI starts an API; valid says which tokens are good just now.
func startAPI(t *testing.T, valid func(token string) bool) *api {
	t.Helper()
	a := &api{valid: valid}
	a.Server = httptest.NewServer(a)
	t.Cleanup(a.Close)
	t.Cleanup(a.CloseClientConnections) // or Close would wait for a WebSocket
	return a
}

// ServeHTTP implements http.Handler.
func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	credentials := r.Header.Values("Authorization")
	token, isBearer := "", false
	if len(credentials) == 1 {
		token, isBearer = strings.CutPrefix(credentials[0], "Bearer ")
	}
	valid := isBearer && a.valid(token) // before the body, which may take longer to come than a token lives
	digest := sha256.New()
	var err error
	if r.URL.Path != "/ws" {
		_, err = io.Copy(digest, r.Body) // to its end: only then is the trailer there
	}
	a.mu.Lock()
	a.seen = append(a.seen, seen{r.URL.Path, r.Header.Clone(), r.Trailer.Clone()})
	a.mu.Unlock()

	switch {
	case err != nil:
		http.Error(w, "reading the body: "+err.Error(), http.StatusBadRequest)
	case !isBearer || strings.ContainsAny(token, ", "):
		http.Error(w, fmt.Sprintf("got %d Authorization values, want one bearer token", len(credentials)), http.StatusBadRequest)
	case !valid:
		w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token"`)
		http.Error(w, "this token is not valid", http.StatusUnauthorized)
	case r.URL.Path == "/ws":
		// websocket.Handler would insist on an Origin header, which no device sends.
		websocket.Server{Handler: func(ws *websocket.Conn) { _, _ = io.Copy(ws, ws) }}.ServeHTTP(w, r)
	case r.URL.Path == "/events":
		events(w, r)
	case r.URL.Path == "/slow":
		select {
		case <-time.After(slowAnswer):
		case <-r.Context().Done():
		}
		fmt.Fprint(w, "hello from the API")
	case r.URL.Path == "/reset":
		reset(w)
	case r.URL.Path == "/half":
		half(w)
	case r.URL.Path == "/upload":
		fmt.Fprint(w, hex.EncodeToString(digest.Sum(nil)))
	default:
		fmt.Fprint(w, "hello from the API")
	}
}

// slowAnswer is how long the API takes at /slow: longer than a token of the tests that ask for it lives.
const slowAnswer = 5 * time.Second

// reset ends the connection without an answer, by RST where the system can.
func reset(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = conn.Close()
}

// half ends the connection in the middle of the answer.
func half(w http.ResponseWriter) {
	conn, out, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	_, _ = out.WriteString("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf an answer")
	_ = out.Flush()
	_ = conn.Close()
}

// events sends a number every 100 ms until the caller leaves.
func events(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for n := 1; ; n++ {
		fmt.Fprintf(w, "data: %d\n\n", n)
		if err := http.NewResponseController(w).Flush(); err != nil {
			return
		}
		select {
		case <-ticker.C:
		case <-r.Context().Done():
			return
		}
	}
}

// requests is all that the API received so far.
func (a *api) requests() []seen {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]seen(nil), a.seen...)
}

// tokens are the distinct tokens that the API received, oldest first.
func (a *api) tokens() []string {
	var all []string
	known := map[string]bool{}
	for _, r := range a.requests() {
		for _, v := range r.header.Values("Authorization") {
			if token, ok := strings.CutPrefix(v, "Bearer "); ok && !known[token] {
				known[token] = true
				all = append(all, token)
			}
		}
	}
	return all
}

// startAS starts flowtest, which approves each login by itself and checks the client as it goes; what it objects to
// fails the test. Each change is applied to its configuration.
func startAS(t *testing.T, lifetime time.Duration, change ...func(*flowtest.Config)) *flowtest.Server {
	t.Helper()
	cfg := flowtest.Config{ClientID: "device", Interval: time.Second, AccessTokenLifetime: lifetime, AutoApprove: true}
	for _, f := range change {
		f(&cfg)
	}
	as := flowtest.New(cfg)
	listener := httptest.NewServer(as)
	as.SetConfig(func(c *flowtest.Config) { c.Issuer = listener.URL })
	t.Cleanup(func() {
		as.Close()
		listener.Close()
		for _, v := range as.Stats().Violations {
			t.Errorf("the authorization server objects: %s", v)
		}
	})
	return as
}

// byHand leaves the approval to the test.
func byHand(c *flowtest.Config) { c.AutoApprove = false }

// startProxy starts an authorization server, an API that accepts its tokens, and a Caddy between, and logs in.
func startProxy(t *testing.T, lifetime time.Duration) (*flowtest.Server, *api, *caddy) {
	t.Helper()
	as := startAS(t, lifetime)
	a := startAPI(t, as.ValidToken)
	c := startCaddy(t, site("device", "offline_access read:things"), as.Issuer(), a.URL)
	c.login(t)
	return as, a, c
}
