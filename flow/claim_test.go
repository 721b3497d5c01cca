package flow_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// TestSlowServerIsNotAskedTwice is the case that locks alone do not cover: the
// answer takes longer than the others can wait for the lock, or there is none.
func TestSlowServerIsNotAskedTwice(t *testing.T) {
	for _, lock := range []mode{works, nothing, fails, orphaned} {
		for _, tc := range []struct{ lifetime, latency time.Duration }{
			{3 * time.Second, 3 * time.Second},
			{20 * time.Second, 10 * time.Second},
			{time.Minute, 31 * time.Second},
			{time.Hour, 59 * time.Second},
		} {
			t.Run(fmt.Sprint(lock, ",", tc.lifetime, ",", tc.latency), func(t *testing.T) {
				share(t, 3, flowtest.Config{AccessTokenLifetime: tc.lifetime}, func(c *cluster) {
					c.loginAll()
					c.shared.set(func(s *sharedStore) { s.lock = lock })
					c.as.ScriptAlways(flowtest.Refresh, flowtest.Response{Pass: true, Delay: tc.latency})
					begin := time.Now()
					c.sleep(min(10*(tc.lifetime+tc.latency), 2*time.Hour))
					n, most := c.as.Count(flowtest.Refresh), int(time.Since(begin)/(tc.lifetime*7/10))
					if st := c.as.Stats(); st.Reuses != 0 || len(st.Violations) != 0 || n > most+1 || n < 2 {
						c.Fatalf("%d refreshes, at most %d are right: %+v", n, most+1, st)
					}
					c.as.Unscript(flowtest.Refresh)
					c.sleep(time.Minute + tc.latency)
					c.wantTokens()
				})
			})
		}
	}
}

func TestRefreshOfADeadInstanceIsTakenOver(t *testing.T) {
	for _, lock := range []mode{works, nothing, orphaned} {
		t.Run(string(lock), func(t *testing.T) {
			share(t, 2, flowtest.Config{AccessTokenLifetime: time.Minute}, func(c *cluster) {
				c.loginAll()
				c.as.Script(flowtest.Refresh, flowtest.Response{Hang: true})
				go func() { _, _ = c.all[0].Refresh(c.Context()) }()
				c.sleep(5 * time.Second)
				c.shared.set(func(s *sharedStore) { s.lock = lock })
				c.all[0].link.orphan = 2 * time.Minute
				c.all[0].kill()
				c.ended, c.all = c.all[:1], c.all[1:]
				c.sleep(10 * time.Second)
				c.wantCount(flowtest.Refresh, 1)
				// The lock is not given back: the other waits for it, and that is all.
				c.sleep(45 * time.Second)
				c.wantCount(flowtest.Refresh, 2)
				c.wantTokens()
				c.sleep(2 * time.Minute)
			})
		})
	}
}
