package e2e

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// serviceClient is the client that provider/server.mjs makes of its environment.
const serviceClient = "service"

// authenticated is a site whose client proves who it is; how is more of its settings.
func authenticated(how string) string {
	return `
http://:{$PORT} {
	bind 127.0.0.1
	device_flow {$API} {
		issuer {$ISSUER}
		client_id ` + serviceClient + `
		scope openid offline_access
		` + how + `
	}
}
`
}

func pemBlock(t *testing.T, kind string, der []byte, err error) string {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

func jwks(t *testing.T, key jose.JSONWebKey) string {
	t.Helper()
	b, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{key}})
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// lives has a login of the service client go through two refreshes and a logout.
func lives(t *testing.T, p *provider, c *caddy) {
	t.Helper()
	c.callForCode(t)
	link, err := url.Parse(c.status(t).Login.VerificationURIComplete)
	if err != nil {
		t.Fatal(err)
	}
	// People need no certificate: the same page is at the issuer's own address.
	issuer, err := url.Parse(p.issuer)
	if err != nil {
		t.Fatal(err)
	}
	link.Scheme, link.Host = issuer.Scheme, issuer.Host
	approveAtProvider(t, link.String())
	c.login(t)
	every(t, 500*time.Millisecond, time.Minute, "2 rotated refreshes", func() bool {
		if res := get(t, client(t), c.url+"/", ""); res.status != 200 {
			t.Fatalf("%d %s", res.status, res.body)
		}
		return p.refreshes() >= 2
	})
	if got := c.ask(t, "POST", "/device_flow/sessions/default/logout"); got.status >= 300 {
		t.Fatalf("logout: %d %s", got.status, got.body)
	}
	eventually(t, patience, "a revocation", func() bool {
		return p.count(func(e providerEvent) bool { return e.Event == "revocation" && e.Status == 200 }) >= 1 // two if a refresh was under way
	})
	if n := p.failedRefreshes(); n != 0 {
		t.Errorf("%d refreshes were refused: %+v", n, p.all())
	}
}

// A client that signs: the third party checks signature, audience, jti and times itself.
func TestSigningClientAgainstAThirdParty(t *testing.T) {
	parallel(t, installProvider)
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
	for name, key := range map[string]crypto.Signer{"ES256": ec, "RS256": rs, "EdDSA": ed} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := startProvider(t, 8*time.Second, "CLIENT_AUTH=private_key_jwt", "CLIENT_JWKS="+jwks(t, jose.JSONWebKey{Key: key.Public(), Use: "sig"}))
			a := startAPI(t, p.valid)
			c := newCaddy(t, authenticated("client_auth private_key_jwt\n\t\tclient_key {$HOME}/client-key.pem"), p.issuer, a.URL)
			der, err := x509.MarshalPKCS8PrivateKey(key)
			c.writeFile(t, "client-key.pem", pemBlock(t, "PRIVATE KEY", der, err))
			c.start(t)
			lives(t, p, c)
		})
	}
}

// certificate makes one that vouches for itself.
func certificate(t *testing.T, name string) (cert, key string, der []byte, k *ecdsa.PrivateKey) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, BasicConstraintsValid: true, IsCA: true,
	}
	der, err = x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	cert = pemBlock(t, "CERTIFICATE", der, err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(k)
	return cert, pemBlock(t, "PRIVATE KEY", pkcs8, err), der, k
}

// A client that has nothing but its certificate, at the places that the third party's metadata names for it.
func TestClientWithACertificateAgainstAThirdParty(t *testing.T) {
	parallel(t, installProvider)
	dir := t.TempDir()
	serverCert, serverKey, _, _ := certificate(t, "server")
	for name, text := range map[string]string{"server.pem": serverCert, "server-key.pem": serverKey} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cert, key, der, k := certificate(t, "client")
	sum := sha256.Sum256(der)
	public, err := json.Marshal(jose.JSONWebKey{Key: k.Public(), Use: "sig"})
	if err != nil {
		t.Fatal(err)
	}
	registered := map[string]any{}
	if err := json.Unmarshal(public, &registered); err != nil {
		t.Fatal(err)
	}
	registered["x5t#S256"] = base64.RawURLEncoding.EncodeToString(sum[:])
	registered["x5c"] = []string{base64.StdEncoding.EncodeToString(der)}
	keys, err := json.Marshal(map[string]any{"keys": []any{registered}})
	if err != nil {
		t.Fatal(err)
	}

	p := startProvider(t, 8*time.Second, "CLIENT_AUTH=self_signed_tls_client_auth", "CLIENT_JWKS="+string(keys),
		"TLS_CERT="+filepath.Join(dir, "server.pem"), "TLS_KEY="+filepath.Join(dir, "server-key.pem"))
	a := startAPI(t, p.valid)
	c := newCaddy(t, authenticated(`client_auth tls
		auth_transport http {
			tls_client_auth {$HOME}/client.pem {$HOME}/client-key.pem
			tls_trust_pool file `+filepath.Join(dir, "server.pem")+`
		}`), p.issuer, a.URL)
	c.writeFile(t, "client.pem", cert)
	c.writeFile(t, "client-key.pem", key)
	c.start(t)
	lives(t, p, c)
}
