package flow

import "time"

// EventKind names what happened to a session.
type EventKind string

// The events of a session. Each is told once, after the new view is public.
const (
	EventLoginPending   EventKind = "login_pending"
	EventLoginSucceeded EventKind = "login_succeeded"
	EventLoginFailed    EventKind = "login_failed"
	EventTokenRefreshed EventKind = "token_refreshed"
	EventRefreshFailed  EventKind = "refresh_failed"
	EventLoggedOut      EventKind = "logged_out"
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
