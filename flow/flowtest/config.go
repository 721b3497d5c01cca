package flowtest

import (
	"slices"
	"time"
)

// DefaultIssuer is the issuer of a server that has neither a configured issuer nor a listener: the name under which
// [Server.RoundTripper] answers.
const DefaultIssuer = "https://as.flowtest.example"

// Flavour selects whose habits the server imitates.
type Flavour int

const (
	// RFC follows RFC 6749 and RFC 8628 to the letter: every error of the token endpoint has status 400 (401 for
	// invalid_client), and a refresh token comes with every login.
	RFC Flavour = iota

	// Auth0 has Auth0's paths, its statuses (403 while pending, 429 for slow_down, 403 for an ended login), its
	// one-shot errors (expired_token and access_denied once, then invalid_grant), its refresh token only with the
	// offline_access scope, its text/plain revocation, and an issuer that ends in a slash.
	Auth0
)

// User is the account that approves logins.
type User struct {
	Subject string // default "auth0|alice"
	Name    string // default "Alice Example"
	Email   string // default "alice@example.com"
}

// Config describes the server. The zero value is a public client "demo-client" at a strict RFC server.
type Config struct {
	// Flavour is RFC unless set.
	Flavour Flavour

	// ClientID is the only client that the server knows. Default "demo-client".
	ClientID string
	// ClientName is what the approval page calls the client. Default: the ClientID.
	ClientName string
	// ClientSecret makes the client confidential: it must then authenticate at every endpoint, by Basic or in the
	// body. Empty means a public client, which must not send a secret.
	ClientSecret string
	// VerifyAssertion, if set, makes the client one that authenticates with a signed assertion (RFC 7523 section
	// 2.2). It is called with the client_assertion and refuses it by returning an error.
	VerifyAssertion func(assertion string) error

	// AllowedAudiences are the values that audience and resource may have. Empty: any audience, and on a refresh any
	// resource that was asked for at login (RFC 8707 section 2.2).
	AllowedAudiences []string
	// AllowedScopes are the scopes that may be asked for; others are invalid_scope (RFC) or left out (Auth0).
	// Empty: any.
	AllowedScopes []string

	// AccessTokenLifetime is that of tokens issued from now on. Default 1 h.
	AccessTokenLifetime time.Duration
	// CodeLifetime is that of device codes issued from now on. Default 15 min.
	CodeLifetime time.Duration
	// Interval is the least time between the answer to one poll and the next poll. Default 5 s.
	Interval time.Duration

	// NoRotation keeps one refresh token for the whole login; refreshes then return none. Otherwise each refresh
	// returns a new one, and presenting an old one ends the login with all its tokens.
	NoRotation bool
	// OmitRefreshToken issues access tokens only.
	OmitRefreshToken bool

	// AutoApprove approves each login as soon as its code is issued.
	AutoApprove bool
	// ApproveAfter, if positive, approves a login by itself after so many polls were answered authorization_pending.
	ApproveAfter int
	// User approves the logins. A login keeps the user it was approved by.
	User User

	// Issuer is used as given, path and final slash included. Default: the URL of the first listener, or
	// DefaultIssuer when there is none; with a final slash in the Auth0 flavour.
	Issuer string

	// APIAudience, if set, is the audience that a token must have for [Server.API].
	APIAudience string
	// APIScope, if set, is the scope that a token must have for [Server.API]; without it, 403 insufficient_scope.
	APIScope string

	// Logf, if set, gets one line for each request answered; no line holds a token, a code or a secret.
	Logf func(format string, args ...any)
}

func (c Config) withDefaults() Config {
	if c.ClientID == "" {
		c.ClientID = "demo-client"
	}
	if c.ClientName == "" {
		c.ClientName = c.ClientID
	}
	if c.AccessTokenLifetime <= 0 {
		c.AccessTokenLifetime = time.Hour
	}
	if c.CodeLifetime <= 0 {
		c.CodeLifetime = 15 * time.Minute
	}
	if c.Interval <= 0 {
		c.Interval = 5 * time.Second
	}
	if c.User.Subject == "" {
		c.User.Subject = "auth0|alice"
	}
	if c.User.Name == "" {
		c.User.Name = "Alice Example"
	}
	if c.User.Email == "" {
		c.User.Email = "alice@example.com"
	}
	return c
}

// paths are those of the endpoints, below the issuer.
type paths struct {
	device, token, revoke, userinfo, page string
}

func (f Flavour) paths() paths {
	if f == Auth0 {
		return paths{"/oauth/device/code", "/oauth/token", "/oauth/revoke", "/userinfo", "/activate"}
	}
	return paths{"/device_authorization", "/token", "/revoke", "/userinfo", "/device"}
}

// status gives the HTTP status of a token error.
func (f Flavour) status(code string) int {
	if code == "invalid_client" {
		return 401 // RFC 6749 section 5.2
	}
	if f == Auth0 {
		switch code {
		case "authorization_pending", "expired_token", "access_denied", "invalid_grant":
			return 403
		case "slow_down":
			return 429
		}
	}
	return 400
}

// allowedAudience says whether a target is one the configuration lists; with no list, any is.
func (c Config) allowedAudience(target string) bool {
	return len(c.AllowedAudiences) == 0 || slices.Contains(c.AllowedAudiences, target)
}
