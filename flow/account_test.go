package flow_test

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

var bob = flowtest.User{Subject: "auth0|bob", Name: "Bob Example", Email: "bob@example.com"}

func only(name, value string) *flow.Claim { return &flow.Claim{Name: name, Value: value} }

// told is the real answer with an id_token of these claims; nil takes it away.
func told(claims map[string]any) flowtest.Response {
	if claims == nil {
		return member("id_token", nil)
	}
	b, err := json.Marshal(claims)
	if err != nil {
		panic(err)
	}
	return member("id_token", "e30."+base64.RawURLEncoding.EncodeToString(b)+".x")
}

// logIn starts a login that u approves, and lets it come to its end.
func (w *world) logIn(s *flow.Session, u flowtest.User) {
	w.Helper()
	st, err := s.Login(w.Context())
	if err != nil || st.Login == nil {
		w.Fatalf("login: %v, %s", err, asJSON(st))
	}
	if err := w.as.ApproveAs(st.Login.UserCode, u); err != nil {
		w.Fatal(err)
	}
	w.sleep(30 * time.Second)
}

// wantRefused asserts that a login came to nothing, for that reason, and that its
// tokens have been revoked and are nowhere.
func (w *world) wantRefused(s *flow.Session, code string, action flow.Action, words ...string) {
	w.Helper()
	w.wantError(s, code, action)
	for _, word := range words {
		if d := s.Status().Error.Description; !strings.Contains(d, word) {
			w.Fatalf("%q does not say %q", d, word)
		}
	}
	if s.Current() != nil || w.store.record() != "" {
		w.Fatalf("the refused login is there: %s", w.store.record())
	}
	if n := w.as.Stats().Revocations; n != 1 {
		w.Fatalf("%d revocations, want 1", n)
	}
	for _, k := range w.kinds() {
		if strings.HasSuffix(k, "authorized") || k == "login_succeeded" {
			w.Fatalf("the refused login was in use: %q", w.kinds())
		}
	}
}

func TestOnlyTheAccountThatIsAskedForIsConnected(t *testing.T) {
	alice := map[string]any{"sub": "auth0|alice", "name": "Alice Example", "email": "alice@example.com", "preferred_username": "alice", "oid": 17}
	with := func(name string, value any) map[string]any {
		m := map[string]any{"sub": "auth0|alice", "email": "alice@example.com"}
		m[name] = value
		return m
	}
	for name, tc := range map[string]struct {
		only     *flow.Claim
		idToken  map[string]any
		userInfo []flowtest.Response
		code     string // "" means that the login counts
		asked    int    // requests to the userinfo endpoint
	}{
		"subject":             {only("sub", "auth0|alice"), alice, nil, "", 0},
		"email":               {only("email", "alice@example.com"), alice, nil, "", 0},
		"user name":           {only("preferred_username", "alice"), alice, nil, "", 0},
		"name":                {only("name", "Alice Example"), alice, nil, "", 0},
		"number":              {only("oid", "17"), alice, nil, "", 0},
		"verified":            {only("email", "alice@example.com"), with("email_verified", true), nil, "", 0},
		"another subject":     {only("sub", "auth0|bob"), alice, nil, "wrong_account", 0},
		"another email":       {only("email", "bob@example.com"), alice, nil, "wrong_account", 0},
		"another case":        {only("sub", "auth0|Alice"), alice, nil, "wrong_account", 0},
		"by userinfo":         {only("email", "alice@example.com"), nil, nil, "", 1},
		"other by userinfo":   {only("email", "bob@example.com"), nil, nil, "wrong_account", 1},
		"subject only":        {only("email", "alice@example.com"), map[string]any{"sub": "auth0|alice"}, nil, "", 1},
		"userinfo of another": {only("email", "alice@example.com"), map[string]any{"sub": "auth0|bob"}, nil, "account_unknown", 1},
		"userinfo of nobody": {
			only("email", "alice@example.com"),
			map[string]any{"sub": "auth0|alice"},
			[]flowtest.Response{{Body: `{"email":"alice@example.com"}`}},
			"account_unknown", 1,
		},
		"look-alike":          {only("email", "bob@example.com"), map[string]any{"sub": "auth0|alice", "e_mail": "bob@example.com", "Email": "bob@example.com"}, nil, "wrong_account", 1},
		"hiccup":              {only("sub", "auth0|alice"), nil, []flowtest.Response{{Status: 503}, {Drop: true}}, "", 3},
		"outage":              {only("sub", "auth0|alice"), nil, []flowtest.Response{{Status: 503}, {Status: 503}, {Status: 503}}, "account_unknown", 3},
		"forbidden":           {only("sub", "auth0|alice"), nil, []flowtest.Response{flowtest.ErrorResponse(403, "insufficient_scope")}, "account_unknown", 1},
		"redirect":            {only("sub", "auth0|alice"), nil, []flowtest.Response{{Status: 302}}, "account_unknown", 1},
		"nobody tells":        {only("groups", "admins"), alice, nil, "account_unknown", 1},
		"a list":              {only("groups", "admins"), with("groups", []string{"admins"}), nil, "account_unknown", 1},
		"unverified":          {only("email", "alice@example.com"), with("email_verified", false), nil, "account_unknown", 1},
		"unverified, as text": {only("email", "alice@example.com"), with("email_verified", "False"), nil, "account_unknown", 1},
		"too long": {
			only("sub", "auth0|alice"),
			map[string]any{"sub": "auth0|alice" + strings.Repeat("x", 1024)},
			[]flowtest.Response{{Body: `{}`}},
			"account_unknown", 1,
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, flowtest.Config{}, func(w *world) {
				w.cfg.Account = tc.only
				s, _ := w.run()
				w.as.Script(flowtest.Poll, told(tc.idToken))
				w.as.Script(flowtest.UserInfo, tc.userInfo...)
				w.logIn(s, flowtest.User{Subject: "auth0|alice", Name: "Alice Example", Email: "alice@example.com"})
				w.wantCount(flowtest.UserInfo, tc.asked)
				if tc.code == "" {
					w.wantState(s, flow.StateAuthorized)
					w.wantToken(s)
					if a := s.Status().Account; a == nil || a.Subject != "auth0|alice" {
						w.Fatalf("account %s", asJSON(a))
					}
					w.wantCount(flowtest.Revoke, 0)
					return
				}
				action := flow.ActionReauthorize
				if tc.code == "account_unknown" && !strings.HasPrefix(name, "unverified") && name != "outage" {
					action = flow.ActionFixConfiguration
				}
				w.wantRefused(s, tc.code, action, tc.only.Value)
			})
		})
	}
}

