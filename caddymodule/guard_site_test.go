package caddymodule

import (
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// alias makes the site of one name answer to others, as DNS does.
func (x *rig) alias(site string, names ...string) {
	x.t.Helper()
	for _, name := range names {
		if err := os.Symlink(x.socket(site), x.socket(name)); err != nil {
			x.t.Fatal(err)
		}
	}
}

func TestNamesThatTheSiteItselfNamesAreAllowed(t *testing.T) {
	t.Setenv("DEVICE_FLOW_TEST_HOST", "env.example.com")
	const gate = "device_flow {\n session s\n}\nrespond served"
	for _, c := range []struct {
		name, caddyfile  string
		allowed, refused []string
	}{
		{
			"an address", "http://proxy.example.com, http://Second.example.com {\n BIND\n " + gate + "\n}",
			[]string{"proxy.example.com", "second.example.com"},
			nil,
		}, // another Host does not get to us
		{
			"a wildcard", "http://*.lab.example {\n BIND\n " + gate + "\n}",
			[]string{"a.lab.example"},
			nil,
		},
		{
			"a matcher of the directive", "http:// {\n BIND\n @mine host mine.example.com\n device_flow @mine {\n session s\n}\nrespond @mine served\n}",
			[]string{"mine.example.com"},
			nil,
		},
		{
			"a handle", "http:// {\n BIND\n @a host a.example.com\n handle @a {\n route {\n " + gate + "\n }\n }\n handle {\n device_flow {\n session s\n status_path /login\n}\nrespond served\n}\n}",
			[]string{"a.example.com"},
			[]string{"b.example.com"},
		},
		{
			"a named route", "&(shared) {\n " + gate + "\n}\nhttp://named.example.com {\n BIND\n invoke shared\n}",
			[]string{"named.example.com"},
			nil,
		},
		{
			"a variable", "http:// {\n BIND\n @e host {env.DEVICE_FLOW_TEST_HOST}\n route @e {\n " + gate + "\n}\n}",
			[]string{"env.example.com"},
			nil,
		},
		{
			"a choice", "http:// {\n BIND\n @c expression `host(\"a.example.com\") || path(\"/*\")`\n route @c {\n " + gate + "\n}\n}",
			nil,
			[]string{"a.example.com", "evil.example"},
		},
		{
			"everything", "http:// {\n BIND\n @all host *.* {http.request.host}\n route @all {\n " + gate + "\n}\n}",
			nil,
			[]string{"evil.example"},
		},
		{
			"a denial", "http:// {\n BIND\n @not not host good.example.com\n route @not {\n " + gate + "\n}\n}",
			nil,
			[]string{"evil.example"},
		},
		{
			"a setting", "http:// {\n BIND\n device_flow {\n session s\n allow_host {env.DEVICE_FLOW_TEST_HOST} *.lan.example\n}\nrespond served\n}",
			[]string{"env.example.com", "printer.lan.example"},
			[]string{"lan.example", "evil.example"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := newRig(t, flowtest.Config{})
			config, err := adapt(t, x.expand("{\n admin off\n persist_config off\n storage file_system DIR/storage\n device_flow s {\n LOGIN\n}\n}\n"+
				strings.ReplaceAll(c.caddyfile, "BIND", "bind unix/DIR/site.sock")))
			if err != nil {
				t.Fatal(err)
			}
			x.load(config)
			x.login("s")
			x.alias("site", append(c.allowed, c.refused...)...)
			for range 2 { // found, and remembered
				for _, name := range c.allowed {
					if got := x.get("http://" + name + "/"); got.body != "served" {
						t.Errorf("%s: %d %s", name, got.status, got.body)
					}
					if got := x.get("http://" + name + "/.device-flow"); got.status != http.StatusOK {
						t.Errorf("the page of %s: %d %s", name, got.status, got.body)
					}
				}
				for _, name := range c.refused {
					for _, path := range []string{"/", "/.device-flow"} {
						if got := x.get("http://" + name + path); got.status != http.StatusForbidden || !strings.Contains(got.body, "allow_host") {
							t.Errorf("%s%s: %d %s", name, path, got.status, got.body)
						}
					}
				}
			}
		})
	}
}

func TestThePageIsGuardedWithAllThatIsBelowIt(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	x.load(x.config(t.Name(), "", ":1@a", "device_flow API {\n LOGIN\n}"))
	x.alias("a", "evil.example")
	for _, below := range []string{"", "/", "/events", "/qr.svg", "/healthz", "/login", "/page.css", "/page.js", "/icon.svg"} {
		for _, got := range []answer{x.get("http://evil.example/.device-flow" + below), x.get("http://a/.device-flow"+below, "Sec-Fetch-Site", "cross-site")} {
			if got.status != http.StatusForbidden {
				t.Errorf("%s: %d %s", below, got.status, got.body)
			}
		}
	}
	await(t, x.session("default").Session, flow.StateLoginRequired)
	if got := x.get("http://a/.device-flow/healthz"); got.status != http.StatusServiceUnavailable || got.body != "login_required\n" {
		t.Errorf("a probe: %d %s", got.status, got.body)
	}
}

func TestRefusalsGoThroughTheSitesOwnErrorPage(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	x.load(x.config(t.Name(), "", "a", proxy+"\nhandle_errors {\n respond \"sorry: {err.status_code} {http.error.message}\"\n}"))
	got := x.get("http://a/", "Origin", "https://evil.example")
	if got.status != 403 || !strings.HasPrefix(got.body, "sorry: 403 ") || got.header.Get("Cache-Control") != "no-store" {
		t.Errorf("%d %s %v", got.status, got.body, got.header)
	}
}

func TestRefusalsAreLoggedAndCounted(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	x.load(x.config(t.Name(), "device_flow refusing {\n LOGIN\n}", "a", "device_flow API {\n session refusing\n}"))
	before := gathered(t)
	for range 3 {
		x.get("http://a/?code=secret", "Origin", "https://evil.example")
	}
	if n := gathered(t).of("requests_total", "refusing", "refused") - before.of("requests_total", "refusing", "refused"); n != 3 {
		t.Errorf("%v are counted, want 3", n)
	}
	lines := logged(t.Name(), "refused a request")
	if len(lines) != 1 || !strings.Contains(lines[0], "allow_origin") || strings.Contains(lines[0], "secret") {
		t.Errorf("logged: %q", lines)
	}
}

func TestClientsBehindATrustedProxyAreJudged(t *testing.T) {
	for name, c := range map[string]struct {
		servers string
		want    map[string]bool // by X-Forwarded-For
	}{
		"trusted": {"trusted_proxies static 127.0.0.1/32 203.0.113.0/24\n trusted_proxies_unix", map[string]bool{
			"": true, "192.168.1.1": true, "192.168.1.1:99, [fd00::1]:5": true, "fe80::1%eth0": true,
			"8.8.8.8": false, "127.0.0.1, 8.8.8.8": false, "8.8.8.8, 127.0.0.1": false, "unknown": false, "127.0.0.1, unknown": false, "127.0.0.1,": false,
		}},
		"strict": {"trusted_proxies static 127.0.0.1/32 203.0.113.0/24\n trusted_proxies_unix\n trusted_proxies_strict", map[string]bool{
			"192.168.1.1": true, "192.168.1.1, 203.0.113.7": true, "127.0.0.1, 8.8.8.8": false, "127.0.0.1, 8.8.8.8, 203.0.113.7": false, "8.8.8.8, 192.168.1.1": true,
		}},
		"not trusted": {"trusted_proxies static 203.0.113.0/24", map[string]bool{
			"": true, "8.8.8.8": true, // anybody's own word
		}},
	} {
		t.Run(name, func(t *testing.T) {
			x := newRig(t, flowtest.Config{})
			x.load(x.config(t.Name(), "servers {\n "+c.servers+"\n}", "a", proxy))
			for from, want := range c.want {
				var header []string
				if from != "" {
					header = []string{"X-Forwarded-For", from}
				}
				got := x.get("http://a/", header...)
				if refused := got.status == 403 && strings.Contains(got.body, "allow_client"); refused == want || !refused && got.status != 503 {
					t.Errorf("%q: %d %s", from, got.status, got.body)
				}
			}
		})
	}
}

func TestASpoofedClientAddressDoesNotHelp(t *testing.T) {
	r := asked("X-Forwarded-For", "127.0.0.1", "Forwarded", "for=127.0.0.1", "X-Real-IP", "127.0.0.1", "X-Client-IP", "127.0.0.1")
	r.RemoteAddr = "203.0.113.7:1"
	if got := judge(kept(t, Guard{}), r); got != "client-not-allowed" {
		t.Errorf("%q", got)
	}
}

func TestOpenSitesAreWarnedOf(t *testing.T) {
	const login = "device_flow API {\n LOGIN\n}"
	for _, c := range []struct {
		name, site string
		warned     bool
	}{
		{"alone", login, true},
		{"another name", "device_flow API {\n LOGIN\n allow_host a.example.com\n allow_origin https://a.example.com\n}", true},
		{"clients", "device_flow API {\n LOGIN\n allow_client private_ranges 203.0.113.1 private_ranges\n}", false},
		{"a header", "device_flow API {\n LOGIN\n require_header X-Key\n}", false},
		{"basic_auth", "basic_auth {\n a $2a$14$Zkx19XLiW6VYouLHR5NmfOFU0z2GTNmpkT/5qqR7hx4IjWJPDhjvG\n}\n" + login, false},
		{"basic_auth elsewhere", "basic_auth /admin/* {\n a $2a$14$Zkx19XLiW6VYouLHR5NmfOFU0z2GTNmpkT/5qqR7hx4IjWJPDhjvG\n}\n" + login, true},
		{"forward_auth", "forward_auth 127.0.0.1:9091 {\n uri /verify\n}\n" + login, false},
		{"an abort for others", "@outside not remote_ip 10.0.0.0/8\nroute {\n abort @outside\n" + login + "\n}", false},
		{"an abort that comes too late", "@outside not remote_ip 10.0.0.0/8\nabort @outside\n" + login, true},
		{"an abort for some", "@bad remote_ip 10.0.0.1\nroute {\n abort @bad\n" + login + "\n}", true},
		{"a handle for others", "@outside not client_ip 10.0.0.0/8\nhandle @outside {\n abort\n}\nhandle {\n" + login + "\n}", false},
		{"its own matcher", "@inside client_ip 10.0.0.0/8\ndevice_flow @inside API {\n LOGIN\n}", false},
		{"a handle", "@inside client_ip 10.0.0.0/8\nhandle @inside {\n" + login + "\n}", false},
		{"another handle", "@inside client_ip 10.0.0.0/8\nhandle @inside {\n respond hello\n}\nhandle /api/* {\n" + login + "\n}", true},
		{"the transport alone", "reverse_proxy API {\n transport device_flow spare\n}", true},
		{"a gate with a proxy of its own", "device_flow {\n session spare\n allow_client 10.0.0.0/8\n}\nreverse_proxy /api/* API {\n transport device_flow spare\n}", false},
		{"no proxy", "respond hello", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := newRig(t, flowtest.Config{})
			x.load(x.config(t.Name(), "device_flow spare {\n LOGIN\n audience spare\n}", "a", c.site))
			if lines := logged(t.Name(), "everyone in the networks"); len(lines) != 0 {
				t.Errorf("a unix socket: %q", lines)
			}
			mod, err := caddy.ActiveContext().App("http")
			if err != nil {
				t.Fatal(err)
			}
			servers := mod.(*caddyhttp.App).Servers
			running := servers["srv0"]
			defer func() { servers["srv0"] = running }()
			servers["srv0"] = &caddyhttp.Server{Listen: []string{"127.0.0.1:80", ":8080"}, Routes: running.Routes}
			app := &App{ctx: caddy.ActiveContext(), logger: caddy.ActiveContext().Logger(new(App))}
			app.warnOfOpenSites()
			lines := logged(t.Name(), "everyone in the networks", "allow_client", `[":8080"]`)
			if c.warned != (len(lines) == 1) {
				t.Errorf("%q", lines)
			}
		})
	}
}

