package caddymodule

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// ofGroup runs f in a bubble with a group that has room for so many.
func ofGroup(t *testing.T, cfg flowtest.Config, most int, f func(t *testing.T, as *flowtest.Server, k *keyed)) {
	synctest.Test(t, func(t *testing.T) {
		as := flowtest.New(cfg)
		defer as.Close()
		k := newKeyed(as, most)
		if err := k.attach(); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := k.detach(); err != nil {
				t.Error(err)
			}
		}()
		f(t, as, k)
	})
}

// loggedIn is the session of a key that somebody has logged in to.
func loggedIn(t *testing.T, as *flowtest.Server, k *keyed, key string) *member {
	t.Helper()
	m := call(t, k, key)
	if err := as.Approve(m.Status().Login.UserCode); err != nil {
		t.Fatal(err)
	}
	await(t, m.Session, flow.StateAuthorized)
	return m
}

// All logins become void at the same moment, and all devices go on calling.
func TestTheCapOnLoginsHoldsWhenAllGrantsAreRefused(t *testing.T) {
	ofGroup(t, flowtest.Config{AccessTokenLifetime: time.Minute}, 40, func(t *testing.T, as *flowtest.Server, k *keyed) {
		for i := range 30 {
			loggedIn(t, as, k, fmt.Sprint("device", i))
		}
		as.RevokeAll()
		as.ScriptAlways(flowtest.Refresh, flowtest.Response{Pass: true, Delay: 2 * time.Second})
		asked := as.Count(flowtest.Device)
		var turned, codes int
		for range 40 {
			var wg sync.WaitGroup
			var mu sync.Mutex
			for i := range 30 {
				wg.Go(func() {
					r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
					r.Header["X-Device-Id"] = []string{fmt.Sprint("device", i)}
					s, err := k.running(r, nil, false)
					if err == nil {
						if _, err = s.Token(t.Context()); err == nil {
							return
						}
						err = noTurn(s, err)
					}
					mu.Lock()
					defer mu.Unlock()
					var notReady *flow.NotReadyError
					if no, after := refusalOf(err); no != nil && no.status == http.StatusTooManyRequests && after > 0 {
						turned++
					} else if errors.As(err, &notReady) && notReady.Status.Login != nil {
						codes++
					}
				})
			}
			wg.Wait()
			time.Sleep(2 * time.Second)
		}
		if n := as.Count(flowtest.Device) - asked; n != 20 { // half of 40
			t.Errorf("%d codes were asked for, want 20", n)
		}
		if turned == 0 || codes == 0 {
			t.Errorf("%d calls were told of a code, %d that others wait", codes, turned)
		}
	})
}

// More devices call than fit, and those that have to go are not as fast: the next one waits for that.
func TestAKeyWaitsForRoomThatIsBeingMade(t *testing.T) {
	ofGroup(t, flowtest.Config{}, 2, func(t *testing.T, _ *flowtest.Server, k *keyed) {
		k.session.cfg.Store = everybody{k.session.cfg.Fingerprint(), time.Now()}
		call(t, k, "one")
		call(t, k, "two")
		g := k.live.Load()
		change := func(f func()) {
			g.mu.Lock()
			defer g.mu.Unlock()
			f()
		}
		change(func() { g.ending += mostEnding })
		answer := make(chan error, 1)
		go func() {
			_, err := g.bring(t.Context(), k.id("three"), "three", true)
			answer <- err
		}()
		synctest.Wait()
		if len(answer) > 0 {
			t.Fatal("it did not wait: ", <-answer)
		}
		change(g.ended)
		if err := <-answer; err != nil {
			t.Error("there is room, and yet: ", err)
		}
		if _, ok := g.byKey.Load("three"); !ok {
			t.Error("three is not in memory")
		}

		synctest.Wait() // until the one that had to go has gone
		change(func() { g.ending = mostEnding })
		began := time.Now()
		_, err := g.bring(t.Context(), k.id("four"), "four", true)
		no, after := refusalOf(err)
		if no == nil || after == 0 || time.Since(began) != lookTimeout {
			t.Errorf("%v after %v", no, time.Since(began))
		}
		change(func() { g.ending = 0 })
	})
}

func TestALoginThatIsInMemoryOnlyIsNotEvicted(t *testing.T) {
	ofGroup(t, flowtest.Config{AccessTokenLifetime: time.Minute}, 4, func(t *testing.T, as *flowtest.Server, k *keyed) {
		disk := &full{Store: k.session.cfg.Store}
		k.session.cfg.Store = disk
		loggedIn(t, as, k, "saved")
		unsaved := loggedIn(t, as, k, "unsaved")
		disk.set("unsaved", k)
		time.Sleep(time.Minute)
		// Refreshing fails, too, and that is what the status shows.
		as.ScriptAlways(flowtest.Refresh, flowtest.Response{Status: http.StatusServiceUnavailable})
		time.Sleep(time.Minute)
		if st := unsaved.Status(); st.Error == nil || st.Error.Code == flow.CodeStorageFailed {
			t.Fatalf("%+v", st.Error)
		}
		g := k.live.Load()
		g.mu.Lock()
		for g.evict() {
		}
		_, saved := g.byKey.Load("saved")
		_, there := g.byKey.Load("unsaved")
		g.mu.Unlock()
		if saved || !there {
			t.Errorf("in memory are the saved %v, the unsaved %v: %+v", saved, there, unsaved.Status())
		}
	})
}

// full is a store that has no room for one of the records.
type full struct {
	flow.Store
	mu sync.Mutex
	no string
}

func (f *full) set(key string, k *keyed) {
	cfg := k.config(k.id(key))
	f.mu.Lock()
	defer f.mu.Unlock()
	f.no = cfg.StorageKey()
}

