package caddymodule

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// exposition is what a scrape brings: the value of each of our series.
type exposition map[string]float64

func parseExposition(t testing.TB, text string) exposition {
	t.Helper()
	all := exposition{}
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		series, value, found := strings.Cut(lines.Text(), "} ")
		if found {
			series += "}"
		} else {
			series, value, _ = strings.Cut(lines.Text(), " ")
		}
		if !strings.HasPrefix(series, "caddy_device_flow_") {
			continue
		}
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			t.Errorf("%q: %v", lines.Text(), err)
		}
		all[series] = v
	}
	return all
}

// scrape asks the site m, which has Caddy's metrics handler.
func (x *rig) scrape() exposition {
	x.t.Helper()
	got := x.get("http://m/metrics")
	if got.status != http.StatusOK {
		x.t.Fatalf("the metrics: %d %s", got.status, got.body)
	}
	return parseExposition(x.t, got.body)
}

// gathered is what a scrape would bring without a Caddy.
func gathered(t *testing.T) exposition {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(metrics)
	w := httptest.NewRecorder()
	promhttp.HandlerFor(registry, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusOK {
		t.Fatal(w.Body)
	}
	return parseExposition(t, w.Body.String())
}

// of is the value of a metric of a session; label is the value of its other label, if it has one.
func (all exposition) of(metric, session, label string) float64 {
	series := "caddy_device_flow_" + metric + `{session="` + session + `"}`
	switch {
	case metric == "session_state":
		series = "caddy_device_flow_" + metric + `{session="` + session + `",state="` + label + `"}`
	case label != "":
		series = "caddy_device_flow_" + metric + `{outcome="` + label + `",session="` + session + `"}`
	}
	v, there := all[series]
	if !there {
		return -1
	}
	return v
}

// S121 of the scorecard: what the authorization server and the API have seen is what the counters say.
func TestMetricsMatchWhatTheServersSaw(t *testing.T) {
	const name = "s121"
	x := newRig(t, flowtest.Config{})
	x.load(x.config(t.Name(), "device_flow "+name+" {\n LOGIN\n}",
		"a", "device_flow API {\n session "+name+"\n}",
		"dead", "device_flow 127.0.0.1:1 {\n session "+name+"\n}",
		"slow", "route {\n hold\n device_flow API {\n session "+name+"\n wait 1m\n }\n}",
		"m", "metrics /metrics"))
	s := x.session(name)
	await(t, s.Session, flow.StateLoginRequired)
	before := x.scrape()
	want := exposition{}
	expect := func(metric, label string, n int) { want[metric+" "+label] += float64(n) }
	try := func(do func(context.Context) (flow.Status, error), ok bool) {
		t.Helper()
		if _, err := do(t.Context()); (err == nil) != ok {
			t.Fatalf("the error is %v", err)
		}
	}
	call := func(site string, status int) {
		t.Helper()
		if got := x.get("http://" + site + "/"); got.status != status {
			t.Errorf("%s answers %d %s, want %d", site, got.status, got.body, status)
		}
	}

	// Logins that come to nothing.
	x.as.Script(flowtest.Device, flowtest.ErrorResponse(http.StatusUnauthorized, "invalid_client"), flowtest.Response{Drop: true})
	try(s.Login, false)
	expect("logins_total", "configuration", 1)
	try(s.Login, false)
	expect("logins_total", "temporary", 1)
	if err := x.as.Deny(code(t, s.Session).Login.UserCode); err != nil {
		t.Fatal(err)
	}
	await(t, s.Session, flow.StateLoginRequired)
	expect("logins_total", "denied", 1)
	x.as.SetConfig(func(c *flowtest.Config) { c.CodeLifetime = time.Second })
	code(t, s.Session)
	await(t, s.Session, flow.StateLoginRequired)
	expect("logins_total", "expired", 1)
	x.as.SetConfig(func(c *flowtest.Config) { c.CodeLifetime = time.Hour })
	call("a", http.StatusServiceUnavailable)
	expect("requests_total", "no_token", 1)
	ctx, leave := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://slow/", nil)
	if err != nil {
		t.Fatal(err)
	}
	held.entered, held.release = make(chan struct{}), make(chan struct{})
	left := make(chan error)
	go func() {
		_, err := x.client.Do(req)
		left <- err
	}()
	receive(t, held.entered, "the call to come in")
	close(held.release)
	leave()
	if err := receive(t, left, "the end of the call"); err == nil {
		t.Error("the call was answered")
	}
	expect("requests_total", "canceled", 1)

	// A login, and every kind of refresh.
	x.login(name)
	for range 3 {
		try(s.Refresh, true)
		call("a", http.StatusOK)
	}
	x.as.Script(flowtest.API, flowtest.Response{Status: http.StatusUnauthorized})
	call("a", http.StatusOK)
	expect("replays_total", "served", 1)
	x.as.Script(flowtest.Refresh, busy, flowtest.ErrorResponse(http.StatusBadRequest, "invalid_request"), flowtest.ErrorResponse(http.StatusUnauthorized, "invalid_client"))
	for _, outcome := range []string{"temporary", "doubtful", "configuration"} {
		try(s.Refresh, false)
		expect("refreshes_total", outcome, 1)
	}
	call("dead", http.StatusBadGateway)
	expect("requests_total", "failed", 1)
	x.as.RevokeAll()
	try(s.Refresh, false)
	expect("refreshes_total", "reauthorize", 1)

	// Another login, whose token the API will not have.
	if err := s.Logout(t.Context()); err != nil {
		t.Fatal(err)
	}
	x.login(name)
	x.as.ScriptAlways(flowtest.API, flowtest.Response{Status: http.StatusUnauthorized})
	call("a", http.StatusUnauthorized)
	expect("replays_total", "unauthorized", 1)
	call("a", http.StatusUnauthorized) // there was a refresh just now, so without a replay
	expect("requests_total", "unauthorized", 2)

	// The truth of the other side.
	st := x.as.Stats()
	expect("logins_total", "success", st.Logins)
	expect("refreshes_total", "success", st.Refreshes)
	expect("requests_total", "served", 4)
	var after exposition
	for deadline := time.Now().Add(patience); ; { // the caller who left does not wait until that is noticed
		after = x.scrape()
		if after.of("requests_total", name, "canceled") > before.of("requests_total", name, "canceled") || time.Now().After(deadline) {
			break
		}
	}
	seen := exposition{}
	for series := range before {
		metric, labels, _ := strings.Cut(strings.TrimPrefix(series, "caddy_device_flow_"), "{")
		if !strings.HasSuffix(metric, "s_total") || !strings.Contains(labels, `session="`+name+`"`) {
			continue
		}
		outcome, _, _ := strings.Cut(strings.TrimPrefix(labels, `outcome="`), `"`)
		grown := after[series] - before[series]
		seen[metric] += grown
		if want[metric+" "+outcome] != grown && metric != "storage_failures_total" {
			t.Errorf("%s of %s has grown by %v, want %v", outcome, metric, grown, want[metric+" "+outcome])
		}
		delete(want, metric+" "+outcome)
	}
	if len(want) > 0 {
		t.Errorf("not counted at all: %v", want)
	}
	if n := x.as.Count(flowtest.Refresh); seen["refreshes_total"] != float64(n) {
		t.Errorf("%v refreshes are counted, the server saw %d", seen["refreshes_total"], n)
	}
	const count = "caddy_device_flow_refresh_duration_seconds_count"
	if n := after[count] - before[count]; n != seen["refreshes_total"] {
		t.Errorf("%v durations of %v refreshes", n, seen["refreshes_total"])
	}
	requests := 0.0
	for _, outcome := range []string{"served", "unauthorized"} {
		requests += after.of("requests_total", name, outcome) - before.of("requests_total", name, outcome)
	}
	if n := x.as.Count(flowtest.API); requests+seen["replays_total"] != float64(n) {
		t.Errorf("%v requests and %v replays are counted, the API saw %d", requests, seen["replays_total"], n)
	}
}

func TestGaugesShowTheSessionAsItIs(t *testing.T) {
	const name = "gauges"
	x := newRig(t, flowtest.Config{})
	x.load(x.config(t.Name(), "device_flow "+name+" {\n LOGIN\n}", "m", "metrics /metrics"))
	s := x.session(name)
	is := func(state flow.State) {
		t.Helper()
		got := x.scrape()
		for _, other := range states {
			want := 0.0
			if other == state {
				want = 1
			}
			if v := got.of("session_state", name, string(other)); v != want {
				t.Errorf("while %s: %s is %v", state, other, v)
			}
		}
		want := -1.0 // there is none
		if token := s.Status().Token; token != nil {
			want = float64(token.ExpiresAt.Unix())
		}
		if v := got.of("token_expiry_timestamp_seconds", name, ""); v != want {
			t.Errorf("while %s: the expiry is %v, want %v", state, v, want)
		}
	}
	await(t, s.Session, flow.StateLoginRequired)
	is(flow.StateLoginRequired)
	code(t, s.Session)
	is(flow.StatePending)
	x.login(name)
	is(flow.StateAuthorized)
	x.as.Script(flowtest.Refresh, busy)
	if _, err := s.Refresh(t.Context()); err == nil {
		t.Fatal("no error")
	}
	is(flow.StateDegraded)
	x.as.SetConfig(func(c *flowtest.Config) { c.OmitRefreshToken = true })
	if err := s.Logout(t.Context()); err != nil {
		t.Fatal(err)
	}
	is(flow.StateLoginRequired)
}

func TestAStorageThatFailsIsCounted(t *testing.T) {
	const name = "storage-metric"
	d := newDisk(t)
	x := newRig(t, flowtest.Config{})
	x.load(x.config(t.Name(), "device_flow "+name+" {\n LOGIN\n storage device_flow_faulty "+t.Name()+"\n}", "m", "metrics /metrics"))
	x.login(name)
	before := x.scrape().of("storage_failures_total", name, "")
	d.breaks(faults{store: failing(errors.New("disk full"))})
	if _, err := x.session(name).Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	await(t, x.session(name).Session, flow.StateDegraded)
	if got := x.scrape().of("storage_failures_total", name, ""); got != before+1 {
		t.Errorf("%v, want %v", got, before+1)
	}
	d.heal()
	await(t, x.session(name).Session, flow.StateAuthorized)
}

func TestARequestIsCountedOnceHoweverASiteIsComposed(t *testing.T) {
	const name = "composed"
	x := newRig(t, flowtest.Config{})
	own := "device_flow {\n session " + name + "\n status_path off\n}\n"
	last := "reverse_proxy API {\n transport device_flow " + name + "\n}\n"
	x.load(x.config(t.Name(), "device_flow "+name+" {\n LOGIN\n}",
		"short", "device_flow API {\n session "+name+"\n}",
		"both", own+last,
		"gate", own+"reverse_proxy API",
		"gates", "route {\n"+own+own+"reverse_proxy API\n}",
		"hop", last,
		"none", own+"respond served",
		"gone", own+"reverse_proxy 127.0.0.1:1",
		"m", "metrics /metrics"))
	sites := map[string]string{
		"short": "served", "both": "served", "gate": "served", "gates": "served", "hop": "served", "none": "served", "gone": "served",
	}
	check := func(wait bool) {
		for site, outcome := range sites {
			if wait {
				outcome = "no_token"
			}
			before := x.scrape()
			got := x.get("http://" + site + "/")
			if (got.status == http.StatusServiceUnavailable) != wait {
				t.Errorf("%s answers %d %s", site, got.status, got.body)
			}
			after := x.scrape()
			for _, o := range []string{"served", "unauthorized", "no_token", "canceled", "failed"} {
				want := 0.0
				if o == outcome {
					want = 1
				}
				if n := after.of("requests_total", name, o) - before.of("requests_total", name, o); n != want {
					t.Errorf("%s: %s has grown by %v, want %v", site, o, n, want)
				}
			}
		}
	}
	await(t, x.session(name).Session, flow.StateLoginRequired)
	code(t, x.session(name).Session)
	check(true)
	x.login(name)
	check(false)
}

// S121 of the scorecard.
// What the guard refuses on a page counts for the session of the page. That of all sessions is of none.
func TestALabelIsTheNameOfASession(t *testing.T) {
	const name = "labelled"
	x := newRig(t, flowtest.Config{})
	x.load(x.config(t.Name(), "device_flow "+name+" {\n LOGIN\n}", ":1@a", "device_flow API {\n session "+name+"\n session_key {header.X-Device-Id}\n}",
		":1@all", "device_flow_status", "m", "metrics /metrics"))
	x.alias("all", "evil.example")
	before := gathered(t)
	for _, url := range []string{"http://a/.device-flow", "http://a/.device-flow/healthz", "http://a/", "http://evil.example/.device-flow"} {
		if got := x.get(url, "Sec-Fetch-Site", "cross-site"); got.status != http.StatusForbidden {
			t.Errorf("%s: %d %s", url, got.status, got.body)
		}
	}
	after := gathered(t)
	if n := after.of("requests_total", name, "refused") - max(before.of("requests_total", name, "refused"), 0); n != 3 {
		t.Errorf("%v are counted, want 3", n)
	}
	for series := range after {
		if strings.Contains(series, " by ") || strings.Contains(series, `session=""`) {
			t.Errorf("there is a series %s", series)
		}
	}
	if len(logged(t.Name(), "refused a request")) != 3 {
		t.Error("each guard has something to say")
	}
}

func TestNothingThatACallerSendsBecomesALabel(t *testing.T) {
	const name, calls, callers = "bounded", 10_000, 8
	x := newRig(t, flowtest.Config{})
	x.load(x.config(t.Name(), "device_flow "+name+" {\n LOGIN\n}", ":1@a", "device_flow API {\n session "+name+"\n}", "m", "metrics /metrics"))
	x.login(name)
	before := x.scrape()
	var wg sync.WaitGroup
	var served atomic.Int64 // the guard knows neither the method PURGE nor names under example
	for caller := range callers {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(121, uint64(caller)))
			for range calls / callers {
				word := strconv.FormatUint(random.Uint64(), 36)
				req, err := http.NewRequestWithContext(t.Context(), []string{"GET", "POST", "PURGE"}[random.IntN(3)], "http://a/random-"+word+"?q="+word, nil)
				if err != nil {
					t.Error(err)
					return
				}
				req.Host = "random-" + word + []string{".example", ".localhost"}[random.IntN(2)]
				req.Header.Set("X-Forwarded-For", "192.0.2."+strconv.Itoa(random.IntN(256)))
				resp, err := x.client.Do(req)
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if resp.StatusCode == http.StatusOK {
					served.Add(1)
				}
			}
		})
	}
	wg.Wait()
	page := x.get("http://m/metrics").body
	after := parseExposition(t, page)
	if len(after) != len(before) || strings.Contains(page, "random-") {
		t.Errorf("%d series before, %d after", len(before), len(after))
	}
	for outcome, want := range map[string]int64{"served": served.Load(), "refused": calls - served.Load()} {
		if n := after.of("requests_total", name, outcome) - before.of("requests_total", name, outcome); n != float64(want) || want == 0 {
			t.Errorf("%v requests are counted as %s, want %d", n, outcome, want)
		}
	}
	if n := x.as.Count(flowtest.API); n != int(served.Load()) {
		t.Errorf("the API saw %d requests, want %d", n, served.Load())
	}
}

