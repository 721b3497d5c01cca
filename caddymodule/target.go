package caddymodule

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/deviceflow/caddy-deviceflow/flow"
)

// Target says which API the token is for, where that is not the session's own.
// The login is one for all; each API gets an access token of its own.
//
// Placeholders that are known at start-up are filled in then, others at each
// request; a request for which one of them is empty is refused.
type Target struct {
	// The API that the token is for, as Auth0 calls it.
	Audience string `json:"audience,omitempty"`

	// The APIs that the token is for (RFC 8707).
	Resource []string `json:"resource,omitempty"`

	// What to ask for instead of what the login was granted, such as
	// `https://vault.azure.net/.default` at Microsoft Entra.
	Scope []string `json:"scope,omitempty"`
}

func (t *Target) isZero() bool { return t.Audience == "" && len(t.Resource) == 0 && len(t.Scope) == 0 }

// unmarshalOption parses one setting. known is false for another one.
func (t *Target) unmarshalOption(d *caddyfile.Dispenser) (known bool, err error) {
	switch d.Val() {
	case "audience":
		return true, oneArg(d, &t.Audience)
	case "resource":
		return true, moreArgs(d, &t.Resource)
	case "scope":
		return true, moreArgs(d, &t.Scope)
	}
	return false, nil
}

// target is a Target in use.
type target struct {
	want    flow.Want
	dynamic bool // want has placeholders that only a request has values for
	bound   atomic.Pointer[bound]
}

// bound is where the tokens come from while the session is that one.
type bound struct {
	session *flow.Session
	source  flow.Source
}

// provision fills in what is known at start-up, and checks it.
func (t *Target) provision() (*target, error) {
	if t.isZero() {
		return nil, nil
	}
	want, err := t.want(caddy.NewReplacer(), false)
	if err != nil {
		return nil, err
	}
	out := &target{want: want}
	for _, s := range append(append([]string{want.Audience}, want.Resource...), want.Scope...) {
		out.dynamic = out.dynamic || strings.Contains(s, "{")
	}
	if !out.dynamic {
		err = want.Validate()
	}
	return out, err
}

// want is t with its placeholders filled in, all of them if it must be so.
func (t *Target) want(repl *caddy.Replacer, all bool) (flow.Want, error) {
	var bad error
	texts := func(setting string, in ...string) (out []string) {
		for _, s := range in {
			filled, err := repl.ReplaceOrErr(s, true, all)
			if err != nil && bad == nil {
				bad = fmt.Errorf("%s %s: %w", setting, s, err)
			}
			if setting == "audience" {
				out = append(out, filled)
			} else {
				out = append(out, strings.Fields(filled)...) // a placeholder may hold several
			}
		}
		return out
	}
	want := flow.Want{Resource: texts("resource", t.Resource...), Scope: texts("scope", t.Scope...)}
	if t.Audience != "" {
		want.Audience = texts("audience", t.Audience)[0]
	}
	if bad == nil && (len(want.Resource) < len(t.Resource) || len(want.Scope) < len(t.Scope)) {
		bad = errors.New("resource or scope is blank") // and must not mean another token
	}
	return want, bad
}

// source is where the token of a request comes from: s itself without a target.
// The refusal is that of a request for which a placeholder has no good value.
func (t *target) source(s *running, req *http.Request) (flow.Source, *refusal) {
	if t == nil {
		return s.Session, nil
	}
	if b := t.bound.Load(); b != nil && b.session == s.Session { // never that of a key, see below
		return b.source, nil
	}
	want := t.want
	if t.dynamic {
		repl, ok := req.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
		if !ok {
			repl = caddy.NewReplacer()
		}
		var err error
		filled := Target{Audience: want.Audience, Resource: want.Resource, Scope: want.Scope}
		if want, err = filled.want(repl, true); err != nil {
			return nil, noTarget(err)
		}
	}
	src, err := s.For(want)
	if err != nil {
		return nil, noTarget(err)
	}
	// Where each device has a session, the next request is another's: to keep one here
	// would only keep it in memory. Each finds its own by itself.
	if !t.dynamic && s.member.Load() == nil {
		t.bound.Store(&bound{s.Session, src})
	}
	return src, nil
}

// noTarget refuses a request that does not say which API it is for. No other
// token will do.
func noTarget(err error) *refusal {
	return &refusal{
		http.StatusBadRequest, "unknown-api", "It is not clear which API this call is for",
		"The audience, resource or scope of this site depends on the request, and this request has no usable value for it: " + clean(err.Error(), maxReason) + ".",
	}
}

// targetKey is where a handler announces what it asks of a session.
func targetKey(session string) string { return "device_flow." + session + ".source" }

// announceSource lets a transport of the same session know what a handler before it
// asks for: it would replace the token by the session's own otherwise.
func announceSource(vars map[string]any, key string, src flow.Source) {
	if _, own := src.(*flow.Session); !own && vars != nil {
		vars[key] = src
	} else {
		delete(vars, key) // of a handler before this one
	}
}
