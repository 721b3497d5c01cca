package caddymodule

import (
	"context"
	"errors"
	"strings"
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
