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
	modelLong = flag.Duration("long", modelShort, "how long the property test runs; for more than the default, in the chaotic world, too")
	modelSeed = flag.Uint64("seed", 0, "the one run of the property test to repeat")
)

const modelShort = 2 * time.Second

// TestAnythingMayHappen is the property test: what people, machines, stores and
// servers do, in random order, to several instances at a strict server. In an
// honest world locks and stores work and answers arrive; in the other one
// nothing is sure, but a login is given up only when the server has ended it.
func TestAnythingMayHappen(t *testing.T) {
	worlds := []bool{false}
	if *modelLong > modelShort || *modelSeed != 0 {
		// What it knows of a login there is not always what the server knows: a
		// failure has to be read, so it is for a person who asks for it.
		worlds = append(worlds, true)
	}
	for _, chaos := range worlds {
		t.Run(map[bool]string{false: "honest", true: "chaos"}[chaos], func(t *testing.T) {
			begin, seed, steps, runs := time.Now(), rand.Uint64(), 0, 0
			t.Logf("first seed %d", seed)
			for ; runs == 0 || *modelSeed == 0 && time.Since(begin) < *modelLong; runs++ {
				if *modelSeed != 0 {
					seed = *modelSeed
				}
				m := &model{rnd: rand.New(rand.NewPCG(seed, 1)), chaos: chaos, seed: seed}
				synctest.Test(t, m.run)
				steps += m.steps
				seed++
			}
			t.Logf("%d runs, %d steps", runs, steps)
		})
	}
}

type model struct {
	*cluster
	rnd   *rand.Rand
	seed  uint64
	chaos bool
	steps int
	story []string
	began time.Time

	loggedIn bool // everybody had a token, and nothing has ended that login
	faulty   bool // the store may not have what an instance knows
	reuses   int
}

