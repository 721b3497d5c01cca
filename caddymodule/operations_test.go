package caddymodule

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// stage is a session that a scenario of docs/operations.md is played with, and all that is told of it.
type stage struct {
	*testing.T
	as      *flowtest.Server
	store   *flakyStore
	cfg     flow.Config
	session *flow.Session // nil before begin and after end
	end     func()
	lines   *observer.ObservedLogs
	counted *prometheus.Registry
	another *flow.Status // what the calls of a site are told that asks for another API than the session's

	mu     sync.Mutex
	events []string
}

// flakyStore fails while it is told to.
type flakyStore struct {
	flow.MemoryStore
	full bool
}

func (s *flakyStore) Save(ctx context.Context, key string, value []byte) error {
	if s.full {
		return errors.New("write: no space left on device")
	}
	return s.MemoryStore.Save(ctx, key, value)
}

// begin runs the session.
func (x *stage) begin() {
	x.Helper()
	var err error
	if x.session, err = flow.New(x.cfg); err != nil {
		x.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		x.session.Run(ctx)
	}()
	x.end = func() {
		cancel()
		<-ended
		x.session = nil
	}
	x.Cleanup(x.end)
	synctest.Wait()
}

// mark forgets what has been told so far: what comes now is what the row is about.
func (x *stage) mark() {
	x.lines.TakeAll()
	x.mu.Lock()
	x.events = nil
	x.mu.Unlock()
	x.count()
}

// count has fresh metrics from now on.
func (x *stage) count() {
	c := newCollector()
	x.counted = prometheus.NewRegistry()
	for _, part := range c.parts() {
		x.counted.MustRegister(part)
	}
	x.cfg.Observer = observers(zap.NewNop(), x.cfg.Observer, c.observe)
	if x.session != nil {
		if err := x.session.SetConfig(x.cfg); err != nil {
			x.Fatal(err)
		}
		synctest.Wait()
	}
}

func (x *stage) pass(d time.Duration) {
	<-time.After(d) // of the bubble
	synctest.Wait()
}

// code asks for a code.
func (x *stage) code() string {
	x.Helper()
	st, err := x.session.Login(x.Context())
	if err != nil || st.Login == nil {
		x.Fatalf("%v: %+v", err, st)
	}
	return st.Login.UserCode
}

func (x *stage) logIn() {
	x.Helper()
	if err := x.as.Approve(x.code()); err != nil {
		x.Fatal(err)
	}
	x.pass(6 * time.Second)
	if st := x.session.Status(); st.Token == nil {
		x.Fatalf("%+v", st)
	}
}

// says has the server answer so to a step from now on.
func (x *stage) says(step flowtest.Step, status int, code string) {
	x.as.ScriptAlways(step, flowtest.Response{Status: status, Body: `{"error":"` + code + `"}`})
}

// rewrites changes the stored login.
func (x *stage) rewrites(change func(record map[string]any)) {
	x.Helper()
	b, err := x.store.Load(x.Context(), x.cfg.StorageKey())
	record := map[string]any{}
	if err == nil {
		err = json.Unmarshal(b, &record)
	}
	if err != nil {
		x.Fatal(err)
	}
	change(record)
	if b, err = json.Marshal(record); err == nil {
		err = x.store.Save(x.Context(), x.cfg.StorageKey(), b)
	}
	if err != nil {
		x.Fatal(err)
	}
}

func (x *stage) down() {
	for _, step := range []flowtest.Step{flowtest.Discovery, flowtest.Device, flowtest.Token} {
		x.as.ScriptAlways(step, flowtest.Response{Drop: true})
	}
}

// occasion is a row: what has happened, and the scenario in which it does.
type occasion struct {
	when string
	play func(x *stage)
}

