package flow

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// document is what an issuer's metadata says.
type document struct {
	Endpoints
	issuer string    // as it writes itself
	mtls   Endpoints // for clients with a certificate (RFC 8705 §5)
	at     time.Time // when it was asked for
	pkce   bool      // it knows S256 (RFC 7636), at its authorization endpoint at least
	auth   []string  // how clients may authenticate at its token endpoint; empty: it does not say
}

// discover fetches the server's metadata: RFC 8414 first, then OpenID Connect
// Discovery. A document counts only if its issuer is the configured one
// (RFC 8414 §3.3). The first document that names a device authorization
// endpoint wins; otherwise the first valid one, for what it does name.
func (c *client) discover(ctx context.Context) (*document, error) {
	// Both places together get the time of one exchange.
	ctx, cancel := context.WithTimeout(ctx, exchangeTimeout)
	defer cancel()
	var (
		found    *document
		problems []*Error
	)
	for _, location := range wellKnown(c.Issuer) {
		d, err := c.metadata(ctx, location)
		if err != nil {
			problems = append(problems, asError(opDiscovery, err))
			continue
		}
		if found == nil || d.DeviceAuthorization != "" {
			found = d
		}
		if d.DeviceAuthorization != "" {
			break
		}
	}
	if found == nil {
		return nil, discoveryError(problems)
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
func (c *client) metadata(ctx context.Context, location string) (*document, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, location, nil)
	if err != nil {
		return nil, asError(opDiscovery, err)
	}
	a, err := c.exchange(req, opDiscovery)
	if err != nil {
		return nil, err
	}
	wrong := func(kind Kind, format string, args ...any) error {
		return &Error{Kind: kind, Op: opDiscovery, Code: CodeConfiguration, Status: a.status, Err: fmt.Errorf(format, args...)}
	}
	switch {
	case a.status >= 300 && a.status < 400:
		return nil, wrong(KindDoubtful, "%s redirects; redirects are not followed, so write the issuer exactly as the server names itself", location)
	case a.status == http.StatusTooManyRequests || a.status >= 500:
		return nil, a.failure(opDiscovery)
	case a.status != http.StatusOK:
		return nil, wrong(KindDoubtful, "%s answers with HTTP %d", location, a.status)
	case !a.ok:
		return nil, wrong(KindDoubtful, "%s is not a JSON document", location)
	}
	if got := a.fields.text("issuer"); !sameIssuer(got, c.Issuer) {
		return nil, wrong(KindConfiguration, "the document at %s belongs to issuer %q, not to %q; write the issuer exactly as the server names itself",
			location, clean(got, 200), c.Issuer)
	}
	d := &document{Endpoints: a.fields.endpoints(), issuer: a.fields.text("issuer")}
	if aliases, ok := a.fields["mtlsendpointaliases"].(map[string]any); ok {
		d.mtls = normalize(aliases).endpoints()
	}
	d.auth = a.fields.list("token_endpoint_auth_methods_supported")
	d.pkce = slices.Contains(a.fields.list("code_challenge_methods_supported"), "S256")
	if err := c.accepts(d); err != nil {
		return nil, wrong(KindConfiguration, "the document at %s: %w", location, err)
	}
	return d, nil
}

// accepts checks the places that a document names, with more care than configured
// ones: a server elsewhere has no say in what this machine is sent on its loopback
// interface, secrets to any port included.
func (c *client) accepts(d *document) error {
	issuer, _ := url.Parse(c.Issuer) // it has been checked
	for _, e := range []Endpoints{d.Endpoints, d.mtls} {
		for _, endpoint := range e.named() {
			if endpoint.url == "" {
				continue
			}
			if len(endpoint.url) > maxURI {
				return fmt.Errorf("%s is longer than %d bytes: write '%s <url>' with the right one", endpoint.name, maxURI, endpoint.name)
			}
			if err := checkEndpoint(endpoint.url, c.InsecureHTTP); err != nil {
				return fmt.Errorf("%s: %w", endpoint.name, err)
			}
			if strings.HasPrefix(strings.ToLower(endpoint.url), "http:") && !c.InsecureHTTP && (issuer == nil || !isLoopback(issuer.Hostname())) {
				return fmt.Errorf("%s: %q is on this machine, and the issuer is not: write '%s <url>' if that is meant", endpoint.name, endpoint.url, endpoint.name)
			}
		}
	}
	return nil
}

// endpoints are those that a metadata document names (RFC 8414 §2, RFC 8628 §4).
func (f fields) endpoints() Endpoints {
	return Endpoints{
		DeviceAuthorization: f.text("device_authorization_endpoint"),
		Token:               f.text("token_endpoint"),
		Revocation:          f.text("revocation_endpoint"),
		UserInfo:            f.text("userinfo_endpoint"),
	}
}

// namedURL is a place and the name of its setting.
type namedURL struct{ name, url string }

// named are the endpoints with the names of their settings.
func (e Endpoints) named() []namedURL {
	return []namedURL{
		{"device_authorization_endpoint", e.DeviceAuthorization},
		{"token_endpoint", e.Token},
		{"revocation_endpoint", e.Revocation},
		{"userinfo_endpoint", e.UserInfo},
	}
}

// or fills what e leaves open from other.
func (e Endpoints) or(other Endpoints) Endpoints {
	return Endpoints{
		DeviceAuthorization: firstOf(e.DeviceAuthorization, other.DeviceAuthorization),
		Token:               firstOf(e.Token, other.Token),
		Revocation:          firstOf(e.Revocation, other.Revocation),
		UserInfo:            firstOf(e.UserInfo, other.UserInfo),
	}
}

// sameIssuer asks for identity but forgives a final slash: Auth0 names itself
// with one, and everybody writes the tenant's URL without.
func sameIssuer(a, b string) bool {
	return a != "" && strings.TrimSuffix(a, "/") == strings.TrimSuffix(b, "/")
}

// lack reports whether op needs a place that e does not name.
func (e Endpoints) lack(op string) bool {
	switch op {
	case opDevice:
		return e.DeviceAuthorization == "" || e.Token == ""
	case opRevoke:
		return e.Revocation == ""
	case opUserInfo:
		return e.UserInfo == ""
	}
	return e.Token == ""
}

// endpoints joins what is configured with what discovery says, which is asked only if
// op needs it: metadata that do not answer are in nobody's way whose places are
// configured.
func (c *client) endpoints(ctx context.Context, op string) (Endpoints, error) {
	e := c.Endpoints
	missing := e.lack(op)
	// An assertion is for the issuer as it writes itself; see [client.audienceOf].
	signs := c.ClientAuth == ClientAuthPrivateKeyJWT && op != opUserInfo
	if c.Issuer == "" || !missing && !signs {
		return e, nil
	}
	d, err := c.document(ctx, op, missing)
	switch {
	case err == nil:
	case !missing, c.Endpoints.DeviceAuthorization != "" && c.Endpoints.Token != "" && asError(opDiscovery, err).Kind != KindTemporary:
		return e, nil // nobody says that there are such places
	default:
		return Endpoints{}, err
	}
	if c.ClientAuth == ClientAuthTLS {
		e = e.or(d.mtls)
	}
	return e.or(d.Endpoints), nil
}

const (
	// courtesyTime is how long metadata are waited for that op can do without, and
	// courtesyGap how long they are not asked for again when that has failed.
	courtesyTime = 5 * time.Second
	courtesyGap  = time.Minute
)

// document is the metadata. They are asked for once and kept: an outage of theirs must
// not stop a refresh. A new configuration has them asked for again, since that is what
// people try when a server has moved something; until there is an answer, the old ones
// go on. needed says that op cannot do without any.
func (c *client) document(ctx context.Context, op string, needed bool) (*document, error) {
	known := c.known()
	old := known
	if old != nil && c.accepts(old) != nil {
		old = nil // insecure_http is gone
	}
	if old != nil && !c.kin.stale.Load() {
		return old, nil
	}
	if old != nil || !needed {
		// A person who waits for a code is a reason to try again; a refresh is none.
		if op != opDevice && c.kin.resting(time.Now()) {
			if old != nil {
				return old, nil
			}
			return nil, &Error{Kind: KindTemporary, Op: opDiscovery, Code: CodeUnreachable, Err: errors.New("the metadata have failed a moment ago")}
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, courtesyTime)
		defer cancel()
	}
	d, err := c.kin.once(ctx, known, c.ask)
	if old != nil && (err != nil || !c.complete(d)) {
		return old, nil
	}
	return d, err
}

// ask asks for the metadata and keeps them, if they are of use. Else the next one asks
// again, for the server may be put right meanwhile.
func (c *client) ask(ctx context.Context) (*document, error) {
	d, err := c.discover(ctx)
	if err == nil && c.complete(d) {
		d.at = time.Now()
		c.kin.keep(d)
	} else {
		c.kin.rest(time.Now())
	}
	return d, err
}

// complete reports whether people can log in by what d and the configuration name.
func (c *client) complete(d *document) bool { return !c.Endpoints.or(d.Endpoints).lack(opDevice) }

// hint is the metadata where they are a help only, or nil.
func (c *client) hint(ctx context.Context, op string) *document {
	if d := c.known(); d != nil || c.Issuer == "" {
		return d
	}
	d, _ := c.document(ctx, op, false)
	return d
}

// known is the metadata, if it has been asked for.
func (c *client) known() *document {
	if c.kin == nil {
		return nil
	}
	return c.kin.discovered.Load()
}

// missingEndpoint is the error for an endpoint that nobody named.
func missingEndpoint(op, name string) error {
	return &Error{
		Kind: KindConfiguration, Op: op, Code: CodeConfiguration,
		Err: fmt.Errorf("the issuer's metadata names no %s: enable the device flow at the authorization server, or write '%s <url>'", name, name),
	}
}
