package caddymodule

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"html/template"
	"strconv"
	"strings"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow"
)

// frame is what a page of ours has around its contents, with a headline: the state
// of one session, or of all of them.
type frame struct {
	words *catalogue
	// Set by the page: prefix and query for links, its own address, the same for the
	// reload of a browser without JavaScript, that of the overview if there is one,
	// version of the assets, form token, and a line about the request itself.
	Base, Query, Page, ReloadPage, Up, Assets, Token, Notice string

	Session string // empty for "default", which says nothing to anybody
	State   flow.State
	Version string
	Tone    string
	Word    string // the state in a word or two
	Title   string
	Lead    string // what it means for the calls
	Who     string
	// Reload is after how many seconds a browser without JavaScript looks again.
	Reload int
}

// Lang is the language of the page.
func (f *frame) Lang() string { return f.words.tag }

// T is a sentence of the catalogue; see [catalogue.text].
func (f *frame) T(key string, fill ...string) string { return f.words.text(key, fill...) }

// Split is a sentence around an element; see [catalogue.split].
func (f *frame) Split(key, name string) []string { return f.words.split(key, name) }

// view is a status ready to be shown: every string in it is clean, bounded and
// worded. HTML, plain text and the callers' 503 are made of it.
type view struct {
	frame

	Trouble string // what went wrong
	Detail  string // the same in the server's words
	Next    string // the one next step
	At      *stamp // when it went wrong
	Retry   *stamp // when it is tried again
	Login   *loginView
	// Replaces is set where the code is for a login in place of the present one.
	Replaces bool
	Facts    []fact
	// Button is the label of the next step's form; Again offers the same form
	// where it is not the next step.
	Button, Again string
	// Confirm is set where a login would replace a token that works.
	Confirm bool
}

// loginView is a code that is out.
type loginView struct {
	Code, Spelled string
	Long          bool
	Link          link // where to enter the code
	Direct        link // the same with the code in it
	QR            template.HTML
	QRHost        string
	Left, Total   int // seconds
	LeftWords     string
	Clock         string
	Expires       stamp
}

// fact is a line about the login. Exactly one of Text, Time and List is set.
type fact struct {
	Label string
	Text  string
	Note  string
	Time  *stamp
	List  []string
}

// stamp is a time for machines and, without JavaScript, for people.
type stamp struct{ ISO, UTC string }

func newStamp(t time.Time) *stamp {
	t = t.UTC()
	return &stamp{t.Format(time.RFC3339), t.Format("2006-01-02 15:04 UTC")} // read the same way everywhere
}

// newView words st as of now, in English.
func newView(st flow.Status, now time.Time) *view { return english().view(st, now) }

// view words st as of now.
func (c *catalogue) view(st flow.Status, now time.Time) *view {
	v := &view{
		frame:   frame{words: c, State: st.State, Version: version(st), Tone: tones[st.State]},
		Confirm: st.Token != nil,
	}
	state := string(st.State)
	if st.State == flow.StateUnavailable && st.Error == nil {
		state, v.Tone = "starting", toneWait
	}
	v.Word, v.Title, v.Lead = c.maybe(state+".word"), c.maybe(state+".title"), c.maybe(state+".lead")
	v.Next = c.maybe(state + ".next")
	v.Who = clean(st.Account.Label(), maxText)
	if s := label(st); s != "default" {
		v.Session = s
	}
	if e := st.Error; e != nil {
		v.addError(st, e)
	}
	switch st.State {
	case flow.StateLoginRequired:
		v.Button = c.text("button.login")
		if st.Error != nil {
			v.Button = c.text("button.code")
			if st.Error.Action == flow.ActionRetry {
				v.Button = c.text("button.retry")
			}
		}
	case flow.StateUnavailable:
		v.Reload = 10
		if st.Error != nil {
			v.Again = c.text("button.again")
		}
	case flow.StateMisconfigured:
		if st.Error != nil && st.Error.Code == flow.CodeStorageSealed {
			v.Lead, v.Button = c.text("refusing"), c.text("button.again")
			v.Next = join(v.Next, c.text("next.aside"))
			break
		}
		if st.Token != nil {
			v.Lead = join(v.Lead, c.text("misconfigured.serving"))
			v.Again = c.text("button.try")
		} else {
			v.Lead = join(v.Lead, c.text("misconfigured.refusing"))
			v.Button = c.text("button.try")
		}
	case flow.StateAuthorized, flow.StateDegraded:
		v.Again = c.text("button.again")
		if st.Error != nil && st.Error.Action == flow.ActionReauthorize {
			v.Button, v.Again = c.text("button.code"), ""
		}
	}
	// A code can be out in any state: a new login replaces the present one only
	// when it is approved.
	if v.Login = c.login(st, now); v.Login != nil {
		v.Reload, v.Button, v.Again = 5, "", ""
		v.Replaces = st.State != flow.StatePending
	}
	v.addFacts(st)
	return v
}

