package caddymodule

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/deviceflow/caddy-deviceflow/flow"
)

func init() {
	httpcaddyfile.RegisterGlobalOption("device_flow", parseGlobalOption)
	httpcaddyfile.RegisterDirective("device_flow", parseDirective)
	httpcaddyfile.RegisterDirectiveOrder("device_flow", httpcaddyfile.After, "request_header")
	httpcaddyfile.RegisterDirective("device_flow_status", parseStatusDirective)
	// Registered later, it comes before the gate of its site: its pages are no calls.
	httpcaddyfile.RegisterDirectiveOrder("device_flow_status", httpcaddyfile.After, "request_header")
}

// parseGlobalOption parses a named session. It may be given several times:
//
//	device_flow [<name>] {
//	    <client settings>
//	}
func parseGlobalOption(d *caddyfile.Dispenser, existing any) (any, error) {
	app := App{Sessions: make(map[string]*Client)}
	if prev, ok := existing.(httpcaddyfile.App); ok {
		if err := json.Unmarshal(prev.Value, &app); err != nil {
			return nil, d.WrapErr(err)
		}
	}
	for d.Next() {
		name := flow.DefaultName
		if d.NextArg() {
			name = d.Val()
		}
		if d.NextArg() {
			return nil, d.Errf("unexpected argument %q: a session has one name; write 'device_flow %s { … }'", d.Val(), name)
		}
		if app.Sessions[name] != nil {
			return nil, d.Errf("session %s is declared twice: give one of them another name", name)
		}
		c := new(Client)
		for d.NextBlock(0) {
			seg := d.NextSegment()
			known, err := c.unmarshalOption(caddyfile.NewDispenser(seg))
			if err != nil {
				return nil, err
			}
			if !known {
				return nil, caddyfileErr(seg, "unrecognized setting %q of session %s: check its spelling; settings of the proxy belong to the device_flow directive of a site", seg[0].Text, name)
			}
		}
		app.Sessions[name] = c
	}
	return httpcaddyfile.App{Name: "device_flow", Value: caddyconfig.JSON(&app, nil)}, nil
}

// parseDirective parses the device_flow directive, which takes its own settings
// and all those of reverse_proxy:
//
//	device_flow [<matcher>] [<upstreams...>] {
//	    session      <name> (then audience, resource and scope are those of another API)
//	    session_key  <placeholder>
//	    max_sessions <n>
//	    status_path  <path>|off
//	    wait         <duration>
//	    allow_client <address|cidr|private_ranges...>
//	    allow_host   <host...>
//	    allow_origin <origin...>
//	    require_header <name> [<value>]
//	    allow_upstream <origins...>
//	    <client settings>
//	    <reverse_proxy settings>
//	}
//
// With upstreams it is the same as
//
//	route {
//	    device_flow_status page at status_path
//	    device_flow handler
//	    reverse_proxy <upstreams...> {
//	        transport device_flow <session>
//	        <reverse_proxy settings>
//	    }
//	}
//
// and without upstreams the handlers that follow see authenticated requests.
func parseDirective(h httpcaddyfile.Helper) ([]httpcaddyfile.ConfigValue, error) {
	if !h.Next() {
		return nil, h.ArgErr()
	}
	matcher, err := h.ExtractMatcherSet()
	if err != nil {
		return nil, err
	}
	h.Next() // extracting the matcher has put the cursor back to the start
	dir, err := readDirective(h.NextSegment())
	if err != nil {
		return nil, err
	}
	if len(dir.upstreams) > 0 && !dir.proxies() {
		return nil, caddyfileErr(dir.head, "allow_upstream belongs to the proxy: name the upstream here, or write it into the block of 'transport device_flow'")
	}
	name, client, err := dir.settleSession(h)
	if err != nil {
		return nil, err
	}

	var values []httpcaddyfile.ConfigValue
	gate := Handler{
		Session: name, Client: client, Target: dir.target, Wait: dir.wait, StatusPath: dir.statusPath, Authenticate: !dir.proxies(),
		KeyedBy: dir.keyed, Guard: dir.guard, RequireHeader: dir.header,
	}
	if dir.statusPath != "" {
		// Caddy sorts the routes of a directive by path, if each has only one: two
		// paths here would unsettle the order among several device_flow directives.
		// Either route can come first then, so both declare the session.
		page := StatusPage{Session: name, Client: client, SessionKey: dir.keyed.SessionKey, Path: dir.statusPath, Guard: dir.guard}
		page.AllowHost = append(slices.Clip(page.AllowHost), hostsOf(matcher)...)
		values = append(values, routeValue(
			caddy.ModuleMap{"path": h.JSON(caddyhttp.MatchPath{dir.statusPath + "*"})},
			caddyconfig.JSONModuleObject(page, "handler", "device_flow_status", nil)))
	}
	handlers := []json.RawMessage{caddyconfig.JSONModuleObject(gate, "handler", "device_flow", nil)}
	if dir.proxies() {
		proxy, err := dir.reverseProxy(h, name)
		if err != nil {
			return nil, err
		}
		handlers = append(handlers, caddyconfig.JSONModuleObject(proxy, "handler", "reverse_proxy", nil))
	}
	return append(values, routeValue(matcher, handlers...)), nil
}

// hostsOf is the names in a directive's own host matcher. The gate finds them among
// the routes around it, but the page is in a route of its own.
func hostsOf(matcher caddy.ModuleMap) []string {
	var hosts []string
	_ = json.Unmarshal(matcher["host"], &hosts) // none, or Caddy's own JSON
	return slices.DeleteFunc(hosts, func(host string) bool {
		return new(hostSet).add(strings.ToLower(host)) != nil // an address, or a placeholder
	})
}

func routeValue(matcher caddy.ModuleMap, handlers ...json.RawMessage) httpcaddyfile.ConfigValue {
	route := caddyhttp.Route{HandlersRaw: handlers}
	if matcher != nil {
		route.MatcherSetsRaw = []caddy.ModuleMap{matcher}
	}
	return httpcaddyfile.ConfigValue{Class: "route", Value: route}
}
