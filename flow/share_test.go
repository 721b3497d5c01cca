package flow_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// sizes runs f for two and for five instances.
func sizes(t *testing.T, f func(t *testing.T, n int)) {
	for _, n := range []int{2, 5} {
		t.Run(fmt.Sprint(n), func(t *testing.T) { f(t, n) })
	}
}

// short is a server whose tokens live for a minute.
var short = flowtest.Config{AccessTokenLifetime: time.Minute}

func TestInstancesShareOneCode(t *testing.T) {
	sizes(t, func(t *testing.T, n int) {
		share(t, n, flowtest.Config{}, func(c *cluster) {
			c.as.ScriptAlways(flowtest.Device, flowtest.Response{Pass: true, Delay: time.Second})
			for _, i := range c.all {
				i.Demand() // all at once, before any code is there to be found
			}
			c.sleep(within)
			c.wantStates(flow.StatePending)
			code := c.all[0].Status().Login.UserCode
			for _, i := range c.all {
				if got := i.Status().Login.UserCode; got != code {
					c.Fatalf("codes %s and %s are shown", code, got)
				}
			}
			c.sleep(time.Minute)
			if n := c.as.Count(flowtest.Poll); n < 10 || n > 13 {
				c.Fatalf("%d polls in a minute", n)
			}
			if err := c.as.Approve(code); err != nil {
				c.Fatal(err)
			}
			c.sleep(5*time.Second + within)
			c.wantStates(flow.StateAuthorized)
			c.wantTokens()
			c.wantCount(flowtest.Device, 1)
		})
	})
}

// Nobody but the first instance knows of the login when its life ends.
func TestAnotherInstanceGoesOnPolling(t *testing.T) {
	for _, test := range []struct {
		name string
		end  func(*instance)
		soon time.Duration
	}{
		{"after a stop", (*instance).stop, 5*time.Second + within},
		{"after a kill", (*instance).kill, 2*5*time.Second + 2*time.Second + 5*time.Second + within},
	} {
		t.Run(test.name, func(t *testing.T) {
			share(t, 1, flowtest.Config{}, func(c *cluster) {
				st, err := c.all[0].Login(c.Context())
				if err != nil {
					c.Fatal(err)
				}
				c.start(0)
				c.start(0)
				c.sleep(within)
				c.wantStates(flow.StatePending)
				test.end(c.all[0])
				c.all = c.all[1:]
				if err := c.as.Approve(st.Login.UserCode); err != nil {
					c.Fatal(err)
				}
				c.sleep(test.soon)
				c.wantStates(flow.StateAuthorized)
				c.wantTokens()
				c.wantCount(flowtest.Device, 1)
			})
		})
	}
}

func TestOneRefreshForEachLifetime(t *testing.T) {
	rotate := func(t *testing.T, skew time.Duration, change func(c *cluster), rotations, most int) {
		share(t, 1, short, func(c *cluster) {
			c.start(skew)
			c.loginAll()
			if change != nil {
				change(c)
			}
			before := c.as.Stats().Refreshes
			var seen [2]int
			var last [2]string
			for seen[0] < rotations || seen[1] < rotations {
				c.sleep(time.Second)
				c.wantTokens()
				for n, i := range c.all {
					if v := i.Current().Value().Reveal(); v != last[n] {
						last[n] = v
						seen[n]++
					}
				}
				if n := c.as.Stats().Refreshes - before; n > most {
					c.Fatalf("%d refreshes for %v rotations", n, seen)
				}
			}
			if n := c.as.Stats().Reuses; n != 0 {
				c.Fatalf("%d reuses", n)
			}
			c.Logf("%d refreshes, %v seen", c.as.Stats().Refreshes-before, seen)
		})
	}
	t.Run("500 rotations", func(t *testing.T) { rotate(t, 0, nil, 500, 510) })
	for _, skew := range []time.Duration{10 * time.Minute, -10 * time.Minute} {
		t.Run("clocks apart "+skew.String(), func(t *testing.T) { rotate(t, skew, nil, 50, 52) })
	}
	for _, m := range []mode{nothing, fails, hangs, orphaned} {
		t.Run("the lock "+string(m), func(t *testing.T) {
			rotate(t, 0, func(c *cluster) { c.shared.set(func(s *sharedStore) { s.lock = m }) }, 50, 52)
		})
	}
	t.Run("reads 1 s behind", func(t *testing.T) {
		rotate(t, 0, func(c *cluster) { c.shared.set(func(s *sharedStore) { s.behind = time.Second }) }, 50, 52)
	})
}

