package e2e

import (
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// down makes the authorization server close every connection without an answer; up ends that.
func down(as *flowtest.Server) {
	for _, step := range []flowtest.Step{flowtest.Discovery, flowtest.Device, flowtest.Token, flowtest.UserInfo} {
		as.ScriptAlways(step, flowtest.Response{Drop: true})
	}
}

func up(as *flowtest.Server) {
	for _, step := range []flowtest.Step{flowtest.Discovery, flowtest.Device, flowtest.Token, flowtest.UserInfo} {
		as.Unscript(step)
	}
}

// awaitRefresh waits for the end of the next refresh.
func awaitRefresh(t *testing.T, as *flowtest.Server, limit time.Duration) {
	t.Helper()
	seen := as.Stats().Refreshes
	every(t, 10*time.Millisecond, limit, "a refresh", func() bool { return as.Stats().Refreshes > seen })
}

// TestServerDownForHalfALifetimeIsNotNoticed has the authorization server away from the middle of a token's life
// until shortly before its end, when a refresh has been due and has failed. Not in parallel: between that and the end
// are two seconds.
func TestServerDownForHalfALifetimeIsNotNoticed(t *testing.T) {
	const lifetime = 12 * time.Second
	as, _, c := startProxy(t, lifetime)
	calls := callEvery(t, c.url+"/", 50*time.Millisecond)
	for range sample(2, 20) {
		awaitRefresh(t, as, 2*lifetime)
		<-time.After(lifetime / 2)
		down(as)
		<-time.After(lifetime*13/16 - lifetime/2)
		every(t, 20*time.Millisecond, lifetime*2/16, "with a refresh overdue the state is degraded", func() bool {
			return c.status(t).State == "degraded"
		})
		up(as)
	}
	awaitRefresh(t, as, lifetime)
	calls.requireGood(t, "while the authorization server is away")
	if got := as.Stats().DeviceRequests; got != 1 {
		t.Errorf("%d codes, want 1", got)
	}
}

// TestServerDownPastExpiryIsAGapWithAnEnd has the server away until the token has lapsed. Callers are told when to
// come again, and whoever comes then is served.
func TestServerDownPastExpiryIsAGapWithAnEnd(t *testing.T) {
	parallel(t)
	const lifetime = 3 * time.Second
	as, _, c := startProxy(t, lifetime)
	awaitRefresh(t, as, 2*lifetime)
	down(as)
	eventually(t, 2*lifetime, "the token has lapsed", func() bool { return get(t, client(t), c.url+"/", "").status == 503 })
	gap := time.Duration(sample(8, 120)) * time.Second
	refused := func() int {
		t.Helper()
		res := get(t, client(t), c.url+"/", "application/json")
		seconds, err := strconv.Atoi(res.header.Get("Retry-After"))
		if res.status == 200 {
			return 0
		}
		if res.status != 503 || err != nil || seconds < 1 || seconds > 60 {
			t.Fatalf("in the gap: %d, Retry-After %q\n%s", res.status, res.header.Get("Retry-After"), res.body)
		}
		return seconds
	}
	type promise struct {
		made    time.Time
		seconds int
	}
	var promises []promise
	for end := time.Now().Add(gap); time.Now().Before(end); <-time.After(100 * time.Millisecond) {
		p := promise{time.Now(), refused()}
		if p.seconds == 0 {
			t.Fatal("in the gap a call is served")
		}
		promises = append(promises, p)
	}
	if got := c.status(t); got.State != "unavailable" || got.Error == nil || got.Error.Action != "retry" {
		t.Errorf("in the gap the status is %+v", got)
	}
	up(as)
	began := time.Now()
	promised := refused()
	c.login(t)
	took := time.Since(began)
	t.Logf("%v after the server's return calls are served; they were told to come in %d s", took.Round(time.Millisecond), promised)
	if took > time.Duration(promised+1)*time.Second { // told in whole seconds
		t.Errorf("calls are served %v after the server's return, and were told to come in %d s", took, promised)
	}
	requests := as.Requests()
	for _, p := range promises {
		due := p.made.Add(time.Duration(p.seconds+1) * time.Second)
		if !slices.ContainsFunc(requests, func(r flowtest.Request) bool {
			return r.Step == flowtest.Refresh && r.Time.After(p.made) && r.Time.Before(due)
		}) {
			t.Errorf("a caller was told to come in %d s, and by then nothing had been tried again", p.seconds)
		}
	}
	if got := as.Stats(); got.DeviceRequests != 1 || got.Reuses != 0 {
		t.Errorf("%d codes and %d reuses, want 1 and 0: the refresh token was good all the time", got.DeviceRequests, got.Reuses)
	}
}

// TestTerminationWaitsForTheRefreshUnderWay ends Caddy, with a browser on the status page and no grace_period, while
// a slow server is answering: the answer may hold the only good refresh token.
func TestTerminationWaitsForTheRefreshUnderWay(t *testing.T) {
	parallel(t)
	const lifetime = 4 * time.Second
	as := startAS(t, lifetime)
	issued := watchIssued(as)
	a := startAPI(t, as.ValidToken)
	c := newCaddy(t, onShared(site("device", "offline_access")), as.Issuer(), a.URL)
	folder := share(t, c)
	c.start(t)
	c.login(t)
	page := c.watch(t)

	as.Script(flowtest.Refresh, flowtest.Response{Pass: true, Delay: 2 * time.Second, Edit: issued.note})
	seen := as.Count(flowtest.Refresh)
	eventually(t, 2*lifetime, "a refresh is under way", func() bool { return as.Count(flowtest.Refresh) > seen })
	began := time.Now()
	c.stop(t, syscall.SIGTERM)
	if took := time.Since(began); took > 5*time.Second || took < time.Second {
		t.Errorf("Caddy took %v to end, want about 2 s, for the refresh", took)
	}
	page.requireEnd(t)
	text := listing(t, folder)
	if strings.Contains(text, ".lock") {
		t.Errorf("a lock stays behind:\n%s", text)
	}
	if got, _ := recordAndLeftovers(t, folder); got != issued.latest() {
		t.Error("the answer to the last refresh is not on disk")
	}
	c.start(t)
	c.login(t)
	if got := as.Stats(); got.DeviceRequests != 1 || got.Reuses != 0 {
		t.Errorf("%d codes and %d reuses, want 1 and 0", got.DeviceRequests, got.Reuses)
	}
}

// TestPendingCodeOutlivesTheProcess ends Caddy in each way while somebody has a code in hand.
func TestPendingCodeOutlivesTheProcess(t *testing.T) {
	parallel(t)
	as := startAS(t, time.Hour, byHand)
	a := startAPI(t, as.ValidToken)
	c := startCaddy(t, site("device", "offline_access"), as.Issuer(), a.URL)
	code := c.callForCode(t).UserCode
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM, syscall.SIGKILL} {
		c.stop(t, sig)
		c.start(t)
		if got := c.callForCode(t).UserCode; got != code {
			t.Fatalf("after %v the code is %s, was %s", sig, got, code)
		}
	}
	c.kill(t)
	if err := as.Approve(code); err != nil { // while nobody polls
		t.Fatal(err)
	}
	c.start(t)
	began := time.Now()
	c.login(t)
	t.Logf("%v after the start the approved login is in use", time.Since(began).Round(time.Millisecond))
	if got := as.Stats().DeviceRequests; got != 1 {
		t.Errorf("%d codes, want 1", got)
	}
}
