package flow_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

var (
	apiA = flow.Want{Audience: "https://a.example"}
	apiB = flow.Want{Resource: []string{"https://b.example"}}
	both = []string{"https://a.example", "https://b.example", "https://own.example"}
)

// minute is a server with several APIs, whose tokens live for a minute.
var minute = flowtest.Config{AccessTokenLifetime: time.Minute, AllowedAudiences: both}

// source is where tokens for want come from.
func (w *world) source(s *flow.Session, want flow.Want) flow.Source {
	w.Helper()
	src, err := s.For(want)
	if err != nil {
		w.Fatal(err)
	}
	return src
}

// wantFor asserts that src has a live token, and for that audience only.
func (w *world) wantFor(src flow.Source, audience string) *flow.Token {
	w.Helper()
	t, err := src.Token(w.Context())
	if err != nil {
		w.Fatalf("no token for %s: %v", audience, err)
	}
	w.checkFor(t, audience)
	return t
}

func (w *world) checkFor(t *flow.Token, audience string) {
	w.Helper()
	info, ok := w.as.Inspect(t.Value().Reveal())
	if !ok || !info.Valid || !slices.Equal(info.Audience, []string{audience}) {
		w.Fatalf("a token for %q, alive: %t, where one for %s belongs", info.Audience, info.Valid, audience)
	}
}

// notReady asserts that there is no token, and returns why.
func (w *world) notReady(src flow.Source) *flow.NotReadyError {
	w.Helper()
	t, err := src.Token(w.Context())
	var e *flow.NotReadyError
	if t != nil || !errors.As(err, &e) || e.RetryAfter < time.Second {
		w.Fatalf("token %v, error %v", t, err)
	}
	return e
}

func TestFirstUseOfAnAPIIsOneExchangeForAThousandCallers(t *testing.T) {
	bubble(t, minute, func(w *world) {
		w.cfg.Audience = "https://own.example"
		s, _ := w.loggedIn()
		before := s.Status()
		w.as.ScriptAlways(flowtest.Refresh, flowtest.Response{Pass: true, Delay: time.Second})
		var all sync.WaitGroup
		tokens := make([]*flow.Token, 1000)
		for i := range tokens {
			all.Go(func() {
				src, err := s.For(flow.Want{Audience: "https://a.example"}) // a handle of their own
				if err == nil {
					tokens[i], err = src.Token(w.Context())
				}
				if err != nil {
					w.Error(err)
				}
			})
		}
		all.Wait()
		w.wantCount(flowtest.Refresh, 1)
		for _, token := range tokens {
			w.checkFor(token, "https://a.example")
		}
		w.checkFor(w.wantToken(s), "https://own.example")
		if after := s.Status(); asJSON(after) != asJSON(before) {
			w.Fatalf("the session shows %s, before %s", asJSON(after), asJSON(before))
		}
		if n := s.Kept(); n != 1 {
			w.Fatalf("%d tokens are kept", n)
		}
	})
}

// 500 lifetimes with two APIs and the session's own token, by one chain of
// refresh tokens at a server that ends the login at the first reuse.
func TestOneChainOfRefreshTokensForAllAPIs(t *testing.T) {
	bubble(t, minute, func(w *world) {
		w.cfg.Audience = "https://own.example"
		s, _ := w.loggedIn()
		a, b := w.source(s, apiA), w.source(s, apiB)
		for range 500 * 60 / 10 {
			w.wantFor(a, "https://a.example")
			w.wantFor(b, "https://b.example")
			w.wantFor(s, "https://own.example")
			w.sleep(10 * time.Second)
			for _, src := range []flow.Source{s, a, b} {
				if src.Current() == nil {
					w.Fatal("a token in use was not refreshed ahead")
				}
			}
		}
		st := w.as.Stats()
		if st.Reuses != 0 || st.Logins != 1 || st.Refreshes < 3*500 || st.Refreshes > 3*500*100/65 {
			w.Fatalf("%+v", st)
		}
		w.Logf("%d refreshes, 0 reuses", st.Refreshes)
	})
}

