package caddymodule

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.uber.org/zap"
)

// destination is where a connection goes, as the last hop sees it.
type destination struct {
	network string // tcp, or the network of a socket
	address string // host:port in lower case, or the path of a socket
	tls     bool   // false for a socket, which stays on this machine anyhow
}

func newDestination(network, address string, tls bool) destination {
	switch {
	case caddy.IsUnixNetwork(network):
		return destination{network, address, false}
	case network == "tcp4" || network == "tcp6":
		network = "tcp"
	}
	return destination{network, strings.ToLower(address), tls} // without a copy, as a rule
}

// String is what `allow_upstream` would take for d.
func (d destination) String() string {
	switch {
	case d.network != "tcp":
		return d.network + "/" + d.address
	case d.tls:
		return "https://" + strings.TrimSuffix(d.address, ":443")
	}
	return "http://" + strings.TrimSuffix(d.address, ":80")
}

// local reports whether what is sent to d stays on this machine (RFC 6761 §6.3).
func (d destination) local() bool {
	if caddy.IsUnixNetwork(d.network) {
		return true
	}
	host, _, err := net.SplitHostPort(d.address)
	if err != nil {
		return false
	}
	host = strings.TrimSuffix(host, ".")
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

// parseDestination reads an origin as an operator writes it: a URL without a path, or
// unix/ and the path of a socket.
func parseDestination(raw string) (destination, error) {
	s, err := caddy.NewReplacer().ReplaceOrErr(raw, true, true)
	if err != nil {
		return destination{}, fmt.Errorf("%w: only placeholders that are known at start-up, such as {env.…}, say who may get the token", err)
	}
	if network, path, found := strings.Cut(s, "/"); found && caddy.IsUnixNetwork(network) && path != "" {
		return newDestination(network, path, false), nil
	}
	u, err := url.Parse(s)
	if err != nil {
		return destination{}, fmt.Errorf("it is not a URL: %w", err)
	}
	port := map[string]string{"https": "443", "http": "80", "h2c": "80"}[u.Scheme]
	if port == "" || u.Hostname() == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		return destination{}, errors.New("write scheme, host and, if need be, port, as in https://api.example.com")
	}
	if p := u.Port(); p != "" {
		port = p
	}
	return newDestination("tcp", net.JoinHostPort(u.Hostname(), port), u.Scheme == "https"), nil
}

// pin finds out which origins may get the token: those of allow_upstream, or else
// the upstreams of the proxy around this transport. What is known only at the
// request (a placeholder, a dynamic source) is nobody's name: whoever has a say in
// it would have a say in where the token goes.
func (t *Transport) pin(ctx caddy.Context) error {
	log := ctx.Logger()
	t.pins = make(map[destination]struct{})
	for _, raw := range t.AllowUpstream {
		o, err := parseDestination(raw)
		if err != nil {
			return fmt.Errorf("allow_upstream %s: %w", raw, err)
		}
		if err := t.add(o); err != nil {
			return err
		}
	}
	if t.TLS != nil && !t.TLS.InsecureSkipVerify && !strings.Contains(t.TLS.ServerName, "{") {
		t.tlsName = t.TLS.ServerName
	}
	proxy := proxyAround(ctx)
	if proxy == nil {
		return nil
	}
	for _, u := range proxy.Upstreams {
		o, err := t.staticDestination(u.Dial)
		switch {
		case len(t.AllowUpstream) > 0:
			if err == nil && !t.mayHaveToken(o) {
				log.Warn("this upstream is not one of allow_upstream: calls that go there are refused", zap.Stringer("upstream", o))
			}
		case err != nil:
			log.Warn("this upstream is known only at the request, so it gets no token, and calls that go there are refused: "+
				"name what may get it, as in 'allow_upstream https://api.example.com'", zap.String("upstream", u.Dial))
		default:
			if err := t.add(o); err != nil {
				return err
			}
		}
	}
	if proxy.DynamicUpstreamsRaw != nil && len(t.AllowUpstream) == 0 {
		log.Warn("dynamic upstreams get no token unless they are named, and calls that go there are refused: " +
			"name what may get it, as in 'allow_upstream https://api.example.com' with the tls_server_name of the transport, " +
			"or by the addresses that are dialed")
	}
	return nil
}

