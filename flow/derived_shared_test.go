package flow_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// Each instance has tokens of its own for each API, and all of them one chain of
// refresh tokens, whatever the locks do.
func TestInstancesShareTheGrantForSeveralAPIs(t *testing.T) {
	for _, lock := range []mode{works, nothing, hangs, orphaned, fails} {
		t.Run("the lock "+string(lock), func(t *testing.T) {
			share(t, 2, minute, func(c *cluster) {
				c.loginAll()
				c.shared.set(func(s *sharedStore) { s.lock = lock })
				before, lifetimes := c.as.Stats().Refreshes, 50
				for range lifetimes * 60 / 5 {
					for _, i := range c.all {
						for _, want := range []flow.Want{apiA, apiB, {}} {
							src := c.source(i.Session, want)
							if src.Current() == nil {
								c.soon(src)
							}
						}
					}
					c.sleep(5 * time.Second)
				}
				for _, i := range c.all {
					c.wantFor(c.source(i.Session, apiA), "https://a.example")
					c.wantFor(c.source(i.Session, apiB), "https://b.example")
					c.wantToken(i.Session)
				}
				st := c.as.Stats()
				n := st.Refreshes - before
				if st.Reuses != 0 || st.Logins != 1 || n < 5*lifetimes*80/100 || n > 5*lifetimes*160/100 { // two for each API, one for all
					c.Fatalf("%+v", st)
				}
				c.Logf("%d exchanges in %d lifetimes, 0 reuses", n, lifetimes)
			})
		})
	}
}

// soon asks for a token without waiting for it.
func (w *world) soon(src flow.Source) {
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		_, _ = src.Token(ctx)
	}()
	synctest.Wait()
}

// What another instance has brought for an API moves the grant on, not the age
// of the session's own token.
func TestRotationElsewhereLeavesTheTokenAsOldAsItIs(t *testing.T) {
	share(t, 2, minute, func(c *cluster) {
		c.loginAll()
		first, second := c.all[0], c.all[1]
		before := second.Status()
		token := second.Current()
		c.sleep(10 * time.Second)
		c.wantFor(c.source(first.Session, apiA), "https://a.example")
		c.sleep(within)
		if st := second.Status(); asJSON(st.Token) != asJSON(before.Token) || second.Current() != token {
			c.Fatalf("%s, before %s", asJSON(st.Token), asJSON(before.Token))
		}
		if _, err := second.Refresh(c.Context()); err != nil { // with the new refresh token
			c.Fatal(err)
		}
		c.wantFor(c.source(second.Session, apiB), "https://b.example")
		c.wantCount(flowtest.Refresh, 3)
		if n := c.as.Stats().Reuses; n != 0 {
			c.Fatalf("%d reuses", n)
		}
	})
}

// A refresh that somebody asks for is one of the session's own token, even if
// one for another API is under way, here or elsewhere.
func TestRefreshCommandIsNotAnsweredByAnotherAPIsExchange(t *testing.T) {
	for name, other := range map[string]int{"here": 0, "elsewhere": 1} {
		t.Run(name, func(t *testing.T) {
			share(t, 2, minute, func(c *cluster) {
				c.loginAll()
				own := c.all[0].Current()
				c.as.Script(flowtest.Refresh, flowtest.Response{Pass: true, Delay: 2 * time.Second})
				c.soon(c.source(c.all[other].Session, apiA))
				c.sleep(time.Second)
				if _, err := c.all[0].Refresh(c.Context()); err != nil {
					c.Fatal(err)
				}
				if c.all[0].Current() == own {
					c.Error("the token is the old one")
				}
				c.wantCount(flowtest.Refresh, 2)
				if n := c.as.Stats().Reuses; n != 0 {
					c.Fatalf("%d reuses", n)
				}
			})
		})
	}
}

// The server has rotated the refresh token, and the instance is gone before it
// has used what came: what was stored goes on.
func TestKillAfterAnExchangeForAnAPI(t *testing.T) {
	share(t, 1, minute, func(c *cluster) {
		c.loginAll()
		for range 20 {
			i := c.all[0]
			c.wantFor(c.source(i.Session, apiA), "https://a.example")
			i.kill() // at once: it was stored before anybody heard of it
			c.ended, c.all = append(c.ended, i), nil
			c.start(0)
			c.sleep(within)
			c.wantTokens()
		}
		if n := c.as.Stats().Reuses; n != 0 {
			c.Fatalf("%d reuses", n)
		}
	})
}
