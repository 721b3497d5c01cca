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

// view is a status ready to be shown: every string in it is clean, bounded and
// worded. HTML, plain text and the callers' 503 are made of it.
type view struct {
	// Set by the page: prefix and address for links, version of the assets, form
	// token, and a line about the request itself.
	Base, Page, Assets, Token, Notice string

	Session string // empty for "default", which says nothing to anybody
	State   flow.State
	Version string
	Tone    string
	Word    string // the state in a word or two
	Title   string
	Lead    string // what it means for the calls
	Trouble string // what went wrong
	Detail  string // the same in the server's words
	Next    string // the one next step
	At      *stamp // when it went wrong
	Retry   *stamp // when it is tried again
	Login   *loginView
	// Replaces is set where the code is for a login in place of the present one.
	Replaces bool
	Who      string
	Facts    []fact
	// Button is the label of the next step's form; Again offers the same form
	// where it is not the next step.
	Button, Again string
	// Confirm is set where a login would replace a token that works.
	Confirm bool
	// Reload is after how many seconds a browser without JavaScript looks again.
	Reload int
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
	return &stamp{t.Format(time.RFC3339), t.Format("2 Jan 2006, 15:04 UTC")}
}

// newView words st as of now.
func newView(st flow.Status, now time.Time) *view {
	w := words[st.State]
	v := &view{
		State: st.State, Version: version(st),
		Tone: w.Tone, Word: w.Word, Title: w.Title, Lead: w.Lead, Next: w.Next,
		Confirm: st.Token != nil,
		Who:     clean(st.Account.Label(), maxText),
	}
	if s := clean(st.Session, maxCode); s != "default" {
		v.Session = s
	}
	if e := st.Error; e != nil {
		v.addError(st, e)
	}
	switch st.State {
	case flow.StateLoginRequired:
		v.Button = "Log in"
		if st.Error != nil {
			v.Button = "Get a new code"
			if st.Error.Action == flow.ActionRetry {
				v.Button = "Try again now"
			}
		}
	case flow.StateUnavailable:
		v.Reload, v.Again = 10, "Log in again"
		if st.Error == nil {
			v.Tone, v.Word, v.Title, v.Again = toneWait, "Starting", "One moment", ""
			v.Lead = "The stored login is being read. Calls are answered as soon as that is done."
		}
	case flow.StateMisconfigured:
		if st.Error != nil && st.Error.Code == flow.CodeStorageSealed {
			v.Lead, v.Button = "Calls through this proxy are turned away for now.", "Log in again"
			v.Next += " A new login puts the stored one aside."
			break
		}
		if st.Token != nil {
			v.Lead += " Calls still work until the present token runs out."
			v.Again = "Try again"
		} else {
			v.Lead += " Calls are turned away until that is mended."
			v.Button = "Try again"
		}
	case flow.StateAuthorized, flow.StateDegraded:
		v.Again = "Log in again"
		if st.Error != nil && st.Error.Action == flow.ActionReauthorize {
			v.Button, v.Again = "Get a new code", ""
		}
	}
	// A code can be out in any state: a new login replaces the present one only
	// when it is approved.
	if v.Login = newLogin(st, now); v.Login != nil {
		v.Reload, v.Button, v.Again = 5, "", ""
		v.Replaces = st.State != flow.StatePending
	}
	v.addFacts(st)
	return v
}

// addError words what went wrong. Where nobody is logged in, that is the state's
// headline: "log in" alone would leave open why it has to be done again.
func (v *view) addError(st flow.Status, e *flow.StatusError) {
	w := explain(e)
	// The description mostly has the code in it; support needs both.
	v.Detail = clean(e.Description, maxText)
	if code := clean(e.Code, maxCode); !strings.Contains(v.Detail, code) {
		v.Detail = strings.TrimSuffix(code+": "+v.Detail, ": ")
	}
	v.At, v.Next = newStamp(e.At), nextStep(st, w)
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
	v.Lead = w.Says + " Calls through this proxy are turned away for now."
}

