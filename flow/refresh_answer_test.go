package flow_test

import (
	"strings"
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

func TestLifetimes(t *testing.T) {
	for _, tc := range []struct {
		value string // "" leaves it out
		want  time.Duration
	}{
		{`3600`, time.Hour},
		{`3600.0`, time.Hour},
		{`"3600"`, time.Hour},
		{`36e2`, time.Hour},
		{`1e4`, 10000 * time.Second},
		{`3`, 3 * time.Second},
		{`"3"`, 3 * time.Second},
		{`99999999999999999999`, 10 * 365 * 24 * time.Hour},
		{``, 0},
		{`0`, 0},
		{`-5`, 0},
		{`""`, 0},
		{`"never"`, 0},
		{`true`, 0},
		{`[]`, 0},
		{`{}`, 0},
		{`null`, 0},
		{`1e400`, 0},
		{`NaN`, 0},
		{`-Infinity`, 0},
		{`undefined`, 0},
	} {
		for _, step := range []flowtest.Step{flowtest.Poll, flowtest.Refresh} {
			t.Run(string(step)+" "+tc.value, func(t *testing.T) {
				bubble(t, flowtest.Config{}, func(w *world) {
					edited := flowtest.Response{Pass: true, Edit: func(body []byte) []byte {
						if tc.value == "" {
							return flowtest.EditJSON(func(m map[string]any) { delete(m, "expires_in") })(body)
						}
						return []byte(strings.Replace(string(body), `"expires_in":3600`, `"expires_in":`+tc.value, 1))
					}}
					s, _ := w.run()
					w.as.Script(step, edited)
					if step == flowtest.Poll {
						if _, err := s.Login(w.Context()); err != nil {
							w.Fatal(err)
						}
						w.as.ApproveAll()
						w.sleep(5 * time.Second)
					} else {
						w.login(s)
						if _, err := s.Refresh(w.Context()); err != nil {
							w.Fatal(err)
						}
					}
					w.wantState(s, flow.StateAuthorized)
					begin, refreshes := time.Now(), w.as.Count(flowtest.Refresh)
					token := w.wantToken(s)
					if exp := token.Expiry(); tc.want == 0 && !exp.IsZero() || tc.want != 0 && exp.Sub(begin) != tc.want {
						w.Fatalf("expiry in %v, want %v", exp.Sub(begin), tc.want)
					}
					want := tc.want
					if want == 0 {
						want = time.Hour // assumed, for the refresh; the token is served on
					}
					w.sleep(min(want, 24*time.Hour) * 69 / 100)
					w.wantCount(flowtest.Refresh, refreshes)
					if want < 24*time.Hour {
						w.sleep(want * 17 / 100)
						w.wantCount(flowtest.Refresh, refreshes+1)
						w.wantToken(s)
					}
				})
			})
		}
	}
}

func TestTinyLifetimesAreNoStorm(t *testing.T) {
	for _, value := range []string{`1e-9`, `0.001`, `0.1`} {
		t.Run(value, func(t *testing.T) {
			bubble(t, flowtest.Config{}, func(w *world) {
				w.as.ScriptAlways(flowtest.Token, member("expires_in", raw(value)))
				s, _ := w.run()
				if _, err := s.Login(w.Context()); err != nil {
					w.Fatal(err)
				}
				w.as.ApproveAll()
				w.sleep(65 * time.Second)
				if n := w.as.Count(flowtest.Refresh); n < 10 || n > 120 {
					w.Fatalf("%d refreshes in a minute", n)
				}
			})
		})
	}
}

func TestUnusableTokensAreNeverInjected(t *testing.T) {
	type edit = func(map[string]any)
	access := func(v any) edit { return func(m map[string]any) { m["access_token"] = v } }
	for name, tc := range map[string]struct {
		edit edit
		code string
	}{
		"mac":         {func(m map[string]any) { m["token_type"] = "mac" }, "unsupported_token_type"},
		"N_A":         {func(m map[string]any) { m["token_type"] = "N_A" }, "unsupported_token_type"},
		"CR LF":       {access("abc\r\nX-Evil: 1"), "invalid_response"},
		"NUL":         {access("abc\x00"), "invalid_response"},
		"space":       {access("abc def"), "invalid_response"},
		"not ASCII":   {access("abcé"), "invalid_response"},
		"a megabyte":  {access(strings.Repeat("a", 1<<20-2000)), "invalid_response"},
		"empty":       {access(""), "invalid_response"},
		"missing":     {func(m map[string]any) { delete(m, "access_token") }, "invalid_response"},
		"not a text":  {access(map[string]any{}), "invalid_response"},
		"only equals": {access("==="), "invalid_response"},
	} {
		broken := flowtest.Response{Pass: true, Edit: flowtest.EditJSON(tc.edit)}
		state := flow.StateUnavailable
		if tc.code == "unsupported_token_type" {
			state = flow.StateMisconfigured
		}
		t.Run(name+" at login", func(t *testing.T) {
			bubble(t, flowtest.Config{}, func(w *world) {
				s, stop := w.run()
				if _, err := s.Login(w.Context()); err != nil {
					w.Fatal(err)
				}
				w.as.ApproveAll()
				w.as.Script(flowtest.Poll, broken)
				w.sleep(5 * time.Second)
				if s.Current() != nil {
					w.Fatal("an unusable token is handed out")
				}
				w.wantState(s, state)
				w.wantError(s, tc.code, s.Status().Error.Action)
				stop()
				s, _ = w.run() // the refresh token is good, and brings a token that is
				w.sleep(10 * time.Minute)
				w.wantState(s, flow.StateAuthorized)
				w.wantToken(s)
				w.wantCount(flowtest.Poll, 1) // after a 200, never again
			})
		})
		t.Run(name+" at login, no refresh token", func(t *testing.T) {
			bubble(t, flowtest.Config{OmitRefreshToken: true}, func(w *world) {
				s, _ := w.run()
				if _, err := s.Login(w.Context()); err != nil {
					w.Fatal(err)
				}
				w.as.ApproveAll()
				w.as.Script(flowtest.Poll, broken)
				w.sleep(5 * time.Second)
				if s.Current() != nil {
					w.Fatal("an unusable token is handed out")
				}
				st := s.Status()
				if nothing := name == "empty" || name == "missing" || name == "not a text"; nothing {
					// JSON without a token and without an error: as good as no answer.
					w.wantState(s, flow.StatePending)
					return
				}
				if st.Error == nil || st.Error.Code != tc.code || st.Error.Action == flow.ActionRetry || st.Login != nil {
					w.Fatalf("status %s", asJSON(st))
				}
				w.sleep(time.Hour)
				w.wantCount(flowtest.Poll, 1)
			})
		})
		t.Run(name+" at a refresh", func(t *testing.T) {
			bubble(t, flowtest.Config{}, func(w *world) {
				s, _ := w.loggedIn()
				token := s.Current()
				w.as.Script(flowtest.Refresh, broken)
				if _, err := s.Refresh(w.Context()); err == nil {
					w.Fatal("an unusable token counts as a success")
				}
				if s.Current() != token {
					w.Fatal("the token in use was given up")
				}
				w.wantError(s, tc.code, s.Status().Error.Action)
				w.sleep(3 * time.Minute) // tried again with the new refresh token
				w.wantToken(s)
				w.wantState(s, flow.StateAuthorized)
				w.wantCount(flowtest.Refresh, 2)
			})
		})
	}
}
