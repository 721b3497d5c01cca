package caddymodule

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// S50 and S51 of the scorecard: whatever a site says about its requests, in answers, error pages, templates and logs, it
// does not say the token.
func TestASiteThatEchoesItsRequestsEchoesNoToken(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := gone.Addr().String()
	_ = gone.Close()

	const echo = `"[{http.request.header.Authorization}{http.request.header}{header.Authorization}{http.request.orig_header.Authorization}` +
		`{http.reverse_proxy.header.Authorization}{http.vars.authorization}{http.error.message}]"`
	const handleResponse = " header_up X-Sent {http.request.header.Authorization}\n header_down X-Echo " + echo + "\n"
	const hop = " transport device_flow\n"
	bodies := map[string]string{ // by site
		"answered": handleResponse + " @ok status 200\n handle_response @ok {\n  header X-Echo " + echo + "\n  respond " + echo + "\n }\n",
		"copied": handleResponse + " handle_response {\n  header X-Echo " + echo + "\n  copy_response_headers {\n   include Authorization X-Api\n  }\n" +
			"  copy_response 203\n }\n",
		"rendered": handleResponse,
		"failed":   handleResponse,
		"bare":     " header_down X-Echo " + echo + "\n", // the proxy makes no copy of the header for header_up
	}
	var sites []string
	add := func(name, inside string) {
		sites = append(sites, name, "log\nlog_append echo "+echo+"\nheader +X-Echo "+echo+"\nroute {\n templates {\n  mime text/plain\n }\n "+inside+
			"\n}\nhandle_errors {\n header X-Echo "+echo+"\n respond "+echo+"\n}")
	}
	for name, body := range bodies {
		to := "API"
		if name == "failed" {
			to = nobody
		}
		add(name+"-short", "device_flow "+to+" {\n"+body+"}")
		add(name+"-alone", "reverse_proxy "+to+" {\n"+hop+body+"}")
		add(name+"-composed", "device_flow\nreverse_proxy "+to+" {\n"+hop+body+"}")
	}
	// Without our transport, the next handler has the token in its request; placeholders still have the caller's.
	add("handler", "device_flow\nrespond "+echo)

	x.load(x.config(t.Name(), global+"\n servers {\n  log_credentials\n  trace\n }\n", sites...))
	token := x.login("default").Current().Value().Reveal()
	const page = `{{placeholder "http.request.header.Authorization"}} {{placeholder "http.reverse_proxy.header.Authorization"}} ` +
		`{{.Req.Header.Get "Authorization"}} {{.Req.Header}}`
	for i := 0; i < len(sites); i += 2 {
		x.as.Script(flowtest.API, flowtest.Response{Body: page, Header: http.Header{"X-Api": {"1"}, "Content-Type": {"text/plain"}}})
		got := x.get("http://"+sites[i]+"/", "X-Mine", "caller's", "Authorization", "Basic mine")
		text := fmt.Sprint(got.status, got.header, got.body)
		if strings.Contains(text, token) {
			t.Errorf("%s echoes the token: %s", sites[i], strings.ReplaceAll(text, token, "TOKEN"))
		}
		if !strings.Contains(text, "Basic mine") {
			t.Errorf("%s echoes nothing at all: %s", sites[i], text)
		}
		for _, r := range x.as.APIRequests() {
			if strings.Contains(r.Header.Get("X-Sent"), token) {
				t.Errorf("%s sends the token twice", sites[i])
			}
		}
	}
	if n := len(x.as.APIRequests()); n != 12 {
		t.Errorf("the API got %d requests, want 12", n)
	}
	// The log is as full as it can be, or its silence would prove nothing.
	for _, want := range []string{"upstream roundtrip", "handled request", "Basic mine", `"echo":`, "log.trace"} {
		if len(logged(t.Name(), want)) == 0 {
			t.Errorf("the log has no %s", want)
		}
	}
	for _, line := range logged(t.Name(), token) {
		t.Errorf("the token is in the log: %s", strings.ReplaceAll(line, token, "TOKEN"))
	}
}
