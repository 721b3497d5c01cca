package caddymodule

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
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
	// mostEnding bounds the sessions that are on their way out, mostLooks the
	// questions to the storage about unknown keys.
	mostEnding = 64
	mostLooks  = 16
	// lookTimeout bounds such a question, and the wait for a session that is on its
	// way out.
	lookTimeout = 5 * time.Second
)

// groups are the kinds of keyed sessions that run, by groupKey. Like a session, a
// group stays for as long as any running configuration has it.
var groups = caddy.NewUsagePool()

type groupKey struct{ name, fingerprint, sessionKey string }

// group is all running sessions of one kind. Each is in the pool as well, where
// pages, commands and metrics find it.
type group struct {
	byKey sync.Map // string → *member: reading takes no lock

	mu      sync.Mutex
	configs []*keyed              // the last one is in force
	members map[string]*member    // by id, those on their way out included
	slots   map[*member]time.Time // who may ask for a login, since when
	junk    []*member             // nothing has come of whose login
	ring    []*member             // those in memory; hand goes round
	hand    int
	ending  int
	ends    sync.WaitGroup
	looks   chan struct{}
}

// member is one session of a group.
type member struct {
	*running
	group *group
	id    string
	key   string
	used  atomic.Bool   // since the hand came by
	at    int           // in the ring, -1: no longer
	gone  chan struct{} // not nil: on its way out; closed when it is
}

// Destruct is for the pool; what there is to end, detach ends.
func (g *group) Destruct() error { return nil }

func (k *keyed) groupKey() groupKey {
	return groupKey{k.session.name, k.session.cfg.Fingerprint(), k.setting}
}

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

// attach puts k in force, for what runs already and for what will.
func (k *keyed) attach() error {
	v, _, err := groups.LoadOrNew(k.groupKey(), func() (caddy.Destructor, error) {
		return &group{members: make(map[string]*member), slots: make(map[*member]time.Time), looks: make(chan struct{}, mostLooks)}, nil
	})
	if err != nil {
		return err
	}
	g := v.(*group)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.configs = append(g.configs, k)
	for _, m := range g.ring {
		if _, e := start(k.app, k.config(m.id, m.key)); e != nil {
			err = errors.Join(err, e)
		}
	}
	k.live.Store(g)
	close(k.started)
	return err
}

// detach gives back what attach has taken. The sessions that no other configuration
// has end, all at once. A second call does nothing.
func (k *keyed) detach() error {
	g := k.live.Load()
	if g == nil {
		return nil
	}
	g.mu.Lock()
	if !slices.Contains(g.configs, k) {
		g.mu.Unlock()
		return nil
	}
	g.configs = slices.DeleteFunc(g.configs, func(other *keyed) bool { return other == k })
	last := len(g.configs) == 0
	all := slices.Clone(g.ring)
	g.mu.Unlock()

	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		errs error
	)
	for _, m := range all {
		wg.Go(func() {
			if err := m.giveBack([]*keyed{k}, last); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = errors.Join(errs, err)
			}
		})
	}
	wg.Wait()
	if last {
		g.ends.Wait()
		g.mu.Lock()
		if len(g.configs) == 0 {
			// Requests can outlive their configuration: they keep the token they had.
			clear(g.members)
			clear(g.slots)
			g.ring, g.junk = nil, nil
		}
		g.mu.Unlock()
	}
	if _, err := groups.Delete(k.groupKey()); err != nil {
		errs = errors.Join(errs, err)
	}
	return errs
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

// member is the session of a key. Of one in memory it is one look, without a lock.
func (g *group) member(ctx context.Context, k *keyed, key string) (*member, error) {
	if v, ok := g.byKey.Load(key); ok {
		m := v.(*member)
		if !m.used.Load() { // written seldom, for all cores read it
			m.used.Store(true)
		}
		return m, nil
	}
	id, known := k.id(key), false
	for {
		m, gone, err := g.admit(id, key, known)
		if m == nil && gone == nil && err == nil { // there is no slot left: only for those who need none
			if known, err = g.stored(ctx, id, key); err == nil && !known {
				err = tooManyLogins()
			}
		}
		if err != nil {
			return nil, err
		}
		if m != nil {
			return m, nil
		}
		if gone == nil {
			continue
		}
		timer := time.NewTimer(lookTimeout)
		select {
		case <-gone:
		case <-timer.C:
			err = tooManySessions()
		case <-ctx.Done():
			err = ctx.Err()
		}
		timer.Stop()
		if err != nil {
			return nil, err
		}
	}
}

// admit finds the session of a key or makes it run. A key that is not known to have
// a record needs a slot, for it will ask for a login: without one there is none.
// gone closes when a session of that key has ended that is on its way out.
func (g *group) admit(id, key string, known bool) (m *member, gone <-chan struct{}, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if m := g.members[id]; m != nil {
		if m.gone == nil {
			return m, nil, nil
		}
		return nil, m.gone, nil
	}
	if len(g.configs) == 0 { // the request has outlived its configuration
		return nil, nil, tooManySessions()
	}
	slot := g.freeSlot()
	if !slot && !known {
		return nil, nil, nil
	}
	// Two, so that a smaller max_sessions is reached in time.
	for i := 0; i < 2 && len(g.ring) >= g.limit() && g.ending < mostEnding; i++ {
		if !g.evict() {
			break
		}
	}
	if len(g.ring) >= g.limit() {
		return nil, nil, tooManySessions()
	}
	if m, err = g.begin(id, key); err != nil {
		return nil, nil, err
	}
	if slot {
		g.slots[m] = time.Now()
	}
	return m, nil, nil
}

