package caddymodule

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// named is a login that is declared in the global options.
const named = "device_flow acme {\n LOGIN\n}"

// sentBy is the token that the API last got from a device.
func (x *rig) sentBy(device string) string {
	token := ""
	for _, r := range x.as.APIRequests() {
		if r.Header.Get("X-Was") == device {
			token = r.Header.Get("Authorization")
		}
	}
	return strings.TrimPrefix(token, "Bearer ")
}

func TestTheTransportTakesTheSessionThatTheHandlerHasChosen(t *testing.T) {
	for name, site := range map[string]string{
		"by the handler": "route {\n request_header X-Was {header.X-Device-Id}\n device_flow {\n session acme\n session_key {header.X-Device-Id}\n }\n" +
			"request_header -X-Device-Id\n reverse_proxy API {\n header_up -X-Device-Id\n transport device_flow acme\n }\n}",
		"by both": "route {\n request_header X-Was {header.X-Device-Id}\n device_flow {\n session acme\n session_key {header.X-Device-Id}\n }\n" +
			"request_header X-Device-Id two\n reverse_proxy API {\n transport device_flow acme {\n session_key {header.X-Device-Id}\n }\n }\n}",
		"by the transport": "request_header X-Was {header.X-Device-Id}\n reverse_proxy API {\n header_up -X-Device-Id\n transport device_flow acme {\n session_key {header.X-Device-Id}\n max_sessions 50\n }\n}",
		"without a proxy of ours": "route {\n request_header X-Was {header.X-Device-Id}\n device_flow {\n session acme\n session_key {header.X-Device-Id}\n }\n" +
			"request_header X-Device-Id two\n reverse_proxy API\n}",
	} {
		t.Run(name, func(t *testing.T) {
			x := newRig(t, flowtest.Config{})
			x.load(x.config(`"`+t.Name()+`"`, named, "a", site))
			one, two := x.loginDevice("one"), x.loginDevice("two")
			for range 3 {
				for device, s := range map[string]*running{"one": one, "two": two} {
					if a := x.device(device); a.status != http.StatusOK {
						t.Fatalf("%s: %d %s", device, a.status, a.body)
					}
					if x.sentBy(device) != s.Current().Value().Reveal() {
						t.Errorf("%s calls with another token than its own", device)
					}
				}
			}
			if a := x.get("http://a/"); a.status != http.StatusBadRequest {
				t.Errorf("without a key: %d %s", a.status, a.body)
			}
			if runningSession("acme") != nil {
				t.Error("a session runs that nobody can use")
			}
		})
	}
}

// Where the handler and the transport go by different keys, the last hop's counts.
func TestTheKeyOfTheLastHopCounts(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	x.load(x.config(t.Name(), named, "a", "route {\n device_flow {\n session acme\n audience https://b.example.com\n session_key {header.X-Device-Id}\n }\n"+
		"reverse_proxy API {\n transport device_flow acme {\n session_key {query.user}\n }\n }\n}"))
	device := x.loginDevice("one")
	p := problemOf(t, x.get("http://a/?user=two", "X-Device-Id", "one"))
	if err := x.as.Approve(p.UserCode); err != nil {
		t.Fatal(err)
	}
	user := x.ofKey("two")
	await(t, user.Session, flow.StateAuthorized)
	if a := x.get("http://a/?user=two", "X-Device-Id", "one", "X-Was", "one"); a.status != http.StatusOK {
		t.Fatalf("%d %s", a.status, a.body)
	}
	switch x.sentBy("one") {
	case user.Current().Value().Reveal():
	case device.Current().Value().Reveal():
		t.Error("the API got the token of the device")
	default:
		t.Error("the API got some other token")
	}
}