func TestLocalListenersAreKnown(t *testing.T) {
	for listen, want := range map[string]bool{
		"127.0.0.1:8080": true, "[::1]:8080": true, "localhost:8080": true, "tcp/127.9.9.9:80": true, "unix//run/x.sock": true, "unix//run/x.sock|0222": true,
		"tcp4/127.0.0.1:80-90": true, "[::ffff:127.0.0.1]:80": true, ":8080": false, "0.0.0.0:80": false, "[::]:80": false, "192.168.1.1:80": false,
		"proxy.example.com:80": false, "fd/3": false, "tcp/:80": false,
	} {
		if got := isLocalListener(listen); got != want {
			t.Errorf("%s: %t", listen, got)
		}
	}
}

func TestGuardSettingsThatWouldNotWorkAreRefused(t *testing.T) {
	const login = " issuer https://l.example.com\n client_id a\n"
	for setting, want := range map[string]string{
		"allow_client 10.0.0.0/33":                       `allow_client "10.0.0.0/33": write an address or a CIDR range, as in 192.168.1.0/24, or private_ranges`,
		"allow_client scanner":                           `allow_client "scanner": write an address or a CIDR range`,
		"allow_client fe80::1%eth0":                      `allow_client "fe80::1%eth0": write an address`,
		"allow_client ::ffff:0:0/90":                     `allow_client "::ffff:0:0/90": write the IPv4 range without ::ffff:`,
		"allow_client {env.DEVICE_FLOW_NO_SUCH}":         `allow_client "{env.DEVICE_FLOW_NO_SUCH}": evaluated placeholder`,
		"allow_host *":                                   `allow_host "*": this would let any web page in by DNS rebinding: name the hosts`,
		"allow_host *.*":                                 `allow_host "*.*": this would let any web page in`,
		"allow_host http://a.example.com":                `allow_host "http://a.example.com": write a host name without scheme, port and path`,
		"allow_host a.example.com:8080":                  `allow_host "a.example.com:8080": write a host name`,
		"allow_host 0.0.0.0":                             `allow_host "0.0.0.0": write a host name`,
		"allow_host bücher.example":                      `allow_host "bücher.example": write a host name`,
		"allow_origin *":                                 `allow_origin "*": this would let any web page in: name the origins`,
		"allow_origin null":                              `allow_origin "null": this would let any web page in`,
		"allow_origin app.example.com":                   `allow_origin "app.example.com": write scheme, host and port`,
		"allow_origin https://app.example.com/x":         `allow_origin "https://app.example.com/x": write scheme, host and port`,
		"allow_origin https://*.example.com":             `allow_origin "https://*.example.com": write scheme, host and port`,
		"require_header Host":                            "require_header Host: HTTP itself needs this field",
		"require_header X-Key {env.DEVICE_FLOW_NO_SUCH}": "require_header X-Key {env.DEVICE_FLOW_NO_SUCH} has no value: check that the file or variable exists",
		"require_header \"X Key\"":                       "require_header: write the name of a header field, as in Proxy-Authorization",
	} {
		config, err := adapt(t, site("device_flow https://a.example.com {\n"+login+setting+"\n}"))
		if err != nil {
			t.Fatal(err)
		}
		if err := provisioned(t, config); err == nil || !strings.Contains(err.Error(), ": "+want) {
			t.Errorf("%s: %v", setting, err)
		}
	}
}

