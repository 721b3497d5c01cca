package flow_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// loggedInForReal is a session with a usable token in real time, for tests over
// loopback.
func loggedInForReal(t *testing.T) (*flowtest.Server, *flow.Session) {
	t.Helper()
	as := flowtest.New(flowtest.Config{AutoApprove: true, Interval: 100 * time.Millisecond})
	t.Cleanup(as.Close)
	s, err := flow.New(flow.Config{Issuer: as.Issuer(), ClientID: "demo-client", HTTP: as.RoundTripper()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	if _, err := s.Await(t.Context(), 30*time.Second); err != nil {
		t.Fatal(err)
	}
	return as, s
}

// seen is what the API received of one request.
type seen struct {
	header, trailer http.Header
	body            string
}

// api is an upstream on loopback that accepts the tokens of as, and notes all.
type api struct {
	*httptest.Server
	mu   sync.Mutex
	all  []seen
	deny atomic.Bool // 401 to everybody
}

func newAPI(t *testing.T, as *flowtest.Server) *api {
	a := new(api)
	a.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // the caller went away
		}
		a.mu.Lock()
		a.all = append(a.all, seen{r.Header.Clone(), r.Trailer.Clone(), string(body)})
		a.mu.Unlock()
		token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if a.deny.Load() || !as.ValidToken(token) {
			w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token"`)
			http.Error(w, "the API's own words", http.StatusUnauthorized)
			return
		}
		_, _ = io.WriteString(w, "hello")
	}))
	t.Cleanup(a.Close)
	return a
}

func (a *api) requests() []seen {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.all)
}

// base is a transport of this test's own.
func base(t *testing.T) *http.Transport {
	tr := &http.Transport{}
	t.Cleanup(tr.CloseIdleConnections)
	return tr
}

// do sends a request and returns status and body of the answer.
func do(t *testing.T, rt http.RoundTripper, req *http.Request) (int, string) {
	t.Helper()
	resp, err := rt.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		t.Fatal(err)
	}
	if resp.Request != req {
		t.Error("the answer leads to a request that holds the token")
	}
	return resp.StatusCode, string(body)
}

func request(t *testing.T, method, url string, body io.Reader) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

// chunked hides the length of a body.
type chunked struct{ io.Reader }

func TestAPIGetsTheTokenAndNoOtherCredential(t *testing.T) {
	as, s := loggedInForReal(t)
	upstream := newAPI(t, as)
	rt := &flow.Transport{Session: s, Base: base(t)}

	req := request(t, http.MethodPost, upstream.URL+"/things?x=1", chunked{strings.NewReader("the body")})
	req.Header = http.Header{
		"Authorization":        {"Basic b25l", "Bearer two"},
		"authorization":        {"Bearer three"},
		"AUTHORIZATION":        {"Bearer four"},
		"Authorization_":       {"Bearer five"},
		"Proxy-Authorization":  {"Basic six"},
		"proxy_authorization":  {"Basic seven"},
		"X-Authorization-Info": {"stays"},
		"X-Many":               {"a", "b"},
	}
	req.Trailer = http.Header{"Authorization": {"Bearer eight"}, "authorization_": {"nine"}, "Proxy-Authorization": {"ten"}, "X-Sum": {"42"}}
	header, trailer := req.Header.Clone(), req.Trailer.Clone()
	if status, body := do(t, rt, req); status != 200 || body != "hello" {
		t.Fatalf("%d %s", status, body)
	}
	if !reflect.DeepEqual(req.Header, header) || !reflect.DeepEqual(req.Trailer, trailer) {
		t.Error("the caller's own request was changed")
	}
	got := upstream.requests()[0]
	if !slices.Equal(got.header["Authorization"], []string{"Bearer " + s.Current().Value().Reveal()}) {
		t.Errorf("Authorization: %d values", len(got.header["Authorization"]))
	}
	for name := range got.header {
		if n := strings.ToLower(name); strings.Contains(n, "authorization") && name != "Authorization" && name != "X-Authorization-Info" {
			t.Errorf("the API received %s", name)
		}
	}
	if got.header.Get("X-Authorization-Info") != "stays" || !slices.Equal(got.header["X-Many"], []string{"a", "b"}) || got.body != "the body" {
		t.Errorf("the API received %q, %q", got.header, got.body)
	}
	if !reflect.DeepEqual(got.trailer, http.Header{"X-Sum": {"42"}}) {
		t.Errorf("trailer %q", got.trailer)
	}
}