func TestEachAPIGetsItsOwnTokenOnly(t *testing.T) {
	bubble(t, minute, func(w *world) {
		w.cfg.Audience = "https://own.example"
		s, _ := w.loggedIn()
		apis := []struct {
			src      flow.Source
			audience string
		}{{w.source(s, flow.Want{}), "https://own.example"}, {w.source(s, apiA), "https://a.example"}, {w.source(s, apiB), "https://b.example"}}
		calls, refused := 0, 0
		for n := range 20 {
			var all sync.WaitGroup
			var mu sync.Mutex
			for i := range 51 {
				api := apis[i%3]
				all.Go(func() {
					rt := flow.Transport{Session: api.src, Base: roundTrip(func(r *http.Request) (*http.Response, error) {
						_, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
						info, _ := w.as.Inspect(token)
						mu.Lock()
						defer mu.Unlock()
						calls++
						if !slices.Equal(info.Audience, []string{api.audience}) {
							w.Errorf("%s gets a token for %q", api.audience, info.Audience)
						}
						status := http.StatusOK
						if !info.Valid {
							refused++
							status = http.StatusUnauthorized
						}
						return &http.Response{StatusCode: status, Body: http.NoBody}, nil
					})}
					req, _ := http.NewRequestWithContext(w.Context(), http.MethodGet, api.audience, nil)
					resp, err := rt.RoundTrip(req)
					if err != nil || resp.StatusCode != http.StatusOK {
						w.Errorf("a call to %s: %v, %v", api.audience, err, resp)
					}
				})
			}
			all.Wait()
			if n%4 == 3 {
				w.sleep(31 * time.Second)
				w.as.ExpireAccessTokens()
			} else {
				w.sleep(7 * time.Second)
			}
		}
		if calls < 1000 || refused == 0 {
			w.Errorf("%d calls, %d with a token that the API refused", calls, refused)
		}
		if r := w.as.Stats().Reuses; r != 0 {
			w.Errorf("%d reuses", r)
		}
	})
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestTokenThatNobodyUsesLapses(t *testing.T) {
	bubble(t, minute, func(w *world) {
		s, _ := w.loggedIn()
		a, b := w.source(s, apiA), w.source(s, apiB)
		w.wantFor(a, "https://a.example")
		w.wantFor(b, "https://b.example")
		w.sleep(time.Second)
		w.wantFor(b, "https://b.example") // used once more: refreshed ahead, once
		w.sleep(58 * time.Second)
		if a.Current() == nil { // and that is a late use
			w.Fatal("a valid token was taken out of use")
		}
		w.sleep(1500 * time.Millisecond)
		if b.Current() == nil {
			w.Fatal("a token in use was not refreshed ahead")
		}
		w.wantFor(a, "https://a.example")
		w.sleep(10 * time.Minute)
		if a.Current() != nil || b.Current() != nil {
			w.Fatal("tokens that nobody uses are kept fresh")
		}
		if _, err := s.Refresh(w.Context()); err != nil { // the session's own is not due now
			w.Fatal(err)
		}
		n := w.as.Count(flowtest.Refresh)
		w.wantFor(a, "https://a.example")
		w.wantCount(flowtest.Refresh, n+1)
	})
}

// What the server refuses for one API is that API's trouble, and not asked for
// again at each call.
func TestRejectedAudienceCannotStorm(t *testing.T) {
	for _, test := range []struct {
		name, code string
		cfg        flowtest.Config
	}{
		{"RFC 8707", "invalid_target", minute},
		{"Auth0", "access_denied", flowtest.Config{Flavour: flowtest.Auth0, AccessTokenLifetime: time.Minute, AllowedAudiences: both}},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, test.cfg, func(w *world) {
				w.cfg.Audience = "https://own.example"
				s, _ := w.loggedIn()
				good, bad := w.source(s, apiA), w.source(s, flow.Want{Audience: "https://unknown.example"})
				for range 3600 {
					e := w.notReady(bad)
					if x := e.Status.Error; x == nil || x.Code != test.code || x.Action != flow.ActionFixConfiguration || x.RetryAt == nil ||
						!strings.Contains(x.Description, "audience https://unknown.example") || e.Status.State != flow.StateMisconfigured {
						w.Fatalf("%s", asJSON(e.Status))
					}
					w.wantFor(good, "https://a.example")
					w.wantFor(s, "https://own.example")
					w.wantState(s, flow.StateAuthorized)
					w.wantError(s, "", "")
					w.sleep(time.Second)
				}
				asked := 0
				for _, r := range w.as.Requests() {
					if r.Form.Get("audience") == "https://unknown.example" {
						asked++
					}
				}
				if asked < 8 || asked > 12 { // 30 s, doubled up to 10 min
					w.Errorf("asked %d times in an hour", asked)
				}
				w.Logf("asked %d times in an hour of 3600 calls", asked)

				w.as.SetConfig(func(c *flowtest.Config) { c.AllowedAudiences = nil })
				if err := s.SetConfig(w.cfg); err != nil { // somebody has put it right, and says so
					w.Fatal(err)
				}
				synctest.Wait()
				w.wantFor(bad, "https://unknown.example")
			})
		})
	}
}

