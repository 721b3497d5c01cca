package caddymodule

import (
	"slices"

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

// unmarshalOption parses one setting of the guard; d stands on its name. known is
// false for a setting of somebody else.
func (c *Guard) unmarshalOption(d *caddyfile.Dispenser) (known bool, err error) {
	switch d.Val() {
	case "allow_client":
		err := moreArgs(d, &c.AllowClient)
		for i := range slices.Backward(c.AllowClient) {
			if c.AllowClient[i] == "private_ranges" {
				c.AllowClient = slices.Replace(c.AllowClient, i, i+1, privateRanges...)
			}
		}
		return true, err
	case "allow_host":
		return true, moreArgs(d, &c.AllowHost)
	case "allow_origin":
		return true, moreArgs(d, &c.AllowOrigin)
	}
	return false, nil
}
