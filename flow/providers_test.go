package flow

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestProviderResponses runs over a collection of responses of real servers, if
// it lies beside the project or DEVICEFLOW_PROVIDER_RESPONSES names it. The
// project's own fixtures are in the tests above this one.
func TestProviderResponses(t *testing.T) {
	name := os.Getenv("DEVICEFLOW_PROVIDER_RESPONSES")
	if name == "" {
		name = filepath.Join("..", "..", "shared", "provider-responses.json")
		if _, err := os.Stat(name); err != nil {
			return
		}
	}
	raw, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var all []struct {
		ID, Step, Expect string
		Status           int
		Headers          map[string]string
		Body             any
	}
	if err := json.Unmarshal(raw, &all); err != nil {
		t.Fatal(err)
	}
	kinds := map[string][]Kind{
		"pending": {KindPending}, "slow_down": {KindSlowDown}, "denied": {KindDenied}, "expired": {KindExpired},
		"transient": {KindTemporary}, "fatal": {KindConfiguration, KindExpired, KindDenied, KindDoubtful, KindReauthorize},
		"reregister": {KindConfiguration}, "reauth": {KindReauthorize},
	}
	right, excepted := 0, 0
	for _, r := range all {
		if r.Status == 0 {
			r.Status = 400
		}
		header := http.Header{"Content-Type": {"application/json"}}
		for k, v := range r.Headers {
			header.Set(k, v)
		}
		body, isText := r.Body.(string)
		if !isText {
			b, err := json.Marshal(r.Body)
			if err != nil {
				t.Fatal(err)
			}
			body = string(b)
		}
		op := opPoll
		switch {
		case r.Step == "device":
			op = opDevice
		case r.Step == "refresh" || r.Expect == "reauth":
			op = opRefresh
		}
		got, ok := kindOf(t, op, r.Status, header, body)
		want := kinds[r.Expect]
		good := ok
		if r.Expect == "unparseable" {
			good = !ok
		} else if want != nil {
			good = false
			for _, k := range want {
				good = good || !ok && got == k
			}
		}
		reason := exceptionFor(r.ID)
		switch {
		case good:
			right++
			if reason != "" {
				t.Errorf("%s is an exception no more", r.ID)
			}
		case reason != "":
			excepted++
			t.Logf("exception: %s (%s, not as %s): %s", r.ID, r.Step, r.Expect, reason)
		default:
			t.Errorf("%s: %s at %s: kind %d, ok %v", r.ID, r.Expect, op, got, ok)
		}
	}
	t.Logf("%d of %d responses are taken as expected, %d are explained exceptions", right, len(all), excepted)
}

func exceptionFor(id string) string {
	for prefix, reason := range exceptions {
		if strings.HasPrefix(id, prefix) {
			return reason
		}
	}
	return ""
}

// exceptions are answers that are taken otherwise, by the beginning of their ids.
var exceptions = map[string]string{
	"trakt-pending":              statusAlone,
	"trakt-slow_down":            statusAlone,
	"trakt-expired":              statusAlone,
	"trakt-denied":               statusAlone,
	"trakt-error":                statusAlone,
	"real-debrid-pending":        statusAlone,
	"vimeo-device":               "Vimeo has the client poll at another endpoint for each code, so this is another protocol",
	"node-oidc-provider-error-3": "a plain 500 is an outage to us, whatever the request was: with it ends no login and no token",
}

const statusAlone = "an empty body is temporary, never the end of a login; polling goes on, more slowly, to the code's own end, " +
	"and the server takes requests of its own kind besides (JSON, or GET)"
