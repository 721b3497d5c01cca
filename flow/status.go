package flow

import "time"

// State says in one word what a session can do for a caller.
type State string

// The states of a session.
const (
	// StateLoginRequired: nobody is logged in and no code is out.
	StateLoginRequired State = "login_required"
	// StatePending: a code is out and waits for the operator.
	StatePending State = "pending"
	// StateAuthorized: there is a usable access token.
	StateAuthorized State = "authorized"
	// StateDegraded: there is a usable access token, but refreshing or storing it fails.
	StateDegraded State = "degraded"
	// StateUnavailable: somebody is logged in, but there is no usable access
	// token right now: the stored login is being read, or the token has lapsed
	// and the authorization server does not answer. It heals by itself.
	StateUnavailable State = "unavailable"
	// StateMisconfigured: the authorization server refuses the client itself, or
	// the stored login is sealed with a key that the configuration does not have.
	StateMisconfigured State = "misconfigured"
)

// Usable reports whether calls are served in this state for certain.
// A misconfigured session still serves while its token lasts; see [Status.Token].
func (s State) Usable() bool { return s == StateAuthorized || s == StateDegraded }

// Action is the next step that an error asks for.
type Action string

// The actions of [StatusError].
const (
	// ActionRetry: nothing to do, the session tries again by itself.
	ActionRetry Action = "retry"
	// ActionReauthorize: a person has to log in (again).
	ActionReauthorize Action = "reauthorize"
	// ActionFixConfiguration: client, scope or endpoints have to be corrected,
	// here or at the authorization server.
	ActionFixConfiguration Action = "fix_configuration"
)

// Status is a snapshot of a session without any secret in it. Page, SSE, admin
// API and command line show this one object. Members that do not apply are nil.
type Status struct {
	// Session is the name of the session.
	Session string `json:"session"`
	// Key is [Config.Key].
	Key   string `json:"key,omitempty"`
	State State  `json:"state"`
	// Since is when State was entered.
	Since   time.Time    `json:"since"`
	Login   *LoginInfo   `json:"login,omitempty"`
	Account *Account     `json:"account,omitempty"`
	Token   *TokenInfo   `json:"token,omitempty"`
	Error   *StatusError `json:"error,omitempty"`
}

// LoginInfo is what the operator of a pending login needs (RFC 8628 §3.2).
// VerificationURIComplete is empty when the server sends none.
type LoginInfo struct {
	UserCode                string    `json:"user_code"`
	VerificationURI         string    `json:"verification_uri"`
	VerificationURIComplete string    `json:"verification_uri_complete,omitempty"`
	ExpiresAt               time.Time `json:"expires_at"`
}

// Account is who logged in, as far as the authorization server says.
type Account struct {
	Issuer  string `json:"issuer,omitempty"`
	Subject string `json:"subject,omitempty"`
	Name    string `json:"name,omitempty"`
	Email   string `json:"email,omitempty"`
}

// Label is the best name for people: name, else email, else subject, else "".
func (a *Account) Label() string {
	if a == nil {
		return ""
	}
	for _, s := range []string{a.Name, a.Email, a.Subject} {
		if s != "" {
			return s
		}
	}
	return ""
}

// named reports whether there is more to show of a than a subject.
func (a *Account) named() bool { return a != nil && a.Name+a.Email != "" }

// completedBy fills in what an earlier answer told of the same account: an
// id_token that comes with a refresh often names the subject only.
func (a *Account) completedBy(old *Account) *Account {
	if old == nil || a.Subject != old.Subject {
		return a
	}
	b := *a
	b.Issuer, b.Name, b.Email = firstOf(a.Issuer, old.Issuer), firstOf(a.Name, old.Name), firstOf(a.Email, old.Email)
	return &b
}

// TokenInfo describes the usable access token. ExpiresAt is nil when the server gave
// no lifetime, RefreshAt when there is nothing to refresh with.
type TokenInfo struct {
	ExpiresAt *time.Time `json:"expires_at,omitempty"`
	RefreshAt *time.Time `json:"refresh_at,omitempty"`
	Scope     []string   `json:"scope,omitempty"`
	// Refreshable is false when the login ends with this access token.
	Refreshable bool `json:"refreshable"`
}

// StatusError is the last thing that went wrong and has not healed since.
type StatusError struct {
	// Code is an OAuth error code, or one of the package's own: "unreachable",
	// "invalid_response", "storage_failed", "storage_sealed", "configuration",
	// "wrong_account", "account_unknown", "wrong_audience".
	Code string `json:"code"`
	// Description says in words what happened. It is bounded and free of
	// control characters and secrets.
	Description string     `json:"description"`
	At          time.Time  `json:"at"`
	RetryAt     *time.Time `json:"retry_at,omitempty"`
	Action      Action     `json:"action"`
}
