package e2e

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// plainCaddy is a Caddy without the race detector, which needs many times the memory.
var plainCaddy = sync.OnceValues(func() (string, error) {
	if !raceEnabled {
		return caddyBinary()
	}
	return build("caddy-plain", "./cmd/caddy")
})

// memory is a line of a Caddy's /proc/PID/status, in KiB: VmRSS is what it has in memory, VmHWM the most it has had.
func memory(t *testing.T, c *caddy, line string) int {
	t.Helper()
	needLinux(t)
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), line+":")
	kib, err := strconv.Atoi(strings.Fields(rest + " ?")[0])
	if err != nil {
		t.Fatal(err)
	}
	return kib
}

// forgetPeak makes VmHWM begin anew at what is VmRSS now; see proc(5).
func forgetPeak(t *testing.T, c *caddy) {
	t.Helper()
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", c.cmd.Process.Pid), []byte("5"), 0); err != nil {
		t.Fatal(err)
	}
}

// repeat writes a body that goes on with the same piece until so many bytes are out or nobody reads any more. The
// test itself never holds it.
func repeat(w http.ResponseWriter, head, piece string, size int64) {
	if _, err := io.WriteString(w, head); err != nil {
		return
	}
	block := []byte(strings.Repeat(piece, max(1, 32<<10/len(piece))))
	for sent := int64(len(head)); sent < size; sent += int64(len(block)) {
		if _, err := w.Write(block); err != nil {
			return
		}
	}
}

// endless answers with a beginning and then always the same, until the client leaves.
func endless(beginning, more string) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return // a client that has left
		}
		defer conn.Close()
		_, err = io.WriteString(conn, beginning)
		for err == nil {
			_, err = io.WriteString(conn, more)
		}
	}
}

// badAnswer is a way to answer. A slow one takes as long as it is let.
type badAnswer struct {
	name   string
	answer func(w http.ResponseWriter, r *http.Request)
	slow   bool
}

