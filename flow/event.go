package flow

import "time"

// EventKind names what happened to a session.
type EventKind string

// The events of a session. Each is told once, after the new view is public.
const (
	// EventLoginPending: a code is out and waits for a person; see [Status.Login].
	EventLoginPending EventKind = "login_pending"
	// EventLoginSucceeded: a person has approved, here or at another instance.
	EventLoginSucceeded EventKind = "login_succeeded"
	// EventLoginFailed: there was no code to be had, or the login was refused, or its
	// code has run out.
	EventLoginFailed EventKind = "login_failed"
	// EventTokenRefreshed: a new access token is in use, or one for another API; see
	// [Event.For].
	EventTokenRefreshed EventKind = "token_refreshed"
	// EventRefreshFailed follows each attempt to refresh that brought no token. The one
	// in use goes on while it lasts.
	EventRefreshFailed EventKind = "refresh_failed"
	// EventLoggedOut: the login is gone, by [Session.Logout], at another instance, or
	// because the account is no longer the one that is asked for.
	EventLoggedOut EventKind = "logged_out"
	// EventIdentified follows a login whose account was found out only afterwards.
	EventIdentified EventKind = "identified"
	// EventStateChanged follows each change of [Status.State].
	EventStateChanged EventKind = "state_changed"
	// EventStoreFailed and EventStoreHealed frame a time without storage.
	EventStoreFailed EventKind = "store_failed"
	EventStoreHealed EventKind = "store_healed"
)

// Event is one step in the life of a session. It carries no secret.
type Event struct {
	Kind   EventKind
	Status Status
	// From is the state before, for [EventStateChanged].
	From State
	// Adopted is set for logins and logouts that another instance on the same
	// storage has made.
	Adopted bool
	// Took is how long the exchange with the server lasted, where there was one.
	Took time.Duration
	// For names the API of a refresh that was not for the session's own token; see
	// [Want.String]. It can be anything that requests ask for: no label of a metric.
	For string
	// Err is set for the kinds that end in failed.
	Err error
}

// Observer hears of events on the session's own goroutine, one after the other.
// It must return soon; it may not call back into the session.
type Observer func(Event)