// Keys that come from requests may be many and all wrong.
func TestManyRejectedAudiencesCannotStorm(t *testing.T) {
	bubble(t, flowtest.Config{AccessTokenLifetime: time.Minute, AllowedAudiences: both}, func(w *world) {
		w.cfg.CacheSize = 10
		s, _ := w.loggedIn()
		good := w.source(s, apiA)
		w.wantFor(good, "https://a.example")
		began, before := time.Now(), w.as.Count(flowtest.Refresh)
		var all sync.WaitGroup
		for i := range 500 {
			all.Go(func() {
				src := w.source(s, flow.Want{Audience: fmt.Sprintf("https://%d.example", i)})
				for range 10 {
					_, _ = src.Token(w.Context())
					time.Sleep(10 * time.Second)
				}
			})
		}
		for range 10 {
			time.Sleep(9 * time.Second)
			w.wantFor(good, "https://a.example")
		}
		all.Wait()
		if n, most := w.as.Count(flowtest.Refresh)-before, int(time.Since(began)/time.Second)+10; n > most {
			w.Errorf("%d requests in %v", n, time.Since(began))
		}
		if n := s.Kept(); n > 10 {
			w.Errorf("%d tokens are kept", n)
		}
	})
}

func TestTroubleOfTheServerKeepsTokensToTheirEnd(t *testing.T) {
	bubble(t, minute, func(w *world) {
		s, _ := w.loggedIn()
		a, b := w.source(s, apiA), w.source(s, apiB)
		token := w.wantFor(a, "https://a.example")
		w.as.ScriptAlways(flowtest.Refresh, flowtest.ErrorResponse(503, "temporarily_unavailable"))
		e := w.notReady(b)
		if e.Status.State != flow.StateUnavailable || e.Status.Error.Action != flow.ActionRetry {
			w.Fatal(asJSON(e.Status))
		}
		for range 59 {
			if a.Current() != token {
				w.Fatal("a valid token is not used")
			}
			w.sleep(time.Second)
		}
		w.sleep(time.Second)
		if w.notReady(a); a.Current() != nil {
			w.Fatal("a lapsed token is used")
		}
		for range 600 {
			_, _ = a.Token(w.Context())
			_, _ = b.Token(w.Context())
			w.sleep(time.Second)
		}
		if n := w.as.Count(flowtest.Refresh); n > 80 { // three of them, each 30 s apart by then
			w.Errorf("%d requests", n)
		}
		w.as.Unscript(flowtest.Refresh)
		w.sleep(time.Minute)
		w.wantFor(a, "https://a.example")
		w.wantFor(b, "https://b.example")
		w.wantToken(s)
	})
}

func TestCacheIsBounded(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		w.cfg.CacheSize = 5
		s, _ := w.loggedIn()
		api := func(i int) string { return fmt.Sprintf("https://%d.example", i) }
		first := w.source(s, flow.Want{Audience: api(0)})
		second := w.source(s, flow.Want{Audience: api(1)})
		for i := range 50 {
			w.wantFor(first, api(0)) // in use all the time
			w.wantFor(w.source(s, flow.Want{Audience: api(i)}), api(i))
			if n := s.Kept(); n > 5 {
				w.Fatalf("%d tokens are kept", n)
			}
		}
		n := w.as.Count(flowtest.Refresh)
		if n > 51 { // at the first eviction, all five were in use
			w.Errorf("%d requests for 50 tokens", n)
		}
		if second.Current() != nil {
			w.Error("a token is used that is out of the cache")
		}
		w.wantFor(second, api(1)) // and begins anew
		w.wantCount(flowtest.Refresh, n+1)
		w.cfg.CacheSize = 2
		if err := s.SetConfig(w.cfg); err != nil {
			w.Fatal(err)
		}
		synctest.Wait()
		if n := s.Kept(); n != 2 {
			w.Errorf("%d tokens are kept", n)
		}
	})
}

