// Package flow keeps one OAuth 2.0 login alive for programs that cannot log in
// by themselves. It speaks the Device Authorization Grant (RFC 8628): a person
// approves once, on any browser, and from then on [Session.Token] hands out a
// fresh access token, refreshed ahead of its expiry and kept across restarts.
//
// # The life of a session
//
//	                   Demand, Login                approved
//	login_required ───────────────────► pending ───────────────► authorized
//	  ▲    ▲  ▲  expired, denied           │                       │   ▲
//	  │    │  └────────────────────────────┘      refresh fails    │   │ refresh
//	  │    │                                                       ▼   │ succeeds
//	  │    │      refresh token refused (invalid_grant)          degraded
//	  │    └───────────────────────────────────────────────────────┤
//	  │ Logout                                    token lapses     ▼
//	  └─────────────────────────────────────────────────────── unavailable
//
// A server that refuses the client itself (invalid_client, invalid_scope, …)
// leads to misconfigured from any of these; nothing is deleted there.
//
// One goroutine, [Session.Run], owns a session and takes every decision.
// Everybody else reads an immutable view through one atomic pointer, or waits
// for the next view on a context of their own.
//
// # Where the standards live
//
//	discovery.go   RFC 8414 and OpenID Connect Discovery 1.0
//	exchange.go    one HTTP exchange; no redirects, bounds of time and size
//	client.go      RFC 8628 §3.1, §3.4; RFC 6749 §6; RFC 7009
//	clientauth.go  RFC 6749 §2.3, RFC 7523 §2.2, RFC 8705 §2
//	pkce.go        RFC 7636, where the server asks for it
//	wire.go        the responses of RFC 8628 §3.2 and RFC 6749 §5, as servers really send them
//	errors.go      what an error means for a session
//	errorname.go   RFC 8628 §3.5, RFC 6749 §5.2, and the names that servers use instead
//	login.go       RFC 8628 §3.3 to §3.5: the code, the interval, slow_down
//	refresh.go     RFC 6749 §6, rotation after RFC 9700 §4.14
//	transport.go   RFC 6750 §2.1
//
// # Guarantees
//
//   - A request with a usable token takes no lock and reads no clock.
//   - A refresh token is saved before the access token that came with it is used,
//     unless the [Store] fails, or takes longer than two seconds, or than a tenth of a
//     short token's lifetime, which is 200 ms at least.
//   - There is at most one refresh and one poll under way for a [Session].
//   - Secrets are of type [Secret], which prints as "[redacted]" whatever the verb.
//
// The package does not log, keeps no global state and imports nothing beyond
// the standard library but golang-lru. What happens is told to an [Observer].
//
// A program of one's own: see the example in the package tokensource beside this
// one.
package flow
