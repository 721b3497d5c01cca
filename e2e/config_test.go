package e2e

import (
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"
)

// TestValidateTouchesNothing runs the commands that only read a configuration: they ask the authorization server
// nothing, write no file, and need neither server nor storage.
func TestValidateTouchesNothing(t *testing.T) {
	parallel(t)
	var hits atomic.Int64
	as := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { hits.Add(1) }))
	defer as.Close()

	for name, config := range map[string]string{
		"short form": site("device", "offline_access"),
		"composed form, eager": `
{
	device_flow acme {
		issuer {$ISSUER}
		client_id device
		login eager
	}
}
http://:{$PORT} {
	bind 127.0.0.1
	device_flow {$API} {
		session acme
	}
}
http://:{$PORT2} {
	bind 127.0.0.1
	device_flow {
		session acme
	}
	reverse_proxy {$API} {
		transport device_flow acme
	}
}
`,
	} {
		t.Run(name, func(t *testing.T) {
			c := newCaddy(t, config, as.URL, as.URL)
			before := listing(t, c.home)
			for _, command := range []string{"adapt", "validate"} {
				if out, err := c.run(t, command, "--config", c.file, "--adapter", "caddyfile"); err != nil {
					t.Errorf("caddy %s: %v\n%s", command, err, out)
				}
			}
			if out, err := c.run(t, "list-modules"); err != nil {
				t.Errorf("caddy list-modules: %v\n%s", err, out)
			}
			if after := listing(t, c.home); after != before {
				t.Errorf("files before:\n%s\nand after:\n%s", before, after)
			}
			if got := hits.Load(); got != 0 {
				t.Errorf("the authorization server was asked %d times", got)
			}
		})
	}
}

// TestExampleCaddyfileIsClean holds the file that people copy to what it teaches.
func TestExampleCaddyfileIsClean(t *testing.T) {
	parallel(t)
	example, err := os.ReadFile(filepath.Join("..", "Caddyfile.example"))
	if err != nil {
		t.Fatal(err)
	}
	c := newCaddy(t, string(example), "", "")
	before := listing(t, c.home)
	for _, args := range [][]string{
		{"fmt", "--diff", c.file},
		{"adapt", "--config", c.file, "--adapter", "caddyfile"},
		{"validate", "--config", c.file, "--adapter", "caddyfile"},
	} {
		if out, err := c.run(t, args...); err != nil {
			t.Errorf("caddy %s: %v\n%s", args[0], err, out)
		}
	}
	if after := listing(t, c.home); after != before {
		t.Errorf("files before:\n%s\nand after:\n%s", before, after)
	}
}

// TestUnreachableAuthorizationServerStopsNothing starts Caddy where the authorization server refuses connections and
// where it accepts them and says nothing: the other site serves, and the guarded one says what is the matter.
func TestUnreachableAuthorizationServerStopsNothing(t *testing.T) {
	parallel(t)
	silent, err := net.Listen("tcp", "127.0.0.1:0") // the kernel accepts; nobody answers
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = silent.Close() }) // after the parallel subtests
	for name, issuer := range map[string]string{
		"refuses": "http://127.0.0.1:" + freePort(t),
		"silent":  "http://" + silent.Addr().String(),
	} {
		for _, login := range []string{"on_demand", "eager"} {
			t.Run(name+"_"+login, func(t *testing.T) {
				t.Parallel()
				a := startAPI(t, func(string) bool { return true })
				began := time.Now()
				c := startCaddy(t, `
http://:{$PORT} {
	bind 127.0.0.1
	device_flow {$API} {
		issuer {$ISSUER}
		client_id device
		login `+login+`
	}
}
http://:{$PORT2} {
	bind 127.0.0.1
	respond "other site"
}
`, issuer, a.URL)
				if res := get(t, client(t), "http://127.0.0.1:"+c.port2, ""); res.status != 200 || res.body != "other site" {
					t.Fatalf("the other site: %d %s", res.status, res.body)
				}
				if took := time.Since(began); took > 20*time.Second {
					t.Errorf("Caddy took %v to serve", took)
				}
				if p := c.problem(t); p.UserCode != "" || p.State == "pending" {
					t.Errorf("without an authorization server the caller is told %+v", p)
				}
				if got := len(a.requests()); got != 0 {
					t.Errorf("the API was contacted %d times without a token", got)
				}
			})
		}
	}
}
