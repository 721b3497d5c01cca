package flow_test

import (
	"context"
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

func TestShutdownSavesTheRefreshThatIsUnderWay(t *testing.T) {
	for name, step := range map[string]flowtest.Step{"refresh": flowtest.Refresh, "login": flowtest.Poll} {
		t.Run(name, func(t *testing.T) {
			bubble(t, flowtest.Config{}, func(w *world) {
				slow := flowtest.Response{Pass: true, Delay: 2 * time.Second}
				s, stop := w.run()
				if _, err := s.Login(w.Context()); err != nil {
					w.Fatal(err)
				}
				w.as.ApproveAll()
				if step == flowtest.Poll {
					w.as.Script(step, slow)
					w.sleep(6 * time.Second)
				} else {
					w.sleep(5 * time.Second)
					w.as.Script(step, slow)
					go func() { _, _ = s.Refresh(context.Background()) }()
					w.sleep(time.Second)
				}
				begin := time.Now()
				stop()
				if took := time.Since(begin); took != time.Second && took != time.Second+flow.Settling {
					w.Fatalf("the end took %v", took)
				}
				s, _ = w.run()
				w.wantToken(s)
				if _, err := s.Refresh(w.Context()); err != nil {
					w.Fatal(err)
				}
				if st := w.as.Stats(); st.Reuses != 0 || st.Logins != 1 {
					w.Fatalf("%+v", st)
				}
			})
		})
	}
}

func TestShutdownIsBounded(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		s, stop := w.loggedIn()
		release := make(chan struct{})
		defer close(release) // a store that ignores its context
		w.store.setFault(holding("save", release))
		w.as.ScriptAlways(flowtest.Refresh, flowtest.Response{Hang: true})
		w.as.Script(flowtest.Refresh, flowtest.Response{Pass: true}, flowtest.Response{Pass: true})
		for range 2 { // the first is being saved for ever, the second has to wait for that
			if _, err := s.Refresh(w.Context()); err != nil {
				w.Fatal(err)
			}
		}
		go func() { _, _ = s.Refresh(context.Background()) }()
		w.sleep(time.Second)
		begin, saves := time.Now(), w.store.count("save")
		stop()
		if took := time.Since(begin); took > 4900*time.Millisecond {
			w.Fatalf("the end took %v", took)
		}
		if w.store.count("save") != saves {
			w.Fatal("a second save began beside one that hangs, and may be overtaken by it")
		}
	})
}

func TestShutdownTriesAFailedSaveAgain(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		s, stop := w.loggedIn()
		w.store.setFault(failing("save"))
		if _, err := s.Refresh(w.Context()); err != nil {
			w.Fatal(err)
		}
		token := w.wantToken(s)
		w.store.setFault(nil)
		stop()
		s, _ = w.run()
		if !w.wantToken(s).Value().Equal(token.Value()) {
			w.Fatal("the token in use was not saved")
		}
	})
}
