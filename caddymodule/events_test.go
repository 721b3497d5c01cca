package caddymodule

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// hearer is an event handler that does what a test says.
type hearer struct {
	Name string `json:"name"`
}

// hearers are what the handlers do, by name.
var hearers sync.Map

func init() { caddy.RegisterModule(hearer{}) }

func (hearer) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "events.handlers.device_flow_hearer", New: func() caddy.Module { return new(hearer) }}
}

func (h *hearer) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	return oneArg(d, &h.Name)
}

// Handle is called for events of all modules.
func (h hearer) Handle(ctx context.Context, e caddy.Event) error {
	if e.Origin() == nil || e.Origin().CaddyModule().ID != "device_flow" {
		return nil
	}
	do, ok := hearers.Load(h.Name)
	if !ok {
		return nil
	}
	return do.(func(context.Context, caddy.Event) error)(ctx, e)
}

// hears has the handler of that name do something with each event, and returns the global option that subscribes it.
func hears(t *testing.T, name string, do func(context.Context, caddy.Event) error) string {
	name = t.Name() + name
	hearers.Store(name, do)
	t.Cleanup(func() { hearers.Delete(name) })
	return "events {\n on * device_flow_hearer \"" + name + "\"\n}\n"
}

// heard collects events in the order of their coming.
type heard struct {
	mu     sync.Mutex
	events []caddy.Event
	more   chan struct{}
}

func (h *heard) add(_ context.Context, e caddy.Event) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.events = append(h.events, e)
	if h.more != nil {
		close(h.more)
		h.more = nil
	}
	return nil
}

// all returns each event in short.
func (h *heard) all() (names []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range h.events {
		names = append(names, e.Name()+" "+e.Data["state"].(string))
	}
	return names
}

// count is how many events of that name have come.
func (h *heard) count(name string) (n int) {
	for _, s := range h.all() {
		if strings.HasPrefix(s, name+" ") {
			n++
		}
	}
	return n
}

// await waits for the n-th event of that name.
func (h *heard) await(t *testing.T, name string, n int) {
	t.Helper()
	for timeout := time.After(patience); ; {
		h.mu.Lock()
		if h.more == nil {
			h.more = make(chan struct{})
		}
		more := h.more
		h.mu.Unlock()
		if h.count(name) >= n {
			return
		}
		select {
		case <-more:
		case <-timeout:
			t.Fatalf("waited in vain for %s no. %d; there is %q", name, n, h.all())
		}
	}
}

// busy is an answer that asks for a long pause, so that nothing is tried again while a test goes on.
var busy = flowtest.Response{Status: http.StatusServiceUnavailable, Header: http.Header{"Retry-After": {"3600"}}, Body: `{"error":"temporarily_unavailable"}`}

