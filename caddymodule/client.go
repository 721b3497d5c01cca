package caddymodule

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/caddyserver/caddy/v2"

	"github.com/deviceflow/caddy-deviceflow/flow"
)

// Client describes one login: which authorization server, as which client, and
// what it asks for. Placeholders that are known at start-up, such as `{env.…}`
// and `{file.…}`, work in every string.
type Client struct {
	// A preset of endpoints and habits. `issuer` and the endpoints override it.
	Provider *Provider `json:"provider,omitempty"`

	// The issuer identifier of the authorization server. Its endpoints are
	// discovered from there (RFC 8414, then OpenID Connect Discovery), and the
	// document's own `issuer` has to be this one.
	Issuer string `json:"issuer,omitempty"`

	// Where codes are issued (RFC 8628 §3.1). Overrides discovery.
	DeviceAuthorizationEndpoint string `json:"device_authorization_endpoint,omitempty"`

	// Where tokens are issued (RFC 6749 §3.2). Overrides discovery.
	TokenEndpoint string `json:"token_endpoint,omitempty"`

	// Where tokens are revoked at logout (RFC 7009). Overrides discovery.
	RevocationEndpoint string `json:"revocation_endpoint,omitempty"`

	// Who is logged in, for servers that send no id_token. Overrides discovery.
	UserInfoEndpoint string `json:"userinfo_endpoint,omitempty"`

	// The client's id at the authorization server. Required.
	ClientID string `json:"client_id,omitempty"`

	// The client's secret, best as `{file./run/secrets/…}`: it is read at each
	// request that needs it, so that a rotated file needs no reload, and never
	// stands in the configuration. Default: none, a public client.
	ClientSecret string `json:"client_secret,omitempty"`

	// How the client authenticates: `none`, `post` or `basic` (RFC 6749 §2.3),
	// `private_key_jwt` (RFC 7523) or `tls` (RFC 8705). Default: `post` with a
	// secret, `private_key_jwt` with a key, `none` without either.
	ClientAuth flow.ClientAuth `json:"client_auth,omitempty"`

	// The file with the private key for `private_key_jwt`, as PEM or JWK. It is
	// read at each request that needs it, so that a rotated key needs no reload.
	// For `tls` the certificate is part of `auth_transport` instead.
	ClientKey string `json:"client_key,omitempty"`

	// What to ask for. Many servers grant a refresh token only for
	// `offline_access`; without one, the login ends with its first token.
	Scope []string `json:"scope,omitempty"`

	// The API that the token is for, as Auth0 calls it.
	Audience string `json:"audience,omitempty"`

	// The APIs that the token is for (RFC 8707).
	Resource []string `json:"resource,omitempty"`

	// Extra parameters on device and token requests.
	Params map[string][]string `json:"params,omitempty"`

	// Extra header fields on requests to the authorization server. Values are
	// secrets, best as `{file.…}` or `{env.…}`, and read at each request.
	Headers map[string]string `json:"headers,omitempty"`

	// The only account that may be connected. Another one's login is refused, its
	// token revoked, and the status page says so. Default: any account.
	Account *Account `json:"account,omitempty"`

	// When a login starts: `on_demand`, when somebody opens the status page,
	// calls through the proxy or asks by the admin API; or `eager`, as soon as
	// Caddy runs. Default: `on_demand`.
	Login flow.LoginPolicy `json:"login,omitempty"`

	// How many access tokens for other APIs are kept at once: those of sites that
	// ask this session for another audience, resource or scope. Default: 128.
	CacheSize int `json:"cache_size,omitempty"`

	// Writes a pending login's QR code to Caddy's standard error, once for each
	// code, after the line that the log has about it. It is for where people read
	// that output: a terminal, or `docker compose logs`. Default: off.
	LogQR bool `json:"log_qr,omitempty"`

	// Allows `http://` endpoints on other hosts than this one.
	InsecureHTTP bool `json:"insecure_http,omitempty"`

	// Seals what is stored by AES-256-GCM. Each key is 32 bytes in base64 or hex,
	// best as `{file./run/secrets/…}`, which is read when the configuration is
	// loaded. The first key seals, each of them opens: a new key goes in front of
	// the old one. `off` as the first stores in clear text again. What was stored
	// in clear text is read all the same, and sealed at once. Default: clear text.
	EncryptionKey []string `json:"encryption_key,omitempty"`

	// Where the login is kept. Default: Caddy's storage.
	StorageRaw json.RawMessage `json:"storage,omitempty" caddy:"namespace=caddy.storage inline_key=module"`

	// How the authorization server is reached. Default: the `http` transport.
	AuthTransportRaw json.RawMessage `json:"auth_transport,omitempty" caddy:"namespace=http.reverse_proxy.transport inline_key=protocol"`
}