func (m *model) run(t *testing.T) {
	lifetime := []time.Duration{20 * time.Second, time.Minute, 10 * time.Minute, time.Hour}[m.rnd.IntN(4)]
	m.began = time.Now()
	defer func() {
		if t.Failed() {
			t.Logf("repeat with -seed %d; what happened:\n%s", m.seed, strings.Join(m.story, "\n"))
		}
	}()
	w := newWorld(t, flowtest.Config{AccessTokenLifetime: lifetime})
	if m.rnd.IntN(4) == 0 {
		w.cfg.Login = flow.LoginEager
	}
	m.cluster = newCluster(w, 1+m.rnd.IntN(5))
	m.note("%d instances, lifetime %v", len(m.all), lifetime)
	for range 20 + m.rnd.IntN(60) {
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

func (m *model) step() {
	n := m.rnd.IntN(len(m.all))
	i := m.all[n]
	pick := func(modes ...mode) mode { return modes[m.rnd.IntN(len(modes))] }
	switch op := m.rnd.IntN(24); op {
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
		if m.rnd.IntN(3) == 0 {
			m.note("logout at %d", n)
			m.loggedIn = false
			m.soon(func(ctx context.Context) { _ = i.Logout(ctx) })
		}
	case 8:
		m.note("refresh at %d", n)
		m.soon(func(ctx context.Context) { _, _ = i.Refresh(ctx) })
	case 9:
		m.note("reload of %d", n)
		if err := i.SetConfig(i.cfg); err != nil {
			m.Error(err)
		}
	case 10, 11:
		m.loggedIn = m.loggedIn && !m.faulty // what was not saved is lost
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
	case 12:
		step := []flowtest.Step{flowtest.Poll, flowtest.Refresh, flowtest.Device, flowtest.Revoke}[m.rnd.IntN(4)]
		answers := []flowtest.Response{
			flowtest.ErrorResponse(500, "server_error"), flowtest.ErrorResponse(429, "too_many"),
			{Drop: true}, {Hang: true}, {Pass: true, Delay: time.Duration(m.rnd.IntN(20)) * time.Second},
		}
		if m.chaos {
			answers = append(answers, flowtest.Response{Pass: true, Drop: true}, flowtest.Response{Pass: true, Hang: true})
		}
		if step == flowtest.Refresh && !m.chaos {
			answers = answers[:3] // an answer that is slower than the wait for the lock is asked for twice
		}
		k := m.rnd.IntN(len(answers))
		m.note("fault %d at %s", k, step)
		m.as.Script(step, answers[k])
	case 13:
		if m.chaos {
			m.faulty = true
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
	case 14:
		if m.chaos {
			d := time.Duration(m.rnd.IntN(7200)-3600) * time.Second
			m.note("clock of %d set to %v", n, d)
			i.StepClock(d)
		}
	case 15:
		m.note("the store heals")
		m.shared.heal()
	default:
		d := []time.Duration{time.Millisecond, time.Second, 10 * time.Second, time.Minute, time.Minute, 10 * time.Minute, 10 * time.Minute, time.Hour}[m.rnd.IntN(8)]
		d = time.Duration(m.rnd.Int64N(int64(d)))
		m.note("%v pass", d)
		m.sleep(d)
	}
	synctest.Wait()
}

// check asserts what holds at all times.
func (m *model) check() {
	if r := m.as.Stats().Reuses; r > m.reuses {
		m.note("the server has ended the login: a refresh token came twice")
		m.reuses, m.loggedIn = r, false
	}
	for _, v := range m.as.Stats().Violations {
		if strings.Contains(v, "after the final answer") {
			m.loggedIn = false // RFC 6749 §4.1.2: that ends the login, too
		}
	}
	all := true
	for n, i := range m.all {
		st := i.Status()
		all = all && st.State == flow.StateAuthorized
		if m.loggedIn && st.State == flow.StateLoginRequired && !m.faulty {
			m.Errorf("instance %d has given up a login that the server has not ended: %s", n, asJSON(st))
		}
	}
	m.loggedIn = m.loggedIn || all
	if !m.chaos {
		if v := m.as.Stats().Violations; len(v) > 0 {
			m.Errorf("the server objects: %q", v)
		}
	}
}

// settle lifts all faults and asserts that everything comes right by itself.
func (m *model) settle() {
	m.note("all is well")
	m.shared.heal()
	for _, step := range []flowtest.Step{flowtest.Poll, flowtest.Refresh, flowtest.Device, flowtest.Revoke} {
		m.as.Unscript(step)
	}
	for _, i := range m.all {
		i.StepClock(0)
	}
	m.sleep(15 * time.Minute)
	m.faulty = false
	m.check()
	for n, i := range m.all {
		st := i.Status()
		if st.State == flow.StateUnavailable || st.State == flow.StateDegraded && st.Error.Code != "invalid_grant" {
			m.Errorf("instance %d is stuck: %s", n, asJSON(st))
		}
	}
	st, err := m.all[0].Login(m.Context())
	if err != nil || st.Login == nil {
		m.Errorf("login: %v, %s", err, asJSON(st))
		return
	}
	for range 20 { // a code may run out just now, and the next one comes
		m.as.ApproveAll()
		m.sleep(10 * time.Second)
		for _, i := range m.all {
			i.Demand()
		}
	}
	m.sleep(10 * time.Second)
	m.check()
	for range 5 {
		for n, i := range m.all {
			if st := i.Status(); st.State != flow.StateAuthorized {
				_, stored := m.shared.only()
				m.Errorf("instance %d is not logged in: %s; stored: %s", n, asJSON(st), stored)
				for _, r := range m.as.Requests()[max(0, len(m.as.Requests())-12):] {
					m.Logf("%v %s %d", r.Time.Sub(m.began), r.Step, r.Status)
				}
			} else if !m.as.ValidToken(i.Current().Value().Reveal()) {
				m.Errorf("instance %d uses a dead token: %s", n, asJSON(st))
			}
		}
		if m.Failed() {
			return
		}
		m.sleep(2 * time.Minute)
		m.check()
	}
}