func TestTokensForAPIsEndWithTheLogin(t *testing.T) {
	bubble(t, minute, func(w *world) {
		s, _ := w.loggedIn()
		a := w.source(s, apiA)
		w.wantFor(a, "https://a.example")
		w.login(s) // somebody else, perhaps
		if a.Current() != nil {
			w.Fatal("a token of the login before is used")
		}
		if info, _ := w.as.Inspect(w.wantFor(a, "https://a.example").Value().Reveal()); info.Login != 2 {
			w.Fatalf("login %d", info.Login)
		}
		// One exchange is under way.
		w.as.Script(flowtest.Refresh, flowtest.Response{Pass: true, Delay: 3 * time.Second})
		b := w.source(s, apiB)
		got := make(chan error, 1)
		go func() { _, err := b.Token(w.Context()); got <- err }()
		w.sleep(time.Second)
		if err := s.Logout(w.Context()); err != nil {
			w.Fatal(err)
		}
		if a.Current() != nil || b.Current() != nil || <-got == nil {
			w.Fatal("tokens outlive the logout")
		}
		w.sleep(5 * time.Second)
		if e := w.notReady(b); b.Current() != nil || e.Status.Login == nil {
			w.Fatalf("%s", asJSON(e.Status)) // the call is a demand
		}
	})
}

func TestAPIThatRefusesItsTokenGetsAnother(t *testing.T) {
	bubble(t, minute, func(w *world) {
		s, _ := w.loggedIn()
		a, b := w.source(s, apiA), w.source(s, apiB)
		refused, other, own := w.wantFor(a, "https://a.example"), w.wantFor(b, "https://b.example"), s.Current()
		n := w.as.Count(flowtest.Refresh)
		better := a.Replace(w.Context(), refused)
		if better == nil || better == refused {
			w.Fatal("no other token")
		}
		w.checkFor(better, "https://a.example")
		w.wantCount(flowtest.Refresh, n+1)
		if b.Current() != other || s.Current() != own {
			w.Fatal("the token of another API was replaced")
		}
		if t := a.Replace(w.Context(), refused); t != better {
			w.Fatal("a late caller does not get what is there")
		}
		if t := a.Replace(w.Context(), better); t != nil { // an API that refuses all
			w.Fatal("another exchange within 30 s")
		}
		w.wantCount(flowtest.Refresh, n+1)
		b.Reject(other) // by a caller who cannot wait
		w.sleep(time.Second)
		w.wantCount(flowtest.Refresh, n+2)
		if t := b.Current(); t == nil || t == other {
			w.Fatal("the token was not replaced")
		}
	})
}

// The login may be over, or the server may mean that API alone: the session's
// own refresh tells.
func TestInvalidGrantForOneAPI(t *testing.T) {
	t.Run("that API alone", func(t *testing.T) {
		bubble(t, minute, func(w *world) {
			s, _ := w.loggedIn()
			a, b := w.source(s, apiA), w.source(s, apiB)
			w.as.Script(flowtest.Refresh, flowtest.ErrorResponse(400, "invalid_grant"))
			if e := w.notReady(a); e.Status.Error.Code != "invalid_grant" || e.Status.State != flow.StateMisconfigured {
				w.Fatal(asJSON(e.Status))
			}
			w.sleep(2 * time.Second)
			w.wantState(s, flow.StateAuthorized)
			w.wantCount(flowtest.Refresh, 2)
			w.wantFor(b, "https://b.example")
		})
	})
	t.Run("the login is over", func(t *testing.T) {
		bubble(t, minute, func(w *world) {
			s, _ := w.loggedIn()
			a, b := w.source(s, apiA), w.source(s, apiB)
			token := w.wantFor(b, "https://b.example")
			w.as.RevokeAll()
			w.notReady(a)
			w.sleep(3 * time.Second)
			w.wantState(s, flow.StateDegraded)
			w.wantError(s, "invalid_grant", flow.ActionReauthorize)
			if e := w.notReady(a); e.Status.State != flow.StateLoginRequired || e.Status.Error.Action != flow.ActionReauthorize {
				w.Fatal(asJSON(e.Status))
			}
			if b.Current() != token {
				w.Fatal("a token that is still good is not used")
			}
			w.sleep(time.Minute)
			if b.Current() != nil {
				w.Fatal("a lapsed token is used")
			}
			w.wantState(s, flow.StateLoginRequired)
			w.login(s)
			w.wantFor(a, "https://a.example")
		})
	})
}

func TestWithoutARefreshTokenThereIsOneAPIOnly(t *testing.T) {
	bubble(t, flowtest.Config{OmitRefreshToken: true}, func(w *world) {
		s, _ := w.loggedIn()
		e := w.notReady(w.source(s, apiA))
		if x := e.Status.Error; x == nil || x.Action != flow.ActionFixConfiguration || !strings.Contains(x.Description, "offline_access") {
			w.Fatal(asJSON(e.Status))
		}
		w.wantToken(s)
		w.wantState(s, flow.StateAuthorized)
	})
}

