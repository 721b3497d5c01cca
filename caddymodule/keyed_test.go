package caddymodule

import (
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// keyedProxy is a site with one login for each device.
const keyedProxy = "device_flow API {\n LOGIN\n session_key {header.X-Device-Id}\n}"

// keyedProxyOf is that with a bound.
func keyedProxyOf(most int) string {
	return fmt.Sprintf("device_flow API {\n LOGIN\n session_key {header.X-Device-Id}\n max_sessions %d\n}", most)
}

// device calls as a device of that name.
func (x *rig) device(name string) answer {
	x.t.Helper()
	return x.get("http://a/", "X-Device-Id", name)
}

// problemOf is the problem that a call was answered with.
func problemOf(t testing.TB, a answer) problem {
	t.Helper()
	var p problem
	if err := json.Unmarshal([]byte(a.body), &p); err != nil {
		t.Fatalf("%d %s: %v", a.status, a.body, err)
	}
	return p
}

// loginDevice has a device call, and a person approve its code.
func (x *rig) loginDevice(name string) *running {
	x.t.Helper()
	p := problemOf(x.t, x.device(name))
	if p.UserCode == "" {
		x.t.Fatalf("device %s gets no code: %+v", name, p)
	}
	if err := x.as.Approve(p.UserCode); err != nil {
		x.t.Fatal(err)
	}
	s := x.ofKey(name)
	if s == nil {
		x.t.Fatalf("the session of %s does not run", name)
	}
	await(x.t, s.Session, flow.StateAuthorized)
	return s
}

// ofKey is the running session of a key, nil if it is not in memory.
func (x *rig) ofKey(key string) *running {
	for _, s := range runningSessions() {
		if s.Status().Key == key {
			return s
		}
	}
	return nil
}

// records are the files of the storage.
func (x *rig) records() int {
	x.t.Helper()
	files, err := filepath.Glob(filepath.Join(x.dir, "storage", storageFolder, "*.json"))
	if err != nil {
		x.t.Fatal(err)
	}
	return len(files)
}

func TestEachDeviceHasALoginOfItsOwn(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	x.load(x.config(t.Name(), "", "a", keyedProxy))
	if n := len(runningSessions()); n != 0 {
		t.Errorf("%d sessions run before there is a call", n)
	}
	one, two := problemOf(t, x.device("one")), problemOf(t, x.device("two"))
	if one.UserCode == "" || two.UserCode == "" || one.UserCode == two.UserCode {
		t.Fatalf("the codes are %q and %q", one.UserCode, two.UserCode)
	}
	if again := problemOf(t, x.device("one")); again.UserCode != one.UserCode {
		t.Errorf("a second call gets another code")
	}
	if err := x.as.Approve(one.UserCode); err != nil {
		t.Fatal(err)
	}
	await(t, x.ofKey("one").Session, flow.StateAuthorized)
	if a := x.device("one"); a.status != http.StatusOK {
		t.Errorf("device one: %d %s", a.status, a.body)
	}
	if p := problemOf(t, x.device("two")); p.State != flow.StatePending {
		t.Errorf("device two is %s", p.State)
	}
	s := x.loginDevice("two")
	if a := x.device("two"); a.status != http.StatusOK {
		t.Errorf("device two: %d %s", a.status, a.body)
	}
	if s.Current().Value().Equal(x.ofKey("one").Current().Value()) {
		t.Error("both have the same token")
	}
	if x.records() != 2 {
		t.Errorf("%d records, want one each", x.records())
	}
	if len(logged(t.Name(), `"user_code":"`+one.UserCode, `"key":"one"`)) == 0 {
		t.Error("the log does not say whose code it is")
	}
}

func TestACallThatDoesNotSayWhoseItIsIsRefused(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	x.load(x.config(t.Name(), "", "a", keyedProxy, "b", "device_flow API {\n LOGIN\n session_key {query.device}-{header.X-Part}\n}"))
	if a := x.get("http://a/"); a.status != http.StatusBadRequest || !strings.Contains(a.body, "header field X-Device-Id") {
		t.Errorf("without the field: %d %s", a.status, a.body)
	}
	if a := x.device(""); a.status != http.StatusBadRequest {
		t.Errorf("with an empty field: %d", a.status)
	}
	if a := x.device(strings.Repeat("x", maxKey+1)); a.status != http.StatusBadRequest || problemOf(t, a).Type != problemType("session-key-too-long") {
		t.Errorf("with a long key: %d %s", a.status, a.body)
	}
	if a := x.get("http://b/?device=1"); a.status != http.StatusBadRequest {
		t.Errorf("with a part of the key: %d %s", a.status, a.body)
	}
	if n := len(runningSessions()); n != 0 || x.as.Count(flowtest.Device) != 0 {
		t.Errorf("%d sessions, %d device requests", n, x.as.Count(flowtest.Device))
	}
	if a := x.get("http://b/?device=1", "X-Part", "2"); a.status != http.StatusServiceUnavailable || x.ofKey("1-2") == nil {
		t.Errorf("with all of the key: %d %s", a.status, a.body)
	}
}

func TestEvictedSessionsComeBackFromTheStorage(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	authorized := func() int { return len(logged(t.Name(), `"level":"info"`, `"authorized`)) }
	before := authorized()
	x.load(x.config(t.Name(), "", "a", keyedProxyOf(4)))
	var sessions []*running
	for i := range 12 {
		sessions = append(sessions, x.loginDevice(fmt.Sprint("device", i)))
	}
	if n := len(runningSessions()); n > 5 { // one may be on its way out
		t.Errorf("%d sessions run, max_sessions is 4", n)
	}
	if x.records() != 12 {
		t.Errorf("%d records, want 12", x.records())
	}
	until(t, "a line about each login", func() bool { return authorized() >= before+12 }) // they may be written after the first call is served
	asked, lines := x.as.Count(flowtest.Device), authorized()
	for range 2 {
		for i, s := range sessions {
			if a := x.device(fmt.Sprint("device", i)); a.status != http.StatusOK {
				t.Fatalf("device%d: %d %s", i, a.status, a.body)
			}
			if now := x.ofKey(fmt.Sprint("device", i)); now == nil || !now.Current().Value().Equal(s.Current().Value()) {
				t.Errorf("device%d has another token", i)
			}
		}
	}
	if n := x.as.Count(flowtest.Device); n != asked {
		t.Errorf("%d more codes were asked for", n-asked)
	}
	if n := authorized(); n > lines {
		t.Errorf("%d lines of the log are about sessions that came back", n-lines)
	}
	receive(t, sessions[0].ended, "the first session to end")
}

func TestPendingLoginsAreCappedAndNeverEvicted(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	x.load(x.config(t.Name(), "", "a", keyedProxyOf(8)))
	known := x.loginDevice("known")
	codes := make(map[string]string)
	for i := range 4 {
		name := fmt.Sprint("device", i)
		if codes[name] = problemOf(t, x.device(name)).UserCode; codes[name] == "" {
			t.Fatalf("%s gets no code", name)
		}
	}
	for i := range 50 {
		a := x.device(fmt.Sprint("flood", i))
		if a.status != http.StatusTooManyRequests || a.header.Get("Retry-After") != "60" || problemOf(t, a).Type != problemType("too-many-logins") {
			t.Fatalf("beyond the cap: %d %v %s", a.status, a.header, a.body)
		}
	}
	for name, code := range codes {
		if now := problemOf(t, x.device(name)).UserCode; now != code {
			t.Errorf("%s had the code %s, now it has %q", name, code, now)
		}
	}
	if a := x.device("known"); a.status != http.StatusOK || x.ofKey("known") != known {
		t.Errorf("who is logged in: %d %s", a.status, a.body)
	}
	if n := x.as.Count(flowtest.Device); n != 5 {
		t.Errorf("%d codes were asked for, want 5", n)
	}
	// The next one has its turn when somebody has approved.
	if err := x.as.Approve(codes["device0"]); err != nil {
		t.Fatal(err)
	}
	await(t, x.ofKey("device0").Session, flow.StateAuthorized)
	x.loginDevice("next")
}

func TestAFloodOfKeysIsBounded(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	x.load(x.config(t.Name(), "", "a", keyedProxyOf(20), "m", "metrics"))
	x.loginDevice("known")
	const keys = 3000
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range keys / 4 {
				if a := x.device(fmt.Sprintf("random-%d-%d", w, i)); a.status == http.StatusOK || a.status == http.StatusBadRequest {
					t.Errorf("%d %s", a.status, a.body)
					return
				}
			}
		})
	}
	wg.Wait()
	if n := len(runningSessions()); n > 20 {
		t.Errorf("%d sessions", n)
	}
	if n := x.as.Count(flowtest.Device); n > 11 {
		t.Errorf("%d device requests, want the cap", n)
	}
	if n := x.records(); n > 11 {
		t.Errorf("%d records, want the cap", n)
	}
	for series, v := range x.scrape() {
		if strings.Contains(series, keyMark) || strings.Contains(series, "random") {
			t.Errorf("a key is in a label: %s %v", series, v)
		}
	}
	now := x.scrape()
	if p, a := now.of("session_state", "default", "pending"), now.of("session_state", "default", "authorized"); p != 10 || a != 1 {
		t.Errorf("%v sessions are pending and %v authorized, want 10 and 1", p, a)
	}
	if a := x.device("known"); a.status != http.StatusOK {
		t.Errorf("who is logged in: %d %s", a.status, a.body)
	}
}