func TestLogoutReachesAllInstances(t *testing.T) {
	sizes(t, func(t *testing.T, n int) {
		share(t, n, flowtest.Config{}, func(c *cluster) {
			c.loginAll()
			key, old := c.shared.only()
			if err := c.all[n-1].Logout(c.Context()); err != nil {
				c.Fatal(err)
			}
			c.sleep(within)
			c.wantStates(flow.StateLoginRequired)

			c.shared.put(key, old) // by somebody who was slow
			c.sleep(within)
			c.wantStates(flow.StateLoginRequired)
			if _, now := c.shared.only(); string(now) == string(old) {
				c.Fatal("the old login is still stored")
			}
			late := c.start(0)
			c.sleep(within)
			c.wantStates(flow.StateLoginRequired)

			c.login(late.Session)
			c.sleep(within)
			c.wantStates(flow.StateAuthorized)
			c.wantTokens()
		})
	})
}

func TestNewLoginReachesAllInstances(t *testing.T) {
	share(t, 3, flowtest.Config{}, func(c *cluster) {
		c.loginAll()
		st, err := c.all[1].Login(c.Context())
		if err != nil {
			c.Fatal(err)
		}
		c.sleep(within)
		for _, i := range c.all {
			if l := i.Status().Login; l == nil || l.UserCode != st.Login.UserCode {
				c.Fatalf("not all show the code: %s", asJSON(i.Status()))
			}
		}
		bob := flowtest.User{Subject: "bob", Name: "Bob"}
		if err := c.as.ApproveAs(st.Login.UserCode, bob); err != nil {
			c.Fatal(err)
		}
		c.sleep(5*time.Second + within)
		c.wantTokens()
		for _, i := range c.all {
			if a := i.Status().Account; a == nil || a.Subject != "bob" {
				c.Fatalf("not all are bob: %s", asJSON(i.Status()))
			}
		}
	})
}

func TestRefusalIsShownOnAllInstances(t *testing.T) {
	share(t, 3, flowtest.Config{}, func(c *cluster) {
		st, err := c.all[0].Login(c.Context())
		if err != nil {
			c.Fatal(err)
		}
		c.sleep(within)
		if err := c.as.Deny(st.Login.UserCode); err != nil {
			c.Fatal(err)
		}
		c.sleep(5*time.Second + within)
		c.wantStates(flow.StateLoginRequired)
		for _, i := range c.all {
			c.wantError(i.Session, "access_denied", flow.ActionReauthorize)
			i.Demand()
		}
		c.sleep(within)
		c.wantCount(flowtest.Device, 1) // only a person asks again
		if _, err := c.all[2].Login(c.Context()); err != nil {
			c.Fatal(err)
		}
		c.sleep(within)
		c.wantStates(flow.StatePending)
	})
}

func TestRecordTakenAwayIsWrittenAgain(t *testing.T) {
	share(t, 2, flowtest.Config{}, func(c *cluster) {
		c.loginAll()
		key, was := c.shared.only()
		c.shared.put(key, nil)
		c.sleep(within)
		c.wantTokens()
		if _, now := c.shared.only(); len(now) < len(was)-20 {
			c.Fatalf("stored: %q", now)
		}
	})
}

// A lock that hangs for ever holds up neither calls nor the refresh, not even
// when the token lapses meanwhile.
func TestHangingLockHoldsNobodyUp(t *testing.T) {
	share(t, 1, flowtest.Config{AccessTokenLifetime: 10 * time.Second}, func(c *cluster) {
		c.loginAll()
		c.shared.set(func(s *sharedStore) { s.lock = hangs })
		for range 300 {
			c.sleep(time.Second)
			c.wantTokens()
		}
	})
}

// Another instance has rotated the refresh token and its record comes late.
func TestInvalidGrantIsHeldAgainstTheStore(t *testing.T) {
	share(t, 2, flowtest.Config{NoRotation: true}, func(c *cluster) {
		c.loginAll()
		c.shared.set(func(s *sharedStore) { s.lock = nothing })
		second := c.all[1]
		c.as.Script(flowtest.Refresh,
			flowtest.Response{Pass: true},
			flowtest.ErrorResponse(400, "invalid_grant"))
		go func() { _, _ = c.all[0].Refresh(c.Context()) }()
		synctest.Wait()
		if _, err := second.Refresh(c.Context()); err != nil {
			c.Fatal(err)
		}
		c.sleep(within)
		c.wantStates(flow.StateAuthorized)
		c.wantTokens()
		if a, b := c.all[0].Current(), second.Current(); !a.Value().Equal(b.Value()) {
			c.Fatal("two tokens are in use")
		}
	})
}
