package caddymodule

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/caddyserver/caddy/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/deviceflow/caddy-deviceflow/flow"
)

// The values of the label outcome. With the names of sessions they are all that
// a label can be: nothing that a caller sends, and nothing that a server sends.
const (
	// Of logins and refreshes.
	outcomeSuccess       = "success"
	outcomeTemporary     = "temporary"     // network, 5xx, 429: tried again
	outcomeConfiguration = "configuration" // the server refuses the client, the scope or the grant
	// Of logins.
	outcomeAdopted = "adopted" // somebody logged in at another instance on the same storage
	outcomeDenied  = "denied"  // by a person or a policy
	outcomeExpired = "expired" // nobody approved the code in time
	// Of refreshes.
	outcomeDoubtful    = "doubtful"    // a refusal that may not be final: tried again
	outcomeReauthorize = "reauthorize" // the login has ended, a person has to log in
	// Of requests and replays.
	outcomeServed       = "served"       // the API has answered, and not with 401
	outcomeUnauthorized = "unauthorized" // the API has answered 401
	outcomeFailed       = "failed"       // the API was tried and gave no answer
	// Of requests.
	outcomeRefused  = "refused"  // by the guard, the API was not contacted
	outcomeNoToken  = "no_token" // answered 503, the API was not contacted
	outcomeCanceled = "canceled" // the caller left before there was an answer
)

// What can come of a login, and of a refresh.
var (
	loginOutcomes   = []string{outcomeSuccess, outcomeAdopted, outcomeDenied, outcomeExpired, outcomeTemporary, outcomeConfiguration}
	refreshOutcomes = []string{outcomeSuccess, outcomeTemporary, outcomeDoubtful, outcomeReauthorize, outcomeConfiguration}
)

// states are the values of the label state.
var states = []flow.State{
	flow.StateLoginRequired, flow.StatePending, flow.StateAuthorized,
	flow.StateDegraded, flow.StateUnavailable, flow.StateMisconfigured,
}

// collector is all metrics of this process. There is one: Caddy makes a new
// registry for each configuration, and counters have to survive that. What a
// session is like now is read when somebody asks, so that a session that has
// ended leaves nothing behind.
type collector struct {
	logins, refreshes, requests, replays, storageFailures *prometheus.CounterVec

	refreshDuration prometheus.Histogram
	state, expiry   *prometheus.Desc
}

var metrics = newCollector()

func newCollector() *collector {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "caddy", Subsystem: "device_flow", Name: name, Help: help,
		}, append([]string{"session"}, labels...))
	}
	return &collector{
		logins: counter("logins_total", "Logins that ended, by outcome: success; adopted (at another instance on the same storage); "+
			"denied; expired (nobody approved the code in time); temporary (no code to be had for now); configuration (the authorization server refuses the client).", "outcome"),
		refreshes: counter("refreshes_total", "Refreshes of the access token, by outcome: success; temporary and doubtful (tried again); "+
			"reauthorize (the login has ended, a person has to log in); configuration (the authorization server refuses the client).", "outcome"),
		requests: counter("requests_total", "Requests, by outcome: served (the API has answered); unauthorized (the API has answered 401); "+
			"refused (by the guard, for the status page of a session, too); no_token (answered 503, the API was not contacted); canceled (the caller left); failed (no answer from the API; each attempt counts).", "outcome"),
		replays: counter("replays_total", "Requests that were repeated with a new token after a 401 of the API, by what the repetition brought: served, unauthorized, failed.", "outcome"),
		storageFailures: counter("storage_failures_total", "How often the storage of the login began to fail. "+
			"While it fails, the session is degraded and its login would not survive a restart."),
		refreshDuration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: "caddy", Subsystem: "device_flow", Name: "refresh_duration_seconds",
			Help:    "How long the authorization server took to answer a refresh, or to fail to.",
			Buckets: []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}),
		state: prometheus.NewDesc("caddy_device_flow_session_state",
			"1 for the state that the session is in, 0 for the others; with session_key, how many sessions of that name are in it. Calls are served in authorized and degraded, and in misconfigured while a token lasts.",
			[]string{"session", "state"}, nil),
		expiry: prometheus.NewDesc("caddy_device_flow_token_expiry_timestamp_seconds",
			"When the access token in use expires, in Unix time; it is refreshed long before. With session_key, the first of all. Absent without a usable token, and for a token without a lifetime.",
			[]string{"session"}, nil),
	}
}