func TestTokensForAPIsAreMadeAgainAfterARestart(t *testing.T) {
	bubble(t, minute, func(w *world) {
		s, stop := w.loggedIn()
		w.wantFor(w.source(s, apiA), "https://a.example")
		stop()
		s, _ = w.run()
		w.wantCount(flowtest.Refresh, 1)
		w.wantFor(w.source(s, apiA), "https://a.example")
		w.wantCount(flowtest.Refresh, 2)
		w.sleep(time.Hour)
		w.wantToken(s)
		if r := w.as.Stats().Reuses; r != 0 {
			w.Errorf("%d reuses", r)
		}
	})
}

// A server that takes no heed of what is asked for sends the session's own token
// in another dress. It must not get to the other API.
func TestTokenForTheWrongAPIIsNotUsed(t *testing.T) {
	const own = "eyJhbGciOiJub25lIn0.eyJhdWQiOiJodHRwczovL293bi5leGFtcGxlIn0.c2ln" // for https://own.example
	bubble(t, minute, func(w *world) {
		as := func(token string) flowtest.Response {
			return flowtest.Response{Pass: true, Edit: flowtest.EditJSON(func(m map[string]any) { m["access_token"] = token })}
		}
		s, _ := w.loggedIn()
		w.as.Script(flowtest.Refresh, as(own))
		if _, err := s.Refresh(w.Context()); err != nil {
			w.Fatal(err)
		}
		for token, want := range map[string]flow.Want{own: apiA, own + "2": apiB} { // the very same, or its like
			w.as.Script(flowtest.Refresh, as(token))
			a := w.source(s, want)
			if e := w.notReady(a); e.Status.Error.Code != flow.CodeWrongAudience || a.Current() != nil {
				w.Fatal(asJSON(e.Status))
			}
			w.sleep(2 * time.Second)
		}
		w.as.Script(flowtest.Refresh, as(own))
		if _, err := s.Refresh(w.Context()); err != nil { // the new refresh token was kept
			w.Fatal(err)
		}
		w.as.Script(flowtest.Refresh, as(own+"3"))
		if _, err := w.source(s, flow.Want{Resource: []string{"https://own.example"}}).Token(w.Context()); err != nil {
			w.Error(err) // that is for what was asked for
		}
	})
}

// Some servers rotate the refresh token before they look at the resource: asked for
// one that the login does not have, they would end it.
func TestAResourceThatTheLoginDoesNotHaveIsNotAskedFor(t *testing.T) {
	bubble(t, flowtest.Config{AccessTokenLifetime: time.Minute}, func(w *world) {
		w.cfg.Resource = []string{"https://own.example", "https://b.example"}
		s, _ := w.loggedIn()
		w.checkFor(w.wantToken(s), "https://own.example")
		w.wantFor(w.source(s, apiB), "https://b.example")
		n := w.as.Count(flowtest.Refresh)
		other := w.source(s, flow.Want{Resource: []string{"https://b.example", "https://c.example"}})
		if e := w.notReady(other); e.Status.State != flow.StateMisconfigured || e.Status.Error.Code != "invalid_target" ||
			!strings.Contains(e.Status.Error.Description, "add it to the session's own 'resource'") {
			w.Fatal(asJSON(e.Status))
		}
		if got := w.as.Count(flowtest.Refresh); got != n {
			w.Fatalf("%d requests", got-n)
		}
		w.wantState(s, flow.StateAuthorized)
	})
}