// addError words what went wrong. Where nobody is logged in, that is the state's
// headline: "log in" alone would leave open why it has to be done again.
func (v *view) addError(st flow.Status, e *flow.StatusError) {
	w := v.words.explain(e)
	// The description mostly has the code in it; support needs both.
	v.Detail = clean(e.Description, maxText)
	if code := clean(e.Code, maxCode); !strings.Contains(v.Detail, code) {
		v.Detail = strings.TrimSuffix(code+": "+v.Detail, ": ")
	}
	v.At, v.Next = newStamp(e.At), v.words.nextStep(st, w)
	// Where nobody is logged in, or the settings are wrong, it is not the time
	// alone that brings the next try.
	if e.RetryAt != nil && e.Action == flow.ActionRetry && st.State != flow.StateLoginRequired {
		v.Retry = newStamp(*e.RetryAt)
	}
	if st.State != flow.StateLoginRequired {
		v.Trouble = w.Says
		return
	}
	v.Tone, v.Title = toneBad, w.Title
	v.Lead = join(w.Says, v.T("refusing"))
}

func (c *catalogue) login(st flow.Status, now time.Time) *loginView {
	if st.Login == nil {
		return nil
	}
	in := st.Login
	left := max(in.ExpiresAt.Sub(now), 0)
	l := &loginView{
		Code:      clean(in.UserCode, maxCode),
		Link:      newLink(in.VerificationURI),
		Left:      int(left / time.Second),
		LeftWords: c.duration(left),
		Expires:   *newStamp(in.ExpiresAt),
	}
	l.Clock = clock(l.Left)
	// How long the code was good for at first is not told. Where the state began
	// with it, that is known; else the bar starts full at what is left.
	l.Total = max(l.Left, 1)
	if st.State == flow.StatePending {
		l.Total = max(l.Total, int(in.ExpiresAt.Sub(st.Since)/time.Second))
	}
	l.Spelled = c.spell(l.Code)
	l.Long = len([]rune(l.Code)) > 11
	// The direct address counts only if it can be followed: nobody types it.
	if d := newLink(in.VerificationURIComplete); d.Href != "" && d.Href != l.Link.Href {
		l.Direct = d
	}
	return l
}

// draw adds the QR code, which only a page shows: it is not for every call that is
// turned away.
func (v *view) draw(st flow.Status) {
	svg, ok := v.words.loginQR(st.Login)
	if v.Login == nil || !ok {
		return
	}
	v.Login.QR = template.HTML(svg) //nolint:gosec // drawn by us: numbers, and words that are escaped
	v.Login.QRHost = v.Login.Link.Host
	if v.Login.Direct.Host != "" {
		v.Login.QRHost = v.Login.Direct.Host
	}
}

// addFacts lists who is connected, since when, until when, with which permissions.
func (v *view) addFacts(st flow.Status) {
	if st.State == flow.StatePending || st.State == flow.StateLoginRequired {
		return
	}
	if a := st.Account; a != nil {
		f := fact{Label: v.T("fact.account"), Text: v.Who}
		if e := clean(a.Email, maxText); e != v.Who {
			f.Note = e
		}
		if f.Text != "" {
			v.Facts = append(v.Facts, f)
		}
		if i := newLink(a.Issuer); i.Text != "" {
			v.Facts = append(v.Facts, fact{Label: v.T("fact.server"), Text: i.Text})
		}
	}
	if st.State == flow.StateAuthorized {
		v.Facts = append(v.Facts, fact{Label: v.T("fact.connected"), Time: newStamp(st.Since)})
	} else if st.Token != nil || st.Account != nil { // alone, it would not say since what
		v.Facts = append(v.Facts, fact{Label: v.T("fact.since"), Time: newStamp(st.Since)})
	}
	t := st.Token
	if t == nil {
		return
	}
	switch {
	case t.ExpiresAt == nil:
		v.Facts = append(v.Facts, fact{Label: v.T("fact.valid"), Text: v.T("fact.endless")})
	case t.Refreshable:
		f := fact{Label: v.T("fact.until"), Time: newStamp(*t.ExpiresAt)}
		if st.State == flow.StateAuthorized {
			f.Note = v.T("fact.renewed")
		}
		v.Facts = append(v.Facts, f)
	default:
		f := fact{Label: v.T("fact.until"), Time: newStamp(*t.ExpiresAt), Note: v.T("fact.final")}
		if st.Error != nil && st.Error.Action == flow.ActionReauthorize {
			f.Note = v.T("fact.ended") // there was something to renew it with
		}
		v.Facts = append(v.Facts, f)
	}
	var scopes []string
	for _, s := range t.Scope {
		if s = clean(s, maxText); s != "" && len(scopes) < 100 {
			scopes = append(scopes, s)
		}
	}
	if scopes != nil {
		v.Facts = append(v.Facts, fact{Label: v.T("fact.scope"), List: scopes})
	}
}

// clock is a time left as on a kitchen timer.
func clock(seconds int) string {
	two := func(n int) string {
		if n < 10 {
			return "0" + strconv.Itoa(n)
		}
		return strconv.Itoa(n)
	}
	if h := seconds / 3600; h > 0 {
		return strconv.Itoa(h) + ":" + two(seconds/60%60) + ":" + two(seconds%60)
	}
	return strconv.Itoa(seconds/60) + ":" + two(seconds%60)
}

// version tells one view of a status from another, so that the script replaces
// what it shows only when there is something new.
func version(st flow.Status) string {
	data, err := json.Marshal(st)
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:8])
}
