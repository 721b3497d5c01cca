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
	// mostLooks bounds the questions to the storage about unknown keys.
	mostLooks = 16
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

	kin     flow.Kin
	mu      sync.Mutex
	configs []*keyed              // the last one is in force
	members map[string]*member    // by id, those on their way out included
	slots   map[*member]time.Time // who may ask for a login, since when
	junk    []*member             // nothing has come of whose login
	ring    []*member             // those in memory; hand goes round
	hand    int
	ending  int
	room    chan struct{} // closes when one of these has ended
	ends    sync.WaitGroup
	looks   chan struct{}
}

// member is one session of a group.
type member struct {
	*running
	group *group
	id    string
	used  atomic.Bool // since the hand came by
	// noTurn: when it was about to ask for a login, too many others did.
	noTurn atomic.Bool

	// Those below are the group's.
	key  string        // empty until somebody calls, if the page has asked for it by name
	at   int           // in the ring, -1: no longer
	junk bool          // in the junk
	gone chan struct{} // not nil: on its way out; closed when it is
}

// config describes the session for one of the configurations. g.mu is held.
func (m *member) config(k *keyed) flow.Config {
	cfg := k.config(m.id)
	cfg.Key = clean(m.key, maxText)
	cfg.Kin = &m.group.kin
	cfg.MayLogin = m.mayLogin
	cfg.Observer = k.session.newObserver()
	return cfg
}

// Destruct is for the pool; what there is to end, detach ends.
func (g *group) Destruct() error { return nil }

func (k *keyed) groupKey() groupKey {
	return groupKey{k.session.name, k.session.cfg.Fingerprint(), k.setting}
}

// attach puts k in force, for what runs already and for what will.
func (k *keyed) attach() error {
	v, _, err := groups.LoadOrNew(k.groupKey(), func() (caddy.Destructor, error) {
		return &group{members: make(map[string]*member), slots: make(map[*member]time.Time), room: make(chan struct{}), looks: make(chan struct{}, mostLooks)}, nil
	})
	if err != nil {
		return err
	}
	g := v.(*group)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.configs = append(g.configs, k)
	for _, m := range g.ring {
		if _, e := start(k.app, m.config(k)); e != nil {
			err = errors.Join(err, e)
		}
	}
	g.makeRoom(g.limit(), mostEnding) // it may be smaller than before
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

// member is the session of a key. Of one in memory it is one look, without a lock.
func (g *group) member(ctx context.Context, k *keyed, key string) (*member, error) {
	if v, ok := g.byKey.Load(key); ok {
		m := v.(*member)
		if !m.used.Load() { // written seldom, for all cores read it
			m.used.Store(true)
		}
		return m, nil
	}
	return g.bring(ctx, k.id(key), key, false)
}

// bring is the session of a key that may have to be made. Without a key it is one
// that is known by its name.
func (g *group) bring(ctx context.Context, id, key string, known bool) (*member, error) {
	for {
		m, gone, err := g.admit(id, key, known)
		if m == nil && gone == nil && err == nil { // there is no slot left: only for those who need none
			if known, err = g.stored(ctx, id); err == nil && !known {
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
// gone closes when it makes sense to ask again, for a session has ended that was on its
// way out: that of the same key, or any where there are as many of them as may be.
func (g *group) admit(id, key string, known bool) (m *member, gone <-chan struct{}, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if m := g.members[id]; m != nil {
		if m.gone != nil {
			return nil, m.gone, nil
		}
		if m.key == "" && key != "" {
			m.named(key)
		}
		return m, nil, nil
	}
	if len(g.configs) == 0 { // the request has outlived its configuration
		return nil, nil, tooManySessions()
	}
	slot := g.freeSlot()
	if !slot && !known {
		return nil, nil, nil
	}
	g.makeRoom(g.limit()-1, 2) // two, so that a smaller max_sessions is reached in time
	if len(g.ring) >= g.limit() {
		if g.ending >= mostEnding {
			return nil, g.room, nil
		}
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
	for _, k := range g.configs {
		r, err := start(k.app, m.config(k))
		if err != nil {
			k.app.logger.Error("a session cannot be made", zap.String("session", k.session.name), zap.Error(err))
		}
		if r == nil { // so says the first one, or none
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
	if key != "" {
		g.byKey.Store(key, m)
	}
	return m, nil
}

// stored reports whether the storage has anything about the key of an id.
func (g *group) stored(ctx context.Context, id string) (bool, error) {
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
		cfg := k.config(id)
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
