package caddymodule

import (
	"strings"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow"
)

// This file holds what the page, the plain text and the callers' 503 say about
// each state and each error. The reader may never have heard of OAuth: a title to
// see at a glance, what that means for the calls, and one next step.

// The tones of a state: colour and icon.
const (
	toneIdle = "idle"
	toneWait = "wait"
	toneGood = "good"
	toneWarn = "warn"
	toneBad  = "bad"
)

// stateWords is what can be said of a state alone.
type stateWords struct{ Tone, Word, Title, Lead, Next string }

var words = map[flow.State]stateWords{
	flow.StateLoginRequired: {
		toneIdle, "Not connected", "Log in to connect",
		"Nobody is logged in, so calls through this proxy are turned away for now.",
		"Get a code and approve it in any browser. It takes less than a minute.",
	},
	flow.StatePending: {
		toneWait, "Waiting for approval", "Approve this login",
		"On your phone or in any browser, open the address below and enter the code.",
		"",
	},
	flow.StateAuthorized: {
		toneGood, "Connected", "Connected",
		"Calls through this proxy are logged in. There is nothing to do.",
		"",
	},
	flow.StateDegraded: {
		toneWarn, "Connected, with a problem", "Connected, with a problem",
		"Calls through this proxy still work.",
		"",
	},
	flow.StateUnavailable: {
		toneWarn, "Reconnecting", "Reconnecting",
		"Somebody is logged in, but there is no valid token right now, so calls are turned away.",
		"Nothing to do: this heals by itself.",
	},
	flow.StateMisconfigured: {
		toneBad, "Settings need a fix", "The settings need a fix",
		"The login server does not accept this proxy as it is set up.",
		"",
	},
}

// errorWords is what can be said of an error. Title is the headline where nobody
// is logged in. Fix is a step, mostly for whoever looks after configuration and
// network, and starts with a verb.
type errorWords struct{ Title, Says, Fix string }

// errorTexts has the words for an error code, by what the error asks for: the
// same code can mean different things, as with access_denied from a person and
// from a busy server. "" is for codes without words of their own.
var errorTexts = map[flow.Action]map[string]errorWords{
	flow.ActionReauthorize: {
		"":                       {"The login did not work", "The login server did not complete the login.", ""},
		"expired_token":          {"The code has run out", "Nobody approved the login before its code ran out.", ""},
		"access_denied":          {"The login was refused", "The login was refused on the approval page, or the account may not use this service.", ""},
		"authorization_declined": {"The login was refused", "The login was refused on the approval page.", ""},
		"wrong_account":          {"This is the wrong account", "Another account than the one this proxy is set up for was logged in. It is not used.", "Log in with the account that the details name: get a new code, and where the login server already knows another account, log out there first."},
		"account_unknown":        {"It is not known whose login this is", "This proxy is set up for one account only, and whether this is the one could not be found out. The login is not used.", ""},
		"invalid_grant":          {"Please log in again", "The earlier login has ended: it was signed out or withdrawn, or it lay unused for too long.", ""},
	},
	flow.ActionFixConfiguration: {
		"":                       {"The settings need a fix", "The login server refuses this proxy or what it asks for.", "Compare the settings of device_flow in Caddy's configuration with those at the login server."},
		"invalid_client":         {"", "The login server does not know the client, or not with this secret.", "Check client_id and client_secret, and whether the client still exists at the login server."},
		"unauthorized_client":    {"", "The client may not log in this way.", "Allow the client the Device Code and Refresh Token grants at the login server."},
		"unsupported_grant_type": {"", "The login server offers no login by device code.", "Switch on the device authorization grant at the login server, or use another one."},
		"invalid_scope":          {"", "The login server refuses the permissions that are asked for.", "Correct scope in Caddy's configuration, or allow these permissions at the login server."},
		"invalid_target":         {"", "The login server does not know the API that the token is for.", "Correct audience or resource in Caddy's configuration."},
		"account_unknown":        {"", "This proxy is set up for one account only, and the login server does not tell whose login it was. The login is not used.", "Correct scope or account in Caddy's configuration as the details say."},
		"invalid_request":        {"", "The login server finds the request itself faulty.", ""},
		"storage_sealed":         {"", "The stored login is sealed with another encryption_key.", "Put that key back into Caddy's configuration."},
		"configuration":          {"", "Something in the settings of device_flow is not right.", "Correct what the details name."},
	},
	flow.ActionRetry: {
		"":                        {"The login server is in trouble", "The login server has a problem at the moment.", ""},
		"temporarily_unavailable": {"The login server is busy", "The login server is too busy at the moment.", ""},
		"slow_down":               {"The login server is busy", "The login server asks for fewer requests.", ""},
		"unreachable":             {"The login server cannot be reached", "The login server does not answer, or the way to it is blocked.", "Check network, DNS and firewall between this proxy and the login server."},
		unsafeConnection:          {"No safe connection to the login server", "The login server can be reached, but a safe connection (TLS) to it cannot be made, so nothing is sent to it.", "Check the certificate of the login server, its address in Caddy's configuration, and the clock of this machine; a private certificate authority belongs into tls_trust_pool of auth_transport."},
		"invalid_response":        {"The login server answers strangely", "The login server sent an answer that makes no sense, perhaps an error page.", "Check the addresses of the login server in Caddy's configuration."},
		"storage_failed":          {"The login cannot be stored", "The login cannot be stored, so it would be lost when Caddy restarts.", "Check space and permissions of Caddy's storage."},
	},
}

