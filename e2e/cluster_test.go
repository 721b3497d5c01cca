package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// startCluster runs several Caddies with the same site on one storage folder, which it returns, too.
func startCluster(t *testing.T, size int, lifetime time.Duration, change ...func(*flowtest.Config)) (as *flowtest.Server, nodes []*caddy, folder string) {
	t.Helper()
	as = startAS(t, lifetime, change...)
	a := startAPI(t, as.ValidToken)
	nodes = make([]*caddy, size)
	for i := range nodes {
		nodes[i] = newCaddy(t, onShared(site("device", "offline_access")), as.Issuer(), a.URL)
	}
	folder = share(t, nodes...)
	for _, c := range nodes {
		c.start(t)
	}
	return as, nodes, folder
}

// TestInstancesOnOneFolderAreOneLogin goes through a login's life with several Caddies that know of each other by
// their storage alone: one code on all pages, one approval, one refresh for each lifetime, one logout.
func TestInstancesOnOneFolderAreOneLogin(t *testing.T) {
	parallel(t)
	for _, size := range []int{2, 5} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			t.Parallel()
			const lifetime = 3 * time.Second
			lifetimes := sample(10, 300)
			as, nodes, _ := startCluster(t, size, lifetime, byHand)

			code := nodes[0].callForCode(t).UserCode
			for i, c := range nodes {
				eventually(t, 10*time.Second, fmt.Sprintf("instance %d shows the code", i), func() bool {
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
			if took := time.Since(began); took > 10*time.Second {
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
			// A token is renewed at 70 to 85 % of its lifetime, or a little later on a busy machine.
			if least, most := lifetimes*3/4, lifetimes*14/10+2; refreshes > most || refreshes < least {
				t.Errorf("%d refreshes in %d lifetimes, want %d to %d", refreshes, lifetimes, least, most)
			}
			if got.Reuses != 0 || got.DeviceRequests != 1 || got.Logins != 1 {
				t.Errorf("%d reuses, %d codes and %d logins, want 0, 1 and 1", got.Reuses, got.DeviceRequests, got.Logins)
			}

			if res := nodes[size-1].ask(t, http.MethodPost, "/device_flow/sessions/default/logout"); res.status != 200 {
				t.Fatalf("logout: %d %s", res.status, res.body)
			}
			began = time.Now()
			for i, c := range nodes {
				eventually(t, 10*time.Second, fmt.Sprintf("instance %d is logged out", i), func() bool {
					return c.status(t).State == "login_required"
				})
			}
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("the logout took %v to reach all", took)
			}
			for _, c := range nodes {
				_ = c.problem(t)
			}
		})
	}
}

// TestInstanceDiesWithoutHarmToTheOthers kills one of three as soon as a refresh is saved, whoever made it, and starts it
// again. Who dies between the answer and the save takes the only good refresh token along, here as everywhere: that is
// TestKillAroundARefreshLosesNoLogin.
func TestInstanceDiesWithoutHarmToTheOthers(t *testing.T) {
	parallel(t)
	const lifetime = 3 * time.Second
	as, nodes, folder := startCluster(t, 3, lifetime)
	issued := watchIssued(as)
	for _, c := range nodes {
		c.login(t)
	}
	one, two := callEvery(t, nodes[0].url+"/", 100*time.Millisecond), callEvery(t, nodes[1].url+"/", 100*time.Millisecond)
	for range sample(4, 40) {
		seen := as.Stats().Refreshes
		issued.awaitSaved(t, folder, 2*lifetime)
		nodes[2].stop(t, syscall.SIGKILL)
		eventually(t, 3*lifetime, "the others refresh", func() bool { return as.Stats().Refreshes > seen+1 })
		nodes[2].start(t)
		began := time.Now()
		nodes[2].login(t)
		if took := time.Since(began); took > 3*lifetime {
			t.Errorf("back again, the instance serves after %v only", took)
		}
	}
	one.requireGood(t, "instance 0")
	two.requireGood(t, "instance 1")
	if got := as.Stats(); got.Reuses != 0 || got.DeviceRequests != 1 {
		t.Errorf("%d reuses and %d codes, want 0 and 1", got.Reuses, got.DeviceRequests)
	}
}

// awaitSaved waits until another refresh token has been issued and is on disk.
func (i *issued) awaitSaved(t *testing.T, folder string, limit time.Duration) {
	t.Helper()
	before := i.latest() // not the count of refreshes: that is ahead of the answers
	every(t, time.Millisecond, limit, "a new refresh token is on disk", func() bool {
		latest := i.latest()
		return latest != before && recordHolds(folder, latest)
	})
}

// awaitStored waits until a login is on disk. A token that is good for seconds is used before, if that takes long.
func (c *caddy) awaitStored(t *testing.T) {
	t.Helper()
	eventually(t, patience, "the login is stored", func() bool { return recordHolds(filepath.Dir(recordsOf(c)), `"refresh_token"`) })
}

// recordHolds says whether a token is in the one login stored in a folder. Other files come and go while Caddies run.
func recordHolds(folder, token string) bool {
	records, err := filepath.Glob(filepath.Join(folder, "device_flow", "*.json"))
	if err != nil || len(records) != 1 {
		return false
	}
	text, err := os.ReadFile(records[0])
	return err == nil && token != "" && strings.Contains(string(text), token)
}
