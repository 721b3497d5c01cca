package e2e

import (
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// table reads the cells of a table of docs/monitoring.md by its first column's heading.
func table(t *testing.T, heading string) (rows [][]string) {
	t.Helper()
	_, rest, found := strings.Cut(exampleFile(t, "docs/monitoring.md"), "\n| "+heading+" |")
	if !found {
		t.Fatalf("docs/monitoring.md has no table of %s", heading)
	}
	for n, line := range strings.Split(rest, "\n") {
		if n < 2 { // the other headings, and the line below
			continue
		}
		if !strings.HasPrefix(line, "|") {
			break
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		rows = append(rows, cells)
	}
	return rows
}

var quotedWord = regexp.MustCompile("`([^`]+)`")

// wordsOf are the words in backquotes.
func wordsOf(cell string) (all []string) {
	for _, m := range quotedWord.FindAllStringSubmatch(cell, -1) {
		all = append(all, m[1])
	}
	return all
}

// column is the first word in backquotes of each row, sorted.
func column(rows [][]string, n int) (all []string) {
	for _, row := range rows {
		all = append(all, strings.Trim(row[n], "`"))
	}
	slices.Sort(all)
	return all
}

// TestDocumentedMetricsAreTheRealOnes compares each name, type, label and value.
func TestDocumentedMetricsAreTheRealOnes(t *testing.T) {
	parallel(t)
	c := startMonitored(t)
	c.login(t)
	real := scrape(t, c.url2+"/metrics")
	rows := table(t, "metric")
	if got, want := column(rows, 0), slices.Sorted(maps.Keys(real.types)); !slices.Equal(got, want) {
		t.Errorf("documented are\n%q\nthere are\n%q", got, want)
	}
	for _, row := range rows {
		name := strings.Trim(row[0], "`")
		if real.types[name] != row[1] {
			t.Errorf("%s is documented as a %s, it is a %s", name, row[1], real.types[name])
		}
		labels, values, _ := strings.Cut(row[2], ":")
		got, want := wordsOf(labels), slices.Sorted(maps.Keys(real.values[name]))
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("%s is documented with the labels %q, it has %q", name, got, want)
		}
		for _, label := range want {
			if label == "session" {
				continue
			}
			got, want := wordsOf(values), slices.Sorted(maps.Keys(real.values[name][label]))
			if slices.Sort(got); !slices.Equal(got, want) {
				t.Errorf("%s is documented with %s %q, it has %q", name, label, got, want)
			}
		}
	}
}

// TestDocumentedAlertsAreTheRealOnes, with what they are and how long they wait.
func TestDocumentedAlertsAreTheRealOnes(t *testing.T) {
	parallel(t)
	rules := exampleFile(t, "deploy/prometheus/rules.yml")
	rows, alerts := table(t, "alert"), alertsOf(rules)
	slices.Sort(alerts)
	if got := column(rows, 0); !slices.Equal(got, alerts) {
		t.Errorf("documented are\n%q\nthere are\n%q", got, alerts)
	}
	for _, row := range rows {
		rule, _, _ := strings.Cut(strings.SplitAfter(rules, "alert: "+strings.Trim(row[0], "`")+"\n")[1], "- alert:")
		if !strings.Contains(rule, "severity: "+row[1]+"\n") || !strings.Contains(rule, "for: "+row[2]+"\n") {
			t.Errorf("%s is documented as %s after %s", row[0], row[1], row[2])
		}
	}
}

// TestDocumentedEventsAreTheRealOnes has a session go through all of them.
func TestDocumentedEventsAreTheRealOnes(t *testing.T) {
	parallel(t, notifyBinary)
	as := startAS(t, time.Hour, byHand)
	a := startAPI(t, as.ValidToken)
	// Notices are told side by side: each is to be one write.
	const collector = `#!/bin/sh
notice=$(cat) && printf '%s\n' "$notice" >>events
`
	const collect = "{\n\tevents {\n\t\ton * notify ./collect.sh\n\t}\n}\n"
	c := newCaddy(t, collect+site("device", "openid profile offline_access")+
		strings.ReplaceAll(perDevice("device", "openid profile offline_access", ""), "{$PORT}", "{$PORT2}"), as.Issuer(), a.URL)
	binary, err := notifyBinary()
	if err != nil {
		t.Fatal(err)
	}
	c.binary = binary
	if err := os.WriteFile(filepath.Join(c.home, "collect.sh"), []byte(collector), 0o700); err != nil {
		t.Fatal(err)
	}
	c.start(t)
	order := func(verb string) {
		t.Helper()
		_ = c.ask(t, http.MethodPost, "/device_flow/sessions/default/"+verb) // some are to fail
	}
	as.Script(flowtest.Device, flowtest.ErrorResponse(http.StatusServiceUnavailable, "temporarily_unavailable"))
	order("login")
	if err := as.Deny(c.callForCode(t).UserCode); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, "the login has failed", func() bool { return c.sessions(t)["default"].State == "login_required" })
	order("login")
	as.ApproveAll()
	c.login(t)
	order("refresh")
	as.Script(flowtest.Refresh, flowtest.ErrorResponse(http.StatusServiceUnavailable, "temporarily_unavailable"))
	order("refresh")
	order("logout")
	every(t, 100*time.Millisecond, patience, "a device has a code", func() bool {
		r, err := http.NewRequest(http.MethodGet, c.url2+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-Device-Id", "scanner")
		return strings.Contains(do(t, client(t), r).body, "user_code")
	})
	c.stop(t, syscall.SIGTERM) // whatever is told, has been told then

	text, err := os.ReadFile(filepath.Join(c.home, "events"))
	if err != nil {
		t.Fatal(err)
	}
	seen, keys := map[string]bool{}, map[string]bool{}
	rows := table(t, "data")
	for line := range strings.Lines(string(text)) {
		data := notice(t, line)
		seen[data["event"]] = true
		delete(data, "event") // the example's own
		delete(data, "text")
		for key := range data {
			keys[key] = true
		}
		for _, row := range rows {
			if key := strings.Trim(row[0], "`"); row[2] == "always" && data[key] == "" {
				t.Errorf("there is not always %s: %s", key, line)
			}
		}
	}
	if got, want := column(table(t, "event"), 0), slices.Sorted(maps.Keys(seen)); !slices.Equal(got, want) {
		t.Errorf("documented are\n%q\nthere are\n%q", got, want)
	}
	if got, want := column(rows, 0), slices.Sorted(maps.Keys(keys)); !slices.Equal(got, want) {
		t.Errorf("documented are\n%q\nthere are\n%q", got, want)
	}
	for _, row := range rows {
		if want := "`{event.data." + strings.Trim(row[0], "`") + "}`"; row[1] != want {
			t.Errorf("the placeholder is documented as %s, want %s", row[1], want)
		}
	}
}

// TestDocumentedProbesKnowWaitingFromDead asks what Kubernetes would ask in every state that a session can be in.
func TestDocumentedProbesKnowWaitingFromDead(t *testing.T) {
	parallel(t)
	const probes = "livenessProbe:\n  tcpSocket:\n    port: 8080\nreadinessProbe:\n  httpGet:\n    path: /.device-flow/healthz\n    port: 8080\n"
	const healthz = "/.device-flow/healthz"
	if !strings.Contains(exampleFile(t, "docs/monitoring.md"), probes) || !strings.Contains(exampleFile(t, "Dockerfile"), healthz) {
		t.Fatal("these are not the documented probes")
	}
	as := startAS(t, 10*time.Second, byHand)
	a := startAPI(t, as.ValidToken)
	c := startCaddy(t, site("device", "offline_access"), as.Issuer(), a.URL)
	asked := map[string]bool{}
	probe := func(state string, ready bool) {
		t.Helper()
		hc := client(t)
		var health reply
		every(t, 20*time.Millisecond, patience, "the state "+state, func() bool {
			health = get(t, hc, c.url+healthz, "*/*")
			return strings.TrimSpace(health.body) == state
		})
		if (health.status == http.StatusOK) != ready {
			t.Errorf("%s: the readiness probe gets %d", state, health.status)
		}
		if !listening("127.0.0.1:" + c.port) {
			t.Errorf("%s: the liveness probe finds nobody", state)
		}
		asked[state] = true
	}
	login := func() { _ = c.ask(t, http.MethodPost, "/device_flow/sessions/default/login") }
	for range 20 {
		probe("login_required", false)
	}
	if got := as.Stats().DeviceRequests; got != 0 {
		t.Errorf("the probes have asked for %d codes", got)
	}
	as.Script(flowtest.Device, flowtest.ErrorResponse(http.StatusUnauthorized, "invalid_client"))
	login()
	probe("misconfigured", false)
	login()
	probe("pending", false)
	as.ApproveAll()
	probe("authorized", true)
	down(as)
	_ = c.ask(t, http.MethodPost, "/device_flow/sessions/default/refresh") // at its own time, little of the token is left
	probe("degraded", true)
	probe("unavailable", false)
	for _, row := range table(t, "metric") {
		if states := len(wordsOf(row[2])) - 2; strings.Contains(row[0], "session_state") && states != len(asked) {
			t.Errorf("%d states were tried, there are %d", len(asked), states)
		}
	}
}
