package caddymodule

import (
	"net/http"
	"slices"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// handlesErrors reports whether one of the server's error routes has an answer
// for r and err. Those of another site or for other errors would leave it empty.
func handlesErrors(r *http.Request, err error) bool {
	srv, ok := r.Context().Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	if !ok || srv.Errors == nil {
		return false
	}
	// They match by the error, too, so they have to see it.
	return anyRoute(srv.Errors.Routes, srv.Errors.WithError(r, err))
}

// anyRoute reports whether r gets to a handler. The Caddyfile puts what belongs
// to one site, or to some statuses, into subroutes.
func anyRoute(routes caddyhttp.RouteList, r *http.Request) bool {
	return slices.ContainsFunc(routes, func(route caddyhttp.Route) bool {
		matches, err := route.MatcherSets.AnyMatchWithError(r)
		return err == nil && matches && slices.ContainsFunc(route.Handlers, func(h caddyhttp.MiddlewareHandler) bool {
			sub, ok := h.(*caddyhttp.Subroute)
			return !ok || anyRoute(sub.Routes, r)
		})
	})
}