func TestASessionWithoutAKeyRunsBesideThoseWithOne(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	x.load(x.config(t.Name(), named, "a", "device_flow API {\n session acme\n session_key {header.X-Device-Id}\n}", "b", "device_flow API {\n session acme\n}"))
	device, all := x.loginDevice("one"), x.login("acme")
	if a, b := x.device("one"), x.get("http://b/", "X-Device-Id", "one"); a.status != http.StatusOK || b.status != http.StatusOK {
		t.Fatalf("%d %s, %d %s", a.status, a.body, b.status, b.body)
	}
	sent := x.as.APIRequests()
	for i, s := range []*running{device, all} {
		if got := sent[i].Header.Get("Authorization"); got != "Bearer "+s.Current().Value().Reveal() {
			t.Errorf("call %d has another's token", i)
		}
	}
}

func TestASessionThatIsNotInMemoryIsFoundByItsName(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	config := x.config(t.Name(), "", "a", keyedProxy)
	x.load(config)
	s := x.loginDevice("one")
	link := "http://a/.device-flow" + sessionLink(s.Status().Session)
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	x.load(config)
	if a := x.get(strings.TrimRight(link, "0123456789abcdef")+strings.Repeat("0", 32), "Accept", "text/plain"); a.status != http.StatusNotFound {
		t.Errorf("a name of nobody: %d %s", a.status, a.body)
	}
	if n := len(runningSessions()); n != 0 {
		t.Errorf("%d sessions run", n)
	}
	x.get(link, "Accept", "text/plain")
	now := runningSession(s.Status().Session)
	if now == nil {
		t.Fatal("the page does not find the session in the storage")
	}
	await(t, now.Session, flow.StateAuthorized)
	if a := x.device("one"); a.status != http.StatusOK {
		t.Errorf("%d %s", a.status, a.body)
	}
	if n := len(runningSessions()); n != 1 {
		t.Errorf("%d sessions run", n)
	}
	timeout := time.After(patience)
	for st, changed := now.Watch(); st.Key != "one"; st, changed = now.Watch() { // told by the caller, and a little later
		select {
		case <-changed:
		case <-timeout:
			t.Fatalf("the session's key is %q", st.Key)
		}
	}
}

func TestAFloodDoesNotFloodAServerThatRefuses(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	x.load(x.config(t.Name(), "", "a", keyedProxyOf(20)))
	x.as.ScriptAlways(flowtest.Device, flowtest.Response{Status: http.StatusBadRequest, Body: `{"error":"access_denied"}`})
	for i := range 300 {
		if a := x.device(fmt.Sprint("random", i)); a.status == http.StatusOK {
			t.Fatal(a.body)
		}
	}
	if n := x.as.Count(flowtest.Device); n > 20 { // each has two attempts within the time of this test at most
		t.Errorf("%d device requests for 300 keys, 10 may ask", n)
	}
	if n := x.records(); n != 0 {
		t.Errorf("%d records of nobody", n)
	}
}

// A code that nobody has used leaves a record, which goes with the session.
func TestALoginThatCameToNothingLeavesNoRecord(t *testing.T) {
	x := newRig(t, flowtest.Config{CodeLifetime: time.Second})
	x.load(x.config(t.Name(), "", "a", keyedProxy))
	x.loginDevice("known")
	x.device("nobody")
	await(t, x.ofKey("nobody").Session, flow.StatePending)
	await(t, x.ofKey("nobody").Session, flow.StateLoginRequired)
	if n := x.records(); n != 2 {
		t.Fatalf("%d records", n)
	}
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	if n := x.records(); n != 1 {
		t.Errorf("%d records are left, want that of the login", n)
	}
}

