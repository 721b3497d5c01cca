package caddymodule

import (
	"context"
	"errors"
	"sync"
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
// goroutine of the session's own. Nothing waits for them: a handler can neither
// stop a login or a refresh by aborting the event, nor by blocking or panicking.

const (
	// maxQueue bounds the events of one session that wait for their handlers.
	maxQueue = 256
	// goneGrace is how long a handler may take when its configuration has been
	// replaced, lastGrace how long all have when the session ends.
	goneGrace = time.Second
	lastGrace = 500 * time.Millisecond
)

// emitter is how the event handlers of one configuration are reached.
type emitter struct {
	logger *zap.Logger
	gone   <-chan struct{} // closed when the configuration has been replaced
	emit   func(ctx context.Context, name string, data map[string]any)
}

// log tells about an event that does not find its way.
func (to *emitter) log(msg string, e flow.Event, more ...zap.Field) {
	guard(to.logger, "the log", func() {
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

// outbox holds the events of one session until the handlers have had them.
type outbox struct {
	mu      sync.Mutex
	to      *emitter // nil until a configuration has started
	queue   []flow.Event
	dropped int // since the last one was taken out

	wake    chan struct{}
	closing chan struct{}   // the session has ended, no event comes any more
	ctx     context.Context // ends when nobody waits for a handler any more
	giveUp  context.CancelFunc
	done    chan struct{}
}

// newOutbox makes an outbox. Its goroutine, run, ends in close.
func newOutbox() *outbox {
	o := &outbox{wake: make(chan struct{}, 1), closing: make(chan struct{}), done: make(chan struct{})}
	o.ctx, o.giveUp = context.WithCancel(context.Background())
	return o
}

// address says who hears of the events from now on, those that wait included.
func (o *outbox) address(to *emitter) {
	o.mu.Lock()
	o.to = to
	o.mu.Unlock()
	o.rouse()
}

func (o *outbox) rouse() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// put adds an event, if it is one for Caddy. It never blocks: when handlers are
// too slow, the oldest event goes.
func (o *outbox) put(e flow.Event) {
	switch e.Kind {
	case flow.EventLoginPending, flow.EventLoginSucceeded, flow.EventLoginFailed,
		flow.EventTokenRefreshed, flow.EventRefreshFailed, flow.EventLoggedOut:
	default:
		return
	}
	o.mu.Lock()
	first := false
	if len(o.queue) == maxQueue {
		o.queue = o.queue[1:]
		first = o.dropped == 0
		o.dropped++
	}
	o.queue = append(o.queue, e)
	to := o.to
	o.mu.Unlock()
	o.rouse()
	if first && to != nil {
		to.log("event handlers are too slow or hang: the oldest events are dropped", e)
	}
}

// next takes the oldest event out.
func (o *outbox) next() (to *emitter, e flow.Event, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.to == nil || len(o.queue) == 0 || o.ctx.Err() != nil {
		return nil, e, false
	}
	e, o.queue, o.dropped = o.queue[0], o.queue[1:], 0
	return o.to, e, true
}

func (o *outbox) run() {
	defer close(o.done)
	deliver := func() {
		for to, e, ok := o.next(); ok; to, e, ok = o.next() {
			o.deliver(to, e)
		}
	}
	for {
		select {
		case <-o.wake:
			deliver()
		case <-o.closing:
			deliver()
			return
		}
	}
}

// deliver has the handlers called, and waits for them as long as they are in use.
func (o *outbox) deliver(to *emitter, e flow.Event) {
	name := string(e.Kind)
	// Not the configuration's own context: an event that is told while Caddy
	// replaces the configuration would reach some handlers only.
	ctx, cancel := context.WithCancel(o.ctx)
	defer cancel()
	returned := make(chan struct{})
	go func() {
		defer close(returned)
		guard(to.logger, "an event handler", func() { to.emit(ctx, name, eventData(e)) })
	}()
	select {
	case <-returned:
		return
	case <-o.ctx.Done():
	case <-to.gone:
		select {
		case <-returned:
			return
		case <-o.ctx.Done():
		case <-time.After(goneGrace):
		}
	}
	to.log("an event handler hangs, nobody waits for it any more", e)
}

// close delivers what is left, as far as it can be done in a moment.
func (o *outbox) close() {
	close(o.closing)
	timer := time.AfterFunc(lastGrace, o.giveUp)
	defer timer.Stop()
	<-o.done
	o.giveUp()
	if n := len(o.queue); n > 0 && o.to != nil {
		o.to.log("event handlers are too slow or hang: the last events are dropped", o.queue[0], zap.Int("dropped", n))
	}
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
