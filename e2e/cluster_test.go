package e2e

import (
	"fmt"
	"net/http"
	"syscall"
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// startCluster runs several Caddies with the same site on one storage folder.
func startCluster(t *testing.T, size int, lifetime time.Duration, change ...func(*flowtest.Config)) (*flowtest.Server, []*caddy) {
	t.Helper()
	as := startAS(t, lifetime, change...)
	a := startAPI(t, as.ValidToken)
	nodes := make([]*caddy, size)
	for i := range nodes {
		nodes[i] = newCaddy(t, onShared(site("device", "offline_access")), as.Issuer(), a.URL)
	}
	share(t, nodes...)
	for _, c := range nodes {
		c.start(t)
	}
	return as, nodes
}

// TestInstancesOnOneFolderAreOneLogin goes through a login's life with several Caddies that know of each other by
// their storage alone: one code on all pages, one approval, one refresh for each lifetime, one logout.
func TestInstancesOnOneFolderAreOneLogin(t *testing.T) {
	for _, size := range []int{2, 5} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			const lifetime = 3 * time.Second
			lifetimes := sample(10, 300)
			as, nodes := startCluster(t, size, lifetime, byHand)

			code := nodes[0].callForCode(t).UserCode
			for i, c := range nodes {
				eventually(t, 5*time.Second, fmt.Sprintf("instance %d shows the code", i), func() bool {
					s := c.status(t)
					return s.Login != nil && s.Login.UserCode == code
				})
				if got := c.callForCode(t).UserCode; got != code {
					t.Errorf("instance %d names the code %s, another %s", i, got, code)
				}
			}
			if err := as.Approve(code); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			for _, c := range nodes {
				c.login(t)
			}
			if took := time.Since(began); took > 6*time.Second {
				t.Errorf("only %v after the approval all instances serve", took)
			}

			before := as.Stats().Refreshes
			flows := make([]*traffic, size)
			for i, c := range nodes {
				flows[i] = callEvery(t, c.url+"/", 100*time.Millisecond)
			}
			<-time.After(time.Duration(lifetimes) * lifetime)
			calls, slowest := 0, time.Duration(0)
			for i, f := range flows {
				f.requireGood(t, fmt.Sprintf("instance %d", i))
				calls, slowest = calls+f.good, max(slowest, f.slowest)
			}
			got := as.Stats()
			refreshes := got.Refreshes - before
			t.Logf("%d instances, %d lifetimes: %d refreshes, %d reuses, %d calls, slowest %v", size, lifetimes, refreshes, got.Reuses, calls, slowest)
			// A token is renewed at 70 to 85 % of its lifetime.
			if most := lifetimes*14/10 + 2; refreshes > most || refreshes < lifetimes {
				t.Errorf("%d refreshes in %d lifetimes, want %d to %d", refreshes, lifetimes, lifetimes, most)
			}
			if got.Reuses != 0 || got.DeviceRequests != 1 || got.Logins != 1 {
				t.Errorf("%d reuses, %d codes and %d logins, want 0, 1 and 1", got.Reuses, got.DeviceRequests, got.Logins)
			}

			if res := nodes[size-1].ask(t, http.MethodPost, "/device_flow/sessions/default/logout"); res.status != 200 {
				t.Fatalf("logout: %d %s", res.status, res.body)
			}
			began = time.Now()
			for i, c := range nodes {
				eventually(t, 5*time.Second, fmt.Sprintf("instance %d is logged out", i), func() bool {
					return c.status(t).State == "login_required"
				})
			}
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("the logout took %v to reach all", took)
			}
			for _, c := range nodes {
				_ = c.problem(t)
			}
		})
	}
}

// TestInstanceDiesWithoutHarmToTheOthers kills one of three at random moments of its refreshes, and starts it again.
func TestInstanceDiesWithoutHarmToTheOthers(t *testing.T) {
	const lifetime = 3 * time.Second
	as, nodes := startCluster(t, 3, lifetime)
	for _, c := range nodes {
		c.login(t)
	}
	one, two := callEvery(t, nodes[0].url+"/", 100*time.Millisecond), callEvery(t, nodes[1].url+"/", 100*time.Millisecond)
	for range sample(4, 40) {
		seen := as.Stats().Refreshes
		eventually(t, 2*lifetime, "a refresh", func() bool { return as.Stats().Refreshes > seen })
		nodes[2].stop(t, syscall.SIGKILL)
		eventually(t, 3*lifetime, "the others refresh", func() bool { return as.Stats().Refreshes > seen+1 })
		nodes[2].start(t)
		began := time.Now()
		nodes[2].login(t)
		if took := time.Since(began); took > lifetime {
			t.Errorf("back again, the instance serves after %v only", took)
		}
	}
	one.requireGood(t, "instance 0")
	two.requireGood(t, "instance 1")
	if got := as.Stats(); got.Reuses != 0 || got.DeviceRequests != 1 {
		t.Errorf("%d reuses and %d codes, want 0 and 1", got.Reuses, got.DeviceRequests)
	}
}
