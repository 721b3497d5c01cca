package flow

import (
	"sync"
	"time"
)

const (
	// wallClock is how often the wall clock is looked at: timers sleep with the
	// machine, and clocks are put right.
	wallClock = time.Second
	// clockJump is what the wall clock may drift from the monotonic one before the
	// sessions are told.
	clockJump = 500 * time.Millisecond
)

// clock watches the wall clock for all sessions that run, so that those for which
// there is nothing to do can sleep until there is. The zero value is ready to use.
type clock struct {
	mu      sync.Mutex
	running int
	stop    chan struct{} // nil: nobody runs
	ended   chan struct{} // closed when the watch has
	jump    chan struct{} // closed when the wall clock has jumped
}

// join begins the watch with the first session. The watch ends when the last one
// leaves, and he waits for that.
func (c *clock) join() (leave func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running++; c.running == 1 {
		stop, ended := make(chan struct{}), make(chan struct{})
		c.stop, c.ended = stop, ended
		go func() {
			defer close(ended)
			c.watch(stop)
		}()
	}
	return func() {
		c.mu.Lock()
		ended := c.ended
		c.running--
		last := c.running == 0
		if last {
			close(c.stop)
		}
		c.mu.Unlock() // the watch may be about to tell
		if last {
			<-ended
		}
	}
}

// sessions is how many run.
func (c *clock) sessions() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.running
}

// jumped is closed at the next jump.
func (c *clock) jumped() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.jump == nil {
		c.jump = make(chan struct{})
	}
	return c.jump
}

func (c *clock) watch(stop <-chan struct{}) {
	tick := time.NewTicker(wallClock)
	defer tick.Stop()
	last := time.Now()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
			if now := time.Now(); jumpedSince(last, now.Round(0), now.Sub(last)) {
				last = now
				c.tell()
			}
		}
	}
}

// jumpedSince reports whether the wall clock, which stood at last and stands at
// wall, does not agree that so much time has passed.
func jumpedSince(last, wall time.Time, passed time.Duration) bool {
	return (wall.Sub(last.Round(0)) - passed).Abs() > clockJump
}

// tell wakes all sessions.
func (c *clock) tell() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.jump != nil {
		close(c.jump)
		c.jump = nil
	}
}