// occasions are all states and errors that an operator can meet.
var occasions = []occasion{
	{"Caddy has started and nobody has ever logged in", func(x *stage) { x.begin() }},
	{"somebody has called, or opened the page", func(x *stage) {
		x.begin()
		x.mark()
		x.code()
	}},
	{"the code was approved", func(x *stage) {
		x.begin()
		code := x.code()
		x.mark()
		if err := x.as.Approve(code); err != nil {
			x.Fatal(err)
		}
		x.pass(6 * time.Second)
	}},
	{"the token has been refreshed", func(x *stage) {
		x.begin()
		x.logIn()
		x.mark()
		x.pass(55 * time.Minute)
	}},
	{"a new login has been asked for while one works", func(x *stage) {
		x.begin()
		x.logIn()
		x.mark()
		x.code()
	}},
	{"nobody has approved the code in time", func(x *stage) {
		x.begin()
		x.code()
		x.mark()
		x.pass(16 * time.Minute)
	}},
	{"the login was refused", func(x *stage) {
		x.begin()
		code := x.code()
		x.mark()
		if err := x.as.Deny(code); err != nil {
			x.Fatal(err)
		}
		x.pass(6 * time.Second)
	}},
	{"another account than the one of `account` has approved", func(x *stage) {
		x.cfg.Account = &flow.Claim{Name: "email", Value: "ada@example.com"}
		x.begin()
		code := x.code()
		x.mark()
		if err := x.as.Approve(code); err != nil {
			x.Fatal(err)
		}
		x.pass(6 * time.Second)
	}},
	{"`account` is set, and whose login it is could not be asked: the login server failed at that moment", func(x *stage) {
		x.unknownAccount(flowtest.Response{Status: 503})
	}},
	{"`account` is set, and the login server does not tell whose login it is", func(x *stage) {
		x.unknownAccount(flowtest.ErrorResponse(403, "insufficient_scope"))
	}},
	{"the login server gives no code: it is down", func(x *stage) {
		x.begin()
		x.mark()
		x.down()
		_, _ = x.session.Login(x.Context()) // the status says why not
		synctest.Wait()
	}},
	{"the certificate of the login server is not one that is trusted", func(x *stage) {
		x.cfg.HTTP = untrusted{}
		x.begin()
		x.mark()
		_, _ = x.session.Login(x.Context()) // the status says why not
		synctest.Wait()
	}},
	{"the login server gives no code: it is too busy", func(x *stage) { x.refusedAtLogin(503, "temporarily_unavailable") }},
	{"the login server, or something in front of it, answers with a page", func(x *stage) {
		x.answersAtLogin(flowtest.Response{Body: "<html>Welcome</html>"})
	}},
	{"an endpoint of the login server redirects: it is not the right URL", func(x *stage) {
		x.answersAtLogin(flowtest.Response{Status: 302, Header: http.Header{"Location": {"/device"}}})
	}},
	{"the login server does not know the client", func(x *stage) { x.refusedAtLogin(401, "invalid_client") }},
	{"the login server expects the client's secret in the other place", func(x *stage) {
		x.as.SetConfig(func(c *flowtest.Config) { c.ClientSecret = "0123456789" })
		x.cfg.Secret = func(context.Context) (flow.Secret, error) { return flow.NewSecret("0123456789"), nil }
		x.refusedAtLogin(401, "invalid_client")
	}},
	{"the client may not use the device flow", func(x *stage) { x.refusedAtLogin(400, "unauthorized_client") }},
	{"the login server has no login by device code", func(x *stage) { x.refusedAtLogin(400, "unsupported_grant_type") }},
	{"the scope is refused", func(x *stage) { x.refusedAtLogin(400, "invalid_scope") }},
	{"the audience or resource is refused", func(x *stage) { x.refusedAtLogin(400, "invalid_target") }},
	{"a site asks for another API, and the login server sends a token for the session's own", func(x *stage) {
		const own = "eyJhbGciOiJub25lIn0.eyJhdWQiOiJodHRwczovL293bi5leGFtcGxlIn0.c2ln" // for https://own.example
		x.as.ScriptAlways(flowtest.Token, flowtest.Response{Pass: true, Edit: flowtest.EditJSON(func(m map[string]any) {
			if m["access_token"] != nil {
				m["access_token"] = own
			}
		})})
		x.begin()
		x.logIn()
		x.mark()
		src, err := x.session.For(flow.Want{Audience: "https://orders.example.com"})
		if err != nil {
			x.Fatal(err)
		}
		_, err = src.Token(x.Context())
		notReady, ok := errors.AsType[*flow.NotReadyError](err)
		if !ok {
			x.Fatalf("that token is used: %v", err)
		}
		x.another = &notReady.Status
		synctest.Wait()
	}},
	{"a refresh fails: the login server is down", func(x *stage) {
		x.begin()
		x.logIn()
		x.mark()
		x.down()
		x.pass(55 * time.Minute)
	}},
	{"the same until the token has lapsed", func(x *stage) {
		x.begin()
		x.logIn()
		x.down()
		x.pass(55 * time.Minute)
		x.mark()
		x.pass(10 * time.Minute)
	}},
	{"a refresh is refused: the client's secret has changed", func(x *stage) {
		x.begin()
		x.logIn()
		x.mark()
		x.says(flowtest.Refresh, 401, "invalid_client")
		x.pass(55 * time.Minute)
	}},
	{"the same until the token has lapsed", func(x *stage) {
		x.begin()
		x.logIn()
		x.says(flowtest.Refresh, 401, "invalid_client")
		x.pass(55 * time.Minute)
		x.mark()
		x.pass(10 * time.Minute)
	}},
	{"the login has been revoked at the login server; the token still lives", func(x *stage) {
		x.begin()
		x.logIn()
		x.mark()
		x.as.RevokeAll()
		x.pass(55 * time.Minute)
	}},
	{"the same, and the token has lapsed", func(x *stage) {
		x.begin()
		x.logIn()
		x.as.RevokeAll()
		x.pass(55 * time.Minute)
		x.mark()
		x.pass(10 * time.Minute)
	}},
	{"the storage is full", func(x *stage) {
		x.begin()
		x.logIn()
		x.mark()
		x.store.full = true
		x.pass(55 * time.Minute)
	}},
	{"Caddy starts, and the stored login is damaged: it is kept as `….refused`", func(x *stage) {
		x.begin()
		x.logIn()
		x.end()
		x.rewrites(func(record map[string]any) { clear(record) })
		x.mark()
		x.begin()
		if _, err := x.store.Load(x.Context(), x.cfg.StorageKey()+".refused"); err != nil {
			x.Error(err)
		}
	}},
	{"Caddy starts, and the stored login is of a newer release: it is left as it is", func(x *stage) {
		x.begin()
		x.logIn()
		x.end()
		x.rewrites(func(record map[string]any) { record["version"] = 99 })
		x.mark()
		x.begin()
	}},
	{"Caddy starts, and its clock is hours behind that of the stored login", func(x *stage) {
		x.begin()
		x.logIn()
		x.end()
		x.rewrites(func(record map[string]any) {
			for _, name := range []string{"obtained_at", "refresh_at", "expires_at"} {
				at, err := time.Parse(time.RFC3339Nano, record[name].(string))
				if err != nil {
					x.Fatal(err)
				}
				record[name] = at.Add(5 * time.Hour)
			}
		})
		x.mark()
		x.begin()
		x.pass(time.Second)
	}},
	{"the stored login is sealed with another `encryption_key`", func(x *stage) {
		key := func(s string) flow.Key {
			k, err := flow.ParseKey(flow.NewSecret(strings.Repeat(s, 64)))
			if err != nil {
				x.Fatal(err)
			}
			return k
		}
		x.cfg.Keys = []flow.Key{key("a")}
		x.begin()
		x.logIn()
		x.end()
		x.cfg.Keys = []flow.Key{key("b")}
		x.mark()
		x.begin()
	}},
	{"`caddy device-flow logout`", func(x *stage) {
		x.begin()
		x.logIn()
		x.mark()
		if err := x.session.Logout(x.Context()); err != nil {
			x.Fatal(err)
		}
		synctest.Wait()
	}},
}

