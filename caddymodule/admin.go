package caddymodule

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/caddyserver/caddy/v2"

	"github.com/deviceflow/caddy-deviceflow/flow"
)

func init() {
	caddy.RegisterModule(Admin{})
}

// Admin adds the sessions to Caddy's admin API:
//
//	GET  /device_flow/sessions
//	GET  /device_flow/sessions/{name}
//	POST /device_flow/sessions/{name}/login     asks for a code
//	POST /device_flow/sessions/{name}/refresh   trades the refresh token now
//	POST /device_flow/sessions/{name}/logout    forgets and revokes the login
//
// All answer with the status of the session, which holds no secret.
type Admin struct{}

// adminPath is where the endpoints begin.
const adminPath = "/device_flow/sessions"

// CaddyModule returns the Caddy module information.
func (Admin) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "admin.api.device_flow",
		New: func() caddy.Module { return new(Admin) },
	}
}

// Provision sees to it that the admin API's /metrics has our metrics even if the
// rest of its configuration comes to nothing: Caddy keeps that endpoint then.
func (a *Admin) Provision(ctx caddy.Context) error {
	_ = registerMetrics(ctx) // the app says so, too
	return nil
}

// Routes implements caddy.AdminRouter. The endpoints look sessions up at each
// request, for admin routers outlive the configuration they were built with.
func (a *Admin) Routes() []caddy.AdminRoute {
	return []caddy.AdminRoute{
		{Pattern: adminPath, Handler: caddy.AdminHandlerFunc(a.list)},
		{Pattern: adminPath + "/", Handler: caddy.AdminHandlerFunc(a.one)},
	}
}

func (a *Admin) list(w http.ResponseWriter, r *http.Request) error {
	if r.Method != http.MethodGet {
		return methodNotAllowed(w, http.MethodGet)
	}
	all := []flow.Status{}
	for _, s := range runningSessions() {
		all = append(all, s.Status())
	}
	return writeJSON(w, all)
}

func (a *Admin) one(w http.ResponseWriter, r *http.Request) error {
	name, action, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, adminPath+"/"), "/")
	s, err := sessionNamed(r.Context(), name)
	if err != nil {
		return apiError(http.StatusServiceUnavailable, fmt.Errorf("session %s: %w", name, err))
	}
	if s == nil {
		return apiError(http.StatusNotFound, fmt.Errorf("there is no session %q; GET %s lists them", name, adminPath))
	}
	var do func() error
	ctx := r.Context()
	switch action {
	case "":
		if r.Method != http.MethodGet {
			return methodNotAllowed(w, http.MethodGet)
		}
		return writeJSON(w, s.Status())
	case "login":
		do = func() error { _, err := s.Login(ctx); return err }
	case "refresh":
		do = func() error { _, err := s.Refresh(ctx); return err }
	case "logout":
		do = func() error {
			err := s.Logout(ctx)
			if errors.Is(err, flow.ErrClosed) || ctx.Err() != nil {
				return err
			}
			if err != nil {
				// The login is forgotten here; the rest is for the operator to know.
				w.Header().Set("Warning", `199 caddy-deviceflow "the login is forgotten here, but the authorization server did not confirm its revocation"`)
			}
			return nil
		}
	default:
		return apiError(http.StatusNotFound, fmt.Errorf("there is no action %q; use login, refresh or logout", action))
	}
	if r.Method != http.MethodPost {
		return methodNotAllowed(w, http.MethodPost)
	}
	if err := do(); err != nil {
		return apiError(http.StatusConflict, fmt.Errorf("session %s: %w", name, err))
	}
	return writeJSON(w, s.Status())
}

func writeJSON(w http.ResponseWriter, v any) error {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	return json.NewEncoder(w).Encode(v)
}

func methodNotAllowed(w http.ResponseWriter, allowed string) error {
	w.Header().Set("Allow", allowed)
	return apiError(http.StatusMethodNotAllowed, fmt.Errorf("use %s", allowed))
}

func apiError(status int, err error) error {
	return caddy.APIError{HTTPStatus: status, Err: err}
}

var (
	_ caddy.AdminRouter = (*Admin)(nil)
	_ caddy.Provisioner = (*Admin)(nil)
)