func TestCountersSurviveReloadsAndGaugesGoWithTheirSession(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	config := func(sessions ...string) string {
		var global string
		for _, name := range sessions {
			global += "device_flow " + name + " {\n LOGIN\n}\n"
		}
		return x.config(t.Name(), global, "m", fmt.Sprintf("metrics /metrics\nrespond /sessions %d", len(sessions)))
	}
	x.load(config("stays", "goes"))
	x.login("stays")
	x.login("goes")
	first := x.scrape()
	x.load(config("stays"))
	x.awaitAnswer("http://m/sessions", "1")
	second := x.scrape()
	if n := second.of("logins_total", "stays", "success"); n < 1 || n != first.of("logins_total", "stays", "success") {
		t.Errorf("%v logins after a reload, %v before", n, first.of("logins_total", "stays", "success"))
	}
	for _, metric := range []string{"session_state", "token_expiry_timestamp_seconds"} {
		label := map[string]string{"session_state": "authorized"}[metric]
		if first.of(metric, "goes", label) < 1 || second.of(metric, "stays", label) < 1 {
			t.Errorf("there is no %s", metric)
		}
		if v := second.of(metric, "goes", label); v != -1 {
			t.Errorf("%s of a session that has gone is %v", metric, v)
		}
	}
	if _, err := x.session("stays").Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	if was, is := second.of("refreshes_total", "stays", "success"), x.scrape().of("refreshes_total", "stays", "success"); is != was+1 {
		t.Errorf("%v refreshes, want %v", is, was+1)
	}
}