// Account names one account by something that the authorization server says of
// it, in an id_token or at its userinfo endpoint. Both are compared as they are
// written, case included; an `email` counts unless the server calls it unverified.
type Account struct {
	// The claim, such as `sub`, `email` or `preferred_username`.
	Claim string `json:"claim,omitempty"`

	// The value that it must have.
	Value string `json:"value,omitempty"`
}

// flowConfig checks c and makes a flow.Config of it. It reads a secret to see
// that it is there, but neither the network nor the storage.
func (c *Client) flowConfig(ctx caddy.Context, name, storageName string) (flow.Config, error) {
	var bad error
	repl := caddy.NewReplacer()
	resolve := func(field, s string, errOnUnknown bool) string {
		out, err := repl.ReplaceOrErr(s, true, errOnUnknown)
		if err != nil && bad == nil {
			bad = fmt.Errorf("%s: %w", field, err)
		}
		return out
	}
	text := func(field, s string) string { return resolve(field, s, true) }
	texts := func(field string, in []string) []string {
		out := make([]string, 0, len(in))
		for _, s := range in {
			// A placeholder may hold several.
			out = append(out, strings.Fields(text(field, s))...)
		}
		return out
	}
	cfg := flow.Config{
		Name:        name,
		StorageName: storageName,
		Issuer:      text("issuer", c.Issuer),
		Endpoints: flow.Endpoints{
			DeviceAuthorization: text("device_authorization_endpoint", c.DeviceAuthorizationEndpoint),
			Token:               text("token_endpoint", c.TokenEndpoint),
			Revocation:          text("revocation_endpoint", c.RevocationEndpoint),
			UserInfo:            text("userinfo_endpoint", c.UserInfoEndpoint),
		},
		ClientID:     text("client_id", c.ClientID),
		ClientAuth:   c.ClientAuth,
		Scope:        texts("scope", c.Scope),
		Audience:     text("audience", c.Audience),
		Resource:     texts("resource", c.Resource),
		InsecureHTTP: c.InsecureHTTP,
		Login:        c.Login,
		CacheSize:    c.CacheSize,
	}
	if len(c.Params) > 0 {
		cfg.Params = make(url.Values, len(c.Params))
		for k, vv := range c.Params {
			for _, v := range vv {
				// A parameter can be JSON (claims, in OpenID Connect), whose braces
				// are not placeholders.
				cfg.Params.Add(k, resolve("param "+k, v, false))
			}
		}
	}
	if c.Account != nil {
		cfg.Account = &flow.Claim{Name: text("account", c.Account.Claim), Value: text("account", c.Account.Value)}
	}
	if bad != nil {
		return cfg, bad
	}
	err := c.authenticate(ctx, &cfg, text)
	if err == nil {
		err = bad
	}
	if err == nil {
		cfg.Headers, err = c.headers(ctx)
	}
	if err == nil && c.Provider != nil {
		p := flow.Provider{Name: text("provider", c.Provider.Name)}
		for _, arg := range c.Provider.Args {
			p.Args = append(p.Args, text("provider", arg))
		}
		if err = bad; err == nil {
			cfg, err = p.Apply(cfg)
		}
	}
	if err != nil {
		return cfg, err
	}
	if cfg.Keys, err = c.keys(); err != nil {
		return cfg, err
	}
	if err := cfg.Validate(); err != nil {
		return cfg, err
	}

	storage := ctx.Storage()
	if c.StorageRaw != nil {
		mod, err := ctx.LoadModule(c, "StorageRaw")
		if err != nil {
			return cfg, fmt.Errorf("storage: %w", err)
		}
		if storage, err = mod.(caddy.StorageConverter).CertMagicStorage(); err != nil {
			return cfg, fmt.Errorf("storage: %w", err)
		}
	}
	cfg.Store = newStore(storage)

	transport, err := c.authTransport(ctx)
	if err != nil {
		return cfg, err
	}
	cfg.HTTP = transport
	return cfg, nil
}

