package caddymodule

import (
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// fakeSessions are the sessions of a Caddy, which a test adds to and takes from.
type fakeSessions struct {
	mu  sync.Mutex
	all []watcher
}

func (f *fakeSessions) list() []watcher {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.all)
}

func (f *fakeSessions) add(name string, st flow.Status) *fakeSession {
	st.Session = name
	s := newFake(st)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.all = append(f.all, s)
	return s
}

func (f *fakeSessions) page() *page {
	p := newOverview(testPath, f.list)
	p.key = []byte("a key for tests")
	return p
}

// mixedSessions has a session in each state.
func mixedSessions(now time.Time) *fakeSessions {
	all := new(fakeSessions)
	samples := sampleStatuses(now)
	for _, s := range [][2]string{
		{"acme", "authorized"},
		{"scanner-hall-3", "pending"},
		{"archive", "misconfigured"},
		{"lab", "login_required-expired"},
		{"default", "degraded-storage"},
		{"idle", "login_required"},
		{"weighbridge", "unavailable"},
		{"old", "misconfigured-serving"},
	} {
		all.add(s[0], samples[s[1]])
	}
	return all
}

func TestOverviewIsAsReviewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := mixedSessions(time.Now()).page()
		for _, c := range catalogues() {
			name := "overview.html"
			if c != english() {
				name = "overview." + c.tag + ".html"
			}
			golden(t, name, forGolden(do(p, "GET", testPath, "Accept", "text/html", "Accept-Language", c.tag).Body.String()))
		}
		golden(t, "overview.txt", do(p, "GET", testPath).Body.String())
	})
}

func TestOverviewHasTheWorstFirst(t *testing.T) {
	want := []string{"archive", "idle", "lab", "scanner-hall-3", "weighbridge", "old", "default", "acme"}
	o := english().overview(statusesOf(mixedSessions(time.Now())), time.Now())
	var got []string
	for _, row := range o.Rows {
		got = append(got, row.Name)
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func statusesOf(f *fakeSessions) (all []flow.Status) {
	for _, s := range f.list() {
		all = append(all, s.Status())
	}
	return all
}

func TestOverviewSumsUpAtAGlance(t *testing.T) {
	samples := sampleStatuses(time.Now())
	for _, c := range []struct {
		names             []string
		tone, title, word string
	}{
		{nil, toneIdle, "No login is set up", "Nothing to show"},
		{[]string{"authorized", "authorized-bare"}, toneGood, "Connected: 2 of 2", "All connected"},
		{[]string{"authorized", "degraded-storage"}, toneWarn, "Connected: 2 of 2", "Connected, with a problem"},
		{[]string{"misconfigured-serving"}, toneWarn, "Connected: 1 of 1", "Connected, with a problem"},
		{[]string{"authorized", "pending"}, toneWait, "Connected: 1 of 2", "Action needed"},
		{[]string{"authorized", "login_required"}, toneWarn, "Connected: 1 of 2", "Action needed"},
		{[]string{"pending", "login_required-denied"}, toneBad, "Connected: 0 of 2", "Action needed"},
	} {
		var all []flow.Status
		for _, n := range c.names {
			all = append(all, samples[n])
		}
		o := english().overview(all, time.Now())
		if o.Tone != c.tone || o.Title != c.title || o.Word != c.word {
			t.Errorf("%q: %s, %q, %q", c.names, o.Tone, o.Title, o.Word)
		}
		body := do(newOverview(testPath, func() (all []watcher) {
			for _, n := range c.names {
				all = append(all, newFake(samples[n]))
			}
			return all
		}), "GET", testPath, "Accept", "text/html").Body.String()
		if strings.Count(body, "<li ") != len(c.names) || !strings.Contains(body, c.title) {
			t.Errorf("%q: %s", c.names, body)
		}
	}
}

func TestOverviewJSONIsThatOfTheAdminAPI(t *testing.T) {
	sessions := mixedSessions(time.Now())
	want, _ := json.Marshal(statusesOf(sessions))
	if got := do(sessions.page(), "GET", testPath, "Accept", typeJSON); got.Body.String() != string(want)+"\n" || got.Header().Get("Content-Type") != typeJSON {
		t.Errorf("%s", got.Body)
	}
	if got := do(new(fakeSessions).page(), "GET", testPath, "Accept", typeJSON).Body.String(); got != "[]\n" {
		t.Errorf("without a session: %s", got)
	}
}

func TestOverviewIsHealthyIfEachSessionIs(t *testing.T) {
	samples := sampleStatuses(time.Now())
	sessions := new(fakeSessions)
	check := func(code int, body string) {
		t.Helper()
		if w := do(sessions.page(), "GET", testPath+"/healthz"); w.Code != code || w.Body.String() != body {
			t.Errorf("%d %q, want %d %q", w.Code, w.Body, code, body)
		}
	}
	check(503, "no session is configured\n")
	sessions.add("a", samples["authorized"])
	sessions.add("b", samples["degraded-storage"])
	check(200, "authorized\n")
	sessions.add("c", samples["pending"])
	sessions.add("d", samples["misconfigured-serving"])
	check(503, "c pending\nd misconfigured\n")
	if w := do(sessions.page(), "GET", testPath+"/healthz?session=a"); w.Code != 200 || w.Body.String() != "authorized\n" {
		t.Errorf("of one: %d %q", w.Code, w.Body)
	}
}

// Whoever looks at all of them does not mean each; whoever opens one does.
func TestOverviewStartsNoLogin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sessions := new(fakeSessions)
		s := sessions.add("lab", sampleStatuses(time.Now())["login_required"])
		for _, accept := range []string{"text/html", "*/*", typeJSON} {
			do(sessions.page(), "GET", testPath, "Accept", accept)
		}
		if n, _ := s.counts(); n != 0 {
			t.Errorf("%d demands", n)
		}
		do(sessions.page(), "GET", testPath+"?session=lab", "Accept", "text/html")
		if n, _ := s.counts(); n != 1 {
			t.Errorf("%d demands of the session's own page", n)
		}
	})
}

