package caddymodule

import (
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// S73 of the scorecard.
func TestAStorageThatHangsStopsNeitherTrafficNorReloads(t *testing.T) {
	eachApart(t, map[string]func(*disk) faults{
		"Load":   func(d *disk) faults { return faults{load: d.hang} },
		"Store":  func(d *disk) faults { return faults{store: d.hang} },
		"Lock":   func(d *disk) faults { return faults{lock: d.hang} },
		"Unlock": func(d *disk) faults { return faults{unlock: d.hang} },
		"all":    func(d *disk) faults { return faults{load: d.hang, store: d.hang, lock: d.hang, unlock: d.hang} },
	}, func(t *testing.T, f func(*disk) faults) {
		d := newDisk(t)
		x := newRig(t, flowtest.Config{AccessTokenLifetime: 4 * time.Second})
		x.load(x.configOn("one"))
		s := x.login("default")
		tr := x.drive("http://a/")
		d.breaks(f(d))
		x.refreshes(2, tr)

		began := time.Now()
		x.load(x.configOn("two"))
		took := time.Since(began)
		t.Logf("the reload took %v", took.Round(time.Millisecond))
		if took >= 10*time.Second {
			t.Errorf("the reload took %v", took)
		}
		x.awaitAnswer("http://b/", "two")
		if x.session("default") != s {
			t.Error("another session runs now")
		}
		x.refreshes(2, tr)
		tr.check(t)

		began = time.Now()
		if err := caddy.Stop(); err != nil {
			t.Error(err)
		}
		took = time.Since(began)
		t.Logf("the stop took %v", took.Round(time.Millisecond))
		if took >= 5*time.Second {
			t.Errorf("the stop took %v", took)
		}
	})
}
