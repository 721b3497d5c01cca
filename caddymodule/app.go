package caddymodule

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/deviceflow/caddy-deviceflow/flow"
)

func init() {
	caddy.RegisterModule(new(App))
}

// App owns logins by the OAuth 2.0 Device Authorization Grant (RFC 8628). A
// person approves each once; from then on the handlers, status pages and proxy
// transports that name a session have a fresh access token.
type App struct {
	// The sessions by name. Handlers can declare further ones for themselves.
	Sessions map[string]*Client `json:"sessions,omitempty"`

	ctx      caddy.Context
	logger   *zap.Logger
	emitter  atomic.Pointer[emitter] // nil until all of the configuration has started
	sweeps   []*time.Timer
	mu       sync.Mutex
	sessions map[string]*session
	pages    map[pageKey]string
}

// session is a session as one configuration sees it. It can be used before the
// app has started: Caddy starts apps in any order, so requests may come first.
type session struct {
	name    string
	cfg     flow.Config
	raw     []byte // the settings, to tell a repetition from a contradiction
	live    atomic.Pointer[running]
	started chan struct{}
	held    bool // from Start to Stop

	newObserver func() flow.Observer // each session has its own
	plain       bool                 // somebody wants it without a key
	aimed       bool                 // a handler asks it for another API's tokens
	keyed       map[string]*keyed    // who wants it with one, by session_key
}

// pageKey is a place where a status page can be.
type pageKey struct {
	site any
	path string
}

// CaddyModule returns the Caddy module information.
func (*App) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "device_flow",
		New: func() caddy.Module { return new(App) },
	}
}

// Provision checks the sessions. It starts nothing: `caddy validate` runs it, too.
func (a *App) Provision(ctx caddy.Context) error {
	a.ctx, a.logger = ctx, ctx.Logger()
	a.sessions = make(map[string]*session, len(a.Sessions))
	a.pages = make(map[pageKey]string)
	if guardOff {
		a.logger.Error("the guard is off, and everybody may call with the login: this Caddy was built with -tags unguarded, which is for tests alone; build it without")
	}
	for name, c := range a.Sessions {
		if c == nil {
			return fmt.Errorf("session %s: it has no settings; write at least issuer and client_id", name)
		}
		if _, err := a.declare(ctx, name, name, c); err != nil {
			return err
		}
	}
	if err := registerMetrics(ctx); err != nil {
		a.logger.Warn("there are no metrics of the logins", zap.Error(err))
	}
	return a.provisionEvents(ctx)
}

// declare makes a session known. To declare it again with the same settings is
// no error, with other settings it is: one would get the other's token.
func (a *App) declare(ctx caddy.Context, name, storageName string, c *Client) (*session, error) {
	if strings.Contains(name, keyMark) {
		return nil, fmt.Errorf("session name %q: use letters, digits, dot, underscore and hyphen", name)
	}
	raw, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("session %s: %w", name, err)
	}
	if s, err := a.find(name); err == nil {
		if !bytes.Equal(s.raw, raw) {
			return nil, fmt.Errorf("session %s is declared twice with different settings: give one of them another name", name)
		}
		return s, nil
	}
	// Without the lock: a module that is loaded here could look for a session itself.
	cfg, err := c.flowConfig(ctx, name, storageName)
	if err != nil {
		return nil, fmt.Errorf("session %s: %w", name, err)
	}
	s := &session{name: name, raw: raw, started: make(chan struct{})}
	s.newObserver = func() flow.Observer {
		if c.LogQR {
			return observers(a.logger, logObserver(a.logger), qrObserver(newTerminal(os.Stderr)))
		}
		return logObserver(a.logger)
	}
	cfg.Observer = s.newObserver()
	s.cfg = cfg
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, other := range a.sessions {
		// Each would use up the refresh tokens of the other.
		if other.cfg.StorageName == cfg.StorageName && other.cfg.Fingerprint() == cfg.Fingerprint() {
			return nil, fmt.Errorf("session %s is the login of session %s (same issuer, client, scope and audience) with other settings: "+
				"make the settings the same, or declare both in the global options, each under a name of its own", name, other.name)
		}
	}
	a.sessions[name] = s
	return s, nil
}

// find returns a session that has been declared.
func (a *App) find(name string) (*session, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if s := a.sessions[name]; s != nil {
		return s, nil
	}
	return nil, fmt.Errorf("there is no session %q: declare it in the global options, as in '{ device_flow %s { issuer … client_id … } }'", name, name)
}

