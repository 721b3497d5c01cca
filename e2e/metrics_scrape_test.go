package e2e

import (
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// scraped is what one scrape brings of our metrics.
type scraped struct {
	text   string
	types  map[string]string                     // of each metric
	values map[string]map[string]map[string]bool // of each label of each metric; a histogram's parts go by their own names, too
	series map[string]float64
}

var (
	sampleLine = regexp.MustCompile(`^(caddy_device_flow_\w+)(?:\{(.*)\})? (\S+)$`)
	labelPair  = regexp.MustCompile(`(\w+)="((?:[^"\\]|\\.)*)"`)
)

// scrape reads metrics at a URL, as Prometheus does.
func scrape(t *testing.T, url string) scraped {
	t.Helper()
	res := get(t, client(t), url, "")
	if res.status != http.StatusOK {
		t.Fatalf("GET %s: %d %s", url, res.status, res.body)
	}
	s := scraped{res.body, map[string]string{}, map[string]map[string]map[string]bool{}, map[string]float64{}}
	for line := range strings.Lines(res.body) {
		line = strings.TrimSuffix(line, "\n")
		if rest, ok := strings.CutPrefix(line, "# TYPE caddy_device_flow_"); ok {
			name, kind, _ := strings.Cut(rest, " ")
			s.types["caddy_device_flow_"+name] = kind
			continue
		}
		m := sampleLine.FindStringSubmatch(line)
		if m == nil {
			if strings.HasPrefix(line, "caddy_device_flow_") {
				t.Errorf("the scrape has a line that makes no sense: %s", line)
			}
			continue
		}
		value, err := strconv.ParseFloat(m[3], 64)
		if err != nil {
			t.Errorf("%s: %v", line, err)
		}
		s.series[strings.TrimSuffix(line, " "+m[3])] = value
		if s.values[m[1]] == nil {
			s.values[m[1]] = map[string]map[string]bool{}
		}
		for _, pair := range labelPair.FindAllStringSubmatch(m[2], -1) {
			if s.values[m[1]][pair[1]] == nil {
				s.values[m[1]][pair[1]] = map[string]bool{}
			}
			s.values[m[1]][pair[1]][pair[2]] = true
		}
	}
	return s
}

// of is the value of a counter of a session, by its outcome; a counter that is not there fails the test.
func (s scraped) of(t *testing.T, metric, session, outcome string) int {
	t.Helper()
	v, there := s.series[`caddy_device_flow_`+metric+`{outcome="`+outcome+`",session="`+session+`"}`]
	if !there {
		t.Errorf("there is no %s of %s with the outcome %s", metric, session, outcome)
	}
	return int(v)
}

// sum is that of all outcomes of a session.
func (s scraped) sum(metric, session string) (n int) {
	for series, v := range s.series {
		if strings.HasPrefix(series, "caddy_device_flow_"+metric+"{") && strings.Contains(series, `session="`+session+`"`) {
			n += int(v)
		}
	}
	return n
}
