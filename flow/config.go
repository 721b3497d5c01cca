package flow

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"
)

// LoginPolicy says when a session asks for a code by itself.
type LoginPolicy string

// The values of [LoginPolicy]. Empty means LoginOnDemand.
const (
	// LoginOnDemand waits for [Session.Demand] or [Session.Login].
	LoginOnDemand LoginPolicy = "on_demand"
	// LoginEager asks as soon as the session runs without a login.
	LoginEager LoginPolicy = "eager"
)

// DefaultName is the name of a session that was given none.
const DefaultName = "default"

// Endpoints are the places of an authorization server. Each empty one is taken
// from discovery.
type Endpoints struct {
	DeviceAuthorization string // RFC 8628 §3.1
	Token               string // RFC 6749 §3.2
	Revocation          string // RFC 7009
	UserInfo            string // OpenID Connect Core §5.3
}

// Config describes one login. ClientID and either Issuer or both of
// Endpoints.DeviceAuthorization and Endpoints.Token are required; every other
// zero value has a sensible meaning.
type Config struct {
	// Name is shown to people and is part of the storage key. Default: DefaultName.
	Name string
	// StorageName takes the place of Name in the storage key, so that a session
	// can be shown under another name without losing its login. Default: Name.
	StorageName string
	// Key is what tells this session from others of its kind, such as the id of
	// the device whose login it is. It is shown to people and means nothing else.
	Key string
	// Kin is what the session shares with others that differ by Key only. It counts at
	// [New]; [Session.SetConfig] leaves it as it was. Default: nothing.
	Kin *Kin

	// Issuer is the issuer identifier (RFC 8414 §2); it turns discovery on.
	Issuer    string
	Endpoints Endpoints

	ClientID   string
	ClientAuth ClientAuth
	// Secret is asked for the client secret at every request that carries it,
	// so that a rotated file needs no restart. Nil: a public client.
	Secret func(context.Context) (Secret, error)
	// Assertion makes a fresh JWT for audience, signed with the client's key, at
	// every request that the client authenticates (RFC 7523 §3): its jti is used
	// once. It goes with ClientAuthPrivateKeyJWT.
	Assertion func(ctx context.Context, audience string) (Secret, error)
	// PKCE binds the device code to this client (RFC 7636). False: only if the
	// server asks for it.
	PKCE bool

	Scope    []string
	Audience string // Auth0's "audience"
	// Resource are the APIs that the login shall be good for (RFC 8707). The session's
	// own token is for the first; [Session.For] has those for the others.
	Resource []string
	// Params are sent in addition, with device and token requests alike.
	Params url.Values
	// Headers are sent in addition with every request to the authorization
	// server. Each is asked for its value at each request, and the value is
	// treated as a secret.
	Headers map[string]func(context.Context) (Secret, error)
	// Identify asks Endpoints.UserInfo who is logged in whatever the scope is, for
	// servers that know nothing of openid.
	Identify bool
	// InsecureHTTP allows http:// endpoints on other hosts than loopback.
	InsecureHTTP bool

	// Account is the only account that may be connected, as the id_token or the
	// userinfo endpoint tells. The login of another one is revoked before anybody
	// can use it, and a stored one is put aside. Nil: any account.
	Account *Claim

	// CacheSize is how many access tokens for other APIs ([Session.For]) are kept
	// at once. Default: 128.
	CacheSize int

	Login LoginPolicy
	// MayLogin is asked before a login starts that nobody has asked for by
	// [Session.Login]; if it says no, none starts. It must not block, nor wait for
	// the session. Nil: yes.
	MayLogin func() bool
	// RefreshWait bounds how long [Session.Token] waits for a refresh that is
	// under way when there is no usable token. Default: 5 s.
	RefreshWait time.Duration

	// HTTP reaches the authorization server. Redirects are never followed.
	// Default: http.DefaultTransport.
	HTTP http.RoundTripper
	// Store keeps the login. Default: a MemoryStore.
	Store Store
	// Keys seal what is stored: the first one seals, each of them opens. Nil, or
	// a zero Key as the first, stores in clear text. A record that none of them
	// opens is left alone, and no login starts on demand in its place.
	Keys []Key
	// Observer hears what happens. Default: nobody.
	Observer Observer
}

// isName reports whether a session can be called so. The tilde is for those who make
// one of many sessions, and a digest in place of each one's key; people do not write it.
func isName(s string) bool {
	s, digest, keyed := strings.Cut(s, "~")
	return s != "" && len(s) <= 64 && strings.TrimLeft(s[:1], alphanumeric) == "" && strings.TrimLeft(s, alphanumeric+"._-") == "" &&
		(!keyed || len(digest) == 32 && strings.TrimLeft(digest, "0123456789abcdef") == "")
}

// withDefaults fills zero values in.
func (c Config) withDefaults() Config {
	if c.Name == "" {
		c.Name = DefaultName
	}
	if c.StorageName == "" {
		c.StorageName = c.Name
	}
	if c.ClientAuth == "" {
		c.ClientAuth = ClientAuthNone
		switch {
		case c.Secret != nil:
			c.ClientAuth = ClientAuthPost
		case c.Assertion != nil:
			c.ClientAuth = ClientAuthPrivateKeyJWT
		}
	}
	if c.Login == "" {
		c.Login = LoginOnDemand
	}
	if c.CacheSize == 0 {
		c.CacheSize = defaultCacheSize
	}
	if c.RefreshWait == 0 {
		c.RefreshWait = 5 * time.Second
	}
	if c.HTTP == nil {
		c.HTTP = http.DefaultTransport
	}
	if c.Store == nil {
		c.Store = new(MemoryStore)
	}
	if c.Observer == nil {
		c.Observer = func(Event) {}
	}
	return c
}

