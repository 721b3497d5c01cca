package caddymodule

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// registered is what an authorization server knows of a client that signs.
type registered struct {
	sync.Mutex
	key    any // the public one
	issuer string
	used   map[string]bool
}

func (r *registered) verify(assertion string) error {
	r.Lock()
	defer r.Unlock()
	token, err := jwt.ParseSigned(assertion, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return err
	}
	var c jwt.Claims
	if err := token.Claims(r.key, &c); err != nil {
		return err
	}
	if r.used[c.ID] {
		return errors.New("the jti was used before")
	}
	r.used[c.ID] = true
	return c.ValidateWithLeeway(jwt.Expected{Issuer: "demo-client", Subject: "demo-client", AnyAudience: jwt.Audience{r.issuer}, Time: time.Now()}, 0)
}

func TestAClientThatSignsLogsInAndRotatesItsKeyWithoutAReload(t *testing.T) {
	first, second := newECKey(t), newECKey(t)
	server := &registered{key: first.Public(), used: map[string]bool{}}
	x := newRig(t, flowtest.Config{VerifyAssertion: server.verify})
	server.issuer = x.issuer
	file := filepath.Join(x.dir, "client-key.pem")
	if err := os.WriteFile(file, pkcs8(first), 0o600); err != nil {
		t.Fatal(err)
	}
	x.load(x.config("sign", "", "sign", "device_flow API {\n LOGIN\n client_auth private_key_jwt\n client_key DIR/client-key.pem\n}"))
	s := x.login("default")
	if got := x.get("http://sign/"); got.status != 200 {
		t.Fatalf("%d %s", got.status, got.body)
	}

	server.Lock()
	server.key = second.Public()
	server.Unlock()
	if err := os.WriteFile(file, pkcs8(second), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Refresh(t.Context()); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("%v", err)
	}
	if got := x.get("http://sign/"); got.status != 200 {
		t.Errorf("a missing key costs calls: %d", got.status)
	}
	if err := os.WriteFile(file, pkcs8(second), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Logout(t.Context()); err != nil || x.as.Count(flowtest.Revoke) != 1 {
		t.Errorf("logout: %v", err)
	}
	if len(logged("sign")) == 0 || len(logged("sign", "eyJ")) > 0 {
		t.Error("an assertion is in the log")
	}
}

func newECKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// The authorization server's TLS asks for the certificate at the place that its
// metadata names for such clients, and at no other.
func TestAClientWithACertificateLogsIn(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	pool := x509.NewCertPool()
	pem1, err := os.ReadFile("testdata/caddyfile/client_cert.pem")
	if err != nil || !pool.AppendCertsFromPEM(pem1) {
		t.Fatalf("the certificate cannot be read: %v", err)
	}
	var mu sync.Mutex
	seen := map[string]int{}
	mtls := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		seen[r.URL.Path]++
		mu.Unlock()
		x.as.ServeHTTP(w, r)
	}))
	mtls.TLS = &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool}
	mtls.Config.ErrorLog = log.New(new(strings.Builder), "", 0)
	mtls.StartTLS()
	defer mtls.Close()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: mtls.Certificate().Raw})
	if err := os.WriteFile(filepath.Join(x.dir, "ca.pem"), ca, 0o600); err != nil {
		t.Fatal(err)
	}
	x.as.ScriptAlways(flowtest.Discovery, flowtest.Response{Pass: true, Edit: flowtest.EditJSON(func(m map[string]any) {
		m["mtls_endpoint_aliases"] = map[string]any{
			"device_authorization_endpoint": mtls.URL + "/device_authorization",
			"token_endpoint":                mtls.URL + "/token",
			"revocation_endpoint":           mtls.URL + "/revoke",
		}
	})})
	x.load(x.config("mtls", "", "mtls", `device_flow API {
		LOGIN
		client_auth tls
		auth_transport http {
			tls_client_auth testdata/caddyfile/client_cert.pem testdata/caddyfile/client_cert_key.pem
			tls_trust_pool file DIR/ca.pem
		}
	}`))
	s := x.login("default")
	if _, err := s.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Logout(t.Context()); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if seen["/device_authorization"] != 1 || seen["/token"] < 2 || seen["/revoke"] != 1 {
		t.Errorf("by certificate: %v", seen)
	}
}

func TestExtraHeadersAreReadAtEachRequest(t *testing.T) {
	x := newRig(t, flowtest.Config{})
	file := filepath.Join(x.dir, "gate")
	write := func(s string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(s+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("first-gate-key")
	x.load(x.config("header", "", "header", "device_flow API {\n LOGIN\n header X-Gate {file.DIR/gate}\n}"))
	s := x.login("default")
	write("second-gate-key")
	if _, err := s.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, r := range x.as.Requests() {
		want := "first-gate-key"
		if r.Step == flowtest.Refresh {
			want = "second-gate-key"
		}
		if r.Header.Get("X-Gate") != want {
			t.Errorf("%s: %q", r.Step, r.Header.Get("X-Gate"))
		}
	}
	if len(logged("header")) == 0 || len(logged("header", "gate-key")) > 0 {
		t.Error("the value is in the log")
	}
}