func TestReloadsKeepThePendingCodesOfAllKeys(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	site := func(i int) string { return x.config(t.Name(), "", "a", keyedProxy, "b", fmt.Sprintf("respond %d", i)) }
	x.load(site(0))
	one, two := problemOf(t, x.device("one")).UserCode, problemOf(t, x.device("two")).UserCode
	sessions := []*running{x.ofKey("one"), x.ofKey("two")}
	for i := range 5 {
		x.load(site(i + 1))
	}
	x.awaitAnswer("http://b/", "5")
	if x.ofKey("one") != sessions[0] || x.ofKey("two") != sessions[1] || len(runningSessions()) != 2 {
		t.Error("other sessions run now")
	}
	for i, code := range []string{one, two} {
		if err := x.as.Approve(code); err != nil {
			t.Fatal(err)
		}
		await(t, sessions[i].Session, flow.StateAuthorized)
	}
	if a, b := x.device("one"), x.device("two"); a.status != http.StatusOK || b.status != http.StatusOK {
		t.Errorf("%d %s, %d %s", a.status, a.body, b.status, b.body)
	}
	if n := x.as.Count(flowtest.Device); n != 2 {
		t.Errorf("%d codes were asked for, want 2", n)
	}
	x.load(x.config(t.Name(), "", "a", "respond gone"))
	for _, s := range sessions {
		receive(t, s.ended, "a session to end")
	}
	if n := len(runningSessions()); n != 0 {
		t.Errorf("%d sessions are left", n)
	}
	groups.Range(func(key, _ any) bool {
		t.Errorf("a group is left: %v", key)
		return true
	})
}