func badAnswers(t *testing.T) []badAnswer {
	// A gzip file may consist of several (RFC 1952 §2.2): 100 times 100 MB of blanks are 10 MB.
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	blanks := bytes.Repeat([]byte(" "), 1<<20)
	for range 100 {
		_, _ = z.Write(blanks) // a bytes.Buffer takes everything
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return []badAnswer{
		{name: "a gigabyte", answer: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(1<<30))
			repeat(w, `{"access_token":"`, "a", 1<<30)
		}},
		{name: "a gzip bomb", answer: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			for range 100 {
				if _, err := w.Write(bomb.Bytes()); err != nil {
					return
				}
			}
		}},
		{name: "endless chunks", answer: endless("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", strings.Repeat("9\r\n{\"error\":\r\n", 1000))},
		{name: "an endless header", answer: endless("HTTP/1.1 200 OK\r\n", "X-Header: "+strings.Repeat("a", 4096)+"\r\n")},
		{name: "as many members as fit", answer: func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{`)
			for n := range 90_000 { // of at most 11 bytes
				if _, err := fmt.Fprintf(w, `"%x":0,`, n); err != nil {
					return
				}
			}
			_, _ = io.WriteString(w, `"":0}`)
		}},
		{name: "as many values as fit", answer: func(w http.ResponseWriter, _ *http.Request) {
			repeat(w, `{"access_token":[[]`, ",[]", 1<<20-40<<10)
			_, _ = io.WriteString(w, "]}")
		}},
		{name: "a byte a second", slow: true, answer: func(w http.ResponseWriter, r *http.Request) {
			out := http.NewResponseController(w)
			ticker := time.NewTicker(time.Second)
			defer ticker.Stop()
			for {
				if _, err := io.WriteString(w, " "); err != nil || out.Flush() != nil {
					return
				}
				select {
				case <-ticker.C:
				case <-r.Context().Done():
					return
				}
			}
		}},
	}
}

// TestHostileAuthorizationServerCostsLittle has the authorization server answer with bodies that never end, at each of
// its endpoints: calls are served, the process stays small, and each exchange ends in time.
func TestHostileAuthorizationServerCostsLittle(t *testing.T) {
	two := make(chan struct{}, 2) // at once: each exchange has its limit, and more take the time from each other
	for _, x := range badAnswers(t) {
		t.Run(x.name, func(t *testing.T) {
			t.Parallel()
			two <- struct{}{}
			t.Cleanup(func() { <-two })
			hostileServer(t, x)
		})
	}
}

func hostileServer(t *testing.T, x badAnswer) {
	as := startAS(t, time.Hour)
	a := startAPI(t, as.ValidToken)
	session := func(name, scope string) string {
		return fmt.Sprintf("\tdevice_flow %s {\n\t\tissuer {$ISSUER}\n\t\tclient_id device\n\t\tscope offline_access %s\n\t}\n", name, scope)
	}
	c := newCaddy(t, "{\n"+session("main", "")+session("device", "one")+session("poll", "two")+session("discovery", "three")+"}\n"+`
http://:{$PORT} {
	bind 127.0.0.1
	device_flow {$API} {
		session main
	}
}
`, as.Issuer(), a.URL)
	var err error
	if c.binary, err = plainCaddy(); err != nil {
		t.Fatal(err)
	}
	c.start(t)
	hc := client(t)
	post := func(name, action string) (status int, problem string) {
		res, err := hc.Post(c.admin+"/device_flow/sessions/"+name+"/"+action, "", nil)
		if err != nil {
			return 0, err.Error()
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		return res.StatusCode, fmt.Sprint(res.Status, " ", string(body), " ", err)
	}
	c.login(t)
	if got, problem := post("device", "login"); got != 200 {
		t.Fatalf("a login at a good server: %s", problem)
	}
	calls := callEvery(t, c.url+"/", 20*time.Millisecond)
	eventually(t, patience, "a second login, and 100 calls for Caddy to get warm", func() bool {
		calls.mu.Lock()
		defer calls.mu.Unlock()
		return calls.good > 100 && c.sessions(t)["device"].State == "authorized"
	})
	as.ScriptAlways(flowtest.Poll, flowtest.Response{Func: x.answer})
	if got, problem := post("poll", "login"); got != 200 {
		t.Fatalf("a login whose polls are answered badly: %s", problem)
	}
	rss := memory(t, c, "VmRSS")
	forgetPeak(t, c)

	type request struct {
		session, action string
		limit           time.Duration // the time-out of the exchange
		step            flowtest.Step
		seen            int // requests until the last answer: a retry can be under way already, which the next order joins
	}
	all := []*request{
		{session: "device", action: "login", limit: 30 * time.Second, step: flowtest.Device},
		{session: "discovery", action: "login", limit: 30 * time.Second, step: flowtest.Discovery},
		{session: "main", action: "refresh", limit: time.Minute, step: flowtest.Refresh},
	}
	if x.slow && !long {
		all = all[:2] // flow's own tests know that a minute is a minute
	}
	var answering atomic.Int32
	hostile := flowtest.Response{Func: func(w http.ResponseWriter, r *http.Request) {
		answering.Add(1)
		defer answering.Add(-1)
		x.answer(w, r)
	}}
	for _, r := range all {
		as.ScriptAlways(r.step, hostile)
		r.seen = as.Count(r.step)
	}
	try := func(r *request) {
		began := time.Now()
		got, problem := post(r.session, r.action)
		if took := time.Since(began); took > r.limit+3*time.Second {
			t.Errorf("%s: it took %v", r.step, took)
		}
		if got != http.StatusConflict {
			t.Errorf("%s: %s", r.step, problem)
		}
		seen := r.seen
		if r.seen = as.Count(r.step); r.seen == seen {
			t.Errorf("%s: the server was not asked", r.step)
		}
	}
	if x.slow {
		var wg sync.WaitGroup
		for _, r := range all {
			wg.Go(func() { try(r) })
		}
		wg.Wait()
	} else {
		for n := range 5 * len(all) { // one after the other: the bound is for one exchange
			try(all[n%len(all)])
			// Caddy has turned away; to a strict server, a second request before it sees that is one at the same time.
			every(t, time.Millisecond, patience, "the server has noticed", func() bool { return answering.Load() == 0 })
		}
	}
	polls := as.Count(flowtest.Poll)
	eventually(t, 80*time.Second, "the poll ends and there is another", func() bool { return as.Count(flowtest.Poll) > polls || polls > 1 })
	calls.requireGood(t, "meanwhile")
	grown := memory(t, c, "VmHWM") - rss
	t.Logf("%d MiB and %d MiB more at most; %d calls, the slowest took %v", rss>>10, grown>>10, calls.good, calls.slowest.Round(time.Millisecond))
	if grown >= 32<<10 {
		t.Errorf("the process has grown by %d MiB", grown>>10)
	}

	for _, step := range []flowtest.Step{flowtest.Device, flowtest.Discovery, flowtest.Refresh, flowtest.Poll} {
		as.Unscript(step)
	}
	for _, r := range all {
		if got, problem := post(r.session, r.action); got != 200 {
			t.Errorf("when the server is good again: %s: %s", r.step, problem)
		}
	}
	eventually(t, patience, "no exchange is left over", func() bool {
		stacks := c.ask(t, http.MethodGet, "/debug/pprof/goroutine?debug=2").body
		stacks = strings.ReplaceAll(stacks, "created by github.com/deviceflow/caddy-deviceflow/flow.(*clock).join", "") // it runs as long as there are sessions
		return strings.Contains(stacks, "flow.(*Session).Run") && !strings.Contains(stacks, "created by github.com/deviceflow/caddy-deviceflow/flow.")
	})
}
