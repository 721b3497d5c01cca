// Command server is the authorization server and the API of the demo without its
// Caddy, for compose.yaml, where each has a container of its own. It is for trying
// things out: whoever can open its page can approve.
//
//	go run ./demo/server --issuer http://localhost:9000
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

func main() {
	var o options
	flag.StringVar(&o.listen, "listen", "127.0.0.1:9000", "where the authorization server listens")
	flag.StringVar(&o.api, "api", "127.0.0.1:9001", "where the API listens")
	flag.StringVar(&o.issuer, "issuer", "http://localhost:9000", "the address of the authorization server for the person who approves")
	flag.DurationVar(&o.lifetime, "token-lifetime", 30*time.Second, "how long an access token lasts")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "server:", err)
		os.Exit(1)
	}
}

type options struct {
	listen, api, issuer string
	lifetime            time.Duration
}

// run serves until ctx ends.
func run(ctx context.Context, o options) error {
	as := flowtest.New(flowtest.Config{
		ClientID:            "legacy-scanner",
		ClientName:          "Legacy scanner (demo)",
		AccessTokenLifetime: o.lifetime,
		Interval:            time.Second,
		Issuer:              o.issuer,
		APIAudience:         "https://api.example.com",
		Logf:                func(format string, args ...any) { fmt.Printf(format+"\n", args...) },
	})
	defer as.Close()
	if _, err := as.Listen(o.listen); err != nil {
		return err
	}
	if _, err := as.ListenAPI(o.api); err != nil {
		return err
	}
	fmt.Printf("authorization server at %s, its pages at %s; API at %s\n", o.listen, o.issuer, o.api)
	<-ctx.Done()
	return nil
}
