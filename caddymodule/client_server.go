package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/deviceflow/caddy-deviceflow/flow"
)

// Provider names a preset for a well-known authorization server.
type Provider struct {
	// One of `auth0`, `github`, `gitlab`, `google`, `keycloak`, `microsoft` and `okta`.
	Name string `json:"name,omitempty"`

	// What tells one tenant from another: for `auth0` the domain, for `github` and
	// `gitlab` the host (default: the public service), for `keycloak` URL and
	// realm, for `microsoft` the tenant, for `okta` the domain and the id of the
	// authorization server (default: `default`).
	Args []string `json:"args,omitempty"`
}

// authenticate adds to cfg how the client proves who it is, and checks that what
// this takes is there.
func (c *Client) authenticate(ctx context.Context, cfg *flow.Config, text func(field, s string) string) error {
	if c.ClientSecret != "" {
		cfg.Secret = c.secret
		if _, err := c.secret(ctx); err != nil {
			return err
		}
	}
	if c.ClientKey != "" {
		const instead = "takes the name of a file, not what is in it: write 'client_key /run/secrets/client-key.pem'"
		if strings.Contains(c.ClientKey, "{file.") || holdsKey(c.ClientKey) {
			return errors.New("client_key " + instead)
		}
		key := clientKey{file: text("client_key", c.ClientKey), written: c.ClientKey, clientID: cfg.ClientID}
		if holdsKey(key.file) {
			return errors.New("client_key " + key.written + " " + instead)
		}
		cfg.Assertion = key.assertion
		if _, err := key.signer(); err != nil {
			return fmt.Errorf("client_key %s: %w", key.written, err)
		}
	}
	return nil
}

// headers are the extra header fields. Their values are resolved at each request,
// and once here to see that they are there.
func (c *Client) headers(ctx context.Context) (map[string]func(context.Context) (flow.Secret, error), error) {
	out := make(map[string]func(context.Context) (flow.Secret, error), len(c.Headers))
	for name, written := range c.Headers {
		out[name] = func(context.Context) (flow.Secret, error) { return resolveSecret("header "+name, written) }
		if _, err := out[name](ctx); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// checkCertificate fails if the connection would bring no client certificate
// although that is all that the client has (RFC 8705 §2).
func checkCertificate(transport any) error {
	t, ok := transport.(*reverseproxy.HTTPTransport)
	if ok && (t.TLS == nil || t.TLS.ClientCertificateFile == "" && t.TLS.ClientCertificateAutomate == "") {
		return errors.New("client_auth tls needs a certificate: write 'auth_transport http { tls_client_auth <certificate file> <key file> }'")
	}
	return nil // another transport knows best
}
