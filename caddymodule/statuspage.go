package caddymodule

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

func init() {
	caddy.RegisterModule(StatusPage{})
}

// defaultStatusPath is where the directive puts the page.
const defaultStatusPath = "/.device-flow"

// StatusPage serves what a person needs to log in: the code, the address, the
// QR code, and afterwards who is connected. Below `path` it also serves the
// status as JSON and as server-sent events, and a health check. Whoever may not
// call may not look either. Other requests pass.
type StatusPage struct {
	// The session to show. Default: `default`.
	Session string `json:"session,omitempty"`

	// Declares the session here instead of in the app.
	Client *Client `json:"client,omitempty"`

	// Shows all sessions of this Caddy instead of one, those that need somebody first.
	// Each has its own page with `?session=<name>`. JSON, events and health check are
	// those of all; a session is named in the query there, too.
	All bool `json:"all,omitempty"`

	// Shows the sessions of all keys, each with its own page as above.
	SessionKey string `json:"session_key,omitempty"`

	// Where the page is. Default: `/.device-flow`.
	Path string `json:"path,omitempty"`

	Guard

	page  *page
	guard *keeper
}

// CaddyModule returns the Caddy module information.
func (StatusPage) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.device_flow_status",
		New: func() caddy.Module { return new(StatusPage) },
	}
}

// Provision finds the session and makes sure that the page can be seen.
func (p *StatusPage) Provision(ctx caddy.Context) error {
	if p.Path == "" {
		p.Path = defaultStatusPath
	}
	if err := checkStatusPath(p.Path); err != nil {
		return err
	}
	app, session, shown, err := p.choose(ctx)
	if err != nil {
		return err
	}
	if p.guard, err = p.Guard.provision(ctx, p, session); err != nil {
		return err
	}
	if err := app.claimPage(pageKey{siteOf(ctx), p.Path}, shown); err != nil {
		return err
	}
	// An open event stream would hold up the end of the server (and so a reload).
	if srv, ok := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server); ok {
		srv.RegisterOnShutdown(p.page.shutdown)
	}
	return nil
}

// choose makes the page of a session, or of all. shown is what tells what it shows
// from what other pages do. It and the session are empty for all.
func (p *StatusPage) choose(ctx caddy.Context) (app *App, session, shown string, err error) {
	if p.All {
		if p.Session != "" || p.Client != nil || p.SessionKey != "" {
			return nil, "", "", errors.New("a status page shows all sessions or one: leave out either all or the session")
		}
		p.page = newOverview(p.Path, everySession)
		app, err = appOf(ctx)
		return app, "", "", err
	}
	app, s, err := sessionOf(ctx, p.Session, p.Client)
	if err != nil {
		return nil, "", "", err
	}
	k, err := app.keyBy(s, KeyedBy{SessionKey: p.SessionKey})
	if err != nil {
		return nil, "", "", err
	}
	if k != nil {
		p.page = k.page(p.Path)
		return app, s.name, s.name + " by " + p.SessionKey, nil
	}
	s.plain = true
	p.page = newPage(p.Path, func(r *http.Request) (watcher, error) { return s.get(r.Context()) })
	return app, s.name, s.name, nil
}

// everySession is all that run now, each name once: during a reload there may be two
// of one for a moment, and the newer configuration's counts.
func everySession() []watcher {
	var all []watcher
	last := ""
	for _, s := range runningSessions() {
		name := s.Status().Session
		if len(all) > 0 && name == last {
			all = all[:len(all)-1]
		}
		all, last = append(all, s), name
	}
	return all
}

// Cleanup ends what is still open.
func (p *StatusPage) Cleanup() error {
	if p.page != nil {
		p.page.shutdown()
	}
	return nil
}

// ServeHTTP implements caddyhttp.MiddlewareHandler.
func (p *StatusPage) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	if !p.page.match(r.URL.Path) {
		return next.ServeHTTP(w, r)
	}
	if no := p.guard.admit(r); no != nil {
		return p.guard.turnAway(w, r, no)
	}
	p.page.ServeHTTP(w, r)
	return nil
}

// checkStatusPath wants a plain absolute path that leaves room for the API.
func checkStatusPath(path string) error {
	switch {
	case !strings.HasPrefix(path, "/"):
		return fmt.Errorf("status_path %q: write it with a leading slash, as in %s, or 'off' for no page", path, defaultStatusPath)
	case strings.Trim(path, "/") == "":
		return errors.New("status_path / would hide the whole API: choose a path that the API does not have, as in " + defaultStatusPath)
	case strings.HasSuffix(path, "/") || strings.ContainsAny(path, "*?#%{}\\ ") || strings.Contains(path, "//") || strings.Contains(path, "/../") || strings.HasSuffix(path, "/.."):
		return fmt.Errorf("status_path %q: use a plain path without a final slash, wildcards, placeholders, query or escapes, as in %s", path, defaultStatusPath)
	}
	return nil
}

var (
	_ caddy.Provisioner           = (*StatusPage)(nil)
	_ caddy.CleanerUpper          = (*StatusPage)(nil)
	_ caddyhttp.MiddlewareHandler = (*StatusPage)(nil)
)