func (x *stage) refusedAtLogin(status int, code string) {
	x.answersAtLogin(flowtest.ErrorResponse(status, code))
}

// answersAtLogin has the server answer so when it is asked for a code.
func (x *stage) answersAtLogin(response flowtest.Response) {
	x.begin()
	x.mark()
	x.as.ScriptAlways(flowtest.Device, response)
	_, _ = x.session.Login(x.Context()) // the status says why not
	synctest.Wait()
}

// unknownAccount has somebody log in without an id_token, where the userinfo endpoint answers so.
func (x *stage) unknownAccount(response flowtest.Response) {
	x.cfg.Account = &flow.Claim{Name: "email", Value: "alice@example.com"}
	x.begin()
	code := x.code()
	x.mark()
	x.as.ScriptAlways(flowtest.UserInfo, response)
	x.as.ScriptAlways(flowtest.Poll, flowtest.Response{Pass: true, Edit: flowtest.EditJSON(func(m map[string]any) { delete(m, "id_token") })})
	if err := x.as.Approve(code); err != nil {
		x.Fatal(err)
	}
	x.pass(time.Minute)
}

// untrusted is a network in which each server has a certificate of an authority that nobody knows.
type untrusted struct{}

func (untrusted) RoundTrip(*http.Request) (*http.Response, error) {
	return nil, &tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}
}

