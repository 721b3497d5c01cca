package flow

import (
	"net/http"
	"testing"
	"time"
)

// readySession is one with a token and without an owner.
func readySession(tb testing.TB) *Session {
	s, err := New(Config{Issuer: "https://as.example", ClientID: "c"})
	if err != nil {
		tb.Fatal(err)
	}
	v := *s.view.Load()
	v.token = newToken(NewSecret("an-access-token-of-some-length-as-servers-issue-them"), time.Now().Add(time.Hour), time.Now().Add(time.Hour))
	s.view.Store(&v)
	return s
}

// What injecting costs: an atomic load and the slice that holds the value.
func BenchmarkInject(b *testing.B) {
	s := readySession(b)
	h := http.Header{"Accept": {"*/*"}}
	b.ReportAllocs()
	for b.Loop() {
		s.Current().SetHeader(h)
	}
}

func BenchmarkInjectParallel(b *testing.B) {
	s := readySession(b)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		h := http.Header{"Accept": {"*/*"}}
		for pb.Next() {
			s.Current().SetHeader(h)
		}
	})
}

// trip is the whole of Transport.RoundTrip, with a base that answers at once.
func trip(tb testing.TB) func() {
	resp := &http.Response{StatusCode: http.StatusOK, Body: http.NoBody}
	t := &Transport{Session: readySession(tb), Base: answers(func(*http.Request) (*http.Response, error) { return resp, nil })}
	req, err := http.NewRequest(http.MethodGet, "https://api.example", nil)
	if err != nil {
		tb.Fatal(err)
	}
	req.Header = http.Header{"Accept": {"*/*"}, "User-Agent": {"x"}, "Accept-Encoding": {"gzip"}, "Cookie": {"a=b"}}
	req.Trailer = http.Header{} // Caddy's proxy makes one for each request
	return func() {
		if _, err := t.RoundTrip(req); err != nil {
			tb.Fatal(err)
		}
	}
}

func BenchmarkTransport(b *testing.B) {
	call := trip(b)
	b.ReportAllocs()
	for b.Loop() {
		call()
	}
}

func TestTransportAllocatesTheRequestAndItsHeaderOnly(t *testing.T) {
	if n := testing.AllocsPerRun(1000, trip(t)); n != 3 { // a map has two parts
		t.Errorf("%v allocations, want 3", n)
	}
}

func TestInjectingAllocatesTheSliceOnly(t *testing.T) {
	s := readySession(t)
	h := http.Header{"Accept": {"*/*"}}
	if n := testing.AllocsPerRun(1000, func() { s.Current().SetHeader(h) }); n != 1 {
		t.Errorf("%v allocations, want 1", n)
	}
}

// TestInjectingNeedsNoOwner would hang if a call with a usable token took a lock
// or asked the owner: there is none.
func TestInjectingNeedsNoOwner(t *testing.T) {
	s := readySession(t)
	if token, err := s.Token(t.Context()); err != nil || token != s.Current() {
		t.Error(err)
	}
}

type answers func(*http.Request) (*http.Response, error)

func (f answers) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