func TestARefusedAccountIsNamedAndAnotherLoginIsAPersonsToStart(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		w.cfg.Account = only("email", "alice@example.com")
		s, _ := w.run()
		mallory := bob
		mallory.Email = "bob\u202e\x1b[2J\"" + strings.Repeat("b", 300) + "@example.com"
		w.logIn(s, mallory)
		w.wantState(s, flow.StateLoginRequired)
		w.wantRefused(s, "wrong_account", flow.ActionReauthorize, "email", "bob[2J", "alice@example.com", "log in with that account")
		if d := s.Status().Error.Description; len(d) > 410 || strings.ContainsAny(d, "\x1b\u202e\n") {
			w.Fatalf("%q", d)
		}
		s.Demand()
		w.sleep(time.Hour)
		w.wantCount(flowtest.Device, 1)
		w.logIn(s, flowtest.User{Subject: "auth0|alice", Email: "alice@example.com"})
		w.wantToken(s)
		w.wantError(s, "", "")
	})
}

func TestNobodyUsesATokenBeforeItsAccountIsKnown(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		w.cfg.Account = only("sub", "auth0|alice")
		w.as.Script(flowtest.Poll, told(nil))
		w.as.Script(flowtest.UserInfo, flowtest.Response{Pass: true, Delay: 20 * time.Second})
		s, stop := w.run()
		st, err := s.Login(w.Context())
		if err != nil {
			w.Fatal(err)
		}
		if err := w.as.Approve(st.Login.UserCode); err != nil {
			w.Fatal(err)
		}
		w.sleep(24 * time.Second)
		if w.wantState(s, flow.StatePending); s.Current() != nil || strings.Contains(w.store.record(), "_token\"") {
			w.Fatalf("in use: %s", w.store.record())
		}
		w.sleep(2 * time.Second)
		w.wantToken(s)
		stop() // the record knows whose it is
		s, _ = w.run()
		w.wantToken(s)
		w.wantCount(flowtest.UserInfo, 1)
	})
}