func TestTheStatusPageShowsTheSessionsOfAllKeys(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	x.load(x.config(t.Name(), "", "a", keyedProxy))
	health := func(want int) {
		t.Helper()
		if a := x.get("http://a/.device-flow/healthz"); a.status != want {
			t.Errorf("healthz: %d %s, want %d", a.status, a.body, want)
		}
	}
	health(http.StatusOK) // nobody has called yet
	x.device("living-room")
	health(http.StatusServiceUnavailable)
	x.loginDevice("living-room")
	p := problemOf(t, x.device("kitchen <b>"))
	name := x.ofKey("kitchen <b>").Status().Session
	if want := "http://a/.device-flow?session=default~"; !strings.HasPrefix(p.StatusURL, want) {
		t.Fatalf("the answer names %s, want %s…", p.StatusURL, want)
	}
	page := x.get(p.StatusURL, "Accept", "text/html")
	if page.status != http.StatusOK || !strings.Contains(page.body, p.UserCode) || !strings.Contains(page.body, "kitchen &lt;b&gt;") {
		t.Errorf("the page of one: %d %s", page.status, page.body)
	}
	all := x.get("http://a/.device-flow", "Accept", "text/html")
	if !strings.Contains(all.body, "living-room") || !strings.Contains(all.body, "kitchen &lt;b&gt;") || !strings.Contains(all.body, "?session=default~") {
		t.Errorf("the page of all: %s", all.body)
	}
	if a := x.get("http://a/.device-flow?session=default", "Accept", "text/plain"); a.status != http.StatusNotFound {
		t.Errorf("the session of no key: %d %s", a.status, a.body)
	}
	if s := runningSession(name); s == nil {
		t.Error("the commands do not find it")
	}
	health(http.StatusOK) // one of two is served
	if a := x.get("http://a/.device-flow/healthz?session=" + name); a.status != http.StatusServiceUnavailable {
		t.Errorf("healthz of one: %d %s", a.status, a.body)
	}
}