// The order in which sessions leave memory, by a group without a Caddy.
func TestWhoLeavesMemoryFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		as := flowtest.New(flowtest.Config{CodeLifetime: time.Minute})
		defer as.Close()
		k := newKeyed(as, 6)
		if err := k.attach(); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := k.detach(); err != nil {
				t.Error(err)
			}
		}()
		g := k.live.Load()
		has := func(key string) bool { _, ok := g.byKey.Load(key); return ok }
		login := func(key string) {
			t.Helper()
			m := call(t, k, key)
			if err := as.Approve(m.Status().Login.UserCode); err != nil {
				t.Fatal(err)
			}
			await(t, m.Session, flow.StateAuthorized)
		}
		login("idle")
		login("busy")
		call(t, k, "lost")
		time.Sleep(2 * time.Minute) // its code has run out
		call(t, k, "pending1")
		call(t, k, "pending2")
		login("third")
		for key, want := range map[string]bool{"idle": true, "busy": true, "lost": true, "pending1": true, "pending2": true, "third": true} {
			if has(key) != want {
				t.Fatalf("%s is in memory: %v", key, !want)
			}
		}
		login("fourth")
		if has("lost") || !has("idle") {
			t.Error("it was not the one that nobody has logged in to")
		}
		call(t, k, "busy")
		login("fifth")
		call(t, k, "busy")
		login("sixth")
		if has("idle") || !has("busy") || !has("pending1") || !has("pending2") {
			t.Errorf("in memory are idle %v, busy %v, pending %v %v", has("idle"), has("busy"), has("pending1"), has("pending2"))
		}
		// Codes that come from the storage have no slot at first.
		g.mu.Lock()
		clear(g.slots)
		for g.evict() {
		}
		g.mu.Unlock()
		if has("busy") || !has("pending1") || !has("pending2") {
			t.Errorf("in memory are busy %v, pending %v %v", has("busy"), has("pending1"), has("pending2"))
		}
	})
}

func TestASmallerBoundTakesEffectAtAReload(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	x.load(x.config(t.Name(), "", "a", keyedProxyOf(20)))
	for i := range 8 {
		x.loginDevice(fmt.Sprint("device", i))
	}
	x.load(x.config(t.Name(), "", "a", keyedProxyOf(3)))
	// A call is answered while others end.
	for i := range 16 {
		if a := x.device(fmt.Sprint("device", i%8)); a.status != http.StatusOK {
			t.Fatalf("%d %s", a.status, a.body)
		}
	}
	if n := len(runningSessions()); n > 4 {
		t.Errorf("%d sessions run, max_sessions is 3", n)
	}
}

func TestSettingsOfKeysThatContradict(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	const key = "session acme\n session_key {header.X-Device-Id}\n"
	for want, config := range map[string]string{
		"both 5 and 6": x.config(t.Name(), named, "a", "device_flow API {\n"+key+"max_sessions 5\n}", "b", "device_flow API {\n"+key+"max_sessions 6\n}"),
		"login eager":  x.config(t.Name(), "device_flow acme {\n LOGIN\n login eager\n}", "a", "device_flow API {\n"+key+"}"),
		"letters":      x.config(t.Name(), strings.Replace(named, "acme", "acme~"+strings.Repeat("0", 32), 1), "a", "respond 1"),
	} {
		if err := provisioned(t, config); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q: %v", want, err)
		}
	}
}

// newKeyed is what a configuration says, without the rest of one.
func newKeyed(as *flowtest.Server, most int) *keyed {
	s := &session{name: "bench", newObserver: func() flow.Observer { return nil }, cfg: flow.Config{
		Name: "bench", StorageName: "bench", Issuer: as.Issuer(), ClientID: "demo-client", HTTP: as.RoundTripper(), Store: new(flow.MemoryStore),
	}}
	return &keyed{
		app: &App{}, session: s, setting: "{http.request.header.X-Device-Id}", header: "X-Device-Id", most: most,
		varKey: keyedVar("bench"), started: make(chan struct{}),
	}
}

// call is a request with a key, whose session it returns.
func call(t testing.TB, k *keyed, key string) *member {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://a/", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header["X-Device-Id"] = []string{key}
	vars := make(map[string]any)
	s, err := k.running(r, vars, false)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = s.Token(t.Context())
	return vars[k.varKey].(*member)
}
