package e2e

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// crowd is how many calls come at one instant. With the race detector, Caddy takes so long over ten thousand that its
// time-outs to the upstream end some of them.
var crowd = 10_000

func init() {
	if raceEnabled {
		crowd = 1_000
	}
}

// crowdConfig speaks HTTP/2 without TLS, so that the crowd needs few connections on this side.
const crowdConfig = `{
	admin {$CADDY_ADMIN}
	servers {
		protocols h1 h2c
	}
}
http://:{$PORT} {
	bind 127.0.0.1
	device_flow {$API} {
		issuer {$ISSUER}
		client_id device
		scope openid
		login eager
	}
}
`

// rush has a crowd call at one instant. It returns how long each call took, in order, and how many got which answer.
func rush(t *testing.T, url string) (took []time.Duration, got map[string]int) {
	t.Helper()
	transport := &http.Transport{Protocols: new(http.Protocols), MaxConnsPerHost: 100}
	transport.Protocols.SetUnencryptedHTTP2(true)
	defer transport.CloseIdleConnections()
	var (
		wg sync.WaitGroup
		mu sync.Mutex
	)
	got = map[string]int{}
	start := make(chan struct{})
	for range crowd {
		wg.Go(func() {
			<-start
			began := time.Now()
			request, err := http.NewRequest(http.MethodGet, url, nil)
			if err != nil {
				t.Error(err)
				return
			}
			r, err := transport.RoundTrip(request)
			what := fmt.Sprint(err)
			if err == nil {
				_, _ = io.Copy(io.Discard, r.Body)
				r.Body.Close()
				what = r.Status
				if r.StatusCode == http.StatusServiceUnavailable && r.Header.Get("Retry-After") == "" {
					what += " without Retry-After"
				}
			}
			mu.Lock()
			defer mu.Unlock()
			took = append(took, time.Since(began))
			got[what]++
		})
	}
	close(start)
	wg.Wait()
	slices.Sort(took)
	return took, got
}

// TestCrowdAtTheInstantOfExpiryCostsOneRefresh lets a token lapse while the authorization server is down, brings the
// server back, slow, and has everybody call at once.
func TestCrowdAtTheInstantOfExpiryCostsOneRefresh(t *testing.T) {
	as := startAS(t, 4*time.Second)
	a := startAPI(t, as.ValidToken)
	c := startCaddy(t, crowdConfig, as.Issuer(), a.URL)
	hc := client(t)
	status := func() int { return get(t, hc, c.url+"/", "").status }
	eventually(t, patience, "the login is there", func() bool { return status() == http.StatusOK })

	const latency = time.Second
	as.ScriptAlways(flowtest.Refresh, flowtest.Response{Status: http.StatusServiceUnavailable})
	eventually(t, patience, "the token has lapsed", func() bool { return status() == http.StatusServiceUnavailable })
	before := as.Stats().Refreshes
	as.SetConfig(func(cfg *flowtest.Config) { cfg.AccessTokenLifetime = time.Hour })
	attempts := as.Count(flowtest.Refresh)
	as.Unscript(flowtest.Refresh)
	as.Script(flowtest.Refresh, flowtest.Response{Pass: true, Delay: latency})
	eventually(t, patience, "the refresh is under way", func() bool { return as.Count(flowtest.Refresh) > attempts })

	took, got := rush(t, c.url+"/")
	t.Logf("%d calls: median %v, p99 %v, most %v; the server took %v", crowd, took[crowd/2], took[crowd*99/100], took[crowd-1], latency)
	if got["200 OK"] != crowd {
		t.Errorf("the answers are %v, want 200 for all", got)
	}
	if n := as.Stats().Refreshes - before; n != 1 {
		t.Errorf("%d refreshes, want 1", n)
	}
}

// TestCrowdDuringAnOutageCostsNoMoreThanNobody has everybody call, twice, while a token has lapsed and each refresh
// fails: the attempts keep their pauses, and nobody waits for a refresh that is not under way.
func TestCrowdDuringAnOutageCostsNoMoreThanNobody(t *testing.T) {
	as := startAS(t, 3*time.Second)
	a := startAPI(t, as.ValidToken)
	c := startCaddy(t, crowdConfig, as.Issuer(), a.URL)
	hc := client(t)
	status := func() int { return get(t, hc, c.url+"/", "").status }
	eventually(t, patience, "the login is there", func() bool { return status() == http.StatusOK })
	as.ScriptAlways(flowtest.Refresh, flowtest.Response{Status: http.StatusServiceUnavailable})
	eventually(t, patience, "the token has lapsed", func() bool { return status() == http.StatusServiceUnavailable })

	calls := len(a.requests())
	for range 2 {
		took, got := rush(t, c.url+"/")
		t.Logf("%d calls: median %v, p99 %v, most %v", crowd, took[crowd/2], took[crowd*99/100], took[crowd-1])
		if got["503 Service Unavailable"] != crowd {
			t.Errorf("the answers are %v, want 503 for all", got)
		}
		if most := took[crowd-1]; most >= 5*time.Second {
			t.Errorf("somebody waited %v for a 503", most)
		}
	}
	if got := len(a.requests()) - calls; got != 0 {
		t.Errorf("the API was contacted %d times", got)
	}
	var pauses []time.Duration
	var last time.Time
	for _, r := range as.Requests() {
		if r.Step == flowtest.Refresh {
			if !last.IsZero() {
				pauses = append(pauses, r.Time.Sub(last).Round(time.Millisecond))
			}
			last = r.Time
		}
	}
	t.Logf("pauses between the refreshes: %v", pauses)
	// The first pause is a 20th of the lifetime, and each is twice the one before, less a tenth at most.
	for n, pause := range pauses {
		if least := 150 * time.Millisecond << n * 9 / 10; pause < min(least, 900*time.Millisecond) {
			t.Errorf("pause %d is %v, want %v at least", n+1, pause, least)
		}
	}
	if len(pauses) == 0 {
		t.Error("there was one attempt only")
	}

	as.Unscript(flowtest.Refresh)
	as.SetConfig(func(cfg *flowtest.Config) { cfg.AccessTokenLifetime = time.Hour })
	c.login(t)
	if got := as.Stats(); got.DeviceRequests != 1 || got.Reuses != 0 {
		t.Errorf("%d codes and %d reuses, want 1 and 0", got.DeviceRequests, got.Reuses)
	}
}
