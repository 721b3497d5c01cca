package flow

import (
	"encoding/json"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
)

// TestProviderResponses runs over a collection of responses of real servers, if
// DEVICEFLOW_PROVIDER_RESPONSES names the file.
func TestProviderResponses(t *testing.T) {
	name := os.Getenv("DEVICEFLOW_PROVIDER_RESPONSES")
	if name == "" {
		return // the project's own fixtures are above
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
		uncovered := slices.ContainsFunc(uncoveredResponses, func(prefix string) bool { return strings.HasPrefix(r.ID, prefix) })
		if good == uncovered {
			t.Errorf("%s: %s at %s: kind %d, ok %v; covered: %v", r.ID, r.Expect, op, got, ok, !uncovered)
		}
	}
}

// uncoveredResponses are of servers that would need a decoder of their own. To
// the generic one they are no answer, or an error of an unknown name.
var uncoveredResponses = []string{
	"meta-facebook-pending", "meta-facebook-slow_down", "meta-facebook-expired", "meta-facebook-denied", // sub-codes in an object
	"huawei-hms-pending", "huawei-hms-denied", "huawei-hms-expired", // numbers
	"trakt-pending", "trakt-slow_down", "trakt-expired", "trakt-denied", "trakt-error", "real-debrid-pending", // the status alone
	"vimeo-device",               // another endpoint for each code
	"node-oidc-provider-error-3", // a plain 500, which is an outage to us
}
