package flow

import (
	"context"
	"errors"
	"fmt"
	"io"
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

const (
	grantDeviceCode = "urn:ietf:params:oauth:grant-type:device_code" // RFC 8628 §3.4
	maxBody         = 1 << 20                                        // after decompression
	exchangeTimeout = 30 * time.Second                               // one exchange, body included
	// A refresh has more time: nobody waits for it, and an answer that is given
	// up on may have been the one with the new refresh token.
	refreshTimeout = time.Minute
)

// client talks to one authorization server: one method, one HTTP exchange (and
// discovery before the first). It decides nothing and keeps nothing but the
// metadata.
type client struct {
	Config
	fingerprint string // of Config
	storageKey  string // of the record
	kin         *Kin
	loads       *atomic.Int32 // reads of the store that are under way
}

func newClient(cfg Config, fingerprint string) *client {
	return &client{Config: cfg, fingerprint: fingerprint, storageKey: recordKey(cfg.StorageName, fingerprint)}
}

// answer is a response that has been read.
type answer struct {
	status  int
	header  http.Header
	fields  fields
	ok      bool // fields could be decoded
	at      time.Time
	secrets []Secret // to be scrubbed from texts
	body    []byte
	hint    string // what to try if it refuses the client
}

// exchange sends req and reads the answer. It follows no redirect, since it
// would carry codes and secrets elsewhere, and reads at most maxBody. The error
// is an *Error, of KindTemporary unless it is about the configured headers.
func (c *client) exchange(req *http.Request, op string) (*answer, error) {
	timeout := exchangeTimeout
	if op == opRefresh {
		timeout = refreshTimeout
	}
	ctx, cancel := context.WithTimeout(req.Context(), timeout)
	defer cancel()
	req = req.WithContext(ctx)
	req.Header.Set("Accept", "application/json")
	secrets, err := c.addHeaders(ctx, op, req.Header)
	if err != nil {
		return nil, err
	}
	if req.Header.Get("User-Agent") == "" {
		req.Header.Set("User-Agent", "caddy-deviceflow")
	}

	resp, err := c.HTTP.RoundTrip(req)
	if err != nil {
		return nil, unreachable(op, req, timeout, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	if err != nil {
		return nil, unreachable(op, req, timeout, fmt.Errorf("reading the answer: %w", err))
	}
	if len(body) > maxBody {
		return nil, &Error{Kind: KindTemporary, Op: op, Code: CodeInvalidResponse, Status: resp.StatusCode,
			Description: "the answer is larger than 1 MiB"}
	}
	a := &answer{status: resp.StatusCode, header: resp.Header, at: time.Now(), body: body, secrets: secrets}
	a.fields, a.ok = decodeFields(resp.Header.Get("Content-Type"), body)
	return a, nil
}

func unreachable(op string, req *http.Request, timeout time.Duration, err error) *Error {
	// A *url.Error would repeat the URL; name the host alone.
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("no answer within %s", timeout)
	}
	return &Error{Kind: KindTemporary, Op: op, Code: CodeUnreachable, Err: fmt.Errorf("%s: %w", req.URL.Host, err)}
}

// failure is the error that an answer means.
func (a *answer) failure(op string) *Error {
	e := &Error{Op: op, Status: a.status, RetryAfter: retryAfter(a.header, a.at)}
	if a.ok {
		code, description := a.fields.errorCode(a.status)
		e.Code = clean(scrub(code, a.secrets...), 64)
		e.Description = clean(scrub(description, a.secrets...), 200)
		e.Interval, _ = a.fields.seconds(maxCodeLifetime, "interval")
	}
	e.Kind = classify(op, e.Code, a.status)
	if a.status >= 300 && a.status < 400 {
		e.Kind, e.Code, e.Description = KindConfiguration, CodeConfiguration, "the endpoint redirects, and redirects are not followed; check its URL"
	}
	if e.Code == "" {
		e.Code = codeOfStatus(a.status)
	}
	if e.Kind == KindConfiguration && refusesClient(e.Code, a.status) {
		e.Hint = a.hint
	}
	return e
}

// codeOfStatus names an error that the server did not: the standard's names where
// the status says that it is in trouble (RFC 6749 §4.1.2.1).
func codeOfStatus(status int) string {
	switch {
	case status == http.StatusServiceUnavailable, status == http.StatusTooManyRequests:
		return "temporarily_unavailable"
	case status >= 500:
		return "server_error"
	}
	return CodeInvalidResponse
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
	a.hint = c.authHint()
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
	e, err := c.endpoints(ctx)
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
	if c.PKCE || !c.wantsPKCE(err) {
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
	for _, member := range []struct{ name, value string }{
		{"device_code", d.code.Reveal()}, {"user_code", d.login.UserCode}, {"verification_uri", d.login.VerificationURI},
	} {
		if member.value == "" {
			return nil, &Error{Kind: KindTemporary, Op: opDevice, Code: CodeInvalidResponse, Status: a.status,
				Description: "the answer has no " + member.name}
		}
	}
	lifetime, ok := f.seconds(maxCodeLifetime, "expires_in", "expire_in")
	if !ok {
		lifetime = defaultCodeLifetime
	}
	d.login.ExpiresAt = a.at.Round(0).Add(lifetime) // compared with the wall clock, which a sleep does not stop
	if d.interval, ok = f.seconds(maxCodeLifetime, "interval"); !ok {
		d.interval = defaultInterval
	}
	// An interval of a year would mean that nobody can ever log in, one of a
	// microsecond would be a loop.
	d.interval = max(min(d.interval, max(lifetime/3, defaultInterval)), minInterval)
	return d, nil
}

// poll asks once whether the login has been approved (RFC 8628 §3.4). verifier is
// empty unless the code was asked for with PKCE.
func (c *client) poll(ctx context.Context, code, verifier Secret) (*grant, error) {
	e, err := c.endpoints(ctx)
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
	e, err := c.endpoints(ctx)
	if err != nil {
		return nil, err
	}
	if e.Token == "" {
		return nil, missingEndpoint(opRefresh, "token_endpoint")
	}
	if !c.grants(want) {
		return nil, &Error{Kind: KindConfiguration, Op: opRefresh, Code: "invalid_target",
			Err: errors.New("the login was not asked for this resource, and a server grants resources at login (RFC 8707): add it to the session's own 'resource'")}
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
	e, err := c.endpoints(ctx)
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
	e, err := c.endpoints(ctx)
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
