package flow

import (
	"net/url"
	"slices"
)

// common are the parameters of device and token requests alike, for the given
// resources.
func (c *client) common(resource []string) url.Values {
	v := make(url.Values, len(c.Params)+6)
	for k, vv := range c.Params {
		v[k] = append([]string(nil), vv...)
	}
	if len(resource) > 0 {
		v["resource"] = append([]string(nil), resource...)
	}
	return v
}

// ownResource is what the session's own token is for, of several resources that
// the login was asked for: the first. Many servers issue tokens for one at a time
// (RFC 8707 §2.2 and §3 advise it), and some refuse a request for two only after
// they have used up its device code or refresh token.
func (c *client) ownResource() []string { return c.Resource[:min(len(c.Resource), 1)] }

// grants reports whether the login was asked for the resources of want, if it was
// asked for any. A server that has not granted one at login refuses the refresh
// (RFC 8707 §2.2), and some after they have rotated the refresh token away.
func (c *client) grants(want Want) bool {
	return len(c.Resource) == 0 || !slices.ContainsFunc(want.Resource, func(r string) bool { return !slices.Contains(c.Resource, r) })
}
