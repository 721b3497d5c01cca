package caddymodule

import (
	"strconv"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// unmarshalOption parses session_key or max_sessions; d stands on the name.
func (by *KeyedBy) unmarshalOption(d *caddyfile.Dispenser) error {
	if d.Val() == "session_key" {
		if err := oneArg(d, &by.SessionKey); err != nil {
			return err
		}
		if err := checkSessionKey(by.SessionKey); err != nil {
			return d.WrapErr(err)
		}
		return nil
	}
	var s string
	if by.MaxSessions != 0 {
		return d.Errf("max_sessions is given twice")
	}
	if err := oneArg(d, &s); err != nil {
		return err
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 {
		return d.Errf("max_sessions %q: use a number of at least 1", s)
	}
	by.MaxSessions = n
	return nil
}
