package caddymodule

import (
	"context"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/deviceflow/caddy-deviceflow/flow"
)

const (
	// maxQueue bounds the events of one session that wait for their handlers.
	maxQueue = 256
	// goneGrace is how long a handler may take when its configuration has been
	// replaced, lastGrace how long all have when the session ends.
	goneGrace = time.Second
	lastGrace = 500 * time.Millisecond
)

// outbox holds the events of one session until the handlers have had them. It has a
// goroutine only while there is something to deliver, for most of many sessions have
// nothing to tell most of the time.
type outbox struct {
	mu      sync.Mutex
	to      *emitter // nil until a configuration has started
	queue   []flow.Event
	dropped int      // since the last one was taken out
	courier *courier // nil: nobody is on the way
	closed  bool
}

// courier delivers until there is nothing left.
type courier struct {
	ctx    context.Context // ends when nobody waits for a handler any more
	giveUp context.CancelFunc
	done   chan struct{}
}

// address says who hears of the events from now on, those that wait included.
func (o *outbox) address(to *emitter) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.to = to
	o.send()
}

// put adds an event, if it is one for Caddy. It never blocks: when handlers are
// too slow, the oldest event goes.
func (o *outbox) put(e flow.Event) {
	switch e.Kind {
	case flow.EventLoginPending, flow.EventLoginSucceeded, flow.EventLoginFailed,
		flow.EventTokenRefreshed, flow.EventRefreshFailed, flow.EventLoggedOut:
	default:
		return
	}
	o.mu.Lock()
	first := false
	if len(o.queue) == maxQueue {
		o.queue = o.queue[1:]
		first = o.dropped == 0
		o.dropped++
	}
	o.queue = append(o.queue, e)
	to := o.to
	o.send()
	o.mu.Unlock()
	if first && to != nil {
		to.log("event handlers are too slow or hang: the oldest events are dropped", e)
	}
}

// send has the events delivered. o.mu is held.
func (o *outbox) send() {
	if o.courier != nil || o.to == nil || len(o.queue) == 0 || o.closed {
		return
	}
	c := &courier{done: make(chan struct{})}
	c.ctx, c.giveUp = context.WithCancel(context.Background())
	o.courier = c
	go func() {
		defer close(c.done)
		for to, e, ok := o.next(c); ok; to, e, ok = o.next(c) {
			c.deliver(to, e)
		}
	}()
}

// next takes the oldest event out. Without one, the courier has ended.
func (o *outbox) next(c *courier) (to *emitter, e flow.Event, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.queue) == 0 || c.ctx.Err() != nil {
		c.giveUp()
		o.courier = nil
		if len(o.queue) == 0 {
			o.queue = nil // it holds what has been delivered
		}
		return nil, e, false
	}
	e, o.queue, o.dropped = o.queue[0], o.queue[1:], 0
	return o.to, e, true
}

// deliver has the handlers called, and waits for them as long as they are in use.
func (c *courier) deliver(to *emitter, e flow.Event) {
	name := string(e.Kind)
	// Not the configuration's own context: an event that is told while Caddy
	// replaces the configuration would reach some handlers only.
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	returned := make(chan struct{})
	go func() {
		defer close(returned)
		survive(to.logger, "an event handler", func() { to.emit(ctx, name, eventData(e)) })
	}()
	select {
	case <-returned:
		return
	case <-c.ctx.Done():
	case <-to.gone:
		select {
		case <-returned:
			return
		case <-c.ctx.Done():
		case <-time.After(goneGrace):
		}
	}
	to.log("an event handler hangs, nobody waits for it any more", e)
}

// close delivers what is left, as far as it can be done in a moment. No event comes
// any more.
func (o *outbox) close() {
	o.mu.Lock()
	c := o.courier
	o.closed = true
	o.mu.Unlock()
	if c == nil {
		return
	}
	timer := time.AfterFunc(lastGrace, c.giveUp)
	defer timer.Stop()
	<-c.done
	if n := len(o.queue); n > 0 {
		o.to.log("event handlers are too slow or hang: the last events are dropped", o.queue[0], zap.Int("dropped", n))
	}
}
