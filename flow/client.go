package flow

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"
)

// Operations, as they stand in errors.
const (
	opDiscovery = "discovery"
	opDevice    = "device authorization"
	opPoll      = "poll"
	opRefresh   = "refresh"
	opRevoke    = "revocation"
	opUserInfo  = "userinfo"
)

const grantDeviceCode = "urn:ietf:params:oauth:grant-type:device_code" // RFC 8628 §3.4

// client talks to one authorization server: one method, one HTTP exchange (and
// discovery before the first). It decides nothing and keeps nothing but the
// metadata.
type client struct {
	Config
	fingerprint string // of Config
	storageKey  string // of the record
	kin         *Kin
	loads       *atomic.Int32 // reads of the store that are under way
	locks       *atomic.Int32 // attempts to lock it that are
}

func newClient(cfg Config, fingerprint string) *client {
	return &client{Config: cfg, fingerprint: fingerprint, storageKey: recordKey(cfg.StorageName, fingerprint)}
}

// form makes a POST of params to endpoint, one of e, with the client's
// authentication.
func (c *client) form(ctx context.Context, op string, e Endpoints, endpoint string, params url.Values, secrets ...Secret) (*answer, error) {
	header := make(http.Header)
	header.Set("Content-Type", "application/x-www-form-urlencoded")
	secret, err := c.authenticate(ctx, op, e, params, header)
	if err != nil {
		return nil, err
	}
	secrets = append(secrets, secret)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, endpoint, strings.NewReader(params.Encode()))
	if err != nil {
		return nil, &Error{Kind: KindConfiguration, Op: op, Code: CodeConfiguration, Err: errors.New("the endpoint is not a valid URL")}
	}
	req.Header = header
	// A body that net/http can send again would let it repeat a one-shot code
	// on a connection that broke.
	req.GetBody = nil
	a, err := c.exchange(req, op)
	if err != nil {
		return nil, err
	}
	a.secrets = append(a.secrets, secrets...)
	a.hint = func() string { return c.authHint(ctx, op) }
	return a, nil
}

// deviceCode is a device authorization response (RFC 8628 §3.2).
type deviceCode struct {
	code     Secret
	verifier Secret // of PKCE, if the server wants it
	login    LoginInfo
	interval time.Duration
}

// authorize asks for a code (RFC 8628 §3.1), with PKCE where that is wanted.
func (c *client) authorize(ctx context.Context) (*deviceCode, error) {
	e, err := c.endpoints(ctx, opDevice)
	if err != nil {
		return nil, err
	}
	if e.DeviceAuthorization == "" {
		return nil, missingEndpoint(opDevice, "device_authorization_endpoint")
	}
	if e.Token == "" {
		return nil, missingEndpoint(opDevice, "token_endpoint")
	}
	d, err := c.askCode(ctx, e, c.PKCE)
	if c.PKCE || !c.wantsPKCE(ctx, err) {
		return d, err
	}
	d, again := c.askCode(ctx, e, true)
	if again != nil && asError(opDevice, again).Kind != KindTemporary {
		return nil, err // it was something else
	}
	return d, again
}

// askCode is one device authorization request.
func (c *client) askCode(ctx context.Context, e Endpoints, pkce bool) (*deviceCode, error) {
	params := c.common(c.Resource)
	if len(c.Scope) > 0 {
		params.Set("scope", strings.Join(c.Scope, " "))
	}
	if c.Audience != "" {
		params.Set("audience", c.Audience)
	}
	var verifier Secret
	if pkce {
		verifier = newVerifier()
		addChallenge(params, verifier)
	}
	a, err := c.form(ctx, opDevice, e, e.DeviceAuthorization, params)
	if err != nil {
		return nil, err
	}
	f := a.fields
	if code, _ := f.errorCode(a.status); !a.ok || a.status < 200 || a.status > 299 || code != "" && f.text("user_code") == "" {
		return nil, a.failure(opDevice)
	}
	d := &deviceCode{
		code:     NewSecret(f.text("device_code", "code")),
		verifier: verifier,
		login: LoginInfo{
			// As it came: it can be case sensitive, and its look is the server's business.
			UserCode:                f.text("user_code"),
			VerificationURI:         f.text("verification_uri", "verification_url"),
			VerificationURIComplete: f.text("verification_uri_complete", "verification_url_complete"),
		},
	}
	for _, member := range []struct {
		name, value string
		most        int
	}{
		{"device_code", d.code.Reveal(), maxCode}, {"user_code", d.login.UserCode, maxUserCode}, {"verification_uri", d.login.VerificationURI, maxURI},
	} {
		e := &Error{Kind: KindTemporary, Op: opDevice, Code: CodeInvalidResponse, Status: a.status}
		switch {
		case member.value == "":
			e.Description = "the answer has no " + member.name
			return nil, e
		case len(member.value) > member.most:
			e.Description = fmt.Sprintf("the %s of the answer is longer than %d bytes", member.name, member.most)
			return nil, e
		}
	}
	if len(d.login.VerificationURIComplete) > maxURI {
		d.login.VerificationURIComplete = "" // the other one does
	}
	lifetime, ok := f.seconds(maxCodeLifetime, "expires_in", "expire_in")
	if !ok {
		lifetime = defaultCodeLifetime
	}
	d.login.ExpiresAt = a.at.Round(0).Add(lifetime) // compared with the wall clock, which a sleep does not stop
	if d.interval, ok = f.seconds(maxCodeLifetime, "interval"); !ok {
		d.interval = defaultInterval
	}
	// RFC 8628 §3.5 has the client wait as long as the server says. But an interval
	// beyond the code's own end would mean that nobody can ever log in, and one of a
	// microsecond would be a loop.
	if d.interval >= lifetime {
		d.interval = min(d.interval, max(lifetime/3, defaultInterval))
	}
	d.interval = max(d.interval, minInterval)
	return d, nil
}