func TestTrailerWithoutBodyHoldsNoCredential(t *testing.T) {
	_, s := loggedInForReal(t)
	var got *http.Request
	rt := &flow.Transport{Session: s, Base: roundTripper(func(r *http.Request) (*http.Response, error) {
		got = r
		return &http.Response{StatusCode: 200, Body: http.NoBody}, nil
	})}
	req := request(t, http.MethodGet, "https://api.example", http.NoBody)
	req.Trailer = http.Header{"Authorization": {"Bearer x"}, "X-Sum": nil}
	do(t, rt, req)
	if _, ok := got.Trailer["Authorization"]; ok || len(got.Trailer) != 1 {
		t.Errorf("trailer %q", got.Trailer)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestRequestsShareNoSlice(t *testing.T) {
	_, s := loggedInForReal(t)
	var got []http.Header
	rt := &flow.Transport{Session: s, Base: roundTripper(func(r *http.Request) (*http.Response, error) {
		got = append(got, r.Header)
		return &http.Response{StatusCode: 200, Body: http.NoBody}, nil
	})}
	for range 2 {
		do(t, rt, request(t, http.MethodGet, "https://api.example", nil))
	}
	got[0]["Authorization"][0] = "edited in place"
	do(t, rt, request(t, http.MethodGet, "https://api.example", nil))
	want := "Bearer " + s.Current().Value().Reveal()
	if got[1].Get("Authorization") != want || got[2].Get("Authorization") != want {
		t.Error("one caller's edit reached another's request")
	}
}

func TestRejectedTokenIsReplacedAndTheRequestRepeated(t *testing.T) {
	as, s := loggedInForReal(t)
	upstream := newAPI(t, as)
	var replays []int
	rt := &flow.Transport{Session: s, Base: base(t), Replayed: func(status int) { replays = append(replays, status) }}
	full := strings.Repeat("x", 64<<10)
	for name, body := range map[string]func() io.Reader{
		"no body":      func() io.Reader { return nil },
		"small":        func() io.Reader { return strings.NewReader("the body") },
		"64 KiB":       func() io.Reader { return strings.NewReader(full) },
		"of no length": func() io.Reader { return chunked{strings.NewReader("the body")} },
	} {
		t.Run(name, func(t *testing.T) {
			as, s := loggedInForReal(t)
			upstream := newAPI(t, as)
			rt := &flow.Transport{Session: s, Base: base(t)}
			as.ExpireAccessTokens()
			req := request(t, http.MethodPost, upstream.URL, body())
			req.Trailer = http.Header{"X-Sum": {"42"}, "Authorization": {"Bearer x"}}
			if status, text := do(t, rt, req); status != 200 || text != "hello" {
				t.Fatalf("%d %s", status, text)
			}
			all := upstream.requests()
			if len(all) != 2 || all[0].body != all[1].body || !reflect.DeepEqual(all[0].trailer, all[1].trailer) {
				t.Fatalf("the API received %d requests, or different ones", len(all))
			}
			if _, ok := all[1].trailer["Authorization"]; ok {
				t.Fatal("the credential came back with the replay")
			}
			if n := as.Stats().Refreshes; n != 1 {
				t.Fatalf("%d refreshes", n)
			}
		})
	}
	as.ExpireAccessTokens()
	if status, _ := do(t, rt, request(t, http.MethodGet, upstream.URL, nil)); status != 200 || !slices.Equal(replays, []int{200}) {
		t.Fatalf("%d, replays %v", status, replays)
	}
	// The API refuses everything: its own 401, after one refresh at most.
	upstream.deny.Store(true)
	for range 100 {
		if status, text := do(t, rt, request(t, http.MethodGet, upstream.URL, nil)); status != 401 || text != "the API's own words\n" {
			t.Fatalf("%d %s", status, text)
		}
	}
	if n := as.Count(flowtest.Refresh); n != 1 {
		t.Fatalf("%d refreshes", n)
	}
}

func TestCredentialsAreKnownInEachSpelling(t *testing.T) {
	for name, want := range map[string]bool{
		"Authorization": true, "authorization": true, "AUTHORIZATION": true, "Authorization_": true, "_Authorization": true, "-authorization-": true,
		"Proxy-Authorization": true, "proxy_authorization": true, "_Proxy_Authorization_": true,
		"X-Authorization": false, "Authorizations": false, "Accept-Encoding": false, "Proxy-Authenticate": false, "": false, "X-Forwarded-For": false,
	} {
		if flow.IsCredential(name) != want {
			t.Errorf("%q: %t", name, !want)
		}
	}
}
