package flow

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/url"
	"strings"
)

// newVerifier makes a code_verifier of 52 letters and digits (RFC 7636 §4.1).
func newVerifier() Secret { return NewSecret(rand.Text() + rand.Text()) }

// addChallenge adds what the verifier will have to match (RFC 7636 §4.3).
func addChallenge(params url.Values, verifier Secret) {
	sum := sha256.Sum256([]byte(verifier.Reveal()))
	params.Set("code_challenge", base64.RawURLEncoding.EncodeToString(sum[:]))
	params.Set("code_challenge_method", "S256")
}

// wantsPKCE reports whether the server refuses a device authorization request for
// want of a code_challenge: it says so, or it finds the request invalid and its
// metadata knows S256.
//
// The metadata alone is no reason to send one. It speaks of the authorization
// endpoint, and a server whose device endpoint ignores the challenge may refuse
// the verifier afterwards, as Google does and as RFC 9700 §2.1.1 demands: then
// nobody could log in. A device authorization request burns nothing, so trying
// twice costs a request.
func (c *client) wantsPKCE(ctx context.Context, err error) bool {
	var e *Error
	if !errors.As(err, &e) || e.Status < 400 || e.Kind != KindConfiguration {
		return false
	}
	text := strings.ToLower(e.Code + " " + e.Description)
	if strings.Contains(text, "pkce") || strings.Contains(text, "code_challenge") || strings.Contains(text, "code challenge") {
		return true
	}
	if errorName(e.Code) != "invalid_request" {
		return false
	}
	d := c.hint(ctx, opDevice)
	return d != nil && d.pkce
}
