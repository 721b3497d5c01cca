package flow_test

import (
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

func TestReloginKeepsTheTokenInUse(t *testing.T) {
	for name, decide := range map[string]func(w *world, code string) error{
		"denied":  func(w *world, code string) error { return w.as.Deny(code) },
		"expired": func(w *world, code string) error { return w.as.Expire(code) },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, flowtest.Config{}, func(w *world) {
				s, _ := w.loggedIn()
				token := w.wantToken(s)
				st, err := s.Login(w.Context())
				if err != nil || st.Login == nil || st.State != flow.StateAuthorized {
					w.Fatalf("%v, %s", err, asJSON(st))
				}
				if err := decide(w, st.Login.UserCode); err != nil {
					w.Fatal(err)
				}
				w.sleep(10 * time.Second)
				w.wantState(s, flow.StateAuthorized)
				if s.Current() != token || s.Status().Login != nil {
					w.Fatal("the token in use did not outlive the attempt")
				}
				w.sleep(time.Hour) // and is refreshed as ever
				w.wantToken(s)
				w.wantCount(flowtest.Refresh, 1)
			})
		})
	}
}

func TestReloginRevokesTheOldLoginOnlyOfAnotherAccount(t *testing.T) {
	for _, tc := range []struct {
		user flowtest.User
		want int
	}{
		{flowtest.User{Subject: "auth0|alice"}, 0}, // some servers would end the new login, too
		{flowtest.User{Subject: "auth0|bob"}, 1},
	} {
		t.Run(tc.user.Subject, func(t *testing.T) {
			bubble(t, flowtest.Config{}, func(w *world) {
				s, _ := w.loggedIn()
				st, err := s.Login(w.Context())
				if err != nil {
					w.Fatal(err)
				}
				if err := w.as.ApproveAs(st.Login.UserCode, tc.user); err != nil {
					w.Fatal(err)
				}
				w.sleep(5 * time.Second)
				w.wantCount(flowtest.Revoke, tc.want)
				if got := s.Status().Account; got == nil || got.Subject != tc.user.Subject {
					w.Fatalf("account %s", asJSON(got))
				}
				w.wantToken(s)
			})
		})
	}
}

func TestLogout(t *testing.T) {
	for _, tc := range []struct {
		name    string
		answer  flowtest.Response
		fails   bool
		revoked int
	}{
		{"200", flowtest.Response{Pass: true}, false, 1},
		{"400", flowtest.ErrorResponse(400, "unsupported_token_type"), true, 0},
		{"503", flowtest.Response{Status: 503}, true, 0},
		{"hangs", flowtest.Response{Hang: true}, true, 0},
		{"lost", flowtest.Response{Drop: true}, true, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubble(t, flowtest.Config{}, func(w *world) {
				s, stop := w.loggedIn()
				w.forgetEvents()
				w.as.Script(flowtest.Revoke, tc.answer)
				if err := s.Logout(w.Context()); (err != nil) != tc.fails {
					w.Fatalf("logout: %v", err)
				}
				w.sleep(0)
				w.wantState(s, flow.StateLoginRequired)
				if s.Current() != nil || w.store.record() != "" {
					w.Fatal("the login is not forgotten")
				}
				if n := w.as.Stats().Revocations; n != tc.revoked {
					w.Fatalf("%d revocations, want %d", n, tc.revoked)
				}
				w.wantEvents("authorized>login_required", "logged_out")
				stop()
				s, _ = w.run()
				w.wantState(s, flow.StateLoginRequired)
			})
		})
	}
}

func TestLogoutWithoutRevocationEndpoint(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		w.cfg.Endpoints = flow.Endpoints{DeviceAuthorization: w.cfg.Issuer + "/device_authorization", Token: w.cfg.Issuer + "/token"}
		w.cfg.Issuer = ""
		s, _ := w.loggedIn()
		if err := s.Logout(w.Context()); err != nil {
			w.Fatal(err)
		}
		w.wantCount(flowtest.Revoke, 0)
		w.wantCount(flowtest.Discovery, 0)
	})
}