// Caddy keeps the admin endpoint of a configuration that fails.
func TestTheAdminEndpointHasTheMetricsAfterAFailedReload(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	config := strings.Replace(x.config(t.Name(), "device_flow acme {\n LOGIN\n}"),
		`"disabled": true`, `"listen": "unix/`+x.socket("admin")+`"`, 1)
	x.load(config)
	t.Cleanup(func() { // before the folder is removed
		x.load(strings.Replace(config, `"listen": "unix/`+x.socket("admin")+`"`, `"disabled": true`, 1))
	})
	broken := strings.Replace(config, `"apps": {`, `"apps": {"absent": {}, `, 1)
	for i := range 8 { // Caddy provisions apps in any order
		if i > 0 {
			if err := caddy.Load([]byte(broken), true); err == nil {
				t.Fatal("the broken configuration runs")
			}
			x.client.CloseIdleConnections()
		}
		got := x.get("http://admin/metrics")
		if !strings.Contains(got.body, `caddy_device_flow_session_state{session="acme",state="login_required"}`) {
			t.Fatalf("after %d failures: %d, without the session", i, got.status)
		}
	}
}

func TestValidateCountsNothing(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	x.load(x.config(t.Name(), "device_flow runs {\n LOGIN\n}"))
	if err := provisioned(t, x.config(t.Name(), "device_flow only-validated {\n LOGIN\n}", "a", "device_flow API {\n session only-validated\n}")); err != nil {
		t.Fatal(err)
	}
	all := gathered(t)
	for series := range all {
		if strings.Contains(series, "only-validated") {
			t.Errorf("there is %s", series)
		}
	}
	if all.of("requests_total", "runs", "served") < 0 {
		t.Error("there is nothing to look through")
	}
}

