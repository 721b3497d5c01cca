package caddymodule

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// apis are those of a server with several, all at one address: each request
// names the one that it means.
var apis = flowtest.Config{
	AllowedAudiences: []string{"https://own.example", "https://a.example", "https://b.example", "https://c.example"},
}

const ownAPI = "device_flow acme {\n LOGIN\n audience https://own.example\n}"

// audience is what the token of the last request was issued for.
func (x *rig) audience(r flowtest.APIRequest) string {
	_, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	info, ok := x.as.Inspect(token)
	if !ok || len(r.Header["Authorization"]) != 1 {
		return "none"
	}
	return strings.Join(info.Audience, " ")
}

// One login, and each site its own API, in all forms that there are.
func TestSitesGetTheTokensThatTheyAskFor(t *testing.T) {
	x := newRig(t, apis)
	sites := map[string]struct{ config, audience string }{
		"own":       {"device_flow API {\n session acme\n}", "https://own.example"},
		"short":     {"device_flow API {\n session acme\n audience https://a.example\n}", "https://a.example"},
		"resource":  {"device_flow API {\n session acme\n resource https://b.example\n}", "https://b.example"},
		"alone":     {"reverse_proxy API {\n transport device_flow acme {\n  audience https://a.example\n }\n}", "https://a.example"},
		"before":    {"device_flow {\n session acme\n audience https://b.example\n}\nreverse_proxy API", "https://b.example"},
		"both":      {"device_flow {\n session acme\n audience https://c.example\n}\nreverse_proxy API {\n transport device_flow acme\n}", "https://c.example"},
		"byrequest": {"device_flow API {\n session acme\n audience https://{http.request.header.X-Api}.example\n}", "https://c.example"},
	}
	var list []string
	for name, site := range sites {
		list = append(list, name, site.config)
	}
	x.load(x.config(t.Name(), ownAPI, list...))
	x.login("acme")
	var all sync.WaitGroup
	for i := range 1000 {
		for name, site := range sites {
			if i%len(sites) != len(name)%len(sites) {
				continue
			}
			all.Go(func() {
				got := x.get("http://"+name+"/"+name, "X-Api", "c", "Authorization", "Bearer of-the-caller")
				if got.status != http.StatusOK || !strings.Contains(got.body, `"`+site.audience+`"`) {
					t.Errorf("%s: %d %s", name, got.status, got.body)
				}
			})
		}
		if i%50 == 0 {
			all.Wait()
		}
	}
	all.Wait()
	calls := x.as.APIRequests()
	for _, r := range calls {
		if got, want := x.audience(r), sites[r.URL[1:]].audience; got != want {
			t.Fatalf("site %s: a token for %s, want one for %s", r.URL, got, want)
		}
	}
	if len(calls) < 1000 {
		t.Errorf("%d calls", len(calls))
	}
	if st := x.as.Stats(); st.Refreshes != 4 || st.Reuses != 0 || st.Logins != 1 {
		t.Errorf("%d calls: %+v, want one exchange for each audience and resource", len(calls), st)
	}
}

func TestAReloadKeepsTheTokensOfAllAudiences(t *testing.T) {
	x := newRig(t, apis)
	site := "device_flow API {\n session acme\n audience https://a.example\n}"
	x.load(x.config(t.Name(), ownAPI, "a", site))
	x.login("acme")
	x.get("http://a/")
	x.load(x.config(t.Name(), ownAPI, "a", site, "b", strings.ReplaceAll(site, "//a.", "//b.")))
	for site, audience := range map[string]string{"a": "https://a.example", "b": "https://b.example"} {
		if got := x.get("http://" + site + "/"); !strings.Contains(got.body, `"`+audience+`"`) {
			t.Errorf("%d %s", got.status, got.body)
		}
	}
	if n := x.as.Stats().Refreshes; n != 2 {
		t.Errorf("%d exchanges for two APIs", n)
	}
}