// TestOperationsTableIsTrue plays each occasion and writes down what page, log, terminal, metrics, events, health check
// and callers are told. With -update it writes the table in docs/operations.md anew.
func TestOperationsTableIsTrue(t *testing.T) {
	const begin, end = "<!-- table -->\n", "<!-- /table -->\n"
	var table strings.Builder
	table.WriteString("| what has happened | state | page and `status` say | log | event | metric counts | healthz | a caller gets |\n|---|---|---|---|---|---|---|---|\n")
	for _, o := range occasions {
		table.WriteString(o.row(t))
	}
	requirePart(t, "../docs/operations.md", begin, end, "\n"+table.String()+"\n")
}

// row plays the occasion.
func (o occasion) row(t *testing.T) (row string) {
	t.Run(o.when, func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			core, lines := observer.New(zapcore.InfoLevel)
			x := &stage{T: t, as: flowtest.New(flowtest.Config{}), store: new(flakyStore), lines: lines}
			t.Cleanup(x.as.Close)
			note := func(e flow.Event) {
				if e.Kind == flow.EventStateChanged || e.Kind == flow.EventStoreFailed || e.Kind == flow.EventStoreHealed {
					return
				}
				x.mu.Lock()
				defer x.mu.Unlock()
				x.events = append(x.events, string(e.Kind))
			}
			x.cfg = flow.Config{
				Issuer: x.as.Issuer(), ClientID: "demo-client", Scope: []string{"openid", "offline_access"},
				HTTP: x.as.RoundTripper(), Store: x.store, Observer: observers(zap.NewNop(), logObserver(zap.New(core)), note),
			}
			x.count()
			o.play(x)
			row = x.describe(o.when)
		})
	})
	return row
}

// describe is the row of what has been told since the mark.
func (x *stage) describe(when string) string {
	x.Helper()
	st, now := x.session.Status(), time.Now()
	v := newView(st, now)
	say := v.Title + "."
	if st.State != flow.StateAuthorized || v.Login != nil {
		say = join(v.Title+".", v.Trouble, v.Next, x.doing(v))
	}

	x.mu.Lock()
	events := slices.Compact(slices.Clone(x.events))
	x.mu.Unlock()

	var logged []string
	for _, l := range x.lines.All() {
		logged = append(logged, strings.ToUpper(l.Level.String())+" "+l.Message)
	}
	logged = slices.Compact(logged)

	p := newFake(st).page()
	health := do(p, "GET", testPath+"/healthz").Code

	caller := "the API's answer"
	state := "`" + string(st.State) + "`"
	if st.Error != nil {
		state += "<br>`" + st.Error.Code + "`"
	}
	if x.another != nil {
		state += "<br>at that site `" + x.another.Error.Code + "`"
		st = *x.another
	}
	if st.Token == nil {
		r := httptest.NewRequest("GET", "/things", nil)
		w := httptest.NewRecorder()
		writeUnavailable(w, r, st, "", st.RetryAfter(now))
		if w.Header().Get("Retry-After") == "" {
			x.Error("a caller is not told when to come back")
		}
		caller = fmt.Sprintf("%d: %s", w.Code, newUnavailable(st, "", now).Detail)
	}
	cells := []string{when, state, say, strings.Join(logged, "<br>"), quoted(events), quoted(x.counts()), fmt.Sprint(health), caller}
	for i, c := range cells {
		if c == "" {
			c = "–"
		}
		if code := loginCode(st); code != "" {
			c = strings.ReplaceAll(c, code, "QTZL-MCBW")
		}
		cells[i] = strings.ReplaceAll(strings.ReplaceAll(c, flowtest.DefaultIssuer, "https://login.example.com"), "|", `\|`)
	}
	return "| " + strings.Join(cells, " | ") + " |\n"
}

func loginCode(st flow.Status) string {
	if st.Login == nil {
		return ""
	}
	return st.Login.UserCode
}

// doing is the step that the page has a button, a code or an address for.
func (x *stage) doing(v *view) string {
	switch {
	case v.Login != nil:
		return "Open " + v.Login.Link.Full() + " and enter " + v.Login.Code + "."
	case v.Button != "":
		return "Button: " + v.Button + "."
	}
	return ""
}

// counts are the counters that have moved.
func (x *stage) counts() (all []string) {
	families, err := x.counted.Gather()
	if err != nil {
		x.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if m.GetCounter().GetValue() == 0 {
				continue
			}
			name := strings.TrimPrefix(f.GetName(), "caddy_device_flow_")
			for _, l := range m.GetLabel() {
				if l.GetName() == "outcome" {
					name += ` ` + l.GetValue()
				}
			}
			all = append(all, name)
		}
	}
	slices.Sort(all)
	return all
}

func quoted(names []string) string {
	if len(names) == 0 {
		return ""
	}
	return "`" + strings.Join(names, "`<br>`") + "`"
}
