package caddymodule

import (
	"context"
	"errors"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/deviceflow/caddy-deviceflow/flow"
)

const (
	// mostPending bounds the codes that wait for a person, and what a flood of
	// unknown keys can ask of the authorization server.
	mostPending = 100
	// slotTime is how long a session keeps its right to ask for a login when nothing
	// has come of that: as long as an exchange with the server may take.
	slotTime = 30 * time.Second
	// mostEnding bounds the sessions that are on their way out.
	mostEnding = 64
)

// limit is max_sessions of the configuration in force. g.mu is held.
func (g *group) limit() int {
	if n := len(g.configs); n > 0 && g.configs[n-1].most > 0 {
		return g.configs[n-1].most
	}
	return defaultMaxSessions
}

// mostPending is at most half of the limit, so that there is room for those who
// are logged in.
func (g *group) mostPending() int { return max(1, min(mostPending, g.limit()/2)) }

// mayLogin gives a session a slot when it is about to ask for a login. The session's
// own goroutine asks, so nobody may wait for that with the group's lock in hand.
func (m *member) mayLogin() bool {
	ok := m.group.reserve(m)
	m.noTurn.Store(!ok)
	return ok
}

// reserve gives a session the right to ask for a login, unless too many have it.
func (g *group) reserve(m *member) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if m.gone != nil || !g.hasSlot(m) && !g.freeSlot() {
		return false
	}
	g.slots[m] = time.Now()
	return true
}

// Login is that of the session, unless too many wait for a person already.
func (r *running) Login(ctx context.Context) (flow.Status, error) {
	if m := r.member.Load(); m != nil && m.Status().Login == nil && !m.group.reserve(m) {
		return r.Status(), errNoMoreLogins
	}
	return r.Session.Login(ctx)
}

// hasSlot reports whether a session has a slot. One that is logged in, or whose login
// has come to nothing a while ago, loses it. g.mu is held.
func (g *group) hasSlot(m *member) bool {
	since, has := g.slots[m]
	if !has {
		return false
	}
	st := m.Status()
	if st.Token == nil && (st.Login != nil || time.Since(since) <= slotTime) {
		return true
	}
	delete(g.slots, m)
	if st.Token == nil && !m.junk {
		m.junk, g.junk = true, append(g.junk, m)
	}
	return false
}

// freeSlot reports whether there is a slot left. g.mu is held.
func (g *group) freeSlot() bool {
	most := g.mostPending()
	if len(g.slots) < most {
		return true
	}
	for m := range g.slots {
		g.hasSlot(m)
	}
	return len(g.slots) < most
}

// makeRoom evicts until there are no more than so many, but only a few at a time.
// g.mu is held.
func (g *group) makeRoom(left, atOnce int) {
	for i := 0; i < atOnce && len(g.ring) > left && g.ending < mostEnding && g.evict(); i++ {
	}
}

// evict ends the session that is missed least: one that nobody has logged in to,
// else one that was not used since the hand came by last. g.mu is held.
func (g *group) evict() bool {
	for len(g.junk) > 0 {
		m := g.junk[0]
		m.junk, g.junk = false, g.junk[1:]
		if m.at >= 0 && !g.hasSlot(m) && m.Status().State == flow.StateLoginRequired {
			g.end(m)
			return true
		}
	}
	var unwell *member
	for range 2 * len(g.ring) {
		g.hand = (g.hand + 1) % len(g.ring)
		m := g.ring[g.hand]
		if g.hasSlot(m) || m.used.Swap(false) {
			continue
		}
		switch st := m.Status(); {
		case st.Login != nil: // somebody has the code in hand
		case m.Unsaved(): // the login may live in memory only
		case st.State == flow.StateAuthorized || st.State == flow.StateLoginRequired:
			g.end(m)
			return true
		case unwell == nil:
			unwell = m
		}
	}
	if unwell != nil {
		g.end(unwell)
	}
	return unwell != nil
}

// evictions is how often a call looks for its session again that had to go for
// another one while the call waited for it.
const evictions = 3

// evicted reports whether the session of a key has ended to make room for another.
func (r *running) evicted() bool {
	if r.member.Load() == nil {
		return false
	}
	select {
	case <-r.Done():
		return true
	default:
		return false
	}
}

// end takes a session out of memory. Until that is done its key has to wait: of two
// sessions of one login, each would use up the other's refresh tokens. g.mu is held.
func (g *group) end(m *member) {
	last := len(g.ring) - 1
	g.ring[m.at] = g.ring[last]
	g.ring[m.at].at = m.at
	g.ring[last] = nil
	g.ring = g.ring[:last]
	m.at, m.gone = -1, make(chan struct{})
	delete(g.slots, m)
	g.byKey.CompareAndDelete(m.key, m)
	g.ending++
	configs := slices.Clone(g.configs)
	g.ends.Go(func() {
		if err := m.giveBack(configs, true); err != nil {
			configs[0].app.logger.Error("a session did not end well", zap.String("session", m.Status().Session), zap.Error(err))
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.members, m.id)
		close(m.gone)
		g.ended()
	})
}

// ended is for those who wait because too many are on their way out. g.mu is held.
func (g *group) ended() {
	g.ending--
	close(g.room)
	g.room = make(chan struct{})
}

// giveBack releases the session for these configurations. If it ends with that, and
// nobody has ever logged in, it leaves no record behind.
func (m *member) giveBack(configs []*keyed, ends bool) error {
	var errs error
	for _, k := range configs {
		errs = errors.Join(errs, m.release(k.app, poolKey{m.Status().Session, k.session.cfg.Fingerprint()}))
	}
	if ends && m.Status().State == flow.StateLoginRequired {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = m.Discard(ctx) // it is small, and found again by the same key
	}
	return errs
}
