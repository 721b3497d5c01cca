package e2e

import (
	"syscall"
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// pair is two machines on one folder, one of which has its clock wrong.
type pair struct {
	wrong time.Duration
	as    *flowtest.Server
	nodes [2]*caddy
	clock wallClock // of the second node
	flows [2]*traffic
}

// TestClocksOfInstancesTenMinutesApart starts both machines at once, as after a power cut, with a token that has
// lapsed, and has calls come over several lifetimes. The server takes its time, so that the one could well get in the
// way of the other: a refresh token that both present ends the login.
func TestClocksOfInstancesTenMinutesApart(t *testing.T) {
	parallel(t, clockCaddy)
	const lifetime = 6 * time.Second
	pairs := []*pair{{wrong: 10 * time.Minute}, {wrong: -10 * time.Minute}}
	for _, p := range pairs {
		p.as = startAS(t, time.Second)
		a := startAPI(t, p.as.ValidToken)
		for i := range p.nodes {
			p.nodes[i] = newCaddy(t, onShared(site("device", "offline_access")), p.as.Issuer(), a.URL)
		}
		share(t, p.nodes[:]...)
		newWallClock(t, p.nodes[0])
		p.clock = newWallClock(t, p.nodes[1])
		p.nodes[0].start(t)
		p.nodes[0].login(t)
		p.nodes[0].stop(t, syscall.SIGTERM)
		p.as.ExpireAccessTokens()
		p.as.SetConfig(func(c *flowtest.Config) { c.AccessTokenLifetime = lifetime })
		p.as.ScriptAlways(flowtest.Refresh, flowtest.Response{Delay: 500 * time.Millisecond, Pass: true})
		p.clock.set(t, p.wrong)
	}
	<-time.After(time.Second) // the token lapses on disk, too
	before := make([]int, len(pairs))
	for i, p := range pairs {
		before[i] = p.as.Stats().Refreshes
		first := p.nodes[0].launch(t)
		p.nodes[1].start(t)
		first()
		p.clock.requireShift(t, p.wrong)
	}
	for _, p := range pairs {
		for i, c := range p.nodes {
			c.login(t)
			p.flows[i] = callEvery(t, c.url+"/", 100*time.Millisecond)
		}
	}
	lifetimes := sample(3, 100)
	<-time.After(time.Duration(lifetimes) * lifetime)
	for i, p := range pairs {
		p.flows[0].requireGood(t, "the instance whose clock is right")
		p.flows[1].requireGood(t, "the instance whose clock is wrong by "+p.wrong.String())
		got := p.as.Stats()
		refreshes := got.Refreshes - before[i]
		t.Logf("%v apart, a start and %d lifetimes: %d refreshes", p.wrong, lifetimes, refreshes)
		// A token is renewed at 70 to 85 % of its lifetime, or a little later on a busy machine.
		if least, most := lifetimes*3/4, lifetimes*14/10+3; refreshes < least || refreshes > most {
			t.Errorf("%v apart: %d refreshes in %d lifetimes, want %d to %d", p.wrong, refreshes, lifetimes, least, most)
		}
		if got.Reuses != 0 || got.DeviceRequests != 1 {
			t.Errorf("%v apart: %d reuses and %d codes, want 0 and 1", p.wrong, got.Reuses, got.DeviceRequests)
		}
	}
}

// launch begins `caddy run` and returns a function that waits until it serves.
func (c *caddy) launch(t *testing.T) (await func()) {
	t.Helper()
	c.process = startProcess(t, c.command("run", "--config", c.file, "--adapter", "caddyfile"))
	return func() {
		t.Helper()
		eventually(t, patience, "Caddy serves", func() bool { return listening("127.0.0.1:" + c.port) })
	}
}
