package caddymodule

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/deviceflow/caddy-deviceflow/flow"
)

// pool holds the running sessions of this process. A session stays in it for as
// long as any running configuration has it, so a reload keeps the login, the
// code that is out, and the pace of its polls.
var pool = caddy.NewUsagePool()

// begun counts the sessions that have been made to run.
var begun atomic.Uint64

// poolKey tells sessions apart. Two sessions of different names are two logins
// even if they look alike.
type poolKey struct{ name, fingerprint string }

// running is a session with the goroutine that owns it.
type running struct {
	*flow.Session
	stop   context.CancelFunc
	ended  chan struct{}
	number uint64 // counts up: the later it began, the greater
	tally  *tally
	outbox outbox
	member atomic.Pointer[member] // of a group, nil for a session without a key

	mu      sync.Mutex
	configs []attached // the last one is in force
}

// attached is what one Caddy configuration says about a session.
type attached struct {
	app *App
	cfg flow.Config
}

// start takes the session that cfg describes from the pool, or makes it run.
func start(app *App, cfg flow.Config) (*running, error) {
	v, loaded, err := pool.LoadOrNew(poolKey{cfg.Name, cfg.Fingerprint()}, func() (caddy.Destructor, error) {
		r := &running{ended: make(chan struct{}), number: begun.Add(1)}
		s, err := flow.New(r.observed(app, cfg))
		if err != nil {
			return nil, err
		}
		r.Session, r.tally = s, tallyOf(s.Status().Session)
		var ctx context.Context
		ctx, r.stop = context.WithCancel(context.Background())
		go func() {
			defer close(r.ended)
			s.Run(ctx)
		}()
		return r, nil
	})
	if err != nil {
		return nil, err
	}
	r := v.(*running)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.configs = append(r.configs, attached{app, cfg})
	if loaded {
		if err := r.SetConfig(r.observed(app, cfg)); err != nil {
			return r, err
		}
	}
	return r, nil
}

// observed is cfg with all that listens to the session in addition to its log.
func (r *running) observed(app *App, cfg flow.Config) flow.Config {
	logger := zap.NewNop()
	if app != nil && app.logger != nil {
		logger = app.logger
	}
	all := []flow.Observer{metrics.observe, r.outbox.put}
	if cfg.Observer != nil {
		all = append(all, cfg.Observer)
	}
	cfg.Observer = observers(logger, all...)
	return cfg
}

// readdress has events go to the latest configuration that has started. When
// there is none any more, the last one hears the rest. r.mu is held.
func (r *running) readdress() {
	for _, c := range slices.Backward(r.configs) {
		if c.app == nil {
			continue
		}
		if to := c.app.emitter.Load(); to != nil {
			r.outbox.address(to)
			return
		}
	}
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

// release gives the session back. If the configuration that is in force goes
// (a reload that failed half-way), the one before it is in force again.
func (r *running) release(app *App, key poolKey) error {
	r.mu.Lock()
	last := len(r.configs) > 0 && r.configs[len(r.configs)-1].app == app
	r.configs = slices.DeleteFunc(r.configs, func(a attached) bool { return a.app == app })
	var err error
	if n := len(r.configs); last && n > 0 {
		err = r.SetConfig(r.observed(r.configs[n-1].app, r.configs[n-1].cfg))
	}
	r.readdress()
	r.mu.Unlock()
	if _, e := pool.Delete(key); e != nil {
		err = e
	}
	return err
}

// Destruct ends the session when nothing refers to it any more. It takes a few
// seconds at most, while an exchange is under way.
func (r *running) Destruct() error {
	r.stop()
	<-r.ended
	r.outbox.close()
	return nil
}

// runningSessions are all sessions of the process, by name and then by age.
func runningSessions() []*running {
	var all []*running
	pool.Range(func(_, v any) bool {
		all = append(all, v.(*running))
		return true
	})
	slices.SortFunc(all, func(a, b *running) int {
		return cmp.Or(strings.Compare(a.Status().Session, b.Status().Session), cmp.Compare(a.number, b.number))
	})
	return all
}

// runningSession finds one by name. During a reload there may be two of a name
// for a moment; the newer configuration's counts.
func runningSession(name string) *running {
	var found *running
	for _, r := range runningSessions() {
		if r.Status().Session == name {
			found = r
		}
	}
	return found
}

var _ caddy.Destructor = (*running)(nil)
