package caddymodule

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/deviceflow/caddy-deviceflow/flow"
)

// directive is what stands in one device_flow directive.
type directive struct {
	head       caddyfile.Segment // the directive's name and the upstreams
	braces     caddyfile.Segment // of the block, if there is one
	rest       caddyfile.Segment // what reverse_proxy is to understand
	session    string
	client     *Client           // nil: no client setting was given
	target     Target            // what to ask the named session for
	loginOnly  caddyfile.Segment // a client setting that is none of the target's
	statusPath string            // empty: none
	wait       caddy.Duration
	guard      Guard
	header     *RequiredHeader
	keyed      KeyedBy
	upstreams  []string // that may get the token; empty: those of the proxy
}

// proxies reports whether the directive is a proxy itself.
func (dir *directive) proxies() bool { return len(dir.head) > 1 || len(dir.rest) > 0 }

// readDirective sorts the settings into ours and reverse_proxy's.
func readDirective(tokens caddyfile.Segment) (*directive, error) {
	dir := new(directive)
	d := caddyfile.NewDispenser(tokens)
	d.Next()
	dir.head = caddyfile.Segment{d.Token()}
	for d.NextArg() {
		dir.head = append(dir.head, d.Token())
	}
	if len(tokens) > len(dir.head) {
		dir.braces = caddyfile.Segment{tokens[len(dir.head)], tokens[len(tokens)-1]}
	}
	for d.NextBlock(0) {
		seg := d.NextSegment()
		own, err := dir.unmarshalOption(caddyfile.NewDispenser(seg))
		if err != nil {
			return nil, err
		}
		if own {
			continue
		}
		if dir.client == nil {
			dir.client = new(Client)
			own, err = dir.client.unmarshalOption(caddyfile.NewDispenser(seg))
			if !own {
				dir.client = nil
			}
		} else {
			own, err = dir.client.unmarshalOption(caddyfile.NewDispenser(seg))
		}
		if err != nil {
			return nil, err
		}
		if own {
			switch seg[0].Text {
			case "audience", "resource", "scope":
			default:
				dir.loginOnly = seg
			}
			continue
		}
		dir.rest = append(dir.rest, seg...)
	}
	if dir.keyed.MaxSessions != 0 && dir.keyed.SessionKey == "" {
		return nil, caddyfileErr(dir.head, "max_sessions is for a session_key: add one, as in 'session_key {http.request.header.X-Device-Id}'")
	}
	switch dir.statusPath {
	case "":
		dir.statusPath = defaultStatusPath
	case "off":
		dir.statusPath = ""
	}
	return dir, nil
}

// unmarshalOption parses one proxy setting. known is false for a setting of
// somebody else.
func (dir *directive) unmarshalOption(d *caddyfile.Dispenser) (known bool, err error) {
	d.Next()
	switch d.Val() {
	case "session":
		return true, oneArg(d, &dir.session)
	case "status_path":
		if err := oneArg(d, &dir.statusPath); err != nil {
			return true, err
		}
		if dir.statusPath == "off" {
			return true, nil
		}
		if err := checkStatusPath(dir.statusPath); err != nil {
			return true, d.WrapErr(err)
		}
		return true, nil
	case "wait":
		var s string
		if err := oneArg(d, &s); err != nil {
			return true, err
		}
		wait, err := caddy.ParseDuration(s)
		if err != nil || wait < 0 {
			return true, d.Errf("wait %q: use a duration such as 30s", s)
		}
		dir.wait = caddy.Duration(wait)
		return true, nil
	case "require_header":
		args := d.RemainingArgs()
		if len(args) == 0 || len(args) > 2 || args[0] == "" || len(args) == 2 && args[1] == "" {
			return true, d.Errf("write 'require_header <name> [<value>]', with the value in quotes if it has spaces")
		}
		if dir.header != nil {
			return true, d.Errf("require_header is given twice")
		}
		dir.header = &RequiredHeader{Name: args[0]}
		if len(args) == 2 {
			dir.header.Value = args[1]
		}
		return true, noBlock(d)
	case "session_key", "max_sessions":
		return true, dir.keyed.unmarshalOption(d)
	case "allow_upstream":
		return true, moreArgs(d, &dir.upstreams)
	}
	return dir.guard.unmarshalOption(d)
}

