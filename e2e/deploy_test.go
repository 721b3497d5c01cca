package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// debian is the package that the tests of deploy/ need.
const debian = "Debian's package prometheus has it"

// promtool runs Prometheus's own checker in deploy/prometheus.
func promtool(t *testing.T, args ...string) (string, error) {
	t.Helper()
	if _, err := exec.LookPath("promtool"); err != nil {
		missing(t, "promtool is not here: %s", debian)
	}
	cmd := exec.Command("promtool", args...)
	cmd.Dir = "../deploy/prometheus"
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// TestAlertsFireWhenTheyShouldAndNotOtherwise has promtool play the stories of rules_test.yml.
func TestAlertsFireWhenTheyShouldAndNotOtherwise(t *testing.T) {
	parallel(t)
	for _, args := range [][]string{
		{"check", "rules", "rules.yml"}, {"test", "rules", "rules_test.yml"}, {"check", "config", "prometheus.yml"},
	} {
		if out, err := promtool(t, args...); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	rules, stories := exampleFile(t, "deploy/prometheus/rules.yml"), exampleFile(t, "deploy/prometheus/rules_test.yml")
	alerts := alertsOf(rules)
	if len(alerts) < 9 {
		t.Fatalf("only %d alerts are found: %q", len(alerts), alerts)
	}
	for _, name := range alerts {
		all := strings.Split(stories, "alertname: "+name+"\n")[1:]
		quiet := 0
		for _, after := range all {
			if strings.HasPrefix(after, "        exp_alerts: []") {
				quiet++
			}
		}
		if quiet == 0 || quiet == len(all) {
			t.Errorf("%s: %d stories, %d of them quiet: there have to be both", name, len(all), quiet)
		}
		rule, _, _ := strings.Cut(strings.SplitAfter(rules, "alert: "+name+"\n")[1], "- alert:")
		for _, part := range []string{"severity:", "for:", "summary: \"Session {{ $labels.session }}: ", "description: >-", "Next step: "} {
			if !strings.Contains(rule, part) {
				t.Errorf("%s lacks %q", name, part)
			}
		}
	}
}

var alertName = regexp.MustCompile(`(?m)^\s+- alert: (\w+)$`)

// alertsOf lists the alerts of a rules file.
func alertsOf(rules string) (names []string) {
	for _, m := range alertName.FindAllStringSubmatch(rules, -1) {
		names = append(names, m[1])
	}
	return names
}

// dashboard is a Grafana dashboard, as far as the tests read it.
type dashboard struct {
	Title      string `json:"title"`
	Templating struct {
		List []struct {
			Name string `json:"name"`
			Type string `json:"type"`
		} `json:"list"`
	} `json:"templating"`
	Panels []struct {
		ID         int    `json:"id"`
		Title      string `json:"title"`
		Datasource struct {
			UID string `json:"uid"`
		} `json:"datasource"`
		GridPos struct{ X, Y, W, H int } `json:"gridPos"`
		Targets []struct {
			Expr         string `json:"expr"`
			LegendFormat string `json:"legendFormat"`
		} `json:"targets"`
	} `json:"panels"`
}

// readDashboard reads and checks what needs no Prometheus.
func readDashboard(t *testing.T) (d dashboard) {
	t.Helper()
	if err := json.Unmarshal([]byte(exampleFile(t, "deploy/grafana/device-flow.json")), &d); err != nil {
		t.Fatal(err)
	}
	variables := map[string]string{}
	for _, v := range d.Templating.List {
		variables[v.Name] = v.Type
	}
	if variables["datasource"] != "datasource" || variables["session"] != "query" {
		t.Errorf("the variables are %v", variables)
	}
	ids := map[int]string{}
	for i, p := range d.Panels {
		if other := ids[p.ID]; other != "" || p.Title == "" || p.Datasource.UID != "${datasource}" || len(p.Targets) == 0 {
			t.Errorf("panel %d, %q: its id is that of %q, or it lacks a title, the data source or a query", p.ID, p.Title, other)
		}
		ids[p.ID] = p.Title
		if g := p.GridPos; g.W <= 0 || g.H <= 0 || g.X+g.W > 24 {
			t.Errorf("%s lies beside the grid: %+v", p.Title, g)
		}
		for _, q := range d.Panels[:i] {
			a, b := p.GridPos, q.GridPos
			if a.X < b.X+b.W && b.X < a.X+a.W && a.Y < b.Y+b.H && b.Y < a.Y+a.H {
				t.Errorf("%s lies on %s", p.Title, q.Title)
			}
		}
	}
	return d
}

// grafana does what Grafana does to a query before it sends it: all sessions, and a range.
var grafana = strings.NewReplacer("$__rate_interval", "1m", "$session", ".*")

// startMonitored starts the Caddy of deploy/prometheus/Caddyfile.
func startMonitored(t *testing.T) *caddy {
	t.Helper()
	as := startAS(t, time.Hour)
	a := startAPI(t, as.ValidToken)
	return startCaddy(t, ownProxy(t, exampleFile(t, "deploy/prometheus/Caddyfile"), "http://:9180", "http://:{$PORT2}"), as.Issuer(), a.URL)
}

var (
	selector  = regexp.MustCompile(`(caddy_device_flow_\w+)(?:\{([^}]*)\})?`)
	matcher   = regexp.MustCompile(`(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"`)
	labelList = regexp.MustCompile(`\b(?:by|without|ignoring|on) \(([^)]*)\)`)
)

// TestWhatRulesAndDashboardNameIsThere compares the names in deploy/ with the metrics of a running Caddy: a rule about
// a metric that has been renamed would be silent for ever.
func TestWhatRulesAndDashboardNameIsThere(t *testing.T) {
	parallel(t)
	c := startMonitored(t)
	c.login(t)
	real := scrape(t, c.url2+"/metrics")
	if admin := scrape(t, c.admin+"/metrics"); len(admin.series) != len(real.series) {
		t.Errorf("the admin API has %d series, the port of its own %d", len(admin.series), len(real.series))
	}
	foreign := []string{"job", "instance", "cluster"} // Prometheus's own and the reader's
	labels := slices.Clone(foreign)
	for _, all := range real.values {
		labels = slices.AppendSeq(labels, maps.Keys(all))
	}
	d := readDashboard(t)
	queries := ""
	for _, p := range d.Panels {
		for _, target := range p.Targets {
			queries += target.Expr + "\n"
		}
	}
	for place, text := range map[string]string{
		"rules.yml": exampleFile(t, "deploy/prometheus/rules.yml"), "rules_test.yml": exampleFile(t, "deploy/prometheus/rules_test.yml"),
		"device-flow.json": queries,
	} {
		found := 0
		for _, m := range selector.FindAllStringSubmatch(text, -1) {
			all, there := real.values[m[1]]
			if !there {
				t.Errorf("%s: there is no metric %s", place, m[1])
				continue
			}
			for _, pair := range matcher.FindAllStringSubmatch(m[2], -1) {
				label, values := pair[1], pair[2]
				if slices.Contains(foreign, label) {
					continue
				}
				if all[label] == nil {
					t.Errorf("%s: %s has no label %s", place, m[1], label)
				}
				if label == "session" {
					continue
				}
				for value := range strings.SplitSeq(values, "|") {
					found++
					if !all[label][value] {
						t.Errorf("%s: %s is never %s=%q", place, m[1], label, value)
					}
				}
			}
		}
		for _, m := range labelList.FindAllStringSubmatch(text, -1) {
			for label := range strings.SplitSeq(m[1], ",") {
				if label = strings.TrimSpace(label); !slices.Contains(labels, label) {
					t.Errorf("%s: no metric has the label %s", place, label)
				}
			}
		}
		if found == 0 {
			t.Errorf("%s: nothing is found to compare", place)
		}
	}
	for name := range real.types {
		if !strings.Contains(queries, name) {
			t.Errorf("the dashboard does not show %s", name)
		}
	}
}

// TestPrometheusFollowsALogin has a real Prometheus with the configuration of deploy/ watch a real Caddy: the rules are
// evaluated, and each query of the dashboard is answered.
func TestPrometheusFollowsALogin(t *testing.T) {
	parallel(t)
	binary, err := exec.LookPath("prometheus")
	if err != nil {
		missing(t, "prometheus is not here: %s", debian)
	}
	d := readDashboard(t)
	c := startMonitored(t)
	home, port := newHome(t), freePort(t)
	for name, text := range map[string]string{
		"rules.yml": exampleFile(t, "deploy/prometheus/rules.yml"),
		"prometheus.yml": adapted(t, exampleFile(t, "deploy/prometheus/prometheus.yml"),
			"interval: 30s", "interval: 250ms", "127.0.0.1:9180", "127.0.0.1:"+c.port2),
	} {
		if err := os.WriteFile(filepath.Join(home, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(binary, "--config.file=prometheus.yml", "--storage.tsdb.path=data", "--web.listen-address=127.0.0.1:"+port, "--log.level=warn")
	cmd.Dir, cmd.Env = home, environment(home)
	startProcess(t, cmd)
	prometheus := "http://127.0.0.1:" + port
	eventually(t, patience, "Prometheus answers", func() bool { return listening("127.0.0.1:" + port) })

	// ask asks Prometheus's API; what it says is in into, and whether there is an answer yet, the result.
	ask := func(path string, into any) bool {
		t.Helper()
		res := get(t, client(t), prometheus+path, "")
		if res.status == http.StatusServiceUnavailable { // it is starting
			return false
		}
		var answer struct{ Data json.RawMessage }
		if err := json.Unmarshal([]byte(res.body), &answer); err != nil || res.status != http.StatusOK {
			t.Fatalf("%s: %d %s", path, res.status, res.body)
		}
		if err := json.Unmarshal(answer.Data, into); err != nil {
			t.Fatalf("%s: %v\n%s", path, err, res.body)
		}
		return true
	}
	// rule is the state of an alert.
	rule := func(name string) (state string, healthy bool) {
		var rules struct {
			Groups []struct {
				Rules []struct{ Name, Health, State, LastError string }
			}
		}
		if !ask("/api/v1/rules", &rules) {
			return "", false
		}
		healthy = true
		for _, g := range rules.Groups {
			for _, r := range g.Rules {
				if r.Health == "err" {
					t.Fatalf("%s: %s", r.Name, r.LastError)
				}
				healthy = healthy && r.Health == "ok"
				if r.Name == name {
					state = r.State
				}
			}
		}
		return state, healthy
	}
	eventually(t, patience, "each rule is evaluated, and the need for a login noticed", func() bool {
		state, healthy := rule("DeviceFlowLoginNeeded")
		return healthy && state == "pending"
	})
	c.login(t)
	eventually(t, patience, "the alert is gone after the login", func() bool {
		state, healthy := rule("DeviceFlowLoginNeeded")
		return healthy && state == "inactive"
	})
	if res := c.ask(t, http.MethodPost, "/device_flow/sessions/default/refresh"); res.status != http.StatusOK {
		t.Fatalf("refresh: %d %s", res.status, res.body)
	}
	asked := 0
	for _, p := range d.Panels {
		for _, target := range p.Targets {
			asked++
			var result struct {
				Result []struct {
					Metric map[string]string
					Value  [2]any
				}
			}
			eventually(t, patience, "an answer to "+target.Expr, func() bool {
				return ask("/api/v1/query?query="+url.QueryEscape(grafana.Replace(target.Expr)), &result) && len(result.Result) > 0
			})
			for _, m := range regexp.MustCompile(`\{\{(\w+)\}\}`).FindAllStringSubmatch(target.LegendFormat, -1) {
				if result.Result[0].Metric[m[1]] == "" {
					t.Errorf("%s: the legend names %s, the answer has %v", p.Title, m[1], result.Result[0].Metric)
				}
			}
			if p.Title == "Now" || p.Title == "States" {
				if got := fmt.Sprint(result.Result[0].Value[1]); got != "1" {
					t.Errorf("%s is %s, want 1 for authorized", p.Title, got)
				}
			}
		}
	}
	t.Logf("%d queries of %d panels are answered", asked, len(d.Panels))
}
