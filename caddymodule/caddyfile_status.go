package caddymodule

import (
	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// parseStatusDirective parses the directive that shows all sessions on one page:
//
//	device_flow_status [<path>] {
//	    allow_client <address|cidr|private_ranges...>
//	    allow_host   <host...>
//	    allow_origin <origin...>
//	}
func parseStatusDirective(h httpcaddyfile.Helper) ([]httpcaddyfile.ConfigValue, error) {
	h.Next()
	page := StatusPage{All: true, Path: defaultStatusPath}
	if h.NextArg() {
		page.Path = h.Val()
		if err := checkStatusPath(page.Path); err != nil {
			return nil, h.WrapErr(err)
		}
	}
	if h.NextArg() {
		return nil, h.Errf("unexpected argument %q: write 'device_flow_status [<path>]'; it shows all sessions", h.Val())
	}
	for h.NextBlock(0) {
		seg := h.NextSegment()
		d := caddyfile.NewDispenser(seg)
		d.Next()
		known, err := page.Guard.unmarshalOption(d)
		if err != nil {
			return nil, err
		}
		if !known {
			return nil, caddyfileErr(seg, "unrecognized setting %q of device_flow_status: it takes allow_client, allow_host and allow_origin", seg[0].Text)
		}
	}
	return []httpcaddyfile.ConfigValue{routeValue(
		caddy.ModuleMap{"path": h.JSON(caddyhttp.MatchPath{page.Path + "*"})},
		caddyconfig.JSONModuleObject(page, "handler", "device_flow_status", nil))}, nil
}