// settleSession chooses the session's name. Settings in the block are a session
// of their own, called default; further, different ones get numbers.
func (dir *directive) settleSession(h httpcaddyfile.Helper) (string, *Client, error) {
	if dir.client == nil {
		if dir.session == "" {
			return flow.DefaultName, nil, nil
		}
		return dir.session, nil, nil
	}
	if dir.session != "" {
		if dir.loginOnly != nil {
			return "", nil, caddyfileErr(dir.loginOnly, "%q cannot stand beside 'session %s': it belongs to the declaration of that session in the global options",
				dir.loginOnly[0].Text, dir.session)
		}
		dir.target = Target{Audience: dir.client.Audience, Resource: dir.client.Resource, Scope: dir.client.Scope}
		return dir.session, nil, nil
	}
	raw := string(caddyconfig.JSON(dir.client, nil))
	const stateKey = "device_flow_sessions"
	names, _ := h.State[stateKey].(map[string]string) // by settings
	if names == nil {
		names = make(map[string]string)
		h.State[stateKey] = names
	}
	if names[raw] == "" {
		names[raw] = freeName(h, names)
	}
	return names[raw], dir.client, nil
}

// freeName is the first of default, default-2, … that neither another site nor
// the global options have taken.
func freeName(h httpcaddyfile.Helper, names map[string]string) string {
	var app App
	if global, ok := h.Option("device_flow").(httpcaddyfile.App); ok {
		_ = json.Unmarshal(global.Value, &app) // it is our own JSON
	}
	taken := slices.Collect(maps.Values(names))
	name := flow.DefaultName
	for i := 2; app.Sessions[name] != nil || slices.Contains(taken, name); i++ {
		name = fmt.Sprintf("%s-%d", flow.DefaultName, i)
	}
	return name
}

// reverseProxy lets reverse_proxy parse what is its own, and makes its transport
// ours.
func (dir *directive) reverseProxy(h httpcaddyfile.Helper, session string) (*reverseproxy.Handler, error) {
	if len(dir.head) == 1 && !dir.namesUpstream() {
		return nil, caddyfileErr(dir.rest, "%q is no setting of device_flow; if it is meant for the proxy, name the upstream: device_flow https://api.example.com { … }", dir.rest[0].Text)
	}
	tokens := append(caddyfile.Segment{}, dir.head...)
	if len(dir.rest) > 0 {
		tokens = append(append(append(tokens, dir.braces[0]), dir.rest...), dir.braces[1])
	}
	proxy := new(reverseproxy.Handler)
	if err := proxy.UnmarshalCaddyfile(caddyfile.NewDispenser(tokens)); err != nil {
		if strings.Contains(err.Error(), "unrecognized subdirective") {
			err = fmt.Errorf("%w: it is neither a setting of device_flow nor one of reverse_proxy; check its spelling", err)
		}
		return nil, err
	}
	if err := proxy.FinalizeUnmarshalCaddyfile(h); err != nil {
		return nil, err
	}
	transport := map[string]json.RawMessage{}
	if proxy.TransportRaw != nil {
		if err := json.Unmarshal(proxy.TransportRaw, &transport); err != nil {
			return nil, err
		}
		if p := string(transport["protocol"]); p != `"http"` {
			return nil, caddyfileErr(dir.head, "transport %s does not belong here: device_flow brings its own; write 'transport http { … }' to set its options", strings.Trim(p, `"`))
		}
	}
	transport["protocol"] = caddyconfig.JSON("device_flow", nil)
	transport["session"] = caddyconfig.JSON(session, nil)
	if dir.keyed.SessionKey != "" {
		transport["session_key"] = caddyconfig.JSON(dir.keyed.SessionKey, nil)
	}
	if dir.target.Audience != "" {
		transport["audience"] = caddyconfig.JSON(dir.target.Audience, nil)
	}
	if len(dir.target.Resource) > 0 {
		transport["resource"] = caddyconfig.JSON(dir.target.Resource, nil)
	}
	if len(dir.target.Scope) > 0 {
		transport["scope"] = caddyconfig.JSON(dir.target.Scope, nil)
	}
	if len(dir.upstreams) > 0 {
		transport["allow_upstream"] = caddyconfig.JSON(dir.upstreams, nil)
	}
	proxy.TransportRaw = caddyconfig.JSON(transport, nil)
	return proxy, nil
}

// namesUpstream reports whether the block of the proxy names where to go.
func (dir *directive) namesUpstream() bool {
	d := caddyfile.NewDispenser(dir.rest)
	for d.Next() {
		seg := d.NextSegment()
		if seg[0].Text == "to" || seg[0].Text == "dynamic" {
			return true
		}
	}
	return false
}
