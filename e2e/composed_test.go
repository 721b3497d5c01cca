package e2e

import (
	"net/http"
	"strings"
	"testing"
	"time"
)

// composed is one login behind each form that contract.md section 4 allows; the API sees the form in the path.
const composed = `
{
	device_flow acme {
		issuer {$ISSUER}
		client_id device
		scope offline_access
	}
}

http://:{$PORT} {
	bind 127.0.0.1

	handle_path /short/* {
		device_flow {$API} {
			session acme
			status_path off
		}
	}
	handle_path /transport/* {
		device_flow {
			session acme
			status_path off
		}
		reverse_proxy {$API} {
			transport device_flow acme
		}
	}
	handle_path /handler/* {
		device_flow {
			session acme
			status_path off
		}
		reverse_proxy {$API}
	}
	handle_path /unguarded/* {
		reverse_proxy {$API} {
			transport device_flow acme {
				dial_timeout 5s
			}
		}
	}
	handle {
		device_flow {$API} {
			session acme
		}
	}
}
`

// composedForms are the paths above.
var composedForms = []string{"short", "transport", "handler", "unguarded"}

// TestEveryFormAuthenticates sends calls through each form of one shared login: none without a token, and each with
// the one value, whatever the caller tries.
func TestEveryFormAuthenticates(t *testing.T) {
	parallel(t)
	as := startAS(t, time.Hour, byHand)
	a := startAPI(t, as.ValidToken)
	c := startCaddy(t, composed, as.Issuer(), a.URL)
	for _, form := range composedForms {
		res := get(t, client(t), c.url+"/"+form+"/early", "application/json")
		if res.status != 503 || res.header.Get("Retry-After") == "" || res.header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: a call without a login: %d %v", form, res.status, res.header)
		}
	}
	if got := len(a.requests()); got != 0 {
		t.Fatalf("the API was contacted %d times without a token", got)
	}
	_ = c.callForCode(t)
	as.ApproveAll()
	c.login(t)
	if got := as.Stats().DeviceRequests; got != 1 {
		t.Errorf("%d codes for one login", got)
	}
	if got := c.sessions(t); len(got) != 1 || got["acme"].State != "authorized" {
		t.Errorf("sessions: %+v, want acme alone, authorized", got)
	}

	const own = "Basic b3duOm93bg=="
	for _, form := range composedForms {
		for name, headers := range map[string]string{
			"plain":                "",
			"own":                  "Authorization: " + own + "\r\n",
			"proxy":                "Proxy-Authorization: " + own + "\r\n",
			"connection":           "Connection: Authorization\r\n",
			"connectionAmongOther": "Connection: keep-alive, aUTHORIZATION\r\nConnection: X-Own\r\nX-Own: 1\r\nAuthorization: " + own + "\r\n",
		} {
			t.Run(form+"/"+name, func(t *testing.T) {
				path := "/" + form + "-" + name // distinct for the API
				res := raw(t, c, "GET /"+form+path+" HTTP/1.1\r\nHost: 127.0.0.1\r\n"+headers+"\r\n")
				requireInjected(t, a, path, res)
				if r, err := received(a, path); err == nil && (len(r.header["Proxy-Authorization"]) > 0 || len(r.header["X-Own"]) > 0) {
					t.Errorf("the API received hop-by-hop fields: %v", r.header)
				}
			})
		}
		for name, headers := range map[string]string{
			"trailerAnnounced":   "Trailer: Authorization, X-Checksum\r\n",
			"trailerUnannounced": "Trailer: X-Checksum\r\n",
		} {
			t.Run(form+"/"+name, func(t *testing.T) {
				path := "/" + form + "-" + name
				res := raw(t, c, "POST /"+form+path+" HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n"+headers+
					"\r\n4\r\nbody\r\n0\r\nAuthorization: "+own+"\r\nX-Checksum: 1234\r\n\r\n")
				requireInjected(t, a, path, res)
				if r, err := received(a, path); err == nil && r.trailer.Get("X-Checksum") != "1234" {
					t.Errorf("the API did not receive the caller's other trailer: %v", r.trailer)
				}
			})
		}
	}
}

// TestTransportRepairsARefusedToken makes every token invalid behind the proxy's back: with the transport at the last
// hop the callers notice nothing.
func TestTransportRepairsARefusedToken(t *testing.T) {
	parallel(t)
	as := startAS(t, time.Hour)
	a := startAPI(t, as.ValidToken)
	c := startCaddy(t, composed, as.Issuer(), a.URL)
	c.login(t)
	as.ExpireAccessTokens()
	r, err := http.NewRequest(http.MethodPost, c.url+"/transport/upload", strings.NewReader("a body that is sent twice"))
	if err != nil {
		t.Fatal(err)
	}
	if res := do(t, client(t), r); res.status != 200 {
		t.Fatalf("a call with a token that the API refuses: %d %s", res.status, res.body)
	}
	if got := as.Stats().Refreshes; got != 1 {
		t.Errorf("%d refreshes, want 1", got)
	}
}

// TestTwoStatusPagesAtOnePlaceDoNotLoad refuses what would hide one login behind the other.
func TestTwoStatusPagesAtOnePlaceDoNotLoad(t *testing.T) {
	parallel(t)
	const two = `
http://:{$PORT} {
	bind 127.0.0.1
	device_flow /one/* {$API} {
		issuer {$ISSUER}
		client_id one
	}
	device_flow /two/* {$API} {
		issuer {$ISSUER}
		client_id two
		STATUS
	}
}
`
	c := newCaddy(t, strings.Replace(two, "STATUS", "", 1), "https://login.example.com", "http://127.0.0.1:9")
	out, err := c.run(t, "validate", "--config", c.file, "--adapter", "caddyfile")
	if err == nil {
		t.Fatalf("two status pages at one place are accepted:\n%s", out)
	}
	for _, want := range []string{"status_path", "/.device-flow", "default-2"} {
		if !strings.Contains(out, want) {
			t.Errorf("the message does not mention %q:\n%s", want, out)
		}
	}
	c.write(t, strings.Replace(two, "STATUS", "status_path /.device-flow-two", 1))
	if out, err := c.run(t, "validate", "--config", c.file, "--adapter", "caddyfile"); err != nil {
		t.Errorf("what the message says to write does not load: %v\n%s", err, out)
	}
}
