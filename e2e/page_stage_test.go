package e2e

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// loginServer is what the authorization servers of the stage call themselves. Nobody goes there: all endpoints are
// configured. The page shows it, and the QR codes lead to it.
const loginServer = "https://login.example.com"

// scene is a session that was brought into one of the states that the page can show.
type scene struct {
	name, session string
	as            *flowtest.Server
	url           string // of the page
	shown         status // as JSON has it

	settings string                  // of the session, in the Caddyfile
	lifetime time.Duration           // of tokens; an hour unless set
	begin    func(*stage, *scene)    // before anybody is logged in
	decide   func(code string) error // on the login that begin has asked for
	then     func(*stage, *scene)    // once somebody is logged in
	state    string                  // which comes of it
	ready    func(status) bool       // what else has to be so
}

// stage is one Caddy that serves a page in every state.
type stage struct {
	*caddy
	t      *testing.T
	scenes []*scene
}

// login asks for a code, and does what the scene's operator does about it.
func (st *stage) login(s *scene) {
	st.t.Helper()
	st.post(s, "login")
	if s.decide == nil {
		return
	}
	var codes []string
	eventually(st.t, 10*time.Second, s.name+": a code is out", func() bool { // a slow machine answers before
		codes = s.as.Pending()
		return len(codes) == 1
	})
	if err := s.decide(codes[0]); err != nil {
		st.t.Fatalf("%s: %v", s.name, err)
	}
}

// post has the admin API do something to a session; it may fail, where the scene is one of failure.
func (st *stage) post(s *scene, what string) {
	st.t.Helper()
	st.ask(st.t, http.MethodPost, "/device_flow/sessions/"+s.session+"/"+what)
}

func (st *stage) refresh(s *scene) { st.post(s, "refresh") }

// now is the status of a scene. As JSON, so that to look starts no login.
func (st *stage) now(s *scene) status { return statusOf(st.t, strings.TrimSuffix(s.url, statusPath)) }

// newScenes is every state, with each cause that the page words differently.
func newScenes() []*scene {
	approve := func(s *scene) { s.decide = func(code string) error { return s.as.Approve(code) } }
	hasError := func(code string) func(status) bool {
		return func(s status) bool { return s.Error != nil && s.Error.Code == code }
	}
	hasCode := func(s status) bool { return s.Login != nil }
	scenes := []*scene{
		{name: "fresh", state: "login_required"},
		{name: "denied", state: "login_required", ready: hasError("access_denied"), begin: (*stage).login},
		{name: "expired", state: "login_required", ready: hasError("expired_token"), begin: (*stage).login},
		{
			name: "revoked", state: "login_required", ready: hasError("invalid_grant"), begin: (*stage).login,
			then: func(st *stage, s *scene) {
				s.as.RevokeAll()
				s.as.ExpireAccessTokens()
				for range 2 { // the API refuses the token; once more after it could not be renewed, and it is given up
					get(st.t, client(st.t), st.url+"/"+s.name+"/", "")
				}
			},
		},
		{
			name: "ending", state: "degraded", ready: hasError("invalid_grant"), begin: (*stage).login,
			then: func(st *stage, s *scene) { s.as.RevokeAll(); st.refresh(s) },
		}, // and the API has not heard of it
		{
			name: "unreachable", state: "login_required", ready: hasError("unreachable"),
			begin: func(st *stage, s *scene) { down(s.as); st.login(s) },
		},
		{
			name: "wrong-account", state: "login_required", ready: hasError("wrong_account"), begin: (*stage).login,
			settings: "account email alice@example.com",
		},
		{name: "pending", state: "pending", ready: hasCode, begin: (*stage).login},
		{name: "authorized", state: "authorized", begin: (*stage).login, then: func(*stage, *scene) {}},
		{
			name: "replacing", state: "authorized", ready: hasCode, begin: (*stage).login,
			then: func(st *stage, s *scene) { s.decide = nil; st.login(s) },
		},
		{
			name: "degraded", state: "degraded", begin: (*stage).login,
			then: func(st *stage, s *scene) { down(s.as); st.refresh(s) },
		},
		{
			name: "unavailable", state: "unavailable", ready: func(s status) bool { return s.Error != nil }, begin: (*stage).login,
			lifetime: 2 * time.Second, then: func(_ *stage, s *scene) { down(s.as) },
		},
		{name: "misconfigured", state: "misconfigured", begin: func(st *stage, s *scene) {
			s.as.ScriptAlways(flowtest.Device, flowtest.ErrorResponse(http.StatusUnauthorized, "invalid_client"))
			st.login(s)
		}},
		{name: "misconfigured-serving", state: "misconfigured", begin: (*stage).login, then: func(st *stage, s *scene) {
			s.as.ScriptAlways(flowtest.Refresh, flowtest.ErrorResponse(http.StatusUnauthorized, "invalid_client"))
			st.refresh(s)
		}},
	}
	for i, s := range scenes {
		s.session = fmt.Sprintf("scanner-%d", i+1)
		if s.lifetime == 0 {
			s.lifetime = time.Hour
		}
		if s.then != nil {
			approve(s)
		}
		switch s.name {
		case "denied":
			s.decide = func(code string) error { return s.as.Deny(code) }
		case "expired":
			s.decide = func(code string) error { return s.as.Expire(code) }
		case "wrong-account":
			s.decide = func(code string) error {
				return s.as.ApproveAs(code, flowtest.User{Subject: "auth0|bob", Name: "Bob", Email: "bob@example.com"})
			}
		}
	}
	return scenes
}