func newLogin(st flow.Status, now time.Time) *loginView {
	if st.Login == nil {
		return nil
	}
	in := st.Login
	left := max(in.ExpiresAt.Sub(now), 0)
	l := &loginView{
		Code:      clean(in.UserCode, maxCode),
		Link:      newLink(in.VerificationURI),
		Left:      int(left / time.Second),
		LeftWords: durationWords(left),
		Expires:   *newStamp(in.ExpiresAt),
	}
	l.Clock = clock(l.Left)
	// How long the code was good for at first is not told. Where the state began
	// with it, that is known; else the bar starts full at what is left.
	l.Total = max(l.Left, 1)
	if st.State == flow.StatePending {
		l.Total = max(l.Total, int(in.ExpiresAt.Sub(st.Since)/time.Second))
	}
	l.Spelled = spell(l.Code)
	l.Long = len([]rune(l.Code)) > 11
	// The direct address counts only if it can be followed: nobody types it.
	if d := newLink(in.VerificationURIComplete); d.Href != "" && d.Href != l.Link.Href {
		l.Direct = d
	}
	if svg, ok := loginQR(in); ok {
		l.QR = template.HTML(svg) //nolint:gosec // drawn by us: numbers, and a host that is escaped
		l.QRHost = l.Link.Host
		if l.Direct.Host != "" {
			l.QRHost = l.Direct.Host
		}
	}
	return l
}

// addFacts lists who is connected, since when, until when, with which permissions.
func (v *view) addFacts(st flow.Status) {
	if st.State == flow.StatePending || st.State == flow.StateLoginRequired {
		return
	}
	if a := st.Account; a != nil {
		f := fact{Label: "Account", Text: v.Who}
		if e := clean(a.Email, maxText); e != v.Who {
			f.Note = e
		}
		if f.Text != "" {
			v.Facts = append(v.Facts, f)
		}
		if i := newLink(a.Issuer); i.Text != "" {
			v.Facts = append(v.Facts, fact{Label: "Login server", Text: i.Text})
		}
	}
	if st.State == flow.StateAuthorized {
		v.Facts = append(v.Facts, fact{Label: "Connected since", Time: newStamp(st.Since)})
	} else {
		v.Facts = append(v.Facts, fact{Label: "Since", Time: newStamp(st.Since)})
	}
	t := st.Token
	if t == nil {
		return
	}
	switch {
	case t.ExpiresAt == nil:
		v.Facts = append(v.Facts, fact{Label: "Token valid", Text: "With no end that the login server names"})
	case t.Refreshable:
		f := fact{Label: "Token valid until", Time: newStamp(*t.ExpiresAt)}
		if st.State == flow.StateAuthorized {
			f.Note = "Renewed by itself before that"
		}
		v.Facts = append(v.Facts, f)
	default:
		v.Facts = append(v.Facts, fact{
			Label: "Token valid until", Time: newStamp(*t.ExpiresAt),
			Note: "Then somebody has to log in again: the login server gave nothing to renew it with. The scope offline_access may change that.",
		})
	}
	var scopes []string
	for _, s := range t.Scope {
		if s = clean(s, maxText); s != "" && len(scopes) < 100 {
			scopes = append(scopes, s)
		}
	}
	if scopes != nil {
		v.Facts = append(v.Facts, fact{Label: "Permissions", List: scopes})
	}
}

// spell makes a screen reader say a code letter by letter.
func spell(code string) string {
	var out []string
	for _, r := range code {
		switch r {
		case '-':
			out = append(out, "dash")
		case ' ':
			out = append(out, "space")
		default:
			out = append(out, string(r))
		}
	}
	return strings.Join(out, " ")
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

func plural(n int, unit string) string {
	if n != 1 {
		unit += "s"
	}
	return strconv.Itoa(n) + " " + unit
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