// Validate reports everything about c that can be known to be wrong without a
// request, each with what to write instead.
func (c Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }

	if c.Name != "" && !isName(c.Name) {
		bad("session name %q: use letters, digits, dot, underscore and hyphen, at most 64, starting with a letter or digit", c.Name)
	}
	if c.StorageName != "" && c.StorageName != c.Name && !isName(c.StorageName) {
		bad("storage name %q: use letters, digits, dot, underscore and hyphen, at most 64, starting with a letter or digit", clean(c.StorageName, 100))
	}
	if c.ClientID == "" {
		bad("client_id is missing: write 'client_id <id>' with the id that the authorization server gave your application")
	}
	if c.Issuer == "" && (c.Endpoints.DeviceAuthorization == "" || c.Endpoints.Token == "") {
		bad("no authorization server: write 'issuer <url>', or both 'device_authorization_endpoint <url>' and 'token_endpoint <url>'")
	}
	for _, e := range append([]namedURL{{"issuer", c.Issuer}}, c.Endpoints.named()...) {
		if e.url == "" {
			continue
		}
		if err := checkEndpoint(e.url, c.InsecureHTTP); err != nil {
			bad("%s: %w", e.name, err)
		}
	}
	c.validateAuth(bad)
	c.validateHeaders(bad)
	if c.Account != nil {
		if err := c.Account.validate(); err != nil {
			bad("%w", err)
		}
	}
	if c.CacheSize < 0 {
		bad("cache_size %d: use a number of one or more", c.CacheSize)
	}
	switch c.Login {
	case "", LoginOnDemand, LoginEager:
	default:
		bad("login %q is not known: use on_demand or eager", c.Login)
	}
	for _, r := range c.Resource {
		// RFC 8707 §2: an absolute URI without a fragment.
		if u, err := url.Parse(r); err != nil || !u.IsAbs() || strings.Contains(r, "#") {
			bad("resource %q: use an absolute URI without a fragment (RFC 8707)", r)
		}
	}
	for _, s := range c.Scope {
		if strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == '"' || r == '\\' || r > '~' }) {
			bad("scope %q: a scope has no spaces, quotes, backslashes or non-ASCII letters (RFC 6749 §3.3)", s)
		}
	}
	for name := range c.Params {
		if slices.Contains(ownParams, name) {
			bad("param %s: this parameter is set by the flow itself; use the setting of that name", name)
		}
	}
	return errors.Join(errs...)
}

// ownParams cannot be set by [Config.Params]: a second value of any of them
// would be a malformed request (RFC 6749 §3.2).
var ownParams = []string{
	"client_id", "client_secret", "grant_type", "device_code", "refresh_token",
	"scope", "audience", "resource", "client_assertion", "client_assertion_type", "token", "token_type_hint",
	"code_challenge", "code_challenge_method", "code_verifier",
}

// Fingerprint identifies the login that c describes: issuer, client, scope and
// audience. Two configurations with the same fingerprint can share a login; a
// record of another fingerprint is never used. Secrets are not part of it, nor is
// Account: a login that is of the right account already goes on.
func (c Config) Fingerprint() string {
	as := c.Issuer
	if as == "" {
		as = c.Endpoints.Token
	}
	sorted := func(in []string) []string { return slices.Compact(slices.Sorted(slices.Values(in))) }
	params := c.Params
	if len(params) == 0 {
		params = nil // empty and none are the same
	}
	resource := sorted(c.Resource)
	if len(c.Resource) > 1 {
		resource = append(resource, c.Resource[0]) // the one that the stored access token is for
	}
	b, err := json.Marshal([]any{strings.TrimSuffix(as, "/"), c.ClientID, sorted(c.Scope), c.Audience, resource, params})
	if err != nil {
		panic(err) // strings and slices of strings always marshal
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16])
}

// StorageKey is where the record of the session that c describes is in its [Store].
func (c Config) StorageKey() string {
	c = c.withDefaults()
	return recordKey(c.StorageName, c.Fingerprint())
}

func recordKey(storageName, fingerprint string) string {
	return storageName + "-" + fingerprint + ".json"
}

// checkEndpoint accepts absolute https URLs, and http ones on loopback or when
// the operator insists.
func checkEndpoint(raw string, insecure bool) error {
	u, err := url.Parse(raw)
	if err != nil {
		return fmt.Errorf("%q is not a URL: %w", raw, err)
	}
	if u.Host == "" || (u.Scheme != "https" && u.Scheme != "http") {
		return fmt.Errorf("%q is not an absolute URL: write it with its scheme, as in https://login.example.com", raw)
	}
	if u.User != nil || u.Fragment != "" {
		return fmt.Errorf("%q: a user name or a fragment does not belong in this URL", u.Redacted())
	}
	if u.Scheme == "http" && !insecure && !isLoopback(u.Hostname()) {
		return fmt.Errorf("%q would send codes and tokens in clear text: use https://, or set insecure_http if the network is trusted", raw)
	}
	return nil
}

// isLoopback reports whether host names this machine (RFC 6761 §6.3).
func isLoopback(host string) bool {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}
