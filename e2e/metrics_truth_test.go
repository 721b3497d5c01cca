package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
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

// storyLane is one session of the random story, with a server of its own, so that each count has one cause.
type storyLane struct {
	t       *testing.T
	random  *rand.Rand
	name    string
	as      *flowtest.Server
	c       *caddy
	hc      *http.Client
	url     string
	reload  func()
	replies map[int]int // what callers got, by status
	refused int         // by the guard
	denied  int
	expired int
	story   []string
}

// ask sends a request to the admin API about this session.
func (l *storyLane) ask(method, verb string) (int, status) {
	r, err := http.NewRequest(method, l.c.admin+"/device_flow/sessions/"+l.name+verb, nil)
	if err != nil {
		l.t.Error(err)
		return 0, status{}
	}
	res, err := l.hc.Do(r)
	if err != nil {
		l.t.Errorf("%s%s: %v", l.name, verb, err)
		return 0, status{}
	}
	defer res.Body.Close()
	var s status
	_ = json.NewDecoder(res.Body).Decode(&s) // a refusal is no status
	return res.StatusCode, s
}

// call is a request of a device, or of somebody else with any Host, path and method.
func (l *storyLane) call(stray bool) {
	path, host, method := "/", "", http.MethodGet
	if stray {
		word := "random-" + strconv.FormatUint(l.random.Uint64(), 36)
		path, method = "/"+word+"?"+word+"="+word, []string{"GET", "POST", "PURGE", word}[l.random.IntN(4)]
		host = word + []string{".example", ".localhost", ""}[l.random.IntN(3)]
	}
	r, err := http.NewRequest(method, l.url+path, nil)
	if err != nil {
		l.t.Error(err)
		return
	}
	r.Host = host
	res, err := l.hc.Do(r)
	if err != nil {
		l.t.Errorf("%s: a call: %v", l.name, err)
		return
	}
	_ = res.Body.Close()
	if res.StatusCode == http.StatusForbidden || res.StatusCode == http.StatusMethodNotAllowed {
		l.refused++
		return
	}
	l.replies[res.StatusCode]++
}

// login asks for a code and has it approved, denied or run out.
func (l *storyLane) login() {
	_, s := l.ask(http.MethodPost, "/login")
	if s.Login == nil {
		return // the server gave none: an earlier script waited for it
	}
	code, kind := s.Login.UserCode, l.random.IntN(8)
	l.story = append(l.story, "code "+strconv.Itoa(kind))
	var err error
	switch kind {
	case 0:
		err = l.as.Deny(code)
		l.denied++
	case 1:
		err = l.as.Expire(code)
		l.expired++
	default:
		err = l.as.Approve(code)
	}
	if err != nil {
		l.t.Errorf("%s: %v", l.name, err)
	}
	for limit := time.Now().Add(20 * time.Second); ; {
		if _, s = l.ask(http.MethodGet, ""); s.Login == nil {
			return
		}
		if time.Now().After(limit) {
			l.t.Errorf("%s: the login does not end", l.name)
			return
		}
		<-time.After(100 * time.Millisecond)
	}
}

// logout ends the login, when no refresh is under way: one whose login has ended meanwhile counts nowhere, for nothing
// came of it. An asked-for refresh waits for the one that is under way, and the next is a second off.
func (l *storyLane) logout() {
	_, _ = l.ask(http.MethodPost, "/refresh")
	_, _ = l.ask(http.MethodPost, "/logout")
}