// registerMetrics adds the metrics to the registry of a configuration. More than
// one module may ask for it.
func registerMetrics(ctx caddy.Context) error {
	registry := ctx.GetMetricsRegistry()
	if registry == nil {
		return nil
	}
	err := registry.Register(metrics)
	if already := (prometheus.AlreadyRegisteredError{}); errors.As(err, &already) {
		return nil
	}
	return err
}

// Describe implements prometheus.Collector.
func (m *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range m.parts() {
		c.Describe(ch)
	}
	ch <- m.state
	ch <- m.expiry
}

// Collect implements prometheus.Collector.
func (m *collector) Collect(ch chan<- prometheus.Metric) {
	if begun.Load() == 0 {
		return // this Caddy has the modules and does not use them
	}
	for _, c := range m.parts() {
		c.Collect(ch)
	}
	// During a reload there may be two of a name for a moment; the newer counts.
	now := make(map[string]flow.Status)
	for _, r := range runningSessions() {
		st := r.Status()
		now[st.Session] = st
	}
	inState := make(map[string]map[flow.State]float64)
	expiry := make(map[string]float64)
	for name, st := range now {
		name = baseName(name)
		if inState[name] == nil {
			inState[name] = make(map[flow.State]float64)
		}
		inState[name][st.State]++
		if t := st.Token; t != nil && t.ExpiresAt != nil {
			at := float64(t.ExpiresAt.Unix())
			if first, some := expiry[name]; !some || at < first {
				expiry[name] = at
			}
		}
	}
	for name, of := range inState {
		for _, s := range states {
			ch <- prometheus.MustNewConstMetric(m.state, prometheus.GaugeValue, of[s], name, string(s))
		}
	}
	for name, at := range expiry {
		ch <- prometheus.MustNewConstMetric(m.expiry, prometheus.GaugeValue, at, name)
	}
}

func (m *collector) parts() []prometheus.Collector {
	return []prometheus.Collector{m.logins, m.refreshes, m.requests, m.replays, m.storageFailures, m.refreshDuration}
}

// observe counts what a session tells.
func (m *collector) observe(e flow.Event) {
	name := baseName(e.Status.Session) // keys come from callers, and are no labels
	switch e.Kind {
	case flow.EventLoginSucceeded:
		outcome := outcomeSuccess
		if e.Adopted {
			outcome = outcomeAdopted
		}
		m.logins.WithLabelValues(name, outcome).Inc()
	case flow.EventLoginFailed:
		m.logins.WithLabelValues(name, outcomeOf(e.Err, loginOutcomes)).Inc()
	case flow.EventTokenRefreshed:
		m.refreshes.WithLabelValues(name, outcomeSuccess).Inc()
		m.refreshDuration.Observe(e.Took.Seconds())
	case flow.EventRefreshFailed:
		m.refreshes.WithLabelValues(name, outcomeOf(e.Err, refreshOutcomes)).Inc()
		m.refreshDuration.Observe(e.Took.Seconds())
	case flow.EventStoreFailed:
		m.storageFailures.WithLabelValues(name).Inc()
	}
}

// kinds are the words for what ends a login or refresh; any other kind passes.
var kinds = map[flow.Kind]string{
	flow.KindDenied:        outcomeDenied,
	flow.KindExpired:       outcomeExpired,
	flow.KindDoubtful:      outcomeDoubtful,
	flow.KindReauthorize:   outcomeReauthorize,
	flow.KindConfiguration: outcomeConfiguration,
}

