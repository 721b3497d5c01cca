package caddymodule

import (
	"strings"
	"testing"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

func TestPrivateRangesAreKnownHoweverTheyAreWritten(t *testing.T) {
	t.Setenv("DEVICE_FLOW_TEST_CLIENTS", " private_ranges  203.0.113.7 ")
	t.Setenv("DEVICE_FLOW_TEST_HOSTS", "a.example.com *.lab.example")
	for name, c := range map[string]Guard{
		"as in JSON": {AllowClient: []string{"private_ranges", "203.0.113.7"}},
		"a variable": {AllowClient: []string{"{env.DEVICE_FLOW_TEST_CLIENTS}"}, AllowHost: []string{"{env.DEVICE_FLOW_TEST_HOSTS}"}},
	} {
		g := kept(t, c)
		for remote, want := range map[string]string{
			"127.0.0.1:1": "", "[::1]:1": "", "10.1.2.3:1": "", "172.31.0.1:1": "", "192.168.1.1:1": "", "169.254.1.1:1": "", "[fd00::1]:1": "", "[fe80::1]:1": "",
			"203.0.113.7:1": "", "203.0.113.8:1": "client-not-allowed", "8.8.8.8:1": "client-not-allowed", "100.64.0.1:1": "client-not-allowed",
		} {
			r := asked()
			r.RemoteAddr = remote
			if got := judge(g, r); got != want {
				t.Errorf("%s, from %s: %q, want %q", name, remote, got, want)
			}
		}
		if got := judge(g, asked("Host", "printer.lab.example")); (got == "") != (c.AllowHost != nil) {
			t.Errorf("%s, a host: %q", name, got)
		}
	}
}

// A blank setting must not mean the default.
func TestABlankGuardSettingIsRefused(t *testing.T) {
	t.Setenv("DEVICE_FLOW_TEST_CLIENTS", "  ")
	for _, blank := range []string{"", " ", "{env.DEVICE_FLOW_TEST_CLIENTS}"} {
		for _, name := range []string{"allow_client", "allow_host", "allow_origin"} {
			x := newRig(t, flowtest.Config{})
			config := strings.Replace(x.config(t.Name(), "", "a", proxy), `"handler": "device_flow",`, `"handler": "device_flow", "`+name+`": ["`+blank+`"],`, 1)
			if err := provisioned(t, config); err == nil || !strings.Contains(err.Error(), name) {
				t.Errorf("%s %q: %v", name, blank, err)
			}
		}
	}
}
