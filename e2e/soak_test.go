package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"
)

// held is what a process holds.
type held struct{ goroutines, files, heap int }

// holds measures a Caddy by its admin API, after a garbage collection; the heap is in KiB.
func (c *caddy) holds(t *testing.T) held {
	t.Helper()
	needLinux(t)
	var h held
	heap := c.ask(t, http.MethodGet, "/debug/pprof/heap?debug=1&gc=1").body
	if _, rest, ok := strings.Cut(heap, "# HeapAlloc = "); !ok {
		t.Fatal("the heap profile does not say HeapAlloc")
	} else if _, err := fmt.Sscan(rest, &h.heap); err != nil {
		t.Fatal(err)
	}
	h.heap >>= 10
	text := c.ask(t, http.MethodGet, "/debug/pprof/goroutine?debug=1").body
	if _, err := fmt.Sscanf(text, "goroutine profile: total %d", &h.goroutines); err != nil {
		t.Fatalf("%v\n%.200s", err, text)
	}
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", c.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	h.files = len(files)
	return h
}

// load reloads a Caddy through its admin API, even if nothing has changed.
func (c *caddy) load(t *testing.T, caddyfile string) {
	t.Helper()
	r, err := http.NewRequest(http.MethodPost, c.admin+"/load", strings.NewReader(caddyfile))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "text/caddyfile")
	r.Header.Set("Cache-Control", "must-revalidate")
	if res := do(t, client(t), r); res.status != http.StatusOK {
		t.Fatalf("reload: %d %s", res.status, res.body)
	}
}

// listener reads an event stream and opens it anew when it ends, as a browser does.
type listener struct{ quit, ended chan struct{} }

func listenTo(t *testing.T, url string) *listener {
	t.Helper()
	l := &listener{make(chan struct{}), make(chan struct{})}
	c := client(t)
	c.Timeout = 0
	go func() {
		defer close(l.ended)
		for {
			if res, err := c.Get(url); err == nil {
				over := make(chan struct{})
				go func() {
					defer close(over)
					lines := bufio.NewScanner(res.Body)
					for lines.Scan() {
					}
				}()
				select {
				case <-over:
				case <-l.quit:
				}
				_ = res.Body.Close()
				<-over
			}
			select {
			case <-l.quit:
				c.CloseIdleConnections()
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	t.Cleanup(l.end)
	return l
}

// end closes the stream. It may be called again.
func (l *listener) end() {
	select {
	case <-l.quit:
	default:
		close(l.quit)
	}
	<-l.ended
}

// TestReloadsLeaveNothingBehind reloads a Caddy again and again under traffic, with a browser on the status page, and
// beside it a stock one with a stream of its own. Afterwards both hold as little.
func TestReloadsLeaveNothingBehind(t *testing.T) {
	reloads := sample(60, 1000)
	as := startAS(t, 5*time.Second)
	a := startAPI(t, as.ValidToken)
	open := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/events" {
			events(w, r)
			return
		}
		_, _ = io.WriteString(w, "hello")
	}))
	t.Cleanup(open.Close)
	t.Cleanup(open.CloseClientConnections)

	ourConfig := site("device", "offline_access")
	stockConfig := "http://:{$PORT} {\n\tbind 127.0.0.1\n\treverse_proxy {$API}\n}\n"
	ours, stock := startCaddy(t, ourConfig, as.Issuer(), a.URL), startCaddy(t, stockConfig, as.Issuer(), open.URL)
	ours.login(t)
	stock.login(t)
	round := func(n int) {
		for i := range n {
			<-time.After(20 * time.Millisecond) // for calls and streams to be there
			ours.load(t, fmt.Sprintf("%s# %d\n", ourConfig, i))
			stock.load(t, fmt.Sprintf("%s# %d\n", stockConfig, i))
		}
	}
	round(3) // what is made once, is made by now
	first, firstStock := ours.holds(t), stock.holds(t)

	page, stream := listenTo(t, ours.url+"/.device-flow/events"), listenTo(t, stock.url+"/events")
	calls, stockCalls := callEvery(t, ours.url+"/", 20*time.Millisecond), callEvery(t, stock.url+"/", 20*time.Millisecond)
	began := time.Now()
	round(reloads)
	took := time.Since(began)
	calls.end()
	stockCalls.end()
	// Caddy itself drops a new connection now and then when it reloads; answers are ours.
	dropped := 0
	for _, problem := range calls.bad {
		if strings.Contains(problem, "Retry-After=") {
			t.Errorf("a call was refused: %s", problem)
		} else {
			dropped++
		}
	}
	if calls.good < reloads/2 {
		t.Errorf("only %d calls were served", calls.good)
	}
	page.end()
	stream.end()

	// Ours returns to what a stock Caddy held before. Connections that are kept for reuse go after 2 minutes at the latest.
	var last, lastStock held
	const slack = 12 // the session's owner, its connection to the authorization server and the like
	every(t, time.Second, 135*time.Second, "goroutines and open files are as few as a stock Caddy's", func() bool {
		last, lastStock = ours.holds(t), stock.holds(t)
		return last.goroutines <= firstStock.goroutines+slack && last.files <= firstStock.files+slack
	})
	if long {
		<-time.After(135 * time.Second)
		last, lastStock = ours.holds(t), stock.holds(t)
		if last.goroutines > lastStock.goroutines+slack || last.files > lastStock.files+slack {
			t.Errorf("at rest ours holds %+v, a stock Caddy %+v", last, lastStock)
		}
	}
	t.Logf("%d reloads each in %v; calls served: %d and %d; connections dropped: %d and %d",
		reloads, took.Round(time.Millisecond), calls.good, stockCalls.good, dropped, len(stockCalls.bad))
	t.Logf("ours:  before %+v, after %+v", first, last)
	t.Logf("stock: before %+v, after %+v", firstStock, lastStock)
	if grown, grownStock := last.heap-first.heap, lastStock.heap-firstStock.heap; grown > grownStock+8<<10 {
		t.Errorf("the heap has grown by %d KiB, a stock Caddy's by %d", grown, grownStock)
	}
	if got := as.Stats(); got.DeviceRequests != 1 || got.Reuses != 0 {
		t.Errorf("%d codes and %d reuses, want 1 and 0", got.DeviceRequests, got.Reuses)
	}
}
