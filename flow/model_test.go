package flow_test

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

var (
	modelLong = flag.Duration("long", 6*time.Second, "how long the property test runs")
	modelSeed = flag.Uint64("seed", 0, "the one story of the property test to repeat for so long; goroutines still take turns as they like")
)

// TestAnythingMayHappen is the property test: what people, machines, stores and
// servers do, in random order, to several instances at a strict server. What
// must hold all the same is in modeloracle_test.go.
func TestAnythingMayHappen(t *testing.T) {
	begin, seed, steps, runs := time.Now(), rand.Uint64(), 0, 0
	if *modelSeed != 0 {
		seed = *modelSeed
	}
	first := seed
	for ; !t.Failed() && (runs == 0 || time.Since(begin) < *modelLong); runs++ {
		m := &model{rnd: rand.New(rand.NewPCG(seed, 1)), seed: seed}
		synctest.Test(t, m.run)
		steps += m.steps
		if *modelSeed == 0 {
			seed++
		}
	}
	t.Logf("%d steps in %d runs, seeds %d to %d", steps, runs, first, seed)
}

// model is one run.
type model struct {
	*cluster
	oracle
	rnd      *rand.Rand
	seed     uint64
	lifetime time.Duration
	steps    int
	story    []string
	began    time.Time

	// What may go wrong in this run. Without any of it, locks and stores work,
	// clocks are right, and answers arrive.
	stores, clocks, answers bool
}

const modelSteps = 300

// modelWants are the APIs that are called. The server refuses the last one.
var modelWants = []flow.Want{{Audience: "https://a.example"}, {Audience: "https://b.example", Scope: []string{"openid"}}, {Resource: []string{"https://no.example"}}}

func (m *model) run(t *testing.T) {
	m.lifetime = []time.Duration{3 * time.Second, 20 * time.Second, time.Minute, 10 * time.Minute}[m.rnd.IntN(4)]
	m.stores, m.clocks, m.answers = m.rnd.IntN(3) == 0, m.rnd.IntN(4) == 0, m.rnd.IntN(4) == 0
	m.began = time.Now()
	defer func() {
		if t.Failed() {
			t.Logf("repeat with -seed %d; what happened:\n%s", m.seed, strings.Join(m.story, "\n"))
			for _, r := range m.as.Requests()[max(0, len(m.as.Requests())-30):] {
				t.Logf("%v %s: %d", r.Time.Sub(m.began), r.Step, r.Status)
			}
		}
	}()
	w := newWorld(t, flowtest.Config{AccessTokenLifetime: m.lifetime})
	w.cfg.Observer = func(flow.Event) {}
	if m.rnd.IntN(4) == 0 {
		w.cfg.Login = flow.LoginEager
	}
	m.cluster = newCluster(w, 1+m.rnd.IntN(5))
	m.note("%d instances, lifetime %v, faults: stores %t, clocks %t, answers %t", len(m.all), m.lifetime, m.stores, m.clocks, m.answers)
	for range modelSteps {
		m.step()
		m.steps++
		m.check()
		if t.Failed() {
			return
		}
	}
	m.settle()
}

func (m *model) note(format string, args ...any) {
	m.story = append(m.story, fmt.Sprint(time.Since(m.began))+" "+fmt.Sprintf(format, args...))
}

// soon runs a command that may take long.
func (m *model) soon(f func(ctx context.Context)) {
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		f(ctx)
	}()
	synctest.Wait()
}

// step lets one thing happen.
func (m *model) step() {
	n := m.rnd.IntN(len(m.all))
	i := m.all[n]
	switch m.rnd.IntN(28) {
	case 0, 1:
		m.note("approve: %d", m.as.ApproveAll())
	case 2:
		if codes := m.as.Pending(); len(codes) > 0 {
			m.note("deny")
			_ = m.as.Deny(codes[0])
		}
	case 3:
		if codes := m.as.Pending(); len(codes) > 0 {
			m.note("expire")
			_ = m.as.Expire(codes[0])
		}
	case 4, 5:
		m.note("demand at %d", n)
		i.Demand()
	case 6:
		m.note("login at %d", n)
		m.soon(func(ctx context.Context) { _, _ = i.Login(ctx) })
	case 7:
		m.end(n, i)
	case 8:
		m.note("refresh at %d", n)
		m.soon(func(ctx context.Context) { _, _ = i.Refresh(ctx) })
	case 9:
		m.note("reload of %d", n)
		if err := i.SetConfig(i.cfg); err != nil {
			m.Error(err)
		}
	case 10, 11:
		m.replace(n, i)
	case 12, 13:
		m.serverFault()
	case 14:
		if m.stores {
			m.storeFault()
		}
	case 15:
		if m.clocks {
			d := time.Duration(m.rnd.IntN(7200)-3600) * time.Second
			m.note("clock of %d set to %v", n, d)
			i.StepClock(d)
		}
	case 24, 25, 26:
		k := m.rnd.IntN(len(modelWants))
		m.note("call of API %d at %d", k, n)
		src := m.source(i.Session, modelWants[k])
		if t := src.Current(); t == nil {
			m.soon(func(ctx context.Context) { _, _ = src.Token(ctx) })
		} else if m.rnd.IntN(5) == 0 {
			m.note("and it refuses its token")
			m.soon(func(ctx context.Context) { src.Replace(ctx, t) })
		}
	case 16:
		m.note("the store heals")
		m.shared.heal()
		m.healed()
	default:
		d := []time.Duration{time.Millisecond, time.Second, 10 * time.Second, m.lifetime / 2, m.lifetime, 2 * m.lifetime}[m.rnd.IntN(6)]
		d = time.Duration(m.rnd.Int64N(int64(d)))
		m.note("%v pass", d)
		m.sleep(d)
	}
	synctest.Wait()
}