// add lets o have the token, if it may travel there.
func (t *Transport) add(o destination) error {
	if !o.tls && !o.local() && !t.InsecureHTTP && !t.session.cfg.InsecureHTTP {
		return fmt.Errorf("upstream %s would get the token in clear text: use https://, or set insecure_http if the network is trusted", o)
	}
	if len(t.pins) == 0 {
		t.first = o
	}
	t.pins[o] = struct{}{}
	return nil
}

// proxyAround is the reverse_proxy that a transport is provisioned for.
func proxyAround(ctx caddy.Context) *reverseproxy.Handler {
	modules := ctx.Modules() // the last is the transport itself
	if len(modules) < 2 {
		return nil
	}
	proxy, _ := modules[len(modules)-2].(*reverseproxy.Handler)
	return proxy
}

// staticDestination is where an upstream's address leads, if that hangs on no request.
func (t *Transport) staticDestination(dial string) (destination, error) {
	s, err := caddy.NewReplacer().ReplaceOrErr(dial, true, true)
	if err != nil {
		return destination{}, err
	}
	a, err := caddy.ParseNetworkAddress(s)
	if err != nil {
		return destination{}, err
	}
	return newDestination(a.Network, a.JoinHostPort(0), t.usesTLS(strconv.FormatUint(uint64(a.StartPort), 10))), nil
}

// usesTLS reports whether connections to a port are secured.
func (t *Transport) usesTLS(port string) bool {
	return t.TLS != nil && !slices.Contains(t.TLS.ExceptPorts, port)
}

// mayHaveToken reports whether the site names o, or the name that its certificate
// must have: then it does not matter at which address it was found.
func (t *Transport) mayHaveToken(o destination) bool {
	if o == t.first { // cheaper than the map, and mostly there is only one
		return true
	}
	if _, ok := t.pins[o]; ok {
		return true
	}
	if !o.tls || t.tlsName == "" {
		return false
	}
	_, port, err := net.SplitHostPort(o.address)
	if err != nil {
		return false
	}
	_, ok := t.pins[newDestination("tcp", net.JoinHostPort(t.tlsName, port), true)]
	return ok
}

// direct makes req go where the proxy has decided, under that origin's own name,
// and fails if the site does not let that origin have the token. Only the address
// that is dialed counts: placeholders, load balancing and retries are behind it.
func (t *Transport) direct(req *http.Request) error {
	to, ok := reverseproxy.GetDialInfo(req.Context())
	if !ok {
		return fmt.Errorf("the token of session %s goes to the upstreams of a reverse_proxy only, and this request has come without one", t.session.name)
	}
	o := newDestination(to.Network, to.Address, t.usesTLS(to.Port))
	if !t.mayHaveToken(o) {
		named := "none is named"
		if len(t.pins) > 0 {
			var list []string
			for p := range t.pins {
				list = append(list, p.String())
			}
			slices.Sort(list)
			named = "named are " + strings.Join(list, ", ")
		}
		return fmt.Errorf("the token of session %s does not go to %q, and so the request does not either: %s; if that is the API, name it by allow_upstream", t.session.name, o, named)
	}
	req.URL.Scheme = "http" // a first attempt at another port may have left its own
	if t.usesTLS(to.Port) {
		req.URL.Scheme = "https"
	}
	if t.ownHost {
		req.Host = to.Address
	}
	// Nobody has chosen another name than the default of RequestHeaderOps.
	if req.Host == to.Address {
		switch {
		case caddy.IsUnixNetwork(to.Network):
			req.Host = "localhost" // a path is no host
		case o.tls:
			req.Host = strings.TrimSuffix(req.Host, ":443") // RFC 9110 §4.2.3
		default:
			req.Host = strings.TrimSuffix(req.Host, ":80")
		}
	}
	return nil
}