// unsafeConnection stands for an error that is flow.CodeUnreachable because of TLS.
const unsafeConnection = "unreachable: tls"

// explain finds the words for an error.
func explain(e *flow.StatusError) errorWords {
	texts := errorTexts[e.Action]
	if texts == nil {
		texts = errorTexts[flow.ActionRetry]
	}
	code := strings.ToLower(e.Code)
	// That nothing came back says the code; that a certificate is the reason, the text alone, in words of Go's own.
	if code == flow.CodeUnreachable && (strings.Contains(e.Description, "tls: ") || strings.Contains(e.Description, "x509: ")) {
		code = unsafeConnection
	}
	w, general := texts[code], texts[""]
	for _, p := range []struct {
		to   *string
		from string
	}{{&w.Title, general.Title}, {&w.Says, general.Says}, {&w.Fix, general.Fix}} {
		if *p.to == "" {
			*p.to = p.from
		}
	}
	return w
}

// nextStep words the one thing to do about an error.
func nextStep(st flow.Status, w errorWords) string {
	switch st.Error.Action {
	case flow.ActionReauthorize:
		if st.Login != nil {
			return "" // the code that is out is the next step
		}
		if st.State == flow.StateAuthorized {
			return "The present login stays in use."
		}
		if w.Fix != "" {
			return w.Fix
		}
		return "Get a new code and approve it in any browser."
	case flow.ActionFixConfiguration:
		return w.Fix + " Then reload Caddy."
	}
	next := "The proxy tries again by itself."
	if st.State == flow.StateLoginRequired {
		next = "Try again. The next call through this proxy does that, too."
	}
	if w.Fix != "" {
		return next + " If this lasts, " + strings.ToLower(w.Fix[:1]) + w.Fix[1:]
	}
	return next
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

// durationWords names a time left in the unit that matters.
func durationWords(d time.Duration) string {
	n, unit := int(d/time.Second), "second"
	switch {
	case d >= 48*time.Hour:
		n, unit = int(d/(24*time.Hour)), "day"
	case d >= 2*time.Hour:
		n, unit = int(d/time.Hour), "hour"
	case d >= 2*time.Minute:
		n, unit = int(d/time.Minute), "minute"
	}
	return plural(max(n, 0), unit)
}
