package caddymodule

import "github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

// unmarshalOption parses one setting of the guard; d stands on its name. known is
// false for a setting of somebody else.
func (c *Guard) unmarshalOption(d *caddyfile.Dispenser) (known bool, err error) {
	switch d.Val() {
	case "allow_client":
		return true, moreArgs(d, &c.AllowClient)
	case "allow_host":
		return true, moreArgs(d, &c.AllowHost)
	case "allow_origin":
		return true, moreArgs(d, &c.AllowOrigin)
	}
	return false, nil
}
