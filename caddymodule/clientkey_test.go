package caddymodule

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// keyFile writes a file and returns its name.
func keyFile(t *testing.T, content []byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "client-key")
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func keyIn(file string) clientKey { return clientKey{file, file, "the-client"} }

func pemOf(kind string, der []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func pkcs8(key any) []byte {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	return pemOf("PRIVATE KEY", der, err)
}

func jwkOf(t *testing.T, k jose.JSONWebKey) []byte {
	t.Helper()
	b, err := json.Marshal(k)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func testKeys(t *testing.T) (*ecdsa.PrivateKey, *rsa.PrivateKey, ed25519.PrivateKey) {
	t.Helper()
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rs, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return ec, rs, ed
}

// signed reads an assertion that has to be good for the key.
func signed(t *testing.T, k clientKey, audience string, algorithm jose.SignatureAlgorithm, public crypto.PublicKey) (jwt.Claims, jose.Header) {
	t.Helper()
	s, err := k.assertion(t.Context(), audience)
	if err != nil {
		t.Fatal(err)
	}
	token, err := jwt.ParseSigned(s.Reveal(), []jose.SignatureAlgorithm{algorithm})
	if err != nil {
		t.Fatal(err)
	}
	var claims jwt.Claims
	raw := map[string]any{}
	if err := token.Claims(public, &claims, &raw); err != nil {
		t.Fatal(err)
	}
	if _, ok := raw["aud"].(string); !ok {
		t.Errorf("aud is %T, which some servers do not take", raw["aud"])
	}
	return claims, token.Headers[0]
}

func TestClientKeySigns(t *testing.T) {
	ec, rs, ed := testKeys(t)
	sec1, ecErr := x509.MarshalECPrivateKey(ec)
	for _, tc := range []struct {
		name      string
		content   []byte
		algorithm jose.SignatureAlgorithm
		public    crypto.PublicKey
		kid       string
	}{
		{"EC, PKCS 8", pkcs8(ec), jose.ES256, ec.Public(), ""},
		{"EC, SEC 1 after its parameters", append([]byte("-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"), pemOf("EC PRIVATE KEY", sec1, ecErr)...), jose.ES256, ec.Public(), ""},
		{"RSA, PKCS 8", pkcs8(rs), jose.RS256, rs.Public(), ""},
		{"RSA, PKCS 1", pemOf("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rs), nil), jose.RS256, rs.Public(), ""},
		{"Ed25519", pkcs8(ed), jose.EdDSA, ed.Public(), ""},
		{"JWK, EC", jwkOf(t, jose.JSONWebKey{Key: ec, KeyID: "k1"}), jose.ES256, ec.Public(), "k1"},
		{"JWK, RSA that says PS256", jwkOf(t, jose.JSONWebKey{Key: rs, KeyID: "k2", Algorithm: "PS256"}), jose.PS256, rs.Public(), "k2"},
		{"JWK, Ed25519", jwkOf(t, jose.JSONWebKey{Key: ed, KeyID: "k3", Algorithm: "EdDSA", Use: "sig"}), jose.EdDSA, ed.Public(), "k3"},
		{"JWK, Ed25519 by its new name", jwkOf(t, jose.JSONWebKey{Key: ed, KeyID: "k4", Algorithm: "Ed25519"}), jose.EdDSA, ed.Public(), "k4"},
		{"a set of one", []byte(`{"keys":[` + string(jwkOf(t, jose.JSONWebKey{Key: ec, KeyID: "k5"})) + `]}`), jose.ES256, ec.Public(), "k5"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			k := keyIn(keyFile(t, tc.content))
			before := time.Now().Truncate(time.Second)
			c, header := signed(t, k, "https://as.example/", tc.algorithm, tc.public)
			life := c.Expiry.Time().Sub(c.IssuedAt.Time())
			if c.Issuer != "the-client" || c.Subject != "the-client" || c.Audience[0] != "https://as.example/" || c.ID == "" ||
				c.IssuedAt.Time().Before(before) || life <= 0 || life > 5*time.Minute || header.KeyID != tc.kid || header.ExtraHeaders[jose.HeaderType] != "JWT" {
				t.Errorf("%+v, %+v", c, header)
			}
			if again, _ := signed(t, k, "https://as.example/", tc.algorithm, tc.public); again.ID == c.ID {
				t.Error("two assertions have the same jti")
			}
		})
	}
}

func TestClientKeyIsReadEachTime(t *testing.T) {
	ec, _, ed := testKeys(t)
	k := keyIn(keyFile(t, pkcs8(ec)))
	signed(t, k, "a", jose.ES256, ec.Public())
	if err := os.WriteFile(k.file, pkcs8(ed), 0o600); err != nil {
		t.Fatal(err)
	}
	signed(t, k, "a", jose.EdDSA, ed.Public())
}

func TestMistakesInAClientKeyAreToldWithTheRemedy(t *testing.T) {
	ec, rs, _ := testKeys(t)
	public, err := x509.MarshalPKIXPublicKey(ec.Public())
	weak := jwkOf(t, jose.JSONWebKey{Key: rs})
	small, smallErr := rsa.GenerateKey(rand.Reader, 1024)
	if smallErr != nil {
		t.Setenv("GODEBUG", "rsa1024min=0")
		if small, smallErr = rsa.GenerateKey(rand.Reader, 1024); smallErr != nil {
			t.Fatal(smallErr)
		}
	}
	damaged := pkcs8(ec)
	copy(damaged[40:], "AAAAAAAA")
	for name, tc := range map[string]struct {
		content []byte
		want    string
	}{
		"empty":           {nil, "there is no private key in it"},
		"text":            {[]byte("s3cr3t s3cr3t"), "there is no private key in it"},
		"a public PEM":    {pemOf("PUBLIC KEY", public, err), "there is no private key in it"},
		"a public JWK":    {jwkOf(t, jose.JSONWebKey{Key: ec.Public()}), "this is the public key"},
		"encrypted":       {pemOf("ENCRYPTED PRIVATE KEY", []byte("s3cr3t"), nil), "openssl pkey"},
		"damaged":         {damaged, "openssl genpkey"},
		"a damaged JWK":   {[]byte(`{"kty":"EC","crv":"P-256","d":"s3cr3t"}`), "this JWK cannot be read"},
		"a symmetric JWK": {[]byte(`{"kty":"oct","k":"czNjcjN0czNjcjN0"}`), "this JWK cannot be read"},
		"two keys":        {[]byte(`{"keys":[` + string(weak) + "," + string(weak) + `]}`), "leave the one"},
		"a small RSA key": {pemOf("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(small), nil), "1024 bits"},
		"an odd alg":      {jwkOf(t, jose.JSONWebKey{Key: ec, Algorithm: "ECDH-ES"}), "leave alg out"},
		"another alg":     {jwkOf(t, jose.JSONWebKey{Key: ec, Algorithm: "RS256"}), "RS256"},
		"too large":       {make([]byte, maxKeyFile+1), "too large"},
	} {
		t.Run(name, func(t *testing.T) {
			k := keyIn(keyFile(t, tc.content))
			_, err := k.assertion(t.Context(), "a")
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), k.file) || strings.Contains(err.Error(), "s3cr3t") {
				t.Errorf("%v", err)
			}
		})
	}
	k := keyIn(filepath.Join(t.TempDir(), "none"))
	if _, err := k.assertion(t.Context(), "a"); err == nil || !strings.Contains(err.Error(), k.file) || !strings.Contains(err.Error(), "check that the file exists") {
		t.Errorf("%v", err)
	}
	k = keyIn(t.TempDir())
	if _, err := k.assertion(t.Context(), "a"); err == nil || strings.Contains(err.Error(), "<nil>") {
		t.Errorf("a folder: %v", err)
	}
}

func TestAKeyInThePlaceOfItsFileIsNotPrinted(t *testing.T) {
	ec, _, _ := testKeys(t)
	for name, value := range map[string]string{
		"PEM": string(pkcs8(ec)), "PEM in one line": strings.ReplaceAll(string(pkcs8(ec)), "\n", " "),
		"JWK": string(jwkOf(t, jose.JSONWebKey{Key: ec})), "something else": "c2VjcmV0LWtleQ",
	} {
		t.Setenv("DEVICE_FLOW_TEST_KEY", value)
		for _, written := range []string{"{env.DEVICE_FLOW_TEST_KEY}", "/run/{env.DEVICE_FLOW_TEST_KEY}"} {
			config, err := adapt(t, site("device_flow https://a.example.com {\n issuer https://l.example.com\n client_id a\n client_auth private_key_jwt\n client_key "+written+"\n}"))
			if err != nil {
				t.Fatal(err)
			}
			err = provisioned(t, config)
			if err == nil || !strings.Contains(err.Error(), "client_key "+written) || !strings.Contains(err.Error(), "name of a file") {
				t.Errorf("%s as %s: the error does not help", name, written)
			}
			if err != nil && (strings.Contains(err.Error(), value[len(value)/2:]) || strings.Contains(err.Error(), "PRIVATE")) {
				t.Errorf("%s as %s: the error has the key", name, written)
			}
		}
	}
}
