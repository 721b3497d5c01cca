package flow_test

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

func TestFiveHundredRotationsWithoutReuse(t *testing.T) {
	bubble(t, flowtest.Config{AccessTokenLifetime: time.Minute}, func(w *world) {
		s, _ := w.loggedIn()
		for w.as.Stats().Refreshes < 500 {
			w.sleep(5 * time.Second)
			w.wantToken(s)
		}
		st := w.as.Stats()
		if st.Reuses != 0 || st.Logins != 1 {
			w.Fatalf("%+v", st)
		}
		for _, gap := range w.gaps(flowtest.Refresh) {
			if gap < 42*time.Second || gap > 51*time.Second+flow.Settling {
				w.Fatalf("a refresh after %v, want 70 to 85 %% of a minute", gap)
			}
		}
		if n := w.count(flow.EventTokenRefreshed); n != 500 {
			w.Fatalf("%d events for 500 refreshes", n)
		}
	})
}

func TestRefreshTokenThatIsNotReplacedGoesOn(t *testing.T) {
	bubble(t, flowtest.Config{NoRotation: true, AccessTokenLifetime: time.Minute}, func(w *world) {
		s, stop := w.loggedIn()
		w.sleep(5 * time.Minute)
		w.wantToken(s)
		stop()
		s, _ = w.run()
		if _, err := s.Refresh(w.Context()); err != nil {
			w.Fatal(err)
		}
		w.wantToken(s)
		w.wantCount(flowtest.Device, 1)
	})
}

func TestDetailsOfARefreshAnswerDoNotMatter(t *testing.T) {
	big := strings.Repeat("k", 60<<10)
	for name, edit := range map[string]func(map[string]any){
		"no expires_in":      func(m map[string]any) { delete(m, "expires_in") },
		"no scope":           func(m map[string]any) { delete(m, "scope") },
		"no id_token":        func(m map[string]any) { delete(m, "id_token") },
		"no token_type":      func(m map[string]any) { delete(m, "token_type") },
		"bearer":             func(m map[string]any) { m["token_type"] = "bearer" },
		"BEARER":             func(m map[string]any) { m["token_type"] = "BEARER" },
		"more members":       func(m map[string]any) { m["foo"], m["refresh_expires_in"], m["x"] = []any{1}, 0, nil },
		"a list of scopes":   func(m map[string]any) { m["scope"] = []string{"openid", "offline_access"} },
		"commas":             func(m map[string]any) { m["scope"] = "openid,offline_access" },
		"an empty error":     func(m map[string]any) { m["error"] = nil },
		"an error code of 0": func(m map[string]any) { m["error_code"] = 0 },
		"a broken id_token":  func(m map[string]any) { m["id_token"] = "a.b.c" },
		"a large id_token":   func(m map[string]any) { m["id_token"] = big },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, flowtest.Config{}, func(w *world) {
				s, _ := w.loggedIn()
				before := s.Status()
				w.as.Script(flowtest.Refresh, flowtest.Response{Pass: true, Edit: flowtest.EditJSON(edit)})
				if _, err := s.Refresh(w.Context()); err != nil {
					w.Fatal(err)
				}
				w.wantToken(s)
				st := s.Status()
				if fmt.Sprint(st.Token.Scope) != "[openid offline_access]" || *st.Account != *before.Account {
					w.Fatalf("scope %q, account %+v", st.Token.Scope, st.Account)
				}
				if _, err := s.Refresh(w.Context()); err != nil { // the new refresh token was kept
					w.Fatal(err)
				}
			})
		})
	}
}

func TestLargeAccessTokenIsUsed(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		s, stop := w.loggedIn()
		big := strings.Repeat("k", 60<<10)
		w.as.Script(flowtest.Refresh, member("access_token", big))
		if _, err := s.Refresh(w.Context()); err != nil {
			w.Fatal(err)
		}
		stop()
		s, _ = w.run()
		h := http.Header{}
		s.Current().SetHeader(h)
		if h.Get("Authorization") != "Bearer "+big {
			w.Fatal("the token was cut")
		}
	})
}

func TestTokenWithoutRefreshTokenIsServedToItsEnd(t *testing.T) {
	bubble(t, flowtest.Config{OmitRefreshToken: true}, func(w *world) {
		s, stop := w.loggedIn()
		if st := s.Status(); st.Token.Refreshable || st.Token.RefreshAt != nil {
			w.Fatalf("status %s", asJSON(st))
		}
		if _, err := s.Refresh(w.Context()); err == nil {
			w.Fatal("refreshed without a refresh token")
		}
		stop()
		s, _ = w.run()
		w.sleep(time.Until(s.Current().Expiry()) - time.Nanosecond)
		w.wantToken(s)
		w.sleep(time.Nanosecond)
		w.wantState(s, flow.StateLoginRequired)
		w.wantCount(flowtest.Refresh, 0)
		if st := s.Status(); st.Account != nil || st.Token != nil {
			w.Fatalf("something is left of the login: %s", asJSON(st))
		}
		s.Demand()
		w.sleep(0)
		w.wantState(s, flow.StatePending)
	})
}

func TestTwoRefreshesAtOnceAreOne(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		s, _ := w.loggedIn()
		w.as.Script(flowtest.Refresh, flowtest.Response{Pass: true, Delay: time.Second})
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if _, err := s.Refresh(w.Context()); err != nil {
					w.Error(err)
				}
			})
		}
		wg.Wait()
		w.wantCount(flowtest.Refresh, 1)
		w.wantToken(s)
	})
}

func TestRefreshThatNamesTheSubjectOnlyKeepsTheAccount(t *testing.T) {
	idToken := func(claims string) flowtest.Response {
		return member("id_token", "e30."+base64.RawURLEncoding.EncodeToString([]byte(claims))+".x")
	}
	bubble(t, flowtest.Config{}, func(w *world) {
		s, _ := w.loggedIn()
		want := *s.Status().Account
		w.as.Script(flowtest.Refresh, idToken(`{"sub":"auth0|alice"}`), idToken(`{"sub":"auth0|bob"}`))
		if st, err := s.Refresh(w.Context()); err != nil || *st.Account != want {
			w.Fatalf("%v, %s", err, asJSON(st.Account))
		}
		if st, err := s.Refresh(w.Context()); err != nil || *st.Account != (flow.Account{Subject: "auth0|bob"}) {
			w.Fatalf("%v, %s", err, asJSON(st.Account))
		}
	})
}
