package flowtest_test

import (
	"net"
	"net/http"
	"net/url"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

func TestListenersServeAndLeaveNothing(t *testing.T) {
	for _, tc := range []struct {
		name   string
		start  func(*flowtest.Server) (string, error)
		prefix string
	}{
		{"plain", (*flowtest.Server).Start, "http://127.0.0.1:"},
		{"TLS", (*flowtest.Server).StartTLS, "https://127.0.0.1:"},
		{"by name", func(s *flowtest.Server) (string, error) { return s.Listen("localhost:0") }, "http://localhost:"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			as := flowtest.New(flowtest.Config{})
			defer as.Close()
			base, err := tc.start(as)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(base, tc.prefix) || as.Issuer() != base {
				t.Errorf("URL %q, issuer %q", base, as.Issuer())
			}
			hc := as.Client()
			c := newClient(t, as, hc, flowtest.RFC)
			d := c.start()
			if !strings.HasPrefix(d.str("verification_uri"), base+"/device") {
				t.Errorf("verification_uri %q", d.str("verification_uri"))
			}
			if tc.name == "TLS" {
				if resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Get(base); err == nil {
					_ = resp.Body.Close()
					t.Error("a client that does not know the certificate trusts it")
				}
			}

			as.ScriptAlways(flowtest.Device, flowtest.Response{Drop: true})
			if a, err := c.do(c.request(http.MethodPost, c.device, c.form())); err == nil {
				t.Errorf("a dropped request was answered %d", a.status)
			}
			as.ScriptAlways(flowtest.Device, flowtest.Response{Hang: true})
			arrived := as.Count(flowtest.Device)
			failed := make(chan error)
			go func() {
				_, err := c.do(c.request(http.MethodPost, c.device, c.form()))
				failed <- err
			}()
			for as.Count(flowtest.Device) == arrived {
				runtime.Gosched()
			}
			as.Close()
			if err := <-failed; err == nil {
				t.Error("a hanging request was answered")
			}
			hc.CloseIdleConnections()
			// A goroutine that has reported its end still has its last instructions to run.
			for deadline := time.Now().Add(10 * time.Second); strings.Contains(stacks(), "flowtest.(*Server)"); runtime.Gosched() {
				if time.Now().After(deadline) {
					t.Fatalf("left behind:\n%s", stacks())
				}
			}
			u, err := url.Parse(base)
			if err != nil {
				t.Fatal(err)
			}
			if conn, err := net.Dial("tcp", u.Host); err == nil {
				_ = conn.Close()
				t.Error("still listening")
			}
		})
	}
}

func TestConfiguredIssuerStays(t *testing.T) {
	as := flowtest.New(flowtest.Config{Issuer: "https://as.example/"})
	defer as.Close()
	if _, err := as.Start(); err != nil {
		t.Fatal(err)
	}
	if as.Issuer() != "https://as.example/" {
		t.Errorf("issuer %q", as.Issuer())
	}
}

func TestListeningWhereOneCannot(t *testing.T) {
	as := flowtest.New(flowtest.Config{})
	defer as.Close()
	for _, addr := range []string{"", "localhost", "256.0.0.1:1"} {
		if u, err := as.Listen(addr); err == nil {
			t.Errorf("listening on %q at %s", addr, u)
		}
	}
}

func stacks() string {
	buf := make([]byte, 1<<20)
	return string(buf[:runtime.Stack(buf, true)])
}
