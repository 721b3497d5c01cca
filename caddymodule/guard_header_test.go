package caddymodule

import (
	"net/http"
	"strings"
	"testing"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// Caddy has its log show a request as it came in, before any handler could take something off it.
func TestTheSecretOfAHeaderIsInNoLog(t *testing.T) {
	const secret = "correct-horse"
	t.Setenv("DEVICE_FLOW_TEST_KEY", secret)
	for _, name := range []string{"Proxy-Authorization", "Authorization"} {
		t.Run(name, func(t *testing.T) {
			x := newRig(t, flowtest.Config{})
			need := "require_header " + name + " {env.DEVICE_FLOW_TEST_KEY}\n"
			access := "log {\n output memory " + t.Name() + "\n format json\n level DEBUG\n}\n"
			x.load(x.config(t.Name(), "debug\n device_flow {\n LOGIN\n}\n servers {\n trace\n}",
				"a", access+"device_flow API {\n"+need+"}",
				"dead", access+"device_flow 127.0.0.1:1 {\n"+need+"}",
				"before", access+"device_flow {\n"+need+"}\nreverse_proxy API"))
			x.login("default")
			for site, want := range map[string]int{"a": http.StatusOK, "dead": http.StatusBadGateway, "before": http.StatusOK} {
				if got := x.get("http://"+site+"/", name, secret); got.status != want {
					t.Errorf("%s: %d %s", site, got.status, got.body)
				}
				if got := x.get("http://"+site+"/", name, "wrong-horse"); got.status != http.StatusForbidden {
					t.Errorf("%s with another secret: %d %s", site, got.status, got.body)
				}
			}
			for _, r := range x.as.APIRequests() {
				for _, v := range r.Header {
					if strings.Contains(strings.Join(v, " "), secret) {
						t.Error("the API gets the secret")
					}
				}
			}
			for _, logger := range []string{"http.log.access", "http.log.error", "http.handlers.reverse_proxy"} {
				if len(logged(t.Name(), logger)) == 0 {
					t.Errorf("%s has written nothing, which proves nothing", logger)
				}
			}
			if lines := logged(t.Name(), "-horse"); len(lines) != 0 {
				t.Errorf("the log has the secret: %q", lines)
			}
			if lines := logged(t.Name(), "require_header", `"level":"warn"`, "Caddy writes"); len(lines) != 0 {
				t.Errorf("there is a warning: %q", lines)
			}
		})
	}
}

func TestASecretThatTheLogWouldShowIsWarnedOf(t *testing.T) {
	t.Setenv("DEVICE_FLOW_TEST_KEY", "correct-horse")
	x := newRig(t, flowtest.Config{})
	for _, c := range []struct{ name, header, servers, want string }{
		{"Other", "X-Proxy-Key {env.DEVICE_FLOW_TEST_KEY}", "", "require_header Proxy-Authorization"},
		{"Loud", "Proxy-Authorization {env.DEVICE_FLOW_TEST_KEY}", "servers {\n log_credentials\n}", "take log_credentials out"},
		{"Hidden", "proxy-authorization {env.DEVICE_FLOW_TEST_KEY}", "", ""},
		{"Presence", "X-Requested-With", "servers {\n log_credentials\n}", ""},
	} {
		log := t.Name() + c.name
		x.load(x.config(log, c.servers, strings.ToLower(c.name), "device_flow API {\n LOGIN\n require_header "+c.header+"\n}"))
		lines := logged(log, `"level":"warn"`, "require_header")
		if c.want == "" && len(lines) != 0 || c.want != "" && (len(lines) != 1 || !strings.Contains(lines[0], c.want) || strings.Contains(lines[0], "horse")) {
			t.Errorf("%s: %q", c.name, lines)
		}
	}
}
