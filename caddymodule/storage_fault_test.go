package caddymodule

import (
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// shortLived is an authorization server whose tokens are refreshed after about one and a half seconds.
var shortLived = flowtest.Config{AccessTokenLifetime: 2 * time.Second}

// configOn is a configuration whose storage, Caddy's own things included, is the test's disk.
func (x *rig) configOn(other string) string {
	return strings.NewReplacer(
		`"module": "file_system"`, `"module": "device_flow_faulty"`, `"root": "`+x.dir+`/storage"`, `"name": "`+x.t.Name()+`"`,
	).Replace(x.config(`"`+x.t.Name()+`"`, "", "a", proxy, "b", "respond "+other))
}

// storageLines are the lines for people about a storage that fails.
func storageLines(t *testing.T) []string { return logged(t.Name(), storeFails, `"level":"error"`) }

// S64 and S65 of the scorecard.
func TestAStorageThatFailsCostsNoCall(t *testing.T) {
	all := func(err error) faults { return faults{load: failing(err), store: failing(err), lock: failing(err)} }
	full := faults{store: failing(syscall.ENOSPC)}
	type fault struct {
		when   string // seen from a refresh
		faults faults
	}
	eachApart(t, map[string]fault{
		"full before":         {"before", full},
		"full at":             {"at", full},
		"full after":          {"after", full},
		"no permission after": {"after", all(syscall.EACCES)},
		"bad blocks at":       {"at", all(syscall.EIO)},
		"read-only before":    {"before", faults{store: failing(syscall.EROFS), lock: failing(syscall.EROFS)}},
	}, func(t *testing.T, c fault) {
		d := newDisk(t)
		x := newRig(t, shortLived)
		x.load(x.configOn("one"))
		s := x.login("default")
		tr := x.drive("http://a/")
		switch c.when {
		case "before":
			d.breaks(c.faults)
		case "at":
			broken := make(chan struct{})
			x.as.Script(flowtest.Refresh, flowtest.Response{Pass: true, Edit: func(b []byte) []byte {
				d.breaks(c.faults)
				close(broken)
				return b
			}})
			receive(t, broken, "a refresh")
		case "after":
			x.refreshes(1, tr)
			token := s.Current()
			until(t, "the token to be saved", func() bool {
				token = s.Current()
				return token != nil && d.holds(token.Value().Reveal())
			})
			d.breaks(c.faults)
		}
		x.refreshes(3, tr)
		if st := await(t, s.Session, flow.StateDegraded); st.Error == nil || st.Error.Code != flow.CodeStorageFailed {
			t.Errorf("the status says %+v", st.Error)
		}
		if lines := storageLines(t); len(lines) != 1 {
			t.Errorf("%d lines in the log, want 1: %q", len(lines), lines)
		}
		d.heal()
		await(t, s.Session, flow.StateAuthorized)
		until(t, "the login to be saved", func() bool { return d.holds(s.Current().Value().Reveal()) })
		tr.check(t)
	})
}

func TestAStorageThatFailsFromTheStartBlocksNothing(t *testing.T) {
	t.Parallel()
	if !apart(t) {
		return
	}
	d := newDisk(t)
	x := newRig(t, shortLived)
	d.breaks(faults{load: failing(syscall.EIO), store: failing(syscall.EIO), lock: failing(syscall.EIO)})
	x.load(x.configOn("one"))
	if got := x.get("http://b/").body; got != "one" {
		t.Errorf("the other site answers %q", got)
	}
	s := x.session("default")
	st, err := s.Login(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := x.as.Approve(st.Login.UserCode); err != nil {
		t.Fatal(err)
	}
	await(t, s.Session, flow.StateDegraded)
	tr := x.drive("http://a/")
	x.refreshes(2, tr)
	d.heal()
	await(t, s.Session, flow.StateAuthorized)
	until(t, "the login to be saved", func() bool { return d.holds(s.Current().Value().Reveal()) })
	tr.check(t)
	if lines := storageLines(t); len(lines) != 1 {
		t.Errorf("%d lines in the log about one failure: %q", len(lines), lines)
	}
}

// S73 of the scorecard, at the start.
func TestAStartWithAHangingStorage(t *testing.T) {
	t.Parallel()
	if !apart(t) {
		return
	}
	d := newDisk(t)
	x := newRig(t, flowtest.Config{})
	x.load(x.configOn("one"))
	x.login("default")
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	d.breaks(faults{load: d.hang, store: d.hang, lock: d.hang})

	began := time.Now()
	x.load(x.configOn("two"))
	x.awaitAnswer("http://b/", "two")
	if took := time.Since(began); took >= 5*time.Second {
		t.Errorf("it took %v until the other site served", took)
	}
	if got := x.get("http://a/"); got.status != http.StatusServiceUnavailable || got.header.Get("Retry-After") == "" {
		t.Errorf("a call is answered %d %s", got.status, got.body)
	}
	d.heal()
	until(t, "the stored login", func() bool { return x.tryGet("http://a/") == "" })
	if n := x.as.Count(flowtest.Device); n != 1 {
		t.Errorf("%d codes were asked for, want the first only", n)
	}
}

// S66 of the scorecard and others: locks are a courtesy.
func TestLocksThatDoNotWorkCostNoCall(t *testing.T) {
	eachApart(t, map[string]faults{
		"nothing happens": {noLock: true},
		"an error":        {lock: failing(syscall.ENOLCK)},
		"orphaned":        {orphaned: true},
		"no way back":     {unlock: failing(syscall.EIO)},
		"stale reads":     {stale: true},
	}, func(t *testing.T, f faults) {
		d := newDisk(t)
		x := newRig(t, shortLived)
		d.breaks(f)
		x.load(x.configOn("one"))
		s := x.login("default")
		tr := x.drive("http://a/")
		x.refreshes(4, tr)
		tr.check(t)
		if n := x.as.Stats().Reuses; n != 0 {
			t.Errorf("%d refresh tokens were used twice", n)
		}
		if lines := storageLines(t); len(lines) != 0 {
			t.Errorf("the log complains: %q", lines)
		}
		until(t, "the login to be saved", func() bool { return d.holds(s.Current().Value().Reveal()) })
	})
}

// S107 of the scorecard, with a storage that is of no help.
func TestABrokenReloadWithABrokenStorage(t *testing.T) {
	eachApart(t, map[string]func(*disk) faults{
		"full":  func(*disk) faults { return faults{store: failing(syscall.ENOSPC)} },
		"hangs": func(d *disk) faults { return faults{store: d.hang} },
	}, func(t *testing.T, f func(*disk) faults) {
		d := newDisk(t)
		x := newRig(t, shortLived)
		x.load(x.configOn("one"))
		s := x.login("default")
		tr := x.drive("http://a/")
		d.breaks(f(d))
		broken := strings.Replace(x.configOn("two"), `"apps": {`, `"apps": {"broken": {}, `, 1)
		for range 4 { // Caddy starts apps in any order
			began := time.Now()
			if err := caddy.Load([]byte(broken), true); err == nil {
				t.Fatal("the broken configuration runs")
			}
			if took := time.Since(began); took >= 10*time.Second {
				t.Errorf("it took %v", took)
			}
		}
		x.refreshes(2, tr)
		if x.session("default") != s || len(s.configs) != 1 {
			t.Errorf("%d configurations have the session, or it is another", len(s.configs))
		}
		d.heal()
		await(t, s.Session, flow.StateAuthorized)
		until(t, "the login to be saved", func() bool { return d.holds(s.Current().Value().Reveal()) })
		tr.check(t)
	})
}
