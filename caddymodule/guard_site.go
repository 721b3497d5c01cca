package caddymodule

import (
	"errors"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/caddyserver/caddy/v2/modules/caddytls"
	"go.uber.org/zap"
)

// place is where a handler stands among the routes of a server.
type place struct {
	hosts    []string // of the host matchers around it
	narrowed bool     // something before it looks at who calls
}

// walkServer visits all handlers of a server.
func walkServer(srv *caddyhttp.Server, visit func(caddyhttp.MiddlewareHandler, place)) {
	walk(srv, srv.Routes, place{}, 0, visit)
	if srv.Errors != nil {
		walk(srv, srv.Errors.Routes, place{}, 0, visit)
	}
}

// walk visits all handlers below routes.
func walk(srv *caddyhttp.Server, routes caddyhttp.RouteList, at place, depth int, visit func(caddyhttp.MiddlewareHandler, place)) {
	if depth > 32 { // named routes can invoke one another
		return
	}
	for _, route := range routes {
		here := place{slices.Clip(at.hosts), at.narrowed}
		for _, set := range route.MatcherSets {
			for _, m := range set {
				switch m := m.(type) {
				case caddyhttp.MatchHost:
					here.hosts = append(here.hosts, m...)
				case *caddyhttp.MatchHost:
					here.hosts = append(here.hosts, *m...)
				}
			}
		}
		here.narrowed = here.narrowed || slices.ContainsFunc(route.MatcherSets, matchesAddress)
		for _, h := range route.Handlers {
			visit(h, here)
			switch h := h.(type) {
			case *caddyhttp.Subroute:
				walk(srv, h.Routes, here, depth+1, visit)
			case *caddyhttp.Invoke:
				if named := srv.NamedRoutes[h.Name]; named != nil {
					walk(srv, caddyhttp.RouteList{*named}, here, depth+1, visit)
				}
			case *reverseproxy.Handler:
				for _, answer := range h.HandleResponse { // whoever gets there, somebody has been asked about
					walk(srv, answer.Routes, place{here.hosts, true}, depth+1, visit)
				}
			}
			here.narrowed = here.narrowed || asksForCredentials(h)
		}
		// What stands in front of all that follows: basic_auth, or what becomes of those
		// whose address is not right.
		if slices.ContainsFunc(route.MatcherSets, matchesOutsiders) || len(route.MatcherSets) == 0 && slices.ContainsFunc(route.Handlers, asksForCredentials) {
			at.narrowed = true
		}
	}
}

// matchesAddress reports whether a matcher set asks where a request comes from.
func matchesAddress(set caddyhttp.MatcherSet) bool {
	return slices.ContainsFunc(set, func(m any) bool {
		switch m.(type) {
		case *caddyhttp.MatchRemoteIP, *caddyhttp.MatchClientIP:
			return true
		}
		return false
	}) || matchesOutsiders(set)
}

// matchesOutsiders is matchesAddress for those who do not come from there.
func matchesOutsiders(set caddyhttp.MatcherSet) bool {
	return slices.ContainsFunc(set, func(m any) bool {
		not, ok := m.(*caddyhttp.MatchNot)
		return ok && slices.ContainsFunc(not.MatcherSets, matchesAddress)
	})
}

// asksForCredentials reports whether a handler looks like access control:
// basic_auth, forward_auth, and those of other modules by their name.
func asksForCredentials(h caddyhttp.MiddlewareHandler) bool {
	if proxy, ok := h.(*reverseproxy.Handler); ok {
		return len(proxy.HandleResponse) > 0
	}
	mod, ok := h.(caddy.Module)
	return ok && strings.Contains(mod.CaddyModule().ID.Name(), "auth")
}

// siteHosts is the names that the routes around the handler match. They are looked
// for when somebody first asks for a name that is not allowed otherwise: while the
// handler is set up, the routes around it are not complete.
func (g *keeper) siteHosts(r *http.Request) *hostSet {
	if known := g.site.Load(); known != nil {
		return known
	}
	found := new(hostSet)
	srv, ok := r.Context().Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	if !ok {
		return found
	}
	walkServer(srv, func(h caddyhttp.MiddlewareHandler, at place) {
		if proxy, ok := h.(*reverseproxy.Handler); h != g.self && !(ok && proxy.Transport == g.self) {
			return
		}
		for _, name := range at.hosts {
			// What a request itself can fill in names nothing.
			if name, err := caddy.NewReplacer().ReplaceOrErr(name, true, true); err == nil {
				_ = found.add(strings.ToLower(name)) // an address, or no more than wildcards
			}
		}
	})
	g.site.Store(found)
	return found
}

// warnOfOpenSites says which servers lend the login to a whole network and have
// nothing but the default ranges of allow_client to narrow that.
func (a *App) warnOfOpenSites() {
	mod, err := a.ctx.AppIfConfigured("http")
	if err != nil {
		if !errors.Is(err, caddy.ErrNotConfigured) {
			a.logger.Warn("it is not known who can reach the sites", zap.Error(err))
		}
		return
	}
	for name, srv := range mod.(*caddyhttp.App).Servers {
		open := slices.DeleteFunc(slices.Clone(srv.Listen), isLocalListener)
		byCertificate := slices.ContainsFunc(srv.TLSConnPolicies, func(p *caddytls.ConnectionPolicy) bool { return p.ClientAuthentication != nil })
		if len(open) == 0 || byCertificate {
			continue
		}
		gates, openGates, openHops := 0, 0, 0
		walkServer(srv, func(h caddyhttp.MiddlewareHandler, at place) {
			switch h := h.(type) {
			case *Handler:
				gates++
				if len(h.AllowClient) == 0 && h.RequireHeader == nil && !at.narrowed {
					openGates++
				}
			case *reverseproxy.Handler:
				if _, ours := h.Transport.(*Transport); ours && !at.narrowed {
					openHops++
				}
			}
		})
		if openGates > 0 || gates == 0 && openHops > 0 {
			a.logger.Warn("everyone in the networks of this machine can use the login: "+
				"bind the site to 127.0.0.1 and ::1, or say who may call with allow_client or require_header",
				zap.String("server", name), zap.Strings("listen", open))
		}
	}
}

// isLocalListener reports whether only this machine gets to an address.
func isLocalListener(listen string) bool {
	addr, err := caddy.ParseNetworkAddress(listen)
	if err != nil {
		return false
	}
	if addr.IsUnixNetwork() || addr.Host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(addr.Host)
	return err == nil && ip.Unmap().IsLoopback()
}