// claimPage notes that a status page of a session is at a place, and fails if
// another session's page is there already: nobody would ever see it. The name of
// the overview is empty.
func (a *App) claimPage(key pageKey, name string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if other, taken := a.pages[key]; taken && other != name {
		if other == "" || name == "" {
			return fmt.Errorf("status_path %s is to show one session and all of them: write another path, as in 'device_flow_status /.device-flows'", key.path)
		}
		return fmt.Errorf("status_path %s is where the page of session %s is already: give session %s another status_path", key.path, other, name)
	}
	a.pages[key] = name
	return nil
}

// Start makes the sessions run. It asks no server and waits for no storage.
func (a *App) Start() error {
	for _, s := range a.sessions {
		if l := leftoversOf(s.cfg.Store); l != nil {
			// Twice: a process that was killed is often back at once, and only later can
			// it be told that nobody writes what it has left behind.
			a.sweeps = append(a.sweeps, time.AfterFunc(0, l.first), time.AfterFunc(sweepAgain, l.second))
		}
		for _, k := range s.keyed {
			if err := k.attach(); err != nil {
				return fmt.Errorf("session %s: %w", s.name, err)
			}
		}
		if s.keyedOnly() {
			continue
		}
		r, err := start(a, s.cfg)
		if r != nil {
			s.held = true
			s.live.Store(r)
			close(s.started)
		}
		if err != nil {
			return fmt.Errorf("session %s: %w", s.name, err)
		}
	}
	a.warnOfOpenSites()
	return nil
}

// Stop gives the sessions back, all at once: each may need a moment to save
// what an exchange under way brings. A second call does nothing.
func (a *App) Stop() error {
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		errs error
	)
	for _, t := range a.sweeps {
		t.Stop()
	}
	fail := func(err error) {
		if err != nil {
			mu.Lock()
			defer mu.Unlock()
			errs = errors.Join(errs, err)
		}
	}
	for _, s := range a.sessions {
		for _, k := range s.keyed {
			wg.Go(func() { fail(k.detach()) })
		}
		if !s.held {
			continue
		}
		s.held = false
		r := s.live.Load()
		wg.Go(func() { fail(r.release(a, poolKey{s.cfg.Name, s.cfg.Fingerprint()})) })
	}
	wg.Wait()
	return errs
}

// Cleanup is Stop for a configuration that Caddy gives up when it has started
// in part, or all but for the last steps: it does not stop every app then.
func (a *App) Cleanup() error { return a.Stop() }

// keyedOnly reports whether the session is but the model of keyed ones, and does not
// run itself.
func (s *session) keyedOnly() bool { return len(s.keyed) > 0 && !s.plain }

// startWait bounds how long a request waits for its app to start.
const startWait = 5 * time.Second

// get returns the running session, waiting for the app to start if need be.
func (s *session) get(ctx context.Context) (*flow.Session, error) {
	r, err := s.running(ctx)
	if err != nil {
		return nil, err
	}
	return r.Session, nil
}

// running is get with what belongs to the session in this process.
func (s *session) running(ctx context.Context) (*running, error) {
	if r := s.live.Load(); r != nil {
		return r, nil
	}
	if s.keyedOnly() {
		return nil, fmt.Errorf("session %s: %w; use it with session_key", s.name, errKeyedOnly)
	}
	timer := time.NewTimer(startWait)
	defer timer.Stop()
	select {
	case <-s.started:
		return s.live.Load(), nil
	case <-timer.C:
		return nil, &flow.NotReadyError{RetryAfter: time.Second, Status: flow.Status{Session: s.name, State: flow.StateUnavailable}}
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// appOf returns the app of the configuration that ctx belongs to. The app need
// not be configured: the short form of the directive declares its session itself.
func appOf(ctx caddy.Context) (*App, error) {
	mod, err := ctx.App("device_flow")
	if err != nil {
		return nil, err
	}
	return mod.(*App), nil
}

// sessionOf finds or declares the session of a handler.
func sessionOf(ctx caddy.Context, name string, c *Client) (*App, *session, error) {
	app, err := appOf(ctx)
	if err != nil {
		return nil, nil, err
	}
	if name == "" {
		name = flow.DefaultName
	}
	if c == nil {
		s, err := app.find(name)
		return app, s, err
	}
	// Settings that stand beside a handler are one login wherever they stand:
	// the name that tells several apart can change when sites are moved about.
	s, err := app.declare(ctx, name, flow.DefaultName, c)
	return app, s, err
}

// siteOf is something that is the same for all handlers of one site and
// different for two sites: the innermost subroute around the module, or else the
// server.
func siteOf(ctx caddy.Context) any {
	modules := ctx.Modules()
	for _, module := range slices.Backward(modules) {
		if s, ok := module.(*caddyhttp.Subroute); ok {
			return s
		}
	}
	return ctx.Value(caddyhttp.ServerCtxKey)
}

var (
	_ caddy.App          = (*App)(nil)
	_ caddy.Provisioner  = (*App)(nil)
	_ caddy.CleanerUpper = (*App)(nil)
)