// The call of a site that is set up for an API that the server refuses says so;
// the others go on.
func TestAnAudienceThatTheServerRefusesIsNamed(t *testing.T) {
	x := newRig(t, apis)
	x.load(x.config(t.Name(), ownAPI,
		"bad", "device_flow API {\n session acme\n audience https://unknown.example\n}",
		"last", "reverse_proxy API {\n transport device_flow acme {\n  audience https://unknown.example\n }\n}",
		"good", "device_flow API {\n session acme\n}"))
	x.login("acme")
	for _, site := range []string{"bad", "last", "bad"} {
		got := x.get("http://" + site + "/")
		if got.status != http.StatusServiceUnavailable || got.header.Get("Retry-After") == "" ||
			!strings.Contains(got.body, "https://unknown.example") || !strings.Contains(got.body, `"misconfigured"`) {
			t.Errorf("%d %v %s", got.status, got.header, got.body)
		}
	}
	if n := x.as.Count(flowtest.Refresh); n != 1 {
		t.Errorf("asked %d times", n)
	}
	if got := x.get("http://good/"); got.status != http.StatusOK {
		t.Errorf("%d %s", got.status, got.body)
	}
	if lines := logged(t.Name(), "https://unknown.example", `"level":"warn"`); len(lines) != 1 {
		t.Errorf("log: %q", lines)
	}
}

// A request that does not say which API it means gets no token at all.
func TestARequestWithoutAnAudienceGetsNoToken(t *testing.T) {
	x := newRig(t, apis)
	x.load(x.config(t.Name(), ownAPI,
		"short", "device_flow API {\n session acme\n resource {http.request.header.X-Api}\n}",
		"last", "reverse_proxy API {\n transport device_flow acme {\n  resource {http.request.header.X-Api}\n }\n}"))
	x.login("acme")
	for _, site := range []string{"short", "last"} {
		for _, value := range []string{"", " ", "no-uri", "https://a.example/#x"} {
			if got := x.get("http://"+site+"/", "X-Api", value); got.status != http.StatusBadRequest {
				t.Errorf("%s with %q: %d %s", site, value, got.status, got.body)
			}
		}
		if got := x.get("http://"+site+"/", "X-Api", "https://a.example"); got.status != http.StatusOK {
			t.Errorf("%d %s", got.status, got.body)
		}
	}
	if n := len(x.as.APIRequests()); n != 2 {
		t.Errorf("the API was asked %d times", n)
	}
}

func TestFaultyTargetsAreRefusedAtStart(t *testing.T) {
	for name, c := range map[string]struct{ site, want string }{
		"a resource without a scheme": {"device_flow API {\n session acme\n resource api.example\n}", "absolute URI"},
		"an unset variable":           {"device_flow API {\n session acme\n audience {env.DEVICE_FLOW_TEST_UNSET}\n}", "audience"},
		"in the transport":            {"reverse_proxy API {\n transport device_flow acme {\n  resource x#y\n }\n}", "absolute URI"},
	} {
		t.Run(name, func(t *testing.T) {
			x := newRig(t, apis)
			err := caddy.Load([]byte(x.config(t.Name(), ownAPI, "a", c.site)), true)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestARefusedTokenOfAnAudienceIsRepaired(t *testing.T) {
	x := newRig(t, apis)
	x.load(x.config(t.Name(), ownAPI, "a", "device_flow API {\n session acme\n audience https://a.example\n}",
		"own", "device_flow API {\n session acme\n}"))
	s := x.login("acme")
	x.get("http://a/")
	own := s.Current()
	x.as.ExpireAccessTokens()
	if got := x.get("http://a/"); got.status != http.StatusOK {
		t.Fatalf("%d %s", got.status, got.body)
	}
	if s.Current() != own {
		t.Error("the token of the session was replaced, too")
	}
	var seen []string
	for _, r := range x.as.APIRequests() {
		seen = append(seen, fmt.Sprint(r.Status, " ", x.audience(r)))
	}
	if want := []string{"200 https://a.example", "401 https://a.example", "200 https://a.example"}; !slices.Equal(seen, want) {
		t.Errorf("%q, want %q", seen, want)
	}
}
