package caddymodule

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/deviceflow/caddy-deviceflow/flow"
)

const (
	// assertionLifetime is short, since an assertion is used at once, and leaves
	// room for clocks that are not quite right.
	assertionLifetime = 2 * time.Minute
	maxKeyFile        = 64 << 10
	makeKey           = "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out <file>"
)

// clientKey signs assertions with the key in a file (RFC 7523 §2.2).
type clientKey struct {
	file     string
	written  string // in the configuration: what a placeholder holds might be no file name but the key
	clientID string
}

// holdsKey reports whether s looks like a key and not like the name of its file.
func holdsKey(s string) bool {
	return strings.ContainsAny(s, "\r\n\"") || strings.Contains(s, "-----BEGIN")
}

// assertion makes a JWT that nobody has used. The file is read each time, so that
// a key that is replaced needs no reload. Errors name the file as the configuration
// does, and nothing of what is in it.
func (k clientKey) assertion(_ context.Context, audience string) (flow.Secret, error) {
	signer, err := k.signer()
	if err != nil {
		return flow.Secret{}, fmt.Errorf("client_key %s: %w", k.written, err)
	}
	now := time.Now()
	token, err := jwt.Signed(signer).Claims(jwt.Claims{
		Issuer: k.clientID, Subject: k.clientID,
		// A single audience stays a string: some servers take no array.
		Audience: jwt.Audience{audience},
		ID:       rand.Text(),
		IssuedAt: jwt.NewNumericDate(now),
		Expiry:   jwt.NewNumericDate(now.Add(assertionLifetime)),
	}).Serialize()
	if err != nil {
		return flow.Secret{}, fmt.Errorf("client_key %s: this key cannot sign: %w", k.written, err)
	}
	return flow.NewSecret(token), nil
}

func (k clientKey) signer() (jose.Signer, error) {
	f, err := os.Open(k.file)
	if err != nil {
		return nil, fmt.Errorf("%w: this has to be the name of a file: check that the file exists and that Caddy may read it", errors.Unwrap(err))
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return nil, fmt.Errorf("reading it: %w", errors.Unwrap(err))
	}
	if len(raw) > maxKeyFile {
		return nil, errors.New("this file is too large for a key: write a PEM or JWK file with one private key into it")
	}
	key, err := parseKey(raw)
	if err != nil {
		return nil, err
	}
	algorithm, err := algorithmOf(key)
	if err != nil {
		return nil, err
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: algorithm, Key: key}, new(jose.SignerOptions).WithType("JWT"))
	if err != nil {
		return nil, fmt.Errorf("this key does not go with %s", algorithm)
	}
	return signer, nil
}

// parseKey reads a private key as PEM (PKCS #8, PKCS #1, SEC 1) or as JWK. Only a
// JWK has a kid: one that is made up here would be none that the server knows.
func parseKey(raw []byte) (jose.JSONWebKey, error) {
	raw = bytes.TrimSpace(raw)
	if bytes.HasPrefix(raw, []byte("{")) {
		return parseJWK(raw)
	}
	for block, rest := pem.Decode(raw); block != nil; block, rest = pem.Decode(rest) {
		var (
			key any
			err error
		)
		switch block.Type {
		case "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(block.Bytes)
		case "RSA PRIVATE KEY":
			if block.Headers["DEK-Info"] != "" {
				return jose.JSONWebKey{}, errEncryptedKey
			}
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		case "ENCRYPTED PRIVATE KEY":
			return jose.JSONWebKey{}, errEncryptedKey
		default:
			continue // a certificate, or EC PARAMETERS
		}
		if err != nil {
			return jose.JSONWebKey{}, fmt.Errorf("its private key is damaged: make another with '%s'", makeKey)
		}
		return jose.JSONWebKey{Key: key}, nil
	}
	return jose.JSONWebKey{}, fmt.Errorf("there is no private key in it, neither as PEM nor as JWK: make one with '%s'", makeKey)
}

var errEncryptedKey = errors.New("its private key is encrypted with a pass phrase: decrypt it with 'openssl pkey', and protect the file instead")

// parseJWK reads a private JWK (RFC 7517), or a set that holds just one.
func parseJWK(raw []byte) (jose.JSONWebKey, error) {
	var set struct{ Keys []json.RawMessage }
	if json.Unmarshal(raw, &set) == nil && len(set.Keys) > 0 {
		if len(set.Keys) > 1 {
			return jose.JSONWebKey{}, errors.New("it is a set of several keys: leave the one that is to sign")
		}
		raw = set.Keys[0]
	}
	var key jose.JSONWebKey
	// The decoder's message could quote a part of the key.
	if err := key.UnmarshalJSON(raw); err != nil || !key.Valid() {
		return jose.JSONWebKey{}, errors.New("this JWK cannot be read: it needs kty, the numbers of a private key (d and more), and kid if the server wants one")
	}
	if key.IsPublic() {
		return jose.JSONWebKey{}, errors.New("this is the public key, which belongs to the authorization server: write the private one into the file")
	}
	return key, nil
}

// algorithmOf is what the key says of itself, or what everybody uses such a key for.
func algorithmOf(key jose.JSONWebKey) (jose.SignatureAlgorithm, error) {
	natural, err := naturalAlgorithm(key.Key)
	if err != nil || key.Algorithm == "" {
		return natural, err
	}
	switch a := jose.SignatureAlgorithm(key.Algorithm); a {
	case jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512, jose.ES256, jose.ES384, jose.ES512, jose.EdDSA:
		return a, nil
	case "Ed25519": // RFC 9864's name of it
		return jose.EdDSA, nil
	}
	return "", errors.New("its alg is no signature algorithm: use RS256, ES256 or EdDSA, or leave alg out")
}

func naturalAlgorithm(key crypto.PrivateKey) (jose.SignatureAlgorithm, error) {
	switch k := key.(type) {
	case *rsa.PrivateKey:
		if k.N.BitLen() < 2048 {
			return "", fmt.Errorf("an RSA key of %d bits can be broken, 2048 is the least: make another with '%s'", k.N.BitLen(), makeKey)
		}
		return jose.RS256, nil
	case *ecdsa.PrivateKey:
		switch k.Curve.Params().BitSize {
		case 256:
			return jose.ES256, nil
		case 384:
			return jose.ES384, nil
		case 521:
			return jose.ES512, nil
		}
	case ed25519.PrivateKey:
		return jose.EdDSA, nil
	}
	return "", fmt.Errorf("keys of this kind cannot sign here: make an EC, RSA or Ed25519 one, as with '%s'", makeKey)
}