// begin makes the session of a key run. g.mu is held.
func (g *group) begin(id, key string) (*member, error) {
	m := &member{group: g, id: id, key: key, at: len(g.ring)}
	for i, k := range g.configs {
		r, err := start(k.app, k.config(id, key))
		if err != nil {
			k.app.logger.Error("a session cannot be made", zap.String("session", k.session.name), zap.Error(err))
		}
		if r == nil {
			if i > 0 {
				_ = m.giveBack(g.configs[:i], false)
			}
			return nil, k.notReady()
		}
		m.running = r
	}
	m.running.mu.Lock()
	m.readdress() // the configurations have started before
	m.running.mu.Unlock()
	m.member.Store(m)
	m.used.Store(true)
	g.members[id] = m
	g.ring = append(g.ring, m)
	g.byKey.Store(key, m)
	return m, nil
}

// stored reports whether the storage has anything about a key.
func (g *group) stored(ctx context.Context, id, key string) (bool, error) {
	g.mu.Lock()
	n := len(g.configs)
	if n == 0 {
		g.mu.Unlock()
		return false, tooManySessions()
	}
	k := g.configs[n-1]
	g.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	select {
	case g.looks <- struct{}{}:
	case <-ctx.Done():
		return false, tooManySessions()
	}
	type result struct{ err error }
	done := make(chan result, 1)
	go func() { // a storage may not care for ctx
		defer func() { <-g.looks }()
		cfg := k.config(id, key)
		_, err := cfg.Store.Load(ctx, cfg.StorageKey())
		done <- result{err}
	}()
	select {
	case r := <-done:
		if errors.Is(r.err, flow.ErrNotFound) {
			return false, nil
		}
		if r.err != nil {
			return false, k.notReady()
		}
		return true, nil
	case <-ctx.Done():
		return false, k.notReady()
	}
}

// prepare sees to it that a session without a token may ask for a login, or need
// not.
func (g *group) prepare(ctx context.Context, m *member) error {
	if g.reserve(m) {
		return nil
	}
	// It may still have its login in the storage, or a code out.
	timer := time.NewTimer(lookTimeout)
	defer timer.Stop()
	for {
		st, changed := m.Watch()
		switch {
		case st.Token != nil || st.Login != nil:
			return nil
		case st.State != flow.StateUnavailable:
			if g.reserve(m) {
				return nil
			}
			return tooManyLogins()
		}
		select {
		case <-changed:
		case <-timer.C:
			return &flow.NotReadyError{Status: st, RetryAfter: st.RetryAfter(time.Now())}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// reserve gives a session the right to ask for a login, unless too many have it.
func (g *group) reserve(m *member) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if m.gone != nil {
		return false
	}
	if _, has := g.slots[m]; !has && !g.freeSlot() {
		return false
	}
	if _, has := g.slots[m]; !has {
		g.slots[m] = time.Now()
	}
	return true
}

// freeSlot reports whether there is a slot left. It takes back those of sessions
// that are logged in, or whose login has come to nothing a while ago. g.mu is held.
func (g *group) freeSlot() bool {
	most := g.mostPending()
	if len(g.slots) < most {
		return true
	}
	now := time.Now()
	for m, since := range g.slots {
		st := m.Status()
		if st.Token != nil {
			delete(g.slots, m)
		} else if st.Login == nil && now.Sub(since) > slotTime {
			delete(g.slots, m)
			g.junk = append(g.junk, m)
		}
	}
	return len(g.slots) < most
}

// evict ends the session that is missed least: one that nobody has logged in to,
// else one that was not used since the hand came by last. g.mu is held.
func (g *group) evict() bool {
	for len(g.junk) > 0 {
		m := g.junk[0]
		g.junk = g.junk[1:]
		if _, asks := g.slots[m]; !asks && m.at >= 0 && m.Status().State == flow.StateLoginRequired {
			g.end(m)
			return true
		}
	}
	var unwell *member
	for range 2 * len(g.ring) {
		g.hand = (g.hand + 1) % len(g.ring)
		m := g.ring[g.hand]
		if _, asks := g.slots[m]; asks && m.Current() == nil || m.used.Swap(false) {
			continue
		}
		switch st := m.Status(); {
		case st.Login != nil: // somebody has the code in hand
		case st.Error != nil && (st.Error.Code == flow.CodeStorageFailed || st.Error.Code == flow.CodeStorageSealed):
			// The login may live in memory only.
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
		g.ending--
		delete(g.members, m.id)
		close(m.gone)
	})
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

// Demand is that of the session, unless too many wait for a person already.
func (r *running) Demand() {
	if m := r.member.Load(); m == nil || m.group.reserve(m) {
		r.Session.Demand()
	}
}

// Login is that of the session, unless too many wait for a person already.
func (r *running) Login(ctx context.Context) (flow.Status, error) {
	if m := r.member.Load(); m != nil && m.Status().Login == nil && !m.group.reserve(m) {
		return r.Status(), errNoMoreLogins
	}
	return r.Session.Login(ctx)
}
