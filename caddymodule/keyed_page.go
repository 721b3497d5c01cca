package caddymodule

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"github.com/deviceflow/caddy-deviceflow/flow"
)

// isID reports whether an id can be that of a key of this session_key.
func isID(id, setting string) bool {
	return len(id) == 32 && strings.TrimLeft(id, "0123456789abcdef") == "" && strings.HasPrefix(id, kindOf(setting))
}

// byID is the session of an id that the storage has something about, else nil.
func (g *group) byID(ctx context.Context, id string) (*running, error) {
	if known, err := g.stored(ctx, id); err != nil || !known {
		return nil, err
	}
	m, err := g.bring(ctx, id, "", true)
	if err != nil {
		return nil, err
	}
	return m.running, nil
}

// sessionNamed is the running session of a name, or nil. That of a key comes back
// from the storage.
func sessionNamed(ctx context.Context, name string) (*running, error) {
	if r := runningSession(name); r != nil {
		return r, nil
	}
	of := make(map[*group]string)
	groups.Range(func(key, v any) bool {
		k := key.(groupKey)
		if id, ours := strings.CutPrefix(name, k.name+keyMark); ours && isID(id, k.sessionKey) {
			of[v.(*group)] = id
		}
		return true
	})
	var errs error
	for g, id := range of { // two during a reload, at most
		r, err := g.byID(ctx, id)
		if r != nil {
			return r, nil
		}
		errs = errors.Join(errs, err)
	}
	return nil, errs
}

// page shows the sessions of all keys, and each by its name. One that is not in
// memory comes back from the storage, but a name alone makes none.
func (k *keyed) page(path string) *page {
	p := newOverview(path, func() []watcher {
		if g := k.live.Load(); g != nil {
			return g.all()
		}
		return nil
	})
	p.byKey = true
	inMemory := p.find
	p.find = func(r *http.Request) (watcher, error) {
		w, err := inMemory(r)
		if err == nil {
			return w, nil
		}
		name := r.URL.Query().Get(sessionQuery)
		id, ours := strings.CutPrefix(name, k.session.name+keyMark)
		if !ours || !isID(id, k.setting) {
			return nil, err
		}
		g, err := k.await(r.Context())
		if err != nil {
			return nil, err
		}
		s, err := g.byID(r.Context(), id)
		if err != nil {
			return nil, err
		}
		if s == nil {
			return nil, unknownSession{name}
		}
		return s, nil
	}
	return p
}

// named tells a session that was known by its name alone what it is for. g.mu is held.
func (m *member) named(key string) {
	m.key = key
	m.running.mu.Lock()
	defer m.running.mu.Unlock()
	for i := range m.configs {
		m.configs[i].cfg.Key = clean(key, maxText)
	}
	if n := len(m.configs); n > 0 {
		_ = m.SetConfig(m.observed(m.configs[n-1].app, m.configs[n-1].cfg)) // it was good before
	}
	m.group.byKey.Store(key, m)
}

// all are the running sessions of the kind.
func (g *group) all() []watcher {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := make([]watcher, 0, len(g.ring))
	for _, m := range g.ring {
		out = append(out, m.running)
	}
	return out
}

// tellEvents lets the sessions tell their events to the configuration in force.
func (g *group) tellEvents() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, m := range g.ring {
		m.running.mu.Lock()
		m.readdress()
		m.running.mu.Unlock()
	}
}

// Login is that of the session, unless too many wait for a person already.
func (r *running) Login(ctx context.Context) (flow.Status, error) {
	if m := r.member.Load(); m != nil && m.Status().Login == nil && !m.group.reserve(m) {
		return r.Status(), errNoMoreLogins
	}
	return r.Session.Login(ctx)
}
