package caddymodule

import (
	"bufio"
	"context"
	"encoding/json"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow"
)

// pipeServer serves h on in-memory connections, so that time can be faked.
type pipeServer struct {
	conns chan net.Conn
	srv   *http.Server
}

func servePipe(t *testing.T, h http.Handler) *pipeServer {
	s := &pipeServer{conns: make(chan net.Conn), srv: &http.Server{Handler: h}}
	go func() { _ = s.srv.Serve(s) }()
	t.Cleanup(func() { _ = s.srv.Close() })
	return s
}

func (s *pipeServer) Accept() (net.Conn, error) {
	c, ok := <-s.conns
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}
func (s *pipeServer) Close() error   { close(s.conns); return nil }
func (s *pipeServer) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

func (s *pipeServer) dial() net.Conn {
	client, server := net.Pipe()
	s.conns <- server
	return client
}

// open starts a stream and returns its lines.
func (s *pipeServer) open(t *testing.T, ctx context.Context) (*http.Response, *bufio.Reader) {
	t.Helper()
	transport := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return s.dial(), nil }}
	t.Cleanup(transport.CloseIdleConnections)
	r, _ := http.NewRequestWithContext(ctx, "GET", "http://proxy"+testPath+"/events", nil)
	res, err := transport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = res.Body.Close() })
	return res, bufio.NewReader(res.Body)
}

// block reads up to the next empty line.
func block(t *testing.T, r *bufio.Reader) string {
	t.Helper()
	var b strings.Builder
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			t.Fatalf("after %q: %v", b.String(), err)
		}
		if line == "\n" {
			return b.String()
		}
		b.WriteString(line)
	}
}

// event reads one status event and nothing else.
func event(t *testing.T, r *bufio.Reader) flow.Status {
	t.Helper()
	text := block(t, r)
	data, ok := strings.CutPrefix(text, "event: status\ndata: ")
	if !ok || strings.Count(text, "\n") != 2 {
		t.Fatalf("not one event of one data line: %q", text)
	}
	var st flow.Status
	if err := json.Unmarshal([]byte(data), &st); err != nil {
		t.Fatal(err)
	}
	return st
}

func TestSSETellsTheStatusAtOnceAndAtEachChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		samples := sampleStatuses(time.Now())
		f := newFake(samples["login_required"])
		p := f.page()
		res, r := servePipe(t, p).open(t, t.Context())
		if res.Header.Get("Content-Type") != "text/event-stream" || res.Header.Get("X-Accel-Buffering") != "no" || res.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("headers %v", res.Header)
		}
		if got := block(t, r); got != "retry: 2000\n" {
			t.Errorf("%q", got)
		}
		if st := event(t, r); st.State != flow.StateLoginRequired {
			t.Errorf("%+v", st)
		}
		for _, name := range []string{"pending", "authorized", "degraded-revoked"} {
			f.set(samples[name])
			if st := event(t, r); st.State != samples[name].State {
				t.Errorf("%s: %+v", name, st)
			}
		}
		if n, _ := f.counts(); n != 0 {
			t.Errorf("%d demands", n)
		}
		p.shutdown()
	})
}

func TestSSEKeepsTheConnectionAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newFake(flow.Status{}).page()
		_, r := servePipe(t, p).open(t, t.Context())
		block(t, r)
		event(t, r)
		start := time.Now()
		for range 4 {
			if got := block(t, r); got != ": keep-alive\n" {
				t.Errorf("%q", got)
			}
		}
		if took := time.Since(start); took != 4*keepAlive {
			t.Errorf("four in %s", took)
		}
		p.shutdown()
	})
}

func TestSSEEndsWhenThePageIsShutDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newFake(flow.Status{}).page()
		_, r := servePipe(t, p).open(t, t.Context())
		block(t, r)
		event(t, r)
		p.shutdown()
		p.shutdown()
		if line, err := r.ReadString('\n'); err == nil {
			t.Errorf("still %q", line)
		}
		synctest.Wait()
		if n := p.streams.Load(); n != 0 {
			t.Errorf("%d streams left", n)
		}
	})
}

func TestSSEEndsWhenTheViewerLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newFake(flow.Status{}).page()
		ctx, cancel := context.WithCancel(t.Context())
		_, r := servePipe(t, p).open(t, ctx)
		block(t, r)
		event(t, r)
		if n := p.streams.Load(); n != 1 {
			t.Errorf("%d streams", n)
		}
		cancel()
		synctest.Wait()
		if n := p.streams.Load(); n != 0 {
			t.Errorf("%d streams left", n)
		}
	})
}

func TestSSEDropsAViewerWhoDoesNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newFake(flow.Status{}).page()
		conn := servePipe(t, p).dial()
		defer conn.Close()
		if _, err := conn.Write([]byte("GET " + testPath + "/events HTTP/1.1\r\nHost: proxy\r\n\r\n")); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if n := p.streams.Load(); n != 1 {
			t.Errorf("%d streams", n)
		}
		time.Sleep(streamWriteTimeout) // of the bubble
		synctest.Wait()
		if n := p.streams.Load(); n != 0 {
			t.Errorf("%d streams left", n)
		}
	})
}

func TestSSEHasRoomForSoManyViewers(t *testing.T) {
	p := newFake(flow.Status{}).page()
	p.streams.Store(maxStreams)
	w := do(p, "GET", testPath+"/events")
	if w.Code != 503 || w.Header().Get("Retry-After") == "" || p.streams.Load() != maxStreams {
		t.Errorf("%d, Retry-After %q, %d streams", w.Code, w.Header().Get("Retry-After"), p.streams.Load())
	}
}

func TestSSETakesNoLineEndFromAServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		payload := "x\n\ndata: {}\n\nevent: status\r\rdata: evil\u2028\u2029\x00</script>"
		for state := range tones {
			p := newFake(hostile(payload, state)).page()
			_, r := servePipe(t, p).open(t, t.Context())
			block(t, r)
			if st := event(t, r); st.Session != payload || st.Error.Description != payload {
				t.Errorf("%+v", st)
			}
			p.shutdown()
			if rest, err := r.ReadString('\n'); err == nil {
				t.Errorf("one event too many: %q", rest)
			}
		}
	})
}

func TestSSEOpenPageAsksForTheNextCodeWhenOneRanOut(t *testing.T) {
	ended := func(code string) flow.Status {
		return flow.Status{State: flow.StateLoginRequired, Error: &flow.StatusError{Code: code, Action: flow.ActionReauthorize}}
	}
	for name, tc := range map[string]struct {
		st   flow.Status
		want int
	}{
		"ran out":  {ended("expired_token"), 2},
		"refused":  {ended("access_denied"), 0},
		"nobody":   {flow.Status{State: flow.StateLoginRequired}, 0},
		"there is": {flow.Status{State: flow.StateAuthorized}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newFake(tc.st)
				p := s.page()
				_, r := servePipe(t, p).open(t, t.Context())
				block(t, r)
				event(t, r)
				for range 2 {
					block(t, r)
				}
				s.mu.Lock()
				got := s.demands
				s.mu.Unlock()
				if got != tc.want {
					t.Errorf("%d demands, want %d", got, tc.want)
				}
				p.shutdown()
			})
		})
	}
}
