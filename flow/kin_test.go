package flow_test

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// kindred makes the next session one of many.
func (w *world) kindred(kin *flow.Kin, i int) {
	w.cfg.Kin, w.cfg.Key = kin, fmt.Sprint("device", i)
	w.cfg.Name = fmt.Sprintf("devices~%032x", i)
	w.cfg.StorageName = w.cfg.Name
}

func TestKindredSessionsAskForTheMetadataOnce(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		w.as.ScriptAlways(flowtest.Discovery, flowtest.Response{Pass: true, Delay: time.Second})
		kin := new(flow.Kin)
		var all []*flow.Session
		for i := range 50 {
			w.kindred(kin, i)
			s, _ := w.run()
			all = append(all, s)
		}
		for _, s := range all {
			s.Demand()
		}
		w.sleep(5 * time.Second)
		for _, s := range all {
			w.wantState(s, flow.StatePending)
		}
		w.wantCount(flowtest.Discovery, 1)
	})
}

// If the one that asks goes away, another one asks.
func TestTheMetadataOutliveTheSessionThatAsked(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		w.as.ScriptAlways(flowtest.Discovery, flowtest.Response{Pass: true, Delay: 20 * time.Second})
		kin := new(flow.Kin)
		w.kindred(kin, 1)
		first, stop := w.run()
		w.kindred(kin, 2)
		second, _ := w.run()
		first.Demand()
		w.sleep(time.Second)
		second.Demand()
		w.sleep(time.Second)
		stop()
		w.sleep(time.Minute)
		w.wantState(second, flow.StatePending)
		w.wantCount(flowtest.Discovery, 2)
	})
}

// A thousand sessions that each look every two seconds were 500 reads a second.
func TestManySessionsLookIntoTheStoreSeldom(t *testing.T) {
	bubble(t, flowtest.Config{CodeLifetime: time.Hour}, func(w *world) {
		kin := new(flow.Kin)
		reads := func() int {
			w.store.mu.Lock()
			defer w.store.mu.Unlock()
			return w.store.calls["load"]
		}
		w.kindred(kin, 0)
		pending, _ := w.run()
		pending.Demand()
		for i := 1; i <= 1000; i++ {
			w.kindred(kin, i)
			w.run()
		}
		w.sleep(time.Minute)
		before := reads()
		w.sleep(100 * time.Second)
		if n := reads() - before; n < 5000 || n > 5500 { // each every 20 s, and the pending one still as often as ever
			t.Errorf("%d reads in 100 s by 1001 sessions", n)
		}
	})
}

func TestALoginStartsOnDemandOnlyIfItMay(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		var may atomic.Bool
		var asked atomic.Int32
		w.cfg.MayLogin = func() bool { asked.Add(1); return may.Load() }
		s, _ := w.run()
		for range 3 {
			if _, err := s.Token(w.Context()); err == nil {
				t.Fatal("there is a token")
			}
		}
		w.wantState(s, flow.StateLoginRequired)
		w.wantCount(flowtest.Device, 0)
		may.Store(true)
		_, _ = s.Token(w.Context())
		w.wantState(s, flow.StatePending)
		n := asked.Load()
		if n != 4 {
			t.Errorf("asked %d times, want each time that a login would start", n)
		}
		_, _ = s.Token(w.Context())
		w.login(s)
		w.wantToken(s)
		if asked.Load() != n {
			t.Error("asked although no login would start")
		}
	})
}

// A person has a code in hand: however many sessions there are, the instance that
// does not poll hears soon of what has become of it.
func TestOneOfManySessionsWaitsForACodeAsCloselyAsASingleOne(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		w.kindred(new(flow.Kin), 0)
		here, _ := w.run()
		kin := new(flow.Kin)
		w.kindred(kin, 0)
		there, _ := w.run()
		for i := 1; i <= 1000; i++ {
			w.kindred(kin, i)
			w.run()
		}
		st, err := here.Login(w.Context())
		if err != nil {
			t.Fatal(err)
		}
		_, _ = there.Token(w.Context())
		w.wantState(there, flow.StatePending)
		w.sleep(30 * time.Second)
		if err := w.as.Approve(st.Login.UserCode); err != nil {
			t.Fatal(err)
		}
		w.sleep(5*time.Second + flow.LookEvery + 100*time.Millisecond)
		w.wantState(here, flow.StateAuthorized)
		w.wantState(there, flow.StateAuthorized)
		w.wantCount(flowtest.Device, 1)
	})
}
