package flow_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is an authorization server in memory, a store, and the sessions of a test.
type world struct {
	*testing.T
	as    *flowtest.Server
	store *testStore
	cfg   flow.Config // of the next session

	mu     sync.Mutex
	events []flow.Event
}

// bubble runs f with a fake clock and the server that cfg describes. Afterwards
// the server may have nothing to object to.
func bubble(t *testing.T, cfg flowtest.Config, f func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, cfg)
		f(w)
		w.wantViolations()
	})
}

func newWorld(t *testing.T, cfg flowtest.Config) *world {
	w := &world{T: t, as: flowtest.New(cfg), store: new(testStore)}
	t.Cleanup(w.as.Close)
	w.cfg = flow.Config{
		Issuer:   w.as.Issuer(),
		ClientID: "demo-client",
		Scope:    []string{"openid", "offline_access"},
		HTTP:     w.as.RoundTripper(),
		Store:    w.store,
		Observer: w.observe,
	}
	return w
}

func (w *world) observe(e flow.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, e)
}

// run starts a session and returns it with the function that ends it.
func (w *world) run() (*flow.Session, func()) {
	w.Helper()
	s, err := flow.New(w.cfg)
	if err != nil {
		w.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.Run(ctx)
	}()
	stop := func() {
		cancel()
		<-ended
	}
	w.Cleanup(stop)
	synctest.Wait()
	return s, stop
}

// sleep lets d pass, and everything that is due at its end happen.
func (w *world) sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// login starts a login and approves it.
func (w *world) login(s *flow.Session) {
	w.Helper()
	st, err := s.Login(w.Context())
	if err != nil || st.Login == nil {
		w.Fatalf("login: %v, %+v", err, st)
	}
	if err := w.as.Approve(st.Login.UserCode); err != nil {
		w.Fatal(err)
	}
	w.sleep(5*time.Second + time.Millisecond)
	w.wantState(s, flow.StateAuthorized)
}

// loggedIn is a running session with a usable token.
func (w *world) loggedIn() (*flow.Session, func()) {
	w.Helper()
	s, stop := w.run()
	w.login(s)
	return s, stop
}

func (w *world) wantState(s *flow.Session, want flow.State) {
	w.Helper()
	if st := s.Status(); st.State != want {
		w.Fatalf("state %s, want %s: %s", st.State, want, asJSON(st))
	}
}

// wantError asserts what the status says went wrong; code "" means nothing.
func (w *world) wantError(s *flow.Session, code string, action flow.Action) {
	w.Helper()
	e := s.Status().Error
	switch {
	case e == nil && code == "":
	case e == nil || e.Code != code || e.Action != action || e.Description == "":
		w.Fatalf("error %s, want %s, %s", asJSON(e), code, action)
	}
}

// wantToken asserts that there is a token and that the server accepts it.
func (w *world) wantToken(s *flow.Session) *flow.Token {
	w.Helper()
	t, err := s.Token(w.Context())
	if err != nil {
		w.Fatal(err)
	}
	if !w.as.ValidToken(t.Value().Reveal()) {
		w.Fatalf("the session hands out a dead token; %s", asJSON(s.Status()))
	}
	return t
}

func (w *world) wantCount(step flowtest.Step, want int) {
	w.Helper()
	if got := w.as.Count(step); got != want {
		w.Fatalf("%d requests of step %s, want %d", got, step, want)
	}
}

// wantViolations asserts that the server objected to these things, in order.
func (w *world) wantViolations(want ...string) {
	w.Helper()
	got := w.as.Stats().Violations
	if len(got) != len(want) || !slices.EqualFunc(got, want, strings.Contains) {
		w.Errorf("the server objects: %q, want %q", got, want)
	}
}

// kinds are the events so far, changes of state as "from>to".
func (w *world) kinds() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for _, e := range w.events {
		kind := string(e.Kind)
		if e.Kind == flow.EventStateChanged {
			kind = fmt.Sprintf("%s>%s", e.From, e.Status.State)
		}
		out = append(out, kind)
	}
	return out
}

func (w *world) wantEvents(want ...string) {
	w.Helper()
	synctest.Wait() // events are told after the view is public that answers callers
	if got := w.kinds(); !slices.Equal(got, want) {
		w.Fatalf("events\n%q, want\n%q", got, want)
	}
	w.forgetEvents()
}

func (w *world) forgetEvents() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = nil
}

func (w *world) count(kind flow.EventKind) (n int) {
	for _, k := range w.kinds() {
		if k == string(kind) {
			n++
		}
	}
	return n
}

// times are the arrivals of the requests of a step.
func (w *world) times(step flowtest.Step) (out []time.Time) {
	for _, r := range w.as.Requests() {
		if r.Step == step {
			out = append(out, r.Time)
		}
	}
	return out
}

// gaps are the pauses between the requests of a step.
func (w *world) gaps(step flowtest.Step) (out []time.Duration) {
	at := w.times(step)
	for i := 1; i < len(at); i++ {
		out = append(out, at[i].Sub(at[i-1]))
	}
	return out
}

func asJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(b)
}
