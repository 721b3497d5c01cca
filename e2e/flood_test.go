//go:build unix

package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// viewers is how many open the status page's stream, as far as this machine gives files to one process.
func viewers(t *testing.T) int {
	t.Helper()
	needLinux(t)
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if limit.Cur < limit.Max {
		limit.Cur = limit.Max
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
			t.Fatal(err)
		}
	}
	n := int(min(limit.Cur, 1<<30)) - 1000 // for what else the test and Caddy hold
	n = min(n, crowd)
	if want := min(2000, crowd); n < want {
		t.Fatalf("a process may open %d files here, which is too few for a flood: raise the limit (ulimit -n)", limit.Cur)
	}
	t.Logf("%d viewers; a process may open %d files here", n, limit.Cur)
	return n
}

// latencies of calls, one after the other; each must be served.
func latencies(t *testing.T, url string, calls int) []time.Duration {
	t.Helper()
	c, took := client(t), make([]time.Duration, calls)
	for i := range took {
		began := time.Now()
		res := get(t, c, url, "")
		took[i] = time.Since(began)
		if res.status != http.StatusOK {
			t.Fatalf("call %d: %d %s", i, res.status, res.body)
		}
	}
	slices.Sort(took)
	return took
}

// TestViewersWhoNeverReadHoldUpNobody opens the stream of the status page thousands of times and reads none of them.
func TestViewersWhoNeverReadHoldUpNobody(t *testing.T) {
	n := viewers(t)
	as, _, c := startProxy(t, 4*time.Second) // so that there is news for the viewers, which stays unread
	const calls = 300
	quiet := latencies(t, c.url+"/", calls)
	before, resident := c.holds(t), memory(t, c, "VmRSS")

	conns := make([]net.Conn, n)
	var wg sync.WaitGroup
	began := time.Now()
	for lane := range 16 {
		wg.Go(func() {
			for i := lane; i < n; i += 16 {
				conn, err := net.Dial("tcp", "127.0.0.1:"+c.port)
				if err != nil {
					t.Error(err)
					return
				}
				conns[i] = conn
				if _, err := io.WriteString(conn, "GET /.device-flow/events HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	closeAll := func() {
		for _, conn := range conns {
			if conn != nil {
				_ = conn.Close()
			}
		}
	}
	t.Cleanup(closeAll)
	busy := callEvery(t, c.url+"/", 5*time.Millisecond) // while they come
	wg.Wait()
	busy.end()
	if t.Failed() {
		return
	}
	t.Logf("all there after %v; calls meanwhile: %d served, the slowest in %v", time.Since(began), busy.good, busy.slowest)
	for _, problem := range busy.bad {
		t.Errorf("while the viewers came: %s", problem)
	}
	refreshes := as.Stats().Refreshes
	loud := latencies(t, c.url+"/", calls)
	eventually(t, patience, "the login is renewed beside all that", func() bool { return as.Stats().Refreshes > refreshes })
	if got := c.status(t).State; got != "authorized" {
		t.Errorf("the state is %q", got)
	}
	during, residentDuring := c.holds(t), memory(t, c, "VmRSS")
	t.Logf("calls: p50 %v, p99 %v; with the viewers: p50 %v, p99 %v", quiet[calls/2], quiet[calls*99/100], loud[calls/2], loud[calls*99/100])
	t.Logf("before %+v and %d KiB resident, with the viewers %+v and %d KiB", before, resident, during, residentDuring)
	// A connection costs a stock Caddy as much: two buffers, a goroutine and what the runtime keeps beside. The race
	// detector keeps several times that.
	most := 64
	if raceEnabled {
		most = 400
	}
	if perViewer := (residentDuring - resident) / n; perViewer > most {
		t.Errorf("a viewer costs %d KiB", perViewer)
	}

	answers := map[string]int{}
	for _, conn := range conns {
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			answers[err.Error()]++
			continue
		}
		if res.StatusCode != http.StatusOK && res.Header.Get("Retry-After") == "" {
			t.Fatalf("a viewer too many is not told when to come back: %d", res.StatusCode)
		}
		answers[res.Status]++
	}
	t.Logf("answers: %v", answers)
	served, refused := answers["200 OK"], answers["503 Service Unavailable"]+answers["429 Too Many Requests"]
	if served == 0 || served > 1000 || served+refused != n {
		t.Errorf("the viewers were answered %v: want no more than 1000 streams, and 503 or 429 for all others", answers)
	}

	closeAll()
	eventually(t, patience, "an honest viewer gets a stream again", func() bool {
		res, err := client(t).Get(c.url + "/.device-flow/events")
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		return res.StatusCode == http.StatusOK
	})
	var after held
	eventually(t, patience, "what the viewers held is free again", func() bool {
		after = c.holds(t)
		return after.goroutines <= before.goroutines+20 && after.files <= before.files+20 && after.heap <= before.heap+8<<10
	})
	t.Logf("afterwards %+v", after)
}

// TestFloodWithoutALoginCostsOneCode sends calls as fast as they are answered to a proxy that nobody has logged in, in
// front of a server that gives codes and one that does not.
func TestFloodWithoutALoginCostsOneCode(t *testing.T) {
	flood := crowd * 2
	for name, tc := range map[string]struct {
		device []flowtest.Response // always, from the device authorization endpoint
		codes  int                 // most requests that it may get
	}{
		"ServerGivesACode": {nil, 1},
		// What the back-off lets through in the seconds that this takes.
		"ServerFails": {[]flowtest.Response{{Status: http.StatusServiceUnavailable}}, 6},
	} {
		t.Run(name, func(t *testing.T) {
			as := startAS(t, time.Hour, byHand)
			for _, r := range tc.device {
				as.ScriptAlways(flowtest.Device, r)
			}
			a := startAPI(t, as.ValidToken)
			c := startCaddy(t, site("device", "openid"), as.Issuer(), a.URL)
			resident := memory(t, c, "VmRSS")

			const lanes = 32
			transport := &http.Transport{MaxIdleConnsPerHost: lanes}
			t.Cleanup(transport.CloseIdleConnections)
			var (
				wg    sync.WaitGroup
				mu    sync.Mutex
				took  []time.Duration
				wrong = map[string]int{}
			)
			accepts := []string{"", "text/html", "application/json", "text/plain", "*/*"}
			for lane := range lanes {
				wg.Go(func() {
					mine := make([]time.Duration, 0, flood/lanes)
					for i := range flood / lanes {
						method, body := http.MethodGet, ""
						if i%4 == 0 {
							method, body = http.MethodPost, strings.Repeat("x", 1000)
						}
						r, err := http.NewRequest(method, fmt.Sprintf("%s/things/%d/%d?q=%d", c.url, lane, i, i), strings.NewReader(body))
						if err != nil {
							t.Error(err)
							return
						}
						r.Header.Set("Accept", accepts[i%len(accepts)])
						r.Host = fmt.Sprintf("host-%d", i)
						began := time.Now()
						res, err := transport.RoundTrip(r)
						what := fmt.Sprint(err)
						if err == nil {
							_, _ = io.Copy(io.Discard, res.Body)
							_ = res.Body.Close()
							what = res.Status
							if res.Header.Get("Retry-After") == "" {
								what += " without Retry-After"
							}
						}
						mine = append(mine, time.Since(began))
						if what != "503 Service Unavailable" {
							mu.Lock()
							wrong[what]++
							mu.Unlock()
						}
					}
					mu.Lock()
					defer mu.Unlock()
					took = append(took, mine...)
				})
			}
			began := time.Now()
			wg.Wait()
			whole := time.Since(began)
			slices.Sort(took)
			grown := memory(t, c, "VmRSS") - resident
			t.Logf("%d calls by %d callers in %v: p50 %v, p99 %v, most %v; %d requests for a code; the process has grown by %d KiB",
				len(took), lanes, whole.Round(time.Millisecond), took[len(took)/2], took[len(took)*99/100], took[len(took)-1],
				as.Count(flowtest.Device), grown)
			alone := make([]time.Duration, 500)
			for i := range alone {
				began := time.Now()
				if res := get(t, client(t), c.url+"/", accepts[i%len(accepts)]); res.status != http.StatusServiceUnavailable {
					t.Fatalf("a single call: %d", res.status)
				}
				alone[i] = time.Since(began)
			}
			slices.Sort(alone)
			t.Logf("a single caller, with a connection for each call: p50 %v, p99 %v", alone[len(alone)/2], alone[len(alone)*99/100])
			if len(wrong) > 0 {
				t.Errorf("answers other than 503: %v", wrong)
			}
			if n := as.Count(flowtest.Device); n == 0 || n > tc.codes {
				t.Errorf("the server was asked for %d codes, want 1 to %d", n, tc.codes)
			}
			if len(a.requests()) != 0 {
				t.Errorf("the API got %d requests without a token", len(a.requests()))
			}
			if grown > 64<<10 {
				t.Errorf("the process has grown by %d KiB", grown)
			}
		})
	}
}