// secret resolves client_secret as it is now.
func (c *Client) secret(context.Context) (flow.Secret, error) {
	s, err := resolveSecret("client_secret", c.ClientSecret)
	if err == nil && s.IsZero() {
		err = errors.New("client_secret is empty: write the secret into it, or remove the setting for a public client")
	}
	return s, err
}

// resolveSecret fills the placeholders of a secret setting in, and leaves a line
// end away. Its errors name the setting, not what it holds.
func resolveSecret(setting, written string) (flow.Secret, error) {
	s, err := caddy.NewReplacer().ReplaceOrErr(written, true, true)
	if err != nil {
		where := "is written with a placeholder that has no value"
		if lonePlaceholder(written) {
			where = written + " has no value"
		}
		return flow.Secret{}, fmt.Errorf("%s %s: check that the file or variable exists, that Caddy may read it, and that it is not empty", setting, where)
	}
	return flow.NewSecret(strings.TrimRight(s, "\r\n")), nil
}

// lonePlaceholder reports whether a secret setting names the place of the secret
// and nothing of the secret.
func lonePlaceholder(s string) bool {
	return strings.HasPrefix(s, "{") && strings.Index(s, "}") == len(s)-1
}

// keyOff, in place of the first key, stores in clear text.
const keyOff = "off"

// keys resolves encryption_key. Unlike the client's secret, this is done once:
// a key that is replaced in its file would leave what it has sealed behind.
func (c *Client) keys() ([]flow.Key, error) {
	var keys []flow.Key
	for i, written := range c.EncryptionKey {
		if i == 0 && written == keyOff {
			keys = append(keys, flow.Key{})
			continue
		}
		s, err := resolveSecret("encryption_key", written)
		if err != nil {
			return nil, err
		}
		k, err := flow.ParseKey(s)
		if err != nil {
			where := fmt.Sprintf("number %d", i+1)
			if lonePlaceholder(written) {
				where = written
			}
			return nil, fmt.Errorf("encryption_key %s: %w", where, err)
		}
		keys = append(keys, k)
	}
	return keys, nil
}

// authTransport is how the authorization server is reached.
func (c *Client) authTransport(ctx caddy.Context) (http.RoundTripper, error) {
	var (
		mod any
		err error
	)
	if c.AuthTransportRaw != nil {
		mod, err = ctx.LoadModule(c, "AuthTransportRaw")
	} else {
		// Ten megabytes of header are Go's own limit.
		mod, err = ctx.LoadModuleByID("http.reverse_proxy.transport.http", json.RawMessage(`{"max_response_header_size": 65536}`))
	}
	if err != nil {
		return nil, fmt.Errorf("auth_transport: %w", err)
	}
	rt, ok := mod.(http.RoundTripper)
	if !ok {
		return nil, fmt.Errorf("auth_transport: %T cannot carry HTTP requests; use 'auth_transport http { … }'", mod)
	}
	if c.ClientAuth == flow.ClientAuthTLS {
		if err := checkCertificate(mod); err != nil {
			return nil, err
		}
	}
	return rt, nil
}