// step is one random operation.
func (l *storyLane) step() {
	_, s := l.ask(http.MethodGet, "")
	ended := s.Token == nil || s.Error != nil && s.Error.Action == "reauthorize" // no refresh comes between
	n := l.random.IntN(100)
	l.story = append(l.story, s.State+" "+strconv.Itoa(n))
	switch {
	case n < 12 && ended:
		l.login()
	case n < 15 && ended && s.State != "pending":
		l.as.Script(flowtest.Device, []flowtest.Response{
			flowtest.ErrorResponse(http.StatusServiceUnavailable, "temporarily_unavailable"), {Drop: true},
			flowtest.ErrorResponse(http.StatusUnauthorized, "invalid_client"),
		}[l.random.IntN(3)])
		_, _ = l.ask(http.MethodPost, "/login")
	case n < 40:
		_, _ = l.ask(http.MethodPost, "/refresh")
	case n < 50 && s.State == "authorized":
		l.as.Script(flowtest.Refresh, []flowtest.Response{
			flowtest.ErrorResponse(http.StatusServiceUnavailable, "temporarily_unavailable"), {Drop: true},
			flowtest.ErrorResponse(http.StatusUnprocessableEntity, "invalid_request"),
			flowtest.ErrorResponse(http.StatusUnauthorized, "invalid_client"),
		}[l.random.IntN(4)])
		_, _ = l.ask(http.MethodPost, "/refresh")
	case n < 53:
		l.as.RevokeAll()
		_, _ = l.ask(http.MethodPost, "/refresh")
	case n < 56:
		l.logout()
	case n < 58:
		l.reload()
	case n < 64:
		l.as.ExpireAccessTokens() // the API says 401, as it may at any time
		l.call(false)
	case n < 80:
		l.call(true)
	default:
		l.call(false)
	}
}

// truths compares what the metrics say of the session with what its servers and callers have seen.
func (l *storyLane) truths(s scraped) (total int) {
	t := l.t
	want := map[string]int{
		"logins_total success": l.as.Stats().Logins, "logins_total denied": l.denied, "logins_total expired": l.expired,
		"logins_total adopted": 0, "refreshes_total success": l.as.Stats().Refreshes,
		"requests_total refused": l.refused, "requests_total no_token": l.replies[http.StatusServiceUnavailable],
		"requests_total served": l.replies[http.StatusOK], "requests_total unauthorized": l.replies[http.StatusUnauthorized],
		"requests_total canceled": 0, "requests_total failed": 0,
	}
	for _, r := range l.as.Requests() {
		outcome := map[int]string{0: "temporary", 503: "temporary", 401: "configuration", 422: "doubtful", 400: "reauthorize"}[r.Status]
		switch {
		case r.Status == http.StatusOK:
		case r.Step == flowtest.Device:
			want["logins_total "+outcome]++
		case r.Step == flowtest.Refresh:
			want["refreshes_total "+outcome]++
		}
	}
	rejected := 0
	for _, r := range l.as.APIRequests() {
		if r.Status == http.StatusUnauthorized {
			rejected++
		}
	}
	for what, n := range want {
		metric, outcome, _ := strings.Cut(what, " ")
		if got := s.of(t, metric, l.name, outcome); got != n {
			t.Errorf("%s: %s %s is %d, want %d", l.name, metric, outcome, got, n)
		}
		total += n
	}
	if got, n := s.sum("refreshes_total", l.name), l.as.Count(flowtest.Refresh); got != n {
		t.Errorf("%s: %d refreshes are counted, the server saw %d", l.name, got, n)
	}
	replays := s.sum("replays_total", l.name)
	if got, n := replays+l.replies[200]+l.replies[401], l.as.Count(flowtest.API); got != n {
		t.Errorf("%s: %d calls and replays are counted, the API saw %d", l.name, got, n)
	}
	if got := replays + l.replies[401]; got != rejected {
		t.Errorf("%s: %d replays and %d refusals, the API refused %d times", l.name, replays, l.replies[401], rejected)
	}
	for code := range l.replies {
		if code != 200 && code != 401 && code != 503 {
			t.Errorf("%s: %d callers got %d", l.name, l.replies[code], code)
		}
	}
	return total
}