// S122 of the scorecard. The short form is what the origin of an event is hardest to know in.
func TestEachStepIsOneEvent(t *testing.T) {
	const secret = "s3cr3t-of-the-client"
	x := newRig(t, flowtest.Config{ClientSecret: secret})
	if err := os.WriteFile(filepath.Join(x.dir, "secret"), []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	var h heard
	x.load(x.config(t.Name(), hears(t, "", func(ctx context.Context, e caddy.Event) error {
		repl, ok := ctx.Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
		if !ok {
			repl = caddy.NewReplacer()
		}
		got := repl.ReplaceAll("{event.module} {event.name} {event.data.state}", "")
		if want := fmt.Sprint("device_flow ", e.Name(), " ", e.Data["state"]); got != want {
			t.Errorf("the placeholders have %q, want %q", got, want)
		}
		return h.add(ctx, e)
	}), "a", "device_flow API {\n LOGIN\n client_secret {file.DIR/secret}\n}", "m", "metrics /metrics"))
	s := x.login("default")
	tokens := []string{s.Current().Value().Reveal()}
	expires := s.Status().Token.ExpiresAt.Format(time.RFC3339)
	if _, err := s.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	tokens = append(tokens, s.Current().Value().Reveal())
	x.as.Script(flowtest.Refresh, busy)
	if _, err := s.Refresh(t.Context()); err == nil {
		t.Fatal("no error")
	}
	page := x.get("http://m/metrics").body
	if err := s.Logout(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := x.as.Deny(code(t, s.Session).Login.UserCode); err != nil {
		t.Fatal(err)
	}
	h.await(t, "login_failed", 1)
	x.as.Script(flowtest.Device, flowtest.ErrorResponse(http.StatusBadRequest, "invalid_scope"))
	if _, err := s.Login(t.Context()); err == nil {
		t.Fatal("no error")
	}
	if err := caddy.Stop(); err != nil { // whatever is told, has been told then
		t.Fatal(err)
	}
	want := []string{
		"login_pending pending", "login_succeeded authorized", "token_refreshed authorized", "refresh_failed degraded",
		"logged_out login_required", "login_pending pending", "login_failed login_required", "login_failed misconfigured",
	}
	if got := h.all(); !slices.Equal(got, want) {
		t.Fatalf("the events are\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}

	has := func(i int, want map[string]string) {
		for _, key := range slices.Sorted(maps.Keys(want)) {
			if got := fmt.Sprint(h.events[i].Data[key]); !strings.Contains(got, want[key]) {
				t.Errorf("%s: %s is %s, want %s", h.events[i].Name(), key, got, want[key])
			}
		}
	}
	userCode := fmt.Sprint(h.events[0].Data["user_code"])
	has(0, map[string]string{
		"session": "default", "user_code": "-", "verification_uri": x.issuer + "/device",
		"verification_uri_complete": x.issuer + "/device?user_code=" + userCode, "code_expires_at": "T",
	})
	has(1, map[string]string{"account": "Alice Example", "token_expires_at": expires, "reason": "<nil>"})
	has(3, map[string]string{"error": "temporarily_unavailable", "reason": "the authorization server", "action": "retry", "retry_at": "T"})
	has(6, map[string]string{"error": "access_denied", "action": "reauthorize"})
	has(7, map[string]string{"error": "invalid_scope", "action": "fix_configuration"})

	secrets := append(tokens, secret)
	for _, r := range x.as.Requests() {
		for _, name := range []string{"device_code", "refresh_token", "token"} {
			secrets = append(secrets, r.Form[name]...)
		}
	}
	if len(secrets) < 8 {
		t.Errorf("only %d secrets to look for", len(secrets))
	}
	told, err := json.Marshal(h.events)
	for _, e := range h.events {
		data, err := json.Marshal(e.CloudEvent())
		if err != nil {
			t.Error(err)
		}
		told = append(told, data...)
	}
	if err != nil || !bytes.Contains(told, []byte(userCode)) || !strings.Contains(page, "caddy_device_flow_session_state") {
		t.Error("there is nothing to look through")
	}
	for where, text := range map[string]string{"an event": string(told), "the log": strings.Join(logged(t.Name()), ""), "the metrics": page} {
		for i, secret := range secrets {
			if strings.Contains(text, secret) {
				t.Errorf("secret no. %d is in %s", i, where)
			}
		}
	}
}

// S122 of the scorecard.
func TestEventHandlersHoldNothingUp(t *testing.T) {
	for name, do := range map[string]func(ctx context.Context, free <-chan struct{}) error{
		"that abort": func(context.Context, <-chan struct{}) error { return caddy.ErrEventAborted },
		"that fail":  func(context.Context, <-chan struct{}) error { return errors.New("the mail server is down") },
		"that panic": func(context.Context, <-chan struct{}) error { panic("never heard of this event") },
		"that block": func(_ context.Context, free <-chan struct{}) error { <-free; return nil }, // deaf to the context, too
	} {
		t.Run(name, func(t *testing.T) {
			x := newRig(t, flowtest.Config{AccessTokenLifetime: 2 * time.Second})
			var h heard
			free := make(chan struct{})
			x.load(x.config("hold", hears(t, "", func(ctx context.Context, e caddy.Event) error {
				_ = h.add(ctx, e)
				return do(ctx, free)
			}), "a", proxy))
			s := x.login("default")
			before := s.Current()
			for x.as.Stats().Refreshes == 0 { // it comes by itself
				_, changed := s.Watch()
				receive(t, changed, "a refresh")
			}
			for range 2 {
				if _, err := s.Refresh(t.Context()); err != nil {
					t.Error(err)
				}
			}
			if got := x.get("http://a/"); got.status != http.StatusOK || s.Current() == before {
				t.Errorf("a call gets %d %s", got.status, got.body)
			}
			if name == "that block" && len(h.all()) != 1 {
				t.Errorf("%q is told before the first handler has returned", h.all()[1:])
			}
			close(free)
			h.await(t, "token_refreshed", 3)
			if err := caddy.Stop(); err != nil {
				t.Fatal(err)
			}
			n := x.as.Stats().Refreshes
			want := append([]string{"login_pending pending", "login_succeeded authorized"}, slices.Repeat([]string{"token_refreshed authorized"}, n)...)
			if got := h.all(); !slices.Equal(got, want) {
				t.Errorf("the events are %q, want %q", got, want)
			}
			if lines := logged("hold", "an event handler panicked", "never heard of this event"); (name == "that panic") != (len(lines) > 0) {
				t.Errorf("the log has %q", lines)
			}
		})
	}
}

func TestAReloadTakesEventsToItsOwnHandlers(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	var one, two heard
	free := make(chan struct{})
	defer close(free)
	entered := make(chan struct{})
	first := x.config("one", hears(t, "one", func(ctx context.Context, e caddy.Event) error {
		_ = one.add(ctx, e)
		if e.Name() == "logged_out" {
			close(entered)
			<-free
		}
		return nil
	})+global)
	second := x.config("two", hears(t, "two", two.add)+global)
	refresh := func(s *running) {
		if _, err := s.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
	}

	x.load(first)
	s := x.login("default")
	one.await(t, "login_succeeded", 1) // or the second would hear of it, if it is quick
	x.load(second)
	refresh(s)
	two.await(t, "token_refreshed", 1)
	x.load(first)
	// A configuration that fails in the end has told Caddy that it started.
	if err := caddy.Load([]byte(strings.Replace(second, `"persist": false`, `"persist": false, "load": {"module": "broken"}`, 1)), true); err == nil {
		t.Fatal("the broken configuration runs")
	}
	refresh(s)
	one.await(t, "token_refreshed", 1)
	// A handler that hangs goes with its configuration, and nothing is lost but what it has.
	if err := s.Logout(t.Context()); err != nil {
		t.Fatal(err)
	}
	receive(t, entered, "the logout to be told")
	st := code(t, s.Session)
	x.load(second)
	if err := x.as.Approve(st.Login.UserCode); err != nil {
		t.Fatal(err)
	}
	two.await(t, "login_succeeded", 1)

	if got, want := one.all(), []string{"login_pending pending", "login_succeeded authorized", "token_refreshed authorized", "logged_out login_required"}; !slices.Equal(got, want) {
		t.Errorf("the first heard %q, want %q", got, want)
	}
	if got, want := two.all(), []string{"token_refreshed authorized", "login_pending pending", "login_succeeded authorized"}; !slices.Equal(got, want) {
		t.Errorf("the second heard %q, want %q", got, want)
	}
	if lines := logged("one", "an event handler hangs", "logged_out"); len(lines) != 1 {
		t.Errorf("the log of the first has %q", lines)
	}
}

// lateApp is an app that is slow to start.
type lateApp struct{}

// atLateStart is what it does meanwhile.
var atLateStart func()

func init() { caddy.RegisterModule(lateApp{}) }

func (lateApp) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "late", New: func() caddy.Module { return new(lateApp) }}
}
func (lateApp) Start() error { atLateStart(); return nil }
func (lateApp) Stop() error  { return nil }

// The event app is not to be used before it has started, and Caddy starts apps in any order.
func TestEventsWaitUntilAllHasStarted(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	var h heard
	config := strings.Replace(x.config(t.Name(), hears(t, "", h.add)+global), `"apps": {`, `"apps": {"late": {}, `, 1)
	logins := 0
	atLateStart = func() {
		if r := runningSession("default"); r != nil { // else it is the first to start
			if _, err := r.Login(t.Context()); err != nil {
				t.Error(err)
			}
			if err := r.Logout(t.Context()); err != nil {
				t.Error(err)
			}
			if n := h.count("login_pending"); n != logins {
				t.Errorf("%d logins are told, although not all has started", n-logins)
			}
			logins++
		}
	}
	for logins < 3 {
		x.load(config)
		h.await(t, "login_pending", logins)
		if err := caddy.Stop(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTheLatestConfigurationThatHasStartedHearsEvents(t *testing.T) {
	as := flowtest.New(flowtest.Config{})
	defer as.Close()
	cfg := flow.Config{Name: "latest", Issuer: as.Issuer(), ClientID: "demo-client", HTTP: as.RoundTripper()}
	var (
		apps [2]*App
		r    *running
		told = make(chan int, 10)
	)
	for i := range apps {
		s := new(session)
		apps[i] = &App{logger: zap.NewNop(), sessions: map[string]*session{cfg.Name: s}}
		var err error
		if r, err = start(apps[i], cfg); err != nil {
			t.Fatal(err)
		}
		s.live.Store(r)
	}
	leave := func(i int) {
		if err := r.release(apps[i], poolKey{cfg.Name, cfg.Fingerprint()}); err != nil {
			t.Error(err)
		}
	}
	started := func(i int) {
		apps[i].tellEvents(&emitter{logger: zap.NewNop(), emit: func(context.Context, string, map[string]any) { told <- i }})
	}
	hears := func(want int) {
		t.Helper()
		r.outbox.put(numbered(flow.EventTokenRefreshed, 0))
		if got := receive(t, told, "the event"); got != want {
			t.Errorf("configuration %d hears of it, want %d", got, want)
		}
	}
	started(0)
	hears(0)
	started(1)
	hears(1)
	leave(1)
	hears(0)
	leave(0)
}

// Each instance tells what becomes of its own session.
func TestALoginAtAnotherInstanceIsToldByBoth(t *testing.T) {
	as := flowtest.New(flowtest.Config{Interval: 100 * time.Millisecond})
	defer as.Close()
	issuer, err := as.Start()
	if err != nil {
		t.Fatal(err)
	}
	store := new(flow.MemoryStore)
	var told [2]heard
	var sessions [2]*running
	for i := range sessions {
		cfg := flow.Config{Name: fmt.Sprint("instance-", i), StorageName: "shared", Issuer: issuer, ClientID: "demo-client", Store: store}
		app := &App{logger: zap.NewNop()}
		r, err := start(app, cfg)
		if err != nil {
			t.Fatal(err)
		}
		s := new(session)
		s.live.Store(r)
		app.sessions = map[string]*session{cfg.Name: s}
		app.tellEvents(&emitter{logger: app.logger, emit: func(ctx context.Context, name string, data map[string]any) {
			e, err := caddy.NewEvent(caddy.Context{Context: ctx}, name, data)
			if err != nil {
				t.Error(err)
			}
			_ = told[i].add(ctx, e)
		}})
		t.Cleanup(func() {
			if err := r.release(app, poolKey{cfg.Name, cfg.Fingerprint()}); err != nil {
				t.Error(err)
			}
		})
		sessions[i] = r
	}
	before := gathered(t)
	logIn(t, as, sessions[0].Session)
	for i := range told {
		told[i].await(t, "login_succeeded", 1)
	}
	if err := sessions[1].Logout(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i := range told {
		told[i].await(t, "logged_out", 1)
		for _, name := range []string{"login_succeeded", "logged_out"} {
			if n := told[i].count(name); n != 1 {
				t.Errorf("instance %d tells of %s %d times", i, name, n)
			}
		}
	}
	after := gathered(t)
	for series, want := range map[string]float64{
		`caddy_device_flow_logins_total{outcome="success",session="instance-0"}`: 1,
		`caddy_device_flow_logins_total{outcome="adopted",session="instance-0"}`: 0,
		`caddy_device_flow_logins_total{outcome="success",session="instance-1"}`: 0,
		`caddy_device_flow_logins_total{outcome="adopted",session="instance-1"}`: 1,
	} {
		if got := after[series] - before[series]; got != want {
			t.Errorf("%s has grown by %v, want %v", series, got, want)
		}
	}
}

// outboxOf is an outbox that is used without a session.
func outboxOf(t *testing.T, emit func(ctx context.Context, name string, data map[string]any)) (o *outbox, gone chan struct{}, log *observer.ObservedLogs) {
	core, log := observer.New(zapcore.DebugLevel)
	o, gone = new(outbox), make(chan struct{})
	o.address(&emitter{logger: zap.New(core), gone: gone, emit: emit})
	return o, gone, log
}

func numbered(kind flow.EventKind, n int) flow.Event {
	return flow.Event{Kind: kind, Status: flow.Status{Session: fmt.Sprint(n)}}
}

// The bubble ends only if no goroutine is left. There may be a hundred thousand sessions.
func TestAnOutboxWithNothingToTellHasNoGoroutine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got []string
		o, _, _ := outboxOf(t, func(_ context.Context, _ string, data map[string]any) { got = append(got, data["session"].(string)) })
		for i := range 4 {
			o.put(numbered(flow.EventTokenRefreshed, i))
			if i%2 == 1 {
				synctest.Wait() // all is told, and the next one needs a goroutine anew
			}
		}
		if !slices.Equal(got, []string{"0", "1", "2", "3"}) {
			t.Errorf("told are %q", got)
		}
	})
}

func TestTheOldestEventsAreDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		free := make(chan struct{})
		var got []string
		o, _, log := outboxOf(t, func(_ context.Context, _ string, data map[string]any) {
			<-free
			got = append(got, data["session"].(string))
		})
		o.put(numbered(flow.EventTokenRefreshed, 0))
		synctest.Wait() // it is out for delivery
		for i := range maxQueue + 3 {
			o.put(numbered(flow.EventTokenRefreshed, 1+i))
			o.put(numbered(flow.EventStateChanged, 1+i)) // not for Caddy
		}
		close(free)
		o.close()
		var want []string
		for i := range maxQueue {
			want = append(want, fmt.Sprint(4+i))
		}
		if want = append([]string{"0"}, want...); !slices.Equal(got, want) {
			t.Errorf("told are %q, want %q", got, want)
		}
		if n := log.FilterMessageSnippet("the oldest events are dropped").Len(); n != 1 {
			t.Errorf("%d lines about it, want 1", n)
		}
	})
}

func TestAHandlerThatHangsIsLeftBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var (
			mu  sync.Mutex
			got []string
		)
		tell := func(data map[string]any) {
			mu.Lock()
			defer mu.Unlock()
			got = append(got, data["session"].(string))
		}
		told := func() []string {
			mu.Lock()
			defer mu.Unlock()
			return slices.Clone(got)
		}
		let := make(chan struct{})
		defer close(let)
		hang := func(ctx context.Context, _ string, data map[string]any) {
			tell(data)
			<-ctx.Done() // it is asked to come back
			<-let        // and does not
		}
		o, gone, log := outboxOf(t, hang)
		o.put(numbered(flow.EventLoginPending, 1))
		o.put(numbered(flow.EventLoginFailed, 2))
		<-time.After(time.Hour)
		if got := told(); len(got) != 1 {
			t.Errorf("told in an hour: %q", got)
		}
		close(gone)
		synctest.Wait()
		o.address(&emitter{logger: zap.NewNop(), emit: func(_ context.Context, _ string, data map[string]any) { tell(data) }})
		<-time.After(2 * goneGrace)
		if got := told(); !slices.Equal(got, []string{"1", "2"}) {
			t.Errorf("told are %q", got)
		}
		if n := log.FilterMessageSnippet("hangs").Len(); n != 1 {
			t.Errorf("%d lines about it, want 1", n)
		}

		core, log := observer.New(zapcore.DebugLevel)
		o.address(&emitter{logger: zap.New(core), emit: hang})
		for i := range 3 {
			o.put(numbered(flow.EventLoginPending, 3+i))
		}
		synctest.Wait()
		began := time.Now()
		o.close()
		if took := time.Since(began); took != lastGrace {
			t.Errorf("it took %v to close", took)
		}
		if lines := log.FilterMessageSnippet("the last events are dropped").All(); len(lines) != 1 || lines[0].ContextMap()["dropped"] != int64(2) {
			t.Errorf("the log has %+v", lines)
		}
	})
}

