package caddymodule

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow"
)

// overview is the state of all sessions at one glance, worst first. Each links to
// its own page, which is the same one with the session's name in the query.
type overview struct {
	frame
	Rows []overviewRow
}

// Many reports whether the rows have to be close together.
func (o *overview) Many() bool { return len(o.Rows) > 12 }

// overviewRow is one session of it.
type overviewRow struct {
	Name, Link, Tone, Word, More, Who string
	// Until is when the token or the code runs out, in the sentence UntilKey.
	Until    *stamp
	UntilKey string
}

// unknownSession is the error about a name that no session has.
type unknownSession struct{ name string }

func (e unknownSession) Error() string { return "there is no session " + e.name }

// newOverview serves the overview of all sessions below path.
func newOverview(path string, all func() []watcher) *page {
	p := newPage(path, func(r *http.Request) (watcher, error) {
		name := r.URL.Query().Get(sessionQuery)
		for _, s := range all() {
			if s.Status().Session == name {
				return s, nil
			}
		}
		return nil, unknownSession{name}
	})
	p.all = all
	return p
}

// label is what people call a session among others: by what it was made for, or by
// its name.
func label(st flow.Status) string {
	if key := clean(st.Key, maxCode); key != "" {
		return key
	}
	return clean(st.Session, maxCode)
}

// sessionLink is the query that leads from the overview to a session.
func sessionLink(name string) string { return "?" + sessionQuery + "=" + url.QueryEscape(name) }

// overview answers what names no session. It starts no login: whoever looks at all
// of them does not mean each.
func (p *page) overview(w http.ResponseWriter, r *http.Request, route string) {
	if route == "events" {
		p.allEvents(w, r)
		return
	}
	all := []flow.Status{}
	for _, s := range p.all() {
		if route == "healthz" {
			s.Rouse()
		}
		all = append(all, s.Status())
	}
	switch route {
	case "healthz":
		p.allHealth(w, r, all)
	case "qr.svg", "login":
		p.refuse(w, r, http.StatusNotFound, "no-such-session", "name", `""`)
	default:
		switch pageType(w, r) {
		case typeJSON:
			p.json(w, r, all)
		case typeHTML:
			v := languageOf(r).overview(all, time.Now())
			p.render(w, r, http.StatusOK, "overview", &v.frame, v)
		default:
			reply(w, r, http.StatusOK, typePlain+"; charset=utf-8", []byte(english().overview(all, time.Now()).plain()))
		}
	}
}

// serves reports whether calls are answered. healthy is what probes are told, and a
// misconfigured session is not, although it serves while its token lasts.
func serves(st flow.Status) bool  { return st.Token != nil || st.State.Usable() }
func healthy(st flow.Status) bool { return st.State.Usable() }

// allHealth is well if each session is; it names those that are not. Where each device
// has a session of its own, one that serves is enough, and there may be none yet: a
// device that nobody has logged in to must not have the others' proxy restarted.
func (p *page) allHealth(w http.ResponseWriter, r *http.Request, all []flow.Status) {
	if p.byKey && (len(all) == 0 || slices.ContainsFunc(all, healthy)) {
		reply(w, r, http.StatusOK, typePlain+"; charset=utf-8", []byte(flow.StateAuthorized+"\n"))
		return
	}
	var ill []string
	for _, st := range all {
		if !healthy(st) {
			ill = append(ill, label(st)+" "+string(st.State))
		}
	}
	code, body := http.StatusOK, string(flow.StateAuthorized)
	switch {
	case len(all) == 0:
		code, body = http.StatusServiceUnavailable, "no session is configured"
	case ill != nil:
		code, body = http.StatusServiceUnavailable, strings.Join(ill, "\n")
	}
	reply(w, r, code, typePlain+"; charset=utf-8", []byte(body+"\n"))
}

// byNeed are the states that need somebody most first. Those that serve calls come
// after all that do not.
var byNeed = []flow.State{
	flow.StateMisconfigured, flow.StateLoginRequired, flow.StatePending, flow.StateUnavailable, flow.StateDegraded, flow.StateAuthorized,
}

func rank(st flow.Status) int {
	n := slices.Index(byNeed, st.State)
	if serves(st) {
		n += len(byNeed)
	}
	return n
}