func TestTheSecretOfAHeaderStaysOutOfTheConfiguration(t *testing.T) {
	t.Setenv("DEVICE_FLOW_TEST_KEY", "correct-horse")
	x := newRig(t, flowtest.Config{})
	config := x.config(t.Name(), "", "a", "device_flow {\n LOGIN\n require_header X-Proxy-Key {env.DEVICE_FLOW_TEST_KEY}\n}\nrespond \"{header.X-Proxy-Key}|{header.X-Other}\"")
	x.load(config)
	x.login("default")
	if got := x.get("http://a/", "X-Proxy-Key", "correct-horse", "X-Other", "o"); got.body != "|o" {
		t.Errorf("%d %s", got.status, got.body)
	}
	if got := x.get("http://a/"); got.status != 403 || !strings.Contains(got.body, "require_header") {
		t.Errorf("without it: %d %s", got.status, got.body)
	}
	if got := x.get("http://a/.device-flow"); got.status != 200 {
		t.Errorf("the page without it: %d %s", got.status, got.body)
	}
	if strings.Contains(config, "correct-horse") || len(logged(t.Name(), "correct-horse")) != 0 {
		t.Error("the secret is in the configuration or the log")
	}
}

func TestAProxyBlockWithoutAHandlerIsGuardedByItsTransport(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	x.load(x.config(t.Name(), "device_flow {\n LOGIN\n}\nservers {\n trusted_proxies_unix\n}", ":1@a", "@own host own.example.com\nreverse_proxy @own API {\n transport device_flow\n}\n"+
		"reverse_proxy API {\n transport device_flow\n}"))
	x.login("default")
	x.alias("a", "evil.example", "own.example.com")
	for _, c := range []struct {
		url    string
		header []string
		want   int
	}{
		{"http://a/", nil, 200},
		{"http://a/", []string{"Origin", "http://a", "X-Forwarded-For", "192.168.1.1"}, 200},
		{"http://own.example.com/", nil, 200},
		{"http://evil.example/", nil, 403},
		{"http://a/", []string{"Sec-Fetch-Site", "cross-site"}, 403},
		{"http://a/", []string{"Origin", "http://" + x.api}, 403}, // it is no origin of ours because the API has that name
		{"http://a/", []string{"X-Forwarded-For", "8.8.8.8"}, 403},
		{"http://a/", []string{"Connection", "Upgrade", "Upgrade", "h2c"}, 403},
		{"http://a/?access_token=x", nil, 400},
	} {
		before := x.as.Count(flowtest.API)
		got := x.get(c.url, c.header...)
		if reached := x.as.Count(flowtest.API) > before; got.status != c.want || reached != (c.want == 200) {
			t.Errorf("%s %q: %d %s, reached: %t", c.url, c.header, got.status, got.body, reached)
		}
	}
}

func TestAnErrorRouteGetsNoTokenForWhatWasRefused(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	x.load(x.config(t.Name(), "", "a", "device_flow API {\n LOGIN\n require_header X-Key\n}\nhandle_errors {\n reverse_proxy API {\n  transport device_flow\n }\n}"))
	x.login("default")
	if got := x.get("http://a/", "X-Key", ""); got.status != 200 {
		t.Errorf("a call: %d %s", got.status, got.body)
	}
	before := x.as.Count(flowtest.API)
	if got := x.get("http://a/"); got.status != 403 || !strings.Contains(got.body, "require_header") || x.as.Count(flowtest.API) != before {
		t.Errorf("a refused call: %d %s", got.status, got.body)
	}
}
