package e2e

import (
	"encoding/pem"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// boot is a machine without a battery for its clock. After a power cut it begins in 1970, until it learns the time.
type boot struct {
	name   string
	lapsed bool // the stored access token lapses while the machine is off
	tls    bool // in 1970 no certificate is valid: the authorization server is out of reach until the clock is right
	cut    bool // the power goes in the middle of a refresh: its lock stays behind and is stamped in the future
	// refused is for a lapsed token that nothing can renew for now. In 1970 it looks good for half a century, so that
	// it is the API that refuses it, and callers get the API's own 401.
	refused bool

	as    *flowtest.Server
	c     *caddy
	clock wallClock
	calls *traffic
}

// beginning is how wrong a clock is that starts at the beginning of 1970.
func beginning() time.Duration { return -time.Duration(time.Now().Unix()) * time.Second }

// login logs in while the clock is right. Then the power is cut.
func (b *boot) login(t *testing.T) {
	t.Helper()
	lifetime := time.Hour
	if b.lapsed {
		lifetime = 3 * time.Second
	}
	b.as = startAS(t, lifetime)
	if b.tls {
		url, err := b.as.StartTLS()
		if err != nil {
			t.Fatal(err)
		}
		b.as.SetConfig(func(c *flowtest.Config) { c.Issuer = url })
	}
	b.c = newCaddy(t, site("device", "offline_access"), b.as.Issuer(), startAPI(t, b.as.ValidToken).URL)
	if b.tls {
		b.c.writeFile(t, "ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: b.as.Certificate().Raw})))
		b.c.env = append(b.c.env, "SSL_CERT_FILE="+filepath.Join(b.c.home, "ca.pem"))
	}
	b.clock = newWallClock(t, b.c)
	b.c.start(t)
	b.c.login(t)
	b.c.awaitStored(t)
	if b.cut {
		b.slowRefresh()(t)
	} else {
		b.c.kill(t)
	}
	if b.lapsed {
		b.as.ExpireAccessTokens()
		b.as.SetConfig(func(c *flowtest.Config) { c.AccessTokenLifetime = time.Hour })
	}
}

// start switches the machine on again, in 1970, and has calls come.
func (b *boot) start(t *testing.T) {
	t.Helper()
	wrong := beginning()
	b.clock.set(t, wrong)
	b.c.start(t)
	b.clock.requireShift(t, wrong)
	b.calls = callEvery(t, b.c.url+"/", 250*time.Millisecond)
}

// slowRefresh has the server take its time over the next refresh, and forget it when the client goes away. It returns
// a function that cuts the power in the middle of it.
func (b *boot) slowRefresh() (cut func(t *testing.T)) {
	seen := b.as.Count(flowtest.Refresh)
	b.as.Script(flowtest.Refresh, flowtest.Response{Delay: time.Hour, Pass: true})
	return func(t *testing.T) {
		t.Helper()
		every(t, 10*time.Millisecond, 20*time.Second, "a refresh is under way", func() bool { return b.as.Count(flowtest.Refresh) > seen })
		b.c.kill(t)
		if !strings.Contains(listing(t, filepath.Join(b.c.home, "data")), ".lock") {
			t.Fatalf("%s: no lock has stayed behind", b.name)
		}
	}
}

var (
	toldToWait = regexp.MustCompile(`^\S+ 503 Retry-After="[1-9][0-9]?"`)
	ownRefusal = regexp.MustCompile(`^\S+ 401 `)
)

// requireServedOrWait ends the calls. Each was served or, if the token had lapsed, told when to come again.
func (b *boot) requireServedOrWait(t *testing.T) {
	t.Helper()
	b.calls.end()
	t.Logf("%s: %d calls were served, %d were not", b.name, b.calls.good, len(b.calls.bad))
	for _, bad := range b.calls.bad {
		if !(b.lapsed && toldToWait.MatchString(bad)) && !(b.refused && ownRefusal.MatchString(bad)) {
			t.Errorf("%s: %s", b.name, bad)
		}
	}
}

// requireSameLogin requires that nobody was asked to log in again, as far as the server and this process know.
func (b *boot) requireSameLogin(t *testing.T) {
	t.Helper()
	if got := b.as.Stats(); got.DeviceRequests != 1 || got.Logins != 1 || got.Reuses != 0 {
		t.Errorf("%s: %d codes, %d logins and %d reuses, want 1, 1 and 0", b.name, got.DeviceRequests, got.Logins, got.Reuses)
	}
	for _, state := range []string{"login_required", "pending", "misconfigured"} {
		if strings.Contains(b.c.output.String(), `"state":"`+state+`"`) {
			t.Errorf("%s: the session was %s", b.name, state)
		}
	}
}

// TestBootIn1970KeepsTheLogin has calls come while the clock is wrong and when it is put right; then the machine
// starts once more.
func TestBootIn1970KeepsTheLogin(t *testing.T) {
	parallel(t, clockCaddy)
	boots := []*boot{
		{name: "good token"},
		{name: "lapsed token", lapsed: true},
		{name: "good token, server out of reach", tls: true},
		{name: "lapsed token, server out of reach", lapsed: true, tls: true, refused: true},
		{name: "lapsed token, cut in a refresh", lapsed: true, cut: true, refused: true},
	}
	for _, b := range boots {
		b.login(t)
		b.start(t)
	}
	<-time.After(time.Duration(sample(10, 60)) * time.Second) // how long it takes to learn the time
	for _, b := range boots {
		if b.tls && b.as.Stats().Refreshes > 0 {
			t.Errorf("%s: it has been reached in 1970", b.name)
		}
	}
	for _, b := range boots {
		b.clock.set(t, 0)
	}
	began := time.Now()
	for _, b := range boots {
		every(t, 100*time.Millisecond, 10*time.Second-time.Since(began), b.name+": recovered", func() bool {
			s := b.c.status(t)
			if s.State != "authorized" || s.Token == nil {
				return false
			}
			left := time.Until(s.Token.ExpiresAt)
			return left > 0 && left < time.Hour+5*time.Second && get(t, client(t), b.c.url+"/", "").status == 200
		})
		t.Logf("%s: recovered %v after the clock, with %d refreshes", b.name, time.Since(began).Round(time.Millisecond), b.as.Stats().Refreshes)
		b.requireServedOrWait(t)
		b.calls = callEvery(t, b.c.url+"/", 100*time.Millisecond)
	}
	<-time.After(3 * time.Second) // the session looks at the clock once a second
	for _, b := range boots {
		b.calls.requireGood(t, b.name+": after the recovery")
		b.requireSameLogin(t)
		b.c.kill(t)
		b.c.start(t)
		if res := get(t, client(t), b.c.url+"/", ""); res.status != 200 {
			t.Errorf("%s: the first call after one more start: %d %s", b.name, res.status, res.body)
		}
		b.requireSameLogin(t)
	}
}

// TestLockFrom1970StopsNobody cuts the power in the middle of a refresh in 1970, and starts with the clock right.
func TestLockFrom1970StopsNobody(t *testing.T) {
	parallel(t, clockCaddy)
	b := &boot{name: "lock of 1970", lapsed: true}
	b.login(t)
	cut := b.slowRefresh()
	b.start(t)
	cut(t)
	b.calls.end()
	<-time.After(3 * time.Second) // the stored token lapses by the right clock, too, and there is no time to lose
	b.clock.set(t, 0)
	b.c.start(t)
	began := time.Now()
	b.c.login(t)
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("calls are served only after %v", took)
	}
	b.requireSameLogin(t)
}

// TestClockJumpsAnHourWhileRunning has calls come all the time, which must all be served.
func TestClockJumpsAnHourWhileRunning(t *testing.T) {
	parallel(t, clockCaddy)
	const lifetime = 10 * time.Minute
	as := startAS(t, lifetime)
	a := startAPI(t, as.ValidToken)
	c := newCaddy(t, site("device", "offline_access"), as.Issuer(), a.URL)
	clock := newWallClock(t, c)
	c.start(t)
	c.login(t)
	calls := callEvery(t, c.url+"/", 50*time.Millisecond)
	wrong := time.Duration(0)
	jump := func(by time.Duration) {
		t.Helper()
		wrong += by
		clock.set(t, wrong)
	}
	requireNewToken := func(limit time.Duration, refreshes int) {
		t.Helper()
		every(t, 20*time.Millisecond, limit, "the token lasts as long as a new one, by the clock as it is now", func() bool {
			s := c.status(t)
			if s.State != "authorized" || s.Token == nil {
				return false
			}
			left := time.Until(s.Token.ExpiresAt) - wrong
			return left > lifetime-30*time.Second && left < lifetime+5*time.Second
		})
		if got := as.Stats().Refreshes; got != refreshes {
			t.Errorf("%d refreshes, want %d", got, refreshes)
		}
	}

	// The machine has slept for an hour. Timers sleep with it, but not for long: the session looks once a second.
	as.ExpireAccessTokens()
	jump(time.Hour)
	requireNewToken(patience, 1)

	// The clock was put right, and the token is good all the same. The server is slow: callers wait.
	as.Script(flowtest.Refresh, flowtest.Response{Delay: time.Second, Pass: true})
	jump(time.Hour)
	requireNewToken(patience, 2)

	// The server is out of reach: the token that is good all the same is used on.
	down(as)
	tried := as.Count(flowtest.Refresh)
	jump(time.Hour)
	eventually(t, patience, "a refresh is tried", func() bool { return as.Count(flowtest.Refresh) > tried })
	eventually(t, patience, "the token is used on", func() bool {
		s := c.status(t)
		return s.State == "degraded" && s.Token != nil && time.Until(s.Token.ExpiresAt)-wrong > 0
	})
	up(as)
	requireNewToken(patience, 3)

	jump(-3 * time.Hour)
	<-time.After(2 * time.Second)
	calls.requireGood(t, "while the clock jumps")
	t.Logf("%d calls, the slowest took %v", calls.good, calls.slowest.Round(time.Millisecond))
	if got := as.Stats(); got.DeviceRequests != 1 || got.Reuses != 0 {
		t.Errorf("%d codes and %d reuses, want 1 and 0", got.DeviceRequests, got.Reuses)
	}
}

// TestClockTwoMinutesOff has a clock that is fast, and one that is slow, for the whole life of a login: from its code,
// over many tokens and a power cut, until the clock is put right.
func TestClockTwoMinutesOff(t *testing.T) {
	parallel(t, clockCaddy)
	const lifetime = 3 * time.Second
	type machine struct {
		name   string
		wrong  time.Duration
		as     *flowtest.Server
		issued *issued
		c      *caddy
		clock  wallClock
		calls  *traffic
	}
	machines := []*machine{{name: "fast", wrong: 2 * time.Minute}, {name: "slow", wrong: -2 * time.Minute}}
	call := func() {
		for _, m := range machines {
			m.calls = callEvery(t, m.c.url+"/", 50*time.Millisecond)
		}
	}
	requireGood := func(what string) {
		t.Helper()
		for _, m := range machines {
			m.calls.requireGood(t, m.name+", "+what)
		}
	}
	for _, m := range machines {
		m.as = startAS(t, lifetime, byHand, func(c *flowtest.Config) { c.CodeLifetime = time.Minute })
		m.issued = watchIssued(m.as)
		m.c = newCaddy(t, site("device", "offline_access"), m.as.Issuer(), startAPI(t, m.as.ValidToken).URL)
		m.clock = newWallClock(t, m.c)
		m.clock.set(t, m.wrong)
		m.c.start(t)
		m.clock.requireShift(t, m.wrong)
		code := m.c.callForCode(t).UserCode
		if err := m.as.Approve(code); err != nil {
			t.Fatal(err)
		}
		m.c.login(t)
	}
	lifetimes := sample(4, 100)
	before := []int{machines[0].as.Stats().Refreshes, machines[1].as.Stats().Refreshes}
	call()
	<-time.After(time.Duration(lifetimes) * lifetime)
	requireGood("over many tokens")
	for i, m := range machines {
		// A token is renewed at 70 to 85 % of its lifetime, or a little later on a busy machine.
		if n, least, most := m.as.Stats().Refreshes-before[i], lifetimes*3/4, lifetimes*14/10+2; n < least || n > most {
			t.Errorf("%s: %d refreshes in %d lifetimes, want %d to %d", m.name, n, lifetimes, least, most)
		}
		// A kill in the midst of a refresh leaves a lock behind, which holds the next one up for seconds.
		m.issued.awaitSaved(t, filepath.Dir(recordsOf(m.c)), patience)
		m.c.kill(t)
		m.c.start(t)
	}
	call()
	<-time.After(lifetime)
	for _, m := range machines {
		m.clock.set(t, 0)
	}
	<-time.After(lifetime)
	requireGood("after a power cut and with the clock put right")
	for _, m := range machines {
		if got := m.as.Stats(); got.DeviceRequests != 1 || got.Reuses != 0 {
			t.Errorf("%s: %d codes and %d reuses, want 1 and 0", m.name, got.DeviceRequests, got.Reuses)
		}
	}
}