func TestCountingMakesNextToNothingToCollect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		as := flowtest.New(flowtest.Config{AutoApprove: true})
		h := &Handler{guard: new(keeper), session: liveSession(t, as), Wait: caddy.Duration(time.Minute)}
		r := localRequest(http.MethodGet, "/", nil)
		r = r.WithContext(context.WithValue(r.Context(), caddyhttp.VarsCtxKey, map[string]any{}))
		w := httptest.NewRecorder()
		nothing := caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error { return nil })
		serve := func() {
			if err := h.ServeHTTP(w, r, nothing); err != nil {
				t.Error(err)
			}
		}
		serve() // logs in
		if n := testing.AllocsPerRun(1000, serve); n != 0 {
			t.Errorf("the gate makes %v allocations", n)
		}
		live, err := h.session.running(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		vars := map[string]any{}
		if n := testing.AllocsPerRun(1000, func() {
			live.tally.announce(vars)
			if !live.tally.claim(vars) || live.tally.claim(vars) {
				t.Error("it is claimed twice, or never")
			}
			live.tally.answered(http.StatusOK)
		}); n > 1 {
			t.Errorf("counting makes %v allocations, more than the announcement", n)
		}
	})
}

// A connection that the proxy has begun to dial goes on reading the variables
// when the call is over, served by another connection: writing there then could
// end the process.
func TestVariablesAreLeftAloneOnceTheProxyHasBegun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		as := flowtest.New(flowtest.Config{AutoApprove: true})
		h := &Handler{guard: new(keeper), session: liveSession(t, as), Wait: caddy.Duration(time.Minute), Authenticate: true}
		vars := map[string]any{}
		r := localRequest(http.MethodGet, "/", nil)
		r = r.WithContext(context.WithValue(r.Context(), caddyhttp.VarsCtxKey, vars))
		var asFound map[string]any
		proxy := caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error {
			asFound = maps.Clone(vars)
			go func() { _ = len(vars) }() // for the race detector
			return nil
		})
		if err := h.ServeHTTP(httptest.NewRecorder(), r, proxy); err != nil {
			t.Fatal(err)
		}
		if !maps.Equal(vars, asFound) {
			t.Errorf("the variables were %v for the proxy, and are %v now", asFound, vars)
		}
	})
}
