package flow_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

func TestLargeBodyStreamsThroughAndIsNotRepeated(t *testing.T) {
	as, s := loggedInForReal(t)
	half := make(chan struct{})
	const size = 200 << 10
	var calls, received atomic.Int64
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		n, err := io.CopyN(io.Discard, r.Body, size/2)
		close(half) // the second half is only sent now
		m, err2 := io.Copy(io.Discard, r.Body)
		if err := errors.Join(err, err2); err != nil {
			t.Error(err)
		}
		received.Store(n + m)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	defer upstream.Close()
	rt := &flow.Transport{Session: s, Base: base(t)}
	pr, pw := io.Pipe()
	go func() {
		_, _ = pw.Write(bytes.Repeat([]byte("x"), size/2))
		<-half
		_, _ = pw.Write(bytes.Repeat([]byte("y"), size/2))
		_ = pw.Close()
	}()
	token := s.Current()
	if status, _ := do(t, rt, request(t, http.MethodPost, upstream.URL, pr)); status != 401 {
		t.Fatalf("status %d", status)
	}
	if calls.Load() != 1 || received.Load() != size {
		t.Fatalf("%d calls, %d bytes", calls.Load(), received.Load())
	}
	// The next request finds a better token all the same.
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for _, changed := s.Watch(); s.Current() == token; _, changed = s.Watch() {
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatal("the rejected token is still in use")
		}
	}
	if n := as.Stats().Refreshes; n != 1 {
		t.Fatalf("%d refreshes", n)
	}
}

func TestEarlyRefusalWhileTheBodyStillGoesOut(t *testing.T) {
	_, s := loggedInForReal(t)
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusUnauthorized) // without reading
	}))
	defer upstream.Close()
	rt := &flow.Transport{Session: s, Base: base(t)}
	refused := 0
	for i := range 50 {
		body := io.Reader(bytes.NewReader(make([]byte, 60<<10)))
		if i%2 == 0 {
			body = chunked{bytes.NewReader(make([]byte, 4<<20))}
		}
		req := request(t, http.MethodPost, upstream.URL, body)
		req.Trailer = http.Header{"X-Sum": {"42"}}
		resp, err := rt.RoundTrip(req)
		if err != nil {
			continue // the server closed before the body was through, which is its right
		}
		if resp.StatusCode != 401 {
			t.Fatalf("status %d", resp.StatusCode)
		}
		refused++
		_ = resp.Body.Close()
	}
	if refused == 0 {
		t.Fatal("no answer came early")
	}
}

func TestUnreadBodyIsNotTakenForAnEmptyOne(t *testing.T) {
	_, s := loggedInForReal(t)
	calls := 0
	rt := &flow.Transport{Session: s, Base: roundTripper(func(r *http.Request) (*http.Response, error) {
		calls++
		return &http.Response{StatusCode: 401, Body: http.NoBody}, nil
	})}
	for _, body := range []io.Reader{chunked{strings.NewReader("x")}, strings.NewReader("x")} {
		do(t, rt, request(t, http.MethodPost, "https://api.example", body))
	}
	if calls != 2 {
		t.Fatalf("%d calls: a request was repeated without its body", calls)
	}
}

func TestUpgradedConnectionIsLeftAlone(t *testing.T) {
	_, s := loggedInForReal(t)
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		_, _ = rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		_ = rw.Flush()
		line, _ := rw.ReadString('\n')
		_, _ = rw.WriteString(line)
		_ = rw.Flush()
	}))
	defer upstream.Close()
	req := request(t, http.MethodGet, upstream.URL, nil)
	req.Header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"echo"}}
	resp, err := (&flow.Transport{Session: s, Base: base(t)}).RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	rw, ok := resp.Body.(io.ReadWriteCloser)
	if resp.StatusCode != 101 || !ok {
		t.Fatalf("%d, body %T", resp.StatusCode, resp.Body)
	}
	if _, err := io.WriteString(rw, "ping\n"); err != nil {
		t.Fatal(err)
	}
	if echo, err := io.ReadAll(rw); err != nil || string(echo) != "ping\n" {
		t.Fatalf("%q %v", echo, err)
	}
}

// closeNoter tells whether a body was closed.
type closeNoter struct {
	io.Reader
	closed bool
}

func (c *closeNoter) Close() error { c.closed = true; return nil }

func TestWithoutTokenTheAPIIsNotContacted(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		s, _ := w.run()
		rt := &flow.Transport{Session: s, Base: roundTripper(func(*http.Request) (*http.Response, error) {
			w.Error("the API was contacted")
			return nil, errors.New("no")
		})}
		body := &closeNoter{Reader: strings.NewReader("x")}
		_, err := rt.RoundTrip(request(w.T, http.MethodPost, "https://api.example", body))
		var notReady *flow.NotReadyError
		if !errors.As(err, &notReady) || notReady.Status.Login == nil {
			w.Fatalf("%v", err)
		}
		if errors.Is(err, context.Canceled) {
			w.Fatal("the error looks as if the caller had left")
		}
		if !body.closed {
			w.Fatal("the body was not closed")
		}
	})
}

func TestCallerWhoLeavesEndsItsOwnRequestOnly(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		s, _ := w.loggedIn()
		w.as.ExpireAccessTokens()
		w.as.Script(flowtest.Refresh, flowtest.Response{Pass: true, Delay: 3 * time.Second})
		rt := &flow.Transport{Session: s, Base: w.as.APIRoundTripper()}
		ctx, cancel := context.WithTimeout(w.Context(), time.Second)
		defer cancel()
		resp, err := rt.RoundTrip(request(w.T, http.MethodGet, "https://api.example", nil).WithContext(ctx))
		if err != nil || resp.StatusCode != 401 {
			w.Fatalf("%v, want the API's own answer", err)
		}
		_ = resp.Body.Close()
		w.sleep(3 * time.Second)
		w.callAPI(s, w.wantToken(s))
		w.wantCount(flowtest.Refresh, 1)
	})
}

func TestForbiddenIsNoReasonToRefresh(t *testing.T) {
	bubble(t, flowtest.Config{APIScope: "write:things"}, func(w *world) {
		s, _ := w.loggedIn()
		rt := &flow.Transport{Session: s, Base: w.as.APIRoundTripper()}
		if status, _ := do(w.T, rt, request(w.T, http.MethodGet, "https://api.example", nil)); status != 403 {
			w.Fatalf("status %d", status)
		}
		w.wantCount(flowtest.Refresh, 0)
		w.wantCount(flowtest.API, 1)
	})
}

func TestBodyMayStillBeReadWhenTheAnswerComes(t *testing.T) {
	_, s := loggedInForReal(t)
	var reading sync.WaitGroup
	rt := &flow.Transport{Session: s, Base: roundTripper(func(r *http.Request) (*http.Response, error) {
		if r.Body == nil || r.Body == http.NoBody {
			return &http.Response{StatusCode: 200, Body: http.NoBody}, nil
		}
		reading.Go(func() {
			_, _ = io.Copy(io.Discard, r.Body)
			_ = r.Body.Close()
		})
		return &http.Response{StatusCode: 401, Body: http.NoBody}, nil
	})}
	for range 100 {
		req := request(t, http.MethodPost, "https://api.example", chunked{strings.NewReader(strings.Repeat("x", 100))})
		req.Trailer = http.Header{"X-Sum": {"42"}}
		do(t, rt, req)
	}
	reading.Wait()
}
