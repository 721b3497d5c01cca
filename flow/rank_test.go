package flow_test

import (
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// Of two records one has to give way. These are the cases in which a count of
// changes alone would let the wrong one win.

func TestLoginOutranksWhatWasStoredUnseen(t *testing.T) {
	share(t, 1, flowtest.Config{}, func(c *cluster) {
		for range 3 { // each logout weighs much
			c.loginAll()
			if err := c.all[0].Logout(c.Context()); err != nil {
				c.Fatal(err)
			}
		}
		c.all[0].stop()
		c.shared.set(func(s *sharedStore) { s.load = fails })
		c.all = nil
		i := c.start(0)
		c.sleep(15 * time.Second)
		if _, err := i.Login(c.Context()); err != nil {
			c.Fatal(err)
		}
		c.as.ApproveAll()
		c.sleep(6 * time.Second)
		c.shared.heal()
		c.shared.set(func(s *sharedStore) { s.behind = 3 * time.Second })
		for range 60 {
			c.sleep(time.Second)
			c.wantTokens()
		}
		c.shared.heal()
		c.sleep(within)
		i.stop()
		c.all = nil
		c.start(0)
		c.sleep(0)
		c.wantTokens()
	})
}

// TestLoginIsNotLostToARefreshOfTheOneBefore lets a person log in anew while the
// other instance goes on refreshing the old login, because it cannot see more.
func TestLoginIsNotLostToARefreshOfTheOneBefore(t *testing.T) {
	share(t, 2, flowtest.Config{AccessTokenLifetime: time.Minute}, func(c *cluster) {
		c.loginAll()
		a, b := c.all[0], c.all[1]
		c.shared.set(func(s *sharedStore) { s.save = fails })
		st, err := a.Login(c.Context())
		if err != nil {
			c.Fatal(err)
		}
		if err := c.as.Approve(st.Login.UserCode); err != nil {
			c.Fatal(err)
		}
		c.sleep(10 * time.Second)
		for range 3 {
			if _, err := b.Refresh(c.Context()); err != nil {
				c.Fatal(err)
			}
		}
		c.shared.heal()
		c.sleep(time.Minute)
		c.wantStates(flow.StateAuthorized)
		for n, i := range c.all {
			if info, _ := c.as.Inspect(i.Current().Value().Reveal()); info.Login != 2 {
				c.Errorf("instance %d uses login %d", n, info.Login)
			}
		}
	})
}

// TestUnseenRecordDoesNotReplaceALoginInUse lets the store heal after a login that
// came without it, and something else than the next attempt to read it look first.
func TestUnseenRecordDoesNotReplaceALoginInUse(t *testing.T) {
	for name, look := range map[string]func(c *cluster, i *instance) error{
		"a refresh": func(c *cluster, i *instance) error {
			_, err := i.Refresh(c.Context())
			return err
		},
		"an exchange for another API": func(c *cluster, i *instance) error {
			_, err := c.source(i.Session, flow.Want{Audience: "https://a.example"}).Token(c.Context())
			return err
		},
		"a login": func(c *cluster, i *instance) error {
			_, err := i.Login(c.Context())
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			share(t, 1, flowtest.Config{}, func(c *cluster) {
				for range 3 { // each logout weighs much
					c.loginAll()
					if err := c.all[0].Logout(c.Context()); err != nil {
						c.Fatal(err)
					}
				}
				c.loginAll()
				c.all[0].stop()
				c.all = nil
				c.shared.set(func(s *sharedStore) { s.load, s.save = fails, fails })
				i := c.start(0)
				c.sleep(15 * time.Second)
				if _, err := i.Login(c.Context()); err != nil {
					c.Fatal(err)
				}
				c.as.ApproveAll()
				c.sleep(5 * time.Minute)
				c.wantTokens()
				c.shared.heal() // it is tried again twice a minute at most
				if err := look(c, i); err != nil {
					c.Fatal(err)
				}
				wantLogin := func() {
					c.Helper()
					c.wantTokens()
					if info, _ := c.as.Inspect(c.all[0].Current().Value().Reveal()); info.Login != 5 {
						c.Fatalf("login %d is in use, want the last one", info.Login)
					}
				}
				for range 60 {
					c.sleep(time.Second)
					wantLogin()
				}
				i.stop()
				c.all = nil
				c.start(0)
				c.sleep(0)
				wantLogin()
			})
		})
	}
}
