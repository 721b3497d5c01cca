package flow

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
)

// ClientAuth is how the client authenticates (RFC 6749 §2.3). One style is used
// throughout: trying a second one would burn one-shot codes and tokens.
type ClientAuth string

// The values of [ClientAuth]. Empty means ClientAuthPost with a secret,
// ClientAuthPrivateKeyJWT with an assertion, and ClientAuthNone without either.
const (
	// ClientAuthNone sends the client_id alone: a public client (RFC 6749 §2.1).
	ClientAuthNone ClientAuth = "none"
	// ClientAuthPost sends Config.Secret in the body (RFC 6749 §2.3.1).
	ClientAuthPost ClientAuth = "post"
	// ClientAuthBasic sends Config.Secret in the Authorization header, and the client_id
	// in the body as well, where many servers want it.
	ClientAuthBasic ClientAuth = "basic"
	// ClientAuthPrivateKeyJWT sends a JWT that the client has signed (RFC 7523
	// §2.2), which Config.Assertion makes.
	ClientAuthPrivateKeyJWT ClientAuth = "private_key_jwt"
	// ClientAuthTLS sends nothing but the client_id: the certificate of the
	// connection authenticates, which Config.HTTP brings (RFC 8705 §2). The
	// endpoints are those that the metadata names for it.
	ClientAuthTLS ClientAuth = "tls"
)

const assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer" // RFC 7523 §2.2

// validateAuth reports what is missing for the client's authentication, and what
// is too much.
func (c *Config) validateAuth(bad func(format string, args ...any)) {
	switch c.ClientAuth {
	case "", ClientAuthNone, ClientAuthTLS:
	case ClientAuthPost, ClientAuthBasic:
		if c.Secret == nil {
			bad("client_auth %s needs a secret: write 'client_secret {file./path/to/secret}'", c.ClientAuth)
		}
	case ClientAuthPrivateKeyJWT:
		if c.Assertion == nil {
			bad("client_auth private_key_jwt needs a key: write 'client_key <file>' with a PEM or JWK file")
		}
	default:
		bad("client_auth %q is not known: use none, post, basic, private_key_jwt or tls", c.ClientAuth)
	}
	secretless := c.ClientAuth == ClientAuthNone || c.ClientAuth == ClientAuthPrivateKeyJWT || c.ClientAuth == ClientAuthTLS
	switch {
	case c.Secret != nil && secretless:
		bad("client_auth %s and a client_secret exclude each other: remove one of them", c.ClientAuth)
	case c.Secret != nil && c.Assertion != nil:
		bad("client_secret and client_key exclude each other: remove the one that the authorization server does not know")
	case c.Assertion != nil && c.ClientAuth != "" && c.ClientAuth != ClientAuthPrivateKeyJWT:
		bad("client_key is for 'client_auth private_key_jwt': remove one of them")
	}
}

// authenticate adds the client's authentication to a request and returns the
// secret in it, if there is one. Nothing is kept: a rotated secret or key counts
// from the next request on.
func (c *client) authenticate(ctx context.Context, op string, e Endpoints, params url.Values, header http.Header) (Secret, error) {
	// RFC 8628 §3.1 and many servers want client_id in the body whatever the style.
	params.Set("client_id", c.ClientID)
	var (
		secret Secret
		what   string
		err    error
	)
	ctx, cancel := context.WithTimeout(ctx, exchangeTimeout)
	defer cancel()
	switch c.ClientAuth {
	case ClientAuthPost, ClientAuthBasic:
		what = "reading the client secret"
		secret, err = c.Secret(ctx)
	case ClientAuthPrivateKeyJWT:
		what = "signing with the client key"
		secret, err = c.Assertion(ctx, c.audienceOf(e))
	default:
		return Secret{}, nil
	}
	if err == nil && secret.IsZero() {
		err = errors.New("it is empty")
	}
	if err != nil {
		return Secret{}, &Error{Kind: KindConfiguration, Op: op, Code: CodeConfiguration, Err: fmt.Errorf("%s: %w", what, err)}
	}
	switch c.ClientAuth {
	case ClientAuthBasic:
		// RFC 6749 §2.3.1: form-urlencoded before base64.
		r := http.Request{Header: header}
		r.SetBasicAuth(url.QueryEscape(c.ClientID), url.QueryEscape(secret.Reveal()))
	case ClientAuthPost:
		params.Set("client_secret", secret.Reveal())
	default:
		params.Set("client_assertion_type", assertionType)
		params.Set("client_assertion", secret.Reveal())
	}
	return secret, nil
}

// audienceOf is who an assertion is for: the issuer as it writes itself, final
// slash included, since servers compare it as a string. RFC 7523 §3 allows the
// token endpoint as well, but an assertion for one server's endpoint can be taken
// to another's by metadata that lies. Without an issuer there is nothing else.
func (c *client) audienceOf(e Endpoints) string {
	if c.Issuer == "" {
		return e.Token
	}
	if d := c.known(); d != nil {
		return d.issuer
	}
	return c.Issuer
}

// authHint says what to try where the server does not know a client that has sent
// its secret: servers register one place for it, and "invalid_client" is all that
// they say about the other. It is for people; trying by ourselves would burn codes.
func (c *client) authHint(ctx context.Context, op string) string {
	place, other, there := "body", ClientAuthBasic, "header"
	switch c.ClientAuth {
	case ClientAuthPost:
	case ClientAuthBasic:
		place, other, there = "header", ClientAuthPost, "body"
	default:
		return ""
	}
	hint := fmt.Sprintf("the secret was sent in the %s; if the server expects it in the %s, write 'client_auth %s'", place, there, other)
	if d := c.hint(ctx, op); d != nil && len(d.auth) > 0 {
		switch {
		case !slices.Contains(d.auth, "client_secret_"+string(other)):
			return ""
		case !slices.Contains(d.auth, "client_secret_"+string(c.ClientAuth)):
			return fmt.Sprintf("the secret was sent in the %s, and the server's metadata wants it in the %s: write 'client_auth %s'", place, there, other)
		}
	}
	return hint
}

// refusesClient reports whether an error is about who the client is. With 401,
// unauthorized_client is, too (Keycloak).
func refusesClient(code string, status int) bool {
	switch errorName(code) {
	case "invalid_client", "incorrect_client_credentials":
		return true
	case "unauthorized_client":
		return status == http.StatusUnauthorized
	}
	return false
}