func TestALoginStaysWhereTheNextIsOfAnotherAccount(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		w.cfg.Account = only("sub", "auth0|alice")
		s, stop := w.loggedIn()
		token := w.wantToken(s)
		w.logIn(s, bob)
		w.wantState(s, flow.StateAuthorized)
		w.wantError(s, "wrong_account", flow.ActionReauthorize)
		if s.Current() != token || w.as.Stats().Revocations != 1 {
			w.Fatalf("%d revocations, %s", w.as.Stats().Revocations, asJSON(s.Status()))
		}
		w.wantToken(s)
		w.sleep(time.Hour)
		w.wantToken(s)
		w.wantCount(flowtest.Refresh, 1)

		// One of which nobody tells may be the same, and revoking it would end both
		// at some servers.
		w.as.Script(flowtest.Poll, told(nil))
		w.as.Script(flowtest.UserInfo, flowtest.ErrorResponse(403, "insufficient_scope"))
		w.logIn(s, bob)
		w.wantError(s, "account_unknown", flow.ActionFixConfiguration)
		w.wantToken(s)
		w.wantCount(flowtest.Revoke, 1)
		stop()
		s, _ = w.run()
		w.wantToken(s)
	})
}

func TestARefreshBringsNoOtherAccount(t *testing.T) {
	for name, tc := range map[string]struct {
		only   *flow.Claim
		claims map[string]any
		good   bool
	}{
		"the same":        {only("email", "alice@example.com"), map[string]any{"sub": "auth0|alice"}, true},
		"no id_token":     {only("email", "alice@example.com"), nil, true},
		"another subject": {only("email", "alice@example.com"), map[string]any{"sub": "auth0|bob", "email": "alice@example.com"}, false},
		"another address": {only("email", "alice@example.com"), map[string]any{"sub": "auth0|alice", "email": "bob@example.com"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, flowtest.Config{}, func(w *world) {
				w.cfg.Account = tc.only
				s, stop := w.loggedIn()
				token := w.wantToken(s)
				w.as.Script(flowtest.Refresh, told(tc.claims))
				_, err := s.Refresh(w.Context())
				w.sleep(0)
				if tc.good {
					if w.wantToken(s); err != nil || s.Current() == token {
						w.Fatalf("%v, %s", err, asJSON(s.Status()))
					}
					stop()
					s, _ = w.run()
					w.wantToken(s)
					return
				}
				w.wantError(s, "wrong_account", flow.ActionReauthorize)
				if err == nil || s.Current() != token || w.as.Stats().Revocations != 1 {
					w.Fatalf("%v, %d revocations, %s", err, w.as.Stats().Revocations, asJSON(s.Status()))
				}
				w.sleep(2 * time.Hour)
				w.wantState(s, flow.StateLoginRequired)
				w.wantError(s, "wrong_account", flow.ActionReauthorize)
				w.wantCount(flowtest.Refresh, 1)
			})
		})
	}
}

func TestAStoredLoginOfAnotherAccountIsPutAside(t *testing.T) {
	for name, tc := range map[string]struct {
		before, now *flow.Claim
		good        bool
	}{
		"written down later":      {nil, only("email", "alice@example.com"), true},
		"by another claim":        {only("sub", "auth0|alice"), only("name", "Alice Example"), true},
		"of another account":      {nil, only("email", "bob@example.com"), false},
		"changed":                 {only("sub", "auth0|alice"), only("sub", "auth0|bob"), false},
		"of an account not known": {nil, only("oid", "17"), false},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, flowtest.Config{}, func(w *world) {
				w.cfg.Account = tc.before
				_, stop := w.loggedIn()
				stop()
				w.cfg.Account = tc.now
				w.forgetEvents()
				s, stop := w.run()
				if tc.good {
					w.wantToken(s)
					return
				}
				w.wantState(s, flow.StateLoginRequired)
				for range 3 { // and it does not come back
					w.wantError(s, "wrong_account", flow.ActionReauthorize)
					w.sleep(2 * time.Hour)
					w.wantCount(flowtest.Refresh, 0)
				}
				if k := w.kinds(); len(k) != 1 || s.Current() != nil {
					w.Fatalf("events %q, %s", k, asJSON(s.Status()))
				}
				if _, _, aside := w.files(); !strings.Contains(aside, "refresh_token") {
					w.Fatalf("it is not kept: %q", aside)
				}
				s.Demand() // nobody has refused anything here
				w.sleep(time.Second)
				w.wantState(s, flow.StatePending)
				w.as.Script(flowtest.Poll, told(map[string]any{"sub": "auth0|bob", "email": "bob@example.com", "oid": 17}))
				if err := w.as.Approve(s.Status().Login.UserCode); err != nil {
					w.Fatal(err)
				}
				w.sleep(5 * time.Second)
				w.wantToken(s)
				w.wantError(s, "", "")
				stop()
				s, _ = w.run()
				w.wantToken(s)
			})
		})
	}
}

