package tokensource_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"time"

	"golang.org/x/oauth2"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
	"github.com/deviceflow/caddy-deviceflow/flow/tokensource"
)

// run logs in at the authorization server and calls two APIs.
func run(ctx context.Context, issuer, reports, billing string) error {
	session, err := flow.New(flow.Config{
		Issuer:   issuer,
		ClientID: "demo-client",
		Scope:    []string{"openid", "offline_access"},
		Audience: reports,
		// Store: a flow.Store, or the login ends with the program.
	})
	if err != nil {
		return err
	}

	// Run owns the login and refreshes it. It ends with its context.
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() { defer close(ended); session.Run(ctx) }()
	defer func() { cancel(); <-ended }()

	// The first call for a token asks for a code, unless a stored login is good.
	_, err = session.Token(ctx)
	var notReady *flow.NotReadyError
	switch {
	case errors.As(err, &notReady) && notReady.Status.Login != nil:
		login := notReady.Status.Login
		fmt.Fprintf(os.Stderr, "Open %s and enter the code %s\n", login.VerificationURI, login.UserCode)
		if _, err = session.Await(ctx, time.Until(login.ExpiresAt)); err != nil {
			return err
		}
	case err != nil:
		return err
	}

	// flow.Transport is the better half where a program makes its own requests:
	// it has a token replaced that the API refuses (401), and repeats the call.
	first := &http.Client{Transport: &flow.Transport{Session: session}}
	if err := get(ctx, first, reports); err != nil {
		return err
	}

	// The same login, another API, and a library that wants an oauth2.TokenSource.
	other, err := session.For(flow.Want{Audience: billing})
	if err != nil {
		return err
	}
	tokens := tokensource.New(ctx, other, time.Minute)
	second := &http.Client{Transport: &oauth2.Transport{Source: tokens}}
	return get(ctx, second, billing)
}

func get(ctx context.Context, client *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return err
	}
	fmt.Printf("%s: %s\n", res.Status, body)
	return nil
}

// A program that logs in and calls two APIs with one login. Here, a server for
// tests plays the authorization server, and approves by itself.
func Example() {
	as := flowtest.New(flowtest.Config{AutoApprove: true, Interval: time.Second})
	defer as.Close()
	issuer, err := as.Start()
	if err != nil {
		log.Fatal(err)
	}
	reports, closeReports := api(as, "reports")
	defer closeReports()
	billing, closeBilling := api(as, "billing")
	defer closeBilling()

	if err := run(context.Background(), issuer, reports, billing); err != nil {
		log.Fatal(err)
	}
	// Output:
	// 200 OK: 12 reports
	// 200 OK: 12 billing
}
