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
	app, s, err := sessionOf(ctx, p.Session, p.Client)
	if err != nil {
		return err
	}
	if p.guard, err = p.Guard.provision(ctx, p, s.name); err != nil {
		return err
	}
	if err := app.claimPage(pageKey{siteOf(ctx), p.Path}, s.name); err != nil {
		return err
	}
	p.page = newPage(p.Path, func(r *http.Request) (watcher, error) { return s.get(r.Context()) })
	// An open event stream would hold up the end of the server (and so a reload).
	if srv, ok := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server); ok {
		srv.RegisterOnShutdown(p.page.shutdown)
	}
	return nil
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