func TestAnotherAccountInTheConfigurationEndsTheUseOfALogin(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		s, _ := w.loggedIn()
		reload := func(account *flow.Claim) {
			w.Helper()
			w.cfg.Account = account
			if err := s.SetConfig(w.cfg); err != nil {
				w.Fatal(err)
			}
			w.sleep(0)
		}
		token := w.wantToken(s)
		reload(only("sub", "auth0|alice"))
		if s.Current() != token {
			w.Fatal("the login of the right account was disturbed")
		}
		w.forgetEvents()
		reload(only("sub", "auth0|bob"))
		w.wantState(s, flow.StateLoginRequired)
		w.wantError(s, "wrong_account", flow.ActionReauthorize)
		w.wantEvents("authorized>unavailable", "logged_out", "unavailable>login_required")
		if s.Current() != nil {
			w.Fatal("it is in use")
		}
		if _, err := s.Refresh(w.Context()); err == nil {
			w.Fatal("it was refreshed")
		}
		// A reload that failed half-way takes it back.
		reload(only("sub", "auth0|alice"))
		if s.Current() == nil {
			w.Fatalf("the login is lost: %s", asJSON(s.Status()))
		}
		w.wantToken(s)
		w.wantError(s, "", "")
		w.wantCount(flowtest.Device, 1)
		w.wantCount(flowtest.Revoke, 0)
	})
}

func TestARefreshUnderWayIsNotForAnotherAccount(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		s, _ := w.loggedIn()
		w.as.Script(flowtest.Refresh, flowtest.Response{Pass: true, Delay: 5 * time.Second})
		go func() { _, _ = s.Refresh(w.Context()) }()
		w.sleep(time.Second)
		w.cfg.Account = only("sub", "auth0|bob")
		if err := s.SetConfig(w.cfg); err != nil {
			w.Fatal(err)
		}
		w.sleep(time.Minute)
		w.wantState(s, flow.StateLoginRequired)
		if w.wantError(s, "wrong_account", flow.ActionReauthorize); s.Current() != nil || w.as.Stats().Revocations != 1 {
			w.Fatalf("%d revocations, %s", w.as.Stats().Revocations, asJSON(s.Status()))
		}
	})
}

func TestARefusedAccountIsShownAtAllInstances(t *testing.T) {
	bubble(t, flowtest.Config{}, func(w *world) {
		w.cfg.Account = only("sub", "auth0|alice")
		a, _ := w.run()
		b, _ := w.run()
		w.logIn(a, bob)
		w.wantError(a, "wrong_account", flow.ActionReauthorize)
		w.wantError(b, "wrong_account", flow.ActionReauthorize)
		w.logIn(b, flowtest.User{Subject: "auth0|alice"})
		w.wantToken(a)
		w.wantToken(b)
	})
}

func TestRevocationOfARefusedAccountIsTriedAgain(t *testing.T) {
	bubble(t, flowtest.Config{OmitRefreshToken: true}, func(w *world) {
		w.cfg.Account = only("sub", "auth0|alice")
		w.as.Script(flowtest.Revoke, flowtest.Response{Status: 503}, flowtest.Response{Drop: true})
		s, _ := w.run()
		w.logIn(s, bob)
		w.wantRefused(s, "wrong_account", flow.ActionReauthorize)
		w.wantCount(flowtest.Revoke, 3)
	})
}

func TestAnAccountNeedsClaimAndValue(t *testing.T) {
	for _, bad := range []*flow.Claim{{}, {Name: "sub"}, {Value: "x"}, {Name: "sub", Value: "a\nb"}, {Name: "sub", Value: strings.Repeat("x", 2000)}} {
		cfg := flow.Config{Issuer: "https://login.example.com", ClientID: "x", Account: bad}
		if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), "account email alice@example.com") {
			t.Errorf("%v: %v", bad, err)
		}
	}
}