// overview words the states of all sessions as of now.
func (c *catalogue) overview(all []flow.Status, now time.Time) *overview {
	all = slices.Clone(all)
	slices.SortStableFunc(all, func(a, b flow.Status) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), strings.Compare(label(a), label(b)), strings.Compare(a.Session, b.Session))
	})
	o := &overview{frame: frame{words: c, Reload: 10}}
	seen := sha256.New()
	working, troubled := 0, false
	for _, st := range all {
		v := c.view(st, now)
		row := overviewRow{Name: label(st), Link: sessionLink(st.Session), Tone: v.Tone, Word: v.Word, Who: v.Who}
		if row.More = v.Trouble; st.State == flow.StateLoginRequired && st.Error != nil {
			row.More = v.Title
		}
		switch {
		case st.Token != nil && st.Token.ExpiresAt != nil:
			row.Until, row.UntilKey = newStamp(*st.Token.ExpiresAt), "overview.until"
		case st.Login != nil:
			row.Until, row.UntilKey = newStamp(st.Login.ExpiresAt), "overview.code_until"
		}
		o.Rows = append(o.Rows, row)
		seen.Write([]byte(v.Version))
		if serves(st) {
			working++
		}
		troubled = troubled || st.State != flow.StateAuthorized
	}
	o.Version = hex.EncodeToString(seen.Sum(nil)[:8])
	say := "overview.good"
	o.Tone = toneGood
	switch {
	case len(all) == 0:
		o.Tone, say = toneIdle, "overview.none"
	case working < len(all):
		o.Tone, say = o.Rows[0].Tone, "overview.bad"
		if o.Tone == toneIdle { // "not connected" is no calmer than a code that is out
			o.Tone = toneWarn
		}
	case troubled:
		o.Tone, say = toneWarn, "overview.warn"
	}
	o.State = flow.State(say) // the script says it aloud when that changes
	o.Word, o.Lead = c.text(say+"_word"), c.text(say)
	o.Title = c.text("overview.count", "n", count(working), "total", count(len(all)))
	if len(all) == 0 {
		o.Title = c.text("overview.none_title")
	}
	return o
}

// plain is the overview for curl and a serial console.
func (o *overview) plain() string {
	var b strings.Builder
	b.WriteString(o.Title + "\n\n" + o.Lead + "\n")
	width := 0
	for _, row := range o.Rows {
		width = max(width, len(row.Name))
	}
	for i, row := range o.Rows {
		if i == 0 {
			b.WriteByte('\n')
		}
		b.WriteString(row.Name + strings.Repeat(" ", width-len(row.Name)+2) + row.Word)
		for _, more := range []string{row.More, row.Who} {
			if more != "" {
				b.WriteString(", " + more)
			}
		}
		if row.Until != nil {
			b.WriteString(", " + o.T(row.UntilKey, "time", row.Until.UTC))
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// mostWatched is how many sessions a stream of all tells about: a select takes 65536
// channels.
const mostWatched = 60000

// allEvents streams the status of each session, and again at each change the one
// that has changed. When one comes or goes the stream ends: the viewer is back at
// once, and hears of all.
func (p *page) allEvents(w http.ResponseWriter, r *http.Request) {
	out, tick, leave := p.stream(w, r)
	if out == nil {
		return
	}
	defer leave()
	// A select over as many channels as there are sessions costs no goroutine each.
	const first = 3
	wait := []reflect.SelectCase{
		{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(r.Context().Done())},
		{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(p.done)},
		{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(tick)},
	}
	all := p.all()
	tell := func(i int) (reflect.SelectCase, error) {
		st, changed := all[i].Watch()
		return reflect.SelectCase{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(changed)}, out.status(st)
	}
	for i := range min(len(all), mostWatched) {
		c, err := tell(i)
		if err != nil {
			return
		}
		wait = append(wait, c)
	}
	for {
		i, _, _ := reflect.Select(wait)
		var err error
		switch {
		case i < 2:
			return
		case i == 2:
			if !slices.Equal(p.all(), all) {
				return
			}
			err = out.alive()
		default:
			wait[i], err = tell(i - first)
		}
		if err != nil {
			return
		}
	}
}
