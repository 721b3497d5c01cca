package caddymodule

import (
	"errors"
	"net"
	"net/http"
	"net/netip"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// addClient reads an address, a CIDR range, or the name of the default ones.
func (g *keeper) addClient(s string) error {
	if s == "private_ranges" {
		for _, r := range privateRanges {
			g.clients = append(g.clients, netip.MustParsePrefix(r))
		}
		return nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		addr, err := netip.ParseAddr(s)
		if err != nil || addr.Zone() != "" {
			return errors.New("write an address or a CIDR range, as in 192.168.1.0/24, or private_ranges")
		}
		p = netip.PrefixFrom(addr, addr.BitLen())
	}
	if p.Addr().Is4In6() { // callers are compared as IPv4
		if p.Bits() < 96 {
			return errors.New("write the IPv4 range without ::ffff:") //nolint:staticcheck // the colon is part of the notation
		}
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	g.clients = append(g.clients, p.Masked())
	return nil
}

// allowsClient reports whether an address may call.
func (g *keeper) allowsClient(addr netip.Addr) bool {
	addr = addr.Unmap().WithZone("")
	if g.clients == nil {
		return addr.IsLoopback() || addr.IsPrivate() || addr.IsLinkLocalUnicast()
	}
	for _, p := range g.clients {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

// checkClient judges the address that Caddy takes for the caller's.
func (g *keeper) checkClient(r *http.Request, vars map[string]any) *refusal {
	client, _ := vars[caddyhttp.ClientIPVarKey].(string)
	if trusted, _ := vars[caddyhttp.TrustedProxyVarKey].(bool); trusted {
		if no := g.checkForwarded(r); no != nil {
			return no
		}
	}
	if client == "" {
		client = r.RemoteAddr
		if host, _, err := net.SplitHostPort(client); err == nil {
			client = host
		}
	}
	addr, err := netip.ParseAddr(client)
	switch {
	case err == nil && g.allowsClient(addr):
		return nil
	case err != nil && overUnixSocket(r):
		return nil
	}
	return clientRefused(client)
}

// checkForwarded judges what a trusted proxy reports. Unless trusted_proxies_strict
// is on, Caddy takes the first address, which is the caller's own word where the
// proxy appends to what it was sent. So each of them has to be allowed: to add one
// never helps.
func (g *keeper) checkForwarded(r *http.Request) *refusal {
	srv, ok := r.Context().Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	if !ok || srv.TrustedProxiesStrict > 0 {
		return nil
	}
	for _, name := range srv.ClientIPHeaders {
		for _, line := range g.reported(r, name) {
			for part := range strings.SplitSeq(line, ",") {
				part = strings.TrimSpace(part)
				if host, _, err := net.SplitHostPort(part); err == nil {
					part = host
				}
				addr, err := netip.ParseAddr(strings.Trim(part, "[]"))
				if err != nil || !g.allowsClient(addr) {
					return clientRefused(part)
				}
			}
		}
	}
	return nil
}

// reported is a field of the request as it has come in. At the last hop, our own
// proxy has added the trusted one's address to it, and header_up may have changed it:
// there, the placeholder still has the caller's.
func (g *keeper) reported(r *http.Request, name string) []string {
	if _, hop := g.self.(*Transport); !hop {
		return r.Header.Values(name)
	}
	repl, ok := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	if !ok {
		return r.Header.Values(name)
	}
	if all, _ := repl.GetString("http.request.header." + name); all != "" {
		return []string{all}
	}
	return nil
}

func clientRefused(client string) *refusal {
	return forbidden("client-not-allowed", "This client may not call",
		"Calls from %s are not allowed. If they should be, add the address or its network to the setting allow_client.", clean(client, maxCode))
}

// overUnixSocket tells a caller without an address from one that hides it.
func overUnixSocket(r *http.Request) bool {
	a, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	return ok && a.Network() == "unix"
}

// privateRanges is what private_ranges stands for: the default, written down.
var privateRanges = []string{
	"127.0.0.0/8", "::1/128", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7", "169.254.0.0/16", "fe80::/10",
}
