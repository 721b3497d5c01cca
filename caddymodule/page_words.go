package caddymodule

import (
	"strings"
	"time"
	"unicode/utf8"

	"github.com/deviceflow/caddy-deviceflow/flow"
)

// The words for each state and each error are in the catalogues. The reader may
// never have heard of OAuth: a title to see at a glance, what that means for the
// calls, and one next step. This file chooses among them.

// The tones of a state: colour and icon.
const (
	toneIdle = "idle"
	toneWait = "wait"
	toneGood = "good"
	toneWarn = "warn"
	toneBad  = "bad"
)

var tones = map[flow.State]string{
	flow.StateLoginRequired: toneIdle,
	flow.StatePending:       toneWait,
	flow.StateAuthorized:    toneGood,
	flow.StateDegraded:      toneWarn,
	flow.StateUnavailable:   toneWarn,
	flow.StateMisconfigured: toneBad,
}

// errorWords is what can be said of an error. Title is the headline where nobody
// is logged in. Fix is a step, mostly for whoever looks after configuration and
// network.
type errorWords struct{ Title, Says, Fix string }

// unsafeConnection stands for an error that is flow.CodeUnreachable because of TLS.
const unsafeConnection = "unsafe_connection"

// explain finds the words for an error, by code and by what the error asks for: the
// same code can mean different things, as with access_denied from a person and from
// a busy server. "other" is for codes without words of their own.
func (c *catalogue) explain(e *flow.StatusError) errorWords {
	action := e.Action
	if action != flow.ActionReauthorize && action != flow.ActionFixConfiguration {
		action = flow.ActionRetry
	}
	code := strings.ToLower(e.Code)
	// That nothing came back says the code; that a certificate is the reason, the text alone, in words of Go's own.
	if code == flow.CodeUnreachable && (strings.Contains(e.Description, "tls: ") || strings.Contains(e.Description, "x509: ")) {
		code = unsafeConnection
	}
	say := func(what string) string {
		if s, ok := c.find(string(action) + "." + code + "." + what); ok {
			return s
		}
		return c.maybe(string(action) + ".other." + what)
	}
	return errorWords{say("title"), say("says"), say("fix")}
}

// nextStep words the one thing to do about an error.
func (c *catalogue) nextStep(st flow.Status, w errorWords) string {
	switch st.Error.Action {
	case flow.ActionReauthorize:
		if st.Login != nil {
			return "" // the code that is out is the next step
		}
		if st.State == flow.StateAuthorized {
			return c.text("next.stays")
		}
		if w.Fix != "" {
			return w.Fix
		}
		return c.text("next.code")
	case flow.ActionFixConfiguration:
		return join(w.Fix, c.text("next.reload"))
	}
	if st.State == flow.StateLoginRequired {
		return join(c.text("next.try"), w.Fix)
	}
	return join(c.text("next.itself"), w.Fix)
}

// duration names a time left in the unit that matters.
func (c *catalogue) duration(d time.Duration) string {
	switch {
	case d >= 48*time.Hour:
		return c.text("duration.days", "n", count(int(d/(24*time.Hour))))
	case d >= 2*time.Hour:
		return c.text("duration.hours", "n", count(int(d/time.Hour)))
	case d >= 2*time.Minute:
		return c.text("duration.minutes", "n", count(int(d/time.Minute)))
	case d/time.Second == 1:
		return c.text("duration.second")
	}
	return c.text("duration.seconds", "n", count(max(0, int(d/time.Second))))
}

// spell makes a screen reader say a code letter by letter.
func (c *catalogue) spell(code string) string {
	var out []string
	for _, r := range code {
		switch r {
		case '-':
			out = append(out, c.text("code.dash"))
		case ' ':
			out = append(out, c.text("code.space"))
		default:
			out = append(out, string(r))
		}
	}
	return strings.Join(out, " ")
}

// join puts sentences together and leaves out empty ones. The full stop of Chinese
// and Japanese has its space in it.
func join(sentences ...string) string {
	var b strings.Builder
	for _, s := range sentences {
		if s == "" {
			continue
		}
		if last, _ := utf8.DecodeLastRuneInString(b.String()); b.Len() > 0 && last != '。' {
			b.WriteByte(' ')
		}
		b.WriteString(s)
	}
	return b.String()
}

// tabIcon is the state's colour as the icon of the browser's tab.
func tabIcon(tone string) string {
	colour, ok := map[string]string{
		toneWait: "#0b57d0", toneGood: "#0a7a43", toneWarn: "#b26a00", toneBad: "#b3261e",
	}[tone]
	if !ok {
		colour = "#4a5568"
	}
	mark := `<path d="M10 16h12" stroke="#fff" stroke-width="4" stroke-linecap="round"/>`
	switch tone {
	case toneGood:
		mark = `<path d="M9 16.5l5 5 9-11" fill="none" stroke="#fff" stroke-width="4" stroke-linecap="round" stroke-linejoin="round"/>`
	case toneWarn, toneBad:
		mark = `<path d="M16 8v9m0 6v.5" fill="none" stroke="#fff" stroke-width="4" stroke-linecap="round"/>`
	}
	return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="9" fill="` + colour + `"/>` + mark + `</svg>`
}