// poll asks once whether the login has been approved (RFC 8628 §3.4). verifier is
// empty unless the code was asked for with PKCE.
func (c *client) poll(ctx context.Context, code, verifier Secret) (*grant, error) {
	e, err := c.endpoints(ctx, opPoll)
	if err != nil {
		return nil, err
	}
	params := c.common(c.ownResource())
	params.Set("grant_type", grantDeviceCode)
	params.Set("device_code", code.Reveal())
	if !verifier.IsZero() {
		params.Set("code_verifier", verifier.Reveal()) // RFC 7636 §4.5
	}
	a, err := c.form(ctx, opPoll, e, e.Token, params, code, verifier)
	if err != nil {
		return nil, err
	}
	return a.grant(opPoll)
}

// refresh trades a refresh token for an access token (RFC 6749 §6), that of the
// login itself if want is zero.
func (c *client) refresh(ctx context.Context, token Secret, want Want) (*grant, error) {
	e, err := c.endpoints(ctx, opRefresh)
	if err != nil {
		return nil, err
	}
	if e.Token == "" {
		return nil, missingEndpoint(opRefresh, "token_endpoint")
	}
	if !c.grants(want) {
		return nil, &Error{
			Kind: KindConfiguration, Op: opRefresh, Code: "invalid_target",
			Err: errors.New("the login was not asked for this resource, and a server grants resources at login (RFC 8707): add it to the session's own 'resource'"),
		}
	}
	params := c.common(c.ownResource())
	params.Set("grant_type", "refresh_token")
	params.Set("refresh_token", token.Reveal())
	want.ask(params, c.Scope)
	a, err := c.form(ctx, opRefresh, e, e.Token, params, token)
	if err != nil {
		return nil, err
	}
	return a.grant(opRefresh)
}

// revoke ends a token at the server (RFC 7009). A server without the endpoint
// has nothing to revoke; that is no error.
func (c *client) revoke(ctx context.Context, token Secret, hint string) error {
	e, err := c.endpoints(ctx, opRevoke)
	if err != nil {
		return err
	}
	if e.Revocation == "" {
		return nil
	}
	a, err := c.form(ctx, opRevoke, e, e.Revocation, url.Values{"token": {token.Reveal()}, "token_type_hint": {hint}}, token)
	if err != nil {
		return err
	}
	if a.status != http.StatusOK && a.status != http.StatusNoContent {
		return a.failure(opRevoke)
	}
	return nil
}

// userInfo asks who the token belongs to (OpenID Connect Core §5.3). It returns
// nothing without an error when the server has no such endpoint.
func (c *client) userInfo(ctx context.Context, token Secret) (*Account, claims, error) {
	e, err := c.endpoints(ctx, opUserInfo)
	if err != nil || e.UserInfo == "" {
		return nil, nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, e.UserInfo, nil)
	if err != nil {
		return nil, nil, asError(opUserInfo, err)
	}
	req.Header.Set("Authorization", "Bearer "+token.Reveal())
	a, err := c.exchange(req, opUserInfo)
	if err != nil {
		return nil, nil, err
	}
	if a.status != http.StatusOK || !a.ok {
		return nil, nil, a.failure(opUserInfo)
	}
	m, _ := decodeObject(a.body) // by exact names; a form, say, tells none
	return accountFrom(a.fields, c.Issuer), claimsFrom(m), nil
}
