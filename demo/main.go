// Command demo shows the whole product in one process on loopback: an
// authorization server with an approval page, an API that wants a bearer token,
// and Caddy with the device_flow modules in front of it. It needs no account, no
// network and no other program, and leaves nothing behind.
//
//	go run ./demo
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	_ "github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile" // the Caddyfile adapter
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/deviceflow/caddy-deviceflow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

func main() {
	var o options
	flag.StringVar(&o.listen, "listen", "localhost:8080", "where the proxy listens, on loopback")
	flag.BoolVar(&o.autoApprove, "auto-approve", false, "approve the login without a person")
	flag.DurationVar(&o.lifetime, "token-lifetime", 30*time.Second, "how long an access token lasts")
	flag.BoolVar(&o.verbose, "verbose", false, "show Caddy's log and the requests to the authorization server")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
	fmt.Println("\nStopped. Nothing is left behind.")
}

type options struct {
	listen      string
	autoApprove bool
	lifetime    time.Duration
	verbose     bool
}

// run starts everything, waits for ctx to end, and takes everything down.
func run(ctx context.Context, o options, out io.Writer) (err error) {
	folder, err := os.MkdirTemp("", "caddy-deviceflow-demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()
	// Whatever Caddy wants to write goes into that folder, too.
	for _, name := range []string{"XDG_DATA_HOME", "XDG_CONFIG_HOME"} {
		if err := os.Setenv(name, folder); err != nil {
			return err
		}
	}

	as := flowtest.New(flowtest.Config{
		ClientID:            "legacy-scanner",
		ClientName:          "Legacy scanner (demo)",
		AccessTokenLifetime: o.lifetime,
		Interval:            time.Second,
		AutoApprove:         o.autoApprove,
		APIAudience:         "https://api.example.com",
		Logf: func(format string, args ...any) {
			if o.verbose {
				fmt.Fprintf(out, "  server: "+format+"\n", args...)
			}
		},
	})
	defer as.Close()
	issuer, err := as.Start()
	if err != nil {
		return err
	}
	api, err := as.StartAPI()
	if err != nil {
		return err
	}

	config, err := caddyfile(o, folder, issuer, api)
	if err != nil {
		return err
	}
	adapted, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(config), map[string]any{"filename": "Caddyfile"})
	if err != nil {
		return err
	}
	if err := caddy.Load(adapted, true); err != nil {
		if errors.Is(err, syscall.EADDRINUSE) {
			return fmt.Errorf("%s is in use: choose another place with --listen localhost:8081 (%w)", o.listen, err)
		}
		return err
	}
	defer func() { err = errors.Join(err, caddy.Stop()) }()

	printGuide(out, o, issuer, api)
	<-ctx.Done()
	return nil
}

// caddyfile is what an operator would write, but for the demo's own storage.
func caddyfile(o options, folder, issuer, api string) (string, error) {
	host, port, err := net.SplitHostPort(o.listen)
	if err != nil {
		return "", fmt.Errorf("--listen %s: %w", o.listen, err)
	}
	bind := host
	if host == "" || host == "localhost" {
		bind = "127.0.0.1 ::1"
		if !hasIPv6() {
			bind = "127.0.0.1"
		}
	} else if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return "", fmt.Errorf("--listen %s: the demo stays on loopback; use localhost, 127.0.0.1 or [::1]", o.listen)
	}
	level := "ERROR"
	if o.verbose {
		level = "INFO"
	}
	policy := ""
	if o.autoApprove {
		// Nobody has to look at the code, so the first call may as well succeed.
		policy = "\n\t\tlogin eager\n\t\twait 10s"
	}
	return fmt.Sprintf(`{
	admin off
	persist_config off
	auto_https off
	storage file_system %q
	log {
		output stderr
		level %s
	}
}

http://:%s {
	bind %s
	device_flow %s {
		issuer %s
		client_id legacy-scanner
		scope openid profile offline_access read:things
		audience https://api.example.com%s
	}
}
`, filepath.Join(folder, "storage"), level, port, bind, api, issuer, policy), nil
}

// hasIPv6 reports whether this machine has an IPv6 loopback address; in many
// containers it has not, and Caddy would not start.
func hasIPv6() bool {
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		return false
	}
	l.Close()
	return true
}

func printGuide(out io.Writer, o options, issuer, api string) {
	_, port, _ := net.SplitHostPort(o.listen)
	host, _, _ := net.SplitHostPort(o.listen)
	if host == "" {
		host = "localhost"
	}
	base := "http://" + net.JoinHostPort(host, port)
	fmt.Fprintf(out, `
caddy-deviceflow demo: everything runs in this process, on loopback.

  the proxy              %s
  its status page        %s/.device-flow
  authorization server   %s
  the API behind         %s

`, base, base, issuer, api)
	if o.autoApprove {
		fmt.Fprintf(out, "The login is approved by itself:\n\n  curl %s/\n", base)
	} else {
		fmt.Fprintf(out, `1. Call the API as a device would, without any token. It is told where to log in:

     curl -i %s/

2. Open the status page, follow its link and approve:

     %s/.device-flow

3. Call again. The API answers, and names the account:

     curl %s/
`, base, base, base)
	}
	fmt.Fprintf(out, "\nTokens last %s and are refreshed ahead of time. Ctrl-C ends the demo.\n", o.lifetime)
}
