package flow_test

import (
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// An http.Client follows redirects by itself; the token stays at the origin that the
// program has called.
func TestARedirectToAnotherOriginGetsNoToken(t *testing.T) {
	_, s := loggedInForReal(t)
	const start = "https://api.example/start"
	for name, tc := range map[string]struct {
		hops []string // after start
		last bool     // the last one gets the token
	}{
		"the same origin":          {[]string{"https://api.example/b", "/c"}, true},
		"the same, spelled out":    {[]string{"https://API.example:443/b"}, true},
		"another host":             {[]string{"https://evil.example/"}, false},
		"a part of the host":       {[]string{"https://sub.api.example/"}, false},
		"another port":             {[]string{"https://api.example:8443/"}, false},
		"clear text":               {[]string{"http://api.example/"}, false},
		"another host, later":      {[]string{"/b", "https://evil.example/", "/more"}, false},
		"there and back":           {[]string{"https://evil.example/", "https://api.example/deed"}, false},
		"no token, and back twice": {[]string{"https://evil.example/", "https://api.example/1", "https://api.example/2"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			var got []*http.Request
			client := &http.Client{Transport: &flow.Transport{Session: s, Base: roundTripper(func(r *http.Request) (*http.Response, error) {
				got = append(got, r)
				resp := &http.Response{StatusCode: http.StatusFound, Header: make(http.Header), Body: http.NoBody}
				if len(got) > len(tc.hops) {
					resp.StatusCode = http.StatusUnauthorized // nobody refreshes for a stranger's word
					if tc.last {
						resp.StatusCode = http.StatusOK
					}
				} else {
					resp.Header.Set("Location", tc.hops[len(got)-1])
				}
				return resp, nil
			})}}
			token := s.Current()
			req := request(t, http.MethodGet, start, nil)
			req.Header.Set("Proxy-Authorization", "Basic x")
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			if len(got) != 1+len(tc.hops) || resp.Request.Header.Get("Authorization") != "" {
				t.Errorf("%d requests", len(got))
			}
			for i, r := range got {
				u, err := url.Parse(start)
				if err != nil {
					t.Fatal(err)
				}
				want := tc.last || i == 0 || strings.EqualFold(r.URL.Host, u.Host) && i == 1 && len(tc.hops) > 1 && tc.hops[0] == "/b"
				if has := r.Header.Get("Authorization") == "Bearer "+token.Value().Reveal(); has != want || r.Header.Get("Proxy-Authorization") != "" {
					t.Errorf("request %d to %s: token %v, want %v", i, r.URL.Host, has, want)
				}
			}
			if s.Current() != token {
				t.Error("the token was replaced")
			}
		})
	}
}

// endlessBody is a 401's that never ends, until it is closed.
type endlessBody struct{ closed chan struct{} }

func (b endlessBody) Read([]byte) (int, error) {
	<-b.closed
	return 0, io.ErrClosedPipe
}

func (b endlessBody) Close() error {
	select {
	case <-b.closed:
	default:
		close(b.closed)
	}
	return nil
}

func TestARefusalWhoseBodyStaysOpenHoldsNoCallUp(t *testing.T) {
	const bound = 100 * time.Millisecond
	for length, wait := range map[int64]time.Duration{-1: bound, 10: bound, 1 << 20: 0} { // the longest is not even read
		bubble(t, flowtest.Config{}, func(w *world) {
			s, _ := w.loggedIn()
			body := endlessBody{make(chan struct{})}
			rt := &flow.Transport{Session: s, Base: roundTripper(func(r *http.Request) (*http.Response, error) {
				if strings.Contains(r.Header.Get("Authorization"), s.Current().Value().Reveal()) && w.as.Count(flowtest.Refresh) == 0 {
					return &http.Response{StatusCode: 401, ContentLength: length, Body: body}, nil
				}
				return &http.Response{StatusCode: 200, Body: http.NoBody}, nil
			})}
			ended := make(chan time.Duration, 1)
			began := time.Now()
			go func() {
				resp, err := rt.RoundTrip(request(w.T, http.MethodGet, "https://api.example", nil))
				if err != nil || resp.StatusCode != 200 {
					t.Error(err)
				}
				ended <- time.Since(began)
			}()
			w.sleep(time.Minute)
			synctest.Wait()
			select {
			case took := <-ended:
				if took != flow.Settling+wait {
					t.Errorf("it took %v", took)
				}
			default:
				t.Error("the call hangs")
				_ = body.Close()
				<-ended
			}
		})
	}
}
