package flow

import (
	"context"
	"crypto/rand"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// shutdownGrace is how long Run waits for exchanges that are under way: a
	// refreshed token that nobody saves would be a lost login.
	shutdownGrace = 3 * time.Second
	// abandonAfter is how long Run then waits for what it has cancelled.
	abandonAfter = 500 * time.Millisecond
	// codeWait is how long the caller that starts a login waits for its code.
	codeWait = 2 * time.Second
)

// view is what the rest of the world sees of a session. It is immutable; a new
// one replaces it at every change.
type view struct {
	token   *Token // nil: none that is usable
	status  Status
	waiting bool          // a refresh or the first load may bring a token soon
	asleep  bool          // waiting, but perhaps for somebody to ask
	grant   bool          // there is a refresh token
	asking  bool          // a code is being asked for
	unsaved bool          // the store fails: what there is may be in memory only
	changed chan struct{} // closed when a newer view is out
}

// Session is one login. Make it with [New], keep it going with [Session.Run];
// all other methods may be called from any goroutine at any time.
type Session struct {
	id     string // of this instance, among those that share a store
	view   atomic.Pointer[view]
	client atomic.Pointer[client]

	inbox chan func()   // work for the owner: commands, and results of jobs
	wake  chan struct{} // demand, one is enough
	rouse chan struct{} // as wake, for a lapsed token alone
	swap  chan struct{} // the configuration has been swapped
	// rejected is a token that the API refused and nobody waits to have replaced.
	rejected chan rejection
	done     chan struct{} // closed when Run has ended
	handles  sync.Map      // of what is in derived.cache: *Derived by Want.key

	owner
}

// owner is what only the goroutine in Run touches.
type owner struct {
	rec       *record
	token     *Token   // the usable token of rec, nil when it has lapsed
	loaded    bool     // the store has answered, or nobody waits for it any more
	early     []func() // commands that came before
	closing   bool
	lastTries int // last saves that have been begun
	epoch     int // counts logins and logouts: results of older work are dropped
	jobs      int
	jobCtx    context.Context

	demanded bool
	login    loginState
	refresh  refreshState
	derived  derivedState
	save     saveState

	// lapses is the end of rec's access token by the monotonic clock.
	lapses time.Time
	// doubted is a token that lapsed by the wall clock only.
	doubted *Token
	// unsure is a token whose age nobody knows.
	unsure *Token
	// skew shifts the wall clock, in tests.
	skew time.Duration

	state State
	since time.Time
}

// New checks cfg and makes a session. It starts nothing and asks nobody.
func New(cfg Config) (*Session, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	s := &Session{
		id:       rand.Text(),
		inbox:    make(chan func()),
		wake:     make(chan struct{}, 1),
		rouse:    make(chan struct{}, 1),
		swap:     make(chan struct{}, 1),
		rejected: make(chan rejection, 1),
		done:     make(chan struct{}),
	}
	fingerprint := cfg.Fingerprint()
	c := newClient(cfg, fingerprint)
	c.kin, c.loads, c.locks = cfg.Kin, new(atomic.Int32), new(atomic.Int32)
	if c.kin == nil {
		c.kin = new(Kin)
	}
	s.client.Store(c)
	s.rec = &record{fingerprint: fingerprint}
	s.derived = newDerivedState(cfg.CacheSize)
	s.state, s.since = StateUnavailable, stamp(time.Now())
	s.view.Store(&view{
		status:  Status{Session: cfg.Name, Key: cfg.Key, State: s.state, Since: s.since},
		waiting: true,
		asleep:  true,
		changed: make(chan struct{}),
	})
	return s, nil
}

// SetConfig swaps in what does not belong to the login itself: secret, store,
// transport, observer, policy. It fails for a configuration of another
// fingerprint, and leaves Config.Kin as it was at [New]. A session that was
// misconfigured tries again at once.
func (s *Session) SetConfig(cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	cfg = cfg.withDefaults()
	old := s.client.Load()
	fingerprint := cfg.Fingerprint()
	if fingerprint != old.fingerprint {
		return fmt.Errorf("session %s: the new configuration describes another login", cfg.Name)
	}
	c := newClient(cfg, fingerprint)
	c.kin, c.loads, c.locks = old.kin, old.loads, old.locks
	s.client.Store(c)
	c.kin.renew()
	select {
	case s.swap <- struct{}{}:
	default:
	}
	return nil
}

