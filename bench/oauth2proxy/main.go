// Command oauth2proxy is what one writes with golang.org/x/oauth2 and net/http/httputil to lend a login to callers: a
// contestant of bench/run, and nothing to be used. It logs in by the device grant, so that its token is refreshed as ours.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"time"

	"golang.org/x/oauth2"
)

func main() {
	listen := flag.String("listen", "", "address to listen on")
	upstream := flag.String("upstream", "", "URL of the API")
	issuer := flag.String("issuer", "", "URL of the authorization server")
	early := flag.Duration("early", 10*time.Second, "how long before its end a token is refreshed")
	flag.Parse()
	if err := run(*listen, *upstream, *issuer, *early); err != nil {
		fmt.Fprintln(os.Stderr, "oauth2proxy:", err)
		os.Exit(1)
	}
}

func run(listen, upstream, issuer string, early time.Duration) error {
	target, err := url.Parse(upstream)
	if err != nil {
		return err
	}
	config := &oauth2.Config{ClientID: "demo-client", Scopes: []string{"offline_access"}}
	if config.Endpoint, err = discover(issuer); err != nil {
		return err
	}
	ctx := context.Background()
	code, err := config.DeviceAuth(ctx)
	if err != nil {
		return err
	}
	token, err := config.DeviceAccessToken(ctx, code)
	if err != nil {
		return err
	}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) },
		Transport: &oauth2.Transport{
			// A source of no token but for refreshing: the reuse around it keeps the token, with the early end asked for.
			Source: oauth2.ReuseTokenSourceWithExpiry(token, config.TokenSource(ctx, &oauth2.Token{RefreshToken: token.RefreshToken}), early),
			// As many idle connections as ours: net/http's own 2 would make it dial all the time.
			Base: &http.Transport{MaxIdleConnsPerHost: 256, IdleConnTimeout: 2 * time.Minute},
		},
	}
	return (&http.Server{Addr: listen, Handler: proxy, ReadHeaderTimeout: time.Minute}).ListenAndServe()
}

func discover(issuer string) (oauth2.Endpoint, error) {
	res, err := http.Get(issuer + "/.well-known/oauth-authorization-server")
	if err != nil {
		return oauth2.Endpoint{}, err
	}
	defer res.Body.Close()
	var m struct {
		Device string `json:"device_authorization_endpoint"`
		Token  string `json:"token_endpoint"`
	}
	err = json.NewDecoder(res.Body).Decode(&m)
	return oauth2.Endpoint{DeviceAuthURL: m.Device, TokenURL: m.Token, AuthStyle: oauth2.AuthStyleInParams}, err
}