// outcomeOf is the kind of an error in a word, one of those that are possible.
func outcomeOf(err error, possible []string) string {
	var e *flow.Error
	if errors.As(err, &e) && slices.Contains(possible, kinds[e.Kind]) {
		return kinds[e.Kind]
	}
	return outcomeTemporary
}

// tally counts the requests of one session. A request costs one atomic addition.
type tally struct {
	served, unauthorized, noToken, canceled, failed prometheus.Counter

	replayed func(status int) // as flow.Transport wants it, made once
	key      string           // of a request's variables, see announce
}

// tallies are those of keyed sessions, by the name they share.
var tallies sync.Map

// tallyOf is the tally of a session that begins to run.
func tallyOf(session string) *tally {
	base := baseName(session)
	if base == session {
		return newTally(session)
	}
	t, ok := tallies.Load(base)
	if !ok {
		t, _ = tallies.LoadOrStore(base, newTally(base))
	}
	return t.(*tally)
}

// newTally makes all series of a session, so that each is there from the start:
// the first of a kind would not show as an increase otherwise.
func newTally(session string) *tally {
	for _, o := range loginOutcomes {
		metrics.logins.WithLabelValues(session, o)
	}
	for _, o := range refreshOutcomes {
		metrics.refreshes.WithLabelValues(session, o)
	}
	metrics.storageFailures.WithLabelValues(session)
	metrics.requests.WithLabelValues(session, outcomeRefused) // counted where there may be no session yet
	requests := func(outcome string) prometheus.Counter { return metrics.requests.WithLabelValues(session, outcome) }
	replays := func(outcome string) prometheus.Counter { return metrics.replays.WithLabelValues(session, outcome) }
	served, unauthorized, failed := replays(outcomeServed), replays(outcomeUnauthorized), replays(outcomeFailed)
	return &tally{
		served: requests(outcomeServed), unauthorized: requests(outcomeUnauthorized), noToken: requests(outcomeNoToken),
		canceled: requests(outcomeCanceled), failed: requests(outcomeFailed),
		replayed: func(status int) {
			switch status {
			case 0:
				failed.Inc()
			case http.StatusUnauthorized:
				unauthorized.Inc()
			default:
				served.Inc()
			}
		},
		key: "device_flow." + session + ".uncounted",
	}
}

// refused counts a request for which there was no token, or not in time.
func (t *tally) refused(err error) {
	if _, ok := errors.AsType[*flow.NotReadyError](err); ok {
		t.noToken.Inc()
	} else {
		t.canceled.Inc()
	}
}

// answered counts a request that the API has answered.
func (t *tally) answered(status int) {
	if status == http.StatusUnauthorized {
		t.unauthorized.Inc()
	} else {
		t.served.Inc()
	}
}

// unanswered counts a request that has come to nothing.
func (t *tally) unanswered(ctx context.Context, err error) {
	var notReady *flow.NotReadyError
	if ctx.Err() != nil || errors.As(err, &notReady) {
		t.refused(err)
	} else {
		t.failed.Inc()
	}
}

// A handler that puts the token on a request cannot know whether the transport
// comes next, which counts as well and knows more. So the handler announces the
// request in its variables, and counts it afterwards if nobody else has.

func (t *tally) announce(vars map[string]any) {
	if vars != nil {
		vars[t.key] = new(atomic.Bool)
	}
}

// claim takes an announcement back and reports whether it was there still. It
// leaves the map alone: once a proxy has begun, a connection that is still being
// dialed reads there, even when the call is over.
func (t *tally) claim(vars map[string]any) bool {
	claimed, _ := vars[t.key].(*atomic.Bool)
	return claimed != nil && claimed.CompareAndSwap(false, true)
}

var _ prometheus.Collector = (*collector)(nil)
