// Command zitadel is the OpenID provider of github.com/zitadel/oidc as a fixture: a second opinion on the device flow,
// by other people than those of ../provider. Everything is in memory and on loopback; the process ends with its
// standard input, so that it cannot outlive the test that started it.
//
// It is a module of its own so that what zitadel/oidc needs stays out of the product's go.mod.
//
// Standard output is what ../provider/server.mjs prints: first the issuer's URL, then one JSON object a line for each
// request to an endpoint that a device client uses. No token, code or secret is ever printed.
//
// Clients: "device", public, and "service" with the secret "secret of the service". Settings by environment, in
// seconds: ACCESS_TOKEN_TTL (4), DEVICE_CODE_TTL (300) as announced, DEVICE_CODE_DIES (the same) as it is, and
// SLOW_POLLS (0): the first so many polls of each code find the storage too slow, which this library reports as
// slow_down.
//
// The operator's part: POST /operator with user_code and decision (allow or deny).
package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/zitadel/oidc/v3/pkg/op"
)

func main() {
	// The library's log goes to standard error, and so does ours.
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

func run() error {
	ttl, err := setting("ACCESS_TOKEN_TTL", 4)
	if err != nil {
		return err
	}
	announced, err := setting("DEVICE_CODE_TTL", 300)
	if err != nil {
		return err
	}
	dies, err := setting("DEVICE_CODE_DIES", announced)
	if err != nil {
		return err
	}
	slow, err := setting("SLOW_POLLS", 0)
	if err != nil {
		return err
	}

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	issuer := "http://" + listener.Addr().String()
	s := newStore(time.Duration(ttl)*time.Second, time.Duration(dies)*time.Second, slow)
	provider, err := op.NewProvider(configuration(time.Duration(announced)*time.Second), s, op.StaticIssuer(issuer), op.WithAllowInsecure())
	if err != nil {
		return err
	}
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, nil)))

	mux := http.NewServeMux()
	mux.HandleFunc("POST /operator", s.operator)
	mux.Handle("/", told(os.Stdout, provider.DeviceAuthorizationEndpoint().Relative(), provider))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = server.Shutdown(ctx)
		_ = server.Close()
	}()
	fmt.Println(issuer)
	if err := server.Serve(listener); err != http.ErrServerClosed {
		return err
	}
	return nil
}

// configuration is that of the library's example, with pages nobody needs left out and a pace for tests.
func configuration(codeLifetime time.Duration) *op.Config {
	c := &op.Config{
		AuthMethodPost:        true,
		GrantTypeRefreshToken: true,
		CodeMethodS256:        true,
		DeviceAuthorization: op.DeviceAuthorizationConfig{
			Lifetime:     codeLifetime,
			PollInterval: time.Second,
			UserFormPath: "/operator",
			UserCode:     op.UserCodeBase20,
		},
	}
	_, _ = rand.Read(c.CryptoKey[:]) // it never fails
	return c
}

// setting is a whole number from the environment.
func setting(name string, fallback int) (int, error) {
	text := os.Getenv(name)
	if text == "" {
		return fallback, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%s: give a whole number, not %q", name, text)
	}
	return n, nil
}