var linkPattern = regexp.MustCompile(`(?:href|action|data-page|data-events)="([^"]*)"`)

// A session's page in the overview is a whole one: all that it links to is about it.
func TestOverviewLinksToTheWholePageOfEachSession(t *testing.T) {
	sessions := mixedSessions(time.Now())
	p := sessions.page()
	body := do(p, "GET", testPath, "Accept", "text/html").Body.String()
	for _, s := range sessions.list() {
		name := s.Status().Session
		if !strings.Contains(body, `href="./.device-flow?session=`+name+`"`) {
			t.Errorf("no link to %s", name)
		}
		for _, at := range []string{testPath, testPath + "/"} {
			one := do(p, "GET", at+"?session="+name, "Accept", "text/html", refreshHeader, "1").Body.String()
			if !strings.Contains(one, `<bdi>`+name+`</bdi>`) {
				t.Errorf("%s: its page does not name it", name)
			}
			base, _ := url.Parse("http://proxy" + at)
			for _, m := range linkPattern.FindAllStringSubmatch(one, -1) {
				link, err := base.Parse(strings.ReplaceAll(m[1], "&amp;", "&"))
				if err != nil {
					t.Fatal(err)
				}
				up := strings.TrimSuffix(link.Path, "/") == testPath && strings.Contains(one, `class="up"><a href="`+m[1])
				if route := strings.TrimPrefix(link.Path, testPath+"/"); link.Host == "proxy" && !up && !strings.HasPrefix(route, "page.") && route != "icon.svg" &&
					link.Query().Get("session") != name {
					t.Errorf("%s at %s: %s is not about it", name, at, m[0])
				}
			}
			if !strings.Contains(one, `class="up"`) || strings.Contains(one, "url=") && !strings.Contains(one, `?session=`+name+`&amp;refresh"`) {
				t.Errorf("%s at %s: no way back, or a reload of something else", name, at)
			}
		}
	}
	if w := do(p, "GET", testPath+"/qr.svg?session=scanner-hall-3"); w.Code != 200 {
		t.Errorf("QR code: %d", w.Code)
	}
	var st flow.Status
	if err := json.Unmarshal(do(p, "GET", testPath+"?session=lab", "Accept", typeJSON).Body.Bytes(), &st); err != nil || st.Session != "lab" {
		t.Errorf("%+v %v", st, err)
	}
}

