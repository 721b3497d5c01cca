package caddymodule

import (
	"net/http"
	"strings"
)

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