// startStage starts an authorization server for each scene and one Caddy for all, and brings each to its state.
func startStage(t *testing.T) *stage {
	t.Helper()
	st := &stage{t: t, scenes: newScenes()}
	a := startAPI(t, func(token string) bool {
		return slices.ContainsFunc(st.scenes, func(s *scene) bool { return s.as.ValidToken(token) })
	})
	var sessions, sites strings.Builder
	for _, s := range st.scenes {
		s.as = startAS(t, s.lifetime, byHand)
		at := s.as.Issuer() // where it listens, as it was never told another name
		s.as.SetConfig(func(c *flowtest.Config) { c.Issuer = loginServer })
		fmt.Fprintf(&sessions, `
	device_flow %s {
		issuer %s
		device_authorization_endpoint %s/device_authorization
		token_endpoint %[3]s/token
		revocation_endpoint %[3]s/revoke
		userinfo_endpoint %[3]s/userinfo
		client_id device
		scope openid profile email offline_access read:things
		%[4]s
	}
`, s.session, loginServer, at, s.settings)
		fmt.Fprintf(&sites, `
	handle /%s/* {
		device_flow {$API} {
			session %s
			status_path /%[1]s%[3]s
		}
	}
`, s.name, s.session, statusPath)
	}
	st.caddy = startCaddy(t, "{\n"+sessions.String()+"}\n\nhttp://:{$PORT} {\n\tbind 127.0.0.1\n"+sites.String()+"}\n", "", a.URL)

	// All scenes at once: most of the time goes into waiting for the next poll.
	for _, s := range st.scenes {
		s.url = st.url + "/" + s.name + statusPath
		if s.begin != nil {
			s.begin(st, s)
		}
	}
	for _, s := range st.scenes {
		if s.then != nil {
			eventually(t, patience, s.name+": somebody is logged in", func() bool { return st.now(s).State == "authorized" })
			s.then(st, s)
		}
	}
	for _, s := range st.scenes {
		eventually(t, patience, s.name+": the session is "+s.state, func() bool {
			s.shown = st.now(s)
			return s.shown.State == s.state && (s.ready == nil || s.ready(s.shown))
		})
	}
	return st
}

// scene finds one by its name.
func (st *stage) scene(name string) *scene {
	for _, s := range st.scenes {
		if s.name == name {
			return s
		}
	}
	st.t.Fatalf("there is no scene %q", name)
	return nil
}

// open shows a scene in a tab. It comes as the reload of a browser without JavaScript does, which asks for no code: the
// states without one are to be seen as they are.
func (s *scene) open(t *testing.T, tab context.Context) {
	t.Helper()
	browse(t, tab, s.name, chromedp.Navigate(s.url+"?refresh"))
}

// look is a kind of screen.
type look struct {
	name          string
	width, height int64
	dark          bool
}

var (
	darkPhone    = look{"dark-phone", 390, 844, true}
	lightPhone   = look{"light-phone", 390, 844, false}
	darkDesktop  = look{"dark-desktop", 1280, 800, true}
	lightDesktop = look{"light-desktop", 1280, 800, false}
	looks        = []look{lightDesktop, darkDesktop, lightPhone, darkPhone}
	smallPhone   = look{"small-phone", 320, 568, false}
	wallScreen   = look{"wall", 1920, 1080, false}
)

// put makes a tab such a screen.
func (l look) put(t *testing.T, tab context.Context) {
	t.Helper()
	var options []chromedp.EmulateViewportOption
	if l.width < 700 {
		options = append(options, chromedp.EmulateMobile)
	}
	scheme := "light"
	if l.dark {
		scheme = "dark"
	}
	browse(t, tab, l.name, chromedp.EmulateViewport(l.width, l.height, options...), media("", scheme))
}

// media has a tab show its page on that medium, "" being the screen, with light or dark colours.
func media(medium, scheme string) chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, _ *chromedp.Target) error {
		_, err := chromedp.Call(ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Media: medium, Features: []*emulation.MediaFeature{
				{Name: "prefers-color-scheme", Value: scheme},
				{Name: "prefers-reduced-motion", Value: "reduce"}, // no picture of half a transition
			},
		})
		return err
	})
}

// scripts switches JavaScript on or off for what is opened next.
func scripts(on bool) chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, _ *chromedp.Target) error {
		_, err := chromedp.Call(ctx, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: !on})
		return err
	})
}
