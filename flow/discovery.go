package flow

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
)

// discover fetches the server's metadata: RFC 8414 first, then OpenID Connect
// Discovery. A document counts only if its issuer is the configured one
// (RFC 8414 §3.3). The first document that names a device authorization
// endpoint wins; otherwise the first valid one, for what it does name.
func (c *client) discover(ctx context.Context) (Endpoints, error) {
	// Both places together get the time of one exchange.
	ctx, cancel := context.WithTimeout(ctx, exchangeTimeout)
	defer cancel()
	var (
		found    Endpoints
		valid    bool
		problems []*Error
	)
	for _, location := range wellKnown(c.Issuer) {
		e, err := c.metadata(ctx, location)
		if err != nil {
			problems = append(problems, asError(opDiscovery, err))
			continue
		}
		if !valid || e.DeviceAuthorization != "" {
			found, valid = e, true
		}
		if e.DeviceAuthorization != "" {
			break
		}
	}
	if !valid {
		return Endpoints{}, discoveryError(problems)
	}
	return found, nil
}

// discoveryError picks the error that helps most. A wrong document comes first:
// it is there, so this is no outage. An outage comes before a place that holds
// no document, since servers answer so for the one of the two they do not know.
func discoveryError(problems []*Error) error {
	for _, kind := range []Kind{KindConfiguration, KindTemporary, KindDoubtful} {
		for _, e := range problems {
			if e.Kind == kind && (kind != KindDoubtful || e.Status != http.StatusNotFound) {
				if kind == KindDoubtful {
					e.Kind = KindConfiguration
				}
				return e
			}
		}
	}
	return &Error{
		Kind: KindConfiguration, Op: opDiscovery, Code: CodeConfiguration, Status: http.StatusNotFound,
		Description: "the issuer publishes no metadata; check 'issuer', or write device_authorization_endpoint and token_endpoint",
	}
}

// wellKnown are the two places of an issuer's metadata. RFC 8414 §3.1 puts the
// well-known part between host and path, OpenID Connect behind the path.
func wellKnown(issuer string) []string {
	u, err := url.Parse(issuer)
	if err != nil {
		return nil
	}
	path := strings.TrimSuffix(u.EscapedPath(), "/")
	origin := u.Scheme + "://" + u.Host
	return []string{
		origin + "/.well-known/oauth-authorization-server" + path,
		origin + path + "/.well-known/openid-configuration",
	}
}

// metadata fetches and checks one document. The error is of KindDoubtful where
// there is none.
func (c *client) metadata(ctx context.Context, location string) (Endpoints, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, location, nil)
	if err != nil {
		return Endpoints{}, asError(opDiscovery, err)
	}
	a, err := c.exchange(req, opDiscovery)
	if err != nil {
		return Endpoints{}, err
	}
	wrong := func(kind Kind, format string, args ...any) error {
		return &Error{Kind: kind, Op: opDiscovery, Code: CodeConfiguration, Status: a.status, Err: fmt.Errorf(format, args...)}
	}
	switch {
	case a.status >= 300 && a.status < 400:
		return Endpoints{}, wrong(KindDoubtful, "%s redirects; redirects are not followed, so write the issuer exactly as the server names itself", location)
	case a.status == http.StatusTooManyRequests || a.status >= 500:
		return Endpoints{}, a.failure(opDiscovery)
	case a.status != http.StatusOK:
		return Endpoints{}, wrong(KindDoubtful, "%s answers with HTTP %d", location, a.status)
	case !a.ok:
		return Endpoints{}, wrong(KindDoubtful, "%s is not a JSON document", location)
	}
	if got := a.fields.text("issuer"); !sameIssuer(got, c.Issuer) {
		return Endpoints{}, wrong(KindConfiguration, "the document at %s belongs to issuer %q, not to %q; write the issuer exactly as the server names itself",
			location, clean(got, 200), c.Issuer)
	}
	e := Endpoints{
		DeviceAuthorization: a.fields.text("device_authorization_endpoint"),
		Token:               a.fields.text("token_endpoint"),
		Revocation:          a.fields.text("revocation_endpoint"),
		UserInfo:            a.fields.text("userinfo_endpoint"),
	}
	for _, endpoint := range []struct{ name, url string }{
		{"device_authorization_endpoint", e.DeviceAuthorization}, {"token_endpoint", e.Token},
		{"revocation_endpoint", e.Revocation}, {"userinfo_endpoint", e.UserInfo},
	} {
		if endpoint.url == "" {
			continue
		}
		if err := checkEndpoint(endpoint.url, c.InsecureHTTP); err != nil {
			return Endpoints{}, wrong(KindConfiguration, "the document at %s: %s: %w", location, endpoint.name, err)
		}
	}
	return e, nil
}

// sameIssuer asks for identity but forgives a final slash: Auth0 names itself
// with one, and everybody writes the tenant's URL without.
func sameIssuer(a, b string) bool {
	return a != "" && strings.TrimSuffix(a, "/") == strings.TrimSuffix(b, "/")
}

// endpoints joins what is configured with what discovery says, which is asked
// once and kept: an outage of the metadata must not stop a refresh.
func (c *client) endpoints(ctx context.Context) (Endpoints, error) {
	e := c.Endpoints
	if c.Issuer == "" || (e.DeviceAuthorization != "" && e.Token != "" && e.Revocation != "" && e.UserInfo != "") {
		return e, nil
	}
	d := c.discovered.Load()
	if d == nil {
		got, err := c.discover(ctx)
		if err != nil {
			if e.DeviceAuthorization != "" && e.Token != "" {
				return e, nil // what is needed is configured; the rest is a courtesy
			}
			return Endpoints{}, err
		}
		d = &got
		if (e.DeviceAuthorization != "" || d.DeviceAuthorization != "") && (e.Token != "" || d.Token != "") {
			c.discovered.Store(d) // else: ask again, for the server may be put right meanwhile
		}
	}
	e.DeviceAuthorization = firstOf(e.DeviceAuthorization, d.DeviceAuthorization)
	e.Token = firstOf(e.Token, d.Token)
	e.Revocation = firstOf(e.Revocation, d.Revocation)
	e.UserInfo = firstOf(e.UserInfo, d.UserInfo)
	return e, nil
}

// missingEndpoint is the error for an endpoint that nobody named.
func missingEndpoint(op, name string) error {
	return &Error{Kind: KindConfiguration, Op: op, Code: CodeConfiguration,
		Err: fmt.Errorf("the issuer's metadata names no %s: enable the device flow at the authorization server, or write '%s <url>'", name, name)}
}