// Current returns the usable token, or nil. It is one atomic load.
func (s *Session) Current() *Token { return s.view.Load().token }

// Status returns the present snapshot.
func (s *Session) Status() Status { return s.view.Load().status }

// Watch returns the present snapshot and a channel that is closed when a newer
// one is out.
func (s *Session) Watch() (Status, <-chan struct{}) {
	v := s.view.Load()
	return v.status, v.changed
}

// Unsaved reports whether the store fails, so that the login may be lost with the
// session.
func (s *Session) Unsaved() bool { return s.view.Load().unsaved }

// Done returns a channel that is closed when Run has ended.
func (s *Session) Done() <-chan struct{} { return s.done }

// Token returns a usable token. Without one it counts as a demand for a login,
// waits for a refresh that is under way (at most Config.RefreshWait), and fails
// with a [*NotReadyError], which is [ErrClosed] when Run has ended. ctx bounds the
// wait of this caller alone.
func (s *Session) Token(ctx context.Context) (*Token, error) {
	if t := s.view.Load().token; t != nil && !s.ended() {
		return t, nil
	}
	return s.Await(ctx, 0)
}

// Await is Token for a caller that holds a request for up to login while a
// person logs in. Whoever starts the login waits a moment for its code in any
// case, so that the error can name it.
func (s *Session) Await(ctx context.Context, login time.Duration) (*Token, error) {
	v := s.view.Load()
	if s.ended() {
		return s.last(v.token)
	}
	if v.token != nil {
		return v.token, nil
	}
	if login > 0 {
		s.Demand()
		return s.await(ctx, login, func(*view) bool { return true })
	}
	began := !v.waiting && s.startsLogin(ctx)
	if !began {
		if v.asleep {
			s.Rouse()
		}
		// The demand may have found a refresh that was due at this very moment.
		t, err := s.await(ctx, s.client.Load().RefreshWait, func(v *view) bool { return v.waiting })
		if err == nil || ctx.Err() != nil || !v.waiting {
			return t, err
		}
		began = s.startsLogin(ctx)
	}
	if began {
		return s.await(ctx, codeWait, func(v *view) bool { return v.asking })
	}
	return s.notReady()
}

// await returns the first usable token, for as long as worth says that waiting
// makes sense, and no longer than most.
func (s *Session) await(ctx context.Context, most time.Duration, worth func(*view) bool) (*Token, error) {
	timer := time.NewTimer(most)
	defer timer.Stop()
	for {
		v := s.view.Load()
		if v.token != nil {
			return v.token, nil
		}
		if !worth(v) {
			return s.notReady()
		}
		select {
		case <-v.changed:
		case <-timer.C:
			return s.notReady()
		case <-s.done:
			return s.last(v.token)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Demand says that somebody is there who wants a token. With LoginOnDemand it
// starts a login, unless one is out, or the last one was refused, or the server
// needs a pause. It never blocks.
func (s *Session) Demand() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Rouse says that somebody looks who needs a usable token, a health check say.
// After a start with a token that had lapsed, it makes the refresh due at once
// instead of at a moment that suits the whole fleet. It starts no login, and
// never blocks.
func (s *Session) Rouse() {
	select {
	case s.rouse <- struct{}{}:
	default:
	}
}

// startsLogin lets the owner act on this caller's demand and reports whether
// it has just begun a login because of it.
func (s *Session) startsLogin(ctx context.Context) (started bool) {
	ctx, cancel := context.WithTimeout(ctx, codeWait) // an owner that is held up holds up nobody else
	defer cancel()
	_ = s.do(ctx, func() { s.demanded = true; started = s.step(time.Now()) })
	return started
}