// end ends the login, here or at the server; not often.
func (m *model) end(n int, i *instance) {
	switch m.rnd.IntN(8) {
	case 0, 1:
		m.note("logout at %d", n)
		m.loggedOut()
		m.soon(func(ctx context.Context) { _ = i.Logout(ctx) })
	case 2:
		m.note("the server ends all logins")
		m.as.RevokeAll()
	}
}

// replace ends an instance, one way or another, and starts the next.
func (m *model) replace(n int, i *instance) {
	m.instanceEnds()
	if m.rnd.IntN(2) == 0 {
		m.note("stop of %d", n)
		i.stop()
	} else {
		m.note("kill of %d", n)
		i.link.orphan = time.Duration(m.rnd.IntN(60)) * time.Second
		i.kill()
	}
	m.ended = append(m.ended, i)
	m.start(0)
	last := len(m.all) - 1
	m.all[n], m.all = m.all[last], m.all[:last]
}

func (m *model) serverFault() {
	step := []flowtest.Step{flowtest.Poll, flowtest.Refresh, flowtest.Refresh, flowtest.Device, flowtest.Revoke}[m.rnd.IntN(5)]
	answers := []flowtest.Response{
		flowtest.ErrorResponse(500, "server_error"), flowtest.ErrorResponse(429, "too_many"), flowtest.ErrorResponse(401, "invalid_client"),
		{Status: 404, Body: "<html>default backend</html>"},
		{Drop: true},
		{Hang: true},
		{Pass: true, Delay: time.Duration(m.rnd.IntN(25)) * time.Second},
	}
	if m.answers { // it has done what was asked for, and nobody hears of it
		answers = append(answers, flowtest.Response{Pass: true, Drop: true}, flowtest.Response{Pass: true, Hang: true})
	}
	k := m.rnd.IntN(len(answers))
	m.note("fault %d at %s", k, step)
	m.as.Script(step, answers[k])
}

func (m *model) storeFault() {
	pick := func(modes ...mode) mode { return modes[m.rnd.IntN(len(modes))] }
	m.storeFails()
	m.shared.set(func(s *sharedStore) {
		switch m.rnd.IntN(4) {
		case 0:
			s.load = pick(works, fails, hangs)
		case 1:
			s.save = pick(works, fails, hangs, nothing)
		case 2:
			s.lock = pick(works, fails, hangs, nothing, orphaned)
		case 3:
			s.behind = time.Duration(m.rnd.IntN(5)) * time.Second
		}
		m.note("store: load %s, save %s, lock %s, behind %v", s.load, s.save, s.lock, s.behind)
	})
}

// settle lifts all faults and asserts that everything comes right by itself, and
// that a person can log in.
func (m *model) settle() {
	m.note("all is well")
	m.shared.heal()
	m.healed()
	for _, step := range []flowtest.Step{flowtest.Poll, flowtest.Refresh, flowtest.Device, flowtest.Revoke} {
		m.as.Unscript(step)
	}
	for _, i := range m.all {
		i.StepClock(0)
	}
	m.sleep(15 * time.Minute)
	m.check()
	for n, i := range m.all {
		st := i.Status()
		if st.State == flow.StateUnavailable || st.State == flow.StateDegraded && st.Error.Code != "invalid_grant" {
			m.Errorf("instance %d is stuck: %s", n, asJSON(st))
		}
	}
	m.note("somebody logs in")
	for range 3 { // a code may run out just now
		st, err := m.all[0].Login(m.Context())
		if err == nil && st.Login == nil && st.Error != nil && st.Error.Code == "expired_token" {
			continue // who polled for the code has noticed first
		}
		if err != nil || st.Login == nil {
			m.Errorf("login: %v, %s", err, asJSON(st))
			return
		}
		m.as.ApproveAll()
		m.sleep(30 * time.Second)
		m.check()
	}
	m.note("everybody has a token")
	for range 5 {
		for n, i := range m.all {
			if st := i.Status(); st.State != flow.StateAuthorized {
				_, stored := m.shared.only()
				m.Errorf("instance %d is not logged in: %s; stored: %s", n, asJSON(st), stored)
			} else if !m.as.ValidToken(i.Current().Value().Reveal()) {
				m.Errorf("instance %d uses a dead token: %s", n, asJSON(st))
			}
		}
		if m.Failed() {
			return
		}
		m.sleep(min(m.lifetime, 2*time.Minute))
		m.check()
	}
}
