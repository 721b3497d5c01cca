package caddymodule

import (
	"net/http"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// A transport that says nothing of an API takes that of the handler that is nearest before it, also where that one
// leaves it to the transport to add the token, and also where that one means the session's own.
func TestTheNearestHandlerSaysWhichAPIIsMeant(t *testing.T) {
	x := newRig(t, apis)
	const (
		gate = "device_flow {\n session acme\n status_path off\n"
		last = "reverse_proxy API {\n transport device_flow acme\n}\n"
	)
	sites := map[string]struct{ config, audience string }{
		"silent":  {gate + "audience https://b.example\n}\n" + last, "https://b.example"},
		"own":     {"route {\n" + gate + "audience https://a.example\n}\n" + gate + "}\n" + last + "}", "https://own.example"},
		"short":   {"route {\n" + gate + "audience https://a.example\n}\ndevice_flow API {\n session acme\n status_path off\n}\n}", "https://own.example"},
		"another": {"route {\n" + gate + "audience https://a.example\n}\n" + gate + "audience https://c.example\n}\n" + last + "}", "https://c.example"},
	}
	for _, announces := range []bool{true, false} { // a handler that authenticates, and JSON's default
		var list []string
		for name, s := range sites {
			list = append(list, name, s.config)
		}
		config := x.config(t.Name(), ownAPI, list...)
		if !announces {
			config = strings.ReplaceAll(config, `"authenticate": true,`, "")
		}
		x.load(config)
		if runningSession("acme").Current() == nil {
			x.login("acme")
		}
		for name, site := range sites {
			got := x.get("http://" + name + "/")
			if got.status != http.StatusOK || !strings.Contains(got.body, `"`+site.audience+`"`) {
				t.Errorf("%s, authenticate: %t: %d %s, want a token for %s", name, announces, got.status, got.body, site.audience)
			}
		}
	}
}

// Where each device has a login, the last one's must not be kept from leaving memory.
func TestATargetKeepsNoSessionOfAKey(t *testing.T) {
	ofGroup(t, flowtest.Config{AllowedAudiences: []string{"https://a.example"}}, 10, func(t *testing.T, as *flowtest.Server, k *keyed) {
		target, err := (&Target{Audience: "https://a.example"}).provision()
		if err != nil {
			t.Fatal(err)
		}
		of := func(s *running) flow.Source {
			t.Helper()
			src, no := target.source(s, asked())
			if no != nil {
				t.Fatal(no)
			}
			if _, err := src.Token(t.Context()); err != nil {
				t.Fatal(err)
			}
			return src
		}
		one, two := loggedIn(t, as, k, "one").running, loggedIn(t, as, k, "two").running
		first := of(one)
		if !isOf(of(two), two.Session) || of(one) != first {
			t.Error("a device has another's tokens, or not the same ones again")
		}
		if target.bound.Load() != nil {
			t.Error("a session is kept that may have to go")
		}
		synctest.Wait()
	})
}