func TestOverviewOfOneSessionIsThatOfItsOwnPage(t *testing.T) {
	f := newFake(sampleStatuses(time.Now())["login_required"])
	body := do(f.page(), "GET", testPath+"?session=other", "Accept", "text/html", refreshHeader, "1").Body.String()
	if strings.Contains(body, "other") || strings.Contains(body, `class="up"`) {
		t.Error("a page of one session takes a name from the query")
	}
}

func TestOverviewKnowsASessionAtEachRequest(t *testing.T) {
	sessions := new(fakeSessions)
	p := sessions.page()
	p.shutdown() // a stream that should not be here ends
	for _, path := range []string{"", "/events", "/qr.svg", "/healthz"} {
		for _, name := range []string{"lab", "", "<b>", strings.Repeat("x", 5000)} {
			w := do(p, "GET", testPath+path+"?session="+url.QueryEscape(name), "Accept", "text/html", "Accept-Language", "fr")
			if w.Code != 404 || !strings.Contains(w.Body.String(), "n’existe pas") || strings.Contains(w.Body.String(), "<b>") || w.Body.Len() > 4000 {
				t.Errorf("%q, %.20q: %d %s", path, name, w.Code, w.Body)
			}
			if !strings.Contains(w.Body.String(), `href="./.device-flow"`) && !strings.Contains(w.Body.String(), `href="./"`) {
				t.Errorf("%q: no way back to the overview: %s", path, w.Body)
			}
		}
	}
	sessions.add("lab", sampleStatuses(time.Now())["pending"])
	if w := do(p, "GET", testPath+"?session=lab", "Accept", "text/html"); w.Code != 200 || !strings.Contains(w.Body.String(), "QTZL-MCBW") {
		t.Errorf("after it was added: %d", w.Code)
	}
}

func TestOverviewFormLogsInTheSessionItNames(t *testing.T) {
	samples := sampleStatuses(time.Now())
	sessions := new(fakeSessions)
	a, b := sessions.add("a", samples["login_required"]), sessions.add("b", samples["login_required"])
	p := sessions.page()
	body := do(p, "GET", testPath+"?session=b", "Accept", "text/html", refreshHeader, "1").Body.String()
	token := regexp.MustCompile(`name="token" value="([^"]*)"`).FindStringSubmatch(body)
	post := func(target string) *httptest.ResponseRecorder {
		r := httptest.NewRequest("POST", "http://proxy"+target, strings.NewReader(url.Values{"token": {token[1]}}.Encode()))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		w := httptest.NewRecorder()
		p.ServeHTTP(w, r)
		return w
	}
	for target, want := range map[string]int{"/login?session=a": 403, "/login": 404, "/login?session=c": 404, "/login?session=b": 303} {
		w := post(testPath + target)
		if w.Code != want {
			t.Errorf("%s: %d, want %d", target, w.Code, want)
		}
		if want == 303 && w.Header().Get("Location") != "../.device-flow?session=b" {
			t.Errorf("back to %s", w.Header().Get("Location"))
		}
	}
	_, ofA := a.counts()
	_, ofB := b.counts()
	if ofA != 0 || ofB != 1 {
		t.Errorf("%d and %d logins", ofA, ofB)
	}
}

func TestOverviewStreamsTheSessionThatChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		samples := sampleStatuses(time.Now())
		sessions := mixedSessions(time.Now())
		p := sessions.page()
		res, r := servePipe(t, p).open(t, t.Context())
		if res.Header.Get("Content-Type") != "text/event-stream" {
			t.Error(res.Header)
		}
		block(t, r)
		var got []string
		for range sessions.list() {
			got = append(got, event(t, r).Session)
		}
		if len(slices.Compact(slices.Sorted(slices.Values(got)))) != 8 {
			t.Errorf("at first %q", got)
		}
		for i, name := range []string{"authorized", "degraded-storage", "authorized", "pending"} {
			s := sessions.list()[i].(*fakeSession)
			st := samples[name]
			st.Session = s.Status().Session
			s.set(st)
			if got := event(t, r); got.Session != st.Session || got.State != st.State {
				t.Errorf("%s of %s is told as %s of %s", st.State, st.Session, got.State, got.Session)
			}
		}
		if got := block(t, r); got != ": keep-alive\n" {
			t.Errorf("%q", got)
		}
		sessions.add("new", samples["pending"])
		if line, err := r.ReadString('\n'); err == nil {
			t.Errorf("one session more, and still %q", line)
		}
		synctest.Wait()
		if n := p.streams.Load(); n != 0 {
			t.Errorf("%d streams left", n)
		}
	})
}

func TestOverviewStreamEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, end := range map[string]func(*page, context.CancelFunc){
			"the viewer leaves": func(_ *page, leave context.CancelFunc) { leave() },
			"a reload":          func(p *page, _ context.CancelFunc) { p.shutdown() },
		} {
			p := new(fakeSessions).page()
			ctx, leave := context.WithCancel(t.Context())
			_, r := servePipe(t, p).open(t, ctx)
			block(t, r)
			block(t, r) // no session, but a sign of life
			end(p, leave)
			synctest.Wait()
			if n := p.streams.Load(); n != 0 {
				t.Errorf("%s: %d streams left", name, n)
			}
			leave()
		}
	})
}

func TestOverviewOfAHundredIsSmall(t *testing.T) {
	sessions := new(fakeSessions)
	samples := slices.Collect(maps.Values(sampleStatuses(time.Now())))
	for i := range 100 {
		sessions.add("device-"+count(i), samples[i%len(samples)])
	}
	w := do(sessions.page(), "GET", testPath, "Accept", "text/html")
	if w.Code != 200 || strings.Count(w.Body.String(), "<li ") != 100 || !strings.Contains(w.Body.String(), `class="rows many"`) {
		t.Errorf("%d, %d rows", w.Code, strings.Count(w.Body.String(), "<li "))
	}
	t.Logf("%d bytes", w.Body.Len())
	if total := w.Body.Len() + len(pageCSS) + len(pageJS); total > 100_000 {
		t.Errorf("%d bytes", total)
	}
}

func TestOverviewTakesNoMarkupFromAServer(t *testing.T) {
	for _, c := range catalogues() {
		for state := range tones {
			p := newOverview(testPath, func() []watcher {
				return []watcher{newFake(hostile(`"><script>alert(1)</script>{account}`+"\x1b\u202e", state))}
			})
			for _, accept := range []string{"text/html", "*/*"} {
				body := do(p, "GET", testPath, "Accept", accept, "Accept-Language", c.tag).Body.String()
				if accept == "text/html" && strings.Contains(body, "<script>") || strings.ContainsAny(body, "\x1b\u202e") {
					t.Errorf("%s, %s: %s", c.tag, state, body)
				}
			}
		}
	}
}

func TestOverviewOfARunningCaddy(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	x.load(x.config("main", "device_flow a {\n LOGIN\n}\ndevice_flow b {\n LOGIN\n audience https://b.example.com\n}",
		"all", "device_flow_status /logins\nrespond hello"))
	var all []flow.Status
	if got := x.get("http://all/logins", "Accept", typeJSON); json.Unmarshal([]byte(got.body), &all) != nil || len(all) != 2 || all[0].Session != "a" || all[1].Session != "b" {
		t.Fatalf("%d %s", got.status, got.body)
	}
	for _, name := range []string{"a", "b"} { // it takes a moment until the storage has answered
		await(t, x.session(name).Session, flow.StateLoginRequired)
	}
	if got := x.get("http://all/logins/healthz"); got.status != http.StatusServiceUnavailable || got.body != "a login_required\nb login_required\n" {
		t.Errorf("%d %q", got.status, got.body)
	}
	x.login("a")
	x.login("b")
	if got := x.get("http://all/logins/healthz"); got.status != http.StatusOK {
		t.Errorf("logged in: %d %q", got.status, got.body)
	}
	if got := x.get("http://all/logins?session=a", "Accept", "text/html", "Accept-Language", "de"); !strings.Contains(got.body, "Verbunden") || !strings.Contains(got.body, "Alle Anmeldungen") {
		t.Errorf("%d %s", got.status, got.body)
	}
	if got := x.get("http://all/logins", "Sec-Fetch-Site", "cross-site", "Sec-Fetch-Dest", "image"); got.status != http.StatusForbidden {
		t.Errorf("another site: %d", got.status)
	}
	if got := x.get("http://all/"); got.body != "hello" {
		t.Errorf("the rest of the site: %q", got.body)
	}
}
