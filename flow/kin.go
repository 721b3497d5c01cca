package flow

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// lookShare is by how much each further session slows the looks into the store
// down: together they are fifty a second, however many sessions there are.
const lookShare = 20 * time.Millisecond

// Kin is what sessions share that differ in their [Config.Key] only, such as those
// of a thousand devices: the metadata of the authorization server, which is asked
// for once, the pace at which they look into the store, and the watch over the
// clock. The zero value is ready to use. It is for sessions of one issuer, client and
// transport.
type Kin struct {
	clock      clock
	discovered atomic.Pointer[document]
	stale      atomic.Bool // discovered is to be asked for again

	mu     sync.Mutex
	flight *discovery // under way
	failed time.Time  // when the last one was in vain
}

// discovery is a question for the metadata, and its answer once done is closed.
type discovery struct {
	done     chan struct{}
	document *document
	err      error
}

// share is the least time between two looks of a session, while nobody waits for
// what other instances did.
func (k *Kin) share() time.Duration { return time.Duration(k.clock.sessions()) * lookShare }

// renewAfter is how old the metadata are at least that a new configuration has asked
// for again: a thousand sessions that are swapped one after the other ask once.
const renewAfter = 10 * time.Second

// renew is told that there is a new configuration.
func (k *Kin) renew() {
	if d := k.discovered.Load(); d != nil && time.Since(d.at) >= renewAfter {
		k.stale.Store(true)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.failed = time.Time{}
}

// keep makes d the metadata.
func (k *Kin) keep(d *document) {
	k.discovered.Store(d)
	k.stale.Store(false)
}

// rest notes that asking was in vain, and resting reports whether that was lately.
func (k *Kin) rest(now time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.failed = now
}

func (k *Kin) resting(now time.Time) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return !k.failed.IsZero() && now.Sub(k.failed) < courtesyGap
}

// once has ask answer all who want to know at the same time more than known, which may
// be nil. Who asks does so in a context of its own; if that ends, the next one asks.
func (k *Kin) once(ctx context.Context, known *document, ask func(context.Context) (*document, error)) (*document, error) {
	for {
		k.mu.Lock()
		if d := k.discovered.Load(); d != nil && d != known {
			k.mu.Unlock()
			return d, nil // somebody has asked meanwhile
		}
		f, mine := k.flight, false
		if f == nil {
			f, mine = &discovery{done: make(chan struct{})}, true
			k.flight = f
		}
		k.mu.Unlock()
		if mine {
			f.document, f.err = ask(ctx)
			k.mu.Lock()
			k.flight = nil
			k.mu.Unlock()
			close(f.done)
			return f.document, f.err
		}
		select {
		case <-f.done:
			if f.err == nil || !errors.Is(f.err, context.Canceled) {
				return f.document, f.err
			}
		case <-ctx.Done():
			return nil, asError(opDiscovery, ctx.Err())
		}
	}
}