func TestLogoutOvertakesWhatIsUnderWay(t *testing.T) {
	slow := flowtest.Response{Pass: true, Delay: 3 * time.Second}
	t.Run("a device request", func(t *testing.T) {
		bubble(t, flowtest.Config{}, func(w *world) {
			s, _ := w.run()
			w.as.Script(flowtest.Device, slow)
			s.Demand()
			w.sleep(time.Second)
			if err := s.Logout(w.Context()); err != nil {
				w.Fatal(err)
			}
			// A login that comes after the logout is not answered with the code from before.
			if st, err := s.Login(w.Context()); err != nil || st.State != flow.StatePending {
				w.Fatalf("%v, %s", err, asJSON(st))
			}
			w.wantCount(flowtest.Device, 2)
		})
	})
	t.Run("a poll", func(t *testing.T) {
		bubble(t, flowtest.Config{AutoApprove: true}, func(w *world) {
			s, _ := w.run()
			if _, err := s.Login(w.Context()); err != nil {
				w.Fatal(err)
			}
			w.as.Script(flowtest.Poll, flowtest.Response{Func: nil, Pass: true, Delay: 3 * time.Second})
			w.sleep(6 * time.Second)
			if err := s.Logout(w.Context()); err != nil {
				w.Fatal(err)
			}
			w.sleep(5 * time.Second)
			w.wantState(s, flow.StateLoginRequired)
			if st := w.as.Stats(); st.Logins != 1 || st.Revocations != 1 {
				w.Fatalf("what came of the poll was not revoked: %+v", st)
			}
		})
	})
	t.Run("a refresh", func(t *testing.T) {
		bubble(t, flowtest.Config{}, func(w *world) {
			s, _ := w.loggedIn()
			w.as.Script(flowtest.Refresh, slow)
			refreshed := make(chan error, 1)
			go func() {
				_, err := s.Refresh(w.Context())
				refreshed <- err
			}()
			w.sleep(time.Second)
			w.forgetEvents()
			if err := s.Logout(w.Context()); err != nil {
				w.Fatal(err)
			}
			if err := <-refreshed; err == nil {
				w.Fatal("a refresh that a logout has overtaken reports success")
			}
			w.sleep(5 * time.Second)
			w.wantState(s, flow.StateLoginRequired)
			w.wantEvents("authorized>login_required", "logged_out")
			if w.store.record() != "" {
				w.Fatal("the login came back into the store")
			}
		})
	})
}

func TestLogoutHoldsThoughTheStoreCouldNotBeRead(t *testing.T) {
	for _, name := range []string{"failing", "hanging"} {
		t.Run(name, func(t *testing.T) {
			bubble(t, flowtest.Config{}, func(w *world) {
				_, stop := w.loggedIn()
				stop()
				release := make(chan struct{})
				w.store.setFault(failing("load"))
				if name == "hanging" {
					w.store.setFault(holding("load", release))
				}
				s, _ := w.run()
				w.sleep(11 * time.Second)
				if err := s.Logout(w.Context()); err != nil {
					w.Fatal(err)
				}
				w.forgetEvents()
				w.store.setFault(nil)
				close(release)
				w.sleep(time.Minute)
				w.wantState(s, flow.StateLoginRequired)
				w.wantEvents("store_healed")
				if w.store.record() != "" {
					w.Fatal("the login is still stored")
				}
			})
		})
	}
}

func TestLateAnswerWhoLoggedInIsNotTakenForTheNextLogin(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		w.as.Script(flowtest.Poll, member("id_token", nil), member("id_token", nil))
		w.as.Script(flowtest.UserInfo, flowtest.Response{Pass: true, Delay: 8 * time.Second}, flowtest.Response{Status: 404})
		w.as.Script(flowtest.Revoke, flowtest.Response{Status: 503}) // the token lives on
		s, _ := w.loggedIn()
		if err := s.Logout(w.Context()); err == nil {
			w.Fatal("no error")
		}
		w.login(s)
		w.sleep(10 * time.Second)
		w.wantCount(flowtest.UserInfo, 2)
		if a := s.Status().Account; a != nil {
			w.Fatalf("account %s is that of the login before", asJSON(a))
		}
	})
}

func TestReloginOvertakesARefreshThatIsUnderWay(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		s, _ := w.loggedIn()
		st, err := s.Login(w.Context())
		if err != nil {
			w.Fatal(err)
		}
		if err := w.as.Approve(st.Login.UserCode); err != nil {
			w.Fatal(err)
		}
		w.as.Script(flowtest.Refresh, flowtest.Response{Pass: true, Delay: 20 * time.Second})
		done := make(chan error, 1)
		go func() {
			_, err := s.Refresh(w.Context())
			done <- err
		}()
		w.sleep(5 * time.Second)
		if err := <-done; err != nil { // there is a new token, whatever brought it
			w.Fatal(err)
		}
		token := w.wantToken(s)
		w.sleep(20 * time.Second)
		if s.Current() != token {
			w.Fatal("the answer to the old login's refresh replaced the new login's token")
		}
		w.wantCount(flowtest.Revoke, 0)
		w.sleep(time.Hour)
		w.wantToken(s) // refreshed as ever
		w.wantCount(flowtest.Refresh, 2)
	})
}