// TestMetricsAreWhatTheServersSawAfterAThousandOperations does what people, devices, strangers, servers and operators
// do, in random order, to sixteen sessions of a real Caddy that is reloaded meanwhile, and looks at /metrics afterwards.
// DEVICEFLOW_SEED repeats a story.
func TestMetricsAreWhatTheServersSawAfterAThousandOperations(t *testing.T) {
	parallel(t)
	const lanes = 16
	operations := sample(1000, 10_000)
	seed := rand.Uint64()
	if text := os.Getenv("DEVICEFLOW_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("DEVICEFLOW_SEED=%d", seed)

	var operated atomic.Int64
	var all []*storyLane
	global, sites := "", ""
	for n := range lanes {
		as := startAS(t, time.Hour, byHand)
		api, err := as.StartAPI()
		if err != nil {
			t.Fatal(err)
		}
		name, port := fmt.Sprintf("s%d", n), freePort(t)
		global += fmt.Sprintf("\tdevice_flow %s {\n\t\tissuer %s\n\t\tclient_id device\n\t\tscope offline_access\n\t}\n", name, as.Issuer())
		sites += fmt.Sprintf("http://:%s {\n\tbind 127.0.0.1\n\tdevice_flow %s {\n\t\tsession %s\n\t}\n}\n", port, api, name)
		all = append(all, &storyLane{
			t: t, random: rand.New(rand.NewPCG(seed, uint64(n))), name: name, as: as, hc: client(t),
			url: "http://127.0.0.1:" + port, replies: map[int]int{},
		})
	}
	config := "{\n" + global + "}\nhttp://:{$PORT} {\n\tbind 127.0.0.1\n\tmetrics /metrics\n}\n" + sites
	c := startCaddy(t, config, "", "")
	var oneAtATime sync.RWMutex // Caddy drops a new connection now and then when it reloads; that is not what is counted
	reloads := 0
	before := scrape(t, c.url+"/metrics")

	began := time.Now()
	var done sync.WaitGroup
	for _, l := range all {
		l.c = c
		l.reload = func() {
			oneAtATime.RUnlock()
			defer oneAtATime.RLock()
			oneAtATime.Lock()
			defer oneAtATime.Unlock()
			reloads++
			c.load(t, fmt.Sprintf("%s# %d\n", config, reloads))
			for _, l := range all {
				l.hc.CloseIdleConnections()
			}
		}
		done.Go(func() {
			for operated.Add(1) <= int64(operations) {
				oneAtATime.RLock()
				l.step()
				oneAtATime.RUnlock()
			}
		})
	}
	done.Wait()
	took := time.Since(began)
	for _, l := range all {
		l.logout() // whatever goes on by itself ends
	}

	after := scrape(t, c.url+"/metrics")
	compared := 0
	for _, l := range all {
		compared += l.truths(after)
	}
	for _, l := range all {
		if t.Failed() {
			t.Logf("%s: %s", l.name, strings.Join(l.story, ", "))
		}
	}
	if len(after.series) != len(before.series) || strings.Contains(after.text, "random-") {
		t.Errorf("%d series before, %d after", len(before.series), len(after.series))
	}
	var logins, refreshes, attempts, replays int
	for _, l := range all {
		logins += l.as.Stats().Logins
		refreshes += l.as.Stats().Refreshes
		attempts += l.as.Count(flowtest.Refresh)
		replays += after.sum("replays_total", l.name)
	}
	if n := int(after.series["caddy_device_flow_refresh_duration_seconds_count"]); n != attempts {
		t.Errorf("%d durations of %d attempts to refresh", n, attempts)
	}
	t.Logf("%d operations and %d reloads in %v; %d events compared; %d logins, %d refreshes of %d attempts, %d replays; %d series",
		operations, reloads, took.Round(time.Millisecond), compared, logins, refreshes, attempts, replays, len(after.series))
	if logins == 0 || refreshes == attempts || replays == 0 || reloads == 0 {
		t.Error("the story is too dull to tell anything")
	}
}
