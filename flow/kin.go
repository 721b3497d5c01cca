package flow

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// lookShare is by how much each further session slows the looks into the store
	// down: together they are fifty a second, however many sessions there are.
	lookShare = 20 * time.Millisecond
	// lookSeldom is the slowest. It has to be well below liveWithin.
	lookSeldom = 30 * time.Second
)

// Kin is what sessions share that differ in their [Config.Key] only, such as those
// of a thousand devices: the metadata of the authorization server, which is asked
// for once, and the pace at which they look into the store. The zero value is ready
// to use. It is for sessions of one issuer, client and transport.
type Kin struct {
	running    atomic.Int64
	discovered atomic.Pointer[document]

	mu     sync.Mutex
	flight *discovery // under way
}

// discovery is a question for the metadata, and its answer once done is closed.
type discovery struct {
	done     chan struct{}
	document *document
	err      error
}

// pace is how often a session looks for what other instances did, while nobody
// waits for that.
func (k *Kin) pace() time.Duration {
	return max(lookEvery, min(time.Duration(k.running.Load())*lookShare, lookSeldom))
}

// once has ask answer all who want to know at the same time. Who asks does so in a
// context of its own; if that ends, the next one asks.
func (k *Kin) once(ctx context.Context, ask func(context.Context) (*document, error)) (*document, error) {
	for {
		if d := k.discovered.Load(); d != nil {
			return d, nil
		}
		k.mu.Lock()
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
