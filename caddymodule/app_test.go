package caddymodule

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

const proxy = "device_flow API {\n LOGIN\n}"

func TestACallStartsTheLoginAndLaterCallsAreAuthenticated(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	x.load(x.config(t.Name(), "", "a", proxy))

	got := x.get("http://a/things", "Accept", "application/json")
	var p problem
	if err := json.Unmarshal([]byte(got.body), &p); err != nil {
		t.Fatalf("%v: %s", err, got.body)
	}
	if got.status != http.StatusServiceUnavailable || p.State != flow.StatePending || p.UserCode == "" {
		t.Fatalf("the first call gets %d %+v", got.status, p)
	}
	if n := len(x.as.APIRequests()); n != 0 {
		t.Errorf("the API was asked %d times without a token", n)
	}
	if err := x.as.Approve(p.UserCode); err != nil {
		t.Fatal(err)
	}
	s := x.session("default")
	await(t, s.Session, flow.StateAuthorized)

	for range 3 {
		got = x.get("http://a/things", "Authorization", "Basic mine", "Proxy-Authorization", "Basic mine", "Authorization_", "mine")
		if got.status != http.StatusOK || !strings.Contains(got.body, "Alice Example") {
			t.Fatalf("after the login: %d %s", got.status, got.body)
		}
	}
	for _, r := range x.as.APIRequests() {
		want := "Bearer " + s.Current().Value().Reveal()
		if got := r.Header["Authorization"]; len(got) != 1 || got[0] != want {
			t.Errorf("the API got %d values of Authorization", len(got))
		}
		if r.Header["Proxy-Authorization"] != nil || r.Header["Authorization_"] != nil {
			t.Error("the API got the caller's own credentials")
		}
	}
	if st := x.as.Stats(); st.DeviceRequests != 1 || st.Logins != 1 {
		t.Errorf("%d device requests and %d logins, want one each", st.DeviceRequests, st.Logins)
	}
}

func TestValidateAsksNobodyAndWritesNothing(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	config := x.config(t.Name(), "device_flow eager {\n LOGIN\n login eager\n}", "a", proxy, "b", "device_flow {\n session eager\n}")
	if err := provisioned(t, config); err != nil {
		t.Fatal(err)
	}
	if n := len(x.as.Requests()); n != 0 {
		t.Errorf("%d requests to the authorization server", n)
	}
	if _, err := os.Stat(filepath.Join(x.dir, "storage")); !os.IsNotExist(err) {
		t.Errorf("the storage has been touched: %v", err)
	}
	if all := runningSessions(); len(all) != 0 {
		t.Errorf("%d sessions run", len(all))
	}
}

func TestAnEagerLoginStartsWithoutACall(t *testing.T) {
	x := newRig(t, flowtest.Config{AutoApprove: true})
	x.load(x.config(t.Name(), "device_flow {\n LOGIN\n login eager\n}"))
	await(t, x.session("default").Session, flow.StateAuthorized)
}

func TestTheLoginSurvivesARestart(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	config := x.config(t.Name(), "", "a", proxy)
	x.load(config)
	x.login("default")
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	x.load(config)
	if got := x.get("http://a/"); got.status != http.StatusOK {
		t.Errorf("after a restart: %d %s", got.status, got.body)
	}
	if n := x.as.Count(flowtest.Device); n != 1 {
		t.Errorf("%d device requests, want 1", n)
	}
}

func TestSettingsInASiteStayOneLoginWhenSitesAreMoved(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	x.load(x.config(t.Name(), "", "a", proxy))
	x.login("default")
	other := "device_flow API {\n issuer ISSUER\n client_id other\n}"
	x.load(x.config(t.Name(), "", "b", other, "a", proxy)) // the name is default-2 now
	if got := x.get("http://a/"); got.status != http.StatusOK {
		t.Errorf("under another name: %d %s", got.status, got.body)
	}
	if n := x.as.Count(flowtest.Device); n != 1 {
		t.Errorf("%d device requests, want 1", n)
	}
}

func TestALineEndIsNoPartOfASecret(t *testing.T) {
	c := &Client{ClientSecret: "{env.DEVICE_FLOW_TEST_SECRET}"}
	t.Setenv("DEVICE_FLOW_TEST_SECRET", " s3cret \r\n")
	if got, err := c.secret(t.Context()); err != nil || got.Reveal() != " s3cret " {
		t.Errorf("%q %v", got.Reveal(), err)
	}
	t.Setenv("DEVICE_FLOW_TEST_SECRET", "\n")
	if _, err := c.secret(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "client_secret is empty") {
		t.Errorf("nothing but a line end: %v", err)
	}
}

// S113 of the scorecard: one would get the other's token.
func TestOneNameWithTwoSettingsIsAnError(t *testing.T) {
	handler := func(client string) string {
		return `{"handler": "device_flow", "session": "acme", "client": {"issuer": "https://l.example.com", "client_id": "` + client + `"}}`
	}
	config := func(a, b string) string {
		return `{"apps": {"http": {"servers": {"x": {"listen": ["127.0.0.1:0"], "routes": [
			{"handle": [` + handler(a) + `]}, {"handle": [` + handler(b) + `]}]}}}}}`
	}
	if err := provisioned(t, config("a", "a")); err != nil {
		t.Errorf("the same twice: %v", err)
	}
	err := provisioned(t, config("a", "b"))
	if err == nil || !strings.Contains(err.Error(), "session acme is declared twice with different settings: give one of them another name") {
		t.Errorf("two settings: %v", err)
	}
}

func TestARequestBeforeTheStartWaitsForIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &session{name: "a", started: make(chan struct{})}
		began := time.Now()
		_, err := s.get(t.Context())
		if e, ok := err.(*flow.NotReadyError); !ok || e.Status.State != flow.StateUnavailable || time.Since(began) != startWait {
			t.Errorf("an app that does not start: %v after %v", err, time.Since(began))
		}

		got := make(chan *flow.Session)
		go func() {
			live, err := s.get(t.Context())
			if err != nil {
				t.Error(err)
			}
			got <- live
		}()
		synctest.Wait()
		select {
		case <-got:
			t.Fatal("it did not wait")
		default:
		}
		r := &running{Session: new(flow.Session)}
		s.live.Store(r)
		close(s.started)
		if live := <-got; live != r.Session {
			t.Error("it got another session")
		}
	})
}
