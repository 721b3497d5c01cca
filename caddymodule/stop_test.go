package caddymodule

import (
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

func TestARemovedSessionEnds(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	x.load(x.config(t.Name(), "", "a", proxy))
	s := x.login("default")
	x.load(x.config(t.Name(), "", "a", "respond gone"))
	select {
	case <-s.ended:
	default:
		t.Error("its goroutine runs on")
	}
	stacks := make([]byte, 1<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	if strings.Contains(string(stacks), "caddy-deviceflow/flow.") {
		t.Errorf("a goroutine of the session is left:\n%s", stacks)
	}
	if len(runningSessions()) != 0 {
		t.Error("it is in the pool still")
	}
	if x.saved("storage") == "" {
		t.Error("the login is lost for whoever puts the session back")
	}
}

// hold is a handler in front of ours, which holds a request until the test lets it go.
type hold struct{}

// held are the two ends of what a hold does; each test makes them anew.
var held struct{ entered, release chan struct{} }

func init() {
	caddy.RegisterModule(hold{})
	httpcaddyfile.RegisterHandlerDirective("hold", func(httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) { return hold{}, nil })
}

func (hold) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.hold", New: func() caddy.Module { return new(hold) }}
}

func (hold) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	close(held.entered)
	<-held.release
	return next.ServeHTTP(w, r)
}

func TestARequestOutlivesItsConfiguration(t *testing.T) {
	for next, want := range map[string]int{proxy: http.StatusOK, "respond gone": http.StatusUnauthorized} {
		t.Run(fmt.Sprint(want), func(t *testing.T) {
			x := newRig(t, flowtest.Config{})
			held.entered, held.release = make(chan struct{}), make(chan struct{})
			x.as.Script(flowtest.API, flowtest.Response{Status: http.StatusUnauthorized}) // for the old handlers to repair
			x.load(x.config(t.Name(), "", "a", "route {\n hold\n"+proxy+"\n}", "b", "respond one"))
			s := x.login("default")
			old := s.Current()
			got := make(chan answer)
			go func() { got <- x.get("http://a/") }()
			receive(t, held.entered, "the call to come in")

			x.load(x.config(t.Name(), "", "a", next, "b", "respond two"))
			x.awaitAnswer("http://b/", "two")
			if next != proxy {
				receive(t, s.ended, "the session to end")
			}
			close(held.release)
			if a := receive(t, got, "the answer"); a.status != want {
				t.Errorf("%d %s, want %d", a.status, a.body, want)
			}
			if want == http.StatusOK && s.Current() == old {
				t.Error("the token was not refreshed")
			}
		})
	}
}

// S110 of the scorecard: an event stream is open and a refresh hangs.
func TestStopIsQuickWhateverHangs(t *testing.T) {
	t.Parallel()
	if !apart(t) {
		return
	}
	x := newRig(t, flowtest.Config{})
	x.load(x.config(t.Name(), "", "a", proxy))
	s := x.login("default")
	refreshing := make(chan struct{})
	x.as.Script(flowtest.Refresh, flowtest.Response{Func: func(_ http.ResponseWriter, r *http.Request) {
		close(refreshing)
		<-r.Context().Done()
	}})
	go func() { _, _ = s.Refresh(t.Context()) }()
	receive(t, refreshing, "the refresh")

	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://a/.device-flow/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := x.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Body.Close()

	began := time.Now()
	if err := caddy.Stop(); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took >= 5*time.Second {
		t.Errorf("it took %v", took)
	}
}

func TestAnEventStreamEndsWithItsServer(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	x.load(x.config(t.Name(), "", "a", proxy))
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://a/.device-flow/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := x.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Body.Close()
	app, err := caddy.ActiveContext().App("http")
	if err != nil {
		t.Fatal(err)
	}
	// When the process exits, Caddy waits here for every request, before it cleans up.
	if err := app.(caddy.App).Stop(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() {
		_, err := io.Copy(io.Discard, stream.Body)
		ended <- err
	}()
	if err := receive(t, ended, "the end of the event stream"); err != nil {
		t.Errorf("the event stream ends with %v", err)
	}
}

func TestAStartThatFailsLeavesNothingRunning(t *testing.T) {
	as := flowtest.New(flowtest.Config{})
	defer as.Close()
	app := &App{sessions: make(map[string]*session)}
	for _, name := range []string{"a", "b", "c", "not a name"} {
		cfg := flow.Config{Name: name, Issuer: as.Issuer(), ClientID: "x", HTTP: as.RoundTripper()}
		app.sessions[name] = &session{name: name, cfg: cfg, started: make(chan struct{})}
	}
	err := app.Start()
	if err == nil || !strings.HasPrefix(err.Error(), "session not a name: ") {
		t.Errorf("the error is %v", err)
	}
	for range 2 { // the second time for nothing
		if err := app.Cleanup(); err != nil {
			t.Error(err)
		}
	}
	if n := len(runningSessions()); n != 0 {
		t.Errorf("%d sessions run", n)
	}
}

func TestTwoConfigurationsShareASession(t *testing.T) {
	as := flowtest.New(flowtest.Config{})
	defer as.Close()
	config := func(name, client string) flow.Config {
		return flow.Config{Name: name, Issuer: as.Issuer(), ClientID: client, HTTP: as.RoundTripper()}
	}
	var apps [3]App
	begin := func(app *App, cfg flow.Config) *running {
		r, err := start(app, cfg)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	one, two := begin(&apps[0], config("a", "x")), begin(&apps[1], config("a", "x"))
	name, client := begin(&apps[2], config("b", "x")), begin(&apps[2], config("a", "y"))
	if one != two {
		t.Error("the same name and login are two sessions")
	}
	if one == name || one == client || name == client {
		t.Error("two names, or two clients, are one session")
	}
	release := func(r *running, app *App, cfg flow.Config) {
		if err := r.release(app, poolKey{cfg.Name, cfg.Fingerprint()}); err != nil {
			t.Error(err)
		}
	}
	release(one, &apps[0], config("a", "x"))
	select {
	case <-two.ended:
		t.Error("it ends although a configuration has it")
	default:
	}
	release(two, &apps[1], config("a", "x"))
	release(name, &apps[2], config("b", "x"))
	release(client, &apps[2], config("a", "y"))
	for _, r := range []*running{one, name, client} {
		select {
		case <-r.ended:
		default:
			t.Error("it runs on although nobody has it")
		}
	}
}