func TestWhatAnExchangeAsksFor(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		w.cfg.Scope = []string{"openid", "offline_access", "read", "write"}
		w.cfg.Resource = []string{"https://own.example"}
		s, _ := w.loggedIn()
		asked := func(want flow.Want) string {
			n := w.as.Count(flowtest.Refresh)
			if _, err := w.source(s, want).Token(w.Context()); err != nil && !want.IsZero() {
				w.Log(err)
			}
			if want.IsZero() {
				if _, err := s.Refresh(w.Context()); err != nil {
					w.Fatal(err)
				}
			}
			all := w.as.Requests()
			f := all[len(all)-1].Form
			if w.as.Count(flowtest.Refresh) != n+1 {
				w.Fatal("no exchange")
			}
			return fmt.Sprintf("audience %q resource %q scope %q", f["audience"], f["resource"], f["scope"])
		}
		for _, test := range []struct {
			want  flow.Want
			asked string
		}{
			{flow.Want{}, `audience [] resource ["https://own.example"] scope []`},
			{flow.Want{Audience: "https://a.example"}, `audience ["https://a.example"] resource [] scope []`},
			{flow.Want{Scope: []string{"read"}}, `audience [] resource ["https://own.example"] scope ["read offline_access"]`},
			{flow.Want{Scope: []string{"write", "offline_access", "read", "read"}}, `audience [] resource ["https://own.example"] scope ["offline_access read write"]`},
			{flow.Want{Resource: []string{"https://own.example"}}, `audience [] resource ["https://own.example"] scope []`},
			// From now on the session says what is its own.
			{flow.Want{}, `audience [] resource ["https://own.example"] scope ["openid offline_access read write"]`},
		} {
			if got := asked(test.want); got != test.asked {
				w.Errorf("%v asks for %s, want %s", test.want, got, test.asked)
			}
		}
	})
}

func TestFaultyWantsAreRefused(t *testing.T) {
	s, err := flow.New(flow.Config{Issuer: "https://as.example", ClientID: "c"})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]flow.Want{
		"a resource without a scheme": {Resource: []string{"api.example"}},
		"a fragment":                  {Resource: []string{"https://api.example/#x"}},
		"a scope with a space":        {Scope: []string{"a b"}},
		"an empty scope":              {Scope: []string{""}},
		"a line break":                {Audience: "a\nb"},
		"a novel":                     {Audience: strings.Repeat("a", 5000)},
	} {
		if src, err := s.For(want); err == nil || src != nil {
			t.Errorf("%s: %v, %v", name, src, err)
		}
	}
	if _, err := flow.New(flow.Config{Issuer: "https://as.example", ClientID: "c", CacheSize: -1}); err == nil {
		t.Error("a negative cache_size passes")
	}
}

// Wants are told apart exactly, but for the order of what has none.
func TestWantsAreToldApart(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		w.cfg.Scope = []string{"openid", "offline_access", "a", "b"}
		s, _ := w.loggedIn()
		wants := []flow.Want{
			{Audience: "https://x.example"},
			{Audience: "https://x.example/"},
			{Audience: "https://X.example"},
			{Audience: "https://x.example", Scope: []string{"a"}},
			{Audience: "https://x.example", Scope: []string{"a", "b"}},
			{Audience: "a"},
			{Scope: []string{"a"}},
			{Scope: []string{"b"}},
			{Audience: "1:ar"},
			{Audience: "a1:b"},
		}
		seen := map[string]bool{}
		for _, want := range wants {
			t, err := w.source(s, want).Token(w.Context())
			if err != nil {
				w.Fatal(want, err)
			}
			seen[t.Value().Reveal()] = true
		}
		if len(seen) != len(wants) {
			w.Errorf("%d tokens for %d wants", len(seen), len(wants))
		}
		n := w.as.Count(flowtest.Refresh)
		if _, err := w.source(s, flow.Want{Audience: "https://x.example", Scope: []string{"b", "a", "b"}}).Token(w.Context()); err != nil {
			w.Fatal(err)
		}
		w.wantCount(flowtest.Refresh, n)
	})
}

func TestClosedSessionGivesNoTokenForAnAPI(t *testing.T) {
	bubble(t, minute, func(w *world) {
		s, stop := w.loggedIn()
		a := w.source(s, apiA)
		w.as.Script(flowtest.Refresh, flowtest.Response{Hang: true})
		ctx, cancel := context.WithTimeout(w.Context(), time.Second)
		defer cancel()
		if _, err := a.Token(ctx); !errors.Is(err, context.DeadlineExceeded) {
			w.Fatal(err) // a caller's time is its own
		}
		stop()
		w.notReady(a)
	})
}

// All at once, at a server that takes its time: one after the other.
func TestExchangesForAllAPIsTakeTurns(t *testing.T) {
	bubble(t, minute, func(w *world) {
		s, _ := w.loggedIn()
		w.as.ScriptAlways(flowtest.Refresh, flowtest.Response{Pass: true, Delay: time.Second})
		w.soon(w.source(s, apiA))
		w.soon(w.source(s, apiB))
		if _, err := s.Refresh(w.Context()); err != nil {
			w.Fatal(err)
		}
		w.wantFor(w.source(s, apiB), "https://b.example")
		w.wantFor(w.source(s, apiA), "https://a.example")
		w.wantCount(flowtest.Refresh, 3)
	})
}