// panicky is a log that panics.
type panicky struct{ zapcore.Core }

func (panicky) Enabled(zapcore.Level) bool { return true }
func (p panicky) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	return ce.AddCore(e, p)
}
func (panicky) Write(zapcore.Entry, []zapcore.Field) error { panic("the disk is on fire") }

func TestAnObserverThatPanicsEndsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		as := flowtest.New(flowtest.Config{})
		defer as.Close()
		app := &App{logger: zap.New(panicky{zapcore.NewNopCore()})}
		cfg := flow.Config{Name: "panicky", Issuer: as.Issuer(), ClientID: "demo-client", HTTP: as.RoundTripper(), Observer: logObserver(app.logger)}
		r, err := start(app, cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := r.release(app, poolKey{cfg.Name, cfg.Fingerprint()}); err != nil {
				t.Error(err)
			}
		}()
		o := &r.outbox
		logIn(t, as, r.Session)
		synctest.Wait()
		if o.mu.Lock(); len(o.queue) != 2 {
			t.Errorf("%d events wait to be told, want 2", len(o.queue))
		}
		o.mu.Unlock()
	})
}

// What a server says reaches mail and chat by way of handlers.
func TestEventDataIsFitToBeShown(t *testing.T) {
	const evil = "AB\x1b[2J\u202eCD\nEF\u2066"
	data := eventData(flow.Event{
		Kind: flow.EventLoginFailed,
		Err:  &flow.Error{Op: "poll", Code: evil, Description: evil},
		Status: flow.Status{
			Session: "acme", State: flow.StatePending, Account: &flow.Account{Name: evil},
			Login: &flow.LoginInfo{UserCode: evil, VerificationURI: "javascript:" + evil, VerificationURIComplete: "javascript:alert(1)"},
		},
	})
	for key, v := range data {
		if s, ok := v.(string); !ok || strings.ContainsAny(s, "\x1b\n\u202e\u2066") {
			t.Errorf("%s is %q", key, v)
		}
	}
	if data["verification_uri_complete"] != nil || data["user_code"] != "AB[2JCD EF" || !strings.HasPrefix(fmt.Sprint(data["reason"]), "poll: AB[2JCD EF") {
		t.Errorf("%q", data)
	}
	// An error of a storage or the like could say anything.
	data = eventData(flow.Event{Kind: flow.EventLoginFailed, Err: errors.New("dsn=user:password@host")})
	if len(data) != 2 {
		t.Errorf("%q", data)
	}
}
