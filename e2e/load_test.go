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

// TestCrowdAtTheInstantOfExpiryCostsOneRefresh lets a token lapse while the authorization server is down, brings the
// server back, slow, and has everybody call at once.
func TestCrowdAtTheInstantOfExpiryCostsOneRefresh(t *testing.T) {
	as := startAS(t, 4*time.Second)
	a := startAPI(t, as.ValidToken)
	// HTTP/2 without TLS, so that the crowd needs few connections on this side.
	c := startCaddy(t, `{
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
`, as.Issuer(), a.URL)
	hc := client(t)
	status := func() int { return get(t, hc, c.url+"/", "").status }
	eventually(t, 20*time.Second, "the login is there", func() bool { return status() == http.StatusOK })

	const latency = time.Second
	as.ScriptAlways(flowtest.Refresh, flowtest.Response{Status: http.StatusServiceUnavailable})
	eventually(t, 20*time.Second, "the token has lapsed", func() bool { return status() == http.StatusServiceUnavailable })
	before := as.Stats().Refreshes
	as.SetConfig(func(cfg *flowtest.Config) { cfg.AccessTokenLifetime = time.Hour })
	attempts := as.Count(flowtest.Refresh)
	as.Unscript(flowtest.Refresh)
	as.Script(flowtest.Refresh, flowtest.Response{Pass: true, Delay: latency})
	eventually(t, 20*time.Second, "the refresh is under way", func() bool { return as.Count(flowtest.Refresh) > attempts })

	transport := &http.Transport{Protocols: new(http.Protocols), MaxConnsPerHost: 100}
	transport.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(transport.CloseIdleConnections)

	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		took  []time.Duration
		wrong = map[string]int{}
	)
	start := make(chan struct{})
	for range crowd {
		wg.Go(func() {
			<-start
			begin := time.Now()
			request, err := http.NewRequest(http.MethodGet, c.url+"/", nil)
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
			}
			mu.Lock()
			defer mu.Unlock()
			took = append(took, time.Since(begin))
			if what != "200 OK" {
				wrong[what]++
			}
		})
	}
	close(start)
	wg.Wait()
	slices.Sort(took)
	t.Logf("%d calls: median %v, p99 %v, most %v; the server took %v", crowd, took[crowd/2], took[crowd*99/100], took[crowd-1], latency)
	if len(wrong) > 0 {
		t.Errorf("not served: %v", wrong)
	}
	if n := as.Stats().Refreshes - before; n != 1 {
		t.Errorf("%d refreshes, want 1", n)
	}
}
