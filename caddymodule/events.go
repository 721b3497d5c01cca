package caddymodule

import (
	"context"
	"errors"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"
	"go.uber.org/zap"

	"github.com/deviceflow/caddy-deviceflow/flow"
)

func init() {
	caddy.RegisterModule(origin{listed: true})
}

// Caddy's events come from module `device_flow`:
//
//	login_pending     a code is out, a person has to approve it
//	login_succeeded   somebody has logged in
//	login_failed      a login came to nothing, or no code was to be had
//	token_refreshed   the access token has been traded for a newer one
//	refresh_failed    an attempt to do so has failed; there will be others
//	logged_out        the login has been forgotten
//
// Each step of a session is one event. Of several instances on one storage, each
// tells what becomes of its own session: a login at one of them is a
// login_succeeded at the others as soon as they find it, and likewise
// login_pending and logged_out; a refresh or a failure is told by the instance
// whose it was.
//
// Handlers are called one event after the other, in the order of the steps, on a
// goroutine of their own. Nothing waits for them: a handler can neither stop a
// login or a refresh by aborting the event, nor by blocking or panicking.

// emitter is how the event handlers of one configuration are reached.
type emitter struct {
	logger *zap.Logger
	gone   <-chan struct{} // closed when the configuration has been replaced
	emit   func(ctx context.Context, name string, data map[string]any)
}

// log tells about an event that does not find its way.
func (to *emitter) log(msg string, e flow.Event, more ...zap.Field) {
	survive(to.logger, "the log", func() {
		to.logger.Error(msg, append(more, zap.String("session", e.Status.Session), zap.String("event", string(e.Kind)))...)
	})
}

// provisionEvents arranges that events are told as soon as all of the
// configuration has started. Not before: the event app makes its list of handlers
// at its start, and Caddy starts apps in any order.
func (a *App) provisionEvents(ctx caddy.Context) error {
	mod, err := ctx.App("events")
	if err != nil {
		return err
	}
	app := mod.(*caddyevents.App)
	return app.On("started", onStarted{func(root caddy.Context) error {
		mod, err := root.LoadModuleByID(originID, nil)
		if err != nil {
			return err
		}
		a.tellEvents(&emitter{
			logger: a.logger,
			gone:   root.Done(),
			emit: func(ctx context.Context, name string, data map[string]any) {
				c := mod.(*origin).ctx
				// The event app adds to the replacer that it finds, for good.
				c.Context = context.WithValue(ctx, caddy.ReplacerCtxKey, caddy.NewReplacer())
				app.Emit(c, name, data)
			},
		})
		return nil
	}})
}

// tellEvents lets the app's sessions tell their events to its configuration.
func (a *App) tellEvents(to *emitter) {
	a.emitter.Store(to)
	for _, s := range a.sessions {
		if r := s.live.Load(); r != nil {
			r.mu.Lock()
			r.readdress()
			r.mu.Unlock()
		}
		for _, k := range s.keyed {
			if g := k.live.Load(); g != nil {
				g.tellEvents()
			}
		}
	}
}

// onStarted handles Caddy's own event of that name. Its field is unexported, for
// Caddy logs the handlers that it calls.
type onStarted struct {
	do func(root caddy.Context) error
}

// Handle implements caddyevents.Handler.
func (h onStarted) Handle(ctx context.Context, e caddy.Event) error {
	root, ok := ctx.(caddy.Context)
	if !ok || e.Origin() != nil { // other modules may have an event of that name
		return nil
	}
	return h.do(root)
}

// originID is what Caddy loads an origin by.
const originID = "device_flow.origin"

// origin is what the events come from. It is for the event app alone, not for a
// configuration. The app itself cannot be it: where a handler has loaded the app,
// the context that the app was provisioned with may name another module later
// (contexts share what holds their modules, and each overwrites what lies beyond
// its own). An origin is loaded from the root, with nobody to share with.
type origin struct {
	ctx    caddy.Context
	listed bool // as in the list of modules, where its name cannot be the app's
}

// CaddyModule returns the Caddy module information: that of the app, as it is
// the app that an event is to come from.
func (o origin) CaddyModule() caddy.ModuleInfo {
	info := caddy.ModuleInfo{ID: "device_flow", New: func() caddy.Module { return new(origin) }}
	if o.listed {
		info.ID = originID
	}
	return info
}

// Provision keeps the context.
func (o *origin) Provision(ctx caddy.Context) error {
	o.ctx = ctx
	return nil
}

// eventData is what handlers are told. It holds no secret, for Caddy logs it at
// debug level, and only strings, as they become placeholders:
// {event.data.session}, {event.data.user_code} and so on.
func eventData(e flow.Event) map[string]any {
	st := e.Status
	data := map[string]any{"session": st.Session, "state": string(st.State)}
	text := func(key, s string, limit int) {
		if s = clean(s, limit); s != "" {
			data[key] = s
		}
	}
	at := func(key string, t *time.Time) {
		if t != nil && !t.IsZero() {
			data[key] = t.UTC().Format(time.RFC3339)
		}
	}
	if l := st.Login; l != nil {
		text("user_code", l.UserCode, maxCode)
		text("verification_uri", newLink(l.VerificationURI).Full(), maxLink)
		text("verification_uri_complete", newLink(l.VerificationURIComplete).Href, maxLink)
		at("code_expires_at", &l.ExpiresAt)
	}
	text("key", st.Key, maxText)
	text("account", st.Account.Label(), maxText)
	if st.Token != nil {
		at("token_expires_at", st.Token.ExpiresAt)
	}
	var fe *flow.Error
	if !errors.As(e.Err, &fe) {
		return data
	}
	text("error", fe.Code, maxText)
	reason := fe.Error()
	if x := st.Error; x != nil && x.Code == fe.Code { // else there is worse than this error
		reason = x.Description
		data["action"] = string(x.Action)
		at("retry_at", x.RetryAt)
	}
	text("reason", reason, maxReason)
	return data
}

// maxReason bounds in runes what an event says about an error.
const maxReason = 400

var (
	_ caddyevents.Handler = onStarted{}
	_ caddy.Provisioner   = (*origin)(nil)
)