func (f *full) Save(ctx context.Context, key string, value []byte) error {
	f.mu.Lock()
	no := f.no
	f.mu.Unlock()
	if key == no {
		return errors.New("no space left on device")
	}
	return f.Store.Save(ctx, key, value)
}

func TestAKeyIsNeverAPathOrALine(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	x.load(x.config(t.Name(), "", "a", "device_flow API {\n LOGIN\n session_key {query.device}\n}"))
	keys := []string{
		"../../../etc/passwd", "a/b", `a\b`, "a\nb", "a\r\n\r\nevent: status", "a\x00b", "\x1b[2Jgone", "<script>alert(1)</script>", "~", ".", "ключ", "\xff\xfe",
		strings.Repeat("x", maxKey), "default", "a", "A", "a ", "%2e%2e", "{env.HOME}", "{http.request.host}",
	}
	codes := make(map[string]string)
	for _, key := range keys {
		p := problemOf(t, x.get("http://a/?device="+url.QueryEscape(key)))
		if other, taken := codes[p.UserCode]; p.UserCode == "" || taken {
			t.Fatalf("%q has the code %q, and so has %q", key, p.UserCode, other)
		}
		codes[p.UserCode] = key
		if page := x.get(p.StatusURL, "Accept", "text/html"); page.status != http.StatusOK || !strings.Contains(page.body, p.UserCode) || strings.Contains(page.body, "<script>alert") {
			t.Errorf("the page of %q: %d", key, page.status)
		}
	}
	var files []string
	if err := filepath.WalkDir(x.dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && strings.Contains(path, storageFolder+string(filepath.Separator)) {
			files = append(files, filepath.Base(path))
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	record := regexp.MustCompile(`^default~[0-9a-f]{32}-[0-9a-f]+\.json$`)
	for _, f := range files {
		if !record.MatchString(f) {
			t.Errorf("there is a file %q", f)
		}
	}
	if len(files) != len(keys) {
		t.Errorf("%d records of %d keys", len(files), len(keys))
	}
	if all := x.get("http://a/.device-flow", "Accept", "text/plain").body; strings.ContainsAny(all, "\x00\x1b\r") {
		t.Errorf("the plain page: %q", all)
	}
}

// A stolen device is locked out whether or not it has called of late.
func TestADeviceIsLoggedOutThatIsNotInMemory(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	config := x.config(t.Name(), "", "a", keyedProxy)
	x.load(config)
	name := x.loginDevice("one").Status().Session
	x.loginDevice("two")
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	x.load(config)
	ask := func(method, path string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		if err := new(Admin).one(w, httptest.NewRequestWithContext(t.Context(), method, adminPath+"/"+path, nil)); err != nil {
			w.Code = err.(caddy.APIError).HTTPStatus
		}
		return w
	}
	if w := ask(http.MethodPost, name+"/logout"); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), `"login_required"`) {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	if n := x.as.Count(flowtest.Revoke); n != 1 {
		t.Errorf("%d tokens were revoked", n)
	}
	if one, two := x.device("one"), x.device("two"); one.status != http.StatusServiceUnavailable || two.status != http.StatusOK {
		t.Errorf("%d %s, %d %s", one.status, one.body, two.status, two.body)
	}
	for _, nobody := range []string{"default", "default~", "default~" + strings.Repeat("0", 32), name + "0", name + "/..", "other" + strings.TrimPrefix(name, "default")} {
		if w := ask(http.MethodGet, nobody); w.Code != http.StatusNotFound {
			t.Errorf("%s: %d", nobody, w.Code)
		}
	}
}

// Of two handlers on the way, the one that is nearer to the API says whose token it is.
func TestAHandlerWithoutAKeyBehindOneWithAKeyIsObeyed(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	x.load(x.config(t.Name(), named, "a", "route {\n device_flow {\n session acme\n session_key {header.X-Device-Id}\n }\n"+
		"device_flow {\n session acme\n status_path off\n }\n reverse_proxy API {\n transport device_flow acme\n }\n}"))
	x.loginDevice("one")
	all := x.login("acme")
	if a := x.get("http://a/", "X-Device-Id", "one", "X-Was", "one"); a.status != http.StatusOK {
		t.Fatalf("%d %s", a.status, a.body)
	}
	if x.sentBy("one") != all.Current().Value().Reveal() {
		t.Error("the API got the token of the device")
	}
}

// The viewer's browser is back at once, and finds the session that has come instead.
func TestAStreamEndsWithItsSession(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	x.load(x.config(t.Name(), "", "a", keyedProxyOf(2)))
	s := x.loginDevice("one")
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://a/.device-flow/events"+sessionLink(s.Status().Session), nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := x.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	lines := bufio.NewReader(res.Body)
	for line := ""; !strings.HasPrefix(line, "data:"); {
		if line, err = lines.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 3 {
		x.loginDevice(fmt.Sprint("other", i))
	}
	receive(t, s.ended, "the session to be evicted")
	if _, err := io.Copy(io.Discard, lines); err != nil {
		t.Error(err)
	}
}

func TestLeftoversAreSweptWhereAllSessionsHaveKeys(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	leftover := filepath.Join(x.dir, "storage", storageFolder, "123456789")
	if err := os.MkdirAll(filepath.Dir(leftover), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(leftover, []byte("half a record"), 0o600); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-2 * leftoverAge)
	if err := os.Chtimes(leftover, old, old); err != nil {
		t.Fatal(err)
	}
	x.load(x.config(t.Name(), "", "a", keyedProxy))
	for range 100 {
		if _, err := os.Stat(leftover); errors.Is(err, os.ErrNotExist) {
			return
		}
		x.device("one") // time passes
	}
	t.Error("it is still there")
}
